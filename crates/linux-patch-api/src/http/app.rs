//! What the handlers share.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use patch_audit::AuditLog;
use patch_service::LoadedTls;
use patch_types::api::CrlStatus;

use super::{metrics::Metrics, rate::RateLimit, shown::Shown};
use crate::{config::Settings, door::DoorCounters, executor::Executor, inventory::Inventory, jobs::Jobs};

/// How long the health check believes what it knows of the root side: each look has the root side start a process.
const PING_EVERY: Duration = Duration::from_secs(10);

/// When the root side was last looked at, and what was seen.
type LastPing = Option<(Instant, Result<(), String>)>;

/// What is known of the certificates in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Certificates {
    /// When the server's certificate expires.
    pub server_expires: Option<Timestamp>,
    /// When the first of the CA's certificates expires.
    pub ca_expires: Option<Timestamp>,
    /// Whether there is a revocation list.
    pub has_crl: bool,
    /// Whether the last attempt to put a revocation list in force failed.
    pub crl_refused: bool,
    /// When the revocation list was issued.
    pub crl_this_update: Option<Timestamp>,
    /// When the next one is due.
    pub crl_next_update: Option<Timestamp>,
}

impl Certificates {
    /// The facts of a configuration in force.
    #[must_use]
    pub fn of(tls: &LoadedTls) -> Self {
        Self {
            server_expires: Some(tls.server.not_after),
            ca_expires: tls.ca.iter().map(|c| c.not_after).min(),
            has_crl: !tls.crls.is_empty(),
            crl_refused: false,
            crl_this_update: tls.crls.iter().map(|c| c.this_update).min(),
            crl_next_update: tls.crls.iter().filter_map(|c| c.next_update).min(),
        }
    }

    /// The state of the revocation list.
    #[must_use]
    pub fn crl_status(&self, now: Timestamp) -> CrlStatus {
        if self.crl_refused {
            CrlStatus::Invalid
        } else if !self.has_crl {
            CrlStatus::Missing
        } else if self.crl_next_update.is_some_and(|next| next <= now) {
            CrlStatus::Expired
        } else {
            CrlStatus::Valid
        }
    }
}

/// What an application is made of.
pub struct Parts {
    /// The root prefix.
    pub root: PathBuf,
    /// The configuration in force.
    pub settings: Settings,
    /// The jobs.
    pub jobs: Jobs,
    /// The root side.
    pub executor: Executor,
    /// The packages.
    pub inventory: Inventory,
    /// The audit trail.
    pub audit: Arc<AuditLog>,
    /// What happened at the door.
    pub door: Arc<DoorCounters>,
}

struct Inner {
    root: PathBuf,
    settings: ArcSwap<Settings>,
    jobs: Jobs,
    executor: Executor,
    inventory: Inventory,
    audit: Arc<AuditLog>,
    door: Arc<DoorCounters>,
    metrics: Metrics,
    rate: RateLimit,
    shown: Shown,
    certificates: ArcSwap<Certificates>,
    /// Locked while the root side is looked at, so that health checks at the same time share one look.
    ping: tokio::sync::Mutex<LastPing>,
    started: Instant,
}

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

impl App {
    /// Puts the parts together. The clock of the uptime starts here.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            root: parts.root,
            settings: ArcSwap::from_pointee(parts.settings),
            jobs: parts.jobs,
            executor: parts.executor,
            inventory: parts.inventory,
            audit: parts.audit,
            door: parts.door,
            metrics: Metrics::default(),
            rate: RateLimit::default(),
            shown: Shown::default(),
            certificates: ArcSwap::default(),
            ping: tokio::sync::Mutex::default(),
            started: Instant::now(),
        }))
    }

    pub(super) fn root(&self) -> &Path {
        &self.0.root
    }

    pub(super) fn settings(&self) -> Arc<Settings> {
        self.0.settings.load_full()
    }

    pub(super) fn jobs(&self) -> &Jobs {
        &self.0.jobs
    }

    pub(super) fn executor(&self) -> &Executor {
        &self.0.executor
    }

    /// The packages.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.0.inventory
    }

    pub(super) fn audit(&self) -> &AuditLog {
        &self.0.audit
    }

    pub(super) fn door(&self) -> &DoorCounters {
        &self.0.door
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(super) fn rate(&self) -> &RateLimit {
        &self.0.rate
    }

    /// The plans that were shown lately.
    pub(super) fn shown(&self) -> &Shown {
        &self.0.shown
    }

    pub(super) fn certificates(&self) -> Arc<Certificates> {
        self.0.certificates.load_full()
    }

    /// Takes note of the certificates in force.
    pub fn note_certificates(&self, certificates: Certificates) {
        self.0.certificates.store(Arc::new(certificates));
    }

    /// Whether the root side accepts connections, as it was seen within the last few seconds.
    pub(super) async fn executor_answers(&self) -> Result<(), String> {
        let mut last = self.0.ping.lock().await;
        if let Some((at, result)) = &*last
            && at.elapsed() < PING_EVERY
        {
            return result.clone();
        }
        let result = self.executor().ping().await.map_err(|e| e.message);
        *last = Some((Instant::now(), result.clone()));
        result
    }

    pub(super) fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }
}
