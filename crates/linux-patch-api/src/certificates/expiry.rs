//! Warnings that something expires: 30, 7 and 1 days before, and when it has.
//!
//! What was made for a shorter time than a warning's is not warned of that early: a list that is issued for a week every
//! day is not for ever about to expire.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use patch_audit::CertificateRole;
use patch_service::LoadedTls;

/// How many days before.
pub const DAYS: [u32; 3] = [30, 7, 1];

/// Something that expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expiring {
    pub(super) role: CertificateRole,
    /// Tells it from its successor.
    pub(super) id: String,
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
}

/// All that can expire.
pub(super) fn of(tls: &LoadedTls) -> Vec<Expiring> {
    let server = std::iter::once((CertificateRole::Server, &tls.server));
    let certificates = server.chain(tls.ca.iter().map(|facts| (CertificateRole::Ca, facts)));
    let mut all: Vec<Expiring> = certificates
        .map(|(role, facts)| Expiring {
            role,
            id: facts.fingerprint_sha256.clone(),
            from: facts.not_before,
            until: facts.not_after,
        })
        .collect();
    all.extend(tls.crls.iter().filter_map(|facts| {
        let until = facts.next_update?;
        Some(Expiring {
            role: CertificateRole::Crl,
            id: facts.sha256.clone(),
            from: facts.this_update,
            until,
        })
    }));
    all
}

/// The warning that is due: so many days at most are left, 0 if it has expired. None if there is time enough.
#[must_use]
pub fn level(from: Timestamp, until: Timestamp, now: Timestamp) -> Option<u32> {
    if until <= now {
        return Some(0);
    }
    let days = |days: u32| SignedDuration::from_hours(i64::from(days) * 24);
    let (left, whole) = (until.duration_since(now), until.duration_since(from));
    DAYS.into_iter().rev().find(|&d| left <= days(d) && whole > days(d))
}

/// What was warned of: the level by the [id](Expiring::id).
pub(super) type Warned = BTreeMap<String, u32>;

/// What is to be warned of now, and the memory afterwards.
pub(super) fn due(all: Vec<Expiring>, warned: &Warned, now: Timestamp) -> (Vec<Expiring>, Warned) {
    let mut next = Warned::new();
    let mut due = Vec::new();
    for one in all {
        let before = warned.get(&one.id).copied();
        let Some(level) = level(one.from, one.until, now) else { continue };
        next.insert(one.id.clone(), level.min(before.unwrap_or(level)));
        if before.is_none_or(|before| level < before) {
            due.push(one);
        }
    }
    (due, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours)
    }

    #[test]
    fn each_threshold_is_warned_of_once() {
        let until = at(365 * 24);
        let one = |id: &str| Expiring { role: CertificateRole::Server, id: id.into(), from: at(0), until };
        let mut warned = Warned::new();
        let mut seen = Vec::new();
        // A look an hour, over the whole life and a week beyond.
        for hour in 0..(365 + 7) * 24 {
            let (due, next) = due(vec![one("a")], &warned, at(hour));
            warned = next;
            seen.extend(due.iter().map(|_| 365 * 24 - hour));
        }
        assert_eq!(seen, [30 * 24, 7 * 24, 24, 0]);
        // After a restart the memory is read again; a successor is warned of anew.
        assert!(due(vec![one("a")], &warned, until).0.is_empty());
        assert_eq!(due(vec![one("b")], &warned, until).0.len(), 1);
        assert!(due(vec![one("b")], &warned, at(0)).1.is_empty(), "what is good again is forgotten");
        // A clock that is set back does not warn again.
        assert!(due(vec![one("a")], &warned, at(360 * 24)).0.is_empty());
    }

    #[test]
    fn what_is_short_lived_is_not_warned_of_from_the_start() {
        let week = at(7 * 24);
        assert_eq!(level(at(0), week, at(0)), None);
        assert_eq!(level(at(0), week, at(6 * 24)), Some(1));
        assert_eq!(level(at(0), at(24), at(23)), None);
        assert_eq!(level(at(0), at(24), at(24)), Some(0));
        assert_eq!(level(at(0), at(90 * 24), at(60 * 24)), Some(30));
        assert_eq!(level(at(0), at(90 * 24), at(59 * 24)), None);
    }
}
