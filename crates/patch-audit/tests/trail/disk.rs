//! A full disk: refused, told, and recovered from without a gap. Needs root for a file system of its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use patch_audit::{AuditError, AuditLog, Expect, Options, verify};
use tempfile::TempDir;

use crate::{event, kinds};

/// A small file system, unmounted at the end.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = TempDir::new().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs"], dir.path()).then_some(Self { dir })
    }

    fn filler(&self) -> PathBuf {
        self.dir.path().join("filler")
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.filler()).unwrap();
        while io::Write::write(&mut file, &[0; 4096]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["-l"], self.dir.path());
    }
}

#[expect(clippy::disallowed_methods, reason = "a test may mount")]
fn run(program: &str, arguments: &[&str], path: &Path) -> bool {
    Command::new(program).args(arguments).arg(path).output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_disk_refuses_and_then_recovers_without_a_gap() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: mounting needs root");
        return;
    };
    let path = disk.dir.path().join("audit.log");
    let log = AuditLog::open(&path, Options::new("test").without_journal()).unwrap();
    let head = log.record(event("before")).unwrap();
    disk.fill();
    // A page may still have room for a short record: not for this one.
    let long = "z".repeat(10_000);
    for _ in 0..3 {
        let refused = log.record(event(&long)).unwrap_err();
        let AuditError::Io { action: "written", source, .. } = &refused else { panic!("{refused:?}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert_eq!(log.head(), Some(head));
        assert!(!log.status().is_healthy());
    }
    log.record_later(event(&long));
    assert!(log.flush().is_err());
    assert_eq!(log.status().lost, 4);
    assert!(log.status().error.unwrap().contains("No space left"));
    // Nothing of the refused ones is there, not even a part.
    let verdict = verify(&*fs::read(&path).unwrap(), &Expect::default()).unwrap();
    assert!(verdict.is_intact() && verdict.head == Some(head), "{verdict:?}");

    fs::remove_file(disk.filler()).unwrap();
    let after = log.record(event("after")).unwrap();
    assert_eq!(after.seq, head.seq + 2);
    assert!(log.status().is_healthy());
    assert_eq!(log.status().lost, 0);
    log.close();
    assert_eq!(kinds(&path), ["system_changed", "sink_recovered", "system_changed"]);
    let verdict = verify(&*fs::read(&path).unwrap(), &Expect::default()).unwrap();
    assert!(verdict.is_intact() && verdict.head == Some(after), "{verdict:?}");
}

#[test]
fn a_log_opens_on_a_full_disk_and_says_so() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: mounting needs root");
        return;
    };
    let path = disk.dir.path().join("audit.log");
    // Torn in the middle of the first record, with the disk full up to the last byte of its page.
    fs::write(&path, vec![b'x'; 4096]).unwrap();
    disk.fill();
    fs::hard_link(&path, disk.dir.path().join("keeps-the-page")).unwrap();
    let log = AuditLog::open(&path, Options::new("test").without_journal()).unwrap();
    assert!(log.record(event("z".repeat(10_000))).is_err());
    assert!(!log.status().is_healthy());
    fs::remove_file(disk.filler()).unwrap();
    log.record(event("after")).unwrap();
    log.close();
    assert!(verify(&*fs::read(&path).unwrap(), &Expect::default()).unwrap().is_intact());
    assert!(kinds(&path).contains(&"torn_tail_cut".to_owned()));
}
