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
}

/// The buckets. Each holds as many requests as may come in a minute and fills evenly.
#[derive(Debug, Default)]
pub(super) struct RateLimit(Mutex<HashMap<String, Bucket>>);

impl RateLimit {
    /// Takes a request out of the identity's bucket.
    ///
    /// # Errors
    /// How long to wait when the bucket is empty.
    pub(super) fn take(&self, identity: &str, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let (capacity, rate) = (f64::from(per_minute), f64::from(per_minute) / 60.0);
        let mut buckets = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let level =
            |b: &Bucket| (b.tokens + now.saturating_duration_since(b.at).as_secs_f64() * rate).min(capacity);
        if let Some(bucket) = buckets.get_mut(identity) {
            let tokens = level(bucket);
            if tokens < 1.0 {
                return Err(Duration::from_secs_f64((1.0 - tokens) / rate));
            }
            *bucket = Bucket { tokens: tokens - 1.0, at: now };
            return Ok(());
        }
        if buckets.len() >= MAX_IDENTITIES {
            buckets.retain(|_, b| level(b) < capacity);
        }
        if buckets.len() < MAX_IDENTITIES {
            buckets.insert(identity.to_owned(), Bucket { tokens: capacity - 1.0, at: now });
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
        let wait = limit.take("a", 60, start).unwrap_err();
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
