//! What does not go back with the rest: who may ask, what was done, and the proof of it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::SnapshotError;
use crate::{apt::argv::Argv, run};

/// The agent's directories, below the root: the root side's state, by which it is known how far this has come and which nobody
/// but root can fill or disturb, before all others; configuration and certificates (whom somebody has shut out since must not be
/// let in again), the network side's state, the audit trail.
pub const CARRIED: &[&str] = &[
    "var/lib/linux_patch_executor",
    "etc/linux_patch_api",
    "var/lib/linux_patch_api",
    "var/log/linux_patch_api",
];

/// Those in which the network side writes: while it does, they may not be copied whole. They are fetched after the reboot.
pub const RESTLESS: &[&str] = &["var/lib/linux_patch_api", "var/log/linux_patch_api"];

/// How long copying one of them may take.
const LIMIT: Duration = Duration::from_secs(600);

/// What the new one is called until it is whole.
const NEW: &str = ".linux-patch-carried";

fn copy(from: &Path, to: &Path) -> Argv {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Argv::new("/bin/cp", vec!["-a".into(), "--reflink=auto".into(), "--".into(), text(from), text(to)])
}

/// Puts a copy of a directory in the place of another one, in one step. There is none afterwards if there was none.
///
/// # Errors
/// When it cannot be copied; the other one is as it was then.
pub fn replace(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    let mut name = to.as_os_str().to_owned();
    name.push(NEW);
    let new = PathBuf::from(name);
    let remove = |path: &Path| match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SnapshotError::file(path, error)),
        _ => Ok(()),
    };
    remove(&new)?;
    match fs::symlink_metadata(from) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return remove(to),
        Err(error) => return Err(SnapshotError::file(from, error)),
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(|error| SnapshotError::file(parent, error))?;
    }
    let argv = copy(from, &new);
    let said = run::capture(&argv, LIMIT)?;
    if said.code != Some(0) {
        let _ = remove(&new);
        return Err(SnapshotError::Tool {
            command: argv.to_string(),
            said: said.text().trim().replace('\n', "; "),
        });
    }
    // The other one goes in a moment, and this one must be on the disk by then.
    sync(&new)?;
    let moved = if fs::symlink_metadata(to).is_ok() {
        renameat_with(CWD, &new, CWD, to, RenameFlags::EXCHANGE)
    } else {
        renameat_with(CWD, &new, CWD, to, RenameFlags::NOREPLACE)
    };
    moved.map_err(|error| SnapshotError::file(to, error.into()))?;
    sync(to)?;
    remove(&new)
}

/// Brings the file system of a directory to the disk.
///
/// # Errors
/// When that fails.
pub fn sync(directory: &Path) -> Result<(), SnapshotError> {
    File::open(directory)
        .and_then(|directory| rustix::fs::syncfs(directory).map_err(io::Error::from))
        .map_err(|error| SnapshotError::file(directory, error))
}

/// One of these directories whose place is reached by a link: in another tree that would lead back to this one.
///
/// # Errors
/// When one cannot be looked at.
pub fn linked() -> Result<Option<PathBuf>, SnapshotError> {
    for directory in CARRIED {
        let path = Path::new("/").join(directory);
        let Some(parent) = path.parent() else { continue };
        match fs::canonicalize(parent) {
            Ok(real) if real == parent => {}
            Ok(_) => return Ok(Some(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(SnapshotError::file(parent, error)),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("deep/to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/f"), "1").unwrap();
        replace(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("sub/f")).unwrap(), "1");
        fs::write(from.join("sub/f"), "2").unwrap();
        fs::write(to.join("only here"), "").unwrap();
        // Left by somebody who died of it.
        fs::create_dir(dir.path().join(format!("deep/to{NEW}"))).unwrap();
        replace(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("sub/f")).unwrap(), "2");
        assert!(!to.join("only here").exists());
        assert_eq!(fs::read_dir(dir.path().join("deep")).unwrap().count(), 1);
        fs::remove_dir_all(&from).unwrap();
        replace(&from, &to).unwrap();
        assert!(!to.exists());
    }
}
