//! Reboots that are asked for through the API, on hosts that really reboot.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{trials::trial, wait};

use crate::{fixture::Agent, reboot_window::OPEN};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("an_order_reboots_the_host_and_is_over_after_the_boot", an_order_reboots_the_host),
        trial("a_queued_reboot_waits_for_the_window", a_queued_reboot_waits_for_the_window),
        trial("patches_queue_the_reboot_that_they_ask_for", patches_queue_the_reboot_that_they_ask_for),
    ]
}

const FILE: &str = "/etc/default/linux-patch-reboot-window";

const LIMIT: Duration = Duration::from_secs(60);

/// A host whose timer is on, and which a trial makes look.
fn boot(name: &str, packages: &[&str]) -> Result<Agent> {
    let agent = Agent::boot(name, packages)?;
    agent.host.shell(
        "mkdir -p /etc/systemd/system/linux-patch-reboot-window.timer.d; \
         printf '[Timer]\\nOnBootSec=\\nOnCalendar=\\nOnCalendar=2099-01-01\\n' >/etc/systemd/system/linux-patch-reboot-window.timer.d/never.conf; \
         systemctl daemon-reload; systemctl enable --now linux-patch-reboot-window.timer; \
         systemctl stop unattended-upgrades 2>/dev/null || true",
    )?;
    Ok(agent)
}

/// A window that opens in three days, and when.
fn closed(agent: &Agent) -> Result<String> {
    let day = agent.host.exec_ok(&["date", "-u", "-d", "+3 days", "+%a %F"])?;
    let (name, date) = day.trim().split_once(' ').context("no day")?;
    agent.host.push(format!("REBOOT_DOW={name}\nREBOOT_HOUR=12\n"), FILE, "644")?;
    Ok(format!("{date}T12:00:00Z"))
}

fn look(agent: &Agent) -> Result<()> {
    agent.host.exec_ok(&["systemctl", "--no-block", "start", "linux-patch-reboot-window.service"]).map(drop)
}

fn state(agent: &Agent) -> Result<Value> {
    Ok(agent.get("/system/reboot")?.data()?.clone())
}

fn waits(job: &Value) -> bool {
    job["status"] == "running" && job["phase"] == "waiting"
}

/// The job when it has ended.
fn ended(agent: &Agent, id: &str) -> Result<Value> {
    let job = agent.wait_job(id, "ends after the boot", |job| {
        job["status"].as_str().is_some_and(|status| !["pending", "running"].contains(&status))
    })?;
    ensure!(job["scheduled_for"].is_null() && job["phase"].is_null(), "{job:#}");
    Ok(job)
}

fn an_order_reboots_the_host() -> Result<()> {
    let agent = Agent::boot("order", &[])?;
    agent.host.shell("systemctl stop unattended-upgrades 2>/dev/null || true")?;
    let boots = agent.host.boots();
    // Without a window nothing can be queued, and an order needs a reason.
    let answer = agent.send("POST", "/system/reboot", &json!({}))?;
    ensure!(answer.status == 409 && answer.code() == "REBOOT_WINDOW_CLOSED", "{}", answer.text);
    ensure!(answer.text.contains("no reboot window is declared"), "{}", answer.text);
    let answer = agent.send("POST", "/system/reboot", &json!({"force": true, "reason": " "}))?;
    ensure!(answer.status == 422 && answer.text.contains("needs a reason"), "{}", answer.text);
    let shown = state(&agent)?;
    ensure!(shown["window"].is_null() && shown["queued"] == json!([]), "{shown:#}");
    let codes: Vec<&str> =
        shown["against"].as_array().into_iter().flatten().filter_map(|a| a["code"].as_str()).collect();
    ensure!(codes.contains(&"no_window"), "{shown:#}");

    // Root may forbid it, and packages that are being changed are left alone.
    let ceiling = "/etc/linux_patch_api/ceiling.yaml";
    agent.host.push("operations: [install, reboot]\n", ceiling, "644")?;
    let order = json!({"force": true, "reason": "the firmware is new"});
    let job = agent.change("POST", "/system/reboot", &order)?;
    ensure!(job["status"] == "failed" && job["error_detail"]["code"] == "AUTHZ_FORBIDDEN", "{job:#}");
    agent.host.exec_ok(&["rm", ceiling])?;
    agent.host.shell(
        "python3 -c \"import fcntl,os,signal; f=open('/var/lib/dpkg/lock-frontend','r+'); fcntl.lockf(f,fcntl.LOCK_EX); \
         open('/run/held','w').write(str(os.getpid())); signal.pause()\" >/dev/null 2>&1 & \
         until [ -s /run/held ]; do sleep 0.01; done",
    )?;
    let job = agent.change("POST", "/system/reboot", &order)?;
    ensure!(job["status"] == "failed" && job["error_detail"]["code"] == "SYSTEM_REBOOT_ERROR", "{job:#}");
    ensure!(job["error"].as_str().is_some_and(|e| e.contains("packages are being changed")), "{job:#}");
    ensure!(job["outcome"] == "unchanged" && agent.host.boots() == boots, "{job:#}");
    agent.host.shell("kill $(cat /run/held)")?;

    // The client follows the job through the boot. Nobody has switched the window's timer on.
    let boot = || agent.host.read_text("/proc/sys/kernel/random/boot_id");
    let before = boot()?;
    let output = agent
        .patchctl(&["--json", "reboot", "--force", "--delay", "1", "--reason", "the firmware is new"])?
        .output()?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{output:?}");
    let job: Value = serde_json::from_str(&said).with_context(|| format!("{said} {errors}"))?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    ensure!(agent.host.boots() == boots + 1, "{} boots", agent.host.boots());
    ensure!(boot()? != before, "the boot is the same");
    let shown = agent.get("/system/info")?.data()?["boot_id"].clone();
    ensure!(shown == boot()?.trim(), "{shown} is shown");
    let record = agent.host.exec_ok(&["linux-patch-host", "record"])?;
    ensure!(record.contains("the host reboots: the firmware is new, by order of alice (job "), "{record}");
    let id = job["job_id"].as_str().context("no id")?;
    agent.wait_record("the job's end", |event| {
        event["event"] == "job_ended"
            && event.to_string().contains(id)
            && event.to_string().contains("completed")
    })?;
    wait::until("nothing is left of it", LIMIT, || {
        let left = agent.host.shell("ls /var/lib/linux_patch_executor/reboots")?;
        Ok(left.trim().is_empty().then_some(()))
    })
}

fn a_queued_reboot_waits_for_the_window() -> Result<()> {
    let agent = boot("queued", &["lp-plain=1.0-1"])?;
    let host = &agent.host;
    let boots = host.boots();
    let opens = closed(&agent)?;
    let wish = json!({"reason": "new firmware"});
    host.exec_ok(&["systemctl", "stop", "linux-patch-reboot-window.timer"])?;
    let answer = agent.send("POST", "/system/reboot", &wish)?;
    ensure!(answer.status == 409 && answer.text.contains("systemctl enable --now"), "{}", answer.text);
    host.exec_ok(&["systemctl", "start", "linux-patch-reboot-window.timer"])?;

    // It waits, says until when, holds nothing up and can be cancelled.
    let id = agent.submit("POST", "/system/reboot", &wish)?;
    let job = agent.wait_job(&id, "waits", |job| waits(job) && !job["scheduled_for"].is_null())?;
    ensure!(job["scheduled_for"] == json!(opens) && job["kind"] == "reboot", "{job:#}");
    let shown = state(&agent)?;
    ensure!(shown["window"]["next"] == json!(opens) && shown["window"]["timer_off"].is_null(), "{shown:#}");
    ensure!(shown["queued"][0]["job_id"] == json!(id) && shown["queued"][0]["by"] == "alice", "{shown:#}");
    look(&agent)?;
    let held = agent.change("PUT", "/packages/lp-plain", &json!({"hold": true}))?;
    ensure!(held["status"] == "completed", "{held:#}");
    let answer = agent.curl(&format!("/jobs/{id}"), &["--request", "DELETE"])?;
    ensure!(answer.status == 200, "{}", answer.text);
    let job = agent.end_of(&id)?;
    ensure!(job["status"] == "cancelled" && job["outcome"] == "unchanged", "{job:#}");
    ensure!(state(&agent)?["queued"] == json!([]), "it is still queued");

    // Neither the daemon's death nor that of who watches it ends it.
    let id = agent.submit("POST", "/system/reboot", &wish)?;
    agent.wait_job(&id, "waits", waits)?;
    host.shell("pkill -KILL -x patch-executor; systemctl kill -s KILL linux-patch-api")?;
    agent.wait_until_up()?;
    agent.wait_job(&id, "waits again", |job| waits(job) && job["scheduled_for"] == json!(opens))?;
    wait::until("somebody watches it again", LIMIT, || {
        Ok(host.exec(&["pgrep", "-x", "patch-executor"])?.success().then_some(()))
    })?;
    ensure!(host.boots() == boots, "it did not wait");

    // The window opens.
    host.push(OPEN, FILE, "644")?;
    look(&agent)?;
    host.wait_boot(boots + 1)?;
    let job = ended(&agent, &id)?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    let said = job["log"].to_string();
    ensure!(said.contains("the host has rebooted and is in service: alice asked for it"), "{said}");
    ensure!(host.boots() == boots + 1, "it has rebooted more than once");

    // A drain that fails is its end, and the host does not reboot.
    host.push(format!("{OPEN}DRAIN_CMD='exit 7'\n"), FILE, "644")?;
    let id = agent.submit("POST", "/system/reboot", &wish)?;
    agent.wait_job(&id, "waits", waits)?;
    look(&agent)?;
    let job = ended(&agent, &id)?;
    ensure!(job["status"] == "failed" && job["error_detail"]["code"] == "SYSTEM_REBOOT_ERROR", "{job:#}");
    ensure!(job["error"].as_str().is_some_and(|e| e.contains("could not be drained")), "{job:#}");

    // One that somebody else carries out meanwhile is fulfilled.
    closed(&agent)?;
    let id = agent.submit("POST", "/system/reboot", &wish)?;
    agent.wait_job(&id, "waits", waits)?;
    host.exec_ok(&["systemctl", "--no-block", "reboot"])?;
    host.wait_boot(boots + 2)?;
    let job = ended(&agent, &id)?;
    ensure!(job["status"] == "completed" && job["outcome"] == "unchanged", "{job:#}");
    Ok(())
}

fn patches_queue_the_reboot_that_they_ask_for() -> Result<()> {
    let agent = boot("follows", &["lp-reboot=1.0", "lp-plain=1.0-1"])?;
    let host = &agent.host;
    let boots = host.boots();
    host.shell("rm -f /run/reboot-required /run/reboot-required.pkgs")?;
    agent.repository.publish_day(1)?;
    agent.change("POST", "/patches/refresh", &json!({}))?;
    let apply = |package: &str| {
        agent.change(
            "POST",
            "/patches/apply",
            &json!({"packages": [package], "allow_reboot": true, "reboot_delay_minutes": 0}),
        )
    };
    closed(&agent)?;
    let job = apply("lp-plain")?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    ensure!(job["reboot"]["needed"] == false && job["reboot"]["job_id"].is_null(), "{job:#}");
    let job = apply("lp-reboot")?;
    ensure!(job["outcome"] == "applied" && job["reboot"]["needed"] == true, "{job:#}");
    let follower = job["reboot"]["job_id"].as_str().context("no reboot was queued")?.to_owned();
    let waiting = agent.wait_job(&follower, "waits", waits)?;
    ensure!(waiting["request"]["after_job"] == job["job_id"], "{waiting:#}");
    ensure!(waiting["requested_by"]["identity"] == "alice" && host.boots() == boots, "{waiting:#}");
    host.push(OPEN, FILE, "644")?;
    look(&agent)?;
    host.wait_boot(boots + 1)?;
    let ended = ended(&agent, &follower)?;
    ensure!(ended["status"] == "completed" && ended["outcome"] == "applied", "{ended:#}");
    Ok(())
}
