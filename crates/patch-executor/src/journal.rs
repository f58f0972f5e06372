//! The journal of a change: what was asked and how far it is, on disk before it is done.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use patch_types::{JobId, Operation, PackageName, Phase, Plan, PlanHash, event::Ended, executor::Limits};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

/// What the names of journals begin with until they are whole.
pub(crate) const NEW: &str = ".new-";

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
    /// The package database is being changed.
    Applying {
        /// What is changing.
        plan: Plan,
        /// See `Downloading`.
        auto: Vec<PackageName>,
    },
    /// The result is compared with the plan.
    Verifying {
        /// What should have changed.
        plan: Plan,
        /// How the tool ended, and the end of what it said.
        tool: ToolEnd,
    },
    /// Over.
    Ended {
        /// How.
        ended: Box<Ended>,
    },
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
}

impl State {
    /// The phase that clients see.
    pub(crate) fn phase(&self) -> Option<Phase> {
        match self {
            Self::Accepted | Self::Ended { .. } => None,
            Self::Planning => Some(Phase::Planning),
            Self::Refreshing | Self::Downloading { .. } => Some(Phase::Downloading),
            Self::Repairing | Self::Applying { .. } => Some(Phase::Applying),
            Self::Verifying { .. } => Some(Phase::Verifying),
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
    /// What was not in order before: `dpkg --audit`'s findings by package. What is new afterwards is this change's.
    #[serde(default)]
    pub(crate) broken: Vec<String>,
    pub(crate) state: State,
}

/// A change's directory: its record, the tool's output and progress, and a request to cancel.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    pub(crate) record: Record,
}

impl Journal {
    /// Makes the directory, exclusively: a job that is submitted again finds it and is not run again.
    pub(crate) fn create(
        dir: &Path,
        id: JobId,
        operation: Operation,
        limits: Limits,
        if_plan: Option<PlanHash>,
    ) -> io::Result<Self> {
        let record = Record {
            id,
            accepted_at: Timestamp::now(),
            operation,
            limits,
            if_plan,
            broken: Vec::new(),
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
        let mut journal = Self { dir: new.clone(), record };
        journal.write()?;
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
        Ok(Self { dir: dir.to_owned(), record })
    }

    /// Enters a state: on disk first.
    pub(crate) fn enter(&mut self, state: State) -> io::Result<()> {
        self.record.state = state;
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.record).map_err(io::Error::other)?;
        let (new, path) = (self.dir.join("state.new"), self.dir.join("state.json"));
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_dir(&self.dir)
    }

    /// The file that the tool's output goes to.
    pub(crate) fn output(&self) -> PathBuf {
        self.dir.join("output")
    }

    /// The file that the tool's progress goes to.
    pub(crate) fn progress(&self) -> PathBuf {
        self.dir.join("progress")
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

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_journal_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job");
        let id = JobId(Uuid::now_v7());
        let mut journal = Journal::create(&path, id, Operation::Refresh, Limits::default(), None).unwrap();
        let again = Journal::create(&path, id, Operation::Refresh, Limits::default(), None).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let state = State::Applying { plan: Plan::of(Vec::new()), auto: vec!["aa".parse().unwrap()] };
        journal.enter(state.clone()).unwrap();
        let read = Journal::open(&path).unwrap();
        assert_eq!(read.record.state, state);
        assert!(!read.cancel_requested());
        read.request_cancel().unwrap();
        assert!(journal.cancel_requested());
    }
}
