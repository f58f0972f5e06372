//! `linux-patch-host`: root's own tool on a managed host.
//!
//! It speaks to the root side by the same socket and protocol as the network side does, and follows the same event
//! files, so that going back needs neither the network nor the daemon. Packages it changes by the root side alone; what it
//! changes itself is how this host is set up (`provision`, `doctor --fix`).

mod apt_conf;
mod args;
mod ask;
mod below;
mod cloud_init;
mod doctor;
mod exit;
mod follow;
mod journals;
mod log;
mod notify;
mod operation;
mod place;
mod policy;
mod provision;
mod record;
mod report;
mod screen;
mod shell;
mod stale;
mod taken_back;
mod timer;
mod tools;
mod window;

use std::process::ExitCode;

use clap::Parser;
use patch_types::{RollbackMode, operation::Rollback};

use crate::{
    args::{Cli, Command, NotifyAction, PolicyAction, Provision, RecordAction, WindowAction},
    ask::Root,
    exit::Exit,
    screen::Screen,
    tools::Tools,
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
    let tools = Tools::of(&cli.root);
    let root = Root::new(cli.root, cli.direct);
    match cli.command {
        Command::Rollback { job, force, snapshot, if_plan } => {
            let mode = if snapshot { RollbackMode::Snapshot } else { RollbackMode::Packages };
            operation::roll_back(&root, screen, Rollback { job, force, mode }, if_plan)
        }
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
        Command::RebootWindow { action: WindowAction::Tick { force: _, reason } } => {
            window::tick(&root, screen, reason)
        }
        Command::RebootWindow { action: WindowAction::Status } => window::status(&root, screen),
        Command::RebootWindow { action: WindowAction::Next { count } } => window::next(&root, screen, count),
        Command::Policy { action: PolicyAction::Tick } => policy::tick(root.files(), &tools, screen),
        Command::Policy { action: PolicyAction::Status } => policy::status(root.files(), &tools, screen),
        Command::Policy { action: PolicyAction::Release } => policy::release(root.files(), screen),
        Command::Notify { action: NotifyAction::Test } => notify::test(&root, screen),
        Command::Notify { action: NotifyAction::Deliver } => notify::deliver(&root, screen),
        Command::Report => report::show(&root, screen),
        Command::Stale => stale::show(&root, screen),
        Command::Provision { what: Provision::Unattended(options) } => {
            provision::unattended(root.files(), &tools, screen, &options)
        }
        Command::Doctor { fix } => doctor::doctor(root.files(), &tools, screen, fix),
        Command::CloudInit(options) => cloud_init::cloud_init(screen, &options),
        Command::Completions { shell } => shell::completions(screen, shell),
        Command::Man { command, directory } => shell::man(screen, command.as_deref(), directory.as_deref()),
    }
}
