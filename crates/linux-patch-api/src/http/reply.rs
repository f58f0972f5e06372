//! Shorthands for the answers that several handlers give.

use axum::{
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use patch_service::{RawData, Refusal, Reply};
use patch_types::{ErrorCode, ErrorDetail, api::Health};
use serde::{Deserialize, Serialize};

use crate::inventory::Cached;

/// A query or a body that has no fields.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// 200 with this.
pub(super) fn ok<T: Serialize>(data: T) -> Result<Response, Refusal> {
    Ok(Reply::ok(data).into_response())
}

/// 200 with what is kept ready, or 304 if the client has it.
pub(super) fn cached(request: &HeaderMap, cached: &Cached) -> Result<Response, Refusal> {
    Ok(RawData::new(cached.body.clone()).etag(&cached.etag, request).into_response())
}

/// 422 about one field.
pub(super) fn invalid_field((field, message): (&'static str, String)) -> Refusal {
    Refusal::new(ErrorCode::InvalidRequest, message).with("field", field)
}

/// The root side answered another question.
pub(super) fn wrong_answer(question: &str) -> Refusal {
    Refusal::new(
        ErrorCode::ServiceUnhealthy,
        format!(
            "the root side answered another question than {question}; daemon and executor may be of different versions: restart both"
        ),
    )
}

/// 500 for a fault of this program.
pub(super) fn internal(what: &str, error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "{what}");
    Refusal::new(ErrorCode::ServiceUnhealthy, format!("{what}: {error}"))
        .status(StatusCode::INTERNAL_SERVER_ERROR)
}

/// 503 with the whole state, so that whoever asks sees what is wrong.
pub(super) fn unhealthy(health: &Health) -> Refusal {
    let failing: Vec<&str> =
        health.checks.iter().filter(|c| !c.healthy).map(|c| c.message.as_str()).collect();
    let mut error = ErrorDetail::new(ErrorCode::ServiceUnhealthy, failing.join("; "));
    if let Ok(serde_json::Value::Object(details)) = serde_json::to_value(health) {
        error.details = details;
    }
    error.into()
}
