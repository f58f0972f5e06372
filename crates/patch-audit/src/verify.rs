//! Verifying a whole trail: its files as one chain, and what is known of it from elsewhere.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::Path,
};

use jiff::{SignedDuration, Timestamp};
use patch_types::executor::Checkpoint;

use crate::{
    acknowledged::{Acknowledged, Acknowledgements, Damage, Gap, Hashing},
    chain::{Break, Expect, Hash, Head, HeadError, Start, verify_each},
    checkpoint::PublicKeys,
    event::AuditKind,
    reader::Record,
    trail::{Trail, day_of},
};

/// How many of the last records a checkpoint is looked for among. It is signed and recorded within seconds.
const RECENT: usize = 1 << 16;

/// The longest that the root side may take from being asked for a signature to signing.
const SIGNED_WITHIN: SignedDuration = SignedDuration::from_hours(1);

/// What is known of a trail from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// A record that has to be there, as somebody kept it.
    pub head: Option<Head>,
    /// Records that the root side has signed, in any order.
    pub signed: Vec<SignedHead>,
    /// The keys whose signatures count; without them checkpoints are not looked at.
    pub keys: Option<PublicKeys>,
    /// What root has explained.
    pub acknowledged: Acknowledgements,
    /// How long records have to be kept; without it nobody asks whether those that are gone were old enough.
    pub retention: Option<Retention>,
}

/// A record that the root side has signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedHead {
    /// The record.
    pub head: Head,
    /// When it was signed, by the root side's clock. What comes after the record was written later, but for the time that
    /// signing took.
    pub at: Timestamp,
}

impl TryFrom<&Checkpoint> for SignedHead {
    type Error = HeadError;

    fn try_from(checkpoint: &Checkpoint) -> Result<Self, HeadError> {
        Ok(Self { head: Head::try_from(&checkpoint.head)?, at: checkpoint.at })
    }
}

/// How long records have to be kept, as whoever writes the trail cannot choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// For so many days after theirs.
    pub keep_days: u32,
    /// Since when that is so. What was removed before was removed by another rule.
    pub since: Option<Timestamp>,
}

/// What verifying a whole trail found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// How many records there are.
    pub records: u64,
    /// The first.
    pub first: Option<Head>,
    /// The last.
    pub head: Option<Head>,
    /// The last record that the root side vouches for, by a signature that was checked or a head that it holds.
    pub vouched: Option<u64>,
    /// How many checkpoints were checked.
    pub checkpoints: u64,
    /// All that is wrong, each a sentence.
    pub problems: Vec<String>,
    /// What a person should know and is no damage.
    pub notes: Vec<String>,
    /// What of the problems a person may acknowledge: what a file that was set aside has left.
    pub damage: Damage,
    /// The gaps that are there and that root has explained.
    explained: Vec<Gap>,
    /// Whether the present file ends within a line.
    pub is_being_written: bool,
}

impl Report {
    /// Damage that root has explained is told, and is no problem; other damage of this kind may be acknowledged.
    fn judge(&mut self, what: String, known: Option<&Acknowledged>, damage: impl FnOnce(&mut Damage)) {
        match known {
            Some(Acknowledged { at, reason, .. }) => {
                self.notes.push(format!("{what} (acknowledged at {at:.0}: {reason})"));
            }
            None => {
                self.problems.push(what);
                damage(&mut self.damage);
            }
        }
    }

    /// As [`Self::judge`], of records that are missing.
    fn judge_gap(&mut self, what: String, gap: Gap, known: &Acknowledgements) {
        let known = known.of_gap(&gap);
        if known.is_some() {
            self.explained.push(gap.clone());
        }
        self.judge(what, known, |damage| damage.missing.push(gap));
    }

    /// Whether the trail is what was written.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }
}

/// What the records say about the trail itself.
#[derive(Default)]
struct Said {
    recent: VecDeque<(u64, Hash)>,
    vouched: Option<u64>,
    checkpoints: u64,
    unchecked: u64,
    problems: Vec<String>,
    /// The first record that retention left.
    first_left: u64,
    /// Records that tell of a removal, and the first record that it left.
    removals: Vec<(u64, u64)>,
    /// Records that tell of a file that was set aside, and its name.
    set_aside: Vec<(u64, Option<String>)>,
    /// Signed records that are still to be met.
    signed: BTreeMap<u64, Vec<Hash>>,
}

impl Said {
    fn hear(&mut self, head: Head, line: &[u8], keys: Option<&PublicKeys>, name: &str) {
        if let Some(hashes) = self.signed.remove(&head.seq) {
            if hashes.iter().all(|hash| *hash == head.hash) {
                self.vouched = self.vouched.max(Some(head.seq));
            } else {
                self.problems.push(format!(
                    "{name}: record {} is not the one that the root side signed: the trail was rewritten",
                    head.seq
                ));
            }
        }
        // Quotation marks within a text are escaped, so nothing that a peer chooses looks like this.
        let is = |kind: &str| find(line, format!(",\"event\":\"{kind}\"").as_bytes());
        if is("checkpoint") || is("trail_pruned") || is("trail_set_aside") {
            self.listen(head, line, keys, name);
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((head.seq, head.hash));
    }

    fn listen(&mut self, at: Head, line: &[u8], keys: Option<&PublicKeys>, name: &str) {
        let Ok(record) = serde_json::from_slice::<Record>(line) else { return };
        match &record.event.kind {
            AuditKind::TrailPruned { first_left, .. } => {
                self.first_left = self.first_left.max(*first_left);
                self.removals.push((at.seq, *first_left));
            }
            AuditKind::TrailSetAside { kept_as, .. } => self.set_aside.push((at.seq, kept_as.clone())),
            kind => {
                let Some(checkpoint) = kind.checkpoint() else { return };
                let Some(keys) = keys else {
                    self.unchecked += 1;
                    return;
                };
                let Some(signed) = keys.check(&checkpoint) else {
                    self.problems.push(format!(
                        "{name}: record {} says that the root side signed record {}, but that is not its signature",
                        at.seq, checkpoint.head.seq
                    ));
                    return;
                };
                self.checkpoints += 1;
                match self.recent.iter().rev().find(|(seq, _)| *seq == signed.seq) {
                    Some((_, hash)) if *hash == signed.hash => {
                        self.vouched = self.vouched.max(Some(signed.seq));
                    }
                    Some(_) => self.problems.push(format!(
                        "{name}: record {} is not the one that the root side signed, as record {} shows: the trail was \
                         rewritten",
                        signed.seq, at.seq
                    )),
                    None => {}
                }
            }
        }
    }
}

fn find(line: &[u8], what: &[u8]) -> bool {
    // The kind stands near the beginning, after fields of known length.
    line.get(..400.min(line.len())).is_some_and(|head| head.windows(what.len()).any(|w| w == what))
}

/// Verifies the trail whose present file is `log`.
///
/// # Errors
/// When the directory or a file cannot be read. A file that is damaged is no error, but a problem.
pub fn examine(log: &Path, known: &Known) -> io::Result<Report> {
    examine_opened(log, Trail::open(log)?, known)
}

/// Verifies a trail that was opened before: what was written since is left out.
///
/// # Errors
/// As [`examine`].
pub fn examine_opened(log: &Path, trail: Trail, known: &Known) -> io::Result<Report> {
    let mut report = Report::default();
    let mut said = Said::default();
    for SignedHead { head, .. } in &known.signed {
        said.signed.entry(head.seq).or_default().push(head.hash);
    }
    let mut start = Start::Anything;
    let mut elsewhere = known.head;
    if !trail.files.iter().any(super::trail::TrailFile::is_live) {
        report.problems.push(format!("{}: the file is not there", log.display()));
    }
    let files = trail.files.len();
    for (i, file) in trail.files.into_iter().enumerate() {
        let (path, is_live) = (file.path().to_owned(), file.is_live());
        let name = path.display().to_string();
        let expect = Expect { start, head: elsewhere };
        let (verdict, broken) = verify_each(file.reader(), &expect, |head, line| {
            said.hear(head, line, known.keys.as_ref(), &name);
        });
        if let Some(error) = broken {
            // What cannot be decompressed is damage; a disk that cannot be read is a reason to stop.
            if !path.to_string_lossy().ends_with(".gz") {
                return Err(io::Error::new(error.kind(), format!("{name}: {error}")));
            }
            report.problems.push(format!("{name}: the compressed file is damaged: {error}"));
        }
        report.records += verdict.records;
        report.first = report.first.or(verdict.first);
        let reaches = elsewhere.is_some_and(|k| verdict.head.is_some_and(|h| h.seq >= k.seq));
        let is_pruned = elsewhere.is_some_and(|k| report.first.is_some_and(|first| k.seq < first.seq));
        for problem in verdict.problems {
            match problem.what {
                // A record is written with one call, but that may be under way; a crash is mended at the next start.
                Break::Torn if is_live => report.is_being_written = true,
                // A later file may have it, or it is told below.
                Break::Truncated { .. } if is_pruned || (i + 1 < files && !reaches) => {}
                Break::Missing { from, to, before, after } => {
                    let gap = Gap::new(from, to, Some(before), after);
                    report.judge_gap(format!("{name}: {problem}"), gap, &known.acknowledged);
                }
                _ => report.problems.push(format!("{name}: {problem}")),
            }
        }
        if let (Some(expected), Some(first), true) = (elsewhere, report.first, is_pruned) {
            report.problems.push(format!(
                "record {} is known elsewhere, but the trail that is left begins with record {}: it cannot be compared",
                expected.seq, first.seq
            ));
        }
        if reaches || is_pruned {
            elsewhere = None;
        }
        if let Some(last) = verdict.head {
            report.head = Some(last);
            start = Start::After(last);
        }
    }
    if report.records == 0 {
        report.problems.push(format!("{}: there is not one record", log.display()));
    }
    conclude(&mut report, said, known);
    for error in trail.unopened {
        // That its name was acknowledged says nothing of what is in it now.
        report.problems.push(format!("{error}; it was found damaged and set aside, and cannot be opened; find out who put it there, then remove it as root"));
    }
    for file in trail.set_aside {
        let name = file.path().display().to_string();
        let base = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut reader = Hashing::new(file.reader());
        let (verdict, _) =
            verify_each(&mut reader, &Expect { start: Start::Anything, head: None }, |_, _| {});
        let sha256 = match reader.finish() {
            Ok(sha256) => sha256,
            // What cannot be read cannot be known either.
            Err(error) => {
                report.problems.push(format!(
                    "{name}: this file was found damaged and set aside, and cannot be read: {error}"
                ));
                continue;
            }
        };
        let span = match (verdict.first, verdict.head) {
            (Some(first), Some(last)) => format!("it holds records {} to {}", first.seq, last.seq),
            _ => "it holds no record".to_owned(),
        };
        let acknowledged = known.acknowledged.of_file(&base, &sha256);
        let is_known = acknowledged.is_some();
        let what = format!("{name}: this file was found damaged and set aside; {span}");
        report.judge(what, acknowledged, |damage| {
            damage.files.insert(base, sha256);
        });
        if is_known {
            continue;
        }
        report.problems.extend(verdict.problems.iter().take(5).map(|problem| format!("{name}: {problem}")));
    }
    Ok(report)
}

/// What the files together show.
fn conclude(report: &mut Report, said: Said, known: &Known) {
    retention(report, &said, known);
    report.problems.extend(said.problems);
    report.vouched = said.vouched;
    report.checkpoints = said.checkpoints;
    let last = report.head.map_or(0, |head| head.seq);
    let first = report.first.map_or(0, |head| head.seq);
    if let Some((seq, _)) = said.signed.iter().next_back().filter(|(seq, _)| **seq > last) {
        report.problems.push(format!(
            "the trail was cut off: the root side has signed record {seq}, and the trail ends with record {last}"
        ));
    }
    if let Some(beginning) = report.first.filter(|_| first > 1 && said.first_left < first) {
        let aside = said.set_aside.iter().find(|(seq, _)| *seq <= first.saturating_add(2));
        let what = match aside {
            Some((_, Some(name))) => {
                format!("the trail begins with record {first}: what was before was set aside as {name}")
            }
            _ => format!(
                "the trail begins with record {first}, and no record says that older ones were removed because of their age"
            ),
        };
        let (from, to) = (said.first_left.max(1), first.saturating_sub(1));
        report.judge_gap(what, Gap::new(from, to, None, beginning), &known.acknowledged);
    } else if first > 1 {
        report.notes.push(match said.vouched {
            Some(vouched) => format!(
                "the trail begins with record {first}, the older ones were kept long enough; the root side's signature of \
                 record {vouched} vouches for this beginning"
            ),
            None => format!(
                "the trail begins with record {first}, the older ones were kept long enough; no checkpoint vouches for that"
            ),
        });
    }
    // A damaged trail may begin with a higher number than it ends with.
    let is_missing = |seq: u64| report.explained.iter().any(|gap| gap.contains(seq));
    let within = said.signed.keys().filter(|seq| (first..=last).contains(*seq) && !is_missing(**seq)).count();
    if first > 0 && within > 0 {
        report.problems.push(format!("{within} records that the root side has signed are not there"));
    }
    if said.unchecked > 0 {
        report.notes.push(format!(
            "{} checkpoints were not checked: the root side's public key cannot be read",
            said.unchecked
        ));
    }
    if known.keys.is_some() && report.records > 0 {
        let after = last.saturating_sub(said.vouched.unwrap_or(0));
        report.notes.push(match said.vouched {
            Some(vouched) => format!(
                "the root side vouches for everything up to record {vouched}; the {after} after it are newer than its last \
                 checkpoint"
            ),
            None => "the root side has not vouched for any of it yet".to_owned(),
        });
    }
}

/// Whether what is gone because of its age, as the trail says, was that old: whoever writes the trail can remove its
/// beginning and say so, but not when the root side signed what is gone.
fn retention(report: &mut Report, said: &Said, known: &Known) {
    let (Some(Retention { keep_days, since }), Some(first)) = (known.retention, report.first) else { return };
    let mut signed = known.signed.clone();
    signed.sort_unstable_by_key(|signed| (signed.head.seq, signed.at));
    let now = Timestamp::now();
    let mut is_noted = false;
    for &(told_by, first_left) in &said.removals {
        let left = first_left.min(first.seq);
        // The last one that is followed by a record that is gone: it was written after the signature.
        let before = signed.partition_point(|signed| signed.head.seq.saturating_add(1) < left);
        let Some((before, later)) = before.checked_sub(1).and_then(|i| signed.get(i..)?.split_first()) else {
            continue;
        };
        let after = signed.partition_point(|signed| signed.head.seq < told_by);
        let vouched = signed.get(after).map(|signed| signed.at);
        // A clock that was ahead or behind for a while is no tampering: what was signed later was not signed earlier.
        let written = later.iter().map(|signed| signed.at).fold(before.at, Timestamp::min);
        let written = written.checked_sub(SIGNED_WITHIN).unwrap_or(written);
        let removed = signed.iter().take(after.saturating_add(1)).map(|signed| signed.at);
        let removed = removed.fold(vouched.unwrap_or(now), Timestamp::max);
        let last_day = day_of(written).saturating_add(u64::from(keep_days));
        if day_of(removed) > last_day {
            continue;
        }
        let gone = format!(
            "record {told_by} says that the records before {left} were kept long enough and removed, but the root side \
             signed record {} at {:.0}",
            before.head.seq, before.at
        );
        // As the root side vouches for: before that the configuration was another one.
        if since.is_some_and(|since| vouched.is_some_and(|at| at <= since)) {
            if !std::mem::replace(&mut is_noted, true) {
                report.notes.push(format!(
                    "{gone}, and records have to be kept for {keep_days} days; the configuration was changed since"
                ));
            }
            continue;
        }
        report.problems.push(format!(
            "{gone}, and records have to be kept for {keep_days} days: the beginning of the trail was removed before its \
             time (or the clock was ahead then, or logging.retention_days lower)"
        ));
        // One says it all.
        return;
    }
}
