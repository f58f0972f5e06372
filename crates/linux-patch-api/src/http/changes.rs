//! What all changes have in common: a dry run answers with the plan, everything else becomes a job.

use std::{convert::Infallible, future::Future};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, Method, StatusCode, header, request::Parts},
    response::{IntoResponse as _, Response},
};
use patch_service::{Refusal, Reply};
use patch_types::{
    ChangeOptions, ErrorCode, ErrorDetail, OnFailure, Operation, Plan, Rehearse, Unrehearsed, api::Job,
    plan::PlanHash, rollback::MAX_CONFIRM_SECONDS,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::{
    app::App,
    caller::Caller,
    observe::Deadline,
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

/// What surrounds the request for a change: who sent it, where to, and until when it has to be answered.
pub(super) struct Asked {
    caller: Caller,
    method: Method,
    path: String,
    headers: HeaderMap,
    deadline: Deadline,
}

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self {
            caller: Caller::of(&parts.extensions),
            method: parts.method.clone(),
            path: parts.uri.path().to_owned(),
            headers: parts.headers.clone(),
            deadline: Deadline::of(&parts.extensions),
        })
    }
}

/// A change as a client asked for it.
pub(super) struct Change<O> {
    /// What is to be done. Looked at only if the request is not the repetition of an earlier one, whose meaning may
    /// have gone with what it did.
    pub operation: O,
    /// Whether only to plan it.
    pub dry_run: bool,
    /// The plan that was approved.
    pub if_plan: Option<PlanHash>,
    /// How it is to be made.
    pub options: ChangeOptions,
    /// The request, for the job's record.
    pub request: serde_json::Value,
}

/// How a change is to be made, from the fields that every body has for that.
///
/// # Errors
/// 422 for a time to confirm that is none.
pub(super) fn options(
    on_failure: Option<OnFailure>,
    confirm_within: Option<u32>,
    rehearse: Option<Rehearse>,
) -> Result<ChangeOptions, ErrorDetail> {
    if let Some(seconds) = confirm_within
        && !(1..=MAX_CONFIRM_SECONDS).contains(&seconds)
    {
        let message = format!("confirm_within is {seconds} seconds; 1 to {MAX_CONFIRM_SECONDS} are possible");
        return Err(ErrorDetail::new(ErrorCode::InvalidRequest, message).with("field", "confirm_within"));
    }
    Ok(ChangeOptions { on_failure: on_failure.unwrap_or_default(), confirm_within, rehearse })
}

/// Whether a change is to be rehearsed, from the fields that every body has for that.
///
/// # Errors
/// 422 for what to do without a rehearsal where none is asked for.
pub(super) fn rehearsal(
    rehearse: bool,
    unrehearsed: Option<Unrehearsed>,
    dry_run: bool,
) -> Result<Option<Rehearse>, ErrorDetail> {
    if !rehearse && unrehearsed.is_some() {
        let message = "unrehearsed means nothing without rehearse";
        return Err(ErrorDetail::new(ErrorCode::InvalidRequest, message).with("field", "unrehearsed"));
    }
    let otherwise = unrehearsed.unwrap_or_default();
    Ok(rehearse.then_some(Rehearse { only: dry_run, otherwise }))
}

/// A request as it goes into the job's record.
pub(super) fn as_asked<T: Serialize>(body: &T) -> serde_json::Value {
    serde_json::to_value(body).unwrap_or_default()
}

/// Checks a change, then plans it or makes it a job.
pub(super) async fn carry_out<O>(app: &App, asked: Asked, change: Change<O>) -> Result<Response, Refusal>
where
    O: Future<Output = Result<Operation, ErrorDetail>> + Send,
{
    let Change { operation, dry_run, if_plan, options, request } = change;
    // A rehearsal takes its time, so it is a job also where it is all that is wanted.
    if dry_run && options.rehearse.is_none() {
        let plan = app.executor().plan(checked(operation).await?).await?;
        app.shown().remember(&plan);
        return reply::ok(plan);
    }
    let key = prefer::idempotency_key(&asked.headers)?;
    let idempotency = key.map(|key| same_request(key, &asked, &request)).transpose()?;
    let requester = asked.caller.requester();
    if let Some(idempotency) = &idempotency
        && let Some(earlier) = app.jobs().earlier(&requester.identity, idempotency)
        && let Some(job) = app.jobs().get(earlier).await
    {
        return Ok(answer(app, &asked, job).await);
    }
    let prepared = async {
        let operation = checked(operation).await?;
        if let Some(approved) = &if_plan {
            as_approved(app, &operation, approved).await?;
        }
        Ok::<_, Refusal>(operation)
    };
    // What is not ready by then is given up: a job that is accepted has to be answered for while there is time.
    let operation = asked.deadline.limit(prepared).await.ok_or_else(|| too_late(app))??;
    let submission = Submission {
        operation,
        limits: None,
        options,
        requester,
        request,
        if_plan,
        not_after: None,
        idempotency,
    };
    let job = app.jobs().submit(submission).await?.job;
    Ok(answer(app, &asked, job).await)
}

async fn checked(
    operation: impl Future<Output = Result<Operation, ErrorDetail>>,
) -> Result<Operation, ErrorDetail> {
    let operation = operation.await?;
    operation.check().map_err(|e| ErrorDetail::new(ErrorCode::InvalidRequest, e.to_string()))?;
    Ok(operation)
}

/// 202, or the ended job if the client wants to wait for it and it ends in time.
async fn answer(app: &App, asked: &Asked, job: Job) -> Response {
    let Some(wanted) = prefer::wait(&asked.headers) else { return accepted(job).into_response() };
    let granted = wanted.min(asked.deadline.left());
    let answer = match app.jobs().wait(job.job_id, granted).await {
        Some(ended) if ended.status.is_terminal() => Reply::ok(ended),
        Some(later) => accepted(later),
        None => accepted(job),
    };
    answer.header(PREFERENCE_APPLIED, &format!("wait={}", granted.as_secs())).into_response()
}

fn too_late(app: &App) -> Refusal {
    let seconds = app.settings().timeout.as_secs();
    let message = format!(
        "the change could not be prepared within {seconds} s, so nothing was begun; ask again, or raise server.timeout in config.yaml"
    );
    Refusal::new(ErrorCode::ServiceUnhealthy, message).with("timeout_seconds", seconds)
}

/// Refuses when the plan of this moment is another one than was approved. The root side compares again before it begins.
async fn as_approved(app: &App, operation: &Operation, approved: &PlanHash) -> Result<(), Refusal> {
    let plan = app.executor().plan(operation.clone()).await?;
    let difference = app.shown().difference(approved, &plan);
    // What another job has not done yet counts as still to do, so a plan that somebody has seen is compared when it is this
    // one's turn. A job that waits to be confirmed does nothing meanwhile, and a hash that nobody was shown stays unknown.
    let is_changing = |job| app.jobs().summary(job).is_none_or(|job| job.confirm_by.is_none());
    if plan.hash == *approved || (difference.is_some() && plan.during.is_some_and(is_changing)) {
        return Ok(());
    }
    let how = if difference.is_some() { "`details.difference` says how, and " } else { "" };
    let message = format!(
        "the plan of this moment is another one than was approved; {how}`details.plan` is the whole: if it is right, \
         approve its hash"
    );
    let mut error = ErrorDetail::new(ErrorCode::PlanDrift, message)
        .with("approved", approved.as_str())
        .with("current", plan.hash.as_str())
        .with("plan", as_asked(&plan));
    if let Some(difference) = difference {
        error = error.with("difference", as_asked(&difference));
    }
    // It is shown with the refusal, and may be approved by that.
    app.shown().remember(&plan);
    Err(error.into())
}

/// A key with what it was sent with: method, path, and the options as they were understood, so that a retry may space
/// its JSON otherwise. Nothing of the host's state is in it.
fn same_request(key: String, asked: &Asked, request: &serde_json::Value) -> Result<Idempotency, Refusal> {
    let text = serde_json::to_vec(&(asked.method.as_str(), &asked.path, request))
        .map_err(|e| reply::internal("the request could not be written down", e))?;
    Ok(Idempotency { key, body_sha256: hex::encode(Sha256::digest(&text)) })
}

/// 202 with the job and where to find it, without what is known only later.
fn accepted(job: Job) -> Reply<Job> {
    let location = format!("{}/jobs/{}", super::PREFIX, job.job_id);
    let job = Job { plan: None, output: None, log: Vec::new(), ..job };
    Reply::new(StatusCode::ACCEPTED, job).header(header::LOCATION, &location)
}
