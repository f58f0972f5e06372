//! The first two stages: what the file says, and the same with the defaults filled in. No judgement is passed here
//! beyond what the types say.

use std::{collections::BTreeMap, path::PathBuf};

use patch_types::notifications::Notifications;
pub use patch_types::{
    policy::{Policy, PolicyMode},
    settings::{HealthCheck, Rollback},
};
use serde::Deserialize;

/// What a file says. Every key is optional; unknown ones are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the keys are documented in the sample file")]
pub struct Fragment {
    pub server: Option<Server>,
    pub tls: Option<Tls>,
    pub logging: Option<Logging>,
    pub security: Option<Security>,
    pub rollback: Option<Rollback>,
    pub health_checks: Option<Vec<HealthCheck>>,
    pub policy: Option<Policy>,
    pub reboot: Option<Reboot>,
    pub notifications: Option<Notifications>,
}

impl Fragment {
    /// Reads a file's text; an empty one says nothing.
    ///
    /// # Errors
    /// One sentence with the line and, for an unknown key, the nearest known one.
    pub fn parse(text: &str, file: &str) -> Result<Self, patch_service::ConfigError> {
        let only_comments = text.lines().all(|l| {
            let l = l.trim();
            l.is_empty() || l.starts_with('#') || l == "---"
        });
        if only_comments {
            return Ok(Self::default());
        }
        patch_service::config::parse_yaml(text, file)
    }
}

/// The values of all sections, and which of the ones without effect the file has.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the keys are documented in the sample file")]
pub struct Inputs {
    pub server: Server,
    pub tls: Tls,
    pub logging: Logging,
    pub security: Security,
    pub rollback: Rollback,
    pub health_checks: Vec<HealthCheck>,
    pub policy: Policy,
    pub reboot: Reboot,
    pub notifications: Notifications,
    pub inactive: Vec<&'static str>,
}

impl From<Fragment> for Inputs {
    fn from(f: Fragment) -> Self {
        Self {
            server: f.server.unwrap_or_default(),
            tls: f.tls.unwrap_or_default(),
            logging: f.logging.unwrap_or_default(),
            security: f.security.unwrap_or_default(),
            rollback: f.rollback.unwrap_or_default(),
            health_checks: f.health_checks.unwrap_or_default(),
            policy: f.policy.unwrap_or_default(),
            reboot: f.reboot.unwrap_or_default(),
            notifications: f.notifications.unwrap_or_default(),
            // Every section has its effect in this version.
            inactive: Vec::new(),
        }
    }
}

/// `server:`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    pub port: u16,
    pub bind_address: String,
    pub timeout: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self { port: 12443, bind_address: "0.0.0.0".into(), timeout: 30 }
    }
}

/// `tls:`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    pub enabled: bool,
    pub min_version: String,
    pub ca_cert: PathBuf,
    pub server_cert: PathBuf,
    pub server_key: PathBuf,
    pub crl: PathBuf,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            enabled: true,
            min_version: "TLS1.3".into(),
            ca_cert: "/etc/linux_patch_api/certs/ca.pem".into(),
            server_cert: "/etc/linux_patch_api/certs/server.pem".into(),
            server_key: "/etc/linux_patch_api/certs/server.key.pem".into(),
            crl: "/etc/linux_patch_api/certs/crl.pem".into(),
        }
    }
}

/// `logging:`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logging {
    pub level: String,
    pub retention_days: u32,
    pub remote_syslog: Option<String>,
    pub remote_syslog_ca: Option<PathBuf>,
}

impl Default for Logging {
    fn default() -> Self {
        Self { level: "INFO".into(), retention_days: 30, remote_syslog: None, remote_syslog_ca: None }
    }
}

/// `security:`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Security {
    pub job_timeout_minutes: u64,
    pub max_concurrent_jobs: usize,
    pub rate_limit_requests_per_minute: u32,
    pub roles: BTreeMap<String, String>,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            job_timeout_minutes: 30,
            max_concurrent_jobs: 5,
            rate_limit_requests_per_minute: 600,
            roles: BTreeMap::new(),
        }
    }
}

/// A recurring span of time.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    pub rule: String,
    #[serde(default = "utc", alias = "time_zone")]
    pub timezone: String,
    #[serde(default = "an_hour")]
    pub duration_minutes: u32,
    /// The first day on which it may open.
    pub start: Option<jiff::civil::Date>,
}

fn utc() -> String {
    "UTC".into()
}

fn an_hour() -> u32 {
    60
}

/// `reboot:`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reboot {
    pub window: Option<Window>,
    pub drain_command: Option<Vec<String>>,
    pub undrain_command: Option<Vec<String>>,
    pub fleet_lock: Option<FleetLock>,
    pub max_defer_days: Option<u32>,
}

/// `reboot.fleet_lock:`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetLock {
    pub url: String,
    pub group: Option<String>,
    pub ca_file: Option<PathBuf>,
}
