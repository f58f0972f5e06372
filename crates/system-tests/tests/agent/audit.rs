//! The audit trail: everything has its record, in the file and in the journal, and whoever edits it is found out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{trials::trial, wait};

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("everything_is_recorded_and_edits_are_found", everything_is_recorded_and_edits_are_found),
        trial("the_root_side_vouches_for_the_trail", the_root_side_vouches_for_the_trail),
    ]
}

/// What heads of the trail are signed with.
const CHECKPOINT_KEY: &str = "/var/lib/linux_patch_executor/checkpoint.key";

const LOG: &str = "/var/log/linux_patch_api/audit.log";

/// How long the journal may take for what it has been sent.
const PATIENCE: Duration = Duration::from_secs(30);

fn everything_is_recorded_and_edits_are_found() -> Result<()> {
    let agent = Agent::boot("auditing", &["lp-plain=1.0-1"])?;
    let me = agent.network.address().to_string();
    let id = "0191e0a0-aaaa-7222-8333-444455556666";
    agent.curl("/packages/lp-plain", &["--header", &format!("X-Request-Id: {id}")])?;
    agent.repository.publish_day(1)?;
    agent.change("POST", "/patches/refresh", &json!({}))?;
    let job = agent.change("PUT", "/packages/lp-plain", &json!({}))?;
    let job_id = job["job_id"].as_str().context("no id")?;
    ensure!(job["outcome"] == "applied", "{job:#}");
    let failed = agent.change("POST", "/packages", &json!({"packages": [{"name": "lp-none"}]}))?;
    let failed_id = failed["job_id"].as_str().context("no id")?;
    ensure!(agent.send("POST", "/packages", &json!({"packages": "x"}))?.status == 422);
    let large = "x".repeat((1 << 20) + 1);
    let file = agent.pki.path().join("large");
    std::fs::write(&file, large)?;
    let data = format!("@{}", file.display());
    ensure!(
        agent.curl("/packages", &["-H", "content-type: application/json", "--data-binary", &data])?.status
            == 413
    );
    let url = format!("https://{}:12443/api/v1/health", agent.host.ip());
    ensure!(agent.curl_at(&url, &[]).is_err(), "a stranger was let in");

    let mark = "0191e0a0-bbbb-7222-8333-444455556666";
    agent.curl("/health", &["--header", &format!("X-Request-Id: {mark}")])?;
    agent.wait_record("the last request", |record| record["request_id"] == mark)?;
    let trail = agent.trail()?;
    records_are_complete(&trail, &me, id, job_id, failed_id)?;
    journal_has_the_same(&agent, &trail, job_id)?;
    no_secret_is_told(&agent)?;
    edits_are_found(&agent)
}

fn records_are_complete(trail: &[Value], me: &str, id: &str, job_id: &str, failed_id: &str) -> Result<()> {
    for (index, record) in trail.iter().enumerate() {
        ensure!(record["seq"] == index + 1, "a gap before {record:#}");
        ensure!(
            record["message"].as_str().is_some_and(|m| !m.is_empty()) && record["at"].is_string(),
            "{record:#}"
        );
        if index > 0 {
            ensure!(record["prev"] == trail[index - 1]["hash"], "{record:#}");
        }
    }
    let find = |what: &str, wish: &dyn Fn(&Value) -> bool| {
        trail.iter().find(|record| wish(record)).with_context(|| format!("no record: {what}"))
    };
    find("start", &|r| r["event"] == "service_started" && r["version"] == env!("CARGO_PKG_VERSION"))?;
    find("allow list", &|r| r["event"] == "allow_list_changed" && r["added"].to_string().contains(me))?;
    find("authentication", &|r| {
        r["event"] == "auth_success"
            && r["identity"] == "alice"
            && r["address"] == me
            && r["fingerprint"].as_str().is_some_and(|f| f.len() == 64)
    })?;
    find("read", &|r| {
        r["event"] == "request"
            && r["method"] == "GET"
            && r["path"] == "/api/v1/packages/lp-plain"
            && r["status"] == 200
            && r["identity"] == "alice"
            && r["address"] == me
            && r["request_id"] == id
            && r["duration_ms"].is_number()
    })?;
    for (method, status) in [("PUT", 202), ("POST", 422)] {
        find(method, &|r| r["event"] == "request" && r["method"] == method && r["status"] == status)?;
    }
    find("payload", &|r| r["event"] == "payload_refused" && r["priority"] == "low")?;
    find("stranger", &|r| {
        r["event"] == "auth_failure"
            && r["code"] == "AUTH_INVALID_CERT"
            && r["priority"] == "high"
            && r["address"] == me
    })?;
    let accepted = find("job", &|r| r["event"] == "job_accepted" && r["job_id"] == job_id)?;
    ensure!(accepted["kind"] == "update" && accepted["identity"] == "alice", "{accepted:#}");
    let changed = find("package", &|r| r["event"] == "package_changed" && r["job_id"] == job_id)?;
    ensure!(
        changed["name"] == "lp-plain"
            && changed["action"] == "upgrade"
            && changed["old_version"] == "1.0-1"
            && changed["new_version"] == "1.1-1",
        "{changed:#}"
    );
    let ended = find("end", &|r| r["event"] == "job_ended" && r["job_id"] == job_id)?;
    ensure!(ended["status"] == "completed" && ended["outcome"] == "applied", "{ended:#}");
    ensure!(
        accepted["seq"].as_u64() < changed["seq"].as_u64() && changed["seq"].as_u64() < ended["seq"].as_u64()
    );
    find("failed job", &|r| {
        r["event"] == "job_ended"
            && r["job_id"] == failed_id
            && r["status"] == "failed"
            && r["priority"] == "low"
    })?;
    Ok(())
}

fn journal_has_the_same(agent: &Agent, trail: &[Value], job_id: &str) -> Result<()> {
    let read = |arguments: &[&str]| -> Result<Vec<Value>> {
        let fixed = ["journalctl", "--no-pager", "-o", "json", "-t", "linux-patch-api"];
        let text = agent.host.exec_ok(&[&fixed, arguments].concat())?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    };
    // A record is on disk before it is sent to the journal, which takes it in its own time, and in order.
    let last = trail.last().context("the trail is empty")?["seq"].to_string();
    let entries = wait::until("the journal to have the last record", PATIENCE, || {
        let mut entries = read(&[])?;
        entries.retain(|entry| entry["PATCH_SEQ"].is_string());
        Ok(entries.iter().any(|entry| entry["PATCH_SEQ"] == *last).then_some(entries))
    })?;
    for record in trail {
        let number = record["seq"].to_string();
        let entry = entries.iter().find(|entry| entry["PATCH_SEQ"] == *number);
        let entry = entry.with_context(|| format!("not in the journal: {record:#}"))?;
        ensure!(
            entry["PATCH_HASH"] == record["hash"]
                && entry["MESSAGE"] == record["message"]
                && entry["PATCH_EVENT"] == record["event"]
                && entry["MESSAGE_ID"].as_str().is_some_and(|id| id.len() == 32),
            "{entry:#} against {record:#}"
        );
        let priority = match record["priority"].as_str() {
            Some("high") => "3",
            Some("medium") => "4",
            Some("low") => "5",
            _ => "6",
        };
        ensure!(entry["PRIORITY"] == priority, "{entry:#}");
        for (field, name) in
            [("identity", "PATCH_IDENTITY"), ("address", "PATCH_ADDRESS"), ("request_id", "PATCH_REQUEST_ID")]
        {
            ensure!(record[field] == entry[name], "{name}: {entry:#} against {record:#}");
        }
    }
    let of_job = read(&[&format!("PATCH_JOB={job_id}")])?;
    let kinds: Vec<&str> = of_job.iter().filter_map(|entry| entry["PATCH_EVENT"].as_str()).collect();
    ensure!(kinds == ["job_accepted", "package_changed", "job_ended"], "{kinds:?}");
    ensure!(
        of_job[1]["PATCH_PACKAGE"] == "lp-plain" && of_job[1]["PATCH_OLD_VERSION"] == "1.0-1",
        "{of_job:?}"
    );
    ensure!(!read(&["PATCH_EVENT=auth_failure"])?.is_empty());
    for expression in ["auth", "certificate", "whitelist", "client cert", "401\\|403\\|400\\|422"] {
        let script = format!("journalctl --no-pager -t linux-patch-api | grep -c '{expression}'");
        agent.host.shell(&script).with_context(|| format!("grep finds nothing of {expression}"))?;
    }
    Ok(())
}

fn no_secret_is_told(agent: &Agent) -> Result<()> {
    let mut secrets = Vec::new();
    for (file, place) in [("server.key.pem", "the server's key"), ("alice.key.pem", "the client's key")] {
        let pem = std::fs::read_to_string(agent.pki.path().join(file))?;
        secrets.push((pem.lines().nth(1).context("no key")?.to_owned(), place));
    }
    let seed = agent.host.exec_ok(&["cat", CHECKPOINT_KEY])?.trim().to_owned();
    ensure!(seed.len() == 64, "{CHECKPOINT_KEY} is not what it seems");
    secrets.push((seed, "the key for checkpoints"));
    for (secret, place) in secrets {
        ensure!(secret.len() > 30, "{place} is not what it seems");
        for script in [
            format!(
                "grep -r -i -F --exclude=checkpoint.key -e '{secret}' /var/log /var/lib/linux_patch_api \
                 /var/lib/linux_patch_executor && exit 1; exit 0"
            ),
            format!("journalctl --no-pager -a -o export | grep -a -i -F -e '{secret}' && exit 1; exit 0"),
        ] {
            // Without pipefail: grep that finds nothing ends with 1.
            let output = agent.host.exec(&["bash", "-c", &script])?;
            ensure!(output.success(), "{place} is in {}", output.stdout);
        }
    }
    let modes = agent.host.exec_ok(&["stat", "-c", "%a %U", LOG, "/var/log/linux_patch_api"])?;
    ensure!(modes == "640 linux-patch-api\n750 linux-patch-api\n", "{modes}");
    Ok(())
}

fn edits_are_found(agent: &Agent) -> Result<()> {
    let verify = || agent.host.exec(&["linux-patch-api", "audit", "verify"]);
    agent.host.exec_ok(&["systemctl", "stop", "linux-patch-api"])?;
    let verified = verify()?;
    ensure!(verified.code() == Some(0) && verified.stdout.contains("intact"), "{verified:?}");
    agent.host.exec_ok(&["cp", "-p", LOG, "/root/audit.log"])?;
    for (what, script, line) in [
        ("edited", "sed -i '4s/alice/mallo/;4s/medium/info/;4s/\"at\":\"2/\"at\":\"1/'", "4"),
        ("deleted", "sed -i 5d", "5"),
        ("moved", "sed -i '6{h;d};7G'", "6"),
        ("repeated", "sed -i 3p", "4"),
    ] {
        agent.host.shell(&format!("{script} {LOG}"))?;
        let verified = verify()?;
        ensure!(
            verified.code() == Some(3)
                && verified.stdout.contains(&format!("line {line}"))
                && verified.stdout.contains("broken"),
            "{what}: {verified:?}"
        );
        agent.host.exec_ok(&["cp", "-p", "/root/audit.log", LOG])?;
    }
    // Begun upon a trail that does not verify, the agent keeps it and goes on with a new one.
    agent.host.shell(&format!("sed -i '$s/vouches/vowches/' {LOG}"))?;
    agent.host.exec_ok(&["systemctl", "start", "linux-patch-api"])?;
    agent.wait_until_up()?;
    agent.wait_record("set aside", |record| record["event"] == "trail_set_aside")?;
    agent.host.shell(&format!("ls {LOG}.set-aside-*"))?;
    let verified = verify()?;
    ensure!(verified.code() == Some(3) && verified.stdout.contains("set aside"), "{verified:?}");
    let status = agent.host.exec_ok(&["linux-patch-api", "status"])?;
    ensure!(status.contains("damaged and set aside: audit.log.set-aside-"), "{status}");
    let health = agent.get("/health")?;
    let health = health.data()?;
    let trail = health["checks"].as_array().into_iter().flatten().find(|check| check["name"] == "trail");
    ensure!(
        health["status"] == "degraded" && trail.is_some_and(|check| check["healthy"] == false),
        "{health:#}"
    );
    // Explained by root, and by nobody else, it is a note; what comes after it is as bad as ever.
    let seen: Value =
        serde_json::from_str(&agent.host.exec(&["linux-patch-api", "audit", "verify", "--json"])?.stdout)?;
    let digest = seen["damage_digest"].as_str().context("no digest")?;
    let acknowledge =
        format!("linux-patch-api audit acknowledge --damage {digest} --reason 'a test edited it'");
    let as_service =
        format!("setpriv --reuid linux-patch-api --regid linux-patch-api --clear-groups {acknowledge}");
    let denied = agent.host.exec(&["bash", "-c", &as_service])?;
    ensure!(denied.code() == Some(1) && denied.stderr.contains("only root"), "{denied:?}");
    let said = agent.host.shell(&acknowledge)?;
    ensure!(said.contains("set-aside-"), "{said}");
    let verified = verify()?;
    ensure!(verified.success() && verified.stdout.contains("a test edited it"), "{verified:?}");
    ensure!(agent.host.exec_ok(&["linux-patch-host", "record"])?.contains("a test edited it"));
    let health = agent.get("/health")?;
    let checks = health.data()?["checks"].as_array().cloned().unwrap_or_default();
    ensure!(checks.iter().any(|check| check["name"] == "trail" && check["healthy"] == true), "{checks:#?}");
    agent.host.shell(&format!("echo >>$(ls {LOG}.set-aside-*)"))?;
    ensure!(verify()?.code() == Some(3), "evidence that was changed passes");
    Ok(())
}

fn the_root_side_vouches_for_the_trail() -> Result<()> {
    let agent = Agent::boot("vouching", &["lp-plain=1.0-1"])?;
    agent.repository.publish_day(1)?;
    agent.change("POST", "/patches/refresh", &json!({}))?;
    let job = agent.change("PUT", "/packages/lp-plain", &json!({}))?;
    let job_id = job["job_id"].as_str().context("no id")?;
    let is_end = |r: &Value| r["event"] == "job_ended" && r["job_id"] == job_id;
    let end = agent.wait_record("the end", is_end)?["seq"].as_u64().context("no number")?;
    let is_signed =
        |r: &Value| r["event"] == "checkpoint" && r["head_seq"].as_u64().is_some_and(|seq| seq >= end);
    agent.wait_record("a checkpoint after the job", is_signed)?;

    // The root side's own record: who asked, what came of it, and that nobody else can read or write it.
    let record = agent.host.exec_ok(&["linux-patch-host", "record", "--job", job_id])?;
    for words in
        ["update accepted, asked by uid", ", by alice, from ", "lp-plain:all upgrade 1.0-1 -> 1.1-1: done"]
    {
        ensure!(record.contains(words), "{words} is not in {record}");
    }
    agent.host.exec_ok(&["linux-patch-host", "record", "verify"])?;
    for attempt in [
        "cat /var/lib/linux_patch_executor/record.jsonl",
        "cat /var/lib/linux_patch_executor/checkpoint.key",
        "touch /var/lib/linux_patch_executor/checkpoint.json",
    ] {
        let tried = agent.host.exec(&["runuser", "-u", "linux-patch-api", "--", "sh", "-c", attempt])?;
        ensure!(!tried.success(), "the network side could {attempt}");
    }

    agent.host.exec_ok(&["systemctl", "stop", "linux-patch-api"])?;
    let verify = || agent.host.exec(&["linux-patch-api", "audit", "verify", "--json"]);
    let verified = verify()?;
    ensure!(verified.code() == Some(0), "{verified:?}");
    let report: Value = serde_json::from_str(&verified.stdout)?;
    ensure!(report["vouched_seq"].as_u64().is_some_and(|seq| seq > end), "{report:#}");
    agent.host.exec_ok(&["runuser", "-u", "linux-patch-api", "--", "linux-patch-api", "audit", "verify"])?;

    // Cut off where no line shows it: the root side's head does.
    agent.host.shell(&format!("sed -i '{},$d' {LOG}", end - 1))?;
    let verified = verify()?;
    ensure!(
        verified.code() == Some(3) && verified.stdout.contains("the root side has signed record"),
        "{verified:?}"
    );
    // The agent goes on after what was signed, and the gap stays.
    agent.host.exec_ok(&["systemctl", "start", "linux-patch-api"])?;
    agent.wait_until_up()?;
    let cut = agent.wait_record("the cut", |record| record["event"] == "trail_cut")?;
    ensure!(cut["last"].as_u64() == Some(end - 2) && cut["priority"] == "high", "{cut:#}");
    let seq = cut["seq"].as_u64().context("no number")?;
    let is_signed = |r: &Value| r["event"] == "checkpoint" && r["head_seq"].as_u64() >= Some(seq);
    agent.wait_record("a checkpoint after the cut", is_signed)?;
    let verified = verify()?;
    ensure!(verified.code() == Some(3) && verified.stdout.contains("are missing"), "{verified:?}");
    Ok(())
}
