//! The log as programs see it: a handle to the writer's queue. Nothing here waits for a disk except [`AuditLog::record`],
//! [`AuditLog::flush`] and [`AuditLog::close`].

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use crate::{
    chain::Head,
    event::AuditEvent,
    file::{LogFile, WINDOW},
    journald::{JOURNAL_SOCKET, Journal},
    queue::{Sender, queue},
    ship::{Remote, RemoteStatus, Shipping},
    writer::{Message, Writer},
};

/// The agent's log, below the root prefix.
pub const LOG_PATH: &str = "var/log/linux_patch_api/audit.log";

/// What [`AuditLog::submit`] calls when the record is on disk, or when that failed. It runs on the writer's thread: it
/// must be quick (send into a channel, wake a task) and must not call the log's waiting functions.
pub type OnDurable = Box<dyn FnOnce(Result<Head, AuditError>) + Send>;

/// Why a record is not on disk.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuditError {
    /// The file system refused. Later records try again.
    #[error("the audit log {} cannot be {action}", .path.display())]
    Io {
        /// The log.
        path: PathBuf,
        /// What was tried: opened, read, written, synced, …
        action: &'static str,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// Another process writes this log.
    #[error("the audit log {} is in use by another process", .path.display())]
    Locked {
        /// The log.
        path: PathBuf,
    },
    /// More records are waiting than the queue holds.
    #[error("the audit log's queue is full")]
    QueueFull,
    /// The log was closed.
    #[error("the audit log is closed")]
    Closed,
    /// The record is longer than [`crate::MAX_RECORD`].
    #[error("the audit record is too large")]
    TooLarge,
}

/// An error with what the system said.
pub(crate) fn describe(error: &AuditError) -> String {
    match error {
        AuditError::Io { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

/// How to open a log.
#[derive(Debug, Clone)]
pub struct Options {
    /// The program's name in the journal.
    pub identifier: String,
    /// The journal's socket; `None` to send nothing there. A socket that is not there is no error.
    pub journal: Option<PathBuf>,
    /// How many records may wait for the writer.
    pub queue: usize,
    /// Begin a new file on the first record of a new day (UTC) and keep the old ones for so many days; `None` to keep
    /// everything in one file.
    pub keep_days: Option<u32>,
    /// Where the records go besides; what it has not got yet is told by a cursor beside the log.
    pub remote: Option<Remote>,
    /// A record that was there once, as somebody else knows: the root side's last checkpoint. A trail that ends before it
    /// was cut off; it goes on after it, which leaves a gap that everybody sees.
    pub known: Option<Head>,
}

/// What of a log can be changed while it is open.
#[derive(Debug, Clone)]
pub struct Reconfiguration {
    /// As [`Options::keep_days`].
    pub keep_days: Option<u32>,
    /// As [`Options::remote`].
    pub remote: Option<Remote>,
}

impl Options {
    /// The usual: the journal where it is, daily files for 30 days.
    #[must_use]
    pub fn new(identifier: &str) -> Self {
        Self {
            identifier: identifier.to_owned(),
            journal: Some(PathBuf::from(JOURNAL_SOCKET)),
            queue: 4096,
            keep_days: Some(30),
            remote: None,
            known: None,
        }
    }

    /// The same without the journal: for tests and for hosts below a root prefix.
    #[must_use]
    pub fn without_journal(mut self) -> Self {
        self.journal = None;
        self
    }
}

/// How the log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The last record on disk.
    pub head: Option<Head>,
    /// Why the last attempt to write failed; `None` when it did not.
    pub error: Option<String>,
    /// Records that could not be written since it fails; those that somebody waited for were refused to them.
    pub lost: u64,
    /// Groups written since the log was opened: one sync each.
    pub groups: u64,
    /// Records that the journal did not take, ever.
    pub journal_dropped: u64,
    /// How the remote sink is, if there is one.
    pub remote: Option<RemoteStatus>,
}

impl Status {
    /// Whether the last attempt to write succeeded.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.error.is_none()
    }
}

/// What the writer tells.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    /// Records of [`AuditLog::record_later`] that found the queue full.
    pub(crate) dropped: AtomicU64,
    pub(crate) journal_dropped: AtomicU64,
    /// The settings that the writer goes on with from its next group on, if they changed.
    pub(crate) wanted: Mutex<Option<Reconfiguration>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) head: Option<Head>,
    pub(crate) error: Option<String>,
    pub(crate) lost: u64,
    pub(crate) groups: u64,
}

/// The durable local trail and the sinks behind it. Share it in an `Arc`; dropping the last one closes it.
pub struct AuditLog {
    queue: Sender,
    shared: Arc<Shared>,
    shipping: Shipping,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditLog").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl AuditLog {
    /// Opens or creates the log at `path`, verifies its end and starts the writer. What a crash or somebody else did to
    /// the end is put right and recorded before this returns.
    ///
    /// # Errors
    /// When the file cannot be opened or read, or another process has it open. A full disk is no error here: see
    /// [`AuditLog::status`].
    pub fn open(path: &Path, options: Options) -> Result<Self, AuditError> {
        let opened = LogFile::open(path, WINDOW)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            dropped: AtomicU64::new(0),
            journal_dropped: AtomicU64::new(0),
            wanted: Mutex::default(),
        });
        let (queue, messages) = queue(options.queue);
        let shipping = Shipping::new(path, &options.identifier, queue.clone());
        let journal = Journal::new(options.journal, options.identifier);
        let configuration = Reconfiguration { keep_days: options.keep_days, remote: options.remote };
        let writer =
            Writer::new(opened, options.known, journal, Arc::clone(&shared), shipping.clone(), configuration);
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&messages))
            .map_err(|source| AuditError::Io {
                path: path.to_owned(),
                action: "given a thread",
                source: Arc::new(source),
            })?;
        Ok(Self { queue, shared, shipping, writer: Mutex::new(Some(thread)) })
    }

    /// Hands a record over and returns. `on_durable` is called once it is on disk or has failed; it is dropped uncalled
    /// only when the log is closed at that very moment.
    ///
    /// # Errors
    /// When the queue is full or the log closed; then `on_durable` is never called.
    pub fn submit(&self, event: AuditEvent, on_durable: OnDurable) -> Result<(), AuditError> {
        self.send(Message::Record { event: Box::new(event), waiter: Some(on_durable) })
    }

    /// Waits until a record is on disk. Not for asynchronous code: use [`AuditLog::submit`] there.
    ///
    /// # Errors
    /// When it is not: the log is then as if the record had never been.
    pub fn record(&self, event: AuditEvent) -> Result<Head, AuditError> {
        let (done, wait) = sync_channel(1);
        self.submit(event, Box::new(move |place| drop(done.send(place))))?;
        wait.recv().unwrap_or(Err(AuditError::Closed))
    }

    /// Hands over a record that nobody waits for, such as a read's: it is on disk within about a second, and before
    /// anything that is recorded after it. What the queue cannot hold is counted, and the count recorded.
    pub fn record_later(&self, event: AuditEvent) {
        if self.send(Message::Record { event: Box::new(event), waiter: None }).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn send(&self, message: Message) -> Result<(), AuditError> {
        self.queue.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) => AuditError::QueueFull,
            TrySendError::Disconnected(_) => AuditError::Closed,
        })
    }

    /// The last record on disk; `None` while there is none.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).head
    }

    /// How the log is.
    #[must_use]
    pub fn status(&self) -> Status {
        let journal_dropped = self.shared.journal_dropped.load(Ordering::Relaxed);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // Closed, or ended by a fault: nothing is written any more, and nobody says so but this.
        let has_ended = writer.as_ref().is_none_or(JoinHandle::is_finished);
        drop(writer);
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        Status {
            head: state.head,
            error: state.error.clone().or_else(|| has_ended.then(|| AuditError::Closed.to_string())),
            lost: state.lost,
            groups: state.groups,
            journal_dropped,
            remote: self.shipping.status(),
        }
    }

    /// Changes how long files are kept and where records go besides. Nothing is lost by it: a new target gets what the
    /// one before had not got. However busy the log is, it is in effect before the next group is written.
    ///
    /// # Errors
    /// When the log is closed.
    pub fn reconfigure(&self, configuration: Reconfiguration) -> Result<(), AuditError> {
        let mut wanted = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        // One message is under way for as long as something is wanted.
        if wanted.replace(configuration).is_some() {
            return Ok(());
        }
        drop(wanted);
        self.queue.send(Message::Reconfigure).map_err(|_| AuditError::Closed)
    }

    /// Waits until everything that was handed over before is on disk.
    ///
    /// # Errors
    /// When some of it is not, or the log is closed.
    pub fn flush(&self) -> Result<(), AuditError> {
        let (done, wait) = sync_channel(1);
        self.queue.send(Message::Flush { done }).map_err(|_| AuditError::Closed)?;
        wait.recv().unwrap_or(Err(AuditError::Closed))
    }

    /// Writes what was handed over, ends the writer and waits for it. Afterwards every call says that the log is
    /// closed; closing again does nothing.
    pub fn close(&self) {
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Fails only when the writer has ended already.
            let _ = self.queue.send(Message::Close);
            let _ = thread.join();
            self.shipping.close();
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{AuditKind, Caller};

    #[test]
    fn a_writer_that_ends_by_itself_is_a_failed_sink() {
        let dir = tempfile::tempdir().unwrap();
        let log =
            AuditLog::open(&dir.path().join("audit.log"), Options::new("test").without_journal()).unwrap();
        let event = || AuditEvent::new(AuditKind::AuthSuccess, &Caller::local());
        log.record(event()).unwrap();
        assert!(log.status().is_healthy());
        log.queue.send(Message::Close).map_err(drop).unwrap();
        // Nobody has asked the log to close.
        let refused = loop {
            if let Err(error) = log.record(event()) {
                break error;
            }
        };
        assert!(matches!(refused, AuditError::Closed), "{refused}");
        while log.status().is_healthy() {
            std::thread::yield_now();
        }
        log.record_later(event());
        assert_eq!(log.shared.dropped.load(Ordering::Relaxed), 1);
        assert!(log.flush().is_err());
        log.close();
    }
}
