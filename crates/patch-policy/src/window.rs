//! Maintenance windows: spans of time that recur.
//!
//! A window begins at local times that a [rule](https://www.rfc-editor.org/rfc/rfc5545#section-3.3.10) gives, in a time zone,
//! and lasts for a duration. What is written is parsed in `rule` and `simple`; here it is asked.
//!
//! Daylight saving: a beginning that the clock skips is moved forward by what is skipped (02:30 becomes 03:30), and one that
//! the clock shows twice is the first. The duration is elapsed time, so a window of an hour lasts an hour in every night.

mod rule;
mod simple;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

use jiff::{SignedDuration, Timestamp, ToSpan as _, civil::Date, tz::TimeZone};

use rule::{Day, Rule};

/// The longest duration of a window in minutes: a week.
pub const LONGEST: u32 = 7 * 24 * 60;

/// How far ahead openings are looked for, in years. What opens at all does so within that time, unless only an interval of
/// decades makes it wait: two 29 February on the same weekday are at most 40 years apart.
const YEARS: i64 = 50;

/// More than any clock is ever set by.
const SKIP: SignedDuration = SignedDuration::from_hours(25);

/// Why something written is no window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowError {
    part: String,
    problem: String,
}

impl WindowError {
    pub(crate) fn new(part: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { part: part.into(), problem: problem.into() }
    }

    /// The part that is wrong, such as `BYDAY` or `HOUR`.
    #[must_use]
    pub fn part(&self) -> &str {
        &self.part
    }
}

impl std::fmt::Display for WindowError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.part, self.problem)
    }
}

impl std::error::Error for WindowError {}

/// One time that a window is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Opening {
    /// When it begins. This instant is inside.
    pub begins: Timestamp,
    /// When it ends. This instant is outside.
    pub ends: Timestamp,
}

/// A window as configuration files write it: a rule, or days of the week with a time.
#[derive(Debug, Clone)]
pub struct Declared<'a> {
    /// A recurrence rule.
    pub rule: Option<&'a str>,
    /// Days such as `Mon-Fri`, in place of a rule.
    pub days: Option<&'a str>,
    /// The hour on those days.
    pub hour: Option<u8>,
    /// The minute; 0 if absent.
    pub minute: Option<u8>,
    /// How long it lasts, in minutes.
    pub minutes: u32,
    /// The first day on which a rule may open it.
    pub start: Option<Date>,
    /// The time zone of all that.
    pub zone: TimeZone,
}

/// A maintenance window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    rule: Rule,
    duration: SignedDuration,
    zone: TimeZone,
}

impl Window {
    /// A window from an RFC 5545 recurrence rule, such as `FREQ=WEEKLY;BYDAY=SU;BYHOUR=4;BYMINUTE=15`.
    ///
    /// `start` is the first day on which it may open. A rule with an `INTERVAL` counts from it, and a rule that names no day
    /// takes its day. `BYHOUR` must be there, `BYMINUTE` is 0 if it is not.
    ///
    /// # Errors
    /// When the rule is not one, has a part that windows do not have, or the duration is not between 1 minute and a week.
    pub fn from_rule(
        rule: &str,
        duration_minutes: u32,
        start: Option<Date>,
        zone: TimeZone,
    ) -> Result<Self, WindowError> {
        Self::new(Rule::parse(rule, start)?, duration_minutes, "duration_minutes", zone)
    }

    /// A window of the simple form, in UTC. Days are names such as `Sun`, lists such as `Mon,Wed`, ranges such as `Mon-Fri`, or
    /// `*` for every day; the others are numbers: hour, minute, and the duration in minutes.
    ///
    /// # Errors
    /// When one of them is not understood, or the duration is not between 1 minute and a week.
    pub fn simple(days: &str, hour: &str, minute: &str, duration: &str) -> Result<Self, WindowError> {
        let (rule, duration) = simple::parse(days, hour, minute, duration)?;
        Self::new(rule, duration, "DURATION", TimeZone::UTC)
    }

    /// A window from what a configuration file has.
    ///
    /// # Errors
    /// When it is neither a rule nor days with an hour, or both, or one of them is not understood.
    pub fn from_declared(declared: Declared<'_>) -> Result<Self, WindowError> {
        let Declared { rule, days, hour, minute, minutes, start, zone } = declared;
        match (rule, days) {
            (Some(rule), None) if hour.is_none() && minute.is_none() => {
                Self::from_rule(rule, minutes, start, zone)
            }
            (Some(_), None) => {
                Err(WindowError::new("rule", "its hours are BYHOUR and BYMINUTE; remove `hour` and `minute`"))
            }
            (None, Some(_)) if start.is_some() => {
                Err(WindowError::new("start", "only a `rule` counts from a day; remove it"))
            }
            (None, Some(days)) => {
                let hour =
                    hour.ok_or_else(|| WindowError::new("hour", "it is missing; write one from 0 to 23"))?;
                let (hour, minute) = (hour.to_string(), minute.unwrap_or(0).to_string());
                let simple = Self::simple(days, &hour, &minute, &minutes.to_string())?;
                Ok(Self { zone, ..simple })
            }
            _ => Err(WindowError::new("window", "write either `rule`, or `days` with `hour`")),
        }
    }

    fn new(rule: Rule, minutes: u32, part: &str, zone: TimeZone) -> Result<Self, WindowError> {
        if !(1..=LONGEST).contains(&minutes) {
            return Err(WindowError::new(
                part,
                format!("{minutes} is not between 1 and {LONGEST}; write how many minutes the window lasts"),
            ));
        }
        Ok(Self { rule, duration: SignedDuration::from_mins(minutes.into()), zone })
    }

    /// How long each opening lasts.
    #[must_use]
    pub fn duration(&self) -> SignedDuration {
        self.duration
    }

    /// The time zone that it is written in.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The opening in which an instant is; of several that overlap, the one that began last.
    #[must_use]
    pub fn open_at(&self, now: Timestamp) -> Option<Opening> {
        let today = self.zone.to_datetime(now).date();
        let earliest = self.zone.to_datetime(now.checked_sub(self.duration).ok()?).date();
        let (first, last) = (shifted(earliest, -2), shifted(today, 2));
        let days = Days::new(&self.rule, first, last);
        let begun = days.flat_map(|day| self.instants(&day)).filter(|begins| *begins <= now).max()?;
        self.opening(begun).filter(|opening| now < opening.ends)
    }

    /// The first opening that begins after an instant. None if there is none in the next 50 years, which is to say never.
    #[must_use]
    pub fn next_after(&self, now: Timestamp) -> Option<Opening> {
        self.openings_after(now).next()
    }

    /// All openings that begin after an instant, in order, as far as 50 years ahead of it. Beginnings that fall together are
    /// one opening.
    #[must_use]
    pub fn openings_after(&self, now: Timestamp) -> Openings<'_> {
        let today = self.zone.to_datetime(now).date();
        let last = today.checked_add(YEARS.years()).unwrap_or(Date::MAX);
        Openings {
            window: self,
            after: now,
            days: Days::new(&self.rule, shifted(today, -2), last),
            ready: BTreeSet::new(),
            safe: None,
        }
    }

    fn opening(&self, begins: Timestamp) -> Option<Opening> {
        Some(Opening { begins, ends: begins.checked_add(self.duration).ok()? })
    }

    /// When it begins on a day, in no order.
    fn instants(&self, day: &Day) -> impl Iterator<Item = Timestamp> + use<'_> {
        let date = day.date;
        let times = day.times.clone();
        times
            .into_iter()
            .filter_map(move |(hour, minute)| self.zone.to_timestamp(date.at(hour, minute, 0, 0)).ok())
    }
}

fn shifted(date: Date, days: i64) -> Date {
    date.checked_add(days.days()).unwrap_or(if days < 0 { Date::MIN } else { Date::MAX })
}

/// The days on which a rule opens a window, in order, from one day to another.
#[derive(Debug, Clone)]
struct Days<'a> {
    rule: &'a Rule,
    /// The first day of the next period to be looked at.
    period: Option<Date>,
    first: Date,
    last: Date,
    queue: VecDeque<Day>,
}

impl<'a> Days<'a> {
    fn new(rule: &'a Rule, first: Date, last: Date) -> Self {
        let first = rule.start().map_or(first, |start| start.max(first));
        Self { rule, period: rule.period_from(first), first, last, queue: VecDeque::new() }
    }
}

impl Iterator for Days<'_> {
    type Item = Day;

    fn next(&mut self) -> Option<Day> {
        loop {
            match self.queue.pop_front() {
                Some(day) if day.date > self.last => return None,
                Some(day) if day.date < self.first => {}
                Some(day) => return Some(day),
                None => {
                    let period = self.period.filter(|period| *period <= self.last)?;
                    self.queue = self.rule.days_in(period).into();
                    self.period = self.rule.period_after(period);
                }
            }
        }
    }
}

/// Openings in order; see [`Window::openings_after`].
#[derive(Debug, Clone)]
pub struct Openings<'a> {
    window: &'a Window,
    after: Timestamp,
    days: Days<'a>,
    /// Beginnings that are known and not given out yet.
    ready: BTreeSet<Timestamp>,
    /// No day that has not been looked at has a beginning before this.
    safe: Option<Timestamp>,
}

impl Iterator for Openings<'_> {
    type Item = Opening;

    fn next(&mut self) -> Option<Opening> {
        loop {
            // Where the clock is set forward, the order of local times is not that of the instants.
            if let (Some(first), Some(safe)) = (self.ready.first(), self.safe)
                && *first < safe
            {
                break;
            }
            let Some(day) = self.days.next() else { break };
            let midnight = self.window.zone.to_timestamp(day.date.at(0, 0, 0, 0)).ok();
            self.safe = midnight.and_then(|midnight| midnight.checked_sub(SKIP).ok());
            let after = self.after;
            self.ready.extend(self.window.instants(&day).filter(|begins| *begins > after));
        }
        self.window.opening(self.ready.pop_first()?)
    }
}
