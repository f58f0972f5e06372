//! Bodies of the agent's API. Requests refuse unknown fields; responses may grow.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    error::ErrorDetail,
    event::{LockHolder, LogStream, PackageResult},
    job::{JobId, JobStatus, Outcome, Phase},
    name::{Architecture, PackageName, PackageVersion},
    operation::PackageSpec,
    plan::{Origin, Plan, PlanHash},
    policy::PolicyMode,
    reboot::{QueuedReboot, RebootObstacle},
    rehearsal::{RehearsalReport, Unrehearsed},
    rollback::{OnFailure, WayBack, WentBack},
    snapshot::RollbackMode,
};

/// What every response is wrapped in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// Whether `data` holds the answer.
    pub success: bool,
    /// The request's id, also in the header `X-Request-Id`.
    pub request_id: Uuid,
    /// When the answer was made.
    pub timestamp: Timestamp,
    /// The answer; null on failure.
    pub data: Option<T>,
    /// Why there is none; null on success.
    pub error: Option<ErrorDetail>,
}

/// A package's state in the package database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PackageStatus {
    /// Not installed, but available.
    NotInstalled,
    /// Removed; configuration files remain.
    ConfigFiles,
    /// An unpack was begun and did not end.
    HalfInstalled,
    /// Unpacked, not configured.
    Unpacked,
    /// Configuring was begun and did not end.
    HalfConfigured,
    /// Waits for another package's trigger.
    TriggersAwaited,
    /// Its own trigger is due.
    TriggersPending,
    /// In order.
    Installed,
}

impl PackageStatus {
    /// Whether a person or a repair is needed.
    #[must_use]
    pub fn is_broken(self) -> bool {
        matches!(self, Self::HalfInstalled | Self::Unpacked | Self::HalfConfigured | Self::TriggersAwaited)
    }
}

/// An installed package, as the list has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Package {
    /// Its name, without architecture.
    pub name: PackageName,
    /// The installed version (of a removed package: the one whose configuration remains).
    pub version: PackageVersion,
    /// Its architecture.
    pub architecture: Architecture,
    /// Its state.
    pub status: PackageStatus,
    /// Whether a newer version is known.
    pub upgradable: bool,
    /// The newer version; null if none.
    pub latest_version: Option<PackageVersion>,
    /// The first line of its description.
    pub description: String,
    /// CVE ids that the newer version fixes, where the sources name them.
    pub cve_ids: Vec<String>,
    /// Whether it is held.
    pub held: bool,
    /// Whether it was installed only because another package needs it.
    pub auto_installed: bool,
    /// Space it uses on disk in bytes, as it declares.
    pub size: u64,
    /// Its section, such as `admin`.
    pub section: String,
    /// Whether dpkg calls it essential.
    pub essential: bool,
}

/// Answer to `GET /packages`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PackageList {
    /// What the filters let through.
    pub packages: Vec<Package>,
    /// How many there are without `limit` and `offset`.
    pub total: usize,
}

/// A version that some archive offers, or that is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AvailableVersion {
    /// The version.
    pub version: PackageVersion,
    /// Its pin priority, as the package manager's policy has it.
    pub priority: Option<i32>,
    /// The archives that offer it; empty if it is only installed.
    pub origins: Vec<Origin>,
    /// Whether it is the installed one.
    pub installed: bool,
}

/// A configuration file that a package ships.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Conffile {
    /// Its path.
    pub path: String,
    /// MD5 of the shipped file, as dpkg records it.
    pub md5: String,
    /// Whether a later version of the package no longer ships it.
    pub obsolete: bool,
}

/// Relations to other packages, in the package manager's own notation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Relations {
    /// Needed before it can be unpacked.
    pub pre_depends: Vec<String>,
    /// Needed.
    pub depends: Vec<String>,
    /// Installed with it by default.
    pub recommends: Vec<String>,
    /// Worth a look.
    pub suggests: Vec<String>,
    /// What it also stands for.
    pub provides: Vec<String>,
    /// Cannot be installed beside it.
    pub conflicts: Vec<String>,
    /// Breaks until it is updated.
    pub breaks: Vec<String>,
    /// Whose files it may take over.
    pub replaces: Vec<String>,
}

/// Answer to `GET /packages/{name}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PackageDetail {
    /// Its name, without architecture.
    pub name: PackageName,
    /// The installed version; null if none.
    pub version: Option<PackageVersion>,
    /// Its architecture.
    pub architecture: Architecture,
    /// Its state.
    pub status: PackageStatus,
    /// Whether the policy's candidate is newer than what is installed.
    pub upgradable: bool,
    /// The policy's candidate when it is newer; null otherwise.
    pub latest_version: Option<PackageVersion>,
    /// The version that the policy would install; null if none.
    pub candidate: Option<PackageVersion>,
    /// The first line of its description.
    pub description: String,
    /// The rest of its description.
    pub long_description: String,
    /// CVE ids that the newer version fixes, where the sources name them.
    pub cve_ids: Vec<String>,
    /// Whether it is held.
    pub held: bool,
    /// Whether it was installed only because another package needs it.
    pub auto_installed: bool,
    /// Space it uses on disk in bytes, as it declares.
    pub size: u64,
    /// Its section.
    pub section: String,
    /// Its priority.
    pub priority: String,
    /// Whether dpkg calls it essential.
    pub essential: bool,
    /// The source package.
    pub source: String,
    /// Who maintains it.
    pub maintainer: String,
    /// Its home page, if it names one.
    pub homepage: Option<String>,
    /// The versions that can be had, newest first.
    pub versions: Vec<AvailableVersion>,
    /// What it says of others.
    pub relations: Relations,
    /// Installed packages that need or recommend it.
    pub reverse_dependencies: Vec<PackageName>,
    /// The files that it installed.
    pub files: Vec<String>,
    /// Its configuration files.
    pub conffiles: Vec<Conffile>,
    /// Why it is not being upgraded, if it could be or one might expect it to be.
    pub why_not: Vec<Cause>,
}

/// How grave an update's reason is, where the sources name it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Severity {
    /// The sources do not say. Never guessed.
    #[default]
    Unknown,
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
    /// Critical.
    Critical,
}

/// Whether an available update would be applied now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PatchState {
    /// It would.
    Ready,
    /// The package is held.
    Held,
    /// The archive offers it to a part of all machines only, and this one is not among them yet.
    Phased,
    /// Its dependencies ask for something that patching does not do, such as a removal.
    KeptBack,
    /// It was taken back on this host, and root has not cleared it since.
    TakenBack,
}

/// An available update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Patch {
    /// The package, without architecture.
    pub name: PackageName,
    /// Its architecture.
    pub architecture: Architecture,
    /// The installed version; null when the update brings a new package along.
    pub current_version: Option<PackageVersion>,
    /// The version that would be installed.
    pub available_version: PackageVersion,
    /// Where that comes from.
    pub origin: Option<Origin>,
    /// Whether it, or a version between, comes from an archive that says of itself that it carries security fixes.
    pub security: bool,
    /// How grave, where the sources say so.
    pub severity: Severity,
    /// CVE ids, where the sources name them.
    pub cve_ids: Vec<String>,
    /// Advisories, where the sources name them.
    pub advisories: Vec<String>,
    /// The first line of the package's description.
    pub description: String,
    /// Whether it would be applied now.
    pub state: PatchState,
    /// If not, why: one sentence. `why-not` has more.
    pub reason: Option<String>,
    /// Whether it is known to ask for a reboot.
    pub requires_reboot: bool,
    /// The archive's size in bytes.
    pub download_size: u64,
}

/// Answer to `GET /patches`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PatchSet {
    /// The updates, by name.
    pub patches: Vec<Patch>,
    /// How many there are.
    pub total: usize,
    /// How many of them bring security fixes.
    pub security_updates: usize,
    /// Whether any of them that is ready is known to ask for a reboot.
    pub requires_reboot: bool,
    /// When the indexes were last fetched; null if never.
    pub last_update_check: Option<Timestamp>,
}

/// What keeps a package from being patched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CauseKind {
    /// The newest version is installed.
    UpToDate,
    /// It is not installed.
    NotInstalled,
    /// It is held.
    Held,
    /// The version was taken back on this host after it had failed, and is not installed again until that is cleared.
    TakenBack,
    /// A pin prefers another version.
    Pinned,
    /// The archive offers the update to a part of all machines only.
    Phased,
    /// A dependency asks for what patching does not do.
    KeptBack,
    /// No archive offers any version.
    NoCandidate,
    /// The package database is not in order.
    Broken,
    /// The indexes are old: there may be updates that this host has not heard of.
    StaleIndexes,
    /// Root has frozen this host, or does not allow patching through the agent.
    Frozen,
    /// The agent patches by itself and is paused.
    Paused,
    /// The agent patches by itself and is told to leave it out.
    Excluded,
    /// The agent patches by itself, and its window is closed or this host's turn has not come.
    WaitsForWindow,
    /// Nothing: the next run applies it.
    Ready,
}

/// One cause, with the next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Cause {
    /// For machines.
    pub kind: CauseKind,
    /// For people: what is the case.
    pub message: String,
    /// For people: what to do about it.
    pub next_step: String,
}

/// Answer to `GET /patches/{name}/why-not`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhyNot {
    /// The package.
    pub name: PackageName,
    /// The installed version; null if none.
    pub current_version: Option<PackageVersion>,
    /// The newest version that any archive offers; null if none.
    pub available_version: Option<PackageVersion>,
    /// The causes, the most decisive first; never empty.
    pub causes: Vec<Cause>,
}

/// A unit's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Service {
    /// The unit's name, such as `ssh.service`.
    pub name: String,
    /// Its description.
    pub description: String,
    /// `active`, `inactive`, `failed`, …
    pub active_state: String,
    /// `running`, `exited`, `dead`, …
    pub sub_state: String,
    /// `loaded`, `not-found`, `masked`, …
    pub load_state: String,
    /// Whether one of its processes maps a file that has been replaced since.
    pub runs_old_code: bool,
    /// Some of those files.
    pub replaced_files: Vec<String>,
}

/// Answer to `GET /system/services`: units that failed or still run old code, or all of them for the root side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceList {
    /// The units, by name.
    pub services: Vec<Service>,
    /// How many there are.
    pub total: usize,
}

/// Answer to `GET /system/info`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SystemInfo {
    /// The host's name.
    pub hostname: String,
    /// The distribution's name, such as `Debian GNU/Linux`.
    pub os: String,
    /// Its version, such as `12`.
    pub os_version: String,
    /// Its codename, such as `bookworm`; null if it has none.
    pub os_codename: Option<String>,
    /// The running kernel's release.
    pub kernel: String,
    /// The machine's architecture, such as `x86_64`.
    pub architecture: String,
    /// The package manager, such as `apt`.
    pub package_manager: String,
    /// When the indexes were last fetched; null if never.
    pub last_update_check: Option<Timestamp>,
    /// When packages last changed; null if unknown.
    pub last_update_apply: Option<Timestamp>,
    /// Whether a reboot is due.
    pub pending_reboot: bool,
    /// Why.
    pub reboot_reasons: Vec<String>,
    /// This agent's version.
    pub agent_version: String,
    /// The kernel's random id of this boot.
    pub boot_id: String,
    /// Seconds since boot.
    pub uptime_seconds: u64,
}

/// When a host may reboot by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RebootWindow {
    /// Until when the window is open; null if it is closed.
    pub open_until: Option<Timestamp>,
    /// When it opens next; null if it never does.
    pub next: Option<Timestamp>,
    /// Why nothing looks after it, if so; null if its timer runs.
    pub timer_off: Option<String>,
}

/// Answer to `GET /system/reboot`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RebootState {
    /// Whether a reboot is due.
    pub pending_reboot: bool,
    /// Why.
    pub reasons: Vec<String>,
    /// The packages that asked for it, where they left their names.
    pub packages: Vec<String>,
    /// The reboot window; null if none is declared, and the host never reboots by itself, or if it cannot be asked (`against` says
    /// so: `unknown`).
    #[serde(default)]
    pub window: Option<RebootWindow>,
    /// The reboots that were asked for and have not come yet.
    #[serde(default)]
    pub queued: Vec<QueuedReboot>,
    /// What stands against a reboot at this moment, each of it; nothing if the host would reboot with the next look.
    #[serde(default)]
    pub against: Vec<RebootObstacle>,
    /// How far a reboot has come that is under way: `preparing`, `rebooting` or `undoing`.
    #[serde(default)]
    pub phase: Option<String>,
}

/// Body of `POST /system/reboot`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RebootRequest {
    /// Not before so many seconds have passed, 604800 at most.
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 604800))]
    pub delay_seconds: Option<u64>,
    /// Why, in one line, for the audit trail; needed with `force`.
    #[cfg_attr(feature = "openapi", schema(max_length = 1000))]
    pub reason: Option<String>,
    /// Now, whatever the reboot window says; never while packages are being changed or somebody holds a shutdown up. Without
    /// it the reboot is queued for the window.
    pub force: bool,
}

/// How an installation is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstallOptions {
    /// Leave recommended packages out.
    pub no_recommends: bool,
    /// Allow versions older than the installed ones.
    pub allow_downgrade: bool,
    /// Install again what is installed already.
    pub reinstall: bool,
    /// What to do with the rest when a part fails; `group` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// Go back unless confirmed within this many seconds, 1 to 86400.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86400))]
    pub confirm_within: Option<u32>,
    /// Try it on an image of the host first, and go on only if all goes well there. With `dry_run` a job that does only
    /// that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rehearse: bool,
    /// What to do where no rehearsal is possible; `refuse` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrehearsed: Option<Unrehearsed>,
    /// Answer with the plan; change nothing.
    pub dry_run: bool,
    /// Only if the plan of that moment has this hash.
    pub if_plan: Option<PlanHash>,
}

/// Body of `POST /packages`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InstallRequest {
    /// Which packages; 1 to 1,000.
    #[cfg_attr(feature = "openapi", schema(min_items = 1, max_items = 1000))]
    pub packages: Vec<PackageSpec>,
    /// How.
    #[serde(default)]
    pub options: InstallOptions,
}

/// Body of `PUT /packages/{name}`: an update, or a change of the hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateRequest {
    /// To exactly this version; to the candidate if absent. Not together with `hold`.
    pub version: Option<PackageVersion>,
    /// Put on hold (true) or take off (false), instead of updating.
    pub hold: Option<bool>,
    /// What to do with the rest when a part fails; `group` if absent. Not together with `hold`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// Go back unless confirmed within this many seconds, 1 to 86400. Not together with `hold`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86400))]
    pub confirm_within: Option<u32>,
    /// Try it on an image of the host first, and go on only if all goes well there. With `dry_run` a job that does only
    /// that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rehearse: bool,
    /// What to do where no rehearsal is possible; `refuse` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrehearsed: Option<Unrehearsed>,
    /// Answer with the plan; change nothing.
    pub dry_run: bool,
    /// Only if the plan of that moment has this hash.
    pub if_plan: Option<PlanHash>,
}

/// Query of `DELETE /packages/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RemoveRequest {
    /// With its configuration files.
    pub purge: bool,
    /// With the packages that were installed only for it.
    pub autoremove: bool,
    /// What to do with the rest when a part fails; `group` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// Go back unless confirmed within this many seconds, 1 to 86400.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86400))]
    pub confirm_within: Option<u32>,
    /// Try it on an image of the host first, and go on only if all goes well there. With `dry_run` a job that does only
    /// that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rehearse: bool,
    /// What to do where no rehearsal is possible; `refuse` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrehearsed: Option<Unrehearsed>,
    /// Answer with the plan; change nothing.
    pub dry_run: bool,
    /// Only if the plan of that moment has this hash.
    pub if_plan: Option<PlanHash>,
}

/// Body of `POST /patches/apply`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApplyRequest {
    /// Only these packages; all if empty.
    pub packages: Vec<PackageName>,
    /// Advisory ids, or package names, in the words of older managers; all if empty.
    pub patches: Vec<String>,
    /// Only what brings a security fix.
    pub security_only: bool,
    /// Not these packages.
    pub exclude: Vec<PackageName>,
    /// Queue a reboot for the reboot window if the changes ask for one. Never outside the window.
    pub allow_reboot: bool,
    /// That reboot does not come before so many minutes after the job, 10080 at most; with `allow_reboot` alone.
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 10080))]
    pub reboot_delay_minutes: Option<u32>,
    /// Allow removals.
    pub allow_removals: bool,
    /// What to do with the rest when a part fails; `group` if absent.
    pub on_failure: Option<OnFailure>,
    /// Go back unless confirmed within this many seconds, 1 to 86400.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86400))]
    pub confirm_within: Option<u32>,
    /// Try it on an image of the host first, and go on only if all goes well there. With `dry_run` a job that does only
    /// that.
    pub rehearse: bool,
    /// What to do where no rehearsal is possible; `refuse` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrehearsed: Option<Unrehearsed>,
    /// Answer with the plan; change nothing.
    pub dry_run: bool,
    /// Only if the plan of that moment has this hash.
    pub if_plan: Option<PlanHash>,
}

/// Body of `POST /jobs/{id}/rollback`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollbackRequest {
    /// Even if the packages were changed again since; with `mode: snapshot`, whatever hazards were listed.
    pub force: bool,
    /// To what it goes back; `packages` if absent. `snapshot` takes the role admin.
    #[serde(skip_serializing_if = "RollbackMode::is_default")]
    pub mode: RollbackMode,
    /// Answer with the plan, which for a snapshot lists what else it would take back; change nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Only if the plan of that moment has this hash. A snapshot is only gone back to with it: it names what was listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_plan: Option<PlanHash>,
}

/// Who asked for a job. For what the agent does by itself the identity is `policy`, and fingerprint and address are empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Requester {
    /// The certificate's common name.
    pub identity: String,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    /// The peer's address.
    pub address: String,
    /// The request's id.
    pub request_id: Uuid,
}

/// One line of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// The event's number.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// From where.
    pub stream: LogStream,
    /// The line.
    pub line: String,
}

/// What became of `allow_reboot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FollowingReboot {
    /// Whether the job's changes ask for a reboot.
    pub needed: bool,
    /// The job that reboots the host in its window; null if none was queued.
    pub job_id: Option<JobId>,
    /// Why, or why not.
    pub message: String,
}

/// A job, as `GET /jobs/{id}`, the list (without log, plan and results) and the WebSocket show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Job {
    /// Its id.
    pub job_id: JobId,
    /// `install`, `update`, `remove`, `hold`, `apply_patches`, `refresh`, `rollback`, `reboot`.
    pub kind: String,
    /// Where it stands.
    pub status: JobStatus,
    /// What it is doing, while it runs.
    pub phase: Option<Phase>,
    /// What it did, once it has ended.
    pub outcome: Option<Outcome>,
    /// 0 to 100.
    pub progress_percent: u8,
    /// The package at work.
    pub current_package: Option<String>,
    /// Who holds the lock that it waits for.
    pub waiting_for: Option<LockHolder>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When the root side began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// Who asked.
    pub requested_by: Requester,
    /// What was asked, exactly.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub request: serde_json::Value,
    /// What was planned.
    pub plan: Option<Plan>,
    /// The tool's output, one text; null in lists.
    pub output: Option<String>,
    /// The same with sequence numbers and times; empty in lists.
    pub log: Vec<LogLine>,
    /// Whether the log's beginning was dropped because it was too long.
    pub log_truncated: bool,
    /// Why it did not end as asked: one text.
    pub error: Option<String>,
    /// The same for machines.
    pub error_detail: Option<ErrorDetail>,
    /// The exit code of the tool that decided the matter.
    pub exit_code: Option<i32>,
    /// Package by package.
    pub results: Vec<PackageResult>,
    /// What came of its rehearsal; null if it was not asked for, and before. Lists, and most messages of the WebSocket, have
    /// the verdict and the reason only.
    #[serde(default)]
    pub rehearsal: Option<RehearsalReport>,
    /// How well what it changes can be undone; null before that is recorded, and for jobs that change no package. Lists,
    /// and most messages of the WebSocket, have the grade only.
    #[serde(default)]
    pub way_back: Option<WayBack>,
    /// Until when it must be confirmed (`POST /jobs/{id}/confirm`); null unless it waits for that.
    #[serde(default)]
    pub confirm_by: Option<Timestamp>,
    /// What came of going back; null if it did not. Where it is long, lists and most messages of the WebSocket have one
    /// sentence in place of each list that is not empty.
    #[serde(default)]
    pub went_back: Option<WentBack>,
    /// When a reboot that waits may come: when the reboot window opens, or its delay is over; null otherwise.
    #[serde(default)]
    pub scheduled_for: Option<Timestamp>,
    /// What became of `allow_reboot`; null if it was not asked for, and until the job has ended.
    #[serde(default)]
    pub reboot: Option<FollowingReboot>,
    /// The number of its last event.
    pub last_seq: u64,
}

/// Answer to `GET /jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobList {
    /// The jobs, newest first.
    pub jobs: Vec<Job>,
    /// How many there are without `limit` and `offset`.
    pub total: usize,
}

/// What a WebSocket client says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientMessage {
    /// Follow one job: its state, its log so far, then every event once, in order.
    Subscribe {
        /// Which.
        job_id: JobId,
    },
    /// Follow it no more.
    Unsubscribe {
        /// Which.
        job_id: JobId,
    },
    /// Follow all jobs, those to come included. (Braces, because unknown fields of a bare variant would be passed over.)
    SubscribeAll {},
    /// Ask for a pong.
    Ping {},
}

/// Payload of `job_log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JobLog {
    /// Of which job.
    pub job_id: JobId,
    /// The line.
    #[serde(flatten)]
    pub line: LogLine,
}

/// Payload of `error`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StreamError {
    /// Of which job, if of one.
    pub job_id: Option<JobId>,
    /// What happened.
    #[serde(flatten)]
    pub error: ErrorDetail,
}

/// What the server says on a WebSocket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "payload", rename_all = "snake_case")]
pub enum ServerMessage {
    /// A job's state has changed; log and output are left out.
    JobStatus(Box<Job>),
    /// A line of its log.
    JobLog(JobLog),
    /// It has ended; log and output are left out.
    JobComplete(Box<Job>),
    /// Answer to a ping.
    Pong,
    /// A message could not be understood, or a job is not known.
    Error(StreamError),
}

/// How one part of the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HealthCheck {
    /// The part, such as `executor`.
    pub name: String,
    /// Whether it works.
    pub healthy: bool,
    /// One sentence.
    pub message: String,
}

/// The state of the revocation list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CrlStatus {
    /// In force.
    Valid,
    /// Past its `nextUpdate`.
    Expired,
    /// There is none.
    Missing,
    /// It cannot be read or its signature does not verify.
    Invalid,
}

/// Body of `PUT /system/crl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CrlRequest {
    /// The list: PEM, or its DER in base64.
    #[cfg_attr(feature = "openapi", schema(min_length = 1))]
    pub crl: String,
}

/// Answer to `PUT /system/crl`: the list that is in force now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CrlInForce {
    /// Whether it was not in force before.
    pub changed: bool,
    /// Its number in lower-case hexadecimal.
    pub number: String,
    /// Who issued it.
    pub issuer: String,
    /// SHA-256 of the list in lower-case hexadecimal.
    pub sha256: String,
    /// When it was made.
    pub this_update: Timestamp,
    /// When the next is due.
    pub next_update: Option<Timestamp>,
    /// How many certificates it revokes.
    pub revoked: usize,
    /// How many open connections were closed because of it.
    pub closed_connections: usize,
}

/// The agent as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HealthStatus {
    /// All is well.
    Healthy,
    /// It works; something needs attention.
    Degraded,
    /// It cannot do its work; answered with 503.
    Unhealthy,
}

/// A run of the agent's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyRun {
    /// Its job; null if none was accepted.
    pub job_id: Option<JobId>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended; null while it runs.
    pub ended_at: Option<Timestamp>,
    /// Where its job stands, or how it ended.
    pub status: Option<JobStatus>,
    /// What it did, once it has ended.
    pub outcome: Option<Outcome>,
    /// Why it did not end as it should.
    pub error: Option<String>,
    /// The security fixes that it left out, as they were taken back on this host, each as `NAME=VERSION`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub barred: Vec<String>,
}

/// What the agent does by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PolicyState {
    /// `policy.mode`.
    pub mode: PolicyMode,
    /// What was decided last and why: one sentence.
    pub decision: String,
    /// When it patches next unless something changes; null if that cannot be told.
    pub next_run: Option<Timestamp>,
    /// The run that is at work, or the last one.
    pub last_run: Option<PolicyRun>,
    /// When a run last ended well that left no security fix out.
    pub last_success: Option<Timestamp>,
    /// How many runs have failed since.
    pub failures: u32,
}

/// Answer to `GET /health`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// The whole.
    pub status: HealthStatus,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// The agent's version.
    pub version: String,
    /// The parts.
    pub checks: Vec<HealthCheck>,
    /// The revocation list.
    pub crl_status: CrlStatus,
    /// Its age in seconds; null if there is none.
    pub crl_age_seconds: Option<u64>,
    /// When the next is due; null if there is none or it does not say.
    pub crl_next_update: Option<Timestamp>,
    /// When the server's certificate expires.
    pub certificate_expires: Option<Timestamp>,
    /// When the CA's certificate expires.
    pub ca_expires: Option<Timestamp>,
    /// What the agent does by itself; null from an agent that does not say.
    #[serde(default)]
    pub policy: Option<PolicyState>,
    /// The last record of the audit trail: its number and hash.
    pub audit_head: Option<AuditHead>,
}

/// The end of the audit trail's hash chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditHead {
    /// The last record's number.
    pub seq: u64,
    /// Its hash in hexadecimal.
    pub hash: String,
}
