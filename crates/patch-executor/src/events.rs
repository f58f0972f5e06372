//! The numbered event file of one operation.
//!
//! The file's exclusive lock (`flock`) tells whoever follows that the operation's process lives. The descriptor is not
//! inherited by any tool, so the lock ends with this process and with nothing else. Those who follow can lock the file
//! as well, so the root side itself never decides by it: see [`crate::journal::Claim`].

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::fs::{OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use patch_types::{ErrorCode, ErrorDetail, Event, EventKind, JobStatus, RehearsalReport, event::LogStream};
use rustix::fs::{FlockOperation, flock};

use crate::paths;

/// The longest line in bytes. Whoever follows reads lines whole, so their length is bounded on this side.
const MAX_LINE: usize = 12 * 1024 * 1024;

/// How much output of one operation is passed on, in bytes.
const MAX_LOGGED: usize = 16 * 1024 * 1024;

/// How much may wait in memory for room on the disk, in bytes, before output is left out.
const MAX_WAITING: usize = 4 * 1024 * 1024;

/// An event file that is no longer than this is read whole when its end is looked for, in bytes.
const READ_WHOLE: u64 = 256 * 1024;

/// Appends events. A full disk does not stop the operation: events wait in memory and are written as soon as there is
/// room again, in order and without a gap.
#[derive(Debug)]
pub(crate) struct Events {
    path: PathBuf,
    file: File,
    next: u64,
    /// Length of the file up to the last whole line.
    good: u64,
    waiting: Vec<u8>,
    /// Bytes of output passed on so far.
    logged: usize,
    /// Whether output has been left out, which has been said.
    dropped: bool,
}

/// Why an event file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventsError {
    #[error("the event file {path} exists already")]
    Exists { path: PathBuf },
    #[error("there is no event file {path}")]
    Missing { path: PathBuf },
    #[error("cannot use the event file {path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

impl Events {
    /// Makes the file, which must not exist, and locks it.
    pub(crate) fn create(path: &Path) -> Result<Self, EventsError> {
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::AlreadyExists => EventsError::Exists { path: path.to_owned() },
            _ => EventsError::File { path: path.to_owned(), source },
        };
        let file =
            File::options().create_new(true).append(true).read(true).mode(0o640).open(path).map_err(error)?;
        // Locked before anything slow is done: a file that nobody holds is one whose operation has died.
        lock(&file, path);
        if let Some(group) = paths::daemon_group() {
            fchown(&file, None, Some(group.as_raw())).map_err(error)?;
        }
        Ok(Self::at(path, file, 1, 0))
    }

    /// Whether an operation's events lead to its end. Of a long file only the last line is read.
    pub(crate) fn has_ended(path: &Path) -> bool {
        let Ok(mut file) = File::open(path) else { return false };
        if file.metadata().is_ok_and(|meta| meta.len() <= READ_WHOLE) {
            let mut text = String::new();
            let events: Option<Vec<Event>> = file
                .read_to_string(&mut text)
                .ok()
                .filter(|_| text.ends_with('\n'))
                .and_then(|_| text.lines().map(|line| Event::parse(line).ok()).collect());
            return events.is_some_and(|events| {
                (1..).zip(&events).all(|(seq, event)| event.seq == seq)
                    && events.last().is_some_and(|last| matches!(last.kind, EventKind::Ended(_)))
            });
        }
        let mut tail = Vec::new();
        let mut reach = 4096;
        loop {
            let Ok(length) = file.seek(io::SeekFrom::End(0)) else { return false };
            let from = length.saturating_sub(reach);
            tail.clear();
            if file.seek(io::SeekFrom::Start(from)).is_err() || file.read_to_end(&mut tail).is_err() {
                return false;
            }
            let Some(line) = tail.strip_suffix(b"\n") else { return false };
            match line.iter().rposition(|byte| *byte == b'\n') {
                None if from > 0 => reach = reach.saturating_mul(8),
                begin => {
                    let line = line.get(begin.map_or(0, |at| at + 1)..).unwrap_or_default();
                    return std::str::from_utf8(line)
                        .ok()
                        .and_then(|line| Event::parse(line).ok())
                        .is_some_and(|event| matches!(event.kind, EventKind::Ended(_)));
                }
            }
        }
    }

    /// Goes on with a file whose writer is dead: locks it, cuts a torn last line off, and returns its events.
    pub(crate) fn resume(path: &Path) -> Result<(Self, Vec<Event>), EventsError> {
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => EventsError::Missing { path: path.to_owned() },
            _ => EventsError::File { path: path.to_owned(), source },
        };
        let mut file = File::options().append(true).read(true).open(path).map_err(error)?;
        lock(&file, path);
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(error)?;
        let mut events: Vec<Event> = Vec::new();
        let mut good = 0;
        for line in text.split_inclusive(|b| *b == b'\n') {
            let parsed = line
                .strip_suffix(b"\n")
                .and_then(|line| std::str::from_utf8(line).ok())
                .and_then(|line| Event::parse(line).ok())
                .filter(|event| event.seq == events.last().map_or(1, |last| last.seq + 1));
            let Some(event) = parsed else { break };
            good += line.len() as u64;
            events.push(event);
        }
        file.set_len(good).map_err(error)?;
        file.seek(io::SeekFrom::End(0)).map_err(error)?;
        let next = events.last().map_or(1, |last| last.seq + 1);
        Ok((Self::at(path, file, next, good), events))
    }

    fn at(path: &Path, file: File, next: u64, good: u64) -> Self {
        Self { path: path.to_owned(), file, next, good, waiting: Vec::new(), logged: 0, dropped: false }
    }

    /// Appends an event.
    pub(crate) fn emit(&mut self, kind: EventKind) {
        let Some(kind) = self.bounded(kind) else { return };
        let event = Event { seq: self.next, at: Timestamp::now(), kind };
        match serde_json::to_vec(&event) {
            Ok(line) if line.len() > MAX_LINE => self.emit(in_short(event.kind, line.len())),
            Ok(mut line) => {
                line.push(b'\n');
                self.next += 1;
                self.waiting.append(&mut line);
                self.flush();
            }
            Err(error) => eprintln!("patch-executor: an event cannot be written as JSON: {error}"),
        }
    }

    /// Output and progress are passed on within bounds; whatever else happens always is.
    fn bounded(&mut self, kind: EventKind) -> Option<EventKind> {
        let size = match &kind {
            EventKind::Log { line, .. } => line.len(),
            EventKind::Progress { message, .. } => message.len(),
            _ => return Some(kind),
        };
        self.logged = self.logged.saturating_add(size);
        if self.logged <= MAX_LOGGED && self.waiting.len() <= MAX_WAITING {
            return Some(kind);
        }
        (!std::mem::replace(&mut self.dropped, true)).then(|| EventKind::Log {
            stream: LogStream::Executor,
            line: "there is more output than can be kept; the rest is left out".to_owned(),
        })
    }

    /// Appends an event and waits until the disk has it, as far as the disk takes it.
    pub(crate) fn emit_durably(&mut self, kind: EventKind) {
        self.emit(kind);
        if let Err(error) = self.file.sync_data() {
            eprintln!("patch-executor: cannot sync {}: {error}", self.path.display());
        }
    }

    /// Whether everything emitted is in the file.
    pub(crate) fn is_complete(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Writes what waits.
    pub(crate) fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        match self.file.write_all(&self.waiting) {
            Ok(()) => {
                self.good += self.waiting.len() as u64;
                self.waiting.clear();
            }
            Err(error) => {
                eprintln!(
                    "patch-executor: cannot append to {}: {error}; will try again",
                    self.path.display()
                );
                // What was written in part must not stand before what follows.
                if let Err(error) = self.file.set_len(self.good) {
                    eprintln!("patch-executor: cannot cut {} back: {error}", self.path.display());
                }
            }
        }
    }
}

/// What is said in place of an event that is too long to be read.
fn in_short(kind: EventKind, length: usize) -> EventKind {
    let what = format!("is {length} bytes long, more than the {MAX_LINE} that can be passed on");
    match kind {
        EventKind::Ended(mut ended) => {
            if ended.answer.take().is_some() {
                ended.status = JobStatus::Failed;
                ended.error =
                    Some(ErrorDetail::new(ErrorCode::PkgManagerError, format!("the answer {what}")));
            }
            ended.results.clear();
            EventKind::Ended(ended)
        }
        // What it says of the real run is a sentence.
        EventKind::Rehearsed { report } => {
            let reason = report.reason.map(|reason| reason.chars().take(1024).collect());
            let (took_ms, written_bytes) = (report.took_ms, report.written_bytes);
            let short = RehearsalReport::not_rehearsed("");
            let report = RehearsalReport { verdict: report.verdict, reason, took_ms, written_bytes, ..short };
            EventKind::Rehearsed { report }
        }
        _ => {
            EventKind::Log { stream: LogStream::Executor, line: format!("something was left out: it {what}") }
        }
    }
}

/// Takes the lock that says "alive". A follower that asks whether it is held takes it for some microseconds itself, so
/// one refusal means nothing yet; one that keeps it deceives nobody but itself.
fn lock(file: &File, path: &Path) {
    for _ in 0..20 {
        if flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    eprintln!("patch-executor: somebody else has locked {}; going on without its lock", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehearsal_of_which_there_is_too_much_to_say_keeps_its_verdict() {
        let long = RehearsalReport {
            verdict: patch_types::RehearsalVerdict::Fails,
            not_run: vec!["x".repeat(MAX_LINE)],
            ..RehearsalReport::not_rehearsed("aa fails")
        };
        let EventKind::Rehearsed { report } =
            in_short(EventKind::Rehearsed { report: long.clone() }, MAX_LINE)
        else {
            panic!()
        };
        assert_eq!((report.verdict, report.reason), (long.verdict, long.reason));
        assert!(report.not_run.is_empty());
    }

    #[test]
    fn an_answer_that_nobody_could_read_is_an_error_instead() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let mut events = Events::create(&path).unwrap();
        let mut detail = serde_json::json!({"name": "aa", "current_version": null, "available_version": null, "causes": []});
        detail["causes"] =
            serde_json::json!([{"kind": "ready", "message": "x".repeat(MAX_LINE), "next_step": ""}]);
        let answer = patch_types::event::QueryResult::WhyNot(serde_json::from_value(detail).unwrap());
        events.emit(EventKind::Ended(Box::new(patch_types::event::Ended {
            status: JobStatus::Completed,
            outcome: None,
            exit_code: None,
            error: None,
            results: Vec::new(),
            answer: Some(answer),
        })));
        drop(events);
        let (_, seen) = Events::resume(&path).unwrap();
        let Some(Event { seq: 1, kind: EventKind::Ended(ended), .. }) = seen.first() else {
            panic!("{seen:?}")
        };
        assert!(ended.answer.is_none() && ended.status == JobStatus::Failed && ended.error.is_some());
    }

    #[test]
    fn a_file_goes_on_after_its_writer_died_in_mid_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let mut events = Events::create(&path).unwrap();
        events.emit(EventKind::Accepted);
        events.emit_durably(EventKind::Waiting { holder: None });
        assert!(matches!(Events::create(&path), Err(EventsError::Exists { .. })));
        drop(events);
        File::options().append(true).open(&path).unwrap().write_all(b"{\"seq\":3,\"at\":\"20").unwrap();
        let (mut events, seen) = Events::resume(&path).unwrap();
        assert_eq!(seen.len(), 2);
        events.emit(EventKind::Waiting { holder: None });
        drop(events);
        let (_, seen) = Events::resume(&path).unwrap();
        assert_eq!(seen.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3]);
    }
}
