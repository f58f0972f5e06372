//! The way back: recorded before a change, gone when it fails or when somebody asks for it.
//!
//! What is recorded and how it is gone back to is `patch-apply`'s knowledge; here is when, and what comes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use patch_apply::{
    apt::{
        archives::{self, KeepError},
        argv::{self, Argv},
        ballast::{self, Place},
        litter, lock,
        restore::{self, GoBackError, Going, Proof},
        snapshot::{self, After, Kept, PackageKey, Recorded, Snapshot, SnapshotError},
        stage::Stage,
        store::Store,
        taken_back,
    },
    run::RunError,
};
use patch_backends::apt::{self, DatabaseStamp, Indexed, Indexes, Inventory};
use patch_types::{
    Action, ErrorCode, ErrorDetail, EventKind, Grade, JobId, JobStatus, LockHolder, Operation, Outcome, Plan,
    PlannedChange, TakenBack as Pinned, WentBack,
    event::{Ended, LogStream},
    executor::RootStatus,
    operation::Rollback,
};

use crate::{
    change::{self, Change, Stop},
    decide::Standing,
    health::Baseline,
    journal::{self, Back, Journal, State, TakenBack, ToolEnd},
    paths::Paths,
    protect, solver, stop,
    tool::{self, Care, Progress, Run, RunEnd},
    turn::Turn,
    verdict,
};

/// How often going back is tried in one process, and altogether when processes die of it.
const TRIES: u32 = 3;
const MOST_TRIES: u32 = 9;

/// How often room is looked for, and how many bytes of it are worth another try.
const LOOK_FOR_ROOM: Duration = Duration::from_secs(1);
const MADE: u64 = 4 << 20;

/// How long one run of dpkg may take while going back, before maintainer scripts that hang are ended.
const STEP_LIMIT: Duration = Duration::from_secs(1800);
pub(crate) const SHORTEST_STEP: Duration = Duration::from_secs(30);

/// How many way backs are kept at most, however young.
const MOST_WAYS: usize = 1000;

/// The part of the progress that going back spans, in percent.
const BACK: (u8, u8) = (95, 99);

/// Runs the tools of recording and going back, into a job's log.
struct Host<'a> {
    root: &'a Path,
    journal: &'a Journal,
    events: &'a mut crate::events::Events,
    progress: &'a mut Progress,
    deadline: Instant,
    holds_lock: bool,
}

/// An attempt at going back that did not come to its end.
struct Missed {
    /// Why.
    message: String,
    /// Whether it is room on a disk that was lacking.
    lacks_room: bool,
}

/// One step of going back may take as long as the whole change might, within reason.
fn step_limit(journal: &Journal) -> Duration {
    Duration::from_secs(journal.record.limits.timeout_seconds).clamp(SHORTEST_STEP, STEP_LIMIT)
}

impl Host<'_> {
    fn execute(
        &mut self,
        directory: &Path,
        care: Care,
        argv: impl FnOnce(i32) -> Argv,
    ) -> Result<RunEnd, RunError> {
        let limit = step_limit(self.journal);
        let run = Run {
            root: self.root,
            directory,
            journal: self.journal,
            events: self.events,
            progress: self.progress,
            span: BACK,
            deadline: if care == Care::Transaction { Instant::now() + limit } else { self.deadline },
            care,
            reports: care == Care::Interruptible,
            holds_lock: self.holds_lock,
        };
        run.execute(argv)
    }
}

impl Stage for Host<'_> {
    fn run(&mut self, argv: Argv) -> Result<Option<i32>, RunError> {
        let root = self.root;
        match self.execute(root, Care::Transaction, |_| argv)? {
            RunEnd::Exited(end) => Ok(end.code),
            RunEnd::Cancelled | RunEnd::TimedOut => Ok(None),
        }
    }

    fn fetch(&mut self, archives: &[String], directory: &Path) -> bool {
        let root = self.root;
        // apt fetches as its own user.
        if let Err(error) = change::give_to_apt(directory) {
            self.say(format!("{} cannot be given to apt's user: {error}", directory.display()));
        }
        let run = self.execute(directory, Care::Interruptible, |fd| argv::download(root, archives, fd));
        match run {
            Ok(RunEnd::Exited(end)) => end.code == Some(0),
            Ok(RunEnd::Cancelled | RunEnd::TimedOut) => false,
            Err(error) => {
                self.say(format!("present archives could not be fetched: {error}"));
                false
            }
        }
    }

    fn say(&mut self, line: String) {
        self.events.emit(EventKind::Log { stream: LogStream::Executor, line });
    }
}

/// What is written beside the snapshot: how the plan falls apart into groups, and the archives that are to be kept.
const GROUPS: &str = "groups.json";
const BASELINE: &str = "baseline.json";
const EXCUSED: &str = "excused.json";
pub(crate) const ARCHIVES: &str = "archives.json";

fn save<T: serde::Serialize>(directory: &Path, name: &str, value: &T) -> io::Result<()> {
    let text = serde_json::to_vec(value).map_err(io::Error::other)?;
    journal::write_whole(directory, name, &text)
}

fn load<T: serde::de::DeserializeOwned>(directory: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(directory.join(name)).ok()?).ok()
}

/// A directory of root's own to work in; apt's user may pass through it to the one that is its own.
pub(crate) fn make_scratch(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o711).create(directory)
}

fn unusable(what: &str, path: &Path, error: &io::Error) -> ErrorDetail {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::DiskSpace,
        _ => ErrorCode::PkgManagerError,
    };
    ErrorDetail::new(code, format!("{what} {} cannot be used: {error}; nothing was changed", path.display()))
}

/// What the archives say of a plan's packages.
fn indexes(root: &Path, plan: &Plan) -> Result<Indexes, ErrorDetail> {
    let names = plan.changes.iter().map(|change| change.name.name().to_owned());
    Indexes::read(root, names).map_err(|error| solver::unreadable(&error))
}

impl Change<'_> {
    fn store(&self) -> Result<Store, ErrorDetail> {
        let path = self.paths.store();
        Store::open(&path).map_err(|error| unusable("the store of archives", &path, &error))
    }

    /// Keeps the archives that are about to be installed for the change after this one, and finds those of what is
    /// installed now.
    pub(crate) fn gather(&mut self, plan: &Plan) -> Result<(), Stop> {
        let begun = Instant::now();
        let store = self.store()?;
        let root = self.paths.root().to_owned();
        match archives::keep_new(&store, plan, &self.paths.archives()) {
            Ok(_) => {}
            // Not what the signed index promised: nothing of it is installed.
            Err(error @ KeepError::Other { .. }) => {
                let message = format!("{error}; nothing was changed");
                return Err(ErrorDetail::new(ErrorCode::SignatureError, message).into());
            }
            Err(error) => self.remark(format!("new archives could not be kept for later: {error}")),
        }
        let inventory = solver::inventory(&root)?;
        let indexes = indexes(&root, plan)?;
        let neighbours = snapshot::neighbours(&inventory, plan, &indexes, &self.paths.archives());
        let wanted = archives::wanted(&inventory.database, plan, &neighbours);
        let scratch = self.paths.fetched(self.journal.record.id);
        make_scratch(&scratch).map_err(|error| unusable("the directory", &scratch, &error))?;
        let found = archives::gather(
            &root,
            &store,
            &wanted,
            &scratch,
            &mut Host {
                root: &root,
                journal: &self.journal,
                events: &mut self.events,
                progress: &mut self.progress,
                deadline: self.deadline,
                holds_lock: false,
            },
        );
        let _ = fs::remove_dir_all(&scratch);
        if tool::must_stop(&self.journal) {
            return Err(Stop::cancelled());
        }
        self.archives = found;
        self.neighbours = neighbours;
        self.recording = begun.elapsed();
        Ok(())
    }

    /// Whether the change would be refused for the room that it and going back from it take, with the archives that it would keep
    /// for that first. Changes nothing and keeps nothing, so it goes by what the indexes say of them.
    pub(crate) fn check_room(&self, plan: &Plan) -> Result<(), Stop> {
        let root = self.paths.root().to_owned();
        let store = self.store()?;
        let inventory = solver::inventory(&root)?;
        let indexes = indexes(&root, plan)?;
        let neighbours = snapshot::neighbours(&inventory, plan, &indexes, &self.paths.archives());
        let present = archives::wanted(&inventory.database, plan, &neighbours).into_iter().filter_map(
            |(key, version)| {
                if store.find(&key, &version).is_some() {
                    return None;
                }
                let is_it = |offer: &&Indexed| {
                    offer.version.as_str() == version
                        && (offer.architecture == key.architecture || offer.architecture == "all")
                };
                let offered = indexes.versions(&key.name).iter().find(is_it).map(|offer| offer.size);
                // One that nobody has any more is made of the installed files.
                let installed = || {
                    let package =
                        inventory.database.named(&key.name).find(|p| p.architecture() == key.architecture);
                    package.map(apt::Installed::size).unwrap_or_default()
                };
                Some(offered.unwrap_or_else(installed))
            },
        );
        let new = plan.changes.iter().map(|change| change.archive_bytes);
        let kept = present.chain(new).fold(0, u64::saturating_add);
        let directory = self.journal.way_back();
        let full = |error: &io::Error| unusable("the directory", &directory, error);
        journal::make_private(&directory).map_err(|error| full(&error))?;
        let checked = snapshot::take(&root, plan, &neighbours, &BTreeMap::new(), &directory)
            .map_err(|error| {
                ErrorDetail::new(ErrorCode::PkgManagerError, format!("{error}; nothing was changed"))
            })
            .and_then(|snapshot| {
                let checked =
                    ballast::check(&root, &self.paths.state(), &snapshot, plan.disk_delta_bytes, kept);
                checked.map_err(|error| {
                    ErrorDetail::new(ErrorCode::DiskSpace, format!("{error}; nothing was changed"))
                })
            });
        let _ = fs::remove_dir_all(&directory);
        Ok(checked?)
    }

    /// Records the way back, refuses to begin if it is not good enough, and reserves the room that going it takes.
    pub(crate) fn snapshot(
        &mut self,
        plan: Plan,
        auto: Vec<patch_types::PackageName>,
    ) -> Result<State, Stop> {
        let begun = Instant::now();
        let root = self.paths.root().to_owned();
        let directory = self.journal.way_back();
        let full = |error: &io::Error| unusable("the directory", &directory, error);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(full(&error).into()),
            _ => {}
        }
        journal::make_private(&directory).map_err(|error| full(&error))?;
        let inventory = solver::inventory(&root)?;
        let mut snapshot = snapshot::take(&root, &plan, &self.neighbours, &self.archives, &directory)
            .map_err(|error| {
                ErrorDetail::new(ErrorCode::PkgManagerError, format!("{error}; nothing was changed"))
            })?;
        let baseline = Baseline::record(&root);
        // Going back starts only services of what goes back.
        let shipped: BTreeSet<String> = plan
            .changes
            .iter()
            .filter_map(|change| archives::installed(&inventory.database, change))
            .flat_map(|package| apt::info::units(&root, package))
            .collect();
        snapshot.active_units =
            baseline.active_units().into_iter().filter(|unit| shipped.contains(unit)).collect();
        let mut way_back = snapshot.way_back();
        // A mark is undone without an archive.
        way_back.packages.retain(|package| {
            !plan.changes.iter().any(|change| {
                matches!(change.action, Action::Hold | Action::Unhold)
                    && change.name.name() == package.name.name()
                    && change.architecture == package.architecture
            })
        });
        way_back.grade = way_back.packages.iter().map(|package| package.grade).min().unwrap_or(Grade::Exact);
        let require = self.settings.rollback.require;
        let is_hold = matches!(self.journal.record.operation, Operation::Hold(_));
        let lacking: Vec<String> = way_back
            .packages
            .iter()
            // Going back is the remedy: it does not fail for want of a way forward again.
            .filter(|_| !matches!(self.journal.record.operation, Operation::Rollback(_)))
            .filter(|package| !require.accepts(package.grade))
            .map(|package| format!("{} {} ({})", package.name, package.version, package.reason))
            .collect();
        if !lacking.is_empty() {
            let message = format!(
                "there is no way back that rollback.require accepts for {}; nothing was changed. Bring the archives \
                 into /var/cache/apt/archives, or set rollback.require in config.yaml",
                lacking.join(", ")
            );
            return Err(ErrorDetail::new(ErrorCode::RollbackUnavailable, message)
                .with("packages", lacking)
                .into());
        }
        let excused: BTreeSet<String> = plan
            .changes
            .iter()
            .filter(|change| change.action.is_removal())
            .filter_map(|change| inventory.database.get(&change.name.with_architecture(&change.architecture)))
            .flat_map(|package| apt::info::units(&root, package))
            .collect();
        let indexes = indexes(&root, &plan)?;
        let groups = apt::groups(&plan, &inventory, &indexes);
        let kept: Vec<&str> = snapshot
            .affected
            .iter()
            .filter_map(|affected| affected.archive.as_ref().map(|kept| kept.file.as_str()))
            .collect();
        save(&directory, GROUPS, &groups)
            .and_then(|()| save(&directory, BASELINE, &baseline))
            .and_then(|()| save(&directory, EXCUSED, &excused))
            .and_then(|()| save(&directory, ARCHIVES, &kept))
            .map_err(|error| full(&error))?;
        snapshot.save(&directory).map_err(|error| {
            let code = match &error {
                SnapshotError::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                    ErrorCode::DiskSpace
                }
                _ => ErrorCode::PkgManagerError,
            };
            ErrorDetail::new(code, format!("{error}; nothing was changed"))
        })?;
        if is_hold {
            return Ok(State::Applying { plan, auto, only: None });
        }
        // Before room is set aside: a snapshot would hold on to it.
        way_back.snapshot = self.snapshot_file_systems(&plan)?;
        match ballast::reserve(&root, &self.paths.state(), &snapshot, plan.disk_delta_bytes) {
            Ok(ballast) => ballast.remarks.into_iter().for_each(|line| self.remark(line)),
            Err(error) => {
                return Err(
                    ErrorDetail::new(ErrorCode::DiskSpace, format!("{error}; nothing was changed")).into()
                );
            }
        }
        let took = self.recording + begun.elapsed();
        way_back.recorded_in_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.events.emit_durably(EventKind::WayBack { way_back });
        if let Operation::Rollback(rollback) = &self.journal.record.operation {
            let back = Back {
                source: rollback.job,
                scope: plan.changes.iter().map(verdict::key_of).collect(),
                reason: format!("job {} is undone", rollback.job),
                attempts: 0,
                rest: Vec::new(),
                unconfirmed: false,
            };
            return Ok(State::GoingBack { plan, back });
        }
        Ok(State::Applying { plan, auto, only: None })
    }

    /// How the plan falls apart, as it was worked out before anything changed. Without that everything belongs together.
    pub(crate) fn groups(&self, plan: &Plan) -> Vec<Vec<usize>> {
        load(&self.journal.way_back(), GROUPS).unwrap_or_else(|| vec![(0..plan.changes.len()).collect()])
    }

    /// What the host was like before.
    pub(crate) fn baseline(&self) -> Option<Baseline> {
        load(&self.journal.way_back(), BASELINE)
    }

    /// Gives the room back that was set aside.
    pub(crate) fn release_ballast(&mut self) {
        if let Err(error) = ballast::release(self.paths.root(), &self.paths.state()) {
            self.remark(format!("the room that was set aside could not be given back: {error}"));
        }
    }

    /// The units that the change takes away on purpose.
    pub(crate) fn excused(&self) -> BTreeSet<String> {
        load(&self.journal.way_back(), EXCUSED).unwrap_or_default()
    }

    /// Whether there is anything to go back to.
    pub(crate) fn has_way_back(&self) -> bool {
        self.journal.way_back().join("snapshot.json").exists()
    }

    /// Records what the change has left, so that later edits can be told from it.
    pub(crate) fn record_after(&mut self) {
        let directory = self.journal.way_back();
        let Ok(snapshot) = Snapshot::load(&directory) else { return };
        let record = || After::record(self.paths.root(), &snapshot).and_then(|after| after.save(&directory));
        // It is worth the room that was kept for going back from here: that is over.
        let recorded = record().or_else(|_| {
            let _ = ballast::release(self.paths.root(), &self.paths.state());
            record()
        });
        if let Err(error) = recorded {
            self.remark(format!(
                "what the change left could not be recorded, so undoing it later has to be forced: {error}"
            ));
        }
    }

    /// Whether there is room enough to go back without touching what was set aside for it, which is then left for when
    /// somebody fills the disk meanwhile.
    fn has_room_to_go_back(&self, snapshot: &Snapshot) -> bool {
        ballast::places(self.paths.root(), &self.paths.state(), snapshot)
            .is_ok_and(|places| !places.iter().any(Place::is_short))
    }

    /// Waits until somebody has made room. False if nobody has by then.
    fn wait_for_room(&mut self, snapshot: &Snapshot, until: Instant) -> Result<bool, Stop> {
        let look = |paths: &Paths| ballast::places(paths.root(), &paths.state(), snapshot);
        let before = look(self.paths).unwrap_or_default();
        let places: Vec<String> = before.iter().map(ToString::to_string).collect();
        let left = until.saturating_duration_since(Instant::now()).as_secs();
        self.remark(format!(
            "going back lacks room ({}); make some, it goes on by itself within {} minutes",
            places.join(", "),
            left.div_ceil(60)
        ));
        let mut looked = Instant::now();
        while Instant::now() < until {
            if stop::is_asked() {
                return Err(Stop::Suspended);
            }
            tool::pause();
            if looked.elapsed() < LOOK_FOR_ROOM {
                continue;
            }
            looked = Instant::now();
            // The reckoning is not exact, so that some room must have come as well.
            let Ok(now) = look(self.paths) else { continue };
            let has_grown = |place: &Place| {
                let was = before.iter().find(|was| was.path == place.path);
                was.is_none_or(|was| place.free >= was.free.saturating_add(MADE))
            };
            if !now.iter().any(Place::is_short) && now.iter().any(has_grown) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Goes back, and says what came of it.
    pub(crate) fn go_back(&mut self, turn: &Turn, plan: Plan, mut back: Back) -> Result<State, Stop> {
        let directory = journal::way_back(&self.paths.journal(back.source));
        let mut snapshot = match Snapshot::load(&directory) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let proof = Proof { left: vec![error.to_string()], ..Proof::default() };
                return Ok(self.back_failed(&plan, &back, proof));
            }
        };
        // Also of this very change, once it has waited to be confirmed or failed to go back: somebody may have edited since.
        let after = After::load(&directory).ok();
        if back.source != self.journal.record.id {
            // Somebody may have stopped a service since the change that is undone.
            let active = self.baseline().map(|baseline| baseline.active_units()).unwrap_or_default();
            snapshot.active_units.retain(|unit| active.contains(unit));
        }
        let mut lock = self.frontend()?;
        let is_asked_for = matches!(self.journal.record.operation, Operation::Rollback(_));
        if is_asked_for && back.attempts == 0 && !self.resumed {
            if tool::must_stop(&self.journal) {
                return Err(Stop::cancelled());
            }
            if self.planned_at != Some(DatabaseStamp::now(self.paths.root())) {
                drop(lock);
                self.remark("packages were changed by somebody else since the plan was made; planning again");
                return Ok(State::Planning);
            }
        }
        let may_refuse = is_asked_for && back.attempts == 0 && !self.resumed;
        self.hold_restarts_going_back(turn, &plan, back.source, may_refuse)?;
        self.hold_shutdown_up();
        if !self.has_room_to_go_back(&snapshot) {
            self.release_ballast();
        }
        let mut proof = None;
        let mut lacks_room = false;
        let mut tries = 0;
        let mut until = None;
        while back.attempts < MOST_TRIES {
            if tries == TRIES {
                if !lacks_room {
                    break;
                }
                // Who makes room may want to do so by removing packages.
                drop(lock);
                let until = *until.get_or_insert_with(|| Instant::now() + step_limit(&self.journal));
                let is_made = self.wait_for_room(&snapshot, until)?;
                lock = self.frontend()?;
                if !is_made {
                    break;
                }
                tries = 0;
            }
            tries += 1;
            back.attempts += 1;
            // On disk first; if the disk does not take it, going back is still right.
            if let Err(error) =
                self.journal.enter(State::GoingBack { plan: plan.clone(), back: back.clone() })
            {
                eprintln!("patch-executor: cannot journal: {error}; going back all the same");
            }
            let attempt = self.attempt(&snapshot, &directory, &back, after.as_ref());
            lacks_room = matches!(attempt, Err(Missed { lacks_room: true, .. }));
            let attempt =
                attempt.unwrap_or_else(|missed| Proof { left: vec![missed.message], ..Proof::default() });
            let done = attempt.left.is_empty();
            if !done {
                self.remark(format!("not all is as it was: {}", attempt.left.join("; ")));
            }
            proof = Some(attempt);
            if done {
                break;
            }
            self.release_ballast();
        }
        self.release_ballast();
        // No attempt came to its end: nothing is proven.
        let proof = proof.unwrap_or_else(|| Proof {
            left: vec![format!("going back was begun {MOST_TRIES} times and never came to its end")],
            ..Proof::default()
        });
        if !proof.left.is_empty() {
            return Ok(self.back_failed(&plan, &back, proof));
        }
        let barred = self.pin(&plan, &back);
        self.sweep(&plan);
        for key in &back.scope {
            let reason = format!("taken back: {}", back.reason);
            self.journal.record.taken_back.push(TakenBack { key: key.clone(), reason });
        }
        let report = WentBack {
            reason: back.reason.clone(),
            restored: proof.restored,
            left: Vec::new(),
            kept_edits: proof.kept_edits,
            commands: Vec::new(),
            barred,
        };
        self.events.emit_durably(EventKind::WentBack { report });
        if failed_job(self.paths) == Some(back.source) {
            let _ = fs::remove_file(self.paths.rollback_failed());
        }
        if matches!(self.journal.record.operation, Operation::Rollback(_)) {
            // It is what was asked for, not what became of it.
            self.journal.record.taken_back.clear();
            return Ok(State::Verifying { plan, tool: ToolEnd { code: Some(0), ..ToolEnd::default() } });
        }
        if back.rest.is_empty() {
            // What stays must be well, and may wait to be confirmed.
            let tool = ToolEnd::default();
            let stays = !back.unconfirmed
                && verdict::look(self.paths.root(), &self.journal.record, &plan, &tool)
                    .is_ok_and(|judged| judged.standing.contains(&Standing::Done));
            if stays {
                return Ok(State::Verifying { plan, tool });
            }
            return Ok(State::Ended { ended: self.conclusion(&plan)? });
        }
        // What was not begun yet is begun only with time left, and with room to go back from it as well.
        if self.must_give_up() {
            self.last_rest = 0;
            return Ok(State::Verifying { plan, tool: ToolEnd::default() });
        }
        if let Err(error) = ballast::reserve(self.paths.root(), &self.paths.state(), &snapshot, 0) {
            self.remark(format!("the rest is not applied: {error}"));
            self.last_rest = 0;
            return Ok(State::Verifying { plan, tool: ToolEnd::default() });
        }
        Ok(State::Applying { plan, auto: Vec::new(), only: Some(back.rest) })
    }

    /// The packages that were automatically installed before the change.
    pub(crate) fn automatic(&self) -> BTreeSet<PackageKey> {
        Snapshot::load(&self.journal.way_back())
            .map(|snapshot| {
                snapshot
                    .packages
                    .into_iter()
                    .filter(|(_, recorded)| recorded.auto)
                    .map(|(key, _)| key)
                    .collect()
            })
            .unwrap_or_default()
    }

    fn attempt(
        &mut self,
        snapshot: &Snapshot,
        directory: &Path,
        back: &Back,
        after: Option<&After>,
    ) -> Result<Proof, Missed> {
        let store = self.store().map_err(|error| Missed { message: error.message, lacks_room: false })?;
        let archive = |kept: &Kept| -> io::Result<PathBuf> {
            if store.verify(kept)? {
                return Ok(store.path(kept));
            }
            Err(io::Error::other(format!("the stored archive {} is damaged", kept.file)))
        };
        let mut scope: BTreeSet<PackageKey> = back.scope.iter().cloned().collect();
        // A package may change its architecture (`all` for the machine's own): then its old self goes back with it.
        scope.extend(
            snapshot
                .affected
                .iter()
                .filter(|affected| {
                    affected.planned && back.scope.iter().any(|key| key.name == affected.key.name)
                })
                .filter(|affected| {
                    !snapshot
                        .affected
                        .iter()
                        .any(|other| other.key.name == affected.key.name && back.scope.contains(&other.key))
                })
                .map(|affected| affected.key.clone()),
        );
        let root = self.paths.root();
        let going = Going { root, snapshot, copies: directory, archive: &archive, scope: &scope, after };
        let mut host = Host {
            root,
            journal: &self.journal,
            events: &mut self.events,
            progress: &mut self.progress,
            deadline: Instant::now() + STEP_LIMIT,
            holds_lock: true,
        };
        let proof = restore::go_back(&going, &mut host).map_err(|error| Missed {
            message: error.to_string(),
            lacks_room: matches!(error, GoBackError::NoSpace { .. }),
        });
        // apt tells by whole seconds whether its cache is that of dpkg's database; two changes may fit into one.
        let _ = fs::remove_file(root.join("var/cache/apt/pkgcache.bin"));
        proof
    }

    /// The package manager's lock, for as long as going back takes. Nothing else can be done meanwhile, so it is waited
    /// for without a limit, and whoever holds it is named.
    pub(crate) fn frontend(&mut self) -> Result<lock::Frontend, Stop> {
        let mut named: Option<LockHolder> = None;
        loop {
            let taken = lock::Frontend::take(self.paths.root());
            match taken {
                Ok(Some(frontend)) => {
                    if named.is_some() {
                        self.events.emit(EventKind::Waiting { holder: None });
                    }
                    // apt gives the front end's lock back before dpkg's own is free, and a killed apt leaves a dpkg
                    // that works on without it.
                    let limit = Instant::now() + step_limit(&self.journal);
                    if !tool::wait_for_dpkg(self.paths.root(), &self.journal, &mut self.events, limit) {
                        return Err(Stop::Suspended);
                    }
                    return Ok(frontend);
                }
                Ok(None) => {}
                Err(error) => eprintln!("patch-executor: cannot take the package manager's lock: {error}"),
            }
            let holder = lock::holder(self.paths.root(), lock::Locks::Packages).ok().flatten();
            if holder != named {
                named.clone_from(&holder);
                self.events.emit(EventKind::Waiting { holder });
            }
            if stop::is_asked() {
                return Err(Stop::Suspended);
            }
            tool::pause();
        }
    }

    /// [`Self::sweep`], once no package is left half-done.
    pub(crate) fn sweep_if_in_order(&mut self, plan: &Plan) {
        if change::findings(self.paths.root()).is_ok_and(|findings| findings.is_empty())
            // Somebody else may be at work by now, whose files these are then.
            && let Ok(Some(_lock)) = lock::Frontend::take(self.paths.root())
        {
            self.sweep(plan);
        }
    }

    /// Removes what a killed dpkg left beside the files of the plan's packages.
    pub(crate) fn sweep(&mut self, plan: &Plan) {
        let Ok(snapshot) = Snapshot::load(&self.journal.way_back()) else { return };
        let archives: Vec<PathBuf> = self.store().map_or_else(
            |_| Vec::new(),
            |store| {
                plan.changes
                    .iter()
                    .filter_map(|change| {
                        let version = change.new_version.as_ref()?;
                        store.find(&verdict::key_of(change), version.as_str()).map(|kept| store.path(&kept))
                    })
                    .collect()
            },
        );
        for path in litter::sweep(self.paths.root(), &snapshot, &archives) {
            self.remark(format!("removed {path}, which an interrupted run had left"));
        }
    }

    /// Pins the versions away that went back, lest the next unattended run installs them again, and gives them.
    pub(crate) fn pin(&mut self, plan: &Plan, back: &Back) -> Vec<String> {
        let newer_goes = |change: &&PlannedChange| match self.journal.record.operation {
            Operation::Rollback(_) => change.action == Action::Downgrade,
            _ => change.action == Action::Upgrade,
        };
        let undone = matches!(self.journal.record.operation, Operation::Rollback(_));
        let pinned: Vec<Pinned> = plan
            .changes
            .iter()
            .filter(|change| back.scope.contains(&verdict::key_of(change)))
            .filter(newer_goes)
            .filter_map(|change| {
                Some(Pinned {
                    name: change.name.clone(),
                    architecture: change.architecture.clone(),
                    version: if undone { change.old_version.clone()? } else { change.new_version.clone()? },
                    job: back.source,
                    at: Timestamp::now(),
                    reason: back.reason.clone(),
                })
            })
            .collect();
        if pinned.is_empty() {
            return Vec::new();
        }
        if let Err(error) = taken_back::pin(self.paths.root(), &self.paths.state(), &pinned) {
            self.remark(format!("the versions that were taken back could not be pinned away: {error}"));
            return Vec::new();
        }
        // Of several architectures the same.
        let barred: BTreeSet<String> =
            pinned.iter().map(|entry| format!("{}={}", entry.name.name(), entry.version)).collect();
        barred.into_iter().collect()
    }

    fn back_failed(&mut self, plan: &Plan, back: &Back, proof: Proof) -> State {
        if back.source == self.journal.record.id {
            // A person mends it now: what is edited from here on is to be kept.
            self.record_after();
        }
        let Proof { restored, left, kept_edits, commands } = proof;
        let report = WentBack {
            reason: back.reason.clone(),
            restored,
            left: left.clone(),
            kept_edits,
            commands: commands.clone(),
            barred: Vec::new(),
        };
        self.events.emit_durably(EventKind::WentBack { report });
        let mark = serde_json::json!({"job": back.source, "left": left, "commands": commands}).to_string();
        let leave = || journal::write_whole(&self.paths.state(), "rollback_failed.json", mark.as_bytes());
        // The room that is reserved for the end has to do for the mark as well.
        let left_mark = match leave() {
            Err(_) if self.paths.spend_reserve() => leave(),
            result => result,
        };
        if let Err(error) = left_mark {
            eprintln!("patch-executor: cannot leave a mark that going back failed: {error}");
        }
        let first = self.journal.record.failure.clone();
        let why = first.as_ref().map(|failure| failure.error.message.clone()).unwrap_or_default();
        let mut message = format!("going back failed, and this is left: {}", left.join("; "));
        if !why.is_empty() {
            message.push_str(&format!(". It went back because: {why}"));
        }
        if !commands.is_empty() {
            message.push_str(&format!(". As root on the host: {}", commands.join(" && ")));
        }
        let error = ErrorDetail::new(ErrorCode::PkgManagerError, message)
            .with("left", left)
            .with("commands", commands);
        let results = verdict::look(self.paths.root(), &self.journal.record, plan, &ToolEnd::default())
            .map(|judged| judged.results)
            .unwrap_or_default();
        State::Ended {
            ended: Box::new(Ended {
                status: first.as_ref().map_or(JobStatus::Failed, |failure| failure.status),
                outcome: Some(Outcome::RollbackFailed),
                exit_code: first.and_then(|failure| failure.exit_code),
                error: Some(error),
                results,
                answer: None,
            }),
        }
    }
}

/// Works out what undoing a job comes to now.
pub(crate) fn plan(paths: &Paths, rollback: &Rollback) -> Result<Plan, ErrorDetail> {
    let job = rollback.job;
    let target = Journal::open(&paths.journal(job)).map_err(|_| {
        ErrorDetail::new(
            ErrorCode::JobNotFound,
            format!("the root side has no record of job {job}; it was never begun here, or is so old that it was pruned"),
        )
    })?;
    if !matches!(target.record.state, State::Ended { .. }) {
        let message = format!("job {job} has not ended; wait for its end, or cancel it");
        return Err(ErrorDetail::new(ErrorCode::JobConflict, message));
    }
    let directory = target.way_back();
    let snapshot = Snapshot::load(&directory).map_err(|error| {
        let message = if directory.exists() {
            format!("the way back of job {job} cannot be read: {error}")
        } else {
            format!(
                "job {job} has no way back: it changed no package, or it is older than rollback.keep_days"
            )
        };
        ErrorDetail::new(ErrorCode::RollbackUnavailable, message).with("job_id", job.to_string())
    })?;
    let after = After::load(&directory).ok();
    if after.is_none() && !rollback.force {
        let message = format!(
            "what job {job} left was not recorded, so what was changed or edited since cannot be told from it; look at \
             the packages and their configuration, and force it then"
        );
        return Err(ErrorDetail::new(ErrorCode::JobConflict, message).with("job_id", job.to_string()));
    }
    let inventory = solver::inventory(paths.root())?;
    let store = Store::open(&paths.store())
        .map_err(|error| unusable("the store of archives", &paths.store(), &error))?;
    let mut changes = Vec::new();
    let mut touched = Vec::new();
    let mut lacking = Vec::new();
    for affected in snapshot.affected.iter().filter(|affected| affected.planned) {
        let key = &affected.key;
        let before = snapshot.packages.get(key);
        let now = now_of(&inventory, key);
        // A package may have changed its architecture with the change; then its other self is what the change left.
        let left_now =
            now.as_ref().filter(|now| now.is_present).map(|now| now.recorded.version.clone()).or_else(|| {
                let other = inventory.database.named(&key.name).find(|package| package.is_present());
                other.map(|package| package.version_text().to_owned())
            });
        if let Some(left) = after.as_ref().and_then(|after| after.versions.get(key))
            && left_now.as_deref() != left.as_deref()
            && !is_as_recorded(before, now.as_ref())
        {
            touched.push(key.clone());
        }
        let Some(action) = action_back(before, now.as_ref()) else { continue };
        if !action.is_removal() && !matches!(action, Action::Hold | Action::Unhold) {
            match affected.archive.as_ref().map(|kept| (kept, store.verify(kept))) {
                Some((_, Ok(true))) => {}
                Some((kept, _)) => {
                    lacking.push(format!("{key} (the stored archive {} is gone or damaged)", kept.file));
                }
                None => lacking.push(format!("{key} (no archive of it was to be had)")),
            }
        }
        let version = |text: &str| text.parse().ok();
        let (Ok(name), Ok(architecture)) = (key.name.parse(), key.architecture.parse()) else { continue };
        changes.push(PlannedChange {
            action,
            name,
            architecture,
            old_version: now
                .as_ref()
                .filter(|now| now.is_present)
                .and_then(|now| version(&now.recorded.version)),
            new_version: before.filter(|_| !action.is_removal()).and_then(|before| version(&before.version)),
            archive_sha256: affected
                .archive
                .as_ref()
                .filter(|_| !action.is_removal())
                .and_then(Store::sha256_of),
            origin: None,
            security: false,
            archive_bytes: 0,
            disk_delta_bytes: 0,
        });
    }
    // A job of which going back failed is tried again whatever was left half-done.
    let later = later_jobs(paths, job, &touched);
    let is_retry = failed_job(paths) == Some(job) && later.is_empty();
    if !touched.is_empty() && !rollback.force && !is_retry {
        let names: Vec<String> = touched.iter().map(ToString::to_string).collect();
        let who = if later.is_empty() {
            "not through this agent".to_owned()
        } else {
            format!("by {}", later.iter().map(|id| format!("job {id}")).collect::<Vec<_>>().join(", "))
        };
        let message = format!(
            "{} changed again since job {job}, {who}; undo that first, or force it (`--force`)",
            names.join(", ")
        );
        let later: Vec<String> = later.iter().map(ToString::to_string).collect();
        return Err(ErrorDetail::new(ErrorCode::JobConflict, message)
            .with("packages", names)
            .with("jobs", later));
    }
    if !lacking.is_empty() {
        let message = format!("job {job} cannot be undone: {}", lacking.join(", "));
        return Err(ErrorDetail::new(ErrorCode::RollbackUnavailable, message).with("packages", lacking));
    }
    let plan = Plan::of(changes);
    protect::removals(&plan, &inventory)?;
    Ok(plan)
}

/// A package as it is now.
struct Now {
    recorded: Recorded,
    is_present: bool,
}

fn now_of(inventory: &Inventory, key: &PackageKey) -> Option<Now> {
    let package = snapshot::find(inventory, key)?;
    Some(Now { recorded: snapshot::recorded(inventory, package), is_present: package.is_present() })
}

fn is_as_recorded(before: Option<&Recorded>, now: Option<&Now>) -> bool {
    match (before, now) {
        (None, None) => true,
        (Some(before), Some(now)) => {
            before.version == now.recorded.version && before.status == now.recorded.status
        }
        _ => false,
    }
}

/// What brings a package back to what was recorded; none if it is so.
fn action_back(before: Option<&Recorded>, now: Option<&Now>) -> Option<Action> {
    let was_present =
        before.is_some_and(|before| !matches!(before.status.as_str(), "not-installed" | "config-files"));
    match (before, now) {
        (None, None) => None,
        (None, Some(_)) => Some(Action::Purge),
        (Some(_), now) if !was_present => now.filter(|now| now.is_present).map(|_| Action::Remove),
        (Some(_), None) => Some(Action::Install),
        (Some(_), Some(now)) if !now.is_present => Some(Action::Install),
        (Some(before), Some(now)) => match apt::versions::compare(&before.version, &now.recorded.version) {
            std::cmp::Ordering::Less => Some(Action::Downgrade),
            std::cmp::Ordering::Greater => Some(Action::Upgrade),
            std::cmp::Ordering::Equal if before.status != now.recorded.status => Some(Action::Reinstall),
            std::cmp::Ordering::Equal if before.want != now.recorded.want => {
                Some(if before.want == "hold" { Action::Hold } else { Action::Unhold })
            }
            std::cmp::Ordering::Equal => None,
        },
    }
}

/// What brings every package from what it is now to what it was then.
pub(crate) fn differences(then: &Inventory, now: &Inventory) -> Vec<PlannedChange> {
    let keys: BTreeSet<PackageKey> =
        then.database.iter().chain(now.database.iter()).map(archives::key_of).collect();
    keys.into_iter()
        .filter_map(|key| {
            let was = snapshot::find(then, &key).map(|package| snapshot::recorded(then, package));
            let is = now_of(now, &key);
            let action = action_back(was.as_ref(), is.as_ref())?;
            let version = |text: &str| text.parse().ok();
            Some(PlannedChange {
                action,
                name: key.name.parse().ok()?,
                architecture: key.architecture.parse().ok()?,
                old_version: is.filter(|is| is.is_present).and_then(|is| version(&is.recorded.version)),
                new_version: was.filter(|_| !action.is_removal()).and_then(|was| version(&was.version)),
                archive_sha256: None,
                origin: None,
                security: false,
                archive_bytes: 0,
                disk_delta_bytes: 0,
            })
        })
        .collect()
}

/// The changes that came after a job and changed one of these packages.
fn later_jobs(paths: &Paths, job: JobId, keys: &[PackageKey]) -> Vec<JobId> {
    let mut later: Vec<JobId> = Journal::all(paths)
        .into_iter()
        .filter(|(id, _)| *id > job)
        .filter(|(_, dir)| {
            Journal::open(dir).is_ok_and(|journal| match &journal.record.state {
                State::Ended { ended } => ended.results.iter().any(|result| {
                    result.done
                        && keys.iter().any(|key| {
                            key.name == result.name.name() && key.architecture == result.architecture.as_str()
                        })
                }),
                _ => false,
            })
        })
        .map(|(id, _)| id)
        .collect();
    later.sort();
    later
}

/// The job of which going back failed and that nobody has repaired yet.
pub(crate) fn failed_job(paths: &Paths) -> Option<JobId> {
    let mark: serde_json::Value = serde_json::from_slice(&fs::read(paths.rollback_failed()).ok()?).ok()?;
    mark.get("job")?.as_str()?.parse().ok()
}

/// A way back on disk.
struct Way {
    directory: PathBuf,
    age: Duration,
    archives: Vec<String>,
    /// Whether it may go when it is old or takes too much room.
    is_spent: bool,
}

/// All way backs, the oldest first.
fn ways(paths: &Paths) -> Vec<Way> {
    let now = std::time::SystemTime::now();
    let all: Vec<(JobId, PathBuf, io::Result<Journal>)> = Journal::all_with_damaged(paths)
        .into_iter()
        .map(|(id, dir)| {
            let journal = Journal::open(&dir);
            (id, dir, journal)
        })
        .collect();
    // That of a failed attempt is needed for the next one, until it is mended.
    let mut needed: BTreeSet<JobId> = failed_job(paths).into_iter().collect();
    for journal in all.iter().filter_map(|(_, _, journal)| journal.as_ref().ok()) {
        match &journal.record.state {
            State::Ended { .. } => {}
            State::GoingBack { back, .. } => needed.extend([journal.record.id, back.source]),
            _ => {
                needed.insert(journal.record.id);
                if let Operation::Rollback(rollback) = &journal.record.operation {
                    needed.insert(rollback.job);
                }
            }
        }
    }
    let mut ways: Vec<Way> = all
        .into_iter()
        .filter_map(|(id, dir, _)| {
            let directory = journal::way_back(&dir);
            let modified = fs::metadata(&directory).ok()?.modified().ok()?;
            Some(Way {
                age: now.duration_since(modified).unwrap_or_default(),
                archives: load(&directory, ARCHIVES).unwrap_or_default(),
                is_spent: !needed.contains(&id),
                directory,
            })
        })
        .collect();
    ways.sort_by_key(|way| std::cmp::Reverse(way.age));
    ways
}

/// Removes way backs that are too old, and the oldest ones until their archives fit, and gives the archives that the
/// others refer to. Archives of installed versions are needed whatever room they take, and do not count.
fn keep_ways(
    paths: &Paths,
    store: &Store,
    installed: &BTreeSet<(PackageKey, String)>,
    max_age: Duration,
    max_bytes: u64,
) -> BTreeSet<String> {
    let mut ways = ways(paths);
    let free: BTreeSet<String> = installed
        .iter()
        .flat_map(|(key, version)| store.all(key, version).unwrap_or_default())
        .map(|k| k.file)
        .collect();
    let bytes = |ways: &[Way]| -> u64 {
        let files: BTreeSet<&String> =
            ways.iter().flat_map(|way| &way.archives).filter(|file| !free.contains(*file)).collect();
        files
            .into_iter()
            .filter_map(|file| {
                let kept = Kept { file: file.clone(), grade: Grade::None, reason: String::new() };
                Some(fs::metadata(store.path(&kept)).ok()?.len())
            })
            .sum()
    };
    let mut at = 0;
    while let Some(way) = ways.get(at) {
        // The last one is that of the change that ends now, whatever a clock that was set says of its age.
        let is_last = at + 1 == ways.len();
        let is_too_much = way.age > max_age || bytes(&ways) > max_bytes || ways.len() > MOST_WAYS;
        if !way.is_spent || is_last || !is_too_much {
            at += 1;
            continue;
        }
        if let Err(error) = fs::remove_dir_all(&way.directory) {
            eprintln!("patch-executor: cannot remove {}: {error}", way.directory.display());
            at += 1;
            continue;
        }
        ways.remove(at);
    }
    ways.into_iter().flat_map(|way| way.archives).collect()
}

/// Removes archives that nothing refers to any more, and says how many there are.
pub(crate) fn tidy(paths: &Paths, settings: &patch_types::settings::Rollback) {
    let max_age = Duration::from_secs(24 * 3600) * settings.keep_days;
    let max_bytes = u64::from(settings.keep_mib) << 20;
    let Ok(store) = Store::open(&paths.store()) else { return };
    let Ok(inventory) = solver::inventory(paths.root()) else { return };
    let installed = snapshot::present(&inventory);
    let referenced = keep_ways(paths, &store, &installed, max_age, max_bytes);
    let keep =
        patch_apply::apt::store::Keep { installed: &installed, referenced: &referenced, max_age, max_bytes };
    if let Err(error) = store.prune(&keep) {
        eprintln!("patch-executor: cannot tidy the store of archives: {error}");
    }
    if let Err(error) = taken_back::prune(paths.root(), &paths.state(), &inventory) {
        eprintln!("patch-executor: cannot tidy the versions that were taken back: {error}");
    }
    publish(paths);
}

/// Writes the root side's figures for the daemon to read.
pub(crate) fn publish(paths: &Paths) {
    let Ok(store) = Store::open(&paths.store()) else { return };
    let pinned = taken_back::list(&paths.state()).map_or(0, |list| list.len());
    let usage = store.usage();
    let status = RootStatus {
        archives: usage.archives,
        archive_bytes: usage.bytes,
        taken_back: u64::try_from(pinned).unwrap_or(u64::MAX),
        rollback_failed: failed_job(paths),
    };
    if let Err(error) = paths.publish(&status) {
        eprintln!("patch-executor: cannot write the root side's figures: {error}");
    }
}

/// Whether all is as it was before a job of which going back had failed.
fn is_mended(paths: &Paths, job: JobId) -> bool {
    let directory = journal::way_back(&paths.journal(job));
    let (Ok(snapshot), Ok(store)) = (Snapshot::load(&directory), Store::open(&paths.store())) else {
        return false;
    };
    let archive = |kept: &Kept| Ok(store.path(kept));
    let scope = snapshot.affected.iter().filter(|one| one.planned).map(|one| one.key.clone()).collect();
    let after = After::load(&directory).ok();
    let going = Going {
        root: paths.root(),
        snapshot: &snapshot,
        copies: &directory,
        archive: &archive,
        scope: &scope,
        after: after.as_ref(),
    };
    restore::prove(&going).is_ok_and(|proof| proof.holds())
}

/// A person says that what a failed rollback has left is well as it is.
///
/// # Errors
/// When there is nothing of that job to be mended, or packages are not in order.
pub(crate) fn repaired(paths: &Paths, job: JobId) -> Result<(), ErrorDetail> {
    match failed_job(paths) {
        Some(failed) if failed == job => {}
        Some(failed) => {
            let message = format!("it is job {failed} of which going back failed, not {job}");
            return Err(ErrorDetail::new(ErrorCode::JobConflict, message));
        }
        None => {
            let message =
                "no job is marked as one of which going back failed; nothing has to be said".to_owned();
            return Err(ErrorDetail::new(ErrorCode::JobConflict, message));
        }
    }
    let findings = change::findings(paths.root())?;
    if !findings.is_empty() {
        let message = format!(
            "{} not in order: `dpkg --audit` says what is wrong; try `dpkg --configure -a` or the commands that the job names",
            verdict::are(&findings)
        );
        return Err(ErrorDetail::new(ErrorCode::PkgManagerError, message));
    }
    fs::remove_file(paths.rollback_failed())
        .map_err(|error| unusable("the mark", &paths.rollback_failed(), &error))?;
    publish(paths);
    Ok(())
}

/// What a failed rollback of an earlier job forbids until it is repaired.
///
/// # Errors
/// While packages are still not in order.
pub(crate) fn after_failure(
    paths: &Paths,
    operation: &Operation,
    findings: &[String],
) -> Result<(), ErrorDetail> {
    let mark = paths.rollback_failed();
    if !mark.exists() || matches!(operation, Operation::Rollback(_) | Operation::Refresh | Operation::Hold(_))
    {
        return Ok(());
    }
    // The packages are in order, if not as they were: a newer version may be the very remedy. The mark stays until all is
    // as it was, or somebody says that it is well as it is.
    if findings.is_empty() {
        if failed_job(paths).is_some_and(|job| is_mended(paths, job)) {
            let _ = fs::remove_file(&mark);
        }
        return Ok(());
    }
    let told: BTreeMap<String, serde_json::Value> =
        fs::read(&mark).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let job = told.get("job").and_then(|job| job.as_str()).unwrap_or("an earlier job").to_owned();
    let message = format!(
        "going back failed in job {job} and {} not in order; repair that first: `linux-patch-host rollback {job}`, or the \
         commands that the job names",
        findings.join(", ")
    );
    Err(ErrorDetail::new(ErrorCode::ServiceUnhealthy, message).with("job_id", job))
}
