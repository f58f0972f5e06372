//! The jobs: every change of the host, from its acceptance to long after its end.
//!
//! This module owns the daemon's record of each job and nothing of the change itself. The root side carries it out and
//! writes down what happens; we hand it over, mirror its events, and show them. Three rules hold throughout:
//!
//! - What was acknowledged is on disk, in our store and in the audit trail, and so is what is shown as ended.
//! - The event file is the truth about a job that has begun. After a restart each job that has not ended is looked up
//!   there: begun ones are followed again from the first event, those of a dead executor are settled by the root side,
//!   and those that never began take their place in the queue again. Nothing is ever handed over under a second id.
//! - Memory is bounded: of ended jobs only what lists show is kept, the log of running ones is cut at its beginning,
//!   and nobody who looks on is buffered for without bound.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use patch_types::{
    ChangeOptions, JobId, JobStatus, Operation, PackageName, PlanHash,
    api::{Job, JobList, Requester},
    executor::Limits,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{audit::Audit, executor::Executor};

mod confirm;
mod end;
mod following;
mod mirror;
mod open;
mod outcome;
mod record;
mod run;
pub mod session;
mod store;
mod stream;
mod submit;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use confirm::NEW_CONNECTION;
pub use store::StoreError;
pub use stream::{Cut, Subscriber};

use record::full;
use table::{Slot, Table};

/// How long stopping waits for what is being written.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How jobs are run and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSettings {
    /// How many jobs the root side is given at once.
    pub max_active: usize,
    /// How many may wait beyond those.
    pub max_pending: usize,
    /// The limit of a whole job.
    pub timeout: Duration,
    /// How long a job waits for the package manager's lock.
    pub lock_wait: Duration,
    /// Ended jobs are forgotten after so many days.
    pub keep_days: u32,
    /// No more ended jobs than this are kept, except those whose idempotency keys still hold.
    pub keep_count: usize,
    /// No more idempotency keys than this are remembered, and so no more jobs are kept for their sake: a new key
    /// beyond it is refused until an old one has run out.
    pub max_keys: usize,
    /// How long a job that certainly has not begun is offered to a root side that does not answer.
    pub patience: Duration,
    /// The first pause between two attempts; later ones double.
    pub retry: Duration,
    /// How often the root side may fail to settle a job before that is its end.
    pub settle_attempts: u32,
    /// How long an end that the root side has on disk is held back because it cannot be recorded here. Then it is
    /// shown all the same: the next start finds it there. An end that only this process knows is held back for as long
    /// as that takes, since the next start would not find it and might carry the job out.
    pub held_back: Duration,
    /// How long the root side has to begin settling after it has said that it will.
    pub settle_grace: Duration,
}

impl Default for JobSettings {
    fn default() -> Self {
        Self {
            max_active: 5,
            max_pending: 1000,
            timeout: Duration::from_secs(30 * 60),
            lock_wait: Duration::from_secs(10 * 60),
            keep_days: 90,
            keep_count: 1000,
            max_keys: 10_000,
            patience: Duration::from_secs(60),
            retry: Duration::from_millis(250),
            settle_attempts: 3,
            held_back: Duration::from_secs(30),
            settle_grace: Duration::from_secs(1),
        }
    }
}

impl JobSettings {
    fn limits(&self) -> Limits {
        Limits { timeout_seconds: self.timeout.as_secs().max(1), lock_wait_seconds: self.lock_wait.as_secs() }
    }
}

/// Why the jobs cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// Their directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Reading it did not come to an end.
    #[error("reading the jobs was broken off")]
    Interrupted,
}

/// A client's own name for a request, by which a retry is recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// `Idempotency-Key`.
    pub key: String,
    /// SHA-256 of what was asked (method, path, query and body), in hexadecimal.
    pub body_sha256: String,
}

/// A change that a client asks for.
#[derive(Debug, Clone)]
pub struct Submission {
    /// What is to be done.
    pub operation: Operation,
    /// Limits other than the usual ones.
    pub limits: Option<Limits>,
    /// How it is to be made.
    pub options: ChangeOptions,
    /// Who asks.
    pub requester: Requester,
    /// What was asked, exactly.
    pub request: serde_json::Value,
    /// The approved plan: with another one the root side begins nothing.
    pub if_plan: Option<PlanHash>,
    /// From then on the root side begins nothing of it any more.
    pub not_after: Option<Timestamp>,
    /// The client's name for the request.
    pub idempotency: Option<Idempotency>,
}

/// An accepted change.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// The job.
    pub job: Job,
    /// Whether it is an earlier one, of the same idempotency key.
    pub replayed: bool,
}

/// Which jobs a list is to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Only in this status.
    pub status: Option<JobStatus>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only those that name, or changed, this package.
    pub package: Option<PackageName>,
    /// Only those accepted at or after this instant.
    pub since: Option<Timestamp>,
    /// At most so many; all if absent.
    pub limit: Option<usize>,
    /// After leaving out so many.
    pub offset: usize,
}

/// How many jobs there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// Waiting for their turn.
    pub pending: usize,
    /// With the root side.
    pub active: usize,
    /// Ended and still kept.
    pub ended: usize,
}

/// All jobs of this host. Cheap to clone.
#[derive(Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    table: Mutex<Table>,
    store: store::Store,
    executor: Executor,
    audit: Audit,
    hub: stream::Hub,
    /// How many jobs have ended.
    ends: watch::Sender<u64>,
    /// How they ended.
    outcomes: outcome::Counters,
    /// Who is shown an ended job's log: it is in memory meanwhile.
    old_logs: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Jobs {
    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic under this lock is a bug, but no reason to lose every other job.
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts other settings into effect for what comes. Jobs that wait keep the limits that they were accepted with.
    pub fn reconfigure(&self, settings: JobSettings) {
        self.table().settings = settings;
        self.pump();
        self.prune();
    }

    /// One job with its plan, results, log and output.
    pub async fn get(&self, id: JobId) -> Option<Job> {
        let (listed, unsaved) = {
            let table = self.table();
            match table.slots.get(&id)? {
                Slot::Live(live) => {
                    let (job, log) = (live.shown(true), live.mirror.log.entries());
                    drop(table);
                    let plan = job.plan.clone();
                    let log = log.iter().map(|entry| entry.line.clone()).collect();
                    return Some(full(job, plan, Vec::new(), log));
                }
                Slot::Past(past) => (past.job.clone(), past.unsaved.clone()),
            }
        };
        if let Some(record) = unsaved {
            return Some(record.into_job());
        }
        let jobs = self.clone();
        match tokio::task::spawn_blocking(move || jobs.inner.store.read(id)).await {
            Ok(Ok(record)) => Some(record.into_job()),
            Ok(Err(_)) if !self.table().slots.contains_key(&id) => None,
            Ok(Err(error)) => {
                tracing::error!(%error, job = %id, "of this job only the summary is left");
                let problem = error.to_string();
                let mut table = self.table();
                if !table.problems.contains(&problem) {
                    table.problems.push(problem);
                }
                Some(Job { log_truncated: true, ..listed })
            }
            Err(_) => Some(Job { log_truncated: true, ..listed }),
        }
    }

    /// One job as lists show it: nothing is read from the disk.
    #[must_use]
    pub fn summary(&self, id: JobId) -> Option<Job> {
        self.table().slots.get(&id).map(|slot| slot.job().clone())
    }

    /// The jobs that a filter lets through, newest first, without log, plan and results.
    #[must_use]
    pub fn list(&self, filter: &JobFilter) -> JobList {
        self.table().list(filter)
    }

    /// Waits until the job has ended, at most so long, and returns it as it is then.
    pub async fn wait(&self, id: JobId, limit: Duration) -> Option<Job> {
        // Whether it ended, or the time did, or the agent stops: the job is returned as it is.
        let _ = timeout(limit, self.ended(id)).await;
        self.get(id).await
    }

    /// Waits until the job has ended, and reads nothing. Returns at once if there is no such job, and when the agent
    /// stops.
    pub fn ended(&self, id: JobId) -> impl Future<Output = ()> + Send + use<> {
        let ended = self.table().live(id).map(|live| live.ended.subscribe());
        let stop = self.inner.stop.clone();
        async move {
            let Some(mut ended) = ended else { return };
            tokio::select! {
                // An error says that the job was forgotten, which only happens to ended ones.
                _ = ended.wait_for(|ended| *ended) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// How many jobs have ended since the start, those that the last run left included. It grows before an end is
    /// shown: who remembers the number beside what was read of the host knows whether to read it again, and who waits
    /// for it to change learns of every end.
    #[must_use]
    pub fn ends(&self) -> watch::Receiver<u64> {
        self.inner.ends.subscribe()
    }

    /// How many jobs there are.
    #[must_use]
    pub fn counts(&self) -> JobCounts {
        self.table().counts()
    }

    /// What was found damaged on disk, one sentence each: for the health check.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.table().problems.clone()
    }

    /// Stops following, ends all streams, and writes what is still to be written. Jobs of the root side go on, and are
    /// picked up at the next start.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        if timeout(STOP_LIMIT, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!("stopping without waiting any longer for the disk");
            return;
        }
        let jobs = self.clone();
        let closing = tokio::task::spawn_blocking(move || jobs.inner.store.close());
        if !matches!(timeout(STOP_LIMIT, closing).await, Ok(Ok(()))) {
            tracing::warn!("the writer of jobs was not waited for");
        }
    }
}
