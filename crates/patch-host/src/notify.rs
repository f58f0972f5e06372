//! Telling people and programs: whether reports arrive, and how the changes of this host ended.

use std::{collections::BTreeSet, io, path::Path};

use anyhow::Context;
use jiff::Timestamp;
use patch_backends::{apt::Database, stale};
use patch_notify::{Message, NotifyError, Outbox, Report, RunResult, Secrets, send_mail, send_webhook};
use patch_types::{
    JobId, JobStatus, Outcome, TakenBack,
    event::Ended,
    executor::{JOURNAL_DIR, STATE_DIR},
    stale::StaleReport,
    terminal,
};
use serde_json::{Value, json};

use crate::{ask::Root, exit::Exit, screen::Screen};

/// Where the host's name is.
const HOSTNAME: &str = "proc/sys/kernel/hostname";

/// Where reports wait, in the root side's directory.
const OUTBOX: &str = "notify";

/// How many owners of processes that run old code a report names.
const NAMED: usize = 20;

fn host(root: &Root) -> String {
    String::from_utf8_lossy(&root.files().read(HOSTNAME).unwrap_or_default()).trim().to_owned()
}

fn nobody() -> String {
    format!(
        "nobody is told: there is neither `notifications.mail` nor a webhook in /{}; docs/notifications.md says how they are \
         written",
        patch_notify::CONFIG
    )
}

/// Sends a test to everybody who is to be told, and says what came of it.
pub(crate) fn test(root: &Root, screen: &mut Screen) -> anyhow::Result<Exit> {
    let settings = patch_notify::load(root.files().root())?;
    if settings.is_empty() {
        anyhow::bail!(nobody());
    }
    let report = Report::test(&host(root), Timestamp::now());
    let message = Message::of(vec![report]).context("there is nothing to send")?;
    let secrets = Secrets::of_environment();
    let mut results: Vec<(String, String, Result<(), NotifyError>)> = Vec::new();
    if let Some(mail) = &settings.mail {
        let whom = format!("{} by {}:{}", mail.to.join(", "), mail.server(), mail.server_port());
        results.push(("mail".to_owned(), whom, send_mail(mail, &secrets, &message)));
    }
    for (i, webhook) in settings.webhooks.iter().enumerate() {
        // Its path may be a secret.
        let url = patch_types::notifications::WebhookUrl::parse(&webhook.url);
        let whom = url.map(|url| url.authority).unwrap_or_default();
        results.push((format!("webhook {}", i + 1), whom, send_webhook(webhook, &secrets, &message)));
    }
    tell(screen, &results)
}

/// Tells of every change that has ended since this was first done, and tries once more what could not be told. Does nothing
/// where nobody is to be told.
pub(crate) fn deliver(root: &Root, screen: &mut Screen) -> anyhow::Result<Exit> {
    let settings = patch_notify::load(root.files().root())?;
    if settings.is_empty() {
        if screen.is_json() {
            screen.json(&json!({"sent": 0, "waiting": 0, "failed": []}))?;
        } else {
            screen.text(&nobody());
        }
        return Ok(Exit::Done);
    }
    let now = Timestamp::now();
    let outbox = Outbox::open(&root.files().name(STATE_DIR).join(OUTBOX), now)?;
    let journals = journals(root)?;
    let mut failed = Vec::new();
    let mut old_code: Option<Vec<String>> = None;
    for (job, at, state) in ended(root, &journals, &outbox) {
        let Some(mut report) = report(job, at, &state, &host(root)) else { continue };
        // Also where the result is called something else, because fixes are left out.
        if report.data["status"] == "completed" && report.data["outcome"] == "applied" {
            let lines = old_code.get_or_insert_with(|| running(root));
            report.lines.extend(lines.iter().cloned());
            report.data["old_code"] = json!(lines);
        }
        if report.result == RunResult::Failed && is_told_already(root, &journals, job, at, &report) {
            report.result = RunResult::Unchanged;
        }
        if let Err(error) = outbox.queue(&report, now) {
            failed.push((format!("the report of {job}"), error));
        }
    }
    let delivered = outbox.deliver(&settings, &Secrets::of_environment(), now)?;
    failed.extend(delivered.failed);
    outbox.forget(&|id| journals.contains(&JobId(id)), now);
    if screen.is_json() {
        let failed: Vec<_> = failed
            .iter()
            .map(|(what, error)| json!({"what": what, "reason": error.reason, "message": error.to_string()}))
            .collect();
        screen.json(&json!({"sent": delivered.sent, "waiting": delivered.waiting, "failed": failed}))?;
    } else {
        screen.text(&format!("{} messages sent", delivered.sent));
        if delivered.waiting > 0 {
            screen.text(&format!(
                "{} wait: they or the way to their receiver failed lately",
                delivered.waiting
            ));
        }
        failed.iter().for_each(|(what, error)| screen.remark(&format!("{what}: not done: {error}")));
    }
    Ok(if failed.is_empty() { Exit::Done } else { Exit::Failed })
}

/// The changes that there are journals of.
fn journals(root: &Root) -> anyhow::Result<BTreeSet<JobId>> {
    match root.files().names(JOURNAL_DIR) {
        Ok(names) => Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => {
            let dir = root.files().name(JOURNAL_DIR);
            Err(error).with_context(|| format!("cannot read {}; run this as root", dir.display()))
        }
    }
}

/// Those of them that may have ended since the outbox was made and that it does not know, with when they did.
fn ended(root: &Root, journals: &BTreeSet<JobId>, outbox: &Outbox) -> Vec<(JobId, Timestamp, Value)> {
    let files = root.files();
    let mut found = Vec::new();
    for job in journals.iter().copied().filter(|job| !outbox.knows(job.0)) {
        let path = Path::new(JOURNAL_DIR).join(job.to_string()).join("state.json");
        // The state is written for the last time when it ends.
        let written = files.file(&path).and_then(|file| file.metadata()?.modified());
        let Some(at) = written.ok().and_then(|time| Timestamp::try_from(time).ok()) else { continue };
        if at < outbox.since() {
            continue;
        }
        let Some(state) = files.read(&path).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok())
        else {
            continue;
        };
        found.push((job, at, state));
    }
    found.sort_by_key(|(job, at, _)| (*at, *job));
    found
}

/// The report of a change; none while it has not ended, and for what is no news: holds, and indexes that were fetched.
fn report(job: JobId, at: Timestamp, state: &Value, host: &str) -> Option<Report> {
    let name = state.pointer("/state/state").and_then(Value::as_str)?;
    let kind = state.pointer("/operation/kind").and_then(Value::as_str).unwrap_or("change");
    if name != "ended" {
        return None;
    }
    let ended = state.pointer("/state/ended").cloned().unwrap_or_default();
    let Ok(ended) = serde_json::from_value::<Ended>(ended.clone()) else {
        // Of another version of the root side: better told of without details than not at all.
        return Some(Report {
            id: job.0,
            at,
            host: host.to_owned(),
            result: RunResult::Failed,
            summary: format!("{kind}: it has ended, and how is not understood"),
            lines: vec![format!("See: linux-patch-host watch {job}")],
            data: json!({"kind": kind, "ended": ended}),
        });
    };
    let result = match (ended.status, ended.outcome) {
        (JobStatus::Completed, Some(Outcome::Applied)) => RunResult::Changed,
        (JobStatus::Completed, Some(Outcome::Unchanged) | None) | (JobStatus::Cancelled, _) => {
            RunResult::Unchanged
        }
        _ => RunResult::Failed,
    };
    if matches!(kind, "hold" | "refresh") && result != RunResult::Failed {
        return None;
    }
    // A host that leaves security fixes out is not patched, however well its runs end.
    let barred = state.pointer("/barred").cloned().unwrap_or_default();
    let barred = serde_json::from_value::<Vec<TakenBack>>(barred).unwrap_or_default();
    let result = if barred.is_empty() { result } else { RunResult::Failed };
    let changed = ended.results.iter().filter(|result| result.done).count();
    let outcome = ended.outcome.map_or("", Outcome::as_str);
    let summary = match (&ended.error, result) {
        (Some(error), _) => format!("{kind}: {} ({outcome}): {}", ended.status, error.message),
        (None, RunResult::Changed) if kind == "reboot" => "reboot: the host was rebooted".to_owned(),
        (None, _) if !barred.is_empty() => {
            let names = barred.iter().map(TakenBack::named).collect::<Vec<_>>().join(", ");
            format!(
                "{kind}: {changed} packages changed, and security fixes are left out, as they were taken back: {names}"
            )
        }
        (None, RunResult::Changed) => format!("{kind}: {changed} packages changed"),
        (None, _) => format!("{kind}: {} ({outcome})", ended.status),
    };
    let mut lines: Vec<String> =
        barred.iter().map(|one| format!("Not patched: {}", one.sentence())).collect();
    for result in &ended.results {
        let version = |version: &Option<patch_types::PackageVersion>| {
            version.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
        };
        let went = match (result.done, result.taken_back) {
            (true, _) => String::new(),
            (false, true) => ": taken back".to_owned(),
            (false, false) => format!(": not done: {}", result.reason.as_deref().unwrap_or("unknown")),
        };
        lines.push(format!(
            "{} {} {} -> {}{went}",
            result.action,
            result.name,
            version(&result.old_version),
            version(&result.new_version)
        ));
    }
    lines.push(format!("The whole: linux-patch-host watch {job}"));
    let data = json!({
        "kind": kind, "status": ended.status, "outcome": ended.outcome, "error": ended.error, "packages": ended.results,
        "barred": barred,
    });
    Some(Report { id: job.0, at, host: host.to_owned(), result, summary, lines, data })
}

/// Whether a run that has changed nothing only leaves out what an earlier one of the same day (UTC) has left out: once a day is
/// told what is no news, and not with each run.
fn is_told_already(
    root: &Root,
    journals: &BTreeSet<JobId>,
    job: JobId,
    at: Timestamp,
    report: &Report,
) -> bool {
    let barred = &report.data["barred"];
    if barred.as_array().is_none_or(Vec::is_empty)
        || report.data["status"] != "completed"
        || report.data["outcome"] != "unchanged"
    {
        return false;
    }
    let files = root.files();
    let day = |at: Timestamp| at.to_zoned(jiff::tz::TimeZone::UTC).date();
    journals.iter().filter(|other| **other != job).any(|other| {
        let path = Path::new(JOURNAL_DIR).join(other.to_string()).join("state.json");
        let written = files.file(&path).and_then(|file| file.metadata()?.modified());
        let ended = written.ok().and_then(|time| Timestamp::try_from(time).ok());
        ended.is_some_and(|ended| ended < at && day(ended) == day(at))
            && files
                .read(&path)
                .ok()
                .and_then(|text| serde_json::from_slice::<Value>(&text).ok())
                .is_some_and(|state| {
                    state.pointer("/barred") == Some(barred)
                        && state.pointer("/state/ended/status").is_some_and(|status| status == "completed")
                })
    })
}

/// What is patched on disk and not in memory.
fn running(root: &Root) -> Vec<String> {
    let root = root.files().root();
    match stale::report(root, Database::read(root).ok().as_ref()) {
        Ok(report) => old_code(&report),
        Err(error) => vec![format!("What still runs old code is not known: {error}")],
    }
}

/// What still runs old code, and what was looked at for that.
fn old_code(report: &StaleReport) -> Vec<String> {
    let owners = report.owners.iter().take(NAMED);
    let mut lines: Vec<String> =
        owners.map(|owner| format!("Still runs old code: {}", owner.owner.to_string().trim_end())).collect();
    let more = report.owners.len().saturating_sub(NAMED) + report.unnamed;
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    if report.kernel.old == Some(true) {
        let reason = report.kernel.reason.as_deref().unwrap_or("a newer one is installed");
        lines.push(format!("Still runs: the old kernel {}: {reason}", report.kernel.running));
    }
    if report.microcode.old == Some(true) {
        lines.push("Still runs: old microcode".to_owned());
    }
    if !report.is_clean() {
        lines.push("What ends that: linux-patch-host stale".to_owned());
    }
    let kernel = if report.kernel.old.is_some() { "looked at" } else { "not known" };
    let microcode = if report.microcode.old.is_some() { "looked at" } else { "not known" };
    let found = if report.is_clean() { "Nothing was found that runs replaced code" } else { "Looked at" };
    let unread = if report.unread > 0 {
        format!(", of which {} could not be read to their end", report.unread)
    } else {
        String::new()
    };
    lines.push(format!(
        "{found}: {} processes{unread}; kernel: {kernel}; microcode: {microcode}.",
        report.processes
    ));
    lines
}

fn tell(screen: &mut Screen, results: &[(String, String, Result<(), NotifyError>)]) -> anyhow::Result<Exit> {
    let failed = results.iter().any(|(_, _, result)| result.is_err());
    if screen.is_json() {
        let shown: Vec<_> = results
            .iter()
            .map(|(what, whom, result)| {
                let error = result.as_ref().err();
                json!({
                    "what": what, "to": whom, "sent": error.is_none(), "reason": error.map(|error| error.reason),
                    "message": error.map(ToString::to_string),
                })
            })
            .collect();
        screen.json(&json!({ "results": shown }))?;
    } else {
        for (what, whom, result) in results {
            let outcome = match result {
                Ok(()) => "sent".to_owned(),
                Err(error) => format!("not sent: {error}"),
            };
            screen.text(&format!("{what} to {}: {}", terminal::line(whom), terminal::line(&outcome)));
        }
        if results.iter().any(|(what, _, result)| what == "mail" && result.is_ok()) {
            screen.remark(
                "The server took the mail. If it does not arrive: look into the spam folder; check the sender's domain \
                 (SPF, DKIM), and, with a relay of this host's own, /etc/aliases.",
            );
        }
    }
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read, Write},
        net::TcpListener,
    };

    use serde_json::Value;

    use super::*;
    use crate::screen::tests::paper;

    fn configured(text: &str) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(patch_notify::CONFIG);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let root = Root::new(dir.path().to_owned(), false);
        (dir, root)
    }

    #[test]
    fn each_is_told_and_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 64 * 1024];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let (_dir, root) = configured(&format!(
            "notifications:\n  webhooks: [\"http://{address}/s3cret\"]\n  mail: {{host: localhost, port: {free}, tls: none, \
             from: a@b.example, to: [c@d.example]}}\n"
        ));
        let (mut screen, out, _) = paper(true);
        assert_eq!(test(&root, &mut screen).unwrap(), Exit::Failed);
        let value: Value = serde_json::from_str(&out.text()).unwrap();
        assert_eq!(value["results"][0]["reason"], "connection_refused");
        assert_eq!(value["results"][1]["sent"], true);
        assert!(!out.text().contains("s3cret"));
        assert!(thread.join().unwrap().contains("linux-patch.report.unchanged"));
    }

    #[test]
    fn every_change_is_told_of_once_from_the_first_call_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut part = [0; 4096];
            // The body ends with the object.
            while !request.ends_with(b"}") {
                let length = stream.read(&mut part).unwrap();
                request.extend_from_slice(&part[..length]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            String::from_utf8(request).unwrap()
        });
        let (dir, root) = configured(&format!("notifications: {{webhooks: [\"http://{address}/\"]}}\n"));
        fs::create_dir_all(dir.path().join(STATE_DIR)).unwrap();
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        let ended = |id: u128, kind: &str, at: Timestamp| {
            let path = dir.path().join(JOURNAL_DIR).join(JobId(uuid::Uuid::from_u128(id)).to_string());
            fs::create_dir_all(&path).unwrap();
            let text = json!({"operation": {"kind": kind}, "state": {"state": "ended", "ended": {
                "status": "completed", "outcome": "applied", "results": [{"name": "lp-app", "architecture": "amd64",
                "action": "upgrade", "old_version": "1.0", "new_version": "1.1", "done": true, "reason": null}]}}});
            fs::write(path.join("state.json"), text.to_string()).unwrap();
            let file = fs::File::options().write(true).open(path.join("state.json")).unwrap();
            file.set_modified(at.into()).unwrap();
        };
        let now = Timestamp::now();
        let hours = jiff::SignedDuration::from_hours;
        ended(1, "install", now - hours(2));
        let sent = || {
            let (mut screen, out, _) = paper(false);
            assert_eq!(deliver(&root, &mut screen).unwrap(), Exit::Done);
            out.text()
        };
        assert_eq!(sent(), "0 messages sent\n", "what ended before is nobody's news");
        ended(2, "apply_patches", now + hours(1));
        ended(3, "refresh", now + hours(1));
        assert_eq!(sent(), "1 messages sent\n");
        assert_eq!(sent(), "0 messages sent\n");
        let request = thread.join().unwrap();
        for words in [
            "apply_patches: 1 packages changed",
            "upgrade lp-app 1.0 -> 1.1",
            "Nothing was found",
            "kernel: ",
        ] {
            assert!(request.contains(words), "{words}: {request}");
        }
    }

    #[test]
    fn results_are_what_people_would_call_them() {
        let of = |ended: Value| {
            let state =
                json!({"operation": {"kind": "install"}, "state": {"state": "ended", "ended": ended}});
            report(JobId(uuid::Uuid::nil()), Timestamp::UNIX_EPOCH, &state, "h")
        };
        let failed = of(json!({"status": "failed", "outcome": "rolled_back",
            "error": {"code": "PKG_MANAGER_ERROR", "message": "lp-app's script failed", "retryable": false},
            "results": [{"name": "lp-app", "architecture": "all", "action": "upgrade", "old_version": "1", "new_version": "2",
                "done": false, "reason": "x", "taken_back": true}]}));
        let failed = failed.unwrap();
        assert_eq!(failed.result, RunResult::Failed);
        assert_eq!(failed.summary, "install: failed (rolled_back): lp-app's script failed");
        assert_eq!(failed.lines[0], "upgrade lp-app 1 -> 2: taken back");
        assert_eq!(
            of(json!({"status": "completed", "outcome": "unchanged"})).unwrap().result,
            RunResult::Unchanged
        );
        assert_eq!(
            of(json!({"status": "completed", "outcome": "partial"})).unwrap().result,
            RunResult::Failed
        );
        for strange in [json!({"status": "odd"}), json!(3), Value::Null] {
            assert_eq!(of(strange).unwrap().result, RunResult::Failed);
        }
        let running = json!({"state": {"state": "applying"}});
        assert!(report(JobId(uuid::Uuid::nil()), Timestamp::UNIX_EPOCH, &running, "h").is_none());
    }

    #[test]
    fn a_run_that_leaves_a_fix_out_has_not_patched() {
        let of = |outcome: &str, barred: Value| {
            let state = json!({"operation": {"kind": "apply_patches"}, "barred": barred,
                "state": {"state": "ended", "ended": {"status": "completed", "outcome": outcome}}});
            report(JobId(uuid::Uuid::nil()), Timestamp::UNIX_EPOCH, &state, "h").unwrap()
        };
        let barred = json!([{"name": "openssl", "architecture": "amd64", "version": "3.0.15",
            "job": "01890000-0000-7000-8000-000000000001", "at": "2026-01-01T00:00:00Z", "reason": "nobody confirmed it."}]);
        for outcome in ["applied", "unchanged"] {
            let report = of(outcome, barred.clone());
            assert_eq!(report.result, RunResult::Failed, "{outcome}");
            assert!(
                report.summary.ends_with("as they were taken back: openssl=3.0.15"),
                "{}",
                report.summary
            );
            assert!(report.lines[0].contains("linux-patch-host clear openssl=3.0.15"), "{:?}", report.lines);
            assert_eq!(report.data["barred"], barred);
        }
        assert_eq!(of("applied", json!([])).result, RunResult::Changed);
        assert_eq!(of("unchanged", Value::Null).result, RunResult::Unchanged);
    }

    #[test]
    fn what_every_run_leaves_out_is_told_once_a_day() {
        let (dir, root) = configured("");
        let entry = |version: &str| {
            json!({"name": "openssl", "architecture": "amd64", "version": version,
                "job": "01890000-0000-7000-8000-000000000001", "at": "2026-01-01T00:00:00Z", "reason": "it failed"})
        };
        let mut journals = BTreeSet::new();
        let mut ended = |number: u128, at: &str, barred: Value, outcome: &str| {
            let (job, at) = (JobId(uuid::Uuid::from_u128(number)), at.parse::<Timestamp>().unwrap());
            let state = json!({"operation": {"kind": "apply_patches"}, "barred": barred,
                "state": {"state": "ended", "ended": {"status": "completed", "outcome": outcome}}});
            let path = dir.path().join(JOURNAL_DIR).join(job.to_string()).join("state.json");
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, state.to_string()).unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(at.into()).unwrap();
            journals.insert(job);
            let report = report(job, at, &state, "h").unwrap();
            is_told_already(&root, &journals, job, at, &report)
        };
        let (one, other) = (json!([entry("1")]), json!([entry("2")]));
        assert!(!ended(1, "2026-01-01T06:00:00Z", one.clone(), "unchanged"));
        assert!(ended(2, "2026-01-01T12:00:00Z", one.clone(), "unchanged"));
        assert!(!ended(3, "2026-01-01T13:00:00Z", one.clone(), "applied"), "something was changed");
        assert!(!ended(4, "2026-01-01T18:00:00Z", other, "unchanged"), "another fix is left out");
        assert!(!ended(5, "2026-01-02T06:00:00Z", one, "unchanged"), "another day");
        assert!(!ended(6, "2026-01-02T12:00:00Z", json!([]), "unchanged"));
    }

    #[test]
    fn old_code_is_told_with_what_was_looked_at() {
        use patch_types::stale::{Advice, KernelCode, MicrocodeCode, Owner, StaleOwner};
        let clean = StaleReport { processes: 9, unread: 2, ..StaleReport::default() };
        assert_eq!(
            old_code(&clean),
            [
                "Nothing was found that runs replaced code: 9 processes, of which 2 could not be read to their end; \
              kernel: not known; microcode: not known."
            ]
        );
        let owner = |i: usize| StaleOwner {
            owner: Owner::Unit { name: format!("{i}.service") },
            advice: Advice::Restart,
            care: None,
            processes: Vec::new(),
            process_count: 1,
            files: Vec::new(),
            file_count: 1,
        };
        let report = StaleReport {
            owners: (0..25).map(owner).collect(),
            kernel: KernelCode { running: "6.1".into(), old: Some(true), ..KernelCode::default() },
            microcode: MicrocodeCode { old: Some(false), ..MicrocodeCode::default() },
            processes: 30,
            unnamed: 2,
            ..StaleReport::default()
        };
        let lines = old_code(&report);
        assert_eq!(lines.len(), 20 + 4);
        assert_eq!(lines[20], "and 7 more");
        assert!(lines[21].contains("the old kernel 6.1"), "{lines:?}");
        assert_eq!(lines[23], "Looked at: 30 processes; kernel: looked at; microcode: looked at.");
    }

    #[test]
    fn a_report_that_cannot_be_queued_holds_nothing_up() {
        let (dir, root) =
            configured("notifications: {webhooks: [\"http://127.0.0.1:1/\"], digest_minutes: 60}\n");
        let outbox = dir.path().join(STATE_DIR).join(OUTBOX);
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        fs::create_dir_all(dir.path().join(JOURNAL_DIR)).unwrap();
        let (mut screen, ..) = paper(false);
        assert_eq!(deliver(&root, &mut screen).unwrap(), Exit::Done);
        let later = Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let jobs = [1, 2].map(|id| JobId(uuid::Uuid::from_u128(id)));
        for job in jobs {
            let path = dir.path().join(JOURNAL_DIR).join(job.to_string());
            fs::create_dir_all(&path).unwrap();
            let text = json!({"operation": {"kind": "install"}, "state": {"state": "ended", "ended": {"status": "failed"}}});
            fs::write(path.join("state.json"), text.to_string()).unwrap();
            let file = fs::File::options().write(true).open(path.join("state.json")).unwrap();
            file.set_modified(later.into()).unwrap();
        }
        // Removed by the next who opens the outbox if it were a file.
        fs::create_dir(outbox.join(format!("{}.draft", jobs[0]))).unwrap();
        let (mut screen, out, remarks) = paper(false);
        assert_eq!(deliver(&root, &mut screen).unwrap(), Exit::Failed);
        assert!(remarks.text().contains(&format!("the report of {}", jobs[0])), "{}", remarks.text());
        assert_eq!(out.text(), "0 messages sent\n");
        assert!(!outbox.join(format!("{}.json", jobs[0])).exists());
        assert!(outbox.join(format!("{}.json", jobs[1])).exists());
    }

    #[test]
    fn words_say_what_to_do() {
        let (_dir, root) = configured("notifications: {}\n");
        let (mut screen, ..) = paper(false);
        assert!(test(&root, &mut screen).unwrap_err().to_string().contains("nobody is told"));
        let (mut screen, out, _) = paper(false);
        assert_eq!(deliver(&root, &mut screen).unwrap(), Exit::Done);
        assert!(out.text().contains("nobody is told"));
        assert!(!root.files().name(STATE_DIR).exists(), "nothing was written");
        let (mut screen, out, remarks) = paper(false);
        let results = [("mail".to_owned(), "a@b by h:587".to_owned(), Ok(()))];
        assert_eq!(tell(&mut screen, &results).unwrap(), Exit::Done);
        assert_eq!(out.text(), "mail to a@b by h:587: sent\n");
        assert!(remarks.text().contains("spam") && remarks.text().contains("/etc/aliases"));
    }
}
