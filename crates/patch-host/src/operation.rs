//! An operation from its request to its end, as a person sees it.

use std::{path::Path, thread, time::Duration};

use patch_types::{
    ChangeOptions, ErrorCode, Event, EventKind, JobId, JobStatus, LockHolder, Operation, Outcome,
    PackageVersion, PlanHash, RollbackMode, WentBack,
    event::{Ended, LogStream, QueryResult},
    executor::{JOURNAL_DIR, Limits, RequestBody},
    operation::Rollback,
};
use serde::Serialize;

use crate::{
    ask::{AskError, Root},
    exit::Exit,
    follow::{Follow, FollowError, Look},
    screen::Screen,
};

/// How patiently an operation is followed.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Between two looks at the event file.
    pause: Duration,
    /// How many looks in a row must find the executor dead: it makes its file and locks it afterwards.
    until_dead: u32,
    /// The same once the root side has been asked to settle the operation: it answers first and takes the lock then.
    until_given_up: u32,
}

const PACE: Pace = Pace { pause: Duration::from_millis(50), until_dead: 20, until_given_up: 200 };

/// An operation whose executor died and that nobody took over.
#[derive(Debug, thiserror::Error)]
#[error(
    "the root side died over operation {id} and nobody took it over; what it did to the host is not known: see \
     `journalctl -u 'linux-patch-executor@*'` and `dpkg --audit`, then try `linux-patch-host watch {id}` again"
)]
struct GivenUp {
    id: JobId,
}

/// Has a job taken back.
pub(crate) fn roll_back(
    root: &Root,
    screen: &mut Screen,
    rollback: Rollback,
    if_plan: Option<PlanHash>,
) -> anyhow::Result<Exit> {
    if rollback.mode == RollbackMode::Snapshot && if_plan.is_none() {
        return list(PACE, root, screen, rollback);
    }
    roll_back_at(PACE, root, screen, rollback, if_plan)
}

/// Shows what going back to a snapshot would take back.
fn list(pace: Pace, root: &Root, screen: &mut Screen, rollback: Rollback) -> anyhow::Result<Exit> {
    let Rollback { job, force, .. } = rollback;
    let id = root.ask(RequestBody::Plan { operation: Operation::Rollback(rollback) })?;
    let mut follow = open(root, id)?;
    let mut dead = 0;
    let plan = loop {
        match follow.look()? {
            Look::Events(events) => {
                let end = events.into_iter().find_map(|event| match event.kind {
                    EventKind::Ended(ended) => Some(ended),
                    _ => None,
                });
                match end.map(|ended| (ended.answer, ended.error)) {
                    Some((Some(QueryResult::Plan(plan)), _)) => break plan,
                    Some((_, Some(error))) => {
                        return Err(anyhow::anyhow!("{}: {}", error.code, error.message));
                    }
                    Some(_) => return Err(anyhow::anyhow!("the root side answered another question")),
                    None => {}
                }
            }
            Look::Dead if dead >= pace.until_dead => return Err(GivenUp { id }.into()),
            Look::Dead => {
                dead += 1;
                thread::sleep(pace.pause);
            }
            Look::Quiet => thread::sleep(pace.pause),
        }
    };
    if screen.is_json() {
        screen.json(&plan)?;
        return Ok(Exit::Done);
    }
    let Some(back) = &plan.takes_back else { return Ok(Exit::Done) };
    let mut lines = vec![format!(
        "Back to the {} snapshot {} of {:.0}, for {}:",
        back.kind,
        back.names.join(", "),
        back.at,
        back.file_systems.join(", ")
    )];
    lines.extend(plan.changes.iter().map(|change| {
        let version = |version: &Option<PackageVersion>| {
            version.as_ref().map_or("-", PackageVersion::as_str).to_owned()
        };
        format!(
            "  package {} {} -> {}",
            change.name,
            version(&change.old_version),
            version(&change.new_version)
        )
    }));
    lines.extend(back.files.iter().map(|file| match file.files {
        1 => format!("  {} {}", file.change, file.path),
        files => format!("  {} {} ({files} files)", file.change, file.path),
    }));
    let more = back.total.saturating_sub(u64::try_from(back.files.len()).unwrap_or(u64::MAX));
    lines.extend((more > 0).then(|| format!("  and {more} more")));
    lines.extend(back.left_out.iter().map(|point| format!("stays as it is: {point}")));
    lines.extend(back.kept.iter().map(|path| format!("is kept as it is now: {path}")));
    lines.extend(back.hazards.iter().map(|hazard| format!("BEWARE: {hazard}")));
    for line in lines {
        screen.text(&patch_types::terminal::line(&line));
    }
    let forced = if force || back.hazards.is_empty() { "" } else { " --force" };
    screen.text(&format!(
        "\nNothing was changed. To have all of this taken back at the next reboot:\n  linux-patch-host rollback {job} --snapshot \
         --if-plan {}{forced}",
        plan.hash
    ));
    Ok(Exit::Done)
}

fn roll_back_at(
    pace: Pace,
    root: &Root,
    screen: &mut Screen,
    rollback: Rollback,
    if_plan: Option<PlanHash>,
) -> anyhow::Result<Exit> {
    let job = rollback.job;
    let id = root.ask(RequestBody::Change {
        operation: Operation::Rollback(rollback),
        limits: Limits::default(),
        if_plan,
        options: ChangeOptions::default(),
        not_after: None,
    })?;
    #[derive(Serialize)]
    struct Begun {
        event: &'static str,
        id: JobId,
    }
    if screen.is_json() {
        screen.json(&Begun { event: "begun", id })?;
    }
    screen.remark(&format!(
        "Taking back job {job}, as operation {id}. It goes on if you stop watching; to watch it again:\n  \
         linux-patch-host watch {id}"
    ));
    to_end(pace, root, screen, id, open(root, id)?, false)
}

/// Follows an operation that somebody began.
pub(crate) fn watch(root: &Root, screen: &mut Screen, id: JobId) -> anyhow::Result<Exit> {
    watch_at(PACE, root, screen, id)
}

fn watch_at(pace: Pace, root: &Root, screen: &mut Screen, id: JobId) -> anyhow::Result<Exit> {
    let follow = match open(root, id) {
        Err(error @ FollowError::Missing(_)) => {
            if !root.files().is_there(Path::new(JOURNAL_DIR).join(id.to_string())) {
                return Err(error.into());
            }
            None
        }
        other => Some(other?),
    };
    if let Some(follow) = follow {
        return to_end(pace, root, screen, id, follow, false);
    }
    // It is journalled first; the file follows at once unless its executor died between the two.
    if let Some(follow) = appears(pace, pace.until_dead, root, id)? {
        return to_end(pace, root, screen, id, follow, false);
    }
    settle(root, screen, id)?;
    let follow = appears(pace, pace.until_given_up, root, id)?.ok_or(GivenUp { id })?;
    to_end(pace, root, screen, id, follow, true)
}

fn open(root: &Root, id: JobId) -> Result<Follow, FollowError> {
    Follow::new(root.events_of(id), root.open_events(id))
}

/// The event file, if it is there within so many looks.
fn appears(pace: Pace, looks: u32, root: &Root, id: JobId) -> Result<Option<Follow>, FollowError> {
    for _ in 0..looks {
        match open(root, id) {
            Err(FollowError::Missing(_)) => thread::sleep(pace.pause),
            other => return other.map(Some),
        }
    }
    Ok(None)
}

/// Has an operation settled whose executor died.
fn settle(root: &Root, screen: &mut Screen, id: JobId) -> Result<(), AskError> {
    screen.remark("The root side died over it. Asking it to look what is left and to finish it.");
    // Under a new id; what comes of it stands in the operation's own file.
    match root.ask(RequestBody::Settle { job: id }) {
        // Somebody else is at it: recovery, or the network side.
        Ok(_) | Err(AskError::Refused { code: ErrorCode::JobConflict | ErrorCode::LockTimeout, .. }) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Keeps a change that waits to be confirmed.
pub(crate) fn confirm(root: &Root, screen: &mut Screen, job: JobId) -> anyhow::Result<Exit> {
    root.ask(RequestBody::Confirm { job })?;
    if screen.is_json() {
        screen.json(&serde_json::json!({ "confirmed": job }))?;
    } else {
        screen.text(&format!("job {job} is confirmed, and stays"));
    }
    Ok(Exit::Done)
}

/// Follows an operation to its end, and has it settled, once and unless it was, if its executor dies.
fn to_end(
    pace: Pace,
    root: &Root,
    screen: &mut Screen,
    id: JobId,
    mut follow: Follow,
    mut settled: bool,
) -> anyhow::Result<Exit> {
    let mut reports = Vec::new();
    let mut dead = 0;
    loop {
        match follow.look()? {
            Look::Events(events) => {
                dead = 0;
                for event in &events {
                    show(screen, event)?;
                    match &event.kind {
                        EventKind::WentBack { report } => reports.push(report.clone()),
                        EventKind::Ended(ended) => {
                            if !screen.is_json() {
                                screen.text(&ending(id, ended, &reports));
                            }
                            return Ok(exit_of(ended));
                        }
                        _ => {}
                    }
                }
                continue;
            }
            Look::Quiet => dead = 0,
            Look::Dead => dead += 1,
        }
        if settled && dead >= pace.until_given_up {
            return Err(GivenUp { id }.into());
        }
        if !settled && dead >= pace.until_dead {
            settle(root, screen, id)?;
            (dead, settled) = (0, true);
        }
        thread::sleep(pace.pause);
    }
}

fn exit_of(ended: &Ended) -> Exit {
    match (ended.status, ended.outcome) {
        (_, Some(Outcome::Partial | Outcome::RollbackFailed)) => Exit::Failed,
        (JobStatus::Completed, _) => Exit::Done,
        _ => Exit::Failed,
    }
}

/// Shows an event as it comes. What went back is shown at the end.
fn show(screen: &mut Screen, event: &Event) -> anyhow::Result<()> {
    if screen.is_json() {
        return Ok(screen.json(event)?);
    }
    let text = match &event.kind {
        EventKind::Accepted
        | EventKind::Progress { .. }
        | EventKind::WentBack { .. }
        | EventKind::Ended(_) => {
            return Ok(());
        }
        EventKind::Phase { phase } => format!("[{phase}]"),
        EventKind::Waiting { holder: Some(holder) } => format!("[waiting for {}]", holder_text(holder)),
        EventKind::Waiting { holder: None } => "[the wait is over]".to_owned(),
        EventKind::Planned { plan } => format!("[{} packages to change]", plan.changes.len()),
        EventKind::Log { stream: LogStream::Output, line } => line.clone(),
        EventKind::Log { stream: LogStream::Executor, line } => format!("[{line}]"),
        EventKind::Log { stream: LogStream::Rehearsal, line } => format!("[rehearsal] {line}"),
        EventKind::Rehearsed { report } => match &report.reason {
            Some(reason) => format!("[rehearsal: {}: {reason}]", report.verdict),
            None => format!("[rehearsal: {}]", report.verdict),
        },
        EventKind::WayBack { way_back } => format!("[the way back of this is recorded: {}]", way_back.grade),
        EventKind::Confirm { until } => format!("[it goes back unless it is confirmed by {until}]"),
        EventKind::Scheduled { until: Some(until) } => format!("[it waits until {until:.0}]"),
        EventKind::Scheduled { until: None } => "[it waits]".to_owned(),
    };
    // One event is one line, whatever is in it.
    screen.text(&patch_types::terminal::line(&text));
    Ok(())
}

fn holder_text(holder: &LockHolder) -> String {
    let who = match (holder.pid, &holder.command) {
        (Some(pid), Some(command)) => format!("held by process {pid}: {command}"),
        (Some(pid), None) => format!("held by process {pid}"),
        (None, _) => "held by somebody that the kernel does not name".to_owned(),
    };
    format!("{}, {who}", holder.lock)
}

/// What came of it.
fn ending(id: JobId, ended: &Ended, reports: &[WentBack]) -> String {
    let mut text = format!("\noperation {id}: {}", ended.status);
    if let Some(outcome) = ended.outcome {
        text.push_str(&format!(", {outcome}"));
    }
    text.push('\n');
    if let Some(error) = &ended.error {
        text.push_str(&format!("{}: {}\n", error.code, error.message));
    }
    for report in reports {
        if !report.reason.is_empty() {
            text.push_str(&format!("went back: {}\n", report.reason));
        }
        for (title, lines) in [
            ("as before:", &report.restored),
            ("edited since, and kept:", &report.kept_edits),
            ("NOT as before:", &report.left),
            ("what you can do, in this order:", &report.commands),
        ] {
            if !lines.is_empty() {
                text.push_str(&format!("{title}\n"));
            }
            for line in lines {
                text.push_str(&format!("  {}\n", patch_types::terminal::line(line)));
            }
        }
        if !report.barred.is_empty() {
            text.push_str("not installed again until newer versions come, or you lift it:\n");
        }
        for version in &report.barred {
            text.push_str(&format!("  linux-patch-host clear {}\n", patch_types::terminal::line(version)));
        }
    }
    let missed: Vec<_> = ended.results.iter().filter(|result| !result.done).collect();
    if !missed.is_empty() {
        text.push_str("not as planned:\n");
    }
    for result in missed {
        let reason = result.reason.as_deref().unwrap_or("the database says otherwise");
        text.push_str(&format!(
            "  {}:{}: {}\n",
            result.name,
            result.architecture,
            patch_types::terminal::line(reason)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, sync::mpsc};

    use jiff::Timestamp;
    use patch_types::{
        ErrorDetail, Phase, Plan, TakesBack,
        executor::Reply,
        snapshot::{ChangedFile, FileChange, SnapshotKind},
    };
    use rustix::fs::{FlockOperation, flock};
    use uuid::Uuid;

    use super::*;
    use crate::{
        ask::tests::{Fake, Turn},
        screen::tests::paper,
    };

    const QUICK: Pace = Pace { pause: Duration::from_millis(1), until_dead: 20, until_given_up: 20 };

    fn line(seq: u64, kind: EventKind) -> Vec<u8> {
        let mut line = serde_json::to_vec(&Event { seq, at: Timestamp::UNIX_EPOCH, kind }).unwrap();
        line.push(b'\n');
        line
    }

    fn end(status: JobStatus, outcome: Outcome) -> EventKind {
        let error = (status != JobStatus::Completed)
            .then(|| ErrorDetail::new(ErrorCode::PkgManagerError, "the preinst refuses"));
        let ended = Ended {
            status,
            outcome: Some(outcome),
            exit_code: None,
            error,
            results: Vec::new(),
            answer: None,
        };
        EventKind::Ended(Box::new(ended))
    }

    fn report() -> EventKind {
        EventKind::WentBack {
            report: WentBack {
                reason: "root asked for it".into(),
                restored: vec!["aa 1.0".into(), "bb not installed".into()],
                left: vec!["cc is 2.0".into()],
                kept_edits: vec!["/etc/aa.conf".into()],
                commands: vec!["dpkg --audit".into()],
                barred: vec!["aa=2.0".into()],
            },
        }
    }

    /// Writes the events with their numbers from `first` on, and keeps or drops the lock.
    fn write(root: &Root, id: JobId, first: u64, kinds: Vec<EventKind>) -> File {
        let mut file = File::options().create(true).append(true).open(root.events_of(id)).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        for (seq, kind) in (first..).zip(kinds) {
            file.write_all(&line(seq, kind)).unwrap();
        }
        file
    }

    fn accept(kinds: Vec<EventKind>) -> Turn {
        Box::new(|root, request| {
            write(root, request.id, 1, kinds);
            Some(Reply::Accepted)
        })
    }

    fn job() -> JobId {
        JobId(Uuid::from_u128(7))
    }

    fn back(force: bool) -> Rollback {
        Rollback { job: job(), force, mode: RollbackMode::Packages }
    }

    #[test]
    fn a_rollback_is_followed_to_its_end() {
        let holder = LockHolder {
            lock: "/var/lib/dpkg/lock-frontend".into(),
            pid: Some(42),
            command: Some("apt-get".into()),
        };
        let fake = Fake::new(vec![accept(vec![
            EventKind::Accepted,
            EventKind::Waiting { holder: Some(holder) },
            EventKind::Waiting { holder: None },
            EventKind::Phase { phase: Phase::RollingBack },
            EventKind::Log { stream: LogStream::Output, line: "Unpacking aa\u{1b}[2J ...".into() },
            EventKind::Log { stream: LogStream::Executor, line: "marks restored".into() },
            report(),
            end(JobStatus::Completed, Outcome::Applied),
        ])]);
        let (mut screen, out, remarks) = paper(false);
        assert_eq!(roll_back_at(QUICK, &fake.root, &mut screen, back(true), None).unwrap(), Exit::Done);
        let text = out.text();
        for expected in [
            "[waiting for /var/lib/dpkg/lock-frontend, held by process 42: apt-get]\n[the wait is over]\n",
            "[rolling_back]\nUnpacking aa ...\n[marks restored]\n",
            ": completed, applied\nwent back: root asked for it\nas before:\n  aa 1.0\n  bb not installed\n",
            "edited since, and kept:\n  /etc/aa.conf\nNOT as before:\n  cc is 2.0\n",
            "what you can do, in this order:\n  dpkg --audit\n",
            "or you lift it:\n  linux-patch-host clear aa=2.0\n",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        let requests = fake.requests();
        assert!(remarks.text().contains(&format!("linux-patch-host watch {}", requests[0].id)));
        assert_eq!(
            requests[0].body,
            RequestBody::Change {
                operation: Operation::Rollback(back(true)),
                limits: Limits::default(),
                if_plan: None,
                options: ChangeOptions::default(),
                not_after: None,
            }
        );
    }

    #[test]
    fn a_snapshot_is_listed_and_gone_back_to_by_what_was_listed() {
        let mut plan = Plan::of(Vec::new());
        plan.takes_back = Some(TakesBack {
            kind: SnapshotKind::Btrfs,
            names: vec![".linux-patch-snapshots/x/0".into()],
            at: Timestamp::UNIX_EPOCH,
            file_systems: vec!["/".into()],
            left_out: vec!["/boot".into()],
            files: vec![
                ChangedFile { path: "/etc/a\u{1b}[2Jb".into(), change: FileChange::Changed, files: 1 },
                ChangedFile { path: "/srv/site/".into(), change: FileChange::Added, files: 7 },
            ],
            total: 9,
            kept: vec!["/etc/linux_patch_api".into()],
            hazards: vec!["/boot keeps kernels".into()],
        });
        let to = || Rollback { job: job(), force: false, mode: RollbackMode::Snapshot };
        let hash = plan.hash.clone();
        let listed = move |kind: QueryResult| {
            EventKind::Ended(Box::new(Ended {
                status: JobStatus::Completed,
                outcome: None,
                exit_code: None,
                error: None,
                results: Vec::new(),
                answer: Some(kind),
            }))
        };
        let fake = Fake::new(vec![accept(vec![EventKind::Accepted, listed(QueryResult::Plan(plan))])]);
        let (mut screen, out, _) = paper(false);
        assert_eq!(list(QUICK, &fake.root, &mut screen, to()).unwrap(), Exit::Done);
        let text = out.text();
        for expected in [
            "Back to the btrfs snapshot .linux-patch-snapshots/x/0 of 1970-01-01T00:00:00Z, for /:\n  changed /etc/ab\n",
            "  added /srv/site/ (7 files)\n  and 7 more\nstays as it is: /boot\n",
            "BEWARE: /boot keeps kernels\n",
            &format!("  linux-patch-host rollback {} --snapshot --if-plan {hash} --force", job()),
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        assert_eq!(fake.requests()[0].body, RequestBody::Plan { operation: Operation::Rollback(to()) });

        let fake = Fake::new(vec![accept(vec![end(JobStatus::Completed, Outcome::Applied)])]);
        let (mut screen, ..) = paper(false);
        let done = roll_back_at(QUICK, &fake.root, &mut screen, to(), Some(hash.clone())).unwrap();
        assert_eq!(done, Exit::Done);
        assert!(
            matches!(&fake.requests()[0].body, RequestBody::Change { if_plan: Some(sent), .. } if *sent == hash)
        );
    }

    #[test]
    fn programs_get_every_event_as_a_line_and_the_truth_as_exit_code() {
        let fake = Fake::new(vec![accept(vec![
            EventKind::Accepted,
            report(),
            end(JobStatus::Failed, Outcome::RollbackFailed),
        ])]);
        let (mut screen, out, remarks) = paper(true);
        assert_eq!(roll_back_at(QUICK, &fake.root, &mut screen, back(false), None).unwrap(), Exit::Failed);
        let text = out.text();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let kinds: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["begun", "accepted", "went_back", "ended"]);
        assert_eq!(lines[0]["id"], fake.requests()[0].id.to_string());
        assert_eq!(remarks.text(), "");
    }

    #[test]
    fn a_dead_executor_is_replaced_once() {
        let fake = Fake::new(vec![
            accept(vec![EventKind::Accepted]),
            Box::new(|root, request| {
                let RequestBody::Settle { job } = request.body else { panic!("{request:?}") };
                write(root, job, 2, vec![end(JobStatus::Failed, Outcome::Unchanged)]);
                Some(Reply::Accepted)
            }),
        ]);
        let (mut screen, out, remarks) = paper(false);
        assert_eq!(roll_back_at(QUICK, &fake.root, &mut screen, back(false), None).unwrap(), Exit::Failed);
        assert!(out.text().contains("PKG_MANAGER_ERROR: the preinst refuses"), "{}", out.text());
        assert!(remarks.text().contains("died"), "{}", remarks.text());
        assert_eq!(fake.requests().len(), 2);
    }

    #[test]
    fn one_that_died_before_its_first_event_is_settled_and_followed() {
        let fake = Fake::new(vec![Box::new(|root, request| {
            let RequestBody::Settle { job } = request.body else { panic!("{request:?}") };
            write(root, job, 1, vec![EventKind::Accepted, end(JobStatus::Failed, Outcome::Unchanged)]);
            Some(Reply::Accepted)
        })]);
        let journal = fake.root.files().name(JOURNAL_DIR).join(job().to_string());
        std::fs::create_dir_all(journal).unwrap();
        let (mut screen, out, remarks) = paper(false);
        assert_eq!(watch_at(QUICK, &fake.root, &mut screen, job()).unwrap(), Exit::Failed);
        assert!(out.text().contains("PKG_MANAGER_ERROR"), "{}", out.text());
        assert!(remarks.text().contains("died"), "{}", remarks.text());
        assert_eq!(fake.requests().len(), 1);
    }

    #[test]
    fn one_that_gets_no_event_file_is_given_up_and_one_without_a_journal_is_unknown() {
        let fake = Fake::new(vec![Box::new(|_, _| Some(Reply::Accepted))]);
        let (mut screen, _, _) = paper(false);
        let unknown = watch_at(QUICK, &fake.root, &mut screen, job()).unwrap_err();
        assert!(matches!(unknown.downcast_ref(), Some(FollowError::Missing(_))), "{unknown:#}");
        let journal = fake.root.files().name(JOURNAL_DIR).join(job().to_string());
        std::fs::create_dir_all(journal).unwrap();
        let error = watch_at(QUICK, &fake.root, &mut screen, job()).unwrap_err();
        assert!(error.is::<GivenUp>(), "{error:#}");
        assert_eq!(fake.requests().len(), 1);
    }

    #[test]
    fn a_change_that_waits_is_confirmed_or_it_is_said_why_not() {
        let fake = Fake::new(vec![
            Box::new(|_, _| Some(Reply::Accepted)),
            Box::new(|_, _| {
                Some(Reply::Refused { code: ErrorCode::JobConflict, message: "it is over".to_owned() })
            }),
        ]);
        let (mut screen, out, _) = paper(true);
        assert_eq!(confirm(&fake.root, &mut screen, job()).unwrap(), Exit::Done);
        assert_eq!(out.text(), format!("{{\"confirmed\":\"{}\"}}\n", job()));
        let error = confirm(&fake.root, &mut screen, job()).unwrap_err();
        assert_eq!(Exit::of_error(&error), Exit::Failed);
        assert_eq!(fake.requests()[0].body, RequestBody::Confirm { job: job() });
    }

    #[test]
    fn one_that_nobody_takes_over_is_given_up() {
        let fake = Fake::new(vec![accept(vec![EventKind::Accepted]), Box::new(|_, _| Some(Reply::Accepted))]);
        let (mut screen, _, _) = paper(false);
        let error = roll_back_at(QUICK, &fake.root, &mut screen, back(false), None).unwrap_err();
        assert!(error.is::<GivenUp>(), "{error:#}");
        assert_eq!(fake.requests().len(), 2);
    }

    #[test]
    fn a_living_executor_is_waited_for() {
        let (tell, told) = mpsc::channel();
        let fake = Fake::new(vec![Box::new(move |root, request| {
            tell.send((request.id, write(root, request.id, 1, vec![EventKind::Accepted]))).unwrap();
            Some(Reply::Accepted)
        })]);
        let writer = std::thread::spawn(move || {
            let (_, mut file): (JobId, File) = told.recv().unwrap();
            file.write_all(&line(2, end(JobStatus::Completed, Outcome::Unchanged))).unwrap();
        });
        let (mut screen, _, _) = paper(false);
        assert_eq!(roll_back_at(QUICK, &fake.root, &mut screen, back(false), None).unwrap(), Exit::Done);
        writer.join().unwrap();
        fake.requests();
    }

    #[test]
    fn a_refusal_is_an_error_with_its_reason() {
        let fake = Fake::new(vec![Box::new(|_, _| {
            Some(Reply::Refused { code: ErrorCode::JobNotFound, message: "no such job".into() })
        })]);
        let (mut screen, _, _) = paper(false);
        let error = roll_back_at(QUICK, &fake.root, &mut screen, back(false), None).unwrap_err();
        assert_eq!(error.to_string(), "refused: no such job (JOB_NOT_FOUND)");
        assert_eq!(Exit::of_error(&error), Exit::Failed);
        fake.requests();
    }
}
