//! patchctl as people and scripts run it.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::trials::trial;

use crate::{
    changing::{boot_with_slow, let_go, start_slow},
    fixture::Agent,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("patchctl_does_what_it_says", patchctl_does_what_it_says),
        trial("patchctl_watches_and_cancels", patchctl_watches_and_cancels),
        trial(
            "a_plan_waits_for_the_job_that_changes_the_host",
            a_plan_waits_for_the_job_that_changes_the_host,
        ),
    ]
}

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

fn ran(output: Output) -> Result<Ran> {
    Ok(Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

/// Runs patchctl, which must end with this code, and shows no control sequences, since nobody is at a terminal.
fn run(agent: &Agent, arguments: &[&str], code: i32) -> Result<Ran> {
    let ran = ran(agent.patchctl(arguments)?.output()?)?;
    ensure!(ran.code == Some(code), "{arguments:?} ended with {:?}: {}{}", ran.code, ran.out, ran.err);
    let is_plain = |text: &str| !text.chars().any(|c| c.is_control() && c != '\n');
    ensure!(is_plain(&ran.out) && is_plain(&ran.err), "{arguments:?}: {:?}{:?}", ran.out, ran.err);
    Ok(ran)
}

fn json_of(agent: &Agent, arguments: &[&str], code: i32) -> Result<Value> {
    let ran = run(agent, &[&["--json"], arguments].concat(), code)?;
    serde_json::from_str(&ran.out)
        .with_context(|| format!("{arguments:?} is no JSON: {}{}", ran.out, ran.err))
}

fn patchctl_does_what_it_says() -> Result<()> {
    let agent = Agent::boot("cli", &["lp-plain=1.0-1", "lp-held", "lp-tools"])?;
    agent.host.exec_ok(&["apt-mark", "hold", "lp-held"])?;
    let list = run(&agent, &["packages", "lp-*"], 0)?;
    let row = list.out.lines().find(|line| line.contains("lp-plain")).context("no lp-plain")?;
    ensure!(row.contains("1.0-1"), "{}", list.out);
    ensure!(run(&agent, &["packages", "--held"], 0)?.out.contains("lp-held"));
    let told = json_of(&agent, &["packages", "lp-*"], 0)?;
    ensure!(told == *agent.get("/packages?name=lp-*&sort=name&status=installed")?.data()?, "{told:#}");
    run(&agent, &["patches", "--check"], 0)?;

    agent.repository.publish_day(1)?;
    run(&agent, &["refresh"], 0)?;
    let patches = run(&agent, &["patches"], 0)?;
    let row = patches.out.lines().find(|line| line.contains("lp-plain")).context("no lp-plain")?;
    ensure!(row.contains("1.0-1") && row.contains("1.1-1"), "{}", patches.out);
    run(&agent, &["patches", "--check"], 5)?;
    let why = run(&agent, &["why-not", "lp-held"], 0)?;
    ensure!(why.out.contains("held") && why.out.contains("hold"), "{}", why.out);

    let plan = json_of(&agent, &["apply", "--dry-run"], 0)?;
    let hash = plan["hash"].as_str().context("no hash")?;
    ensure!(run(&agent, &["apply", "-n"], 0)?.out.contains(hash), "no hash in the plan");
    ensure!(agent.version("lp-plain")? == "1.0-1", "a dry run changed something");
    let applied = run(&agent, &["apply", "lp-plain", "-v"], 0)?;
    let all = format!("{}{}", applied.out, applied.err);
    ensure!(all.contains("Unpacking lp-plain (1.1-1)") && agent.version("lp-plain")? == "1.1-1", "{all}");
    let job = json_of(&agent, &["apply", "--exclude", "lp-held"], 0)?;
    ensure!(job["status"] == "completed" && agent.version("lp-tools")? == "1.1", "{job:#}");
    run(&agent, &["patches", "--check"], 0)?;

    run(&agent, &["install", "lp-lib=1.0", "lp-new"], 0)?;
    ensure!(agent.version("lp-lib")? == "1.0" && agent.version("lp-new")? == "1.0");
    run(&agent, &["hold", "lp-lib"], 0)?;
    run(&agent, &["update", "lp-lib"], 1)?;
    run(&agent, &["unhold", "lp-lib"], 0)?;
    run(&agent, &["update", "lp-lib"], 0)?;
    run(&agent, &["remove", "lp-new", "--purge"], 0)?;
    ensure!(agent.version("lp-lib")? == "1.1" && agent.version("lp-new")?.is_empty());

    let jobs = json_of(&agent, &["jobs", "--limit", "3"], 0)?;
    ensure!(
        jobs["jobs"].as_array().is_some_and(|jobs| jobs.len() == 3) && jobs["jobs"][0]["kind"] == "remove",
        "{jobs:#}"
    );
    ensure!(run(&agent, &["jobs", "--status", "failed"], 0)?.out.contains("update"));
    let id = jobs["jobs"][0]["job_id"].as_str().context("no id")?;
    ensure!(run(&agent, &["job", id, "-v"], 0)?.out.contains("Removing lp-new (1.0)"), "no log");
    let info = run(&agent, &["info"], 0)?;
    ensure!(info.out.contains("cli") && info.out.contains("Debian"), "{}", info.out);
    for command in [&["services"][..], &["health"], &["package", "lp-lib"], &["openapi"]] {
        json_of(&agent, command, 0)?;
    }
    ensure!(run(&agent, &["metrics"], 0)?.out.contains("linux_patch_api_uptime_seconds"));
    // Tables and bars are drawn by the terminal's width, which some do not know.
    for (arguments, wanted) in [
        (&["packages", "lp-*"][..], "lp-plain"),
        (&["jobs"], "remove"),
        (&["remove", "lp-tools", "-y"], "completed"),
    ] {
        let shown = on_a_terminal_without_width(&agent, arguments)?;
        ensure!(shown.contains(wanted) && !shown.contains("panicked"), "{arguments:?}: {shown}");
    }
    refusals_have_their_codes(&agent)
}

/// What a terminal of 0 columns gets, which is what script(1) gives where it has none itself.
fn on_a_terminal_without_width(agent: &Agent, arguments: &[&str]) -> Result<String> {
    let plain = agent.patchctl(arguments)?;
    let words = std::iter::once(plain.get_program()).chain(plain.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let mut script = Command::new("script");
    script.args(["-qec", &line.join(" "), "/dev/null"]).stdin(Stdio::null());
    for (name, value) in plain.get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    let shown = ran(script.output().context("cannot start script(1)")?)?;
    ensure!(shown.code == Some(0), "{arguments:?} ended with {:?}: {}{}", shown.code, shown.out, shown.err);
    Ok(shown.out)
}

fn refusals_have_their_codes(agent: &Agent) -> Result<()> {
    let missing = run(agent, &["install", "lp-no-such-thing"], 1)?;
    ensure!(missing.out.contains("lp-no-such-thing"), "{}{}", missing.out, missing.err);
    let refused = ran(agent.patchctl(&["--json", "package", "lp-no-such-thing"])?.output()?)?;
    let error: Value = serde_json::from_str(&refused.err)?;
    ensure!(
        refused.code == Some(1)
            && refused.out.is_empty()
            && error["error"]["code"] == "PKG_NOT_FOUND"
            && error["status"] == 404
            && error["request_id"].is_string(),
        "{}",
        refused.err
    );
    run(agent, &["install", "lp;reboot"], 2)?;
    run(agent, &["frobnicate"], 2)?;
    let without = ran(agent.patchctl(&["info"])?.env("PATCHCTL_CERT", "/nonexistent.pem").output()?)?;
    ensure!(without.code == Some(2) && without.err.contains("/nonexistent.pem"), "{}", without.err);
    let other = agent.pem("server.key.pem");
    let mismatch = ran(agent.patchctl(&["info"])?.env("PATCHCTL_KEY", other).output()?)?;
    ensure!(mismatch.code == Some(2), "{}", mismatch.err);
    let nobody = agent.network.address().to_string();
    let unreachable = ran(agent.patchctl(&["info"])?.env("PATCHCTL_HOST", nobody).output()?)?;
    ensure!(unreachable.code == Some(3) && !unreachable.err.is_empty(), "{}", unreachable.err);
    agent.allow(&[])?;
    let silent =
        system_tests::wait::until("the agent to be silent", std::time::Duration::from_secs(10), || {
            let silent = ran(agent.patchctl(&["info"])?.output()?)?;
            Ok((silent.code != Some(0)).then_some(silent))
        })?;
    ensure!(silent.code == Some(3) && silent.err.contains("whitelist.yaml"), "{}", silent.err);
    Ok(())
}

fn patchctl_watches_and_cancels() -> Result<()> {
    let agent = boot_with_slow("cli-watch")?;
    let id = start_slow(&agent)?;
    run(&agent, &["cancel", &id], 1)?;
    let mut watching = agent.patchctl(&["--json", "watch", &id])?;
    let watching =
        watching.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn()?;
    // This one waits behind it, so it can be cancelled.
    let waiting = agent.submit("POST", "/packages", &json!({"packages": [{"name": "lp-plain"}]}))?;
    let mut other = agent.patchctl(&["watch", &waiting])?;
    let other = other.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn()?;
    run(&agent, &["cancel", &waiting], 0)?;
    let other = ran(other.wait_with_output()?)?;
    ensure!(other.code == Some(4), "{:?} {}{}", other.code, other.out, other.err);
    let_go(&agent)?;
    let watched = ran(watching.wait_with_output()?)?;
    ensure!(watched.code == Some(0), "{}{}", watched.out, watched.err);
    let messages: Vec<Value> = watched.out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(
        messages.first().is_some_and(|message| message["type"] == "job_status")
            && messages.last().is_some_and(|message| message["type"] == "job_complete"),
        "{messages:?}"
    );
    run(&agent, &["watch", &id], 0)?;
    run(&agent, &["job", &waiting], 0)?;
    run(&agent, &["watch", "0191e0a0-1111-7222-8333-444455556666"], 1)?;
    Ok(())
}

fn a_plan_waits_for_the_job_that_changes_the_host() -> Result<()> {
    let agent = boot_with_slow("cli-plans")?;
    let plan = |options: Value| {
        agent.send("POST", "/packages", &json!({"packages": [{"name": "lp-plain"}], "options": options}))
    };
    let before = plan(json!({"dry_run": true}))?.data()?.clone();
    ensure!(before["during"].is_null(), "{before:#}");
    let id = start_slow(&agent)?;
    let meanwhile = plan(json!({"dry_run": true}))?.data()?.clone();
    ensure!(meanwhile["during"] == id.as_str(), "{meanwhile:#}");
    // What was approved before holds still, which only its own turn can show.
    let approved = plan(json!({"if_plan": before["hash"]}))?;
    ensure!(approved.status == 202, "{}", approved.text);
    let approved = approved.data()?["job_id"].as_str().context("no job")?.to_owned();

    let said = tempfile::NamedTempFile::new()?;
    let mut planning = agent.patchctl(&["install", "lp-tools", "-n"])?;
    let planning = planning.stdout(Stdio::piped()).stderr(said.reopen()?).spawn()?;
    let waits = format!("Job {id} is changing this host");
    system_tests::wait::until("patchctl to say that it waits", std::time::Duration::from_secs(30), || {
        Ok(std::fs::read_to_string(said.path())?.contains(&waits).then_some(()))
    })?;
    let_go(&agent)?;
    let planned = ran(planning.wait_with_output()?)?;
    ensure!(planned.code == Some(0) && planned.out.contains("lp-tools"), "{}{}", planned.out, planned.err);
    ensure!(!planned.out.contains("Made while") && !planned.out.contains("lp-slow"), "{}", planned.out);
    let job = agent.end_of(&approved)?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    Ok(())
}
