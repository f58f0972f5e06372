//! A newer revocation list over the API: it proves itself by the CA's signature and by its number.

use std::{cmp::Ordering, collections::BTreeSet};

use jiff::{SignedDuration, Timestamp};
use patch_audit::{AuditError, AuditEvent, AuditKind, Caller, CertificateRole};
use patch_service::{CrlFacts, LoadedTls, TlsError, Trust, VerifiedCrl, tls};
use patch_types::api::CrlInForce;

use super::crl::{self, Memory, Origin, Signers, Store};
use crate::{
    audit::Audit,
    http::{App, Certificates},
};

/// How far a list may be from the future: clocks differ, and a list is often sent the moment it is made.
const SKEW: SignedDuration = SignedDuration::from_secs(300);

/// Why a list is not put in force.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// It is no list of the CA's.
    #[error(transparent)]
    Unusable(#[from] TlsError),
    /// It is from the future.
    #[error(
        "the list is of {at}, which has not come yet; check the clocks of this host and of the machine that made the list"
    )]
    NotYet {
        /// Its `thisUpdate`.
        at: Timestamp,
    },
    /// It has expired, or does not say when it will.
    #[error("the list {}; make a new one, with a nextUpdate in the future", .at.map_or_else(|| "does not say when the next is due".to_owned(), |at| format!("expired at {at}")))]
    Overdue {
        /// Its `nextUpdate`.
        at: Option<Timestamp>,
    },
    /// It has no number, so it cannot be told from an older one.
    #[error(
        "the list has no number (the extension cRLNumber), so it cannot be told from an older one; with `openssl ca -gencrl` \
         the configuration's key `crlnumber` makes it"
    )]
    NoNumber,
    /// It is not newer than the one in force.
    #[error("the list has the number {number}, but number {highest} is or was in force here; only a higher number replaces it{}", if *.is_equal { " (the lists differ although their numbers are equal)" } else { "" })]
    NotNewer {
        /// Its number.
        number: String,
        /// The highest that was ever in force.
        highest: String,
        /// Whether they are equal.
        is_equal: bool,
    },
    /// Nobody knows any more what was in force here.
    #[error(
        "which revocation lists of this CA were in force here before could not be read, and none is, so an older list cannot be \
         told from a newer one; put the list in its file on the host and restart linux-patch-api without its crl.json and \
         crl.pem"
    )]
    Forgotten,
    /// The change cannot be recorded.
    #[error("the change cannot be recorded in the audit trail, so nothing was changed: {0}")]
    NotRecorded(#[source] AuditError),
    /// The copy that a restart would need cannot be written.
    #[error(
        "the list cannot be kept in the agent's state directory, so nothing was changed: {0}; make room there"
    )]
    NotKept(#[source] std::io::Error),
    /// The service is not up, or is stopping.
    #[error("the service is not serving; try again")]
    NotServing,
}

/// Whether the list is acceptable by itself.
fn check(facts: &CrlFacts, now: Timestamp) -> Result<(), UploadError> {
    if facts.this_update > now + SKEW {
        return Err(UploadError::NotYet { at: facts.this_update });
    }
    if facts.next_update.is_none_or(|next| next <= now) {
        return Err(UploadError::Overdue { at: facts.next_update });
    }
    if facts.number.is_none() {
        return Err(UploadError::NoNumber);
    }
    Ok(())
}

/// Whether the list replaces what is in force; false if it is what is in force.
fn is_newer(
    list: &CrlFacts,
    in_force: &[VerifiedCrl],
    memory: &Memory,
    doubtful: &BTreeSet<String>,
) -> Result<bool, UploadError> {
    if in_force.iter().any(|other| other.facts.sha256 == list.sha256) {
        return Ok(false);
    }
    let number = list.number.as_deref();
    let before = in_force.iter().find(|other| other.facts.signer == list.signer);
    let before = before.and_then(|other| other.facts.number.as_deref());
    if doubtful.contains(&list.signer) && before.is_none() {
        return Err(UploadError::Forgotten);
    }
    let remembered = memory.highest(&list.signer);
    // One that was in force before and got lost may come back.
    let is_newer = CrlFacts::compare_numbers(number, before) == Ordering::Greater
        && CrlFacts::compare_numbers(number, remembered) != Ordering::Less;
    if is_newer {
        return Ok(true);
    }
    let highest = match CrlFacts::compare_numbers(before, remembered) {
        Ordering::Less => remembered,
        _ => before,
    };
    Err(UploadError::NotNewer {
        number: number.unwrap_or("none").to_owned(),
        highest: highest.unwrap_or("none").to_owned(),
        is_equal: CrlFacts::compare_numbers(number, highest) == Ordering::Equal,
    })
}

fn shown(facts: &CrlFacts, changed: bool, closed: usize) -> CrlInForce {
    CrlInForce {
        changed,
        number: facts.number.clone().unwrap_or_default(),
        issuer: facts.issuer.clone(),
        sha256: facts.sha256.clone(),
        this_update: facts.this_update,
        next_update: facts.next_update,
        revoked: facts.revoked.len(),
        closed_connections: closed,
    }
}

impl App {
    /// Puts a revocation list in force, if it is newer than the one that is: on disk, recorded, and for the open
    /// connections too, when this returns.
    ///
    /// # Errors
    /// See [`UploadError`]; nothing has changed then.
    pub async fn put_crl(&self, text: &str, caller: &Caller) -> Result<CrlInForce, UploadError> {
        let turn = self.certificate_turn().await;
        let (app, text, caller) = (self.clone(), text.to_owned(), caller.clone());
        // In a task of its own: a client that goes away ends its request wherever that is, and what is recorded and kept
        // must be in force.
        let putting = tokio::spawn(async move {
            let _turn = turn;
            app.put_and_tell(&text, &caller).await
        });
        putting.await.map_err(|_| UploadError::NotServing)?
    }

    async fn put_and_tell(&self, text: &str, caller: &Caller) -> Result<CrlInForce, UploadError> {
        let result = self.put_list(text, caller, Timestamp::now()).await;
        self.metrics().uploaded(match &result {
            Ok(CrlInForce { changed: true, .. }) => "replaced",
            Ok(_) => "unchanged",
            Err(_) => "refused",
        });
        if let Err(error) = &result {
            let kind = AuditKind::CertificateRefused { role: CertificateRole::Crl, error: error.to_string() };
            self.audit().record_later(AuditEvent::new(kind, caller));
        }
        result
    }

    /// The turn must have been taken.
    async fn put_list(&self, text: &str, caller: &Caller, now: Timestamp) -> Result<CrlInForce, UploadError> {
        let door = self.served_by().ok_or(UploadError::NotServing)?;
        let before = door.tls();
        let ca = before.trust().source();
        let sent = tls::verify_crl(&crl::uploaded(text), ca)?;
        let store = Store::new(self.root());
        let (mut memory, signers) = (store.memory(), Signers::of(tls::signers(ca)?, now));
        let mut lists = before.trust().crls.clone();
        let was = self.certificates();
        if !was.crl_stale {
            memory.trust(&lists);
        }
        memory.doubt(&was.doubtful);
        let mut doubtful = memory.doubtful(&signers);
        let mut is_changed = false;
        for list in &sent {
            check(&list.facts, now)?;
            if is_newer(&list.facts, &lists, &memory, &doubtful)? {
                doubtful.remove(&list.facts.signer);
                lists.retain(|other| other.facts.signer != list.facts.signer);
                lists.push(list.clone());
                is_changed = true;
            }
        }
        let facts = sent.first().map(|list| &list.facts).ok_or(UploadError::NoNumber)?;
        if !is_changed {
            return Ok(shown(facts, false, 0));
        }
        let trust = Trust::with_lists(ca, lists)?;
        let next = LoadedTls::build(before.pair().clone(), trust, super::options(&self.settings()))?;

        // Recorded before it takes effect, kept before it takes effect: a restart must not forget a revocation.
        let audit = Audit::new(self.audit_trail());
        for kind in super::changes(&before, &next) {
            audit.record_durable(AuditEvent::new(kind, caller)).await.map_err(UploadError::NotRecorded)?;
        }
        let kept = next.trust().crls.clone();
        // The list of one CA does not make up for another's.
        let is_stale =
            crl::behind(&kept, &memory, &signers).is_some() || crl::is_forgotten(&kept, &doubtful, &signers);
        let still_doubtful = doubtful.clone();
        tokio::task::spawn_blocking(move || store.keep(&kept, &memory, Origin::Upload, &doubtful))
            .await
            .map_err(|_| UploadError::NotServing)?
            .map_err(UploadError::NotKept)?;
        // A file that cannot be used is still no good; one that is gone is not missed any more.
        let is_invalid = is_stale || (was.crl_refused && !was.crl_stale);
        let mut problems = was.problems.clone();
        problems.crl = problems.crl.filter(|_| is_invalid);
        self.note_certificates(Certificates {
            crl_refused: is_invalid,
            crl_stale: is_stale,
            doubtful: still_doubtful,
            problems,
            ..Certificates::of(&next)
        });
        let closed = door.swap_tls(next);
        tracing::info!(
            closed,
            number = facts.number,
            "a newer revocation list came over the API and is in effect"
        );
        Ok(shown(facts, true, closed))
    }
}

impl UploadError {
    /// Whether the list itself is to blame, and no later try would take it.
    #[must_use]
    pub fn is_of_list(&self) -> bool {
        !matches!(self, Self::Forgotten | Self::NotRecorded(_) | Self::NotKept(_) | Self::NotServing)
    }
}
