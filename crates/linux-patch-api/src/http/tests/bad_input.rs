//! What is malformed, and exactly how it is answered.

use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use serde_json::json;

use super::{Api, request};

fn install(name: &str) -> String {
    json!({"packages": [{"name": name}]}).to_string()
}

#[tokio::test]
async fn bad_bodies_and_queries() {
    let api = Api::new().await;
    let longest = "a".repeat(256);
    let too_long = "a".repeat(257);
    let many = |n: usize| {
        let packages: Vec<_> = (0..n).map(|i| json!({"name": format!("p{i}x")})).collect();
        json!({ "packages": packages }).to_string()
    };
    let post = |body: String| (Method::POST, "/packages".to_owned(), Some(body));
    let get = |path: String| (Method::GET, path, None);
    let put = |body: &str| (Method::PUT, "/packages/bash".to_owned(), Some(body.to_owned()));
    for ((method, path, body), status) in [
        (post("{".into()), 400),
        (post("{\"packages\": [}".into()), 400),
        (post("[]".into()), 422),
        (post(r#"{"packages": [["lp-plain"]]}"#.into()), 422),
        (post(r#"{"packages": [{"name": "lp-plain"}], "options": []}"#.into()), 422),
        (
            post(
                r#"{"packages": [{"name": "lp-plain"}], "options": {"on_failure": {"group": null}}}"#.into(),
            ),
            422,
        ),
        (post("{}".into()), 422),
        (post(json!({"packages": "bash"}).to_string()), 422),
        (post(json!({"packages": [{"name": 7}]}).to_string()), 422),
        (post(json!({"packages": [{"name": "bash"}], "shell": 1}).to_string()), 422),
        (post(json!({"packages": [{"name": "bash", "flags": 1}]}).to_string()), 422),
        (post(json!({"packages": []}).to_string()), 422),
        (post(json!({"packages": [{"name": "bash"}, {"name": "bash"}]}).to_string()), 422),
        (post(install(&longest)), 202),
        (post(install(&too_long)), 422),
        (post(install("")), 422),
        (post(install("a..b")), 422),
        (post(install("../etc")), 422),
        (post(install("a;b")), 422),
        (post(install("-bash")), 422),
        (post(install("a\0b")), 422),
        (post(install("bäsh")), 422),
        (post(install("$(id)")), 422),
        (post(many(1000)), 202),
        (post(many(1001)), 422),
        (post(format!("{}{}", install("bash"), " ".repeat(2 << 20))), 413),
        (put(r#"{"hold": true, "version": "1"}"#), 422),
        (put(r#"{"hold": "yes"}"#), 422),
        (put(r#"{"version": "-1"}"#), 422),
        (put(r#"{"hold": true}"#), 202),
        (get(format!("/packages/{too_long}")), 422),
        (get("/packages/-x".into()), 422),
        (get("/packages/a;b".into()), 400),
        (get("/packages/a%2fb".into()), 400),
        (get("/packages/a%00b".into()), 400),
        (get("/packages/../jobs".into()), 400),
        (get("/packages//bash".into()), 400),
        (get("/packages?nonsense=1".into()), 422),
        (get("/packages?limit=0".into()), 422),
        (get("/packages?limit=-1".into()), 422),
        (get("/packages?limit=x".into()), 422),
        (get("/packages?status=good".into()), 422),
        (get("/packages?upgradable=perhaps".into()), 422),
        (get(format!("/packages?name={longest}")), 200),
        (get(format!("/packages?name={too_long}")), 422),
        (get("/packages?name=".into()), 422),
        (get("/packages?name=-x".into()), 422),
        (get("/packages?version=%20".into()), 422),
        (get("/jobs?status=odd".into()), 422),
        (get("/jobs?kind=odd".into()), 422),
        (get("/jobs?limit=0".into()), 422),
        (get("/jobs?since=yesterday".into()), 422),
        (get("/jobs/not-an-id".into()), 422),
        (get("/system/services/ssh".into()), 422),
        (get("/system/services/-ssh.service".into()), 422),
        (get("/patches?x=1".into()), 422),
        (get("/nothing".into()), 404),
        (get("/api/v2/packages".into()), 404),
        ((Method::PATCH, "/packages".into(), None), 405),
        ((Method::DELETE, "/packages".into(), None), 405),
        ((Method::POST, "/jobs".into(), None), 405),
        ((Method::POST, "/patches/apply".into(), Some(r#"{"patches": ["-x"]}"#.into())), 422),
        (
            (
                Method::POST,
                "/patches/apply".into(),
                Some(r#"{"packages": ["aa"], "exclude": ["aa"]}"#.into()),
            ),
            422,
        ),
        ((Method::POST, "/patches/refresh".into(), Some(r#"{"now": true}"#.into())), 422),
        ((Method::DELETE, "/packages/bash?purge=true".into(), Some(r#"{"purge": true}"#.into())), 422),
        ((Method::DELETE, "/packages/bash".into(), Some(r#"{"purge": true}"#.into())), 202),
        ((Method::GET, "/ws/jobs".into(), None), 422),
    ] {
        let shown: String = body.as_deref().unwrap_or_default().chars().take(60).collect();
        let answer = api.send(request("ops", method.clone(), &path, body)).await;
        let envelope = answer.json();
        assert_eq!(answer.status.as_u16(), status, "{method} {path} {shown}: {envelope}");
        assert!(envelope["request_id"].is_string(), "{method} {path}");
        if status >= 400 {
            assert_eq!(answer.code(), "INVALID_REQUEST", "{method} {path} {shown}");
            assert!(envelope["data"].is_null() && envelope["success"] == json!(false));
        }
        if status == 405 {
            assert!(answer.header("allow").contains(if path == "/jobs" { "GET" } else { "POST" }), "{path}");
        }
    }
}

#[tokio::test]
async fn bad_headers() {
    let api = Api::new().await;
    let with = |name: &'static str, value: &str, body: Option<String>| {
        let mut request = request("ops", Method::POST, "/packages", body);
        request.headers_mut().insert(header::HeaderName::from_static(name), value.parse().unwrap());
        request
    };
    let body = || Some(install("bash"));
    for (request, status) in [
        (with("content-type", "text/plain", body()), 415),
        (with("content-type", "application/x-www-form-urlencoded", body()), 415),
        (with("content-encoding", "gzip", body()), 415),
        (with("transfer-encoding", "chunked", body()), 411),
        (with("x-filler", &"a".repeat(9000), body()), 431),
        (with("idempotency-key", "", body()), 422),
        (with("idempotency-key", &"k".repeat(256), body()), 422),
        (with("content-length", "2000000", body()), 413),
    ] {
        let answer = api.send(request).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (status, "INVALID_REQUEST"),
            "{}",
            answer.json()
        );
    }
}

#[tokio::test]
async fn nobody_is_refused() {
    let api = Api::new().await;
    let request =
        Request::builder().uri("/api/v1/packages").header(header::HOST, "host").body(Body::empty()).unwrap();
    let answer = api.send(request).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::FORBIDDEN, "AUTHZ_FORBIDDEN"));
}

#[tokio::test]
async fn a_parameter_that_nobody_reads_is_refused_everywhere() {
    let api = Api::new().await;
    let document = crate::http::openapi::document().unwrap();
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let id = "00000000-0000-0000-0000-000000000000";
        let name = if path.contains("/services/") { "ssh.service" } else { "bash" };
        let path = path.replace("{name}", name).replace("{id}", id);
        for method in item.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            for query in ["nonsense=1", "nonsense"] {
                let answer = api.send(request("ops", method.clone(), &format!("{path}?{query}"), None)).await;
                assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{method} {path}?{query}");
                let error = &answer.json()["error"];
                assert_eq!(error["code"], "INVALID_REQUEST", "{method} {path}?{query}: {error}");
                assert_eq!(error["details"]["field"], "nonsense", "{method} {path}?{query}: {error}");
            }
            operations += 1;
        }
    }
    assert_eq!(operations, 25);
    let answer = api.post("/patches/apply?dry_run=true", json!({})).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(api.get("/jobs").await.data()["total"], 0);
    assert!(api.root.requests().is_empty(), "nothing reached the root side");
}

#[tokio::test]
async fn browsers_are_turned_away() {
    let api = Api::new().await;
    for (method, path) in [
        (Method::POST, "/patches/apply"),
        (Method::DELETE, "/packages/bash"),
        (Method::GET, "/ws/jobs"),
        (Method::GET, "/packages"),
        (Method::OPTIONS, "/packages"),
    ] {
        for origin in ["https://example.org", "null", "https://host"] {
            let mut request = request("ops", method.clone(), path, None);
            request.headers_mut().insert(header::ORIGIN, origin.parse().unwrap());
            let answer = api.send(request).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (StatusCode::FORBIDDEN, "AUTHZ_FORBIDDEN"),
                "{method} {path} {origin}"
            );
        }
    }
    assert_eq!(api.get("/jobs").await.data()["total"], 0);
}

#[tokio::test]
async fn malformed_requests_count_against_the_rate_limit() {
    let api = Api::with_config("security: {rate_limit_requests_per_minute: 3}").await;
    let slashes = async || api.get("/packages//bash").await.status.as_u16();
    let unknown = async || api.get("/nothing").await.status.as_u16();
    let unknown_parameter = async || api.get("/jobs?nonsense=1").await.status.as_u16();
    assert_eq!((slashes().await, unknown().await, unknown_parameter().await), (400, 404, 422));
    assert_eq!(slashes().await, 429);
}

#[tokio::test]
async fn a_body_that_does_not_end_in_time_is_the_clients_fault() {
    use futures_util::{StreamExt as _, stream};
    let api = Api::with_config("server: {timeout: 1}").await;
    let mut change = request("ops", Method::POST, "/packages", Some(install("bash")));
    let begun = stream::once(async { Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"{")) });
    *change.body_mut() = Body::from_stream(begun.chain(stream::pending()));
    let answer = api.send(change).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::REQUEST_TIMEOUT, "INVALID_REQUEST"));
    assert_eq!(answer.header("connection"), "close");
}
