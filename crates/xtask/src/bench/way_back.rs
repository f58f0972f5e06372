//! What the way back costs before a change, and how soon there is a verdict after a crash.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use patch_types::{ChangeOptions, EventKind, JobId, Operation, Outcome, Phase, operation::Install};
use system_tests::{
    RootOptions,
    executor::{ExecutorIn, Seen},
    place::{self, Place},
};

use super::{
    numbers::{Samples, with_unit},
    stage,
    table::{Bound, Report},
};

/// What is installed again: packages of every Debian, with configuration files, scripts and many files.
const PACKAGES: [&str; 8] =
    ["bash", "coreutils", "libc-bin", "login", "perl-base", "sed", "tar", "util-linux"];

/// Measures with this program of the root side; `work` is on the machine's disk.
pub(super) fn measure(program: &Path, work: &Path, report: &mut Report, rounds: usize) -> Result<()> {
    report.section("The way back, the host on the machine's disk, archives in the cache");
    recording(program, work, report, rounds)?;
    report.section("The verdict after a crash, the host in memory");
    verdict(program, report, rounds)
}

/// When a phase began, in seconds after the first event.
fn phase(seen: &Seen, wanted: Phase) -> Result<f64> {
    let begun = seen.events.first().context("no events")?.at;
    let found =
        seen.events.iter().find(|e| matches!(&e.kind, EventKind::Phase { phase } if *phase == wanted));
    Ok((found.with_context(|| format!("the phase {wanted:?} never came"))?.at - begun)
        .total(jiff::Unit::Second)?)
}

fn whole(seen: &Seen) -> Result<f64> {
    let (first, last) = (seen.events.first().context("no events")?, seen.events.last().context("no events")?);
    Ok((last.at - first.at).total(jiff::Unit::Second)?)
}

fn recording(program: &Path, work: &Path, report: &mut Report, rounds: usize) -> Result<()> {
    let disk = work.join("root");
    std::fs::create_dir(&disk)?;
    let (root, _) = stage::debian_root(RootOptions::default().on_disk(&disk))?;
    let executor = ExecutorIn::start(&root, program)?;
    let packages = PACKAGES
        .iter()
        .map(|name| Ok(patch_types::operation::PackageSpec { name: name.parse()?, version: None }))
        .collect::<Result<Vec<_>>>()?;
    let again = Operation::Install(Install {
        packages,
        no_recommends: true,
        allow_downgrade: false,
        reinstall: true,
    });
    let (mut record, mut transaction, mut parts) = <(Samples, Samples, Samples)>::default();
    // The first round fetches.
    for round in 0..=rounds {
        let job = executor.change(again.clone(), ChangeOptions::default(), None)?;
        let seen = executor.follow(job)?;
        let ended = seen.ended().context("no end")?;
        ensure!(ended.outcome == Some(Outcome::Applied), "{ended:#?}\n{}", seen.log());
        let way_back = seen.way_back().context("no way back")?;
        if round == 0 {
            continue;
        }
        #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
        let took = way_back.recorded_in_ms as f64 / 1e3;
        let all = whole(&seen)?;
        record.push(took * 1e3);
        transaction.push(all * 1e3);
        parts.push(took / (all - took) * 100.0);
    }
    report.row(
        format!("recording it, {} packages of Debian", PACKAGES.len()),
        with_unit(record.median(), "ms"),
        format!("the whole job {}", with_unit(transaction.median(), "ms")),
        (parts.median(), "% more"),
        Bound::AtMost(10.0),
    );
    Ok(())
}

/// Ends everything at an instant and measures from the beginning of the recovery to the verdict.
fn after_crash(place: &Place, until: impl Fn(&Seen) -> bool) -> Result<(JobId, f64)> {
    let job = place.executor.change(place::update("lp-plain")?, ChangeOptions::default(), None)?;
    place.executor.follow_until(job, |seen| until(seen))?;
    place.executor.kill_everything()?;
    let begun = Instant::now();
    let recovery = place.executor.recover()?;
    let took = begun.elapsed();
    ensure!(recovery.success(), "the recovery ended with {}: {}", recovery.status, recovery.stderr);
    ensure!(place.executor.seen(job)?.ended().is_some(), "there is no verdict");
    Ok((job, took.as_secs_f64() * 1e3))
}

/// Tells when everything is to be killed.
type Moment<'a> = &'a dyn Fn(&Seen) -> bool;

fn verdict(program: &Path, report: &mut Report, rounds: usize) -> Result<()> {
    let place = || -> Result<Place> {
        let place = Place::with(RootOptions::default(), &["lp-plain"], program)?;
        place.day(1)?;
        Ok(place)
    };
    let mut undisturbed = Samples::default();
    for _ in 0..rounds.min(3) {
        let place = place()?;
        let (_, seen) = place.must(place::update("lp-plain")?, Outcome::Applied)?;
        undisturbed.push((phase(&seen, Phase::Verifying)? - phase(&seen, Phase::Applying)?) * 1e3);
    }
    let began = |wanted: Phase| {
        move |seen: &Seen| {
            seen.events.iter().any(|e| matches!(&e.kind, EventKind::Phase { phase } if *phase == wanted))
        }
    };
    let unpacking = |seen: &Seen| {
        seen.events.iter().any(|e| matches!(&e.kind, EventKind::Progress { package: Some(_), .. }))
    };
    let cases: [(&str, Moment<'_>); 3] = [
        ("before anything changed", &began(Phase::Snapshotting)),
        ("while dpkg works", &unpacking),
        ("after dpkg", &began(Phase::Verifying)),
    ];
    for (name, until) in cases {
        let mut samples = Samples::default();
        for _ in 0..rounds.min(5) {
            let place = place()?;
            samples.push(after_crash(&place, until)?.1);
        }
        let more =
            samples.median().zip(undisturbed.median()).map(|(took, dpkg)| (took - dpkg).max(0.0) / 1e3);
        report.row(
            format!("everything killed {name}: verdict, more than apt's own run"),
            with_unit(samples.median(), "ms"),
            format!("the apply phase undisturbed {}", with_unit(undisturbed.median(), "ms")),
            (more, "s"),
            Bound::AtMost(2.0),
        );
    }
    Ok(())
}
