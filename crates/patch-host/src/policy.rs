//! `policy.mode: agent` as seen by root: while the agent patches, the distribution's own updater is kept off; when it does not,
//! that is given back. Never both at once, and never neither unless an operator has paused the agent.
//!
//! Whether the agent succeeds is told from the root side's own journals alone: what the network side says of itself counts for
//! nothing here. `patch-policy` decides; this reads what the decision rests on, and writes or removes one file of apt's.

#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use patch_backends::ceiling;
use patch_policy::{
    Declared, Window,
    handover::{Decision, PATIENCE, Reason, Service, Situation, decide},
    schedule,
};
use patch_types::{
    JobId, JobStatus, Operation, Outcome,
    event::Ended,
    executor::JOURNAL_DIR,
    policy::{
        ATTEMPT, ATTEMPT_LOCK, Attempt, POLICY_DIR, POLICY_LOCK, POLICY_STATE, Policy, PolicyMode, SWITCH,
        SWITCHED_OFF,
    },
    rollback::MAX_CONFIRM_SECONDS,
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    apt_conf::AptConf,
    below::Below,
    exit::Exit,
    log,
    place::{Found, Places},
    screen::Screen,
    tools::{Ask, ToolError},
    window::settings::read_trusted,
};

/// The file that keeps the distribution's updater off, below the root. Its name is late among its fellows.
pub(crate) const FILE: &str = SWITCH;

/// What looks after it.
pub(crate) const TIMER: &str = "linux-patch-policy.timer";

/// What it sets.
pub(crate) const SETTING: &str = "APT::Periodic::Unattended-Upgrade";

const CONFIG: &str = "etc/linux_patch_api/config.yaml";
const FREEZE: &str = "/etc/linux_patch_api/freeze";
const UNIT: &str = "linux-patch-api.service";

/// Runs that keep the distribution's updater off for so long while that is to patch are a failure.
const LONG_RUN: SignedDuration = SignedDuration::from_hours(6);

/// How much time may have gone by between two looks at most, whatever the clock says: it may have been set meanwhile.
const BETWEEN_LOOKS: SignedDuration = SignedDuration::from_mins(15);

/// For how long runs have kept the distribution's updater off that is to patch, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptOff {
    seconds: i64,
    /// When that was last seen.
    seen: Timestamp,
}

/// A change that is known to wait to be confirmed for longer does not any more: twice what can be asked for.
const LONGEST_CONFIRMING: SignedDuration = SignedDuration::from_secs(2 * MAX_CONFIRM_SECONDS as i64);

/// A run that ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Success {
    pub(crate) job: JobId,
    pub(crate) at: Timestamp,
}

/// What is remembered between two looks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Since when the agent is asked to patch.
    #[serde(default)]
    pub(crate) since: Option<Timestamp>,
    #[serde(default)]
    pub(crate) last_success: Option<Success>,
    /// When it was last seen to be paused.
    #[serde(default)]
    pub(crate) paused: Option<Timestamp>,
    /// Of one look after the other, as long as each finds a run at work.
    #[serde(default)]
    kept_off: Option<KeptOff>,
    /// The last policy that could be used, while it says that the agent patches.
    #[serde(default)]
    policy: Option<Policy>,
    /// What was recorded last.
    #[serde(default)]
    told: Option<String>,
}

fn own(name: &str) -> PathBuf {
    Path::new(POLICY_DIR).join(name)
}

/// The run of the root side that patches at this moment instead of the distribution's updater, if one does.
///
/// # Errors
/// When it cannot be told.
pub(crate) fn under_way(files: &Below) -> io::Result<Option<Attempt>> {
    let lock = match files.file(own(ATTEMPT_LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {}
        // Its process is dead, and the lock went with it.
        Ok(()) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    match files.read(own(ATTEMPT)) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        // It has ended, and its process is about to.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file as this program writes it: root's, or whoever's the system below a directory is.
fn found(files: &Below, content: Vec<u8>, mode: u32) -> Found {
    let (uid, gid) = match files.root() == Path::new("/") {
        true => (0, 0),
        false => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
    };
    Found { content, mode, uid, gid }
}

impl State {
    /// Reads it. A damaged one counts as none, which only gives the agent its time anew.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn load(files: &Below) -> io::Result<Self> {
        match files.read(own(POLICY_STATE)) {
            Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    fn save(&self, files: &Below) -> anyhow::Result<()> {
        let text = serde_json::to_vec(self)?;
        Places::new(files.root()).put(&own(POLICY_STATE), &found(files, text, 0o600))?;
        Ok(())
    }
}

/// The sections that count here; the agent checks the rest.
#[derive(Debug, Deserialize)]
struct Sections {
    policy: Option<Policy>,
}

/// The policy in the text of `config.yaml`.
///
/// # Errors
/// When it is not understood.
fn parse(text: &str) -> anyhow::Result<Policy> {
    let says_nothing =
        text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---");
    if says_nothing {
        return Ok(Policy::default());
    }
    // As the agent reads it: `off` is a word.
    let options = serde_saphyr::options! { strict_booleans: true };
    let sections: Sections = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let said = error.without_snippet().to_string();
        anyhow::anyhow!("{}", said.lines().next().unwrap_or_default())
    })?;
    Ok(sections.policy.unwrap_or_default())
}

/// The window of a policy.
///
/// # Errors
/// When it is none, or its time zone is not known here.
pub(crate) fn window(policy: &Policy) -> anyhow::Result<Window> {
    let Some(window) = &policy.window else {
        let (rule, minutes) = schedule::EVERY_SIX_HOURS;
        return Ok(Window::from_rule(rule, minutes, None, TimeZone::UTC)?);
    };
    let zone = match window.timezone.as_str() {
        // The one zone that needs no database.
        "UTC" => TimeZone::UTC,
        name => TimeZone::get(name).map_err(|_| {
            anyhow::anyhow!("policy.window.timezone: {name:?} is not a time zone that this host knows")
        })?,
    };
    let written = Declared {
        rule: window.rule.as_deref(),
        days: window.days.as_deref(),
        hour: window.hour,
        minute: window.minute,
        minutes: window.duration_minutes,
        start: window.start,
        zone,
    };
    Window::from_declared(written).map_err(|error| anyhow::anyhow!("policy.window: {error}"))
}

/// Whether the host is frozen, which pauses the agent too.
fn is_frozen(files: &Below) -> bool {
    frozen_by(files).is_some()
}

/// The file by which the host is frozen, if it is.
pub(crate) fn frozen_by(files: &Below) -> Option<String> {
    // Read for this key alone: a host that root froze stays frozen also if something else in the file is wrong.
    let ceiling = files.read(ceiling::FILE).unwrap_or_default();
    let ceiling: Value = std::str::from_utf8(&ceiling)
        .ok()
        .and_then(|text| serde_saphyr::from_str(text).ok())
        .unwrap_or_default();
    let path = ceiling.get("freeze_file").and_then(Value::as_str).unwrap_or(FREEZE);
    files.is_there(path.trim_start_matches('/')).then(|| path.to_owned())
}

/// How the agent's program is, and whether anybody looks after it.
///
/// # Errors
/// When systemd cannot be asked.
pub(crate) fn service(tools: &dyn Ask) -> Result<Service, ToolError> {
    let agent = Unit::ask(tools, UNIT)?;
    // What lasts for moments does not count as an end.
    if !agent.is(&["active", "activating", "reloading", "refreshing", "deactivating"]) {
        return Ok(Service::Stopped);
    }
    if agent.is_off_at_boot() {
        return Ok(Service::Disabled);
    }
    // Such a timer is active also while what it starts runs.
    let timer = Unit::ask(tools, TIMER)?;
    let is_watched = timer.is(&["active", "activating"]) && !timer.is_off_at_boot();
    Ok(if is_watched { Service::Runs } else { Service::Unwatched })
}

/// What systemd says of a unit.
struct Unit {
    shown: String,
}

impl Unit {
    fn ask(tools: &dyn Ask, unit: &str) -> Result<Self, ToolError> {
        let shown = tools.ask("systemctl", &["show", "-p", "ActiveState,UnitFileState", "--", unit])?;
        Ok(Self { shown })
    }

    fn has(&self, name: &str, values: &[&str]) -> bool {
        let value = self.shown.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
        value.is_some_and(|value| values.contains(&value))
    }

    fn is(&self, states: &[&str]) -> bool {
        self.has("ActiveState", states)
    }

    fn is_off_at_boot(&self) -> bool {
        self.has("UnitFileState", &["disabled", "masked", "masked-runtime"])
    }
}

/// The last run of the root side that installed all that the policy declares, if there was one after an instant.
fn success_after(
    files: &Below,
    policy: &Policy,
    after: Timestamp,
    now: Timestamp,
) -> io::Result<Option<Success>> {
    let names = match files.names(JOURNAL_DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        names => names?,
    };
    let mut last: Option<Success> = None;
    for job in names.iter().filter_map(|name| name.to_str()?.parse::<JobId>().ok()) {
        let path = Path::new(JOURNAL_DIR).join(job.to_string()).join("state.json");
        // The state is written for the last time when it ends, by a clock that the network side has no say in.
        let written = files.metadata(&path).and_then(|meta| meta.modified());
        let Some(at) = written.ok().and_then(|time| Timestamp::try_from(time).ok()) else { continue };
        // One that a clock that was ahead has dated must not hide the others.
        if at > now || at <= after || last.is_some_and(|last| at <= last.at) {
            continue;
        }
        let state = files.read(&path).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        if state.is_some_and(|state| is_success(&state, policy)) {
            last = Some(Success { job, at });
        }
    }
    Ok(last)
}

fn is_success(state: &Value, policy: &Policy) -> bool {
    let part = |pointer: &str| state.pointer(pointer).cloned().unwrap_or_default();
    let Ok(operation) = serde_json::from_value::<Operation>(part("/operation")) else { return false };
    let Ok(ended) = serde_json::from_value::<Ended>(part("/state/ended")) else { return false };
    part("/state/state") == "ended"
        && ended.status == JobStatus::Completed
        && matches!(ended.outcome, Some(Outcome::Applied | Outcome::Unchanged))
        // A run of an approved plan fetches nothing, so it may have seen nothing new.
        && part("/if_plan").is_null()
        // One that was only rehearsed has installed nothing.
        && part("/rehearse/only") != true
        && policy.is_met_by(&operation)
}

/// Whether a change waits to be confirmed. The agent begins no other meanwhile.
///
/// # Errors
/// When the journals cannot be read.
fn is_confirming(files: &Below, now: Timestamp) -> io::Result<bool> {
    let names = match files.names(JOURNAL_DIR) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        names => names?,
    };
    let waits = |job: JobId| {
        let path = Path::new(JOURNAL_DIR).join(job.to_string()).join("state.json");
        let written = files.metadata(&path).and_then(|meta| meta.modified()).ok()?;
        // It is written when that begins, and nothing waits for so long.
        if now.duration_since(Timestamp::try_from(written).ok()?) > LONGEST_CONFIRMING {
            return None;
        }
        let state = serde_json::from_slice::<Value>(&files.read(&path).ok()?).ok()?;
        (state.pointer("/state/state")? == "confirming").then_some(())
    };
    Ok(names.iter().filter_map(|name| name.to_str()?.parse::<JobId>().ok()).any(|job| waits(job).is_some()))
}

/// What the configuration has.
struct Configured {
    policy: Policy,
    /// Why it is not known, if so.
    problem: Option<String>,
}

fn configured(files: &Below) -> Configured {
    let path = files.name(CONFIG);
    let policy = read_trusted(&path)
        .and_then(|text| parse(&text.unwrap_or_default()))
        .and_then(|policy| window(&policy).map(|_| policy))
        .and_then(|policy| match policy.problems().first() {
            Some((key, problem)) => bail!("{key}: {problem}"),
            None => Ok(policy),
        })
        .with_context(|| path.display().to_string());
    match policy {
        Ok(policy) => Configured { policy, problem: None },
        Err(error) => Configured { policy: Policy::default(), problem: Some(format!("{error:#}")) },
    }
}

/// Whether the agent is declared to patch, so that unattended-upgrades is kept off.
pub(crate) fn is_agents(files: &Below) -> bool {
    configured(files).policy.mode == PolicyMode::Agent || files.is_there(FILE)
}

/// Who patches, by a policy and what is remembered.
///
/// # Errors
/// When the policy's window is none, or it cannot be told whether a change waits to be confirmed.
pub(crate) fn judge(
    files: &Below,
    policy: &Policy,
    state: &State,
    service: Service,
    now: Timestamp,
) -> anyhow::Result<Decision> {
    Ok(decide(&Situation {
        now,
        agent_mode: policy.mode == PolicyMode::Agent,
        window: &window(policy)?,
        paused: policy.is_paused(now) || is_frozen(files),
        paused_until: policy.paused_until.max(state.paused),
        waits: is_confirming(files, now)
            .with_context(|| format!("cannot read {}", files.name(JOURNAL_DIR).display()))?,
        service,
        since: state.since.unwrap_or(now),
        last_success: state.last_success.map(|success| success.at),
    }))
}

/// Whether the distribution's updater is off, as apt itself sees it; else what it is set to.
///
/// # Errors
/// When apt cannot be asked.
fn setting_in_force(tools: &dyn Ask) -> anyhow::Result<Option<String>> {
    let dump = tools.ask("apt-config", &["dump", "--no-empty", "--format", "%F=%v%n"])?;
    Ok(AptConf::from_dump(&dump).value(SETTING).map(str::to_owned))
}

/// One look of the timer.
struct Tick<'a> {
    files: &'a Below,
    tools: &'a dyn Ask,
    now: Timestamp,
    state: State,
}

/// What became of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Looked {
    /// Done, or nothing was to be done; what is the case.
    Done(String),
    /// It could not be done; why.
    Failed(String),
}

/// Why the agent goes on with the policy that it had, if another one is declared: it refuses a file whole, whatever is wrong
/// with it.
pub(crate) fn refused(files: &Below, tools: &dyn Ask, declared: &Policy, state: &State) -> Option<String> {
    let declared = (declared.mode == PolicyMode::Agent).then_some(declared);
    if declared == state.policy.as_ref() {
        return None;
    }
    match tools.ask("linux-patch-api", &["check-config", "--configuration-only"]) {
        Ok(_) | Err(ToolError::Absent(_) | ToolError::Foreign(_)) => None,
        Err(ToolError::Failed { .. }) => Some(format!(
            "the agent refuses {}, and goes on with the policy of before: linux-patch-api check-config says why",
            files.name(CONFIG).display()
        )),
    }
}

impl Tick<'_> {
    fn run(&mut self) -> anyhow::Result<Looked> {
        let Configured { mut policy, mut problem } = configured(self.files);
        if problem.is_none() {
            problem = refused(self.files, self.tools, &policy, &self.state);
        }
        let is_held = Places::new(self.files.root()).look(Path::new(FILE))?.is_some();
        if problem.is_some() {
            // What was declared before goes on, for as long as it succeeds.
            if !is_held && self.state.policy.is_none() {
                return self.failed(problem.unwrap_or_default());
            }
            // The agent goes on with it as well.
            let last = self.state.policy.clone().filter(|policy| window(policy).is_ok());
            policy = Policy { mode: PolicyMode::Agent, ..last.unwrap_or_default() };
        }
        let before = self.state.clone();
        self.state.policy = (policy.mode == PolicyMode::Agent).then(|| policy.clone());
        self.observe(&policy)?;
        // With the mode off it matters to nobody, and there may be no such unit.
        let service = match policy.mode {
            PolicyMode::Agent => service(self.tools)?,
            PolicyMode::Off => Service::Stopped,
        };
        let decision = judge(self.files, &policy, &self.state, service, self.now)?;
        if self.state != before {
            self.state.save(self.files)?;
        }
        let attempt =
            under_way(self.files).context("whether a run of the policy is at work cannot be told")?;
        let is_over = attempt.is_none();
        if (is_over || matches!(decision, Decision::Agent { .. })) && self.state.kept_off.take().is_some() {
            self.state.save(self.files)?;
        }
        let done = match (decision, attempt) {
            (Decision::Agent { .. }, _) => self.hand_over()?,
            // Two at once would be the worst of all. It ends, and then this is looked at again.
            (Decision::Distribution(reason), Some(attempt)) => {
                let job = attempt.job;
                if self.count_kept_off()? >= LONG_RUN {
                    let since = attempt.since.map_or_else(String::new, |since| format!(" since {since:.0}"));
                    let hours = LONG_RUN.as_hours();
                    return self.failed(format!(
                        "job {job} is at work{since}, and runs of the policy keep unattended-upgrades off for more than {hours} hours, \
                         which is to patch this host, because {reason}; `linux-patch-host watch {job}` shows what it does"
                    ));
                }
                return Ok(Looked::Done(format!(
                    "job {job} patches this host just now, so unattended-upgrades is off until that has ended; then it is given \
                     back: {reason}"
                )));
            }
            (Decision::Distribution(reason), None) => {
                let done = self.give_back(is_held, &reason.to_string())?;
                // That one waits to be confirmed is nobody's failure.
                if policy.mode == PolicyMode::Agent && reason != Reason::Waits {
                    // Of one that died.
                    Places::new(self.files.root()).remove(&own(ATTEMPT))?;
                    let why = problem.map_or_else(String::new, |problem| format!("{problem}; "));
                    return self.failed(format!("{why}the agent does not patch this host: {reason}"));
                }
                done
            }
        };
        if is_over {
            // Of one that died.
            Places::new(self.files.root()).remove(&own(ATTEMPT))?;
        }
        if let Some(problem) = problem {
            return self.failed(problem);
        }
        if self.state.told.take().is_some() {
            self.state.save(self.files)?;
        }
        Ok(done)
    }

    /// For how long unattended-upgrades has been kept off by now, as far as looks have seen it.
    fn count_kept_off(&mut self) -> anyhow::Result<SignedDuration> {
        let before = self.state.kept_off.unwrap_or(KeptOff { seconds: 0, seen: self.now });
        let gap = self.now.duration_since(before.seen).clamp(SignedDuration::ZERO, BETWEEN_LOOKS);
        let seconds = before.seconds.saturating_add(gap.as_secs());
        self.state.kept_off = Some(KeptOff { seconds, seen: self.now });
        self.state.save(self.files)?;
        Ok(SignedDuration::from_secs(seconds))
    }

    /// Takes note of what is seen.
    fn observe(&mut self, policy: &Policy) -> anyhow::Result<()> {
        let state = &mut self.state;
        if policy.mode == PolicyMode::Off {
            (state.since, state.last_success, state.paused) = (None, None, None);
            return Ok(());
        }
        // A clock that was set back must not give it more time than it has.
        let since = state.since.map_or(self.now, |since| since.min(self.now));
        state.since = Some(since);
        state.last_success = state.last_success.filter(|success| success.at <= self.now);
        state.paused = state.paused.map(|paused| paused.min(self.now));
        if policy.is_paused(self.now) || is_frozen(self.files) {
            state.paused = Some(self.now);
        }
        // A run may have ended before this first saw that it was asked for.
        let lately = since.checked_sub(PATIENCE).unwrap_or(since);
        let after = state.last_success.map_or(lately, |success| success.at);
        let success = success_after(self.files, policy, after, self.now)
            .with_context(|| format!("cannot read {}", self.files.name(JOURNAL_DIR).display()))?;
        state.last_success = success.or(state.last_success);
        Ok(())
    }

    fn hand_over(&mut self) -> anyhow::Result<Looked> {
        let places = Places::new(self.files.root());
        let file = found(self.files, SWITCHED_OFF.as_bytes().to_vec(), 0o644);
        let is_new = places.look(Path::new(FILE))?.as_ref() != Some(&file);
        if is_new {
            self.state.save(self.files)?;
            let what = format!("policy.mode is agent: unattended-upgrades is switched off by /{FILE}");
            log::record(self.files, &[what])?;
            places.put(Path::new(FILE), &file)?;
        }
        match setting_in_force(self.tools) {
            Ok(Some(value)) if value == "0" => {
                Ok(Looked::Done("the agent patches this host, and unattended-upgrades is off".to_owned()))
            }
            Ok(value) => {
                let value = value.unwrap_or_default();
                self.failed(format!(
                    "/{FILE} has no effect: apt-config dump says {SETTING} \"{value}\"; the last file that sets it counts, so look for \
                     one that is read later, such as /etc/apt/apt.conf"
                ))
            }
            Err(error) => {
                self.failed(format!("whether unattended-upgrades is off cannot be told: {error:#}"))
            }
        }
    }

    fn give_back(&mut self, is_held: bool, reason: &str) -> anyhow::Result<Looked> {
        if is_held {
            let what = format!("unattended-upgrades is given back: /{FILE} is removed, because {reason}");
            log::record(self.files, &[what])?;
            Places::new(self.files.root()).remove(Path::new(FILE))?;
        }
        Ok(Looked::Done(format!("the settings of unattended-upgrades are left alone: {reason}")))
    }

    /// Records what is the matter, unless that was recorded last.
    fn failed(&mut self, what: String) -> anyhow::Result<Looked> {
        if self.state.told.as_ref() != Some(&what) {
            self.state.told = Some(what.clone());
            self.state.save(self.files)?;
            log::record(self.files, &[format!("policy: {what}")])?;
        }
        Ok(Looked::Failed(what))
    }
}

fn look(files: &Below, tools: &dyn Ask, now: Timestamp) -> anyhow::Result<Looked> {
    let places = Places::new(files.root());
    let path = own(POLICY_LOCK);
    if places.look(&path)?.is_none() {
        places.put(&path, &found(files, Vec::new(), 0o600)).context("run this as root")?;
    }
    let lock = files.file(&path).context("cannot lock what is remembered; run this as root")?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot lock what is remembered")?;
    let state = State::load(files).context("what is remembered cannot be read")?;
    Tick { files, tools, now, state }.run()
}

fn show(screen: &mut Screen, outcome: &Looked) -> anyhow::Result<Exit> {
    let (exit, what) = match outcome {
        Looked::Done(what) => (Exit::Done, what),
        Looked::Failed(what) => (Exit::Failed, what),
    };
    if screen.is_json() {
        screen.json(&json!({ "done": exit == Exit::Done, "what": what }))?;
    } else if exit == Exit::Done {
        screen.text(what);
    } else {
        screen.remark(what);
    }
    Ok(exit)
}

fn here(files: &Below) -> anyhow::Result<()> {
    ensure!(
        files.root() == Path::new("/"),
        "who patches is decided for the host itself, not for the system below {}",
        files.root().display()
    );
    Ok(())
}

/// Looks once, and does what is to be done.
pub(crate) fn tick(files: &Below, tools: &dyn Ask, screen: &mut Screen) -> anyhow::Result<Exit> {
    here(files)?;
    show(screen, &look(files, tools, Timestamp::now())?)
}

/// Gives the distribution's updater back, whatever is configured. The next look decides anew.
pub(crate) fn release(files: &Below, screen: &mut Screen) -> anyhow::Result<Exit> {
    here(files)?;
    if Places::new(files.root()).look(Path::new(FILE))?.is_none() {
        return show(screen, &Looked::Done(format!("there is no /{FILE}, so nothing is to be given back")));
    }
    let what = format!("unattended-upgrades is given back: /{FILE} is removed, as was asked for");
    log::record(files, std::slice::from_ref(&what))?;
    Places::new(files.root()).remove(Path::new(FILE))?;
    show(screen, &Looked::Done(what))
}

/// What would be decided now, and what it rests on. Changes nothing.
pub(crate) fn status(files: &Below, tools: &dyn Ask, screen: &mut Screen) -> anyhow::Result<Exit> {
    here(files)?;
    let now = Timestamp::now();
    let Configured { policy, problem } = configured(files);
    if let Some(problem) = problem {
        bail!(problem);
    }
    let state = State::load(files).context("what is remembered cannot be read; run this as root")?;
    if let Some(problem) = refused(files, tools, &policy, &state) {
        bail!(problem);
    }
    let agent = service(tools);
    let runs = agent.as_ref().map_or("unknown", |agent| match agent {
        Service::Runs | Service::Unwatched => "runs",
        Service::Disabled => "runs_until_reboot",
        Service::Stopped => "stopped",
    });
    let (patches, until, reason) = match policy.mode {
        PolicyMode::Off => ("distribution", None, Some("policy.mode is not agent".to_owned())),
        PolicyMode::Agent => match judge(files, &policy, &state, agent?, now)? {
            Decision::Agent { until } => ("agent", until, None),
            Decision::Distribution(reason) => ("distribution", None, Some(reason.to_string())),
        },
    };
    let setting = setting_in_force(tools).ok().flatten();
    let is_held = files.is_there(FILE);
    let frozen = frozen_by(files);
    let attempt = under_way(files).context("run this as root")?.map(|attempt| attempt.job);
    if screen.is_json() {
        screen.json(&json!({
            "mode": policy.mode, "patches": patches, "relied_upon_until": until, "reason": reason,
            "since": state.since, "last_success": state.last_success, "handed_over": is_held, "unattended_upgrade": setting,
            "at_work": attempt, "agent": runs, "frozen_by": frozen,
        }))?;
        return Ok(Exit::Done);
    }
    screen.text(&match (&reason, until) {
        (Some(reason), _) => format!("patches       the distribution's updater, if it is set up: {reason}"),
        (None, Some(until)) => {
            format!("patches       the agent; without a success it is relied upon until {until:.0}")
        }
        (None, None) => "patches       the agent, which is paused".to_owned(),
    });
    screen.text(match runs {
        "runs" => "agent         runs",
        "runs_until_reboot" => "agent         runs, and is not started at the next boot",
        "stopped" => "agent         does not run",
        _ => "agent         whether it runs cannot be told",
    });
    if let Some(file) = &frozen {
        screen.text(&format!(
            "frozen        by {file}: nothing is changed through the agent until that is removed"
        ));
    }
    if let Some(job) = attempt {
        screen.text(&format!("at work       job {job}; until it has ended unattended-upgrades is off"));
    }
    if let Some(success) = state.last_success {
        screen.text(&format!("last success  {:.0}, job {}", success.at, success.job));
    }
    screen.text(&format!(
        "apt           {SETTING} \"{}\"{}",
        setting.as_deref().unwrap_or("?"),
        if is_held { format!(", by /{FILE}") } else { String::new() }
    ));
    Ok(Exit::Done)
}
