//! `reload`: what the service manager runs, so that a reload has ended when it says so, and has failed when it has.

use std::path::Path;

use patch_backends::ceiling;
use patch_types::terminal;

use super::{check, exit, print, print_json};
use crate::{
    config,
    control::{self, Report},
};

pub(super) fn execute(root: &Path, json: bool) -> anyhow::Result<u8> {
    let report = control::ask(root)?;
    let notes = notes(root);
    // The daemon's words: a terminal must not obey them.
    if json {
        let mut value = serde_json::to_value(&report)?;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("notes".to_owned(), notes.into());
        }
        print_json(&value)?;
    } else {
        let notes: String = notes.iter().map(|note| format!("note: {}\n", terminal::line(note))).collect();
        print(&format!("{}{notes}", text(&report)))?;
    }
    Ok(if report.problems.is_empty() && report.shut_out.is_empty() { exit::OK } else { exit::NOT_IN_ORDER })
}

/// What `check-config` would call an error though the service has taken it: whoever may write what it reads, and the root
/// side's ceiling, as far as the caller can read it.
fn notes(root: &Path) -> Vec<String> {
    let mut notes = check::changeable(root, config::load(root).ok().as_ref());
    if !check::is_unreadable(&root.join(ceiling::FILE)) {
        notes.extend(ceiling::load(root).err());
    }
    notes
}

fn text(Report { changes, earlier, forgotten, problems, shut_out }: &Report) -> String {
    let mut text = String::new();
    if *forgotten > 0 {
        let (what, these) = if *forgotten == 1 { ("change", "it") } else { ("changes", "them") };
        text.push_str(&format!(
            "config reload: in effect already: {forgotten} earlier {what}; linux-patch-api audit show has {these}, with --kind \
             config_changed and --kind allow_list_changed\n"
        ));
    }
    for change in earlier {
        text.push_str(&format!("config reload: in effect already since {}\n", terminal::line(change)));
    }
    for change in changes {
        text.push_str(&format!("config reload: {}\n", terminal::line(change)));
    }
    for problem in shut_out {
        text.push_str(&format!("config reload, nobody is let in: {}\n", terminal::line(problem)));
    }
    for problem in problems {
        text.push_str(&format!(
            "config reload refused, what ran before goes on: {}\n",
            terminal::line(problem)
        ));
    }
    if text.is_empty() {
        text.push_str("config reload: done, configuration and whitelist are the same as before\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_in_effect() {
        let report = |fill: fn(&mut Report)| {
            let mut report = Report::default();
            fill(&mut report);
            text(&report)
        };
        assert!(report(|_| {}).contains("the same as before"));
        let missing = report(|report| report.shut_out.push("no list; everyone is denied".into()));
        assert!(missing.contains("nobody is let in") && !missing.contains("goes on"), "{missing}");
        let earlier =
            report(|report| report.earlier.push("2026-01-01T00:00:00Z: whitelist: added 10.0.0.5".into()));
        assert!(earlier.contains("already since 2026") && !earlier.contains("the same"), "{earlier}");
        let many = report(|report| {
            report.forgotten = 3;
            report.earlier.push("2026-01-01T00:00:00Z: x".into());
        });
        assert!(many.starts_with("config reload: in effect already: 3 earlier changes; "), "{many}");
        assert_eq!(many.lines().count(), 2, "{many}");
        let one = report(|report| report.forgotten = 1);
        assert!(one.contains("1 earlier change; linux-patch-api audit show has it,"), "{one}");
        let refused = report(|report| report.problems.push("line 2".into()));
        assert!(refused.contains("what ran before goes on: line 2"), "{refused}");
    }
}
