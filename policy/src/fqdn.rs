//! Names of hosts that rules select, by name or by pattern.
//!
//! In a pattern `*` stands for any characters of one label of a name, `*` alone for every name, and a leading
//! `**.` for any number of labels. Names are compared without regard to case and to a dot at the end.

use std::fmt;

/// A name or a pattern, in lower case and without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NameSelector {
    /// This name alone.
    Name(String),
    /// Every name that fits.
    Pattern(String),
}

/// The longest name.
const MAX_NAME: usize = 255;

/// The form in which names are compared.
#[must_use]
pub fn canonical_name(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

impl NameSelector {
    /// The selector of this name, if it can be one.
    pub(crate) fn name(text: &str) -> Option<Self> {
        is_name(text, false).then(|| Self::Name(canonical_name(text)))
    }

    /// The selector of this pattern, if it can be one.
    pub(crate) fn pattern(text: &str) -> Option<Self> {
        is_name(text, true).then(|| Self::Pattern(canonical_name(text)))
    }

    /// Whether a name is selected.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name = canonical_name(name);
        match self {
            Self::Name(wanted) => *wanted == name,
            Self::Pattern(pattern) if pattern == "*" => true,
            Self::Pattern(pattern) => match pattern.strip_prefix("**.") {
                Some(rest) => {
                    let mut ends = name.match_indices('.').map(|(at, _)| at + 1);
                    ends.any(|at| name.get(at..).is_some_and(|end| fits(rest.as_bytes(), end.as_bytes())))
                }
                None => fits(pattern.as_bytes(), name.as_bytes()),
            },
        }
    }
}

/// Whether it can be a name, or a pattern of names: labels with dots between, and perhaps one at the end.
fn is_name(text: &str, has_stars: bool) -> bool {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_') || (has_stars && c == '*');
    let is_label = |label: &str| !label.is_empty() && label.chars().all(is_valid);
    text.len() <= MAX_NAME && text.strip_suffix('.').unwrap_or(text).split('.').all(is_label)
}

impl fmt::Display for NameSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(text) | Self::Pattern(text) => f.write_str(text),
        }
    }
}

/// Whether the name fits the pattern, in which `*` stands for anything but a dot. Each star goes back to its
/// own last place only, so that the work is at most the product of both lengths.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(p), name.get(n)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                star = Some((p, n));
                p += 1;
            }
            (Some(wanted), Some(found)) if wanted == found => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) if name.get(from).is_some_and(|byte| *byte != b'.') => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_patterns_as_documented() {
        for (pattern, name, selected) in [
            ("*.cilium.io", "sub.cilium.io", true),
            ("*.cilium.io", "cilium.io", false),
            ("*.cilium.io", "sub.sub.cilium.io", false),
            ("sub*.cilium.io", "subdomain.cilium.io", true),
            ("sub*.cilium.io", "sub.cilium.io", true),
            ("*cilium.io", "cilium.io", true),
            ("*cilium.io", "sub.cilium.io", false),
            ("**.cilium.io", "app.cilium.io", true),
            ("**.cilium.io", "test.app.cilium.io", true),
            ("**.cilium.io", "cilium.io", false),
            ("*", "anything.at.all", true),
            ("a*b*c.x", "axxbyyc.x", true),
            ("a*b*c.x", "axxbyy.x", false),
            ("*.COM", "Example.com.", true),
        ] {
            assert_eq!(NameSelector::pattern(pattern).unwrap().matches(name), selected, "{pattern} {name}");
        }
        assert!(NameSelector::name("Example.COM.").unwrap().matches("example.com"));
        assert!(!NameSelector::name("example.com").unwrap().matches("www.example.com"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "x".repeat(MAX_NAME + 1);
        for text in ["", ".", "a b", "*.x", "é.x", ".x", "a..x", "x..", &long] {
            assert_eq!(NameSelector::name(text), None, "{text}");
        }
        for text in ["", "a b", "[a].x", "é.x", ".*", "*..x", &long] {
            assert_eq!(NameSelector::pattern(text), None, "{text}");
        }
    }

    /// The same, with every way to read each star.
    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                naive(rest, name)
                    || name.split_first().is_some_and(|(first, tail)| *first != b'.' && naive(pattern, tail))
            }
            (Some((wanted, rest)), Some((found, tail))) => wanted == found && naive(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn fits_as_a_naive_reading_says(pattern in "[ab.*]{0,8}", name in "[ab.]{0,8}") {
            prop_assert_eq!(fits(pattern.as_bytes(), name.as_bytes()), naive(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
