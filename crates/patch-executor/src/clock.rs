//! Time that nobody can set.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An instant of one boot, which setting the host's clock does not move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clock {
    boot: String,
    /// Since that boot, in milliseconds, time asleep included.
    at_ms: u64,
}

impl Clock {
    /// The instant so long from now; `None` if the kernel does not say which boot this is.
    pub(crate) fn after(time: Duration) -> Option<Self> {
        let time = u64::try_from(time.as_millis()).ok()?;
        let boot = Some(boot()).filter(|boot| !boot.is_empty())?;
        Some(Self { boot, at_ms: Self::now()?.checked_add(time)? })
    }

    /// How long it is until then; `None` if that was another boot.
    pub(crate) fn left(&self) -> Option<Duration> {
        let left = self.at_ms.saturating_sub(Self::now()?);
        (boot() == self.boot).then(|| Duration::from_millis(left))
    }

    fn now() -> Option<u64> {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).ok()?;
        seconds.checked_mul(1000)?.checked_add(u64::try_from(time.tv_nsec).ok()? / 1_000_000)
    }
}

/// The kernel's clock that is never set, in microseconds, as systemd notes when a unit was started.
pub(crate) fn monotonic_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    part(time.tv_sec).saturating_mul(1_000_000).saturating_add(part(time.tv_nsec) / 1000)
}

/// The kernel's name for this boot; empty if it does not say.
pub(crate) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}
