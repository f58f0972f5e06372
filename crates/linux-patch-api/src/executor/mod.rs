//! The client of the root side: one typed request through its socket, one reply, then the numbered events in its file.
//!
//! This module owns the transport and nothing else: what is asked, and what an answer means for a job, is decided in
//! [`crate::jobs`] and in the HTTP handlers. The event file is the only channel that counts: it is the same whether it
//! is followed from its first line or picked up by a daemon that was started in mid-operation.

mod ask;
mod cache;
mod client;
pub mod follow;

pub(crate) use client::request;
pub use client::{Executor, ExecutorError};
