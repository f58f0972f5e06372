//! How well a host keeps the promise that fixes are installed soon after their publication: what the report says, what is
//! remembered between two looks at the host, and what only root can see.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    api::Cause,
    job::JobId,
    name::{Architecture, PackageName, PackageVersion},
};

/// Where the agent remembers what it has seen, below the root.
pub const STORE: &str = "var/lib/linux_patch_api/compliance.json";

/// The largest such file that is read, in bytes.
pub const MAX_STORE: u64 = 16 << 20;

/// The version of its format.
pub const FORMAT: u32 = 1;

/// For how many days an applied fix, and one that no archive offers any more, is kept.
pub const KEEP_DAYS: u32 = 30;

/// How many fixes are kept at most; the oldest applied ones go first.
pub const MAX_FIXES: usize = 5000;

/// Answer to `GET /compliance`: every security fix that concerns this host, and how long it took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Compliance {
    /// Within how many hours of its publication a fix is to be installed.
    pub promise_hours: u32,
    /// Since when this host is observed; null if it never was. What happened before is known from logs alone.
    pub observed_since: Option<Timestamp>,
    /// How many there are of what.
    pub summary: Summary,
    /// The fixes: those over the promise first, then what is not installed, then by age.
    pub fixes: Vec<Fix>,
    /// The last runs of unattended-upgrades, by its own log: newest first, not more than 20.
    pub unattended_runs: Vec<UnattendedRun>,
    /// What is not known, and why: one sentence each.
    pub not_known: Vec<String>,
    /// Why it cannot be told whether fixes are missing; null if it can. Then few fixes, or none, prove nothing.
    #[serde(default)]
    pub cannot_tell: Option<String>,
}

/// How many fixes there are in which state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Summary {
    /// All.
    pub fixes: usize,
    /// Not installed, and nothing known keeps them away.
    pub open: usize,
    /// Not installed, and kept away by something.
    pub blocked: usize,
    /// Of these, how many were taken back on this host, so that nothing installs them by itself.
    #[serde(default)]
    pub barred: usize,
    /// Patched on disk, but not known to be safe in memory.
    pub on_disk: usize,
    /// Patched on disk and safe in memory.
    pub effective: usize,
    /// Certainly longer under way than promised, or taken back and not installed.
    pub over_promise: usize,
    /// Of these, how many are still not installed.
    pub over_promise_open: usize,
    /// Perhaps longer than promised: when they were published is not known well enough.
    pub uncertain: usize,
    /// For how many hours, at the least, the oldest fix that is not installed has been out; null if there is none.
    pub oldest_open_hours: Option<u32>,
    /// The longest that a fix certainly took or is taking, in hours; null if there is none.
    pub worst_hours: Option<u32>,
}

/// One security fix: a version of an installed package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Fix {
    /// The package, without architecture.
    pub name: PackageName,
    /// Its architecture.
    pub architecture: Architecture,
    /// The version that brings the fix. A higher one brings it as well.
    pub version: PackageVersion,
    /// The version that is installed now.
    pub installed_version: Option<PackageVersion>,
    /// The archive that offers it, such as `Debian-Security bookworm-security`.
    pub archive: String,
    /// Where it stands.
    pub state: FixState,
    /// When it was published.
    pub published: Published,
    /// When this host was first seen to be offered it; null if it was installed before anybody looked.
    pub seen: Option<Timestamp>,
    /// The first job that planned it; null if none did.
    pub planned: Option<Planned>,
    /// How it was installed; null while it is not.
    pub applied: Option<Applied>,
    /// Whether what runs is the fixed code; null while it is not installed.
    pub memory: Option<InMemory>,
    /// Hours from its publication to its installation, or to now.
    pub hours: Hours,
    /// How that compares with the promise.
    pub promise: PromiseState,
    /// What keeps it from being installed.
    pub blocked_by: Vec<Cause>,
}

/// Where a fix stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FixState {
    /// Not installed; the next run should take it.
    Open,
    /// Not installed, and something keeps it away.
    Blocked,
    /// Patched on disk; not known to be safe in memory.
    OnDisk,
    /// Patched on disk and safe in memory.
    Effective,
}

impl FixState {
    /// The state as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Blocked => "blocked",
            Self::OnDisk => "on_disk",
            Self::Effective => "effective",
        }
    }
}

/// When a version was published. Archives do not say; it lies between the date of the last `Release` file that did not have
/// it and of the first that had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Published {
    /// After this instant; null if nobody looked before it was there.
    pub after: Option<Timestamp>,
    /// At this instant at the latest.
    pub by: Timestamp,
    /// How well that is known.
    pub accuracy: Accuracy,
}

/// How well an instant is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Accuracy {
    /// Somebody wrote it down: an advisory, a log, a job.
    Exact,
    /// At this instant at the latest.
    Bound,
}

/// The job that planned a fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Planned {
    /// The job.
    pub job: JobId,
    /// When it began.
    pub at: Timestamp,
}

/// How a fix came to be installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Applied {
    /// When.
    pub at: Timestamp,
    /// How well that is known.
    pub accuracy: Accuracy,
    /// The version that was installed: this one or a higher one.
    pub version: PackageVersion,
    /// By what.
    pub by: AppliedBy,
    /// The job, if it was one of ours.
    pub job: Option<JobId>,
}

/// What installed a fix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum AppliedBy {
    /// A job of the agent.
    Job,
    /// unattended-upgrades, by apt's history.
    UnattendedUpgrades,
    /// apt, by its history: somebody's hand, or another program.
    Apt,
    /// dpkg, by its log.
    Dpkg,
    /// Nothing says so.
    Unknown,
}

/// Whether the fixed code is what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InMemory {
    /// Whether it is.
    pub state: MemoryState,
    /// Since when at the latest; null unless it is effective.
    pub since: Option<Timestamp>,
    /// What still runs the old code, or why that is not known; not more than 20.
    pub held_by: Vec<String>,
}

/// Whether the fixed code is what runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum MemoryState {
    /// No process maps the old files any more, or the host was booted since.
    Effective,
    /// Something still runs the old code.
    OldCode,
    /// It could not be told.
    Unknown,
}

/// A number of hours that is known within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hours {
    /// At least so many whole ones have passed.
    pub at_least: u32,
    /// Not more than so many; null if that is not known.
    pub at_most: Option<u32>,
}

/// How a fix compares with the promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PromiseState {
    /// Installed in time.
    Kept,
    /// Not installed, and there is time left.
    Running,
    /// Perhaps too late: when it was published is not known well enough.
    Uncertain,
    /// Certainly later than promised, or not installed by then; or taken back on this host, so that nothing installs it by
    /// itself.
    Broken,
}

impl PromiseState {
    /// The state as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Running => "running",
            Self::Uncertain => "uncertain",
            Self::Broken => "broken",
        }
    }
}

/// One run of unattended-upgrades, as its log has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UnattendedRun {
    /// Its first line.
    pub began: Timestamp,
    /// Its last line.
    pub ended: Timestamp,
    /// What came of it.
    pub result: RunResult,
    /// What it was to upgrade, as far as the log says so; not more than 200.
    pub packages: Vec<String>,
    /// Its first errors and warnings, in the language of the log; not more than 5.
    pub problems: Vec<String>,
}

/// What came of a run of unattended-upgrades.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RunResult {
    /// It says that it has installed all.
    Installed,
    /// It says that there was nothing to do.
    Nothing,
    /// It logged an error.
    Failed,
    /// It neither says so nor logged an error: it still runs, was interrupted, or speaks another language.
    Unknown,
}

impl RunResult {
    /// The result as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Nothing => "nothing",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// A change of a package that a log has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedChange {
    /// When.
    pub at: Timestamp,
    /// The package, without architecture.
    pub name: PackageName,
    /// Its architecture.
    pub architecture: Architecture,
    /// The version before; none if it was not installed.
    pub old: Option<PackageVersion>,
    /// The version since.
    pub new: PackageVersion,
    /// Who did it.
    pub by: AppliedBy,
}

/// What root sees of memory and logs: the answer to [`crate::Query::Evidence`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// When the host was booted, if the kernel says so.
    pub booted: Option<Timestamp>,
    /// The kernel's id of this boot, if it says so.
    #[serde(default)]
    pub boot: Option<String>,
    /// What still runs the old code of the packages that were asked for, and of those that the logs saw changed.
    pub memory: Vec<PackageMemory>,
    /// Why it is not known of any.
    pub memory_unknown: Option<String>,
    /// Upgrades, oldest first.
    pub changes: Vec<LoggedChange>,
    /// Runs of unattended-upgrades, newest first.
    pub runs: Vec<UnattendedRun>,
    /// What could not be read, one sentence each.
    pub remarks: Vec<String>,
    /// Why nothing is patched through the agent at present, if root has said so.
    #[serde(default)]
    pub frozen: Option<String>,
    /// The versions that were taken back and are not installed again by themselves.
    #[serde(default)]
    pub barred: Vec<InVersion>,
}

/// What still runs the old code of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageMemory {
    /// The package, without architecture.
    pub name: PackageName,
    /// Whether the fixed code runs, as far as can be seen now.
    pub state: MemoryState,
    /// What still runs the old code, or why that is not known.
    pub held_by: Vec<String>,
}

/// A package in a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InVersion {
    /// The package, without architecture.
    pub name: PackageName,
    /// The architecture of the installed package.
    pub architecture: Architecture,
    /// The version.
    pub version: PackageVersion,
}

impl InVersion {
    /// The package as [`Observations::installed`] has it.
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.name, &self.architecture)
    }
}

/// `NAME:ARCHITECTURE`.
#[must_use]
pub fn key(name: &PackageName, architecture: &Architecture) -> String {
    format!("{}:{architecture}", name.name())
}

/// What an archive of security fixes offers of an installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// What.
    pub what: InVersion,
    /// The index file, by its name in apt's directory.
    pub archive: String,
    /// The archive, for people.
    pub label: String,
}

/// What is remembered between two looks at a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observations {
    /// The version of the format.
    pub format: u32,
    /// When the first look was.
    pub since: Option<Timestamp>,
    /// The last look, some minutes more or less: each time would be a write.
    #[serde(default)]
    pub looked: Option<Timestamp>,
    /// The dates of the archives, by the names of their index files in apt's directory.
    #[serde(default)]
    pub archives: std::collections::BTreeMap<String, Timestamp>,
    /// What was installed, as `NAME:ARCHITECTURE` and version.
    #[serde(default)]
    pub installed: std::collections::BTreeMap<String, String>,
    /// The fixes.
    #[serde(default)]
    pub fixes: Vec<Observed>,
}

/// What is remembered of a fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The package, without architecture.
    pub name: PackageName,
    /// Its architecture.
    pub architecture: Architecture,
    /// The version.
    pub version: PackageVersion,
    /// The archive, for people.
    pub archive: String,
    /// When it was published.
    pub published: Published,
    /// When it was first seen to be offered while it was not installed.
    pub seen: Option<Timestamp>,
    /// When it was last seen not to be installed, or some minutes before.
    #[serde(default)]
    pub missed: Option<Timestamp>,
    /// The boot in which it was first seen to be installed, by the kernel's id.
    #[serde(default)]
    pub boot: Option<String>,
    /// When an archive was last seen to offer it, or a higher version.
    pub offered: Timestamp,
    /// The first job that planned it.
    pub planned: Option<Planned>,
    /// How it was installed.
    pub applied: Option<Applied>,
    /// Whether it is effective.
    pub memory: Option<InMemory>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_stands_in_json() {
        let json = |value: serde_json::Value| value.as_str().unwrap().to_owned();
        for state in [FixState::Open, FixState::Blocked, FixState::OnDisk, FixState::Effective] {
            assert_eq!(json(serde_json::to_value(state).unwrap()), state.as_str());
        }
        for state in
            [PromiseState::Kept, PromiseState::Running, PromiseState::Uncertain, PromiseState::Broken]
        {
            assert_eq!(json(serde_json::to_value(state).unwrap()), state.as_str());
        }
        for result in [RunResult::Installed, RunResult::Nothing, RunResult::Failed, RunResult::Unknown] {
            assert_eq!(json(serde_json::to_value(result).unwrap()), result.as_str());
        }
    }

    #[test]
    fn a_package_of_two_architectures_is_two() {
        let of = |name: &str, architecture: &str| InVersion {
            name: name.parse().unwrap(),
            architecture: architecture.parse().unwrap(),
            version: "1".parse().unwrap(),
        };
        assert_eq!(of("libc6", "i386").key(), "libc6:i386");
        assert_ne!(of("libc6", "i386").key(), of("libc6", "amd64").key());
        // However its name is spelt, it is the same package.
        assert_eq!(of("libc6:i386", "i386").key(), of("libc6", "i386").key());
        assert_eq!(key(&"libc6".parse().unwrap(), &"i386".parse().unwrap()), of("libc6", "i386").key());
    }

    #[test]
    fn a_store_of_an_earlier_time_is_read() {
        let store: Observations =
            serde_json::from_str(r#"{"format":1,"since":null,"later":"ignored"}"#).unwrap();
        assert!(store.fixes.is_empty() && store.archives.is_empty());
    }
}
