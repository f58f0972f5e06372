//! `cargo xtask week`: a week of unattended patching on a host whose clock the test moves on.

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;
use system_tests::week::{self, Options, Report};

use crate::{
    chaos::{make_ready, new_seed},
    table, workspace,
};

/// Options of `week`.
#[derive(Debug, Args)]
pub(crate) struct Week {
    /// What all that happens comes from; another one each time if absent. It is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// Two days with everything that a week has, as in every run of the tests.
    #[arg(long)]
    sample: bool,
    /// Show what happened when.
    #[arg(long)]
    story: bool,
    /// Add a row to the table in docs/testing.md.
    #[arg(long)]
    record: bool,
}

/// The line of docs/testing.md after which the rows stand, the newest last.
const TABLE: &str = "| date | seed | security updates | within 24 hours | the longest | reported with their cause | runs, failed | \
                     reboots | mails, webhooks | failures | seconds |";

/// Runs the subcommand.
pub(crate) fn run(args: &Week) -> Result<ExitCode> {
    make_ready()?;
    let seed = args.seed.map_or_else(new_seed, Ok)?;
    println!("seed {seed}");
    let report = week::run(&if args.sample { Options::sample(seed) } else { Options::week(seed) })?;
    if args.story {
        report.story.iter().for_each(|line| println!("{line}"));
    }
    report.failures.iter().for_each(|failure| println!("FAILED {failure}"));
    println!("{}", report.summary());
    if args.record {
        record(&report)?;
    }
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The bounded sample that every run of the tests has, from a seed of its own.
pub(crate) fn sample(packages: &Path) -> Result<()> {
    system_tests::packages::Packages::use_those_in(packages);
    let seed = new_seed()?;
    println!("   seed {seed}");
    let again = || format!("again: cargo xtask week --sample --story --seed {seed}");
    let report = week::run(&Options::sample(seed)).with_context(again)?;
    println!("{}", report.summary());
    ensure!(report.failures.is_empty(), "{}\n{}", report.failures.join("\n"), again());
    Ok(())
}

fn record(report: &Report) -> Result<()> {
    let path = workspace::root()?.join("docs/testing.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let row = vec![
        table::today(),
        report.seed.to_string(),
        report.updates.to_string(),
        report.in_time.to_string(),
        format!("{} h {} min", report.longest_minutes / 60, report.longest_minutes % 60),
        report.with_cause.to_string(),
        format!("{}, {}", report.runs, report.failed_runs),
        report.reboots.to_string(),
        format!("{}, {}", report.mails, report.webhooks),
        report.failures.len().to_string(),
        format!("{:.0}", report.duration.as_secs_f64()),
    ];
    let text = table::append(&text, TABLE, row)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
