//! `cargo xtask hostile`: the full figures of what a hostile reviewer tries, added up in docs/testing.md.

mod versions;

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use system_tests::hostile::{
    Stage,
    flood::{self, Layer, Slow},
    tools,
};

use crate::{
    dist::{self, Profile},
    table, workspace,
};

/// Options of `hostile`.
#[derive(Debug, Args)]
pub(crate) struct Hostile {
    /// Only these; all if none is named.
    trials: Vec<Trial>,
    /// What random choices come from; another one each time if absent. It is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// How many pairs of versions are compared.
    #[arg(long, default_value_t = 1_000_000)]
    pairs: usize,
    /// How many connections a scan tries.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// How many sockets slow clients hold.
    #[arg(long, default_value_t = 1000)]
    sockets: usize,
    /// Measure the programs as they are shipped instead of a fast build of them.
    #[arg(long)]
    release: bool,
    /// Add the figures to the table in docs/testing.md.
    #[arg(long)]
    record: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Trial {
    /// A scan from an address that is not on the list.
    Scan,
    /// Slow clients at four layers.
    Slow,
    /// All checks of schemathesis on all operations.
    Schemathesis,
    /// sslyze.
    Sslyze,
    /// The order of versions against dpkg's own library.
    Versions,
    /// 100,000 ways to falsify an audit trail.
    Trail,
    /// 10,000 reloads of the allow list under load.
    Reloads,
}

impl Trial {
    /// Whether it asks an agent that runs.
    fn needs_agent(self) -> bool {
        !matches!(self, Self::Versions | Self::Trail | Self::Reloads)
    }
}

/// The head of the table.
const TABLE: &str = "| date | promise | trial | figures | seed | build |";

/// Runs the subcommand.
pub(crate) fn run(args: &Hostile) -> Result<ExitCode> {
    let trials = if args.trials.is_empty() { Trial::value_variants() } else { &args.trials };
    let seed = match args.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    println!("seed {seed}");
    if trials.iter().any(|trial| trial.needs_agent()) {
        system_tests::base::deps()?;
        system_tests::sweep()?;
        build(args.release)?;
    }
    let mut ok = true;
    for trial in trials {
        let begun = Instant::now();
        let (promise, name, result) = match trial {
            Trial::Scan => ("S3", "scan off the list", scan(args.connections)),
            Trial::Slow => ("S7", "slow clients", slow(args.sockets)),
            Trial::Schemathesis => ("S12", "schemathesis", schemathesis(seed)),
            Trial::Sslyze => ("S3", "sslyze", tools::sslyze(&Stage::new(&[])?)),
            Trial::Versions => ("S11", "order of versions", versions::compare(seed, args.pairs)),
            Trial::Trail => {
                let test = "mutations::every_mutation_of_a_signed_trail_shows";
                (
                    "S2",
                    "falsified trails",
                    exhaustive(&["-p", "patch-audit", "--test", "trail"], test, "mutations"),
                )
            }
            Trial::Reloads => {
                let test = "listener::tests::no_reload_of_the_list_lets_anybody_slip_in_or_out";
                ("S5", "reloads under load", exhaustive(&["-p", "patch-service", "--lib"], test, "reloads"))
            }
        };
        println!("── {name}, {:.0} s", begun.elapsed().as_secs_f64());
        match result {
            Ok(figures) => {
                println!("{figures}");
                if args.record {
                    let build = if args.release && trial.needs_agent() { "release" } else { "development" };
                    let cells = [&table::today(), promise, name, &figures, &seed.to_string(), build];
                    record(cells.map(ToOwned::to_owned).to_vec())?;
                }
            }
            Err(error) => {
                println!("{error:?}");
                ok = false;
            }
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the two programs, unless the environment names them.
fn build(release: bool) -> Result<()> {
    let profile = if release { Profile::Release } else { Profile::Dev };
    dist::programs(profile)?;
    let built = workspace::target()?.join(if release { "release" } else { "debug" });
    system_tests::packages::Packages::use_these_programs(
        &built.join("linux-patch-api"),
        &built.join("patch-executor"),
    );
    Ok(())
}

fn scan(connections: usize) -> Result<String> {
    let scan = flood::scan(Stage::new(&[])?, connections)?;
    let figures = format!(
        "{} connections: {} KiB of growth, {} lines of log, {:.1} s",
        scan.connections,
        scan.growth_kib,
        scan.lines,
        scan.took.as_secs_f64()
    );
    ensure!(scan.growth_kib <= 4 * 1024 && scan.lines <= 5, "{figures}");
    Ok(figures)
}

/// What a thousand slow connections may cost in memory.
const GROWTH_KIB: u64 = 16 << 10;

/// The median of three runs of each layer.
fn slow(sockets: usize) -> Result<String> {
    let stage = Stage::new(&[])?;
    let mut figures = Vec::new();
    let mut missed = false;
    for layer in Layer::ALL {
        let mut runs = Vec::new();
        for _ in 0..3 {
            let run = flood::slow(&stage, layer, sockets, 400)?;
            println!("   {run:?}");
            runs.push(run);
        }
        let median = |of: fn(&Slow) -> f64| {
            let mut all: Vec<f64> = runs.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all.get(1).copied().unwrap_or_default()
        };
        let (idle_fresh, fresh) = (median(|r| r.idle.fresh), median(|r| r.under.fresh));
        let (idle_kept, kept) = (median(|r| r.idle.kept), median(|r| r.under.kept));
        let growth = runs.iter().map(|run| run.growth_kib).max().unwrap_or_default();
        let held = runs.iter().map(|run| run.held).min().unwrap_or_default();
        missed |= fresh > (2.0 * idle_fresh).max(10.0) || kept > (2.0 * idle_kept).max(10.0);
        missed |= growth > GROWTH_KIB;
        figures.push(format!(
            "{layer:?} ({held} held): p99 open connection {kept:.1} ms (idle {idle_kept:.1}), with handshake \
             {fresh:.1} ms (idle {idle_fresh:.1}), {growth} KiB"
        ));
    }
    let figures = figures.join("; ");
    ensure!(!missed, "more than twice the idle time, or too much memory: {figures}");
    Ok(figures)
}

fn schemathesis(seed: u64) -> Result<String> {
    let stage = Stage::new(&["lp-plain=1.0-1", "lp-conf"])?;
    let summary = tools::schemathesis(&stage, 60, seed, "examples,coverage,fuzzing,stateful")?;
    stage.assert_alive()?;
    let cases = summary.lines().find(|line| line.contains("generated")).unwrap_or_default();
    Ok(format!("all checks, all operations: {}", cases.trim()))
}

/// Runs a test of a crate with its full count; gives the line in which it says what it did.
fn exhaustive(of: &[&str], test: &str, what: &str) -> Result<String> {
    let mut command = Command::new(workspace::cargo());
    command.current_dir(workspace::root()?).args(["test", "--quiet", "--locked"]).args(of);
    command.args(["--", "--exact", "--nocapture", test]).env("LINUX_PATCH_EXHAUSTIVE", "1");
    if Path::new("/dev/shm").is_dir() {
        // Millions of small files, which nobody needs on a disk.
        command.env("TMPDIR", "/dev/shm");
    }
    let output = command.output().context("cannot start cargo")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(output.status.success(), "{test} failed\n{said}");
    let line =
        said.lines().find(|line| line.contains(what) && line.starts_with(|c: char| c.is_ascii_digit()));
    Ok(line.with_context(|| format!("{test} was not run\n{said}"))?.to_owned())
}

fn record(row: Vec<String>) -> Result<()> {
    let path = workspace::root()?.join("docs/testing.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    fs::write(&path, table::append(&text, TABLE, row)?)
        .with_context(|| format!("cannot write {}", path.display()))
}
