//! The audit trail as programs use it: chain, log, journal and reader, on real files.
#![expect(clippy::unwrap_used, reason = "tests stop where something unforeseen happens")]

mod chain;
mod crash;
mod disk;
mod journal;
mod log;
mod mutations;
mod remote;
mod rotation;

use std::{
    fs,
    path::{Path, PathBuf},
};

use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller, Expect, Options, Verdict, verify};
use tempfile::TempDir;

/// A log in a directory of its own.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    fn open(&self) -> AuditLog {
        AuditLog::open(&self.path(), Options::new("test").without_journal()).unwrap()
    }

    fn verify(&self) -> Verdict {
        verdict(&fs::read(self.path()).unwrap(), &Expect::default())
    }

    /// The names of all files, sorted.
    fn files(&self) -> Vec<String> {
        names(self.dir.path())
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn verdict(bytes: &[u8], expect: &Expect) -> Verdict {
    verify(bytes, expect).unwrap()
}

/// An event that is told apart by its text.
fn event(text: impl Into<String>) -> AuditEvent {
    AuditEvent::new(AuditKind::SystemChanged { what: text.into() }, &Caller::at([10, 0, 0, 5].into()))
}

/// The names of the kinds in a trail, in order.
fn kinds(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let kind = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].as_str().unwrap().into()
    };
    text.lines().map(kind).collect()
}
