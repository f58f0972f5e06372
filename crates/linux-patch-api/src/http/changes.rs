//! What all changes have in common: a dry run answers with the plan, everything else becomes a job.

use axum::{
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use patch_service::{Refusal, Reply};
use patch_types::{ErrorCode, ErrorDetail, Operation, Plan, api::Job, plan::PlanHash};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::{
    app::App,
    caller::Caller,
    prefer::{self, PREFERENCE_APPLIED},
    reply,
};
use crate::jobs::{Idempotency, Submission};

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
#[expect(dead_code, clippy::large_enum_variant, reason = "describes the two answers; never made")]
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
) -> Result<Response, Refusal> {
    change.operation.check().map_err(|e| ErrorDetail::new(ErrorCode::InvalidRequest, e.to_string()))?;
    if change.dry_run {
        let plan = app.executor().plan(change.operation).await?;
        return reply::ok(plan);
    }
    let idempotency = prefer::idempotency_key(headers)?.map(|key| same_request(key, &change)).transpose()?;
    // A request that is sent again must find its job, not the plan that this job has left behind.
    let is_repeated =
        idempotency.as_ref().is_some_and(|i| app.jobs().earlier(&caller.requester().identity, i).is_some());
    if let Some(approved) = change.if_plan.as_ref().filter(|_| !is_repeated) {
        as_approved(app, &change.operation, approved).await?;
    }
    let submission = Submission {
        operation: change.operation,
        limits: None,
        requester: caller.requester(),
        request: change.request,
        if_plan: change.if_plan,
        idempotency,
    };
    let job = app.jobs().submit(submission).await?.job;
    app.notice_end(job.job_id);
    let Some(asked) = prefer::wait(headers) else { return Ok(accepted(job).into_response()) };
    let granted = asked.min(app.settings().timeout);
    let answer = match app.jobs().wait(job.job_id, granted).await {
        Some(ended) if ended.status.is_terminal() => Reply::ok(ended),
        Some(later) => accepted(Job { plan: None, output: None, log: Vec::new(), ..later }),
        None => accepted(job),
    };
    Ok(answer.header(PREFERENCE_APPLIED, &format!("wait={}", granted.as_secs())).into_response())
}

/// Refuses when the plan of this moment is another one than was approved. The root side compares again before it begins.
async fn as_approved(app: &App, operation: &Operation, approved: &PlanHash) -> Result<(), Refusal> {
    let plan = app.executor().plan(operation.clone()).await?;
    if plan.hash == *approved {
        return Ok(());
    }
    let message = "the plan of this moment is another one than was approved; look at `details.plan` and, if it is \
                   right, approve its hash";
    let error = ErrorDetail::new(ErrorCode::PlanDrift, message)
        .with("approved", approved.as_str())
        .with("current", plan.hash.as_str())
        .with("plan", as_asked(&plan));
    Err(error.into())
}

/// A key with what it was sent with. The operation holds what stands in the path, the request what stands elsewhere;
/// both as they were understood, so that a retry may space its JSON otherwise.
fn same_request(key: String, change: &Change) -> Result<Idempotency, Refusal> {
    let text = serde_json::to_vec(&(&change.operation, &change.request))
        .map_err(|e| reply::internal("the request could not be written down", e))?;
    Ok(Idempotency { key, body_sha256: hex::encode(Sha256::digest(&text)) })
}

/// 202 with the job and where to find it.
fn accepted(job: Job) -> Reply<Job> {
    let location = format!("{}/jobs/{}", super::PREFIX, job.job_id);
    Reply::new(StatusCode::ACCEPTED, job).header(header::LOCATION, &location)
}
