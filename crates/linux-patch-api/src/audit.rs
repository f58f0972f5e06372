//! The audit trail as this crate's asynchronous code sees it: a record is awaited until it is on disk.

use std::{path::Path, sync::Arc, time::Duration};

use patch_audit::{Acknowledgements, AuditError, AuditEvent, AuditLog, Options, Reconfiguration};
use patch_types::executor::ACKNOWLEDGED;
use tokio::sync::oneshot;

use crate::{checkpoint, config::Settings, syslog};

/// How the trail is kept, and where it goes, by the configuration.
#[must_use]
pub fn options(root: &Path, settings: &Settings) -> Options {
    let mut options = Options::new("linux-patch-api");
    let Reconfiguration { keep_days, remote } = syslog::configuration(settings);
    (options.keep_days, options.remote) = (keep_days, remote);
    options.known = checkpoint::known(root);
    // The journal of this host is not that of the host below a root prefix.
    if root == Path::new("/") { options } else { options.without_journal() }
}

/// Puts a changed configuration into effect: called with the settings in force when `retention_days` or `remote_syslog`
/// are other than before. The sinks are reconfigured here and nowhere else, and this does not wait for any of them.
pub fn reconfigure(log: &AuditLog, settings: &Settings) {
    if let Err(error) = log.reconfigure(syslog::configuration(settings)) {
        tracing::error!(%error, "config reload: the audit trail goes on as before");
    }
}

/// What was found damaged of the trail.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SetAside {
    /// The names of the files that were set aside, oldest first, and that root has not acknowledged.
    pub files: Vec<String>,
    /// Why it is not known what root has acknowledged.
    pub unread: Option<String>,
}

/// Looks for files of the trail that were set aside.
#[must_use]
pub fn set_aside(root: &Path) -> SetAside {
    let name =
        |path: &std::path::PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let path = root.join(ACKNOWLEDGED);
    let (known, unread) = match Acknowledgements::read(&path) {
        Ok(known) => (known, None),
        Err(error) => (
            Acknowledgements::default(),
            Some(format!("{} cannot be read, so nothing counts as acknowledged: {error}", path.display())),
        ),
    };
    let files = patch_audit::set_aside(&root.join(patch_audit::LOG_PATH));
    SetAside { files: files.iter().map(name).filter(|name| !known.names(name)).collect(), unread }
}

/// Looks at a disk that may hang: one look at a time, and nobody waits for it for long.
#[derive(Debug, Default)]
pub(crate) struct Looks(Arc<tokio::sync::Mutex<()>>);

impl Looks {
    /// What is seen; none if there is no answer in time.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        within: Duration,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let looking = async {
            let turn = Arc::clone(&self.0).lock_owned().await;
            // The turn is over when the look is, also if nobody waits for it any more: a disk that hangs takes one thread.
            let look = move || {
                let _turn = turn;
                look()
            };
            tokio::task::spawn_blocking(look).await.ok()
        };
        tokio::time::timeout(within, looking).await.ok().flatten()
    }
}

/// A handle on the audit trail. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    sink: Sink,
}

#[derive(Clone)]
enum Sink {
    Log(Arc<AuditLog>),
    #[cfg(test)]
    Script(Script),
}

impl Audit {
    /// The trail of an open log.
    #[must_use]
    pub fn new(log: Arc<AuditLog>) -> Self {
        Self { sink: Sink::Log(log) }
    }

    /// Records an event; when this returns it is on disk.
    ///
    /// # Errors
    /// When it is not.
    pub async fn record_durable(&self, event: AuditEvent) -> Result<(), AuditError> {
        self.record_all_durable(&mut vec![event]).await
    }

    /// Records events in order; when this returns they are on disk. They share the syncs. More of them than the trail's
    /// queue holds are recorded in several rounds.
    ///
    /// # Errors
    /// When one of them is not. Those that are on disk are gone from `events` then, so that the rest can be tried again.
    pub async fn record_all_durable(&self, events: &mut Vec<AuditEvent>) -> Result<(), AuditError> {
        while !events.is_empty() {
            let mut waiting = Vec::with_capacity(events.len());
            let mut full = None;
            for event in &*events {
                let (done, durable) = oneshot::channel();
                if let Err(error) = self.submit(event.clone(), done) {
                    full = Some(error);
                    break;
                }
                waiting.push(durable);
            }
            if let (true, Some(error)) = (waiting.is_empty(), full) {
                return Err(error);
            }
            let mut failed = Ok(());
            let mut recorded = Vec::with_capacity(waiting.len());
            for durable in waiting {
                let result = durable.await.unwrap_or(Err(AuditError::Closed));
                recorded.push(result.is_ok());
                failed = failed.and(result);
            }
            let mut recorded = recorded.into_iter();
            events.retain(|_| !recorded.next().unwrap_or(false));
            failed?;
        }
        Ok(())
    }

    /// Hands over an event that nobody waits for.
    pub fn record_later(&self, event: AuditEvent) {
        match &self.sink {
            Sink::Log(log) => log.record_later(event),
            #[cfg(test)]
            Sink::Script(script) => drop(script.take(event)),
        }
    }

    fn submit(
        &self,
        event: AuditEvent,
        done: oneshot::Sender<Result<(), AuditError>>,
    ) -> Result<(), AuditError> {
        match &self.sink {
            // Whoever waited may be gone; the record is on disk all the same.
            Sink::Log(log) => log.submit(event, Box::new(move |place| drop(done.send(place.map(drop))))),
            #[cfg(test)]
            Sink::Script(script) => {
                script.admit()?;
                drop(done.send(script.take(event)));
                Ok(())
            }
        }
    }
}

/// A trail for tests of what is recorded, and of what happens when it cannot be.
#[cfg(test)]
#[derive(Clone, Default)]
pub(crate) struct Script {
    events: Arc<std::sync::Mutex<Vec<AuditEvent>>>,
    failing: Arc<std::sync::atomic::AtomicBool>,
    /// How many events the queue still takes before it refuses one, if it is bounded.
    room: Arc<std::sync::Mutex<Option<usize>>>,
}

#[cfg(test)]
impl Script {
    pub(crate) fn audit(&self) -> Audit {
        Audit { sink: Sink::Script(self.clone()) }
    }

    pub(crate) fn fail(&self, failing: bool) {
        self.failing.store(failing, std::sync::atomic::Ordering::SeqCst);
    }

    /// Refuses the event after so many.
    pub(crate) fn room(&self, room: usize) {
        *self.room.lock().unwrap() = Some(room);
    }

    fn admit(&self) -> Result<(), AuditError> {
        let mut room = self.room.lock().unwrap();
        match &mut *room {
            Some(0) => {
                *room = None;
                Err(AuditError::QueueFull)
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(crate) fn events(&self) -> Vec<AuditEvent> {
        self.events.lock().unwrap().clone()
    }

    fn take(&self, event: AuditEvent) -> Result<(), AuditError> {
        if self.failing.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(AuditError::Closed);
        }
        self.events.lock().unwrap().push(event);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, time::Instant};

    use patch_audit::{AuditKind, Caller, Options};

    use super::*;

    #[tokio::test]
    async fn a_disk_that_hangs_takes_one_thread_and_nobodys_time() {
        let looks = Looks::default();
        let (answer, hangs) = channel::<()>();
        let short = Duration::from_millis(20);
        assert_eq!(looks.look(short, move || hangs.recv().is_ok()).await, None);
        // While it hangs nobody else looks.
        assert_eq!(looks.look(short, || panic!("a second look")).await, None::<()>);
        answer.send(()).unwrap();
        assert_eq!(looks.look(Duration::from_secs(10), || 7).await, Some(7));
    }

    fn event(what: &str) -> AuditEvent {
        AuditEvent::new(AuditKind::SystemChanged { what: what.to_owned() }, &Caller::local())
    }

    /// The writer hangs as it does when a disk does not answer: within a record.
    #[tokio::test]
    async fn a_sink_that_hangs_holds_up_changes_alone_and_is_recovered_from() {
        let dir = tempfile::tempdir().unwrap();
        let log = Arc::new(
            AuditLog::open(&dir.path().join("audit.log"), Options::new("test").without_journal()).unwrap(),
        );
        let audit = Audit::new(Arc::clone(&log));
        let (release, hangs) = channel::<()>();
        let (tell, told) = channel();
        let hang = move |_| {
            tell.send(()).unwrap();
            let _ = hangs.recv();
        };
        log.submit(event("the last before"), Box::new(hang)).unwrap();
        told.recv().unwrap();

        let limit = Duration::from_millis(100);
        assert!(tokio::time::timeout(limit, audit.record_durable(event("a change"))).await.is_err());
        let began = Instant::now();
        for n in 0..10_000 {
            audit.record_later(event(&format!("read {n}")));
        }
        assert!(began.elapsed() < Duration::from_secs(5), "reads do not wait: {:?}", began.elapsed());
        // With a queue that is full a change is refused at once.
        assert!(matches!(audit.record_durable(event("another")).await, Err(AuditError::QueueFull)));

        drop(release);
        let head = tokio::task::spawn_blocking({
            let log = Arc::clone(&log);
            move || loop {
                // The queue empties first.
                if let Ok(head) = log.record(event("the first after")) {
                    break head;
                }
                std::thread::yield_now();
            }
        })
        .await
        .unwrap();
        log.close();
        let text = std::fs::read_to_string(dir.path().join("audit.log")).unwrap();
        assert_eq!(u64::try_from(text.lines().count()).unwrap(), head.seq.max(log.head().unwrap().seq));
        assert!(text.contains("records_dropped") && text.contains("a change"), "what was counted is told");
    }
}
