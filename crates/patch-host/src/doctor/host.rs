//! A host as the checks see it: its files, its tools, the time, and what several checks need, read once.

use jiff::Timestamp;
use patch_backends::apt::{Database, Installed};
use patch_types::policy::{Policy, PolicyMode};
use serde_json::Value;

use crate::{below::Below, policy, provision::check::InForce, tools::Ask};

/// Where the agent's configuration is.
pub(super) const CONFIG: &str = "etc/linux_patch_api/config.yaml";

/// See the module.
pub(super) struct Host<'a> {
    pub(super) files: &'a Below,
    pub(super) tools: &'a dyn Ask,
    pub(super) now: Timestamp,
    /// apt's settings and timers.
    pub(super) in_force: InForce,
    /// dpkg's database; none if there is none.
    pub(super) database: Option<Database>,
    /// Whether the agent is installed.
    pub(super) has_agent: bool,
    /// Its configuration; why not, if it cannot be read.
    pub(super) config: Result<Value, String>,
}

impl<'a> Host<'a> {
    pub(super) fn look(files: &'a Below, tools: &'a dyn Ask, now: Timestamp) -> Self {
        let database = files.read("var/lib/dpkg/status").ok().map(|text| Database::parse(&text));
        let config = match files.read(CONFIG) {
            Ok(text) => yaml(&text).and_then(texts),
            // Every key may be left out, and so may all of them.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
            Err(error) => Err(error.to_string()),
        };
        let is_installed = database
            .as_ref()
            .is_some_and(|database| database.named("linux-patch-api").any(Installed::is_present));
        Self {
            in_force: InForce::look(files, tools),
            has_agent: is_installed || files.is_there(CONFIG),
            files,
            tools,
            now,
            database,
            config,
        }
    }

    /// Which of some packages are installed. What ends in `*` is the beginning of a name.
    pub(super) fn installed(&self, patterns: &[&str]) -> Vec<String> {
        let is_meant = |name: &str| {
            patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => name == *pattern,
            })
        };
        let packages = self.database.iter().flat_map(Database::iter);
        let mut names: Vec<String> =
            packages.filter(|p| p.is_present() && is_meant(p.name())).map(|p| p.name().to_owned()).collect();
        names.dedup();
        names
    }

    /// A text of the agent's configuration, or its default.
    pub(super) fn configured<'b>(&'b self, pointer: &str, default: &'b str) -> &'b str {
        self.config.as_ref().ok().and_then(|config| config.pointer(pointer)?.as_str()).unwrap_or(default)
    }

    /// What the agent does by itself.
    ///
    /// # Errors
    /// When that section is not understood.
    pub(super) fn policy(&self) -> Result<Policy, String> {
        let config = self.config.as_ref().map_err(Clone::clone)?;
        match config.get("policy") {
            None | Some(Value::Null) => Ok(Policy::default()),
            Some(policy) => {
                serde_json::from_value(policy.clone()).map_err(|error| format!("policy: {error}"))
            }
        }
    }

    /// Whether the agent patches, and the distribution's updater is kept off for that reason alone. What is said of that
    /// updater's settings matters only where it is not so.
    pub(super) fn agent_patches(&self) -> bool {
        self.policy().is_ok_and(|policy| policy.mode == PolicyMode::Agent)
            && self
                .in_force
                .files
                .setting(policy::SETTING)
                .is_some_and(|setting| setting.file == policy::FILE)
            && self.in_force.conf().value(policy::SETTING) == Some("0")
    }
}

/// The settings of which a default must not be judged where something else than a text was written.
const TEXTS: [&str; 6] = [
    "/server/bind_address",
    "/tls/ca_cert",
    "/tls/server_cert",
    "/tls/server_key",
    "/tls/crl",
    "/notifications/mail/password_file",
];

fn texts(config: Value) -> Result<Value, String> {
    let is_odd =
        |pointer: &&str| config.pointer(pointer).is_some_and(|value| !value.is_null() && !value.is_string());
    match TEXTS.iter().find(|pointer| is_odd(pointer)) {
        Some(pointer) => Err(format!("{} is no text", pointer.trim_start_matches('/').replace('/', "."))),
        None => Ok(config),
    }
}

/// A document, read loosely: what the agent refuses in it, the agent says itself.
pub(super) fn yaml(text: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Value::Null);
    }
    // As the agent reads it: `off` is a word.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
}
