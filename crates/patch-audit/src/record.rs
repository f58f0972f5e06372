//! A trail that many short-lived processes write, one after the other: each opens it, appends, and closes it.

use std::{
    fs::File,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    chain::{Head, MAX_RECORD, encode},
    event::{AuditEvent, AuditKind, Caller},
    file::{LogFile, Opened, SMALL_WINDOW},
    log::AuditError,
    trail,
};

/// How long another process is waited for. Each has the file for one sync.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much of a trail is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// A file that has grown to so many bytes is compressed, and a new one begun.
    pub file_bytes: u64,
    /// How many of those are kept beside the present one.
    pub files: usize,
}

/// How much of the root side's own record is kept: files are compressed to a tenth or less.
pub const RECORD_BOUNDS: Bounds = Bounds { file_bytes: 8 << 20, files: 32 };

/// Appends events to the trail at `path`: when this returns they are on disk.
///
/// # Errors
/// When they are not; none of them is then. [`AuditError::Locked`] when others kept the file for seconds.
pub fn append(path: &Path, events: &[AuditEvent], bounds: &Bounds) -> Result<Head, AuditError> {
    let _turn = wait_for_turn(path)?;
    append_alone(path, events, bounds)
}

/// The right to append, in the order of asking: whoever only tried again and again might never get it. Nobody else can
/// open the file, so nobody else can hold it.
fn wait_for_turn(path: &Path) -> Result<File, AuditError> {
    let place = path.with_extension("lock");
    let failed = |source: std::io::Error| AuditError::Io {
        path: place.clone(),
        action: "locked",
        source: Arc::new(source),
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let file =
        File::options().create(true).truncate(false).write(true).mode(0o600).open(&place).map_err(failed)?;
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}

fn append_alone(path: &Path, events: &[AuditEvent], bounds: &Bounds) -> Result<Head, AuditError> {
    let since = Instant::now();
    let Opened { mut file, last, finding } = loop {
        match LogFile::open(path, SMALL_WINDOW) {
            Err(AuditError::Locked { .. }) if since.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(2));
            }
            opened => break opened?,
        }
    };
    file.repair()?;
    // Whoever had the file before may have begun a new one between our opening it and our locking it.
    if file.damage()?.is_some() {
        drop(file);
        return append_alone(path, events, bounds);
    }
    let has_rotated = file.len() >= bounds.file_bytes && file.rotate()?;
    let mut surplus = if has_rotated { trail::former(path) } else { Vec::new() };
    let left = surplus.split_off(surplus.len().saturating_sub(bounds.files));
    let pruned = (!surplus.is_empty()).then(|| AuditKind::TrailPruned {
        removed: surplus.iter().map(trail::Former::name).collect(),
        first_left: left.first().and_then(trail::Former::first_seq).unwrap_or(last.seq.saturating_add(1)),
    });
    let own: Vec<_> =
        finding.into_iter().chain(pruned).map(|kind| AuditEvent::new(kind, &Caller::local())).collect();
    let mut lines = Vec::new();
    let mut head = last;
    for event in own.iter().chain(events) {
        let start = lines.len();
        head = encode(&mut lines, head, event).map_err(|_| AuditError::TooLarge)?;
        if lines.len() - start > MAX_RECORD {
            return Err(AuditError::TooLarge);
        }
    }
    file.append(&lines)?;
    surplus.iter().for_each(trail::Former::remove);
    if has_rotated {
        // What is not compressed now is the next time; it is as good plain.
        let _ = trail::compress_all(path, &AtomicBool::new(false));
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Known, examine};

    fn event(what: &str) -> AuditEvent {
        AuditEvent::new(AuditKind::SystemChanged { what: what.to_owned() }, &Caller::local())
    }

    #[test]
    fn many_writers_make_one_chain_in_files_of_bounded_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.jsonl");
        let bounds = Bounds { file_bytes: 4000, files: 100 };
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for n in 0..25 {
                        append(path, &[event(&format!("{thread} {n}"))], &bounds).unwrap();
                    }
                });
            }
        });
        let report = examine(&path, &Known::default()).unwrap();
        assert!(report.is_intact(), "{report:?}");
        assert_eq!(report.records, 100);
        assert!(trail::former(&path).len() > 3);

        let bounds = Bounds { files: 2, ..bounds };
        for n in 0..40 {
            append(&path, &[event(&n.to_string())], &bounds).unwrap();
        }
        assert_eq!(trail::former(&path).len(), 2);
        let last = append(&path, &[event("last")], &bounds).unwrap();
        let report = examine(&path, &Known::default()).unwrap();
        assert!(report.is_intact() && report.first.unwrap().seq > 1, "{report:?}");
        assert_eq!(report.head, Some(last));
    }

    #[test]
    fn what_a_crash_left_is_cut_off_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.jsonl");
        let bounds = Bounds { file_bytes: 1 << 20, files: 2 };
        append(&path, &[event("a")], &bounds).unwrap();
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&text[..], b"{\"seq\":2,\"pr"].concat()).unwrap();
        assert_eq!(append(&path, &[event("b")], &bounds).unwrap().seq, 3);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("torn_tail_cut"), "{text}");
        assert!(examine(&path, &Known::default()).unwrap().is_intact());
    }
}
