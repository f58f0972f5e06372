//! Reading a trail for people: the last records, filtered. It does not verify; that is [`crate::verify`].

use std::{
    collections::VecDeque,
    io::{self, BufRead},
};

use patch_types::JobId;
use serde::Deserialize;

use crate::{
    chain::read_line,
    event::{AuditEvent, AuditKind, Priority},
};

/// One record as read.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Record {
    /// Its number.
    pub seq: u64,
    /// The hash of the record before, in hexadecimal.
    pub prev: String,
    /// Its hash, in hexadecimal.
    pub hash: String,
    /// What happened.
    #[serde(flatten)]
    pub event: AuditEvent,
    /// The line itself, for output as JSON: it has also what a newer version wrote and this one does not know.
    #[serde(skip)]
    pub line: String,
}

/// Which records. Empty: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this kind, by its name.
    pub kind: Option<String>,
    /// About this job.
    pub job: Option<JobId>,
    /// By this identity.
    pub identity: Option<String>,
    /// Of at least this priority.
    pub priority: Option<Priority>,
}

impl Filter {
    /// Whether an event passes.
    #[must_use]
    pub fn admits(&self, event: &AuditEvent) -> bool {
        self.kind.as_ref().is_none_or(|kind| kind == event.kind.name())
            && self.job.is_none_or(|job| event.kind.job() == Some(job))
            && self.identity.as_ref().is_none_or(|identity| event.caller.identity.as_ref() == Some(identity))
            && self.priority.is_none_or(|priority| event.priority >= priority)
    }
}

impl AuditKind {
    /// The job that it is about.
    #[must_use]
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::JobAccepted { job_id, .. }
            | Self::JobEnded { job_id, .. }
            | Self::PackageChanged { job_id, .. }
            | Self::RootRequest { job_id, .. } => Some(*job_id),
            _ => None,
        }
    }
}

/// Reads records one after the other. Lines that are none are passed over and counted.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    line: Vec<u8>,
    skipped: u64,
}

impl<R: BufRead> Reader<R> {
    /// A reader of a trail.
    pub fn new(from: R) -> Self {
        Self { from, line: Vec::new(), skipped: 0 }
    }

    /// Lines so far that are not records.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The last `count` records that pass, oldest first.
    ///
    /// # Errors
    /// When the trail cannot be read.
    pub fn tail(&mut self, count: usize, filter: &Filter) -> io::Result<Vec<Record>> {
        let mut kept = VecDeque::new();
        for record in self.by_ref() {
            let record = record?;
            if !filter.admits(&record.event) {
                continue;
            }
            kept.push_back(record);
            if kept.len() > count {
                kept.pop_front();
            }
        }
        Ok(kept.into())
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match read_line(&mut self.from, &mut self.line) {
                Ok(None) => return None,
                Ok(Some(complete)) => {
                    let text = if complete { std::str::from_utf8(&self.line).ok() } else { None };
                    match text.and_then(|text| Some((text, serde_json::from_str::<Record>(text).ok()?))) {
                        Some((text, record)) => return Some(Ok(Record { line: text.to_owned(), ..record })),
                        None => self.skipped += 1,
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
