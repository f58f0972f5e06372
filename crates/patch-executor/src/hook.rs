//! The last look before dpkg starts: apt, under its own lock, says what it is about to do, and that is compared with
//! what was planned. Whoever changed something in between is noticed here, and nothing is changed.

use std::{fs, io, path::Path};

use anyhow::{Context as _, bail};
use patch_apply::apt::hook::{self, Drift};
use patch_types::PlannedChange;
use serde::Serialize;

use crate::journal;

/// What was planned, in a change's journal.
const EXPECTED: &str = "expected.json";
/// How what apt announced differs from it.
const DRIFT: &str = "drift.json";

/// Notes in a change's journal what apt may do, durably, and forgets what an earlier try found.
///
/// # Errors
/// When it cannot be written. apt must not be started then: its hook would refuse anyway.
pub(crate) fn expect(dir: &Path, changes: &[PlannedChange]) -> io::Result<()> {
    match fs::remove_file(dir.join(DRIFT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write(dir, EXPECTED, &changes)
}

/// What the hook found to be different, if it did.
pub(crate) fn drift(dir: &Path) -> Option<Drift> {
    serde_json::from_slice(&fs::read(dir.join(DRIFT)).ok()?).ok()
}

fn write(dir: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(value).map_err(io::Error::other)?;
    journal::write_whole(dir, name, &text)
}

/// Compares standard input with what the journal in `dir` expects. An error makes apt give up.
pub(crate) fn run(dir: &Path) -> anyhow::Result<()> {
    check(dir, io::stdin().lock())
}

fn check(dir: &Path, announcement: impl io::Read) -> anyhow::Result<()> {
    let path = dir.join(EXPECTED);
    let expected: Vec<PlannedChange> = fs::read(&path)
        .map_err(anyhow::Error::from)
        .and_then(|text| Ok(serde_json::from_slice(&text)?))
        .with_context(|| {
            format!("what was planned is not readable in {}; nothing is changed", path.display())
        })?;
    let mut announced = hook::read(announcement).context("nothing is changed")?;
    hook::hash_archives(&mut announced);
    let Err(drift) = hook::compare(&announced, &expected) else { return Ok(()) };
    // The exit code alone stops apt; the file is for people and for the job's error.
    if let Err(error) = write(dir, DRIFT, &drift) {
        eprintln!("patch-executor: {} cannot be written: {error}", dir.join(DRIFT).display());
    }
    bail!("apt would do something else than was planned; nothing is changed: {drift}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLANNED: &str = r#"[{"action":"upgrade","name":"lp-x","architecture":"all","old_version":"1","new_version":"2",
        "archive_sha256":null,"origin":null}]"#;

    #[test]
    fn a_drift_is_refused_and_noted_and_forgotten_by_the_next_try() {
        let dir = tempfile::tempdir().unwrap();
        let announced = |new: &str| format!("VERSION 3\n\nlp-x 1 all none < {new} all none /x.deb\n");
        let error = check(dir.path(), announced("2").as_bytes()).unwrap_err();
        assert!(format!("{error:#}").contains("expected.json"), "{error:#}");

        let plan: Vec<PlannedChange> = serde_json::from_str(PLANNED).unwrap();
        expect(dir.path(), &plan).unwrap();
        check(dir.path(), announced("2").as_bytes()).unwrap();
        assert_eq!(drift(dir.path()), None);

        let error = check(dir.path(), announced("3").as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains("lp-x:all: planned was to upgrade 1 to 2, apt would change 1 to 3"),
            "{error}"
        );
        assert!(!error.contains('\n'));
        assert_eq!(drift(dir.path()).unwrap().different.len(), 1);

        expect(dir.path(), &plan).unwrap();
        assert_eq!(drift(dir.path()), None);

        fs::write(dir.path().join(EXPECTED), "[").unwrap();
        assert!(check(dir.path(), announced("2").as_bytes()).is_err());
    }
}
