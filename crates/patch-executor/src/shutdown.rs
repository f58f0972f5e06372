//! A shutdown is held up while packages are changed.
//!
//! Only then: neither while something is fetched or waited for, nor while a change waits to be confirmed, since a
//! shutdown harms nothing there. Whoever goes ahead all the same is waited for by [`crate::stop`].

use patch_apply::inhibit::Inhibitor;

use crate::{change::Change, journal::State};

/// The lock, if it is held, and whether somebody was told that it cannot be.
#[derive(Debug, Default)]
pub(crate) struct Shutdown {
    held: Option<Inhibitor>,
    is_told: bool,
}

impl Change<'_> {
    /// From here on a shutdown would do harm. That it cannot be held up is said and keeps nobody from anything.
    pub(crate) fn hold_shutdown_up(&mut self) {
        self.hear_of_refusal();
        if self.shutdown.held.is_some() {
            return;
        }
        let why = format!("Packages are being changed (job {})", self.journal.record.id);
        match Inhibitor::ask(&why) {
            Ok(held) => self.shutdown.held = held,
            Err(error) => self.cannot_hold_up(&error.to_string()),
        }
    }

    /// Lets the host be shut down again.
    pub(crate) fn let_shutdown(&mut self) {
        self.hear_of_refusal();
        self.shutdown.held = None;
    }

    /// Lets the host be shut down unless packages are being changed in this state.
    pub(crate) fn let_shutdown_in(&mut self, state: &State) {
        if !is_harmed(state) {
            self.let_shutdown();
        }
    }

    fn hear_of_refusal(&mut self) {
        if let Some(why) = self.shutdown.held.as_mut().and_then(Inhibitor::refusal) {
            self.shutdown.held = None;
            self.cannot_hold_up(&why);
        }
    }

    fn cannot_hold_up(&mut self, why: &str) {
        if !self.shutdown.is_told {
            self.shutdown.is_told = true;
            self.remark(format!("a shutdown of the host is not held up meanwhile: {why}"));
        }
    }
}

/// Whether packages may be half-changed in a state. It is held up from where they first are, which is later than the
/// state's beginning, up to the end of the last such state.
pub(crate) fn is_harmed(state: &State) -> bool {
    match state {
        State::Repairing
        | State::Applying { .. }
        | State::Verifying { .. }
        | State::GoingBack { .. }
        | State::Returning { .. } => true,
        State::Accepted
        | State::Refreshing
        | State::Planning
        | State::Downloading { .. }
        | State::Rehearsing { .. }
        | State::Snapshotting { .. }
        | State::Confirming { .. }
        | State::Rebooting { .. }
        | State::Ended { .. } => false,
    }
}
