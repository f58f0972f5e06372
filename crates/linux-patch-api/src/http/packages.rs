//! `/packages`: what is installed, and changing it.

use std::future::ready;

use axum::{extract::State, http::HeaderMap, response::Response};
use patch_service::{Refusal, StrictJson, StrictQuery};
use patch_types::{
    ChangeOptions, ErrorCode, ErrorDetail, OnFailure, Operation, PackageName, Query, Unrehearsed,
    api::{InstallRequest, Job, PackageDetail, PackageList, RemoveRequest, UpdateRequest},
    event::QueryResult,
    operation::{Hold, Install, Remove, Update},
    plan::PlanHash,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    app::App,
    changes::{self, Asked, Change},
    path::StrictPath,
    reply,
};
use crate::inventory::filter::PackageFilter;

/// Lists the packages of this host.
///
/// Without a query all of them come, from a cache with an `ETag`.
#[utoipa::path(
    get,
    path = "/packages",
    operation_id = "listPackages",
    tag = "packages",
    params(PackageFilter, ("If-None-Match" = Option<String>, Header, description = "The ETag of an earlier answer")),
    responses(
        (status = 200, description = "The packages", body = PackageList),
        (status = 304, description = "Nothing has changed since the ETag given"),
    )
)]
pub(super) async fn list(
    State(app): State<App>,
    headers: HeaderMap,
    StrictQuery(filter): StrictQuery<PackageFilter>,
) -> Result<Response, Refusal> {
    if filter.is_everything() {
        let cached = app.inventory().everything().await?;
        return reply::cached(&headers, &cached);
    }
    filter.check().map_err(reply::invalid_field)?;
    let list = app.inventory().select(&filter).await?;
    reply::ok(list)
}

/// Shows one package: its versions with their origins, relations, files, and why it is not upgraded.
#[utoipa::path(
    get,
    path = "/packages/{name}",
    operation_id = "getPackage",
    tag = "packages",
    params(("name" = PackageName, Path, description = "The package")),
    responses(
        (status = 200, description = "The package", body = PackageDetail),
        (status = 404, description = "It is neither installed nor available (PKG_NOT_FOUND)"),
    )
)]
pub(super) async fn show(
    State(app): State<App>,
    StrictPath(name): StrictPath<PackageName>,
) -> Result<Response, Refusal> {
    match app.executor().query(Query::Package { name }).await? {
        QueryResult::Package(detail) => reply::ok(detail),
        _ => Err(reply::wrong_answer("package")),
    }
}

/// Installs packages, or brings them to the given versions.
#[utoipa::path(
    post,
    path = "/packages",
    operation_id = "installPackages",
    tag = "packages",
    params(changes::ChangeHeaders),
    request_body = InstallRequest,
    responses(
        (status = 200, description = "The plan of a dry run, or the ended job with `Prefer: wait`", body = changes::PlanOrJob),
        (status = 202, description = "Accepted as a job", body = Job),
        (status = 404, description = "What only the solver knows, told of a dry run (PKG_NOT_FOUND)"),
        (status = 409, description = "Too many jobs are waiting (JOB_CONFLICT)"),
    )
)]
pub(super) async fn install(
    State(app): State<App>,
    asked: Asked,
    StrictJson(body): StrictJson<InstallRequest>,
) -> Result<Response, Refusal> {
    let request = changes::as_asked(&body);
    let options = body.options;
    let rehearse = changes::rehearsal(options.rehearse, options.unrehearsed, options.dry_run)?;
    let how = changes::options(options.on_failure, options.confirm_within, rehearse)?;
    let operation = Operation::Install(Install {
        packages: body.packages,
        no_recommends: options.no_recommends,
        allow_downgrade: options.allow_downgrade,
        reinstall: options.reinstall,
    });
    let change = Change {
        operation: ready(Ok(operation)),
        dry_run: options.dry_run,
        if_plan: options.if_plan,
        options: how,
        request,
    };
    changes::carry_out(&app, asked, change).await
}

/// Updates one package, or changes its hold.
#[utoipa::path(
    put,
    path = "/packages/{name}",
    operation_id = "updatePackage",
    tag = "packages",
    params(("name" = PackageName, Path, description = "The package"), changes::ChangeHeaders),
    request_body = UpdateRequest,
    responses(
        (status = 200, description = "The plan of a dry run, or the ended job with `Prefer: wait`", body = changes::PlanOrJob),
        (status = 202, description = "Accepted as a job", body = Job),
        (status = 404, description = "What only the solver knows, told of a dry run (PKG_NOT_FOUND)"),
        (status = 409, description = "Too many jobs are waiting (JOB_CONFLICT)"),
    )
)]
pub(super) async fn update(
    State(app): State<App>,
    asked: Asked,
    StrictPath(name): StrictPath<PackageName>,
    StrictJson(body): StrictJson<UpdateRequest>,
) -> Result<Response, Refusal> {
    let request = changes::as_asked(&body);
    let (dry_run, if_plan) = (body.dry_run, body.if_plan.clone());
    let (operation, options) = update_operation(name, body)?;
    let change = Change { operation: ready(Ok(operation)), dry_run, if_plan, options, request };
    changes::carry_out(&app, asked, change).await
}

fn update_operation(
    name: PackageName,
    body: UpdateRequest,
) -> Result<(Operation, ChangeOptions), ErrorDetail> {
    let rehearse = changes::rehearsal(body.rehearse, body.unrehearsed, body.dry_run)?;
    let options = changes::options(body.on_failure, body.confirm_within, rehearse)?;
    let Some(hold) = body.hold else {
        return Ok((Operation::Update(Update { name, version: body.version }), options));
    };
    let refused = |message: &str, field: &str| {
        Err(ErrorDetail::new(ErrorCode::InvalidRequest, message).with("field", field))
    };
    if body.version.is_some() {
        let message =
            "version and hold exclude each other; send one request for the update and one for the hold";
        return refused(message, "hold");
    }
    for (field, given) in [
        ("on_failure", body.on_failure.is_some()),
        ("confirm_within", body.confirm_within.is_some()),
        ("rehearse", body.rehearse),
    ] {
        if given {
            let message =
                format!("{field} is for changes of packages; a hold is taken off as easily as it is set");
            return refused(&message, field);
        }
    }
    Ok((Operation::Hold(Hold { name, hold }), options))
}

/// The query of `DELETE /packages/{name}`; a JSON body with the same fields may stand in its place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveQuery {
    /// With its configuration files.
    purge: Option<bool>,
    /// With the packages that were installed only for it.
    autoremove: Option<bool>,
    /// Answer with the plan; change nothing.
    dry_run: Option<bool>,
    /// Only if the plan of that moment has this hash.
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{64}$")]
    if_plan: Option<PlanHash>,
    /// What to do with the rest when a part fails; `group` if absent.
    #[param(inline)]
    on_failure: Option<OnFailure>,
    /// Go back unless confirmed within this many seconds.
    #[param(minimum = 1, maximum = 86400)]
    confirm_within: Option<u32>,
    /// Try it on an image of the host first; with `dry_run` a job that does only that.
    rehearse: Option<bool>,
    /// What to do where no rehearsal is possible; `refuse` if absent.
    #[param(inline)]
    unrehearsed: Option<Unrehearsed>,
}

/// Removes one package.
#[utoipa::path(
    delete,
    path = "/packages/{name}",
    operation_id = "removePackage",
    tag = "packages",
    params(("name" = PackageName, Path, description = "The package"), RemoveQuery, changes::ChangeHeaders),
    request_body(content = Option<RemoveRequest>, description = "The options, in place of the query"),
    responses(
        (status = 200, description = "The plan of a dry run, or the ended job with `Prefer: wait`", body = changes::PlanOrJob),
        (status = 202, description = "Accepted as a job", body = Job),
        (status = 404, description = "What only the solver knows, told of a dry run (PKG_NOT_FOUND)"),
        (status = 409, description = "Too many jobs are waiting (JOB_CONFLICT)"),
    )
)]
pub(super) async fn remove(
    State(app): State<App>,
    asked: Asked,
    StrictPath(name): StrictPath<PackageName>,
    StrictQuery(query): StrictQuery<RemoveQuery>,
    body: Option<StrictJson<RemoveRequest>>,
) -> Result<Response, Refusal> {
    let options = match body {
        None => RemoveRequest {
            purge: query.purge.unwrap_or_default(),
            autoremove: query.autoremove.unwrap_or_default(),
            dry_run: query.dry_run.unwrap_or_default(),
            if_plan: query.if_plan,
            on_failure: query.on_failure,
            confirm_within: query.confirm_within,
            rehearse: query.rehearse.unwrap_or_default(),
            unrehearsed: query.unrehearsed,
        },
        Some(StrictJson(body)) if query == RemoveQuery::default() => body,
        Some(_) => {
            return Err(ErrorDetail::new(
                ErrorCode::InvalidRequest,
                "options are given in the query and in the body; give them in one place",
            )
            .into());
        }
    };
    let request = changes::as_asked(&options);
    let rehearse = changes::rehearsal(options.rehearse, options.unrehearsed, options.dry_run)?;
    let how = changes::options(options.on_failure, options.confirm_within, rehearse)?;
    let operation = Operation::Remove(Remove { name, purge: options.purge, autoremove: options.autoremove });
    let change = Change {
        operation: ready(Ok(operation)),
        dry_run: options.dry_run,
        if_plan: options.if_plan,
        options: how,
        request,
    };
    changes::carry_out(&app, asked, change).await
}
