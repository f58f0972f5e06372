//! The client against an agent that is faked at the protocol.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed; Clippy spares test functions only, not what they share"
)]

mod fake;

use std::time::Duration;

use fake::{Fake, Pki, Reply};
use futures_util::StreamExt;
use patch_client::{Client, Error, FileProblem, PackageFilter, Stage, Submit};
use patch_types::{
    ErrorCode, JobId, JobStatus, PackageName,
    api::{ApplyRequest, HealthStatus, RemoveRequest, RollbackRequest, ServerMessage},
};
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::{Value, json};

const JOB: &str = "01890000-0000-7000-8000-000000000001";
const REQUEST: &str = "6a6b6c6d-0000-4000-8000-000000000002";

fn id() -> JobId {
    JOB.parse().unwrap()
}

fn name(text: &str) -> PackageName {
    text.parse().unwrap()
}

fn good(data: &Value) -> String {
    json!({"success": true, "request_id": REQUEST, "timestamp": "2026-01-01T00:00:00Z", "data": data, "error": null})
        .to_string()
}

fn bad(code: &str, message: &str) -> String {
    json!({
        "success": false, "request_id": REQUEST, "timestamp": "2026-01-01T00:00:00Z", "data": null,
        "error": {"code": code, "message": message, "details": {}, "retryable": false},
    })
    .to_string()
}

fn job(status: &str, seq: u64, lines: &[u64]) -> Value {
    let log: Vec<Value> = lines.iter().map(|&seq| line(seq)).collect();
    json!({
        "job_id": JOB, "kind": "refresh", "status": status, "phase": null, "outcome": null,
        "progress_percent": 0, "current_package": null, "waiting_for": null,
        "created_at": "2026-01-01T00:00:00Z", "started_at": null, "completed_at": null,
        "requested_by": {"identity": "a", "fingerprint": "b", "address": "c", "request_id": REQUEST},
        "request": {}, "plan": null, "output": null, "log": log, "log_truncated": false, "error": null,
        "error_detail": null, "exit_code": null, "results": [], "last_seq": seq,
    })
}

fn line(seq: u64) -> Value {
    json!({"seq": seq, "at": "2026-01-01T00:00:00Z", "stream": "output", "line": format!("line {seq}")})
}

fn log(seq: u64) -> String {
    let mut payload = line(seq);
    payload["job_id"] = json!(JOB);
    json!({"type": "job_log", "payload": payload}).to_string()
}

fn message(kind: &str, job: &Value) -> String {
    json!({"type": kind, "payload": job}).to_string()
}

fn lines(messages: &[ServerMessage]) -> Vec<u64> {
    let seq = |m: &ServerMessage| match m {
        ServerMessage::JobLog(log) => Some(log.line.seq),
        _ => None,
    };
    messages.iter().filter_map(seq).collect()
}

#[tokio::test]
async fn answers_are_typed_and_keep_the_agents_own_text() {
    let fake =
        Fake::start(|_, _| Reply::Http(200, good(&json!({"packages": [], "total": 0, "new": 1})))).await;
    let filter = PackageFilter { name: Some("lib c*".into()), limit: Some(3), ..Default::default() };
    let answer = fake.client().packages(&filter).await.unwrap();
    assert_eq!(answer.total, 0);
    assert_eq!(answer.request_id.to_string(), REQUEST);
    assert!(answer.raw.get().contains("\"new\":1"));
    assert_eq!(fake.requests()[0].line, "GET /api/v1/packages?name=lib+c*&limit=3 HTTP/1.1");
}

#[tokio::test]
async fn changes_carry_body_query_and_headers() {
    let fake = Fake::start(|_, _| Reply::Http(202, good(&job("pending", 0, &[])))).await;
    let client = fake.client();
    let submit = Submit { wait_seconds: Some(7), idempotency_key: Some("key".into()) };
    let request = ApplyRequest { security_only: true, dry_run: true, ..Default::default() };
    assert_eq!(client.apply(&request, &submit).await.unwrap().job_id, id());
    let removal = RemoveRequest { purge: true, ..Default::default() };
    client.remove(&name("g++:amd64"), &removal, &Submit::default()).await.unwrap();
    client.hold(&name("apt"), true, &Submit::default()).await.unwrap();

    let [apply, remove, hold] = &fake.requests()[..] else { panic!("three requests") };
    let head = apply.head.to_ascii_lowercase();
    assert!(head.contains("prefer: wait=7\r\n") && head.contains("idempotency-key: key\r\n"), "{head}");
    assert!(head.contains("content-type: application/json\r\n"));
    let body: Value = serde_json::from_str(&apply.body).unwrap();
    assert_eq!((&body["security_only"], &body["dry_run"]), (&json!(true), &json!(false)));
    assert_eq!(remove.line, "DELETE /api/v1/packages/g++:amd64?purge=true HTTP/1.1");
    assert_eq!(hold.line, "PUT /api/v1/packages/apt HTTP/1.1");
    assert!(hold.body.contains("\"hold\":true"));
}

#[tokio::test]
async fn a_confirmation_comes_over_a_connection_of_its_own() {
    let fake = Fake::start(|_, _| Reply::Http(200, good(&job("running", 5, &[])))).await;
    let client = fake.client();
    client.job(id()).await.unwrap();
    client
        .rollback(id(), &RollbackRequest { force: true, ..RollbackRequest::default() }, &Submit::default())
        .await
        .unwrap();
    for _ in 0..2 {
        assert_eq!(client.confirm(id()).await.unwrap().job_id, id());
    }
    let [first, rollback, confirm, again] = &fake.requests()[..] else { panic!("four requests") };
    assert_eq!(rollback.line, format!("POST /api/v1/jobs/{JOB}/rollback HTTP/1.1"));
    assert_eq!((rollback.body.as_str(), rollback.connection), (r#"{"force":true}"#, first.connection));
    assert_eq!(confirm.line, format!("POST /api/v1/jobs/{JOB}/confirm HTTP/1.1"));
    assert!(confirm.connection > first.connection && again.connection > confirm.connection);
}

#[tokio::test]
async fn errors_of_the_agent_keep_status_code_and_request() {
    let fake = Fake::start(|request, _| {
        if request.line.contains("zz") {
            Reply::Http(404, bad("PKG_NOT_FOUND", "no package zz"))
        } else {
            Reply::Http(418, bad("TEAPOT_ERROR", "short and stout"))
        }
    })
    .await;
    let client = fake.client();
    let error = client.package(&name("zz")).await.unwrap_err();
    let Error::Api { status: 404, detail, request_id } = &error else { panic!("{error}") };
    assert_eq!((detail.code, request_id.to_string().as_str()), (ErrorCode::PkgNotFound, REQUEST));
    // A code of a newer agent is not a parse error.
    let error = client.package(&name("aa")).await.unwrap_err();
    assert!(matches!(error, Error::Api { status: 418, .. }) && error.to_string().contains("TEAPOT_ERROR"));
}

#[tokio::test]
async fn what_is_no_envelope_is_said_to_be_none() {
    let fake = Fake::start(|_, n| match n {
        0 => Reply::Http(200, "<html>".into()),
        1 => Reply::Http(302, String::new()),
        _ => Reply::Http(200, good(&json!({"total": "many"}))),
    })
    .await;
    let client = fake.client();
    for _ in 0..3 {
        assert!(matches!(client.jobs(&Default::default()).await, Err(Error::Body { .. })));
    }
    assert_eq!(fake.requests().len(), 3, "redirects are not followed");
}

#[tokio::test]
async fn the_health_of_an_unhealthy_agent_is_an_answer() {
    let health = json!({
        "status": "unhealthy", "uptime_seconds": 1, "version": "1", "checks": [], "crl_status": "missing",
        "crl_age_seconds": null, "crl_next_update": null, "certificate_expires": null, "ca_expires": null,
        "audit_head": null,
    });
    let answer = json!({
        "success": false, "request_id": REQUEST, "timestamp": "2026-01-01T00:00:00Z", "data": null,
        "error": {"code": "SERVICE_UNHEALTHY", "message": "no root side", "details": health, "retryable": true},
    });
    let unhealthy = answer.to_string();
    let fake = Fake::start(move |_, number| {
        Reply::Http(503, if number == 0 { unhealthy.clone() } else { bad("SERVICE_UNHEALTHY", "stopping") })
    })
    .await;
    let answer = fake.client().health().await.unwrap();
    assert_eq!((answer.version.as_str(), answer.status), ("1", HealthStatus::Unhealthy));
    assert!(answer.raw.get().starts_with('{') && answer.raw.get().contains("unhealthy"));
    // Not every 503 tells the health.
    assert!(matches!(fake.client().health().await, Err(Error::Api { status: 503, .. })));
}

#[tokio::test]
async fn silence_after_the_handshake_points_at_the_certificate_and_is_not_provoked_twice() {
    let fake = Fake::start(|_, _| Reply::Close).await;
    let error = fake.client().refresh(&Submit::repeatable()).await.unwrap_err();
    assert!(matches!(error, Error::Refused { stage: Stage::Request, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("clientAuth") && text.contains("CN=client"), "{text}");
    assert_eq!(fake.requests().len(), 1);
}

#[tokio::test]
async fn a_certificate_of_another_ca_looks_like_silence_or_an_alert() {
    let fake = Fake::start(|_, _| Reply::Close).await;
    let other = Pki::new();
    let mut config = fake.pki.config(fake.port);
    (config.certificate, config.key) = (other.path("client.pem"), other.path("client.key.pem"));
    let error = Client::new(config).unwrap().info().await.unwrap_err();
    assert!(error.is_connection(), "{error:?}");
}

#[tokio::test]
async fn silence_before_the_handshake_points_at_the_allow_list() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let client = Client::new(Pki::new().config(port)).unwrap();
    for error in [client.info().await.unwrap_err(), client.watch(id()).next().await.unwrap().unwrap_err()] {
        assert!(matches!(error, Error::Refused { stage: Stage::Handshake, .. }), "{error:?}");
        assert!(error.to_string().contains("whitelist.yaml"));
    }
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_once_the_certificate_is_known_to_be_accepted() {
    let fake = Fake::start(|_, n| match n {
        1 => Reply::Close,
        _ => Reply::Http(202, good(&job("pending", 0, &[]))),
    })
    .await;
    let client = fake.client();
    client.job(id()).await.unwrap();
    client.refresh(&Submit::repeatable()).await.unwrap();
    let requests = fake.requests();
    let key = |n: usize| {
        requests[n].head.lines().find(|l| l.to_ascii_lowercase().starts_with("idempotency")).unwrap()
    };
    assert_eq!(requests.len(), 3);
    assert_eq!(key(1), key(2));
}

#[tokio::test]
async fn nobody_there_and_the_wrong_server_are_told_apart() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let pki = Pki::new();
    let error = Client::new(pki.config(port)).unwrap().info().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");

    let fake = Fake::start(|_, _| Reply::Close).await;
    let error = Client::new(pki.config(fake.port)).unwrap().info().await.unwrap_err();
    assert!(matches!(error, Error::ServerCertificate { .. }), "{error:?}");
}

#[tokio::test]
async fn the_name_that_the_certificate_must_carry_can_be_given() {
    let fake = Fake::start(|_, _| Reply::Http(200, good(&json!({"packages": [], "total": 0})))).await;
    let mut config = fake.pki.config(fake.port);
    config.address = format!("127.0.0.1:{}", fake.port).parse().unwrap();
    let error = Client::new(config.clone()).unwrap().packages(&Default::default()).await.unwrap_err();
    assert!(error.to_string().contains("subjectAltName"), "{error}");
    config.server_name = Some("localhost".into());
    Client::new(config).unwrap().packages(&Default::default()).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_does_not_answer_times_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pki = Pki::new();
    let mut config = pki.config(listener.local_addr().unwrap().port());
    config.connect_timeout = Duration::from_millis(50);
    let error = Client::new(config).unwrap().info().await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { connecting: true, .. }), "{error:?}");
}

#[tokio::test]
async fn a_lost_web_socket_is_resumed_without_repeating_lines() {
    let fake = Fake::start(|_, n| match n {
        0 => Reply::WebSocket {
            messages: vec![message("job_status", &job("running", 2, &[])), log(1), log(2)],
            stay: false,
        },
        1 => Reply::WebSocket { messages: Vec::new(), stay: false },
        _ => Reply::WebSocket {
            messages: vec![
                message("job_status", &job("running", 3, &[])),
                log(1),
                log(2),
                log(3),
                "{\"type\": \"news\", \"payload\": {}}".to_owned(),
                message("job_complete", &job("completed", 4, &[])),
            ],
            stay: true,
        },
    })
    .await;
    let messages: Vec<ServerMessage> =
        fake.client().watch(id()).map(|message| message.unwrap()).collect().await;
    assert_eq!(lines(&messages), [1, 2, 3]);
    assert!(
        matches!(messages.last(), Some(ServerMessage::JobComplete(job)) if job.status == JobStatus::Completed)
    );
    assert_eq!(fake.requests().len(), 3);
}

#[tokio::test]
async fn a_final_status_ends_the_stream_when_the_last_word_stays_out() {
    let fake = Fake::start(|_, _| Reply::WebSocket {
        messages: vec![message("job_status", &job("failed", 2, &[])), log(1)],
        stay: true,
    })
    .await;
    let messages: Vec<ServerMessage> =
        fake.client().watch(id()).map(|message| message.unwrap()).collect().await;
    assert_eq!(lines(&messages), [1]);
    assert!(matches!(messages.last(), Some(ServerMessage::JobComplete(_))));
}

#[tokio::test]
async fn without_a_web_socket_the_job_is_polled() {
    let fake = Fake::start(|request, n| match n {
        _ if request.line.contains("/ws/") => Reply::Http(404, bad("INVALID_REQUEST", "no such path")),
        1 => Reply::Http(200, good(&job("running", 2, &[1, 2]))),
        _ => Reply::Http(200, good(&job("completed", 3, &[1, 2, 3]))),
    })
    .await;
    let mut messages = Vec::new();
    let ended = fake.client().follow_to_end(id(), |m| messages.push(m.clone())).await.unwrap();
    assert_eq!(ended.log.len(), 3);
    assert_eq!(lines(&messages), [1, 2, 3]);
}

#[tokio::test]
async fn following_ends_with_the_whole_record() {
    let fake = Fake::start(|request, _| {
        if request.line.contains("/ws/") {
            let messages = vec![log(1), message("job_complete", &job("completed", 2, &[]))];
            Reply::WebSocket { messages, stay: true }
        } else {
            Reply::Http(200, good(&job("completed", 2, &[1])))
        }
    })
    .await;
    let ended = fake.client().follow_to_end(id(), |_| {}).await.unwrap();
    assert_eq!((ended.status, ended.log.len()), (JobStatus::Completed, 1));
}

#[tokio::test]
async fn following_a_job_that_is_not_there_says_so() {
    let fake = Fake::start(|request, _| {
        if request.line.contains("/ws/") {
            let error = json!({"type": "error", "payload": {
                "job_id": JOB, "code": "JOB_NOT_FOUND", "message": "no such job", "details": {}, "retryable": false}});
            Reply::WebSocket { messages: vec![error.to_string()], stay: true }
        } else {
            Reply::Http(404, bad("JOB_NOT_FOUND", "no such job"))
        }
    })
    .await;
    let error = fake.client().follow_to_end(id(), |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Api { status: 404, .. }), "{error:?}");
}

#[test]
fn files_that_an_agent_would_refuse_are_named_before_anything_is_sent() {
    let pki = Pki::new();
    let problem = |certificate: &str, key: &str| {
        let mut config = pki.config(1);
        (config.certificate, config.key) = (pki.path(certificate), pki.path(key));
        match Client::new(config) {
            Err(Error::File { problem, .. }) => problem,
            other => panic!("{certificate} {key}: {other:?}"),
        }
    };
    for (name, text) in [
        ("v1.pem", include_str!("data/v1-certificate.pem")),
        ("v1.key.pem", include_str!("data/v1-certificate.key.pem")),
        ("empty.pem", "nothing\n"),
        ("secret.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"),
    ] {
        std::fs::write(pki.path(name), text).unwrap();
    }
    pki.leaf("plain", None, |_| {});
    pki.leaf("old", Some(ExtendedKeyUsagePurpose::ClientAuth), |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    assert!(matches!(problem("absent.pem", "client.key.pem"), FileProblem::Read(_)));
    assert!(matches!(problem("empty.pem", "client.key.pem"), FileProblem::Missing { .. }));
    assert!(matches!(problem("v1.pem", "v1.key.pem"), FileProblem::VersionOne));
    assert!(matches!(problem("plain.pem", "plain.key.pem"), FileProblem::NotForClients { .. }));
    assert!(matches!(problem("old.pem", "old.key.pem"), FileProblem::Expired { .. }));
    assert!(matches!(problem("client.pem", "server.key.pem"), FileProblem::KeyMismatch { .. }));
    assert!(matches!(problem("client.pem", "secret.pem"), FileProblem::EncryptedKey));
    assert!(matches!(problem("client.pem", "client.pem"), FileProblem::Missing { .. }));

    let mut config = pki.config(1);
    config.ca = pki.path("server.pem");
    assert!(matches!(Client::new(config), Err(Error::File { problem: FileProblem::NotACa { .. }, .. })));
}
