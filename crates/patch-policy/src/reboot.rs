//! Whether a host reboots now.
//!
//! What asks for a reboot is a [`Cause`]; [`Ledger`] keeps since when, and which were rebooted for already: one that persists
//! is reported and never rebooted for again. [`decide`] says what is to be done in a [`Situation`]. Draining, the lock and the
//! reboot itself are the caller's business, who asks again after everything that takes time.

use std::{collections::BTreeMap, fmt, time::Duration};

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};

use crate::window::{Opening, Window};

/// How long a cause must have been absent to be another one when it comes back. What is made anew at each boot must not
/// make the host reboot again.
const FORGET: SignedDuration = SignedDuration::from_hours(24);

/// How long after the boot what is made anew at each boot is there again. What the host was rebooted for and is absent then is
/// over.
const SETTLED: Duration = Duration::from_secs(15 * 60);

/// The most causes that are remembered.
const MAX_CAUSES: usize = 1000;

/// Why a reboot is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// What stays the same as long as it is the same cause, such as `kernel 6.1.0-28-amd64`.
    pub fingerprint: String,
    /// For people.
    pub sentence: String,
    /// Since when it is known.
    pub since: Timestamp,
    /// When the host was rebooted for it, if it was.
    pub rebooted: Option<Timestamp>,
}

/// What is remembered of a cause.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Since when it is known.
    pub since: Timestamp,
    /// Since when it is not there any more.
    pub absent_since: Option<Timestamp>,
    /// When the host was rebooted for it, if it was.
    pub rebooted: Option<Timestamp>,
}

/// What is remembered of causes, by their fingerprints. The caller keeps it between runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The causes.
    pub causes: BTreeMap<String, Remembered>,
}

impl Ledger {
    /// Takes note of what asks for a reboot now (fingerprints and sentences), and gives it with what is remembered of it. What
    /// has been absent for a day is forgotten; what the host was rebooted for already when it is absent so long after the boot
    /// (`uptime`) that it was not made anew by it.
    pub fn observe(&mut self, now: Timestamp, uptime: Duration, present: &[(String, String)]) -> Vec<Cause> {
        self.causes.retain(|fingerprint, known| {
            let is_present = present.iter().any(|(other, _)| other == fingerprint);
            if is_present {
                known.absent_since = None;
                // A clock that was set back must not make anything wait for ever.
                known.since = known.since.min(now);
                return true;
            }
            if known.rebooted.is_some() && uptime >= SETTLED {
                return false;
            }
            let since = *known.absent_since.get_or_insert(now);
            now.duration_since(since) < FORGET
        });
        let causes = present.iter().take(MAX_CAUSES).map(|(fingerprint, sentence)| {
            let new = Remembered { since: now, absent_since: None, rebooted: None };
            let known = self.causes.entry(fingerprint.clone()).or_insert(new);
            Cause {
                fingerprint: fingerprint.clone(),
                sentence: sentence.clone(),
                since: known.since,
                rebooted: known.rebooted,
            }
        });
        causes.collect()
    }

    /// Takes note that the host is rebooted for these causes. To be on disk before it is.
    pub fn reboot(&mut self, now: Timestamp, causes: &[Cause]) {
        for cause in causes {
            let known = self.causes.entry(cause.fingerprint.clone()).or_default();
            (known.since, known.rebooted) = (cause.since, Some(now));
        }
    }

    /// Takes back [`Ledger::reboot`] of that instant: the host was not rebooted.
    pub fn reboot_failed(&mut self, at: Timestamp) {
        self.causes
            .values_mut()
            .filter(|known| known.rebooted == Some(at))
            .for_each(|known| known.rebooted = None);
    }
}

/// Who holds a shutdown up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inhibitor {
    /// Who.
    pub who: String,
    /// And why.
    pub why: String,
}

/// The lock that keeps hosts of a fleet from rebooting at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetLock {
    /// There is none to be asked for.
    NotConfigured,
    /// It is not held, and it has not been asked for: that comes last.
    NotAsked,
    /// It is held by this host.
    Held,
    /// It is held by others, or cannot be asked for; why.
    Refused(String),
}

/// An administrator's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forced {
    /// Who gave it.
    pub by: String,
    /// Why. An order without a reason is none.
    pub reason: String,
}

/// All that a decision rests on.
#[derive(Debug, Clone)]
pub struct Situation<'a> {
    /// The present.
    pub now: Timestamp,
    /// When the host may reboot by itself; never if there is none.
    pub window: Option<&'a Window>,
    /// What asks for a reboot.
    pub causes: &'a [Cause],
    /// What changes packages at this moment, if anything does.
    pub transaction: Option<&'a str>,
    /// Who holds a shutdown up.
    pub inhibitors: &'a [Inhibitor],
    /// The fleet's lock.
    pub fleet_lock: &'a FleetLock,
    /// For how many days a reboot may be put off before people are told; `None` for as long as it takes.
    pub max_defer_days: Option<u32>,
    /// An order to reboot whatever the window says, and whether or not a reboot is wanted.
    pub forced: Option<&'a Forced>,
}

/// Why a host does not reboot now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Nothing asks for it.
    NotRequired,
    /// It was rebooted for this before, and it is still there.
    Persists {
        /// What.
        cause: String,
        /// When it was rebooted.
        rebooted: Timestamp,
    },
    /// There is no window.
    NoWindow,
    /// The window is closed.
    Outside {
        /// When it opens; never if absent.
        next: Option<Timestamp>,
        /// The window's time zone.
        zone: TimeZone,
    },
    /// Packages are being changed.
    Transaction(String),
    /// Somebody holds a shutdown up.
    Inhibited(Inhibitor),
    /// The fleet's lock has not been asked for yet.
    LockNotAsked,
    /// The fleet's lock is not to be had.
    LockRefused(String),
    /// An order has no reason.
    NoReason,
}

impl Reason {
    /// The reason's name for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotRequired => "not_required",
            Self::Persists { .. } => "persists",
            Self::NoWindow => "no_window",
            Self::Outside { .. } => "outside_window",
            Self::Transaction(_) => "transaction",
            Self::Inhibited(_) => "inhibited",
            Self::LockNotAsked => "lock_not_asked",
            Self::LockRefused(_) => "lock_refused",
            Self::NoReason => "no_reason",
        }
    }
}

/// A sentence without a capital or a full stop, to stand in a list.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRequired => f.write_str("nothing asks for a reboot"),
            Self::Persists { cause, rebooted } => {
                write!(
                    f,
                    "{cause}, and it was rebooted for already at {rebooted:.0}; a reboot does not mend it"
                )
            }
            Self::NoWindow => f.write_str("no window is declared, so it never reboots by itself"),
            Self::Outside { next: Some(next), zone } => {
                write!(f, "the window is closed; it opens at {}", shown(*next, zone))
            }
            Self::Outside { next: None, .. } => f.write_str("the window is closed, and it can never open"),
            Self::Transaction(what) => write!(f, "packages are being changed: {what}"),
            Self::Inhibited(by) => write!(f, "{} holds a shutdown up: {}", by.who, by.why),
            Self::LockNotAsked => f.write_str("the fleet's lock is not held yet"),
            Self::LockRefused(why) => write!(f, "the fleet's lock is not to be had: {why}"),
            Self::NoReason => f.write_str("the order to reboot has no reason; give one"),
        }
    }
}

/// An instant with its zone, as people of that zone write it.
fn shown(at: Timestamp, zone: &TimeZone) -> String {
    let local: DateTime = zone.to_datetime(at);
    let name = zone.iana_name().unwrap_or("local time");
    format!("{} {name}", local.strftime("%F %H:%M"))
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Reboot now.
    Reboot {
        /// The end of the window, if it is within one: then everything has to be done. None for an order outside.
        until: Option<Timestamp>,
    },
    /// Not now.
    NotNow {
        /// All reasons against it.
        reasons: Vec<Reason>,
        /// When the window opens next.
        next: Option<Timestamp>,
    },
    /// Not now, and it has been put off for too long: people have to see to it.
    Escalate {
        /// All reasons against it.
        reasons: Vec<Reason>,
        /// When the window opens next.
        next: Option<Timestamp>,
        /// Since when a reboot is wanted.
        since: Timestamp,
        /// For how many whole days.
        days: i64,
    },
}

impl Decision {
    /// Whether all that is missing is the fleet's lock, which is then to be asked for.
    #[must_use]
    pub fn wants_lock(&self) -> bool {
        match self {
            Self::Reboot { .. } => false,
            Self::NotNow { reasons, .. } | Self::Escalate { reasons, .. } => {
                *reasons == [Reason::LockNotAsked]
            }
        }
    }

    /// The reasons against it; none for a reboot.
    #[must_use]
    pub fn reasons(&self) -> &[Reason] {
        match self {
            Self::Reboot { .. } => &[],
            Self::NotNow { reasons, .. } | Self::Escalate { reasons, .. } => reasons,
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list =
            |reasons: &[Reason]| reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        match self {
            Self::Reboot { until: Some(until) } => {
                write!(f, "reboot now; the window is open until {until:.0}")
            }
            Self::Reboot { until: None } => f.write_str("reboot now, by order"),
            Self::NotNow { reasons, .. } => write!(f, "not now, because {}", list(reasons)),
            Self::Escalate { reasons, days, since, .. } => {
                write!(
                    f,
                    "put off for too long ({days} days, since {since:.0}): not now, because {}",
                    list(reasons)
                )
            }
        }
    }
}

/// Decides.
///
/// An order overrides the window, and that nothing asks for a reboot or that it was rebooted for already. It overrides
/// neither a running change of packages, nor inhibitors, nor the fleet's lock: whoever gives it can end those.
#[must_use]
pub fn decide(situation: &Situation<'_>) -> Decision {
    let Situation { now, window, causes, .. } = *situation;
    let opening: Option<Opening> = window.and_then(|window| window.open_at(now));
    let next = window.and_then(|window| window.next_after(now)).map(|opening| opening.begins);
    let mut reasons = Vec::new();
    match situation.forced {
        Some(order) if order.reason.trim().is_empty() => reasons.push(Reason::NoReason),
        Some(_) => {}
        None => {
            if causes.is_empty() {
                reasons.push(Reason::NotRequired);
            } else if causes.iter().all(|cause| cause.rebooted.is_some()) {
                reasons.extend(causes.iter().filter_map(|cause| {
                    Some(Reason::Persists { cause: cause.sentence.clone(), rebooted: cause.rebooted? })
                }));
            }
            match window {
                None => reasons.push(Reason::NoWindow),
                Some(window) if opening.is_none() => {
                    reasons.push(Reason::Outside { next, zone: window.zone().clone() });
                }
                Some(_) => {}
            }
        }
    }
    reasons.extend(situation.transaction.map(|what| Reason::Transaction(what.to_owned())));
    reasons.extend(situation.inhibitors.iter().cloned().map(Reason::Inhibited));
    match situation.fleet_lock {
        FleetLock::NotConfigured | FleetLock::Held => {}
        FleetLock::NotAsked => reasons.push(Reason::LockNotAsked),
        FleetLock::Refused(why) => reasons.push(Reason::LockRefused(why.clone())),
    }
    if reasons.is_empty() {
        return Decision::Reboot { until: opening.map(|opening| opening.ends) };
    }
    let since = causes.iter().map(|cause| cause.since).min();
    let days = since.map_or(0, |since| now.duration_since(since).as_hours() / 24);
    match (since, situation.max_defer_days) {
        (Some(since), Some(most)) if days >= i64::from(most) => {
            Decision::Escalate { reasons, next, since, days }
        }
        _ => Decision::NotNow { reasons, next },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Right after a boot.
    const EARLY: Duration = Duration::from_secs(60);

    const SUNDAY: &str = "2026-01-04T04:30:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn window() -> Window {
        Window::simple("Sun", "4", "15", "60").unwrap()
    }

    fn cause(since: &str, rebooted: Option<&str>) -> Cause {
        Cause {
            fingerprint: "kernel 6.1".into(),
            sentence: "the kernel 6.1 is installed and 6.0 is running".into(),
            since: at(since),
            rebooted: rebooted.map(at),
        }
    }

    fn situation<'a>(now: &str, window: Option<&'a Window>, causes: &'a [Cause]) -> Situation<'a> {
        Situation {
            now: at(now),
            window,
            causes,
            transaction: None,
            inhibitors: &[],
            fleet_lock: &FleetLock::NotConfigured,
            max_defer_days: None,
            forced: None,
        }
    }

    fn codes(decision: &Decision) -> Vec<&'static str> {
        decision.reasons().iter().map(Reason::code).collect()
    }

    #[test]
    fn it_reboots_within_the_window_alone_and_once_for_each_cause() {
        let (window, new) = (window(), [cause("2026-01-01T00:00:00Z", None)]);
        let inside = situation(SUNDAY, Some(&window), &new);
        assert_eq!(decide(&inside), Decision::Reboot { until: Some(at("2026-01-04T05:15:00Z")) });
        assert_eq!(codes(&decide(&Situation { window: None, ..inside.clone() })), ["no_window"]);
        assert_eq!(codes(&decide(&Situation { causes: &[], ..inside.clone() })), ["not_required"]);
        let outside = decide(&situation("2026-01-04T05:15:00Z", Some(&window), &new));
        let next = Some(at("2026-01-11T04:15:00Z"));
        assert!(matches!(&outside, Decision::NotNow { next: n, .. } if *n == next), "{outside}");
        assert!(
            outside.to_string().ends_with("the window is closed; it opens at 2026-01-11 04:15 UTC"),
            "{outside}"
        );
        let old = [cause("2026-01-01T00:00:00Z", Some("2026-01-04T04:15:00Z"))];
        let persists = decide(&situation(SUNDAY, Some(&window), &old));
        assert_eq!(codes(&persists), ["persists"]);
        assert!(persists.to_string().contains("does not mend it"), "{persists}");
        // Another one beside it is a reason of its own.
        let both = [old[0].clone(), new[0].clone()];
        assert!(matches!(decide(&situation(SUNDAY, Some(&window), &both)), Decision::Reboot { .. }));
    }

    #[test]
    fn all_reasons_are_given() {
        let inhibitors = [Inhibitor { who: "backup".into(), why: "a backup runs".into() }];
        let lock = FleetLock::Refused("two hosts have it".into());
        let decision = decide(&Situation {
            transaction: Some("dpkg"),
            inhibitors: &inhibitors,
            fleet_lock: &lock,
            ..situation(SUNDAY, None, &[])
        });
        assert_eq!(
            codes(&decision),
            ["not_required", "no_window", "transaction", "inhibited", "lock_refused"]
        );
        assert!(decision.to_string().contains("backup holds a shutdown up: a backup runs"), "{decision}");
    }

    #[test]
    fn the_lock_is_asked_for_last() {
        let (window, causes) = (window(), [cause("2026-01-01T00:00:00Z", None)]);
        let inside =
            Situation { fleet_lock: &FleetLock::NotAsked, ..situation(SUNDAY, Some(&window), &causes) };
        assert!(decide(&inside).wants_lock());
        assert!(!decide(&Situation { transaction: Some("dpkg"), ..inside.clone() }).wants_lock());
        assert!(matches!(
            decide(&Situation { fleet_lock: &FleetLock::Held, ..inside }),
            Decision::Reboot { .. }
        ));
    }

    #[test]
    fn an_order_needs_a_reason_and_overrides_no_change_of_packages() {
        let order = |reason: &str| Forced { by: "root".into(), reason: reason.into() };
        let (good, empty) = (order("the disk is replaced"), order(" "));
        let outside = Situation { forced: Some(&good), ..situation(SUNDAY, None, &[]) };
        assert_eq!(decide(&outside), Decision::Reboot { until: None });
        assert_eq!(codes(&decide(&Situation { forced: Some(&empty), ..outside.clone() })), ["no_reason"]);
        assert_eq!(codes(&decide(&Situation { transaction: Some("dpkg"), ..outside })), ["transaction"]);
    }

    #[test]
    fn what_is_put_off_for_too_long_is_told() {
        let (window, causes) = (window(), [cause("2026-01-04T05:00:00Z", None)]);
        let decided =
            |now| decide(&Situation { max_defer_days: Some(6), ..situation(now, Some(&window), &causes) });
        assert!(matches!(decided("2026-01-10T04:59:59Z"), Decision::NotNow { .. }));
        let late = decided("2026-01-10T05:00:00Z");
        assert!(matches!(late, Decision::Escalate { days: 6, .. }), "{late}");
        assert_eq!(codes(&late), ["outside_window"]);
        // It is no reason against rebooting.
        assert!(matches!(decided("2026-01-11T04:15:00Z"), Decision::Reboot { .. }));
    }

    #[test]
    fn a_cause_is_another_one_only_after_a_day_without_it() {
        let present = [("file".to_owned(), "a file asks for it".to_owned())];
        let mut ledger = Ledger::default();
        let first = ledger.observe(at("2026-01-04T04:15:00Z"), SETTLED, &present);
        ledger.reboot(at("2026-01-04T04:15:00Z"), &first);
        // Something makes the file anew at each boot.
        assert!(ledger.observe(at("2026-01-04T04:17:00Z"), EARLY, &[]).is_empty());
        let again = ledger.observe(at("2026-01-04T04:20:00Z"), EARLY, &present);
        assert_eq!((again[0].since, again[0].rebooted), (first[0].since, Some(at("2026-01-04T04:15:00Z"))));
        // Gone, and back after a day: another cause.
        ledger.observe(at("2026-01-04T04:25:00Z"), EARLY, &[]);
        ledger.observe(at("2026-01-05T04:25:00Z"), EARLY, &[]);
        let new = ledger.observe(at("2026-01-06T00:00:00Z"), EARLY, &present);
        assert_eq!((new[0].since, new[0].rebooted), (at("2026-01-06T00:00:00Z"), None));
        // A host that was off has not seen it go.
        ledger.reboot(at("2026-01-06T00:00:00Z"), &new);
        assert!(ledger.observe(at("2026-03-01T00:00:00Z"), SETTLED, &present)[0].rebooted.is_some());
        ledger.reboot_failed(at("2026-01-06T00:00:00Z"));
        assert!(ledger.observe(at("2026-03-01T00:00:00Z"), SETTLED, &present)[0].rebooted.is_none());
    }

    #[test]
    fn what_is_gone_well_after_the_boot_is_another_cause_when_it_comes_back() {
        let present = [("file".to_owned(), "a file asks for it".to_owned())];
        let mut ledger = Ledger::default();
        let first = ledger.observe(at("2026-01-04T04:15:00Z"), SETTLED, &present);
        ledger.reboot(at("2026-01-04T04:15:00Z"), &first);
        let early = SETTLED.saturating_sub(Duration::from_secs(1));
        ledger.observe(at("2026-01-04T04:30:00Z"), early, &[]);
        assert!(ledger.clone().observe(at("2026-01-04T04:35:00Z"), SETTLED, &present)[0].rebooted.is_some());
        ledger.observe(at("2026-01-04T04:35:00Z"), SETTLED, &[]);
        let new = ledger.observe(at("2026-01-04T05:00:00Z"), SETTLED, &present);
        assert_eq!((new[0].since, new[0].rebooted), (at("2026-01-04T05:00:00Z"), None));
    }

    proptest! {
        /// Minutes since the boot of the looks after a reboot, and whether the cause is there.
        #[test]
        fn a_cause_persists_until_it_is_absent_well_after_the_boot(
            mut looks in proptest::collection::vec((0_u64..120, any::<bool>()), 0..20),
        ) {
            looks.sort_unstable();
            let present = [("file".to_owned(), "a file asks for it".to_owned())];
            let booted = at(SUNDAY);
            let mut ledger = Ledger::default();
            let first = ledger.observe(booted, SETTLED, &present);
            ledger.reboot(booted, &first);
            let mut is_over = false;
            for (minutes, is_there) in looks {
                let uptime = Duration::from_secs(minutes * 60);
                let now = booted + SignedDuration::try_from(uptime).unwrap();
                if is_there {
                    let causes = ledger.observe(now, uptime, &present);
                    prop_assert_eq!(causes[0].rebooted.is_none(), is_over);
                } else {
                    prop_assert!(ledger.observe(now, uptime, &[]).is_empty());
                    is_over |= uptime >= SETTLED;
                }
            }
        }
    }
}
