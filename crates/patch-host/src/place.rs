//! Changing files of the system below a directory: whole or not at all, and never by way of a link.
//!
//! Every directory on the way to a file is entered by itself. One that is a link, that belongs to somebody else than root or
//! whoever runs this, or that others can write in is refused: what is written there could be turned elsewhere.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use patch_types::executor::STATE_DIR;
use rustix::{
    fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, fchmod, fchown, fsync, mkdirat, openat, renameat, unlinkat},
    io::Errno,
    process::geteuid,
};

/// The largest file that is looked at. In bytes.
const LARGEST: u64 = 4 << 20;

/// Why a file cannot be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// The kernel says no.
    #[error("{} cannot be {action}: {error}", path.display())]
    Io { path: PathBuf, action: &'static str, error: io::Error },
    /// Something is in the way.
    #[error("{} is {what}; nothing is written by way of it: look who made it, and move it away", path.display())]
    InTheWay { path: PathBuf, what: &'static str },
}

/// A file as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// What is in it.
    pub(crate) content: Vec<u8>,
    /// Its permissions.
    pub(crate) mode: u32,
    /// Whose it is.
    pub(crate) uid: u32,
    /// Whose group.
    pub(crate) gid: u32,
}

/// The system's files, to be changed.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    root: PathBuf,
}

impl Places {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn failed(&self, path: &Path, action: &'static str) -> impl FnOnce(Errno) -> PlaceError {
        let path = self.root.join(path);
        move |error| match error {
            Errno::LOOP | Errno::NOTDIR => PlaceError::InTheWay { path, what: "a link, or no directory" },
            error => PlaceError::Io { path, action, error: error.into() },
        }
    }

    /// The directory at a relative path; none if it is not there and is not to be made. Those that were made are added.
    fn directory(
        &self,
        path: &Path,
        mut made: Option<&mut Vec<PathBuf>>,
    ) -> Result<Option<OwnedFd>, PlaceError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut here =
            openat(CWD, &self.root, flags, Mode::empty()).map_err(self.failed(Path::new(""), "entered"))?;
        let mut walked = PathBuf::new();
        for name in path.components() {
            walked.push(name);
            let next = match openat(&here, name.as_os_str(), flags | OFlags::NOFOLLOW, Mode::empty()) {
                Err(Errno::NOENT) => {
                    let Some(made) = made.as_deref_mut() else { return Ok(None) };
                    let mode = Mode::from_raw_mode(if walked.starts_with(STATE_DIR) { 0o700 } else { 0o755 });
                    mkdirat(&here, name.as_os_str(), mode).map_err(self.failed(&walked, "made"))?;
                    made.push(walked.clone());
                    let new = openat(&here, name.as_os_str(), flags | OFlags::NOFOLLOW, Mode::empty())
                        .map_err(self.failed(&walked, "entered"))?;
                    fchmod(&new, mode).map_err(self.failed(&walked, "made readable"))?;
                    fsync(&here).map_err(self.failed(&walked, "brought to disk"))?;
                    new
                }
                other => other.map_err(self.failed(&walked, "entered"))?,
            };
            let next = File::from(next);
            let meta = next.metadata().map_err(|error| PlaceError::Io {
                path: self.root.join(&walked),
                action: "looked at",
                error,
            })?;
            if ![0, geteuid().as_raw()].contains(&meta.uid()) || meta.mode() & 0o022 != 0 {
                let what = "a directory in which others can write";
                return Err(PlaceError::InTheWay { path: self.root.join(&walked), what });
            }
            here = next.into();
        }
        Ok(Some(here))
    }

    /// The directory of a file, and the file's name in it.
    fn split(path: &Path) -> (&Path, &Path) {
        (path.parent().unwrap_or(Path::new("")), Path::new(path.file_name().unwrap_or_default()))
    }

    /// The file at a relative path; none if there is nothing.
    ///
    /// # Errors
    /// When it is something else than a file, when a directory on the way is not to be trusted, and those of the system.
    pub(crate) fn look(&self, path: &Path) -> Result<Option<Found>, PlaceError> {
        let (dir, name) = Self::split(path);
        let Some(dir) = self.directory(dir, None)? else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(&dir, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => {
                return Err(PlaceError::InTheWay { path: self.root.join(path), what: "a link" });
            }
            other => File::from(other.map_err(self.failed(path, "opened"))?),
        };
        let io = |error| PlaceError::Io { path: self.root.join(path), action: "read", error };
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() || meta.len() > LARGEST {
            let what = if meta.is_file() { "larger than any such file" } else { "not a file" };
            return Err(PlaceError::InTheWay { path: self.root.join(path), what });
        }
        let mut content = Vec::new();
        file.take(LARGEST).read_to_end(&mut content).map_err(io)?;
        Ok(Some(Found { content, mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid() }))
    }

    /// Puts a file at a relative path, in one step, and says which directories had to be made for it.
    ///
    /// # Errors
    /// As [`Places::look`]. What was there is there still.
    pub(crate) fn put(&self, path: &Path, file: &Found) -> Result<Vec<PathBuf>, PlaceError> {
        // What is there must be a file of which we know that it may be replaced.
        self.look(path)?;
        let (parent, name) = Self::split(path);
        let mut made = Vec::new();
        let Some(dir) = self.directory(parent, Some(&mut made))? else { return Ok(made) };
        // apt, systemd and needrestart pass over names that begin with a dot.
        let draft = PathBuf::from(format!(".{}.linux-patch-new", name.display()));
        match unlinkat(&dir, &draft, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(self.failed(path, "written anew")(error)),
        }
        let written = self.write(&dir, &draft, path, file).and_then(|()| {
            renameat(&dir, &draft, &dir, name).map_err(self.failed(path, "replaced"))?;
            fsync(&dir).map_err(self.failed(path, "brought to disk"))
        });
        if written.is_err() {
            let _ = unlinkat(&dir, &draft, AtFlags::empty());
        }
        written.map(|()| made)
    }

    fn write(&self, dir: &OwnedFd, draft: &Path, path: &Path, file: &Found) -> Result<(), PlaceError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let new =
            openat(dir, draft, flags, Mode::from_raw_mode(0o600)).map_err(self.failed(path, "written"))?;
        let mut new = File::from(new);
        let io = |error| PlaceError::Io { path: self.root.join(path), action: "written", error };
        new.write_all(&file.content).map_err(io)?;
        let meta = new.metadata().map_err(io)?;
        if (meta.uid(), meta.gid()) != (file.uid, file.gid) {
            let (uid, gid) = (Uid::from_raw(file.uid), Gid::from_raw(file.gid));
            fchown(&new, Some(uid), Some(gid)).map_err(self.failed(path, "given to its owner"))?;
        }
        fchmod(&new, Mode::from_raw_mode(file.mode)).map_err(self.failed(path, "given its mode"))?;
        new.sync_all().map_err(io)
    }

    /// Removes the file at a relative path, if it is there.
    ///
    /// # Errors
    /// As [`Places::look`].
    pub(crate) fn remove(&self, path: &Path) -> Result<(), PlaceError> {
        if self.look(path)?.is_none() {
            return Ok(());
        }
        let (parent, name) = Self::split(path);
        let Some(dir) = self.directory(parent, None)? else { return Ok(()) };
        unlinkat(&dir, name, AtFlags::empty()).map_err(self.failed(path, "removed"))?;
        fsync(&dir).map_err(self.failed(path, "brought to disk"))
    }

    /// Removes the directory at a relative path if nothing is in it. Whatever keeps it there is no error.
    pub(crate) fn remove_empty(&self, path: &Path) {
        let (parent, name) = Self::split(path);
        if let Ok(Some(dir)) = self.directory(parent, None) {
            let _ = unlinkat(&dir, name, AtFlags::REMOVEDIR);
        }
    }

    /// Gives a file or a directory other permissions, if it is neither a link nor in the reach of others.
    ///
    /// # Errors
    /// As [`Places::look`].
    pub(crate) fn set_mode(&self, path: &Path, mode: u32) -> Result<(), PlaceError> {
        let (parent, name) = Self::split(path);
        let gone = || PlaceError::Io {
            path: self.root.join(path),
            action: "given its mode",
            error: io::ErrorKind::NotFound.into(),
        };
        let dir = self.directory(parent, None)?.ok_or_else(gone)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(&dir, name, flags, Mode::empty()).map_err(self.failed(path, "opened"))?;
        fchmod(&file, Mode::from_raw_mode(mode)).map_err(self.failed(path, "given its mode"))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    fn file(text: &str, mode: u32) -> Found {
        Found {
            content: text.as_bytes().to_vec(),
            mode,
            uid: geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    #[test]
    fn a_file_is_put_looked_at_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::new(dir.path());
        let path = Path::new("etc/apt/apt.conf.d/20x");
        assert_eq!(places.look(path).unwrap(), None);
        let made = places.put(path, &file("one", 0o644)).unwrap();
        assert_eq!(made, ["etc", "etc/apt", "etc/apt/apt.conf.d"].map(PathBuf::from));
        assert_eq!(places.look(path).unwrap(), Some(file("one", 0o644)));
        assert!(places.put(path, &file("two", 0o600)).unwrap().is_empty());
        assert_eq!(places.look(path).unwrap(), Some(file("two", 0o600)));
        assert_eq!(fs::read_dir(dir.path().join("etc/apt/apt.conf.d")).unwrap().count(), 1);
        places.set_mode(path, 0o640).unwrap();
        assert_eq!(places.look(path).unwrap().unwrap().mode, 0o640);
        places.remove(path).unwrap();
        places.remove(path).unwrap();
        assert_eq!(places.look(path).unwrap(), None);
        made.iter().rev().for_each(|path| places.remove_empty(path));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn no_link_is_followed_and_no_open_directory_used() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let root = dir.path().join("system");
        fs::create_dir_all(root.join("etc/real")).unwrap();
        let places = Places::new(&root);
        symlink("../../secret", root.join("etc/link")).unwrap();
        symlink("real", root.join("etc/dir")).unwrap();
        symlink("nothing", root.join("etc/dangling")).unwrap();
        for path in ["etc/link", "etc/dir/file", "etc/dangling", "etc/real"] {
            let path = Path::new(path);
            for result in [
                places.put(path, &file("x", 0o644)).map(drop),
                places.remove(path),
                places.look(path).map(drop),
            ] {
                assert!(matches!(result, Err(PlaceError::InTheWay { .. })), "{path:?}: {result:?}");
            }
        }
        assert!(places.set_mode(Path::new("etc/link"), 0o777).is_err());
        assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "secret");
        fs::set_permissions(root.join("etc"), fs::Permissions::from_mode(0o777)).unwrap();
        let error = places.put(Path::new("etc/file"), &file("x", 0o644)).unwrap_err();
        assert!(error.to_string().contains("others can write"), "{error}");
    }

    #[test]
    fn a_draft_that_was_left_is_no_hindrance() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::new(dir.path());
        fs::write(dir.path().join(".20x.linux-patch-new"), "half").unwrap();
        places.put(Path::new("20x"), &file("whole", 0o644)).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
