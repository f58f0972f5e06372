//! The command line's grammar.

use std::{path::PathBuf, str::FromStr};

use clap::{Parser, Subcommand};
use patch_manual::Shell;
use patch_types::{JobId, PackageName, PackageVersion, PlanHash, executor::TakenBack, name::NameError};

use crate::{cloud_init, exit, provision::Unattended};

/// Root's own tool for this host: takes changes back without the network, says what can be taken back, and sets up what
/// patches the host by itself.
#[derive(Debug, Parser)]
#[command(name = "linux-patch-host", version, after_help = exit::HELP, max_term_width = 100)]
pub(crate) struct Cli {
    /// Print JSON: one object, or one a line while an operation is followed
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Start the root side as a process of this one, where its socket cannot be used
    #[arg(long, global = true)]
    pub(crate) direct: bool,
    /// Work on the system below this directory
    #[arg(long, global = true, value_name = "DIR", default_value = "/", value_parser = absolute)]
    pub(crate) root: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What is wanted.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take back what a job changed, and follow it to its end
    Rollback {
        /// The job, as `linux-patch-host jobs` shows it
        job: JobId,
        /// Even if its packages were changed again since; with --snapshot whatever hazards were listed
        #[arg(long)]
        force: bool,
        /// Go back to the snapshot of the file systems that was made before the job, with everything that was changed since; it
        /// is in force after the next reboot. Without --if-plan it only lists what that is
        #[arg(long)]
        snapshot: bool,
        /// Do what was listed under this hash, and nothing else
        #[arg(long, value_name = "HASH", value_parser = hash, requires = "snapshot")]
        if_plan: Option<PlanHash>,
    },
    /// Follow an operation that was begun already
    Watch {
        /// The job
        job: JobId,
    },
    /// Keep a change that goes back by itself unless it is confirmed
    Confirm {
        /// The job
        job: JobId,
    },
    /// List the changes of this host, and which of them can be taken back
    Jobs,
    /// List the versions that were taken back and are not installed again
    TakenBack,
    /// Let a version that was taken back be installed again
    Clear {
        /// The package, of all its versions or of one
        #[arg(value_name = "NAME[=VERSION]", required_unless_present = "all")]
        version: Option<Version>,
        /// All that were taken back
        #[arg(long, conflicts_with = "version")]
        all: bool,
    },
    /// Say that what a failed rollback has left is well as it is
    Repaired {
        /// The job whose way back was gone, as the failure names it
        job: JobId,
    },
    /// Show the root side's own record: what was asked of it, and what it did
    Record {
        #[command(subcommand)]
        action: Option<RecordAction>,
        /// Only the last so many
        #[arg(long, short = 'n', default_value_t = 50)]
        last: usize,
        /// Only about this operation
        #[arg(long)]
        job: Option<JobId>,
    },
    /// Reboot this host while its declared window is open, if something asks for it
    RebootWindow {
        #[command(subcommand)]
        action: WindowAction,
    },
    /// Keep the distribution's own updater off while the agent patches by itself, and give it back when it does not
    Policy {
        #[command(subcommand)]
        action: PolicyAction,
    },
    /// Tell people and programs, as config.yaml says
    Notify {
        #[command(subcommand)]
        action: NotifyAction,
    },
    /// Say what still runs code that has been replaced on disk, and what brings the new code into memory
    Stale,
    /// Say how soon each security fix was installed, what runs its code, and what is in the way
    Report,
    /// Have the distribution's own tools patch this host by themselves
    Provision {
        #[command(subcommand)]
        what: Provision,
    },
    /// Find what keeps this host from being patched, say why it matters and what to do
    Doctor {
        /// Mend what is safe to mend: timers that do not run, permissions of secrets and keys
        #[arg(long)]
        fix: bool,
    },
    /// Print a #cloud-config that has a new host patch itself from its first boot on
    CloudInit(cloud_init::Options),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Print the manual page
    Man {
        /// Of one command
        command: Option<String>,
        /// Write all pages into this directory instead
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        directory: Option<PathBuf>,
    },
}

/// What is set up.
#[derive(Debug, Subcommand)]
pub(crate) enum Provision {
    /// Security fixes within a day of their publication, by unattended-upgrades and apt's timers; no reboots by themselves
    Unattended(Unattended),
}

/// What is to be done with the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum RecordAction {
    /// Find every edited, removed, inserted or reordered line of it
    Verify,
}

/// What is to be done about the reboot window.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum WindowAction {
    /// Look once: settle the last reboot, decide, and reboot if that is decided; the timer does it every five minutes
    Tick {
        /// Reboot now, whatever the window says; neither over a change of packages, nor an inhibitor, nor without the lock
        #[arg(long, requires = "reason")]
        force: bool,
        /// Why, for the record
        #[arg(long, requires = "force", value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        reason: Option<String>,
    },
    /// Show the window, what asks for a reboot, and what would be decided now
    Status,
    /// Show when the window opens next
    Next {
        /// How many openings
        #[arg(value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=i64::from(crate::window::MAX_SHOWN)))]
        count: u32,
    },
}

/// What is to be done about who patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum PolicyAction {
    /// Look once, and switch unattended-upgrades off or give it back; the timer does it every five minutes
    Tick,
    /// Show who patches, and what that rests on
    Status,
    /// Give unattended-upgrades back now; the next look decides anew
    Release,
}

/// What is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum NotifyAction {
    /// Send a test to everybody, and say what came of it
    Test,
    /// Tell of the changes that ended since this was first called, each once; for a timer
    Deliver,
}

/// `NAME` or `NAME=VERSION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    name: PackageName,
    version: Option<PackageVersion>,
}

impl FromStr for Version {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (name, version) = match text.split_once('=') {
            Some((name, version)) => (name, Some(version.parse()?)),
            None => (text, None),
        };
        Ok(Self { name: name.parse()?, version })
    }
}

impl From<Version> for TakenBack {
    fn from(version: Version) -> Self {
        Self::Package { name: version.name, version: version.version }
    }
}

fn hash(text: &str) -> Result<PlanHash, String> {
    PlanHash::try_from(text.to_owned()).map_err(str::to_owned)
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("it must be an absolute path".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_typed_is_understood_or_refused() {
        let parse = |line: &str| Cli::try_parse_from(["linux-patch-host"].into_iter().chain(line.split(' ')));
        let id = "0198c5f2-0000-7000-8000-000000000001";
        for good in [
            format!("rollback {id}"),
            format!("rollback {id} --force --json"),
            format!("--direct --root /mnt watch {id}"),
            format!("--direct confirm {id}"),
            "jobs --json".to_owned(),
            "taken-back".to_owned(),
            "clear aa".to_owned(),
            "clear aa:amd64=1:2.0-1".to_owned(),
            "clear --all".to_owned(),
            format!("repaired {id}"),
            "record --json -n 5".to_owned(),
            "record verify".to_owned(),
            "stale --json".to_owned(),
            "policy tick".to_owned(),
            "policy status --json".to_owned(),
            "policy release".to_owned(),
            "report --json".to_owned(),
            "notify test".to_owned(),
            "notify deliver --json".to_owned(),
            "doctor --json".to_owned(),
            "cloud-init --profile kvm-host --mail-to ops@example.org --smtp-preset m365".to_owned(),
            "--root /mnt doctor --fix".to_owned(),
            "provision unattended --with-updates --mail-to ops@example.org --reboot-time 03:30 -n".to_owned(),
            "--root /mnt provision unattended --undo --force".to_owned(),
            format!("record --job {id}"),
            "reboot-window tick".to_owned(),
            "reboot-window tick --force --reason why".to_owned(),
            "reboot-window status --json".to_owned(),
            "reboot-window next 10".to_owned(),
        ] {
            assert!(parse(&good).is_ok(), "{good}");
        }
        for bad in [
            "rollback",
            "rollback latest",
            "confirm",
            "rollback ../../etc",
            "clear",
            "clear aa --all",
            "clear aa=",
            "clear -- -aa",
            "clear aa=-1",
            "--root etc jobs",
            "reboot-window",
            "reboot-window tick --force",
            "reboot-window tick --reason why",
            "reboot-window next 0",
            "reboot-window next 1001",
            "stale now",
            "policy",
            "policy tick --force",
            "notify",
            "provision",
            "provision unattended --undo --with-updates",
            "provision unattended --mail-to a\";b",
            "provision unattended --mail-report sometimes",
            "provision unattended --reboot-time 25:00",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
