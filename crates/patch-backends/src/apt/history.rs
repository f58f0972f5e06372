//! When the indexes were last fetched and when packages last changed.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::Path,
    time::SystemTime,
};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use super::{indexes::LISTS, status::STATUS};

/// Written by Debian's and Ubuntu's hooks after a successful `apt-get update`, below the root.
const UPDATE_STAMP: &str = "var/lib/apt/periodic/update-success-stamp";
/// apt's record of its runs, below the root.
const HISTORY: &str = "var/log/apt/history.log";
/// Enough for the last run of a large upgrade.
const TAIL: u64 = 256 * 1024;

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

fn timestamp(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}

/// When the indexes were last fetched: the later of the stamp that a successful fetch leaves and the time at which the
/// directory of indexes last changed (apt moves each file that it has verified into it). None if there are no indexes,
/// whatever the stamp says: images are often made without them.
#[must_use]
pub fn last_update_check(root: &Path) -> Option<Timestamp> {
    let lists = root.join(LISTS);
    fs::read_dir(&lists)
        .ok()?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        // A source that is trusted without a signature may have no Release file.
        .any(|name| name.contains("Release") || name.contains("Packages"))
        .then(|| modified(&lists).into_iter().chain(modified(&root.join(UPDATE_STAMP))).max())
        .flatten()
        .and_then(timestamp)
}

/// When packages last changed: the end of the last run in apt's history, or else the time at which dpkg last wrote its
/// status file. None if neither can be read.
#[must_use]
pub fn last_update_apply(root: &Path) -> Option<Timestamp> {
    tail(&root.join(HISTORY))
        .and_then(|log| last_end(&log, &TimeZone::system()))
        .or_else(|| modified(&root.join(STATUS)).and_then(timestamp))
}

fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut text = Vec::new();
    file.take(TAIL).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// The last `End-Date: 2026-11-22  01:09:27`, which is local time.
#[must_use]
pub fn last_end(log: &str, zone: &TimeZone) -> Option<Timestamp> {
    log.lines().rev().filter_map(|l| l.strip_prefix("End-Date:")).find_map(|date| {
        let words: Vec<&str> = date.split_whitespace().collect();
        let local: DateTime = words.join("T").parse().ok()?;
        zone.to_timestamp(local).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_run_counts_that_has_ended() {
        let log = "\nStart-Date: 2026-11-21  10:00:00\nEnd-Date: 2026-11-21  10:00:05\n\nStart-Date: 2026-11-22  01:09:20\n\
                   Upgrade: aa:amd64 (1, 2)\nEnd-Date: 2026-11-22  01:09:27\n\nStart-Date: 2026-11-22  02:00:00\n";
        assert_eq!(last_end(log, &TimeZone::UTC), Some("2026-11-22T01:09:27Z".parse().unwrap()));
        assert_eq!(last_end("End-Date: yesterday\nEnd-Date:\n", &TimeZone::UTC), None);
    }

    #[test]
    fn of_a_long_history_the_end_is_read() {
        let root = tempfile::tempdir().unwrap();
        for directory in ["var/log/apt", "var/lib/dpkg"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join(STATUS), "").unwrap();
        let of_the_database = last_update_apply(root.path()).unwrap();
        let end = "End-Date: 2001-02-03  04:05:06\n";
        let ended = last_end(end, &TimeZone::system()).unwrap();
        let most = usize::try_from(TAIL).unwrap();
        for (before, after, expected) in [
            ("", "", ended),
            ("Start-Date: 2001-02-03  04:05:00\n", "\n", ended),
            (&*"x".repeat(3 * most), "", ended),
            // It is not the last run's: that of this root has not ended.
            ("", &*"x".repeat(most), of_the_database),
        ] {
            fs::write(root.path().join(HISTORY), format!("{before}\n{end}{after}")).unwrap();
            assert_eq!(last_update_apply(root.path()), Some(expected), "{} {}", before.len(), after.len());
        }
    }

    #[test]
    fn a_bare_root_knows_neither() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!((last_update_check(root.path()), last_update_apply(root.path())), (None, None));
        fs::create_dir_all(root.path().join("var/lib/apt/lists/partial")).unwrap();
        fs::create_dir_all(root.path().join("var/lib/apt/periodic")).unwrap();
        fs::write(root.path().join(UPDATE_STAMP), "").unwrap();
        assert_eq!(last_update_check(root.path()), None);
        fs::create_dir_all(root.path().join("var/lib/dpkg")).unwrap();
        fs::write(root.path().join("var/lib/dpkg/status"), "").unwrap();
        fs::write(root.path().join("var/lib/apt/lists/x_InRelease"), "").unwrap();
        assert!(last_update_check(root.path()).is_some() && last_update_apply(root.path()).is_some());
    }
}
