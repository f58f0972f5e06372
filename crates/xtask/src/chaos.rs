//! `cargo xtask chaos`: random changes, interrupted in random ways, each of which must end truthfully.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use system_tests::chaos::{self, Options, Report};

use crate::{
    dist::{self, Profile},
    table, workspace,
};

/// Options of `chaos`.
#[derive(Debug, Args)]
pub(crate) struct Chaos {
    /// What all decisions come from; another one each time if absent. It is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// How many rounds in throw-away roots.
    #[arg(long, default_value_t = 60)]
    rounds: u32,
    /// The number of the first round: the one that failed, with `--rounds 1`, to run it again.
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// How many rounds on a real host.
    #[arg(long, default_value_t = 0)]
    hosts: u32,
    /// No round begins after so many minutes.
    #[arg(long, default_value_t = 24 * 60)]
    minutes: u64,
    /// Add a row to the table in docs/testing.md.
    #[arg(long)]
    record: bool,
}

/// The line of docs/testing.md after which the rows stand, the newest last.
const TABLE: &str = "| date | seed | rounds in roots | rounds on hosts | failures |";

/// Runs the subcommand.
pub(crate) fn run(args: &Chaos) -> Result<ExitCode> {
    make_ready()?;
    let options = Options {
        seed: args.seed.map_or_else(new_seed, Ok)?,
        first: args.first,
        rounds: args.rounds,
        hosts: args.hosts,
        limit: Duration::from_secs(args.minutes.saturating_mul(60)),
    };
    println!("seed {}", options.seed);
    let report = chaos::run(&options);
    println!("{}", report.summary());
    if args.record {
        record(&report)?;
    }
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What rounds need: the base of the test hosts, and our packages, built unless somebody has.
pub(crate) fn make_ready() -> Result<()> {
    system_tests::base::deps()?;
    system_tests::sweep()?;
    if std::env::var_os("LINUX_PATCH_TEST_PACKAGES").is_none() {
        let packages = workspace::target()?.join("test-packages");
        dist::build(Profile::Dev, &packages.join("new"), Some(dist::TEST_VERSIONS.1))?;
        dist::build(Profile::Dev, &packages.join("old"), Some(dist::TEST_VERSIONS.0))?;
        system_tests::packages::Packages::use_those_in(&packages);
    }
    Ok(())
}

/// The bounded sample that every run of the tests has, from a seed of its own.
pub(crate) fn sample(packages: &Path) -> Result<()> {
    system_tests::packages::Packages::use_those_in(packages);
    let limit = Duration::from_secs(600);
    let options = Options { seed: new_seed()?, first: 0, rounds: 60, hosts: 6, limit };
    println!("   seed {}", options.seed);
    let report = chaos::run(&options);
    println!("{}", report.summary());
    ensure!(
        report.failures.is_empty(),
        "{} rounds failed; again: cargo xtask chaos --seed {} --first ROUND --rounds 1",
        report.failures.len(),
        report.seed
    );
    Ok(())
}

/// A seed that was hardly used before.
pub(crate) fn new_seed() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    // Short enough to be typed again.
    Ok(now.as_micros().try_into().unwrap_or(u64::MAX) % 1_000_000_000_000)
}

fn record(report: &Report) -> Result<()> {
    let path = workspace::root()?.join("docs/testing.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let row = vec![
        table::today(),
        report.seed.to_string(),
        report.rounds.to_string(),
        report.hosts.to_string(),
        report.failures.len().to_string(),
    ];
    let text = table::append(&text, TABLE, row)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
