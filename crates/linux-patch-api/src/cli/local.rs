//! Commands that read this host's files: `jobs`, `status`; and the one that makes certificates.

use std::{
    io::ErrorKind,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Subcommand;
use patch_service::pki::{self, Existing};
use patch_types::{api::Job, terminal};
use serde::Deserialize;

use super::{exit, print, print_json};
use crate::{
    audit,
    config::{LOG_DIR, STATE_DIR},
    inventory::host,
};

/// What this program reads of a job's file: the job as lists show it.
#[derive(Deserialize)]
struct Kept {
    job: Job,
}

/// The jobs on disk, newest first, and how many files could not be read. Job ids sort by age.
fn kept_jobs(root: &Path) -> anyhow::Result<(Vec<Job>, usize)> {
    let directory = root.join(STATE_DIR).join("jobs");
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(e) => {
            return Err(e).with_context(|| {
                format!("cannot read {}; run this as root or as linux-patch-api", directory.display())
            });
        }
    };
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
    paths.sort();
    let mut damaged = 0;
    let mut jobs = Vec::new();
    for path in paths.iter().rev() {
        let job = std::fs::read(path).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
        match job {
            Some(kept) => jobs.push(kept.job),
            None => damaged += 1,
        }
    }
    Ok((jobs, damaged))
}

pub(super) fn jobs(root: &Path, limit: usize, json: bool) -> anyhow::Result<u8> {
    let (mut jobs, damaged) = kept_jobs(root)?;
    let total = jobs.len();
    jobs.truncate(limit);
    if json {
        print_json(&serde_json::json!({ "jobs": jobs, "total": total, "damaged": damaged }))?;
        return Ok(exit::OK);
    }
    let mut rows = vec![["ID", "KIND", "STATUS", "OUTCOME", "CREATED", "BY", "ERROR"].map(str::to_owned)];
    rows.extend(jobs.into_iter().map(|job| {
        [
            job.job_id.to_string(),
            job.kind,
            job.status.to_string(),
            job.outcome.map_or_else(|| "-".to_owned(), |o| o.to_string()),
            format!("{:.0}", job.created_at),
            job.requested_by.identity,
            job.error.and_then(|e| e.lines().next().map(str::to_owned)).unwrap_or_default(),
        ]
    }));
    let mut text = table(&rows);
    if total + 1 > rows.len() {
        text.push_str(&format!("{} of {total} jobs; --limit shows more\n", rows.len() - 1));
    }
    if damaged > 0 {
        text.push_str(&format!("{damaged} files of jobs cannot be read\n"));
    }
    print(&text)?;
    Ok(exit::OK)
}

/// Columns as wide as their widest cell; the last one as it comes. What stands in the cells is the network side's and the
/// packages', and whoever reads this may be root.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> =
        rows.iter().map(|row| row.each_ref().map(|cell| terminal::line(cell).into_owned())).collect();
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

pub(super) fn status(root: &Path, json: bool) -> anyhow::Result<u8> {
    let info = host::info(root);
    let database = patch_backends::apt::Database::read_for_list(root);
    let (packages, broken) = match &database {
        Ok(database) => (Some(database.len()), database.audit().len()),
        Err(_) => (None, 0),
    };
    // Who may not read the jobs may still know the rest.
    let jobs = kept_jobs(root).map(|(jobs, _)| jobs);
    let active = jobs.as_ref().ok().map(|jobs| jobs.iter().filter(|j| !j.status.is_terminal()).count());
    let config = crate::config::load(root).err().map(|e| e.to_string());
    let log = root.join(LOG_DIR);
    let set_aside = std::fs::read_dir(&log).map(|_| audit::set_aside(root));
    if json {
        let report = serde_json::json!({
            "system": info,
            "packages": packages,
            "broken": broken,
            "jobs": jobs.as_ref().ok().map(Vec::len),
            "active_jobs": active,
            "config_error": config,
            "state": root.join(STATE_DIR),
            "log": log,
            "trail_set_aside": set_aside.as_ref().ok().map(|aside| &aside.files),
            "acknowledgements_error": set_aside.as_ref().ok().and_then(|aside| aside.unread.as_ref()),
        });
        print_json(&report)?;
        return Ok(exit::OK);
    }
    let trail = match &set_aside {
        Ok(aside) => {
            let mut found = if aside.files.is_empty() {
                "nothing of it was set aside".to_owned()
            } else {
                format!(
                    "found damaged and set aside: {}; see: linux-patch-api audit verify",
                    aside.files.iter().map(|name| terminal::line(name)).collect::<Vec<_>>().join(", ")
                )
            };
            found.extend(aside.unread.iter().map(|why| format!("; {}", terminal::line(why))));
            found
        }
        Err(error) => format!("{}: {error}", log.display()),
    };
    let unknown = || "unknown".to_owned();
    let time = |at: Option<jiff::Timestamp>| at.map_or_else(|| "never".to_owned(), |at| format!("{at:.0}"));
    let reboot = if info.pending_reboot {
        format!("due: {}", info.reboot_reasons.join("; "))
    } else {
        "not due".to_owned()
    };
    let rows = [
        ["host", &info.hostname].map(str::to_owned),
        ["system".to_owned(), format!("{} {} ({})", info.os, info.os_version, info.architecture)],
        ["kernel".to_owned(), info.kernel],
        ["agent".to_owned(), info.agent_version],
        ["configuration".to_owned(), config.unwrap_or_else(|| "valid".to_owned())],
        ["packages".to_owned(), packages.map_or_else(unknown, |n| format!("{n}, {broken} broken"))],
        ["indexes fetched".to_owned(), time(info.last_update_check)],
        ["packages changed".to_owned(), time(info.last_update_apply)],
        ["reboot".to_owned(), reboot],
        ["audit trail".to_owned(), trail],
        [
            "jobs".to_owned(),
            jobs.map_or_else(
                |e| e.to_string(),
                |jobs| format!("{}, {} active", jobs.len(), active.unwrap_or(0)),
            ),
        ],
    ];
    print(&table(&rows))?;
    Ok(exit::OK)
}

#[derive(Debug, Subcommand)]
pub(super) enum PkiCommand {
    /// Make a CA, a server certificate, client certificates and an empty revocation list.
    Init {
        /// Where to put them; must not hold any yet.
        directory: PathBuf,
        /// A name of the server; may be repeated.
        #[arg(long = "server-name", value_name = "NAME")]
        server_names: Vec<String>,
        /// An address of the server; may be repeated.
        #[arg(long = "server-ip", value_name = "ADDRESS")]
        server_ips: Vec<IpAddr>,
        /// The common name of a client; may be repeated.
        #[arg(long = "client", value_name = "NAME")]
        clients: Vec<String>,
    },
    /// Revoke certificates that a CA of `pki init` has signed: writes its crl.pem anew, with the next number.
    Revoke {
        /// Where the CA is.
        directory: PathBuf,
        /// Clients' common names, or `server`: the certificates NAME.pem that lie there.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Write a CA's crl.pem anew, with the next number and a year from now, revoking what it revoked before.
    Crl {
        /// Where the CA is.
        directory: PathBuf,
    },
    /// Make one more client certificate with a CA that `pki init` made.
    Client {
        /// Where the CA is.
        directory: PathBuf,
        /// The client's common name.
        name: String,
    },
}

/// Writes the revocation list anew, and says what is in it and how it gets onto a host.
fn revocations(directory: &Path, revoke: &[String]) -> anyhow::Result<u8> {
    let facts = pki::write_crl(directory, revoke)?;
    let path = directory.join("crl.pem").display().to_string();
    let number = facts.number.as_deref().and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let number = number.map_or_else(String::new, |number| format!(" number {number},"));
    let until = facts.next_update.map_or_else(String::new, |until| format!(", good until {until:.0}"));
    let count = match facts.revoked.len() {
        1 => "1 certificate revoked".to_owned(),
        count => format!("{count} certificates revoked"),
    };
    print(&format!(
        "{path}:{number} {count}{until}\n\
         It takes effect where it is put: patchctl crl put {path}, or on the host\n\
         install -m 644 {path} /etc/linux_patch_api/certs/crl.pem && systemctl reload linux-patch-api\n"
    ))?;
    Ok(exit::OK)
}

pub(super) fn pki(command: PkiCommand) -> anyhow::Result<u8> {
    let report = match command {
        PkiCommand::Init { directory, server_names, server_ips, clients } => {
            pki::init(&directory, &server_names, &server_ips, &clients, Existing::Keep)?
        }
        PkiCommand::Client { directory, name } => pki::add_client(&directory, &name, Existing::Keep)?,
        PkiCommand::Revoke { directory, names } => return revocations(&directory, &names),
        PkiCommand::Crl { directory } => return revocations(&directory, &[]),
    };
    let text: String = report.files.iter().map(|f| format!("{}\n", f.display())).collect();
    print(&text)?;
    Ok(exit::OK)
}
