//! When the agent's own patching is due.
//!
//! Each opening of the window has one run, a while after its beginning: how long is fixed for each host, so that a fleet
//! spreads over time. A run that failed is tried again within the same opening, less and less often. An opening that went by
//! without a run, since the host was off, is made up for in the next one, after a quarter of the wait. Where a host's turn goes
//! by while nothing may begin, in a pause for one, the wait counts from the end of that: the fleet must not begin all at once.

use jiff::{SignedDuration, Timestamp};

use crate::window::{Opening, Window};

/// How long is waited after the first failure. Each further one doubles it.
const FIRST_WAIT: SignedDuration = SignedDuration::from_mins(15);

/// The longest wait after a failure.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_hours(6);

/// The window where none is declared: a rule and a duration in minutes. It is always open, and begins anew every six hours.
pub const EVERY_SIX_HOURS: (&str, u32) = ("FREQ=DAILY;BYHOUR=0,6,12,18", 360);

/// When a host patches itself.
#[derive(Debug, Clone, Copy)]
pub struct Schedule<'a> {
    /// When it may.
    pub window: &'a Window,
    /// Over how much time the hosts of a fleet spread after an opening's beginning. No more than half of the opening counts.
    pub spread: SignedDuration,
    /// What is this host's own and stays, such as the bytes of its machine id.
    pub host: &'a [u8],
    /// Whether an opening that went by without a run is made up for in the next one, after a quarter of the wait.
    pub catch_up: bool,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    /// Since when the schedule is in force. Openings before it are not missed.
    pub since: Timestamp,
    /// When a run began last.
    pub last_attempt: Option<Timestamp>,
    /// How many runs have failed since the last that did not.
    pub failures: u32,
    /// Nothing is due before, if somebody said so.
    pub paused_until: Option<Timestamp>,
    /// Since when nothing has kept a run from beginning: when the program started, or a pause ended. What is to come counts as
    /// now.
    pub ready: Timestamp,
}

/// Why a run is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The window opens.
    Opening,
    /// The window is open, and an earlier opening went by without a run.
    MissedOpening,
    /// The last run failed.
    Retry,
}

/// When the next run is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// At once.
    Now {
        /// Why.
        why: Why,
        /// When the window closes: it has to be over by then.
        until: Timestamp,
    },
    /// Later, unless something changes.
    At {
        /// When.
        at: Timestamp,
        /// Why then.
        why: Why,
    },
    /// The window never opens.
    Never,
}

impl Schedule<'_> {
    /// When the next run is due.
    #[must_use]
    pub fn due(&self, past: &Past, now: Timestamp) -> Due {
        // A clock that was set back must not keep anything from being done: what is to come has not been.
        let last = past.last_attempt.filter(|last| *last <= now);
        let from = past.paused_until.map_or(now, |paused| paused.max(now));
        let present = self.window.open_at(from).and_then(|opening| {
            let (at, why) = self.run_in(opening, last, past, now)?;
            Some((opening, at.max(from), why)).filter(|(opening, at, _)| *at < opening.ends)
        });
        let found = present.or_else(|| {
            let opening = self.window.next_after(from)?;
            let (at, why) = self.run_in(opening, last, past, now)?;
            Some((opening, at.max(from), why))
        });
        match found {
            Some((opening, at, why)) if at <= now => Due::Now { why, until: opening.ends },
            Some((_, at, why)) => Due::At { at, why },
            None => Due::Never,
        }
    }

    /// How long this host waits after an opening's beginning.
    #[must_use]
    pub fn delay(&self) -> SignedDuration {
        self.delay_within(self.spread, self.window.duration())
    }

    /// How long it waits where so much of an opening is left.
    fn delay_within(&self, spread: SignedDuration, left: SignedDuration) -> SignedDuration {
        let most = spread.min(left / 2).as_secs();
        let Some(choices) = u64::try_from(most).ok().and_then(|most| most.checked_add(1)) else {
            return SignedDuration::ZERO;
        };
        SignedDuration::from_secs(i64::try_from(hash(self.host) % choices).unwrap_or(0))
    }

    /// When the run of an opening is due, if one is.
    fn run_in(
        &self,
        opening: Opening,
        last: Option<Timestamp>,
        past: &Past,
        now: Timestamp,
    ) -> Option<(Timestamp, Why)> {
        match last {
            Some(last) if last >= opening.begins => {
                let at = last.checked_add(wait(past.failures)?).ok()?;
                Some((at, Why::Retry))
            }
            _ => {
                let known = last.map_or(past.since, |last| last.max(past.since));
                let first = self.window.next_after(known)?;
                let (spread, why) = if self.catch_up && first.begins < opening.begins {
                    (self.spread / 4, Why::MissedOpening)
                } else {
                    (self.spread, Why::Opening)
                };
                let turn = |from: Timestamp| {
                    from.checked_add(self.delay_within(spread, opening.ends.duration_since(from))).ok()
                };
                let at = turn(opening.begins)?;
                let free = past.ready.max(past.since).min(now);
                let free = past.paused_until.map_or(free, |until| until.max(free));
                // One that was there in time keeps its turn.
                if at < free && free < opening.ends { Some((turn(free)?, why)) } else { Some((at, why)) }
            }
        }
    }
}

/// How long is waited after so many failures; none if there were none.
fn wait(failures: u32) -> Option<SignedDuration> {
    let doublings = failures.checked_sub(1)?.min(10);
    Some((FIRST_WAIT * (1 << doublings)).min(LONGEST_WAIT))
}

/// A number that is spread evenly over hosts (FNV-1a, then the finisher of splitmix64). Not for secrets.
fn hash(bytes: &[u8]) -> u64 {
    let mut hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// Every night from 2 to 6.
    fn window() -> Window {
        Window::simple("*", "2", "0", "240").unwrap()
    }

    fn schedule(window: &Window) -> Schedule<'_> {
        Schedule { window, spread: SignedDuration::from_mins(60), host: b"0123456789abcdef", catch_up: true }
    }

    fn past() -> Past {
        Past {
            since: at("2026-01-01T00:00:00Z"),
            last_attempt: None,
            failures: 0,
            paused_until: None,
            ready: at("2026-01-01T00:00:00Z"),
        }
    }

    #[test]
    fn each_opening_has_one_run_after_the_hosts_own_wait() {
        let window = window();
        let schedule = schedule(&window);
        let first = at("2026-01-01T02:00:00Z") + schedule.delay();
        assert_eq!(
            schedule.due(&past(), at("2026-01-01T00:00:00Z")),
            Due::At { at: first, why: Why::Opening }
        );
        let until = at("2026-01-01T06:00:00Z");
        assert_eq!(schedule.due(&past(), first), Due::Now { why: Why::Opening, until });
        let done = Past { last_attempt: Some(first), ..past() };
        let second = at("2026-01-02T02:00:00Z") + schedule.delay();
        assert_eq!(schedule.due(&done, first), Due::At { at: second, why: Why::Opening });
    }

    #[test]
    fn what_was_missed_is_made_up_for_after_a_quarter_of_the_wait() {
        let window = window();
        let schedule = schedule(&window);
        let done = Past { last_attempt: Some(at("2026-01-01T02:30:00Z")), ..past() };
        // The host was off on the second night: at the next opening, or at once within one.
        let begins = at("2026-01-03T02:00:00Z");
        let quarter = Schedule { spread: schedule.spread / 4, ..schedule }.delay();
        assert_eq!(
            schedule.due(&done, at("2026-01-02T12:00:00Z")),
            Due::At { at: begins + quarter, why: Why::MissedOpening }
        );
        let until = at("2026-01-03T06:00:00Z");
        let late = at("2026-01-03T05:59:00Z");
        assert_eq!(schedule.due(&done, late), Due::Now { why: Why::MissedOpening, until });
        // What was before the schedule is not missed.
        for last_attempt in [None, done.last_attempt] {
            let new = Past { since: at("2026-01-03T01:00:00Z"), last_attempt, ..past() };
            let Due::At { at, why } = schedule.due(&new, begins) else { panic!("not yet") };
            assert_eq!((at, why), (begins + schedule.delay(), Why::Opening));
        }
        // Nor does it count where nobody wants it made up for.
        let patient = Schedule { catch_up: false, ..schedule };
        assert_eq!(patient.due(&done, begins), Due::At { at: begins + schedule.delay(), why: Why::Opening });
    }

    #[test]
    fn a_failure_is_tried_again_less_and_less_often() {
        let window = window();
        let schedule = schedule(&window);
        let last = at("2026-01-01T02:30:00Z");
        let due =
            |failures, now| schedule.due(&Past { last_attempt: Some(last), failures, ..past() }, at(now));
        let retry = |minutes| Due::At { at: last + SignedDuration::from_mins(minutes), why: Why::Retry };
        assert_eq!(due(1, "2026-01-01T02:31:00Z"), retry(15));
        assert_eq!(due(2, "2026-01-01T02:31:00Z"), retry(30));
        assert_eq!(due(3, "2026-01-01T02:31:00Z"), retry(60));
        assert!(matches!(due(1, "2026-01-01T02:45:00Z"), Due::Now { why: Why::Retry, .. }));
        // No more of it in this opening; the next one begins anew.
        let next = at("2026-01-02T02:00:00Z") + schedule.delay();
        for failures in [5, u32::MAX] {
            assert_eq!(due(failures, "2026-01-01T02:31:00Z"), Due::At { at: next, why: Why::Opening });
        }
    }

    #[test]
    fn nothing_is_due_in_a_pause() {
        let window = window();
        let schedule = schedule(&window);
        let paused = |until| Past { paused_until: Some(at(until)), ..past() };
        let turn = at("2026-01-01T04:00:00Z") + schedule.delay();
        let now = at("2026-01-01T03:30:00Z");
        let due = Due::At { at: turn, why: Why::Opening };
        for now in [now, at("2026-01-01T04:00:00Z")] {
            assert_eq!(schedule.due(&paused("2026-01-01T04:00:00Z"), now), due);
        }
        let later = schedule.due(&paused("2026-01-01T12:00:00Z"), now);
        let quarter = Schedule { spread: schedule.spread / 4, ..schedule }.delay();
        assert_eq!(later, Due::At { at: at("2026-01-02T02:00:00Z") + quarter, why: Why::MissedOpening });
    }

    #[test]
    fn a_window_that_never_opens_is_never_due_and_a_clock_that_was_set_back_is_no_trouble() {
        let rule = "FREQ=MONTHLY;BYMONTHDAY=30;BYMONTH=2;BYHOUR=4";
        let never = Window::from_rule(rule, 60, None, jiff::tz::TimeZone::UTC).unwrap();
        assert_eq!(schedule(&never).due(&past(), at("2026-01-01T00:00:00Z")), Due::Never);
        let window = window();
        let ahead = Past { last_attempt: Some(at("2036-01-01T00:00:00Z")), ..past() };
        let due = schedule(&window).due(&ahead, at("2026-01-01T12:00:00Z"));
        assert!(matches!(due, Due::At { at, .. } if at < "2026-01-02T06:00:00Z".parse().unwrap()), "{due:?}");
    }

    #[test]
    fn a_fleet_that_is_let_go_within_an_opening_does_not_begin_all_at_once() {
        let window = window();
        // Hosts come up, a pause ends, or the mode is switched on; with an opening that was missed, and without.
        let ready = at("2026-01-03T04:00:00Z");
        let up = Past { ready, ..past() };
        for (past, catch_up) in [
            (up, true),
            (up, false),
            (Past { paused_until: Some(ready), ..past() }, true),
            (Past { since: ready, ..past() }, true),
        ] {
            let turns: std::collections::BTreeSet<_> = (0..200_u32)
                .map(|number| {
                    let host = format!("{number:032x}");
                    let schedule = Schedule { host: host.as_bytes(), catch_up, ..schedule(&window) };
                    match schedule.due(&past, ready) {
                        Due::At { at, .. } => at,
                        Due::Now { .. } => ready,
                        Due::Never => panic!("never"),
                    }
                })
                .collect();
            assert!(turns.len() > 100, "{past:?} {}", turns.len());
            assert!(turns.iter().all(|at| *at < ready + SignedDuration::from_hours(1)));
        }
        // However little is left, it is in time.
        let late = Past { ready: at("2026-01-03T05:59:00Z"), ..past() };
        let Due::At { at: turn, .. } = schedule(&window).due(&late, late.ready) else { panic!("at once") };
        assert!(turn < at("2026-01-03T05:59:31Z"), "{turn}");
    }

    #[test]
    fn hosts_spread_evenly() {
        let window = window();
        let mut hours = [0; 4];
        for number in 0..4000_u32 {
            let host = format!("{number:032x}");
            let schedule = Schedule {
                spread: SignedDuration::from_mins(120),
                host: host.as_bytes(),
                ..schedule(&window)
            };
            hours[usize::try_from(schedule.delay().as_mins() / 30).unwrap().min(3)] += 1;
        }
        assert!(hours.iter().all(|count| (800..1200).contains(count)), "{hours:?}");
    }

    proptest! {
        /// Wherever a clock that was ahead has left the last attempt: each opening that comes has its run.
        #[test]
        fn an_attempt_in_the_future_keeps_nothing_from_being_done(ahead in 1..100_000_000_i64, failures in 0..4_u32, catch_up: bool) {
            let window = window();
            let schedule = Schedule { catch_up, ..schedule(&window) };
            let mut now = at("2026-01-01T12:00:00Z");
            let past = Past { last_attempt: Some(now + SignedDuration::from_secs(ahead)), failures, ..past() };
            for _ in 0..4 {
                if past.last_attempt.is_some_and(|last| last <= now) {
                    break;
                }
                if let Due::At { at, .. } = schedule.due(&past, now) {
                    prop_assert!(at > now && at.duration_since(now) < SignedDuration::from_hours(24));
                    // By then the time of the attempt may have come, which then counts.
                    if past.last_attempt.is_some_and(|last| last <= at) {
                        break;
                    }
                    now = at;
                }
                let is_now = matches!(schedule.due(&past, now), Due::Now { .. });
                prop_assert!(is_now, "{now}");
                now += SignedDuration::from_hours(20);
            }
        }

        /// Whoever runs whenever it is due runs within openings alone, and in each of them.
        #[test]
        fn every_opening_has_a_run(spread in 0..400_i64, host: [u8; 16], outcomes in prop::collection::vec(any::<bool>(), 40)) {
            let window = window();
            let schedule = Schedule { window: &window, spread: SignedDuration::from_mins(spread), host: &host, catch_up: true };
            let mut past = past();
            let mut now = past.since;
            let mut nights = std::collections::BTreeSet::new();
            for success in outcomes {
                if let Due::At { at, .. } = schedule.due(&past, now) {
                    prop_assert!(at > now);
                    now = at;
                }
                let is_now = matches!(schedule.due(&past, now), Due::Now { .. });
                prop_assert!(is_now);
                let opening = window.open_at(now);
                prop_assert!(opening.is_some());
                nights.extend(opening.map(|opening| opening.begins));
                past.last_attempt = Some(now);
                past.failures = if success { 0 } else { past.failures + 1 };
            }
            let first = *nights.first().unwrap();
            let span = nights.last().unwrap().duration_since(first).as_hours() / 24;
            prop_assert_eq!(i64::try_from(nights.len()).unwrap(), span + 1);
        }
    }
}
