//! `reload`: what the service manager runs, so that a reload has ended when it says so, and has failed when it has.

use std::path::Path;

use patch_backends::ceiling;
use patch_types::terminal;

use super::{check, exit, print};
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
        print(&terminal::json(&format!("{value:#}\n")))?;
    } else {
        let notes: String = notes.iter().map(|note| format!("note: {}\n", terminal::line(note))).collect();
        print(&format!("{}{notes}", text(&report)))?;
    }
    Ok(if report.problems.is_empty() { exit::OK } else { exit::NOT_IN_ORDER })
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

fn text(Report { changes, problems }: &Report) -> String {
    let mut text = String::new();
    for change in changes {
        text.push_str(&format!("config reload: {}\n", terminal::line(change)));
    }
    for problem in problems {
        text.push_str(&format!(
            "config reload refused, what ran before goes on: {}\n",
            terminal::line(problem)
        ));
    }
    if text.is_empty() {
        text.push_str("config reload: done, the configuration is the same as before\n");
    }
    text
}
