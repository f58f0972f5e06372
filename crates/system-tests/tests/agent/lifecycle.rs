//! The package of the agent: installed, upgraded, removed and purged, twice in a row.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use system_tests::trials::trial;

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "the_package_installs_upgrades_removes_and_purges_twice",
            the_package_installs_upgrades_removes_and_purges_twice,
        ),
        trial("the_agent_survives_a_reboot", the_agent_survives_a_reboot),
        trial("the_network_side_has_no_root", the_network_side_has_no_root),
    ]
}

fn the_package_installs_upgrades_removes_and_purges_twice() -> Result<()> {
    let agent = Agent::without_agent("cycle", &[])?;
    for _ in 0..2 {
        agent.install(&agent.packages().old_agent()?)?;
        agent.host.exec_ok(&["systemctl", "start", "linux-patch-api"])?;
        agent.wait_until_up()?;
        ensure!(agent.get("/health")?.status == 200);
        let job = agent.change(
            "POST",
            "/packages",
            &json!({"packages": [{"name": "lp-plain", "version": "1.0-1"}]}),
        )?;
        ensure!(job["status"] == "completed", "{job:#}");
        agent.install(&agent.packages().agent()?)?;
        agent.wait_until_up()?;
        let jobs = agent.get("/jobs")?.data()?.clone();
        ensure!(jobs["total"] == 1, "jobs did not survive the upgrade: {jobs:#}");
        agent.host.exec_ok(&["apt-get", "-qq", "-y", "remove", "linux-patch-api"])?;
        ensure!(agent.get("/health").is_err(), "a removed agent answers");
        ensure!(
            agent.host.exec(&["test", "-e", "/etc/linux_patch_api/config.yaml"])?.success(),
            "remove took the configuration"
        );
        ensure!(
            agent.host.exec(&["test", "-e", "/var/log/linux_patch_api/audit.log"])?.success(),
            "remove took the audit trail"
        );
        agent.host.exec_ok(&["apt-get", "-qq", "-y", "purge", "linux-patch-api", "lp-plain"])?;
        for gone in [
            "/var/lib/linux_patch_api",
            "/var/lib/linux_patch_executor",
            "/var/log/linux_patch_api",
            "/etc/linux_patch_api/config.yaml",
        ] {
            ensure!(!agent.host.exec(&["test", "-e", gone])?.success(), "purge left {gone}");
        }
        ensure!(
            agent.host.exec(&["test", "-e", "/etc/linux_patch_api/certs/server.key.pem"])?.success(),
            "purge took the operator's keys"
        );
        let units = agent.host.exec_ok(&[
            "systemctl",
            "list-units",
            "--all",
            "--no-legend",
            "--plain",
            "linux-patch*",
        ])?;
        ensure!(units.trim().is_empty(), "units are left: {units}");
    }
    Ok(())
}

fn the_agent_survives_a_reboot() -> Result<()> {
    let agent = Agent::boot("reboot", &[])?;
    agent.change("POST", "/packages", &json!({"packages": [{"name": "lp-plain"}]}))?;
    let begun = Instant::now();
    agent.host.reboot()?;
    agent.wait_until_up()?;
    // The boot id is of no use here: the unit's own /proc shows the machine's, not the host's.
    let uptime = agent.get("/system/info")?.data()?["uptime_seconds"].as_u64().context("no uptime")?;
    ensure!(uptime <= begun.elapsed().as_secs(), "the host has been up for {uptime} s");
    ensure!(agent.get("/jobs")?.data()?["total"] == 1);
    agent.host.exec_ok(&["linux-patch-api", "audit", "verify"])?;
    Ok(())
}

fn the_network_side_has_no_root() -> Result<()> {
    let agent = Agent::boot("noroot", &[])?;
    let pid = agent.host.exec_ok(&["systemctl", "show", "--value", "-p", "MainPID", "linux-patch-api"])?;
    let status = agent.host.read_text(&format!("/proc/{}/status", pid.trim()))?;
    let field =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    ensure!(
        field("CapEff:").chars().all(|c| c == '0') && field("CapBnd:").chars().all(|c| c == '0'),
        "{status}"
    );
    ensure!(field("NoNewPrivs:") == "1" && field("Seccomp:") == "2", "{status}");
    ensure!(!field("Uid:").starts_with('0'), "{status}");
    // The key that it serves with is root's alone on disk.
    let mode = agent.host.exec_ok(&["stat", "-c", "%U %a", "/etc/linux_patch_api/certs/server.key.pem"])?;
    ensure!(mode.trim() == "root 600", "{mode}");
    // Nobody but root and the daemon may ask the root side.
    let script =
        "import socket\ns=socket.socket(socket.AF_UNIX)\ns.connect('/run/linux-patch-executor.sock')";
    let stranger =
        agent.host.exec(&["setpriv", "--reuid=nobody", "--clear-groups", "python3", "-c", script])?;
    ensure!(!stranger.success() && stranger.stderr.contains("PermissionError"), "{stranger:?}");
    Ok(())
}
