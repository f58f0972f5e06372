//! The other side of the socket, for tests: it takes requests on, writes event files and holds their locks as the root
//! side does, and does nothing else. What happens in an operation is said by the test.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    future::Future,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use patch_types::{
    ChangeOptions, ErrorCode, Event, EventKind, JobId, JobStatus, Operation, Outcome,
    api::{Job, Requester},
    event::{Ended, LogStream, QueryResult},
    executor::{EVENTS_DIR, Limits, Reply, Request, RequestBody, SOCKET, body_length, decode, encode},
};
use rustix::fs::{FlockOperation, flock};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};
use uuid::Uuid;

use super::{Idempotency, JobSettings, Jobs, Submission, record::Head};
use crate::{audit::Script, executor::Executor};

/// Nothing that works takes so long, even on a busy machine.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), work).await.expect("a test waited for what never came")
}

pub(crate) fn job() -> Job {
    head().job
}

pub(super) fn head() -> Head {
    let job = Job {
        job_id: JobId(Uuid::now_v7()),
        kind: "refresh".into(),
        status: JobStatus::Pending,
        phase: None,
        outcome: None,
        progress_percent: 0,
        current_package: None,
        waiting_for: None,
        created_at: Timestamp::now(),
        started_at: None,
        completed_at: None,
        requested_by: requester(),
        request: serde_json::json!({"a": 1}),
        plan: None,
        output: None,
        log: vec![],
        log_truncated: false,
        error: None,
        error_detail: None,
        exit_code: None,
        results: vec![],
        rehearsal: None,
        way_back: None,
        confirm_by: None,
        went_back: None,
        scheduled_for: None,
        reboot: None,
        last_seq: 0,
    };
    Head::new(Operation::Refresh, Limits::default(), None, ChangeOptions::default(), None, job)
}

pub(crate) fn requester() -> Requester {
    Requester {
        identity: "ops".into(),
        fingerprint: "ab".repeat(32),
        address: "10.0.0.7".into(),
        request_id: Uuid::nil(),
    }
}

pub(crate) fn submission() -> Submission {
    Submission {
        operation: Operation::Refresh,
        limits: None,
        options: ChangeOptions::default(),
        requester: requester(),
        request: serde_json::json!({"path": "/patches/refresh"}),
        if_plan: None,
        not_after: None,
        idempotency: None,
    }
}

pub(crate) fn keyed(key: &str, body: &str) -> Submission {
    let idempotency = Idempotency { key: key.into(), body_sha256: body.into() };
    Submission { idempotency: Some(idempotency), ..submission() }
}

pub(crate) fn ended(status: JobStatus, outcome: Outcome) -> EventKind {
    EventKind::Ended(Box::new(Ended {
        status,
        outcome: Some(outcome),
        exit_code: Some(0),
        error: None,
        results: vec![],
        answer: None,
    }))
}

pub(crate) fn log(line: &str) -> EventKind {
    EventKind::Log { stream: LogStream::Output, line: line.into() }
}

/// An event file and, while it is alive, its lock.
struct Operating {
    file: Option<File>,
    seq: u64,
}

/// How the other side answers.
#[derive(Default)]
pub(crate) struct Manners {
    /// Refuse changes with this.
    pub(crate) refuse: Option<(ErrorCode, &'static str)>,
    /// Refuse to cancel.
    pub(crate) refuse_cancel: bool,
    /// Refuse to keep a change that is confirmed.
    pub(crate) refuse_confirm: bool,
    /// End a change that is confirmed at once.
    pub(crate) end_confirmed: bool,
    /// Close the connection without a word after having begun a change, so many times.
    pub(crate) hang_up: u32,
    /// What settling writes into the job's file; nothing if absent.
    pub(crate) settle: Option<EventKind>,
    /// What queries are answered; if absent they are left open.
    pub(crate) answer: Option<QueryResult>,
    /// The server's key that is handed over; it is refused if absent.
    pub(crate) server_key: Option<Vec<u8>>,
    /// What the head of the audit trail is signed with; without it there is no key.
    pub(crate) key: Option<patch_audit::Key>,
    /// Refuse to sign because of what was signed before.
    pub(crate) refuse_signature: bool,
}

#[derive(Default)]
struct Inside {
    operations: BTreeMap<JobId, Operating>,
    requests: Vec<Request>,
    manners: Manners,
    /// How often each operation was begun.
    begun: HashMap<JobId, u32>,
}

/// The root side's stand-in, and the directory that both sides lie in.
pub(crate) struct Root {
    dir: tempfile::TempDir,
    inside: Arc<Mutex<Inside>>,
    changed: watch::Sender<()>,
    listener: Option<JoinHandle<()>>,
    pub(crate) audit: Script,
}

impl Root {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(EVENTS_DIR)).unwrap();
        fs::create_dir_all(dir.path().join("run")).unwrap();
        let mut root = Self {
            dir,
            inside: Arc::default(),
            changed: watch::Sender::new(()),
            listener: None,
            audit: Script::default(),
        };
        root.listen();
        root
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn jobs_dir(&self) -> PathBuf {
        self.path().join(super::store::JOBS_DIR)
    }

    pub(crate) fn executor(&self) -> Executor {
        Executor::new(self.path())
    }

    /// A daemon with quick settings.
    pub(crate) async fn open(&self) -> Jobs {
        self.open_with(settings()).await
    }

    pub(crate) async fn open_with(&self, settings: JobSettings) -> Jobs {
        Jobs::open(self.path(), self.executor(), self.audit.audit(), settings).await.unwrap()
    }

    pub(crate) fn listen(&mut self) {
        let listener = UnixListener::bind(self.path().join(SOCKET)).unwrap();
        let (inside, changed) = (Arc::clone(&self.inside), self.changed.clone());
        let events = self.path().join(EVENTS_DIR);
        self.listener = Some(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let _ = serve(stream, &events, &inside).await;
                changed.send_replace(());
            }
        }));
    }

    /// As if its socket unit were stopped.
    pub(crate) fn unlisten(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
        fs::remove_file(self.path().join(SOCKET)).unwrap();
    }

    pub(crate) fn manners(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.inside.lock().unwrap().manners);
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.inside.lock().unwrap().requests.clone()
    }

    /// The changes that were begun, in order, each once.
    pub(crate) fn changes(&self) -> Vec<JobId> {
        let mut ids = Vec::new();
        for request in self.requests() {
            if matches!(request.body, RequestBody::Change { .. }) && !ids.contains(&request.id) {
                ids.push(request.id);
            }
        }
        ids
    }

    /// How often a change was begun, not only submitted.
    pub(crate) fn times_begun(&self, id: JobId) -> u32 {
        self.inside.lock().unwrap().begun.get(&id).copied().unwrap_or(0)
    }

    /// Waits until the requests so far satisfy a condition.
    pub(crate) async fn until(&self, condition: impl Fn(&[Request]) -> bool) {
        let mut changed = self.changed.subscribe();
        within(async {
            while !condition(&self.requests()) {
                changed.changed().await.unwrap();
            }
        })
        .await;
    }

    pub(crate) async fn begun(&self, id: JobId) {
        self.until(|requests| requests.iter().any(|r| r.id == id)).await;
    }

    /// Appends an event.
    pub(crate) fn emit(&self, id: JobId, kind: EventKind) {
        let mut inside = self.inside.lock().unwrap();
        inside.operations.get_mut(&id).unwrap().append(kind);
    }

    /// Appends bytes as they are.
    pub(crate) fn scribble(&self, id: JobId, text: &str) {
        let mut inside = self.inside.lock().unwrap();
        inside.operations.get_mut(&id).unwrap().file.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// The executor of an operation dies: its lock is gone.
    pub(crate) fn die(&self, id: JobId) {
        self.inside.lock().unwrap().operations.get_mut(&id).unwrap().file = None;
    }

    /// Ends an operation well.
    pub(crate) fn complete(&self, id: JobId) {
        self.emit(id, ended(JobStatus::Completed, Outcome::Applied));
        self.die(id);
    }

    /// As if an executor had been there before.
    pub(crate) fn begin(&self, id: JobId) {
        let events = self.path().join(EVENTS_DIR);
        self.inside.lock().unwrap().begin(&events, id);
    }
}

pub(crate) fn settings() -> JobSettings {
    let short = Duration::from_millis(5);
    JobSettings { retry: short, settle_grace: short, ..JobSettings::default() }
}

/// Waits until a job satisfies a condition.
pub(crate) async fn until(jobs: &Jobs, id: JobId, condition: impl Fn(&Job) -> bool) -> Job {
    let mut news = jobs.subscriber();
    within(async {
        news.subscribe(id).await.unwrap();
        loop {
            let job = jobs.get(id).await.unwrap();
            if condition(&job) {
                return job;
            }
            news.next().await.unwrap();
        }
    })
    .await
}

pub(crate) async fn end_of(jobs: &Jobs, id: JobId) -> Job {
    until(jobs, id, |job| job.status.is_terminal()).await
}

impl Operating {
    fn append(&mut self, kind: EventKind) {
        self.seq += 1;
        let event = Event { seq: self.seq, at: Timestamp::now(), kind };
        let line = serde_json::to_string(&event).unwrap() + "\n";
        self.file.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }
}

impl Inside {
    fn begin(&mut self, events: &Path, id: JobId) {
        let path = events.join(format!("{id}.jsonl"));
        let file = OpenOptions::new().append(true).create_new(true).open(path).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        let mut operating = Operating { file: Some(file), seq: 0 };
        operating.append(EventKind::Accepted);
        self.operations.insert(id, operating);
        *self.begun.entry(id).or_default() += 1;
    }

    fn answer(&mut self, events: &Path, request: &Request) -> Option<Reply> {
        let refused = |code, message: &str| Reply::Refused { code, message: message.into() };
        match &request.body {
            RequestBody::Repaired { .. } => {
                Some(refused(ErrorCode::AuthzForbidden, "only root may ask this"))
            }
            RequestBody::Change { .. } => {
                if let Some((code, message)) = self.manners.refuse {
                    return Some(refused(code, message));
                }
                if self.operations.contains_key(&request.id) {
                    return Some(Reply::Known);
                }
                if self.manners.hang_up > 0 {
                    self.manners.hang_up -= 1;
                    return None;
                }
                self.begin(events, request.id);
                Some(Reply::Accepted)
            }
            RequestBody::Checkpoint { .. } if self.manners.refuse_signature => {
                Some(refused(ErrorCode::SignatureError, "record 9 was signed before"))
            }
            RequestBody::Checkpoint { head } => {
                let head = patch_audit::Head::try_from(head).unwrap();
                let signed = self.manners.key.as_ref().map(|key| key.sign(head, jiff::Timestamp::now()));
                Some(match signed {
                    Some(checkpoint) => Reply::Signed { checkpoint },
                    None => refused(ErrorCode::ServiceUnhealthy, "there is no key here"),
                })
            }
            RequestBody::Cancel { .. } if self.manners.refuse_cancel => {
                Some(refused(ErrorCode::JobConflict, "too late"))
            }
            RequestBody::Cancel { job } => {
                let cancelled = self.operations.get_mut(job).unwrap();
                cancelled.append(ended(JobStatus::Cancelled, Outcome::Unchanged));
                cancelled.file = None;
                Some(Reply::Accepted)
            }
            RequestBody::Confirm { .. } if self.manners.refuse_confirm => {
                Some(refused(ErrorCode::JobConflict, "not waiting"))
            }
            RequestBody::Confirm { job } => {
                if self.manners.end_confirmed {
                    let kept = self.operations.get_mut(job).unwrap();
                    kept.append(ended(JobStatus::Completed, Outcome::Applied));
                    kept.file = None;
                }
                Some(Reply::Accepted)
            }
            RequestBody::ServerKey => match &self.manners.server_key {
                Some(_) => Some(Reply::Accepted),
                None => Some(refused(ErrorCode::ConfigInvalid, "there is no key")),
            },
            RequestBody::Clear { .. } => Some(refused(ErrorCode::AuthzForbidden, "only root may ask this")),
            RequestBody::Settle { job } => {
                if let Some(kind) = self.manners.settle.clone() {
                    let left = self.operations.get_mut(job).unwrap();
                    let path = events.join(format!("{job}.jsonl"));
                    left.file = Some(OpenOptions::new().append(true).open(path).unwrap());
                    left.append(kind);
                    left.file = None;
                }
                Some(Reply::Accepted)
            }
            RequestBody::Query { .. } | RequestBody::Plan { .. } => {
                self.begin(events, request.id);
                if let Some(answer) = self.manners.answer.clone() {
                    let asked = self.operations.get_mut(&request.id).unwrap();
                    asked.append(answered(answer));
                    asked.file = None;
                }
                Some(Reply::Accepted)
            }
        }
    }
}

pub(crate) fn answered(answer: QueryResult) -> EventKind {
    EventKind::Ended(Box::new(Ended {
        status: JobStatus::Completed,
        outcome: None,
        exit_code: None,
        error: None,
        results: vec![],
        answer: Some(answer),
    }))
}

async fn serve(mut stream: UnixStream, events: &Path, inside: &Mutex<Inside>) -> std::io::Result<()> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let mut body = vec![0; body_length(prefix).unwrap()];
    stream.read_exact(&mut body).await?;
    let request: Request = decode(&body).unwrap();
    let (reply, key) = {
        let mut inside = inside.lock().unwrap();
        let reply = inside.answer(events, &request);
        let is_key = request.body == RequestBody::ServerKey;
        inside.requests.push(request);
        (reply, inside.manners.server_key.clone().filter(|_| is_key))
    };
    let Some(reply) = reply else { return Ok(()) };
    let mut bytes = encode(&reply).unwrap();
    if let Some(key) = key {
        bytes.extend(u32::try_from(key.len()).unwrap().to_be_bytes());
        bytes.extend(key);
    }
    stream.write_all(&bytes).await
}
