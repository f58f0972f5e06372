//! The certificates in force: read from disk, compared with those before, and put to work without losing a connection.
//!
//! There are two parts, which are renewed independently: the server's certificate with its key, and whom the server trusts
//! (the CA and its revocation list). What is wrong with one part keeps that part as it was, and never holds up the other:
//! a revocation does not wait for a key that does not fit.

mod crl;
pub mod expiry;
mod upload;
mod watch;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use jiff::Timestamp;
use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller, CertificateRole};
use patch_service::{Door, ExpiredCrl, LoadedTls, PemInput, ServerPair, TlsError, TlsOptions, Trust, tls};

pub(crate) use self::crl::write_durably;
use self::crl::{Choice, Origin, Problem, Signers, Store};
pub use self::{upload::UploadError, watch::watch};
use crate::{
    config::{Settings, TlsPaths},
    executor::Executor,
    http::{App, Certificates},
};

/// How long the root side may take to hand over the key. It takes milliseconds, and meanwhile no other file is read.
const KEY_WITHIN: Duration = Duration::from_secs(5);

/// Reads the configured files and makes a TLS configuration of them and the server's key, as they stand there.
///
/// # Errors
/// With the file, the fault and the remedy.
pub fn load(settings: &Settings, key: &PemInput) -> anyhow::Result<LoadedTls> {
    let trust = trust(&settings.tls)?;
    Ok(LoadedTls::build(pair(&settings.tls, key)?, trust, options(settings))?)
}

/// What can be said of the configured files without the server's key.
///
/// # Errors
/// With the file, the fault and the remedy.
pub fn load_without_key(settings: &Settings) -> anyhow::Result<()> {
    trust(&settings.tls)?.check()?;
    PemInput::read(&settings.tls.server_cert)?.certificates()?;
    Ok(())
}

fn trust(paths: &TlsPaths) -> Result<Trust, TlsError> {
    let ca = PemInput::read(&paths.ca_cert)?;
    let crl = is_there(&paths.crl).then(|| PemInput::read(&paths.crl)).transpose()?;
    Trust::load(&ca, crl.as_ref())
}

/// The server's key, from where this process can read it.
///
/// # Errors
/// When it cannot.
pub fn server_key(settings: &Settings) -> Result<PemInput, TlsError> {
    readable_key(&settings.tls, credentials().as_deref())
}

/// Where the service manager has put what it hands over.
fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// Whether something lies at the path. What cannot be examined, and a link that leads nowhere, is there: a list that
/// ought to be in force must not be taken for none.
fn is_there(path: &Path) -> bool {
    !matches!(std::fs::symlink_metadata(path), Err(e) if e.kind() == std::io::ErrorKind::NotFound)
}

fn options(settings: &Settings) -> TlsOptions {
    // With an expired list the API answers nothing but the upload of a newer one, and says so.
    TlsOptions { allowed: allowed(settings), expired_crl: ExpiredCrl::Admit }
}

/// The server's key, if this process can read its file.
fn key_file(paths: &TlsPaths) -> Option<PemInput> {
    PemInput::read(&paths.server_key).ok()
}

/// The server's key as the service manager handed it over when the service started. Its unit names the usual path only;
/// for another one it would be another key.
fn credential(paths: &TlsPaths, credentials: Option<&Path>) -> Option<PemInput> {
    let path = credentials.filter(|_| paths.key_may_be_credential)?.join("server.key.pem");
    PemInput::read(&path).ok()
}

/// The server's key, from where this process can read it.
fn readable_key(paths: &TlsPaths, credentials: Option<&Path>) -> Result<PemInput, TlsError> {
    match key_file(paths).or_else(|| credential(paths, credentials)) {
        Some(key) => Ok(key),
        None => PemInput::read(&paths.server_key),
    }
}

/// The server's key, also if its operator keeps it for root alone. When the service starts, what the service manager hands
/// over is as new as the file, and needs no root side; later it may be old, so the root side is asked before.
async fn any_key(
    paths: &TlsPaths,
    credentials: Option<&Path>,
    executor: &Executor,
    is_start: bool,
) -> anyhow::Result<Key> {
    let early = key_file(paths).or_else(|| credential(paths, credentials).filter(|_| is_start));
    if let Some(pem) = early {
        return Ok(Key { pem, may_be_old: None });
    }
    let asked = tokio::time::timeout(KEY_WITHIN, executor.server_key()).await;
    let asked = asked.map_or_else(
        |_| Err(format!("it has not answered within {} seconds", KEY_WITHIN.as_secs())),
        |answer| answer.map_err(|error| error.message),
    );
    match asked {
        Ok(pem) => Ok(Key { pem, may_be_old: None }),
        Err(error) => {
            let pem = credential(paths, credentials).with_context(|| {
                let path = paths.server_key.display();
                format!(
                    "{path}: this service's user may not read the key, and the root side does not hand it over: {error}"
                )
            })?;
            Ok(Key { pem, may_be_old: Some(error) })
        }
    }
}

/// The server's key.
struct Key {
    pem: PemInput,
    /// Why it is the one that was handed over when the service started, if there might be a newer one.
    may_be_old: Option<String>,
}

impl Key {
    /// The pair that it makes with the certificate on disk.
    fn pair(&self, paths: &TlsPaths) -> anyhow::Result<ServerPair> {
        pair(paths, &self.pem).map_err(|error| match &self.may_be_old {
            Some(why) => anyhow::anyhow!(
                "{error}; it is the key that was handed over when the service started, since the root side did not hand \
                 over the one of now: {why}"
            ),
            None => error.into(),
        })
    }
}

fn pair(paths: &TlsPaths, key: &PemInput) -> Result<ServerPair, TlsError> {
    ServerPair::load(&PemInput::read(&paths.server_cert)?, key)
}

/// What is wrong with what is on disk; none of it is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    /// With the server's certificate or its key.
    pub server: Option<String>,
    /// With the CA's certificate.
    pub ca: Option<String>,
    /// With the revocation list.
    pub crl: Option<String>,
}

impl Problems {
    /// What is there that was not there before.
    fn since(&self, before: &Self) -> Vec<AuditKind> {
        [
            (CertificateRole::Server, &self.server, &before.server),
            (CertificateRole::Ca, &self.ca, &before.ca),
            (CertificateRole::Crl, &self.crl, &before.crl),
        ]
        .into_iter()
        .filter(|(_, now, then)| now != then)
        .filter_map(|(role, now, _)| Some(AuditKind::CertificateRefused { role, error: now.clone()? }))
        .collect()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is to be in force, and what is to be said about it.
struct Renewed {
    trust: Trust,
    choice: Choice,
    problems: Problems,
}

/// Whom to trust from now on. `before` is what was in force, and `was` what was known of it; at the start there is none.
///
/// # Errors
/// At the start, when there is nothing to begin with.
fn renew_trust(
    paths: &TlsPaths,
    store: &Store,
    before: Option<&Trust>,
    was: &Certificates,
) -> Result<Renewed, TlsError> {
    let mut problems = Problems::default();
    let mut memory = store.memory();
    if let Some(before) = before
        && !was.crl_stale
    {
        // What is in force was good enough when it was put there, and this process has not forgotten it.
        memory.trust(&before.crls);
    }
    memory.doubt(&was.doubtful);
    let now = Timestamp::now();
    // A CA that cannot be read is refused where it is put to use.
    let signers = |ca: &PemInput| Signers::of(tls::signers(ca).unwrap_or_default(), now);
    let renew = |ca: &PemInput, in_force: &[patch_service::VerifiedCrl]| {
        let read = || {
            let input = PemInput::read(&paths.crl)?;
            let lists = tls::verify_crl(&input, ca)?;
            // What the TLS library would refuse later is refused now.
            Trust::with_lists(ca, lists.clone())?.check()?;
            Ok(lists)
        };
        let configured = is_there(&paths.crl).then(read).transpose();
        let mut good = store.lists(ca);
        good.extend(in_force.iter().cloned());
        crl::choose(&paths.crl, configured, good, &memory, &signers(ca))
    };
    let build = |ca: &PemInput, choice: &Choice| match choice.lists.is_empty() {
        true => Trust::load(ca, None),
        false => Trust::with_lists(ca, choice.lists.clone()),
    };
    let Some(before) = before else {
        let ca = PemInput::read(&paths.ca_cert)?;
        let mut choice = renew(&ca, &[]);
        if choice.lists.is_empty() && choice.problem.is_some() && !choice.is_stale {
            // There never was a list, and the first one is no good: whoever put it there is told at once.
            let trust = Trust::load(&ca, Some(&PemInput::read(&paths.crl)?))?;
            trust.check()?;
            // It was just being written.
            choice = crl::choose(&paths.crl, Ok(Some(trust.crls)), Vec::new(), &memory, &signers(&ca));
        }
        let trust = build(&ca, &choice)?;
        problems.crl = choice.problem.as_ref().map(|p| p.message().to_owned());
        return Ok(Renewed { trust, choice, problems });
    };
    let attempt = PemInput::read(&paths.ca_cert).and_then(|ca| {
        // Only what the CA of now has signed: after a change of the CA that may be none of them.
        let in_force: Vec<_> = before.crls.iter().filter(|l| l.is_of(&ca)).cloned().collect();
        let choice = renew(&ca, &in_force);
        Ok((build(&ca, &choice)?, choice))
    });
    match attempt {
        Ok((trust, choice)) if before.crls.is_empty() || !choice.lists.is_empty() => {
            problems.crl = choice.problem.as_ref().map(|p| p.message().to_owned());
            return Ok(Renewed { trust, choice, problems });
        }
        // A new CA without a list of its own, where there was one before: the revoked would be let in.
        Ok((_, choice)) => {
            let why = choice.problem.as_ref().map(Problem::message);
            problems.crl = Some(why.map(str::to_owned).unwrap_or_else(|| {
                format!(
                    "{} holds another CA, and there is no revocation list of it; the CA and the list before stay in \
                     force: put its list at {}, or remove {STATE}/crl.pem and restart linux-patch-api to go on without one",
                    paths.ca_cert.display(),
                    paths.crl.display(),
                    STATE = crate::config::STATE_DIR,
                )
            }));
        }
        Err(error) => problems.ca = Some(error.to_string()),
    }
    // The CA before stays; its list may be newer all the same.
    let ca = before.source();
    let choice = renew(ca, &before.crls);
    let trust = build(ca, &choice).unwrap_or_else(|_| before.clone());
    if problems.ca.is_some() {
        problems.crl = choice.problem.as_ref().map(|p| p.message().to_owned());
    }
    Ok(Renewed { trust, choice, problems })
}

/// Reads the certificates when the service starts.
///
/// # Errors
/// With the file, the fault and the remedy, when there is nothing that could be served with.
pub async fn start(
    root: &Path,
    settings: &Settings,
    executor: &Executor,
    log: &AuditLog,
) -> anyhow::Result<(LoadedTls, Certificates)> {
    start_with(root, settings, executor, log, credentials().as_deref()).await
}

async fn start_with(
    root: &Path,
    settings: &Settings,
    executor: &Executor,
    log: &AuditLog,
    credentials: Option<&Path>,
) -> anyhow::Result<(LoadedTls, Certificates)> {
    let paths = &settings.tls;
    let key = any_key(paths, credentials, executor, true).await?;
    let store = Store::new(root);
    let Renewed { trust, choice, problems } = renew_trust(paths, &store, None, &Certificates::default())?;
    let tls = LoadedTls::build(key.pair(paths)?, trust, options(settings))?;
    if tls.crls.is_empty() {
        tracing::warn!(path = %paths.crl.display(), "there is no revocation list: no client certificate can be revoked");
    }
    remember(&store, &tls, &choice);
    for kind in problems.since(&Problems::default()) {
        let event = AuditEvent::new(kind, &Caller::local());
        tracing::error!("{}", event.message);
        log.record_later(event);
    }
    let certificates = certificates(&tls, &choice, problems);
    Ok((tls, certificates))
}

fn certificates(tls: &LoadedTls, choice: &Choice, problems: Problems) -> Certificates {
    Certificates {
        crl_refused: matches!(choice.problem, Some(Problem::Invalid(_))),
        crl_stale: choice.is_stale,
        doubtful: choice.doubtful.clone(),
        problems,
        ..Certificates::of(tls)
    }
}

/// Keeps a copy of the lists in force. Whoever came with the list has it still, so failing is said and no more.
fn remember(store: &Store, tls: &LoadedTls, choice: &Choice) {
    // Nothing older than what was in force before takes its place in the memory.
    if choice.is_behind {
        return;
    }
    let memory = store.memory();
    let lists = &tls.trust().crls;
    // What a client sent stays the client's until the file is as new.
    let kept_upload =
        memory.origin == Origin::Upload && lists.iter().all(|l| choice.is_kept(l)) && !lists.is_empty();
    let origin = if kept_upload { Origin::Upload } else { Origin::File };
    if let Err(error) = store.keep(lists, &memory, origin, &choice.doubtful) {
        tracing::error!(%error, "the copy of the revocation list could not be kept; the list is in force all the same");
    }
}

/// What is to be in force from now on. While it lives nothing else is exchanged.
#[derive(Debug)]
pub struct Renewal {
    tls: LoadedTls,
    /// None if the lists stay as they are.
    choice: Option<Choice>,
    problems: Problems,
    _turn: Turn,
}

/// The turn to exchange certificates.
type Turn = tokio::sync::OwnedMutexGuard<()>;

impl Renewal {
    /// What cannot be used, as one text; none if everything can be.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let problems = [&self.problems.server, &self.problems.ca, &self.problems.crl];
        let said: Vec<&str> = problems.into_iter().flatten().map(String::as_str).collect();
        (!said.is_empty()).then(|| format!("the certificates cannot be used: {}", said.join("; ")))
    }

    fn new(
        settings: &Settings,
        before: &LoadedTls,
        pair: Option<ServerPair>,
        trust: Option<(Trust, Choice)>,
        mut problems: Problems,
        turn: Turn,
    ) -> Self {
        let pair = pair.unwrap_or_else(|| before.pair().clone());
        let (trust, choice) = trust.map_or_else(|| (before.trust().clone(), None), |(t, c)| (t, Some(c)));
        let tls = match LoadedTls::build(pair, trust, options(settings)) {
            Ok(tls) => tls,
            Err(error) => {
                // Each part was checked before, so this is not expected of any file.
                problems.ca.get_or_insert_with(|| error.to_string());
                before.clone()
            }
        };
        Self { tls, choice, problems, _turn: turn }
    }
}

/// Reads all of the files that another configuration names. What is worse than before stays as it is, part by part.
pub async fn renew(settings: &Settings, door: &Door, app: &App) -> Renewal {
    let paths = &settings.tls;
    // Before the turn is taken: a revocation must not wait for a root side that does not answer.
    let key = any_key(paths, credentials().as_deref(), app.executor(), false).await;
    let turn = app.certificate_turn().await;
    let before = door.tls();
    let (trust, mut problems) = trust_part(paths, &before, app);
    let pair = pair_part(key, paths, &mut problems);
    Renewal::new(settings, &before, pair, Some(trust), problems, turn)
}

/// Whom to trust, and what is wrong with that.
fn trust_part(paths: &TlsPaths, before: &LoadedTls, app: &App) -> ((Trust, Choice), Problems) {
    let was = app.certificates();
    match renew_trust(paths, &Store::new(app.root()), Some(before.trust()), &was) {
        Ok(Renewed { trust, choice, problems }) => ((trust, choice), problems),
        Err(error) => {
            let problems = Problems { ca: Some(error.to_string()), ..Problems::default() };
            // No better than it was.
            let mut choice = Choice::default();
            choice.is_stale = was.crl_stale;
            choice.doubtful.clone_from(&was.doubtful);
            ((before.trust().clone(), choice), problems)
        }
    }
}

fn pair_part(key: anyhow::Result<Key>, paths: &TlsPaths, problems: &mut Problems) -> Option<ServerPair> {
    match key.and_then(|key| key.pair(paths)) {
        Ok(pair) => {
            problems.server = None;
            Some(pair)
        }
        Err(error) => {
            problems.server = Some(format!("{error:#}"));
            None
        }
    }
}

/// Reads the CA and its lists again.
async fn renew_listed(door: &Door, app: &App) -> Renewal {
    let turn = app.certificate_turn().await;
    // Those of now: the configuration may have changed while others had their turn.
    let settings = app.settings();
    let before = door.tls();
    let (trust, mut problems) = trust_part(&settings.tls, &before, app);
    problems.server = app.certificates().problems.server.clone();
    Renewal::new(&settings, &before, None, Some(trust), problems, turn)
}

/// Reads the server's certificate and its key again.
async fn renew_pair(door: &Door, app: &App, credentials: Option<&Path>) -> Renewal {
    loop {
        let paths = app.settings().tls.clone();
        let key = any_key(&paths, credentials, app.executor(), false).await;
        let turn = app.certificate_turn().await;
        let settings = app.settings();
        if settings.tls != paths {
            continue;
        }
        let before = door.tls();
        let mut problems = app.certificates().problems.clone();
        let pair = pair_part(key, &paths, &mut problems);
        return Renewal::new(&settings, &before, pair, None, problems, turn);
    }
}

/// Reads the certificates again and puts them in force: first whom to trust, which waits for nobody, then the pair. What
/// cannot be used is read once more after `patience`: it may be half-written.
///
/// # Errors
/// With what cannot be used; each part of it stays as it was.
pub async fn refresh(
    door: &Door,
    app: &App,
    log: &AuditLog,
    patience: Option<Duration>,
) -> Result<(), String> {
    refresh_with(door, app, log, patience, credentials().as_deref()).await
}

async fn refresh_with(
    door: &Door,
    app: &App,
    log: &AuditLog,
    patience: Option<Duration>,
    credentials: Option<&Path>,
) -> Result<(), String> {
    let mut listed = renew_listed(door, app).await;
    if let Some(pause) = patience.filter(|_| listed.problems.ca.is_some() || listed.problems.crl.is_some()) {
        // Its turn is given back meanwhile.
        drop(listed);
        tokio::time::sleep(pause).await;
        listed = renew_listed(door, app).await;
    }
    let is_good = put_in_force(listed, door, app, log);
    let result = refresh_pair_with(door, app, log, patience, credentials).await;
    app.metrics().certificates_read(is_good && result.is_ok());
    result
}

/// As [`refresh`], of the CA and its lists alone.
async fn refresh_trust(door: &Door, app: &App, log: &AuditLog) {
    let renewal = renew_listed(door, app).await;
    put_in_force(renewal, door, app, log);
}

/// As [`refresh`], of the pair alone.
///
/// # Errors
/// With all that cannot be used at this time.
pub async fn refresh_pair(door: &Door, app: &App, log: &AuditLog) -> Result<(), String> {
    refresh_pair_with(door, app, log, None, credentials().as_deref()).await
}

async fn refresh_pair_with(
    door: &Door,
    app: &App,
    log: &AuditLog,
    patience: Option<Duration>,
    credentials: Option<&Path>,
) -> Result<(), String> {
    let began = Instant::now();
    let mut pair = renew_pair(door, app, credentials).await;
    // A root side that does not answer is no file that is being written.
    let is_quick = began.elapsed() < KEY_WITHIN;
    if let Some(pause) = patience.filter(|_| is_quick && pair.problems.server.is_some()) {
        drop(pair);
        tokio::time::sleep(pause).await;
        pair = renew_pair(door, app, credentials).await;
    }
    let problem = pair.problem();
    put_in_force(pair, door, app, log);
    problem.map_or(Ok(()), Err)
}

/// Puts it in force, and records what is new and what is refused. Connections whose certificate is not accepted any more
/// are closed at once. Returns whether nothing is newly refused.
pub fn put_in_force(renewal: Renewal, door: &Door, app: &App, log: &AuditLog) -> bool {
    let Renewal { tls, choice, problems, _turn } = renewal;
    let changes = changes(&door.tls(), &tls);
    let was = app.certificates();
    let refused = problems.since(&was.problems);
    let is_listed = choice.is_some();
    app.note_certificates(match &choice {
        Some(choice) => certificates(&tls, choice, problems),
        None => Certificates {
            crl_refused: was.crl_refused,
            crl_stale: was.crl_stale,
            doubtful: was.doubtful.clone(),
            problems,
            ..Certificates::of(&tls)
        },
    });
    let closed = door.swap_tls(tls);
    if let Some(choice) = choice {
        // Not before: a disk that is slow must not hold up a revocation.
        remember(&Store::new(app.root()), &door.tls(), &choice);
    }
    let is_good = refused.is_empty();
    // Reading the pair is the end of reading everything.
    if !changes.is_empty() || (is_good && !is_listed) {
        tracing::info!(closed, changed = changes.len(), "certificate reload: in effect");
    }
    for change in changes {
        log.record_later(AuditEvent::new(change, &Caller::local()));
    }
    for kind in refused {
        let event = AuditEvent::new(kind, &Caller::local());
        tracing::error!("certificate reload refused in part: {}", event.message);
        log.record_later(event);
    }
    is_good
}

/// Who is known by the configuration; everyone if that maps nobody.
pub fn allowed(settings: &Settings) -> Option<patch_service::Allowed> {
    (!settings.roles.is_empty()).then(|| {
        let settings = settings.clone();
        let known = move |facts: &patch_service::CertificateFacts| {
            settings.role_of(&facts.common_name, &facts.fingerprint_sha256).is_some()
        };
        Arc::new(known) as patch_service::Allowed
    })
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
    let digests = |tls: &LoadedTls| tls.crls.iter().map(|c| c.sha256.clone()).collect::<Vec<_>>();
    let (old, new) = (digests(before), digests(after));
    if old != new {
        let next = after.crls.iter().filter_map(|c| c.next_update).min();
        changes.push(changed(CertificateRole::Crl, &new.join(","), next));
    }
    changes
}

#[cfg(test)]
mod tests;
