//! What happens at the door, recorded and counted.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller};
use patch_service::{DoorEvent, DoorObserver, PeerIdentity};
use patch_types::ErrorCode;

/// How often what happened since the start.
#[derive(Debug, Default)]
pub struct DoorCounters {
    denied: AtomicU64,
    authentication: AtomicU64,
    not_tls: AtomicU64,
    timeout: AtomicU64,
    overload: AtomicU64,
    accepted: AtomicU64,
}

impl DoorCounters {
    /// The refusals by reason.
    #[must_use]
    pub fn refusals(&self) -> [(&'static str, u64); 5] {
        let read = |c: &AtomicU64| c.load(Ordering::Relaxed);
        [
            ("allow_list", read(&self.denied)),
            ("authentication", read(&self.authentication)),
            ("not_tls", read(&self.not_tls)),
            ("handshake_timeout", read(&self.timeout)),
            ("overload", read(&self.overload)),
        ]
    }

    /// Completed handshakes.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// Writes what happens at the door into the audit trail. The log's queue takes a record without waiting, as the door
/// demands.
pub struct Recorder {
    audit: Arc<AuditLog>,
    counters: Arc<DoorCounters>,
}

impl Recorder {
    /// A recorder for one audit trail.
    #[must_use]
    pub fn new(audit: Arc<AuditLog>, counters: Arc<DoorCounters>) -> Self {
        Self { audit, counters }
    }

    fn record(&self, kind: AuditKind, caller: &Caller) {
        self.audit.record_later(AuditEvent::new(kind, caller));
    }

    fn failure(&self, code: ErrorCode, reason: impl Into<String>, count: u64, caller: &Caller) {
        self.record(AuditKind::AuthFailure { code, reason: reason.into(), count }, caller);
    }
}

impl DoorObserver for Recorder {
    fn observe(&self, event: DoorEvent) {
        let add = |counter: &AtomicU64, count| {
            counter.fetch_add(count, Ordering::Relaxed);
        };
        match event {
            DoorEvent::Denied { address, count } => {
                add(&self.counters.denied, count);
                self.record(AuditKind::AllowListDenied { count }, &Caller::at(address));
            }
            DoorEvent::DeniedOthers { count } => {
                add(&self.counters.denied, count);
                self.record(AuditKind::AllowListDenied { count }, &Caller::local());
            }
            DoorEvent::AuthSucceeded { identity } => {
                add(&self.counters.accepted, 1);
                self.record(AuditKind::AuthSuccess, &caller(&identity));
            }
            DoorEvent::AuthFailed { address, reason, expired, certificate, count } => {
                add(&self.counters.authentication, count);
                let code = if expired { ErrorCode::AuthCertExpired } else { ErrorCode::AuthInvalidCert };
                let mut caller = Caller::at(address.ip());
                caller.fingerprint = certificate.as_ref().map(|c| c.fingerprint_sha256.clone());
                // The name is what the peer claims; the identity of a record is only ever a verified one.
                let claimed = certificate.map(|c| format!(" (it claims to be {:?})", c.common_name));
                self.failure(code, format!("{reason}{}", claimed.unwrap_or_default()), count, &caller);
            }
            DoorEvent::NotTls { address, count } => {
                add(&self.counters.not_tls, count);
                self.refused(address, "the peer does not speak TLS", count);
            }
            DoorEvent::HandshakeTimeout { address, count } => {
                add(&self.counters.timeout, count);
                self.refused(address, "the peer did not complete the TLS handshake in time", count);
            }
            DoorEvent::Overload { address, count } => {
                add(&self.counters.overload, count);
                self.refused(address, "too many connections or unfinished handshakes", count);
            }
            DoorEvent::AcceptFailed { error } => {
                tracing::error!(%error, "a connection could not be accepted; trying again");
            }
            DoorEvent::AllowListChanged { added, removed } => {
                tracing::info!(?added, ?removed, "whitelist: config reload, the allow list has changed");
                self.record(AuditKind::AllowListChanged { added, removed }, &Caller::local());
            }
            DoorEvent::AllowListRefused { error, denies_all } => {
                let effect = if denies_all { "everyone is denied" } else { "the last good list holds" };
                tracing::error!(%error, "whitelist: the allow list cannot be used; {effect}");
                self.record(
                    AuditKind::AllowListRefused { error: format!("{error}; {effect}") },
                    &Caller::local(),
                );
            }
            DoorEvent::NameUnresolved { name, error } => {
                tracing::warn!(name, %error, "whitelist: a name cannot be resolved; its last addresses hold");
            }
            DoorEvent::ConnectionsClosed { identities, reason } => {
                for identity in identities {
                    self.record(AuditKind::ConnectionRevoked { reason: reason.clone() }, &caller(&identity));
                }
            }
        }
    }
}

impl Recorder {
    fn refused(&self, address: IpAddr, reason: &str, count: u64) {
        self.failure(ErrorCode::AuthInvalidCert, reason, count, &Caller::at(address));
    }
}

fn caller(peer: &PeerIdentity) -> Caller {
    Caller {
        identity: Some(peer.common_name().to_owned()),
        fingerprint: Some(peer.fingerprint_sha256().to_owned()),
        address: Some(peer.address().ip()),
        request_id: None,
    }
}
