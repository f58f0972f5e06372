//! When an idle agent gives memory back: seldom enough that nobody waits for it, and by the timer that runs anyway.

use std::time::{Duration, Instant};

use patch_memory::Program;
use rustix::time::{ClockId, clock_gettime};

/// Who uses more than this part of a processor is at work, and would only fetch everything again.
const BUSY: u32 = 10;

/// What has to be used between two times to have left anything.
const WORTH_IT: Duration = Duration::from_millis(2);

/// What the agent has used of a processor, and when that was looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    /// At the last look.
    before: Duration,
    /// When memory was given back the last time.
    trimmed: Duration,
}

impl Used {
    /// Whether to give memory back now that `used` was used altogether, and `passed` since the last look.
    fn is_time(&mut self, used: Duration, passed: Duration) -> bool {
        let lately = used.saturating_sub(self.before);
        self.before = used;
        if lately * BUSY > passed || used.saturating_sub(self.trimmed) < WORTH_IT {
            return false;
        }
        self.trimmed = used;
        true
    }
}

/// Gives back what the start, or a burst of requests, has left in memory.
#[derive(Debug)]
pub(crate) struct Frugal {
    program: Program,
    used: Used,
    looked: Instant,
}

impl Frugal {
    /// Nothing is given back yet.
    pub(crate) fn new() -> Self {
        // Without /proc it is the heap alone.
        let program = Program::of_this_process().unwrap_or_default();
        Self { program, used: Used::default(), looked: Instant::now() }
    }

    /// To be called every now and then.
    pub(crate) fn tick(&mut self) {
        let passed = self.looked.elapsed();
        self.looked = Instant::now();
        if self.used.is_time(processor_time(), passed) {
            patch_memory::trim_heap();
            self.program.let_go();
        }
    }
}

/// What all threads of this process have used.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn memory_is_given_back_after_a_burst_and_not_in_it() {
        let mut used = Used::default();
        let tick = Duration::from_secs(30);
        // The start, then its first quiet half minute.
        assert!(!used.is_time(ms(200), ms(0)));
        assert!(used.is_time(ms(210), tick));
        // Idle: nothing has gathered.
        for _ in 0..10 {
            assert!(!used.is_time(ms(211), tick));
        }
        // A storm of ten seconds of work, then quiet.
        assert!(!used.is_time(ms(10_220), tick));
        assert!(used.is_time(ms(10_230), tick));
        assert!(!used.is_time(ms(10_231), tick));
        // Now and then a request.
        assert!(used.is_time(ms(10_300), tick));
    }

    #[test]
    fn the_programs_time_is_told() {
        let before = processor_time();
        let sum: u64 = (0..1_000_000).map(std::hint::black_box).sum();
        assert!(processor_time() > before && before > Duration::ZERO, "{sum}");
        let mut frugal = Frugal::new();
        frugal.tick();
        frugal.tick();
    }
}
