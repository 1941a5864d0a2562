//! Unknown fields of our own kinds: refused, with the nearest known name.

use policy::nearest;
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

#[cfg(test)]
mod tests {
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
}
