//! `cargo xtask fuzz`: every parser of foreign bytes under libFuzzer, with the figures added up in docs/testing.md.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{table, workspace};

/// Options of `fuzz`.
#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// Only these targets; all if none is named.
    targets: Vec<String>,
    /// How long each is run.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Add the figures to the table in docs/testing.md.
    #[arg(long)]
    record: bool,
    /// Reduce each corpus to what covers as much, small inputs first.
    #[arg(long)]
    minimise: bool,
}

/// The head of the table.
const TABLE: &str = "| target | last run | runs | seconds in all | executions in all | findings in all |";

/// The largest file of a corpus that is kept, in bytes. Longer ones cover what shorter ones do, and cost more.
const LARGEST: u64 = 8 * 1024;

/// What a run did.
#[derive(Debug, Default)]
struct Run {
    seconds: u64,
    executions: u64,
    findings: u64,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Fuzz) -> Result<ExitCode> {
    let root = workspace::root()?;
    let all = targets(&root)?;
    for name in &args.targets {
        ensure!(all.contains(name), "there is no target {name}; there are {}", all.join(", "));
    }
    let chosen = if args.targets.is_empty() { &all } else { &args.targets };
    ensure_installed()?;
    cargo_fuzz(&root, &["build"], &[])?;
    let mut runs = BTreeMap::new();
    for name in chosen {
        println!("── {name}");
        if args.minimise {
            minimise(&root, name)?;
        } else {
            runs.insert(name.clone(), fuzz(&root, name, args.seconds)?);
        }
    }
    let findings: u64 = runs.values().map(|run| run.findings).sum();
    let executions: u64 = runs.values().map(|run| run.executions).sum();
    println!("{} targets, {executions} executions, {findings} findings", runs.len());
    if args.record {
        record(&root, &runs)?;
    }
    Ok(if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The names of the targets, as the manifest has them.
fn targets(root: &Path) -> Result<Vec<String>> {
    let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).context("no fuzz/Cargo.toml")?;
    let bins = manifest.split("[[bin]]").skip(1);
    let name = |bin: &str| {
        Some(bin.lines().find_map(|line| line.strip_prefix("name = \""))?.split('"').next()?.to_owned())
    };
    Ok(bins.filter_map(name).collect())
}

fn ensure_installed() -> Result<()> {
    let version = |args: &[&str]| {
        let mut command = Command::new("cargo");
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    ensure!(
        version(&["+nightly", "--version"]),
        "fuzzing needs a nightly compiler: rustup toolchain install nightly"
    );
    if !version(&["fuzz", "--version"]) {
        println!("Installing cargo-fuzz with cargo install (once)");
        let status = Command::new("cargo").args(["install", "--quiet", "--locked", "cargo-fuzz"]).status()?;
        ensure!(status.success(), "cargo-fuzz cannot be installed");
    }
    Ok(())
}

/// No sanitizer: there is no unsafe code of ours for one to look at, and without it there are more executions.
fn cargo_fuzz(root: &Path, args: &[&str], options: &[&str]) -> Result<()> {
    let target = workspace::target()?.join("fuzz");
    let (verb, rest) = args.split_first().context("no command")?;
    let mut command = Command::new("cargo");
    command.current_dir(root.join("fuzz")).args([
        "+nightly",
        "fuzz",
        verb,
        "--sanitizer",
        "none",
        "--target-dir",
    ]);
    command.arg(&target).args(rest);
    // Where everything else is built is not where this is.
    command.env_remove("CARGO_TARGET_DIR");
    if !options.is_empty() {
        command.arg("--").args(options);
    }
    let status = command.status().context("cannot start cargo fuzz")?;
    ensure!(status.success(), "cargo fuzz {} ended with {status}", args.join(" "));
    Ok(())
}

/// The built program of a target.
fn program(name: &str) -> Result<PathBuf> {
    let host = std::process::Command::new("rustc").args(["--print", "host-tuple"]).output()?;
    let host = String::from_utf8(host.stdout)?.trim().to_owned();
    Ok(workspace::target()?.join("fuzz").join(host).join("release").join(name))
}

fn fuzz(root: &Path, name: &str, seconds: u64) -> Result<Run> {
    let corpus = root.join("fuzz/corpus").join(name);
    let artifacts = root.join("fuzz/artifacts").join(name);
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    // What a run adds is put aside: only `--minimise` adds to what is kept.
    let found = workspace::target()?.join("fuzz-found").join(name);
    fs::create_dir_all(&found)?;
    let begun = Instant::now();
    let output = Command::new(program(name)?)
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={seconds}"))
        .args([
            "-workers=1",
            "-print_final_stats=1",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-max_len=8192",
            "-verbosity=0",
        ])
        .args([&found, &corpus])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .with_context(|| format!("cannot start the target {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let number = |key: &str| -> Option<u64> {
        said.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
    };
    let run = Run {
        // A finding ends it before its time.
        seconds: begun.elapsed().as_secs().min(seconds),
        executions: number("stat::number_of_executed_units:").unwrap_or_default(),
        findings: u64::from(!output.status.success()),
    };
    println!("   {} executions in {} s", run.executions, run.seconds);
    if run.findings > 0 {
        println!("{said}");
        println!("   a finding: the input is in {}", artifacts.display());
    }
    Ok(run)
}

/// Keeps of what is committed and what was found the least that covers as much.
fn minimise(root: &Path, name: &str) -> Result<()> {
    let corpus = root.join("fuzz/corpus").join(name);
    let found = workspace::target()?.join("fuzz-found").join(name);
    fs::create_dir_all(&found)?;
    let merged = workspace::target()?.join("fuzz-merged").join(name);
    let _ = fs::remove_dir_all(&merged);
    fs::create_dir_all(&merged)?;
    let status = Command::new(program(name)?)
        .args(["-merge=1", "-max_len=8192", "-verbosity=0"])
        .args([&merged, &corpus, &found])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "the corpus of {name} cannot be reduced: {status}");
    let mut kept: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(&merged)? {
        let path = entry?.path();
        kept.push((fs::metadata(&path)?.len(), path));
    }
    kept.sort();
    kept.retain(|(size, _)| *size <= LARGEST);
    // The smallest ones: a corpus is some kilobytes, for it is in everybody's checkout.
    let mut room = BUDGET;
    for (size, path) in kept {
        let Some(left) = room.checked_sub(size) else { break };
        room = left;
        let file = path.file_name().context("no name")?;
        fs::copy(&path, corpus.join(file))?;
    }
    Ok(())
}

/// How much of what was found is kept of each target, in bytes.
const BUDGET: u64 = 24 * 1024;

fn record(root: &Path, runs: &BTreeMap<String, Run>) -> Result<()> {
    let path = root.join("docs/testing.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut rows: BTreeMap<String, Vec<String>> = table::rows(&text, TABLE)
        .context("docs/testing.md has no table of fuzzing")?
        .into_iter()
        .map(|row| (row.first().cloned().unwrap_or_default(), row))
        .collect();
    for (name, run) in runs {
        let before = rows.get(name);
        let sum = |column: usize, more: u64| {
            let was = before.and_then(|row| row.get(column)?.parse::<u64>().ok()).unwrap_or_default();
            was.saturating_add(more).to_string()
        };
        let row = vec![
            name.clone(),
            table::today(),
            sum(2, 1),
            sum(3, run.seconds),
            sum(4, run.executions),
            sum(5, run.findings),
        ];
        rows.insert(name.clone(), row);
    }
    let text = table::with_rows(&text, TABLE, rows.into_values())?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
