//! Records as RFC 5424 has them, and where they go.

use std::{
    fmt::{self, Write as _},
    str::FromStr,
};

use crate::{event::Priority, reader::Record};

/// "log audit", as RFC 5424 numbers facilities.
const FACILITY: u8 = 13;

/// The name of our structured data. 32473 is the number that is reserved for those who have none of their own.
const SD_ID: &str = "patch@32473";

/// The longest value of structured data in bytes; the local trail has it in full.
const MAX_VALUE: usize = 4 << 10;

/// The longest datagram in bytes: what RFC 5426 asks every receiver to take.
const MAX_DATAGRAM: usize = 2048;

/// How records travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram each (RFC 5426).
    Udp,
    /// With their length before them (RFC 6587).
    Tcp,
    /// The same within TLS (RFC 5425).
    Tls,
}

/// A syslog server: `HOST:PORT` with `udp://`, `tcp://` or `tls://` before it. Without a scheme it is UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// How records travel.
    pub transport: Transport,
    /// Its name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// A text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HOST:PORT, optionally after udp://, tcp:// or tls://")]
pub struct TargetError(String);

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let bad = || TargetError(text.to_owned());
        let (transport, rest) = match text.split_once("://") {
            None | Some(("udp", _)) => (Transport::Udp, text.strip_prefix("udp://").unwrap_or(text)),
            Some(("tcp", rest)) => (Transport::Tcp, rest),
            Some(("tls", rest)) => (Transport::Tls, rest),
            Some(_) => return Err(bad()),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?;
        if host.is_empty() || host.contains(['/', '@', ' ']) {
            return Err(bad());
        }
        Ok(Self { transport, host: host.to_owned(), port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
        };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// Who sends.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    pub(crate) hostname: String,
    pub(crate) program: String,
    pub(crate) pid: u32,
}

impl Sender {
    /// This process on this host.
    pub(crate) fn here(program: &str) -> Self {
        let name = rustix::system::uname();
        Self {
            hostname: word(&name.nodename().to_string_lossy(), 255),
            program: word(program, 48),
            pid: std::process::id(),
        }
    }

    /// A line of the trail as a message. A line that is no record goes as it is, as a text: whoever reads it there can
    /// still see it.
    pub(crate) fn message(&self, line: &[u8], transport: Transport) -> Vec<u8> {
        let text = String::from_utf8_lossy(line);
        let record = serde_json::from_str::<Record>(&text).ok();
        let priority = record.as_ref().map_or(Priority::Info, |record| record.event.priority);
        let at = record.as_ref().map_or_else(
            || "-".to_owned(),
            // Six digits are the most that the format has.
            |record| format!("{:.6}", record.event.at),
        );
        let kind = kind(&text).unwrap_or("-");
        let mut out = format!(
            "<{}>1 {at} {} {} {} {} ",
            FACILITY * 8 + priority.syslog_level(),
            self.hostname,
            self.program,
            self.pid,
            word(kind, 32),
        );
        // Writing to a string cannot fail.
        let _ = structured(&mut out, &text);
        let message = record.as_ref().map_or(&*text, |record| &record.event.message);
        let start = out.len() + 1;
        let _ = write!(out, " \u{feff}{message}");
        if transport == Transport::Udp && out.len() > MAX_DATAGRAM {
            // The structured data is a field that parsers reject when it is cut: it goes whole, or not at all.
            if start > MAX_DATAGRAM - 64 {
                let seq = record.as_ref().map_or(0, |record| record.seq);
                let (head, _) = out.split_once(" [").unwrap_or((&out, ""));
                out = format!("{head} [{SD_ID} seq=\"{seq}\" shortened=\"yes\"] \u{feff}{message}");
            }
            out.truncate(out.floor_char_boundary(MAX_DATAGRAM));
        }
        match transport {
            Transport::Udp => out.into_bytes(),
            Transport::Tcp | Transport::Tls => format!("{} {out}", out.len()).into_bytes(),
        }
    }
}

/// The kind as the line has it, also one that this version does not know.
fn kind(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(",\"event\":\"")?;
    rest.split_once('"').map(|(kind, _)| kind)
}

/// The record's own fields.
fn structured(out: &mut String, line: &str) -> fmt::Result {
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap_or_default();
    if fields.is_empty() {
        return out.write_str("-");
    }
    write!(out, "[{SD_ID}")?;
    for (name, value) in &fields {
        // Those stand in the header and in the message.
        if matches!(name.as_str(), "message" | "at") || value.is_null() {
            continue;
        }
        let text = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        write!(out, " {}=\"", word(name, 32))?;
        let kept = &text[..text.floor_char_boundary(MAX_VALUE)];
        for c in kept.chars() {
            match c {
                '"' | '\\' | ']' => write!(out, "\\{c}")?,
                c if c.is_control() => out.write_char(' ')?,
                c => out.write_char(c)?,
            }
        }
        out.write_char('"')?;
    }
    out.write_char(']')
}

/// A text as the header's fields may be: visible ASCII, not empty, of bounded length.
fn word(text: &str, most: usize) -> String {
    let word: String =
        text.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '=' | ']')).take(most).collect();
    if word.is_empty() { "-".to_owned() } else { word }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        AuditEvent, AuditKind, Caller,
        chain::{Head, encode},
    };

    fn line(event: &AuditEvent) -> Vec<u8> {
        let mut line = Vec::new();
        encode(&mut line, Head::GENESIS, event).unwrap();
        line.pop();
        line
    }

    fn sender() -> Sender {
        Sender { hostname: "host-1".to_owned(), program: "linux-patch-api".to_owned(), pid: 42 }
    }

    #[test]
    fn targets_read_and_write() {
        for (text, shown) in [
            ("syslog.internal:514", "udp://syslog.internal:514"),
            ("udp://10.0.0.1:514", "udp://10.0.0.1:514"),
            ("tcp://[fd00::1]:601", "tcp://[fd00::1]:601"),
            ("tls://logs.example.org:6514", "tls://logs.example.org:6514"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), shown);
        }
        for bad in ["", "x", "x:0", "x:70000", "http://x:1", ":514", "tls://u@x:1", "tcp://x:1/p"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_becomes_a_message_with_its_fields() {
        let kind = AuditKind::AuthFailure {
            code: patch_types::ErrorCode::AuthCertExpired,
            reason: "quote \" back \\ bracket ] line\nend".to_owned(),
            count: 2,
        };
        let at = "2026-11-21T09:30:00.123456789Z".parse().unwrap();
        let event = AuditEvent::happened(at, kind, &Caller::at([10, 0, 0, 5].into()));
        let message = String::from_utf8(sender().message(&line(&event), Transport::Udp)).unwrap();
        assert!(
            message.starts_with(
                "<107>1 2026-11-21T09:30:00.123456Z host-1 linux-patch-api 42 auth_failure [patch@32473 "
            ),
            "{message}"
        );
        for part in [
            " seq=\"1\"",
            " address=\"10.0.0.5\"",
            " count=\"2\"",
            " reason=\"quote \\\" back \\\\ bracket \\] line end\"",
            "] \u{feff}authentication failed: client certificate",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
        assert!(!message.contains('\n'));
        let framed = String::from_utf8(sender().message(&line(&event), Transport::Tcp)).unwrap();
        assert_eq!(framed, format!("{} {message}", message.len()));
    }

    #[test]
    fn priorities_become_severities() {
        let of = |kind| {
            let message = sender().message(&line(&AuditEvent::new(kind, &Caller::local())), Transport::Tcp);
            let text = String::from_utf8(message).unwrap();
            text[text.find('<').unwrap()..=text.find('>').unwrap()].to_owned()
        };
        let text = String::new;
        assert_eq!(of(AuditKind::SinkFailed { sink: text(), error: text() }), "<107>");
        assert_eq!(of(AuditKind::ConfigChanged { diff: text() }), "<108>");
        assert_eq!(of(AuditKind::RateLimited { count: 1 }), "<109>");
        assert_eq!(of(AuditKind::AuthSuccess), "<110>");
    }

    #[test]
    fn datagrams_have_a_size() {
        let kind = AuditKind::SystemChanged { what: "ü".repeat(5000) };
        let line = line(&AuditEvent::new(kind, &Caller::local()));
        let message = sender().message(&line, Transport::Udp);
        assert!(message.len() <= MAX_DATAGRAM && std::str::from_utf8(&message).is_ok());
        assert!(String::from_utf8(message).unwrap().contains("seq=\"1\" shortened=\"yes\"] "));
        assert!(sender().message(&line, Transport::Tcp).len() > 10_000);
    }
}
