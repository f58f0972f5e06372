//! How long idempotency keys hold, how many there may be, and what of an ended job stays in memory.

use jiff::Timestamp;
use patch_types::{ErrorCode, JobStatus};
use serde_json::json;

use crate::jobs::{
    JobFilter, JobSettings, Submission,
    table::{KEY_LIFE, Key},
    testing::{Root, end_of, keyed, settings, submission},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_run_out_is_free_also_for_another_request() {
    let root = Root::new();
    let jobs = root.open().await;
    let first = jobs.submit(keyed("k", "body")).await.unwrap();
    for key in jobs.table().keys.values_mut() {
        let Key::Made { at, .. } = key else { panic!("it was made") };
        *at = Timestamp::now() - KEY_LIFE;
    }
    let second = jobs.submit(keyed("k", "another")).await.unwrap();
    assert!(!second.replayed && second.job.job_id != first.job.job_id);
    assert!(jobs.submit(keyed("k", "another")).await.unwrap().replayed);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_bounded_and_those_that_hold_are_kept() {
    let root = Root::new();
    let jobs = root.open_with(JobSettings { max_keys: 2, ..settings() }).await;
    let first = jobs.submit(keyed("1", "body")).await.unwrap();
    jobs.submit(keyed("2", "body")).await.unwrap();
    let refused = jobs.submit(keyed("3", "body")).await.unwrap_err();
    assert_eq!((refused.code, refused.retryable), (ErrorCode::ServiceUnhealthy, true));
    assert!(!jobs.submit(submission()).await.unwrap().replayed, "without a key it is accepted");
    let again = jobs.submit(keyed("1", "body")).await.unwrap();
    assert!(again.replayed && again.job.job_id == first.job.job_id);
    if let Some(Key::Made { at, .. }) = jobs.table().keys.values_mut().next() {
        *at = Timestamp::now() - KEY_LIFE;
    }
    assert!(!jobs.submit(keyed("3", "body")).await.unwrap().replayed, "there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_ended_job_no_long_request_stays_in_memory() {
    let root = Root::new();
    let jobs = root.open().await;
    let request = json!({"comment": "x".repeat(100_000)});
    let long = Submission { request: request.clone(), ..submission() };
    let id = jobs.submit(long).await.unwrap().job.job_id;
    root.begun(id).await;
    root.complete(id);
    assert_eq!(end_of(&jobs, id).await.status, JobStatus::Completed);
    let again = jobs.clone();
    for _ in 0..2 {
        let jobs = root.open().await;
        let listed = &jobs.list(&JobFilter::default()).jobs[0];
        assert!(listed.request.to_string().len() < 200, "{}", listed.request);
        assert_eq!(jobs.get(id).await.unwrap().request, request, "it is on disk");
    }
    assert!(again.list(&JobFilter::default()).jobs[0].request.to_string().len() < 200);
}
