//! S9: a hostile program in the daemon's place, under the daemon's own unit, reaches nothing but its own state and what
//! the root side's protocol allows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use system_tests::{agent::Agent, state::HostState, trials::trial, wait};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("s9_a_hostile_network_side_reaches_nothing", a_hostile_network_side_reaches_nothing)]
}

fn a_hostile_network_side_reaches_nothing() -> Result<()> {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    println!("seed {seed}");
    let agent = Agent::boot("inside", &["lp-plain=1.0-1"])?;
    agent.repository.publish_day(1)?;
    // Something to read and to spoil on the root side.
    let body = serde_json::json!({"packages": ["lp-plain"]});
    let done = agent.change("POST", "/patches/apply", &body)?;
    ensure!(done["status"] == "completed", "{done:#}");
    let before = HostState::of(&agent.host)?;
    agent.host.push(include_str!("inside.py"), "/srv/inside.py", "755")?;
    let drop_in = format!(
        "[Service]\nType=exec\nWatchdogSec=0\nRestart=no\nExecStart=\nExecStart=/usr/bin/python3 -SE /srv/inside.py {seed}\n\
         ExecPaths=/usr/bin/python3.11 /usr/bin/python3\n"
    );
    agent.host.push(drop_in, "/etc/systemd/system/linux-patch-api.service.d/hostile.conf", "644")?;
    agent.host.shell("systemctl daemon-reload; systemctl restart linux-patch-api")?;
    let file = "/var/lib/linux_patch_api/report.json";
    wait::until("the hostile program ends", Duration::from_secs(120), || {
        let state = agent.host.exec(&["systemctl", "is-active", "linux-patch-api"])?;
        Ok((!state.stdout.starts_with("activ") && !state.stdout.starts_with("reload")).then_some(()))
    })?;
    let text = agent.host.read_text(file).with_context(|| {
        agent.host.shell("journalctl -u linux-patch-api -n 30 --no-pager").unwrap_or_default()
    })?;
    let report: Value = serde_json::from_str(&text)?;
    ensure!(report["uid"].as_u64().is_some_and(|uid| uid > 0), "it ran as root: {report:#}");
    let attempts = report["attempts"].as_object().context("no attempts")?;
    let reached: Vec<&String> =
        attempts.iter().filter(|(_, said)| *said == "reached").map(|(name, _)| name).collect();
    ensure!(attempts.len() > 40 && reached.is_empty(), "seed {seed}: it could {reached:?}\n{report:#}");
    let accepted = report["frames"]["accepted"].as_u64().unwrap_or_default();
    // Only to work out a plan, which changes nothing, can be asked of a job that is not there.
    println!("{} attempts, none reached; frames: {} ({accepted} accepted)", attempts.len(), report["frames"]);
    before.assert_same(&HostState::of(&agent.host)?)?;
    // The true one finds everything as it was.
    agent.host.shell(
        "rm -r /etc/systemd/system/linux-patch-api.service.d; systemctl daemon-reload; \
         systemctl reset-failed linux-patch-api; systemctl restart linux-patch-api",
    )?;
    agent.wait_until_up()?;
    let job = agent.change("POST", "/patches/refresh", &serde_json::json!({}))?;
    ensure!(job["status"] == "completed", "{job:#}");
    Ok(())
}
