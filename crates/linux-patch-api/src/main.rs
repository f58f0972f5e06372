//! The agent's network side: mTLS REST API, jobs, inventory. Unprivileged, starts no process.

use std::process::ExitCode;

use clap::Parser as _;
use linux_patch_api::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("linux-patch-api: {error:#}");
            linux_patch_api::cli::exit::FAILURE.into()
        }
    }
}
