//! The start: what the last run left is taken up where it stands.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use jiff::Timestamp;
use patch_types::{ErrorCode, ErrorDetail, JobStatus};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Inner, JobSettings, Jobs, JobsError,
    outcome::Counters,
    record::Head,
    run::{Start, has_begun, unchanged},
    store::Store,
    stream::{Hub, OLD_LOGS},
    table::{Live, Past, Slot, Stage, Table},
};
use crate::{
    audit::Audit,
    executor::{Executor, follow::last_number},
};

impl Jobs {
    /// Loads the jobs below the root prefix and takes up what the last run left: see the module's documentation.
    ///
    /// # Errors
    /// When their directory cannot be made or read. A damaged file in it is no error, see [`Jobs::problems`].
    pub async fn open(
        root: &Path,
        executor: Executor,
        audit: Audit,
        settings: JobSettings,
    ) -> Result<Self, JobsError> {
        let root = root.to_path_buf();
        let (store, problems, found) = tokio::task::spawn_blocking(move || {
            // Of ended jobs no more is kept at any moment than what lists show.
            let mut found = BTreeMap::new();
            let (store, problems) = Store::open(&root, |head| {
                found.insert(head.job.job_id, Found::from(head));
            })?;
            Ok::<_, JobsError>((store, problems, found))
        })
        .await
        .map_err(|_| JobsError::Interrupted)??;
        let mut table = Table::new(settings, problems);
        let mut begin = Vec::new();
        let mut active = 0;
        let now = Timestamp::now();
        for (id, found) in found {
            let slot = match found {
                Found::Ended(past) => {
                    table.remember_key(&past.job, past.idempotency.as_ref(), now);
                    Slot::Past(past)
                }
                Found::Open(head) => {
                    table.remember_key(&head.job, head.idempotency.as_ref(), now);
                    let events = executor.events_of(id);
                    let begun = has_begun(&events);
                    let status = head.job.status;
                    let mut live = Live::new(afresh(*head), Stage::Queued);
                    let count = usize::from(live.is_counted());
                    live.mirror.taken_up = last_number(&events);
                    if begun {
                        live.stage = Stage::Following;
                        begin.push((id, Start::Follow));
                        active += count;
                    } else if status == JobStatus::Running {
                        live.stage = Stage::Ending;
                        let mut ended = unchanged(lost());
                        // What it did is not known, and nothing is claimed.
                        ended.outcome = None;
                        begin.push((id, Start::End(Box::new(ended))));
                        active += count;
                    } else {
                        live.audit_first = true;
                        table.queue.push_back(id);
                    }
                    Slot::Live(Box::new(live))
                }
            };
            table.slots.insert(id, slot);
        }
        table.active = active;
        let jobs = Self {
            inner: Arc::new(Inner {
                table: Mutex::new(table),
                store,
                executor,
                audit,
                hub: Hub::new(),
                ends: watch::Sender::new(0),
                outcomes: Counters::default(),
                old_logs: Arc::new(Semaphore::new(OLD_LOGS)),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        };
        for (id, start) in begin {
            jobs.start(id, start);
        }
        jobs.pump();
        jobs.prune();
        Ok(jobs)
    }
}

/// What a job's file holds, as far as it is kept.
enum Found {
    Ended(Box<Past>),
    Open(Box<Head>),
}

impl From<Head> for Found {
    fn from(head: Head) -> Self {
        if head.job.status.is_terminal() {
            Self::Ended(Box::new(Past::new(head)))
        } else {
            Self::Open(Box::new(head))
        }
    }
}

/// The job as it was accepted: what came after is mirrored again from its first event.
fn afresh(mut head: Head) -> Head {
    head.job.last_seq = 0;
    head.job.log_truncated = false;
    head.job.confirm_by = None;
    head.job.scheduled_for = None;
    head
}

fn lost() -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::ServiceUnhealthy,
        "the agent was restarted, and the root side has no record of having begun this job: its state directory was \
         emptied or restored from elsewhere; compare the host with what was asked before asking again",
    )
}
