//! The hash chain: how a record becomes a line, and how lines are verified.
//!
//! A line is `{"seq":N,"prev":"HEX",…,"hash":"HEX"}` and a line feed. `hash` is the SHA-256 of the line's own bytes
//! from the opening brace up to, not including, `,"hash":"`. `prev`, the hash of the record before, is among those
//! bytes, so every hash vouches for everything before it, and verifying needs no parser that could disagree with the
//! writer's. The first record of all has the number 1 and 64 zeros as `prev`.

use std::{
    fmt,
    io::{self, BufRead, Read},
    str::FromStr,
};

use patch_types::api::AuditHead;
use sha2::{Digest, Sha256};

use crate::event::AuditEvent;

/// The longest record in bytes, line feed included. A request is bounded at 1 MiB, and escaping can make it longer.
pub const MAX_RECORD: usize = 8 << 20;

/// The highest number of a record: programs that read JSON know no higher ones for certain. No trail gets there.
pub const MAX_SEQ: u64 = 1 << 53;

/// How many problems a verdict lists; one whose chain is broken this often needs no more of them.
const MAX_PROBLEMS: usize = 1000;

const PREFIX: &[u8] = b"{\"seq\":";
const PREV: &[u8] = b",\"prev\":\"";
const TAIL: &[u8] = b",\"hash\":\"";
/// `,"hash":"`, 64 digits, `"}`.
const TAIL_LEN: usize = TAIL.len() + 64 + 2;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// What the first record of all has as `prev`.
    pub const ZERO: Self = Self([0; 32]);

    /// The hash of bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    fn parse(digits: &[u8]) -> Option<Self> {
        // The chain knows one spelling only: upper case would be an edit that the hash does not see.
        if digits.len() != 64 || digits.iter().any(u8::is_ascii_uppercase) {
            return None;
        }
        let mut hash = [0; 32];
        hex::decode_to_slice(digits, &mut hash).ok()?;
        Some(Self(hash))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 64];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Number and hash of a record: what is kept elsewhere, so that truncation is noticed. Written `SEQ:HASH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Head {
    /// The record's number.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

/// A text is not a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a head is a record's number, a colon and 64 lower-case hexadecimal digits")]
pub struct HeadError;

impl Head {
    /// What the first record of all follows.
    pub const GENESIS: Self = Self { seq: 0, hash: Hash::ZERO };
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl FromStr for Head {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        let (seq, hash) = text.split_once(':').ok_or(HeadError)?;
        let seq = seq.parse().map_err(|_| HeadError)?;
        Ok(Self { seq, hash: Hash::parse(hash.as_bytes()).ok_or(HeadError)? })
    }
}

impl From<Head> for AuditHead {
    fn from(head: Head) -> Self {
        Self { seq: head.seq, hash: head.hash.to_string() }
    }
}

impl TryFrom<&AuditHead> for Head {
    type Error = HeadError;

    fn try_from(head: &AuditHead) -> Result<Self, HeadError> {
        Ok(Self { seq: head.seq, hash: Hash::parse(head.hash.as_bytes()).ok_or(HeadError)? })
    }
}

/// Appends the record that follows `last` to `out` as one line, and returns its head.
pub(crate) fn encode(out: &mut Vec<u8>, last: Head, event: &AuditEvent) -> io::Result<Head> {
    use io::Write as _;
    let start = out.len();
    let next = last.seq.checked_add(1).filter(|seq| *seq <= MAX_SEQ);
    let seq = next.ok_or_else(|| io::Error::other("there is no number left for a record"))?;
    write!(out, "{{\"seq\":{seq},\"prev\":\"{}\"", last.hash)?;
    let body = out.len();
    serde_json::to_writer(&mut *out, event)?;
    // The event is an object with at least one field: its opening brace becomes the comma, its closing one goes.
    if let Some(brace) = out.get_mut(body) {
        *brace = b',';
    }
    out.pop();
    let hash = Hash::of(out.get(start..).unwrap_or_default());
    writeln!(out, ",\"hash\":\"{hash}\"}}")?;
    Ok(Head { seq, hash })
}

/// A line taken apart, with its hash recomputed.
pub(crate) struct Link {
    pub(crate) seq: u64,
    pub(crate) prev: Hash,
    pub(crate) written: Hash,
    pub(crate) computed: Hash,
}

impl Link {
    /// Takes a line without its line feed apart; `None` when it does not have a record's form.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let (body, tail) = line.split_at_checked(line.len().checked_sub(TAIL_LEN)?)?;
        let written = Hash::parse(tail.strip_prefix(TAIL)?.strip_suffix(b"\"}")?)?;
        let rest = body.strip_prefix(PREFIX)?;
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let (number, rest) = rest.split_at_checked(digits)?;
        if number.first() == Some(&b'0') {
            return None;
        }
        let seq = std::str::from_utf8(number).ok()?.parse().ok()?;
        let rest = rest.strip_prefix(PREV)?;
        let prev = Hash::parse(rest.get(..64)?)?;
        if !rest.get(64..)?.starts_with(b"\",") {
            return None;
        }
        Some(Self { seq, prev, written, computed: Hash::of(body) })
    }

    /// Whether the record is the unedited one that follows `last`.
    pub(crate) fn follows(&self, last: Head) -> bool {
        self.written == self.computed && last.seq.checked_add(1) == Some(self.seq) && self.prev == last.hash
    }

    pub(crate) fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.written }
    }
}

/// What the first record of a file has to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing: the file holds the trail from its beginning.
    Genesis,
    /// The last record of the file before.
    After(Head),
    /// Whatever it says: the files before are gone.
    Anything,
}

/// What is known of a trail from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expect {
    /// What the first record follows.
    pub start: Start,
    /// A record that has to be there: the last one that is known elsewhere. The trail may have grown since. Without
    /// it nobody can tell a trail that was cut off from one that ends.
    pub head: Option<Head>,
}

impl Default for Expect {
    fn default() -> Self {
        Self { start: Start::Genesis, head: None }
    }
}

/// How a chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// A line is not a record.
    #[error("the line is not a record: it was edited or inserted")]
    Malformed,
    /// A line is longer than any record.
    #[error("the line is longer than {MAX_RECORD} bytes, which no record is")]
    TooLong,
    /// The last line has no line feed: a crash while it was written, or somebody cut it.
    #[error("the last line is incomplete")]
    Torn,
    /// The record's bytes do not have its hash.
    #[error("the record was edited: it says {written}, its text has {computed}")]
    Edited {
        /// The hash that it carries.
        written: Hash,
        /// The hash of its text.
        computed: Hash,
    },
    /// Records are missing before this one.
    #[error("records {from} to {to} are missing before this one: they were removed or stand elsewhere")]
    Missing {
        /// The first.
        from: u64,
        /// The last.
        to: u64,
        /// The record before them.
        before: Head,
        /// The record after them, as its line says.
        after: Head,
    },
    /// The record's number is not higher than the one before.
    #[error("the record was inserted, repeated or moved: number {expected} belongs here")]
    OutOfOrder {
        /// The number that belongs here.
        expected: u64,
    },
    /// The number fits, the hash before does not.
    #[error("the record does not follow the one before it: one of the two was replaced")]
    Unlinked,
    /// The trail ends before a record that is known to exist.
    #[error("the trail was cut off: record {} is known elsewhere and is not there", .expected.seq)]
    Truncated {
        /// The record that is known.
        expected: Head,
    },
    /// The record whose head is known elsewhere has another hash here.
    #[error("the record is not the one that is known elsewhere: its hash was {}", .expected.hash)]
    Replaced {
        /// The record that is known.
        expected: Head,
    },
}

/// One break, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, counted from 1. For a truncation the line that should have come next.
    pub line: u64,
    /// The number that the record carries, if it is one.
    pub seq: Option<u64>,
    /// What is wrong.
    pub what: Break,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seq {
            Some(seq) => write!(f, "line {} (record {seq}): {}", self.line, self.what),
            None => write!(f, "line {}: {}", self.line, self.what),
        }
    }
}

/// What verifying found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// How many records were read.
    pub records: u64,
    /// The first record.
    pub first: Option<Head>,
    /// The last record: what the next file follows.
    pub head: Option<Head>,
    /// Every break, in the order of the lines (at most a thousand).
    pub problems: Vec<Problem>,
}

impl Verdict {
    /// Whether the trail is what was written.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }

    fn note(&mut self, line: u64, seq: Option<u64>, what: Break) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { line, seq, what });
        }
    }
}

/// Reads one line into `line`, without its line feed. `None` at the end; otherwise whether it was complete.
pub(crate) fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    // Bounded: a file without line feeds must not be read into memory whole.
    let read = reader.by_ref().take(MAX_RECORD as u64 + 1).read_until(b'\n', line)?;
    if read == 0 {
        return Ok(None);
    }
    let complete = line.last() == Some(&b'\n');
    if complete {
        line.pop();
    }
    Ok(Some(complete))
}

/// Verifies a trail from its beginning to its end.
///
/// # Errors
/// When it cannot be read.
pub fn verify(reader: impl BufRead, expect: &Expect) -> io::Result<Verdict> {
    let (verdict, broken) = verify_each(reader, expect, |_, _| {});
    broken.map_or(Ok(verdict), Err)
}

/// Verifies, shows each record with its line to `each`, and goes as far as it can be read.
pub(crate) fn verify_each(
    mut reader: impl BufRead,
    expect: &Expect,
    mut each: impl FnMut(Head, &[u8]),
) -> (Verdict, Option<io::Error>) {
    let mut verdict = Verdict::default();
    let mut last = match expect.start {
        Start::Genesis => Some(Head::GENESIS),
        Start::After(head) => Some(head),
        Start::Anything => None,
    };
    // A head from before the start was looked for in the file where it belongs.
    let mut known = expect.head.filter(|head| head.seq > last.map_or(0, |last| last.seq));
    let mut line = Vec::new();
    let mut number = 0;
    let mut broken = None;
    loop {
        let complete = match read_line(&mut reader, &mut line) {
            Ok(Some(complete)) => complete,
            Ok(None) => break,
            Err(error) => {
                broken = Some(error);
                break;
            }
        };
        number += 1;
        if !complete {
            let what = if line.len() > MAX_RECORD { Break::TooLong } else { Break::Torn };
            let stop = what == Break::TooLong;
            verdict.note(number, None, what);
            if stop {
                break;
            }
            continue;
        }
        let Some(link) = Link::parse(&line) else {
            verdict.note(number, None, Break::Malformed);
            continue;
        };
        verdict.records += 1;
        if let Some(last) = last
            && !link.follows(last)
        {
            note_break(&mut verdict, number, &link, last);
        } else if link.written != link.computed {
            let what = Break::Edited { written: link.written, computed: link.computed };
            verdict.note(number, Some(link.seq), what);
        }
        if let Some(expected) = known
            && expected.seq == link.seq
        {
            if expected.hash != link.written {
                verdict.note(number, Some(link.seq), Break::Replaced { expected });
            }
            known = None;
        }
        verdict.first.get_or_insert(link.head());
        each(link.head(), &line);
        // Going on from what the line says shows one break once, not on every line after it.
        last = Some(link.head());
        verdict.head = last;
    }
    if let Some(expected) = known {
        verdict.note(number + 1, None, Break::Truncated { expected });
    }
    (verdict, broken)
}

fn note_break(verdict: &mut Verdict, line: u64, link: &Link, last: Head) {
    let expected = last.seq.saturating_add(1);
    let seq = Some(link.seq);
    if link.written != link.computed {
        verdict.note(line, seq, Break::Edited { written: link.written, computed: link.computed });
    }
    if link.seq > expected {
        verdict.note(
            line,
            seq,
            Break::Missing { from: expected, to: link.seq - 1, before: last, after: link.head() },
        );
    } else if link.seq < expected {
        verdict.note(line, seq, Break::OutOfOrder { expected });
    } else if link.prev != last.hash {
        verdict.note(line, seq, Break::Unlinked);
    }
}
