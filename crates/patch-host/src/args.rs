//! The command line's grammar.

use std::{path::PathBuf, str::FromStr};

use clap::{Parser, Subcommand};
use patch_manual::Shell;
use patch_types::{JobId, PackageName, PackageVersion, executor::TakenBack, name::NameError};

use crate::exit;

/// Root's own tool for this host: takes changes back without the network, and says what can be taken back.
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
        /// Even if its packages were changed again since
        #[arg(long)]
        force: bool,
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

/// What is to be done with the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum RecordAction {
    /// Find every edited, removed, inserted or reordered line of it
    Verify,
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
            format!("record --job {id}"),
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
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
