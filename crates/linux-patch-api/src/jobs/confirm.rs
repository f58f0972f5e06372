//! Confirming a change that goes back by itself otherwise: over a connection that was made since the change was, because
//! one from before says nothing about whether the host can still be reached.

use std::time::Instant;

use patch_types::{
    ErrorCode, ErrorDetail, JobId,
    api::{Job, Requester},
    executor::{Reply, RequestBody},
};

use super::{
    Jobs,
    mirror::Confirming,
    record::Record,
    table::{Slot, Stage},
};

/// The detail of the refusal that a new connection would not meet.
pub const NEW_CONNECTION: &str = "new_connection";

impl Jobs {
    /// Keeps a change that waits to be confirmed. `accepted` is when the connection was accepted over which that is asked.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`; `JOB_CONFLICT` if the job does not wait for that, or if the connection is older than the waiting
    /// (then with the detail [`NEW_CONNECTION`]); `SERVICE_UNHEALTHY`.
    pub async fn confirm(
        &self,
        id: JobId,
        requester: &Requester,
        accepted: Instant,
    ) -> Result<Job, ErrorDetail> {
        // A task of its own, as with cancelling: what is recorded as asked for is also tried.
        let (jobs, requester) = (self.clone(), requester.clone());
        self.inner.tasks.spawn(async move { jobs.keep(id, &requester, accepted).await }).await.unwrap_or_else(
            |_| {
                Err(ErrorDetail::new(
                    ErrorCode::ServiceUnhealthy,
                    "the job could not be confirmed: see the agent's journal",
                ))
            },
        )
    }

    async fn keep(&self, id: JobId, requester: &Requester, accepted: Instant) -> Result<Job, ErrorDetail> {
        let unknown = || ErrorDetail::new(ErrorCode::JobNotFound, format!("there is no job {id}"));
        if !self.is_confirmed(id, accepted)? {
            let what = format!("confirmation of job {id} asked for");
            self.audit_wish(what, requester).await.map_err(|why| {
                ErrorDetail::new(
                    ErrorCode::ServiceUnhealthy,
                    format!(
                        "the job was not confirmed, because that could not be recorded in the audit trail: {why}"
                    ),
                )
            })?;
            self.ask_to_confirm(id).await?;
        }
        self.get(id).await.ok_or_else(unknown)
    }

    /// Whether a job is confirmed already. An error if it cannot be, or not over this connection.
    fn is_confirmed(&self, id: JobId, accepted: Instant) -> Result<bool, ErrorDetail> {
        let conflict =
            |what: String| ErrorDetail { retryable: false, ..ErrorDetail::new(ErrorCode::JobConflict, what) };
        let mut table = self.table();
        let live = match table.slots.get_mut(&id) {
            None => return Err(ErrorDetail::new(ErrorCode::JobNotFound, format!("there is no job {id}"))),
            Some(Slot::Past(past)) if past.confirmed => return Ok(true),
            Some(Slot::Past(past)) => {
                let how = past.job.outcome.map_or(String::new(), |o| format!(", {}", words(o.as_str())));
                return Err(conflict(format!(
                    "the job has ended already ({}{how}): there is nothing to confirm",
                    past.job.status
                )));
            }
            Some(Slot::Live(live)) => live,
        };
        if live.mirror.head.confirmed {
            return Ok(true);
        }
        match live.mirror.confirming {
            _ if live.stage != Stage::Following => {}
            Some(Confirming::Before) => return Ok(false),
            Some(Confirming::Since(since)) if accepted > since => return Ok(false),
            Some(Confirming::Since(_)) => {
                return Err(ErrorDetail::new(
                    ErrorCode::JobConflict,
                    "confirm over a new connection: this one was made before the change was, and so does not show that \
                     the host can still be reached",
                )
                .with(NEW_CONNECTION, true));
            }
            None => {}
        }
        let job = &live.mirror.head.job;
        let doing = job.phase.map_or(job.status.as_str(), |phase| phase.as_str());
        let message = match live.mirror.head.options.confirm_within {
            None => "the job does not ask to be confirmed: it was made without confirm_within".to_owned(),
            Some(_) => {
                format!("the job does not wait to be confirmed at this moment: it is {}", words(doing))
            }
        };
        let mut error = conflict(message);
        // A change that is still being made will wait.
        error.retryable = live.mirror.head.options.confirm_within.is_some();
        Err(error)
    }

    /// Asks the root side. It decides, since it alone knows whether the time is over.
    async fn ask_to_confirm(&self, id: JobId) -> Result<(), ErrorDetail> {
        let request = crate::executor::request(RequestBody::Confirm { job: id });
        match self.inner.executor.submit(&request).await? {
            Reply::Accepted | Reply::Known | Reply::Signed { .. } => {}
            Reply::Refused { code, message } => {
                return Err(ErrorDetail::new(
                    if code == ErrorCode::ServiceUnhealthy { code } else { ErrorCode::JobConflict },
                    format!("the root side does not take the confirmation: {message}"),
                ));
            }
        }
        let mut table = self.table();
        match table.slots.get_mut(&id) {
            Some(Slot::Live(live)) => {
                live.mirror.head.confirmed = true;
                // So that another confirmation is answered alike after a restart. Its place in the order is taken here,
                // before that of the job's end.
                if live.stage == Stage::Following
                    && let Ok(record) = Record::bare(live.mirror.head.clone()).to_json()
                    && let Err(error) = self.inner.store.enqueue(id, record)
                {
                    tracing::warn!(%error, job = %id, "that the job was confirmed is not on disk");
                }
            }
            Some(Slot::Past(past)) => past.confirmed = true,
            None => {}
        }
        Ok(())
    }
}

fn words(name: &str) -> String {
    name.replace('_', " ")
}
