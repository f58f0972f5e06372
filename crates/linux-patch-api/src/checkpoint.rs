//! Has the root side sign the head of the audit trail, now and then: from then on nobody who has only this process can
//! change what lies before without that showing.

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller, Head, read_checkpoint};
use patch_types::{
    ErrorCode,
    executor::{CHECKPOINT_HEAD, Reply, RequestBody},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    audit::Audit,
    executor::{Executor, request},
};

/// How often, if something was written.
const EVERY: Duration = Duration::from_secs(600);

/// How soon again, if there was no answer.
const AGAIN: Duration = Duration::from_secs(60);

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

/// How it went when the root side was asked for signatures.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signing {
    /// The last record that was signed since the start, and when.
    pub signed: Option<(u64, Timestamp)>,
    /// Why the last attempt came to nothing, if it did.
    pub trouble: Option<Trouble>,
}

/// Why there is no signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The root side refuses: the trail contradicts what it has signed before.
    Refused(String),
    /// It did not answer, or could not sign.
    Unanswered(String),
    /// Nobody asks any more.
    Ended(String),
}

/// Works, and tells if that fails.
async fn told(signing: &ArcSwap<Signing>, work: impl Future<Output = ()> + Send + 'static) {
    let mut working = JoinSet::new();
    working.spawn(work);
    if let Some(Err(error)) = working.join_next().await {
        let trouble = format!("the part of the agent that asks for signatures has failed ({error})");
        tracing::error!("{trouble}; restart linux-patch-api");
        let signed = signing.load().signed;
        signing.store(Arc::new(Signing { signed, trouble: Some(Trouble::Ended(trouble)) }));
    }
}

/// Asks for signatures.
pub struct Checkpoints {
    executor: Executor,
    audit: Audit,
    log: Arc<AuditLog>,
    /// The last record that was signed, or records a signature.
    last: u64,
    /// What others are told; what went wrong is recorded when it is other than before.
    signing: Arc<ArcSwap<Signing>>,
}

impl Checkpoints {
    /// Of one trail. How it goes is told in `signing`.
    #[must_use]
    pub fn new(executor: Executor, log: Arc<AuditLog>, signing: Arc<ArcSwap<Signing>>) -> Self {
        Self { executor, audit: Audit::new(Arc::clone(&log)), log, last: 0, signing }
    }

    /// Works until it is dropped: at once, every ten minutes, and after each change. If it fails, that is told.
    pub async fn keep(self, ends: watch::Receiver<u64>) {
        let signing = Arc::clone(&self.signing);
        told(&signing, self.work(ends)).await;
    }

    async fn work(mut self, mut ends: watch::Receiver<u64>) {
        loop {
            self.sign().await;
            let pause = match &self.signing.load().trouble {
                Some(Trouble::Unanswered(_)) => AGAIN,
                _ => EVERY,
            };
            tokio::select! {
                () = sleep(pause) => {}
                changed = ends.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    sleep(AFTER_JOB).await;
                }
            }
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
                let signed = Some((checkpoint.head.seq, checkpoint.at));
                self.signing.store(Arc::new(Signing { signed, trouble: None }));
                self.last = head.seq;
                let event = AuditEvent::new((&checkpoint).into(), &Caller::local());
                if matches!(timeout(LAST_RECORD, self.audit.record_durable(event)).await, Ok(Ok(()))) {
                    // A record of a signature alone is no reason for another one.
                    self.last =
                        self.log.head().filter(|now| now.seq == head.seq + 1).map_or(head.seq, |now| now.seq);
                }
            }
            Reply::Refused { code: ErrorCode::SignatureError, message } => {
                if self.is_news(Trouble::Refused(message.clone())) {
                    tracing::error!("audit checkpoint refused: {message}");
                    let kind = AuditKind::CheckpointRefused {
                        head_seq: head.seq,
                        head_hash: head.hash.to_string(),
                        reason: message,
                    };
                    self.audit.record_later(AuditEvent::new(kind, &Caller::local()));
                }
            }
            Reply::Refused { message, .. } => self.tell(message),
            Reply::Accepted | Reply::Known => self.tell("it answered something else".to_owned()),
        }
    }

    fn tell(&self, trouble: String) {
        let said = format!("the root side does not sign the audit trail, which is tried again: {trouble}");
        if self.is_news(Trouble::Unanswered(trouble)) {
            tracing::warn!("{said}");
        }
    }

    /// Takes note of what went wrong; whether it is other than before.
    fn is_news(&self, trouble: Trouble) -> bool {
        let before = self.signing.load_full();
        if before.trouble.as_ref() == Some(&trouble) {
            return false;
        }
        self.signing.store(Arc::new(Signing { signed: before.signed, trouble: Some(trouble) }));
        true
    }
}

#[cfg(test)]
mod tests {
    use patch_audit::{Key, Options};

    use super::*;
    use crate::jobs::testing::Root;

    #[tokio::test]
    async fn that_nobody_asks_any_more_is_told() {
        let signing = ArcSwap::<Signing>::default();
        told(&signing, async {}).await;
        assert_eq!(signing.load().trouble, None, "it ends with the jobs");
        told(&signing, async { panic!("a fault") }).await;
        assert!(matches!(&signing.load().trouble, Some(Trouble::Ended(why)) if why.contains("failed")));
    }

    #[tokio::test]
    async fn how_signing_goes_is_told_and_a_refusal_recorded_once() {
        let root = Root::new();
        let path = root.path().join(patch_audit::LOG_PATH);
        let log = Arc::new(AuditLog::open(&path, Options::new("test").without_journal()).unwrap());
        let signing = Arc::<ArcSwap<Signing>>::default();
        let mut checkpoints = Checkpoints::new(root.executor(), Arc::clone(&log), Arc::clone(&signing));
        let record = || {
            let kind = AuditKind::SystemChanged { what: "a change".to_owned() };
            log.record(AuditEvent::new(kind, &Caller::local())).unwrap().seq
        };
        let trouble = || signing.load().trouble.clone();
        record();
        checkpoints.sign().await;
        assert!(matches!(trouble(), Some(Trouble::Unanswered(why)) if why.contains("no key here")));

        let key = Key::open(&root.path().join("key"), &root.path().join("pub")).unwrap();
        root.manners(|m| m.key = Some(key));
        checkpoints.sign().await;
        let signed = signing.load().signed.map(|(seq, _)| seq);
        assert_eq!((trouble(), signed), (None, Some(1)));

        root.manners(|m| m.refuse_signature = true);
        for _ in 0..3 {
            record();
            checkpoints.sign().await;
        }
        assert!(matches!(trouble(), Some(Trouble::Refused(why)) if why.contains("record 9")));
        assert_eq!(signing.load().signed.map(|(seq, _)| seq), signed, "what was signed stays signed");
        root.manners(|m| m.refuse_signature = false);
        checkpoints.sign().await;
        assert_eq!(trouble(), None);
        log.close();
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.matches("\"event\":\"checkpoint_refused\"").count(), 1, "{text}");
        assert_eq!(text.matches("\"event\":\"checkpoint\"").count(), 2);
    }
}
