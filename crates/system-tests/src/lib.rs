//! Black-box tests: the real binaries on real hosts.
//!
//! This library is the harness. It makes throw-away Debian hosts with systemd as PID 1 ([`Host`]) on networks of
//! their own ([`Network`]), a signed apt repository of small packages made for tests ([`Repository`]), and
//! throw-away roots for package logic without a booted host ([`Root`]). Of the products it knows what everybody may
//! know: their packages ([`packages`]), the agent's API ([`agent`]) and the root side's socket ([`executor`]).
//!
//! Nothing outlives its owner. Every host, network and root hangs on a process that ends when its standard input
//! ends (see `holder.rs`), which happens at the latest when the owning process dies, even by
//! `kill -9`. What the kernel does not take back by itself (a state directory, empty control groups) is removed by
//! the next [`sweep`].
#![expect(
    clippy::disallowed_methods,
    reason = "the harness is made of processes: it boots hosts and builds packages"
)]

pub mod agent;
pub mod base;
mod cgroup;
pub mod chaos;
pub mod disk;
pub mod executor;
mod guest;
mod holder;
pub mod host;
pub mod hostile;
mod network;
pub mod packages;
pub mod place;
mod process;
pub mod rehearsals;
pub mod repository;
mod run;
mod server;
pub mod state;
mod supervisor;
mod throwroot;
pub mod trials;
pub mod untouched;
pub mod wait;
pub mod week;

pub use guest::Guest;
pub use host::{Host, HostOptions};
pub use network::Network;
pub use process::Output;
pub use repository::Repository;
pub use run::{HostRecord, RunRecord, runs, sweep};
pub use server::{Fault, FileServer};
pub use throwroot::{Root, RootOptions};
