//! Running what the configuration names, for a bounded time.

use std::{
    io,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use super::settings::Program;

/// How long a command may take to end after it was asked to.
const PATIENCE: Duration = Duration::from_secs(5);

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command with nothing inherited but where its words go.
#[expect(
    clippy::disallowed_methods,
    reason = "the reboot window runs what root has configured, and systemctl"
)]
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").current_dir("/").stdin(Stdio::null());
    command
}

/// Runs a program of the configuration, with what its environment file sets. It and what it starts are ended when the time is
/// over.
///
/// # Errors
/// When it cannot be started, fails, or takes too long.
pub(super) fn run(
    program: &Program,
    environment: &[(String, String)],
    limit: Duration,
) -> anyhow::Result<()> {
    let (mut command, shown) = match program {
        Program::Line(line) => {
            let mut command = command("/bin/sh");
            command.args(["-c", line]);
            (command, line.clone())
        }
        Program::List(list) => {
            let (first, rest) = list.split_first().context("it is empty")?;
            let mut command = command(first);
            command.args(rest);
            (command, list.join(" "))
        }
    };
    let names = environment.iter().filter(|(name, value)| is_name(name) && !value.contains('\0'));
    command.envs(names.map(|(name, value)| (name, value)));
    // What it says is for the journal, not for whoever reads our answer.
    let errors = io::stderr().as_fd().try_clone_to_owned().context("standard error cannot be shared")?;
    command.stdout(errors);
    let mut child =
        command.process_group(0).spawn().with_context(|| format!("{shown:?} cannot be started"))?;
    let ended = wait(&mut child, limit).and_then(|status| match status {
        Some(status) => Ok(Some(status)),
        None => {
            end(&mut child, Signal::TERM, PATIENCE)?;
            Ok(None)
        }
    });
    // Also what it has left behind of itself, if it did not end by itself.
    if !matches!(ended, Ok(Some(_))) {
        end(&mut child, Signal::KILL, PATIENCE)?;
    }
    match ended? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{shown:?} failed: {status}"),
        None => bail!("{shown:?} took longer than {} s and was ended", limit.as_secs()),
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Signals the whole group, and waits.
fn end(child: &mut Child, signal: Signal, limit: Duration) -> anyhow::Result<()> {
    // It may be gone already.
    let _ = kill_process_group(Pid::from_child(child), signal);
    wait(child, limit).map(drop)
}

/// How the child ended; none if it has not within the time.
fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(child.try_wait()?),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Program {
        Program::Line(text.into())
    }

    #[test]
    fn what_is_configured_is_run_as_it_stands() {
        let long = Duration::from_secs(60);
        run(&line("test \"$SLOT\" = a && test -z \"$CARGO\""), &[("SLOT".into(), "a".into())], long).unwrap();
        run(&Program::List(vec!["/usr/bin/test".into(), "$(x)".into()]), &[("a b".into(), "c".into())], long)
            .unwrap();
        let error = run(&line("exit 3"), &[], long).unwrap_err().to_string();
        assert!(error.contains("exit 3") && error.contains("exit status: 3"), "{error}");
        let error = run(&Program::List(vec!["/nothing".into()]), &[], long).unwrap_err().to_string();
        assert!(error.contains("cannot be started"), "{error}");
    }

    #[test]
    fn what_takes_too_long_is_ended_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", pid.display());
        let error = run(&line(&script), &[], Duration::from_secs(1)).unwrap_err().to_string();
        assert!(error.contains("took longer than 1 s"), "{error}");
        let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        // It was told, and takes a moment.
        let is_there = || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !state.is_empty() && !state.contains(" Z ")
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while is_there() {
            assert!(Instant::now() < deadline, "it is still there");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
