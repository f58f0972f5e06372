//! What still runs old code after a change, compared with needrestart's word.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{Host, trials::trial};

use crate::{back, fixture::Agent};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "what_runs_old_code_is_named_until_it_is_restarted",
            what_runs_old_code_is_named_until_it_is_restarted,
        ),
        trial(
            "a_crowd_of_processes_is_looked_through_at_once",
            a_crowd_of_processes_is_looked_through_at_once,
        ),
    ]
}

/// A service of the host's own that has mapped a packaged library.
const MAPPER: &str =
    "[Service]\nEnvironment=LD_PRELOAD=/usr/lib/lp-mapped/liblp.so.1\nExecStart=/bin/sleep infinity\n";

/// A service that runs code which it has written and removed itself: nothing that a package replaced.
const COMPILER: &str = "[Service]\nUser=nobody\nPrivateTmp=yes\n\
    ExecStart=/bin/sh -c 'cp /bin/sleep /tmp/jit; /tmp/jit infinity & rm /tmp/jit; exec sleep infinity'\n";

/// The units that run old code by this program's word, and its exit code.
fn by_us(host: &Host) -> Result<(BTreeSet<String>, Option<i32>, Value)> {
    let output = host.exec(&["linux-patch-host", "stale", "--json"])?;
    let report: Value = serde_json::from_str(&output.stdout).with_context(|| output.stderr.clone())?;
    let owners = report["owners"].as_array().context("no owners")?;
    let units =
        owners.iter().filter_map(|owner| owner["owner"]["name"].as_str()).map(str::to_owned).collect();
    Ok((units, output.code(), report))
}

/// The same by needrestart's, without the service that removed its own program: that one it takes for replaced.
fn by_needrestart(host: &Host) -> Result<BTreeSet<String>> {
    let text = host.exec_ok(&["needrestart", "-b", "-r", "l", "-l"])?;
    let named = text.lines().filter_map(|line| line.strip_prefix("NEEDRESTART-SVC: "));
    Ok(named.filter(|unit| *unit != "lp-compiler.service").map(str::to_owned).collect())
}

fn what_runs_old_code_is_named_until_it_is_restarted() -> Result<()> {
    let agent = back::boot_with_updates("stale", &["lp-mapped", "lp-daemon"])?;
    let host = &agent.host;
    host.push(MAPPER, "/etc/systemd/system/lp-mapper.service", "644")?;
    host.push(COMPILER, "/etc/systemd/system/lp-compiler.service", "644")?;
    host.shell("systemctl daemon-reload; systemctl start lp-mapper lp-compiler")?;
    let (units, code, report) = by_us(host)?;
    ensure!(units.is_empty() && code == Some(0), "before anything changed: {report:#}");
    ensure!(report["unread"] == 0 && report["kernel"]["old"].is_null(), "{report:#}");

    let job = agent.change("POST", "/patches/apply", &json!({"packages": ["lp-mapped", "lp-daemon"]}))?;
    ensure!(job["outcome"] == "applied", "{job:#}");
    let (units, code, report) = by_us(host)?;
    let expected: BTreeSet<String> = ["lp-daemon.service", "lp-mapper.service"].map(str::to_owned).into();
    ensure!(units == expected && code == Some(6), "{code:?}: {report:#}");
    let mapper =
        report["owners"].as_array().into_iter().flatten().find(|o| o["owner"]["name"] == "lp-mapper.service");
    ensure!(
        mapper.is_some_and(
            |o| o["files"] == json!(["/usr/lib/lp-mapped/liblp.so.1"]) && o["advice"] == "restart"
        ),
        "{report:#}"
    );
    let theirs = by_needrestart(host)?;
    ensure!(theirs == expected, "needrestart names {theirs:?}");
    let table = host.exec(&["linux-patch-host", "stale"])?.stdout;
    ensure!(table.contains("systemctl restart lp-mapper.service"), "{table}");

    host.exec_ok(&["systemctl", "restart", "lp-mapper", "lp-daemon"])?;
    let (units, code, report) = by_us(host)?;
    ensure!(units.is_empty() && code == Some(0), "after the restart: {report:#}");
    ensure!(by_needrestart(host)?.is_empty());
    Ok(())
}

/// How long it may take on a machine that is busy with other trials, unoptimised: twenty times what it takes.
const MOST: Duration = Duration::from_secs(2);

fn a_crowd_of_processes_is_looked_through_at_once() -> Result<()> {
    let agent = Agent::boot("crowd", &[])?;
    let host = &agent.host;
    host.crowd(500)?;
    let script = "a=$EPOCHREALTIME; r=0; linux-patch-host stale --json >/tmp/report || r=$?; b=$EPOCHREALTIME; echo $r $(((${b/.} - ${a/.}) / 1000))";
    let mut quickest = u64::MAX;
    for _ in 0..3 {
        let said = host.exec_ok(&["bash", "-c", script])?;
        let (code, took) = said.trim().split_once(' ').context("no time")?;
        ensure!(code == "0", "it ended with {code}: {}", host.read_text("/tmp/report")?);
        quickest = quickest.min(took.parse()?);
    }
    let report: Value = serde_json::from_str(&host.read_text("/tmp/report")?)?;
    ensure!(
        report["processes"].as_u64().is_some_and(|count| count >= 500) && report["unread"] == 0,
        "{report:#}"
    );
    ensure!(u128::from(quickest) < MOST.as_millis(), "it took {quickest} ms");
    // All of them map one file that is replaced: one owner, and the same word as needrestart's.
    host.shell("lib=$(sed -n 's,.* \\(/.*/libcurl[^ ]*\\)$,\\1,p' /proc/$(pgrep -xn sleep)/maps | head -n1); cp \"$lib\" \"$lib.new\"; mv \"$lib.new\" \"$lib\"")?;
    let (units, code, report) = by_us(host)?;
    ensure!(units.contains("crowd.service") && code == Some(6), "{report:#}");
    let crowd =
        report["owners"].as_array().into_iter().flatten().find(|o| o["owner"]["name"] == "crowd.service");
    ensure!(crowd.is_some_and(|owner| owner["process_count"].as_u64() >= Some(500)), "{report:#}");
    ensure!(by_needrestart(host)? == units);
    Ok(())
}
