//! The journal of a change: what was asked and how far it is, on disk before it is done.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use patch_apply::{apt::snapshot::PackageKey, snapshots::System};
use patch_types::{
    ChangeOptions, ErrorDetail, JobId, JobStatus, Operation, PackageName, Phase, Plan, PlanHash,
    event::Ended, executor::Limits, reboot::RebootOrder,
};
use rustix::{
    fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{clock::Clock, paths::Paths};

/// What the names of journals begin with until they are whole.
pub(crate) const NEW: &str = ".new-";

/// What the names of journals begin with that nobody could read.
pub(crate) const DAMAGED: &str = ".damaged-";

/// The file whose lock tells that a process carries the change out.
const CLAIM: &str = "alive";

/// What a decision about a change that waited to be confirmed says.
const KEPT: &str = "kept";
const EXPIRED: &str = "expired";

/// How far a change is. Each state is on disk before its work begins, with all that the work needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum State {
    /// Nothing begun.
    Accepted,
    /// The indexes are fetched because they are old, before planning.
    Refreshing,
    /// What an earlier run left unpacked or half-configured is finished, before planning.
    Repairing,
    /// The solver works out the plan.
    Planning,
    /// The plan's archives are fetched.
    Downloading {
        /// What will change.
        plan: Plan,
        /// Named packages whose automatic mark apt is going to drop, and that get it back.
        auto: Vec<PackageName>,
    },
    /// It is tried on an image of the host.
    Rehearsing {
        /// What will change.
        plan: Plan,
        /// See `Downloading`.
        auto: Vec<PackageName>,
    },
    /// The way back is recorded.
    Snapshotting {
        /// What will change.
        plan: Plan,
        /// See `Downloading`.
        auto: Vec<PackageName>,
    },
    /// The package database is being changed.
    Applying {
        /// What is changing.
        plan: Plan,
        /// See `Downloading`.
        auto: Vec<PackageName>,
        /// Of the plan's changes only these, by index: what is left after a part went back. All if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        only: Option<Vec<usize>>,
    },
    /// The result is compared with the plan.
    Verifying {
        /// What should have changed.
        plan: Plan,
        /// How the tool ended, and the end of what it said.
        tool: ToolEnd,
    },
    /// All is well, and somebody is to say so.
    Confirming {
        /// What has changed.
        plan: Plan,
        /// How the tool ended.
        tool: ToolEnd,
        /// Until when it waits.
        until: Timestamp,
        /// The same by a clock that nobody can set.
        #[serde(default)]
        clock: Option<Clock>,
    },
    /// Packages are taken back to what a snapshot holds.
    GoingBack {
        /// What was to change.
        plan: Plan,
        /// What goes back, and how often that was tried.
        back: Back,
    },
    /// The host goes back to a snapshot of its file systems, at the next boot.
    Returning {
        /// What that changes.
        plan: Plan,
        /// What goes back.
        returning: Returning,
    },
    /// A reboot was asked for. No package is changed by it.
    Rebooting {
        /// As it was left for the reboot window.
        order: RebootOrder,
        /// Whether the reboot window has begun to carry it out.
        taken: bool,
        /// Whether it was left. Nobody leaves it a second time.
        #[serde(default)]
        left: bool,
        /// The end of the operation, if the order is being taken back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        withdrawing: Option<Box<Ended>>,
    },
    /// Over.
    Ended {
        /// How.
        ended: Box<Ended>,
    },
}

/// A part of a change, or a whole earlier one, that goes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Back {
    /// The job whose snapshot is gone back to: this one, or the one that is to be undone.
    pub(crate) source: JobId,
    /// Which of the snapshot's packages.
    pub(crate) scope: Vec<PackageKey>,
    /// Why: one sentence.
    pub(crate) reason: String,
    /// How often it was begun. On disk before each attempt, so that a host that dies of it does not do so for ever.
    pub(crate) attempts: u32,
    /// What is still to be applied afterwards, as indices into the plan's changes.
    #[serde(default)]
    pub(crate) rest: Vec<usize>,
    /// Nobody confirmed the change: what stays of it waits for nobody any more.
    #[serde(default)]
    pub(crate) unconfirmed: bool,
}

/// A system that goes back to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Returning {
    /// The job that goes back.
    pub(crate) job: JobId,
    /// The job whose snapshot it goes back to.
    pub(crate) source: JobId,
    /// The system as it is mounted, and the subvolumes that it runs from.
    pub(crate) system: System,
    pub(crate) numbers: Vec<u64>,
    /// The boot in which that is.
    pub(crate) boot: String,
    /// The subvolumes that it runs from after the reboot, once they are known.
    #[serde(default)]
    pub(crate) coming: Vec<u64>,
}

/// What went wrong first: it is what the job reports, whatever follows from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) status: JobStatus,
    pub(crate) exit_code: Option<i32>,
    pub(crate) error: ErrorDetail,
}

/// A package that went back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TakenBack {
    pub(crate) key: PackageKey,
    /// Why: one sentence.
    pub(crate) reason: String,
}

/// How the tool that changes packages ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ToolEnd {
    /// Its exit code; absent when a signal ended it or nobody saw it end.
    pub(crate) code: Option<i32>,
    /// The end of its output.
    pub(crate) output: String,
    /// Whether the time limit was what ended it.
    pub(crate) timed_out: bool,
    /// The packages that dpkg reported errors of, as it spells them.
    #[serde(default)]
    pub(crate) failed: Vec<String>,
}

impl State {
    /// The phase that clients see.
    pub(crate) fn phase(&self) -> Option<Phase> {
        match self {
            Self::Accepted | Self::Ended { .. } => None,
            Self::Planning => Some(Phase::Planning),
            Self::Refreshing | Self::Downloading { .. } => Some(Phase::Downloading),
            Self::Rehearsing { .. } => Some(Phase::Rehearsing),
            Self::Snapshotting { .. } => Some(Phase::Snapshotting),
            Self::Repairing | Self::Applying { .. } => Some(Phase::Applying),
            Self::Verifying { .. } => Some(Phase::Verifying),
            Self::Confirming { .. } => Some(Phase::Confirming),
            Self::GoingBack { .. } | Self::Returning { .. } => Some(Phase::RollingBack),
            Self::Rebooting { taken: false, .. } => Some(Phase::Waiting),
            Self::Rebooting { taken: true, .. } => Some(Phase::Rebooting),
        }
    }
}

/// What is on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: JobId,
    pub(crate) accepted_at: Timestamp,
    pub(crate) operation: Operation,
    pub(crate) limits: Limits,
    /// The approved plan, if there is one.
    pub(crate) if_plan: Option<PlanHash>,
    /// From when on nothing of it is begun any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) not_after: Option<Timestamp>,
    /// What was not in order before: `dpkg --audit`'s findings by package. What is new afterwards is this change's.
    #[serde(default)]
    pub(crate) broken: Vec<String>,
    /// How it is to be made.
    #[serde(flatten, with = "patch_types::rollback::kept")]
    pub(crate) options: ChangeOptions,
    /// What went wrong first.
    #[serde(default)]
    pub(crate) failure: Option<Failure>,
    /// How often it was taken up again after an executor died of it.
    #[serde(default)]
    pub(crate) resumed: u32,
    /// What went back so far.
    #[serde(default)]
    pub(crate) taken_back: Vec<TakenBack>,
    /// The security fixes that it leaves out, since they were taken back by an earlier one: for whoever tells of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) barred: Vec<patch_types::TakenBack>,
    pub(crate) state: State,
}

/// A change's directory: its record, the tool's output and progress, and a request to cancel.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    pub(crate) record: Record,
    /// Held by whoever carries the change out.
    claim: Option<Claim>,
}

/// The right to carry a change out: the kernel's lock of a file that only root can open, and so goes with the process.
/// The daemon can lock the event file as well, and tell nobody anything by that.
#[derive(Debug)]
pub(crate) struct Claim {
    _file: File,
}

impl Claim {
    fn open(dir: &Path) -> io::Result<File> {
        File::options().create(true).truncate(false).write(true).mode(0o600).open(dir.join(CLAIM))
    }

    /// Takes the right; `None` if another process has it.
    ///
    /// # Errors
    /// When there is no such directory, or the file cannot be made.
    pub(crate) fn take(dir: &Path) -> io::Result<Option<Self>> {
        let file = Self::open(dir)?;
        // Who only asks holds it for some microseconds, so one refusal means nothing yet.
        for _ in 0..20 {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Self { _file: file })),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Ok(None)
    }

    /// Whether a process has it.
    pub(crate) fn is_held(dir: &Path) -> bool {
        File::open(dir.join(CLAIM))
            .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK))
    }
}

impl Journal {
    /// Makes the directory, exclusively: a job that is submitted again finds it and is not run again.
    pub(crate) fn create(
        dir: &Path,
        id: JobId,
        operation: Operation,
        limits: Limits,
        if_plan: Option<PlanHash>,
        options: ChangeOptions,
    ) -> io::Result<Self> {
        let record = Record {
            id,
            accepted_at: Timestamp::now(),
            operation,
            limits,
            if_plan,
            not_after: None,
            broken: Vec::new(),
            options,
            failure: None,
            resumed: 0,
            taken_back: Vec::new(),
            barred: Vec::new(),
            state: State::Accepted,
        };
        // Whole or not at all: a directory without a record could neither be begun nor settled.
        let parent = dir.parent().unwrap_or(dir);
        let new = parent.join(format!("{NEW}{id}"));
        if let Err(error) = fs::remove_dir_all(&new)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        DirBuilder::new().mode(0o700).create(&new)?;
        let mut journal = Self { dir: new.clone(), record, claim: None };
        // Claimed before anybody can find it: one that nobody holds is one whose process has died.
        let made = Claim::take(&new).and_then(|claim| {
            journal.claim = claim;
            journal.write()
        });
        if let Err(error) = made {
            let _ = fs::remove_dir_all(&new);
            return Err(error);
        }
        if let Err(error) = renameat_with(CWD, &new, CWD, dir, RenameFlags::NOREPLACE) {
            let _ = fs::remove_dir_all(&new);
            return Err(error.into());
        }
        sync_dir(parent)?;
        dir.clone_into(&mut journal.dir);
        Ok(journal)
    }

    /// Reads a change's directory.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let text = fs::read(dir.join("state.json"))?;
        let record = serde_json::from_slice(&text).map_err(io::Error::other)?;
        Ok(Self { dir: dir.to_owned(), record, claim: None })
    }

    /// Holds the right to carry the change out for as long as this lives.
    pub(crate) fn hold(&mut self, claim: Claim) {
        self.claim = Some(claim);
    }

    /// Enters a state: on disk first.
    pub(crate) fn enter(&mut self, state: State) -> io::Result<()> {
        self.record.state = state;
        self.write()
    }

    /// Whether its end is what a later process finds.
    pub(crate) fn is_ended_on_disk(&self) -> bool {
        Self::open(&self.dir).is_ok_and(|journal| matches!(journal.record.state, State::Ended { .. }))
    }

    fn write(&self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.record).map_err(io::Error::other)?;
        write_whole(&self.dir, "state.json", &text)
    }

    /// All changes that there is a directory of, in no order.
    pub(crate) fn all(paths: &Paths) -> Vec<(JobId, PathBuf)> {
        let Ok(entries) = fs::read_dir(paths.state().join("journal")) else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .collect()
    }

    /// The same, with those that nobody could read and that were put aside.
    pub(crate) fn all_with_damaged(paths: &Paths) -> Vec<(JobId, PathBuf)> {
        let Ok(entries) = fs::read_dir(paths.state().join("journal")) else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let name = name.to_str()?;
                Some((name.strip_prefix(DAMAGED).unwrap_or(name).parse().ok()?, entry.path()))
            })
            .collect()
    }

    /// The file that the tool's output goes to.
    pub(crate) fn output(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// The file that the tool's progress goes to.
    pub(crate) fn progress(&self) -> PathBuf {
        self.dir.join("progress")
    }

    /// Where the way back is recorded.
    pub(crate) fn way_back(&self) -> PathBuf {
        way_back(&self.dir)
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Decides whether the change is kept or goes back, once and for all: whoever comes first decides, and everybody is
    /// told what was decided.
    pub(crate) fn decide(&self, kept: bool) -> io::Result<bool> {
        let decision = self.dir.join("decision");
        let word = if kept { KEPT } else { EXPIRED };
        // A name of this process's own: what is linked as the decision is never written again.
        let draft = self.dir.join(format!("decision-{word}-{}", std::process::id()));
        let _ = fs::remove_file(&draft);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(word.as_bytes())?;
        file.sync_all()?;
        let linked = fs::hard_link(&draft, &decision);
        let _ = fs::remove_file(&draft);
        match linked {
            Ok(()) => sync_dir(&self.dir)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(fs::read_to_string(&decision)? == KEPT)
    }

    /// Whether it was decided that the change is kept.
    pub(crate) fn is_kept(&self) -> bool {
        fs::read_to_string(self.dir.join("decision")).is_ok_and(|word| word == KEPT)
    }

    /// Writes the record as it is, without entering a state.
    pub(crate) fn save(&self) -> io::Result<()> {
        self.write()
    }

    /// Asks the change to stop while that is safe.
    pub(crate) fn request_cancel(&self) -> io::Result<()> {
        File::options().create(true).append(true).mode(0o600).open(self.dir.join("cancel")).map(drop)
    }

    /// Whether somebody asked it to stop.
    pub(crate) fn cancel_requested(&self) -> bool {
        self.dir.join("cancel").exists()
    }
}

/// Writes a file whole: under its name there is always either the old content or the new one, also after a power cut.
pub(crate) fn write_whole(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let written = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, dir.join(name)));
    if let Err(error) = written {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    sync_dir(dir)
}

/// Makes a directory that only root can enter.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(dir)
}

/// Where a change's way back is recorded, below its directory.
pub(crate) fn way_back(dir: &Path) -> PathBuf {
    dir.join("way-back")
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_rehearsal_is_no_option_to_who_knows_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job");
        let rehearse = Some(patch_types::Rehearse { only: true, ..Default::default() });
        let options = ChangeOptions { rehearse, ..ChangeOptions::default() };
        let id = JobId(Uuid::now_v7());
        let journal =
            Journal::create(&path, id, Operation::Refresh, Limits::default(), None, options).unwrap();
        let text = fs::read(path.join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(state["options"], serde_json::json!({"on_failure": "group"}));
        assert_eq!(state["rehearse"]["only"], true);
        assert_eq!(Journal::open(&path).unwrap().record, journal.record);
    }

    #[test]
    fn a_journal_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job");
        let id = JobId(Uuid::now_v7());
        let mut journal =
            Journal::create(&path, id, Operation::Refresh, Limits::default(), None, ChangeOptions::default())
                .unwrap();
        let again =
            Journal::create(&path, id, Operation::Refresh, Limits::default(), None, ChangeOptions::default())
                .unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let state =
            State::Applying { plan: Plan::of(Vec::new()), auto: vec!["aa".parse().unwrap()], only: None };
        journal.enter(state.clone()).unwrap();
        let read = Journal::open(&path).unwrap();
        assert_eq!(read.record.state, state);
        assert!(!read.cancel_requested());
        read.request_cancel().unwrap();
        assert!(journal.cancel_requested());
    }
}
