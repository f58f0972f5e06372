//! Running the tool of a phase: its lines become events, its end is waited for.

use std::{
    collections::VecDeque,
    path::Path,
    time::{Duration, Instant},
};

use patch_apply::{
    apt::{
        argv::Argv,
        lock::{self, Locks},
        scripts,
        status_fd::{self, Status},
    },
    run::{self, Line, RunError},
};
use patch_types::{EventKind, LockHolder, event::LogStream};

use crate::{
    events::Events,
    journal::{Journal, ToolEnd},
    stop,
};

/// How much of the tool's output is kept for classification and the verdict, in lines.
const KEPT_LINES: usize = 400;

/// How often a running tool is looked after when it says nothing.
const TICK: Duration = Duration::from_millis(250);

/// How long a maintainer script may stay silent after the job's limit before it is ended, and after each such end.
const GRACE: Duration = Duration::from_secs(10);

/// Turns the steps of one operation into a percentage that never falls.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    percent: u8,
}

impl Progress {
    /// Reports `percent` (0 to 100) of a phase that spans `from` to `to` percent of the whole.
    pub(crate) fn report(
        &mut self,
        events: &mut Events,
        (from, to): (u8, u8),
        percent: f32,
        package: Option<String>,
        message: String,
    ) {
        let span = f32::from(to.saturating_sub(from));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "both are within 0 and 100"
        )]
        let whole = from.saturating_add((span * percent.clamp(0.0, 100.0) / 100.0) as u8).min(100);
        self.percent = self.percent.max(whole);
        events.emit(EventKind::Progress { percent: self.percent, package, message });
    }
}

/// What a run may be ended by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Care {
    /// It changes nothing that matters: it is ended on cancel and at the limit.
    Interruptible,
    /// It changes the package database: never signalled. At the limit, maintainer scripts that hang are ended.
    Transaction,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) enum RunEnd {
    /// By itself; or by its maintainer scripts being ended.
    Exited(ToolEnd),
    /// By a request to cancel.
    Cancelled,
    /// By its limit, with nothing changed.
    TimedOut,
}

/// What a run needs to know.
pub(crate) struct Run<'a> {
    pub(crate) root: &'a Path,
    pub(crate) directory: &'a Path,
    pub(crate) journal: &'a Journal,
    pub(crate) events: &'a mut Events,
    pub(crate) progress: &'a mut Progress,
    /// The part of the whole's progress that this run covers.
    pub(crate) span: (u8, u8),
    pub(crate) deadline: Instant,
    pub(crate) care: Care,
    /// Whether the tool writes progress.
    pub(crate) reports: bool,
    /// Whether this process holds the package manager's lock for the tool.
    pub(crate) holds_lock: bool,
}

impl Run<'_> {
    /// Runs a tool to its end.
    pub(crate) fn execute(self, argv: impl FnOnce(i32) -> Argv) -> Result<RunEnd, RunError> {
        let Self { root, directory, journal, events, progress, span, deadline, care, reports, holds_lock } =
            self;
        let job = (run::JOB, journal.record.id.to_string());
        let argv = |fd| {
            let mut argv = argv(fd);
            argv.environment.push(job);
            argv
        };
        let mut running = run::start(argv, directory, &journal.output(), &journal.progress(), reports)?;
        let mut kept: VecDeque<String> = VecDeque::new();
        let mut waiting: Option<LockHolder> = None;
        let mut working = care == Care::Interruptible || holds_lock;
        let mut last_word = Instant::now();
        let mut last_step = Instant::now();
        let mut forced = false;
        let mut timed_out = false;
        let mut last_percent = -1.0_f32;
        let mut failed = Vec::new();
        loop {
            let lines = match running.wait(TICK) {
                Ok(lines) => lines,
                // Following failed, the tool did not: a transaction is waited for all the same.
                Err(error) if care == Care::Transaction => {
                    let line = format!("the tool's output cannot be followed any more: {error}");
                    events.emit(EventKind::Log { stream: LogStream::Executor, line });
                    let code = running.outlast().ok().and_then(|status| status.code());
                    let output = kept.into_iter().collect::<Vec<_>>().join("\n");
                    return Ok(RunEnd::Exited(ToolEnd { code, output, timed_out, failed }));
                }
                Err(error) => return Err(error),
            };
            if !lines.is_empty() {
                last_word = Instant::now();
            }
            for line in lines {
                match line {
                    Line::Output(line) => {
                        keep(&mut kept, line.clone());
                        events.emit(EventKind::Log { stream: LogStream::Output, line });
                    }
                    Line::Status(line) => match status_fd::parse(&line) {
                        // apt repeats itself several times a second.
                        Some(Status::Download { percent, .. }) if percent <= last_percent => {}
                        Some(Status::Download { percent, message }) => {
                            last_percent = percent;
                            progress.report(events, span, percent, None, message);
                        }
                        Some(Status::Package { package, percent, message }) => {
                            working = true;
                            last_step = Instant::now();
                            let package = (package != "dpkg-exec").then_some(package);
                            progress.report(events, span, percent, package, message);
                        }
                        Some(Status::Error { package, message }) => {
                            failed.push(package.clone());
                            keep(&mut kept, format!("dpkg: error processing {package}: {message}"));
                        }
                        Some(Status::Conffile { path }) => {
                            let line = format!("kept the administrator's {path}");
                            events.emit(EventKind::Log { stream: LogStream::Executor, line });
                        }
                        None => {}
                    },
                }
            }
            events.flush();
            if let Some(status) = running.ended() {
                let output = kept.into_iter().collect::<Vec<_>>().join("\n");
                return Ok(RunEnd::Exited(ToolEnd { code: status.code(), output, timed_out, failed }));
            }
            if !working {
                // Until dpkg has begun, apt may be waiting for somebody: say for whom.
                let holder = lock::holder(root, Locks::Packages)
                    .ok()
                    .flatten()
                    .filter(|holder| holder.pid != Some(running.pid()));
                if holder != waiting {
                    waiting.clone_from(&holder);
                    events.emit(EventKind::Waiting { holder });
                }
            }
            let late = Instant::now() >= deadline;
            match care {
                Care::Interruptible if late || must_stop(journal) => {
                    running.terminate(false);
                    let patience = Instant::now() + GRACE;
                    while running.ended().is_none() {
                        running.wait(TICK)?;
                        if Instant::now() >= patience {
                            running.terminate(true);
                        }
                    }
                    return Ok(if late { RunEnd::TimedOut } else { RunEnd::Cancelled });
                }
                // One that prints for ever hangs as well: what counts then is that dpkg's steps go on.
                Care::Transaction
                    if late && (last_word.elapsed() >= GRACE || last_step.elapsed() >= 6 * GRACE) =>
                {
                    for script in scripts::end_maintainer_scripts(running.pid(), forced) {
                        timed_out = true;
                        let line = format!("the job's time is over: ended the maintainer script {script}");
                        events.emit(EventKind::Log { stream: LogStream::Executor, line });
                    }
                    forced = true;
                    last_word = Instant::now();
                    last_step = Instant::now();
                }
                Care::Interruptible | Care::Transaction => {}
            }
        }
    }
}

/// Keeps a line, within bounds.
fn keep(kept: &mut VecDeque<String>, line: String) {
    while kept.len() >= KEPT_LINES {
        kept.pop_front();
    }
    kept.push_back(line);
}

/// Waits until nobody else holds the locks. Says who does, and when the wait is over.
///
/// # Errors
/// With what to end the job with: cancelled, or the holder that did not let go in time.
pub(crate) fn wait_for_locks(
    root: &Path,
    locks: Locks,
    journal: &Journal,
    events: &mut Events,
    patience: Duration,
) -> Result<(), Blocked> {
    let deadline = Instant::now() + patience;
    let mut named: Option<LockHolder> = None;
    loop {
        let holder = match lock::holder(root, locks) {
            Ok(holder) => holder,
            Err(error) => {
                // apt will say it better.
                eprintln!("patch-executor: cannot ask about apt's locks: {error}");
                None
            }
        };
        if holder != named {
            named.clone_from(&holder);
            events.emit(EventKind::Waiting { holder: holder.clone() });
        }
        let Some(holder) = holder else { return Ok(()) };
        if must_stop(journal) {
            return Err(Blocked::Cancelled);
        }
        if Instant::now() >= deadline {
            return Err(Blocked::Held(holder));
        }
        pause();
    }
}

/// Waits for tools that outlived their executor: first for the one that inherited the progress file and the lock on
/// it, then for whoever holds the package manager's locks. `false` when the system wants us to stop meanwhile.
pub(crate) fn wait_for_survivors(root: &Path, journal: &Journal, events: &mut Events) -> bool {
    // A script that hangs is ended as it would have been without the interruption.
    let limit = Instant::now() + Duration::from_secs(journal.record.limits.timeout_seconds);
    if !wait_for_dpkg(root, journal, events, limit) {
        return false;
    }
    let mut named: Option<LockHolder> = None;
    loop {
        let holder = lock::holder(root, Locks::Packages).ok().flatten();
        if holder != named {
            named.clone_from(&holder);
            events.emit(EventKind::Waiting { holder: holder.clone() });
        }
        if holder.is_none() && !run::is_alive(&journal.progress()) {
            return true;
        }
        if stop::is_asked() {
            return false;
        }
        pause();
    }
}

/// Waits for a dpkg that works although the apt that started it is gone. What of it belongs to this change, by its
/// environment, is treated as in a run: after `limit` its maintainer scripts are ended, dpkg never is. `false` when the
/// system wants us to stop meanwhile.
pub(crate) fn wait_for_dpkg(root: &Path, journal: &Journal, events: &mut Events, limit: Instant) -> bool {
    let mut named: Option<LockHolder> = None;
    let mut limit = limit;
    let mut forced = false;
    loop {
        let holder = lock::holder(root, Locks::Database).ok().flatten();
        if holder != named {
            named.clone_from(&holder);
            events.emit(EventKind::Waiting { holder: holder.clone() });
        }
        let Some(holder) = holder else { return true };
        if stop::is_asked() {
            return false;
        }
        if Instant::now() >= limit {
            limit = Instant::now() + GRACE;
            if let Some(pid) = holder.pid.filter(|pid| run::is_of_job(*pid, &journal.record.id.to_string())) {
                for script in scripts::end_maintainer_scripts(pid, forced) {
                    let line = format!("it took too long: ended the maintainer script {script}");
                    events.emit(EventKind::Log { stream: LogStream::Executor, line });
                }
                forced = true;
            }
        }
        pause();
    }
}

/// Why a wait ended without success.
#[derive(Debug)]
pub(crate) enum Blocked {
    Cancelled,
    Held(LockHolder),
}

/// Whether somebody asked this change to stop, or systemd does because the host goes down. The signal
/// itself does nothing (see [`stop`]), so the mark is looked at where stopping harms nothing.
pub(crate) fn must_stop(journal: &Journal) -> bool {
    journal.cancel_requested() || stop::is_asked()
}

/// A kernel lock of another process can only be asked about, not waited for together with a request to cancel, so the
/// question is repeated.
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}
