//! What was changed since: going back does not undo what it was not asked to undo.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use patch_types::{ChangeOptions, ErrorCode, EventKind, JobId, Outcome, executor::RequestBody};
use system_tests::executor::LIMIT;
use system_tests::place::{self, Place};
use system_tests::trials::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_later_job_on_the_same_package_refuses_going_back", a_later_job_refuses_going_back),
        trial("a_change_by_hand_since_refuses_going_back", a_change_by_hand_since_refuses_going_back),
        trial("a_change_of_another_package_since_does_not_matter", another_package_does_not_matter),
        trial("edits_since_are_kept", edits_since_are_kept),
        trial("edits_while_it_waits_to_be_confirmed_are_kept", edits_while_it_waits_are_kept),
        trial(
            "what_somebody_else_updates_while_it_waits_to_be_confirmed_stays",
            what_somebody_else_updates_while_it_waits_stays,
        ),
        trial("what_is_confirmed_may_be_newer_by_then", what_is_confirmed_may_be_newer_by_then),
        trial("without_a_record_of_what_was_left_it_has_to_be_forced", without_a_record_it_has_to_be_forced),
        trial("an_unknown_job_cannot_be_taken_back", an_unknown_job_cannot_be_taken_back),
        trial("jobs_are_taken_back_one_after_the_other", jobs_are_taken_back_one_after_the_other),
        trial("going_back_looks_again_once_it_has_the_lock", going_back_looks_again_once_it_has_the_lock),
    ]
}

fn a_later_job_refuses_going_back() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    let before = place.state()?;
    let (first, _) = place.must(place::install(&["lp-plain=1.0-2"])?, Outcome::Applied)?;
    place.must(place::install(&["lp-plain=1.1-1"])?, Outcome::Applied)?;
    let code = place.refused(place::rollback(first), ChangeOptions::default())?;
    ensure!(code == ErrorCode::JobConflict, "{code}");
    place.go_back(place::force_back(first))?;
    before.assert_same(&place.state()?)
}

fn a_change_by_hand_since_refuses_going_back() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-conf"])?;
    let before = place.state()?;
    let (job, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
    place.root.exec_ok(&["apt-get", "-qq", "-y", "--allow-downgrades", "install", "lp-plain=1.0-2"])?;
    let code = place.refused(place::rollback(job), ChangeOptions::default())?;
    ensure!(code == ErrorCode::JobConflict, "{code}");
    place.go_back(place::force_back(job))?;
    before.assert_same(&place.state()?)
}

fn another_package_does_not_matter() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-conf"])?;
    let (job, _) = place.must(place::update("lp-plain")?, Outcome::Applied)?;
    place.root.exec_ok(&["apt-get", "-qq", "-y", "install", "lp-tools", "lp-conf=1.1"])?;
    place.root.exec_ok(&["apt-mark", "hold", "lp-tools"])?;
    place.go_back(place::rollback(job))?;
    let after = place.state()?;
    ensure!(after.version("lp-plain") == Some("1.0-1") && after.version("lp-conf") == Some("1.1"));
    ensure!(after.is_held("lp-tools"), "the hold of another package was undone");
    after.assert_in_order()
}

fn edits_since_are_kept() -> Result<()> {
    let place = Place::on_day1(&["lp-conf"])?;
    let (job, _) = place.must(place::update("lp-conf")?, Outcome::Applied)?;
    ensure!(place.root.read_text("/etc/lp-conf.conf")? == "shipped=1.1\n");
    place.root.push("since\n", "/etc/lp-conf.conf", "600")?;
    let seen = place.go_back(place::rollback(job))?;
    let report = seen.went_back().context("no report")?;
    ensure!(report.kept_edits == ["/etc/lp-conf.conf"], "{report:#?}");
    ensure!(place.root.read_text("/etc/lp-conf.conf")? == "since\n", "the edit was lost");
    ensure!(place.root.read_text("/etc/lp-conf.conf.linux-patch-before")? == "shipped=1.0\n");
    let after = place.state()?;
    ensure!(after.version("lp-conf") == Some("1.0"));
    after.assert_in_order()
}

fn edits_while_it_waits_are_kept() -> Result<()> {
    let place = Place::on_day1(&["lp-conf"])?;
    let options = ChangeOptions { confirm_within: Some(5), ..ChangeOptions::default() };
    let job = place.executor.change(place::update("lp-conf")?, options, None)?;
    place.executor.follow_until(job, |seen| {
        seen.events.iter().any(|event| matches!(event.kind, EventKind::Confirm { .. }))
    })?;
    place.root.push("tried out\n", "/etc/lp-conf.conf", "600")?;
    let seen = place.ends(job, Outcome::RolledBack)?;
    let report = seen.went_back().context("no report")?;
    ensure!(report.kept_edits == ["/etc/lp-conf.conf"], "{report:#?}");
    ensure!(place.root.read_text("/etc/lp-conf.conf")? == "tried out\n", "the edit was lost");
    ensure!(place.state()?.version("lp-conf") == Some("1.0"));
    Ok(())
}

/// A change of two packages that waits to be confirmed, and of which somebody else has updated one further meanwhile.
fn overtaken(place: &Place, confirm_within: u32) -> Result<JobId> {
    let options = ChangeOptions { confirm_within: Some(confirm_within), ..ChangeOptions::default() };
    let job = place.executor.change(place::install(&["lp-plain=1.0-2", "lp-conf=1.1"])?, options, None)?;
    place.executor.follow_until(job, |seen| {
        seen.events.iter().any(|event| matches!(event.kind, EventKind::Confirm { .. }))
    })?;
    place.root.exec_ok(&["apt-get", "-qq", "-y", "install", "lp-plain=1.1-1"])?;
    Ok(job)
}

fn what_somebody_else_updates_while_it_waits_stays() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-conf"])?;
    let job = overtaken(&place, 15)?;
    let seen = place.ends(job, Outcome::Partial)?;
    let after = place.state()?;
    ensure!(after.version("lp-plain") == Some("1.1-1"), "somebody else's fix was undone");
    ensure!(after.version("lp-conf") == Some("1.0"), "what nobody confirmed stays");
    after.assert_in_order()?;
    let error = seen.ended().and_then(|ended| ended.error.clone()).context("no error")?;
    let said = error.message;
    ensure!(said.contains("nobody confirmed") && said.contains("stay as they are: lp-plain"), "{said}");
    let barred = seen.went_back().context("no report")?.barred.clone();
    ensure!(barred == ["lp-conf=1.1"], "{barred:?}");
    Ok(())
}

fn what_is_confirmed_may_be_newer_by_then() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-conf"])?;
    let job = overtaken(&place, 600)?;
    place.executor.ask(job, RequestBody::Confirm { job })?;
    place.ends(job, Outcome::Applied)?;
    let after = place.state()?;
    ensure!(after.version("lp-plain") == Some("1.1-1") && after.version("lp-conf") == Some("1.1"));
    after.assert_in_order()
}

fn without_a_record_it_has_to_be_forced() -> Result<()> {
    let place = Place::on_day1(&["lp-conf"])?;
    let (job, _) = place.must(place::update("lp-conf")?, Outcome::Applied)?;
    let way_back = place.executor.state_directory().join(format!("journal/{job}/way-back"));
    std::fs::remove_file(way_back.join("after.json"))?;
    let code = place.refused(place::rollback(job), ChangeOptions::default())?;
    ensure!(code == ErrorCode::JobConflict, "{code}");
    place.go_back(place::force_back(job))?;
    ensure!(place.state()?.version("lp-conf") == Some("1.0"));
    Ok(())
}

fn an_unknown_job_cannot_be_taken_back() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    let unknown = "0190e0a0-1111-7222-8333-444455556666".parse()?;
    let code = place.refused(place::rollback(unknown), ChangeOptions::default())?;
    ensure!(matches!(code, ErrorCode::JobNotFound | ErrorCode::RollbackUnavailable), "{code}");
    // One that changed nothing has nothing to be taken back.
    let (nothing, _) = place.must(place::install(&["lp-plain=1.0-1"])?, Outcome::Unchanged)?;
    let error = place.refusal(place::rollback(nothing), ChangeOptions::default())?;
    ensure!(error.code == ErrorCode::RollbackUnavailable, "{error:?}");
    Ok(())
}

fn jobs_are_taken_back_one_after_the_other() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-next", "lp-app"])?;
    let first_state = place.state()?;
    let (first, _) = place.must(place::install(&["lp-plain=1.0-2"])?, Outcome::Applied)?;
    let second_state = place.state()?;
    let (second, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
    place.take_back(second, &second_state)?;
    place.take_back(first, &first_state).map(drop)
}

/// Fetching waits until `/run/lp-go` appears.
const SLOW_METHOD: &str = "#!/bin/sh\n: >/run/lp-fetching\nwhile [ ! -e /run/lp-go ]; do sleep 0.02; done\nexec /usr/lib/apt/methods/file.lp\n";

/// Somebody changes the package between the plan and the lock: that is not run over.
fn going_back_looks_again_once_it_has_the_lock() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    let (job, _) = place.must(place::update("lp-plain")?, Outcome::Applied)?;
    // The archive of what is installed has to be fetched, which takes as long as is wanted.
    place.root.shell(
        "apt-get clean; rm /var/lib/linux_patch_executor/archives/lp-plain_1.1-1_*
         cd /usr/lib/apt/methods; mv file file.lp",
    )?;
    place.root.push(SLOW_METHOD, "/usr/lib/apt/methods/file", "755")?;
    let back = place.executor.change(place::rollback(job), ChangeOptions::default(), None)?;
    let fetching = place.root.path().join("run/lp-fetching");
    system_tests::wait::until("the archive is fetched", LIMIT, || Ok(fetching.exists().then_some(())))?;
    let mut lock = place.hold_lock()?;
    place.root.push("", "/run/lp-go", "644")?;
    place.executor.follow_until(back, |seen| {
        let mut events = seen.events.iter();
        events.any(|event| matches!(&event.kind, EventKind::Waiting { holder: Some(_) }))
    })?;
    place.root.shell("DPKG_FRONTEND_LOCKED=1 dpkg -i $(find /srv/repo/ -name 'lp-plain_1.0-2_*.deb')")?;
    drop(lock.stdin.take());
    lock.wait()?;
    let seen = place.ends(back, Outcome::Unchanged)?;
    let code = seen.ended().and_then(|ended| ended.error.as_ref()).map(|error| error.code);
    ensure!(code == Some(ErrorCode::JobConflict), "{code:?}\n{}", seen.log());
    let after = place.state()?;
    ensure!(after.version("lp-plain") == Some("1.0-2"), "{:?}", after.version("lp-plain"));
    after.assert_in_order()
}
