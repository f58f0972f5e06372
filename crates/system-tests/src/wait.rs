//! Waiting for a condition with a deadline: the only place that sleeps.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const INTERVAL: Duration = Duration::from_millis(10);

/// Asks `condition` again and again until it gives a value; an error from it ends the wait at once.
///
/// # Errors
/// When `condition` fails, or when `limit` has passed; the message then names `what` was awaited.
pub fn until<T>(what: &str, limit: Duration, condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_every(INTERVAL, what, limit, condition)
}

/// As [`until`], asking only every `interval`, for conditions that are dear to ask.
///
/// # Errors
/// As [`until`].
pub fn until_every<T>(
    interval: Duration,
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {:.1} s in vain for {what}", limit.as_secs_f32());
        }
        std::thread::sleep(interval);
    }
}
