//! The generic part of reading configuration: strict YAML into a typed value, and errors that a person can act on.
//!
//! What the keys mean, and what makes a value acceptable beyond its type, is the program's part. [`FileWatcher`]
//! says when to read again.

use serde::de::DeserializeOwned;
use serde_saphyr::options::MergeKeyPolicy;

pub use crate::watch::{FileSetWatcher, FileState, FileWatcher, Nudge};

/// A configuration file that cannot be used. The text names file, line and column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Which file.
    pub file: String,
    /// The line, from 1, where it is known.
    pub line: Option<u64>,
    /// The column, from 1, where it is known.
    pub column: Option<u64>,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Parses a text strictly: duplicate keys, merge keys, unknown tags and `yes`/`no` for booleans are refused.
/// Whether unknown keys are is the type's part: derive with `#[serde(deny_unknown_fields)]`.
///
/// # Errors
/// When it is not YAML or does not fit the type.
pub fn parse_yaml<T: DeserializeOwned>(text: &str, file: &str) -> Result<T, ConfigError> {
    let options = serde_saphyr::options! {
        merge_keys: MergeKeyPolicy::Error,
        reject_unsupported_tags: true,
        strict_booleans: true,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| explain(&error, file))
}

fn explain(error: &serde_saphyr::Error, file: &str) -> ConfigError {
    use serde_saphyr::Error as Yaml;
    let bare = error.without_snippet();
    let location = bare.location();
    let message = match bare {
        Yaml::SerdeUnknownField { field, expected, .. } => {
            let known = expected.join(", ");
            match nearest(field, expected) {
                Some(guess) => format!("unknown key `{field}`; did you mean `{guess}`? Known here: {known}"),
                None if known.is_empty() => format!("unknown key `{field}`; no keys are known here"),
                None => format!("unknown key `{field}`; known here: {known}"),
            }
        }
        Yaml::SerdeUnknownVariant { variant, expected, .. } => {
            let known = expected.join(", ");
            match nearest(variant, expected) {
                Some(guess) => {
                    format!("unknown value `{variant}`; did you mean `{guess}`? Possible: {known}")
                }
                None => format!("unknown value `{variant}`; possible: {known}"),
            }
        }
        Yaml::SerdeMissingField { field, .. } => format!("the key `{field}` is missing"),
        Yaml::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{key}` stands here a second time")
        }
        Yaml::SerdeInvalidType { unexpected, expected, .. } => {
            format!("{unexpected} where {expected} is expected")
        }
        Yaml::SerdeInvalidValue { unexpected, expected, .. } => {
            format!("{unexpected} where {expected} is expected")
        }
        other => {
            let text = other.to_string();
            let first = text.lines().next().unwrap_or_default();
            // The location is shown before the message.
            first.split(" at line ").next().unwrap_or(first).to_owned()
        }
    };
    ConfigError {
        file: file.to_owned(),
        line: location.map(|at| at.line()),
        column: location.map(|at| at.column()),
        message,
    }
}

/// The known word that is at most a third of its letters away, if there is one.
#[must_use]
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, with two neighbours swapped counted as one step (the commonest slip of all).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let mut best =
                (at(&above, j) + usize::from(x != y)).min(at(&above, j + 1) + 1).min(at(&row, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Server {
        port: u16,
        #[serde(default)]
        bind_address: String,
        #[serde(default)]
        enabled: bool,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Whole {
        server: Server,
    }

    #[test]
    fn errors_name_the_place_and_the_remedy() {
        let rows = [
            (
                "server:\n  prot: 1\n",
                "f.yaml:2:3: unknown key `prot`; did you mean `port`? Known here: port, bind_address, enabled",
            ),
            (
                "server:\n  port: 1\n  colour: red\n",
                "f.yaml:3:3: unknown key `colour`; known here: port, bind_address, enabled",
            ),
            ("server:\n  port: 1\n  port: 2\n", "f.yaml:3:3: the key `port` stands here a second time"),
            ("server: {}\n", "the key `port` is missing"),
            ("server:\n  port: many\n", "f.yaml:2:9: "),
            ("server:\n  port: 70000\n", "f.yaml:2:9: "),
            ("server:\n  port: 1\n  enabled: yes\n", "f.yaml:3:12: "),
            ("server: [\n", "f.yaml:"),
            ("", "f.yaml:1:1: unexpected end of input"),
        ];
        for (text, wanted) in rows {
            let error = parse_yaml::<Whole>(text, "f.yaml").unwrap_err().to_string();
            assert!(error.contains(wanted), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        assert_eq!(parse_yaml::<Whole>("server: {port: 5}", "f").unwrap().server.port, 5);
    }

    #[test]
    fn distance_counts_slips() {
        for (a, b, steps) in [
            ("", "", 0),
            ("port", "prot", 1),
            ("port", "ports", 1),
            ("a", "xyz", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), steps, "{a} {b}");
        }
        assert_eq!(nearest("x", &["bind_address"]), None);
    }
}
