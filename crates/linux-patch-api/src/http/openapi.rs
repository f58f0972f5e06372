//! The description of the API in OpenAPI 3.1, made from the routes themselves. Handlers describe the value in `data`;
//! the envelope around it, and the errors that every operation can answer with, are added here.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use patch_service::Refusal;
use patch_types::{ErrorCode, ErrorDetail};
use serde_json::{Map, Value, json};
use utoipa::{
    OpenApi,
    openapi::{
        OpenApi as Document,
        extensions::ExtensionsBuilder,
        path::{Operation, Paths},
    },
};

use super::router;
use crate::config::Role;

/// The checked-in document: what is served is what was reviewed, and it costs no memory until somebody asks. A test
/// compares it with what [`text`] makes of the code, which is no part of the shipped program.
pub const CHECKED_IN: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/linux-patch-api.json"));

/// The extension that names an operation's role.
const ROLE: &str = "x-required-role";

/// What every operation can answer, whatever it does.
const ALWAYS: [(&str, &str); 7] = [
    ("400", "The request cannot be read (INVALID_REQUEST)"),
    ("403", "The identity's role does not suffice, or a browser sent the request (AUTHZ_FORBIDDEN)"),
    ("422", "The request can be read but is not acceptable (INVALID_REQUEST)"),
    (
        "429",
        "Too many requests from this identity (RATE_LIMIT_EXCEEDED); `Retry-After` says when to come back",
    ),
    ("431", "The header block is too large (INVALID_REQUEST)"),
    ("500", "The agent failed (the code says how)"),
    ("503", "The agent, or a part of it that is needed here, is not available (SERVICE_UNHEALTHY)"),
];

/// What operations with a body can answer besides.
const WITH_BODY: [(&str, &str); 4] = [
    ("408", "The body did not come in time (INVALID_REQUEST)"),
    ("411", "The body has no length (INVALID_REQUEST)"),
    ("413", "The body is larger than 1 MiB (INVALID_REQUEST)"),
    ("415", "The body is not application/json (INVALID_REQUEST)"),
];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "linux-patch-api",
        description = "Lists, installs, updates, removes and patches the packages of one Linux host. Every answer is wrapped in an envelope; every change is a job.",
        license(name = "MIT OR Apache-2.0"),
        contact()
    ),
    tags(
        (name = "packages", description = "What is installed, and changing it"),
        (name = "patches", description = "Available updates"),
        (name = "system", description = "The host itself"),
        (name = "jobs", description = "Changes, from acceptance to their end"),
        (name = "observation", description = "Health, metrics, this document")
    ),
    components(schemas(ErrorDetail))
)]
struct Head;

/// The document without operations.
pub(super) fn head() -> Document {
    Head::openapi()
}

/// Notes which role a route takes.
pub(super) fn note_role(paths: &mut Paths, role: Role) {
    for item in paths.paths.values_mut() {
        for operation in
            [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten()
        {
            note_in(operation, role);
        }
    }
}

fn note_in(operation: &mut Operation, role: Role) {
    let extension = ExtensionsBuilder::new().add(ROLE, role.as_str()).build();
    match &mut operation.extensions {
        Some(extensions) => extensions.merge(extension),
        none => *none = Some(extension),
    }
}

/// The whole document.
///
/// # Errors
/// When a schema cannot be written as JSON.
pub fn document() -> Result<Value, serde_json::Error> {
    let (_, api) = router::table().split_for_parts();
    let mut document = serde_json::to_value(api)?;
    document["openapi"] = json!("3.1.0");
    document["info"]["version"] = json!(crate::VERSION);
    document["security"] = json!([{ "mutualTls": [] }]);
    document["components"]["securitySchemes"] = json!({
        "mutualTls": {
            "type": "mutualTLS",
            "description": "TLS 1.3 with a client certificate of the internal CA, from an address on the allow list",
        }
    });
    document["components"]["schemas"]["Failure"] = failure();
    // The codes' texts come out of a macro, where the derive does not see them.
    let codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    document["components"]["schemas"]["ErrorCode"]["enum"] = json!(codes);
    if let Some(paths) = document["paths"].as_object_mut() {
        for operations in paths.values_mut().filter_map(Value::as_object_mut) {
            for operation in operations.values_mut().filter(|o| o.is_object()) {
                finish(operation);
            }
        }
    }
    Ok(document)
}

/// The text of the document as it is checked in.
///
/// # Errors
/// As [`document`].
pub fn text() -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string_pretty(&document()?)? + "\n")
}

fn finish(operation: &mut Value) {
    let role = operation[ROLE].as_str().unwrap_or("admin").to_owned();
    let text = operation["description"].as_str().map(|d| format!("{d}\n\n")).unwrap_or_default();
    operation["description"] = json!(format!("{text}Takes the role `{role}`."));
    let has_body = operation.get("requestBody").is_some();
    if let Some(schema) = operation.pointer_mut("/requestBody/content/application~1json/schema") {
        not_null(schema);
    }
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    let more = if has_body { &WITH_BODY[..] } else { &[] };
    for (status, description) in ALWAYS.iter().chain(more) {
        responses.entry(*status).or_insert_with(|| json!({ "description": description }));
    }
    for (status, response) in responses.iter_mut() {
        if matches!(status.as_bytes().first(), Some(b'4' | b'5')) && !response["content"].is_object() {
            response["content"] =
                json!({ "application/json": { "schema": { "$ref": "#/components/schemas/Failure" } } });
        } else if let Some(schema) = response.pointer_mut("/content/application~1json/schema") {
            *schema = success(schema.take());
        }
        if status == "202" {
            response["headers"] = json!({
                "Location": { "description": "Where the job is", "schema": { "type": "string" } }
            });
        }
    }
}

/// A body that may be absent is not one that may be `null`.
fn not_null(schema: &mut Value) {
    // Indexing would put a null there.
    let Some(choices) = schema.get_mut("oneOf").and_then(Value::as_array_mut) else { return };
    choices.retain(|choice| choice["type"] != "null");
    if let [only] = choices.as_mut_slice() {
        *schema = only.take();
    }
}

fn success(data: Value) -> Value {
    let mut properties = properties(true);
    properties.insert("data".into(), data);
    properties.insert("error".into(), json!({ "type": "null" }));
    envelope(&properties)
}

fn failure() -> Value {
    let mut properties = properties(false);
    properties.insert("data".into(), json!({ "type": "null" }));
    properties.insert("error".into(), json!({ "$ref": "#/components/schemas/ErrorDetail" }));
    envelope(&properties)
}

fn properties(success: bool) -> Map<String, Value> {
    let properties = json!({
        "success": { "type": "boolean", "const": success },
        "request_id": { "type": "string", "format": "uuid", "description": "Also the header X-Request-Id" },
        "timestamp": { "type": "string", "format": "date-time", "description": "When the answer was made, in UTC" },
    });
    properties.as_object().cloned().unwrap_or_default()
}

fn envelope(properties: &Map<String, Value>) -> Value {
    json!({
        "type": "object",
        "required": ["success", "request_id", "timestamp", "data", "error"],
        "properties": properties,
    })
}

/// This document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "getOpenApi",
    tag = "observation",
    responses((status = 200, description = "The OpenAPI document, without the envelope", content_type = "application/vnd.oai.openapi+json"))
)]
pub(super) async fn get() -> Result<Response, Refusal> {
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], CHECKED_IN).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_document_is_the_generated_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/linux-patch-api.json");
        let generated = text().unwrap();
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(path, &generated).unwrap();
        }
        let checked_in = std::fs::read_to_string(path).unwrap();
        assert!(
            checked_in == generated,
            "openapi/linux-patch-api.json is out of date: cargo xtask openapi writes it anew; review the difference"
        );
    }

    #[test]
    fn every_operation_is_complete() {
        let document = document().unwrap();
        let mut ids = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            assert!(path.starts_with(router::PREFIX), "{path}");
            for (method, operation) in item.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path}"));
                assert!(ids.insert(id.to_owned()), "{id} twice");
                assert!(operation["tags"][0].is_string(), "{id}");
                assert!(operation["summary"].is_string(), "{id}");
                assert!(operation[ROLE].is_string(), "{id}");
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(value: &Value, document: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(target)) = map.get("$ref") {
                        let pointer = target.trim_start_matches('#');
                        assert!(document.pointer(pointer).is_some(), "{target}");
                    }
                    map.values().for_each(|v| walk(v, document));
                }
                Value::Array(items) => items.iter().for_each(|v| walk(v, document)),
                _ => {}
            }
        }
        let document = document().unwrap();
        walk(&document, &document);
    }
}
