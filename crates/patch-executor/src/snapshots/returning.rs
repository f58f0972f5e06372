//! Going back to a snapshot: what that would take back is listed first, and only what was listed is done. The running system is not
//! touched: the next boot mounts a copy of the snapshot in its place, with the agent's own directories as they are by then.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use patch_apply::{
    apt::{
        snapshot::{PackageKey, Snapshot},
        taken_back,
    },
    snapshots::{
        Mounted, SnapshotError, System, carry,
        compare::{Differences, Known},
        lvm,
        place::Place,
        snapper,
        volumes::{self, OURS},
        zfs,
    },
};
use patch_backends::{
    apt::{Inventory, info},
    system,
};
use patch_types::{
    Action, ErrorCode, ErrorDetail, EventKind, JobId, JobStatus, Outcome, Plan, PlanHash, RollbackMode,
    TakesBack, WentBack, event::Ended, operation::Rollback, plan::PlannedChange, snapshot::SnapshotKind,
};
use serde::{Deserialize, Serialize};

use super::{Order, Record, ask, directory, helper, mounts, obstacles, records};
use crate::{
    change::{Change, Stop},
    journal::{self, Back, Journal, Returning, State},
    paths::Paths,
    protect, solver,
};

/// In the state of the system that ran until the reboot, and in the one that comes.
const PENDING: &str = "pending.json";
const ARRIVAL: &str = "arrival.json";

/// What is on record of an arrival that could not be made.
const FAILED: &str = "arrival-failed.json";

/// The marks by which Debian's tools know that a reboot is wanted.
const REBOOT: &str = "run/reboot-required";
const REBOOT_BY: &str = "run/reboot-required.pkgs";

/// What was looked at.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Looked {
    plan: Plan,
    system: System,
    numbers: Vec<u64>,
}

fn unavailable(job: JobId, message: String) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::RollbackUnavailable, message).with("job_id", job.to_string())
}

/// What going back to a job's snapshot changes, and what with.
fn look_at(paths: &Paths, rollback: &Rollback) -> Result<Looked, ErrorDetail> {
    let job = rollback.job;
    let target = Journal::open(&paths.journal(job)).map_err(|_| {
        let message =
            format!("the root side has no record of job {job}; it was never begun here, or was pruned");
        ErrorDetail::new(ErrorCode::JobNotFound, message)
    })?;
    if !matches!(target.record.state, State::Ended { .. }) {
        let message = format!("job {job} has not ended; wait for its end, or cancel it");
        return Err(ErrorDetail::new(ErrorCode::JobConflict, message));
    }
    let record = Record::load(paths, job).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unavailable(
            job,
            format!(
                "there is no snapshot of the file systems of before job {job}: none was made, or it was removed by its number \
                 or age (rollback.snapshots). The job's packages can be taken back without one"
            ),
        ),
        _ => unavailable(job, format!("the record of the snapshot of job {job} cannot be read: {error}")),
    })?;
    by_hand(&record)?;
    ask::<Looked>(paths, &Order::Look { record }).map_err(|reason| {
        unavailable(job, format!("the snapshot of job {job} cannot be gone back to: {reason}"))
    })
}

/// What the agent makes and does not go back to by itself: a volume that is merged loses what was written until the reboot, the
/// audit trail with it, and a dataset cannot be gone back with while the host runs from it.
fn by_hand(record: &Record) -> Result<(), ErrorDetail> {
    let (how, commands): (&str, Vec<String>) = match record.kind {
        SnapshotKind::Btrfs | SnapshotKind::Snapper => return Ok(()),
        SnapshotKind::Lvm => (
            "as root on the host, and then reboot at once",
            record.volumes.iter().map(|volume| lvm::merge(volume)).collect(),
        ),
        SnapshotKind::Zfs => (
            "from a rescue system that has imported the pool",
            record.volumes.iter().map(|name| zfs::rollback(name)).collect(),
        ),
    };
    let message = format!(
        "the snapshot of job {} is there, but the agent does not go back to one of {} by itself. Everything since {:.0} goes \
         with it, the agent's own records too. By hand, {how}: {}",
        record.job,
        record.kind,
        record.at,
        commands.join(" && ")
    );
    Err(unavailable(record.job, message).with("commands", commands))
}

/// Works out what going back to a job's snapshot comes to now. Nothing is changed.
pub(crate) fn plan(paths: &Paths, rollback: &Rollback) -> Result<Plan, ErrorDetail> {
    awaits_reboot(paths)?;
    look_at(paths, rollback).map(|looked| looked.plan)
}

/// In the helper: compares the host with a snapshot.
pub(super) fn look(paths: &Paths, record: &Record) -> Result<Looked, SnapshotError> {
    let impossible = |message: String| SnapshotError::Impossible(message);
    let mounts = mounts().map_err(impossible)?;
    let system = super::system(paths).map_err(impossible)?;
    if system.points() != record.system.points() {
        return Err(impossible("other file systems make up the system than then".into()));
    }
    if let Some(member) =
        system.members.iter().find(|member| member.part.iter().any(|part| part == ".snapshots"))
    {
        return Err(impossible(format!(
            "{} is itself one of snapper's snapshots, which snapper goes back to: `snapper rollback`, with the number of {}",
            member.point.display(),
            record.names().join(", ")
        )));
    }
    let numbers =
        system.numbers().ok_or_else(|| impossible("the kernel does not number the subvolumes".into()))?;
    let stop =
        |obstacle: Option<String>| obstacle.map_or(Ok(()), |why| Err(impossible(by_a_person(record, &why))));
    stop(obstacles::of_layout(&system))?;
    let Some(member) = system.members.first() else { return Err(impossible("nothing is mounted".into())) };
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    stop(obstacles::of_command_line(&command_line, member))?;
    stop(
        carry::linked()?
            .map(|path| format!("{} is reached by a link, and could not be carried over", path.display())),
    )?;
    let (place, volumes) = helper::open(paths, record)?;
    let (filled, empty) = volumes.within(&system)?;
    stop(obstacles::of_nested(&filled))?;
    let trees = helper::trees(&volumes, record)?;
    let view = place.view(trees.iter().map(PathBuf::as_path).zip(&system.members))?;
    for (root, whose) in [(paths.root(), "/etc/fstab"), (view.as_path(), "/etc/fstab of the snapshot")] {
        let table = fs::read_to_string(root.join("etc/fstab")).unwrap_or_default();
        stop(obstacles::of_table(&table, whose, member))?;
    }
    let unreadable = |error: patch_backends::ReadError| impossible(error.to_string());
    let (then, now) =
        (Inventory::read(&view).map_err(unreadable)?, Inventory::read(paths.root()).map_err(unreadable)?);
    let changes = crate::back::differences(&then, &now);

    let mut known = Known::default();
    let mut elsewhere: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    let keys: BTreeSet<(&str, &str)> =
        changes.iter().map(|change| (change.name.name(), change.architecture.as_str())).collect();
    for inventory in [&then, &now] {
        for package in inventory.database.iter() {
            if !keys.contains(&(package.name(), package.architecture())) {
                continue;
            }
            let files = info::files(&inventory.root, package).unwrap_or_default();
            for file in files.iter().map(Path::new) {
                known.add(file);
                // Kernels in a `/boot` of its own are told of one by one.
                let left_out = system.left_out.iter().find(|point| file.starts_with(point));
                if let Some(point) =
                    left_out.filter(|point| *point != Path::new("/boot") && file != point.as_path())
                {
                    elsewhere.entry(point.clone()).or_default().insert(package.name().to_owned());
                }
            }
        }
    }
    // What somebody has edited is his, whoever shipped it.
    for package in now.database.iter().filter(|p| keys.contains(&(p.name(), p.architecture()))) {
        for edited in info::changed_conffiles(paths.root(), package) {
            known.paths.remove(Path::new(&edited.path));
        }
    }
    let carried: Vec<PathBuf> =
        volumes::carried(&system, &mounts).into_iter().map(|carried| carried.path).collect();
    known.directories.extend(carried.iter().cloned());
    // The packages are told of by name.
    known.directories.extend(["/var/lib/dpkg", "/var/lib/apt/extended_states"].map(PathBuf::from));
    known.directories.push(Path::new("/").join(OURS));
    let mut differences = Differences::default();
    for (member, tree) in system.members.iter().zip(&trees) {
        differences.compare(&member.point, tree, &member.point, &known)?;
    }
    let mut hazards = hazards(paths.root(), &view, &system, &mounts);
    hazards.extend(elsewhere.into_iter().map(|(point, packages)| {
        format!(
            "{} does not go back, and has files of packages that do: {}",
            point.display(),
            packages.into_iter().collect::<Vec<_>>().join(", ")
        )
    }));
    hazards.extend(boot_loader(&changes));
    hazards.extend(boot_partition(&changes, &system));
    record.names().iter().chain(&hazards).for_each(|line| differences.add(line));
    let (files, total, hash) = differences.listed();
    let mut plan = Plan::of(changes);
    plan.hash = PlanHash::of_snapshot(&plan.changes, Some(&hash));
    plan.needs_reboot = true;
    plan.takes_back = Some(TakesBack {
        kind: record.kind,
        names: record.names(),
        at: record.at,
        file_systems: record.points(),
        left_out: system.left_out.iter().map(|point| point.display().to_string()).collect(),
        files,
        total,
        kept: carried.iter().chain(&empty).map(|path| path.display().to_string()).collect(),
        hazards,
    });
    Ok(Looked { plan, system, numbers })
}

/// Why the agent leaves it to a person, and what there is to go by.
fn by_a_person(record: &Record, why: &str) -> String {
    let own = match &record.snapper {
        Some((config, Some(number))) => {
            format!("; what snapper does itself: `{}`", snapper::undo(config, *number))
        }
        _ => String::new(),
    };
    format!(
        "{why}. The snapshot is there ({}); how a person goes back to it is in docs/snapshots.md{own}",
        record.names().join(", ")
    )
}

/// Packages whose programs are outside of what goes back as well: what starts the host.
const BOOT_LOADERS: &[&str] =
    &["grub", "shim", "systemd-boot", "refind", "extlinux", "syslinux", "lilo", "u-boot"];

fn boot_loader(changes: &[PlannedChange]) -> Option<String> {
    let is_one = |name: &&str| BOOT_LOADERS.iter().any(|loader| name.starts_with(loader));
    let names: BTreeSet<&str> = changes.iter().map(|change| change.name.name()).filter(is_one).collect();
    (!names.is_empty()).then(|| {
        format!(
            "packages of the boot loader go back ({}), and what they have put before the file system (the disk's first \
             sectors, the EFI partition) does not: install it anew from a rescue system if it does not start",
            names.into_iter().collect::<Vec<_>>().join(", ")
        )
    })
}

/// Where firmware and boot loaders that read no other file system have the kernels.
const BOOT_PARTITIONS: &[&str] = &["/boot", "/boot/efi", "/boot/firmware", "/efi"];

/// Kernels go or come back with the packages, and there is a partition that may have copies of them.
fn boot_partition(changes: &[PlannedChange], system: &System) -> Option<String> {
    let kernels = changes.iter().any(|change| info::kernel_release(change.name.name()).is_some());
    let left_out = |path: &&&str| system.left_out.iter().any(|point| point == Path::new(**path));
    let partitions: Vec<&str> = BOOT_PARTITIONS.iter().filter(left_out).copied().collect();
    (kernels && !partitions.is_empty()).then(|| {
        format!(
            "packages of kernels go back, and {} with what is booted does not: see that a kernel is there whose modules the \
             snapshot has",
            partitions.join(", ")
        )
    })
}

/// Where kernels with all that they need lie on an EFI partition.
const UNIFIED: &[&str] = &["efi/EFI/Linux", "boot/efi/EFI/Linux", "boot/EFI/Linux"];

/// The kernels that a directory of modules has.
fn kernels(root: &Path) -> BTreeSet<String> {
    let names = |directory: &str| {
        fs::read_dir(root.join(directory))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
    };
    names("usr/lib/modules").chain(names("lib/modules")).collect()
}

/// What may go wrong with going back.
fn hazards(root: &Path, view: &Path, system: &System, mounts: &[Mounted]) -> Vec<String> {
    let mut hazards = Vec::new();
    if UNIFIED
        .iter()
        .any(|path| fs::read_dir(root.join(path)).is_ok_and(|mut entries| entries.next().is_some()))
    {
        hazards.push(
            "unified kernels lie on the EFI partition, which does not go back: see that one is there whose modules the \
             snapshot has"
                .to_owned(),
        );
    }
    // Kernels that stay where they are, when their modules go.
    if system.member_of(mounts, Path::new("/boot")).is_none() {
        let then = kernels(view);
        let images: BTreeSet<String> = fs::read_dir(root.join("boot"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
            .collect();
        let without: Vec<&str> =
            images.difference(&then).map(String::as_str).filter(|name| !name.ends_with(".old")).collect();
        if !without.is_empty() {
            hazards.push(format!(
                "/boot does not go back, and keeps kernels whose modules go: {}; have another one booted, or remove them \
                 there before the reboot",
                without.join(", ")
            ));
        }
        if !images.is_empty() && images.is_disjoint(&then) {
            hazards
                .push("/boot does not go back, and has no kernel whose modules the snapshot has".to_owned());
        }
    }
    hazards
}

/// In the helper: whether anything was exchanged.
pub(super) fn standing(paths: &Paths, returning: &Returning) -> Result<bool, SnapshotError> {
    let record = Record::replaced(returning.job, returning.system.clone());
    let (_place, volumes) = helper::open(paths, &record)?;
    volumes.has_begun(&returning.system, &returning.numbers)
}

/// In the helper: prepares what the next boot is to mount, and puts it in place.
pub(super) fn carry_out(
    paths: &Paths,
    record: &Record,
    returning: &Returning,
) -> Result<Returning, SnapshotError> {
    let mounts = mounts().map_err(SnapshotError::Impossible)?;
    let (_place, volumes) = helper::open(paths, record)?;
    let Returning { job, system, numbers, .. } = returning;
    let directory = directory(*job);
    let has_begun = volumes.has_begun(system, numbers)?;
    let prepared = if has_begun {
        Ok(())
    } else {
        // Of an attempt that was broken off; the copy that is made now is not to have it.
        let _ = fs::remove_file(records(paths).join(PENDING));
        let trees = helper::trees(&volumes, record)?;
        volumes.prepare(system, &mounts, &trees, &directory)
    };
    let done = prepared.and_then(|()| {
        let coming = volumes.coming(system, numbers, &directory)?;
        let returning = Returning { coming, ..returning.clone() };
        if !has_begun {
            announce(paths, &volumes, &returning, &mounts, &directory)?;
        }
        note(&records(paths), PENDING, &returning)?;
        // What has come into a subvolume meanwhile would stay behind.
        let (filled, _) = volumes.within(system)?;
        if !has_begun && let Some(why) = obstacles::of_nested(&filled) {
            return Err(SnapshotError::Impossible(why));
        }
        volumes.exchange(system, numbers, &directory)?;
        Ok(returning)
    });
    if done.is_err() && !volumes.has_begun(system, numbers).unwrap_or(true) {
        let _ = fs::remove_file(records(paths).join(PENDING));
        let _ = volumes.remove(&directory, &mounts);
    }
    done
}

/// Tells the system that comes where what was written until the reboot is.
fn announce(
    paths: &Paths,
    volumes: &volumes::Volumes,
    returning: &Returning,
    mounts: &[Mounted],
    directory: &Path,
) -> Result<(), SnapshotError> {
    let carried = volumes::carried(&returning.system, mounts);
    let state = carried.iter().find(|carried| carried.path == paths.state());
    // On a file system that does not go back it is the same one.
    let records = state.map_or_else(
        || records(paths),
        |state| volumes.at(directory).join(state.member.to_string()).join(&state.within).join("snapshots"),
    );
    note(&records, ARRIVAL, returning)
}

fn note(directory: &Path, name: &str, returning: &Returning) -> Result<(), SnapshotError> {
    let file = |source| SnapshotError::File { path: directory.join(name), source };
    let text = serde_json::to_vec(returning).map_err(|error| file(io::Error::other(error)))?;
    journal::write_whole(directory, name, &text).map_err(file)
}

fn noted(paths: &Paths, name: &str) -> Option<Returning> {
    let path = records(paths).join(name);
    match fs::read(&path) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(returning) => Some(returning),
            Err(error) => {
                eprintln!("patch-executor: {}: {error}", path.display());
                None
            }
        },
        Err(_) => None,
    }
}

/// In the helper, after the reboot: fetches what was written to the agent's directories between going back and the reboot.
pub(super) fn fetch(paths: &Paths, returning: &Returning) -> Result<(), SnapshotError> {
    let mounts = mounts().map_err(SnapshotError::Impossible)?;
    let record = Record::replaced(returning.job, returning.system.clone());
    let place = Place::enter(paths.root())?;
    // Another one may have been quicker.
    let arrival = records(paths).join(ARRIVAL);
    if !arrival.exists() {
        return Ok(());
    }
    let fetched =
        helper::mount(&place, &record).and_then(|volumes| fetch_from(paths, &volumes, returning, &mounts));
    match &fetched {
        // It is gone with what it lay in, or that did not go back.
        Ok(()) => [ARRIVAL, FAILED].iter().for_each(|name| drop(fs::remove_file(records(paths).join(name)))),
        // What is here goes on from here, and must not be overwritten by one who comes later. What it is told by keeps what
        // the host ran from before.
        Err(_) if note(&records(paths), FAILED, returning).is_ok() => drop(fs::remove_file(&arrival)),
        Err(_) => {}
    }
    fetched
}

/// Each by itself: the network side's own directories, which it may have filled, are no reason to lose the root side's.
fn fetch_from(
    paths: &Paths,
    volumes: &volumes::Volumes,
    returning: &Returning,
    mounts: &[Mounted],
) -> Result<(), SnapshotError> {
    let former = volumes.former(&returning.system, &directory(returning.job));
    for (tree, number) in former.iter().zip(&returning.numbers) {
        if volumes.show(tree)?.number != *number {
            return Err(SnapshotError::Impossible(format!(
                "{} is not what the host ran from",
                tree.display()
            )));
        }
    }
    let mut failed = Vec::new();
    for carried in volumes::carried(&returning.system, mounts) {
        let Some(tree) = former.get(carried.member) else { continue };
        if carried.path == paths.state() {
            // It comes with what is fetched: from then on the mark of the arrival is gone, and the others are still to come.
            note(&tree.join(&carried.within).join("snapshots"), FAILED, returning)?;
        }
        if let Err(error) = carry::replace(&tree.join(&carried.within), &carried.path) {
            // The root side's own comes first; without it the others would tell of what it does not know.
            if carried.path == paths.state() {
                return Err(error);
            }
            failed.push(format!("{}: {error}", carried.path.display()));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(SnapshotError::Impossible(failed.join("; "))) }
}

/// The job of which something could not be fetched: what the host ran from before is the only place where that is.
pub(super) fn unfetched(paths: &Paths) -> Option<JobId> {
    noted(paths, FAILED).map(|returning| returning.job)
}

/// What is running, by the numbers of its subvolumes.
fn running(paths: &Paths) -> Option<Vec<u64>> {
    super::system(paths).ok()?.numbers()
}

/// After the reboot of a system that went back: sees to it that nothing of the agent's is lost. Done before anything else is
/// written; where there is nothing to do, it is one look at a directory.
pub(crate) fn arrive(paths: &Paths) {
    if let Some(returning) = noted(paths, ARRIVAL)
        && running(paths).as_ref() == Some(&returning.coming)
        && let Err(reason) = ask::<()>(paths, &Order::Arrive { returning: returning.clone() })
    {
        eprintln!(
            "patch-executor: what the agent wrote between job {} and the reboot could not all be fetched, and is in the \
             subvolume {}, which is kept until somebody has removed {}: {reason}",
            returning.job,
            directory(returning.job).display(),
            records(paths).join(FAILED).display()
        );
    }
    let _ = awaits_reboot(paths);
}

/// Whether the host waits for the reboot by which it goes back: what is changed until then would be gone.
///
/// # Errors
/// `JOB_CONFLICT` if it does.
pub(crate) fn awaits_reboot(paths: &Paths) -> Result<(), ErrorDetail> {
    let pending = records(paths).join(PENDING);
    let Some(returning) = noted(paths, PENDING) else {
        if fs::symlink_metadata(&pending).is_err() {
            return Ok(());
        }
        let message = format!(
            "the host may go back to a snapshot at its next reboot, and {} cannot be read: whatever is changed could be gone then. \
             Reboot it, or call it off as docs/snapshots.md says, and remove that file; nothing was changed",
            pending.display()
        );
        return Err(ErrorDetail::new(ErrorCode::JobConflict, message));
    };
    // The root's number alone: what else is mounted by now says nothing.
    let root = mounts()
        .ok()
        .and_then(|mounts| mounts.into_iter().find(|mount| mount.point == Path::new("/"))?.number);
    let is = |numbers: &[u64]| root.is_some() && root == numbers.first().copied();
    if !is(&returning.coming) {
        let order = Order::Standing { returning: returning.clone() };
        if is(&returning.numbers) && ask::<bool>(paths, &order) == Ok(false) {
            eprintln!(
                "patch-executor: nothing is exchanged any more for job {}: the host stays as it is",
                returning.job
            );
            let _ = fs::remove_file(&pending);
            return Ok(());
        }
        let message = if system::boot_id(paths.root()) == returning.boot {
            format!(
                "the host goes back to the snapshot of before job {} at its next reboot, by job {}; whatever is changed until \
                 then would be gone. Reboot it first; nothing was changed",
                returning.source, returning.job
            )
        } else {
            format!(
                "the host was booted from what it ran from before, and not from the snapshot of before job {} as job {} asked. \
                 Another boot may still come up from that, and whatever is changed until then would be gone. Have it booted \
                 (by name, not by number), or call it off as docs/snapshots.md says; nothing was changed",
                returning.source, returning.job
            )
        };
        return Err(
            ErrorDetail::new(ErrorCode::JobConflict, message).with("job_id", returning.job.to_string())
        );
    }
    // What it ran from before is kept as long as a snapshot is.
    if let Err(error) = Record::replaced(returning.job, returning.system.clone()).save(paths) {
        eprintln!("patch-executor: what the host ran from before cannot be recorded: {error}");
    }
    // The file is on the system that has gone; the list is not.
    if let Err(error) = taken_back::restore(paths.root(), &paths.state()) {
        eprintln!("patch-executor: {error}");
    }
    eprintln!(
        "patch-executor: the host runs from the snapshot of before job {} now, as job {} asked",
        returning.source, returning.job
    );
    let _ = fs::remove_file(&pending);
    Ok(())
}

impl Change<'_> {
    /// Plans going back to a snapshot: refuses unless it is exactly what was listed to somebody.
    pub(crate) fn plan_return(&mut self, rollback: &Rollback) -> Result<State, Stop> {
        let Looked { plan, system, numbers } = look_at(self.paths, rollback)?;
        self.events.emit_durably(EventKind::Planned { plan: plan.clone() });
        let approved = self.journal.record.if_plan.as_ref();
        if approved != Some(&plan.hash) {
            return Err(drifted(&plan.hash, approved).into());
        }
        let hazards = plan.takes_back.as_ref().map(|back| back.hazards.clone()).unwrap_or_default();
        if !hazards.is_empty() && !rollback.force {
            let message =
                format!("{}; nothing was changed. With `force` it is done all the same", hazards.join("; "));
            return Err(ErrorDetail::new(ErrorCode::RollbackUnavailable, message)
                .with("hazards", hazards)
                .into());
        }
        let mut removals = plan.clone();
        // The running kernel goes at the reboot, when it does not run.
        removals.changes.retain(|change| info::kernel_release(change.name.name()).is_none());
        protect::removals(&removals, &solver::inventory(self.paths.root())?)?;
        let returning = Returning {
            job: self.journal.record.id,
            source: rollback.job,
            system,
            numbers,
            boot: system::boot_id(self.paths.root()),
            coming: Vec::new(),
        };
        Ok(State::Returning { plan, returning })
    }

    /// Goes back to a snapshot, at the next boot.
    pub(crate) fn return_to_snapshot(&mut self, plan: &Plan, returning: &Returning) -> Result<State, Stop> {
        let _lock = self.frontend()?;
        self.hold_shutdown_up();
        let record = Record::load(self.paths, returning.source).map_err(|error| {
            unavailable(returning.source, format!("the record of the snapshot cannot be read: {error}"))
        })?;
        // Taken up again after it was broken off, it is approved for what was listed then, and for nothing else.
        let has_begun = ask::<bool>(self.paths, &Order::Standing { returning: returning.clone() });
        if has_begun == Ok(false) {
            let rollback = Rollback { job: returning.source, force: true, mode: RollbackMode::Snapshot };
            let now = look_at(self.paths, &rollback).map(|looked| looked.plan.hash);
            if now.as_ref() != Ok(&plan.hash) {
                // What was prepared for it, if it came so far.
                let prepared = Record::replaced(returning.job, returning.system.clone());
                if let Err(reason) = prepared
                    .save(self.paths)
                    .map_err(|e| e.to_string())
                    .and_then(|()| super::remove(self.paths, prepared))
                {
                    self.remark(format!("what was prepared for going back cannot be removed: {reason}"));
                }
                return Err(drifted(&now?, Some(&plan.hash)).into());
            }
        }
        let order = Order::Return { record: record.clone(), returning: returning.clone() };
        let done = ask::<Returning>(self.paths, &order);
        if let Err(reason) = &done {
            let error = |message| ErrorDetail::new(ErrorCode::PkgManagerError, message);
            if noted(self.paths, PENDING).is_none() {
                let message =
                    format!("the host does not go back to the snapshot: {reason}; nothing was changed");
                return Err(error(message).into());
            }
            let message = format!(
                "it is not certain whether the next boot brings the host back to the snapshot: {reason}. It comes up from that or \
                 from what it runs from, each of them whole; until then nothing more is changed. Reboot it"
            );
            return Ok(ended(JobStatus::Failed, Outcome::RollbackFailed, Some(error(message))));
        }
        // Broken off before the reboot, and taken up again after it.
        let is_here = done.is_ok_and(|done| running(self.paths).as_ref() == Some(&done.coming));
        let reason = if is_here {
            format!("the host runs from the snapshot of before job {}", returning.source)
        } else {
            self.ask_for_reboot();
            format!(
                "the host goes back to the snapshot of before job {} at its next reboot; until then it runs as it is, and \
                 nothing more is changed",
                returning.source
            )
        };
        let barred = self.pin(plan, &self.undone(plan, returning, &reason));
        let restored = plan
            .changes
            .iter()
            .map(|change| match &change.new_version {
                Some(version) => format!("{} {version}", change.name),
                None => format!("{} not installed", change.name),
            })
            .collect();
        let report = WentBack {
            reason,
            restored,
            left: Vec::new(),
            kept_edits: plan.takes_back.as_ref().map(|back| back.kept.clone()).unwrap_or_default(),
            commands: if is_here { Vec::new() } else { vec!["systemctl reboot".to_owned()] },
            barred,
        };
        self.events.emit_durably(EventKind::WentBack { report });
        Ok(ended(JobStatus::Completed, Outcome::Applied, None))
    }

    /// The job's own packages: their versions are not to be installed again by themselves.
    fn undone(&self, plan: &Plan, returning: &Returning, reason: &str) -> Back {
        let way_back = journal::way_back(&self.paths.journal(returning.source));
        let own: Option<BTreeSet<PackageKey>> = Snapshot::load(&way_back).ok().map(|snapshot| {
            snapshot.affected.into_iter().filter(|one| one.planned).map(|one| one.key).collect()
        });
        let scope = plan
            .changes
            .iter()
            .filter(|change| change.action == Action::Downgrade)
            .map(crate::verdict::key_of)
            .filter(|key| own.as_ref().is_none_or(|own| own.contains(key)))
            .collect();
        Back {
            source: returning.source,
            scope,
            reason: reason.to_owned(),
            attempts: 0,
            rest: Vec::new(),
            unconfirmed: false,
        }
    }

    fn ask_for_reboot(&mut self) {
        let root = self.paths.root();
        let written = fs::write(root.join(REBOOT), "*** System restart required ***\n").and_then(|()| {
            let mut by = fs::read_to_string(root.join(REBOOT_BY)).unwrap_or_default();
            if !by.lines().any(|line| line == crate::change::AGENT) {
                by.push_str(crate::change::AGENT);
                by.push('\n');
            }
            fs::write(root.join(REBOOT_BY), by)
        });
        if let Err(error) = written {
            self.remark(format!("that a reboot is wanted could not be noted in /{REBOOT}: {error}"));
        }
    }
}

fn drifted(now: &PlanHash, approved: Option<&PlanHash>) -> ErrorDetail {
    let message = format!(
        "what going back to the snapshot takes back is now {now}, and {} was approved; nothing was changed. Look at the new \
         list and approve that",
        approved.map_or("nothing", |hash| hash.as_str())
    );
    ErrorDetail::new(ErrorCode::PlanDrift, message).with("current", now.as_str())
}

fn ended(status: JobStatus, outcome: Outcome, error: Option<ErrorDetail>) -> State {
    State::Ended {
        ended: Box::new(Ended {
            status,
            outcome: Some(outcome),
            exit_code: None,
            error,
            results: Vec::new(),
            answer: None,
        }),
    }
}
