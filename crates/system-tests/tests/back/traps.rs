//! The fifteen ways in which going back by hand goes wrong.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use patch_types::event::QueryResult;
use patch_types::executor::{Limits, RequestBody};
use patch_types::{ChangeOptions, ErrorCode, EventKind, Grade, JobId, JobStatus, OnFailure, Outcome, Query};
use system_tests::chaos::settle;
use system_tests::place::{self, Place};
use system_tests::trials::trial;
use system_tests::wait;
use uuid::Uuid;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("trap_01_marks_are_kept", trap_01_marks_are_kept),
        trial("trap_02_holds_are_kept", trap_02_holds_are_kept),
        trial("trap_03_a_rebuilt_archive_holds_no_edits", trap_03_a_rebuilt_archive_holds_no_edits),
        trial("trap_04_an_edited_conffile_stops_nothing", trap_04_an_edited_conffile_stops_nothing),
        trial(
            "trap_05_a_removal_that_fails_takes_nobody_along",
            trap_05_a_removal_that_fails_takes_nobody_along,
        ),
        trial("trap_06_a_strangers_failure_is_not_ours", trap_06_a_strangers_failure_is_not_ours),
        trial("trap_06_a_postrm_that_fails_is_cured", trap_06_a_postrm_that_fails_is_cured),
        trial("trap_06_a_refusing_preinst_is_told_truthfully", trap_06_a_refusing_preinst_is_told_truthfully),
        trial(
            "trap_07_a_bad_prerm_does_not_stop_the_way_back",
            trap_07_a_bad_prerm_does_not_stop_the_way_back,
        ),
        trial("trap_08_a_forgotten_version_is_kept", trap_08_a_forgotten_version_is_kept),
        trial("trap_09_room_is_looked_for_first", trap_09_room_is_looked_for_first),
        trial("trap_10_a_held_lock_is_waited_for", trap_10_a_held_lock_is_waited_for),
        trial("trap_11_a_killed_unpack_is_not_taken_for_done", trap_11_a_killed_unpack_is_not_taken_for_done),
        trial("trap_12_the_executors_death_does_not_kill_apt", trap_12_the_executors_death_does_not_kill_apt),
        trial("trap_13_a_moved_file_comes_back", trap_13_a_moved_file_comes_back),
        trial(
            "trap_13_a_file_taken_from_a_neighbour_comes_back",
            trap_13_a_file_taken_from_a_neighbour_comes_back,
        ),
        trial("trap_14_what_was_taken_back_stays_away", trap_14_what_was_taken_back_stays_away),
        trial("trap_15_a_script_that_hangs_is_ended", trap_15_a_script_that_hangs_is_ended),
    ]
}

fn trap_01_marks_are_kept() -> Result<()> {
    let place = Place::on_day1(&["lp-app", "lp-plain"])?;
    place.root.exec_ok(&["apt-mark", "auto", "lp-lib", "lp-plain"])?;
    let before = place.state()?;
    for operation in [place::update("lp-plain")?, place::apply(&["lp-lib", "lp-app"])?, place::apply(&[])?] {
        let (job, _) = place.must(operation, Outcome::Applied)?;
        let now = place.state()?;
        ensure!(
            now.is_auto("lp-lib") && now.is_auto("lp-plain") && !now.is_auto("lp-app"),
            "a mark was lost"
        );
        place.take_back(job, &before)?;
    }
    // An automatic one that is removed comes back as one.
    let (job, _) = place.must(place::remove("lp-lib")?, Outcome::Applied)?;
    place.take_back(job, &before).map(drop)
}

fn trap_02_holds_are_kept() -> Result<()> {
    let place = Place::on_day1(&["lp-giver", "lp-held", "lp-plain"])?;
    place.root.exec_ok(&["apt-mark", "hold", "lp-giver", "lp-held"])?;
    let before = place.state()?;
    // The neighbour is unpacked again on the way back.
    let (job, _) = place.must(place::install(&["lp-taker", "lp-plain"])?, Outcome::Applied)?;
    ensure!(place.state()?.is_held("lp-giver"));
    let seen = place.take_back(job, &before)?;
    ensure!(place.state()?.is_held("lp-giver"), "{}", seen.log());
    let (job, _) = place.must(place::hold("lp-plain", true)?, Outcome::Applied)?;
    place.take_back(job, &before).map(drop)
}

fn trap_03_a_rebuilt_archive_holds_no_edits() -> Result<()> {
    let place = Place::on_day1(&["lp-goneconf"])?;
    place.root.shell("apt-get clean")?;
    place.root.push("mine\n", "/etc/lp-goneconf.conf", "600")?;
    let before = place.state()?;
    let (job, seen) = place.must(place::update("lp-goneconf")?, Outcome::Applied)?;
    let way = seen.way_back().context("no way back was told")?;
    ensure!(way.grade == Grade::Rebuilt && way.packages.iter().any(|p| !p.reason.is_empty()), "{way:#?}");
    place.go_back(place::rollback(job))?;
    let after = place.state()?;
    // dpkg's own records of a rebuilt package may be written otherwise; what counts is the rest.
    let unrecorded = |line: &str| {
        line.split_once(") → (").is_some_and(|(old, new)| {
            let content = |side: &str| {
                side.rsplit('(').next().and_then(|s| s.split(" recorded").next()).map(str::to_owned)
            };
            line.starts_with("conffile ") && content(old) == content(new)
        })
    };
    // The hash of what the package shipped is not known any more; the file itself is as it was.
    let differences: Vec<String> = before
        .diff(&after)
        .into_iter()
        .filter(|line| !line.starts_with("info ") && !unrecorded(line))
        .collect();
    ensure!(differences.is_empty(), "{differences:#?}");
    after.assert_in_order()?;
    // The edit is still known as one, so that the next upgrade keeps it.
    place.let_in()?;
    place.root.shell(
        "apt-get -qq -y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold install lp-goneconf=1.1",
    )?;
    ensure!(
        place.root.read_text("/etc/lp-goneconf.conf")? == "mine\n",
        "the administrator's file was replaced"
    );
    Ok(())
}

fn trap_04_an_edited_conffile_stops_nothing() -> Result<()> {
    let place = Place::on_day1(&["lp-conf", "lp-plain", "lp-app"])?;
    place.root.push("mine\n", "/etc/lp-conf.conf", "600")?;
    let before = place.state()?;
    let (job, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
    ensure!(place.root.read_text("/etc/lp-conf.conf")? == "mine\n");
    place.take_back(job, &before)?;
    // One that was deleted stays deleted.
    place.root.shell("rm /etc/lp-conf.conf")?;
    let before = place.state()?;
    let (job, _) = place.must(place::install(&["lp-conf=1.1"])?, Outcome::Applied)?;
    place.take_back(job, &before).map(drop)
}

fn trap_05_a_removal_that_fails_takes_nobody_along() -> Result<()> {
    let place = Place::on_day1(&["lp-prermuser"])?;
    let before = place.state()?;
    let (_, seen) = place.must(place::remove("lp-prermfail")?, Outcome::RolledBack)?;
    ensure!(seen.ended().is_some_and(|ended| ended.status == JobStatus::Failed));
    before.assert_same(&place.state()?)
}

fn trap_06_a_strangers_failure_is_not_ours() -> Result<()> {
    let place = Place::on_day1(&["lp-postfail", "lp-plain"])?;
    let broken = place.root.exec(&["apt-get", "-qq", "-y", "install", "lp-postfail=1.1"])?;
    ensure!(!broken.success(), "the package does not fail");
    let before = place.state()?;
    let (job, seen) = place.must(place::update("lp-plain")?, Outcome::Applied)?;
    ensure!(seen.ended().is_some_and(|ended| ended.status == JobStatus::Completed), "{:?}", seen.ended());
    place.take_back(job, &before).map(drop)
}

fn trap_06_a_postrm_that_fails_is_cured() -> Result<()> {
    let place = Place::on_day1(&["lp-postrmfail", "lp-plain"])?;
    let before = place.state()?;
    place.must(place::remove("lp-postrmfail")?, Outcome::RolledBack)?;
    before.assert_same(&place.state()?)
}

fn trap_06_a_refusing_preinst_is_told_truthfully() -> Result<()> {
    let place = Place::on_day1(&["lp-noreturn", "lp-plain"])?;
    place.root.push("", "/run/lp-noreturn-fail", "644")?;
    let options = ChangeOptions { on_failure: OnFailure::All, ..ChangeOptions::default() };
    let job = place.executor.change(place::apply(&[])?, options, None)?;
    let seen = place.ends(job, Outcome::RollbackFailed)?;
    let ended = seen.ended().context("no end")?;
    ensure!(ended.status == JobStatus::Failed && ended.error.is_some(), "{ended:#?}");
    let report = seen.went_back().context("no report of going back")?;
    ensure!(report.left.iter().any(|line| line.contains("lp-noreturn")), "{report:#?}");
    ensure!(!report.commands.is_empty(), "{report:#?}");
    ensure!(report.restored.iter().any(|line| line.contains("lp-plain")), "{report:#?}");
    ensure!(place.state()?.version("lp-plain") == Some("1.0-1"), "what can come back did not");
    // Nothing that was done is claimed of the other, and another recovery does not make it worse.
    let after = place.state()?;
    place.executor.recover()?;
    after.assert_same(&place.state()?)?;
    // What is in order can be changed on, and the mark stays, until a person says that it is well as it is.
    place.must(place::install(&["lp-bulk-40"])?, Outcome::Applied)?;
    let mark = place.executor.state_directory().join("rollback_failed.json");
    ensure!(mark.exists(), "the mark of the failure went with the next change");
    let other =
        place.executor.ask(JobId(Uuid::now_v7()), RequestBody::Repaired { job: JobId(Uuid::now_v7()) });
    ensure!(other.is_err() && mark.exists(), "another job's failure was called mended");
    place.executor.ask(JobId(Uuid::now_v7()), RequestBody::Repaired { job })?;
    ensure!(!mark.exists(), "the mark stays although a person has lifted it");
    place.executor.assert_no_panic()
}

fn trap_07_a_bad_prerm_does_not_stop_the_way_back() -> Result<()> {
    let place = Place::on_day1(&["lp-badprerm"])?;
    let before = place.state()?;
    let (job, _) = place.must(place::update("lp-badprerm")?, Outcome::Applied)?;
    place.take_back(job, &before).map(drop)
}

fn trap_08_a_forgotten_version_is_kept() -> Result<()> {
    let place = Place::new(&[])?;
    place.must(place::install(&["lp-gone"])?, Outcome::Applied)?;
    place.day(1)?;
    place.root.shell("apt-get clean")?;
    let before = place.state()?;
    let (job, seen) = place.must(place::update("lp-gone")?, Outcome::Applied)?;
    let way = seen.way_back().context("no way back was told")?;
    ensure!(way.grade == Grade::Exact, "{way:#?}");
    ensure!(
        !place.root.exec_ok(&["apt-cache", "madison", "lp-gone"])?.contains("| 1.0 "),
        "it is not forgotten"
    );
    place.take_back(job, &before).map(drop)
}

fn trap_09_room_is_looked_for_first() -> Result<()> {
    let place = Place::on_day1(&["lp-large", "lp-plain"])?;
    let before = place.state()?;
    // The archive fits, what it holds does not.
    place.root.fill_disk(30 << 20)?;
    let options = ChangeOptions { on_failure: OnFailure::All, ..ChangeOptions::default() };
    let seen = place.executor.run_with(place::apply(&[])?, options)?;
    let ended = seen.ended().context("no end")?;
    let after = place.state()?;
    place.root.free_disk()?;
    if ended.outcome != Some(Outcome::Applied) {
        before.assert_same(&after)?;
    }
    place.root.fill_disk(1 << 20)?;
    let code = place.refused(place::apply(&["lp-large"])?, ChangeOptions::default());
    place.root.free_disk()?;
    if ended.outcome != Some(Outcome::Applied) {
        ensure!(code? == ErrorCode::DiskSpace);
    }
    place.executor.assert_no_panic()
}

fn trap_10_a_held_lock_is_waited_for() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    let mut lock = place.hold_lock()?;
    let job = place.executor.change(place::update("lp-plain")?, ChangeOptions::default(), None)?;
    let seen = place.executor.follow_until(job, |seen| {
        seen.events.iter().any(|event| matches!(&event.kind, EventKind::Waiting { holder: Some(_) }))
    })?;
    let named = seen.events.iter().any(|event| match &event.kind {
        EventKind::Waiting { holder: Some(holder) } => {
            holder.command.as_ref().is_some_and(|command| command.contains("python3"))
        }
        _ => false,
    });
    ensure!(named, "{:#?}", seen.events);
    drop(lock.stdin.take());
    lock.wait()?;
    place.ends(job, Outcome::Applied).map(drop)
}

fn trap_11_a_killed_unpack_is_not_taken_for_done() -> Result<()> {
    let place = Place::on_day1(&["lp-large", "lp-plain", "lp-app"])?;
    let before = place.state()?;
    let options = ChangeOptions { on_failure: OnFailure::All, ..ChangeOptions::default() };
    let job = place.executor.change(place::apply(&[])?, options, None)?;
    place.executor.follow_until(job, |seen| seen.log().contains("Unpacking lp-large"))?;
    place.executor.kill_everything()?;
    let seen = settle(&place.executor, job)?;
    let after = place.state()?;
    after.assert_in_order()?;
    match seen.ended().and_then(|ended| ended.outcome) {
        Some(Outcome::Applied) => ensure!(after.version("lp-large") == Some("1.1")),
        _ => before.assert_same(&after)?,
    }
    Ok(())
}

fn trap_12_the_executors_death_does_not_kill_apt() -> Result<()> {
    let place = Place::on_day1(&["lp-slow", "lp-plain"])?;
    place.root.push("600\n", "/run/lp-slow-seconds", "644")?;
    let job = place.executor.change(place::apply(&[])?, ChangeOptions::default(), None)?;
    let mark = place.root.path().join("run/lp-slow-started");
    wait::until("the script runs", Duration::from_secs(60), || Ok(mark.exists().then_some(())))?;
    ensure!(place.executor.kill_all(&["patch-executor"])? > 0, "nobody was there to be killed");
    ensure!(!place.executor.pids("apt-get")?.is_empty(), "apt died with its executor");
    place.root.push("", "/run/lp-slow-go", "644")?;
    let seen = settle(&place.executor, job)?;
    let ended = seen.ended().context("no end")?;
    ensure!(ended.outcome == Some(Outcome::Applied), "{ended:#?}\n{}", seen.log());
    let after = place.state()?;
    after.assert_in_order()?;
    ensure!(after.version("lp-slow") == Some("1.1"));
    Ok(())
}

fn trap_13_a_moved_file_comes_back() -> Result<()> {
    let place = Place::on_day1(&["lp-move-a", "lp-move-b", "lp-plain"])?;
    let before = place.state()?;
    let (job, _) = place.must(place::apply(&["lp-move-a", "lp-move-b"])?, Outcome::Applied)?;
    ensure!(place.state()?.fact("file /usr/share/lp-move/file").is_some());
    place.take_back(job, &before)?;
    ensure!(place.root.read_text("/usr/share/lp-move/file")? == "moved\n");
    // Also when the new owner was not there before.
    let place = Place::on_day1(&["lp-move-a"])?;
    let before = place.state()?;
    let (job, _) = place.must(place::install(&["lp-move-b"])?, Outcome::Applied)?;
    place.take_back(job, &before).map(drop)
}

fn trap_13_a_file_taken_from_a_neighbour_comes_back() -> Result<()> {
    let place = Place::on_day1(&["lp-giver"])?;
    let before = place.state()?;
    let (job, seen) = place.must(place::install(&["lp-taker"])?, Outcome::Applied)?;
    ensure!(seen.plan().is_some_and(|plan| plan.changes.iter().all(|c| c.name.as_str() != "lp-giver")));
    ensure!(place.root.read_text("/usr/share/lp-given/file")? == "taker\n");
    place.take_back(job, &before)?;
    ensure!(place.root.read_text("/usr/share/lp-given/file")? == "giver\n");
    Ok(())
}

fn trap_14_what_was_taken_back_stays_away() -> Result<()> {
    let place = Place::on_day1(&["lp-fixed", "lp-plain"])?;
    let before = place.state()?;
    place.must(place::update("lp-fixed")?, Outcome::RolledBack)?;
    before.assert_same(&place.state()?)?;
    let candidate = || -> Result<String> {
        let policy = place.root.exec_ok(&["apt-cache", "policy", "lp-fixed"])?;
        let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:").map(str::to_owned));
        line.map(|line| line.trim().to_owned()).with_context(|| policy.clone())
    };
    ensure!(candidate()? == "1.0", "the candidate is {}", candidate()?);
    let policy = place.root.exec_ok(&["apt-cache", "policy", "lp-fixed"])?;
    ensure!(policy.lines().any(|line| line.contains("1.1 -1")), "{policy}");
    let tonight = place.root.exec_ok(&["apt-get", "-s", "upgrade"])?;
    ensure!(!tonight.contains("Inst lp-fixed"), "{tonight}");
    let why = || -> Result<Vec<String>> {
        match place.executor.query(Query::WhyNot { name: "lp-fixed".parse()? })? {
            QueryResult::WhyNot(why) => {
                why.causes.iter().map(|cause| Ok(serde_json::to_string(&cause.kind)?)).collect()
            }
            other => anyhow::bail!("{other:?}"),
        }
    };
    ensure!(why()?.first().is_some_and(|kind| kind.contains("taken_back")), "{:?}", why()?);
    // The others are not held up, and the fix of the fix comes in.
    place.must(place::apply(&[])?, Outcome::Applied)?;
    ensure!(place.state()?.version("lp-fixed") == Some("1.0"));
    place.day(2)?;
    ensure!(candidate()? == "1.2", "the candidate is {}", candidate()?);
    place.must(place::apply(&[])?, Outcome::Applied)?;
    ensure!(place.state()?.version("lp-fixed") == Some("1.2"));
    ensure!(why()?.iter().any(|kind| kind.contains("up_to_date")), "{:?}", why()?);
    Ok(())
}

fn trap_15_a_script_that_hangs_is_ended() -> Result<()> {
    let mut place = Place::on_day1(&["lp-hang"])?;
    place.executor.set_limits(Limits { timeout_seconds: 3, lock_wait_seconds: 3 });
    let before = place.state()?;
    let (_, seen) = place.must(place::update("lp-hang")?, Outcome::RolledBack)?;
    let ended = seen.ended().context("no end")?;
    ensure!(ended.status == JobStatus::Timeout, "{ended:#?}");
    before.assert_same(&place.state()?)?;
    ensure!(place.executor.pids("dpkg")?.is_empty() && place.executor.pids("apt-get")?.is_empty());
    Ok(())
}
