//! Going back: how a change is to be made, its confirmation, and what is shown of its way back.

use std::{
    fs,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use patch_audit::AuditKind;
use patch_types::{
    ChangeOptions, ErrorCode, EventKind, Finding, FindingKind, Grade, JobId, JobStatus, OnFailure, Operation,
    Outcome, Phase, RehearsalReport, RehearsalVerdict, WayBack, WentBack,
    api::Requester,
    event::Ended,
    executor::RequestBody,
    operation::{Remove, Rollback},
    rollback::PackageWayBack,
};
use serde_json::Value;
use uuid::Uuid;

use super::{result, submitted};
use crate::jobs::{
    JobFilter, JobSettings, Jobs, NEW_CONNECTION, Submission,
    testing::{Root, end_of, ended, requester, settings, submission, until, within},
};

fn options() -> ChangeOptions {
    ChangeOptions { on_failure: OnFailure::All, confirm_within: Some(60), rehearse: None }
}

/// A job that waits to be confirmed.
async fn confirming(root: &Root, jobs: &Jobs) -> JobId {
    let id = jobs.submit(Submission { options: options(), ..submission() }).await.unwrap().job.job_id;
    root.begun(id).await;
    root.emit(id, EventKind::Phase { phase: Phase::Confirming });
    root.emit(id, EventKind::Confirm { until: Timestamp::MAX });
    until(jobs, id, |job| job.confirm_by.is_some()).await;
    id
}

fn confirmations(root: &Root) -> usize {
    root.requests().iter().filter(|r| matches!(r.body, RequestBody::Confirm { .. })).count()
}

fn way_back(packages: usize) -> WayBack {
    let package = |n: usize| PackageWayBack {
        name: format!("package{n}").parse().unwrap(),
        architecture: "all".parse().unwrap(),
        version: "1".parse().unwrap(),
        grade: Grade::Rebuilt,
        reason: "its archive is nowhere to be had".into(),
    };
    WayBack {
        grade: Grade::Rebuilt,
        packages: (0..packages).map(package).collect(),
        recorded_in_ms: 12,
        snapshot: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_change_is_made_survives_a_restart() {
    let mut root = Root::new();
    root.unlisten();
    let jobs = root.open().await;
    let with = jobs.submit(Submission { options: options(), ..submission() }).await.unwrap().job.job_id;
    let old = submitted(&jobs).await;
    jobs.shutdown().await;

    // As it was written by a version that knew nothing of all this.
    let path = root.jobs_dir().join(format!("{old}.json"));
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for field in ["options", "confirmed", "way_back", "went_back"] {
        assert!(record.as_object_mut().unwrap().remove(field).is_some(), "{field}");
    }
    fs::write(&path, record.to_string()).unwrap();

    root.listen();
    let jobs = root.open().await;
    assert_eq!(jobs.problems(), Vec::<String>::new());
    for (id, expected) in [(with, options()), (old, ChangeOptions::default())] {
        root.begun(id).await;
        let sent = root.requests().into_iter().find(|r| r.id == id).unwrap();
        assert!(matches!(sent.body, RequestBody::Change { options, .. } if options == expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_confirmed_over_a_new_connection_only() {
    let root = Root::new();
    let jobs = root.open().await;
    let before = Instant::now();
    let id = confirming(&root, &jobs).await;
    let refused = jobs.confirm(id, &requester(), before).await.unwrap_err();
    assert_eq!((refused.code, refused.retryable), (ErrorCode::JobConflict, true));
    assert!(refused.message.starts_with("confirm over a new connection: "), "{}", refused.message);
    assert!(refused.details.contains_key(NEW_CONNECTION));
    assert_eq!(confirmations(&root), 0, "the root side is not even asked");

    root.audit.fail(true);
    let unrecorded = jobs.confirm(id, &requester(), Instant::now()).await.unwrap_err();
    assert_eq!((unrecorded.code, confirmations(&root)), (ErrorCode::ServiceUnhealthy, 0));
    root.audit.fail(false);

    root.manners(|m| m.refuse_confirm = true);
    let late = jobs.confirm(id, &requester(), Instant::now()).await.unwrap_err();
    assert_eq!(late.code, ErrorCode::JobConflict);
    root.manners(|m| m.refuse_confirm = false);

    let other = Requester { identity: "somebody else".into(), ..requester() };
    let job = jobs.confirm(id, &other, Instant::now()).await.unwrap();
    assert_eq!((job.job_id, job.status), (id, JobStatus::Running));
    let asked = confirmations(&root);
    jobs.confirm(id, &requester(), before).await.unwrap();
    assert_eq!(confirmations(&root), asked, "once is enough");
    let events = root.audit.events();
    let said = events.iter().rfind(|e| matches!(&e.kind, AuditKind::SystemChanged { .. })).unwrap();
    assert_eq!(said.caller.identity.as_deref(), Some("somebody else"));
    assert!(said.message.contains(&format!("confirmation of job {id}")), "{}", said.message);

    root.complete(id);
    assert!(end_of(&jobs, id).await.confirm_by.is_none());
    assert_eq!(jobs.confirm(id, &requester(), before).await.unwrap().status, JobStatus::Completed);
    within(jobs.shutdown()).await;
    let jobs = root.open().await;
    jobs.confirm(id, &requester(), Instant::now()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_may_come_before_the_answer_to_the_confirmation() {
    let root = Root::new();
    root.manners(|m| m.end_confirmed = true);
    let jobs = root.open().await;
    let id = confirming(&root, &jobs).await;
    jobs.confirm(id, &requester(), Instant::now()).await.unwrap();
    assert_eq!(end_of(&jobs, id).await.outcome, Some(Outcome::Applied));
    jobs.confirm(id, &requester(), Instant::now()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_wait_cannot_be_confirmed() {
    let root = Root::new();
    let jobs = root.open_with(JobSettings { max_active: 2, ..settings() }).await;
    let now = Instant::now;
    let unknown = jobs.confirm(JobId(Uuid::now_v7()), &requester(), now()).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::JobNotFound);

    let plain = submitted(&jobs).await;
    root.begun(plain).await;
    until(&jobs, plain, |job| job.status == JobStatus::Running).await;
    let error = jobs.confirm(plain, &requester(), now()).await.unwrap_err();
    assert_eq!((error.code, error.retryable), (ErrorCode::JobConflict, false));
    assert!(error.message.contains("without confirm_within"), "{}", error.message);

    let id = confirming(&root, &jobs).await;
    root.emit(id, EventKind::Phase { phase: Phase::RollingBack });
    until(&jobs, id, |job| job.phase == Some(Phase::RollingBack) && job.confirm_by.is_none()).await;
    let error = jobs.confirm(id, &requester(), now()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::JobConflict);
    assert!(error.message.contains("rolling back"), "{}", error.message);
    root.emit(id, ended(JobStatus::Failed, Outcome::RolledBack));
    root.die(id);
    end_of(&jobs, id).await;
    let error = jobs.confirm(id, &requester(), now()).await.unwrap_err();
    assert_eq!((error.code, error.retryable), (ErrorCode::JobConflict, false));
    assert!(error.message.contains("rolled back"), "{}", error.message);
    assert_eq!(confirmations(&root), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_every_connection_is_new() {
    let root = Root::new();
    let first = root.open().await;
    let waiting = confirming(&root, &first).await;
    let still = first.submit(Submission { options: options(), ..submission() }).await.unwrap().job.job_id;
    root.begun(still).await;
    until(&first, still, |job| job.status == JobStatus::Running).await;
    first.shutdown().await;

    let accepted = Instant::now();
    let second = root.open().await;
    until(&second, waiting, |job| job.confirm_by.is_some()).await;
    second.confirm(waiting, &requester(), accepted).await.unwrap();
    // What begins to wait only now is not confirmed over that connection.
    root.emit(still, EventKind::Confirm { until: Timestamp::MAX });
    until(&second, still, |job| job.confirm_by.is_some()).await;
    assert!(second.confirm(still, &requester(), accepted).await.is_err());
    second.confirm(still, &requester(), Instant::now()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_streams_show_how_good_the_way_back_is_and_not_all_of_it() {
    let root = Root::new();
    let jobs = root.open().await;
    let mut news = jobs.subscriber();
    drop(news.subscribe_all());
    let id = submitted(&jobs).await;
    root.begun(id).await;
    let lines = |n: usize| (0..n).map(|n| format!("package{n} 1")).collect::<Vec<_>>();
    let report = WentBack {
        reason: "the check web failed".into(),
        restored: lines(1000),
        left: vec!["one thing".into()],
        ..WentBack::default()
    };
    root.emit(id, EventKind::WayBack { way_back: way_back(1000) });
    root.emit(id, EventKind::Phase { phase: Phase::RollingBack });
    root.emit(id, EventKind::WentBack { report: report.clone() });
    root.emit(id, EventKind::Progress { percent: 50, package: None, message: String::new() });
    let running = until(&jobs, id, |job| job.progress_percent == 50).await;
    assert_eq!((running.way_back, running.went_back.as_ref()), (Some(way_back(1000)), Some(&report)));

    let mut lengths = Vec::new();
    while let Some(frame) = news.ready().unwrap() {
        lengths.push(frame.len());
    }
    assert_eq!(lengths.iter().filter(|length| **length > 10_000).count(), 2, "{lengths:?}");
    assert!(lengths.last().unwrap() < &4096, "{lengths:?}");

    root.emit(id, ended(JobStatus::Failed, Outcome::RollbackFailed));
    root.die(id);
    let done = end_of(&jobs, id).await;
    assert_eq!(jobs.failed_rollback(Timestamp::now()), Some(id));
    assert_eq!(jobs.outcomes().iter().find(|(outcome, _)| *outcome == "rollback_failed").unwrap().1, 1);
    for jobs in [jobs.clone(), {
        within(jobs.shutdown()).await;
        root.open().await
    }] {
        let whole = jobs.get(id).await.unwrap();
        assert_eq!(whole.way_back, Some(way_back(1000)));
        assert_eq!(whole.went_back.as_ref(), Some(&report));
        assert_eq!(whole.completed_at, done.completed_at);
        let listed = jobs.list(&JobFilter::default()).jobs.remove(0);
        assert_eq!(
            listed.way_back,
            Some(WayBack { grade: Grade::Rebuilt, packages: vec![], recorded_in_ms: 12, snapshot: None })
        );
        let told = listed.went_back.unwrap();
        assert_eq!((&told.reason, &told.left), (&report.reason, &report.left));
        assert_eq!(told.restored, [format!("1000 entries; GET /jobs/{id} shows them")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_is_told_whole_on_demand_and_outlives_the_daemon() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    root.begun(id).await;
    let finding = |number: u32| Finding {
        kind: FindingKind::Postinst,
        package: Some(format!("package{number}")),
        message: "returned error exit status 1".into(),
        output: vec!["a script's own words".into()],
    };
    let report = RehearsalReport {
        verdict: RehearsalVerdict::Fails,
        findings: (0..100).map(finding).collect(),
        ..RehearsalReport::not_rehearsed("package0 fails")
    };
    root.emit(id, EventKind::Phase { phase: Phase::Rehearsing });
    root.emit(id, EventKind::Rehearsed { report: report.clone() });
    let running = until(&jobs, id, |job| job.rehearsal.is_some()).await;
    assert_eq!((running.phase, running.rehearsal.as_ref()), (Some(Phase::Rehearsing), Some(&report)));
    root.emit(id, ended(JobStatus::Failed, Outcome::Unchanged));
    root.die(id);
    end_of(&jobs, id).await;
    for jobs in [jobs.clone(), {
        within(jobs.shutdown()).await;
        root.open().await
    }] {
        assert_eq!(jobs.get(id).await.unwrap().rehearsal.as_ref(), Some(&report));
        let told = jobs.list(&JobFilter::default()).jobs.remove(0).rehearsal.unwrap();
        assert_eq!(
            (told.verdict, told.reason, told.findings),
            (report.verdict, report.reason.clone(), vec![])
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_found_by_what_it_changes() {
    let root = Root::new();
    let jobs = root.open().await;
    let remove = Remove { name: "aa".parse().unwrap(), purge: false, autoremove: false };
    let asked = Submission { operation: Operation::Remove(remove), ..submission() };
    let undone = jobs.submit(asked).await.unwrap().job.job_id;
    root.begun(undone).await;
    root.complete(undone);
    end_of(&jobs, undone).await;
    let rollback = Operation::Rollback(Rollback { job: undone, force: false, mode: Default::default() });
    let id = jobs.submit(Submission { operation: rollback, ..submission() }).await.unwrap().job.job_id;
    let found = |name: &str| {
        let filter = JobFilter {
            package: Some(name.parse().unwrap()),
            kind: Some("rollback".into()),
            ..JobFilter::default()
        };
        jobs.list(&filter).jobs.iter().map(|job| job.job_id).collect::<Vec<_>>()
    };
    assert_eq!(found("aa"), [id], "before anything is known of it but what it undoes");
    root.begun(id).await;
    root.emit(
        id,
        EventKind::Ended(Box::new(Ended {
            status: JobStatus::Completed,
            outcome: Some(Outcome::RolledBack),
            exit_code: None,
            error: None,
            results: vec![result("bb")],
            answer: None,
        })),
    );
    within(jobs.wait(id, Duration::from_secs(20))).await.unwrap();
    assert_eq!((found("aa"), found("bb")), (vec![id], vec![id]));
}
