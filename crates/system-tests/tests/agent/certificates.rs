//! Certificates made by operators with plain openssl: good ones work, bad ones are named with the remedy. Renewal and
//! revocation need no restart.

use std::{io::Write as _, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use system_tests::{trials::trial, wait};

use crate::{
    fixture::Agent,
    openssl::{Ca, Key},
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("certificates_of_openssl_work_or_are_explained", certificates_of_openssl_work_or_are_explained),
        trial("a_pair_is_renewed_without_a_restart", a_pair_is_renewed_without_a_restart),
        trial("a_revoked_client_is_out_at_once_and_for_good", a_revoked_client_is_out_at_once_and_for_good),
    ]
}

const CERTS: &str = "/etc/linux_patch_api/certs";

/// Puts a CA and a server's certificate in place.
fn provide(agent: &Agent, ca: &Ca, certificate: &str, key: &str) -> Result<()> {
    for (file, name, mode) in [
        (ca.file("ca.pem"), "ca.pem", "644"),
        (ca.file(&format!("{certificate}.pem")), "server.pem", "644"),
        (ca.file(&format!("{key}.key.pem")), "server.key.pem", "600"),
    ] {
        agent.host.push_file(file.as_ref(), &format!("{CERTS}/{name}"), mode)?;
    }
    Ok(())
}

fn certificates_of_openssl_work_or_are_explained() -> Result<()> {
    let agent = Agent::boot("operators", &[])?;
    let server = format!("subjectAltName=DNS:operators,IP:{}\nextendedKeyUsage=serverAuth", agent.host.ip());
    for (name, key) in [("p256", Key::P256), ("rsa4096", Key::Rsa4096)] {
        let ca = Ca::new(&agent.pki.path().join(name), key)?;
        ca.issue("server", &server)?;
        ca.issue("client", "extendedKeyUsage=clientAuth")?;
        provide(&agent, &ca, "server", "server")?;
        agent.host.exec_ok(&["linux-patch-api", "check-config"])?;
        agent.host.exec_ok(&["systemctl", "restart", "linux-patch-api"])?;
        let address = format!("https://{}:12443/api/v1/health", agent.host.ip());
        let (trusted, cert, key) = (ca.file("ca.pem"), ca.file("client.pem"), ca.file("client.key.pem"));
        let answer = agent.network.exec(&[
            "curl",
            "-sS",
            "--retry",
            "5",
            "--retry-connrefused",
            "--cacert",
            &trusted,
            "--cert",
            &cert,
            "--key",
            &key,
            &address,
        ])?;
        ensure!(answer.success() && answer.stdout.contains("\"success\":true"), "{name}: {answer:?}");
        // The development CA's client is a stranger now.
        ensure!(agent.get("/health").is_err(), "{name}: a client of the former CA is let in");
    }

    let ca = Ca::existing(&agent.pki.path().join("p256"), Key::P256);
    ca.issue("version1", "")?;
    ca.issue("nosan", "extendedKeyUsage=serverAuth")?;
    ca.issue("wrongusage", &server.replace("serverAuth", "clientAuth"))?;
    ca.issue_expired("old", &server)?;
    for (certificate, key, fault, remedy) in [
        ("version1", "version1", "version 1", "-extfile"),
        ("nosan", "nosan", "subjectAltName", "-extfile"),
        ("wrongusage", "wrongusage", "serverAuth", "sign it again"),
        ("server", "nosan", "does not belong", "must begin with the certificate"),
        ("old", "old", "expired", "new one signed"),
    ] {
        provide(&agent, &ca, certificate, key)?;
        let checked = agent.host.exec(&["linux-patch-api", "check-config"])?;
        let said = format!("{}{}", checked.stdout, checked.stderr);
        ensure!(
            !checked.success() && said.contains(fault) && said.contains(remedy) && said.contains("server"),
            "{certificate}: {checked:?}"
        );
        let cursor = agent.host.exec_ok(&["journalctl", "-n", "0", "--show-cursor", "-q"])?;
        let cursor = cursor.trim().strip_prefix("-- cursor: ").context("no cursor")?.to_owned();
        let started = agent.host.exec(&["systemctl", "restart", "linux-patch-api"])?;
        ensure!(!started.success(), "{certificate}: the agent started");
        agent.host.exec(&["systemctl", "stop", "linux-patch-api"])?;
        let argument = format!("--after-cursor={cursor}");
        let journal = agent.host.exec_ok(&[
            "journalctl",
            "-u",
            "linux-patch-api",
            "--no-pager",
            "-o",
            "cat",
            &argument,
        ])?;
        ensure!(journal.contains(fault) && journal.contains(remedy), "{certificate}: {journal}");
        agent.host.exec(&["systemctl", "reset-failed", "linux-patch-api"])?;
    }

    // Put right, it starts again.
    provide(&agent, &ca, "server", "server")?;
    agent.host.exec_ok(&["systemctl", "start", "linux-patch-api"])?;
    Ok(())
}

/// One of the health check's parts.
fn check(agent: &Agent, name: &str) -> Result<Value> {
    let health = agent.get("/health")?.data()?.clone();
    let checks = health["checks"].as_array().context("no checks")?;
    checks.iter().find(|check| check["name"] == name).cloned().context("no such check")
}

fn a_pair_is_renewed_without_a_restart() -> Result<()> {
    let agent = Agent::boot("renewing", &[])?;
    let host = &agent.host;
    let pid = agent.pid()?;
    let ca = Ca::existing(agent.pki.path(), Key::P256);
    let names = format!("subjectAltName=DNS:renewing,IP:{}\nextendedKeyUsage=serverAuth", host.ip());
    ca.issue("fresh", &names)?;
    let expires = || Ok::<_, anyhow::Error>(agent.get("/health")?.data()?["certificate_expires"].clone());
    let before = expires()?;
    // The key is root's alone.
    ensure!(host.shell(&format!("stat -c '%U %a' {CERTS}/server.key.pem"))?.trim() == "root 600");

    host.push_file(ca.file("fresh.pem").as_ref(), &format!("{CERTS}/server.pem"), "644")?;
    // What cannot be put in force makes the reload fail.
    let reload = || Ok::<_, anyhow::Error>(host.exec(&["systemctl", "reload", "linux-patch-api"])?.code());
    ensure!(reload()? == Some(1), "half of a pair is refused");
    wait::until("the half of a pair to be reported", Duration::from_secs(10), || {
        let check = check(&agent, "certificate")?;
        Ok((check["healthy"] == false && check["message"].to_string().contains("does not belong"))
            .then_some(()))
    })?;
    ensure!(expires()? == before, "the pair before stays");

    host.push_file(ca.file("fresh.key.pem").as_ref(), &format!("{CERTS}/server.key.pem"), "600")?;
    ensure!(reload()? == Some(0), "the whole pair is taken");
    wait::until("the new pair", Duration::from_secs(10), || Ok((expires()? != before).then_some(())))?;
    ensure!(agent.pid()? == pid, "the service was started again");
    agent.wait_record("change", |record| {
        record["event"] == "certificate_changed" && record["role"] == "server"
    })?;

    // What was handed over stands nowhere but in its file.
    let key = std::fs::read_to_string(ca.file("fresh.key.pem"))?;
    let secret = key.lines().nth(1).context("no key")?;
    let found = host.exec(&[
        "grep",
        "-rlF",
        "-e",
        secret,
        "/etc/linux_patch_api",
        "/var/lib/linux_patch_api",
        "/var/lib/linux_patch_executor",
        "/var/log/linux_patch_api",
    ])?;
    ensure!(found.stdout.trim() == format!("{CERTS}/server.key.pem"), "{found:?}");
    ensure!(
        !host.exec_ok(&["journalctl", "--no-pager", "-o", "cat"])?.contains(secret),
        "the journal has the key"
    );

    // A file that somebody else may write is not handed over, and the pair stays.
    host.exec_ok(&["chmod", "620", &format!("{CERTS}/server.key.pem")])?;
    ensure!(reload()? == Some(1), "the key is refused");
    wait::until("the refusal", Duration::from_secs(10), || {
        Ok(check(&agent, "certificate")?["message"].to_string().contains("chmod go-w").then_some(()))
    })?;
    ensure!(expires()? != before);
    Ok(())
}

fn a_revoked_client_is_out_at_once_and_for_good() -> Result<()> {
    let agent = Agent::boot("revoking", &[])?;
    let ca = Ca::existing(agent.pki.path(), Key::P256);
    for name in ["mallory", "carol"] {
        ca.issue(name, "extendedKeyUsage=clientAuth")?;
    }
    let (certificate, key) = (ca.file("mallory.pem"), ca.file("mallory.key.pem"));
    let url = format!("https://{}:12443/api/v1/system/info", agent.host.ip());
    let as_mallory = || agent.curl_at(&url, &["--cert", &certificate, "--key", &key]);
    ensure!(as_mallory()?.status == 200);
    let address = format!("{}:12443", agent.host.ip());
    let mut idle = agent
        .network
        .command(&[
            "openssl",
            "s_client",
            "-quiet",
            "-verify_quiet",
            "-connect",
            &address,
            "-CAfile",
            &agent.pem("ca.pem"),
            "-cert",
            &certificate,
            "-key",
            &key,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start openssl")?;
    let mut input = idle.stdin.take().context("no stdin")?;
    input.write_all(b"GET /api/v1/health HTTP/1.1\r\nhost: agent\r\n\r\n")?;
    let mut first = [0; 8];
    std::io::Read::read_exact(idle.stdout.as_mut().context("no stdout")?, &mut first)?;

    let list = ca.revoke(&["mallory"], "0A")?;
    let put = agent.patchctl(&["crl", "put", &list])?.output()?;
    let said = String::from_utf8_lossy(&put.stdout);
    ensure!(put.status.success() && said.contains("number a (in force now)"), "{put:?}");
    let began = std::time::Instant::now();
    wait::until("the open connection to be closed", Duration::from_secs(5), || Ok(idle.try_wait()?))?;
    ensure!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    ensure!(as_mallory().is_err(), "a revoked client is let in");
    ensure!(agent.get("/health")?.data()?["crl_status"] == "valid");
    agent.wait_record("revocation", |record| {
        record["event"] == "certificate_changed" && record["role"] == "crl" && record["identity"] == "alice"
    })?;
    agent.wait_record("closing", |record| {
        record["event"] == "connection_revoked" && record["identity"] == "mallory"
    })?;

    agent.host.exec_ok(&["systemctl", "restart", "linux-patch-api"])?;
    agent.wait_until_up()?;
    ensure!(as_mallory().is_err(), "a restart forgets the revocation");
    // Older lists are refused, over the API and as a file; a newer file is taken.
    let older = ca.revoke(&[], "09")?;
    let put = agent.patchctl(&["crl", "put", &older])?.output()?;
    ensure!(
        put.status.code() == Some(1) && String::from_utf8_lossy(&put.stderr).contains("number a"),
        "{put:?}"
    );
    agent.host.push_file(older.as_ref(), &format!("{CERTS}/crl.pem"), "644")?;
    agent.host.exec_ok(&["systemctl", "reload", "linux-patch-api"])?;
    ensure!(as_mallory().is_err(), "an older file lets a revoked client in");
    agent.host.push_file(
        ca.revoke(&["mallory", "carol"], "0B")?.as_ref(),
        &format!("{CERTS}/crl.pem"),
        "644",
    )?;
    agent.host.exec_ok(&["systemctl", "reload", "linux-patch-api"])?;
    let (carol, carols) = (ca.file("carol.pem"), ca.file("carol.key.pem"));
    wait::until("carol to be out as well", Duration::from_secs(5), || {
        Ok(agent.curl_at(&url, &["--cert", &carol, "--key", &carols]).is_err().then_some(()))
    })?;
    ensure!(as_mallory().is_err());
    Ok(())
}
