//! Which of the fixes that a run left out are barred at this moment. The root side's own list is root's; what it makes of it for
//! apt everybody may read.

use std::{collections::BTreeSet, io, path::Path};

use patch_backends::apt::{Database, versions};
use patch_types::executor::TAKEN_BACK_PINS;

use super::MAX_FILE;

/// What is pinned away.
struct Pin {
    name: String,
    /// None where it is no architecture's own.
    architecture: Option<String>,
    version: String,
}

/// Those of these fixes, each as `NAME=VERSION`, that are still pinned away, and of which an older version is installed. Where
/// that cannot be told, better one too many than none.
pub(super) fn still(root: &Path, fixes: &[String]) -> Vec<String> {
    if fixes.is_empty() {
        return Vec::new();
    }
    // One of several architectures is one fix.
    let mut seen = BTreeSet::new();
    let mut still: Vec<String> = fixes.iter().filter(|fix| seen.insert(*fix)).cloned().collect();
    let pins = match patch_files::read_text(&root.join(TAKEN_BACK_PINS), MAX_FILE) {
        Ok(text) => pins(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(_) => return still,
    };
    let of = |fix: &str| {
        let (name, version) = fix.split_once('=').unwrap_or((fix, ""));
        pins.iter().filter(|pin| pin.name == name && pin.version == version).collect::<Vec<_>>()
    };
    still.retain(|fix| !of(fix).is_empty());
    if still.is_empty() {
        return still;
    }
    let Ok(database) = Database::read_for_list(root) else { return still };
    let is_missing = |pin: &&Pin| {
        let found = database.find(&pin.name, pin.architecture.as_deref());
        found
            .filter(|package| package.is_present())
            .is_some_and(|package| versions::compare(package.version_text(), &pin.version).is_lt())
    };
    still.retain(|fix| of(fix).iter().any(is_missing));
    still
}

/// What the root side's preferences hold off, an entry a paragraph.
fn pins(text: &str) -> Vec<Pin> {
    let entry = |paragraph: &str| {
        let field = |key: &str| paragraph.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let (package, version) = (field("Package:")?, field("Pin: version ")?);
        let (name, architecture) = match package.split_once(':') {
            Some((name, architecture)) => (name, Some(architecture.to_owned())),
            None => (package, None),
        };
        Some(Pin { name: name.to_owned(), architecture, version: version.to_owned() })
    };
    text.split("\n\n").filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const PINS: &str = "# Generated.\n#     linux-patch-host clear NAME[=VERSION]\n\nExplanation: taken back\n\
        Package: openssl:amd64\nPin: version 3.0.15-1~deb12u2\nPin-Priority: -1\n\nExplanation: taken back\n\
        Package: ca-certificates\nPin: version 2:20240203\nPin-Priority: -1\n";

    /// A host with these pins, and these versions of the two packages.
    fn host(pins: Option<&str>, openssl: &str, certificates: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for directory in ["etc/apt/preferences.d", "var/lib/dpkg"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        if let Some(pins) = pins {
            fs::write(at(TAKEN_BACK_PINS), pins).unwrap();
        }
        fs::write(at("var/lib/dpkg/arch"), "amd64\n").unwrap();
        let stanza = |name: &str, architecture: &str, version: &str| {
            format!(
                "Package: {name}\nStatus: install ok installed\nArchitecture: {architecture}\nVersion: {version}\n\n"
            )
        };
        let status = stanza("openssl", "amd64", openssl) + &stanza("ca-certificates", "all", certificates);
        fs::write(at("var/lib/dpkg/status"), status).unwrap();
        root
    }

    #[test]
    fn what_was_let_or_installed_since_is_barred_no_more() {
        let (ssl, certificates) = ("openssl=3.0.15-1~deb12u2", "ca-certificates=2:20240203");
        let left_out = [ssl.to_owned(), ssl.to_owned(), certificates.to_owned()];
        let only_certificates = PINS.replace("openssl:amd64", "other:amd64");
        for (pins, openssl, ca, want) in [
            (Some(PINS), "3.0.14", "2:2023", &[ssl, certificates][..]),
            // Let by root.
            (Some(&only_certificates), "3.0.14", "2:2023", &[certificates]),
            (None, "3.0.14", "2:2023", &[]),
            // Installed by hand: just this version, and a newer one.
            (Some(PINS), "3.0.15-1~deb12u2", "2:2023", &[certificates]),
            (Some(PINS), "3.0.14", "2:20250101", &[ssl]),
            // Another version was taken back since.
            (Some(&PINS.replace("3.0.15-", "3.0.13-")), "3.0.12", "2:20250101", &[]),
        ] {
            let root = host(pins, openssl, ca);
            assert_eq!(still(root.path(), &left_out), want, "{openssl} {ca}");
            assert_eq!(still(root.path(), &[]), Vec::<String>::new());
        }
    }

    #[test]
    fn what_cannot_be_told_is_still_barred() {
        let left_out = ["openssl=3.0.15-1~deb12u2".to_owned()];
        let root = host(Some(PINS), "3.0.14", "1");
        fs::remove_file(root.path().join("var/lib/dpkg/status")).unwrap();
        assert_eq!(still(root.path(), &left_out), left_out);
        fs::remove_file(root.path().join(TAKEN_BACK_PINS)).unwrap();
        fs::create_dir(root.path().join(TAKEN_BACK_PINS)).unwrap();
        assert_eq!(still(root.path(), &left_out), left_out);
    }
}
