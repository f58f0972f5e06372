//! Services restart only as declared (`policy.restart`): at once, or in the window; until then not even by the scripts of
//! their packages. What is not named is never restarted here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use patch_apply::{
    apt::{
        argv,
        argv::Argv,
        policy_rc::{self, HoldBack, Removed, Service},
    },
    run,
};
use patch_types::{
    Action, ErrorCode, ErrorDetail, JobId, Operation, Plan,
    settings::{RestartMode, RestartTime, is_unit_name},
    stale::PendingRestart,
};
use serde::{Deserialize, Serialize};

use crate::{
    change::{Change, Stop},
    clock, health,
    journal::{State, make_private, write_whole},
    paths::Paths,
    services,
    shutdown::is_harmed,
    turn::{self, Turn},
};

/// How long a restart is waited for. systemd goes on with one that takes longer.
const LIMIT: Duration = Duration::from_secs(300);

/// How long systemd may take to say what a service is.
const ASKED: Duration = Duration::from_secs(30);

/// How far it is followed what restarts a service with it.
const DEPTH: usize = 4;

/// The file in a change's journal that says when its packages began to change.
const BEGAN: &str = "began";

/// When a change's packages began to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Began {
    boot: String,
    monotonic_us: u64,
}

/// What systemd says of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Shown {
    /// Its name and its aliases.
    names: Vec<String>,
    /// The units of which a restart restarts it.
    hangs_on: Vec<String>,
    /// When it was started, in microseconds of the clock that is never set; 0 if it was not in this boot.
    started_us: u64,
    /// Whether systemd starts it at the next boot.
    is_enabled: bool,
    /// Whether it neither runs nor has failed.
    is_inactive: bool,
}

impl Change<'_> {
    /// Keeps the scripts of packages from restarting what is to wait for the window; the plan says which packages go.
    ///
    /// # Errors
    /// `CONFIG_INVALID` when that cannot be done and `may_refuse`. Otherwise it is said, and the work goes on.
    pub(crate) fn hold_restarts(
        &mut self,
        turn: &Turn,
        plan: Option<&Plan>,
        may_refuse: bool,
    ) -> Result<(), Stop> {
        // A mark runs no scripts.
        if matches!(self.journal.record.operation, Operation::Hold(_)) {
            return Ok(());
        }
        let waiting = self.settings.restart.waiting().to_vec();
        if waiting.is_empty() {
            return Ok(());
        }
        if plan.is_some() && may_refuse {
            self.note_beginning();
        }
        let removed = plan.map_or_else(Vec::new, |plan| going(plan, Action::is_removal));
        self.hold(turn, &waiting, removed, may_refuse)
    }

    /// The same while a change of this or an earlier job goes back: what runs the code that goes is not held back, for that
    /// may be the very reason.
    ///
    /// # Errors
    /// As for [`Change::hold_restarts`].
    pub(crate) fn hold_restarts_going_back(
        &mut self,
        turn: &Turn,
        plan: &Plan,
        source: JobId,
        may_refuse: bool,
    ) -> Result<(), Stop> {
        let waiting = self.settings.restart.waiting().to_vec();
        if waiting.is_empty() {
            // Of a process that knew the settings, and died.
            self.take_policy_away(turn);
            return Ok(());
        }
        let brought = self.run_what_it_brought(source, &waiting);
        let waiting: Vec<String> = waiting.into_iter().filter(|unit| !brought.contains(unit)).collect();
        let is_own = source == self.journal.record.id;
        // What is new goes if this goes back.
        let goes = |action: Action| if is_own { action == Action::Install } else { action.is_removal() };
        self.hold(turn, &waiting, going(plan, goes), may_refuse)
    }

    fn hold(
        &mut self,
        turn: &Turn,
        waiting: &[String],
        removed: Vec<&str>,
        may_refuse: bool,
    ) -> Result<(), Stop> {
        if !health::is_systemd_running(self.paths.root()) {
            if !self.is_told_of_restarts {
                self.is_told_of_restarts = true;
                self.remark("systemd does not run here, so no restart is kept for the window");
            }
            return Ok(());
        }
        if waiting.is_empty() {
            self.take_policy_away(turn);
            return Ok(());
        }
        let services = resolved(waiting, show).unwrap_or_else(|error| {
            self.remark(format!("by what other names services may be restarted cannot be asked: {error}"));
            waiting.iter().map(|unit| Service { unit: unit.clone(), asked: Vec::new() }).collect()
        });
        let held = HoldBack { job: self.journal.record.id, services: &services, removed };
        let Err(error) = policy_rc::install(self.paths.root(), &held) else { return Ok(()) };
        let mut what = format!("restarts of {} are to wait for the window, but {error}", waiting.join(", "));
        if error.source.kind() == io::ErrorKind::ReadOnlyFilesystem {
            what.push_str(
                " (that has to be possible before apt is run, so a /usr that only apt remounts does not do)",
            );
        }
        if may_refuse {
            let message = format!("{what}; nothing was changed. Mend that, or change policy.restart");
            return Err(ErrorDetail::new(ErrorCode::ConfigInvalid, message).into());
        }
        self.remark(format!("{what}; packages' scripts may restart them now"));
        Ok(())
    }

    /// Lets scripts restart services again, and sees to what they were kept from. Only whoever has the turn may: what is
    /// there may be another change's.
    pub(crate) fn let_restarts(&mut self, turn: &Turn) {
        self.take_policy_away(turn);
        self.settle_held_back(&BTreeSet::new());
    }

    fn take_policy_away(&mut self, _turn: &Turn) {
        match policy_rc::remove(self.paths.root()) {
            Ok(Removed::Nothing | Removed::Restored) => {}
            Ok(Removed::Replaced) => {
                self.remark("somebody replaced /usr/sbin/policy-rc.d during the change; what he put there stays");
            }
            Err(error) => self.remark(format!(
                "what was put there for this change could not be taken away: {error}; it forbids nothing any more"
            )),
        }
    }

    /// The same unless packages are being changed in this state.
    pub(crate) fn let_restarts_in(&mut self, turn: &Turn, state: &State) {
        if !is_harmed(state) {
            self.let_restarts(turn);
        }
    }

    /// Writes down when packages begin to change, so that it can be told later what was started since.
    fn note_beginning(&mut self) {
        let began = Began { boot: clock::boot().trim().to_owned(), monotonic_us: clock::monotonic_us() };
        let written = serde_json::to_vec(&began)
            .map_err(io::Error::other)
            .and_then(|text| write_whole(self.journal.dir(), BEGAN, &text));
        if let Err(error) = written {
            // Then all counts as started since.
            eprintln!("patch-executor: when the change began cannot be written down: {error}");
        }
    }

    /// Those of the units that were started after a job began to change packages, so run what it brought. What cannot be
    /// told counts as such.
    fn run_what_it_brought(&self, source: JobId, units: &[String]) -> BTreeSet<String> {
        let began = fs::read(self.paths.journal(source).join(BEGAN))
            .ok()
            .and_then(|text| serde_json::from_slice::<Began>(&text).ok());
        let boot = clock::boot().trim().to_owned();
        let shown = show(units).unwrap_or_default();
        let is_before = |index: usize| {
            shown.get(index).is_some_and(|shown| was_started_before(shown, began.as_ref(), &boot))
        };
        units
            .iter()
            .enumerate()
            .filter(|(index, _)| !is_before(*index))
            .map(|(_, unit)| unit.clone())
            .collect()
    }

    /// The job whose change has gone back, if one has.
    fn went_back(&self) -> Option<JobId> {
        match &self.journal.record.operation {
            Operation::Rollback(rollback) => Some(rollback.job),
            _ if !self.journal.record.taken_back.is_empty() => Some(self.journal.record.id),
            _ => None,
        }
    }

    /// Restarts the named services that still run old code, or notes that they are to be restarted in the window. What
    /// fails is said and harms nothing: whether the host is well is for the health checks to say.
    pub(crate) fn restart_services(&mut self) {
        let restart = self.settings.restart.clone();
        if restart.mode == RestartMode::List || !health::is_systemd_running(self.paths.root()) {
            return;
        }
        let held = policy_rc::held_back(self.journal.dir());
        let old = services::stale_units();
        let brought = match self.went_back() {
            Some(source) => self.run_what_it_brought(source, &restart.services),
            None => BTreeSet::new(),
        };
        let mut seen_to = BTreeSet::new();
        for unit in &restart.services {
            let held_back = held.contains(unit);
            let Some(why) = why(unit, held_back, &old) else { continue };
            let said = if when(restart.when, brought.contains(unit)) == RestartTime::AtOnce {
                restarted(unit, why)
            } else {
                self.noted(unit, held_back, why)
            };
            self.remark(said);
            seen_to.insert(unit.clone());
        }
        self.settle_held_back(&seen_to);
    }

    /// Sees to everything that scripts were kept from and that was not seen to: however a change ends, nothing of that is
    /// forgotten.
    fn settle_held_back(&mut self, seen_to: &BTreeSet<String>) {
        let directory = self.journal.dir().to_owned();
        self.start_what_was_new(&policy_rc::together(&directory));
        let (held, stopped) = (policy_rc::held_back(&directory), policy_rc::stopped(&directory));
        if held.is_empty() && stopped.is_empty() {
            return;
        }
        let why = "was kept from being restarted by its package's scripts";
        for unit in held.iter().filter(|unit| !seen_to.contains(*unit)) {
            let restart = &self.settings.restart;
            let is_named = restart.mode == RestartMode::Restart && restart.services.contains(unit);
            let said = match restart.when {
                RestartTime::AtOnce if is_named => restarted(unit, why),
                // The window looks once more whether it is still named.
                _ if is_named || !self.knows_settings => self.noted(unit, true, why),
                _ => {
                    format!("{unit} {why}, and policy.restart does not name it any more; restart it yourself")
                }
            };
            self.remark(said);
        }
        for unit in &stopped {
            self.remark(format!(
                "{unit} was stopped by a package's script, which is not held back: scripts rely upon it"
            ));
        }
        if let Err(error) = policy_rc::forget(&directory) {
            eprintln!("patch-executor: what was held back cannot be removed from the journal: {error}");
        }
    }

    /// Starts what scripts wanted to start in one call with a restart that was held back, which kept that from them as well:
    /// what is enabled and was never started in this boot, since it is new. What was stopped stays so.
    fn start_what_was_new(&mut self, together: &[String]) {
        let Some(shown) = Some(together).filter(|units| !units.is_empty()).map(show) else { return };
        let shown = match shown {
            Ok(shown) => shown,
            Err(error) => {
                let units = together.join(", ");
                return self.remark(format!(
                    "which of {units} were to be started cannot be asked: {error}; look whether they run"
                ));
            }
        };
        for (unit, _) in together.iter().zip(&shown).filter(|(_, shown)| is_new(shown)) {
            let said = started(unit);
            self.remark(said);
        }
    }

    /// Notes a restart for the window, and what there is to say of that.
    fn noted(&self, unit: &str, held_back: bool, why: &str) -> String {
        match self.note_restart(unit, held_back) {
            Ok(()) => format!("{unit} {why}; it is restarted in the window"),
            Err(error) => format!(
                "{unit} {why}; that it is to be restarted in the window cannot be written down: {error}. Restart it yourself"
            ),
        }
    }

    fn note_restart(&self, unit: &str, held_back: bool) -> io::Result<()> {
        let directory = self.paths.restarts();
        if let Err(error) = make_private(&directory)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        let pending = PendingRestart {
            unit: unit.to_owned(),
            job: self.journal.record.id,
            since: Timestamp::now(),
            boot: clock::boot().trim().to_owned(),
            monotonic_us: clock::monotonic_us(),
            held_back,
        };
        write_whole(&directory, unit, &serde_json::to_vec(&pending)?)
    }
}

/// The names of the packages of a plan with such an action.
fn going(plan: &Plan, goes: impl Fn(Action) -> bool) -> Vec<&str> {
    plan.changes.iter().filter(|change| goes(change.action)).map(|change| change.name.name()).collect()
}

/// When a service is restarted. One that runs code which was taken back does not wait.
fn when(configured: RestartTime, runs_what_went_back: bool) -> RestartTime {
    if runs_what_went_back { RestartTime::AtOnce } else { configured }
}

fn was_started_before(shown: &Shown, began: Option<&Began>, boot: &str) -> bool {
    began.is_some_and(|began| began.boot == boot && shown.started_us <= began.monotonic_us)
}

/// Asks systemd about units, by names that [`is_unit_name`] accepts; as many answers, in their order.
fn show(units: &[String]) -> Result<Vec<Shown>, String> {
    const PROPERTIES: &str = "--property=Id,Names,PartOf,Requires,Requisite,BindsTo,InactiveExitTimestampMonotonic,\
        ActiveState,UnitFileState";
    let mut args = vec!["show".to_owned(), "--no-pager".into(), PROPERTIES.into(), "--".into()];
    args.extend(units.iter().cloned());
    let said =
        run::capture(&Argv::new("/usr/bin/systemctl", args), ASKED).map_err(|error| error.to_string())?;
    if said.code != Some(0) {
        return Err(format!("systemctl says: {}", said.stderr.trim()));
    }
    let shown = parse(&said.stdout);
    if shown.len() == units.len() {
        Ok(shown)
    } else {
        Err(format!("systemctl answered for {} of {} units", shown.len(), units.len()))
    }
}

/// Blocks of `Property=value`, separated by blank lines.
fn parse(text: &str) -> Vec<Shown> {
    let block = |text: &str| {
        let mut shown = Shown::default();
        for (property, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let words = value.split_ascii_whitespace().filter(|name| is_unit_name(name)).map(str::to_owned);
            match property {
                "Id" | "Names" => shown.names.extend(words),
                "PartOf" | "Requires" | "Requisite" | "BindsTo" => {
                    let restarts_it = |name: &String| {
                        [".service", ".socket", ".target"].iter().any(|kind| name.ends_with(kind))
                    };
                    shown.hangs_on.extend(words.filter(restarts_it));
                }
                "ActiveState" => shown.is_inactive = value == "inactive",
                "UnitFileState" => shown.is_enabled = ["enabled", "enabled-runtime"].contains(&value),
                "InactiveExitTimestampMonotonic" => shown.started_us = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
        shown
    };
    text.split("\n\n").filter(|text| !text.trim().is_empty()).map(block).collect()
}

/// The services with every name by which a script may restart them.
fn resolved(
    units: &[String],
    show: impl Fn(&[String]) -> Result<Vec<Shown>, String>,
) -> Result<Vec<Service>, String> {
    let mut known: BTreeMap<String, Shown> = BTreeMap::new();
    let mut next: BTreeSet<String> = units.iter().cloned().collect();
    for _ in 0..DEPTH {
        let asked: Vec<String> = next.into_iter().filter(|unit| !known.contains_key(unit)).collect();
        if asked.is_empty() {
            break;
        }
        let shown = show(&asked)?;
        next = shown.iter().flat_map(|shown| shown.hangs_on.iter().cloned()).collect();
        known.extend(asked.into_iter().zip(shown));
    }
    let all = |unit: &String| {
        let mut names = BTreeSet::new();
        let mut follow = vec![unit.clone()];
        while let Some(name) = follow.pop() {
            if !names.insert(name.clone()) {
                continue;
            }
            if let Some(shown) = known.get(&name) {
                names.extend(shown.names.iter().cloned());
                follow.extend(shown.hangs_on.iter().filter(|name| !names.contains(*name)).cloned());
            }
        }
        Service { unit: unit.clone(), asked: names.into_iter().collect() }
    };
    Ok(units.iter().map(all).collect())
}

/// Why a service is restarted; none if it need not be.
fn why(unit: &str, held_back: bool, old: &BTreeMap<String, Vec<String>>) -> Option<&'static str> {
    if held_back {
        Some("was kept from being restarted by its package's scripts")
    } else {
        old.contains_key(unit).then_some("runs old code")
    }
}

/// Restarts a service, and what there is to say of it.
fn restarted(unit: &str, why: &str) -> String {
    let failed = match run::capture(&argv::restart_unit(unit), LIMIT) {
        Ok(said) if said.code == Some(0) => return format!("restarted {unit}, which {why}"),
        Ok(said) => said.text().trim().replace('\n', " / "),
        Err(error) => error.to_string(),
    };
    format!("{unit} {why} and could not be restarted: {failed}; see `systemctl status {unit}`")
}

/// Whether a script's restart would have started it, and nobody has stopped it.
fn is_new(shown: &Shown) -> bool {
    shown.is_enabled && shown.is_inactive && shown.started_us == 0
}

/// Starts a service, and what there is to say of it.
fn started(unit: &str) -> String {
    let why = "its package's scripts were to start together with a restart that was held back";
    let failed = match run::capture(&argv::start_as_scripts_do(unit), LIMIT) {
        Ok(said) if said.code == Some(0) => {
            let active = run::capture(&argv::unit_is_active(unit), ASKED);
            if active.is_ok_and(|said| said.code == Some(0)) {
                return format!("started {unit}, which {why}");
            }
            said.text().trim().replace('\n', " / ")
        }
        Ok(said) => said.text().trim().replace('\n', " / "),
        Err(error) => error.to_string(),
    };
    format!("{unit}, which {why}, does not run: {failed}; see `systemctl status {unit}`")
}

/// Takes away what a change left that nobody takes up any more, if no change is under way.
pub(crate) fn sweep(paths: &Paths) {
    let Ok(Some(turn)) = turn::wait(paths, || true, || {}) else { return };
    sweep_in_turn(paths.root(), &turn);
}

/// The same for whoever has the turn.
pub(crate) fn sweep_in_turn(root: &Path, _turn: &Turn) {
    if let Err(error) = policy_rc::remove(root) {
        eprintln!("patch-executor: what a change had put there could not be taken away: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_old_code_or_was_held_back_is_restarted() {
        let old = BTreeMap::from([("a.service".to_owned(), vec!["/usr/sbin/a".to_owned()])]);
        assert_eq!(why("a.service", false, &old), Some("runs old code"));
        assert_eq!(why("b.service", false, &old), None);
        assert!(why("b.service", true, &old).is_some_and(|why| why.contains("scripts")));
    }

    #[test]
    fn what_runs_code_that_was_taken_back_does_not_wait() {
        assert_eq!(when(RestartTime::InWindow, true), RestartTime::AtOnce);
        assert_eq!(when(RestartTime::InWindow, false), RestartTime::InWindow);
        let began = Began { boot: "b".into(), monotonic_us: 100 };
        let at = |started_us| Shown { started_us, ..Shown::default() };
        assert!(was_started_before(&at(100), Some(&began), "b"));
        assert!(!was_started_before(&at(101), Some(&began), "b"));
        assert!(!was_started_before(&at(50), Some(&began), "c") && !was_started_before(&at(50), None, "b"));
    }

    #[test]
    fn only_what_is_new_is_started() {
        let text = |state: &str, file: &str, started: u64| {
            format!(
                "Id=a.service\nActiveState={state}\nUnitFileState={file}\nInactiveExitTimestampMonotonic={started}\n"
            )
        };
        let is_new = |text: &str| super::is_new(&parse(text)[0]);
        assert!(is_new(&text("inactive", "enabled", 0)));
        assert!(!is_new(&text("inactive", "enabled", 7)), "somebody has stopped it");
        assert!(!is_new(&text("inactive", "disabled", 0)) && !is_new(&text("inactive", "", 0)));
        assert!(!is_new(&text("active", "enabled", 7)) && !is_new(&text("failed", "enabled", 7)));
    }

    #[test]
    fn a_service_is_known_by_all_that_restarts_it() {
        let text = "Id=x@1-main.service\nNames=x@1-main.service\nPartOf=x.service\nRequires=system.slice sysinit.target\n\
            InactiveExitTimestampMonotonic=7\n\nId=ssh.service\nNames=sshd.service ssh.service\n";
        let shown = parse(text);
        assert_eq!(shown[0].hangs_on, ["x.service", "sysinit.target"]);
        assert_eq!((shown[0].started_us, shown.len()), (7, 2));
        let show = |units: &[String]| -> Result<Vec<Shown>, String> {
            let one = |unit: &String| {
                let mut answer = match unit.as_str() {
                    "x@1-main.service" => shown[0].clone(),
                    "sshd.service" => shown[1].clone(),
                    _ => Shown::default(),
                };
                if unit == "x.service" {
                    answer.names = vec!["x.service".into(), "y.service".into()];
                    // A ring.
                    answer.hangs_on = vec!["x@1-main.service".into()];
                }
                answer
            };
            Ok(units.iter().map(one).collect())
        };
        let units = ["x@1-main.service", "sshd.service"].map(str::to_owned);
        let services = resolved(&units, show).unwrap();
        assert_eq!(services[0].asked, ["sysinit.target", "x.service", "x@1-main.service", "y.service"]);
        assert_eq!(services[1].asked, ["ssh.service", "sshd.service"]);
        assert!(resolved(&units, |_| Err("no".into())).is_err());
    }
}
