//! When a job's end is shown, and when it is not, and who is told.

use std::{fs, time::Duration};

use patch_types::{EventKind, JobStatus, Outcome, Phase};
use tokio::time::timeout;

use super::{audited, result, submitted};
use crate::jobs::{
    JobFilter, JobSettings,
    testing::{Root, end_of, ended, log, settings, until, within},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_only_the_daemon_knows_is_not_shown_before_it_is_recorded() {
    let mut root = Root::new();
    root.unlisten();
    let now = JobSettings { patience: Duration::from_millis(100), held_back: Duration::ZERO, ..settings() };
    let jobs = root.open_with(now.clone()).await;
    let id = submitted(&jobs).await;
    root.audit.fail(true);
    fs::rename(root.jobs_dir(), root.path().join("away")).unwrap();
    assert!(timeout(Duration::from_millis(500), jobs.ended(id)).await.is_err());
    assert_eq!(jobs.get(id).await.unwrap().status, JobStatus::Pending);
    within(jobs.shutdown()).await;

    // The next run knows nothing of that end, and carries the job out: nobody was told otherwise.
    fs::rename(root.path().join("away"), root.jobs_dir()).unwrap();
    root.audit.fail(false);
    root.listen();
    let jobs = root.open_with(now).await;
    root.begun(id).await;
    root.complete(id);
    assert_eq!(end_of(&jobs, id).await.status, JobStatus::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_the_root_side_holds_is_shown_although_it_cannot_be_recorded() {
    let root = Root::new();
    let jobs = root.open_with(JobSettings { held_back: Duration::ZERO, keep_count: 0, ..settings() }).await;
    let id = submitted(&jobs).await;
    root.begun(id).await;
    root.emit(id, log("one"));
    root.audit.fail(true);
    root.complete(id);
    within(jobs.ended(id)).await;
    let job = jobs.get(id).await.unwrap();
    assert_eq!((job.status, job.log.len()), (JobStatus::Completed, 1), "whole, from memory");
    assert_eq!(audited(&root, id), ["accepted"]);
    root.audit.fail(false);
    within(async {
        while audited(&root, id).len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_of_a_job_keeps_its_order() {
    let root = Root::new();
    for _ in 0..50 {
        let jobs = root.open().await;
        let id = submitted(&jobs).await;
        root.begun(id).await;
        root.emit(id, EventKind::Phase { phase: Phase::Applying });
        until(&jobs, id, |job| job.status == JobStatus::Running).await;
        root.complete(id);
        within(jobs.ended(id)).await;
        within(jobs.shutdown()).await;
        let file = fs::read_to_string(root.jobs_dir().join(format!("{id}.json"))).unwrap();
        assert!(file.contains(r#""status":"completed""#), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_is_counted_also_of_jobs_that_were_taken_up() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    root.begun(id).await;
    within(jobs.shutdown()).await;
    within(jobs.ended(id)).await;

    let jobs = root.open().await;
    let mut ends = jobs.ends();
    assert_eq!(*ends.borrow_and_update(), 0);
    // Waiting for the end reads nothing: the file may be gone.
    let ended = tokio::spawn(jobs.ended(id));
    root.complete(id);
    within(ends.changed()).await.unwrap();
    assert_eq!(*ends.borrow(), 1);
    within(ended).await.unwrap();
    assert_eq!(jobs.list(&JobFilter::default()).jobs[0].status, JobStatus::Completed);
    within(jobs.ended(id)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_audited_already_is_not_audited_again() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    root.begun(id).await;
    root.audit.room(1);
    let EventKind::Ended(mut ended) = ended(JobStatus::Completed, Outcome::Applied) else { unreachable!() };
    ended.results = vec![result("aa"), result("bb")];
    root.emit(id, EventKind::Ended(ended));
    root.die(id);
    end_of(&jobs, id).await;
    assert_eq!(audited(&root, id), ["accepted", "package", "package", "ended"]);
}
