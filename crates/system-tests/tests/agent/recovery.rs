//! Recovery without the daemon, the agent's change of itself, and a daemon that is hostile.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{Repository, state::HostState, trials::trial, wait};

use crate::{
    changing::{boot_with_slow, let_go, start_slow},
    fixture::Agent,
    streaming,
};

/// How soon the old agent must answer again after a new one has begun to crash.
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// How long a change of the agent itself may take.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("recovery_at_boot_needs_no_daemon", recovery_at_boot_needs_no_daemon),
        trial("a_killed_root_side_is_recovered_without_the_daemon", a_killed_root_side_is_recovered),
        trial("a_shutdown_is_held_up_while_packages_change", a_shutdown_is_held_up_while_packages_change),
        trial("a_recovery_that_is_killed_starts_again", a_recovery_that_is_killed_starts_again),
        trial("checks_after_a_power_cut_wait_for_the_boot", checks_after_a_power_cut_wait_for_the_boot),
        trial("the_agent_updates_itself", the_agent_updates_itself),
        trial("an_agent_that_crashes_is_taken_back", an_agent_that_crashes_is_taken_back),
        trial("an_agent_whose_script_fails_is_taken_back", an_agent_whose_script_fails_is_taken_back),
        trial("the_network_side_cannot_exceed_the_ceiling", the_network_side_cannot_exceed_the_ceiling),
    ]
}

/// What root's own tool says of a job.
fn entry(agent: &Agent, id: &str) -> Result<Value> {
    let said = agent.host.exec_ok(&["linux-patch-host", "--json", "jobs"])?;
    let listed: Value = serde_json::from_str(&said)?;
    let mut jobs = listed["jobs"].as_array().into_iter().flatten();
    Ok(jobs.find(|entry| entry["job"] == id).cloned().unwrap_or_default())
}

/// Waits until the root side has settled a job by itself.
fn wait_settled(agent: &Agent, id: &str) -> Result<Value> {
    let mut last = Value::Null;
    wait::until("the job is settled without the daemon", LIMIT, || {
        last = entry(agent, id)?;
        Ok((!last["outcome"].is_null()).then(|| last.clone()))
    })
    .with_context(|| {
        let look = "systemctl status linux-patch-executor-recover --no-pager; journalctl -n 40 --no-pager";
        format!("{last:#}\n{}", agent.host.shell(look).unwrap_or_else(|error| format!("{error:#}")))
    })
}

/// The daemon comes and shows what the root side's own record says.
fn ensure_told(agent: &Agent, id: &str, settled: &Value) -> Result<()> {
    let job = agent.end_of(id)?;
    ensure!(
        job["status"] == settled["status"] && job["outcome"] == settled["outcome"],
        "{settled:#}\n{job:#}"
    );
    let version = agent.version("lp-slow")?;
    ensure!(version == if job["outcome"] == "applied" { "1.1" } else { "1.0" }, "{version}: {job:#}");
    HostState::of(&agent.host)?.assert_in_order()
}

fn recovery_at_boot_needs_no_daemon() -> Result<()> {
    let agent = boot_with_slow("atboot")?;
    let id = start_slow(&agent)?;
    let certificates = "/etc/linux_patch_api/certs";
    agent.host.exec_ok(&["mv", certificates, "/root/certs"])?;
    agent.host.power_cut()?;
    let_go(&agent)?;
    let settled = wait_settled(&agent, &id)?;
    let daemon = agent.host.exec(&["systemctl", "is-active", "linux-patch-api"])?;
    ensure!(!daemon.success(), "the daemon runs without certificates");
    agent.host.exec_ok(&["mv", "/root/certs", certificates])?;
    agent.host.exec_ok(&["systemctl", "start", "linux-patch-api"])?;
    agent.wait_until_up()?;
    ensure_told(&agent, &id, &settled)
}

fn a_killed_root_side_is_recovered() -> Result<()> {
    let agent = boot_with_slow("killed")?;
    let id = start_slow(&agent)?;
    agent.host.exec_ok(&["systemctl", "stop", "linux-patch-api"])?;
    // All of them: the executor, apt, dpkg and the script. The recovery must not hang in that script again.
    let_go(&agent)?;
    agent.host.exec_ok(&["systemctl", "kill", "--signal=KILL", "linux-patch-executor@*"])?;
    let settled = wait_settled(&agent, &id)?;
    agent.host.exec_ok(&["systemctl", "start", "linux-patch-api"])?;
    agent.wait_until_up()?;
    ensure_told(&agent, &id, &settled)
}

/// The processes that hold a shutdown up for a change, as logind knows them.
fn holders(agent: &Agent, id: &str) -> Result<Vec<u64>> {
    const LOGIND: [&str; 3] =
        ["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"];
    let asked = [&["busctl", "call", "--json=short"], &LOGIND[..], &["ListInhibitors"]].concat();
    let listed: Value = serde_json::from_str(&agent.host.exec_ok(&asked)?)?;
    let all = listed["data"][0].as_array().context("logind lists nothing")?;
    let ours = all.iter().filter(|one| one[1] == "linux-patch-api");
    let pids = ours.map(|one| {
        let why = one[2].as_str().unwrap_or_default();
        ensure!(one[0] == "shutdown:sleep" && one[3] == "block" && why.contains(id), "{listed:#}");
        one[5].as_u64().context("no process")
    });
    pids.collect()
}

/// Waits until one process, and not one of `former`, holds a shutdown up.
fn wait_held(agent: &Agent, id: &str, former: &[u64]) -> Result<u64> {
    wait::until("a shutdown is held up", Duration::from_secs(20), || match holders(agent, id)?.as_slice() {
        [holder] if !former.contains(holder) => Ok(Some(*holder)),
        _ => Ok(None),
    })
}

fn a_shutdown_is_held_up_while_packages_change() -> Result<()> {
    let agent = boot_with_slow("inhibits")?;
    let id = start_slow(&agent)?;
    wait_held(&agent, &id, &[])?;
    let refused = agent.host.exec(&["systemctl", "reboot", "--check-inhibitors=yes"])?;
    let said = format!("{}{}", refused.stdout, refused.stderr);
    ensure!(!refused.success() && said.contains("linux-patch-api") && said.contains(&id), "{refused:?}");
    let_go(&agent)?;
    let job = agent.end_of(&id)?;
    ensure!(job["outcome"] == "applied" && !job["output"].to_string().contains("held up"), "{job:#}");
    ensure!(holders(&agent, &id)?.is_empty(), "it is still held up");
    ensure!(!agent.host.exec(&["pgrep", "-x", "systemd-inhibit"])?.success(), "a process was left");

    // While it waits to be confirmed a shutdown does no harm.
    let id = agent.submit("DELETE", "/packages/lp-slow", &json!({"confirm_within": 600}))?;
    agent.wait_job(&id, "waits to be confirmed", |job| job["phase"] == "confirming")?;
    ensure!(holders(&agent, &id)?.is_empty(), "it is held up while nothing happens");
    Ok(())
}

fn a_recovery_that_is_killed_starts_again() -> Result<()> {
    let agent = boot_with_slow("again")?;
    // As soon as the manager may: what is tried here is that it does.
    let at_once = "[Service]\nRestartSec=100ms\n";
    let unit = "linux-patch-executor-recover.service";
    agent.host.push(at_once, &format!("/run/systemd/system/{unit}.d/at-once.conf"), "644")?;
    agent.host.exec_ok(&["systemctl", "daemon-reload"])?;
    let id = start_slow(&agent)?;
    let mut former = vec![wait_held(&agent, &id, &[])?];
    agent.host.exec_ok(&["systemctl", "stop", "linux-patch-api"])?;
    agent.host.exec_ok(&["pkill", "-KILL", "-x", "patch-executor"])?;
    // It waits for the apt that goes on, and is killed twice. What held the shutdown up goes with each.
    for _ in 0..2 {
        former.push(wait_held(&agent, &id, &former)?);
        let pid = agent.host.exec_ok(&["systemctl", "show", "--value", "-p", "MainPID", unit])?;
        agent.host.exec_ok(&["kill", "-KILL", pid.trim()])?;
    }
    wait_held(&agent, &id, &former)?;
    let_go(&agent)?;
    let settled = wait_settled(&agent, &id)?;
    ensure!(settled["outcome"] == "applied", "{settled:#}");
    ensure!(holders(&agent, &id)?.is_empty(), "it is still held up");
    agent.host.exec_ok(&["systemctl", "start", "linux-patch-api"])?;
    agent.wait_until_up()?;
    ensure_told(&agent, &id, &settled)
}

/// A service that the boot is not over without.
const LATE: &str = "[Unit]\nDescription=late\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sleep 3\n\
                    [Install]\nWantedBy=multi-user.target\n";

fn checks_after_a_power_cut_wait_for_the_boot() -> Result<()> {
    let agent = boot_with_slow("late")?;
    agent.host.push(LATE, "/etc/systemd/system/lp-late.service", "644")?;
    agent.host.exec_ok(&["systemctl", "enable", "lp-late.service"])?;
    // After the power cut the script does not hang, so that all is judged long before the boot is over.
    agent.host.push("f /run/lp-slow-go\n", "/etc/tmpfiles.d/lp-slow.conf", "644")?;
    let check = json!({"type": "command", "command": ["/usr/bin/systemctl", "is-active", "lp-late.service"]});
    let configuration = json!({"health_checks": [check]});
    agent.host.push(format!("{configuration}\n"), "/etc/linux_patch_api/config.yaml", "644")?;
    let id = start_slow(&agent)?;
    agent.host.power_cut()?;
    let settled = wait_settled(&agent, &id)?;
    ensure!(settled["outcome"] == "applied", "{settled:#}");
    agent.wait_until_up()?;
    ensure_told(&agent, &id, &settled)
}

/// A host with this version of the agent, whose apt is offered these as well.
fn boot_with(name: &str, deb: &Path, offered: &[&Path]) -> Result<Agent> {
    let agent = Agent::without_agent(name, &[])?;
    agent.install(deb)?;
    agent.wait_until_up()?;
    agent.repository.publish_extra(&[&[deb], offered].concat())?;
    agent.host.push(Repository::EXTRA, "/etc/apt/sources.list.d/extra.list", "644")?;
    let job = agent.change("POST", "/patches/refresh", &json!({}))?;
    ensure!(job["status"] == "completed", "{job:#}");
    Ok(agent)
}

fn the_agent_updates_itself() -> Result<()> {
    let built = system_tests::packages::Packages::get()?;
    let agent = boot_with("itself", &built.old_agent()?, &[&built.agent()?])?;
    let pid = agent.pid()?;
    let id = agent.submit("PUT", "/packages/linux-patch-api", &json!({}))?;
    let told = streaming::follow(&agent, id.parse()?, 1, || Ok(()))?;
    streaming::ensure_in_order(told.first().context("nobody was told anything")?)?;
    let job = agent.end_of(&id)?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    ensure!(agent.version("linux-patch-api")? == "0.1.0" && agent.pid()? != pid, "{job:#}");
    // An older one is not for anybody to ask for.
    let down = json!({"packages": [{"name": "linux-patch-api", "version": "0.0.1"}], "options": {"allow_downgrade": true}});
    let refused = agent.change("POST", "/packages", &down)?;
    ensure!(refused["status"] == "failed" && refused["outcome"] == "unchanged", "{refused:#}");
    agent.host.exec_ok(&["linux-patch-api", "audit", "verify"])?;
    agent.assert_in_order()
}

/// The agent's package as a later version, changed by `change` in its unpacked tree.
fn spoilt(scratch: &Path, deb: &Path, change: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let tree = scratch.join("tree");
    let made = scratch.join("linux-patch-api_0.2.0_test.deb");
    let run = |arguments: &[&Path]| -> Result<()> {
        let output = Command::new("dpkg-deb").args(arguments).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    run(&[Path::new("-R"), deb, &tree])?;
    let control = fs::read_to_string(tree.join("DEBIAN/control"))?;
    let raised = |line: &str| match line.strip_prefix("Version: ") {
        Some(_) => "Version: 0.2.0\n".to_owned(),
        None => format!("{line}\n"),
    };
    fs::write(tree.join("DEBIAN/control"), control.lines().map(raised).collect::<String>())?;
    change(&tree)?;
    run(&[Path::new("--root-owner-group"), Path::new("-Znone"), Path::new("-b"), &tree, &made])?;
    Ok(made)
}

/// Updates the agent, which must be as before soon after it first failed to answer.
fn update_and_be_back(agent: &Agent) -> Result<()> {
    let before = agent.version("linux-patch-api")?;
    let id = agent.submit("PUT", "/packages/linux-patch-api", &json!({}))?;
    let mut silent = None;
    let back = wait::until("the old version answers", LIMIT, || {
        let answers = agent.get("/health").is_ok_and(|answer| answer.status == 200);
        if !answers {
            silent.get_or_insert_with(Instant::now);
        }
        let Some(since) = silent.filter(|_| answers) else { return Ok(None) };
        Ok((agent.version("linux-patch-api")? == before).then(|| since.elapsed()))
    })
    .with_context(|| {
        agent.host.shell("systemctl status linux-patch-api --no-pager -n 0; linux-patch-host jobs; journalctl -n 60 --no-pager").unwrap_or_default()
    })?;
    ensure!(back <= BACK_WITHIN, "the old version answered again only after {back:.1?}");
    let job = agent.end_of(&id)?;
    ensure!(job["status"] == "failed" && job["outcome"] == "rolled_back", "{job:#}");
    let why = agent.get("/patches/linux-patch-api/why-not")?.data()?.clone();
    ensure!(why["causes"][0]["kind"] == "taken_back", "{why:#}");
    agent.host.exec_ok(&["linux-patch-api", "audit", "verify"])?;
    agent.assert_in_order()
}

fn an_agent_that_crashes_is_taken_back() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let built = system_tests::packages::Packages::get()?.agent()?;
    let crashing = spoilt(scratch.path(), &built, |tree| {
        fs::write(tree.join("usr/bin/linux-patch-api"), "#!/bin/sh\nexit 1\n").map_err(Into::into)
    })?;
    update_and_be_back(&boot_with("crashing", &built, &[&crashing])?)
}

fn an_agent_whose_script_fails_is_taken_back() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let built = system_tests::packages::Packages::get()?.agent()?;
    let failing = spoilt(scratch.path(), &built, |tree| {
        let script = "#!/bin/sh\n[ \"$1\" != configure ] || { systemctl stop linux-patch-api; exit 1; }\n";
        fs::write(tree.join("DEBIAN/postinst"), script).map_err(Into::into)
    })?;
    update_and_be_back(&boot_with("failing", &built, &[&failing])?)
}

/// Asks the root side for one thing after the other, whatever it says, and tells how each ended: one JSON object a line.
const HOSTILE: &str = r#"
import json, os, socket, struct, sys, time, uuid
events = "/var/lib/linux_patch_executor/events/"
def send(data):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect("/run/linux-patch-executor.sock")
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        answer = b""
        try:
            while chunk := s.recv(65536):
                answer += chunk
        except OSError:
            pass
        return json.loads(answer[4:]) if len(answer) > 4 else {"reply": "nothing"}
def frame(data):
    return struct.pack(">I", len(data)) + data
def end(id):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in open(events + id + ".jsonl"):
            event = json.loads(line)
            if event["event"] == "ended":
                return event
        time.sleep(0.02)
    return {"status": "never"}
for wish in json.load(sys.stdin):
    if "raw" in wish:
        reply, told = send(bytes.fromhex(wish["raw"])), None
    else:
        id = wish.get("id") or str(uuid.uuid4())
        request = {"protocol": wish.get("protocol", 1), "id": id, "body": wish["body"]}
        reply, told = send(frame(json.dumps(request).encode())), None
        if reply["reply"] == "accepted" and wish["body"]["request"] == "change":
            told = end(id)
    print(json.dumps({"wish": json.dumps(wish)[:300], "reply": reply, "ended": told}))
for path in ["/var/lib/linux_patch_executor/x", events + "x", "/etc/linux_patch_api/ceiling.yaml", "/etc/linux_patch_api/config.yaml"]:
    try:
        open(path, "a").close()
        print(json.dumps({"wish": "write " + path, "reply": {"reply": "written"}, "ended": None}))
    except OSError:
        pass
"#;

/// Sends these as the daemon's user. Nothing of it may change anything.
fn hostile(agent: &Agent, wishes: &[Value]) -> Result<Vec<Value>> {
    let user = "linux-patch-api";
    let output = agent.host.exec_with(
        &["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "python3", "-c", HOSTILE],
        Value::from(wishes).to_string(),
        LIMIT,
    )?;
    ensure!(output.success(), "{output:?}");
    let told: Vec<Value> =
        output.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("no JSON")?;
    ensure!(told.len() == wishes.len(), "{told:#?}");
    for one in &told {
        let reply = &one["reply"]["reply"];
        let refused = reply == "refused" || reply == "nothing";
        ensure!(refused || one["ended"]["outcome"] == "unchanged", "{one:#}");
    }
    Ok(told)
}

fn change(operation: &Value) -> Value {
    let limits = json!({"timeout_seconds": 60, "lock_wait_seconds": 5});
    json!({"body": {"request": "change", "operation": operation, "limits": limits}})
}

fn the_network_side_cannot_exceed_the_ceiling() -> Result<()> {
    let agent = Agent::boot("ceiling", &["lp-plain=1.0-1", "lp-conf"])?;
    agent.repository.publish_day(1)?;
    let refreshed = agent.change("POST", "/patches/refresh", &json!({}))?;
    let updated = agent.change("POST", "/patches/apply", &json!({"packages": ["lp-conf"]}))?;
    let undone = agent.change(
        "POST",
        &format!("/jobs/{}/rollback", updated["job_id"].as_str().context("no id")?),
        &json!({}),
    )?;
    ensure!(undone["status"] == "completed", "{undone:#}");
    let before = HostState::of(&agent.host)?;
    let held = agent.host.read_text("/etc/apt/preferences.d/linux-patch-taken-back")?;

    // What nobody may ask, and what is no request.
    let mut wishes: Vec<Value> =
        ["dpkg", "apt", "bash", "coreutils", "libc6", "openssh-server", "linux-patch-api"]
            .iter()
            .flat_map(|name| {
                [
                    json!({"kind": "remove", "name": name}),
                    json!({"kind": "remove", "name": name, "purge": true, "autoremove": true}),
                ]
            })
            .map(|operation| change(&operation))
            .collect();
    let many: Vec<Value> = (0..1001).map(|number| json!({"name": format!("lp-none-{number}")})).collect();
    let install = |packages: &[Value]| change(&json!({"kind": "install", "packages": packages}));
    wishes.push(install(&many));
    wishes.push(install(many.get(..1000).unwrap_or_default()));
    wishes.push(install(&[json!({"name": "-oDPkg::Pre-Invoke::=touch /root/x"})]));
    wishes.push(install(&[json!({"name": "lp-plain", "version": "1.0-1-"})]));
    wishes.push(install(&[]));
    wishes.push(change(&json!({"kind": "shell", "command": "touch /root/x"})));
    let ended = refreshed["job_id"].clone();
    for id in [json!("0198c5f2-0000-7000-8000-000000000001"), ended, json!("../../../../etc/passwd")] {
        for request in ["cancel", "confirm"] {
            wishes.push(json!({"body": {"request": request, "job": id}}));
        }
    }
    wishes.push(json!({"body": {"request": "settle", "job": "0198c5f2-0000-7000-8000-000000000001"}}));
    for versions in [json!("all"), json!({"package": {"name": "lp-conf"}})] {
        wishes.push(json!({"body": {"request": "clear", "versions": versions}}));
    }
    let refresh = change(&json!({"kind": "refresh"}));
    wishes.push(json!({"protocol": 99, "body": refresh["body"]}));
    wishes.push(json!({"id": "../../../../root/x", "body": refresh["body"]}));
    for raw in [
        "",
        "00",
        "ffffffff",
        "00100001",
        "00000004",
        "0000000241",
        "00000002ffff",
        "000000027b7d",
        "00000000",
    ] {
        wishes.push(json!({"raw": raw}));
    }
    wishes.push(json!({"raw": format!("000f4240{}", "5b".repeat(1_000_000))}));
    hostile(&agent, &wishes)?;
    before.assert_same(&HostState::of(&agent.host)?)?;

    // What this host's root does not let anybody do.
    agent.host.push("operations: [refresh]\n", "/etc/linux_patch_api/ceiling.yaml", "644")?;
    let told = hostile(
        &agent,
        &[
            install(&[json!({"name": "lp-lib"})]),
            change(&json!({"kind": "update", "name": "lp-plain"})),
            change(&json!({"kind": "remove", "name": "lp-plain"})),
            change(&json!({"kind": "hold", "name": "lp-plain", "hold": true})),
            change(&json!({"kind": "apply_patches"})),
            change(&json!({"kind": "rollback", "job": updated["job_id"], "force": true})),
        ],
    )?;
    ensure!(told.iter().all(|one| one["reply"]["code"] == "AUTHZ_FORBIDDEN"), "{told:#?}");
    before.assert_same(&HostState::of(&agent.host)?)?;
    ensure!(agent.host.read_text("/etc/apt/preferences.d/linux-patch-taken-back")? == held);
    ensure!(!agent.host.exec(&["test", "-e", "/root/x"])?.success(), "something was run");
    // All of that has not hurt the root side either.
    let job = agent.change("POST", "/patches/refresh", &json!({}))?;
    ensure!(job["status"] == "completed", "{job:#}");
    Ok(())
}
