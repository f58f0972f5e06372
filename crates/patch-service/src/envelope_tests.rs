use axum::{Extension, Router, middleware::from_fn, routing::get};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;

async fn send(request: http::Request<Body>) -> (StatusCode, HeaderMap, Value) {
    let app = Router::new()
        .route(
            "/ok",
            get(|Extension(id): Extension<RequestId>| async move { Reply::ok(json!({"id": id.0})) }),
        )
        .route(
            "/created",
            get(|| async { Reply::new(StatusCode::ACCEPTED, 1).header(header::LOCATION, "/jobs/1") }),
        )
        .route(
            "/list",
            get(|headers: HeaderMap| async move {
                RawData::new(Bytes::from_static(b"[1,2]")).etag("v1", &headers)
            }),
        )
        .route(
            "/no",
            get(|| async {
                Refusal::new(ErrorCode::RateLimitExceeded, "slow down")
                    .header(header::RETRY_AFTER, "3")
                    .with("limit", 5)
            }),
        )
        .route("/foreign", get(|| async { (StatusCode::BAD_REQUEST, "what the extractor said") }))
        .layer(from_fn(request_id));
    let response = app.oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, headers, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

fn get_request(path: &str) -> http::request::Builder {
    http::Request::get(path)
}

#[tokio::test]
async fn every_answer_is_in_the_envelope() {
    let rows = [
        ("/ok", 200, Value::Null),
        ("/created", 202, Value::Null),
        ("/list", 200, Value::Null),
        ("/no", 429, json!("RATE_LIMIT_EXCEEDED")),
        ("/foreign", 400, json!("INVALID_REQUEST")),
        ("/nowhere", 404, json!("INVALID_REQUEST")),
    ];
    for (path, status, code) in rows {
        let (got, headers, body) = send(get_request(path).body(Body::empty()).unwrap()).await;
        assert_eq!(got.as_u16(), status, "{path}");
        let keys: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys.len(), 5, "{keys:?}");
        assert_eq!(body["success"], json!(status < 400), "{path}");
        assert_eq!(body["error"]["code"], code, "{path}");
        assert_eq!(body["data"].is_null(), status >= 400, "{path}");
        assert_eq!(body["request_id"], json!(headers[X_REQUEST_ID].to_str().unwrap()), "{path}");
        assert_eq!(headers[header::CONTENT_TYPE], "application/json");
        assert!(body["timestamp"].as_str().unwrap().parse::<Timestamp>().is_ok());
        // It is the type that clients read it into.
        serde_json::from_value::<patch_types::api::Envelope<Value>>(body).unwrap();
    }
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let (status, headers, body) = send(http::Request::delete("/ok").body(Body::empty()).unwrap()).await;
    assert_eq!(status, 405);
    assert_eq!(headers[header::ALLOW], "GET,HEAD");
    assert!(body["error"]["message"].as_str().unwrap().contains("Allow"), "{body}");
}

#[tokio::test]
async fn a_clients_own_id_is_taken_over_if_it_is_one() {
    let id = "0198c0de-0000-7000-8000-000000000001";
    let (_, headers, body) =
        send(get_request("/ok").header(X_REQUEST_ID, id).body(Body::empty()).unwrap()).await;
    assert_eq!((headers[X_REQUEST_ID].to_str().unwrap(), &body["data"]["id"]), (id, &json!(id)));
    for bad in [
        "",
        "1",
        "0198c0de000070008000000000000001",
        "{0198c0de-0000-7000-8000-000000000001}",
        "x198c0de-0000-7000-8000-000000000001",
    ] {
        let request = get_request("/ok").header(X_REQUEST_ID, bad).body(Body::empty()).unwrap();
        let (_, headers, _) = send(request).await;
        let made = Uuid::parse_str(headers[X_REQUEST_ID].to_str().unwrap()).unwrap();
        assert_eq!(made.get_version_num(), 7, "{bad}");
    }
}

#[tokio::test]
async fn a_known_tag_is_answered_with_304_and_nothing() {
    for (tag, status) in [
        ("W/\"v1\"", 304),
        ("\"v1\"", 304),
        ("\"v0\", W/\"v1\"", 304),
        ("*", 304),
        ("\"v2\"", 200),
        ("v1", 200),
    ] {
        let request = get_request("/list").header(header::IF_NONE_MATCH, tag).body(Body::empty()).unwrap();
        let (got, headers, body) = send(request).await;
        assert_eq!(got.as_u16(), status, "{tag}");
        assert_eq!(headers[header::ETAG], "W/\"v1\"");
        assert_eq!(body.is_null(), status == 304);
        assert!(headers.contains_key(X_REQUEST_ID));
    }
}
