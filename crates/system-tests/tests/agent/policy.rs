//! `policy.mode: agent`: the agent patches its host by itself, and the distribution's updater does not meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use system_tests::{trials::trial, wait};

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("agent_mode_patches_its_host", agent_mode_patches_its_host),
        trial("agent_mode_says_why_not_outside_its_window", agent_mode_says_why_not_outside_its_window),
        trial("agent_mode_is_handed_over_to_and_given_back", agent_mode_is_handed_over_to_and_given_back),
    ]
}

const CONFIG: &str = "/etc/linux_patch_api/config.yaml";
const FILE: &str = "/etc/apt/apt.conf.d/99linux-patch-agent-mode";
const RECORD: &str = "/var/log/linux_patch_api/audit.log";

/// Open at any time.
const OPEN: &str =
    "policy: {mode: agent, window: {days: \"*\", hour: 0, duration_minutes: 1440}, spread_minutes: 0}\n";

/// How long anything of this may take.
const LIMIT: Duration = Duration::from_secs(60);

fn configure(agent: &Agent, config: &str) -> Result<()> {
    agent.host.push(config, CONFIG, "644")
}

/// What the agent says of itself, as soon as it is as wished.
fn policy(agent: &Agent, what: &str, wish: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    // An identity may send 600 requests a minute.
    wait::until_every(Duration::from_millis(120), what, LIMIT, || {
        if let Ok(answer) = agent.get("/health") {
            last = answer.body["data"]["policy"].clone();
        }
        Ok(wish(&last).then(|| last.clone()))
    })
    .with_context(|| format!("it is {last:#}"))
}

/// The runs that ended: their jobs, newest first.
fn runs(agent: &Agent) -> Result<Vec<Value>> {
    let list = agent.get("/jobs")?.data()?["jobs"].as_array().cloned().context("no jobs")?;
    Ok(list.into_iter().filter(|job| job["requested_by"]["identity"] == "policy").collect())
}

/// One look of the timer, in its own sandbox.
fn tick(agent: &Agent) -> Result<bool> {
    // More looks in a second than there are in an hour.
    agent.host.exec(&["systemctl", "reset-failed", "linux-patch-policy.service"])?;
    Ok(agent.host.exec(&["systemctl", "start", "linux-patch-policy.service"])?.success())
}

fn unattended_upgrade(agent: &Agent) -> Result<String> {
    let dump = agent.host.exec_ok(&["apt-config", "dump", "APT::Periodic::Unattended-Upgrade"])?;
    Ok(dump.trim().to_owned())
}

fn agent_mode_patches_its_host() -> Result<()> {
    let agent = Agent::boot("selfpatching", &["lp-plain=1.0-1", "lp-epoch", "lp-held"])?;
    agent.repository.publish_day(1)?;
    // As apt's timer does.
    agent.host.exec_ok(&["apt-get", "-qq", "update"])?;
    ensure!(policy(&agent, "the policy", Value::is_object)?["mode"] == "off");
    configure(&agent, OPEN)?;
    let state = policy(&agent, "a run to end", |policy| policy["last_run"]["ended_at"].is_string())?;
    ensure!(state["last_run"]["outcome"] == "applied" && state["failures"] == 0, "{state:#}");
    ensure!(state["next_run"].is_string() && state["last_success"].is_string(), "{state:#}");
    let (plain, epoch, held) =
        (agent.version("lp-plain")?, agent.version("lp-epoch")?, agent.version("lp-held")?);
    ensure!((plain.as_str(), epoch.as_str()) == ("1.1-1", "1:1.0"), "{plain} {epoch}: it does not patch");
    ensure!(held == "1.0", "an ordinary update was installed");
    let runs = runs(&agent)?;
    ensure!(runs.len() == 1 && runs[0]["job_id"] == state["last_run"]["job_id"], "{runs:#?}");
    ensure!(runs[0]["kind"] == "apply_patches" && runs[0]["way_back"].is_object(), "{runs:#?}");
    let trail = agent.host.read_text(RECORD)?;
    ensure!(trail.contains("security fixes are installed now: the window is open"), "{trail}");
    let metrics = agent.get("/metrics")?.text;
    for line in ["linux_patch_api_policy_agent_mode 1\n", "linux_patch_api_policy_failures 0\n"] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    // It outlives a restart: nothing is done twice.
    agent.host.exec_ok(&["systemctl", "restart", "linux-patch-api"])?;
    agent.wait_until_up()?;
    policy(&agent, "the next run to be known", |policy| policy["next_run"] == state["next_run"])?;
    ensure!(self::runs(&agent)?.len() == 1);
    agent.host.exec_ok(&["linux-patch-api", "audit", "verify"]).map(drop)
}

fn agent_mode_says_why_not_outside_its_window() -> Result<()> {
    let agent = Agent::boot("waiting", &["lp-plain=1.0-1"])?;
    agent.repository.publish_day(1)?;
    agent.host.exec_ok(&["apt-get", "-qq", "update"])?;
    let day = agent.host.exec_ok(&["date", "--utc", "--date", "3 days", "+%a"])?;
    configure(
        &agent,
        &format!(
            "policy: {{mode: agent, window: {{days: {}, hour: 12, duration_minutes: 60}}}}\n",
            day.trim()
        ),
    )?;
    let state = policy(&agent, "the next run", |policy| policy["next_run"].is_string())?;
    let said = state["decision"].as_str().unwrap_or_default().to_owned();
    ensure!(said.starts_with("not now: this host's turn in the window is at "), "{state:#}");
    agent.host.exec_ok(&["systemctl", "restart", "linux-patch-api"])?;
    agent.wait_until_up()?;
    policy(&agent, "the same after a restart", |policy| policy["decision"] == said.as_str())?;
    let trail = agent.host.read_text(RECORD)?;
    let records = trail.matches(&format!("\"what\":\"{said}\"")).count();
    ensure!(records == 1, "it is recorded {records} times: {trail}");

    // An operator pauses it within its window, and a frozen host is left alone.
    configure(&agent, &OPEN.replace("mode: agent", "mode: agent, paused: true"))?;
    policy(&agent, "the pause", |policy| policy["decision"] == "not now: policy.paused is set")?;
    agent.host.push("until Monday\n", "/etc/linux_patch_api/freeze", "644")?;
    configure(&agent, OPEN)?;
    policy(&agent, "the freeze", |policy| {
        policy["decision"] == "not now: the host is frozen by its freeze file: until Monday"
    })?;
    ensure!(agent.get("/jobs")?.data()?["total"] == 0 && agent.version("lp-plain")? == "1.0-1");
    agent.host.exec_ok(&["rm", "/etc/linux_patch_api/freeze"])?;
    // Any change of the file is looked at, and so is what is different now.
    configure(&agent, &OPEN.replace("mode: agent", "mode: agent, exclude: [lp-plain]"))?;
    let state = policy(&agent, "a run to end", |policy| policy["last_run"]["ended_at"].is_string())?;
    ensure!(state["last_run"]["outcome"] == "unchanged", "{state:#}");
    ensure!(agent.version("lp-plain")? == "1.0-1", "an excluded package was updated");
    Ok(())
}

fn agent_mode_is_handed_over_to_and_given_back() -> Result<()> {
    let agent = Agent::boot("handover", &["lp-plain=1.0-1"])?;
    let host = &agent.host;
    // The base masks apt's own; what is left to be wrong is what this is about.
    host.exec(&["linux-patch-host", "provision", "unattended"])?;
    let always = "APT::Periodic::Unattended-Upgrade \"always\";";
    ensure!(tick(&agent)? && unattended_upgrade(&agent)? == always);
    let doctor = || -> Result<bool> {
        let told: Value =
            serde_json::from_str(&host.exec(&["linux-patch-host", "--json", "doctor"])?.stdout)?;
        let findings = told["findings"].as_array().context("no findings")?;
        let about = ["agent_mode_without_effect", "updates_off", "too_slow", "security_not_allowed"];
        Ok(!findings.iter().any(|finding| about.iter().any(|id| finding["id"] == *id)))
    };
    configure(&agent, OPEN)?;
    ensure!(!doctor()?, "nothing is handed over yet");
    let state = policy(&agent, "a run to end", |policy| policy["last_run"]["ended_at"].is_string())?;
    ensure!(tick(&agent)?, "{}", host.shell("journalctl -u linux-patch-policy --no-pager -n 20")?);
    ensure!(unattended_upgrade(&agent)? == "APT::Periodic::Unattended-Upgrade \"0\";");
    let status: Value =
        serde_json::from_str(&host.exec_ok(&["linux-patch-host", "--json", "policy", "status"])?)?;
    ensure!(status["patches"] == "agent" && status["handed_over"] == true, "{status:#}");
    ensure!(status["last_success"]["job"] == state["last_run"]["job_id"], "{status:#}");
    ensure!(doctor()?, "all is well");
    // Stopped, disabled, switched off: the other one patches, and never both.
    host.exec_ok(&["systemctl", "stop", "linux-patch-api"])?;
    ensure!(!tick(&agent)? && unattended_upgrade(&agent)? == always && !doctor()?);
    host.exec_ok(&["systemctl", "start", "linux-patch-api"])?;
    ensure!(tick(&agent)? && unattended_upgrade(&agent)? != always);
    host.exec_ok(&["systemctl", "disable", "linux-patch-api"])?;
    ensure!(!tick(&agent)? && unattended_upgrade(&agent)? == always);
    host.exec_ok(&["systemctl", "enable", "linux-patch-api"])?;
    ensure!(tick(&agent)? && unattended_upgrade(&agent)? != always);
    configure(&agent, "policy: {mode: \"off\"}\n")?;
    policy(&agent, "the mode to be off", |policy| policy["mode"] == "off")?;
    ensure!(tick(&agent)? && unattended_upgrade(&agent)? == always && doctor()?);
    configure(&agent, OPEN)?;
    ensure!(tick(&agent)? && unattended_upgrade(&agent)? != always);
    let record = host.exec_ok(&["linux-patch-host", "record"])?;
    ensure!(record.matches("unattended-upgrades is switched off by").count() == 4, "{record}");
    ensure!(record.matches("unattended-upgrades is given back").count() == 3, "{record}");
    host.exec_ok(&["linux-patch-host", "record", "verify"])?;
    // Removed, nothing of it is left, and the removal is on record.
    policy(&agent, "nothing to be at work", |policy| policy["last_run"]["ended_at"].is_string())?;
    host.exec_ok(&["apt-get", "-qq", "-y", "remove", "linux-patch-api"])?;
    ensure!(unattended_upgrade(&agent)? == always && !host.exec(&["test", "-e", FILE])?.success());
    let record = host.read_text("/var/lib/linux_patch_executor/record.jsonl")?;
    ensure!(record.contains("is removed, as was asked for"), "{record}");
    Ok(())
}
