//! `cargo xtask rehearsals`: random plans, each of which is rehearsed and then carried out; both must say the same.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use system_tests::rehearsals::{self, Options, Report};

use crate::{chaos, table, workspace};

/// Options of `rehearsals`.
#[derive(Debug, Args)]
pub(crate) struct Rehearsals {
    /// What all decisions come from; another one each time if absent. It is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// How many plans.
    #[arg(long, default_value_t = 200)]
    plans: u32,
    /// The number of the first round: the one that failed, with `--plans 1`, to run it again.
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// No round begins after so many minutes.
    #[arg(long, default_value_t = 24 * 60)]
    minutes: u64,
    /// Add a row to the table in docs/testing.md.
    #[arg(long)]
    record: bool,
}

/// The line of docs/testing.md after which the rows stand, the newest last.
const TABLE: &str = "| date | seed | plans | well in both | failing in both, the same script | disagreements | agree | failures |";

/// Runs the subcommand.
pub(crate) fn run(args: &Rehearsals) -> Result<ExitCode> {
    chaos::make_ready()?;
    let options = Options {
        seed: args.seed.map_or_else(chaos::new_seed, Ok)?,
        first: args.first,
        plans: args.plans,
        limit: Duration::from_secs(args.minutes.saturating_mul(60)),
    };
    println!("seed {}", options.seed);
    let report = rehearsals::run(&options);
    println!("{}", report.summary());
    if args.record {
        record(&report)?;
    }
    let least = options.least(report.duration);
    if !report.shows_enough(least) {
        println!(
            "that shows too little: {least} plans have to be compared, and among many some go well and some fail"
        );
    }
    Ok(if report.is_good(least) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The bounded sample that every run of the tests has, from a seed of its own.
pub(crate) fn sample(packages: &Path) -> Result<()> {
    system_tests::packages::Packages::use_those_in(packages);
    let limit = Duration::from_secs(80);
    let options = Options { seed: chaos::new_seed()?, first: 0, plans: 16, limit };
    println!("   seed {}", options.seed);
    let report = rehearsals::run(&options);
    println!("{}", report.summary());
    // How many there is time for is the machine's.
    ensure!(report.shows_enough(1) || !report.failures.is_empty(), "not one plan was rehearsed and made");
    ensure!(
        report.is_good(1),
        "{} disagreements, {} failures; again: cargo xtask rehearsals --seed {} --first ROUND --plans 1",
        report.disagreements.len(),
        report.failures.len(),
        report.seed
    );
    Ok(())
}

fn record(report: &Report) -> Result<()> {
    let path = workspace::root()?.join("docs/testing.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let row = vec![
        table::today(),
        report.seed.to_string(),
        report.compared.to_string(),
        report.well.to_string(),
        report.failed().to_string(),
        report.disagreements.len().to_string(),
        format!("{:.1} %", report.agreement()),
        report.failures.len().to_string(),
    ];
    let text = table::append(&text, TABLE, row)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
