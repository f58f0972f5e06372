//! `linux-patch-host`: root's own tool on a managed host.
//!
//! It speaks to the root side by the same socket and protocol as the network side does, and follows the same event
//! files, so that going back needs neither the network nor the daemon. It changes nothing itself.

mod args;
mod ask;
mod below;
mod exit;
mod follow;
mod journals;
mod operation;
mod record;
mod screen;
mod shell;
mod taken_back;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    args::{Cli, Command, RecordAction},
    ask::Root,
    exit::Exit,
    screen::Screen,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut screen = Screen::new(cli.json);
    let exit = run(cli, &mut screen).unwrap_or_else(|error| {
        screen.error(&error);
        Exit::of_error(&error)
    });
    match screen.close() {
        Ok(()) => exit,
        Err(error) => {
            screen.error(&anyhow::Error::new(error).context("not all could be printed"));
            if exit == Exit::Done { Exit::Failed } else { exit }
        }
    }
    .into()
}

fn run(cli: Cli, screen: &mut Screen) -> anyhow::Result<Exit> {
    let root = Root::new(cli.root, cli.direct);
    match cli.command {
        Command::Rollback { job, force } => operation::roll_back(&root, screen, job, force),
        Command::Watch { job } => operation::watch(&root, screen, job),
        Command::Confirm { job } => operation::confirm(&root, screen, job),
        Command::Jobs => journals::list(&root, screen),
        Command::TakenBack => taken_back::list(&root, screen),
        Command::Clear { version: Some(version), all: false } => {
            taken_back::clear(&root, screen, version.into())
        }
        Command::Clear { .. } => taken_back::clear(&root, screen, patch_types::executor::TakenBack::All),
        Command::Repaired { job } => taken_back::repaired(&root, screen, job),
        Command::Record { action: Some(RecordAction::Verify), .. } => record::verify(&root, screen),
        Command::Record { action: None, last, job } => record::show(&root, screen, last, job),
        Command::Completions { shell } => shell::completions(screen, shell),
        Command::Man { command, directory } => shell::man(screen, command.as_deref(), directory.as_deref()),
    }
}
