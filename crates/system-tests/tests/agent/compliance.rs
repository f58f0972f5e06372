//! How soon fixes are installed, from their publication to what runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{trials::trial, wait};

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("every_fix_is_followed_until_its_code_runs", every_fix_is_followed_until_its_code_runs)]
}

const PATIENCE: Duration = Duration::from_secs(30);

/// A service of the host's own that has mapped a packaged library.
const MAPPER: &str =
    "[Service]\nEnvironment=LD_PRELOAD=/usr/lib/lp-mapped/liblp.so.1\nExecStart=/bin/sleep infinity\n";

fn report(agent: &Agent) -> Result<Value> {
    let answer = agent.get("/compliance")?;
    ensure!(answer.status == 200, "{}", answer.text);
    Ok(answer.body["data"].clone())
}

fn fix<'a>(report: &'a Value, name: &str) -> Result<&'a Value> {
    let fixes = report["fixes"].as_array().context("no fixes")?;
    fixes.iter().find(|fix| fix["name"] == name).with_context(|| format!("no fix of {name}: {report:#}"))
}

/// The same by root's own tool, and its exit code.
fn by_root(agent: &Agent) -> Result<(Value, Option<i32>)> {
    let output = agent.host.exec(&["linux-patch-host", "report", "--json"])?;
    let report = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((report, output.code()))
}

fn every_fix_is_followed_until_its_code_runs() -> Result<()> {
    let agent = Agent::boot("compliance", &["lp-mapped", "lp-plain=1.0-1", "lp-epoch", "lp-next"])?;
    let host = &agent.host;
    host.push(MAPPER, "/etc/systemd/system/lp-mapper.service", "644")?;
    host.shell("systemctl daemon-reload; systemctl start lp-mapper; apt-mark -q hold lp-plain")?;
    let before = report(&agent)?;
    ensure!(before["fixes"] == json!([]) && before["observed_since"].is_string(), "{before:#}");

    // Published and seen.
    agent.repository.publish_day(1)?;
    let job = agent.change("POST", "/patches/refresh", &json!({}))?;
    ensure!(job["status"] == "completed", "{job:#}");
    let seen = report(&agent)?;
    ensure!(seen["summary"]["fixes"] == 4, "{seen:#}");
    let mapped = fix(&seen, "lp-mapped")?;
    ensure!(mapped["state"] == "open" && mapped["published"]["accuracy"] == "bound", "{mapped:#}");
    ensure!(mapped["seen"].is_string(), "{mapped:#}");
    let mapped_by = mapped["published"]["by"].clone();
    let held = fix(&seen, "lp-plain")?;
    ensure!(held["state"] == "blocked" && held["blocked_by"][0]["kind"] == "held", "{held:#}");

    host.shell("echo quarter >/etc/linux_patch_api/freeze")?;
    wait::until("the freeze is seen", PATIENCE, || {
        let report = report(&agent)?;
        Ok((fix(&report, "lp-mapped")?["blocked_by"][0]["kind"] == "frozen").then_some(()))
    })?;
    host.exec_ok(&["rm", "/etc/linux_patch_api/freeze"])?;

    // Planned and installed by a job; what runs is old until it ends.
    let job = agent.change("POST", "/patches/apply", &json!({"packages": ["lp-mapped"]}))?;
    ensure!(job["outcome"] == "applied", "{job:#}");
    let applied = report(&agent)?;
    let mapped = fix(&applied, "lp-mapped")?;
    ensure!(mapped["state"] == "on_disk", "{mapped:#}");
    ensure!(
        mapped["planned"]["job"] == job["job_id"] && mapped["applied"]["job"] == job["job_id"],
        "{mapped:#}"
    );
    ensure!(mapped["applied"]["accuracy"] == "exact" && mapped["seen"].is_string(), "{mapped:#}");
    ensure!(mapped["memory"]["held_by"] == json!(["lp-mapper.service"]), "{mapped:#}");
    let (root, _) = by_root(&agent)?;
    ensure!(fix(&root, "lp-mapped")?["memory"] == mapped["memory"], "{root:#}");
    ensure!(fix(&root, "lp-mapped")?["applied"] == mapped["applied"], "{root:#}");
    ensure!(fix(&root, "lp-plain")?["blocked_by"][0]["kind"] == "held", "{root:#}");
    host.exec_ok(&["systemctl", "stop", "lp-mapper"])?;
    wait::until("its code runs", PATIENCE, || {
        Ok((fix(&report(&agent)?, "lp-mapped")?["state"] == "effective").then_some(()))
    })?;

    // Installed by the distribution's own tool, and not by us.
    host.exec(&["linux-patch-host", "provision", "unattended"])?;
    host.exec_ok(&["unattended-upgrade"])?;
    let patched = report(&agent)?;
    let epoch = fix(&patched, "lp-epoch")?;
    ensure!(epoch["state"] == "effective" && epoch["planned"].is_null(), "{epoch:#}");
    ensure!(epoch["applied"]["by"] == "unattended_upgrades", "{epoch:#}");
    let run = &patched["unattended_runs"][0];
    ensure!(run["result"] == "installed" && run["packages"] == json!(["lp-epoch", "lp-next"]), "{patched:#}");
    let metrics = agent.get("/metrics")?.text;
    for line in ["linux_patch_api_fixes{state=\"effective\"} 3", "linux_patch_api_fixes{state=\"blocked\"} 1"]
    {
        ensure!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }

    // The archive was looked at before and after: the publication lies between its two dates.
    agent.repository.publish_day(2)?;
    let job = agent.change("POST", "/patches/refresh", &json!({}))?;
    ensure!(job["status"] == "completed", "{job:#}");
    let patched = report(&agent)?;
    let fixes = patched["fixes"].as_array().context("no fixes")?;
    let next = fixes.iter().find(|fix| fix["version"] == "1.2").with_context(|| format!("{patched:#}"))?;
    ensure!(next["name"] == "lp-next" && next["installed_version"] == "1.1", "{next:#}");
    ensure!(next["published"]["after"] == mapped_by && next["hours"]["at_most"].is_u64(), "{next:#}");

    let told = agent.patchctl(&["--json", "compliance"])?.output()?;
    let told: Value = serde_json::from_slice(&told.stdout)?;
    ensure!(told["fixes"] == patched["fixes"] || told["data"]["fixes"] == patched["fixes"], "{told:#}");

    // It is remembered, and root knows it without the agent.
    host.exec_ok(&["systemctl", "restart", "linux-patch-api"])?;
    agent.wait_until_up()?;
    let again = report(&agent)?;
    for name in ["lp-mapped", "lp-plain", "lp-epoch"] {
        for key in ["seen", "published", "applied", "planned", "memory"] {
            ensure!(fix(&again, name)?[key] == fix(&patched, name)?[key], "{key}: {again:#}");
        }
    }
    host.exec_ok(&["systemctl", "stop", "linux-patch-api"])?;
    let (root, code) = by_root(&agent)?;
    ensure!(root["summary"]["effective"] == 3 && root["unattended_runs"][0] == *run, "{root:#}");
    let over = root["summary"]["over_promise"].as_u64();
    ensure!(code == Some(if over == Some(0) { 0 } else { 7 }), "{code:?}: {root:#}");
    host.exec_ok(&["rm", "/var/lib/linux_patch_api/compliance.json"])?;
    let (root, _) = by_root(&agent)?;
    ensure!(root["not_known"].to_string().contains("has not looked") && root["observed_since"].is_null());
    // What the logs tell it knows all the same.
    ensure!(fix(&root, "lp-epoch")?["applied"]["by"] == "unattended_upgrades", "{root:#}");
    let table = host.exec(&["linux-patch-host", "report"])?.stdout;
    ensure!(table.contains("UNATTENDED-UPGRADES") && table.contains("lp-plain is held"), "{table}");
    Ok(())
}
