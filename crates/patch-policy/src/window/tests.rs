use jiff::civil::{DateTime, Weekday, date};
use proptest::prelude::*;

use super::*;

const BERLIN: &str = "Europe/Berlin";

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn window(rule: &str, minutes: u32, start: Option<Date>, name: &str) -> Window {
    Window::from_rule(rule, minutes, start, zone(name)).unwrap()
}

/// The first openings after an instant, as local times.
fn local(rule: &str, start: Option<Date>, name: &str, after: &str, count: usize) -> Vec<String> {
    let window = window(rule, 60, start, name);
    let openings = window.openings_after(at(after)).take(count);
    openings
        .map(|opening| window.zone().to_datetime(opening.begins).strftime("%F %H:%M").to_string())
        .collect()
}

#[test]
fn rules_open_when_they_say() {
    let new_year = "2026-01-01T00:00:00Z";
    for (rule, expected) in [
        ("FREQ=WEEKLY;BYDAY=SU;BYHOUR=4;BYMINUTE=15", ["2026-01-04 04:15", "2026-01-11 04:15"]),
        ("FREQ=DAILY;BYHOUR=22", ["2026-01-01 22:00", "2026-01-02 22:00"]),
        ("freq=daily;byhour=3,1;byday=MO", ["2026-01-05 01:00", "2026-01-05 03:00"]),
        ("FREQ=MONTHLY;BYDAY=3TU;BYHOUR=2", ["2026-01-20 02:00", "2026-02-17 02:00"]),
        ("FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=2", ["2026-01-30 02:00", "2026-02-27 02:00"]),
        ("FREQ=MONTHLY;BYMONTHDAY=-1;BYHOUR=2", ["2026-01-31 02:00", "2026-02-28 02:00"]),
        ("FREQ=MONTHLY;BYMONTHDAY=31;BYHOUR=2", ["2026-01-31 02:00", "2026-03-31 02:00"]),
        ("FREQ=MONTHLY;BYMONTHDAY=13;BYDAY=FR;BYHOUR=2", ["2026-02-13 02:00", "2026-03-13 02:00"]),
        // The last working day.
        ("FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;BYHOUR=2", ["2026-01-30 02:00", "2026-02-27 02:00"]),
        ("FREQ=DAILY;BYHOUR=2,8,14;BYSETPOS=-1,2", ["2026-01-01 08:00", "2026-01-01 14:00"]),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29;BYHOUR=2", ["2028-02-29 02:00", "2032-02-29 02:00"]),
        ("FREQ=YEARLY;BYDAY=-1SU;BYHOUR=2", ["2026-12-27 02:00", "2027-12-26 02:00"]),
        ("FREQ=YEARLY;BYDAY=53TH;BYHOUR=2", ["2026-12-31 02:00", "2032-12-30 02:00"]),
        ("FREQ=YEARLY;BYMONTH=3;BYDAY=2SU;BYHOUR=2", ["2026-03-08 02:00", "2027-03-14 02:00"]),
    ] {
        assert_eq!(local(rule, None, "UTC", new_year, 2), expected, "{rule}");
    }
}

#[test]
fn an_interval_counts_from_the_start() {
    let start = Some(date(2026, 1, 5));
    let after = "2025-12-01T00:00:00Z";
    for (rule, expected) in [
        ("FREQ=WEEKLY;INTERVAL=2;BYHOUR=4", ["2026-01-05 04:00", "2026-01-19 04:00"]),
        // The week of the start begins on a Sunday or on a Monday.
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=SU;BYHOUR=4", ["2026-01-11 04:00", "2026-01-25 04:00"]),
        ("FREQ=WEEKLY;INTERVAL=2;BYDAY=SU;WKST=SU;BYHOUR=4", ["2026-01-18 04:00", "2026-02-01 04:00"]),
        ("FREQ=DAILY;INTERVAL=10;BYHOUR=4", ["2026-01-05 04:00", "2026-01-15 04:00"]),
        ("FREQ=MONTHLY;INTERVAL=3;BYDAY=1SU;BYHOUR=4", ["2026-04-05 04:00", "2026-07-05 04:00"]),
        ("FREQ=MONTHLY;BYHOUR=4", ["2026-01-05 04:00", "2026-02-05 04:00"]),
        ("FREQ=YEARLY;BYMONTH=6;BYHOUR=4", ["2026-06-05 04:00", "2027-06-05 04:00"]),
        ("FREQ=YEARLY;INTERVAL=2;BYHOUR=4", ["2026-01-05 04:00", "2028-01-05 04:00"]),
    ] {
        assert_eq!(local(rule, start, "UTC", after, 2), expected, "{rule}");
    }
}

#[test]
fn a_time_that_is_skipped_comes_later_and_one_that_is_there_twice_is_the_first() {
    let night = "FREQ=DAILY;BYHOUR=2;BYMINUTE=30";
    let window = window(night, 60, None, BERLIN);
    let spring = window.next_after(at("2026-03-28T12:00:00Z")).unwrap();
    // 02:30 is not there on 29 March: 03:30 CEST.
    assert_eq!((spring.begins, spring.ends), (at("2026-03-29T01:30:00Z"), at("2026-03-29T02:30:00Z")));
    let autumn = window.next_after(at("2026-10-24T12:00:00Z")).unwrap();
    // 02:30 is there twice on 25 October: CEST, and the window lasts for an hour.
    assert_eq!((autumn.begins, autumn.ends), (at("2026-10-25T00:30:00Z"), at("2026-10-25T01:30:00Z")));
    assert_eq!(window.next_after(autumn.begins).unwrap().begins, at("2026-10-26T01:30:00Z"));
    // 02:45 is moved to 03:45 and so comes after 03:15.
    let order = local("FREQ=DAILY;BYHOUR=2,3;BYMINUTE=15,45", None, BERLIN, "2026-03-29T00:00:00Z", 3);
    assert_eq!(order, ["2026-03-29 03:15", "2026-03-29 03:45", "2026-03-30 02:15"]);
    // Samoa left out 30 December 2011.
    let samoa = local("FREQ=DAILY;BYHOUR=4", None, "Pacific/Apia", "2011-12-29T00:00:00Z", 4);
    assert_eq!(samoa, ["2011-12-29 04:00", "2011-12-31 04:00", "2012-01-01 04:00", "2012-01-02 04:00"]);
}

#[test]
fn a_window_is_open_from_its_beginning_until_before_its_end() {
    let midnight = window("FREQ=WEEKLY;BYDAY=SA;BYHOUR=23;BYMINUTE=30", 120, None, "UTC");
    let (begins, ends) = (at("2026-01-31T23:30:00Z"), at("2026-02-01T01:30:00Z"));
    let opening = Some(Opening { begins, ends });
    for (now, expected) in [
        ("2026-01-31T23:29:59Z", None),
        ("2026-01-31T23:30:00Z", opening),
        ("2026-02-01T01:29:59Z", opening),
        ("2026-02-01T01:30:00Z", None),
    ] {
        assert_eq!(midnight.open_at(at(now)), expected, "{now}");
    }
    assert_eq!(midnight.next_after(begins).unwrap().begins, at("2026-02-07T23:30:00Z"));
    // Of two that overlap, the later one says how long it is open.
    let overlapping = window("FREQ=DAILY;BYHOUR=0", 2880, None, "UTC");
    let now = at("2026-01-15T12:00:00Z");
    assert_eq!(overlapping.open_at(now).unwrap().ends, at("2026-01-17T00:00:00Z"));
}

#[test]
fn what_can_never_open_is_known() {
    for rule in [
        "FREQ=MONTHLY;BYMONTHDAY=30;BYMONTH=2;BYHOUR=4",
        "FREQ=YEARLY;BYMONTH=2,4;BYMONTHDAY=31;BYHOUR=4",
        "FREQ=MONTHLY;BYDAY=MO;BYMONTHDAY=1;BYSETPOS=2;BYHOUR=4",
        "FREQ=YEARLY;BYDAY=SU;BYMONTH=1;BYSETPOS=-366;BYHOUR=4",
    ] {
        let window = window(rule, 60, None, "UTC");
        let now = at("2026-01-01T00:00:00Z");
        assert_eq!((window.next_after(now), window.open_at(now)), (None, None), "{rule}");
    }
    // 29 February on an odd year.
    let odd =
        window("FREQ=YEARLY;INTERVAL=4;BYMONTH=2;BYMONTHDAY=29;BYHOUR=4", 60, Some(date(2027, 1, 1)), "UTC");
    assert_eq!(odd.next_after(at("2026-01-01T00:00:00Z")), None);
}

#[test]
fn the_ends_of_time_are_no_trouble() {
    let window = window("FREQ=WEEKLY;BYDAY=SU;BYHOUR=0,23", LONGEST, None, "Pacific/Kiritimati");
    for now in [Timestamp::MIN, Timestamp::MAX] {
        let _ = (window.open_at(now), window.next_after(now), window.openings_after(now).take(3).count());
    }
}

#[test]
fn the_largest_rules_are_soon_done() {
    let all = |n: i32| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    let times = format!("BYHOUR={};BYMINUTE={}", all(24), all(60));
    let positions: Vec<String> = (1..=366).map(|i| format!("{i},-{i}")).collect();
    let begun = std::time::Instant::now();
    for rule in [
        format!("FREQ=DAILY;{times}"),
        format!("FREQ=YEARLY;BYDAY=MO,TU,WE,TH,FR,SA,SU;BYSETPOS={};{times}", positions.join(",")),
        format!("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;{times}"),
        format!("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30,31;{times}"),
    ] {
        let window = window(&rule, LONGEST, None, "America/New_York");
        let now = at("2026-03-08T06:59:30Z");
        let _ = (window.open_at(now), window.next_after(now));
    }
    // Milliseconds in a release build; the limit is for a busy machine.
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn the_simple_form_is_in_utc() {
    let window = Window::simple("Sun", "04", "15", "60").unwrap();
    let opening = window.next_after(at("2026-07-01T00:00:00Z")).unwrap();
    assert_eq!((opening.begins, opening.ends), (at("2026-07-05T04:15:00Z"), at("2026-07-05T05:15:00Z")));
    let days = |text: &str| {
        let window = Window::simple(text, "4", "0", "60").unwrap();
        let openings = window.openings_after(at("2026-02-02T00:00:00Z"));
        openings
            .take_while(|o| o.begins < at("2026-02-09T00:00:00Z"))
            .map(|o| window.zone().to_datetime(o.begins).day())
            .collect::<Vec<_>>()
    };
    assert_eq!(days("Mon-Fri"), [2, 3, 4, 5, 6]);
    assert_eq!(days("sat-monday"), [2, 7, 8]);
    assert_eq!(days("Wed,tuesday Thu"), [3, 4, 5]);
    assert_eq!(days("*"), [2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(days("Mon-Sun"), days("daily"));
    for (form, part) in [
        (("", "4", "0", "60"), "DOW"),
        (("So", "4", "0", "60"), "DOW"),
        (("Sun-", "4", "0", "60"), "DOW"),
        (("Sun", "24", "0", "60"), "HOUR"),
        (("Sun", "", "0", "60"), "HOUR"),
        (("Sun", "+4", "0", "60"), "HOUR"),
        (("Sun", "4", "60", "60"), "MIN"),
        (("Sun", "4", "0", "0"), "DURATION"),
        (("Sun", "4", "0", "10081"), "DURATION"),
    ] {
        let error = Window::simple(form.0, form.1, form.2, form.3).unwrap_err();
        assert_eq!(error.part(), part, "{form:?}: {error}");
        assert!(error.to_string().contains("write"), "{error}");
    }
}

#[test]
fn what_is_wrong_is_named_with_what_to_write() {
    for (rule, part, word) in [
        ("", "\"\"", "NAME=VALUE"),
        ("FREQ", "\"FREQ\"", "NAME=VALUE"),
        ("RRULE:FREQ=DAILY;BYHOUR=4", "RRULE", "alone"),
        ("BYDAY=SU;BYHOUR=4", "FREQ", "write FREQ=DAILY"),
        ("FREQ=HOURLY;BYMINUTE=0", "FREQ", "FREQ=DAILY;BYHOUR=0,6"),
        ("FREQ=OFTEN;BYHOUR=4", "FREQ", "MONTHLY"),
        ("FREQ=DAILY", "BYHOUR", "BYHOUR=4"),
        ("FREQ=WEEKLY;BYHOUR=4", "BYDAY", "BYDAY=SU"),
        ("FREQ=MONTHLY;BYHOUR=4", "BYDAY", "BYMONTHDAY=1"),
        ("FREQ=YEARLY;BYMONTH=2;BYHOUR=4", "BYMONTHDAY", "BYMONTH=1;BYMONTHDAY=15"),
        ("FREQ=WEEKLY;BYDAY=3TU;BYHOUR=4", "BYDAY", "FREQ=MONTHLY"),
        ("FREQ=MONTHLY;BYDAY=6TU;BYHOUR=4", "BYDAY", "from 1 to 5"),
        ("FREQ=MONTHLY;BYDAY=0TU;BYHOUR=4", "BYDAY", "3TU"),
        ("FREQ=WEEKLY;BYDAY=XX;BYHOUR=4", "BYDAY", "MO, TU"),
        ("FREQ=WEEKLY;BYDAY=é;BYHOUR=4", "BYDAY", "MO, TU"),
        ("FREQ=WEEKLY;BYDAY=;BYHOUR=4", "BYDAY", "MO, TU"),
        ("FREQ=WEEKLY;BYDAY=SU;BYMONTHDAY=1;BYHOUR=4", "BYMONTHDAY", "FREQ=MONTHLY"),
        ("FREQ=DAILY;INTERVAL=2;BYHOUR=4", "INTERVAL", "start: 2026-01-05"),
        ("FREQ=DAILY;INTERVAL=0;BYHOUR=4", "INTERVAL", "from 1 to 1000"),
        ("FREQ=DAILY;BYHOUR=24", "BYHOUR", "from 0 to 23"),
        ("FREQ=DAILY;BYHOUR=4;BYHOUR=5", "BYHOUR", "twice"),
        ("FREQ=DAILY;BYHOUR=4;BYMINUTE=", "BYMINUTE", "empty"),
        ("FREQ=DAILY;BYHOUR=4;BYSECOND=0", "BYSECOND", "leave it out"),
        ("FREQ=DAILY;BYHOUR=4;COUNT=5", "COUNT", "leave it out"),
        ("FREQ=DAILY;BYHOUR=4;UNTIL=20270101T000000Z", "UNTIL", "leave it out"),
        ("FREQ=DAILY;BYHOUR=4;BYYEARDAY=5", "BYYEARDAY", "BYMONTHDAY"),
        ("FREQ=YEARLY;BYHOUR=4;BYWEEKNO=20", "BYWEEKNO", "BYDAY"),
        ("FREQ=DAILY;BYHOUR=4;BYSETPOS=0", "BYSETPOS", "from 1 to 366"),
        ("FREQ=MONTHLY;BYMONTHDAY=-32;BYHOUR=4", "BYMONTHDAY", "from -1 to -31"),
        ("FREQ=DAILY;BYHOUR=4;X-MINE=1", "X-MINE", "the parts are"),
        ("FREQ=DAILY;BYHOUR=4;WKST=1", "WKST", "MO, TU"),
    ] {
        let error = Window::from_rule(rule, 60, None, TimeZone::UTC).unwrap_err();
        assert_eq!(error.part(), part, "{rule}: {error}");
        assert!(error.to_string().contains(word), "{rule}: {error}");
    }
    let error = Window::from_rule("FREQ=DAILY;BYHOUR=4", 0, None, TimeZone::UTC).unwrap_err();
    assert_eq!(error.part(), "duration_minutes");
}

/// A rule in parts, from which both the text and the oracle's answer are made.
#[derive(Debug, Clone)]
struct Written {
    frequency: usize,
    interval: i32,
    days: Vec<(i8, usize)>,
    month_days: Vec<i8>,
    months: Vec<i8>,
    hours: Vec<i8>,
    minutes: Vec<i8>,
    positions: Vec<i32>,
    week_start: usize,
    start: Date,
}

const DAYS: [(&str, Weekday); 7] = [
    ("MO", Weekday::Monday),
    ("TU", Weekday::Tuesday),
    ("WE", Weekday::Wednesday),
    ("TH", Weekday::Thursday),
    ("FR", Weekday::Friday),
    ("SA", Weekday::Saturday),
    ("SU", Weekday::Sunday),
];

impl Written {
    fn text(&self) -> String {
        let join = |list: Vec<String>| list.join(",");
        let mut text = format!("FREQ={}", ["DAILY", "WEEKLY", "MONTHLY", "YEARLY"][self.frequency]);
        text += &format!(";INTERVAL={};WKST={}", self.interval, DAYS[self.week_start].0);
        let numbers = |list: &[i8]| join(list.iter().map(ToString::to_string).collect());
        let days = self.days.iter().map(|(n, day)| {
            format!("{}{}", if *n == 0 { String::new() } else { n.to_string() }, DAYS[*day].0)
        });
        for (name, list) in [
            ("BYDAY", join(days.collect())),
            ("BYMONTHDAY", numbers(&self.month_days)),
            ("BYMONTH", numbers(&self.months)),
            ("BYHOUR", numbers(&self.hours)),
            ("BYMINUTE", numbers(&self.minutes)),
            ("BYSETPOS", join(self.positions.iter().map(ToString::to_string).collect())),
        ] {
            if !list.is_empty() {
                text += &format!(";{name}={list}");
            }
        }
        text
    }

    /// In which period a day is: equal for all days of one, and one more for the next.
    fn period(&self, day: Date) -> i64 {
        let number = |day: Date| date(1970, 1, 1).duration_until(day).as_hours() / 24;
        match self.frequency {
            0 => number(day),
            1 => {
                let mut first = day;
                while first.weekday() != DAYS[self.week_start].1 {
                    first = first.yesterday().unwrap();
                }
                number(first).div_euclid(7)
            }
            2 => i64::from(day.year()) * 12 + i64::from(day.month()),
            _ => i64::from(day.year()),
        }
    }

    fn has(&self, day: Date) -> bool {
        let all_of = |by_year: bool, weekday: Weekday| -> Vec<Date> {
            let first = if by_year { day.first_of_year() } else { day.first_of_month() };
            let last = if by_year { day.last_of_year() } else { day.last_of_month() };
            first.series(1.day()).take_while(|d| *d <= last).filter(|d| d.weekday() == weekday).collect()
        };
        let month_day = |n: i8| {
            let days: Vec<Date> = day
                .first_of_month()
                .series(1.day())
                .take_while(|d| d.month() == day.month() && d.year() == day.year())
                .collect();
            nth(&days, n.into()) == Some(&day)
        };
        let by_year = self.frequency == 3 && self.months.is_empty();
        let week_day = |n: i8, d: usize| {
            let weekday = DAYS[d].1;
            if n == 0 {
                day.weekday() == weekday
            } else {
                nth(&all_of(by_year, weekday), n.into()) == Some(&day)
            }
        };
        (self.months.is_empty() || self.months.contains(&day.month()))
            && (self.month_days.is_empty() || self.month_days.iter().any(|n| month_day(*n)))
            && (self.days.is_empty() || self.days.iter().any(|(n, d)| week_day(*n, *d)))
    }

    /// All beginnings on days from `first` to before `last`, by walking all days.
    fn walk(&self, zone: &TimeZone, first: Date, last: Date) -> BTreeSet<Timestamp> {
        let from = self.period(self.start);
        let mut periods: std::collections::BTreeMap<i64, Vec<DateTime>> = Default::default();
        // Whole periods, since positions count within them.
        let whole = (first - 366.days()).series(1.day()).take_while(|d| *d < last + 366.days());
        for day in whole.filter(|day| self.has(*day)) {
            let period = self.period(day);
            if (period - from).rem_euclid(self.interval.into()) == 0 {
                let list = periods.entry(period).or_default();
                for hour in 0..24 {
                    for minute in 0..60 {
                        let minutes: &[i8] = if self.minutes.is_empty() { &[0] } else { &self.minutes };
                        if self.hours.contains(&hour) && minutes.contains(&minute) {
                            list.push(day.at(hour, minute, 0, 0));
                        }
                    }
                }
            }
        }
        let chosen = periods.into_values().flat_map(|list| {
            if self.positions.is_empty() {
                return list;
            }
            self.positions.iter().filter_map(|n| nth(&list, *n).copied()).collect()
        });
        let chosen = chosen.filter(|d| d.date() >= self.start.max(first) && d.date() < last);
        chosen.map(|local| instant(zone, local)).collect()
    }
}

fn nth<T>(list: &[T], n: i32) -> Option<&T> {
    let n = if n > 0 { n - 1 } else { i32::try_from(list.len()).unwrap() + n };
    list.get(usize::try_from(n).ok()?)
}

/// The instant of a local time by looking at the clock every quarter of an hour, which is how far apart offsets are.
fn instant(zone: &TimeZone, local: DateTime) -> Timestamp {
    let utc = TimeZone::UTC.to_timestamp(local).unwrap();
    let around = (-26 * 4..=26 * 4).map(|quarter| utc + SignedDuration::from_mins(quarter * 15));
    let shown = around.clone().find(|t| zone.to_datetime(*t) == local);
    shown.unwrap_or_else(|| {
        // Skipped: as it would have been without the clock being set.
        let before = around.take_while(|t| zone.to_datetime(*t) < local).last().unwrap();
        before + zone.to_datetime(before).duration_until(local)
    })
}

const ZONES: [&str; 7] = [
    "UTC",
    BERLIN,
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Africa/Casablanca",
    "Pacific/Apia",
];

prop_compose! {
    fn written()(
        frequency in 0..4_usize,
        interval in prop_oneof![3 => Just(1), 1 => 2..4_i32],
        days in prop::collection::vec((prop_oneof![2 => Just(0), 1 => -5..=5_i8], 0..7_usize), 0..4),
        month_days in prop::collection::vec(prop_oneof![1..=31_i8, -31..=-1_i8], 0..3),
        months in prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec(1..=12_i8, 1..4)],
        hours in prop::collection::vec(prop_oneof![0..24_i8, 0..4_i8], 1..4),
        minutes in prop::collection::vec(0..60_i8, 0..3),
        positions in prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(prop_oneof![1..6_i32, -6..=-1_i32], 1..3)],
        week_start in 0..7_usize,
        start in (2011..2030_i16, 1..=12_i8, 1..=28_i8),
    ) -> Written {
        let mut written = Written {
            frequency, interval, days, month_days, months, hours, minutes, positions, week_start,
            start: date(start.0, start.1, start.2),
        };
        if frequency < 2 {
            written.days.iter_mut().for_each(|(n, _)| *n = 0);
        }
        if frequency == 1 {
            written.month_days.clear();
        }
        if frequency > 0 && written.days.is_empty() && written.month_days.is_empty() {
            written.days.push((0, 2));
        }
        written
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn openings_are_those_of_a_walk_through_all_days(
        written in written(), name in prop::sample::select(&ZONES[..]),
        minutes in prop_oneof![1..120_u32, 1..=LONGEST], ahead in 0..300_i64,
    ) {
        let text = written.text();
        let window = Window::from_rule(&text, minutes, Some(written.start), zone(name)).unwrap();
        let first = written.start + ahead.days();
        let walked = written.walk(window.zone(), first - 10.days(), first + 400.days());
        let now = instant(window.zone(), first.at(12, 0, 0, 0));
        // What is near the ends of the walk may be missing in it.
        let end = now + SignedDuration::from_hours(390 * 24);
        let expected: Vec<Timestamp> = walked.iter().copied().filter(|t| *t > now && *t < end).collect();
        let found: Vec<Timestamp> =
            window.openings_after(now).map(|o| o.begins).take_while(|t| *t < end).collect();
        prop_assert_eq!(&found, &expected, "{} in {}", text, name);

        let edges = found.iter().take(3).flat_map(|t| {
            [-1, 0, i64::from(minutes) * 60 - 1, i64::from(minutes) * 60].map(|s| *t + SignedDuration::from_secs(s))
        });
        for at in edges.chain([now]) {
            let begun = walked.iter().copied().filter(|t| *t <= at && *t + window.duration() > at).max();
            prop_assert_eq!(window.open_at(at).map(|o| o.begins), begun, "{} in {} at {}", &text, name, at);
        }
    }

    #[test]
    fn nothing_that_is_written_panics(text in "[A-Z=;,0-9+-]{0,60}|FREQ=(DAILY|WEEKLY|MONTHLY|YEARLY)(;(BYDAY|BYHOUR|BYMONTHDAY|BYSETPOS|INTERVAL)=[-0-9A-Z,é]{0,8}){0,4}") {
        if let Ok(window) = Window::from_rule(&text, 60, Some(date(2026, 1, 5)), TimeZone::UTC) {
            let _ = window.next_after(at("2026-01-01T00:00:00Z"));
        }
        let _ = Window::simple(&text, &text, &text, &text);
    }
}

#[test]
fn what_is_written_is_a_rule_or_days_and_not_both() {
    let none = || Declared {
        rule: None,
        days: None,
        hour: None,
        minute: None,
        minutes: 60,
        start: None,
        zone: TimeZone::UTC,
    };
    let days = Window::from_declared(Declared { days: Some("Mon-Fri"), hour: Some(2), ..none() }).unwrap();
    assert_eq!(days, Window::simple("Mon-Fri", "2", "0", "60").unwrap());
    let zone = TimeZone::fixed(jiff::tz::offset(2));
    let there =
        Window::from_declared(Declared { days: Some("*"), hour: Some(2), zone: zone.clone(), ..none() })
            .unwrap();
    let begins = there.next_after("2026-01-01T12:00:00Z".parse().unwrap()).unwrap().begins;
    assert_eq!((begins.to_string().as_str(), there.zone()), ("2026-01-02T00:00:00Z", &zone));
    let rule = Some("FREQ=DAILY;BYHOUR=2");
    assert!(Window::from_declared(Declared { rule, ..none() }).is_ok());
    let start = "2026-01-01".parse().ok();
    for (bad, part) in [
        (none(), "window"),
        (Declared { rule, days: Some("*"), ..none() }, "window"),
        (Declared { rule, hour: Some(2), ..none() }, "rule"),
        (Declared { days: Some("*"), ..none() }, "hour"),
        (Declared { days: Some("*"), hour: Some(2), start, ..none() }, "start"),
        (Declared { days: Some("*"), hour: Some(24), ..none() }, "HOUR"),
        (Declared { rule, minutes: 0, ..none() }, "duration_minutes"),
    ] {
        assert_eq!(Window::from_declared(bad.clone()).unwrap_err().part(), part, "{bad:?}");
    }
}
