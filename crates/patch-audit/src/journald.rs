//! The journal, natively: one datagram a record with fields, sent so that it cannot hold anything up.
//!
//! The protocol is `https://systemd.io/JOURNAL_NATIVE_PROTOCOL/`: `NAME=value` and a line feed, or for values with line
//! feeds the name, a line feed, the length as 64 bits little-endian, the value and a line feed.

use std::{borrow::Cow, io, os::unix::net::UnixDatagram, path::PathBuf};

use crate::{
    chain::Head,
    event::{AuditEvent, AuditKind, Caller},
};

/// Where the journal listens.
pub const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// The longest value in bytes. All fields together stay below the kernel's usual limit for a datagram (208 KiB), so
/// there is no need for a memory file. The local trail has everything in full.
const MAX_VALUE: usize = 32 << 10;

/// The sink.
pub(crate) struct Journal {
    target: Option<PathBuf>,
    identifier: String,
    socket: Option<UnixDatagram>,
    /// Not yet confessed.
    dropped: u64,
    /// Ever.
    pub(crate) dropped_total: u64,
}

impl Journal {
    /// A sink that sends to the socket at `target`, if any.
    pub(crate) fn new(target: Option<PathBuf>, identifier: String) -> Self {
        Self { target, identifier, socket: None, dropped: 0, dropped_total: 0 }
    }

    /// Sends an event. `head` is its place in the local trail; if it has none, the message says why.
    pub(crate) fn send(&mut self, event: &AuditEvent, place: Result<Head, &str>) {
        if self.target.is_none() {
            return;
        }
        if self.dropped > 0 {
            let kind = AuditKind::RecordsDropped { sink: "journal".to_owned(), count: self.dropped };
            let confession = AuditEvent::new(kind, &Caller::local());
            let datagram = encode(&self.identifier, &confession, Err("it concerns the journal alone"));
            match self.deliver(&datagram) {
                Ok(()) => self.dropped = 0,
                Err(_) => {
                    self.drop_one();
                    return;
                }
            }
        }
        match self.deliver(&encode(&self.identifier, event, place)) {
            Ok(()) => {}
            // No journal on this host: there is nobody to miss the record.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => self.drop_one(),
        }
    }

    fn drop_one(&mut self) {
        self.dropped = self.dropped.saturating_add(1);
        self.dropped_total = self.dropped_total.saturating_add(1);
    }

    fn deliver(&mut self, datagram: &[u8]) -> io::Result<()> {
        let Some(target) = &self.target else { return Ok(()) };
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => {
                let socket = UnixDatagram::unbound()?;
                // A journal that does not read must not stop the trail, nor whoever waits for it.
                socket.set_nonblocking(true)?;
                none.insert(socket)
            }
        };
        // By path each time: it reaches the next journal after a restart.
        socket.send_to(datagram, target).map(|_| ())
    }
}

fn encode(identifier: &str, event: &AuditEvent, place: Result<Head, &str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    let mut field = |name: &str, value: &str| put(&mut out, name, value);
    match place {
        Ok(head) => {
            field("MESSAGE", &event.message);
            field("PATCH_SEQ", &head.seq.to_string());
            field("PATCH_HASH", &head.hash.to_string());
        }
        Err(why) => field("MESSAGE", &format!("{} (not in the local audit trail: {why})", event.message)),
    }
    field("PRIORITY", &event.priority.syslog_level().to_string());
    field("SYSLOG_IDENTIFIER", identifier);
    field("MESSAGE_ID", event.kind.message_id());
    field("PATCH_EVENT", event.kind.name());
    field("PATCH_PRIORITY", event.priority.as_str());
    let caller = &event.caller;
    let address = caller.address.map(|address| address.to_string());
    let request = caller.request_id.map(|id| id.to_string());
    for (name, value) in [
        ("PATCH_IDENTITY", caller.identity.as_deref()),
        ("PATCH_FINGERPRINT", caller.fingerprint.as_deref()),
        ("PATCH_ADDRESS", address.as_deref()),
        ("PATCH_REQUEST_ID", request.as_deref()),
    ] {
        if let Some(value) = value {
            field(name, value);
        }
    }
    match &event.kind {
        AuditKind::Request { method, path, status, duration_ms } => {
            field("PATCH_METHOD", method);
            field("PATCH_PATH", path);
            field("PATCH_STATUS", &status.to_string());
            field("PATCH_DURATION_MS", &duration_ms.to_string());
        }
        AuditKind::AuthFailure { code, count, .. } => {
            field("PATCH_CODE", code.as_str());
            field("PATCH_COUNT", &count.to_string());
        }
        AuditKind::AllowListDenied { count } => {
            field("PATCH_CODE", "AUTHZ_IP_DENIED");
            field("PATCH_COUNT", &count.to_string());
        }
        AuditKind::JobAccepted { job_id, kind, .. } => {
            field("PATCH_JOB", &job_id.to_string());
            field("PATCH_JOB_KIND", kind);
        }
        AuditKind::JobEnded { job_id, status, outcome, error } => {
            field("PATCH_JOB", &job_id.to_string());
            field("PATCH_STATUS", status.as_str());
            if let Some(outcome) = outcome {
                field("PATCH_OUTCOME", outcome.as_str());
            }
            if let Some(error) = error {
                field("PATCH_CODE", error.code.as_str());
            }
        }
        AuditKind::PackageChanged { job_id, name, action, old_version, new_version, result, .. } => {
            field("PATCH_JOB", &job_id.to_string());
            field("PATCH_PACKAGE", name.as_str());
            field("PATCH_ACTION", action.as_str());
            field("PATCH_RESULT", result);
            for (name, version) in [("PATCH_OLD_VERSION", old_version), ("PATCH_NEW_VERSION", new_version)] {
                if let Some(version) = version {
                    field(name, version.as_str());
                }
            }
        }
        _ => {}
    }
    out
}

/// Appends one field.
fn put(out: &mut Vec<u8>, name: &str, value: &str) {
    let value = shorten(value);
    out.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

fn shorten(value: &str) -> Cow<'_, str> {
    if value.len() <= MAX_VALUE {
        return Cow::Borrowed(value);
    }
    let kept = &value[..value.floor_char_boundary(MAX_VALUE)];
    Cow::Owned(format!("{kept} … (shortened from {} bytes)", value.len()))
}
