//! Has the root side sign the head of the audit trail, now and then: from then on nobody who has only this process can
//! change what lies before without that showing.

use std::{path::Path, sync::Arc, time::Duration};

use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller, Head, read_checkpoint};
use patch_types::{
    ErrorCode,
    executor::{CHECKPOINT_HEAD, Reply, RequestBody},
};
use tokio::{sync::watch, time::timeout};

use crate::{
    audit::Audit,
    executor::{Executor, request},
};

/// How often, if something was written.
const EVERY: Duration = Duration::from_secs(600);

/// How long after the end of a job: several that end together need one signature.
const AFTER_JOB: Duration = Duration::from_secs(1);

/// How long recording a signature may take: the disk may hang, and the daemon shall end all the same.
const LAST_RECORD: Duration = Duration::from_secs(2);

/// How long one may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The record that the root side signed last; none if it has signed none, or that cannot be read.
#[must_use]
pub fn known(root: &Path) -> Option<Head> {
    let path = root.join(CHECKPOINT_HEAD);
    let read = read_checkpoint(&path).inspect_err(|error| {
        tracing::warn!(%error, "the last checkpoint of the audit trail cannot be read");
    });
    Head::try_from(&read.ok()??.head).ok()
}

/// Asks for signatures.
pub struct Checkpoints {
    executor: Executor,
    audit: Audit,
    log: Arc<AuditLog>,
    /// The last record that was signed, or records a signature.
    last: u64,
    /// What went wrong the last time, so that it is told once.
    trouble: Option<String>,
}

impl Checkpoints {
    /// Of one trail.
    #[must_use]
    pub fn new(executor: Executor, log: Arc<AuditLog>) -> Self {
        Self { executor, audit: Audit::new(Arc::clone(&log)), log, last: 0, trouble: None }
    }

    /// Works until it is dropped: at once, every ten minutes, and after each change.
    pub async fn keep(mut self, mut ends: watch::Receiver<u64>) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                changed = ends.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    tokio::time::sleep(AFTER_JOB).await;
                }
            }
            self.sign().await;
        }
    }

    /// Has the present head signed, if it is a new one, and records the signature.
    pub async fn sign(&mut self) {
        let Some(head) = self.log.head().filter(|head| head.seq > self.last) else { return };
        let request = request(RequestBody::Checkpoint { head: head.into() });
        let answer = match timeout(LIMIT, self.executor.submit(&request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return self.tell(format!("{:#}", anyhow::Error::from(error))),
            Err(_) => return self.tell(format!("no answer within {} s", LIMIT.as_secs())),
        };
        match answer {
            Reply::Signed { checkpoint } => {
                self.trouble = None;
                self.last = head.seq;
                let event = AuditEvent::new((&checkpoint).into(), &Caller::local());
                if matches!(timeout(LAST_RECORD, self.audit.record_durable(event)).await, Ok(Ok(()))) {
                    // A record of a signature alone is no reason for another one.
                    self.last =
                        self.log.head().filter(|now| now.seq == head.seq + 1).map_or(head.seq, |now| now.seq);
                }
            }
            Reply::Refused { code: ErrorCode::SignatureError, message } => {
                if self.trouble.as_ref() != Some(&message) {
                    tracing::error!("audit checkpoint refused: {message}");
                    let kind = AuditKind::CheckpointRefused {
                        head_seq: head.seq,
                        head_hash: head.hash.to_string(),
                        reason: message.clone(),
                    };
                    self.audit.record_later(AuditEvent::new(kind, &Caller::local()));
                    self.trouble = Some(message);
                }
            }
            Reply::Refused { message, .. } => self.tell(message),
            Reply::Accepted | Reply::Known => self.tell("it answered something else".to_owned()),
        }
    }

    fn tell(&mut self, trouble: String) {
        if self.trouble.as_ref() != Some(&trouble) {
            tracing::warn!("the root side does not sign the audit trail, which is tried again: {trouble}");
            self.trouble = Some(trouble);
        }
    }
}
