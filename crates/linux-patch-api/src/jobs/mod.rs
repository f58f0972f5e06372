//! The jobs.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use patch_types::{
    ErrorCode, ErrorDetail, JobId, JobStatus, Operation, PackageName,
    api::{Job, JobList, Requester},
    executor::Limits,
};

use crate::{audit::Audit, executor::Executor};

pub mod session;

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
    /// No more ended jobs than this are kept.
    pub keep_count: usize,
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
        }
    }
}

/// Why the jobs cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {}

/// A client's own name for a request, by which a retry is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Who asks.
    pub requester: Requester,
    /// What was asked, exactly.
    pub request: serde_json::Value,
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
pub struct Jobs {}

impl Jobs {
    /// Loads the jobs below the root prefix and settles what the last run left: see the module's documentation.
    ///
    /// # Errors
    /// When the directory cannot be made or read. A damaged file in it is no error.
    pub async fn open(_root: &Path, _executor: Executor, _audit: Audit, _settings: JobSettings) -> Result<Self, JobsError> {
        Ok(Self {})
    }

    /// Puts other settings into effect for what comes.
    pub fn reconfigure(&self, _settings: JobSettings) {}

    /// Accepts a change: when this returns, the job and its audit record are on disk.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `JOB_CONFLICT` (too many wait) or `SERVICE_UNHEALTHY` (not durable: there is no job then).
    pub async fn submit(&self, _submission: Submission) -> Result<Submitted, ErrorDetail> {
        Err(ErrorDetail::new(ErrorCode::ServiceUnhealthy, "not yet"))
    }

    /// One job with its plan, results, log and output.
    pub async fn get(&self, _id: JobId) -> Option<Job> {
        None
    }

    /// The jobs that a filter lets through, newest first, without log, plan and results.
    #[must_use]
    pub fn list(&self, _filter: &JobFilter) -> JobList {
        JobList { jobs: Vec::new(), total: 0 }
    }

    /// Cancels a job while that is safe.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`, `JOB_CONFLICT` (too late), or `SERVICE_UNHEALTHY`.
    pub async fn cancel(&self, _id: JobId, _requester: &Requester) -> Result<Job, ErrorDetail> {
        Err(ErrorDetail::new(ErrorCode::ServiceUnhealthy, "not yet"))
    }

    /// Waits until the job has ended, at most so long, and returns it as it is then.
    pub async fn wait(&self, _id: JobId, _limit: Duration) -> Option<Job> {
        None
    }

    /// How many jobs there are.
    #[must_use]
    pub fn counts(&self) -> JobCounts {
        JobCounts::default()
    }

    /// What was found damaged on disk at start, one sentence each: for the health check.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        Vec::new()
    }

    /// Stops following, ends all streams, and writes what is still to be written. Jobs of the root side go on.
    pub async fn shutdown(&self) {}
}
