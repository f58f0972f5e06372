//! What was once found in an agent of this kind, each by its name. The agent's own tests of bad input go further.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use system_tests::{
    hostile::{
        Stage,
        client::{self, Answer},
        stage::FRIEND,
    },
    trials::trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("findings_of_the_source_stay_closed", findings_of_the_source_stay_closed)]
}

/// Each by name; one agent serves for all of them.
fn findings_of_the_source_stay_closed() -> Result<()> {
    type Finding = (&'static str, fn(&Stage) -> Result<()>);
    const FINDINGS: [Finding; 7] = [
        ("finding_names_over_256_characters_are_refused", names_over_256_characters),
        ("finding_paths_are_taken_as_they_stand_or_refused", paths),
        ("finding_headers_over_8_kib_are_431", headers_over_8_kib),
        ("finding_empty_strings_are_refused", empty_strings),
        ("finding_wrong_methods_are_405_with_allow", wrong_methods),
        ("finding_duplicate_headers_are_400", duplicate_headers),
        ("finding_tls_is_bound_to_the_configured_address", tls_binding),
    ];
    let stage = Stage::new(&[])?;
    for (name, finding) in FINDINGS {
        finding(&stage).context(name)?;
        stage.assert_alive().context(name)?;
        println!("{name}: closed");
    }
    Ok(())
}

/// Sends a request as it stands over a good client's connection.
fn raw(stage: &Stage, request: &str) -> Result<Answer> {
    let mut open = stage.client()?.open(FRIEND)?;
    open.write_all(request.as_bytes())?;
    open.flush()?;
    client::answer(&mut open).with_context(|| request.chars().take(200).collect::<String>())
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    format!("{method} /api/v1{path} HTTP/1.1\r\nhost: agent\r\n{headers}{length}\r\n{body}")
}

fn ensure_refused(answer: &Answer, status: u16, what: &str) -> Result<()> {
    ensure!(
        answer.status == status && answer.text.contains("\"code\":\"INVALID_REQUEST\""),
        "{what}: {} instead of {status}: {}",
        answer.status,
        answer.text
    );
    Ok(())
}

const JSON: &str = "content-type: application/json\r\n";

fn names_over_256_characters(stage: &Stage) -> Result<()> {
    let name = "a".repeat(257);
    ensure_refused(&raw(stage, &request("GET", &format!("/packages/{name}"), "", ""))?, 422, "in a path")?;
    let body = format!("{{\"packages\":[{{\"name\":\"{name}\"}}]}}");
    ensure_refused(&raw(stage, &request("POST", "/packages", JSON, &body))?, 422, "in a body")?;
    let filter = format!("/packages?name={name}");
    ensure_refused(&raw(stage, &request("GET", &filter, "", ""))?, 422, "in a query")
}

fn paths(stage: &Stage) -> Result<()> {
    for path in [
        "/packages/../health",
        "/./health",
        "/packages/%2e%2e/health",
        "/packages/aa%2fbb",
        "/packages/aa%2Fbb",
        "/packages/aa%5Cbb",
        "/packages/aa%00",
        "/packages//aa",
        "//health",
        "/packages/aa%0d%0ax",
        "/packages/%c0%ae%c0%ae/health",
        "/packages/%252e%252e/../health",
    ] {
        ensure_refused(&raw(stage, &request("GET", path, "", ""))?, 400, path)?;
    }
    Ok(())
}

fn headers_over_8_kib(stage: &Stage) -> Result<()> {
    let filled =
        |length: usize| request("GET", "/health", &format!("x-filling: {}\r\n", "f".repeat(length)), "");
    ensure!(raw(stage, &filled(8000))?.status == 200);
    ensure_refused(&raw(stage, &filled(8192))?, 431, "one long header")?;
    let many: String = (0..100).map(|n| format!("x-{n}: {}\r\n", "f".repeat(90))).collect();
    ensure_refused(&raw(stage, &request("GET", "/health", &many, ""))?, 431, "many headers")?;
    ensure!(raw(stage, &filled(60_000))?.status == 431);
    let long = format!("/packages?name={}", "a".repeat(9000));
    ensure_refused(&raw(stage, &request("GET", &long, "", ""))?, 431, "a long line")
}

fn empty_strings(stage: &Stage) -> Result<()> {
    for body in [
        r#"{"packages":[{"name":""}]}"#,
        r#"{"packages":[{"name":"aa","version":""}]}"#,
        r#"{"packages":[{"name":" "}]}"#,
        r#"{"packages":[{"name":"aa"}],"options":{"if_plan":""}}"#,
    ] {
        ensure_refused(&raw(stage, &request("POST", "/packages", JSON, body))?, 422, body)?;
    }
    for path in ["/packages?name=", "/packages?version=", "/jobs?kind=", "/jobs?package="] {
        ensure_refused(&raw(stage, &request("GET", path, "", ""))?, 422, path)?;
    }
    ensure_refused(&raw(stage, &request("GET", "/packages/", "", ""))?, 404, "no name in a path")
}

fn wrong_methods(stage: &Stage) -> Result<()> {
    for (method, path, allowed) in [
        ("PATCH", "/packages", "GET,HEAD,POST"),
        ("POST", "/packages/aa", "GET,HEAD,PUT,DELETE"),
        ("DELETE", "/health", "GET,HEAD"),
        ("GET", "/patches/apply", "POST"),
        ("TRACE", "/system/info", "GET,HEAD"),
        ("CONNECT", "/metrics", "GET,HEAD"),
    ] {
        let answer = raw(stage, &request(method, path, "", ""))?;
        if method == "CONNECT" {
            // Its target is no path, so the library refuses it before a route is looked for.
            ensure!((400..500).contains(&answer.status), "{}", answer.text);
            continue;
        }
        ensure_refused(&answer, 405, method)?;
        let head = answer.text.to_ascii_lowercase();
        let allow = head.lines().find_map(|line| line.strip_prefix("allow: ")).context("no Allow")?;
        let mut given: Vec<String> = allow.split(',').map(|word| word.trim().to_uppercase()).collect();
        let mut wanted: Vec<String> = allowed.split(',').map(str::to_owned).collect();
        given.sort();
        wanted.sort();
        ensure!(given == wanted, "{method} {path}: Allow is {allow}");
    }
    Ok(())
}

fn duplicate_headers(stage: &Stage) -> Result<()> {
    for headers in [
        "host: other\r\n",
        "x-request-id: a\r\nx-request-id: b\r\n",
        "authorization: a\r\nauthorization: a\r\n",
        "content-type: application/json\r\nContent-Type: application/json\r\n",
        "idempotency-key: a\r\nIdempotency-Key: a\r\n",
        "if-modified-since: a\r\nif-modified-since: b\r\n",
    ] {
        ensure_refused(&raw(stage, &request("GET", "/health", headers, ""))?, 400, headers)?;
    }
    let two = "content-length: 2\r\ncontent-length: 3\r\n";
    ensure!(raw(stage, &request("POST", "/patches/refresh", &format!("{JSON}{two}"), ""))?.status == 400);
    let both = "content-length: 2\r\ntransfer-encoding: chunked\r\n";
    let answer = raw(stage, &request("POST", "/patches/refresh", &format!("{JSON}{both}"), ""))?;
    ensure!(matches!(answer.status, 400 | 411), "{}", answer.text);
    Ok(())
}

/// The port is open on the configured address alone, and what speaks no TLS 1.3 there is told nothing.
fn tls_binding(stage: &Stage) -> Result<()> {
    for other in [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 5, 5, 5)] {
        let tried = TcpStream::connect_timeout(&(other, stage.address.port()).into(), Duration::from_secs(2));
        ensure!(tried.is_err(), "it listens on {other} as well");
    }
    for hello in [
        &b"GET /api/v1/health HTTP/1.1\r\nhost: agent\r\n\r\n"[..],
        // A hello of TLS 1.2 without a word about newer versions.
        b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03\x20\x21\x22\x23\x24\x25\x26\x27\x28\x29\x2a\x2b\x2c\x2d\x2e\x2f\
          \x30\x31\x32\x33\x34\x35\x36\x37\x38\x39\x3a\x3b\x3c\x3d\x3e\x3f\x00\x00\x04\xc0\x2b\xc0\x2f\x01\x00",
    ] {
        let mut stream = client::tcp(FRIEND, stage.address)?;
        stream.write_all(hello)?;
        let mut told = Vec::new();
        // A reset is an end as well.
        let _ = stream.read_to_end(&mut told);
        ensure!(told.is_empty(), "{hello:?} was told {told:?}");
    }
    Ok(())
}
