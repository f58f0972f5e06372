//! A change whose executor died: repair what it left, judge by the database, end its event file truthfully.
//!
//! Nothing is run again. Whatever of apt or dpkg outlived the executor is waited for first.

use std::time::{Duration, Instant};

use anyhow::Context;
use patch_apply::apt::argv;
use patch_types::{
    ErrorCode, ErrorDetail, EventKind, JobStatus, Outcome,
    event::{Ended, LogStream},
};

use crate::{
    change,
    events::{Events, EventsError},
    journal::{Journal, State, ToolEnd},
    paths::Paths,
    stop,
    tool::{self, Care, Progress, Run, RunEnd},
    turn, verdict,
};

/// How long a repair may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Settles a change. One that has ended, or whose executor lives, is left alone.
pub(crate) fn run(paths: &Paths, mut journal: Journal) -> anyhow::Result<()> {
    let id = journal.record.id;
    let (mut events, seen) = match Events::resume(&paths.event_file(id)) {
        Ok(resumed) => resumed,
        Err(EventsError::Alive { .. }) => return Ok(()),
        // The executor died between its journal and its event file.
        Err(EventsError::Missing { path }) => {
            let mut events = Events::create(&path).with_context(|| format!("cannot settle job {id}"))?;
            events.emit(EventKind::Accepted);
            (events, Vec::new())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot settle job {id}")),
    };
    if seen.iter().any(|event| matches!(event.kind, EventKind::Ended(_))) {
        return Ok(());
    }
    // Read again under the lock: the executor may have gone on until it died.
    journal =
        Journal::open(&paths.journal(id)).with_context(|| format!("cannot read the journal of job {id}"))?;
    let ended = match journal.record.state.clone() {
        State::Ended { ended } => ended,
        State::Accepted | State::Refreshing | State::Planning | State::Downloading { .. } => {
            unchanged("before anything was changed; submit it again if it is still wanted")
        }
        State::Repairing => {
            if repair(paths, &journal, &mut events)?.is_none() {
                return Ok(());
            }
            unchanged("while it finished what an earlier run had left; nothing of its own was begun")
        }
        State::Applying { plan, auto } => {
            let Some(tool) = repair(paths, &journal, &mut events)? else { return Ok(()) };
            change::restore_marks(paths.root(), &auto, &mut events);
            let mut ended = verdict::judge(paths.root(), &journal.record, &plan, &tool);
            if ended.status != JobStatus::Completed {
                ended.error = Some(interrupted(
                    "while packages were being changed; the results say how each one is now",
                ));
            }
            ended
        }
        State::Verifying { plan, tool } => verdict::judge(paths.root(), &journal.record, &plan, &tool),
    };
    change::finish(&mut journal, &mut events, ended);
    Ok(())
}

/// Waits for what outlived the executor, then finishes what was left. `None` when the system wants us to stop: the next
/// one settles it.
fn repair(paths: &Paths, journal: &Journal, events: &mut Events) -> anyhow::Result<Option<ToolEnd>> {
    let remark = |events: &mut Events, line: &str| {
        events.emit(EventKind::Log { stream: LogStream::Executor, line: line.to_owned() });
    };
    remark(events, "the executor was interrupted while packages were being changed; looking what is left");
    // Another change may be under way meanwhile; repairs are changes as well.
    let Some(_turn) =
        turn::wait(paths, stop::is_asked, tool::pause).context("the turn cannot be waited for")?
    else {
        return Ok(None);
    };
    if !tool::wait_for_survivors(paths.root(), journal, events) {
        return Ok(None);
    }
    let mut tool = ToolEnd::default();
    if !change::findings(paths.root()).unwrap_or_default().is_empty() {
        remark(events, "finishing what was left unpacked or half-configured");
        let mut progress = Progress::default();
        let run = Run {
            root: paths.root(),
            directory: paths.root(),
            journal,
            events,
            progress: &mut progress,
            span: (0, 0),
            deadline: Instant::now() + PATIENCE,
            care: Care::Transaction,
            reports: false,
        };
        match run.execute(|_| argv::configure_pending(paths.root())) {
            // The repair's exit code says nothing of the change itself.
            Ok(RunEnd::Exited(end)) => tool.output = end.output,
            Ok(RunEnd::Cancelled | RunEnd::TimedOut) => {}
            Err(error) => remark(events, &format!("the repair could not be run: {error}")),
        }
    }
    Ok(Some(tool))
}

fn unchanged(when: &str) -> Box<Ended> {
    Box::new(Ended {
        status: JobStatus::Failed,
        outcome: Some(Outcome::Unchanged),
        exit_code: None,
        error: Some(interrupted(when)),
        results: Vec::new(),
        answer: None,
    })
}

fn interrupted(when: &str) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::PkgManagerError, format!("the root side was interrupted {when}"))
}
