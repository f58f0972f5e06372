//! Accepting a change: once, durably, or not at all.

use std::time::Duration;

use jiff::Timestamp;
use patch_audit::{AuditEvent, AuditKind, Caller};
use patch_types::{
    ErrorCode, ErrorDetail, JobId, JobStatus, Operation, Outcome, api::Job,
    error::ErrorCode::ServiceUnhealthy,
};
use tokio::{sync::watch, time::timeout};
use uuid::Uuid;

use super::{
    Idempotency, Jobs, Submission, Submitted,
    record::{Head, Record, full},
    stream,
    table::{Key, Live, Slot, Stage, is_remembered},
};

/// How long a client waits for the disk before it is refused. Reads go on meanwhile.
pub(super) const DURABLE_LIMIT: Duration = Duration::from_millis(900);

/// What is to become of a submission.
enum Way {
    /// A new job is to be made.
    New(Ticket),
    /// It is an earlier one.
    Earlier(JobId),
    /// The same key is just being used: wait until that is decided, and look again.
    Wait(watch::Receiver<()>),
}

/// The right to make one job. Gives its place, and its key, back unless the job comes into being.
struct Ticket {
    jobs: Jobs,
    key: Option<(String, String)>,
    /// Dropped with the ticket, which wakes whoever waits for the key.
    _decided: watch::Sender<()>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.jobs.table();
        table.making -= 1;
        if let Some(key) = &self.key
            && matches!(table.keys.get(key), Some(Key::Making { .. }))
        {
            table.keys.remove(key);
        }
    }
}

impl Jobs {
    /// Accepts a change: when this returns, the job and its audit record are on disk.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `JOB_CONFLICT` (too many wait) or `SERVICE_UNHEALTHY` (not durable: there is no job then).
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, ErrorDetail> {
        submission
            .operation
            .check()
            .map_err(|e| ErrorDetail::new(ErrorCode::InvalidRequest, e.to_string()))?;
        if let Some(idempotency) = &submission.idempotency {
            check_key(&idempotency.key)?;
        }
        if self.inner.stop.is_cancelled() {
            return Err(ErrorDetail::new(ServiceUnhealthy, "the agent is stopping; ask again in a moment"));
        }
        // A task of its own: a client that hangs up between the two syncs must not leave half a job.
        let jobs = self.clone();
        self.inner.tasks.spawn(async move { jobs.accept(submission).await }).await.unwrap_or_else(|_| {
            Err(ErrorDetail::new(ServiceUnhealthy, "the job could not be accepted: see the agent's journal"))
        })
    }

    /// The job that this identity's earlier request with the same key and body made, if that is remembered.
    #[must_use]
    pub fn earlier(&self, identity: &str, idempotency: &Idempotency) -> Option<JobId> {
        match self.table().keys.get(&(identity.to_owned(), idempotency.key.clone())) {
            Some(Key::Made { body_sha256, job, at }) if *body_sha256 == idempotency.body_sha256 => {
                is_remembered(*at, Timestamp::now()).then_some(*job)
            }
            _ => None,
        }
    }

    async fn accept(&self, submission: Submission) -> Result<Submitted, ErrorDetail> {
        let ticket = loop {
            match self.way(&submission)? {
                Way::New(ticket) => break ticket,
                Way::Earlier(id) => {
                    if let Some(job) = self.get(id).await {
                        return Ok(Submitted { job, replayed: true });
                    }
                    // Forgotten between the two looks: its key is gone as well.
                }
                Way::Wait(mut decided) => drop(decided.changed().await),
            }
        };
        let limits = submission.limits.unwrap_or_else(|| self.table().settings.limits());
        let job = Job {
            job_id: JobId(Uuid::now_v7()),
            kind: submission.operation.kind().to_owned(),
            status: JobStatus::Pending,
            phase: None,
            outcome: None,
            progress_percent: 0,
            current_package: None,
            waiting_for: None,
            created_at: Timestamp::now(),
            started_at: None,
            completed_at: None,
            requested_by: submission.requester.clone(),
            request: submission.request.clone(),
            plan: None,
            output: None,
            log: Vec::new(),
            log_truncated: false,
            error: None,
            error_detail: None,
            exit_code: None,
            results: Vec::new(),
            rehearsal: None,
            way_back: None,
            confirm_by: None,
            went_back: None,
            scheduled_for: None,
            reboot: None,
            last_seq: 0,
        };
        let undone = match &submission.operation {
            Operation::Rollback(rollback) => {
                self.table().slots.get(&rollback.job).map(|s| s.packages().into())
            }
            _ => None,
        };
        let Submission { mut operation, if_plan, not_after, options, idempotency, .. } = submission;
        if let Operation::Reboot(reboot) = &mut operation {
            reboot.at = Some(job.created_at);
        }
        let mut head = Head::new(operation, limits, if_plan, options, idempotency, job);
        head.not_after = not_after;
        head.packages = undone.unwrap_or(head.packages);
        self.make_durable(&head).await?;

        let job = head.job.clone();
        {
            let mut table = self.table();
            if let (Some(key), Some(idempotency)) = (ticket.key.clone(), &head.idempotency) {
                let made = Key::Made {
                    body_sha256: idempotency.body_sha256.clone(),
                    job: job.job_id,
                    at: job.created_at,
                };
                table.keys.insert(key, made);
            }
            let mut live = Live::new(head, Stage::Queued);
            self.inner.hub.publish(&mut live, |live| stream::status(live, false));
            table.slots.insert(job.job_id, Slot::Live(Box::new(live)));
            table.queue.push_back(job.job_id);
            self.pump_table(&mut table);
        }
        drop(ticket);
        Ok(Submitted { job: full(job, None, Vec::new(), Vec::new()), replayed: false })
    }

    fn way(&self, submission: &Submission) -> Result<Way, ErrorDetail> {
        let mut table = self.table();
        let now = Timestamp::now();
        let mut taken = None;
        let (sender, receiver) = watch::channel(());
        if let Some(idempotency) = &submission.idempotency {
            let key = (submission.requester.identity.clone(), idempotency.key.clone());
            match table.keys.get(&key) {
                // It has run out, whatever it was used for: first, since it stays here until the next pruning.
                Some(Key::Made { at, .. }) if !is_remembered(*at, now) => {}
                Some(Key::Making { body_sha256, .. } | Key::Made { body_sha256, .. })
                    if *body_sha256 != idempotency.body_sha256 =>
                {
                    return Err(ErrorDetail::new(
                        ErrorCode::InvalidRequest,
                        "this Idempotency-Key was used for another request within the last 24 hours; \
                         use a new key for a new request",
                    ));
                }
                Some(Key::Making { decided, .. }) => return Ok(Way::Wait(decided.clone())),
                Some(Key::Made { job, .. }) if table.slots.contains_key(job) => {
                    return Ok(Way::Earlier(*job));
                }
                Some(Key::Made { .. }) | None => {}
            }
            if table.keys.len() >= table.settings.max_keys {
                table.forget_keys(now);
            }
            if table.keys.len() >= table.settings.max_keys {
                // Forgetting one that holds would let a retry change the host a second time.
                let message = format!(
                    "{} idempotency keys are remembered already, and no more can be; ask again later, or without a key",
                    table.keys.len()
                );
                return Err(ErrorDetail::new(ServiceUnhealthy, message).with("keys", table.keys.len()));
            }
            taken =
                Some((key, Key::Making { body_sha256: idempotency.body_sha256.clone(), decided: receiver }));
        }
        let waiting = table.queue.len() + table.making;
        if waiting >= table.settings.max_pending {
            return Err(ErrorDetail::new(
                ErrorCode::JobConflict,
                format!("{waiting} jobs are waiting already; ask again when some of them have ended"),
            )
            .with("waiting", waiting));
        }
        table.making += 1;
        let key = taken.map(|(key, making)| {
            table.keys.insert(key.clone(), making);
            key
        });
        Ok(Way::New(Ticket { jobs: self.clone(), key, _decided: sender }))
    }

    /// The job and its audit record, on disk both, or neither.
    async fn make_durable(&self, head: &Head) -> Result<(), ErrorDetail> {
        let id = head.job.job_id;
        let caller = Caller::from(&head.job.requested_by);
        let unwritten = |why: String| {
            ErrorDetail::new(
                ServiceUnhealthy,
                format!("the job was not accepted, because it could not be made durable: {why}"),
            )
        };
        let record = Record::bare(head.clone()).to_json().map_err(|e| unwritten(e.to_string()))?;
        let (stored, audited) = tokio::join!(
            timeout(DURABLE_LIMIT, self.inner.store.write(id, record)),
            timeout(DURABLE_LIMIT, self.inner.audit.record_durable(accepted(&caller, head))),
        );
        let late = || format!("no answer from the disk within {} ms", DURABLE_LIMIT.as_millis());
        let stored = stored.map_err(|_| late()).and_then(|r| r.map_err(|e| e.to_string()));
        let audited = audited.map_err(|_| late()).and_then(|r| r.map_err(|e| chain(&e)));
        let why = match (stored, audited) {
            (Ok(()), Ok(())) => return Ok(()),
            (Err(stored), Ok(())) => stored,
            (_, Err(audited)) => format!("the audit trail: {audited}"),
        };
        tracing::error!(job = %id, "a job was refused: {why}");
        let error = unwritten(why);
        // Whichever of the two is there, or comes there late, is taken back. Nobody waits for it: a disk that hangs
        // would keep the client waiting with it.
        let jobs = self.clone();
        let refused =
            AuditEvent::job_ended(&caller, id, JobStatus::Failed, Some(Outcome::Unchanged), Some(&error));
        self.inner.tasks.spawn(async move {
            jobs.inner.audit.record_later(refused);
            if let Err(error) = jobs.inner.store.remove(id).await {
                tracing::error!(%error, job = %id, "a refused job may come back at the next start");
            }
        });
        Err(error)
    }
}

/// The record of an acceptance.
pub(super) fn accepted(caller: &Caller, head: &Head) -> AuditEvent {
    AuditEvent::new(
        AuditKind::JobAccepted {
            job_id: head.job.job_id,
            kind: head.job.kind.clone(),
            request: head.job.request.clone(),
        },
        caller,
    )
}

/// An error and its cause, in one sentence.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn check_key(key: &str) -> Result<(), ErrorDetail> {
    if (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(ErrorDetail::new(
            ErrorCode::InvalidRequest,
            "Idempotency-Key has to be 1 to 255 visible ASCII characters",
        ))
    }
}
