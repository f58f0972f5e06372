//! Files of the root side that are broken, and system calls that fail: it ends, it does not panic, it claims nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use patch_types::{ChangeOptions, JobId, OnFailure, Outcome};
use system_tests::chaos::{Random, mutate, settle};
use system_tests::place::{self, Place};
use system_tests::state::HostState;
use system_tests::trials::trial;

/// How many mutants of its files one run of the recovery meets side by side, and how many runs there are.
const SIDE_BY_SIDE: u32 = 500;
const RUNS: u32 = 20;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("ten_thousand_mutants_of_state_files_are_survived", ten_thousand_mutants_are_survived),
        trial(
            "a_mutant_of_an_interrupted_change_is_never_forgotten",
            a_mutant_of_an_interrupted_change_is_kept,
        ),
    ];
    for (call, error) in CALLS {
        let name = format!("every_failing_{}_by_{error}_is_handled", call.split(',').next().unwrap_or(call));
        trials.push(trial(&name, || every_failing_call_is_handled(call, error)));
    }
    trials
}

/// All files below a directory, and their bytes.
fn files(directory: &Path) -> Result<Vec<(std::path::PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("{}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.is_file() {
            let bytes = fs::read(&path)?;
            found.push((path, bytes));
        }
    }
    found.sort();
    Ok(found)
}

/// Journals to be mutated: of a change that was killed while it changed packages, of one that ended, and of one that was
/// killed while it planned.
fn journals(place: &Place) -> Result<Vec<JobId>> {
    let (ended, _) = place.must(place::update("lp-plain")?, Outcome::Applied)?;
    let planning = place.executor.change(place::update("lp-conf")?, ChangeOptions::default(), None)?;
    place.executor.kill_everything()?;
    place.root.push("600\n", "/run/lp-slow-seconds", "644")?;
    let applying = place.executor.change(place::update("lp-slow")?, ChangeOptions::default(), None)?;
    let mark = place.root.path().join("run/lp-slow-started");
    place.executor.follow_until(applying, |_| mark.exists())?;
    place.executor.kill_everything()?;
    place.root.push("", "/run/lp-slow-go", "644")?;
    Ok(vec![ended, planning, applying])
}

fn ten_thousand_mutants_are_survived() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-conf", "lp-slow"])?;
    let templates = journals(&place)?;
    let state = place.executor.state_directory();
    let (journal, events) = (state.join("journal"), state.join("events"));
    let mut parts = Vec::new();
    for job in &templates {
        let directory = journal.join(job.to_string());
        parts.push((
            files(&directory)?,
            directory,
            fs::read(place.executor.event_file(*job)).unwrap_or_default(),
        ));
    }
    settle(&place.executor, templates.last().copied().context("no job")?)?;
    let before = place.state()?;
    let mut random = Random::of(0x6d75_7461_6e74, 0);
    for run in 0..RUNS {
        let mut made = BTreeSet::new();
        for _ in 0..SIDE_BY_SIDE {
            // Those of a change that was cut off in the middle make the recovery work on packages: a few are enough.
            let usual = parts.get(..parts.len() - 1).filter(|_| !random.happens(1)).unwrap_or(&parts);
            let (files, directory, seen) = random.pick(usual).context("no journals")?;
            let id = JobId(uuid::Uuid::now_v7());
            let new = journal.join(id.to_string());
            let victim = random.below(files.len() as u64 + 1);
            for (number, (path, bytes)) in (0..).zip(files) {
                let path = new.join(path.strip_prefix(directory)?);
                fs::create_dir_all(path.parent().context("no parent")?)?;
                // The id within stays that of the template in some, which is a mutant as well.
                let text = String::from_utf8_lossy(bytes);
                let own = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let bytes = if random.happens(90) {
                    text.replace(&own, &id.to_string()).into_bytes()
                } else {
                    bytes.clone()
                };
                fs::write(&path, if number == victim { mutate(&mut random, &bytes) } else { bytes })?;
            }
            let file = events.join(format!("{id}.jsonl"));
            let bytes = if victim == files.len() as u64 { mutate(&mut random, seen) } else { seen.clone() };
            if !random.happens(5) {
                fs::write(file, bytes)?;
            }
            made.insert(id);
        }
        let output = place.executor.recover().with_context(|| format!("run {run}"))?;
        // Told, and never by a panic or a signal.
        ensure!(output.code().is_some() && !output.stderr.contains("panicked"), "run {run}: {output:?}");
        let after = place.state()?;
        after.assert_in_order().with_context(|| format!("run {run}"))?;
        let strange: Vec<String> =
            before.diff(&after).into_iter().filter(|line| !line.contains("lp-slow")).collect();
        ensure!(strange.is_empty(), "run {run}: {strange:#?}");
        // Nothing is lost silently: each one has an end, or what it was is still there and somebody was told.
        for id in &made {
            let seen = place.executor.seen(*id);
            let is_told = seen.as_ref().is_ok_and(|seen| seen.ended().is_some());
            let is_kept = fs::read_dir(&journal)?
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().contains(&id.to_string()))
                || fs::read_dir(&state)?
                    .flatten()
                    .filter(|entry| entry.path().is_dir())
                    .any(|entry| entry.path().join(id.to_string()).exists());
            ensure!(is_told || is_kept, "run {run}: {id} is gone without an end");
            ensure!(
                is_told || output.stderr.contains(&id.to_string()) || output.stdout.contains(&id.to_string()),
                "run {run}: nothing is said of {id}, which has no end: {output:?}"
            );
        }
        let removed = place.executor.guest().shell(
            "rm -rf /var/lib/linux_patch_executor/events/* /var/lib/linux_patch_executor/journal/????????-*",
        );
        removed.with_context(|| format!("run {run}"))?;
    }
    place.must(place::install(&["lp-bulk-40"])?, Outcome::Applied)?;
    place.executor.assert_no_panic()
}

fn a_mutant_of_an_interrupted_change_is_kept() -> Result<()> {
    let mut random = Random::of(0x6b65_7074, 0);
    for number in 0..12 {
        let place = Place::on_day1(&["lp-app", "lp-special", "lp-large"])?;
        let job = place.executor.change(place::apply(&[])?, ChangeOptions::default(), None)?;
        place.executor.follow_until(job, |seen| seen.log().contains("Unpacking"))?;
        place.executor.kill_everything()?;
        let directory = place.executor.state_directory().join("journal").join(job.to_string());
        let all = files(&directory)?;
        let (path, bytes) = random.pick(&all).context("no files")?;
        fs::write(path, mutate(&mut random, bytes))?;
        let context = || format!("mutant {number}, of {}", path.display());
        for _ in 0..3 {
            let output = place.executor.recover().with_context(context)?;
            ensure!(
                output.code().is_some() && !output.stderr.contains("panicked"),
                "{}: {output:?}",
                context()
            );
        }
        let seen = place.executor.seen(job)?;
        let after = place.state()?;
        // It may not be able to go on; then it says so and does not claim success.
        match seen.ended().and_then(|ended| ended.outcome) {
            Some(Outcome::Applied) => {
                after.assert_in_order().with_context(context)?;
                ensure!(after.version("lp-large") == Some("1.1"), "{}", context());
            }
            Some(Outcome::RolledBack | Outcome::Unchanged) => {
                after.assert_in_order().with_context(context)?;
                ensure!(after.version("lp-large") == Some("1.0"), "{}", context());
            }
            Some(Outcome::Partial | Outcome::RollbackFailed) => {}
            None => ensure!(
                directory.exists() || place.executor.remarks().contains(&job.to_string()),
                "{}",
                context()
            ),
        }
    }
    Ok(())
}

/// What strace is told to let fail, and with what. Those by which the root side keeps its state.
const CALLS: &[(&str, &str)] = &[
    ("write", "ENOSPC"),
    ("write", "EIO"),
    ("fsync", "EIO"),
    ("rename,renameat,renameat2", "ENOSPC"),
    ("mkdir,mkdirat", "ENOSPC"),
    ("openat", "EIO"),
];

/// The calls are far more than can be tried one by one in every run of the tests: every one of the first, then ever larger
/// steps. With `LINUX_PATCH_EXHAUSTIVE` set it is every one.
fn next(when: u32) -> u32 {
    let every = when < 6 || std::env::var_os("LINUX_PATCH_EXHAUSTIVE").is_some();
    if every { when + 1 } else { when * 2 - 1 }
}

fn every_failing_call_is_handled(call: &str, error: &str) -> Result<()> {
    let mut when = 1;
    loop {
        let context = || format!("{call}:error={error}:when={when}");
        let clean = one_failing_call(call, error, when).with_context(context)?;
        if clean || when > 4000 {
            return Ok(());
        }
        when = next(when);
    }
}

/// Gives whether no call failed any more, since there are not that many.
fn one_failing_call(call: &str, error: &str, when: u32) -> Result<bool> {
    let mut place = Place::on_day1(&["lp-plain", "lp-conf"])?;
    push_strace(&place)?;
    place.executor.kill_listener()?;
    let inject = format!("inject={call}:error={error}:when={when}");
    let trace = format!("trace={call}");
    // Only the root side's own calls: what it starts is let go when it becomes another program.
    let strace =
        ["/opt/strace/run", "-f", "-b", "execve", "-qq", "-o", "/run/strace", "-e", &trace, "-e", &inject];
    place.executor.listen(&strace)?;
    let before = place.state()?;
    let options = ChangeOptions { on_failure: OnFailure::All, ..ChangeOptions::default() };
    let job = place.executor.change(place::apply(&[])?, options, None);
    let outcome = match &job {
        Ok(job) => wait_quietly(&place, *job)?,
        // Refused or closed: nothing is begun, or it is there to be settled.
        Err(_) => None,
    };
    let injected = place.root.read_text("/run/strace").unwrap_or_default().contains("(INJECTED)");
    // As after a restart, without faults.
    place.executor.kill_everything()?;
    place.executor.kill_listener().unwrap_or_default();
    place.executor.listen(&[])?;
    let outcome = match (&job, outcome) {
        (Ok(job), None) => settle(&place.executor, *job)?.ended().and_then(|ended| ended.outcome),
        (_, outcome) => outcome,
    };
    ensure!(place.executor.recover()?.success());
    true_to(outcome, &before, &place.state()?)?;
    place.executor.assert_no_panic()?;
    Ok(!injected)
}

fn true_to(outcome: Option<Outcome>, before: &HostState, after: &HostState) -> Result<()> {
    after.assert_in_order()?;
    match outcome {
        Some(Outcome::Applied) => ensure!(
            after.version("lp-plain") == Some("1.1-1") && after.version("lp-conf") == Some("1.1"),
            "claims to be applied: {:#?}",
            before.diff(after)
        ),
        Some(Outcome::RolledBack | Outcome::Unchanged) => before.assert_same(after)?,
        Some(outcome) => anyhow::bail!("{outcome}"),
        None => {}
    }
    Ok(())
}

/// How it ended, or none if its process died or gave up before.
fn wait_quietly(place: &Place, job: JobId) -> Result<Option<Outcome>> {
    let seen = place.executor.follow_until(job, |seen| seen.ended().is_some());
    Ok(seen.ok().and_then(|seen| seen.ended().and_then(|ended| ended.outcome)))
}

/// The machine's strace with all that it is linked to: the base has none.
fn push_strace(place: &Place) -> Result<()> {
    const PROGRAM: &str = "/usr/bin/strace";
    ensure!(Path::new(PROGRAM).exists(), "strace is not installed: apt-get install strace");
    let linked = std::process::Command::new("ldd").arg(PROGRAM).output().context("cannot start ldd")?;
    place.root.push_file(Path::new(PROGRAM), "/opt/strace/strace", "755")?;
    let text = String::from_utf8(linked.stdout)?;
    for path in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = Path::new(path).file_name().context("no name")?.to_string_lossy().into_owned();
        place.root.push_file(Path::new(path), &format!("/opt/strace/{name}"), "755")?;
    }
    let run = "#!/bin/sh\nexec /opt/strace/ld-linux-x86-64.so.2 --library-path /opt/strace /opt/strace/strace \"$@\"\n";
    place.root.push(run, "/opt/strace/run", "755")
}
