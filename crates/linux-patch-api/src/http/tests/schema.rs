//! Real answers against the document: above all that what can be null is said to be nullable.

use axum::http::Method;
use patch_types::{event::QueryResult, reboot::WindowStatus};
use serde_json::{Value, json};

use super::{Api, request};

/// What is wrong with a value by a schema, with its place. Knows the keywords that the document uses.
fn violations(schema: &Value, value: &Value, document: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(target) = schema["$ref"].as_str() {
        let Some(target) = document.pointer(target.trim_start_matches('#')) else {
            return found.push(format!("{at}: no {target}"));
        };
        return violations(target, value, document, at, found);
    }
    let fits = |s: &Value| {
        let mut inner = Vec::new();
        violations(s, value, document, at, &mut inner);
        inner.is_empty()
    };
    for many in ["oneOf", "anyOf"] {
        if let Some(options) = schema[many].as_array()
            && !options.iter().any(fits)
        {
            found.push(format!("{at}: {value} fits none of {many}"));
        }
    }
    for all in schema["allOf"].as_array().into_iter().flatten() {
        violations(all, value, document, at, found);
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    if !kinds.is_empty() && !kinds.iter().any(|k| is(k)) {
        found.push(format!("{at}: {value} is not {kinds:?}"));
    }
    if schema["enum"].as_array().is_some_and(|known| !known.contains(value)) {
        found.push(format!("{at}: {value} is not in the enumeration"));
    }
    if schema.get("const").is_some_and(|c| c != value) {
        found.push(format!("{at}: {value} is not the constant"));
    }
    if let (Some(properties), Some(object)) = (schema["properties"].as_object(), value.as_object()) {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(name) {
                found.push(format!("{at}: {name} is missing"));
            }
        }
        for (name, inner) in object {
            match properties.get(name) {
                Some(schema) => violations(schema, inner, document, &format!("{at}.{name}"), found),
                None => found.push(format!("{at}: {name} is not described")),
            }
        }
    }
    if let (Some(items), Some(array)) = (schema.get("items"), value.as_array()) {
        for (i, inner) in array.iter().enumerate() {
            violations(items, inner, document, &format!("{at}[{i}]"), found);
        }
    }
}

/// A reboot window, and a reboot that is queued for it.
fn status() -> WindowStatus {
    serde_json::from_value(json!({
        "has_window": true, "next": "2100-01-03T04:15:00Z",
        "reasons": [{"code": "outside_window", "message": "the window is closed"}],
        "queued": [{
            "job_id": "0198c5f2-0000-7000-8000-000000000001", "by": "ann", "reason": null, "force": false,
            "asked_at": "2100-01-01T00:00:00Z", "not_before": "2100-01-01T00:00:00Z", "is_under_way": false
        }]
    }))
    .unwrap()
}

#[tokio::test]
async fn answers_are_as_described() {
    let api = Api::new().await;
    let document = crate::http::openapi::document().unwrap();
    let install = json!({"packages": [{"name": "bash"}]}).to_string();
    let accepted = api.send(request("ops", Method::POST, "/packages", Some(install.clone()))).await;
    let id = accepted.data()["job_id"].as_str().unwrap().to_owned();
    for (method, path, route, body) in [
        (Method::GET, "/packages".to_owned(), "/packages", None),
        (Method::GET, "/packages?nonsense=1".to_owned(), "/packages", None),
        (Method::GET, "/patches".to_owned(), "/patches", None),
        (Method::GET, "/jobs".to_owned(), "/jobs", None),
        (Method::GET, format!("/jobs/{id}"), "/jobs/{id}", None),
        (Method::GET, "/jobs/00000000-0000-0000-0000-000000000000".to_owned(), "/jobs/{id}", None),
        (Method::GET, "/system/info".to_owned(), "/system/info", None),
        (Method::GET, "/system/reboot".to_owned(), "/system/reboot", None),
        (Method::GET, "/compliance".to_owned(), "/compliance", None),
        (Method::GET, "/health".to_owned(), "/health", None),
        (Method::POST, "/packages".to_owned(), "/packages", Some(install)),
    ] {
        if route == "/system/reboot" {
            api.answers(QueryResult::RebootWindow(status()));
        }
        let answer = api.send(request("ops", method.clone(), &path, body)).await;
        let operation = &document["paths"][format!("/api/v1{route}")][method.as_str().to_lowercase()];
        let schema = &operation["responses"][answer.status.as_str()]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{method} {path} answered {}, which is not described", answer.status);
        let mut found = Vec::new();
        violations(schema, &answer.json(), &document, "", &mut found);
        assert_eq!(found, Vec::<String>::new(), "{method} {path}");
    }
}
