//! The daemon's life: start, reload, stop.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use jiff::Timestamp;
use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller, CertificateRole};
use patch_service::{
    AllowListWatcher, Door, DoorObserver, DoorSettings, ExpiredCrl, LoadedTls, TlsOptions, TlsSource,
};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::Audit,
    config::{self, Settings},
    door::{DoorCounters, Recorder},
    executor::Executor,
    http::{self, App, Certificates, Parts},
    inventory::Inventory,
    jobs::{JobSettings, Jobs},
};

/// How long requests in flight may take when the daemon stops.
const DRAIN: Duration = Duration::from_secs(10);

/// How long requests in flight have before the jobs are closed.
const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// How often open connections are judged again, so that a certificate that expires ends its connections.
const JUDGE: Duration = Duration::from_secs(300);

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start: what could not be done, to what, and why.
pub async fn run(root: &Path, settings: Settings) -> anyhow::Result<()> {
    let audit = Arc::new(open_audit(root, &settings)?);
    let result = serve(root, settings, &audit).await;
    let reason = match &result {
        Ok(signal) => format!("asked by {signal}"),
        Err(error) => format!("{error:#}"),
    };
    audit.record_later(AuditEvent::new(AuditKind::ServiceStopped { reason }, &Caller::local()));
    let flushed = tokio::task::spawn_blocking(move || audit.close()).await;
    if flushed.is_err() {
        tracing::error!("the audit trail could not be closed");
    }
    result.map(drop)
}

fn open_audit(root: &Path, settings: &Settings) -> anyhow::Result<AuditLog> {
    let mut options = patch_audit::Options::new("linux-patch-api");
    options.keep_days = Some(settings.retention_days);
    // The journal of this host is not that of the host below a root prefix.
    if root != Path::new("/") {
        options = options.without_journal();
    }
    let path = root.join(patch_audit::LOG_PATH);
    AuditLog::open(&path, options)
        .with_context(|| format!("the audit trail {} is needed before anything else", path.display()))
}

/// Serves until a signal comes, and returns its name.
async fn serve(root: &Path, settings: Settings, log: &Arc<AuditLog>) -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let audit = Audit::new(Arc::clone(log));
    let started = AuditKind::ServiceStarted { version: crate::VERSION.to_owned() };
    audit
        .record_durable(AuditEvent::new(started, &Caller::local()))
        .await
        .context("the start could not be recorded in the audit trail")?;
    if !settings.inactive.is_empty() {
        tracing::warn!(
            sections = settings.inactive.join(", "),
            "these parts of config.yaml are valid, but this version does not act upon them"
        );
    }

    let tls = load_tls(&settings).context("the certificates cannot be used")?;
    let executor = Executor::new(root);
    let jobs = Jobs::open(root, executor.clone(), audit, job_settings(&settings))
        .await
        .context("the jobs cannot be opened")?;
    let inventory = Inventory::new(root, executor.clone());
    let counters = Arc::new(DoorCounters::default());
    let observer: Arc<dyn DoorObserver> = Arc::new(Recorder::new(Arc::clone(log), Arc::clone(&counters)));
    let app = App::new(Parts {
        root: root.to_owned(),
        settings: settings.clone(),
        jobs: jobs.clone(),
        executor,
        inventory: inventory.clone(),
        audit: Arc::clone(log),
        door: counters,
    });
    app.note_certificates(Certificates::of(&tls));

    let watcher = AllowListWatcher::start(&root.join(config::WHITELIST), Arc::clone(&observer)).await;
    let door = Door::new(DoorSettings::default(), tls, watcher.list(), observer);
    let listener = door.bind(SocketAddr::V4(settings.listen)).await.with_context(|| {
        format!("cannot listen on {}; another program may use the port (see ss -ltnp)", settings.listen)
    })?;
    let address = listener.local_addr().context("the listener has no address")?;
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let (door, service, stop) = (door.clone(), http::service(app.clone()), stop.clone());
        async move { door.serve(listener, service, stop).await }
    });
    let fresh = tokio::spawn(inventory.keep_fresh());
    tracing::info!(%address, version = crate::VERSION, "serving");
    notify(&[NotifyState::Ready]);

    let mut watchdog = tokio::time::interval(sd_notify::watchdog_enabled().map_or(JUDGE, |w| w / 2));
    let has_watchdog = sd_notify::watchdog_enabled().is_some();
    let mut judge = tokio::time::interval(JUDGE);
    let signal = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            _ = hangup.recv() => {
                tracing::info!("config reload by SIGHUP: the whitelist and the certificates are read again");
                watcher.reload();
                reload_tls(&settings, &door, &app, log);
            }
            _ = watchdog.tick(), if has_watchdog => notify(&[NotifyState::Watchdog]),
            _ = judge.tick() => { door.close_unpermitted("the certificate is no longer accepted"); }
        }
    };

    tracing::info!(signal, "stopping");
    notify(&[NotifyState::Stopping]);
    stop.cancel();
    fresh.abort();
    // Streams would last as long as their clients like, so they are ended after a moment for the requests in flight.
    tokio::join!(door.drain(DRAIN), async {
        if door.open_connections() > 0 {
            tokio::time::sleep(LAST_REQUESTS).await;
        }
        jobs.shutdown().await;
    });
    if serving.await.is_err() {
        tracing::error!("the listener ended badly");
    }
    Ok(signal)
}

fn notify(state: &[NotifyState<'_>]) {
    // Without a service manager this does nothing.
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

fn job_settings(settings: &Settings) -> JobSettings {
    JobSettings {
        max_active: settings.max_concurrent_jobs,
        timeout: settings.job_timeout,
        ..JobSettings::default()
    }
}

/// Reads the certificates and makes a TLS configuration of them.
///
/// # Errors
/// With the file, the fault and the remedy.
pub fn load_tls(settings: &Settings) -> anyhow::Result<LoadedTls> {
    let paths = &settings.tls;
    let crl = paths.crl.exists().then_some(paths.crl.as_path());
    if crl.is_none() {
        tracing::warn!(path = %paths.crl.display(), "there is no revocation list: no client certificate can be revoked");
    }
    let source = TlsSource::read(&paths.ca_cert, &paths.server_cert, &server_key(&paths.server_key), crl)?;
    let allowed = (!settings.roles.is_empty()).then(|| {
        let settings = settings.clone();
        let known = move |facts: &patch_service::CertificateFacts| {
            settings.role_of(&facts.common_name, &facts.fingerprint_sha256).is_some()
        };
        Arc::new(known) as patch_service::Allowed
    });
    // With an expired list the API answers nothing but the upload of a newer one, and says so.
    Ok(LoadedTls::load(&source, TlsOptions { allowed, expired_crl: ExpiredCrl::Admit })?)
}

/// Where the server's key can be read: operators keep it for root alone, and then the service manager hands it over.
fn server_key(configured: &Path) -> PathBuf {
    if std::fs::File::open(configured).is_ok() {
        return configured.to_owned();
    }
    std::env::var_os("CREDENTIALS_DIRECTORY")
        .map(|directory| Path::new(&directory).join("server.key.pem"))
        .filter(|path| path.exists())
        .unwrap_or_else(|| configured.to_owned())
}

fn reload_tls(settings: &Settings, door: &Door, app: &App, log: &AuditLog) {
    let before = door.tls();
    match load_tls(settings) {
        Ok(tls) => {
            let changes = changes(&before, &tls);
            app.note_certificates(Certificates::of(&tls));
            let closed = door.swap_tls(tls);
            tracing::info!(closed, changed = changes.len(), "certificate reload: in effect");
            for change in changes {
                log.record_later(AuditEvent::new(change, &Caller::local()));
            }
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "certificate reload refused; the ones before stay");
            let paths = &settings.tls;
            let crl = patch_service::PemInput::read(&paths.crl);
            let ca = patch_service::PemInput::read(&paths.ca_cert);
            let crl_is_bad =
                matches!((crl, ca), (Ok(crl), Ok(ca)) if patch_service::tls::verify_crl(&crl, &ca).is_err());
            app.note_certificates(Certificates { crl_refused: crl_is_bad, ..Certificates::of(&before) });
            let role = if crl_is_bad { CertificateRole::Crl } else { CertificateRole::Server };
            let refused = AuditKind::CertificateRefused { role, error: format!("{error:#}") };
            log.record_later(AuditEvent::new(refused, &Caller::local()));
        }
    }
}

/// What is other than before, for the audit trail.
fn changes(before: &LoadedTls, after: &LoadedTls) -> Vec<AuditKind> {
    let changed = |role, sha256: &str, expires: Option<Timestamp>| AuditKind::CertificateChanged {
        role,
        sha256: sha256.to_owned(),
        expires,
    };
    let mut changes = Vec::new();
    if before.server.fingerprint_sha256 != after.server.fingerprint_sha256 {
        let facts = &after.server;
        changes.push(changed(CertificateRole::Server, &facts.fingerprint_sha256, Some(facts.not_after)));
    }
    for facts in &after.ca {
        if before.ca.iter().all(|old| old.fingerprint_sha256 != facts.fingerprint_sha256) {
            changes.push(changed(CertificateRole::Ca, &facts.fingerprint_sha256, Some(facts.not_after)));
        }
    }
    if before.crls.len() != after.crls.len()
        || before
            .crls
            .iter()
            .zip(&after.crls)
            .any(|(a, b)| a.number != b.number || a.this_update != b.this_update)
    {
        use sha2::Digest as _;
        let numbers: Vec<&str> = after.crls.iter().filter_map(|c| c.number.as_deref()).collect();
        let digest = hex::encode(sha2::Sha256::digest(numbers.join(",").as_bytes()));
        let next = after.crls.iter().filter_map(|c| c.next_update).min();
        changes.push(changed(CertificateRole::Crl, &digest, next));
    }
    changes
}
