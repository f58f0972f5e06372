//! The agent's network side: it answers requests, keeps the jobs, and mirrors what the root side does. It is
//! unprivileged and starts no process.
//!
//! | module | owns |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`run`] | the daemon's life: start, serve, stop |
//! | [`reload`] | what changes while it runs: configuration, certificates |
//! | [`control`] | the socket by which a reload is asked for |
//! | [`log`] | the service's own log and its level |
//! | [`certificates`] | the certificates in force and their renewal |
//! | [`config`] | the configuration file |
//! | [`door`] | the record of what happens at the door |
//! | [`ends`] | how the runs before this one ended |
//! | [`http`] | the API: routes, roles, answers |
//! | [`inventory`] | what is installed and what could be updated |
//! | [`compliance`] | how soon fixes were installed |
//! | [`jobs`] | changes, from acceptance to their end |
//! | [`executor`] | the client of the root side |
//! | [`policy`] | patching by itself |
//! | [`audit`] | the audit trail |
//! | [`checkpoint`] | having its head signed by the root side |
//! | `memory` | giving memory back when idle |
//! | [`syslog`] | its remote sink's settings and TLS |

pub mod audit;
pub mod certificates;
pub mod checkpoint;
pub mod cli;
pub mod compliance;
pub mod config;
#[cfg(test)]
mod confined;
pub mod control;
pub mod door;
pub mod ends;
pub mod executor;
pub mod http;
pub mod inventory;
pub mod jobs;
pub mod log;
mod memory;
pub mod policy;
pub mod reload;
pub mod run;
pub mod syslog;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
