//! What the archives offer: the `Packages` files that apt keeps in `/var/lib/apt/lists/`.
//!
//! A distribution's index has 60,000 stanzas and 50 MB. Only those of the packages that are asked for are parsed: the
//! files are scanned in pieces, so that memory stays small. apt can keep its indexes compressed
//! (`Acquire::GzipIndexes`, which container images set); such files are not decoded here but named in
//! [`Indexes::skipped`], for a caller that may run `apt-helper cat-file` and hand the text to [`Indexes::add`].

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use memchr::memmem;
use patch_types::{PackageName, PackageVersion, api::Relations, plan::Origin};

use super::{
    Inventory, Simulation,
    deb822::{self, Stanza},
    relations,
    release::Release,
    simulate::Listed,
    status::unfold,
    versions,
};
use crate::ReadError;

/// apt's directory of indexes, below the root.
pub const LISTS: &str = "var/lib/apt/lists";

/// Read at a time. A stanza that is longer than this is passed over.
const PIECE: usize = 1 << 20;

/// A version of a package that an archive offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indexed {
    /// The package, without architecture.
    pub name: PackageName,
    /// The version.
    pub version: PackageVersion,
    /// Its architecture.
    pub architecture: String,
    /// SHA-256 of its archive in lower-case hexadecimal, if the index names it.
    pub sha256: Option<String>,
    /// The archive's size in bytes.
    pub size: u64,
    /// The archive's path below the archive's root.
    pub filename: String,
    /// Space that it will use on disk in bytes, as it declares.
    pub installed_size: u64,
    /// To how many percent of all machines the archive offers it; none if to all.
    pub phased_percentage: Option<u8>,
    /// `Multi-Arch`; empty if it does not say.
    pub multi_arch: String,
    /// Its section.
    pub section: String,
    /// Its priority.
    pub priority: String,
    /// The source package.
    pub source: String,
    /// Its maintainer.
    pub maintainer: String,
    /// Its home page; empty if it names none.
    pub homepage: String,
    /// Whether it is `Essential`.
    pub essential: bool,
    /// The first line of its description.
    pub synopsis: String,
    /// The rest of its description; the archives of Debian and Ubuntu keep that elsewhere (translations).
    pub long_description: String,
    /// What it says of others.
    pub relations: Relations,
    /// Which of [`Indexes::origins`] offers it.
    pub origin: usize,
}

/// An index that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// Where its packages come from.
    pub origin: Origin,
    /// Why, in a sentence.
    pub reason: String,
}

/// What the archives offer of some packages.
#[derive(Debug, Clone, Default)]
pub struct Indexes {
    names: BTreeSet<String>,
    origins: Vec<Origin>,
    by_name: HashMap<String, Vec<Indexed>>,
    skipped: Vec<Skipped>,
    malformed: usize,
}

impl Indexes {
    /// Nothing yet, of the given packages (names without architecture), for [`add`](Self::add).
    #[must_use]
    pub fn of<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Reads what the indexes below `root` say of the given packages (names without architecture). A file that cannot
    /// be used is named in [`skipped`](Self::skipped), and the others are read all the same.
    ///
    /// # Errors
    /// When the directory of indexes exists and cannot be read.
    pub fn read<N: Into<String>>(root: &Path, names: impl IntoIterator<Item = N>) -> Result<Self, ReadError> {
        let mut indexes = Self { names: names.into_iter().map(Into::into).collect(), ..Self::default() };
        if indexes.names.is_empty() {
            return Ok(indexes);
        }
        for list in list_files(root)? {
            if let Some(suffix) = list.compression {
                let reason = format!(
                    "it is compressed ({suffix}); set Acquire::GzipIndexes \"false\" for apt and refresh the indexes"
                );
                indexes.skipped.push(Skipped { path: list.path, origin: list.origin, reason });
                continue;
            }
            let opened = File::open(&list.path);
            if let Err(e) = opened.and_then(|file| indexes.add(list.origin.clone(), file)) {
                // A refresh replaces files under a reader's feet; the next read sees the new ones.
                let reason = format!("it cannot be read: {e}");
                indexes.skipped.push(Skipped { path: list.path, origin: list.origin, reason });
            }
        }
        Ok(indexes)
    }

    /// Reads what the indexes say of all packages that the simulations mention, and of what those that are kept back
    /// depend on, so that the reason can be told.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn for_simulations(inventory: &Inventory, simulations: &[&Simulation]) -> Result<Self, ReadError> {
        let mentioned: BTreeSet<String> =
            simulations.iter().flat_map(|s| s.names()).map(str::to_owned).collect();
        let indexes = Self::read(&inventory.root, mentioned.clone())?;
        let stay = simulations.iter().flat_map(|s| s.kept_back.iter().chain(&s.phased)).map(Listed::name);
        indexes.with_dependencies_of(inventory, mentioned, stay)
    }

    /// Reads what the indexes say of one package and of what it depends on.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn for_package(inventory: &Inventory, name: &PackageName) -> Result<Self, ReadError> {
        let names = BTreeSet::from([name.name().to_owned()]);
        let indexes = Self::read(&inventory.root, names.clone())?;
        indexes.with_dependencies_of(inventory, names, std::iter::once(name.name()))
    }

    fn with_dependencies_of<'a>(
        self,
        inventory: &Inventory,
        mut names: BTreeSet<String>,
        of: impl Iterator<Item = &'a str>,
    ) -> Result<Self, ReadError> {
        let before = names.len();
        for candidate in of.flat_map(|name| self.versions(name)) {
            let needs = candidate.relations.pre_depends.iter().chain(&candidate.relations.depends);
            names.extend(needs.flat_map(|g| relations::alternatives(g)).map(|a| a.name.to_owned()));
        }
        // The second pass costs as much as the first one; mostly nothing is kept back.
        if names.len() == before { Ok(self) } else { Self::read(&inventory.root, names) }
    }

    /// Adds what the text of an index says of the packages that were asked for.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn add(&mut self, origin: Origin, reader: impl Read) -> io::Result<()> {
        let index = self.origins.len();
        self.origins.push(origin);
        let Self { names, by_name, malformed, .. } = self;
        scan(reader, PIECE, |text| {
            find(
                text,
                |name| names.contains(name),
                |stanza, name| match indexed(stanza, index) {
                    Some(version) => by_name.entry(name.to_owned()).or_default().push(version),
                    None => *malformed += 1,
                },
            );
        })
    }

    /// The indexes that could not be used.
    #[must_use]
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// How many stanzas of packages that were asked for were malformed and left out.
    #[must_use]
    pub fn malformed(&self) -> usize {
        self.malformed
    }

    /// The archives that were read, one an index file.
    #[must_use]
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Where a version comes from.
    #[must_use]
    pub fn origin(&self, version: &Indexed) -> Option<&Origin> {
        self.origins.get(version.origin)
    }

    /// All that is offered of a package, of whatever architecture, in the order of the files.
    #[must_use]
    pub fn versions(&self, name: &str) -> &[Indexed] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// The offers of exactly this version and architecture (packages of architecture `all` stand for any).
    pub fn offers<'a>(
        &'a self,
        name: &str,
        architecture: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a Indexed> {
        self.versions(name)
            .iter()
            .filter(move |v| v.version.as_str() == version && fits(&v.architecture, architecture))
    }

    /// The newest version that is offered for an architecture.
    #[must_use]
    pub fn newest(&self, name: &str, architecture: &str) -> Option<&Indexed> {
        self.versions(name)
            .iter()
            .filter(|v| fits(&v.architecture, architecture))
            .max_by(|a, b| versions::compare(a.version.as_str(), b.version.as_str()))
    }

    /// Whether going from `installed` (or nothing) to `new` brings a security fix: an archive of security fixes offers
    /// `new` or a version between the two.
    #[must_use]
    pub fn brings_security(
        &self,
        name: &str,
        architecture: &str,
        installed: Option<&str>,
        new: &str,
    ) -> bool {
        self.versions(name).iter().any(|v| {
            fits(&v.architecture, architecture)
                && self.origin(v).is_some_and(|o| o.security)
                && versions::compare(v.version.as_str(), new).is_le()
                && match installed {
                    Some(installed) => versions::compare(v.version.as_str(), installed).is_gt(),
                    None => v.version.as_str() == new,
                }
        })
    }
}

/// A package may become `all` or cease to be it between two versions.
pub(crate) fn fits(offered: &str, wanted: &str) -> bool {
    offered == wanted || offered == "all" || wanted == "all" || wanted.is_empty()
}

/// An index file and where its packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListFile {
    /// The file.
    pub path: PathBuf,
    /// The archive and component.
    pub origin: Origin,
    /// The suffix of its compression, such as `lz4`; none for plain text.
    pub compression: Option<&'static str>,
    /// The beginning of the names of the archive's files; empty if it has no `Release`.
    pub archive: String,
    /// The `Date` of that, as it stands.
    pub date: String,
}

/// The index files below a root, by name. A directory that does not exist holds none.
///
/// # Errors
/// When the directory exists and cannot be read.
pub fn list_files(root: &Path) -> Result<Vec<ListFile>, ReadError> {
    let directory = root.join(LISTS);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ReadError::new(&directory, e)),
    };
    let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let releases: Vec<(&str, Release)> = names
        .iter()
        .filter_map(|name| {
            let prefix = name.strip_suffix("_InRelease").or_else(|| name.strip_suffix("_Release"))?;
            Some((prefix, Release::parse(&fs::read(directory.join(name)).ok()?)))
        })
        .collect();
    Ok(names
        .iter()
        .filter_map(|name| {
            let (plain, compression) = uncompressed(name);
            let base = plain.strip_suffix("_Packages")?;
            // One archive's name can begin with another's (`…_bookworm` and `…_bookworm_updates`): the longest counts.
            let release = releases
                .iter()
                .filter(|(prefix, _)| {
                    base.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
                })
                .max_by_key(|(prefix, _)| prefix.len());
            let site = site(name);
            let origin = match release {
                Some((prefix, release)) => release.component(component(&base[prefix.len()..]), &site),
                None => Release::default().component("", &site),
            };
            let (archive, date) = release
                .map(|(prefix, release)| ((*prefix).to_owned(), release.date.clone()))
                .unwrap_or_default();
            Some(ListFile { path: directory.join(name), origin, compression, archive, date })
        })
        .collect())
}

fn uncompressed(name: &str) -> (&str, Option<&'static str>) {
    for suffix in ["lz4", "gz", "xz", "zst", "bz2", "lzma"] {
        if let Some(plain) = name.strip_suffix(suffix).and_then(|n| n.strip_suffix('.')) {
            return (plain, Some(suffix));
        }
    }
    (name, None)
}

/// `_main_binary-amd64` is the component `main`.
fn component(rest: &str) -> &str {
    let rest = rest.strip_prefix('_').unwrap_or(rest);
    rest.rsplit_once("_binary-").map_or("", |(component, _)| component)
}

/// apt names its files after the address: host and path, with `_` for `/`. A local archive has no host.
fn site(name: &str) -> String {
    let host = name.split('_').next().unwrap_or_default();
    host.split(':').next().unwrap_or_default().to_owned()
}

/// Hands a reader's text on in pieces that end between two stanzas.
fn scan(mut reader: impl Read, piece: usize, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(2 * piece);
    loop {
        let more = reader.by_ref().take(piece as u64).read_to_end(&mut buffer)?;
        if more == 0 {
            take(&buffer);
            return Ok(());
        }
        match memmem::rfind(&buffer, b"\n\n") {
            Some(end) => {
                take(&buffer[..end]);
                buffer.drain(..end);
            }
            None if buffer.len() > 4 * piece => buffer.clear(),
            None => {}
        }
    }
}

/// Finds the stanzas of wanted packages by their `Package` field, wherever it stands in them. The others are passed
/// over without a look at their other lines, which is what makes the scan fast.
fn find(text: &[u8], wanted: impl Fn(&str) -> bool, mut found: impl FnMut(Stanza<'_>, &str)) {
    const FIELD: &[u8] = b"Package:";
    let first = text.starts_with(FIELD).then_some(0);
    for at in first.into_iter().chain(memmem::find_iter(text, b"\nPackage:").map(|at| at + 1)) {
        let value = &text[at + FIELD.len()..];
        let end = memchr::memchr(b'\n', value).unwrap_or(value.len());
        if let Ok(name) = std::str::from_utf8(value[..end].trim_ascii())
            && wanted(name)
        {
            let start = memmem::rfind(&text[..at], b"\n\n").map_or(0, |b| b + 2);
            let end = memmem::find(&text[at..], b"\n\n").map_or(text.len(), |e| at + e);
            found(Stanza::new(text[start..end].trim_ascii_start()), name);
        }
    }
}

fn indexed(stanza: Stanza<'_>, origin: usize) -> Option<Indexed> {
    let text = |field| stanza.text(field).unwrap_or_default().into_owned();
    let number = |field| stanza.get(field).and_then(deb822::number).unwrap_or(0);
    let of = |field| relations::split(&stanza.text(field).unwrap_or_default());
    let name: PackageName = text("Package").parse().ok()?;
    let description = text("Description");
    let (synopsis, long) = description.split_once('\n').unwrap_or((&description, ""));
    let source = text("Source");
    Some(Indexed {
        version: text("Version").parse().ok()?,
        architecture: stanza.text("Architecture").filter(|a| !a.is_empty())?.into_owned(),
        sha256: stanza.text("SHA256").map(|h| h.to_ascii_lowercase()).filter(|h| is_sha256(h)),
        size: number("Size"),
        filename: text("Filename"),
        installed_size: number("Installed-Size").saturating_mul(1024),
        phased_percentage: stanza
            .get("Phased-Update-Percentage")
            .and_then(deb822::number)
            .and_then(|p| u8::try_from(p).ok())
            .filter(|p| *p < 100),
        multi_arch: text("Multi-Arch"),
        section: text("Section"),
        priority: text("Priority"),
        source: source.split(' ').next().filter(|s| !s.is_empty()).unwrap_or(name.name()).to_owned(),
        maintainer: text("Maintainer"),
        homepage: text("Homepage"),
        essential: stanza.get("Essential") == Some(b"yes"),
        synopsis: synopsis.to_owned(),
        long_description: unfold(long),
        relations: Relations {
            pre_depends: of("Pre-Depends"),
            depends: of("Depends"),
            recommends: of("Recommends"),
            suggests: of("Suggests"),
            provides: of("Provides"),
            conflicts: of("Conflicts"),
            breaks: of("Breaks"),
            replaces: of("Replaces"),
        },
        origin,
        name,
    })
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
#[path = "indexes_tests.rs"]
mod tests;
