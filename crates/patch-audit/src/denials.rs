//! Aggregation of repeated refusals: the first of an address is told at once, the rest as a number when its time is
//! over. Time is an argument; nothing here runs by itself.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Counts refusals by address. One value for each kind of refusal.
#[derive(Debug)]
pub struct Denials {
    window: Duration,
    capacity: usize,
    seen: HashMap<IpAddr, Seen>,
    /// Refusals of addresses for which there was no room.
    others: u64,
}

#[derive(Debug)]
struct Seen {
    told: Instant,
    untold: u64,
}

impl Denials {
    /// Tells each address at most once a `window`, and remembers at most `capacity` addresses: a scan from forged
    /// addresses must not fill the memory instead of the disk.
    #[must_use]
    pub fn new(window: Duration, capacity: usize) -> Self {
        Self { window, capacity, seen: HashMap::new(), others: 0 }
    }

    /// Notes a refusal. `Some(count)` when a record is due now, which stands for that many refusals of the address.
    pub fn note(&mut self, address: IpAddr, now: Instant) -> Option<u64> {
        if let Some(seen) = self.seen.get_mut(&address) {
            if now.saturating_duration_since(seen.told) < self.window {
                seen.untold = seen.untold.saturating_add(1);
                return None;
            }
            seen.told = now;
            return Some(std::mem::take(&mut seen.untold).saturating_add(1));
        }
        if self.seen.len() >= self.capacity {
            self.others = self.others.saturating_add(1);
            return None;
        }
        self.seen.insert(address, Seen { told: now, untold: 0 });
        Some(1)
    }

    /// What is due although nobody came again: for each address whose window is over, its untold refusals; `None`
    /// stands for the addresses that were not remembered. Addresses without any are forgotten. Call it from a
    /// heartbeat that exists anyway, and with `everything` at the end.
    pub fn due(&mut self, now: Instant, everything: bool) -> Vec<(Option<IpAddr>, u64)> {
        let mut due = Vec::new();
        self.seen.retain(|address, seen| {
            if !everything && now.saturating_duration_since(seen.told) < self.window {
                return true;
            }
            let untold = std::mem::take(&mut seen.untold);
            if untold > 0 {
                due.push((Some(*address), untold));
                seen.told = now;
            }
            untold > 0 && !everything
        });
        if self.others > 0 {
            due.push((None, std::mem::take(&mut self.others)));
        }
        due
    }

    /// Whether anything is waiting to be told: a heartbeat is needed only then.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.seen.is_empty() && self.others == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_as_a_number() {
        let mut denials = Denials::new(WINDOW, 10);
        let t = Instant::now();
        assert_eq!(denials.note(ip(1), t), Some(1));
        for _ in 0..999 {
            assert_eq!(denials.note(ip(1), t + WINDOW / 2), None);
        }
        assert_eq!(denials.note(ip(2), t + WINDOW / 2), Some(1));
        assert_eq!(denials.note(ip(1), t + WINDOW), Some(1000));
    }

    #[test]
    fn nothing_is_lost_when_the_peer_stays_away() {
        let mut denials = Denials::new(WINDOW, 10);
        let t = Instant::now();
        denials.note(ip(1), t);
        denials.note(ip(1), t);
        denials.note(ip(2), t);
        assert_eq!(denials.due(t + WINDOW / 2, false), []);
        assert_eq!(denials.due(t + WINDOW, false), [(Some(ip(1)), 1)]);
        assert!(!denials.is_quiet());
        assert_eq!(denials.due(t + WINDOW * 2, false), []);
        assert!(denials.is_quiet());
        denials.note(ip(3), t);
        denials.note(ip(3), t);
        assert_eq!(denials.due(t, true), [(Some(ip(3)), 1)]);
        assert!(denials.is_quiet());
    }

    #[test]
    fn memory_is_bounded_and_the_overflow_is_counted() {
        let mut denials = Denials::new(WINDOW, 2);
        let t = Instant::now();
        let told: Vec<_> = (0..5).map(|n| denials.note(ip(n), t)).collect();
        assert_eq!(told, [Some(1), Some(1), None, None, None]);
        assert_eq!(denials.due(t, false), [(None, 3)]);
    }
}
