//! The file of the trail: opening it, finding where it ends, appending durably, rotating, and noticing that somebody
//! else touched it. Knows lines and heads; knows nothing of events' meaning or of threads.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use crate::{
    chain::{Head, Link, MAX_RECORD, read_line},
    event::AuditKind,
    log::AuditError,
    trail::{self, day_name},
};

/// How much of the end is verified at the start: usually thousands of records. The whole is for `audit verify`.
pub(crate) const WINDOW: u64 = 1 << 20;
/// The same for a file that is opened for every record.
pub(crate) const SMALL_WINDOW: u64 = 32 << 10;
/// Where not even one record lies in the window: room for the longest one, torn, after the longest one, whole.
const WIDE_WINDOW: u64 = 2 * MAX_RECORD as u64 + 2;

/// The open file.
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    /// Up to here everything is good and on disk.
    len: u64,
    /// Whether bytes of a failed append may lie beyond `len`.
    dirty: bool,
    /// The day of the last append, in days since 1970 (UTC).
    day: u64,
}

/// What opening found.
pub(crate) struct Opened {
    pub(crate) file: LogFile,
    pub(crate) last: Head,
    pub(crate) finding: Option<AuditKind>,
}

/// How a file ends.
struct Tail {
    /// Where the last good record ends.
    good: u64,
    last: Option<Head>,
    rest: Rest,
}

enum Rest {
    None,
    Torn { bytes: u64, sha256: String },
    Broken(String),
}

impl LogFile {
    /// Opens or creates the file and finds the record to continue after, looking at so many bytes of its end.
    pub(crate) fn open(path: &Path, window: u64) -> Result<Opened, AuditError> {
        let file = open_locked(path)?;
        let failed = |source| AuditError::io(path, "read", source);
        let meta = file.metadata().map_err(failed)?;
        let tail = read_tail(&file, meta.len(), window).map_err(failed)?;
        let mut log = Self {
            path: path.to_owned(),
            file,
            len: tail.good,
            dirty: false,
            day: day_of(meta.modified().ok()),
        };
        let last = match tail.last {
            Some(last) => last,
            // Rotation or setting aside was cut short before the new file had a record: the chain goes on from the
            // file before.
            None => trail::last_of_siblings(path).unwrap_or(Head::GENESIS),
        };
        let finding = match tail.rest {
            Rest::None => None,
            Rest::Torn { bytes, sha256 } => {
                log.dirty = true;
                Some(AuditKind::TornTailCut { bytes, sha256 })
            }
            Rest::Broken(reason) => Some(log.replace(reason)?),
        };
        Ok(Opened { file: log, last, finding })
    }

    /// Cuts off what a failed append or a crash left, if anything.
    pub(crate) fn repair(&mut self) -> Result<(), AuditError> {
        if self.dirty {
            self.file.set_len(self.len).map_err(|e| AuditError::io(&self.path, "cut back", e))?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Whether the file at our path is no longer the one that we left there, and how.
    pub(crate) fn damage(&self) -> Result<Option<String>, AuditError> {
        let ours = self.file.metadata().map_err(|e| AuditError::io(&self.path, "examined", e))?;
        Ok(match fs::symlink_metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) != (ours.dev(), ours.ino()) => {
                Some("the file was replaced by another one".to_owned())
            }
            Ok(there) if there.len() != self.len => {
                Some(format!("the file has {} bytes where {} were written", there.len(), self.len))
            }
            Ok(_) => None,
            Err(error) => Some(format!("the file is no longer there ({error})")),
        })
    }

    /// Begins a new file, keeping what lies at the path under another name. The caller goes on with the chain.
    pub(crate) fn replace(&mut self, reason: String) -> Result<AuditKind, AuditError> {
        let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        let kept_as = match fs::symlink_metadata(&self.path) {
            Ok(_) => Some(self.set_aside(&format!("set-aside-{stamp}"))?),
            Err(_) => None,
        };
        self.begin()?;
        Ok(AuditKind::TrailSetAside { kept_as, reason })
    }

    /// Whether the last append was on another day.
    pub(crate) fn is_of_another_day(&self, now: Timestamp) -> bool {
        self.len > 0 && self.day != day_of(Some(now.into()))
    }

    /// How long the file is, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a new file; the present one gets the day of its last record as suffix. Whether that could be done: a
    /// directory that allows no renaming is no reason to refuse records, and the file grows on.
    pub(crate) fn rotate(&mut self) -> Result<bool, AuditError> {
        let Some(to) = trail::next_name(&self.path, &day_name(self.day)) else { return Ok(false) };
        if fs::rename(&self.path, &to).is_err() {
            return Ok(false);
        }
        self.begin()?;
        Ok(true)
    }

    fn begin(&mut self) -> Result<(), AuditError> {
        self.file = open_locked(&self.path)?;
        (self.len, self.dirty) = (0, false);
        Ok(())
    }

    /// Renames the damaged file at our path and returns its new name.
    fn set_aside(&self, suffix: &str) -> Result<String, AuditError> {
        let failed = |source| AuditError::io(&self.path, "renamed", source);
        let base = self.path.file_name().unwrap_or_default().to_string_lossy();
        for n in 0..1000 {
            let name = if n == 0 { format!("{base}.{suffix}") } else { format!("{base}.{suffix}.{n}") };
            let to = self.path.with_file_name(&name);
            if trail::is_taken(&to) {
                continue;
            }
            fs::rename(&self.path, &to).map_err(failed)?;
            return Ok(name);
        }
        Err(failed(io::Error::from(io::ErrorKind::AlreadyExists)))
    }

    /// Appends lines and waits until they are on disk. On failure the file is as before, now or at the next
    /// [`Self::repair`].
    pub(crate) fn append(&mut self, lines: &[u8]) -> Result<(), AuditError> {
        self.dirty = true;
        let written = self.file.write_all(lines).map_err(|e| AuditError::io(&self.path, "written", e));
        // After a failed sync the kernel may have forgotten the pages: only cutting back and writing anew is safe.
        let done =
            written.and_then(|()| self.file.sync_data().map_err(|e| AuditError::io(&self.path, "synced", e)));
        match done {
            Ok(()) => {
                self.len += lines.len() as u64;
                self.dirty = false;
                self.day = day_of(Some(SystemTime::now()));
                Ok(())
            }
            Err(error) => {
                // If this fails too, the next append tries again first.
                let _ = self.repair();
                Err(error)
            }
        }
    }
}

fn open_locked(path: &Path) -> Result<File, AuditError> {
    let failed = |source| AuditError::io(path, "opened", source);
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(failed)?;
    let existed = fs::symlink_metadata(path).is_ok();
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(nofollow)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    // Two writers would fork the chain. The lock goes with the process, however it ends.
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(AuditError::Locked { path: path.to_owned() }),
        Err(error) => return Err(failed(error.into())),
    }
    if !existed {
        // Whatever the umask was.
        file.set_permissions(fs::Permissions::from_mode(0o640)).map_err(failed)?;
        File::open(directory).and_then(|d| d.sync_all()).map_err(failed)?;
    }
    Ok(file)
}

fn read_tail(file: &File, len: u64, window: u64) -> io::Result<Tail> {
    let tail = read_window(file, len, window)?;
    if tail.last.is_none() && len > window { read_window(file, len, WIDE_WINDOW) } else { Ok(tail) }
}

/// Follows the chain through the last `window` bytes.
fn read_window(mut file: &File, len: u64, window: u64) -> io::Result<Tail> {
    let mut at = len.saturating_sub(window);
    file.seek(SeekFrom::Start(at))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    if at > 0 {
        // The window begins somewhere within a record.
        match read_line(&mut reader, &mut line)? {
            Some(true) => at += line.len() as u64 + 1,
            _ => {
                return Ok(Tail {
                    good: len,
                    last: None,
                    rest: Rest::Broken("no record in sight of its end".into()),
                });
            }
        }
    }
    let (mut good, mut last) = (at, None);
    while let Some(complete) = read_line(&mut reader, &mut line)? {
        let rest = len - good;
        if !complete && line.len() <= MAX_RECORD {
            let sha256 = hex::encode(Sha256::digest(&line));
            return Ok(Tail { good, last, rest: Rest::Torn { bytes: rest, sha256 } });
        }
        let fits = Link::parse(&line)
            .filter(|link| last.map_or(link.written == link.computed, |last| link.follows(last)));
        let Some(link) = fits else {
            let reason = match last {
                Some(Head { seq, .. }) => {
                    format!("what stands after record {seq} does not continue the chain")
                }
                None => "it does not begin with a record".to_owned(),
            };
            return Ok(Tail { good, last, rest: Rest::Broken(reason) });
        };
        good += line.len() as u64 + 1;
        last = Some(link.head());
    }
    Ok(Tail { good, last, rest: Rest::None })
}

fn day_of(time: Option<SystemTime>) -> u64 {
    let since = time.unwrap_or(SystemTime::now()).duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() / 86400)
}

impl AuditError {
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), action, source: Arc::new(source) }
    }
}
