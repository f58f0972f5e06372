//! Never two updaters at once: while a run installs what `policy:` declares, unattended-upgrades is off.
//!
//! Who patches between such runs is decided by root's looks (`linux-patch-host policy tick`). Whether a change is such a run is
//! told from root's own files and from what is asked, not from who is said to ask.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use patch_apply::{
    apt::{
        argv::Argv,
        updater::{self, SwitchError},
    },
    run,
};
use patch_audit::{AuditEvent, AuditKind, Caller};
use patch_types::{
    ErrorCode, ErrorDetail, EventKind, JobId, LockHolder,
    policy::{
        ATTEMPT, ATTEMPT_LOCK, Attempt, POLICY_DIR, POLICY_LOCK, POLICY_STATE, Policy, PolicyMode, SWITCH,
    },
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::Deserialize;

use crate::{
    change::{Change, Stop},
    health,
    journal::{Record, make_private, write_whole},
    paths::Paths,
    record, settings, stop, tool,
};

/// How long the lock of who patches is waited for. A look of root's asks systemd and apt meanwhile, each for 30 s at most.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long what the updater has begun may take that a change has to wait for which is not to be called off. After that the
/// package manager's own locks have to do.
const UPDATER_PATIENCE: Duration = Duration::from_secs(3600);

/// How long systemd may take to begin a look.
const ASKED: Duration = Duration::from_secs(10);

/// What looks who patches.
const LOOK: &str = "linux-patch-policy.service";

/// A lock that goes with the process.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// None if somebody else has it.
    fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// None if somebody else keeps it for too long, or `must_stop`.
    fn take(path: &Path, patience: Duration, must_stop: impl Fn() -> bool) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(Some(lock));
            }
            if must_stop() || Instant::now() >= deadline {
                return Ok(None);
            }
            tool::pause();
        }
    }
}

/// What root's looks remember, as far as it counts here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Remembered {
    policy: Option<Policy>,
}

fn directory(paths: &Paths) -> PathBuf {
    paths.root().join(POLICY_DIR)
}

/// Whether a change installs all that is declared. The network side may go on with the last policy that root's looks knew
/// while a new one is refused, so that counts as well.
fn is_attempt(paths: &Paths, change: &Record) -> bool {
    // A rehearsal alone installs nothing.
    if change.if_plan.is_some() || change.options.rehearse.is_some_and(|how| how.only) {
        return false;
    }
    let remembered = || {
        let text = fs::read(directory(paths).join(POLICY_STATE)).ok()?;
        serde_json::from_slice::<Remembered>(&text).ok()?.policy
    };
    let counts = |policy: Policy| policy.mode == PolicyMode::Agent && policy.is_met_by(&change.operation);
    settings::policy(paths.root()).is_some_and(counts) || remembered().is_some_and(counts)
}

/// The attempt of which the end was not seen. It is written whole, so one that cannot be read is none.
fn begun(directory: &Path) -> Option<Attempt> {
    serde_json::from_slice(&fs::read(directory.join(ATTEMPT)).ok()?).ok()
}

fn told(what: String) -> AuditEvent {
    AuditEvent::new(AuditKind::SystemChanged { what }, &Caller::local())
}

fn refusal(error: &SwitchError) -> ErrorDetail {
    let code = match error {
        SwitchError::NoEffect(_) => ErrorCode::ConfigInvalid,
        SwitchError::File { .. } | SwitchError::Unknown(_) => ErrorCode::ServiceUnhealthy,
    };
    cannot(code, &error.to_string())
}

fn cannot(code: ErrorCode, why: &str) -> ErrorDetail {
    let message = format!(
        "unattended-upgrades cannot be kept off while this patches, and two are not to patch at once: {why}; nothing was begun"
    );
    ErrorDetail::new(code, message)
}

/// Keeps the updater off for an attempt, and returns what tells that it goes on. To be called by whoever has the turn.
fn take_over(
    paths: &Paths,
    job: JobId,
    must_stop: impl Fn() -> bool,
    is_off_for_apt: impl Fn(&Path) -> Result<(), SwitchError>,
) -> Result<Lock, Stop> {
    let (root, directory) = (paths.root(), directory(paths));
    let unusable = |error: io::Error| {
        Stop::from(cannot(ErrorCode::ServiceUnhealthy, &format!("{}: {error}", directory.display())))
    };
    match make_private(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(unusable(error)),
        _ => {}
    }
    // Whoever has the turn is alone; who only asks holds it for an instant, and who has just ended until it has decided. That
    // is why this one comes first: it holds this lock while it waits for the other.
    let alive = Lock::take(&directory.join(ATTEMPT_LOCK), PATIENCE, &must_stop).map_err(unusable)?;
    let Some(alive) = alive else {
        if must_stop() {
            return Err(Stop::cancelled());
        }
        return Err(unusable(io::Error::other("another run of the policy is still at work")));
    };
    let Some(_deciding) = Lock::take(&directory.join(POLICY_LOCK), PATIENCE, &must_stop).map_err(unusable)?
    else {
        if must_stop() {
            return Err(Stop::cancelled());
        }
        return Err(unusable(io::Error::other(
            "it is locked for too long; see `systemctl status linux-patch-policy`",
        )));
    };
    let was_off = updater::is_off(root).map_err(|error| refusal(&error))?;
    // What one that died has taken is still to be given back.
    let before = begun(&directory);
    let took_over = !was_off || before.is_some_and(|before| before.took_over);
    // One that is taken up again goes on, it does not begin anew.
    let since = before.filter(|before| before.job == job).and_then(|before| before.since);
    let attempt = Attempt { job, took_over, since: since.or_else(|| Some(Timestamp::now())) };
    let text = serde_json::to_vec(&attempt).map_err(|error| unusable(error.into()))?;
    // On disk before the updater is off, so that whatever happens it is known that it was on.
    write_whole(&directory, ATTEMPT, &text).map_err(unusable)?;
    if !was_off {
        let what = format!(
            "policy.mode is agent, and job {job} begins: unattended-upgrades is switched off by /{SWITCH}"
        );
        record::require(paths, told(what))?;
        updater::switch_off(root).map_err(|error| refusal(&error))?;
    }
    is_off_for_apt(root).map_err(|error| refusal(&error))?;
    Ok(alive)
}

/// After an attempt has ended, by whichever process: gives back what it has taken. Whether the updater stays off after a
/// success is for the look to decide, which also sees whether anybody would look again. What cannot be done here is done by
/// the next look.
pub(crate) fn ended(paths: &Paths, job: JobId) {
    give_up(paths, job, "has ended");
}

fn give_up(paths: &Paths, job: JobId, why: &str) {
    let directory = directory(paths);
    if begun(&directory).is_none_or(|attempt| attempt.job != job) {
        return;
    }
    let failed = |error: &dyn std::fmt::Display| {
        eprintln!(
            "patch-executor: who patches is not decided anew after job {job}: {error}; the next look does that"
        );
    };
    let _deciding = match Lock::take(&directory.join(POLICY_LOCK), PATIENCE, || false) {
        Ok(Some(lock)) => lock,
        Ok(None) => return failed(&"it is locked for too long"),
        Err(error) => return failed(&error),
    };
    // A look may have decided meanwhile.
    let Some(attempt) = begun(&directory).filter(|attempt| attempt.job == job) else { return };
    if attempt.took_over {
        let what =
            format!("unattended-upgrades is given back: /{SWITCH} is removed, because job {job} {why}");
        record::note(paths, vec![told(what)]);
        if let Err(error) = updater::give_back(paths.root()) {
            return failed(&error);
        }
    }
    match fs::remove_file(directory.join(ATTEMPT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => failed(&error),
        _ => {}
    }
}

/// Has it looked who patches from now on. Nobody waits for that, and the timer does it as well.
pub(crate) fn look(root: &Path) {
    if root != Path::new("/") || !health::is_systemd_running(root) {
        return;
    }
    let args = ["start", "--no-block", "--", LOOK].map(str::to_owned).to_vec();
    if let Err(error) = run::capture(&Argv::new("/usr/bin/systemctl", args), ASKED) {
        eprintln!("patch-executor: {LOOK} cannot be started now: {error}");
    }
}

impl Change<'_> {
    /// Sees to it that nobody else patches if this change is an attempt of the policy: unattended-upgrades is switched off, and
    /// what it, or apt's timers, have begun before is waited for.
    ///
    /// # Errors
    /// When that cannot be done, or takes too long: then nothing is begun.
    pub(crate) fn patch_alone(&mut self) -> Result<(), Stop> {
        if !is_attempt(self.paths, &self.journal.record) {
            return Ok(());
        }
        let alive = take_over(
            self.paths,
            self.journal.record.id,
            || tool::must_stop(&self.journal),
            updater::is_off_for_apt,
        );
        self.attempt = Some(alive?);
        let patience = self.lock_patience();
        let deadline = Instant::now() + patience;
        let mut named: Option<LockHolder> = None;
        loop {
            let holder = updater::at_work(self.paths.root()).map_err(|error| {
                Stop::from(cannot(
                    ErrorCode::ServiceUnhealthy,
                    &format!("whether it is at work cannot be told: {error}"),
                ))
            })?;
            if holder != named {
                named.clone_from(&holder);
                self.events.emit(EventKind::Waiting { holder: holder.clone() });
            }
            let Some(holder) = holder else { return Ok(()) };
            if tool::must_stop(&self.journal) {
                return Err(Stop::cancelled());
            }
            if Instant::now() >= deadline {
                self.in_time()?;
                let message = format!(
                    "unattended-upgrades, or one of apt's timers, was at work for {} s ({} is locked); nothing was begun, since two \
                     are not to patch at once",
                    patience.as_secs(),
                    holder.lock
                );
                let error = ErrorDetail::new(ErrorCode::LockTimeout, message).with("pid", holder.pid);
                return Err(error.with("lock", holder.lock).into());
            }
            tool::pause();
        }
    }

    /// While a change only waits to be confirmed nobody patches, and that may be for a day: the others get their turn. Who may
    /// patch meanwhile is decided as if this had ended.
    pub(crate) fn stand_aside(&mut self) {
        let Some(alive) = self.attempt.take() else { return };
        give_up(self.paths, self.journal.record.id, "only waits to be confirmed");
        drop(alive);
        self.stood_aside = true;
        look(self.paths.root());
    }

    /// The same for a change that is taken up again, or goes on after it stood aside: it goes on whatever is the case.
    pub(crate) fn go_on_alone(&mut self) {
        if self.attempt.is_some() || !is_attempt(self.paths, &self.journal.record) {
            return;
        }
        match take_over(
            self.paths,
            self.journal.record.id,
            || tool::must_stop(&self.journal),
            updater::is_off_for_apt,
        ) {
            Ok(alive) => self.attempt = Some(alive),
            Err(Stop::End(ended)) => {
                let why = ended.error.map(|error| error.message).unwrap_or_default();
                self.remark(format!("going on all the same: {why}"));
            }
            Err(Stop::Suspended) => {}
        }
    }

    /// Waits until unattended-upgrades and apt's timers have ended what they have begun, within bounds.
    ///
    /// # Errors
    /// When this process is to stop; then the change is taken up again.
    pub(crate) fn wait_for_updater(&mut self) -> Result<(), Stop> {
        let deadline = Instant::now() + UPDATER_PATIENCE;
        let mut named: Option<LockHolder> = None;
        loop {
            if stop::is_asked() {
                return Err(Stop::Suspended);
            }
            let holder = match updater::at_work(self.paths.root()) {
                Ok(holder) => holder,
                Err(error) => {
                    self.remark(format!(
                        "going on; whether unattended-upgrades is at work cannot be told: {error}"
                    ));
                    return Ok(());
                }
            };
            if holder != named {
                named.clone_from(&holder);
                self.events.emit(EventKind::Waiting { holder: holder.clone() });
            }
            let Some(holder) = holder else { return Ok(()) };
            if Instant::now() >= deadline {
                self.remark(format!("going on, although {} is still locked", holder.lock));
                return Ok(());
            }
            tool::pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use patch_types::{ChangeOptions, Operation, PlanHash, Rehearse, executor::Limits};
    use uuid::Uuid;

    use super::*;
    use crate::{events::Events, journal::Journal};

    const ALWAYS: &str = "APT::Periodic::Unattended-Upgrade \"always\";\n";

    struct Place {
        dir: tempfile::TempDir,
        paths: Paths,
        apt: fn(&Path) -> Result<(), SwitchError>,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for path in [
                "etc/apt/apt.conf.d",
                "etc/linux_patch_api",
                "var/lib/linux_patch_executor/journal",
                "var/lib/apt",
            ] {
                fs::create_dir_all(dir.path().join(path)).unwrap();
            }
            let place = Self { paths: Paths::below(dir.path().to_owned()), dir, apt: |_| Ok(()) };
            place.put("etc/apt/apt.conf.d/20auto-upgrades", ALWAYS);
            place
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }

        fn journal(&self, number: u128, operation: Operation, if_plan: Option<PlanHash>) -> Journal {
            let id = JobId(Uuid::from_u128(number));
            let limits = Limits::default();
            Journal::create(&self.paths.journal(id), id, operation, limits, if_plan, ChangeOptions::default())
                .unwrap()
        }

        fn is_off(&self) -> bool {
            updater::is_off(self.dir.path()).unwrap()
        }

        fn take(&self, number: u128) -> Result<Lock, String> {
            take_over(&self.paths, JobId(Uuid::from_u128(number)), || false, self.apt).map_err(|stop| {
                match stop {
                    Stop::End(ended) => ended.error.unwrap().message,
                    Stop::Suspended => panic!(),
                }
            })
        }

        fn end(&self, number: u128) {
            ended(&self.paths, JobId(Uuid::from_u128(number)));
        }

        fn attempt(&self) -> Option<Attempt> {
            begun(&directory(&self.paths))
        }
    }

    fn policy(json: &str) -> Policy {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_run_of_the_policy_is_known_by_what_it_does_and_by_roots_own_files() {
        let place = Place::new();
        let run = place.journal(1, Policy::default().operation(), None);
        let is = |journal: &Journal| is_attempt(&place.paths, &journal.record);
        assert!(!is(&run), "nothing is declared");
        place.put(
            "etc/linux_patch_api/config.yaml",
            "policy: {mode: agent}\nserver: {port: [is for others to judge]}\n",
        );
        assert!(is(&run));
        assert!(!is(&place.journal(2, Operation::Refresh, None)));
        assert!(!is(&place.journal(3, policy(r#"{"exclude": ["openssl"]}"#).operation(), None)));
        assert!(!is(&place.journal(
            4,
            Policy::default().operation(),
            Some(serde_json::from_value("0".repeat(64).into()).unwrap())
        )));
        let mut rehearsed = place.journal(5, Policy::default().operation(), None);
        for (only, counts) in [(true, false), (false, true)] {
            rehearsed.record.options.rehearse = Some(Rehearse { only, ..Rehearse::default() });
            assert_eq!(is(&rehearsed), counts, "a rehearsal alone installs nothing");
        }
        // The network side goes on with the last one while it refuses the new one.
        place.put("etc/linux_patch_api/config.yaml", "policy: {mode: \"off\"}\n");
        assert!(!is(&run));
        fs::create_dir_all(directory(&place.paths)).unwrap();
        place.put("var/lib/linux_patch_executor/policy/state.json", r#"{"policy": {"mode": "agent"}}"#);
        assert!(is(&run));
        place.put("var/lib/linux_patch_executor/policy/state.json", "torn");
        assert!(!is(&run));
    }

    #[test]
    fn what_was_taken_is_given_back_at_the_end() {
        let place = Place::new();
        let alive = place.take(1).unwrap();
        assert!(place.is_off() && place.attempt().unwrap().took_over);
        assert!(Lock::try_take(&directory(&place.paths).join(ATTEMPT_LOCK)).unwrap().is_none());
        // Somebody else's end is none of it.
        place.end(2);
        assert!(place.is_off());
        place.end(1);
        assert!(!place.is_off() && place.attempt().is_none());
        drop(alive);
        // A look has decided that the agent patches: what is in force already is not a run's to give back.
        updater::switch_off(place.dir.path()).unwrap();
        let alive = place.take(4).unwrap();
        assert!(!place.attempt().unwrap().took_over);
        place.end(4);
        assert!(place.is_off());
        drop(alive);
        let record = fs::read_to_string(place.paths.record()).unwrap();
        let count = |words: &str| record.lines().filter(|line| line.contains(words)).count();
        assert_eq!((count("is switched off by"), count("is given back")), (1, 1));
    }

    #[test]
    fn who_waits_to_be_confirmed_stands_aside_and_one_that_is_taken_up_again_is_as_old_as_it_is() {
        let place = Place::new();
        place.put("etc/linux_patch_api/config.yaml", "policy: {mode: agent}\n");
        let journal = place.journal(1, Policy::default().operation(), None);
        let events = Events::create(&place.dir.path().join("events")).unwrap();
        let mut change = Change::new(&place.paths, journal, events, false);
        change.attempt = Some(place.take(1).unwrap());
        let began = place.attempt().unwrap().since.unwrap();
        let lock = directory(&place.paths).join(ATTEMPT_LOCK);
        assert!(place.is_off() && Lock::try_take(&lock).unwrap().is_none());
        change.stand_aside();
        assert!(!place.is_off() && place.attempt().is_none());
        assert!(Lock::try_take(&lock).unwrap().is_some(), "a look sees that nobody is at work");
        // It goes back: no two at once.
        change.go_on_alone();
        assert!(place.is_off() && Lock::try_take(&lock).unwrap().is_none());
        assert!(place.attempt().unwrap().since.unwrap() >= began);
        // The process dies, and another takes it up.
        drop(change);
        let mut attempt = place.attempt().unwrap();
        attempt.since = Some(Timestamp::UNIX_EPOCH);
        write_whole(&directory(&place.paths), ATTEMPT, &serde_json::to_vec(&attempt).unwrap()).unwrap();
        let _alive = place.take(1).unwrap();
        assert_eq!(place.attempt().unwrap().since, Some(Timestamp::UNIX_EPOCH));
    }

    #[test]
    fn wherever_it_dies_the_next_end_puts_it_right() {
        for step in 0..2 {
            let place = Place::new();
            let dir = directory(&place.paths);
            fs::create_dir_all(&dir).unwrap();
            let attempt = Attempt { job: JobId(Uuid::from_u128(1)), took_over: true, since: None };
            write_whole(&dir, ATTEMPT, &serde_json::to_vec(&attempt).unwrap()).unwrap();
            if step > 0 {
                updater::switch_off(place.dir.path()).unwrap();
            }
            // Another one begins before that is settled: what was taken is still to be given back.
            let alive = place.take(2).unwrap();
            place.end(1);
            assert!(place.is_off() && place.attempt().unwrap().took_over, "{step}");
            place.end(2);
            assert!(!place.is_off() && place.attempt().is_none(), "{step}");
            drop(alive);
            // Settled by itself.
            write_whole(&dir, ATTEMPT, &serde_json::to_vec(&attempt).unwrap()).unwrap();
            updater::switch_off(place.dir.path()).unwrap();
            place.end(1);
            assert!(!place.is_off() && place.attempt().is_none(), "{step}");
        }
    }

    #[test]
    fn where_it_has_no_effect_nothing_is_begun() {
        let place = Place { apt: |_| Err(SwitchError::NoEffect("always".into())), ..Place::new() };
        let why = place.take(1).unwrap_err();
        assert!(
            why.contains("has no effect") && why.contains("\"always\"") && why.contains("nothing was begun"),
            "{why}"
        );
        place.end(1);
        assert!(!place.is_off(), "and nothing of it is left");
    }
}
