//! `cargo xtask host`: throw-away hosts by hand, the same that the system tests use.
//!
//! A host lives as long as the process that owns it. `shell` without a name is that process itself; `up` starts one
//! in the background, the keeper, which `down` ends.

use std::io::{BufRead, BufReader, Read};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use system_tests::{Guest, Host, HostOptions, Network, Repository, RunRecord, base, runs, sweep};

/// What to do with hosts.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Boot hosts on one network and leave them up until `down`. They have the test repository as apt's source.
    Up(Hosts),
    /// A shell on a host that is up; without a name, on a new host that is removed afterwards.
    Shell {
        /// The host.
        name: Option<String>,
    },
    /// Run a command on a host that is up.
    Exec {
        /// The host.
        name: String,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// List the hosts of this machine, those of running tests among them.
    List,
    /// Remove a host and those that came up with it.
    Down {
        /// The host.
        name: String,
    },
    /// Remove whatever is left of tests, demonstrations and hosts whose process was killed.
    Clean {
        /// Every other host as well, those of running tests too.
        #[arg(long)]
        all: bool,
        /// Also the cached base and test repository, which the next use builds anew.
        #[arg(long)]
        cache: bool,
    },
    /// Own hosts until killed; `up` starts this.
    #[command(hide = true)]
    Keep(Hosts),
}

/// Hosts to boot.
#[derive(Debug, clap::Args)]
pub(crate) struct Hosts {
    /// Their names.
    #[arg(required = true, value_parser = host_name)]
    names: Vec<String>,
    /// The size of each one's disk, in memory: a number of MiB or GiB, such as 600m or 2g.
    #[arg(long, default_value = "1g", value_parser = disk_size)]
    disk: String,
}

/// The least that the base system and a few packages fit into, in MiB.
const SMALLEST_DISK: u32 = 400;

/// What can be a host's name: it becomes one of the kernel's, a directory and a word of scripts.
fn host_name(text: &str) -> Result<String, String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if first && text.len() <= 32 && !text.ends_with('-') && text.bytes().all(fits) {
        return Ok(text.to_owned());
    }
    Err("a host's name has up to 32 lower-case letters, digits and '-', and begins with a letter".to_owned())
}

fn disk_size(text: &str) -> Result<String, String> {
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).unwrap_or_default();
    let factor = match unit {
        "m" => 1,
        "g" => 1024,
        _ => return Err("a size is a number and m or g, such as 600m or 2g".to_owned()),
    };
    match number.parse::<u32>().ok().and_then(|number| number.checked_mul(factor)) {
        Some(mib) if (SMALLEST_DISK..=65536).contains(&mib) => Ok(text.to_owned()),
        _ => Err(format!("a disk has {SMALLEST_DISK}m to 64g")),
    }
}

pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(hosts) => up(&hosts),
        Command::Keep(hosts) => keep(&hosts),
        Command::Shell { name: Some(name) } => interact(&Guest::find(&name)?, &["/bin/bash", "-l"]),
        Command::Shell { name: None } => shell(),
        Command::Exec { name, argv } => {
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            interact(&Guest::find(&name)?, &argv)
        }
        Command::List => list(),
        Command::Down { name } => find_run(&name)?.end().map(|()| ExitCode::SUCCESS),
        Command::Clean { all, cache } => clean(all, cache),
    }
}

/// A host with the test repository, and what it lives on.
struct Furnished {
    repository: Repository,
    hosts: Vec<Host>,
}

fn furnish(hosts: &Hosts) -> Result<Furnished> {
    let network = Network::new()?;
    let repository = Repository::new()?;
    let boot = |name: &String| {
        let options = HostOptions::named(name).disk(&hosts.disk).repository(&repository);
        let host = Host::boot(&network, options)?;
        repository.configure(&host, Repository::FILES)?;
        anyhow::Ok(host)
    };
    let hosts = hosts.names.iter().map(boot).collect::<Result<_>>()?;
    Ok(Furnished { repository, hosts })
}

fn up(hosts: &Hosts) -> Result<ExitCode> {
    for name in &hosts.names {
        ensure!(
            find_run(name).is_err(),
            "a host named {name} is up: `cargo xtask host down {name}` removes it"
        );
    }
    // A session of its own, so that the keeper outlives the terminal.
    let mut keeper = std::process::Command::new("setsid");
    keeper.arg(std::env::current_exe()?).args(["host", "keep", "--disk", &hosts.disk]).args(&hosts.names);
    keeper.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut keeper = keeper.spawn().context("cannot start the keeper")?;
    let output = BufReader::new(keeper.stdout.take().context("the keeper has no output")?);
    for line in output.lines() {
        let line = line?;
        if line == READY {
            return Ok(ExitCode::SUCCESS);
        }
        println!("{line}");
    }
    let mut said = String::new();
    keeper.stderr.take().context("the keeper has no output")?.read_to_string(&mut said)?;
    bail!("the keeper has ended: {}", said.trim_end())
}

/// The keeper's last word; whoever started it may be gone afterwards.
const READY: &str = "ready";

fn keep(hosts: &Hosts) -> Result<ExitCode> {
    let furnished = furnish(hosts)?;
    for host in &furnished.hosts {
        println!("{} {}", host.name(), host.ip());
    }
    println!("{}\n{READY}", repository_note(&furnished.repository));
    loop {
        std::thread::park();
    }
}

fn shell() -> Result<ExitCode> {
    let hosts = Hosts { names: vec!["host".to_owned()], disk: "1g".to_owned() };
    let furnished = furnish(&hosts)?;
    let host = furnished.hosts.first().context("no host was booted")?;
    eprintln!("{}", repository_note(&furnished.repository));
    interact(host, &["/bin/bash", "-l"])
}

fn repository_note(repository: &Repository) -> String {
    format!(
        "apt's source is day 0 of the test repository; for day 1: ln -sfn day1 {}/current",
        repository.path().display()
    )
}

fn interact(guest: &Guest, argv: &[&str]) -> Result<ExitCode> {
    let status = guest.interactive(argv)?.status().context("cannot enter the host")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn list() -> Result<ExitCode> {
    let runs = runs()?;
    if runs.iter().all(|run| run.hosts.is_empty()) {
        eprintln!("No host is up.");
    }
    for run in runs {
        let owner = if run.alive {
            format!("process {}", run.owner)
        } else {
            "dead (`cargo xtask host clean` removes it)".to_owned()
        };
        for host in &run.hosts {
            let state = if host.leader.is_some() { "on" } else { "off" };
            let boots = format!("boot {}", host.boots);
            println!(
                "{:<20} {:<14} {state:<4} {boots:<8} owner: {owner}, run {}",
                host.name, host.address, run.id
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn find_run(name: &str) -> Result<RunRecord> {
    let has_host = |run: &RunRecord| run.alive && run.hosts.iter().any(|host| host.name == name);
    let found = runs()?.into_iter().find(has_host);
    found.with_context(|| format!("no host is named {name}: `cargo xtask host list` shows those that are up"))
}

fn clean(all: bool, cache: bool) -> Result<ExitCode> {
    for id in sweep()? {
        println!("removed what was left of run {id}");
    }
    if all {
        for run in runs()? {
            run.end()?;
            println!("removed run {}", run.id);
        }
    }
    if cache {
        base::clear_cache()?;
        println!("removed {}", base::cache_directory().display());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_that_a_shell_would_trip_over_are_refused() {
        for good in ["a", "web-1", "host"] {
            assert_eq!(host_name(good).unwrap(), good);
        }
        for bad in ["", "-a", "1", "a b", "a;b", "$(id)", "../x", "A", "a-", "ä", &"a".repeat(33)] {
            assert!(host_name(bad).is_err(), "{bad}");
        }
        for good in ["400m", "1g", "64g"] {
            assert_eq!(disk_size(good).unwrap(), good);
        }
        for bad in ["", "g", "1", "399m", "65g", "1 g", "-1g", "4294967295g", "1ä"] {
            assert!(disk_size(bad).is_err(), "{bad}");
        }
    }
}
