//! A change of the host, as one journalled state machine: plan → fetch → apply → verify.
//!
//! Each step takes what its state holds, does its work and returns the next state; [`run`] writes that to disk before
//! the next step begins. A state that is on disk is therefore one whose work may have begun, and what is not on disk has
//! not begun.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, chown},
    path::Path,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::unistd::User;
use patch_apply::{
    apt::{argv, argv::Task, lock::Locks},
    run::RunError,
};
use patch_backends::apt::{DatabaseStamp, Inventory, OperationKind, classify, last_update_check};
use patch_types::{
    ErrorCode, ErrorDetail, EventKind, JobStatus, Operation, Outcome, PackageName, Plan,
    event::{Ended, LogStream},
};

use crate::{
    events::Events,
    journal::{Journal, State, ToolEnd},
    paths::Paths,
    prune,
    solver::{self, run_failed},
    tool::{self, Blocked, Care, Progress, Run, RunEnd},
    turn::{self, Turn},
    verdict,
};

/// How much of the whole's progress each phase spans, in percent.
const REFRESH: (u8, u8) = (0, 5);
const DOWNLOAD: (u8, u8) = (5, 30);
const APPLY: (u8, u8) = (30, 95);

/// The end of a change.
struct Stop(Box<Ended>);

impl Stop {
    fn unchanged(status: JobStatus, error: ErrorDetail) -> Self {
        Self(Box::new(Ended {
            status,
            outcome: Some(Outcome::Unchanged),
            exit_code: None,
            error: Some(error),
            results: Vec::new(),
            answer: None,
        }))
    }

    fn cancelled() -> Self {
        let message = "the job was cancelled, or the host is going down, before anything was changed";
        Self::unchanged(JobStatus::Cancelled, ErrorDetail::new(ErrorCode::JobCancelled, message))
    }

    fn timed_out(limit: u64, what: &str) -> Self {
        let message = format!("{what} did not end within the job's limit of {limit} s; nothing was changed");
        Self::unchanged(JobStatus::Timeout, ErrorDetail::new(ErrorCode::JobTimeout, message))
    }
}

impl From<ErrorDetail> for Stop {
    fn from(error: ErrorDetail) -> Self {
        Self::unchanged(JobStatus::Failed, error)
    }
}

impl From<RunError> for Stop {
    fn from(error: RunError) -> Self {
        run_failed(&error).into()
    }
}

/// Carries a change out, from acceptance to its last event.
pub(crate) fn run(paths: &Paths, journal: Journal, events: Events) {
    let mut change = Change {
        paths,
        journal,
        events,
        progress: Progress::default(),
        deadline: Instant::now(),
        task: None,
        planned_at: None,
        repaired: false,
    };
    let ended = change.run_to_end();
    finish(&mut change.journal, &mut change.events, ended);
}

/// Journals and announces the end. A full disk delays that, it does not prevent it.
pub(crate) fn finish(journal: &mut Journal, events: &mut Events, ended: Box<Ended>) {
    let mut patience = 600;
    let state = State::Ended { ended: ended.clone() };
    while let Err(error) = journal.enter(state.clone()) {
        eprintln!("patch-executor: cannot journal the end of job {}: {error}", journal.record.id);
        if patience == 0 {
            break;
        }
        patience -= 1;
        std::thread::sleep(Duration::from_secs(1));
    }
    events.emit_durably(EventKind::Ended(ended));
    while !events.is_complete() && patience > 0 {
        patience -= 1;
        std::thread::sleep(Duration::from_secs(1));
        events.flush();
    }
}

struct Change<'a> {
    paths: &'a Paths,
    journal: Journal,
    events: Events,
    progress: Progress,
    deadline: Instant,
    /// What apt was asked in this process's planning, so that applying asks the very same.
    task: Option<Task>,
    /// What dpkg's database was like when the plan was made.
    planned_at: Option<DatabaseStamp>,
    /// Whether leftovers of earlier runs have been seen to.
    repaired: bool,
}

impl Change<'_> {
    fn run_to_end(&mut self) -> Box<Ended> {
        let _turn = match self.take_turn() {
            Ok(turn) => turn,
            Err(Stop(ended)) => return ended,
        };
        prune::fetched(self.paths);
        self.deadline = Instant::now() + Duration::from_secs(self.journal.record.limits.timeout_seconds);
        let mut state = if self.refresh_is_due() { State::Refreshing } else { State::Planning };
        loop {
            if let State::Ended { ended } = state {
                return ended;
            }
            if let Err(Stop(ended)) = self.enter(&state) {
                return ended;
            }
            state = match self.step(state) {
                Ok(next) => next,
                Err(Stop(ended)) => State::Ended { ended },
            };
        }
    }

    fn step(&mut self, state: State) -> Result<State, Stop> {
        match state {
            State::Accepted => Ok(State::Planning),
            State::Refreshing => self.refresh(),
            State::Repairing => self.repair(),
            State::Planning => self.plan(),
            State::Downloading { plan, auto } => self.download(plan, auto),
            State::Applying { plan, auto } => self.apply(plan, &auto),
            State::Verifying { plan, tool } => Ok(State::Ended { ended: self.verify(&plan, &tool) }),
            State::Ended { ended } => Ok(State::Ended { ended }),
        }
    }

    fn take_turn(&mut self) -> Result<Turn, Stop> {
        let unusable = |error: io::Error| {
            let message = format!("the queue below {} cannot be used: {error}", self.paths.state().display());
            Stop::from(ErrorDetail::new(ErrorCode::PkgManagerError, message))
        };
        let place = turn::queue(self.paths, self.journal.record.id).map_err(unusable)?;
        loop {
            if tool::must_stop(&self.journal) {
                return Err(Stop::cancelled());
            }
            if let Some(turn) = turn::try_take(self.paths, &place).map_err(unusable)? {
                return Ok(turn);
            }
            tool::pause();
        }
    }

    /// Journals a state, then announces its phase.
    fn enter(&mut self, state: &State) -> Result<(), Stop> {
        let before = self.journal.record.state.phase();
        if let Err(error) = self.journal.enter(state.clone()) {
            // Before the first change that is a reason not to begin. Afterwards the work must go on: the database says
            // what was done.
            if matches!(state, State::Verifying { .. }) {
                eprintln!("patch-executor: cannot journal: {error}; going on");
            } else {
                let code = match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::DiskSpace,
                    _ => ErrorCode::PkgManagerError,
                };
                let message = format!(
                    "the journal cannot be written ({error}), so nothing was begun; make room below /var/lib"
                );
                return Err(ErrorDetail::new(code, message).into());
            }
        }
        if let Some(phase) = state.phase().filter(|phase| before != Some(*phase)) {
            self.events.emit_durably(EventKind::Phase { phase });
        }
        Ok(())
    }

    fn remark(&mut self, line: impl Into<String>) {
        self.events.emit(EventKind::Log { stream: LogStream::Executor, line: line.into() });
    }

    fn lock_patience(&self) -> Duration {
        Duration::from_secs(self.journal.record.limits.lock_wait_seconds)
            .min(self.deadline.saturating_duration_since(Instant::now()))
    }

    fn wait_for_locks(&mut self, locks: Locks) -> Result<(), Stop> {
        let patience = self.lock_patience();
        match tool::wait_for_locks(self.paths.root(), locks, &self.journal, &mut self.events, patience) {
            Ok(()) => Ok(()),
            Err(Blocked::Cancelled) => Err(Stop::cancelled()),
            Err(Blocked::Held(holder)) => {
                let who = match (&holder.pid, &holder.command) {
                    (Some(pid), Some(command)) => format!("process {pid} ({command})"),
                    (Some(pid), None) => format!("process {pid}"),
                    (None, _) => "another process".to_owned(),
                };
                let message = format!(
                    "{} was held by {who} for {} s; nothing was changed. Try again when it has ended",
                    holder.lock,
                    patience.as_secs()
                );
                let error = ErrorDetail::new(ErrorCode::LockTimeout, message).with("pid", holder.pid);
                Err(error.with("lock", holder.lock).into())
            }
        }
    }

    fn refresh_is_due(&self) -> bool {
        let limit = match &self.journal.record.operation {
            Operation::Refresh => return true,
            // Fetching new indexes now could only make the approved plan another one.
            Operation::ApplyPatches(apply) if self.journal.record.if_plan.is_none() => apply.refresh_if_older,
            _ => None,
        };
        limit.is_some_and(|limit| {
            last_update_check(self.paths.root()).is_none_or(|at| {
                // A clock that was set back makes the check look as if it were to come: that is old, too.
                let age = Timestamp::now().as_second() - at.as_second();
                u64::try_from(age).map_or(true, |age| age > limit)
            })
        })
    }

    fn refresh(&mut self) -> Result<State, Stop> {
        let asked_for = self.journal.record.operation == Operation::Refresh;
        self.wait_for_locks(Locks::Indexes)?;
        let root = self.paths.root();
        let run = Run {
            root,
            directory: root,
            journal: &self.journal,
            events: &mut self.events,
            progress: &mut self.progress,
            span: if asked_for { (0, 100) } else { REFRESH },
            deadline: self.deadline,
            care: Care::Interruptible,
            reports: true,
        };
        let end = match run.execute(|fd| argv::refresh(root, fd))? {
            RunEnd::Exited(end) => end,
            RunEnd::Cancelled => return Err(Stop::cancelled()),
            RunEnd::TimedOut => {
                return Err(Stop::timed_out(
                    self.journal.record.limits.timeout_seconds,
                    "fetching the indexes",
                ));
            }
        };
        if end.code == Some(0) {
            stamp_refresh(root);
            if !asked_for {
                return Ok(State::Planning);
            }
            return Ok(State::Ended {
                ended: Box::new(Ended {
                    status: JobStatus::Completed,
                    outcome: Some(Outcome::Applied),
                    exit_code: end.code,
                    error: None,
                    results: Vec::new(),
                    answer: None,
                }),
            });
        }
        let error = classify(end.code, &end.output, OperationKind::Refresh);
        if asked_for {
            let mut stop = Stop::unchanged(JobStatus::Failed, error);
            stop.0.exit_code = end.code;
            return Err(stop);
        }
        // One repository that is down must not keep all the others' fixes away.
        self.remark(format!(
            "not all indexes could be fetched, going on with those that are there: {}",
            error.message
        ));
        Ok(State::Planning)
    }

    fn plan(&mut self) -> Result<State, Stop> {
        self.wait_for_locks(Locks::Packages)?;
        let root = self.paths.root();
        let broken = findings(root)?;
        // A hold is a mark; it has no business with what is unfinished.
        if !broken.is_empty()
            && !self.repaired
            && !matches!(self.journal.record.operation, Operation::Hold(_))
        {
            let names = broken.join(", ");
            self.remark(format!("an earlier run left {names} unfinished; finishing that first"));
            return Ok(State::Repairing);
        }
        self.journal.record.broken = broken;
        // Taken before the solver looks, so that what changes under its feet is noticed.
        self.planned_at = Some(DatabaseStamp::now(root));
        let operation = self.journal.record.operation.clone();
        let planned = solver::plan(root, &operation)?;
        self.events.emit_durably(EventKind::Planned { plan: planned.plan.clone() });
        if let Some(approved) =
            self.journal.record.if_plan.as_ref().filter(|approved| **approved != planned.plan.hash)
        {
            let message = format!(
                "the plan of this moment is {}, approved was {approved}; nothing was changed. Look at the new plan and \
                 approve that",
                planned.plan.hash
            );
            let error = ErrorDetail::new(ErrorCode::PlanDrift, message);
            return Err(error
                .with("approved", approved.as_str())
                .with("current", planned.plan.hash.as_str())
                .into());
        }
        if planned.plan.is_empty() {
            self.mark_as_wanted(&operation);
            return Ok(State::Ended {
                ended: Box::new(Ended {
                    status: JobStatus::Completed,
                    outcome: Some(Outcome::Unchanged),
                    exit_code: None,
                    error: None,
                    results: Vec::new(),
                    answer: None,
                }),
            });
        }
        if tool::must_stop(&self.journal) {
            return Err(Stop::cancelled());
        }
        self.task = planned.task;
        Ok(State::Downloading { plan: planned.plan, auto: planned.auto })
    }

    /// A package that is there already because another needs it becomes one that a person wants, as `apt-get install`
    /// would make it: otherwise a later autoremove takes it away.
    fn mark_as_wanted(&mut self, operation: &Operation) {
        let Operation::Install(install) = operation else { return };
        let Ok(inventory) = solver::inventory(self.paths.root()) else { return };
        let auto: Vec<PackageName> = install
            .packages
            .iter()
            .map(|spec| spec.name.clone())
            .filter(|name| {
                inventory.database.get(name).is_some_and(|p| p.is_present() && inventory.is_auto(p))
            })
            .collect();
        if auto.is_empty() {
            return;
        }
        match solver::capture(&argv::mark_manual(self.paths.root(), &auto)) {
            Ok(said) if said.code == Some(0) => {
                self.remark("it was there already; it is marked as wanted now");
            }
            Ok(said) => self.remark(format!("it could not be marked as wanted: {}", said.text().trim())),
            Err(error) => self.remark(format!("it could not be marked as wanted: {}", error.message)),
        }
    }

    /// Finishes what an earlier run left. What cannot be finished is apt's to judge.
    fn repair(&mut self) -> Result<State, Stop> {
        self.repaired = true;
        self.configure_pending()?;
        Ok(State::Planning)
    }

    fn configure_pending(&mut self) -> Result<ToolEnd, Stop> {
        let root = self.paths.root();
        let run = Run {
            root,
            directory: root,
            journal: &self.journal,
            events: &mut self.events,
            progress: &mut self.progress,
            span: (0, 0),
            deadline: self.deadline,
            care: Care::Transaction,
            reports: false,
        };
        match run.execute(|_| argv::configure_pending(root))? {
            RunEnd::Exited(end) => Ok(end),
            RunEnd::Cancelled | RunEnd::TimedOut => Ok(ToolEnd::default()),
        }
    }

    fn download(&mut self, plan: Plan, auto: Vec<PackageName>) -> Result<State, Stop> {
        let root = self.paths.root().to_owned();
        let archives = argv::archives(&plan);
        if archives.is_empty() {
            return Ok(State::Applying { plan, auto });
        }
        let directory = self.paths.fetched(self.journal.record.id);
        make_fetched(&directory).map_err(|error| cannot_fetch(&directory, &error))?;
        let run = Run {
            root: &root,
            directory: &directory,
            journal: &self.journal,
            events: &mut self.events,
            progress: &mut self.progress,
            span: DOWNLOAD,
            deadline: self.deadline,
            care: Care::Interruptible,
            reports: true,
        };
        let end = run.execute(|fd| argv::download(&root, &archives, fd))?;
        match end {
            RunEnd::Exited(end) if end.code == Some(0) => {
                keep_archives(&directory, &self.paths.archives())
                    .map_err(|error| cannot_fetch(&directory, &error))?;
                Ok(State::Applying { plan, auto })
            }
            RunEnd::Exited(end) => {
                let error = classify(end.code, &end.output, (&self.journal.record.operation).into());
                let mut stop = Stop::unchanged(JobStatus::Failed, error);
                stop.0.exit_code = end.code;
                Err(stop)
            }
            RunEnd::Cancelled => Err(Stop::cancelled()),
            RunEnd::TimedOut => {
                Err(Stop::timed_out(self.journal.record.limits.timeout_seconds, "the download"))
            }
        }
    }

    fn apply(&mut self, plan: Plan, auto: &[PackageName]) -> Result<State, Stop> {
        if tool::must_stop(&self.journal) {
            return Err(Stop::cancelled());
        }
        self.wait_for_locks(Locks::Packages)?;
        let root = self.paths.root().to_owned();
        if self.planned_at != Some(DatabaseStamp::now(&root)) {
            self.remark("packages were changed by somebody else since the plan was made; planning again");
            return Ok(State::Planning);
        }
        let argv: Box<dyn FnOnce(i32) -> argv::Argv> =
            match (&self.journal.record.operation, self.task.take()) {
                (Operation::Hold(hold), _) => {
                    let argv = argv::hold(&root, &hold.name, hold.hold);
                    Box::new(move |_| argv)
                }
                (_, Some(task)) => {
                    let root = root.clone();
                    Box::new(move |fd| argv::apply(&root, &task, fd))
                }
                (_, None) => {
                    let message = "there is a plan, but not what apt is to be told; nothing was changed";
                    return Err(ErrorDetail::new(ErrorCode::PkgManagerError, message).into());
                }
            };
        let run = Run {
            root: &root,
            directory: &root,
            journal: &self.journal,
            events: &mut self.events,
            progress: &mut self.progress,
            span: APPLY,
            deadline: self.deadline,
            care: Care::Transaction,
            reports: true,
        };
        let tool = match run.execute(argv) {
            Ok(RunEnd::Exited(end)) => end,
            Ok(RunEnd::Cancelled | RunEnd::TimedOut) => ToolEnd::default(),
            Err(error @ RunError::Start { .. }) => return Err(error.into()),
            // It runs or ran, only following it failed: the database says what became of it.
            Err(error) => ToolEnd { output: error.to_string(), ..ToolEnd::default() },
        };
        if is_locked_out(&tool) && self.lock_patience() > Duration::ZERO {
            self.remark("somebody else was quicker to take the package manager's lock; planning again after it is free");
            return Ok(State::Planning);
        }
        if tool.code != Some(0) && !findings(&root).unwrap_or_default().is_empty() {
            self.remark("the run failed and left packages unfinished; trying once to finish them");
            // Its result is in the database, which is looked at next.
            let _ = self.configure_pending();
        }
        restore_marks(&root, auto, &mut self.events);
        Ok(State::Verifying { plan, tool })
    }

    fn verify(&mut self, plan: &Plan, tool: &ToolEnd) -> Box<Ended> {
        verdict::judge(self.paths.root(), &self.journal.record, plan, tool)
    }
}

/// Gives packages their automatic mark back: naming one to `apt-get install` makes it manual, which an update must not.
pub(crate) fn restore_marks(root: &Path, auto: &[PackageName], events: &mut Events) {
    let still: Vec<PackageName> = match Inventory::read(root) {
        Ok(now) => auto
            .iter()
            .filter(|name| now.database.get(name).is_some_and(|p| p.is_present() && !now.is_auto(p)))
            .cloned()
            .collect(),
        Err(_) => auto.to_vec(),
    };
    if still.is_empty() {
        return;
    }
    let problem = match solver::capture(&argv::mark_auto(root, &still)) {
        Ok(said) if said.code == Some(0) => return,
        Ok(said) => said.text().trim().to_owned(),
        Err(error) => error.message,
    };
    let line = format!("the automatic marks could not be restored: {problem}");
    events.emit(EventKind::Log { stream: LogStream::Executor, line });
}

/// Leaves the mark by which Debian's tools tell when the indexes were last fetched: apt does not touch the indexes
/// themselves when there is nothing new.
fn stamp_refresh(root: &Path) {
    let dir = root.join("var/lib/apt/periodic");
    if let Err(error) =
        fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join("update-success-stamp"), ""))
    {
        eprintln!("patch-executor: cannot write the time of the refresh into {}: {error}", dir.display());
    }
}

/// apt ended because somebody else had the lock: it had not begun.
fn is_locked_out(tool: &ToolEnd) -> bool {
    tool.code == Some(100)
        && [
            "Could not get lock",
            "Unable to acquire the dpkg frontend lock",
            "Unable to lock the administration directory",
        ]
        .iter()
        .any(|words| tool.output.contains(words))
        && !tool.output.contains("Unpacking ")
        && !tool.output.contains("Setting up ")
}

fn cannot_fetch(directory: &Path, error: &io::Error) -> ErrorDetail {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::DiskSpace,
        _ => ErrorCode::PkgManagerError,
    };
    ErrorDetail::new(
        code,
        format!("archives cannot be fetched to {}: {error}; nothing was changed", directory.display()),
    )
}

/// Makes the directory that archives are fetched to. It belongs to apt's own user, as whom apt downloads.
fn make_fetched(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(directory)?;
    match User::from_name("_apt") {
        Ok(Some(user)) => chown(directory, Some(user.uid.as_raw()), None),
        _ => Ok(()),
    }
}

/// Packages that an earlier run left unpacked or half-configured.
pub(crate) fn findings(root: &Path) -> Result<Vec<String>, ErrorDetail> {
    let inventory = solver::inventory(root)?;
    Ok(inventory.database.audit().into_iter().map(|finding| finding.package.to_string()).collect())
}

/// Moves what was fetched to where apt looks for it. Only whole, verified archives are there: apt ended with 0, and the
/// directory is this change's alone.
fn keep_archives(directory: &Path, archives: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_archive = entry.path().extension().is_some_and(|extension| extension == "deb");
        if is_archive && entry.file_type()?.is_file() {
            chown(entry.path(), Some(0), Some(0))?;
            fs::rename(entry.path(), archives.join(entry.file_name()))?;
        }
    }
    fs::remove_dir_all(directory)
}
