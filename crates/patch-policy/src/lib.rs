//! Decisions, and nothing else: there is no clock and no IO in this crate. Time is an argument, and so is what is known of
//! the host; whoever calls does what was decided.
//!
//! - [`Window`]: when a host may be touched, from an RFC 5545 rule or from the simple form.
//! - [`reboot`]: whether it reboots now, and if not, why not.
//! - [`schedule`]: when the agent's own patching is due.
//! - [`handover`]: which of the agent and the distribution's own updater patches.
//! - [`promise`]: how long after its publication a fix is installed at the latest.
//! - [`compliance`]: how long each fix took in fact, from what was seen of it.

pub mod compliance;
pub mod handover;
pub mod promise;
pub mod reboot;
pub mod schedule;

pub mod window;

pub use window::{Declared, Opening, Openings, Window, WindowError};
