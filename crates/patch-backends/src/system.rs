//! The host itself: what it is called, what it runs, and whether it waits for a reboot.
//!
//! The kernel's own files are read below the root's `/proc`; where nothing is mounted there, from the machine's.

use std::{fs, path::Path};

use patch_types::api::RebootState;

use crate::apt::{Database, info, versions};

/// What `/etc/os-release` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsRelease {
    /// `ID`, such as `debian`.
    pub id: String,
    /// `NAME`, such as `Debian GNU/Linux`.
    pub name: String,
    /// `VERSION_ID`, such as `12`; empty for releases without a number.
    pub version_id: String,
    /// `VERSION_CODENAME`, such as `bookworm`.
    pub codename: Option<String>,
    /// `PRETTY_NAME`.
    pub pretty_name: String,
}

/// The distribution below a root; all empty if it does not say.
#[must_use]
pub fn os_release(root: &Path) -> OsRelease {
    let read = |path: &str| fs::read(root.join(path)).ok();
    let text = read("etc/os-release").or_else(|| read("usr/lib/os-release")).unwrap_or_default();
    parse_os_release(&String::from_utf8_lossy(&text))
}

/// Parses `os-release(5)`.
#[must_use]
pub fn parse_os_release(text: &str) -> OsRelease {
    let mut release = OsRelease::default();
    for (key, value) in text.lines().filter_map(|l| l.trim().split_once('=')) {
        let value = unquoted(value);
        match key {
            "ID" => release.id = value,
            "NAME" => release.name = value,
            "VERSION_ID" => release.version_id = value,
            "VERSION_CODENAME" => release.codename = Some(value).filter(|v| !v.is_empty()),
            "PRETTY_NAME" => release.pretty_name = value,
            _ => {}
        }
    }
    release
}

/// A value in the shell's quotes: double ones with `\` before special characters, single ones, or none.
fn unquoted(value: &str) -> String {
    let value = value.trim();
    if let Some(inner) = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')) {
        return inner.to_owned();
    }
    let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
    let mut text = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(c) = characters.next() {
        text.push(if c == '\\' { characters.next().unwrap_or(c) } else { c });
    }
    text
}

/// A file of the kernel, without white space around it.
fn kernel_file(root: &Path, path: &str) -> Option<String> {
    fs::read_to_string(root.join(path))
        .or_else(|_| fs::read_to_string(Path::new("/").join(path)))
        .ok()
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
}

/// The host's name: the kernel's, or else that in `/etc/hostname`; empty if it has none.
#[must_use]
pub fn hostname(root: &Path) -> String {
    let configured = || fs::read_to_string(root.join("etc/hostname")).ok().map(|t| t.trim().to_owned());
    kernel_file(root, "proc/sys/kernel/hostname").or_else(configured).unwrap_or_default()
}

/// The running kernel's release, such as `6.1.0-28-amd64`; empty if it cannot be read.
#[must_use]
pub fn kernel_release(root: &Path) -> String {
    kernel_file(root, "proc/sys/kernel/osrelease").unwrap_or_default()
}

/// The machine's architecture in the kernel's words, such as `x86_64`. Kernels before 6.1 do not say; then it is the one
/// that this program was built for.
#[must_use]
pub fn architecture(root: &Path) -> String {
    kernel_file(root, "proc/sys/kernel/arch").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The random id of this boot; empty if it cannot be read.
#[must_use]
pub fn boot_id(root: &Path) -> String {
    kernel_file(root, "proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Seconds since boot; 0 if it cannot be read.
#[must_use]
pub fn uptime_seconds(root: &Path) -> u64 {
    kernel_file(root, "proc/uptime").and_then(|text| text.split(['.', ' ']).next()?.parse().ok()).unwrap_or(0)
}

/// Whether a reboot is due, and why: packages asked for one (`/run/reboot-required`), or a newer kernel than the running
/// one is installed.
#[must_use]
pub fn reboot_state(root: &Path, database: &Database) -> RebootState {
    let mut reasons = Vec::new();
    let mut packages: Vec<String> = fs::read_to_string(root.join("run/reboot-required.pkgs"))
        .unwrap_or_default()
        .lines()
        .map(|l| l.trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect();
    packages.sort();
    packages.dedup();
    if root.join("run/reboot-required").exists() {
        reasons.push(if packages.is_empty() {
            "/run/reboot-required exists".to_owned()
        } else {
            format!("{} asked for it (/run/reboot-required)", packages.join(", "))
        });
    }
    let running = kernel_release(root);
    let banner = kernel_file(root, "proc/version").unwrap_or_default();
    reasons.extend(newer_kernel(&running, &banner, database));
    RebootState { pending_reboot: !reasons.is_empty(), reasons, packages, ..RebootState::default() }
}

/// Why another kernel than the running one should run: a newer release of the same flavour is installed, or the package
/// of the running release has been updated since it was booted.
#[must_use]
pub fn newer_kernel(running: &str, banner: &str, database: &Database) -> Option<String> {
    let (version, flavour) = release_parts(running)?;
    let kernels = || {
        database.iter().filter(|p| p.is_present()).filter_map(|p| Some((info::kernel_release(p.name())?, p)))
    };
    let newest = kernels()
        .filter_map(|(release, _)| Some((release_parts(release)?, release)))
        .filter(|((_, other), _)| *other == flavour)
        .max_by(|((a, _), _), ((b, _), _)| versions::compare(a, b));
    if let Some(((newest, _), release)) = newest
        && versions::compare(newest, version).is_gt()
    {
        return Some(format!("the kernel {release} is installed and {running} is running"));
    }
    let booted = banner_version(banner)?;
    let (_, package) = kernels().find(|(release, _)| *release == running)?;
    versions::compare(package.version_text(), booted).is_gt().then(|| {
        format!("{} has been updated to {}, and {booted} is running", package.name(), package.version_text())
    })
}

/// `6.1.0-28-cloud-amd64` is the version `6.1.0-28` of the flavour `cloud-amd64`: what follows the last part that begins
/// with a digit.
pub(crate) fn release_parts(release: &str) -> Option<(&str, &str)> {
    let mut at = release.len();
    for (dash, _) in release.rmatch_indices('-') {
        if !release[dash + 1..].starts_with(|c: char| c.is_ascii_alphabetic()) {
            break;
        }
        at = dash;
    }
    (at < release.len() && at > 0).then(|| (&release[..at], &release[at + 1..]))
}

/// Debian's kernels name their package's version in `/proc/version`: `… #1 SMP PREEMPT_DYNAMIC Debian 6.1.112-1
/// (2024-09-30)`.
fn banner_version(banner: &str) -> Option<&str> {
    let (_, rest) = banner.split_once('#')?;
    let (_, rest) = rest.split_once(" Debian ")?;
    rest.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(packages: &[(&str, &str)]) -> Database {
        let text: String = packages
            .iter()
            .map(|(name, version)| {
                format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n")
            })
            .collect();
        Database::parse(text.as_bytes())
    }

    #[test]
    fn os_release_is_read_with_its_quotes() {
        let release = parse_os_release(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME='Debian GNU/Linux'\nID=debian\nVERSION_ID=\"12\"\n\
             VERSION_CODENAME=bookworm\n# comment\nBROKEN\nHOME_URL=\"a\\\"b\"\n",
        );
        assert_eq!((&*release.name, &*release.version_id), ("Debian GNU/Linux", "12"));
        assert_eq!(release.codename.as_deref(), Some("bookworm"));
        assert_eq!(unquoted(r#""a\"b\\""#), r#"a"b\"#);
    }

    #[test]
    fn the_administrators_os_release_comes_first() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(os_release(root.path()), OsRelease::default());
        for (directory, text, expected) in [
            ("usr/lib", &b"ID=debian\nNAME=\xc3\x9c\n"[..], ("debian", "\u{dc}")),
            ("etc", &b"ID=other\nVERSION_CODENAME=\nNAME=\xff\n"[..], ("other", "\u{fffd}")),
        ] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
            fs::write(root.path().join(directory).join("os-release"), text).unwrap();
            let release = os_release(root.path());
            assert_eq!((&*release.id, &*release.name), expected);
            assert_eq!(release.codename, None);
        }
    }

    #[test]
    fn a_newer_kernel_of_the_same_flavour_asks_for_a_reboot() {
        let installed = database(&[
            ("linux-image-6.1.0-26-amd64", "6.1.112-1"),
            ("linux-image-6.1.0-28-amd64", "6.1.119-1"),
            ("linux-image-6.9.0-1-cloud-amd64", "6.9.7-1"),
            ("linux-image-amd64", "6.1.119-1"),
            ("linux-image-6.1.0-30-amd64-dbg", "6.1.124-1"),
        ]);
        let reason = |running, banner| newer_kernel(running, banner, &installed);
        assert!(reason("6.1.0-26-amd64", "").unwrap().contains("6.1.0-28-amd64"));
        assert_eq!(reason("6.1.0-28-amd64", ""), None);
        assert_eq!(reason("6.9.0-1-cloud-amd64", ""), None);
        // A kernel that no package brought, as in a container.
        for running in ["5.10.0", "6.1.0-99-azure", "", "-", "-amd64", "é-é"] {
            assert_eq!(reason(running, ""), None, "{running}");
        }
        let banner =
            "Linux version 6.1.0-28-amd64 (x@y) (gcc) #1 SMP PREEMPT_DYNAMIC Debian 6.1.115-1 (2024-11-01)";
        assert!(reason("6.1.0-28-amd64", banner).unwrap().contains("updated to 6.1.119-1"));
        assert_eq!(reason("6.1.0-28-amd64", &banner.replace("115", "119")), None);
    }

    #[test]
    fn releases_are_split_before_their_flavour() {
        for (release, parts) in [
            ("6.1.0-28-cloud-amd64", Some(("6.1.0-28", "cloud-amd64"))),
            ("5.15.0-91-generic", Some(("5.15.0-91", "generic"))),
            ("6.1.0-0.deb11.5-amd64", Some(("6.1.0-0.deb11.5", "amd64"))),
            ("6.12.41+deb13-amd64", Some(("6.12.41+deb13", "amd64"))),
            ("6.6.0", None),
        ] {
            assert_eq!(release_parts(release), parts);
        }
    }

    #[test]
    fn packages_that_asked_for_a_reboot_are_named() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/sys/kernel")).unwrap();
        fs::create_dir_all(root.path().join("run")).unwrap();
        fs::write(root.path().join("proc/sys/kernel/osrelease"), "1.2.3-test\n").unwrap();
        let none = reboot_state(root.path(), &database(&[]));
        assert!(!none.pending_reboot);
        fs::write(root.path().join("run/reboot-required"), "*** System restart required ***\n").unwrap();
        // Whoever asks need not say for what.
        let nameless = reboot_state(root.path(), &database(&[]));
        assert_eq!(
            (nameless.pending_reboot, &*nameless.reasons),
            (true, &["/run/reboot-required exists".to_owned()][..])
        );
        fs::write(root.path().join("run/reboot-required.pkgs"), "libc6\ndbus\nlibc6\n").unwrap();
        let state = reboot_state(root.path(), &database(&[]));
        assert_eq!(
            (state.pending_reboot, state.packages),
            (true, vec!["dbus".to_owned(), "libc6".to_owned()])
        );
        assert!(state.reasons[0].starts_with("dbus, libc6 asked"));
    }

    #[test]
    fn the_running_machine_answers() {
        let root = Path::new("/");
        assert!(
            !hostname(root).is_empty() && !kernel_release(root).is_empty() && !architecture(root).is_empty()
        );
        assert!(boot_id(root).len() == 36 && uptime_seconds(root) > 0);
    }
}
