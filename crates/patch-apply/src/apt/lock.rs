//! Who holds apt's and dpkg's locks.

use std::{fs::File, io, os::unix::fs::OpenOptionsExt as _, path::Path};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use patch_types::LockHolder;

/// What a run is going to lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locks {
    /// Changing packages: the front end's lock, dpkg's own, and the archives'.
    Packages,
    /// Fetching indexes.
    Indexes,
    /// The package database alone: held by a dpkg that works, also when the apt that started it is dead and the front
    /// end's lock is free.
    Database,
}

impl Locks {
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Packages => {
                &["var/lib/dpkg/lock-frontend", "var/lib/dpkg/lock", "var/cache/apt/archives/lock"]
            }
            Self::Indexes => &["var/lib/apt/lists/lock"],
            Self::Database => &["var/lib/dpkg/lock"],
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
        if let Some(holder) = holder_of(&root.join(file))? {
            return Ok(Some(holder));
        }
    }
    Ok(None)
}

/// The same for one file, which need not be there.
pub(crate) fn holder_of(path: &Path) -> io::Result<Option<LockHolder>> {
    // Write access is what makes the kernel compare with write locks; the file is not written.
    let lock = match File::options().read(true).write(true).open(path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut found = whole_file();
    fcntl(&lock, FcntlArg::F_GETLK(&mut found))?;
    if i32::from(found.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    // A lock of an open file, such as [`Frontend`]'s, belongs to no process: the kernel says -1.
    let pid = u32::try_from(found.l_pid).ok().filter(|pid| *pid != 0);
    Ok(Some(LockHolder { lock: path.display().to_string(), pid, command: pid.and_then(command_line) }))
}

/// A write lock on all of a file.
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The front end's lock of apt and dpkg, held until this is dropped. While it is held, apt and dpkg refuse to change
/// anything, except for those that are told so by `DPKG_FRONTEND_LOCKED` in their environment.
///
/// It is a lock of the open file. apt's and dpkg's belong to a process and would be gone as soon as this process closed
/// any descriptor of the same file, which [`holder`] does; against those of others both kinds count alike.
#[derive(Debug)]
pub struct Frontend {
    /// Closing it lets go.
    _file: File,
}

impl Frontend {
    /// Takes the lock; `None` if somebody else holds it (see [`holder`]). Does not wait.
    ///
    /// # Errors
    /// When the lock file cannot be opened or made, or the kernel refuses for another reason.
    pub fn take(root: &Path) -> io::Result<Option<Self>> {
        // Emptying it would be a change of a file that others use; the mode is the one that apt gives it.
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(root.join("var/lib/dpkg/lock-frontend"))?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => Ok(Some(Self { _file: file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
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
