//! The project's own commands: `cargo xtask help` lists them. One module a command.
#![expect(clippy::disallowed_methods, reason = "the project's commands are made of other programs")]

mod check_deps;
mod host;

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
        Command::CheckDeps => check_deps::run(),
        Command::Host(command) => host::run(command),
    }
}
