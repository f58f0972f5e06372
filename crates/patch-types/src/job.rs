//! Jobs: identity, status, phase, outcome.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The identity of a job and of the operation that carries it out: a UUID, version 7 when we make it, so that names of
/// files sort by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, format = Uuid))]
pub struct JobId(pub Uuid);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// A text is not a job's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a job id: one looks like 0191e0a0-5c1e-7d2a-8b6f-3c1d2e4f5a6b, and the list of jobs has them")]
pub struct JobIdError;

impl FromStr for JobId {
    type Err = JobIdError;

    fn from_str(text: &str) -> Result<Self, JobIdError> {
        Uuid::try_parse(text).map(Self).map_err(|_| JobIdError)
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum JobStatus {
    /// Accepted, durable, not yet begun.
    Pending,
    /// The root side works on it.
    Running,
    /// Ended as asked.
    Completed,
    /// Ended otherwise; the error and the outcome say how.
    Failed,
    /// Ended by request before it changed anything.
    Cancelled,
    /// Ended by its time limit.
    Timeout,
}

impl JobStatus {
    /// Whether nothing more will happen to the job.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }

    /// The status as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a running job is doing. The executor journals a phase before it enters it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Phase {
    /// The solver works out what would change; nothing has changed yet.
    Planning,
    /// Indexes or archives are fetched; nothing has changed yet.
    Downloading,
    /// The change is tried on an image of the host; nothing has changed yet.
    Rehearsing,
    /// The way back is recorded.
    Snapshotting,
    /// The package database is being changed; the job cannot be cancelled any more.
    Applying,
    /// The result is compared with the plan.
    Verifying,
    /// Waiting for a client to confirm.
    Confirming,
    /// Going back to the recorded set.
    RollingBack,
    /// A reboot waits for the reboot window, or for its delay; nothing has been done yet.
    Waiting,
    /// The host reboots, or has rebooted and comes up; the job cannot be cancelled any more.
    Rebooting,
}

impl Phase {
    /// The phase as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planning => "planning",
            Self::Downloading => "downloading",
            Self::Rehearsing => "rehearsing",
            Self::Snapshotting => "snapshotting",
            Self::Applying => "applying",
            Self::Verifying => "verifying",
            Self::Confirming => "confirming",
            Self::RollingBack => "rolling_back",
            Self::Waiting => "waiting",
            Self::Rebooting => "rebooting",
        }
    }

    /// Whether a job in this phase can be cancelled without leaving anything half done.
    #[must_use]
    pub fn is_cancellable(self) -> bool {
        matches!(self, Self::Planning | Self::Downloading | Self::Rehearsing | Self::Waiting)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an ended job did to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Outcome {
    /// Everything planned was done.
    Applied,
    /// Nothing changed: there was nothing to do, or it failed before anything changed.
    Unchanged,
    /// Everything was taken back.
    RolledBack,
    /// Some packages changed and some did not; the results say which.
    Partial,
    /// Going back failed; the error says what is left.
    RollbackFailed,
}

impl Outcome {
    /// The outcome as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::RolledBack => "rolled_back",
            Self::Partial => "partial",
            Self::RollbackFailed => "rollback_failed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_job_id_is_told_what_one_looks_like() {
        let message = "the-last-one".parse::<JobId>().unwrap_err().to_string();
        assert!(!message.contains("UUID"), "{message}");
        let example = message.split([' ', ',']).find_map(|word| word.parse::<JobId>().ok());
        assert!(example.is_some_and(|id| message.contains(&id.to_string())), "{message}");
    }
}
