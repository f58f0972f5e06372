//! `/jobs`: what was asked for, what became of it, and calling it off.

use axum::{
    extract::State,
    http::StatusCode,
    response::Response,
};
use patch_service::strict::StrictQuery;
use patch_types::{
    ErrorCode, ErrorDetail, JobId, JobStatus,
    api::{Job, JobList},
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    app::App,
    caller::Caller,
    changes,
    path::StrictPath,
    reply::{self, ApiError},
};
use crate::inventory::filter;

/// The query of `GET /jobs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct JobQuery {
    /// Only jobs of this status.
    #[param(inline)]
    status: Option<JobStatus>,
    /// Only jobs of this kind, such as `install`.
    #[param(max_length = 64)]
    kind: Option<String>,
    /// Only jobs of this identity.
    #[param(max_length = 256)]
    identity: Option<String>,
    /// At most this many; all if absent.
    #[param(minimum = 1)]
    limit: Option<usize>,
    /// Leave out this many first.
    offset: Option<usize>,
}

const KINDS: [&str; 6] = ["install", "update", "remove", "hold", "apply_patches", "refresh"];

impl JobQuery {
    fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(kind) = &self.kind
            && !KINDS.contains(&kind.as_str())
        {
            return Err(("kind", format!("{kind:?} is not one of {}", KINDS.join(", "))));
        }
        filter::check_page(self.limit)
    }

    fn passes(&self, job: &Job) -> bool {
        self.status.is_none_or(|s| s == job.status)
            && self.kind.as_ref().is_none_or(|k| *k == job.kind)
            && self.identity.as_ref().is_none_or(|i| *i == job.requested_by.identity)
    }
}

/// Lists the jobs that are kept, newest first, without logs, plans and results.
#[utoipa::path(
    get,
    path = "/jobs",
    operation_id = "listJobs",
    tag = "jobs",
    params(JobQuery),
    responses((status = 200, description = "The jobs", body = JobList))
)]
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    StrictQuery(query): StrictQuery<JobQuery>,
) -> Result<Response, ApiError> {
    query.check().map_err(reply::invalid_field)?;
    let mut jobs = app.jobs().list();
    jobs.retain(|job| query.passes(job));
    let total = jobs.len();
    let jobs = filter::page(jobs, query.offset, query.limit);
    reply::data(&caller, StatusCode::OK, &JobList { jobs, total })
}

/// Shows one job: status, progress, plan, log, error, results.
#[utoipa::path(
    get,
    path = "/jobs/{id}",
    operation_id = "getJob",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job")),
    responses(
        (status = 200, description = "The job", body = Job),
        (status = 404, description = "There is no such job (JOB_NOT_FOUND)"),
    )
)]
pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    StrictPath(id): StrictPath<JobId>,
) -> Result<Response, ApiError> {
    let job = app.jobs().get(id).await.ok_or_else(|| unknown(id))?;
    reply::data(&caller, StatusCode::OK, &job)
}

/// Cancels a job while that is safe: as long as the package database is not being changed.
#[utoipa::path(
    delete,
    path = "/jobs/{id}",
    operation_id = "cancelJob",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job")),
    responses(
        (status = 200, description = "The job: cancelled, or about to be", body = Job),
        (status = 404, description = "There is no such job (JOB_NOT_FOUND)"),
        (status = 409, description = "It has ended, or the package database is being changed (JOB_CONFLICT)"),
    )
)]
pub(super) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    StrictPath(id): StrictPath<JobId>,
) -> Result<Response, ApiError> {
    let job = app.jobs().cancel(id).await?;
    reply::data(&caller, StatusCode::OK, &job)
}

/// Undoes what a job changed. Not available in this version.
#[utoipa::path(
    post,
    path = "/jobs/{id}/rollback",
    operation_id = "rollbackJob",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job"), changes::ChangeHeaders),
    request_body(content = Option<RollbackRequest>, description = "How"),
    responses(
        (status = 202, description = "Accepted as a job", body = Job),
        (status = 404, description = "There is no such job (JOB_NOT_FOUND)"),
    )
)]
pub(super) async fn rollback(
    State(app): State<App>,
    StrictPath(id): StrictPath<JobId>,
    _: reply::OptionalJson<RollbackRequest>,
) -> Result<Response, ApiError> {
    app.jobs().get(id).await.ok_or_else(|| unknown(id))?;
    Err(reply::later("rolling a job back", "install the former versions with allow_downgrade"))
}

/// The body of a rollback.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(dead_code, reason = "checked now, acted upon once rolling back is possible")]
pub(super) struct RollbackRequest {
    /// Even if later jobs touched the same packages.
    force: bool,
}

/// Keeps a change that was made with `confirm_within`. Not available in this version.
#[utoipa::path(
    post,
    path = "/jobs/{id}/confirm",
    operation_id = "confirmJob",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job")),
    request_body(content = Option<reply::Nothing>, description = "None, or an empty object"),
    responses(
        (status = 200, description = "The job", body = Job),
        (status = 404, description = "There is no such job (JOB_NOT_FOUND)"),
    )
)]
pub(super) async fn confirm(
    State(app): State<App>,
    StrictPath(id): StrictPath<JobId>,
    _: reply::OptionalJson<reply::Nothing>,
) -> Result<Response, ApiError> {
    app.jobs().get(id).await.ok_or_else(|| unknown(id))?;
    Err(reply::later("confirming a job", "no job waits to be confirmed, since confirm_within is refused"))
}

fn unknown(id: JobId) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::JobNotFound,
        format!("there is no job {id}; it was never accepted here, or it is so old that it was pruned"),
    )
    .with("job_id", id.to_string())
}
