//! The files of the system below a directory.
//!
//! That system may be a foreign one, whose owner is not root of this host: none of its links leads out of it, and nothing
//! that is not a file is read as one.

use std::{
    ffi::OsString,
    fs::{File, Metadata},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::MetadataExt, net::UnixStream},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Dir, Mode, OFlags, ResolveFlags, ftruncate, openat, openat2},
    io::Errno,
};

/// How often a file is looked for again while directories above it are being moved.
const TRIES: u32 = 16;

/// The largest file that is read; none of the root side's is that large. In bytes.
const LARGEST: u64 = 64 << 20;

/// The directory that is the root of all paths here, which are relative.
#[derive(Debug, Clone)]
pub(crate) struct Below {
    root: PathBuf,
}

impl Below {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The whole path, for people. It is not to be opened.
    pub(crate) fn name(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        if self.root == Path::new("/") {
            return Ok(openat(CWD, self.root.join(path), flags, Mode::empty())?);
        }
        let root =
            openat(CWD, &self.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..TRIES {
            match openat2(&root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOSYS) => {
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        "--root needs a kernel of version 5.6 or later, which can keep to a directory",
                    ));
                }
                other => return Ok(other?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// Those of the system; an error of its own if it is no file.
    pub(crate) fn file(&self, path: impl AsRef<Path>) -> io::Result<File> {
        // A pipe would be waited for otherwise. It means nothing to a file.
        let file = File::from(self.open(path.as_ref(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a file")) }
    }

    /// Reads a file, up to a size that none of them has.
    ///
    /// # Errors
    /// As [`Below::file`]; an error of its own if it is too large.
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.file(path)?.take(LARGEST + 1).read_to_end(&mut text)?;
        if text.len() as u64 > LARGEST {
            return Err(io::Error::other(format!("it is larger than {LARGEST} bytes")));
        }
        Ok(text)
    }

    /// Reads a file in a directory that others may write in, up to so many bytes: a link there is not followed.
    ///
    /// # Errors
    /// As [`Below::read`]; that of the system for a link.
    pub(crate) fn read_itself(&self, path: impl AsRef<Path>, most: u64) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        let file = File::from(self.open(path.as_ref(), flags)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let mut text = Vec::new();
        file.take(most.saturating_add(1)).read_to_end(&mut text)?;
        if text.len() as u64 > most {
            return Err(io::Error::other(format!("it is larger than {most} bytes")));
        }
        Ok(text)
    }

    /// Whether something is there; what cannot be looked at is not.
    pub(crate) fn is_there(&self, path: impl AsRef<Path>) -> bool {
        self.open(path.as_ref(), OFlags::PATH | OFlags::NOFOLLOW).is_ok()
    }

    /// What the system says of a file or directory, or of the link that is there.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn metadata(&self, path: impl AsRef<Path>) -> io::Result<Metadata> {
        File::from(self.open(path.as_ref(), OFlags::PATH | OFlags::NOFOLLOW)?).metadata()
    }

    /// What the system says of the file or directory at the end of all links, of which it follows so many as the kernel does.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn target(&self, path: impl AsRef<Path>) -> io::Result<Metadata> {
        File::from(self.open(path.as_ref(), OFlags::PATH)?).metadata()
    }

    /// The names in a directory.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn names(&self, path: impl AsRef<Path>) -> io::Result<Vec<OsString>> {
        let dir = Dir::new(self.open(path.as_ref(), OFlags::RDONLY | OFlags::DIRECTORY)?)?;
        dir.map(|entry| Ok(OsString::from_vec(entry?.file_name().to_bytes().to_vec()))).collect()
    }

    /// Connects to a socket.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn connect(&self, path: impl AsRef<Path>) -> io::Result<UnixStream> {
        if self.root == Path::new("/") {
            return UnixStream::connect(self.name(path));
        }
        let socket = self.open(path.as_ref(), OFlags::PATH)?;
        UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()))
    }

    /// Opens a directory. `/proc/self/fd/N/NAME` then names what is in it.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn directory(&self, path: impl AsRef<Path>) -> io::Result<OwnedFd> {
        self.open(path.as_ref(), OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Opens a file in a directory to append to it, makes it for its owner alone if need be, and empties it above so many
    /// bytes.
    ///
    /// # Errors
    /// Those of the system; an error of its own if the directory belongs to others than whoever runs this, or others may
    /// write there, or if what is there is no file.
    pub(crate) fn append(&self, dir: impl AsRef<Path>, name: &str, most: u64) -> io::Result<File> {
        let dir = File::from(self.open(dir.as_ref(), OFlags::RDONLY | OFlags::DIRECTORY)?);
        let meta = dir.metadata()?;
        if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
            return Err(io::Error::other("others may write in its directory"));
        }
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::NOFOLLOW
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let file = File::from(openat(&dir, name, flags, Mode::from_raw_mode(0o600))?);
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        if meta.len() > most {
            ftruncate(&file, 0)?;
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        os::unix::{
            fs::{PermissionsExt, symlink},
            net::UnixListener,
        },
    };

    use tempfile::TempDir;

    use super::*;

    /// A system, and a file of this host beside it.
    fn system() -> (TempDir, Below) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("system")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let below = Below::new(dir.path().join("system"));
        (dir, below)
    }

    #[test]
    fn no_link_leads_out() {
        let (dir, below) = system();
        let root = below.root().to_owned();
        fs::write(root.join("own"), "own").unwrap();
        for (name, target) in [
            ("absolute", dir.path().join("secret").to_str().unwrap()),
            ("above", "../secret"),
            ("far-above", "../../../../../../../../etc/passwd"),
            ("magic", "/proc/self/fd/0"),
        ] {
            symlink(target, root.join(name)).unwrap();
            assert!(below.read(name).is_err(), "{name}");
        }
        symlink("..", root.join("dir")).unwrap();
        assert!(below.read("dir/secret").is_err());
        assert!(!below.names("dir").unwrap().contains(&"secret".into()));
        symlink("/own", root.join("inside")).unwrap();
        assert_eq!(
            below.read("inside").unwrap(),
            b"own",
            "its own links are followed as it would follow them"
        );
        assert_eq!(below.read("../own").unwrap(), b"own");
        assert!(below.metadata("inside").unwrap().is_symlink() && below.target("inside").unwrap().is_file());
        for name in ["absolute", "above", "far-above", "magic"] {
            assert!(below.target(name).is_err(), "{name}");
        }
        symlink("round", root.join("round")).unwrap();
        assert!(below.target("round").is_err());
    }

    #[test]
    fn only_files_are_read() {
        let (_dir, below) = system();
        fs::create_dir(below.root().join("dir")).unwrap();
        rustix::fs::mknodat(
            CWD,
            below.root().join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        for name in ["dir", "pipe"] {
            assert_eq!(below.read(name).unwrap_err().to_string(), "it is not a file");
            assert!(below.is_there(name));
        }
        assert_eq!(below.read("nothing").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!below.is_there("nothing"));
    }

    #[test]
    fn a_socket_outside_is_not_spoken_to() {
        let (dir, below) = system();
        let outside = dir.path().join("socket");
        let _listener = UnixListener::bind(&outside).unwrap();
        symlink(&outside, below.root().join("socket")).unwrap();
        assert_eq!(below.connect("socket").unwrap_err().kind(), io::ErrorKind::NotFound);
        let _inside = UnixListener::bind(below.root().join("inside")).unwrap();
        below.connect("inside").unwrap();
    }

    #[test]
    fn what_is_appended_to_is_ours_and_bounded() {
        let (dir, below) = system();
        let state = below.root().join("state");
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
        let append = |text: &str| below.append("state", "log", 10)?.write_all(text.as_bytes());
        append("12345678").unwrap();
        append("12345678").unwrap();
        assert_eq!(fs::metadata(state.join("log")).unwrap().len(), 16);
        assert_eq!(fs::metadata(state.join("log")).unwrap().mode() & 0o777, 0o600);
        append("new").unwrap();
        assert_eq!(fs::read_to_string(state.join("log")).unwrap(), "new");
        fs::remove_file(state.join("log")).unwrap();
        symlink(dir.path().join("secret"), state.join("log")).unwrap();
        assert!(append("x").is_err());
        fs::remove_file(state.join("log")).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(append("x").is_err());
        assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "secret");
    }

    #[test]
    fn the_hosts_own_root_is_used_as_it_is() {
        let below = Below::new("/".into());
        assert!(below.is_there("proc/self/stat") && below.file("proc/self/stat").is_ok());
    }
}
