//! The name that somebody may have meant, for errors.

/// The nearest of `known`, if at most every third character differs.
#[must_use]
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = found.to_lowercase();
    let distances = known.into_iter().map(|name| (distance(&lower, &name.to_lowercase()), name));
    let (distance, name) = distances.min()?;
    (distance <= (found.len().max(name.len()) / 3).max(1)).then_some(name)
}

/// How many characters to insert, delete, replace or swap with their neighbour to get from one to the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX - 1);
            let replaced = cell(&above, j) + usize::from(a != b);
            let edited = replaced.min(cell(&above, j + 1) + 1).min(cell(&row, j) + 1);
            let is_swap = i > 0 && j > 0 && from.get(i - 1) == Some(b) && to.get(j - 1) == Some(a);
            row.push(if is_swap { edited.min(cell(&before, j - 1) + 1) } else { edited });
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn edit_distance() {
        for (from, to, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("ab", "ba", 1),
            ("tpc", "tcp", 1),
            ("a", "a", 0),
        ] {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }

    #[test]
    fn the_nearest_name_if_it_is_near() {
        assert_eq!(nearest("pods", ["Pod", "Node"]), Some("Pod"));
        let policies = ["CiliumNetworkPolicy", "NetworkPolicy"];
        assert_eq!(nearest("CiliumNetworkPolcy", policies), Some("CiliumNetworkPolicy"));
        assert_eq!(nearest("Service", ["Pod", "Node", "Namespace"]), None);
        assert_eq!(nearest("x", []), None);
    }

    proptest! {
        #[test]
        fn distances_are_the_same_both_ways(a in "[ab]{0,6}", b in "[ab]{0,6}") {
            prop_assert_eq!(distance(&a, &a), 0);
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
        }
    }
}
