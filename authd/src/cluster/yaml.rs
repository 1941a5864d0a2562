//! YAML streams as JSON values that still know their lines.
//!
//! A stream is split at its document markers first, so that a broken document neither hides nor
//! shifts its neighbours. JSON files go the same way, since YAML includes JSON and, unlike a plain JSON
//! reader, refuses duplicate keys.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{Location, Spanned};

/// A document that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The line of the mistake in the file, from 1.
    pub(super) line: u32,
    /// What is wrong.
    pub(super) message: String,
}

/// A value and the lines of all its parts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document {
    line: u32,
    content: Content,
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    Scalar(Value),
    List(Vec<Document>),
    Map(Vec<(String, u32, Document)>),
}

/// Reads every document of a stream; empty ones are left out.
pub(super) fn read(text: &str) -> Vec<Result<Document, Unreadable>> {
    let documents = split(text).into_iter().filter(|(_, text)| !is_empty(text));
    let is_null = |document: &Document| document.content == Content::Scalar(Value::Null);
    documents.map(|(line, text)| parse(line, text)).filter(|read| !read.as_ref().is_ok_and(is_null)).collect()
}

impl Document {
    /// The line on which the document or part begins.
    pub(super) const fn line(&self) -> u32 {
        self.line
    }

    /// The value without lines.
    pub(super) fn value(&self) -> Value {
        match &self.content {
            Content::Scalar(value) => value.clone(),
            Content::List(items) => Value::Array(items.iter().map(Self::value).collect()),
            Content::Map(entries) => {
                let entries = entries.iter().map(|(key, _, value)| (key.clone(), value.value()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }

    /// The elements of the list under this key, if there is one.
    pub(super) fn list(&self, key: &str) -> Option<&[Self]> {
        let Content::Map(entries) = &self.content else { return None };
        let (_, _, value) = entries.iter().find(|(name, _, _)| name == key)?;
        match &value.content {
            Content::List(items) => Some(items),
            Content::Scalar(_) | Content::Map(_) => None,
        }
    }

    /// The line of the field at `path` (`spec.rules[0].port`), or of the nearest part around it.
    pub(super) fn line_of(&self, path: &str) -> u32 {
        self.descend(path.trim_start_matches('.')).unwrap_or(self.line)
    }

    fn descend(&self, path: &str) -> Option<u32> {
        match &self.content {
            Content::Scalar(_) => None,
            Content::List(items) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                let item = items.get(index.parse::<usize>().ok()?)?;
                Some(item.line_of(rest))
            }
            // Keys may hold dots, so the longest that fits is meant.
            Content::Map(entries) => {
                let fits = entries.iter().filter_map(|(key, line, value)| {
                    let rest = path.strip_prefix(key.as_str());
                    let rest = rest.or_else(|| path.strip_prefix(format!("[{key:?}]").as_str()))?;
                    let ends = rest.is_empty() || rest.starts_with(['.', '[']);
                    ends.then_some((key.len(), *line, value, rest))
                });
                let (_, line, value, rest) = fits.max_by_key(|(length, ..)| *length)?;
                Some(value.descend(rest.trim_start_matches('.')).unwrap_or(line))
            }
        }
    }

    fn shift(&mut self, lines: u32) {
        self.line = self.line.saturating_add(lines);
        match &mut self.content {
            Content::Scalar(_) => {}
            Content::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Content::Map(entries) => {
                for (_, line, value) in entries {
                    *line = line.saturating_add(lines);
                    value.shift(lines);
                }
            }
        }
    }
}

/// Splits at lines that begin with `---`: YAML allows that in no scalar, so it is always a marker.
fn split(text: &str) -> Vec<(u32, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (line, content) in (0_u32..).zip(text.split_inclusive('\n')) {
        if offset > start && is_marker(content) {
            documents.push((start_line, text.get(start..offset).unwrap_or_default()));
            (start, start_line) = (offset, line);
        }
        offset += content.len();
    }
    documents.push((start_line, text.get(start..).unwrap_or_default()));
    documents
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn is_empty(text: &str) -> bool {
    text.trim_start_matches('\u{feff}').lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
    })
}

fn parse(lines_before: u32, text: &str) -> Result<Document, Unreadable> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        emit_comments: false,
        reject_unsupported_tags: true,
        // As in YAML 1.2: a namespace may be called `y`.
        strict_booleans: true,
    };
    let read: Result<Spanned<Content>, _> = serde_saphyr::from_str_with_options(text, options);
    match read {
        Ok(content) => {
            let mut document = Document::from(content);
            document.shift(lines_before);
            Ok(document)
        }
        Err(error) => {
            let line = error.location().map_or(1, |location| line(&location));
            let mut message = one_line(&error);
            if is_template(text, line) {
                message.push_str("; render templates first (`helm template`)");
            }
            Err(Unreadable { line: line.saturating_add(lines_before), message })
        }
    }
}

/// Whether a line is one of a template that makes manifests.
fn is_template(text: &str, line: u32) -> bool {
    let before = usize::try_from(line).unwrap_or(usize::MAX).saturating_sub(1);
    text.lines().nth(before).is_some_and(|line| line.contains("{{"))
}

/// The parser's message without the place, which is in the document's coordinates and not the file's.
fn one_line(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    // Advice for programmers ends what people can use as well.
    let place = text.find(" at line ").filter(|_| error.location().is_some());
    let advice = ["; use Option<", ", set DuplicateKeyPolicy"];
    let end = place.into_iter().chain(advice.iter().filter_map(|advice| text.find(advice))).min();
    end.and_then(|end| text.get(..end)).unwrap_or(text).trim_start_matches("error: ").to_owned()
}

fn line(location: &Location) -> u32 {
    u32::try_from(location.line()).unwrap_or(u32::MAX).max(1)
}

impl From<Spanned<Content>> for Document {
    fn from(spanned: Spanned<Content>) -> Self {
        Self { line: line(&spanned.referenced), content: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a list or a scalar")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(Value::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(Value::from(value)))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Content, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("not a finite number"))?;
        Ok(Content::Scalar(Value::Number(number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Scalar(Value::from(value)))
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<Spanned<Content>>()? {
            items.push(item.into());
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        // Duplicate keys don't arrive here: the parser refuses them.
        let mut entries: Vec<(String, u32, Document)> = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let value = access.next_value::<Spanned<Content>>()?;
            entries.push((key.value, line(&key.referenced), value.into()));
        }
        Ok(Content::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Value> {
        read(text).into_iter().map(|document| document.unwrap().value()).collect()
    }

    #[test]
    fn reads_documents_and_leaves_out_empty_ones() {
        let text = "# head\n---\na: 1\n---\n# nothing\n--- # comment\n...\n---\nb: [x, true, null, 1.5]\n";
        assert_eq!(values(text), [json!({"a": 1}), json!({"b": ["x", true, null, 1.5]})]);
    }

    #[test]
    fn reads_json_with_tabs_and_crlf() {
        assert_eq!(values("{\n\t\"a\": {\r\n\t\t\"b\": [1, -2]\n\t}\n}\n"), [json!({"a": {"b": [1, -2]}})]);
    }

    #[test]
    fn knows_lines_of_fields() {
        let text = "x: 1\n---\nmetadata:\n  labels:\n    k8s:io.kubernetes: x\n    a.b: y\nspec:\n- from:\n    - one\n    - two\n";
        let documents = read(text);
        let document = documents[1].as_ref().unwrap();
        assert_eq!(document.line(), 3);
        assert_eq!(document.line_of("metadata.labels"), 4);
        assert_eq!(document.line_of("metadata.labels.k8s:io.kubernetes"), 5);
        assert_eq!(document.line_of("metadata.labels.a.b"), 6);
        assert_eq!(document.line_of("metadata.labels[\"a.b\"]"), 6);
        assert_eq!(document.line_of("spec[0].from[1]"), 10);
        assert_eq!(document.line_of("spec[0].missing.deep"), 8);
        assert_eq!(document.line_of("nowhere"), 3);
    }

    #[test]
    fn a_broken_document_leaves_its_neighbours_alone() {
        let documents = read("a: 1\n---\nb: [1\nc: 2\n---\nd: 3\n");
        assert_eq!(documents.len(), 3);
        assert_eq!(documents[0].as_ref().unwrap().value(), json!({"a": 1}));
        let broken = documents[1].as_ref().unwrap_err();
        assert!((3..=5).contains(&broken.line), "{broken:?}");
        assert_eq!(documents[2].as_ref().unwrap().value(), json!({"d": 3}));
    }

    #[test]
    fn refuses_duplicate_keys() {
        for text in ["a: 1\nb: 2\na: 3\n", "{\"a\": 1,\n\"b\": 2,\n\"a\": 3}"] {
            let broken = read(text).remove(0).unwrap_err();
            assert_eq!(broken.line, 3, "{broken:?}");
            assert!(broken.message.contains("duplicate"), "{broken:?}");
        }
    }

    #[test]
    fn refuses_a_second_document_after_an_end_marker() {
        assert!(read("a: 1\n...\nb: 2\n").remove(0).is_err());
    }

    #[test]
    fn refuses_unknown_tags_and_alias_bombs() {
        assert!(read("a: !Secret x\n").remove(0).is_err());
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let before = format!("*a{}, ", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
        }
        assert!(read(&bomb).remove(0).is_err());
    }

    #[test]
    fn a_marker_within_a_block_scalar_still_ends_the_document() {
        assert_eq!(read("a: |\n  text\n---\nb: 1\n").len(), 2);
        assert_eq!(read("a: |\n  ---\n  text\n").len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn never_panics(text in "([a-c]: |- |\\[|\\]|\\{|\\}|---|\n|\n  |&a|\\*a|\"|'|#|\t|\u{feff}|x){0,40}") {
            for document in read(&text).into_iter().flatten() {
                document.value();
                document.line_of("a.b[0]");
            }
        }

        #[test]
        fn json_reads_as_serde_json_does(map in proptest::collection::btree_map("[a-z]{1,6}", any::<(i64, String, bool)>(), 0..5)) {
            let value = serde_json::to_value(&map).unwrap();
            prop_assert_eq!(values(&serde_json::to_string_pretty(&value).unwrap()), vec![value]);
        }
    }
}
