//! A rehearsal as whoever started it sees it: followed, and ended at any moment.

use std::{
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::Path,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{KEEP, MYSELF, Told, in_place, lines::Lines};
use crate::run::MAX_LINE;

/// How long the report of the keeper may be, in bytes.
const LONGEST: usize = 16 << 20;

/// How long the kernel may take to end all processes of an image.
const TAKING_DOWN: Duration = Duration::from_secs(30);

/// What a rehearsal has told.
#[derive(Debug)]
pub enum Heard {
    /// A line of the commands' output.
    Output(String),
    /// The first command failed, and what mends what it left is run: what is said from here on is said by that.
    Again,
    /// A line of apt's progress.
    Progress(String),
    /// There is an image, and the first command is run.
    Running,
    /// All commands have ended, and the keeper looks at what came of them.
    Ran,
    /// There is no image, and nothing was run: why. After [`Heard::Running`] it is the keeper that could not go on.
    NoImage(String),
    /// What the keeper has seen.
    Report(serde_json::Value),
}

/// A rehearsal under way. When this is dropped, or whoever has it dies, it is over.
#[derive(Debug)]
pub struct Rehearsal {
    keeper: Child,
    _control: Option<ChildStdin>,
    output: Option<ChildStdout>,
    told: Option<ChildStderr>,
    output_lines: Lines,
    told_lines: Lines,
    mark: String,
    init: Option<OwnedFd>,
    is_over: bool,
}

impl Rehearsal {
    /// Starts the keeper, this program's own, with a task of one line, in which this mark is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(root: &Path, task: &serde_json::Value, mark: String) -> io::Result<Self> {
        let program = in_place(std::env::current_exe()?);
        let mut keeper = Command::new(MYSELF)
            .arg0(program)
            .arg("--root")
            .arg(root)
            .arg(KEEP)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .current_dir("/")
            .spawn()?;
        let (mut control, output, told) = (keeper.stdin.take(), keeper.stdout.take(), keeper.stderr.take());
        let mut line = serde_json::to_vec(task)?;
        line.push(b'\n');
        if let Some(control) = &mut control {
            // Who died before he read it says why, or nothing.
            let _ = control.write_all(&line);
        }
        Ok(Self {
            keeper,
            _control: control,
            output,
            told,
            output_lines: Lines::at_most(MAX_LINE),
            told_lines: Lines::at_most(LONGEST),
            mark,
            init: None,
            is_over: false,
        })
    }

    /// Whether there is nothing more to be heard.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.output.is_none() && self.told.is_none()
    }

    /// Waits until something is told, all is over, or `patience` is.
    ///
    /// # Errors
    /// When it cannot be followed any more.
    pub fn wait(&mut self, patience: Duration) -> io::Result<Vec<Heard>> {
        let mut heard = Vec::new();
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let (mut output_is_there, mut told_is_there) = (false, false);
        {
            let mut fds = Vec::with_capacity(2);
            fds.extend(self.output.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            fds.extend(self.told.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) => {
                    let mut fds = fds.iter();
                    if self.output.is_some() {
                        output_is_there = fds.next().is_some_and(ready);
                    }
                    told_is_there = fds.next().is_some_and(ready);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // What was said before the report was made comes before it.
        let mut lines = Vec::new();
        if output_is_there
            && let Some(pipe) = &mut self.output
            && !self.output_lines.read(pipe, &mut lines)?
        {
            self.output = None;
        }
        heard.extend(lines.drain(..).map(|line| said(line, &self.mark)));
        if told_is_there
            && let Some(pipe) = &mut self.told
            && !self.told_lines.read(pipe, &mut lines)?
        {
            self.told = None;
        }
        for line in lines {
            match serde_json::from_str(&line) {
                Ok(Told::Begun { init }) => {
                    let pid = i32::try_from(init).ok().and_then(Pid::from_raw);
                    self.init = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
                }
                Ok(Told::Progress { line }) => heard.push(Heard::Progress(line)),
                Ok(Told::Running) => heard.push(Heard::Running),
                Ok(Told::Ran { .. }) => heard.push(Heard::Ran),
                Ok(Told::NoImage { why }) => heard.push(Heard::NoImage(why)),
                Ok(Told::Report { report }) => heard.push(Heard::Report(report)),
                // Its own last words, if it could not go on.
                Err(_) => heard.push(Heard::Output(line)),
            }
        }
        Ok(heard)
    }

    /// Ends it, and waits until nothing of it is left.
    pub fn end(&mut self) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        // Nobody waits for a reader any more.
        (self.output, self.told, self._control) = (None, None, None);
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let Some(init) = &self.init else { return };
        let until = Instant::now() + TAKING_DOWN;
        // It dies of its parent's death, after everything in the image.
        loop {
            let mut fds = [PollFd::new(init, PollFlags::IN)];
            let second = Timespec { tv_sec: 1, tv_nsec: 0 };
            match poll(&mut fds, Some(&second)) {
                Ok(ready) if ready > 0 => return,
                _ if Instant::now() >= until => return,
                _ => {}
            }
        }
    }
}

/// What a line of the output is.
fn said(line: String, mark: &str) -> Heard {
    if line == mark { Heard::Again } else { Heard::Output(line) }
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::{super::mark, *};

    #[test]
    fn no_script_can_say_that_the_run_is_over() {
        let own = mark().unwrap();
        assert!(matches!(said(own.clone(), &own), Heard::Again));
        for forged in [
            mark().unwrap(),
            format!("{own} "),
            format!("x{own}"),
            "rehearsal ".to_owned(),
            "rehearsal: the run failed; trying once to finish what it left".to_owned(),
        ] {
            assert!(matches!(said(forged.clone(), &own), Heard::Output(line) if line == forged));
        }
    }
}
