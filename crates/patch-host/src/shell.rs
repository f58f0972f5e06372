//! What the program says about itself: completions and manual pages.

use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use patch_manual::{Manual, Shell};

use crate::{args::Cli, exit::Exit, screen::Screen};

const MANUAL: Manual = Manual {
    section: "8",
    environment: &[],
    files: &[
        ("/var/lib/linux_patch_executor/journal/", "What every change did, and its way back. Root's alone."),
        ("/var/lib/linux_patch_executor/archives/", "The archives that are kept for going back."),
        (
            "/etc/apt/preferences.d/linux-patch-taken-back",
            "Made from the versions that were taken back; not to be edited: use the command clear.",
        ),
        (
            "/etc/default/linux-patch-reboot-window",
            "When the host may reboot by itself, and what is run before and after; a sample is among the documentation.",
        ),
        (
            "/etc/linux_patch_api/config.yaml",
            "The key reboot says the same where the file above declares no window.",
        ),
        (
            "/var/lib/linux_patch_executor/provision/unattended/",
            "What was there before `provision unattended`, for its --undo. Root's alone.",
        ),
        (
            "/run/linux-patch-executor.sock",
            "Where the root side is asked; with --direct it is started instead.",
        ),
    ],
    examples: &[
        ("linux-patch-host jobs", "Which changes were made on this host, and which can be taken back:"),
        ("linux-patch-host rollback JOB", "Take one back, without the network and without the daemon:"),
        ("linux-patch-host confirm JOB", "Keep a change that waits to be confirmed:"),
        ("linux-patch-host stale", "What still runs old code after a patch, and what to restart:"),
        ("linux-patch-host notify test", "Whether mail and webhooks arrive:"),
        ("linux-patch-host clear nginx=1.22.1-9", "Let a version that was taken back be installed again:"),
        ("linux-patch-host reboot-window status", "Whether the host would reboot now, and if not, why not:"),
        ("linux-patch-host reboot-window next 10", "When its window opens next:"),
        (
            "linux-patch-host provision unattended --dry-run",
            "What has to change so that security fixes are installed within a day:",
        ),
        (
            "linux-patch-host doctor --fix",
            "What keeps this host from being patched, mended where that is safe:",
        ),
    ],
    see_also: &[
        "linux-patch-api(8)",
        "patchctl(1)",
        "apt-get(8)",
        "apt_preferences(5)",
        "unattended-upgrade(8)",
        "needrestart(1)",
        "cloud-init(1)",
    ],
};

pub(crate) fn completions(screen: &mut Screen, shell: Shell) -> anyhow::Result<Exit> {
    screen.raw(&patch_manual::completions(Cli::command(), shell));
    Ok(Exit::Done)
}

pub(crate) fn man(
    screen: &mut Screen,
    command: Option<&str>,
    directory: Option<&Path>,
) -> anyhow::Result<Exit> {
    if let Some(directory) = directory {
        patch_manual::write_pages(Cli::command(), &MANUAL, directory)
            .with_context(|| format!("cannot write the pages into {}", directory.display()))?;
        return Ok(Exit::Done);
    }
    screen.raw(&page(command)?);
    Ok(Exit::Done)
}

fn page(command: Option<&str>) -> anyhow::Result<String> {
    patch_manual::page(Cli::command(), &MANUAL, command)?
        .with_context(|| format!("there is no command {}", command.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_exist_for_the_program_and_its_commands() {
        let main = page(None).unwrap();
        assert!(main.contains(".TH linux-patch-host 8") && main.contains("EXIT STATUS"), "{main}");
        assert!(page(Some("rollback")).unwrap().contains("force"));
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
