//! Going back: how good a way back is, when it is taken, and what came of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    job::JobId,
    name::{Architecture, PackageName, PackageVersion},
    rehearsal::Rehearse,
    snapshot::SnapshotReport,
};

/// How well a package's present state can be had again. Ordered: the better one is the greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Grade {
    /// Not at all.
    None,
    /// From an archive that was made of the installed files.
    Rebuilt,
    /// From the very archive: name, version, architecture and file hashes equal dpkg's record.
    Exact,
}

impl Grade {
    /// The grade as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Rebuilt => "rebuilt",
            Self::Exact => "exact",
        }
    }
}

impl std::fmt::Display for Grade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which way back a change must have before it begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Require {
    /// Every package's present archive, byte for byte as dpkg recorded it.
    Exact,
    /// Some archive of every package, a rebuilt one if need be.
    #[default]
    Any,
    /// None.
    Off,
}

impl Require {
    /// Whether a way back of this grade is good enough.
    #[must_use]
    pub fn accepts(self, grade: Grade) -> bool {
        match self {
            Self::Exact => grade == Grade::Exact,
            Self::Any => grade >= Grade::Rebuilt,
            Self::Off => true,
        }
    }
}

/// What happens to the rest of a batch when a part of it fails. A part is a dependency-closed group of packages; each
/// ends exactly old or exactly new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OnFailure {
    /// The failed groups go back, the others are finished.
    #[default]
    Group,
    /// Everything goes back.
    All,
    /// What succeeded stays, and what did not is repaired as far as it can be.
    Keep,
}

impl OnFailure {
    /// The choice as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::All => "all",
            Self::Keep => "keep",
        }
    }
}

/// The longest time that a change may wait to be confirmed, in seconds.
pub const MAX_CONFIRM_SECONDS: u32 = 24 * 3600;

/// How a change is to be made, whatever it changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeOptions {
    /// What happens to the rest when a part fails.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Go back unless somebody confirms within so many seconds, 1 to [`MAX_CONFIRM_SECONDS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within: Option<u32>,
    /// Try it first on an image of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearse: Option<Rehearse>,
}

/// [`ChangeOptions`] in a file, for `#[serde(flatten, with = "...")]`: those as they always were, and the rehearsal beside
/// them. A program of before rehearsals refuses an option that it does not know, but passes over such a field; it is the one
/// that reads the file when an update of the agent is taken back.
pub mod kept {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{ChangeOptions, Rehearse};

    #[derive(Serialize, Deserialize)]
    struct Kept {
        #[serde(default)]
        options: ChangeOptions,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rehearse: Option<Rehearse>,
    }

    /// See the module.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(options: &ChangeOptions, serializer: S) -> Result<S::Ok, S::Error> {
        let rehearse = options.rehearse;
        Kept { options: ChangeOptions { rehearse: None, ..options.clone() }, rehearse }.serialize(serializer)
    }

    /// See the module.
    ///
    /// # Errors
    /// When they are none.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ChangeOptions, D::Error> {
        let Kept { options, rehearse } = Kept::deserialize(deserializer)?;
        Ok(ChangeOptions { rehearse: rehearse.or(options.rehearse), ..options })
    }
}

/// The way back of one package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PackageWayBack {
    /// The package.
    pub name: PackageName,
    /// Its architecture.
    pub architecture: Architecture,
    /// The version that is kept.
    pub version: PackageVersion,
    /// How well.
    pub grade: Grade,
    /// Why it is not exact: one sentence; empty if it is.
    pub reason: String,
}

/// The way back of a change, recorded before it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WayBack {
    /// That of the package for which it is worst.
    pub grade: Grade,
    /// Every package that is changed or removed, with its archive.
    pub packages: Vec<PackageWayBack>,
    /// How long recording it took, in milliseconds: finding the archives, copying configuration, reserving room.
    #[serde(default)]
    pub recorded_in_ms: u64,
    /// The snapshot of the file systems that was made before; absent unless `rollback.snapshots` asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotReport>,
}

/// What came of going back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WentBack {
    /// Why: one sentence.
    pub reason: String,
    /// The packages that are as they were before, each with its version or `not installed`.
    pub restored: Vec<String>,
    /// What is not as it was, one sentence each; empty after a success.
    pub left: Vec<String>,
    /// The administrator's edits since the change, which were kept: paths.
    pub kept_edits: Vec<String>,
    /// What a person can do about what is left: commands, in order.
    pub commands: Vec<String>,
    /// The versions that are not installed again on this host until root clears them there or newer ones come, each as
    /// `NAME=VERSION`, which is what `linux-patch-host clear` takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub barred: Vec<String>,
}

/// A version that was taken back, and that is not installed again until it is cleared or superseded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TakenBack {
    /// The package, without architecture.
    pub name: PackageName,
    /// Its architecture.
    pub architecture: Architecture,
    /// The version that was taken back.
    pub version: PackageVersion,
    /// The job that took it back.
    pub job: JobId,
    /// When.
    pub at: Timestamp,
    /// Why: one sentence.
    pub reason: String,
}

impl TakenBack {
    /// Name and version, as `linux-patch-host clear` takes them.
    #[must_use]
    pub fn named(&self) -> String {
        format!("{}={}", self.name, self.version)
    }

    /// That a security fix is left out for this reason, and what root can do, in one sentence.
    #[must_use]
    pub fn sentence(&self) -> String {
        format!(
            "the security fix {} {} is not installed, since job {} took it back ({}); it comes with a newer version, or when root \
             lets it, on the host: linux-patch-host clear {}",
            self.name,
            self.version,
            self.job,
            self.reason.trim_end_matches('.'),
            self.named()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Now {
        id: u32,
        #[serde(flatten, with = "kept")]
        options: ChangeOptions,
    }

    #[derive(Debug, Deserialize)]
    struct Before {
        id: u32,
        #[serde(default)]
        options: OptionsBefore,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OptionsBefore {
        on_failure: OnFailure,
        confirm_within: Option<u32>,
    }

    #[test]
    fn a_program_of_before_rehearsals_reads_what_is_kept() {
        let rehearse = Some(Rehearse { only: true, ..Rehearse::default() });
        let options = ChangeOptions { on_failure: OnFailure::All, confirm_within: Some(7), rehearse };
        let now = Now { id: 1, options };
        let text = serde_json::to_string(&now).unwrap();
        let before: Before = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (before.id, before.options.on_failure, before.options.confirm_within),
            (1, OnFailure::All, Some(7))
        );
        assert_eq!(serde_json::from_str::<Now>(&text).unwrap(), now);
        // And the other way round.
        for text in [r#"{"id": 1, "options": {"on_failure": "group"}}"#, r#"{"id": 1}"#] {
            assert_eq!(serde_json::from_str::<Now>(text).unwrap().options, ChangeOptions::default());
        }
    }
}
