//! A change of the host, as one journalled state machine: plan → fetch → apply → verify. What comes of it after the tool
//! has ended is in [`crate::verify`], the way back in [`crate::back`].
//!
//! Each step takes what its state holds, does its work and returns the next state; [`run`] writes that to disk before
//! the next step begins. A state that is on disk is therefore one whose work may have begun, and what is not on disk has
//! not begun.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use jiff::Timestamp;
use nix::unistd::User;
use patch_apply::{
    apt::{
        archives, argv,
        argv::Task,
        hook::HookCommand,
        lock::Locks,
        snapshot::{Kept, PackageKey},
        taken_back,
    },
    run::RunError,
};
use patch_backends::apt::{DatabaseStamp, Inventory, OperationKind, classify, last_update_check};
use patch_types::{
    Action, ErrorCode, ErrorDetail, EventKind, JobStatus, Operation, Outcome, PackageName, Plan,
    PlannedChange, RollbackMode,
    event::{Ended, LogStream},
};

use crate::{
    back,
    ceiling::Ceiling,
    events::Events,
    handover, hook,
    journal::{Claim, Journal, State, ToolEnd},
    paths::Paths,
    prune, record, restarts,
    settings::Settings,
    settle,
    shutdown::Shutdown,
    snapshots,
    solver::{self, Planned, run_failed},
    stop,
    tool::{self, Blocked, Care, Progress, Run, RunEnd},
    turn::{self, Turn},
    verdict,
};

/// The package that this program is part of.
pub(crate) const AGENT: &str = "linux-patch-api";

/// What is left free when archives are fetched, in bytes: for journals, events and apt's own caches.
const MARGIN: u64 = 4 << 20;

/// How often a change that was interrupted is finished rather than gone back from, and taken up at all.
const MOST_REPAIRS: u32 = 2;
pub(crate) const MOST_RESUMES: u32 = 9;

/// How often a change that was interrupted is settled before the next one may begin.
const MOST_SETTLES: u32 = 20;

/// The least time that a change is given whose time is nearly over.
const LEAST: Duration = Duration::from_secs(60);

/// How long a repair may take.
const REPAIR: Duration = Duration::from_secs(3600);

/// How much of the whole's progress each phase spans, in percent.
const REFRESH: (u8, u8) = (0, 5);
const DOWNLOAD: (u8, u8) = (5, 30);
const APPLY: (u8, u8) = (30, 95);

/// apt's directory of indexes.
const LISTS: &str = "var/lib/apt/lists";

/// In the root side's directory of state while the last fetch of indexes did not get all of them.
const UNFETCHED: &str = "indexes_unfetched";

/// Why a change goes on no further.
pub(crate) enum Stop {
    /// It is over.
    End(Box<Ended>),
    /// The host goes down in the middle of it: the next boot takes it up again.
    Suspended,
}

impl Stop {
    pub(crate) fn unchanged(status: JobStatus, error: ErrorDetail) -> Self {
        Self::End(Box::new(Ended {
            status,
            outcome: Some(Outcome::Unchanged),
            exit_code: None,
            error: Some(error),
            results: Vec::new(),
            answer: None,
        }))
    }

    pub(crate) fn cancelled() -> Self {
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
///
/// # Errors
/// When it has to be taken up again: whoever looks after this process is to start the recovery.
pub(crate) fn run(paths: &Paths, journal: Journal, events: Events) -> anyhow::Result<()> {
    let mut change = Change::new(paths, journal, events, false);
    let ended = change.begin();
    change.end(ended)
}

/// Takes a change up again whose executor died after packages may have been changed. Nothing is run a second time:
/// what is there is judged, and completed or taken back.
///
/// # Errors
/// As [`run`].
pub(crate) fn resume(paths: &Paths, journal: Journal, events: Events) -> anyhow::Result<()> {
    let mut change = Change::new(paths, journal, events, true);
    let ended = change.take_up();
    change.end(ended)
}

/// Journals and announces the end. A full disk delays that, it does not prevent it.
pub(crate) fn finish(paths: &Paths, journal: &mut Journal, events: &mut Events, ended: Box<Ended>) {
    let mut patience = 600;
    let state = State::Ended { ended: ended.clone() };
    // A disk that is full may be so for long, but nothing else can be done either.
    while let Err(error) = journal.enter(state.clone()) {
        if paths.spend_reserve() {
            continue;
        }
        eprintln!("patch-executor: cannot journal the end of job {}: {error}", journal.record.id);
        if patience == 0 {
            break;
        }
        patience -= 1;
        std::thread::sleep(Duration::from_secs(1));
    }
    // After the journal, and before anybody is told: who dies in between ends it once more and records it once more.
    record::ended(paths, journal.record.id, &ended);
    handover::ended(paths, journal.record.id);
    events.emit_durably(EventKind::Ended(ended));
    while !events.is_complete() && patience > 0 {
        paths.spend_reserve();
        patience -= 1;
        std::thread::sleep(Duration::from_secs(1));
        events.flush();
    }
}

pub(crate) struct Change<'a> {
    pub(crate) paths: &'a Paths,
    pub(crate) journal: Journal,
    pub(crate) events: Events,
    pub(crate) progress: Progress,
    pub(crate) deadline: Instant,
    pub(crate) settings: Settings,
    /// Whether those are what is configured.
    pub(crate) knows_settings: bool,
    /// The archives of what is installed now, and packages that lose files to new ones.
    pub(crate) archives: BTreeMap<PackageKey, Kept>,
    pub(crate) neighbours: Vec<PackageKey>,
    /// How long it took to find those.
    pub(crate) recording: Duration,
    /// What apt was asked in this process's planning, so that applying asks the very same.
    pub(crate) task: Option<Task>,
    /// What dpkg's database was like when the plan was made.
    pub(crate) planned_at: Option<DatabaseStamp>,
    /// Whether leftovers of earlier runs have been seen to.
    repaired: bool,
    /// Whether another process began this change and died of it.
    pub(crate) resumed: bool,
    /// How much was left to apply the last time that a part went back.
    pub(crate) last_rest: usize,
    /// Why not all indexes could be fetched in this run.
    unfetched: Option<ErrorDetail>,
    /// Whether a shutdown of the host is held up.
    pub(crate) shutdown: Shutdown,
    /// Whether it was said that restarts are not held back.
    pub(crate) is_told_of_restarts: bool,
    /// Held while this patches instead of the distribution's updater.
    pub(crate) attempt: Option<handover::Lock>,
    /// Whether that was given up while this waited to be confirmed.
    pub(crate) stood_aside: bool,
}

impl<'a> Change<'a> {
    pub(crate) fn new(paths: &'a Paths, journal: Journal, events: Events, resumed: bool) -> Self {
        Self {
            paths,
            journal,
            events,
            progress: Progress::default(),
            deadline: Instant::now(),
            settings: Settings::default(),
            knows_settings: true,
            archives: BTreeMap::new(),
            neighbours: Vec::new(),
            recording: Duration::ZERO,
            task: None,
            planned_at: None,
            repaired: false,
            resumed,
            last_rest: usize::MAX,
            unfetched: None,
            shutdown: Shutdown::default(),
            is_told_of_restarts: false,
            attempt: None,
            stood_aside: false,
        }
    }

    fn begin(&mut self) -> Result<Box<Ended>, Stop> {
        let turn = self.take_turn()?;
        restarts::sweep_in_turn(self.paths.root(), &turn);
        let ended = self.begin_in_turn(&turn);
        self.leave_turn(turn, &ended);
        ended
    }

    fn begin_in_turn(&mut self, turn: &Turn) -> Result<Box<Ended>, Stop> {
        prune::fetched(self.paths);
        self.in_time()?;
        self.settings = Settings::load(self.paths.root())?;
        self.deadline = Instant::now() + self.limit();
        self.patch_alone()?;
        let state = if self.refresh_is_due() { State::Refreshing } else { State::Planning };
        let ended = self.run_to_end(state, turn);
        self.tidy(&ended);
        ended
    }

    /// Before anybody else has the turn.
    fn leave_turn(&mut self, turn: Turn, ended: &Result<Box<Ended>, Stop>) {
        // One that is taken up again later may still have scripts at work.
        if !matches!(ended, Err(Stop::Suspended)) {
            self.let_restarts(&turn);
        }
        drop(turn);
    }

    fn take_up(&mut self) -> Result<Box<Ended>, Stop> {
        self.remark("the executor was interrupted while packages were being changed; looking what is left");
        // Nothing may end it from here on as if nothing had happened: what cannot be done now is tried again later.
        let later = |what: &str, error: &dyn std::fmt::Display| {
            eprintln!("patch-executor: {what}: {error}; the change is taken up again later");
            Stop::Suspended
        };
        // Another change may be under way meanwhile; repairs are changes as well.
        let turn = turn::wait(self.paths, stop::is_asked, tool::pause);
        let turn = turn.map_err(|error| later("the turn cannot be waited for", &error))?;
        let Some(mut turn) = turn else { return Err(Stop::Suspended) };
        turn.claim(self.journal.record.id).map_err(|error| later("the turn cannot be taken", &error))?;
        let ended = self.take_up_in_turn(&turn);
        self.leave_turn(turn, &ended);
        ended
    }

    fn take_up_in_turn(&mut self, turn: &Turn) -> Result<Box<Ended>, Stop> {
        // Something may have outlived the one that died, and what it left is half-changed.
        if !matches!(self.journal.record.state, State::Confirming { .. }) {
            self.hold_shutdown_up();
        }
        self.journal.record.resumed += 1;
        if let Err(error) = self.journal.save() {
            eprintln!("patch-executor: cannot journal: {error}; going on");
        }
        // One that only waits stands aside.
        if !matches!(self.journal.record.state, State::Confirming { .. }) {
            self.go_on_alone();
        }
        if !tool::wait_for_survivors(self.paths.root(), &self.journal, &mut self.events) {
            return Err(Stop::Suspended);
        }
        // A broken configuration is no reason to leave packages broken.
        match Settings::load(self.paths.root()) {
            Ok(settings) => self.settings = settings,
            Err(error) => {
                self.remark(format!("going on with the defaults, and removing nothing: {}", error.message));
                self.knows_settings = false;
            }
        }
        self.deadline = Instant::now() + REPAIR;
        let mut state = self.journal.record.state.clone();
        let is_worn_out = self.journal.record.resumed > MOST_RESUMES;
        // A host that dies again and again while it waits to hear that all is well has said enough.
        if is_worn_out && let State::Confirming { clock, until, .. } = &mut state {
            *clock = None;
            *until = Timestamp::UNIX_EPOCH;
        }
        if is_worn_out
            && let State::Repairing
            | State::Applying { .. }
            | State::Verifying { .. }
            | State::Returning { .. } = state
        {
            let error = settle::interrupted(&format!(
                "{MOST_RESUMES} times and is not taken up any more; see `dpkg --audit` and the job's log"
            ));
            return Ok(verdict::unreadable(error, &ToolEnd::default()));
        }
        let plan = match &state {
            State::Applying { plan, .. }
            | State::Verifying { plan, .. }
            | State::Confirming { plan, .. }
            | State::GoingBack { plan, .. } => Some(plan.clone()),
            _ => None,
        };
        let ended = self.run_to_end(state, turn);
        if let Some(plan) = plan.filter(|_| ended.is_ok()) {
            self.sweep_if_in_order(&plan);
        }
        self.tidy(&ended);
        ended
    }

    /// A change that ends before it began leaves no way back behind.
    fn forget_way_back(&mut self, ended: &Result<Box<Ended>, Stop>) {
        let (Ok(ended) | Err(Stop::End(ended))) = ended else { return };
        let is_own = !matches!(self.journal.record.operation, Operation::Rollback(_));
        if is_own && ended.outcome == Some(Outcome::Unchanged) {
            let way_back = self.journal.way_back();
            if let Err(error) = fs::remove_dir_all(&way_back)
                && error.kind() != io::ErrorKind::NotFound
            {
                self.remark(format!("{} cannot be removed: {error}", way_back.display()));
            }
            snapshots::settled(self.paths, self.journal.record.id);
        }
    }

    /// Gives back what the change needed. One that is taken up again later still needs it, the room for going back above
    /// all.
    fn tidy(&mut self, ended: &Result<Box<Ended>, Stop>) {
        if matches!(ended, Err(Stop::Suspended)) {
            return;
        }
        let fetched = self.paths.fetched(self.journal.record.id);
        if let Err(error) = fs::remove_dir_all(&fetched)
            && error.kind() != io::ErrorKind::NotFound
        {
            self.remark(format!("{} cannot be removed: {error}", fetched.display()));
        }
        self.release_ballast();
        self.forget_way_back(ended);
        if self.knows_settings {
            back::tidy(self.paths, &self.settings.rollback);
            snapshots::prune(self.paths, &self.settings.rollback.snapshots);
        }
    }

    fn end(mut self, ended: Result<Box<Ended>, Stop>) -> anyhow::Result<()> {
        self.let_shutdown();
        match ended {
            Ok(ended) | Err(Stop::End(ended)) => {
                finish(self.paths, &mut self.journal, &mut self.events, ended);
                // Nobody is at work any more when it looks.
                let was_attempt = self.attempt.take().is_some();
                if was_attempt || self.stood_aside {
                    handover::look(self.paths.root());
                }
                Ok(())
            }
            Err(Stop::Suspended) => anyhow::bail!("job {} is not ended yet", self.journal.record.id),
        }
    }

    fn run_to_end(&mut self, mut state: State, turn: &Turn) -> Result<Box<Ended>, Stop> {
        loop {
            self.let_shutdown_in(&state);
            self.let_restarts_in(turn, &state);
            if let State::Ended { ended } = state {
                return Ok(ended);
            }
            if !matches!(state, State::GoingBack { .. }) || self.journal.record.state != state {
                self.enter(&state)?;
            }
            state = self.step(state, turn)?;
        }
    }

    fn step(&mut self, state: State, turn: &Turn) -> Result<State, Stop> {
        match state {
            State::Accepted => Ok(State::Planning),
            State::Refreshing => self.refresh(),
            State::Repairing if self.resumed => {
                let _ = self.configure_pending(turn);
                Err(Stop::End(settle::unchanged(
                    "while it finished what an earlier run had left; nothing of its own was begun",
                )))
            }
            State::Repairing => self.repair(turn),
            State::Planning => self.plan(),
            State::Downloading { plan, auto } => self.download(plan, auto),
            // Whatever led here.
            State::Snapshotting { .. } | State::Applying { .. } if self.only_rehearses() => {
                let message = "only a rehearsal was asked for, so nothing was changed";
                Err(ErrorDetail::new(ErrorCode::PkgManagerError, message).into())
            }
            State::Rehearsing { plan, auto } => self.rehearse(plan, auto),
            State::Snapshotting { plan, auto } => self.snapshot(plan, auto),
            State::Applying { plan, auto, .. } if self.resumed => self.look_what_is_left(turn, plan, &auto),
            State::Applying { plan, auto, only } => self.apply(turn, plan, auto, only.as_deref()),
            State::Verifying { plan, tool } => self.verify(plan, tool),
            State::Confirming { plan, tool, until, clock } => self.confirm(plan, &tool, until, clock),
            State::GoingBack { plan, back } => self.go_back(turn, plan, back),
            State::Returning { plan, returning } => self.return_to_snapshot(&plan, &returning),
            State::Ended { ended } => Ok(State::Ended { ended }),
            State::Rebooting { .. } => {
                let message = "a reboot is no change of packages";
                Err(ErrorDetail::new(ErrorCode::SystemRebootError, message).into())
            }
        }
    }

    fn unusable(&self, error: &io::Error) -> Stop {
        let message = format!("the queue below {} cannot be used: {error}", self.paths.state().display());
        ErrorDetail::new(ErrorCode::PkgManagerError, message).into()
    }

    /// How long it may take from now on: not over its time, but long enough that nothing is broken off that hardly began.
    fn limit(&self) -> Duration {
        let limit = Duration::from_secs(self.journal.record.limits.timeout_seconds);
        let Some(until) = self.journal.record.not_after else { return limit };
        limit.min(left_until(until).max(LEAST))
    }

    /// Whether it may begin still.
    pub(crate) fn in_time(&self) -> Result<(), Stop> {
        let Some(until) = self.journal.record.not_after.filter(|until| Timestamp::now() >= *until) else {
            return Ok(());
        };
        let message = format!(
            "its time was over at {until:.0}, before it began to change packages; nothing was changed"
        );
        let error = ErrorDetail::new(ErrorCode::JobCancelled, message).with("not_after", until.to_string());
        Err(Stop::unchanged(JobStatus::Cancelled, error))
    }

    fn take_turn(&mut self) -> Result<Turn, Stop> {
        let mut waits_for = None;
        let mut attempts = 0;
        let place = turn::queue(self.paths, self.journal.record.id).map_err(|error| self.unusable(&error))?;
        loop {
            if tool::must_stop(&self.journal) {
                return Err(Stop::cancelled());
            }
            self.in_time()?;
            if let Some(mut turn) =
                turn::try_take(self.paths, &place).map_err(|error| self.unusable(&error))?
            {
                match turn.last_owner().filter(|owner| settle::is_due(self.paths, *owner)) {
                    None => {
                        turn.claim(self.journal.record.id).map_err(|error| self.unusable(&error))?;
                        return Ok(turn);
                    }
                    // The one before died of its change. Nothing is begun on top of that.
                    Some(dead) => {
                        drop(turn);
                        if attempts == 0 {
                            self.remark(format!("job {dead} was interrupted; it is settled first"));
                        }
                        attempts += 1;
                        let settled = match settle::one(self.paths, dead) {
                            // It was settled, and is due all the same: that would never end.
                            Ok(())
                                if attempts > MOST_SETTLES && !Claim::is_held(&self.paths.journal(dead)) =>
                            {
                                Err(anyhow::anyhow!("it is due again after every attempt"))
                            }
                            settled => settled,
                        };
                        if let Err(error) = settled {
                            let message = format!(
                                "job {dead} was interrupted and cannot be settled: {error:#}; nothing was begun"
                            );
                            return Err(ErrorDetail::new(ErrorCode::ServiceUnhealthy, message).into());
                        }
                    }
                }
            } else if let Some(owner) = turn::owner(self.paths).filter(|owner| waits_for != Some(*owner)) {
                waits_for = Some(owner);
                if owner != self.journal.record.id {
                    self.remark(format!("waiting for job {owner} to end"));
                }
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
            if matches!(
                state,
                State::Verifying { .. }
                    | State::Confirming { .. }
                    | State::GoingBack { .. }
                    | State::Applying { only: Some(_), .. }
            ) || self.resumed
            {
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

    pub(crate) fn remark(&mut self, line: impl Into<String>) {
        self.events.emit(EventKind::Log { stream: LogStream::Executor, line: line.into() });
    }

    /// Puts what apt said of a refusal into the log, where it is at hand and in nobody's way.
    fn log_words(&mut self, mut error: ErrorDetail) -> ErrorDetail {
        if let Some(serde_json::Value::String(words)) = error.details.remove(solver::WORDS) {
            for line in words.lines() {
                self.events.emit(EventKind::Log { stream: LogStream::Output, line: line.to_owned() });
            }
        }
        error
    }

    pub(crate) fn lock_patience(&self) -> Duration {
        let in_time = self.journal.record.not_after.map_or(Duration::MAX, left_until);
        Duration::from_secs(self.journal.record.limits.lock_wait_seconds)
            .min(self.deadline.saturating_duration_since(Instant::now()))
            .min(in_time)
    }

    fn wait_for_locks(&mut self, locks: Locks) -> Result<(), Stop> {
        let patience = self.lock_patience();
        match tool::wait_for_locks(self.paths.root(), locks, &self.journal, &mut self.events, patience) {
            Ok(()) => self.in_time(),
            Err(Blocked::Cancelled) => Err(Stop::cancelled()),
            Err(Blocked::Held(holder)) => {
                self.in_time()?;
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
            // What apt did fetch makes all of them look new.
            if self.paths.state().join(UNFETCHED).exists() {
                return true;
            }
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
            holds_lock: false,
        };
        // Before it begins: who is killed or cancelled in the middle has fetched a part.
        note_fetched(self.paths, false);
        let before = fetched_at(root);
        let ended = run.execute(|fd| argv::refresh(root, fd));
        if !matches!(&ended, Ok(RunEnd::Exited(end)) if end.code == Some(0)) {
            not_fetched_since(root, before);
        }
        let end = match ended? {
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
            note_fetched(self.paths, true);
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
            return Err(exited(error, end.code));
        }
        // One repository that is down must not keep all the others' fixes away; but "there is nothing to do" is not said
        // of archives that could not be looked at.
        self.unfetched = Some(error.clone());
        self.remark(format!(
            "not all indexes could be fetched, going on with those that are there: {}",
            error.message
        ));
        Ok(State::Planning)
    }

    fn plan(&mut self) -> Result<State, Stop> {
        self.wait_for_locks(Locks::Packages)?;
        snapshots::awaits_reboot(self.paths)?;
        let root = self.paths.root();
        let broken = findings(root)?;
        // What goes back to a snapshot takes what is unfinished along.
        let repairs = !matches!(&self.journal.record.operation, Operation::Rollback(rollback) if rollback.mode == RollbackMode::Snapshot);
        // A hold is a mark; it has no business with what is unfinished.
        if !broken.is_empty()
            && !self.repaired
            && repairs
            && !matches!(self.journal.record.operation, Operation::Hold(_))
        {
            let names = broken.join(", ");
            if self.only_rehearses() {
                return Err(self.unfinished(&names).into());
            }
            self.remark(format!("an earlier run left {names} unfinished; finishing that first"));
            return Ok(State::Repairing);
        }
        if let Operation::Rollback(rollback) = &self.journal.record.operation
            && rollback.mode == RollbackMode::Snapshot
        {
            let rollback = rollback.clone();
            Ceiling::load(self.paths.root())?.admits(&self.journal.record.operation)?;
            return self.plan_return(&rollback);
        }
        back::after_failure(self.paths, &self.journal.record.operation, &broken)?;
        self.journal.record.broken = broken;
        // A registry that cannot be read is what the solver's answer is measured against as well, and is named there.
        if let Err(error) = taken_back::restore(root, &self.paths.state()) {
            self.remark(error.to_string());
        }
        // Taken before the solver looks, so that what changes under its feet is noticed.
        self.planned_at = Some(DatabaseStamp::now(root));
        let operation = self.journal.record.operation.clone();
        // Asked again: the host may have been frozen while this waited for its turn.
        let ceiling = Ceiling::load(root)?;
        ceiling.admits(&operation)?;
        let planned = match &operation {
            Operation::Rollback(rollback) => {
                Planned { plan: back::plan(self.paths, rollback)?, task: None, auto: Vec::new() }
            }
            _ => solver::plan(self.paths, &operation).map_err(|error| self.log_words(error))?,
        };
        self.events.emit_durably(EventKind::Planned { plan: planned.plan.clone() });
        for barred in &planned.plan.barred {
            self.remark(barred.sentence());
        }
        self.journal.record.barred.clone_from(&planned.plan.barred);
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
            if let Some(error) = self.unfetched.take() {
                let message = format!(
                    "by the package lists that are here there is nothing to do, but they could not all be fetched: {}",
                    error.message
                );
                return Err(Stop::unchanged(JobStatus::Failed, ErrorDetail { message, ..error }));
            }
            if !self.only_rehearses() {
                self.mark_as_wanted(&operation);
            }
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
    fn repair(&mut self, turn: &Turn) -> Result<State, Stop> {
        self.repaired = true;
        self.configure_pending(turn)?;
        Ok(State::Planning)
    }

    fn configure_pending(&mut self, turn: &Turn) -> Result<ToolEnd, Stop> {
        let is_first = matches!(self.journal.record.state, State::Repairing) && !self.resumed;
        self.hold_restarts(turn, None, is_first)?;
        self.hold_shutdown_up();
        let root = self.paths.root();
        let run = Run {
            root,
            directory: root,
            journal: &self.journal,
            events: &mut self.events,
            progress: &mut self.progress,
            span: (0, 0),
            // What is mended is an earlier change's; it has a time of its own.
            deadline: self.deadline.max(Instant::now() + back::SHORTEST_STEP),
            care: Care::Transaction,
            reports: false,
            holds_lock: false,
        };
        match run.execute(|_| argv::configure_pending(root))? {
            RunEnd::Exited(end) => Ok(end),
            RunEnd::Cancelled | RunEnd::TimedOut => Ok(ToolEnd::default()),
        }
    }

    fn download(&mut self, plan: Plan, auto: Vec<PackageName>) -> Result<State, Stop> {
        if matches!(self.journal.record.operation, Operation::Hold(_)) {
            return Ok(State::Snapshotting { plan, auto });
        }
        // What goes back comes from the store.
        if !matches!(self.journal.record.operation, Operation::Rollback(_)) {
            self.fetch(&plan)?;
        }
        if !self.only_rehearses() {
            self.gather(&plan)?;
        }
        Ok(self.downloaded(plan, auto))
    }

    /// Whether what is to be fetched fits. apt finds out too late, and fills the disk first.
    fn has_room_for(&self, plan: &Plan) -> Result<(), ErrorDetail> {
        let archives = self.paths.archives();
        // An archive that is there already is not fetched.
        let fetched = plan.changes.iter().filter_map(|change| {
            let version = change.new_version.as_ref()?;
            let file = archives::file_name(&verdict::key_of(change), version.as_str());
            (!archives.join(file).exists()).then_some(change.archive_bytes)
        });
        // One after the other is copied when they are there.
        let twice = fetched.clone().max().unwrap_or_default();
        let needed = fetched.fold(MARGIN.saturating_add(twice), u64::saturating_add);
        let Ok(space) = rustix::fs::statvfs(&archives) else { return Ok(()) };
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if space.f_blocks == 0 || free >= needed {
            return Ok(());
        }
        let message = format!(
            "the archives need {} KiB in {}, where {} KiB are free; nothing was changed. Make room there, for one with \
             `apt-get clean`",
            needed >> 10,
            archives.display(),
            free >> 10
        );
        Err(ErrorDetail::new(ErrorCode::DiskSpace, message)
            .with("needed_bytes", needed)
            .with("free_bytes", free))
    }

    /// Fetches the plan's archives to where apt looks for them.
    fn fetch(&mut self, plan: &Plan) -> Result<(), Stop> {
        let archives = argv::archives(plan);
        if archives.is_empty() {
            return Ok(());
        }
        let root = self.paths.root().to_owned();
        self.has_room_for(plan)?;
        let scratch = self.paths.fetched(self.journal.record.id);
        let directory = make_fetched(&scratch).map_err(|error| cannot_fetch(&scratch, &error))?;
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
            holds_lock: false,
        };
        match run.execute(|fd| argv::download(&root, &archives, fd))? {
            RunEnd::Exited(end) if end.code == Some(0) => {
                let most =
                    plan.changes.iter().map(|change| change.archive_bytes).fold(0, u64::saturating_add);
                keep_archives(&scratch, &self.paths.archives(), most)
                    .map_err(|error| cannot_fetch(&scratch, &error).into())
            }
            RunEnd::Exited(end) => Err(exited(
                classify(end.code, &end.output, (&self.journal.record.operation).into()),
                end.code,
            )),
            RunEnd::Cancelled => Err(Stop::cancelled()),
            RunEnd::TimedOut => {
                Err(Stop::timed_out(self.journal.record.limits.timeout_seconds, "the download"))
            }
        }
    }

    fn apply(
        &mut self,
        turn: &Turn,
        plan: Plan,
        mut auto: Vec<PackageName>,
        only: Option<&[usize]>,
    ) -> Result<State, Stop> {
        let root = self.paths.root().to_owned();
        if only.is_none() {
            if tool::must_stop(&self.journal) {
                return Err(Stop::cancelled());
            }
            self.wait_for_locks(Locks::Packages)?;
            if Instant::now() >= self.deadline {
                let limit = self.journal.record.limits.timeout_seconds;
                return Err(Stop::timed_out(limit, "what comes before the change itself"));
            }
            if self.planned_at != Some(DatabaseStamp::now(&root)) {
                self.remark("packages were changed by somebody else since the plan was made; planning again");
                self.release_ballast();
                return Ok(State::Planning);
            }
        }
        self.hold_restarts(turn, Some(&plan), only.is_none())?;
        let automatic = if only.is_some() { self.automatic() } else { BTreeSet::new() };
        let argv: Box<dyn FnOnce(i32) -> argv::Argv> =
            match (&self.journal.record.operation, only, self.task.take()) {
                (Operation::Hold(hold), ..) => {
                    let argv = argv::hold(&root, &hold.name, hold.hold);
                    Box::new(move |_| argv)
                }
                (operation, Some(only), _) => {
                    let rest: Vec<PlannedChange> =
                        only.iter().filter_map(|index| plan.changes.get(*index).cloned()).collect();
                    // apt takes every package that is named to it for one that a person wants.
                    auto.extend(
                        rest.iter()
                            .filter(|change| !change.action.is_removal())
                            .filter(|change| {
                                automatic.contains(&verdict::key_of(change))
                                    || (change.action == Action::Install
                                        && !verdict::names(operation, &change.name))
                            })
                            .map(|change| change.name.with_architecture(&change.architecture)),
                    );
                    let hook = match self.announce(&rest) {
                        Ok(hook) => hook,
                        // A part went back, so this is no beginning: what is left stays as it is.
                        Err(error) => {
                            let tool = ToolEnd { output: error.message, ..ToolEnd::default() };
                            return Ok(State::Verifying { plan, tool });
                        }
                    };
                    let root = root.clone();
                    Box::new(move |fd| argv::finish(&root, &rest, fd, &hook))
                }
                (_, None, Some(task)) => {
                    let hook = self.announce(&plan.changes)?;
                    let root = root.clone();
                    Box::new(move |fd| argv::apply(&root, &task, fd, Some(&hook)))
                }
                (_, None, None) => {
                    let message = "there is a plan, but not what apt is to be told; nothing was changed";
                    return Err(ErrorDetail::new(ErrorCode::PkgManagerError, message).into());
                }
            };
        self.hold_shutdown_up();
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
            holds_lock: false,
        };
        let is_hold = matches!(self.journal.record.operation, Operation::Hold(_));
        let tool = match run.execute(argv) {
            Ok(RunEnd::Exited(end)) => end,
            Ok(RunEnd::Cancelled | RunEnd::TimedOut) => ToolEnd::default(),
            Err(error @ RunError::Start { .. }) if only.is_none() => return Err(error.into()),
            // It runs or ran, only following it failed: the database says what became of it.
            Err(error) => ToolEnd { output: error.to_string(), ..ToolEnd::default() },
        };
        // Who killed apt did not kill dpkg, and what it has not done yet cannot be judged.
        let limit = self.deadline.max(Instant::now() + back::SHORTEST_STEP);
        if !tool::wait_for_dpkg(&root, &self.journal, &mut self.events, limit) {
            return Err(Stop::Suspended);
        }
        if only.is_none() && is_locked_out(&tool) && self.lock_patience() > Duration::ZERO {
            self.remark("somebody else was quicker to take the package manager's lock; planning again after it is free");
            self.release_ballast();
            return Ok(State::Planning);
        }
        if let Some(drift) = hook::drift(self.journal.dir()).filter(|_| !is_hold) {
            // The hook stopped apt before dpkg began.
            let message =
                format!("apt was about to do something else than was planned: {drift}; nothing was changed");
            let error = ErrorDetail::new(ErrorCode::PlanDrift, message);
            let error = error.with("difference", serde_json::to_value(&drift).unwrap_or_default());
            if only.is_none() {
                return Err(exited(error, tool.code));
            }
        }
        // A script that hung would hang again.
        if tool.code != Some(0)
            && left(&root).is_some_and(|left| matches!(left, Left::Unmerged) || !tool.timed_out)
        {
            self.remark("the run failed and left something unfinished; trying once to finish it");
            // Its result is in the database, which is looked at next.
            let _ = self.configure_pending(turn);
        }
        restore_marks(&root, &auto, &mut self.events);
        Ok(State::Verifying { plan, tool })
    }

    /// The command that apt runs under its lock before dpkg begins.
    fn hook(&self) -> Result<HookCommand, ErrorDetail> {
        let failed = |message: String| ErrorDetail::new(ErrorCode::PkgManagerError, message);
        let program = std::env::current_exe()
            .map_err(|error| failed(format!("cannot find my own program: {error}; nothing was changed")))?;
        // That is what the kernel calls it once this very change has replaced it.
        let program = program
            .to_str()
            .and_then(|text| text.strip_suffix(" (deleted)"))
            .map_or_else(|| program.clone(), std::path::PathBuf::from);
        HookCommand::new(&program, self.paths.root(), self.journal.record.id)
            .map_err(|error| failed(format!("{error}; nothing was changed")))
    }

    /// Tells the hook what to expect.
    fn announce(&self, expected: &[PlannedChange]) -> Result<HookCommand, ErrorDetail> {
        let hook = self.hook()?;
        hook::expect(self.journal.dir(), expected).map_err(|error| {
            let message =
                format!("what is about to happen cannot be journalled: {error}; nothing was changed");
            ErrorDetail::new(ErrorCode::DiskSpace, message)
        })?;
        Ok(hook)
    }

    /// After the death of the executor that was applying: finishes what can be finished. The rest is judged as after
    /// any other run.
    fn look_what_is_left(&mut self, turn: &Turn, plan: Plan, auto: &[PackageName]) -> Result<State, Stop> {
        let root = self.paths.root().to_owned();
        let mut tool = ToolEnd::default();
        // A host that dies of finishing it does so only so often.
        let again = self.journal.record.resumed > MOST_REPAIRS;
        if !again && left(&root).is_some() {
            self.remark("finishing what was left unpacked or half-configured");
            // The repair's exit code says nothing of the change itself.
            match self.configure_pending(turn) {
                Ok(end) => tool = ToolEnd { output: end.output, failed: end.failed, ..ToolEnd::default() },
                Err(_) => self.remark("the repair could not be run"),
            }
        }
        restore_marks(&root, auto, &mut self.events);
        Ok(State::Verifying { plan, tool })
    }
}

/// How long it is until an instant; nothing if it is over.
fn left_until(instant: Timestamp) -> Duration {
    Duration::try_from(instant.duration_since(Timestamp::now())).unwrap_or_default()
}

/// A failure before anything changed, with the tool's exit code.
fn exited(error: ErrorDetail, code: Option<i32>) -> Stop {
    let mut stop = Stop::unchanged(JobStatus::Failed, error);
    if let Stop::End(ended) = &mut stop {
        ended.exit_code = code;
    }
    stop
}

/// Gives packages their automatic mark back: naming one to `apt-get install` makes it manual, which an update must not.
pub(crate) fn restore_marks(root: &Path, auto: &[PackageName], events: &mut Events) {
    if auto.is_empty() {
        return;
    }
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

/// When apt last changed its directory of indexes, by which everybody tells when they were fetched.
fn fetched_at(root: &Path) -> Option<SystemTime> {
    fs::metadata(root.join(LISTS)).and_then(|meta| meta.modified()).ok()
}

/// What a fetch that failed has changed in the directory of indexes makes none of them newer. The time is not quite that of
/// before, so that whoever remembers what is in there sees that it is to be read again.
fn not_fetched_since(root: &Path, before: Option<SystemTime>) {
    let after = fetched_at(root);
    let Some(time) =
        before.filter(|_| after != before).and_then(|at| at.checked_add(Duration::from_nanos(1)))
    else {
        return;
    };
    let lists = root.join(LISTS);
    if let Err(error) = fs::File::open(&lists).and_then(|lists| lists.set_modified(time)) {
        eprintln!("patch-executor: cannot set the time of {}: {error}", lists.display());
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
        && !["Unpacking ", "Setting up ", "Removing ", "Purging "]
            .iter()
            .any(|words| tool.output.contains(words))
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

/// Where apt's user fetches to, below a directory of root's own.
const BY_APT: &str = "by-apt";

/// Makes the directory that archives are fetched to. It belongs to apt's own user, as whom apt downloads.
fn make_fetched(scratch: &Path) -> io::Result<PathBuf> {
    back::make_scratch(scratch)?;
    let directory = scratch.join(BY_APT);
    archives::make(&directory)?;
    give_to_apt(&directory)?;
    Ok(directory)
}

/// apt downloads as a user of its own, if there is one.
pub(crate) fn give_to_apt(directory: &Path) -> io::Result<()> {
    match User::from_name("_apt") {
        Ok(Some(user)) => chown(directory, Some(user.uid.as_raw()), None),
        _ => Ok(()),
    }
}

/// Remembers whether the last fetch got everything: until one does, the next run that may fetch does so again.
fn note_fetched(paths: &Paths, everything: bool) {
    let mark = paths.state().join(UNFETCHED);
    let noted = if everything { fs::remove_file(&mark) } else { fs::write(&mark, "") };
    match noted {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            eprintln!("patch-executor: {}: {error}", mark.display());
        }
        _ => {}
    }
}

/// What a run that did not end well leaves for dpkg to finish.
enum Left {
    /// Packages that are half-done; to finish them runs their scripts.
    Packages,
    /// What dpkg had written down in `updates/` and not merged into `status`, which any run of it does.
    Unmerged,
}

/// What there is for dpkg to finish, if anything. A database that cannot be read is judged later.
fn left(root: &Path) -> Option<Left> {
    let inventory = solver::inventory(root).ok()?;
    if !inventory.database.audit().is_empty() {
        Some(Left::Packages)
    } else if inventory.database.pending_updates() > 0 {
        Some(Left::Unmerged)
    } else {
        None
    }
}

/// Packages that an earlier run left unpacked or half-configured.
pub(crate) fn findings(root: &Path) -> Result<Vec<String>, ErrorDetail> {
    let inventory = solver::inventory(root)?;
    Ok(inventory.database.audit().into_iter().map(|finding| finding.package.to_string()).collect())
}

/// Brings what was fetched to where apt looks for it. apt ended with 0, so only whole, verified archives are there; but
/// apt's user could still write to them, so what is kept and looked at from here on are copies.
fn keep_archives(scratch: &Path, kept: &Path, most: u64) -> io::Result<()> {
    let ours = scratch.join("ours");
    archives::make(&ours)?;
    archives::take_over(&scratch.join(BY_APT), &ours, most)?;
    for entry in fs::read_dir(&ours)? {
        let entry = entry?;
        // As apt leaves them.
        fs::set_permissions(entry.path(), Permissions::from_mode(0o644))?;
        fs::rename(entry.path(), kept.join(entry.file_name()))?;
    }
    fs::remove_dir_all(scratch)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{File, hard_link},
        io::Write as _,
        os::unix::fs::{MetadataExt as _, symlink},
    };

    use patch_apply::apt::policy_rc::{self, HoldBack};
    use patch_types::{
        ChangeOptions, JobId, Rehearse,
        executor::Limits,
        operation::ApplyPatches,
        settings::{Restart, RestartMode, RestartTime},
    };
    use uuid::Uuid;

    use super::*;

    /// One change waits for another's turn and is cancelled: what the other has put in place stays.
    #[test]
    fn who_never_had_the_turn_takes_nothing_away() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path().to_owned());
        fs::create_dir_all(paths.queue()).unwrap();
        fs::create_dir_all(root.path().join("usr/sbin")).unwrap();
        let id = |number| JobId(Uuid::from_u128(number));
        let place = turn::queue(&paths, id(1)).unwrap();
        let turn = turn::try_take(&paths, &place).unwrap().unwrap();
        let held = HoldBack { job: id(1), services: &[], removed: Vec::new() };
        policy_rc::install(root.path(), &held).unwrap();
        let dir = paths.journal(id(2));
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        let events = paths.event_file(id(2));
        fs::create_dir_all(events.parent().unwrap()).unwrap();
        let limits = Limits { timeout_seconds: 60, lock_wait_seconds: 1 };
        let create = Journal::create(&dir, id(2), Operation::Refresh, limits, None, ChangeOptions::default());
        let journal = create.unwrap();
        journal.request_cancel().unwrap();
        run(&paths, journal, Events::create(&events).unwrap()).unwrap();
        assert!(root.path().join(policy_rc::POLICY).exists());
        drop((turn, place));
        restarts::sweep(&paths);
        assert!(!root.path().join(policy_rc::POLICY).exists());
    }

    /// To be rehearsed alone, in a root of its own.
    fn rehearsed_alone(root: &Path, operation: Operation) -> (Paths, Journal, Events) {
        let paths = Paths::below(root.to_owned());
        fs::create_dir_all(paths.queue()).unwrap();
        let id = JobId(Uuid::from_u128(4));
        let (dir, path) = (paths.journal(id), paths.event_file(id));
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let limits = Limits { timeout_seconds: 60, lock_wait_seconds: 1 };
        let rehearse = Some(Rehearse { only: true, ..Rehearse::default() });
        let options = ChangeOptions { rehearse, ..ChangeOptions::default() };
        let journal = Journal::create(&dir, id, operation, limits, None, options).unwrap();
        (paths, journal, Events::create(&path).unwrap())
    }

    #[test]
    fn a_rehearsal_alone_neither_finishes_nor_changes_anything() {
        let root = tempfile::tempdir().unwrap();
        let dpkg = root.path().join("var/lib/dpkg");
        fs::create_dir_all(&dpkg).unwrap();
        fs::write(
            dpkg.join("status"),
            "Package: aa\nStatus: install ok half-configured\nArchitecture: all\nVersion: 1\nMaintainer: t <t@t>\n\
             Description: t\n\n",
        )
        .unwrap();
        fs::write(dpkg.join("lock"), "").unwrap();
        fs::write(dpkg.join("lock-frontend"), "").unwrap();
        let operation = Operation::ApplyPatches(ApplyPatches::default());
        let (paths, journal, events) = rehearsed_alone(root.path(), operation);
        let mut change = Change::new(&paths, journal, events, false);
        let why = |stop: Result<State, Stop>| match stop {
            Err(Stop::End(ended)) => {
                assert_eq!(ended.outcome, Some(Outcome::Unchanged));
                ended.error.unwrap().message
            }
            other => panic!("{:?}", other.map_err(drop)),
        };
        let message = why(change.plan());
        assert!(message.contains("unfinished: aa; nothing was rehearsed"), "{message}");
        let place = turn::queue(&paths, change.journal.record.id).unwrap();
        let turn = turn::try_take(&paths, &place).unwrap().unwrap();
        let plan = Plan::of(Vec::new());
        let states = [
            State::Snapshotting { plan: plan.clone(), auto: Vec::new() },
            State::Applying { plan, auto: Vec::new(), only: None },
        ];
        for state in states {
            let message = why(change.step(state, &turn));
            assert!(message.contains("only a rehearsal"), "{message}");
        }
    }

    /// What was held back is noted however a change ends, and once.
    #[test]
    fn what_was_held_back_is_not_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path().to_owned());
        fs::create_dir_all(paths.queue()).unwrap();
        let id = JobId(Uuid::from_u128(3));
        let dir = paths.journal(id);
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        let path = paths.event_file(id);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let limits = Limits { timeout_seconds: 60, lock_wait_seconds: 1 };
        let create = Journal::create(&dir, id, Operation::Refresh, limits, None, ChangeOptions::default());
        let mut change = Change::new(&paths, create.unwrap(), Events::create(&path).unwrap(), false);
        change.settings.restart = Restart {
            mode: RestartMode::Restart,
            services: vec!["a.service".into()],
            when: RestartTime::InWindow,
        };
        fs::write(dir.join(policy_rc::HELD_BACK), "a.service\nb.service\n").unwrap();
        fs::write(dir.join(policy_rc::STOPPED), "c.service\n").unwrap();
        let place = turn::queue(&paths, id).unwrap();
        let turn = turn::try_take(&paths, &place).unwrap().unwrap();
        change.leave_turn(turn, &Err(Stop::cancelled()));
        let text = fs::read_to_string(&path).unwrap();
        for said in
            ["a.service was kept", "restarted in the window", "restart it yourself", "c.service was stopped"]
        {
            assert!(text.contains(said), "{said}: {text}");
        }
        assert!(paths.restarts().join("a.service").exists() && !paths.restarts().join("b.service").exists());
        assert!(!dir.join(policy_rc::HELD_BACK).exists() && !dir.join(policy_rc::STOPPED).exists());
    }

    #[test]
    fn a_fetch_that_failed_makes_no_index_newer() {
        let root = tempfile::tempdir().unwrap();
        let lists = root.path().join(LISTS);
        assert_eq!(fetched_at(root.path()), None);
        not_fetched_since(root.path(), None);
        fs::create_dir_all(&lists).unwrap();
        fs::write(lists.join("x_InRelease"), "").unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        File::open(&lists).unwrap().set_modified(long_ago).unwrap();
        let before = fetched_at(root.path());
        not_fetched_since(root.path(), before);
        assert_eq!(fetched_at(root.path()), before, "nothing was fetched");
        fs::write(lists.join("y_InRelease"), "").unwrap();
        not_fetched_since(root.path(), before);
        let after = last_update_check(root.path()).unwrap();
        assert_eq!((after.as_second(), after.subsec_nanosecond()), (1_000_000_000, 1));
    }

    /// A directory to fetch to with one archive, and one to keep archives in.
    fn fetched() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (scratch, kept) = (dir.path().join("scratch"), dir.path().join("kept"));
        fs::create_dir(&kept).unwrap();
        let archive = make_fetched(&scratch).unwrap().join("aa_1_all.deb");
        fs::write(&archive, "verified").unwrap();
        (dir, archive, kept)
    }

    #[test]
    fn whoever_fetched_an_archive_cannot_change_the_one_that_is_kept() {
        let (dir, archive, kept) = fetched();
        let mut open = File::options().append(true).open(&archive).unwrap();
        fs::write(archive.with_file_name("aa_1_all.deb.part"), "unfinished").unwrap();
        keep_archives(&dir.path().join("scratch"), &kept, 8).unwrap();
        open.write_all(b" and changed").unwrap();
        let archive = kept.join("aa_1_all.deb");
        assert_eq!(fs::read_to_string(&archive).unwrap(), "verified");
        let meta = fs::metadata(&archive).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (nix::unistd::geteuid().as_raw(), 0o644));
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 1);
        assert!(!dir.path().join("scratch").exists(), "litter");
    }

    #[test]
    fn a_file_that_is_larger_than_all_archives_is_not_read() {
        let (dir, archive, kept) = fetched();
        // Ten terabytes of nothing.
        let sparse = File::create(archive.with_file_name("bb_1_all.deb")).unwrap();
        sparse.set_len(10 << 40).or_else(|_| sparse.set_len(1 << 30)).unwrap();
        keep_archives(&dir.path().join("scratch"), &kept, 1 << 20).unwrap_err();
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
    }

    #[test]
    fn what_has_another_name_or_leads_elsewhere_is_not_kept() {
        for link in [hard_link::<PathBuf, PathBuf>, symlink::<PathBuf, PathBuf>] {
            let (dir, archive, kept) = fetched();
            let secret = dir.path().join("secret");
            fs::write(&secret, "not to be read").unwrap();
            link(secret, archive.with_file_name("bb_1_all.deb")).unwrap();
            keep_archives(&dir.path().join("scratch"), &kept, u64::MAX).unwrap_err();
            assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
        }
    }
}
