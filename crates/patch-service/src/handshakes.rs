//! Bounds on unfinished handshakes, in all and for each address, so that none can starve the others.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// The unfinished handshakes.
#[derive(Debug)]
pub(crate) struct Handshakes {
    max: usize,
    max_per_address: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    // Ordered by age.
    pending: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

/// A place among the unfinished handshakes; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    id: u64,
    owner: Arc<Handshakes>,
    /// Cancelled when the place is needed for somebody else.
    pub(crate) evicted: CancellationToken,
}

impl Handshakes {
    pub(crate) fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_address, table: Mutex::default() })
    }

    /// A place for a connection from `address`; none if the address has its share already. When all places are
    /// taken, the oldest of the address that holds the most gives way: that is who is being slow.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut held: BTreeMap<IpAddr, (usize, u64)> = BTreeMap::new();
        for (id, (owner, _)) in &table.pending {
            held.entry(*owner).or_insert((0, *id)).0 += 1;
        }
        if held.get(&address).is_some_and(|(count, _)| *count >= self.max_per_address) {
            return None;
        }
        if table.pending.len() >= self.max {
            let (_, oldest) =
                held.values().max_by_key(|(count, oldest)| (*count, std::cmp::Reverse(*oldest)))?;
            if let Some((_, token)) = table.pending.remove(oldest) {
                token.cancel();
            }
        }
        let id = table.next;
        table.next += 1;
        let evicted = CancellationToken::new();
        table.pending.insert(id, (address, evicted.clone()));
        Some(Place { id, owner: Arc::clone(self), evicted })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.owner.table.lock().unwrap_or_else(PoisonError::into_inner).pending.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn an_address_gets_no_more_than_its_share() {
        let handshakes = Handshakes::new(10, 2);
        let first = handshakes.enter(address(1)).unwrap();
        let _second = handshakes.enter(address(1)).unwrap();
        assert!(handshakes.enter(address(1)).is_none());
        assert!(handshakes.enter(address(2)).is_some());
        drop(first);
        assert!(handshakes.enter(address(1)).is_some());
    }

    #[test]
    fn a_full_house_makes_the_heaviest_address_give_way() {
        let handshakes = Handshakes::new(3, 2);
        let oldest = handshakes.enter(address(2)).unwrap();
        let slow = handshakes.enter(address(1)).unwrap();
        let slower = handshakes.enter(address(1)).unwrap();
        let _newcomer = handshakes.enter(address(3)).unwrap();
        assert!(slow.evicted.is_cancelled());
        assert!(!oldest.evicted.is_cancelled() && !slower.evicted.is_cancelled());
    }
}
