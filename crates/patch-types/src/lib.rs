//! The vocabulary of the whole system: what the root side, the network side and the clients say to each other.
//!
//! Everything here is a value. Deserialising *is* validating: a [`PackageName`] that exists cannot be read as an
//! option, hold a path or reach a shell. There is no IO, no clock and no runtime in this crate.
//!
//! What is asked or configured is refused if it has a field that is not known: it would be done otherwise than was meant. What
//! is only answered or told is read without such fields: a client, or a daemon during an upgrade, may be of the version before.

pub mod api;
pub mod compliance;
pub mod error;
pub mod event;
pub mod executor;
pub mod job;
pub mod logins;
pub mod name;
pub mod notifications;
pub mod operation;
pub mod plan;
pub mod policy;
pub mod reboot;
pub mod rehearsal;
pub mod rollback;
pub mod settings;
pub mod snapshot;
pub mod stale;
pub mod terminal;

pub use error::{ErrorCode, ErrorDetail};
pub use event::{Event, EventKind, LockHolder};
pub use job::{JobId, JobIdError, JobStatus, Outcome, Phase};
pub use name::{Architecture, PackageName, PackageVersion};
pub use operation::{Operation, Query};
pub use plan::{Action, Plan, PlanHash, PlannedChange};
pub use rehearsal::{Finding, FindingKind, RehearsalReport, RehearsalVerdict, Rehearse, Unrehearsed};
pub use rollback::{ChangeOptions, Grade, OnFailure, TakenBack, WayBack, WentBack};
pub use snapshot::{RollbackMode, SnapshotReport, TakesBack};

#[cfg(test)]
mod tests {
    use serde::{Serialize, de::DeserializeOwned};
    use serde_json::{Value, json};

    use crate::{
        Event, Plan, TakenBack,
        executor::{Checkpoint, Reply, RequestBody},
        reboot::RebootReport,
    };

    /// With one more field in each object.
    fn extended(value: Value) -> Value {
        match value {
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(key, value)| (key, extended(value)));
                Value::Object(fields.chain([("of_a_later_version".to_owned(), json!({"a": 1}))]).collect())
            }
            Value::Array(items) => items.into_iter().map(extended).collect(),
            other => other,
        }
    }

    /// What a later version says is read as what this one knows of it.
    fn is_read<T: DeserializeOwned + Serialize>(value: &Value) {
        let read: T = serde_json::from_value(extended(value.clone())).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), *value);
    }

    #[test]
    fn what_is_told_may_have_fields_of_a_later_version() {
        let id = "01890000-0000-7000-8000-000000000001";
        let taken_back = json!({
            "name": "aa", "architecture": "amd64", "version": "2", "job": id, "at": "2026-01-01T00:00:00Z", "reason": "so",
        });
        let mut plan = serde_json::to_value(Plan::of(Vec::new())).unwrap();
        plan["changes"] = json!([{
            "action": "upgrade", "name": "aa", "architecture": "amd64", "old_version": "1", "new_version": "2",
            "archive_sha256": null, "security": true, "archive_bytes": 1, "disk_delta_bytes": 0,
            "origin": {
                "origin": "Debian", "label": "Debian", "suite": "stable", "codename": "trixie", "component": "main",
                "site": "", "security": true,
            },
        }]);
        plan["conffiles"] = json!([{"package": "aa", "path": "/etc/aa"}]);
        plan["kept_back"] = json!([{"name": "bb", "reason": "it is on hold"}]);
        plan["barred"] = json!([taken_back]);
        is_read::<TakenBack>(&taken_back);
        is_read::<Plan>(&plan);
        let mut event = json!({"seq": 1, "at": "2026-01-01T00:00:00Z", "event": "planned"});
        event["plan"] = plan;
        is_read::<Event>(&event);
        let checkpoint = json!({
            "head": {"seq": 1, "hash": "ab"}, "at": "2026-01-01T00:00:00Z", "key": "cd", "signature": "ef",
        });
        is_read::<Checkpoint>(&checkpoint);
        is_read::<Reply>(&json!({"reply": "signed", "checkpoint": checkpoint}));
        is_read::<Reply>(&json!({"reply": "refused", "code": "PLAN_DRIFT", "message": "so"}));
        is_read::<Reply>(&json!({"reply": "accepted"}));
        is_read::<RebootReport>(&json!({"is_rebooted": true, "is_well": true, "what": "so"}));
    }

    #[test]
    fn what_is_asked_may_not() {
        let asked = json!({
            "request": "change", "operation": {"kind": "refresh"},
            "limits": {"timeout_seconds": 1, "lock_wait_seconds": 1}, "options": {},
        });
        serde_json::from_value::<RequestBody>(asked.clone()).unwrap();
        for place in ["", "/limits", "/options"] {
            let mut asked = asked.clone();
            asked.pointer_mut(place).unwrap()["of_a_later_version"] = json!(1);
            let refused = serde_json::from_value::<RequestBody>(asked).unwrap_err().to_string();
            assert!(refused.contains("of_a_later_version"), "{place}: {refused}");
        }
    }
}
