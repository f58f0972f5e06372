//! A job's way through the root side: handed over, followed, settled if need be, and recorded at its end.

use std::{io, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use patch_audit::{AuditEvent, Caller};
use patch_types::{
    ErrorCode, ErrorDetail, Event, JobId, JobStatus, Outcome, Query,
    event::{Ended, QueryResult},
    executor::{OnBehalf, PROTOCOL, Reply, Request, RequestBody},
};
use tokio::time::{Instant, sleep};

use super::{
    Jobs,
    mirror::{Effect, ended_by_us},
    record::{Head, Record},
    stream,
    submit::{accepted, chain},
    table::{Stage, Table},
};
use crate::executor::follow::{APPEARANCE, Follow, FollowEnd, FollowError, Step};

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How a task takes a job up.
pub(super) enum Start {
    /// It is to be handed over.
    Dispatch,
    /// The root side has begun already.
    Follow,
    /// It has ended in a way that nobody recorded yet.
    End(Box<Ended>),
}

/// How and when a job ended.
pub(super) struct End {
    pub(super) ended: Box<Ended>,
    pub(super) at: Timestamp,
    /// Whether the root side has it on disk. Otherwise only this process knows it until it is recorded.
    pub(super) is_durable: bool,
}

impl Jobs {
    /// Hands over as many of the waiting jobs as may be active.
    pub(super) fn pump(&self) {
        self.pump_table(&mut self.table());
    }

    /// The same under the lock that the caller holds, so that nobody sees a place that is free while a job waits.
    pub(super) fn pump_table(&self, table: &mut Table) {
        if self.inner.stop.is_cancelled() {
            return;
        }
        let most = table.settings.max_active.max(1);
        while let Some(first) =
            table.queue.iter().position(|id| table.active < most || !table.is_counted(*id))
            && let Some(id) = table.queue.remove(first)
        {
            let Some(live) = table.live(id) else { continue };
            live.stage = Stage::Dispatching;
            table.active += usize::from(live.is_counted());
            self.start(id, Start::Dispatch);
        }
    }

    /// Takes a job up. It counts as active already.
    pub(super) fn start(&self, id: JobId, start: Start) {
        let jobs = self.clone();
        self.inner.tasks.spawn(async move {
            let stop = jobs.inner.stop.clone();
            // Stopping in the middle is safe: everything that counts is on disk, here or on the root side.
            let end = tokio::select! {
                () = stop.cancelled() => return,
                end = jobs.carry(id, start) => end,
            };
            jobs.finish(id, end).await;
        });
    }

    async fn carry(&self, id: JobId, start: Start) -> End {
        let handed_over = match start {
            Start::End(ended) => Err(ended),
            Start::Follow => Ok(()),
            Start::Dispatch => self.dispatch(id).await,
        };
        match handed_over {
            Ok(()) => {
                let cancel = self.table().live(id).is_some_and(|live| {
                    live.stage = Stage::Following;
                    live.cancel
                });
                if cancel {
                    // Too late is a fine answer here: the job goes on, as its state says.
                    let _ = self.ask_to_cancel(id).await;
                }
                self.follow(id).await
            }
            Err(ended) => now(*ended),
        }
    }

    /// Hands a job over. Repeating is safe: the root side knows a job that it has seen, by its id.
    async fn dispatch(&self, id: JobId) -> Result<(), Box<Ended>> {
        let gone = || Box::new(unchanged(ErrorDetail::new(ErrorCode::JobNotFound, "the job is gone")));
        let (request, events, wake, audit_first, patience, mut pause) = {
            let mut table = self.table();
            let (patience, pause) = (table.settings.patience, table.settings.retry);
            let live = table.live(id).ok_or_else(gone)?;
            let head = &live.mirror.head;
            let body = RequestBody::Change {
                operation: head.operation.clone(),
                limits: head.limits,
                if_plan: head.if_plan.clone(),
                options: head.options.clone(),
                not_after: head.not_after,
            };
            let audit_first = live.audit_first.then(|| accepted(&Caller::from(&head.job.requested_by), head));
            let on_behalf = OnBehalf { client: Some(head.job.requested_by.clone()), sudo_user: None };
            let request = Request { protocol: PROTOCOL, id, body, on_behalf: Some(on_behalf) };
            let events = self.inner.executor.events_of(id);
            (request, events, Arc::clone(&live.wake), audit_first, patience, pause)
        };
        let deadline = Instant::now() + patience;
        let mut audit_first = audit_first;
        let mut may_have_begun = false;
        loop {
            if !may_have_begun && self.table().live(id).is_some_and(|live| live.cancel) {
                return Err(Box::new(cancelled("before it began")));
            }
            let problem = if let Some(record) = audit_first.take() {
                match self.inner.audit.record_durable(record.clone()).await {
                    Ok(()) => continue,
                    Err(error) => {
                        audit_first = Some(record);
                        ErrorDetail::new(ErrorCode::ServiceUnhealthy, chain(&error))
                    }
                }
            } else {
                match self.inner.executor.submit(&request).await {
                    Ok(Reply::Accepted | Reply::Known | Reply::Signed { .. }) => return Ok(()),
                    Ok(Reply::Refused { code, message }) => {
                        may_have_begun = false;
                        let refusal = ErrorDetail::new(code, message);
                        if code != ErrorCode::ServiceUnhealthy && !has_begun(&events) {
                            return Err(Box::new(unchanged(refusal)));
                        }
                        refusal
                    }
                    Err(error) => {
                        may_have_begun |= error.may_have_begun();
                        ErrorDetail::from(error)
                    }
                }
            };
            tracing::warn!(job = %id, "the job cannot be handed over yet: {}", problem.message);
            if has_begun(&events) {
                return Ok(());
            }
            // What may have begun is not given up: it would be called failed, and then happen.
            if !may_have_begun && Instant::now() >= deadline {
                return Err(Box::new(unchanged(problem)));
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = wake.notified() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Mirrors the events until the job has ended, whatever happens to its executor.
    async fn follow(&self, id: JobId) -> End {
        let path = self.inner.executor.events_of(id);
        let mut settling = Settling { pause: self.table().settings.retry, failures: 0, last_words: None };
        loop {
            let after = self.table().live(id).map_or(0, |live| live.mirror.head.job.last_seq);
            let failed = match Follow::open(path.clone(), after, APPEARANCE).await {
                Ok(mut follow) => match self.follow_file(id, &mut follow, &mut settling).await {
                    Ok(end) => return end,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            match failed {
                FollowError::Io { .. } => {
                    // Nothing is known to be wrong with the job: a person may have to mend the permissions.
                    tracing::error!(job = %id, "the job cannot be followed for now: {}", chain(&failed));
                    sleep(settling.next_pause()).await;
                }
                FollowError::Missing(_) => match self.settle(id, &mut settling).await {
                    Some(end) => return end,
                    None => sleep(settling.next_pause()).await,
                },
                FollowError::Malformed { .. } | FollowError::Gap { .. } => {
                    let mut error = ErrorDetail::from(failed);
                    error
                        .message
                        .push_str("; what the job did to the host is not known, and it may still be at work");
                    return now(ended_by_us(JobStatus::Failed, None, error));
                }
            }
        }
    }

    async fn follow_file(
        &self,
        id: JobId,
        follow: &mut Follow,
        settling: &mut Settling,
    ) -> Result<End, FollowError> {
        let mut first_death = true;
        loop {
            match follow.next().await? {
                Step::Events(events) => {
                    if let Some(end) = self.mirror(id, events) {
                        return Ok(end);
                    }
                    // Who waits for a reboot may do so for weeks, and die now and then.
                    if self.is_reboot(id) {
                        settling.failures = 0;
                    }
                    // A long file is read in chunks; between two of them subscribers get their turn.
                    tokio::task::yield_now().await;
                }
                Step::End(FollowEnd::Ended) => {
                    // Only when the end was mirrored before, which returns.
                    return Ok(now(ended_by_us(
                        JobStatus::Failed,
                        None,
                        ErrorDetail::new(ErrorCode::ServiceUnhealthy, "the job's end was overlooked"),
                    )));
                }
                Step::End(FollowEnd::Abandoned) => {
                    if !std::mem::take(&mut first_death) {
                        sleep(settling.next_pause()).await;
                    }
                    if let Some(end) = self.settle(id, settling).await {
                        return Ok(end);
                    }
                    // Who settles it replies first and locks the file then: until that it looks dead.
                    follow.grant(self.table().settings.settle_grace);
                }
            }
        }
    }

    /// Takes events over and shows them. Returns the job's end, which is not shown yet.
    fn mirror(&self, id: JobId, events: Vec<Event>) -> Option<End> {
        let mut begun = None;
        let mut end = None;
        {
            let mut table = self.table();
            let live = table.live(id)?;
            let now = std::time::Instant::now();
            for event in events {
                let was = live.mirror.head.job.status;
                match live.mirror.apply(event, now) {
                    Effect::None => {}
                    Effect::Status => self.inner.hub.publish(live, |live| stream::status(live, false)),
                    Effect::Details => self.inner.hub.publish(live, |live| stream::status(live, true)),
                    Effect::Log(entry) => self.inner.hub.publish(live, |_| entry.frame(id)),
                    Effect::Ended(ended, at) => {
                        end = Some(End { ended, at, is_durable: true });
                        break;
                    }
                }
                if was == JobStatus::Pending {
                    begun = Some(live.mirror.head.clone());
                }
            }
        }
        if let (Some(head), None) = (begun, &end) {
            self.store_begun(head);
        }
        end
    }

    /// Puts on disk that a job runs. Nobody waits for it: whether it has begun is told by the event file. But its place
    /// in the order is taken here and now, before that of the job's end.
    fn store_begun(&self, head: Head) {
        let id = head.job.job_id;
        let Ok(record) = Record::bare(head).to_json() else { return };
        if let Err(error) = self.inner.store.enqueue(id, record) {
            tracing::warn!(%error, job = %id, "that the job runs is not on disk");
        }
    }

    /// Has the root side repair what a dead executor left. What comes of it stands in the job's own event file, so
    /// `None` says: look there.
    async fn settle(&self, id: JobId, settling: &mut Settling) -> Option<End> {
        if settling.failures >= self.table().settings.settle_attempts
            && !self.may_reboot_for(id, settling).await
        {
            let words = settling.last_words.take().unwrap_or_else(|| "it gave no reason".to_owned());
            return Some(now(ended_by_us(
                JobStatus::Failed,
                None,
                ErrorDetail::new(
                    ErrorCode::ServiceUnhealthy,
                    format!(
                        "the root side died over the job and could not settle it ({words}); what the job did to the \
                         host is not known: see `journalctl -u 'linux-patch-executor@*'` and `dpkg --audit`"
                    ),
                ),
            )));
        }
        let request = crate::executor::request(RequestBody::Settle { job: id });
        match self.inner.executor.submit(&request).await {
            Ok(Reply::Accepted | Reply::Known | Reply::Signed { .. }) => settling.failures += 1,
            // Somebody else is at it: recovery at boot, or the executor itself, still alive.
            Ok(Reply::Refused { code: ErrorCode::JobConflict | ErrorCode::LockTimeout, .. }) => {}
            Ok(Reply::Refused { code, message }) => {
                settling.failures += 1;
                settling.last_words = Some(format!("{code}: {message}"));
            }
            // Not counted: as long as nobody can be asked, nothing is known to have failed.
            Err(error) => {
                tracing::error!(job = %id, "the job cannot be settled yet: {}", ErrorDetail::from(error).message);
            }
        }
        None
    }
}

impl Jobs {
    fn is_reboot(&self, id: JobId) -> bool {
        self.table().live(id).is_some_and(|live| !live.is_counted())
    }

    /// Whether the host may still be rebooted for a job: it must not be called failed before.
    async fn may_reboot_for(&self, id: JobId, settling: &Settling) -> bool {
        if !self.is_reboot(id) {
            return false;
        }
        let is_gone = match self.inner.executor.query(Query::RebootWindow).await {
            Ok(QueryResult::RebootWindow(status)) => !status.queued.iter().any(|queued| queued.job_id == id),
            // As long as nobody can be asked, it may be.
            _ => false,
        };
        if !is_gone {
            let words = settling.last_words.as_deref().unwrap_or("it gives no reason");
            tracing::error!(job = %id, "the root side cannot settle the reboot, which is still queued ({words})");
        }
        !is_gone
    }
}

/// How settling a job has gone so far.
struct Settling {
    pause: Duration,
    failures: u32,
    last_words: Option<String>,
}

impl Settling {
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// Whether the root side has begun a job. If that cannot be told, yes: following it will tell.
pub(super) fn has_begun(events: &Path) -> bool {
    match std::fs::metadata(events) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// An end that nobody else knows.
fn now(ended: Ended) -> End {
    End { ended: Box::new(ended), at: Timestamp::now(), is_durable: false }
}

/// A failure before anything changed.
pub(super) fn unchanged(error: ErrorDetail) -> Ended {
    ended_by_us(JobStatus::Failed, Some(Outcome::Unchanged), error)
}

/// Cancelled before anything changed.
pub(super) fn cancelled(when: &str) -> Ended {
    ended_by_us(
        JobStatus::Cancelled,
        Some(Outcome::Unchanged),
        ErrorDetail::new(
            ErrorCode::JobCancelled,
            format!("the job was cancelled {when}; nothing was changed"),
        ),
    )
}

/// The records of a job's end: its own, and one for each package.
pub(super) fn end_events(caller: &Caller, job: &patch_types::api::Job, ended: &Ended) -> Vec<AuditEvent> {
    let mut events: Vec<AuditEvent> =
        ended.results.iter().map(|r| AuditEvent::package_changed(caller, job.job_id, r)).collect();
    events.push(AuditEvent::job_ended(
        caller,
        job.job_id,
        job.status,
        job.outcome,
        job.error_detail.as_ref(),
    ));
    events
}
