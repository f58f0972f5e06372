//! `/jobs`: what was asked for, what became of it, and calling it off.

use axum::{
    Extension,
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use patch_service::{Refusal, StrictJson, StrictQuery};
use patch_types::{
    ChangeOptions, ErrorCode, ErrorDetail, JobId, JobStatus, Operation, PackageName, RollbackMode,
    api::{Job, JobList, RollbackRequest},
    operation::Rollback,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    access,
    app::App,
    caller::Caller,
    changes::{self, Asked, Change, PlanOrJob},
    path::StrictPath,
    reply,
};
use crate::{
    config::Role,
    inventory::filter,
    jobs::{JobFilter, NEW_CONNECTION},
};

/// The query of `GET /jobs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct JobQuery {
    /// Only jobs of this status.
    #[param(inline)]
    status: Option<JobStatus>,
    /// Only jobs of this kind, such as `install`.
    #[param(pattern = "^(install|update|remove|hold|apply_patches|refresh|rollback|reboot)$")]
    kind: Option<String>,
    /// Only jobs that name, or changed, this package.
    #[param(inline)]
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

const KINDS: [&str; 8] =
    ["install", "update", "remove", "hold", "apply_patches", "refresh", "rollback", "reboot"];

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

/// Undoes what a job changed, as a job of its own: its packages, or with `mode: snapshot` everything since the snapshot of the file
/// systems that was made before it. That takes the role admin, and `if_plan` with the hash of what `dry_run` has listed.
#[utoipa::path(
    post,
    path = "/jobs/{id}/rollback",
    operation_id = "rollbackJob",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job that is to be undone"), changes::ChangeHeaders),
    request_body(content = Option<RollbackRequest>, description = "How"),
    responses(
        (status = 200, description = "The plan of a dry run; or the ended job, with `Prefer: wait`", body = PlanOrJob),
        (status = 202, description = "Accepted as a job", body = Job),
        (status = 403, description = "To go back to a snapshot takes the role admin (AUTHZ_FORBIDDEN)"),
        (status = 404, description = "There is no such job (JOB_NOT_FOUND)"),
        (status = 409, description = "The plan is another one than was approved (PLAN_DRIFT); it has not ended, or too many jobs are waiting (JOB_CONFLICT), or it is of a kind that changes no package (ROLLBACK_UNAVAILABLE)"),
    )
)]
pub(super) async fn rollback(
    State(app): State<App>,
    Extension(role): Extension<Role>,
    asked: Asked,
    StrictPath(id): StrictPath<JobId>,
    body: Option<StrictJson<RollbackRequest>>,
) -> Result<Response, Refusal> {
    let body = body.map(|StrictJson(b)| b).unwrap_or_default();
    let mut request = changes::as_asked(&body);
    if let Some(fields) = request.as_object_mut() {
        fields.insert("job_id".to_owned(), changes::as_asked(&id));
    }
    let RollbackRequest { force, mode, dry_run, if_plan } = body;
    if mode == RollbackMode::Snapshot {
        // Accounts, keys and rules of before come back with it.
        access::require(role, Role::Admin)?;
        if !dry_run && if_plan.is_none() {
            let message = "to go back to a snapshot takes back more than the job's packages: ask with `dry_run` what, and send the \
                           plan's hash as `if_plan`";
            return Err(ErrorDetail::new(ErrorCode::InvalidRequest, message).with("field", "if_plan").into());
        }
    }
    let change = Change {
        operation: undoing(&app, Rollback { job: id, force, mode }),
        dry_run,
        if_plan,
        options: ChangeOptions::default(),
        request,
    };
    changes::carry_out(&app, asked, change).await
}

/// What can be told here; all else is for the root side to say, which has the record of what was changed.
async fn undoing(app: &App, rollback: Rollback) -> Result<Operation, ErrorDetail> {
    let id = rollback.job;
    let job = app.jobs().summary(id).ok_or_else(|| unknown(id))?;
    if !job.status.is_terminal() {
        return Err(ErrorDetail::new(
            ErrorCode::JobConflict,
            format!("the job is {}: only a job that has ended can be rolled back", job.status),
        )
        .with("job_id", id.to_string()));
    }
    if job.kind == Operation::Refresh.kind() {
        return Err(ErrorDetail::new(
            ErrorCode::RollbackUnavailable,
            "a refresh changes no package: there is nothing to roll back",
        )
        .with("job_id", id.to_string()));
    }
    if job.kind == "reboot" {
        return Err(ErrorDetail::new(
            ErrorCode::RollbackUnavailable,
            "a reboot changes no package: there is nothing to roll back",
        )
        .with("job_id", id.to_string()));
    }
    Ok(Operation::Rollback(rollback))
}

/// Keeps a change that was made with `confirm_within`.
///
/// It has to come over a connection that was made since the job waits: one from before does not show that the host can
/// still be reached.
#[utoipa::path(
    post,
    path = "/jobs/{id}/confirm",
    operation_id = "confirmJob",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job")),
    request_body(content = Option<reply::Nothing>, description = "None, or an empty object"),
    responses(
        (status = 200, description = "The job: confirmed, also if it was before", body = Job),
        (status = 404, description = "There is no such job (JOB_NOT_FOUND)"),
        (status = 409, description = "It does not wait to be confirmed; or, with `details.new_connection`, this connection is older than that (JOB_CONFLICT)"),
    )
)]
pub(super) async fn confirm(
    State(app): State<App>,
    caller: Caller,
    StrictPath(id): StrictPath<JobId>,
    _: Option<StrictJson<reply::Nothing>>,
) -> Result<Response, Refusal> {
    // Who did not come through the door has no role, and is not here.
    let accepted = caller.accepted().ok_or_else(|| unknown(id))?;
    match app.jobs().confirm(id, &caller.requester(), accepted).await {
        Ok(job) => reply::ok(job),
        Err(error) if error.details.contains_key(NEW_CONNECTION) => {
            // What the client sends next comes over a new one by itself.
            Ok(Refusal::from(error).header(header::CONNECTION, "close").into_response())
        }
        Err(error) if error.code == ErrorCode::JobNotFound => Err(unknown(id).into()),
        Err(error) => Err(error.into()),
    }
}

fn unknown(id: JobId) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::JobNotFound,
        format!("there is no job {id}; it was never accepted here, or it is so old that it was pruned"),
    )
    .with("job_id", id.to_string())
}
