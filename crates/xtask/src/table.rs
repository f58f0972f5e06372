//! The tables of docs/testing.md, in which figures add up.

use anyhow::{Context, Result};

/// The day, as tables have it.
pub(crate) fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// Where the rows of the table with this head begin and end.
fn span(lines: &[&str], head: &str) -> Option<(usize, usize)> {
    let first = lines.iter().position(|line| *line == head)? + 2;
    let count = lines.iter().skip(first).take_while(|line| line.starts_with('|')).count();
    Some((first, first + count))
}

/// The cells of the table with this head; none if there is no such table.
pub(crate) fn rows(text: &str, head: &str) -> Option<Vec<Vec<String>>> {
    let lines: Vec<&str> = text.lines().collect();
    let (first, end) = span(&lines, head)?;
    let cells = |line: &&str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    Some(lines.get(first..end)?.iter().map(cells).collect())
}

/// The text with these rows in the table instead.
pub(crate) fn with_rows(
    text: &str,
    head: &str,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> Result<String> {
    let lines: Vec<&str> = text.lines().collect();
    let (first, end) = span(&lines, head).with_context(|| format!("there is no table {head}"))?;
    let rows: Vec<String> = rows.into_iter().map(|row| format!("| {} |", row.join(" | "))).collect();
    let before = lines.get(..first).unwrap_or_default().iter().copied();
    let after = lines.get(end..).unwrap_or_default().iter().copied();
    let all: Vec<&str> = before.chain(rows.iter().map(String::as_str)).chain(after).collect();
    Ok(all.join("\n") + "\n")
}

/// Adds a row at the end of the table.
pub(crate) fn append(text: &str, head: &str, row: Vec<String>) -> Result<String> {
    let mut all = rows(text, head).with_context(|| format!("there is no table {head}"))?;
    all.push(row);
    with_rows(text, head, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_replaced_and_added() {
        let text = "x\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\ny\n";
        assert_eq!(rows(text, "| a | b |").unwrap(), [["1", "2"]]);
        let more = append(text, "| a | b |", vec!["3".into(), "4".into()]).unwrap();
        assert_eq!(more, "x\n| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n\ny\n");
        assert!(append(text, "| c |", Vec::new()).is_err());
    }
}
