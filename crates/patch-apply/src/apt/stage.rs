//! What the steps of recording and of going back need of whoever takes them.

use std::path::Path;

use super::argv::Argv;
use crate::run::RunError;

/// Runs tools and tells people about it. The executor's puts both into the job's events; a test's may do nothing.
pub trait Stage {
    /// Runs a tool that changes packages to its end, however long that takes; its output is logged. Gives its exit
    /// code, or none if a signal ended it.
    ///
    /// # Errors
    /// When it cannot be started or waited for.
    fn run(&mut self, argv: Argv) -> Result<Option<i32>, RunError>;

    /// Fetches archives, each as `name:architecture=version`, into a directory, verified by the package manager. Gives
    /// whether all came; those that did are there in any case. May be called off by the job's end or limit.
    fn fetch(&mut self, archives: &[String], directory: &Path) -> bool;

    /// Says something in the job's log.
    fn say(&mut self, line: String);
}
