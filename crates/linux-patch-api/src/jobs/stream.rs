//! Who looks on: one bounded feed for all subscribers, and what a new one is given first.
//!
//! Each message is serialised once and shared. The feed holds the last [`FEED`] messages; a subscriber that falls
//! further behind is told so and cut off, so that nothing is buffered for it without bound. A snapshot is taken under
//! the lock under which events are applied and published, and carries the job's version: what the feed brings of that
//! version or an earlier one is in the snapshot already.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::extract::ws::Utf8Bytes;
use patch_types::{
    ErrorCode, ErrorDetail, JobId,
    api::{Job, JobLog, LogLine, ServerMessage},
};
use tokio::{
    sync::{
        OwnedSemaphorePermit,
        broadcast::{
            self,
            error::{RecvError, TryRecvError},
        },
    },
    time::timeout,
};
use uuid::Uuid;

use super::{
    Jobs,
    mirror::Entry,
    table::{Live, Slot},
};

/// How many messages a subscriber may lag behind.
pub(super) const FEED: usize = 2048;

/// How many may be shown the logs of ended jobs at once. Those come from the disk, and each is in memory meanwhile.
pub(super) const OLD_LOGS: usize = 8;

/// How long one waits for that.
const OLD_LOGS_LIMIT: Duration = Duration::from_secs(20);

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
pub(super) fn status(live: &Live, with_details: bool) -> Utf8Bytes {
    frame(&ServerMessage::JobStatus(Box::new(live.shown(with_details))))
}

/// Sends messages to whoever looks on.
pub(super) struct Hub {
    /// Made for the first who looks on: it takes its memory at once.
    feed: OnceLock<broadcast::Sender<Published>>,
    /// The last message's number. Changed under the lock of the table only.
    number: AtomicU64,
}

impl Hub {
    pub(super) fn new() -> Self {
        Self { feed: OnceLock::new(), number: AtomicU64::new(0) }
    }

    fn subscribe(&self) -> broadcast::Receiver<Published> {
        self.feed.get_or_init(|| broadcast::channel(FEED).0).subscribe()
    }

    fn is_watched(&self) -> bool {
        self.feed.get().is_some_and(|feed| feed.receiver_count() > 0)
    }

    /// A message about a job that has not ended. It is only made if somebody looks on.
    pub(super) fn publish(&self, live: &mut Live, frame: impl FnOnce(&Live) -> Utf8Bytes) {
        live.version += 1;
        if self.is_watched() {
            self.send(live, frame(live), false);
        }
    }

    /// A job's last message.
    pub(super) fn publish_end(&self, live: &mut Live, complete: &ServerMessage) {
        live.version += 1;
        if self.is_watched() {
            self.send(live, frame(complete), true);
        }
    }

    fn send(&self, live: &Live, frame: Utf8Bytes, last: bool) {
        let job = live.mirror.head.job.job_id;
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(feed) = self.feed.get() {
            // An error only says that the last subscriber has just left.
            let _ = feed.send(Published { job, version: live.version, number, last, frame });
        }
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
            feed: self.inner.hub.subscribe(),
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
    /// `JOB_NOT_FOUND`; `SERVICE_UNHEALTHY` when too many are being shown the logs of ended jobs.
    pub async fn subscribe(&mut self, id: JobId) -> Result<Frames, ErrorDetail> {
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
            return Ok(Frames::live(vec![snapshot]));
        }
        let room = timeout(OLD_LOGS_LIMIT, Arc::clone(&self.jobs.inner.old_logs).acquire_owned()).await;
        let Ok(Ok(room)) = room else {
            return Err(ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                "too many logs of ended jobs are being read; subscribe again in a moment, or GET the job",
            ));
        };
        let mut job = self.jobs.get(id).await.ok_or_else(unknown)?;
        job.output = None;
        let log = std::mem::take(&mut job.log).into_iter();
        Ok(Frames(Source::Old { job: Box::new(job), log, step: Step::Begin, _room: room }))
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
    pub fn subscribe_all(&mut self) -> Frames {
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
        Frames::live(snapshots)
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
}

/// What a new subscriber is given first, message by message: each is made when it is asked for, without the lock, so
/// that a long log is not held twice and waits for nobody.
pub struct Frames(Source);

enum Source {
    /// Jobs that have not ended.
    Live { snapshots: std::vec::IntoIter<Snapshot>, id: JobId, log: std::vec::IntoIter<Arc<Entry>> },
    /// One that has.
    Old { job: Box<Job>, log: std::vec::IntoIter<LogLine>, step: Step, _room: OwnedSemaphorePermit },
}

/// How far an ended job was told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Begin,
    Log,
    Done,
}

impl Frames {
    fn live(snapshots: Vec<Snapshot>) -> Self {
        let id = snapshots.first().map_or(JobId(Uuid::nil()), |snapshot| snapshot.job.job_id);
        Self(Source::Live { snapshots: snapshots.into_iter(), id, log: Vec::new().into_iter() })
    }
}

impl Iterator for Frames {
    type Item = Utf8Bytes;

    fn next(&mut self) -> Option<Utf8Bytes> {
        match &mut self.0 {
            Source::Live { snapshots, id, log } => {
                if let Some(entry) = log.next() {
                    return Some(entry.frame(*id));
                }
                let snapshot = snapshots.next()?;
                *id = snapshot.job.job_id;
                *log = snapshot.log.into_iter();
                Some(frame(&ServerMessage::JobStatus(Box::new(snapshot.job))))
            }
            Source::Old { job, log, step, .. } => match step {
                Step::Begin => {
                    *step = Step::Log;
                    Some(frame(&ServerMessage::JobStatus(job.clone())))
                }
                Step::Log => match log.next() {
                    Some(line) => Some(frame(&ServerMessage::JobLog(JobLog { job_id: job.job_id, line }))),
                    None => {
                        *step = Step::Done;
                        Some(frame(&ServerMessage::JobComplete(job.clone())))
                    }
                },
                Step::Done => None,
            },
        }
    }
}
