//! `/ws/jobs`: jobs as they go, over a WebSocket.

use axum::{
    extract::{State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    response::Response,
};
use patch_service::Refusal;
use patch_types::{ErrorCode, ErrorDetail};

use super::app::App;

/// The largest message that a client may send; a subscription has some 80 bytes.
const MAX_MESSAGE: usize = crate::jobs::session::MAX_MESSAGE;

/// Opens a WebSocket on which the client subscribes to jobs.
///
/// The client sends `{"type": "subscribe", "job_id"}`, `unsubscribe`, `subscribe_all`, `ping`; the server sends
/// `job_status`, `job_log`, `job_complete`, `pong`, `error` as `{"type", "payload"}`.
#[utoipa::path(
    get,
    path = "/ws/jobs",
    operation_id = "followJobs",
    tag = "jobs",
    responses((status = 101, description = "The connection is a WebSocket now"))
)]
pub(super) async fn jobs(
    State(app): State<App>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let upgrade = upgrade.map_err(|e| {
        ErrorDetail::new(
            ErrorCode::InvalidRequest,
            format!("this path is a WebSocket; send the headers of an upgrade ({e})"),
        )
    })?;
    let jobs = app.jobs().clone();
    Ok(upgrade
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .on_upgrade(move |socket| crate::jobs::session::serve(socket, jobs)))
}
