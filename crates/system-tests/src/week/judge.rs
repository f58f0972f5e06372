//! What is promised, compared with what was seen.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::plan::{Event, Plan, Special};
use super::play::Week;
use super::{Report, Seen};
use crate::repository::Kind;

const PROMISE: SignedDuration = SignedDuration::from_hours(24);

/// What a job ended with that changed something.
const CHANGED: [&str; 2] = ["applied", "partially_applied"];

/// Notes what is not so.
macro_rules! expect {
    ($failures:expr, $is_so:expr, $($words:tt)+) => {
        if !$is_so { $failures.push(format!($($words)+)); }
    };
}

pub(super) fn judge(week: &Week, plan: &Plan, seen: Seen) -> Result<Report> {
    let (agent, host) = (&week.agent, &week.agent.host);
    let mut failures = Vec::new();
    let mut report = Report { steps: seen.steps, ..Report::default() };
    let compliance = agent.get("/compliance")?.data()?.clone();
    let by_root = host.exec(&["linux-patch-host", "report", "--json"])?;
    let by_root: Value = serde_json::from_str(&by_root.stdout).with_context(|| format!("{by_root:?}"))?;
    for update in &plan.updates {
        let name = &update.name;
        let installed = seen.installed.get(name);
        if update.kind != Kind::Security {
            expect!(failures, installed.is_none(), "{name} is no security update, and was installed");
            continue;
        }
        report.updates += 1;
        let took = installed.map(|at| at.duration_since(update.at));
        report.longest_minutes = report.longest_minutes.max(took.map_or(0, |took| took.as_mins()));
        let wanted = match update.special {
            Special::Held => Some("held"),
            Special::Fails => Some("taken_back"),
            Special::Nothing | Special::Reboot => None,
        };
        if took.is_some_and(|took| took <= PROMISE) {
            report.in_time += 1;
            expect!(failures, wanted.is_none(), "{name} was installed, though it is {:?}", update.special);
        }
        let mut is_explained = true;
        for (who, said) in [("the agent", &compliance), ("root", &by_root)] {
            let fixes = said["fixes"].as_array().context("no fixes")?;
            let Some(fix) = fixes.iter().find(|fix| fix["name"] == name.as_str()) else {
                failures.push(format!("{who} does not know of {name}"));
                is_explained = false;
                continue;
            };
            let published = (time(&fix["published"]["after"]), time(&fix["published"]["by"]));
            let is_between = published.0.is_none_or(|after| after <= whole(update.at))
                && published.1.is_some_and(|by| whole(update.at) <= by);
            expect!(failures, is_between, "{who}: {name} was published at {}: {fix:#}", update.at);
            let kinds: BTreeSet<&str> = fix["blocked_by"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|cause| cause["kind"].as_str())
                .collect();
            match (took, wanted) {
                (Some(_), _) => {
                    let state = fix["state"].as_str().unwrap_or_default();
                    let is_right = ["effective", "on_disk"].contains(&state);
                    expect!(failures, is_right, "{who}: {name} is installed: {fix:#}");
                    let applied = time(&fix["applied"]["at"]);
                    let is_right = applied.zip(installed.copied()).is_some_and(|(applied, installed)| {
                        update.at <= applied && applied <= installed + SignedDuration::from_secs(1)
                    });
                    expect!(failures, is_right, "{who}: {name} was seen installed at {installed:?}: {fix:#}");
                }
                (None, Some(wanted)) => {
                    let is_right = kinds.contains(wanted) && fix["state"] == "blocked";
                    is_explained &= is_right;
                    expect!(failures, is_right, "{who}: {name} is {:?}: {fix:#}", update.special);
                    expect!(failures, fix["promise"] == "broken", "{who}: {name} is overdue: {fix:#}");
                }
                (None, None) => {
                    is_explained = false;
                    failures.push(format!("{name} was never installed: {fix:#}"));
                }
            }
        }
        if let Some(took) = took.filter(|took| *took > PROMISE) {
            failures.push(format!("{name} was installed only after {took:#}"));
        }
        if took.is_none() && is_explained {
            report.with_cause += 1;
        }
    }
    reboots(week, plan, &seen, &mut report, &mut failures);
    told(week, &mut report, &mut failures)?;
    jobs(week, plan, &mut report, &mut failures)?;
    for (what, command) in [
        ("the audit trail", &["linux-patch-api", "audit", "verify"]),
        ("the record", &["linux-patch-host", "record", "verify"]),
    ] {
        let output = host.exec(command)?;
        expect!(failures, output.success(), "{what} does not verify: {} {}", output.stdout, output.stderr);
    }
    if let Err(error) = agent.assert_in_order() {
        failures.push(format!("{error:#}"));
    }
    let status = host.exec(&["linux-patch-host", "--json", "policy", "status"])?;
    let status: Value = serde_json::from_str(&status.stdout).with_context(|| format!("{status:?}"))?;
    let is_agents = status["patches"] == "agent" && status["handed_over"] == true;
    expect!(failures, is_agents, "who patches: {status:#}");
    (report.failures, report.story) = (failures, seen.story);
    Ok(report)
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// What a `Release` file can say.
fn whole(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn reboots(week: &Week, plan: &Plan, seen: &Seen, report: &mut Report, failures: &mut Vec<String>) {
    report.reboots = seen.reboots.len();
    let mut causes = BTreeSet::new();
    for (at, required) in &seen.reboots {
        expect!(failures, Plan::is_open(*at), "a reboot outside the window, at {at}");
        expect!(failures, !required.is_empty(), "a reboot at {at} that nothing asked for");
        for cause in required.split_whitespace() {
            expect!(failures, causes.insert(cause.to_owned()), "a second reboot for {cause}, at {at}");
        }
    }
    // A boot is a boot, whoever wanted it.
    causes.extend(seen.off.split_whitespace().map(str::to_owned));
    let wanted = plan.updates.iter().filter(|update| update.special == Special::Reboot);
    let wanted: BTreeSet<String> = wanted.map(|update| update.name.clone()).collect();
    expect!(failures, causes == wanted, "booted for {causes:?} instead of {wanted:?}");
    // The first, and the one after it was off.
    let boots = usize::try_from(week.agent.host.boots()).unwrap_or_default();
    expect!(failures, boots == report.reboots + 2, "{boots} boots, and {} reboots", report.reboots);
}

/// The lines of one of the sinks' files.
fn kept(week: &Week, kind: &str) -> Result<Vec<String>> {
    let text = week.agent.host.shell(&format!("cat /var/lib/lp-sinks/{kind} 2>/dev/null || true"))?;
    text.lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line)?;
            Ok(line["what"].as_str().context("a line of a sink")?.to_owned())
        })
        .collect()
}

/// Nothing is told twice, and all that is to be told is told.
fn told(week: &Week, report: &mut Report, failures: &mut Vec<String>) -> Result<()> {
    let (mails, hooks) = (kept(week, "mail")?, kept(week, "hook")?);
    report.refused = kept(week, "refused")?.len();
    (report.mails, report.webhooks) = (mails.len(), hooks.len());
    let mut known = BTreeSet::new();
    for mail in &mails {
        let id = mail.lines().find_map(|line| line.strip_prefix("Message-ID: ")).unwrap_or_default();
        expect!(failures, !id.is_empty() && known.insert(id.to_owned()), "mailed twice: {mail}");
        let content = mail.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        expect!(failures, known.insert(content), "the same mail twice: {mail}");
    }
    let (mut ids, mut jobs) = (BTreeSet::new(), BTreeSet::new());
    for hook in &hooks {
        let event: Value = serde_json::from_str(hook).with_context(|| hook.clone())?;
        expect!(failures, ids.insert(event["id"].to_string()), "a webhook twice: {event:#}");
        for told in event["data"]["reports"].as_array().into_iter().flatten() {
            let id = told["id"].as_str().unwrap_or_default().to_owned();
            expect!(failures, jobs.insert(id), "a report twice: {event:#}");
        }
    }
    for job in listed(week)? {
        let id = job["job_id"].as_str().unwrap_or_default();
        let is_news = !["hold", "refresh"].contains(&job["kind"].as_str().unwrap_or_default());
        expect!(failures, !is_news || jobs.contains(id), "nobody was told of {job:#}");
        let is_mailed = job["status"] != "completed" || job["outcome"] != "unchanged";
        let times = mails.iter().filter(|mail| mail.contains(id)).count();
        // One that leaves a fix out asks for attention, though it ends well and changes nothing: the first one of a day.
        let may_be_mailed = is_mailed || week.agent.job(id)?["plan"]["barred"].is_array();
        let is_right = times == usize::from(is_mailed) || (may_be_mailed && times == 1);
        expect!(failures, is_right, "{times} mails tell of {job:#}");
    }
    Ok(())
}

fn listed(week: &Week) -> Result<Vec<Value>> {
    let list = week.agent.get("/jobs?limit=1000")?;
    list.data()?["jobs"].as_array().cloned().context("no jobs")
}

/// Each change has its way back, and a run that could not reach the archive says so.
fn jobs(week: &Week, plan: &Plan, report: &mut Report, failures: &mut Vec<String>) -> Result<()> {
    let at = |wanted| plan.events.iter().find(|(_, event)| *event == wanted).map(|(at, _)| *at);
    let (gone, back) = (at(Event::RepositoryGone), at(Event::RepositoryBack));
    for job in listed(week)? {
        let began = time(&job["started_at"]);
        if gone < began && began < back {
            let id = job["job_id"].as_str().unwrap_or_default();
            let whole = week.agent.job(id)?;
            let says_so = whole["log"].to_string().contains("not all indexes could be fetched");
            expect!(failures, says_so, "it does not say that the archive was not reached: {whole:#}");
        }
        report.runs += 1;
        report.failed_runs += usize::from(job["status"] != "completed");
        let is_ended = job["completed_at"].is_string();
        expect!(failures, is_ended, "a job without an end: {job:#}");
        if CHANGED.contains(&job["outcome"].as_str().unwrap_or_default()) {
            let way_back = &job["way_back"];
            expect!(failures, way_back.is_object(), "a change without a way back: {job:#}");
        }
    }
    Ok(())
}
