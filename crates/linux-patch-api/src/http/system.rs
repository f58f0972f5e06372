//! `/system`: the host, its units, its reboots, its revocation list.

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use patch_service::{Refusal, StrictJson, StrictQuery};
use patch_types::{
    ChangeOptions, ErrorCode, ErrorDetail, Operation, Query,
    api::{
        CrlInForce, CrlRequest, Job, RebootRequest, RebootState, RebootWindow, Service, ServiceList,
        SystemInfo,
    },
    compliance::Compliance,
    event::QueryResult,
    operation::{OperationError, Reboot},
    reboot::{RebootObstacle, WindowStatus},
    settings::is_unit_name,
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    app::App,
    caller::Caller,
    changes::{self, Asked, Change},
    path::StrictPath,
    reply,
};
use crate::certificates::UploadError;
use crate::inventory::{host, unreadable};

/// A unit's name in a path.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct UnitName(String);

impl TryFrom<String> for UnitName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if is_unit_name(&text) {
            Ok(Self(text))
        } else {
            Err(format!("{text:?} is not the name of a unit, such as ssh.service"))
        }
    }
}

impl std::str::FromStr for UnitName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

/// Describes this host.
#[utoipa::path(
    get,
    path = "/system/info",
    operation_id = "getSystemInfo",
    tag = "system",
    responses((status = 200, description = "The host", body = SystemInfo))
)]
pub(super) async fn info(State(app): State<App>) -> Result<Response, Refusal> {
    let mut info = host::info(app.root());
    // Without the root side it is answered with what can be read.
    let asked = async { tokio::time::timeout(BOOT, reboot_window(&app)).await.ok()?.ok()?.boot };
    if let Some(boot) = app.boot(asked).await {
        info.boot_id = boot;
    }
    reply::ok(info)
}

/// How long the root side is waited for to say which boot this is.
const BOOT: Duration = Duration::from_secs(2);

/// The query of `GET /system/services`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ServiceQuery {
    /// All units instead of those that failed or still run old code.
    all: Option<bool>,
}

/// Lists units that failed or still run code that has been replaced on disk.
#[utoipa::path(
    get,
    path = "/system/services",
    operation_id = "listServices",
    tag = "system",
    params(ServiceQuery),
    responses((status = 200, description = "The units", body = ServiceList))
)]
pub(super) async fn services(
    State(app): State<App>,
    StrictQuery(query): StrictQuery<ServiceQuery>,
) -> Result<Response, Refusal> {
    let mut list = units(&app).await?;
    if !query.all.unwrap_or_default() {
        list.services.retain(|s| s.active_state == "failed" || s.runs_old_code);
    }
    list.total = list.services.len();
    reply::ok(list)
}

/// Shows one unit's state.
#[utoipa::path(
    get,
    path = "/system/services/{name}",
    operation_id = "getService",
    tag = "system",
    params(("name" = String, Path, description = "The unit, such as ssh.service", max_length = 255,
        pattern = r"^[A-Za-z0-9:_][A-Za-z0-9:_-]*(\.[A-Za-z0-9:_-]+)*(@[A-Za-z0-9:_-]*)?\.(service|socket|target|timer|mount|automount|path|slice|scope|swap|device)$")),
    responses(
        (status = 200, description = "The unit", body = Service),
        (status = 404, description = "There is no such unit"),
    )
)]
pub(super) async fn service(
    State(app): State<App>,
    StrictPath(UnitName(name)): StrictPath<UnitName>,
) -> Result<Response, Refusal> {
    let list = units(&app).await?;
    match list.services.iter().find(|s| s.name == name) {
        Some(service) => reply::ok(service),
        None => Err(Refusal::invalid(
            StatusCode::NOT_FOUND,
            format!("there is no unit {name} on this host; GET /system/services?all=true lists them"),
        )),
    }
}

async fn units(app: &App) -> Result<ServiceList, Refusal> {
    match app.executor().query(Query::Services).await? {
        QueryResult::Services(list) => Ok(list),
        _ => Err(reply::wrong_answer("services")),
    }
}

/// Says whether a reboot is due and why, when the reboot window opens, what is queued for it and what stands against it.
#[utoipa::path(
    get,
    path = "/system/reboot",
    operation_id = "getReboot",
    tag = "system",
    responses((status = 200, description = "The state", body = RebootState))
)]
pub(super) async fn reboot_state(State(app): State<App>) -> Result<Response, Refusal> {
    let state = host::reboot(app.root()).map_err(|e| unreadable(&e))?;
    // Without the root side, what can be read without it is still answered.
    let status = reboot_window(&app).await.unwrap_or_else(|error| WindowStatus {
        reasons: vec![RebootObstacle { code: "unknown".to_owned(), message: error.message }],
        ..WindowStatus::default()
    });
    let window = status.has_window.then_some(RebootWindow {
        open_until: status.open_until,
        next: status.next,
        timer_off: status.timer_off,
    });
    reply::ok(RebootState {
        window,
        queued: status.queued,
        against: status.reasons,
        phase: status.phase,
        ..state
    })
}

/// Asks for a reboot: queued for the reboot window, or, with `force` and a reason, now. The job waits until then, holds no other
/// job up, and ends after the boot.
#[utoipa::path(
    post,
    path = "/system/reboot",
    operation_id = "scheduleReboot",
    tag = "system",
    params(changes::ChangeHeaders),
    request_body(content = Option<RebootRequest>, description = "When and why"),
    responses(
        (status = 200, description = "The ended job, with `Prefer: wait`", body = Job),
        (status = 202, description = "Accepted as a job", body = Job),
        (status = 409, description = "No reboot window is declared, or nothing looks after it (REBOOT_WINDOW_CLOSED); or too many jobs are waiting (JOB_CONFLICT)"),
    )
)]
pub(super) async fn reboot(
    State(app): State<App>,
    asked: Asked,
    body: Option<StrictJson<RebootRequest>>,
) -> Result<Response, Refusal> {
    let body = body.map(|StrictJson(b)| b).unwrap_or_default();
    let request = changes::as_asked(&body);
    let change = Change {
        operation: rebooting(&app, body),
        dry_run: false,
        if_plan: None,
        options: ChangeOptions::default(),
        request,
    };
    changes::carry_out(&app, asked, change).await
}

/// A reboot that can be waited for. The root side asks again.
async fn rebooting(app: &App, body: RebootRequest) -> Result<Operation, ErrorDetail> {
    let RebootRequest { delay_seconds, reason, force } = body;
    let reboot =
        Reboot { delay_seconds: delay_seconds.unwrap_or_default(), reason, force, ..Reboot::default() };
    let operation = Operation::Reboot(reboot.clone());
    operation.check().map_err(|error| {
        let field = match error {
            OperationError::Delay(_) => "delay_seconds",
            _ => "reason",
        };
        ErrorDetail::new(ErrorCode::InvalidRequest, error.to_string()).with("field", field)
    })?;
    let window = reboot_window(app).await?;
    if !force && let Some(objection) = window.objection() {
        return Err(ErrorDetail::new(ErrorCode::RebootWindowClosed, objection));
    }
    // However long it takes to hand it over: after a boot nobody wants it any more.
    Ok(Operation::Reboot(Reboot { boot: window.boot, ..reboot }))
}

async fn reboot_window(app: &App) -> Result<WindowStatus, ErrorDetail> {
    match app.executor().query(Query::RebootWindow).await? {
        QueryResult::RebootWindow(status) => Ok(status),
        _ => Err(reply::wrong_answer("the reboot window").error().clone()),
    }
}

/// Replaces the revocation list by a newer one of the same CA. It takes effect at once, on open connections too. It is the
/// one thing that is still answered when the list in force has expired.
#[utoipa::path(
    put,
    path = "/system/crl",
    operation_id = "putCrl",
    tag = "system",
    request_body = CrlRequest,
    responses(
        (status = 200, description = "In force; `changed` is false if it was before", body = CrlInForce),
        (status = 409, description = "It is not newer than the one that is or was in force (INVALID_REQUEST)"),
        (status = 422, description = "It is not a list that could be in force: another CA's, from the future, expired, without a number (INVALID_REQUEST)"),
    )
)]
pub(super) async fn crl(
    State(app): State<App>,
    caller: Caller,
    StrictJson(request): StrictJson<CrlRequest>,
) -> Result<Response, Refusal> {
    match app.put_crl(&request.crl, &caller.for_audit()).await {
        Ok(in_force) => reply::ok(in_force),
        Err(error) => Err(not_in_force(&error)),
    }
}

fn not_in_force(error: &UploadError) -> Refusal {
    if !error.is_of_list() {
        return Refusal::new(ErrorCode::ServiceUnhealthy, error.to_string());
    }
    let refusal = Refusal::new(ErrorCode::InvalidRequest, error.to_string()).with("field", "crl");
    match error {
        UploadError::NotNewer { number, highest, .. } => refusal
            .status(StatusCode::CONFLICT)
            .with("number", number.as_str())
            .with("highest", highest.as_str()),
        _ => refusal,
    }
}

/// How well this host keeps its promise: for every security fix when it was published, seen, planned, installed, and since
/// when its code is what runs; and what is in the way.
#[utoipa::path(
    get,
    path = "/compliance",
    operation_id = "getCompliance",
    tag = "system",
    params(("If-None-Match" = Option<String>, Header, description = "The ETag of an earlier answer")),
    responses(
        (status = 200, description = "The report", body = Compliance),
        (status = 304, description = "Nothing has changed since the ETag given"),
    )
)]
pub(super) async fn compliance(State(app): State<App>, headers: HeaderMap) -> Result<Response, Refusal> {
    let report = app.compliance().report().await?;
    reply::cached(&headers, &report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_names_follow_the_grammar() {
        for good in ["ssh.service", "getty@tty1.service", "dev-disk-by\\x2did.device", "a.b.timer"] {
            assert!(is_unit_name(good), "{good}");
        }
        for bad in [
            "",
            "ssh",
            "-ssh.service",
            "../ssh.service",
            "a..b.service",
            "ssh.service;x",
            "a b.service",
            "ssh.exe",
            ".service",
            "a@b@c.service",
            "ä.service",
            "a/b.service",
            "a\0.service",
        ] {
            assert!(!is_unit_name(bad), "{bad:?}");
        }
        assert!(is_unit_name(&format!("{}.service", "a".repeat(247))));
        assert!(!is_unit_name(&format!("{}.service", "a".repeat(248))));
    }
}
