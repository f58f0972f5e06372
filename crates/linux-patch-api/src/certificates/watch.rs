//! What time brings: certificates and lists expire, and warnings of that fall due.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller};
use patch_service::{CertificateFacts, Door, LoadedTls};

use super::{
    crl::write_durably,
    expiry::{self, Warned},
};
use crate::{config::STATE_DIR, http::App};

/// How often to look whether something has expired while somebody is connected. A look costs next to nothing, but wakes an
/// agent that has nothing else to do.
const LOOK: Duration = Duration::from_secs(1);

/// How often the whole chain of every open connection is judged again, warnings are looked for, and a pair that could not
/// be used is tried again.
const JUDGE: Duration = Duration::from_secs(60);

/// What was warned of, in the agent's state.
const MEMORY: &str = "expiry.json";

/// Goes on until it is aborted.
pub async fn watch(door: Door, app: App, log: Arc<AuditLog>) {
    let mut warnings = Warnings::open(app.root());
    let mut seen = Seen::default();
    let mut judged: Option<Instant> = None;
    let mut retries = tokio::task::JoinSet::new();
    loop {
        let now = Timestamp::now();
        let before = seen;
        seen = look(&door, &app, before, now);
        if seen.expired > before.expired && app.certificates().crl_stale {
            // What is wrong with the lists of a CA that has expired is no reason to turn the others away. Whoever has the
            // turn may wait for a disk, and nothing else here waits for that.
            let (door, app, log) = (door.clone(), app.clone(), Arc::clone(&log));
            retries.spawn(async move { super::refresh_trust(&door, &app, &log).await });
        }
        if judged.is_some_and(|at| at.elapsed() < JUDGE) {
            rest(&door, now).await;
            continue;
        }
        // The root side may have been away when it was asked for the key.
        if judged.is_some() && app.certificates().problems.server.is_some() {
            // It may be away still, and nothing else here waits for it.
            while retries.try_join_next().is_some() {}
            if retries.is_empty() {
                let (door, app, log) = (door.clone(), app.clone(), Arc::clone(&log));
                retries.spawn(async move {
                    // What is wrong was recorded where it was found.
                    let result = super::refresh_pair(&door, &app, &log).await;
                    app.metrics().certificates_read(result.is_ok());
                });
            }
        }
        judged = Some(Instant::now());
        door.close_unpermitted("the certificate is no longer accepted");
        for event in warnings.due(&door.tls(), now) {
            tracing::warn!("{}", event.message);
            log.record_later(event);
        }
        rest(&door, now).await;
    }
}

/// Until the next look.
async fn rest(door: &Door, now: Timestamp) {
    tokio::time::sleep(LOOK).await;
    if door.open_connections() == 0 {
        let quiet = quiet(door.tls().ca.iter().map(|ca| ca.not_after), now);
        // Who comes in is looked at as if somebody had been there all the time.
        let _ = tokio::time::timeout(quiet, door.occupied()).await;
    }
}

/// How long nothing can happen that matters while nobody is connected: until one of the CA's certificates expires, and no
/// longer than until everything is judged again, since a clock may be set.
fn quiet(expiries: impl Iterator<Item = Timestamp>, now: Timestamp) -> Duration {
    let next = expiries.filter(|at| at.as_second() >= now.as_second()).min();
    let left = next.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
    left.unwrap_or(JUDGE).min(JUDGE)
}

/// What a look has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Nobody can be trusted.
    pub(super) is_shut: bool,
    /// How many of the CA's certificates have expired.
    pub(super) expired: usize,
}

/// Ends what must not be open at this moment.
pub(super) fn look(door: &Door, app: &App, before: Seen, now: Timestamp) -> Seen {
    let is_shut = app.certificates().is_shut(now);
    // Once is enough: from then on no request is answered, and no WebSocket opened.
    if is_shut && !before.is_shut {
        door.close_where("the revocation list has expired", |_| true);
    }
    door.close_where("the client certificate has expired", |peer| peer.certificate().not_after <= now);
    // As the verifier judges, to which a certificate is good for all of its last second.
    let has_expired = |ca: &&CertificateFacts| ca.not_after.as_second() < now.as_second();
    let expired = door.tls().ca.iter().filter(has_expired).count();
    if expired > before.expired {
        door.close_unpermitted("the certificate of the CA has expired");
    }
    Seen { is_shut, expired }
}

/// What was warned of.
pub(super) struct Warnings {
    path: PathBuf,
    warned: Warned,
}

impl Warnings {
    /// Reads the memory below the root prefix. Without one everything is warned of anew.
    pub(super) fn open(root: &Path) -> Self {
        let path = root.join(STATE_DIR).join(MEMORY);
        let read = std::fs::read(&path).ok();
        let warned = read.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { path, warned }
    }

    /// The records that are due now.
    pub(super) fn due(&mut self, tls: &LoadedTls, now: Timestamp) -> Vec<AuditEvent> {
        let (due, warned) = expiry::due(expiry::of(tls), &self.warned, now);
        if warned != self.warned {
            self.warned = warned;
            let text = serde_json::to_vec(&self.warned).unwrap_or_default();
            if let Err(error) = write_durably(&self.path, &text) {
                tracing::warn!(%error, path = %self.path.display(), "which expiries were warned of cannot be kept; after a restart they are warned of again");
            }
        }
        due.into_iter()
            .map(|one| {
                let kind = AuditKind::CertificateExpiring { role: one.role, expires: one.until };
                AuditEvent::new(kind, &Caller::local())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_looks_when_a_certificate_of_the_ca_expires_and_once_a_minute() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let quiet = |expiries: &[i64], now| quiet(expiries.iter().map(|second| at(*second)), at(now));
        assert_eq!(quiet(&[], 1000), JUDGE);
        assert_eq!(quiet(&[5000, 1010, 900], 1000), Duration::from_secs(10));
        assert_eq!(quiet(&[900], 1000), JUDGE);
        assert_eq!(quiet(&[1000], 1000), Duration::ZERO);
        assert_eq!(quiet(&[4000], 1000), JUDGE);
    }
}
