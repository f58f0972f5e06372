//! That the driver of these tests sees what is the case.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use patch_types::{JobStatus, Outcome};
use system_tests::place::{self, Place};
use system_tests::trials::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_driver_sees_changes_and_differences", the_driver_sees_changes_and_differences),
        trial("the_packages_are_the_traps_that_they_are_taken_for", the_packages_are_traps),
    ]
}

fn the_driver_sees_changes_and_differences() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-conf", "lp-special", "lp-bulk-00"])?;
    let before = place.state()?;
    before.assert_in_order()?;
    before.assert_same(&place.state()?)?;
    let plan = place.executor.plan(place::update("lp-plain")?)?;
    ensure!(plan.changes.len() == 1, "{plan:?}");
    let (_, seen) = place.must(place::apply(&["lp-plain", "lp-special"])?, Outcome::Applied)?;
    ensure!(seen.ended().context("no end")?.status == JobStatus::Completed);
    let after = place.state()?;
    after.assert_in_order()?;
    ensure!(after.version("lp-plain") == Some("1.1-1"));
    ensure!(before.diff(&after).iter().any(|line| line.starts_with("package lp-plain:all")));
    ensure!(
        before.fact("file /usr/bin/lp-special").is_some_and(|at| at.contains("security.capability=")),
        "{before:?}"
    );
    ensure!(
        before
            .fact("file /usr/bin/lp-special-setuid")
            .is_some_and(|at| at.contains("4755") && at.contains("2 names"))
    );
    // A difference that dpkg does not see.
    place.root.shell("touch /usr/share/lp-bulk-00/version.dpkg-new; rm /usr/bin/lp-special-link; chmod 600 /etc/lp-conf.conf")?;
    let now = place.state()?;
    ensure!(after.diff(&now).len() == 4 + now.all("verify ").count(), "{:#?}", after.diff(&now));
    ensure!(now.faults().len() >= 2, "{:#?}", now.faults());
    place.executor.assert_no_panic()
}

/// With apt and dpkg alone, without the root side.
fn the_packages_are_traps() -> Result<()> {
    let installed = [
        "lp-move-a",
        "lp-move-b",
        "lp-giver",
        "lp-noreturn",
        "lp-badprerm",
        "lp-trigger",
        "lp-watcher",
        "lp-gone",
        "lp-fixed",
    ];
    let place = Place::on_day1(&installed)?;
    let before = place.state()?;
    before.assert_in_order()?;
    let apt = |words: &[&str]| {
        let fixed = ["apt-get", "-qq", "-y", "--allow-downgrades", "install"];
        place.root.exec(&[&fixed, words].concat()).map(|output| output.success())
    };
    // Its old owner has lost the file, and dpkg finds nothing wrong.
    ensure!(apt(&["lp-move-a", "lp-move-b"])? && apt(&["lp-taker"])?);
    ensure!(place.root.read_text("/usr/share/lp-given/file")? == "taker\n");
    place.root.exec_ok(&["apt-get", "-qq", "-y", "remove", "lp-taker"])?;
    let after = place.state()?;
    ensure!(after.fact("file /usr/share/lp-given/file").is_none(), "the giver still lists it");
    ensure!(after.faults().is_empty() && !before.diff(&after).is_empty(), "{:#?}", after.faults());
    // The trigger fails for a package that nobody named.
    ensure!(!apt(&["lp-trigger"])?);
    ensure!(
        place.state()?.version("lp-watcher").is_none() && place.state()?.version("lp-trigger") == Some("1.1")
    );
    ensure!(apt(&["lp-trigger=1.0"])? && place.state()?.version("lp-watcher") == Some("1.0"));
    // No return from one, and none by hand past the other's prerm but by the old version's help.
    ensure!(apt(&["lp-noreturn", "lp-badprerm"])? && !apt(&["lp-noreturn=1.0"])?);
    ensure!(place.state()?.version("lp-noreturn") == Some("1.1"), "it came back");
    ensure!(apt(&["lp-badprerm=1.0"])?);
    // The archive has forgotten one, and mends another on its next day.
    ensure!(apt(&["lp-gone"])? && !apt(&["lp-gone=1.0"])? && !apt(&["lp-fixed"])?);
    place.day(2)?;
    ensure!(apt(&["lp-fixed"])? && place.state()?.version("lp-fixed") == Some("1.2"));
    place.state()?.assert_in_order()
}
