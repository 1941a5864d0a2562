//! Unknown fields of our own kinds: refused, with the nearest known name.

use serde_json::Value;

/// Which fields an object may have.
pub(super) enum Shape {
    /// Not looked into.
    Any,
    /// A mapping with these fields.
    Map(&'static [(&'static str, Self)]),
}

/// An unknown field.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    pub(super) field: String,
    pub(super) message: String,
}

/// The first field of `value` that `shape` doesn't have.
pub(super) fn unknown_field(value: &Value, shape: &Shape) -> Option<Unknown> {
    search(value, shape, "")
}

/// The name out of `known` that is meant by `name`, if one is near enough.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let far = 1 + name.chars().count() / 4;
    let lower = name.to_lowercase();
    let distances = known.into_iter().map(|known| (distance(&lower, &known.to_lowercase()), known));
    distances.filter(|(distance, _)| *distance <= far).min().map(|(_, known)| known)
}

fn search(value: &Value, shape: &Shape, path: &str) -> Option<Unknown> {
    let (Value::Object(map), Shape::Map(fields)) = (value, shape) else { return None };
    map.iter().find_map(|(name, value)| {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match fields.iter().find(|(known, _)| known == name) {
            Some((_, shape)) => search(value, shape, &path),
            None => Some(Unknown { field: path, message: message(name, fields) }),
        }
    })
}

fn message(name: &str, fields: &[(&str, Shape)]) -> String {
    let known = || fields.iter().map(|(known, _)| *known);
    match nearest(name, known()) {
        Some(near) => format!("unknown field; did you mean \"{near}\"?"),
        None => format!("unknown field; known here: {}", known().collect::<Vec<_>>().join(", ")),
    }
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row.iter_mut().zip(std::iter::once(None).chain(b.chars().map(Some))) {
            let Some(cb) = cb else {
                *cell = i + 1;
                continue;
            };
            let above = *cell;
            left = (above + 1).min(left + 1).min(diagonal + usize::from(ca != cb));
            diagonal = above;
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const SHAPE: Shape = Shape::Map(&[
        ("kind", Shape::Any),
        ("spec", Shape::Map(&[("number", Shape::Any), ("hash", Shape::Any)])),
    ]);

    #[test]
    fn finds_unknown_fields_by_path() {
        let found = unknown_field(&json!({"kind": {"x": 1}, "spec": {"nunber": 1}}), &SHAPE).unwrap();
        assert_eq!(found.field, "spec.nunber");
        assert_eq!(found.message, "unknown field; did you mean \"number\"?");
        let found = unknown_field(&json!({"status": {}}), &SHAPE).unwrap();
        assert_eq!(found.message, "unknown field; known here: kind, spec");
        assert_eq!(unknown_field(&json!({"kind": 1, "spec": {"hash": []}}), &SHAPE), None);
    }

    #[test]
    fn finds_the_nearest_name() {
        assert_eq!(nearest("pods", ["Pod", "Node"]), Some("Pod"));
        assert_eq!(
            nearest("CiliumNetworkPolcy", ["CiliumNetworkPolicy", "NetworkPolicy"]),
            Some("CiliumNetworkPolicy")
        );
        assert_eq!(nearest("Service", ["Pod", "Node", "Namespace"]), None);
    }

    #[test]
    fn measures_distances() {
        for (a, b, expected) in
            [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn distance_is_a_metric(a in "[ab]{0,6}", b in "[ab]{0,6}", c in "[ab]{0,6}") {
            prop_assert_eq!(distance(&a, &a), 0);
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert!(distance(&a, &c) <= distance(&a, &b) + distance(&b, &c));
        }
    }
}
