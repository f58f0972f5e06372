//! Whatever a client sends, it is told exactly what is wrong, and the agent lives on.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::trials::trial;

use crate::fixture::{Agent, Answer};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("bad_requests_are_refused_exactly", bad_requests_are_refused_exactly)]
}

/// An answer of the agent to raw bytes.
fn parse(text: &str) -> Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no answer but {text:?}"))?;
    Ok(Answer {
        status: head.split_whitespace().nth(1).context("no status")?.parse()?,
        headers: head.to_ascii_lowercase(),
        body: serde_json::from_str(body).unwrap_or(Value::Null),
        text: body.to_owned(),
    })
}

/// It has the status and the code, and comes in the envelope with a message.
fn ensure_refused(answer: &Answer, status: u16, code: &str, what: &str) -> Result<()> {
    let id = answer.body["request_id"].as_str().unwrap_or("?");
    let is_enveloped = answer.body["success"] == false
        && answer.body["data"].is_null()
        && uuid::Uuid::parse_str(id).is_ok()
        && answer.headers.contains(&format!("x-request-id: {id}"))
        && answer.body["timestamp"].as_str().is_some_and(|at| at.ends_with('Z'))
        && answer.body["error"]["details"].is_object()
        && answer.body["error"]["retryable"].is_boolean()
        && answer.body["error"]["message"].as_str().is_some_and(|message| !message.is_empty());
    ensure!(
        is_enveloped && answer.status == status && answer.code() == code,
        "{what}: expected {status} {code}, got {} {} {}",
        answer.status,
        answer.headers,
        answer.text.chars().take(600).collect::<String>()
    );
    Ok(())
}

/// How the request begins that is sent byte by byte.
fn head(method: &str, path: &str, headers: &str) -> String {
    format!("{method} /api/v1{path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n{headers}\r\n")
}

const JSON: &str = "content-type: application/json\r\n";

fn bad_requests_are_refused_exactly() -> Result<()> {
    let agent = Agent::boot("refusing", &["lp-plain=1.0-1"])?;
    let pid = agent.pid()?;
    let alive = |after: &str| -> Result<()> {
        ensure!(
            agent.get("/health")?.status == 200 && agent.pid()? == pid,
            "the agent did not survive {after}"
        );
        Ok(())
    };
    bodies(&agent)?;
    alive("the bodies")?;
    names(&agent)?;
    alive("the names")?;
    sizes(&agent)?;
    alive("the sizes")?;
    paths_and_methods(&agent)?;
    alive("the paths")?;
    headers(&agent)?;
    alive("the headers")?;
    queries_and_ids(&agent)?;
    unavailable(&agent)?;
    alive("the rest")?;
    ensure!(agent.get("/jobs")?.data()?["total"] == 0, "a refused request made a job");
    preferences_and_keys(&agent)?;
    what_only_the_solver_knows(&agent)?;
    alive("all of it")
}

fn bodies(agent: &Agent) -> Result<()> {
    // Field is what details.field and the message must name.
    for (method, path, body, status, field) in [
        ("POST", "/packages", "{\"packages\": [", 400, ""),
        ("POST", "/packages", "not json", 400, ""),
        ("POST", "/packages", "", 400, ""),
        ("POST", "/packages", "{\"packages\": [{\"name\": \"lp-plain\"}]} {}", 400, ""),
        ("POST", "/packages", "{\"packages\": [{\"name\": \"lp-plain\"}], \"option\": {}}", 422, "option"),
        ("POST", "/packages", "{\"packages\": [{\"name\": \"lp-plain\", \"versio\": \"1\"}]}", 422, "versio"),
        ("POST", "/packages", "{\"packages\": \"lp-plain\"}", 422, "packages"),
        ("POST", "/packages", "{\"packages\": [{\"name\": 7}]}", 422, "name"),
        ("POST", "/packages", "{\"options\": {}}", 422, "packages"),
        ("POST", "/packages", "{\"packages\": []}", 422, ""),
        ("POST", "/packages", "[]", 422, ""),
        ("POST", "/packages", "null", 422, ""),
        ("POST", "/patches/apply", "{\"security-only\": true}", 422, "security-only"),
        ("POST", "/patches/apply", "{\"security_only\": \"yes\"}", 422, "security_only"),
        ("POST", "/patches/apply", "{\"packages\": [\"lp-plain\"], \"packages\": []}", 422, "packages"),
        ("PUT", "/packages/lp-plain", "{\"hold\": 1}", 422, "hold"),
        ("PUT", "/packages/lp-plain", "{\"hold\": true, \"version\": \"1.0-1\"}", 422, "hold"),
    ] {
        let arguments =
            ["--request", method, "--header", "content-type: application/json", "--data-binary", body];
        let answer = agent.curl(path, &arguments)?;
        ensure_refused(&answer, status, "INVALID_REQUEST", body)?;
        let error = &answer.body["error"];
        if !field.is_empty() {
            let named = |value: &Value| value.as_str().is_some_and(|text| text.contains(field));
            ensure!(named(&error["message"]) && named(&error["details"]["field"]), "{body}: {error:#}");
        }
    }
    // Nesting that would overflow a recursive parser.
    let deep = format!("{{\"packages\": {}", "[".repeat(200_000));
    let head = head("POST", "/packages", &format!("{JSON}content-length: {}\r\n", deep.len()));
    ensure_refused(
        &parse(&agent.raw(format!("{head}{deep}").as_bytes())?)?,
        422,
        "INVALID_REQUEST",
        "deep nesting",
    )
}

fn names(agent: &Agent) -> Result<()> {
    let longest = "a".repeat(256);
    let too_long = "a".repeat(257);
    let good = json!({"packages": [{"name": longest}], "options": {"dry_run": true}});
    let answer = agent.send("POST", "/packages", &good)?;
    ensure!(answer.status != 422 && answer.code() == "PKG_NOT_FOUND", "256 characters: {}", answer.text);
    for name in [
        too_long.as_str(),
        "",
        "..",
        "a..b/../c",
        "../../etc/passwd",
        "lp-plain;reboot",
        "-o=Dpkg::Pre-Invoke::=reboot",
        "--allow-unauthenticated",
        "lp-plain\0",
        "lp-plain\n",
        "lp plain",
        "lp-pläin",
        "$(reboot)",
        "lp-plain=1.0-1",
        "lp-plain/stable",
        "LP-PLAIN",
        "lp*",
        "lp-plain:",
        "lp-plain:../amd64",
        "./lp-plain.deb",
    ] {
        let body = json!({"packages": [{"name": name}]});
        ensure_refused(&agent.send("POST", "/packages", &body)?, 422, "INVALID_REQUEST", name)?;
    }
    for version in ["", "1.0-1;reboot", "-1", "1 0", "1.0\0", "../1", "ä", &"1".repeat(257)] {
        let body = json!({"packages": [{"name": "lp-plain", "version": version}]});
        ensure_refused(&agent.send("POST", "/packages", &body)?, 422, "INVALID_REQUEST", version)?;
    }
    for name in ["-o", "lp_plain", "LP", &too_long] {
        ensure_refused(&agent.get(&format!("/packages/{name}"))?, 422, "INVALID_REQUEST", name)?;
    }
    Ok(())
}

fn sizes(agent: &Agent) -> Result<()> {
    let many = |count: usize| {
        let packages: Vec<Value> = (0..count).map(|n| json!({"name": format!("lp-none-{n}")})).collect();
        json!({"packages": packages, "options": {"dry_run": true}})
    };
    let answer = agent.send("POST", "/packages", &many(1000))?;
    ensure!(answer.code() == "PKG_NOT_FOUND", "1000 packages: {}", answer.text);
    ensure_refused(&agent.send("POST", "/packages", &many(1001))?, 422, "INVALID_REQUEST", "1001 packages")?;

    let sized = |length: usize| -> Result<Answer> {
        let start = "{\"packages\": [{\"name\": \"lp-none\"}], \"options\": {\"dry_run\": true}";
        let body = format!("{start}{}}}", " ".repeat(length - start.len() - 1));
        let file = agent.pki.path().join("body.json");
        std::fs::write(&file, body)?;
        let data = format!("@{}", file.display());
        agent.curl("/packages", &["--header", "content-type: application/json", "--data-binary", &data])
    };
    let mebibyte = 1 << 20;
    let answer = sized(mebibyte)?;
    ensure!(answer.code() == "PKG_NOT_FOUND", "a body of exactly 1 MiB: {}", answer.text);
    ensure_refused(&sized(mebibyte + 1)?, 413, "INVALID_REQUEST", "1 MiB and a byte")?;
    ensure_refused(&sized(2 * mebibyte)?, 413, "INVALID_REQUEST", "2 MiB")?;

    // The request line and all headers together, as they are counted: the line, and four bytes a header besides.
    let headers_of = |total: usize| -> Result<Answer> {
        let lines = "GET /api/v1/health HTTP/1.1\r\nhost: agent\r\nconnection: close\r\nx-filling: \r\n\r\n";
        let filling = "f".repeat(total - lines.len());
        parse(&agent.raw(lines.replace("x-filling: ", &format!("x-filling: {filling}")).as_bytes())?)
    };
    let answer = headers_of(8192)?;
    ensure!(answer.status == 200, "headers of 8 KiB: {} {}", answer.headers, answer.text);
    ensure_refused(&headers_of(8200)?, 431, "INVALID_REQUEST", "headers over 8 KiB")?;
    // Beyond 16 KiB the HTTP library itself refuses.
    let answer = headers_of(40_000)?;
    ensure!(answer.status == 431, "headers of 40 kB: {}", answer.headers);
    Ok(())
}

fn paths_and_methods(agent: &Agent) -> Result<()> {
    for path in [
        "/packages/../health",
        "/../../etc/passwd",
        "/packages/./lp-plain",
        "/packages/lp%2Fplain",
        "/packages/lp%2fplain",
        "/packages/lp-plain%00",
        "/packages//lp-plain",
        "//health",
        "/packages/%2e%2e/health",
        "/packages/lp%",
        "/packages/lp%zz",
        "/packages/lp\\plain",
        "/packages/%FF",
    ] {
        let answer = parse(&agent.raw(head("GET", path, "").as_bytes())?)?;
        ensure_refused(&answer, 400, "INVALID_REQUEST", path)?;
    }
    for path in ["/", "/nothing", "/packages/lp-plain/files", "/health/", "/jobs/x/y/z"] {
        ensure_refused(&agent.get(path)?, 404, "INVALID_REQUEST", path)?;
    }
    let outside = format!("https://{}:12443/", agent.host.ip());
    let (cert, key) = (agent.pem("alice.pem"), agent.pem("alice.key.pem"));
    let answer = agent.curl_at(&outside, &["--cert", &cert, "--key", &key])?;
    ensure_refused(&answer, 404, "INVALID_REQUEST", "/")?;
    for (method, path, allowed) in [
        ("PATCH", "/packages", &["GET", "POST"][..]),
        ("DELETE", "/packages", &["GET", "POST"]),
        ("POST", "/packages/lp-plain", &["GET", "PUT", "DELETE"]),
        ("PUT", "/health", &["GET"]),
        ("GET", "/patches/apply", &["POST"]),
        ("BREW", "/health", &["GET"]),
    ] {
        let answer = agent.curl(path, &["--request", method])?;
        ensure_refused(&answer, 405, "INVALID_REQUEST", &format!("{method} {path}"))?;
        let allow = answer.headers.lines().find_map(|line| line.strip_prefix("allow: ")).unwrap_or_default();
        for method in allowed {
            ensure!(allow.contains(&method.to_ascii_lowercase()), "{path} allows {allow:?}, not {method}");
        }
    }
    Ok(())
}

fn headers(agent: &Agent) -> Result<()> {
    let body = "{\"packages\": [{\"name\": \"lp-plain\"}]}";
    let length = format!("content-length: {}\r\n", body.len());
    for (headers, status) in [
        (format!("{JSON}{JSON}{length}"), 400),
        (format!("{JSON}{length}idempotency-key: a\r\nidempotency-key: b\r\n"), 400),
        (format!("{JSON}{length}authorization: a\r\nauthorization: b\r\n"), 400),
        (format!("content-type: text/plain\r\n{length}"), 415),
        (format!("content-type: application/x-www-form-urlencoded\r\n{length}"), 415),
        (format!("content-type: application/json; charset=latin1\r\n{length}"), 415),
        (format!("{JSON}content-encoding: gzip\r\n{length}"), 415),
        (length.clone(), 415),
    ] {
        let request = format!("{}{body}", head("POST", "/packages", &headers));
        let answer = parse(&agent.raw(request.as_bytes())?)?;
        ensure_refused(&answer, status, "INVALID_REQUEST", &headers)?;
    }
    let chunked = format!(
        "{}{:x}\r\n{body}\r\n0\r\n\r\n",
        head("POST", "/packages", &format!("{JSON}transfer-encoding: chunked\r\n")),
        body.len()
    );
    ensure_refused(&parse(&agent.raw(chunked.as_bytes())?)?, 411, "INVALID_REQUEST", "chunked")?;
    let twice = agent.raw(format!("{}GET", head("GET", "/health", "host: other\r\n")).as_bytes())?;
    ensure_refused(&parse(&twice)?, 400, "INVALID_REQUEST", "two hosts")?;
    // What is no HTTP at all is refused by the library, without the envelope, or dropped.
    for garbage in
        [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0\0\0\0\r\n\r\n"]
    {
        let text = agent.raw(garbage)?;
        ensure!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{garbage:?}: {text}");
    }

    let id = "0191e0a0-1111-7222-8333-444455556666";
    let answer = agent.curl("/health", &["--header", &format!("X-Request-Id: {id}")])?;
    ensure!(answer.body["request_id"] == id && answer.headers.contains(id), "{}", answer.text);
    let answer = agent.curl("/health", &["--header", "X-Request-Id: made up"])?;
    let own = answer.body["request_id"].as_str().unwrap_or_default();
    ensure!(
        answer.status == 200 && uuid::Uuid::parse_str(own).is_ok_and(|own| !own.is_nil()),
        "{}",
        answer.text
    );
    Ok(())
}

fn queries_and_ids(agent: &Agent) -> Result<()> {
    for (path, field) in [
        ("/packages?nmae=lp-plain", "nmae"),
        ("/packages?name=lp-plain&name=lp-lib", "name"),
        ("/packages?limit=-1", "limit"),
        ("/packages?limit=0", "limit"),
        ("/packages?upgradable=maybe", "upgradable"),
        ("/packages?sort=colour", "sort"),
        ("/packages?name=", "name"),
        ("/jobs?state=running", "state"),
        ("/jobs?status=lost", "status"),
        ("/health?verbose=1", "verbose"),
        ("/patches?security=1", "security"),
    ] {
        let answer = agent.get(path)?;
        ensure_refused(&answer, 422, "INVALID_REQUEST", path)?;
        ensure!(
            answer.body["error"]["message"].as_str().is_some_and(|m| m.contains(field)),
            "{path}: {}",
            answer.text
        );
    }
    let unknown = uuid::Uuid::from_u128(0x0191_e0a0_1111_7222_8333_4444_5555_6666);
    for (method, path) in [("GET", ""), ("DELETE", ""), ("POST", "/rollback"), ("POST", "/confirm")] {
        let answer = agent.curl(&format!("/jobs/{unknown}{path}"), &["--request", method])?;
        ensure_refused(&answer, 404, "JOB_NOT_FOUND", &format!("{method} {path}"))?;
    }
    for id in ["17", "not-a-job", "0191e0a0-1111-7222-8333-44445555666", "0191e0a0111172228333444455556666x"]
    {
        ensure_refused(&agent.get(&format!("/jobs/{id}"))?, 422, "INVALID_REQUEST", id)?;
    }
    ensure_refused(&agent.get("/ws/jobs")?, 422, "INVALID_REQUEST", "no upgrade")
}

fn unavailable(agent: &Agent) -> Result<()> {
    let answer = agent.send("POST", "/patches/apply", &json!({"unrehearsed": "simulate"}))?;
    ensure_refused(&answer, 422, "INVALID_REQUEST", "no rehearsal to do without")?;
    let long = json!({"reason": "r".repeat(1001)});
    ensure_refused(&agent.send("POST", "/system/reboot", &long)?, 422, "INVALID_REQUEST", "a long reason")
}

fn preferences_and_keys(agent: &Agent) -> Result<()> {
    let post = |body: &Value, headers: &[&str]| -> Result<Answer> {
        let body = body.to_string();
        let mut arguments = vec!["--header", "content-type: application/json", "--data-binary", &body];
        arguments.extend(headers.iter().flat_map(|header| ["--header", header]));
        agent.curl("/packages", &arguments)
    };
    let plain = json!({"packages": [{"name": "lp-plain"}]});
    let answer = post(&plain, &["Prefer: wait=25"])?;
    ensure!(
        answer.status == 200
            && answer.data()?["status"] == "completed"
            && answer.headers.contains("preference-applied: wait=25"),
        "{} {}",
        answer.headers,
        answer.text
    );
    let answer = post(&plain, &["Prefer: wait=0"])?;
    ensure!(answer.status == 202 && answer.headers.contains("location: /api/v1/jobs/"), "{}", answer.headers);
    agent.end_of(answer.data()?["job_id"].as_str().context("no job")?)?;

    let key = "Idempotency-Key: first";
    let first = post(&plain, &[key])?;
    let again = post(&plain, &[key])?;
    ensure!(
        first.status == 202 && again.data()?["job_id"] == first.data()?["job_id"],
        "{} {}",
        first.text,
        again.text
    );
    let other = post(&json!({"packages": [{"name": "lp-tools"}]}), &[key])?;
    ensure_refused(&other, 422, "INVALID_REQUEST", "the key with another body")?;
    let long = format!("Idempotency-Key: {}", "k".repeat(256));
    ensure_refused(&post(&plain, &[&long])?, 422, "INVALID_REQUEST", "a long key")?;
    agent.end_of(first.data()?["job_id"].as_str().context("no job")?)?;
    let late = post(&plain, &[key])?;
    ensure!(late.data()?["job_id"] == first.data()?["job_id"], "{}", late.text);
    Ok(())
}

fn what_only_the_solver_knows(agent: &Agent) -> Result<()> {
    for (package, code) in [
        (json!({"name": "lp-no-such-thing"}), "PKG_NOT_FOUND"),
        (json!({"name": "lp-plain", "version": "9.9-9"}), "PKG_VERSION_CONFLICT"),
    ] {
        let job = agent.change("POST", "/packages", &json!({"packages": [package]}))?;
        ensure!(
            job["status"] == "failed" && job["error_detail"]["code"] == code && job["error"].is_string(),
            "{job:#}"
        );
    }
    Ok(())
}
