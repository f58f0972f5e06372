//! A week of unattended patching on a real host, whose clock the test moves on.
//!
//! The daemon, the root side, the reboot window, apt and dpkg are the real ones, and so are the boots. What the test plays is
//! the archive, the time, the timers of systemd (whose clock stays the machine's), and who is told. What happens in the week comes
//! from a seed; what is judged is what can be seen from outside.

mod clock;
mod judge;
mod plan;
mod play;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;

pub use clock::Clock;

/// Which week.
#[derive(Debug, Clone)]
pub struct Options {
    /// What all that happens comes from.
    pub seed: u64,
    /// In how many days the updates are published. One and a half follow, in which the last ones are installed.
    pub days: u32,
    /// How many security updates.
    pub updates: u32,
    /// At the latest after so many minutes the timers tick.
    pub step: u32,
    /// How long it may take.
    pub limit: Duration,
}

impl Options {
    /// A whole week.
    #[must_use]
    pub fn week(seed: u64) -> Self {
        Self { seed, days: 7, updates: 40, step: 120, limit: Duration::from_secs(30 * 60) }
    }

    /// Two days with everything that a week has, which take about a minute.
    #[must_use]
    pub fn sample(seed: u64) -> Self {
        Self { seed, days: 2, updates: 12, step: 180, limit: Duration::from_secs(5 * 60) }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Security updates that were published.
    pub updates: usize,
    /// Of these, how many were installed within 24 hours.
    pub in_time: usize,
    /// And how many were not, and are reported with their cause.
    pub with_cause: usize,
    /// The longest that one took that was installed, in minutes.
    pub longest_minutes: i64,
    /// Runs of the agent.
    pub runs: usize,
    /// Of these, how many failed.
    pub failed_runs: usize,
    /// Reboots by the reboot window.
    pub reboots: usize,
    /// Mails that were taken.
    pub mails: usize,
    /// Webhooks that were taken.
    pub webhooks: usize,
    /// Mails and webhooks that were refused at first.
    pub refused: usize,
    /// How often the clock was moved on.
    pub steps: usize,
    /// What is not as promised.
    pub failures: Vec<String>,
    /// What happened when, for whoever looks for the reason.
    pub story: Vec<String>,
    /// How long it took.
    pub duration: Duration,
}

impl Report {
    /// The figures in some lines.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "seed {}: {} security updates, {} within 24 hours (the longest took {} h {} min), {} reported with their cause; {} runs, of \
             which {} failed; {} reboots; {} mails and {} webhooks taken, {} refused at first; {} steps, {} failures, {:.0} s",
            self.seed,
            self.updates,
            self.in_time,
            self.longest_minutes / 60,
            self.longest_minutes % 60,
            self.with_cause,
            self.runs,
            self.failed_runs,
            self.reboots,
            self.mails,
            self.webhooks,
            self.refused,
            self.steps,
            self.failures.len(),
            self.duration.as_secs_f64()
        )
    }
}

/// What was seen while the week went by.
#[derive(Debug, Default)]
struct Seen {
    /// When each package was first seen in its new version.
    installed: BTreeMap<String, Timestamp>,
    /// Boots by the reboot window: when, and what asked for one then.
    reboots: Vec<(Timestamp, String)>,
    /// What asked for a reboot when the host was switched off, and has none of it since.
    off: String,
    story: Vec<String>,
    steps: usize,
}

impl Seen {
    fn tell(&mut self, at: Timestamp, what: impl std::fmt::Display) {
        let line = format!("{} {what}", at.strftime("%a %d %H:%M:%S"));
        if std::env::var_os("LINUX_PATCH_WEEK_STORY").is_some() {
            eprintln!("{line} ({})", Timestamp::now().strftime("%H:%M:%S"));
        }
        self.story.push(line);
    }
}

/// Lives through a week.
///
/// # Errors
/// When the host, its agent or the test cannot go on. What is not as promised is part of the report.
pub fn run(options: &Options) -> Result<Report> {
    let begun = std::time::Instant::now();
    let plan = plan::Plan::draw(options);
    let week = play::Week::begin(&plan, options)?;
    let mut report = week.live().and_then(|(week, seen)| judge::judge(&week, &plan, seen))?;
    (report.seed, report.duration) = (options.seed, begun.elapsed());
    Ok(report)
}
