//! Whether updates are installed by themselves at all, which, and how soon.

use jiff::SignedDuration;
use patch_policy::{
    handover::{Decision, Reason},
    promise::{self, Interval, PROMISED},
    schedule::Schedule,
};
use patch_types::policy::PolicyMode;

use super::{
    Fix, Seen, Severity,
    host::{CONFIG, Host},
    packages::NO_DATABASE,
};
use crate::{
    policy,
    provision::{
        check::{Promise, duration, is_enabled},
        content::TIMERS,
    },
    tools::ToolError,
};

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

/// A mode that says that the agent patches, where it does not, or not alone.
pub(super) fn agent_mode(host: &Host<'_>, seen: &mut Seen) {
    const ID: &str = "agent_mode_without_effect";
    const WHY: &str = "either nobody installs security fixes, or unattended-upgrades does it, without a plan and a way back";
    const TICK: &str =
        "systemctl enable --now linux-patch-policy.timer; linux-patch-host policy tick says what it does";
    let policy = match host.policy() {
        Ok(policy) => policy,
        Err(error) => return seen.not_looked_at(ID, format!("/{CONFIG}: {error}")),
    };
    let remembered = policy::State::load(host.files);
    if let Ok(state) = &remembered
        && let Some(refused) = policy::refused(host.files, host.tools, &policy, state)
    {
        let todo = format!("correct /{CONFIG}: linux-patch-api check-config names line and key");
        return seen.critical(ID, refused, "who patches this host is not what is declared", todo);
    }
    let attempt = policy::under_way(host.files).ok().flatten();
    let is_held = host.files.is_there(policy::FILE);
    if policy.mode == PolicyMode::Off {
        // It goes on, and what it has taken is given back when it has ended.
        if is_held && attempt.is_none() {
            let what = format!(
                "/{} switches unattended-upgrades off, and /{CONFIG} does not have policy.mode: agent",
                policy::FILE
            );
            seen.critical(ID, what, "nobody installs security fixes", TICK);
        }
        return;
    }
    let mut wrong = Vec::new();
    let is_watched = is_enabled(host.files, policy::TIMER);
    if !is_watched {
        wrong
            .push(format!("{} is not enabled, so nobody sees to it that one of them patches", policy::TIMER));
    }
    if !host.agent_patches() {
        wrong.push(format!("unattended-upgrades is not switched off by /{}", policy::FILE));
    }
    if policy.is_paused(host.now) {
        wrong
            .push("it is paused (policy.paused, policy.paused_until), and nobody patches instead".to_owned());
    }
    if let Some(file) = policy::frozen_by(host.files) {
        wrong.push(format!("the host is frozen by {file}, and nobody patches instead; remove it to go on"));
    }
    match remembered {
        Err(error) => seen.not_looked_at(ID, format!("whether the agent succeeds: {error}")),
        Ok(state) => match policy::service(host.tools) {
            Err(error) => seen.not_looked_at(ID, format!("whether the agent runs: {error}")),
            Ok(service) => match policy::judge(host.files, &policy, &state, service, host.now) {
                Ok(Decision::Agent { .. } | Decision::Distribution(Reason::Waits)) => {}
                // That is said already.
                Ok(Decision::Distribution(Reason::Unwatched)) if !is_watched => {}
                Ok(Decision::Distribution(reason)) => wrong.push(reason.to_string()),
                Err(error) => wrong.push(error.to_string()),
            },
        },
    }
    if !wrong.is_empty() {
        let what = format!("/{CONFIG} has policy.mode: agent, but {}", wrong.join("; "));
        seen.critical(ID, what, WHY, format!("{TICK}. Or {PROVISION}, and policy.mode: off"));
    }
}

pub(super) fn updater(host: &Host<'_>, seen: &mut Seen) {
    if host.agent_patches() {
        return;
    }
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
    let is_off = |name: &str| host.in_force.interval(name) == Interval::Never;
    let mut off = Vec::new();
    if conf.value("APT::Periodic::Enable") == Some("0") {
        off.push("APT::Periodic::Enable");
    }
    if is_off("APT::Periodic::Update-Package-Lists") {
        off.push("APT::Periodic::Update-Package-Lists");
    }
    if is_off(policy::SETTING) && !host.agent_patches() {
        off.push(policy::SETTING);
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
    if host.installed(&["unattended-upgrades"]).is_empty() || host.agent_patches() {
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
    if host.agent_patches() {
        return agents_promise(host, seen);
    }
    match host.in_force.promise(host.files) {
        Promise::Within(case) if case.total() > PROMISED => seen.warning(
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

/// The same for the agent's own runs.
fn agents_promise(host: &Host<'_>, seen: &mut Seen) {
    // What is wrong with the policy has a finding of its own.
    let Ok(policy) = host.policy() else { return };
    let Ok(window) = policy::window(&policy) else { return };
    let schedule = Schedule {
        window: &window,
        spread: SignedDuration::from_mins(policy.spread_minutes.into()),
        host: b"",
        catch_up: policy.catch_up,
    };
    let promise = promise::agent(&schedule, host.now);
    if promise.worst.is_some() && !promise.is_kept() {
        seen.warning(
            "too_slow",
            format!("a fix can take more than 24 hours from its publication to its installation: {promise}"),
            "attackers use a published fix within hours",
            "let policy.window open more often, or leave it out: then it opens every six hours",
        );
    }
}

pub(super) fn two_updaters(host: &Host<'_>, seen: &mut Seen) {
    const WHY: &str =
        "two that change packages or reboot without knowing of each other get in each other's way";
    let conf = host.in_force.conf();
    let others = host.installed(&["cron-apt", "yum-cron", "dnf-automatic"]);
    // Neither knows of those; of each other they do.
    let beside = if host.policy().is_ok_and(|policy| policy.mode == PolicyMode::Agent) {
        Some("the agent, which patches by itself")
    } else {
        (!host.installed(&["unattended-upgrades"]).is_empty()).then_some("unattended-upgrades")
    };
    if let (false, Some(beside)) = (others.is_empty(), beside) {
        seen.warning(
            "two_updaters",
            format!("{} is installed beside {beside}", others.join(", ")),
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
