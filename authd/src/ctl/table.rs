//! Tables for people: CAPITAL columns, two spaces between, nothing that a terminal would obey.

use std::borrow::Cow;

/// Stands for a cell that has nothing to say.
const NOTHING: &str = "-";
const GAP: &str = "  ";

/// A table.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(columns: [&str; N]) -> Self {
        Self { rows: vec![columns.map(str::to_owned).to_vec()] }
    }

    /// Adds a row; one cell for each column.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| if cell.is_empty() { NOTHING.to_owned() } else { cell }).to_vec());
    }

    /// The table as text, each row a line.
    pub(super) fn render(&self) -> String {
        let rows: Vec<Vec<Cow<'_, str>>> =
            self.rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max())
            .map(Option::unwrap_or_default)
            .collect();
        rows.iter().map(|row| line(row, &widths)).collect()
    }
}

fn line(row: &[Cow<'_, str>], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, column) in row.iter().zip(widths) {
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', column - width(cell)));
        line.push_str(GAP);
    }
    format!("{}\n", line.trim_end())
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// `1 peer`, `2 peers`.
pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// `text` with control characters escaped: names and messages come from manifests and other nodes.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escape = |character: char| {
        if character.is_control() { character.escape_default().collect() } else { character.to_string() }
    };
    Cow::Owned(text.chars().map(escape).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_line_up_without_trailing_space() {
        let mut table = Table::new(["A", "LONG", "B"]);
        table.row(["xyz".to_owned(), String::new(), "1".to_owned()]);
        table.row(["x".to_owned(), "äöü".to_owned(), String::new()]);
        assert_eq!(table.render(), "A    LONG  B\nxyz  -     1\nx    äöü   -\n");
    }

    #[test]
    fn an_empty_table_is_its_header() {
        assert_eq!(Table::new(["A", "B"]).render(), "A  B\n");
    }

    #[test]
    fn a_terminal_gets_nothing_to_obey() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert!(matches!(printable("plain"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn a_row_is_a_line(cells in prop::array::uniform3(".{0,12}")) {
            let mut table = Table::new(["A", "B", "C"]);
            table.row(cells);
            let text = table.render();
            prop_assert_eq!(text.lines().count(), 2);
            prop_assert!(!text.chars().any(|character| character.is_control() && character != '\n'));
        }
    }
}
