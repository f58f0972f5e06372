//! Rounds on a real host, by way of the agent's API: what needs a booted system.
//!
//! The clock is not set: a host shares it with the machine.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use patch_types::event::Ended;
use patch_types::{ErrorDetail, JobStatus, OnFailure, Outcome, Plan};
use serde_json::{Value, json};

use super::judge::{Case, judge};
use super::{Options, Random};
use crate::agent::Agent;
use crate::state::HostState;
use crate::wait;

const INSTALLED: &[&str] = &[
    "lp-plain",
    "lp-lib",
    "lp-app",
    "lp-conf",
    "lp-special",
    "lp-bulk-00",
    "lp-bulk-01",
    "lp-move-a",
    "lp-move-b",
];

const FAULTS: &[&str] = &[
    "host: kill daemon",
    "host: kill executor",
    "host: kill everything",
    "host: power cut",
    "host: restart daemon",
    "host: own upgrade",
];

/// Runs the rounds and reports each one's fault, number and outcome. They share a host for as long as nothing is wrong.
pub(super) fn run(
    options: &Options,
    in_time: impl Fn() -> bool,
    mut count: impl FnMut(&str, u32, Result<()>),
) {
    let mut agent: Option<Agent> = None;
    for number in (0..options.hosts).take_while(|_| in_time()) {
        let mut random = Random::of(options.seed ^ 0x0068_6f73_7473, number);
        // Each kind comes in turn, so that a few rounds have them all.
        let index = usize::try_from(u64::from(number) % FAULTS.len() as u64).unwrap_or_default();
        let fault = FAULTS.get(index).copied().unwrap_or_default();
        let outcome = match agent.take().map_or_else(|| boot(number), Ok) {
            Ok(ready) => {
                let outcome = round(&ready, &mut random, fault);
                if outcome.is_ok() {
                    agent = Some(ready);
                }
                outcome
            }
            Err(error) => Err(error),
        };
        count(fault, number, outcome);
    }
}

fn boot(number: u32) -> Result<Agent> {
    let agent = Agent::boot(&format!("chaos{number}"), INSTALLED)?;
    agent.host.exec_ok(&["apt-mark", "auto", "lp-lib"])?;
    agent.repository.publish_day(1)?;
    agent.change("POST", "/patches/refresh", &json!({}))?;
    Ok(agent)
}

fn round(agent: &Agent, random: &mut Random, fault: &str) -> Result<()> {
    // Back to the first day, by hand: what an earlier round brought is not this one's.
    let old = "for p in $(dpkg-query -W -f '${Package} ${db:Status-Abbrev}\\n' 'lp-*' | awk '$2==\"ii\"{print $1}'); do \
               v=$(apt-cache madison \"$p\" | awk '{print $3}' | tail -n 1); [ -n \"$v\" ] && echo \"$p=$v\"; done";
    let specs = agent.host.shell(old)?;
    let specs: Vec<&str> = specs.split_whitespace().collect();
    agent
        .host
        .exec_ok(&[&["apt-get", "-qq", "-y", "--allow-downgrades", "install"], specs.as_slice()].concat())?;
    agent.host.exec_ok(&["apt-mark", "auto", "lp-lib"])?;
    let before = HostState::of(&agent.host)?;
    let (method, path, body) = match random.below(4) {
        0 => ("POST", "/packages", json!({"packages": [{"name": "lp-newdep"}, {"name": "lp-tools"}]})),
        1 => ("DELETE", "/packages/lp-app", json!({"purge": true})),
        2 => ("PUT", "/packages/lp-special", json!({})),
        _ => ("POST", "/patches/apply", json!({})),
    };
    let id = agent.submit(method, path, &body)?;
    let time = random.time(Duration::from_millis(2500));
    let begun = std::time::Instant::now();
    wait::until_every(Duration::from_millis(1), "an instant", Duration::from_secs(10), || {
        Ok((begun.elapsed() >= time).then_some(()))
    })?;
    match fault {
        "host: kill daemon" => {
            agent.host.exec(&["systemctl", "kill", "--signal=KILL", "linux-patch-api.service"])?;
        }
        "host: kill executor" => drop(agent.host.exec(&["pkill", "-KILL", "-x", "patch-executor"])?),
        "host: kill everything" => {
            agent.host.exec(&["pkill", "-KILL", "-x", "patch-executor|apt-get|dpkg|linux-patch-api"])?;
        }
        "host: power cut" => agent.host.power_cut()?,
        "host: restart daemon" => drop(agent.host.exec(&["systemctl", "restart", "linux-patch-api"])?),
        _ => {
            // dpkg waits for nobody's lock, so it is asked until it is let in.
            let deb = agent.packages().agent()?;
            agent.host.push_file(&deb, "/root/again.deb", "644")?;
            agent.host.exec_ok(&[
                "apt-get",
                "-qq",
                "-y",
                "-o",
                "DPkg::Lock::Timeout=120",
                "--reinstall",
                "install",
                "/root/again.deb",
            ])?;
        }
    }
    agent.wait_until_up()?;
    let job = agent.end_of(&id)?;
    let after = HostState::of(&agent.host)?;
    let ended = ended(&job)?;
    let plan: Option<Plan> = match &job["plan"] {
        Value::Null => None,
        plan => Some(serde_json::from_value(plan.clone()).context("the job's plan")?),
    };
    let case = Case {
        before: &before,
        after: &after,
        plan: plan.as_ref(),
        ended: &ended,
        on_failure: OnFailure::Group,
        is_rollback: false,
        rebuilt: Vec::new(),
        marked: Vec::new(),
    };
    judge(&agent.host, &case).with_context(|| format!("{job:#}"))?;
    agent.assert_in_order()?;
    let numbers: Vec<u64> =
        job["log"].as_array().context("no log")?.iter().filter_map(|line| line["seq"].as_u64()).collect();
    ensure!(numbers.windows(2).all(|pair| matches!(pair, [a, b] if a < b)), "numbers: {numbers:?}");
    for (method, path, body) in [
        ("POST", "/packages", json!({"packages": [{"name": "lp-bulk-40"}]})),
        ("DELETE", "/packages/lp-bulk-40", json!({"purge": true})),
    ] {
        let job = agent.change(method, path, &body)?;
        ensure!(job["outcome"] == "applied", "the change that follows: {job:#}");
    }
    Ok(())
}

/// How the API says that a job ended.
fn ended(job: &Value) -> Result<Ended> {
    let status: JobStatus = serde_json::from_value(job["status"].clone()).context("the job's status")?;
    let outcome: Option<Outcome> =
        serde_json::from_value(job["outcome"].clone()).context("the job's outcome")?;
    let error: Option<ErrorDetail> = serde_json::from_value(job["error_detail"].clone()).unwrap_or_default();
    let results = serde_json::from_value(job["results"].clone()).unwrap_or_default();
    Ok(Ended { status, outcome, exit_code: None, error, results, answer: None })
}
