//! A client of the FleetLock protocol: a lock that lets few hosts of a fleet reboot at a time.
//!
//! A host asks for it before it reboots (`v1/pre-reboot`) and gives it back when it is in service again (`v1/steady-state`).
//! Both can be said again without harm. The protocol: <https://coreos.github.io/zincati/development/fleetlock/protocol/>.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use patch_notify::{
    Reason,
    exchange::{Server as Asked, Unanswered},
};
use serde::{Deserialize, Serialize};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The most that an answer may be, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// The longest part of an answer that is shown, in characters.
const MAX_SHOWN: usize = 300;

/// Where the lock is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub(crate) struct Server {
    /// As it is written, for people.
    url: String,
    tls: bool,
    /// The name or address, an IPv6 address in brackets.
    host: String,
    port: u16,
    /// What stands before `v1/`; with a slash at both ends.
    path: String,
    group: String,
    /// The CAs that may have signed its certificate; the system's if there is none.
    ca_file: Option<PathBuf>,
}

/// A server as it is configured.
#[derive(Serialize, Deserialize)]
struct Written {
    url: String,
    group: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
}

impl From<Server> for Written {
    fn from(server: Server) -> Self {
        Self { url: server.url, group: server.group, ca_file: server.ca_file }
    }
}

impl TryFrom<Written> for Server {
    type Error = anyhow::Error;

    fn try_from(written: Written) -> anyhow::Result<Self> {
        Self::new(&written.url, &written.group, written.ca_file.as_deref())
    }
}

/// Why the answer is not yes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// The server says no, or was never asked: the host does not have the lock for that.
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
    pub(crate) fn new(url: &str, group: &str, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let form = || format!("{url:?} is not a URL of the form http://HOST[:PORT][/PATH], or https");
        let (tls, rest) = match url.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, url.strip_prefix("http://").with_context(form)?),
        };
        if let Some(file) = ca_file {
            ensure!(file.is_absolute(), "the CA's file {} is not an absolute path", file.display());
            ensure!(tls, "a CA's file is named, but {url:?} is not https");
        }
        let plain = |b: u8| b.is_ascii_graphic() && !b"\"<>\\^`{|}#?@".contains(&b);
        ensure!(rest.len() <= 2048 && rest.bytes().all(plain), form());
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|p| *p > 0)),
            _ => (authority, Some(if tls { 443 } else { 80 })),
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
        Ok(Self {
            url: url.to_owned(),
            tls,
            host: host.to_owned(),
            port,
            path,
            group: group.to_owned(),
            ca_file: ca_file.map(Path::to_owned),
        })
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
        let unknown = |why: String| LockError::Unknown(format!("{} cannot be asked: {why}", self.url));
        let body = Body { client_params: ClientParams { id, group: &self.group } };
        let body = serde_json::to_string(&body).map_err(|error| unknown(error.to_string()))?;
        let answer = self.exchange(step, &body, end).map_err(|Unanswered { error, is_sent }| {
            let why = match error.reason {
                Reason::Certificate | Reason::Settings => error.to_string(),
                // What to do about anything else is as for mail.
                _ => error.message,
            };
            if is_sent {
                unknown(why)
            } else {
                LockError::Refused(format!("{} cannot be asked: {why}", self.url))
            }
        })?;
        if answer.len() > MAX_ANSWER {
            return Err(unknown(format!("the answer is longer than {MAX_ANSWER} bytes")));
        }
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

    /// Whether it is the same lock, however it is reached.
    pub(crate) fn is_same_lock(&self, other: &Self) -> bool {
        (&self.url, &self.group) == (&other.url, &other.group)
    }

    fn exchange(&self, step: Step, body: &str, end: Instant) -> Result<Vec<u8>, Unanswered> {
        let address = format!("{}:{}", self.host, self.port);
        let request = format!(
            "POST {}{} HTTP/1.1\r\nhost: {address}\r\nfleet-lock-protocol: true\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.path,
            step.path(),
            body.len()
        );
        let server = Asked {
            whom: &address,
            tls: self.tls,
            host: self.host.trim_start_matches('[').trim_end_matches(']'),
            port: self.port,
            ca_file: self.ca_file.as_deref(),
        };
        let is_enough = |answer: &[u8]| answer.len() > MAX_ANSWER || is_whole(answer);
        server.exchange(request.as_bytes(), end, is_enough)
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
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn urls_are_taken_or_refused() {
        for (url, host, port, path) in [
            ("http://lock", "lock", 80, "/"),
            ("http://lock.example.org:8080/", "lock.example.org", 8080, "/"),
            ("http://127.0.0.1:3333/fleet/lock/", "127.0.0.1", 3333, "/fleet/lock/"),
            ("http://[::1]:80/x", "[::1]", 80, "/x/"),
            ("http://[::1]", "[::1]", 80, "/"),
            ("https://lock", "lock", 443, "/"),
            ("https://[::1]:8443/x", "[::1]", 8443, "/x/"),
        ] {
            let server = Server::new(url, "default", None).unwrap();
            assert_eq!((&*server.host, server.port, &*server.path), (host, port, path), "{url}");
            assert_eq!(server.tls, url.starts_with("https"));
        }
        for (url, group, word) in [
            ("ftp://lock", "default", "http://HOST"),
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
            let error = Server::new(url, group, None).unwrap_err().to_string();
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
        (Server::new(&url, "workers", None).unwrap(), thread)
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
        // Who hangs up before it was asked anything has given nothing; who does so after that may have.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for scheme in ["https", "http"] {
            let url = format!("{scheme}://{}", listener.local_addr().unwrap());
            let server = Server::new(&url, "workers", None).unwrap();
            let error = std::thread::scope(|scope| {
                let asked = scope.spawn(|| server.ask(Step::PreReboot, "1").unwrap_err());
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; 1]).unwrap();
                drop(stream);
                asked.join().unwrap()
            });
            assert_eq!(matches!(error, LockError::Unknown(_)), scheme == "http", "{error}");
        }
        let nobody = Server::new("http://127.0.0.1:1", "default", None).unwrap();
        assert!(nobody.ask(Step::PreReboot, "1").unwrap_err().to_string().contains("cannot be asked"));
    }
}
