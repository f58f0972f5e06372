//! Who may do what, and how often. The certificate was checked at the door; here its role and its rate are.

use std::{future::Future, pin::Pin, time::Instant};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use patch_audit::{AuditEvent, AuditKind};
use patch_service::Refusal;
use patch_types::{ErrorCode, ErrorDetail, api::CrlStatus};

use super::{app::App, caller::Caller};
use crate::config::Role;

/// As much of a query parameter's name as an answer repeats.
const MAX_SHOWN: usize = 64;

/// Where a newer revocation list is taken.
const UPLOAD: &str = "/api/v1/system/crl";

/// Finds the identity's role, takes the request out of its bucket, and turns browsers away.
pub(super) async fn admit(
    State(app): State<App>,
    caller: Caller,
    mut request: Request,
    next: Next,
) -> Response {
    let settings = app.settings();
    let role = settings.role_of(caller.identity(), caller.fingerprint());
    let Some(role) = role.filter(|_| caller.is_known()) else {
        return Refusal::from(
            ErrorDetail::new(
                ErrorCode::AuthzForbidden,
                format!("{} has no role here; add it to security.roles in config.yaml", caller.identity()),
            )
            .with("identity", caller.identity()),
        )
        .into_response();
    };
    if let Err(exceeded) = app.rate().take(caller.fingerprint(), settings.rate_limit, Instant::now()) {
        app.metrics().limited();
        if let Some(count) = exceeded.report {
            app.audit().record_later(AuditEvent::new(AuditKind::RateLimited { count }, &caller.for_audit()));
        }
        return too_many(&caller, settings.rate_limit, exceeded.retry_after());
    }
    if request.headers().contains_key(header::ORIGIN) {
        return browser().into_response();
    }
    if let Some(refusal) = expired_crl(&app, &request) {
        return refusal.into_response();
    }
    request.extensions_mut().insert(role);
    next.run(request).await
}

fn too_many(caller: &Caller, per_minute: u32, seconds: u64) -> Response {
    let mut response = Refusal::from(
        ErrorDetail::new(
            ErrorCode::RateLimitExceeded,
            format!(
                "{} sent more than {per_minute} requests a minute; try again in {seconds} s",
                caller.identity()
            ),
        )
        .with("limit_per_minute", per_minute)
        .with("retry_after_seconds", seconds),
    )
    .into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// A browser that holds an operator's certificate presents it for whatever page is open in it, and names that page's
/// origin with every request that could change something and with every WebSocket.
fn browser() -> Refusal {
    Refusal::from(
        ErrorDetail::new(
            ErrorCode::AuthzForbidden,
            "browsers are not clients of this API: a request with the header Origin is refused, since any web page could have caused it",
        )
        .with("header", "Origin"),
    )
}

/// A middleware for routes that take no query: 422 for any parameter. An option that is ignored, such as
/// `?dry_run=true` beside a body, would have a change made that nobody asked for.
pub(super) async fn no_query(request: Request, next: Next) -> Response {
    let Some(query) = request.uri().query().filter(|query| !query.is_empty()) else {
        return next.run(request).await;
    };
    let name = query.split(['&', '=']).find(|part| !part.is_empty()).unwrap_or_default();
    let name: String = name.chars().take(MAX_SHOWN).collect();
    let path = request.uri().path();
    Refusal::new(
        ErrorCode::InvalidRequest,
        format!(
            "{name}: {} {path} takes no query parameters; the options of a change stand in its JSON body",
            request.method()
        ),
    )
    .with("field", name)
    .into_response()
}

/// With an expired revocation list nobody can tell a revoked certificate from a good one: nothing is answered but the
/// upload of a newer list, which proves itself by its signature.
fn expired_crl(app: &App, request: &Request) -> Option<Refusal> {
    let certificates = app.certificates();
    let is_upload = request.method() == Method::PUT && request.uri().path() == UPLOAD;
    let now = Timestamp::now();
    (certificates.is_shut(now) && !is_upload).then(|| {
        let why = match (certificates.crl_stale, certificates.crl_next_update(now)) {
            (true, _) => "the revocation list here may be older than one that was in force before".to_owned(),
            (false, Some(at)) => format!("the revocation list has expired since {at}"),
            (false, None) => "the revocation list has expired".to_owned(),
        };
        let status = if certificates.crl_stale { CrlStatus::Invalid } else { CrlStatus::Expired };
        Refusal::new(
            ErrorCode::ServiceUnhealthy,
            format!("{why}, so no client can be trusted; put a newer one in its place (PUT {UPLOAD}, or the file and SIGHUP)"),
        )
        .with("crl_status", serde_json::to_value(status).unwrap_or_default())
    })
}

/// Whether a role suffices.
///
/// # Errors
/// 403 if not.
pub(super) fn require(role: Role, needed: Role) -> Result<(), ErrorDetail> {
    if role >= needed { Ok(()) } else { Err(does_not_suffice(role.as_str(), needed)) }
}

fn does_not_suffice(has: &str, needed: Role) -> ErrorDetail {
    let needed = needed.as_str();
    let message = format!(
        "this takes the role {needed}, and the identity has the role {has}; change security.roles in config.yaml"
    );
    ErrorDetail::new(ErrorCode::AuthzForbidden, message).with("role", has).with("required_role", needed)
}

type Checked = Pin<Box<dyn Future<Output = Response> + Send>>;

/// A middleware that lets only those pass whose role suffices.
pub(super) fn check(needed: Role) -> impl Fn(Request, Next) -> Checked + Clone + Send + Sync + 'static {
    move |request: Request, next: Next| {
        // Without a role the request did not come through `admit`, so it does not pass.
        let role = request.extensions().get::<Role>().copied();
        Box::pin(async move {
            match role {
                Some(role) if role >= needed => next.run(request).await,
                role => {
                    Refusal::from(does_not_suffice(role.map_or("none", Role::as_str), needed)).into_response()
                }
            }
        })
    }
}
