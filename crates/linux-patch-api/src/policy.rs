//! `policy.mode: agent`: the agent patches by itself.
//!
//! What is due is decided by `patch-policy`; here it is looked at, decided upon, and submitted as a job like any client's, so
//! that turn, plan, way back, verifying and going back are the same. A run that has begun is on disk before its job is, so
//! that neither a crash nor a restart makes two of one.

mod barred;
mod decide;
mod memory;
#[cfg(test)]
mod tests;

use std::{path::Path, time::Duration};

use jiff::{SignedDuration, Timestamp};
use patch_audit::{AuditEvent, AuditKind, Caller};
use patch_policy::{Declared, Window, handover, schedule};
use patch_types::{
    ChangeOptions, PackageName, Phase, TakenBack,
    api::{Cause, CauseKind, Job, PolicyRun, PolicyState, Requester},
    executor::Limits,
    policy::{Policy, PolicyMode, Updates},
};
use uuid::Uuid;

use crate::{
    audit::Audit,
    config,
    http::App,
    jobs::{JobFilter, Jobs, Submission},
};
pub(crate) use decide::FREEZE;
use decide::{Decision, Reason, Situation, decide};
use memory::{Memory, Running};

/// Who asks for the jobs of this. A client's certificate may bear the same name; it has a fingerprint, and this has none.
pub const IDENTITY: &str = "policy";

/// How long at most until the next look: a pause, a freeze file or a clock that is set is noticed by then.
const LOOK: Duration = Duration::from_secs(60);

/// What is between two looks at least.
const PAUSE: Duration = Duration::from_secs(1);

/// How long nothing more of the same kind is recorded, in other words.
const QUIET: SignedDuration = SignedDuration::from_mins(15);

/// No job is given less time than this, in seconds.
const LEAST: u64 = 60;

/// Where the host's own number is, below the root.
const MACHINE_ID: &str = "etc/machine-id";

/// The most that is told of a freeze file, in bytes.
const MAX_REASON: usize = 500;

/// The largest of root's files that is read here, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The window of a policy.
///
/// # Errors
/// The key that is wrong, and one sentence.
pub fn window(policy: &Policy) -> Result<Window, (&'static str, String)> {
    let wrong = |error: patch_policy::WindowError| ("policy.window", error.to_string());
    let Some(window) = &policy.window else {
        let (rule, minutes) = schedule::EVERY_SIX_HOURS;
        return Window::from_rule(rule, minutes, None, jiff::tz::TimeZone::UTC).map_err(wrong);
    };
    let zone = config::zone(&window.timezone).ok_or_else(|| {
        let message = format!("{:?} is not a time zone that this host knows", window.timezone);
        ("policy.window.timezone", message)
    })?;
    Window::from_declared(Declared {
        rule: window.rule.as_deref(),
        days: window.days.as_deref(),
        hour: window.hour,
        minute: window.minute,
        minutes: window.duration_minutes,
        start: window.start,
        zone,
    })
    .map_err(wrong)
}

/// What makes this host wait for another time than its fellows do.
fn host(root: &Path) -> Vec<u8> {
    match std::fs::read(root.join(MACHINE_ID)) {
        Ok(id) if !id.trim_ascii().is_empty() => id.trim_ascii().to_vec(),
        _ => patch_backends::system::hostname(root).into_bytes(),
    }
}

/// Why the host is frozen, if it can be seen that it is. The root side decides by itself, and knows better.
pub(crate) fn frozen(root: &Path) -> Option<String> {
    let ceiling = patch_files::read_text(&root.join("etc/linux_patch_api/ceiling.yaml"), MAX_FILE);
    let ceiling = ceiling.unwrap_or_default();
    let ceiling = serde_saphyr::from_str::<serde_json::Value>(&ceiling).unwrap_or_default();
    let named = ceiling.get("freeze_file").and_then(serde_json::Value::as_str);
    let path = root.join(named.unwrap_or("/etc/linux_patch_api/freeze").trim_start_matches('/'));
    let meta = std::fs::symlink_metadata(&path).ok()?;
    if !meta.is_file() {
        return Some(String::new());
    }
    let mut text = patch_files::read(&path, MAX_FILE).unwrap_or_default();
    text.truncate(MAX_REASON);
    Some(String::from_utf8_lossy(&text).replace(char::is_control, " ").trim().to_owned())
}

/// What the scheduler says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// What was decided and done.
    pub state: PolicyState,
    /// Why somebody should look at it, if so; see [`Note::attention`] for all that there is to say.
    pub trouble: Option<String>,
    /// What keeps fixes away that nothing else does.
    pub waits: Waits,
}

impl Note {
    /// Why somebody should look at it now, if so. What the last run left out because it was taken back counts only while that
    /// is so: root may have let it since, or somebody has installed it.
    #[must_use]
    pub fn attention(&self, root: &Path) -> Option<String> {
        let left_out = match &self.state.last_run {
            Some(run) if self.state.mode == PolicyMode::Agent => run.barred.as_slice(),
            _ => &[],
        };
        let still = barred::still(root, left_out);
        let barred = (!still.is_empty()).then(|| {
            format!(
                "the last run left out security fixes that were taken back on this host: {}; they come with newer versions, or \
                 when root lets them (linux-patch-host taken-back says why, linux-patch-host clear NAME=VERSION lets one)",
                still.join(", ")
            )
        });
        let problems: Vec<_> = self.trouble.clone().into_iter().chain(barred).collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }
}

/// What keeps fixes away while the agent patches by itself: its own schedule, for one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Waits {
    /// Why what is to be installed is not installed now.
    cause: Option<Cause>,
    /// What is not to be installed by itself.
    excluded: Vec<PackageName>,
    /// Whether only security fixes are.
    security_only: bool,
}

impl Waits {
    fn new(policy: &Policy, decision: &Decision, now: Timestamp) -> Self {
        if policy.mode == PolicyMode::Off {
            return Self::default();
        }
        let opens = || window(policy).ok()?.next_after(now).map(|opening| opening.begins);
        Self {
            cause: decision.cause(opens()),
            excluded: policy.exclude.clone(),
            security_only: policy.updates == Updates::Security,
        }
    }

    /// Why a package is not patched that nothing else keeps from it; none if the next run does it, or this has nothing to do
    /// with it.
    #[must_use]
    pub fn cause(&self, name: &PackageName, is_security: bool) -> Option<Cause> {
        if self.security_only && !is_security {
            return None;
        }
        if self.excluded.iter().any(|excluded| excluded.name() == name.name()) {
            return Some(Cause {
                kind: CauseKind::Excluded,
                message: format!("policy.exclude leaves {name} out of what the agent installs by itself"),
                next_step: format!(
                    "take it out of policy.exclude, or install it now: POST /api/v1/patches/apply {{\"packages\": [\"{name}\"]}}"
                ),
            });
        }
        self.cause.clone()
    }
}

impl Default for Note {
    fn default() -> Self {
        let state = PolicyState {
            mode: PolicyMode::Off,
            decision: "nothing is decided yet".to_owned(),
            next_run: None,
            last_run: None,
            last_success: None,
            failures: 0,
        };
        Self { state, trouble: None, waits: Waits::default() }
    }
}

/// What the time is.
type Clock = Box<dyn Fn() -> Timestamp + Send + Sync>;

/// The agent's own scheduler.
pub struct Scheduler {
    app: App,
    jobs: Jobs,
    audit: Audit,
    host: Vec<u8>,
    memory: Memory,
    /// Since when nothing has kept a run from beginning.
    ready: Timestamp,
    clock: Clock,
}

impl Scheduler {
    /// A scheduler that goes on where the one before has ended.
    #[must_use]
    pub fn new(app: App, jobs: Jobs, audit: Audit) -> Self {
        Self::with_clock(app, jobs, audit, Box::new(Timestamp::now))
    }

    fn with_clock(app: App, jobs: Jobs, audit: Audit, clock: Clock) -> Self {
        let (host, memory) = (host(app.root()), Memory::load(app.root()));
        let ready = clock();
        Self { app, jobs, audit, host, memory, ready, clock }
    }

    /// Does what is due when it is due, until it is dropped.
    pub async fn keep(mut self) {
        let mut settings = self.app.settings_changes();
        loop {
            let wait = self.look().await;
            let job = self.memory.running.as_ref().and_then(|running| running.job);
            // Not the number of ends: that grows before an end is shown.
            let end = job.map(|job| self.jobs.ended(job));
            let ended = async {
                match end {
                    Some(end) => end.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = ended => {}
                changed = settings.changed() => {
                    if changed.is_err() {
                        // Nothing changes any more, and nothing is to be begun.
                        return;
                    }
                }
            }
        }
    }

    /// Looks once: takes note of the end of a run, decides, and begins one if that is decided. Returns how long until the
    /// next look.
    async fn look(&mut self) -> Duration {
        let now = (self.clock)();
        let settings = self.app.settings();
        let policy = &settings.policy;
        self.settle(now).await;
        let decision = self.decide(policy, now).await;
        let next = decision.next();
        let is_held = decision.is_held();
        if is_held || self.ready > now {
            self.ready = now;
        }
        let mut said = decision.to_string();
        let mut kind = decision.kind();
        let mut trouble = decision.is_trouble();
        let waits = Waits::new(policy, &decision, now);
        match decision {
            Decision::Run { until, .. } => {
                // On record when it is so: where it cannot be begun that would be said again and again.
                if let Err(why) = self.run(policy, settings.job_timeout, until, now).await {
                    kind = "refused";
                    said = format!("not now: {why}");
                    trouble = true;
                }
                self.tell(kind, &said, now).await;
            }
            // Its acceptance is on record.
            Decision::NotNow { reason: Reason::Running(_), .. } => {}
            Decision::Off | Decision::NotNow { .. } => self.tell(kind, &said, now).await,
        }
        let state = self.state(policy.mode, said, next);
        if policy.mode == PolicyMode::Agent && !trouble {
            trouble = is_held && self.memory.is_without_success(now);
        }
        let failed = match &state.last_run {
            Some(PolicyRun { error: Some(error), .. }) if state.failures > 0 => Some(error.as_str()),
            _ if state.failures > 0 => Some("see the job"),
            _ => None,
        };
        let trouble = match failed {
            _ if policy.mode == PolicyMode::Off => None,
            Some(error) => Some(format!("{}; the last run ended so: {error}", state.decision)),
            None if trouble => Some(state.decision.clone()),
            None => window(policy).is_ok_and(|window| handover::opens_too_seldom(&window, now)).then(|| {
                "policy.window opens too seldom for the agent to be relied upon: unattended-upgrades is given back between its \
                 openings; let it open once a week at least"
                    .to_owned()
            }),
        };
        self.app.note_policy(Note { state, trouble, waits });
        // A run that has begun is looked at when the window closes, and not a while after.
        let closes = self.memory.running.as_ref().map(|running| running.until).filter(|until| *until > now);
        let until = next.or(closes).and_then(|next| Duration::try_from(next.duration_since(now)).ok());
        until.unwrap_or(LOOK).clamp(PAUSE, LOOK)
    }

    async fn decide(&mut self, policy: &Policy, now: Timestamp) -> Decision {
        if policy.mode == PolicyMode::Off {
            if self.memory.since.take().is_some() {
                self.save_or_warn().await;
            }
            return Decision::Off;
        }
        if self.memory.since.is_none_or(|since| since > now) {
            self.memory.since = Some(now);
            self.memory.failures = 0;
            // Not being able to is said when it is needed.
            self.save_or_warn().await;
        }
        // Left by a clock that was ahead. Once and for good, so that what is due does not move with every look.
        if self.memory.last_attempt.is_some_and(|last| last > now) {
            self.memory.last_attempt = Some(now);
            self.save_or_warn().await;
        }
        let window = match window(policy) {
            Ok(window) => window,
            // What is in force was checked; a time zone may be gone from the host since.
            Err((key, message)) => {
                return Decision::NotNow {
                    reason: Reason::Unusable(format!("{key}: {message}")),
                    next: None,
                };
            }
        };
        let root = self.app.root().to_owned();
        let frozen = tokio::task::spawn_blocking(move || frozen(&root)).await.unwrap_or_default();
        decide(&Situation {
            now,
            policy,
            window: &window,
            host: &self.host,
            memory: &self.memory,
            ready: self.ready,
            frozen: frozen.as_deref(),
            rollback_failed: self.app.rollback_failed(),
        })
    }

    /// Takes note of what became of the run that was begun.
    async fn settle(&mut self, now: Timestamp) {
        let Some(running) = &self.memory.running else { return };
        let Some(job) = self.job_of(running) else {
            // It was never accepted, or was forgotten meanwhile.
            self.memory.running = None;
            return self.save_or_warn().await;
        };
        if !job.status.is_terminal() {
            let (is_late, is_called_off) = (now >= running.until, running.called_off);
            if running.job.is_none() {
                self.memory.began(job.job_id);
                self.save_or_warn().await;
            }
            // One that waits, here or for its turn at the root side, must not begin when the window has closed.
            if is_late && !is_called_off && job.phase.is_none_or(Phase::is_cancellable) {
                match self.jobs.cancel(job.job_id, &requester(Uuid::now_v7())).await {
                    Ok(_) => {
                        if let Some(running) = &mut self.memory.running {
                            running.called_off = true;
                        }
                        self.save_or_warn().await;
                    }
                    Err(error) => {
                        tracing::warn!(job = %job.job_id, error = error.message, "a run of the policy is late, and not called off");
                    }
                }
            }
            return;
        }
        let plan = self.jobs.get(job.job_id).await.and_then(|whole| whole.plan);
        let barred = plan.map_or_else(Vec::new, |plan| plan.barred);
        self.memory.ended(&job, barred.iter().map(TakenBack::named).collect(), now);
        self.save_or_warn().await;
    }

    fn job_of(&self, running: &Running) -> Option<Job> {
        match running.job {
            Some(id) => self.jobs.summary(id),
            None => {
                let kind = Some("apply_patches".to_owned());
                let jobs = self.jobs.list(&JobFilter { kind, ..JobFilter::default() }).jobs;
                jobs.into_iter().find(|job| {
                    job.requested_by.request_id == running.request && job.requested_by.fingerprint.is_empty()
                })
            }
        }
    }

    /// Begins a run.
    async fn run(
        &mut self,
        policy: &Policy,
        limit: Duration,
        until: Timestamp,
        now: Timestamp,
    ) -> Result<(), String> {
        let request = Uuid::now_v7();
        self.memory.running = Some(Running { request, job: None, began: now, until, called_off: false });
        if let Err(error) = self.save().await {
            let why = format!(
                "that a run begins cannot be kept in {}: {error}",
                Memory::path(self.app.root()).display()
            );
            self.memory.refused(&why, now);
            return Err(why);
        }
        let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
        let limits = Limits {
            timeout_seconds: limit.min(left).as_secs().max(LEAST),
            lock_wait_seconds: Limits::default().lock_wait_seconds,
        };
        let submission = Submission {
            operation: policy.operation(),
            limits: Some(limits),
            options: ChangeOptions::default(),
            requester: requester(request),
            request: serde_json::json!({
                "policy": "agent",
                "security_only": policy.updates == Updates::Security,
                "exclude": policy.exclude,
                "until": until,
            }),
            if_plan: None,
            not_after: Some(until),
            idempotency: None,
        };
        match self.jobs.submit(submission).await {
            Ok(submitted) => {
                self.memory.began(submitted.job.job_id);
                self.save_or_warn().await;
                Ok(())
            }
            Err(error) => {
                self.memory.refused(&error.message, now);
                self.save_or_warn().await;
                Err(error.message)
            }
        }
    }

    /// Records what was decided, unless that was recorded last. Of one kind not more often than now and then, however its words
    /// change: what is written in a freeze file, for one, is not this program's.
    async fn tell(&mut self, kind: &str, what: &str, now: Timestamp) {
        let memory = &self.memory;
        let is_lately = memory.told_at.is_some_and(|at| at <= now && now.duration_since(at) < QUIET);
        let is_news = match &memory.told {
            Some(told) if told == what => false,
            Some(_) => !is_lately || memory.told_kind.as_deref() != Some(kind),
            // That nothing is to be done by itself is no news on a host where that was never otherwise.
            None => what != Decision::Off.to_string(),
        };
        if !is_news {
            return;
        }
        tracing::info!("policy: {what}");
        let event = AuditKind::PolicyDecided { what: what.to_owned() };
        self.audit.record_later(AuditEvent::new(event, &Caller::local()));
        self.memory.told = Some(what.to_owned());
        self.memory.told_kind = Some(kind.to_owned());
        self.memory.told_at = Some(now);
        self.save_or_warn().await;
    }

    async fn save(&self) -> std::io::Result<()> {
        let (memory, root) = (self.memory.clone(), self.app.root().to_owned());
        tokio::task::spawn_blocking(move || memory.save(&root)).await.map_err(std::io::Error::other)?
    }

    async fn save_or_warn(&self) {
        if let Err(error) = self.save().await {
            tracing::warn!(%error, "what the policy has done is not kept over a restart");
        }
    }

    fn state(&self, mode: PolicyMode, decision: String, next: Option<Timestamp>) -> PolicyState {
        let memory = &self.memory;
        let running = memory.running.as_ref().map(|running| PolicyRun {
            job_id: running.job,
            started_at: running.began,
            ended_at: None,
            status: running.job.and_then(|id| self.jobs.summary(id)).map(|job| job.status),
            outcome: None,
            error: None,
            barred: memory.last.as_ref().map_or_else(Vec::new, |last| last.barred.clone()),
        });
        PolicyState {
            mode,
            decision,
            next_run: next,
            last_run: running.or_else(|| memory.last.clone()),
            last_success: memory.last_success,
            failures: memory.failures,
        }
    }
}

/// Who asks.
fn requester(request_id: Uuid) -> Requester {
    Requester {
        identity: IDENTITY.to_owned(),
        fingerprint: String::new(),
        address: String::new(),
        request_id,
    }
}
