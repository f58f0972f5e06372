//! Rounds in throw-away roots: everything that needs no booted host.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use patch_types::{ChangeOptions, EventKind, Grade, JobId, OnFailure, Operation, Outcome, Rehearse};

use super::Random;
use super::judge::{Case, judge, settle};
use crate::executor::{ExecutorIn, LIMIT, Refusal, Seen};
use crate::place::{self, Place};
use crate::wait;

/// What may be installed before a round. Those that fail in their update are among them.
pub(crate) const POOL: &[&str] = &[
    "lp-plain",
    "lp-lib",
    "lp-app",
    "lp-conf",
    "lp-goneconf",
    "lp-gone",
    "lp-special",
    "lp-move-a",
    "lp-move-b",
    "lp-giver",
    "lp-breaks",
    "lp-victim",
    "lp-newdep",
    "lp-fixed",
    "lp-tools",
    "lp-epoch",
    "lp-held",
    "lp-large",
    "lp-watcher",
    "lp-bulk-00",
    "lp-bulk-01",
    "lp-bulk-02",
    "lp-bulk-03",
    "lp-bulk-04",
    "lp-bulk-05",
    "lp-bulk-06",
];

/// Those whose scripts fail somewhere, and those that make somebody else's fail.
pub(crate) const FAILING: &[&str] =
    &["lp-postfail", "lp-prefail", "lp-prermfail", "lp-postrmfail", "lp-badprerm", "lp-trigger", "lp-fixed"];

/// What may be installed by a round.
pub(crate) const NEW: &[&str] = &[
    "lp-taker",
    "lp-newdep",
    "lp-app",
    "lp-needs-virtual",
    "lp-conf",
    "lp-tools",
    "lp-bulk-20",
    "lp-bulk-21",
    "lp-newfail",
];

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    KillExecutor,
    KillApt,
    KillDpkg,
    KillEverything,
    /// Everything, and then so many recoveries.
    KillRecovery(u64),
    /// So many bytes are left.
    FullDisk(u64),
    RepositoryGone,
    RepositoryCorrupt,
    LockHeld(Duration),
    FailingScript,
    CorruptState,
    /// The root side's clock is set, by so many seconds, and everything is killed.
    ClockJump(i64),
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::KillExecutor => "kill executor",
            Self::KillApt => "kill apt",
            Self::KillDpkg => "kill dpkg",
            Self::KillEverything => "kill everything",
            Self::KillRecovery(_) => "kill recovery",
            Self::FullDisk(_) => "full disk",
            Self::RepositoryGone => "repository gone",
            Self::RepositoryCorrupt => "repository corrupt",
            Self::LockHeld(_) => "lock held",
            Self::FailingScript => "failing script",
            Self::CorruptState => "corrupt state of an old job",
            Self::ClockJump(_) => "clock jump",
        }
    }

    fn draw(random: &mut Random) -> Self {
        match random.below(26) {
            0 => Self::Nothing,
            1..=3 => Self::KillExecutor,
            4..=6 => Self::KillApt,
            7..=9 => Self::KillDpkg,
            10..=12 => Self::KillEverything,
            13..=15 => Self::KillRecovery(1 + random.below(5)),
            16..=17 => Self::FullDisk(random.below(40) * random.below(1 << 20)),
            18 => Self::RepositoryGone,
            19 => Self::RepositoryCorrupt,
            20 => Self::LockHeld(random.time(Duration::from_secs(2))),
            21..=22 => Self::FailingScript,
            23 => Self::CorruptState,
            _ => {
                const YEAR: i64 = 365 * 24 * 3600;
                let jumps = [-20 * YEAR, -YEAR, -3600, -1, 1, 3600, YEAR, 10 * YEAR];
                Self::ClockJump(random.pick(&jumps).copied().unwrap_or(YEAR))
            }
        }
    }
}

/// When it goes wrong.
#[derive(Debug, Clone, Copy)]
enum When {
    /// So long after the change was accepted.
    After(Duration),
    /// When so many steps of dpkg were reported.
    Step(u64),
    /// When so many phases have begun.
    Phase(u64),
}

impl When {
    fn draw(random: &mut Random) -> Self {
        match random.below(3) {
            0 => Self::After(random.time(Duration::from_millis(2500))),
            1 => Self::Step(1 + random.below(25)),
            _ => Self::Phase(1 + random.below(5)),
        }
    }

    fn wait(self, executor: &ExecutorIn, job: JobId) -> Result<()> {
        match self {
            Self::After(time) => {
                wait::until_every(Duration::from_millis(1), "an instant", LIMIT, passed(time))?;
            }
            Self::Step(count) => {
                executor.follow_until(job, |seen| {
                    let steps = seen
                        .events
                        .iter()
                        .filter(|event| matches!(&event.kind, EventKind::Progress { package: Some(_), .. }));
                    steps.count() as u64 >= count
                })?;
            }
            Self::Phase(count) => {
                executor.follow_until(job, |seen| {
                    let phases =
                        seen.events.iter().filter(|event| matches!(event.kind, EventKind::Phase { .. }));
                    phases.count() as u64 >= count
                })?;
            }
        }
        Ok(())
    }
}

/// A condition that holds when some time has passed.
fn passed(time: Duration) -> impl FnMut() -> Result<Option<()>> {
    let begun = std::time::Instant::now();
    move || Ok((begun.elapsed() >= time).then_some(()))
}

/// Runs one round; gives the kind of its fault and whether all was as it must be.
pub fn round(seed: u64, number: u32) -> (String, Result<()>) {
    let mut random = Random::of(seed, number);
    let fault = Fault::draw(&mut random);
    let outcome = run(&mut random, fault);
    (fault.name().to_owned(), outcome)
}

fn run(random: &mut Random, fault: Fault) -> Result<()> {
    let when = When::draw(random);
    let on_failure =
        *random.pick(&[OnFailure::Group, OnFailure::All, OnFailure::Keep]).context("nothing to pick")?;
    let mut installed = random.some(POOL, 35);
    if fault == Fault::FailingScript {
        installed.push(*random.pick(FAILING).context("nothing to pick")?);
        if installed.contains(&"lp-trigger") {
            installed.push("lp-watcher");
        }
    }
    installed.push("lp-bulk-10");
    installed.sort_unstable();
    installed.dedup();
    let mut place = Place::new(&installed)?;
    if matches!(fault, Fault::ClockJump(_)) {
        place.executor.give_clock()?;
    }
    prepare(&place, random, &installed)?;
    let (operation, is_rollback) = draw_operation(&place, random, &installed, fault)?;
    let story = format!("{operation:?}, {on_failure:?}, {fault:?} at {when:?}, installed {installed:?}");
    interrupt(&place, random, fault, when, on_failure, operation, is_rollback).with_context(|| story)
}

/// Marks, holds and edits, and the next day.
pub(crate) fn prepare(place: &Place, random: &mut Random, installed: &[&str]) -> Result<()> {
    let auto = random.some(installed, 25);
    if !auto.is_empty() {
        place.root.exec_ok(&[&["/usr/bin/apt-mark", "auto"], auto.as_slice()].concat())?;
    }
    let held = random.some(installed, 8);
    if !held.is_empty() {
        place.root.exec_ok(&[&["/usr/bin/apt-mark", "hold"], held.as_slice()].concat())?;
    }
    for package in ["lp-conf", "lp-goneconf"] {
        if installed.contains(&package) && random.happens(60) {
            let file = format!("/etc/{package}.conf");
            place.root.push("mine\n", &file, random.pick(&["600", "640", "644"]).context("no mode")?)?;
        }
    }
    place.day(1)
}

fn draw_operation(
    place: &Place,
    random: &mut Random,
    installed: &[&str],
    fault: Fault,
) -> Result<(Operation, bool)> {
    let one = *random.pick(installed).context("nothing is installed")?;
    if fault == Fault::FailingScript {
        let failing = installed.iter().find(|name| FAILING.contains(name)).copied().unwrap_or(one);
        let operation = match random.below(3) {
            0 => place::update(failing)?,
            1 => place::remove(failing)?,
            _ => place::apply(&[])?,
        };
        return Ok((operation, false));
    }
    Ok(match random.below(10) {
        5 | 6 => {
            let first = if random.happens(50) {
                place::apply(&[])?
            } else {
                place::install(&["lp-taker", "lp-newdep"])?
            };
            let job = place.executor.change(first, ChangeOptions::default(), None)?;
            let outcome = place.executor.ended(job)?.outcome;
            if matches!(outcome, Some(Outcome::Applied | Outcome::Partial)) {
                (place::rollback(job), true)
            } else {
                (place::remove(one)?, false)
            }
        }
        kind => (change(place, random, kind, one, installed, NEW)?, false),
    })
}

/// A change that is no taking back, by its kind: of `one` of what is installed, of all, or of what is new.
pub(crate) fn change(
    place: &Place,
    random: &mut Random,
    kind: u64,
    one: &str,
    installed: &[&str],
    new: &[&str],
) -> Result<Operation> {
    Ok(match kind {
        0 => place::update(one)?,
        1 => place::remove(one)?,
        2 => place::purge(one)?,
        3 => {
            let new = random.some(new, 30);
            place::install(if new.is_empty() { &["lp-bulk-22"] } else { &new })?
        }
        4 => {
            // Down again from where it was brought without a fault.
            place.executor.run(place::update("lp-bulk-10")?)?;
            place::install(&["lp-bulk-10=1.0"])?
        }
        7 => place::apply(&random.some(installed, 40))?,
        _ => place::apply(&[])?,
    })
}

fn interrupt(
    place: &Place,
    random: &mut Random,
    fault: Fault,
    when: When,
    on_failure: OnFailure,
    operation: Operation,
    is_rollback: bool,
) -> Result<()> {
    let executor = &place.executor;
    let mut lock = None;
    let mut kept = None;
    match fault {
        Fault::CorruptState => corrupt_an_ended_job(place, random)?,
        Fault::LockHeld(_) => lock = Some(place.hold_lock()?),
        _ => {}
    }
    let before = place.state()?;
    let can_be_rehearsed = !matches!(operation, Operation::Hold(_) | Operation::Rollback(_));
    let rehearse = (can_be_rehearsed && random.happens(25)).then(Rehearse::default);
    let options = ChangeOptions { on_failure, rehearse, ..ChangeOptions::default() };
    let wanted: Vec<String> = match &operation {
        Operation::Install(install) => {
            install.packages.iter().map(|spec| spec.name.name().to_owned()).collect()
        }
        _ => Vec::new(),
    };
    let job = match executor.change(operation, options, None) {
        Ok(job) => job,
        // Refused by name is an honest end, if nothing has changed.
        Err(error) if error.downcast_ref::<Refusal>().is_some() => {
            before.assert_same(&place.state()?).context("refused, and something changed")?;
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    match fault {
        Fault::Nothing | Fault::FailingScript | Fault::CorruptState => {}
        Fault::LockHeld(time) => {
            wait::until_every(Duration::from_millis(1), "an instant", LIMIT, passed(time))?;
        }
        _ => when.wait(executor, job)?,
    }
    match fault {
        Fault::Nothing | Fault::FailingScript | Fault::CorruptState | Fault::LockHeld(_) => {}
        Fault::KillExecutor => drop(executor.kill_all(&["patch-executor"])?),
        Fault::KillApt => drop(executor.kill_all(&["apt-get"])?),
        Fault::KillDpkg => drop(executor.kill_all(&["dpkg"])?),
        Fault::KillEverything | Fault::KillRecovery(_) => executor.kill_everything()?,
        // Half of them go on, the others have to be taken up at the other time.
        Fault::ClockJump(offset) => {
            executor.set_clock(offset)?;
            if random.happens(50) {
                executor.kill_everything()?;
            }
        }
        Fault::FullDisk(left) => place.root.fill_disk(left)?,
        Fault::RepositoryGone => {
            kept = Some(std::fs::read_link(place.repository.path().join("current"))?);
            std::fs::remove_file(place.repository.path().join("current"))?;
        }
        Fault::RepositoryCorrupt => corrupt_repository(place)?,
    }
    if let Some(mut lock) = lock {
        // Its end is the end of what it reads.
        drop(lock.stdin.take());
        lock.wait()?;
    }
    if let Fault::KillRecovery(times) = fault {
        for _ in 0..times {
            let mut recovery = executor.start_recover()?;
            let time = random.time(Duration::from_millis(800));
            let ended =
                wait::until_every(Duration::from_millis(1), "an instant", time, || Ok(recovery.try_wait()?));
            executor.kill_everything()?;
            if ended.is_err() {
                recovery.wait()?;
            }
        }
    }
    let seen = settle(executor, job)?;
    if let Some(state) = kept {
        place.repository.publish(&state.to_string_lossy())?;
    }
    let ended = seen.ended().context("no end")?;
    let after = place.state();
    if matches!(fault, Fault::FullDisk(_)) {
        place.root.free_disk()?;
    }
    let after = after.or_else(|_| place.state())?;
    let case = Case {
        before: &before,
        after: &after,
        plan: seen.plan(),
        ended,
        on_failure,
        is_rollback,
        rebuilt: rebuilt(&seen),
        marked: if seen.log().contains("it is marked as wanted now") { wanted } else { Vec::new() },
    };
    judge(&place.root, &case).with_context(|| {
        format!("{:#?}\n--- log\n{}\n--- remarks\n{}", seen.went_back(), seen.log(), executor.remarks())
    })?;
    executor.assert_no_panic()?;
    // Nothing is left to do, and a plain change works.
    let again = executor.recover()?;
    ensure!(again.success(), "a recovery with nothing to do ended with {}: {}", again.status, again.stderr);
    after.assert_same(&place.state()?).context("a recovery with nothing to do changed something")?;
    if fault == Fault::RepositoryCorrupt {
        return Ok(());
    }
    place.must(place::install(&["lp-bulk-40"])?, Outcome::Applied).context("the change that follows")?;
    Ok(())
}

/// The packages that can only be taken back by an archive that was made of their files.
fn rebuilt(seen: &Seen) -> Vec<&str> {
    let packages = seen.way_back().map(|way_back| way_back.packages.as_slice()).unwrap_or_default();
    packages.iter().filter(|one| one.grade == Grade::Rebuilt).map(|one| one.name.as_str()).collect()
}

/// Every archive of the updates becomes noise; the files are shared, so they are replaced.
fn corrupt_repository(place: &Place) -> Result<()> {
    let pool = place.repository.path().join("day1/pool");
    for suite in std::fs::read_dir(pool)?.flatten() {
        for deb in std::fs::read_dir(suite.path())?.flatten() {
            let length = deb.metadata()?.len();
            std::fs::remove_file(deb.path())?;
            std::fs::write(deb.path(), vec![0x5a; usize::try_from(length)?])?;
        }
    }
    Ok(())
}

/// A job that is over long since, whose state nobody can read any more.
fn corrupt_an_ended_job(place: &Place, random: &mut Random) -> Result<()> {
    let (job, _) = place.must(place::install(&["lp-bulk-30"])?, Outcome::Applied)?;
    let state = place.executor.state_directory().join("journal").join(job.to_string()).join("state.json");
    let bytes = std::fs::read(&state).with_context(|| format!("{} is not there", state.display()))?;
    std::fs::write(&state, mutate(random, &bytes))?;
    Ok(())
}

/// The same bytes with something wrong: cut off, overwritten, doubled or gone.
#[must_use]
pub fn mutate(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = usize::try_from(random.below(bytes.len() as u64)).unwrap_or_default();
    match random.below(6) {
        0 => bytes.truncate(at),
        1 => bytes.clear(),
        2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        3 => bytes.iter_mut().skip(at).take(64).for_each(|byte| *byte = 0),
        4 => bytes.extend_from_within(at..),
        _ => {
            let noise: Vec<u8> = (0..16).map(|_| random.number().to_le_bytes()[0]).collect();
            bytes.splice(at..at, noise);
        }
    }
    bytes
}
