//! Reboots and restarts: by themselves where they must not, or never though they must.

use jiff::Timestamp;
use patch_backends::system::newer_kernel;

use super::{
    Seen,
    host::Host,
    packages::NO_DATABASE,
    window::{Declared, declared},
};
use crate::provision::check::{is_enabled, nrconf};

/// Packages whose services lose work when they are restarted in its middle. What ends in `*` is a beginning.
const STATEFUL: &[&str] = &[
    "postgresql-1*",
    "postgresql-9*",
    "mariadb-server*",
    "mysql-server*",
    "mongodb-server*",
    "mongodb-org-server",
    "redis-server",
    "valkey-server",
    "elasticsearch",
    "opensearch",
    "cassandra",
    "couchdb",
    "influxdb",
    "influxdb2",
    "rabbitmq-server",
    "etcd-server",
    "ceph-osd",
    "slapd",
];

/// Packages that run guests.
const GUESTS: &[&str] =
    &["libvirt-daemon-system", "qemu-system-x86", "qemu-system-arm", "proxmox-ve", "lxd", "incus"];

/// For how many days a reboot may wait if nobody says.
const MAX_DEFER_DAYS: i64 = 14;

pub(super) fn automatic(host: &Host<'_>, seen: &mut Seen) {
    if !host.in_force.conf().is_true("Unattended-Upgrade::Automatic-Reboot") {
        return;
    }
    if host.database.is_none() {
        return seen.not_looked_at("automatic_reboot", NO_DATABASE);
    }
    let stateful = host.installed(&[STATEFUL, GUESTS].concat());
    if !stateful.is_empty() {
        seen.critical(
            "automatic_reboot",
            format!("unattended-upgrades reboots by itself, and this host has {}", stateful.join(", ")),
            "a reboot at any time ends what databases and guests are doing",
            "linux-patch-host provision unattended, and a reboot window",
        );
    }
}

pub(super) fn restarts(host: &Host<'_>, seen: &mut Seen) {
    if host.installed(&["needrestart"]).is_empty() {
        return;
    }
    const DIR: &str = "etc/needrestart/conf.d";
    let mut names: Vec<String> = host
        .files
        .names(DIR)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .collect();
    names.retain(|name| name.ends_with(".conf"));
    names.sort();
    let paths = names.into_iter().map(|name| format!("{DIR}/{name}"));
    let mut restart = None;
    for path in ["etc/needrestart/needrestart.conf".to_owned()].into_iter().chain(paths) {
        match host.files.read(&path) {
            Ok(text) => {
                for (key, value) in nrconf(&String::from_utf8_lossy(&text)) {
                    if key == "restart" {
                        restart = Some((value, path.clone()));
                    }
                }
            }
            Err(error) => seen.not_looked_at("needrestart_auto", format!("/{path}: {error}")),
        }
    }
    let stateful = host.installed(STATEFUL);
    if let Some((value, path)) = restart
        && value == "a"
        && !stateful.is_empty()
    {
        seen.critical(
            "needrestart_auto",
            format!(
                "/{path} has needrestart restart services by itself, and this host has {}",
                stateful.join(", ")
            ),
            "a database that is restarted in the middle of a migration is damaged",
            "linux-patch-host provision unattended",
        );
    }
}

pub(super) fn overdue(host: &Host<'_>, seen: &mut Seen) {
    const ID: &str = "reboot_overdue";
    let booted = match seconds_up(host) {
        Ok(seconds) => Some(host.now.as_second().saturating_sub(seconds)),
        Err(reason) => {
            seen.not_looked_at(ID, reason);
            None
        }
    };
    let declared = declared(host);
    let allowed = declared.as_ref().ok().and_then(|declared| declared.max_defer_days);
    let limit = match (&declared, allowed) {
        (_, Some(days)) => format!("{days} days"),
        (Ok(_), None) => format!("{MAX_DEFER_DAYS} days"),
        (Err(_), None) => {
            format!("{MAX_DEFER_DAYS} days, unless the reboot window says otherwise, which was not looked at")
        }
    };
    let allowed = allowed.map_or(MAX_DEFER_DAYS, i64::from);
    let days_since = |second: i64| host.now.as_second().saturating_sub(second) / 86_400;
    let asked = match asked_at(host) {
        // What asks lies in memory, and is not older than the boot, whatever the clock said then.
        Ok(asked) => asked.map(|asked| days_since(booted.map_or(asked, |booted| asked.max(booted)))),
        Err(reason) => return seen.not_looked_at(ID, reason),
    };
    let what = match asked {
        Some(days) if days > allowed => {
            Some(format!("a reboot has been required for at least {days} days, and may wait for {limit}"))
        }
        _ => booted.map(days_since).filter(|days| *days > allowed).and_then(|days| {
            let kernel = newer(host, seen)?;
            Some(format!(
                "{kernel}, and the host was booted {days} days ago; a reboot may wait for {limit}, and since when \
                 this one has is not recorded"
            ))
        }),
    };
    if let Some(what) = what {
        seen.warning(
            ID,
            what,
            "a new kernel or library is on disk, and the old one runs",
            "reboot, or declare a reboot window",
        );
    }
}

/// Since when a reboot is known to be asked for, in seconds since 1970. Each package that asks writes both files anew, so it
/// may have been asked for earlier.
fn asked_at(host: &Host<'_>) -> Result<Option<i64>, String> {
    let mut oldest = None;
    for path in ["run/reboot-required", "run/reboot-required.pkgs"] {
        let meta = match host.files.metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.ends_with(".pkgs") => continue,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("/{path}: {error}")),
        };
        // Where the system knows when a file was made, that is when the first one asked.
        let times = [meta.modified().ok(), meta.created().ok()];
        let seconds =
            times.into_iter().flatten().filter_map(|at| Some(Timestamp::try_from(at).ok()?.as_second()));
        oldest = seconds.chain(oldest).min();
    }
    Ok(oldest)
}

/// How many seconds ago the host was booted.
fn seconds_up(host: &Host<'_>) -> Result<i64, String> {
    const UPTIME: &str = "proc/uptime";
    let text = host.files.read(UPTIME).map_err(|error| format!("/{UPTIME}: {error}"))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let seconds = text.split(['.', ' ']).next().and_then(|seconds| seconds.trim().parse().ok());
    seconds.ok_or_else(|| format!("/{UPTIME} does not say since when the system runs"))
}

/// Why another kernel than the running one should run, if one should.
fn newer(host: &Host<'_>, seen: &mut Seen) -> Option<String> {
    // A container has the kernel of its host.
    if host.files.is_there("run/systemd/container") {
        return None;
    }
    let Some(database) = &host.database else {
        seen.not_looked_at("reboot_overdue", NO_DATABASE);
        return None;
    };
    let line = |path: &str| match host.files.read(path) {
        Ok(text) => Ok(String::from_utf8_lossy(&text).trim().to_owned()),
        Err(error) => Err(format!("/{path}: {error}")),
    };
    match (line("proc/sys/kernel/osrelease"), line("proc/version")) {
        (Ok(running), Ok(banner)) => newer_kernel(&running, &banner, database),
        (Err(reason), _) | (_, Err(reason)) => {
            seen.not_looked_at("reboot_overdue", reason);
            None
        }
    }
}

pub(super) fn window(host: &Host<'_>, seen: &mut Seen) {
    match declared(host) {
        Ok(Declared { problem: Some(problem), .. }) => seen.warning(
            "reboot_window_never",
            problem,
            "a required reboot is never made",
            "correct the file that it names",
        ),
        Ok(Declared { has_window: true, .. }) => timer(host, seen),
        Ok(Declared { .. }) => {
            if restarts_wait(host) {
                seen.warning(
                    "restarts_without_window",
                    "policy.restart waits for the reboot window, and none is declared".to_owned(),
                    "the services that it names go on with old code for ever",
                    "declare a reboot window, or policy.restart.when: at_once",
                );
            }
        }
        Err(reason) => {
            seen.not_looked_at("reboot_window_never", reason.clone());
            seen.not_looked_at(TIMER_OFF, reason);
        }
    }
}

/// Whether restarts of services wait for the window.
fn restarts_wait(host: &Host<'_>) -> bool {
    let is = |key: &str, value: &str| host.configured(key, "") == value;
    is("/policy/restart/mode", "restart") && is("/policy/restart/when", "in_window")
}

const TIMER_OFF: &str = "reboot_window_timer_off";

/// Whether anybody looks at a window that is declared. Not mended without being asked: it may reboot the host within minutes.
pub(super) fn timer(host: &Host<'_>, seen: &mut Seen) {
    const UNIT: &str = "linux-patch-reboot-window.timer";
    // Whoever came from the older one may still go by that; it restarts no services.
    let has_older = is_enabled(host.files, "kei-reboot-window.timer");
    if has_older && !restarts_wait(host) {
        return;
    }
    let what = if !is_enabled(host.files, UNIT) {
        "is not enabled".to_owned()
    } else if !host.files.is_there("run/systemd/system") {
        return seen.not_looked_at(TIMER_OFF, format!("systemd does not run here, so neither does {UNIT}"));
    } else {
        match host.tools.ask("systemctl", &["show", "-p", "ActiveState", "--value", "--", UNIT]) {
            Ok(state) if ["active", "activating"].contains(&state.trim()) => return,
            Ok(state) => format!("is {}", state.trim()),
            Err(error) => return seen.not_looked_at(TIMER_OFF, error.to_string()),
        }
    };
    seen.warning(
        TIMER_OFF,
        format!("a reboot window is declared, and {UNIT} {what}"),
        if has_older {
            "kei-reboot-window.timer only reboots: waiting restarts are never made"
        } else {
            "nobody looks whether the window is open: required reboots and waiting restarts are never made"
        },
        format!("systemctl enable --now {UNIT}"),
    );
}
