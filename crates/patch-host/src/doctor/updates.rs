//! Whether updates are installed by themselves at all, which, and how soon.

use super::{
    Fix, Seen, Severity,
    host::{CONFIG, Host},
    packages::NO_DATABASE,
};
use crate::{
    provision::{
        check::{Promise, is_enabled},
        content::TIMERS,
    },
    tools::ToolError,
    worst_case::{Interval, duration},
};

/// Within how many minutes a fix is to be installed.
const PROMISE: u64 = 24 * 60;

const PROVISION: &str = "linux-patch-host provision unattended";

pub(super) fn timers(host: &Host<'_>, seen: &mut Seen) {
    const WHY: &str = "without it no security fix is fetched or installed by itself";
    // A timer that is started may install at once, and what reboots by itself then reboots this host.
    let reboots = host.in_force.conf().is_true("Unattended-Upgrade::Automatic-Reboot");
    let is_unknown = host.in_force.apt.is_err() && !host.in_force.files.unread.is_empty();
    let is_safe = !reboots && !is_unknown;
    let first = match (reboots, is_unknown) {
        (true, _) => format!("{PROVISION} first, since unattended-upgrades reboots by itself; then "),
        (_, true) => format!("{PROVISION} first, since not all of apt's settings could be read; then "),
        _ => String::new(),
    };
    for (timing, timer) in TIMERS.iter().zip(&host.in_force.timers) {
        let unit = timing.unit;
        let fix = is_safe.then_some(Fix::EnableTimer(unit));
        let enable = format!("{first}systemctl unmask {unit} && systemctl enable --now {unit}");
        match timer {
            Err(error) => seen.not_looked_at("timers", error.to_string()),
            Ok(timer) if timer.is_masked => {
                seen.add("timer_masked", Severity::Critical, format!("{unit} is masked"), WHY, enable, fix);
            }
            Ok(timer) if !timer.exists => {
                seen.critical(
                    "timer_missing",
                    format!("there is no {unit}"),
                    WHY,
                    "apt-get install --reinstall apt",
                );
            }
            Ok(_) if !is_enabled(host.files, unit) => {
                seen.add(
                    "timer_disabled",
                    Severity::Critical,
                    format!("{unit} is disabled"),
                    WHY,
                    enable,
                    fix,
                );
            }
            Ok(_) if !host.files.is_there("run/systemd/system") => {
                seen.not_looked_at(
                    "timer_stopped",
                    format!("systemd does not run here, so neither does {unit}"),
                );
            }
            Ok(_) => match host.tools.ask("systemctl", &["show", "-p", "ActiveState", "--value", "--", unit])
            {
                Ok(state) if ["active", "activating"].contains(&state.trim()) => {}
                Ok(state) => {
                    let what = format!("{unit} is {}", state.trim());
                    seen.add("timer_stopped", Severity::Critical, what, WHY, enable, fix);
                }
                Err(error) => seen.not_looked_at("timers", error.to_string()),
            },
        }
    }
}

/// A mode that says that the agent patches, of a version that does not.
pub(super) fn agent_mode(host: &Host<'_>, seen: &mut Seen) {
    if let Err(error) = &host.config {
        seen.not_looked_at("agent_mode_without_effect", format!("/{CONFIG}: {error}"));
    }
    if host.is_agent_mode() {
        seen.critical(
            "agent_mode_without_effect",
            format!("/{CONFIG} has policy.mode: agent, and this version does not act on it"),
            "the agent installs nothing by itself, whatever that setting promises",
            format!("{PROVISION}, and policy.mode: off"),
        );
    }
}

pub(super) fn updater(host: &Host<'_>, seen: &mut Seen) {
    if host.database.is_none() {
        seen.not_looked_at("updater_missing", NO_DATABASE);
    } else if host.installed(&["unattended-upgrades"]).is_empty() {
        seen.critical(
            "updater_missing",
            "unattended-upgrades is not installed, and the agent does not patch by itself".to_owned(),
            "nothing installs security fixes",
            format!("apt-get install unattended-upgrades, then {PROVISION}"),
        );
    }
}

pub(super) fn periodic(host: &Host<'_>, seen: &mut Seen) {
    if let Err(error) = &host.in_force.apt
        && !matches!(error, ToolError::Foreign(_) | ToolError::Absent(_))
    {
        seen.not_looked_at("apt_settings", format!("{error}; apt's files were read instead"));
    }
    host.in_force.files.unread.iter().for_each(|unread| seen.not_looked_at("apt_settings", unread.clone()));
    let conf = host.in_force.conf();
    let is_off = |name: &str| Interval::parse(conf.value(name).unwrap_or_default()) == Interval::Never;
    let mut off = Vec::new();
    if conf.value("APT::Periodic::Enable") == Some("0") {
        off.push("APT::Periodic::Enable");
    }
    if is_off("APT::Periodic::Update-Package-Lists") {
        off.push("APT::Periodic::Update-Package-Lists");
    }
    if is_off("APT::Periodic::Unattended-Upgrade") {
        off.push("APT::Periodic::Unattended-Upgrade");
    }
    for name in off {
        let set = match host.in_force.files.setting(name) {
            Some(setting) => format!("by /{}", setting.file),
            None => "since no file of apt sets it".to_owned(),
        };
        seen.critical(
            "updates_off",
            format!("{name} is off, {set}"),
            "apt's timers run, and do nothing",
            PROVISION,
        );
    }
}

pub(super) fn origins(host: &Host<'_>, seen: &mut Seen) {
    if host.installed(&["unattended-upgrades"]).is_empty() {
        return;
    }
    let conf = host.in_force.conf();
    let entries: Vec<&str> = ["Unattended-Upgrade::Origins-Pattern", "Unattended-Upgrade::Allowed-Origins"]
        .into_iter()
        .flat_map(|list| conf.list(list))
        .map(|setting| setting.value.as_str())
        .collect();
    // A pattern that names neither suite, codename nor label covers the security archive too.
    let covers = |entry: &&str| {
        let entry = entry.to_ascii_lowercase();
        let narrows = |key: &str| entry.split(',').any(|part| part.trim_start().starts_with(key));
        let is_pattern = entry.contains('=');
        entry.contains("security")
            || entry.contains('*')
            || (is_pattern
                && !["codename=", "n=", "archive=", "suite=", "a=", "label=", "l="]
                    .iter()
                    .any(|key| narrows(key)))
    };
    if !entries.iter().any(covers) {
        seen.critical(
            "security_not_allowed",
            format!(
                "unattended-upgrades may install from {entries:?}, and no security archive is among them"
            ),
            "security fixes are left out",
            PROVISION,
        );
    }
}

pub(super) fn promise(host: &Host<'_>, seen: &mut Seen) {
    match host.in_force.promise(host.files) {
        Promise::Within(case) if case.total() > PROMISE => seen.warning(
            "too_slow",
            format!(
                "a fix can take {} from its publication to its installation: {} until the lists are fetched, {} more until it is installed",
                duration(case.total()),
                duration(case.lists),
                duration(case.upgrade)
            ),
            "attackers use a published fix within hours",
            PROVISION,
        ),
        // What never happens has a finding of its own.
        Promise::Within(_) | Promise::Never(_) => {}
        Promise::Unknown(reason) => seen.not_looked_at("too_slow", reason),
    }
}

pub(super) fn two_updaters(host: &Host<'_>, seen: &mut Seen) {
    const WHY: &str =
        "two that change packages or reboot without knowing of each other get in each other's way";
    let conf = host.in_force.conf();
    let others = host.installed(&["cron-apt", "yum-cron", "dnf-automatic"]);
    if !others.is_empty() && !host.installed(&["unattended-upgrades"]).is_empty() {
        seen.warning(
            "two_updaters",
            format!("{} is installed beside unattended-upgrades", others.join(", ")),
            WHY,
            format!("apt-get remove {}", others.join(" ")),
        );
    }
    let windows: Vec<_> = ["kei-reboot-window.timer", "linux-patch-reboot-window.timer"]
        .into_iter()
        .filter(|unit| is_enabled(host.files, unit))
        .collect();
    if windows.len() > 1 {
        seen.warning(
            "two_reboot_windows",
            format!("{} are both enabled", windows.join(" and ")),
            WHY,
            "systemctl disable --now kei-reboot-window.timer",
        );
    }
    if !windows.is_empty() && conf.is_true("Unattended-Upgrade::Automatic-Reboot") {
        seen.warning(
            "two_reboot_windows",
            format!(
                "{} is enabled, and unattended-upgrades reboots by itself as well",
                windows.join(" and ")
            ),
            WHY,
            PROVISION,
        );
    }
}
