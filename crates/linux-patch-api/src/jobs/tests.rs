//! A job's life, against a stand-in of the root side at the socket and the event files.

use std::{fs, time::Duration};

use patch_audit::AuditKind;
use patch_types::{
    Action, ErrorCode, EventKind, JobId, JobStatus, Operation, Outcome, Phase, Plan, PlannedChange,
    event::{Ended, PackageResult},
    executor::RequestBody,
};
use uuid::Uuid;

use super::{
    JobFilter, JobSettings, Jobs,
    store::JOBS_DIR,
    testing::{Root, end_of, ended, keyed, log, settings, submission, until, within},
};

mod back;
mod cancel;
mod ends;
mod keys;
mod reboot;

async fn submitted(jobs: &Jobs) -> JobId {
    jobs.submit(submission()).await.unwrap().job.job_id
}

fn result(name: &str) -> PackageResult {
    PackageResult {
        name: name.parse().unwrap(),
        architecture: "all".parse().unwrap(),
        action: Action::Upgrade,
        old_version: Some("1".parse().unwrap()),
        new_version: Some("2".parse().unwrap()),
        done: true,
        reason: None,
        taken_back: false,
    }
}

fn audited(root: &Root, id: JobId) -> Vec<&'static str> {
    root.audit
        .events()
        .iter()
        .filter_map(|event| match &event.kind {
            AuditKind::JobAccepted { job_id, .. } if *job_id == id => Some("accepted"),
            AuditKind::PackageChanged { job_id, .. } if *job_id == id => Some("package"),
            AuditKind::JobEnded { job_id, .. } if *job_id == id => Some("ended"),
            _ => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_from_its_acceptance_to_its_end() {
    let root = Root::new();
    let jobs = root.open().await;
    let job = jobs.submit(submission()).await.unwrap().job;
    let id = job.job_id;
    assert_eq!((job.status, job.kind.as_str()), (JobStatus::Pending, "refresh"));
    assert!(root.jobs_dir().join(format!("{id}.json")).exists(), "on disk before the answer");
    assert_eq!(audited(&root, id), ["accepted"]);

    root.begun(id).await;
    let change = PlannedChange {
        action: Action::Upgrade,
        name: "aa".parse().unwrap(),
        architecture: "all".parse().unwrap(),
        old_version: Some("1".parse().unwrap()),
        new_version: Some("2".parse().unwrap()),
        archive_sha256: None,
        origin: None,
        security: false,
        archive_bytes: 0,
        disk_delta_bytes: 0,
    };
    root.emit(id, EventKind::Planned { plan: Plan::of(vec![change]) });
    root.emit(id, EventKind::Phase { phase: Phase::Applying });
    root.emit(id, log("Unpacking aa"));
    root.emit(id, EventKind::Progress { percent: 40, package: Some("aa".into()), message: "x".into() });
    let running = until(&jobs, id, |job| job.progress_percent == 40).await;
    assert_eq!((running.status, running.phase), (JobStatus::Running, Some(Phase::Applying)));
    assert_eq!(running.output.as_deref(), Some("Unpacking aa"));
    assert_eq!(running.plan.as_ref().unwrap().changes.len(), 1);
    assert!(running.started_at.is_some() && running.completed_at.is_none());

    root.emit(
        id,
        EventKind::Ended(Box::new(Ended {
            status: JobStatus::Completed,
            outcome: Some(Outcome::Applied),
            exit_code: Some(0),
            error: None,
            results: vec![result("aa"), result("bb")],
            answer: None,
        })),
    );
    let done = within(jobs.wait(id, Duration::from_secs(20))).await.unwrap();
    assert_eq!((done.status, done.outcome), (JobStatus::Completed, Some(Outcome::Applied)));
    assert_eq!((done.progress_percent, done.phase, done.last_seq), (100, None, 6));
    assert_eq!((done.results.len(), done.log.len()), (2, 1));
    assert_eq!(audited(&root, id), ["accepted", "package", "package", "ended"]);

    let listed = jobs.list(&JobFilter { package: Some("bb".parse().unwrap()), ..JobFilter::default() });
    assert_eq!(listed.total, 1, "what a job changed can be searched for");
    assert!(listed.jobs[0].plan.is_none() && listed.jobs[0].log.is_empty());
    assert_eq!((jobs.counts().active, jobs.counts().ended), (0, 1));
    jobs.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_mid_job_loses_no_event() {
    let root = Root::new();
    let first = root.open().await;
    let id = submitted(&first).await;
    root.begun(id).await;
    root.emit(id, log("one"));
    until(&first, id, |job| job.log.len() == 1).await;
    first.shutdown().await;

    root.emit(id, log("two"));
    let second = root.open().await;
    root.emit(id, log("three"));
    let job = until(&second, id, |job| job.log.len() == 3).await;
    let seqs: Vec<u64> = job.log.iter().map(|line| line.seq).collect();
    assert_eq!(seqs, [2, 3, 4]);
    second.shutdown().await;

    root.complete(id);
    let third = root.open().await;
    let job = end_of(&third, id).await;
    assert_eq!((job.status, job.log.len()), (JobStatus::Completed, 3));
    assert_eq!(root.times_begun(id), 1);
    third.shutdown().await;

    let fourth = root.open().await;
    assert_eq!(fourth.get(id).await.unwrap(), job, "what ended stays as it is");
    assert_eq!(audited(&root, id), ["accepted", "ended"]);
}

#[test]
fn a_daemon_that_is_killed_picks_its_jobs_up_again() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outside = runtime();
    let root = outside.block_on(async { Root::new() });
    let daemon = runtime();
    let (running, waiting) = daemon.block_on(async {
        let jobs = root.open_with(JobSettings { max_active: 1, ..settings() }).await;
        let (running, waiting) = (submitted(&jobs).await, submitted(&jobs).await);
        root.begun(running).await;
        (running, waiting)
    });
    daemon.shutdown_background();
    outside.block_on(async {
        let jobs = root.open_with(JobSettings { max_active: 1, ..settings() }).await;
        root.emit(running, log("still here"));
        root.complete(running);
        assert_eq!(end_of(&jobs, running).await.log.len(), 1);
        root.begun(waiting).await;
        root.complete(waiting);
        assert_eq!(end_of(&jobs, waiting).await.status, JobStatus::Completed);
        assert_eq!((root.times_begun(running), root.times_begun(waiting)), (1, 1));
        assert_eq!(
            audited(&root, waiting),
            ["accepted", "accepted", "ended"],
            "audited again before it begins"
        );
        jobs.shutdown().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_executor_left_is_settled() {
    let root = Root::new();
    root.manners(|m| m.settle = Some(ended(JobStatus::Failed, Outcome::RolledBack)));
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    root.begun(id).await;
    root.emit(id, EventKind::Phase { phase: Phase::Applying });
    root.die(id);
    let job = end_of(&jobs, id).await;
    assert_eq!((job.status, job.outcome), (JobStatus::Failed, Some(Outcome::RolledBack)));
    let settled = root.requests().iter().filter(|r| r.body == RequestBody::Settle { job: id }).count();
    assert_eq!(settled, 1);
    assert_eq!(root.times_begun(id), 1);
    jobs.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_be_settled_ends_with_the_truth() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    root.begun(id).await;
    root.die(id);
    let job = end_of(&jobs, id).await;
    assert_eq!((job.status, job.outcome), (JobStatus::Failed, None));
    assert!(job.error.unwrap().contains("not known"));
    jobs.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_job_of_which_the_root_side_has_no_trace_nothing_is_claimed() {
    let root = Root::new();
    let first = root.open().await;
    let id = submitted(&first).await;
    root.begun(id).await;
    until(&first, id, |job| job.status == JobStatus::Running).await;
    first.shutdown().await;
    fs::remove_file(root.executor().events_of(id)).unwrap();

    let second = root.open().await;
    let job = end_of(&second, id).await;
    assert_eq!((job.status, job.outcome), (JobStatus::Failed, None));
    assert!(job.error.unwrap().contains("no record"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_before_the_reply_begins_nothing_twice() {
    let root = Root::new();
    root.manners(|m| m.hang_up = 2);
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    root.until(|requests| requests.len() == 3).await;
    root.complete(id);
    assert_eq!(end_of(&jobs, id).await.status, JobStatus::Completed);
    assert_eq!(root.times_begun(id), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_side_that_is_away_is_waited_for() {
    let mut root = Root::new();
    root.unlisten();
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    assert_eq!(jobs.get(id).await.unwrap().status, JobStatus::Pending);
    root.listen();
    root.begun(id).await;
    root.complete(id);
    assert_eq!(end_of(&jobs, id).await.status, JobStatus::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_side_that_stays_away_fails_the_job_with_advice() {
    let mut root = Root::new();
    root.unlisten();
    let jobs = root.open_with(JobSettings { patience: Duration::ZERO, ..settings() }).await;
    let id = submitted(&jobs).await;
    let job = end_of(&jobs, id).await;
    assert_eq!((job.status, job.outcome), (JobStatus::Failed, Some(Outcome::Unchanged)));
    let error = job.error_detail.unwrap();
    assert_eq!(error.code, ErrorCode::ServiceUnhealthy);
    assert!(error.message.contains("systemctl status linux-patch-executor.socket"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_fails_the_job_with_its_code() {
    let root = Root::new();
    root.manners(|m| m.refuse = Some((ErrorCode::PkgHeld, "protected")));
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    let job = end_of(&jobs, id).await;
    assert_eq!((job.status, job.outcome), (JobStatus::Failed, Some(Outcome::Unchanged)));
    assert_eq!(job.error_detail.unwrap().code, ErrorCode::PkgHeld);
    assert_eq!(audited(&root, id), ["accepted", "ended"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_waits_in_order() {
    let root = Root::new();
    let jobs = root.open_with(JobSettings { max_active: 2, max_pending: 3, ..settings() }).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(submitted(&jobs).await);
    }
    let full = jobs.submit(submission()).await.unwrap_err();
    assert_eq!((full.code, full.retryable), (ErrorCode::JobConflict, true));
    for (n, id) in ids.iter().copied().enumerate() {
        root.begun(id).await;
        let expected = (5 - n).min(2);
        assert_eq!(jobs.counts().active, expected);
        assert!(root.changes().len() <= n + 2);
        root.complete(id);
        end_of(&jobs, id).await;
    }
    // Two at a time may change places on their way to the root side; no more, as was checked above.
    let mut handed_over = root.changes();
    handed_over.sort();
    assert_eq!(handed_over, ids);
    let newest_first: Vec<JobId> = jobs.list(&JobFilter::default()).jobs.iter().map(|j| j.job_id).collect();
    assert_eq!(newest_first, ids.iter().rev().copied().collect::<Vec<_>>());
    let page = jobs.list(&JobFilter { limit: Some(2), offset: 1, ..JobFilter::default() });
    assert_eq!((page.total, page.jobs.len(), page.jobs[0].job_id), (5, 2, ids[3]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_job_also_after_a_restart() {
    let root = Root::new();
    let jobs = root.open().await;
    let first = jobs.submit(keyed("k", "body")).await.unwrap();
    assert!(!first.replayed);
    let again = jobs.submit(keyed("k", "body")).await.unwrap();
    assert!(again.replayed && again.job.job_id == first.job.job_id);
    let other = jobs.submit(keyed("k", "another body")).await.unwrap_err();
    assert_eq!((other.code, other.code.http_status()), (ErrorCode::InvalidRequest, 422));
    let mut foreign = keyed("k", "body");
    foreign.requester.identity = "somebody else".into();
    assert!(!jobs.submit(foreign).await.unwrap().replayed, "keys are each identity's own");
    root.begun(first.job.job_id).await;
    for bad in ["", "a b", "ä", &"x".repeat(256)] {
        assert_eq!(
            jobs.submit(keyed(bad, "b")).await.unwrap_err().code,
            ErrorCode::InvalidRequest,
            "{bad:?}"
        );
    }
    jobs.shutdown().await;

    let jobs = root.open_with(JobSettings { keep_count: 0, ..settings() }).await;
    root.complete(first.job.job_id);
    end_of(&jobs, first.job.job_id).await;
    let again = jobs.submit(keyed("k", "body")).await.unwrap();
    assert!(again.replayed && again.job.job_id == first.job.job_id, "a job with a living key is not pruned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_used_at_the_same_time_makes_one_job() {
    let root = Root::new();
    let jobs = root.open().await;
    let tries: Vec<_> = (0..50)
        .map(|_| {
            let jobs = jobs.clone();
            tokio::spawn(async move { jobs.submit(keyed("k", "body")).await.unwrap() })
        })
        .collect();
    let mut made = Vec::new();
    for one in tries {
        made.push(one.await.unwrap());
    }
    assert_eq!(made.iter().filter(|s| !s.replayed).count(), 1);
    assert!(made.iter().all(|s| s.job.job_id == made[0].job.job_id));
    assert_eq!(jobs.list(&JobFilter::default()).total, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_job_was_refused_is_free_again() {
    let root = Root::new();
    let jobs = root.open().await;
    root.audit.fail(true);
    assert_eq!(jobs.submit(keyed("k", "body")).await.unwrap_err().code, ErrorCode::ServiceUnhealthy);
    root.audit.fail(false);
    assert!(!jobs.submit(keyed("k", "another")).await.unwrap().replayed);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_audit_record_there_is_no_job() {
    let root = Root::new();
    let jobs = root.open().await;
    root.audit.fail(true);
    let error = jobs.submit(submission()).await.unwrap_err();
    assert_eq!((error.code, error.code.http_status()), (ErrorCode::ServiceUnhealthy, 503));
    assert_eq!(jobs.list(&JobFilter::default()).total, 0);
    jobs.shutdown().await;
    assert_eq!(fs::read_dir(root.jobs_dir()).unwrap().count(), 0, "taken back from the disk");
    assert!(root.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_there_is_no_job_and_reads_go_on() {
    let root = Root::new();
    let jobs = root.open().await;
    // Root may write anywhere, so permissions would prove nothing here: the directory is gone instead.
    fs::remove_dir(root.jobs_dir()).unwrap();
    let error = jobs.submit(submission()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ServiceUnhealthy);
    assert_eq!(jobs.list(&JobFilter::default()).total, 0);
    fs::create_dir(root.jobs_dir()).unwrap();
    let id = submitted(&jobs).await;
    assert_eq!(jobs.list(&JobFilter::default()).jobs[0].job_id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_cannot_be_recorded_is_not_shown_yet() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    root.begun(id).await;
    root.audit.fail(true);
    root.complete(id);
    until(&jobs, id, |job| job.status == JobStatus::Running).await;
    let seen = jobs.wait(id, Duration::from_millis(50)).await.unwrap();
    assert_eq!(seen.status, JobStatus::Running);
    root.audit.fail(false);
    assert_eq!(end_of(&jobs, id).await.status, JobStatus::Completed);
    assert_eq!(audited(&root, id), ["accepted", "ended"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_set_aside_and_reported() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = submitted(&jobs).await;
    root.begun(id).await;
    root.complete(id);
    let job = end_of(&jobs, id).await;
    jobs.shutdown().await;

    let dir = root.jobs_dir();
    let good = fs::read(dir.join(format!("{id}.json"))).unwrap();
    let other = JobId(Uuid::now_v7());
    let damaged: [(JobId, &[u8]); 4] = [
        (JobId(Uuid::now_v7()), b""),
        (JobId(Uuid::now_v7()), &good[..good.len() / 2]),
        (JobId(Uuid::now_v7()), b"[1, 2]\xff"),
        (other, &good),
    ];
    for (id, text) in &damaged {
        fs::write(dir.join(format!("{id}.json")), text).unwrap();
    }
    fs::write(dir.join(format!("{other}.json.corrupt")), "an earlier one").unwrap();
    fs::write(dir.join(format!("{id}.json.new")), "torn").unwrap();
    fs::write(dir.join("notes.txt"), "foreign").unwrap();
    fs::create_dir(dir.join("directory")).unwrap();

    let jobs = root.open().await;
    assert_eq!(jobs.list(&JobFilter::default()).total, 1);
    assert_eq!(jobs.get(id).await.unwrap(), job);
    assert_eq!(jobs.problems().len(), 4);
    for (id, text) in &damaged {
        assert!(!dir.join(format!("{id}.json")).exists());
        let kept = if *id == other { format!("{id}.json.corrupt.1") } else { format!("{id}.json.corrupt") };
        assert_eq!(fs::read(dir.join(kept)).unwrap(), *text);
    }
    assert!(!dir.join(format!("{id}.json.new")).exists());
    assert!(dir.join("notes.txt").exists());

    fs::write(dir.join(format!("{id}.json")), "damaged while we run").unwrap();
    let summary = jobs.get(id).await.unwrap();
    assert_eq!((summary.status, summary.log_truncated), (JobStatus::Completed, true));
    assert_eq!(jobs.problems().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_jobs_are_forgotten_by_count() {
    let root = Root::new();
    let jobs = root.open_with(JobSettings { keep_count: 2, ..settings() }).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let id = submitted(&jobs).await;
        root.begun(id).await;
        root.complete(id);
        end_of(&jobs, id).await;
        ids.push(id);
    }
    jobs.shutdown().await;
    let jobs = root.open().await;
    let kept: Vec<JobId> = jobs.list(&JobFilter::default()).jobs.iter().map(|j| j.job_id).collect();
    assert_eq!(kept, [ids[3], ids[2]]);
    assert!(jobs.get(ids[0]).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_makes_no_sense_is_refused() {
    let root = Root::new();
    let jobs = root.open().await;
    let mut nothing = submission();
    nothing.operation = serde_json::from_str::<Operation>(r#"{"kind":"install","packages":[]}"#).unwrap();
    assert_eq!(jobs.submit(nothing).await.unwrap_err().code, ErrorCode::InvalidRequest);
    assert!(fs::read_dir(root.path().join(JOBS_DIR)).unwrap().next().is_none());
    jobs.shutdown().await;
    assert_eq!(jobs.submit(submission()).await.unwrap_err().code, ErrorCode::ServiceUnhealthy);
}
