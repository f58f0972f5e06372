//! `reload`: what the service manager runs, so that a reload has ended when it says so, and has failed when it has.

use std::path::Path;

use patch_types::terminal;

use super::{exit, print};
use crate::control::{self, Report};

pub(super) fn execute(root: &Path, json: bool) -> anyhow::Result<u8> {
    let report = control::ask(root)?;
    // The daemon's words: a terminal must not obey them.
    if json {
        print(&terminal::json(&format!("{:#}\n", serde_json::to_value(&report)?)))?;
    } else {
        print(&text(&report))?;
    }
    Ok(if report.problems.is_empty() { exit::OK } else { exit::NOT_IN_ORDER })
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
