//! What is over and was seen goes: answers of queries soon, journals of changes when even the daemon has forgotten them.

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::bail;
use patch_types::JobId;

use crate::{
    journal::{Journal, NEW, State},
    paths::{FETCHED, Paths},
};

/// How long a query's event file is kept for its reader.
const ANSWERS: Duration = Duration::from_secs(600);

/// How much room the answers of queries may take while they wait for their readers, in bytes, and how old one must be to
/// go before its time. A reader opens its file at once, and an open file can be read after it is gone.
const ROOM: u64 = 64 * 1024 * 1024;
const OPENED_BY_NOW: Duration = Duration::from_secs(15);

/// How long the journal of a change is kept after its end. A request that is sent again within this time is known.
const JOURNALS: Duration = Duration::from_secs(180 * 24 * 3600);

/// How many are kept at most.
const MAX_JOURNALS: usize = 2000;

fn age(path: &Path, now: SystemTime) -> Option<Duration> {
    now.duration_since(fs::metadata(path).ok()?.modified().ok()?).ok()
}

/// Removes event files of queries that nobody can be reading any more. A change's event file has a journal beside it
/// and stays.
pub(crate) fn answers(paths: &Paths) {
    let now = SystemTime::now();
    let mut answers: Vec<_> = ids(&paths.events(), Some(".jsonl"))
        .into_iter()
        .filter(|(id, _)| !paths.journal(*id).exists())
        .filter_map(|(_, path)| Some((age(&path, now)?, fs::metadata(&path).ok()?.len(), path)))
        .collect();
    // The youngest first: they keep their room.
    answers.sort();
    let mut taken: u64 = 0;
    for (age, size, path) in answers {
        taken = taken.saturating_add(size);
        if age > ANSWERS || (taken > ROOM && age > OPENED_BY_NOW) {
            remove(&path, fs::remove_file(&path));
        }
    }
}

/// Removes changes that ended long ago, and the oldest ones when there are too many. What has not ended stays, however
/// old: it is to be settled.
///
/// # Errors
/// When there are too many that have not ended: then no other is accepted.
pub(crate) fn journals(paths: &Paths) -> anyhow::Result<()> {
    let now = SystemTime::now();
    let dir = paths.state().join("journal");
    let mut all = ids(&dir, None);
    // Ids begin with the time of their making: the oldest first.
    all.sort();
    let mut surplus = all.len().saturating_sub(MAX_JOURNALS);
    let is_crowded = all.len() >= 2 * MAX_JOURNALS;
    let mut unended = 0;
    for (id, dir) in all {
        if is_crowded
            && !Journal::open(&dir).is_ok_and(|journal| matches!(journal.record.state, State::Ended { .. }))
        {
            unended += 1;
        }
        if crate::journal::way_back(&dir).exists() {
            // It can still be undone; that ends before this does.
            surplus = surplus.saturating_sub(1);
            continue;
        }
        let old = age(&dir.join("state.json"), now).is_some_and(|age| age > JOURNALS);
        if !old && surplus == 0 {
            continue;
        }
        surplus = surplus.saturating_sub(1);
        if Journal::open(&dir).is_ok_and(|journal| matches!(journal.record.state, State::Ended { .. })) {
            let events = paths.event_file(id);
            remove(&events, fs::remove_file(&events));
            remove(&dir, fs::remove_dir_all(&dir));
        }
    }
    if unended >= MAX_JOURNALS {
        bail!("{unended} changes have not ended; no more are accepted until some have been settled");
    }
    for leftover in fs::read_dir(&dir)?.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(NEW))
    {
        if age(&leftover.path(), now).is_some_and(|age| age > ANSWERS) {
            remove(&leftover.path(), fs::remove_dir_all(leftover.path()));
        }
    }
    Ok(())
}

/// Removes journals that never became whole, and what was being written into others, of processes that died.
pub(crate) fn unfinished(paths: &Paths) {
    let dir = paths.state().join("journal");
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Somebody may be making it at this moment.
        let is_old = age(&entry.path(), SystemTime::now()).is_some_and(|age| age > OPENED_BY_NOW);
        if name.starts_with(NEW) && is_old {
            remove(&entry.path(), fs::remove_dir_all(entry.path()));
        }
    }
}

/// Removes what fetching left behind for changes that are over or were never known.
pub(crate) fn fetched(paths: &Paths) {
    let Ok(entries) = fs::read_dir(paths.archives()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_prefix(FETCHED)?.parse::<JobId>().ok())
        else {
            continue;
        };
        let over = Journal::open(&paths.journal(id))
            .map_or(true, |journal| matches!(journal.record.state, State::Ended { .. }));
        if over {
            remove(&entry.path(), fs::remove_dir_all(entry.path()));
        }
    }
}

fn ids(dir: &Path, suffix: Option<&str>) -> Vec<(JobId, std::path::PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str()?;
            let id = suffix.map_or(Some(name), |suffix| name.strip_suffix(suffix))?.parse().ok()?;
            Some((id, entry.path()))
        })
        .collect()
}

fn remove(path: &Path, result: io::Result<()>) {
    match result {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => eprintln!("patch-executor: cannot remove {}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::UNIX_EPOCH};

    use patch_types::{ChangeOptions, Operation, event::Ended, executor::Limits};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_what_ended_long_ago_goes() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path().to_owned());
        for dir in [paths.state().join("journal"), paths.events()] {
            fs::create_dir_all(dir).unwrap();
        }
        let make = |ended: bool, old: bool| {
            let id = JobId(Uuid::now_v7());
            let mut journal = Journal::create(
                &paths.journal(id),
                id,
                Operation::Refresh,
                Limits::default(),
                None,
                ChangeOptions::default(),
            )
            .unwrap();
            if ended {
                let ended = Box::new(Ended {
                    status: patch_types::JobStatus::Completed,
                    outcome: None,
                    exit_code: None,
                    error: None,
                    results: Vec::new(),
                    answer: None,
                });
                journal.enter(State::Ended { ended }).unwrap();
            }
            fs::write(paths.event_file(id), "").unwrap();
            if old {
                for file in [paths.journal(id).join("state.json"), paths.event_file(id)] {
                    File::options().write(true).open(file).unwrap().set_modified(UNIX_EPOCH).unwrap();
                }
            }
            id
        };
        let (gone, unsettled, fresh) = (make(true, true), make(false, true), make(true, false));
        let answer = JobId(Uuid::now_v7());
        fs::write(paths.event_file(answer), "").unwrap();
        File::options().write(true).open(paths.event_file(answer)).unwrap().set_modified(UNIX_EPOCH).unwrap();
        answers(&paths);
        assert!(!paths.event_file(answer).exists() && paths.event_file(gone).exists());
        journals(&paths).unwrap();
        assert!(!paths.journal(gone).exists() && !paths.event_file(gone).exists());
        for id in [unsettled, fresh] {
            assert!(paths.journal(id).exists() && paths.event_file(id).exists());
        }
    }
}
