//! The third stage: checked values, ready to be used.

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    time::Duration,
};

use patch_policy::Window;
use patch_types::{notifications::Notifications, settings::is_host_and_port};
use serde::Serialize;

use super::fragment::{HealthCheck, Inputs, Policy, Reboot, Rollback, Tls};

/// A value that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The key, with its section.
    pub key: String,
    /// What is wrong and what to write instead.
    pub message: String,
    /// The line of the key, or of the nearest one above it, from 1; none if it cannot be told.
    pub line: Option<u64>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// What an identity may do. Each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read.
    Viewer,
    /// Change packages and handle jobs.
    Operator,
    /// Everything, reboots included.
    Admin,
}

impl Role {
    /// The role as the configuration writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Viewer, Self::Operator, Self::Admin].into_iter().find(|r| r.as_str() == text)
    }
}

/// How much the service's own log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The level in the words of `tracing`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Who may do what. Fingerprints and names are kept apart: a certificate may be issued for any name, also for one that
/// looks like the fingerprint of another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roles {
    /// By the SHA-256 of the certificate in lower-case hexadecimal.
    by_fingerprint: BTreeMap<String, Role>,
    /// By the common name.
    by_name: BTreeMap<String, Role>,
}

impl Roles {
    /// Whether nobody is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_fingerprint.is_empty() && self.by_name.is_empty()
    }

    /// Who has which role: names and fingerprints.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, Role)> {
        self.by_name.iter().chain(&self.by_fingerprint).map(|(identity, role)| (identity.as_str(), *role))
    }
}

/// Where the certificates are, the root prefix included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPaths {
    /// The internal CA.
    pub ca_cert: PathBuf,
    /// The server's chain.
    pub server_cert: PathBuf,
    /// The server's key.
    pub server_key: PathBuf,
    /// Whether that is the path which the service's unit hands over as a credential.
    pub key_may_be_credential: bool,
    /// The revocation list.
    pub crl: PathBuf,
}

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddrV4,
    /// How long a request may take; also the most that `Prefer: wait` grants.
    pub timeout: Duration,
    /// Certificates.
    pub tls: TlsPaths,
    /// The log level.
    pub level: LogLevel,
    /// How long rotated audit files are kept.
    pub retention_days: u32,
    /// Where the audit trail also goes.
    pub remote_syslog: Option<patch_audit::Target>,
    /// The CA of that server, the root prefix included; the system's own if absent.
    pub remote_syslog_ca: Option<PathBuf>,
    /// The limit of a job.
    pub job_timeout: Duration,
    /// How many jobs may be active.
    pub max_concurrent_jobs: usize,
    /// Requests a minute and identity.
    pub rate_limit: u32,
    /// Who may do what; empty means that every certificate of the CA is an administrator.
    pub roles: Roles,
    /// Checked here; the root side acts by it.
    pub rollback: Rollback,
    /// Checked here; the root side acts by it.
    pub health_checks: Vec<HealthCheck>,
    /// Whether the agent patches by itself.
    pub policy: Policy,
    /// Checked; the reboot window acts upon it.
    pub reboot: Reboot,
    /// Checked, not acted upon yet.
    pub notifications: Notifications,
    /// The keys in the file that this version does not act upon.
    pub inactive: Vec<&'static str>,
}

impl Settings {
    /// Checks all values; the paths of the certificates are put below `root`.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn try_from_inputs(inputs: Inputs, root: &Path) -> Result<Self, Vec<Invalid>> {
        let mut check = Checker(Vec::new());
        let bind = check.bind_address(&inputs.server.bind_address);
        check.within("server.port", u64::from(inputs.server.port), 1, 65535);
        check.within("server.timeout", inputs.server.timeout, 1, 3600);
        let tls = check.tls(&inputs.tls, root);
        let level = check.level(&inputs.logging.level);
        check.within("logging.retention_days", inputs.logging.retention_days.into(), 1, 3650);
        let remote_syslog = inputs.logging.remote_syslog.as_deref().and_then(|target| check.syslog(target));
        let remote_syslog_ca = inputs
            .logging
            .remote_syslog_ca
            .as_deref()
            .map(|ca| check.below("logging.remote_syslog_ca", ca, root));
        let is_tls = |target: &patch_audit::Target| target.transport == patch_audit::Transport::Tls;
        if remote_syslog_ca.is_some() && !remote_syslog.as_ref().is_some_and(is_tls) {
            check.refuse(
                "logging.remote_syslog_ca",
                "it says whom to trust with tls://, and remote_syslog is no such server; remove the key",
            );
        }
        let security = inputs.security;
        check.within("security.job_timeout_minutes", security.job_timeout_minutes, 1, 1440);
        let jobs = u64::try_from(security.max_concurrent_jobs).unwrap_or(u64::MAX);
        check.within("security.max_concurrent_jobs", jobs, 1, 100);
        let rate = u64::from(security.rate_limit_requests_per_minute);
        check.within("security.rate_limit_requests_per_minute", rate, 1, 100_000_000);
        let roles = check.roles(security.roles);
        for (key, message) in inputs.rollback.problems() {
            check.refuse(key, message);
        }
        for (i, one) in inputs.health_checks.iter().enumerate() {
            for message in one.problems() {
                check.refuse(format!("health_checks[{i}]"), message);
            }
        }
        check.policy(&inputs.policy);
        for (key, message) in inputs.policy.restart.problems() {
            check.refuse(key, message);
        }
        check.reboot(&inputs.reboot);
        for (key, message) in inputs.notifications.problems() {
            check.refuse(key, message);
        }
        if !check.0.is_empty() {
            return Err(check.0);
        }
        Ok(Self {
            listen: SocketAddrV4::new(bind, inputs.server.port),
            timeout: Duration::from_secs(inputs.server.timeout),
            tls,
            level,
            retention_days: inputs.logging.retention_days,
            remote_syslog,
            remote_syslog_ca,
            job_timeout: Duration::from_secs(security.job_timeout_minutes * 60),
            max_concurrent_jobs: security.max_concurrent_jobs,
            rate_limit: security.rate_limit_requests_per_minute,
            roles,
            rollback: inputs.rollback,
            health_checks: inputs.health_checks,
            policy: inputs.policy,
            reboot: inputs.reboot,
            notifications: inputs.notifications,
            inactive: inputs.inactive,
        })
    }

    /// The role of an identity, given by its common name and the SHA-256 of its certificate in lower-case hexadecimal;
    /// none if there is a mapping without it. A fingerprint decides before a name.
    #[must_use]
    pub fn role_of(&self, name: &str, fingerprint: &str) -> Option<Role> {
        if self.roles.is_empty() {
            return Some(Role::Admin);
        }
        self.roles.by_fingerprint.get(fingerprint).or_else(|| self.roles.by_name.get(name)).copied()
    }
}

/// The time zone of a name; none if this host does not know it. The one that needs no database is always known.
pub(crate) fn zone(name: &str) -> Option<jiff::tz::TimeZone> {
    if name == "UTC" { Some(jiff::tz::TimeZone::UTC) } else { jiff::tz::TimeZone::get(name).ok() }
}

/// Collects what is wrong, so that one run of `check-config` names everything.
struct Checker(Vec<Invalid>);

impl Checker {
    fn refuse(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.0.push(Invalid { key: key.into(), message: message.into(), line: None });
    }

    fn within(&mut self, key: &str, value: u64, least: u64, most: u64) {
        if !(least..=most).contains(&value) {
            self.refuse(key, format!("{value} is not between {least} and {most}"));
        }
    }

    fn bind_address(&mut self, text: &str) -> Ipv4Addr {
        text.parse().unwrap_or_else(|_| {
            self.refuse(
                "server.bind_address",
                format!("{text:?} is not an IPv4 address; the agent serves IPv4 only, such as \"0.0.0.0\""),
            );
            Ipv4Addr::UNSPECIFIED
        })
    }

    fn tls(&mut self, tls: &Tls, root: &Path) -> TlsPaths {
        if !tls.enabled {
            self.refuse("tls.enabled", "false is refused: the agent speaks mutual TLS only; remove the key");
        }
        if !matches!(tls.min_version.as_str(), "TLS1.3" | "TLSv1.3" | "1.3") {
            self.refuse("tls.min_version", format!("{:?} is refused; write \"TLS1.3\"", tls.min_version));
        }
        TlsPaths {
            ca_cert: self.below("tls.ca_cert", &tls.ca_cert, root),
            server_cert: self.below("tls.server_cert", &tls.server_cert, root),
            server_key: self.below("tls.server_key", &tls.server_key, root),
            key_may_be_credential: tls.server_key == Tls::default().server_key,
            crl: self.below("tls.crl", &tls.crl, root),
        }
    }

    fn below(&mut self, key: &str, path: &Path, root: &Path) -> PathBuf {
        let inside = path.strip_prefix("/").unwrap_or_else(|_| {
            self.refuse(key, format!("{} is not an absolute path", path.display()));
            path
        });
        if inside.components().any(|c| c == std::path::Component::ParentDir) {
            self.refuse(key, format!("{} must not contain \"..\"", path.display()));
        }
        root.join(inside)
    }

    fn level(&mut self, text: &str) -> LogLevel {
        match text.to_ascii_uppercase().as_str() {
            "ERROR" => LogLevel::Error,
            "WARN" | "WARNING" => LogLevel::Warn,
            "INFO" => LogLevel::Info,
            "DEBUG" => LogLevel::Debug,
            "TRACE" => LogLevel::Trace,
            _ => {
                self.refuse(
                    "logging.level",
                    format!("{text:?} is not one of ERROR, WARN, INFO, DEBUG and TRACE"),
                );
                LogLevel::Info
            }
        }
    }

    fn syslog(&mut self, text: &str) -> Option<patch_audit::Target> {
        let rest = ["udp://", "tcp://", "tls://"].iter().find_map(|s| text.strip_prefix(s)).unwrap_or(text);
        match text.parse() {
            Ok(target) if is_host_and_port(rest) => Some(target),
            Ok(_) => {
                self.refuse(
                    "logging.remote_syslog",
                    format!("{text:?} is not HOST:PORT, optionally after udp://, tcp:// or tls://"),
                );
                None
            }
            Err(error) => {
                self.refuse("logging.remote_syslog", error.to_string());
                None
            }
        }
    }

    fn roles(&mut self, roles: BTreeMap<String, String>) -> Roles {
        let mut known = Roles::default();
        for (identity, role) in roles {
            if identity.is_empty() {
                self.refuse("security.roles", "an identity must not be empty");
                continue;
            }
            let Some(role) = Role::parse(&role) else {
                self.refuse(
                    "security.roles",
                    format!(
                        "{identity} has the role {role:?}, which is not one of viewer, operator and admin"
                    ),
                );
                continue;
            };
            // Tools print fingerprints in either case, with or without colons.
            let plain = identity.replace(':', "").to_ascii_lowercase();
            let is_fingerprint = plain.len() == 64 && plain.bytes().all(|b| b.is_ascii_hexdigit());
            if !is_fingerprint {
                known.by_name.insert(identity, role);
            } else if known.by_fingerprint.insert(plain, role).is_some() {
                self.refuse(
                    "security.roles",
                    format!("the fingerprint {identity} stands there twice; remove one"),
                );
            }
        }
        known
    }

    fn url(&mut self, key: &str, url: &str) {
        let uri = url.parse::<http::Uri>().ok();
        let known = |s: &str| s == "http" || s == "https";
        if !uri.is_some_and(|u| u.scheme_str().is_some_and(known) && u.host().is_some()) {
            // It may hold a password, and this is logged.
            self.refuse(key, "this is not an http or https URL");
        }
    }

    fn argv(&mut self, key: &str, argv: &[String]) {
        if !argv.first().is_some_and(|program| program.starts_with('/')) {
            self.refuse(key, "the command is a list that starts with a program's absolute path");
        }
    }

    fn policy(&mut self, policy: &Policy) {
        for (key, message) in policy.problems() {
            self.refuse(key, message);
        }
        if let Err((key, message)) = crate::policy::window(policy) {
            self.refuse(key, message);
        }
    }

    fn reboot(&mut self, reboot: &Reboot) {
        if let Some(window) = &reboot.window {
            let zone = zone(&window.timezone);
            if zone.is_none() {
                self.refuse(
                    "reboot.window.timezone",
                    format!("{:?} is not a time zone that this host knows", window.timezone),
                );
            }
            // The rule is judged with any zone.
            let (zone, minutes) = (zone.unwrap_or(jiff::tz::TimeZone::UTC), window.duration_minutes);
            if let Err(error) = Window::from_rule(&window.rule, minutes, window.start, zone) {
                let key = if error.part() == "duration_minutes" { "duration_minutes" } else { "rule" };
                self.refuse(format!("reboot.window.{key}"), error.to_string());
            }
        }
        if let Some(command) = &reboot.drain_command {
            self.argv("reboot.drain_command", command);
        }
        if let Some(command) = &reboot.undrain_command {
            self.argv("reboot.undrain_command", command);
        }
        if let Some(lock) = &reboot.fleet_lock {
            self.url("reboot.fleet_lock.url", &lock.url);
            if let Some(file) = &lock.ca_file
                && !(file.is_absolute() && lock.url.starts_with("https:"))
            {
                let message = "this is the absolute path of a file of CAs, and the URL is an https one";
                self.refuse("reboot.fleet_lock.ca_file", message);
            }
        }
        if let Some(days) = reboot.max_defer_days {
            self.within("reboot.max_defer_days", days.into(), 0, 3650);
        }
    }
}
