//! `cargo xtask test`: everything that must hold, in one command.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    chaos, check_deps,
    dist::{self, Profile},
    failures::Failures,
    rehearsals, week, workspace,
};

/// Options of `test`.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Only the tests whose name contains this; without formatting, lints, licences and dependencies.
    filter: Option<String>,
}

/// Debian packages that the tests call beyond what the test hosts need.
const TOOLS: &[(&str, &str)] = &[
    ("openssl", "openssl"),
    ("curl", "curl"),
    ("python3", "python3"),
    ("strace", "strace"),
    ("apparmor_parser", "apparmor"),
    ("shellcheck", "shellcheck"),
    ("lintian", "lintian"),
    ("promtool", "prometheus"),
    ("cloud-init", "cloud-init"),
];

/// What keeps cloud-init from running on a machine. Only its checker is wanted.
const CLOUD_INIT_DISABLED: &str = "/etc/cloud/cloud-init.disabled";

/// What the runner counted.
#[derive(Debug, Default)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// What took how long, for the summary.
#[derive(Debug, Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    /// Does it, and says so.
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("── {name}");
        let begun = Instant::now();
        let result = work().with_context(|| format!("{name}: failed"));
        self.0.push((name, begun.elapsed()));
        result
    }

    /// One line a step that took a while.
    fn summary(&self) -> String {
        let long = self.0.iter().filter(|(_, took)| *took > Duration::from_secs(2));
        long.map(|(name, took)| format!("{:>6.0} s  {name}\n", took.as_secs_f64())).collect()
    }
}

/// Runs the subcommand.
pub(crate) fn run(args: &Test) -> Result<ExitCode> {
    let begun = Instant::now();
    let mut steps = Steps::default();
    let root = rustix::process::geteuid().is_root();
    if root {
        install_tools()?;
        system_tests::base::deps()?;
        system_tests::sweep()?;
        steps.step("the test hosts' base system", || system_tests::base::root().map(drop))?;
        steps.step("schemathesis and sslyze", || system_tests::hostile::tools::environment().map(drop))?;
    } else {
        println!("Not root: what boots hosts or changes packages is skipped, by name, below.");
    }
    let packages = workspace::target()?.join("test-packages");
    steps.step("build everything, and pack the programs", || {
        dist::build(Profile::Test, &packages.join("new"), Some(dist::TEST_VERSIONS.1))?;
        dist::build(Profile::Test, &packages.join("old"), Some(dist::TEST_VERSIONS.0)).map(drop)
    })?;
    if args.filter.is_none() {
        steps.step("formatting", || cargo(&["fmt", "--all", "--check"]))?;
        steps.step("lints", || {
            cargo(&["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"])
        })?;
        steps.step("walls between crates", || {
            ensure!(
                check_deps::run()? == ExitCode::SUCCESS,
                "the crates do not depend on each other as they should"
            );
            Ok(())
        })?;
        steps.step("licences, bans and sources", deny)?;
    }
    let mut count = Count::default();
    let mut ok = true;
    let mut failures = Failures::default();
    steps.step("tests", || {
        (count, ok) = tests(args, &packages, &mut failures)?;
        Ok(())
    })?;
    let (mut chaos, mut rehearsed, mut week) = ("", "", "");
    if root && args.filter.is_none() {
        // Told at the end with all else: one failure does not hide another.
        if let Err(error) = steps.step("chaos", || chaos::sample(&packages)) {
            println!("{error:#}");
            failures.add("chaos", &error);
            chaos = ", and chaos failed";
            ok = false;
        }
        if let Err(error) = steps.step("rehearsals of random plans", || rehearsals::sample(&packages)) {
            println!("{error:#}");
            rehearsed = ", and rehearsals failed";
            ok = false;
        }
        if let Err(error) = steps.step("a week in two days", || week::sample(&packages)) {
            println!("{error:#}");
            failures.add("the week", &error);
            week = ", and the week failed";
            ok = false;
        }
    }
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    println!("\n{}", steps.summary());
    print!("{}", failures.summary());
    println!("The whole run took {minutes:.1} minutes.");
    println!(
        "{} passed, {} failed, {} skipped{chaos}{rehearsed}{week}",
        count.passed, count.failed, count.skipped
    );
    if root && count.skipped > 0 && args.filter.is_none() {
        println!("As root nothing may be skipped.");
        return Ok(ExitCode::FAILURE);
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cargo(args: &[&str]) -> Result<()> {
    let status = Command::new(workspace::cargo())
        .current_dir(workspace::root()?)
        .args(args)
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "cargo {} ended with {status}", args.join(" "));
    Ok(())
}

fn install_tools() -> Result<()> {
    let is_absent = |script: &str, program: &str| {
        let found = Command::new("sh").args(["-c", script, program]).stderr(Stdio::null()).status();
        !found.is_ok_and(|status| status.success())
    };
    let mut missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, _)| is_absent("command -v \"$0\" >/dev/null", program))
        .map(|(_, package)| *package)
        .collect();
    // Not a program: what `python3 -m venv` needs.
    if is_absent("python3 -c 'import ensurepip'", "python3") {
        missing.push("python3-venv");
    }
    if missing.is_empty() {
        return Ok(());
    }
    println!("Installing {} with apt-get", missing.join(", "));
    if missing.contains(&"cloud-init") {
        // Before it is there: it would take the machine for a new one at its next boot.
        fs::create_dir_all("/etc/cloud").context("cannot make /etc/cloud")?;
        fs::write(CLOUD_INIT_DISABLED, "").with_context(|| format!("cannot make {CLOUD_INIT_DISABLED}"))?;
    }
    let apt = |args: &[&str]| -> Result<()> {
        let status = Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-qq", "-y", "-o", "DPkg::Lock::Timeout=300"])
            .args(args)
            .status()
            .context("cannot start apt-get")?;
        ensure!(status.success(), "apt-get {} ended with {status}", args.join(" "));
        Ok(())
    };
    apt(&["update"])?;
    apt(&[&["install", "--no-install-recommends"], missing.as_slice()].concat())
}

/// The advisory database cannot be had everywhere; licences, bans and sources can always be checked.
fn deny() -> Result<()> {
    let installed = Command::new(workspace::cargo())
        .args(["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !installed {
        println!("Installing cargo-deny with cargo install (once)");
        // Without optimisation: it runs for seconds, and is built in a third of the time.
        cargo(&["install", "--quiet", "--locked", "--debug", "cargo-deny"])?;
    }
    cargo(&["deny", "--workspace", "check", "licenses", "bans", "sources"])
}

/// What binaries without tests print.
fn says_nothing(line: &str) -> bool {
    line.is_empty()
        || line == "running 0 tests"
        || line.starts_with("test result: ok. 0 passed; 0 failed; 0 ignored")
}

fn tests(args: &Test, packages: &std::path::Path, failures: &mut Failures) -> Result<(Count, bool)> {
    let mut command = Command::new(workspace::cargo());
    command
        .current_dir(workspace::root()?)
        .args(["test", "--quiet", "--locked", "--workspace", "--no-fail-fast"])
        .env("LINUX_PATCH_TEST_PACKAGES", packages)
        .stdout(Stdio::piped());
    if let Some(filter) = &args.filter {
        command.args(["--", filter]);
    }
    let mut child = command.spawn().context("cannot start cargo")?;
    let mut count = Count::default();
    let Some(stdout) = child.stdout.take() else { bail!("the tests' output is not there") };
    for line in BufReader::new(stdout).lines() {
        let line = line.context("the tests' output cannot be read")?;
        if !says_nothing(&line) {
            println!("{line}");
        }
        failures.hear(&line);
        if let Some(result) = line.strip_prefix("test result: ") {
            for part in result.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(number), Some(what)) =
                    (words.next().and_then(|n| n.parse::<u64>().ok()), words.next())
                else {
                    continue;
                };
                match what {
                    "passed" => count.passed += number,
                    "failed" => count.failed += number,
                    "ignored" => count.skipped += number,
                    _ => {}
                }
            }
        }
    }
    let status = child.wait().context("cannot wait for the tests")?;
    Ok((count, status.success()))
}
