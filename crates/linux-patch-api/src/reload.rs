//! What changes while the daemon runs: the configuration and the certificates, when their files change or somebody asks.
//!
//! A configuration is put in force whole or not at all. First everything that can fail is done beside what runs: the file
//! is read and checked, the certificates are loaded, the new address is bound. Then what runs is changed, and nothing of
//! that can fail. What is open goes on: connections of the former listener, requests, WebSockets, jobs. Only who has no
//! role any more is shown out.

use std::{
    collections::VecDeque,
    net::{SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller};
use patch_service::{AllowListWatcher, Door, FileSetWatcher, ListChange};
use sd_notify::NotifyState;
use tokio::{net::TcpListener, signal::unix::Signal, sync::OwnedMutexGuard, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    audit, certificates,
    config::{self, Change, ConfigError, Settings, Steps, WHITELIST_SAMPLE},
    control::{Control, Report},
    http::{self, App},
    jobs::{JobSettings, Jobs},
    log::Level,
};

/// How long what cannot be used is given to become whole, if nobody asked for it to be read: it may be half-written, or
/// one of two files that belong together.
const HALF_WRITTEN: Duration = Duration::from_millis(300);

/// As much of a refusal as is recorded and shown, in characters.
const MAX_REFUSAL: usize = 2000;

/// As many entries of the allow list are named.
const MAX_ENTRIES: usize = 20;

/// As many changes that took effect by themselves are kept for whoever asks for a reload; all are in the audit trail.
const MAX_UNTOLD: usize = 16;

/// As much of it as the service manager is told.
const MAX_STATUS: usize = 300;

/// What a reload acts upon. All of it is running.
pub struct Running {
    /// The root prefix.
    pub root: PathBuf,
    /// Who lets clients in.
    pub door: Door,
    /// What answers them.
    pub app: App,
    /// The jobs.
    pub jobs: Jobs,
    /// The audit trail.
    pub log: Arc<AuditLog>,
    /// The level of the service's log.
    pub level: Level,
    /// Who watches the allow list.
    pub allow_list: AllowListWatcher,
    /// Cancelled when the daemon stops.
    pub stop: CancellationToken,
}

/// How a job is run by the configuration.
#[must_use]
pub fn job_settings(settings: &Settings) -> JobSettings {
    JobSettings {
        max_active: settings.max_concurrent_jobs,
        timeout: settings.job_timeout,
        ..JobSettings::default()
    }
}

/// Watches the configuration and the certificates that it names, from now on.
#[must_use]
pub fn watch(root: &Path, settings: &Settings) -> FileSetWatcher {
    let mut paths = vec![root.join(config::CONFIG)];
    paths.extend(certificate_files(settings).into_iter().map(Path::to_owned));
    FileSetWatcher::start(&paths)
}

fn certificate_files(settings: &Settings) -> [&Path; 4] {
    let tls = &settings.tls;
    [&tls.ca_cert, &tls.server_cert, &tls.server_key, &tls.crl]
}

/// Binds an address.
///
/// # Errors
/// With the likely reason.
pub async fn bind(door: &Door, address: SocketAddrV4) -> anyhow::Result<TcpListener> {
    use std::io::ErrorKind;
    door.bind(SocketAddr::V4(address)).await.map_err(|error| {
        let why = match error.kind() {
            ErrorKind::AddrInUse => "another program uses the port (see ss -ltnp)",
            ErrorKind::AddrNotAvailable => "the host does not have this address (see ip address)",
            ErrorKind::PermissionDenied => {
                "ports below 1024 are not for this service, which has no privileges"
            }
            _ => "see the error",
        };
        anyhow::Error::new(error).context(format!("cannot listen on {address}: {why}"))
    })
}

/// The listener in use.
struct Listening {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Listening {
    fn start(running: &Running, listener: TcpListener) -> Self {
        let stop = running.stop.child_token();
        let task = tokio::spawn({
            let (door, service, stop) =
                (running.door.clone(), http::service(running.app.clone()), stop.clone());
            async move { door.serve(listener, service, stop).await }
        });
        Self { stop, task }
    }
}

/// Why files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// They have changed.
    Changed,
    /// Somebody wants to know.
    Asked,
}

/// A configuration with everything that it takes to put it in force.
struct Prepared {
    settings: Arc<Settings>,
    steps: Steps,
    changes: Vec<Change>,
    listener: Option<TcpListener>,
    certificates: Option<certificates::Renewal>,
    /// Until the roles are in force nobody exchanges certificates by those of before.
    turn: Option<OwnedMutexGuard<()>>,
    files: Option<FileSetWatcher>,
}

/// Keeps what runs as the files say.
pub struct Reloader {
    running: Running,
    /// In force.
    settings: Arc<Settings>,
    /// Whether there was a file when it was put in force.
    had_file: bool,
    /// Why the file that is there now is not in force.
    refused: Option<String>,
    /// What took effect by itself since somebody asked for a reload last.
    untold: VecDeque<String>,
    /// How many more there were before those.
    forgotten: usize,
    listening: Listening,
    files: FileSetWatcher,
}

impl Reloader {
    /// Serves with a listener, by the settings that everything was started with. `files` watches since before those were
    /// read.
    #[must_use]
    pub fn start(running: Running, settings: Settings, listener: TcpListener, files: FileSetWatcher) -> Self {
        let listening = Listening::start(&running, listener);
        let had_file = running.root.join(config::CONFIG).exists();
        let (settings, untold) = (Arc::new(settings), VecDeque::new());
        Self { running, settings, had_file, refused: None, untold, forgotten: 0, listening, files }
    }

    /// What is running.
    #[must_use]
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// The configuration in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Waits until files have changed; which. Safe to cancel.
    pub async fn changed(&mut self) -> Vec<PathBuf> {
        self.files.changed().await
    }

    /// Reads the files that have changed.
    pub async fn read(&mut self, changed: &[PathBuf]) {
        // By the settings of before: with another path a certificate is read anyway.
        let is_certificate =
            changed.iter().any(|path| certificate_files(&self.settings).contains(&path.as_path()));
        if changed.contains(&self.path()) {
            // A refusal is reported where it is found.
            let _ = self.configuration(Cause::Changed).await;
        }
        if is_certificate {
            let _ = self.certificates(Cause::Changed).await;
        }
    }

    /// Reads everything, changed or not: the allow list, the configuration, the certificates.
    pub async fn reload(&mut self) -> Report {
        tell(&reloading());
        let mut report = Report { earlier: self.untold.drain(..).collect(), ..Report::default() };
        let asked_at = Timestamp::now();
        let list = self.running.allow_list.reload().await;
        report.forgotten = std::mem::take(&mut self.forgotten).saturating_add(list.forgotten);
        for change in &list.changes {
            let text = whitelist_change(change);
            if change.at < asked_at {
                report.earlier.push(format!("{:.0}: {text}", change.at));
            } else {
                report.changes.push(text);
            }
        }
        // Each begins with its time, in a form that sorts.
        report.earlier.sort_by(|a, b| a.split(' ').next().cmp(&b.split(' ').next()));
        match list.problem {
            Some(problem) if list.denies_all => report.shut_out.push(format!(
                "whitelist: {problem}; everyone is denied until there is a list that can be used (a sample is \
                 {WHITELIST_SAMPLE})"
            )),
            problem => report.problems.extend(problem),
        }
        match self.configuration(Cause::Asked).await {
            Ok(changes) => report.changes.extend(changes.iter().map(ToString::to_string)),
            Err(error) => report.problems.push(error),
        }
        report.problems.extend(self.certificates(Cause::Asked).await.err());
        self.tell_ready();
        report
    }

    /// Keeps what runs as the files say, and reads everything when asked, until the daemon stops and the listener has
    /// ended. A reload may wait, for the root side or for a name server, so this is a task of its own.
    pub async fn keep(mut self, mut hangup: Signal, mut control: Control) {
        let stop = self.running.stop.clone();
        let working = async {
            // The configuration was read a while ago.
            self.read(&[self.path()]).await;
            loop {
                tokio::select! {
                    _ = hangup.recv() => {
                        tracing::info!("config reload by SIGHUP: configuration, whitelist and certificates are read again");
                        // What was refused is in the log.
                        let _ = self.reload().await;
                    }
                    outcome = control.asked() => {
                        tracing::info!("config reload: configuration, whitelist and certificates are read again");
                        // Who asked may be gone.
                        let _ = outcome.send(self.reload().await);
                    }
                    changed = self.changed() => self.read(&changed).await,
                }
            }
        };
        // Whatever waits has changed nothing yet.
        tokio::select! {
            () = stop.cancelled() => {}
            () = working => {}
        }
        drop(control);
        if self.listening.task.await.is_err() {
            tracing::error!("the listener ended badly");
        }
    }

    fn path(&self) -> PathBuf {
        self.running.root.join(config::CONFIG)
    }

    /// Reads the configuration and puts it in force; what has changed.
    async fn configuration(&mut self, cause: Cause) -> Result<Vec<Change>, String> {
        let mut changes = Vec::new();
        loop {
            let mut prepared = self.prepare().await;
            if prepared.is_err() && cause == Cause::Changed {
                tokio::time::sleep(HALF_WRITTEN).await;
                prepared = self.prepare().await;
            }
            let prepared = match prepared {
                Ok(prepared) => prepared,
                Err(error) => {
                    let error = cut(&error, MAX_REFUSAL);
                    // A file that stays as bad as it was is news to who asks only.
                    if cause == Cause::Asked || self.refused.as_ref() != Some(&error) {
                        self.refuse(&error, cause);
                    }
                    return Err(error);
                }
            };
            if self.refused.take().is_some() {
                self.running.app.note_config(None);
                tracing::info!("config reload: the configuration on disk can be used again");
                if prepared.changes.is_empty() && cause == Cause::Changed {
                    self.tell_ready();
                }
            }
            let is_watched_anew = prepared.files.is_some();
            changes.extend(self.put_in_force(prepared, cause));
            if !is_watched_anew {
                return Ok(changes);
            }
            // What has changed since it was read and before it was watched would not be seen: it is read once more.
        }
    }

    /// Everything that can fail, beside what runs.
    async fn prepare(&self) -> Result<Prepared, String> {
        let settings = match config::read(&self.running.root) {
            Ok(Some(settings)) => settings,
            Ok(None) if self.had_file => {
                return Err(format!(
                    "{} is gone: put it back, for at the next start the defaults would be used",
                    self.path().display()
                ));
            }
            // There was none before: still the defaults.
            Ok(None) => (*self.settings).clone(),
            Err(error) => return Err(one_line(&error)),
        };
        let steps = Steps::between(&self.settings, &settings);
        let changes = config::diff(&self.settings, &settings);
        // Watched first, so that nothing is missed between reading and watching.
        let files = steps.tls.then(|| watch(&self.running.root, &settings));
        let certificates = if steps.tls {
            let renewal = certificates::renew(&settings, &self.running.door, &self.running.app).await;
            if let Some(problem) = renewal.problem() {
                return Err(problem);
            }
            Some(renewal)
        } else {
            None
        };
        let turn =
            if steps.roles && !steps.tls { Some(self.running.app.certificate_turn().await) } else { None };
        let listener = if steps.listen {
            let bound = bind(&self.running.door, settings.listen).await;
            Some(bound.map_err(|error| format!("{error:#}"))?)
        } else {
            None
        };
        Ok(Prepared { settings: Arc::new(settings), steps, changes, listener, certificates, turn, files })
    }

    /// Changes what runs. Nothing here can fail, or wait.
    fn put_in_force(&mut self, prepared: Prepared, cause: Cause) -> Vec<Change> {
        let Prepared { settings, steps, changes, listener, certificates, turn: _turn, files } = prepared;
        self.had_file |= self.path().exists();
        let old = std::mem::replace(&mut self.settings, Arc::clone(&settings));
        if changes.is_empty() {
            return changes;
        }
        if cause == Cause::Changed {
            tell(&reloading());
        }
        let Running { door, app, jobs, log, level, .. } = &self.running;
        let diff = config::sentence(&changes);
        if cause == Cause::Changed {
            if self.untold.len() >= MAX_UNTOLD {
                self.untold.pop_front();
                self.forgotten = self.forgotten.saturating_add(1);
            }
            self.untold.push_back(format!("{:.0}: {diff}", Timestamp::now()));
        }
        tracing::info!(changed = diff, "config reload: the changed configuration is in effect");
        log.record_later(AuditEvent::new(AuditKind::ConfigChanged { diff }, &Caller::local()));
        app.metrics().reloaded(true);
        app.put_settings(Arc::clone(&settings));
        if steps.level {
            level.set(settings.level);
        }
        if steps.audit {
            audit::reconfigure(log, &settings);
        }
        if steps.jobs {
            jobs.reconfigure(job_settings(&settings));
        }
        if let Some(renewal) = certificates {
            let is_good = certificates::put_in_force(renewal, door, app, log);
            app.metrics().certificates_read(is_good);
        } else if steps.roles {
            let tls = (*door.tls()).clone();
            tls.set_allowed(certificates::allowed(&settings));
            door.swap_tls(tls);
        }
        if let Some(listener) = listener {
            tracing::info!(from = %old.listen, to = %settings.listen, "config reload: listening elsewhere; open connections go on");
            let former = std::mem::replace(&mut self.listening, Listening::start(&self.running, listener));
            former.stop.cancel();
        }
        if let Some(files) = files {
            self.files = files;
        }
        if cause == Cause::Changed {
            self.tell_ready();
        }
        changes
    }

    fn refuse(&mut self, error: &str, cause: Cause) {
        tracing::error!(%error, "config reload refused, the running configuration stays");
        let refused = AuditKind::ConfigRefused { error: error.to_owned() };
        self.running.log.record_later(AuditEvent::new(refused, &Caller::local()));
        self.running.app.metrics().reloaded(false);
        self.running.app.note_config(Some(error.to_owned()));
        self.refused = Some(error.to_owned());
        if cause == Cause::Changed {
            self.tell_ready();
        }
    }

    /// Reads the certificates and puts them in force.
    async fn certificates(&self, cause: Cause) -> Result<(), String> {
        let Running { door, app, log, .. } = &self.running;
        let patience = (cause == Cause::Changed).then_some(HALF_WRITTEN);
        certificates::refresh(door, app, log, patience).await
    }

    /// Tells the service manager that this serves, and how.
    pub fn tell_ready(&self) {
        let status = match &self.refused {
            None => format!("Serving on {}", self.settings.listen),
            Some(error) => format!(
                "Serving on {}; config reload refused, an earlier configuration is in force: {}",
                self.settings.listen,
                cut(error, MAX_STATUS)
            ),
        };
        tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }
}

/// How the allow list is another one.
fn whitelist_change(change: &ListChange) -> String {
    let named = |word: &str, entries: &[String]| match entries.len() {
        0 => None,
        count if count > MAX_ENTRIES => {
            let first = entries.get(..MAX_ENTRIES).unwrap_or_default().join(", ");
            Some(format!("{word} {first} and {} more", count - MAX_ENTRIES))
        }
        _ => Some(format!("{word} {}", entries.join(", "))),
    };
    let parts = [named("added", &change.added), named("removed", &change.removed)];
    format!("whitelist: {}", parts.into_iter().flatten().collect::<Vec<_>>().join("; "))
}

/// All that is wrong with a configuration, on one line.
fn one_line(error: &ConfigError) -> String {
    error.problems().join("; ").replace(char::is_control, " ")
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// That a reload begins; newer service managers want to know when.
fn reloading() -> Vec<NotifyState<'static>> {
    let mut state = vec![NotifyState::Reloading];
    state.extend(NotifyState::monotonic_usec_now());
    state
}

/// Tells the service manager something. Without one this does nothing.
pub fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests;
