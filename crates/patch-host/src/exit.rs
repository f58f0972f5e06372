//! Exit codes: what a script learns without reading anything.

use std::process::ExitCode;

use crate::ask::AskError;

/// The codes, as `--help` and the manual have them.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done, also when there was nothing to do
  1    it was refused, or it failed; with `stale` also: not known, as not every process could be read
  2    usage
  3    the root side cannot be reached
  4    doctor found something that weakens this host or its patching
  5    doctor found something that keeps fixes from being installed, or lets others decide what is
    6    something still runs old code (only with `stale`)
  7    a security fix took or takes longer than promised (only with `report`)
  8    whether security fixes are missing cannot be told (only with `report`)";

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Unreachable = 3,
    Warnings = 4,
    Critical = 5,
    OldCode = 6,
    OverPromise = 7,
    Untold = 8,
}

impl Exit {
    pub(crate) fn of_error(error: &anyhow::Error) -> Self {
        match error.downcast_ref::<AskError>() {
            Some(AskError::Unreachable { .. } | AskError::NotStarted { .. }) => Self::Unreachable,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
