//! What a change may not do: another plan than the approved one, more than the ceiling allows, more than fits on the disk.

use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use libtest_mimic::Trial;
use patch_types::{
    ChangeOptions, ErrorCode, EventKind, JobId, JobStatus, OnFailure, Operation, Outcome, TakenBack,
    api::PatchState,
    event::QueryResult,
    executor::{Limits, RequestBody},
    operation::{ApplyPatches, Query},
};
use rustix::process::{Pid, Signal, kill_process};
use system_tests::place::{self, Place};
use system_tests::trials::trial;
use uuid::Uuid;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_plan_that_drifted_before_is_refused", a_plan_that_drifted_before_is_refused),
        trial("a_plan_that_drifts_while_it_waits_is_refused", a_plan_that_drifts_while_it_waits_is_refused),
        trial("a_change_whose_time_is_over_is_not_begun", a_change_whose_time_is_over_is_not_begun),
        trial("nothing_slips_in_between_plan_and_apply", nothing_slips_in_between_plan_and_apply),
        trial("a_package_changed_by_hand_in_between_is_noticed", a_package_changed_in_between_is_noticed),
        trial("the_ceiling_forbids_removals", the_ceiling_forbids_removals),
        trial("the_ceiling_forbids_origins", the_ceiling_forbids_origins),
        trial("the_ceiling_protects_packages", the_ceiling_protects_packages),
        trial("what_was_taken_back_is_roots_to_let_in", what_was_taken_back_is_roots_to_let_in),
        trial("lists_that_cannot_be_had_are_no_nothing_to_do", lists_that_cannot_be_had_are_no_nothing_to_do),
        trial("a_freeze_file_stops_changes", a_freeze_file_stops_changes),
        trial("a_ceiling_that_cannot_be_read_forbids_everything", a_broken_ceiling_forbids_everything),
        trial("a_full_disk_never_strands_the_host", a_full_disk_never_strands_the_host),
        trial(
            "a_dpkg_that_dies_of_a_full_disk_leaves_no_draft",
            a_dpkg_that_dies_of_a_full_disk_leaves_no_draft,
        ),
        trial(
            "a_disk_that_is_filled_while_a_change_goes_back_is_got_over",
            a_disk_that_is_filled_while_a_change_goes_back_is_got_over,
        ),
        trial("going_back_waits_for_room", going_back_waits_for_room),
        trial("going_back_that_found_no_room_is_marked", going_back_that_found_no_room_is_marked),
        trial("a_full_state_directory_never_strands_the_host", a_full_state_directory_never_strands_the_host),
    ]
}

fn a_plan_that_drifted_before_is_refused() -> Result<()> {
    let place = Place::on_day1(&["lp-next", "lp-plain"])?;
    let plan = place.executor.plan(place::apply(&[])?)?;
    place.day(2)?;
    let before = place.state()?;
    let job = place.executor.change(place::apply(&[])?, ChangeOptions::default(), Some(plan.hash))?;
    let ended = place.executor.ended(job)?;
    ensure!(ended.error.as_ref().is_some_and(|error| error.code == ErrorCode::PlanDrift), "{ended:#?}");
    before.assert_same(&place.state()?)?;
    let plan = place.executor.plan(place::apply(&[])?)?;
    let job = place.executor.change(place::apply(&[])?, ChangeOptions::default(), Some(plan.hash))?;
    place.ends(job, Outcome::Applied)?;
    ensure!(place.state()?.version("lp-next") == Some("1.2"));
    Ok(())
}

fn a_plan_that_drifts_while_it_waits_is_refused() -> Result<()> {
    let place = Place::on_day1(&["lp-next"])?;
    let plan = place.executor.plan(place::apply(&[])?)?;
    let mut lock = place.hold_lock()?;
    let job = place.executor.change(place::apply(&[])?, ChangeOptions::default(), Some(plan.hash))?;
    place.executor.follow_until(job, |seen| {
        seen.events.iter().any(|event| matches!(&event.kind, EventKind::Waiting { holder: Some(_) }))
    })?;
    place.day(2)?;
    drop(lock.stdin.take());
    lock.wait()?;
    let ended = place.executor.ended(job)?;
    ensure!(ended.error.as_ref().is_some_and(|error| error.code == ErrorCode::PlanDrift), "{ended:#?}");
    ensure!(place.state()?.version("lp-next") == Some("1.0"));
    Ok(())
}

fn a_change_whose_time_is_over_is_not_begun() -> Result<()> {
    let place = Place::on_day1(&["lp-next"])?;
    let before = place.state()?;
    let mut lock = place.hold_lock()?;
    // The first waits for the lock, the second for the first.
    let jobs: Vec<JobId> = (0..2)
        .map(|_| {
            let id = JobId(Uuid::now_v7());
            let body = RequestBody::Change {
                operation: place::apply(&[])?,
                limits: Limits::default(),
                if_plan: None,
                options: ChangeOptions::default(),
                not_after: Some(Timestamp::now() + SignedDuration::from_secs(1)),
            };
            place.executor.ask(id, body).map(|_| id)
        })
        .collect::<Result<_>>()?;
    for job in jobs {
        let ended = place.executor.ended(job)?;
        let error = ended.error.context("no error")?;
        ensure!(ended.status == JobStatus::Cancelled && ended.outcome == Some(Outcome::Unchanged));
        ensure!(
            error.code == ErrorCode::JobCancelled && error.message.contains("its time was over at"),
            "{error}"
        );
    }
    drop(lock.stdin.take());
    lock.wait()?;
    before.assert_same(&place.state()?)?;
    place.executor.assert_no_panic()
}

/// Stops the root side when it has made its plan, and lets it go on when `meanwhile` is done.
fn between_plan_and_apply(
    place: &Place,
    operation: Operation,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<patch_types::event::Ended> {
    let plan = place.executor.plan(operation.clone())?;
    let job = place.executor.change(operation, ChangeOptions::default(), Some(plan.hash))?;
    place.executor.follow_until(job, |seen| seen.plan().is_some())?;
    let processes: Vec<Pid> = place
        .executor
        .executors()?
        .into_iter()
        .filter_map(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw))
        .collect();
    for pid in &processes {
        kill_process(*pid, Signal::STOP)?;
    }
    let outcome = meanwhile();
    for pid in &processes {
        kill_process(*pid, Signal::CONT)?;
    }
    outcome?;
    place.executor.ended(job)
}

fn nothing_slips_in_between_plan_and_apply() -> Result<()> {
    let place = Place::on_day1(&["lp-next", "lp-plain"])?;
    let ended = between_plan_and_apply(&place, place::apply(&[])?, || place.day(2))?;
    let after = place.state()?;
    after.assert_in_order()?;
    let is = after.version("lp-next").map(str::to_owned);
    match ended.outcome {
        Some(Outcome::Applied) => ensure!(is.as_deref() == Some("1.1"), "not the approved version: {is:?}"),
        _ => ensure!(
            is.as_deref() == Some("1.0")
                && ended.error.as_ref().is_some_and(|error| error.code == ErrorCode::PlanDrift),
            "{is:?}: {ended:#?}"
        ),
    }
    Ok(())
}

fn a_package_changed_in_between_is_noticed() -> Result<()> {
    let place = Place::on_day1(&["lp-next", "lp-plain", "lp-victim", "lp-breaks"])?;
    let ended = between_plan_and_apply(&place, place::apply(&["lp-plain", "lp-next"])?, || {
        place.root.exec_ok(&["apt-get", "-qq", "-y", "install", "lp-next=1.1"]).map(drop)
    })?;
    let after = place.state()?;
    after.assert_in_order()?;
    if ended.outcome == Some(Outcome::Unchanged) {
        ensure!(ended.error.as_ref().is_some_and(|error| error.code == ErrorCode::PlanDrift), "{ended:#?}");
        ensure!(after.version("lp-plain") == Some("1.0-1"));
    } else {
        // It came too late for the change, which had begun.
        ensure!(ended.outcome == Some(Outcome::Applied), "{ended:#?}");
    }
    Ok(())
}

fn forbidden(place: &Place, operation: Operation) -> Result<()> {
    let code = place.refused(operation, ChangeOptions::default())?;
    ensure!(code == ErrorCode::AuthzForbidden, "{code}");
    Ok(())
}

fn the_ceiling_forbids_removals() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-breaks", "lp-victim"])?;
    place.configure("ceiling.yaml", "operations: [refresh, install, update, apply_patches, rollback]\n")?;
    forbidden(&place, place::remove("lp-plain")?)?;
    forbidden(&place, place::purge("lp-plain")?)?;
    forbidden(&place, place::hold("lp-plain", true)?)?;
    place.must(place::update("lp-plain")?, Outcome::Applied).map(drop)
}

fn the_ceiling_forbids_origins() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-next"])?;
    place.configure("ceiling.yaml", "origins:\n  - origin: Debian\n")?;
    place.must(place::update("lp-next")?, Outcome::Applied)?;
    place.configure("ceiling.yaml", "origins:\n  - origin: Elsewhere\n")?;
    forbidden(&place, place::update("lp-plain")?)?;
    // What takes something away needs no origin.
    place.must(place::remove("lp-next")?, Outcome::Applied).map(drop)
}

fn the_ceiling_protects_packages() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-lib", "lp-app"])?;
    place.configure("ceiling.yaml", "protected: [lp-app]\n")?;
    forbidden(&place, place::remove("lp-app")?)?;
    // Nor by way of another.
    forbidden(&place, place::remove("lp-lib")?)?;
    place.must(place::remove("lp-plain")?, Outcome::Applied)?;
    // Whatever the ceiling says.
    for always in ["dpkg", "libc6", "systemd"] {
        let error = place.refusal(place::remove(always)?, ChangeOptions::default())?;
        // A sentence; what apt prints of each package's dependencies is for the log.
        ensure!(error.message.contains(always), "{always}: {error:?}");
        ensure!(error.message.len() < 400 && !error.message.contains("Depends:"), "{always}: {error:?}");
        ensure!(!error.details.contains_key("output"), "{always}: {error:?}");
    }
    Ok(())
}

fn a_freeze_file_stops_changes() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    place.configure("ceiling.yaml", "freeze_file: /run/lp-freeze\n")?;
    place.root.push("", "/run/lp-freeze", "644")?;
    forbidden(&place, place::update("lp-plain")?)?;
    place.root.shell("rm /run/lp-freeze")?;
    place.must(place::update("lp-plain")?, Outcome::Applied).map(drop)
}

fn a_broken_ceiling_forbids_everything() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    for broken in ["operations: [remov\n", "no_such_key: 1\n", "\u{0}\n", "operations: [fly]\n"] {
        place.configure("ceiling.yaml", broken)?;
        let code = place.refused(place::update("lp-plain")?, ChangeOptions::default())?;
        ensure!(matches!(code, ErrorCode::AuthzForbidden | ErrorCode::ConfigInvalid), "{broken:?}: {code}");
    }
    Ok(())
}

/// Bytes that are left: dense where it is interesting.
fn levels() -> Vec<u64> {
    let kib = [0, 4, 16, 48, 64, 96, 128, 256, 384, 512, 768];
    let mib = [
        1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 19, 20, 21, 22, 24, 28, 32, 36, 40, 41, 42, 44, 48, 56, 60, 64,
        72, 84,
    ];
    kib.iter().map(|kib| kib << 10).chain(mib.iter().map(|mib| mib << 20)).collect()
}

fn a_full_disk_never_strands_the_host() -> Result<()> {
    let place = Place::on_day1(&["lp-large", "lp-app", "lp-bulk-00", "lp-bulk-01"])?;
    let before = place.state()?;
    for left in levels() {
        let context = || format!("with {left} bytes left");
        place.root.fill_disk(left)?;
        let outcome = full(&place);
        let after = place.state();
        place.root.free_disk()?;
        let (ended, job) = outcome.with_context(context)?;
        let after = after.with_context(context)?;
        match ended {
            Some(Outcome::Applied) => {
                after.assert_in_order().with_context(context)?;
                ensure!(after.version("lp-large") == Some("1.1"), "{left}");
                place.take_back(job.context("no job")?, &before).with_context(context)?;
            }
            Some(Outcome::Unchanged | Outcome::RolledBack) | None => {
                before.assert_same(&after).with_context(context)?;
                place.let_in()?;
            }
            other => anyhow::bail!("{other:?} {}", context()),
        }
    }
    place.executor.assert_no_panic()
}

/// The disk fills up when all is fetched and recorded, just before dpkg begins: dpkg dies of its first write.
fn a_dpkg_that_dies_of_a_full_disk_leaves_no_draft() -> Result<()> {
    let place = Place::on_day1(&["lp-app", "lp-plain"])?;
    let before = place.state()?;
    let hook = "DPkg::Pre-Invoke {\"cat /dev/zero >/filler 2>/dev/null || true\";};\n";
    place.root.push(hook, "/etc/apt/apt.conf.d/99fill", "644")?;
    place.root.fill_disk(64 << 20)?;
    let job = place.executor.change(place::apply(&[])?, ChangeOptions::default(), None)?;
    let seen = system_tests::chaos::settle(&place.executor, job)?;
    place.root.shell("rm -f /filler /etc/apt/apt.conf.d/99fill")?;
    place.root.free_disk()?;
    let ended = seen.ended().context("no end")?;
    ensure!(matches!(ended.outcome, Some(Outcome::Unchanged | Outcome::RolledBack)), "{ended:#?}");
    ensure!(seen.log().contains("No space left on device"), "dpkg had room: {}", seen.log());
    before.assert_same(&place.state()?).with_context(|| seen.log())?;
    place.must(place::apply(&[])?, Outcome::Applied).map(drop)
}

/// Has every dpkg run a line of shell before its own work.
fn before_dpkg(place: &Place, line: &str) -> Result<()> {
    place.root.push(format!("pre-invoke={line}\n"), "/etc/dpkg/dpkg.cfg.d/fill", "644")
}

/// Somebody fills the disk to its last byte when going back has begun. What was set aside is still there then.
fn a_disk_that_is_filled_while_a_change_goes_back_is_got_over() -> Result<()> {
    let place = Place::on_day1(&["lp-large", "lp-app", "lp-plain"])?;
    let before = place.state()?;
    let (job, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
    before_dpkg(&place, "test -e /filler || cat /dev/zero >/filler 2>/dev/null || true")?;
    place.root.fill_disk(128 << 20)?;
    let back = place.executor.change(place::rollback(job), ChangeOptions::default(), None)?;
    let seen = system_tests::chaos::settle(&place.executor, back)?;
    place.root.shell("rm -f /filler /etc/dpkg/dpkg.cfg.d/fill")?;
    place.root.free_disk()?;
    ensure!(seen.ended().context("no end")?.outcome == Some(Outcome::Applied), "{}", seen.log());
    ensure!(seen.log().contains("/var/lib/dpkg is full"), "dpkg had room: {}", seen.log());
    before.assert_same(&place.state()?).with_context(|| seen.log())?;
    ensure!(!place.executor.state_directory().join("rollback_failed.json").exists());
    place.executor.assert_no_panic()
}

/// Whatever is given to it is taken by somebody else, until that ends.
fn going_back_waits_for_room() -> Result<()> {
    let place = Place::on_day1(&["lp-large", "lp-app", "lp-plain"])?;
    let before = place.state()?;
    let (job, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
    before_dpkg(&place, "cat /dev/zero >>/filler 2>/dev/null || true")?;
    place.root.fill_disk(128 << 20)?;
    let back = place.executor.change(place::rollback(job), ChangeOptions::default(), None)?;
    let seen = place.executor.follow_until(back, |seen| seen.log().contains("going back lacks room"))?;
    ensure!(seen.ended().is_none(), "{}", seen.log());
    place.root.shell("rm -f /etc/dpkg/dpkg.cfg.d/fill /filler")?;
    place.root.free_disk()?;
    let seen = place.ends(back, Outcome::Applied)?;
    before.assert_same(&place.state()?).with_context(|| seen.log())?;
    place.executor.assert_no_panic()
}

/// Nobody makes room in time. The truth is told on the full disk, and going back is done when there is room again.
fn going_back_that_found_no_room_is_marked() -> Result<()> {
    let mut place = Place::on_day1(&["lp-large", "lp-app", "lp-plain"])?;
    let before = place.state()?;
    let (job, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
    before_dpkg(&place, "cat /dev/zero >>/filler 2>/dev/null || true")?;
    place.root.fill_disk(128 << 20)?;
    place.executor.set_limits(Limits { timeout_seconds: 1, lock_wait_seconds: 1 });
    let back = place.executor.change(place::rollback(job), ChangeOptions::default(), None)?;
    let seen = place.executor.follow(back)?;
    ensure!(seen.ended().context("no end")?.outcome == Some(Outcome::RollbackFailed), "{}", seen.log());
    let mark = std::fs::read_to_string(place.executor.state_directory().join("rollback_failed.json"))?;
    ensure!(mark.contains(&job.to_string()) && mark.contains("is full"), "{mark}");
    place.root.shell("rm -f /etc/dpkg/dpkg.cfg.d/fill /filler")?;
    place.root.free_disk()?;
    place.executor.set_limits(Limits { timeout_seconds: 120, lock_wait_seconds: 60 });
    place.must(place::rollback(job), Outcome::Applied)?;
    before.assert_same(&place.state()?)?;
    ensure!(!place.executor.state_directory().join("rollback_failed.json").exists());
    place.executor.assert_no_panic()
}

fn what_was_taken_back_is_roots_to_let_in() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    let (job, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
    place.go_back(place::rollback(job))?;
    let QueryResult::Patches(set) = place.executor.query(Query::Patches)? else { bail!("no patches") };
    let patch =
        set.patches.iter().find(|patch| patch.state == PatchState::TakenBack).context("it vanished")?;
    ensure!(patch.name.as_str() == "lp-plain" && patch.security, "{patch:?}");
    ensure!(patch.reason.as_ref().is_some_and(|why| why.contains("linux-patch-host clear lp-plain=1.1-1")));
    ensure!(set.security_updates == 1 && set.total == set.patches.len(), "{set:?}");
    // Whoever asks for nothing in particular gets what else there is, and is told what there is not.
    let (job, seen) = place.must(place::apply(&[])?, Outcome::Applied)?;
    let left_out = |seen: &system_tests::executor::Seen| -> Vec<String> {
        seen.plan().map_or_else(Vec::new, |plan| plan.barred.iter().map(TakenBack::named).collect())
    };
    ensure!(left_out(&seen) == ["lp-plain=1.1-1"], "{:?}", seen.plan());
    ensure!(seen.log().contains("clear lp-plain=1.1-1"), "{}", seen.log());
    let state = place.executor.state_directory().join(format!("journal/{job}/state.json"));
    let state: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(state)?)?;
    ensure!(state["barred"][0]["name"] == "lp-plain", "{state:#}");
    // Also where nothing is to be done, and not where it is not asked for.
    let (_, seen) = place.must(place::apply(&[])?, Outcome::Unchanged)?;
    ensure!(left_out(&seen) == ["lp-plain=1.1-1"], "{:?}", seen.plan());
    let others = Operation::ApplyPatches(ApplyPatches {
        exclude: vec!["lp-plain".parse()?],
        ..ApplyPatches::default()
    });
    let (_, seen) = place.must(others, Outcome::Unchanged)?;
    ensure!(left_out(&seen).is_empty(), "{:?}", seen.plan());
    let fixes = Operation::ApplyPatches(ApplyPatches {
        packages: vec!["lp-plain".parse()?],
        security_only: true,
        ..ApplyPatches::default()
    });
    ensure!(place.state()?.version("lp-plain") == Some("1.0-2"), "{:?}", place.state()?.version("lp-plain"));
    for operation in [
        place::install(&["lp-plain=1.1-1"])?,
        place::apply(&["lp-plain"])?,
        place::update("lp-plain")?,
        fixes,
    ] {
        let code = place.refused(operation.clone(), ChangeOptions::default())?;
        ensure!(matches!(code, ErrorCode::PkgVersionConflict), "{operation:?}: {code:?}");
    }
    place.let_in()?;
    place.must(place::install(&["lp-plain=1.1-1"])?, Outcome::Applied).map(drop)
}

fn lists_that_cannot_be_had_are_no_nothing_to_do() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    let fresh = || -> Result<Operation> {
        let Operation::ApplyPatches(apply) = place::apply(&[])? else { bail!("not to apply") };
        Ok(Operation::ApplyPatches(ApplyPatches { refresh_if_older: Some(0), ..apply }))
    };
    place.must(place::apply(&[])?, Outcome::Applied)?;
    let unseen = "mount -t tmpfs none /srv/repo; touch -d '1 hour ago' /var/lib/apt/lists; rm -f /var/lib/apt/periodic/*";
    place.root.shell(unseen)?;
    let job = place.executor.change(fresh()?, ChangeOptions::default(), None)?;
    let seen = place.ends(job, Outcome::Unchanged)?;
    let ended = seen.ended().context("no end")?;
    let said = ended.error.as_ref().context("it says that there is nothing to do")?;
    ensure!(
        ended.status == JobStatus::Failed && said.message.contains("could not all be fetched"),
        "{ended:#?}"
    );
    // They were not fetched, and look so.
    let age = place.root.shell("echo $(($(date +%s) - $(stat -c %Y /var/lib/apt/lists)))")?;
    ensure!(age.trim().parse::<u64>().is_ok_and(|age| age >= 3600), "{age}");
    // Who is killed in the middle leaves lists that look new; they are not whole for that.
    place.root.shell("touch /var/lib/apt/lists")?;
    let hourly = Operation::ApplyPatches(ApplyPatches {
        refresh_if_older: Some(3600),
        ..match place::apply(&[])? {
            Operation::ApplyPatches(apply) => apply,
            other => bail!("not to apply: {other:?}"),
        }
    });
    place.refused(hourly, ChangeOptions::default())?;
    place.root.shell("rm -rf /var/lib/apt/lists/*")?;
    for operation in [place::apply(&[])?, fresh()?] {
        place.refused(operation, ChangeOptions::default())?;
    }
    Ok(())
}

fn full(place: &Place) -> Result<(Option<Outcome>, Option<patch_types::JobId>)> {
    let options = ChangeOptions { on_failure: OnFailure::All, ..ChangeOptions::default() };
    match place.executor.change(place::apply(&[])?, options, None) {
        Ok(job) => {
            let seen = system_tests::chaos::settle(&place.executor, job)?;
            Ok((seen.ended().and_then(|ended| ended.outcome), Some(job)))
        }
        Err(error) if error.downcast_ref::<system_tests::executor::Refusal>().is_some() => Ok((None, None)),
        Err(error) => Err(error),
    }
}

fn a_full_state_directory_never_strands_the_host() -> Result<()> {
    for kib in [64, 100, 132, 164, 200, 260, 400, 800, 1600] {
        let place = Place::on_day1(&["lp-app", "lp-bulk-00", "lp-conf"])?;
        let context = || format!("with a state directory of {kib} KiB");
        place.root.shell(&format!(
            "mkdir -p /var/lib/linux_patch_executor; mount -t tmpfs -o size={kib}k,mode=700 tmpfs /var/lib/linux_patch_executor"
        ))?;
        let before = place.state()?;
        let (outcome, _) = full(&place).with_context(context)?;
        let after = place.state()?;
        match outcome {
            Some(Outcome::Applied) => after.assert_in_order().with_context(context)?,
            _ => before.assert_same(&after).with_context(context)?,
        }
        place.executor.assert_no_panic()?;
    }
    Ok(())
}
