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
        trial("a_run_of_the_policy_patches_alone", a_run_of_the_policy_patches_alone),
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
    // What only waits says so, and until when.
    let kept_by = |kind: &str, words: &str, state: &str| -> Result<()> {
        let why = agent.get("/patches/lp-plain/why-not")?.data()?["causes"][0].clone();
        let fixes = agent.get("/compliance")?.data()?["fixes"].clone();
        let fix = fixes.as_array().context("no fixes")?.iter().find(|fix| fix["name"] == "lp-plain");
        let fix = fix.context("the fix is not known")?;
        for cause in [&why, &fix["blocked_by"][0]] {
            let is_said = cause["message"].as_str().is_some_and(|message| message.contains(words));
            ensure!(cause["kind"] == kind && is_said, "{why:#} {fix:#}");
        }
        ensure!(fix["state"] == state, "{fix:#}");
        Ok(())
    };
    let opens =
        agent.host.exec_ok(&["date", "--utc", "--date", "3 days", "+policy.window opens at %FT12:00:00Z"])?;
    kept_by("waits_for_window", opens.trim(), "open")?;
    agent.host.exec_ok(&["systemctl", "restart", "linux-patch-api"])?;
    agent.wait_until_up()?;
    policy(&agent, "the same after a restart", |policy| policy["decision"] == said.as_str())?;
    let trail = agent.host.read_text(RECORD)?;
    let records = trail.matches(&format!("\"what\":\"{said}\"")).count();
    ensure!(records == 1, "it is recorded {records} times: {trail}");

    // An operator pauses it within its window, and a frozen host is left alone.
    configure(&agent, &OPEN.replace("mode: agent", "mode: agent, paused: true"))?;
    policy(&agent, "the pause", |policy| policy["decision"] == "not now: policy.paused is set")?;
    kept_by("paused", "policy.paused is set", "blocked")?;
    agent.host.push("until Monday\n", "/etc/linux_patch_api/freeze", "644")?;
    configure(&agent, OPEN)?;
    policy(&agent, "the freeze", |policy| {
        policy["decision"] == "not now: the host is frozen by its freeze file: until Monday"
    })?;
    kept_by("frozen", "until Monday", "blocked")?;
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
    let day = host.exec_ok(&["date", "--utc", "--date", "3 days", "+%a"])?;
    configure(&agent, &format!("policy: {{mode: agent, window: {{days: {}, hour: 12}}}}\n", day.trim()))?;
    policy(&agent, "the mode to be on", |policy| policy["mode"] == "agent")?;
    ensure!(!doctor()?, "nothing is handed over yet");
    configure(&agent, OPEN)?;
    let state = policy(&agent, "a run to end", |policy| policy["last_run"]["ended_at"].is_string())?;
    ensure!(tick(&agent)?, "{}", host.shell("journalctl -u linux-patch-policy --no-pager -n 20")?);
    ensure!(unattended_upgrade(&agent)? == "APT::Periodic::Unattended-Upgrade \"0\";");
    let status: Value =
        serde_json::from_str(&host.exec_ok(&["linux-patch-host", "--json", "policy", "status"])?)?;
    ensure!(status["patches"] == "agent" && status["handed_over"] == true, "{status:#}");
    ensure!(status["last_success"]["job"] == state["last_run"]["job_id"], "{status:#}");
    ensure!(status["agent"] == "runs" && status["frozen_by"].is_null(), "{status:#}");
    host.exec_ok(&["touch", "/etc/linux_patch_api/freeze"])?;
    let status = host.exec_ok(&["linux-patch-host", "policy", "status"])?;
    host.exec_ok(&["rm", "/etc/linux_patch_api/freeze"])?;
    ensure!(status.contains("frozen        by /etc/linux_patch_api/freeze"), "{status}");
    let provisioned = host.exec(&["linux-patch-host", "provision", "unattended"])?;
    ensure!(provisioned.stderr.contains("installs nothing until that mode"), "{provisioned:?}");
    ensure!(doctor()?, "all is well");
    let ceiling = "/etc/linux_patch_api/ceiling.yaml";
    host.push("operation: []\n", ceiling, "644")?;
    let told = host.exec(&["linux-patch-host", "--json", "doctor"])?.stdout;
    host.exec_ok(&["rm", ceiling])?;
    ensure!(told.contains("ceiling_invalid") && told.contains("ceiling.yaml:1:1"), "{told}");
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
    // The first run may have had to take over itself, and gave back then what it took.
    let count = |words: &str| record.matches(words).count();
    let given_back = count("unattended-upgrades is given back");
    ensure!([3, 4].contains(&given_back), "{record}");
    ensure!(count("unattended-upgrades is switched off by") == given_back + 1, "{record}");
    host.exec_ok(&["linux-patch-host", "record", "verify"])?;
    // Removed, nothing of it is left, and the removal is on record.
    policy(&agent, "nothing to be at work", |policy| policy["last_run"]["ended_at"].is_string())?;
    host.exec_ok(&["apt-get", "-qq", "-y", "remove", "linux-patch-api"])?;
    ensure!(unattended_upgrade(&agent)? == always && !host.exec(&["test", "-e", FILE])?.success());
    let record = host.read_text("/var/lib/linux_patch_executor/record.jsonl")?;
    ensure!(record.contains("is removed, as was asked for"), "{record}");
    Ok(())
}

/// What apt's timers hold while one of them is at work.
const TIMERS: &str = "/var/lib/apt/daily_lock";

/// One of apt's timers is at work until `/run/let-go` is there.
fn occupy(agent: &Agent) -> Result<()> {
    // The one before may not have seen yet that it is let go.
    let work = "flock LOCK true; rm -f /run/let-go; setsid flock LOCK sh -c ': >/run/held; while [ ! -e /run/let-go ]; do sleep 0.05; done' \
                </dev/null >/dev/null 2>&1 & while [ ! -e /run/held ]; do sleep 0.05; done; rm /run/held";
    agent.host.shell(&work.replace("LOCK", TIMERS)).map(drop)
}

fn a_run_of_the_policy_patches_alone() -> Result<()> {
    const ALWAYS: &str = "APT::Periodic::Unattended-Upgrade \"always\";";
    const OFF: &str = "APT::Periodic::Unattended-Upgrade \"0\";";
    let agent = Agent::boot("alone", &["lp-slow"])?;
    let host = &agent.host;
    agent.repository.publish_day(1)?;
    host.exec_ok(&["apt-get", "-qq", "update"])?;
    host.exec(&["linux-patch-host", "provision", "unattended"])?;
    // Nobody looks but the root side itself: the timer is on, and far from its time.
    let never = "[Timer]\nOnBootSec=\nOnCalendar=\nOnCalendar=2099-01-01\n";
    host.push(never, "/etc/systemd/system/linux-patch-policy.timer.d/never.conf", "644")?;
    host.shell("systemctl daemon-reload; systemctl restart linux-patch-policy.timer")?;
    host.push("600\n", "/run/lp-slow-seconds", "644")?;
    ensure!(unattended_upgrade(&agent)? == ALWAYS);
    occupy(&agent)?;
    configure(&agent, &OPEN.replace("mode: agent", "mode: agent, updates: all"))?;
    let state = policy(&agent, "a run to begin", |policy| policy["last_run"]["job_id"].is_string())?;
    let id = state["last_run"]["job_id"].as_str().unwrap_or_default().to_owned();
    agent.wait_job(&id, "the run to wait for apt's timer", |job| job["waiting_for"]["lock"] == TIMERS)?;
    ensure!(unattended_upgrade(&agent)? == OFF, "both may patch");
    host.push("", "/run/let-go", "644")?;
    wait::until("the maintainer script to run", LIMIT, || {
        Ok(host.exec(&["test", "-e", "/run/lp-slow-started"])?.success().then_some(()))
    })?;
    // Whatever is decided meanwhile.
    host.exec_ok(&["systemctl", "stop", "linux-patch-api"])?;
    ensure!(tick(&agent)? && unattended_upgrade(&agent)? == OFF, "it is given back in the middle of a run");
    let status: Value =
        serde_json::from_str(&host.exec_ok(&["linux-patch-host", "--json", "policy", "status"])?)?;
    ensure!(status["at_work"] == id.as_str(), "{status:#}");
    host.push("", "/run/lp-slow-go", "644")?;
    wait::until("root to look after the run", LIMIT, || {
        Ok((unattended_upgrade(&agent)? == ALWAYS).then_some(()))
    })?;
    host.exec_ok(&["systemctl", "start", "linux-patch-api"])?;
    agent.wait_until_up()?;
    ensure!(agent.end_of(&id)?["outcome"] == "applied" && agent.version("lp-slow")? == "1.1");

    // Where it cannot be kept off, the other one patches.
    let local = "/etc/apt/apt.conf.d/99zz-local";
    host.push(ALWAYS, local, "644")?;
    let apply = || agent.submit("POST", "/patches/apply", &serde_json::json!({}));
    let job = agent.end_of(&apply()?)?;
    ensure!(job["error_detail"]["code"] == "CONFIG_INVALID" && job["outcome"] == "unchanged", "{job:#}");
    host.exec_ok(&["rm", local])?;

    // Called off, or killed: what it took is given back.
    let given_back = |times: usize| -> Result<bool> {
        let record = host.exec_ok(&["linux-patch-host", "record"])?;
        Ok(record.matches("has ended").count() == times)
    };
    for (number, is_killed) in [(2, false), (3, true)] {
        host.exec_ok(&["systemctl", "reset-failed"])?;
        host.exec_ok(&["linux-patch-host", "policy", "release"])?;
        occupy(&agent)?;
        let id = apply()?;
        agent.wait_job(&id, "the run to wait for apt's timer", |job| job["waiting_for"]["lock"] == TIMERS)?;
        ensure!(unattended_upgrade(&agent)? == OFF);
        if is_killed {
            host.exec_ok(&["systemctl", "kill", "--signal=KILL", "linux-patch-executor@*.service"])?;
        } else {
            agent.send("DELETE", &format!("/jobs/{id}"), &Value::Null)?;
        }
        let job = agent.end_of(&id)?;
        ensure!(job["outcome"] == "unchanged" && given_back(number)?, "{job:#}");
        if !is_killed {
            // Root looks at once, and relies upon this agent.
            wait::until("root to look after the run", LIMIT, || {
                Ok((unattended_upgrade(&agent)? == OFF).then_some(()))
            })?;
        }
        host.push("", "/run/let-go", "644")?;
    }

    // Where nobody looks any more, a success leaves nothing switched off; nor does a change that only waits to be confirmed.
    host.exec_ok(&["systemctl", "reset-failed"])?;
    host.exec_ok(&["linux-patch-host", "policy", "release"])?;
    host.exec_ok(&["systemctl", "stop", "linux-patch-policy.timer"])?;
    host.shell("rm /run/lp-slow-seconds")?;
    host.exec_ok(&["apt-get", "-qq", "-y", "install", "lp-plain=1.0-1"])?;
    let id = agent.submit("POST", "/patches/apply", &serde_json::json!({"confirm_within": 86400}))?;
    agent.wait_job(&id, "the change to wait to be confirmed", |job| job["confirm_by"].is_string())?;
    wait::until("the run to stand aside", LIMIT, || {
        Ok((unattended_upgrade(&agent)? == ALWAYS).then_some(()))
    })?;
    let status: Value =
        serde_json::from_str(&host.exec_ok(&["linux-patch-host", "--json", "policy", "status"])?)?;
    ensure!(status["at_work"].is_null() && status["patches"] == "distribution", "{status:#}");
    host.exec_ok(&["linux-patch-host", "confirm", &id])?;
    ensure!(agent.end_of(&id)?["status"] == "completed");
    // Somebody looked before the timer was off: the switch is there when the run begins.
    host.exec_ok(&["systemctl", "start", "linux-patch-policy.timer"])?;
    ensure!(tick(&agent)? && unattended_upgrade(&agent)? == OFF, "nothing is handed over");
    host.exec_ok(&["systemctl", "stop", "linux-patch-policy.timer"])?;
    let looks = || host.exec_ok(&["systemctl", "show", "-P", "InvocationID", "linux-patch-policy.service"]);
    let before = looks()?;
    let job = agent.end_of(&apply()?)?;
    ensure!(job["status"] == "completed", "{job:#}");
    wait::until("root to have looked after the run", LIMIT, || {
        let state =
            host.exec_ok(&["systemctl", "show", "-P", "ActiveState", "linux-patch-policy.service"])?;
        Ok((looks()? != before && matches!(state.trim(), "inactive" | "failed")).then_some(()))
    })?;
    ensure!(unattended_upgrade(&agent)? == ALWAYS, "it stays off where nobody looks any more");
    Ok(())
}
