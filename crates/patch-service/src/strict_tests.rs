use axum::{
    Router,
    middleware::from_fn,
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::Value;
use tower::ServiceExt as _;

use super::*;
use crate::envelope::{Reply, request_id};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inner {
    #[serde(default)]
    deep: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body1 {
    count: u8,
    #[serde(default)]
    options: Option<Inner>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    #[serde(default)]
    limit: Option<u32>,
}

fn app() -> Router {
    Router::new()
        .route("/a/{name}", get(|| async { Reply::ok(1) }))
        .route("/filter", get(|StrictQuery(f): StrictQuery<Filter>| async move { Reply::ok(f.limit) }))
        .route(
            "/json",
            post(|StrictJson(body): StrictJson<Body1>| async move {
                Reply::ok((body.count, body.options.map(|o| o.deep)))
            }),
        )
        .route("/maybe", post(|body: Option<StrictJson<Body1>>| async move { Reply::ok(body.is_some()) }))
        .fallback(not_found)
        .layer(from_fn(strict))
        .layer(from_fn(request_id))
}

async fn send(request: http::Request<Body>) -> (u16, Value) {
    let response = app().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap())
}

fn builder(method: &str, path: &str) -> http::request::Builder {
    http::Request::builder().method(method).uri(path).header("host", "h")
}

async fn post_json(path: &str, text: &str) -> (u16, Value) {
    let request = builder("POST", path)
        .header("content-type", "application/json")
        .header("content-length", text.len())
        .body(Body::from(text.to_owned()))
        .unwrap();
    send(request).await
}

#[tokio::test]
async fn paths_have_one_form() {
    let rows = [
        ("/a/libstdc++6", 200),
        ("/a/libstdc%2B%2B6", 200),
        ("/a/x:amd64", 200),
        ("/a/%C3%A4", 200),
        ("/a/b/", 404),
        ("/nowhere", 404),
        ("/a/../filter", 400),
        ("/a/./b", 400),
        ("/a/..", 400),
        ("//a/b", 400),
        ("/a//b", 400),
        ("/a/b%2Fc", 400),
        ("/a/b%2fc", 400),
        ("/a/b%5Cc", 400),
        ("/a/b%5cc", 400),
        ("/a/b%00", 400),
        ("/a/b%0A", 400),
        ("/a/b%20", 400),
        ("/a/%2E%2E", 400),
        ("/a/%2e", 400),
        ("/a/%61", 400),
        ("/a/%2b", 400),
        ("/a/b%", 400),
        ("/a/b%4", 400),
        ("/a/b%zz", 400),
        ("/a/%FF", 400),
        ("/a/b;x=1", 400),
        ("/a/b|c", 400),
    ];
    for (path, wanted) in rows {
        let Ok(request) = builder("GET", path).body(Body::empty()) else {
            // Refused even before us.
            assert_eq!(wanted, 400, "{path}");
            continue;
        };
        let (status, body) = send(request).await;
        assert_eq!(status, wanted, "{path}: {body}");
        assert_eq!(body["success"], status == 200);
    }
}

#[tokio::test]
async fn headers_are_bounded_and_single() {
    type Row = (&'static str, Vec<(&'static str, String)>, u16);
    let rows: Vec<Row> = vec![
        ("as usual", vec![("accept", "a".into()), ("accept", "b".into())], 200),
        ("two preferences", vec![("prefer", "wait=5".into()), ("prefer", "respond-async".into())], 200),
        ("two tags", vec![("if-none-match", "\"a\"".into()), ("if-none-match", "\"b\"".into())], 200),
        ("8 KiB", vec![("x-pad", "x".repeat(8000))], 200),
        ("more", vec![("x-pad", "x".repeat(8192))], 431),
        ("many", (0..200).map(|_| ("cookie", "y".repeat(40))).collect(), 431),
        ("two hosts", vec![("host", "other".into())], 400),
        ("two ids", vec![("x-request-id", "1".into()), ("x-request-id", "1".into())], 400),
        ("two keys", vec![("idempotency-key", "1".into()), ("idempotency-key", "2".into())], 400),
        ("two unknown", vec![("x-unknown", "1".into()), ("x-unknown", "2".into())], 400),
        ("two authorizations", vec![("authorization", "1".into()), ("authorization", "2".into())], 400),
        ("chunked", vec![("transfer-encoding", "chunked".into())], 411),
        ("too long", vec![("content-length", "1048577".into())], 413),
        ("no number", vec![("content-length", "x".into())], 400),
    ];
    for (what, headers, wanted) in rows {
        let mut request = builder("GET", "/a/b");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let (status, body) = send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(status, wanted, "{what}: {body}");
        if wanted != 200 {
            assert_eq!(body["error"]["code"], "INVALID_REQUEST", "{what}");
        }
    }
    let (status, _) = send(http::Request::get("/a/b").body(Body::empty()).unwrap()).await;
    assert_eq!(status, 400, "no host");
}

#[tokio::test]
async fn bodies_are_json_of_the_right_shape() {
    let rows = [
        (r#"{"count": 3, "options": {"deep": true}}"#, 200, ""),
        (r#"{"count": 3"#, 400, ""),
        (r#"{"count": 3} x"#, 400, ""),
        ("\"\u{0}\"", 400, ""),
        (r#"{"count": 300}"#, 422, "count"),
        (r#"{"count": "3"}"#, 422, "count"),
        (r#"{"count": 3, "colour": 1}"#, 422, "colour"),
        (r#"{"count": 3, "count": 3}"#, 422, "count"),
        (r#"{"count": 3, "options": {"dep": true}}"#, 422, "options.dep"),
        (r#"{"count": 3, "options": {"deep": 1}}"#, 422, "options.deep"),
        ("{}", 422, "count"),
        ("[]", 422, ""),
        // In the order of the fields, as the parser would take it.
        (" [3, null]", 422, ""),
    ];
    for (text, wanted, field) in rows {
        let (status, body) = post_json("/json", text).await;
        assert_eq!(status, wanted, "{text}: {body}");
        assert_eq!(body["error"]["details"]["field"].as_str().unwrap_or_default(), field, "{text}: {body}");
        assert!(field.is_empty() || body["error"]["message"].as_str().unwrap().contains(field), "{body}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(post_json("/json", &deep).await.0, 422);
    let deep = format!("{{\"options\": {deep}");
    assert_eq!(post_json("/json", &deep).await.0, 422);
    assert_eq!(post_json("/maybe", r#"{"count": 1}"#).await.1["data"], true);
    let (status, body) = send(builder("POST", "/maybe").body(Body::empty()).unwrap()).await;
    assert_eq!((status, &body["data"]), (200, &Value::Bool(false)));
    let (status, _) = send(builder("POST", "/json").body(Body::empty()).unwrap()).await;
    assert_eq!(status, 400, "an empty body where one is needed");
}

#[tokio::test]
async fn bodies_are_declared_as_json() {
    let rows = [
        ("application/json", "", 200),
        ("Application/JSON; charset=UTF-8", "", 200),
        ("application/json; charset=latin1", "", 415),
        ("text/plain", "", 415),
        ("application/x-www-form-urlencoded", "", 415),
        ("application/jsonx", "", 415),
        ("", "", 415),
        ("application/json", "gzip", 415),
    ];
    for (kind, encoding, wanted) in rows {
        let mut request = builder("POST", "/json").header("content-length", 11);
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        if !encoding.is_empty() {
            request = request.header("content-encoding", encoding);
        }
        let (status, body) = send(request.body(Body::from("{\"count\":1}")).unwrap()).await;
        assert_eq!(status, wanted, "{kind}: {body}");
    }
}

#[tokio::test]
async fn a_body_that_turns_out_too_long_is_refused_as_it_comes() {
    let long = Body::from(vec![b' '; 1_048_577]);
    let (status, body) = send(builder("POST", "/json").body(long).unwrap()).await;
    assert_eq!(status, 413, "{body}");
    assert_eq!(body["error"]["details"]["limit_bytes"], 1_048_576);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_given_up() {
    let stalls = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
    let (status, body) = send(builder("POST", "/json").body(stalls).unwrap()).await;
    assert_eq!(status, 408, "{body}");
}

#[tokio::test]
async fn query_parameters_are_known_and_fit() {
    let rows = [
        ("/filter", 200, ""),
        ("/filter?limit=5", 200, ""),
        ("/filter?limit=-1", 422, "limit"),
        ("/filter?limit=many", 422, "limit"),
        ("/filter?limits=5", 422, "limits"),
        ("/filter?limit=1&limit=2", 422, "limit"),
    ];
    for (path, wanted, field) in rows {
        let (status, body) = send(builder("GET", path).body(Body::empty()).unwrap()).await;
        assert_eq!(status, wanted, "{path}: {body}");
        assert_eq!(body["error"]["details"]["field"].as_str().unwrap_or_default(), field, "{path}: {body}");
    }
}
