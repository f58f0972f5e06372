//! How jobs ended: counted for the metrics, and the one end that needs a person looked for.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::{SignedDuration, Timestamp};
use patch_types::{JobId, JobStatus, Outcome, api::Job};

use super::Jobs;

/// For how long a rollback that failed is shown, if nobody repeats it.
const SHOWN_FOR: SignedDuration = SignedDuration::from_hours(24);

/// The kind of the jobs that undo others.
const ROLLBACK: &str = "rollback";

/// How many jobs ended how, since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    applied: AtomicU64,
    unchanged: AtomicU64,
    rolled_back: AtomicU64,
    partial: AtomicU64,
    rollback_failed: AtomicU64,
    unknown: AtomicU64,
}

impl Counters {
    fn of(&self, outcome: Option<Outcome>) -> &AtomicU64 {
        match outcome {
            Some(Outcome::Applied) => &self.applied,
            Some(Outcome::Unchanged) => &self.unchanged,
            Some(Outcome::RolledBack) => &self.rolled_back,
            Some(Outcome::Partial) => &self.partial,
            Some(Outcome::RollbackFailed) => &self.rollback_failed,
            None => &self.unknown,
        }
    }

    pub(super) fn count(&self, outcome: Option<Outcome>) {
        self.of(outcome).fetch_add(1, Ordering::Relaxed);
    }
}

const OUTCOMES: [Option<Outcome>; 6] = [
    Some(Outcome::Applied),
    Some(Outcome::Unchanged),
    Some(Outcome::RolledBack),
    Some(Outcome::Partial),
    Some(Outcome::RollbackFailed),
    None,
];

impl Jobs {
    /// How many jobs have ended how since the start; `unknown` is what nobody could tell.
    #[must_use]
    pub fn outcomes(&self) -> [(&'static str, u64); 6] {
        OUTCOMES.map(|outcome| {
            let count = self.inner.outcomes.of(outcome).load(Ordering::Relaxed);
            (outcome.map_or("unknown", Outcome::as_str), count)
        })
    }

    /// The latest job of the last 24 hours that could not be rolled back, unless rolling it back succeeded since.
    #[must_use]
    pub fn failed_rollback(&self, now: Timestamp) -> Option<JobId> {
        let table = self.table();
        latest_failure(table.slots.values().rev().map(super::table::Slot::job), now)
    }
}

/// Of jobs, newest first.
fn latest_failure<'a>(jobs: impl Iterator<Item = &'a Job>, now: Timestamp) -> Option<JobId> {
    let mut repaired = Vec::new();
    for job in jobs {
        let target = undoes(job).unwrap_or(job.job_id);
        if job.kind == ROLLBACK && job.status == JobStatus::Completed {
            repaired.push(target);
        }
        let recent = job.completed_at.is_some_and(|at| now.duration_since(at) < SHOWN_FOR);
        if job.outcome == Some(Outcome::RollbackFailed) && recent && !repaired.contains(&target) {
            return Some(job.job_id);
        }
    }
    None
}

/// Which job another one undoes, as its request says.
fn undoes(job: &Job) -> Option<JobId> {
    if job.kind != ROLLBACK {
        return None;
    }
    job.request.get("job_id")?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::testing;

    #[test]
    fn a_failed_rollback_is_shown_until_it_succeeds_or_is_old() {
        let now = Timestamp::now();
        let ended = |kind: &str, status, outcome, at| Job {
            kind: kind.to_owned(),
            status,
            outcome: Some(outcome),
            completed_at: Some(at),
            ..testing::job()
        };
        let failed = ended("install", JobStatus::Failed, Outcome::RollbackFailed, now);
        let of = |target: JobId, status, outcome| Job {
            request: serde_json::json!({"job_id": target.to_string(), "force": false}),
            ..ended("rollback", status, outcome, now)
        };
        let fine = ended("install", JobStatus::Completed, Outcome::Applied, now);
        let look = |jobs: &[&Job]| latest_failure(jobs.iter().copied(), now);
        assert_eq!(look(&[&fine]), None);
        assert_eq!(look(&[&fine, &failed]), Some(failed.job_id));
        let again = of(failed.job_id, JobStatus::Failed, Outcome::RollbackFailed);
        assert_eq!(look(&[&again, &failed]), Some(again.job_id));
        let done = of(failed.job_id, JobStatus::Completed, Outcome::RolledBack);
        assert_eq!(look(&[&done, &again, &failed]), None);
        let other = of(fine.job_id, JobStatus::Completed, Outcome::RolledBack);
        assert_eq!(look(&[&other, &failed, &fine]), Some(failed.job_id), "another job was rolled back");
        assert_eq!(look(&[&failed, &done]), Some(failed.job_id), "it failed again since");
        let old = Job { completed_at: Some(now - SignedDuration::from_hours(25)), ..failed };
        assert_eq!(look(&[&old]), None);
    }
}
