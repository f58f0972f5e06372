//! How runs of the daemon ended. A run leaves a mark that a clean end takes away, so that the next run knows of a crash,
//! a kill or a loss of power, and an alert can tell those from a restart that somebody wanted.

use std::{fs, io, path::Path};

/// There while a daemon runs.
const RUNNING: &str = "var/lib/linux_patch_api/running";

/// How many runs have not ended cleanly.
const UNPLANNED: &str = "var/lib/linux_patch_api/unplanned_ends";

/// Marks the beginning of a run, and counts the one before if it has not ended cleanly. What cannot be written is said
/// in the log and is no reason to stay away.
pub fn begin(root: &Path) {
    if let Err(error) = begin_or_fail(root) {
        tracing::warn!(%error, "how the last run ended cannot be kept");
    }
}

fn begin_or_fail(root: &Path) -> io::Result<()> {
    let running = root.join(RUNNING);
    if running.exists() {
        tracing::warn!("the last run did not end as it should: a crash, a kill or a loss of power");
        let path = root.join(UNPLANNED);
        let new = path.with_extension("new");
        fs::write(&new, unplanned(root).saturating_add(1).to_string())?;
        fs::rename(&new, &path)?;
    }
    fs::write(running, "")
}

/// Marks a clean end.
pub fn end(root: &Path) {
    match fs::remove_file(root.join(RUNNING)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, "the clean end cannot be kept: the next start will count it as unplanned");
        }
        _ => {}
    }
}

/// How many runs on this host have not ended cleanly; 0 where that is not known.
#[must_use]
pub fn unplanned(root: &Path) -> u64 {
    fs::read_to_string(root.join(UNPLANNED)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_ended_counts() {
        let root = tempfile::tempdir().unwrap();
        begin(root.path());
        assert_eq!(unplanned(root.path()), 0, "without a directory nothing is kept, and nothing fails");
        fs::create_dir_all(root.path().join("var/lib/linux_patch_api")).unwrap();
        for (is_clean, expected) in [(true, 0), (false, 0), (false, 1), (true, 2), (true, 2)] {
            begin(root.path());
            assert_eq!(unplanned(root.path()), expected);
            if is_clean {
                end(root.path());
            }
        }
        fs::write(root.path().join(UNPLANNED), "nonsense").unwrap();
        assert_eq!(unplanned(root.path()), 0);
    }
}
