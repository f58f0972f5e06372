//! Going back: making the host again what a snapshot says it was, and proving it.
//!
//! One attempt is [`go_back`]. It looks at the database and the disk, does what is missing and looks again, so it may be
//! killed at any instant and called again. Who decides to go back, how often, and what waits for whom, is left to the
//! caller, who also holds the front end's lock ([`super::lock::Frontend`]) throughout.
//!
//! | module | does |
//! | --- | --- |
//! | `procedure` | packages: removing, unpacking, configuring, marks, units |
//! | `conffiles` | configuration files |
//! | `proof` | comparing, without changing anything |

mod conffiles;
mod procedure;
mod proof;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use patch_backends::{
    ReadError,
    apt::{Database, ExtendedStates, Installed, status::Want},
};
use patch_types::api::PackageStatus;

use super::{
    snapshot::{Affected, After, Kept, PackageKey, Recorded, Snapshot},
    stage::Stage,
};
use crate::run::RunError;

/// What is gone back to, and how far.
#[derive(Clone, Copy)]
pub struct Going<'a> {
    /// The host's root directory, absolute.
    pub root: &'a Path,
    /// The state to come back to.
    pub snapshot: &'a Snapshot,
    /// The directory with the bytes of configuration files, by [`super::snapshot::Content::copy`].
    pub copies: &'a Path,
    /// Where a kept archive lies. Fails when it is missing or not what was kept.
    pub archive: &'a dyn Fn(&Kept) -> io::Result<PathBuf>,
    /// The packages that go back; those of the plan or some of its groups.
    pub scope: &'a BTreeSet<PackageKey>,
    /// What the change left, if it had ended: configuration files that differ from it were edited since and are kept.
    pub after: Option<&'a After>,
}

impl std::fmt::Debug for Going<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Going").field("root", &self.root).field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proof {
    /// The packages of the scope that are as they were, each with its version or `not installed`.
    pub restored: Vec<String>,
    /// What differs from the snapshot, one sentence each; empty if the host is proven to be as it was.
    pub left: Vec<String>,
    /// Configuration files that were edited since the change and kept.
    pub kept_edits: Vec<String>,
    /// What a person can type about what is left, in order.
    pub commands: Vec<String>,
}

impl Proof {
    /// Whether nothing differs.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.left.is_empty()
    }
}

/// An attempt could not be made or not be ended. Calling again is safe.
#[derive(Debug, thiserror::Error)]
pub enum GoBackError {
    /// The package database cannot be read.
    #[error("cannot read the package database: {0}")]
    Database(#[from] ReadError),
    /// A tool could not be run.
    #[error("cannot go back: {0}")]
    Run(#[from] RunError),
    /// A file system is full, and packages or files are not back for it.
    #[error("the file system of {} is full: free space there, then go back again", path.display())]
    NoSpace {
        /// A path on it.
        path: PathBuf,
    },
    /// An edited configuration file of a package that has to be purged could not be copied away; nothing was purged.
    #[error("cannot keep a copy of the edited {}: {source}", path.display())]
    Save {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the packages of the scope what they were. One attempt; what it could not do stands in the proof.
///
/// # Errors
/// When the database cannot be read, a tool not be run, or the disk is full.
pub fn go_back(going: &Going<'_>, stage: &mut dyn Stage) -> Result<Proof, GoBackError> {
    let before = Now::read(going.root)?;
    let saved = procedure::packages(going, stage)?;
    conffiles::restore(going, stage)?;
    procedure::marks(going, stage)?;
    let still = procedure::units(going, stage);
    let mut proof = prove(going)?;
    proof.kept_edits.extend(saved);
    proof::untouched(going, &before, &mut proof)?;
    for unit in still {
        proof.left.push(format!("{unit} was running before and could not be started"));
        proof.commands.push(format!("systemctl start {unit}"));
    }
    Ok(proof)
}

/// Compares the host with the snapshot, as far as the scope goes. Changes nothing.
///
/// # Errors
/// When the database cannot be read.
pub fn prove(going: &Going<'_>) -> Result<Proof, GoBackError> {
    proof::compare(going)
}

/// The package database of this moment.
struct Now {
    database: Database,
    states: ExtendedStates,
}

impl Now {
    fn read(root: &Path) -> Result<Self, GoBackError> {
        Ok(Self { database: Database::read(root)?, states: ExtendedStates::read(root)? })
    }

    fn find(&self, key: &PackageKey) -> Option<Installed<'_>> {
        self.database
            .named(&key.name)
            .find(|p| p.architecture() == key.architecture && p.status() != PackageStatus::NotInstalled)
    }

    fn is_auto(&self, package: Installed<'_>) -> bool {
        self.states.is_auto(package.name(), package.architecture(), self.database.native())
    }

    /// How dpkg and apt are told which package is meant. None for what is no name: it came from a file.
    fn label(&self, key: &PackageKey) -> Option<String> {
        let label = if key.architecture == "all" || key.architecture.is_empty() {
            key.name.clone()
        } else {
            key.to_string()
        };
        label.parse::<patch_types::PackageName>().ok().map(String::from)
    }
}

impl<'a> Going<'a> {
    /// What the snapshot says of a package that was in the database; none for `not-installed`, which is no state to
    /// come back to.
    fn recorded(&self, key: &PackageKey) -> Option<&'a Recorded> {
        self.snapshot.packages.get(key).filter(|r| r.status != "not-installed")
    }

    /// The affected packages that go back.
    fn targets(&self) -> impl Iterator<Item = &'a Affected> + use<'a> {
        let scope = self.scope;
        self.snapshot.affected.iter().filter(move |a| scope.contains(&a.key))
    }

    /// Packages that are not part of the change, but whose files it may have taken over.
    fn neighbours(&self) -> impl Iterator<Item = &'a Affected> + use<'a> {
        let scope = self.scope;
        self.snapshot.affected.iter().filter(move |a| !a.planned && !scope.contains(&a.key))
    }

    /// An absolute path of the host below the root, without a way out of it.
    fn below(&self, path: &str) -> PathBuf {
        below(self.root, Path::new(path))
    }
}

fn below(root: &Path, path: &Path) -> PathBuf {
    let inside: PathBuf =
        path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect();
    root.join(inside)
}

/// Whether a recorded state means that the files were there.
fn was_present(recorded: &Recorded) -> bool {
    !matches!(recorded.status.as_str(), "config-files" | "not-installed")
}

/// dpkg's word for a state.
fn status_word(status: PackageStatus) -> &'static str {
    match status {
        PackageStatus::NotInstalled => "not-installed",
        PackageStatus::ConfigFiles => "config-files",
        PackageStatus::HalfInstalled => "half-installed",
        PackageStatus::Unpacked => "unpacked",
        PackageStatus::HalfConfigured => "half-configured",
        PackageStatus::TriggersAwaited => "triggers-awaited",
        PackageStatus::TriggersPending => "triggers-pending",
        PackageStatus::Installed => "installed",
    }
}

/// dpkg's word for what is wanted.
fn want_word(want: Want) -> &'static str {
    match want {
        Want::Unknown => "unknown",
        Want::Install => "install",
        Want::Hold => "hold",
        Want::Deinstall => "deinstall",
        Want::Purge => "purge",
    }
}

/// Whether a state is the recorded one, or the good end of what was recorded half-way.
fn status_fits(recorded: &Recorded, now: Installed<'_>) -> bool {
    let word = status_word(now.status());
    !now.reinstall_required()
        && (word == recorded.status || was_present(recorded) && now.status() == PackageStatus::Installed)
}
