//! The configuration in three stages: a [`Fragment`] is what a file says, [`Inputs`] are its values with the defaults
//! filled in, [`Settings`] are checked and ready to be used. Reading the file is the only IO.
//!
//! A section that this version does not act upon is still read and checked, so that a file that is accepted today is
//! not refused by the version that does act upon it; [`Settings::inactive`] names it.

mod diff;
mod fragment;
mod locate;
mod settings;

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

pub use diff::{Change, Steps, diff, sentence};
pub use fragment::{Fragment, HealthCheck, Inputs, Policy, PolicyMode, Rollback};
pub use patch_types::rollback::Require as RollbackRequire;
pub(crate) use settings::zone;
pub use settings::{Invalid, LogLevel, Role, Settings, TlsPaths};

/// The configuration file, below the root prefix.
pub const CONFIG: &str = "etc/linux_patch_api/config.yaml";
/// The allow list, below the root prefix.
pub const WHITELIST: &str = "etc/linux_patch_api/whitelist.yaml";
/// A commented sample of the configuration, where it is installed.
pub const CONFIG_SAMPLE: &str = "/usr/share/doc/linux-patch-api/examples/config.yaml";
/// A sample of the allow list, where it is installed.
pub const WHITELIST_SAMPLE: &str = "/usr/share/doc/linux-patch-api/examples/whitelist.yaml";
/// The agent's own state, below the root prefix.
pub const STATE_DIR: &str = "var/lib/linux_patch_api";
/// The directory of the audit trail, below the root prefix.
pub const LOG_DIR: &str = "var/log/linux_patch_api";

/// The longest that it may be, in bytes, as for the root side.
const MAX_SIZE: u64 = 1 << 20;

/// Why there are no settings. `Display` is one or more lines, each with the place and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}; correct its permissions, or write it anew (a commented sample is {CONFIG_SAMPLE})", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is there and has nothing in it, as it happens while it is written or when that was broken off.
    #[error("{} is empty, as if it were half-written; write it anew, or for the defaults delete it or put a comment into it", path.display())]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// The file is not what it should be.
    #[error(transparent)]
    Parse(#[from] patch_service::ConfigError),
    /// Its values are not acceptable; all of them are named.
    #[error("{}", self.problems().join("\n"))]
    Values {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problems: Vec<Invalid>,
    },
}

impl ConfigError {
    /// One line for each problem, with its place.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Values { path, problems } => problems
                .iter()
                .map(|problem| match problem.line {
                    Some(line) => format!("{}:{line}: {problem}", path.display()),
                    None => format!("{}: {problem}", path.display()),
                })
                .collect(),
            other => vec![other.to_string()],
        }
    }
}

/// Reads and checks the configuration below the root prefix; none if there is no such file.
///
/// # Errors
/// See [`ConfigError`].
pub fn read(root: &Path) -> Result<Option<Settings>, ConfigError> {
    let path = root.join(CONFIG);
    match patch_files::read_text(&path, MAX_SIZE) {
        // A file that a crash has emptied would otherwise make every certificate an administrator.
        Ok(text) if text.trim().is_empty() => Err(ConfigError::Empty { path }),
        Ok(text) => parse(&text, root, &path).map(Some),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(ConfigError::Read { path, source }),
    }
}

/// The configuration to start with: a missing file means the defaults.
///
/// # Errors
/// See [`ConfigError`].
pub fn load(root: &Path) -> Result<Settings, ConfigError> {
    match read(root)? {
        Some(settings) => Ok(settings),
        None => parse("", root, &root.join(CONFIG)),
    }
}

/// The settings that a file's text makes.
///
/// # Errors
/// See [`ConfigError`].
pub fn parse(text: &str, root: &Path, path: &Path) -> Result<Settings, ConfigError> {
    let fragment = Fragment::parse(text, &path.display().to_string())?;
    Settings::try_from_inputs(Inputs::from(fragment), root).map_err(|mut problems| {
        for problem in &mut problems {
            problem.line = locate::line_of(text, &problem.key);
        }
        ConfigError::Values { path: path.to_owned(), problems }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Settings, String> {
        parse(text, Path::new("/"), Path::new("config.yaml")).map_err(|e| e.to_string())
    }

    #[test]
    fn the_shipped_sample_equals_the_defaults() {
        let sample = include_str!("../../../packaging/config/config.yaml");
        let shipped = check(sample).unwrap();
        let default = check("").unwrap();
        assert_eq!(Settings { inactive: Vec::new(), ..shipped }, default);
    }

    #[test]
    fn the_shipped_allow_list_is_valid_and_lets_nobody_in() {
        let sample = include_str!("../../../packaging/config/whitelist.yaml");
        let list = patch_service::AllowList::parse(sample, "whitelist.yaml").unwrap();
        assert!(list.entries().is_empty());
    }

    #[test]
    fn mistakes_are_refused_with_the_place() {
        for (text, words) in [
            ("server:\n  prot: 1\n", &["prot", "port", "2"][..]),
            ("serve: {}\n", &["serve", "server"]),
            ("server:\n  port: 0\n", &["server.port"]),
            ("server:\n  port: ten\n", &["2"]),
            ("server:\n  port: 70000\n", &["2"]),
            ("server:\n  bind_address: \"::\"\n", &["server.bind_address", "IPv4"]),
            ("server:\n  timeout: 0\n", &["server.timeout"]),
            ("server: {}\nserver: {}\n", &["server"]),
            ("tls:\n  enabled: false\n", &["tls.enabled"]),
            ("tls:\n  min_version: TLS1.2\n", &["tls.min_version", "TLS1.3"]),
            ("tls:\n  ca_cert: ca.pem\n", &["tls.ca_cert", "absolute"]),
            ("logging:\n  level: LOUD\n", &["logging.level"]),
            ("logging:\n  remote_syslog: http://x:1\n", &["logging.remote_syslog"]),
            ("security:\n  roles: {alice: root}\n", &["security.roles", "alice", "viewer"]),
            (
                &format!(
                    "security:\n  roles: {{\"{}\": admin, \"{}\": viewer}}\n",
                    "AB".repeat(32),
                    "ab".repeat(32)
                ),
                &["security.roles", "twice"],
            ),
            ("security:\n  max_concurrent_jobs: 0\n", &["security.max_concurrent_jobs"]),
            ("rollback:\n  require: maybe\n", &["maybe"]),
            ("rollback:\n  keep_days: 0\n", &["rollback.keep_days"]),
            ("rollback:\n  keep_mib: 63\n", &["rollback.keep_mib", "64"]),
            ("rollback:\n  keep_mb: 64\n", &["keep_mb", "keep_mib", "2"]),
            ("policy:\n  mode: on\n", &["2"]),
            ("policy:\n  exclude: [\"--force\"]\n", &["2"]),
            ("policy:\n  spread_minutes: 9999\n", &["policy.spread_minutes", "1440"]),
            ("policy:\n  window: {days: Funday, hour: 2}\n", &["policy.window", "Funday"]),
            ("policy:\n  window: {rule: \"FREQ=DAILY\", days: Mon, hour: 2}\n", &["policy.window", "either"]),
            (
                "policy:\n  window: {days: Mon, hour: 2, timezone: Mars/Olympus}\n",
                &["policy.window.timezone", "Mars"],
            ),
            ("health_checks:\n  - {type: tcp, address: nowhere}\n", &["health_checks[0]", "address"]),
            ("health_checks:\n  - {type: command, command: [\"true\"]}\n", &["health_checks[0]"]),
            (
                "health_checks:\n  - {type: http, url: \"https://localhost/\"}\n",
                &["health_checks[0]", "TLS", "`command`"],
            ),
            (
                "health_checks:\n  - {type: systemd, unit: nginx, timeout_seconds: 0}\n",
                &["health_checks[0]", "ssh.service", "3600"],
            ),
            ("reboot:\n  window: {rule: \"BYDAY=SU\"}\n", &["reboot.window", "FREQ"]),
        ] {
            let error = check(text).expect_err(text);
            for word in words {
                assert!(error.contains(word), "{text:?}: {error:?} lacks {word:?}");
            }
        }
    }

    #[test]
    fn an_empty_file_is_no_configuration_and_a_missing_one_is_the_default() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(CONFIG);
        assert!(read(root.path()).unwrap().is_none());
        assert_eq!(load(root.path()).unwrap(), parse("", root.path(), &path).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        for text in ["", "\n \n"] {
            std::fs::write(&path, text).unwrap();
            assert!(load(root.path()).unwrap_err().to_string().contains("is empty"));
        }
        std::fs::write(&path, "# the defaults\n").unwrap();
        assert!(read(root.path()).unwrap().is_some());
    }

    #[test]
    fn every_problem_of_a_value_has_its_line() {
        let error = parse(
            "server:\n  timeout: 0\n  port: 0\nlogging: {level: LOUD}\n",
            Path::new("/"),
            Path::new("config.yaml"),
        )
        .unwrap_err();
        let problems = error.problems();
        assert_eq!(problems.len(), 3);
        for place in
            ["config.yaml:2: server.timeout", "config.yaml:3: server.port", "config.yaml:4: logging.level"]
        {
            assert!(problems.iter().any(|p| p.starts_with(place)), "{place}: {problems:?}");
        }
    }

    #[test]
    fn what_the_agent_does_by_itself_is_declared() {
        let settings = check(
            "policy: {mode: agent, window: {days: Mon-Fri, hour: 2, duration_minutes: 180, timezone: Europe/Berlin}, \
             updates: all, exclude: [linux-image-amd64], paused_until: 2026-01-01T00:00:00Z, spread_minutes: 0}\n",
        )
        .unwrap();
        assert_eq!(settings.policy.mode, PolicyMode::Agent);
        assert!(settings.inactive.is_empty());
        assert_eq!(check("policy: {mode: \"off\"}\n").unwrap().policy, Policy::default());
    }

    #[test]
    fn roles_map_names_and_fingerprints() {
        let print = "AB".repeat(32);
        let text = format!("security:\n  roles:\n    manager: admin\n    \"{print}\": viewer\n");
        let settings = check(&text).unwrap();
        assert_eq!(settings.role_of("manager", "00"), Some(Role::Admin));
        assert_eq!(settings.role_of("other", &print.to_lowercase()), Some(Role::Viewer));
        assert_eq!(settings.role_of("other", "00"), None);
        assert_eq!(settings.role_of(&print, "00"), None, "a name is no fingerprint");
        assert_eq!(settings.role_of(&print.to_lowercase(), "00"), None, "a name is no fingerprint");
        assert_eq!(settings.role_of("other", "manager"), None, "nor the other way round");
        assert_eq!(check("").unwrap().role_of("anyone", "00"), Some(Role::Admin));
    }
}
