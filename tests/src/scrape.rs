//! Metrics as scenarios see them: series by name and labels.

use std::collections::BTreeMap;

/// The samples of one scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    series: Vec<Series>,
}

#[derive(Clone, Debug, PartialEq)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Samples {
    /// Reads Prometheus' text format; lines that are no samples are passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self { series: text.lines().filter_map(sample).collect() }
    }

    /// The sum of all series of this name that have these labels, among others; 0 without any.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|series| series.value).sum()
    }

    /// Whether there is such a series.
    #[must_use]
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| {
            let has = |(key, value): &(&str, &str)| series.labels.get(*key).is_some_and(|it| it == value);
            series.name == name && labels.iter().all(has)
        })
    }
}

/// One line: `name{key="value",...} number`.
fn sample(line: &str) -> Option<Series> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let Some((name, rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ')?;
        return Some(Series { name: name.to_owned(), labels: BTreeMap::new(), value: number(value)? });
    };
    let (labels, rest) = read_labels(rest)?;
    Some(Series { name: name.to_owned(), labels, value: number(rest)? })
}

/// The labels up to the closing brace, and what follows.
fn read_labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = quoted.chars();
        loop {
            match characters.next()? {
                '"' => break,
                '\\' => match characters.next()? {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                other => value.push(other),
            }
        }
        labels.insert(key.to_owned(), value);
        rest = characters.as_str();
    }
}

/// The value; a timestamp may follow it.
fn number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP drops Dropped packets.\n# TYPE drops counter\n\
        drops_total{reason=\"POLICY_DENIED\",hook=\"to_pod\"} 3\n\
        drops_total{reason=\"AUTH_REQUIRED\",hook=\"to_pod\"} 4 1700000000\n\
        up 1\nodd{text=\"a \\\"b\\\", \\\\ }\"} 2.5\n# EOF\n";

    #[test]
    fn sums_over_the_labels_that_are_not_named() {
        let samples = Samples::parse(TEXT);
        assert_eq!(samples.sum("drops_total", &[]), 7.0);
        assert_eq!(samples.sum("drops_total", &[("reason", "AUTH_REQUIRED")]), 4.0);
        assert_eq!(samples.sum("drops_total", &[("reason", "SPOOFED")]), 0.0);
        assert_eq!(samples.sum("up", &[]), 1.0);
    }

    #[test]
    fn labels_may_hold_any_character() {
        let samples = Samples::parse(TEXT);
        assert!(samples.has("odd", &[("text", "a \"b\", \\ }")]));
        assert!(!samples.has("odd", &[("text", "a")]));
    }

    #[test]
    fn what_is_no_sample_is_passed_over() {
        assert_eq!(Samples::parse("name{a=\"b\" 1\nname{a=b} 1\nnothing\n\n{"), Samples::default());
    }
}
