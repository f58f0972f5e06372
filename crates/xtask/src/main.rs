//! The project's own commands: `cargo xtask help` lists them. One module a command.
#![expect(clippy::disallowed_methods, reason = "the project's commands are made of other programs")]

mod bench;
mod chaos;
mod check_deps;
mod coverage;
mod demo;
mod dist;
mod failures;
mod fuzz;
mod host;
mod hostile;
mod openapi;
mod rehearsals;
mod sbom;
mod table;
mod test;
mod week;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the agent's main job, live, on a real throw-away host.
    Demo(demo::Demo),
    /// Run all tests, lints and checks.
    Test(test::Test),
    /// Interrupt random changes in random ways, in roots and on a host, and check how each one ends.
    Chaos(chaos::Chaos),
    /// Rehearse random plans and then carry them out, and compare what both say.
    Rehearsals(rehearsals::Rehearsals),
    /// Live through a week of unattended patching on a host whose clock is moved on.
    Week(week::Week),
    /// Feed every parser of foreign bytes what a fuzzer makes up, and add the figures up.
    Fuzz(fuzz::Fuzz),
    /// Scans, slow clients, schemathesis, sslyze, the order of versions: the full figures.
    Hostile(hostile::Hostile),
    /// How much of the crates that decide and read is run by their own tests.
    Coverage(coverage::Coverage),
    /// Measure the agent against its peers and write docs/benchmarks.md.
    Bench(bench::BenchArgs),
    /// Build what is shipped: Debian packages, tarball, bill of materials, sums.
    Dist(dist::Dist),
    /// Write the OpenAPI document anew from the code.
    Openapi,
    /// Check that the crates depend on each other, and on others, as ARCHITECTURE.md says.
    CheckDeps,
    /// Throw-away Debian hosts with systemd, to try things on.
    #[command(subcommand)]
    Host(host::Command),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(args) => demo::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Test(args) => test::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        Command::Rehearsals(args) => rehearsals::run(&args),
        Command::Week(args) => week::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Hostile(args) => hostile::run(&args),
        Command::Coverage(args) => coverage::run(&args),
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Dist(args) => dist::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Openapi => openapi::run().map(|()| ExitCode::SUCCESS),
        Command::CheckDeps => check_deps::run(),
        Command::Host(command) => host::run(command),
    }
}
