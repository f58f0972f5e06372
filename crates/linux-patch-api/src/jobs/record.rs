//! What a job's file holds, and the two ways to read it: whole, or without what is only shown on demand.

use jiff::Timestamp;
use patch_types::{
    ChangeOptions, JobId, Operation, PackageName, Plan, PlanHash, RehearsalReport, WayBack, WentBack,
    api::{Job, LogLine},
    event::{LogStream, PackageResult},
    executor::Limits,
};
use serde::{Deserialize, Serialize};

use super::Idempotency;

/// The version of the file's format.
const FORMAT: u32 = 1;

/// What is kept in memory of every job, and what of a job's file is read at start.
///
/// `job` never holds a plan, results, output or log: those are large, and are fields of their own. Of its way back and of
/// what came of going back it holds the [`brief`] forms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    format: u32,
    /// What is to be done.
    pub(super) operation: Operation,
    /// With which limits.
    pub(super) limits: Limits,
    /// The approved plan, if there is one.
    #[serde(default)]
    pub(super) if_plan: Option<PlanHash>,
    /// How it is to be made.
    #[serde(flatten, with = "patch_types::rollback::kept")]
    pub(super) options: ChangeOptions,
    /// From when on nothing of it is begun any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) not_after: Option<Timestamp>,
    /// Whether somebody confirmed it and the root side took that.
    #[serde(default)]
    pub(super) confirmed: bool,
    /// The client's own name for the request.
    pub(super) idempotency: Option<Idempotency>,
    /// The packages that it named or changed, one a line. One string, because there may be a thousand of them, for
    /// each of a thousand jobs.
    pub(super) packages: Box<str>,
    /// The job as lists show it.
    pub(super) job: Job,
}

/// A job's file, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) head: Head,
    /// What was planned.
    pub(super) plan: Option<Plan>,
    /// What became of it.
    pub(super) results: Vec<PackageResult>,
    /// The log, as far as it was kept.
    pub(super) log: Vec<LogLine>,
    /// How well it can be undone.
    #[serde(default)]
    pub(super) way_back: Option<WayBack>,
    /// What came of going back.
    #[serde(default)]
    pub(super) went_back: Option<WentBack>,
    /// What came of its rehearsal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rehearsal: Option<RehearsalReport>,
}

/// Why a job's file is not one.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("the file is empty")]
    Empty,
    #[error("not a job: {0}")]
    Json(#[from] serde_json::Error),
    #[error("of the unknown format {0}")]
    Format(u32),
    #[error("the file of another job, {0}")]
    Foreign(JobId),
}

impl Head {
    /// A new job's.
    pub(super) fn new(
        operation: Operation,
        limits: Limits,
        if_plan: Option<PlanHash>,
        options: ChangeOptions,
        idempotency: Option<Idempotency>,
        job: Job,
    ) -> Self {
        let packages = named(&operation).collect::<Vec<_>>().join("\n").into();
        Self {
            format: FORMAT,
            operation,
            limits,
            if_plan,
            options,
            not_after: None,
            confirmed: false,
            idempotency,
            packages,
            job,
        }
    }

    /// Reads a file, passing over what is only shown on demand.
    pub(super) fn parse(id: JobId, text: &[u8]) -> Result<Self, RecordError> {
        if text.is_empty() {
            return Err(RecordError::Empty);
        }
        serde_json::from_slice::<Self>(text)?.checked(id)
    }

    fn checked(self, id: JobId) -> Result<Self, RecordError> {
        if self.format != FORMAT {
            return Err(RecordError::Format(self.format));
        }
        if self.job.job_id != id {
            return Err(RecordError::Foreign(self.job.job_id));
        }
        Ok(self)
    }

    /// Adds the packages that turned out to be concerned.
    pub(super) fn add_packages(&mut self, results: &[PackageResult]) {
        let mut names: std::collections::BTreeSet<&str> = self.packages.lines().collect();
        names.extend(results.iter().map(|r| r.name.as_str()));
        self.packages = names.into_iter().collect::<Vec<_>>().join("\n").into();
    }
}

impl Record {
    /// Of a job that has nothing yet but its head.
    pub(super) fn bare(head: Head) -> Self {
        Self {
            head,
            plan: None,
            results: Vec::new(),
            log: Vec::new(),
            way_back: None,
            went_back: None,
            rehearsal: None,
        }
    }

    /// As it lies on disk.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Reads a file whole.
    pub(super) fn parse(id: JobId, text: &[u8]) -> Result<Self, RecordError> {
        if text.is_empty() {
            return Err(RecordError::Empty);
        }
        let mut record: Self = serde_json::from_slice(text)?;
        record.head = record.head.checked(id)?;
        Ok(record)
    }

    /// The job with everything that is known of it.
    pub(super) fn into_job(self) -> Job {
        let mut job = self.head.job;
        job.way_back = self.way_back.or(job.way_back);
        job.went_back = self.went_back.or(job.went_back);
        job.rehearsal = self.rehearsal.or(job.rehearsal);
        full(job, self.plan, self.results, self.log)
    }
}

/// What lists and frequent messages show of something that may be a thousand lines long.
pub(super) mod brief {
    use patch_types::{JobId, RehearsalReport, WayBack, WentBack};

    /// Shorter ones stay as they are.
    const SHORT: usize = 1 << 10;

    /// The grade alone, and the snapshot.
    pub(in crate::jobs) fn way_back(whole: &WayBack) -> WayBack {
        WayBack { packages: Vec::new(), ..whole.clone() }
    }

    /// The verdict and the reason alone.
    pub(in crate::jobs) fn rehearsal(whole: &RehearsalReport) -> RehearsalReport {
        let mut reason = whole.reason.clone().unwrap_or_default();
        reason.truncate(reason.floor_char_boundary(SHORT));
        RehearsalReport {
            verdict: whole.verdict,
            reason: whole.reason.is_some().then_some(reason),
            took_ms: whole.took_ms,
            written_bytes: whole.written_bytes,
            ..RehearsalReport::not_rehearsed("")
        }
    }

    /// What came of going back. Each list that is too long becomes a sentence, not nothing: that nothing is left means
    /// that all went well.
    pub(in crate::jobs) fn went_back(id: JobId, whole: &WentBack) -> WentBack {
        let list = |lines: &[String]| {
            if lines.iter().map(String::len).sum::<usize>() <= SHORT && lines.len() <= 16 {
                lines.to_vec()
            } else {
                vec![format!("{} entries; GET /jobs/{id} shows them", lines.len())]
            }
        };
        let mut reason = whole.reason.clone();
        if reason.len() > SHORT {
            reason.truncate(reason.floor_char_boundary(SHORT));
            reason.push('…');
        }
        WentBack {
            reason,
            restored: list(&whole.restored),
            left: list(&whole.left),
            kept_edits: list(&whole.kept_edits),
            commands: list(&whole.commands),
            barred: list(&whole.barred),
        }
    }
}

/// The job with what is only shown on demand.
pub(super) fn full(mut job: Job, plan: Option<Plan>, results: Vec<PackageResult>, log: Vec<LogLine>) -> Job {
    let lines: Vec<&str> =
        log.iter().filter(|l| l.stream == LogStream::Output).map(|l| l.line.as_str()).collect();
    job.output = Some(lines.join("\n"));
    job.plan = plan;
    job.results = results;
    job.log = log;
    job
}

fn named(operation: &Operation) -> impl Iterator<Item = &str> {
    let names: Vec<&str> = match operation {
        // Those of the job that is undone, see `Jobs::accept`.
        Operation::Refresh | Operation::Rollback(_) | Operation::Reboot(_) => Vec::new(),
        Operation::Install(install) => install.packages.iter().map(|p| p.name.as_str()).collect(),
        Operation::Update(update) => vec![update.name.as_str()],
        Operation::Remove(remove) => vec![remove.name.as_str()],
        Operation::Hold(hold) => vec![hold.name.as_str()],
        Operation::ApplyPatches(apply) => apply.packages.iter().map(PackageName::as_str).collect(),
    };
    names.into_iter()
}
