//! The distribution's own updater: switched off and on by one file of apt's, and asked whether it is at work.
//!
//! To be called by whoever has the lock of who patches.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use patch_types::{
    LockHolder,
    policy::{SWITCH, SWITCHED_OFF},
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{argv, lock};
use crate::run;

/// The draft of the switch: apt passes over names that begin with a dot.
const DRAFT: &str = ".99linux-patch-agent-mode.linux-patch-new";

/// The lock that unattended-upgrades has from its beginning to its end, between its steps too. Not by way of `/var/run`,
/// which leads out of a root.
const AT_WORK: &str = "run/unattended-upgrades.lock";

/// The lock that apt's timers hold from before they read their settings.
const TIMERS: &str = "var/lib/apt/daily_lock";

/// How long apt may take to say what is set.
const ASKED: Duration = Duration::from_secs(30);

/// Why the updater cannot be switched.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The file cannot be put there or taken away.
    #[error("{path} cannot be changed: {source}")]
    File {
        /// It.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is there, and something else counts.
    #[error(
        "/{SWITCH} has no effect: apt-config says APT::Periodic::Unattended-Upgrade {0:?}; the last file that sets it counts, so look \
         for one that is read later, such as /etc/apt/apt.conf"
    )]
    NoEffect(String),
    /// apt does not say.
    #[error("whether unattended-upgrades is off cannot be told: {0}")]
    Unknown(String),
}

/// Whether the switch is there as it should be. Nothing that it may be a link to is looked at.
///
/// # Errors
/// When it cannot be told, or something else than a file is in its place.
pub fn is_off(root: &Path) -> Result<bool, SwitchError> {
    let path = root.join(SWITCH);
    look(&path).map(|text| text.is_some_and(|text| text == SWITCHED_OFF)).map_err(failed(&path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> SwitchError {
    let path = path.to_owned();
    move |source| SwitchError::File { path, source }
}

/// What is in the switch; none if there is none.
fn look(path: &Path) -> io::Result<Option<String>> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => {
            return Err(io::Error::other("it is a link, or no file; look who made it, and move it away"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut text = Vec::new();
    File::open(path)?.take(64 << 10).read_to_end(&mut text)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// Switches the updater off, durably, whatever was there before.
///
/// # Errors
/// When it cannot; then what was there is there still.
pub fn switch_off(root: &Path) -> Result<(), SwitchError> {
    let path = root.join(SWITCH);
    put(&path).map_err(failed(&path))
}

fn put(path: &Path) -> io::Result<()> {
    look(path)?;
    let draft = path.with_file_name(DRAFT);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(&draft)?;
    let written = file
        .write_all(SWITCHED_OFF.as_bytes())
        .and_then(|()| file.set_permissions(Permissions::from_mode(0o644)))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written.and_then(|()| sync_directory(path))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// Lets the updater do again what it is set to.
///
/// # Errors
/// When the file cannot be taken away.
pub fn give_back(root: &Path) -> Result<(), SwitchError> {
    let path = root.join(SWITCH);
    let gone = match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        gone => gone,
    };
    gone.and_then(|()| sync_directory(&path)).map_err(failed(&path))
}

/// apt's timers do nothing where this is not there, whatever is set.
const PROGRAM: &str = "/usr/bin/unattended-upgrade";

/// Whether the updater is off in apt's own eyes, or not there at all. A system that does not run has none.
///
/// # Errors
/// When it is not, or apt does not say.
pub fn is_off_for_apt(root: &Path) -> Result<(), SwitchError> {
    if root != Path::new("/") || !Path::new(PROGRAM).exists() {
        return Ok(());
    }
    let said = run::capture(&argv::unattended_upgrade(), ASKED)
        .map_err(|error| SwitchError::Unknown(error.to_string()))?;
    if said.code != Some(0) {
        return Err(SwitchError::Unknown(format!("apt-config says: {}", said.stderr.trim())));
    }
    let set = set_to(&said.stdout);
    if set == "0" { Ok(()) } else { Err(SwitchError::NoEffect(set.to_owned())) }
}

/// The value in what `apt-config shell` prints; empty if it is not set.
fn set_to(printed: &str) -> &str {
    let value = printed.lines().find_map(|line| line.trim().strip_prefix("VALUE="));
    value.map_or("", |value| value.trim_matches('\''))
}

/// Whoever is at work, or about to be by what was set before: unattended-upgrades itself, or one of apt's timers.
///
/// # Errors
/// When a lock cannot be asked about.
pub fn at_work(root: &Path) -> io::Result<Option<LockHolder>> {
    if let Some(holder) = lock::holder_of(&root.join(AT_WORK))? {
        return Ok(Some(holder));
    }
    let path = root.join(TIMERS);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Such a lock cannot be asked about. A timer waits for it, so holding it together with others for an instant harms nobody.
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => {
            Ok(Some(LockHolder { lock: path.display().to_string(), pid: None, command: None }))
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_switch_is_put_there_whole_and_taken_away() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert!(switch_off(root).is_err(), "there is no such directory");
        let dir = root.join("etc/apt/apt.conf.d");
        fs::create_dir_all(&dir).unwrap();
        assert!(!is_off(root).unwrap());
        give_back(root).unwrap();
        // What an earlier one left.
        fs::write(dir.join(DRAFT), "torn").unwrap();
        switch_off(root).unwrap();
        assert!(is_off(root).unwrap());
        assert_eq!(fs::metadata(root.join(SWITCH)).unwrap().permissions().mode() & 0o777, 0o644);
        fs::write(root.join(SWITCH), "").unwrap();
        assert!(!is_off(root).unwrap(), "somebody has emptied it");
        switch_off(root).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        give_back(root).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn no_link_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir_all(root.join("etc/apt/apt.conf.d")).unwrap();
        fs::write(root.join("precious"), "precious").unwrap();
        symlink("../../../precious", root.join(SWITCH)).unwrap();
        assert!(switch_off(root).unwrap_err().to_string().contains("move it away"));
        assert!(is_off(root).is_err());
        assert_eq!(fs::read_to_string(root.join("precious")).unwrap(), "precious");
    }

    #[test]
    fn what_apt_prints_is_understood() {
        assert_eq!(set_to("VALUE='0'\n"), "0");
        assert_eq!(set_to("VALUE='always'\n"), "always");
        assert_eq!(set_to(""), "");
    }

    #[test]
    fn a_timer_at_work_is_seen_and_not_disturbed() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(at_work(root).unwrap(), None);
        fs::create_dir_all(root.join("var/lib/apt")).unwrap();
        fs::create_dir_all(root.join("run")).unwrap();
        fs::write(root.join(AT_WORK), "").unwrap();
        let held = File::create(root.join(TIMERS)).unwrap();
        assert_eq!(at_work(root).unwrap(), None);
        flock(&held, FlockOperation::LockExclusive).unwrap();
        assert!(at_work(root).unwrap().unwrap().lock.ends_with("daily_lock"));
        flock(&held, FlockOperation::Unlock).unwrap();
        assert_eq!(at_work(root).unwrap(), None);
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}
