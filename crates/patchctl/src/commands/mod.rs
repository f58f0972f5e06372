//! From a parsed command line to an exit code, one file a group of commands.

mod change;
mod host;
mod jobs;
mod packages;
mod patches;
mod shell;

use patch_client::Client;
use patch_types::api::{InstallOptions, InstallRequest, RemoveRequest, UpdateRequest};

use crate::{
    args::{Cli, Command, CrlCommand},
    connection,
    exit::Exit,
    output::Output,
};
use change::Change;

/// What every command has.
struct Context {
    client: Client,
    out: Output,
}

/// Does what the command line asks for.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<Exit> {
    let out = Output::new(&cli.display);
    match &cli.command {
        Command::Completions { shell } => return shell::completions(&out, *shell),
        Command::Man { command, directory } => {
            return shell::man(&out, command.as_deref(), directory.as_deref());
        }
        _ => {}
    }
    let context = Context { client: connection::client(cli.connection)?, out };
    dispatch(&context, cli.command).await
}

async fn dispatch(context: &Context, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Packages(args) => packages::list(context, args).await,
        Command::Package { name } => packages::one(context, &name).await,
        Command::Patches(args) => patches::list(context, &args).await,
        Command::WhyNot { name } => patches::why_not(context, &name).await,
        Command::Install(args) => {
            let options = InstallOptions {
                no_recommends: args.no_recommends,
                allow_downgrade: args.allow_downgrade,
                reinstall: args.reinstall,
                on_failure: args.back.on_failure.map(Into::into),
                confirm_within: args.back.confirm_within,
                rehearse: args.back.first.rehearse,
                unrehearsed: args.back.first.unrehearsed.map(Into::into),
                dry_run: args.change.dry_run,
                ..Default::default()
            };
            let request = InstallRequest { packages: args.packages, options };
            change::run(context, Change::Install(request), args.change).await
        }
        Command::Update { package, change, back } => {
            let request = UpdateRequest {
                version: package.version,
                on_failure: back.on_failure.map(Into::into),
                confirm_within: back.confirm_within,
                rehearse: back.first.rehearse,
                unrehearsed: back.first.unrehearsed.map(Into::into),
                dry_run: change.dry_run,
                ..Default::default()
            };
            change::run(context, Change::Update(package.name, request), change).await
        }
        Command::Hold { name, change } => hold(context, name, true, change).await,
        Command::Unhold { name, change } => hold(context, name, false, change).await,
        Command::Remove(args) => {
            let request = RemoveRequest {
                purge: args.purge,
                autoremove: args.autoremove,
                on_failure: args.back.on_failure.map(Into::into),
                confirm_within: args.back.confirm_within,
                rehearse: args.back.first.rehearse,
                unrehearsed: args.back.first.unrehearsed.map(Into::into),
                dry_run: args.change.dry_run,
                ..Default::default()
            };
            change::run(context, Change::Remove(args.name, request), args.change).await
        }
        Command::Refresh { detach } => change::refresh(context, detach).await,
        Command::Apply(args) => change::apply(context, args).await,
        Command::Jobs(args) => jobs::list(context, args).await,
        Command::Job { id } => jobs::one(context, id).await,
        Command::Watch { id } => crate::follow::only(&context.client, &context.out, id).await,
        Command::Rollback(args) => change::rollback(context, args).await,
        Command::Confirm { id } => jobs::confirm(context, id).await,
        Command::Cancel { id } => jobs::cancel(context, id).await,
        Command::Reboot(args) => change::reboot(context, args).await,
        Command::Info => host::info(context).await,
        Command::Compliance => host::compliance(context).await,
        Command::Services { name } => host::services(context, name.as_deref()).await,
        Command::Health => host::health(context).await,
        Command::Crl(CrlCommand::Put { file }) => host::put_crl(context, &file).await,
        Command::Metrics => host::metrics(context).await,
        Command::Openapi => host::openapi(context).await,
        // Answered before there was a client.
        Command::Completions { .. } | Command::Man { .. } => Ok(Exit::Done),
    }
}

async fn hold(
    context: &Context,
    name: patch_types::PackageName,
    on: bool,
    args: crate::args::ChangeArgs,
) -> anyhow::Result<Exit> {
    let request = UpdateRequest { hold: Some(on), ..Default::default() };
    change::run(context, Change::Update(name, request), args).await
}
