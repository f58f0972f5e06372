//! Holding a shutdown up while packages are changed: an inhibitor lock of systemd-logind.
//!
//! `systemd-inhibit` holds the lock for as long as the program that it runs, here a `cat` that ends with its standard
//! input. That is a pipe whose other end this process alone has, closed for whatever it executes: so the lock goes with
//! this process, however that ends, and no daemon that a maintainer script leaves behind can keep it.

use std::{
    io::{self, Read},
    path::Path,
    process::{Child, ChildStdin, Stdio},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    apt::argv::Argv,
    run::{RunError, command, pidfd_of},
};

/// How long the holder may take to end once it is let go, before it is ended. It takes longer only while it still waits
/// for an answer that does not come.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// How much of what it says is kept, in bytes.
const MAX_SAID: u64 = 2048;

/// A shutdown that is held up until this is dropped.
#[derive(Debug)]
pub struct Inhibitor {
    child: Child,
    /// The lock is held while this is open.
    hold: Option<ChildStdin>,
    patience: Timespec,
}

fn argv(why: &str) -> Argv {
    let args = [
        "--what=shutdown:sleep",
        "--mode=block",
        "--who=linux-patch-api",
        &format!("--why={why}"),
        "/bin/cat",
    ];
    Argv::new("/usr/bin/systemd-inhibit", args.map(str::to_owned).to_vec())
}

impl Inhibitor {
    /// Asks for shutdown and sleep to be held up; `why` is what people are told who try. Does not wait for the answer: see
    /// [`refusal`](Self::refusal). None where systemd does not run, since nobody could be asked.
    ///
    /// # Errors
    /// When there is nothing to ask with.
    pub fn ask(why: &str) -> Result<Option<Self>, RunError> {
        // As sd_booted(3) has it.
        if !Path::new("/run/systemd/system").is_dir() {
            return Ok(None);
        }
        Self::start(&argv(why)).map(Some)
    }

    fn start(argv: &Argv) -> Result<Self, RunError> {
        let mut child = command(argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| RunError::Start { program: argv.program, source })?;
        Ok(Self { hold: child.stdin.take(), child, patience: PATIENCE })
    }

    /// Why nothing is held up, once that is known: whoever holds the lock ends only when it is refused, or is ended.
    pub fn refusal(&mut self) -> Option<String> {
        let status = match self.child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status,
            Err(error) => return Some(error.to_string()),
        };
        let said = self.said().unwrap_or_default();
        Some(if said.is_empty() { format!("systemd-inhibit ended: {status}") } else { said })
    }

    /// What it has said so far, as one line.
    fn said(&mut self) -> io::Result<String> {
        let Some(stderr) = self.child.stderr.take() else { return Ok(String::new()) };
        // Something that it left behind might keep the other end open.
        rustix::io::ioctl_fionbio(&stderr, true)?;
        let mut said = Vec::new();
        match stderr.take(MAX_SAID).read_to_end(&mut said) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        Ok(String::from_utf8_lossy(&said).split_whitespace().collect::<Vec<_>>().join(" "))
    }

    fn ends_by_itself(&self) -> bool {
        let Ok(pidfd) = pidfd_of(&self.child) else { return false };
        matches!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&self.patience)), Ok(1..))
    }
}

impl Drop for Inhibitor {
    fn drop(&mut self) {
        drop(self.hold.take());
        if !self.ends_by_itself() {
            // It may have ended meanwhile.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::run;

    fn shell(script: &str) -> Argv {
        Argv::new("/bin/sh", vec!["-c".into(), script.into()])
    }

    fn wait_for(wish: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !wish() {
            assert!(Instant::now() < deadline, "waited in vain");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn it_is_asked_for_by_its_name_and_reason() {
        let argv = argv("job 1; $(x)");
        assert_eq!(argv.program, "/usr/bin/systemd-inhibit");
        assert_eq!(
            argv.args,
            [
                "--what=shutdown:sleep",
                "--mode=block",
                "--who=linux-patch-api",
                "--why=job 1; $(x)",
                "/bin/cat"
            ]
        );
    }

    #[test]
    fn it_is_held_until_dropped_whatever_was_started_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let (held, ended) = (dir.path().join("held"), dir.path().join("ended"));
        let holds = format!("echo >{}; /bin/cat; echo >{}", held.display(), ended.display());
        let mut inhibitor = Inhibitor::start(&shell(&holds)).unwrap();
        // Long on a machine under load, and ample for one that never ends.
        inhibitor.patience.tv_sec = 20;
        wait_for(|| held.exists());
        // A maintainer script's daemon: it lives on with all that it inherited.
        assert!(
            std::process::Command::new("mkfifo").arg(dir.path().join("fifo")).status().unwrap().success()
        );
        let (out, status) = (dir.path().join("out"), dir.path().join("status"));
        let mut daemon =
            run::start(|_| shell("echo up; read x <fifo"), dir.path(), &out, &status, true).unwrap();
        while daemon.wait(Duration::from_secs(5)).unwrap().is_empty() {}
        assert!(inhibitor.refusal().is_none() && !ended.exists());
        let pid = inhibitor.child.id();
        drop(inhibitor);
        assert!(ended.exists(), "it did not end by itself");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it was not reaped");
        assert!(daemon.ended().is_none());
        daemon.terminate(true);
        while daemon.ended().is_none() {
            daemon.wait(Duration::from_secs(5)).unwrap();
        }
    }

    #[test]
    fn a_refusal_is_told_in_its_own_words() {
        let refused = |script: &str| {
            let mut inhibitor = Inhibitor::start(&shell(script)).unwrap();
            wait_for(|| {
                std::fs::read_to_string(format!("/proc/{}/stat", inhibitor.child.id()))
                    .is_ok_and(|stat| stat.contains(") Z "))
            });
            inhibitor.refusal()
        };
        let said = refused("echo 'Failed to inhibit: nobody' >&2; echo is there >&2; exit 1");
        assert_eq!(said.as_deref(), Some("Failed to inhibit: nobody is there"));
        assert!(refused("exit 1").unwrap().contains("exit status: 1"));
        // What it left behind holds nobody up.
        let said = refused("echo no >&2; sleep 2 & exit 1");
        assert_eq!(said.as_deref(), Some("no"));
    }

    #[test]
    fn one_that_gets_no_answer_is_ended() {
        let inhibitor = Inhibitor::start(&shell("exec sleep 600")).unwrap();
        let pid = inhibitor.child.id();
        let begun = Instant::now();
        drop(inhibitor);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn what_cannot_be_started_is_an_error() {
        let missing = Inhibitor::start(&Argv::new("/nowhere/systemd-inhibit", Vec::new()));
        assert!(matches!(missing, Err(RunError::Start { .. })));
    }
}
