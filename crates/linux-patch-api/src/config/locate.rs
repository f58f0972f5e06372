//! Where in a file a key stands, for messages about values that are well-formed and still not acceptable.

/// The line, from 1, of a key such as `server.port` or `health_checks[1]`; of the nearest key above it that can be found,
/// if it does not stand on a line of its own. None if not even its section can be.
pub(super) fn line_of(text: &str, key: &str) -> Option<u64> {
    let lines: Vec<Line<'_>> = text.lines().enumerate().filter_map(Line::new).collect();
    let mut range = lines.as_slice();
    let mut found = None;
    for step in key.split(['.', '[']) {
        let index = step.strip_suffix(']').and_then(|index| index.parse::<usize>().ok());
        let Some(indent) = range.iter().map(|line| line.indent).min() else { break };
        let mut candidates = range.iter().enumerate().filter(|(_, line)| line.indent == indent);
        let hit = match index {
            Some(index) => candidates.filter(|(_, line)| line.text.starts_with('-')).nth(index),
            None => candidates.find(|(_, line)| line.is_key(step)),
        };
        let Some((at, line)) = hit else { break };
        found = Some(line.number);
        let below = range.get(at + 1..).unwrap_or_default();
        // The items of a list may stand as far to the left as its key.
        let belongs = |line: &Line<'_>| line.indent > indent || line.text.starts_with('-');
        let end = below.iter().position(|line| !belongs(line)).unwrap_or(below.len());
        range = below.get(..end).unwrap_or_default();
    }
    found
}

/// A line that says something.
struct Line<'a> {
    number: u64,
    indent: usize,
    text: &'a str,
}

impl<'a> Line<'a> {
    fn new((index, line): (usize, &'a str)) -> Option<Self> {
        let text = line.trim();
        let says_something = !(text.is_empty() || text.starts_with('#') || text.starts_with("---"));
        says_something.then(|| Self {
            number: index as u64 + 1,
            indent: line.len() - line.trim_start().len(),
            text,
        })
    }

    fn is_key(&self, name: &str) -> bool {
        let text = self.text.trim_start_matches(['"', '\'']);
        text.strip_prefix(name).is_some_and(|rest| rest.trim_start_matches(['"', '\'']).starts_with(':'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_where_they_stand() {
        let text = "# port: 1\nserver:\n  timeout: 3\n\n  # port: 2\n  port: 0\ntls: {crl: x}\n\
                    health_checks:\n- type: tcp\n  address: a\n- type: systemd\n  unit: b\n\
                    reboot:\n    window:\n        \"rule\": R\n";
        for (key, line) in [
            ("server.port", Some(6)),
            ("server.timeout", Some(3)),
            ("server.bind_address", Some(2)),
            ("tls.crl", Some(7)),
            ("health_checks[0]", Some(9)),
            ("health_checks[1]", Some(11)),
            ("health_checks[2]", Some(8)),
            ("reboot.window.rule", Some(15)),
            ("port", None),
            ("logging.level", None),
        ] {
            assert_eq!(line_of(text, key), line, "{key}");
        }
        assert_eq!(line_of("", "server.port"), None);
    }
}
