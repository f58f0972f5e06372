//! Versions that were taken back are pinned away, so that the next run does not install them again.
//!
//! What was taken back is kept in a registry of the root side's own; apt's preferences file is generated from it. Only a
//! version that an upgrade brought belongs in it, which is the caller's to decide.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use patch_backends::apt::{Inventory, versions};
use patch_types::{PackageName, PackageVersion, TakenBack};

/// How long another change of the registry is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The registry, in the root side's directory of state.
pub const REGISTRY: &str = "taken_back.json";

/// The generated file, below the root.
pub const PREFERENCES: &str = patch_types::executor::TAKEN_BACK_PINS;

/// Why the registry or the preferences could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum TakenBackError {
    /// The registry cannot be read, or what is in it is not understood.
    #[error(
        "{path}, the list of versions that were taken back, cannot be read: {source}. Repair it, or remove it together with \
         /{PREFERENCES}: the versions in it could then be installed again"
    )]
    Registry {
        /// The registry.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The versions that were taken back, in the order of the registry. No registry: none.
///
/// # Errors
/// When there is one that cannot be read or understood; the error names it. That must not stop anybody from going back.
pub fn list(state: &Path) -> Result<Vec<TakenBack>, TakenBackError> {
    let path = state.join(REGISTRY);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(TakenBackError::Registry { path, source }),
    };
    serde_json::from_slice(&text).map_err(|error| TakenBackError::Registry { path, source: error.into() })
}

/// Keeps others from changing the registry between reading and writing it. Without the lock there is still the truth of
/// one of the two.
fn lock(state: &Path) -> Option<std::fs::File> {
    let path = state.join("taken_back.lock");
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path).ok()?;
    // Others may pass through the directory: whoever could open the file could lock it, and hold everything up.
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600)).ok()?;
    let patience = Instant::now() + PATIENCE;
    while file.try_lock().is_err() {
        if Instant::now() >= patience {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(file)
}

/// Pins versions away. One that is pinned already gets the new job, time and reason.
///
/// # Errors
/// When the registry is not readable or a file cannot be written. If only the preferences could not be written, the next
/// call of any function here that changes something writes them.
pub fn pin(root: &Path, state: &Path, entries: &[TakenBack]) -> Result<(), TakenBackError> {
    let _lock = lock(state);
    let mut all = list(state)?;
    all.retain(|old| !entries.iter().any(|new| same(old, new)));
    all.extend_from_slice(entries);
    save(root, state, &all)
}

/// Lets a version be installed again, or all that were taken back of a package. The name may have an architecture; without
/// one all are meant. Gives what was cleared, which is nothing if nothing was pinned.
///
/// # Errors
/// As [`pin`].
pub fn clear(
    root: &Path,
    state: &Path,
    name: &PackageName,
    version: Option<&PackageVersion>,
) -> Result<Vec<TakenBack>, TakenBackError> {
    remove(root, state, |entry| {
        entry.name.name() == name.name()
            && name.architecture().is_none_or(|a| a == entry.architecture.as_str())
            && version.is_none_or(|v| *v == entry.version)
    })
}

/// Forgets versions that are superseded: a newer one than the pinned one is installed. Gives what was forgotten.
///
/// # Errors
/// As [`pin`].
pub fn prune(root: &Path, state: &Path, inventory: &Inventory) -> Result<Vec<TakenBack>, TakenBackError> {
    remove(root, state, |entry| {
        inventory
            .database
            .find(entry.name.name(), Some(entry.architecture.as_str()))
            .filter(|installed| installed.is_present())
            .is_some_and(|installed| {
                versions::compare(installed.version_text(), entry.version.as_str()).is_gt()
            })
    })
}

/// Writes the preferences anew if they are not what the registry says: they go when the package is removed, and the registry
/// stays. To be called before the solver is asked, which is refused a version that it could have passed over else. Tells
/// whether they were written.
///
/// # Errors
/// As [`pin`].
pub fn restore(root: &Path, state: &Path) -> Result<bool, TakenBackError> {
    let _lock = lock(state);
    let entries = list(state)?;
    let is_due = is_outdated(root, &entries);
    if is_due {
        save(root, state, &entries)?;
    }
    Ok(is_due)
}

fn same(a: &TakenBack, b: &TakenBack) -> bool {
    a.name.name() == b.name.name() && a.architecture == b.architecture && a.version == b.version
}

fn remove(
    root: &Path,
    state: &Path,
    goes: impl Fn(&TakenBack) -> bool,
) -> Result<Vec<TakenBack>, TakenBackError> {
    let _lock = lock(state);
    let (gone, kept): (Vec<_>, Vec<_>) = list(state)?.into_iter().partition(|entry| goes(entry));
    // A crash between the two files may have left preferences that are older than the registry.
    if !gone.is_empty() || is_outdated(root, &kept) {
        save(root, state, &kept)?;
    }
    Ok(gone)
}

fn is_outdated(root: &Path, entries: &[TakenBack]) -> bool {
    let wanted = (!entries.is_empty()).then(|| preferences(entries).into_bytes());
    fs::read(root.join(PREFERENCES)).ok() != wanted
}

/// The registry first: whatever is pinned can be cleared by name.
fn save(root: &Path, state: &Path, entries: &[TakenBack]) -> Result<(), TakenBackError> {
    let registry = state.join(REGISTRY);
    let text = serde_json::to_vec_pretty(entries).map_err(io::Error::other);
    text.and_then(|text| replace(&registry, &text, 0o600))
        .map_err(|source| TakenBackError::Write { path: registry, source })?;
    let path = root.join(PREFERENCES);
    let written = if entries.is_empty() {
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| sync_parent(&path)),
        }
    } else {
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| replace(&path, preferences(entries).as_bytes(), 0o644))
    };
    written.map_err(|source| TakenBackError::Write { path, source })
}

/// A file of preferences for apt. The header is for whoever finds it.
fn preferences(entries: &[TakenBack]) -> String {
    let mut text = String::from(
        "# Versions that linux-patch-api took back after they had failed on this host. They are not\n\
         # installed again until a newer version comes or somebody clears them:\n\
         #     linux-patch-host clear NAME[=VERSION]\n\
         # This file is generated: what is changed here by hand is lost.\n",
    );
    let mut versions: BTreeMap<(String, &str), BTreeSet<String>> = BTreeMap::new();
    for entry in entries {
        // apt would take a package of architecture `all` by that word for none of its own.
        let package = match entry.architecture.as_str() {
            "all" => entry.name.name().to_owned(),
            architecture => format!("{}:{architecture}", entry.name.name()),
        };
        let why = format!("{} by job {}", entry.at.strftime("%Y-%m-%d"), entry.job);
        versions.entry((package, entry.version.as_str())).or_default().insert(why);
    }
    for ((package, version), why) in versions {
        // Empty lines separate entries for apt, and comments are no entries.
        let why = why.into_iter().collect::<Vec<_>>().join(", ");
        let _ = write!(
            text,
            "\nExplanation: taken back on {why}\nPackage: {package}\nPin: version {version}\nPin-Priority: -1\n"
        );
    }
    text
}

/// Whole or not at all.
fn replace(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let parent = path.parent().unwrap_or(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // apt passes over names with a dot in front.
    let new = parent.join(format!(".{name}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().create_new(true).write(true).mode(mode).open(&new)?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use patch_types::JobId;
    use uuid::Uuid;

    use super::*;

    fn entry(name: &str, architecture: &str, version: &str) -> TakenBack {
        TakenBack {
            name: name.parse().unwrap(),
            architecture: architecture.parse().unwrap(),
            version: version.parse().unwrap(),
            job: JobId(Uuid::nil()),
            at: Timestamp::UNIX_EPOCH,
            reason: "its postinst failed\nPackage: *".to_owned(),
        }
    }

    fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (root, state) = (dir.path().join("root"), dir.path().join("state"));
        fs::create_dir_all(root.join("var/lib/dpkg")).unwrap();
        fs::create_dir(&state).unwrap();
        (dir, root, state)
    }

    fn inventory(root: &Path, version: &str) -> Inventory {
        let text = format!(
            "Package: lp-x\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n"
        );
        fs::write(root.join("var/lib/dpkg/status"), text).unwrap();
        Inventory::read(root).unwrap()
    }

    #[test]
    fn what_is_pinned_is_listed_and_can_be_cleared() {
        let (_dir, root, state) = place();
        let (x, y, all) =
            (entry("lp-x", "amd64", "1.1"), entry("lp-x", "i386", "1.1"), entry("lp-y", "all", "1:2"));
        pin(&root, &state, &[x.clone(), y.clone()]).unwrap();
        pin(&root, &state, &[all.clone(), x.clone()]).unwrap();
        assert_eq!(list(&state).unwrap(), [y.clone(), all.clone(), x.clone()]);
        let text = fs::read_to_string(root.join(PREFERENCES)).unwrap();
        for stanza in [
            "\nPackage: lp-x:amd64\nPin: version 1.1\nPin-Priority: -1\n",
            "\nPackage: lp-x:i386\nPin: version 1.1\nPin-Priority: -1\n",
            "\nPackage: lp-y\nPin: version 1:2\nPin-Priority: -1\n",
        ] {
            assert!(text.contains(stanza), "{text}");
        }
        assert!(!text.contains('*'), "a reason reached apt: {text}");

        let other: PackageVersion = "1.2".parse().unwrap();
        assert_eq!(clear(&root, &state, &x.name, Some(&other)).unwrap(), []);
        assert_eq!(clear(&root, &state, &"lp-x:i386".parse().unwrap(), None).unwrap(), [y]);
        assert_eq!(clear(&root, &state, &x.name, Some(&x.version)).unwrap(), [x]);
        assert_eq!(clear(&root, &state, &all.name, None).unwrap(), [all]);
        assert!(!root.join(PREFERENCES).exists());
        assert_eq!(list(&state).unwrap(), []);
    }

    #[test]
    fn a_version_is_forgotten_once_a_newer_one_is_installed() {
        let (_dir, root, state) = place();
        pin(&root, &state, &[entry("lp-x", "amd64", "1.1"), entry("lp-gone", "all", "3")]).unwrap();
        for installed in ["1.0", "1.1"] {
            assert_eq!(prune(&root, &state, &inventory(&root, installed)).unwrap(), []);
        }
        assert_eq!(prune(&root, &state, &inventory(&root, "1.2")).unwrap(), [entry("lp-x", "amd64", "1.1")]);
        assert!(!fs::read_to_string(root.join(PREFERENCES)).unwrap().contains("lp-x"));
    }

    #[test]
    fn preferences_that_a_crash_left_behind_follow_the_registry() {
        let (_dir, root, state) = place();
        pin(&root, &state, &[entry("lp-x", "amd64", "1.1")]).unwrap();
        fs::write(root.join(PREFERENCES), "Package: old\n").unwrap();
        fs::write(root.join("etc/apt/preferences.d/.linux-patch-taken-back.new"), "half").unwrap();
        assert_eq!(prune(&root, &state, &inventory(&root, "1.0")).unwrap(), []);
        assert!(fs::read_to_string(root.join(PREFERENCES)).unwrap().contains("lp-x"));
        // As when the package is removed, and installed again.
        fs::remove_file(root.join(PREFERENCES)).unwrap();
        assert!(restore(&root, &state).unwrap());
        assert!(fs::read_to_string(root.join(PREFERENCES)).unwrap().contains("lp-x"));
        assert!(!restore(&root, &state).unwrap());
        fs::remove_file(state.join(REGISTRY)).unwrap();
        assert!(restore(&root, &state).unwrap() && !root.join(PREFERENCES).exists());
        assert!(!restore(&root, &state).unwrap());
    }

    #[test]
    fn a_registry_that_is_garbage_is_named_and_kept() {
        let (_dir, root, state) = place();
        for garbage in ["", "{", "[1]", "[{\"name\":\"-x\"}]"] {
            fs::write(state.join(REGISTRY), garbage).unwrap();
            for error in [
                list(&state).unwrap_err(),
                pin(&root, &state, &[entry("lp-x", "all", "1")]).unwrap_err(),
                clear(&root, &state, &"lp-x".parse().unwrap(), None).unwrap_err(),
            ] {
                assert!(error.to_string().contains(REGISTRY), "{error}");
            }
            assert_eq!(fs::read_to_string(state.join(REGISTRY)).unwrap(), garbage);
        }
    }
}
