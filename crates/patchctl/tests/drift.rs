//! A plan that has become another one when it is the change's turn, against an agent that is faked at the protocol.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed; Clippy spares test functions only, not what they share"
)]

#[expect(dead_code, reason = "the client's tests need more of it")]
#[path = "../../patch-client/tests/fake/mod.rs"]
mod fake;

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use fake::{Fake, Reply, Seen};
use serde_json::{Value, json};

const JOBS: [&str; 2] = ["01890000-0000-7000-8000-000000000001", "01890000-0000-7000-8000-000000000002"];
const AT: &str = "2026-01-01T00:00:00Z";
const REQUEST: &str = "6a6b6c6d-0000-4000-8000-000000000002";

fn good(data: &Value) -> String {
    json!({"success": true, "request_id": REQUEST, "timestamp": AT, "data": data, "error": null}).to_string()
}

/// Brings the package `aa` from 1 to a version.
fn plan(to: &str) -> Value {
    let change = patch_types::PlannedChange {
        action: patch_types::Action::Upgrade,
        name: "aa".parse().unwrap(),
        architecture: "all".parse().unwrap(),
        old_version: Some("1".parse().unwrap()),
        new_version: Some(to.parse().unwrap()),
        archive_sha256: None,
        origin: None,
        security: false,
        archive_bytes: 0,
        disk_delta_bytes: 0,
    };
    serde_json::to_value(patch_types::Plan::of(vec![change])).unwrap()
}

fn job(id: &str, status: &str, outcome: &Value, plan: &Value, error: &Value) -> Value {
    json!({
        "job_id": id, "kind": "update", "status": status, "phase": null, "outcome": outcome,
        "progress_percent": 0, "current_package": null, "waiting_for": null,
        "created_at": AT, "started_at": null, "completed_at": null,
        "requested_by": {"identity": "a", "fingerprint": "b", "address": "c", "request_id": REQUEST},
        "request": {}, "plan": plan, "output": null, "log": [], "log_truncated": false,
        "error": error["message"], "error_detail": error, "exit_code": null, "results": [], "last_seq": 2,
    })
}

/// Plans version 2 at first. When the job that approves that has its turn, the plan brings version 3.
fn script(seen: &Seen, _: usize) -> Reply {
    let sent: Value = serde_json::from_str(&seen.body).unwrap_or_default();
    let (second, third) = (plan("2"), plan("3"));
    let drift = json!({"code": "PLAN_DRIFT", "message": "the plan is another one", "details": {}, "retryable": false});
    let first = job(JOBS[0], "failed", &json!("unchanged"), &third, &drift);
    let other = job(JOBS[1], "completed", &json!("applied"), &third, &Value::Null);
    let approves = |plan: &Value| sent["if_plan"] == plan["hash"];
    if seen.line.contains("/ws/") {
        return Reply::Http(404, String::new());
    }
    if seen.line.contains(JOBS[0]) {
        return Reply::Http(200, good(&first));
    }
    if seen.line.contains(JOBS[1]) {
        return Reply::Http(200, good(&other));
    }
    if sent["dry_run"] == true {
        assert!(sent["if_plan"].is_null(), "{sent}");
        return Reply::Http(200, good(if DRIFTED.load(Ordering::SeqCst) { &third } else { &second }));
    }
    DRIFTED.store(true, Ordering::SeqCst);
    Reply::Http(202, good(if approves(&third) { &other } else { &first }))
}

/// Whether a change was submitted, since when the plan is another one.
static DRIFTED: AtomicBool = AtomicBool::new(false);

/// How long the program may take at most, in seconds.
const LIMIT: u32 = 60;

/// With a terminal for a person who types these lines, or without.
#[expect(clippy::disallowed_methods, reason = "the program itself is what is tested")]
fn patchctl(fake: &Fake, arguments: &[&str], typed: Option<&str>, limit: u32) -> Output {
    let host = format!("localhost:{}", fake.port);
    let mut words = vec![env!("CARGO_BIN_EXE_patchctl"), "--host", &host];
    words.extend(arguments);
    // One that waits for more than is typed must not wait for ever, nor what gives it its terminal: with that the terminal is
    // gone, too.
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &limit.to_string()]);
    match typed {
        Some(_) => command.args(["script", "-qec", &words.join(" "), "/dev/null"]),
        None => command.args(&words),
    };
    command.env("PATCHCTL_CONFIG", fake.pki.dir.path()).env("TERM", "dumb");
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(typed.unwrap_or_default().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(input);
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_person_that_says_nothing_is_ended() {
    let fake = Fake::start(undecided).await;
    let output = tokio::task::spawn_blocking(move || patchctl(&fake, &["update", "aa"], Some(""), 3));
    let output = output.await.unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("Go ahead on "), "{shown}");
    assert_eq!(output.status.code(), Some(124), "{shown}");
}

/// Answers with a plan whatever is asked.
fn undecided(_: &Seen, _: usize) -> Reply {
    Reply::Http(200, good(&plan("2")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_drifts_until_its_turn_is_shown_and_asked_about_again() {
    let fake = Fake::start(script).await;
    let (output, fake) = tokio::task::spawn_blocking(move || {
        let output = patchctl(&fake, &["update", "aa"], Some("y\ny\n"), LIMIT);
        (output, fake)
    })
    .await
    .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert!(output.status.success(), "{shown}");
    assert_eq!(shown.matches("Go ahead on ").count(), 2, "{shown}");
    let (_, after) = shown.split_once("the plan was another one.").expect(&shown);
    let is = |line: &&str, words: &[&str]| line.split_whitespace().eq(words.iter().copied());
    assert!(
        after.lines().any(|line| is(&line, &["not", "any", "more", "upgrade", "aa:all", "1", "2"])),
        "{shown}"
    );
    assert!(after.lines().any(|line| is(&line, &["new", "upgrade", "aa:all", "1", "3"])), "{shown}");
    let approved: Vec<Value> = fake
        .requests()
        .iter()
        .filter_map(|seen| serde_json::from_str::<Value>(&seen.body).ok())
        .filter(|sent| !sent["if_plan"].is_null())
        .map(|sent| sent["if_plan"].clone())
        .collect();
    assert_eq!(approved, [plan("2")["hash"].clone(), plan("3")["hash"].clone()]);

    // Nobody is asked, and what was approved is all that is done.
    let hash = plan("2")["hash"].as_str().unwrap().to_owned();
    let output = tokio::task::spawn_blocking(move || {
        patchctl(&fake, &["update", "aa", "--if-plan", &hash], None, LIMIT)
    });
    let output = output.await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    assert!(out.contains("PLAN_DRIFT") && err.contains("The plan when it was its turn:"), "{out}{err}");
    assert!(err.contains("upgrade") && err.contains(plan("3")["hash"].as_str().unwrap()), "{err}");
}
