//! The way back: how good it is, what is required of it, and how long it is kept.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use patch_types::{ChangeOptions, ErrorCode, Grade, Outcome};
use system_tests::place::{self, Place};
use system_tests::trials::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("exact_is_refused_when_only_rebuilt_can_be_had", exact_is_refused_when_only_rebuilt_can_be_had),
        trial("a_rebuilt_package_comes_back_whole", a_rebuilt_package_comes_back_whole),
        trial("archives_are_shared_and_those_of_installed_versions_stay", archives_are_shared_and_stay),
        trial("an_archive_of_the_store_that_was_changed_is_not_used", a_changed_archive_is_not_used),
        trial("the_way_back_outlives_the_repository", the_way_back_outlives_the_repository),
        trial("without_a_way_back_nothing_can_be_taken_back", without_a_way_back),
        trial("going_back_is_not_refused_for_want_of_a_way_forward", going_back_needs_no_way_forward),
    ]
}

fn exact_is_refused_when_only_rebuilt_can_be_had() -> Result<()> {
    let place = Place::on_day1(&["lp-gone", "lp-plain"])?;
    place.root.shell("apt-get clean")?;
    place.configure("config.yaml", "rollback:\n  require: exact\n")?;
    let code = place.refused(place::update("lp-gone")?, ChangeOptions::default())?;
    ensure!(code == ErrorCode::RollbackUnavailable, "{code}");
    let code = place.refused(place::remove("lp-gone")?, ChangeOptions::default())?;
    ensure!(code == ErrorCode::RollbackUnavailable, "{code}");
    // What can be had exactly is not held up.
    place.must(place::update("lp-plain")?, Outcome::Applied)?;
    place.configure("config.yaml", "rollback:\n  require: any\n")?;
    let (_, seen) = place.must(place::update("lp-gone")?, Outcome::Applied)?;
    ensure!(seen.way_back().is_some_and(|way| way.grade == Grade::Rebuilt), "{:#?}", seen.way_back());
    Ok(())
}

fn a_rebuilt_package_comes_back_whole() -> Result<()> {
    // Every kind of file, and no archive of it anywhere.
    let place = Place::on_day1(&["lp-special"])?;
    place.root.push("changed by hand\n", "/usr/share/lp-special/version", "644")?;
    let pool = place.repository.path().join("day1/pool");
    for suite in std::fs::read_dir(pool)?.flatten() {
        for deb in std::fs::read_dir(suite.path())?.flatten() {
            if deb.file_name().to_string_lossy().starts_with("lp-special_1.0") {
                std::fs::remove_file(deb.path())?;
            }
        }
    }
    place.root.shell("apt-get clean")?;
    let before = place.state()?;
    let (job, seen) = place.must(place::update("lp-special")?, Outcome::Applied)?;
    let way = seen.way_back().context("no way back was told")?;
    ensure!(way.grade == Grade::Rebuilt && way.packages.iter().all(|p| !p.reason.is_empty()), "{way:#?}");
    place.go_back(place::rollback(job))?;
    let after = place.state()?;
    let differences: Vec<String> = before
        .diff(&after)
        .into_iter()
        .filter(|line| !line.starts_with("info ") && !line.starts_with("verify "))
        .collect();
    ensure!(differences.is_empty(), "{differences:#?}");
    Ok(())
}

/// All archives of the root side's store, by name.
fn store(place: &Place) -> Result<Vec<String>> {
    let state = place
        .executor
        .guest()
        .shell("find /var/lib/linux_patch_executor -name '*.deb' -printf '%P\\n' | sort")?;
    Ok(state.lines().map(str::to_owned).collect())
}

fn archives_are_shared_and_stay() -> Result<()> {
    let place = Place::new(&[])?;
    place.configure("config.yaml", "rollback:\n  keep_days: 1\n  keep_mib: 64\n")?;
    place.must(place::install(&["lp-gone", "lp-plain"])?, Outcome::Applied)?;
    place.day(1)?;
    place.root.shell("apt-get clean")?;
    // Several jobs need the same old archive, and none may take it from the others.
    let before = place.state()?;
    for _ in 0..2 {
        let (job, seen) = place.must(place::update("lp-plain")?, Outcome::Applied)?;
        ensure!(seen.way_back().is_some_and(|way| way.grade == Grade::Exact), "{:#?}", seen.way_back());
        place.take_back(job, &before)?;
        // As if days had passed.
        place.root.shell(
            "cd /var/lib/linux_patch_executor && touch -d '3 days ago' archives/*.deb journal/*/way-back",
        )?;
    }
    let names = store(&place)?;
    let mut unique = names.clone();
    unique.dedup();
    ensure!(names == unique, "{names:#?}");
    // All else was pruned, this one is of an installed version.
    let (job, seen) = place.must(place::update("lp-gone")?, Outcome::Applied)?;
    ensure!(
        seen.way_back().is_some_and(|way| way.grade == Grade::Exact),
        "{:#?}\n{names:#?}",
        seen.way_back()
    );
    place.take_back(job, &before).map(drop)
}

fn a_changed_archive_is_not_used() -> Result<()> {
    let place = Place::new(&[])?;
    place.must(place::install(&["lp-gone"])?, Outcome::Applied)?;
    place.day(1)?;
    let (job, _) = place.must(place::update("lp-gone")?, Outcome::Applied)?;
    let after = place.state()?;
    place.root.shell(
        "find /var/lib/linux_patch_executor -name '*.deb' | while read -r deb; do printf x | dd of=\"$deb\" bs=1 seek=300 conv=notrunc status=none; done; apt-get clean",
    )?;
    let error = place.refusal(place::rollback(job), ChangeOptions::default())?;
    ensure!(error.code == ErrorCode::RollbackUnavailable, "{error:?}");
    after.assert_same(&place.state()?)
}

fn the_way_back_outlives_the_repository() -> Result<()> {
    let place = Place::on_day1(&["lp-app", "lp-conf"])?;
    let before = place.state()?;
    let (job, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
    std::fs::remove_file(place.repository.path().join("current"))?;
    place.root.shell("apt-get clean; rm -rf /var/lib/apt/lists/*")?;
    place.take_back(job, &before).map(drop)
}

fn without_a_way_back() -> Result<()> {
    let place = Place::on_day1(&["lp-gone", "lp-plain"])?;
    place.root.shell("apt-get clean")?;
    place.configure("config.yaml", "rollback:\n  require: off\n  auto: false\n")?;
    let (_, seen) = place.must(place::update("lp-gone")?, Outcome::Applied)?;
    // It is told what there is, whatever that is.
    ensure!(seen.way_back().is_none_or(|way| way.grade <= Grade::Rebuilt), "{:#?}", seen.way_back());
    Ok(())
}

fn going_back_needs_no_way_forward() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    let before = place.state()?;
    let (job, _) = place.must(place::update("lp-plain")?, Outcome::Applied)?;
    // The new version is installed, and its archive is nowhere any more.
    std::fs::remove_file(place.repository.path().join("current"))?;
    place.root.shell(
        "apt-get clean; rm -rf /var/lib/apt/lists/*; rm /var/lib/linux_patch_executor/archives/lp-plain_1.1-1_*",
    )?;
    place.configure("config.yaml", "rollback:\n  require: exact\n")?;
    let code = place.refused(place::remove("lp-plain")?, ChangeOptions::default())?;
    ensure!(code == ErrorCode::RollbackUnavailable, "{code}");
    let seen = place.take_back(job, &before)?;
    ensure!(seen.way_back().is_some_and(|way| way.grade != Grade::Exact), "{:#?}", seen.way_back());
    Ok(())
}
