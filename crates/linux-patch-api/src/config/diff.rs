//! What is different between two configurations: for people, without secrets, and for the program, which parts of what
//! runs have to be changed.

use std::{collections::BTreeSet, fmt};

use patch_types::{
    PackageName,
    notifications::Notifications,
    settings::{Restart, RestartMode, RestartTime, Snapshots},
};

use super::{
    fragment::{HealthCheck, Policy, Reboot},
    settings::{Roles, Settings, TlsPaths},
};

/// As much of a value as a difference shows, in characters.
const MAX_VALUE: usize = 200;

/// As many keys as a sentence about a difference names.
const MAX_NAMED: usize = 40;

/// A key with another value than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key, with its section.
    pub key: String,
    /// What it was.
    pub old: String,
    /// What it is.
    pub new: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.old, self.new)
    }
}

/// All changes as one sentence.
#[must_use]
pub fn sentence(changes: &[Change]) -> String {
    let mut named: Vec<String> = changes.iter().take(MAX_NAMED).map(ToString::to_string).collect();
    if changes.len() > MAX_NAMED {
        named.push(format!("and {} more", changes.len() - MAX_NAMED));
    }
    named.join("; ")
}

/// What has to be done to what runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Steps {
    /// Listen somewhere else.
    pub listen: bool,
    /// Read the certificates from other files.
    pub tls: bool,
    /// Judge who is connected by other roles.
    pub roles: bool,
    /// Log at another level.
    pub level: bool,
    /// Run jobs within other limits.
    pub jobs: bool,
    /// Keep or send the audit trail in another way.
    pub audit: bool,
}

impl Steps {
    /// The steps from one configuration to another. What is looked up for every request is no step.
    #[must_use]
    pub fn between(old: &Settings, new: &Settings) -> Self {
        Self {
            listen: old.listen != new.listen,
            tls: old.tls != new.tls,
            roles: old.roles != new.roles,
            level: old.level != new.level,
            jobs: old.job_timeout != new.job_timeout || old.max_concurrent_jobs != new.max_concurrent_jobs,
            audit: old.retention_days != new.retention_days
                || old.remote_syslog != new.remote_syslog
                || old.remote_syslog_ca != new.remote_syslog_ca,
        }
    }
}

/// The keys with other values, in the order of the file.
#[must_use]
pub fn diff(old: &Settings, new: &Settings) -> Vec<Change> {
    // Taken apart whole, so that a new setting cannot be forgotten here.
    let Settings {
        listen,
        timeout,
        tls,
        level,
        retention_days,
        remote_syslog,
        remote_syslog_ca,
        job_timeout,
        max_concurrent_jobs,
        rate_limit,
        roles,
        rollback,
        health_checks,
        policy,
        reboot,
        notifications,
        inactive: _,
    } = old;
    let mut found = Differences(Vec::new());
    found.compare("server.port", &listen.port(), &new.listen.port(), ToString::to_string);
    found.compare("server.bind_address", listen.ip(), new.listen.ip(), ToString::to_string);
    found.compare("server.timeout", timeout, &new.timeout, |t| format!("{} s", t.as_secs()));
    found.tls(tls, &new.tls);
    found.compare("logging.level", level, &new.level, |l| l.as_str().to_uppercase());
    found.compare("logging.retention_days", retention_days, &new.retention_days, ToString::to_string);
    found.compare("logging.remote_syslog", remote_syslog, &new.remote_syslog, |target| {
        target.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string)
    });
    found.compare("logging.remote_syslog_ca", remote_syslog_ca, &new.remote_syslog_ca, |path| {
        path.as_ref().map_or_else(|| "the system's".to_owned(), |path| path.display().to_string())
    });
    let minutes = |t: &std::time::Duration| (t.as_secs() / 60).to_string();
    found.compare("security.job_timeout_minutes", job_timeout, &new.job_timeout, minutes);
    found.compare(
        "security.max_concurrent_jobs",
        max_concurrent_jobs,
        &new.max_concurrent_jobs,
        ToString::to_string,
    );
    found.compare(
        "security.rate_limit_requests_per_minute",
        rate_limit,
        &new.rate_limit,
        ToString::to_string,
    );
    found.roles(roles, &new.roles);
    found.compare("rollback.auto", &rollback.auto, &new.rollback.auto, ToString::to_string);
    found.compare("rollback.require", &rollback.require, &new.rollback.require, |require| {
        format!("{require:?}").to_lowercase()
    });
    found.compare("rollback.keep_days", &rollback.keep_days, &new.rollback.keep_days, ToString::to_string);
    found.compare("rollback.keep_mib", &rollback.keep_mib, &new.rollback.keep_mib, ToString::to_string);
    found.compare("rollback.snapshots", &rollback.snapshots, &new.rollback.snapshots, |snapshots| {
        let Snapshots { mode, keep, keep_days, min_free_mib } = snapshots;
        format!("{}, keep {keep}, {keep_days} days, {min_free_mib} MiB free", mode.as_str())
    });
    found.compare("health_checks", health_checks, &new.health_checks, |checks| summary_of_checks(checks));
    found.policy(policy, &new.policy);
    found.compare("reboot", reboot, &new.reboot, summary_of_reboot);
    found.compare("notifications", notifications, &new.notifications, summary_of_notifications);
    found.0
}

/// The changes found so far.
struct Differences(Vec<Change>);

impl Differences {
    fn compare<T: PartialEq + ?Sized>(&mut self, key: &str, old: &T, new: &T, show: impl Fn(&T) -> String) {
        if old != new {
            let (before, after) = (cut(show(old)), cut(show(new)));
            // What is shown leaves out what may be secret, and that may be all that is different.
            let after = if before == after { format!("{after}, with other contents") } else { after };
            self.0.push(Change { key: key.to_owned(), old: before, new: after });
        }
    }

    fn policy(&mut self, old: &Policy, new: &Policy) {
        // Taken apart whole, for the same reason.
        let Policy {
            mode,
            window,
            spread_minutes,
            catch_up,
            updates,
            exclude,
            paused,
            paused_until,
            restart,
        } = old;
        self.compare("policy.mode", mode, &new.mode, |mode| format!("{mode:?}").to_lowercase());
        self.compare("policy.window", window, &new.window, |window| {
            window.as_ref().map_or_else(
                || "every six hours".to_owned(),
                |window| {
                    let when = window.rule.clone().unwrap_or_else(|| {
                        let (hour, minute) = (window.hour.unwrap_or(0), window.minute.unwrap_or(0));
                        format!("{} at {hour:02}:{minute:02}", window.days.as_deref().unwrap_or_default())
                    });
                    format!("{when} {} for {} min", window.timezone, window.duration_minutes)
                },
            )
        });
        self.compare("policy.spread_minutes", spread_minutes, &new.spread_minutes, ToString::to_string);
        self.compare("policy.catch_up", catch_up, &new.catch_up, ToString::to_string);
        self.compare("policy.updates", updates, &new.updates, |updates| {
            format!("{updates:?}").to_lowercase()
        });
        self.compare("policy.exclude", exclude, &new.exclude, |exclude| {
            let names: Vec<&str> = exclude.iter().map(PackageName::as_str).collect();
            if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
        });
        self.compare("policy.paused", paused, &new.paused, ToString::to_string);
        self.compare("policy.paused_until", paused_until, &new.paused_until, |until| {
            until.map_or_else(|| "none".to_owned(), |until| until.to_string())
        });
        self.compare("policy.restart", restart, &new.restart, summary_of_restart);
    }

    fn tls(&mut self, old: &TlsPaths, new: &TlsPaths) {
        for (key, old, new) in [
            ("tls.ca_cert", &old.ca_cert, &new.ca_cert),
            ("tls.server_cert", &old.server_cert, &new.server_cert),
            ("tls.server_key", &old.server_key, &new.server_key),
            ("tls.crl", &old.crl, &new.crl),
        ] {
            self.compare(key, old, new, |path| path.display().to_string());
        }
    }

    fn roles(&mut self, old: &Roles, new: &Roles) {
        let identities: BTreeSet<&str> = old.entries().chain(new.entries()).map(|(name, _)| name).collect();
        for identity in identities {
            let of =
                |roles: &Roles| roles.entries().find(|(name, _)| *name == identity).map(|(_, role)| role);
            self.compare(
                &format!("security.roles.{}", cut(identity.to_owned())),
                &of(old),
                &of(new),
                |role| role.map_or("none", super::settings::Role::as_str).to_owned(),
            );
        }
        if old.is_empty() != new.is_empty() {
            let meaning = |roles: &Roles| {
                let words =
                    if roles.is_empty() { "every certificate is admin" } else { "only who is listed" };
                words.to_owned()
            };
            self.compare("security.roles", old, new, meaning);
        }
    }
}

fn cut(text: String) -> String {
    match text.char_indices().nth(MAX_VALUE) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// Commands and addresses may hold passwords; their kinds do not.
fn summary_of_checks(checks: &[HealthCheck]) -> String {
    let kinds: Vec<&str> = checks
        .iter()
        .map(|check| match check {
            HealthCheck::Command { .. } => "command",
            HealthCheck::Http { .. } => "http",
            HealthCheck::Tcp { .. } => "tcp",
            HealthCheck::Systemd { .. } => "systemd",
        })
        .collect();
    if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }
}

fn summary_of_reboot(reboot: &Reboot) -> String {
    let window = reboot.window.as_ref().map_or_else(
        || "no window".to_owned(),
        |w| format!("window {} {} for {} minutes", w.rule, w.timezone, w.duration_minutes),
    );
    let drain = if reboot.drain_command.is_some() { "a drain command" } else { "no drain command" };
    let undrain = if reboot.undrain_command.is_some() { ", an undrain command" } else { "" };
    let lock = if reboot.fleet_lock.is_some() { ", a fleet lock" } else { "" };
    let defer =
        reboot.max_defer_days.map(|days| format!(", put off for {days} days at most")).unwrap_or_default();
    format!("{window}, {drain}{undrain}{lock}{defer}")
}

fn summary_of_restart(restart: &Restart) -> String {
    match (restart.mode, restart.when) {
        (RestartMode::List, _) => "list".to_owned(),
        (RestartMode::Restart, RestartTime::AtOnce) => format!("at once: {}", restart.services.join(", ")),
        (RestartMode::Restart, RestartTime::InWindow) => {
            format!("in the window: {}", restart.services.join(", "))
        }
    }
}

/// The address of a webhook is its password.
fn summary_of_notifications(notifications: &Notifications) -> String {
    let mail = notifications.mail.as_ref().map_or_else(
        || "no mail".to_owned(),
        |mail| format!("mail by {} to {}", mail.server(), mail.to.join(", ")),
    );
    format!("{mail}, {} webhooks", notifications.webhooks.len())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(text: &str) -> Settings {
        super::super::parse(text, Path::new("/"), Path::new("config.yaml")).unwrap()
    }

    fn shown(old: &str, new: &str) -> Vec<String> {
        diff(&settings(old), &settings(new)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_key_is_shown_with_both_values() {
        for (old, new, wanted) in [
            ("", "server: {}\n", &[][..]),
            ("", "policy: {}\n", &[]),
            ("", "server: {port: 1}\n", &["server.port: 12443 -> 1"]),
            (
                "",
                "policy: {mode: agent, window: {days: Sun, hour: 4}, exclude: [aa], paused: true}\n",
                &[
                    "policy.mode: off -> agent",
                    "policy.window: every six hours -> Sun at 04:00 UTC for 60 min",
                    "policy.exclude: nothing -> aa",
                    "policy.paused: false -> true",
                ],
            ),
            ("", "server: {timeout: 5}\n", &["server.timeout: 30 s -> 5 s"]),
            (
                "server: {bind_address: 10.0.0.1}\nlogging: {level: debug}\n",
                "logging: {level: WARN, retention_days: 7, remote_syslog: \"a:1\"}\n",
                &[
                    "server.bind_address: 10.0.0.1 -> 0.0.0.0",
                    "logging.level: DEBUG -> WARN",
                    "logging.retention_days: 30 -> 7",
                    "logging.remote_syslog: none -> udp://a:1",
                ],
            ),
            (
                "policy: {restart: {mode: restart, services: [a.service, b.service]}}\n",
                "policy: {restart: {mode: restart, services: [a.service], when: in_window}}\n",
                &["policy.restart: at once: a.service, b.service -> in the window: a.service"],
            ),
            ("", "tls: {crl: /x}\n", &["tls.crl: /etc/linux_patch_api/certs/crl.pem -> /x"]),
            (
                "security: {roles: {a: admin, b: viewer}}\n",
                "security: {roles: {b: operator, c: admin}, rate_limit_requests_per_minute: 1}\n",
                &[
                    "security.rate_limit_requests_per_minute: 600 -> 1",
                    "security.roles.a: admin -> none",
                    "security.roles.b: viewer -> operator",
                    "security.roles.c: none -> admin",
                ],
            ),
            (
                "security: {roles: {a: admin}}\n",
                "",
                &[
                    "security.roles.a: admin -> none",
                    "security.roles: only who is listed -> every certificate is admin",
                ],
            ),
            (
                "",
                "security: {job_timeout_minutes: 1, max_concurrent_jobs: 2}\nrollback: {auto: false, require: exact}\n",
                &[
                    "security.job_timeout_minutes: 30 -> 1",
                    "security.max_concurrent_jobs: 5 -> 2",
                    "rollback.auto: true -> false",
                    "rollback.require: any -> exact",
                ],
            ),
        ] {
            assert_eq!(shown(old, new), wanted, "{old:?} {new:?}");
        }
    }

    #[test]
    fn what_may_be_secret_is_not_shown() {
        let all = shown(
            "notifications: {webhooks: [\"https://h/s3cret\"]}\n\
             health_checks: [{type: command, command: [/bin/check, s3cret]}]\n\
             reboot: {drain_command: [/bin/drain, s3cret]}\n",
            "notifications: {webhooks: [\"https://h/other-s3cret\"]}\n\
             health_checks: [{type: command, command: [/bin/check, other-s3cret]}]\n\
             reboot: {drain_command: [/bin/drain, other-s3cret]}\n",
        );
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|change| !change.contains("s3cret")), "{all:?}");
        assert!(all.iter().all(|change| change.ends_with("with other contents")), "{all:?}");
    }

    #[test]
    fn only_what_is_concerned_is_touched() {
        let none = Steps::default();
        for (new, steps) in [
            ("server: {timeout: 5}\nrollback: {auto: false}\n", none),
            ("security: {rate_limit_requests_per_minute: 1}\n", none),
            ("server: {port: 1}\n", Steps { listen: true, ..none }),
            ("tls: {crl: /x}\n", Steps { tls: true, ..none }),
            ("security: {roles: {a: admin}}\n", Steps { roles: true, ..none }),
            ("logging: {level: DEBUG}\n", Steps { level: true, ..none }),
            ("logging: {retention_days: 1}\n", Steps { audit: true, ..none }),
            ("security: {max_concurrent_jobs: 1}\n", Steps { jobs: true, ..none }),
        ] {
            assert_eq!(Steps::between(&settings(""), &settings(new)), steps, "{new:?}");
        }
    }

    #[test]
    fn a_long_difference_is_cut() {
        let names: Vec<String> = (0..100).map(|i| format!("n{i:03}: viewer")).collect();
        let new = format!("security: {{roles: {{{}}}}}\n", names.join(", "));
        let text = sentence(&diff(&settings("security: {roles: {x: admin}}\n"), &settings(&new)));
        assert!(text.ends_with("; and 61 more"), "{text}");
        let long = format!("logging: {{remote_syslog: \"{}:1\"}}\n", "a".repeat(250));
        assert!(sentence(&diff(&settings(""), &settings(&long))).chars().count() < 300);
    }
}
