//! Reading package managers: what is installed, what the archives offer, what the solver said.
//!
//! This crate owns the formats of dpkg and apt, and what follows from them for the API's values. It leaves to others:
//! starting the tools (`patch-apply`, whose output is parsed here), changing anything, and time (an argument wherever it
//! matters). It starts no process, has no runtime and opens no socket, so the unprivileged daemon may use it as well as
//! the root side.
//!
//! Every reader takes a root directory (`/` on a real host) and every parser takes text. Nothing that stands on a disk
//! or comes out of a tool makes one panic: what is malformed is left out and counted.
//!
//! The usual way through, for a plan:
//!
//! ```no_run
//! use std::path::Path;
//! use patch_backends::apt::{Indexes, Inventory, patch_set, plan, simulate};
//!
//! # fn main() -> Result<(), patch_backends::ReadError> {
//! let inventory = Inventory::read(Path::new("/"))?;
//! let simulation = simulate::parse("…what `apt-get -s -V upgrade` printed…");
//! let indexes = Indexes::for_simulations(&inventory, &[&simulation])?;
//! let plan = plan(&simulation, &inventory, &indexes);
//! let patches = patch_set(&simulation, &inventory, &indexes);
//! # Ok(()) }
//! ```

pub mod apt;
pub mod ceiling;
pub mod stale;
pub mod system;

use std::{
    io,
    path::{Path, PathBuf},
};

/// A file that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct ReadError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl ReadError {
    pub(crate) fn new(path: &Path, source: io::Error) -> Self {
        Self { path: path.to_owned(), source }
    }
}

/// `path`, which is absolute or relative, below `root`. It cannot climb out by `..`.
pub(crate) fn below(root: &Path, path: &str) -> PathBuf {
    let inside = Path::new(path)
        .components()
        .filter(|part| matches!(part, std::path::Component::Normal(_)))
        .collect::<PathBuf>();
    root.join(inside)
}
