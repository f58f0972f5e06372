//! Around every request: its deadline, its record in the audit trail, its place in the metrics.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{Extensions, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt as _, stream};
use patch_audit::{AuditEvent, AuditKind};
use patch_service::Refusal;
use patch_types::{ErrorCode, ErrorDetail};

use super::{app::App, caller::Caller};
use crate::config::Role;

/// What a handler may take beyond the configured time: `Prefer: wait` may use all of that, and still has to accept the
/// job before and to answer after.
const GRACE: Duration = Duration::from_secs(5);

/// As much of a path as the audit trail takes.
const MAX_PATH: usize = 512;

/// The largest body, as a refusal is recorded.
const BODY_LIMIT: u64 = 1 << 20;

/// The largest header block, as a refusal is recorded.
const HEADER_LIMIT: u64 = 8 << 10;

/// Until when a handler may be busy with a request: an extension of every request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    /// The deadline of a request.
    pub(super) fn of(extensions: &Extensions) -> Self {
        extensions.get().copied().unwrap_or(Self(None))
    }

    /// What is left.
    pub(super) fn left(self) -> Duration {
        self.0.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }

    /// What the work makes, unless the time is up before.
    pub(super) async fn limit<T>(self, work: impl Future<Output = T>) -> Option<T> {
        let left = self.left();
        if left.is_zero() {
            return None;
        }
        tokio::time::timeout(left, work).await.ok()
    }
}

/// A body that tells whether somebody is waiting for its end: between the first look at it and the last.
fn watched(body: Body, reading: Arc<AtomicBool>) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let mut data = body.into_data_stream();
    Body::from_stream(stream::poll_fn(move |cx| {
        let polled = data.poll_next_unpin(cx);
        reading.store(!matches!(polled, Poll::Ready(None | Some(Err(_)))), Ordering::Relaxed);
        polled
    }))
}

pub(super) async fn request(
    State(app): State<App>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let path: String = request.uri().path().chars().take(MAX_PATH).collect();
    let route = request.extensions().get::<MatchedPath>().map(|m| m.as_str().to_owned());
    let timeout = app.settings().timeout;
    let limit = timeout + GRACE;
    let reading = Arc::new(AtomicBool::new(false));
    let mut request = request.map(|body| watched(body, Arc::clone(&reading)));
    request.extensions_mut().insert(Deadline(Some(began + timeout)));
    let response = match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        // The handler begins when the body has come to its end.
        Err(_) if reading.load(Ordering::Relaxed) => slow_body(limit),
        Err(_) => too_slow(limit),
    };
    let status = response.status();
    let took = began.elapsed();
    let label = known_method(&method);
    app.metrics().answered(label, route.as_deref().unwrap_or("none"), status.as_u16(), took.as_secs_f64());
    record(&app, &caller, &method, &path, status, took);
    response
}

fn slow_body(limit: Duration) -> Response {
    let seconds = limit.as_secs();
    let message = format!("the body did not come to its end within {seconds} s, so nothing was begun");
    Refusal::invalid(StatusCode::REQUEST_TIMEOUT, message)
        .with("timeout_seconds", seconds)
        // What is left of the body would be taken for the next request.
        .header(header::CONNECTION, "close")
        .into_response()
}

fn too_slow(limit: Duration) -> Response {
    let seconds = limit.as_secs();
    Refusal::from(
        ErrorDetail::new(
            ErrorCode::ServiceUnhealthy,
            format!("no answer within {seconds} s, nor was a job accepted; the limit is server.timeout in config.yaml"),
        )
        .with("timeout_seconds", seconds),
    )
    .into_response()
}

fn record(app: &App, caller: &Caller, method: &Method, path: &str, status: StatusCode, took: Duration) {
    let who = caller.for_audit();
    let more = match status {
        StatusCode::FORBIDDEN => Some(AuditKind::Forbidden {
            method: method.to_string(),
            path: path.to_owned(),
            role: app
                .settings()
                .role_of(caller.identity(), caller.fingerprint())
                .map_or("none", Role::as_str)
                .to_owned(),
        }),
        StatusCode::PAYLOAD_TOO_LARGE => Some(AuditKind::PayloadRefused { limit: BODY_LIMIT }),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            Some(AuditKind::PayloadRefused { limit: HEADER_LIMIT })
        }
        // The rate limit reports its refusals itself, put together: a flood must not fill the disk.
        StatusCode::TOO_MANY_REQUESTS => return,
        _ => None,
    };
    // The record of an accepted change is on disk before its answer: the jobs see to that. This one says how the
    // request was answered, which cannot be known before.
    app.audit().record_later(AuditEvent::request(&who, method.as_str(), path, status.as_u16(), took));
    if let Some(kind) = more {
        app.audit().record_later(AuditEvent::new(kind, &who));
    }
}

/// The method as a label: what a client invents is not one.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
