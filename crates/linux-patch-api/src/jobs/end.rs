//! A job's end: recorded first, shown then. And the ends that a client asks for.

use std::time::Duration;

use jiff::Timestamp;
use patch_audit::{AuditEvent, AuditKind, Caller};
use patch_types::{
    ErrorCode, ErrorDetail, JobId, Phase,
    api::{Job, Requester, ServerMessage},
    event::Ended,
    executor::{Reply, RequestBody},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Jobs,
    following::Stopping,
    mirror::end,
    record::{Record, full},
    run::{End, cancelled, end_events},
    submit::{DURABLE_LIMIT, chain},
    table::{Past, Slot, Stage},
};

/// The longest pause between two attempts to record it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a cancellation comes upon.
enum Way {
    /// The job waits here.
    Waiting,
    /// Not before it is recorded who wants it.
    Audit,
    /// It is being handed over; its task will see to it.
    Noted(Box<Job>),
    /// The root side has it.
    Ask,
}

impl Jobs {
    /// Records a job's end and shows it.
    pub(super) async fn finish(&self, id: JobId, End { ended, at, is_durable }: End) {
        let Some(mut record) = self.ending(id, &ended, at) else { return };
        match self.follow_with_reboot(&record, &ended, at).await {
            Ok(reboot) => record.head.job.reboot = reboot,
            Err(Stopping) => return,
        }
        let caller = Caller::from(&record.head.job.requested_by);
        let mut events = end_events(&caller, &record.head.job, &ended);
        let (mut pause, held_back) = {
            let table = self.table();
            (table.settings.retry, table.settings.held_back)
        };
        let deadline = Instant::now() + held_back;
        let mut shown = false;
        while let Err(problem) = self.record_end(&record, &mut events).await {
            tracing::error!(job = %id, "the job's end cannot be recorded: {problem}");
            if is_durable && !shown && Instant::now() >= deadline {
                self.show_end(id, &record, true, true);
                shown = true;
            }
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if shown {
            if let Some(Slot::Past(past)) = self.table().slots.get_mut(&id) {
                past.unsaved = None;
            }
        } else {
            self.show_end(id, &record, true, false);
        }
    }

    /// What is to be recorded of a job's end. From here on nobody else ends it.
    fn ending(&self, id: JobId, ended: &Ended, at: Timestamp) -> Option<Record> {
        let mut table = self.table();
        let live = table.live(id)?;
        live.stage = Stage::Ending;
        let mut head = live.mirror.head.clone();
        let plan = live.mirror.plan.clone();
        let (way_back, went_back) = (live.mirror.way_back.clone(), live.mirror.went_back.clone());
        let rehearsal = live.mirror.rehearsal.clone();
        let log = live.mirror.log.entries();
        drop(table);
        end(&mut head.job, ended, at);
        head.add_packages(&ended.results);
        Some(Record {
            head,
            plan: plan.as_deref().cloned(),
            results: ended.results.clone(),
            log: log.iter().map(|entry| entry.line.clone()).collect(),
            way_back: way_back.as_deref().cloned(),
            went_back: went_back.as_deref().cloned(),
            rehearsal: rehearsal.as_deref().cloned(),
        })
    }

    /// One attempt. Audit events are gone once they are on disk, so that no attempt records them again.
    async fn record_end(&self, record: &Record, events: &mut Vec<AuditEvent>) -> Result<(), String> {
        let json = record.to_json().map_err(|e| e.to_string())?;
        let (stored, audited) = tokio::join!(
            self.inner.store.write(record.head.job.job_id, json),
            self.inner.audit.record_all_durable(events),
        );
        stored.map_err(|e| e.to_string())?;
        audited.map_err(|e| chain(&e))
    }

    fn show_end(&self, id: JobId, record: &Record, was_active: bool, unsaved: bool) {
        // First: whoever sees the end is not to be given an answer from before it.
        self.inner.executor.host_changed();
        self.inner.ends.send_modify(|count| *count += 1);
        self.inner.outcomes.count(record.head.job.outcome);
        let mut complete = record.head.job.clone();
        complete.plan.clone_from(&record.plan);
        complete.results.clone_from(&record.results);
        complete.way_back = record.way_back.clone().or(complete.way_back);
        complete.went_back = record.went_back.clone().or(complete.went_back);
        complete.rehearsal = record.rehearsal.clone().or(complete.rehearsal);
        let complete = ServerMessage::JobComplete(Box::new(complete));
        let ended = {
            let mut table = self.table();
            let Some(live) = table.live(id) else { return };
            self.inner.hub.publish_end(live, &complete);
            let ended = live.ended.clone();
            let is_counted = live.is_counted();
            let confirmed = live.mirror.head.confirmed;
            let mut past = Past::new(record.head.clone());
            // The root side may end the job before its answer to the confirmation is here.
            past.confirmed |= confirmed;
            if unsaved {
                past.unsaved = Some(Box::new(record.clone()));
            }
            table.slots.insert(id, Slot::Past(Box::new(past)));
            if was_active && is_counted {
                table.active -= 1;
            }
            self.pump_table(&mut table);
            ended
        };
        ended.send_replace(true);
        self.prune();
    }

    /// Forgets ended jobs that are too old or too many. Called by itself at start and whenever a job ends.
    pub fn prune(&self) {
        let gone = self.table().prune(Timestamp::now());
        if gone.is_empty() {
            return;
        }
        let jobs = self.clone();
        self.inner.tasks.spawn(async move {
            for id in gone {
                if let Err(error) = jobs.inner.store.remove(id).await {
                    tracing::warn!(%error, job = %id, "an old job cannot be removed");
                }
            }
        });
    }

    /// Cancels a job while that is safe.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`, `JOB_CONFLICT` (too late), or `SERVICE_UNHEALTHY`.
    pub async fn cancel(&self, id: JobId, requester: &Requester) -> Result<Job, ErrorDetail> {
        // A task of its own: a client that hangs up must not leave the job neither waiting nor ended, nor a record of a
        // cancellation that was never tried.
        let (jobs, requester) = (self.clone(), requester.clone());
        self.inner.tasks.spawn(async move { jobs.call_off(id, &requester).await }).await.unwrap_or_else(
            |_| {
                Err(ErrorDetail::new(
                    ErrorCode::ServiceUnhealthy,
                    "the job could not be cancelled: see the agent's journal",
                ))
            },
        )
    }

    async fn call_off(&self, id: JobId, requester: &Requester) -> Result<Job, ErrorDetail> {
        let mut is_audited = false;
        loop {
            match self.way_to_cancel(id, is_audited)? {
                Way::Audit => {
                    self.audit_cancellation(id, requester).await?;
                    is_audited = true;
                }
                Way::Noted(job) => return Ok(*job),
                Way::Ask => {
                    self.ask_to_cancel(id).await?;
                    return self.get(id).await.ok_or_else(|| {
                        ErrorDetail::new(ErrorCode::JobNotFound, format!("there is no job {id}"))
                    });
                }
                Way::Waiting => return self.cancel_waiting(id, requester).await,
            }
        }
    }

    /// Records who wants a job cancelled that the root side has, or is about to have: that changes what becomes of the
    /// host, so it is on disk first. (A job that waits here has its end recorded instead.)
    async fn audit_cancellation(&self, id: JobId, requester: &Requester) -> Result<(), ErrorDetail> {
        self.audit_wish(format!("cancellation of job {id} asked for"), requester).await.map_err(|why| {
            ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                format!(
                    "the job was not cancelled, because that could not be recorded in the audit trail: {why}"
                ),
            )
        })
    }

    /// Records what somebody wants of a job that the root side has. An error is why that is not on disk.
    pub(super) async fn audit_wish(&self, what: String, requester: &Requester) -> Result<(), String> {
        let event = AuditEvent::new(AuditKind::SystemChanged { what }, &Caller::from(requester));
        match timeout(DURABLE_LIMIT, self.inner.audit.record_durable(event)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(_) => Err(format!("no answer from the disk within {} ms", DURABLE_LIMIT.as_millis())),
        }
    }

    fn way_to_cancel(&self, id: JobId, is_audited: bool) -> Result<Way, ErrorDetail> {
        // Not retryable, unlike other conflicts: the moment has passed for good.
        let conflict = |what: String| {
            Err(ErrorDetail { retryable: false, ..ErrorDetail::new(ErrorCode::JobConflict, what) })
        };
        let mut table = self.table();
        let live = match table.slots.get_mut(&id) {
            None => return Err(ErrorDetail::new(ErrorCode::JobNotFound, format!("there is no job {id}"))),
            Some(Slot::Past(past)) => {
                return conflict(format!(
                    "the job has ended already ({}): there is nothing to cancel",
                    past.job.status
                ));
            }
            Some(Slot::Live(live)) => live,
        };
        match live.stage {
            Stage::Queued => {
                live.stage = Stage::Ending;
                table.queue.retain(|queued| *queued != id);
                Ok(Way::Waiting)
            }
            Stage::Dispatching if !is_audited => Ok(Way::Audit),
            Stage::Dispatching => {
                live.cancel = true;
                live.wake.notify_one();
                Ok(Way::Noted(Box::new(full(live.shown(false), None, Vec::new(), Vec::new()))))
            }
            Stage::Following => match live.mirror.head.job.phase {
                Some(Phase::Rebooting) => conflict(
                    "the host is being rebooted for this job: it cannot be cancelled any more".to_owned(),
                ),
                Some(phase) if !phase.is_cancellable() => conflict(format!(
                    "the job is {}: it cannot be cancelled any more, because that would leave the packages half done; \
                     wait for its end and roll it back if need be",
                    phase.as_str().replace('_', " ")
                )),
                _ if !is_audited => Ok(Way::Audit),
                _ => Ok(Way::Ask),
            },
            Stage::Ending => conflict("the job is just ending: there is nothing to cancel".to_owned()),
        }
    }

    /// Asks the root side. It decides, since it alone knows what the job is doing at this moment.
    pub(super) async fn ask_to_cancel(&self, id: JobId) -> Result<(), ErrorDetail> {
        let request = crate::executor::request(RequestBody::Cancel { job: id });
        match self.inner.executor.submit(&request).await? {
            Reply::Accepted | Reply::Known | Reply::Signed { .. } => Ok(()),
            Reply::Refused { code, message } => Err(ErrorDetail::new(
                if code == ErrorCode::ServiceUnhealthy { code } else { ErrorCode::JobConflict },
                format!("the root side does not cancel the job: {message}"),
            )),
        }
    }

    /// Ends a job that waits here and was taken out of the queue: on disk first, so that no later start begins it.
    async fn cancel_waiting(&self, id: JobId, requester: &Requester) -> Result<Job, ErrorDetail> {
        let ended = cancelled(&format!("by {} before it began", requester.identity));
        let Some(record) = self.ending(id, &ended, Timestamp::now()) else {
            return Err(ErrorDetail::new(ErrorCode::JobNotFound, format!("there is no job {id}")));
        };
        let mut events = end_events(&Caller::from(requester), &record.head.job, &ended);
        if let Err(problem) = self.record_cancelled(&record, &mut events).await {
            let pending = self.table().live(id).map(|live| Record::bare(live.mirror.head.clone()));
            let restored = match pending.map(|record| record.to_json()) {
                Some(Ok(json)) => self.inner.store.write(id, json).await.map_err(|e| e.to_string()),
                _ => Err("it cannot be written".to_owned()),
            };
            if let Err(error) = &restored {
                tracing::warn!(job = %id, "whether the job is cancelled on disk is not known: {error}");
            }
            self.queue_again(id);
            return Err(ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                format!("the job was not cancelled, because that could not be made durable: {problem}"),
            ));
        }
        let job = record.clone().into_job();
        self.show_end(id, &record, false, false);
        Ok(job)
    }

    async fn record_cancelled(&self, record: &Record, events: &mut Vec<AuditEvent>) -> Result<(), String> {
        let json = record.to_json().map_err(|e| e.to_string())?;
        self.inner.store.write(record.head.job.job_id, json).await.map_err(|e| e.to_string())?;
        self.inner.audit.record_all_durable(events).await.map_err(|e| chain(&e))
    }

    /// Puts a job back to its place among those that wait.
    fn queue_again(&self, id: JobId) {
        let mut table = self.table();
        let Some(live) = table.live(id) else { return };
        live.stage = Stage::Queued;
        let place = table.queue.iter().position(|queued| *queued > id).unwrap_or(table.queue.len());
        table.queue.insert(place, id);
        self.pump_table(&mut table);
    }
}
