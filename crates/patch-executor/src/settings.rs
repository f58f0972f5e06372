//! What the root side takes from `config.yaml`: `rollback:`, `health_checks:`, `policy.restart:`, the agent's port and where its key is. The rest of the file
//! is the daemon's to check.
//!
//! The checks' commands run as root, so the file must be root's own.

use std::{
    fs::Metadata,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use patch_types::{
    ErrorCode, ErrorDetail, policy,
    settings::{HealthCheck, Restart, Rollback},
};
use serde::Deserialize;
use serde_saphyr::options::MergeKeyPolicy;

/// The file, below the root.
const CONFIG: &str = "etc/linux_patch_api/config.yaml";

/// The most that it may hold, in bytes.
const MAX_SIZE: u64 = 1024 * 1024;

/// The agent's port unless the file says otherwise.
const DEFAULT_PORT: u16 = 12443;

/// The agent's key unless the file says otherwise.
const SERVER_KEY: &str = "/etc/linux_patch_api/certs/server.key.pem";

/// The settings by which the root side acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// When and how a change goes back.
    pub(crate) rollback: Rollback,
    /// What must hold after a change.
    pub(crate) health_checks: Vec<HealthCheck>,
    /// Which services are restarted after a change.
    pub(crate) restart: Restart,
    /// Where the agent listens.
    pub(crate) port: u16,
    /// Where the key of the agent's certificate is, not below the root yet.
    pub(crate) server_key: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rollback: Rollback::default(),
            health_checks: Vec::new(),
            restart: Restart::default(),
            port: DEFAULT_PORT,
            server_key: SERVER_KEY.into(),
        }
    }
}

/// The sections that count here; other keys are passed over.
#[derive(Debug, Deserialize)]
struct Sections {
    rollback: Option<Rollback>,
    health_checks: Option<Vec<HealthCheck>>,
    policy: Option<Policy>,
    server: Option<Server>,
    tls: Option<Tls>,
}

#[derive(Debug, Deserialize)]
struct Policy {
    restart: Option<Restart>,
}

#[derive(Debug, Deserialize)]
struct Tls {
    server_key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Server {
    port: Option<u16>,
}

impl Settings {
    /// Reads the file below `root`. An absent one means the defaults.
    ///
    /// # Errors
    /// `CONFIG_INVALID` when it cannot be read, is not root's alone to write, or says something that is not acceptable.
    pub(crate) fn load(root: &Path) -> Result<Self, ErrorDetail> {
        match read(root)? {
            Some(text) => Self::parse(&text, &root.join(CONFIG)),
            None => Ok(Self::default()),
        }
    }

    /// The settings in a file's text; `path` is for messages.
    ///
    /// # Errors
    /// `CONFIG_INVALID`, with the line where it is known.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, ErrorDetail> {
        let says_nothing =
            text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---");
        if says_nothing {
            return Ok(Self::default());
        }
        let options = serde_saphyr::options! {
            merge_keys: MergeKeyPolicy::Error,
            reject_unsupported_tags: true,
            strict_booleans: true,
        };
        let sections: Sections = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let error = error.without_snippet();
            let said = error.to_string();
            let first = said.lines().next().unwrap_or_default();
            // The line is shown before the message.
            let first = first.split(" at line ").next().unwrap_or(first);
            invalid(path, error.location().map(|at| at.line()), first)
        })?;
        let settings = Self {
            rollback: sections.rollback.unwrap_or_default(),
            health_checks: sections.health_checks.unwrap_or_default(),
            restart: sections.policy.and_then(|policy| policy.restart).unwrap_or_default(),
            port: sections.server.and_then(|server| server.port).unwrap_or(DEFAULT_PORT),
            server_key: sections.tls.and_then(|tls| tls.server_key).unwrap_or_else(|| SERVER_KEY.into()),
        };
        let problems = settings.problems();
        if problems.is_empty() { Ok(settings) } else { Err(invalid(path, None, &problems.join("; "))) }
    }

    fn problems(&self) -> Vec<String> {
        let rollback = self.rollback.problems().into_iter().map(|(key, problem)| format!("{key}: {problem}"));
        let restart = self.restart.problems().into_iter().map(|(key, problem)| format!("{key}: {problem}"));
        let checks = self.health_checks.iter().enumerate().flat_map(|(i, check)| {
            check.problems().into_iter().map(move |problem| format!("health_checks[{i}]: {problem}"))
        });
        let port = (self.port == 0).then(|| "server.port: 0 is not between 1 and 65535".to_owned());
        let key = (!self.server_key.is_absolute()
            || self.server_key.components().any(|part| part == Component::ParentDir))
        .then(|| {
            format!("tls.server_key: {} is not an absolute path without \"..\"", self.server_key.display())
        });
        rollback.chain(restart).chain(checks).chain(port).chain(key).collect()
    }
}

/// The file's text; none if there is no file.
///
/// # Errors
/// `CONFIG_INVALID` when it cannot be read or is not root's alone to write.
fn read(root: &Path) -> Result<Option<String>, ErrorDetail> {
    let path = root.join(CONFIG);
    let unreadable = |error: &io::Error| invalid(&path, None, &format!("it cannot be read: {error}"));
    let file = match patch_files::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&error)),
    };
    let meta = file.metadata().map_err(|error| unreadable(&error))?;
    if let Some(problem) = distrusted(&meta, nix::unistd::geteuid().as_raw()) {
        return Err(invalid(&path, None, problem));
    }
    let mut text = String::new();
    // One byte more tells a file that is too long from one that just fits.
    file.take(MAX_SIZE + 1).read_to_string(&mut text).map_err(|error| unreadable(&error))?;
    if text.len() as u64 > MAX_SIZE {
        return Err(invalid(&path, None, "it is longer than 1 MiB; make it shorter"));
    }
    Ok(Some(text))
}

/// What the file says of who patches, if that can be used; whatever else is wrong with it.
pub(crate) fn policy(root: &Path) -> Option<policy::Policy> {
    #[derive(Deserialize)]
    struct Declared {
        policy: Option<policy::Policy>,
    }
    let text = read(root).ok()??;
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options::<Declared>(&text, options).ok()?.policy
}

/// Why a file is not to be acted upon by a process of user `me`, which is root.
fn distrusted(meta: &Metadata, me: u32) -> Option<&'static str> {
    if meta.uid() != 0 && meta.uid() != me {
        Some(
            "it belongs to somebody else than root, and commands in it run as root; look through it, then chown root it",
        )
    } else if meta.mode() & 0o022 != 0 {
        Some(
            "others than root may write it, and commands in it run as root; look through it, then chmod go-w it",
        )
    } else {
        None
    }
}

fn invalid(path: &Path, line: Option<u64>, problem: &str) -> ErrorDetail {
    let line = line.map(|line| format!(":{line}")).unwrap_or_default();
    ErrorDetail::new(
        ErrorCode::ConfigInvalid,
        format!(
            "{}{line} is not acceptable: {problem}. Correct it; `linux-patch-api check-config` says whether it is",
            path.display()
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use patch_types::rollback::Require;

    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(text, Path::new("c.yaml")).map_err(|error| {
            assert_eq!(error.code, ErrorCode::ConfigInvalid);
            error.message
        })
    }

    #[test]
    fn the_shipped_sample_equals_the_defaults() {
        let sample = include_str!("../../../packaging/config/config.yaml");
        assert_eq!(parse(sample).unwrap(), Settings::default());
        for nothing in ["", "# x\n---\n", "rollback:\nserver:\nhealth_checks:\npolicy:\n"] {
            assert_eq!(parse(nothing).unwrap(), Settings::default(), "{nothing:?}");
        }
    }

    #[test]
    fn only_its_own_sections_count() {
        let settings = parse(
            "server: {port: 4443, timeout: none}\nunheard: [of]\nrollback: {require: exact, keep_mib: 64}\n\
             health_checks:\n  - {type: tcp, address: \"[::1]:25\", timeout_seconds: 2}\n",
        )
        .unwrap();
        assert_eq!(settings.port, 4443);
        assert_eq!(
            settings.rollback,
            Rollback { require: Require::Exact, keep_mib: 64, ..Rollback::default() }
        );
        assert_eq!(settings.health_checks.len(), 1);
    }

    #[test]
    fn mistakes_are_refused_with_their_line() {
        for (text, words) in [
            ("rollback:\n  auto: yes\n", &["c.yaml:2"][..]),
            ("rollback:\n  aut: true\n", &["c.yaml:2", "aut"]),
            ("rollback: {keep_days: 0}\n", &["rollback.keep_days"]),
            ("rollback: {snapshots: {keep: 0}}\n", &["rollback.snapshots.keep"]),
            ("rollback:\n  snapshots: {mode: on}\n", &["c.yaml:2", "on"]),
            ("rollback:\n  snapshots: {number: 3}\n", &["c.yaml:2", "number"]),
            ("policy: {restart: {mode: restart}}\n", &["policy.restart.services", "name some"]),
            ("policy: {restart: {services: [nginx]}}\n", &["policy.restart.services", "nginx.service"]),
            ("policy:\n  mode: agent\n  restart: {mode: always}\n", &["c.yaml:3"]),
            ("server: {port: 0}\n", &["server.port"]),
            ("tls: {server_key: certs/k.pem}\n", &["tls.server_key"]),
            ("tls: {server_key: /etc/../k.pem}\n", &["tls.server_key"]),
            ("server:\n  port: x\n", &["c.yaml:2"]),
            ("health_checks:\n  - {type: smtp}\n", &["c.yaml:2", "smtp"]),
            ("health_checks:\n  - {type: http, url: \"https://x/\"}\n", &["health_checks[0]", "`command`"]),
            ("health_checks:\n  - {type: command, command: [\"-c\"]}\n", &["health_checks[0]"]),
            ("[", &["c.yaml"]),
            ("- a\n", &["c.yaml"]),
        ] {
            let error = parse(text).expect_err(text);
            for word in words {
                assert!(error.contains(word), "{text:?}: {error}");
            }
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_not_acted_upon() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Settings::load(root.path()).unwrap(), Settings::default(), "absent");
        let path = root.path().join(CONFIG);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "server: {port: 5}\n").unwrap();
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o640);
        assert_eq!(Settings::load(root.path()).unwrap().port, 5);
        for bad in [0o660, 0o646] {
            mode(bad);
            let error = Settings::load(root.path()).unwrap_err();
            assert_eq!(error.code, ErrorCode::ConfigInvalid);
            assert!(error.message.contains("config.yaml") && error.message.contains("chmod go-w"), "{error}");
        }
        mode(0o600);
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            let error = Settings::load(root.path()).unwrap_err();
            assert!(error.message.contains("chown root"), "{error}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(Settings::load(root.path()).unwrap_err().message.contains("regular file"));
    }

    #[test]
    fn an_endless_file_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(CONFIG);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "#\n".repeat(1024 * 1024)).unwrap();
        assert!(Settings::load(root.path()).unwrap_err().message.contains("1 MiB"));
    }
}
