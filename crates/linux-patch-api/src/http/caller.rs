//! Who sent a request, as the handlers and the records see it.

use std::{convert::Infallible, time::Instant};

use axum::{extract::FromRequestParts, http::request::Parts};
use patch_service::{PeerIdentity, RequestId};
use patch_types::api::Requester;
use uuid::Uuid;

/// The sender of a request. The door attaches the identity to every request, the outermost layer the id; what came
/// neither way is nobody, whom no role mapping knows.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    peer: Option<PeerIdentity>,
    /// The request's id.
    pub(super) request_id: Uuid,
}

impl Caller {
    pub(super) fn of(extensions: &axum::http::Extensions) -> Self {
        Self {
            peer: extensions.get::<PeerIdentity>().cloned(),
            request_id: extensions.get::<RequestId>().map_or_else(Uuid::nil, |id| id.0),
        }
    }

    /// The certificate's common name.
    pub(super) fn identity(&self) -> &str {
        self.peer.as_ref().map_or("", |p| p.common_name())
    }

    /// SHA-256 of the certificate in lower-case hexadecimal.
    pub(super) fn fingerprint(&self) -> &str {
        self.peer.as_ref().map_or("", |p| p.fingerprint_sha256())
    }

    /// Whether the door let somebody in.
    pub(super) fn is_known(&self) -> bool {
        self.peer.is_some()
    }

    /// When its connection was accepted; none if nobody was let in.
    pub(super) fn accepted(&self) -> Option<Instant> {
        self.peer.as_ref().map(PeerIdentity::accepted)
    }

    /// As a job records it.
    pub(super) fn requester(&self) -> Requester {
        Requester {
            identity: self.identity().to_owned(),
            fingerprint: self.fingerprint().to_owned(),
            address: self.peer.as_ref().map(|p| p.address().ip().to_string()).unwrap_or_default(),
            request_id: self.request_id,
        }
    }

    /// As the audit trail records it.
    pub(super) fn for_audit(&self) -> patch_audit::Caller {
        patch_audit::Caller {
            identity: self.peer.as_ref().map(|p| p.common_name().to_owned()),
            fingerprint: self.peer.as_ref().map(|p| p.fingerprint_sha256().to_owned()),
            address: self.peer.as_ref().map(|p| p.address().ip()),
            request_id: Some(self.request_id),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}
