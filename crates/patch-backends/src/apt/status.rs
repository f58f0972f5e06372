//! dpkg's database of installed packages, `/var/lib/dpkg/status`, read directly.
//!
//! The format is documented and stable (`deb-control(5)`, `dpkg-query(1)`), and reading it costs less than starting a
//! process. All text that is kept lies in one allocation; what repeats (architectures, sections, maintainers) is stored
//! once. dpkg writes changes to numbered files in `/var/lib/dpkg/updates/` first and merges them later: those that a
//! killed run left behind are applied here as dpkg would apply them at its next start.

mod build;
mod package;

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
    time::SystemTime,
};

use patch_types::{PackageName, api::PackageStatus};

use self::build::{Builder, read_updates};
pub use self::package::Installed;
pub(crate) use self::package::unfold;
use super::deb822;
use crate::{ReadError, below};

/// dpkg's status file, below the root.
pub const STATUS: &str = "var/lib/dpkg/status";
/// The directory of changes that are not merged yet, below the root.
pub const UPDATES: &str = "var/lib/dpkg/updates";

/// What the administrator wants of a package: the first word of `Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// Nobody said.
    Unknown,
    /// To be there.
    Install,
    /// To be there at exactly this version.
    Hold,
    /// To be gone; configuration may stay.
    Deinstall,
    /// To be gone entirely.
    Purge,
}

/// What tells whether a file has changed since it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// When its content last changed.
    pub modified: SystemTime,
    /// Its size in bytes.
    pub size: u64,
    /// Its inode, which differs after a replacement by rename.
    pub inode: u64,
}

impl Stamp {
    /// The stamp of a file or directory; none if there is none or it cannot be seen.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().and_then(|m| Self::from_metadata(&m))
    }

    fn from_metadata(metadata: &fs::Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        Some(Self { modified: metadata.modified().ok()?, size: metadata.len(), inode: metadata.ino() })
    }
}

/// The stamps of all that a [`Database`] was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatabaseStamp {
    /// Of the status file.
    pub status: Option<Stamp>,
    /// Of the directory of unmerged changes.
    pub updates: Option<Stamp>,
}

impl DatabaseStamp {
    /// The stamps of this moment. Two system calls.
    #[must_use]
    pub fn now(root: &Path) -> Self {
        Self { status: Stamp::of(&root.join(STATUS)), updates: Stamp::of(&root.join(UPDATES)) }
    }
}

/// A package that is not in a consistent state, as `dpkg --audit` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which, with its architecture if it is not the native one.
    pub package: PackageName,
    /// Its version; empty if dpkg recorded none.
    pub version: String,
    /// Its state.
    pub status: PackageStatus,
    /// Whether dpkg demands that it be installed again.
    pub reinstall_required: bool,
    /// What is the matter and what cures it, in one sentence.
    pub problem: &'static str,
}

/// Where a text lies in the database's store.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: u32,
    len: u32,
}

/// Texts of a package, as indices into [`Entry::texts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Name,
    Version,
    Architecture,
    Section,
    Priority,
    Source,
    Synopsis,
    Depends,
    PreDepends,
    Provides,
    // What follows is left out of the compact form.
    Recommends,
    Suggests,
    Conflicts,
    Breaks,
    Replaces,
    Maintainer,
    Homepage,
    LongDescription,
    Conffiles,
}

const TEXTS: usize = Text::Conffiles as usize + 1;

impl Text {
    /// The text that a field holds. `Description` and `Status` are taken apart elsewhere.
    fn of_field(field: &[u8]) -> Option<Self> {
        Some(match field {
            b"Package" => Self::Name,
            b"Version" => Self::Version,
            b"Architecture" => Self::Architecture,
            b"Section" => Self::Section,
            b"Priority" => Self::Priority,
            b"Source" => Self::Source,
            b"Depends" => Self::Depends,
            b"Pre-Depends" => Self::PreDepends,
            b"Provides" => Self::Provides,
            b"Recommends" => Self::Recommends,
            b"Suggests" => Self::Suggests,
            b"Conflicts" => Self::Conflicts,
            b"Breaks" => Self::Breaks,
            b"Replaces" => Self::Replaces,
            b"Maintainer" => Self::Maintainer,
            b"Homepage" => Self::Homepage,
            b"Conffiles" => Self::Conffiles,
            _ => return None,
        })
    }

    fn repeats(self) -> bool {
        matches!(self, Self::Architecture | Self::Section | Self::Priority | Self::Maintainer)
    }

    fn in_list(self) -> bool {
        (self as usize) < Self::Recommends as usize
    }
}

#[derive(Debug, Clone)]
struct Entry {
    texts: [Span; TEXTS],
    installed_kib: u64,
    want: Want,
    status: PackageStatus,
    reinstall_required: bool,
    essential: bool,
    protected: bool,
    multi_arch_same: bool,
}

/// The packages of one root, by name.
#[derive(Debug, Clone)]
pub struct Database {
    store: String,
    entries: Vec<Entry>,
    native: String,
    stamp: Option<DatabaseStamp>,
    skipped: usize,
    pending_updates: usize,
}

impl Database {
    /// Reads the database of the given root, everything included.
    ///
    /// # Errors
    /// When the status file is missing, or one of the files cannot be read.
    pub fn read(root: &Path) -> Result<Self, ReadError> {
        Self::read_some(root, true)
    }

    /// Reads it in a compact form for a process that keeps it: without long descriptions, conffiles, maintainers, home
    /// pages and the relations other than dependencies and `Provides`. Their accessors answer with nothing.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_for_list(root: &Path) -> Result<Self, ReadError> {
        Self::read_some(root, false)
    }

    fn read_some(root: &Path, everything: bool) -> Result<Self, ReadError> {
        // The stamps come first: a change in between makes them old, never the content.
        let stamp = DatabaseStamp::now(root);
        let path = root.join(STATUS);
        let mut text = Vec::new();
        File::open(&path).and_then(|mut f| f.read_to_end(&mut text)).map_err(|e| ReadError::new(&path, e))?;
        let updates = read_updates(root)?;
        let declared = fs::read_to_string(below(root, "var/lib/dpkg/arch")).unwrap_or_default();
        let mut database = Self::build(&text, &updates, declared.lines().next(), everything);
        database.stamp = Some(stamp);
        Ok(database)
    }

    /// Parses the text of a status file.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        Self::build(text, &[], None, true)
    }

    fn build(text: &[u8], updates: &[Vec<u8>], declared: Option<&str>, everything: bool) -> Self {
        // A stanza is some 1,200 bytes on average; half of that is kept.
        let mut builder = Builder::new(text.len() / 2, text.len() / 1200, everything);
        for stanza in deb822::stanzas(text) {
            builder.add(stanza);
        }
        for update in updates {
            for stanza in deb822::stanzas(update) {
                builder.replace(stanza);
            }
        }
        builder.finish(declared, updates.len())
    }

    /// What to compare with [`DatabaseStamp::now`]; none if it was parsed from a text.
    #[must_use]
    pub fn stamp(&self) -> Option<DatabaseStamp> {
        self.stamp
    }

    /// dpkg's own architecture, such as `amd64`; empty in an empty database.
    #[must_use]
    pub fn native(&self) -> &str {
        &self.native
    }

    /// How many stanzas were left out because they have no acceptable name.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// How many unmerged change files there were: more than none means that dpkg is at work or was interrupted.
    #[must_use]
    pub fn pending_updates(&self) -> usize {
        self.pending_updates
    }

    /// How many packages there are, those of which only configuration remains included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory that it uses, without the allocator's own.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.store.capacity() + self.entries.capacity() * size_of::<Entry>() + size_of::<Self>()
    }

    /// The packages by name, then by architecture.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Installed<'_>> {
        self.entries.iter().map(|entry| Installed { database: self, entry })
    }

    /// The packages of that name, whatever their architecture.
    pub fn named(&self, name: &str) -> impl Iterator<Item = Installed<'_>> {
        let first = self.entries.partition_point(|e| self.text(e, Text::Name) < name);
        self.entries[first..]
            .iter()
            .map(|entry| Installed { database: self, entry })
            .take_while(move |p| p.name() == name)
    }

    /// The package that a name means: with an architecture exactly that one (`all` counts as the native one, as it does
    /// for apt), without one the native one, or else the one there is.
    #[must_use]
    pub fn get(&self, name: &PackageName) -> Option<Installed<'_>> {
        self.find(name.name(), name.architecture())
    }

    /// As [`get`](Self::get), of a name and architecture in parts.
    #[must_use]
    pub fn find(&self, name: &str, architecture: Option<&str>) -> Option<Installed<'_>> {
        let is_native = |p: &Installed<'_>| p.architecture() == self.native || p.architecture() == "all";
        match architecture {
            Some(wanted) => self
                .named(name)
                .find(|p| p.architecture() == wanted || (wanted == self.native && p.architecture() == "all")),
            None => {
                let present = |p: &Installed<'_>| p.status() != PackageStatus::ConfigFiles;
                self.named(name)
                    .find(|p| is_native(p) && present(p))
                    .or_else(|| self.named(name).find(present))
                    .or_else(|| self.named(name).find(is_native))
                    .or_else(|| self.named(name).next())
            }
        }
    }

    /// The packages that are not in a consistent state, as `dpkg --audit` lists them from the status file.
    #[must_use]
    pub fn audit(&self) -> Vec<Finding> {
        self.iter()
            .filter_map(|p| {
                let problem = p.problem()?;
                Some(Finding {
                    package: p.package_name()?,
                    version: p.version_text().to_owned(),
                    status: p.status(),
                    reinstall_required: p.reinstall_required(),
                    problem,
                })
            })
            .collect()
    }

    fn text(&self, entry: &Entry, which: Text) -> &str {
        let span = entry.texts[which as usize];
        let start = span.start as usize;
        self.store.get(start..start + span.len as usize).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
