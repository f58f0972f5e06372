//! Reboots that were asked for: what the root side and the reboot window leave for each other, and what the window says.
//!
//! The root side never reboots a host. It writes a [`RebootOrder`], `ID.queued` below [`REBOOTS_DIR`]. The reboot window
//! renames it to `ID.taken` before it reboots the host for it, and writes what came of it beside it, `ID.over`, a
//! [`RebootReport`]. Who wants the order back removes `ID.queued`: the file system decides who was first.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::job::JobId;

/// Where orders to reboot are, one an operation; root's alone, below the root prefix.
pub const REBOOTS_DIR: &str = "var/lib/linux_patch_executor/reboots";

/// What the name of an order ends with that may still be taken back.
pub const QUEUED: &str = "queued";

/// What the name of an order ends with that the host is rebooted for.
pub const TAKEN: &str = "taken";

/// What the name of a report ends with.
pub const OVER: &str = "over";

/// The longest delay before a reboot, in seconds: a week.
pub const MAX_DELAY_SECONDS: u64 = 7 * 24 * 3600;

/// The longest reason, in characters.
pub const MAX_REASON: usize = 1000;

/// The most reboots that may be queued at once.
pub const MAX_QUEUED: usize = 8;

/// How long after its time an order may still be carried out that waits for no window. A drain may take half an hour.
pub const FORCED_PATIENCE: SignedDuration = SignedDuration::from_mins(45);

/// A reboot that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebootOrder {
    /// The job that asked.
    pub job: JobId,
    /// For whom, as people know them.
    pub by: String,
    /// Why, if somebody said.
    pub reason: Option<String>,
    /// Whether it waits for no window.
    pub force: bool,
    /// When it was given.
    pub at: Timestamp,
    /// Not before this instant.
    pub not_before: Timestamp,
    /// The kernel's id of the boot in which it was given; in another one it is fulfilled.
    pub boot: String,
    /// The same instant as `not_before`, in seconds since that boot, for one that waits for no window: setting the clock must
    /// neither hasten it nor let it wait for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_uptime: Option<i64>,
}

impl RebootOrder {
    /// For how long its time has come; negative before. `uptime` is the time since the boot, zero if that is not known.
    fn overdue(&self, now: Timestamp, uptime: Duration) -> SignedDuration {
        match (self.due_uptime, i64::try_from(uptime.as_secs())) {
            (Some(due), Ok(up)) if up > 0 => SignedDuration::from_secs(up.saturating_sub(due)),
            _ => now.duration_since(self.not_before),
        }
    }

    /// Whether it waits for no window and its time is over. The host is not rebooted for it any more.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp, uptime: Duration) -> bool {
        self.force && self.overdue(now, uptime) > FORCED_PATIENCE
    }

    /// Whether it may be carried out now, in the boot of this id. One of another boot is fulfilled; an empty id is no boot's.
    #[must_use]
    pub fn is_due(&self, now: Timestamp, uptime: Duration, boot: &str) -> bool {
        let is_of_this_boot = !boot.is_empty() && self.boot == boot;
        is_of_this_boot && !self.overdue(now, uptime).is_negative() && !self.is_expired(now, uptime)
    }
}

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebootReport {
    /// Whether the host was rebooted for it.
    pub is_rebooted: bool,
    /// Whether it is in service again.
    pub is_well: bool,
    /// What happened: a sentence without a full stop.
    pub what: String,
}

/// A reboot that is queued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QueuedReboot {
    /// Its job.
    pub job_id: JobId,
    /// For whom.
    pub by: String,
    /// Why, if somebody said.
    pub reason: Option<String>,
    /// Whether it waits for no window.
    pub force: bool,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// It does not come before this instant.
    pub not_before: Timestamp,
    /// Whether it is being carried out.
    pub is_under_way: bool,
}

/// What stands against a reboot at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RebootObstacle {
    /// For machines: `not_required`, `persists`, `no_window`, `outside_window`, `transaction`, `inhibited`, `lock_not_asked`,
    /// `lock_refused`; `unknown` if the reboot window cannot be asked.
    pub code: String,
    /// For people.
    pub message: String,
}

/// What the reboot window says of itself (`linux-patch-host --json reboot-window status`). What else stands there is passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WindowStatus {
    /// Whether one is declared.
    pub has_window: bool,
    /// Until when it is open, if it is.
    pub open_until: Option<Timestamp>,
    /// When it opens next; none if it never does.
    pub next: Option<Timestamp>,
    /// Why its timer does not look after it, if so.
    pub timer_off: Option<String>,
    /// What stands against a reboot now.
    pub reasons: Vec<RebootObstacle>,
    /// The reboots that were asked for in this boot.
    pub queued: Vec<QueuedReboot>,
    /// When the window is open for each of them, its delay considered: an instant that stays the same with each look. One for
    /// which it never opens is not there.
    pub opens: BTreeMap<JobId, Timestamp>,
    /// How far a reboot has come: `preparing`, `rebooting` or `undoing`.
    pub phase: Option<String>,
    /// Which boot this is, as the root side sees it. The sandbox of the network side may show it another one's.
    pub boot: Option<String>,
}

impl WindowStatus {
    /// Why no reboot can be queued, with what to do about it, if so.
    #[must_use]
    pub fn objection(&self) -> Option<String> {
        let advice = "or ask with `force` and a reason to reboot now";
        if !self.has_window {
            return Some(format!(
                "no reboot window is declared on this host, so it never reboots by itself; declare one \
                 (/etc/default/linux-patch-reboot-window), {advice}"
            ));
        }
        if self.open_until.is_none() && self.next.is_none() {
            return Some(format!(
                "the reboot window of this host can never open; declare another one \
                 (/etc/default/linux-patch-reboot-window), {advice}"
            ));
        }
        self.timer_off
            .as_ref()
            .map(|why| format!("nothing looks after the reboot window of this host: {why}; {advice}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_reboot_is_queued_only_where_somebody_will_carry_it_out() {
        let open = WindowStatus { has_window: true, next: Some(Timestamp::MAX), ..WindowStatus::default() };
        assert_eq!(open.objection(), None);
        let off = WindowStatus { timer_off: Some("x.timer does not run".into()), ..open.clone() };
        assert!(off.objection().unwrap().contains("x.timer does not run"));
        let never = WindowStatus { next: None, ..open };
        assert!(never.objection().unwrap().contains("never open"));
        assert!(WindowStatus::default().objection().unwrap().contains("no reboot window is declared"));
        let read: WindowStatus =
            serde_json::from_str(r#"{"has_window":true,"sources":[],"warnings":[]}"#).unwrap();
        assert!(read.has_window);
    }

    #[test]
    fn an_order_is_carried_out_in_its_time_and_boot_alone() {
        let due = at("2026-01-04T04:30:00Z");
        let order = RebootOrder {
            job: "0198c5f2-0000-7000-8000-000000000001".parse().unwrap(),
            by: "ann".into(),
            reason: None,
            force: true,
            at: due,
            not_before: due,
            boot: "first".into(),
            due_uptime: None,
        };
        let minutes = |minutes| due + SignedDuration::from_mins(minutes);
        let unknown = Duration::ZERO;
        assert!(order.is_due(due, unknown, "first") && order.is_due(minutes(45), unknown, "first"));
        assert!(!order.is_due(minutes(-1), unknown, "first"), "too early");
        assert!(!order.is_due(minutes(46), unknown, "first"), "too late");
        assert!(!order.is_due(due, unknown, "second"));
        let nameless = RebootOrder { boot: String::new(), ..order.clone() };
        assert!(!nameless.is_due(due, unknown, ""), "an empty id is no boot's");
        // A clock that is set moves nothing.
        let counted = RebootOrder { due_uptime: Some(100), ..order.clone() };
        for now in [minutes(-600), due, minutes(600)] {
            assert!(!counted.is_due(now, Duration::from_secs(99), "first"));
            assert!(counted.is_due(now, Duration::from_secs(100), "first"));
            assert!(counted.is_due(now, Duration::from_secs(100 + 45 * 60), "first"));
            assert!(counted.is_expired(now, Duration::from_secs(101 + 45 * 60)));
        }
        // What waits for the window may wait for weeks.
        let patient = RebootOrder { force: false, ..order };
        assert!(patient.is_due(minutes(60 * 24 * 30), unknown, "first"));
    }
}
