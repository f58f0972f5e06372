//! The command line: parse, call, print, exit code.

mod audit;
mod check;
mod local;
mod manual;
mod reach;
mod reload;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use patch_types::terminal;

use crate::config;

/// The exit codes, as `--help` documents them.
pub mod exit {
    /// All is well.
    pub const OK: u8 = 0;
    /// It could not be done.
    pub const FAILURE: u8 = 1;
    /// The command line was not understood (clap's own code).
    pub const USAGE: u8 = 2;
    /// What was examined is not in order: an invalid configuration, a broken audit trail.
    pub const NOT_IN_ORDER: u8 = 3;
}

const EXIT_CODES: &str = "Exit codes:
  0  all is well
  1  it could not be done; the message says what, to what, and what to do
  2  the command line was not understood
  3  what was examined is not in order: a file is invalid, or the service cannot read it, or others may change it; the
     audit trail is broken; a reload was refused, or leaves nobody let in";

/// The patch agent of this host, and what root can ask about it. The service serves an HTTPS API with mutual TLS; it is
/// started with systemctl start linux-patch-api.
#[derive(Debug, Parser)]
#[command(name = "linux-patch-api", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Put this directory before all paths: for tests and images.
    #[arg(long, global = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API, as the service does (what happens without a command); not as root where systemd runs.
    Run,
    /// Say whether the configuration, the allow list, the certificates and the ceiling are acceptable.
    ///
    /// Called by root it reads as the service's user does, the server's key and ceiling.yaml apart, which are root's; and
    /// it says which of the files others than root may change. Each problem comes with what to do.
    CheckConfig {
        /// How to print.
        #[command(flatten)]
        json: Json,
        /// Only whether the service would take config.yaml: nothing else is looked at.
        #[arg(long)]
        configuration_only: bool,
    },
    /// Have the running service read its configuration, allow list and certificates again, and say what has changed since
    /// somebody asked last. Exit code 3 if something was refused, and what ran before goes on; or if nobody is let in, because
    /// there is no allow list.
    Reload(Json),
    /// Examine the audit trail.
    #[command(subcommand)]
    Audit(audit::Command),
    /// List the jobs that are kept on this host.
    Jobs {
        #[command(flatten)]
        json: Json,
        /// At most this many, newest first.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Say how this host is: packages, updates, reboot, jobs, audit trail.
    Status(Json),
    /// Make certificates for development and tests. For production use your own CA.
    #[command(subcommand)]
    Pki(local::PkiCommand),
    /// Print the OpenAPI document.
    Openapi,
    /// Print a completion script.
    Completions {
        /// For which shell.
        shell: patch_manual::Shell,
    },
    /// Print the manual page.
    Man {
        /// Of one command.
        command: Option<String>,
        /// Write all pages into this directory instead.
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        directory: Option<PathBuf>,
    },
}

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
struct Json {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// Does what the command line asks for.
    ///
    /// # Errors
    /// What could not be done, to what, and why.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let root = self.root.as_path();
        let code = match self.command.unwrap_or(Command::Run) {
            Command::Run => return run(root),
            Command::CheckConfig { json, configuration_only } => {
                check::execute(root, json.json, configuration_only)?
            }
            Command::Reload(Json { json }) => reload::execute(root, json)?,
            Command::Audit(command) => audit::execute(root, &command)?,
            Command::Jobs { json, limit } => local::jobs(root, limit, json.json)?,
            Command::Status(Json { json }) => local::status(root, json)?,
            Command::Pki(command) => local::pki(command)?,
            Command::Openapi => {
                print_as_is(crate::http::openapi::CHECKED_IN)?;
                exit::OK
            }
            Command::Completions { shell } => manual::completions(shell)?,
            Command::Man { command, directory } => manual::man(command.as_deref(), directory.as_deref())?,
        };
        Ok(code.into())
    }
}

/// Prints text for people. What stands in files, and their names, may be anybody's: a terminal obeys nothing of it. One line
/// made of several is for the caller to prevent.
fn print(text: &str) -> anyhow::Result<()> {
    print_as_is(&terminal::text(text))
}

/// Prints a value for programs, whole, with nothing in it that a terminal would obey.
fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    print_as_is(&terminal::json(&format!("{value:#}\n")))
}

/// Prints to standard output what is this program's own, or was made safe; a reader that has seen enough is no error.
fn print_as_is(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// How long what still runs at the end may take.
const LEFT_OVER: std::time::Duration = std::time::Duration::from_secs(1);

fn run(root: &Path) -> anyhow::Result<ExitCode> {
    // Where systemd runs there is a service that does it; a container may have nobody but root.
    let has_service = root == Path::new("/") && Path::new("/run/systemd/system").is_dir();
    if rustix::process::geteuid().is_root() && has_service {
        anyhow::bail!(
            "this serves the network, which is not done as root; start it as the service that it is: systemctl start \
             linux-patch-api. `linux-patch-api --help` lists what root can ask it"
        );
    }
    let settings = match config::load(root) {
        Ok(settings) => settings,
        Err(error) => {
            for problem in error.problems() {
                eprintln!("linux-patch-api: {}", terminal::escaped(&problem));
            }
            return Ok(exit::NOT_IN_ORDER.into());
        }
    };
    let level = crate::log::start(settings.level);
    // It serves all the same: who may have changed the files could have changed this program's mind before.
    for problem in check::changeable(root, Some(&settings)) {
        tracing::warn!("{}", terminal::escaped(&problem));
    }
    // Two workers: the host's work is patching, and an answer from the cache takes microseconds.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let ran = runtime.block_on(crate::run::run(root, settings, level));
    // Whatever hangs still, such as a disk or a name server, must not keep this from ending.
    runtime.shutdown_timeout(LEFT_OVER);
    ran?;
    Ok(exit::OK.into())
}
