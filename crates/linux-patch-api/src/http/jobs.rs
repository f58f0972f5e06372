//! `/jobs`: what was asked for, what became of it, and calling it off.

use axum::{extract::State, response::Response};
use jiff::Timestamp;
use patch_service::{Refusal, StrictJson, StrictQuery};
use patch_types::{
    ErrorCode, ErrorDetail, JobId, JobStatus, PackageName,
    api::{Job, JobList},
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{app::App, caller::Caller, changes, path::StrictPath, reply};
use crate::{inventory::filter, jobs::JobFilter};

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
    /// Only jobs that name, or changed, this package.
    #[param(value_type = Option<String>, max_length = 256)]
    package: Option<PackageName>,
    /// Only jobs that were accepted at or after this instant (RFC 3339).
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
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
    StrictQuery(query): StrictQuery<JobQuery>,
) -> Result<Response, Refusal> {
    query.check().map_err(reply::invalid_field)?;
    let filter = JobFilter {
        status: query.status,
        kind: query.kind,
        package: query.package,
        since: query.since,
        limit: query.limit,
        offset: query.offset.unwrap_or(0),
    };
    reply::ok(app.jobs().list(&filter))
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
    StrictPath(id): StrictPath<JobId>,
) -> Result<Response, Refusal> {
    let job = app.jobs().get(id).await.ok_or_else(|| unknown(id))?;
    reply::ok(job)
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
) -> Result<Response, Refusal> {
    let job = app.jobs().cancel(id, &caller.requester()).await?;
    reply::ok(job)
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
    _: Option<StrictJson<RollbackRequest>>,
) -> Result<Response, Refusal> {
    app.jobs().get(id).await.ok_or_else(|| unknown(id))?;
    Err(reply::later("rolling a job back", "install the former versions with allow_downgrade"))
}

/// The body of a rollback.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
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
    _: Option<StrictJson<reply::Nothing>>,
) -> Result<Response, Refusal> {
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
