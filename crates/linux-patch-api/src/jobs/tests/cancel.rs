//! Cancelling, in each state that a job can be in.

use patch_audit::AuditKind;
use patch_types::{
    ErrorCode, EventKind, JobId, JobStatus, Outcome, Phase, api::Requester, executor::RequestBody,
};
use uuid::Uuid;

use super::{audited, submitted};
use crate::jobs::{
    JobSettings,
    testing::{Root, end_of, requester, settings, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_job_is_cancelled_at_once_and_for_good() {
    let root = Root::new();
    let jobs = root.open_with(JobSettings { max_active: 1, ..settings() }).await;
    let (running, waiting) = (submitted(&jobs).await, submitted(&jobs).await);
    root.audit.fail(true);
    assert_eq!(jobs.cancel(waiting, &requester()).await.unwrap_err().code, ErrorCode::ServiceUnhealthy);
    assert_eq!(jobs.get(waiting).await.unwrap().status, JobStatus::Pending, "not durable, so not cancelled");
    root.audit.fail(false);
    let job = jobs.cancel(waiting, &requester()).await.unwrap();
    assert_eq!((job.status, job.outcome), (JobStatus::Cancelled, Some(Outcome::Unchanged)));
    assert_eq!(job.error_detail.unwrap().code, ErrorCode::JobCancelled);
    assert_eq!(audited(&root, waiting), ["accepted", "ended"]);
    let again = jobs.cancel(waiting, &requester()).await.unwrap_err();
    assert_eq!((again.code, again.retryable), (ErrorCode::JobConflict, false));

    root.begun(running).await;
    root.complete(running);
    end_of(&jobs, running).await;
    jobs.shutdown().await;
    let jobs = root.open().await;
    assert_eq!(jobs.get(waiting).await.unwrap().status, JobStatus::Cancelled);
    assert_eq!(root.changes(), [running]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_cancelled_by_the_root_side_while_that_is_safe() {
    let root = Root::new();
    let jobs = root.open().await;
    let unknown = jobs.cancel(JobId(Uuid::now_v7()), &requester()).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::JobNotFound);

    let id = submitted(&jobs).await;
    root.begun(id).await;
    root.emit(id, EventKind::Phase { phase: Phase::Downloading });
    until(&jobs, id, |job| job.phase == Some(Phase::Downloading)).await;
    root.manners(|m| m.refuse_cancel = true);
    assert_eq!(jobs.cancel(id, &requester()).await.unwrap_err().code, ErrorCode::JobConflict);
    root.manners(|m| m.refuse_cancel = false);
    jobs.cancel(id, &requester()).await.unwrap();
    assert_eq!(end_of(&jobs, id).await.status, JobStatus::Cancelled);

    let id = submitted(&jobs).await;
    root.begun(id).await;
    root.emit(id, EventKind::Phase { phase: Phase::Applying });
    until(&jobs, id, |job| job.phase == Some(Phase::Applying)).await;
    let asked = root.requests().len();
    assert_eq!(jobs.cancel(id, &requester()).await.unwrap_err().code, ErrorCode::JobConflict);
    assert_eq!(root.requests().len(), asked, "the root side is not even asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_being_handed_over_can_be_cancelled() {
    let mut root = Root::new();
    root.unlisten();
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    jobs.cancel(id, &requester()).await.unwrap();
    assert_eq!(end_of(&jobs, id).await.status, JobStatus::Cancelled);
    root.listen();
    assert!(root.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_only_cancelled_once_it_is_recorded_who_wants_that() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    root.begun(id).await;
    until(&jobs, id, |job| job.status == JobStatus::Running).await;
    root.audit.fail(true);
    let error = jobs.cancel(id, &requester()).await.unwrap_err();
    assert_eq!((error.code, error.retryable), (ErrorCode::ServiceUnhealthy, true));
    assert!(!root.requests().iter().any(|r| matches!(r.body, RequestBody::Cancel { .. })));

    root.audit.fail(false);
    let other = Requester { identity: "somebody else".into(), ..requester() };
    jobs.cancel(id, &other).await.unwrap();
    let events = root.audit.events();
    let asked = events.iter().find(|e| matches!(&e.kind, AuditKind::SystemChanged { .. })).unwrap();
    assert_eq!(asked.caller.identity.as_deref(), Some("somebody else"));
    assert!(asked.message.contains(&id.to_string()), "{}", asked.message);
    assert_eq!(end_of(&jobs, id).await.status, JobStatus::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_being_handed_over_is_not_cancelled_without_a_record() {
    let mut root = Root::new();
    root.unlisten();
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    root.audit.fail(true);
    assert_eq!(jobs.cancel(id, &requester()).await.unwrap_err().code, ErrorCode::ServiceUnhealthy);
    root.audit.fail(false);
    root.listen();
    root.begun(id).await;
    root.complete(id);
    assert_eq!(end_of(&jobs, id).await.status, JobStatus::Completed);
}
