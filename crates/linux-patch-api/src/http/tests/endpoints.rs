//! What each endpoint answers when all is well, and its own errors.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use jiff::Timestamp;
use patch_types::{
    Plan, Rehearse, Unrehearsed,
    event::QueryResult,
    executor::{RequestBody, TAKEN_BACK_PINS},
    operation::Operation,
    policy::PolicyMode,
    reboot::WindowStatus,
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{Api, application, request, service};
use crate::{
    checkpoint::{Signing, Trouble},
    jobs::testing::Root,
    policy::Note,
};

#[tokio::test]
async fn packages_are_listed_with_their_candidates_and_cached() {
    let api = Api::new().await;
    let answer = api.get("/packages").await;
    assert_eq!(answer.status, StatusCode::OK);
    let data = answer.data();
    assert_eq!(data["total"], 3);
    assert_eq!(data["packages"][1]["name"], "libssl3");
    assert_eq!(data["packages"][1]["upgradable"], true);
    assert_eq!(data["packages"][1]["latest_version"], "3.0.2-1");
    assert_eq!(data["packages"][0]["latest_version"], json!(null));

    let tag = answer.header("etag").to_owned();
    let mut again = request("ops", Method::GET, "/packages", None);
    again.headers_mut().insert("if-none-match", tag.parse().unwrap());
    let answer = api.send(again).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::NOT_MODIFIED, 0));

    let changed = super::STATUS.replace("3.0.1-1", "3.0.2-1");
    std::fs::write(api.root.path().join("var/lib/dpkg/status"), changed).unwrap();
    let answer = api.get("/packages").await;
    assert_ne!(answer.header("etag"), tag);
    assert_eq!(answer.data()["packages"][1]["upgradable"], false, "what is installed now is no candidate");
}

#[tokio::test]
async fn filters_select_sort_and_page() {
    let api = Api::new().await;
    for (query, names) in [
        ("name=bash", &["bash"][..]),
        ("name=*s*", &["bash", "libssl3"]),
        ("version=1.0", &["old"]),
        ("status=held", &["libssl3"]),
        ("status=installed", &["bash", "libssl3"]),
        ("status=upgradable", &["libssl3"]),
        ("status=broken", &[]),
        ("upgradable=false", &["bash", "old"]),
        ("order=desc", &["old", "libssl3", "bash"]),
        ("sort=size", &["old", "libssl3", "bash"]),
        ("sort=version", &["old", "libssl3", "bash"]),
        ("limit=1", &["bash"]),
        ("limit=1&offset=1", &["libssl3"]),
        ("offset=9", &[]),
    ] {
        let data = api.get(&format!("/packages?{query}")).await.data();
        let found: Vec<&str> =
            data["packages"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        assert_eq!(found, names, "{query}");
    }
    assert_eq!(api.get("/packages?limit=1").await.data()["total"], 3);
}

#[tokio::test]
async fn without_the_root_side_reads_go_on() {
    let mut api = Api::new().await;
    api.root.unlisten();
    assert_eq!(api.get("/packages").await.data()["total"], 3);
    for path in ["/patches", "/packages?upgradable=true", "/system/services", "/packages/bash"] {
        let answer = api.get(path).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "SERVICE_UNHEALTHY"),
            "{path}"
        );
    }
    let health = api.get("/health").await;
    assert_eq!(health.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(health.json()["error"]["details"]["status"], "unhealthy");
}

#[tokio::test]
async fn patches_are_asked_for_once() {
    let api = Api::new().await;
    for _ in 0..3 {
        assert_eq!(api.get("/patches").await.data()["security_updates"], 1);
    }
    assert_eq!(api.root.requests().len(), 1);
    std::fs::create_dir_all(api.root.path().join("etc/apt/preferences.d")).unwrap();
    api.get("/patches").await.data();
    assert_eq!(api.root.requests().len(), 2, "a pin may have changed the solver's mind");
}

#[tokio::test]
async fn a_change_is_a_job() {
    let api = Api::new().await;
    let answer = api.post("/packages", json!({"packages": [{"name": "bash"}]})).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    let data = answer.data();
    let id = data["job_id"].as_str().unwrap();
    assert_eq!(answer.header("location"), format!("/api/v1/jobs/{id}"));
    assert_eq!((&data["status"], &data["kind"]), (&json!("pending"), &json!("install")));
    let job = api.get(&format!("/jobs/{id}")).await.data();
    assert_eq!(job["requested_by"]["identity"], "ops");
    assert_eq!(api.get("/jobs?kind=install&package=bash").await.data()["total"], 1);
    assert_eq!(api.get("/jobs?kind=remove").await.data()["total"], 0);
    assert_eq!(api.get("/jobs?since=2200-01-01T00:00:00Z").await.data()["total"], 0);
}

#[tokio::test]
async fn a_client_may_wait_for_the_end() {
    let api = Api::new().await;
    let mut change = request("ops", Method::POST, "/patches/refresh", None);
    change.headers_mut().insert("prefer", "wait=20".parse().unwrap());
    let (answer, ()) = tokio::join!(api.send(change), async {
        api.root
            .until(|requests| requests.iter().any(|r| matches!(r.body, RequestBody::Change { .. })))
            .await;
        for id in api.root.changes() {
            api.root.complete(id);
        }
    });
    assert_eq!((answer.status, answer.header("preference-applied")), (StatusCode::OK, "wait=20"));
    assert_eq!(answer.data()["status"], "completed");

    let mut change = request("ops", Method::POST, "/patches/refresh", None);
    change.headers_mut().insert("prefer", "wait=0".parse().unwrap());
    assert_eq!(api.send(change).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_key_makes_a_retry_harmless() {
    let api = Api::new().await;
    let send = async |body: &str| {
        let mut change = request("ops", Method::POST, "/packages", Some(body.to_owned()));
        change.headers_mut().insert("idempotency-key", "k1".parse().unwrap());
        api.send(change).await
    };
    let first = send(r#"{"packages": [{"name": "bash"}]}"#).await.data()["job_id"].clone();
    assert_eq!(send(r#"{"packages":[{"name":"bash"}]}"#).await.data()["job_id"], first);
    let other = send(r#"{"packages": [{"name": "dash"}]}"#).await;
    assert_eq!((other.status, other.code().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "INVALID_REQUEST"));
}

#[tokio::test]
async fn a_dry_run_answers_with_the_plan() {
    let api = Api::new().await;
    api.answers(QueryResult::Plan(Plan::of(vec![])));
    let body = json!({"packages": [{"name": "bash"}], "options": {"dry_run": true}});
    let answer = api.post("/packages", body).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.data()["hash"].is_string());
    let answer =
        api.send(request("ops", Method::DELETE, "/packages/bash?dry_run=true&purge=true", None)).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(matches!(
        &api.root.requests().last().unwrap().body,
        RequestBody::Plan { operation: Operation::Remove(r) } if r.purge
    ));
}

#[tokio::test]
async fn patches_are_named_by_package_or_advisory() {
    let api = Api::new().await;
    for id in ["libssl3", "dsa-1-1", "CVE-2026-0001"] {
        let answer = api.post("/patches/apply", json!({"patches": [id], "allow_reboot": false})).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{id}: {}", answer.json());
    }
    let answer = api.post("/patches/apply", json!({"patches": ["DSA-9-9"]})).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::NOT_FOUND, "PATCH_NOT_FOUND"));
    assert_eq!(api.post("/patches/apply", json!({"packages": []})).await.status, StatusCode::ACCEPTED);
    api.root
        .until(|requests| {
            requests.iter().any(|r| {
                matches!(&r.body, RequestBody::Change { operation: Operation::ApplyPatches(a), .. }
                if a.refresh_if_older == Some(3600) && a.packages.iter().any(|p| p.as_str() == "libssl3"))
            })
        })
        .await;
}

#[tokio::test]
async fn a_rehearsal_is_a_job_also_where_it_is_all_that_is_wanted() {
    let api = Api::new().await;
    let names = json!([{"name": "curl"}]);
    let asked = [
        ("/patches/apply", json!({"rehearse": true}), false),
        ("/patches/apply", json!({"rehearse": true, "dry_run": true}), true),
        ("/packages", json!({"packages": names, "options": {"rehearse": true, "dry_run": true}}), true),
    ];
    for (path, body, only) in asked {
        let answer = api.post(path, body.clone()).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{body}: {}", answer.json());
        let id = answer.data()["job_id"].as_str().unwrap().to_owned();
        let wanted = Rehearse { only, otherwise: Unrehearsed::Refuse };
        api.root
            .until(|requests| {
                requests.iter().any(|r| {
                    r.id.to_string() == id
                        && matches!(&r.body, RequestBody::Change { options, .. } if options.rehearse == Some(wanted))
                })
            })
            .await;
    }
    for body in [json!({"unrehearsed": "simulate"}), json!({"rehearse": true, "unrehearsed": "hope"})] {
        let answer = api.post("/patches/apply", body.clone()).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}: {}", answer.json());
    }
}

#[tokio::test]
async fn the_compliance_report_is_not_sent_twice() {
    let api = Api::new().await;
    let first = api.get("/compliance").await;
    let data = first.data();
    assert_eq!((&data["promise_hours"], &data["fixes"]), (&json!(24), &json!([])));
    assert!(data["not_known"].to_string().contains("no indexes of an archive of security fixes"), "{data}");
    let mut again = request("ops", Method::GET, "/compliance", None);
    again.headers_mut().insert("if-none-match", first.header("etag").parse().unwrap());
    assert_eq!(api.send(again).await.status, StatusCode::NOT_MODIFIED);
}

/// A window that opens at the given instant.
fn window(next: &str) -> WindowStatus {
    WindowStatus { has_window: true, next: Some(next.parse().unwrap()), ..WindowStatus::default() }
}

#[tokio::test]
async fn a_reboot_is_queued_where_there_is_a_window_or_ordered_with_a_reason() {
    let api = Api::new().await;
    api.answers(QueryResult::RebootWindow(WindowStatus::default()));
    let answer = api.post("/system/reboot", json!({})).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::CONFLICT, "REBOOT_WINDOW_CLOSED"));
    for (body, field) in [
        (json!({"force": true}), "reason"),
        (json!({"reason": "a\nb"}), "reason"),
        (json!({"delay_seconds": 604_801}), "delay_seconds"),
    ] {
        let answer = api.post("/system/reboot", body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.json());
        assert_eq!(answer.json()["error"]["details"]["field"], field);
    }
    let order = json!({"force": true, "reason": "the disk is new", "delay_seconds": 5});
    let answer = api.post("/system/reboot", order).await;
    assert_eq!((answer.status, answer.data()["kind"].clone()), (StatusCode::ACCEPTED, json!("reboot")));
    api.root
        .until(|requests| {
            requests.iter().any(|request| {
                matches!(&request.body, RequestBody::Change { operation: Operation::Reboot(reboot), .. }
                    if reboot.force && reboot.delay_seconds == 5 && reboot.reason.as_deref() == Some("the disk is new"))
            })
        })
        .await;

    api.answers(QueryResult::RebootWindow(window("2100-01-03T04:15:00Z")));
    let state = api.get("/system/reboot").await.data();
    assert_eq!(
        state["window"],
        json!({"open_until": null, "next": "2100-01-03T04:15:00Z", "timer_off": null})
    );
    assert_eq!(api.post("/system/reboot", json!({})).await.status, StatusCode::ACCEPTED);
    let answer = api.post("/patches/apply", json!({"reboot_delay_minutes": 5})).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn only_the_approved_plan_is_begun() {
    let api = Api::new().await;
    let plan = patch_types::Plan::of(Vec::new());
    api.answers(QueryResult::Plan(plan.clone()));
    let body = |hash: &str| json!({"packages": [{"name": "bash"}], "options": {"if_plan": hash}});
    let drift = api.post("/packages", body(&"0".repeat(64))).await;
    assert_eq!((drift.status, drift.code().as_str()), (StatusCode::CONFLICT, "PLAN_DRIFT"));
    assert_eq!(drift.json()["error"]["details"]["current"], plan.hash.as_str());
    api.answers(QueryResult::Plan(plan.clone()));
    assert_eq!(api.post("/packages", body(plan.hash.as_str())).await.status, StatusCode::ACCEPTED);
    api.root
        .until(|requests| {
            requests.iter().any(
                |r| matches!(&r.body, RequestBody::Change { if_plan: Some(hash), .. } if *hash == plan.hash),
            )
        })
        .await;
}

#[tokio::test]
async fn unknown_things_are_not_found() {
    let api = Api::new().await;
    let id = "00000000-0000-0000-0000-000000000000";
    for (method, path) in [
        (Method::GET, format!("/jobs/{id}")),
        (Method::DELETE, format!("/jobs/{id}")),
        (Method::POST, format!("/jobs/{id}/rollback")),
        (Method::POST, format!("/jobs/{id}/confirm")),
    ] {
        let answer = api.send(request("ops", method, &path, None)).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (StatusCode::NOT_FOUND, "JOB_NOT_FOUND"),
            "{path}"
        );
    }
    api.answers(QueryResult::Services(serde_json::from_value(json!({"services": [], "total": 0})).unwrap()));
    assert_eq!(api.get("/system/services/ssh.service").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn services_are_those_that_need_attention_unless_all_are_asked_for() {
    let api = Api::new().await;
    let unit = |name: &str, state: &str, old: bool| {
        json!({"name": name, "description": "", "active_state": state, "sub_state": "x", "load_state": "loaded",
            "runs_old_code": old, "replaced_files": []})
    };
    let services = json!({"services": [unit("a.service", "active", false), unit("b.service", "failed", false),
        unit("c.service", "active", true)], "total": 3});
    api.answers(QueryResult::Services(serde_json::from_value(services).unwrap()));
    assert_eq!(api.get("/system/services").await.data()["total"], 2);
    assert_eq!(api.get("/system/services?all=true").await.data()["total"], 3);
    assert_eq!(api.get("/system/services/a.service").await.data()["active_state"], "active");
}

#[tokio::test]
async fn the_rate_is_limited_by_identity() {
    let api = Api::with_config("security: {rate_limit_requests_per_minute: 2}").await;
    for expected in [StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let answer = api.get("/jobs").await;
        assert_eq!(answer.status, expected);
        if expected == StatusCode::TOO_MANY_REQUESTS {
            assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
        }
    }
}

#[tokio::test]
async fn metrics_name_routes_and_never_paths() {
    let api = Api::new().await;
    api.get("/jobs/00000000-0000-0000-0000-000000000000").await;
    let answer = api.get("/metrics").await;
    let text = String::from_utf8(answer.body).unwrap();
    assert!(text.contains(r#"route="/api/v1/jobs/{id}",status="404"} 1"#), "{text}");
    assert!(text.contains("linux_patch_api_packages_installed 3"));
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_retry_finds_its_job_when_its_advisory_is_gone() {
    let api = Api::new().await;
    let send = async |path: &str, body: &str| {
        let mut change = request("ops", Method::POST, path, Some(body.to_owned()));
        change.headers_mut().insert("idempotency-key", "k1".parse().unwrap());
        api.send(change).await
    };
    let body = r#"{"patches": ["CVE-2026-0001"]}"#;
    let first = send("/patches/apply", body).await.data()["job_id"].clone();
    api.answers(QueryResult::Patches(patch_types::api::PatchSet { patches: vec![], ..super::patch_set() }));
    std::fs::create_dir_all(api.root.path().join("etc/apt/preferences.d")).unwrap();
    assert_eq!(
        api.post("/patches/apply", serde_json::from_str(body).unwrap()).await.code(),
        "PATCH_NOT_FOUND"
    );
    let again = send("/patches/apply", body).await;
    assert_eq!((again.status, &again.data()["job_id"]), (StatusCode::ACCEPTED, &first));
    // The same words to another path are another request.
    let other = send("/patches/refresh", "{}").await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn an_accepted_job_is_answered_for_in_time() {
    let api = Api::with_config("server: {timeout: 1}").await;
    let change = |body: Option<String>| {
        let path = if body.is_some() { "/packages" } else { "/patches/refresh" };
        let mut change = request("ops", Method::POST, path, body);
        change.headers_mut().insert("prefer", "wait=60".parse().unwrap());
        change
    };
    let began = std::time::Instant::now();
    let answer = api.send(change(None)).await;
    assert_eq!((answer.status, answer.header("preference-applied")), (StatusCode::ACCEPTED, "wait=0"));
    assert!(began.elapsed() < std::time::Duration::from_secs(4));

    // A plan that does not come leaves no time for a job, and so there is none.
    api.root.manners(|m| m.answer = None);
    let body = json!({"packages": [{"name": "bash"}], "options": {"if_plan": "0".repeat(64)}});
    let answer = api.send(change(Some(body.to_string()))).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "SERVICE_UNHEALTHY")
    );
    assert!(
        answer.json()["error"]["message"].as_str().unwrap().contains("nothing was begun"),
        "{}",
        answer.json()
    );
    assert_eq!(api.get("/jobs").await.data()["total"], 1);
}

#[tokio::test]
async fn what_is_wrong_with_the_trail_is_told() {
    let root = Root::new();
    let (app, _) = application(&root, "").await;
    let ask = async |path: &str| {
        let response = service(app.clone()).oneshot(request("ops", Method::GET, path, None)).await.unwrap();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    };
    let check = async |name: &str| {
        let body: Value = serde_json::from_str(&ask("/health").await).unwrap();
        let health = if body["data"].is_null() { &body["error"]["details"] } else { &body["data"] };
        let check = health["checks"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap();
        (
            check["healthy"] == true,
            check["message"].as_str().unwrap().to_owned(),
            health["status"].as_str().unwrap().to_owned(),
        )
    };
    assert!(check("trail").await.0 && check("checkpoint").await.0);
    assert!(ask("/metrics").await.contains("linux_patch_api_audit_checkpoint{status=\"refused\"} 0"));

    let signing = Signing {
        signed: Some((7, Timestamp::UNIX_EPOCH)),
        trouble: Some(Trouble::Refused("record 9 was signed before".to_owned())),
    };
    app.signing().store(Arc::new(signing));
    let (healthy, message, status) = check("checkpoint").await;
    assert!(!healthy && message.contains("refuses to sign") && message.contains("record 9"), "{message}");
    assert_eq!(status, "degraded");
    let metrics = ask("/metrics").await;
    for line in ["audit_checkpoint{status=\"refused\"} 1", "audit_signed_records 7", "audit_set_aside 0"] {
        assert!(metrics.contains(&format!("linux_patch_api_{line}\n")), "{line} in {metrics}");
    }
    let trouble = Some(Trouble::Ended("it has failed".to_owned()));
    app.signing().store(Arc::new(Signing { signed: None, trouble }));
    assert!(!check("checkpoint").await.0);
    assert!(ask("/metrics").await.contains("linux_patch_api_audit_checkpoint{status=\"signed\"} 0"));
    app.signing().store(Arc::default());

    let log = root.path().join(patch_audit::LOG_PATH);
    let aside = log.with_file_name("audit.log.set-aside-20261120T000000Z");
    std::fs::write(&aside, "rubbish").unwrap();
    let (healthy, message, status) = check("trail").await;
    assert!(!healthy && message.starts_with("audit.log.set-aside-2026"), "{message}");
    assert_eq!(status, "degraded");
    assert!(ask("/metrics").await.contains("linux_patch_api_audit_set_aside 1\n"));
    std::fs::remove_file(aside).unwrap();
    assert!(check("trail").await.0, "whoever has looked at it takes it away");
}

#[tokio::test]
async fn without_its_writer_the_trail_refuses_changes_and_reads_go_on() {
    let root = Root::new();
    let (app, _) = application(&root, "").await;
    app.audit().close();
    let ask = async |method: Method, path: &str, body: Option<Value>| {
        let body = body.map(|body| body.to_string());
        let response = service(app.clone()).oneshot(request("ops", method, path, body)).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let changes = [
        (Method::POST, "/packages", Some(json!({"packages": [{"name": "curl"}]}))),
        (Method::DELETE, "/packages/bash", None),
        (Method::POST, "/patches/refresh", Some(json!({}))),
        (Method::POST, "/system/reboot", Some(json!({"force": true, "reason": "x"}))),
    ];
    for (method, path, body) in changes {
        let (status, answer) = ask(method, path, body).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path} {answer}");
    }
    assert!(root.changes().is_empty(), "nothing was begun");
    for path in ["/packages", "/system/info", "/jobs"] {
        assert_eq!(ask(Method::GET, path, None).await.0, StatusCode::OK, "{path}");
    }
    let (status, health) = ask(Method::GET, "/health", None).await;
    let checks = health["error"]["details"]["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == "audit").unwrap();
    assert_eq!((status, &check["healthy"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)), "{check}");
}

#[tokio::test]
async fn the_root_side_is_not_looked_at_for_every_health_check() {
    let mut api = Api::new().await;
    let executor = async |api: &Api| {
        let health = api.get("/health").await.json();
        let checks = if health["data"].is_null() {
            health["error"]["details"].clone()
        } else {
            health["data"].clone()
        };
        let checks = checks["checks"].as_array().unwrap().clone();
        checks.iter().find(|c| c["name"] == "executor").unwrap()["healthy"].clone()
    };
    assert_eq!(executor(&api).await, true);
    api.root.unlisten();
    assert_eq!(executor(&api).await, true, "what was seen within the last seconds");
}

#[tokio::test]
async fn health_tells_of_fixes_that_are_barred_now() {
    let root = Root::new();
    let (app, _) = application(&root, "").await;
    let router = service(app.clone());
    let check = async || {
        let answer = router.clone().oneshot(request("ops", Method::GET, "/health", None)).await.unwrap();
        let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let health = if body["data"].is_null() { &body["error"]["details"] } else { &body["data"] };
        let check = health["checks"].as_array().unwrap().iter().find(|c| c["name"] == "policy").unwrap();
        (check["healthy"] == true, check["message"].as_str().unwrap().to_owned())
    };
    let run = json!({
        "job_id": null, "started_at": "2026-01-01T02:00:00Z", "ended_at": "2026-01-01T02:10:00Z", "status": "completed",
        "outcome": "unchanged", "error": null, "barred": ["bash=5.2.15-3", "libssl3=3.0.2-1"],
    });
    let mut note = Note::default();
    note.state.mode = PolicyMode::Agent;
    note.state.last_run = Some(serde_json::from_value(run).unwrap());
    app.note_policy(note.clone());
    let pins = root.path().join(TAKEN_BACK_PINS);
    std::fs::create_dir_all(pins.parent().unwrap()).unwrap();
    let pin = |name: &str, version: &str| {
        format!("\nPackage: {name}:amd64\nPin: version {version}\nPin-Priority: -1\n")
    };
    std::fs::write(&pins, pin("bash", "5.2.15-3") + &pin("libssl3", "3.0.2-1")).unwrap();
    let (healthy, message) = check().await;
    assert!(!healthy && message.contains(": bash=5.2.15-3, libssl3=3.0.2-1; "), "{message}");
    // Root lets one, and somebody installs the other one.
    std::fs::write(&pins, pin("bash", "5.2.15-3")).unwrap();
    let (healthy, message) = check().await;
    assert!(!healthy && message.contains(": bash=5.2.15-3; "), "{message}");
    let status = root.path().join("var/lib/dpkg/status");
    let before = std::fs::read_to_string(&status).unwrap();
    std::fs::write(&status, before.replace("5.2.15-2", "5.2.15-3")).unwrap();
    assert_eq!(check().await, (true, note.state.decision.clone()));
    // What else is the matter is told with it, and without it.
    note.trouble = Some("it has failed".to_owned());
    app.note_policy(note);
    assert_eq!(check().await, (false, "it has failed".to_owned()));
    std::fs::write(&status, before).unwrap();
    let (_, message) = check().await;
    assert!(message.starts_with("it has failed; the last run left out"), "{message}");
}
