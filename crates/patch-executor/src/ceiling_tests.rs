use std::os::unix::fs::symlink;

use patch_types::{
    RollbackMode,
    operation::{Hold, Reboot, Rollback},
    plan::Origin,
};

use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["etc/linux_patch_api", "var/lib/dpkg"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        let status = "Package: lp-x\nStatus: install ok installed\nArchitecture: all\nVersion: 2\n";
        fs::write(dir.path().join("var/lib/dpkg/status"), status).unwrap();
        Self(dir)
    }

    fn with(text: &str) -> Self {
        let place = Self::new();
        fs::write(place.0.path().join(FILE), text).unwrap();
        place
    }

    fn load(&self) -> Result<Ceiling, ErrorDetail> {
        Ceiling::load(self.0.path())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn check(&self, change: PlannedChange) -> Result<(), ErrorDetail> {
        let inventory = Inventory::read(self.0.path()).unwrap();
        self.load().unwrap().check(&Plan::of(vec![change]), &inventory)
    }
}

fn hold() -> Operation {
    Operation::Hold(Hold { name: "lp-x".parse().unwrap(), hold: true })
}

fn rollback() -> Operation {
    let job = "01890000-0000-7000-8000-000000000001".parse().unwrap();
    Operation::Rollback(Rollback { job, force: false, mode: RollbackMode::Packages })
}

fn change(action: Action, new: &str, suite: Option<&str>) -> PlannedChange {
    PlannedChange {
        action,
        name: "lp-x".parse().unwrap(),
        architecture: "all".parse().unwrap(),
        old_version: Some("2".parse().unwrap()),
        new_version: new.parse().ok(),
        archive_sha256: None,
        origin: suite.map(|suite| Origin {
            origin: "Debian".into(),
            suite: suite.into(),
            ..Origin::default()
        }),
        security: false,
        archive_bytes: 0,
        disk_delta_bytes: 0,
    }
}

#[test]
fn without_a_file_there_is_no_ceiling_but_the_freeze_file() {
    for place in [Place::new(), Place::with("# nothing\n\n")] {
        let ceiling = place.load().unwrap();
        ceiling.admits(&Operation::Refresh).unwrap();
        place.check(change(Action::Remove, "", None)).unwrap();
        place.check(change(Action::Upgrade, "3", None)).unwrap();
        fs::write(place.path(FREEZE), "quarter's end,\n\x1b ask the treasury\n").unwrap();
        let error = ceiling.admits(&hold()).unwrap_err();
        assert_eq!(error.code, ErrorCode::AuthzForbidden);
        let to_snapshot = match rollback() {
            Operation::Rollback(back) => {
                Operation::Rollback(Rollback { mode: RollbackMode::Snapshot, ..back })
            }
            other => other,
        };
        assert!(place.load().unwrap().admits(&to_snapshot).is_err(), "it is a change of everything");
        assert!(error.message.contains("frozen: quarter's end, ask the treasury;"), "{}", error.message);
        ceiling.admits(&rollback()).unwrap();
    }
}

#[test]
fn a_freeze_file_freezes_whatever_it_is_and_only_roots_own_is_read() {
    let place = Place::with("freeze_file: /run/frozen\n");
    fs::create_dir(place.path("run")).unwrap();
    let ceiling = place.load().unwrap();
    fs::write(place.path(FREEZE), "not this one").unwrap();
    ceiling.admits(&hold()).unwrap();
    symlink("/etc/hostname", place.path("run/frozen")).unwrap();
    let error = ceiling.admits(&hold()).unwrap_err();
    assert!(error.message.contains("frozen; nothing") && error.message.contains("/run/frozen"), "{error}");
    fs::remove_file(place.path("run/frozen")).unwrap();
    fs::create_dir(place.path("run/frozen")).unwrap();
    assert!(ceiling.admits(&hold()).is_err());
    fs::remove_dir(place.path("run/frozen")).unwrap();
    ceiling.admits(&hold()).unwrap();
}

#[test]
fn only_the_operations_that_are_named_are_admitted() {
    let ceiling = Place::with("operations: [hold, rollback]\n").load().unwrap();
    ceiling.admits(&hold()).unwrap();
    ceiling.admits(&rollback()).unwrap();
    let error = ceiling.admits(&Operation::Refresh).unwrap_err();
    assert_eq!(error.code, ErrorCode::AuthzForbidden);
    assert!(error.message.contains("does not allow refresh"), "{error}");
    assert!(Place::with("operations: []\n").load().unwrap().admits(&rollback()).is_err());
}

#[test]
fn root_may_forbid_reboots_or_orders_alone() {
    let reboot = |force| Operation::Reboot(Reboot { reason: Some("x".into()), force, ..Reboot::default() });
    let queued_alone = Place::with("operations: [reboot]\n").load().unwrap();
    queued_alone.admits(&reboot(false)).unwrap();
    let error = queued_alone.admits(&reboot(true)).unwrap_err();
    assert!(error.code == ErrorCode::AuthzForbidden && error.message.contains("forced_reboot"), "{error}");
    let none = Place::with("operations: [install]\n").load().unwrap();
    assert!(none.admits(&reboot(false)).is_err() && none.admits(&reboot(true)).is_err());
    let place = Place::new();
    place.load().unwrap().admits(&reboot(true)).unwrap();
    fs::write(place.path(FREEZE), "").unwrap();
    assert!(place.load().unwrap().admits(&reboot(true)).is_err());
}

#[test]
fn new_versions_come_from_allowed_origins_only() {
    let place = Place::with("origins:\n  - {origin: Debian, suite: stable}\n  - {site: packages.internal}\n");
    place.check(change(Action::Upgrade, "3", Some("stable"))).unwrap();
    place.check(change(Action::Remove, "", None)).unwrap();
    place.check(change(Action::Hold, "2", None)).unwrap();
    for action in [Action::Install, Action::Upgrade, Action::Downgrade, Action::Reinstall] {
        let error = place.check(change(action, "3", Some("sid"))).unwrap_err();
        assert_eq!(error.code, ErrorCode::AuthzForbidden);
        assert!(error.message.contains("suite \"sid\""), "{error}");
        assert!(place.check(change(action, "3", None)).is_err());
    }
    assert!(Place::with("origins: []\n").check(change(Action::Upgrade, "3", Some("stable"))).is_err());
}

#[test]
fn what_is_protected_is_neither_removed_nor_downgraded() {
    let place = Place::with("protected: [\"lp-*\"]\n");
    place.check(change(Action::Upgrade, "3", None)).unwrap();
    for (action, new) in
        [(Action::Remove, ""), (Action::Purge, ""), (Action::Downgrade, "1"), (Action::Install, "1")]
    {
        let error = place.check(change(action, new, None)).unwrap_err();
        assert_eq!(error.code, ErrorCode::AuthzForbidden);
        assert!(error.message.contains("\"lp-*\""), "{error}");
    }
    Place::with("protected: [other]\n").check(change(Action::Remove, "", None)).unwrap();
}

#[test]
fn a_file_that_cannot_be_relied_upon_refuses_everything() {
    let place = Place::with("operations: [install]\noperation: [x]\n");
    let error = place.load().unwrap_err();
    assert_eq!(error.code, ErrorCode::ConfigInvalid);
    for words in ["ceiling.yaml:2:1: unknown", "nothing is changed", "Correct the file"] {
        assert!(error.message.contains(words), "{error}");
    }
    // A key without a value is no lifted limit.
    assert_eq!(Place::with("operations:\n").load().unwrap_err().code, ErrorCode::ConfigInvalid);

    fs::remove_file(place.path(FILE)).unwrap();
    symlink("nowhere", place.path(FILE)).unwrap();
    assert_eq!(place.load().unwrap_err().code, ErrorCode::ConfigInvalid);
}
