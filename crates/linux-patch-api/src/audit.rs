//! The audit trail as this crate's asynchronous code sees it: a record is awaited until it is on disk.

/// A handle on the audit trail.
#[derive(Clone)]
pub struct Audit {}
