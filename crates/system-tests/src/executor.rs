//! The root side without its daemon: the real `patch-executor` in a throw-away root, spoken to through its socket.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use patch_types::event::{Ended, QueryResult};
use patch_types::executor::{
    EVENTS_DIR, Limits, PROTOCOL, Reply, Request, RequestBody, SOCKET, STATE_DIR, body_length, decode, encode,
};
use patch_types::{
    ChangeOptions, ErrorCode, Event, EventKind, JobId, Operation, Plan, PlanHash, Query, WayBack, WentBack,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use uuid::Uuid;

use crate::process::Output;
use crate::{Guest, Root, wait};

/// Where the package puts the program.
pub const PROGRAM: &str = "/usr/libexec/linux-patch-api/patch-executor";

/// How long one operation may take on a machine under load.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Where its listener's and its own remarks go.
const REMARKS: &str = "/run/patch-executor.log";

/// Sends what it reads and prints what comes back. From inside, since the root side asks the kernel who its peer is, and
/// that has no name for a process outside.
const ASK: &str = "import socket, sys\n\
s = socket.socket(socket.AF_UNIX)\n\
s.settimeout(30)\n\
s.connect('/run/linux-patch-executor.sock')\n\
s.sendall(sys.stdin.buffer.read())\n\
while True:\n    b = s.recv(65536)\n    if not b: break\n    sys.stdout.buffer.write(b)\n";

/// The library that gives a process another clock.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The mark by which [`LISTEN`] is known.
const LISTENS: &str = "lp-listens";

/// Serves each connection by the command that it is given.
const LISTEN: &str = "import socket, subprocess, sys\n\
s = socket.socket(socket.AF_UNIX)\n\
s.bind('/run/linux-patch-executor.sock')\n\
s.listen(8)\n\
while True:\n    c, _ = s.accept()\n    subprocess.Popen(sys.argv[2:], stdin=c.fileno())\n    c.close()\n";

/// What the root side answered when it refused.
#[derive(Debug)]
pub struct Refusal {
    /// For machines.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the root side refused: {} {}", self.code, self.message)
    }
}

impl std::error::Error for Refusal {}

/// What was seen of an operation.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its events so far.
    pub events: Vec<Event>,
}

impl Seen {
    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        self.events.iter().find_map(|event| match &event.kind {
            EventKind::Ended(ended) => Some(&**ended),
            _ => None,
        })
    }

    /// The plan that was made last.
    #[must_use]
    pub fn plan(&self) -> Option<&Plan> {
        self.events.iter().rev().find_map(|event| match &event.kind {
            EventKind::Planned { plan } => Some(plan),
            _ => None,
        })
    }

    /// The way back that was recorded.
    #[must_use]
    pub fn way_back(&self) -> Option<&WayBack> {
        self.events.iter().rev().find_map(|event| match &event.kind {
            EventKind::WayBack { way_back } => Some(way_back),
            _ => None,
        })
    }

    /// What came of going back, the last report.
    #[must_use]
    pub fn went_back(&self) -> Option<&WentBack> {
        self.events.iter().rev().find_map(|event| match &event.kind {
            EventKind::WentBack { report } => Some(report),
            _ => None,
        })
    }

    /// All lines of output and remarks.
    #[must_use]
    pub fn log(&self) -> String {
        let lines = self.events.iter().filter_map(|event| match &event.kind {
            EventKind::Log { line, .. } => Some(line.as_str()),
            _ => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Fails unless the numbers are 1, 2, 3 and so on, and the end, if it is there, is there once and last.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn assert_whole(&self) -> Result<()> {
        let numbers: Vec<u64> = self.events.iter().map(|event| event.seq).collect();
        ensure!(
            numbers.iter().copied().eq(1..=self.events.len() as u64),
            "the events are numbered {numbers:?}"
        );
        let ends = self.events.iter().filter(|event| matches!(event.kind, EventKind::Ended(_))).count();
        let last = self.events.last().is_some_and(|event| matches!(event.kind, EventKind::Ended(_)));
        ensure!(ends == usize::from(last), "the operation ended {ends} times; last: {last}");
        Ok(())
    }
}

/// The root side in a throw-away root. It goes with the root.
#[derive(Debug)]
pub struct ExecutorIn {
    guest: Guest,
    /// The root as a path of the machine.
    root: PathBuf,
    /// The process that holds the root.
    holder: u32,
    listener: Option<Child>,
    /// What the program is run by, if not by itself.
    by_way_of: Vec<String>,
    /// Those of the changes that are asked for.
    limits: Limits,
}

impl ExecutorIn {
    /// Puts the program into the root, where its package would, and starts its listener.
    ///
    /// # Errors
    /// When it cannot be put there, or does not listen.
    pub fn start(root: &Root, binary: &Path) -> Result<Self> {
        root.push_file(binary, PROGRAM, "755")?;
        let mut executor = Self {
            guest: Guest::clone(root),
            root: root.path(),
            holder: root.holder(),
            listener: None,
            by_way_of: Vec::new(),
            limits: Limits { timeout_seconds: 120, lock_wait_seconds: 60 },
        };
        executor.listen(&[])?;
        Ok(executor)
    }

    /// Starts the listener. With a command `through` (`strace`, for one) each operation is served by way of that, as
    /// systemd would start it: the connection is its standard input.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn listen(&mut self, through: &[&str]) -> Result<()> {
        ensure!(self.listener.is_none(), "the listener runs already");
        match fs::remove_file(self.socket()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let argv = if through.is_empty() {
            vec![PROGRAM, "listen"]
        } else {
            [&["/usr/bin/python3", "-SE", "-c", LISTEN, LISTENS], through, &[PROGRAM, "serve"]].concat()
        };
        // To a file and of its own session: what it starts must be able to outlive whoever asked.
        let script = format!("exec setsid \"$@\" </dev/null >>{REMARKS} 2>&1");
        let mut command =
            self.guest.command(&[&["/bin/sh", "-c", &script, "sh"], argv.as_slice()].concat())?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.listener = Some(command.spawn().context("cannot start the listener")?);
        wait::until("the root side listens", Duration::from_secs(20), || {
            Ok(self.socket().exists().then_some(()))
        })
        .with_context(|| self.remarks())
    }

    /// From now on the root side has a clock of its own, which can be set: see [`ExecutorIn::set_clock`]. The kernel's is
    /// the machine's, and nobody's to set.
    ///
    /// # Errors
    /// When the library that fakes it is not there (Debian's `libfaketime`), or the listener does not start anew.
    pub fn give_clock(&mut self) -> Result<()> {
        let library = Path::new(FAKETIME);
        ensure!(library.exists(), "{FAKETIME} is missing: install Debian's package libfaketime");
        let place = self.root.join("usr/lib/libfaketime.so.1");
        fs::copy(library, place).context("cannot copy the library that fakes the clock")?;
        self.set_clock(0)?;
        let words = [
            "/usr/bin/env",
            "LD_PRELOAD=/usr/lib/libfaketime.so.1",
            "FAKETIME_TIMESTAMP_FILE=/run/lp-clock",
            "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        ];
        self.by_way_of = words.map(str::to_owned).to_vec();
        self.kill_listener()?;
        self.listen(&words)
    }

    /// Sets the clock of the root side, in seconds after the true time.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn set_clock(&self, offset: i64) -> Result<()> {
        // In one step: it is read at every look at the clock.
        let new = self.root.join("run/lp-clock.new");
        fs::write(&new, format!("{offset:+}\n"))?;
        fs::rename(new, self.root.join("run/lp-clock")).context("cannot set the clock")
    }

    /// The limits of the changes that are asked for from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Ends the listener; the operations that it started go on.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_listener(&mut self) -> Result<()> {
        let mut child = self.listener.take().context("no listener runs")?;
        for pid in self.everything()?.into_iter().filter(|pid| self.is_listener(*pid)) {
            self.kill(pid)?;
        }
        child.wait().context("the listener does not end").map(drop)
    }

    fn is_listener(&self, pid: u32) -> bool {
        self.arguments(pid).iter().any(|word| word == "listen" || word == LISTENS)
    }

    fn arguments(&self, pid: u32) -> Vec<String> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    fn socket(&self) -> PathBuf {
        self.root.join(SOCKET)
    }

    /// What the root side wrote to its standard error.
    #[must_use]
    pub fn remarks(&self) -> String {
        fs::read_to_string(self.root.join(REMARKS.trim_start_matches('/'))).unwrap_or_default()
    }

    /// Fails if a program of the root side panicked.
    ///
    /// # Errors
    /// With its words.
    pub fn assert_no_panic(&self) -> Result<()> {
        let remarks = self.remarks();
        ensure!(!remarks.contains("panicked at"), "the root side panicked:\n{remarks}");
        Ok(())
    }

    /// Sends a request and gives the reply.
    ///
    /// # Errors
    /// When there is no reply.
    pub fn send(&self, request: &Request) -> Result<Reply> {
        let argv = ["/usr/bin/python3", "-SE", "-c", ASK];
        let mut child = self.guest.command(&argv)?;
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().context("cannot start a client")?;
        let mut input = child.stdin.take().context("the client has no input")?;
        input.write_all(&encode(request)?)?;
        drop(input);
        let output = child.wait_with_output()?;
        let reply = output.stdout;
        let (prefix, body) = reply.split_first_chunk::<4>().with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("the root side closed without a reply: {said}; its remarks: {}", self.remarks())
        })?;
        ensure!(body.len() == body_length(*prefix)?, "the reply is not whole");
        Ok(decode(body)?)
    }

    /// Asks with the id of an operation; a refusal is an error, a [`Refusal`].
    ///
    /// # Errors
    /// When it was refused, or there is no reply.
    pub fn ask(&self, id: JobId, body: RequestBody) -> Result<Reply> {
        match self.send(&Request { protocol: PROTOCOL, id, body, on_behalf: None })? {
            Reply::Refused { code, message } => Err(Refusal { code, message }.into()),
            reply => Ok(reply),
        }
    }

    /// Submits a change.
    ///
    /// # Errors
    /// When it was refused.
    pub fn change(
        &self,
        operation: Operation,
        options: ChangeOptions,
        if_plan: Option<PlanHash>,
    ) -> Result<JobId> {
        let id = JobId(Uuid::now_v7());
        let limits = self.limits;
        let reply =
            self.ask(id, RequestBody::Change { operation, limits, if_plan, options, not_after: None })?;
        ensure!(reply == Reply::Accepted, "a new change was answered {reply:?}");
        Ok(id)
    }

    /// What was seen of an operation so far. A line that is not whole yet is left out.
    ///
    /// # Errors
    /// When a whole line is not an event.
    pub fn seen(&self, id: JobId) -> Result<Seen> {
        let bytes = match fs::read(self.event_file(id)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("the events of {id}")),
        };
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let text = std::str::from_utf8(&bytes[..whole]).context("the events are not UTF-8")?;
        let parse = |line: &str| Event::parse(line).with_context(|| format!("not an event: {line}"));
        Ok(Seen { events: text.lines().map(parse).collect::<Result<_>>()? })
    }

    /// The file of an operation's events, as a path of the machine.
    #[must_use]
    pub fn event_file(&self, id: JobId) -> PathBuf {
        self.root.join(EVENTS_DIR).join(format!("{id}.jsonl"))
    }

    /// The directory of the root side's state, as a path of the machine.
    #[must_use]
    pub fn state_directory(&self) -> PathBuf {
        self.root.join(STATE_DIR)
    }

    /// Whether a process carries the operation out: it holds a lock on the event file.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn is_alive(&self, id: JobId) -> Result<bool> {
        let file = match fs::File::open(self.event_file(id)) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).context("the event file"),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(error)) => Err(error).context("the event file's lock"),
        }
    }

    /// Follows an operation until it has ended.
    ///
    /// # Errors
    /// When its process died before, or it takes too long; the message has its log.
    pub fn wait(&self, id: JobId) -> Result<Vec<Event>> {
        self.follow(id).map(|seen| seen.events)
    }

    /// As [`ExecutorIn::wait`], with a view of the events.
    ///
    /// # Errors
    /// As [`ExecutorIn::wait`].
    pub fn follow(&self, id: JobId) -> Result<Seen> {
        let mut turns = 0_u32;
        let seen = wait::until(&format!("operation {id} to end"), LIMIT, || {
            let seen = self.seen(id)?;
            if seen.ended().is_some() {
                return Ok(Some(seen));
            }
            turns += 1;
            // Seldom: whoever takes the operation over asks for the same lock.
            if turns.is_multiple_of(50) && !self.is_alive(id)? && self.seen(id)?.ended().is_none() {
                bail!("the root side died before the end of {id}");
            }
            Ok(None)
        });
        let seen = seen.with_context(|| {
            let log = self.seen(id).map(|seen| seen.log()).unwrap_or_default();
            format!("its log:\n{log}\n--- remarks\n{}", self.remarks())
        })?;
        seen.assert_whole()?;
        Ok(seen)
    }

    /// Follows an operation until something has happened, or it has ended, or its process died; gives what was seen.
    ///
    /// # Errors
    /// When it takes too long.
    pub fn follow_until(&self, id: JobId, wish: impl Fn(&Seen) -> bool) -> Result<Seen> {
        let mut turns = 0_u32;
        wait::until_every(Duration::from_millis(1), "an event", LIMIT, || {
            let seen = self.seen(id)?;
            turns += 1;
            let over =
                wish(&seen) || seen.ended().is_some() || turns.is_multiple_of(500) && !self.is_alive(id)?;
            Ok(over.then_some(seen))
        })
    }

    /// How an operation ended, once it has.
    ///
    /// # Errors
    /// As [`ExecutorIn::wait`].
    pub fn ended(&self, id: JobId) -> Result<Ended> {
        let seen = self.follow(id)?;
        seen.ended().cloned().context("an operation that has ended has no end")
    }

    /// Makes a change with the usual options and follows it to its end.
    ///
    /// # Errors
    /// When it is refused or does not end.
    pub fn run(&self, operation: Operation) -> Result<Seen> {
        self.run_with(operation, ChangeOptions::default())
    }

    /// Makes a change and follows it to its end.
    ///
    /// # Errors
    /// When it is refused or does not end.
    pub fn run_with(&self, operation: Operation, options: ChangeOptions) -> Result<Seen> {
        let id = self.change(operation, options, None)?;
        self.follow(id)
    }

    /// What a change would do.
    ///
    /// # Errors
    /// When there is no such plan.
    pub fn plan(&self, operation: Operation) -> Result<Plan> {
        match self.answer(RequestBody::Plan { operation })? {
            QueryResult::Plan(plan) => Ok(plan),
            other => bail!("asked for a plan, got {other:?}"),
        }
    }

    /// The answer to a question.
    ///
    /// # Errors
    /// When there is none.
    pub fn query(&self, query: Query) -> Result<QueryResult> {
        self.answer(RequestBody::Query { query })
    }

    fn answer(&self, body: RequestBody) -> Result<QueryResult> {
        let id = JobId(Uuid::now_v7());
        self.ask(id, body)?;
        let ended = self.ended(id)?;
        ended.answer.with_context(|| format!("no answer: {:?}", ended.error))
    }

    /// Settles whatever has no living process, as at boot, and waits for the end of that.
    ///
    /// # Errors
    /// When it cannot be run, or takes too long.
    pub fn recover(&self) -> Result<Output> {
        let words: Vec<&str> =
            self.by_way_of.iter().map(String::as_str).chain([PROGRAM, "recover"]).collect();
        self.guest.exec_with(&words, "", LIMIT)
    }

    /// Starts the same and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_recover(&self) -> Result<Child> {
        let by_way_of = self.by_way_of.join(" ");
        let script = format!("exec setsid {by_way_of} {PROGRAM} recover </dev/null >>{REMARKS} 2>&1");
        let mut command = self.guest.command(&["/bin/sh", "-c", &script])?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().context("cannot start the recovery")
    }

    /// The machine's ids of the root's processes of that name (its first 15 bytes, as the kernel keeps them), the
    /// listener among them.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn pids(&self, name: &str) -> Result<Vec<u32>> {
        let is_so = |pid: &u32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.trim_end() == name
        };
        Ok(self.everything()?.into_iter().filter(is_so).collect())
    }

    /// The processes that carry operations out: [`ExecutorIn::pids`] of the program without its listener.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn executors(&self) -> Result<Vec<u32>> {
        let all = self.pids("patch-executor")?;
        Ok(all.into_iter().filter(|pid| !self.arguments(*pid).iter().any(|word| word == "listen")).collect())
    }

    /// Kills one process of the root, by the machine's id.
    ///
    /// # Errors
    /// When it cannot be killed; that it is gone already is none.
    pub fn kill(&self, pid: u32) -> Result<()> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            bail!("{pid} is no process id")
        };
        let Ok(handle) = pidfd_open(raw, PidfdFlags::empty()) else { return Ok(()) };
        // Looked at after it is held, so that it cannot be another one by now.
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        if namespace(pid).is_none() || namespace(pid) != namespace(self.holder) {
            return Ok(());
        }
        match pidfd_send_signal(&handle, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot kill {pid}")),
        }
    }

    /// Kills all of the given names, the listener excepted; gives how many there were.
    ///
    /// # Errors
    /// When one cannot be killed.
    pub fn kill_all(&self, names: &[&str]) -> Result<usize> {
        let mut killed = 0;
        for name in names {
            let pids = if *name == "patch-executor" { self.executors()? } else { self.pids(name)? };
            for pid in pids {
                self.kill(pid)?;
                killed += 1;
            }
        }
        Ok(killed)
    }

    /// Kills everything in the root at once but its holder and the listener, as a power cut would: executor, apt, dpkg,
    /// and the scripts that they run. Repeated until nothing is left.
    ///
    /// # Errors
    /// When something does not die.
    pub fn kill_everything(&self) -> Result<()> {
        let spared: Vec<u32> = self.everything()?.into_iter().filter(|pid| self.is_listener(*pid)).collect();
        wait::until_every(Duration::from_millis(1), "everything to die", Duration::from_secs(10), || {
            let left: Vec<u32> = self.everything()?.into_iter().filter(|pid| !spared.contains(pid)).collect();
            for pid in &left {
                self.kill(*pid)?;
            }
            Ok(left.is_empty().then_some(()))
        })
    }

    /// The root's processes but its holder; those that only wait to be reaped are none.
    fn everything(&self) -> Result<Vec<u32>> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = namespace(self.holder).context("the root is gone")?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let is_dead = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
            if pid != self.holder && !is_dead && namespace(pid).as_ref() == Some(&ours) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// The root, to run commands in.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }
}

impl Drop for ExecutorIn {
    fn drop(&mut self) {
        if self.listener.is_some() {
            self.kill_listener().unwrap_or_default();
        }
    }
}
