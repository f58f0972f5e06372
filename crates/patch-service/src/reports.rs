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

/// More addresses than this at a time are reported as one number. Each kind of refusal is counted on its own: a scan by
/// strangers must not hide what known addresses do, nor make it look like something else.
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

impl Tally {
    fn new(last: SocketAddr) -> Self {
        Self { reported: 0, pending: 0, last, certificate: None }
    }

    fn add(&mut self, address: SocketAddr, certificate: Option<CertificateFacts>) {
        self.pending += 1;
        self.last = address;
        self.certificate = certificate;
    }

    /// The event for what is pending, if anything is.
    fn take(&mut self, why: Refused) -> Option<DoorEvent> {
        let count = std::mem::take(&mut self.pending);
        (count > 0).then(|| event(why, self.last, self.certificate.take(), count))
    }
}

/// What is kept of one kind of refusal.
#[derive(Debug, Default)]
struct Kind {
    addresses: HashMap<IpAddr, Tally>,
    /// Those of addresses for which there is no room.
    others: Option<Tally>,
}

#[derive(Default)]
struct Book {
    kinds: HashMap<Refused, Kind>,
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
            let kind = book.kinds.entry(why).or_default();
            let ip = address.ip().to_canonical();
            if kind.addresses.contains_key(&ip) || kind.addresses.len() < MAX_TOLD_APART {
                let tally = kind.addresses.entry(ip).or_insert_with(|| Tally::new(address));
                if tally.reported < why.one_by_one() {
                    tally.reported += 1;
                    now = Some(event(why, address, certificate, 1));
                } else {
                    tally.add(address, certificate);
                }
            } else {
                kind.others.get_or_insert_with(|| Tally::new(address)).add(address, certificate);
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
            book.kinds.retain(|why, kind| {
                kind.addresses.retain(|_, tally| {
                    let rest = tally.take(*why);
                    let was_quiet = rest.is_none();
                    events.extend(rest);
                    !was_quiet
                });
                if let Some(mut others) = kind.others.take() {
                    events.extend(match why {
                        Refused::Denied => Some(DoorEvent::DeniedOthers { count: others.pending }),
                        _ => others.take(*why),
                    });
                }
                !kind.addresses.is_empty()
            });
            book.scheduled = !book.kinds.is_empty();
            book.scheduled
        };
        for event in events {
            self.observe(event);
        }
        busy
    }
}

fn event(why: Refused, last: SocketAddr, certificate: Option<CertificateFacts>, count: u64) -> DoorEvent {
    let address = last.ip().to_canonical();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;

    fn peer(number: u32) -> SocketAddr {
        (std::net::Ipv4Addr::from_bits(0x0a00_0000 + number), 1).into()
    }

    #[tokio::test]
    async fn ten_thousand_connections_of_one_address_make_at_most_five_lines() {
        let memory = Memory::new();
        let reports = Reports::new(Arc::clone(&memory) as Arc<dyn DoorObserver>, Duration::from_secs(3600));
        for _ in 0..10_000 {
            reports.refused(peer(1), Refused::Denied, None);
        }
        assert!(reports.flush(), "it is watched for another interval");
        assert!(!reports.flush());
        assert_eq!(memory.count(|_| true), 2);
        assert_eq!(memory.count(|e| matches!(e, DoorEvent::Denied { count: 9_999, .. })), 1);
    }

    #[tokio::test]
    async fn a_scan_by_strangers_does_not_hide_failed_authentications() {
        let memory = Memory::new();
        let reports = Reports::new(Arc::clone(&memory) as Arc<dyn DoorObserver>, Duration::from_secs(3600));
        for number in 0..2000 {
            reports.refused(peer(number), Refused::Denied, None);
        }
        reports.refused(peer(5000), Refused::Auth(AuthFailure::Expired), None);
        assert_eq!(memory.count(|e| matches!(e, DoorEvent::Denied { .. })), MAX_TOLD_APART);
        assert_eq!(memory.count(|e| matches!(e, DoorEvent::AuthFailed { expired: true, count: 1, .. })), 1);

        for number in 5001..7000 {
            reports.refused(peer(number), Refused::Auth(AuthFailure::Expired), None);
        }
        reports.flush();
        let others = u64::try_from(2000 - MAX_TOLD_APART).unwrap();
        assert_eq!(
            memory.count(|e| matches!(e, DoorEvent::DeniedOthers { count } if *count == others)),
            1,
            "only denials"
        );
        let in_sum = |e: &DoorEvent| matches!(e, DoorEvent::AuthFailed { address, count, .. } if *count == others && *address == peer(6999));
        assert_eq!(memory.count(in_sum), 1);
        assert!(!reports.flush(), "nobody is remembered for ever");
    }
}
