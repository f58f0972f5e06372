//! Reading files that are configured, and that may be something else than a file by mistake or malice.
//!
//! A named pipe in such a place would hold whoever opens it up for good, a device may act on being opened, and either may
//! never end. So what is no regular file is not opened, and what is longer than expected is refused. Links are followed: who
//! may put one there is another question.

use std::{
    fs::{self, File, FileType, Metadata},
    io::{self, Read as _},
    os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::OFlags;

/// Opens a regular file, without ever waiting.
///
/// # Errors
/// Those of opening; and `InvalidInput` for what is no regular file, with what it is.
pub fn open(path: &Path) -> io::Result<File> {
    open_with(path).map(|(file, _)| file)
}

fn open_with(path: &Path) -> io::Result<(File, Metadata)> {
    // Looked at first: a tape or a watchdog notices that it is opened.
    regular(&fs::metadata(path)?)?;
    // Not blocking, in case it became a pipe meanwhile.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    regular(&meta)?;
    Ok((file, meta))
}

/// Reads a regular file whole that holds at most so many bytes.
///
/// # Errors
/// Those of [`open`] and of reading; and `FileTooLarge` for a longer one.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, meta) = open_with(path)?;
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len().min(most)).unwrap_or_default());
    // One more byte tells one that is too long from one that just fits; it may have grown since it was looked at.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let what = format!("it is longer than {most} bytes; nothing of the kind is");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(bytes)
}

/// As [`read`], of text.
///
/// # Errors
/// Those of [`read`]; and `InvalidData` for what is no UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read(path, most)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

fn regular(meta: &Metadata) -> io::Result<()> {
    if meta.is_file() {
        return Ok(());
    }
    let what = format!("it is {}, not a regular file; replace it by one", kind(meta.file_type()));
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

fn kind(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a named pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::symlink, net::UnixListener},
        path::PathBuf,
    };

    use rustix::fs::{CWD, Mode};

    use super::*;

    /// One of each kind that is no file, with what it is called; as far as whoever runs this can make it.
    fn strangers(directory: &Path) -> Vec<(PathBuf, &'static str)> {
        let place = |name: &str| directory.join(name);
        rustix::fs::mkfifoat(CWD, place("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
        drop(UnixListener::bind(place("socket")).unwrap());
        fs::create_dir(place("directory")).unwrap();
        symlink("pipe", place("link")).unwrap();
        vec![
            (place("pipe"), "a named pipe"),
            (place("socket"), "a socket"),
            (place("directory"), "a directory"),
            (place("link"), "a named pipe"),
            (PathBuf::from("/dev/zero"), "a device"),
        ]
    }

    #[test]
    fn what_is_no_file_is_named_and_waited_for_by_nobody() {
        let directory = tempfile::tempdir().unwrap();
        for (path, what) in strangers(directory.path()) {
            for error in [
                open(&path).map(drop).unwrap_err(),
                read(&path, 10).map(drop).unwrap_err(),
                read_text(&path, 10).map(drop).unwrap_err(),
            ] {
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}: {error}");
                assert!(error.to_string().contains(what), "{path:?}: {error}");
            }
        }
    }

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "123").unwrap();
        symlink("file", directory.path().join("link")).unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"123");
        assert_eq!(read_text(&directory.path().join("link"), 3).unwrap(), "123");
        assert_eq!(read(&path, 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path, 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(&directory.path().join("none"), 3).unwrap_err().kind(), io::ErrorKind::NotFound);
        // As the kernel's own files are: they say that they are empty.
        assert!(!read(Path::new("/proc/self/status"), 1 << 16).unwrap().is_empty());
    }
}
