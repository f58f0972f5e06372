//! The root side's own record: showing and verifying it.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::Context;
use patch_audit::{Filter, Known, Reader, Record, Trail, examine_opened};
use patch_types::{
    JobId,
    executor::{RECORD, STATE_DIR},
    terminal,
};

use crate::{ask::Root, exit::Exit, screen::Screen};

/// The record's files. The directory has to stay open as long as they are named by it.
fn open(root: &Root) -> anyhow::Result<(OwnedFd, PathBuf, Trail)> {
    let shown = root.files().name(RECORD);
    let unreadable = || format!("cannot read {}; are you root?", shown.display());
    let directory = root.files().directory(STATE_DIR).with_context(unreadable)?;
    let name = Path::new(RECORD).file_name().unwrap_or_default();
    let log = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    let trail = Trail::open(&log).with_context(unreadable)?;
    Ok((directory, log, trail))
}

pub(crate) fn show(
    root: &Root,
    screen: &mut Screen,
    last: usize,
    job: Option<JobId>,
) -> anyhow::Result<Exit> {
    let (_directory, _, trail) = open(root)?;
    let filter = Filter { job, ..Filter::default() };
    let mut groups: Vec<Vec<Record>> = Vec::new();
    let mut missing = last;
    for file in trail.files.into_iter().rev() {
        if missing == 0 {
            break;
        }
        let records = Reader::new(file.reader())
            .tail(missing, &filter)
            .context("the record cannot be read to its end")?;
        missing -= records.len();
        groups.push(records);
    }
    if groups.iter().all(Vec::is_empty) {
        screen.remark("Nothing is on record.");
    }
    for record in groups.into_iter().rev().flatten() {
        if screen.is_json() {
            screen.raw(&format!("{}\n", terminal::json(&record.line.replace(['\r', '\t'], " "))));
            continue;
        }
        let event = &record.event;
        let line = format!(
            "{:>6}  {:.0}  {:<6}  {}",
            record.seq,
            event.at,
            event.priority.as_str(),
            terminal::line(&event.message)
        );
        screen.text(&line);
    }
    Ok(Exit::Done)
}

pub(crate) fn verify(root: &Root, screen: &mut Screen) -> anyhow::Result<Exit> {
    let (_directory, log, trail) = open(root)?;
    let report = examine_opened(&log, trail, &Known::default()).context("the record cannot be read")?;
    let shown = root.files().name(STATE_DIR).display().to_string();
    let name = log.parent().unwrap_or(Path::new("/")).display().to_string();
    let problems: Vec<_> = report.problems.iter().map(|problem| problem.replace(&name, &shown)).collect();
    if screen.is_json() {
        screen.json(&serde_json::json!({
            "intact": problems.is_empty(), "records": report.records, "first_seq": report.first.map(|head| head.seq),
            "head": report.head.map(|head| head.to_string()), "problems": problems,
            "notes": report.notes,
        }))?;
    } else {
        problems.iter().for_each(|problem| screen.text(problem));
        // The checkpoints in it are of the network side's trail, with which `linux-patch-api audit verify` compares them.
        let notes = report.notes.iter().filter(|note| !note.contains("checkpoints were not checked"));
        notes.for_each(|note| screen.text(&format!("note: {note}")));
        let verdict = if problems.is_empty() { "intact" } else { "broken" };
        let span = match (report.first, report.head) {
            (Some(first), Some(head)) => format!(", {} to {}, head {head}", first.seq, head.seq),
            _ => String::new(),
        };
        screen.text(&format!("the root side's record is {verdict}: {} records{span}", report.records));
    }
    Ok(if problems.is_empty() { Exit::Done } else { Exit::Failed })
}

#[cfg(test)]
mod tests {
    use patch_audit::{AuditEvent, AuditKind, Bounds, Caller, append};

    use super::*;
    use crate::screen::tests::paper;

    #[test]
    fn the_record_is_shown_and_verified() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path().to_owned(), false);
        let (mut screen, ..) = paper(false);
        assert!(show(&root, &mut screen, 10, None).is_err(), "there is no root side here");
        let path = dir.path().join(RECORD);
        let bounds = Bounds { file_bytes: 1 << 20, files: 2 };
        for what in ["one", "two\u{1b}[2J", "three"] {
            let kind = AuditKind::SystemChanged { what: what.to_owned() };
            append(&path, &[AuditEvent::new(kind, &Caller::local())], &bounds).unwrap();
        }
        let (mut screen, out, _) = paper(false);
        assert_eq!(show(&root, &mut screen, 2, None).unwrap(), Exit::Done);
        let text = out.text();
        assert!(!text.contains("one") && text.contains("two") && text.contains("three"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        let (mut screen, out, _) = paper(true);
        show(&root, &mut screen, 10, None).unwrap();
        assert_eq!(out.text().lines().count(), 3);

        let (mut screen, out, _) = paper(false);
        assert_eq!(verify(&root, &mut screen).unwrap(), Exit::Done);
        assert!(out.text().contains("intact: 3 records, 1 to 3"), "{}", out.text());
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("one", "eno")).unwrap();
        let (mut screen, out, _) = paper(false);
        assert_eq!(verify(&root, &mut screen).unwrap(), Exit::Failed);
        assert!(
            out.text().contains("record.jsonl: line 1 (record 1): the record was edited"),
            "{}",
            out.text()
        );
    }
}
