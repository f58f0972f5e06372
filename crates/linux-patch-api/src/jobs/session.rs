//! The WebSocket side.

use axum::extract::ws::WebSocket;

use super::Jobs;

/// Speaks the protocol with one client until either side ends it.
pub async fn serve(_socket: WebSocket, _jobs: Jobs) {}
