//! The operator's command line for the agents: asks one agent, or has it change something and watches.

mod args;
mod commands;
mod connection;
mod exit;
mod follow;
mod output;
mod render;

use std::process::ExitCode;

use clap::Parser;

use crate::{args::Cli, exit::Exit};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.display.json;
    let exit = match commands::run(cli).await {
        Ok(exit) => exit,
        Err(error) => {
            exit::report(&error, json);
            Exit::of_error(&error)
        }
    };
    exit.into()
}
