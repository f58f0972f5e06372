//! The part of RFC 5545's recurrence rules that windows have: parsing one, and the days and times that it gives.

use std::{ops::RangeInclusive, str::FromStr};

use jiff::{
    ToSpan as _,
    civil::{Date, Weekday},
};

use super::WindowError;

/// The longest rule in bytes.
const MAX_RULE: usize = 8192;

const MAX_INTERVAL: i32 = 1000;

/// A day on which a window opens, and when: hours and minutes, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Day {
    pub(super) date: Date,
    pub(super) times: Vec<(i8, i8)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frequency {
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

/// A rule that has been understood. Empty lists limit nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    frequency: Frequency,
    interval: i32,
    /// The how manieth weekday of its month or year, counted from the end if negative; 0 is each.
    by_day: Vec<(i16, Weekday)>,
    by_month_day: Vec<i8>,
    by_month: Vec<i8>,
    times: Vec<(i8, i8)>,
    by_position: Vec<i32>,
    week_start: Weekday,
    start: Option<Date>,
}

impl Rule {
    /// Opens on the given weekdays, on all if there are none, at one time.
    pub(super) fn weekly(days: Vec<Weekday>, hour: i8, minute: i8) -> Self {
        Self {
            frequency: if days.is_empty() { Frequency::Daily } else { Frequency::Weekly },
            interval: 1,
            by_day: days.into_iter().map(|day| (0, day)).collect(),
            by_month_day: Vec::new(),
            by_month: Vec::new(),
            times: vec![(hour, minute)],
            by_position: Vec::new(),
            week_start: Weekday::Monday,
            start: None,
        }
    }

    pub(super) fn parse(text: &str, start: Option<Date>) -> Result<Self, WindowError> {
        let mut rule = Self::fill(Parts::split(text)?, start)?;
        rule.take_days_from_start()?;
        Ok(rule)
    }

    fn fill(parts: Parts, start: Option<Date>) -> Result<Self, WindowError> {
        let wrong = |part: &str, problem: String| WindowError::new(part, problem);
        let frequency = match parts.frequency.as_deref() {
            Some("DAILY") => Frequency::Daily,
            Some("WEEKLY") => Frequency::Weekly,
            Some("MONTHLY") => Frequency::Monthly,
            Some("YEARLY") => Frequency::Yearly,
            Some(other @ ("HOURLY" | "MINUTELY" | "SECONDLY")) => {
                return Err(wrong(
                    "FREQ",
                    format!(
                        "{other} is too often for a window; write FREQ=DAILY with BYHOUR and BYMINUTE, such as FREQ=DAILY;BYHOUR=0,6,12,18"
                    ),
                ));
            }
            Some(other) => {
                let problem = format!("{other:?} is unknown; write DAILY, WEEKLY, MONTHLY or YEARLY");
                return Err(wrong("FREQ", problem));
            }
            None => {
                return Err(wrong(
                    "FREQ",
                    "it is missing; write FREQ=DAILY, WEEKLY, MONTHLY or YEARLY first".into(),
                ));
            }
        };
        let interval = parts.interval.unwrap_or(1);
        if interval > 1 && start.is_none() {
            let problem =
                "it needs a day to count from; write start, such as start: 2026-01-05, beside the rule";
            return Err(wrong("INTERVAL", problem.into()));
        }
        if frequency == Frequency::Weekly && !parts.month_days.is_empty() {
            let problem = "FREQ=WEEKLY has no days of the month; write FREQ=MONTHLY, with BYDAY beside it if only some weekdays count";
            return Err(wrong("BYMONTHDAY", problem.into()));
        }
        let largest = match frequency {
            Frequency::Daily | Frequency::Weekly => 0,
            Frequency::Monthly => 5,
            Frequency::Yearly => 53,
        };
        if let Some((ordinal, _)) = parts.days.iter().find(|(ordinal, _)| ordinal.abs() > largest) {
            let problem = if largest == 0 {
                format!(
                    "the number {ordinal} before a weekday counts within a month; write FREQ=MONTHLY, or the weekday alone"
                )
            } else {
                format!(
                    "there is no weekday number {ordinal}; write one from 1 to {largest} or from -1 to -{largest}"
                )
            };
            return Err(wrong("BYDAY", problem));
        }
        if parts.hours.is_empty() {
            return Err(wrong(
                "BYHOUR",
                "it is missing; write the hour at which the window opens, such as BYHOUR=4".into(),
            ));
        }
        let minutes = if parts.minutes.is_empty() { vec![0] } else { parts.minutes };
        let times =
            parts.hours.iter().flat_map(|hour| minutes.iter().map(|minute| (*hour, *minute))).collect();
        Ok(Self {
            frequency,
            interval,
            by_day: parts.days,
            by_month_day: parts.month_days,
            by_month: parts.months,
            times,
            by_position: parts.positions,
            week_start: parts.week_start.unwrap_or(Weekday::Monday),
            start,
        })
    }

    /// What the rule leaves open, the first day says.
    fn take_days_from_start(&mut self) -> Result<(), WindowError> {
        if self.frequency == Frequency::Daily || !self.by_day.is_empty() || !self.by_month_day.is_empty() {
            return Ok(());
        }
        let Some(start) = self.start else {
            let (part, example) = match self.frequency {
                Frequency::Weekly => ("BYDAY", "BYDAY=SU"),
                Frequency::Monthly => ("BYDAY", "BYDAY=1SU or BYMONTHDAY=1"),
                Frequency::Daily | Frequency::Yearly => ("BYMONTHDAY", "BYMONTH=1;BYMONTHDAY=15"),
            };
            return Err(WindowError::new(part, format!("the rule names no day; write such as {example}")));
        };
        match self.frequency {
            Frequency::Weekly => self.by_day.push((0, start.weekday())),
            _ => self.by_month_day.push(start.day()),
        }
        if self.frequency == Frequency::Yearly && self.by_month.is_empty() {
            self.by_month.push(start.month());
        }
        Ok(())
    }

    /// The first day on which a window may open.
    pub(super) fn start(&self) -> Option<Date> {
        self.start
    }

    /// The first day of the period in which a day is: a day, a week, a month or a year.
    fn period_of(&self, date: Date) -> Option<Date> {
        match self.frequency {
            Frequency::Daily => Some(date),
            Frequency::Weekly => {
                let days = date.weekday().since(self.week_start);
                date.checked_sub(i64::from(days).days()).ok()
            }
            Frequency::Monthly => Some(date.first_of_month()),
            Frequency::Yearly => Some(date.first_of_year()),
        }
    }

    fn period_plus(&self, period: Date, count: i32) -> Option<Date> {
        let count = i64::from(count);
        let span = match self.frequency {
            Frequency::Daily => count.days(),
            Frequency::Weekly => count.weeks(),
            Frequency::Monthly => count.months(),
            Frequency::Yearly => count.years(),
        };
        period.checked_add(span).ok()
    }

    /// How many periods there are from one to another.
    fn periods_between(&self, from: Date, to: Date) -> i64 {
        let days = || from.duration_until(to).as_hours() / 24;
        let months = |date: Date| i64::from(date.year()) * 12 + i64::from(date.month());
        match self.frequency {
            Frequency::Daily => days(),
            Frequency::Weekly => days() / 7,
            Frequency::Monthly => months(to) - months(from),
            Frequency::Yearly => i64::from(to.year()) - i64::from(from.year()),
        }
    }

    /// The period in which a day is, or the next one that counts.
    pub(super) fn period_from(&self, date: Date) -> Option<Date> {
        let period = self.period_of(date)?;
        let Some(start) = self.start else { return Some(period) };
        let past = self.periods_between(self.period_of(start)?, period).rem_euclid(self.interval.into());
        match i32::try_from(past).ok()? {
            0 => Some(period),
            past => self.period_plus(period, self.interval - past),
        }
    }

    /// The next period that counts.
    pub(super) fn period_after(&self, period: Date) -> Option<Date> {
        self.period_plus(period, self.interval)
    }

    /// The days in a period on which windows open, in order.
    pub(super) fn days_in(&self, period: Date) -> Vec<Day> {
        let end = self.period_plus(period, 1).unwrap_or(Date::MAX);
        let days = std::iter::successors(Some(period), |date| date.tomorrow().ok());
        let dates: Vec<Date> =
            days.take_while(|date| *date < end).filter(|date| self.has_day(*date)).collect();
        if self.by_position.is_empty() {
            return dates.into_iter().map(|date| Day { date, times: self.times.clone() }).collect();
        }
        let total = dates.len() * self.times.len();
        let place = |position: i32| {
            let distance = usize::try_from(position.unsigned_abs()).ok()?;
            if position > 0 { distance.checked_sub(1) } else { total.checked_sub(distance) }
        };
        let mut places: Vec<usize> =
            self.by_position.iter().filter_map(|position| place(*position)).collect();
        places.sort_unstable();
        places.dedup();
        let mut days: Vec<Day> = Vec::new();
        for place in places {
            // There is at least one time, or there would be no place.
            let date = dates.get(place / self.times.len().max(1));
            let time = self.times.get(place % self.times.len().max(1));
            let (Some(date), Some(time)) = (date, time) else { continue };
            match days.last_mut() {
                Some(day) if day.date == *date => day.times.push(*time),
                _ => days.push(Day { date: *date, times: vec![*time] }),
            }
        }
        days
    }

    fn has_day(&self, date: Date) -> bool {
        if !self.by_month.is_empty() && !self.by_month.contains(&date.month()) {
            return false;
        }
        let from_end = date.day() - date.days_in_month() - 1;
        let is_listed = |day: &i8| *day == date.day() || *day == from_end;
        if !self.by_month_day.is_empty() && !self.by_month_day.iter().any(is_listed) {
            return false;
        }
        let weekday = date.weekday();
        self.by_day.is_empty()
            || self.by_day.iter().any(|(ordinal, day)| *day == weekday && self.is_number(date, *ordinal))
    }

    /// Whether a day is the how manieth of its weekday in its month, or in its year for a rule of years without months.
    fn is_number(&self, date: Date, ordinal: i16) -> bool {
        let (day, days) = if self.frequency == Frequency::Yearly && self.by_month.is_empty() {
            (date.day_of_year(), date.days_in_year())
        } else {
            (date.day().into(), date.days_in_month().into())
        };
        match ordinal {
            0 => true,
            1.. => (day - 1) / 7 + 1 == ordinal,
            _ => (days - day) / 7 + 1 == -ordinal,
        }
    }
}

/// The parts of a rule as they are written.
#[derive(Debug, Default)]
struct Parts {
    frequency: Option<String>,
    interval: Option<i32>,
    days: Vec<(i16, Weekday)>,
    month_days: Vec<i8>,
    months: Vec<i8>,
    hours: Vec<i8>,
    minutes: Vec<i8>,
    positions: Vec<i32>,
    week_start: Option<Weekday>,
}

impl Parts {
    fn split(text: &str) -> Result<Self, WindowError> {
        if text.len() > MAX_RULE {
            return Err(WindowError::new(
                "rule",
                format!("it is longer than {MAX_RULE} bytes; write a shorter one"),
            ));
        }
        let text = text.trim().to_ascii_uppercase();
        if text.starts_with("RRULE:") {
            return Err(WindowError::new("RRULE", "write the rule alone, from FREQ= on"));
        }
        let mut parts = Self::default();
        let mut seen = Vec::new();
        for part in text.split(';') {
            let Some((name, value)) = part.split_once('=') else {
                let problem = "it is not of the form NAME=VALUE; write such as FREQ=WEEKLY;BYDAY=SU;BYHOUR=4";
                return Err(WindowError::new(format!("{part:?}"), problem));
            };
            if seen.contains(&name) {
                return Err(WindowError::new(
                    name,
                    "it is there twice; write it once, with a list such as 1,15",
                ));
            }
            seen.push(name);
            parts.set(name, value)?;
        }
        Ok(parts)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), WindowError> {
        let refuse = |problem: &str| Err(WindowError::new(name, problem));
        match name {
            "FREQ" => self.frequency = Some(value.to_owned()),
            "INTERVAL" => self.interval = Some(number(name, value, 1..=MAX_INTERVAL)?),
            "BYDAY" => self.days = days(name, value)?,
            "BYMONTHDAY" => self.month_days = list(name, value, |v| signed(name, v, 31))?,
            "BYMONTH" => self.months = list(name, value, |v| number(name, v, 1..=12))?,
            "BYHOUR" => self.hours = list(name, value, |v| number(name, v, 0..=23))?,
            "BYMINUTE" => self.minutes = list(name, value, |v| number(name, v, 0..=59))?,
            "BYSETPOS" => self.positions = list(name, value, |v| signed(name, v, 366))?,
            "WKST" => {
                let day = weekday(value).ok_or_else(|| unknown_day(name, value))?;
                self.week_start = Some(day);
            }
            "COUNT" | "UNTIL" => {
                return refuse(
                    "a window does not end by itself; leave it out, and take the window away when it is over",
                );
            }
            "BYSECOND" => return refuse("windows open on whole minutes; leave it out"),
            "BYYEARDAY" => return refuse("windows have no days of the year; write BYMONTH and BYMONTHDAY"),
            "BYWEEKNO" => {
                return refuse(
                    "windows have no numbers of weeks; write BYMONTH and BYDAY, such as BYMONTH=3;BYDAY=2SU",
                );
            }
            "RSCALE" | "SKIP" => return refuse("windows have the Gregorian calendar alone; leave it out"),
            _ => {
                return refuse(
                    "it is unknown; the parts are FREQ, INTERVAL, BYDAY, BYMONTHDAY, BYMONTH, BYHOUR, BYMINUTE, BYSETPOS and WKST",
                );
            }
        }
        Ok(())
    }
}

/// A list, sorted, each value once.
fn list<T: Ord>(
    name: &str,
    value: &str,
    parse: impl Fn(&str) -> Result<T, WindowError>,
) -> Result<Vec<T>, WindowError> {
    if value.is_empty() {
        return Err(WindowError::new(name, "it is empty; write a value or leave it out"));
    }
    let mut values = value.split(',').map(parse).collect::<Result<Vec<T>, _>>()?;
    values.sort_unstable();
    values.dedup();
    Ok(values)
}

pub(super) fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    name: &str,
    value: &str,
    range: RangeInclusive<T>,
) -> Result<T, WindowError> {
    let digits = (1..=6).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit());
    value.parse().ok().filter(|number| digits && range.contains(number)).ok_or_else(|| {
        let (from, to) = (range.start(), range.end());
        WindowError::new(name, format!("{value:?} is not a number from {from} to {to}; write one"))
    })
}

/// A number other than 0 that may have a sign.
fn signed<T: TryFrom<i32>>(name: &str, value: &str, largest: i32) -> Result<T, WindowError> {
    let (sign, digits) = match value.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, value.strip_prefix('+').unwrap_or(value)),
    };
    let number = number(name, digits, 1..=largest).ok().and_then(|number| T::try_from(sign * number).ok());
    number.ok_or_else(|| {
        let problem =
            format!("{value:?} is not a number from 1 to {largest}, or from -1 to -{largest}; write one");
        WindowError::new(name, problem)
    })
}

fn weekday(text: &str) -> Option<Weekday> {
    Some(match text {
        "MO" => Weekday::Monday,
        "TU" => Weekday::Tuesday,
        "WE" => Weekday::Wednesday,
        "TH" => Weekday::Thursday,
        "FR" => Weekday::Friday,
        "SA" => Weekday::Saturday,
        "SU" => Weekday::Sunday,
        _ => return None,
    })
}

fn unknown_day(name: &str, value: &str) -> WindowError {
    WindowError::new(
        name,
        format!(
            "{value:?} is not a weekday; write MO, TU, WE, TH, FR, SA or SU, for the third Tuesday of a month 3TU"
        ),
    )
}

fn days(name: &str, value: &str) -> Result<Vec<(i16, Weekday)>, WindowError> {
    let mut days = Vec::new();
    for text in value.split(',') {
        let split = text.len().checked_sub(2).and_then(|at| text.split_at_checked(at));
        let day = split.and_then(|(ordinal, day)| {
            let ordinal = if ordinal.is_empty() { 0 } else { signed(name, ordinal, 53).ok()? };
            Some((ordinal, weekday(day)?))
        });
        let day = day.ok_or_else(|| unknown_day(name, text))?;
        if !days.contains(&day) {
            days.push(day);
        }
    }
    Ok(days)
}
