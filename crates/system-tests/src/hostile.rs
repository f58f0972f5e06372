//! What hostile peers do to a running agent, and what it costs everybody else.
//!
//! The agent is the real daemon with the real root side, in a throw-away root that shares the machine's network, on the
//! loopback interface, whose many addresses stand for many peers. [`flood`] has the trials; the tests run samples of
//! them, `cargo xtask hostile` the full figures.

pub mod client;
pub mod flood;
pub mod stage;
pub mod tools;

pub use client::Client;
pub use stage::Stage;
