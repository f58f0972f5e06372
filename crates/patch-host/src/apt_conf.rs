//! apt's configuration: what its files set, in their order, and which file set it.
//!
//! The parser knows the syntax of `apt.conf(5)` as far as files are written by hand or by packages. It never fails: what it
//! does not understand it passes over, and `apt-config dump` has the last word where it can be asked.

use crate::below::Below;

/// Where the pieces are, below the root.
pub(crate) const PARTS: &str = "etc/apt/apt.conf.d";

/// The file that is read after the pieces.
const MAIN: &str = "etc/apt/apt.conf";

/// One setting. The name of a list's entry ends in `::`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Its whole name.
    pub(crate) name: String,
    /// What it is set to.
    pub(crate) value: String,
    /// The file, relative to the root; empty if apt itself said it.
    pub(crate) file: String,
}

/// The settings in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AptConf {
    settings: Vec<Setting>,
    /// What could not be read, and why.
    pub(crate) unread: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Clear(Vec<String>),
    Open,
    Close,
    End,
}

impl AptConf {
    /// What the files below a root set, as apt reads them: the pieces in the order of their names, then `apt.conf`.
    pub(crate) fn read(files: &Below) -> Self {
        let mut conf = Self::default();
        let mut names: Vec<String> = match files.names(PARTS) {
            Ok(names) => names.into_iter().filter_map(|name| name.into_string().ok()).collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                conf.unread.push(format!("/{PARTS}: {error}"));
                Vec::new()
            }
        };
        names.retain(|name| is_piece(name));
        names.sort();
        let paths = names.iter().map(|name| format!("{PARTS}/{name}")).chain([MAIN.to_owned()]);
        for path in paths {
            match files.read(&path) {
                Ok(text) => conf.add(&path, &String::from_utf8_lossy(&text)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => conf.unread.push(format!("/{path}: {error}")),
            }
        }
        conf
    }

    /// What `apt-config dump --no-empty --format '%F=%v%n'` printed.
    pub(crate) fn from_dump(dump: &str) -> Self {
        let setting = |line: &str| {
            let (name, value) = line.split_once('=')?;
            Some(Setting { name: name.to_owned(), value: value.to_owned(), file: String::new() })
        };
        Self { settings: dump.lines().filter_map(setting).collect(), unread: Vec::new() }
    }

    /// Reads one file more.
    pub(crate) fn add(&mut self, file: &str, text: &str) {
        let mut scopes: Vec<String> = Vec::new();
        let mut words: Vec<Token> = Vec::new();
        for token in tokens(text) {
            match token {
                Token::Word(_) | Token::Text(_) => words.push(token),
                Token::Clear(names) => names.iter().for_each(|name| self.clear(name)),
                Token::Open => {
                    let name = self.take(&mut words, &scopes, file, true);
                    scopes.push(name);
                }
                Token::Close => {
                    self.take(&mut words, &scopes, file, false);
                    scopes.pop();
                }
                Token::End => {
                    self.take(&mut words, &scopes, file, false);
                }
            }
        }
    }

    /// Makes settings of the words before a bracket or a semicolon, and gives the name of what they open.
    fn take(&mut self, words: &mut Vec<Token>, scopes: &[String], file: &str, opens: bool) -> String {
        let scope = scopes.last().cloned().unwrap_or_default();
        let below = |name: &str| match scope.as_str() {
            "" => name.to_owned(),
            scope => format!("{scope}::{name}"),
        };
        let mut words = std::mem::take(words).into_iter();
        match (words.next(), words.next()) {
            (Some(Token::Word(name)), None) if opens => below(&name),
            (Some(Token::Word(name)), Some(Token::Word(value) | Token::Text(value))) => {
                self.set(below(&name), value, file);
                below(&name)
            }
            (Some(Token::Word(value) | Token::Text(value)), None) => {
                if !opens {
                    self.set(below(""), value, file);
                }
                scope
            }
            _ => scope,
        }
    }

    fn set(&mut self, name: String, value: String, file: &str) {
        if !name.ends_with("::") {
            self.settings.retain(|setting| !setting.name.eq_ignore_ascii_case(&name));
        }
        self.settings.push(Setting { name, value, file: file.to_owned() });
    }

    fn clear(&mut self, name: &str) {
        let name = name.trim_end_matches("::");
        self.settings.retain(|setting| {
            let Some(rest) = setting.name.get(name.len()..) else { return true };
            let is_below = setting.name.get(..name.len()).is_some_and(|s| s.eq_ignore_ascii_case(name));
            !(is_below && (rest.is_empty() || rest.starts_with("::")))
        });
    }

    /// The setting of that name.
    pub(crate) fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().rev().find(|setting| setting.name.eq_ignore_ascii_case(name))
    }

    /// Its value.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.setting(name).map(|setting| setting.value.as_str())
    }

    /// The entries of the list of that name.
    pub(crate) fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Setting> {
        self.settings.iter().filter(move |setting| {
            setting.name.strip_suffix("::").is_some_and(|list| list.eq_ignore_ascii_case(name))
        })
    }

    /// All settings.
    pub(crate) fn all(&self) -> &[Setting] {
        &self.settings
    }

    /// Whether it is on: apt's own notion of a true value.
    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.value(name).is_some_and(is_true)
    }
}

/// What apt takes for true.
pub(crate) fn is_true(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    ["yes", "true", "with", "on", "enable"].contains(&value.as_str())
        || value.parse::<i64>().is_ok_and(|number| number != 0)
}

/// Which files of the directory apt reads: those without an ending or with `.conf`, of plain letters.
fn is_piece(name: &str) -> bool {
    let stem = name.strip_suffix(".conf").unwrap_or(name);
    !stem.is_empty() && stem.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        rest = match c {
            '{' | '}' | ';' => {
                tokens.push(match c {
                    '{' => Token::Open,
                    '}' => Token::Close,
                    _ => Token::End,
                });
                after
            }
            '"' => {
                let (value, after) = after.split_once('"').unwrap_or((after, ""));
                tokens.push(Token::Text(value.to_owned()));
                after
            }
            '/' if after.starts_with('/') => line_end(rest),
            '/' if after.starts_with('*') => rest.split_once("*/").map_or("", |(_, after)| after),
            '#' => {
                let end = line_end(rest);
                let line = rest.strip_suffix(end).unwrap_or(rest);
                if let Some(names) = line.strip_prefix("#clear") {
                    let names = names.split([' ', '\t', ';', '"', '\n']).filter(|name| !name.is_empty());
                    tokens.push(Token::Clear(names.map(str::to_owned).collect()));
                }
                end
            }
            c if c.is_whitespace() => after,
            _ => {
                let is_end = |c: char| c.is_whitespace() || matches!(c, '{' | '}' | ';' | '"');
                let end = rest.find(is_end).unwrap_or(rest.len());
                // A comment may follow a word without a space; what has `//` in it, such as an address, is quoted.
                let end =
                    rest.get(..end).and_then(|word| word.find("//")).filter(|at| *at > 0).unwrap_or(end);
                let (word, after) = rest.split_at(end);
                tokens.push(Token::Word(word.to_owned()));
                after
            }
        };
    }
    tokens
}

fn line_end(text: &str) -> &str {
    text.find('\n').and_then(|at| text.get(at..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn conf(text: &str) -> AptConf {
        let mut conf = AptConf::default();
        conf.add("f", text);
        conf
    }

    #[test]
    fn the_forms_of_apt_conf_are_understood() {
        let conf = conf(
            "// a comment with \"quotes\"\n\
             # another\n\
             /* a { long; one */\n\
             APT::Periodic::Enable \"1\";\n\
             APT { Periodic { Unattended-Upgrade \"always\"; }; };\n\
             Unattended-Upgrade::Origins-Pattern {\n  \"origin=Debian,codename=${distro_codename}-security\";\n\
             //   \"origin=Commented\";\n  \"two\";\n};\n\
             Dir::Etc::Main old; Dir::Etc::Main new;\n\
             Acquire::Languages:: \"none\";\n",
        );
        assert_eq!(conf.value("apt::periodic::ENABLE"), Some("1"));
        assert_eq!(conf.value("APT::Periodic::Unattended-Upgrade"), Some("always"));
        let list: Vec<_> =
            conf.list("Unattended-Upgrade::Origins-Pattern").map(|s| s.value.as_str()).collect();
        assert_eq!(list, ["origin=Debian,codename=${distro_codename}-security", "two"]);
        assert_eq!(conf.value("Dir::Etc::Main"), Some("new"));
        assert_eq!(conf.list("Acquire::Languages").count(), 1);
    }

    #[test]
    fn a_later_file_overrides_and_clears() {
        let mut conf = conf("A::B \"1\"; A::L { \"x\"; };");
        conf.add("g", "A::B \"2\";\nA::L { \"y\"; };\n");
        assert_eq!(conf.setting("A::B").map(|s| (s.value.as_str(), s.file.as_str())), Some(("2", "g")));
        assert_eq!(conf.list("A::L").count(), 2);
        conf.add("h", "#clear A::L;\n");
        assert_eq!(conf.list("A::L").count(), 0);
        assert_eq!(conf.value("A::B"), Some("2"));
    }

    #[test]
    fn a_dump_is_read_the_same() {
        let conf = AptConf::from_dump("A::B=1\nA::L::=x=1\nA::L::=y\n");
        assert_eq!(conf.value("A::B"), Some("1"));
        assert_eq!(conf.list("A::L").map(|s| s.value.as_str()).collect::<Vec<_>>(), ["x=1", "y"]);
    }

    #[test]
    fn only_what_apt_reads_is_read() {
        for (name, is_read) in [
            ("20x", true),
            ("x.conf", true),
            ("x.conf.dpkg-old", false),
            ("x~", false),
            (".x", false),
            ("", false),
        ] {
            assert_eq!(is_piece(name), is_read, "{name}");
        }
        assert!(is_true("true") && is_true("1") && is_true("Yes") && !is_true("0") && !is_true("false"));
    }

    proptest! {
        #[test]
        fn no_file_ends_the_program(text in "([\"{};#/* \n:a-cé]|#clear |//|::){0,60}") {
            conf(&text);
        }

        #[test]
        fn what_is_quoted_comes_back(value in "[^\"\n]{1,40}") {
            let conf = conf(&format!("A::B \"{value}\";\nA::C \"end\";\n"));
            prop_assert_eq!(conf.value("A::B"), Some(value.as_str()));
            prop_assert_eq!(conf.value("A::C"), Some("end"));
        }
    }
}
