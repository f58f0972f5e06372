//! Changes whose executor died: repair what they left, judge by the database, end their event files truthfully.
//!
//! Nothing is run again. Whatever of apt or dpkg outlived the executor is waited for first.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::Context;
use patch_apply::apt::ballast;
use patch_types::{
    ErrorCode, ErrorDetail, EventKind, JobId, JobStatus, Outcome,
    event::{Ended, LogStream},
    executor::{PROTOCOL, Reply, Request, RequestBody, body_length, decode, encode},
    policy::SWITCH,
};
use uuid::Uuid;

use crate::{
    change,
    events::{Events, EventsError},
    handover,
    journal::{self, Claim, Journal, State},
    paths::Paths,
    prune, reboot, record, rehearse, restarts, snapshots, turn,
};

/// Settles a change. One that has ended, or whose executor lives, is left alone.
///
/// # Errors
/// When its event file cannot be used: nobody could be told the truth.
pub(crate) fn run(paths: &Paths, id: JobId) -> anyhow::Result<()> {
    let claim = match Claim::take(&paths.journal(id)) {
        Ok(Some(claim)) => claim,
        Ok(None) => return Ok(()),
        // Nothing was begun without a journal, and nobody has promised anything.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot settle job {id}")),
    };
    let (mut events, seen) = match Events::resume(&paths.event_file(id)) {
        Ok(resumed) => resumed,
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
    // Read under the claim: the executor may have gone on until it died.
    let mut journal = match Journal::open(&paths.journal(id)) {
        Ok(journal) => journal,
        // Nobody will ever read it.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Other) => {
            damaged(paths, id, &mut events, &error);
            return Ok(());
        }
        Err(error) => {
            return Err(error).with_context(|| format!("the journal of job {id} cannot be read now"));
        }
    };
    journal.hold(claim);
    let ended = match journal.record.state.clone() {
        State::Ended { ended } => ended,
        State::Accepted
        | State::Refreshing
        | State::Planning
        | State::Downloading { .. }
        | State::Rehearsing { .. }
        | State::Snapshotting { .. } => {
            rehearse::settled(paths, &journal);
            snapshots::settled(paths, id);
            unchanged("before anything was changed; submit it again if it is still wanted")
        }
        State::Repairing
        | State::Applying { .. }
        | State::Verifying { .. }
        | State::Confirming { .. }
        | State::GoingBack { .. }
        | State::Returning { .. } => {
            return change::resume(paths, journal, events);
        }
        State::Rebooting { order, .. } => return reboot::resume(paths, journal, events, &order),
    };
    change::finish(paths, &mut journal, &mut events, ended);
    Ok(())
}

/// Settles every change that needs it, oldest first: at boot, and when an executor or the daemon died. What cannot be
/// settled is told, and does not keep the others from it.
pub(crate) fn all(paths: &Paths) -> anyhow::Result<()> {
    paths.prepare()?;
    let mut tried: BTreeSet<JobId> = BTreeSet::new();
    let mut failed = 0;
    // Looked at again until there is nothing new: an executor may die while this is at work for another.
    loop {
        let mut due: Vec<(JobId, State)> = Journal::all(paths)
            .into_iter()
            .filter(|(id, _)| !tried.contains(id))
            .filter_map(|(id, dir)| match Journal::open(&dir) {
                Ok(journal) => {
                    let over = matches!(journal.record.state, State::Ended { .. })
                        && Events::has_ended(&paths.event_file(id));
                    (!over).then_some((id, journal.record.state))
                }
                Err(_) => Some((id, State::Accepted)),
            })
            .filter(|(id, _)| !Claim::is_held(&paths.journal(*id)))
            .collect();
        if due.is_empty() {
            break;
        }
        due.sort_by_key(|(id, _)| *id);
        for (id, state) in due {
            tried.insert(id);
            // Who waits for a person does so in a process of its own, so that nobody waits for that.
            if matches!(state, State::Confirming { .. }) && hand_over(paths, id).is_ok() {
                continue;
            }
            // That may take days, and nobody is to wait for it: if it cannot be handed over, the daemon has it settled.
            if matches!(state, State::Rebooting { .. }) {
                if let Err(error) = hand_over(paths, id) {
                    eprintln!("patch-executor: reboot {id} cannot be watched now: {error:#}");
                }
                continue;
            }
            if let Err(error) = run(paths, id) {
                failed += 1;
                eprintln!("patch-executor: {error:#}");
            }
        }
    }
    prune::fetched(paths);
    prune::unfinished(paths);
    // Room that was reserved for going back, if nobody is at work who may need it, or will be.
    let all_settled = failed == 0 && !Journal::all(paths).iter().any(|(id, _)| is_due(paths, *id));
    if all_settled {
        restarts::sweep(paths);
    }
    if all_settled
        && turn::is_free(paths)
        && let Err(error) = ballast::release(paths.root(), &paths.state())
    {
        eprintln!("patch-executor: the room that was set aside could not be given back: {error}");
    }
    // Where its timer is off nobody else looks after a boot.
    if paths.root().join(SWITCH).exists() {
        handover::look(paths.root());
    }
    anyhow::ensure!(failed == 0, "{failed} changes could not be settled");
    Ok(())
}

/// Whether a change was begun and nobody has brought it to its end.
pub(crate) fn is_due(paths: &Paths, id: JobId) -> bool {
    // Everybody has been told its end, whatever became of its journal since.
    if Events::has_ended(&paths.event_file(id)) {
        return false;
    }
    match Journal::open(&paths.journal(id)) {
        Ok(journal) => !matches!(
            journal.record.state,
            State::Ended { .. }
                | State::Accepted
                | State::Refreshing
                | State::Planning
                | State::Downloading { .. }
                | State::Rehearsing { .. }
                | State::Snapshotting { .. }
                | State::Rebooting { .. }
        ),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Settles one change, in a process of its own if it waits for a person.
pub(crate) fn one(paths: &Paths, id: JobId) -> anyhow::Result<()> {
    let waits =
        Journal::open(&paths.journal(id)).is_ok_and(|j| matches!(j.record.state, State::Confirming { .. }));
    if waits && !Claim::is_held(&paths.journal(id)) && hand_over(paths, id).is_ok() {
        return Ok(());
    }
    run(paths, id)
}

/// Has a change settled by a process of its own, through the socket.
fn hand_over(paths: &Paths, job: JobId) -> anyhow::Result<()> {
    let mut socket = UnixStream::connect(paths.socket())?;
    let limit = Some(Duration::from_secs(5));
    socket.set_read_timeout(limit)?;
    socket.set_write_timeout(limit)?;
    let id = JobId(Uuid::now_v7());
    let body = RequestBody::Settle { job };
    socket.write_all(&encode(&Request { protocol: PROTOCOL, id, body, on_behalf: None })?)?;
    let mut prefix = [0; 4];
    socket.read_exact(&mut prefix)?;
    let mut body = vec![0; body_length(prefix)?];
    socket.read_exact(&mut body)?;
    anyhow::ensure!(decode::<Reply>(&body)? == Reply::Accepted, "the root side refused to settle job {job}");
    Ok(())
}

/// A job whose journal cannot be read. What it did is not known, and that is said; the journal is kept aside.
fn damaged(paths: &Paths, id: JobId, events: &mut Events, error: &std::io::Error) {
    let dir = paths.journal(id);
    let aside = dir.with_file_name(format!("{}{id}", journal::DAMAGED));
    let message = format!(
        "the journal of job {id} cannot be read ({error}), so what it did to the host is not known; see `dpkg --audit` \
         and /var/log/dpkg.log. It is kept as {}",
        aside.display()
    );
    events.emit(EventKind::Log { stream: LogStream::Executor, line: message.clone() });
    let ended = Box::new(Ended {
        status: JobStatus::Failed,
        outcome: Some(Outcome::Partial),
        exit_code: None,
        error: Some(ErrorDetail::new(ErrorCode::PkgManagerError, message)),
        results: Vec::new(),
        answer: None,
    });
    record::ended(paths, id, &ended);
    events.emit_durably(EventKind::Ended(ended));
    // Last: as long as it has its name, it is settled again.
    if let Err(error) = fs::rename(&dir, &aside)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("patch-executor: cannot put {} aside: {error}", dir.display());
    }
}

/// The end of a change of which nothing was begun.
pub(crate) fn unchanged(when: &str) -> Box<Ended> {
    Box::new(Ended {
        status: JobStatus::Failed,
        outcome: Some(Outcome::Unchanged),
        exit_code: None,
        error: Some(interrupted(when)),
        results: Vec::new(),
        answer: None,
    })
}

/// What is said of a change whose executor died.
pub(crate) fn interrupted(when: &str) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::PkgManagerError, format!("the root side was interrupted {when}"))
}
