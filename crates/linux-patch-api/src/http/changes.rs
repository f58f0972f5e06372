//! What all changes have in common: a dry run answers with the plan, everything else becomes a job.

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use patch_types::{
    ErrorCode, ErrorDetail, Operation, Plan,
    api::Job,
    plan::PlanHash,
};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    app::App,
    caller::Caller,
    prefer::{self, PREFERENCE_APPLIED},
    reply::{self, ApiError},
};

/// The headers of every change, for the document.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes headers; they are read one by one")]
pub(super) struct ChangeHeaders {
    /// `wait=N`: answer with the ended job if it ends within N seconds (RFC 7240).
    #[param(rename = "Prefer", example = "wait=20")]
    prefer: Option<String>,
    /// A key of the client's choice: the same request with the same key returns the first one's job, for 24 hours.
    #[param(rename = "Idempotency-Key", max_length = 255)]
    idempotency_key: Option<String>,
}

/// What a change answers with 200, for the document.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes the two answers; each is written by itself")]
pub(super) enum PlanOrJob {
    /// The plan of a dry run.
    Plan(Plan),
    /// The ended job.
    Job(Job),
}

/// A change as a client asked for it.
pub(super) struct Change {
    /// What is to be done.
    pub operation: Operation,
    /// Whether only to plan it.
    pub dry_run: bool,
    /// The plan that was approved.
    pub if_plan: Option<PlanHash>,
    /// The request, for the job's record.
    pub request: serde_json::Value,
}

/// A request as it goes into the job's record.
pub(super) fn as_asked<T: Serialize>(body: &T) -> serde_json::Value {
    serde_json::to_value(body).unwrap_or_default()
}

/// Checks a change, then plans it or makes it a job.
pub(super) async fn carry_out(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    change: Change,
) -> Result<Response, ApiError> {
    change.operation.check().map_err(|e| ErrorDetail::new(ErrorCode::InvalidRequest, e.to_string()))?;
    if change.if_plan.is_some() {
        return Err(reply::later("if_plan", "leave it out, or compare the hash of a dry_run yourself"));
    }
    if change.dry_run {
        let plan = app.executor().plan(change.operation).await?;
        return reply::data(caller, StatusCode::OK, &plan);
    }
    let key = prefer::idempotency_key(headers)?;
    let job = app.jobs().submit(change.operation, caller.requester(), change.request, key).await?;
    match prefer::wait(headers) {
        None => accepted(caller, &job),
        Some(asked) => {
            let granted = asked.min(app.settings().timeout);
            let ended = app.jobs().wait(job.job_id, granted).await;
            let mut response = match ended {
                Some(job) if job.status.is_terminal() => reply::data(caller, StatusCode::OK, &job)?,
                Some(job) => accepted(caller, &job)?,
                None => accepted(caller, &job)?,
            };
            if let Ok(value) = HeaderValue::try_from(format!("wait={}", granted.as_secs())) {
                response.headers_mut().insert(PREFERENCE_APPLIED, value);
            }
            Ok(response)
        }
    }
}

/// 202 with the job and where to find it.
fn accepted(caller: &Caller, job: &Job) -> Result<Response, ApiError> {
    let mut response = reply::data(caller, StatusCode::ACCEPTED, job)?;
    if let Ok(location) = HeaderValue::try_from(format!("{}/jobs/{}", super::PREFIX, job.job_id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}
