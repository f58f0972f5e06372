//! The loop that keeps a host running: boots it, and boots it again when it asks for a reboot or has lost power.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::guest::ensure_inside;
use crate::holder::children;
use crate::wait;

/// How `systemd-nspawn` says that the host wants to boot again.
const REBOOT: i32 = 133;

/// What the owner wants of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    On,
    Off,
    Gone,
}

/// What is known of the host.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) want: Want,
    pub(crate) boots: u32,
    /// PID 1 of the host as the machine sees it, while the host runs.
    pub(crate) leader: Option<u32>,
    /// How boots have ended, in sentences.
    pub(crate) history: Vec<String>,
    running: bool,
    power_is_cut: bool,
}

/// The state of a host, shared by its owner and the loop.
#[derive(Debug)]
pub(crate) struct Supervision {
    state: Mutex<State>,
    changed: Condvar,
    /// Where the state is told to other processes.
    directory: PathBuf,
}

impl Supervision {
    pub(crate) fn new(directory: PathBuf) -> Arc<Self> {
        let state = State {
            want: Want::On,
            boots: 0,
            leader: None,
            history: Vec::new(),
            running: false,
            power_is_cut: false,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), directory })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn want(&self, want: Want) {
        self.state().want = want;
        self.changed.notify_all();
    }

    /// Ends the host as a loss of power does; what is wanted decides whether it boots again.
    pub(crate) fn cut_power(&self, then: Want) -> Result<()> {
        let leader = {
            let mut state = self.state();
            let leader = state.leader.context("a host that is off cannot lose power")?;
            state.want = then;
            state.power_is_cut = true;
            leader
        };
        let leader =
            i32::try_from(leader).ok().and_then(Pid::from_raw).context("PID 1 of the host has no number")?;
        // Killing systemd-nspawn instead would leave the host running.
        kill_process(leader, Signal::KILL).context("cannot kill PID 1 of the host")
    }

    /// Waits until the host does not run.
    pub(crate) fn wait_off(&self, limit: Duration) -> Result<()> {
        let waited = self
            .changed
            .wait_timeout_while(self.state(), limit, |state| state.running || state.want == Want::On);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            bail!("the host still runs after {} s; it was to be {:?}", limit.as_secs(), state.want);
        }
        Ok(())
    }

    /// The loop; ends when the host is wanted no more. `boot` starts one boot.
    pub(crate) fn supervise(&self, boot: impl Fn() -> Command) {
        while self.wait_wanted() {
            let ended = self.run_once(boot());
            let mut state = self.state();
            state.leader = None;
            state.running = false;
            let cut = std::mem::take(&mut state.power_is_cut);
            let (again, how) = match &ended {
                Ok(_) if cut => (true, "power cut".to_owned()),
                Ok(status) if exit_code(*status) == REBOOT => (true, "reboot".to_owned()),
                Ok(status) if status.success() => (false, "power-off".to_owned()),
                Ok(status) => (false, format!("failed, systemd-nspawn ended with {status}")),
                Err(error) => (false, format!("failed: {error:#}")),
            };
            let sentence = format!("boot {}: {how}", state.boots);
            state.history.push(sentence);
            if !again && state.want == Want::On {
                state.want = Want::Off;
            }
            self.tell(&state);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Waits while the host is to be off; false when it is to be gone.
    fn wait_wanted(&self) -> bool {
        let waited = self.changed.wait_while(self.state(), |state| state.want == Want::Off);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.want == Want::Gone {
            return false;
        }
        state.boots += 1;
        state.running = true;
        self.tell(&state);
        true
    }

    fn run_once(&self, mut command: Command) -> Result<ExitStatus> {
        let mut child =
            command.stdin(Stdio::null()).process_group(0).spawn().context("cannot start systemd-nspawn")?;
        let found = wait::until("the host's PID 1 to start", Duration::from_secs(20), || {
            Ok(match child.try_wait()? {
                Some(_) => Some(None),
                None => find_leader(&child).map(Some),
            })
        });
        match found {
            Ok(leader) => {
                let mut state = self.state();
                state.leader = leader;
                self.tell(&state);
                drop(state);
                self.changed.notify_all();
            }
            Err(error) => {
                child.kill().unwrap_or_default();
                child.wait().map(drop).unwrap_or_default();
                return Err(error);
            }
        }
        let leader = self.state().leader;
        wait_for(&child, || {
            if leader.is_some_and(is_going_down) {
                unstop();
            }
        })?;
        child.wait().context("cannot learn how systemd-nspawn ended")
    }

    /// Lets other processes see the host. A host works without, so that a full disk here is no failure there.
    fn tell(&self, state: &State) {
        fs::write(self.directory.join("boots"), state.boots.to_string()).unwrap_or_default();
        let leader = state.leader.map(|leader| leader.to_string()).unwrap_or_default();
        fs::write(self.directory.join("leader"), leader).unwrap_or_default();
    }
}

/// Waits until a child has ended, and does something now and then `meanwhile`.
fn wait_for(child: &Child, meanwhile: impl Fn()) -> Result<()> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("pidfd_open")?;
    let often = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&often)) {
            Ok(0) | Err(Errno::INTR) => meanwhile(),
            Ok(_) => return Ok(()),
            Err(error) => return Err(error).context("cannot wait for systemd-nspawn"),
        }
    }
}

/// Whether a host has stopped its units and now ends what is left.
fn is_going_down(leader: u32) -> bool {
    fs::read_to_string(format!("/proc/{leader}/comm")).is_ok_and(|name| name.starts_with("systemd-shutdow"))
}

/// What goes down stops all of its processes for a moment. An `nsenter` of ours stops itself when it sees that, as its command
/// might have been stopped at a terminal, and nobody continues it: it would never reap the command, and the host would wait for
/// that.
fn unstop() {
    for pid in children(std::process::id()).into_iter().filter(|pid| state_of(*pid) == Some('T')) {
        let has_work = children(pid).into_iter().any(|below| state_of(below) != Some('Z'));
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| !has_work) {
            // It may have ended meanwhile.
            kill_process(pid, Signal::CONT).unwrap_or_default();
        }
    }
}

/// The letter of a process's state.
fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The code, also when `nsenter` has passed a signal on as its own end.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// PID 1 of the host, below `nsenter`, `unshare` and `systemd-nspawn`: the first process that is number 1 in a
/// namespace, once its root is the host's.
fn find_leader(nsenter: &Child) -> Option<u32> {
    let mut level = children(nsenter.id());
    while !level.is_empty() {
        if let Some(leader) = level.iter().find(|pid| is_first_in_namespace(**pid)) {
            return Some(*leader);
        }
        level = level.into_iter().flat_map(children).collect();
    }
    None
}

fn is_first_in_namespace(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    numbers.split_whitespace().next_back() == Some("1") && ensure_inside(pid).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell that waits for its child as `nsenter` does is stopped when that child has been ended.
    #[test]
    fn who_stopped_itself_over_a_command_that_is_dead_is_continued() {
        let stays = "sleep 1000 & kill -STOP $$; wait";
        let dies = "true & kill -STOP $$; wait";
        let start = |script| Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
        let (mut busy, mut over) = (start(stays), start(dies));
        let is_stopped = |child: &Child, below| {
            let is_as_wanted = |pid| state_of(pid).is_some_and(|state| (state == 'Z') == (below == 'Z'));
            state_of(child.id()) == Some('T') && children(child.id()).into_iter().all(is_as_wanted)
        };
        wait::until("both to be stopped", Duration::from_secs(20), || {
            Ok((is_stopped(&busy, 'S') && is_stopped(&over, 'Z')).then_some(()))
        })
        .unwrap();
        unstop();
        assert!(over.wait().unwrap().success());
        assert_eq!(state_of(busy.id()), Some('T'), "its command may have been stopped by somebody");
        let below = children(busy.id());
        for pid in below.into_iter().chain([busy.id()]) {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
        }
        busy.wait().unwrap();
    }
}
