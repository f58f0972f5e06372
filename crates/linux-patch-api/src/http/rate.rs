//! The rate limit: a token bucket for each identity.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

/// How many identities are remembered. A bucket that is full again is forgotten first; certificates are issued by the
/// internal CA, so more than this many active ones do not occur.
const MAX_IDENTITIES: usize = 1024;

/// Who waits as long as was said must not fail for a bit in the last place.
const ROUNDING: f64 = 1e-5;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
    /// Refusals since the last report.
    refused: u64,
    reported: Option<Instant>,
}

/// A request too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exceeded {
    /// How long to wait.
    pub(super) wait: Duration,
    /// How many refusals to report now, this one included; the first one at once, the rest once a minute.
    pub(super) report: Option<u64>,
}

impl Exceeded {
    /// The whole seconds after which there is room for a request again, as `Retry-After` says it.
    pub(super) fn retry_after(&self) -> u64 {
        let seconds = self.wait.as_micros().div_ceil(1_000_000).max(1);
        u64::try_from(seconds).unwrap_or(u64::MAX)
    }
}

/// How often refusals of one identity are reported.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// The buckets. Each holds as many requests as may come in a minute and fills evenly.
#[derive(Debug, Default)]
pub(super) struct RateLimit(Mutex<HashMap<String, Bucket>>);

impl RateLimit {
    /// Takes a request out of the identity's bucket.
    ///
    /// # Errors
    /// When the bucket is empty.
    pub(super) fn take(&self, identity: &str, per_minute: u32, now: Instant) -> Result<(), Exceeded> {
        let (capacity, rate) = (f64::from(per_minute), f64::from(per_minute) / 60.0);
        let mut buckets = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let level =
            |b: &Bucket| (b.tokens + now.saturating_duration_since(b.at).as_secs_f64() * rate).min(capacity);
        if let Some(bucket) = buckets.get_mut(identity) {
            let tokens = level(bucket);
            if tokens < 1.0 - ROUNDING {
                bucket.refused += 1;
                let due = bucket.reported.is_none_or(|at| now.saturating_duration_since(at) >= REPORT_EVERY);
                let report = due.then(|| std::mem::take(&mut bucket.refused));
                if due {
                    bucket.reported = Some(now);
                }
                return Err(Exceeded { wait: Duration::from_secs_f64((1.0 - tokens) / rate), report });
            }
            bucket.tokens = (tokens - 1.0).max(0.0);
            bucket.at = now;
            return Ok(());
        }
        if buckets.len() >= MAX_IDENTITIES {
            buckets.retain(|_, b| level(b) < capacity);
        }
        if buckets.len() < MAX_IDENTITIES {
            buckets.insert(
                identity.to_owned(),
                Bucket { tokens: capacity - 1.0, at: now, refused: 0, reported: None },
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills() {
        let limit = RateLimit::default();
        let start = Instant::now();
        for _ in 0..60 {
            assert!(limit.take("a", 60, start).is_ok());
        }
        let Exceeded { wait, report } = limit.take("a", 60, start).unwrap_err();
        assert_eq!(report, Some(1));
        assert_eq!(limit.take("a", 60, start).unwrap_err().report, None);
        assert!(wait <= Duration::from_secs(1) && wait > Duration::from_millis(900), "{wait:?}");
        assert!(limit.take("b", 60, start).is_ok());
        assert!(limit.take("a", 60, start + Duration::from_secs(2)).is_ok());
    }

    #[test]
    fn who_waits_as_long_as_is_said_is_served() {
        for per_minute in [1, 2, 7, 59, 60, 61, 600, 100_000_000] {
            let limit = RateLimit::default();
            let mut now = Instant::now();
            while limit.take("a", per_minute, now).is_ok() && per_minute < 1000 {}
            for _ in 0..50 {
                let Err(exceeded) = limit.take("a", per_minute, now) else { break };
                let seconds = exceeded.retry_after();
                assert!(seconds <= 60 / u64::from(per_minute) + 1, "{per_minute}: {seconds}");
                now += Duration::from_secs(seconds);
                assert!(limit.take("a", per_minute, now).is_ok(), "{per_minute}: after {seconds} s");
                while limit.take("a", per_minute, now).is_ok() {}
            }
        }
    }

    #[test]
    fn another_rate_holds_at_once_for_who_is_known_already() {
        let limit = RateLimit::default();
        let start = Instant::now();
        assert!(limit.take("a", 600, start).is_ok());
        // Down: what was left of the larger bucket does not count.
        for _ in 0..2 {
            assert!(limit.take("a", 2, start).is_ok());
        }
        let wait = limit.take("a", 2, start).unwrap_err().wait;
        assert!(wait > Duration::from_secs(29), "{wait:?}");
        // Up: the bucket fills as fast as it does now.
        assert!(limit.take("a", 600, start).unwrap_err().wait < Duration::from_secs(1));
        assert!(limit.take("a", 600, start + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn memory_is_bounded() {
        let limit = RateLimit::default();
        let start = Instant::now();
        for i in 0..5000 {
            let _ = limit.take(&i.to_string(), 60, start);
        }
        assert!(limit.0.lock().unwrap().len() <= MAX_IDENTITIES);
    }
}
