//! dpkg's database of installed packages, `/var/lib/dpkg/status`, read directly.
//!
//! The format is documented and stable (`deb-control(5)`, `dpkg-query(1)`), and reading it costs less than starting a
//! process. All text that is kept lies in one allocation; what repeats (architectures, sections, maintainers) is stored
//! once. dpkg writes changes to numbered files in `/var/lib/dpkg/updates/` first and merges them later: those that a
//! killed run left behind are applied here as dpkg would apply them at its next start.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
    time::SystemTime,
};

use patch_types::{
    Architecture, PackageName, PackageVersion,
    api::{Conffile, Package, PackageStatus, Relations},
};

use super::{deb822, relations};
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
        let mut builder = Builder {
            store: String::with_capacity(text.len() / 2),
            entries: Vec::with_capacity(text.len() / 1200),
            known: HashMap::new(),
            skipped: 0,
            everything,
        };
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

/// A package in a [`Database`].
#[derive(Debug, Clone, Copy)]
pub struct Installed<'a> {
    database: &'a Database,
    entry: &'a Entry,
}

macro_rules! texts {
    ($($(#[$doc:meta])+ $name:ident = $which:ident;)+) => {
        impl<'a> Installed<'a> {
            $($(#[$doc])+ #[must_use] pub fn $name(self) -> &'a str { self.database.text(self.entry, Text::$which) })+
        }
    };
}

texts! {
    /// Its name, without architecture.
    name = Name;
    /// Its architecture.
    architecture = Architecture;
    /// Its version, or that of the configuration that remains; empty if dpkg recorded none.
    version_text = Version;
    /// Its section.
    section = Section;
    /// Its priority.
    priority = Priority;
    /// The first line of its description.
    synopsis = Synopsis;
    /// Who maintains it.
    maintainer = Maintainer;
    /// Its home page; empty if it names none.
    homepage = Homepage;
    /// `Depends`, as it stands.
    depends = Depends;
    /// `Pre-Depends`, as it stands.
    pre_depends = PreDepends;
    /// `Recommends`, as it stands.
    recommends = Recommends;
    /// `Provides`, as it stands.
    provides = Provides;
    /// `Conflicts`, as it stands.
    conflicts = Conflicts;
    /// `Breaks`, as it stands.
    breaks = Breaks;
}

impl<'a> Installed<'a> {
    /// Its name, with its architecture if that is neither the native one nor `all`.
    #[must_use]
    pub fn package_name(self) -> Option<PackageName> {
        let foreign = self.architecture() != self.database.native && self.architecture() != "all";
        if foreign && !self.architecture().is_empty() {
            format!("{}:{}", self.name(), self.architecture()).parse().ok()
        } else {
            self.name().parse().ok()
        }
    }

    /// Its version as a value; none if dpkg recorded none or a malformed one.
    #[must_use]
    pub fn version(self) -> Option<PackageVersion> {
        self.version_text().parse().ok()
    }

    /// The source package; its own name if that is the same.
    #[must_use]
    pub fn source(self) -> &'a str {
        let field = self.database.text(self.entry, Text::Source);
        match field.split_once(' ') {
            _ if field.is_empty() => self.name(),
            Some((source, _version)) => source,
            None => field,
        }
    }

    /// The rest of its description: paragraphs separated by blank lines.
    #[must_use]
    pub fn long_description(self) -> String {
        unfold(self.database.text(self.entry, Text::LongDescription))
    }

    /// What the administrator wants.
    #[must_use]
    pub fn want(self) -> Want {
        self.entry.want
    }

    /// Its state.
    #[must_use]
    pub fn status(self) -> PackageStatus {
        self.entry.status
    }

    /// Whether its files are there, be it in a broken state.
    #[must_use]
    pub fn is_present(self) -> bool {
        !matches!(self.entry.status, PackageStatus::ConfigFiles | PackageStatus::NotInstalled)
    }

    /// Whether dpkg demands that it be installed again before anything else.
    #[must_use]
    pub fn reinstall_required(self) -> bool {
        self.entry.reinstall_required
    }

    /// Whether it is held.
    #[must_use]
    pub fn is_held(self) -> bool {
        self.entry.want == Want::Hold
    }

    /// Whether it is `Essential`.
    #[must_use]
    pub fn essential(self) -> bool {
        self.entry.essential
    }

    /// Whether it is `Protected`, or `Important` as older archives say.
    #[must_use]
    pub fn protected(self) -> bool {
        self.entry.protected
    }

    /// Whether it can be installed for several architectures side by side (`Multi-Arch: same`); dpkg's files about it
    /// then carry the architecture.
    #[must_use]
    pub fn multi_arch_same(self) -> bool {
        self.entry.multi_arch_same
    }

    /// Space that it uses on disk in bytes, as it declares.
    #[must_use]
    pub fn size(self) -> u64 {
        self.entry.installed_kib.saturating_mul(1024)
    }

    /// What it says of others.
    #[must_use]
    pub fn relations(self) -> Relations {
        let of = |which| relations::split(self.database.text(self.entry, which));
        Relations {
            pre_depends: of(Text::PreDepends),
            depends: of(Text::Depends),
            recommends: of(Text::Recommends),
            suggests: of(Text::Suggests),
            provides: of(Text::Provides),
            conflicts: of(Text::Conflicts),
            breaks: of(Text::Breaks),
            replaces: of(Text::Replaces),
        }
    }

    /// Its configuration files, as dpkg recorded them.
    #[must_use]
    pub fn conffiles(self) -> Vec<Conffile> {
        conffiles(self.database.text(self.entry, Text::Conffiles))
    }

    /// What is the matter with it, if something is.
    #[must_use]
    pub fn problem(self) -> Option<&'static str> {
        if self.entry.reinstall_required {
            return Some("its installation was interrupted badly: install it again, or remove it");
        }
        match self.entry.status {
            PackageStatus::HalfInstalled => Some("its installation was begun and not ended: install it again, or remove it"),
            PackageStatus::Unpacked => Some("it is unpacked and not configured: run dpkg --configure -a"),
            PackageStatus::HalfConfigured => Some("its configuration was begun and not ended: run dpkg --configure -a"),
            PackageStatus::TriggersAwaited => Some("it waits for another package's trigger: run dpkg --configure -a"),
            PackageStatus::TriggersPending => Some("its trigger is due: run dpkg --triggers-only -a"),
            _ if self.architecture().is_empty() => Some("it has no architecture: install it again"),
            _ => None,
        }
    }

    /// The package as the API's list has it; none if dpkg recorded no version.
    #[must_use]
    pub fn to_api(self, auto_installed: bool, latest_version: Option<PackageVersion>) -> Option<Package> {
        Some(Package {
            name: self.name().parse().ok()?,
            version: self.version()?,
            architecture: self.architecture().parse::<Architecture>().ok()?,
            status: self.status(),
            upgradable: latest_version.is_some(),
            latest_version,
            description: self.synopsis().to_owned(),
            cve_ids: Vec::new(),
            held: self.is_held(),
            auto_installed,
            size: self.size(),
            section: self.section().to_owned(),
            essential: self.essential(),
        })
    }
}

struct Builder {
    store: String,
    entries: Vec<Entry>,
    known: HashMap<Vec<u8>, Span>,
    skipped: usize,
    everything: bool,
}

impl Builder {
    fn keep(&mut self, value: &[u8], repeats: bool) -> Span {
        if repeats && let Some(span) = self.known.get(value) {
            return *span;
        }
        let start = self.store.len();
        match std::str::from_utf8(value) {
            Ok(text) => self.store.push_str(text),
            Err(_) => self.store.push_str(&String::from_utf8_lossy(value)),
        }
        // Beyond 4 GiB nothing more is kept; no status file is nearly as large.
        let span = match (u32::try_from(start), u32::try_from(self.store.len() - start)) {
            (Ok(start), Ok(len)) => Span { start, len },
            _ => Span::default(),
        };
        if repeats {
            self.known.insert(value.to_vec(), span);
        }
        span
    }

    fn add(&mut self, stanza: deb822::Stanza<'_>) {
        if let Some(entry) = self.entry(stanza) {
            self.entries.push(entry);
        }
    }

    /// A stanza of an update replaces the one of the same package; when it can exist only once, of whatever
    /// architecture.
    fn replace(&mut self, stanza: deb822::Stanza<'_>) {
        let (Some(name), architecture) = (stanza.get("Package"), stanza.get("Architecture").unwrap_or_default())
        else {
            self.skipped += 1;
            return;
        };
        let same = stanza.get("Multi-Arch") == Some(b"same");
        let store = std::mem::take(&mut self.store);
        let text = |e: &Entry, which: Text| {
            let span = e.texts[which as usize];
            store.as_bytes().get(span.start as usize..span.start as usize + span.len as usize).unwrap_or_default()
        };
        self.entries.retain(|e| {
            text(e, Text::Name) != name
                || (text(e, Text::Architecture) != architecture && (same || e.multi_arch_same))
        });
        self.store = store;
        self.add(stanza);
    }

    fn entry(&mut self, stanza: deb822::Stanza<'_>) -> Option<Entry> {
        let mut entry = Entry {
            texts: [Span::default(); TEXTS],
            installed_kib: 0,
            want: Want::Unknown,
            status: PackageStatus::NotInstalled,
            reinstall_required: false,
            essential: false,
            protected: false,
            multi_arch_same: false,
        };
        let mut config_version: &[u8] = b"";
        for (field, value) in stanza.fields() {
            match field {
                b"Status" => status(value, &mut entry),
                b"Description" => {
                    let end = memchr::memchr(b'\n', value).unwrap_or(value.len());
                    entry.texts[Text::Synopsis as usize] = self.keep(&value[..end], false);
                    if self.everything {
                        entry.texts[Text::LongDescription as usize] = self.keep(&value[end..], false);
                    }
                }
                b"Installed-Size" => entry.installed_kib = deb822::number(value).unwrap_or(0),
                b"Essential" => entry.essential = value == b"yes",
                b"Protected" | b"Important" => entry.protected |= value == b"yes",
                b"Multi-Arch" => entry.multi_arch_same = value == b"same",
                b"Config-Version" => config_version = value,
                _ => {
                    if let Some(which) = Text::of_field(field)
                        && (self.everything || which.in_list())
                    {
                        entry.texts[which as usize] = self.keep(value, which.repeats());
                    }
                }
            }
        }
        let name = entry.texts[Text::Name as usize];
        let name = self.store.get(name.start as usize..name.start as usize + name.len as usize).unwrap_or_default();
        if name.contains(':') || name.parse::<PackageName>().is_err() {
            self.skipped += 1;
            return None;
        }
        if entry.status == PackageStatus::NotInstalled {
            // Only a remembered wish: there is nothing of the package.
            return None;
        }
        if entry.texts[Text::Version as usize].len == 0 {
            entry.texts[Text::Version as usize] = self.keep(config_version, false);
        }
        Some(entry)
    }

    fn finish(self, declared: Option<&str>, pending_updates: usize) -> Database {
        let Self { mut store, mut entries, known: _, skipped, .. } = self;
        store.shrink_to_fit();
        entries.shrink_to_fit();
        let mut database =
            Database { store, entries: Vec::new(), native: String::new(), stamp: None, skipped, pending_updates };
        entries.sort_by(|a, b| {
            let key = |e| (database.text(e, Text::Name), database.text(e, Text::Architecture));
            key(a).cmp(&key(b))
        });
        database.entries = entries;
        database.native = native(&database, declared);
        database
    }
}

/// dpkg is a native package. Without it (a root that is being made) the declared architecture or the commonest one.
fn native(database: &Database, declared: Option<&str>) -> String {
    if let Some(dpkg) = database.named("dpkg").find(|p| p.is_present() && p.architecture() != "all") {
        return dpkg.architecture().to_owned();
    }
    if let Some(declared) = declared.filter(|d| !d.trim().is_empty()) {
        return declared.trim().to_owned();
    }
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for package in database.iter().filter(|p| !matches!(p.architecture(), "all" | "")) {
        match counts.iter_mut().find(|(a, _)| *a == package.architecture()) {
            Some((_, n)) => *n += 1,
            None => counts.push((package.architecture(), 1)),
        }
    }
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(a, _)| a.to_owned()).unwrap_or_default()
}

fn status(value: &[u8], entry: &mut Entry) {
    let mut words = value.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
    entry.want = match words.next() {
        Some(b"install") => Want::Install,
        Some(b"hold") => Want::Hold,
        Some(b"deinstall") => Want::Deinstall,
        Some(b"purge") => Want::Purge,
        _ => Want::Unknown,
    };
    entry.reinstall_required = matches!(words.next(), Some(b"reinstreq" | b"hold-reinstreq"));
    entry.status = match words.next() {
        Some(b"not-installed") | None => PackageStatus::NotInstalled,
        Some(b"config-files") => PackageStatus::ConfigFiles,
        Some(b"half-installed") => PackageStatus::HalfInstalled,
        Some(b"unpacked") => PackageStatus::Unpacked,
        // `postinst-failed` is what dpkg called it long ago and still accepts.
        Some(b"half-configured" | b"postinst-failed") => PackageStatus::HalfConfigured,
        Some(b"triggers-awaited") => PackageStatus::TriggersAwaited,
        Some(b"triggers-pending") => PackageStatus::TriggersPending,
        Some(b"installed") => PackageStatus::Installed,
        // A word that no dpkg writes is shown as something to look at, not hidden.
        Some(_) => PackageStatus::HalfInstalled,
    };
}

/// Lines ` PATH MD5 [obsolete] [remove-on-upgrade]`. A path may hold spaces, so the line is read from its end.
fn conffiles(field: &str) -> Vec<Conffile> {
    field
        .lines()
        .filter_map(|line| {
            let mut rest = line.trim();
            let mut obsolete = false;
            while let Some((before, flag @ ("obsolete" | "remove-on-upgrade"))) = rest.rsplit_once(' ') {
                obsolete |= flag == "obsolete";
                rest = before;
            }
            let (path, md5) = rest.rsplit_once(' ')?;
            path.starts_with('/').then(|| Conffile { path: path.to_owned(), md5: md5.to_owned(), obsolete })
        })
        .collect()
}

/// A description's continuation lines without their leading space; ` .` stands for a blank line.
pub(crate) fn unfold(lines: &str) -> String {
    let mut text = String::with_capacity(lines.len());
    for line in lines.lines().filter(|l| !l.is_empty()) {
        if !text.is_empty() {
            text.push('\n');
        }
        match line.strip_prefix([' ', '\t']).unwrap_or(line) {
            "." => {}
            line => text.push_str(line.trim_end()),
        }
    }
    text
}

/// The unmerged changes in the order in which dpkg made them. Other names (`tmp.i`) are dpkg's scratch files.
fn read_updates(root: &Path) -> Result<Vec<Vec<u8>>, ReadError> {
    let directory = root.join(UPDATES);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ReadError::new(&directory, e)),
    };
    let mut names: Vec<_> = entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        .collect();
    names.sort();
    let mut updates = Vec::new();
    for path in names.into_iter().map(|n| directory.join(n)) {
        match fs::read(&path) {
            Ok(update) => updates.push(update),
            // A running dpkg has merged it meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(ReadError::new(&path, e)),
        }
    }
    Ok(updates)
}
