//! Certificates made by operators with plain openssl: good ones work, bad ones are named with the remedy.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use system_tests::trials::trial;

use crate::{
    fixture::Agent,
    openssl::{Ca, Key},
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(
        "certificates_of_openssl_work_or_are_explained",
        certificates_of_openssl_work_or_are_explained,
    )]
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
