//! A value in an object, with the path that leads to it. Absent and `null` are the same.

use serde_json::{Map, Value};

use super::policy_error::{Fault, Problem, hint};

/// A value that isn't `null`.
pub(super) struct Node<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> Node<'a> {
    pub(super) const fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn fault(&self, problem: Problem) -> Fault {
        Fault::new(self.path.clone(), problem)
    }

    pub(super) fn invalid(&self, words: impl Into<String>) -> Fault {
        self.fault(Problem::Invalid(words.into()))
    }

    /// Its fields, which must be among `known`.
    pub(super) fn fields(&self, known: &[&str]) -> Result<Fields<'a>, Fault> {
        let map = self.value.as_object().ok_or_else(|| self.wrong(&object_with(known)))?;
        let fields = Fields { map, path: self.path.clone() };
        match map.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => {
                Err(Fault::new(fields.path_of(key), Problem::UnknownField { hint: hint(key, known) }))
            }
            None => Ok(fields),
        }
    }

    /// One of its fields, whatever others there are.
    pub(super) fn child(&self, name: &str) -> Option<Self> {
        let value = self.value.get(name).filter(|value| !value.is_null())?;
        Some(Self { value, path: join(&self.path, name) })
    }

    /// Its fields, whatever they are called.
    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Self)>, Fault> {
        let map = self.value.as_object().ok_or_else(|| self.wrong("an object"))?;
        let entry =
            |(key, value): (&'a String, _)| (key.as_str(), Self { value, path: join(&self.path, key) });
        Ok(map.iter().map(entry).collect())
    }

    pub(super) fn items(&self) -> Result<Vec<Self>, Fault> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("a list"))?;
        let item = |(index, value)| Self { value, path: format!("{}[{index}]", self.path) };
        Ok(items.iter().enumerate().map(item).collect())
    }

    pub(super) fn text(&self) -> Result<&'a str, Fault> {
        let is_unquoted = self.value.is_number() || self.value.is_boolean();
        let expected = if is_unquoted { "a string, in quotes" } else { "a string" };
        self.value.as_str().ok_or_else(|| self.wrong(expected))
    }

    pub(super) fn boolean(&self) -> Result<bool, Fault> {
        self.value.as_bool().ok_or_else(|| self.wrong("true or false"))
    }

    /// A number, if it is one and not too large.
    pub(super) fn number<N: TryFrom<u64>>(&self) -> Option<N> {
        self.value.as_u64().and_then(|number| number.try_into().ok())
    }

    pub(super) fn is_number(&self) -> bool {
        self.value.is_number()
    }

    /// Whether it is a list or object with nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.value.as_array().is_some_and(Vec::is_empty) || self.value.as_object().is_some_and(Map::is_empty)
    }

    /// The value among `known` that its text names.
    pub(super) fn one_of<T: Copy>(&self, known: &[(&str, T)]) -> Result<T, Fault> {
        let text = self.text()?;
        known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            self.fault(Problem::UnknownValue { value: text.to_owned(), hint: hint(text, &names) })
        })
    }

    /// The same, whatever its case.
    pub(super) fn one_of_any_case<T: Copy>(&self, known: &[(&str, T)]) -> Result<T, Fault> {
        let text = self.text()?;
        match known.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
            Some((_, value)) => Ok(*value),
            None => self.one_of(known),
        }
    }

    fn wrong(&self, expected: &str) -> Fault {
        let found = match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.fault(Problem::Type { expected: expected.to_owned(), found })
    }
}

/// What an object is, in words, if it has few fields.
fn object_with(known: &[&str]) -> String {
    const FEW: usize = 4;
    if known.len() > FEW {
        return "an object".to_owned();
    }
    let fields: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    format!("an object with {}", fields.join(" or "))
}

/// The fields of an object, all of them known.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    pub(super) fn get(&self, name: &str) -> Option<Node<'a>> {
        let value = self.map.get(name).filter(|value| !value.is_null())?;
        Some(Node { value, path: self.path_of(name) })
    }

    pub(super) fn require(&self, name: &str) -> Result<Node<'a>, Fault> {
        self.get(name).ok_or_else(|| Fault::new(self.path_of(name), Problem::Missing))
    }

    pub(super) fn items(&self, name: &str) -> Result<Option<Vec<Node<'a>>>, Fault> {
        self.get(name).map(|node| node.items()).transpose()
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, Fault> {
        self.get(name).map(|node| node.text()).transpose()
    }

    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, Fault> {
        self.get(name).map(|node| node.boolean()).transpose()
    }

    fn path_of(&self, name: &str) -> String {
        join(&self.path, name)
    }
}

/// The path of a field; a name that isn't a plain word is put in brackets.
fn join(path: &str, name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    match (path.is_empty(), plain) {
        (_, false) => format!("{path}[{name:?}]"),
        (true, true) => name.to_owned(),
        (false, true) => format!("{path}.{name}"),
    }
}
