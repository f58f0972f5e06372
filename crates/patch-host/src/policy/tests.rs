use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
};

use jiff::SignedDuration;
use patch_audit::AuditKind;
use patch_types::executor::RECORD;

use super::*;
use crate::tools::tests::Script;

const ACTIVE: &str = "ActiveState=active\nUnitFileState=enabled\n";
const JOB: &str = "0198c5f2-0000-7000-8000-000000000001";

/// A host with a clock and tools that answer by script.
struct Place {
    dir: tempfile::TempDir,
    files: Below,
    service: &'static str,
    timer: &'static str,
    setting: Option<&'static str>,
}

impl Place {
    fn new(policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Below::new(dir.path().to_owned());
        let place = Self { dir, files, service: ACTIVE, timer: ACTIVE, setting: None };
        place.configure(policy);
        place
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn configure(&self, policy: &str) {
        self.put(CONFIG, &format!("server: {{port: 1}}\npolicy: {policy}\n"));
    }

    fn look_at(&self, now: &str) -> Looked {
        let setting = self.setting.unwrap_or("0");
        let tools = Script::default()
            .with("systemctl show -p ActiveState,UnitFileState -- linux-patch-api.service", self.service)
            .with("systemctl show -p ActiveState,UnitFileState -- linux-patch-policy.timer", self.timer)
            .with("apt-config dump --no-empty --format %F=%v%n", &format!("{SETTING}={setting}\n"));
        look(&self.files, &tools, now.parse().unwrap()).unwrap()
    }

    fn is_held(&self) -> bool {
        self.path(FILE).exists()
    }

    /// A journal of a change that ended.
    fn ended(&self, job: &str, at: &str, operation: &Value, status: &str, outcome: &str) {
        let path = format!("{JOURNAL_DIR}/{job}/state.json");
        let ended = json!({"status": status, "outcome": outcome, "exit_code": 0, "results": []});
        self.put(
            &path,
            &json!({"operation": operation, "state": {"state": "ended", "ended": ended}}).to_string(),
        );
        let at: Timestamp = at.parse().unwrap();
        File::options().write(true).open(self.path(&path)).unwrap().set_modified(at.into()).unwrap();
    }

    /// What the root side's record says.
    fn record(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path(RECORD)).unwrap_or_default();
        text.lines()
            .map(|line| match serde_json::from_str::<AuditKind>(line) {
                Ok(AuditKind::SystemChanged { what }) => what,
                other => panic!("{other:?}"),
            })
            .collect()
    }
}

fn run() -> Value {
    serde_json::to_value(Policy::default().operation()).unwrap()
}

#[test]
fn the_updater_is_off_while_the_agent_patches_and_no_longer() {
    let place = Place::new("{mode: \"off\"}");
    assert!(matches!(place.look_at("2026-01-01T00:00:00Z"), Looked::Done(_)));
    assert!(!place.is_held() && place.record().is_empty());
    place.configure("{mode: agent}");
    assert!(matches!(place.look_at("2026-01-01T00:05:00Z"), Looked::Done(what) if what.contains("is off")));
    let mut conf = AptConf::default();
    conf.add(FILE, &fs::read_to_string(place.path(FILE)).unwrap());
    assert_eq!(conf.value(SETTING), Some("0"), "apt understands it");
    assert_eq!(fs::metadata(place.path(FILE)).unwrap().permissions().mode() & 0o777, 0o644);
    place.look_at("2026-01-01T00:10:00Z");
    assert_eq!(place.record().len(), 1, "{:?}", place.record());
    // Somebody has emptied it.
    place.put(FILE, "");
    place.look_at("2026-01-01T00:15:00Z");
    assert!(fs::read_to_string(place.path(FILE)).unwrap().contains(SETTING));
    place.configure("{mode: off}");
    assert!(matches!(place.look_at("2026-01-01T00:20:00Z"), Looked::Done(_)));
    assert!(!place.is_held());
    let record = place.record();
    assert!(record.last().unwrap().contains("given back") && record.len() == 3, "{record:?}");
}

#[test]
fn a_stopped_or_disabled_agent_patches_nothing() {
    for (service, word) in [
        ("ActiveState=inactive\nUnitFileState=enabled\n", "does not run"),
        ("ActiveState=failed\nUnitFileState=enabled\n", "does not run"),
        ("ActiveState=active\nUnitFileState=disabled\n", "not started at boot"),
        ("", "does not run"),
    ] {
        let mut place = Place::new("{mode: agent}");
        place.look_at("2026-01-01T00:00:00Z");
        place.service = "ActiveState=activating\nUnitFileState=enabled\n";
        place.look_at("2026-01-01T00:05:00Z");
        assert!(place.is_held(), "what lasts for moments is no end");
        place.service = service;
        let Looked::Failed(what) = place.look_at("2026-01-01T00:10:00Z") else { panic!("{service}") };
        assert!(what.contains(word) && !place.is_held(), "{what}");
        let told = place.record().len();
        place.look_at("2026-01-01T00:15:00Z");
        assert_eq!(place.record().len(), told, "the same is recorded once");
        place.service = ACTIVE;
        place.look_at("2026-01-01T00:20:00Z");
        assert!(place.is_held());
    }
}

#[test]
fn where_nobody_looks_any_more_it_is_given_back() {
    for (timer, is_held) in [
        (ACTIVE, true),
        ("ActiveState=active\nUnitFileState=static\n", true),
        ("ActiveState=inactive\nUnitFileState=enabled\n", false),
        ("ActiveState=active\nUnitFileState=disabled\n", false),
        ("ActiveState=inactive\nUnitFileState=masked\n", false),
    ] {
        let mut place = Place::new("{mode: agent}");
        place.look_at("2026-01-01T00:00:00Z");
        place.timer = timer;
        let looked = place.look_at("2026-01-01T00:05:00Z");
        assert_eq!(place.is_held(), is_held, "{timer}");
        let is_told = matches!(&looked, Looked::Failed(what) if what.contains("linux-patch-policy.timer"));
        assert_eq!(is_told, !is_held, "{looked:?}");
    }
}

#[test]
fn while_a_change_waits_to_be_confirmed_the_updater_patches() {
    let place = Place::new("{mode: agent}");
    place.ended(JOB, "2025-12-31T23:58:00Z", &run(), "completed", "applied");
    place.look_at("2026-01-01T00:00:00Z");
    assert!(place.is_held());
    let other = "0198c5f2-0000-7000-8000-000000000002";
    let path = format!("{JOURNAL_DIR}/{other}/state.json");
    let written = |at: &str| {
        let at: Timestamp = at.parse().unwrap();
        File::options().write(true).open(place.path(&path)).unwrap().set_modified(at.into()).unwrap();
    };
    place.put(&path, &json!({"operation": run(), "state": {"state": "confirming"}}).to_string());
    written("2026-01-01T00:01:00Z");
    let Looked::Done(what) = place.look_at("2026-01-01T00:05:00Z") else { panic!("it is no failure") };
    assert!(what.contains("waits to be confirmed") && !place.is_held(), "{what}");
    let told = place.record().len();
    place.look_at("2026-01-01T23:00:00Z");
    assert!(!place.is_held() && place.record().len() == told, "{:?}", place.record());
    // What was left behind by something else does not keep the agent off for ever.
    place.look_at("2026-01-03T00:02:00Z");
    assert!(place.is_held());
    // It is over, however it ended.
    written("2026-01-03T00:02:00Z");
    place.look_at("2026-01-03T00:05:00Z");
    assert!(!place.is_held());
    place.ended(other, "2026-01-03T00:06:00Z", &run(), "failed", "rolled_back");
    place.look_at("2026-01-03T00:10:00Z");
    assert!(place.is_held());
}

#[test]
fn a_run_that_does_not_end_is_told() {
    let place = Place::new("{mode: agent}");
    place.look_at("2026-01-01T00:00:00Z");
    place.look_at("2026-01-04T00:00:00Z");
    let _lock = attempt(&place, JOB);
    let runs = |job: &str| {
        let begun = json!({"job": job, "took_over": true, "since": "2026-01-04T00:00:00Z"});
        place.put(&format!("{POLICY_DIR}/{ATTEMPT}"), &begun.to_string());
    };
    runs("0198c5f2-0000-7000-8000-000000000009");
    // A clock that was wrong when it began says nothing.
    assert!(matches!(place.look_at("2027-01-04T00:00:00Z"), Looked::Done(_)));
    let begin: Timestamp = "2027-01-04T00:00:00Z".parse().unwrap();
    let later = |minutes| (begin + SignedDuration::from_mins(minutes)).to_string();
    for minutes in (15..360).step_by(15) {
        if minutes == 180 {
            // One after the other keeps it off as well as one.
            runs(JOB);
        }
        assert!(matches!(place.look_at(&later(minutes)), Looked::Done(_)), "{minutes}");
    }
    let before = place.record().len();
    for _ in 0..2 {
        let Looked::Failed(what) = place.look_at(&later(360)) else { panic!() };
        assert!(what.contains(JOB) && what.contains("2026-01-04T00:00:00Z"), "{what}");
    }
    assert_eq!(place.record().len(), before + 1, "the same is recorded once");
    assert!(place.is_held(), "two at once would be the worst of all");
}

#[test]
fn a_run_of_before_the_first_look_counts() {
    let place = Place::new("{mode: agent}");
    place.ended(JOB, "2025-12-31T23:58:00Z", &run(), "completed", "applied");
    place.look_at("2026-01-01T00:00:00Z");
    assert_eq!(State::load(&place.files).unwrap().last_success.unwrap().job.to_string(), JOB);
}

#[test]
fn three_days_without_a_success_of_which_root_knows_are_enough() {
    let place = Place::new("{mode: agent}");
    place.look_at("2026-01-01T00:00:00Z");
    // None of these installed what is declared.
    let some = json!({"kind": "apply_patches", "packages": ["aa"], "refresh_if_older": 1});
    let stale = json!({"kind": "apply_patches"});
    let least = json!({"kind": "apply_patches", "exclude": ["openssl"], "refresh_if_older": 1});
    for (number, (operation, status, outcome)) in [
        (some, "completed", "applied"),
        (stale, "completed", "applied"),
        (least, "completed", "applied"),
        (json!({"kind": "refresh"}), "completed", "applied"),
        (run(), "failed", "rolled_back"),
        (run(), "failed", "partial"),
    ]
    .into_iter()
    .enumerate()
    {
        let job = format!("0198c5f2-0000-7000-8000-1000000000{number:02}");
        place.ended(&job, "2026-01-02T00:00:00Z", &operation, status, outcome);
    }
    place.put(&format!("{JOURNAL_DIR}/0198c5f2-0000-7000-8000-200000000000/state.json"), "torn");
    place.look_at("2026-01-03T23:59:00Z");
    assert!(place.is_held());
    let Looked::Failed(what) = place.look_at("2026-01-04T00:00:00Z") else { panic!() };
    assert!(what.contains("has not patched since 2026-01-01") && !place.is_held(), "{what}");
    // Both patch then, until the agent succeeds.
    place.ended(JOB, "2026-01-04T06:00:00Z", &run(), "completed", "unchanged");
    place.look_at("2026-01-04T06:05:00Z");
    assert!(place.is_held());
    let state = State::load(&place.files).unwrap();
    assert_eq!(state.last_success.unwrap().job.to_string(), JOB);
    // The journal goes in time; what it said does not.
    fs::remove_dir_all(place.path(JOURNAL_DIR)).unwrap();
    place.look_at("2026-01-07T05:00:00Z");
    assert!(place.is_held());
    place.look_at("2026-01-07T06:00:00Z");
    assert!(!place.is_held());
    // One from the future is none.
    place.ended(JOB, "2036-01-01T00:00:00Z", &run(), "completed", "applied");
    place.look_at("2026-01-07T06:05:00Z");
    assert!(!place.is_held());
}

#[test]
fn in_a_pause_nobody_patches() {
    let place = Place::new("{mode: agent}");
    place.look_at("2026-01-01T00:00:00Z");
    place.configure("{mode: agent, paused: true}");
    for day in 2..9 {
        place.look_at(&format!("2026-01-{day:02}T00:00:00Z"));
        assert!(place.is_held(), "{day}");
    }
    // A frozen host is one that nobody is to change.
    place.configure("{mode: agent}");
    // What else is wrong in the file has the root side refuse everything, but does not thaw the host.
    place.put(ceiling::FILE, "operation: []\nfreeze_file: /run/frozen\n");
    place.put("run/frozen", "");
    place.look_at("2026-01-20T00:00:00Z");
    assert!(place.is_held());
    fs::remove_file(place.path("run/frozen")).unwrap();
    place.look_at("2026-01-22T23:00:00Z");
    assert!(place.is_held(), "it has its time after the pause");
    place.look_at("2026-01-23T00:00:00Z");
    assert!(!place.is_held());
}

#[test]
fn what_a_clock_that_was_ahead_has_left_neither_counts_nor_hides_anything() {
    let place = Place::new("{mode: agent, paused: true}");
    place.look_at("2036-01-01T00:00:00Z");
    place.configure("{mode: agent}");
    for (now, is_held) in [
        ("2026-01-01T00:00:00Z", true),
        ("2026-01-03T23:55:00Z", true),
        ("2026-01-04T00:00:00Z", false),
        ("2026-01-04T00:05:00Z", false),
    ] {
        place.look_at(now);
        assert_eq!(place.is_held(), is_held, "{now}");
    }
    let ahead = "0198c5f2-0000-7000-8000-000000000002";
    place.ended(ahead, "2036-01-01T00:00:00Z", &run(), "completed", "applied");
    place.ended(JOB, "2026-01-04T01:00:00Z", &run(), "completed", "applied");
    place.look_at("2026-01-04T02:00:00Z");
    assert!(place.is_held(), "the one of today counts");
}

#[test]
fn a_file_that_cannot_be_used_leaves_the_last_policy_in_force() {
    let declared = "{mode: agent, exclude: [openssl], window: {days: Sun, hour: 2}}";
    let place = Place::new(declared);
    place.look_at("2026-01-05T00:00:00Z");
    // The agent refuses this one as well.
    place.configure("{mode: \"off\", spread_minutes: 100000}");
    // A weekly window has its chance, and a run that leaves out what was declared counts.
    assert!(matches!(place.look_at("2026-01-10T00:00:00Z"), Looked::Failed(_)));
    assert!(place.is_held());
    let policy: Policy = serde_json::from_value(json!({"exclude": ["openssl"]})).unwrap();
    let operation = serde_json::to_value(policy.operation()).unwrap();
    place.ended(JOB, "2026-01-11T02:30:00Z", &operation, "completed", "applied");
    place.look_at("2026-01-12T00:00:00Z");
    assert!(place.is_held() && State::load(&place.files).unwrap().last_success.is_some());
    place.configure("{mode: \"off\"}");
    place.look_at("2026-01-12T00:05:00Z");
    assert!(!place.is_held() && State::load(&place.files).unwrap().policy.is_none());
}

#[test]
fn a_run_of_an_approved_plan_is_no_success_of_the_policy() {
    let place = Place::new("{mode: agent}");
    place.ended(JOB, "2025-12-31T23:58:00Z", &run(), "completed", "applied");
    let path = place.path(&format!("{JOURNAL_DIR}/{JOB}/state.json"));
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (if_plan, counts) in [(json!("1234"), false), (Value::Null, true)] {
        state["if_plan"] = if_plan;
        fs::write(&path, state.to_string()).unwrap();
        let at: Timestamp = "2025-12-31T23:58:00Z".parse().unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(at.into()).unwrap();
        place.look_at("2026-01-01T00:00:00Z");
        assert_eq!(State::load(&place.files).unwrap().last_success.is_some(), counts);
    }
}

#[test]
fn a_rehearsal_alone_is_no_success_of_the_policy() {
    let place = Place::new("{mode: agent}");
    place.ended(JOB, "2025-12-31T23:58:00Z", &run(), "completed", "unchanged");
    let path = place.path(&format!("{JOURNAL_DIR}/{JOB}/state.json"));
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (only, counts) in [(true, false), (false, true)] {
        state["rehearse"] = json!({"only": only});
        fs::write(&path, state.to_string()).unwrap();
        let at: Timestamp = "2025-12-31T23:58:00Z".parse().unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(at.into()).unwrap();
        place.look_at("2026-01-01T00:00:00Z");
        assert_eq!(State::load(&place.files).unwrap().last_success.is_some(), counts);
    }
}

#[test]
fn what_has_no_effect_and_what_is_not_understood_is_said() {
    let mut place = Place::new("{mode: agent}");
    place.setting = Some("always");
    let Looked::Failed(what) = place.look_at("2026-01-01T00:00:00Z") else { panic!() };
    assert!(what.contains("has no effect") && what.contains("\"always\""), "{what}");
    place.setting = None;
    assert!(matches!(place.look_at("2026-01-01T00:05:00Z"), Looked::Done(_)));
    // A file that cannot be used changes nothing of what is, for as long as that goes well.
    for bad in ["{mode: on}", "{mode: agent, window: {days: Funday, hour: 1}}", "[1]"] {
        place.configure(bad);
        assert!(matches!(place.look_at("2026-01-01T00:10:00Z"), Looked::Failed(_)), "{bad}");
        assert!(place.is_held());
    }
    place.look_at("2026-01-05T00:00:00Z");
    assert!(!place.is_held());
    assert!(matches!(place.look_at("2026-01-05T00:05:00Z"), Looked::Failed(_)));
    assert!(!place.is_held());
    // Others could have written it.
    place.configure("{mode: agent}");
    fs::set_permissions(place.path(CONFIG), fs::Permissions::from_mode(0o666)).unwrap();
    let Looked::Failed(what) = place.look_at("2026-01-05T00:10:00Z") else { panic!() };
    assert!(what.contains("chmod go-w") && !place.is_held(), "{what}");
    fs::remove_file(place.path(CONFIG)).unwrap();
    assert!(matches!(place.look_at("2026-01-05T00:15:00Z"), Looked::Done(_)));
}

#[test]
fn a_link_in_the_way_is_not_followed() {
    let place = Place::new("{mode: agent}");
    place.put("elsewhere", "precious");
    fs::create_dir_all(place.path("etc/apt/apt.conf.d")).unwrap();
    std::os::unix::fs::symlink("../../../elsewhere", place.path(FILE)).unwrap();
    let tools = Script::default()
        .with("systemctl show -p ActiveState,UnitFileState -- linux-patch-api.service", ACTIVE)
        .with("systemctl show -p ActiveState,UnitFileState -- linux-patch-policy.timer", ACTIVE);
    let now = Timestamp::now() + SignedDuration::from_secs(1);
    assert!(look(&place.files, &tools, now).is_err());
    assert_eq!(fs::read_to_string(place.path("elsewhere")).unwrap(), "precious");
}

/// As the root side does while it carries a run of the policy out.
fn attempt(place: &Place, job: &str) -> File {
    place.put(&format!("{POLICY_DIR}/{ATTEMPT}"), &json!({"job": job, "took_over": true}).to_string());
    let lock = File::create(place.path(&format!("{POLICY_DIR}/{ATTEMPT_LOCK}"))).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    place.put(FILE, SWITCHED_OFF);
    lock
}

#[test]
fn while_a_run_patches_nothing_is_given_back() {
    let place = Place::new("{mode: agent}");
    place.look_at("2026-01-01T00:00:00Z");
    place.look_at("2026-01-04T00:00:00Z");
    assert!(!place.is_held());
    let lock = attempt(&place, JOB);
    for policy in ["{mode: agent}", "{mode: \"off\"}"] {
        place.configure(policy);
        let Looked::Done(what) = place.look_at("2026-01-04T00:05:00Z") else { panic!("{policy}") };
        assert!(what.contains(JOB) && place.is_held(), "{what}");
    }
    // It has ended without a success and given back; its process is about to end.
    fs::remove_file(place.path(FILE)).unwrap();
    fs::remove_file(place.path(&format!("{POLICY_DIR}/{ATTEMPT}"))).unwrap();
    place.look_at("2026-01-04T00:10:00Z");
    assert!(!place.is_held());
    drop(lock);
    // One that is killed: the next look puts it right.
    place.configure("{mode: agent}");
    place.look_at("2026-01-04T00:15:00Z");
    place.look_at("2026-01-07T00:15:00Z");
    assert!(!place.is_held());
    drop(attempt(&place, JOB));
    assert!(matches!(place.look_at("2026-01-07T00:20:00Z"), Looked::Failed(_)));
    assert!(!place.is_held() && !place.path(&format!("{POLICY_DIR}/{ATTEMPT}")).exists());
}

#[test]
fn a_policy_that_the_agent_refuses_for_something_else_is_not_in_force() {
    let place = Place::new("{mode: agent}");
    place.look_at("2026-01-01T00:00:00Z");
    // Somebody switches it off with a mistake elsewhere in the file: the agent goes on as before.
    place.configure("{mode: \"off\"}");
    let check = "linux-patch-api check-config --configuration-only";
    let tools = || {
        Script::default()
            .with("systemctl show -p ActiveState,UnitFileState -- linux-patch-api.service", ACTIVE)
            .with("systemctl show -p ActiveState,UnitFileState -- linux-patch-policy.timer", ACTIVE)
            .with("apt-config dump --no-empty --format %F=%v%n", &format!("{SETTING}=0\n"))
    };
    let look = |tools: &Script| look(&place.files, tools, "2026-01-01T01:00:00Z".parse().unwrap()).unwrap();
    let Looked::Failed(what) = look(&tools().failing(check)) else { panic!() };
    assert!(what.contains("check-config") && place.is_held(), "{what}");
    assert!(matches!(look(&tools().with(check, "the configuration is valid\n")), Looked::Done(_)));
    assert!(!place.is_held());
    // Nor is it handed over to an agent that does not know that it is to patch.
    place.configure("{mode: agent}");
    assert!(matches!(look(&tools().failing(check)), Looked::Failed(_)));
    assert!(!place.is_held());
}
