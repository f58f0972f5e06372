//! Who may do what, and how often. The certificate was checked at the door; here its role and its rate are.

use std::{future::Future, pin::Pin, time::Instant};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use patch_types::{ErrorCode, ErrorDetail};

use super::{app::App, caller::Caller, reply::ApiError};
use crate::config::Role;

/// Finds the identity's role, and takes the request out of its bucket.
pub(super) async fn admit(State(app): State<App>, caller: Caller, mut request: Request, next: Next) -> Response {
    let settings = app.settings();
    let Some(role) = settings.role_of(caller.identity(), caller.fingerprint()) else {
        return ApiError::from(
            ErrorDetail::new(
                ErrorCode::AuthzForbidden,
                format!("{} has no role here; add it to security.roles in config.yaml", caller.identity()),
            )
            .with("identity", caller.identity()),
        )
        .into_response();
    };
    if let Err(wait) = app.rate().take(caller.fingerprint(), settings.rate_limit, Instant::now()) {
        app.metrics().limited();
        return too_many(&caller, settings.rate_limit, wait);
    }
    request.extensions_mut().insert(role);
    next.run(request).await
}

fn too_many(caller: &Caller, per_minute: u32, wait: std::time::Duration) -> Response {
    let seconds = wait.as_secs() + 1;
    let mut response = ApiError::from(
        ErrorDetail::new(
            ErrorCode::RateLimitExceeded,
            format!("{} sent more than {per_minute} requests a minute; try again in {seconds} s", caller.identity()),
        )
        .with("limit_per_minute", per_minute)
        .with("retry_after_seconds", seconds),
    )
    .into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
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
                    let has = role.map_or("none", Role::as_str);
                    let needed = needed.as_str();
                    ApiError::from(
                        ErrorDetail::new(
                            ErrorCode::AuthzForbidden,
                            format!("this takes the role {needed}, and the identity has the role {has}; change security.roles in config.yaml"),
                        )
                        .with("role", has)
                        .with("required_role", needed),
                    )
                    .into_response()
                }
            }
        })
    }
}
