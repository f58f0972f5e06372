//! What is configured: the environment file, or `reboot:` of `config.yaml`.
//!
//! What they name is run as root, so whoever could write them would be root: they must be root's alone.

use std::{
    fs::Metadata,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use jiff::{SignedDuration, civil::Date, tz::TimeZone};
use patch_policy::Window;
use patch_types::settings::Restart;
use serde::{Deserialize, Serialize};

use super::{environment, fleet_lock::Server};

/// The environment files, the first one that is there counts. Below the root.
const FILES: [&str; 2] = ["etc/default/linux-patch-reboot-window", "etc/default/kei-reboot-window"];

/// The agent's configuration, below the root.
const CONFIG: &str = "etc/linux_patch_api/config.yaml";

/// The most that a file may hold, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// The names in an environment file. Each is also taken with `KEI_` before it.
const NAMES: [&str; 10] = [
    "REBOOT_DOW",
    "REBOOT_HOUR",
    "REBOOT_MIN",
    "REBOOT_DURATION_MIN",
    "DRAIN_CMD",
    "UNDRAIN_CMD",
    "FLEETLOCK_URL",
    "FLEETLOCK_GROUP",
    "FLEETLOCK_CA_FILE",
    "REBOOT_MAX_DEFER_DAYS",
];

const ALIAS: &str = "KEI_";

/// How long a window is that does not say so, in minutes.
const AN_HOUR: &str = "60";

/// How long a window has to be open for the timer to look within it in any case: twice its five minutes.
const LOOKS: SignedDuration = SignedDuration::from_mins(10);

/// The longest that a reboot may be put off before people are told, in days.
const MAX_DEFER: u32 = 3650;

/// A command, which is run as root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Program {
    /// A line for `/bin/sh -c`, as the environment file has it.
    Line(String),
    /// A program's absolute path and its arguments.
    List(Vec<String>),
}

/// What is configured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// The files that it comes from.
    pub(crate) sources: Vec<PathBuf>,
    /// When the host may reboot by itself; never without one.
    pub(crate) window: Option<Window>,
    pub(crate) drain: Option<Program>,
    pub(crate) undrain: Option<Program>,
    pub(crate) fleet_lock: Option<Server>,
    pub(crate) max_defer_days: Option<u32>,
    /// What the environment file sets, for the commands that it names.
    pub(crate) environment: Vec<(String, String)>,
    /// What is not understood or does not count, as sentences.
    pub(crate) warnings: Vec<String>,
}

impl Settings {
    /// Reads what is configured below a root.
    ///
    /// # Errors
    /// When something is wrong with it; then the host must not reboot by itself.
    pub(crate) fn load(root: &Path) -> anyhow::Result<Self> {
        let mut settings = Self::default();
        for name in FILES {
            let path = root.join(name);
            if let Some(text) = read_trusted(&path)? {
                settings = Self::from_environment(&text).with_context(|| path.display().to_string())?;
                settings.sources.push(path);
                break;
            }
        }
        let path = root.join(CONFIG);
        if let Some(text) = read_trusted(&path)? {
            // The one zone that needs no database.
            let zone = |name: &str| if name == "UTC" { Ok(TimeZone::UTC) } else { TimeZone::get(name) };
            let reboot = Self::from_config(&text, zone).with_context(|| path.display().to_string())?;
            settings.join(reboot, path);
        }
        if settings.window.as_ref().is_some_and(|window| window.duration() < LOOKS) {
            settings.warnings.push(
                "the window is open for less than 10 minutes, and may pass between two looks of the timer; make it longer"
                    .to_owned(),
            );
        }
        Ok(settings)
    }

    /// Takes what the environment file does not have from `config.yaml`.
    fn join(&mut self, config: Self, path: PathBuf) {
        if self.window.is_some() {
            if config.window.is_some() {
                self.warnings.push(format!(
                    "{} has a window too, which does not count; take one of the two away",
                    path.display()
                ));
            }
            return;
        }
        if config.window.is_none() && !self.sources.is_empty() {
            return;
        }
        let Self { sources, warnings, .. } = std::mem::take(self);
        if !sources.is_empty() {
            let shown = sources.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
            self.warnings.push(format!("{shown} has no window and does not count; {} does", path.display()));
        }
        let more = std::mem::take(&mut self.warnings);
        *self = config;
        self.sources = vec![path];
        self.warnings.extend(warnings.into_iter().chain(more));
    }

    /// The settings in an environment file's text.
    fn from_environment(text: &str) -> anyhow::Result<Self> {
        let mut settings = Self { environment: environment::parse(text), ..Self::default() };
        let mut warnings = Vec::new();
        for (name, _) in &settings.environment {
            let own = name.strip_prefix(ALIAS).unwrap_or(name);
            if !NAMES.contains(&own) {
                warnings.push(format!(
                    "{name} is unknown and does not count; the names are {}",
                    NAMES.join(", ")
                ));
            }
        }
        // As the shell and systemd have it, the last one counts; our own name before the other.
        let last = |name: &str| {
            settings.environment.iter().rev().find(|(other, _)| other == name).map(|(_, value)| value.trim())
        };
        let mut get = |name: &str| -> String {
            let alias = format!("{ALIAS}{name}");
            let (own, other) = (last(name), last(&alias));
            if let (Some(own), Some(other)) = (own, other)
                && own != other
            {
                warnings.push(format!("{name} and {alias} differ; {name} counts"));
            }
            own.or(other).unwrap_or_default().to_owned()
        };
        let (days, hour, minute) = (get("REBOOT_DOW"), get("REBOOT_HOUR"), get("REBOOT_MIN"));
        let duration = get("REBOOT_DURATION_MIN");
        let or = |text: &str, default: &str| {
            if text.is_empty() { default.to_owned() } else { text.to_owned() }
        };
        let window = if days.is_empty() && hour.is_empty() {
            None
        } else {
            let window = Window::simple(&days, &hour, &or(&minute, "0"), &or(&duration, AN_HOUR));
            Some(window.map_err(|error| anyhow::anyhow!("REBOOT_{error}"))?)
        };
        let line = |text: String| (!text.is_empty()).then_some(Program::Line(text));
        let (drain, undrain) = (line(get("DRAIN_CMD")), line(get("UNDRAIN_CMD")));
        let (url, group) = (get("FLEETLOCK_URL"), get("FLEETLOCK_GROUP"));
        let ca_file = get("FLEETLOCK_CA_FILE");
        let ca_file = (!ca_file.is_empty()).then_some(Path::new(&ca_file));
        let fleet_lock = (!url.is_empty()).then(|| Server::new(&url, &or(&group, "default"), ca_file));
        let days = get("REBOOT_MAX_DEFER_DAYS");
        let max_defer_days = if days.is_empty() { None } else { Some(defer_days(&days)?) };
        settings.fleet_lock = fleet_lock.transpose().context("FLEETLOCK_URL")?;
        (settings.window, settings.drain, settings.undrain) = (window, drain, undrain);
        (settings.max_defer_days, settings.warnings) = (max_defer_days, warnings);
        Ok(settings)
    }

    /// The settings in the text of `config.yaml`.
    fn from_config(text: &str, zone: impl Fn(&str) -> Result<TimeZone, jiff::Error>) -> anyhow::Result<Self> {
        let says_nothing =
            text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---");
        if says_nothing {
            return Ok(Self::default());
        }
        let sections: Sections = serde_saphyr::from_str(text).map_err(|error| {
            let said = error.without_snippet().to_string();
            anyhow::anyhow!("{}", said.lines().next().unwrap_or_default())
        })?;
        let Some(reboot) = sections.reboot else { return Ok(Self::default()) };
        let window = reboot.window.map(|written| {
            let zone = zone(&written.timezone).map_err(|_| {
                anyhow::anyhow!(
                    "reboot.window.timezone: {:?} is not a time zone that this host knows",
                    written.timezone
                )
            })?;
            Window::from_rule(&written.rule, written.duration_minutes, written.start, zone)
                .map_err(|error| anyhow::anyhow!("reboot.window: {error}"))
        });
        let list = |key: &str, list: Option<Vec<String>>| -> anyhow::Result<Option<Program>> {
            let Some(list) = list else { return Ok(None) };
            ensure!(
                list.first().is_some_and(|program| program.starts_with('/'))
                    && list.iter().all(|argument| !argument.contains('\0')),
                "reboot.{key}: the command is a list that starts with a program's absolute path"
            );
            Ok(Some(Program::List(list)))
        };
        let lock = reboot.fleet_lock.map(|lock| {
            Server::new(&lock.url, lock.group.as_deref().unwrap_or("default"), lock.ca_file.as_deref())
        });
        if let Some(days) = reboot.max_defer_days {
            ensure!(days <= MAX_DEFER, "reboot.max_defer_days: {days} is more than {MAX_DEFER}");
        }
        Ok(Self {
            window: window.transpose()?,
            drain: list("drain_command", reboot.drain_command)?,
            undrain: list("undrain_command", reboot.undrain_command)?,
            fleet_lock: lock.transpose().context("reboot.fleet_lock.url")?,
            max_defer_days: reboot.max_defer_days,
            ..Self::default()
        })
    }
}

/// Which services are restarted after a change, as `config.yaml` has it.
///
/// # Errors
/// When the file is not root's alone, or not understood.
pub(crate) fn restart(root: &Path) -> anyhow::Result<Restart> {
    #[derive(Debug, Default, Deserialize)]
    struct Policy {
        restart: Option<Restart>,
    }
    #[derive(Debug, Default, Deserialize)]
    struct Sections {
        policy: Option<Policy>,
    }
    let path = root.join(CONFIG);
    let text = read_trusted(&path)?.unwrap_or_default();
    let says_nothing =
        text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---");
    if says_nothing {
        return Ok(Restart::default());
    }
    let sections: Sections = serde_saphyr::from_str(&text).map_err(|error| {
        let said = error.without_snippet().to_string();
        anyhow::anyhow!("{}: {}", path.display(), said.lines().next().unwrap_or_default())
    })?;
    Ok(sections.policy.and_then(|policy| policy.restart).unwrap_or_default())
}

fn defer_days(text: &str) -> anyhow::Result<u32> {
    let days = text.parse().ok().filter(|days| *days <= MAX_DEFER && !text.starts_with('+'));
    days.with_context(|| {
        format!("REBOOT_MAX_DEFER_DAYS: {text:?} is not a number of days from 0 to {MAX_DEFER}")
    })
}

/// The section that counts here; the agent checks the rest.
#[derive(Debug, Deserialize)]
struct Sections {
    reboot: Option<Reboot>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reboot {
    window: Option<Written>,
    drain_command: Option<Vec<String>>,
    undrain_command: Option<Vec<String>>,
    fleet_lock: Option<Lock>,
    max_defer_days: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    rule: String,
    #[serde(default = "utc", alias = "time_zone")]
    timezone: String,
    #[serde(default = "an_hour")]
    duration_minutes: u32,
    start: Option<Date>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    url: String,
    group: Option<String>,
    ca_file: Option<PathBuf>,
}

fn utc() -> String {
    "UTC".into()
}

fn an_hour() -> u32 {
    60
}

/// A file's text, if it is there and nobody but whoever runs this (who is root) can write it.
pub(crate) fn read_trusted(path: &Path) -> anyhow::Result<Option<String>> {
    let unreadable = || format!("{} cannot be read", path.display());
    let file = match patch_files::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(unreadable),
    };
    let problem = distrusted(&file.metadata().with_context(unreadable)?);
    if let Some(problem) = problem {
        bail!("{}: {problem}; what it says would be run as root", path.display());
    }
    let mut text = String::new();
    file.take(MAX_SIZE + 1).read_to_string(&mut text).with_context(unreadable)?;
    ensure!(text.len() as u64 <= MAX_SIZE, "{} is longer than 1 MiB", path.display());
    Ok(Some(text))
}

fn distrusted(meta: &Metadata) -> Option<&'static str> {
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me && meta.uid() != 0 {
        Some("it does not belong to root; chown root it")
    } else if meta.mode() & 0o022 != 0 {
        Some("others than root can write it; chmod go-w it")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        dir
    }

    const OURS: &str = "REBOOT_DOW=\"Sun\"\nREBOOT_HOUR=\"04\"\nREBOOT_MIN=\"15\"\nREBOOT_DURATION_MIN=\"60\"\n\
                        DRAIN_CMD=\"\"\nUNDRAIN_CMD=\"\"\nFLEETLOCK_URL=\"\"\nREBOOT_MAX_DEFER_DAYS=\"\"\n";

    #[test]
    fn the_environment_files_names_are_understood() {
        let plain = Settings::from_environment(OURS).unwrap();
        assert_eq!(plain.window, Some(Window::simple("Sun", "4", "15", "60").unwrap()));
        assert!(plain.drain.is_none() && plain.fleet_lock.is_none() && plain.warnings.is_empty());

        // As the source has it.
        let kei = "KEI_REBOOT_DOW=\"Sun\"          # day-of-week\nKEI_REBOOT_HOUR=\"04\"\nKEI_REBOOT_MIN=\"15\"\nKEI_DRAIN_CMD=\"/bin/drain now\"\n";
        let kei = Settings::from_environment(kei).unwrap();
        assert_eq!(kei.window, plain.window);
        assert_eq!(kei.drain, Some(Program::Line("/bin/drain now".into())));

        let odd =
            "REBOOT_DOW=Mon\nKEI_REBOOT_DOW=Tue\nREBOOT_HOUR=1\nREBOOT_HOURS=2\nREBOOT_MAX_DEFER_DAYS=14\n";
        let odd = Settings::from_environment(odd).unwrap();
        assert_eq!(
            (odd.window, odd.max_defer_days),
            (Some(Window::simple("Mon", "1", "0", "60").unwrap()), Some(14))
        );
        let warnings = odd.warnings.join("\n");
        assert!(
            warnings.contains("REBOOT_DOW counts") && warnings.contains("REBOOT_HOURS is unknown"),
            "{warnings}"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("REBOOT_DOW=Sonntag\nREBOOT_HOUR=4\n", "REBOOT_DOW"),
            ("REBOOT_DOW=Sun\nREBOOT_HOUR=25\n", "REBOOT_HOUR"),
            ("REBOOT_DOW=Sun\n", "REBOOT_HOUR"),
            ("REBOOT_HOUR=4\n", "REBOOT_DOW"),
            ("REBOOT_MAX_DEFER_DAYS=x\n", "REBOOT_MAX_DEFER_DAYS"),
            ("FLEETLOCK_URL=ftp://x\n", "FLEETLOCK_URL"),
        ] {
            let error = format!("{:#}", Settings::from_environment(text).unwrap_err());
            assert!(error.contains(word), "{text}: {error}");
        }
        for (text, word) in [
            ("reboot: {window: {rule: \"FREQ=HOURLY\"}}", "FREQ"),
            ("reboot: {window: {rule: \"FREQ=DAILY;BYHOUR=4\", timezone: Mars/Olympus}}", "Mars/Olympus"),
            ("reboot: {drain_command: [drain]}", "absolute"),
            ("reboot: {windows: null}", "windows"),
        ] {
            let error = format!("{:#}", Settings::from_config(text, TimeZone::get).unwrap_err());
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn the_file_counts_that_declares_a_window() {
        let yaml = "reboot: {window: {rule: \"FREQ=WEEKLY;INTERVAL=2;BYDAY=SA;BYHOUR=1\", time_zone: Europe/Berlin, \
                    start: 2026-01-05}, drain_command: [/bin/drain, x], fleet_lock: {url: \"http://lock:1/base\"}}\nother: 1\n";
        let load = |files: &[(&str, &str)]| {
            let root = root(files);
            Settings::load(root.path()).unwrap()
        };
        assert!(load(&[]).window.is_none());
        let config = load(&[(CONFIG, yaml)]);
        assert_eq!(config.drain, Some(Program::List(vec!["/bin/drain".into(), "x".into()])));
        assert!(config.window.is_some() && config.fleet_lock.is_some());
        let both = load(&[(FILES[0], OURS), (CONFIG, yaml)]);
        assert!(both.drain.is_none() && both.warnings[0].contains("does not count"), "{:?}", both.warnings);
        let unset = load(&[(FILES[0], "REBOOT_DOW=\"\"\n"), (CONFIG, yaml)]);
        assert!(unset.drain.is_some() && unset.warnings.len() == 1, "{:?}", unset.warnings);
        let none = load(&[(FILES[0], "REBOOT_DOW=\nDRAIN_CMD=x\n"), (CONFIG, "reboot: {window: null}\n")]);
        assert!(none.window.is_none() && none.drain.is_some());
        let short = load(&[(FILES[0], "REBOOT_DOW=Sun\nREBOOT_HOUR=4\nREBOOT_DURATION_MIN=9\n")]);
        assert!(short.warnings[0].contains("less than 10 minutes"), "{:?}", short.warnings);
        let kei = load(&[(FILES[1], "KEI_REBOOT_DOW=Sun\nKEI_REBOOT_HOUR=4\n")]);
        assert!(kei.window.is_some());
        let ours =
            load(&[(FILES[0], "REBOOT_DOW=\n"), (FILES[1], "KEI_REBOOT_DOW=Sun\nKEI_REBOOT_HOUR=4\n")]);
        assert!(ours.window.is_none(), "only the first file counts");
    }

    #[test]
    fn a_file_that_others_can_write_is_not_believed() {
        let root = root(&[(FILES[0], OURS)]);
        let path = root.path().join(FILES[0]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        let error = Settings::load(root.path()).unwrap_err().to_string();
        assert!(error.contains("chmod go-w"), "{error}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = format!("{:#}", Settings::load(root.path()).unwrap_err());
        assert!(error.contains("not a regular file"), "{error}");
    }
}
