//! `/patches`: available updates, why a package is not updated, and applying them.

use std::{collections::BTreeSet, future::ready};

use axum::{extract::State, http::HeaderMap, response::Response};
use patch_service::{Refusal, StrictJson};
use patch_types::{
    ChangeOptions, ErrorCode, ErrorDetail, Operation, PackageName, Query,
    api::{ApplyRequest, Cause, CauseKind, Job, PatchSet, WhyNot},
    event::QueryResult,
    name::MAX_NAME_LEN,
    operation::{ApplyPatches, MAX_PACKAGES},
    reboot::MAX_DELAY_SECONDS,
};

use super::{
    app::App,
    changes::{self, Asked, Change},
    path::StrictPath,
    reply,
};
use crate::policy;

/// Applying fetches the indexes first when they are older than this many seconds.
const REFRESH_IF_OLDER: u64 = 3600;

/// Lists the available updates, held and kept back ones included.
#[utoipa::path(
    get,
    path = "/patches",
    operation_id = "listPatches",
    tag = "patches",
    params(("If-None-Match" = Option<String>, Header, description = "The ETag of an earlier answer")),
    responses(
        (status = 200, description = "The updates", body = PatchSet),
        (status = 304, description = "Nothing has changed since the ETag given"),
    )
)]
pub(super) async fn list(State(app): State<App>, headers: HeaderMap) -> Result<Response, Refusal> {
    let patches = app.inventory().patches().await?;
    reply::cached(&headers, &patches)
}

/// Says why a package is not being patched, with a next step for each cause.
#[utoipa::path(
    get,
    path = "/patches/{name}/why-not",
    operation_id = "whyNotPatched",
    tag = "patches",
    params(("name" = PackageName, Path, description = "The package")),
    responses(
        (status = 200, description = "The causes", body = WhyNot),
        (status = 404, description = "It is neither installed nor available (PKG_NOT_FOUND)"),
    )
)]
pub(super) async fn why_not(
    State(app): State<App>,
    StrictPath(name): StrictPath<PackageName>,
) -> Result<Response, Refusal> {
    let mut why = match app.executor().query(Query::WhyNot { name: name.clone() }).await? {
        QueryResult::WhyNot(why) => why,
        _ => return Err(reply::wrong_answer("why-not")),
    };
    if why.causes.iter().all(|cause| cause.kind == CauseKind::Ready) {
        let more = held(&app, &name).await;
        // What keeps it away comes first: the other one says that the next run takes it.
        why.causes.splice(0..0, more);
    }
    reply::ok(why)
}

/// What keeps a package away that the solver would take: a freeze, or the agent's own schedule.
async fn held(app: &App, name: &PackageName) -> Option<Cause> {
    let root = app.root().to_owned();
    let frozen = tokio::task::spawn_blocking(move || policy::frozen(&root)).await.unwrap_or_default();
    if let Some(reason) = frozen {
        let message = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        return Some(Cause {
            kind: CauseKind::Frozen,
            message: format!("the host is frozen by its freeze file{message}"),
            next_step: policy::FREEZE.to_owned(),
        });
    }
    let set = app.inventory().patch_set().await.ok()?;
    let is_security = set.patches.iter().any(|patch| patch.security && patch.name.name() == name.name());
    app.policy().waits.cause(name, is_security)
}

/// Fetches the indexes of all repositories now.
#[utoipa::path(
    post,
    path = "/patches/refresh",
    operation_id = "refreshPatches",
    tag = "patches",
    params(changes::ChangeHeaders),
    request_body(content = Option<reply::Nothing>, description = "None, or an empty object"),
    responses(
        (status = 200, description = "The ended job, with `Prefer: wait`", body = Job),
        (status = 202, description = "Accepted as a job", body = Job),
        (status = 409, description = "Too many jobs are waiting (JOB_CONFLICT)"),
    )
)]
pub(super) async fn refresh(
    State(app): State<App>,
    asked: Asked,
    _: Option<StrictJson<reply::Nothing>>,
) -> Result<Response, Refusal> {
    let change = Change {
        operation: ready(Ok(Operation::Refresh)),
        dry_run: false,
        if_plan: None,
        options: ChangeOptions::default(),
        request: serde_json::json!({}),
    };
    changes::carry_out(&app, asked, change).await
}

/// Applies available updates: all of them, or those named.
#[utoipa::path(
    post,
    path = "/patches/apply",
    operation_id = "applyPatches",
    tag = "patches",
    params(changes::ChangeHeaders),
    request_body(content = Option<ApplyRequest>, description = "What to apply; all updates if absent"),
    responses(
        (status = 200, description = "The plan of a dry run, or the ended job with `Prefer: wait`", body = changes::PlanOrJob),
        (status = 202, description = "Accepted as a job", body = Job),
        (status = 404, description = "An advisory or update named in `patches` is not known (PATCH_NOT_FOUND)"),
        (status = 409, description = "Too many jobs are waiting (JOB_CONFLICT)"),
    )
)]
pub(super) async fn apply(
    State(app): State<App>,
    asked: Asked,
    body: Option<StrictJson<ApplyRequest>>,
) -> Result<Response, Refusal> {
    let body = body.map(|StrictJson(b)| b).unwrap_or_default();
    check(&body)?;
    let rehearse = changes::rehearsal(body.rehearse, body.unrehearsed, body.dry_run)?;
    let options = changes::options(body.on_failure, body.confirm_within, rehearse)?;
    let request = changes::as_asked(&body);
    let (dry_run, if_plan) = (body.dry_run, body.if_plan.clone());
    let change = Change { operation: operation(&app, body), dry_run, if_plan, options, request };
    changes::carry_out(&app, asked, change).await
}

/// What the request stands for at this moment: advisories are those that are known now.
async fn operation(app: &App, body: ApplyRequest) -> Result<Operation, ErrorDetail> {
    let mut packages = body.packages;
    if !body.patches.is_empty() {
        let known = app.inventory().patch_set().await?;
        for name in named(&body.patches, &known)? {
            if !packages.contains(&name) {
                packages.push(name);
            }
        }
    }
    Ok(Operation::ApplyPatches(ApplyPatches {
        packages,
        security_only: body.security_only,
        exclude: body.exclude,
        allow_removals: body.allow_removals,
        refresh_if_older: Some(REFRESH_IF_OLDER),
    }))
}

fn check(body: &ApplyRequest) -> Result<(), ErrorDetail> {
    let refuse =
        |message: String| Err(ErrorDetail::new(ErrorCode::InvalidRequest, message).with("field", "patches"));
    if body.patches.len() > MAX_PACKAGES {
        return refuse(format!(
            "{} patches were named; at most {MAX_PACKAGES} are allowed",
            body.patches.len()
        ));
    }
    if let Some(minutes) = body.reboot_delay_minutes {
        let most = MAX_DELAY_SECONDS / 60;
        let refuse = |message: String| {
            let error = ErrorDetail::new(ErrorCode::InvalidRequest, message);
            Err(error.with("field", "reboot_delay_minutes"))
        };
        if !body.allow_reboot {
            return refuse("reboot_delay_minutes means nothing without allow_reboot".to_owned());
        }
        if u64::from(minutes) > most {
            return refuse(format!("reboot_delay_minutes is {minutes}; at most {most} are possible"));
        }
    }
    for id in &body.patches {
        let printable = id.bytes().all(|b| b.is_ascii_graphic());
        if id.is_empty() || id.len() > MAX_NAME_LEN || id.starts_with('-') || !printable {
            return refuse(format!("{id:?} is neither an advisory's id nor a package name"));
        }
    }
    Ok(())
}

/// The packages that advisory ids and package names stand for.
fn named(ids: &[String], known: &PatchSet) -> Result<BTreeSet<PackageName>, ErrorDetail> {
    let mut names = BTreeSet::new();
    for id in ids {
        let matching = known.patches.iter().filter(|p| {
            p.name.as_str() == id || p.advisories.iter().chain(&p.cve_ids).any(|a| a.eq_ignore_ascii_case(id))
        });
        let mut found = false;
        for patch in matching {
            found = true;
            names.insert(patch.name.clone());
        }
        if !found {
            return Err(ErrorDetail::new(
                ErrorCode::PatchNotFound,
                format!(
                    "{id} is neither an available update nor an advisory of one; GET /patches lists them"
                ),
            )
            .with("patch", id.as_str()));
        }
    }
    Ok(names)
}
