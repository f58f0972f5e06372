//! The vocabulary of the whole system: what the root side, the network side and the clients say to each other.
//!
//! Everything here is a value. Deserialising *is* validating: a [`PackageName`] that exists cannot be read as an
//! option, hold a path or reach a shell. There is no IO, no clock and no runtime in this crate.

pub mod api;
pub mod compliance;
pub mod error;
pub mod event;
pub mod executor;
pub mod job;
pub mod logins;
pub mod name;
pub mod notifications;
pub mod operation;
pub mod plan;
pub mod policy;
pub mod reboot;
pub mod rehearsal;
pub mod rollback;
pub mod settings;
pub mod snapshot;
pub mod stale;
pub mod terminal;

pub use error::{ErrorCode, ErrorDetail};
pub use event::{Event, EventKind, LockHolder};
pub use job::{JobId, JobIdError, JobStatus, Outcome, Phase};
pub use name::{Architecture, PackageName, PackageVersion};
pub use operation::{Operation, Query};
pub use plan::{Action, Plan, PlanHash, PlannedChange};
pub use rehearsal::{Finding, FindingKind, RehearsalReport, RehearsalVerdict, Rehearse, Unrehearsed};
pub use rollback::{ChangeOptions, Grade, OnFailure, TakenBack, WayBack, WentBack};
pub use snapshot::{RollbackMode, SnapshotReport, TakesBack};
