//! The agent's network side: mTLS REST API, jobs, inventory. Unprivileged, starts no process.

use std::process::ExitCode;

use clap::Parser as _;
use linux_patch_api::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(code) => code,
        Err(error) => {
            // It may hold names and texts of others.
            eprintln!("linux-patch-api: {}", patch_types::terminal::text(&format!("{error:#}")));
            linux_patch_api::cli::exit::FAILURE.into()
        }
    }
}
