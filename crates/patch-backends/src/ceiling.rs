//! `ceiling.yaml`: what root's file says about the most that this host lets anybody do. What follows from it for an
//! operation is decided by the root side; whoever checks the file reads it here as well, so that both take the same.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use patch_types::{Operation, RollbackMode, plan::Origin};
use serde::{Deserialize, Deserializer};
use serde_saphyr::options::MergeKeyPolicy;

/// The file, below the root.
pub const FILE: &str = "etc/linux_patch_api/ceiling.yaml";

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Installing.
    Install,
    /// Updating one package.
    Update,
    /// Removing.
    Remove,
    /// Holding, and no longer holding.
    Hold,
    /// Applying patches.
    ApplyPatches,
    /// Fetching the indexes.
    Refresh,
    /// Going back on request.
    Rollback,
    /// Going back to a snapshot of the file systems on request.
    SnapshotRollback,
    /// Rebooting in the window.
    Reboot,
    /// Rebooting at once.
    ForcedReboot,
}

impl Kind {
    /// That of an operation.
    #[must_use]
    pub fn of(operation: &Operation) -> Self {
        match operation {
            Operation::Install(_) => Self::Install,
            Operation::Update(_) => Self::Update,
            Operation::Remove(_) => Self::Remove,
            Operation::Hold(_) => Self::Hold,
            Operation::ApplyPatches(_) => Self::ApplyPatches,
            Operation::Refresh => Self::Refresh,
            Operation::Rollback(rollback) => match rollback.mode {
                RollbackMode::Packages => Self::Rollback,
                RollbackMode::Snapshot => Self::SnapshotRollback,
            },
            Operation::Reboot(reboot) if reboot.force => Self::ForcedReboot,
            Operation::Reboot(_) => Self::Reboot,
        }
    }
}

/// An archive that new versions may come from: each field that is given must be equal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Allowed(Fields);

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    origin: Option<String>,
    label: Option<String>,
    suite: Option<String>,
    codename: Option<String>,
    component: Option<String>,
    site: Option<String>,
}

impl Fields {
    fn pairs<'a>(&'a self, origin: &'a Origin) -> [(&'a Option<String>, &'a str); 6] {
        [
            (&self.origin, &origin.origin),
            (&self.label, &origin.label),
            (&self.suite, &origin.suite),
            (&self.codename, &origin.codename),
            (&self.component, &origin.component),
            (&self.site, &origin.site),
        ]
    }
}

impl TryFrom<Fields> for Allowed {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        if fields == Fields::default() {
            return Err("an origin needs at least one of origin, label, suite, codename, component, site");
        }
        Ok(Self(fields))
    }
}

impl Allowed {
    /// Whether an archive is one of these.
    #[must_use]
    pub fn admits(&self, origin: &Origin) -> bool {
        self.0.pairs(origin).into_iter().all(|(wanted, is)| wanted.as_ref().is_none_or(|wanted| wanted == is))
    }
}

/// A pattern for names of packages: `*` stands for any characters, `?` for one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(String);

impl TryFrom<String> for Pattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let known = |b: u8| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'*' | b'?')
        };
        if text.is_empty() || text.len() > 256 || !text.bytes().all(known) {
            return Err(
                "a pattern has lower-case letters, digits, '+', '-', '.', '*' and '?', and at least one",
            );
        }
        Ok(Self(text))
    }
}

impl Pattern {
    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a name fits.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Where to go on if what follows the last star does not fit.
        let mut retry: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    retry = Some((p + 1, n));
                    p += 1;
                }
                Some(b) if *b == b'?' || name.get(n) == Some(b) => {
                    p += 1;
                    n += 1;
                }
                _ => match retry {
                    Some((after, from)) => {
                        (p, n) = (after, from + 1);
                        retry = Some((after, n));
                    }
                    None => return false,
                },
            }
        }
        pattern.get(p..).unwrap_or_default().iter().all(|b| *b == b'*')
    }
}

/// An absolute path that does not climb.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AbsolutePath(String);

impl AbsolutePath {
    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AbsolutePath {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if !text.starts_with('/') || text.contains('\0') || text.split('/').any(|part| part == "..") {
            return Err("a path must be absolute and without `..`");
        }
        Ok(Self(text))
    }
}

/// A key without a value is refused: as an [`Option`] it would be taken for no limit.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Vec::deserialize(deserializer).map(Some)
}

/// What the file says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The operations that are allowed; without them all are.
    #[serde(deserialize_with = "given")]
    pub operations: Option<Vec<Kind>>,
    /// Where new versions may come from; without them anywhere that apt takes.
    #[serde(deserialize_with = "given")]
    pub origins: Option<Vec<Allowed>>,
    /// What is neither removed nor made older.
    pub protected: Vec<Pattern>,
    /// The freeze file, unless it is the usual one.
    pub freeze_file: Option<AbsolutePath>,
}

/// A pipe in place of a file must not hold anybody up.
///
/// # Errors
/// Those of opening.
pub fn open(path: &Path, flags: rustix::fs::OFlags) -> io::Result<File> {
    let flags = flags | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    File::options().read(true).custom_flags(flags).open(path)
}

/// What the file below a root says; without one there is no limit.
///
/// # Errors
/// Why it cannot be relied upon.
pub fn load(root: &Path) -> Result<Limits, String> {
    match read(&root.join(FILE)) {
        Ok(None) => Ok(Limits::default()),
        Ok(Some(text)) => parse(&text),
        Err(why) => Err(format!("/{FILE}: {why}")),
    }
}

/// The file's text; `None` if there is none. Otherwise why it cannot be relied upon.
fn read(path: &Path) -> Result<Option<String>, String> {
    let file = match open(path, rustix::fs::OFlags::empty()) {
        Ok(file) => file,
        // A link that leads nowhere was meant to be a limit.
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            return Ok(None);
        }
        Err(error) => return Err(format!("it cannot be read: {error}")),
    };
    let metadata = file.metadata().map_err(|error| format!("it cannot be looked at: {error}"))?;
    if !metadata.is_file() {
        return Err("it is not a file".to_owned());
    }
    if ![0, rustix::process::geteuid().as_raw()].contains(&metadata.uid()) || metadata.mode() & 0o022 != 0 {
        return Err(
            "it must belong to root and be writable by nobody else (chown root:root, chmod 644)".to_owned()
        );
    }
    let mut text = String::new();
    match file.take(MAX_FILE + 1).read_to_string(&mut text) {
        Ok(n) if n as u64 > MAX_FILE => Err(format!("it is larger than {MAX_FILE} bytes")),
        Ok(_) => Ok(Some(text)),
        Err(error) => Err(format!("it cannot be read: {error}")),
    }
}

/// What the file's text says.
///
/// # Errors
/// With the place, and what is wrong.
pub fn parse(text: &str) -> Result<Limits, String> {
    let only_comments = text.lines().map(str::trim).all(|l| l.is_empty() || l.starts_with('#') || l == "---");
    if only_comments {
        return Ok(Limits::default());
    }
    let options = serde_saphyr::options! {
        merge_keys: MergeKeyPolicy::Error,
        reject_unsupported_tags: true,
        strict_booleans: true,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error: serde_saphyr::Error| {
        let bare = error.without_snippet();
        let place = bare.location().map_or(String::new(), |at| format!(":{}:{}", at.line(), at.column()));
        let said = bare.to_string();
        let first = said.lines().next().unwrap_or_default();
        format!("/{FILE}{place}: {}", first.split(" at line ").next().unwrap_or(first))
    })
}

#[cfg(test)]
#[path = "ceiling_tests.rs"]
mod tests;
