//! Chaos: random changes, interrupted in random ways, and the proof that each one ended truthfully.
//!
//! Everything that a round decides comes from the seed and the round's number before the round begins. What the kernel
//! schedules does not, so a round that is run again breaks at the same point only nearly.

mod hosts;
mod judge;
mod roots;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

pub use judge::{Case, judge, settle};
pub(crate) use roots::{FAILING, NEW, POOL, change, prepare};
pub use roots::{mutate, round};

/// How much, and from which seed.
#[derive(Debug, Clone)]
pub struct Options {
    /// What all decisions come from.
    pub seed: u64,
    /// The first round: not 0 in order to run one again.
    pub first: u32,
    /// How many rounds in throw-away roots.
    pub rounds: u32,
    /// How many rounds on a real host.
    pub hosts: u32,
    /// No round begins after this time.
    pub limit: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Rounds in roots that were run.
    pub rounds: u32,
    /// Rounds on a host that were run.
    pub hosts: u32,
    /// By kind of fault: how many rounds, and how many failed.
    pub faults: BTreeMap<String, (u32, u32)>,
    /// What failed: seed, round, and all that is known.
    pub failures: Vec<String>,
    /// How long it took.
    pub duration: Duration,
}

impl Report {
    fn count(&mut self, fault: &str, round: &str, outcome: Result<()>) {
        let (runs, failed) = self.faults.entry(fault.to_owned()).or_default();
        *runs += 1;
        if let Err(error) = outcome {
            *failed += 1;
            // Without the calls that led there: it is the host's story that tells what went wrong.
            let story: Vec<String> = error.chain().map(ToString::to_string).collect();
            let text = format!("FAILED seed {} {round}, {fault}: {}", self.seed, story.join("\n"));
            eprintln!("{text}\n");
            self.failures.push(text);
        }
    }

    /// The summary: one line a fault, and one for all.
    #[must_use]
    pub fn summary(&self) -> String {
        let lines = self
            .faults
            .iter()
            .map(|(fault, (runs, failed))| format!("{fault:<28} {runs:>6} rounds {failed:>4} failed\n"));
        let lines: String = lines.collect();
        format!(
            "{lines}seed {}: {} rounds in roots, {} on hosts, {} failed, {:.0} s",
            self.seed,
            self.rounds,
            self.hosts,
            self.failures.len(),
            self.duration.as_secs_f64()
        )
    }
}

/// Runs rounds: in as many roots at a time as there are processors, and on a host beside them. A round that fails does
/// not stop the others.
#[must_use]
pub fn run(options: &Options) -> Report {
    let begun = Instant::now();
    let report = Mutex::new(Report { seed: options.seed, ..Report::default() });
    let locked = || report.lock().unwrap_or_else(PoisonError::into_inner);
    let in_time = || begun.elapsed() < options.limit;
    thread::scope(|scope| {
        scope.spawn(|| {
            side_by_side(options.first, options.rounds, in_time, |number| {
                let (fault, outcome) = round(options.seed, number);
                let mut report = locked();
                report.rounds += 1;
                report.count(&fault, &format!("round {number}"), outcome);
            });
        });
        hosts::run(options, in_time, |fault, number, outcome| {
            let mut report = locked();
            report.hosts += 1;
            report.count(fault, &format!("host round {number}"), outcome);
        });
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.duration = begun.elapsed();
    report
}

/// Runs numbered rounds, as many at a time as there are processors, as long as there is time.
pub(crate) fn side_by_side(
    first: u32,
    count: u32,
    in_time: impl Fn() -> bool + Sync,
    round: impl Fn(u32) + Sync,
) {
    let last = first.saturating_add(count);
    let next = AtomicU32::new(first);
    let rounds = || {
        while in_time() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= last {
                break;
            }
            round(number);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(rounds);
        }
    });
}

/// Numbers that look random and come from a seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Those of one round.
    #[must_use]
    pub fn of(seed: u64, round: u32) -> Self {
        let mut random = Self(seed ^ u64::from(round).wrapping_mul(0xd134_2543_de82_ef95));
        random.number();
        random
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of 0 to `below` - 1; 0 if there is none.
    pub fn below(&mut self, below: u64) -> u64 {
        if below == 0 { 0 } else { self.number() % below }
    }

    /// Whether it happens, that many times out of a hundred.
    pub fn happens(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them, or none if there are none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let index = self.below(from.len() as u64);
        from.get(usize::try_from(index).unwrap_or_default())
    }

    /// Some of them, each with that chance, in their order.
    pub fn some<'a, T: ?Sized>(&mut self, from: &[&'a T], percent: u64) -> Vec<&'a T> {
        from.iter().copied().filter(|_| self.happens(percent)).collect()
    }

    /// A time up to `most`.
    pub fn time(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(most.as_micros()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_decides_the_same_each_time_and_rounds_differ() {
        let first = |seed, round| Random::of(seed, round).number();
        assert_eq!(first(7, 3), first(7, 3));
        assert!(first(7, 3) != first(7, 4) && first(7, 3) != first(8, 3));
        let mut random = Random::of(1, 1);
        assert!((0..1000).all(|_| random.below(10) < 10));
        assert_eq!(random.pick::<u8>(&[]), None);
    }
}
