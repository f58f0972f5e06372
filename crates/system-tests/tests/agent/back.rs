//! Going back on real hosts: over the API, by root without it, and by the host itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{HostOptions, state::HostState, trials::trial, wait};

use crate::fixture::Agent;

/// How long a host may be out of reach before it has gone back.
const UNREACHABLE: Duration = Duration::from_secs(90);

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_job_is_undone_over_the_api", a_job_is_undone_over_the_api),
        trial("a_job_says_over_the_api_why_it_has_no_snapshot", a_job_says_why_it_has_no_snapshot),
        trial("root_undoes_a_job_locally", root_undoes_a_job_locally),
        trial("a_change_that_nobody_confirms_goes_back", a_change_that_nobody_confirms_goes_back),
        trial("a_confirmed_change_stays", a_confirmed_change_stays),
        trial(
            "a_change_that_cuts_the_network_off_undoes_itself",
            a_change_that_cuts_the_network_off_undoes_itself,
        ),
        trial("a_lost_network_is_noticed_without_being_asked", a_lost_network_is_noticed),
        trial("a_broken_service_takes_the_update_back", a_broken_service_takes_the_update_back),
        trial("configured_checks_decide_what_stays", configured_checks_decide_what_stays),
    ]
}

/// A host on which updates of these packages are known.
pub(crate) fn boot_with_updates(name: &str, packages: &[&str]) -> Result<Agent> {
    let agent = Agent::boot(name, packages)?;
    publish_updates(&agent)?;
    Ok(agent)
}

fn publish_updates(agent: &Agent) -> Result<()> {
    agent.repository.publish_day(1)?;
    let job = agent.change("POST", "/patches/refresh", &json!({}))?;
    ensure!(job["status"] == "completed", "{job:#}");
    Ok(())
}

fn state(agent: &Agent) -> Result<HostState> {
    HostState::of(&agent.host)
}

pub(crate) fn id_of(job: &Value) -> Result<&str> {
    job["job_id"].as_str().context("the job has no id")
}

/// Applies the updates of these packages, which must succeed.
fn update(agent: &Agent, packages: &[&str]) -> Result<Value> {
    let job = agent.change("POST", "/patches/apply", &json!({"packages": packages}))?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    Ok(job)
}

/// Updates one package, which must be undone by itself.
fn update_and_go_back(agent: &Agent, package: &str, options: &Value) -> Result<Value> {
    let job = agent.change("PUT", &format!("/packages/{package}"), options)?;
    ensure!(job["status"] == "failed" && job["outcome"] == "rolled_back", "{job:#}");
    ensure!(job["went_back"]["left"].as_array().is_some_and(Vec::is_empty), "{job:#}");
    Ok(job)
}

/// Lets everything be installed again that was taken back.
fn clear(agent: &Agent) -> Result<()> {
    agent.host.exec_ok(&["linux-patch-host", "clear", "--all"]).map(drop)
}

fn gauge(agent: &Agent, name: &str) -> Result<u64> {
    let text = agent.get("/metrics")?.text;
    let line = text.lines().find(|line| line.split(' ').next() == Some(name));
    let value = line.and_then(|line| line.split(' ').nth(1));
    value.with_context(|| format!("there is no {name}"))?.parse().context("the gauge is no number")
}

fn a_job_is_undone_over_the_api() -> Result<()> {
    let agent = boot_with_updates("undone", &["lp-plain=1.0-1", "lp-conf", "lp-app", "lp-special"])?;
    agent.host.exec_ok(&["apt-mark", "auto", "lp-lib"])?;
    agent.host.push("mine\n", "/etc/lp-conf.conf", "640")?;
    let before = state(&agent)?;
    let applied = update(&agent, &["lp-plain", "lp-conf", "lp-app", "lp-special"])?;
    ensure!(applied["way_back"]["grade"] == "exact", "{applied:#}");
    ensure!(agent.version("lp-lib")? == "1.1" && agent.version("lp-conf")? == "1.1");
    ensure!(gauge(&agent, "linux_patch_taken_back_versions")? == 0);

    let path = format!("/jobs/{}/rollback", id_of(&applied)?);
    let undone = agent.change("POST", &path, &json!({}))?;
    ensure!(undone["status"] == "completed" && undone["kind"] == "rollback", "{undone:#}");
    before.assert_same(&state(&agent)?)?;
    let why = agent.get("/patches/lp-plain/why-not")?.data()?.clone();
    ensure!(why["causes"][0]["kind"] == "taken_back", "{why:#}");
    ensure!(gauge(&agent, "linux_patch_taken_back_versions")? >= 4);
    // A fix that is barred is called so, and not patched, whoever is asked.
    let report = agent.get("/compliance")?.data()?.clone();
    let fixes = report["fixes"].as_array().context("no fixes")?;
    let fix = fixes.iter().find(|fix| fix["name"] == "lp-plain").context("no fix of lp-plain")?;
    ensure!(fix["state"] == "blocked" && fix["promise"] == "broken", "{fix:#}");
    ensure!(fix["blocked_by"][0]["kind"] == "taken_back", "{fix:#}");
    let barred = report["summary"]["barred"].as_u64().context("no number")?;
    ensure!(barred >= 1 && gauge(&agent, "linux_patch_api_fixes_barred")? == barred, "{report:#}");
    let plan = agent.send("POST", "/patches/apply", &json!({"dry_run": true}))?.data()?.clone();
    let named = |plan: &Value| {
        let named = plan["barred"].as_array().into_iter().flatten();
        named.filter_map(|one| one["name"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    ensure!(named(&plan).iter().any(|name| name == "lp-plain"), "{plan:#}");
    let doctor = agent.host.exec(&["linux-patch-host", "doctor"])?;
    let is_named =
        |line: &str| line.contains("security fixes that were taken back") && line.contains("lp-plain 1.1-1");
    ensure!(doctor.stdout.lines().any(is_named), "{doctor:?}");
    ensure!(gauge(&agent, "linux_patch_rollback_archives")? >= 4);
    ensure!(gauge(&agent, "linux_patch_rollback_archive_bytes")? > 0);
    let about = id_of(&undone)?;
    agent.wait_record("of going back", |record| {
        let text = record.to_string();
        text.contains(about) && text.contains("rollback") && text.contains("alice")
    })?;
    agent.host.exec_ok(&["linux-patch-api", "audit", "verify"])?;

    // What was taken back is not offered again by itself.
    let again = agent.change("POST", "/patches/apply", &json!({"exclude": ["lp-plain"]}))?;
    ensure!(again["status"] == "completed" && again["outcome"] == "unchanged", "{again:#}");
    let again = agent.change("PUT", "/packages/lp-plain", &json!({"version": "1.0-2"}))?;
    ensure!(again["outcome"] == "applied", "{again:#}");
    let forward = format!("/jobs/{}/rollback", id_of(&again)?);
    ensure!(agent.change("POST", &forward, &json!({}))?["outcome"] == "applied");
    // There is nothing left to undo.
    let twice = agent.change("POST", &path, &json!({}))?;
    ensure!(twice["status"] == "completed" && twice["outcome"] == "unchanged", "{twice:#}");
    before.assert_same(&state(&agent)?)?;

    // A later change of the same package is not run over, unless that is asked for.
    clear(&agent)?;
    let first = update(&agent, &["lp-plain"])?;
    let later = agent.change("DELETE", "/packages/lp-plain", &json!({}))?;
    ensure!(later["outcome"] == "applied", "{later:#}");
    let path = format!("/jobs/{}/rollback", id_of(&first)?);
    let refused = agent.change("POST", &path, &json!({}))?;
    ensure!(
        refused["status"] == "failed" && refused["error_detail"]["code"] == "JOB_CONFLICT",
        "{refused:#}"
    );
    ensure!(refused["error"].as_str().is_some_and(|text| text.contains("lp-plain")), "{refused:#}");
    let forced = agent.change("POST", &path, &json!({"force": true}))?;
    ensure!(forced["status"] == "completed", "{forced:#}");
    before.assert_same(&state(&agent)?)
}

/// The harness's hosts run from an overlay. What is made where a snapshot is possible, and gone back to, is in the trials of
/// the root side.
fn a_job_says_why_it_has_no_snapshot() -> Result<()> {
    let agent = boot_with_updates("unsnapped", &["lp-plain=1.0-1"])?;
    let configuration = json!({"rollback": {"snapshots": {"mode": "auto"}}});
    agent.host.push(configuration.to_string(), "/etc/linux_patch_api/config.yaml", "644")?;
    let job = update(&agent, &["lp-plain"])?;
    let snapshot = &job["way_back"]["snapshot"];
    ensure!(
        snapshot["state"] == "not_available"
            && snapshot["reason"].as_str().is_some_and(|why| why.contains("/ is on overlay")),
        "{job:#}"
    );
    let path = format!("/jobs/{}/rollback", id_of(&job)?);
    let asked = agent.patchctl(&["rollback", id_of(&job)?, "--snapshot", "--dry-run"])?.output()?;
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    ensure!(!asked.status.success() && said.contains("there is no snapshot"), "{said}");
    let asked = agent.host.exec(&["linux-patch-host", "rollback", id_of(&job)?, "--snapshot"])?;
    ensure!(!asked.status.success() && asked.stderr.contains("there is no snapshot"), "{asked:?}");
    // The packages can be had back without one.
    ensure!(agent.change("POST", &path, &json!({}))?["outcome"] == "applied");
    Ok(())
}

fn root_undoes_a_job_locally() -> Result<()> {
    let agent = boot_with_updates("local", &["lp-plain=1.0-1", "lp-conf"])?;
    let before = state(&agent)?;
    let host = |arguments: &[&str]| -> Result<Value> {
        let said = agent.host.exec_ok(&[&["linux-patch-host", "--json"], arguments].concat())?;
        let last = said.lines().last().context("linux-patch-host says nothing")?;
        serde_json::from_str(last).with_context(|| format!("no JSON: {said}"))
    };
    for (units, direct) in [
        (&["linux-patch-api.service"][..], None),
        (&["linux-patch-executor.socket", "linux-patch-api.service"], Some("--direct")),
    ] {
        let job = update(&agent, &["lp-plain", "lp-conf"])?;
        let id = id_of(&job)?;
        agent.host.exec_ok(&[&["systemctl", "stop"], units].concat())?;
        let listed = host(&["jobs"])?;
        let mine = listed["jobs"].as_array().and_then(|jobs| jobs.iter().find(|entry| entry["job"] == id));
        ensure!(mine.is_some_and(|entry| entry["way_back"] == true && entry["packages"] == 2), "{listed:#}");
        let arguments: Vec<&str> = direct.into_iter().chain(["rollback", id]).collect();
        // Whoever goes back is told what does not come again, and how to let it.
        let said = agent.host.exec_ok(&[&["linux-patch-host"], arguments.as_slice()].concat())?;
        ensure!(said.contains("\n  linux-patch-host clear lp-plain=1.1-1\n"), "{said}");
        before.assert_same(&state(&agent)?)?;
        let held = host(&["taken-back"])?;
        let names = |held: &Value| -> Vec<String> {
            let entries = held["taken_back"].as_array().into_iter().flatten();
            entries.map(|entry| format!("{}={}", entry["name"], entry["version"])).collect()
        };
        ensure!(names(&held).len() == 2, "{held:#}");
        let mut one: Vec<&str> = direct.into_iter().collect();
        one.extend(["clear", "lp-plain=1.1-1"]);
        let cleared = host(&one)?;
        ensure!(cleared["cleared"].as_array().is_some_and(|all| all.len() == 1), "{cleared:#}");
        ensure!(names(&host(&["taken-back"])?).len() == 1);
        let mut all: Vec<&str> = direct.into_iter().collect();
        all.extend(["clear", "--all"]);
        host(&all)?;
        ensure!(names(&host(&["taken-back"])?).is_empty());
        let preferences = agent.host.read_text("/etc/apt/preferences.d/linux-patch-taken-back");
        ensure!(preferences.is_err() || !preferences?.contains("lp-"), "a pin is left");
        for unit in units {
            agent.host.exec_ok(&["systemctl", "start", unit])?;
        }
        agent.wait_until_up()?;
    }
    let unknown =
        agent.host.exec(&["linux-patch-host", "rollback", "0198c5f2-0000-7000-8000-000000000001"])?;
    ensure!(unknown.code() == Some(1), "{unknown:?}");
    Ok(())
}

fn a_change_that_nobody_confirms_goes_back() -> Result<()> {
    let agent = boot_with_updates("unconfirmed", &["lp-plain=1.0-1"])?;
    let before = state(&agent)?;
    let id = agent.submit("PUT", "/packages/lp-plain", &json!({"confirm_within": 3}))?;
    let waiting = agent.wait_job(&id, "waits to be confirmed", |job| job["phase"] == "confirming")?;
    ensure!(!waiting["confirm_by"].is_null(), "{waiting:#}");
    let job = agent.end_of(&id)?;
    ensure!(job["status"] == "failed" && job["outcome"] == "rolled_back", "{job:#}");
    ensure!(job["went_back"]["reason"].as_str().is_some_and(|text| text.contains("confirm")), "{job:#}");
    before.assert_same(&state(&agent)?)?;
    let late = agent.send("POST", &format!("/jobs/{id}/confirm"), &json!({}))?;
    ensure!(late.status == 409 && late.code() == "JOB_CONFLICT", "{}", late.text);
    Ok(())
}

/// Two requests over one connection, the second once `between` says so; the statuses and bodies of both.
fn over_one_connection(agent: &Agent, script: &str, arguments: &[&str]) -> Result<String> {
    let (ca, cert, key) = (agent.pem("ca.pem"), agent.pem("alice.pem"), agent.pem("alice.key.pem"));
    let address = agent.host.ip().to_string();
    let fixed = ["python3", "-c", script, &address, &ca, &cert, &key];
    let output = agent.network.exec(&[&fixed, arguments].concat())?;
    ensure!(output.success(), "{output:?}");
    Ok(output.stdout)
}

/// Changes a package, waits and confirms, all over the one connection that was there before the change.
const KEEPS_ITS_CONNECTION: &str = r#"
import http.client, json, ssl, sys, time
address, ca, cert, key = sys.argv[1:5]
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain(cert, key)
connection = http.client.HTTPSConnection(address, 12443, context=context, timeout=60)
def ask(method, path, body=None):
    text = None if body is None else json.dumps(body)
    connection.request(method, "/api/v1" + path, text, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())
ask("GET", "/health")
first = connection.sock
job = ask("PUT", "/packages/lp-plain", {"confirm_within": 600})[1]["data"]["job_id"]
deadline = time.monotonic() + 60
while ask("GET", "/jobs/" + job)[1]["data"]["phase"] != "confirming":
    assert time.monotonic() < deadline, "the job does not wait to be confirmed"
    time.sleep(0.1)
assert connection.sock is first, "it is another connection"
status, body = ask("POST", "/jobs/%s/confirm" % job, {})
print(json.dumps({"job": job, "status": status, "body": body}))
"#;

fn a_confirmed_change_stays() -> Result<()> {
    let agent = boot_with_updates("confirmed", &["lp-plain=1.0-1", "lp-conf"])?;
    let said: Value = serde_json::from_str(&over_one_connection(&agent, KEEPS_ITS_CONNECTION, &[])?)?;
    let error = &said["body"]["error"];
    ensure!(
        said["status"] == 409
            && error["code"] == "JOB_CONFLICT"
            && error["details"]["new_connection"] == true,
        "{said:#}"
    );
    let id = said["job"].as_str().context("no job")?;
    let answer = agent.send("POST", &format!("/jobs/{id}/confirm"), &json!({}))?;
    ensure!(answer.status == 200 || answer.status == 202, "{} {}", answer.status, answer.text);
    let job = agent.end_of(id)?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    ensure!(agent.version("lp-plain")? == "1.1-1");
    agent.wait_record("of the confirmation", |record| {
        record.to_string().contains(&format!("confirmation of job {id}"))
    })?;

    let id = agent.submit("PUT", "/packages/lp-conf", &json!({"confirm_within": 600}))?;
    agent.wait_job(&id, "waits to be confirmed", |job| job["phase"] == "confirming")?;
    let ran = agent.patchctl(&["confirm", &id])?.output()?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    ensure!(agent.end_of(&id)?["outcome"] == "applied" && agent.version("lp-conf")? == "1.1");
    agent.assert_in_order()
}

/// A host whose root may change its network.
fn boot_that_can_cut_itself_off(name: &str) -> Result<Agent> {
    let mut options = HostOptions::named(name);
    options.nspawn_arguments.push("--capability=CAP_NET_ADMIN".to_owned());
    let agent = Agent::boot_on(options, &["lp-netcut"])?;
    publish_updates(&agent)?;
    Ok(agent)
}

/// Sends an update of lp-netcut and waits until the host has come back to the network by itself.
fn cut_off(agent: &Agent, options: &Value) -> Result<Value> {
    let before = state(agent)?;
    let id = agent.submit("PUT", "/packages/lp-netcut", options)?;
    wait::until("the network is cut", UNREACHABLE, || {
        let flags = agent.host.read_text("/sys/class/net/host0/operstate")?;
        Ok((flags.trim() == "down").then_some(()))
    })?;
    let job = agent.wait_job(&id, "ends", |job| {
        job["status"].as_str().is_some_and(|status| !["pending", "running"].contains(&status))
    })?;
    ensure!(job["status"] == "failed" && job["outcome"] == "rolled_back", "{job:#}");
    before.assert_same(&state(agent)?)?;
    Ok(job)
}

fn a_change_that_cuts_the_network_off_undoes_itself() -> Result<()> {
    let agent = boot_that_can_cut_itself_off("netcut")?;
    let job = cut_off(&agent, &json!({"confirm_within": 5}))?;
    ensure!(job["went_back"]["restored"].to_string().contains("lp-netcut"), "{job:#}");
    Ok(())
}

fn a_lost_network_is_noticed() -> Result<()> {
    let agent = boot_that_can_cut_itself_off("netlost")?;
    let job = cut_off(&agent, &json!({}))?;
    ensure!(job["error"].as_str().is_some_and(|text| text.contains("default route")), "{job:#}");
    Ok(())
}

fn a_broken_service_takes_the_update_back() -> Result<()> {
    let agent = boot_with_updates("service", &["lp-daemon-broken", "lp-plain=1.0-1"])?;
    let before = state(&agent)?;
    let job = update_and_go_back(&agent, "lp-daemon-broken", &json!({}))?;
    ensure!(
        job["error"].as_str().is_some_and(|text| text.contains("lp-daemon-broken.service")),
        "the error does not name the unit: {job:#}"
    );
    before.assert_same(&state(&agent)?)?;
    agent.host.exec_ok(&["systemctl", "is-active", "lp-daemon-broken"])?;
    // One that another person broke before is not this change's fault.
    clear(&agent)?;
    agent.host.exec_ok(&["systemctl", "stop", "lp-daemon-broken"])?;
    update(&agent, &["lp-plain"])?;
    // Whoever asks for what succeeded to stay keeps it, and is told the truth.
    agent.host.exec_ok(&["systemctl", "start", "lp-daemon-broken"])?;
    let job = agent.change("PUT", "/packages/lp-daemon-broken", &json!({"on_failure": "keep"}))?;
    ensure!(job["status"] == "failed" && job["outcome"] != "rolled_back", "{job:#}");
    ensure!(agent.version("lp-daemon-broken")? == "1.1");
    Ok(())
}

/// Makes these the configured checks.
fn check(agent: &Agent, checks: &Value) -> Result<()> {
    // What is JSON is YAML.
    let configuration = json!({"health_checks": checks});
    agent.host.push(format!("{configuration}\n"), "/etc/linux_patch_api/config.yaml", "644")
}

fn configured_checks_decide_what_stays() -> Result<()> {
    let agent = boot_with_updates("checks", &["lp-plain=1.0-1", "lp-conf"])?;
    for (failing, word) in [
        (
            json!({"type": "command", "command": ["/bin/sh", "-c", "echo the application is down; exit 3"]}),
            "the application is down",
        ),
        (json!({"type": "tcp", "address": "127.0.0.1:9", "timeout_seconds": 1}), "127.0.0.1:9"),
        (json!({"type": "systemd", "unit": "lp-none.service", "timeout_seconds": 1}), "lp-none.service"),
        (json!({"type": "http", "url": "http://127.0.0.1:9/", "timeout_seconds": 1}), "http://127.0.0.1:9/"),
    ] {
        check(&agent, &json!([&failing]))?;
        let before = state(&agent)?;
        let job = update_and_go_back(&agent, "lp-plain", &json!({}))?;
        ensure!(job["error"].as_str().is_some_and(|text| text.contains(word)), "{word}: {job:#}");
        before.assert_same(&state(&agent)?)?;
        clear(&agent)?;
    }
    let kept = agent.change("PUT", "/packages/lp-conf", &json!({"on_failure": "keep"}))?;
    ensure!(kept["status"] == "failed" && agent.version("lp-conf")? == "1.1", "{kept:#}");
    check(
        &agent,
        &json!([
            {"type": "command", "command": ["/bin/grep", "-q", "^Version: 1.1-1", "/var/lib/dpkg/status"]},
            {"type": "tcp", "address": "127.0.0.1:12443"},
            {"type": "systemd", "unit": "linux-patch-api.service"},
        ]),
    )?;
    update(&agent, &["lp-plain"])?;
    ensure!(agent.version("lp-plain")? == "1.1-1");
    // A configuration that cannot be acted upon stops changes before they begin.
    check(&agent, &json!([{"type": "command", "command": ["relative"]}]))?;
    let before = state(&agent)?;
    let job = agent.change("DELETE", "/packages/lp-plain", &json!({}))?;
    ensure!(job["status"] == "failed" && job["error_detail"]["code"] == "CONFIG_INVALID", "{job:#}");
    before.assert_same(&state(&agent)?)
}
