//! A client of the FleetLock protocol: a lock that lets few hosts of a fleet reboot at a time.
//!
//! A host asks for it before it reboots (`v1/pre-reboot`) and gives it back when it is in service again (`v1/steady-state`).
//! Both can be said again without harm. The protocol: <https://coreos.github.io/zincati/development/fleetlock/protocol/>.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The most that an answer may be, in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// The longest part of an answer that is shown, in characters.
const MAX_SHOWN: usize = 300;

/// Where the lock is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub(crate) struct Server {
    /// As it is written, for people.
    url: String,
    /// The name or address, an IPv6 address in brackets.
    host: String,
    port: u16,
    /// What stands before `v1/`; with a slash at both ends.
    path: String,
    group: String,
}

/// A server as it is configured.
#[derive(Serialize, Deserialize)]
struct Written {
    url: String,
    group: String,
}

impl From<Server> for Written {
    fn from(server: Server) -> Self {
        Self { url: server.url, group: server.group }
    }
}

impl TryFrom<Written> for Server {
    type Error = anyhow::Error;

    fn try_from(written: Written) -> anyhow::Result<Self> {
        Self::new(&written.url, &written.group)
    }
}

/// Why the answer is not yes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// The server says no.
    #[error("{0}")]
    Refused(String),
    /// There is no answer, so it may be either.
    #[error("{0}")]
    Unknown(String),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// May this host reboot?
    PreReboot,
    /// It is in service.
    SteadyState,
}

impl Step {
    fn path(self) -> &'static str {
        match self {
            Self::PreReboot => "v1/pre-reboot",
            Self::SteadyState => "v1/steady-state",
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    client_params: ClientParams<'a>,
}

#[derive(Serialize)]
struct ClientParams<'a> {
    id: &'a str,
    group: &'a str,
}

/// A refusal, as the protocol has it.
#[derive(Deserialize)]
struct Refusal {
    kind: String,
    value: String,
}

impl Server {
    /// The server at a URL, for the hosts of a group.
    ///
    /// # Errors
    /// When it is not a URL that can be asked, or not a group's name.
    pub(crate) fn new(url: &str, group: &str) -> anyhow::Result<Self> {
        if url.starts_with("https:") {
            bail!(
                "{url:?} is an https URL, but this program speaks no TLS; let a local proxy speak it, and write its address \
                 such as http://127.0.0.1:8080"
            );
        }
        let form = || format!("{url:?} is not a URL of the form http://HOST[:PORT][/PATH]");
        let rest = url.strip_prefix("http://").with_context(form)?;
        let plain = |b: u8| b.is_ascii_graphic() && !b"\"<>\\^`{|}#?@".contains(&b);
        ensure!(rest.len() <= 2048 && rest.bytes().all(plain), form());
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|p| *p > 0)),
            _ => (authority, Some(80)),
        };
        let port = port.with_context(form)?;
        let address = format!("{host}:{port}");
        ensure!(patch_types::settings::is_host_and_port(&address), form());
        let known = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        ensure!(
            (1..=128).contains(&group.len()) && group.bytes().all(known),
            "the group {group:?} is not made of letters, digits, dots, dashes and underscores"
        );
        let path = path.trim_matches('/');
        let path = if path.is_empty() { "/".to_owned() } else { format!("/{path}/") };
        Ok(Self { url: url.to_owned(), host: host.to_owned(), port, path, group: group.to_owned() })
    }

    /// The URL, for people.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Asks on behalf of a host.
    ///
    /// # Errors
    /// When the answer is no, or there is none.
    pub(crate) fn ask(&self, step: Step, id: &str) -> Result<(), LockError> {
        let end = Instant::now() + PATIENCE;
        let answer = self
            .exchange(step, id, end)
            .map_err(|error| LockError::Unknown(format!("{} cannot be asked: {error:#}", self.url)))?;
        let Some((status, body)) = parse(&answer) else {
            return Err(LockError::Unknown(format!("{} gives no answer in HTTP", self.url)));
        };
        if (200..300).contains(&status) {
            return Ok(());
        }
        let shown: String = match serde_json::from_slice::<Refusal>(body) {
            Ok(refusal) => format!("{} ({})", refusal.value, refusal.kind),
            Err(_) => String::from_utf8_lossy(body).into_owned(),
        };
        let shown: String = shown.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect();
        let said = format!("{} answers {status}: {shown}", self.url);
        Err(if status >= 500 { LockError::Unknown(said) } else { LockError::Refused(said) })
    }

    fn exchange(&self, step: Step, id: &str, end: Instant) -> anyhow::Result<Vec<u8>> {
        let body = Body { client_params: ClientParams { id, group: &self.group } };
        let body = serde_json::to_string(&body)?;
        let address = format!("{}:{}", self.host, self.port);
        let request = format!(
            "POST {}{} HTTP/1.1\r\nhost: {address}\r\nfleet-lock-protocol: true\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.path,
            step.path(),
            body.len()
        );
        let left = || {
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "it did not answer within {} s", PATIENCE.as_secs());
            Ok(left)
        };
        let mut last = None;
        for address in address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, left()?) {
                Ok(stream) => {
                    last = Some(Ok(stream));
                    break;
                }
                Err(error) => last = Some(Err(error)),
            }
        }
        let mut stream = last.context("its name has no address")??;
        stream.set_write_timeout(Some(left()?))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        loop {
            // Each read anew, or a server that sends a byte now and then would never end.
            stream.set_read_timeout(Some(left()?))?;
            let read = stream.read(&mut part)?;
            answer.extend_from_slice(part.get(..read).unwrap_or_default());
            ensure!(answer.len() as u64 <= MAX_ANSWER, "the answer is longer than {MAX_ANSWER} bytes");
            if read == 0 || is_whole(&answer) {
                return Ok(answer);
            }
        }
    }
}

/// Whether an answer whose length is told is there; some servers keep the connection open though they were asked not to.
fn is_whole(answer: &[u8]) -> bool {
    let Some((head, body)) = split(answer) else { return false };
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|length| body.len() >= length)
}

fn split(answer: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((answer.get(..end)?, answer.get(end + 4..)?))
}

/// The status and the body of an answer.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let (head, body) = split(answer)?;
    let line = head.split(|b| *b == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split(' ');
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    let status = words.next().filter(|word| word.len() == 3)?.parse().ok()?;
    Some((status, body))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn urls_are_taken_or_refused() {
        for (url, host, port, path) in [
            ("http://lock", "lock", 80, "/"),
            ("http://lock.example.org:8080/", "lock.example.org", 8080, "/"),
            ("http://127.0.0.1:3333/fleet/lock/", "127.0.0.1", 3333, "/fleet/lock/"),
            ("http://[::1]:80/x", "[::1]", 80, "/x/"),
            ("http://[::1]", "[::1]", 80, "/"),
        ] {
            let server = Server::new(url, "default").unwrap();
            assert_eq!((&*server.host, server.port, &*server.path), (host, port, path), "{url}");
        }
        for (url, group, word) in [
            ("https://lock", "default", "no TLS"),
            ("lock", "default", "http://HOST"),
            ("http://", "default", "http://HOST"),
            ("http://a b", "default", "http://HOST"),
            ("http://a\r\nx: y", "default", "http://HOST"),
            ("http://me@lock", "default", "http://HOST"),
            ("http://lock:0", "default", "http://HOST"),
            ("http://-x", "default", "http://HOST"),
            ("http://lock", "", "group"),
            ("http://lock", "a\"b", "group"),
        ] {
            let error = Server::new(url, group).unwrap_err().to_string();
            assert!(error.contains(word), "{url}: {error}");
        }
    }

    /// Answers one request, and gives it.
    fn answering(answer: &'static str) -> (Server, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut part = [0; 512];
            while !is_whole(&request) {
                let read = stream.read(&mut part).unwrap();
                request.extend_from_slice(&part[..read]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (Server::new(&url, "workers").unwrap(), thread)
    }

    #[test]
    fn what_is_sent_is_the_protocols() {
        let (server, thread) = answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        server.ask(Step::PreReboot, "0123456789abcdef").unwrap();
        let request = thread.join().unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /base/v1/pre-reboot HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nfleet-lock-protocol: true\r\n"), "{head}");
        assert_eq!(body, r#"{"client_params":{"id":"0123456789abcdef","group":"workers"}}"#);
    }

    #[test]
    fn a_refusal_is_told_in_the_servers_words() {
        let refusal = "HTTP/1.1 409 Conflict\r\n\r\n{\"kind\":\"failed_lock\",\"value\":\"all slots are \\u001btaken\"}";
        let (server, thread) = answering(refusal);
        let error = server.ask(Step::SteadyState, "1").unwrap_err().to_string();
        assert!(error.ends_with("answers 409: all slots are taken (failed_lock)"), "{error}");
        assert!(thread.join().unwrap().starts_with("POST /base/v1/steady-state "));
        for answer in ["HTTP/1.1 200\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n", ""] {
            let (server, thread) = answering(answer);
            assert!(server.ask(Step::PreReboot, "1").is_err(), "{answer:?}");
            thread.join().unwrap();
        }
        let nobody = Server::new("http://127.0.0.1:1", "default").unwrap();
        assert!(nobody.ask(Step::PreReboot, "1").unwrap_err().to_string().contains("cannot be asked"));
    }
}
