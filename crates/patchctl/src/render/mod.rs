//! Values as text for people. Nothing here prints; whatever the agent sent is cleaned on its way in.

pub(crate) mod compliance;
pub(crate) mod host;
pub(crate) mod job;
pub(crate) mod packages;
pub(crate) mod patches;
pub(crate) mod plan;
pub(crate) mod values;

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table, presets};
pub(crate) use patch_types::terminal as clean;

/// In less room than this a table is not fitted into it: the terminal breaks its lines.
const MIN_WIDTH: u16 = 20;

/// How much room there is, and whether colours are welcome.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// The terminal's width; `None` for no limit.
    pub(crate) width: Option<u16>,
    /// Whether colours and bold are used.
    pub(crate) color: bool,
}

/// What a cell says beside its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Good,
    Notice,
    Bad,
}

/// A table under construction: a header, then rows of as many cells.
pub(crate) struct Rows {
    table: Table,
    style: Style,
}

impl Rows {
    pub(crate) fn new(style: &Style, header: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        match style.width {
            Some(width) if width >= MIN_WIDTH => {
                table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
            }
            _ => {
                table.set_content_arrangement(ContentArrangement::Disabled);
            }
        }
        if style.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(header.iter().map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
        Self { table, style: *style }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [(String, Tone); N]) {
        let color = self.style.color;
        self.table.add_row(cells.map(|(text, tone)| {
            let cell = Cell::new(clean::line(&text));
            match tone {
                _ if !color => cell,
                Tone::Plain => cell,
                Tone::Good => cell.fg(Color::Green),
                Tone::Notice => cell.fg(Color::Yellow),
                Tone::Bad => cell.fg(Color::Red),
            }
        }));
    }

    /// Never breaks the first column's cells: what stands there is copied into the next command.
    pub(crate) fn keep_first(mut self) -> Self {
        if let Some(column) = self.table.column_mut(0) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        self
    }

    pub(crate) fn finish(mut self) -> String {
        let last = self.table.column_count().saturating_sub(1);
        for (index, column) in self.table.column_iter_mut().enumerate() {
            column.set_padding((0, if index == last { 0 } else { 2 }));
        }
        let mut text: String =
            self.table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".to_owned()]).collect();
        if self.table.is_empty() {
            text.clear();
        }
        text
    }
}

/// A cell without a tone.
#[expect(clippy::needless_pass_by_value, reason = "texts, versions and numbers alike, by value or reference")]
pub(crate) fn plain(text: impl ToString) -> (String, Tone) {
    (text.to_string(), Tone::Plain)
}

/// Lines of `label: value`, aligned; empty values are left out.
pub(crate) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(label, _)| label.len()).max().unwrap_or(0) + 1;
    let mut text = String::new();
    for (label, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        let label = format!("{label}:");
        text.push_str(&format!("{label:width$} {}\n", clean::line(value)));
    }
    text
}

/// `1 package`, `2 packages`.
pub(crate) fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

#[cfg(test)]
pub(crate) const NARROW: Style = Style { width: Some(80), color: false };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_fit_their_width_and_keep_rows_on_a_line_where_there_is_none() {
        let render = |width| {
            let mut rows = Rows::new(&Style { width, color: false }, &["NAME", "DESCRIPTION"]);
            rows.row([plain("aa"), plain("word ".repeat(40))]);
            rows.finish()
        };
        assert!(render(Some(80)).lines().all(|line| line.chars().count() <= 80));
        assert_eq!(render(None).lines().count(), 2);
        assert!(render(None).starts_with("NAME  DESCRIPTION\naa    word word"));
    }

    #[test]
    fn no_width_is_too_small_to_say_something() {
        for width in 0..=40 {
            let style = Style { width: Some(width), color: false };
            let mut rows = Rows::new(&style, &["ACTION", "PACKAGE", "FROM", "TO", "ORIGIN"]);
            rows.row([
                plain("upgrade"),
                plain("lp-plain:amd64"),
                plain("1.0-1"),
                plain("1.1-1"),
                plain("Debian"),
            ]);
            let text = rows.keep_first().finish();
            assert!(text.contains("upgrade"), "{width}: {text}");
        }
    }

    #[test]
    fn cells_cannot_move_the_cursor() {
        let mut rows = Rows::new(&NARROW, &["A"]);
        rows.row([plain("x\u{1b}[2Jy\nz")]);
        assert_eq!(rows.finish(), "A\nxy z\n");
    }

    #[test]
    fn colours_come_only_when_welcome() {
        let render = |color| {
            let mut rows = Rows::new(&Style { width: None, color }, &["A"]);
            rows.row([("x".to_owned(), Tone::Bad)]);
            rows.finish()
        };
        assert!(render(true).contains('\u{1b}'));
        assert!(!render(false).contains('\u{1b}'));
    }
}
