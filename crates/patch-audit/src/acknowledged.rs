//! What root has looked into and explained about a damaged trail: which files that were set aside, and which records are
//! missing. It is the root side's file, which the writer of the trail cannot write, so that only root can say of damage
//! that it is known; and it excuses just that damage: another file, a changed one, one missing record more or less, or
//! another record beside a gap is as bad as before.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, Read, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use jiff::Timestamp;
use patch_types::api::AuditHead;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::chain::Head;

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
            Ok(file) => file.take(MAX_FILE).read_to_string(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let parsed: Result<_, _> = lines.map(serde_json::from_str).collect();
        parsed.map(Self).map_err(io::Error::from)
    }

    /// Adds one, durably.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(path: &Path, acknowledged: &Acknowledged) -> io::Result<()> {
        let mut line = serde_json::to_vec(acknowledged)?;
        line.push(b'\n');
        let mut file = File::options().create(true).append(true).mode(0o644).open(path)?;
        // Whatever the umask of whoever runs this: others verify as well.
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644))?;
        file.write_all(&line)?;
        file.sync_all()?;
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
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
