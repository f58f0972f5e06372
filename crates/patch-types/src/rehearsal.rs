//! Rehearsals: a transaction tried first on a copy-on-write image of the host.

use serde::{Deserialize, Serialize};

/// What to do where no rehearsal is possible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Unrehearsed {
    /// Change nothing, and say why.
    #[default]
    Refuse,
    /// Be content with the solver's simulation, and say that it was not rehearsed.
    Simulate,
}

impl Unrehearsed {
    /// The choice as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Simulate => "simulate",
        }
    }
}

/// That a change is to be rehearsed, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearse {
    /// Nothing is changed even if all goes well.
    #[serde(default)]
    pub only: bool,
    /// What to do where no rehearsal is possible.
    #[serde(default)]
    pub otherwise: Unrehearsed,
}

/// What a rehearsal says of the real run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RehearsalVerdict {
    /// Everything planned was done in the image.
    Well,
    /// Something planned was not done in the image; the findings say what and where.
    Fails,
    /// There was no rehearsal; the reason says why.
    NotRehearsed,
}

impl RehearsalVerdict {
    /// The verdict as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Fails => "fails",
            Self::NotRehearsed => "not_rehearsed",
        }
    }
}

impl std::fmt::Display for RehearsalVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a transaction fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FindingKind {
    /// The script before a package is unpacked.
    Preinst,
    /// The script that configures a package.
    Postinst,
    /// The script before a package is removed or replaced.
    Prerm,
    /// The script after a package is removed or replaced.
    Postrm,
    /// The script that is run because another package touched what it watches.
    Trigger,
    /// Two packages have the same file.
    FileConflict,
    /// There is no room.
    DiskSpace,
    /// A package that it depends on is not there or not in order.
    Dependency,
    /// More processes than a transaction has.
    Processes,
    /// Anything else.
    Other,
}

impl FindingKind {
    /// The kind as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preinst => "preinst",
            Self::Postinst => "postinst",
            Self::Prerm => "prerm",
            Self::Postrm => "postrm",
            Self::Trigger => "trigger",
            Self::FileConflict => "file_conflict",
            Self::DiskSpace => "disk_space",
            Self::Dependency => "dependency",
            Self::Processes => "processes",
            Self::Other => "other",
        }
    }
}

impl std::fmt::Display for FindingKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that went wrong in a rehearsal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Finding {
    /// Where.
    pub kind: FindingKind,
    /// The package, as the package manager spells it, if it is one's.
    pub package: Option<String>,
    /// The package manager's words.
    pub message: String,
    /// The end of what was printed in that step: a maintainer script's own words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output: Vec<String>,
}

/// What came of a rehearsal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RehearsalReport {
    /// What it says of the real run.
    pub verdict: RehearsalVerdict,
    /// Why it was not rehearsed, or what fails first: one sentence.
    pub reason: Option<String>,
    /// What went wrong, in the order in which it did.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Configuration files that the administrator changed and of which the new version has another one: the real run keeps
    /// the administrator's.
    #[serde(default)]
    pub conffiles: Vec<String>,
    /// Commands that an image cannot run, since it has no devices: that they were called is all that is known.
    #[serde(default)]
    pub not_run: Vec<String>,
    /// File systems of the host that the image had not.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
    /// How much was written, in bytes.
    #[serde(default)]
    pub written_bytes: u64,
}

impl RehearsalReport {
    /// One of a rehearsal that there was not.
    #[must_use]
    pub fn not_rehearsed(reason: impl Into<String>) -> Self {
        Self {
            verdict: RehearsalVerdict::NotRehearsed,
            reason: Some(reason.into()),
            findings: Vec::new(),
            conffiles: Vec::new(),
            not_run: Vec::new(),
            left_out: Vec::new(),
            took_ms: 0,
            written_bytes: 0,
        }
    }
}
