//! Jobs: the list, one in detail, its state in a line, its results, its way back.

use jiff::Timestamp;
use patch_types::{
    Grade, JobStatus, LockHolder, Outcome, Phase, RehearsalReport, RehearsalVerdict, SnapshotReport, WayBack,
    WentBack,
    api::{Job, JobList, LogLine, Requester},
    event::{LogStream, PackageResult},
    snapshot::SnapshotState,
};

use super::{Rows, Style, Tone, clean, count, fields, plain, plan, values};

/// How many lines of the log a failure shows without being asked.
const LAST_LINES: usize = 15;

/// How many packages whose way back is not exact are named without being asked.
const NOT_EXACT: usize = 10;

/// The list.
pub(crate) fn list(style: &Style, list: &JobList) -> String {
    if list.jobs.is_empty() {
        return "No jobs.\n".to_owned();
    }
    let mut rows = Rows::new(style, &["JOB", "KIND", "STATUS", "CREATED"]);
    for job in &list.jobs {
        let status = match job.outcome {
            Some(outcome) if !matches!((job.status, outcome), (JobStatus::Completed, Outcome::Applied)) => {
                format!("{}, {}", job.status, values::word(&outcome))
            }
            _ if job.status == JobStatus::Running => format!("running {} %", job.progress_percent),
            _ => job.status.to_string(),
        };
        rows.row([
            plain(job.job_id),
            plain(&job.kind),
            (status, tone(job.status)),
            plain(values::minute(job.created_at)),
        ]);
    }
    let mut text = rows.keep_first().finish();
    if list.total > list.jobs.len() {
        text.push_str(&format!("{} of {} shown\n", list.jobs.len(), list.total));
    }
    text
}

fn tone(status: JobStatus) -> Tone {
    match status {
        JobStatus::Completed => Tone::Good,
        JobStatus::Pending | JobStatus::Running => Tone::Plain,
        JobStatus::Cancelled => Tone::Notice,
        JobStatus::Failed | JobStatus::Timeout => Tone::Bad,
    }
}

/// Who asked. What the agent does by itself comes from no certificate and no address.
fn asked_by(by: &Requester) -> String {
    if by.fingerprint.is_empty() && by.address.is_empty() {
        format!("the agent itself ({}), request {}", by.identity, by.request_id)
    } else {
        format!("{} at {}, request {}", by.identity, by.address, by.request_id)
    }
}

/// One job.
pub(crate) fn detail(style: &Style, job: &Job, verbose: bool) -> String {
    let by = &job.requested_by;
    let mut text = fields(&[
        ("Job", job.job_id.to_string()),
        ("Kind", job.kind.replace('_', " ")),
        ("State", state(job)),
        ("Outcome", job.outcome.map_or(String::new(), |outcome| values::word(&outcome))),
        ("Asked by", asked_by(by)),
        ("Created", values::time(job.created_at)),
        ("Started", job.started_at.map_or(String::new(), values::time)),
        ("Ended", job.completed_at.map_or(String::new(), values::time)),
        ("Exit code", job.exit_code.map_or(String::new(), |code| code.to_string())),
        ("Confirm by", job.confirm_by.map_or(String::new(), values::time)),
        ("Reboot", job.reboot.as_ref().map_or(String::new(), |reboot| reboot.message.clone())),
        ("Way back", job.way_back.as_ref().map_or(String::new(), |way| way.grade.to_string())),
        (
            "Snapshot",
            job.way_back.as_ref().and_then(|way| way.snapshot.as_ref()).map_or(String::new(), snapshot),
        ),
    ]);
    if let Some(way) = &job.way_back {
        text.push_str(&not_exact(way, verbose));
    }
    if let Some(value) = job.plan.as_ref().filter(|value| job.results.is_empty() && !value.is_empty()) {
        text.push('\n');
        text.push_str(&plan::plan(style, value));
    }
    if !job.results.is_empty() {
        text.push('\n');
        text.push_str(&results(style, &job.results));
    }
    if let Some(value) = job.plan.as_ref().filter(|value| !job.results.is_empty() || value.is_empty())
        && !value.barred.is_empty()
    {
        text.push_str(&format!("\n{}", plan::barred(value)));
    }
    if let Some(report) = &job.rehearsal {
        text.push_str(&format!("\n{}", rehearsal(report)));
    }
    if let Some(report) = &job.went_back {
        text.push_str(&format!("\n{}", went_back(report)));
    }
    if let Some(error) = &job.error {
        text.push_str(&format!("\n{}", error_text(job, error)));
    }
    if verbose {
        text.push('\n');
        if job.log_truncated {
            text.push_str("(the beginning of the log was dropped)\n");
        }
        text.extend(job.log.iter().map(|line| log_line(line) + "\n"));
    } else if !job.log.is_empty() {
        text.push_str(&format!("\n{} of log; -v shows them\n", count(job.log.len(), "line")));
    }
    text
}

/// What became of each package.
pub(crate) fn results(style: &Style, results: &[PackageResult]) -> String {
    let mut rows = Rows::new(style, &["ACTION", "PACKAGE", "FROM", "TO", "RESULT"]);
    for result in results {
        let version = |version: &Option<_>| version.as_ref().map_or("-".to_owned(), ToString::to_string);
        let end = match (&result.reason, result.done) {
            (Some(reason), _) if result.taken_back => (format!("taken back: {reason}"), Tone::Notice),
            (None, _) if result.taken_back => ("taken back".to_owned(), Tone::Notice),
            (_, true) => ("done".to_owned(), Tone::Good),
            (Some(reason), false) => (reason.clone(), Tone::Bad),
            (None, false) => ("not done".to_owned(), Tone::Bad),
        };
        rows.row([
            plain(result.action),
            plain(format!("{}:{}", result.name.name(), result.architecture)),
            plain(version(&result.old_version)),
            plain(version(&result.new_version)),
            end,
        ]);
    }
    rows.finish()
}

/// How a job ended, for the one who watched it. `logged` says whether its log was shown on the way.
pub(crate) fn ending(style: &Style, job: &Job, logged: bool) -> String {
    let mut text = String::new();
    if !job.results.is_empty() {
        text.push_str(&results(style, &job.results));
        text.push('\n');
    }
    if job.status != JobStatus::Completed && !logged && !job.log.is_empty() {
        let first = job.log.len().saturating_sub(LAST_LINES);
        text.push_str("The end of the log:\n");
        text.extend(job.log.iter().skip(first).map(|line| format!("  {}\n", log_line(line))));
        text.push('\n');
    }
    if let Some(report) = &job.rehearsal {
        text.push_str(&format!("{}\n", rehearsal(report)));
    }
    if let Some(report) = &job.went_back {
        text.push_str(&format!("{}\n", went_back(report)));
    }
    if let Some(error) = &job.error {
        text.push_str(&error_text(job, error));
    }
    let barred = job.plan.as_ref().map_or_else(String::new, plan::barred);
    text.push_str(&barred);
    if let Some(reboot) = &job.reboot {
        text.push_str(&format!("Reboot: {}\n", clean::line(&reboot.message)));
    }
    let outcome = match job.outcome {
        Some(Outcome::Unchanged)
            if job.status == JobStatus::Completed && (job.rehearsal.is_some() || !barred.is_empty()) =>
        {
            ": nothing was changed".to_owned()
        }
        Some(Outcome::Unchanged) if job.status == JobStatus::Completed => {
            ": there was nothing to do".to_owned()
        }
        Some(outcome) => format!(": {}", values::word(&outcome)),
        None => String::new(),
    };
    let took = match (job.started_at, job.completed_at) {
        (Some(start), Some(end)) => u64::try_from(end.duration_since(start).as_secs()).ok(),
        _ => None,
    };
    let took = took.map_or(String::new(), |seconds| format!(" after {}", values::span(seconds)));
    text.push_str(&format!("Job {} {}{took}{outcome}\n", job.job_id, job.status));
    text
}

/// What a job changed, for the one who is asked whether to undo it.
pub(crate) fn changed(style: &Style, job: &Job) -> String {
    let mut text =
        format!("Job {}, {}, {}", job.job_id, clean::line(&job.kind.replace('_', " ")), state(job));
    text.push_str(&job.outcome.map_or("\n".to_owned(), |outcome| format!(": {}\n", values::word(&outcome))));
    if !job.results.is_empty() {
        text.push_str(&format!("\n{}\n", results(style, &job.results)));
    }
    match &job.way_back {
        Some(way) => {
            text.push_str(&format!("Way back: {}\n{}", way.grade, not_exact(way, false)));
        }
        None => text.push_str("Way back: none was recorded\n"),
    }
    text
}

/// The snapshot of the file systems, or why there is none.
fn snapshot(report: &SnapshotReport) -> String {
    match (report.state, report.kind) {
        (SnapshotState::Made, Some(kind)) => {
            clean::line(&format!("{kind} {}, of {}", report.names.join(", "), report.file_systems.join(", ")))
                .into_owned()
        }
        _ => {
            let reason = report.reason.as_deref().unwrap_or("no reason was told");
            format!("none: {}", clean::line(reason))
        }
    }
}

/// The packages that cannot be had again exactly.
fn not_exact(way: &WayBack, all: bool) -> String {
    let packages: Vec<_> = way.packages.iter().filter(|p| p.grade != Grade::Exact).collect();
    let shown = if all { packages.len() } else { packages.len().min(NOT_EXACT) };
    let mut text = String::new();
    for package in packages.iter().take(shown) {
        let name = format!("{}:{} {}", package.name.name(), package.architecture, package.version);
        text.push_str(&format!("  {name}: {}: {}\n", package.grade, clean::line(&package.reason)));
    }
    if shown < packages.len() {
        text.push_str(&format!("  and {} more; `patchctl -v job` shows them\n", packages.len() - shown));
    }
    text
}

/// What came of a rehearsal.
fn rehearsal(report: &RehearsalReport) -> String {
    let took = format!("{}.{:01} s", report.took_ms / 1000, report.took_ms % 1000 / 100);
    let mut text = match (report.verdict, &report.reason) {
        (RehearsalVerdict::Well, _) => format!("Rehearsal: all goes well ({took})\n"),
        (RehearsalVerdict::Fails, _) => format!("Rehearsal: it would fail ({took})\n"),
        (RehearsalVerdict::NotRehearsed, reason) => {
            format!("Rehearsal: none: {}\n", clean::line(reason.as_deref().unwrap_or("no reason was told")))
        }
    };
    for finding in &report.findings {
        let package = finding.package.as_deref().map_or(String::new(), |package| format!("{package}, "));
        let place = finding.kind.as_str().replace('_', " ");
        text.push_str(&format!("  {}{place}: {}\n", clean::line(&package), clean::line(&finding.message)));
        text.extend(finding.output.iter().map(|line| format!("    {}\n", clean::line(line))));
    }
    for (title, lines) in [
        ("Configuration files of yours that stay as they are", &report.conffiles),
        ("Called, but not run", &report.not_run),
        ("File systems that it did not see", &report.left_out),
    ] {
        if !lines.is_empty() {
            text.push_str(&format!("{title}:\n"));
            text.extend(lines.iter().map(|line| format!("  {}\n", clean::line(line))));
        }
    }
    text
}

/// What came of going back.
fn went_back(report: &WentBack) -> String {
    let mut text = format!("Went back: {}\n", clean::line(&report.reason));
    for (title, lines) in [
        ("As before", &report.restored),
        ("Not as before", &report.left),
        ("Edited by you since, kept", &report.kept_edits),
        ("What you can do, in this order", &report.commands),
    ] {
        if !lines.is_empty() {
            text.push_str(&format!("{title}:\n"));
            text.extend(lines.iter().map(|line| format!("  {}\n", clean::line(line))));
        }
    }
    if !report.barred.is_empty() {
        text.push_str("Not installed again until newer versions come, or root lifts it on the host:\n");
        let commands = report.barred.iter();
        text.extend(commands.map(|version| format!("  linux-patch-host clear {}\n", clean::line(version))));
    }
    text
}

/// What to type, and until when, for a job that waits to be confirmed.
pub(crate) fn asks(job: &Job, address: &str, now: Timestamp) -> String {
    let Some(until) = job.confirm_by else { return String::new() };
    let left = u64::try_from(until.duration_since(now).as_secs()).unwrap_or(0);
    format!(
        "The change is made, and goes back by itself unless it is confirmed by {} (in {}). To keep it, run elsewhere:\n  \
         patchctl --host {} confirm {}",
        values::time(until),
        values::span(left),
        clean::line(address),
        job.job_id
    )
}

fn error_text(job: &Job, error: &str) -> String {
    let code = job.error_detail.as_ref().map_or(String::new(), |detail| format!(" [{}]", detail.code));
    format!("Error{code}: {}\n", clean::text(error.trim_end()))
}

/// Where a job stands, in one line.
pub(crate) fn state(job: &Job) -> String {
    if let Some(holder) = job.waiting_for.as_ref().filter(|_| !job.status.is_terminal()) {
        return waiting(holder);
    }
    if job.status != JobStatus::Running {
        return job.status.to_string();
    }
    if let Some(until) = job.confirm_by {
        return format!("waiting to be confirmed until {}", values::time(until));
    }
    if let Some(at) = job.scheduled_for {
        return format!("waiting until {}", values::time(at));
    }
    if matches!(job.phase, Some(Phase::Waiting | Phase::Rebooting)) {
        return job.phase.map_or(String::new(), |phase| values::word(&phase));
    }
    let phase = job.phase.map_or("running".to_owned(), |phase| values::word(&phase));
    let package =
        job.current_package.as_ref().map_or(String::new(), |name| format!(" ({})", clean::line(name)));
    format!("{phase} {} %{package}", job.progress_percent)
}

fn waiting(holder: &LockHolder) -> String {
    let who = match (&holder.command, holder.pid) {
        (Some(command), Some(pid)) => format!("{} (process {pid})", clean::line(command)),
        (Some(command), None) => clean::line(command).into_owned(),
        (None, Some(pid)) => format!("process {pid}"),
        (None, None) => "another process".to_owned(),
    };
    format!("waiting for {who}, which holds {}", clean::line(&holder.lock))
}

/// A line of the log.
pub(crate) fn log_line(line: &LogLine) -> String {
    let mark = match line.stream {
        LogStream::Output => "",
        LogStream::Executor => "* ",
        LogStream::Rehearsal => "~ ",
    };
    format!("{mark}{}", clean::line(&line.line))
}

#[cfg(test)]
pub(crate) mod tests {
    use patch_types::{Action, ErrorCode, ErrorDetail};

    use super::*;
    use crate::render::NARROW;

    /// A job in the given status.
    pub(crate) fn job(status: JobStatus) -> Job {
        serde_json::from_value(serde_json::json!({
            "job_id": "01890000-0000-7000-8000-000000000001", "kind": "apply_patches", "status": status,
            "phase": null, "outcome": null, "progress_percent": 40, "current_package": null, "waiting_for": null,
            "created_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:01Z",
            "completed_at": "2026-01-01T00:01:06Z",
            "requested_by": {"identity": "ops", "fingerprint": "00", "address": "10.0.0.1",
                             "request_id": "01890000-0000-7000-8000-000000000002"},
            "request": {}, "plan": null, "output": null, "log": [], "log_truncated": false, "error": null,
            "error_detail": null, "exit_code": null, "results": [], "last_seq": 0,
        }))
        .unwrap()
    }

    #[test]
    fn a_fix_that_is_left_out_is_not_called_nothing_to_do() {
        let mut plan = patch_types::Plan::of(Vec::new());
        plan.barred.push(patch_types::TakenBack {
            name: "openssl".parse().unwrap(),
            architecture: "amd64".parse().unwrap(),
            version: "3.0.15".parse().unwrap(),
            job: "01890000-0000-7000-8000-000000000009".parse().unwrap(),
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            reason: "it failed\u{1b}[2J.".to_owned(),
        });
        let mut job = job(JobStatus::Completed);
        job.outcome = Some(Outcome::Unchanged);
        assert!(ending(&NARROW, &job, false).contains("there was nothing to do"));
        job.plan = Some(plan);
        let told = "Not patched: the security fix openssl 3.0.15 is not installed, since job \
                    01890000-0000-7000-8000-000000000009 took it back (it failed);";
        let text = ending(&NARROW, &job, false);
        assert!(text.contains(told) && text.contains(": nothing was changed"), "{text}");
        assert!(text.contains("linux-patch-host clear openssl=3.0.15") && !text.contains('\u{1b}'), "{text}");
        assert_eq!(detail(&NARROW, &job, false).matches(told).count(), 1);
    }

    #[test]
    fn the_state_names_who_is_waited_for() {
        let mut job = job(JobStatus::Running);
        job.phase = Some(Phase::RollingBack);
        job.current_package = Some("libc6\u{1b}[2J".into());
        assert_eq!(state(&job), "rolling back 40 % (libc6)");
        job.waiting_for =
            Some(LockHolder { lock: "/l".into(), pid: Some(7), command: Some("apt-get\u{7} update".into()) });
        assert_eq!(state(&job), "waiting for apt-get update (process 7), which holds /l");
    }

    #[test]
    fn who_asked_is_told_and_the_agent_itself_from_a_client_of_that_name() {
        let mut job = job(JobStatus::Running);
        assert!(detail(&NARROW, &job, false).contains("ops at 10.0.0.1"));
        job.requested_by.identity = "policy".into();
        assert!(detail(&NARROW, &job, false).contains("policy at 10.0.0.1"));
        (job.requested_by.fingerprint, job.requested_by.address) = (String::new(), String::new());
        assert!(detail(&NARROW, &job, false).contains("the agent itself (policy)"));
    }

    #[test]
    fn an_ending_tells_results_error_and_outcome() {
        let mut job = job(JobStatus::Failed);
        job.outcome = Some(Outcome::RolledBack);
        job.error = Some("postinst failed".into());
        job.error_detail = Some(ErrorDetail::new(ErrorCode::PkgManagerError, "postinst failed"));
        job.results = vec![PackageResult {
            name: "bash".parse().unwrap(),
            architecture: "amd64".parse().unwrap(),
            action: Action::Upgrade,
            old_version: Some("1".parse().unwrap()),
            new_version: Some("2".parse().unwrap()),
            done: false,
            reason: Some("still 1".into()),
            taken_back: false,
        }];
        job.log = vec![LogLine {
            seq: 3,
            at: job.created_at,
            stream: LogStream::Executor,
            line: "went \u{9b}2Jback".into(),
        }];
        assert_eq!(
            ending(&NARROW, &job, false),
            "ACTION   PACKAGE     FROM  TO  RESULT\n\
             upgrade  bash:amd64  1     2   still 1\n\n\
             The end of the log:\n  * went back\n\n\
             Error [PKG_MANAGER_ERROR]: postinst failed\n\
             Job 01890000-0000-7000-8000-000000000001 failed after 1 min 5 s: rolled back\n"
        );
        assert!(!ending(&NARROW, &job, true).contains("went"));
    }

    #[test]
    fn a_job_that_waits_says_what_to_type() {
        let mut job = job(JobStatus::Running);
        job.phase = Some(Phase::Confirming);
        job.confirm_by = Some(job.created_at);
        assert!(state(&job).starts_with("waiting to be confirmed until 20"), "{}", state(&job));
        let now = "2025-12-31T23:59:01Z".parse().unwrap();
        let text = asks(&job, "web1:12443", now);
        assert!(text.contains("(in 59 s)"), "{text}");
        assert!(text.contains(&format!("\n  patchctl --host web1:12443 confirm {}", job.job_id)), "{text}");
        assert!(asks(&job, "web1", job.created_at + std::time::Duration::from_secs(9)).contains("(in 0 s)"));
    }

    #[test]
    fn going_back_is_told_in_full() {
        let mut job = job(JobStatus::Failed);
        job.outcome = Some(Outcome::RollbackFailed);
        job.way_back = serde_json::from_value(serde_json::json!({
            "grade": "rebuilt",
            "packages": [
                {"name": "aa", "architecture": "all", "version": "1", "grade": "exact", "reason": ""},
                {"name": "bb", "architecture": "all", "version": "2", "grade": "rebuilt", "reason": "no archive\u{1b}[2J"},
            ],
        }))
        .unwrap();
        job.went_back = Some(WentBack {
            reason: "the check web failed".into(),
            restored: vec!["aa:all 1".into()],
            left: vec!["bb is not configured".into()],
            kept_edits: vec!["/etc/aa.conf".into()],
            commands: vec!["dpkg --configure -a".into()],
            barred: vec!["aa=2".into()],
        });
        job.results = vec![PackageResult {
            name: "aa".parse().unwrap(),
            architecture: "all".parse().unwrap(),
            action: Action::Upgrade,
            old_version: Some("1".parse().unwrap()),
            new_version: Some("2".parse().unwrap()),
            done: false,
            reason: None,
            taken_back: true,
        }];
        let told = "Went back: the check web failed\n\
                    As before:\n  aa:all 1\n\
                    Not as before:\n  bb is not configured\n\
                    Edited by you since, kept:\n  /etc/aa.conf\n\
                    What you can do, in this order:\n  dpkg --configure -a\n\
                    Not installed again until newer versions come, or root lifts it on the host:\n  \
                    linux-patch-host clear aa=2\n";
        let detail = detail(&NARROW, &job, false);
        assert!(detail.contains("rebuilt\n  bb:all 2: rebuilt: no archive"), "{detail}");
        assert!(detail.contains(told) && !detail.contains('\u{1b}'), "{detail}");
        assert!(detail.contains("taken back"), "{detail}");
        assert!(ending(&NARROW, &job, true).contains(told));
        let asked = changed(&NARROW, &job);
        assert!(asked.contains("Way back: rebuilt\n  bb:all 2") && asked.contains("aa:all"), "{asked}");
    }

    #[test]
    fn the_list_fits_eighty_columns() {
        let mut done = job(JobStatus::Failed);
        done.outcome = Some(Outcome::RollbackFailed);
        let text = list(&NARROW, &JobList { jobs: vec![done, job(JobStatus::Running)], total: 2 });
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("running 40 %") && text.contains("rollback"), "{text}");
        assert!(text.contains("01890000-0000-7000-8000-000000000001"), "an id can be copied: {text}");
    }
}
