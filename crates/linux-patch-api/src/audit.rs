//! The audit trail as this crate's asynchronous code sees it: a record is awaited until it is on disk.

use std::sync::Arc;

use patch_audit::{AuditError, AuditEvent, AuditLog};
use tokio::sync::oneshot;

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
