//! Who looks on: one bounded feed for all subscribers, and what a new one is given first.
//!
//! Each message is serialised once and shared. The feed holds the last [`FEED`] messages; a subscriber that falls
//! further behind is told so and cut off, so that nothing is buffered for it without bound. A snapshot is taken under
//! the lock under which events are applied and published, and carries the job's version: what the feed brings of that
//! version or an earlier one is in the snapshot already.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::extract::ws::Utf8Bytes;
use patch_types::{
    ErrorCode, ErrorDetail, JobId,
    api::{Job, JobLog, ServerMessage},
};
use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use super::{
    Jobs,
    mirror::Entry,
    table::{Live, Slot},
};

/// How many messages a subscriber may lag behind.
pub(super) const FEED: usize = 2048;

/// A message about a job.
#[derive(Debug, Clone)]
pub(super) struct Published {
    job: JobId,
    version: u64,
    /// Over all jobs.
    number: u64,
    last: bool,
    frame: Utf8Bytes,
}

/// A message as it goes out.
pub(super) fn frame(message: &ServerMessage) -> Utf8Bytes {
    serde_json::to_string(message).map_or_else(
        |error| {
            // Only a map with keys that are no strings could fail, and there is none.
            tracing::error!(%error, "a message cannot be serialised");
            Utf8Bytes::from_static(r#"{"type":"error","payload":{"job_id":null,"code":"SERVICE_UNHEALTHY","message":"a message cannot be serialised","details":{},"retryable":true}}"#)
        },
        Utf8Bytes::from,
    )
}

/// A job's state as a message.
pub(super) fn status(live: &Live, with_plan: bool) -> Utf8Bytes {
    frame(&ServerMessage::JobStatus(Box::new(live.shown(with_plan))))
}

/// Sends messages to whoever looks on.
pub(super) struct Hub {
    feed: broadcast::Sender<Published>,
    /// The last message's number. Changed under the lock of the table only.
    number: AtomicU64,
}

impl Hub {
    pub(super) fn new() -> Self {
        Self { feed: broadcast::channel(FEED).0, number: AtomicU64::new(0) }
    }

    /// A message about a job that has not ended. It is only made if somebody looks on.
    pub(super) fn publish(&self, live: &mut Live, frame: impl FnOnce(&Live) -> Utf8Bytes) {
        live.version += 1;
        if self.feed.receiver_count() > 0 {
            self.send(live, frame(live), false);
        }
    }

    /// A job's last message.
    pub(super) fn publish_end(&self, live: &mut Live, complete: &ServerMessage) {
        live.version += 1;
        if self.feed.receiver_count() > 0 {
            self.send(live, frame(complete), true);
        }
    }

    fn send(&self, live: &Live, frame: Utf8Bytes, last: bool) {
        let job = live.mirror.head.job.job_id;
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        // An error only says that the last subscriber has just left.
        let _ = self.feed.send(Published { job, version: live.version, number, last, frame });
    }
}

/// Why a subscriber gets no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It read too slowly, and so many messages are gone.
    Slow(u64),
    /// The agent stops.
    Stopped,
}

/// What a subscriber knows of a job.
#[derive(Clone, Copy)]
struct Known {
    /// The version that its snapshot had.
    version: u64,
    /// Whether it asked for this job, and not only for all.
    by_name: bool,
}

/// One that looks on: at certain jobs, or at all.
pub struct Subscriber {
    jobs: Jobs,
    feed: broadcast::Receiver<Published>,
    following: HashMap<JobId, Known>,
    /// Whether all jobs are looked at: by what comes after the message of that number.
    all: Option<u64>,
    /// Jobs that are not to be shown although all are.
    muted: HashSet<JobId>,
}

impl Jobs {
    /// One that looks on, at nothing yet.
    #[must_use]
    pub fn subscriber(&self) -> Subscriber {
        Subscriber {
            jobs: self.clone(),
            feed: self.inner.hub.feed.subscribe(),
            following: HashMap::new(),
            all: None,
            muted: HashSet::new(),
        }
    }
}

impl Subscriber {
    /// How many jobs are looked at by name.
    #[must_use]
    pub fn named(&self) -> usize {
        self.following.values().filter(|known| known.by_name).count()
    }

    /// Looks at a job from now on: returns its state and its log so far; of an ended one its end as well. Of a job that
    /// is looked at already only the state.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`.
    pub async fn subscribe(&mut self, id: JobId) -> Result<Vec<Utf8Bytes>, ErrorDetail> {
        let unknown = || ErrorDetail::new(ErrorCode::JobNotFound, format!("there is no job {id}"));
        self.muted.remove(&id);
        let known = self.following.contains_key(&id);
        let snapshot = {
            let table = self.jobs.table();
            match table.slots.get(&id).ok_or_else(unknown)? {
                Slot::Live(live) => Some(Snapshot::of(live)),
                Slot::Past(_) => None,
            }
        };
        if let Some(mut snapshot) = snapshot {
            if known {
                snapshot.log.clear();
            } else {
                self.following.insert(id, Known { version: snapshot.version, by_name: true });
            }
            return Ok(snapshot.frames());
        }
        let mut job = self.jobs.get(id).await.ok_or_else(unknown)?;
        job.output = None;
        let log = std::mem::take(&mut job.log);
        let mut frames = vec![frame(&ServerMessage::JobStatus(Box::new(job.clone())))];
        frames.extend(log.into_iter().map(|line| frame(&ServerMessage::JobLog(JobLog { job_id: id, line }))));
        frames.push(frame(&ServerMessage::JobComplete(Box::new(job))));
        Ok(frames)
    }

    /// Looks at a job no more.
    pub fn unsubscribe(&mut self, id: JobId) {
        self.following.remove(&id);
        // Only what can still have messages: otherwise a client could fill the set with inventions.
        if self.all.is_some() && matches!(self.jobs.table().slots.get(&id), Some(Slot::Live(_))) {
            self.muted.insert(id);
        }
    }

    /// Looks at all jobs from now on, those to come included: returns the state and the log so far of those that have
    /// not ended and were not looked at before.
    pub fn subscribe_all(&mut self) -> Vec<Utf8Bytes> {
        let snapshots: Vec<Snapshot> = {
            let table = self.jobs.table();
            let live = table.slots.values().filter_map(|slot| match slot {
                Slot::Live(live) if !self.following.contains_key(&live.id()) => Some(Snapshot::of(live)),
                _ => None,
            });
            let snapshots = live.collect();
            // What the feed still holds of jobs that have ended is not news to one that comes only now.
            self.all.get_or_insert(self.jobs.inner.hub.number.load(Ordering::Relaxed));
            snapshots
        };
        self.muted.clear();
        for snapshot in &snapshots {
            let known = Known { version: snapshot.version, by_name: false };
            self.following.insert(snapshot.job.job_id, known);
        }
        snapshots.into_iter().flat_map(Snapshot::frames).collect()
    }

    /// The next message. Safe to drop and to call again.
    ///
    /// # Errors
    /// [`Cut`]: there is nothing more to come.
    pub async fn next(&mut self) -> Result<Utf8Bytes, Cut> {
        loop {
            let message = tokio::select! {
                biased;
                () = self.jobs.inner.stop.cancelled() => return Err(Cut::Stopped),
                message = self.feed.recv() => message,
            };
            let published = message.map_err(|e| match e {
                RecvError::Lagged(missed) => Cut::Slow(missed),
                RecvError::Closed => Cut::Stopped,
            })?;
            if let Some(frame) = self.wanted(published) {
                return Ok(frame);
            }
        }
    }

    /// The next message, if it is there already.
    ///
    /// # Errors
    /// [`Cut`]: there is nothing more to come.
    pub fn ready(&mut self) -> Result<Option<Utf8Bytes>, Cut> {
        loop {
            match self.feed.try_recv() {
                Ok(published) => {
                    if let Some(frame) = self.wanted(published) {
                        return Ok(Some(frame));
                    }
                }
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::Lagged(missed)) => return Err(Cut::Slow(missed)),
                Err(TryRecvError::Closed) => return Err(Cut::Stopped),
            }
        }
    }

    fn wanted(&mut self, published: Published) -> Option<Utf8Bytes> {
        let id = published.job;
        let muted = if published.last { self.muted.remove(&id) } else { self.muted.contains(&id) };
        let known =
            if published.last { self.following.remove(&id) } else { self.following.get(&id).copied() };
        let wanted = match known {
            Some(known) => published.version > known.version,
            None => !muted && self.all.is_some_and(|since| published.number > since),
        };
        wanted.then_some(published.frame)
    }
}

/// A job that has not ended, as it is at one moment.
struct Snapshot {
    job: Job,
    log: Vec<Arc<Entry>>,
    version: u64,
}

impl Snapshot {
    fn of(live: &Live) -> Self {
        Self { job: live.shown(true), log: live.mirror.log.entries(), version: live.version }
    }

    /// Made without the lock: a long log takes milliseconds.
    fn frames(self) -> Vec<Utf8Bytes> {
        let id = self.job.job_id;
        std::iter::once(frame(&ServerMessage::JobStatus(Box::new(self.job))))
            .chain(self.log.iter().map(|entry| entry.frame(id)))
            .collect()
    }
}
