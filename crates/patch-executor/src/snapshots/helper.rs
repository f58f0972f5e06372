//! The process that works on snapshots: started by the executor for one order, answers on its standard output, and goes. What it
//! mounts is seen by nobody else and goes with it.
//!
//! It does not go with the executor: what it has begun it ends, and who comes after waits for that at the place's lock.

use std::{collections::BTreeSet, fs, path::PathBuf};

use patch_apply::{
    apt::argv::Argv,
    run,
    snapshots::{Family, SnapshotError, lvm, place::Place, snapper, volumes::Volumes, zfs},
};
use patch_types::snapshot::SnapshotKind;
use serde::Serialize;

use super::{LIMIT, Order, Record, mounts, returning};
use crate::paths::Paths;

/// The command of this program that it is.
pub(crate) const HELPER: &str = "snapshot-helper";

/// Carries one order out.
pub(crate) fn run(paths: &Paths, order: &str) -> anyhow::Result<()> {
    let order: Order = serde_json::from_str(order)?;
    match order {
        Order::Make { record } => answer(make(paths, record)),
        Order::Remove { record } => answer(remove(paths, &record)),
        Order::Look { record } => answer(returning::look(paths, &record)),
        Order::Return { record, returning } => answer(returning::carry_out(paths, &record, &returning)),
        Order::Standing { returning } => answer(returning::standing(paths, &returning)),
        Order::Arrive { returning } => answer(returning::fetch(paths, &returning)),
    }
}

fn answer<T: Serialize>(result: Result<T, SnapshotError>) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(&result.map_err(|error| error.to_string()))?);
    Ok(())
}

/// The file system of a record's system, in a place of this process's own.
pub(super) fn open(paths: &Paths, record: &Record) -> Result<(Place, Volumes), SnapshotError> {
    let place = Place::enter(paths.root())?;
    let volumes = mount(&place, record)?;
    Ok((place, volumes))
}

/// The same in a place that is there.
pub(super) fn mount(place: &Place, record: &Record) -> Result<Volumes, SnapshotError> {
    let member = record
        .system
        .members
        .first()
        .ok_or_else(|| SnapshotError::Impossible("the record names no mount".into()))?;
    // Its device may have another name since.
    let now = mounts().unwrap_or_default();
    let now = now.iter().find(|mount| mount.point == member.point && mount.family() == Family::Btrfs);
    Volumes::new(place.mount_top(now.unwrap_or(member))?)
}

/// Runs a tool.
fn tool(argv: &Argv) -> Result<String, SnapshotError> {
    let said = run::capture(argv, LIMIT)?;
    if said.code == Some(0) {
        return Ok(said.stdout);
    }
    Err(SnapshotError::Tool { command: argv.to_string(), said: said.text().trim().replace('\n', "; ") })
}

/// Whoever waited for this may have settled the job meanwhile.
fn is_wanted(paths: &Paths, record: &Record) -> Result<(), SnapshotError> {
    if Record::load(paths, record.job).ok().as_ref() == Some(record) {
        return Ok(());
    }
    Err(SnapshotError::Impossible("the job was settled meanwhile".into()))
}

/// One of LVM's, or of ZFS's.
fn make_volumes(paths: &Paths, mut record: Record) -> Result<Record, SnapshotError> {
    let _place = Place::enter(paths.root())?;
    is_wanted(paths, &record)?;
    let job = record.job.to_string();
    if record.kind == SnapshotKind::Zfs {
        let program = zfs::program().map_err(SnapshotError::Impossible)?;
        let sources = record.system.members.iter().map(|member| &member.source);
        if let Some(odd) = sources.clone().find(|source| !zfs::is_dataset(source)) {
            return Err(SnapshotError::Impossible(format!("{odd:?} is not the name of a dataset")));
        }
        record.volumes = sources.map(|dataset| zfs::name(dataset, &job)).collect();
        tool(&zfs::snapshot(program, &record.volumes))?;
        return Ok(record);
    }
    for (number, member) in record.system.members.iter().enumerate() {
        let argv = lvm::list(Some(&member.source));
        let listed = lvm::parse_list(&tool(&argv)?);
        let volume = listed.and_then(|volumes| volumes.into_iter().next());
        let volume = volume.ok_or_else(|| SnapshotError::NotUnderstood(argv.to_string()))?;
        let point = member.point.display();
        let pool = volume.pool().ok_or_else(|| {
            SnapshotError::Impossible(format!(
                "{point} is on {}, which is not a thin volume of LVM",
                member.kind
            ))
        })?;
        let argv = lvm::fullness(&pool);
        let full = lvm::parse_fullness(&tool(&argv)?);
        let full = full.ok_or_else(|| SnapshotError::NotUnderstood(argv.to_string()))?;
        if full > lvm::FULLEST {
            let message = format!("the pool {pool} of {point} is {full:.0} % full; extend it first");
            return Err(SnapshotError::Impossible(message));
        }
        let name = lvm::name(&job, number);
        tool(&lvm::create(&volume.path(), &name))?;
        record.volumes.push(format!("{}/{name}", volume.vg_name));
    }
    Ok(record)
}

/// Those that there are, by their names: also of one that was broken off.
fn remove_volumes(record: &Record) -> Result<(), SnapshotError> {
    let job = record.job.to_string();
    if record.kind == SnapshotKind::Zfs {
        let program = zfs::program().map_err(SnapshotError::Impossible)?;
        for member in &record.system.members {
            let name = zfs::name(&member.source, &job);
            let listed = tool(&zfs::list(program, &member.source))?;
            if zfs::parse_list(&listed).contains(&name.as_str())
                && let Some(argv) = zfs::destroy(program, &name)
            {
                tool(&argv)?;
            }
        }
        return Ok(());
    }
    let argv = lvm::list(None);
    let listed =
        lvm::parse_list(&tool(&argv)?).ok_or_else(|| SnapshotError::NotUnderstood(argv.to_string()))?;
    let names: BTreeSet<String> =
        (0..record.system.members.len()).map(|number| lvm::name(&job, number)).collect();
    for volume in listed.iter().filter(|volume| volume.is_ours() && names.contains(&volume.lv_name)) {
        tool(&lvm::remove(&volume.path()))?;
    }
    Ok(())
}

fn make(paths: &Paths, mut record: Record) -> Result<Record, SnapshotError> {
    if matches!(record.kind, SnapshotKind::Lvm | SnapshotKind::Zfs) {
        return make_volumes(paths, record);
    }
    let (_place, volumes) = open(paths, &record)?;
    is_wanted(paths, &record)?;
    match &mut record.snapper {
        Some((config, number)) => {
            let argv = snapper::create(config, &record.job.to_string());
            let made = snapper::parse_number(&tool(&argv)?)
                .ok_or_else(|| SnapshotError::NotUnderstood(argv.to_string()))?;
            record.uuids = vec![volumes.show(&snapper::path(made))?.uuid];
            *number = Some(made);
        }
        None => record.uuids = volumes.make(&record.system, &record.directory())?,
    }
    Ok(record)
}

fn remove(paths: &Paths, record: &Record) -> Result<(), SnapshotError> {
    let _place = if matches!(record.kind, SnapshotKind::Lvm | SnapshotKind::Zfs) {
        let place = Place::enter(paths.root())?;
        remove_volumes(record)?;
        place
    } else {
        let (place, volumes) = open(paths, record)?;
        remove_it(&volumes, record)?;
        place
    };
    // Still alone here: one that was to be made and comes too late finds none.
    let path = Record::path(paths, record.job);
    fs::remove_file(&path).map_err(|source| SnapshotError::File { path, source })
}

fn remove_it(volumes: &Volumes, record: &Record) -> Result<(), SnapshotError> {
    let Some((config, number)) = &record.snapper else {
        return volumes.remove(&record.directory(), &mounts().map_err(SnapshotError::Impossible)?);
    };
    // One that was never known is found by the job that it names.
    let mut numbers: BTreeSet<u64> = number.iter().copied().collect();
    if number.is_none() {
        let argv = snapper::list(config);
        let listed = snapper::parse_list(&tool(&argv)?, &record.job.to_string());
        numbers.extend(listed.ok_or_else(|| SnapshotError::NotUnderstood(argv.to_string()))?);
    }
    for number in numbers {
        // snapper gives the number of one that is gone to another, which is not ours.
        let path = snapper::path(number);
        if let Some(uuid) = record.uuids.first()
            && fs::symlink_metadata(&path).is_ok()
            && volumes.show(&path)?.uuid != *uuid
        {
            continue;
        }
        let removed = tool(&snapper::delete(config, number));
        if removed.is_err() && fs::symlink_metadata(path).is_ok() {
            return removed.map(drop);
        }
    }
    Ok(())
}

/// Where the snapshots of a record are seen. Each must be the very one that was made.
pub(super) fn trees(volumes: &Volumes, record: &Record) -> Result<Vec<PathBuf>, SnapshotError> {
    let trees: Vec<PathBuf> = match record.snapper {
        Some((_, Some(number))) => vec![snapper::path(number)],
        _ => (0..record.system.members.len())
            .map(|number| volumes.at(&record.directory()).join(number.to_string()))
            .collect(),
    };
    for (tree, uuid) in trees.iter().zip(&record.uuids) {
        let is_it = fs::symlink_metadata(tree).is_ok() && volumes.show(tree)?.uuid == *uuid;
        if !is_it {
            let message = format!("the snapshot {} is not there any more", record.names().join(", "));
            return Err(SnapshotError::Impossible(message));
        }
    }
    if trees.len() != record.uuids.len() {
        return Err(SnapshotError::Impossible("the snapshot was not made whole".into()));
    }
    Ok(trees)
}
