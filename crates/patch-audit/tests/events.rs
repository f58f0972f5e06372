//! What events say of their cause, and of what became of a package.

use patch_audit::{AuditEvent, AuditKind, Caller, Patience, PublicKeys, Remote};
use patch_types::event::PackageResult;
use serde_json::json;

#[test]
fn who_asked_for_a_job_is_the_cause_of_what_it_does() {
    let requester = json!({
        "identity": "alice", "fingerprint": "ab", "address": "10.0.0.1",
        "request_id": "018f3f6e-0000-7000-8000-000000000001", "role": "admin",
    });
    let requester = serde_json::from_value(requester).unwrap();
    let caller = Caller::from(&requester);
    assert_eq!((caller.identity.as_deref(), caller.fingerprint.as_deref()), (Some("alice"), Some("ab")));
    assert_eq!(caller.address, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(caller.request_id, Some(requester.request_id));
}

#[test]
fn a_package_was_changed_or_not_or_taken_back() {
    let job = "018f3f6e-0000-7000-8000-000000000001".parse().unwrap();
    let said = |done: bool, taken_back: bool, reason: Option<&str>| {
        let result: PackageResult = serde_json::from_value(json!({
            "name": "aa", "architecture": "all", "action": "upgrade", "old_version": "1", "new_version": "2",
            "done": done, "reason": reason, "taken_back": taken_back,
        }))
        .unwrap();
        match AuditEvent::package_changed(&Caller::local(), job, &result).kind {
            AuditKind::PackageChanged { result, .. } => result,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(said(true, false, None), "done");
    assert_eq!(said(false, false, None), "not done");
    assert_eq!(said(false, false, Some("it failed")), "not done: it failed");
    assert_eq!(said(false, true, None), "taken back");
    assert_eq!(said(false, true, Some("it failed")), "taken back: it failed");
}

#[test]
fn a_remote_server_is_told_by_its_target() {
    let remote =
        Remote { target: "tcp://log:514".parse().unwrap(), tls: None, patience: Patience::default() };
    assert!(format!("{remote:?}").contains("log"), "{remote:?}");
    assert!(remote.patience.first_pause < remote.patience.longest_pause);
}

#[test]
fn keys_that_are_none_are_none() {
    assert!(PublicKeys::parse("").is_empty() && PublicKeys::parse("no key\n").is_empty());
}
