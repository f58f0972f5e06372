//! How long after its publication a fix is installed at the latest, on a host that runs all the time and whose runs succeed.
//!
//! For the distribution's own tools it follows from how often they may run and when their timers fire; see [`apt`]. For the
//! agent it follows from its schedule; see [`agent`]. How long the runs themselves take comes on top.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

use crate::{schedule::Schedule, window::WindowError};

/// Within what time fixes are to be installed.
pub const PROMISED: SignedDuration = SignedDuration::from_hours(24);

/// A day in minutes.
const DAY: i64 = 24 * 60;

/// The largest interval of `APT::Periodic` that is looked at, in days.
const MAX_DAYS: i64 = 3650;

/// How far ahead openings are compared, and how many at most.
const AHEAD: SignedDuration = SignedDuration::from_hours(3 * 366 * 24);
const MAX_OPENINGS: usize = 50_000;

/// How long it takes at most, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// The longest time from publication to installation. None if it is never installed.
    pub worst: Option<SignedDuration>,
    /// How it is made up, as sentences.
    pub steps: Vec<String>,
}

impl Promise {
    /// Whether it is within what is promised.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.worst.is_some_and(|worst| worst <= PROMISED)
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = self.steps.join("; ");
        let promised = Hours(PROMISED);
        match self.worst {
            None => write!(f, "A fix is never installed by itself: {steps}."),
            Some(worst) if self.is_kept() => {
                write!(
                    f,
                    "A fix is installed at most {} after its publication, within {promised}: {steps}.",
                    Hours(worst)
                )
            }
            Some(worst) => write!(
                f,
                "A fix may wait for {} after its publication, longer than {promised}: {steps}.",
                Hours(worst)
            ),
        }
    }
}

/// A duration for people, such as `13 h` or `9 days 3 h 30 min`.
struct Hours(SignedDuration);

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.0.as_mins();
        let (days, hours, minutes) = (minutes / DAY, minutes % DAY / 60, minutes % 60);
        let mut parts = Vec::new();
        // Two days and less are said in hours, which compare with the promise.
        if days > 2 {
            parts.push(format!("{days} days"));
        }
        let hours = if days > 2 { hours } else { hours + days * 24 };
        if hours > 0 {
            parts.push(format!("{hours} h"));
        }
        if minutes > 0 || parts.is_empty() {
            parts.push(format!("{minutes} min"));
        }
        f.write_str(&parts.join(" "))
    }
}

/// How often `apt-daily` does something: a value of `APT::Periodic`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interval {
    /// Not at all.
    Never,
    /// Whenever the timer fires.
    Always,
    /// On the first firing so many calendar days after the day on which it was done last: apt compares midnights, so that
    /// hours and minutes count as a day.
    Days(i64),
}

impl Interval {
    /// A value such as `1`, `always`, `12h` or `3d`.
    ///
    /// # Errors
    /// When apt would not understand it either.
    pub fn parse(text: &str) -> Result<Self, WindowError> {
        let text = text.trim();
        match text {
            "always" => return Ok(Self::Always),
            "0" | "" => return Ok(Self::Never),
            _ => {}
        }
        let (digits, seconds) = match text.char_indices().last() {
            Some((at, 's')) => (text.get(..at), 1),
            Some((at, 'm')) => (text.get(..at), 60),
            Some((at, 'h')) => (text.get(..at), 60 * 60),
            Some((at, 'd')) => (text.get(..at), DAY * 60),
            _ => (Some(text), DAY * 60),
        };
        let number = digits
            .filter(|digits| (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()));
        let number: Option<i64> = number.and_then(|digits| digits.parse().ok());
        let Some(number) = number else {
            let problem =
                format!("{text:?} is no interval; write \"always\", or a number of days such as \"1\"");
            return Err(WindowError::new("APT::Periodic", problem));
        };
        let days = (number * seconds + DAY * 60 - 1) / (DAY * 60);
        Ok(if days == 0 { Self::Always } else { Self::Days(days.min(MAX_DAYS)) })
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Always => f.write_str("whenever its timer fires"),
            Self::Days(1) => f.write_str("once a calendar day"),
            Self::Days(days) => write!(f, "once in {days} calendar days"),
        }
    }
}

/// When a timer fires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    times: Times,
    /// By how many minutes each firing may be late at random.
    jitter: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Times {
    /// Every day at these minutes, sorted.
    Daily(Vec<i64>),
    /// So many minutes after it fired last.
    Every(i64),
}

impl Timer {
    /// A timer that fires every day at some minutes of the day (0 to 1439), each time up to so many minutes late
    /// (`RandomizedDelaySec`). None if there are no minutes, or one is not of the day.
    #[must_use]
    pub fn daily(minutes: &[u16], jitter_minutes: u32) -> Option<Self> {
        let mut times: Vec<i64> = minutes.iter().map(|minute| i64::from(*minute)).collect();
        times.sort_unstable();
        times.dedup();
        let is_of_day = times.last().is_some_and(|last| *last < DAY);
        is_of_day.then_some(Self { times: Times::Daily(times), jitter: jitter_minutes.into() })
    }

    /// A timer that fires so many minutes after it fired last, and up to so many late. None if that is no time.
    #[must_use]
    pub fn every(minutes: u32, jitter_minutes: u32) -> Option<Self> {
        (minutes > 0).then_some(Self { times: Times::Every(minutes.into()), jitter: jitter_minutes.into() })
    }

    /// A timer by its `OnCalendar=`, of the forms `daily`, `hourly`, and `*-*-* H:M[:S]` with lists, `*` and steps such as
    /// `0/6`; and by its `RandomizedDelaySec=` in minutes. None for what does not fire every day alike.
    #[must_use]
    pub fn calendar(text: &str, jitter_minutes: u32) -> Option<Self> {
        let text = text.trim();
        let time = match text {
            "daily" => "0:0",
            "hourly" => "*:0",
            other => other.strip_prefix("*-*-*").unwrap_or(other).trim(),
        };
        let mut fields = time.split(':');
        let (hours, minutes) = (field(fields.next()?, 24)?, field(fields.next()?, 60)?);
        // Seconds are less than what is counted here.
        if fields.next().is_some_and(|seconds| field(seconds, 60).is_none()) || fields.next().is_some() {
            return None;
        }
        let times: Vec<u16> = hours.iter().flat_map(|h| minutes.iter().map(move |m| h * 60 + m)).collect();
        Self::daily(&times, jitter_minutes)
    }

    /// The latest that it fires for the first time at or after an instant, in minutes as the instant is, if everything that
    /// could fire earlier fired before.
    fn latest(&self, at: i64) -> i64 {
        let slot = match &self.times {
            Times::Every(minutes) => at - 1 + minutes,
            Times::Daily(times) => {
                let (day, minute) = (at.div_euclid(DAY), at.rem_euclid(DAY));
                let today = times.iter().find(|time| **time >= minute);
                let tomorrow = || times.first().map(|time| time + DAY);
                day * DAY + today.copied().or_else(tomorrow).unwrap_or(minute)
            }
        };
        slot + self.jitter
    }

    /// The latest that it can have fired last before an instant: in its very minute, a moment before.
    fn last_before(&self, at: i64) -> i64 {
        match &self.times {
            Times::Every(_) => at,
            Times::Daily(times) => {
                let fired = |day: i64| times.iter().map(move |time| day * DAY + time);
                let late_days = self.jitter / DAY + 1;
                let day = at.div_euclid(DAY);
                let slots = (day - late_days - 1..=day).flat_map(fired).filter(|slot| *slot <= at);
                slots.map(|slot| (slot + self.jitter).min(at)).max().unwrap_or(at)
            }
        }
    }

    /// When what follows may be the longest: at the earliest of each firing, and at the first minute of a day that a late one
    /// can reach; at any time for a timer without fixed times. In minutes of the first day.
    fn starts(&self) -> Vec<i64> {
        match &self.times {
            Times::Every(_) => (0..DAY).collect(),
            Times::Daily(times) => {
                let crosses = times.iter().any(|time| time + self.jitter >= DAY);
                times.iter().copied().chain(crosses.then_some(0)).collect()
            }
        }
    }
}

impl fmt::Display for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.times {
            Times::Every(minutes) => write!(f, "every {}", Hours(SignedDuration::from_mins(*minutes)))?,
            Times::Daily(times) => {
                let times: Vec<String> =
                    times.iter().map(|t| format!("{:02}:{:02}", t / 60, t % 60)).collect();
                write!(f, "at {}", times.join(", "))?;
            }
        }
        if self.jitter > 0 {
            write!(f, " and up to {} later", Hours(SignedDuration::from_mins(self.jitter)))?;
        }
        Ok(())
    }
}

/// One field of a time: a list of numbers, `*`, or steps.
fn field(text: &str, end: u16) -> Option<Vec<u16>> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, step) = match part.split_once('/') {
            Some((first, step)) => (first, Some(step)),
            None => (part, None),
        };
        let number =
            |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        match (first, step) {
            ("*", None) => all.extend(0..end),
            (first, None) => match first.split_once("..") {
                Some((from, to)) => all.extend(number(from)?..=number(to).filter(|to| *to < end)?),
                None => all.push(number(first)?),
            },
            (first, Some(step)) => {
                let first = if first == "*" { 0 } else { number(first)? };
                let step = number(step).filter(|step| *step > 0)?;
                all.extend((first..end).step_by(step.into()));
            }
        }
    }
    (!all.is_empty() && all.iter().all(|number| *number < end)).then_some(all)
}

/// What decides when the distribution's own tools install a fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apt {
    /// `APT::Periodic::Enable`.
    pub is_enabled: bool,
    /// `APT::Periodic::Update-Package-Lists`.
    pub update: Interval,
    /// `APT::Periodic::Unattended-Upgrade`.
    pub upgrade: Interval,
    /// `apt-daily.timer`; none if it is not enabled.
    pub update_timer: Option<Timer>,
    /// `apt-daily-upgrade.timer`; none if it is not enabled.
    pub upgrade_timer: Option<Timer>,
}

/// How long it takes at most with the distribution's own tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// From the publication until the lists are fetched that know of the fix.
    pub lists: SignedDuration,
    /// From then until it is installed.
    pub upgrade: SignedDuration,
}

impl Delay {
    /// Both together.
    #[must_use]
    pub fn total(self) -> SignedDuration {
        self.lists.saturating_add(self.upgrade)
    }
}

/// The longest time for `apt-daily` and `unattended-upgrades` in its two parts; none if nothing is ever installed. See
/// [`apt`], which also says why.
#[must_use]
pub fn apt_delay(settings: &Apt) -> Option<Delay> {
    let is_off = !settings.is_enabled || [settings.update, settings.upgrade].contains(&Interval::Never);
    let (update_timer, upgrade_timer) = (settings.update_timer.as_ref()?, settings.upgrade_timer.as_ref()?);
    if is_off {
        return None;
    }
    let stages = update_timer.starts().into_iter().map(|start| {
        let earliest = match settings.update {
            Interval::Days(days) => (start.div_euclid(DAY) + days) * DAY,
            _ => start + 1,
        };
        let fetched = update_timer.latest(earliest);
        // What is due in the very minute may have come a moment before.
        let earliest = match settings.upgrade {
            Interval::Days(days) => {
                let last = upgrade_timer.last_before(fetched).div_euclid(DAY);
                (fetched + 1).max((last + days) * DAY)
            }
            _ => fetched + 1,
        };
        (upgrade_timer.latest(earliest) - start, fetched - start)
    });
    let (worst, fetched) = stages.max()?;
    let minutes = SignedDuration::from_mins;
    Some(Delay { lists: minutes(fetched), upgrade: minutes(worst - fetched) })
}

/// The longest time for `apt-daily` and `unattended-upgrades`: a fix is published just after the indexes were fetched, those are
/// fetched again as late as the timer and the stamp allow, and installing comes as late as they allow after that.
#[must_use]
pub fn apt(settings: &Apt) -> Promise {
    let never = |why: &str| Promise { worst: None, steps: vec![why.to_owned()] };
    if !settings.is_enabled {
        return never("APT::Periodic::Enable is 0");
    }
    let Some(update_timer) = &settings.update_timer else { return never("apt-daily.timer is not active") };
    let Some(upgrade_timer) = &settings.upgrade_timer else {
        return never("apt-daily-upgrade.timer is not active");
    };
    if settings.update == Interval::Never {
        return never("APT::Periodic::Update-Package-Lists is 0");
    }
    if settings.upgrade == Interval::Never {
        return never("APT::Periodic::Unattended-Upgrade is 0");
    }
    let Some(delay) = apt_delay(settings) else { return never("apt-daily.timer never fires") };
    Promise {
        worst: Some(delay.total()),
        steps: vec![
            format!(
                "the package lists are fetched {}, {update_timer}, so a fix that comes just after that is seen up to {} later",
                settings.update,
                Hours(delay.lists)
            ),
            format!(
                "unattended-upgrades runs {}, {upgrade_timer}, up to {} after that",
                settings.upgrade,
                Hours(delay.upgrade)
            ),
        ],
    }
}

/// The longest time for the agent's own schedule, seen from an instant: the longest time between two of its runs. Each run
/// fetches the indexes before it plans.
#[must_use]
pub fn agent(schedule: &Schedule<'_>, from: Timestamp) -> Promise {
    let end = from.checked_add(AHEAD).unwrap_or(Timestamp::MAX);
    let mut openings = schedule.window.openings_after(from).take(MAX_OPENINGS).map(|opening| opening.begins);
    let Some(mut last) = openings.next() else {
        return Promise { worst: None, steps: vec!["the window can never open".to_owned()] };
    };
    let mut longest: Option<(SignedDuration, Timestamp)> = None;
    for begins in openings {
        let gap = begins.duration_since(last);
        if longest.is_none_or(|(most, _)| gap > most) {
            longest = Some((gap, last));
        }
        last = begins;
        if begins > end {
            break;
        }
    }
    let Some((gap, after)) = longest else {
        return Promise { worst: None, steps: vec!["the window opens once and never again".to_owned()] };
    };
    let zone = schedule.window.zone();
    let shown = zone.to_datetime(after).strftime("%F %H:%M");
    let zone = zone.iana_name().unwrap_or("local time");
    Promise {
        worst: Some(gap),
        steps: vec![
            format!(
                "the agent patches once in each opening of its window, which are up to {} apart (first after {shown} {zone})",
                Hours(gap)
            ),
            format!("always {} after the beginning on this host", Hours(schedule.delay())),
        ],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::window::Window;

    fn timer(calendar: &str, jitter: u32) -> Option<Timer> {
        Some(Timer::calendar(calendar, jitter).unwrap())
    }

    fn worst(settings: &Apt) -> Option<i64> {
        apt(settings).worst.map(|worst| worst.as_mins())
    }

    /// Debian's timers.
    fn debian(update: &str, upgrade: &str) -> Apt {
        Apt {
            is_enabled: true,
            update: Interval::parse(update).unwrap(),
            upgrade: Interval::parse(upgrade).unwrap(),
            update_timer: timer("*-*-* 6,18:00", 720),
            upgrade_timer: timer("*-*-* 6:00", 60),
        }
    }

    #[test]
    fn a_day_and_debians_timers_cannot_keep_a_day() {
        // The lists are fetched at midnight, by the firing of 18:00 that is 6 h late; next at 18:00 of the day after, by the
        // one of 6:00 that is 12 h late; and unattended-upgrades runs at 7:00 on the third day.
        assert_eq!(worst(&debian("1", "1")), Some((42 + 13) * 60));
        let promise = apt(&debian("1", "1"));
        assert!(!promise.is_kept());
        let text = promise.to_string();
        assert!(
            text.starts_with("A fix may wait for 55 h after its publication, longer than 24 h: "),
            "{text}"
        );
        assert!(text.contains("once a calendar day, at 06:00, 18:00 and up to 12 h later"), "{text}");
        // Without the stamps: from 6:00 to 6:00, by the firing of 18:00 that is 12 h late, a moment after the other timer fired;
        // and 7:00 on the day after.
        assert_eq!(worst(&debian("always", "always")), Some((24 + 25) * 60));
        assert_eq!(worst(&debian("7", "1")), Some((7 * 24 + 18 + 13) * 60));
        assert!(apt(&debian("7", "1")).to_string().contains("8 days 7 h"));
    }

    #[test]
    fn four_times_a_day_keeps_it() {
        let often = Apt {
            update_timer: timer("*-*-* 0/6:00", 60),
            upgrade_timer: timer("*-*-* 0/6:00:00", 60),
            ..debian("always", "always")
        };
        let promise = apt(&often);
        assert_eq!(promise.worst, Some(SignedDuration::from_hours(13)));
        assert!(promise.is_kept() && promise.to_string().contains("at most 13 h"), "{promise}");
        // The stamps spoil it.
        let stamped = Apt { update: Interval::Days(1), upgrade: Interval::Days(1), ..often };
        assert!(!apt(&stamped).is_kept());
        let every = Apt {
            update_timer: Timer::every(360, 60),
            upgrade_timer: Timer::every(360, 60),
            ..debian("always", "always")
        };
        assert_eq!(worst(&every), Some(14 * 60));
    }

    #[test]
    fn what_is_due_in_the_same_minute_came_a_moment_before() {
        for how in ["1", "always"] {
            let tie = Apt {
                update_timer: timer("*-*-* 5:00", 60),
                upgrade_timer: timer("*-*-* 6:00", 0),
                ..debian(how, how)
            };
            assert_eq!(worst(&tie), Some(49 * 60), "{how}");
        }
    }

    #[test]
    fn what_is_switched_off_never_comes() {
        for (settings, word) in [
            (Apt { is_enabled: false, ..debian("1", "1") }, "Enable"),
            (debian("0", "1"), "Update-Package-Lists"),
            (debian("1", "0"), "Unattended-Upgrade"),
            (Apt { update_timer: None, ..debian("1", "1") }, "apt-daily.timer"),
            (Apt { upgrade_timer: None, ..debian("1", "1") }, "apt-daily-upgrade.timer"),
        ] {
            let promise = apt(&settings);
            assert!(!promise.is_kept() && promise.worst.is_none());
            assert!(promise.to_string().contains(word), "{promise}");
        }
    }

    #[test]
    fn intervals_and_timers_are_read() {
        for (text, interval) in [
            ("1", Some(Interval::Days(1))),
            ("always", Some(Interval::Always)),
            ("0", Some(Interval::Never)),
            ("", Some(Interval::Never)),
            ("0s", Some(Interval::Always)),
            ("12h", Some(Interval::Days(1))),
            ("25h", Some(Interval::Days(2))),
            ("90m", Some(Interval::Days(1))),
            ("3d", Some(Interval::Days(3))),
            ("999999999d", Some(Interval::Days(MAX_DAYS))),
            ("-1", None),
            ("often", None),
            ("1w", None),
            ("é", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(Interval::parse(text).ok(), interval, "{text}");
        }
        for (text, times) in [
            ("daily", Some(vec![0])),
            ("6:00", Some(vec![360])),
            ("*-*-* 06,18:00:00", Some(vec![360, 1080])),
            ("*-*-* 00/6:30", Some(vec![30, 390, 750, 1110])),
            ("*-*-* 1..3:0", Some(vec![60, 120, 180])),
            ("Mon *-*-* 6:00", None),
            ("weekly", None),
            ("*-*-01 6:00", None),
            ("24:00", None),
            ("6", None),
            ("6:0:0:0", None),
            ("6/0:0", None),
            ("3..99:0", None),
        ] {
            let expected = times.map(|times| Timer { times: Times::Daily(times), jitter: 0 });
            assert_eq!(Timer::calendar(text, 0), expected, "{text}");
        }
        assert_eq!(Timer::calendar("hourly", 0).map(|timer| timer.starts().len()), Some(24));
        assert_eq!((Timer::daily(&[], 0), Timer::daily(&[1440], 0), Timer::every(0, 5)), (None, None, None));
    }

    #[test]
    fn the_agents_own_schedule_is_judged() {
        let from: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let judged = |window: &Window| {
            agent(
                &Schedule { window, spread: SignedDuration::from_mins(20), host: b"host", catch_up: true },
                from,
            )
        };
        let daily = judged(&Window::simple("*", "2", "0", "60").unwrap());
        assert!(daily.is_kept() && daily.worst == Some(SignedDuration::from_hours(24)), "{daily}");
        let weekdays = judged(&Window::simple("Mon-Fri", "2", "0", "60").unwrap());
        assert!(!weekdays.is_kept() && weekdays.to_string().contains("3 days"), "{weekdays}");
        // A night of 25 hours.
        let berlin = jiff::tz::TimeZone::get("Europe/Berlin").unwrap();
        let night = judged(&Window::from_rule("FREQ=DAILY;BYHOUR=4", 60, None, berlin).unwrap());
        assert_eq!(night.worst, Some(SignedDuration::from_hours(25)), "{night}");
        let never = "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;BYHOUR=4";
        let never = judged(&Window::from_rule(never, 60, None, jiff::tz::TimeZone::UTC).unwrap());
        assert!(never.worst.is_none() && never.to_string().contains("never open"), "{never}");
    }

    /// Firings of a timer for some days, each at random within its jitter.
    fn firings(timer: &Timer, random: &mut impl FnMut(i64) -> i64) -> Vec<i64> {
        let mut all: Vec<i64> = match &timer.times {
            Times::Daily(times) => (-2..60)
                .flat_map(|day| times.iter().map(move |time| day * DAY + time).collect::<Vec<_>>())
                .map(|slot| slot + random(timer.jitter))
                .collect(),
            Times::Every(minutes) => {
                let mut at = -DAY;
                std::iter::from_fn(|| {
                    at += minutes + random(timer.jitter);
                    Some(at)
                })
                .take_while(|at| *at < 60 * DAY)
                .collect()
            }
        };
        all.sort_unstable();
        all
    }

    /// Those firings at which something is done.
    fn runs(timer: &Timer, interval: Interval, random: &mut impl FnMut(i64) -> i64) -> Vec<i64> {
        let mut last: Option<i64> = None;
        let all = firings(timer, random).into_iter().filter(|at| {
            let day = at.div_euclid(DAY);
            let is_due = match (interval, last) {
                (Interval::Never, _) => false,
                (Interval::Always, _) | (_, None) => true,
                (Interval::Days(days), Some(last)) => day - last >= days,
            };
            if is_due {
                last = Some(day);
            }
            is_due
        });
        all.collect()
    }

    prop_compose! {
        fn any_timer()(times in prop::collection::vec(0..1440_u16, 1..5), every in prop::option::of(60..2000_u32), jitter in prop_oneof![Just(0), 0..120_u32, 0..1500_u32]) -> Timer {
            match every {
                Some(every) => Timer::every(every, jitter).unwrap(),
                None => Timer::daily(&times, jitter).unwrap(),
            }
        }
    }

    fn any_interval() -> impl Strategy<Value = Interval> {
        prop_oneof![Just(Interval::Always), (1..4_i64).prop_map(Interval::Days)]
    }

    proptest! {
        /// Whatever the timers do at random, nothing waits longer.
        #[test]
        fn no_course_of_events_takes_longer(
            update in any_interval(), upgrade in any_interval(),
            update_timer in any_timer(), upgrade_timer in any_timer(), seed: u64,
        ) {
            let mut state = seed | 1;
            let mut random = |most: i64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // The extremes are where it happens.
                match state % 4 {
                    0 => 0,
                    1 => most,
                    _ => i64::try_from(state >> 8).unwrap_or(0) % (most + 1),
                }
            };
            let updates = runs(&update_timer, update, &mut random);
            let upgrades = runs(&upgrade_timer, upgrade, &mut random);
            let settings = Apt {
                is_enabled: true, update, upgrade,
                update_timer: Some(update_timer), upgrade_timer: Some(upgrade_timer),
            };
            let most = worst(&settings).unwrap();
            for pair in updates.windows(2) {
                let &[before, seen] = pair else { unreachable!() };
                // What came before the first days and after the last is cut off.
                if before < 5 * DAY {
                    continue;
                }
                if let Some(installed) = upgrades.iter().find(|at| **at > seen) {
                    prop_assert!(installed - before <= most, "{} > {most}: {settings:?}", installed - before);
                }
            }
        }
    }
}
