//! Rehearsals of random plans, each of which is then carried out: do they say the same?
//!
//! A round makes packages whose scripts fail in a random position, or in none, beside those of the test repository; draws
//! a change; rehearses it and nothing else, and looks whether the root is as it was; then makes the same change without
//! a rehearsal. Everything that a round decides comes from the seed and its number.

mod compare;
mod made;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use patch_types::{ChangeOptions, EventKind, OnFailure, Operation, RehearsalReport, Rehearse, Unrehearsed};

use crate::chaos::{FAILING, NEW, POOL, Random, change, prepare, side_by_side};
use crate::executor::{Refusal, Seen};
use crate::place::{self, Place};
use crate::untouched::Untouched;

use compare::{Said, differ};
use made::Made;

/// How much, and from which seed.
#[derive(Debug, Clone)]
pub struct Options {
    /// What all decisions come from.
    pub seed: u64,
    /// The first round: not 0 in order to run one again.
    pub first: u32,
    /// How many plans.
    pub plans: u32,
    /// No round begins after this time, unless none has shown anything yet.
    pub limit: Duration,
}

/// Of so many plans some go well and some fail.
const MANY: u32 = 50;

/// On a slow machine rounds begin until one has shown something, but not after so many times the time that there is.
const PATIENCE: u32 = 5;

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Plans that were rehearsed and carried out.
    pub compared: u32,
    /// Those of them that went well in both.
    pub well: u32,
    /// By what the rehearsal said first: those that failed in both, in the same package and script.
    pub foreseen: BTreeMap<&'static str, u32>,
    /// Changes that both refused before anything was tried.
    pub refused: u32,
    /// Where the two do not say the same: seed, round and all that is known.
    pub disagreements: Vec<String>,
    /// What else must not be: a root that a rehearsal touched, a change that does not end.
    pub failures: Vec<String>,
    /// How long it took.
    pub duration: Duration,
}

impl Report {
    /// In how many of a hundred plans both said the same.
    #[must_use]
    pub fn agreement(&self) -> f64 {
        let differing = u32::try_from(self.disagreements.len()).unwrap_or(u32::MAX);
        100.0 * f64::from(self.compared.saturating_sub(differing)) / f64::from(self.compared.max(1))
    }

    /// Whether what is promised of rehearsals holds, shown by so many plans at least.
    #[must_use]
    pub fn is_good(&self, least: u32) -> bool {
        self.shows_enough(least)
            && self.failures.is_empty()
            && (self.disagreements.is_empty() || self.agreement() >= 99.0)
    }

    /// Whether so many plans were compared; among many there are some that go well and some that fail.
    #[must_use]
    pub fn shows_enough(&self, least: u32) -> bool {
        let is_mixed = self.compared < MANY || (self.well > 0 && self.failed() > 0);
        self.compared >= least.max(1) && is_mixed
    }

    /// The plans that failed in both.
    #[must_use]
    pub fn failed(&self) -> u32 {
        self.foreseen.values().sum()
    }

    /// What happened, in a few lines.
    #[must_use]
    pub fn summary(&self) -> String {
        let kinds: Vec<String> =
            self.foreseen.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        format!(
            "seed {}: {} plans rehearsed and made, {} well, {} failing as foreseen ({}), {} disagreements ({:.1} % agree); \
             {} more were refused by both; {} failures, {:.0} s",
            self.seed,
            self.compared,
            self.well,
            self.failed(),
            kinds.join(", "),
            self.disagreements.len(),
            self.agreement(),
            self.refused,
            self.failures.len(),
            self.duration.as_secs_f64()
        )
    }

    fn count(&mut self, round: u32, outcome: Result<Round>) {
        let again = format!("seed {} round {round}", self.seed);
        let round = match outcome {
            Ok(round) => round,
            Err(error) => {
                let story: Vec<String> = error.chain().map(ToString::to_string).collect();
                let text = format!("FAILED {again}: {}", story.join("\n"));
                eprintln!("{text}\n");
                self.failures.push(text);
                return;
            }
        };
        let was_tried = matches!(round.rehearsed, Said::Well | Said::Fails(_));
        if let Some(why) = &round.differs {
            self.compared += 1;
            let text = format!("DISAGREE {again}: {why}\n{}", round.story);
            eprintln!("{text}\n");
            self.disagreements.push(text);
        } else if was_tried {
            self.compared += 1;
            match round.rehearsed {
                Said::Fails(failed) => *self.foreseen.entry(failed.kind).or_default() += 1,
                _ => self.well += 1,
            }
        } else {
            self.refused += 1;
        }
    }
}

impl Options {
    /// How many plans have to be compared, in so long a time: half of those asked for, or one where the time was over before.
    #[must_use]
    pub fn least(&self, duration: Duration) -> u32 {
        if duration >= self.limit { 1 } else { self.plans.div_ceil(2) }
    }
}

/// What both said in one round.
struct Round {
    rehearsed: Said,
    /// In what they differ.
    differs: Option<String>,
    story: String,
}

/// Runs rounds until so many plans were compared, or the time is over; several at a time.
#[must_use]
pub fn run(options: &Options) -> Report {
    let begun = Instant::now();
    let report = Mutex::new(Report { seed: options.seed, ..Report::default() });
    let locked = || report.lock().unwrap_or_else(PoisonError::into_inner);
    // A change that is refused at once shows nothing; another one is drawn for it.
    let goes_on = || {
        let report = locked();
        let is_late = begun.elapsed() >= options.limit;
        let is_bare = report.compared == 0 && report.failures.is_empty();
        let has_patience = is_bare && begun.elapsed() < options.limit.saturating_mul(PATIENCE);
        report.compared < options.plans && (!is_late || has_patience)
    };
    let most = options.plans.saturating_mul(3);
    side_by_side(options.first, most, goes_on, |number| {
        let outcome = round(options.seed, number);
        locked().count(number, outcome);
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.duration = begun.elapsed();
    report
}

/// How many of a hundred rounds have a disk that is nearly full.
const FULL_DISKS: u64 = 12;

fn round(seed: u64, number: u32) -> Result<Round> {
    let mut random = Random::of(seed ^ 0x7265_6865_6172, number);
    let made = Made::draw(&mut random);
    let mut installed = random.some(POOL, 10);
    if random.happens(30) {
        installed.push(*random.pick(FAILING).context("nothing to pick")?);
        if installed.contains(&"lp-trigger") {
            installed.push("lp-watcher");
        }
    }
    installed.push("lp-bulk-10");
    installed.sort_unstable();
    installed.dedup();
    let place = Place::new(&installed)?;
    made.install(&place)?;
    prepare(&place, &mut random, &installed)?;
    made.arm(&place, &mut random)?;
    let operation = draw(&place, &mut random, &installed, &made)?;
    let left = random.happens(FULL_DISKS).then(|| random.below(24 << 20));
    let story = format!("{operation:?}, room {left:?}, installed {installed:?}, {}", made.story());
    both(&place, &operation, left).with_context(|| story.clone()).map(|mut round| {
        round.story = format!("{story}\n{}", round.story);
        round
    })
}

fn draw(place: &Place, random: &mut Random, installed: &[&str], made: &Made) -> Result<Operation> {
    let all: Vec<&str> = installed.iter().copied().chain(made.installed()).collect();
    // More often than not it is about those that were made for this round.
    let one = if random.happens(75) { random.pick(&made.installed()).copied() } else { None };
    let one = one.or_else(|| random.pick(installed).copied()).context("nothing is installed")?;
    match random.below(12) {
        // Down, or to a version by its name.
        10 => {
            let down = made.downgrades();
            let some = random.some(&down.iter().map(String::as_str).collect::<Vec<_>>(), 60);
            place::install(if some.is_empty() { &["lp-bulk-22"] } else { &some })
        }
        11 => place::apply(&random.some(&all, 60)),
        kind @ (4..=6) => {
            // Several new ones.
            let new: Vec<&str> = made.others().into_iter().chain(NEW.iter().copied()).collect();
            let some = random.some(&new, if kind == 4 { 20 } else { 40 });
            place::install(if some.is_empty() { &["lp-bulk-23"] } else { &some })
        }
        kind => change(place, random, kind, one, &all, &made.others()),
    }
}

/// The rehearsal alone, then the change alone, in the same root.
fn both(place: &Place, operation: &Operation, left: Option<u64>) -> Result<Round> {
    let before = place.state()?;
    let root = Untouched::of(&place.root)?;
    if let Some(left) = left {
        place.root.fill_disk(left)?;
    }
    let options = ChangeOptions {
        on_failure: OnFailure::Keep,
        rehearse: Some(Rehearse { only: true, otherwise: Unrehearsed::Refuse }),
        ..ChangeOptions::default()
    };
    let (seen, rehearsed) = ask(place, operation, options, |seen| Said::rehearsed(seen, report_in(seen)))?;
    if left.is_some() {
        place.root.free_disk()?;
    }
    let story = || seen.as_ref().map(Seen::log).unwrap_or_default();
    before.assert_same(&place.state()?).context("the rehearsal changed the host").with_context(story)?;
    root.assert_untouched(&place.root).context("the rehearsal touched the host").with_context(story)?;
    if let Some(left) = left {
        place.root.fill_disk(left)?;
    }
    let options = ChangeOptions { on_failure: OnFailure::Keep, ..ChangeOptions::default() };
    let (real, made) = ask(place, operation, options, Said::made)?;
    if left.is_some() {
        place.root.free_disk()?;
    }
    place.executor.assert_no_panic()?;
    let differs = differ(&rehearsed, &made);
    let report = seen.as_ref().and_then(report_in);
    let story = format!(
        "rehearsed {rehearsed:?}\nmade {made:?}\n{report:#?}\n--- rehearsed\n{}\n--- made\n{:#?}\n{}",
        story(),
        real.as_ref().and_then(Seen::ended),
        real.as_ref().map(Seen::log).unwrap_or_default()
    );
    Ok(Round { rehearsed, differs, story })
}

/// Asks for a change; one that is refused by name has said something as well.
fn ask(
    place: &Place,
    operation: &Operation,
    options: ChangeOptions,
    said: impl Fn(&Seen) -> Result<Said>,
) -> Result<(Option<Seen>, Said)> {
    match place.executor.run_with(operation.clone(), options) {
        Ok(seen) => {
            let said = said(&seen).with_context(|| seen.log())?;
            Ok((Some(seen), said))
        }
        Err(error) => match error.downcast::<Refusal>() {
            Ok(refusal) => Ok((None, Said::Refused(refusal.code))),
            Err(error) => Err(error),
        },
    }
}

fn report_in(seen: &Seen) -> Option<&RehearsalReport> {
    seen.events.iter().rev().find_map(|event| match &event.kind {
        EventKind::Rehearsed { report } => Some(report),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(compared: u32, well: u32, failed: u32) -> Report {
        Report { compared, well, foreseen: [("postinst", failed)].into(), ..Report::default() }
    }

    #[test]
    fn a_run_that_compared_too_little_is_not_good() {
        assert!(!Report::default().is_good(0), "nothing shows nothing");
        assert!(!Report { refused: 48, ..Report::default() }.is_good(1));
        assert!(report(1, 1, 0).is_good(1) && !report(4, 3, 1).is_good(5) && report(5, 3, 2).is_good(5));
        assert!(
            !report(50, 50, 0).is_good(1) && !report(60, 0, 60).is_good(1) && report(60, 59, 1).is_good(1)
        );
    }

    #[test]
    fn one_disagreement_in_a_hundred_is_allowed_and_no_failure() {
        let differing =
            |compared| Report { disagreements: vec![String::new()], ..report(compared, compared - 2, 1) };
        assert!(differing(100).is_good(50) && !differing(99).is_good(50));
        assert!(!Report { failures: vec![String::new()], ..report(10, 5, 5) }.is_good(5));
    }

    #[test]
    fn half_of_the_plans_are_asked_for_in_time() {
        let options = Options { seed: 1, first: 0, plans: 15, limit: Duration::from_secs(80) };
        assert_eq!((options.least(Duration::from_secs(79)), options.least(Duration::from_secs(80))), (8, 1));
    }
}
