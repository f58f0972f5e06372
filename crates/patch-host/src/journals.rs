//! The changes of this host, from the root side's journals.
//!
//! They are read loosely: a journal that a newer or an older root side wrote is shown as far as it is understood.

use std::{io, path::Path};

use anyhow::Context;
use jiff::{Timestamp, Unit, tz::TimeZone};
use patch_types::{
    JobId,
    executor::{JOURNAL_DIR, WAY_BACK},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{ask::Root, exit::Exit, follow, screen::Screen};

/// A change as the list shows it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    job: JobId,
    at: Option<Timestamp>,
    kind: String,
    /// The final status; before the end the state of the journal, or `interrupted` if nobody works on it.
    status: String,
    outcome: Option<String>,
    /// How many packages it changed or was to change, as far as that is known.
    packages: usize,
    /// Whether it can be taken back.
    way_back: bool,
}

pub(crate) fn list(root: &Root, screen: &mut Screen) -> anyhow::Result<Exit> {
    let entries = read(root, screen)?;
    if screen.is_json() {
        screen.json(&json!({ "jobs": entries }))?;
        return Ok(Exit::Done);
    }
    if entries.is_empty() {
        screen.remark("No change of this host is on record.");
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = entries.into_iter().map(row).collect();
    screen.table(["JOB", "WHEN", "KIND", "STATUS", "PACKAGES", "WAY BACK"], &rows);
    Ok(Exit::Done)
}

fn row(entry: Entry) -> [String; 6] {
    let when = entry.at.and_then(|at| at.to_zoned(TimeZone::system()).round(Unit::Second).ok());
    let status = match entry.outcome {
        Some(outcome) => format!("{}, {outcome}", entry.status),
        None => entry.status,
    };
    [
        entry.job.to_string(),
        when.map_or_else(|| "?".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M:%S %:z").to_string()),
        entry.kind,
        status,
        entry.packages.to_string(),
        if entry.way_back { "kept" } else { "-" }.to_owned(),
    ]
}

/// The changes, newest first.
fn read(root: &Root, screen: &mut Screen) -> anyhow::Result<Vec<Entry>> {
    let files = root.files();
    let found = match files.names(JOURNAL_DIR) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let dir = files.name(JOURNAL_DIR);
            return Err(error).with_context(|| format!("cannot read {}; run this as root", dir.display()));
        }
    };
    let mut entries = Vec::new();
    for name in found {
        // Other names are locks, queues and journals that are not whole yet.
        let Some(job) = name.to_str().and_then(|name| name.parse::<JobId>().ok()) else { continue };
        let dir = Path::new(JOURNAL_DIR).join(name);
        let state =
            files.read(dir.join("state.json")).and_then(|text| Ok(serde_json::from_slice::<Value>(&text)?));
        match state {
            Ok(state) => {
                let alive = follow::is_alive(root.open_events(job));
                entries.push(entry(job, &state, files.is_there(dir.join(WAY_BACK)), alive));
            }
            Err(error) => {
                let dir = files.name(dir);
                screen.remark(&format!("the journal {} is left out: {error}", dir.display()));
            }
        }
    }
    entries.sort_by_key(|entry| std::cmp::Reverse((entry.at, entry.job)));
    Ok(entries)
}

fn entry(job: JobId, state: &Value, way_back: bool, alive: bool) -> Entry {
    let text = |pointer| state.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let count = |pointer| state.pointer(pointer).and_then(Value::as_array).map(Vec::len);
    let status = match text("/state/state") {
        Some(name) if name == "ended" => text("/state/ended/status"),
        Some(name) if alive => Some(name),
        _ => Some("interrupted".to_owned()),
    };
    Entry {
        job,
        at: text("/accepted_at").and_then(|at| at.parse().ok()),
        kind: text("/operation/kind").unwrap_or_else(|| "?".to_owned()),
        status: status.unwrap_or_else(|| "?".to_owned()),
        outcome: text("/state/ended/outcome"),
        packages: count("/state/ended/results").or_else(|| count("/state/plan/changes")).unwrap_or(0),
        way_back,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::screen::tests::paper;

    fn journal(root: &Root, id: u128, text: &str) -> std::path::PathBuf {
        let dir = root.files().name(JOURNAL_DIR).join(JobId(Uuid::from_u128(id)).to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("state.json"), text).unwrap();
        dir
    }

    fn root(dir: &Path) -> Root {
        Root::new(dir.to_owned(), false)
    }

    const ENDED: &str = r#"{"accepted_at":"2026-01-02T03:04:05.6Z","operation":{"kind":"apply_patches"},
        "state":{"state":"ended","ended":{"status":"completed","outcome":"applied","results":[{},{}]}}}"#;

    #[test]
    fn changes_are_listed_newest_first_with_what_can_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        let way_back = journal(&root, 1, ENDED).join(WAY_BACK);
        fs::create_dir_all(way_back.parent().unwrap()).unwrap();
        fs::write(way_back, "{}").unwrap();
        let torn = r#"{"accepted_at":"2026-02-02T03:04:05Z","operation":{"kind":"install"},
            "state":{"state":"applying","plan":{"changes":[{}]}}}"#;
        journal(&root, 2, torn);
        journal(&root, 3, "{");
        fs::create_dir_all(root.files().name(JOURNAL_DIR).join("queue")).unwrap();
        fs::write(root.files().name(JOURNAL_DIR).join("turn"), "").unwrap();

        let (mut screen, out, remarks) = paper(true);
        assert_eq!(list(&root, &mut screen).unwrap(), Exit::Done);
        let value: Value = serde_json::from_str(&out.text()).unwrap();
        assert_eq!(
            value,
            json!({"jobs": [
                {"job": "00000000-0000-0000-0000-000000000002", "at": "2026-02-02T03:04:05Z", "kind": "install",
                 "status": "interrupted", "outcome": null, "packages": 1, "way_back": false},
                {"job": "00000000-0000-0000-0000-000000000001", "at": "2026-01-02T03:04:05.6Z",
                 "kind": "apply_patches", "status": "completed", "outcome": "applied", "packages": 2,
                 "way_back": true},
            ]})
        );
        assert_eq!(remarks.text(), "");

        let (mut screen, out, remarks) = paper(false);
        list(&root, &mut screen).unwrap();
        let text = out.text();
        assert!(text.lines().nth(2).unwrap().ends_with("completed, applied  2         kept"), "{text}");
        assert!(remarks.text().contains("is left out"), "{}", remarks.text());
    }

    #[test]
    fn a_host_without_journals_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let (mut screen, out, remarks) = paper(false);
        assert_eq!(list(&root(dir.path()), &mut screen).unwrap(), Exit::Done);
        assert_eq!((out.text().as_str(), remarks.text().lines().count()), ("", 1));
    }

    #[test]
    fn who_works_on_it_is_told_by_the_lock() {
        let state = json!({"state": {"state": "planning"}});
        let job = JobId(Uuid::nil());
        assert_eq!(entry(job, &state, false, true).status, "planning");
        assert_eq!(entry(job, &state, false, false).status, "interrupted");
    }

    proptest! {
        #[test]
        fn no_journal_ends_the_program(text in "\\PC{0,80}|\\{\"state\":(\\{\"state\":(1|\"ended\")\\}|[0-9])\\}") {
            let value = serde_json::from_str(&text).unwrap_or(Value::Null);
            row(entry(JobId(Uuid::nil()), &value, true, true));
        }
    }
}
