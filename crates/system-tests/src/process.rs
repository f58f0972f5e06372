//! Running one process to its end: what it wrote, how it ended, and an error that shows both.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long one command may run unless its caller says otherwise.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// How long the output of a process that has ended may stay open in a descendant that it left running.
const STRAGGLER: Duration = Duration::from_secs(2);

/// What a command wrote and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit status.
    pub status: ExitStatus,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error; bytes that are not UTF-8 are replaced.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The exit code, or none when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// What a command reads.
#[derive(Debug)]
pub(crate) enum Input<'a> {
    Nothing,
    Bytes(&'a [u8]),
    File(File),
}

/// What a command wrote, as bytes.
pub(crate) struct Captured {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl From<Captured> for Output {
    fn from(captured: Captured) -> Self {
        Self {
            status: captured.status,
            stdout: String::from_utf8_lossy(&captured.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&captured.stderr).into_owned(),
        }
    }
}

/// The command line as a person would type it, for messages.
pub(crate) fn argv(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs `command` and gives what it wrote; how it ended is for the caller to judge.
pub(crate) fn run(command: Command, input: Input<'_>, limit: Duration) -> Result<Output> {
    let what = argv(&command);
    capture(command, &what, input, limit).map(Output::from)
}

/// Runs `command`, which must end with 0, and gives its standard output.
pub(crate) fn run_ok(command: Command, input: Input<'_>) -> Result<String> {
    let what = argv(&command);
    let captured = capture(command, &what, input, LIMIT)?;
    Ok(Output::from(require_success(&what, captured)?).stdout)
}

/// Turns an end other than 0 into an error that shows `what` ran and all that it said.
pub(crate) fn require_success(what: &str, captured: Captured) -> Result<Captured> {
    if captured.status.success() {
        return Ok(captured);
    }
    let output = Output::from(captured);
    bail!(
        "`{what}` ended with {}\n--- standard error\n{}\n--- standard output\n{}",
        output.status,
        output.stderr.trim_end(),
        output.stdout.trim_end()
    )
}

/// Runs `command` until it has ended and its output is closed, or `limit` has passed.
pub(crate) fn capture(
    mut command: Command,
    what: &str,
    input: Input<'_>,
    limit: Duration,
) -> Result<Captured> {
    let (stdin, bytes) = match input {
        Input::Nothing => (Stdio::null(), None),
        Input::Bytes(bytes) => (Stdio::piped(), Some(bytes)),
        Input::File(file) => (file.into(), None),
    };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{what}`"))?;
    let mut pipe_in = child.stdin.take();
    std::thread::scope(|scope| {
        if let (Some(mut pipe), Some(bytes)) = (pipe_in.take(), bytes) {
            // A reader that ends early is told by its exit status, not by our broken pipe.
            scope.spawn(move || pipe.write_all(bytes).unwrap_or_default());
        }
        let outcome = collect(&mut child, limit);
        if outcome.is_err() {
            child.kill().unwrap_or_default();
            child.wait().map(drop).unwrap_or_default();
        }
        outcome.with_context(|| format!("`{what}` did not end properly"))
    })
}

fn collect(child: &mut std::process::Child, limit: Duration) -> Result<Captured> {
    let pid = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("pidfd_open")?;
    let mut streams = [
        Stream { pipe: child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Pipe>), bytes: Vec::new() },
        Stream { pipe: child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Pipe>), bytes: Vec::new() },
    ];
    let mut deadline = Instant::now() + limit;
    let mut ended = false;
    while !ended || streams.iter().any(|stream| stream.pipe.is_some()) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if ended {
                break;
            }
            bail!("still running after {} s; killed", limit.as_secs());
        }
        let open: Vec<usize> = (0..streams.len()).filter(|&index| streams[index].pipe.is_some()).collect();
        let ready = wait_for_any(&streams, &open, (!ended).then_some(pid.as_fd()), left)?;
        if ready.exit {
            ended = true;
            deadline = deadline.min(Instant::now() + STRAGGLER);
        }
        for index in ready.pipes {
            let Stream { pipe, bytes } = &mut streams[index];
            let mut buffer = [0; 65536];
            let count = match pipe {
                Some(pipe) => pipe.read(&mut buffer).context("cannot read the output")?,
                None => 0,
            };
            bytes.extend_from_slice(&buffer[..count]);
            if count == 0 {
                *pipe = None;
            }
        }
    }
    let status = child.wait().context("cannot learn how it ended")?;
    let [stdout, stderr] = streams;
    Ok(Captured { status, stdout: stdout.bytes, stderr: stderr.bytes })
}

trait Pipe: Read + AsFd {}
impl<T: Read + AsFd> Pipe for T {}

/// A stream of output: its pipe while that is open, and what came out of it.
struct Stream {
    pipe: Option<Box<dyn Pipe>>,
    bytes: Vec<u8>,
}

struct Ready {
    exit: bool,
    pipes: Vec<usize>,
}

fn wait_for_any(
    streams: &[Stream],
    open: &[usize],
    exit: Option<std::os::fd::BorrowedFd<'_>>,
    left: Duration,
) -> Result<Ready> {
    let pipes = open.iter().filter_map(|&index| streams[index].pipe.as_ref());
    let mut fds: Vec<PollFd<'_>> =
        pipes.map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)).collect();
    if let Some(exit) = exit {
        fds.push(PollFd::from_borrowed_fd(exit, PollFlags::IN));
    }
    let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("poll"),
    }
    let is_ready = |position: usize| fds.get(position).is_some_and(|fd| !fd.revents().is_empty());
    Ok(Ready {
        exit: exit.is_some() && is_ready(open.len()),
        pipes: open
            .iter()
            .enumerate()
            .filter(|(position, _)| is_ready(*position))
            .map(|(_, &index)| index)
            .collect(),
    })
}
