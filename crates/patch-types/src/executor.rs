//! The executor's socket: one typed, bounded request, one reply, then the event file.
//!
//! A frame is its body's length as four big-endian bytes and a JSON body of at most [`MAX_FRAME`] bytes.

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    api::{AuditHead, Requester},
    error::ErrorCode,
    job::JobId,
    name::{PackageName, PackageVersion},
    operation::{Operation, Query},
    plan::PlanHash,
    rollback::ChangeOptions,
};

/// The largest body of a frame in bytes.
pub const MAX_FRAME: usize = 1 << 20;

/// The largest private key that is handed over, in bytes of PEM.
pub const MAX_KEY: usize = 64 << 10;

/// The version of this protocol. Another one is refused by name: daemon and executor come in one package, so a mismatch
/// lasts only for the moments of an upgrade.
pub const PROTOCOL: u32 = 1;

/// The socket, below the root prefix.
pub const SOCKET: &str = "run/linux-patch-executor.sock";

/// The root side's own directory, below the root prefix.
pub const STATE_DIR: &str = "var/lib/linux_patch_executor";

/// The numbered events, one file an operation (`ID.jsonl`), readable by the daemon's group, below the root prefix.
pub const EVENTS_DIR: &str = "var/lib/linux_patch_executor/events";

/// What the root side says of itself at any moment ([`RootStatus`]), readable by the daemon's group, below the root
/// prefix.
pub const STATUS_FILE: &str = "var/lib/linux_patch_executor/events/status.json";
/// The journals, one directory an operation (`ID`), root's own, below the root prefix.
pub const JOURNAL_DIR: &str = "var/lib/linux_patch_executor/journal";

/// The record of a change's way back in its journal's directory: while it is there, the change can be undone.
pub const WAY_BACK: &str = "way-back/snapshot.json";

/// The versions that were taken back: an array of objects with `name`, `architecture`, `version`, `job`, `at` and
/// `reason`, below the root prefix.
pub const TAKEN_BACK: &str = "var/lib/linux_patch_executor/taken_back.json";

/// The preferences by which apt holds those off, generated from them and gone when there are none. Readable by everybody, below
/// the root prefix.
pub const TAKEN_BACK_PINS: &str = "etc/apt/preferences.d/linux-patch-taken-back";

/// The keys that the root side signs, or once signed, heads of the audit trail with: one a line, 64 hexadecimal digits,
/// the present one last. Readable by everybody, below the root prefix.
pub const CHECKPOINT_KEYS: &str = "var/lib/linux_patch_executor/checkpoint.pub";

/// What root has explained of damage to the audit trail, one acknowledgement as JSON a line. Readable by everybody, below
/// the root prefix.
pub const ACKNOWLEDGED: &str = "var/lib/linux_patch_executor/audit-acknowledged.jsonl";

/// The last head of the audit trail that the root side signed: one [`Checkpoint`] as JSON. Readable by everybody, below
/// the root prefix.
pub const CHECKPOINT_HEAD: &str = "var/lib/linux_patch_executor/checkpoint.json";

/// Heads of the audit trail that the root side signed, thinned out with their age: one [`Checkpoint`] as JSON a line, root's
/// alone, below the root prefix.
pub const CHECKPOINT_HEADS: &str = "var/lib/linux_patch_executor/checkpoint-heads.jsonl";

/// Restarts that wait for the window, below the root: one file a service, by its name.
pub const RESTARTS_DIR: &str = "var/lib/linux_patch_executor/restarts";

/// The root side's own record, root's alone, below the root prefix.
pub const RECORD: &str = "var/lib/linux_patch_executor/record.jsonl";

/// The root side's program.
pub const PROGRAM: &str = "/usr/libexec/linux-patch-api/patch-executor";

/// The system user that the daemon runs as.
pub const DAEMON_USER: &str = "linux-patch-api";

/// How long a change may take, and how long it waits for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The whole operation, in seconds.
    pub timeout_seconds: u64,
    /// Waiting for the package manager's lock, in seconds.
    pub lock_wait_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { timeout_seconds: 1800, lock_wait_seconds: 600 }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum RequestBody {
    /// Change the host.
    Change {
        /// How.
        operation: Operation,
        /// Its limits.
        limits: Limits,
        /// The approved plan: with another one nothing is begun (`PLAN_DRIFT`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_plan: Option<PlanHash>,
        /// How it is to be made.
        #[serde(default)]
        options: ChangeOptions,
        /// From then on nothing of it is begun any more: it ends cancelled, with nothing changed. What has begun to change
        /// packages goes on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_after: Option<Timestamp>,
    },
    /// Say what a change would do; nothing is changed.
    Plan {
        /// The change.
        operation: Operation,
    },
    /// Read something that needs root.
    Query {
        /// What.
        query: Query,
    },
    /// Cancel the change of the given id while that is safe.
    Cancel {
        /// The change's id.
        job: JobId,
    },
    /// Keep a change that waits to be confirmed.
    Confirm {
        /// Which.
        job: JobId,
    },
    /// The change of the given id has no living executor: repair what it left, judge by the database, and end its
    /// event file truthfully.
    Settle {
        /// The change's id.
        job: JobId,
    },
    /// Hand the server's private key over, which its operator keeps for root alone. If the reply is
    /// [`Reply::Accepted`], one more frame follows on the socket, whose body is the key's PEM text as it stands in its
    /// file, at most [`MAX_KEY`] bytes. There is no event file, and the key stands in no record.
    ServerKey,
    /// Let versions that were taken back be installed again. Only root may ask. It is done when the reply says that it
    /// is accepted; there is no event file.
    Clear {
        /// Which.
        versions: TakenBack,
    },
    /// What a failed rollback has left is well as it is. Only root may ask. It is done when the reply says that it is
    /// accepted; there is no event file.
    Repaired {
        /// The job whose way back was gone.
        job: JobId,
    },
    /// Sign the head of the network side's audit trail. The reply has the signature; there is no event file. A head that
    /// contradicts an earlier one is refused.
    Checkpoint {
        /// The number and the hash of the last record on disk.
        head: AuditHead,
    },
}

/// A head of the audit trail, signed by the root side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The number and the hash of the record that was the last one.
    pub head: AuditHead,
    /// When it was signed, by the root side's clock.
    pub at: Timestamp,
    /// The Ed25519 public key, 64 hexadecimal digits.
    pub key: String,
    /// The signature of [`Checkpoint::statement`], 128 hexadecimal digits.
    pub signature: String,
}

impl Checkpoint {
    /// The bytes that are signed for a head: they begin with what they are, so that the key's signature says nothing else.
    #[must_use]
    pub fn statement(head: &AuditHead, at: Timestamp) -> String {
        format!("linux-patch audit checkpoint 1\n{}\n{}\n{at}\n", head.seq, head.hash)
    }
}

/// For whom the asking process says that it asks. The root side records it; it decides nothing by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnBehalf {
    /// The client of the network side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Requester>,
    /// The person that became root by sudo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
}

/// Which of the versions that were taken back are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TakenBack {
    /// All of them.
    All,
    /// Those of one package.
    Package {
        /// The package; of every architecture unless the name says which.
        name: PackageName,
        /// Only this version; every one if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<PackageVersion>,
    },
}

impl RequestBody {
    /// Whether root alone may ask this: what the operator decided on the host is not for the network side to lift.
    #[must_use]
    pub fn is_for_root_alone(&self) -> bool {
        matches!(self, Self::Clear { .. } | Self::Repaired { .. })
    }

    /// What it is, in one word; of a change the operation's kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Change { operation, .. } => operation.kind(),
            Self::Plan { .. } => "plan",
            Self::Query { .. } => "query",
            Self::Cancel { .. } => "cancel",
            Self::Confirm { .. } => "confirm",
            Self::Settle { .. } => "settle",
            Self::Clear { .. } => "clear",
            Self::Repaired { .. } => "repaired",
            Self::ServerKey => "server_key",
            Self::Checkpoint { .. } => "checkpoint",
        }
    }
}

/// A request. `id` names the event file; it is the job's own for a change, and a new one for all else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The operation's id.
    pub id: JobId,
    /// What is asked.
    pub body: RequestBody,
    /// For whom, if somebody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf: Option<OnBehalf>,
}

/// The only thing that comes back through the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Journalled and begun; follow the event file.
    Accepted,
    /// This id was submitted before; nothing was begun. Follow its event file.
    Known,
    /// A head of the audit trail, signed.
    Signed {
        /// It.
        checkpoint: Checkpoint,
    },
    /// Not begun, nothing changed.
    Refused {
        /// For machines.
        code: ErrorCode,
        /// For people.
        message: String,
    },
}

/// What [`STATUS_FILE`] holds: one JSON object. A field that is missing counts as 0, or as none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootStatus {
    /// How many archives are kept for going back.
    pub archives: u64,
    /// How much room they take in bytes.
    pub archive_bytes: u64,
    /// How many versions were taken back and are held off until they are cleared or superseded.
    pub taken_back: u64,
    /// The change whose going back failed and was not repaired yet; until it is, no other change begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_failed: Option<JobId>,
}

/// Why a frame cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The body is larger than [`MAX_FRAME`].
    #[error("a frame of {0} bytes exceeds the limit of {MAX_FRAME}")]
    TooLarge(usize),
    /// The body is not what it should be.
    #[error("the frame's body is not valid")]
    Body(#[source] serde_json::Error),
}

/// A frame, ready to be written.
///
/// # Errors
/// When the body would exceed [`MAX_FRAME`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(message).map_err(FrameError::Body)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_FRAME)
        .ok_or(FrameError::TooLarge(body.len()))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The length of the body that follows a frame's first four bytes.
///
/// # Errors
/// When it exceeds [`MAX_FRAME`]: nothing is to be allocated or read then.
pub fn body_length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
    if length > MAX_FRAME { Err(FrameError::TooLarge(length)) } else { Ok(length) }
}

/// The message in a frame's body.
///
/// # Errors
/// When the body is not one such message.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(FrameError::Body)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn frames_survive_the_socket() {
        let request = Request {
            protocol: PROTOCOL,
            id: JobId(Uuid::nil()),
            body: RequestBody::Change {
                operation: Operation::Refresh,
                limits: Limits::default(),
                if_plan: None,
                options: ChangeOptions::default(),
                not_after: None,
            },
            on_behalf: None,
        };
        let frame = encode(&request).unwrap();
        let prefix = [frame[0], frame[1], frame[2], frame[3]];
        assert_eq!(body_length(prefix).unwrap(), frame.len() - 4);
        assert_eq!(decode::<Request>(&frame[4..]).unwrap(), request);
    }

    #[test]
    fn clearing_survives_the_socket_and_is_for_root_alone() {
        for (versions, text) in [
            (TakenBack::All, r#"{"request":"clear","versions":"all"}"#),
            (
                TakenBack::Package { name: "aa".parse().unwrap(), version: None },
                r#"{"request":"clear","versions":{"package":{"name":"aa"}}}"#,
            ),
        ] {
            let body = RequestBody::Clear { versions };
            assert!(body.is_for_root_alone());
            assert_eq!(serde_json::to_string(&body).unwrap(), text);
            assert_eq!(serde_json::from_str::<RequestBody>(text).unwrap(), body);
        }
        assert!(!RequestBody::Settle { job: JobId(Uuid::nil()) }.is_for_root_alone());
        let option = r#"{"request":"clear","versions":{"package":{"name":"-aa"}}}"#;
        assert!(serde_json::from_str::<RequestBody>(option).is_err());
    }

    #[test]
    fn frames_have_a_limit() {
        assert!(body_length([0xff; 4]).is_err());
        assert!(body_length(u32::try_from(MAX_FRAME).unwrap().to_be_bytes()).is_ok());
        assert!(encode(&"x".repeat(MAX_FRAME)).is_err());
    }
}
