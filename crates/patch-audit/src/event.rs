//! The event: what happened, who caused it, how much it matters. Sentences and priorities are in `sentence.rs`; where
//! events go is the business of the log.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use patch_types::{
    Action, Architecture, ErrorCode, ErrorDetail, JobId, JobStatus, Outcome, PackageName, PackageVersion,
    api::Requester, event::PackageResult,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// The ordinary course of things.
    Info,
    /// Failures and time limits of jobs, oversized payloads.
    Low,
    /// Denials by the allow list or by role, changes of the configuration, starts of the service.
    Medium,
    /// Failures of authentication and of certificates, damage to the trail itself.
    High,
}

impl Priority {
    /// The priority as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    /// The priority as syslog and the journal number it: err, warning, notice, info.
    #[must_use]
    pub fn syslog_level(self) -> u8 {
        match self {
            Self::High => 3,
            Self::Medium => 4,
            Self::Low => 5,
            Self::Info => 6,
        }
    }
}

/// Who caused an event, and from where. Empty for what the program does by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The subject CN of the client's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// SHA-256 of the client's certificate, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// The peer's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The request's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Uuid>,
}

impl Caller {
    /// Nobody: the program itself.
    #[must_use]
    pub fn local() -> Self {
        Self::default()
    }

    /// A peer of which only the address is known.
    #[must_use]
    pub fn at(address: IpAddr) -> Self {
        Self { address: Some(address), ..Self::default() }
    }
}

impl From<&Requester> for Caller {
    fn from(requester: &Requester) -> Self {
        Self {
            identity: Some(requester.identity.clone()),
            // What the agent does by itself is nobody's certificate's.
            fingerprint: Some(requester.fingerprint.clone()).filter(|print| !print.is_empty()),
            address: requester.address.parse().ok(),
            request_id: Some(requester.request_id),
        }
    }
}

/// Which certificate an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateRole {
    /// The CA that signs clients.
    Ca,
    /// Our own.
    Server,
    /// The revocation list.
    Crl,
    /// A client's, whose identity the record has.
    Client,
}

/// What happened. In a record the kind is the field `event`, and the kind's own fields stand beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum AuditKind {
    /// A request was answered.
    Request {
        /// Its method.
        method: String,
        /// Its path.
        path: String,
        /// The answer's status.
        status: u16,
        /// How long it took, in milliseconds with three decimals.
        duration_ms: f64,
    },
    /// A client proved who it is.
    AuthSuccess,
    /// A client did not.
    AuthFailure {
        /// `AUTH_INVALID_CERT` or `AUTH_CERT_EXPIRED`.
        code: ErrorCode,
        /// What was wrong.
        reason: String,
        /// How many times since the last record about this address.
        count: u64,
    },
    /// A connection came from an address that is not on the allow list.
    AllowListDenied {
        /// How many times since the last record about this address.
        count: u64,
    },
    /// The allow list changed.
    AllowListChanged {
        /// Entries that are new.
        added: Vec<String>,
        /// Entries that are gone.
        removed: Vec<String>,
    },
    /// A changed allow list is not valid; the one before stays.
    AllowListRefused {
        /// Where and what.
        error: String,
    },
    /// An open connection was closed because its address or certificate is no longer allowed.
    ConnectionRevoked {
        /// Why.
        reason: String,
    },
    /// A request asked for more than its role allows.
    Forbidden {
        /// Its method.
        method: String,
        /// Its path.
        path: String,
        /// The role that the identity has.
        role: String,
    },
    /// Too many requests from one identity.
    RateLimited {
        /// How many were refused since the last record about it.
        count: u64,
    },
    /// A body or header block larger than the limit.
    PayloadRefused {
        /// The limit in bytes.
        limit: u64,
    },
    /// A job was accepted. On disk before the answer.
    JobAccepted {
        /// The job.
        job_id: JobId,
        /// Its kind.
        kind: String,
        /// The request as it was validated.
        request: serde_json::Value,
    },
    /// A job ended.
    JobEnded {
        /// The job.
        job_id: JobId,
        /// How.
        status: JobStatus,
        /// What it did to the host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
        /// Why it did not end as asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<ErrorDetail>,
    },
    /// What a job did to one package.
    PackageChanged {
        /// The job.
        job_id: JobId,
        /// The package.
        name: PackageName,
        /// Its architecture.
        architecture: Architecture,
        /// What was to be done.
        action: Action,
        /// The version before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        old_version: Option<PackageVersion>,
        /// The version that was planned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        new_version: Option<PackageVersion>,
        /// `done`, `taken back`, or why not.
        result: String,
    },
    /// Something else about the host changed: a reboot, a hold, a clock.
    SystemChanged {
        /// What, as a sentence.
        what: String,
    },
    /// What the agent's own scheduler decided: that it patches now, or why not.
    PolicyDecided {
        /// What, as a sentence.
        what: String,
    },
    /// A changed configuration is in effect.
    ConfigChanged {
        /// The difference, without secrets.
        diff: String,
    },
    /// A changed configuration was refused whole; the one before stays.
    ConfigRefused {
        /// The line and what is wrong.
        error: String,
    },
    /// A certificate or revocation list was replaced.
    CertificateChanged {
        /// Which.
        role: CertificateRole,
        /// SHA-256 of the new one, in hexadecimal.
        sha256: String,
        /// When it expires, or for a revocation list, when the next is due.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires: Option<Timestamp>,
    },
    /// A certificate or revocation list cannot be used; the one before stays.
    CertificateRefused {
        /// Which.
        role: CertificateRole,
        /// What is wrong.
        error: String,
    },
    /// A certificate or revocation list expires soon, or has.
    CertificateExpiring {
        /// Which.
        role: CertificateRole,
        /// When.
        expires: Timestamp,
    },
    /// The program started.
    ServiceStarted {
        /// Its version.
        version: String,
    },
    /// The program stopped.
    ServiceStopped {
        /// Why.
        reason: String,
    },
    /// A sink cannot be written.
    SinkFailed {
        /// Which: `local`, `journal`, …
        sink: String,
        /// Why.
        error: String,
    },
    /// A sink works again.
    SinkRecovered {
        /// Which.
        sink: String,
        /// Records that it lacks. Those that somebody waited for were refused to them.
        lost: u64,
    },
    /// Records were dropped because they came faster than they could be written.
    RecordsDropped {
        /// Which sink lacks them.
        sink: String,
        /// How many.
        count: u64,
    },
    /// The end of the trail was torn by a crash; it was cut off.
    TornTailCut {
        /// Bytes cut off.
        bytes: u64,
        /// SHA-256 of them, in hexadecimal.
        sha256: String,
    },
    /// The trail does not verify or was replaced; what was there was kept under another name and a new file begun.
    TrailSetAside {
        /// The name it has now; null if it was gone.
        kept_as: Option<String>,
        /// What was wrong.
        reason: String,
    },
    /// The root side signed a head of the trail: what lies before cannot be changed without that showing.
    Checkpoint {
        /// The number of the record that was the last one.
        head_seq: u64,
        /// Its hash, in hexadecimal.
        head_hash: String,
        /// When it was signed, by the root side's clock.
        signed_at: Timestamp,
        /// The public key, in hexadecimal.
        key: String,
        /// The signature, in hexadecimal.
        signature: String,
    },
    /// The root side refused to sign: the trail is not the one whose head it signed before.
    CheckpointRefused {
        /// The number that was to be signed.
        head_seq: u64,
        /// Its hash, in hexadecimal.
        head_hash: String,
        /// Why not.
        reason: String,
    },
    /// The trail ended before a record that the root side has signed. It goes on after that one.
    TrailCut {
        /// The last record that was there; 0 if there was none.
        last: u64,
        /// The record that the root side signed.
        signed: u64,
    },
    /// Files of the trail are older than they are kept, and are removed.
    TrailPruned {
        /// Their names.
        removed: Vec<String>,
        /// The first record that is left.
        first_left: u64,
    },
    /// Something was asked of the root side. In its own record; there the caller is who the network side says it is.
    RootRequest {
        /// The operation's id.
        job_id: JobId,
        /// What was asked, in one word.
        kind: String,
        /// The user that asked, as the kernel says.
        uid: u32,
        /// The user that had logged in, if somebody had, as the kernel says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        login_uid: Option<u32>,
        /// Who became root by sudo, as the asking process says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sudo_user: Option<String>,
        /// What was asked, whole.
        request: serde_json::Value,
        /// `accepted`, `known` or `refused`.
        reply: String,
        /// Why it was refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<ErrorDetail>,
    },
    /// A kind that this version does not know: written by a newer one.
    #[serde(other, skip_serializing)]
    Unknown,
}

/// One event, complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// When it happened.
    pub at: Timestamp,
    /// How much it matters.
    pub priority: Priority,
    /// What happened.
    #[serde(flatten)]
    pub kind: AuditKind,
    /// Who caused it.
    #[serde(flatten)]
    pub caller: Caller,
    /// The same as a sentence.
    pub message: String,
}

impl AuditEvent {
    /// An event that happens now.
    #[must_use]
    pub fn new(kind: AuditKind, caller: &Caller) -> Self {
        Self::happened(Timestamp::now(), kind, caller)
    }

    /// An event that happened at a known moment, such as one that another program kept until it could be chained.
    #[must_use]
    pub fn happened(at: Timestamp, kind: AuditKind, caller: &Caller) -> Self {
        Self { at, priority: kind.priority(), message: kind.sentence(caller), kind, caller: caller.clone() }
    }

    /// An answered request.
    #[must_use]
    pub fn request(caller: &Caller, method: &str, path: &str, status: u16, took: Duration) -> Self {
        // Microseconds are what the clock of a shared host is worth.
        let duration_ms = (took.as_secs_f64() * 1e6).round() / 1e3;
        Self::new(
            AuditKind::Request { method: method.to_owned(), path: path.to_owned(), status, duration_ms },
            caller,
        )
    }

    /// What a job did to one package.
    #[must_use]
    pub fn package_changed(caller: &Caller, job_id: JobId, result: &PackageResult) -> Self {
        let kind = AuditKind::PackageChanged {
            job_id,
            name: result.name.clone(),
            architecture: result.architecture.clone(),
            action: result.action,
            old_version: result.old_version.clone(),
            new_version: result.new_version.clone(),
            result: match (&result.reason, result.done) {
                (Some(reason), _) if result.taken_back => format!("taken back: {reason}"),
                (None, _) if result.taken_back => "taken back".to_owned(),
                (_, true) => "done".to_owned(),
                (Some(reason), false) => format!("not done: {reason}"),
                (None, false) => "not done".to_owned(),
            },
        };
        Self::new(kind, caller)
    }

    /// How a job ended.
    #[must_use]
    pub fn job_ended(
        caller: &Caller,
        job_id: JobId,
        status: JobStatus,
        outcome: Option<Outcome>,
        error: Option<&ErrorDetail>,
    ) -> Self {
        Self::new(AuditKind::JobEnded { job_id, status, outcome, error: error.cloned() }, caller)
    }
}
