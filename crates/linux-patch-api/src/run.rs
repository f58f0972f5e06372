//! The daemon's life: start, serve, stop. What changes meanwhile is the business of [`crate::reload`].

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller};
use patch_service::{AllowListWatcher, Door, DoorObserver, DoorSettings, FileSetWatcher};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{self, Audit},
    certificates,
    checkpoint::Checkpoints,
    config::{self, Settings},
    control::Control,
    door::{DoorCounters, Recorder},
    ends,
    executor::Executor,
    http::{App, Parts},
    inventory::Inventory,
    jobs::Jobs,
    log::Level,
    memory::Frugal,
    policy::Scheduler,
    reload::{self, Reloader, Running, tell},
};

/// How long requests in flight may take when the daemon stops.
const DRAIN: Duration = Duration::from_secs(10);

/// How long requests in flight have before the jobs are closed.
const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// How often connections that were put together are recorded.
const RECORD: Duration = Duration::from_secs(60);

/// How long the record of the stop may take.
const LAST_RECORD: Duration = Duration::from_secs(2);

/// How long writing what is left of the audit trail may take.
const LAST_FLUSH: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When it cannot start: what could not be done, to what, and why.
pub async fn run(root: &Path, settings: Settings, level: Level) -> anyhow::Result<()> {
    let audit = Arc::new(open_audit(root, &settings)?);
    ends::begin(root);
    let result = serve(root, settings, level, &audit).await;
    let reason = match &result {
        Ok(signal) => format!("asked by {signal}"),
        Err(error) => format!("{error:#}"),
    };
    let stopped = AuditEvent::new(AuditKind::ServiceStopped { reason }, &Caller::local());
    // What cannot be recorded now is no reason to stay.
    let _ = tokio::time::timeout(LAST_RECORD, Audit::new(Arc::clone(&audit)).record_durable(stopped)).await;
    Checkpoints::new(Executor::new(root), Arc::clone(&audit), Arc::default()).sign().await;
    close(audit, LAST_FLUSH).await;
    // A start that failed was no crash: it says why, and systemd knows.
    ends::end(root);
    result.map(drop)
}

/// Writes what is left of the audit trail. A disk that hangs does not keep the daemon from ending: what is not on disk by then
/// was promised to nobody.
async fn close(audit: Arc<AuditLog>, limit: Duration) {
    let closing = tokio::task::spawn_blocking(move || audit.close());
    if !matches!(tokio::time::timeout(limit, closing).await, Ok(Ok(()))) {
        tracing::error!("the audit trail could not be closed: its last records may be missing");
    }
}

fn open_audit(root: &Path, settings: &Settings) -> anyhow::Result<AuditLog> {
    let path = root.join(patch_audit::LOG_PATH);
    AuditLog::open(&path, audit::options(root, settings))
        .with_context(|| format!("the audit trail {} is needed before anything else", path.display()))
}

/// Serves until a signal comes, and returns its name.
async fn serve(
    root: &Path,
    settings: Settings,
    level: Level,
    log: &Arc<AuditLog>,
) -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    record_start(&Audit::new(Arc::clone(log))).await;
    report_oddities(root, &settings);

    // Before anything is read, so that nothing that changes meanwhile is missed.
    let files = reload::watch(root, &settings);
    let recorder = Arc::new(Recorder::new(Arc::clone(log), Arc::new(DoorCounters::default())));
    let reloader = start(root, settings, level, log, &recorder, files).await?;
    let Running { door, app, jobs, stop, .. } = reloader.running();
    let (door, jobs, stop) = (door.clone(), jobs.clone(), stop.clone());
    let fresh = tokio::spawn(app.inventory().clone().keep_fresh(jobs.ends()));
    let complying = tokio::spawn(app.compliance().clone().keep(jobs.ends()));
    let expiring = tokio::spawn(certificates::watch(door.clone(), app.clone(), Arc::clone(log)));
    let checkpoints = Checkpoints::new(Executor::new(root), Arc::clone(log), app.signing());
    let checkpoints = tokio::spawn(checkpoints.keep(jobs.ends()));
    let scheduler = Scheduler::new(app.clone(), jobs.clone(), Audit::new(Arc::clone(log)));
    let scheduler = tokio::spawn(scheduler.keep());
    let control = Control::start(root);
    tracing::info!(address = %reloader.settings().listen, version = crate::VERSION, "serving");
    reloader.tell_ready();
    let mut reloading = tokio::spawn(reloader.keep(hangup, control));

    // One timer for both, so that an idle agent is woken once.
    let mut watchdog = tokio::time::interval(sd_notify::watchdog_enabled().map_or(RECORD, |w| w / 2));
    let mut frugal = Frugal::new();
    let has_watchdog = sd_notify::watchdog_enabled().is_some();
    let mut record = tokio::time::interval(RECORD);
    let signal = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            // Without it neither a revocation nor a change of the configuration would be seen any more.
            _ = &mut reloading => bail!("the part that reads changed files has ended"),
            _ = watchdog.tick() => {
                if has_watchdog {
                    tell(&[NotifyState::Watchdog]);
                }
                frugal.tick();
            }
            _ = record.tick() => recorder.record_due(),
        }
    };

    tracing::info!(signal, "stopping");
    tell(&[NotifyState::Stopping]);
    stop.cancel();
    fresh.abort();
    complying.abort();
    expiring.abort();
    checkpoints.abort();
    // What it is just submitting is a task of the jobs' own.
    scheduler.abort();
    // Streams would last as long as their clients like, so they are ended after a moment for the requests in flight.
    tokio::join!(door.drain(DRAIN), async {
        if door.open_connections() > 0 {
            tokio::time::sleep(LAST_REQUESTS).await;
        }
        jobs.shutdown().await;
    });
    if reloading.await.is_err() {
        tracing::error!("the part that reads changed files ended badly");
    }
    recorder.record_rest();
    Ok(signal)
}

/// Puts the parts together and begins to serve.
async fn start(
    root: &Path,
    settings: Settings,
    level: Level,
    log: &Arc<AuditLog>,
    recorder: &Arc<Recorder>,
    files: FileSetWatcher,
) -> anyhow::Result<Reloader> {
    let executor = Executor::new(root);
    let (tls, certificates) = certificates::start(root, &settings, &executor, log)
        .await
        .context("the certificates cannot be used")?;
    let jobs =
        Jobs::open(root, executor.clone(), Audit::new(Arc::clone(log)), reload::job_settings(&settings))
            .await
            .context("the jobs cannot be opened")?;
    let inventory = Inventory::new(root, executor.clone());
    let observer: Arc<dyn DoorObserver> = Arc::clone(recorder) as Arc<dyn DoorObserver>;
    let app = App::new(Parts {
        root: root.to_owned(),
        settings: settings.clone(),
        jobs: jobs.clone(),
        executor,
        inventory,
        audit: Arc::clone(log),
        door: recorder.counters(),
    });
    app.note_certificates(certificates);
    let allow_list = AllowListWatcher::start(&root.join(config::WHITELIST), Arc::clone(&observer)).await;
    let door = Door::new(DoorSettings::default(), tls, allow_list.list(), observer);
    app.behind(&door);
    let listener = reload::bind(&door, settings.listen).await?;
    let running = Running {
        root: root.to_owned(),
        door,
        app,
        jobs,
        log: Arc::clone(log),
        level,
        allow_list,
        stop: CancellationToken::new(),
    };
    Ok(Reloader::start(running, settings, listener, files))
}

/// Says what an operator should know about a configuration that is valid.
fn report_oddities(root: &Path, settings: &Settings) {
    if !settings.inactive.is_empty() {
        tracing::warn!(
            sections = settings.inactive.join(", "),
            "these parts of config.yaml are valid, but this version does not act upon them"
        );
    }
    let path = root.join(config::CONFIG);
    if !path.exists() {
        tracing::warn!(path = %path.display(), "there is no configuration, so the defaults are in force");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_start_that_cannot_be_recorded_is_a_start() {
        let script = crate::audit::Script::default();
        script.fail(true);
        record_start(&script.audit()).await;
        script.fail(false);
        record_start(&script.audit()).await;
        assert_eq!(script.events().len(), 1);
    }

    #[tokio::test]
    async fn a_disk_that_hangs_does_not_keep_the_daemon_from_ending() {
        let dir = tempfile::tempdir().unwrap();
        let options = patch_audit::Options::new("test").without_journal();
        let log = Arc::new(AuditLog::open(&dir.path().join("audit.log"), options).unwrap());
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let started = || {
            let started = AuditKind::ServiceStarted { version: "1".to_owned() };
            AuditEvent::new(started, &Caller::local())
        };
        let hang = move |_| {
            let _ = hangs.recv();
        };
        log.submit(started(), Box::new(hang)).unwrap();
        let began = std::time::Instant::now();
        close(Arc::clone(&log), Duration::from_millis(100)).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(log.submit(started(), Box::new(|_| {})).is_ok(), "it is not closed");
        // Otherwise it is waited for.
        drop(release);
        tokio::task::spawn_blocking(move || drop(log)).await.unwrap();
    }
}
