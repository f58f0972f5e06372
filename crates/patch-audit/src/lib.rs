//! The audit event, its hash chain and its sinks.
