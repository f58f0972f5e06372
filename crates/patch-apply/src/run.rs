//! Running a tool so that nobody's death hurts it.
//!
//! The tool gets its own process group, an empty environment, `/dev/null` as standard input, and *files* as output and
//! progress: a pipe to a reader that dies kills apt in the middle of a transaction. The files are followed by inotify,
//! so a line is seen within milliseconds and an idle tool costs nothing.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    string::FromUtf8Error,
    time::{Duration, Instant},
};

use patch_types::logins;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, flock, inotify},
    io::{FdFlags, fcntl_setfd},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use crate::apt::argv::{Argv, ENVIRONMENT};

/// The longest line that is passed on, in bytes; the rest of a longer one is dropped.
pub const MAX_LINE: usize = 16 * 1024;

/// How much of a tool's output is read at once, and how much of it the disk has to hold, in bytes.
const AT_ONCE: usize = 1 << 20;
const MAX_FILE: u64 = 64 << 20;

/// How much of the end is kept of what the disk does not have to hold, in bytes.
const LAST_WORDS: u64 = 64 << 10;

/// How often the files are looked at when the kernel has no notification left to give.
const BLIND: Duration = Duration::from_millis(20);

/// A tool could not be run or followed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// Its path.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file of the run could not be made or read.
    #[error("cannot use {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused what following needs.
    #[error("cannot follow {program}: {source}")]
    Follow {
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The tool took longer than it may.
    #[error("{program} did not end within {limit:?}")]
    Slow {
        /// The program.
        program: &'static str,
        /// The limit.
        limit: Duration,
    },
}

/// A line that a running tool wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// To its standard output or error.
    Output(String),
    /// To its progress descriptor.
    Status(String),
}

/// A running tool.
#[derive(Debug)]
pub struct Running {
    program: &'static str,
    child: Child,
    /// Both only make waiting prompt; without them the files are looked at now and then.
    pidfd: Option<OwnedFd>,
    inotify: Option<OwnedFd>,
    output: Tail,
    status: Tail,
    exited: Option<ExitStatus>,
    /// Whether it has written more than was read.
    behind: bool,
}

/// Starts a tool with its output appended to `output` and its progress to `status`.
///
/// With `reports` the tool writes progress: `argv` is made from the number of the descriptor on which the tool finds its progress file; it is inherited by
/// number, which is safe because the root side has one thread.
///
/// # Errors
/// When a file cannot be made or the program not be started.
pub fn start(
    argv: impl FnOnce(i32) -> Argv,
    directory: &Path,
    output: &Path,
    status: &Path,
    reports: bool,
) -> Result<Running, RunError> {
    let append = |path: &Path| {
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| RunError::File { path: path.to_owned(), source })
    };
    let (out, progress) = (append(output)?, append(status)?);
    let skip =
        |path: &Path| Tail::at_end(path).map_err(|source| RunError::File { path: path.to_owned(), source });
    let (output_tail, status_tail) = (skip(output)?, skip(status)?);
    let argv = argv(progress.as_raw_fd());
    let program = argv.program;
    let follow = |source: rustix::io::Errno| RunError::Follow { program, source: source.into() };
    let inotify = watch(&[output, status]).ok();
    if reports {
        // As long as this lock is held, the tool lives: it goes with the tool, not with us. See `is_alive`. apt closes
        // the descriptor for what it starts; dpkg would hand it on to daemons of maintainer scripts.
        flock(&progress, FlockOperation::NonBlockingLockExclusive).map_err(follow)?;
        fcntl_setfd(&progress, FdFlags::empty()).map_err(follow)?;
    }
    let clone = out.try_clone().map_err(|source| RunError::File { path: output.to_owned(), source })?;
    let child = command(&argv)
        .current_dir(directory)
        .stdout(Stdio::from(out))
        .stderr(Stdio::from(clone))
        .spawn()
        .map_err(|source| RunError::Start { program, source })?;
    drop(progress);
    let pidfd = pidfd_of(&child).ok();
    Ok(Running {
        program,
        child,
        pidfd,
        inotify,
        output: output_tail,
        status: status_tail,
        exited: None,
        behind: false,
    })
}

fn watch(paths: &[&Path]) -> Result<OwnedFd, rustix::io::Errno> {
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    for path in paths {
        inotify::add_watch(&inotify, *path, inotify::WatchFlags::MODIFY)?;
    }
    Ok(inotify)
}

/// In the environment of every tool, and so of what it starts: the change that it works for.
pub const JOB: &str = "LINUX_PATCH_JOB";

/// Whether a process works for a change, by its environment.
#[must_use]
pub fn is_of_job(pid: u32, job: &str) -> bool {
    let wanted = format!("{JOB}={job}");
    std::fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|text| text.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()))
}

/// Whether a tool that was started with this progress file still lives, whoever started it.
#[must_use]
pub fn is_alive(status: &Path) -> bool {
    let Ok(file) = File::open(status) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

pub(crate) fn command(argv: &Argv) -> Command {
    let mut command = Command::new(argv.program);
    command
        .args(&argv.args)
        .env_clear()
        .envs(ENVIRONMENT.iter().copied())
        .envs(argv.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .process_group(0);
    command
}

pub(crate) fn pidfd_of(child: &Child) -> Result<OwnedFd, rustix::io::Errno> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
    pidfd_open(pid, PidfdFlags::empty())
}

impl Running {
    /// The tool's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, once it has and all that it wrote has been read.
    #[must_use]
    pub fn ended(&self) -> Option<ExitStatus> {
        self.exited.filter(|_| !self.behind)
    }

    /// Waits until there are new lines, the tool has ended, or `patience` is over, and returns the lines.
    ///
    /// # Errors
    /// When a file cannot be read any more.
    pub fn wait(&mut self, patience: Duration) -> Result<Vec<Line>, RunError> {
        let program = self.program;
        let lost = |source: io::Error| RunError::Follow { program, source };
        if self.exited.is_none() {
            let patience = if self.behind {
                Duration::ZERO
            } else if self.pidfd.is_none() || self.inotify.is_none() {
                patience.min(BLIND)
            } else {
                patience
            };
            let timeout = Timespec {
                tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(patience.subsec_nanos()),
            };
            let mut fds: Vec<PollFd<'_>> = [&self.inotify, &self.pidfd]
                .into_iter()
                .flatten()
                .map(|fd| PollFd::new(fd, PollFlags::IN))
                .collect();
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(lost(error.into())),
            }
            self.drain();
            // Asked before the files are read, so that nothing written before the end is missed.
            self.exited = self.child.try_wait().map_err(lost)?;
        }
        let mut lines = Vec::new();
        let finished = self.exited.is_some();
        let output = self.output.read(finished, |line| lines.push(Line::Output(line))).map_err(lost)?;
        let status = self.status.read(finished, |line| lines.push(Line::Status(line))).map_err(lost)?;
        self.behind = !(output && status);
        Ok(lines)
    }

    fn drain(&self) {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
        let Some(inotify) = &self.inotify else { return };
        let mut reader = inotify::Reader::new(inotify.as_fd(), &mut buffer);
        while reader.next().is_ok() {}
    }

    /// Waits for the tool's end without following it.
    ///
    /// # Errors
    /// Those of waiting.
    pub fn outlast(mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Asks the tool and its children to end, or with `force` ends them. Only for tools that change nothing: downloads
    /// and reads.
    pub fn terminate(&self, force: bool) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = kill_process_group(pid, if force { Signal::KILL } else { Signal::TERM });
        }
    }
}

/// Reads what has been appended to a file, line by line.
#[derive(Debug)]
struct Tail {
    file: File,
    partial: Vec<u8>,
    overlong: bool,
}

impl Tail {
    fn at_end(path: &Path) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).open(path)?;
        io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        Ok(Self { file, partial: Vec::new(), overlong: false })
    }

    /// Reads on, within bounds, and says whether that was all there is. A last line without an end counts when the tool
    /// has `finished`.
    fn read(&mut self, finished: bool, mut line: impl FnMut(String)) -> io::Result<bool> {
        let length = self.file.metadata()?.len();
        if length > MAX_FILE {
            // What it said last says what became of it.
            let mut last = Vec::new();
            let read = io::Seek::stream_position(&mut self.file)?;
            // What has been read is not said again.
            let from = read.max(length.saturating_sub(LAST_WORDS));
            io::Seek::seek(&mut self.file, io::SeekFrom::Start(from))?;
            (&self.file).take(LAST_WORDS).read_to_end(&mut last)?;
            // The tool appends, so it goes on at the new end.
            self.file.set_len(0)?;
            io::Seek::rewind(&mut self.file)?;
            let mut whole = 0;
            if from > read {
                self.flush(&mut line);
                line("[there was so much output that a part of it was not kept]".to_owned());
                whole = last.iter().position(|byte| *byte == b'\n').map_or(last.len(), |end| end + 1);
            }
            self.feed(last.get(whole..).unwrap_or_default(), &mut line);
        }
        let mut buffer = [0; 8192];
        let mut taken = 0;
        // One that prints faster than it is read must not keep its reader from looking at the clock.
        while taken < AT_ONCE {
            let n = self.file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            taken += n;
            self.feed(buffer.get(..n).unwrap_or_default(), &mut line);
        }
        let is_drained = taken < AT_ONCE;
        if finished && is_drained {
            self.flush(&mut line);
        }
        Ok(is_drained)
    }

    fn feed(&mut self, bytes: &[u8], line: &mut impl FnMut(String)) {
        for &byte in bytes {
            match byte {
                // Progress bars use a carriage return as a line's end.
                b'\n' | b'\r' => self.flush(line),
                _ if self.partial.len() >= MAX_LINE => self.overlong = true,
                _ => self.partial.push(byte),
            }
        }
    }

    fn flush(&mut self, line: &mut impl FnMut(String)) {
        if !self.partial.is_empty() {
            let text = String::from_utf8_lossy(&self.partial);
            line(shown(text.into_owned(), self.overlong));
        }
        self.partial.clear();
        self.overlong = false;
    }
}

/// A line, or the beginning of one that is too long, without the passwords of sources and proxies.
pub(crate) fn shown(text: String, overlong: bool) -> String {
    if overlong { format!("{}…", logins::hidden_in_beginning(&text)) } else { without_logins(text) }
}

/// Passwords of sources and proxies, which a tool may repeat, go no further.
fn without_logins(text: String) -> String {
    match logins::hidden(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(hidden) => hidden,
    }
}

/// What a tool that only reads has said.
#[derive(Debug, Clone)]
pub struct Captured {
    /// Its exit code; absent when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Captured {
    /// Output and error as one text, for classification.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs a tool that only reads and returns what it said. Its death or ours harms nothing, so it gets pipes.
///
/// # Errors
/// When it cannot be started, or does not end within `limit` (it is ended then).
pub fn capture(argv: &Argv, limit: Duration) -> Result<Captured, RunError> {
    let program = argv.program;
    let follow = |source: io::Error| RunError::Follow { program, source };
    let mut child = command(argv)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| RunError::Start { program, source })?;
    let pidfd = pidfd_of(&child).map_err(|errno| follow(errno.into()))?;
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    for fd in [out.as_ref().map(AsFd::as_fd), err.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
        rustix::io::ioctl_fionbio(fd, true).map_err(|errno| follow(errno.into()))?;
    }
    let deadline = Instant::now() + limit;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut has_ended = false;
    while !has_ended {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            child.wait().map_err(follow)?;
            return Err(RunError::Slow { program, limit });
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        {
            let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(3);
            if let Some(out) = &out {
                fds.push(PollFd::new(out, PollFlags::IN));
            }
            if let Some(err) = &err {
                fds.push(PollFd::new(err, PollFlags::IN));
            }
            // One that has closed both need not end soon.
            let is_mute = fds.is_empty();
            if is_mute {
                fds.push(PollFd::new(&pidfd, PollFlags::IN));
            }
            match poll(&mut fds, Some(&timeout)) {
                Ok(ready) => has_ended = is_mute && ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(follow(errno.into())),
            }
        }
        if out.as_mut().is_some_and(|pipe| drain_pipe(pipe, &mut stdout)) {
            out = None;
        }
        if err.as_mut().is_some_and(|pipe| drain_pipe(pipe, &mut stderr)) {
            err = None;
        }
    }
    let status = child.wait().map_err(follow)?;
    let text = |bytes: Vec<u8>| {
        let lossy = |e: FromUtf8Error| String::from_utf8_lossy(e.as_bytes()).into_owned();
        without_logins(String::from_utf8(bytes).unwrap_or_else(lossy))
    };
    Ok(Captured { code: status.code(), stdout: text(stdout), stderr: text(stderr) })
}

/// The most that a captured stream may hold, in bytes; the rest is read and dropped.
const MAX_CAPTURE: usize = 64 * 1024 * 1024;

/// Whether the pipe has come to its end.
fn drain_pipe(pipe: &mut impl Read, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 65536];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return true,
            Ok(n) if into.len() < MAX_CAPTURE => into.extend_from_slice(buffer.get(..n).unwrap_or_default()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
}

/// Runs a tool that only reads and hands its standard output on as it comes, whatever its size.
///
/// # Errors
/// When it cannot be started, when it fails (with what it said), or when the reader fails, of which it hears by a
/// closed pipe.
pub fn read(argv: &Argv, reader: impl FnOnce(&mut dyn Read) -> io::Result<()>) -> Result<(), RunError> {
    let program = argv.program;
    let follow = |source: io::Error| RunError::Follow { program, source };
    let mut child = command(argv)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| RunError::Start { program, source })?;
    let mut result = Ok(());
    if let Some(mut out) = child.stdout.take() {
        result = reader(&mut out);
    }
    // Errors of a tool that only reads fit into a pipe.
    let mut said = Vec::new();
    if let Some(err) = child.stderr.take() {
        let _ = err.take(4096).read_to_end(&mut said);
    }
    let status = child.wait().map_err(follow)?;
    if status.success() || (result.is_err() && said.is_empty()) {
        return result.map_err(follow);
    }
    let said = String::from_utf8_lossy(&said).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(follow(io::Error::other(if said.is_empty() { status.to_string() } else { said })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Argv {
        Argv::new("/bin/sh", vec!["-c".into(), script.into()])
    }

    fn follow(argv: impl FnOnce(i32) -> Argv) -> (Vec<Line>, Option<i32>) {
        let dir = tempfile::tempdir().unwrap();
        let mut running =
            start(argv, dir.path(), &dir.path().join("out"), &dir.path().join("status"), true).unwrap();
        let mut lines = Vec::new();
        while running.ended().is_none() {
            lines.extend(running.wait(Duration::from_secs(5)).unwrap());
        }
        lines.extend(running.wait(Duration::ZERO).unwrap());
        (lines, running.ended().and_then(|s| s.code()))
    }

    #[test]
    fn lines_of_both_files_arrive_and_the_exit_code_with_them() {
        let (lines, code) =
            follow(|fd| shell(&format!("echo one; echo two >&2; echo dl >&{fd}; printf last; exit 7")));
        assert_eq!(code, Some(7));
        for text in ["one", "two", "last"] {
            assert!(lines.contains(&Line::Output(text.into())), "{lines:?}");
        }
        assert!(lines.contains(&Line::Status("dl".into())));
    }

    #[test]
    fn passwords_in_addresses_go_no_further() {
        let (lines, _) =
            follow(|fd| shell(&format!("echo Err:1 https://me:s3cret@h x; echo http://t0ken@h >&{fd}")));
        assert!(lines.contains(&Line::Output("Err:1 https://***@h x".into())), "{lines:?}");
        assert!(lines.contains(&Line::Status("http://***@h".into())), "{lines:?}");
        // Too long, and cut within the password.
        let long = "x".repeat(MAX_LINE - 16);
        let (lines, _) = follow(|_| shell(&format!("echo '{long} https://me:s3cret@h'")));
        assert!(lines.contains(&Line::Output(format!("{long} https://***…"))), "{lines:?}");
        let said =
            capture(&shell("echo https://me:s3cret@h; echo ftp://me:s3cret@h >&2"), Duration::from_secs(20));
        assert_eq!(said.unwrap().text(), "https://***@h\nftp://***@h\n");
    }

    #[test]
    fn one_that_prints_without_end_takes_neither_memory_nor_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (out, status) = (dir.path().join("out"), dir.path().join("status"));
        // 160 MB, faster than it can be read.
        let script = "exec head -c 160000000 /dev/zero | tr '\\0' '\\n'; echo last";
        let mut running = start(|_| shell(script), dir.path(), &out, &status, true).unwrap();
        let mut said = None;
        let mut longest = 0;
        while running.ended().is_none() {
            let lines = running.wait(Duration::from_secs(5)).unwrap();
            longest = longest.max(lines.len());
            let length = std::fs::metadata(&out).unwrap().len();
            assert!(length <= 3 * MAX_FILE, "{length} bytes on the disk");
            said = lines.into_iter().last().or(said);
        }
        assert!(longest <= 3 * AT_ONCE, "{longest} lines at once");
        assert_eq!(said, Some(Line::Output("last".into())));
    }

    #[test]
    fn nothing_of_our_environment_or_input_reaches_the_tool() {
        let (lines, _) = follow(|_| shell("cat; env | cut -d= -f1 | sort | tr '\\n' ' '"));
        let Some(Line::Output(names)) = lines.first() else { panic!("no output") };
        for name in names.split_whitespace() {
            let known = ENVIRONMENT.iter().any(|(n, _)| *n == name)
                || ["PWD", "SHLVL", "_", "OLDPWD"].contains(&name);
            assert!(known, "{name} was passed on");
        }
    }

    #[test]
    fn a_tool_can_be_signalled_and_told_alive_by_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let (out, status) = (dir.path().join("out"), dir.path().join("status"));
        let script = "grep SigBlk /proc/self/status; read x < fifo";
        assert!(
            std::process::Command::new("mkfifo").arg(dir.path().join("fifo")).status().unwrap().success()
        );
        let mut running = start(|_| shell(script), dir.path(), &out, &status, true).unwrap();
        let mut lines = Vec::new();
        while lines.is_empty() {
            lines = running.wait(Duration::from_secs(5)).unwrap();
        }
        assert_eq!(
            lines,
            [Line::Output("SigBlk:\t0000000000000000".into())],
            "a blocked signal was inherited"
        );
        assert!(is_alive(&status));
        running.terminate(false);
        while running.ended().is_none() {
            running.wait(Duration::from_secs(5)).unwrap();
        }
        assert!(!is_alive(Path::new("/nonexistent")));
        // What another test starts just then inherits the descriptor, which the root side's one thread rules out.
        let deadline = Instant::now() + Duration::from_secs(20);
        while is_alive(&status) {
            assert!(Instant::now() < deadline, "it is still taken for alive");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn an_endless_line_is_bounded() {
        let (lines, _) = follow(|_| shell("head -c 100000 /dev/zero | tr '\\0' x; echo; echo after"));
        let Some(Line::Output(long)) = lines.first() else { panic!("no output") };
        assert!(long.len() < MAX_LINE + 8 && long.ends_with('…'));
        assert!(lines.contains(&Line::Output("after".into())));
    }

    #[test]
    fn captured_tools_are_ended_when_they_are_slow() {
        let slow = capture(&shell("echo x; exec sleep 600"), Duration::from_millis(50));
        assert!(matches!(slow, Err(RunError::Slow { .. })));
        let mute = capture(&shell("exec sleep 600 >&- 2>&-"), Duration::from_millis(50));
        assert!(matches!(mute, Err(RunError::Slow { .. })));
        let quick = capture(&shell("echo x; echo y >&2; exit 3"), Duration::from_secs(20)).unwrap();
        assert_eq!((quick.code, quick.stdout.as_str(), quick.stderr.as_str()), (Some(3), "x\n", "y\n"));
    }
}
