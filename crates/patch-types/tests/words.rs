//! The words of the interface: what is printed is what stands in JSON, and what is read is what is meant.
#![expect(clippy::unwrap_used, reason = "tests")]

use patch_types::{
    Action, Grade, JobId, JobStatus, OnFailure, Operation, Outcome, PackageName, PackageVersion, Phase,
    PlanHash, Query, WayBack,
    api::{AuditHead, PackageStatus},
    executor::{Checkpoint, RequestBody},
    operation::OperationError,
    rollback::Require,
    settings::HealthCheck,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Each of these words is read as a value whose word it is.
fn words<T: Serialize + DeserializeOwned>(shown: impl Fn(&T) -> String, words: &[&str]) -> Vec<T> {
    let read = |word: &&str| -> T {
        let value: T = serde_json::from_value(json!(word)).unwrap();
        assert_eq!(serde_json::to_value(&value).unwrap(), json!(word));
        assert_eq!(shown(&value), *word);
        value
    };
    words.iter().map(read).collect()
}

#[test]
fn what_is_printed_is_what_stands_in_json() {
    let states = ["pending", "running", "completed", "failed", "cancelled", "timeout"];
    let states = words(JobStatus::to_string, &states);
    assert_eq!(states.iter().filter(|state| state.is_terminal()).count(), 4);
    let before = ["planning", "downloading", "rehearsing", "waiting"];
    let since = ["snapshotting", "applying", "verifying", "confirming", "rolling_back", "rebooting"];
    assert!(words(Phase::to_string, &before).into_iter().all(Phase::is_cancellable));
    assert!(!words(Phase::to_string, &since).into_iter().any(Phase::is_cancellable));
    words(Outcome::to_string, &["applied", "unchanged", "rolled_back", "partial", "rollback_failed"]);
    words(Grade::to_string, &["none", "rebuilt", "exact"]);
    words(|choice: &OnFailure| choice.as_str().to_owned(), &["group", "all", "keep"]);
    let actions =
        ["install", "upgrade", "downgrade", "reinstall", "remove", "purge", "configure", "hold", "unhold"];
    words(|action: &Action| action.as_str().to_owned(), &actions);
}

#[test]
fn a_required_way_back_accepts_what_is_as_good() {
    let grades = [Grade::None, Grade::Rebuilt, Grade::Exact];
    for (require, accepted) in [("exact", 1), ("any", 2), ("off", 3)] {
        let require: Require = serde_json::from_value(json!(require)).unwrap();
        assert_eq!(grades.iter().filter(|grade| require.accepts(**grade)).count(), accepted);
    }
}

#[test]
fn half_done_packages_are_broken() {
    let broken = ["half-installed", "unpacked", "half-configured", "triggers-awaited"];
    let well = ["not-installed", "config-files", "triggers-pending", "installed"];
    for (states, expected) in [(broken, true), (well, false)] {
        for state in states {
            let state: PackageStatus = serde_json::from_value(json!(state)).unwrap();
            assert_eq!(state.is_broken(), expected, "{state:?}");
        }
    }
}

#[test]
fn an_operation_is_named_by_its_kind() {
    let job = "018f3f6e-0000-7000-8000-000000000001";
    let operations = [
        json!({"kind": "refresh"}),
        json!({"kind": "install", "packages": [{"name": "aa"}]}),
        json!({"kind": "update", "name": "aa"}),
        json!({"kind": "remove", "name": "aa"}),
        json!({"kind": "hold", "name": "aa", "hold": true}),
        json!({"kind": "apply_patches"}),
        json!({"kind": "rollback", "job": job}),
        json!({"kind": "reboot"}),
    ];
    for operation in operations {
        let read: Operation = serde_json::from_value(operation.clone()).unwrap();
        assert_eq!(operation["kind"], read.kind());
        read.check().unwrap();
    }
    let refused =
        |operation: Value| serde_json::from_value::<Operation>(operation).unwrap().check().unwrap_err();
    let both = json!({"kind": "apply_patches", "packages": ["aa"], "exclude": ["bb", "aa"]});
    assert_eq!(refused(both).to_string(), "package aa is both named and excluded");
    let twice = json!({"kind": "install", "packages": [{"name": "aa"}, {"name": "aa"}]});
    assert_eq!(refused(twice), OperationError::Duplicate("aa".parse().unwrap()));
    assert_eq!(refused(json!({"kind": "install", "packages": []})), OperationError::NoPackages);
    let many: Vec<Value> = (0..=1000).map(|n| json!({"name": format!("p{n}")})).collect();
    let many = refused(json!({"kind": "install", "packages": many}));
    assert!(matches!(many, OperationError::TooManyPackages(1001)), "{many}");
}

#[test]
fn only_root_may_lift_what_was_decided_on_the_host() {
    let job: JobId = "018f3f6e-0000-7000-8000-000000000001".parse().unwrap();
    let head = AuditHead { seq: 7, hash: "ab".repeat(32) };
    let body = |body: Value| -> RequestBody { serde_json::from_value(body).unwrap() };
    let limits = json!({"timeout_seconds": 1, "lock_wait_seconds": 1});
    let hold = json!({"kind": "hold", "name": "aa", "hold": true});
    let bodies = [
        // What is recorded of a change is what it does.
        (body(json!({"request": "change", "operation": hold, "limits": limits})), "hold", false),
        (body(json!({"request": "plan", "operation": hold})), "plan", false),
        (RequestBody::Query { query: Query::Services }, "query", false),
        (RequestBody::Cancel { job }, "cancel", false),
        (RequestBody::Confirm { job }, "confirm", false),
        (RequestBody::Settle { job }, "settle", false),
        (RequestBody::Clear { versions: patch_types::executor::TakenBack::All }, "clear", true),
        (RequestBody::Repaired { job }, "repaired", true),
        (RequestBody::ServerKey, "server_key", false),
        (RequestBody::Checkpoint { head: head.clone() }, "checkpoint", false),
    ];
    for (body, kind, for_root_alone) in bodies {
        assert_eq!((body.kind(), body.is_for_root_alone()), (kind, for_root_alone));
    }
    let at = "2026-01-02T03:04:05Z".parse().unwrap();
    let statement = Checkpoint::statement(&head, at);
    assert_eq!(
        statement,
        format!("linux-patch audit checkpoint 1\n7\n{}\n2026-01-02T03:04:05Z\n", head.hash)
    );
}

#[test]
fn names_and_hashes_are_read_as_they_are_printed() {
    let name: PackageName = "libc6:i386".parse().unwrap();
    assert_eq!((name.name(), name.architecture(), name.as_ref()), ("libc6", Some("i386"), "libc6:i386"));
    assert_eq!(name.with_architecture(&"amd64".parse().unwrap()).to_string(), "libc6:amd64");
    assert!("".parse::<PackageName>().is_err() && "".parse::<PackageVersion>().is_err());
    let hash = "0123456789abcdef".repeat(4);
    let read = PlanHash::try_from(hash.clone()).unwrap();
    assert_eq!(String::from(read), hash);
    for bad in ["", "0", &hash.to_uppercase(), &"g".repeat(64)] {
        PlanHash::try_from((*bad).to_owned()).unwrap_err();
    }
}

#[test]
fn a_check_says_what_it_is() {
    let checks = [
        (json!({"type": "command", "command": ["/bin/true", "-x"]}), "command /bin/true -x", 30),
        (json!({"type": "http", "url": "http://a/b", "timeout_seconds": 5}), "http http://a/b", 5),
        (json!({"type": "tcp", "address": "a:1"}), "tcp a:1", 30),
        (json!({"type": "systemd", "unit": "a.service"}), "systemd a.service", 30),
    ];
    for (check, shown, seconds) in checks {
        let check: HealthCheck = serde_json::from_value(check).unwrap();
        assert_eq!((check.to_string().as_str(), check.timeout().as_secs()), (shown, seconds));
        assert!(check.problems().is_empty(), "{:?}", check.problems());
    }
}

#[test]
fn a_way_back_of_an_older_version_is_read() {
    let way_back: WayBack = serde_json::from_value(json!({"grade": "exact", "packages": []})).unwrap();
    assert_eq!((way_back.grade, way_back.recorded_in_ms), (Grade::Exact, 0));
}
