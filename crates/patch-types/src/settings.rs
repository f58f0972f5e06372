//! The parts of `config.yaml` that both sides read: the daemon to check the file, the root side to act by it. What makes
//! their values acceptable stands here too, so that neither accepts what the other refuses.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rollback::Require;

/// `rollback:`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rollback {
    /// Whether a change goes back by itself when applying or verifying fails.
    pub auto: bool,
    /// Which way back a change must have before it begins.
    pub require: Require,
    /// For how many days after a change its way back is kept.
    pub keep_days: u32,
    /// How much room the kept archives may take, in MiB. Those of installed versions do not count.
    pub keep_mib: u32,
    /// Snapshots of the file systems before a change.
    pub snapshots: Snapshots,
}

/// `rollback.snapshots:`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Snapshots {
    /// Whether they are made.
    pub mode: SnapshotMode,
    /// How many of ours are kept at most.
    pub keep: u32,
    /// For how many days.
    pub keep_days: u32,
    /// How much room must be free on the file system for one to be made, in MiB: it holds on to what the change replaces.
    pub min_free_mib: u32,
}

/// Whether snapshots of the file systems are made before a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotMode {
    /// None are.
    #[default]
    Off,
    /// Where that is possible; a job says why it has none.
    Auto,
    /// Always: a change without one is not begun.
    Required,
}

impl SnapshotMode {
    /// The mode as the configuration writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Required => "required",
        }
    }
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { mode: SnapshotMode::Off, keep: 10, keep_days: 14, min_free_mib: 1024 }
    }
}

impl Default for Rollback {
    fn default() -> Self {
        Self {
            auto: true,
            require: Require::Any,
            keep_days: 14,
            keep_mib: 2048,
            snapshots: Snapshots::default(),
        }
    }
}

impl Rollback {
    /// What is not acceptable: each key, and one sentence.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        [
            ("rollback.keep_days", self.keep_days, 1, 3650),
            ("rollback.keep_mib", self.keep_mib, 64, 1_000_000),
            ("rollback.snapshots.keep", self.snapshots.keep, 1, 1000),
            ("rollback.snapshots.keep_days", self.snapshots.keep_days, 1, 3650),
            ("rollback.snapshots.min_free_mib", self.snapshots.min_free_mib, 1, 10_000_000),
        ]
        .into_iter()
        .filter_map(|(key, value, least, most)| Some((key, outside(value, least, most)?)))
        .collect()
    }
}

fn outside(value: u32, least: u32, most: u32) -> Option<String> {
    (!(least..=most).contains(&value)).then(|| format!("{value} is not between {least} and {most}"))
}

/// `policy.restart:`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restart {
    /// Whether anything is restarted at all.
    pub mode: RestartMode,
    /// The services that are, such as `nginx.service`. What is not named is never restarted, whatever it is.
    pub services: Vec<String>,
    /// When.
    pub when: RestartTime,
}

/// What becomes of services that still run old code after a change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartMode {
    /// They are listed, and a person restarts them.
    #[default]
    List,
    /// Those that are named are restarted.
    Restart,
}

/// When the named services are restarted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartTime {
    /// As soon as the packages are changed.
    #[default]
    AtOnce,
    /// While the reboot window is open. Until then packages' own scripts do not restart them either.
    InWindow,
}

/// The most services that may be named.
const MAX_RESTARTED: usize = 200;

/// The agent's own service.
const AGENT: &str = "linux-patch-api.service";

impl Restart {
    /// The services whose restarts wait for the window.
    #[must_use]
    pub fn waiting(&self) -> &[String] {
        match (self.mode, self.when) {
            (RestartMode::Restart, RestartTime::InWindow) => &self.services,
            _ => &[],
        }
    }

    /// What is not acceptable: each key, and one sentence.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems: Vec<String> = self.services.iter().filter_map(|name| not_restarted(name)).collect();
        if self.services.len() > MAX_RESTARTED {
            problems.push(format!("more than {MAX_RESTARTED} services are named"));
        }
        if self.when == RestartTime::InWindow && self.services.iter().any(|name| name == AGENT) {
            problems.push(format!(
                "{AGENT} cannot wait for the window: an upgrade of it is proven by the new one; take it out of the list, its \
                 package restarts it"
            ));
        }
        if self.mode == RestartMode::Restart && self.services.is_empty() {
            problems.push(
                "no service is named, so none would be restarted; name some, or write mode: list".into(),
            );
        }
        problems.into_iter().map(|problem| ("policy.restart.services", problem)).collect()
    }
}

/// Why a service cannot be named for being restarted.
fn not_restarted(name: &str) -> Option<String> {
    let is_template = name.ends_with("@.service");
    if !is_unit_name(name) || !name.ends_with(".service") || is_template {
        return Some(format!(
            "{name:?} is not the name of a service, such as nginx.service or postgresql@15-main.service"
        ));
    }
    if ["dbus.service", "dbus-broker.service"].contains(&name) {
        return Some(format!("{name} cannot be restarted while the host is in use; it takes a reboot"));
    }
    name.starts_with("linux-patch-executor")
        .then(|| format!("{name} carries the changes out and ends by itself"))
}

/// One of `health_checks:`, which must hold after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum HealthCheck {
    /// A command that must exit with 0.
    Command {
        /// The program, absolute, and its arguments.
        command: Vec<String>,
        /// Within so many seconds; 30 if absent.
        timeout_seconds: Option<u32>,
    },
    /// A page that must answer.
    Http {
        /// `http://HOST[:PORT]/PATH`.
        url: String,
        /// With this status; any from 200 to 299 if absent.
        expect_status: Option<u16>,
        /// Within so many seconds; 30 if absent.
        timeout_seconds: Option<u32>,
    },
    /// A port that must accept connections.
    Tcp {
        /// `HOST:PORT`.
        address: String,
        /// Within so many seconds; 30 if absent.
        timeout_seconds: Option<u32>,
    },
    /// A unit that must be active.
    Systemd {
        /// Its name, such as `nginx.service`.
        unit: String,
        /// Within so many seconds; 30 if absent.
        timeout_seconds: Option<u32>,
    },
}

/// How long a check may take unless it says otherwise, in seconds.
pub const CHECK_SECONDS: u32 = 30;

impl HealthCheck {
    /// Within which time it must hold.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.seconds().unwrap_or(CHECK_SECONDS).into())
    }

    fn seconds(&self) -> Option<u32> {
        match self {
            Self::Command { timeout_seconds, .. }
            | Self::Http { timeout_seconds, .. }
            | Self::Tcp { timeout_seconds, .. }
            | Self::Systemd { timeout_seconds, .. } => *timeout_seconds,
        }
    }

    /// What is not acceptable, one sentence each.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let own = match self {
            Self::Command { command, .. } => {
                let fits = command.first().is_some_and(|program| program.starts_with('/'))
                    && command.iter().all(|arg| !arg.contains('\0'));
                (!fits).then(|| "the command is a list that starts with a program's absolute path".to_owned())
            }
            Self::Http { url, .. } if url.starts_with("https:") => Some(format!(
                "{url:?} is an https URL, but the root side speaks no TLS; use a `command` check, such as \
                 command: [/usr/bin/curl, --fail, --silent, --output, /dev/null, {url:?}]"
            )),
            Self::Http { url, .. } if !is_http_url(url) => {
                Some(format!("{url:?} is not a URL of the form http://HOST[:PORT]/PATH"))
            }
            Self::Http { expect_status: Some(status), .. } if !(100..=599).contains(status) => {
                Some(format!("{status} is not a status; write one from 100 to 599"))
            }
            Self::Tcp { address, .. } if !is_host_and_port(address) => {
                Some(format!("the address {address:?} is not HOST:PORT"))
            }
            Self::Systemd { unit, .. } if !is_unit_name(unit) => {
                Some(format!("{unit:?} is not the name of a unit, such as ssh.service"))
            }
            Self::Http { .. } | Self::Tcp { .. } | Self::Systemd { .. } => None,
        };
        own.into_iter().chain(self.seconds().and_then(|seconds| outside(seconds, 1, 3600))).collect()
    }
}

/// What kind of check it is and of what, such as `tcp 127.0.0.1:5432`.
impl std::fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command { command, .. } => write!(f, "command {}", command.join(" ")),
            Self::Http { url, .. } => write!(f, "http {url}"),
            Self::Tcp { address, .. } => write!(f, "tcp {address}"),
            Self::Systemd { unit, .. } => write!(f, "systemd {unit}"),
        }
    }
}

/// The longest name of a unit.
const MAX_UNIT: usize = 255;

/// The kinds of units.
const UNIT_KINDS: [&str; 11] = [
    "service",
    "socket",
    "target",
    "timer",
    "mount",
    "automount",
    "path",
    "slice",
    "scope",
    "swap",
    "device",
];

/// Whether a text is the name of a unit (`systemd.unit(5)`): a prefix of letters, digits, `:-_.\` with at most one
/// `@`, and a known kind.
#[must_use]
pub fn is_unit_name(text: &str) -> bool {
    let Some((prefix, kind)) = text.rsplit_once('.') else { return false };
    let known = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    text.len() <= MAX_UNIT
        && UNIT_KINDS.contains(&kind)
        && !prefix.is_empty()
        && !prefix.starts_with(['-', '.', '@'])
        && !prefix.contains("..")
        && prefix.bytes().all(known)
        && prefix.bytes().filter(|b| *b == b'@').count() <= 1
}

/// Whether a text is the name of a host or an IPv4 address, and cannot be read as an option.
#[must_use]
pub fn is_host(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
    (1..=253).contains(&text.len()) && !text.starts_with(['-', '.']) && text.bytes().all(plain)
}

fn is_bracketed_ipv6(text: &str) -> bool {
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inside.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
}

/// Whether a text is `HOST:PORT`; an IPv6 address stands in brackets.
#[must_use]
pub fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        (is_host(host) || is_bracketed_ipv6(host))
            && port.bytes().all(|b| b.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|p| p > 0)
    })
}

/// Whether a text is `http://HOST[:PORT][/PATH][?QUERY]`, with nothing in it that would have to be escaped.
fn is_http_url(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let plain = |b: u8| b.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&b);
    text.len() <= 2048
        && rest.bytes().all(plain)
        && (is_host(authority) || is_bracketed_ipv6(authority) || is_host_and_port(authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_acceptable_is_said() {
        let http =
            |url: &str| HealthCheck::Http { url: url.into(), expect_status: None, timeout_seconds: None };
        let tcp = |address: &str| HealthCheck::Tcp { address: address.into(), timeout_seconds: Some(1) };
        let command = |argv: &[&str]| HealthCheck::Command {
            command: argv.iter().map(ToString::to_string).collect(),
            timeout_seconds: None,
        };
        let unit = |name: &str| HealthCheck::Systemd { unit: name.into(), timeout_seconds: Some(3600) };
        for good in [
            http("http://localhost"),
            http("http://127.0.0.1:8080/health?deep=1"),
            http("http://[::1]:80/"),
            http("http://[::1]"),
            tcp("db.example.org:5432"),
            tcp("[::1]:5432"),
            command(&["/usr/bin/true", "--x"]),
            unit("nginx.service"),
        ] {
            assert!(good.problems().is_empty(), "{good}: {:?}", good.problems());
        }
        for (bad, word) in [
            (http("https://localhost/"), "`command` check"),
            (http("ftp://localhost/"), "http://HOST"),
            (http("http://user@host/"), "http://HOST"),
            (http("http:///x"), "http://HOST"),
            (http("http://a/ b"), "http://HOST"),
            (http("http://a/\r\nHost: b"), "http://HOST"),
            (http("http://a:0/"), "http://HOST"),
            (tcp("nowhere"), "HOST:PORT"),
            (tcp("a:+80"), "HOST:PORT"),
            (tcp("-a:80"), "HOST:PORT"),
            (command(&["true"]), "absolute"),
            (command(&["/x", "a\0b"]), "absolute"),
            (command(&[]), "absolute"),
            (unit("nginx"), "ssh.service"),
            (HealthCheck::Tcp { address: "a:1".into(), timeout_seconds: Some(0) }, "between 1 and 3600"),
            (
                HealthCheck::Http { url: "http://a/".into(), expect_status: Some(99), timeout_seconds: None },
                "status",
            ),
        ] {
            let problems = bad.problems().join("; ");
            assert!(problems.contains(word), "{bad}: {problems:?}");
        }
        let restart = |names: &[&str]| Restart {
            mode: RestartMode::Restart,
            services: names.iter().map(ToString::to_string).collect(),
            when: RestartTime::InWindow,
        };
        assert!(restart(&["nginx.service", "postgresql@15-main.service"]).problems().is_empty());
        assert_eq!(restart(&["a.service"]).waiting(), ["a.service"]);
        assert!(Restart { when: RestartTime::AtOnce, ..restart(&["a.service"]) }.waiting().is_empty());
        assert!(Restart { mode: RestartMode::List, ..restart(&["a.service"]) }.waiting().is_empty());
        for (names, word) in [
            (&["nginx"][..], "nginx.service"),
            (&["getty@.service"], "is not the name"),
            (&["a'b.service"], "is not the name"),
            (&["x.timer"], "is not the name"),
            (&["dbus.service"], "reboot"),
            (&["linux-patch-executor@1.service"], "ends by itself"),
            (&["linux-patch-api.service"], "cannot wait"),
            (&[], "name some"),
        ] {
            let problems = restart(names).problems();
            assert!(problems.iter().any(|(_, problem)| problem.contains(word)), "{names:?}: {problems:?}");
        }
        let many: Vec<String> = (0..=MAX_RESTARTED).map(|n| format!("a{n}.service")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(restart(&many[1..]).problems().is_empty());
        let problems = restart(&many).problems();
        assert!(problems.len() == 1 && problems[0].1.contains("more than 200"), "{problems:?}");
        let own = restart(&["linux-patch-api.service"]);
        assert!(Restart { when: RestartTime::AtOnce, ..own }.problems().is_empty());
        assert!(Restart::default().problems().is_empty());
        let rollback = Rollback { keep_mib: 63, keep_days: 0, ..Rollback::default() };
        assert_eq!(rollback.problems().len(), 2);
        assert!(Rollback::default().problems().is_empty());
        let snapshots = Snapshots { keep: 0, keep_days: 0, min_free_mib: 0, ..Snapshots::default() };
        let problems = Rollback { snapshots, ..Rollback::default() }.problems();
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
