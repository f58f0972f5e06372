//! The checks that speak to the network, made by an unprivileged child: what answers may be hostile.
//!
//! The child is this program anew, `patch-executor check`. It becomes `nobody` before it does anything else. What to
//! check is in its environment, which others cannot read; its answer is one line of JSON.

use std::{
    io::{self, Write},
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use nix::unistd::{Uid, User, geteuid, getresgid, getresuid, setgroups, setresgid, setresuid, setuid};
use patch_apply::{apt::argv::Argv, run};
use patch_types::settings::HealthCheck;
use serde::{Deserialize, Serialize};

/// Where the child finds what to check.
pub(crate) const VARIABLE: &str = "LINUX_PATCH_CHECK";

/// This program, also when its file has been replaced meanwhile.
const MYSELF: &str = "/proc/self/exe";

/// How long the child may take longer than its check, for starting and ending.
const GRACE: Duration = Duration::from_secs(3);

/// How long is waited before a check that did not hold is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The longest reason that is passed on, in characters.
const MAX_REASON: usize = 500;

/// The most that a server's header may take, in bytes. The body is not read.
const MAX_HEADER: usize = 32 * 1024;

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// Why the check does not hold; absent if it does.
    problem: Option<String>,
}

/// Has a check made by an unprivileged child; gives why it does not hold.
pub(super) fn in_child(check: &HealthCheck) -> Result<(), String> {
    in_child_of(MYSELF, check, GRACE)
}

fn in_child_of(program: &'static str, check: &HealthCheck, grace: Duration) -> Result<(), String> {
    let text = serde_json::to_string(check).map_err(|error| error.to_string())?;
    let mut argv = Argv::new(program, vec!["check".into()]);
    argv.environment.push((VARIABLE, text));
    let said = run::capture(&argv, check.timeout() + grace).map_err(|error| error.to_string())?;
    match serde_json::from_str::<Answer>(said.stdout.trim_end()) {
        Ok(Answer { problem: None }) if said.code == Some(0) => Ok(()),
        Ok(Answer { problem: Some(problem) }) => Err(printable(&problem)),
        _ => Err(format!("the check could not be made: {}", printable(said.stderr.trim()))),
    }
}

/// What may be shown and logged of what came from outside.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect()
}

/// `patch-executor check`: the child.
pub(crate) fn child() -> anyhow::Result<()> {
    let text = std::env::var(VARIABLE).with_context(|| format!("{VARIABLE} does not say what to check"))?;
    let check: HealthCheck = serde_json::from_str(&text).context("what to check is not understood")?;
    become_nobody().context("cannot give up root")?;
    let answer = Answer { problem: attempt(&check).err() };
    let line = serde_json::to_string(&answer).context("the answer cannot be written")?;
    writeln!(io::stdout(), "{line}").context("the answer cannot be written")
}

/// Gives root up for good, if this is root.
fn become_nobody() -> anyhow::Result<()> {
    if geteuid().is_root() {
        let nobody = User::from_name("nobody")?.context("there is no user nobody")?;
        ensure!(!nobody.uid.is_root(), "the user nobody is root");
        setgroups(&[])?;
        setresgid(nobody.gid, nobody.gid, nobody.gid)?;
        setresuid(nobody.uid, nobody.uid, nobody.uid)?;
        let (users, groups) = (getresuid()?, getresgid()?);
        ensure!(
            [users.real, users.effective, users.saved].iter().all(|uid| *uid == nobody.uid)
                && [groups.real, groups.effective, groups.saved].iter().all(|gid| *gid == nobody.gid),
            "still somebody else than nobody"
        );
        ensure!(setuid(Uid::from_raw(0)).is_err(), "root can be had again");
    }
    // Nothing that this starts could be root either; it starts nothing.
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Makes a check again and again until it holds or its time is over.
fn attempt(check: &HealthCheck) -> Result<(), String> {
    until(Instant::now() + check.timeout(), |left| match check {
        HealthCheck::Tcp { address, .. } => tcp(address, left),
        HealthCheck::Http { url, expect_status, .. } => http(url, *expect_status, left),
        HealthCheck::Command { .. } | HealthCheck::Systemd { .. } => Err("not a check of the network".into()),
    })
}

/// Repeats what does not hold, once a second, until `deadline`; gives the last reason.
pub(super) fn until(
    deadline: Instant,
    mut once: impl FnMut(Duration) -> Result<(), String>,
) -> Result<(), String> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let result = once(left.max(Duration::from_millis(1)));
        if result.is_ok() || deadline.saturating_duration_since(Instant::now()) <= AGAIN {
            return result;
        }
        std::thread::sleep(AGAIN);
    }
}

fn tcp(address: &str, limit: Duration) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    // Not limited here: the resolver has limits of its own, and whoever started us ends us.
    let addresses =
        address.to_socket_addrs().map_err(|error| format!("{address} cannot be resolved: {error}"))?;
    let mut problem = format!("{address} has no address");
    for one in addresses {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&one, left) {
            Ok(_) => return Ok(()),
            Err(error) => problem = format!("cannot connect to {one}: {error}"),
        }
    }
    Err(problem)
}

fn http(url: &str, expect_status: Option<u16>, limit: Duration) -> Result<(), String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        // The status is what was asked for, also that of a redirection.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_response_header_size(MAX_HEADER)
        .input_buffer_size(MAX_HEADER)
        .timeout_global(Some(limit))
        .user_agent("linux-patch-api")
        .build()
        .into();
    let answer = agent.get(url).call().map_err(|error| format!("{url} does not answer: {error}"))?;
    let status = answer.status().as_u16();
    match expect_status {
        Some(wanted) if wanted == status => Ok(()),
        Some(wanted) => Err(format!("{url} answers with {status}, not with {wanted}")),
        None if (200..=299).contains(&status) => Ok(()),
        None => Err(format!("{url} answers with {status}, which is no success")),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read,
        net::{SocketAddr, TcpListener},
        os::unix::fs::PermissionsExt,
        thread,
    };

    use super::*;

    /// A server that treats each connection like this, until the test's end.
    fn serve(answer: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + Clone + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = answer.clone();
                thread::spawn(move || answer(stream));
            }
        });
        address
    }

    fn says(text: &'static str) -> SocketAddr {
        serve(move |mut stream| {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request)?;
            stream.write_all(text.as_bytes())
        })
    }

    /// A port on which nobody listens.
    fn closed() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn get(address: SocketAddr, status: Option<u16>, limit: u64) -> Result<(), String> {
        http(&format!("http://{address}/health?x=1"), status, Duration::from_millis(limit))
    }

    #[test]
    fn a_page_counts_by_its_status() {
        let fine = says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(get(fine, None, 5000), Ok(()));
        assert_eq!(get(fine, Some(200), 5000), Ok(()));
        assert!(get(fine, Some(204), 5000).unwrap_err().contains("answers with 200, not with 204"));
        let broken = says("HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n");
        assert!(get(broken, None, 5000).unwrap_err().contains("503"));
        assert_eq!(get(broken, Some(503), 5000), Ok(()));
        let elsewhere =
            says("HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(get(elsewhere, Some(302), 5000), Ok(()), "redirections are not followed");
        assert!(get(elsewhere, None, 5000).unwrap_err().contains("302"));
        assert!(get(closed(), None, 5000).unwrap_err().contains("does not answer"));
        assert!(get(says("SSH-2.0-x\r\n"), None, 5000).is_err());
        assert!(get(says(""), None, 5000).is_err());
    }

    #[test]
    fn a_body_without_end_is_not_read() {
        let endless = serve(|mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                stream.write_all(&[b'x'; 4096])?;
            }
        });
        assert_eq!(get(endless, None, 10_000), Ok(()));
    }

    #[test]
    fn hostile_servers_are_bounded_in_bytes_and_time() {
        let headers = serve(|mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
            loop {
                stream.write_all(b"X-More: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n")?;
            }
        });
        let line = serve(|mut stream| {
            loop {
                stream.write_all(&[b'H'; 4096])?;
            }
        });
        let interim = serve(|mut stream| {
            loop {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
        });
        let drip = serve(|mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nX: ")?;
            loop {
                stream.write_all(b"x")?;
                thread::sleep(Duration::from_millis(20));
            }
        });
        let silent = serve(|mut stream| stream.read_to_end(&mut Vec::new()).map(|_| ()));
        for (what, address) in
            [("headers", headers), ("line", line), ("interim", interim), ("drip", drip), ("silent", silent)]
        {
            let begun = Instant::now();
            assert!(get(address, None, 700).is_err(), "{what}");
            assert!(begun.elapsed() < Duration::from_secs(10), "{what}: {:?}", begun.elapsed());
        }
    }

    #[test]
    fn a_port_counts_if_it_accepts() {
        let limit = Duration::from_secs(5);
        assert_eq!(tcp(&says("").to_string(), limit), Ok(()));
        assert!(tcp(&closed().to_string(), limit).unwrap_err().contains("cannot connect to 127.0.0.1"));
        assert!(tcp("name.invalid:1", limit).unwrap_err().contains("cannot be resolved"));
    }

    #[test]
    fn what_does_not_hold_is_tried_again_until_its_time_is_over() {
        let mut tries = 0;
        let soon = Instant::now() + Duration::from_secs(60);
        let second = until(soon, |_| {
            tries += 1;
            if tries == 2 { Ok(()) } else { Err("not yet".into()) }
        });
        assert_eq!((second, tries), (Ok(()), 2));
        let mut tries = 0;
        let never = until(Instant::now(), |_| {
            tries += 1;
            Err(format!("{tries}"))
        });
        assert_eq!(never, Err("1".into()), "once at least");
    }

    fn program(script: &str) -> (tempfile::TempDir, &'static str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("child");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path.to_str().unwrap().to_owned().leak())
    }

    #[test]
    fn a_childs_word_is_taken_only_in_its_form() {
        let check = HealthCheck::Tcp { address: "x:1".into(), timeout_seconds: Some(1) };
        let short = Duration::ZERO;
        for (script, wanted) in [
            (r#"[ "$1" = check ] && echo '{"problem":null}'"#, Ok(())),
            (r#"printf %s "$LINUX_PATCH_CHECK" | grep -q x:1 && echo '{"problem":null}'"#, Ok(())),
            (r#"echo '{"problem":"no\u001b[31m"}'"#, Err("no[31m")),
            (r#"echo '{"problem":null}'; exit 1"#, Err("could not be made")),
            ("echo fine", Err("could not be made")),
            ("echo cannot give up root >&2; exit 1", Err("cannot give up root")),
            ("exec sleep 60", Err("did not end within")),
            ("exec sleep 60 >&- 2>&-", Err("did not end within")),
        ] {
            let (_dir, program) = program(script);
            match (in_child_of(program, &check, short), wanted) {
                (Ok(()), Ok(())) => {}
                (Err(problem), Err(wanted)) if problem.contains(wanted) => {}
                (other, _) => panic!("{script}: {other:?}"),
            }
        }
    }
}
