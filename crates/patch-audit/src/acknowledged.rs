//! What root has looked into and explained about a damaged trail: which files that were set aside, and which records are
//! missing. It is the root side's file, which the writer of the trail cannot write, so that only root can say of damage
//! that it is known; and it excuses just that damage: another file, a changed one, one missing record more or less, or
//! another record beside a gap is as bad as before.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, Read},
    path::Path,
};

use jiff::Timestamp;
use patch_types::api::AuditHead;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{chain::Head, checkpoint::replace};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Damage of a trail that is accounted for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acknowledged {
    /// When it was.
    pub at: Timestamp,
    /// Why it is no reason to worry any more, in root's words.
    pub reason: String,
    /// What is damaged.
    #[serde(flatten)]
    pub damage: Damage,
}

/// What a file that was set aside leaves of a trail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Files that were set aside: the name, and the SHA-256 of what is in them in hexadecimal.
    pub files: BTreeMap<String, String>,
    /// Records that are missing.
    pub missing: Vec<Gap>,
}

/// Records that are missing, and between which ones: whoever puts others in their place changes the gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// The first of them.
    pub from: u64,
    /// The last.
    pub to: u64,
    /// The record before them; none if the trail begins behind them.
    pub before: Option<AuditHead>,
    /// The record after them.
    pub after: AuditHead,
}

impl Gap {
    pub(crate) fn new(from: u64, to: u64, before: Option<Head>, after: Head) -> Self {
        Self { from, to, before: before.map(AuditHead::from), after: after.into() }
    }

    pub(crate) fn contains(&self, seq: u64) -> bool {
        (self.from..=self.to).contains(&seq)
    }
}

impl Damage {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.missing.is_empty()
    }

    /// What just this damage is known by: the SHA-256 of its JSON, in hexadecimal. None if there is no damage.
    #[must_use]
    pub fn digest(&self) -> Option<String> {
        let text = serde_json::to_vec(self).ok().filter(|_| !self.is_empty())?;
        Some(hex::encode(Sha256::digest(text)))
    }
}

/// All that was acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acknowledgements(Vec<Acknowledged>);

impl Acknowledgements {
    /// Reads the file; none is there before the first acknowledgement.
    ///
    /// # Errors
    /// When it cannot be read or is not what it should be: then nothing counts as acknowledged.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut text = String::new();
        match File::open(path) {
            Ok(file) => file.take(MAX_FILE + 1).read_to_string(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        within_bounds(text.len())?;
        let parse = |(i, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| {
                let what = format!("line {} is not an acknowledgement: {error}", i + 1);
                io::Error::new(io::ErrorKind::InvalidData, what)
            })
        };
        text.lines().enumerate().map(parse).collect::<Result<_, _>>().map(Self)
    }

    /// These and one more, as the text of the file.
    ///
    /// # Errors
    /// When the file would be larger than one that is read.
    pub fn text_with(&self, one: &Acknowledged) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        for acknowledged in self.0.iter().chain([one]) {
            serde_json::to_writer(&mut text, acknowledged)?;
            text.push(b'\n');
        }
        within_bounds(text.len())?;
        Ok(text)
    }

    /// Writes the file whole and durably, readable by everybody: others verify as well.
    ///
    /// # Errors
    /// When it cannot be written; the one before is then still there.
    pub fn write(path: &Path, text: &[u8]) -> io::Result<()> {
        replace(path, text, 0o644)
    }

    /// Whether a file of this name was acknowledged, whatever is in it.
    #[must_use]
    pub fn names(&self, file: &str) -> bool {
        self.0.iter().any(|one| one.damage.files.contains_key(file))
    }

    /// The acknowledgement of a file with just this content.
    pub(crate) fn of_file(&self, name: &str, sha256: &str) -> Option<&Acknowledged> {
        self.0.iter().find(|one| one.damage.files.get(name).is_some_and(|known| known == sha256))
    }

    /// The acknowledgement of just this gap.
    pub(crate) fn of_gap(&self, gap: &Gap) -> Option<&Acknowledged> {
        self.0.iter().find(|one| one.damage.missing.contains(gap))
    }
}

fn within_bounds(length: usize) -> io::Result<()> {
    if length as u64 <= MAX_FILE {
        return Ok(());
    }
    let what =
        format!("acknowledgements of more than {MAX_FILE} bytes are more than anybody has looked into");
    Err(io::Error::new(io::ErrorKind::FileTooLarge, what))
}

/// Passes lines on, and tells what was in them.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: BufRead> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// The SHA-256 of all, once what is left has been read.
    pub(crate) fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(hex::encode(self.hash.finalize()))
    }
}

impl<R: BufRead> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Hashing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let Ok(buffer) = self.inner.fill_buf() {
            self.hash.update(buffer.get(..amount).unwrap_or_default());
        }
        self.inner.consume(amount);
    }
}
