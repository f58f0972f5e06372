//! When a change is rehearsed, and what becomes of it by that. How it is done is `patch_apply`'s.
//!
//! The host is not changed in this phase: whoever dies in it leaves an empty directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use patch_apply::apt::{
    argv,
    rehearse::{self, Bounds, Group, Heard, Keeper, Listener, NoImage, Order, PROGRESS, Rehearsal, Step},
    status_fd::{self, Status},
};
use patch_backends::apt::{DatabaseStamp, classify};
use patch_types::{
    ErrorCode, ErrorDetail, EventKind, Finding, FindingKind, JobId, JobStatus, Operation, Outcome,
    PackageName, Plan, RehearsalReport, RehearsalVerdict, Rehearse, Unrehearsed,
    event::{Ended, LogStream, PackageResult},
};
use serde::{Deserialize, Serialize};

use crate::{
    change::{Change, Stop},
    journal::{self, Journal, Record, State, ToolEnd},
    paths::Paths,
    solver, tool, verdict,
};

/// How often a rehearsal is looked after that says nothing.
const TICK: Duration = Duration::from_millis(100);

/// How much of its output goes into the job's log, in bytes.
const MOST_OUTPUT: usize = 4 << 20;

/// Where it is in the whole's progress, in percent: between the download and the change itself.
const SPAN: (u8, u8) = (30, 30);

/// How long the image may be looked at when all has ended. Nothing in it is to keep whoever looks waiting; this is for what
/// nobody thought of.
const LOOKING: Duration = Duration::from_secs(120);

/// What the keeper of an image is asked.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    order: Order,
    record: Record,
    plan: Plan,
    /// The largest package that is installed, in bytes.
    largest: u64,
}

/// What it has seen.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    code: Option<i32>,
    complete: bool,
    harmed: Vec<String>,
    results: Vec<PackageResult>,
    is_crowded: bool,
    is_starved: bool,
    processes: u64,
    is_host_short: bool,
    is_full: bool,
    lacking: Vec<String>,
    written: u64,
    not_run: Vec<String>,
    left_out: Vec<String>,
    /// Why the image's database could not be read.
    unreadable: Option<ErrorDetail>,
}

/// What an image was reckoned to need, and what it got.
#[derive(Debug, Clone, Copy)]
struct Reckoned {
    needed: u64,
    bounds: Bounds,
}

/// What came of it.
struct Rehearsed {
    report: RehearsalReport,
    /// Of a real run that would fail.
    error: Option<(ErrorDetail, Option<i32>)>,
}

impl Rehearsed {
    fn not(reason: impl Into<String>) -> Self {
        Self { report: RehearsalReport::not_rehearsed(reason), error: None }
    }

    /// The same of a change that would be refused before anything is tried, whatever becomes of it in an image.
    fn refused(mut self, error: ErrorDetail) -> Self {
        let kind = match error.code {
            ErrorCode::DiskSpace => FindingKind::DiskSpace,
            _ => FindingKind::Other,
        };
        let message = error.message.clone();
        self.report.findings.push(Finding { kind, package: None, message, output: Vec::new() });
        self.report.verdict = RehearsalVerdict::Fails;
        self.report.reason = Some(error.message.clone());
        self.error = Some((error.with("rehearsal", RehearsalVerdict::Fails.as_str()), None));
        self
    }
}

/// Whether there is anything of a change that an image could show.
pub(crate) fn is_possible(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Install(_) | Operation::Update(_) | Operation::Remove(_) | Operation::ApplyPatches(_)
    )
}

fn staging(journal: &Path) -> PathBuf {
    journal.join("rehearsal")
}

fn group_name(id: JobId) -> String {
    format!("rehearsal-{id}")
}

/// Removes what a rehearsal leaves whose executor died. Its processes and its files went with it.
pub(crate) fn clean(paths: &Paths, id: JobId) {
    let staging = staging(&paths.journal(id));
    if let Err(error) = fs::remove_dir(&staging)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("patch-executor: {} cannot be removed: {error}", staging.display());
    }
    Group::sweep(&group_name(id));
}

impl Change<'_> {
    /// Whether the rehearsal is all that is wanted.
    pub(crate) fn only_rehearses(&self) -> bool {
        self.journal.record.options.rehearse.is_some_and(|how| how.only)
    }

    /// Why nothing is rehearsed where packages are unfinished: to finish them would change the host.
    pub(crate) fn unfinished(&self, names: &str) -> ErrorDetail {
        let message = format!(
            "packages are unfinished: {names}; nothing was rehearsed. `dpkg --configure -a` finishes them, as any change that \
             is more than a rehearsal does first"
        );
        let error = ErrorDetail::new(ErrorCode::PkgManagerError, message);
        error.with("rehearsal", RehearsalVerdict::NotRehearsed.as_str())
    }

    /// What comes after the download.
    pub(crate) fn downloaded(&self, plan: Plan, auto: Vec<PackageName>) -> State {
        if self.journal.record.options.rehearse.is_some() && is_possible(&self.journal.record.operation) {
            State::Rehearsing { plan, auto }
        } else {
            State::Snapshotting { plan, auto }
        }
    }

    /// Tries the change on an image of the host, and goes on only if all is well with it.
    pub(crate) fn rehearse(&mut self, plan: Plan, auto: Vec<PackageName>) -> Result<State, Stop> {
        let how: Rehearse = self.journal.record.options.rehearse.unwrap_or_default();
        let began = Instant::now();
        let rehearsed = self.try_out(&plan, how);
        clean(self.paths, self.journal.record.id);
        let mut rehearsed = rehearsed?;
        // Where the change does not follow by itself: what would be found then belongs to what is foreseen.
        if how.only
            && rehearsed.report.verdict != RehearsalVerdict::NotRehearsed
            && let Err(Stop::End(ended)) = self.check_room(&plan)
            && let Some(error) = ended.error
        {
            rehearsed = rehearsed.refused(error);
        }
        let Rehearsed { mut report, error } = rehearsed;
        report.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.planned_at != Some(DatabaseStamp::now(self.paths.root())) {
            self.remark("packages were changed by somebody else during the rehearsal; planning again");
            return Ok(State::Planning);
        }
        self.events.emit_durably(EventKind::Rehearsed { report: report.clone() });
        if let Some((error, code)) = error {
            let is_late = error.code == ErrorCode::JobTimeout;
            let mut stop =
                Stop::unchanged(if is_late { JobStatus::Timeout } else { JobStatus::Failed }, error);
            if let Stop::End(ended) = &mut stop {
                ended.exit_code = code;
            }
            return Err(stop);
        }
        if report.verdict == RehearsalVerdict::NotRehearsed {
            let reason = report.reason.unwrap_or_default();
            if how.otherwise == Unrehearsed::Refuse {
                let message = format!(
                    "not rehearsed: {reason}; nothing was changed. Ask without `rehearse`, or with \
                     `unrehearsed: simulate` to be content with the solver's simulation"
                );
                let mut error = ErrorDetail::new(ErrorCode::ServiceUnhealthy, message);
                error.retryable = false;
                return Err(error.with("rehearsal", RehearsalVerdict::NotRehearsed.as_str()).into());
            }
            self.remark(format!("not rehearsed: {reason}; going by the solver's simulation"));
        }
        if !how.only {
            return Ok(State::Snapshotting { plan, auto });
        }
        Ok(State::Ended {
            ended: Box::new(Ended {
                status: JobStatus::Completed,
                outcome: Some(Outcome::Unchanged),
                exit_code: None,
                error: None,
                results: Vec::new(),
                answer: None,
            }),
        })
    }

    fn try_out(&mut self, plan: &Plan, how: Rehearse) -> Result<Rehearsed, Stop> {
        let root = self.paths.root().to_owned();
        let Some(task) = &self.task else {
            return Ok(Rehearsed::not("there is a plan, but not what apt is to be told"));
        };
        let inventory = solver::inventory(&root)?;
        let needed = rehearse::needed(&root, plan, &inventory);
        let spare = rehearse::available();
        let Some(bounds) = Bounds::of(needed, spare) else {
            return Ok(Rehearsed::not(format!(
                "an image of this change and what runs in it may need {} MiB of memory, and the host has {} MiB to spare",
                needed.memory() >> 20,
                spare.unwrap_or_default() >> 20
            )));
        };
        let staging = staging(self.journal.dir());
        let group = Group::make(&group_name(self.journal.record.id), bounds.memory);
        let made = journal::make_private(&staging).and_then(|()| {
            Ok(Order {
                root: root.canonicalize()?,
                staging: staging.canonicalize()?,
                bounds,
                steps: vec![
                    Step::new(argv::apply(&root, task, PROGRESS, None), false),
                    // As the real run tries it once more.
                    Step::new(argv::configure_pending(&root), true),
                ],
                groups: group.paths(),
                mark: rehearse::mark()?,
            })
        });
        let rehearsed = match made {
            Ok(order) => {
                let largest = rehearse::largest(plan, &inventory);
                let task = Task { order, record: self.journal.record.clone(), plan: plan.clone(), largest };
                self.start(&task, how, Reckoned { needed: needed.bytes, bounds })
            }
            Err(error) => Ok(Rehearsed::not(format!("{} cannot be made ready: {error}", staging.display()))),
        };
        // The group beside has no bounds of its own, and is below the same unit: what follows can be made in it as well.
        if let Err(error) = group.close() {
            self.remark(format!(
                "the rehearsal's control group: {error}; the job goes on in it, which bounds nothing"
            ));
        }
        rehearsed
    }

    fn start(&mut self, task: &Task, how: Rehearse, reckoned: Reckoned) -> Result<Rehearsed, Stop> {
        let mark = task.order.mark.clone();
        let started = serde_json::to_value(task)
            .map_err(io::Error::other)
            .and_then(|value| Rehearsal::start(self.paths.root(), &value, mark));
        match started {
            Ok(rehearsal) => self.follow(rehearsal, how, reckoned),
            Err(error) => Ok(Rehearsed::not(format!("the rehearsal cannot be started: {error}"))),
        }
    }

    /// Until when a rehearsal may take: it leaves the change itself half of the time that there is.
    fn rehearsed_by(&self, how: Rehearse) -> Instant {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Instant::now() + if how.only { left } else { left / 2 }
    }

    fn follow(
        &mut self,
        mut rehearsal: Rehearsal,
        how: Rehearse,
        reckoned: Reckoned,
    ) -> Result<Rehearsed, Stop> {
        let limit = self.rehearsed_by(how);
        let mut listener = Listener::default();
        let mut said = 0;
        let (mut report, mut no_image, mut is_running) = (None, None, false);
        while !rehearsal.is_over() {
            let heard = match rehearsal.wait(TICK) {
                Ok(heard) => heard,
                Err(_) if is_running => return Ok(broken_off(listener, None)),
                Err(error) => return Ok(Rehearsed::not(format!("it cannot be followed: {error}"))),
            };
            for heard in heard {
                match heard {
                    Heard::Output(line) => {
                        listener.hear(&line);
                        let before = said;
                        said += line.len();
                        if said <= MOST_OUTPUT {
                            self.events.emit(EventKind::Log { stream: LogStream::Rehearsal, line });
                        } else if before <= MOST_OUTPUT {
                            self.remark("the rehearsal printed so much that the rest of it is not kept");
                        }
                    }
                    Heard::Again => {
                        listener.mends();
                        self.remark("the rehearsed run failed; trying once to finish what it left");
                    }
                    Heard::Progress(line) => {
                        if let Some(Status::Package { package, percent, message }) = status_fd::parse(&line) {
                            let package = (package != "dpkg-exec").then_some(package);
                            self.progress.report(&mut self.events, SPAN, percent, package, message);
                        }
                    }
                    Heard::Running => is_running = true,
                    Heard::Ran => {
                        let within = LOOKING.as_secs();
                        no_image = Some(format!("what came of it could not be looked at within {within} s"));
                    }
                    Heard::NoImage(why) => no_image = Some(why),
                    Heard::Report(value) => report = serde_json::from_value::<Report>(value).ok(),
                }
            }
            self.events.flush();
            if tool::must_stop(&self.journal) {
                return Err(Stop::cancelled());
            }
            if Instant::now() >= limit {
                rehearsal.end();
                return Ok(self.too_slow(listener));
            }
        }
        rehearsal.end();
        Ok(match (report, no_image) {
            (Some(report), _) => self.judged(report, listener, reckoned),
            // Who goes on regardless of a rehearsal that there was not must not do so where one was ended.
            (None, why) if is_running => broken_off(listener, why),
            (None, Some(why)) => Rehearsed::not(why),
            (None, None) => Rehearsed::not("the rehearsal was ended before it began"),
        })
    }

    /// A rehearsal that took so long that the change itself would not be done in time.
    fn too_slow(&self, listener: Listener) -> Rehearsed {
        let message = format!(
            "the rehearsal did not end within the time that the job's limit of {} s leaves it; nothing was changed. A \
             maintainer script may hang: the log has what was said last",
            self.journal.record.limits.timeout_seconds
        );
        let (findings, conffiles) = listener.end();
        let report = RehearsalReport {
            verdict: RehearsalVerdict::Fails,
            reason: Some(message.clone()),
            findings,
            conffiles,
            ..RehearsalReport::not_rehearsed("")
        };
        Rehearsed { report, error: Some((ErrorDetail::new(ErrorCode::JobTimeout, message), None)) }
    }

    fn judged(&self, seen: Report, listener: Listener, reckoned: Reckoned) -> Rehearsed {
        let output = listener.last_words();
        let (mut findings, conffiles) = listener.end();
        let was_full = seen.is_full || findings.iter().any(|finding| finding.kind == FindingKind::DiskSpace);
        // Where the host's file systems have not the room either, the real run fails. Where they have, it was the image that was too
        // small, which says nothing of it.
        if was_full && seen.lacking.is_empty() && !seen.is_crowded && !seen.is_starved {
            return Rehearsed::not(format!(
                "the image was too small: {} MiB were written in it, which has {} MiB of the host's memory, and the plan lets \
                 expect {} MiB at most. The host's file systems have the room for what was written",
                seen.written >> 20,
                reckoned.bounds.room.bytes >> 20,
                reckoned.needed >> 20
            ));
        }
        // Nor does it say anything of the real run if the image's files took the memory, which are on a disk there.
        if seen.is_starved
            && seen.processes < rehearse::SCRIPTS
            && seen.lacking.is_empty()
            && !seen.is_crowded
        {
            return Rehearsed::not(format!(
                "{} MiB of memory were not enough for the image, in which {} MiB were written, and what ran in it",
                reckoned.bounds.memory >> 20,
                seen.written >> 20
            ));
        }
        // Others took it: what ran in the image had less than it may have.
        if seen.is_host_short && seen.lacking.is_empty() && !seen.is_crowded && !seen.is_starved {
            return Rehearsed::not(format!(
                "the host ran short of memory while it was rehearsed; the image and what ran in it had not yet the {} MiB that they \
                 may have",
                reckoned.bounds.memory >> 20
            ));
        }
        let mut more = |kind, message: String| {
            findings.push(Finding { kind, package: None, message, output: Vec::new() });
        };
        for message in &seen.lacking {
            more(FindingKind::DiskSpace, message.clone());
        }
        if seen.is_full {
            let message = "more was written than the plan lets expect, until the image was full".to_owned();
            more(FindingKind::DiskSpace, message);
        }
        if seen.is_crowded {
            let most = rehearse::MOST_PROCESSES;
            more(FindingKind::Processes, format!("there were {most} processes and more; all were ended"));
        }
        if seen.is_starved {
            let message = format!(
                "processes and files together needed more than the {} MiB of memory that the host has for them; all were ended",
                reckoned.bounds.memory >> 20
            );
            more(FindingKind::Memory, message);
        }
        let is_well = seen.complete
            && seen.unreadable.is_none()
            && seen.lacking.is_empty()
            && !seen.is_full
            && !seen.is_crowded
            && !seen.is_starved;
        let error = (!is_well).then(|| self.failure(&seen, &findings, &output));
        if let Some(error) = error.as_ref().filter(|_| findings.is_empty()) {
            findings.push(Finding {
                kind: FindingKind::Other,
                package: None,
                message: error.message.clone(),
                output: Vec::new(),
            });
        }
        let report = RehearsalReport {
            verdict: if is_well { RehearsalVerdict::Well } else { RehearsalVerdict::Fails },
            reason: error.as_ref().map(|error| error.message.clone()),
            findings,
            conffiles,
            not_run: seen.not_run,
            left_out: seen.left_out,
            took_ms: 0,
            written_bytes: seen.written,
        };
        Rehearsed { report, error: error.map(|error| (error, seen.code)) }
    }

    /// Why the real run would fail.
    fn failure(&self, seen: &Report, findings: &[Finding], output: &str) -> ErrorDetail {
        let special = findings.iter().find(|finding| {
            finding.package.is_none()
                && matches!(
                    finding.kind,
                    FindingKind::DiskSpace | FindingKind::Processes | FindingKind::Memory
                )
        });
        let mut error = match (special, &seen.unreadable) {
            (Some(finding), _) => {
                let code = match finding.kind {
                    FindingKind::DiskSpace => ErrorCode::DiskSpace,
                    _ => ErrorCode::PkgManagerError,
                };
                ErrorDetail::new(code, finding.message.clone())
            }
            (None, Some(error)) => error.clone(),
            (None, None) => classify(seen.code, output, (&self.journal.record.operation).into()),
        };
        if !seen.harmed.is_empty() {
            error.message =
                format!("{} not in order afterwards. {}", verdict::are(&seen.harmed), error.message);
        }
        error.message = format!("the rehearsal failed, so nothing was changed: {}", error.message);
        let undone: Vec<&str> =
            seen.results.iter().filter(|result| !result.done).map(|result| result.name.as_str()).collect();
        error
            .with("rehearsal", RehearsalVerdict::Fails.as_str())
            .with("undone", serde_json::to_value(undone).unwrap_or_default())
    }
}

/// A rehearsal that did not come to its end by itself, and why, if its keeper could say.
fn broken_off(listener: Listener, why: Option<String>) -> Rehearsed {
    let why = why.unwrap_or_else(|| "it was killed, perhaps for want of memory".to_owned());
    let message =
        format!("the rehearsal did not end: {why}; nothing was changed. The log has what was said last");
    let (mut findings, conffiles) = listener.end();
    findings.push(Finding {
        kind: FindingKind::Other,
        package: None,
        message: message.clone(),
        output: Vec::new(),
    });
    let report = RehearsalReport {
        verdict: RehearsalVerdict::Fails,
        reason: Some(message.clone()),
        findings,
        conffiles,
        ..RehearsalReport::not_rehearsed("")
    };
    let error = ErrorDetail::new(ErrorCode::PkgManagerError, message);
    Rehearsed { report, error: Some((error.with("rehearsal", RehearsalVerdict::Fails.as_str()), None)) }
}

/// The keeper of an image, in a process of its own that the executor has started: see [`rehearse`].
pub(crate) fn keeper(paths: &Paths) -> anyhow::Result<()> {
    if let Err(error) = keep(paths) {
        match error.downcast_ref::<NoImage>() {
            Some(no_image) => rehearse::tell_no_image(no_image),
            None => rehearse::tell_no_image(&NoImage {
                what: "the image's keeper".to_owned(),
                source: io::Error::other(format!("{error:#}")),
            }),
        }
    }
    Ok(())
}

fn keep(paths: &Paths) -> anyhow::Result<()> {
    let task: Task = serde_json::from_str(&rehearse::task()?).context("the order cannot be read")?;
    let keeper = Keeper::new(task.order)?;
    let seen = keeper.run()?;
    keeper.look_within(LOOKING)?;
    let lacking = keeper.lacking(task.largest);
    let end = ToolEnd { code: seen.code, ..ToolEnd::default() };
    // From here on every path is one of the image.
    let judged = keeper
        .enter()
        .map_err(|error| {
            ErrorDetail::new(ErrorCode::PkgManagerError, format!("the image cannot be looked at: {error}"))
        })
        .and_then(|()| verdict::look(paths.root(), &task.record, &task.plan, &end));
    let mut report = Report {
        code: seen.code,
        complete: false,
        harmed: Vec::new(),
        results: Vec::new(),
        is_crowded: seen.is_crowded,
        is_starved: seen.is_starved,
        processes: seen.processes,
        is_host_short: seen.is_host_short,
        is_full: seen.is_full,
        lacking,
        written: seen.written,
        not_run: seen.not_run,
        left_out: seen.left_out,
        unreadable: None,
    };
    match judged {
        Ok(judged) => {
            (report.complete, report.harmed, report.results) =
                (judged.complete, judged.harmed, judged.results);
        }
        Err(error) => report.unreadable = Some(error),
    }
    rehearse::tell_report(serde_json::to_value(report)?)?;
    Ok(())
}

/// The first process of an image, which becomes its init.
pub(crate) fn image(paths: &Paths, merged: &Path, groups: &[PathBuf]) -> anyhow::Result<()> {
    match rehearse::enter(merged, paths.root(), groups) {
        Ok(never) => match never {},
        Err(error) => {
            rehearse::tell_no_image(&error);
            Ok(())
        }
    }
}

/// What a rehearsal that died with its executor leaves: nothing that anybody has to mend.
pub(crate) fn settled(paths: &Paths, journal: &Journal) {
    if matches!(journal.record.state, State::Rehearsing { .. }) {
        clean(paths, journal.record.id);
    }
}
