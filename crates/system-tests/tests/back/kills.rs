//! Everything killed in each phase and at steps of dpkg, and in the recovery itself.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use patch_types::{ChangeOptions, EventKind, JobId, OnFailure, Operation, Outcome, Phase};
use system_tests::chaos::{Case, judge, settle};
use system_tests::executor::{LIMIT, Seen};
use system_tests::place::{self, Place};
use system_tests::trials::trial;

const INSTALLED: &[&str] =
    &["lp-app", "lp-conf", "lp-move-a", "lp-move-b", "lp-newdep", "lp-special", "lp-bulk-00"];

const PHASES: &[Phase] =
    &[Phase::Planning, Phase::Downloading, Phase::Snapshotting, Phase::Applying, Phase::Verifying];

const STEPS: &[usize] = &[1, 3, 6, 10, 15, 21, 28];

type Ask = fn() -> Result<Operation>;

pub(crate) fn trials() -> Vec<Trial> {
    let asked: [(&str, Ask); 4] = [
        ("an_upgrade", || place::apply(&[])),
        ("an_install", || place::install(&["lp-tools", "lp-taker"])),
        ("a_removal", || place::remove("lp-lib")),
        ("a_purge", || place::purge("lp-conf")),
    ];
    let mut trials = Vec::new();
    for (name, operation) in asked {
        trials.push(trial(&format!("{name}_killed_in_each_phase_is_settled"), move || {
            in_each_phase(operation)
        }));
        trials
            .push(trial(&format!("{name}_killed_at_steps_of_dpkg_is_settled"), move || at_steps(operation)));
    }
    trials.push(trial("going_back_killed_is_settled", going_back_killed_is_settled));
    trials.push(trial(
        "a_recovery_that_is_killed_again_and_again_ends",
        a_recovery_killed_again_and_again_ends,
    ));
    trials.push(trial(
        "a_recovery_with_nothing_to_do_does_nothing",
        a_recovery_with_nothing_to_do_does_nothing,
    ));
    trials.push(trial("a_boot_loop_does_not_keep_what_nobody_confirmed", a_boot_loop_keeps_nothing));
    trials.push(trial("a_dpkg_that_outlives_apt_is_waited_for", a_dpkg_that_outlives_apt_is_waited_for));
    trials.push(trial("a_dpkg_that_dies_when_it_is_done_leaves_nothing", a_dpkg_that_dies_when_it_is_done));
    trials.push(trial(
        "policy_rc_d_comes_back_however_the_change_ends",
        policy_rc_d_comes_back_however_the_change_ends,
    ));
    trials.push(trial("a_stranger_with_the_event_file_holds_nothing_up", a_stranger_holds_nothing_up));
    trials
}

/// Only apt is killed, as for want of memory; dpkg and the script that it runs go on.
fn a_dpkg_that_outlives_apt_is_waited_for() -> Result<()> {
    let place = Place::on_day1(&["lp-slow"])?;
    place.root.push("60", "/run/lp-slow-seconds", "644")?;
    let job = place.executor.change(place::update("lp-slow")?, ChangeOptions::default(), None)?;
    let started = place.root.path().join("run/lp-slow-started");
    system_tests::wait::until("the script", LIMIT, || Ok(started.exists().then_some(())))?;
    place.executor.kill_all(&["apt-get"])?;
    // It says whom it waits for, and judges nothing before that has ended.
    place.executor.follow_until(job, |seen| {
        seen.events.iter().any(|event| {
            matches!(&event.kind, EventKind::Waiting { holder: Some(holder) } if holder.lock.ends_with("dpkg/lock"))
        })
    })?;
    place.root.push("", "/run/lp-slow-go", "644")?;
    place.ends(job, Outcome::Applied)?;
    place.state()?.assert_in_order()
}

/// Killed between its last entry in `updates/` and merging them: all is as planned then, and nothing has to go back.
fn a_dpkg_that_dies_when_it_is_done() -> Result<()> {
    // The real one does the work; what it merged is put back to what it was a moment before.
    let dies = "#!/bin/sh\n\
        case \" $* \" in *' --purge '*|*' --remove '*) [ -e /run/dies ] || exec /usr/bin/dpkg.real \"$@\";;\n\
        *) exec /usr/bin/dpkg.real \"$@\";; esac\n\
        rm /run/dies; cd /var/lib/dpkg; cp -p status /run/status; /usr/bin/dpkg.real \"$@\"\n\
        cp -p /run/status status; : >status-new; : >updates/tmp.i\n\
        printf 'Package: lp-plain\\nStatus: purge ok not-installed\\nArchitecture: all\\n' >updates/0000\n\
        kill -9 $$\n";
    for on_failure in [OnFailure::Group, OnFailure::All, OnFailure::Keep] {
        let place = Place::on_day1(&["lp-plain", "lp-app"])?;
        place.root.shell("mv /usr/bin/dpkg /usr/bin/dpkg.real; : >/run/dies")?;
        place.root.push(dies, "/usr/bin/dpkg", "755")?;
        let options = ChangeOptions { on_failure, ..ChangeOptions::default() };
        let job = place.executor.change(place::purge("lp-plain")?, options, None)?;
        let seen = place.ends(job, Outcome::Applied)?;
        ensure!(!place.root.path().join("run/dies").exists(), "dpkg did not die: {}", seen.log());
        let after = place.state()?;
        after.assert_in_order().with_context(|| seen.log())?;
        ensure!(after.version("lp-plain").is_none(), "{:?}", after.version("lp-plain"));
    }
    Ok(())
}

/// It is in place while scripts run, and the administrator's own is there again: after a kill of everything, as a power
/// cut is, of the executor alone, and of none.
fn policy_rc_d_comes_back_however_the_change_ends() -> Result<()> {
    let policy = "/usr/sbin/policy-rc.d";
    for (kills, had) in [("everything", true), ("everything", false), ("executor", true), ("nothing", true)] {
        let place = Place::on_day1(&["lp-slow"])?;
        let config = "policy: {restart: {mode: restart, services: [nginx.service], when: in_window}}\n";
        // Nothing is held back where systemd does not run.
        place.root.shell("mkdir -p /etc/linux_patch_api /run/systemd/system")?;
        place.root.push(config, "/etc/linux_patch_api/config.yaml", "644")?;
        place.root.push("60", "/run/lp-slow-seconds", "644")?;
        let state = || {
            place.root.shell(&format!(
                "ls /usr/sbin | grep policy-rc.d; stat -c '%d %i %a %y' {policy}; cat {policy}; true"
            ))
        };
        if had {
            place.root.push("#!/bin/sh\nexit 104\n", policy, "751")?;
        }
        let before = state()?;
        let job = place.executor.change(place::update("lp-slow")?, ChangeOptions::default(), None)?;
        let started = place.root.path().join("run/lp-slow-started");
        system_tests::wait::until("the script", LIMIT, || Ok(started.exists().then_some(())))?;
        let meanwhile = state()?;
        ensure!(meanwhile.contains(&job.to_string()) && meanwhile.contains("'nginx.service'"), "{meanwhile}");
        match kills {
            "everything" => place.executor.kill_everything()?,
            "executor" => place.executor.kill_all(&["patch-executor"]).map(drop)?,
            _ => {}
        }
        place.root.push("", "/run/lp-slow-go", "644")?;
        // One that was just killed may still hold what tells that it lives.
        system_tests::wait::until("the end", LIMIT, || {
            if kills != "nothing" {
                place.executor.recover()?;
            }
            Ok(place.executor.seen(job)?.ended().is_some().then_some(()))
        })?;
        let after = state()?;
        ensure!(after == before, "{kills}: {after} instead of {before}");
    }
    Ok(())
}

/// The network side can read event files, so it can lock them.
fn a_stranger_holds_nothing_up() -> Result<()> {
    let place = begin()?;
    let before = place.state()?;
    let job = place.executor.change(place::apply(&[])?, ChangeOptions::default(), None)?;
    place.executor.follow_until(job, |seen| steps(seen) >= 3)?;
    let stranger = std::fs::File::open(place.executor.event_file(job))?;
    place.executor.kill_everything()?;
    stranger.lock()?;
    let recovery = place.executor.recover()?;
    ensure!(recovery.success(), "the recovery ended with {}: {}", recovery.status, recovery.stderr);
    let seen = place.executor.seen(job)?;
    ensure!(seen.ended().is_some(), "it was not settled while somebody held its event file");
    settled(&place, job, &before, false)?;
    drop(stranger);
    Ok(())
}

fn begin() -> Result<Place> {
    let place = Place::on_day1(INSTALLED)?;
    place.root.exec_ok(&["apt-mark", "auto", "lp-lib"])?;
    place.root.push("mine\n", "/etc/lp-conf.conf", "640")?;
    Ok(place)
}

fn kill_when(place: &Place, operation: Operation, wish: impl Fn(&Seen) -> bool, again: u32) -> Result<()> {
    let is_rollback = matches!(operation, Operation::Rollback(_));
    let before = place.state()?;
    let options = ChangeOptions { on_failure: OnFailure::Group, ..ChangeOptions::default() };
    let job = place.executor.change(operation, options, None)?;
    place.executor.follow_until(job, wish)?;
    place.executor.kill_everything()?;
    kill_recoveries(place, again)?;
    settled(place, job, &before, is_rollback)
}

fn kill_recoveries(place: &Place, times: u32) -> Result<()> {
    for number in 0..times {
        let mut recovery = place.executor.start_recover()?;
        // Each one comes a little further.
        let time = std::time::Duration::from_millis(u64::from(60 * (number + 1)));
        let ended = system_tests::wait::until("a recovery", time, || Ok(recovery.try_wait()?)).is_ok();
        place.executor.kill_everything()?;
        if !ended {
            recovery.wait()?;
        }
    }
    Ok(())
}

fn settled(
    place: &Place,
    job: JobId,
    before: &system_tests::state::HostState,
    is_rollback: bool,
) -> Result<()> {
    let seen = settle(&place.executor, job)?;
    let after = place.state()?;
    let ended = seen.ended().context("no end")?;
    let case = Case {
        before,
        after: &after,
        plan: seen.plan(),
        ended,
        on_failure: OnFailure::Group,
        is_rollback,
        rebuilt: Vec::new(),
        marked: Vec::new(),
    };
    judge(&place.root, &case)
        .with_context(|| format!("--- log\n{}\n--- remarks\n{}", seen.log(), place.executor.remarks()))?;
    place.executor.assert_no_panic()?;
    place.must(place::install(&["lp-bulk-40"])?, Outcome::Applied).map(drop)
}

fn in_each_phase(operation: Ask) -> Result<()> {
    for phase in PHASES {
        let place = begin()?;
        let wish = |seen: &Seen| {
            seen.events
                .iter()
                .any(|event| matches!(event.kind, EventKind::Phase { phase: now } if now == *phase))
        };
        kill_when(&place, operation()?, wish, 0).with_context(|| format!("killed in {phase}"))?;
    }
    Ok(())
}

fn steps(seen: &Seen) -> usize {
    let steps = seen
        .events
        .iter()
        .filter(|event| matches!(&event.kind, EventKind::Progress { package: Some(_), .. }));
    steps.count()
}

fn at_steps(operation: Ask) -> Result<()> {
    for step in STEPS {
        let place = begin()?;
        kill_when(&place, operation()?, |seen| steps(seen) >= *step, 0)
            .with_context(|| format!("killed at step {step}"))?;
    }
    Ok(())
}

fn going_back_killed_is_settled() -> Result<()> {
    for lines in [1, 4, 9, 16, 25, 40] {
        let place = begin()?;
        let before = place.state()?;
        let (job, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
        let wish = |seen: &Seen| seen.log().lines().count() >= lines;
        kill_when(&place, place::rollback(job), wish, 2)
            .with_context(|| format!("killed at line {lines}"))?;
        // It either went on to its end or can be asked for again.
        place.root.exec_ok(&["apt-get", "-qq", "-y", "purge", "lp-bulk-40"])?;
        let now = place.state()?;
        if !before.diff(&now).is_empty() {
            place.go_back(place::rollback(job)).with_context(|| format!("again, after line {lines}"))?;
        }
        before.assert_same(&place.state()?)?;
    }
    Ok(())
}

fn a_recovery_killed_again_and_again_ends() -> Result<()> {
    for step in [4, 12, 20] {
        let place = begin()?;
        kill_when(&place, place::apply(&[])?, |seen| steps(seen) >= step, 5)
            .with_context(|| format!("killed at step {step}"))?;
    }
    Ok(())
}

fn a_recovery_with_nothing_to_do_does_nothing() -> Result<()> {
    let place = begin()?;
    let before = place.state()?;
    for _ in 0..2 {
        let output = place.executor.recover()?;
        ensure!(output.success(), "{output:?}");
    }
    place.must(place::update("lp-conf")?, Outcome::Applied)?;
    let after = place.state()?;
    ensure!(place.executor.recover()?.success());
    after.assert_same(&place.state()?)?;
    ensure!(!before.diff(&after).is_empty());
    Ok(())
}

/// A host that dies again and again while a change waits to be confirmed, within the time that it may wait.
fn a_boot_loop_keeps_nothing() -> Result<()> {
    let place = Place::on_day1(&["lp-conf"])?;
    let before = place.state()?;
    let options = ChangeOptions { confirm_within: Some(3600), ..ChangeOptions::default() };
    let job = place.executor.change(place::update("lp-conf")?, options, None)?;
    let mut deaths = 0;
    loop {
        let seen = system_tests::wait::until("the change to wait, or to have ended", LIMIT, || {
            let seen = place.executor.seen(job)?;
            let waits = seen.events.iter().filter(|event| matches!(event.kind, EventKind::Confirm { .. }));
            Ok((waits.count() > deaths || seen.ended().is_some()).then_some(seen))
        })?;
        if seen.ended().is_some() {
            break;
        }
        ensure!(deaths < 30, "it still waits after {deaths} deaths");
        place.executor.kill_everything()?;
        deaths += 1;
        ensure!(place.executor.recover()?.success());
        // It is neither kept nor given up for the first few.
        ensure!(deaths > 5 || place.executor.seen(job)?.ended().is_none(), "it ended after {deaths}");
    }
    place.ends(job, Outcome::RolledBack)?;
    before.assert_same(&place.state()?)
}
