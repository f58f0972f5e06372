//! Who patches: the agent, or the distribution's own updater. Never both at once, and never neither without somebody having
//! said so.

use jiff::{SignedDuration, Timestamp};

use crate::window::Window;

/// Without a success for so long the agent is not relied upon.
pub const PATIENCE: SignedDuration = SignedDuration::from_hours(3 * 24);

/// However late the window opens, without a success for so long the agent is not relied upon: a weekly one has its chance.
pub const LONGEST_PATIENCE: SignedDuration = SignedDuration::from_hours(8 * 24);

/// The agent's program, as the service manager sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// It runs, or is just being started, stopped or reloaded, and the next boot starts it.
    Runs,
    /// It does not run.
    Stopped,
    /// The next boot does not start it.
    Disabled,
    /// It runs, but nobody looks whether it still does: the timer of the looks is off.
    Unwatched,
}

/// What the decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// This moment.
    pub now: Timestamp,
    /// Whether the configuration says that the agent patches.
    pub agent_mode: bool,
    /// When it may.
    pub window: &'a Window,
    /// Whether an operator has said that nothing is installed by itself for now.
    pub paused: bool,
    /// Until when the last pause lasted, if that is known.
    pub paused_until: Option<Timestamp>,
    /// Whether a change of the agent's waits to be confirmed, behind which all others wait.
    pub waits: bool,
    /// The agent's program.
    pub service: Service,
    /// Since when the agent is asked to patch.
    pub since: Timestamp,
    /// When all that is due was last installed.
    pub last_success: Option<Timestamp>,
}

/// Who patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The agent: the distribution's updater is to be off.
    Agent {
        /// When it is not relied upon any more, unless it succeeds before; none while it is paused.
        until: Option<Timestamp>,
    },
    /// The distribution's updater, if it is set up: the agent leaves its settings alone.
    Distribution(Reason),
}

/// Why it is not the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The configuration does not say so.
    ModeOff,
    /// The agent's program does not run.
    Stopped,
    /// The agent's program is not started at the next boot.
    Disabled,
    /// Nobody would notice that the agent patches no more, and give the updater back.
    Unwatched,
    /// It has had its chances since then, and has not succeeded.
    NoSuccess {
        /// The last success, or since when it was asked to.
        since: Timestamp,
    },
    /// Its window opens so seldom that nobody would patch for too long.
    OpensTooSeldom,
    /// Its window never opens.
    NeverOpens,
    /// One of its changes waits to be confirmed, and meanwhile it begins no other.
    Waits,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ModeOff => f.write_str("policy.mode is not agent"),
            Self::Stopped => {
                f.write_str("linux-patch-api.service does not run; systemctl status linux-patch-api says why")
            }
            Self::Disabled => f.write_str(
                "linux-patch-api.service is not started at boot; systemctl enable linux-patch-api changes that",
            ),
            Self::Unwatched => f.write_str(
                "linux-patch-policy.timer is off, so nobody would give it back when the agent fails; systemctl enable --now \
                 linux-patch-policy.timer changes that",
            ),
            Self::NoSuccess { since } => write!(
                f,
                "the agent has not patched since {since:.0}; patchctl health and `linux-patch-host jobs` say why"
            ),
            Self::OpensTooSeldom => f.write_str(
                "policy.window opens too seldom to wait for it; let it open once a week at least",
            ),
            Self::NeverOpens => f.write_str("policy.window never opens"),
            Self::Waits => f.write_str("a change of the agent waits to be confirmed; `linux-patch-host jobs` shows it"),
        }
    }
}

/// Who patches now.
#[must_use]
pub fn decide(situation: &Situation<'_>) -> Decision {
    let Situation { now, agent_mode, window, paused, paused_until, waits, service, since, last_success } =
        *situation;
    if !agent_mode {
        return Decision::Distribution(Reason::ModeOff);
    }
    match service {
        Service::Runs => {}
        Service::Stopped => return Decision::Distribution(Reason::Stopped),
        Service::Disabled => return Decision::Distribution(Reason::Disabled),
        Service::Unwatched => return Decision::Distribution(Reason::Unwatched),
    }
    if paused {
        // Whoever paused it does not want another one to patch instead.
        return Decision::Agent { until: None };
    }
    if waits {
        return Decision::Distribution(Reason::Waits);
    }
    // A clock that was set back must not keep the agent on for ever.
    let known = last_success.map_or(since, |success| success.max(since)).min(now);
    // Nor does a pause that a clock that was ahead has left.
    let counted = paused_until.filter(|until| *until <= now).map_or(known, |until| until.max(known));
    let Some(opening) = window.next_after(counted) else {
        return match window.open_at(now) {
            Some(_) => Decision::Agent { until: None },
            None => Decision::Distribution(Reason::NeverOpens),
        };
    };
    // Where it opens once a week, the days between are not its fault. Once a year, nobody would patch for a year.
    let after = |patience| counted.checked_add(patience).unwrap_or(Timestamp::MAX);
    let longest = after(LONGEST_PATIENCE);
    let until = after(PATIENCE).max(opening.ends.min(longest));
    if now < until {
        Decision::Agent { until: Some(until) }
    } else if opening.begins >= longest {
        Decision::Distribution(Reason::OpensTooSeldom)
    } else {
        Decision::Distribution(Reason::NoSuccess { since: known })
    }
}

/// Whether a window lets so much time go by, after its next opening, that the agent is not relied upon in between.
#[must_use]
pub fn opens_too_seldom(window: &Window, now: Timestamp) -> bool {
    let Some(first) = window.next_after(now) else { return false };
    let second = window.next_after(first.begins);
    let waits = |from: Timestamp, to: Timestamp| to.duration_since(from) >= LONGEST_PATIENCE;
    waits(now, first.begins) || second.is_some_and(|second| waits(first.begins, second.begins))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn situation(window: &Window) -> Situation<'_> {
        Situation {
            now: at("2026-01-05T12:00:00Z"),
            agent_mode: true,
            window,
            paused: false,
            paused_until: None,
            waits: false,
            service: Service::Runs,
            since: at("2026-01-05T00:00:00Z"),
            last_success: None,
        }
    }

    fn nightly() -> Window {
        Window::simple("*", "2", "0", "240").unwrap()
    }

    #[test]
    fn the_agent_patches_while_it_is_asked_to_runs_and_succeeds() {
        let window = nightly();
        let now = situation(&window);
        let until = Some(at("2026-01-08T00:00:00Z"));
        assert_eq!(decide(&now), Decision::Agent { until });
        assert_eq!(decide(&Situation { agent_mode: false, ..now }), Decision::Distribution(Reason::ModeOff));
        for (service, reason) in [
            (Service::Stopped, Reason::Stopped),
            (Service::Disabled, Reason::Disabled),
            (Service::Unwatched, Reason::Unwatched),
        ] {
            assert_eq!(decide(&Situation { service, ..now }), Decision::Distribution(reason));
        }
        let late = Situation { now: at("2026-01-08T00:00:00Z"), ..now };
        assert_eq!(decide(&late), Decision::Distribution(Reason::NoSuccess { since: now.since }));
        let done = Situation { last_success: Some(at("2026-01-07T02:30:00Z")), ..late };
        assert_eq!(decide(&done), Decision::Agent { until: Some(at("2026-01-10T02:30:00Z")) });
        // A success of before it was asked to does not count.
        let old = Situation { last_success: Some(at("2026-01-01T00:00:00Z")), ..now };
        assert_eq!(decide(&old), Decision::Agent { until });
    }

    #[test]
    fn while_a_change_waits_to_be_confirmed_the_updater_patches() {
        let window = nightly();
        let waits =
            Situation { waits: true, last_success: Some(at("2026-01-05T06:00:00Z")), ..situation(&window) };
        assert_eq!(decide(&waits), Decision::Distribution(Reason::Waits));
        assert!(matches!(decide(&Situation { waits: false, ..waits }), Decision::Agent { .. }));
        // Whoever paused the agent does not want another one to patch instead.
        assert_eq!(decide(&Situation { paused: true, ..waits }), Decision::Agent { until: None });
    }

    #[test]
    fn a_window_of_once_a_week_has_its_chance() {
        // Sundays: the 11th.
        let window = Window::simple("Sun", "2", "0", "60").unwrap();
        let late = |now| Situation { now: at(now), ..situation(&window) };
        let until = at("2026-01-11T03:00:00Z");
        assert_eq!(decide(&late("2026-01-10T00:00:00Z")), Decision::Agent { until: Some(until) });
        assert!(matches!(decide(&late("2026-01-11T03:00:00Z")), Decision::Distribution(_)));
        let rule = "FREQ=MONTHLY;BYMONTHDAY=30;BYMONTH=2;BYHOUR=4";
        let never = Window::from_rule(rule, 60, None, jiff::tz::TimeZone::UTC).unwrap();
        assert_eq!(decide(&situation(&never)), Decision::Distribution(Reason::NeverOpens));
    }

    #[test]
    fn a_window_of_once_a_year_keeps_nobody_off_for_a_year() {
        let rule = "FREQ=YEARLY;BYMONTH=12;BYMONTHDAY=24;BYHOUR=2";
        let yearly = Window::from_rule(rule, 60, None, jiff::tz::TimeZone::UTC).unwrap();
        let on = |now| decide(&Situation { now: at(now), ..situation(&yearly) });
        let until = Some(at("2026-01-13T00:00:00Z"));
        assert_eq!(on("2026-01-12T23:59:59Z"), Decision::Agent { until });
        assert_eq!(on("2026-01-13T00:00:00Z"), Decision::Distribution(Reason::OpensTooSeldom));
        assert!(opens_too_seldom(&yearly, at("2026-01-05T00:00:00Z")));
        assert!(opens_too_seldom(&yearly, at("2026-12-23T00:00:00Z")));
        let weekly = Window::simple("Sun", "2", "0", "60").unwrap();
        assert!(
            !opens_too_seldom(&weekly, at("2026-01-05T00:00:00Z"))
                && !opens_too_seldom(&nightly(), at("2026-01-05T00:00:00Z"))
        );
    }

    #[test]
    fn in_a_pause_nobody_patches_instead_and_afterwards_there_is_time() {
        let window = nightly();
        let now = at("2026-03-01T00:00:00Z");
        let paused = Situation { now, paused: true, ..situation(&window) };
        assert_eq!(decide(&paused), Decision::Agent { until: None });
        let over = Situation { paused: false, paused_until: Some(at("2026-02-28T00:00:00Z")), ..paused };
        assert_eq!(decide(&over), Decision::Agent { until: Some(at("2026-03-03T00:00:00Z")) });
    }

    #[test]
    fn a_pause_of_the_future_gives_no_time() {
        let window = nightly();
        let late = Situation {
            now: at("2026-01-08T00:00:00Z"),
            paused_until: Some(at("2036-01-01T00:00:00Z")),
            ..situation(&window)
        };
        assert_eq!(decide(&late), Decision::Distribution(Reason::NoSuccess { since: late.since }));
    }

    proptest! {
        /// Whatever the clock did: the agent is never relied upon without end, but in a pause.
        #[test]
        fn patience_ends(now in 0..4_000_000_000_i64, since in 0..4_000_000_000_i64, success in prop::option::of(0..4_000_000_000_i64), pause in prop::option::of(0..4_000_000_000_i64)) {
            let window = nightly();
            let second = |second| Timestamp::from_second(second).unwrap();
            let situation = Situation {
                now: second(now), since: second(since), last_success: success.map(second),
                paused_until: pause.map(second), ..situation(&window)
            };
            match decide(&situation) {
                Decision::Agent { until } => {
                    let until = until.unwrap();
                    prop_assert!(until > situation.now);
                    prop_assert!(until <= situation.now + PATIENCE);
                    let later = decide(&Situation { now: until, since: situation.since.min(situation.now), last_success: situation.last_success.map(|s| s.min(situation.now)),
                        paused_until: situation.paused_until.filter(|pause| *pause <= situation.now), ..situation });
                    let is_late = matches!(later, Decision::Distribution(Reason::NoSuccess { .. }));
                    prop_assert!(is_late, "{:?}", later);
                }
                Decision::Distribution(reason) => {
                    let is_late = matches!(reason, Reason::NoSuccess { .. });
                    prop_assert!(is_late);
                }
            }
        }
    }
}
