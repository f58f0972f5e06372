//! `GET /metrics`: what Prometheus reads, and the counters behind it.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use axum::{
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use patch_backends::apt;
use patch_service::Refusal;
use patch_types::{
    JobStatus,
    api::CrlStatus,
    compliance::FixState,
    executor::{RootStatus, STATUS_FILE},
    policy::PolicyMode,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use super::{app::App, reply::internal};
use crate::{checkpoint::Trouble, config, ends, jobs::JobFilter};

const STATUSES: [JobStatus; 6] = [
    JobStatus::Pending,
    JobStatus::Running,
    JobStatus::Completed,
    JobStatus::Failed,
    JobStatus::Cancelled,
    JobStatus::Timeout,
];

/// The largest status of the root side; it has some 100 bytes.
const MAX_STATUS: u64 = 4 << 10;

/// The labels of a request. A route is its pattern, never what a client sent, so that the number of series is bounded.
#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CertificateLabel {
    certificate: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Gauges that are read when somebody asks, not kept up to date.
#[derive(Debug, Default)]
struct Scraped {
    door: Family<ReasonLabel, Gauge>,
    accepted: Gauge,
    jobs: Family<StatusLabel, Gauge>,
    outcomes: Family<OutcomeLabel, Counter<u64, AtomicU64>>,
    config_in_force: Gauge,
    audit_records: Gauge,
    audit_healthy: Gauge,
    audit_lost: Gauge,
    audit_set_aside: Gauge,
    signed_records: Gauge,
    signing: Family<StatusLabel, Gauge>,
    list_entries: Gauge,
    list_in_force: Gauge,
    list_read: Gauge,
    list_reads: Family<ResultLabel, Counter<u64, AtomicU64>>,
    packages: Gauge,
    upgradable: Gauge,
    security: Gauge,
    fixes: Family<StateLabel, Gauge>,
    fixes_barred: Gauge,
    fixes_over_promise: Gauge,
    fixes_uncertain: Gauge,
    last_good_look: Gauge,
    oldest_fix_hours: Gauge,
    certificate_expiry: Gauge,
    ca_expiry: Gauge,
    expires_in: Family<CertificateLabel, Gauge>,
    crl_status: Family<StatusLabel, Gauge>,
    uptime: Gauge,
    started: Gauge,
    unplanned: Counter<u64, AtomicU64>,
    checked: Gauge,
    policy: Gauge,
    policy_next: Gauge,
    policy_success: Gauge,
    policy_failures: Gauge,
    log_size: Gauge,
    log_free: Gauge,
}

/// All metrics of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram, fn() -> Histogram>,
    limited: Counter<u64, AtomicU64>,
    uploads: Family<ResultLabel, Counter>,
    certificate_reloads: Family<ResultLabel, Counter>,
    reloads: Family<OutcomeLabel, Counter>,
    /// How often the root side's status was no such thing.
    unreadable: Counter<u64, AtomicU64>,
    /// Whether that was said in the log.
    complained: AtomicBool,
    scraped: Scraped,
}

fn histogram() -> Histogram {
    Histogram::new([0.000_5, 0.001, 0.002_5, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("linux_patch_api");
        let requests = Family::default();
        let durations = Family::new_with_constructor(histogram as fn() -> Histogram);
        let limited = Counter::default();
        let reloads = Family::default();
        let unreadable = Counter::default();
        let uploads = Family::default();
        let certificate_reloads = Family::default();
        let s = Scraped::default();
        registry.register("requests", "Requests by route, method and status", requests.clone());
        registry.register("request_duration_seconds", "Time to answer", durations.clone());
        registry.register("rate_limited", "Requests refused by the rate limit", limited.clone());
        registry.register(
            "config_reloads",
            "Changes of the configuration since the start, by outcome: applied, refused",
            reloads.clone(),
        );
        registry.register(
            "config_in_force",
            "1 if the configuration on disk is in force, 0 if it was refused",
            s.config_in_force.clone(),
        );
        registry.register(
            "door_refusals",
            "Connections refused before any request, by reason, since the start",
            s.door.clone(),
        );
        registry.register(
            "handshakes_completed",
            "Connections that were let in, since the start",
            s.accepted.clone(),
        );
        registry.register("jobs", "Jobs that are kept, by status", s.jobs.clone());
        registry.register("job_outcomes", "Jobs that ended since the start, by outcome", s.outcomes.clone());
        registry.register(
            "root_status_unreadable",
            "How often the root side's status was there and could not be used",
            unreadable.clone(),
        );
        registry.register("audit_records", "The audit trail's last number", s.audit_records.clone());
        registry.register("audit_healthy", "1 if the audit trail can be written", s.audit_healthy.clone());
        registry.register(
            "audit_lost",
            "Records that could not be written since writing fails",
            s.audit_lost.clone(),
        );
        registry.register(
            "audit_set_aside",
            "Files of the audit trail that were found damaged and set aside, and are still there",
            s.audit_set_aside.clone(),
        );
        registry.register(
            "audit_signed_records",
            "The last record that the root side has signed since the start, 0 if none",
            s.signed_records.clone(),
        );
        registry.register(
            "audit_checkpoint",
            "1 for how the last attempt to have the audit trail signed ended",
            s.signing.clone(),
        );
        registry.register(
            "allow_list_entries",
            "Entries of the allow list in force, a name counted with each of its addresses",
            s.list_entries.clone(),
        );
        registry.register(
            "allow_list_in_force",
            "1 if the allow list on disk is in force, 0 if it was refused",
            s.list_in_force.clone(),
        );
        registry.register(
            "allow_list_read_timestamp_seconds",
            "When an allow list that could be used was last read from disk, 0 if never",
            s.list_read.clone(),
        );
        registry.register(
            "allow_list_reads",
            "How often the allow list was read from disk, by result: applied, refused",
            s.list_reads.clone(),
        );
        registry.register("packages_installed", "Installed packages", s.packages.clone());
        registry.register("packages_upgradable", "Packages with an update", s.upgradable.clone());
        registry.register("packages_security", "Packages with a security update", s.security.clone());
        registry.register("fixes", "Security fixes by state, as in GET /compliance", s.fixes.clone());
        registry.register(
            "fixes_barred",
            "Security fixes that are not installed, since they were taken back on this host",
            s.fixes_barred.clone(),
        );
        registry.register(
            "fixes_over_promise",
            "Security fixes that certainly took or take longer than promised",
            s.fixes_over_promise.clone(),
        );
        registry.register(
            "fixes_uncertain",
            "Security fixes that perhaps took or take longer than promised",
            s.fixes_uncertain.clone(),
        );
        registry.register(
            "fixes_last_good_look_timestamp_seconds",
            "When the agent last saw all that tells of security fixes, 0 if never since the start",
            s.last_good_look.clone(),
        );
        registry.register(
            "oldest_open_fix_hours",
            "For how long, at the least, the oldest security fix that is not installed has been out, 0 if none",
            s.oldest_fix_hours.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the server's certificate expires",
            s.certificate_expiry.clone(),
        );
        registry.register(
            "ca_expiry_timestamp_seconds",
            "When the CA's certificate expires",
            s.ca_expiry.clone(),
        );
        registry.register(
            "certificate_expires_in_seconds",
            "Time until the server's certificate (server), the CA's (ca) or the revocation list (crl) expires, negative since",
            s.expires_in.clone(),
        );
        registry.register(
            "crl_status",
            "1 for the revocation list's state, as in GET /health",
            s.crl_status.clone(),
        );
        registry.register(
            "crl_uploads",
            "Revocation lists that came over the API, by result",
            uploads.clone(),
        );
        registry.register(
            "certificate_reloads",
            "How often the certificates were read again, by result",
            certificate_reloads.clone(),
        );
        registry.register("uptime_seconds", "Seconds since the start", s.uptime.clone());
        registry.register("start_time_seconds", "When the agent was started", s.started.clone());
        registry.register(
            "unplanned_ends",
            "Runs on this host that did not end cleanly: a crash, a kill, a loss of power",
            s.unplanned.clone(),
        );
        registry.register(
            "indexes_refreshed_timestamp_seconds",
            "When the package indexes were fetched last, 0 if never",
            s.checked.clone(),
        );
        registry.register(
            "policy_agent_mode",
            "1 if the agent patches by itself (policy.mode: agent), 0 if it does not",
            s.policy.clone(),
        );
        registry.register(
            "policy_next_run_timestamp_seconds",
            "When the agent patches by itself next, 0 if that is not known",
            s.policy_next.clone(),
        );
        registry.register(
            "policy_last_success_timestamp_seconds",
            "When a run of the agent's own last ended well, 0 if never",
            s.policy_success.clone(),
        );
        registry.register(
            "policy_failures",
            "Runs of the agent's own that have failed since the last that did not",
            s.policy_failures.clone(),
        );
        registry.register(
            "log_disk_size_bytes",
            "The size of the file system that the audit trail lies on",
            s.log_size.clone(),
        );
        registry.register(
            "log_disk_free_bytes",
            "What the agent could still write there",
            s.log_free.clone(),
        );
        s.started.set(Timestamp::now().as_second());
        let build = Info::new(vec![("version", crate::VERSION)]);
        registry.register("build", "The agent's version", build);
        Self {
            registry,
            requests,
            durations,
            limited,
            uploads,
            certificate_reloads,
            reloads,
            unreadable,
            complained: AtomicBool::new(false),
            scraped: s,
        }
    }
}

impl Metrics {
    /// Counts an answered request.
    pub fn answered(&self, method: &'static str, route: &str, status: u16, seconds: f64) {
        let route = route.to_owned();
        self.requests.get_or_create(&RequestLabels { method, route: route.clone(), status }).inc();
        self.durations.get_or_create(&RouteLabels { method, route }).observe(seconds);
    }

    /// Counts a request that the rate limit refused.
    pub fn limited(&self) {
        self.limited.inc();
    }

    /// Counts a revocation list that came over the API: replaced, unchanged, refused.
    pub fn uploaded(&self, result: &'static str) {
        self.uploads.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a time that the certificates were read again, and whether all of them could be used.
    pub fn certificates_read(&self, good: bool) {
        self.certificate_reloads
            .get_or_create(&ResultLabel { result: if good { "ok" } else { "refused" } })
            .inc();
    }

    /// Counts a change of the configuration: whether it was applied.
    pub fn reloaded(&self, applied: bool) {
        let outcome = if applied { "applied" } else { "refused" };
        self.reloads.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    fn scrape(&self, app: &App) -> Result<String, std::fmt::Error> {
        let s = &self.scraped;
        for (reason, count) in app.door().refusals() {
            s.door.get_or_create(&ReasonLabel { reason }).set(signed(count));
        }
        s.accepted.set(signed(app.door().accepted()));
        for status in STATUSES {
            let filter = JobFilter { status: Some(status), limit: Some(0), ..JobFilter::default() };
            let count = app.jobs().list(&filter).total;
            s.jobs.get_or_create(&StatusLabel { status: status.as_str() }).set(signed(count as u64));
        }
        for (outcome, count) in app.jobs().outcomes() {
            s.outcomes.get_or_create(&OutcomeLabel { outcome }).inner().store(count, Ordering::Relaxed);
        }
        s.config_in_force.set(app.config_refused().is_none().into());
        let root = self.root_status(app.root());
        let audit = app.audit().status();
        s.audit_records.set(audit.head.map_or(0, |h| signed(h.seq)));
        s.audit_healthy.set(audit.is_healthy().into());
        s.audit_lost.set(signed(audit.lost));
        let signing = app.signing().load_full();
        s.signed_records.set(signing.signed.map_or(0, |(seq, _)| signed(seq)));
        let ended = match signing.trouble {
            Some(Trouble::Refused(_)) => "refused",
            Some(Trouble::Unanswered(_) | Trouble::Ended(_)) => "unanswered",
            None => "signed",
        };
        for status in ["signed", "refused", "unanswered"] {
            s.signing.get_or_create(&StatusLabel { status }).set((status == ended).into());
        }
        if let Some(door) = app.served_by() {
            let (list, status) = (door.allow_list().load(), door.allow_list().status());
            s.list_entries.set(signed(list.entries().len() as u64));
            s.list_in_force.set(status.problem.is_none().into());
            s.list_read.set(status.good_at.map_or(0, Timestamp::as_second));
            for (result, count) in [("applied", status.applied), ("refused", status.refused)] {
                s.list_reads.get_or_create(&ResultLabel { result }).inner().store(count, Ordering::Relaxed);
            }
        }
        let counts = app.inventory().counts().unwrap_or_default();
        s.packages.set(signed(counts.installed as u64));
        s.upgradable.set(signed(counts.upgradable as u64));
        s.security.set(signed(counts.security as u64));
        let fixes = app.compliance().summary();
        for (state, count) in [
            (FixState::Open, fixes.open),
            (FixState::Blocked, fixes.blocked),
            (FixState::OnDisk, fixes.on_disk),
            (FixState::Effective, fixes.effective),
        ] {
            s.fixes.get_or_create(&StateLabel { state: state.as_str() }).set(signed(count as u64));
        }
        s.fixes_barred.set(signed(fixes.barred as u64));
        s.fixes_over_promise.set(signed(fixes.over_promise as u64));
        s.fixes_uncertain.set(signed(fixes.uncertain as u64));
        s.last_good_look.set(app.compliance().last_good_look().map_or(0, Timestamp::as_second));
        s.oldest_fix_hours.set(fixes.oldest_open_hours.unwrap_or_default().into());
        let certificates = app.certificates();
        s.certificate_expiry.set(certificates.server_expires.map_or(0, Timestamp::as_second));
        s.ca_expiry.set(certificates.ca_expires.map_or(0, Timestamp::as_second));
        let now = Timestamp::now();
        for (certificate, until) in [
            ("server", certificates.server_expires),
            ("ca", certificates.ca_expires),
            ("crl", certificates.crl_next_update(now)),
        ] {
            let label = CertificateLabel { certificate };
            if let Some(until) = until {
                s.expires_in.get_or_create(&label).set(until.duration_since(now).as_secs());
            } else {
                s.expires_in.remove(&label);
            }
        }
        let status = certificates.crl_status(now);
        for (one, name) in [
            (CrlStatus::Valid, "valid"),
            (CrlStatus::Expired, "expired"),
            (CrlStatus::Missing, "missing"),
            (CrlStatus::Invalid, "invalid"),
        ] {
            s.crl_status.get_or_create(&StatusLabel { status: name }).set((one == status).into());
        }
        s.uptime.set(signed(app.uptime().as_secs()));
        s.unplanned.inner().store(ends::unplanned(app.root()), Ordering::Relaxed);
        s.checked.set(apt::last_update_check(app.root()).map_or(0, Timestamp::as_second));
        let policy = &app.policy().state;
        s.policy.set((policy.mode == PolicyMode::Agent).into());
        s.policy_next.set(policy.next_run.map_or(0, Timestamp::as_second));
        s.policy_success.set(policy.last_success.map_or(0, Timestamp::as_second));
        s.policy_failures.set(policy.failures.into());
        if let Some((size, free)) = log_disk(app.root()) {
            s.log_size.set(signed(size));
            s.log_free.set(signed(free));
        }
        let mut out = String::with_capacity(8192);
        text::encode_registry(&mut out, &self.registry)?;
        if let Some(root) = root {
            text::encode_registry(&mut out, &rollback(root))?;
        }
        text::encode_eof(&mut out)?;
        Ok(out)
    }

    /// What the root side says of itself; none if it has not said anything, or nothing that can be understood.
    pub(super) fn root_status(&self, root: &Path) -> Option<RootStatus> {
        let path = root.join(STATUS_FILE);
        match read_status(&path) {
            Ok(status) => {
                self.complained.store(false, Ordering::Relaxed);
                Some(status)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.unreadable.inc();
                if !self.complained.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "{} cannot be used, so what the root side says of itself is missing", path.display());
                }
                None
            }
        }
    }
}

fn read_status(path: &Path) -> io::Result<RootStatus> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_STATUS).read_to_end(&mut text)?;
    // An object only: a list would be taken for the fields in their order.
    let object: serde_json::Map<_, _> = serde_json::from_slice(&text)?;
    Ok(serde_json::from_value(object.into())?)
}

/// Size and free bytes of the file system of the audit trail.
fn log_disk(root: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(root.join(config::LOG_DIR)).ok()?;
    Some((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// The metrics of going back, which are the root side's and therefore have its prefix.
fn rollback(status: RootStatus) -> Registry {
    let mut registry = Registry::with_prefix("linux_patch");
    for (name, help, value) in [
        ("rollback_archives", "Archives that are kept for going back", status.archives),
        ("rollback_archive_bytes", "The room that they take", status.archive_bytes),
        ("taken_back_versions", "Versions that were taken back and are held off", status.taken_back),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(signed(value));
        registry.register(name, help, gauge);
    }
    registry
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What Prometheus reads, in the OpenMetrics text format.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "getMetrics",
    tag = "observation",
    responses((status = 200, description = "Metrics", body = String, content_type = "application/openmetrics-text"))
)]
pub(super) async fn get(State(app): State<App>) -> Result<Response, Refusal> {
    // Without an answer it stays as it was.
    if let Some(aside) = app.set_aside().await {
        app.metrics().scraped.audit_set_aside.set(signed(aside.files.len() as u64));
    }
    let text = app.metrics().scrape(&app).map_err(|e| internal("the metrics could not be written", e))?;
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
