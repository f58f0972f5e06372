//! The host and its agent: system, units, health.

use patch_types::api::{CrlInForce, Health, HealthStatus, RebootState, Service, ServiceList, SystemInfo};

use super::{Rows, Style, Tone, clean, fields, plain, values};

/// The system.
pub(crate) fn info(info: &SystemInfo) -> String {
    let codename = info.os_codename.as_ref().map_or(String::new(), |name| format!(" ({name})"));
    let reboot = match (info.pending_reboot, info.reboot_reasons.is_empty()) {
        (false, _) => "no".to_owned(),
        (true, true) => "yes".to_owned(),
        (true, false) => format!("yes: {}", info.reboot_reasons.join("; ")),
    };
    fields(&[
        ("Host", info.hostname.clone()),
        ("System", format!("{} {}{codename}", info.os, info.os_version)),
        ("Kernel", info.kernel.clone()),
        ("Architecture", info.architecture.clone()),
        ("Package manager", info.package_manager.clone()),
        ("Indexes fetched", values::time_or(info.last_update_check, "never")),
        ("Packages changed", values::time_or(info.last_update_apply, "unknown")),
        ("Reboot needed", reboot),
        ("Up for", values::span(info.uptime_seconds)),
        ("Boot", info.boot_id.clone()),
        ("Agent", info.agent_version.clone()),
    ])
}

/// Whether a reboot is needed, and when it may come.
pub(crate) fn reboot(state: &RebootState) -> String {
    let needed = match (state.pending_reboot, state.reasons.is_empty()) {
        (false, _) => "no".to_owned(),
        (true, true) => "yes".to_owned(),
        (true, false) => format!("yes: {}", state.reasons.join("; ")),
    };
    let window = match &state.window {
        None => "none: the host never reboots by itself".to_owned(),
        Some(window) => match (window.open_until, window.next) {
            (Some(until), _) => format!("open until {}", values::time(until)),
            (None, Some(next)) => format!("opens {}", values::time(next)),
            (None, None) => "can never open".to_owned(),
        },
    };
    let timer = state.window.as_ref().and_then(|window| window.timer_off.clone()).unwrap_or_default();
    let against: Vec<&str> = state.against.iter().map(|obstacle| obstacle.message.as_str()).collect();
    let mut text = fields(&[
        ("Reboot needed", needed),
        ("Window", window),
        ("Not looked after", timer),
        ("Under way", state.phase.clone().unwrap_or_default()),
        ("Against it", against.join("; ")),
    ]);
    for queued in &state.queued {
        let how = match (queued.is_under_way, queued.force) {
            (true, _) => "under way",
            (false, true) => "at once",
            (false, false) => "in the window",
        };
        let reason =
            queued.reason.as_deref().map(|reason| format!(": {}", clean::line(reason))).unwrap_or_default();
        text.push_str(&format!(
            "  job {} of {}, {how}, not before {}{reason}\n",
            queued.job_id,
            clean::line(&queued.by),
            values::time(queued.not_before)
        ));
    }
    text
}

/// Units.
pub(crate) fn services(style: &Style, list: &ServiceList) -> String {
    if list.services.is_empty() {
        return "No unit has failed, and none runs old code.\n".to_owned();
    }
    let mut rows = Rows::new(style, &["UNIT", "STATE", "RUNS OLD CODE", "DESCRIPTION"]);
    for service in &list.services {
        let tone = if service.active_state == "failed" { Tone::Bad } else { Tone::Plain };
        rows.row([
            plain(&service.name),
            (format!("{} ({})", service.active_state, service.sub_state), tone),
            (
                values::yes(service.runs_old_code),
                if service.runs_old_code { Tone::Notice } else { Tone::Plain },
            ),
            plain(&service.description),
        ]);
    }
    rows.finish()
}

/// One unit.
pub(crate) fn service(service: &Service) -> String {
    let mut text = fields(&[
        ("Unit", service.name.clone()),
        ("Description", service.description.clone()),
        ("Loaded", service.load_state.clone()),
        ("State", format!("{} ({})", service.active_state, service.sub_state)),
        ("Runs old code", values::yes(service.runs_old_code)),
    ]);
    for file in &service.replaced_files {
        text.push_str(&format!("  replaced since: {}\n", clean::line(file)));
    }
    text
}

/// The agent.
pub(crate) fn health(style: &Style, health: &Health) -> String {
    let mut text = fields(&[
        ("Agent", format!("{} {}", health.version, values::word(&health.status))),
        ("Running for", values::span(health.uptime_seconds)),
        ("Revocation list", values::word(&health.crl_status)),
        ("Next list due", health.crl_next_update.map_or(String::new(), values::time)),
        ("Certificate until", health.certificate_expires.map_or(String::new(), values::time)),
        ("CA until", health.ca_expires.map_or(String::new(), values::time)),
        ("Audit record", health.audit_head.as_ref().map_or(String::new(), |head| head.seq.to_string())),
    ]);
    if !health.checks.is_empty() {
        text.push('\n');
        let mut rows = Rows::new(style, &["CHECK", "", "MESSAGE"]);
        for check in &health.checks {
            let mark =
                if check.healthy { ("ok".to_owned(), Tone::Good) } else { ("FAILED".to_owned(), Tone::Bad) };
            rows.row([plain(&check.name), mark, plain(&check.message)]);
        }
        text.push_str(&rows.finish());
    }
    if health.status == HealthStatus::Unhealthy {
        text.push_str("\nThe agent cannot do its work; journalctl -u linux-patch-api there says more.\n");
    }
    text
}

/// A revocation list that was sent.
pub(crate) fn crl(list: &CrlInForce) -> String {
    let state = if list.changed { "in force now" } else { "was in force already" };
    fields(&[
        ("List", format!("number {} ({state})", list.number)),
        ("Issuer", list.issuer.clone()),
        ("Made", values::time(list.this_update)),
        ("Next list due", list.next_update.map_or(String::new(), values::time)),
        ("Revokes", format!("{} certificates", list.revoked)),
        ("Connections closed", list.closed_connections.to_string()),
    ])
}

#[cfg(test)]
mod tests {
    use patch_types::api::{CrlStatus, HealthCheck};

    use super::*;
    use crate::render::NARROW;

    #[test]
    fn failed_checks_stand_out() {
        let value = Health {
            status: HealthStatus::Unhealthy,
            uptime_seconds: 61,
            version: "0.1.0".into(),
            checks: vec![HealthCheck {
                name: "executor".into(),
                healthy: false,
                message: "no socket".into(),
            }],
            crl_status: CrlStatus::Missing,
            crl_age_seconds: None,
            crl_next_update: None,
            certificate_expires: None,
            ca_expires: None,
            policy: None,
            audit_head: None,
        };
        let text = health(&NARROW, &value);
        for part in ["0.1.0 unhealthy", "1 min 1 s", "missing", "executor  FAILED  no socket"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("CA until"));
    }
}
