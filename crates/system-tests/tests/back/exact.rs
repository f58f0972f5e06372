//! Every kind of change is taken back to exactly what was: packages, marks, holds, conffiles, files.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use patch_types::{Grade, Operation, Outcome};
use system_tests::place::{self, Place};
use system_tests::trials::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("an_upgrade_is_taken_back_exactly", || {
            taken_back(&["lp-plain", "lp-special", "lp-conf"], &place::apply(&[])?)
        }),
        trial("an_install_is_taken_back_exactly", || {
            taken_back(&[], &place::install(&["lp-app", "lp-conf"])?)
        }),
        trial("an_upgrade_with_a_new_dependency_is_taken_back_exactly", || {
            taken_back(&["lp-newdep"], &place::update("lp-newdep")?)
        }),
        trial("a_removal_is_taken_back_exactly", || {
            taken_back(&["lp-app", "lp-conf"], &place::remove("lp-conf")?)
        }),
        trial("a_removal_with_dependents_is_taken_back_exactly", || {
            taken_back(&["lp-app", "lp-special"], &place::remove("lp-lib")?)
        }),
        trial("a_purge_is_taken_back_exactly", || taken_back(&["lp-conf"], &place::purge("lp-conf")?)),
        trial("a_downgrade_is_taken_back_exactly", a_downgrade_is_taken_back_exactly),
        trial("a_removal_of_a_conflicting_package_is_taken_back_exactly", || {
            taken_back(&["lp-breaks", "lp-victim"], &place::install(&["lp-breaks=1.1"])?)
        }),
        trial("a_batch_of_fifty_is_taken_back_exactly", a_batch_of_fifty_is_taken_back_exactly),
        trial(
            "a_package_that_was_removed_before_is_taken_back_to_that",
            a_removed_package_is_taken_back_to_that,
        ),
        trial("going_back_twice_changes_nothing", going_back_twice_changes_nothing),
        trial("going_back_is_taken_back", going_back_is_taken_back),
    ]
}

fn taken_back(installed: &[&str], operation: &Operation) -> Result<()> {
    let place = Place::on_day1(installed)?;
    if installed.contains(&"lp-conf") {
        place.root.push("mine\n", "/etc/lp-conf.conf", "640")?;
        place.root.shell("chown 3:4 /etc/lp-conf.conf")?;
    }
    if installed.contains(&"lp-special") {
        place.root.exec_ok(&["apt-mark", "auto", "lp-special"])?;
    }
    let before = place.state()?;
    let (job, seen) = place.must(operation.clone(), Outcome::Applied)?;
    ensure!(!before.diff(&place.state()?).is_empty(), "nothing was changed");
    place.state()?.assert_in_order()?;
    let way = seen.way_back();
    ensure!(way.is_none_or(|way| way.grade == Grade::Exact), "{way:#?}");
    place.take_back(job, &before).map(drop)
}

fn a_downgrade_is_taken_back_exactly() -> Result<()> {
    let place = Place::on_day1(&["lp-app", "lp-conf"])?;
    place.must(place::apply(&[])?, Outcome::Applied)?;
    let before = place.state()?;
    let down = place::install(&["lp-app=1.0", "lp-lib=1.0", "lp-conf=1.0"])?;
    let (job, _) = place.must(down, Outcome::Applied)?;
    ensure!(place.state()?.version("lp-lib") == Some("1.0"));
    place.take_back(job, &before).map(drop)
}

fn a_batch_of_fifty_is_taken_back_exactly() -> Result<()> {
    let names: Vec<String> = (0..50).map(|number| format!("lp-bulk-{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let place = Place::on_day1(&names)?;
    place.root.exec_ok(&["apt-mark", "auto", "lp-bulk-07", "lp-bulk-08"])?;
    let before = place.state()?;
    let (job, seen) = place.must(place::apply(&[])?, Outcome::Applied)?;
    ensure!(seen.plan().is_some_and(|plan| plan.changes.len() == 50));
    place.take_back(job, &before).map(drop)
}

fn a_removed_package_is_taken_back_to_that() -> Result<()> {
    let place = Place::on_day1(&["lp-conf"])?;
    place.root.push("mine\n", "/etc/lp-conf.conf", "600")?;
    place.root.exec_ok(&["apt-get", "-qq", "-y", "remove", "lp-conf"])?;
    let before = place.state()?;
    let (job, _) = place.must(place::install(&["lp-conf"])?, Outcome::Applied)?;
    place.go_back(place::rollback(job))?;
    // What dpkg remembers of a package that is only configuration is the version that went last; nothing can set it.
    let remembered = |line: &String| line.contains("config-files") || line.contains("recorded");
    let after = place.state()?;
    let differences: Vec<String> = before.diff(&after).into_iter().filter(|l| !remembered(l)).collect();
    ensure!(differences.is_empty(), "{differences:#?}");
    ensure!(place.root.read_text("/etc/lp-conf.conf")? == "mine\n", "the edit is gone");
    after.assert_in_order()
}

fn going_back_twice_changes_nothing() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    let before = place.state()?;
    let (job, _) = place.must(place::update("lp-plain")?, Outcome::Applied)?;
    place.take_back(job, &before)?;
    place.must(place::rollback(job), Outcome::Unchanged)?;
    before.assert_same(&place.state()?)
}

fn going_back_is_taken_back() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-app"])?;
    let (job, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
    let new = place.state()?;
    let back = place.executor.change(place::rollback(job), patch_types::ChangeOptions::default(), None)?;
    place.executor.follow(back)?;
    ensure!(place.state()?.version("lp-plain") == Some("1.0-1"));
    place.take_back(back, &new).map(drop)
}
