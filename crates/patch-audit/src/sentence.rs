//! What a kind of event means to people and to filters: its name, its message id, its priority, its sentence.
//!
//! Operators search the journal for words: `auth`, `certificate`, `whitelist`, `config reload`, `client cert`, and the
//! statuses `400`, `401`, `403`. The sentences keep them; a test holds the list.

use std::fmt::{self, Write as _};

use patch_types::{JobStatus, PackageVersion};

use crate::event::{AuditKind, Caller, CertificateRole, Priority};

impl AuditKind {
    /// The kind's name, as in the field `event` of a record.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.identity().0
    }

    /// The kind's message id in the journal: 128 bits in hexadecimal that never change.
    #[must_use]
    pub fn message_id(&self) -> &'static str {
        self.identity().1
    }

    fn identity(&self) -> (&'static str, &'static str) {
        match self {
            Self::Request { .. } => ("request", "47eaa0992cb6416d86dc283cf0480ff9"),
            Self::AuthSuccess => ("auth_success", "1509bb0a9bf143318a118783593942a4"),
            Self::AuthFailure { .. } => ("auth_failure", "f5ec52ed0108447592e1bc7656670b14"),
            Self::AllowListDenied { .. } => ("allow_list_denied", "59ba1b0d5c904158a909406c2e416788"),
            Self::AllowListChanged { .. } => ("allow_list_changed", "5d32fe61985f44e7aa095ee82bb29976"),
            Self::AllowListRefused { .. } => ("allow_list_refused", "9a1e40b458154a9999e2d15364c7a500"),
            Self::ConnectionRevoked { .. } => ("connection_revoked", "68b4aef73eaa4e179d8a4eace693ae2d"),
            Self::Forbidden { .. } => ("forbidden", "142c83647806457793e783e7eb04b39b"),
            Self::RateLimited { .. } => ("rate_limited", "3b041641178844f2a60df25453fe2e85"),
            Self::PayloadRefused { .. } => ("payload_refused", "00a154d85ed84bccb5c719c2add9ca88"),
            Self::JobAccepted { .. } => ("job_accepted", "c0290103855d4f5599ec8712e8e3574f"),
            Self::JobEnded { .. } => ("job_ended", "6e704245a4ff41e3a7949b80dcb0b82e"),
            Self::PackageChanged { .. } => ("package_changed", "de1b1471320a48eab7a788d106762832"),
            Self::SystemChanged { .. } => ("system_changed", "4350cc1721e54f21acd552a09ddbef12"),
            Self::PolicyDecided { .. } => ("policy_decided", "ed9b3e5f62eb408f908b8887de29f50a"),
            Self::ConfigChanged { .. } => ("config_changed", "9ed89eddd6844325b600e6129ec04ece"),
            Self::ConfigRefused { .. } => ("config_refused", "627bf3225fac4cb6a34acb115ee347dd"),
            Self::CertificateChanged { .. } => ("certificate_changed", "a930d55d954540f3ae889fe46f2c7a8c"),
            Self::CertificateRefused { .. } => ("certificate_refused", "43f2f1936e854f08b5927b0fe339d309"),
            Self::CertificateExpiring { .. } => ("certificate_expiring", "990d3cd8381d422f850c86bd84e0164b"),
            Self::ServiceStarted { .. } => ("service_started", "e07cb5793e7f497bbcc1c0c8b0cdf20a"),
            Self::ServiceStopped { .. } => ("service_stopped", "78f6d82486ea4214b5c34e7e77ca4499"),
            Self::SinkFailed { .. } => ("sink_failed", "1dcd327f761e47cbbb7e8913655c1d15"),
            Self::SinkRecovered { .. } => ("sink_recovered", "9672be1a7fed4bb9a92fa271dbc52933"),
            Self::RecordsDropped { .. } => ("records_dropped", "c44a66f4cf2543469cbe4f50bdbcda98"),
            Self::TornTailCut { .. } => ("torn_tail_cut", "1e2ed6cb64704f1f934b8db4b18fbdb1"),
            Self::TrailSetAside { .. } => ("trail_set_aside", "4f859933fdf0445f97e485b6761978dd"),
            Self::Checkpoint { .. } => ("checkpoint", "71ef269e673140a2b6ff3aa91d7535b8"),
            Self::CheckpointRefused { .. } => ("checkpoint_refused", "a316ddde97134661b61044be1f3c3d3a"),
            Self::TrailCut { .. } => ("trail_cut", "621eba3c1618438bbab156ae2e06d07a"),
            Self::TrailPruned { .. } => ("trail_pruned", "64ad2cf3e9c243b29c4c8a8a567bc335"),
            Self::RootRequest { .. } => ("root_request", "21dbb02dbb8740f5acdabe442529956f"),
            Self::Unknown => ("unknown", "2e460a9618944a2399855162fd0b00ea"),
        }
    }

    /// How much the kind matters.
    #[must_use]
    pub fn priority(&self) -> Priority {
        match self {
            Self::AuthFailure { .. }
            | Self::CertificateRefused { .. }
            | Self::SinkFailed { .. }
            | Self::TornTailCut { .. }
            | Self::TrailSetAside { .. }
            | Self::TrailCut { .. }
            | Self::CheckpointRefused { .. } => Priority::High,
            Self::AllowListDenied { .. }
            | Self::AllowListChanged { .. }
            | Self::AllowListRefused { .. }
            | Self::ConnectionRevoked { .. }
            | Self::Forbidden { .. }
            | Self::SystemChanged { .. }
            | Self::ConfigChanged { .. }
            | Self::ConfigRefused { .. }
            | Self::CertificateChanged { .. }
            | Self::CertificateExpiring { .. }
            | Self::ServiceStarted { .. }
            | Self::SinkRecovered { .. }
            | Self::RecordsDropped { .. } => Priority::Medium,
            Self::RateLimited { .. } | Self::PayloadRefused { .. } => Priority::Low,
            Self::JobEnded { status: JobStatus::Failed | JobStatus::Timeout, .. } => Priority::Low,
            Self::RootRequest { error: Some(_), .. } => Priority::Medium,
            Self::Request { .. }
            | Self::AuthSuccess
            | Self::JobAccepted { .. }
            | Self::JobEnded { .. }
            | Self::PackageChanged { .. }
            | Self::PolicyDecided { .. }
            | Self::ServiceStopped { .. }
            | Self::Checkpoint { .. }
            | Self::TrailPruned { .. }
            | Self::RootRequest { .. }
            | Self::Unknown => Priority::Info,
        }
    }

    /// The kind as a sentence, with who caused it.
    #[must_use]
    pub fn sentence(&self, caller: &Caller) -> String {
        let mut text = Sentence(String::new());
        // Writing to a string cannot fail.
        let _ = self.write(&mut text).and_then(|()| write_caller(&mut text, caller));
        text.0
    }

    fn write(&self, f: &mut Sentence) -> fmt::Result {
        match self {
            Self::Request { method, path, status, duration_ms } => {
                write!(f, "request {method} {path} answered {status} in {duration_ms} ms")
            }
            Self::AuthSuccess => write!(f, "authentication succeeded: client certificate accepted"),
            Self::AuthFailure { code, reason, count } => {
                write!(f, "authentication failed: client certificate refused ({code}): {reason}")?;
                write_times(f, *count)
            }
            Self::AllowListDenied { count } => {
                write!(f, "whitelist: connection denied (AUTHZ_IP_DENIED)")?;
                write_times(f, *count)
            }
            Self::AllowListChanged { added, removed } => {
                write!(f, "whitelist reloaded: added {}; removed {}", list(added), list(removed))
            }
            Self::AllowListRefused { error } => {
                write!(f, "whitelist refused: {error}")
            }
            Self::ConnectionRevoked { reason } => {
                write!(f, "authorisation withdrawn, connection closed: {reason}")
            }
            Self::Forbidden { method, path, role } => {
                write!(f, "authorisation refused: {method} {path} is not for the role {role} (403)")
            }
            Self::RateLimited { count } => {
                write!(f, "rate limit exceeded (429)")?;
                write_times(f, *count)
            }
            Self::PayloadRefused { limit } => {
                write!(f, "oversized payload refused: the limit is {limit} bytes")
            }
            Self::JobAccepted { job_id, kind, .. } => write!(f, "job {job_id} accepted: {kind}"),
            Self::JobEnded { job_id, status, outcome, error } => {
                write!(f, "job {job_id} ended: {status}")?;
                if let Some(outcome) = outcome {
                    write!(f, ", {outcome}")?;
                }
                error.iter().try_for_each(|error| write!(f, " ({}): {}", error.code, error.message))
            }
            Self::PackageChanged { job_id, name, architecture, action, old_version, new_version, result } => {
                let version =
                    |v: &Option<PackageVersion>| v.as_ref().map_or("none".to_owned(), ToString::to_string);
                write!(f, "package {name}:{architecture} {action} ")?;
                write!(f, "{} -> {}: {result} (job {job_id})", version(old_version), version(new_version))
            }
            Self::SystemChanged { what } => write!(f, "system changed: {what}"),
            Self::PolicyDecided { what } => write!(f, "policy: {what}"),
            Self::ConfigChanged { diff } => {
                write!(f, "config reload: the changed configuration is in effect: {diff}")
            }
            Self::ConfigRefused { error } => {
                write!(f, "config reload refused, the running configuration stays: {error}")
            }
            Self::CertificateChanged { role, sha256, expires } => {
                write!(f, "{} replaced, sha256 {sha256}", noun(*role))?;
                expires.iter().try_for_each(|at| write!(f, ", good until {at}"))
            }
            Self::CertificateRefused { role, error } => {
                write!(f, "{} cannot be used, the one before stays: {error}", noun(*role))
            }
            Self::CertificateExpiring { role, expires } => {
                write!(f, "{} is good until {expires}", noun(*role))
            }
            Self::ServiceStarted { version } => write!(f, "service started, version {version}"),
            Self::ServiceStopped { reason } => write!(f, "service stopped: {reason}"),
            Self::SinkFailed { sink, error } => write!(f, "audit sink {sink} failed: {error}"),
            Self::SinkRecovered { sink, lost } => {
                write!(f, "audit sink {sink} works again; it lacks {lost} records")
            }
            Self::RecordsDropped { sink, count } => {
                write!(f, "{count} audit records dropped: sink {sink} could not keep up")
            }
            Self::TornTailCut { bytes, sha256 } => {
                write!(f, "audit trail was torn by a crash: {bytes} bytes cut off its end, sha256 {sha256}")
            }
            Self::TrailSetAside { kept_as, reason } => {
                write!(f, "audit trail set aside: {reason}; ")?;
                match kept_as {
                    Some(name) => write!(f, "kept as {name}, a new file begins here"),
                    None => write!(f, "a new file begins here"),
                }
            }
            Self::Checkpoint { head_seq, .. } => {
                write!(f, "audit checkpoint: the root side vouches for the trail up to record {head_seq}")
            }
            Self::CheckpointRefused { head_seq, reason, .. } => {
                write!(f, "audit checkpoint refused at record {head_seq}: {reason}")
            }
            Self::TrailCut { last, signed } => write!(
                f,
                "audit trail was cut off: it ended with record {last}, and the root side has signed record {signed}; it \
                 goes on after that"
            ),
            Self::TrailPruned { removed, first_left } => write!(
                f,
                "audit trail: kept long enough and removed: {}; it begins with record {first_left} now",
                list(removed)
            ),
            Self::RootRequest { job_id, kind, uid, login_uid, sudo_user, reply, error, .. } => {
                write!(f, "root side: {kind} {reply}, asked by uid {uid}")?;
                login_uid.iter().try_for_each(|login| write!(f, ", logged in as uid {login}"))?;
                sudo_user.iter().try_for_each(|user| write!(f, ", by sudo of {user}"))?;
                write!(f, " (operation {job_id})")?;
                error.iter().try_for_each(|error| write!(f, ": {}: {}", error.code, error.message))
            }
            Self::Unknown => write!(f, "an event of a kind that this version does not know"),
        }
    }
}

/// A sentence under construction. What peers choose (names, paths) goes through here, so a control character cannot
/// forge a line of a terminal or of a plain log.
struct Sentence(String);

impl fmt::Write for Sentence {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.chars().any(char::is_control) {
            self.0.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
        } else {
            self.0.push_str(text);
        }
        Ok(())
    }
}

fn write_caller(f: &mut Sentence, caller: &Caller) -> fmt::Result {
    if let Some(identity) = &caller.identity {
        write!(f, ", by {identity}")?;
    }
    caller.address.iter().try_for_each(|address| write!(f, ", from {address}"))
}

fn write_times(f: &mut Sentence, count: u64) -> fmt::Result {
    if count > 1 { write!(f, ", {count} times") } else { Ok(()) }
}

fn list(entries: &[String]) -> String {
    if entries.is_empty() { "nothing".to_owned() } else { entries.join(", ") }
}

fn noun(role: CertificateRole) -> &'static str {
    match role {
        CertificateRole::Ca => "certificate of the CA",
        CertificateRole::Server => "server certificate",
        CertificateRole::Crl => "certificate revocation list",
        CertificateRole::Client => "client certificate",
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use patch_types::{ErrorCode, ErrorDetail, JobId, Outcome};
    use uuid::Uuid;

    use super::*;
    use crate::event::AuditEvent;

    fn caller() -> Caller {
        Caller { identity: Some("manager-1".to_owned()), ..Caller::at([10, 0, 0, 5].into()) }
    }

    /// One of each kind, with its priority and the words that are searched for.
    fn all() -> Vec<(AuditKind, Priority, &'static str)> {
        let job_id = JobId(Uuid::nil());
        let text = || "x".to_owned();
        let error = Some(ErrorDetail::new(ErrorCode::LockTimeout, "dpkg is busy"));
        let (method, path) = ("GET".to_owned(), "/api/v1/packages".to_owned());
        let role = CertificateRole::Server;
        let at = jiff::Timestamp::UNIX_EPOCH;
        let package = AuditKind::PackageChanged {
            job_id,
            name: "openssl".parse().unwrap(),
            architecture: "amd64".parse().unwrap(),
            action: patch_types::Action::Install,
            old_version: None,
            new_version: Some("3.0".parse().unwrap()),
            result: "done".to_owned(),
        };
        let root = |reply: &str, error| AuditKind::RootRequest {
            job_id,
            kind: "install".to_owned(),
            uid: 997,
            login_uid: Some(1000),
            sudo_user: Some("ann".to_owned()),
            request: 1.into(),
            reply: reply.to_owned(),
            error,
        };
        let ended = |status, outcome, error| AuditKind::JobEnded { job_id, status, outcome, error };
        use AuditKind as K;
        use Priority::{High, Info, Low, Medium};
        vec![
            (
                K::Request { method: method.clone(), path: path.clone(), status: 403, duration_ms: 0.25 },
                Info,
                "403",
            ),
            (K::AuthSuccess, Info, "auth client cert"),
            (
                K::AuthFailure { code: ErrorCode::AuthCertExpired, reason: text(), count: 1 },
                High,
                "auth certificate AUTH_CERT_EXPIRED failed",
            ),
            (K::AllowListDenied { count: 7 }, Medium, "whitelist denied 7"),
            (K::AllowListChanged { added: vec![text()], removed: vec![] }, Medium, "whitelist nothing"),
            (K::AllowListRefused { error: text() }, Medium, "whitelist"),
            (K::ConnectionRevoked { reason: text() }, Medium, "auth"),
            (K::Forbidden { method, path, role: "viewer".to_owned() }, Medium, "auth 403 viewer"),
            (K::RateLimited { count: 2 }, Low, "429"),
            (K::PayloadRefused { limit: 5 }, Low, "payload"),
            (K::JobAccepted { job_id, kind: "install".to_owned(), request: 1.into() }, Info, "job install"),
            (ended(JobStatus::Completed, Some(Outcome::Applied), None), Info, "job completed applied"),
            (ended(JobStatus::Failed, None, error.clone()), Low, "failed LOCK_TIMEOUT dpkg"),
            (ended(JobStatus::Timeout, None, None), Low, "timeout"),
            (package, Info, "openssl:amd64 none 3.0"),
            (K::SystemChanged { what: text() }, Medium, "system"),
            (K::PolicyDecided { what: text() }, Info, "policy"),
            (K::ConfigChanged { diff: text() }, Medium, "config reload"),
            (K::ConfigRefused { error: text() }, Medium, "config reload refused"),
            (K::CertificateChanged { role, sha256: text(), expires: Some(at) }, Medium, "certificate"),
            (K::CertificateRefused { role: CertificateRole::Crl, error: text() }, High, "certificate"),
            (K::CertificateExpiring { role: CertificateRole::Ca, expires: at }, Medium, "certificate 1970"),
            (
                K::CertificateExpiring { role: CertificateRole::Client, expires: at },
                Medium,
                "client certificate",
            ),
            (K::ServiceStarted { version: text() }, Medium, "started"),
            (K::ServiceStopped { reason: text() }, Info, "stopped"),
            (K::SinkFailed { sink: text(), error: text() }, High, "failed"),
            (K::SinkRecovered { sink: text(), lost: 3 }, Medium, "3"),
            (K::RecordsDropped { sink: text(), count: 3 }, Medium, "3"),
            (K::TornTailCut { bytes: 3, sha256: text() }, High, "3 bytes"),
            (K::TrailSetAside { kept_as: Some("aside".to_owned()), reason: text() }, High, "aside"),
            (K::TrailSetAside { kept_as: None, reason: text() }, High, "new file"),
            (
                K::Checkpoint {
                    head_seq: 7,
                    head_hash: text(),
                    signed_at: at,
                    key: text(),
                    signature: text(),
                },
                Info,
                "checkpoint 7",
            ),
            (K::CheckpointRefused { head_seq: 7, head_hash: text(), reason: text() }, High, "refused 7"),
            (K::TrailCut { last: 3, signed: 9 }, High, "cut 3 9"),
            (K::TrailPruned { removed: vec![text()], first_left: 4 }, Info, "removed 4"),
            (root("accepted", None), Info, "install accepted uid 997 1000 ann"),
            (root("refused", error), Medium, "refused LOCK_TIMEOUT"),
        ]
    }

    #[test]
    fn sentences_keep_the_words_and_kinds_their_priorities() {
        for (kind, priority, words) in all() {
            let event = AuditEvent::new(kind, &caller());
            assert_eq!(event.priority, priority, "{}", event.message);
            for word in words.split(' ') {
                assert!(event.message.contains(word), "{word:?} in {:?}", event.message);
            }
            assert!(event.message.ends_with(", by manager-1, from 10.0.0.5"), "{}", event.message);
        }
    }

    #[test]
    fn every_kind_survives_json_and_has_an_id_of_its_own() {
        let mut ids = HashSet::new();
        let mut names = HashSet::new();
        for (kind, ..) in all() {
            let event = AuditEvent::new(kind, &caller());
            let json = serde_json::to_value(&event).unwrap();
            assert_eq!(json["event"], event.kind.name());
            assert_eq!(serde_json::from_value::<AuditEvent>(json).unwrap(), event);
            names.insert(event.kind.name());
            ids.insert(event.kind.message_id());
            assert_eq!(event.kind.message_id().len(), 32);
        }
        assert_eq!((ids.len(), names.len()), (32, 32));
        let newer =
            r#"{"at":"1970-01-01T00:00:00Z","priority":"low","event":"brand_new","x":1,"message":"m"}"#;
        assert_eq!(serde_json::from_str::<AuditEvent>(newer).unwrap().kind, AuditKind::Unknown);
        assert!(AuditKind::Unknown.sentence(&Caller::local()).contains("does not know"));
    }

    #[test]
    fn what_a_peer_chooses_cannot_forge_a_line() {
        let caller = Caller { identity: Some("a\nJan 1 root: ok\u{1b}[2J".to_owned()), ..Caller::local() };
        let event = AuditEvent::request(&caller, "GET", "/\r\n", 404, Duration::from_micros(1234));
        assert!(!event.message.chars().any(char::is_control), "{:?}", event.message);
        assert!(event.message.contains("404 in 1.234 ms"));
    }

    #[test]
    fn levels_fall_with_priority() {
        let levels = [Priority::High, Priority::Medium, Priority::Low, Priority::Info];
        assert_eq!(levels.map(Priority::syslog_level), [3, 4, 5, 6]);
        assert_eq!(levels.map(Priority::as_str), ["high", "medium", "low", "info"]);
        assert!(Priority::High > Priority::Info);
    }
}
