//! The audit event, its hash chain and its sinks: one event model for every program.
//!
//! - [`AuditEvent::new`]`(kind, &caller)`: one of the [`AuditKind`]s with its [`Priority`] and its sentence; the
//!   [`Caller`] says who and from where. Shorthands: [`AuditEvent::request`], [`AuditEvent::package_changed`],
//!   [`AuditEvent::job_ended`].
//! - [`AuditLog::open`]`(path, Options)`: the durable local sink and, behind it, the journal.
//!   [`AuditLog::submit`]`(event, on_durable)` never blocks, [`AuditLog::record`]`(event)` waits until the record is
//!   on disk, [`AuditLog::record_later`]`(event)` is for reads: grouped, not waited for. [`AuditLog::head`],
//!   [`AuditLog::status`], [`AuditLog::flush`], [`AuditLog::close`].
//! - [`AuditLog::reconfigure`]: how long files are kept and to which [`Remote`] records go besides, at run time.
//! - [`append`]`(path, events, &Bounds)`: the same chain for programs that live for one record.
//! - [`Key`], [`PublicKeys`]: heads of the trail, signed by the root side.
//! - [`examine`]`(log, &Known)`: verifies a whole trail, its compressed files included, against what is known elsewhere.
//! - [`verify`]`(reader, &Expect)` gives a [`Verdict`] that names every break of the chain by line and number.
//! - [`Reader`]: the last records of a trail, filtered, for the command line.
//! - [`Head`]: number and hash of the last record; what is kept elsewhere to notice truncation.
//!
//! What a record looks like and how to verify one by hand is in `docs/audit.md`.

mod acknowledged;
mod chain;
mod checkpoint;
mod event;
mod file;
mod journald;
mod log;
mod queue;
mod reader;
mod record;
mod sentence;
mod ship;
mod syslog;
mod trail;
mod verify;
mod writer;

pub use acknowledged::{Acknowledged, Acknowledgements, Damage, Gap};
pub use chain::{Break, Expect, Hash, Head, HeadError, MAX_RECORD, MAX_SEQ, Problem, Start, Verdict, verify};
pub use checkpoint::{Key, PublicKeys, keep_head, read_checkpoint, read_heads, write_checkpoint};
pub use event::{AuditEvent, AuditKind, Caller, CertificateRole, Priority};
pub use journald::JOURNAL_SOCKET;
pub use log::{AuditError, AuditLog, LOG_PATH, OnDurable, Options, Reconfiguration, Status};
pub use reader::{Filter, Reader, Record};
pub use record::{Bounds, RECORD_BOUNDS, append};
pub use ship::{CURSOR, Patience, Remote, RemoteStatus, Stream, TlsConnect};
pub use syslog::{Target, TargetError, Transport};
pub use trail::{Trail, TrailFile, set_aside};
pub use verify::{Known, Report, Retention, SignedHead, examine, examine_opened};
