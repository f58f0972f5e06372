//! The command line's grammar.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use patch_client::{Address, PackageSort};
use patch_manual::Shell;
use patch_types::{
    JobId, JobStatus, OnFailure, PackageName, PlanHash, Unrehearsed, operation::PackageSpec,
    reboot::MAX_DELAY_SECONDS, rollback::MAX_CONFIRM_SECONDS,
};

use crate::exit;

/// Asks a patch agent about its host, or has it install, update, hold and remove packages.
#[derive(Debug, Parser)]
#[command(name = "patchctl", version, after_help = exit::HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
    #[command(flatten)]
    pub(crate) display: DisplayArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the agent is and who is asking.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionArgs {
    /// The agent
    #[arg(long, global = true, env = "PATCHCTL_HOST", value_name = "HOST[:PORT]")]
    pub(crate) host: Option<Address>,
    /// Directory of ca.pem, client.pem and client.key.pem [default: ~/.config/patchctl]
    #[arg(long, global = true, env = "PATCHCTL_CONFIG", value_name = "DIR")]
    pub(crate) config: Option<PathBuf>,
    /// The CA of the agent's certificate
    #[arg(long, global = true, env = "PATCHCTL_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// The client's certificate
    #[arg(long, global = true, env = "PATCHCTL_CERT", value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// The client's private key
    #[arg(long, global = true, env = "PATCHCTL_KEY", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// The name that the agent's certificate carries, if it is not the host's
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) server_name: Option<String>,
    /// How long one request may take, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: u32,
}

/// How answers are shown.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct DisplayArgs {
    /// Print the agent's data as JSON, unchanged; `watch` prints one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Show a job's log lines, or more columns
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
    /// No colours, as with NO_COLOR in the environment
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

/// What is wanted.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List installed packages
    Packages(PackagesArgs),
    /// Show one package: versions, dependencies, files, why it is not upgraded
    Package {
        /// Its name
        name: PackageName,
    },
    /// List available updates
    Patches(PatchesArgs),
    /// Explain why a package is not being patched
    WhyNot {
        /// Its name
        name: PackageName,
    },
    /// Install packages, or bring them to the given versions
    Install(InstallArgs),
    /// Update one installed package
    Update {
        /// Its name, with the exact version if not the candidate
        #[arg(value_name = "NAME[=VERSION]", value_parser = spec)]
        package: PackageSpec,
        #[command(flatten)]
        change: ChangeArgs,
        #[command(flatten)]
        back: BackArgs,
    },
    /// Put a package on hold: it stays at its version
    Hold {
        /// Its name
        name: PackageName,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Take a package off hold
    Unhold {
        /// Its name
        name: PackageName,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Remove a package
    Remove(RemoveArgs),
    /// Fetch the indexes of all repositories
    Refresh {
        /// Print the job's id and return
        #[arg(long, short)]
        detach: bool,
    },
    /// Apply available updates, all or the named ones
    Apply(ApplyArgs),
    /// List jobs, newest first
    Jobs(JobsArgs),
    /// Show one job; its log with --verbose
    Job {
        /// Its id
        id: JobId,
    },
    /// Follow a job to its end
    Watch {
        /// Its id
        id: JobId,
    },
    /// Undo what a job changed
    Rollback(RollbackArgs),
    /// Keep a change that was made with --confirm-within
    Confirm {
        /// Its job's id
        id: JobId,
    },
    /// Cancel a job while that is safe
    Cancel {
        /// Its id
        id: JobId,
    },
    /// Reboot the host: in its reboot window, or at once with --force
    Reboot(RebootArgs),
    /// Show the host: system, kernel, last updates, pending reboot
    Info,
    /// List units that failed or still run old code
    Services {
        /// Show this unit instead
        name: Option<String>,
    },
    /// Show how soon each security fix was installed, what runs its code, and what is in the way
    Compliance,
    /// Show how the agent is; exits with 1 when it is unhealthy
    Health,
    /// Hand the agent a newer revocation list
    #[command(subcommand)]
    Crl(CrlCommand),
    /// Print the agent's metrics in Prometheus' format
    Metrics,
    /// Print the OpenAPI description of the agent's API
    Openapi,
    /// Print a completion script
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man {
        /// The page of this subcommand instead
        command: Option<String>,
        /// Write all pages into this directory instead
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        directory: Option<PathBuf>,
    },
}

/// What is wanted of the revocation list.
#[derive(Debug, Subcommand)]
pub(crate) enum CrlCommand {
    /// Put a newer list in force; it takes effect at once, on open connections too
    Put {
        /// The list of the agent's CA, PEM or DER; `-` is standard input
        file: PathBuf,
    },
}

/// Arguments of `packages`.
#[derive(Debug, Args)]
pub(crate) struct PackagesArgs {
    /// A name, exact or with `*`
    pub(crate) pattern: Option<String>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// The order
    #[arg(long, value_enum, default_value_t = SortKey::Name)]
    pub(crate) sort: SortKey,
    /// The other way round
    #[arg(long, short)]
    pub(crate) reverse: bool,
    /// At most so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}

/// Which packages.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct StateArgs {
    /// Only those with a newer version
    #[arg(long)]
    pub(crate) upgradable: bool,
    /// Only those on hold
    #[arg(long)]
    pub(crate) held: bool,
    /// Only those that are not in order
    #[arg(long)]
    pub(crate) broken: bool,
    /// Also removed ones whose configuration remains
    #[arg(long)]
    pub(crate) all: bool,
}

/// By what packages are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortKey {
    /// By name
    Name,
    /// By version
    Version,
    /// By space used on disk
    Size,
}

impl From<SortKey> for PackageSort {
    fn from(key: SortKey) -> Self {
        match key {
            SortKey::Name => Self::Name,
            SortKey::Version => Self::Version,
            SortKey::Size => Self::Size,
        }
    }
}

/// Arguments of `patches`.
#[derive(Debug, Args)]
pub(crate) struct PatchesArgs {
    /// Only those that bring security fixes
    #[arg(long)]
    pub(crate) security: bool,
    /// Exit with 5 if there is one that would be applied now
    #[arg(long)]
    pub(crate) check: bool,
}

/// Options that all changes have.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Change")]
pub(crate) struct ChangeArgs {
    /// Show what would be done, with the plan's hash; change nothing
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,
    /// Only if the plan of that moment has this hash
    #[arg(long, value_name = "HASH", value_parser = plan_hash, conflicts_with = "dry_run")]
    pub(crate) if_plan: Option<PlanHash>,
    /// Do not ask; without a terminal nothing is asked anyway
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Print the job's id and return
    #[arg(long, short, conflicts_with = "dry_run")]
    pub(crate) detach: bool,
}

/// Whether a change is tried first.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Rehearsal")]
pub(crate) struct RehearseArgs {
    /// Try it on an image of the host first; with --dry-run do only that
    #[arg(long)]
    pub(crate) rehearse: bool,
    /// What to do where no rehearsal is possible [default: refuse]
    #[arg(long, value_enum, value_name = "WHAT", requires = "rehearse")]
    pub(crate) unrehearsed: Option<Instead>,
}

/// What to do where no rehearsal is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Instead {
    /// Change nothing
    Refuse,
    /// Be content with the solver's simulation
    Simulate,
}

impl From<Instead> for Unrehearsed {
    fn from(instead: Instead) -> Self {
        match instead {
            Instead::Refuse => Self::Refuse,
            Instead::Simulate => Self::Simulate,
        }
    }
}

/// When a change is taken back.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Going back")]
pub(crate) struct BackArgs {
    /// What happens to the rest when a part fails [default: group]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) on_failure: Option<Rest>,
    /// Go back by itself unless `patchctl confirm` comes within so many seconds
    #[arg(long, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CONFIRM_SECONDS)))]
    pub(crate) confirm_within: Option<u32>,
    #[command(flatten)]
    pub(crate) first: RehearseArgs,
}

/// What happens to the rest of a change when a part of it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rest {
    /// Packages that depend on each other go back together, the others are finished
    Group,
    /// Everything goes back
    All,
    /// What succeeded stays
    Keep,
}

impl From<Rest> for OnFailure {
    fn from(rest: Rest) -> Self {
        match rest {
            Rest::Group => Self::Group,
            Rest::All => Self::All,
            Rest::Keep => Self::Keep,
        }
    }
}

/// Arguments of `install`.
#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// Names, with exact versions where not the candidate is meant
    #[arg(required = true, value_name = "NAME[=VERSION]", value_parser = spec)]
    pub(crate) packages: Vec<PackageSpec>,
    /// Leave recommended packages out
    #[arg(long)]
    pub(crate) no_recommends: bool,
    /// Allow versions older than the installed ones
    #[arg(long)]
    pub(crate) allow_downgrade: bool,
    /// Install again what is installed already
    #[arg(long)]
    pub(crate) reinstall: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) back: BackArgs,
}

/// Arguments of `remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Its name
    pub(crate) name: PackageName,
    /// With its configuration files
    #[arg(long)]
    pub(crate) purge: bool,
    /// With the packages that were installed only for it
    #[arg(long)]
    pub(crate) autoremove: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) back: BackArgs,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// Only these packages
    #[arg(value_name = "NAME")]
    pub(crate) packages: Vec<PackageName>,
    /// Only what brings security fixes
    #[arg(long)]
    pub(crate) security_only: bool,
    /// Not this package; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub(crate) exclude: Vec<PackageName>,
    /// Allow the package manager to remove packages for it
    #[arg(long)]
    pub(crate) allow_removals: bool,
    /// Queue a reboot for the reboot window if the changes ask for one
    #[arg(long)]
    pub(crate) allow_reboot: bool,
    /// That reboot does not come before so many minutes after the job
    #[arg(long, value_name = "MINUTES", requires = "allow_reboot",
          value_parser = clap::value_parser!(u32).range(0..=10_080))]
    pub(crate) reboot_delay: Option<u32>,
    /// Fetch the indexes first, however old they are
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) refresh: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    #[command(flatten)]
    pub(crate) back: BackArgs,
}

/// Arguments of `rollback`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RollbackArgs {
    /// Its id
    pub(crate) id: JobId,
    /// Even if the packages were changed again since; with --snapshot whatever hazards were listed
    #[arg(long)]
    pub(crate) force: bool,
    /// Go back to the snapshot of the file systems that was made before the job, with everything that was changed since; it is
    /// in force after the next reboot. Lists what that is, and asks
    #[arg(long)]
    pub(crate) snapshot: bool,
    /// Show what would be taken back; change nothing
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,
    /// Only if the plan of that moment has this hash; a script needs it with --snapshot
    #[arg(long, value_name = "HASH", value_parser = plan_hash, conflicts_with = "dry_run")]
    pub(crate) if_plan: Option<PlanHash>,
    /// Do not ask; without a terminal nothing is asked anyway
    #[arg(long, short, conflicts_with = "snapshot")]
    pub(crate) yes: bool,
    /// Print the new job's id and return
    #[arg(long, short, conflicts_with = "dry_run")]
    pub(crate) detach: bool,
}

/// Arguments of `reboot`.
#[derive(Debug, Args)]
pub(crate) struct RebootArgs {
    /// Show whether a reboot is needed, when the window opens, what is queued and what stands against it; reboot nothing
    #[arg(long, conflicts_with_all = ["force", "reason", "delay", "yes", "detach"])]
    pub(crate) status: bool,
    /// Now, whatever the reboot window says; never while packages are being changed
    #[arg(long, requires = "reason")]
    pub(crate) force: bool,
    /// Why, in one line
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Not before so many seconds have passed
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=MAX_DELAY_SECONDS))]
    pub(crate) delay: Option<u64>,
    /// Do not ask; without a terminal nothing is asked anyway
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Print the job's id and return; one that waits for the window is not followed anyway
    #[arg(long, short)]
    pub(crate) detach: bool,
}

/// Arguments of `jobs`.
#[derive(Debug, Args)]
pub(crate) struct JobsArgs {
    /// Only those that stand there: pending, running, completed, failed, cancelled or timeout
    #[arg(long, value_parser = job_status)]
    pub(crate) status: Option<JobStatus>,
    /// At most so many
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
}

fn spec(text: &str) -> Result<PackageSpec, String> {
    let (name, version) = match text.split_once('=') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    };
    Ok(PackageSpec {
        name: name.parse().map_err(|e: patch_types::name::NameError| e.to_string())?,
        version: version
            .map(str::parse)
            .transpose()
            .map_err(|e: patch_types::name::NameError| e.to_string())?,
    })
}

fn plan_hash(text: &str) -> Result<PlanHash, String> {
    PlanHash::try_from(text.to_owned()).map_err(str::to_owned)
}

fn job_status(text: &str) -> Result<JobStatus, String> {
    use JobStatus::{Cancelled, Completed, Failed, Pending, Running, Timeout};
    [Pending, Running, Completed, Failed, Cancelled, Timeout]
        .into_iter()
        .find(|status| status.as_str() == text)
        .ok_or_else(|| {
            "one of pending, running, completed, failed, cancelled, timeout is expected".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("patchctl").chain(line.split_whitespace()))
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn versions_follow_an_equals_sign_and_options_come_anywhere() {
        let cli = parse("install --json nginx=1:1.2-3 g++ --host web1:1 --no-recommends -n").unwrap();
        assert!(cli.display.json);
        assert_eq!(cli.connection.host.unwrap().to_string(), "web1:1");
        let Command::Install(args) = cli.command else { panic!("install") };
        assert!(args.no_recommends && args.change.dry_run);
        assert_eq!(args.packages[0].version.as_ref().unwrap().as_str(), "1:1.2-3");
        assert_eq!((args.packages[1].name.as_str(), &args.packages[1].version), ("g++", &None));
    }

    #[test]
    fn names_that_could_do_harm_are_usage_errors() {
        for line in [
            "install",
            "install a;b",
            "install nginx=",
            "install nginx=../x",
            "remove Apt",
            "package ../x",
            "job 17",
            "packages --held --all",
            "jobs --status lost",
            "apply --dry-run --detach",
            "apply --refresh --dry-run",
            "update apt --if-plan abc",
            "info --host http://x",
            "info --timeout 0",
            "rollback 17",
            "confirm",
            "apply --on-failure some",
            "apply --confirm-within 0",
            "apply --confirm-within 86401",
            "hold apt --confirm-within 5",
            "reboot --force",
            "reboot --delay 604801",
            "reboot --status --force --reason x",
            "apply --reboot-delay 5",
        ] {
            let error = parse(line).map(|_| line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn every_change_of_packages_says_when_it_goes_back() {
        for line in ["install apt", "update apt", "remove apt", "apply"] {
            let cli = parse(&format!("{line} --on-failure all --confirm-within 60")).unwrap();
            let back = match cli.command {
                Command::Install(args) => args.back,
                Command::Update { back, .. } => back,
                Command::Remove(args) => args.back,
                Command::Apply(args) => args.back,
                other => panic!("{other:?}"),
            };
            assert_eq!((back.on_failure, back.confirm_within), (Some(Rest::All), Some(60)), "{line}");
        }
        let cli = parse("rollback 01890000-0000-7000-8000-000000000001 --force -d").unwrap();
        let Command::Rollback(args) = cli.command else { panic!("{cli:?}") };
        assert!(args.force && !args.yes && args.detach && !args.snapshot);
        let cli = parse("rollback 01890000-0000-7000-8000-000000000001 --snapshot -n").unwrap();
        assert!(matches!(cli.command, Command::Rollback(RollbackArgs { snapshot: true, dry_run: true, .. })));
        assert!(parse("rollback 01890000-0000-7000-8000-000000000001 --snapshot --yes").is_err());
    }

    #[test]
    fn apply_takes_names_and_exclusions() {
        let cli = parse("apply apt dpkg --exclude bash --exclude dash --security-only -y").unwrap();
        let Command::Apply(args) = cli.command else { panic!("apply") };
        assert_eq!((args.packages.len(), args.exclude.len()), (2, 2));
        assert!(args.security_only && args.change.yes);
    }
}
