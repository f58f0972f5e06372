//! How soon fixes were installed.

use patch_types::compliance::{Compliance, Fix, FixState, MemoryState, PromiseState};

use super::{Rows, Style, Tone, clean, plain, values};

/// The report.
pub(crate) fn report(style: &Style, report: &Compliance) -> String {
    let mut text = String::new();
    if let Some(why) = &report.cannot_tell {
        text.push_str(&format!("Whether security fixes are missing cannot be told: {}.\n", clean::line(why)));
    }
    if report.fixes.is_empty() && report.cannot_tell.is_some() {
        // None that is known proves nothing.
    } else if report.fixes.is_empty() {
        text.push_str("No security fix concerns this host.\n");
    } else {
        let mut rows = Rows::new(style, &["PACKAGE", "FIX", "STATE", "PUBLISHED", "HOURS", "PROMISE"]);
        for fix in &report.fixes {
            rows.row([
                plain(&fix.name),
                plain(&fix.version),
                (values::word(&fix.state), state_tone(fix.state)),
                plain(values::minute(fix.published.by)),
                plain(hours(fix)),
                (fix.promise.as_str().to_owned(), promise_tone(fix.promise)),
            ]);
        }
        text.push_str(&rows.keep_first().finish());
        text.push('\n');
        for fix in &report.fixes {
            for line in remarks(fix) {
                text.push_str(&format!("{} {}: {}\n", fix.name, fix.version, clean::line(&line)));
            }
        }
    }
    if let Some(run) = report.unattended_runs.first() {
        text.push_str(&format!(
            "unattended-upgrades ran last at {}: {}\n",
            values::minute(run.began),
            run.result.as_str()
        ));
    }
    for sentence in &report.not_known {
        text.push_str(&format!("Not known: {}.\n", clean::line(sentence)));
    }
    let summary = &report.summary;
    text.push_str(&format!(
        "{}: {} to be installed, {} blocked{}, {} on disk only, {} effective; {} over the promise of {} hours, {} perhaps\n",
        if summary.fixes == 1 { "1 security fix".to_owned() } else { format!("{} security fixes", summary.fixes) },
        summary.open,
        summary.blocked,
        if summary.barred > 0 { format!(" ({} taken back)", summary.barred) } else { String::new() },
        summary.on_disk,
        summary.effective,
        summary.over_promise,
        report.promise_hours,
        summary.uncertain
    ));
    text
}

fn hours(fix: &Fix) -> String {
    match fix.hours.at_most {
        Some(most) if most == fix.hours.at_least => most.to_string(),
        Some(most) => format!("{} to {most}", fix.hours.at_least),
        None => format!("{} or more", fix.hours.at_least),
    }
}

fn state_tone(state: FixState) -> Tone {
    match state {
        FixState::Effective => Tone::Good,
        FixState::Open | FixState::OnDisk => Tone::Notice,
        FixState::Blocked => Tone::Bad,
    }
}

fn promise_tone(state: PromiseState) -> Tone {
    match state {
        PromiseState::Kept => Tone::Good,
        PromiseState::Running => Tone::Plain,
        PromiseState::Uncertain => Tone::Notice,
        PromiseState::Broken => Tone::Bad,
    }
}

/// What is in the way.
fn remarks(fix: &Fix) -> Vec<String> {
    let causes = fix.blocked_by.iter().map(|cause| format!("{}; {}", cause.message, cause.next_step));
    let memory = fix.memory.iter().filter_map(|memory| match memory.state {
        MemoryState::Effective => None,
        MemoryState::OldCode => Some(format!("old code is run by {}", memory.held_by.join(", "))),
        MemoryState::Unknown => Some(format!("what runs is not known: {}", memory.held_by.join(", "))),
    });
    causes.chain(memory).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::NARROW;

    #[test]
    fn what_is_in_the_way_is_said() {
        let value: Compliance = serde_json::from_value(serde_json::json!({
            "promise_hours": 24, "observed_since": null,
            "summary": {"fixes": 1, "open": 0, "blocked": 0, "on_disk": 1, "effective": 0, "over_promise": 1,
                "over_promise_open": 0, "uncertain": 0, "oldest_open_hours": null, "worst_hours": 30},
            "fixes": [{
                "name": "aa", "architecture": "amd64", "version": "2", "installed_version": "2", "archive": "x",
                "state": "on_disk", "published": {"after": null, "by": "2026-11-19T06:00:00Z", "accuracy": "bound"},
                "seen": null, "planned": null,
                "applied": {"at": "2026-11-20T12:00:00Z", "accuracy": "exact", "version": "2", "by": "apt", "job": null},
                "memory": {"state": "old_code", "since": null, "held_by": ["x.service\u{1b}[2J"]},
                "hours": {"at_least": 30, "at_most": null}, "promise": "broken",
                "blocked_by": [{"kind": "held", "message": "it is held", "next_step": "unhold it"}]
            }],
            "unattended_runs": [], "not_known": ["something"]
        }))
        .unwrap();
        let text = report(&NARROW, &value);
        for words in [
            "30 or more",
            "on disk",
            "broken",
            "aa 2: it is held; unhold it",
            "old code is run by x.service",
            "Not known: something.",
            "1 security fix: 0 to be installed",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains('\u{1b}'));
        let mut blind = Compliance { cannot_tell: Some("no index".into()), ..Compliance::default() };
        let text = super::report(&NARROW, &blind);
        assert!(text.contains("cannot be told: no index") && !text.contains("No security fix"), "{text}");
        blind.cannot_tell = None;
        assert!(super::report(&NARROW, &blind).contains("No security fix concerns"));
    }
}
