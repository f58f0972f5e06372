//! The files of a trail: which there are, in which order, plain or compressed; compressing them, and removing old ones.
//!
//! Beside `audit.log` lie `audit.log.DAY`, `audit.log.DAY.N` when a day has several, each of these also with `.gz`, and
//! `audit.log.set-aside-TIME`. Where a file is there plain and compressed, both are whole: the compressed one gets its
//! name when it is complete and on disk, and only then the plain one goes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use jiff::{Timestamp, tz::TimeZone};
use sha2::{Digest as _, Sha256};

use crate::chain::{Head, Link, read_line};

const GZ: &str = ".gz";
/// A compressed file that is not complete.
const PART: &str = ".gz.part";
const SET_ASIDE: &str = "set-aside-";

/// One file of a trail as it was when it was opened: what is written meanwhile belongs to the next look.
#[derive(Debug)]
pub struct TrailFile {
    path: PathBuf,
    file: File,
    size: u64,
    is_live: bool,
    is_compressed: bool,
}

impl TrailFile {
    /// None if there is no such file (any more).
    fn open(path: PathBuf, is_live: bool) -> io::Result<Option<Self>> {
        // The directory is the writer's: neither a link nor a pipe in it may lead a reader that is root astray.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        match opened.and_then(|file| Ok((file.metadata()?, file))) {
            Ok((meta, file)) if meta.is_file() => {
                let is_compressed = path.to_string_lossy().ends_with(GZ);
                Ok(Some(Self { size: meta.len(), path, file, is_live, is_compressed }))
            }
            Ok(_) => Err(io::Error::other(format!("{} is not a regular file", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }

    /// Opens a file that was set aside. The present file is, which is plain: whatever has another name in that place is
    /// taken as it lies there, and nothing of it is unpacked.
    fn open_aside(path: PathBuf) -> io::Result<Option<Self>> {
        Ok(Self::open(path, false)?.map(|file| Self { is_compressed: false, ..file }))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the one that is being written.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.is_live
    }

    /// Its lines.
    #[must_use]
    pub fn reader(self) -> Box<dyn BufRead + Send> {
        let bounded = self.file.take(self.size);
        if self.is_compressed {
            Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(BufReader::new(bounded))))
        } else {
            Box::new(BufReader::with_capacity(1 << 16, bounded))
        }
    }

    fn inode(&self) -> Option<(u64, u64)> {
        self.file.metadata().ok().map(|meta| (meta.dev(), meta.ino()))
    }

    /// The number of its first record.
    pub(crate) fn first_seq(self) -> Option<u64> {
        let mut line = Vec::new();
        let complete = read_line(&mut self.reader(), &mut line).ok()??;
        if complete { Link::parse(&line).map(|link| link.seq) } else { None }
    }
}

/// The files of a trail.
#[derive(Debug, Default)]
pub struct Trail {
    /// Those of the chain, oldest first; the present one last, if it is there.
    pub files: Vec<TrailFile>,
    /// Those that were found damaged and set aside.
    pub set_aside: Vec<TrailFile>,
    /// Which of them cannot be opened, and why. The others are no less worth reading for that.
    pub unopened: Vec<io::Error>,
}

impl Trail {
    /// Opens all files.
    ///
    /// # Errors
    /// When the directory or one of the files of the chain cannot be read.
    pub fn open(log: &Path) -> io::Result<Self> {
        let mut trail = Self::open_once(log)?;
        // A file that was begun meanwhile may say which others are gone. Nobody begins so many in a row.
        for _ in 0..8 {
            let there = fs::symlink_metadata(log).ok().map(|meta| (meta.dev(), meta.ino()));
            let ours = trail.files.last().filter(|file| file.is_live).and_then(TrailFile::inode);
            if there == ours {
                break;
            }
            trail = Self::open_once(log)?;
        }
        Ok(trail)
    }

    fn open_once(log: &Path) -> io::Result<Self> {
        // The present file comes first: if a new day begins meanwhile it is listed once more, and recognised.
        let live = TrailFile::open(log.to_owned(), true)?;
        let directory = log.parent().unwrap_or(Path::new("/"));
        fs::read_dir(directory)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", directory.display())))?;
        let mut trail = Self::default();
        for former in former(log) {
            // One that is gone by now was too old to be kept.
            let Some(file) = former.open()? else { continue };
            if live.as_ref().is_none_or(|live| live.inode() != file.inode()) {
                trail.files.push(file);
            }
        }
        trail.files.extend(live);
        for path in set_aside(log) {
            match TrailFile::open_aside(path) {
                Ok(file) => trail.set_aside.extend(file),
                Err(error) => trail.unopened.push(error),
            }
        }
        Ok(trail)
    }
}

/// A rotated file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Former {
    /// Its day, as its name has it.
    pub(crate) day: String,
    /// Which of that day.
    number: u64,
    /// Its path without the suffix of compression.
    plain: PathBuf,
}

impl Former {
    fn compressed(&self) -> PathBuf {
        with_suffix(&self.plain, GZ)
    }

    pub(crate) fn name(&self) -> String {
        self.plain.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Opens it in the form that is there.
    pub(crate) fn open(&self) -> io::Result<Option<TrailFile>> {
        match TrailFile::open(self.plain.clone(), false)? {
            Some(file) => Ok(Some(file)),
            // It may have been compressed between the look and this.
            None => TrailFile::open(self.compressed(), false),
        }
    }

    /// The number of its first record.
    pub(crate) fn first_seq(&self) -> Option<u64> {
        self.open().ok()??.first_seq()
    }

    /// The day of its last change, as names have it.
    fn written(&self) -> Option<String> {
        let modified = self.open().ok()??.file.metadata().ok()?.modified().ok()?;
        Some(day_name(day_of(Timestamp::try_from(modified).ok()?)))
    }

    /// Removes it.
    pub(crate) fn remove(&self) {
        // What cannot be removed now is looked at again at the next rotation.
        let _ = fs::remove_file(&self.plain);
        let _ = fs::remove_file(self.compressed());
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// Whether a name is taken, plain or compressed.
pub(crate) fn is_taken(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok() || fs::symlink_metadata(with_suffix(path, GZ)).is_ok()
}

/// The rotated files, oldest first, each once.
pub(crate) fn former(log: &Path) -> Vec<Former> {
    let mut former: Vec<_> = siblings(log)
        .filter_map(|(path, suffix)| {
            if suffix.ends_with(PART) {
                return None;
            }
            let (suffix, plain) = match suffix.strip_suffix(GZ) {
                Some(bare) => (bare, path.with_extension("")),
                None => (suffix.as_str(), path.clone()),
            };
            let (day, number) = match suffix.split_once('.') {
                Some((day, number)) => (day, number.parse().ok()?),
                None => (suffix, 0),
            };
            // Names are compared as text, so only the usual spelling of a day counts.
            day.parse::<jiff::civil::Date>().ok().filter(|date| date.to_string() == day)?;
            Some(Former { day: day.to_owned(), number, plain })
        })
        .collect();
    former.sort();
    former.dedup();
    former
}

/// The name that a file with records up to this day gets when it is rotated. It sorts after all that are there, whatever
/// the clock says and whichever of them have been removed: the order of the names is the order of the records. None if
/// there is no such name.
pub(crate) fn next_name(log: &Path, day: &str) -> Option<PathBuf> {
    let newest = former(log).pop();
    let (day, mut number) = match &newest {
        Some(newest) if newest.day.as_str() >= day => (newest.day.as_str(), newest.number.checked_add(1)?),
        _ => (day, 0),
    };
    loop {
        let suffix = if number == 0 { format!(".{day}") } else { format!(".{day}.{number}") };
        let name = with_suffix(log, &suffix);
        if !is_taken(&name) {
            return Some(name);
        }
        // By something that is not a file of the trail.
        number = number.checked_add(1)?;
    }
}

/// The files of a trail that were found damaged and set aside, oldest first. Empty if the directory cannot be read. What is no
/// file counts as well: whoever puts something else in the place of one must not make it look as if there had been none.
#[must_use]
pub fn set_aside(log: &Path) -> Vec<PathBuf> {
    let aside = beside(log).filter(|(_, suffix, _)| suffix.starts_with(SET_ASIDE));
    let mut paths: Vec<_> = aside.map(|(path, ..)| path).collect();
    paths.sort();
    paths
}

/// Files beside ours whose names are ours and a suffix.
fn siblings(path: &Path) -> impl Iterator<Item = (PathBuf, String)> {
    beside(path).filter_map(|(path, suffix, kind)| kind.is_file().then_some((path, suffix)))
}

/// What is beside ours and has our name and a suffix.
fn beside(path: &Path) -> impl Iterator<Item = (PathBuf, String, fs::FileType)> {
    let prefix = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let entries = path.parent().and_then(|directory| fs::read_dir(directory).ok());
    entries.into_iter().flatten().flatten().filter_map(move |entry| {
        let name = entry.file_name().into_string().ok()?;
        let suffix = name.strip_prefix(&prefix)?.to_owned();
        Some((entry.path(), suffix, entry.file_type().ok()?))
    })
}

/// The rotated files that are older than they are kept. The present file is never one of them.
pub(crate) fn outdated(log: &Path, now: Timestamp, keep_days: u32) -> Vec<Former> {
    let today = day_name(day_of(now));
    let oldest = day_name(day_of(now).saturating_sub(u64::from(keep_days)));
    let is_outdated = |former: &Former| {
        if former.day <= today {
            return former.day < oldest;
        }
        // Its name comes from a clock that was ahead once.
        former.written().is_some_and(|day| day < oldest)
    };
    former(log).into_iter().take_while(is_outdated).collect()
}

/// The last record of the rotated files, and of those set aside, whichever is the highest.
pub(crate) fn last_of_siblings(log: &Path) -> Option<Head> {
    let of = |file: TrailFile| {
        let mut reader = file.reader();
        let (mut line, mut last) = (Vec::new(), None);
        while let Ok(Some(true)) = read_line(&mut reader, &mut line) {
            if let Some(link) = Link::parse(&line).filter(|link| link.written == link.computed) {
                last = Some(link.head());
            }
        }
        last
    };
    // By their records: names were given by clocks.
    let mut former = former(log);
    former.sort_by_cached_key(Former::first_seq);
    let rotated = former.into_iter().rev().find_map(|former| of(former.open().ok()??));
    let aside = set_aside(log).into_iter().filter_map(|path| of(TrailFile::open_aside(path).ok()??));
    aside.chain(rotated).max_by_key(|head| head.seq)
}

/// Compresses the rotated files that are not compressed yet, until told to stop.
pub(crate) fn compress_all(log: &Path, stop: &AtomicBool) -> io::Result<()> {
    for (path, suffix) in siblings(log) {
        if suffix.ends_with(PART) {
            // Left by a process that ended while it compressed.
            let _ = fs::remove_file(path);
        }
    }
    for former in former(log) {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if fs::symlink_metadata(&former.plain).is_ok() {
            compress(&former, stop)?;
        }
    }
    Ok(())
}

fn compress(former: &Former, stop: &AtomicBool) -> io::Result<()> {
    let Some(plain) = TrailFile::open(former.plain.clone(), false)? else { return Ok(()) };
    let part = with_suffix(&former.plain, PART);
    let mode = plain.file.metadata()?.mode() & 0o777;
    let out = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
    let done = (|| {
        out.set_permissions(fs::Permissions::from_mode(mode))?;
        let mut encoder = GzEncoder::new(out, Compression::default());
        let written = copy(plain.file, &mut encoder, stop)?;
        let out = encoder.finish()?;
        out.sync_all()?;
        // Read back before the plain file goes: the trail is not entrusted to an encoder alone.
        let read = copy(MultiGzDecoder::new(BufReader::new(File::open(&part)?)), &mut io::sink(), stop)?;
        if read != written {
            return Err(io::Error::other(format!("{} did not read back as it was written", part.display())));
        }
        fs::rename(&part, former.compressed())?;
        File::open(former.plain.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        match fs::remove_file(&former.plain) {
            // Removed because of its age meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::remove_file(former.compressed()),
            other => other,
        }
    })();
    if done.is_err() {
        let _ = fs::remove_file(&part);
    }
    match done {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        other => other,
    }
}

/// Copies, and returns the SHA-256 of what was copied.
fn copy(mut from: impl Read, to: &mut impl Write, stop: &AtomicBool) -> io::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(digest.finalize().into()),
            Ok(read) => buffer.get(..read).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        digest.update(read);
        to.write_all(read)?;
    }
}

/// The day of a moment, in days since 1970 (UTC).
pub(crate) fn day_of(at: Timestamp) -> u64 {
    u64::try_from(at.as_second()).unwrap_or_default() / 86400
}

/// A day as names of files have it.
pub(crate) fn day_name(day: u64) -> String {
    let seconds = i64::try_from(day).unwrap_or_default().saturating_mul(86400);
    let at = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    at.to_zoned(TimeZone::UTC).date().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_an_order_and_are_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("audit.log");
        for name in [
            "audit.log.2026-11-20.10",
            "audit.log.2026-11-20.2.gz",
            "audit.log.2026-11-20.2",
            "audit.log.2026-11-19.gz",
            "audit.log.2026-11-20",
            "audit.log.2026-11-21.gz.part",
            "audit.log.set-aside-20261120T000000Z",
            "audit.log.old",
            "other.2026-11-20",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> = former(&log).iter().map(Former::name).collect();
        assert_eq!(
            names,
            [
                "audit.log.2026-11-19",
                "audit.log.2026-11-20",
                "audit.log.2026-11-20.2",
                "audit.log.2026-11-20.10"
            ]
        );
        assert_eq!(set_aside(&log).len(), 1);
        assert!(is_taken(&dir.path().join("audit.log.2026-11-19")));
        let now = "2026-11-21T10:00:00Z".parse().unwrap();
        assert_eq!(outdated(&log, now, 1).len(), 1);
        assert_eq!(outdated(&log, now, 0).len(), 4);
    }

    #[test]
    fn a_new_name_sorts_last_whatever_the_clock_says() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("audit.log");
        let next = |day: &str| {
            let name = next_name(&log, day).unwrap();
            fs::write(&name, "").unwrap();
            name.file_name().unwrap().to_string_lossy().into_owned()
        };
        assert_eq!(next("2026-11-20"), "audit.log.2026-11-20");
        assert_eq!(next("2026-11-20"), "audit.log.2026-11-20.1");
        // What retention removed is not taken again.
        fs::remove_file(dir.path().join("audit.log.2026-11-20")).unwrap();
        assert_eq!(next("2026-11-20"), "audit.log.2026-11-20.2");
        // A clock that was set back, and one that was ahead.
        assert_eq!(next("2020-01-01"), "audit.log.2026-11-20.3");
        assert_eq!(next("2099-01-01"), "audit.log.2099-01-01");
        assert_eq!(next("2026-11-21"), "audit.log.2099-01-01.1");
        fs::write(dir.path().join("audit.log.2099-01-01.2.gz"), "").unwrap();
        assert_eq!(next("2026-11-22"), "audit.log.2099-01-01.3");
        // Those of the future were written today.
        let now = Timestamp::now();
        let names: Vec<_> = outdated(&log, now, 30).iter().map(Former::name).collect();
        assert!(names.iter().all(|name| name.contains("2026-11-20")), "{names:?}");
        // While the clock is back nothing is outdated.
        assert_eq!(outdated(&log, "2020-01-02T00:00:00Z".parse().unwrap(), 0).len(), 0);
        fs::write(dir.path().join("audit.log.2099-01-01.18446744073709551615"), "").unwrap();
        assert_eq!(next_name(&log, "2026-11-22"), None);
    }

    #[test]
    fn compressing_is_taken_up_again_wherever_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("audit.log");
        let plain = dir.path().join("audit.log.2026-11-20");
        let compressed = dir.path().join("audit.log.2026-11-20.gz");
        let text = "a line\n".repeat(1000);
        let read = || {
            let mut text = String::new();
            former(&log)[0].open().unwrap().unwrap().reader().read_to_string(&mut text).unwrap();
            text
        };
        // Stopped: everything as before.
        fs::write(&plain, &text).unwrap();
        compress_all(&log, &AtomicBool::new(true)).unwrap();
        assert!(plain.exists() && !compressed.exists());
        // Ended within the compressed file.
        fs::write(dir.path().join("audit.log.2026-11-20.gz.part"), "half").unwrap();
        assert_eq!(read(), text);
        compress_all(&log, &AtomicBool::new(false)).unwrap();
        assert!(!plain.exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(read(), text);
        // Ended when both were there.
        fs::write(&plain, &text).unwrap();
        assert_eq!(read(), text);
        compress_all(&log, &AtomicBool::new(false)).unwrap();
        assert!(!plain.exists() && compressed.exists());
        assert_eq!(read(), text);
    }

    #[test]
    fn links_and_pipes_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("audit.log");
        std::os::unix::fs::symlink("/etc/passwd", &log).unwrap();
        assert!(Trail::open(&log).is_err());
    }
}
