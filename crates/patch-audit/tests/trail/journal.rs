//! The journal's side: what is sent, and that it can never hold up the trail.

use std::{collections::HashMap, os::unix::net::UnixDatagram, time::Duration};

use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller, Options};
use patch_types::{ErrorCode, ErrorDetail, JobId, JobStatus, Outcome, event::PackageResult};
use uuid::Uuid;

use crate::{Place, event};

/// A stand-in for the journal, and a log that sends to it.
fn with_journal(place: &Place) -> (UnixDatagram, AuditLog) {
    let socket = place.dir.path().join("journal");
    let journal = UnixDatagram::bind(&socket).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let options = Options { journal: Some(socket), ..Options::new("linux-patch-api") };
    (journal, AuditLog::open(&place.path(), options).unwrap())
}

/// The next datagram, taken apart by the protocol's rules.
fn receive(journal: &UnixDatagram) -> HashMap<String, String> {
    let mut buffer = vec![0; 1 << 18];
    let length = journal.recv(&mut buffer).unwrap();
    let mut rest = &buffer[..length];
    let mut fields = HashMap::new();
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let head = String::from_utf8(rest[..end].to_vec()).unwrap();
        rest = &rest[end + 1..];
        let (name, value) = match head.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => {
                let (size, after) = rest.split_at(8);
                let size = usize::try_from(u64::from_le_bytes(size.try_into().unwrap())).unwrap();
                let value = String::from_utf8(after[..size].to_vec()).unwrap();
                assert_eq!(after[size], b'\n');
                rest = &after[size + 1..];
                (head, value)
            }
        };
        assert!(fields.insert(name, value).is_none());
    }
    fields
}

#[test]
fn fields_say_what_the_record_says() {
    let place = Place::new();
    let (journal, log) = with_journal(&place);
    let caller = Caller {
        identity: Some("manager-1".to_owned()),
        fingerprint: Some("ab".repeat(32)),
        request_id: Some(Uuid::max()),
        ..Caller::at([10, 0, 0, 5].into())
    };
    let job_id = JobId(Uuid::nil());
    let result = PackageResult {
        name: "openssl".parse().unwrap(),
        architecture: "amd64".parse().unwrap(),
        action: patch_types::Action::Upgrade,
        old_version: Some("1".parse().unwrap()),
        new_version: Some("2".parse().unwrap()),
        done: false,
        reason: Some("first line\nPRIORITY=0".to_owned()),
        taken_back: false,
    };
    let head = log.record(AuditEvent::package_changed(&caller, job_id, &result)).unwrap();
    let fields = receive(&journal);
    for (name, value) in [
        ("SYSLOG_IDENTIFIER", "linux-patch-api"),
        ("PRIORITY", "6"),
        ("PATCH_EVENT", "package_changed"),
        ("PATCH_SEQ", "1"),
        ("PATCH_IDENTITY", "manager-1"),
        ("PATCH_ADDRESS", "10.0.0.5"),
        ("PATCH_REQUEST_ID", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
        ("PATCH_JOB", "00000000-0000-0000-0000-000000000000"),
        ("PATCH_PACKAGE", "openssl"),
        ("PATCH_OLD_VERSION", "1"),
        ("PATCH_NEW_VERSION", "2"),
        ("PATCH_RESULT", "not done: first line\nPRIORITY=0"),
    ] {
        assert_eq!(fields[name], value, "{name}");
    }
    assert_eq!(fields["PATCH_HASH"], head.hash.to_string());
    assert_eq!(fields["MESSAGE_ID"].len(), 32);

    let error = ErrorDetail::new(ErrorCode::JobTimeout, "too long");
    let (timeout, outcome) = (JobStatus::Timeout, Some(Outcome::RolledBack));
    let kinds = [
        (
            AuditEvent::job_ended(&caller, job_id, timeout, outcome, Some(&error)),
            "PATCH_OUTCOME",
            "rolled_back",
        ),
        (
            AuditEvent::request(&caller, "GET", "/x", 403, Duration::from_micros(1500)),
            "PATCH_DURATION_MS",
            "1.5",
        ),
        (AuditEvent::new(AuditKind::AllowListDenied { count: 9 }, &caller), "PATCH_COUNT", "9"),
        (
            AuditEvent::new(
                AuditKind::AuthFailure {
                    code: ErrorCode::AuthInvalidCert,
                    reason: "v1".to_owned(),
                    count: 1,
                },
                &caller,
            ),
            "PATCH_CODE",
            "AUTH_INVALID_CERT",
        ),
        (
            AuditEvent::new(
                AuditKind::JobAccepted { job_id, kind: "install".to_owned(), request: 1.into() },
                &caller,
            ),
            "PATCH_JOB_KIND",
            "install",
        ),
    ];
    for (event, name, value) in kinds {
        log.record(event).unwrap();
        assert_eq!(receive(&journal)[name], value);
    }
}

#[test]
fn a_long_message_is_shortened_and_says_so() {
    let place = Place::new();
    let (journal, log) = with_journal(&place);
    log.record(event("ü".repeat(1 << 20))).unwrap();
    let message = &receive(&journal)["MESSAGE"];
    assert!(message.len() < 40_000 && message.contains("(shortened from 2097"), "{}", message.len());
    assert_eq!(log.status().journal_dropped, 0);
}

#[test]
fn a_journal_that_does_not_read_stops_nothing_and_the_loss_is_confessed() {
    let place = Place::new();
    let (journal, log) = with_journal(&place);
    for n in 0..2000 {
        log.record_later(event(format!("{n}")));
    }
    log.flush().unwrap();
    let dropped = log.status().journal_dropped;
    assert!(dropped > 0 && dropped < 2000, "{dropped}");
    assert_eq!(place.verify().records, 2000);
    for _ in 0..2000 - dropped {
        receive(&journal);
    }
    log.record(event("after")).unwrap();
    let confession = receive(&journal);
    assert_eq!(confession["PATCH_EVENT"], "records_dropped");
    assert!(confession["MESSAGE"].starts_with(&format!("{dropped} audit records dropped")), "{confession:?}");
    assert!(receive(&journal)["MESSAGE"].contains("after"));
}

#[test]
fn no_journal_is_no_error() {
    let place = Place::new();
    let options = Options { journal: Some(place.dir.path().join("nobody")), ..Options::new("test") };
    let log = AuditLog::open(&place.path(), options).unwrap();
    log.record(event("x")).unwrap();
    log.flush().unwrap();
    assert_eq!(log.status().journal_dropped, 0);
    assert!(log.status().is_healthy());
}

#[test]
fn what_the_local_trail_lacks_says_so_in_the_journal() {
    let place = Place::new();
    let (journal, log) = with_journal(&place);
    let refused = log.record(event("x".repeat(patch_audit::MAX_RECORD)));
    assert!(matches!(refused, Err(patch_audit::AuditError::TooLarge)));
    let fields = receive(&journal);
    assert!(!fields.contains_key("PATCH_SEQ"));
    assert!(log.head().is_none());
    assert_eq!(log.record(event("y")).unwrap().seq, 1);
    log.close();
    assert!(place.verify().is_intact());
}
