//! apt's sources, in both of their forms.

use patch_backends::apt::deb822;

use crate::below::Below;

/// One source of packages: one address, one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// The file, relative to the root.
    pub(super) file: String,
    pub(super) uri: String,
    pub(super) suite: String,
    /// `Signed-By`; empty if there is none.
    pub(super) signed_by: Vec<String>,
    /// The key that stands in `Signed-By` itself, in armour.
    pub(super) key: Option<String>,
    /// The options by which it is believed without a signature.
    pub(super) unverified: Vec<String>,
}

impl Source {
    /// The host of the address; empty for one without.
    pub(super) fn host(&self) -> &str {
        let rest = self.uri.split_once("://").map_or("", |(_, rest)| rest);
        let authority = rest.split('/').next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        host.split(':').next().unwrap_or_default()
    }

    /// What the names of its lists begin with in apt's directory.
    pub(super) fn list_prefix(&self) -> String {
        let address = self.uri.split_once(':').map_or(self.uri.as_str(), |(_, rest)| rest);
        let address = address.strip_prefix("//").unwrap_or(address).trim_end_matches('/');
        let whole = format!("{address}/dists/{}", self.suite.trim_matches('/'));
        whole
            .chars()
            .map(|c| match c {
                '_' => "%5f".to_owned(),
                '/' => "_".to_owned(),
                c => c.to_string(),
            })
            .collect()
    }
}

/// The sources that are switched on, and which files could not be read.
pub(super) fn read(files: &Below) -> (Vec<Source>, Vec<String>) {
    const PARTS: &str = "etc/apt/sources.list.d";
    let (mut sources, mut unread) = (Vec::new(), Vec::new());
    let names = files.names(PARTS).unwrap_or_else(|error| {
        if error.kind() != std::io::ErrorKind::NotFound {
            unread.push(format!("/{PARTS}: {error}"));
        }
        Vec::new()
    });
    let mut names: Vec<String> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.sort();
    let paths = names.iter().map(|name| format!("{PARTS}/{name}"));
    for path in ["etc/apt/sources.list".to_owned()].into_iter().chain(paths) {
        let is_new = path.ends_with(".sources");
        if !is_new && !path.ends_with(".list") {
            continue;
        }
        match files.read(&path) {
            Ok(text) if is_new => sources.extend(parse_deb822(&path, &text)),
            Ok(text) => sources.extend(parse_lines(&path, &String::from_utf8_lossy(&text))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => unread.push(format!("/{path}: {error}")),
        }
    }
    (sources, unread)
}

const UNVERIFIED: [&str; 4] = ["trusted", "allow-insecure", "allow-weak", "allow-downgrade-to-insecure"];

/// `deb [signed-by=… arch=…] URI SUITE COMPONENT…`, one a line.
pub(super) fn parse_lines(file: &str, text: &str) -> Vec<Source> {
    let source = |line: &str| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let rest = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t']))?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let mut source = Source {
            file: file.to_owned(),
            uri: words.next()?.to_owned(),
            suite: words.next()?.to_owned(),
            signed_by: Vec::new(),
            key: None,
            unverified: Vec::new(),
        };
        for (key, value) in options.split_whitespace().filter_map(|option| option.split_once('=')) {
            let key = key.trim_end_matches(['+', '-']).to_ascii_lowercase();
            if key == "signed-by" {
                source.signed_by = value.split(',').map(str::to_owned).collect();
            } else if UNVERIFIED.contains(&key.as_str()) && crate::apt_conf::is_true(value) {
                source.unverified.push(format!("{key}={value}"));
            }
        }
        Some(source)
    };
    text.lines().filter_map(source).collect()
}

/// Stanzas of fields.
pub(super) fn parse_deb822(file: &str, text: &[u8]) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in deb822::stanzas(text) {
        let field = |name: &str| stanza.text(name).map(std::borrow::Cow::into_owned).unwrap_or_default();
        let is_off = stanza.text("Enabled").is_some_and(|value| !crate::apt_conf::is_true(&value));
        if is_off || !field("Types").split_whitespace().any(|kind| kind == "deb") {
            continue;
        }
        // A key may stand in the field itself.
        let signed_by = field("Signed-By");
        let key = signed_by.contains("BEGIN PGP").then(|| {
            // A dot stands for an empty line.
            let lines = signed_by.lines().map(|line| match line.trim() {
                "." => "",
                line => line,
            });
            lines.collect::<Vec<_>>().join("\n")
        });
        let signed_by: Vec<String> = if key.is_some() {
            vec!["a key in the file itself".to_owned()]
        } else {
            signed_by.split([' ', ',', '\n']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let unverified: Vec<String> = UNVERIFIED
            .iter()
            .filter_map(|name| {
                let value = field(name);
                crate::apt_conf::is_true(&value).then(|| format!("{name}: {}", value.trim()))
            })
            .collect();
        for uri in field("URIs").split_whitespace() {
            for suite in field("Suites").split_whitespace() {
                sources.push(Source {
                    file: file.to_owned(),
                    uri: uri.to_owned(),
                    suite: suite.to_owned(),
                    signed_by: signed_by.clone(),
                    key: key.clone(),
                    unverified: unverified.clone(),
                });
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_forms_are_read() {
        let lines = parse_lines(
            "f",
            "# deb http://no.example x main\ndeb-src http://no.example x main\n\
             deb [arch=amd64 signed-by=/k.gpg,/l.gpg trusted=yes] https://user@deb.example:8080/d_b/ bookworm main # x\n\
             deb cdrom:[Disc]/ bookworm main\n",
        );
        let source = &lines[0];
        assert_eq!((source.host(), source.suite.as_str()), ("deb.example", "bookworm"));
        assert_eq!(source.signed_by, ["/k.gpg", "/l.gpg"]);
        assert_eq!(source.unverified, ["trusted=yes"]);
        assert_eq!(lines.len(), 2);
        assert_eq!(
            Source { uri: "http://a.b/d_b/".to_owned(), ..source.clone() }.list_prefix(),
            "a.b_d%5fb_dists_bookworm"
        );
        assert_eq!(
            Source { uri: "file:/srv/repo/current".to_owned(), ..source.clone() }.list_prefix(),
            "_srv_repo_current_dists_bookworm"
        );

        let stanzas = parse_deb822(
            "f",
            b"Types: deb deb-src\nURIs: http://a.example http://b.example\nSuites: x x-security\nComponents: main\n\
              Signed-By: /k.gpg\n\nTypes: deb\nEnabled: no\nURIs: http://c.example\nSuites: x\n\n\
              Types: deb\nURIs: http://d.example\nSuites: x\nTrusted: yes\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n",
        );
        assert_eq!(stanzas.len(), 5);
        assert_eq!(stanzas[1].suite, "x-security");
        assert_eq!((stanzas[4].unverified.len(), stanzas[4].signed_by.len()), (1, 1));
        assert_eq!(stanzas[4].key.as_deref(), Some("-----BEGIN PGP PUBLIC KEY BLOCK-----\n"));
    }

    proptest! {
        #[test]
        fn no_file_ends_the_program(text in "(deb |\\[|\\]|=|[a-z:/#]|\n|Types: deb\n|URIs: ){0,40}") {
            for source in parse_lines("f", &text).into_iter().chain(parse_deb822("f", text.as_bytes())) {
                source.list_prefix();
                source.host();
            }
        }
    }
}
