//! The root side's own record, which the network side can neither write nor read: what was asked, what was done to each
//! package, which heads of the audit trail were signed. A chain as the audit trail is.
//!
//! A change is recorded before it is accepted, or not accepted. Ends, going back and repairs go on without room for their
//! records; those are kept in memory and written as soon as there is room, and the journals and event files have the same.

use std::{
    fs,
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use nix::unistd::Uid;
use patch_audit::{AuditError, AuditEvent, AuditKind, Caller, Hash, RECORD_BOUNDS, append};
use patch_types::{
    ErrorCode, ErrorDetail, JobId,
    event::Ended,
    executor::{OnBehalf, Reply, RequestBody},
};

use rustix::fs::{FlockOperation, flock};

use crate::paths::Paths;

/// The most records that wait for room.
const MAX_WAITING: usize = 10_000;

/// Records that could not be written yet.
static WAITING: Mutex<Vec<AuditEvent>> = Mutex::new(Vec::new());

/// The process that asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) uid: Uid,
    /// None if the kernel did not say.
    pub(crate) pid: Option<i32>,
}

impl Asker {
    /// The user that had logged in, from whom the process descends; none for a service.
    fn login_uid(self) -> Option<u32> {
        let text = fs::read_to_string(format!("/proc/{}/loginuid", self.pid?)).ok()?;
        text.trim().parse().ok().filter(|uid| *uid != u32::MAX)
    }
}

/// A request and what came of it.
pub(crate) fn request(
    asker: Asker,
    on_behalf: Option<&OnBehalf>,
    id: JobId,
    body: &RequestBody,
    reply: &Reply,
) -> AuditEvent {
    let client = on_behalf.and_then(|on_behalf| on_behalf.client.as_ref());
    let (reply, error) = match reply {
        Reply::Accepted | Reply::Signed { .. } => ("accepted", None),
        Reply::Known => ("known", None),
        Reply::Refused { code, message } => ("refused", Some(ErrorDetail::new(*code, message.clone()))),
    };
    let kind = AuditKind::RootRequest {
        job_id: id,
        kind: body.kind().to_owned(),
        uid: asker.uid.as_raw(),
        login_uid: asker.login_uid(),
        sudo_user: on_behalf.and_then(|on_behalf| on_behalf.sudo_user.clone()).map(|name| bounded(&name)),
        request: shortened(body, error.is_some()),
        reply: reply.to_owned(),
        error,
    };
    AuditEvent::new(kind, &client.map_or_else(Caller::local, Caller::from))
}

/// A peer that may not ask, or whose request cannot be read.
pub(crate) fn stranger(asker: Asker, id: JobId, code: ErrorCode, message: &str) -> AuditEvent {
    let kind = AuditKind::RootRequest {
        job_id: id,
        kind: "unreadable request".to_owned(),
        uid: asker.uid.as_raw(),
        login_uid: asker.login_uid(),
        sudo_user: None,
        request: serde_json::Value::Null,
        reply: "refused".to_owned(),
        error: Some(ErrorDetail::new(code, message)),
    };
    AuditEvent::new(kind, &Caller::local())
}

/// A request as it is recorded: a long one is cut, with the SHA-256 of the whole. Nobody who asks may fill the record with
/// what he asks for, least of all with what is refused.
fn shortened(body: &RequestBody, is_refused: bool) -> serde_json::Value {
    let most = if is_refused { 2 << 10 } else { 16 << 10 };
    let mut text = serde_json::to_string(body).unwrap_or_default();
    if text.len() <= most {
        return serde_json::to_value(body).unwrap_or_default();
    }
    let (bytes, sha256) = (text.len(), Hash::of(text.as_bytes()).to_string());
    text.truncate(text.floor_char_boundary(most));
    serde_json::json!({ "beginning": text, "bytes": bytes, "sha256": sha256 })
}

/// How many refusals are recorded one by one in a minute. The rest is counted.
const MAX_REFUSALS: u64 = 20;

/// The refusals of the present minute.
#[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Refusals {
    /// Which minute, since 1970.
    minute: i64,
    count: u64,
    /// How many of them are not on record.
    unrecorded: u64,
}

impl Refusals {
    /// Counts one in a minute. Whether it is recorded, and how many of a former minute were not and have not been told.
    fn count(&mut self, minute: i64) -> (bool, u64) {
        let mut untold = 0;
        if self.minute != minute {
            untold = self.unrecorded;
            *self = Self { minute, ..Self::default() };
        }
        self.count = self.count.saturating_add(1);
        let is_recorded = self.count <= MAX_REFUSALS;
        if !is_recorded {
            self.unrecorded = self.unrecorded.saturating_add(1);
        }
        (is_recorded, untold)
    }
}

/// What was refused: each is counted by itself, so that many of one do not hide another.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refused {
    /// A request, which was refused or known already.
    Request,
    /// A signature.
    Signature,
    /// Whatever a process wanted that may not ask.
    Stranger,
}

impl Refused {
    fn name(self) -> &'static str {
        match self {
            Self::Request => "requests that changed nothing",
            Self::Signature => "refused signatures",
            Self::Stranger => "strangers",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Request => "refusals.json",
            Self::Signature => "refusals-signature.json",
            Self::Stranger => "refusals-stranger.json",
        }
    }
}

/// Records a refusal, unless there have been many within this minute: those are counted, and the count is recorded with the
/// first refusal after it.
pub(crate) fn refusal(paths: &Paths, what: Refused, event: AuditEvent) {
    let mut events = Vec::new();
    match count_refusal(paths, what) {
        Ok((is_recorded, untold)) => {
            if untold > 0 {
                let sink = format!("record of {}", what.name());
                events.push(AuditEvent::new(
                    AuditKind::RecordsDropped { sink, count: untold },
                    &Caller::local(),
                ));
            }
            if is_recorded {
                events.push(event);
            }
        }
        // Rather too many than none.
        Err(_) => events.push(event),
    }
    if !events.is_empty() {
        note(paths, events);
    }
}

/// Requests are processes of their own, so the count is in a file.
fn count_refusal(paths: &Paths, what: Refused) -> std::io::Result<(bool, u64)> {
    let mut file = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(paths.state().join(what.file()))?;
    flock(&file, FlockOperation::LockExclusive)?;
    let mut text = String::new();
    (&file).take(4096).read_to_string(&mut text)?;
    let mut refusals: Refusals = serde_json::from_str(&text).unwrap_or_default();
    let counted = refusals.count(Timestamp::now().as_second().div_euclid(60));
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(&serde_json::to_vec(&refusals)?)?;
    Ok(counted)
}

fn bounded(name: &str) -> String {
    name.chars().take(256).collect()
}

/// Records the end of a change: what became of each package, then of the whole.
pub(crate) fn ended(paths: &Paths, id: JobId, ended: &Ended) {
    let caller = Caller::local();
    let mut events: Vec<_> =
        ended.results.iter().map(|result| AuditEvent::package_changed(&caller, id, result)).collect();
    events.push(AuditEvent::job_ended(&caller, id, ended.status, ended.outcome, ended.error.as_ref()));
    note(paths, events);
}

/// Records what does not depend upon being recorded.
pub(crate) fn note(paths: &Paths, events: Vec<AuditEvent>) {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner).extend(events);
    flush(paths);
}

/// Writes what waits. What still cannot be written waits on; the room that is reserved for the journal is given up for it.
pub(crate) fn flush(paths: &Paths) {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    if waiting.is_empty() || !paths.state().is_dir() {
        return;
    }
    let path = paths.record();
    let mut written = append(&path, &waiting, &RECORD_BOUNDS);
    if written.is_err() && paths.spend_reserve() {
        written = append(&path, &waiting, &RECORD_BOUNDS);
    }
    match written {
        Ok(_) => waiting.clear(),
        Err(error) => {
            for event in &*waiting {
                eprintln!("patch-executor: not in the record yet ({error}): {}", event.message);
            }
            let surplus = waiting.len().saturating_sub(MAX_WAITING);
            waiting.drain(..surplus);
        }
    }
}

/// Records what must not happen without its record.
///
/// # Errors
/// When it is not on disk.
pub(crate) fn require(paths: &Paths, event: AuditEvent) -> Result<(), ErrorDetail> {
    append(&paths.record(), &[event], &RECORD_BOUNDS).map(drop).map_err(|error| {
        let code = match &error {
            AuditError::Io { source, .. }
                if matches!(
                    source.kind(),
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
                ) =>
            {
                ErrorCode::DiskSpace
            }
            _ => ErrorCode::ServiceUnhealthy,
        };
        let why = std::error::Error::source(&error).map(|why| format!(" ({why})")).unwrap_or_default();
        ErrorDetail::new(code, format!("the root side's record: {error}{why}; nothing was begun"))
    })
}

#[cfg(test)]
mod tests {
    use patch_audit::{Known, Reader, examine};
    use patch_types::{JobStatus, Outcome, api::Requester, executor::TakenBack};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn many_refusals_are_counted() {
        let mut refusals = Refusals::default();
        let recorded = (0..50).filter(|_| refusals.count(7).0).count();
        assert_eq!(recorded as u64, MAX_REFUSALS);
        assert_eq!(refusals.count(8), (true, 50 - MAX_REFUSALS));
        assert_eq!(refusals.count(8), (true, 0));

        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path().to_owned());
        fs::create_dir_all(paths.state()).unwrap();
        let asker = Asker { uid: Uid::from_raw(997), pid: None };
        for _ in 0..3 * MAX_REFUSALS {
            let event = stranger(asker, JobId(Uuid::nil()), ErrorCode::InvalidRequest, "no");
            refusal(&paths, Refused::Request, event);
        }
        let lines = fs::read_to_string(paths.record()).unwrap().lines().count() as u64;
        // A minute may begin meanwhile.
        assert!((MAX_REFUSALS..=2 * MAX_REFUSALS + 1).contains(&lines), "{lines}");
    }

    #[test]
    fn long_requests_are_shortened() {
        let head = patch_types::api::AuditHead { seq: 1, hash: "x".repeat(1 << 20) };
        let body = RequestBody::Checkpoint { head };
        let value = shortened(&body, true);
        assert!(value.to_string().len() < 4096 && value["sha256"].is_string() && value["bytes"].is_u64());
        let body = RequestBody::Clear { versions: TakenBack::All };
        assert_eq!(shortened(&body, true), serde_json::to_value(&body).unwrap());
    }

    #[test]
    fn requests_and_ends_make_one_chain() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path().to_owned());
        fs::create_dir_all(paths.state()).unwrap();
        let id = JobId(Uuid::nil());
        let asker = Asker { uid: Uid::from_raw(997), pid: None };
        let client = Requester {
            identity: "manager-1".into(),
            fingerprint: "aa".into(),
            address: "10.0.0.5".into(),
            request_id: Uuid::nil(),
        };
        let on_behalf = OnBehalf { client: Some(client), sudo_user: Some("ann".into()) };
        let body = RequestBody::Clear { versions: TakenBack::All };
        let refused = Reply::Refused { code: ErrorCode::AuthzForbidden, message: "only root".into() };
        require(&paths, request(asker, Some(&on_behalf), id, &body, &Reply::Accepted)).unwrap();
        note(&paths, vec![request(asker, None, id, &body, &refused)]);
        let error = ErrorDetail::new(ErrorCode::PkgManagerError, "preinst");
        let end = Ended {
            status: JobStatus::Failed,
            outcome: Some(Outcome::RolledBack),
            exit_code: None,
            error: Some(error),
            results: Vec::new(),
            answer: None,
        };
        ended(&paths, id, &end);
        assert!(examine(&paths.record(), &Known::default()).unwrap().is_intact());
        let file = std::io::BufReader::new(fs::File::open(paths.record()).unwrap());
        let messages: Vec<_> = Reader::new(file).map(|record| record.unwrap().event.message).collect();
        assert!(
            messages[0].starts_with("root side: clear accepted, asked by uid 997, by sudo of ann")
                && messages[0].ends_with(", by manager-1, from 10.0.0.5"),
            "{messages:?}"
        );
        assert!(messages[1].contains("refused") && messages[1].contains("AUTHZ_FORBIDDEN: only root"));
        assert!(messages[2].contains("rolled_back"), "{messages:?}");
    }
}
