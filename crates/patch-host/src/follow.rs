//! Follows an operation's event file, and tells whether its executor still lives.
//!
//! The executor appends whole lines with numbers that grow by one, and holds an exclusive `flock` on the file for as
//! long as it lives. A lock that is free although no `ended` was written means that it is dead, whatever became of its
//! process id. Whoever settles the operation then cuts a torn last line off and goes on in the same file.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

use patch_types::Event;
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

/// The longest line that is read; the executor keeps below it. A longer one is passed over: it says nothing against
/// those around it.
pub(crate) const MAX_LINE: usize = 16 << 20;

/// How much is read at a time.
const CHUNK: u64 = 64 << 10;

/// Why an event file cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error("there is no event file {}: no such operation, or one so old that it was cleared away", .0.display())]
    Missing(PathBuf),
    #[error("the event file {} cannot be read: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "the event file {} has a line that is no event after event {after}; the operation goes on, see `journalctl -u \
         'linux-patch-executor@*'`",
        path.display()
    )]
    Malformed { path: PathBuf, after: u64 },
    #[error(
        "the event file {} jumps from event {after} to {found}; the operation goes on, see `journalctl -u \
         'linux-patch-executor@*'`",
        path.display()
    )]
    Gap { path: PathBuf, after: u64, found: u64 },
}

/// What a look at the file shows.
#[derive(Debug)]
pub(crate) enum Look {
    /// Events, in order; never empty.
    Events(Vec<Event>),
    /// Nothing new, and somebody works.
    Quiet,
    /// Nothing new, and nobody lives who could write more. Looking again is allowed: somebody may settle it.
    Dead,
}

/// One event file, from its beginning.
#[derive(Debug)]
pub(crate) struct Follow {
    path: PathBuf,
    file: File,
    /// What was read after the last whole line.
    rest: Vec<u8>,
    /// Where in the file the first line begins that was not taken yet.
    offset: u64,
    /// How much of that line was passed over because it is too long; `rest` follows it.
    skipped: u64,
    /// The last number read.
    seq: u64,
    /// Whether the executor was once found dead: then a torn line in the middle is no surprise.
    was_dead: bool,
}

impl Follow {
    /// Follows what was opened under a name.
    ///
    /// # Errors
    /// [`FollowError::Missing`], [`FollowError::Io`].
    pub(crate) fn new(path: PathBuf, opened: io::Result<File>) -> Result<Self, FollowError> {
        match opened {
            Ok(file) => {
                Ok(Self { path, file, rest: Vec::new(), offset: 0, skipped: 0, seq: 0, was_dead: false })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(FollowError::Missing(path)),
            Err(error) => Err(FollowError::Io { path, error }),
        }
    }

    /// Looks what is new.
    ///
    /// # Errors
    /// See [`FollowError`].
    pub(crate) fn look(&mut self) -> Result<Look, FollowError> {
        let events = self.read()?;
        if !events.is_empty() {
            return Ok(Look::Events(events));
        }
        if !is_free(&self.file).map_err(|error| self.io(error))? {
            return Ok(Look::Quiet);
        }
        // `ended` may have been its last act before it let go.
        let events = self.read()?;
        if !events.is_empty() {
            return Ok(Look::Events(events));
        }
        // What follows the last whole line will never be completed; whoever settles the operation cuts it off.
        self.rest.clear();
        self.skipped = 0;
        self.was_dead = true;
        Ok(Look::Dead)
    }

    fn io(&self, error: io::Error) -> FollowError {
        FollowError::Io { path: self.path.clone(), error }
    }

    /// Reads the whole lines that are there, up to about a chunk.
    fn read(&mut self) -> Result<Vec<Event>, FollowError> {
        let mut events = Vec::new();
        while events.is_empty() {
            let known = self.rest.len();
            let begin = self.offset + self.skipped + known as u64;
            self.file.seek(SeekFrom::Start(begin)).map_err(|e| self.io(e))?;
            let read = (&self.file).take(CHUNK).read_to_end(&mut self.rest).map_err(|e| self.io(e))?;
            if read == 0 {
                break;
            }
            // Only what is new can hold a line feed.
            if self.rest.get(known..).is_some_and(|new| new.contains(&b'\n')) {
                self.split(&mut events)?;
            }
            if self.skipped > 0 || self.rest.len() > MAX_LINE {
                self.skipped += self.rest.len() as u64;
                self.rest = Vec::new();
            }
        }
        Ok(events)
    }

    /// Takes the whole lines out of `rest`.
    fn split(&mut self, events: &mut Vec<Event>) -> Result<(), FollowError> {
        let text = std::mem::take(&mut self.rest);
        for line in text.split_inclusive(|b| *b == b'\n') {
            let Some(whole) = line.strip_suffix(b"\n") else {
                self.rest = line.to_owned();
                break;
            };
            let skipped = std::mem::take(&mut self.skipped);
            self.offset += skipped + line.len() as u64;
            if skipped > 0 {
                // Its number is not read but follows: each line has the next one.
                self.seq += 1;
            } else if let Some(event) = self.take(whole)? {
                events.push(event);
            }
        }
        Ok(())
    }

    /// The event of a line, whose number is checked. `None`: to be passed over.
    fn take(&mut self, line: &[u8]) -> Result<Option<Event>, FollowError> {
        #[derive(Deserialize)]
        struct Numbered {
            seq: u64,
        }
        let Ok(Numbered { seq }) = serde_json::from_slice(line) else {
            if self.was_dead {
                return Ok(None);
            }
            return Err(FollowError::Malformed { path: self.path.clone(), after: self.seq });
        };
        if seq != self.seq + 1 {
            return Err(FollowError::Gap { path: self.path.clone(), after: self.seq, found: seq });
        }
        self.seq = seq;
        // A kind that a newer executor knows is passed over.
        Ok(serde_json::from_slice(line).ok())
    }
}

/// Whether somebody works on the operation of an event file; what cannot be read is worked on by nobody.
pub(crate) fn is_alive(opened: io::Result<File>) -> bool {
    opened.is_ok_and(|file| matches!(is_free(&file), Ok(false)))
}

/// Tries the lock, for some microseconds.
fn is_free(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            flock(file, FlockOperation::Unlock)?;
            Ok(true)
        }
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use jiff::Timestamp;
    use patch_types::{EventKind, event::LogStream};
    use proptest::prelude::*;

    use super::*;

    fn open(path: PathBuf) -> Result<Follow, FollowError> {
        let opened = File::open(&path);
        Follow::new(path, opened)
    }

    struct Writer {
        _dir: tempfile::TempDir,
        path: PathBuf,
        file: File,
    }

    impl Writer {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.jsonl");
            let file = File::options().create_new(true).append(true).open(&path).unwrap();
            Self { _dir: dir, path, file }
        }

        fn alive(self) -> Self {
            flock(&self.file, FlockOperation::NonBlockingLockExclusive).unwrap();
            self
        }

        fn die(&self) {
            flock(&self.file, FlockOperation::Unlock).unwrap();
        }

        fn follow(&self) -> Follow {
            open(self.path.clone()).unwrap()
        }

        fn write(&self, text: &str) {
            (&self.file).write_all(text.as_bytes()).unwrap();
        }
    }

    fn log(seq: u64, line: &str) -> String {
        let kind = EventKind::Log { stream: LogStream::Output, line: line.to_owned() };
        serde_json::to_string(&Event { seq, at: Timestamp::UNIX_EPOCH, kind }).unwrap() + "\n"
    }

    fn numbers(look: Look) -> Vec<u64> {
        match look {
            Look::Events(events) => events.iter().map(|event| event.seq).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_torn_line_waits_for_its_rest() {
        let writer = Writer::new().alive();
        let mut follow = writer.follow();
        assert!(matches!(follow.look().unwrap(), Look::Quiet));
        let line = log(1, "ä");
        let (head, tail) = line.split_at(20);
        writer.write(head);
        assert!(matches!(follow.look().unwrap(), Look::Quiet));
        writer.write(tail);
        writer.write(&log(2, "b"));
        assert_eq!(numbers(follow.look().unwrap()), [1, 2]);
        assert!(matches!(follow.look().unwrap(), Look::Quiet));
    }

    #[test]
    fn a_dead_executor_is_seen_after_its_last_words() {
        let writer = Writer::new().alive();
        let mut follow = writer.follow();
        writer.write(&log(1, "a"));
        writer.write("{\"seq\":2,\"at\":\"20");
        writer.die();
        assert_eq!(numbers(follow.look().unwrap()), [1]);
        assert!(matches!(follow.look().unwrap(), Look::Dead));
        // Whoever settles it cuts the torn line off and goes on.
        writer.file.set_len(log(1, "a").len() as u64).unwrap();
        let writer = writer.alive();
        assert!(matches!(follow.look().unwrap(), Look::Quiet));
        writer.write(&log(2, "b"));
        assert_eq!(numbers(follow.look().unwrap()), [2]);
        assert!(is_alive(File::open(&writer.path)));
        writer.die();
        assert!(!is_alive(File::open(&writer.path)));
    }

    #[test]
    fn long_lines_are_read_and_longer_ones_passed_over() {
        let writer = Writer::new().alive();
        let mut follow = writer.follow();
        writer.write(&log(1, &"x".repeat(1 << 20)));
        assert_eq!(numbers(follow.look().unwrap()), [1]);
        writer.write(&log(2, &"x".repeat(MAX_LINE + 2 * CHUNK as usize)));
        writer.write(&log(3, "c"));
        assert_eq!(numbers(follow.look().unwrap()), [3]);
    }

    #[test]
    fn nonsense_is_an_error_and_an_unknown_kind_is_not() {
        let writer = Writer::new().alive();
        let mut follow = writer.follow();
        writer.write("{\"seq\":1,\"at\":\"1970-01-01T00:00:00Z\",\"event\":\"sung\"}\n");
        writer.write(&log(2, "b"));
        assert_eq!(numbers(follow.look().unwrap()), [2]);
        writer.write(&log(4, "d"));
        assert!(matches!(follow.look(), Err(FollowError::Gap { after: 2, found: 4, .. })));

        let writer = Writer::new().alive();
        writer.write("nonsense\n");
        assert!(matches!(writer.follow().look(), Err(FollowError::Malformed { after: 0, .. })));
        assert!(matches!(open(writer.path.with_extension("no")), Err(FollowError::Missing(_))));
    }

    proptest! {
        #[test]
        fn no_line_ends_the_program(bytes in prop::collection::vec(any::<u8>(), 0..200), dead: bool) {
            let writer = Writer::new();
            let writer = if dead { writer } else { writer.alive() };
            (&writer.file).write_all(&bytes).unwrap();
            let mut follow = writer.follow();
            let _ = follow.look();
            let _ = follow.look();
        }

        #[test]
        fn however_it_is_torn_each_event_comes_once(cuts in prop::collection::vec(1_usize..40, 1..20)) {
            let writer = Writer::new().alive();
            let mut follow = writer.follow();
            let text: String = (1..=5).map(|seq| log(seq, "line")).collect();
            let (mut rest, mut seen) = (text.as_str(), Vec::new());
            for cut in cuts.into_iter().chain([text.len()]) {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                writer.write(head);
                rest = tail;
                if let Look::Events(events) = follow.look().unwrap() {
                    seen.extend(events.iter().map(|event| event.seq));
                }
            }
            prop_assert_eq!(seen, [1, 2, 3, 4, 5]);
        }
    }
}
