//! Follows an operation's event file, and tells whether its executor still lives.
//!
//! The executor appends whole lines with numbers that grow by one, and holds an exclusive `flock` on the file for as
//! long as it lives. So there are three things to tell apart: a new line, a last line that is not whole yet, and a lock
//! that is free although no `ended` was written. The last means that the executor is dead, whatever became of its PID.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use jiff::Timestamp;
use patch_types::{ErrorCode, ErrorDetail, Event, EventKind, event::LogStream};
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use tokio::time::{Instant, sleep, sleep_until};

/// The longest line that is read; the executor keeps below it. Answers to queries are events too, so this is far above
/// what a line of output needs. A longer one is passed over: it says nothing against those around it.
pub const MAX_LINE: usize = 16 << 20;

/// How long the file may take to appear after the root side has said that it began. It should be there already.
pub const APPEARANCE: Duration = Duration::from_secs(2);

/// How often life is looked for when nothing else happens.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How soon life is looked for after the file was closed. The kernel reports the close before it drops the lock, so the
/// first look may come too early; the waits double up to [`HEARTBEAT`].
const AFTER_CLOSE: Duration = Duration::from_millis(2);

/// How often the file is looked at when the kernel has no inotify instance left for this user.
const WITHOUT_INOTIFY: Duration = Duration::from_millis(20);

/// How much is read at a time; also what bounds a batch of events.
const CHUNK: usize = 64 << 10;

/// The number of the last event that stands whole in a file; 0 if there is none, or none that can be read. A torn last line
/// is not counted, since whoever settles the operation cuts it off and goes on in its place.
#[must_use]
pub fn last_number(path: &Path) -> u64 {
    last_of(path).unwrap_or(0)
}

fn last_of(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let most = 2 * MAX_LINE as u64;
    let mut window = CHUNK as u64;
    loop {
        let begin = length.saturating_sub(window);
        file.seek(SeekFrom::Start(begin))?;
        let mut text = Vec::new();
        (&file).take(length - begin).read_to_end(&mut text)?;
        let mut lines = text.split_inclusive(|b| *b == b'\n');
        if begin > 0 {
            // The end of a line whose beginning is not here.
            lines.next();
        }
        let whole = lines.rev().filter_map(|line| line.strip_suffix(b"\n"));
        if let Some(seq) = whole.filter_map(number).next() {
            return Ok(seq);
        }
        if begin == 0 || window >= most {
            return Ok(0);
        }
        window = window.saturating_mul(4).min(most);
    }
}

/// Why an event file cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// It is not there.
    #[error("there is no event file {}", .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("the event file {} cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not an event.
    #[error("the event file {} has a line that is no event after event {after}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The last good event.
        after: u64,
    },
    /// Numbers are missing, or come again.
    #[error("the event file {} jumps from event {after} to {found}", path.display())]
    Gap {
        /// The file.
        path: PathBuf,
        /// The last good event.
        after: u64,
        /// The number that came.
        found: u64,
    },
}

impl From<FollowError> for ErrorDetail {
    fn from(error: FollowError) -> Self {
        let cause = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
        Self::new(
            ErrorCode::ServiceUnhealthy,
            format!("{error}{cause}; see `journalctl -u 'linux-patch-executor@*'`"),
        )
    }
}

/// How following came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowEnd {
    /// The last event was `ended`.
    Ended,
    /// There is no `ended`, and nobody lives who could write it. Asking again is allowed: whoever settles the operation
    /// appends to the same file.
    Abandoned,
}

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// Events, in order; never empty.
    Events(Vec<Event>),
    /// No more events.
    End(FollowEnd),
}

/// One event file, from its beginning to its end.
pub struct Follow {
    path: PathBuf,
    file: File,
    watch: Option<EventStream<[u8; 1024]>>,
    /// What was read after the last whole line, and how much of it is known to hold no line feed.
    rest: Vec<u8>,
    scanned: usize,
    /// Where in the file the first line begins that was not taken yet.
    offset: u64,
    /// How much of that line was passed over because it is too long; `rest` follows it.
    skipped: u64,
    /// The last number read, and the last number that the caller already has.
    seq: u64,
    after: u64,
    ended: bool,
    /// Whether the executor was once found dead: then a torn line in the middle is no surprise.
    was_abandoned: bool,
    next_check: Instant,
    pause: Duration,
    /// How often the lock was free while the file was still empty.
    empty_looks: u8,
}

impl Follow {
    /// Follows the file from the event after the given number (0: from the first), waiting so long for it to appear.
    ///
    /// # Errors
    /// [`FollowError::Missing`] when it does not appear; [`FollowError::Io`].
    pub async fn open(path: PathBuf, after: u64, appearance: Duration) -> Result<Self, FollowError> {
        let deadline = Instant::now() + appearance;
        let file = loop {
            match File::open(&path) {
                Ok(file) => break file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    if Instant::now() >= deadline {
                        return Err(FollowError::Missing(path));
                    }
                    sleep(Duration::from_millis(10)).await;
                }
                Err(source) => return Err(FollowError::Io { path, source }),
            }
        };
        let watch = match watch(&path) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "inotify is not to be had; looking on a timer");
                None
            }
        };
        Ok(Self {
            path,
            file,
            watch,
            rest: Vec::new(),
            scanned: 0,
            offset: 0,
            skipped: 0,
            seq: 0,
            after,
            ended: false,
            was_abandoned: false,
            // At once: who picks up an old file wants to know now whether anybody is alive.
            next_check: Instant::now(),
            pause: AFTER_CLOSE,
            empty_looks: 0,
        })
    }

    /// Looks for life no sooner than after so long: somebody is about to take the dead executor's place.
    pub fn grant(&mut self, grace: Duration) {
        self.next_check = Instant::now() + grace;
    }

    /// Waits for what comes next. Safe to drop and to call again.
    ///
    /// # Errors
    /// See [`FollowError`].
    pub async fn next(&mut self) -> Result<Step, FollowError> {
        loop {
            let events = self.read()?;
            if !events.is_empty() {
                return Ok(Step::Events(events));
            }
            if self.ended {
                return Ok(Step::End(FollowEnd::Ended));
            }
            if Instant::now() >= self.next_check {
                match self.look_for_life()? {
                    Some(step) => return Ok(step),
                    None => continue,
                }
            }
            tokio::select! {
                () = sleep_until(self.next_check) => {}
                closed = changed(&mut self.watch) => if closed {
                    self.next_check = Instant::now() + AFTER_CLOSE;
                    self.pause = AFTER_CLOSE;
                }
            }
        }
    }

    /// Tries the lock. `None`: somebody lives, or it cannot be told yet.
    fn look_for_life(&mut self) -> Result<Option<Step>, FollowError> {
        self.pause = (self.pause * 2).min(HEARTBEAT);
        self.next_check = Instant::now() + self.pause;
        if !self.lock_is_free()? {
            self.empty_looks = 0;
            return Ok(None);
        }
        // `ended` may have been its last act before it let go.
        let events = self.read()?;
        if !events.is_empty() {
            self.next_check = Instant::now();
            return Ok(Some(Step::Events(events)));
        }
        // The executor makes the file and then locks it: between the two it looks dead.
        if self.offset == 0 && self.skipped == 0 && self.rest.is_empty() && self.empty_looks < 2 {
            self.empty_looks += 1;
            self.next_check = Instant::now() + HEARTBEAT / 2;
            return Ok(None);
        }
        // What follows the last whole line will never be completed; whoever settles the operation may cut it off.
        self.rest.clear();
        self.scanned = 0;
        self.skipped = 0;
        self.was_abandoned = true;
        Ok(Some(Step::End(FollowEnd::Abandoned)))
    }

    fn lock_is_free(&self) -> Result<bool, FollowError> {
        match flock(&self.file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                flock(&self.file, FlockOperation::Unlock).map_err(|e| self.io(e.into()))?;
                Ok(true)
            }
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(self.io(error.into())),
        }
    }

    fn io(&self, source: io::Error) -> FollowError {
        FollowError::Io { path: self.path.clone(), source }
    }

    /// Reads the whole lines that are there, up to about a chunk. The file was written a moment ago, or is read once at
    /// start, so this does not go through the pool of blocking threads: that hop costs more than the read.
    fn read(&mut self) -> Result<Vec<Event>, FollowError> {
        let mut events = Vec::new();
        while events.is_empty() && !self.ended {
            let begin = self.offset + self.skipped + self.rest.len() as u64;
            self.file.seek(SeekFrom::Start(begin)).map_err(|e| self.io(e))?;
            let read = (&self.file).take(CHUNK as u64).read_to_end(&mut self.rest).map_err(|e| self.io(e))?;
            if read == 0 {
                break;
            }
            self.split(&mut events)?;
            if self.skipped > 0 || self.rest.len() > MAX_LINE {
                self.skipped += self.rest.len() as u64;
                self.rest = Vec::new();
                self.scanned = 0;
            }
        }
        Ok(events)
    }

    /// Takes the whole lines out of `rest`.
    fn split(&mut self, events: &mut Vec<Event>) -> Result<(), FollowError> {
        let mut begin = 0;
        while let Some(found) = self.rest[self.scanned..].iter().position(|b| *b == b'\n') {
            let end = self.scanned + found;
            let parsed = match std::mem::take(&mut self.skipped) {
                0 => parse(&self.rest[begin..end]),
                skipped => {
                    self.offset += skipped;
                    Line::Event(Box::new(self.remark(skipped + (end - begin) as u64)))
                }
            };
            begin = end + 1;
            self.scanned = begin;
            if let Some(event) = self.accept(parsed)? {
                self.ended = matches!(event.kind, EventKind::Ended(_));
                if event.seq > self.after {
                    events.push(event);
                }
                if self.ended {
                    break;
                }
            }
        }
        self.offset += begin as u64;
        self.rest.drain(..begin);
        // A single answer may have been megabytes: do not keep that for the life of a job.
        self.rest.shrink_to(CHUNK);
        self.scanned = self.rest.len();
        Ok(())
    }

    /// What stands in for a line that was too long. Its number is not read but follows: each line has the next one.
    fn remark(&self, length: u64) -> Event {
        let seq = self.seq + 1;
        tracing::warn!(path = %self.path.display(), seq, length, "an event that is too long was passed over");
        let line = format!("(event {seq} was passed over: it has {length} bytes, and {MAX_LINE} are read)");
        Event { seq, at: Timestamp::now(), kind: EventKind::Log { stream: LogStream::Executor, line } }
    }

    /// Checks a line's number. `None`: to be passed over.
    fn accept(&mut self, line: Line) -> Result<Option<Event>, FollowError> {
        let seq = match &line {
            Line::Event(event) => event.seq,
            Line::Unknown(seq) => *seq,
            Line::Malformed if self.was_abandoned => {
                tracing::warn!(path = %self.path.display(), after = self.seq, "a torn line was passed over");
                return Ok(None);
            }
            Line::Malformed => {
                return Err(FollowError::Malformed { path: self.path.clone(), after: self.seq });
            }
        };
        if seq != self.seq + 1 {
            return Err(FollowError::Gap { path: self.path.clone(), after: self.seq, found: seq });
        }
        self.seq = seq;
        match line {
            Line::Event(event) => Ok(Some(*event)),
            _ => {
                tracing::warn!(path = %self.path.display(), seq, "an event of an unknown kind was passed over");
                Ok(None)
            }
        }
    }
}

/// What a line turned out to be.
enum Line {
    Event(Box<Event>),
    /// A numbered event of a kind that a newer executor knows.
    Unknown(u64),
    Malformed,
}

fn parse(line: &[u8]) -> Line {
    match serde_json::from_slice::<Event>(line) {
        Ok(event) => Line::Event(Box::new(event)),
        Err(_) => number(line).map_or(Line::Malformed, Line::Unknown),
    }
}

/// The number of a line, whatever kind of event it is.
fn number(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    serde_json::from_slice::<Numbered>(line).ok().map(|numbered| numbered.seq)
}

fn watch(path: &Path) -> io::Result<EventStream<[u8; 1024]>> {
    let inotify = Inotify::init()?;
    inotify.watches().add(path, WatchMask::MODIFY | WatchMask::CLOSE_WRITE)?;
    inotify.into_event_stream([0; 1024])
}

/// Waits until the file was written to or closed; true if a writer closed it.
async fn changed(watch: &mut Option<EventStream<[u8; 1024]>>) -> bool {
    match watch {
        Some(stream) => match stream.next().await {
            Some(Ok(event)) => event.mask.contains(EventMask::CLOSE_WRITE),
            Some(Err(_)) | None => {
                *watch = None;
                false
            }
        },
        None => {
            sleep(WITHOUT_INOTIFY).await;
            false
        }
    }
}

#[cfg(test)]
mod tests;
