//! `Release` and `InRelease`: who an archive is.
//!
//! # Which archives carry security fixes
//!
//! Only the archive's own metadata decides, never a package's name:
//!
//! - `Label: Debian-Security` (what Debian's unattended-upgrades matches, `label=Debian-Security`);
//! - a `Suite` or `Codename` that ends in `-security`, of an archive whose `Origin` is a distribution: `Debian`, `Devuan`,
//!   `Raspbian`, `Ubuntu`, and Ubuntu's extended maintenance `UbuntuESM` and `UbuntuESMApps` (what Ubuntu's
//!   unattended-upgrades matches, `${distro_id}:${distro_codename}-security`, `UbuntuESM:…-infra-security`,
//!   `UbuntuESMApps:…-apps-security`).
//!
//! An archive of anybody else that calls its suite `…-security` is not believed: security updates run unattended.

use patch_types::plan::Origin;

use super::deb822::Stanza;

/// The distributions whose `…-security` suites are believed.
pub const DISTRIBUTIONS: [&str; 6] = ["Debian", "Devuan", "Raspbian", "Ubuntu", "UbuntuESM", "UbuntuESMApps"];

/// What an archive says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Release {
    /// `Origin`.
    pub origin: String,
    /// `Label`.
    pub label: String,
    /// `Suite`.
    pub suite: String,
    /// `Codename`.
    pub codename: String,
    /// `Version`.
    pub version: String,
    /// `Date`, as it stands (RFC 5322).
    pub date: String,
    /// `Valid-Until`, as it stands; empty if it does not say.
    pub valid_until: String,
}

impl Release {
    /// Parses a `Release` or an `InRelease`, whose signature is not checked here: apt keeps only what it has verified.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let stanza = Stanza::new(body(text));
        let mut release = Self::default();
        for (field, value) in stanza.fields() {
            let slot = match field.to_ascii_lowercase().as_slice() {
                b"origin" => &mut release.origin,
                b"label" => &mut release.label,
                b"suite" => &mut release.suite,
                b"codename" => &mut release.codename,
                b"version" => &mut release.version,
                b"date" => &mut release.date,
                b"valid-until" => &mut release.valid_until,
                // The hashes of thousands of files follow; nothing that is wanted comes after them.
                b"md5sum" | b"sha256" if !release.origin.is_empty() || !release.suite.is_empty() => break,
                _ => continue,
            };
            *slot = String::from_utf8_lossy(value).into_owned();
        }
        release
    }

    /// Whether the archive carries security fixes; see the [module](self) for the rule.
    #[must_use]
    pub fn is_security(&self) -> bool {
        let suite = self.suite.ends_with("-security") || self.codename.ends_with("-security");
        self.label == "Debian-Security" || (suite && DISTRIBUTIONS.contains(&self.origin.as_str()))
    }

    /// The origin of what one component of this archive offers.
    #[must_use]
    pub fn component(&self, component: &str, site: &str) -> Origin {
        Origin {
            origin: self.origin.clone(),
            label: self.label.clone(),
            suite: self.suite.clone(),
            codename: self.codename.clone(),
            component: component.to_owned(),
            site: site.to_owned(),
            security: self.is_security(),
        }
    }
}

/// The signed text without its armour: from after the armour's header to the signature.
fn body(text: &[u8]) -> &[u8] {
    const BEGIN: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";
    if !text.starts_with(BEGIN) {
        return text;
    }
    let start = memchr::memmem::find(text, b"\n\n").map_or(text.len(), |at| at + 2);
    let rest = &text[start..];
    let end = memchr::memmem::find(rest, b"\n-----BEGIN PGP SIGNATURE").unwrap_or(rest.len());
    &rest[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nLabel: Debian-Security\n\
        Suite: stable-security\nCodename: bookworm-security\nVersion: 12\nDate: Sun, 22 Nov 2026 01:09:27 +0000\n\
        SHA256:\n 00 1 main/x\n-----BEGIN PGP SIGNATURE-----\n\nabc\n";

    #[test]
    fn a_signed_release_is_read() {
        let release = Release::parse(SIGNED);
        assert_eq!((&*release.suite, &*release.version), ("stable-security", "12"));
        let origin = release.component("main", "mirror.example.org");
        assert!(origin.security);
        assert_eq!((&*origin.component, &*origin.site), ("main", "mirror.example.org"));
    }

    #[test]
    fn security_is_what_a_distribution_says_of_its_archive() {
        for (origin, label, suite, codename, security) in [
            ("Debian", "Debian-Security", "stable-security", "bookworm-security", true),
            ("Debian", "Debian-Security", "oldstable", "buster/updates", true),
            ("Debian", "Debian", "stable", "bookworm", false),
            ("Debian", "Debian", "stable-updates", "bookworm-updates", false),
            ("Ubuntu", "Ubuntu", "noble-security", "noble", true),
            ("Ubuntu", "Ubuntu", "noble-updates", "noble", false),
            ("UbuntuESM", "UbuntuESM", "xenial-infra-security", "xenial", true),
            ("UbuntuESMApps", "UbuntuESMApps", "jammy-apps-security", "jammy", true),
            ("UbuntuESMApps", "UbuntuESMApps", "jammy-apps-updates", "jammy", false),
            ("Example Ltd", "Example", "all-security", "all-security", false),
            ("", "", "", "", false),
        ] {
            let release = Release {
                origin: origin.into(),
                label: label.into(),
                suite: suite.into(),
                codename: codename.into(),
                ..Release::default()
            };
            assert_eq!(release.is_security(), security, "{release:?}");
        }
    }

    #[test]
    fn a_cut_release_is_read_as_far_as_it_goes() {
        for end in 0..SIGNED.len() {
            let _ = Release::parse(&SIGNED[..end]);
        }
    }
}
