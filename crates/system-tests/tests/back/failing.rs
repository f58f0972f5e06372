//! Every maintainer script failing in its position, for each way of dealing with it.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use patch_types::{ChangeOptions, EventKind, JobStatus, OnFailure, Outcome};
use system_tests::place::{self, Place};
use system_tests::trials::trial;

/// The package that fails, and where.
const CASES: &[(&str, &str)] = &[
    ("lp-prefail", "preinst"),
    ("lp-postfail", "postinst"),
    ("lp-prermfail", "prerm"),
    ("lp-postrmfail", "postrm"),
    ("lp-trigger", "trigger"),
];

/// What succeeds beside it; two of them can only move together.
const OTHERS: &[(&str, &str, &str)] = &[
    ("lp-plain", "1.0-1", "1.1-1"),
    ("lp-lib", "1.0", "1.1"),
    ("lp-app", "1.0", "1.1"),
    ("lp-bulk-00", "1.0", "1.1"),
];

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (package, position) in CASES {
        let name = |rest: &str| format!("a_failing_{position}_{rest}");
        if *package == "lp-trigger" {
            // Somebody who is not in the plan suffers, so nobody can say which group did it.
            trials.push(trial(&name("takes_everything_back"), || all(package, OnFailure::Group)));
        } else {
            trials.push(trial(&name("takes_its_group_back"), || group(package)));
        }
        trials.push(trial(&name("takes_everything_back_if_asked"), || all(package, OnFailure::All)));
        trials.push(trial(&name("leaves_the_rest_if_asked"), || keep(package)));
    }
    trials.push(trial("what_dpkg_never_began_keeps_its_marks", what_dpkg_never_began_keeps_its_marks));
    trials.push(trial("a_failing_removal_is_taken_back", a_failing_removal_is_taken_back));
    trials.push(trial("a_failing_installation_is_taken_back", a_failing_installation_is_taken_back));
    trials.push(trial("a_group_goes_back_together", a_group_goes_back_together));
    trials.push(trial("what_is_kept_lacks_no_dependency", what_is_kept_lacks_no_dependency));
    trials.push(trial("what_is_kept_blocks_no_later_change", what_is_kept_blocks_no_later_change));
    trials.push(trial(
        "nothing_goes_back_by_itself_if_that_is_off",
        nothing_goes_back_by_itself_if_that_is_off,
    ));
    trials
}

/// apt has written already that what it was named is wanted.
fn what_dpkg_never_began_keeps_its_marks() -> Result<()> {
    // One of them is as new as can be, and so in no plan.
    let named = ["lp-tools", "lp-giver", "lp-bulk-20"];
    let place = Place::on_day1(&["lp-tools", "lp-giver"])?;
    place.root.exec_ok(&["apt-mark", "auto", "lp-tools", "lp-giver"])?;
    let before = place.state()?;
    place.root.push("pre-invoke=exit 1\n", "/etc/dpkg/dpkg.cfg.d/never", "644")?;
    let job = place.executor.change(place::install(&named)?, ChangeOptions::default(), None)?;
    let seen = place.executor.follow(job)?;
    place.root.shell("rm /etc/dpkg/dpkg.cfg.d/never")?;
    ensure!(seen.ended().context("no end")?.outcome == Some(Outcome::Unchanged), "{}", seen.log());
    before.assert_same(&place.state()?).with_context(|| seen.log())?;
    let (_, seen) = place.must(place::install(&named)?, Outcome::Applied)?;
    let manual = place.root.exec_ok(&["apt-mark", "showmanual"])?;
    for name in named {
        ensure!(manual.lines().any(|line| line == name), "{name} is wanted: {manual}{}", seen.log());
    }
    Ok(())
}

fn boot(package: &str) -> Result<Place> {
    let mut installed: Vec<&str> = OTHERS.iter().map(|(name, ..)| *name).collect();
    installed.push(package);
    if package == "lp-trigger" {
        installed.push("lp-watcher");
    }
    let place = Place::on_day1(&installed)?;
    place.root.exec_ok(&["apt-mark", "auto", "lp-lib"])?;
    Ok(place)
}

fn options(on_failure: OnFailure) -> ChangeOptions {
    ChangeOptions { on_failure, ..ChangeOptions::default() }
}

fn group(package: &str) -> Result<()> {
    let place = boot(package)?;
    let before = place.state()?;
    let job = place.executor.change(place::apply(&[])?, options(OnFailure::Group), None)?;
    let seen = place.ends(job, Outcome::Partial)?;
    let ended = seen.ended().context("no end")?;
    ensure!(ended.status == JobStatus::Failed && ended.error.is_some(), "{ended:#?}");
    let after = place.state()?;
    after.assert_in_order().with_context(|| seen.log())?;
    for (name, _, new) in OTHERS {
        ensure!(
            after.version(name) == Some(new),
            "{name} is {:?}: {ended:#?}\n{}",
            after.version(name),
            seen.log()
        );
    }
    ensure!(after.version(package) == Some("1.0"), "{package} is {:?}", after.version(package));
    // Of all others every fact is as it was.
    let strange: Vec<String> = before
        .diff(&after)
        .into_iter()
        .filter(|line| !OTHERS.iter().any(|(name, ..)| line.contains(name)))
        .collect();
    ensure!(strange.is_empty(), "{strange:#?}");
    ensure!(after.is_auto("lp-lib"));
    for result in &ended.results {
        let failed = result.name.as_str() == package;
        ensure!(result.done != failed, "{result:#?}");
        ensure!(!failed || result.reason.is_some(), "{result:#?}");
    }
    // On request the rest goes back as well.
    place.take_back(job, &before).map(drop)
}

fn all(package: &str, on_failure: OnFailure) -> Result<()> {
    let place = boot(package)?;
    let before = place.state()?;
    let job = place.executor.change(place::apply(&[])?, options(on_failure), None)?;
    let seen = place.ends(job, Outcome::RolledBack)?;
    let ended = seen.ended().context("no end")?;
    ensure!(ended.status == JobStatus::Failed, "{ended:#?}");
    before.assert_same(&place.state()?).with_context(|| seen.log())?;
    ensure!(ended.results.iter().all(|result| !result.done), "{ended:#?}");
    let report = seen.went_back().context("no report")?;
    ensure!(!report.reason.is_empty() && report.left.is_empty(), "{report:#?}");
    Ok(())
}

fn keep(package: &str) -> Result<()> {
    let place = boot(package)?;
    let job = place.executor.change(place::apply(&[])?, options(OnFailure::Keep), None)?;
    let seen = place.ends(job, Outcome::Partial)?;
    let ended = seen.ended().context("no end")?;
    ensure!(ended.status == JobStatus::Failed, "{ended:#?}");
    let after = place.state()?;
    for (name, old, new) in OTHERS {
        let version = after.version(name);
        // What apt had not begun when it stopped stays old.
        ensure!(version == Some(new) || version == Some(old), "{name} is {version:?}: {ended:#?}");
        let result =
            ended.results.iter().find(|result| result.name.as_str() == *name).context("no result")?;
        ensure!(result.done == (version == Some(new)), "{result:#?}, but it is {version:?}");
    }
    ensure!(seen.went_back().is_none_or(|report| report.restored.is_empty()), "{:#?}", seen.went_back());
    Ok(())
}

/// apt is killed between two packages that can only move together: what failed was to be kept, but not what would keep
/// every later change away.
fn what_is_kept_lacks_no_dependency() -> Result<()> {
    for step in 1..=6 {
        let place = Place::on_day1(&["lp-app", "lp-plain"])?;
        let job = place.executor.change(place::apply(&[])?, options(OnFailure::Keep), None)?;
        place.executor.follow_until(job, |seen| {
            let is_step = |kind: &EventKind| matches!(kind, EventKind::Progress { package: Some(_), .. });
            seen.ended().is_some() || seen.events.iter().filter(|event| is_step(&event.kind)).count() >= step
        })?;
        place.executor.kill_all(&["apt-get"])?;
        let seen = place.executor.ended(job)?;
        let check = place.root.exec(&["apt-get", "-qq", "check"])?;
        ensure!(check.success(), "killed at step {step}: {}{}\n{seen:#?}", check.stdout, check.stderr);
        place
            .must(place::install(&["lp-bulk-40"])?, Outcome::Applied)
            .with_context(|| format!("after apt was killed at step {step}: {seen:#?}"))?;
    }
    Ok(())
}

/// apt removes a half-removed package again in every later run, whose script would fail again.
fn what_is_kept_blocks_no_later_change() -> Result<()> {
    let place = Place::on_day1(&["lp-postrmfail", "lp-postfail"])?;
    let before = place.state()?;
    for operation in [place::remove("lp-postrmfail")?, place::purge("lp-postrmfail")?] {
        let job = place.executor.change(operation, options(OnFailure::Keep), None)?;
        let seen = place.ends(job, Outcome::RolledBack)?;
        ensure!(seen.log().contains("would block later changes (every later run"), "{}", seen.log());
        before.assert_same(&place.state()?).with_context(|| seen.log())?;
    }
    // One that is half-configured blocks nothing, and stays.
    let job = place.executor.change(place::update("lp-postfail")?, options(OnFailure::Keep), None)?;
    place.ends(job, Outcome::Partial)?;
    place.must(place::install(&["lp-bulk-40"])?, Outcome::Applied).map(drop)
}

fn a_failing_removal_is_taken_back() -> Result<()> {
    for package in ["lp-prermfail", "lp-postrmfail"] {
        let place = Place::on_day1(&[package, "lp-plain"])?;
        let before = place.state()?;
        for operation in [place::remove(package)?, place::purge(package)?] {
            place.must(operation, Outcome::RolledBack)?;
            before.assert_same(&place.state()?).context(package)?;
        }
    }
    Ok(())
}

fn a_failing_installation_is_taken_back() -> Result<()> {
    let place = Place::on_day1(&[])?;
    let before = place.state()?;
    let job =
        place.executor.change(place::install(&["lp-newfail", "lp-app"])?, options(OnFailure::All), None)?;
    place.ends(job, Outcome::RolledBack)?;
    before.assert_same(&place.state()?)
}

fn a_group_goes_back_together() -> Result<()> {
    // A user that can only be configured with the library of its own version.
    let place = Place::on_day1(&["lp-app", "lp-conf", "lp-postfail"])?;
    place.root.push("mine\n", "/etc/lp-conf.conf", "600")?;
    let job = place.executor.change(place::apply(&[])?, options(OnFailure::Group), None)?;
    place.ends(job, Outcome::Partial)?;
    let after = place.state()?;
    after.assert_in_order()?;
    ensure!(after.version("lp-app") == after.version("lp-lib"));
    ensure!(place.root.read_text("/etc/lp-conf.conf")? == "mine\n");
    Ok(())
}

fn nothing_goes_back_by_itself_if_that_is_off() -> Result<()> {
    let place = boot("lp-postfail")?;
    place.configure("config.yaml", "rollback:\n  auto: false\n")?;
    let before = place.state()?;
    let job = place.executor.change(place::apply(&[])?, options(OnFailure::Group), None)?;
    place.ends(job, Outcome::Partial)?;
    ensure!(place.state()?.version("lp-postfail").is_none(), "it went back by itself");
    // A person can.
    place.take_back(job, &before).map(drop)
}
