//! What was done, over restarts: one file, written anew and renamed.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use patch_policy::handover::PATIENCE;
use patch_types::{
    JobId, JobStatus,
    api::{Job, PolicyRun},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{certificates::write_durably, config::STATE_DIR};

const NAME: &str = "policy.json";

/// The most that it may hold, in bytes.
const MAX_SIZE: u64 = 64 << 10;

/// A run that has begun and of which the end was not seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    /// By which its job is known from others, also where that was accepted and not written down here.
    pub(super) request: Uuid,
    /// Its job, once that is there.
    pub(super) job: Option<JobId>,
    pub(super) began: Timestamp,
    /// When the window closes.
    pub(super) until: Timestamp,
    /// Whether it was called off because it was late.
    #[serde(default)]
    pub(super) called_off: bool,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    /// Since when the agent patches by itself; none while it does not.
    pub(super) since: Option<Timestamp>,
    /// When a run began last.
    pub(super) last_attempt: Option<Timestamp>,
    /// How many have failed since the last that did not.
    pub(super) failures: u32,
    pub(super) running: Option<Running>,
    /// The last that ended.
    pub(super) last: Option<PolicyRun>,
    pub(super) last_success: Option<Timestamp>,
    /// What was recorded last.
    pub(super) told: Option<String>,
    /// Which kind of decision that was.
    pub(super) told_kind: Option<String>,
    /// When.
    pub(super) told_at: Option<Timestamp>,
}

impl Memory {
    pub(super) fn path(root: &Path) -> PathBuf {
        root.join(STATE_DIR).join(NAME)
    }

    /// Reads it. One that is damaged counts as none: at worst a run more is made, which finds nothing to do.
    pub(super) fn load(root: &Path) -> Self {
        let path = Self::path(root);
        match read(&path) {
            Ok(memory) => memory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(%error, "{} cannot be used: what the policy did before is not known", path.display());
                Self::default()
            }
        }
    }

    /// Writes it durably.
    pub(super) fn save(&self, root: &Path) -> io::Result<()> {
        write_durably(&Self::path(root), &serde_json::to_vec(self).map_err(io::Error::other)?)
    }

    /// Whether nothing was installed for as long as an agent is relied upon.
    pub(super) fn is_without_success(&self, now: Timestamp) -> bool {
        let known = self.last_success.max(self.since).map_or(now, |known| known.min(now));
        now.duration_since(known) >= PATIENCE
    }

    /// The run that begins has a job.
    pub(super) fn began(&mut self, job: JobId) {
        let Some(running) = &mut self.running else { return };
        running.job = Some(job);
        self.last_attempt = Some(running.began);
    }

    /// The run that was to begin has got no job.
    pub(super) fn refused(&mut self, error: &str, now: Timestamp) {
        self.running = None;
        self.last_attempt = Some(now);
        self.failures = self.failures.saturating_add(1);
        self.last = Some(PolicyRun {
            job_id: None,
            started_at: now,
            ended_at: Some(now),
            status: None,
            outcome: None,
            error: Some(error.to_owned()),
            barred: Vec::new(),
        });
    }

    /// The job of the run has ended, and left these security fixes out. Then it is no failure, which would be tried again soon,
    /// and no success either.
    pub(super) fn ended(&mut self, job: &Job, barred: Vec<String>, now: Timestamp) {
        let Some(running) = self.running.take() else { return };
        let ended = job.completed_at.unwrap_or(now);
        self.last_attempt = Some(running.began);
        self.failures = match job.status {
            JobStatus::Completed => {
                if barred.is_empty() {
                    self.last_success = Some(ended);
                }
                0
            }
            // Whoever called it off does not want it to begin again at once. One that never had its turn is a failure, whether
            // this called it off or the root side did not begin it any more.
            JobStatus::Cancelled if !running.called_off && !was_late(job) => 0,
            _ => {
                // What is waited for counts from the end on: the run may have taken long.
                self.last_attempt = Some(ended.min(now).max(running.began));
                self.failures.saturating_add(1)
            }
        };
        self.last = Some(PolicyRun {
            job_id: Some(job.job_id),
            started_at: running.began,
            ended_at: Some(ended),
            status: Some(job.status),
            outcome: job.outcome,
            error: job.error_detail.as_ref().map(|error| error.message.clone()).or_else(|| job.error.clone()),
            barred,
        });
    }
}

/// Whether the root side did not begin it any more, since its time was over.
fn was_late(job: &Job) -> bool {
    job.error_detail.as_ref().is_some_and(|error| error.details.contains_key("not_after"))
}

fn read(path: &Path) -> io::Result<Memory> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_SIZE).read_to_end(&mut text)?;
    // An object only: a list would be taken for the fields in their order.
    let object: serde_json::Map<_, _> = serde_json::from_slice(&text)?;
    Ok(serde_json::from_value(object.into())?)
}
