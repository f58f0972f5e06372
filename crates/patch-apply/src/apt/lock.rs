//! Who holds apt's and dpkg's locks.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use patch_types::LockHolder;
use rustix::process::{Flock, FlockType, fcntl_getlk};

/// What a run is going to lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locks {
    /// Changing packages: the front end's lock, dpkg's own, and the archives'.
    Packages,
    /// Fetching indexes.
    Indexes,
}

impl Locks {
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Packages => {
                &["var/lib/dpkg/lock-frontend", "var/lib/dpkg/lock", "var/cache/apt/archives/lock"]
            }
            Self::Indexes => &["var/lib/apt/lists/lock"],
        }
    }
}

/// The first of the locks that another process holds, and who that is. Takes no lock itself: it only asks the kernel,
/// so it can disturb nobody.
///
/// # Errors
/// When a lock file exists but cannot be opened or asked about.
pub fn holder(root: &Path, locks: Locks) -> io::Result<Option<LockHolder>> {
    for file in locks.files() {
        let path: PathBuf = root.join(file);
        // Write access is what makes the kernel compare with write locks; the file is not written.
        let lock = match File::options().read(true).write(true).open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if let Some(found) = fcntl_getlk(&lock, &Flock::from(FlockType::WriteLock))? {
            let pid = found.pid.map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
            return Ok(Some(LockHolder {
                lock: path.display().to_string(),
                pid,
                command: pid.and_then(command_line),
            }));
        }
    }
    Ok(None)
}

/// A process's command line as one text, bounded, with control characters replaced.
#[must_use]
pub fn command_line(pid: u32) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text: String = String::from_utf8_lossy(&bytes)
        .trim_end_matches('\0')
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, process::Stdio};

    use super::*;

    #[test]
    fn a_free_or_absent_lock_has_no_holder() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(holder(root.path(), Locks::Packages).unwrap(), None);
        std::fs::create_dir_all(root.path().join("var/lib/dpkg")).unwrap();
        std::fs::write(root.path().join("var/lib/dpkg/lock-frontend"), "").unwrap();
        assert_eq!(holder(root.path(), Locks::Packages).unwrap(), None);
    }

    #[test]
    fn the_holder_is_named_with_its_command() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("var/lib/apt/lists")).unwrap();
        let lock = root.path().join("var/lib/apt/lists/lock");
        std::fs::write(&lock, "").unwrap();
        // A record lock belongs to a process, so another one has to hold it.
        let script = "import fcntl,sys\nf=open(sys.argv[1],'r+')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint('locked',flush=True)\nsys.stdin.read()";
        let mut child = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(&lock)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 7];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let found = holder(root.path(), Locks::Indexes).unwrap().unwrap();
        assert_eq!(found.pid, Some(child.id()));
        assert!(found.command.unwrap().contains(" -c import fcntl"));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(holder(root.path(), Locks::Indexes).unwrap(), None);
    }
}
