//! The door that all our servers share: who may come in, how they are told who they are, how answers are wrapped.
//!
//! It knows nothing of what lies behind it: no nouns of the product, no audit trail, no roles. What happens at the
//! door goes to a [`DoorObserver`], and the program decides what to record. Stopping, starting and supervising the
//! process are the program's own affairs too.
//!
//! | module | owns |
//! | --- | --- |
//! | [`event`] | [`DoorObserver`], [`DoorEvent`], [`AuthFailure`] |
//! | [`certificate`] | [`CertificateFacts`], [`CrlFacts`], [`PemInput`], [`TlsError`]: reading PEM and saying what is wrong with it |
//! | [`tls`] | [`TlsSource`], [`TlsOptions`], [`LoadedTls`], [`ServerPair`], [`Trust`]: the TLS 1.3 server configuration and its client verifier |
//! | [`silence`] | [`silence::Gate`]: what a stranger sees, in bytes |
//! | [`allowlist`] | [`AllowList`], [`AllowListWatcher`] |
//! | [`listener`] | [`Door`], [`DoorSettings`], [`PeerIdentity`]: accept, shake hands, serve, close, drain |
//! | [`envelope`] | [`Reply`], [`Refusal`], [`RawData`], [`RequestId`], [`request_id`](envelope::request_id) |
//! | [`strict`] | [`strict`](strict::strict) (middleware before routing), [`StrictJson`], [`StrictQuery`], `not_found` |
//! | [`pki`] | `init`, `add_client`, `write_crl`: a CA for development and tests |
//! | [`config`] | [`parse_yaml`](config::parse_yaml), [`ConfigError`], [`FileWatcher`] |
//!
//! How a program puts them together:
//!
//! ```no_run
//! # use std::{sync::Arc, path::Path};
//! # use patch_service::*;
//! # async fn run(observer: Arc<dyn DoorObserver>, router: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
//! let source = TlsSource::read(Path::new("ca.pem"), Path::new("server.pem"), Path::new("server.key.pem"), None)?;
//! let tls = LoadedTls::load(&source, TlsOptions::default())?;
//! let watcher = AllowListWatcher::start(Path::new("whitelist.yaml"), Arc::clone(&observer)).await;
//! let door = Door::new(DoorSettings::default(), tls, watcher.list(), observer);
//! // Outermost first: the id, then the strict checks, then the routes.
//! let app = router
//!     .fallback(strict::not_found)
//!     .layer(axum::middleware::from_fn(strict::strict))
//!     .layer(axum::middleware::from_fn(envelope::request_id));
//! let stop = tokio_util::sync::CancellationToken::new();
//! let listener = door.bind("0.0.0.0:12443".parse()?).await?;
//! door.serve(listener, app, stop).await;
//! door.drain(std::time::Duration::from_secs(10)).await;
//! # Ok(())
//! # }
//! ```

pub mod allowlist;
pub mod certificate;
pub mod config;
pub mod envelope;
pub mod event;
mod handshakes;
pub mod listener;
mod notices;
pub mod pki;
mod registry;
mod reports;
pub mod shape;
pub mod silence;
pub mod strict;
#[cfg(test)]
mod testing;
pub mod tls;
mod watch;

pub use crate::{
    allowlist::{AllowList, AllowListWatcher, ListChange, ListReport, ListStatus, SharedAllowList},
    certificate::{CertificateFacts, CrlFacts, PemInput, TlsError},
    config::{ConfigError, FileSetWatcher, FileState, FileWatcher},
    envelope::{RawData, Refusal, Reply, RequestId},
    event::{AuthFailure, DoorEvent, DoorObserver},
    listener::{Door, DoorSettings, PeerIdentity},
    strict::{StrictJson, StrictQuery},
    tls::{Allowed, ExpiredCrl, LoadedTls, ServerPair, TlsOptions, TlsSource, Trust, VerifiedCrl},
};
