//! Reboots: they wait beside all other jobs, and follow those of patches.

use patch_types::{
    ErrorCode, EventKind, JobStatus, Operation, Outcome, Phase, Plan, Query,
    event::QueryResult,
    executor::RequestBody,
    operation::{ApplyPatches, Reboot},
    reboot::WindowStatus,
};

use super::{
    super::{JobSettings, Submission, testing},
    result,
};
use testing::{Root, end_of, ended, settings, submission, until};

fn reboot() -> Submission {
    Submission { operation: Operation::Reboot(Reboot::default()), ..submission() }
}

fn apply(allow_reboot: bool) -> Submission {
    let request = serde_json::json!({"allow_reboot": allow_reboot, "reboot_delay_minutes": 2});
    Submission { operation: Operation::ApplyPatches(ApplyPatches::default()), request, ..submission() }
}

fn open() -> WindowStatus {
    let next = "2100-01-03T04:15:00Z".parse().unwrap();
    WindowStatus { has_window: true, next: Some(next), ..WindowStatus::default() }
}

/// The end of a job that changed one package, and what asks for a reboot.
fn changed(needs_reboot: bool) -> [EventKind; 2] {
    let plan = Plan { needs_reboot, ..Plan::of(Vec::new()) };
    let EventKind::Ended(mut end) = ended(JobStatus::Completed, Outcome::Applied) else { panic!() };
    end.results = vec![result("aa")];
    [EventKind::Planned { plan }, EventKind::Ended(end)]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_that_waits_takes_no_place_and_says_until_when() {
    let root = Root::new();
    let jobs = root.open_with(JobSettings { max_active: 1, ..settings() }).await;
    let waiting = jobs.submit(reboot()).await.unwrap().job.job_id;
    root.begun(waiting).await;
    root.emit(waiting, EventKind::Phase { phase: Phase::Waiting });
    let at = "2100-01-03T04:15:00Z".parse().unwrap();
    root.emit(waiting, EventKind::Scheduled { until: Some(at) });
    until(&jobs, waiting, |job| job.scheduled_for == Some(at)).await;
    // The one place is free, and another reboot needs none.
    let first = jobs.submit(submission()).await.unwrap().job.job_id;
    root.begun(first).await;
    assert_eq!(jobs.counts().active, 1);
    let second = jobs.submit(submission()).await.unwrap().job.job_id;
    let another = jobs.submit(reboot()).await.unwrap().job.job_id;
    root.begun(another).await;
    assert_eq!((jobs.counts().active, jobs.counts().pending), (1, 1));
    jobs.shutdown().await;
    let jobs = root.open_with(JobSettings { max_active: 1, ..settings() }).await;
    assert_eq!(jobs.counts().active, 1);
    root.complete(first);
    root.begun(second).await;
    root.emit(waiting, EventKind::Phase { phase: Phase::Rebooting });
    until(&jobs, waiting, |job| job.phase == Some(Phase::Rebooting) && job.scheduled_for.is_none()).await;
    let refusal = jobs.cancel(waiting, &testing::requester()).await.unwrap_err();
    assert!(refusal.code == ErrorCode::JobConflict && refusal.message.contains("rebooted"), "{refusal:?}");
    root.complete(waiting);
    end_of(&jobs, waiting).await;
    assert_eq!(jobs.counts().active, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_follows_what_asks_for_one_and_once() {
    let root = Root::new();
    root.manners(|m| m.answer = Some(QueryResult::RebootWindow(open())));
    let jobs = root.open().await;
    for (allowed, needed) in [(false, true), (true, false), (true, true)] {
        let id = jobs.submit(apply(allowed)).await.unwrap().job.job_id;
        root.begun(id).await;
        changed(needed).into_iter().for_each(|event| root.emit(id, event));
        let job = end_of(&jobs, id).await;
        assert_eq!(job.reboot.is_some(), allowed);
        let Some(reboot) = job.reboot else { continue };
        assert_eq!((reboot.needed, reboot.job_id.is_some()), (needed, needed), "{reboot:?}");
        let Some(follower) = reboot.job_id else { continue };
        root.begun(follower).await;
        let requests = root.requests();
        let request = requests.iter().find(|request| request.id == follower).unwrap();
        assert!(matches!(&request.body, RequestBody::Change { operation: Operation::Reboot(reboot), .. }
            if !reboot.force && reboot.delay_seconds == 120));
        let followed = jobs.get(follower).await.unwrap();
        assert_eq!(followed.requested_by, job.requested_by);
        // Whoever comes to the job's end again finds the same one.
        let again = Submission {
            idempotency: Some(crate::jobs::Idempotency {
                key: format!("reboot-after-{id}"),
                body_sha256: {
                    use sha2::Digest as _;
                    hex::encode(sha2::Sha256::digest(format!("reboot-after-{id}")))
                },
            }),
            ..apply(true)
        };
        assert_eq!(jobs.submit(again).await.unwrap().job.job_id, follower);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_window_none_is_queued_and_that_is_said() {
    let root = Root::new();
    root.manners(|m| m.answer = Some(QueryResult::RebootWindow(WindowStatus::default())));
    let jobs = root.open().await;
    let id = jobs.submit(apply(true)).await.unwrap().job.job_id;
    root.begun(id).await;
    changed(true).into_iter().for_each(|event| root.emit(id, event));
    let reboot = end_of(&jobs, id).await.reboot.unwrap();
    assert!(reboot.needed && reboot.job_id.is_none(), "{reboot:?}");
    assert!(reboot.message.contains("no reboot window is declared"), "{reboot:?}");
    let asked = |body: &RequestBody| matches!(body, RequestBody::Query { query: Query::RebootWindow });
    assert!(root.requests().iter().any(|request| asked(&request.body)));
    assert_eq!(jobs.counts().pending, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_says_in_which_boot_and_when_it_was_asked_for() {
    let root = Root::new();
    root.manners(|m| m.refuse = Some((ErrorCode::ServiceUnhealthy, "not now")));
    let first = root.open().await;
    let operation = Operation::Reboot(Reboot { boot: Some("first".into()), ..Reboot::default() });
    let job = first.submit(Submission { operation, ..submission() }).await.unwrap().job;
    root.begun(job.job_id).await;
    first.shutdown().await;
    // However late it is handed over.
    root.manners(|m| m.refuse = None);
    let second = root.open().await;
    root.until(|requests| requests.iter().filter(|request| request.id == job.job_id).count() > 1).await;
    for request in root.requests().iter().filter(|request| request.id == job.job_id) {
        let RequestBody::Change { operation: Operation::Reboot(reboot), .. } = &request.body else {
            panic!()
        };
        assert_eq!((reboot.boot.as_deref(), reboot.at), (Some("first"), Some(job.created_at)));
    }
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_that_is_still_queued_is_not_given_up() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = jobs.submit(reboot()).await.unwrap().job.job_id;
    let queued = patch_types::reboot::QueuedReboot {
        job_id: id,
        by: "ops".into(),
        reason: None,
        force: true,
        asked_at: "2026-01-04T04:15:00Z".parse().unwrap(),
        not_before: "2026-01-04T04:15:00Z".parse().unwrap(),
        is_under_way: false,
    };
    root.manners(|m| {
        let status = WindowStatus { queued: vec![queued], ..WindowStatus::default() };
        m.answer = Some(QueryResult::RebootWindow(status));
    });
    root.begun(id).await;
    root.die(id);
    let settled = |requests: &[patch_types::executor::Request]| {
        requests.iter().filter(|request| request.body == RequestBody::Settle { job: id }).count()
    };
    root.until(|requests| settled(requests) > 4).await;
    assert!(!jobs.get(id).await.unwrap().status.is_terminal());
    // It is not queued any more, and nobody can say what came of it.
    root.manners(|m| m.answer = Some(QueryResult::RebootWindow(WindowStatus::default())));
    let job = end_of(&jobs, id).await;
    assert_eq!((job.status, job.outcome), (JobStatus::Failed, None));
    jobs.shutdown().await;
}
