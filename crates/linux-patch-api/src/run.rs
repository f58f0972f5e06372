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
    AllowListWatcher, Door, DoorObserver, DoorSettings, ExpiredCrl, LoadedTls, PemInput, TlsError,
    TlsOptions, TlsSource,
};
use patch_types::api::CrlStatus;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::Audit,
    config::{self, Settings, TlsPaths},
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

/// How often open connections are judged again, so that a certificate, or the revocation list, that expires ends them.
const JUDGE: Duration = Duration::from_secs(60);

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
    record_start(&audit).await;
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
    let recorder = Arc::new(Recorder::new(Arc::clone(log), Arc::clone(&counters)));
    let observer: Arc<dyn DoorObserver> = Arc::clone(&recorder) as Arc<dyn DoorObserver>;
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
    let fresh = tokio::spawn(inventory.keep_fresh(jobs.ends()));
    tracing::info!(%address, version = crate::VERSION, "serving");
    notify(&[NotifyState::Ready]);

    let mut watchdog = tokio::time::interval(sd_notify::watchdog_enabled().map_or(JUDGE, |w| w / 2));
    let has_watchdog = sd_notify::watchdog_enabled().is_some();
    let mut judge = tokio::time::interval(JUDGE);
    let mut was_expired = false;
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
            _ = judge.tick() => {
                recorder.record_due();
                door.close_unpermitted("the certificate is no longer accepted");
                let is_expired = has_expired_list(&door.tls(), Timestamp::now());
                // Once is enough: from then on no request is answered, and no WebSocket opened.
                if is_expired && !was_expired {
                    door.close_where("the revocation list has expired", |_| true);
                }
                was_expired = is_expired;
            }
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
    recorder.record_rest();
    Ok(signal)
}

/// Records the start. Without room for the record the jobs refuse every change by themselves, and reads are what such a
/// host is mended by: it is no reason to stay away.
async fn record_start(audit: &Audit) {
    let started = AuditKind::ServiceStarted { version: crate::VERSION.to_owned() };
    if let Err(error) = audit.record_durable(AuditEvent::new(started, &Caller::local())).await {
        tracing::error!(
            error = format!("{:#}", anyhow::Error::from(error)),
            "the start could not be recorded in the audit trail: until that can be written reads are served and changes refused"
        );
    }
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

/// Whether nobody can tell a revoked certificate from a good one any more.
fn has_expired_list(tls: &LoadedTls, now: Timestamp) -> bool {
    Certificates::of(tls).crl_status(now) == CrlStatus::Expired
}

/// Reads the certificates and makes a TLS configuration of them.
///
/// # Errors
/// With the file, the fault and the remedy.
pub fn load_tls(settings: &Settings) -> anyhow::Result<LoadedTls> {
    load_tls_with(settings, credentials().as_deref())
}

/// Where the service manager has put what it hands over.
fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

fn load_tls_with(settings: &Settings, credentials: Option<&Path>) -> anyhow::Result<LoadedTls> {
    let paths = &settings.tls;
    let crl = is_there(&paths.crl).then_some(paths.crl.as_path());
    if crl.is_none() {
        tracing::warn!(path = %paths.crl.display(), "there is no revocation list: no client certificate can be revoked");
    }
    let key = server_key(paths, credentials);
    let source = TlsSource::read(&paths.ca_cert, &paths.server_cert, &key, crl)?;
    let allowed = (!settings.roles.is_empty()).then(|| {
        let settings = settings.clone();
        let known = move |facts: &patch_service::CertificateFacts| {
            settings.role_of(&facts.common_name, &facts.fingerprint_sha256).is_some()
        };
        Arc::new(known) as patch_service::Allowed
    });
    // With an expired list the API answers nothing but the upload of a newer one, and says so.
    LoadedTls::load(&source, TlsOptions { allowed, expired_crl: ExpiredCrl::Admit }).map_err(|error| {
        let is_stale = matches!(error, TlsError::KeyMismatch { .. }) && key != paths.server_key;
        let error = anyhow::Error::from(error);
        if is_stale {
            error.context(format!(
                "the service manager hands {} over when the service starts, so a renewed key takes effect with: systemctl restart linux-patch-api",
                paths.server_key.display()
            ))
        } else {
            error
        }
    })
}

/// Whether something lies at the path. What cannot be examined, and a link that leads nowhere, is there: a list that
/// ought to be in force must not be taken for none.
fn is_there(path: &Path) -> bool {
    !matches!(std::fs::symlink_metadata(path), Err(e) if e.kind() == std::io::ErrorKind::NotFound)
}

/// Where the server's key can be read: operators keep it for root alone, and then the service manager hands it over.
/// Its unit names the usual path only; for another one it would be another key.
fn server_key(paths: &TlsPaths, credentials: Option<&Path>) -> PathBuf {
    if !paths.key_may_be_credential || std::fs::File::open(&paths.server_key).is_ok() {
        return paths.server_key.clone();
    }
    credentials
        .map(|directory| directory.join("server.key.pem"))
        .filter(|path| path.exists())
        .unwrap_or_else(|| paths.server_key.clone())
}

/// Why certificates that are on disk are not put in force.
struct RefusedTls {
    role: CertificateRole,
    error: anyhow::Error,
}

/// The certificates that are on disk now, unless they are worse than those in force.
fn renewed_tls(settings: &Settings, before: &LoadedTls) -> Result<LoadedTls, RefusedTls> {
    let paths = &settings.tls;
    if !before.crls.is_empty() && !is_there(&paths.crl) {
        let error = anyhow::anyhow!(
            "{} is gone, and without it no certificate would be revoked any more; put the list back, or restart linux-patch-api to go on without one",
            paths.crl.display()
        );
        return Err(RefusedTls { role: CertificateRole::Crl, error });
    }
    load_tls(settings).map_err(|error| {
        let role = if crl_is_bad(paths) { CertificateRole::Crl } else { CertificateRole::Server };
        RefusedTls { role, error }
    })
}

/// Whether it is the revocation list that cannot be used.
fn crl_is_bad(paths: &TlsPaths) -> bool {
    if !is_there(&paths.crl) {
        return false;
    }
    let Ok(crl) = PemInput::read(&paths.crl) else { return true };
    PemInput::read(&paths.ca_cert).is_ok_and(|ca| patch_service::tls::verify_crl(&crl, &ca).is_err())
}

fn reload_tls(settings: &Settings, door: &Door, app: &App, log: &AuditLog) {
    let before = door.tls();
    match renewed_tls(settings, &before) {
        Ok(tls) => {
            let changes = changes(&before, &tls);
            app.note_certificates(Certificates::of(&tls));
            let closed = door.swap_tls(tls);
            tracing::info!(closed, changed = changes.len(), "certificate reload: in effect");
            for change in changes {
                log.record_later(AuditEvent::new(change, &Caller::local()));
            }
        }
        Err(RefusedTls { role, error }) => {
            tracing::error!(error = format!("{error:#}"), "certificate reload refused; the ones before stay");
            let crl_refused = role == CertificateRole::Crl;
            app.note_certificates(Certificates { crl_refused, ..Certificates::of(&before) });
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

#[cfg(test)]
mod tests {
    use patch_service::pki;

    use super::*;

    /// A host with certificates in the usual places.
    fn host(config: &str) -> (tempfile::TempDir, Settings) {
        let root = tempfile::tempdir().unwrap();
        let certs = root.path().join("etc/linux_patch_api/certs");
        pki::init(&certs, &["host".to_owned()], &[], &[], pki::Existing::Keep).unwrap();
        let settings = config::parse(config, root.path(), Path::new("config.yaml")).unwrap();
        (root, settings)
    }

    #[tokio::test]
    async fn a_start_that_cannot_be_recorded_is_a_start() {
        let script = crate::audit::Script::default();
        script.fail(true);
        record_start(&script.audit()).await;
        script.fail(false);
        record_start(&script.audit()).await;
        assert_eq!(script.events().len(), 1);
    }

    #[test]
    fn a_list_that_was_in_force_cannot_be_lost_by_a_reload() {
        let (_root, settings) = host("");
        let crl = &settings.tls.crl;
        let before = load_tls(&settings).unwrap();
        assert!(!before.crls.is_empty());
        let text = std::fs::read(crl).unwrap();

        std::fs::remove_file(crl).unwrap();
        let refused = renewed_tls(&settings, &before).err().unwrap();
        assert_eq!(refused.role, CertificateRole::Crl);
        assert!(refused.error.to_string().contains("is gone"), "{}", refused.error);
        let without = load_tls(&settings).unwrap();
        assert!(without.crls.is_empty(), "a host that never had one starts without");
        assert!(renewed_tls(&settings, &without).is_ok());

        std::os::unix::fs::symlink("nowhere", crl).unwrap();
        assert!(load_tls(&settings).is_err(), "a link that leads nowhere is not the absence of a list");
        assert_eq!(renewed_tls(&settings, &without).err().unwrap().role, CertificateRole::Crl);
        std::fs::remove_file(crl).unwrap();

        std::fs::write(crl, "rubbish").unwrap();
        assert_eq!(renewed_tls(&settings, &before).err().unwrap().role, CertificateRole::Crl);
        std::fs::write(crl, text).unwrap();
        assert!(renewed_tls(&settings, &before).is_ok());
    }

    #[test]
    fn a_list_expires() {
        let (_root, settings) = host("");
        let tls = load_tls(&settings).unwrap();
        assert!(!has_expired_list(&tls, Timestamp::now()));
        assert!(has_expired_list(&tls, Timestamp::MAX));
        std::fs::remove_file(&settings.tls.crl).unwrap();
        assert!(!has_expired_list(&load_tls(&settings).unwrap(), Timestamp::MAX), "there is none to expire");
    }

    #[test]
    fn the_credential_stands_in_for_the_usual_key_only() {
        let (root, settings) = host("");
        let credentials = root.path().join("credentials");
        std::fs::create_dir(&credentials).unwrap();
        let key = &settings.tls.server_key;
        std::fs::rename(key, credentials.join("server.key.pem")).unwrap();
        assert!(load_tls_with(&settings, Some(&credentials)).is_ok());
        assert!(load_tls_with(&settings, None).is_err());
        let other = config::parse(
            "tls: {server_key: /etc/linux_patch_api/certs/other.pem}",
            root.path(),
            Path::new("config.yaml"),
        )
        .unwrap();
        let error = load_tls_with(&other, Some(&credentials)).err().unwrap();
        assert!(format!("{error:#}").contains("other.pem"), "{error:#}");

        // A renewal: the certificate on disk is new, the credential is still the key before it.
        let certs = settings.tls.server_cert.parent().unwrap();
        pki::init(certs, &["host".to_owned()], &[], &[], pki::Existing::Replace).unwrap();
        std::fs::remove_file(key).unwrap();
        let error = load_tls_with(&settings, Some(&credentials)).err().unwrap();
        assert!(format!("{error:#}").contains("systemctl restart linux-patch-api"), "{error:#}");
    }
}
