//! Rehearsals on a host with systemd, asked for by the API and by patchctl.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use system_tests::{trials::trial, wait};

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_rehearsal_is_asked_for_by_the_api", a_rehearsal_is_asked_for_by_the_api),
        trial("a_rehearsal_has_bounds_of_its_own", a_rehearsal_has_bounds_of_its_own),
    ]
}

fn a_rehearsal_is_asked_for_by_the_api() -> Result<()> {
    let agent = Agent::boot("rehearse", &["lp-plain", "lp-daemon", "lp-postfail"])?;
    agent.repository.publish_day(1)?;
    agent.change("POST", "/patches/refresh", &json!({}))?;
    let facts = "systemctl show -p MainPID,ActiveEnterTimestampMonotonic lp-daemon; cat /proc/mounts; \
                 sha256sum /var/lib/dpkg/status /etc/passwd /etc/ld.so.cache; find /run -type s | sort";
    let before = agent.host.shell(facts)?;
    let unchanged = || -> Result<()> {
        let now = agent.host.shell(facts)?;
        ensure!(now == before, "{before}\n--- now\n{now}");
        Ok(())
    };

    let good = json!({"packages": ["lp-plain", "lp-daemon"], "rehearse": true, "dry_run": true});
    let job = agent.change("POST", "/patches/apply", &good)?;
    ensure!(job["status"] == "completed" && job["outcome"] == "unchanged", "{job:#}");
    ensure!(
        job["rehearsal"]["verdict"] == "well" && job["plan"]["changes"][1]["name"] == "lp-plain",
        "{job:#}"
    );
    unchanged()?;

    let job = agent.change("POST", "/patches/apply", &json!({"rehearse": true}))?;
    ensure!(job["status"] == "failed" && job["outcome"] == "unchanged", "{job:#}");
    let finding = &job["rehearsal"]["findings"][0];
    ensure!(finding["kind"] == "postinst" && finding["package"] == "lp-postfail", "{job:#}");
    ensure!(job["error_detail"]["details"]["rehearsal"] == "fails", "{job:#}");
    unchanged()?;

    let mut command = agent.patchctl(&["apply", "lp-postfail", "--rehearse", "--dry-run"])?;
    let said = command.output()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(!said.status.success(), "{text}");
    ensure!(text.contains("Rehearsal: it would fail") && text.contains("deliberate failure"), "{text}");
    unchanged()?;

    let removal = json!({"rehearse": true, "dry_run": true});
    let job = agent.change("DELETE", "/packages/lp-daemon", &removal)?;
    ensure!(job["rehearsal"]["verdict"] == "well" && job["outcome"] == "unchanged", "{job:#}");
    unchanged()?;

    let job = agent.change("PUT", "/packages/lp-plain", &json!({"rehearse": true}))?;
    ensure!(job["rehearsal"]["verdict"] == "well" && job["outcome"] == "applied", "{job:#}");
    ensure!(agent.version("lp-plain")? == "1.1-1");
    let answer = agent.send("PUT", "/packages/lp-plain", &json!({"hold": true, "rehearse": true}))?;
    ensure!(answer.status == 422, "{}", answer.text);
    agent.assert_in_order()
}

fn a_rehearsal_has_bounds_of_its_own() -> Result<()> {
    let agent = Agent::boot("bounds", &["lp-slow"])?;
    agent.repository.publish_day(1)?;
    agent.change("POST", "/patches/refresh", &json!({}))?;
    let id = agent.submit("POST", "/patches/apply", &json!({"rehearse": true}))?;
    let script = "find /sys/fs/cgroup -type d -name 'rehearsal-*' -exec sh -c \
                  'for d; do [ -s \"$d/cgroup.procs\" ] || [ -s \"$d/cgroup.threads\" ] && cat \"$d/pids.max\"; done' sh {} + ";
    // Where the host has no such control groups, the image's process ids are bounded, which a trial in a root shows.
    let has_groups = agent.host.shell(
        "[ -d /sys/fs/cgroup/pids ] || grep -qw pids /sys/fs/cgroup/cgroup.controllers && echo 0 || echo 1",
    )?;
    if has_groups.trim() == "0" {
        let most = wait::until("the rehearsal's group", Duration::from_secs(30), || {
            let text = agent.host.shell(&format!("{script} || true"))?;
            Ok((!text.trim().is_empty()).then_some(text))
        })?;
        ensure!(most.trim() == "1536", "{most}");
    }
    let job = agent.wait_job(&id, "the rehearsal", |job| job["phase"] == "rehearsing")?;
    ensure!(job["rehearsal"].is_null(), "{job:#}");
    let answer = agent.curl(&format!("/jobs/{id}"), &["--request", "DELETE"])?;
    ensure!(answer.status == 202 || answer.status == 200, "{} {}", answer.status, answer.text);
    let job = agent.end_of(&id)?;
    ensure!(job["status"] == "cancelled" && job["outcome"] == "unchanged", "{job:#}");
    let left = agent.host.shell("find /sys/fs/cgroup /var/lib/linux_patch_executor/journal -name 'rehearsal*'; ps ax | grep -c '[r]ehearsal-' || true")?;
    ensure!(left.trim() == "0", "{left}");
    agent.version("lp-slow").context("the version").and_then(|version| {
        ensure!(version == "1.0", "{version}");
        Ok(())
    })
}
