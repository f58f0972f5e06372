//! The configuration changes while the agent runs: whole or not at all, at once, and at nobody's expense.

use std::{
    io::{Read, Write},
    process::{Child, ChildStdin, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use system_tests::{trials::trial, wait};

use crate::{
    changing::{boot_with_slow, let_go, start_slow},
    fixture::{Agent, Answer},
    streaming::{ensure_in_order, follow},
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_port_changes_while_a_job_is_streamed", the_port_changes_while_a_job_is_streamed),
        trial("a_wrong_configuration_is_refused_and_said", a_wrong_configuration_is_refused_and_said),
        trial("a_check_reads_as_the_service_does", a_check_reads_as_the_service_does),
        trial("roles_rates_and_levels_change_at_once", roles_rates_and_levels_change_at_once),
        trial("changes_in_a_row_lose_no_request", changes_in_a_row_lose_no_request),
    ]
}

/// How long a change may take; on an idle machine it is a fifth of it.
const PROMISED: Duration = Duration::from_secs(5);

const CONFIG: &str = "/etc/linux_patch_api/config.yaml";

/// As alice at another port.
fn at(agent: &Agent, port: u16, path: &str) -> Result<Answer> {
    let url = format!("https://{}:{port}/api/v1{path}", agent.host.ip());
    agent.curl_at(&url, &["--cert", &agent.pem("alice.pem"), "--key", &agent.pem("alice.key.pem")])
}

/// Replaces the configuration and waits until it shows.
fn put(agent: &Agent, config: &str, what: &str, shows: impl Fn() -> Result<bool>) -> Result<()> {
    agent.host.push(config, CONFIG, "644")?;
    let begun = Instant::now();
    wait::until(what, PROMISED * 3, || Ok(shows()?.then_some(())))?;
    let took = begun.elapsed();
    println!("{what}: {} ms", took.as_millis());
    ensure!(took <= PROMISED, "{what}: it took {took:?}");
    Ok(())
}

fn systemctl_reload(agent: &Agent) -> Result<bool> {
    Ok(agent.host.exec(&["systemctl", "reload", "linux-patch-api"])?.success())
}

/// The health check of the configuration: whether it is well, and what it says.
fn config_health(agent: &Agent) -> Result<(bool, String)> {
    let answer = agent.get("/health")?;
    let checks = answer.data()?["checks"].as_array().context("no checks")?.clone();
    let check = checks.into_iter().find(|check| check["name"] == "config").context("no such check")?;
    Ok((check["healthy"] == true, check["message"].as_str().unwrap_or_default().to_owned()))
}

/// A connection of alice's that stays open.
struct Open {
    child: Child,
    input: ChildStdin,
}

impl Open {
    fn new(agent: &Agent) -> Result<Self> {
        let address = format!("{}:12443", agent.host.ip());
        let (ca, cert, key) = (agent.pem("ca.pem"), agent.pem("alice.pem"), agent.pem("alice.key.pem"));
        let arguments = ["openssl", "s_client", "-quiet", "-verify_quiet", "-connect", &address];
        let identity = ["-CAfile", &ca, "-cert", &cert, "-key", &key];
        let mut command = agent.network.command(&[&arguments[..], &identity].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let input = child.stdin.take().context("no stdin")?;
        let mut this = Self { child, input };
        this.ask()?;
        Ok(this)
    }

    /// Asks something over the same connection; the status.
    fn ask(&mut self) -> Result<String> {
        self.input.write_all(b"GET /api/v1/jobs?limit=1 HTTP/1.1\r\nhost: agent\r\n\r\n")?;
        let mut answer = Vec::new();
        let output = self.child.stdout.as_mut().context("no stdout")?;
        while !answer.ends_with(b"\"error\":null}") && !answer.ends_with(b"false}}") {
            let mut byte = [0];
            if output.read(&mut byte)? == 0 {
                bail!("closed after {}", String::from_utf8_lossy(&answer));
            }
            answer.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&answer).into_owned();
        Ok(text.split_whitespace().nth(1).unwrap_or_default().to_owned())
    }

    fn wait_closed(&mut self) -> Result<()> {
        wait::until("the open connection to be closed", PROMISED, || Ok(self.child.try_wait()?)).map(drop)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn the_port_changes_while_a_job_is_streamed() -> Result<()> {
    let agent = boot_with_slow("moving")?;
    let pid = agent.pid()?;
    let id = start_slow(&agent)?;
    let mut open = Open::new(&agent)?;
    let told = follow(&agent, id.parse()?, 2, || {
        put(&agent, "server: {port: 13443}\nlogging: {level: DEBUG}\n", "the new port", || {
            Ok(at(&agent, 13443, "/health").is_ok_and(|answer| answer.status == 200))
        })?;
        wait::until("the former port to be closed", PROMISED, || {
            Ok(agent.get("/health").is_err().then_some(()))
        })?;
        ensure!(open.ask()? == "200", "a connection of before the change");
        let job = at(&agent, 13443, &format!("/jobs/{id}"))?.data()?.clone();
        ensure!(job["status"] == "running", "{job:#}");
        let_go(&agent)
    })?;
    // Nobody could have come back by the former port.
    for told in &told {
        ensure_in_order(told)?;
    }
    ensure!(open.ask()? == "200", "a connection of before the change");
    put(&agent, "server: {port: 12443}\n", "the former port again", || {
        Ok(agent.get("/health").is_ok_and(|answer| answer.status == 200))
    })?;
    let job = agent.end_of(&id)?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    ensure!(agent.pid()? == pid, "the agent was started again");
    agent.wait_record("change", |record| {
        record["event"] == "config_changed"
            && record["diff"].as_str().is_some_and(|diff| {
                diff.contains("server.port: 12443 -> 13443; logging.level: INFO -> DEBUG")
            })
    })?;
    Ok(())
}

fn a_wrong_configuration_is_refused_and_said() -> Result<()> {
    let agent = Agent::boot("refusing", &[])?;
    let pid = agent.pid()?;
    let shown =
        |property: &str| agent.host.exec_ok(&["systemctl", "show", "-P", property, "linux-patch-api"]);
    ensure!(systemctl_reload(&agent)?, "a reload of what is in force fails");
    ensure!(config_health(&agent)?.0);
    ensure!(shown("StatusText")?.contains("Serving on 0.0.0.0:12443"), "{}", shown("StatusText")?);

    let place = "config.yaml:2:3: unknown key `prot`; did you mean `port`";
    put(&agent, "server:\n  prot: 13443\n  timeout: 5\n", "the refusal", || {
        Ok(config_health(&agent)?.1.contains(place))
    })?;
    ensure!(agent.get("/health")?.data()?["status"] == "degraded");
    let metrics = agent.get("/metrics")?.text;
    ensure!(metrics.contains("linux_patch_api_config_in_force 0"), "{metrics}");
    ensure!(metrics.contains("linux_patch_api_config_reloads_total{outcome=\"refused\"} 1"), "{metrics}");
    ensure!(shown("StatusText")?.contains(place), "{}", shown("StatusText")?);
    ensure!(!systemctl_reload(&agent)?, "the reload of a wrong file succeeds");
    ensure!(shown("ActiveState")?.trim() == "active" && shown("SubState")?.trim() == "running");
    let journal = agent.host.exec_ok(&["journalctl", "-u", "linux-patch-api", "--no-pager", "-o", "cat"])?;
    for words in [
        "config reload refused, the running configuration stays",
        "config reload refused, what ran before goes on",
    ] {
        ensure!(
            journal.lines().any(|line| line.contains(words) && line.contains(place)),
            "{words}: {journal}"
        );
    }
    let checked = agent.host.exec(&["linux-patch-api", "check-config"])?;
    ensure!(checked.status.code() == Some(3) && checked.stdout.contains(place), "{checked:?}");
    agent.wait_record("refusal", |record| {
        record["event"] == "config_refused" && record["error"].as_str().is_some_and(|e| e.contains(place))
    })?;

    // The port of another program: nothing of the whole change is in effect.
    agent.host.exec_ok(&[
        "systemd-run",
        "--quiet",
        "--unit=squatter",
        "python3",
        "-c",
        "import socket,time\ns=socket.socket()\ns.bind(('0.0.0.0',14443))\ns.listen()\ntime.sleep(600)",
    ])?;
    wait::until("the port to be taken", PROMISED, || {
        let taken = agent.host.shell("ss -Hltn 'sport = :14443' | wc -l")?;
        Ok((taken.trim() == "1").then_some(()))
    })?;
    agent.host.push("server: {port: 14443}\nsecurity: {roles: {nobody: admin}}\n", CONFIG, "644")?;
    ensure!(!systemctl_reload(&agent)?, "an occupied port is taken");
    ensure!(
        config_health(&agent)?.1.contains("another program uses the port"),
        "{:?}",
        config_health(&agent)?
    );
    agent.host.exec_ok(&["systemctl", "stop", "squatter"])?;

    // Without a file the defaults are not what runs.
    agent.host.push("server: {timeout: 9}\n", CONFIG, "644")?;
    ensure!(systemctl_reload(&agent)? && config_health(&agent)?.0);
    agent.host.exec_ok(&["rm", CONFIG])?;
    wait::until("the loss to be said", PROMISED, || {
        Ok(config_health(&agent)?.1.contains("is gone").then_some(()))
    })?;
    ensure!(!systemctl_reload(&agent)?, "a reload without a file succeeds");
    put(&agent, "server: {timeout: 8}\n", "the file to be back", || Ok(config_health(&agent)?.0))?;
    let said = agent.host.exec_ok(&["linux-patch-api", "reload"])?;
    ensure!(said.contains("in effect already since") && said.contains("server.timeout"), "{said}");
    let said = agent.host.exec_ok(&["linux-patch-api", "reload"])?;
    ensure!(said.contains("the same as before"), "{said}");
    // What has changed of the allow list, by itself or by this.
    agent.allow(&[&agent.network.address().to_string(), "10.99.0.7"])?;
    let said = agent.host.exec_ok(&["linux-patch-api", "reload"])?;
    ensure!(said.contains("whitelist: added 10.99.0.7") && !said.contains("the same"), "{said}");
    // Without a list nobody is let in, which is not "what ran before".
    agent.host.exec_ok(&["rm", "/etc/linux_patch_api/whitelist.yaml"])?;
    let said = agent.host.exec(&["linux-patch-api", "reload"])?;
    ensure!(said.code() == Some(3) && said.stdout.contains("nobody is let in"), "{said:?}");
    ensure!(!said.stdout.contains("goes on") && agent.get("/health").is_err(), "{said:?}");
    agent.allow(&[&agent.network.address().to_string()])?;
    ensure!(systemctl_reload(&agent)?);
    // The allow list is part of it.
    agent.host.push("allowed_ips: [nonsense!]\n", "/etc/linux_patch_api/whitelist.yaml", "644")?;
    ensure!(!systemctl_reload(&agent)?, "the reload of a wrong allow list succeeds");
    agent.allow(&[&agent.network.address().to_string()])?;
    ensure!(systemctl_reload(&agent)?);
    ensure!(agent.pid()? == pid, "the agent was started again");
    Ok(())
}

/// Root reads everything, the service does not: what `check-config` says is what the service would find. What it advises is done
/// as it stands, and mends it.
fn a_check_reads_as_the_service_does() -> Result<()> {
    let agent = Agent::boot("checked", &[])?;
    let host = &agent.host;
    let check = || host.exec(&["linux-patch-api", "check-config"]);
    let well = check()?;
    ensure!(well.code() == Some(0) && well.stdout == "the configuration is valid\n", "{well:?}");
    for (spoil, says) in [
        // As the README's steps do it for whoever has this umask.
        ("umask 077; cp config.yaml new; mv new config.yaml", "cannot read"),
        ("umask 077; cp whitelist.yaml new; mv new whitelist.yaml", "cannot read"),
        ("chmod 600 certs/ca.pem", "cannot read"),
        ("chmod 700 certs", "may not enter"),
        ("chmod 700 .", "may not enter"),
        ("chmod 666 config.yaml", "others than root"),
        ("chmod 664 whitelist.yaml", "others than root"),
        ("printf 'protected: [lp-x]\\n' >ceiling.yaml; chmod 666 ceiling.yaml", "writable by nobody else"),
        ("chmod 777 certs", "others than root"),
        ("chmod 644 certs/server.key.pem", "read by everybody"),
        ("chown nobody whitelist.yaml", "belongs to nobody"),
        // Between the name that is configured and the file there is a link that others may exchange.
        (
            "mkdir -m 777 /srv/between && cp -a certs /srv/real && ln -s ../real /srv/between/now && mv certs old && ln -s \
             /srv/between/now certs",
            "/srv/between may be changed by others than root",
        ),
    ] {
        host.shell(&format!("cd /etc/linux_patch_api && {spoil}"))?;
        let checked = check()?;
        ensure!(checked.code() == Some(3) && checked.stdout.contains(says), "{spoil}: {checked:?}");
        let mut mended = 0;
        for line in checked.stdout.lines() {
            let at = line.rfind(": chmod ").or_else(|| line.rfind(": chown "));
            if let Some(advice) = at.and_then(|at| line.get(at + 2..)) {
                host.shell(advice)?;
                mended += 1;
            }
        }
        ensure!(mended > 0, "{spoil}: no advice: {checked:?}");
        let checked = check()?;
        ensure!(checked.code() == Some(0), "{spoil}: after the advice: {checked:?}");
    }
    // The service serves all the same, and says so when it starts.
    host.shell("chmod 666 /etc/linux_patch_api/whitelist.yaml && systemctl restart linux-patch-api")?;
    let journal = host.exec_ok(&["journalctl", "-u", "linux-patch-api", "--no-pager", "-o", "cat"])?;
    ensure!(journal.contains("whitelist.yaml may be changed by others than root"), "{journal}");
    host.shell("chmod 644 /etc/linux_patch_api/whitelist.yaml")?;
    host.push("operations: [format]\n", "/etc/linux_patch_api/ceiling.yaml", "644")?;
    let checked = check()?;
    ensure!(checked.code() == Some(3) && checked.stdout.contains("ceiling.yaml:1:14"), "{checked:?}");
    // The service takes what it reads all the same, and says so.
    let reloaded = host.exec(&["linux-patch-api", "reload"])?;
    ensure!(
        reloaded.success() && reloaded.stdout.contains("note: /etc/linux_patch_api/ceiling.yaml:1:14"),
        "{reloaded:?}"
    );
    host.exec_ok(&["rm", "/etc/linux_patch_api/ceiling.yaml"])?;
    // Also in the unit that decides who patches this host: what the service cannot read it does not take.
    let unit = host.read_text("/usr/lib/systemd/system/linux-patch-policy.service")?;
    let sandbox: Vec<String> = unit
        .lines()
        .filter(|line| {
            ["Capability", "NoNew", "SystemCall", "Restrict"].iter().any(|key| line.starts_with(key))
        })
        .map(|line| format!("--property='{line}'"))
        .collect();
    host.exec_ok(&["chmod", "600", CONFIG])?;
    let confined = host.exec(&[
        "/bin/bash",
        "-c",
        &format!(
            "systemd-run --quiet --wait --pipe {} linux-patch-api check-config --configuration-only",
            sandbox.join(" ")
        ),
    ])?;
    ensure!(confined.code() == Some(3) && confined.stdout.contains("chmod 644"), "{confined:?}");
    host.exec_ok(&["chmod", "644", CONFIG])?;
    // Who may not read the key does not call it wrong.
    let mine = host.shell(
        "setpriv --reuid linux-patch-api --regid linux-patch-api --clear-groups linux-patch-api check-config",
    )?;
    ensure!(mine.contains("note: whether the key belongs") && mine.contains("is valid"), "{mine}");
    Ok(())
}

fn roles_rates_and_levels_change_at_once() -> Result<()> {
    let agent = Agent::boot("retuning", &[])?;
    let pid = agent.pid()?;
    let mut open = Open::new(&agent)?;
    let refresh = || agent.send("POST", "/patches/refresh", &json!({}));
    agent.host.push("security: {roles: {alice: viewer}}\n", CONFIG, "644")?;
    ensure!(systemctl_reload(&agent)?);
    let answer = refresh()?;
    ensure!(answer.status == 403 && answer.code() == "AUTHZ_FORBIDDEN", "{}", answer.text);
    ensure!(open.ask()? == "200", "who has another role stays connected");

    // At once, and on what is open.
    agent.host.push("security: {roles: {bob: admin}}\n", CONFIG, "644")?;
    open.wait_closed()?;
    ensure!(agent.get("/health").is_err(), "who has no role any more is let in");
    agent.wait_record("withdrawal", |record| {
        record["event"] == "connection_revoked" && record["identity"] == "alice"
    })?;
    let levels = "security: {rate_limit_requests_per_minute: 3}\nlogging: {level: WARN}\n";
    agent.host.push(levels, CONFIG, "644")?;
    ensure!(systemctl_reload(&agent)?);
    wait::until("the rate to be limited", PROMISED, || {
        Ok((agent.get("/jobs?limit=1")?.status == 429).then_some(()))
    })?;
    let spoken = |since: &str| -> Result<String> {
        let after = format!("--after-cursor={since}");
        agent.host.exec_ok(&["journalctl", "-u", "linux-patch-api", "--no-pager", "-o", "cat", &after])
    };
    let cursor = || -> Result<String> {
        let shown = agent.host.exec_ok(&["journalctl", "-n", "0", "--show-cursor", "-q"])?;
        Ok(shown.trim().strip_prefix("-- cursor: ").context("no cursor")?.to_owned())
    };
    let read_again = "whitelist and certificates are read again";
    let here = cursor()?;
    ensure!(systemctl_reload(&agent)?);
    ensure!(!spoken(&here)?.contains(read_again), "at the level WARN: {}", spoken(&here)?);
    agent.host.push("security: {rate_limit_requests_per_minute: 6000}\n", CONFIG, "644")?;
    ensure!(systemctl_reload(&agent)?);
    wait::until("the rate to be higher", PROMISED, || {
        Ok((agent.get("/jobs?limit=1")?.status == 200).then_some(()))
    })?;
    let here = cursor()?;
    ensure!(systemctl_reload(&agent)?);
    wait::until("the level to be INFO", PROMISED, || Ok(spoken(&here)?.contains(read_again).then_some(())))?;
    ensure!(refresh()?.status == 202 && agent.pid()? == pid);
    Ok(())
}

/// How many changes the test under load makes.
fn changes_under_load() -> usize {
    std::env::var("LINUX_PATCH_CHANGES").ok().and_then(|n| n.parse().ok()).unwrap_or(16)
}

fn changes_in_a_row_lose_no_request() -> Result<()> {
    let agent = Agent::boot("busy", &[])?;
    let pid = agent.pid()?;
    let me = agent.network.address().to_string();
    let fast = "rate_limit_requests_per_minute: 100000000";
    agent.host.push(format!("security: {{{fast}}}\n"), CONFIG, "644")?;
    ensure!(systemctl_reload(&agent)?);
    let (done, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    // One over a single connection, two with a new one for each request.
    let keep = || -> Result<()> {
        let mut open = Open::new(&agent)?;
        while !done.load(Ordering::Relaxed) {
            ensure!(open.ask()? == "200");
            answers.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let renew = || -> Result<()> {
        while !done.load(Ordering::Relaxed) {
            ensure!(agent.get("/jobs?limit=1")?.status == 200);
            answers.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let clients = [scope.spawn(keep), scope.spawn(renew), scope.spawn(renew)];
        let change = |i: usize| -> Result<()> {
            let address =
                if i.is_multiple_of(2) { agent.host.ip().to_string() } else { "0.0.0.0".to_owned() };
            let role = if i.is_multiple_of(3) { "viewer" } else { "admin" };
            let config = format!(
                "server: {{bind_address: {address}, timeout: {}}}\nsecurity: {{{fast}, roles: {{alice: {role}, other{i}: viewer}}}}\n",
                10 + i
            );
            agent.host.push(config, CONFIG, "644")?;
            agent.allow(&[&me, &format!("192.0.2.{}", i % 250)])?;
            ensure!(systemctl_reload(&agent)?, "change {i}");
            Ok(())
        };
        let changed = (0..changes_under_load()).try_for_each(change);
        done.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        changed
    })?;
    // The records of changes reach the file within about a second.
    let applied = wait::until("a record of each change", PROMISED, || {
        let records = agent.trail()?;
        let applied = records.iter().filter(|record| record["event"] == "config_changed").count();
        Ok((applied > changes_under_load()).then_some(applied))
    })?;
    println!("{} answers during {applied} changes", answers.load(Ordering::Relaxed));
    ensure!(answers.load(Ordering::Relaxed) > 0 && agent.pid()? == pid);
    Ok(())
}
