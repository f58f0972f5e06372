//! Paths as dpkg records them, found below a root, and files that are written whole or not at all.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::OpenOptionsExt,
        },
    },
    path::{Path, PathBuf},
};

use md5::{Digest, Md5};
use rustix::fs::{Mode, OFlags, ResolveFlags};

/// A path as text: itself if it is UTF-8, its bytes in hexadecimal if it is not. Only the former begins with `/`.
#[must_use]
pub fn to_text(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if text.starts_with('/') => text.to_owned(),
        _ => hex::encode(path),
    }
}

/// The bytes of a path that [`to_text`] made into text. What is neither is taken as it is.
#[must_use]
pub fn from_text(text: &str) -> Vec<u8> {
    if text.starts_with('/') {
        return text.as_bytes().to_vec();
    }
    hex::decode(text).unwrap_or_else(|_| text.as_bytes().to_vec())
}

/// Finds paths below a root. On a root other than `/`, symbolic links mean what they mean inside it, so that none leads
/// out; the last part of a path is never followed.
#[derive(Debug)]
pub struct Below {
    /// The root's directory; none for `/`, where the kernel's own reading is right.
    root: Option<OwnedFd>,
    parents: HashMap<Vec<u8>, Option<PathBuf>>,
}

impl Below {
    /// Opens a root.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn new(root: &Path) -> io::Result<Self> {
        let root = if root == Path::new("/") {
            None
        } else {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Some(rustix::fs::open(root, flags, Mode::empty())?)
        };
        Ok(Self { root, parents: HashMap::new() })
    }

    /// Where an absolute path of the root is found on this host. Its parts `.` and `..` are left out.
    ///
    /// # Errors
    /// When its parent does not exist or is no directory.
    pub fn find(&mut self, path: &[u8]) -> io::Result<PathBuf> {
        let clean: PathBuf = Path::new(OsStr::from_bytes(path))
            .components()
            .filter(|part| matches!(part, std::path::Component::Normal(_)))
            .collect();
        let Some(root) = &self.root else { return Ok(Path::new("/").join(clean)) };
        let parent = clean.parent().unwrap_or(Path::new(""));
        let found = match self.parents.get(parent.as_os_str().as_bytes()) {
            Some(known) => known.clone(),
            None => {
                let found = resolve(root, parent).ok();
                self.parents.insert(parent.as_os_str().as_bytes().to_vec(), found.clone());
                found
            }
        };
        let found = found.ok_or(io::ErrorKind::NotFound)?;
        Ok(match clean.file_name() {
            Some(name) => found.join(name),
            None => found,
        })
    }

    /// What is at a path, a symbolic link itself and not what it points to.
    ///
    /// # Errors
    /// Those of looking, `NotFound` among them.
    pub fn look(&mut self, path: &[u8]) -> io::Result<Metadata> {
        fs::symlink_metadata(self.find(path)?)
    }

    /// Where a symbolic link finally points, as a path of the root and as one of this host; none if to nothing.
    #[must_use]
    pub fn follow(&self, path: &[u8]) -> Option<(Vec<u8>, PathBuf)> {
        let relative = Path::new(OsStr::from_bytes(path)).strip_prefix("/").ok()?;
        match &self.root {
            None => {
                let found = fs::canonicalize(Path::new("/").join(relative)).ok()?;
                Some((found.as_os_str().as_bytes().to_vec(), found))
            }
            Some(root) => {
                let top = resolve(root, Path::new("")).ok()?;
                let found = resolve(root, relative).ok()?;
                let inside = found.strip_prefix(top).ok()?;
                Some((Path::new("/").join(inside).into_os_string().into_vec(), found))
            }
        }
    }
}

fn resolve(root: &OwnedFd, path: &Path) -> io::Result<PathBuf> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Opens a regular file for reading, without waiting for a named pipe's writer and without following a link.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// MD5 of a stream in hexadecimal: dpkg's measure of "unchanged", not a proof of anything.
pub(crate) fn md5_of(mut reader: impl Read) -> io::Result<String> {
    let mut hash = Md5::new();
    pump(&mut reader, |piece| {
        hash.update(piece);
        Ok(())
    })?;
    Ok(hex::encode(hash.finalize()))
}

/// Hands a stream on in pieces.
pub(crate) fn pump(reader: &mut impl Read, mut piece: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => piece(buffer.get(..n).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes what happened in a directory outlast a power cut.
pub(crate) fn sync_dir(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Writes a file whole or not at all, readable by its owner alone, on disk when this returns.
pub(crate) fn write_whole(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = directory.join(format!("{name}.new"));
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, directory.join(name))?;
    sync_dir(directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn links_do_not_lead_out_of_a_root() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        fs::write(root.path().join("usr/lib/x"), "x").unwrap();
        symlink("/usr/lib", root.path().join("lib")).unwrap();
        symlink("/../../../etc", root.path().join("out")).unwrap();
        let mut below = Below::new(root.path()).unwrap();
        assert!(below.look(b"/lib/x").unwrap().is_file());
        assert!(below.look(b"/lib").unwrap().is_symlink());
        assert!(below.look(b"/out/passwd").is_err());
        assert!(below.find(b"/../../etc/passwd").is_err());
        assert!(below.find(b"/.").unwrap().starts_with(root.path()));
        assert_eq!(below.follow(b"/lib/x").unwrap().0, b"/usr/lib/x");
    }

    proptest! {
        #[test]
        fn every_path_survives_being_text(rest in prop::collection::vec(any::<u8>(), 0..40)) {
            let path = [b"/".as_slice(), &rest].concat();
            prop_assert_eq!(from_text(&to_text(&path)), path);
        }

        #[test]
        fn any_text_is_some_path(text in ".*") {
            let _ = from_text(&text);
        }
    }
}
