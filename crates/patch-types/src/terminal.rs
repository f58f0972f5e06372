//! Text of others made safe for a terminal.
//!
//! Package output and descriptions come from whoever made the package. A terminal obeys some of what it is shown: it can
//! be made to rename its window, to hide lines, to show text in another order. So escape sequences go, whole, and so do
//! control characters and those that reorder text. Where it matters what was there, as in the name of a file that somebody is
//! to look for, they are escaped instead.

use std::borrow::Cow;

/// One line: line feeds and tabs become spaces.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    clean(text, false)
}

/// Several lines: line feeds stay.
#[must_use]
pub fn text(text: &str) -> Cow<'_, str> {
    clean(text, true)
}

/// One line in which nothing is left out: what a terminal would obey, and line feeds, stand there as Rust writes them in a
/// string, such as `\u{1b}` and `\n`.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unwelcome) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unwelcome(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// JSON: the same value, with what a terminal might obey written as `\uXXXX`. Such characters can only stand inside
/// strings, where the escape means the same.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| is_unwelcome(c) && !matches!(c, '\n' | '\r' | '\t');
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if obeyed(c) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Control characters, line and paragraph separators, and what changes the direction of text. All of them lie in the
/// basic plane.
fn is_unwelcome(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn clean(text: &str, lines: bool) -> Cow<'_, str> {
    if !text.contains(|c| is_unwelcome(c) && !(lines && c == '\n')) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\n' if lines => out.push('\n'),
            '\r' if rest.as_str().starts_with('\n') => {}
            '\n' | '\r' | '\t' => out.push(' '),
            '\u{1b}' | '\u{90}' | '\u{98}' | '\u{9b}' | '\u{9d}'..='\u{9f}' => {
                rest = after_sequence(c, rest.as_str()).chars();
            }
            _ if is_unwelcome(c) => {}
            _ => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// What follows the escape sequence that `introducer` begins. A sequence never reaches beyond its line, so that one that
/// is not ended hides no more than that.
fn after_sequence(introducer: char, rest: &str) -> &str {
    let mut chars = rest.chars();
    let kind = if introducer == '\u{1b}' { chars.next() } else { Some(introducer) };
    match kind {
        // Control sequences: parameters and intermediates, then one final character.
        Some('[' | '\u{9b}') => {
            let rest = chars.as_str().trim_start_matches(|c| (' '..='?').contains(&c));
            rest.strip_prefix(|c| ('@'..='~').contains(&c)).unwrap_or(rest)
        }
        // Strings: up to a bell or the string terminator.
        Some(']' | 'P' | 'X' | '^' | '_' | '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}') => {
            let rest = chars.as_str();
            let Some(end) = rest.find(['\u{7}', '\u{9c}', '\u{1b}', '\n']) else { return "" };
            let (_, tail) = rest.split_at(end);
            if tail.starts_with('\n') {
                return tail;
            }
            tail.strip_prefix("\u{1b}\\").or_else(|| tail.strip_prefix(['\u{7}', '\u{9c}'])).unwrap_or(tail)
        }
        // Others: intermediates, then one final character.
        Some(c) if (' '..='~').contains(&c) => {
            let rest = rest.trim_start_matches(|c| (' '..='/').contains(&c));
            rest.strip_prefix(|c| ('0'..='~').contains(&c)).unwrap_or(rest)
        }
        _ => rest,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sequences_go_whole_and_text_stays() {
        for (dirty, clean) in [
            ("plain äöü 漢字", "plain äöü 漢字"),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("a\u{1b}]0;title\u{7}b", "ab"),
            ("a\u{1b}]8;;http://x\u{1b}\\link\u{1b}]8;;\u{1b}\\b", "alinkb"),
            ("a\u{9b}2Jb", "ab"),
            ("a\u{1b}(0b", "ab"),
            ("a\u{1b}cb", "ab"),
            ("a\u{1b}Pq#0\u{1b}\\b", "ab"),
            ("5%\r10%", "5% 10%"),
            ("a\u{8}\u{7f}b", "ab"),
            ("a\u{202e}b\u{2066}c", "abc"),
            ("tail\u{1b}", "tail"),
            ("tail\u{1b}[", "tail"),
        ] {
            assert_eq!(line(dirty), clean, "{dirty:?}");
        }
    }

    #[test]
    fn a_string_that_is_not_ended_hides_one_line_only() {
        assert_eq!(text("a\u{1b}]0;x\nshown\r\nlast"), "a\nshown\nlast");
    }

    #[test]
    fn what_is_escaped_is_all_there() {
        assert_eq!(escaped("a\u{1b}[2J\r\nb\u{202e}\u{9b}"), r"a\u{1b}[2J\r\nb\u{202e}\u{9b}");
        assert!(matches!(escaped("plain äöü \\ 漢字"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn nothing_unwelcome_remains(dirty in ".*|(\\x1b|\\x9b|\\x9d|[\\[\\];0-9m\\\\ab\n\r\t\\x07\u{202e}\u{9c}]){0,40}") {
            prop_assert!(!line(&dirty).contains(is_unwelcome));
            prop_assert!(!escaped(&dirty).contains(is_unwelcome));
            prop_assert!(!text(&dirty).contains(|c| is_unwelcome(c) && c != '\n'));
            prop_assert_eq!(line(&line(&dirty)).into_owned(), line(&dirty).into_owned());
        }

        #[test]
        fn harmless_text_is_untouched(good in "[ -~äöü漢\u{1f600}]{0,60}") {
            prop_assert!(matches!(line(&good), Cow::Borrowed(same) if same == good));
        }

        #[test]
        fn json_keeps_its_value(value in "\\PC*|[\u{80}-\u{9f}\u{202a}-\u{202e}\\x00-\\x7f]{0,30}") {
            let written = serde_json::to_string(&value).unwrap();
            let safe = json(&written);
            prop_assert!(!safe.contains(is_unwelcome));
            prop_assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), value);
        }
    }
}
