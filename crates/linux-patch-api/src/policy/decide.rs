//! Whether a run begins now, and if not, why not. Nothing is looked at here.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use patch_policy::{
    Window,
    schedule::{Due, Past, Schedule, Why},
};
use patch_types::{
    JobId,
    api::{Cause, CauseKind},
    policy::{Policy, PolicyMode, Updates},
};

use super::memory::Memory;

/// What to do about a frozen host.
pub(crate) const FREEZE: &str =
    "root of this host decides that: see /etc/linux_patch_api/ceiling.yaml and the freeze file";

/// What the decision rests on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    pub(super) now: Timestamp,
    pub(super) policy: &'a Policy,
    pub(super) window: &'a Window,
    /// What is this host's own.
    pub(super) host: &'a [u8],
    pub(super) memory: &'a Memory,
    /// Since when nothing has kept a run from beginning.
    pub(super) ready: Timestamp,
    /// Why the host is frozen, if it is; empty if nobody says.
    pub(super) frozen: Option<&'a str>,
    /// A job that could not be rolled back, and was not repaired.
    pub(super) rollback_failed: Option<JobId>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing, ever.
    Off,
    /// A run begins.
    Run {
        updates: Updates,
        why: Why,
        /// When it has to be over.
        until: Timestamp,
    },
    /// Nothing now.
    NotNow {
        reason: Reason,
        /// When it is due unless something changes; none if that cannot be told.
        next: Option<Timestamp>,
    },
}

/// Why no run begins now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reason {
    Paused(Option<Timestamp>),
    Frozen(String),
    RollbackFailed(JobId),
    /// One is at work.
    Running(Option<JobId>),
    /// It is due later.
    Waits {
        at: Timestamp,
        why: Why,
        failures: u32,
    },
    /// The window never opens.
    Never,
    /// The settings cannot be used.
    Unusable(String),
}

impl Decision {
    /// When a run is due next, if it is not now and can be told.
    pub(super) fn next(&self) -> Option<Timestamp> {
        match self {
            Self::NotNow { next, .. } => *next,
            Self::Off | Self::Run { .. } => None,
        }
    }

    /// The same word for decisions that differ in details only.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Run { .. } => "run",
            Self::NotNow { reason, .. } => match reason {
                Reason::Paused(_) => "paused",
                Reason::Frozen(_) => "frozen",
                Reason::RollbackFailed(_) => "rollback_failed",
                Reason::Running(_) => "running",
                Reason::Waits { why: Why::Opening, .. } => "waits",
                Reason::Waits { why: Why::MissedOpening, .. } => "makes_up",
                Reason::Waits { why: Why::Retry, .. } => "retries",
                Reason::Never => "never",
                Reason::Unusable(_) => "unusable",
            },
        }
    }

    /// Why what is ready to be installed is not installed now; none if it is, or if it never will be by this. `opens` is when
    /// the window opens next.
    pub(super) fn cause(&self, opens: Option<Timestamp>) -> Option<Cause> {
        let Self::NotNow { reason, .. } = self else { return None };
        let now = "install it now: POST /api/v1/patches/apply";
        let (kind, message, next_step) = match reason {
            Reason::Paused(_) => (
                CauseKind::Paused,
                format!("the agent is paused: {reason}"),
                format!("take the pause away, or {now}"),
            ),
            Reason::Frozen(_) => (CauseKind::Frozen, reason.to_string(), FREEZE.to_owned()),
            Reason::Waits { at, why: Why::Opening, .. } => {
                let opens = opens.filter(|opens| opens < at);
                let opens = opens
                    .map_or_else(String::new, |opens| format!("policy.window opens at {opens:.0}, and "));
                let message = format!("it waits for the agent's next run: {opens}{reason}");
                (CauseKind::WaitsForWindow, message, format!("wait until then, or {now}"))
            }
            Reason::Waits { .. } => {
                let message = format!("it waits for the agent's next run: {reason}");
                (CauseKind::WaitsForWindow, message, format!("wait until then, or {now}"))
            }
            Reason::Never => {
                (CauseKind::WaitsForWindow, reason.to_string(), format!("mend policy.window, or {now}"))
            }
            Reason::Unusable(_) => {
                (CauseKind::WaitsForWindow, reason.to_string(), format!("mend the policy, or {now}"))
            }
            Reason::RollbackFailed(_) => {
                let next =
                    "put in order what the failed rollback has left, and say so: linux-patch-host repaired";
                (CauseKind::Broken, reason.to_string(), next.to_owned())
            }
            Reason::Running(_) => return None,
        };
        Some(Cause { kind, message, next_step })
    }

    /// Whether somebody has said that nothing is to be done.
    pub(super) fn is_held(&self) -> bool {
        matches!(self, Self::NotNow { reason: Reason::Paused(_) | Reason::Frozen(_), .. })
    }

    /// Whether it stays so until somebody does something that nobody has meant.
    pub(super) fn is_trouble(&self) -> bool {
        matches!(
            self,
            Self::NotNow { reason: Reason::Never | Reason::Unusable(_) | Reason::RollbackFailed(_), .. }
        )
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("the agent does not patch by itself: policy.mode is off"),
            Self::Run { updates, why, until } => {
                let what = match updates {
                    Updates::Security => "security fixes are",
                    Updates::All => "all updates are",
                };
                let why = match why {
                    Why::Opening => "the window is open",
                    Why::MissedOpening => "the window is open, and an earlier opening went by",
                    Why::Retry => "the last run failed, and the window is still open",
                };
                write!(f, "{what} installed now: {why} until {until:.0}")
            }
            Self::NotNow { reason, .. } => write!(f, "not now: {reason}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(Some(until)) => write!(f, "policy.paused_until is {until:.0}"),
            Self::Paused(None) => f.write_str("policy.paused is set"),
            Self::Frozen(reason) if reason.is_empty() => f.write_str("the host is frozen by its freeze file"),
            Self::Frozen(reason) => write!(f, "the host is frozen by its freeze file: {reason}"),
            Self::RollbackFailed(job) => write!(
                f,
                "job {job} could not be rolled back; when what it has left is in order, tell it by `linux-patch-host repaired \
                 {job}`"
            ),
            Self::Running(Some(job)) => write!(f, "job {job} is at work"),
            Self::Running(None) => f.write_str("a run begins just now"),
            Self::Waits { at, why: Why::Retry, failures } => {
                let times = if *failures == 1 { String::new() } else { format!(" ({failures} in a row)") };
                write!(f, "the last run failed{times}; it is tried again at {at:.0}")
            }
            Self::Waits { at, why: Why::Opening, .. } => {
                write!(f, "this host's turn in the window is at {at:.0}")
            }
            Self::Waits { at, why: Why::MissedOpening, .. } => {
                write!(f, "an opening went by without a run; it is made up for at {at:.0}")
            }
            Self::Never => f.write_str("policy.window never opens; write another one"),
            Self::Unusable(why) => f.write_str(why),
        }
    }
}

/// Whether a run begins now.
pub(super) fn decide(situation: &Situation<'_>) -> Decision {
    let Situation { now, policy, window, host, memory, ready, frozen, rollback_failed } = *situation;
    if policy.mode == PolicyMode::Off {
        return Decision::Off;
    }
    let not_now = |reason, next| Decision::NotNow { reason, next };
    if let Some(running) = &memory.running {
        return not_now(Reason::Running(running.job), None);
    }
    if policy.paused {
        return not_now(Reason::Paused(None), None);
    }
    let schedule = Schedule {
        window,
        spread: SignedDuration::from_mins(policy.spread_minutes.into()),
        host,
        catch_up: policy.catch_up,
    };
    let past = Past {
        since: memory.since.unwrap_or(now),
        last_attempt: memory.last_attempt,
        failures: memory.failures,
        paused_until: policy.paused_until,
        ready,
    };
    let due = schedule.due(&past, now);
    let next = match due {
        Due::Now { .. } => Some(now),
        Due::At { at, .. } => Some(at),
        Due::Never => None,
    };
    if let Some(until) = policy.paused_until.filter(|until| now < *until) {
        return not_now(Reason::Paused(Some(until)), next);
    }
    if let Some(why) = frozen {
        return not_now(Reason::Frozen(why.to_owned()), None);
    }
    if let Some(job) = rollback_failed {
        return not_now(Reason::RollbackFailed(job), None);
    }
    match due {
        Due::Now { why, until } => Decision::Run { updates: policy.updates, why, until },
        Due::At { at, why } => not_now(Reason::Waits { at, why, failures: memory.failures }, next),
        Due::Never => not_now(Reason::Never, None),
    }
}
