//! What happens in a week: all of it comes from the seed.

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};

use super::Options;
use crate::chaos::Random;
use crate::repository::Kind;

/// What is special of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    Nothing,
    /// It asks for a reboot.
    Reboot,
    /// Its script fails.
    Fails,
    /// Its package is held.
    Held,
}

/// An update.
#[derive(Debug, Clone)]
pub(super) struct Update {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) at: Timestamp,
    pub(super) special: Special,
}

/// What else happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// All updates of a suite that are due are published.
    Publish(Kind),
    RepositoryGone,
    RepositoryBack,
    Off,
    On,
    /// From now on mails and webhooks are refused.
    Refuse,
    Take,
    /// The daemon is killed in its next run.
    Kill,
}

/// A week.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) begins: Timestamp,
    pub(super) ends: Timestamp,
    pub(super) updates: Vec<Update>,
    /// In their order.
    pub(super) events: Vec<(Timestamp, Event)>,
}

/// When the reboot window opens each day, and for how long.
pub(super) const WINDOW: (i8, i8, i64) = (4, 15, 60);

impl Plan {
    pub(super) fn draw(options: &Options) -> Self {
        let mut random = Random::of(options.seed, 0);
        // A midnight, so that the same seed makes the same week. Files must be old enough to be told from those of the machine's own time.
        let soon = Timestamp::now() + SignedDuration::from_hours(2);
        let begins = midnight(soon) + SignedDuration::from_hours(24);
        let minutes = i64::from(options.days) * 24 * 60;
        let minute = |part: i64| begins + SignedDuration::from_mins(part);
        let within = |random: &mut Random, from: i64, to: i64| {
            minute(from) + SignedDuration::from_secs(draw(random, (to - from) * 60))
        };
        let mut updates = Vec::new();
        let mut at = begins;
        for number in 0..options.updates {
            // Several come together now and then.
            if number == 0 || !random.happens(25) {
                at = within(&mut random, 60, minutes);
            }
            let name = format!("lp-week-{number:02}");
            updates.push(Update { name, kind: Kind::Security, at, special: Special::Nothing });
        }
        let mut left: Vec<usize> = (0..updates.len()).collect();
        for special in [Special::Reboot, Special::Reboot, Special::Fails, Special::Held] {
            if left.is_empty() {
                break;
            }
            let index = usize::try_from(random.below(left.len() as u64)).unwrap_or_default();
            if let Some(update) = updates.get_mut(left.swap_remove(index)) {
                update.special = special;
            }
        }
        for number in 0..options.updates.div_ceil(4) {
            let name = format!("lp-usual-{number:02}");
            let at = within(&mut random, 60, minutes);
            updates.push(Update { name, kind: Kind::Updates, at, special: Special::Nothing });
        }
        let mut events: Vec<(Timestamp, Event)> =
            updates.iter().map(|update| (update.at, Event::Publish(update.kind))).collect();
        events.sort_by_key(|(at, _)| *at);
        events.dedup();
        // Not at the same time: nobody could keep the promise then.
        let mut span = |from: i64, to: i64, hours: i64, first, last| {
            let at = within(&mut random, minutes * from / 100, minutes * to / 100);
            let ends = at + SignedDuration::from_mins(hours * 60 + draw(&mut random, 5 * 60));
            events.extend([(at, first), (ends, last)]);
        };
        span(10, 20, 2, Event::Refuse, Event::Take);
        span(28, 40, 4, Event::Off, Event::On);
        span(65, 75, 3, Event::RepositoryGone, Event::RepositoryBack);
        events.push((within(&mut random, minutes * 50 / 100, minutes * 55 / 100), Event::Kill));
        events.sort_by_key(|(at, _)| *at);
        let ends = minute(minutes) + SignedDuration::from_hours(36);
        Self { begins, ends, updates, events }
    }

    /// The next time after one that the reboot window is of interest: before it opens, while it is open, when it has closed.
    pub(super) fn next_of_window(after: Timestamp, is_required: bool) -> Timestamp {
        let (hour, minute, long) = WINDOW;
        let opens = i64::from(hour) * 60 + i64::from(minute);
        let often: Vec<i64> = (1..long / 5).map(|number| number * 5).collect();
        let marks = if is_required { often } else { vec![5] };
        let marks = [&[-5][..], &marks, &[long + 5]].concat();
        let day = midnight(after);
        let at = |day: i64, mark: i64| day * 24 * 60 + opens + mark;
        let mut all = (0..2).flat_map(|number| marks.iter().map(move |mark| at(number, *mark)));
        all.find_map(|minutes| {
            let at = day + SignedDuration::from_mins(minutes);
            (at > after).then_some(at)
        })
        .unwrap_or(after + SignedDuration::from_hours(24))
    }

    /// Whether the reboot window is open.
    pub(super) fn is_open(at: Timestamp) -> bool {
        let (hour, minute, long) = WINDOW;
        let opens = midnight(at) + SignedDuration::from_mins(i64::from(hour) * 60 + i64::from(minute));
        opens <= at && at < opens + SignedDuration::from_mins(long)
    }
}

fn draw(random: &mut Random, below: i64) -> i64 {
    i64::try_from(random.below(u64::try_from(below).unwrap_or(1))).unwrap_or_default()
}

fn midnight(at: Timestamp) -> Timestamp {
    let date: Date = at.to_zoned(TimeZone::UTC).date();
    date.to_zoned(TimeZone::UTC).map_or(at, |day| day.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_week_and_all_weeks_have_everything() {
        for seed in 0..200 {
            for options in [Options::week(seed), Options::sample(seed)] {
                let plan = Plan::draw(&options);
                let again = Plan::draw(&options);
                assert_eq!((&plan.events, plan.ends), (&again.events, again.ends));
                assert!(plan.events.is_sorted_by_key(|(at, _)| *at));
                assert!(plan.events.iter().all(|(at, _)| plan.begins < *at && *at < plan.ends));
                let count = |special| plan.updates.iter().filter(|update| update.special == special).count();
                assert_eq!((count(Special::Reboot), count(Special::Fails), count(Special::Held)), (2, 1, 1));
                let at = |event| plan.events.iter().find(|(_, other)| *other == event).map(|(at, _)| *at);
                assert!(at(Event::Take) < at(Event::Off) || options.days < 7);
                assert!(at(Event::On) < at(Event::RepositoryGone));
            }
        }
    }

    #[test]
    fn the_window_is_looked_at_before_in_and_after() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let next = |text, is_required| Plan::next_of_window(at(text), is_required);
        assert_eq!(next("2026-01-01T00:00:00Z", false), at("2026-01-01T04:10:00Z"));
        assert_eq!(next("2026-01-01T04:10:00Z", false), at("2026-01-01T04:20:00Z"));
        assert_eq!(next("2026-01-01T04:20:00Z", true), at("2026-01-01T04:25:00Z"));
        assert_eq!(next("2026-01-01T04:20:01Z", false), at("2026-01-01T05:20:00Z"));
        assert_eq!(next("2026-01-01T05:20:00Z", true), at("2026-01-02T04:10:00Z"));
        assert!(Plan::is_open(at("2026-01-01T04:15:00Z")) && !Plan::is_open(at("2026-01-01T05:15:00Z")));
    }
}
