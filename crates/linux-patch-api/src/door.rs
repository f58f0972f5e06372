//! What happens at the door, recorded and counted.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller, CertificateRole};
use patch_service::{CertificateFacts, DoorEvent, DoorObserver, PeerIdentity};
use patch_types::ErrorCode;

use crate::certificates::expiry;

/// How often at most the connections of one certificate from one address are recorded, after the first.
const SUCCESSES_EVERY: Duration = Duration::from_secs(60);

/// More certificates and addresses than this at a time are not told apart by memory: their connections are recorded one
/// by one. The certificates are those of the internal CA, so that many do not occur.
const MAX_TOLD_APART: usize = 1024;

/// The connections of one certificate from one address since its last record.
#[derive(Debug)]
struct Tally {
    caller: Caller,
    pending: u64,
    recorded: Instant,
}

/// Puts successful authentications together: a client that connects for every request must not fill the disk.
#[derive(Debug, Default)]
struct Successes(HashMap<(String, IpAddr), Tally>);

impl Successes {
    /// How many connections to record now, this one included; none if that is to wait.
    fn note(&mut self, peer: &PeerIdentity, now: Instant) -> Option<u64> {
        let key = (peer.fingerprint_sha256().to_owned(), peer.address().ip());
        if let Some(tally) = self.0.get_mut(&key) {
            tally.pending += 1;
            if now.saturating_duration_since(tally.recorded) < SUCCESSES_EVERY {
                return None;
            }
            tally.recorded = now;
            return Some(std::mem::take(&mut tally.pending));
        }
        if self.0.len() < MAX_TOLD_APART {
            self.0.insert(key, Tally { caller: caller(peer), pending: 0, recorded: now });
        }
        Some(1)
    }

    /// What has waited long enough. Who has been quiet since is forgotten.
    fn due(&mut self, now: Instant) -> Vec<(Caller, u64)> {
        let mut due = Vec::new();
        self.0.retain(|_, tally| {
            if now.saturating_duration_since(tally.recorded) < SUCCESSES_EVERY {
                return true;
            }
            let count = std::mem::take(&mut tally.pending);
            tally.recorded = now;
            if count > 0 {
                due.push((tally.caller.clone(), count));
            }
            count > 0
        });
        due
    }

    /// All that is not recorded yet.
    fn rest(&mut self) -> Vec<(Caller, u64)> {
        self.0.drain().filter(|(_, t)| t.pending > 0).map(|(_, t)| (t.caller, t.pending)).collect()
    }
}

/// Which clients' certificates were warned of, by fingerprint: each once a threshold, since it is shown with every connection.
#[derive(Debug, Default)]
struct Expiries(HashMap<String, (u32, Timestamp)>);

impl Expiries {
    /// Whether to warn of a certificate now.
    fn note(&mut self, certificate: &CertificateFacts, now: Timestamp) -> bool {
        let (from, until) = (certificate.not_before, certificate.not_after);
        let Some(level) = expiry::level(from, until, now) else { return false };
        if let Some((warned, _)) = self.0.get_mut(&certificate.fingerprint_sha256) {
            return level < std::mem::replace(warned, level.min(*warned));
        }
        if self.0.len() >= MAX_TOLD_APART {
            // Who has expired is not let in again.
            self.0.retain(|_, (_, until)| *until > now);
        }
        if self.0.len() >= MAX_TOLD_APART {
            return false;
        }
        self.0.insert(certificate.fingerprint_sha256.clone(), (level, until));
        true
    }
}

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
    successes: Mutex<Successes>,
    expiries: Mutex<Expiries>,
}

impl Recorder {
    /// A recorder for one audit trail.
    #[must_use]
    pub fn new(audit: Arc<AuditLog>, counters: Arc<DoorCounters>) -> Self {
        Self { audit, counters, successes: Mutex::default(), expiries: Mutex::default() }
    }

    /// What has been counted.
    #[must_use]
    pub fn counters(&self) -> Arc<DoorCounters> {
        Arc::clone(&self.counters)
    }

    /// Records the connections that were put together and are due. To be called now and then.
    pub fn record_due(&self) {
        let due = self.successes().due(Instant::now());
        self.succeeded_together(due);
    }

    /// Records all connections that were put together: before the trail is closed.
    pub fn record_rest(&self) {
        let rest = self.successes().rest();
        self.succeeded_together(rest);
    }

    fn successes(&self) -> std::sync::MutexGuard<'_, Successes> {
        self.successes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn succeeded_together(&self, counted: Vec<(Caller, u64)>) {
        for (caller, count) in counted {
            self.succeeded(count, &caller);
        }
    }

    fn succeeded(&self, count: u64, caller: &Caller) {
        let mut event = AuditEvent::new(AuditKind::AuthSuccess, caller);
        if count > 1 {
            event.message.push_str(&format!("; {count} connections since the last such record"));
        }
        self.audit.record_later(event);
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
                let count = self.successes().note(&identity, Instant::now());
                if let Some(count) = count {
                    self.succeeded(count, &caller(&identity));
                }
                let certificate = identity.certificate();
                let mut expiries = self.expiries.lock().unwrap_or_else(PoisonError::into_inner);
                if expiries.note(certificate, Timestamp::now()) {
                    drop(expiries);
                    let role = CertificateRole::Client;
                    let kind = AuditKind::CertificateExpiring { role, expires: certificate.not_after };
                    self.record(kind, &caller(&identity));
                }
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

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn peer(fingerprint: &str) -> PeerIdentity {
        let facts = CertificateFacts {
            common_name: "ops".into(),
            serial: "01".into(),
            not_before: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::MAX,
            fingerprint_sha256: fingerprint.to_owned(),
        };
        PeerIdentity::from_facts(facts, "10.0.0.7:5000".parse().unwrap())
    }

    #[test]
    fn connections_are_recorded_once_and_then_counted() {
        let mut successes = Successes::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(successes.note(&peer("aa"), start), Some(1), "the first one at once");
        assert_eq!(successes.note(&peer("bb"), start), Some(1), "another certificate");
        for second in 1..=59 {
            assert_eq!(successes.note(&peer("aa"), after(second)), None);
        }
        assert!(successes.due(after(59)).is_empty());
        assert_eq!(successes.note(&peer("aa"), after(60)), Some(60));
        assert_eq!(successes.note(&peer("aa"), after(61)), None);
        let due = successes.due(after(120));
        assert_eq!(due.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1]);
        assert_eq!(successes.0.len(), 1, "who is quiet is forgotten");
        assert_eq!(successes.note(&peer("aa"), after(121)), None);
        assert_eq!(successes.rest().len(), 1);
        assert!(successes.0.is_empty());
    }

    #[test]
    fn a_client_is_warned_of_once_a_threshold() {
        let until = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(365 * 24);
        let certificate = |fingerprint: &str| CertificateFacts {
            not_after: until,
            ..peer(fingerprint).certificate().clone()
        };
        let mut expiries = Expiries::default();
        let mut warned = |fingerprint: &str, hours: i64| {
            expiries.note(&certificate(fingerprint), until - SignedDuration::from_hours(hours))
        };
        let seen: Vec<i64> = (1..=40 * 24).rev().filter(|hours| warned("aa", *hours)).collect();
        assert_eq!(seen, [30 * 24, 7 * 24, 24]);
        assert!(warned("bb", 6) && !warned("bb", 100), "a clock that is set back does not warn again");
        for i in 0..5000 {
            expiries.note(&certificate(&i.to_string()), until - SignedDuration::from_hours(1));
        }
        assert!(expiries.0.len() <= MAX_TOLD_APART);
        // When they have expired there is room for their successors.
        let day = SignedDuration::from_hours(24);
        let next = CertificateFacts { not_after: until + day, ..certificate("next") };
        assert!(expiries.note(&next, until + SignedDuration::from_hours(1)) && expiries.0.len() == 1);
    }

    #[test]
    fn memory_is_bounded() {
        let mut successes = Successes::default();
        for i in 0..5000 {
            assert_eq!(successes.note(&peer(&i.to_string()), Instant::now()), Some(1));
        }
        assert!(successes.0.len() <= MAX_TOLD_APART);
    }

    #[test]
    fn a_flood_of_connections_makes_few_records() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let options = patch_audit::Options::new("test").without_journal();
        let log = Arc::new(AuditLog::open(&path, options).unwrap());
        let recorder = Recorder::new(Arc::clone(&log), Arc::default());
        for _ in 0..100 {
            recorder.observe(DoorEvent::AuthSucceeded { identity: peer("aa") });
        }
        recorder.record_due();
        recorder.record_rest();
        log.close();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("99 connections"), "{text}");
    }
}
