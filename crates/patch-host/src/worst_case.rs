//! How long it takes at worst from a fix being published to its being installed, by apt's timers and its settings.
//!
//! What the mirror, the download and the installation take comes on top; a host that is switched off makes it up when it is
//! started, since the timers are persistent.

/// Minutes of a day.
const DAY: u64 = 24 * 60;

/// What systemd adds to every start, by `AccuracySec`'s default.
const ACCURACY: u64 = 1;

/// How apt holds its daily jobs back (`APT::Periodic::…`), besides the timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interval {
    /// It does not run.
    Never,
    /// Whenever the timer says.
    Always,
    /// When the calendar shows so many days more than the last time.
    Days(u64),
}

impl Interval {
    /// As apt writes it: `always`, or a number with `d`, `h`, `m` or `s`; without one it means days. Anything else counts as
    /// 0. Whatever the unit, apt compares midnights: `6h` means the next day, as `1` does.
    pub(crate) fn parse(text: &str) -> Self {
        if text == "always" {
            return Self::Always;
        }
        let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
            Some(at) => text.split_at(at),
            None => (text, "d"),
        };
        let a_day = match unit {
            "s" => 86_400,
            "m" => DAY,
            "h" => 24,
            "d" => 1,
            _ => return Self::Never,
        };
        match number.parse::<u64>() {
            Ok(number @ 1..) => Self::Days(number.div_ceil(a_day)),
            _ => Self::Never,
        }
    }
}

/// One of the two steps: fetching the lists, or installing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// When the timer starts it: minutes of the day, in order.
    pub(crate) starts: Vec<u64>,
    /// By how many minutes the timer may be late on purpose.
    pub(crate) jitter: u64,
    /// How apt holds it back.
    pub(crate) interval: Interval,
}

/// The worst case, in minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorstCase {
    /// Until the lists are fetched that know of the fix.
    pub(crate) lists: u64,
    /// From then until it is installed.
    pub(crate) upgrade: u64,
}

impl WorstCase {
    /// Both together.
    pub(crate) fn total(self) -> u64 {
        self.lists.saturating_add(self.upgrade)
    }
}

impl Step {
    fn late(&self) -> u64 {
        self.jitter.saturating_add(ACCURACY)
    }

    /// Whether its last start of a day can be late until the next.
    fn crosses_midnight(&self) -> bool {
        self.starts.last().is_some_and(|last| last.saturating_add(self.late()) >= DAY)
    }

    /// The minutes of a day at which a fix can be published for the worst: just after the lists were fetched.
    fn missed(&self) -> impl Iterator<Item = u64> {
        let midnight = matches!(self.interval, Interval::Days(_)) && self.crosses_midnight();
        self.starts.iter().copied().chain(midnight.then_some(0))
    }

    /// The first start later than a minute, counted from the midnight that minutes are counted from.
    fn next(&self, after: u64) -> Option<u64> {
        let (day, minute) = (after / DAY, after % DAY);
        match self.starts.iter().find(|start| **start > minute) {
            Some(start) => Some(day * DAY + start),
            None => Some((day + 1) * DAY + self.starts.first()?),
        }
    }

    /// When the lists are fetched at the latest, if they were fetched at a start just before a fix was published.
    fn fetched(&self, last: u64) -> Option<u64> {
        let first = *self.starts.first()?;
        Some(match self.interval {
            Interval::Never => return None,
            Interval::Always => self.next(last)?.saturating_add(self.late()),
            // The last start of a day can be as early as it likes: it is held back. The first of the new day counts.
            Interval::Days(days) => {
                let day = (last / DAY).saturating_add(days).saturating_mul(DAY);
                day.saturating_add(first).saturating_add(self.late())
            }
        })
    }

    /// When a fix is installed at the latest of which the lists were known at a minute.
    fn installed(&self, known: u64) -> Option<u64> {
        let first = *self.starts.first()?;
        Some(match self.interval {
            Interval::Never => return None,
            // A start that is due may have come a moment before.
            Interval::Always => self.next(known)?.saturating_add(self.late()),
            Interval::Days(days) => {
                let day = known / DAY;
                let is_used = first <= known % DAY || self.crosses_midnight();
                let wait = if is_used { days } else { days.saturating_sub(1) };
                let day = day.saturating_add(wait).saturating_mul(DAY);
                day.saturating_add(first).saturating_add(self.late())
            }
        })
    }
}

/// The worst case of fetching and installing; none if one of them never happens.
pub(crate) fn worst_case(lists: &Step, upgrade: &Step) -> Option<WorstCase> {
    let cases = lists.missed().filter_map(|published| {
        let fetched = lists.fetched(published)?;
        let installed = upgrade.installed(fetched)?;
        Some(WorstCase { lists: fetched - published, upgrade: installed - fetched })
    });
    cases.max_by_key(|case| case.total())
}

/// Minutes as people say them: `8 h 32 min`.
pub(crate) fn duration(minutes: u64) -> String {
    match (minutes / 60, minutes % 60) {
        (0, minutes) => format!("{minutes} min"),
        (hours, 0) => format!("{hours} h"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(starts: &[u64], jitter: u64, interval: Interval) -> Step {
        Step { starts: starts.to_vec(), jitter, interval }
    }

    #[test]
    fn debians_own_timers_need_more_than_two_days() {
        let lists = step(&[6 * 60, 18 * 60], 12 * 60, Interval::Days(1));
        let upgrade = step(&[6 * 60], 60, Interval::Days(1));
        let case = worst_case(&lists, &upgrade).unwrap();
        // The lists were fetched at midnight, by the timer of 18:00; then at 18:00 of the next day, by that of 6:00, an hour
        // at the least after that day's installing.
        assert_eq!(case, WorstCase { lists: 42 * 60 + 1, upgrade: 13 * 60 });
        assert_eq!(case.total(), 55 * 60 + 1);
        let lists = step(&[6 * 60], 60, Interval::Days(1));
        assert_eq!(worst_case(&lists, &upgrade).unwrap().total(), 48 * 60 + 61);
    }

    #[test]
    fn four_times_a_day_keeps_the_promise() {
        let lists = step(&[0, 6 * 60, 12 * 60, 18 * 60], 60, Interval::Always);
        let upgrade = step(&[90, 450, 810, 1170], 60, Interval::Always);
        let case = worst_case(&lists, &upgrade).unwrap();
        assert_eq!(case.total(), 8 * 60 + 31);
        assert_eq!(duration(case.total()), "8 h 31 min");
    }

    #[test]
    fn what_never_runs_has_no_worst_case() {
        let always = step(&[0], 0, Interval::Always);
        for never in [step(&[], 0, Interval::Always), step(&[0], 0, Interval::Never)] {
            assert_eq!(worst_case(&always, &never), None);
            assert_eq!(worst_case(&never, &always), None);
        }
    }

    #[test]
    fn intervals_are_understood_as_apt_does() {
        for (text, interval) in [
            ("always", Interval::Always),
            ("0", Interval::Never),
            ("", Interval::Never),
            ("no", Interval::Never),
            ("1", Interval::Days(1)),
            ("7d", Interval::Days(7)),
            ("6h", Interval::Days(1)),
            ("90m", Interval::Days(1)),
            ("25h", Interval::Days(2)),
            ("172800s", Interval::Days(2)),
            ("1w", Interval::Never),
        ] {
            assert_eq!(Interval::parse(text), interval, "{text}");
        }
    }

    proptest! {
        /// Whatever the timers do within their freedom, no fix waits longer than is said.
        #[test]
        fn no_run_is_later_than_promised(
            list_starts in prop::collection::btree_set(0..DAY, 1..5),
            upgrade_starts in prop::collection::btree_set(0..DAY, 1..5),
            jitters in (0..720_u64, 0..720_u64),
            daily in (any::<bool>(), any::<bool>()),
            published in 0..DAY,
            luck in prop::collection::vec(0..=100_u64, 80),
        ) {
            let interval = |daily| if daily { Interval::Days(1) } else { Interval::Always };
            let lists = step(&list_starts.into_iter().collect::<Vec<_>>(), jitters.0, interval(daily.0));
            let upgrade = step(&upgrade_starts.into_iter().collect::<Vec<_>>(), jitters.1, interval(daily.1));
            let promised = worst_case(&lists, &upgrade).unwrap().total();
            let published = published + 2 * DAY;
            let fetched = runs(&lists, &luck).into_iter().find(|at| *at >= published).unwrap();
            let installed = runs(&upgrade, luck.get(40..).unwrap()).into_iter().find(|at| *at >= fetched).unwrap();
            prop_assert!(installed - published <= promised, "{} > {promised}", installed - published);
        }
    }

    /// The minutes at which a step really runs in some days.
    fn runs(step: &Step, luck: &[u64]) -> Vec<u64> {
        let mut runs: Vec<u64> = Vec::new();
        let mut luck = luck.iter().cycle();
        let mut base = step.starts.first().copied().unwrap();
        while base < 8 * DAY {
            let at = base + step.jitter * luck.next().unwrap() / 100;
            let is_due = match (step.interval, runs.last()) {
                (Interval::Days(days), Some(last)) => at / DAY >= last / DAY + days,
                _ => true,
            };
            if is_due {
                runs.push(at);
            }
            base = step.next(at.max(base)).unwrap();
        }
        runs
    }
}
