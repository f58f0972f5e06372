//! `patch-executor`: the root side. One operation a process.
//!
//! It takes one typed request from a Unix socket, answers accept or refuse, and then works on alone: it needs nobody to
//! listen. What it does is journalled before it is done; what happened is appended to an event file that the daemon
//! follows. It never opens a path in a directory that anybody but root can write.

mod back;
mod ceiling;
mod change;
mod checkpoint;
mod clock;
mod connection;
mod decide;
mod events;
mod handover;
mod health;
mod hook;
mod journal;
mod paths;
mod protect;
mod prune;
mod query;
mod reboot;
mod record;
mod rehearse;
mod restarts;
mod server_key;
mod services;
mod settings;
mod settle;
mod shutdown;
mod snapshots;
mod solver;
mod stop;
mod tool;
mod turn;
mod verdict;
mod verify;

use std::{
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::PathBuf,
    process::{Child, ExitCode, Stdio},
};

use anyhow::{Context, bail};
use patch_apply::apt;
use patch_types::JobId;

use crate::paths::Paths;

const HELP: &str = "\
patch-executor: the root side of linux-patch-api

usage: patch-executor [--root DIR] [serve|listen|recover|arrive|hook JOB]

  serve    serve the one connection that is standard input (as systemd's Accept=yes gives it); the default
  listen   make the socket and serve each connection in a process of its own, where there is no systemd
  recover  settle the changes whose executor died: repair, judge, complete or go back; at boot and after a death
  arrive   after a reboot that went back to a snapshot: fetch what the agent wrote until then; before the daemon starts
  hook JOB  compare what apt announces on standard input with what JOB planned; apt runs it under its lock
  --root DIR   work on the system below DIR
  --version    print the version

It is not meant to be run by hand: `linux-patch-api` talks to it.
exit codes: 0 served or refused, 1 could not serve, or apt would do something else, 2 wrong usage";

fn main() -> ExitCode {
    let (paths, mode) = match arguments() {
        Ok(Some(parsed)) => parsed,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patch-executor: {error:#}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    // Before anything is written to what may be replaced by it.
    if matches!(mode, Mode::Serve | Mode::Recover | Mode::Arrive) {
        snapshots::arrive(&paths);
    }
    let result = match mode {
        Mode::Serve => connection::serve(&paths),
        Mode::Listen => listen(&paths),
        Mode::Recover => recover(&paths),
        Mode::Arrive => Ok(()),
        Mode::Snapshots(order) => snapshots::run_helper(&paths, &order),
        Mode::Hook(job) => hook::run(&paths.journal(job)),
        Mode::Check => health::child(),
        Mode::Keeper => rehearse::keeper(&paths),
        Mode::Image { merged, groups } => rehearse::image(&paths, &merged, &groups),
        Mode::Init => apt::rehearse::run().map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patch-executor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

enum Mode {
    Serve,
    Listen,
    Recover,
    Arrive,
    Hook(JobId),
    /// Only for itself; see [`health`].
    Check,
    /// Only for itself; see [`rehearse`].
    Keeper,
    /// Only for itself; see [`snapshots`].
    Snapshots(String),
    Image {
        merged: PathBuf,
        groups: Vec<PathBuf>,
    },
    Init,
}

fn arguments() -> anyhow::Result<Option<(Paths, Mode)>> {
    let mut root = PathBuf::from("/");
    let mut mode = Mode::Serve;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "serve" => mode = Mode::Serve,
            "listen" => mode = Mode::Listen,
            "recover" => mode = Mode::Recover,
            "arrive" => mode = Mode::Arrive,
            snapshots::HELPER => mode = Mode::Snapshots(args.next().context("the order is missing")?),
            "hook" => {
                let job = args.next().context("hook needs the job's id")?;
                mode = Mode::Hook(job.parse().with_context(|| format!("{job:?} is not a job's id"))?);
            }
            "check" => mode = Mode::Check,
            apt::rehearse::KEEP => mode = Mode::Keeper,
            apt::rehearse::ENTER => {
                let merged = args.next().context("the image is missing")?.into();
                mode = Mode::Image { merged, groups: args.by_ref().map(PathBuf::from).collect() };
            }
            apt::rehearse::RUN => mode = Mode::Init,
            "--root" => root = args.next().context("--root needs a directory")?.into(),
            "--help" | "-h" => {
                println!("{HELP}");
                return Ok(None);
            }
            "--version" => {
                println!("patch-executor {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            other => bail!("{other:?} is not understood"),
        }
    }
    if !root.is_absolute() {
        bail!("--root needs an absolute path, not {}", root.display());
    }
    Ok(Some((Paths::below(root), mode)))
}

/// Settles what dead executors left.
fn recover(paths: &Paths) -> anyhow::Result<()> {
    stop::defer().context("cannot defer signals")?;
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let settled = settle::all(paths);
    record::flush(paths);
    settled
}

/// The small supervised listener for systems without socket activation.
fn listen(paths: &Paths) -> anyhow::Result<()> {
    let socket = paths.socket();
    if let Err(error) = std::fs::remove_file(&socket)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove the old socket {}", socket.display()));
    }
    let listener =
        UnixListener::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let mode = match paths::daemon_group() {
        Some(group) => {
            std::os::unix::fs::chown(&socket, None, Some(group.as_raw()))
                .with_context(|| format!("cannot give {} to the daemon's group", socket.display()))?;
            0o660
        }
        None => 0o600,
    };
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", socket.display()))?;
    let program = std::env::current_exe().context("cannot find my own program")?;
    let mut children: Vec<Child> = Vec::new();
    for stream in listener.incoming() {
        children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                eprintln!("patch-executor: cannot accept: {error}");
                continue;
            }
        };
        #[expect(clippy::disallowed_methods, reason = "one process an operation; the program is this one")]
        let child = std::process::Command::new(&program)
            .arg("--root")
            .arg(paths.root())
            .arg("serve")
            .stdin(Stdio::from(OwnedFd::from(stream)))
            .spawn();
        match child {
            Ok(child) => children.push(child),
            Err(error) => eprintln!("patch-executor: cannot start {}: {error}", program.display()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by hand, since there is no grammar that it could be made from.
    #[test]
    fn the_manual_has_every_word_of_the_help() {
        let page = include_str!("../../../packaging/man/patch-executor.8").replace('\\', "");
        let (_, words) = HELP.split_once("\n\n").unwrap().1.split_once("\n\n").unwrap();
        let words: Vec<&str> = words.lines().filter_map(|line| line.strip_prefix("  ")).collect();
        let words: Vec<&str> = words.into_iter().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(words, ["serve", "listen", "recover", "arrive", "hook", "--root", "--version"]);
        for word in words {
            let heading = |macro_: &str| page.contains(&format!("\n.TP\n{macro_} {word}"));
            assert!(heading(".B") || heading(".BI"), "the manual does not explain {word}");
        }
        for code in ["0", "1", "2"] {
            assert!(page.contains(&format!("\n.TP\n.B {code}\n")), "{code}");
        }
    }
}
