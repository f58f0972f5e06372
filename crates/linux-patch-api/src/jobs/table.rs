//! What is in memory of the jobs: those that have not ended, whole; of the others what lists show.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use patch_types::{
    JobId, Operation,
    api::{Job, JobList},
};
use tokio::sync::{Notify, watch};

use super::{
    Idempotency, JobCounts, JobFilter, JobSettings,
    mirror::Mirror,
    record::{Head, Record},
};

/// How long an idempotency key is remembered.
pub(super) const KEY_LIFE: SignedDuration = SignedDuration::from_hours(24);

/// A larger request of an ended job is not kept in memory: there may be ten thousand of them, and it is on disk.
const SHORT: usize = 2 << 10;

/// How far a job that has not ended has come on our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for its turn.
    Queued,
    /// It is being handed to the root side; whether that has begun is not known.
    Dispatching,
    /// The root side has begun.
    Following,
    /// Its end is being recorded.
    Ending,
}

/// A job that has not ended.
pub(super) struct Live {
    pub(super) mirror: Mirror,
    pub(super) stage: Stage,
    /// Grows with every message about the job.
    pub(super) version: u64,
    /// Whether its acceptance has to be audited (again) before it may begin: it comes from an earlier run of the
    /// daemon, which may have died between the two syncs.
    pub(super) audit_first: bool,
    /// A client wants it cancelled, and it was being handed over at that moment.
    pub(super) cancel: bool,
    /// Wakes its task when `cancel` is set.
    pub(super) wake: Arc<Notify>,
    /// True once it has ended.
    pub(super) ended: watch::Sender<bool>,
}

impl Live {
    pub(super) fn new(head: Head, stage: Stage) -> Self {
        Self {
            mirror: Mirror::new(head),
            stage,
            version: 0,
            audit_first: false,
            cancel: false,
            wake: Arc::default(),
            ended: watch::Sender::new(false),
        }
    }

    /// Whether it takes one of the places of active jobs. A reboot does nothing but wait, for days if need be, and holds no
    /// other change up.
    pub(super) fn is_counted(&self) -> bool {
        !matches!(self.mirror.head.operation, Operation::Reboot(_))
    }

    pub(super) fn id(&self) -> JobId {
        self.mirror.head.job.job_id
    }

    /// The job as streams show it. The plan, and what else is a line a package, is only in some of the messages: it may
    /// be a thousand times as long as the rest, and does not change.
    pub(super) fn shown(&self, with_details: bool) -> Job {
        let mut job = self.mirror.head.job.clone();
        if with_details {
            job.plan = self.mirror.plan.as_deref().cloned();
            job.way_back = self.mirror.way_back.as_deref().cloned().or(job.way_back);
            job.went_back = self.mirror.went_back.as_deref().cloned().or(job.went_back);
            job.rehearsal = self.mirror.rehearsal.as_deref().cloned().or(job.rehearsal);
        }
        job
    }
}

/// An ended job.
pub(super) struct Past {
    pub(super) job: Job,
    packages: Box<str>,
    pub(super) idempotency: Option<Idempotency>,
    /// Whether it was kept because somebody confirmed it.
    pub(super) confirmed: bool,
    /// The whole, while it could not be written to the disk.
    pub(super) unsaved: Option<Box<Record>>,
}

impl Past {
    pub(super) fn new(head: Head) -> Self {
        let mut job = head.job;
        let length = length_of(&job.request);
        if length > SHORT {
            job.request = serde_json::json!({
                "omitted": format!("{length} bytes; GET /jobs/{} shows them", job.job_id)
            });
        }
        if let Some(error) = &mut job.error_detail
            && error.details.values().map(length_of).sum::<usize>() > SHORT
        {
            error.details.clear();
        }
        Self {
            job,
            packages: head.packages,
            idempotency: head.idempotency,
            confirmed: head.confirmed,
            unsaved: None,
        }
    }
}

/// How long a value is as JSON, without making it.
fn length_of(value: &serde_json::Value) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Neither counting nor a value that was read as JSON can fail; what cannot be counted is not kept.
    serde_json::to_writer(&mut count, value).map_or(usize::MAX, |()| count.0)
}

/// A job.
pub(super) enum Slot {
    Live(Box<Live>),
    Past(Box<Past>),
}

impl Slot {
    pub(super) fn job(&self) -> &Job {
        match self {
            Self::Live(live) => &live.mirror.head.job,
            Self::Past(past) => &past.job,
        }
    }

    pub(super) fn packages(&self) -> &str {
        match self {
            Self::Live(live) => &live.mirror.head.packages,
            Self::Past(past) => &past.packages,
        }
    }

    fn idempotency(&self) -> Option<&Idempotency> {
        match self {
            Self::Live(live) => live.mirror.head.idempotency.as_ref(),
            Self::Past(past) => past.idempotency.as_ref(),
        }
    }
}

/// What an idempotency key stands for.
pub(super) enum Key {
    /// A job that is being made; the channel closes when that is decided.
    Making { body_sha256: String, decided: watch::Receiver<()> },
    /// A job.
    Made { body_sha256: String, job: JobId, at: Timestamp },
}

/// All jobs.
pub(super) struct Table {
    /// By id, which is by age: ids begin with the time.
    pub(super) slots: BTreeMap<JobId, Slot>,
    /// Those that wait, in order.
    pub(super) queue: VecDeque<JobId>,
    /// How many the root side was given.
    pub(super) active: usize,
    /// How many are being made.
    pub(super) making: usize,
    /// By identity and key.
    pub(super) keys: HashMap<(String, String), Key>,
    pub(super) settings: JobSettings,
    pub(super) problems: Vec<String>,
}

impl Table {
    pub(super) fn new(settings: JobSettings, problems: Vec<String>) -> Self {
        Self {
            slots: BTreeMap::new(),
            queue: VecDeque::new(),
            active: 0,
            making: 0,
            keys: HashMap::new(),
            settings,
            problems,
        }
    }

    /// Whether a job takes one of the places of active jobs.
    pub(super) fn is_counted(&self, id: JobId) -> bool {
        !matches!(self.slots.get(&id), Some(Slot::Live(live)) if !live.is_counted())
    }

    pub(super) fn live(&mut self, id: JobId) -> Option<&mut Live> {
        match self.slots.get_mut(&id) {
            Some(Slot::Live(live)) => Some(live),
            _ => None,
        }
    }

    /// Remembers a stored job's key.
    pub(super) fn remember_key(&mut self, job: &Job, idempotency: Option<&Idempotency>, now: Timestamp) {
        if let Some(idempotency) = idempotency
            && is_remembered(job.created_at, now)
        {
            self.keys.insert(
                (job.requested_by.identity.clone(), idempotency.key.clone()),
                Key::Made {
                    body_sha256: idempotency.body_sha256.clone(),
                    job: job.job_id,
                    at: job.created_at,
                },
            );
        }
    }

    pub(super) fn list(&self, filter: &JobFilter) -> JobList {
        let passes = |slot: &&Slot| {
            let job = slot.job();
            filter.status.is_none_or(|status| job.status == status)
                && filter.kind.as_ref().is_none_or(|kind| job.kind == *kind)
                && filter.since.is_none_or(|since| job.created_at >= since)
                && filter
                    .package
                    .as_ref()
                    .is_none_or(|package| slot.packages().lines().any(|p| p == package.as_str()))
        };
        let mut total = 0;
        let mut jobs = Vec::new();
        for slot in self.slots.values().rev().filter(passes) {
            if total >= filter.offset && filter.limit.is_none_or(|limit| jobs.len() < limit) {
                jobs.push(slot.job().clone());
            }
            total += 1;
        }
        JobList { jobs, total }
    }

    pub(super) fn counts(&self) -> JobCounts {
        let live = self.slots.values().filter(|s| matches!(s, Slot::Live(_))).count();
        JobCounts { pending: self.queue.len(), active: self.active, ended: self.slots.len() - live }
    }

    /// Forgets ended jobs that are too old or too many, and returns them. One whose idempotency key still holds stays:
    /// otherwise its retry would be carried out a second time. So does one that is not on disk yet: writing it would
    /// bring it back.
    pub(super) fn prune(&mut self, now: Timestamp) -> Vec<JobId> {
        let age = SignedDuration::from_hours(24 * i64::from(self.settings.keep_days));
        let oldest = now.checked_sub(age).unwrap_or(Timestamp::MIN);
        let mut kept = 0;
        let mut gone = Vec::new();
        for (id, slot) in self.slots.iter().rev() {
            let Slot::Past(past) = slot else { continue };
            let keyed = slot.idempotency().is_some() && is_remembered(past.job.created_at, now);
            let ended = past.job.completed_at.unwrap_or(past.job.created_at);
            if keyed || past.unsaved.is_some() || (kept < self.settings.keep_count && ended >= oldest) {
                kept += 1;
            } else {
                gone.push(*id);
            }
        }
        for id in &gone {
            self.slots.remove(id);
        }
        self.forget_keys(now);
        gone
    }

    /// Forgets the keys that hold no more.
    pub(super) fn forget_keys(&mut self, now: Timestamp) {
        self.keys.retain(|_, key| match key {
            Key::Making { .. } => true,
            Key::Made { at, .. } => is_remembered(*at, now),
        });
    }
}

/// Whether a key of that time still holds. One from the future does: the clock was set back.
pub(super) fn is_remembered(at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(at) < KEY_LIFE
}
