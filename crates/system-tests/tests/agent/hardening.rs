//! The units: what systemd makes of them, and what they keep from a daemon whose code somebody else has replaced.

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{trials::trial, wait};

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_units_are_what_they_promise", the_units_are_what_they_promise),
        trial("the_apparmor_profile_is_understood", the_apparmor_profile_is_understood),
        trial("a_daemon_that_hangs_is_started_again", a_daemon_that_hangs_is_started_again),
        trial("replaced_code_gains_nothing", replaced_code_gains_nothing),
    ]
}

/// The exposure that `systemd-analyze security` may find at most.
const EXPOSURE: f64 = 1.5;

/// What holds for the daemon.
const DAEMON: &[(&str, &str)] = &[
    ("User", "linux-patch-api"),
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
    ("NoNewPrivileges", "yes"),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("NoExecPaths", "/"),
    ("WatchdogUSec", "1min"),
    ("MemoryMax", "268435456"),
    ("TasksMax", "64"),
    ("LimitNOFILE", "8192"),
    ("LimitCORE", "0"),
    ("Restart", "on-failure"),
    ("Type", "notify"),
];

/// What holds for the root side: maintainer scripts inherit it, so what would break them must not be there.
const EXECUTOR: &[(&str, &str)] = &[
    ("KillMode", "process"),
    ("OOMPolicy", "continue"),
    ("TasksMax", "8192"),
    ("CollectMode", "inactive-or-failed"),
    ("TimeoutStopUSec", "35min"),
    ("RuntimeMaxUSec", "infinity"),
    ("StandardInput", "socket"),
    ("StandardOutput", "journal"),
    ("UMask", "0022"),
    ("NoNewPrivileges", "no"),
    ("ProtectHome", "no"),
    ("ProtectSystem", "no"),
    ("PrivateTmp", "no"),
    ("PrivateDevices", "no"),
    ("RestrictSUIDSGID", "no"),
    ("ProtectKernelModules", "no"),
    ("ProtectKernelTunables", "no"),
    ("MemoryDenyWriteExecute", "no"),
    ("MemoryMax", "infinity"),
    ("NotifyAccess", "none"),
];

fn properties(agent: &Agent, unit: &str) -> Result<BTreeMap<String, String>> {
    let shown = agent.host.exec_ok(&["systemctl", "show", "--all", unit])?;
    Ok(shown.lines().filter_map(|l| l.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

fn ensure_properties(agent: &Agent, unit: &str, expected: &[(&str, &str)]) -> Result<()> {
    let shown = properties(agent, unit)?;
    for (name, value) in expected {
        let found = shown.get(*name).with_context(|| format!("{unit} has no property {name}"))?;
        ensure!(found == value, "{unit}: {name} is {found:?}, not {value:?}");
    }
    Ok(())
}

fn the_units_are_what_they_promise() -> Result<()> {
    let agent = Agent::boot("units", &[])?;
    ensure_properties(&agent, "linux-patch-api.service", DAEMON)?;
    ensure_properties(&agent, "linux-patch-executor@promise.service", EXECUTOR)?;
    let socket = [("SocketMode", "0660"), ("SocketUser", "root"), ("SocketGroup", "linux-patch-api")];
    ensure_properties(&agent, "linux-patch-executor.socket", &socket)?;
    let score =
        agent.host.exec_ok(&["systemd-analyze", "security", "--no-pager", "linux-patch-api.service"])?;
    let last = score.lines().last().unwrap_or_default();
    let level: f64 = last.split_whitespace().find_map(|word| word.parse().ok()).context("no level")?;
    ensure!(level <= EXPOSURE, "the unit's exposure is {level}");
    let verified = agent.host.exec(&[
        "systemd-analyze",
        "verify",
        "--man=no",
        "linux-patch-api.service",
        "linux-patch-executor.socket",
        "linux-patch-executor@verify.service",
        "linux-patch-arrive.service",
        "linux-patch-executor-recover.service",
        "linux-patch-reboot-window.service",
        "linux-patch-reboot-window.timer",
        "linux-patch-notify.service",
        "linux-patch-notify.timer",
        "linux-patch-policy.service",
        "linux-patch-policy.timer",
    ])?;
    let ours: Vec<&str> = verified.stderr.lines().filter(|line| line.contains("linux-patch")).collect();
    ensure!(verified.success() && ours.is_empty(), "systemd-analyze verify: {ours:#?}");
    Ok(())
}

fn the_apparmor_profile_is_understood() -> Result<()> {
    let profile =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/apparmor/usr.bin.linux-patch-api");
    let parse = |flag: &str| -> Result<String> {
        let output = Command::new("apparmor_parser")
            .args(["--skip-kernel-load", "--skip-cache", flag])
            .arg(&profile)
            .output()
            .context("cannot start apparmor_parser")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "apparmor_parser {flag}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    ensure!(parse("--names")?.trim() == "linux-patch-api");
    // Compiled, which finds what parsing does not.
    parse("--debug")?;
    // The unit asks for the profile by this name.
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd/linux-patch-api.service");
    ensure!(std::fs::read_to_string(unit)?.contains("\nAppArmorProfile=-linux-patch-api\n"));
    Ok(())
}

/// Puts lines into the daemon's unit and starts it again.
fn drop_in(agent: &Agent, text: &str) -> Result<()> {
    agent.host.push(text, "/etc/systemd/system/linux-patch-api.service.d/test.conf", "644")?;
    agent.host.exec_ok(&["systemctl", "daemon-reload"])?;
    agent.host.exec_ok(&["systemctl", "restart", "linux-patch-api"]).map(drop)
}

fn a_daemon_that_hangs_is_started_again() -> Result<()> {
    let agent = Agent::boot("watchdog", &[])?;
    // What counts here is that the daemon tells systemd of itself in time, and what happens if not; not the minute.
    drop_in(&agent, "[Service]\nWatchdogSec=2\n")?;
    agent.wait_until_up()?;
    let before = agent.pid()?;
    agent.host.exec_ok(&["kill", "-STOP", &before])?;
    let limit = Duration::from_secs(40);
    wait::until("another process", limit, || {
        Ok((![before.as_str(), "0"].contains(&agent.pid()?.as_str())).then_some(()))
    })?;
    agent.wait_until_up()?;
    let said = agent.host.exec_ok(&["journalctl", "-u", "linux-patch-api", "--no-pager"])?;
    ensure!(said.contains("Watchdog timeout"), "{said}");
    Ok(())
}

/// What somebody would try who runs code of his own in the daemon's place.
const INTRUDER: &str = include_str!("intruder.py");

fn replaced_code_gains_nothing() -> Result<()> {
    let agent = Agent::boot("intruder", &["lp-plain=1.0-1"])?;
    // So that there is a journal and an archive to be read.
    agent.change("DELETE", "/packages/lp-plain", &json!({}))?;
    agent.host.push(INTRUDER, "/usr/lib/intruder.py", "755")?;
    // The same unit with another program in it; python needs to be allowed to run, which the real unit would refuse.
    drop_in(
        &agent,
        "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\nExecStart=/usr/bin/python3 /usr/lib/intruder.py\n\
         ExecPaths=/usr/bin/python3.11 /usr/bin/python3\nAppArmorProfile=\n",
    )?;
    let told: BTreeMap<String, Value> =
        serde_json::from_str(&agent.host.read_text("/var/lib/linux_patch_api/told.json")?)?;
    ensure!(told.len() > 30, "{told:#?}");
    let may = ["state", "log"];
    for (attempt, result) in &told {
        ensure!((result == "done") == may.contains(&attempt.as_str()), "{attempt}: {result}\n{told:#?}");
    }
    for gone in ["/usr/bin/intruder", "/etc/intruder", "/boot/intruder"] {
        ensure!(!agent.host.exec(&["test", "-e", gone])?.success(), "{gone}");
    }
    Ok(())
}
