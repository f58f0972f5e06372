//! Who gets in: strangers get not one byte more than they must, and the allow list holds at once.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};

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
        trial("strangers_get_nothing", strangers_get_nothing),
        trial("the_allow_list_holds_within_five_seconds", the_allow_list_holds_within_five_seconds),
    ]
}

/// How long a change of the allow list may take.
const PROMISED: Duration = Duration::from_secs(5);

const LIST: &str = "/etc/linux_patch_api/whitelist.yaml";

/// Sends bytes over plain TCP, from the test's address, and gives what came until the agent closed.
fn told(agent: &Agent, bytes: &[u8]) -> Result<Vec<u8>> {
    let address = SocketAddr::from((agent.host.ip(), 12443));
    agent.network.run_in(|| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        // The agent gives a handshake five seconds; what is not closed by then is a fault.
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        // The agent may have closed already.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => {
                Err(error).context("the agent leaves the connection open")
            }
            _ => Ok(answer),
        }
    })
}

/// What openssl saw as a client with this certificate that sends a request.
fn handshake(agent: &Agent, arguments: &[&str]) -> Result<String> {
    let address = format!("{}:12443", agent.host.ip());
    let ca = agent.pem("ca.pem");
    let fixed =
        ["timeout", "20", "openssl", "s_client", "-ign_eof", "-msg", "-connect", &address, "-CAfile", &ca];
    let mut command = agent.network.command(&[&fixed, arguments].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut input = child.stdin.take().context("no stdin")?;
    // The agent may close first.
    let _ = input.write_all(b"GET /api/v1/health HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n");
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(output.status.code() != Some(124), "the agent leaves the connection open");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn strangers_get_nothing() -> Result<()> {
    let agent = Agent::boot("strangers", &[])?;
    let hello = b"GET /api/v1/health HTTP/1.1\r\nhost: agent\r\n\r\n";
    for (what, bytes) in [
        ("plain HTTP", &hello[..]),
        ("garbage", b"\x00\xff\x13\x37 garbage \x80\x81\x82 that is no TLS"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("half a client hello", b"\x16\x03\x01\x02\x00\x01\x00"),
    ] {
        let answer = told(&agent, bytes)?;
        ensure!(answer.is_empty(), "{what} was answered with {answer:?}");
    }

    let ours = Ca::existing(agent.pki.path(), Key::P256);
    ours.issue_expired("expired", "extendedKeyUsage=clientAuth")?;
    ours.issue("serverusage", "extendedKeyUsage=serverAuth")?;
    ours.issue("nousage", "keyUsage=digitalSignature")?;
    let foreign = Ca::new(&agent.pki.path().join("foreign"), Key::P256)?;
    foreign.issue("alice", "extendedKeyUsage=clientAuth")?;
    let strangers = [
        ("no certificate", None),
        ("a foreign CA's certificate", Some((foreign.file("alice.pem"), foreign.file("alice.key.pem")))),
        ("an expired certificate", Some((ours.file("expired.pem"), ours.file("expired.key.pem")))),
        ("a server's certificate", Some((ours.file("serverusage.pem"), ours.file("serverusage.key.pem")))),
        ("a certificate without usage", Some((ours.file("nousage.pem"), ours.file("nousage.key.pem")))),
    ];
    for (what, files) in &strangers {
        let arguments: Vec<&str> =
            files.iter().flat_map(|(cert, key)| ["-cert", cert.as_str(), "-key", key.as_str()]).collect();
        let seen = handshake(&agent, &arguments)?;
        ensure!(seen.contains("<<< TLS 1.3, Handshake [length"), "{what}: no handshake at all: {seen}");
        ensure!(!seen.contains("HTTP/1.1"), "{what} was let in: {seen}");
        ensure!(!seen.contains("<<< TLS 1.3, Alert"), "{what} was told why: {seen}");
    }
    for old in ["-tls1_2", "-tls1_1"] {
        let (cert, key) = (agent.pem("alice.pem"), agent.pem("alice.key.pem"));
        let seen = handshake(&agent, &[old, "-cert", &cert, "-key", &key])?;
        ensure!(!seen.contains("<<< TLS"), "{old} was answered: {seen}");
    }
    // The same with alice's certificate is let in, so the checks above see what they look for.
    let seen = handshake(&agent, &["-cert", &agent.pem("alice.pem"), "-key", &agent.pem("alice.key.pem")])?;
    ensure!(seen.contains("HTTP/1.1 200"), "{seen}");
    // Each has its record with the reason.
    for (code, word) in [
        ("AUTH_INVALID_CERT", "does not speak TLS"),
        ("AUTH_CERT_EXPIRED", "expired"),
        ("AUTH_INVALID_CERT", "serverusage"),
        ("AUTH_INVALID_CERT", "nousage"),
    ] {
        agent.wait_record(word, |record| {
            record["event"] == "auth_failure"
                && record["code"] == code
                && record["priority"] == "high"
                && record["message"].as_str().is_some_and(|text| text.contains(word))
        })?;
    }
    Ok(())
}

/// Waits until the agent lets the test in, or no more, and ensures that this took no longer than promised.
fn wait_until_let_in(agent: &Agent, wanted: bool, how: &str) -> Result<()> {
    let begun = Instant::now();
    wait::until(&format!("the allow list after it was {how}"), PROMISED * 2, || {
        Ok((agent.get("/health").is_ok() == wanted).then_some(()))
    })?;
    let took = begun.elapsed();
    ensure!(took <= PROMISED + Duration::from_millis(500), "{how}: it took {took:?}");
    Ok(())
}

fn the_allow_list_holds_within_five_seconds() -> Result<()> {
    let agent = Agent::boot("allowing", &[])?;
    let pid = agent.pid()?;
    let host = &agent.host;
    let me = agent.network.address().to_string();
    let (prefix, _) = me.rsplit_once('.').context("no address")?;
    let network = format!("allowed_ips: [\"{prefix}.0/24\"]\n");
    let other = format!("{prefix}.2");
    let added = agent.network.exec(&["ip", "addr", "add", &format!("{other}/24"), "dev", "br0"])?;
    ensure!(added.success(), "{added:?}");
    let (open, shut) = (format!("allowed_ips:\n  - {me}\n"), format!("allowed_ips: [{other}]\n"));
    let replace = format!("mv {LIST}.new {LIST}");
    let in_place = |text: &str| host.shell(&format!("cat > {LIST} <<'END'\n{text}END")).map(drop);
    let by_rename = |text: &str| -> Result<()> {
        host.push(text, &format!("{LIST}.new"), "644")?;
        host.shell(&replace).map(drop)
    };

    // A connection that is open when its address is taken off is closed.
    let idle = agent
        .network
        .command(&[
            "openssl",
            "s_client",
            "-quiet",
            "-verify_quiet",
            "-connect",
            &format!("{}:12443", host.ip()),
            "-CAfile",
            &agent.pem("ca.pem"),
            "-cert",
            &agent.pem("alice.pem"),
            "-key",
            &agent.pem("alice.key.pem"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut idle = idle.context("cannot start openssl")?;
    let mut input = idle.stdin.take().context("no stdin")?;
    input.write_all(b"GET /api/v1/health HTTP/1.1\r\nhost: agent\r\n\r\n")?;
    let mut first = [0; 8];
    idle.stdout.as_mut().context("no stdout")?.read_exact(&mut first)?;
    ensure!(&first == b"HTTP/1.1", "{first:?}");
    in_place(&shut)?;
    wait_until_let_in(&agent, false, "written in place")?;
    wait::until("the open connection to be closed", PROMISED, || Ok(idle.try_wait()?))?;
    ensure!(told(&agent, b"\x16\x03\x01")?.is_empty(), "an address off the list got bytes");
    ensure!(
        agent.curl("/health", &["--interface", &other])?.status == 200,
        "an address on the list was not let in"
    );
    agent
        .wait_record("denial", |record| record["event"] == "allow_list_denied" && record["address"] == me)?;
    agent.wait_record("withdrawal", |record| {
        record["event"] == "connection_revoked" && record["identity"] == "alice"
    })?;
    agent.wait_record("change", |record| {
        record["event"] == "allow_list_changed"
            && record["removed"].to_string().contains(&me)
            && record["added"].to_string().contains(&other)
    })?;

    by_rename(&open)?;
    wait_until_let_in(&agent, true, "replaced by rename")?;
    by_rename(&shut)?;
    wait_until_let_in(&agent, false, "replaced by rename again")?;
    in_place(&network)?;
    wait_until_let_in(&agent, true, "written in place with a network")?;
    host.exec_ok(&["rm", LIST])?;
    wait_until_let_in(&agent, false, "deleted")?;
    agent.wait_record("missing file", |record| {
        record["event"] == "allow_list_refused"
            && record["error"]
                .as_str()
                .is_some_and(|error| error.ends_with(": there is no such file; everyone is denied"))
    })?;
    by_rename(&open)?;
    wait_until_let_in(&agent, true, "made again")?;
    // The whole directory is exchanged, as configuration management may do.
    host.shell("cd /etc && cp -a linux_patch_api next && rm next/whitelist.yaml && mv linux_patch_api former && mv next linux_patch_api")?;
    wait_until_let_in(&agent, false, "left out of a replaced directory")?;
    host.shell("cd /etc && mv linux_patch_api next && mv former linux_patch_api")?;
    wait_until_let_in(&agent, true, "back with its directory")?;

    // What cannot be understood changes nothing and is reported.
    in_place("allowed_ips:\n  - 10.0.0.300\n")?;
    let names_it =
        |record: &Value| record["error"].as_str().is_some_and(|error| error.contains("10.0.0.300"));
    let refused =
        agent.wait_record("refusal", |record| record["event"] == "allow_list_refused" && names_it(record))?;
    ensure!(
        refused["error"].as_str().is_some_and(|error| {
            error.contains("whitelist.yaml:2:") && error.matches("the last good list holds").count() == 1
        }),
        "{refused:#}"
    );
    ensure!(agent.get("/health")?.status == 200, "a broken list shut everyone out");
    let journal = host.exec_ok(&["journalctl", "-u", "linux-patch-api", "--no-pager"])?;
    ensure!(journal.contains("whitelist") && journal.contains("10.0.0.300"), "{journal}");
    by_rename(&shut)?;
    host.exec_ok(&["systemctl", "reload", "linux-patch-api"])?;
    wait_until_let_in(&agent, false, "replaced and SIGHUP sent")?;
    ensure!(agent.pid()? == pid, "the agent was started again");
    Ok(())
}
