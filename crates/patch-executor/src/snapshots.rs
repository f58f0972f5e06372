//! Snapshots of the host's file systems: when one is made, how long it is kept, and going back to it. How that is done is
//! `patch_apply`'s; it is done by a process of its own ([`helper`]), in a mount namespace that goes with it.
//!
//! What is made is on record before it is made, and what is removed is removed from the record last: nothing of ours is left
//! that nobody knows, and nothing is removed that is not on record.

mod helper;
mod obstacles;
mod returning;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use patch_apply::{
    apt::argv::Argv,
    run,
    snapshots::{
        self, Family, Mounted, System, lvm, snapper,
        volumes::{OURS, Volumes},
        zfs,
    },
};
use patch_types::{
    ErrorCode, ErrorDetail, JobId, Operation, Plan, SnapshotReport,
    settings::{SnapshotMode, Snapshots},
    snapshot::{SnapshotKind, SnapshotState},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub(crate) use helper::{HELPER, run as run_helper};
pub(crate) use returning::{arrive, awaits_reboot, plan};

use crate::{
    back,
    change::{Change, Stop},
    journal::{self, Journal, Returning, State},
    paths::Paths,
};

/// How long the helper may take for anything.
const LIMIT: Duration = Duration::from_secs(1800);

/// What is on record of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The job before which it was made; of what a going back has replaced, that job.
    job: JobId,
    at: Timestamp,
    role: Role,
    kind: SnapshotKind,
    system: System,
    /// Whether it is whole.
    made: bool,
    /// Of snapper's: the configuration, and the number once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    snapper: Option<(String, Option<u64>)>,
    /// Of LVM's and of ZFS's: what they are called, once that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<String>,
    /// The subvolumes' UUIDs, once they are known.
    #[serde(default)]
    uuids: Vec<String>,
}

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    /// The host before a job.
    Before,
    /// What the host ran from until it went back.
    Replaced,
}

impl Record {
    /// Of what a host ran from until it went back.
    fn replaced(job: JobId, system: System) -> Self {
        Self {
            job,
            at: Timestamp::now(),
            role: Role::Replaced,
            kind: SnapshotKind::Btrfs,
            system,
            made: true,
            snapper: None,
            volumes: Vec::new(),
            uuids: Vec::new(),
        }
    }

    /// Where ours are, from the top of the file system.
    fn directory(&self) -> PathBuf {
        directory(self.job)
    }

    /// What each is called.
    fn names(&self) -> Vec<String> {
        match (&self.snapper, self.kind) {
            (Some((config, number)), _) => {
                number.map(|number| format!("{config} {number}")).into_iter().collect()
            }
            (None, SnapshotKind::Lvm | SnapshotKind::Zfs) => self.volumes.clone(),
            (None, _) => (0..self.system.members.len())
                .map(|number| self.directory().join(number.to_string()).display().to_string())
                .collect(),
        }
    }

    fn points(&self) -> Vec<String> {
        self.system.members.iter().map(|member| member.point.display().to_string()).collect()
    }

    fn left_out(&self) -> Vec<String> {
        self.system.left_out.iter().map(|point| point.display().to_string()).collect()
    }

    fn report(&self) -> SnapshotReport {
        SnapshotReport {
            state: SnapshotState::Made,
            reason: None,
            kind: Some(self.kind),
            names: self.names(),
            file_systems: self.points(),
            left_out: self.left_out(),
            at: Some(self.at),
        }
    }

    fn path(paths: &Paths, job: JobId) -> PathBuf {
        records(paths).join(format!("{job}.json"))
    }

    fn load(paths: &Paths, job: JobId) -> io::Result<Self> {
        serde_json::from_slice(&fs::read(Self::path(paths, job))?).map_err(io::Error::other)
    }

    fn save(&self, paths: &Paths) -> io::Result<()> {
        let directory = records(paths);
        match journal::make_private(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        journal::write_whole(&directory, &format!("{}.json", self.job), &text)
    }

    fn all(paths: &Paths) -> Vec<Self> {
        let entries = fs::read_dir(records(paths)).into_iter().flatten().flatten();
        let jobs = entries
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json")?.parse::<JobId>().ok());
        let mut all: Vec<Self> = jobs
            .filter_map(|job| match Self::load(paths, job) {
                Ok(record) => Some(record),
                Err(error) => {
                    eprintln!(
                        "patch-executor: the record of the snapshot of job {job} cannot be read: {error}"
                    );
                    None
                }
            })
            .collect();
        all.sort_by_key(|record| (record.at, record.job));
        all
    }
}

/// Where the records are.
fn records(paths: &Paths) -> PathBuf {
    paths.state().join("snapshots")
}

/// Where a job's subvolumes are, from the top of the file system.
fn directory(job: JobId) -> PathBuf {
    Path::new(OURS).join(job.to_string())
}

/// What the helper is to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Order {
    /// Make a snapshot; answers with the record, completed.
    Make { record: Record },
    /// Remove one, as far as it is there, and its record.
    Remove { record: Record },
    /// Say what going back to it changes.
    Look { record: Record },
    /// Go back to it.
    Return { record: Record, returning: Returning },
    /// Say whether anything was exchanged for it.
    Standing { returning: Returning },
    /// Fetch what was written until the reboot that went back.
    Arrive { returning: Returning },
}

/// Has the helper do something.
fn ask<T: DeserializeOwned>(paths: &Paths, order: &Order) -> Result<T, String> {
    let text = serde_json::to_string(order).map_err(|error| error.to_string())?;
    let root = paths.root().to_string_lossy().into_owned();
    let argv = Argv::new("/proc/self/exe", vec!["--root".into(), root, HELPER.into(), text]);
    let said = run::capture(&argv, LIMIT).map_err(|error| error.to_string())?;
    match serde_json::from_str::<Result<T, String>>(said.stdout.trim()) {
        Ok(answer) => answer,
        Err(_) => Err(format!("the helper ended without an answer: {}", said.stderr.trim())),
    }
}

/// All that is mounted.
fn mounts() -> Result<Vec<Mounted>, String> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(snapshots::mounts(&text))
}

/// What makes up the running system, where a snapshot of it can be made.
fn system(paths: &Paths) -> Result<System, String> {
    if paths.root() != Path::new("/") {
        return Err(format!("only of the system that runs, not of one below {}", paths.root().display()));
    }
    let mounts = mounts()?;
    let system = snapshots::system(&mounts)?;
    if let Some(path) = snapshots::apart(&mounts).map_err(|error| error.to_string())? {
        return Err(format!(
            "{path} is a subvolume of its own that is not mounted as one: packages and their database would be in different \
             snapshots, or in none"
        ));
    }
    let root = system.members.first().map(|root| root.kind.clone()).unwrap_or_default();
    let is_possible = match system.family() {
        Family::Btrfs => true,
        Family::Zfs => zfs::program().map(|_| true)?,
        Family::Volume => {
            lvm::is_there() && system.members.iter().all(|member| member.source.starts_with("/dev/"))
        }
    };
    if is_possible {
        return Ok(system);
    }
    Err(format!("/ is on {root}, which is neither btrfs nor ZFS, nor on a thin volume of LVM"))
}

impl Change<'_> {
    /// Makes a snapshot of the file systems, where that is configured.
    ///
    /// # Errors
    /// When one is required and cannot be made.
    pub(crate) fn snapshot_file_systems(&mut self, plan: &Plan) -> Result<Option<SnapshotReport>, Stop> {
        let settings = self.settings.rollback.snapshots.clone();
        if settings.mode == SnapshotMode::Off {
            return Ok(None);
        }
        let reason = match make(self.paths, self.journal.record.id, &settings, plan) {
            Ok(record) => return Ok(Some(record.report())),
            Err(reason) => reason,
        };
        // Going back is the remedy: it does not fail for want of a way forward again.
        let is_required = settings.mode == SnapshotMode::Required
            && !matches!(self.journal.record.operation, Operation::Rollback(_));
        if is_required {
            let message = format!(
                "no snapshot of the file systems can be made, and rollback.snapshots.mode is required: {reason}; nothing was \
                 changed. See to the reason, or set it to auto in config.yaml"
            );
            return Err(ErrorDetail::new(ErrorCode::RollbackUnavailable, message)
                .with("snapshot", "not_available")
                .with("reason", reason)
                .into());
        }
        self.remark(format!("no snapshot of the file systems: {reason}"));
        Ok(Some(SnapshotReport::not_available(reason)))
    }
}

fn make(paths: &Paths, job: JobId, settings: &Snapshots, plan: &Plan) -> Result<Record, String> {
    let system = system(paths)?;
    let needed = (u64::from(settings.min_free_mib) << 20)
        .saturating_add(u64::try_from(plan.disk_delta_bytes).unwrap_or(0));
    let family = system.family();
    // Of a volume it is the pool that has to have room.
    for member in system.members.iter().filter(|_| family != Family::Volume) {
        let space = rustix::fs::statvfs(&member.point)
            .map_err(|error| format!("{}: {error}", member.point.display()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < needed {
            return Err(format!(
                "{} has {} MiB free, and it takes {}: rollback.snapshots.min_free_mib and what the change needs",
                member.point.display(),
                free >> 20,
                needed >> 20
            ));
        }
    }
    // Of an earlier attempt of the same job.
    forget(paths, job)?;
    let config = (family == Family::Btrfs && system.members.len() == 1)
        .then(|| snapper::configured(paths.root()))
        .flatten();
    let record = Record {
        job,
        at: Timestamp::now(),
        role: Role::Before,
        kind: match family {
            Family::Btrfs if config.is_some() => SnapshotKind::Snapper,
            Family::Btrfs => SnapshotKind::Btrfs,
            Family::Zfs => SnapshotKind::Zfs,
            Family::Volume => SnapshotKind::Lvm,
        },
        system,
        made: false,
        snapper: config.map(|config| (config, None)),
        volumes: Vec::new(),
        uuids: Vec::new(),
    };
    let unrecorded = |error: io::Error| format!("it cannot be recorded: {error}");
    record.save(paths).map_err(unrecorded)?;
    let made = ask::<Record>(paths, &Order::Make { record });
    let made = made.and_then(|record| {
        let record = Record { made: true, ..record };
        record.save(paths).map_err(unrecorded)?;
        Ok(record)
    });
    if made.is_err()
        && let Err(error) = forget(paths, job)
    {
        eprintln!(
            "patch-executor: what there is of the snapshot of job {job} cannot be removed now: {error}"
        );
    }
    made
}

/// Removes a job's snapshot, if there is one on record.
pub(crate) fn forget(paths: &Paths, job: JobId) -> Result<(), String> {
    match Record::load(paths, job) {
        Ok(record) => remove(paths, record),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn remove(paths: &Paths, record: Record) -> Result<(), String> {
    ask(paths, &Order::Remove { record })
}

/// Removes what a job leaves that ended before it changed anything.
pub(crate) fn settled(paths: &Paths, job: JobId) {
    if let Err(error) = forget(paths, job) {
        eprintln!("patch-executor: the snapshot of job {job} cannot be removed now: {error}");
    }
}

/// The jobs whose snapshots are needed: those that have not ended, and those that are being undone.
fn needed(paths: &Paths) -> BTreeSet<JobId> {
    let mut needed: BTreeSet<JobId> = back::failed_job(paths).into_iter().collect();
    for (id, dir) in Journal::all(paths) {
        let Ok(journal) = Journal::open(&dir) else {
            needed.insert(id);
            continue;
        };
        if !matches!(journal.record.state, State::Ended { .. }) {
            needed.insert(id);
            if let Operation::Rollback(rollback) = &journal.record.operation {
                needed.insert(rollback.job);
            }
        }
    }
    needed
}

/// Which snapshots go: the oldest above the number, and those that are too old; none that is needed. snapper's are
/// snapper's to remove.
fn surplus<'a>(
    all: &'a [Record],
    needed: &BTreeSet<JobId>,
    settings: &Snapshots,
    now: SystemTime,
) -> Vec<&'a Record> {
    let keep = usize::try_from(settings.keep).unwrap_or(usize::MAX);
    let max_age = Duration::from_secs(24 * 3600) * settings.keep_days;
    let is_old =
        |record: &Record| now.duration_since(SystemTime::from(record.at)).unwrap_or_default() > max_age;
    // What a host ran from has what was written until the reboot, and nobody else has that: its number is no reason.
    let (replaced, ours): (Vec<&Record>, Vec<&Record>) = all
        .iter()
        .filter(|record| record.snapper.is_none() || !record.made)
        .partition(|record| record.role == Role::Replaced);
    let above = ours.len().saturating_sub(keep);
    ours.into_iter()
        .enumerate()
        .filter(|(place, record)| *place < above || is_old(record) || !record.made)
        .map(|(_, record)| record)
        .chain(replaced.into_iter().filter(|record| is_old(record)))
        .filter(|record| !needed.contains(&record.job))
        .collect()
}

/// Removes snapshots that are too many or too old, and the records of those that snapper has removed.
pub(crate) fn prune(paths: &Paths, settings: &Snapshots) {
    let all = Record::all(paths);
    if all.is_empty() {
        return;
    }
    let mut needed = needed(paths);
    if let Some(job) = returning::unfetched(paths) {
        eprintln!(
            "patch-executor: not all that the agent wrote before the host went back by job {job} was fetched; what it ran from is \
             kept for it, see docs/snapshots.md"
        );
        needed.insert(job);
    }
    for record in surplus(&all, &needed, settings, SystemTime::now()) {
        if let Err(error) = remove(paths, record.clone()) {
            eprintln!("patch-executor: the snapshot of job {} cannot be removed now: {error}", record.job);
        }
    }
    // Where snapper's directory is not mounted, nothing can be said of what is in it.
    let is_there = fs::read_dir(snapper::DIRECTORY).is_ok_and(|mut entries| entries.next().is_some());
    for record in all.iter().filter(|record| is_there && record.made && !needed.contains(&record.job)) {
        let Some((_, Some(number))) = record.snapper else { continue };
        let path = snapper::path(number);
        // It gives the number of one that is gone to another.
        let is_another = |path| {
            let shown = Volumes::new(PathBuf::from("/")).and_then(|volumes| volumes.show(path));
            shown.is_ok_and(|shown| record.uuids.first() != Some(&shown.uuid))
        };
        let is_gone = fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if is_gone || is_another(&path) {
            let _ = fs::remove_file(Record::path(paths, record.job));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn record(n: u128, days_ago: i64, made: bool, snapper: bool) -> Record {
        let at = Timestamp::from_second(100_000_000 - days_ago * 24 * 3600).unwrap();
        Record {
            job: JobId(Uuid::from_u128(n)),
            at,
            role: Role::Before,
            kind: if snapper { SnapshotKind::Snapper } else { SnapshotKind::Btrfs },
            system: System { members: Vec::new(), left_out: Vec::new() },
            made,
            snapper: snapper.then(|| ("root".to_owned(), Some(3))),
            volumes: Vec::new(),
            uuids: Vec::new(),
        }
    }

    fn now() -> SystemTime {
        SystemTime::from(Timestamp::from_second(100_000_000).unwrap())
    }

    #[test]
    fn the_oldest_go_first_and_none_that_is_needed() {
        let settings = Snapshots { keep: 2, keep_days: 10, ..Snapshots::default() };
        let all = [
            record(1, 30, true, false),
            record(2, 20, true, true),
            record(3, 9, true, false),
            record(4, 2, true, false),
            record(5, 1, false, false),
            record(6, 0, true, false),
        ];
        let gone = |needed: &[u128]| {
            let needed = needed.iter().map(|n| JobId(Uuid::from_u128(*n))).collect();
            surplus(&all, &needed, &settings, now()).iter().map(|r| r.job.0.as_u128()).collect::<Vec<_>>()
        };
        assert_eq!(gone(&[]), [1, 3, 4, 5]);
        assert_eq!(gone(&[1, 5]), [3, 4]);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_within_bounds_or_needed(
            ages in prop::collection::vec((0_i64..40, any::<bool>(), any::<bool>()), 0..20),
            keep in 1_u32..8,
            keep_days in 1_u32..30,
            wanted in prop::collection::btree_set(0_u128..20, 0..5),
        ) {
            let settings = Snapshots { keep, keep_days, ..Snapshots::default() };
            let mut all: Vec<Record> =
                ages.iter().enumerate().map(|(n, (age, made, snapper))| record(n as u128, *age, *made, *snapper)).collect();
            all.sort_by_key(|record| record.at);
            let needed: BTreeSet<JobId> = wanted.into_iter().map(|n| JobId(Uuid::from_u128(n))).collect();
            let gone: Vec<JobId> = surplus(&all, &needed, &settings, now()).iter().map(|r| r.job).collect();
            for record in &all {
                let is_gone = gone.contains(&record.job);
                prop_assert!(!is_gone || !needed.contains(&record.job));
                prop_assert!(!is_gone || record.snapper.is_none() || !record.made);
                if record.snapper.is_none() && !is_gone && !needed.contains(&record.job) {
                    prop_assert!(record.made && (now().duration_since(record.at.into()).unwrap().as_secs() <= u64::from(keep_days) * 86400));
                }
            }
            let kept = all.iter().filter(|r| (r.snapper.is_none() || !r.made) && !gone.contains(&r.job) && !needed.contains(&r.job));
            prop_assert!(kept.count() <= keep as usize);
        }
    }
}
