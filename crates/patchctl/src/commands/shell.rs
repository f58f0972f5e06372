//! What the program says about itself: completions and manual pages.

use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use patch_manual::{Manual, Shell};

use crate::{
    args::Cli,
    exit::{Exit, Misconfigured},
    output::Output,
};

const MANUAL: Manual = Manual {
    section: "1",
    environment: &[
        ("PATCHCTL_HOST", "The agent, HOST or HOST:PORT, where --host is not given."),
        ("PATCHCTL_CONFIG", "The directory of the certificates, where --config is not given."),
        ("PATCHCTL_CA, PATCHCTL_CERT, PATCHCTL_KEY", "The CA, the certificate and its key, one by one."),
        ("NO_COLOR", "No colours, whatever it holds."),
    ],
    files: &[("~/.config/patchctl/", "The certificates: ca.pem, client.pem and client.key.pem.")],
    examples: &[
        ("patchctl --host web1 patches", "What could be patched:"),
        ("patchctl --host web1 apply --security-only --dry-run", "What a security update would change:"),
        (
            "patchctl --host web1 apply --security-only --confirm-within 300",
            "Do it, and go back by itself unless it is confirmed:",
        ),
        ("patchctl --host web1 rollback JOB", "Take a job's changes back:"),
        (
            "patchctl --host web1 --json patches --check",
            "For scripts; the exit code says whether there is an update:",
        ),
    ],
    see_also: &["linux-patch-api(8)", "linux-patch-host(8)"],
};

pub(super) fn completions(out: &Output, shell: Shell) -> anyhow::Result<Exit> {
    out.print(&patch_manual::completions(Cli::command(), shell))?;
    Ok(Exit::Done)
}

pub(super) fn man(out: &Output, command: Option<&str>, directory: Option<&Path>) -> anyhow::Result<Exit> {
    if let Some(directory) = directory {
        patch_manual::write_pages(Cli::command(), &MANUAL, directory)
            .with_context(|| format!("cannot write the pages into {}", directory.display()))?;
        return Ok(Exit::Done);
    }
    out.print(&page(command)?)?;
    Ok(Exit::Done)
}

fn page(command: Option<&str>) -> anyhow::Result<String> {
    match patch_manual::page(Cli::command(), &MANUAL, command)? {
        Some(page) => Ok(page),
        None => Err(Misconfigured(format!("there is no command {}", command.unwrap_or_default())).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_exist_for_the_program_and_its_commands() {
        let main = page(None).unwrap();
        assert!(main.contains(".TH patchctl 1") && main.contains("EXIT STATUS"), "{main}");
        assert!(page(Some("apply")).unwrap().contains("security\\-only"));
        assert!(page(Some("nothing")).is_err());
    }

    /// The examples of the manual are command lines that the grammar takes.
    #[test]
    fn the_examples_can_be_typed() {
        for (line, _) in MANUAL.examples {
            let line = line.replace("JOB", "0198c5f2-0000-7000-8000-000000000001");
            let parsed = <Cli as clap::Parser>::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }
}
