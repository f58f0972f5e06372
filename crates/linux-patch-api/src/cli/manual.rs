//! What the program says about itself: completions and manual pages.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use patch_manual::{Manual, Shell};

use super::{Cli, exit, print_as_is};

const MANUAL: Manual = Manual {
    section: "8",
    environment: &[],
    files: &[
        ("/etc/linux_patch_api/config.yaml", "The configuration. Every key is explained in it."),
        ("/etc/linux_patch_api/whitelist.yaml", "Who may connect at all. Missing or empty: nobody."),
        (
            "/etc/linux_patch_api/certs/",
            "ca.pem, server.pem, server.key.pem (root:root 0600; systemd hands it over) and crl.pem.",
        ),
        (
            "/etc/linux_patch_api/ceiling.yaml",
            "The most that this host lets anybody do; absent by default, with an example in the package's documentation.",
        ),
        ("/var/lib/linux_patch_api/jobs/", "The jobs, a file each."),
        ("/var/log/linux_patch_api/audit.log", "The audit trail; rotated files lie beside it."),
        (
            "/var/lib/linux_patch_executor/",
            "The root side's state: journal, archives, ways back. Not for the daemon.",
        ),
        (
            "/usr/libexec/linux-patch-api/patch-executor",
            "The root side, which systemd starts for each operation.",
        ),
    ],
    examples: &[
        (
            "linux-patch-api check-config",
            "Before a start or a reload: is everything acceptable, and can the service's user read it?",
        ),
        ("linux-patch-api status", "How is this host?"),
        ("linux-patch-api audit verify", "Was the audit trail tampered with?"),
        ("linux-patch-api jobs --limit 5 --json", "The last jobs, for a script:"),
        (
            "linux-patch-api pki init /root/pki --server-name web1.internal --client alice",
            "A CA with certificates for a trial:",
        ),
        ("linux-patch-api pki revoke /root/pki alice", "A client of that CA is not to be let in any more:"),
    ],
    see_also: &["linux-patch-host(8)", "patchctl(1)", "systemd.service(5)", "apt-get(8)"],
};

pub(super) fn completions(shell: Shell) -> anyhow::Result<u8> {
    print_as_is(&patch_manual::completions(Cli::command(), shell))?;
    Ok(exit::OK)
}

pub(super) fn man(command: Option<&str>, directory: Option<&Path>) -> anyhow::Result<u8> {
    if let Some(directory) = directory {
        patch_manual::write_pages(Cli::command(), &MANUAL, directory)
            .with_context(|| format!("cannot write the pages into {}", directory.display()))?;
        return Ok(exit::OK);
    }
    let page = patch_manual::page(Cli::command(), &MANUAL, command)?
        .with_context(|| format!("there is no command {}", command.unwrap_or_default()))?;
    print_as_is(&page)?;
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn the_page_has_files_and_exit_codes() {
        let page = patch_manual::page(Cli::command(), &MANUAL, None).unwrap().unwrap();
        for said in ["EXIT STATUS", "FILES", "EXAMPLES", "/etc/linux_patch_api/whitelist.yaml"] {
            assert!(page.contains(said), "{said}: {page}");
        }
    }

    /// The examples of the manual are command lines that the grammar takes.
    #[test]
    fn the_examples_can_be_typed() {
        for (line, _) in MANUAL.examples {
            let parsed = Cli::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }
}
