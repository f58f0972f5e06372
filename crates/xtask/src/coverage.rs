//! `cargo xtask coverage`: how much of the crates that decide and read is run by their own tests.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{table, workspace};

/// Options of `coverage`.
#[derive(Debug, Args)]
pub(crate) struct Coverage {
    /// Say for each file which lines were not run.
    #[arg(long)]
    lines: bool,
    /// Replace the table in docs/testing.md.
    #[arg(long)]
    record: bool,
}

/// What is promised to be covered, in percent of the lines, and the parts of the source that it is about.
const PROMISED: f64 = 95.0;
const PARTS: &[(&str, &str)] = &[
    ("types", "crates/patch-types/src"),
    ("back ends: parsers, classification, versions", "crates/patch-backends/src"),
    ("back ends: command lines", "crates/patch-apply/src/apt/argv.rs"),
    ("audit trail", "crates/patch-audit/src"),
];
const PACKAGES: &[&str] = &["patch-types", "patch-backends", "patch-apply", "patch-audit"];

/// The head of the table.
const TABLE: &str = "| part | lines | covered | date |";

/// How often each line with code was run, by file.
type Lines = BTreeMap<PathBuf, BTreeMap<u64, u64>>;

/// Runs the subcommand.
pub(crate) fn run(args: &Coverage) -> Result<ExitCode> {
    let root = workspace::root()?;
    let lines = measure(&root)?;
    let mut rows = Vec::new();
    let mut ok = true;
    for (part, below) in PARTS {
        let (mut covered, mut all) = (0_u32, 0_u32);
        for (path, lines) in &lines {
            let Ok(path) = path.strip_prefix(&root) else { continue };
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            if !path.starts_with(below) || name.ends_with("tests") || name == "testing" {
                continue;
            }
            let text = fs::read_to_string(root.join(path))
                .with_context(|| format!("cannot read {}", path.display()))?;
            let product = before_tests(&text);
            let missed: Vec<u64> =
                lines.range(..product).filter(|(_, n)| **n == 0).map(|(l, _)| *l).collect();
            let here = u32::try_from(lines.range(..product).count())?;
            all += here;
            covered += here - u32::try_from(missed.len())?;
            if args.lines && !missed.is_empty() {
                println!("{} {}", path.display(), ranges(&missed));
            }
        }
        ensure!(all > 0, "nothing was measured below {below}");
        let percent = 100.0 * f64::from(covered) / f64::from(all);
        ok &= percent >= PROMISED;
        println!("{part}: {covered} of {all} lines, {percent:.1} %");
        rows.push(vec![(*part).to_owned(), all.to_string(), format!("{percent:.1} %"), table::today()]);
    }
    if args.record {
        let path = root.join("docs/testing.md");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(&path, table::with_rows(&text, TABLE, rows)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !ok {
        println!("Promised are {PROMISED} % of each; --lines says what is missing.");
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The line at which the tests begin that stand at the end of a file; beyond the last if there are none.
fn before_tests(text: &str) -> u64 {
    let lines: Vec<&str> = text.lines().collect();
    let is_tests = |pair: &&[&str]| matches!(pair, ["#[cfg(test)]", next] if next.starts_with("mod "));
    let found = lines.windows(2).position(|pair| is_tests(&pair));
    found.map_or(u64::MAX, |index| u64::try_from(index).unwrap_or(u64::MAX).saturating_add(1))
}

/// Neighbouring lines as ranges.
fn ranges(lines: &[u64]) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for line in lines {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *line => *last = *line,
            _ => ranges.push((*line, *line)),
        }
    }
    let shown = |(first, last): &(u64, u64)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(shown).collect::<Vec<_>>().join(", ")
}

/// Runs the tests with the compiler's own instrumentation.
fn measure(root: &Path) -> Result<Lines> {
    let llvm = llvm()?;
    let out = workspace::target()?.join("coverage");
    let raw = out.join("raw");
    let _ = fs::remove_dir_all(&raw);
    fs::create_dir_all(&raw)?;
    // All at once, so that each crate is built in one way only.
    let cargo = |extra: &[&str]| {
        let mut command = Command::new(workspace::cargo());
        command.current_dir(root).args(["test", "--locked", "--lib", "--tests"]).args(extra);
        for package in PACKAGES {
            command.args(["-p", package]);
        }
        command.arg("--target-dir").arg(out.join("build"));
        command
            .env("RUSTFLAGS", "-C instrument-coverage")
            .env("LLVM_PROFILE_FILE", raw.join("%p-%m.profraw"))
            .env("CARGO_INCREMENTAL", "0")
            .stderr(Stdio::inherit());
        command
    };
    let built = cargo(&["--no-run", "--message-format", "json"]).output().context("cannot start cargo")?;
    ensure!(built.status.success(), "the tests cannot be built");
    let messages = String::from_utf8_lossy(&built.stdout).into_owned();
    let objects: Vec<String> = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(ToOwned::to_owned))
        .collect();
    let run = cargo(&["--quiet", "--no-fail-fast"]).output().context("cannot start cargo")?;
    ensure!(run.status.success(), "tests fail\n{}", String::from_utf8_lossy(&run.stdout));

    let merged = out.join("merged.profdata");
    let status = Command::new(format!("llvm-profdata-{llvm}"))
        .args(["merge", "--sparse", "--failure-mode=all", "-o"])
        .args([&merged, &raw])
        .status()
        .context("cannot start llvm-profdata")?;
    ensure!(status.success(), "llvm-profdata ended with {status}");
    let mut export = Command::new(format!("llvm-cov-{llvm}"));
    export.args(["export", "--format=lcov", "--instr-profile"]).arg(&merged);
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            export.arg("--object");
        }
        export.arg(object);
    }
    let exported = export.stderr(Stdio::inherit()).output().context("cannot start llvm-cov")?;
    ensure!(exported.status.success(), "llvm-cov ended with {}", exported.status);
    parse(&String::from_utf8_lossy(&exported.stdout))
}

/// LLVM's tools of the compiler's version, from Debian's packages.
fn llvm() -> Result<String> {
    let said = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major =
        version.and_then(|v| v.split('.').next()).context("rustc does not tell its LLVM's version")?;
    let tool = format!("llvm-cov-{major}");
    let is_there = Command::new(&tool).arg("--version").stdout(Stdio::null()).status();
    if !is_there.is_ok_and(|status| status.success()) {
        let package = format!("llvm-{major}");
        println!("Installing {package} with apt-get");
        let status = Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-qq", "-y", "--no-install-recommends", "install", &package])
            .status()
            .context("cannot start apt-get")?;
        ensure!(status.success(), "apt-get install {package} ended with {status}");
    }
    Ok(major.to_owned())
}

/// The lines of lcov's format: `SF:FILE`, then `DA:LINE,COUNT`. A file of several objects comes several times.
fn parse(lcov: &str) -> Result<Lines> {
    let mut lines = Lines::new();
    let mut file = PathBuf::new();
    for line in lcov.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            file = PathBuf::from(path);
        } else if let Some((number, count)) = line.strip_prefix("DA:").and_then(|rest| rest.split_once(',')) {
            let count: u64 = count.parse().with_context(|| format!("llvm-cov said {line:?}"))?;
            let number = number.parse().with_context(|| format!("llvm-cov said {line:?}"))?;
            let known = lines.entry(file.clone()).or_default().entry(number).or_default();
            *known = count.max(*known);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_up_to_the_tests_and_named_as_ranges() {
        let lines =
            parse("SF:/x/a.rs\nDA:3,0\nDA:4,0\nDA:5,2\nend_of_record\nSF:/x/a.rs\nDA:4,1\nDA:9,0\n").unwrap();
        let counts: Vec<(u64, u64)> = lines[Path::new("/x/a.rs")].iter().map(|(l, n)| (*l, *n)).collect();
        assert_eq!(counts, [(3, 0), (4, 1), (5, 2), (9, 0)]);
        assert_eq!(ranges(&[3, 4, 5, 9]), "3-5, 9");
        assert_eq!(before_tests("a\n#[cfg(test)]\nmod tests {"), 2);
        assert_eq!(before_tests("#[cfg(test)]\nuse a;\nb"), u64::MAX);
        assert!(parse("DA:x,1").is_err());
    }
}
