//! Events: what the executor appends, one JSON object a line, and what everybody else follows.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    api::{PackageDetail, PatchSet, ServiceList, WhyNot},
    compliance::Evidence,
    error::ErrorDetail,
    job::{JobStatus, Outcome, Phase},
    name::{Architecture, PackageName, PackageVersion},
    plan::{Action, Plan},
    reboot::WindowStatus,
    rehearsal::RehearsalReport,
    rollback::{WayBack, WentBack},
};

/// One numbered line of an operation's event file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// 1 for the first, without gaps.
    pub seq: u64,
    /// When the executor wrote it.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Who holds the package manager's lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LockHolder {
    /// The lock file.
    pub lock: String,
    /// The process, if the kernel named it.
    pub pid: Option<u32>,
    /// Its command line, as far as it could be read.
    pub command: Option<String>,
}

/// Which of the tool's streams a line of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum LogStream {
    /// The tool's output (standard output and error in the order in which they were written).
    Output,
    /// A remark of the executor.
    Executor,
    /// The tool's output in a rehearsal: nothing of it happened to the host.
    Rehearsal,
}

/// What became of one planned change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PackageResult {
    /// The package.
    pub name: PackageName,
    /// Its architecture.
    pub architecture: Architecture,
    /// What was planned.
    pub action: Action,
    /// The version before.
    pub old_version: Option<PackageVersion>,
    /// The version planned.
    pub new_version: Option<PackageVersion>,
    /// Whether the database now says what was planned.
    pub done: bool,
    /// If not: what the database says instead, and the package manager's words.
    pub reason: Option<String>,
    /// Whether it was changed and then taken back to what it was.
    #[serde(default)]
    pub taken_back: bool,
}

/// What a query found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryResult {
    /// Answer to [`crate::Query::Patches`].
    Patches(PatchSet),
    /// Answer to [`crate::Query::Package`].
    Package(Box<PackageDetail>),
    /// Answer to [`crate::Query::WhyNot`].
    WhyNot(WhyNot),
    /// Answer to [`crate::Query::Services`].
    Services(ServiceList),
    /// Answer to [`crate::Query::RebootWindow`].
    RebootWindow(WindowStatus),
    /// Answer to [`crate::Query::Evidence`].
    Evidence(Box<Evidence>),
    /// Answer to a dry run.
    Plan(Plan),
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// The job's final status.
    pub status: JobStatus,
    /// What it did to the host; absent for queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The exit code of the tool that decided the matter, if one ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why it did not end as asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
    /// Package by package.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<PackageResult>,
    /// What a query found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<QueryResult>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// The executor has taken the operation on; its journal is on disk.
    Accepted,
    /// A phase begins.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// Somebody else holds the package manager's lock; `None` when the wait is over.
    Waiting {
        /// Who, as far as known.
        holder: Option<LockHolder>,
    },
    /// The solver's plan.
    Planned {
        /// What will change.
        plan: Plan,
    },
    /// How far the phase is.
    Progress {
        /// 0 to 100, over the whole operation; never falls.
        percent: u8,
        /// The package at work.
        package: Option<String>,
        /// The tool's own words for the step.
        message: String,
    },
    /// A line of output.
    Log {
        /// From where.
        stream: LogStream,
        /// The line, without its line feed.
        line: String,
    },
    /// It was tried on an image of the host, or could not be.
    Rehearsed {
        /// What came of it.
        report: RehearsalReport,
    },
    /// The way back is recorded; from here on the change can be undone.
    WayBack {
        /// How good it is.
        way_back: WayBack,
    },
    /// The change is made, and goes back unless somebody confirms it by then.
    Confirm {
        /// Until when.
        until: Timestamp,
    },
    /// A reboot waits.
    Scheduled {
        /// Until when: when the window opens, or the delay is over; none if that is not known.
        until: Option<Timestamp>,
    },
    /// Something was taken back, or should have been.
    WentBack {
        /// What came of it.
        report: WentBack,
    },
    /// The last event.
    Ended(Box<Ended>),
}

impl Event {
    /// Reads one line of an event file.
    ///
    /// # Errors
    /// When the line is not one event.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_file() {
        let kinds = [
            EventKind::Accepted,
            EventKind::Phase { phase: Phase::Applying },
            EventKind::Waiting { holder: None },
            EventKind::Scheduled { until: Some(Timestamp::UNIX_EPOCH) },
            EventKind::Progress { percent: 7, package: Some("aa".into()), message: "Unpacking".into() },
            EventKind::Log { stream: LogStream::Output, line: "a\u{1b}\"line\"".into() },
            EventKind::Ended(Box::new(Ended {
                status: JobStatus::Completed,
                outcome: Some(Outcome::Applied),
                exit_code: Some(0),
                error: None,
                results: Vec::new(),
                answer: None,
            })),
        ];
        for (seq, kind) in (1..).zip(kinds) {
            let event = Event { seq, at: Timestamp::UNIX_EPOCH, kind };
            let line = serde_json::to_string(&event).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(Event::parse(&line).unwrap(), event);
        }
    }
}
