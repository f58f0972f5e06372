//! The table: what was measured, against what, what was promised.

use std::fmt::Write as _;

use super::numbers::digits;

/// What is promised of a number.
#[derive(Debug, Clone, Copy)]
pub(super) enum Bound {
    /// It is no more than this.
    AtMost(f64),
    /// It is no less than this.
    AtLeast(f64),
    /// Nothing; the number stands for itself.
    Nothing,
}

impl Bound {
    fn promised(self, unit: &str) -> String {
        match self {
            Self::AtMost(limit) => format!("≤ {} {unit}", plain(limit)),
            Self::AtLeast(limit) => format!("≥ {} {unit}", plain(limit)),
            Self::Nothing => String::new(),
        }
    }

    fn verdict(self, value: f64) -> String {
        let (met, factor) = match self {
            Self::AtMost(limit) => (value <= limit, value / limit),
            Self::AtLeast(limit) => (value >= limit, limit / value.max(f64::MIN_POSITIVE)),
            Self::Nothing => return String::new(),
        };
        if met { "met".to_owned() } else { format!("**missed by {} %**", digits((factor - 1.0) * 100.0)) }
    }
}

fn plain(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// One line.
#[derive(Debug, Clone)]
struct Row {
    what: String,
    ours: String,
    against: String,
    value: Option<f64>,
    unit: &'static str,
    bound: Bound,
}

/// The rows, in sections.
#[derive(Debug, Default)]
pub(super) struct Report {
    sections: Vec<(String, Vec<Row>, Vec<String>)>,
}

impl Report {
    /// Begins a section.
    pub(super) fn section(&mut self, title: &str) {
        println!("\n{title}");
        self.sections.push((title.to_owned(), Vec::new(), Vec::new()));
    }

    /// Adds a line: what, our number, the other's, and the value (in `unit`) that the promise is about.
    pub(super) fn row(
        &mut self,
        what: impl Into<String>,
        ours: impl Into<String>,
        against: impl Into<String>,
        value: (Option<f64>, &'static str),
        bound: Bound,
    ) {
        let (what, ours, against) = (what.into(), ours.into(), against.into());
        let row = Row { what, ours, against, value: value.0, unit: value.1, bound };
        println!("  {}", line(&row).trim_matches(['|', ' ']));
        if let Some((_, rows, _)) = self.sections.last_mut() {
            rows.push(row);
        }
    }

    /// Adds a remark below the section's table.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        if let Some((_, _, notes)) = self.sections.last_mut() {
            notes.push(text.into());
        }
    }

    /// How many promises were looked at, and how many of them were kept.
    pub(super) fn score(&self) -> (usize, usize) {
        let judged = self.sections.iter().flat_map(|(_, rows, _)| rows).filter_map(|row| {
            let verdict = row.bound.verdict(row.value?);
            (!verdict.is_empty()).then_some(verdict == "met")
        });
        judged.fold((0, 0), |(all, met), is_met| (all + 1, met + usize::from(is_met)))
    }

    /// As Markdown.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        for (title, rows, notes) in &self.sections {
            let _ = writeln!(text, "\n## {title}\n\n| what | ours | against | result | promised | |");
            text.push_str("| --- | --- | --- | --- | --- | --- |\n");
            for row in rows {
                text.push_str(&line(row));
                text.push('\n');
            }
            for note in notes {
                let _ = writeln!(text, "\n{note}");
            }
        }
        text
    }
}

fn line(row: &Row) -> String {
    let (result, verdict) = match row.value {
        Some(value) => (format!("{} {}", digits(value), row.unit), row.bound.verdict(value)),
        None => ("not measured".to_owned(), String::new()),
    };
    format!(
        "| {} | {} | {} | {result} | {} | {verdict} |",
        row.what,
        row.ours,
        row.against,
        row.bound.promised(row.unit)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_say_by_how_much() {
        assert_eq!(Bound::AtMost(2.0).verdict(2.0), "met");
        assert_eq!(Bound::AtMost(2.0).verdict(3.0), "**missed by 50.0 %**");
        assert_eq!(Bound::AtLeast(2.0).verdict(1.0), "**missed by 100 %**");
        assert_eq!(Bound::AtLeast(150.0).promised("×"), "≥ 150 ×");
        assert_eq!(Bound::AtMost(1.05).promised("×"), "≤ 1.05 ×");
    }
}
