//! Services restart only as declared.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{Host, trials::trial};

use crate::{back, fixture::Agent};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("restarts_wait_for_the_window", restarts_wait_for_the_window),
        trial("only_named_services_are_restarted", only_named_services_are_restarted),
        trial("what_is_new_is_started", what_is_new_is_started),
    ]
}

const CONFIG: &str = "/etc/linux_patch_api/config.yaml";
const WINDOW: &str = "/etc/default/linux-patch-reboot-window";
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// One of the administrator's that writes down what it is asked.
const THEIRS: &str = "#!/bin/sh\necho \"$@\" >>/root/asked\nexit 104\n";

/// Each of the services, and its process.
fn processes(host: &Host, units: &[&str]) -> Result<Vec<String>> {
    let args = [&["systemctl", "show", "--property=MainPID", "--value", "--"][..], units].concat();
    let text = host.exec_ok(&args)?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// What the executor remarked in a job's events.
fn log(agent: &Agent, job: &Value) -> Result<String> {
    let path = format!("/var/lib/linux_patch_executor/events/{}.jsonl", back::id_of(job)?);
    let text = agent.host.read_text(&path)?;
    let own = text.lines().filter(|line| line.contains("\"stream\":\"executor\""));
    Ok(own.collect::<Vec<_>>().join("\n"))
}

fn apply(agent: &Agent, packages: &[&str]) -> Result<(Value, String)> {
    let job = agent.change("POST", "/patches/apply", &json!({"packages": packages}))?;
    let log = log(agent, &job)?;
    ensure!(job["outcome"] == "applied" && job["status"] == "completed", "{job:#}\n{log}");
    Ok((job, log))
}

/// The script's device, number, times and mode, and its text.
fn policy(host: &Host) -> Result<String> {
    host.shell(&format!("stat -c '%d %i %y %a %u' {POLICY}; cat {POLICY}; ls /usr/sbin | grep policy-rc.d"))
}

fn restarts_wait_for_the_window() -> Result<()> {
    let agent = back::boot_with_updates("restarts", &["lp-served", "lp-classic", "lp-daemon"])?;
    let host = &agent.host;
    let units = ["lp-served.service", "lp-classic.service", "lp-daemon.service"];
    host.push(THEIRS, POLICY, "751")?;
    let day = host.exec_ok(&["date", "-u", "-d", "+3 days", "+%a"])?;
    host.push(format!("REBOOT_DOW={}\nREBOOT_HOUR=12\n", day.trim()), WINDOW, "644")?;
    let config = format!(
        "policy:\n  restart: {{mode: restart, when: in_window, services: [{}]}}\n",
        units[..2].join(", ")
    );
    host.push(config, CONFIG, "644")?;
    host.exec_ok(&["linux-patch-api", "check-config"])?;
    let before = (processes(host, &units)?, policy(host)?);
    ensure!(before.0.len() == 3 && !before.0.contains(&"0".to_owned()), "{before:?}");

    let (_, said) = apply(&agent, &["lp-served", "lp-classic", "lp-daemon"])?;
    let after = (processes(host, &units)?, policy(host)?);
    ensure!(after == before, "{after:?} instead of {before:?}: {said}");
    for unit in &units[..2] {
        ensure!(
            said.contains(&format!("{unit} was kept from being restarted by its package's scripts")),
            "{said}"
        );
    }
    // What is not named is nobody's business here.
    ensure!(!said.contains("lp-daemon.service"), "{said}");
    ensure!(!host.shell("cat /root/asked 2>/dev/null || true")?.contains("restart"));

    let tick = || host.exec_ok(&["linux-patch-host", "--json", "reboot-window", "tick"]);
    ensure!(!tick()?.contains("restarted") && processes(host, &units)? == before.0, "the window is closed");
    host.push("REBOOT_DOW=\"*\"\nREBOOT_HOUR=0\nREBOOT_MIN=0\nREBOOT_DURATION_MIN=1440\n", WINDOW, "644")?;
    let said = tick()?;
    ensure!(said.contains("lp-served.service was restarted"), "{said}");
    let after = processes(host, &units)?;
    let is_new: Vec<bool> = after.iter().zip(&before.0).map(|(new, old)| new != old).collect();
    ensure!(is_new == [true, true, false], "{after:?} after {before:?}");
    let record = host.exec_ok(&["linux-patch-host", "record"])?;
    ensure!(record.contains("lp-classic.service was restarted: its package's scripts were kept"), "{record}");
    ensure!(!tick()?.contains("restarted") && processes(host, &units)? == after, "it was restarted twice");

    // Who removes a package has its service stopped.
    let job = agent.change("DELETE", "/packages/lp-served", &json!({}))?;
    ensure!(job["outcome"] == "applied", "{job:#}");
    ensure!(processes(host, &units[..1])? == ["0"] && policy(host)? == before.1, "{}", log(&agent, &job)?);
    Ok(())
}

/// As a package's script does that names all its services in one call.
const TOGETHER: &str = "#!/bin/sh\nif [ \"$1\" = restart ]; then\n\
    exec /usr/bin/perl /usr/bin/deb-systemd-invoke.real \"$@\" lp-new.service lp-stopped.service lp-disabled.service\nfi\n\
    exec /usr/bin/perl /usr/bin/deb-systemd-invoke.real \"$@\"\n";

fn what_is_new_is_started() -> Result<()> {
    let agent = back::boot_with_updates("new", &["lp-served"])?;
    let host = &agent.host;
    let day = host.exec_ok(&["date", "-u", "-d", "+3 days", "+%a"])?;
    host.push(format!("REBOOT_DOW={}\nREBOOT_HOUR=12\n", day.trim()), WINDOW, "644")?;
    let config = "policy: {restart: {mode: restart, when: in_window, services: [lp-served.service]}}\n";
    host.push(config, CONFIG, "644")?;
    let units = ["lp-new", "lp-stopped", "lp-disabled"];
    for unit in units {
        let text = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n";
        host.push(text, &format!("/etc/systemd/system/{unit}.service"), "644")?;
    }
    host.shell("systemctl daemon-reload; systemctl enable lp-new lp-stopped; systemctl start lp-stopped; systemctl stop lp-stopped")?;
    host.shell("mv /usr/bin/deb-systemd-invoke /usr/bin/deb-systemd-invoke.real")?;
    host.push(TOGETHER, "/usr/bin/deb-systemd-invoke", "755")?;
    let before = processes(host, &["lp-served.service"])?;
    let (_, said) = apply(&agent, &["lp-served"])?;
    ensure!(processes(host, &["lp-served.service"])? == before, "{said}");
    let run = |unit: &str| -> Result<bool> { Ok(host.exec(&["systemctl", "is-active", unit])?.success()) };
    let running: Vec<bool> = units.iter().map(|unit| run(unit)).collect::<Result<_>>()?;
    ensure!(running == [true, false, false], "{running:?}: {said}");
    ensure!(said.contains("started lp-new.service, which its package's scripts were to start"), "{said}");
    ensure!(!said.contains("lp-stopped") && !said.contains("lp-disabled"), "{said}");
    Ok(())
}

/// Services of the host's own that have mapped a packaged library; the second one lets nobody restart it.
const MAPPER: &str = "[Unit]\nRefuseManualStop=REFUSES\n[Service]\n\
    Environment=LD_PRELOAD=/usr/lib/lp-mapped/liblp.so.1\nExecStart=/bin/sleep infinity\n";

fn only_named_services_are_restarted() -> Result<()> {
    let agent = back::boot_with_updates("named", &["lp-mapped", "lp-daemon"])?;
    let host = &agent.host;
    let units = ["lp-daemon.service", "lp-mapper.service", "lp-refuses.service"];
    host.push(MAPPER.replace("REFUSES", "no"), "/etc/systemd/system/lp-mapper.service", "644")?;
    host.push(MAPPER.replace("REFUSES", "yes"), "/etc/systemd/system/lp-refuses.service", "644")?;
    host.shell("systemctl daemon-reload; systemctl start lp-mapper lp-refuses")?;
    let config = "policy: {restart: {mode: restart, services: [lp-daemon.service, lp-refuses.service]}}\n";
    host.push(config, CONFIG, "644")?;
    let before = processes(host, &units)?;
    let (job, said) = apply(&agent, &["lp-mapped", "lp-daemon"])?;
    let after = processes(host, &units)?;
    let is_new: Vec<bool> = after.iter().zip(&before).map(|(new, old)| new != old).collect();
    ensure!(is_new == [true, false, false], "{after:?} after {before:?}: {said}");
    ensure!(said.contains("restarted lp-daemon.service, which runs old code"), "{said}");
    ensure!(said.contains("lp-refuses.service runs old code and could not be restarted: "), "{said}");
    ensure!(!said.contains("lp-mapper.service"), "{said}");

    // What went back runs its old code again.
    let undone = agent.change("POST", &format!("/jobs/{}/rollback", back::id_of(&job)?), &json!({}))?;
    ensure!(undone["status"] == "completed", "{undone:#}");
    let again = processes(host, &units)?;
    ensure!(again.first().context("no process")? != after.first().context("no process")?, "{again:?}");
    Ok(())
}
