//! The rate limit: a token bucket for each identity.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

/// How many identities are remembered. A bucket that is full again is forgotten first; certificates are issued by the
/// internal CA, so more than this many active ones do not occur.
const MAX_IDENTITIES: usize = 1024;

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
            if tokens < 1.0 {
                bucket.refused += 1;
                let due = bucket.reported.is_none_or(|at| now.saturating_duration_since(at) >= REPORT_EVERY);
                let report = due.then(|| std::mem::take(&mut bucket.refused));
                if due {
                    bucket.reported = Some(now);
                }
                return Err(Exceeded { wait: Duration::from_secs_f64((1.0 - tokens) / rate), report });
            }
            bucket.tokens = tokens - 1.0;
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
    fn memory_is_bounded() {
        let limit = RateLimit::default();
        let start = Instant::now();
        for i in 0..5000 {
            let _ = limit.take(&i.to_string(), 60, start);
        }
        assert!(limit.0.lock().unwrap().len() <= MAX_IDENTITIES);
    }
}
