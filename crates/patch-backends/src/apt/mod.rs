//! apt and dpkg: Debian, Ubuntu and their derivatives.
//!
//! | module | reads |
//! | --- | --- |
//! | [`status`] | dpkg's database of installed packages |
//! | [`info`] | what dpkg keeps beside it: file lists, conffiles, maintainer scripts |
//! | [`extended_states`] | apt's marks of automatic installation |
//! | [`release`], [`indexes`] | what the archives offer, and who they are |
//! | [`fixes`], [`logs`] | which security fixes concern the host; what came of them |
//! | [`simulate`], [`policy`] | what apt's solver and policy printed |
//! | [`versions`], [`relations`] | version order; dependencies |
//! | [`mod@classify`], [`words`] | what a failed run means; what of its words may be repeated |
//!
//! [`groups`](groups()) splits a plan into parts that do not need each other.
//!
//! [`plan`](plan()), [`patch_set`], [`detail`](detail()) and [`why_not`](why_not()) put these together into the values
//! of the API.

pub mod classify;
pub mod deb822;
pub mod detail;
pub mod extended_states;
pub mod fixes;
pub mod groups;
pub mod history;
pub mod indexes;
pub mod info;
pub mod logs;
pub mod patches;
pub mod plan;
pub mod policy;
pub mod relations;
pub mod release;
pub mod simulate;
pub mod status;
pub mod versions;
pub mod why_not;
pub mod words;

use std::path::{Path, PathBuf};

pub use classify::{OperationKind, classify};
pub use detail::detail;
pub use extended_states::ExtendedStates;
pub use groups::groups;
pub use history::{last_update_apply, last_update_check};
pub use indexes::{Indexed, Indexes};
pub use patches::{patch_set, with_taken_back};
pub use plan::plan;
pub use policy::Policy;
pub use simulate::Simulation;
pub use status::{Database, DatabaseStamp, Installed, Stamp};
pub use why_not::{Evidence, why_not};

use crate::ReadError;

/// What is installed below one root: dpkg's database and apt's marks, read together.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// The root directory; `/` on a real host.
    pub root: PathBuf,
    /// dpkg's database.
    pub database: Database,
    /// Which packages apt installed only because others need them.
    pub states: ExtendedStates,
}

impl Inventory {
    /// Reads both, with everything that the database says of each package.
    ///
    /// # Errors
    /// When a file exists and cannot be read, or dpkg's status file does not exist.
    pub fn read(root: &Path) -> Result<Self, ReadError> {
        Ok(Self {
            root: root.to_owned(),
            database: Database::read(root)?,
            states: ExtendedStates::read(root)?,
        })
    }

    /// The same without what only [`detail`](detail()) needs (see [`Database::read_for_list`]): for a process that
    /// keeps it in memory.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_for_list(root: &Path) -> Result<Self, ReadError> {
        Ok(Self {
            root: root.to_owned(),
            database: Database::read_for_list(root)?,
            states: ExtendedStates::read(root)?,
        })
    }

    /// Whether a package was installed only because another needs it.
    #[must_use]
    pub fn is_auto(&self, package: Installed<'_>) -> bool {
        self.states.is_auto(package.name(), package.architecture(), self.database.native())
    }
}
