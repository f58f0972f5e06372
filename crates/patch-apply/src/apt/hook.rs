//! What apt is about to do, as it announces it under its lock, and whether that is what was planned.
//!
//! apt runs the commands of `DPkg::Pre-Install-Pkgs` after it has taken its locks and before it starts dpkg, and gives
//! up if one fails. In version 3 of the protocol (`apt.conf(5)`) a command reads the line `VERSION 3`, apt's
//! configuration, an empty line, and then a line for each step:
//! `NAME OLD OLD-ARCHITECTURE OLD-MULTI-ARCH DIRECTION NEW NEW-ARCHITECTURE NEW-MULTI-ARCH STEP`. The step is the path of
//! an archive that will be unpacked, `**CONFIGURE**` or `**REMOVE**`; what there is not is `-`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use patch_types::{Action, Architecture, JobId, PackageName, PackageVersion, PlannedChange};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The most that is read of what apt announces, in bytes. A distribution's upgrade with apt's whole configuration is some
/// hundred kilobytes.
pub const MAX_ANNOUNCEMENT: u64 = 32 << 20;

/// A version that is there, or that will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// The version.
    pub version: PackageVersion,
    /// The architecture of this version, `all` among them.
    pub architecture: Architecture,
}

/// What apt does in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It unpacks an archive.
    Unpack {
        /// The archive's path, absolute.
        file: PathBuf,
        /// SHA-256 of the archive in lower-case hexadecimal; absent until [`hash_archives`] has read it, and if it
        /// cannot be read.
        sha256: Option<String>,
    },
    /// It configures what is unpacked.
    Configure,
    /// It removes or purges the package. With a new version it does so only for a while, to unpack that afterwards.
    Remove,
}

/// One line of an announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The package, without architecture.
    pub name: PackageName,
    /// What is there now.
    pub old: Option<Side>,
    /// What will be there.
    pub new: Option<Side>,
    /// The step.
    pub step: Step,
}

/// Why an announcement cannot be relied upon. Nothing may be changed then.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It cannot be read.
    #[error("what apt announces cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is longer than [`MAX_ANNOUNCEMENT`].
    #[error("what apt announces is longer than {MAX_ANNOUNCEMENT} bytes")]
    TooLong,
    /// It does not begin as it should.
    #[error(
        "apt does not speak version 3 of the protocol of DPkg::Pre-Install-Pkgs; its first line is {0:?}"
    )]
    Version(String),
    /// It does not end with a whole line, or within the configuration.
    #[error("what apt announces breaks off")]
    BrokenOff,
    /// A line is not understood.
    #[error("line {line} of what apt announces is not understood: {text:?}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// Its beginning.
        text: String,
    },
}

/// Reads a whole announcement.
///
/// # Errors
/// When it cannot be read, is too long, or is not understood to its last line.
pub fn read(from: impl Read) -> Result<Vec<Announced>, HookError> {
    let mut text = Vec::new();
    let read = from.take(MAX_ANNOUNCEMENT + 1).read_to_end(&mut text)?;
    if read as u64 > MAX_ANNOUNCEMENT {
        return Err(HookError::TooLong);
    }
    parse(&text)
}

/// Parses an announcement.
///
/// # Errors
/// When it is not understood to its last line: what is not understood may be a change that nobody planned.
pub fn parse(text: &[u8]) -> Result<Vec<Announced>, HookError> {
    let excerpt = |line: &[u8]| String::from_utf8_lossy(line.get(..200).unwrap_or(line)).into_owned();
    let (text, whole) = match text.strip_suffix(b"\n") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let mut lines = text.split(|byte| *byte == b'\n').enumerate();
    match lines.next() {
        Some((_, b"VERSION 3")) => {}
        first => return Err(HookError::Version(excerpt(first.map_or(b"", |(_, line)| line)))),
    }
    if !whole || !lines.by_ref().any(|(_, line)| line.is_empty()) {
        return Err(HookError::BrokenOff);
    }
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(at, line)| {
            std::str::from_utf8(line)
                .ok()
                .and_then(announced)
                .ok_or_else(|| HookError::Line { line: at + 1, text: excerpt(line) })
        })
        .collect()
}

fn announced(line: &str) -> Option<Announced> {
    // A path may hold spaces, so it is the rest of the line.
    let mut fields = line.splitn(9, ' ');
    let mut next = || fields.next();
    let name: PackageName = next()?.parse().ok()?;
    let old = side(next()?, next()?, next()?)?;
    let direction = next()?;
    let new = side(next()?, next()?, next()?)?;
    let step = match next()? {
        "**CONFIGURE**" => Step::Configure,
        "**REMOVE**" => Step::Remove,
        // apt has no archive for it, and fails after this: `compare` says what it wanted to change.
        "" | "**ERROR**" => Step::Unpack { file: PathBuf::new(), sha256: None },
        file if file.starts_with('/') => Step::Unpack { file: file.into(), sha256: None },
        _ => return None,
    };
    let known = name.architecture().is_none() && matches!(direction, "<" | "=" | ">");
    // Only a removal leaves nothing behind.
    let whole = new.is_some() || step == Step::Remove;
    (known && whole).then_some(Announced { name, old, new, step })
}

/// The outer `None` is a malformed one, the inner one says that there is no version.
fn side(version: &str, architecture: &str, multi_arch: &str) -> Option<Option<Side>> {
    if !matches!(multi_arch, "none" | "no" | "same" | "foreign" | "allowed") {
        return None;
    }
    match (version, architecture) {
        ("-", "-") => Some(None),
        _ => Some(Some(Side { version: version.parse().ok()?, architecture: architecture.parse().ok()? })),
    }
}

/// Reads every archive that is announced and notes its hash. One that cannot be read keeps none.
pub fn hash_archives(announced: &mut [Announced]) {
    for line in announced {
        if let Step::Unpack { file, sha256 } = &mut line.step {
            *sha256 = hash(file).ok();
        }
    }
}

fn hash(file: &Path) -> io::Result<String> {
    let mut file = File::open(file)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(digest.finalize())),
            Ok(n) => digest.update(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A package about which plan and announcement differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The package, without architecture.
    pub name: PackageName,
    /// Its architecture.
    pub architecture: Architecture,
    /// What was planned, such as `upgrade 1.0 to 1.1`; absent if nothing was.
    pub planned: Option<String>,
    /// What apt is about to do; absent if nothing.
    pub announced: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, architecture, planned, announced } = self;
        let planned = planned.as_deref().unwrap_or("nothing");
        let announced = announced.as_deref().unwrap_or("do nothing");
        write!(f, "{name}:{architecture}: planned was {planned}, apt would {announced}")
    }
}

/// How what apt is about to do differs from the plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// What apt would do and nobody planned.
    pub too_much: Vec<Difference>,
    /// What was planned and apt would not do.
    pub missing: Vec<Difference>,
    /// What apt would do otherwise than planned.
    pub different: Vec<Difference>,
}

impl Drift {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.too_much.is_empty() && self.missing.is_empty() && self.different.is_empty()
    }

    /// A line for each difference.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let all = [&self.too_much, &self.missing, &self.different];
        all.into_iter().flatten().map(ToString::to_string).collect()
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("; "))
    }
}

/// A package by name and by the architecture that the plan names: that of the new version, or of the removed one.
type Key = (PackageName, Architecture);

/// All that is announced of one package.
#[derive(Default)]
struct Steps<'a> {
    unpacked: Vec<&'a Announced>,
    removed: Vec<&'a Announced>,
    configured: Vec<&'a Announced>,
}

impl Steps<'_> {
    fn describe(&self) -> String {
        let version = |side: Option<&Side>| side.map_or("-".to_owned(), |s| s.version.to_string());
        let mut text = String::new();
        let mut say = |verb: &str, line: &Announced, with_new: bool| {
            let separator = if text.is_empty() { "" } else { ", then " };
            let _ = write!(text, "{separator}{verb} {}", version(line.old.as_ref()));
            if with_new {
                let _ = write!(text, " to {}", version(line.new.as_ref()));
            }
            if let Step::Unpack { sha256, .. } = &line.step {
                let _ = write!(text, " (sha256 {})", sha256.as_deref().unwrap_or("not readable"));
            }
        };
        self.removed.iter().for_each(|line| say("remove", line, false));
        self.unpacked.iter().for_each(|line| say("change", line, true));
        if self.removed.is_empty() && self.unpacked.is_empty() {
            self.configured.iter().for_each(|line| say("configure", line, true));
        }
        text
    }

    /// Whether this is what was planned.
    fn is(&self, change: &PlannedChange) -> bool {
        let old = |line: &Announced| line.old.as_ref().map(|s| &s.version) == change.old_version.as_ref();
        if change.action.is_removal() {
            // Of a package of which only configuration is left the solver does not always name the version.
            let same = |line: &&Announced| {
                line.new.is_none()
                    && (old(line) || (change.action == Action::Purge && change.old_version.is_none()))
            };
            return self.unpacked.is_empty() && !self.removed.is_empty() && self.removed.iter().all(same);
        }
        let new = |line: &Announced| line.new.as_ref().map(|s| &s.version) == change.new_version.as_ref();
        let archive = |line: &Announced| match (&line.step, &change.archive_sha256) {
            (Step::Unpack { file, .. }, None) => file.is_absolute(),
            (_, None) => true,
            (Step::Unpack { sha256: Some(found), .. }, Some(planned)) => found.eq_ignore_ascii_case(planned),
            _ => false,
        };
        self.unpacked.len() == 1
            && self.unpacked.iter().all(|line| old(line) && new(line) && archive(line))
            // A package can be removed for a while, so that another takes its place, and then come back.
            && self.removed.iter().all(|line| old(line) && new(line))
    }
}

fn describe(change: &PlannedChange) -> String {
    let version = |v: &Option<PackageVersion>| v.as_ref().map_or("-".to_owned(), ToString::to_string);
    let mut text = format!("to {} {}", change.action, version(&change.old_version));
    if !change.action.is_removal() {
        let _ = write!(text, " to {}", version(&change.new_version));
    }
    if let Some(hash) = &change.archive_sha256 {
        let _ = write!(text, " (sha256 {hash})");
    }
    text
}

/// Compares what apt announces with what was planned.
///
/// Every archive that is unpacked and every removal must be planned with the same versions and architecture, and
/// everything planned must be announced. Archives must have the hash that the plan names; call [`hash_archives`] first.
/// What is only configured may differ: dpkg does that with whatever an earlier run left.
///
/// # Errors
/// The differences, if there are any.
pub fn compare(announced: &[Announced], expected: &[PlannedChange]) -> Result<(), Drift> {
    let mut found: BTreeMap<Key, Steps<'_>> = BTreeMap::new();
    for line in announced {
        let side = match line.step {
            Step::Remove => line.new.as_ref().or(line.old.as_ref()),
            Step::Unpack { .. } | Step::Configure => line.new.as_ref(),
        };
        // Only what has no version at all has no architecture; then there is nothing that a removal could remove.
        let Some(side) = side else { continue };
        let steps = found.entry((line.name.clone(), side.architecture.clone())).or_default();
        match line.step {
            Step::Unpack { .. } => steps.unpacked.push(line),
            Step::Remove => steps.removed.push(line),
            Step::Configure => steps.configured.push(line),
        }
    }
    found.retain(|_, steps| !steps.unpacked.is_empty() || !steps.removed.is_empty());

    let mut drift = Drift::default();
    let mut seen: BTreeSet<Key> = BTreeSet::new();
    for change in expected {
        if matches!(change.action, Action::Configure | Action::Hold | Action::Unhold) {
            continue;
        }
        let bare: PackageName = change.name.name().parse().unwrap_or_else(|_| change.name.clone());
        let key = (bare, change.architecture.clone());
        let steps = found.get(&key);
        let difference = Difference {
            name: key.0.clone(),
            architecture: key.1.clone(),
            planned: Some(describe(change)),
            announced: steps.map(Steps::describe),
        };
        match steps {
            None => drift.missing.push(difference),
            Some(steps) if !steps.is(change) => drift.different.push(difference),
            Some(_) => {}
        }
        seen.insert(key);
    }
    for (key, steps) in found {
        if !seen.contains(&key) {
            let announced = Some(steps.describe());
            drift.too_much.push(Difference { name: key.0, architecture: key.1, planned: None, announced });
        }
    }
    if drift.is_empty() { Ok(()) } else { Err(drift) }
}

/// A path that cannot stand in a command line that `/bin/sh` reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be given to apt as a hook: only an absolute path of the characters A-Z a-z 0-9 . _ - / can, and no `..`"
)]
pub struct UnsafePath(pub PathBuf);

/// The command that apt runs as its hook. Made of nothing that a shell or apt's configuration reads in another way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookCommand {
    program: String,
    line: String,
}

impl HookCommand {
    /// The command `PROGRAM [--root ROOT] hook JOB`.
    ///
    /// # Errors
    /// When one of the paths is not absolute or has other characters than `A-Z a-z 0-9 . _ - /`.
    pub fn new(program: &Path, root: &Path, job: JobId) -> Result<Self, UnsafePath> {
        let program = plain(program)?;
        let line = match plain(root)? {
            "/" => format!("{program} hook {job}"),
            root => format!("{program} --root {root} hook {job}"),
        };
        Ok(Self { program: program.to_owned(), line })
    }

    /// The program's path.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The whole command line.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.line
    }
}

fn plain(path: &Path) -> Result<&str, UnsafePath> {
    path.to_str()
        .filter(|text| text.starts_with('/') && !text.contains("..") && text.len() < 1024)
        .filter(|text| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)))
        .ok_or_else(|| UnsafePath(path.to_owned()))
}

#[cfg(test)]
#[path = "hook_tests.rs"]
mod tests;
