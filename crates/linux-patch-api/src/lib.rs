//! The agent's network side: it answers requests, keeps the jobs, and mirrors what the root side does. It is
//! unprivileged and starts no process.
//!
//! | module | owns |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`run`] | the daemon's life: start, reload, stop |
//! | [`config`] | the configuration file |
//! | [`door`] | the record of what happens at the door |
//! | [`http`] | the API: routes, roles, answers |
//! | [`inventory`] | what is installed and what could be updated |
//! | [`jobs`] | changes, from acceptance to their end |
//! | [`executor`] | the client of the root side |
//! | [`audit`] | the audit trail |

pub mod audit;
pub mod cli;
pub mod config;
pub mod door;
pub mod executor;
pub mod http;
pub mod inventory;
pub mod jobs;
pub mod run;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
