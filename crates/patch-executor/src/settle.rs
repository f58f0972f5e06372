//! A change whose executor died: repair what it left, judge by the database, end its event file truthfully.
//!
//! Nothing is run again. Whatever of apt or dpkg outlived the executor is waited for first.

use std::time::{Duration, Instant};

use anyhow::Context;
use patch_apply::{apt::argv, apt::lock::Locks};
use patch_types::{
    ErrorCode, ErrorDetail, EventKind, JobStatus, Outcome,
    event::{Ended, LogStream},
};

use crate::{
    change,
    events::{Events, EventsError},
    journal::{Journal, State, ToolEnd},
    paths::Paths,
    tool::{self, Blocked, Care, Progress, Run, RunEnd},
    verdict,
};

/// How long surviving tools are waited for.
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
    let remark = |events: &mut Events, line: &str| {
        events.emit(EventKind::Log { stream: LogStream::Executor, line: line.to_owned() });
    };
    let ended = match journal.record.state.clone() {
        State::Ended { ended } => ended,
        state if state.outcome_if_interrupted() == Some(Outcome::Unchanged) => Box::new(Ended {
            status: JobStatus::Failed,
            outcome: Some(Outcome::Unchanged),
            exit_code: None,
            error: Some(interrupted("before anything was changed; submit it again if it is still wanted")),
            results: Vec::new(),
            answer: None,
        }),
        State::Applying { plan, auto } => {
            // Another change may be under way meanwhile; repairs are changes as well.
            let _turn = change::blocking_turn(paths);
            remark(
                &mut events,
                "the executor was interrupted while packages were being changed; looking what is left",
            );
            match tool::wait_for_locks(paths.root(), Locks::Packages, &journal, &mut events, PATIENCE) {
                // A request to cancel changes nothing any more: what was begun has to be looked at.
                Ok(()) | Err(Blocked::Cancelled) => {}
                Err(Blocked::Held(holder)) => {
                    remark(&mut events, &format!("{} is still held; judging without repair", holder.lock));
                }
            }
            let mut tool = ToolEnd::default();
            if !change::pending_repairs(paths.root()).unwrap_or_default().is_empty() {
                remark(&mut events, "finishing what was left unpacked or half-configured");
                let mut progress = Progress::default();
                let run = Run {
                    root: paths.root(),
                    directory: paths.root(),
                    journal: &journal,
                    events: &mut events,
                    progress: &mut progress,
                    span: (0, 0),
                    deadline: Instant::now() + PATIENCE,
                    care: Care::Transaction,
                };
                match run.execute(|_| argv::configure_pending(paths.root())) {
                    Ok(RunEnd::Exited(end)) => tool = end,
                    Ok(RunEnd::Cancelled | RunEnd::TimedOut) => {}
                    Err(error) => remark(&mut events, &format!("the repair could not be run: {error}")),
                }
            }
            change::restore_marks(paths.root(), &auto, &mut events);
            let mut ended = verdict::judge(paths.root(), &journal.record.operation, &plan, &tool);
            if ended.status != JobStatus::Completed {
                ended.error = Some(interrupted(
                    "while packages were being changed; the results say how each one is now",
                ));
            }
            ended
        }
        State::Verifying { plan, tool } => {
            verdict::judge(paths.root(), &journal.record.operation, &plan, &tool)
        }
        // All others are told apart above: nothing had been changed in them.
        State::Accepted | State::Refreshing | State::Planning | State::Downloading { .. } => {
            Box::new(Ended {
                status: JobStatus::Failed,
                outcome: Some(Outcome::Unchanged),
                exit_code: None,
                error: Some(interrupted("before anything was changed")),
                results: Vec::new(),
                answer: None,
            })
        }
    };
    change::finish(&mut journal, &mut events, ended);
    Ok(())
}

fn interrupted(when: &str) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::PkgManagerError, format!("the root side was interrupted {when}"))
}
