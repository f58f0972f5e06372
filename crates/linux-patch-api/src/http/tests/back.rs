//! Going back, as clients ask for it.

use std::time::Instant;

use axum::http::{Method, StatusCode};
use jiff::Timestamp;
use patch_service::{CertificateFacts, PeerIdentity};
use patch_types::{
    Action, EventKind, JobId, JobStatus, Operation, Outcome, Phase, Plan, PlannedChange, RollbackMode,
    event::QueryResult,
    executor::{RequestBody, STATUS_FILE},
};
use serde_json::{Value, json};

use super::{Answer, Api, request};
use crate::jobs::testing::{end_of, ended, until};

impl Api {
    /// Makes a job, and waits until the root side has it.
    async fn job(&self, path: &str, body: Value) -> JobId {
        let id = self.post(path, body).await.data()["job_id"].as_str().unwrap().parse().unwrap();
        self.root.begun(id).await;
        id
    }

    async fn end(&self, id: JobId, status: JobStatus, outcome: Outcome) {
        self.root.emit(id, ended(status, outcome));
        self.root.die(id);
        end_of(&self.jobs, id).await;
    }

    async fn confirm(&self, id: JobId, accepted: Instant) -> Answer {
        let mut request = request("ops", Method::POST, &format!("/jobs/{id}/confirm"), None);
        let facts = CertificateFacts {
            common_name: "ops".into(),
            serial: "01".into(),
            not_before: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::MAX,
            fingerprint_sha256: "ab".repeat(32),
        };
        let peer = PeerIdentity::from_facts(facts, "10.0.0.7:5000".parse().unwrap()).accepted_at(accepted);
        request.extensions_mut().insert(peer);
        self.send(request).await
    }
}

fn is(answer: &Answer, status: StatusCode, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.json());
}

#[tokio::test]
async fn to_a_snapshot_goes_back_who_is_admin_and_names_the_list() {
    let api = Api::with_config("security: {roles: {ops: admin, operator: operator}}").await;
    let done = api.job("/packages", json!({"packages": [{"name": "bash"}]})).await;
    api.end(done, JobStatus::Completed, Outcome::Applied).await;
    let undo = format!("/jobs/{done}/rollback");
    let listed = Plan::of(Vec::new());
    let (list, go) = (
        json!({"mode": "snapshot", "dry_run": true}),
        json!({"mode": "snapshot", "if_plan": listed.hash.as_str()}),
    );
    for body in [&list, &go] {
        let answer = api.send(request("operator", Method::POST, &undo, Some(body.to_string()))).await;
        is(&answer, StatusCode::FORBIDDEN, "AUTHZ_FORBIDDEN");
    }
    let answer = api.post(&undo, json!({"mode": "snapshot"})).await;
    is(&answer, StatusCode::UNPROCESSABLE_ENTITY, "INVALID_REQUEST");
    is(&api.post(&undo, json!({"mode": "all"})).await, StatusCode::UNPROCESSABLE_ENTITY, "INVALID_REQUEST");
    api.answers(QueryResult::Plan(listed.clone()));
    let answer = api.post(&undo, list).await;
    assert_eq!((answer.status, answer.data()["hash"].as_str()), (StatusCode::OK, Some(listed.hash.as_str())));
    let id = api.job(&undo, go).await;
    let sent = api.root.requests().into_iter().find(|r| r.id == id).unwrap();
    assert!(matches!(sent.body,
        RequestBody::Change { operation: Operation::Rollback(r), if_plan: Some(hash), .. }
            if r.mode == RollbackMode::Snapshot && hash == listed.hash));
}

#[tokio::test]
async fn how_a_change_is_made_goes_to_the_root_side() {
    let how = json!({"on_failure": "keep", "confirm_within": 86_400});
    let with = |mut body: Value| {
        body.as_object_mut().unwrap().extend(how.as_object().unwrap().clone());
        Some(body.to_string())
    };
    let install = json!({"packages": [{"name": "bash"}], "options": how}).to_string();
    for (method, path, body) in [
        (Method::POST, "/packages", Some(install)),
        (Method::PUT, "/packages/bash", with(json!({}))),
        (Method::DELETE, "/packages/bash", with(json!({}))),
        (Method::DELETE, "/packages/bash?on_failure=keep&confirm_within=86400", None),
        (Method::POST, "/patches/apply", with(json!({}))),
    ] {
        let api = Api::new().await;
        let answer = api.send(request("ops", method.clone(), path, body)).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{method} {path}: {}", answer.json());
        let asked = answer.data()["request"].to_string();
        assert!(asked.contains("86400") && asked.contains("keep"), "{asked}");
        api.root
            .until(|requests| {
                requests.iter().any(|r| {
                    matches!(&r.body, RequestBody::Change { options, .. }
                        if serde_json::to_value(options).unwrap() == how)
                })
            })
            .await;
    }
}

#[tokio::test]
async fn how_a_change_is_made_is_checked_and_belongs_to_the_request() {
    let api = Api::new().await;
    for (path, body) in [
        ("/packages/bash", json!({"confirm_within": 0})),
        ("/packages/bash", json!({"confirm_within": 86_401})),
        ("/packages/bash", json!({"confirm_within": -1})),
        ("/packages/bash", json!({"on_failure": "some"})),
        ("/packages/bash", json!({"hold": true, "on_failure": "all"})),
        ("/packages/bash", json!({"hold": true, "confirm_within": 5})),
    ] {
        let answer = api.send(request("ops", Method::PUT, path, Some(body.to_string()))).await;
        is(&answer, StatusCode::UNPROCESSABLE_ENTITY, "INVALID_REQUEST");
    }
    for path in ["/packages/bash?confirm_within=0", "/packages/bash?on_failure=some"] {
        let answer = api.send(request("ops", Method::DELETE, path, None)).await;
        is(&answer, StatusCode::UNPROCESSABLE_ENTITY, "INVALID_REQUEST");
    }
    let apply = api.post("/patches/apply", json!({"confirm_within": 0})).await;
    assert_eq!(apply.json()["error"]["details"]["field"], "confirm_within");
    let many = json!({"packages": [{"name": "bash"}], "options": {"confirm_within": 90_000}});
    is(&api.post("/packages", many).await, StatusCode::UNPROCESSABLE_ENTITY, "INVALID_REQUEST");

    let keyed = async |body: Value| {
        let mut change = request("ops", Method::POST, "/patches/apply", Some(body.to_string()));
        change.headers_mut().insert("idempotency-key", "k1".parse().unwrap());
        api.send(change).await
    };
    assert_eq!(keyed(json!({"on_failure": "all"})).await.status, StatusCode::ACCEPTED);
    is(&keyed(json!({"on_failure": "keep"})).await, StatusCode::UNPROCESSABLE_ENTITY, "INVALID_REQUEST");
}

#[tokio::test]
async fn a_job_is_undone_by_a_job() {
    let api = Api::new().await;
    let done = api.job("/packages", json!({"packages": [{"name": "bash"}]})).await;
    let undo = format!("/jobs/{done}/rollback");
    is(&api.post(&undo, json!({})).await, StatusCode::CONFLICT, "JOB_CONFLICT");
    api.end(done, JobStatus::Completed, Outcome::Applied).await;
    is(&api.post(&undo, json!({"forced": true})).await, StatusCode::UNPROCESSABLE_ENTITY, "INVALID_REQUEST");

    let keyed = async || {
        let mut change = request("ops", Method::POST, &undo, Some(json!({"force": true}).to_string()));
        change.headers_mut().insert("idempotency-key", "k1".parse().unwrap());
        api.send(change).await
    };
    let answer = keyed().await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.json());
    let data = answer.data();
    assert_eq!((&data["kind"], &data["status"]), (&json!("rollback"), &json!("pending")));
    let id: JobId = data["job_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(answer.header("location"), format!("/api/v1/jobs/{id}"));
    assert_eq!(keyed().await.data()["job_id"], data["job_id"]);
    api.root.begun(id).await;
    let sent = api.root.requests().into_iter().find(|r| r.id == id).unwrap();
    assert!(matches!(sent.body,
        RequestBody::Change { operation: Operation::Rollback(r), .. } if r.job == done && r.force));
    assert_eq!(api.get("/jobs?kind=rollback&package=bash").await.data()["total"], 1);

    let mut waiting = request("ops", Method::POST, &undo, None);
    waiting.headers_mut().insert("prefer", "wait=20".parse().unwrap());
    let (answer, ()) = tokio::join!(api.send(waiting), async {
        api.root.until(|requests| requests.iter().filter(|r| r.id > id).count() == 1).await;
        for second in api.root.changes().into_iter().filter(|change| *change > id) {
            api.root.complete(second);
        }
    });
    assert_eq!((answer.status, answer.data()["status"].as_str()), (StatusCode::OK, Some("completed")));

    let refresh = api.job("/patches/refresh", json!({})).await;
    api.end(refresh, JobStatus::Completed, Outcome::Applied).await;
    is(
        &api.post(&format!("/jobs/{refresh}/rollback"), json!({})).await,
        StatusCode::CONFLICT,
        "ROLLBACK_UNAVAILABLE",
    );
}

#[tokio::test]
async fn a_change_is_kept_over_a_new_connection() {
    let api = Api::new().await;
    let before = Instant::now();
    let id = api.job("/patches/apply", json!({"confirm_within": 60})).await;
    is(&api.confirm(id, Instant::now()).await, StatusCode::CONFLICT, "JOB_CONFLICT");
    api.root.emit(id, EventKind::Phase { phase: Phase::Confirming });
    api.root.emit(id, EventKind::Confirm { until: "2100-01-01T00:00:00Z".parse().unwrap() });
    until(&api.jobs, id, |job| job.confirm_by.is_some()).await;
    let job = api.get(&format!("/jobs/{id}")).await.data();
    assert_eq!((&job["phase"], &job["confirm_by"]), (&json!("confirming"), &json!("2100-01-01T00:00:00Z")));

    let old = api.confirm(id, before).await;
    is(&old, StatusCode::CONFLICT, "JOB_CONFLICT");
    assert_eq!(old.json()["error"]["details"]["new_connection"], true);
    assert_eq!(old.header("connection"), "close", "the next request comes over a new one");
    for _ in 0..2 {
        let answer = api.confirm(id, Instant::now()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.json());
        assert_eq!(answer.data()["job_id"], id.to_string());
    }
    let sent = api.root.requests().iter().filter(|r| r.body == RequestBody::Confirm { job: id }).count();
    assert_eq!(sent, 1);
}

fn change(name: &str, to: &str) -> PlannedChange {
    PlannedChange {
        action: Action::Upgrade,
        name: name.parse().unwrap(),
        architecture: "all".parse().unwrap(),
        old_version: Some("1".parse().unwrap()),
        new_version: Some(to.parse().unwrap()),
        archive_sha256: None,
        origin: None,
        security: false,
        archive_bytes: 0,
        disk_delta_bytes: 0,
    }
}

#[tokio::test]
async fn a_drift_tells_what_is_different() {
    let api = Api::new().await;
    let approved = Plan::of(vec![change("aa", "2"), change("bb", "2")]);
    let now = Plan::of(vec![change("bb", "3"), change("cc", "2")]);
    let approve = async |plan: &Plan, hash: &str| {
        api.answers(QueryResult::Plan(plan.clone()));
        let answer = api.post("/patches/apply", json!({"if_plan": hash})).await;
        is(&answer, StatusCode::CONFLICT, "PLAN_DRIFT");
        let details = answer.json()["error"]["details"].clone();
        assert_eq!(details["current"], plan.hash.as_str());
        assert_eq!(details["plan"]["changes"].as_array().unwrap().len(), plan.changes.len());
        details
    };
    assert!(
        approve(&now, approved.hash.as_str()).await["difference"].is_null(),
        "nobody was shown that plan"
    );
    api.answers(QueryResult::Plan(approved.clone()));
    api.post("/patches/apply", json!({"dry_run": true})).await.data();
    assert_eq!(
        approve(&now, approved.hash.as_str()).await["difference"],
        json!({
            "added": ["upgrade cc:all 1 -> 2"],
            "removed": ["upgrade aa:all 1 -> 2"],
            "changed": ["upgrade bb:all 1 -> 3 (approved: upgrade bb:all 1 -> 2)"],
        })
    );
    // What a refusal shows can be approved as well.
    let back = approve(&approved, now.hash.as_str()).await;
    assert_eq!(back["difference"]["added"], json!(["upgrade aa:all 1 -> 2"]));
}

#[tokio::test]
async fn a_rollback_that_failed_is_no_healthy_state() {
    let api = Api::new().await;
    let rollback = async || {
        let health = api.get("/health").await;
        let body = health.json();
        let state = if body["data"].is_null() { &body["error"]["details"] } else { &body["data"] };
        let checks = state["checks"].as_array().unwrap().clone();
        let check = checks.into_iter().find(|c| c["name"] == "rollback").unwrap();
        (check["healthy"] == true, check["message"].as_str().unwrap().to_owned(), state["status"].clone())
    };
    assert!(rollback().await.0);
    let id = api.job("/patches/apply", json!({})).await;
    api.end(id, JobStatus::Failed, Outcome::RollbackFailed).await;
    let (healthy, message, status) = rollback().await;
    assert!(!healthy && message.contains(&id.to_string()), "{message}");
    assert_ne!(status, "healthy");
    let again = api.job(&format!("/jobs/{id}/rollback"), json!({})).await;
    api.end(again, JobStatus::Completed, Outcome::RolledBack).await;
    assert!(rollback().await.0);
}

#[tokio::test]
async fn whether_a_rollback_has_failed_is_for_the_root_side_to_say() {
    let api = Api::new().await;
    let file = api.root.path().join(STATUS_FILE);
    let rollback = async || {
        let body = api.get("/health").await.json();
        let state = if body["data"].is_null() { &body["error"]["details"] } else { &body["data"] };
        let checks = state["checks"].as_array().unwrap().clone();
        let check = checks.into_iter().find(|c| c["name"] == "rollback").unwrap();
        (check["healthy"] == true, check["message"].as_str().unwrap().to_owned())
    };
    let by_root = JobId(uuid::Uuid::from_u128(7));
    std::fs::write(&file, json!({"archives": 1, "rollback_failed": by_root}).to_string()).unwrap();
    let (healthy, message) = rollback().await;
    assert!(!healthy && message.contains(&by_root.to_string()), "{message}");

    let id = api.job("/patches/apply", json!({})).await;
    api.end(id, JobStatus::Failed, Outcome::RollbackFailed).await;
    std::fs::write(&file, r#"{"archives":1}"#).unwrap();
    assert!(rollback().await.0, "it was repaired on the host");
    std::fs::write(&file, "garbage").unwrap();
    assert!(!rollback().await.0, "what cannot be read says nothing");
}

#[tokio::test]
async fn the_root_sides_state_is_among_the_metrics_while_it_can_be_read() {
    let api = Api::new().await;
    let id = api.job("/patches/apply", json!({})).await;
    api.end(id, JobStatus::Failed, Outcome::RolledBack).await;
    let file = api.root.path().join(STATUS_FILE);
    let metrics = async || String::from_utf8(api.get("/metrics").await.body).unwrap();
    let text = metrics().await;
    assert!(!text.contains("linux_patch_rollback"), "{text}");
    assert!(text.contains("linux_patch_api_root_status_unreadable_total 0"), "{text}");
    assert!(text.contains(r#"linux_patch_api_job_outcomes_total{outcome="rolled_back"} 1"#), "{text}");

    std::fs::write(&file, r#"{"archives":3,"archive_bytes":4096,"taken_back":1,"later":{}}"#).unwrap();
    let text = metrics().await;
    for line in [
        "linux_patch_rollback_archives 3",
        "linux_patch_rollback_archive_bytes 4096",
        "linux_patch_taken_back_versions 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);

    for garbage in ["", "[]", "{\"archives\":-1}", &"9".repeat(10_000)] {
        std::fs::write(&file, garbage).unwrap();
        assert!(!metrics().await.contains("linux_patch_rollback"));
    }
    assert!(metrics().await.contains("linux_patch_api_root_status_unreadable_total 5"));
}

#[tokio::test]
async fn beside_a_job_at_work_a_plan_that_was_shown_is_compared_later() {
    let api = Api::new().await;
    let shown = Plan::of(vec![change("aa", "2")]);
    api.answers(QueryResult::Plan(shown.clone()));
    api.post("/patches/apply", json!({"dry_run": true})).await.data();
    let other = api.job("/patches/apply", json!({"confirm_within": 60})).await;
    let now = Plan { during: Some(other), ..Plan::of(vec![change("bb", "3")]) };
    let approve = async |hash: &str| {
        api.answers(QueryResult::Plan(now.clone()));
        api.post("/patches/apply", json!({"if_plan": hash})).await
    };
    is(&approve(&"0".repeat(64)).await, StatusCode::CONFLICT, "PLAN_DRIFT");
    assert_eq!(approve(shown.hash.as_str()).await.status, StatusCode::ACCEPTED);
    // One that waits to be confirmed does nothing that could still make the two the same.
    api.root.emit(other, EventKind::Confirm { until: "2100-01-01T00:00:00Z".parse().unwrap() });
    until(&api.jobs, other, |job| job.confirm_by.is_some()).await;
    is(&approve(shown.hash.as_str()).await, StatusCode::CONFLICT, "PLAN_DRIFT");
}
