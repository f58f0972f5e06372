//! The syntax of systemd's `EnvironmentFile=`, as `systemd.exec(5)` describes it and systemd reads it; but for a comment after a
//! quoted value, which systemd would take for a part of the value and nobody means as one.

/// The assignments of a file's text, in order. What is no assignment is passed over, as systemd does.
pub(super) fn parse(text: &str) -> Vec<(String, String)> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        BeforeName,
        Name,
        BeforeValue,
        Value,
        Escaped,
        Single,
        Double,
        DoubleEscaped,
        Comment,
        CommentEscaped,
    }
    let mut all = Vec::new();
    let (mut name, mut value) = (String::new(), String::new());
    // White space at the end of a value counts only if it was quoted or escaped.
    let mut kept = 0;
    let mut is_quoted = false;
    let mut state = State::BeforeName;
    for c in text.chars().chain(['\n']) {
        let is_end = c == '\n' || c == '\r';
        state = match state {
            State::BeforeName => match c {
                '#' | ';' => State::Comment,
                c if c.is_whitespace() => State::BeforeName,
                c => {
                    name = String::from(c);
                    State::Name
                }
            },
            State::Name => match c {
                _ if is_end => State::BeforeName,
                '=' => {
                    value = String::new();
                    (kept, is_quoted) = (0, false);
                    State::BeforeValue
                }
                c => {
                    name.push(c);
                    State::Name
                }
            },
            State::BeforeValue | State::Value if is_end => {
                value.truncate(value.trim_end().len().max(kept));
                all.push((name.trim_end().to_owned(), std::mem::take(&mut value)));
                State::BeforeName
            }
            State::BeforeValue if c == '#' && is_quoted => {
                all.push((name.trim_end().to_owned(), std::mem::take(&mut value)));
                State::Comment
            }
            State::BeforeValue => match c {
                '\'' => State::Single,
                '"' => State::Double,
                '\\' => State::Escaped,
                c if c.is_whitespace() => State::BeforeValue,
                c => {
                    value.push(c);
                    State::Value
                }
            },
            State::Value => match c {
                '\\' => State::Escaped,
                c => {
                    value.push(c);
                    State::Value
                }
            },
            State::Escaped => {
                if !is_end {
                    value.push(c);
                    kept = value.len();
                }
                State::Value
            }
            State::Single | State::Double if c == (if state == State::Single { '\'' } else { '"' }) => {
                (kept, is_quoted) = (value.len(), true);
                State::BeforeValue
            }
            State::Double if c == '\\' => State::DoubleEscaped,
            State::Single | State::Double => {
                value.push(c);
                state
            }
            State::DoubleEscaped => {
                match c {
                    '"' | '\\' | '`' | '$' => value.push(c),
                    '\n' => {}
                    c => value.extend(['\\', c]),
                }
                State::Double
            }
            State::Comment => match c {
                '\\' => State::CommentEscaped,
                _ if is_end => State::BeforeName,
                _ => State::Comment,
            },
            State::CommentEscaped => State::Comment,
        };
    }
    if matches!(state, State::Single | State::Double | State::DoubleEscaped) {
        // The line feed that stands for the end.
        value.pop();
        all.push((name.trim_end().to_owned(), value));
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_read_as_systemd_reads_it() {
        let text = "# a comment \\\nthat goes on\n; another\nA=1\n B = two words  \nC=\"a \\\"b\\\" \\$c \\d\"\nD='a \\n \"b\"'\n\
                    E=a\\\nb\nF=\nG=\"x\" y\nH=\"two\nlines \"\nno assignment\nexport I=1\nJ=a#b\nL=\"x\"   # why\nM=''# why\nK=\"open";
        let all = parse(text);
        let all: Vec<(&str, &str)> = all.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(
            all,
            [
                ("A", "1"),
                ("B", "two words"),
                ("C", "a \"b\" $c \\d"),
                ("D", "a \\n \"b\""),
                ("E", "ab"),
                ("F", ""),
                ("G", "xy"),
                ("H", "two\nlines "),
                ("export I", "1"),
                ("J", "a#b"),
                ("L", "x"),
                ("M", ""),
                ("K", "open"),
            ]
        );
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_is_quoted_comes_back(text in any::<String>(), value in "[^\u{0}\r]{0,40}") {
            parse(&text);
            let quoted: String = value.chars().flat_map(|c| {
                ['"', '\\', '`', '$'].contains(&c).then_some('\\').into_iter().chain([c])
            }).collect();
            prop_assert_eq!(parse(&format!("A=\"{quoted}\"\n")), [("A".to_owned(), value)]);
        }
    }
}
