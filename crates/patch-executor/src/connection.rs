//! One connection: who asks, what is asked, accept or refuse. Then the socket is closed and the work begins.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::unistd::Uid;
use patch_apply::apt::taken_back;
use patch_types::{
    ErrorCode, ErrorDetail, EventKind, JobId, Operation, RollbackMode,
    executor::{
        FrameError, OnBehalf, PROTOCOL, Reply, Request, RequestBody, TakenBack, body_length, decode, encode,
    },
    operation::OperationError,
    rollback::MAX_CONFIRM_SECONDS,
};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    back,
    ceiling::Ceiling,
    change, checkpoint,
    events::{Events, EventsError},
    journal::{Journal, State},
    paths::{self, Paths},
    prune, query, reboot, record,
    record::{Asker, Refused},
    rehearse, server_key, settle, stop, tool, turn,
};

/// How long a peer may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest limits that a request may set for itself, in seconds.
const MAX_LIMIT_SECONDS: u64 = 24 * 3600;

/// The shortest limit that the daemon can set: `security.job_timeout_minutes` is at least one.
const MIN_LIMIT_SECONDS: u64 = 60;

/// A request that sets itself limits beyond reason.
#[derive(Debug, thiserror::Error)]
#[error("a time limit must be between {MIN_LIMIT_SECONDS} and {MAX_LIMIT_SECONDS} seconds")]
struct LimitTooLarge;

/// A request to wait for a confirmation where that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("only a change of packages can wait to be confirmed, for 1 to {MAX_CONFIRM_SECONDS} seconds")]
struct NoConfirmation;

/// A request to rehearse what no image could show.
#[derive(Debug, thiserror::Error)]
#[error(
    "only a change of packages can be rehearsed: an installation, an update, a removal, or applying updates"
)]
struct NoRehearsal;

/// A request to go back to a snapshot that names nothing that was listed.
#[derive(Debug, thiserror::Error)]
#[error(
    "going back to a snapshot takes back more than a job's packages: ask what first, without changing anything, and      approve the hash of that (`if_plan`)"
)]
struct NothingListed;

/// A job that is not where it could be cancelled or confirmed.
#[derive(Debug, thiserror::Error)]
#[error("job {job} cannot be {what} now: it is {state}")]
struct NotNow {
    job: JobId,
    what: &'static str,
    state: &'static str,
}

/// A request that the daemon's user may not make.
#[derive(Debug, thiserror::Error)]
#[error("only root may ask this; use linux-patch-host on the host itself")]
struct RootAlone;

/// What is begun once the reply is out.
enum Work {
    Change(Box<Journal>, Events),
    /// For whom, as people know them.
    Reboot(Box<Journal>, Events, String),
    Query(query::Asked, Events),
    Settle(JobId),
    /// Sent behind the reply.
    Key(Zeroizing<Vec<u8>>),
    Nothing,
}

/// Serves the connection that is standard input.
pub(crate) fn serve(paths: &Paths) -> anyhow::Result<()> {
    // A stop of the unit must not end a transaction: it is remembered, and looked at where stopping harms nothing.
    // Nothing is blocked, since tools would inherit that; handlers they do not.
    stop::defer().context("cannot defer signals")?;
    // Of a session of its own, apart from whoever started it; under systemd it leads one already.
    let _ = rustix::process::setsid();
    // Maintainer scripts rely on it.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));

    let mut socket = take_socket()?;
    socket.set_read_timeout(Some(PATIENCE)).context("cannot bound the wait for the request")?;
    socket.set_write_timeout(Some(PATIENCE)).context("cannot bound the wait for the reply")?;
    let peer = rustix::net::sockopt::socket_peercred(&socket).context("cannot tell who asks")?;
    if is_probe(&socket) {
        return Ok(());
    }
    let uid = Uid::from_raw(peer.uid.as_raw());
    let asker = Asker { uid, pid: Some(peer.pid.as_raw_nonzero().get()) };
    let (reply, work) = if paths::may_ask(uid) {
        let answered =
            read_request(&mut socket).map(|request| (request.clone(), accept(paths, asker, request)));
        let (request, answer) = match answered {
            Ok((request, answer)) => (Some(request), answer),
            Err(unreadable) => (None, Err(unreadable)),
        };
        let (reply, work) = answer.unwrap_or_else(|refusal| {
            eprintln!("patch-executor: refused a request of uid {}: {refusal:#}", peer.uid.as_raw());
            (refused(&refusal), Work::Nothing)
        });
        keep_record(paths, asker, request.as_ref(), &reply);
        (reply, work)
    } else {
        eprintln!(
            "patch-executor: refused uid {}: only root and the daemon's user may ask",
            peer.uid.as_raw()
        );
        let message = "only root and the daemon's user may ask".to_owned();
        let (id, code) = (JobId(Uuid::nil()), ErrorCode::AuthzForbidden);
        record::refusal(paths, Refused::Stranger, record::stranger(asker, id, code, &message));
        (Reply::Refused { code: ErrorCode::AuthzForbidden, message }, Work::Nothing)
    };
    // The work goes on whether or not the reply arrives: it is journalled, and whoever asked can follow it later.
    if let Err(error) = encode(&reply).map_err(anyhow::Error::from).and_then(|f| Ok(socket.write_all(&f)?)) {
        eprintln!("patch-executor: the reply could not be sent: {error:#}");
    }
    if let Work::Key(key) = &work {
        // What became of it is not told either: the daemon says so itself.
        if let Err(error) = server_key::send(&mut socket, key) {
            eprintln!("patch-executor: the server's key could not be sent: {error}");
        }
    }
    drop(socket);

    match work {
        Work::Change(journal, events) => change::run(paths, *journal, events)?,
        Work::Reboot(journal, events, by) => reboot::run(paths, *journal, events, by)?,
        Work::Query(asked, events) => {
            // Each runs a solver: so many at once that memory is short would end whatever else is under way.
            let _slot = if uid.is_root() { None } else { turn::read(paths, stop::is_asked, tool::pause)? };
            query::run(paths, &asked, events);
        }
        Work::Settle(job) => settle::run(paths, job)?,
        Work::Key(_) | Work::Nothing => {}
    }
    record::flush(paths);
    Ok(())
}

/// Records what was asked and answered, but for what only reads. An accepted change has been recorded before it was.
fn keep_record(paths: &Paths, asker: Asker, request: Option<&Request>, reply: &Reply) {
    let event = match (request, reply) {
        (None, Reply::Refused { code, message }) => {
            record::stranger(asker, JobId(Uuid::nil()), *code, message)
        }
        (None, _) => return,
        (Some(request), reply) => {
            let is_on_record = match &request.body {
                RequestBody::Change { .. } => *reply == Reply::Accepted,
                RequestBody::Plan { .. } | RequestBody::Query { .. } => {
                    !matches!(reply, Reply::Refused { .. })
                }
                // The signature and the contradiction have records of their own kinds.
                RequestBody::Checkpoint { .. } => {
                    !matches!(reply, Reply::Refused { code, .. } if *code != ErrorCode::SignatureError)
                }
                _ => false,
            };
            if is_on_record {
                return;
            }
            record::request(asker, request.on_behalf.as_ref(), request.id, &request.body, reply)
        }
    };
    match reply {
        // Whoever is root could remove the record.
        Reply::Refused { .. } | Reply::Known if !asker.uid.is_root() => {
            record::refusal(paths, Refused::Request, event);
        }
        _ => record::note(paths, vec![event]),
    }
}

/// Standard input as a socket; afterwards descriptor 0 is `/dev/null`.
fn take_socket() -> anyhow::Result<UnixStream> {
    let socket =
        rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).context("cannot use standard input")?;
    let null = File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("cannot close standard input")?;
    Ok(UnixStream::from(socket))
}

/// A connection that is closed without a byte only asks whether somebody listens.
fn is_probe(socket: &UnixStream) -> bool {
    let mut first = [0; 1];
    let peeked = rustix::net::recv(socket, &mut first[..], rustix::net::RecvFlags::PEEK);
    matches!(peeked, Ok((0, _)))
}

fn read_request(socket: &mut UnixStream) -> anyhow::Result<Request> {
    let deadline = Instant::now() + PATIENCE;
    let mut prefix = [0; 4];
    read_by(socket, &mut prefix, deadline).context("the request did not arrive")?;
    let mut body = vec![0; body_length(prefix)?];
    read_by(socket, &mut body, deadline).context("the request did not arrive whole")?;
    let request: Request = decode(&body)?;
    if request.protocol != PROTOCOL {
        bail!(
            "the request speaks protocol {}, this executor {PROTOCOL}: daemon and executor are of different versions; \
             restart linux-patch-api.service",
            request.protocol
        );
    }
    Ok(request)
}

/// Fills a buffer, or fails when the deadline is over, however slowly the bytes drip.
fn read_by(socket: &mut UnixStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buffer = buffer.get_mut(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn refused(error: &anyhow::Error) -> Reply {
    // What the request itself is to blame for can never be accepted; all else may be over at the next try.
    let invalid = error.chain().any(|cause| {
        cause.is::<OperationError>()
            || cause.is::<LimitTooLarge>()
            || cause.is::<NoConfirmation>()
            || cause.is::<NoRehearsal>()
            || cause.is::<NothingListed>()
            || matches!(cause.downcast_ref(), Some(FrameError::Body(_)))
    });
    let code = match error.downcast_ref::<NotNow>() {
        Some(_) => ErrorCode::JobConflict,
        None if invalid => ErrorCode::InvalidRequest,
        None if error.is::<RootAlone>() => ErrorCode::AuthzForbidden,
        None => error.downcast_ref::<ErrorDetail>().map_or(ErrorCode::ServiceUnhealthy, |detail| detail.code),
    };
    let mut message = format!("{error:#}");
    message.truncate(message.floor_char_boundary(2000));
    Reply::Refused { code, message }
}

/// Checks a request afresh, since the daemon is not trusted, and journals it.
fn accept(paths: &Paths, asker: Asker, request: Request) -> anyhow::Result<(Reply, Work)> {
    let Request { id, body, on_behalf, .. } = request;
    if body.is_for_root_alone() && !asker.uid.is_root() {
        return Err(RootAlone.into());
    }
    if matches!(body, RequestBody::ServerKey) {
        // Nothing is written for it: no journal, no event file.
        return Ok((Reply::Accepted, Work::Key(server_key::read(paths.root())?)));
    }
    paths.prepare()?;
    let accepted = matches!(body, RequestBody::Change { .. })
        .then(|| record::request(asker, on_behalf.as_ref(), id, &body, &Reply::Accepted));
    match body {
        RequestBody::Change { operation, limits, if_plan, options, not_after } => {
            operation.check()?;
            // Scripts are ended at the limit: the daemon's user must not be able to make that one break a host.
            let least = if asker.uid.is_root() { 1 } else { MIN_LIMIT_SECONDS };
            if !(least..=MAX_LIMIT_SECONDS).contains(&limits.timeout_seconds)
                || limits.lock_wait_seconds > MAX_LIMIT_SECONDS
            {
                return Err(LimitTooLarge.into());
            }
            if let Some(seconds) = options.confirm_within {
                let can_wait = !matches!(
                    operation,
                    Operation::Rollback(_) | Operation::Hold(_) | Operation::Refresh | Operation::Reboot(_)
                );
                if !can_wait || !(1..=MAX_CONFIRM_SECONDS).contains(&seconds) {
                    return Err(NoConfirmation.into());
                }
            }
            if if_plan.is_none()
                && matches!(&operation, Operation::Rollback(rollback) if rollback.mode == RollbackMode::Snapshot)
            {
                return Err(NothingListed.into());
            }
            if options.rehearse.is_some() && !rehearse::is_possible(&operation) {
                return Err(NoRehearsal.into());
            }
            // What was accepted once stays known, whatever the ceiling or the disk say by now.
            if paths.journal(id).exists() {
                return Ok((Reply::Known, Work::Nothing));
            }
            Ceiling::load(paths.root())?.admits(&operation)?;
            prune::journals(paths)?;
            // Going back is worth trying on the fullest disk.
            if !matches!(operation, Operation::Rollback(_)) {
                paths.make_reserve()?;
            }
            if let Some(accepted) = accepted {
                match operation {
                    Operation::Rollback(_) => record::note(paths, vec![accepted]),
                    _ => record::require(paths, accepted)?,
                }
            }
            let mut journal =
                match Journal::create(&paths.journal(id), id, operation, limits, if_plan, options) {
                    Ok(journal) => journal,
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                        return Ok((Reply::Known, Work::Nothing));
                    }
                    Err(error) => {
                        return Err(error)
                            .with_context(|| format!("cannot journal {}", paths.journal(id).display()));
                    }
                };
            journal.record.not_after = not_after;
            let mut events = Events::create(&paths.event_file(id))?;
            events.emit_durably(EventKind::Accepted);
            if matches!(journal.record.operation, Operation::Reboot(_)) {
                return Ok((
                    Reply::Accepted,
                    Work::Reboot(Box::new(journal), events, whom(on_behalf.as_ref())),
                ));
            }
            Ok((Reply::Accepted, Work::Change(Box::new(journal), events)))
        }
        RequestBody::Plan { operation } => {
            operation.check()?;
            ask(paths, id, query::Asked::Plan(operation))
        }
        RequestBody::Query { query } => ask(paths, id, query::Asked::Query(query)),
        RequestBody::Cancel { job } => {
            let journal = known(paths, job)?;
            if !journal.record.state.phase().is_none_or(patch_types::Phase::is_cancellable)
                || matches!(journal.record.state, State::Ended { .. })
            {
                return Err(
                    NotNow { job, what: "cancelled", state: state_name(&journal.record.state) }.into()
                );
            }
            journal.request_cancel().with_context(|| format!("cannot ask job {job} to stop"))?;
            Ok((Reply::Accepted, Work::Nothing))
        }
        RequestBody::Confirm { job } => {
            let journal = known(paths, job)?;
            let waits = matches!(journal.record.state, State::Confirming { .. });
            if !(waits || journal.is_kept()) {
                return Err(
                    NotNow { job, what: "confirmed", state: state_name(&journal.record.state) }.into()
                );
            }
            let kept = journal
                .decide(true)
                .with_context(|| format!("that job {job} is confirmed cannot be recorded"))?;
            if !kept {
                return Err(
                    NotNow { job, what: "confirmed", state: "going back, since its time is over" }.into()
                );
            }
            Ok((Reply::Accepted, Work::Nothing))
        }
        RequestBody::Settle { job } => {
            if !paths.journal(job).exists() {
                bail!("there is no journal of job {job}");
            }
            Ok((Reply::Accepted, Work::Settle(job)))
        }
        RequestBody::Repaired { job } => {
            back::repaired(paths, job)?;
            Ok((Reply::Accepted, Work::Nothing))
        }
        RequestBody::ServerKey => bail!("the server's key is handed over before this"),
        RequestBody::Clear { versions } => {
            clear(paths, versions)?;
            Ok((Reply::Accepted, Work::Nothing))
        }
        RequestBody::Checkpoint { head } => {
            let checkpoint = checkpoint::sign(paths, &head)?;
            Ok((Reply::Signed { checkpoint }, Work::Nothing))
        }
    }
}

fn ask(paths: &Paths, id: JobId, asked: query::Asked) -> anyhow::Result<(Reply, Work)> {
    prune::answers(paths);
    match Events::create(&paths.event_file(id)) {
        Ok(mut events) => {
            events.emit(EventKind::Accepted);
            Ok((Reply::Accepted, Work::Query(asked, events)))
        }
        Err(EventsError::Exists { .. }) => Ok((Reply::Known, Work::Nothing)),
        Err(error) => Err(error.into()),
    }
}

/// Lets versions that were taken back be installed again.
fn clear(paths: &Paths, versions: TakenBack) -> anyhow::Result<()> {
    let (root, state) = (paths.root(), paths.state());
    match versions {
        TakenBack::Package { name, version } => {
            // Clearing what is not pinned is no failure: it is as was asked for.
            taken_back::clear(root, &state, &name, version.as_ref())?;
        }
        TakenBack::All => {
            for entry in taken_back::list(&state)? {
                taken_back::clear(root, &state, &entry.name, Some(&entry.version))?;
            }
        }
    }
    back::publish(paths);
    Ok(())
}

/// Who asks, as people know them; shown and recorded, and never decided by.
fn whom(on_behalf: Option<&OnBehalf>) -> String {
    let client = on_behalf.and_then(|on_behalf| Some(on_behalf.client.as_ref()?.identity.as_str()));
    let name = client.or(on_behalf.and_then(|on_behalf| on_behalf.sudo_user.as_deref())).unwrap_or("root");
    name.chars().filter(|c| !c.is_control()).take(256).collect()
}

fn known(paths: &Paths, job: JobId) -> anyhow::Result<Journal> {
    Journal::open(&paths.journal(job)).with_context(|| format!("there is no readable journal of job {job}"))
}

fn state_name(state: &State) -> &'static str {
    match state {
        State::Ended { .. } => "over",
        other => other.phase().map_or("accepted", patch_types::Phase::as_str),
    }
}

#[cfg(test)]
mod tests {
    use patch_types::{
        ChangeOptions,
        executor::{Limits, TakenBack},
        operation::Remove,
    };

    use super::*;

    #[test]
    fn what_is_for_root_alone_is_refused_to_the_daemon_before_anything_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path().to_owned());
        let request = Request {
            protocol: PROTOCOL,
            id: JobId(Uuid::now_v7()),
            body: RequestBody::Clear { versions: TakenBack::All },
            on_behalf: None,
        };
        let asker = Asker { uid: Uid::from_raw(4711), pid: None };
        let Err(error) = accept(&paths, asker, request) else { panic!("it was accepted") };
        assert!(matches!(refused(&error), Reply::Refused { code: ErrorCode::AuthzForbidden, .. }));
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
    #[test]
    fn the_daemon_cannot_set_a_limit_that_breaks_changes_off() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("var/lib")).unwrap();
        let paths = Paths::below(dir.path().to_owned());
        let daemon = Uid::from_raw(4711);
        let is_too_short = |uid: Uid, timeout_seconds: u64| {
            let operation =
                Operation::Remove(Remove { name: "aa".parse().unwrap(), purge: false, autoremove: false });
            let limits = Limits { timeout_seconds, lock_wait_seconds: 0 };
            let options = ChangeOptions::default();
            let body = RequestBody::Change { operation, limits, if_plan: None, options, not_after: None };
            let request = Request { protocol: PROTOCOL, id: JobId(Uuid::now_v7()), body, on_behalf: None };
            let Err(error) = accept(&paths, Asker { uid, pid: None }, request) else { return false };
            let is_invalid =
                matches!(refused(&error), Reply::Refused { code: ErrorCode::InvalidRequest, .. });
            assert_eq!(is_invalid, error.is::<LimitTooLarge>(), "{error:#}");
            is_invalid
        };
        assert!(is_too_short(daemon, 0) && is_too_short(daemon, 1) && is_too_short(daemon, 59));
        assert!(!is_too_short(daemon, 60) && !is_too_short(Uid::from_raw(0), 1));
        assert!(is_too_short(Uid::from_raw(0), 0) && is_too_short(daemon, MAX_LIMIT_SECONDS + 1));
    }
}
