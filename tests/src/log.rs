//! Log lines as scenarios see them: JSON objects, searched by field.

use serde_json::Value;

/// Whether a log in JSON has a line in which every one of these fields has this value. Fields are
/// looked for at the top and under `fields`, where tracing puts those of an event.
#[must_use]
pub fn contains(log: &str, fields: &[(&str, &str)]) -> bool {
    lines(log).any(|line| fields.iter().all(|(key, value)| has(&line, key, value)))
}

/// The lines that are JSON objects.
pub fn lines(log: &str) -> impl Iterator<Item = Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object)
}

fn has(line: &Value, key: &str, wanted: &str) -> bool {
    match line.get(key).or_else(|| line.get("fields")?.get(key)) {
        Some(Value::String(text)) => text == wanted,
        Some(other) => serde_json::from_str::<Value>(wanted).is_ok_and(|wanted| wanted == *other),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "starting\n{\"level\":\"INFO\",\"fields\":{\"message\":\"ready\",\"nodes\":2}}\n[1]\n";

    #[test]
    fn finds_fields_at_both_places_and_of_any_type() {
        assert!(contains(LOG, &[("level", "INFO"), ("message", "ready"), ("nodes", "2")]));
        assert!(!contains(LOG, &[("level", "INFO"), ("message", "ended")]));
        assert_eq!(lines(LOG).count(), 1);
    }
}
