//! Reports refusals without letting a scan flood whoever records them: the first ones of an address at once, the
//! rest of an interval as one event with a count.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    certificate::CertificateFacts,
    event::{AuthFailure, DoorEvent, DoorObserver},
};

/// More addresses than this at a time are reported as one number.
const MAX_TOLD_APART: usize = 1024;

/// What a refusal was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Refused {
    Denied,
    NotTls,
    Timeout,
    Overload,
    Auth(AuthFailure),
}

impl Refused {
    /// How many of an interval are reported one by one. Authentication failures of peers that the allow list lets
    /// this far are few and each is worth a record; denials are not.
    fn one_by_one(self) -> u32 {
        if matches!(self, Self::Auth(_)) { 10 } else { 1 }
    }
}

#[derive(Debug)]
struct Tally {
    reported: u32,
    pending: u64,
    last: SocketAddr,
    certificate: Option<CertificateFacts>,
}

#[derive(Default)]
struct Book {
    tallies: HashMap<(IpAddr, Refused), Tally>,
    others: u64,
    scheduled: bool,
}

pub(crate) struct Reports {
    observer: Arc<dyn DoorObserver>,
    interval: Duration,
    book: Mutex<Book>,
}

impl Reports {
    pub(crate) fn new(observer: Arc<dyn DoorObserver>, interval: Duration) -> Arc<Self> {
        Arc::new(Self { observer, interval, book: Mutex::default() })
    }

    pub(crate) fn observe(&self, event: DoorEvent) {
        self.observer.observe(event);
    }

    /// Notes a refusal; must be called within the runtime, which later reports the rest of the interval.
    pub(crate) fn refused(
        self: &Arc<Self>,
        address: SocketAddr,
        why: Refused,
        certificate: Option<CertificateFacts>,
    ) {
        let mut now = None;
        let schedule = {
            let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
            let full = book.tallies.len() >= MAX_TOLD_APART;
            let key = (address.ip().to_canonical(), why);
            match book.tallies.get_mut(&key) {
                Some(tally) if tally.reported >= why.one_by_one() => {
                    tally.pending += 1;
                    tally.last = address;
                    tally.certificate = certificate;
                }
                None if full => book.others += 1,
                known => {
                    now = Some(event(key, address, certificate, 1));
                    match known {
                        Some(tally) => tally.reported += 1,
                        None => {
                            let tally = Tally { reported: 1, pending: 0, last: address, certificate: None };
                            book.tallies.insert(key, tally);
                        }
                    }
                }
            }
            !std::mem::replace(&mut book.scheduled, true)
        };
        if let Some(event) = now {
            self.observe(event);
        }
        if schedule {
            let reports = Arc::clone(self);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(reports.interval).await;
                    if !reports.flush() {
                        break;
                    }
                }
            });
        }
    }

    /// Reports what has been tallied, forgets who has been quiet, and says whether anyone is left to watch.
    pub(crate) fn flush(&self) -> bool {
        let mut events = Vec::new();
        let busy = {
            let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
            book.tallies.retain(|key, tally| {
                if tally.pending > 0 {
                    events.push(event(*key, tally.last, tally.certificate.take(), tally.pending));
                }
                std::mem::take(&mut tally.pending) > 0
            });
            if book.others > 0 {
                events.push(DoorEvent::DeniedOthers { count: std::mem::take(&mut book.others) });
            }
            book.scheduled = !book.tallies.is_empty();
            book.scheduled
        };
        for event in events {
            self.observe(event);
        }
        busy
    }
}

fn event(
    (address, why): (IpAddr, Refused),
    last: SocketAddr,
    certificate: Option<CertificateFacts>,
    count: u64,
) -> DoorEvent {
    match why {
        Refused::Denied => DoorEvent::Denied { address, count },
        Refused::NotTls => DoorEvent::NotTls { address, count },
        Refused::Timeout => DoorEvent::HandshakeTimeout { address, count },
        Refused::Overload => DoorEvent::Overload { address, count },
        Refused::Auth(reason) => DoorEvent::AuthFailed {
            address: last,
            reason,
            expired: reason == AuthFailure::Expired,
            certificate,
            count,
        },
    }
}
