//! Changing packages: command lines made by pure functions, run without a shell, followed through files.
//!
//! This is the only crate that changes packages, and only the root side uses it. It knows how to say a thing to a
//! package manager ([`apt::argv`]), how to run a tool so that nobody's death hurts it ([`run`]), what the tool's
//! progress means ([`apt::status_fd`]), who is in the way ([`apt::lock`]), how a shutdown is held up ([`inhibit`]) and how
//! snapshots of file systems are made and gone back to ([`snapshots`]).
//! What to do, in which order, and what it meant, is for the executor and the back ends to decide.

#![expect(clippy::disallowed_methods, reason = "the root side is where processes are started")]

pub mod apt;
pub mod inhibit;
pub mod run;
pub mod snapshots;
