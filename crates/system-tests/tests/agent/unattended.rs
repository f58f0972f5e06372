//! Unattended patching by the distribution's own tools, set up and looked after by `linux-patch-host`.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use system_tests::{packages::Packages, trials::trial};

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("what_is_provisioned_is_in_force_and_patches", what_is_provisioned_is_in_force_and_patches),
        trial("cloud_init_takes_every_profile", cloud_init_takes_every_profile),
        trial("the_doctor_finds_masked_timers_and_mends_them", the_doctor_finds_masked_timers_and_mends_them),
    ]
}

/// The base masks them, so that no host of the tests patches by itself.
const ENABLE: &str = "systemctl unmask -q apt-daily.timer apt-daily-upgrade.timer && \
    systemctl enable -q --now apt-daily.timer apt-daily-upgrade.timer";

/// All that provisioning could touch: every file with its mode and content, and every directory.
const FINGERPRINT: &str = "cd /etc; find apt systemd needrestart -printf '%M %u %g %p %l\\n' | LC_ALL=C sort; \
    find apt systemd needrestart -type f -exec sha256sum {} + | LC_ALL=C sort";

fn provision(agent: &Agent, arguments: &[&str], code: i32) -> Result<Value> {
    let command = [&["linux-patch-host", "--json", "provision", "unattended"], arguments].concat();
    let output = agent.host.exec(&command)?;
    ensure!(output.code() == Some(code), "{arguments:?}: {output:?}");
    serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {output:?}"))
}

/// The packages that a run would take.
fn would_take(agent: &Agent) -> Result<Vec<String>> {
    let output = agent.host.exec(&["unattended-upgrade", "--dry-run", "--debug"])?;
    let all = format!("{}{}", output.stdout, output.stderr);
    let line = all.lines().find_map(|line| line.split_once("Packages that will be upgraded:"));
    let (_, names) = line.with_context(|| format!("it says nothing: {all}"))?;
    let mut names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn what_is_provisioned_is_in_force_and_patches() -> Result<()> {
    let agent = Agent::boot("provision", &["lp-plain=1.0-1", "lp-epoch", "lp-held"])?;
    let host = &agent.host;
    host.shell(ENABLE)?;
    let before = host.shell(FINGERPRINT)?;
    let shown = host.exec_ok(&["linux-patch-host", "provision", "unattended", "--dry-run"])?;
    ensure!(shown.contains("+++ /etc/apt/apt.conf.d/50unattended-upgrades\n"), "{shown}");
    ensure!(host.shell(FINGERPRINT)? == before, "a dry run changed something");

    let told = provision(&agent, &["--mail-to", "root", "--mail-report", "only-on-error"], 0)?;
    ensure!(told["worst_case"]["minutes"].as_u64().is_some_and(|minutes| minutes <= 24 * 60), "{told:#}");
    ensure!(told["differences"] == serde_json::json!([]), "{told:#}");
    let dump = host.exec_ok(&["apt-config", "dump"])?;
    for line in [
        "Unattended-Upgrade::Origins-Pattern:: \"origin=Debian,codename=${distro_codename}-security\";",
        "Unattended-Upgrade::Automatic-Reboot \"false\";",
        "Unattended-Upgrade::Mail \"root\";",
        "Unattended-Upgrade::MailReport \"only-on-error\";",
        "APT::Periodic::Unattended-Upgrade \"always\";",
    ] {
        ensure!(dump.lines().any(|found| found == line), "{line} is not in {dump}");
    }
    ensure!(dump.matches("Origins-Pattern::").count() == 1, "{dump}");
    for (unit, calendar) in [("apt-daily.timer", "00/6:00:00"), ("apt-daily-upgrade.timer", "01/6:30:00")] {
        let shown = host.exec_ok(&["systemctl", "show", "-p", "TimersCalendar,RandomizedDelayUSec", unit])?;
        ensure!(shown.contains(calendar) && shown.contains("RandomizedDelayUSec=1h\n"), "{shown}");
        ensure!(shown.matches("OnCalendar=").count() == 1, "{shown}");
        ensure!(host.exec_ok(&["systemctl", "cat", unit])?.contains("linux-patch.conf"));
    }
    // Perl itself takes needrestart's file.
    let perl = "perl -e 'my %nrconf; local $/; eval <STDIN>; die $@ if $@; \
        print join q(,), map { $_ . q(=) . $nrconf{$_} } sort keys %nrconf' \
        </etc/needrestart/conf.d/linux-patch-unattended.conf";
    let set = host.shell(perl)?;
    ensure!(set.trim() == "interpscan=0,kernelhints=-1,restart=l", "{set}");
    let after = host.shell(FINGERPRINT)?;
    let again = provision(&agent, &["--mail-to", "root", "--mail-report", "only-on-error"], 0)?;
    ensure!(again["written"] == serde_json::json!([]) && host.shell(FINGERPRINT)? == after, "{again:#}");

    // The security suite and nothing else.
    agent.repository.publish_day(1)?;
    host.exec_ok(&["apt-get", "-qq", "update"])?;
    ensure!(would_take(&agent)? == ["lp-epoch", "lp-plain"], "{:?}", would_take(&agent)?);
    provision(&agent, &["--with-updates"], 0)?;
    ensure!(would_take(&agent)? == ["lp-epoch", "lp-held", "lp-plain"], "{:?}", would_take(&agent)?);
    provision(&agent, &[], 0)?;
    // As the timer would run it.
    host.exec_ok(&["/usr/lib/apt/apt.systemd.daily", "install"])?;
    ensure!(
        agent.version("lp-plain")? == "1.1-1" && agent.version("lp-epoch")? == "1:1.0",
        "it does not patch"
    );
    ensure!(agent.version("lp-held")? == "1.0", "an ordinary update was installed");

    // What overrides it is named.
    host.push("Unattended-Upgrade::Mail \"other\";\n", "/etc/apt/apt.conf.d/60other", "644")?;
    let told = provision(&agent, &["--mail-to", "root"], 1)?;
    ensure!(
        told["differences"][0].as_str().is_some_and(|text| text.contains("/etc/apt/apt.conf.d/60other")),
        "{told:#}"
    );
    host.exec_ok(&["rm", "/etc/apt/apt.conf.d/60other"])?;
    provision(&agent, &["--undo"], 0)?;
    ensure!(host.shell(FINGERPRINT)? == before, "something is left of it");
    let record = host.exec_ok(&["linux-patch-host", "record"])?;
    ensure!(
        record.contains("provision unattended writes /etc/apt/apt.conf.d/50unattended-upgrades"),
        "{record}"
    );
    host.exec_ok(&["linux-patch-host", "record", "verify"])?;
    // A removal leaves it in force, a purge undoes it.
    let others = || -> Result<Vec<String>> {
        // The package's own units and files come and go with it.
        let own = [".wants", "-api", "-executor", "-notify", "-policy", "-reboot"];
        let text = host.shell(FINGERPRINT)?;
        Ok(text.lines().filter(|line| !own.iter().any(|own| line.contains(own))).map(str::to_owned).collect())
    };
    let before = others()?;
    provision(&agent, &["--with-updates"], 0)?;
    let provisioned = others()?;
    host.exec_ok(&["apt-get", "-qq", "-y", "remove", "linux-patch-api"])?;
    ensure!(others()? == provisioned && provisioned != before, "a removal undoes it");
    host.exec_ok(&["apt-get", "-qq", "-y", "purge", "linux-patch-api"])?;
    let after = others()?;
    ensure!(after == before, "before: {before:#?}\nafter a purge: {after:#?}");
    Ok(())
}

/// The ids of the findings, and all that was told.
fn doctor(agent: &Agent, arguments: &[&str], code: i32) -> Result<(Vec<String>, Value)> {
    let output = agent.host.exec(&[&["linux-patch-host", "--json", "doctor"], arguments].concat())?;
    ensure!(output.code() == Some(code), "{output:?}");
    let told: Value = serde_json::from_str(&output.stdout)?;
    let findings = told["findings"].as_array().context("no findings")?;
    let ids = findings.iter().filter_map(|finding| finding["id"].as_str()).map(str::to_owned).collect();
    Ok((ids, told))
}

fn the_doctor_finds_masked_timers_and_mends_them() -> Result<()> {
    let agent = Agent::boot("doctor", &["lp-plain=1.0-1"])?;
    let host = &agent.host;
    // All that is wrong then is that the timers are masked.
    host.exec(&["linux-patch-host", "provision", "unattended"])?;
    host.exec_ok(&["chmod", "644", "/etc/linux_patch_api/certs/server.key.pem"])?;
    host.exec_ok(&["apt-mark", "hold", "lp-plain"])?;
    agent.repository.publish_day(1)?;
    host.exec_ok(&["apt-get", "-qq", "update"])?;
    let (ids, told) = doctor(&agent, &[], 5)?;
    ensure!(ids == ["timer_masked", "timer_masked", "held_security_fix", "secret_readable"], "{told:#}");
    let (ids, told) = doctor(&agent, &["--fix"], 5)?;
    ensure!(ids == ["held_security_fix"], "{told:#}");
    ensure!(told["fixed"].as_array().is_some_and(|fixed| fixed.len() == 3), "{told:#}");
    for unit in ["apt-daily.timer", "apt-daily-upgrade.timer"] {
        ensure!(host.exec_ok(&["systemctl", "is-active", unit])?.trim() == "active");
        ensure!(host.exec_ok(&["systemctl", "is-enabled", unit])?.trim() == "enabled");
    }
    let mode = host.exec_ok(&["stat", "-c", "%a", "/etc/linux_patch_api/certs/server.key.pem"])?;
    ensure!(mode.trim() == "640" || mode.trim() == "600", "{mode}");
    host.exec_ok(&["apt-mark", "unhold", "lp-plain"])?;
    host.exec_ok(&["chmod", "600", "/etc/linux_patch_api/certs/server.key.pem"])?;
    let (ids, told) = doctor(&agent, &[], 0)?;
    ensure!(ids.is_empty() && told["fixed"] == serde_json::json!([]), "{told:#}");
    let record = host.exec_ok(&["linux-patch-host", "record"])?;
    ensure!(record.contains("doctor --fix unmasks, enables and starts apt-daily.timer"), "{record}");
    Ok(())
}

fn cloud_init_takes_every_profile() -> Result<()> {
    let program = Packages::get()?.programs()?.join("usr/sbin/linux-patch-host");
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name).display().to_string();
    let pem = |kind: &str| format!("-----BEGIN {kind}-----\n\nAAAA\n-----END {kind}-----\n");
    std::fs::write(path("key.asc"), pem("PGP PUBLIC KEY BLOCK"))?;
    std::fs::write(path("ca.pem"), pem("CERTIFICATE"))?;
    std::fs::write(
        path("smtp.yaml"),
        "smtp: {from_email: a@example.com, user_email: b@example.com, recipient_email: c@example.com}\n",
    )?;
    let fingerprint = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let (key, ca, smtp) = (path("key.asc"), path("ca.pem"), path("smtp.yaml"));
    let agent = [
        &[
            "--profile",
            "agent",
            "--agent-source",
            "https://apt.example.org/x bookworm main",
            "--agent-key",
            &key,
        ][..],
        &[
            "--ca-cert",
            &ca,
            "--allow",
            "10.0.0.5",
            "--allow",
            "2001:db8::/48",
            "--enroll",
            "https://m.example.org",
        ],
        &[
            "--ca-fingerprint",
            &fingerprint,
            "--join-token",
            "0123456789abcdef",
            "--mail-to",
            "ops@example.org",
        ],
    ]
    .concat();
    let profiles = [
        &["--profile", "basic"][..],
        &["--profile", "unattended", "--with-updates", "--mail-to", "root", "--mail-report", "always"],
        &[
            "--profile",
            "kvm-host",
            "--distribution",
            "ubuntu",
            "--smtp-preset",
            "m365",
            "--smtp-config",
            &smtp,
        ],
        agent.as_slice(),
    ];
    for (number, profile) in profiles.into_iter().enumerate() {
        let output = Command::new(&program).arg("cloud-init").args(profile).output()?;
        ensure!(output.status.success(), "{profile:?}: {}", String::from_utf8_lossy(&output.stderr));
        let document = path(&format!("{number}.yaml"));
        std::fs::write(&document, &output.stdout)?;
        let checked = Command::new("cloud-init").args(["schema", "--config-file", &document]).output()?;
        let said =
            [checked.stdout, checked.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        ensure!(checked.status.success() && said.contains("Valid cloud-config"), "{profile:?}: {said}");
        // Its parser is of an older YAML than ours: what it reads must be what was meant.
        let meant = Command::new(&program).args(["--json", "cloud-init"]).args(profile).output()?;
        let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
        let read = Command::new("python3").args(["-c", script, &document]).output()?;
        let meant: Value = serde_json::from_slice(&meant.stdout)?;
        let read: Value = serde_json::from_slice(&read.stdout)?;
        ensure!(read == meant, "{read:#} instead of {meant:#}");
    }
    Ok(())
}
