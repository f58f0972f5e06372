//! What the handlers share.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use patch_audit::AuditLog;
use patch_service::{CrlFacts, Door, LoadedTls, tls};
use patch_types::{JobId, api::CrlStatus};
use tokio::sync::watch;

use super::{metrics::Metrics, rate::RateLimit, shown::Shown};
use crate::{
    audit::{self, Looks},
    certificates::Problems,
    checkpoint::Signing,
    compliance::Compliance,
    config::Settings,
    door::DoorCounters,
    executor::Executor,
    inventory::Inventory,
    jobs::Jobs,
    policy::Note,
};

/// How long the health check believes what it knows of the root side: each look has the root side start a process.
const PING_EVERY: Duration = Duration::from_secs(10);

/// How long looking for what was set aside of the audit trail may take.
const LOOK: Duration = Duration::from_secs(1);

/// When the root side was last looked at, and what was seen.
type LastPing = Option<(Instant, Result<(), String>)>;

/// What is known of the certificates in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Certificates {
    /// When the server's certificate expires.
    pub server_expires: Option<Timestamp>,
    /// When the first of the CA's certificates expires.
    pub ca_expires: Option<Timestamp>,
    /// When the last of them does.
    pub ca_ends: Option<Timestamp>,
    /// Whether there is a revocation list.
    pub has_crl: bool,
    /// Whether the last attempt to put a revocation list in force failed.
    pub crl_refused: bool,
    /// Whether only an older list could be had than was in force before.
    pub crl_stale: bool,
    /// What is wrong with what is on disk, and therefore not in force.
    pub problems: Problems,
    /// From when the server's certificate is valid.
    pub server_from: Option<Timestamp>,
    /// From when that of the CA's certificates is valid that expires first.
    pub ca_from: Option<Timestamp>,
    /// The revocation lists.
    pub lists: Vec<ListDates>,
    /// Those who sign lists of which it is not known how new they have to be.
    pub doubtful: BTreeSet<String>,
}

/// Until when a revocation list matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListDates {
    /// When it was issued.
    pub this_update: Timestamp,
    /// When the next one is due, if it says so.
    pub next_update: Option<Timestamp>,
    /// Until when its CA lets anybody in.
    pub ca_until: Timestamp,
}

impl Certificates {
    /// The facts of a configuration in force.
    #[must_use]
    pub fn of(tls: &LoadedTls) -> Self {
        let ca = tls.ca.iter().min_by_key(|c| c.not_after);
        let list = |crl: &CrlFacts| ListDates {
            this_update: crl.this_update,
            next_update: crl.next_update,
            ca_until: tls.trust().until(crl).unwrap_or(Timestamp::MAX),
        };
        Self {
            server_expires: Some(tls.server.not_after),
            server_from: Some(tls.server.not_before),
            ca_expires: ca.map(|c| c.not_after),
            ca_ends: tls.ca.iter().map(|c| c.not_after).max(),
            ca_from: ca.map(|c| c.not_before),
            has_crl: !tls.crls.is_empty(),
            lists: tls.crls.iter().map(list).collect(),
            ..Self::default()
        }
    }

    /// Whether nobody can tell a revoked certificate from a good one: the list in force has expired, or is older than one
    /// that was in force before.
    #[must_use]
    pub fn is_shut(&self, now: Timestamp) -> bool {
        self.crl_stale || self.is_overdue(now)
    }

    /// Of the revocation lists the one that is due first. Nobody issues the lists of a CA that has expired, and nobody gets
    /// in by it: its lists count only if no other CA is left.
    #[must_use]
    pub fn due_first(&self, now: Timestamp) -> Option<&ListDates> {
        let is_idle = |list: &ListDates| !tls::is_good_at(list.ca_until, now);
        let due = |list: &&ListDates| (is_idle(list), list.next_update.unwrap_or(Timestamp::MAX));
        // Without a list of a CA that is good, what counts is whether there is such a CA.
        let is_over = self.ca_ends.is_none_or(|until| !tls::is_good_at(until, now));
        self.lists.iter().min_by_key(due).filter(|list| is_over || !is_idle(list))
    }

    /// When the revocation list was issued that is due first.
    #[must_use]
    pub fn crl_this_update(&self, now: Timestamp) -> Option<Timestamp> {
        self.due_first(now).map(|list| list.this_update)
    }

    /// When the next revocation list is due.
    #[must_use]
    pub fn crl_next_update(&self, now: Timestamp) -> Option<Timestamp> {
        self.due_first(now).and_then(|list| list.next_update)
    }

    fn is_overdue(&self, now: Timestamp) -> bool {
        self.crl_next_update(now).is_some_and(|next| next <= now)
    }

    /// The state of the revocation list.
    #[must_use]
    pub fn crl_status(&self, now: Timestamp) -> CrlStatus {
        if self.is_overdue(now) {
            CrlStatus::Expired
        } else if self.crl_refused || self.crl_stale {
            CrlStatus::Invalid
        } else if !self.has_crl {
            CrlStatus::Missing
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
    settings_changed: watch::Sender<()>,
    /// What the agent does by itself.
    policy: Arc<ArcSwap<Note>>,
    jobs: Jobs,
    executor: Executor,
    inventory: Inventory,
    compliance: Compliance,
    audit: Arc<AuditLog>,
    door: Arc<DoorCounters>,
    metrics: Metrics,
    rate: RateLimit,
    shown: Shown,
    certificates: ArcSwap<Certificates>,
    signing: Arc<ArcSwap<Signing>>,
    looks: Looks,
    /// Held while certificates are exchanged, so that one exchange sees what the one before left.
    exchange: Arc<tokio::sync::Mutex<()>>,
    served_by: OnceLock<Door>,
    /// Which boot this is, once the root side has said it.
    boot: OnceLock<String>,
    /// Why the configuration on disk is not the one in force.
    config_refused: ArcSwapOption<String>,
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
        let policy: Arc<ArcSwap<Note>> = Arc::default();
        let compliance = Compliance::new(
            &parts.root,
            parts.executor.clone(),
            parts.inventory.clone(),
            parts.jobs.clone(),
            Arc::clone(&policy),
        );
        Self(Arc::new(Inner {
            compliance,
            root: parts.root,
            settings: ArcSwap::from_pointee(parts.settings),
            settings_changed: watch::Sender::new(()),
            policy,
            jobs: parts.jobs,
            executor: parts.executor,
            inventory: parts.inventory,
            audit: parts.audit,
            door: parts.door,
            metrics: Metrics::default(),
            rate: RateLimit::default(),
            shown: Shown::default(),
            certificates: ArcSwap::default(),
            signing: Arc::default(),
            looks: Looks::default(),
            exchange: Arc::default(),
            served_by: OnceLock::new(),
            boot: OnceLock::new(),
            config_refused: ArcSwapOption::empty(),
            ping: tokio::sync::Mutex::default(),
            started: Instant::now(),
        }))
    }

    /// Which boot of the host this is, asked of the root side by `ask` once: this program does not outlive it, and its own sandbox
    /// may show it another one's.
    pub(crate) async fn boot(&self, ask: impl Future<Output = Option<String>>) -> Option<String> {
        if let Some(boot) = self.0.boot.get() {
            return Some(boot.clone());
        }
        let boot = ask.await.map(|boot| boot.trim().to_owned()).filter(|boot| !boot.is_empty())?;
        Some(self.0.boot.get_or_init(|| boot).clone())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0.root
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.0.settings.load_full()
    }

    /// Puts another configuration into effect for the requests that come.
    pub fn put_settings(&self, settings: Arc<Settings>) {
        self.0.settings.store(settings);
        self.0.settings_changed.send_replace(());
    }

    /// Tells of every change of the configuration.
    pub(crate) fn settings_changes(&self) -> watch::Receiver<()> {
        self.0.settings_changed.subscribe()
    }

    /// Takes note of what the agent does by itself.
    pub(crate) fn note_policy(&self, note: Note) {
        self.0.policy.store(Arc::new(note));
    }

    pub(crate) fn policy(&self) -> Arc<Note> {
        self.0.policy.load_full()
    }

    /// The job that could not be rolled back and was not repaired, as the root side says.
    pub(crate) fn rollback_failed(&self) -> Option<JobId> {
        self.metrics().root_status(self.root())?.rollback_failed
    }

    /// Takes note of how it went when the configuration was last read: why it was refused, if it was.
    pub fn note_config(&self, refused: Option<String>) {
        self.0.config_refused.store(refused.map(Arc::new));
    }

    pub(crate) fn config_refused(&self) -> Option<Arc<String>> {
        self.0.config_refused.load_full()
    }

    pub(super) fn jobs(&self) -> &Jobs {
        &self.0.jobs
    }

    pub(crate) fn executor(&self) -> &Executor {
        &self.0.executor
    }

    /// The packages.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.0.inventory
    }

    /// How well this host keeps its promise.
    #[must_use]
    pub fn compliance(&self) -> &Compliance {
        &self.0.compliance
    }

    pub(crate) fn audit(&self) -> &AuditLog {
        &self.0.audit
    }

    pub(super) fn door(&self) -> &DoorCounters {
        &self.0.door
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(super) fn rate(&self) -> &RateLimit {
        &self.0.rate
    }

    /// The plans that were shown lately.
    pub(super) fn shown(&self) -> &Shown {
        &self.0.shown
    }

    /// Takes note of the door that this is served behind, for what changes who may pass it. Once only.
    pub fn behind(&self, door: &Door) {
        let _ = self.0.served_by.set(door.clone());
    }

    pub(crate) fn served_by(&self) -> Option<&Door> {
        self.0.served_by.get()
    }

    /// The turn to exchange certificates: until it is dropped nobody else does.
    pub(crate) async fn certificate_turn(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.0.exchange).lock_owned().await
    }

    pub(crate) fn audit_trail(&self) -> Arc<AuditLog> {
        Arc::clone(&self.0.audit)
    }

    /// How it goes with the root side's signatures of the audit trail. Whoever asks for them writes it.
    #[must_use]
    pub fn signing(&self) -> Arc<ArcSwap<Signing>> {
        Arc::clone(&self.0.signing)
    }

    /// What was set aside of the audit trail; none if its directory does not answer.
    pub(super) async fn set_aside(&self) -> Option<audit::SetAside> {
        let root = self.root().to_owned();
        self.0.looks.look(LOOK, move || audit::set_aside(&root)).await
    }

    pub(crate) fn certificates(&self) -> Arc<Certificates> {
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
