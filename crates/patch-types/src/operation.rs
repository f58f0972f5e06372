//! Operations: what may be asked of the root side. Every field is validated by its type or by [`Operation::check`].

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    job::JobId,
    name::{PackageName, PackageVersion},
    reboot::{MAX_DELAY_SECONDS, MAX_REASON},
    snapshot::RollbackMode,
};

/// The most packages that one request may name.
pub const MAX_PACKAGES: usize = 1000;

/// A package to install, at a version if one is given.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PackageSpec {
    /// The package.
    pub name: PackageName,
    /// The exact version; the candidate if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<PackageVersion>,
}

/// Install packages, or bring them to the given versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Install {
    /// Which; at least one.
    pub packages: Vec<PackageSpec>,
    /// Leave recommended packages out.
    #[serde(default)]
    pub no_recommends: bool,
    /// Allow versions older than the installed ones.
    #[serde(default)]
    pub allow_downgrade: bool,
    /// Install again what is installed already.
    #[serde(default)]
    pub reinstall: bool,
}

/// Update one installed package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// Which.
    pub name: PackageName,
    /// To exactly this version; to the candidate if absent.
    #[serde(default)]
    pub version: Option<PackageVersion>,
}

/// Remove one package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// Which.
    pub name: PackageName,
    /// With its configuration files.
    #[serde(default)]
    pub purge: bool,
    /// With the packages that were installed only for it.
    #[serde(default)]
    pub autoremove: bool,
}

/// Put a package on hold, or take it off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Which.
    pub name: PackageName,
    /// On or off.
    pub hold: bool,
}

/// Apply available updates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyPatches {
    /// Only these; all if empty.
    #[serde(default)]
    pub packages: Vec<PackageName>,
    /// Only what brings a security fix.
    #[serde(default)]
    pub security_only: bool,
    /// Not these.
    #[serde(default)]
    pub exclude: Vec<PackageName>,
    /// Allow the solver to remove packages for it.
    #[serde(default)]
    pub allow_removals: bool,
    /// Fetch the indexes first when they are older than this many seconds.
    #[serde(default)]
    pub refresh_if_older: Option<u64>,
}

/// Undo what a job changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// Which job.
    pub job: JobId,
    /// Even if the packages were changed again since; for a snapshot, whatever hazards were listed.
    #[serde(default)]
    pub force: bool,
    /// To what it goes back.
    #[serde(default, skip_serializing_if = "RollbackMode::is_default")]
    pub mode: RollbackMode,
}

/// Reboot the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reboot {
    /// Not before so many seconds have passed, at most [`MAX_DELAY_SECONDS`].
    #[serde(default)]
    pub delay_seconds: u64,
    /// Why; an order that waits for no window needs a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Now, whatever the window says; otherwise it waits for the window.
    #[serde(default)]
    pub force: bool,
    /// The kernel's id of the boot in which it was asked for, as the agent fills it in. In another one it is fulfilled, however
    /// long it took to hand it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// When it was asked for, as the agent fills it in: the delay counts from then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

impl Reboot {
    fn check(&self) -> Result<(), OperationError> {
        if self.delay_seconds > MAX_DELAY_SECONDS {
            return Err(OperationError::Delay(self.delay_seconds));
        }
        if self
            .reason
            .as_ref()
            .is_some_and(|reason| reason.chars().count() > MAX_REASON || reason.chars().any(char::is_control))
        {
            return Err(OperationError::Reason);
        }
        if self.force && self.reason.as_ref().is_none_or(|reason| reason.trim().is_empty()) {
            return Err(OperationError::NoReason);
        }
        Ok(())
    }
}

/// A change of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Operation {
    /// Fetch the indexes of all repositories.
    Refresh,
    /// See [`Install`].
    Install(Install),
    /// See [`Update`].
    Update(Update),
    /// See [`Remove`].
    Remove(Remove),
    /// See [`Hold`].
    Hold(Hold),
    /// See [`ApplyPatches`].
    ApplyPatches(ApplyPatches),
    /// See [`Rollback`].
    Rollback(Rollback),
    /// See [`Reboot`].
    Reboot(Reboot),
}

/// An operation that no type could refuse but that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// Nothing was named.
    #[error("no packages were named; name at least one")]
    NoPackages,
    /// More than [`MAX_PACKAGES`] were named.
    #[error("{0} packages were named; at most {MAX_PACKAGES} are allowed in one request")]
    TooManyPackages(usize),
    /// The same package was named twice.
    #[error("package {0} is named more than once")]
    Duplicate(PackageName),
    /// A package is both wanted and excluded.
    #[error("package {0} is both named and excluded")]
    Excluded(PackageName),
    /// A reboot is put off for longer than [`MAX_DELAY_SECONDS`].
    #[error("delay_seconds is {0}; at most {MAX_DELAY_SECONDS} are possible")]
    Delay(u64),
    /// The reason for a reboot is too long, or more than a line.
    #[error("reason has more than {MAX_REASON} characters, or characters that are none of a line")]
    Reason,
    /// A reboot outside the window has no reason.
    #[error("a reboot with `force` needs a reason; say why the host cannot wait for its window")]
    NoReason,
}

impl Operation {
    /// The kind of job that this makes, as it stands in JSON and in the audit trail.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refresh => "refresh",
            Self::Install(_) => "install",
            Self::Update(_) => "update",
            Self::Remove(_) => "remove",
            Self::Hold(_) => "hold",
            Self::ApplyPatches(_) => "apply_patches",
            Self::Rollback(_) => "rollback",
            Self::Reboot(_) => "reboot",
        }
    }

    /// Checks what spans several fields. Both sides of the executor's socket call it.
    ///
    /// # Errors
    /// See [`OperationError`].
    pub fn check(&self) -> Result<(), OperationError> {
        match self {
            Self::Install(install) => {
                if install.packages.is_empty() {
                    return Err(OperationError::NoPackages);
                }
                distinct(install.packages.iter().map(|p| &p.name))
            }
            Self::ApplyPatches(apply) => {
                distinct(apply.packages.iter())?;
                distinct(apply.exclude.iter())?;
                match apply.packages.iter().find(|p| apply.exclude.contains(p)) {
                    Some(both) => Err(OperationError::Excluded(both.clone())),
                    None => Ok(()),
                }
            }
            Self::Reboot(reboot) => reboot.check(),
            Self::Refresh | Self::Update(_) | Self::Remove(_) | Self::Hold(_) | Self::Rollback(_) => Ok(()),
        }
    }
}

fn distinct<'a>(names: impl ExactSizeIterator<Item = &'a PackageName>) -> Result<(), OperationError> {
    if names.len() > MAX_PACKAGES {
        return Err(OperationError::TooManyPackages(names.len()));
    }
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(OperationError::Duplicate(name.clone()));
        }
    }
    Ok(())
}

/// A read that needs root. It changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "query", rename_all = "snake_case")]
pub enum Query {
    /// Available updates, from the package manager's solver: [`crate::api::PatchSet`].
    Patches,
    /// One package: [`crate::api::PackageDetail`].
    Package {
        /// Which.
        name: PackageName,
    },
    /// Why a package is not being patched: [`crate::api::WhyNot`].
    WhyNot {
        /// Which.
        name: PackageName,
    },
    /// Units, their state, and processes that run replaced code: [`crate::api::ServiceList`].
    Services,
    /// The reboot window, what is queued for it and what stands against a reboot: [`crate::reboot::WindowStatus`].
    RebootWindow,
    /// What root sees of memory and logs: [`crate::compliance::Evidence`].
    Evidence {
        /// Of which packages it is to be told what still runs their old code; not more than [`MAX_PACKAGES`] are looked at.
        packages: Vec<PackageName>,
        /// From when on the logs matter.
        since: jiff::Timestamp,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_spans_fields_is_checked() {
        let name = |n: &str| n.parse::<PackageName>().unwrap();
        let install = |names: &[&str]| {
            Operation::Install(Install {
                packages: names.iter().map(|n| PackageSpec { name: name(n), version: None }).collect(),
                no_recommends: false,
                allow_downgrade: false,
                reinstall: false,
            })
        };
        assert_eq!(install(&[]).check(), Err(OperationError::NoPackages));
        assert_eq!(install(&["aa", "bb"]).check(), Ok(()));
        assert_eq!(install(&["aa", "aa"]).check(), Err(OperationError::Duplicate(name("aa"))));
        let both =
            ApplyPatches { packages: vec![name("aa")], exclude: vec![name("aa")], ..Default::default() };
        assert_eq!(Operation::ApplyPatches(both).check(), Err(OperationError::Excluded(name("aa"))));
    }

    #[test]
    fn a_reboot_that_waits_for_no_window_needs_a_reason() {
        let reboot = |force, reason: Option<&str>, delay_seconds| {
            Operation::Reboot(Reboot {
                delay_seconds,
                reason: reason.map(str::to_owned),
                force,
                ..Reboot::default()
            })
            .check()
        };
        assert_eq!(reboot(false, None, 0), Ok(()));
        assert_eq!(reboot(true, Some("the disk is replaced"), MAX_DELAY_SECONDS), Ok(()));
        assert_eq!(reboot(true, None, 0), Err(OperationError::NoReason));
        assert_eq!(reboot(true, Some("  "), 0), Err(OperationError::NoReason));
        assert_eq!(
            reboot(false, None, MAX_DELAY_SECONDS + 1),
            Err(OperationError::Delay(MAX_DELAY_SECONDS + 1))
        );
        assert_eq!(reboot(false, Some("a\nb"), 0), Err(OperationError::Reason));
        assert_eq!(reboot(false, Some(&"ä".repeat(MAX_REASON + 1)), 0), Err(OperationError::Reason));
        assert_eq!(reboot(false, Some(&"ä".repeat(MAX_REASON)), 0), Ok(()));
    }

    #[test]
    fn unknown_fields_and_bad_names_do_not_deserialise() {
        let ok = r#"{"kind":"remove","name":"aa","purge":true}"#;
        assert!(serde_json::from_str::<Operation>(ok).is_ok());
        for bad in [
            r#"{"kind":"remove","name":"aa","shell":true}"#,
            r#"{"kind":"remove","name":"-aa"}"#,
            r#"{"kind":"format","name":"aa"}"#,
        ] {
            assert!(serde_json::from_str::<Operation>(bad).is_err(), "{bad}");
        }
    }
}
