use std::sync::{Arc, Mutex};

use jiff::SignedDuration;
use patch_types::{ErrorCode, JobId, JobStatus, Outcome, executor::RequestBody};
use proptest::prelude::*;

use super::{memory::Memory, *};
use crate::{
    audit::Script,
    http::tests::application,
    jobs::testing::{Root, ended, submission, within},
};

/// Every night from 2 to 6, at once.
const NIGHTLY: &str = "mode: agent, window: {days: \"*\", hour: 2, duration_minutes: 240}, spread_minutes: 0";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A daemon with a clock that is set.
struct Daemon {
    app: App,
    jobs: Jobs,
    audit: Script,
    clock: Arc<Mutex<Timestamp>>,
    scheduler: Scheduler,
}

impl Daemon {
    async fn new(root: &Root, policy: &str, now: &str) -> Self {
        let (app, jobs) = application(root, &format!("policy: {{{policy}}}\n")).await;
        let clock = Arc::new(Mutex::new(at(now)));
        let audit = Script::default();
        let scheduler = scheduler(&app, &jobs, &audit, &clock);
        Self { app, jobs, audit, clock, scheduler }
    }

    /// As if it were stopped and started.
    fn restart(&mut self) {
        self.scheduler = scheduler(&self.app, &self.jobs, &self.audit, &self.clock);
    }

    async fn look_at(&mut self, now: &str) -> PolicyState {
        *self.clock.lock().unwrap() = at(now);
        within(self.scheduler.look()).await;
        self.app.policy().state.clone()
    }

    fn configure(&self, root: &Root, policy: &str) {
        let text = format!("policy: {{{policy}}}\n");
        let settings = config::parse(&text, root.path(), Path::new("config.yaml")).unwrap();
        self.app.put_settings(Arc::new(settings));
    }

    fn said(&self) -> Vec<String> {
        let what = |event: AuditEvent| match event.kind {
            AuditKind::PolicyDecided { what } => Some(what),
            _ => None,
        };
        self.audit.events().into_iter().filter_map(what).collect()
    }

    /// Lets the run that has begun end.
    async fn end(&self, root: &Root, state: &PolicyState, status: JobStatus, outcome: Outcome) -> JobId {
        let id = state.last_run.as_ref().unwrap().job_id.unwrap();
        root.until(|requests| {
            requests.iter().any(|r| r.id == id && matches!(r.body, RequestBody::Change { .. }))
        })
        .await;
        root.emit(id, ended(status, outcome));
        root.die(id);
        within(self.jobs.ended(id)).await;
        id
    }
}

fn scheduler(app: &App, jobs: &Jobs, audit: &Script, clock: &Arc<Mutex<Timestamp>>) -> Scheduler {
    let clock = Arc::clone(clock);
    let clock = Box::new(move || *clock.lock().unwrap());
    Scheduler::with_clock(app.clone(), jobs.clone(), audit.audit(), clock)
}

#[tokio::test]
async fn each_opening_has_one_run_and_what_is_decided_is_said_once() {
    let root = Root::new();
    let mut daemon = Daemon::new(&root, NIGHTLY, "2026-01-01T00:00:00Z").await;
    let state = daemon.look_at("2026-01-01T00:00:00Z").await;
    assert_eq!((state.next_run, state.last_run), (Some(at("2026-01-01T02:00:00Z")), None));
    let (name, waits) = ("aa".parse().unwrap(), daemon.app.policy().waits.clone());
    let cause = waits.cause(&name, true).unwrap();
    assert!(
        cause.kind == CauseKind::WaitsForWindow && cause.message.contains("2026-01-01T02:00:00Z"),
        "{cause:?}"
    );
    assert_eq!(waits.cause(&name, false), None, "it is not this that keeps it away");
    daemon.look_at("2026-01-01T01:59:59Z").await;
    assert_eq!(daemon.said(), ["not now: this host's turn in the window is at 2026-01-01T02:00:00Z"]);

    let state = daemon.look_at("2026-01-01T02:00:00Z").await;
    let began = daemon.look_at("2026-01-01T02:00:30Z").await;
    assert_eq!(state.last_run.as_ref().map(|r| r.job_id), began.last_run.as_ref().map(|r| r.job_id));
    let id = daemon.end(&root, &state, JobStatus::Completed, Outcome::Applied).await;
    let done = daemon.look_at("2026-01-01T02:10:00Z").await;
    assert_eq!(done.next_run, Some(at("2026-01-02T02:00:00Z")));
    assert_eq!(done.last_run.unwrap().outcome, Some(Outcome::Applied));
    assert!(done.last_success.is_some() && done.failures == 0 && daemon.app.policy().trouble.is_none());
    assert_eq!(root.changes(), [id], "one job, and no more");
    let job = daemon.jobs.get(id).await.unwrap();
    assert_eq!((job.requested_by.identity.as_str(), job.requested_by.fingerprint.as_str()), (IDENTITY, ""));
    let RequestBody::Change { operation, limits, .. } = &root.requests()[0].body else { panic!() };
    assert_eq!(*operation, daemon.app.settings().policy.operation());
    assert!(limits.timeout_seconds <= 30 * 60);
    assert_eq!(daemon.said().len(), 3, "{:?}", daemon.said());

    // The host is off in the second night, and comes up in the third.
    daemon.restart();
    let state = daemon.look_at("2026-01-03T05:00:00Z").await;
    daemon.end(&root, &state, JobStatus::Completed, Outcome::Unchanged).await;
    assert!(daemon.said().iter().any(|said| said.contains("an earlier opening went by")));
    daemon.look_at("2026-01-03T05:30:00Z").await;
    assert_eq!(root.changes().len(), 2);
}

#[tokio::test]
async fn a_run_that_leaves_a_fix_out_is_no_success_and_no_failure() {
    let root = Root::new();
    let mut daemon = Daemon::new(&root, NIGHTLY, "2026-01-01T00:00:00Z").await;
    let mut successes = Vec::new();
    for (night, barred) in
        [("2026-01-01", false), ("2026-01-02", true), ("2026-01-03", true), ("2026-01-04", false)]
    {
        let state = daemon.look_at(&format!("{night}T02:00:00Z")).await;
        let id = state.last_run.as_ref().unwrap().job_id.unwrap();
        root.begun(id).await;
        let mut plan = patch_types::Plan::of(Vec::new());
        if barred {
            plan.barred.push(TakenBack {
                name: "libssl3".parse().unwrap(),
                architecture: "amd64".parse().unwrap(),
                version: "3.0.15".parse().unwrap(),
                job: id,
                at: at("2025-12-31T00:00:00Z"),
                reason: "nobody confirmed it".to_owned(),
            });
        }
        root.emit(id, patch_types::EventKind::Planned { plan });
        daemon.end(&root, &state, JobStatus::Completed, Outcome::Unchanged).await;
        let done = daemon.look_at(&format!("{night}T02:10:00Z")).await;
        let run = done.last_run.unwrap();
        assert_eq!((run.status, done.failures), (Some(JobStatus::Completed), 0), "{night}");
        // What the root side keeps away is in force.
        let pins = root.path().join(patch_types::executor::TAKEN_BACK_PINS);
        std::fs::create_dir_all(pins.parent().unwrap()).unwrap();
        std::fs::write(&pins, "\nPackage: libssl3:amd64\nPin: version 3.0.15\nPin-Priority: -1\n").unwrap();
        let attention = || daemon.app.policy().attention(root.path());
        let success = done.last_success.unwrap();
        if barred {
            assert_eq!(run.barred, ["libssl3=3.0.15"], "{night}");
            assert!(attention().unwrap().contains("taken back on this host: libssl3=3.0.15;"), "{night}");
            std::fs::remove_file(&pins).unwrap();
        } else {
            assert_eq!(run.barred.len(), 0, "{night}");
        }
        assert_eq!(attention(), None, "{night}: nothing is barred any more");
        daemon.restart();
        let kept = daemon.look_at(&format!("{night}T02:20:00Z")).await;
        assert_eq!(
            (kept.last_success, kept.last_run.unwrap().barred.len()),
            (Some(success), usize::from(barred))
        );
        successes.push(success);
    }
    assert!(
        successes[0] == successes[1] && successes[1] == successes[2] && successes[2] < successes[3],
        "{successes:?}"
    );
}

#[tokio::test]
async fn a_failure_is_tried_again_later_and_not_after_the_window() {
    let root = Root::new();
    let mut daemon = Daemon::new(&root, NIGHTLY, "2026-01-01T00:00:00Z").await;
    daemon.look_at("2026-01-01T00:00:00Z").await;
    let state = daemon.look_at("2026-01-01T02:00:00Z").await;
    daemon.end(&root, &state, JobStatus::Failed, Outcome::RolledBack).await;
    let state = daemon.look_at("2026-01-01T02:05:00Z").await;
    assert_eq!((state.failures, state.next_run), (1, Some(at("2026-01-01T02:20:00Z"))));
    assert!(daemon.app.policy().trouble.is_some());
    let state = daemon.look_at("2026-01-01T02:20:00Z").await;
    daemon.end(&root, &state, JobStatus::Failed, Outcome::Unchanged).await;
    // The second wait is longer, and over a restart.
    daemon.look_at("2026-01-01T02:21:00Z").await;
    daemon.restart();
    let state = daemon.look_at("2026-01-01T02:22:00Z").await;
    assert_eq!((state.failures, state.next_run), (2, Some(at("2026-01-01T02:51:00Z"))));
    let state = daemon.look_at("2026-01-01T06:00:00Z").await;
    assert_eq!(state.next_run, Some(at("2026-01-02T02:00:00Z")));
    // One that somebody calls off is not begun again in the same night.
    let state = daemon.look_at("2026-01-02T02:00:00Z").await;
    daemon.end(&root, &state, JobStatus::Cancelled, Outcome::Unchanged).await;
    let state = daemon.look_at("2026-01-02T02:30:00Z").await;
    assert_eq!((state.failures, state.next_run), (0, Some(at("2026-01-03T02:00:00Z"))));
    assert_eq!(root.changes().len(), 3);
}

#[tokio::test]
async fn a_run_that_was_begun_is_known_after_a_restart_whenever_that_was() {
    let root = Root::new();
    let mut daemon = Daemon::new(&root, NIGHTLY, "2026-01-01T02:00:00Z").await;
    let state = daemon.look_at("2026-01-01T02:00:00Z").await;
    let id = state.last_run.unwrap().job_id.unwrap();
    // Its job was accepted, and that was not written down.
    let mut memory = Memory::load(root.path());
    memory.running.as_mut().unwrap().job = None;
    memory.last_attempt = None;
    memory.save(root.path()).unwrap();
    daemon.restart();
    let state = daemon.look_at("2026-01-01T02:01:00Z").await;
    assert_eq!(state.last_run.unwrap().job_id, Some(id));
    assert_eq!(daemon.jobs.list(&JobFilter::default()).total, 1);
    // No job was accepted at all: then there was no run.
    memory.running.as_mut().unwrap().request = Uuid::nil();
    memory.save(root.path()).unwrap();
    daemon.restart();
    let state = daemon.look_at("2026-01-01T02:02:00Z").await;
    assert_ne!(state.last_run.unwrap().job_id, Some(id));
    assert_eq!(daemon.jobs.list(&JobFilter::default()).total, 2);
}

#[tokio::test]
async fn nothing_is_begun_in_a_pause_nor_while_the_host_is_frozen_nor_when_it_is_off() {
    let root = Root::new();
    let paused = format!("{NIGHTLY}, paused: true");
    let mut daemon = Daemon::new(&root, &paused, "2026-01-01T03:00:00Z").await;
    let state = daemon.look_at("2026-01-01T03:00:00Z").await;
    assert_eq!((state.decision.as_str(), state.next_run), ("not now: policy.paused is set", None));
    let kind = |name: &str, daemon: &Daemon| {
        daemon.app.policy().waits.cause(&name.parse().unwrap(), true).map(|cause| cause.kind)
    };
    assert_eq!(kind("aa", &daemon), Some(CauseKind::Paused));
    daemon.configure(&root, &format!("{paused}, exclude: [aa]"));
    daemon.look_at("2026-01-01T03:00:00Z").await;
    assert_eq!(
        (kind("aa", &daemon), kind("bb", &daemon)),
        (Some(CauseKind::Excluded), Some(CauseKind::Paused))
    );
    daemon.configure(&root, &format!("{NIGHTLY}, paused_until: 2026-01-01T04:00:00Z"));
    let state = daemon.look_at("2026-01-01T03:00:00Z").await;
    assert_eq!(state.next_run, Some(at("2026-01-01T04:00:00Z")));
    daemon.configure(&root, NIGHTLY);
    let freeze = root.path().join("etc/linux_patch_api/freeze");
    std::fs::create_dir_all(freeze.parent().unwrap()).unwrap();
    std::fs::write(&freeze, "until\nMonday").unwrap();
    let state = daemon.look_at("2026-01-01T03:00:00Z").await;
    assert_eq!(state.decision, "not now: the host is frozen by its freeze file: until Monday");
    // Another file is named.
    std::fs::write(root.path().join("etc/linux_patch_api/ceiling.yaml"), "freeze_file: /run/frozen\n")
        .unwrap();
    assert_eq!(frozen(root.path()), None);
    std::fs::create_dir(root.path().join("run/frozen")).unwrap();
    assert_eq!(frozen(root.path()), Some(String::new()));
    daemon.configure(&root, "mode: \"off\"");
    let state = daemon.look_at("2026-01-01T03:00:00Z").await;
    assert!(state.decision.contains("policy.mode is off") && root.changes().is_empty());
    assert!(daemon.app.policy().trouble.is_none());
    // Switched on again, what went by meanwhile is not missed.
    std::fs::remove_dir(root.path().join("run/frozen")).unwrap();
    daemon.configure(&root, NIGHTLY);
    let state = daemon.look_at("2026-01-05T12:00:00Z").await;
    assert_eq!(state.decision, "not now: this host's turn in the window is at 2026-01-06T02:00:00Z");
    daemon.configure(&root, "mode: agent, window: {rule: \"FREQ=MONTHLY;BYMONTHDAY=30;BYMONTH=2;BYHOUR=4\"}");
    daemon.look_at("2026-01-05T12:00:00Z").await;
    assert!(daemon.app.policy().trouble.as_ref().unwrap().contains("never opens"));
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_begun_and_what_is_refused_is_tried_again() {
    let root = Root::new();
    let mut daemon = Daemon::new(&root, NIGHTLY, "2026-01-01T02:00:00Z").await;
    let state_dir = root.path().join(config::STATE_DIR);
    let blocked = state_dir.join(".policy.json.new");
    std::fs::create_dir(&blocked).unwrap();
    let state = daemon.look_at("2026-01-01T02:00:00Z").await;
    assert!(state.decision.contains("cannot be kept in") && root.changes().is_empty(), "{state:?}");
    // It is tried again less and less often, and not said with every look.
    for minute in 1..15 {
        let state = daemon.look_at(&format!("2026-01-01T02:{minute:02}:00Z")).await;
        assert_eq!((state.failures, state.next_run), (1, Some(at("2026-01-01T02:15:00Z"))));
    }
    assert!(daemon.said().len() == 2 && !daemon.said()[0].contains("installed now"), "{:?}", daemon.said());
    std::fs::remove_dir(&blocked).unwrap();
    root.audit.fail(true);
    daemon.jobs.shutdown().await;
    let state = daemon.look_at("2026-01-01T02:15:00Z").await;
    assert_eq!(state.failures, 2);
    assert!(state.decision.contains("stopping"), "{state:?}");
    let state = daemon.look_at("2026-01-01T02:16:00Z").await;
    assert_eq!(state.next_run, Some(at("2026-01-01T02:45:00Z")));
}

#[tokio::test]
async fn a_run_that_waits_behind_others_does_not_begin_when_the_window_has_closed() {
    let root = Root::new();
    let mut daemon = Daemon::new(&root, NIGHTLY, "2026-01-01T05:59:00Z").await;
    let settings = crate::jobs::JobSettings { max_active: 1, ..crate::jobs::testing::settings() };
    daemon.jobs.reconfigure(settings);
    let other = within(daemon.jobs.submit(submission())).await.unwrap().job.job_id;
    root.begun(other).await;
    let state = daemon.look_at("2026-01-01T05:59:00Z").await;
    let id = state.last_run.unwrap().job_id.unwrap();
    daemon.look_at("2026-01-01T06:00:00Z").await;
    assert_eq!(daemon.jobs.summary(id).unwrap().status, JobStatus::Cancelled);
    let state = daemon.look_at("2026-01-01T06:01:00Z").await;
    assert_eq!(state.next_run, Some(at("2026-01-02T02:00:00Z")));
    assert_eq!(root.changes(), [other]);
    assert_eq!(state.failures, 1, "nobody has called it off, and nothing was installed");
}

#[tokio::test]
async fn a_run_that_waits_for_its_turn_at_the_root_side_is_called_off_when_the_window_closes() {
    let root = Root::new();
    let mut daemon = Daemon::new(&root, NIGHTLY, "2026-01-01T05:59:30Z").await;
    let state = daemon.look_at("2026-01-01T05:59:30Z").await;
    let id = state.last_run.unwrap().job_id.unwrap();
    root.begun(id).await;
    let mut scheduler = scheduler(&daemon.app, &daemon.jobs, &daemon.audit, &daemon.clock);
    assert_eq!(within(scheduler.look()).await, Duration::from_secs(30), "it looks when the window closes");
    daemon.look_at("2026-01-01T06:00:00Z").await;
    daemon.look_at("2026-01-01T06:01:00Z").await;
    let cancels = |requests: &[patch_types::executor::Request]| {
        requests.iter().filter(|r| matches!(r.body, RequestBody::Cancel { job } if job == id)).count()
    };
    assert_eq!(cancels(&root.requests()), 1);
}

#[tokio::test]
async fn what_a_clock_that_was_ahead_has_left_is_put_right_once() {
    let root = Root::new();
    let memory = Memory {
        since: Some(at("2025-12-01T00:00:00Z")),
        last_attempt: Some(at("2036-01-01T00:00:00Z")),
        ..Memory::default()
    };
    let mut daemon = Daemon::new(&root, NIGHTLY, "2026-01-01T00:00:00Z").await;
    memory.save(root.path()).unwrap();
    daemon.restart();
    for minute in 0..30 {
        let state = daemon.look_at(&format!("2026-01-01T00:{minute:02}:00Z")).await;
        assert_eq!(state.next_run, Some(at("2026-01-01T02:00:00Z")));
    }
    assert_eq!(daemon.said().len(), 1, "{:?}", daemon.said());
    assert_eq!(Memory::load(root.path()).last_attempt, Some(at("2026-01-01T00:00:00Z")));
}

#[tokio::test]
async fn a_forgotten_freeze_file_is_trouble_and_is_not_recorded_with_every_word() {
    let root = Root::new();
    let mut daemon = Daemon::new(&root, NIGHTLY, "2026-01-01T12:00:00Z").await;
    let freeze = root.path().join("etc/linux_patch_api/freeze");
    std::fs::create_dir_all(freeze.parent().unwrap()).unwrap();
    for minute in 0..10 {
        std::fs::write(&freeze, format!("{minute}")).unwrap();
        daemon.look_at(&format!("2026-01-01T12:{minute:02}:00Z")).await;
    }
    assert_eq!(daemon.said().len(), 1, "{:?}", daemon.said());
    daemon.look_at("2026-01-04T11:59:00Z").await;
    assert_eq!(daemon.app.policy().trouble, None);
    daemon.look_at("2026-01-04T12:00:00Z").await;
    assert!(daemon.app.policy().trouble.as_ref().unwrap().contains("frozen"));
}

#[tokio::test]
async fn a_window_that_opens_once_a_month_is_trouble() {
    let root = Root::new();
    let monthly = "mode: agent, window: {rule: \"FREQ=MONTHLY;BYMONTHDAY=3;BYHOUR=4\"}";
    let mut daemon = Daemon::new(&root, monthly, "2026-01-01T12:00:00Z").await;
    daemon.look_at("2026-01-01T12:00:00Z").await;
    assert!(daemon.app.policy().trouble.as_ref().unwrap().contains("too seldom"));
}

#[tokio::test]
async fn a_refusal_of_the_root_side_is_a_failure_with_its_reason() {
    let root = Root::new();
    root.manners(|m| m.refuse = Some((ErrorCode::AuthzForbidden, "not on this host")));
    let mut daemon = Daemon::new(&root, NIGHTLY, "2026-01-01T02:00:00Z").await;
    let state = daemon.look_at("2026-01-01T02:00:00Z").await;
    within(daemon.jobs.ended(state.last_run.unwrap().job_id.unwrap())).await;
    let state = daemon.look_at("2026-01-01T02:01:00Z").await;
    assert_eq!(state.failures, 1);
    assert!(daemon.app.policy().trouble.as_ref().unwrap().contains("not on this host"));
}

#[tokio::test]
async fn a_changed_configuration_is_looked_at_at_once() {
    let root = Root::new();
    let daemon = Daemon::new(&root, "mode: \"off\"", "2026-01-01T02:00:00Z").await;
    let Daemon { app, jobs, scheduler, .. } = daemon;
    let keeping = tokio::spawn(scheduler.keep());
    let settings = config::parse(&format!("policy: {{{NIGHTLY}}}\n"), root.path(), Path::new("x")).unwrap();
    app.put_settings(Arc::new(settings));
    root.until(|requests| requests.iter().any(|r| matches!(r.body, RequestBody::Change { .. }))).await;
    // So is the end of the run.
    let id = root.changes()[0];
    root.complete(id);
    within(async {
        while app.policy().state.last_run.as_ref().is_none_or(|run| run.ended_at.is_none()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    keeping.abort();
    assert_eq!(jobs.list(&JobFilter::default()).total, 1);
}

proptest! {
    #[test]
    fn whatever_the_file_holds_it_is_read_or_passed_over(text: Vec<u8>, since: Option<i64>, failures: u32, told: Option<String>) {
        let root = tempfile::tempdir().unwrap();
        let path = Memory::path(root.path());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
        Memory::load(root.path());
        let since = since.and_then(|second| Timestamp::from_second(second).ok());
        let memory = Memory { since, failures, told, ..Memory::default() };
        memory.save(root.path()).unwrap();
        prop_assert_eq!(Memory::load(root.path()), memory);
    }

    /// Whatever is remembered, no run begins outside the window, nor in a pause.
    #[test]
    fn runs_begin_within_the_window_alone(now in 1_700_000_000..1_900_000_000_i64, since in prop::option::of(0..2_000_000_000_i64), last in prop::option::of(0..2_000_000_000_i64), failures in 0..40_u32, pause in prop::option::of(1_700_000_000..1_900_000_000_i64), spread in 0..1440_u32) {
        let second = |second: i64| Timestamp::from_second(second).unwrap();
        let policy = Policy { mode: PolicyMode::Agent, paused_until: pause.map(second), spread_minutes: spread, ..Policy::default() };
        let window = Window::simple("Mon-Fri", "2", "30", "90").unwrap();
        let memory = Memory { since: since.map(second), last_attempt: last.map(second), failures, ..Memory::default() };
        let now = second(now);
        let decision = decide(&Situation {
            now, policy: &policy, window: &window, host: b"host", memory: &memory, ready: now, frozen: None, rollback_failed: None,
        });
        match decision {
            Decision::Run { until, .. } => {
                let opening = window.open_at(now);
                prop_assert_eq!(opening.map(|o| o.ends), Some(until));
                prop_assert!(!policy.is_paused(now));
            }
            Decision::NotNow { next, .. } => {
                let next = next.unwrap();
                prop_assert!(next > now && window.open_at(next).is_some());
                prop_assert!(next.duration_since(now) < SignedDuration::from_hours(24 * 365 * 7));
            }
            Decision::Off => prop_assert!(false),
        }
    }
}
