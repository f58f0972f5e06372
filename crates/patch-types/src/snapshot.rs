//! Snapshots of file systems: whether one was made before a change, and what going back to it would take back as well.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How a job is undone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RollbackMode {
    /// The job's packages go back to what was recorded of them; all else stays.
    #[default]
    Packages,
    /// The host goes back to the snapshot of its file systems that was made before the job, with everything that was
    /// changed on them since. It is in force after the next reboot.
    Snapshot,
}

impl RollbackMode {
    /// Whether it is the one that is meant when nobody says.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What made a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SnapshotKind {
    /// btrfs: a read-only subvolume.
    Btrfs,
    /// snapper, which is configured for the root: one of its own, which its own cleanup removes.
    Snapper,
    /// LVM: a thin snapshot of a thin volume.
    Lvm,
    /// ZFS: a snapshot of a dataset.
    Zfs,
}

impl SnapshotKind {
    /// The kind as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Btrfs => "btrfs",
            Self::Snapper => "snapper",
            Self::Lvm => "lvm",
            Self::Zfs => "zfs",
        }
    }
}

impl std::fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether there is a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SnapshotState {
    /// It was made.
    Made,
    /// It was asked for and could not be made; the reason says why.
    NotAvailable,
}

/// The snapshot of a host's file systems that was made before a change, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnapshotReport {
    /// Whether there is one.
    pub state: SnapshotState,
    /// If not, why: one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SnapshotKind>,
    /// Its name: of a subvolume the path below the top of its file system, of snapper's the configuration and the number,
    /// of LVM the volume, of ZFS the snapshot. Of several there is one name each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The mounts that are part of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub file_systems: Vec<String>,
    /// The mounts that are not: what is on them stays as it is when the host goes back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

impl SnapshotReport {
    /// That there is none.
    #[must_use]
    pub fn not_available(reason: impl Into<String>) -> Self {
        Self {
            state: SnapshotState::NotAvailable,
            reason: Some(reason.into()),
            kind: None,
            names: Vec::new(),
            file_systems: Vec::new(),
            left_out: Vec::new(),
            at: None,
        }
    }
}

/// What has become of a file since a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FileChange {
    /// It came since, and would be gone.
    Added,
    /// It was written since, or its owner, mode or attributes changed; it would be as it was.
    Changed,
    /// It was removed since, and would be there again.
    Removed,
}

impl FileChange {
    /// The change as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        }
    }
}

impl std::fmt::Display for FileChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A file, or a directory with everything in it, that going back to a snapshot changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChangedFile {
    /// Its path, at most 400 bytes of it; bytes that are not UTF-8 are shown as U+FFFD. One that ends in `/` stands for what lies in it.
    pub path: String,
    /// What has become of it since the snapshot.
    pub change: FileChange,
    /// How many files it stands for.
    pub files: u64,
}

/// What going back to a snapshot takes back besides the job's own packages. The plan's hash is made of it too: every path
/// and what became of it, also of those that are too many to be listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TakesBack {
    /// What made the snapshot.
    pub kind: SnapshotKind,
    /// Its names.
    pub names: Vec<String>,
    /// When it was made: everything since then goes.
    pub at: Timestamp,
    /// The mounts that go back.
    pub file_systems: Vec<String>,
    /// The mounts that stay as they are.
    pub left_out: Vec<String>,
    /// Files that are no part of the job's packages and have changed since, by path; at most [`MAX_FILES`].
    pub files: Vec<ChangedFile>,
    /// How many such entries there are.
    pub total: u64,
    /// What is carried over as it is now: the agent's own configuration, state and audit trail, and other subvolumes that
    /// lie within.
    pub kept: Vec<String>,
    /// What may go wrong with it, one sentence each; with any it takes `force`.
    pub hazards: Vec<String>,
}

/// The most files that are listed.
pub const MAX_FILES: usize = 1000;
