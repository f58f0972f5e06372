//! Changes: what was asked is what the package database says afterwards, whatever dies meanwhile.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{Fault, trials::trial, wait};

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_package_is_installed_updated_held_and_removed",
            a_package_is_installed_updated_held_and_removed,
        ),
        trial(
            "all_patches_are_applied_and_the_rest_is_explained",
            all_patches_are_applied_and_the_rest_is_explained,
        ),
        trial("only_the_approved_plan_is_applied", only_the_approved_plan_is_applied),
        trial("only_security_fixes_are_applied_if_asked", only_security_fixes_are_applied_if_asked),
        trial("a_failing_script_is_reported_truthfully", a_failing_script_is_reported_truthfully),
        trial("the_daemons_death_does_not_hurt_a_transaction", the_daemons_death_does_not_hurt_a_transaction),
        trial("a_killed_executor_is_settled_truthfully", a_killed_executor_is_settled_truthfully),
        trial(
            "a_power_cut_in_mid_transaction_is_settled_truthfully",
            a_power_cut_in_mid_transaction_is_settled_truthfully,
        ),
        trial(
            "a_download_can_be_cancelled_and_a_lost_network_is_harmless",
            a_download_can_be_cancelled_and_a_lost_network_is_harmless,
        ),
        trial("changes_run_in_the_order_of_acceptance", changes_run_in_the_order_of_acceptance),
        trial("a_held_lock_is_named_and_waited_for", a_held_lock_is_named_and_waited_for),
        trial(
            "a_full_disk_is_refused_by_name_and_leaves_no_trace",
            a_full_disk_is_refused_by_name_and_leaves_no_trace,
        ),
    ]
}

fn a_package_is_installed_updated_held_and_removed() -> Result<()> {
    let agent = Agent::boot("cycle", &[])?;
    let job = agent.change(
        "POST",
        "/packages",
        &json!({"packages": [{"name": "lp-plain", "version": "1.0-1"}]}),
    )?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    ensure!(job["plan"]["changes"][0]["name"] == "lp-plain" && job["progress_percent"] == 100, "{job:#}");
    ensure!(agent.version("lp-plain")? == "1.0-1");

    // What is already so is no change.
    let job = agent.change(
        "POST",
        "/packages",
        &json!({"packages": [{"name": "lp-plain", "version": "1.0-1"}]}),
    )?;
    ensure!(job["status"] == "completed" && job["outcome"] == "unchanged", "{job:#}");

    agent.repository.publish_day(1)?;
    let job = agent.change("POST", "/patches/refresh", &json!({}))?;
    ensure!(job["status"] == "completed", "{job:#}");
    let job = agent.change("PUT", "/packages/lp-plain", &json!({"hold": true}))?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    let job = agent.change("PUT", "/packages/lp-plain", &json!({}))?;
    ensure!(job["error_detail"]["code"] == "PKG_HELD", "{job:#}");
    agent.change("PUT", "/packages/lp-plain", &json!({"hold": false}))?;
    let job = agent.change("PUT", "/packages/lp-plain", &json!({"version": "1.0-2"}))?;
    ensure!(job["outcome"] == "applied", "{job:#}");
    ensure!(agent.version("lp-plain")? == "1.0-2");
    let job = agent.change("PUT", "/packages/lp-plain", &json!({}))?;
    ensure!(job["outcome"] == "applied", "{job:#}");
    ensure!(agent.version("lp-plain")? == "1.1-1");

    // Down again only if allowed.
    let down = |allow: bool| json!({"packages": [{"name": "lp-plain", "version": "1.0-1"}], "options": {"allow_downgrade": allow}});
    let job = agent.change("POST", "/packages", &down(false))?;
    ensure!(job["status"] == "failed" && job["error_detail"]["code"] == "PKG_VERSION_CONFLICT", "{job:#}");
    let job = agent.change("POST", "/packages", &down(true))?;
    ensure!(job["outcome"] == "applied" && job["plan"]["changes"][0]["action"] == "downgrade", "{job:#}");

    // What apt would read as an instruction is none.
    let answer =
        agent.send("POST", "/packages", &json!({"packages": [{"name": "lp-plain", "version": "1.0-1-"}]}))?;
    ensure!(answer.status == 422, "{} {}", answer.status, answer.text);
    let plus = json!({"packages": [{"name": "lp-plain", "version": "1.0-1+"}]});
    let job = agent.change("POST", "/packages", &plus)?;
    ensure!(
        job["error_detail"]["code"] == "PKG_VERSION_CONFLICT" && job["outcome"] == "unchanged",
        "{job:#}"
    );

    for (name, code) in
        [("lp-no-such-thing", "PKG_NOT_FOUND"), ("lp-plain+", "PKG_NOT_FOUND"), ("lp.plain", "PKG_NOT_FOUND")]
    {
        let job = agent.change("POST", "/packages", &json!({"packages": [{"name": name}]}))?;
        ensure!(job["status"] == "failed" && job["error_detail"]["code"] == code, "{name}: {job:#}");
    }
    let job = agent.change("DELETE", "/packages/lp-plain", &json!({"purge": true}))?;
    ensure!(job["outcome"] == "applied" && job["plan"]["changes"][0]["action"] == "purge", "{job:#}");
    ensure!(agent.version("lp-plain")?.is_empty());
    let job = agent.change("DELETE", "/packages/dpkg", &json!({}))?;
    ensure!(job["status"] == "failed", "{job:#}");
    agent.assert_in_order()
}

fn all_patches_are_applied_and_the_rest_is_explained() -> Result<()> {
    let agent = Agent::boot(
        "patches",
        &[
            "lp-plain",
            "lp-app",
            "lp-lib",
            "lp-conf",
            "lp-epoch",
            "lp-held",
            "lp-phased",
            "lp-breaks",
            "lp-victim",
            "lp-newdep",
        ],
    )?;
    agent.host.exec_ok(&["apt-mark", "hold", "lp-held"])?;
    agent.host.exec_ok(&["apt-mark", "auto", "lp-lib"])?;
    agent.host.push("mine\n", "/etc/lp-conf.conf", "644")?;
    agent.repository.publish_day(1)?;
    agent.change("POST", "/patches/refresh", &json!({}))?;
    let patches = agent.get("/patches")?.data()?.clone();
    let state = |name: &str| {
        patches["patches"]
            .as_array()
            .and_then(|all| all.iter().find(|patch| patch["name"] == name))
            .map(|patch| patch["state"].as_str().unwrap_or_default().to_owned())
    };
    for (name, expected) in [
        ("lp-plain", "ready"),
        ("lp-held", "held"),
        ("lp-phased", "phased"),
        ("lp-breaks", "kept_back"),
        ("lp-newdep", "ready"),
    ] {
        ensure!(state(name).as_deref() == Some(expected), "{name} is {:?}: {patches:#}", state(name));
    }
    let dry = agent.send("POST", "/patches/apply", &json!({"dry_run": true}))?;
    ensure!(dry.status == 200, "{}", dry.text);
    let job = agent.change("POST", "/patches/apply", &json!({"packages": [], "allow_reboot": false}))?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    ensure!(
        job["plan"]["hash"] == dry.data()?["hash"],
        "the dry run's plan is another one: {} {}",
        dry.text,
        job["plan"]
    );
    for (name, version) in [
        ("lp-plain", "1.1-1"),
        ("lp-app", "1.1"),
        ("lp-lib", "1.1"),
        ("lp-conf", "1.1"),
        ("lp-epoch", "1:1.0"),
        ("lp-newdep", "1.1"),
        ("lp-new", "1.0"),
        ("lp-phased", "1.0"),
        ("lp-breaks", "1.0"),
        ("lp-victim", "1.0"),
    ] {
        ensure!(agent.version(name)? == version, "{name} is {}", agent.version(name)?);
    }
    ensure!(agent.version("lp-held")?.contains("1.0"), "a held package was changed");
    ensure!(agent.host.read_text("/etc/lp-conf.conf")? == "mine\n", "the administrator's file was replaced");
    ensure!(
        agent.host.exec_ok(&["apt-mark", "showauto", "lp-lib"])?.trim() == "lp-lib",
        "an automatic mark was lost"
    );
    for (name, cause) in
        [("lp-held", "held"), ("lp-phased", "phased"), ("lp-breaks", "kept_back"), ("lp-plain", "up_to_date")]
    {
        let why = agent.get(&format!("/patches/{name}/why-not"))?.data()?.clone();
        ensure!(why["causes"][0]["kind"] == cause, "{why:#}");
    }
    ensure!(agent.get("/patches/lp-no-such-thing/why-not")?.status == 404);
    // The log of the job is apt's own words.
    ensure!(
        job["output"].as_str().is_some_and(|text| text.contains("Unpacking lp-plain (1.1-1) over (1.0-1)")),
        "{job:#}"
    );
    agent.assert_in_order()
}

fn only_the_approved_plan_is_applied() -> Result<()> {
    let agent = Agent::boot("approved", &["lp-plain"])?;
    let approve = |hash: Option<&Value>| match hash {
        None => json!({"packages": [{"name": "lp-conf"}], "options": {"dry_run": true}}),
        Some(hash) => json!({"packages": [{"name": "lp-conf"}], "options": {"if_plan": hash}}),
    };
    let approved = agent.send("POST", "/packages", &approve(None))?.data()?["hash"].clone();
    // Meanwhile the archive publishes another version.
    agent.repository.publish_day(1)?;
    agent.change("POST", "/patches/refresh", &json!({}))?;
    let drift = agent.send("POST", "/packages", &approve(Some(&approved)))?;
    ensure!(drift.status == 409 && drift.code() == "PLAN_DRIFT", "{}", drift.text);
    ensure!(agent.version("lp-conf")?.is_empty(), "a plan was applied that nobody had approved");
    let job =
        agent.change("POST", "/packages", &approve(Some(&drift.body["error"]["details"]["current"])))?;
    ensure!(job["outcome"] == "applied" && agent.version("lp-conf")? == "1.1", "{job:#}");
    Ok(())
}

fn only_security_fixes_are_applied_if_asked() -> Result<()> {
    let agent = Agent::boot("security", &["lp-plain", "lp-conf", "lp-lib", "lp-app", "lp-tools"])?;
    agent.host.exec_ok(&["apt-mark", "auto", "lp-lib"])?;
    agent.repository.publish_day(1)?;
    agent.change("POST", "/patches/refresh", &json!({}))?;
    let body = json!({"security_only": true, "exclude": ["lp-tools"]});
    let job = agent.change("POST", "/patches/apply", &body)?;
    ensure!(job["status"] == "completed", "{job:#}");
    for (name, version) in
        [("lp-plain", "1.1-1"), ("lp-app", "1.1"), ("lp-lib", "1.1"), ("lp-conf", "1.0"), ("lp-tools", "1.0")]
    {
        ensure!(agent.version(name)? == version, "{name} is {}", agent.version(name)?);
    }
    ensure!(
        agent.host.exec_ok(&["apt-mark", "showauto", "lp-lib"])?.trim() == "lp-lib",
        "an automatic mark was lost"
    );
    Ok(())
}

fn a_failing_script_is_reported_truthfully() -> Result<()> {
    let agent = Agent::boot("failing", &["lp-postfail", "lp-plain", "lp-prefail"])?;
    agent.repository.publish_day(1)?;
    agent.change("POST", "/patches/refresh", &json!({}))?;
    let job = agent.change("PUT", "/packages/lp-prefail", &json!({}))?;
    ensure!(job["status"] == "failed" && job["outcome"] == "rolled_back", "{job:#}");
    ensure!(agent.version("lp-prefail")? == "1.0");
    let job = agent.change("POST", "/patches/apply", &json!({"packages": ["lp-postfail", "lp-plain"]}))?;
    ensure!(job["status"] == "failed" && job["outcome"] == "partial", "{job:#}");
    let result = |name: &str| {
        job["results"].as_array().and_then(|all| all.iter().find(|r| r["name"] == name)).cloned()
    };
    ensure!(result("lp-plain").is_some_and(|r| r["done"] == true), "{job:#}");
    let failed = result("lp-postfail").context("no result")?;
    ensure!(
        failed["done"] == false
            && failed["taken_back"] == true
            && failed["reason"].as_str().is_some_and(|reason| reason.contains("lp-postfail")),
        "{failed:#}"
    );
    ensure!(agent.version("lp-postfail")? == "1.0" && agent.version("lp-plain")? == "1.1-1");
    ensure!(job["error"].as_str().is_some_and(|text| text.contains("lp-postfail")), "{job:#}");
    Ok(())
}

/// A host on which the next update of lp-slow hangs in its maintainer script until told to go on.
pub(crate) fn boot_with_slow(name: &str) -> Result<Agent> {
    let agent = Agent::boot(name, &["lp-slow"])?;
    agent.repository.publish_day(1)?;
    agent.change("POST", "/patches/refresh", &json!({}))?;
    agent.host.push("600\n", "/run/lp-slow-seconds", "644")?;
    Ok(agent)
}

/// Starts that update and waits until the script is there.
pub(crate) fn start_slow(agent: &Agent) -> Result<String> {
    let id = agent.submit("PUT", "/packages/lp-slow", &json!({}))?;
    wait::until("the script runs", Duration::from_secs(30), || {
        Ok(agent.host.exec(&["test", "-e", "/run/lp-slow-started"])?.success().then_some(()))
    })?;
    agent.wait_job(&id, "applies", |job| job["phase"] == "applying")?;
    Ok(id)
}

pub(crate) fn let_go(agent: &Agent) -> Result<()> {
    agent.host.push("", "/run/lp-slow-go", "644")
}

fn the_daemons_death_does_not_hurt_a_transaction() -> Result<()> {
    let agent = boot_with_slow("orphan")?;
    let id = start_slow(&agent)?;
    let answer = agent.send("DELETE", &format!("/jobs/{id}"), &json!({}))?;
    ensure!(answer.status == 409, "a job that changes packages was cancelled: {}", answer.text);
    agent.host.exec_ok(&["systemctl", "kill", "--signal=KILL", "linux-patch-api.service"])?;
    agent.wait_until_up()?;
    let job = agent.job(&id)?;
    ensure!(job["status"] == "running" && job["phase"] == "applying", "{job:#}");
    let_go(&agent)?;
    let job = agent.end_of(&id)?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    let seqs: Vec<u64> =
        job["log"].as_array().context("no log")?.iter().filter_map(|l| l["seq"].as_u64()).collect();
    ensure!(seqs.windows(2).all(|pair| matches!(pair, [a, b] if a < b)), "{seqs:?}");
    agent.assert_in_order()
}

fn a_killed_executor_is_settled_truthfully() -> Result<()> {
    let agent = boot_with_slow("settled")?;
    let id = start_slow(&agent)?;
    agent.host.exec_ok(&["pkill", "-KILL", "-x", "patch-executor"])?;
    let_go(&agent)?;
    let job = agent.end_of(&id)?;
    // apt outlived its executor and finished: the database says so, and so does the job.
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    ensure!(agent.version("lp-slow")? == "1.1");
    agent.assert_in_order()
}

fn a_power_cut_in_mid_transaction_is_settled_truthfully() -> Result<()> {
    let agent = boot_with_slow("powercut")?;
    let id = start_slow(&agent)?;
    agent.host.power_cut()?;
    // What lay in /run is gone with the power; the repair must not hang again.
    let_go(&agent)?;
    agent.wait_until_up()?;
    let job = agent.end_of(&id)?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    ensure!(agent.version("lp-slow")? == "1.1");
    agent.assert_in_order()
}

fn a_download_can_be_cancelled_and_a_lost_network_is_harmless() -> Result<()> {
    let agent = Agent::boot("network", &[])?;
    let server = agent.network.serve(agent.repository.path())?;
    agent.repository.configure(&agent.host, &server.url())?;
    let body = json!({"packages": [{"name": "lp-large"}, {"name": "lp-plain"}]});
    server.fault(Fault::Stall { after: 4096 });
    let id = agent.submit("POST", "/packages", &body)?;
    agent.wait_job(&id, "downloads", |job| job["phase"] == "downloading")?;
    let answer = agent.send("DELETE", &format!("/jobs/{id}"), &json!({}))?;
    ensure!(answer.status == 200 || answer.status == 202, "{}", answer.text);
    let job = agent.end_of(&id)?;
    ensure!(job["status"] == "cancelled" && job["outcome"] == "unchanged", "{job:#}");
    server.fault(Fault::Cut { after: 4096 });
    let job = agent.change("POST", "/packages", &body)?;
    ensure!(job["status"] == "failed" && job["outcome"] == "unchanged", "{job:#}");
    ensure!(job["error_detail"]["code"] == "NETWORK_ERROR", "{job:#}");
    ensure!(agent.version("lp-plain")?.is_empty() && agent.version("lp-large")?.is_empty());
    server.fault(Fault::None);
    let job = agent.change("POST", "/packages", &body)?;
    ensure!(job["outcome"] == "applied", "{job:#}");
    let left = agent.host.shell("ls -A /var/cache/apt/archives | grep linux-patch- || true")?;
    ensure!(left.trim().is_empty(), "fetching left {left}");
    agent.assert_in_order()
}

fn changes_run_in_the_order_of_acceptance() -> Result<()> {
    let agent = boot_with_slow("order")?;
    let first = start_slow(&agent)?;
    let others: Vec<String> = ["lp-plain", "lp-conf", "lp-lib"]
        .iter()
        .map(|name| agent.submit("POST", "/packages", &json!({"packages": [{"name": name}]})))
        .collect::<Result<_>>()?;
    let_go(&agent)?;
    let mut ends = vec![agent.end_of(&first)?["completed_at"].to_string()];
    for id in &others {
        let job = agent.end_of(id)?;
        ensure!(job["outcome"] == "applied", "{job:#}");
        ends.push(job["completed_at"].to_string());
    }
    ensure!(ends.is_sorted(), "{ends:?}");
    Ok(())
}

fn a_held_lock_is_named_and_waited_for() -> Result<()> {
    let agent = Agent::boot("locked", &[])?;
    let script = "import fcntl,time\nf=open('/var/lib/dpkg/lock-frontend','r+')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint('held',flush=True)\ntime.sleep(600)";
    let mut holder = agent.host.spawn(&["python3", "-c", script])?;
    wait::until("the lock is held", Duration::from_secs(20), || {
        Ok(agent.host.exec(&["pgrep", "-f", "lock-frontend"])?.success().then_some(()))
    })?;
    let body = json!({"packages": [{"name": "lp-plain"}]});
    let waiting = agent.submit("POST", "/packages", &body)?;
    let job = agent.wait_job(&waiting, "waits", |job| !job["waiting_for"].is_null())?;
    ensure!(job["waiting_for"]["command"].as_str().is_some_and(|c| c.contains("python3")), "{job:#}");
    // It can be cancelled meanwhile.
    let answer = agent.send("DELETE", &format!("/jobs/{waiting}"), &json!({}))?;
    ensure!(answer.status == 200 || answer.status == 202, "{}", answer.text);
    ensure!(agent.end_of(&waiting)?["status"] == "cancelled");
    let second = agent.submit("POST", "/packages", &body)?;
    agent.wait_job(&second, "waits", |job| !job["waiting_for"].is_null())?;
    agent.host.exec_ok(&["pkill", "-KILL", "-f", "lock-frontend"])?;
    holder.wait()?;
    ensure!(agent.end_of(&second)?["outcome"] == "applied");
    Ok(())
}

fn a_full_disk_is_refused_by_name_and_leaves_no_trace() -> Result<()> {
    let agent = Agent::boot("full", &[])?;
    agent.host.fill_disk()?;
    let answer = agent.send("POST", "/packages", &json!({"packages": [{"name": "lp-plain"}]}))?;
    ensure!(answer.status == 503, "{} {}", answer.status, answer.text);
    ensure!(agent.get("/packages")?.status == 200, "reads do not go on");
    agent.host.free_disk()?;
    let job = agent.change("POST", "/packages", &json!({"packages": [{"name": "lp-plain"}]}))?;
    ensure!(job["outcome"] == "applied", "{job:#}");
    agent.assert_in_order()
}
