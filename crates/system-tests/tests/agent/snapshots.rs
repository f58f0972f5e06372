//! A host on btrfs goes back to a snapshot: over the API, by a real reboot, and with nothing of the agent's lost.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{HostOptions, disk, state::HostState, trials::trial};

use crate::{back::id_of, fixture::Agent};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("a_host_goes_back_to_a_snapshot_by_a_reboot", a_host_goes_back_to_a_snapshot_by_a_reboot)]
}

fn a_host_goes_back_to_a_snapshot_by_a_reboot() -> Result<()> {
    let agent = Agent::boot_on(HostOptions::named("snapped").on_btrfs("3g"), &["lp-plain=1.0-1", "lp-conf"])?;
    agent.host.push_file("/usr/bin/btrfs".as_ref(), "/usr/bin/btrfs", "755")?;
    for library in disk::libraries("/usr/bin/btrfs")? {
        if !agent.host.exec(&["test", "-e", &library])?.status.success() {
            agent.host.push_file(library.as_ref(), &library, "755")?;
        }
    }
    let configuration = json!({"rollback": {"snapshots": {"mode": "required", "min_free_mib": 64}}});
    agent.host.push(configuration.to_string(), "/etc/linux_patch_api/config.yaml", "644")?;
    agent.repository.publish_day(1)?;
    let job = agent.change("POST", "/patches/refresh", &json!({}))?;
    ensure!(job["status"] == "completed", "{job:#}");

    let before = HostState::of(&agent.host)?;
    let job = agent.change("POST", "/patches/apply", &json!({}))?;
    ensure!(job["outcome"] == "applied", "{job:#}");
    let snapshot = &job["way_back"]["snapshot"];
    ensure!(snapshot["state"] == "made" && snapshot["kind"] == "btrfs", "{snapshot:#}");
    agent.host.shell("echo mine >/etc/mine; useradd intruder")?;

    let path = format!("/jobs/{}/rollback", id_of(&job)?);
    let listed = agent.send("POST", &path, &json!({"mode": "snapshot", "dry_run": true}))?;
    let plan = listed.data()?.clone();
    let files = plan["takes_back"]["files"].as_array().context("nothing is listed")?;
    let is_listed = |path: &str| files.iter().any(|file| file["path"] == path);
    ensure!(is_listed("/etc/mine") && is_listed("/etc/passwd"), "{plan:#}");
    let back = agent.change("POST", &path, &json!({"mode": "snapshot", "if_plan": plan["hash"]}))?;
    ensure!(back["status"] == "completed" && back["outcome"] == "applied", "{back:#}");
    let state = agent.get("/system/reboot")?.data()?.clone();
    ensure!(state["pending_reboot"] == true, "{state:#}");
    // Written between going back and the reboot: records of these are in the trail of what goes.
    let refused = agent.change("DELETE", "/packages/lp-conf", &json!({}))?;
    ensure!(refused["error_detail"]["code"] == "JOB_CONFLICT", "{refused:#}");
    let trail = agent.trail()?.len();

    agent.host.reboot()?;
    agent.wait_until_up()?;
    before.assert_same(&HostState::of(&agent.host)?)?;
    ensure!(!agent.host.exec(&["test", "-e", "/etc/mine"])?.status.success(), "/etc/mine is still there");
    ensure!(!agent.host.exec(&["id", "intruder"])?.status.success(), "the account is still there");
    // Every job, with its end, and every record; the chain is whole and goes on.
    for (one, outcome) in [(&job, "applied"), (&back, "applied"), (&refused, "unchanged")] {
        let kept: Value = agent.job(id_of(one)?)?;
        ensure!(kept["outcome"] == outcome, "{kept:#}");
    }
    ensure!(agent.trail()?.len() > trail, "records are lost");
    agent.host.exec_ok(&["linux-patch-api", "audit", "verify"])?;
    agent.host.exec_ok(&["linux-patch-host", "record", "verify"])?;
    let offered = agent.get("/patches/lp-plain/why-not")?.data()?.clone();
    ensure!(offered["causes"][0]["kind"] == "taken_back", "{offered:#}");
    agent.host.exec_ok(&["linux-patch-host", "clear", "--all"])?;
    let again = agent.change("POST", "/patches/apply", &json!({}))?;
    ensure!(again["outcome"] == "applied", "{again:#}");
    Ok(())
}
