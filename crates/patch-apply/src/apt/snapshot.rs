//! What is recorded of the host before a change, so that it can be gone back to.
//!
//! Paths are kept as bytes in hexadecimal only where they are not UTF-8; dpkg's lists are not required to be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use md5::{Digest, Md5};
use patch_backends::{
    ReadError,
    apt::{
        Database, Indexes, Installed, Inventory, deb822, info, relations,
        status::{STATUS, UPDATES, Want},
    },
};
use patch_types::{
    Grade, Plan,
    api::PackageStatus,
    rollback::{PackageWayBack, WayBack},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    archives::{brings_archive, file_name, installed, key_of},
    deb,
    files::{Below, from_text, md5_of, open_regular, pump, sync_dir, to_text, write_whole},
};

/// One package of one architecture.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PackageKey {
    /// Its name, without architecture.
    pub name: String,
    /// Its architecture, `all` among them.
    pub architecture: String,
}

impl std::fmt::Display for PackageKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.name, self.architecture)
    }
}

/// What dpkg's database says of a package, as far as going back restores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its version; empty if dpkg recorded none.
    pub version: String,
    /// What is wanted of it: dpkg's word, `install`, `hold`, `deinstall`, `purge`.
    pub want: String,
    /// Its state: dpkg's word, `installed`, `config-files` and so on.
    pub status: String,
    /// Whether apt marked it as automatically installed.
    pub auto: bool,
}

/// An archive of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its file's name in the store.
    pub file: String,
    /// How well it stands for what was installed.
    pub grade: Grade,
    /// Why it is not exact; empty if it is.
    #[serde(default)]
    pub reason: String,
}

/// A configuration file as it was on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conffile {
    /// Its path, absolute, below the root.
    pub path: String,
    /// The hash that dpkg recorded for the version that was installed; absent for `newconffile` and the like.
    pub recorded_md5: Option<String>,
    /// What was there; absent if there was nothing (the administrator deleted it).
    pub content: Option<Content>,
    /// Files beside it that dpkg makes (`.dpkg-dist`, `.dpkg-old`, `.dpkg-new`) and that were there already.
    #[serde(default)]
    pub siblings: Vec<String>,
}

/// A file's bytes and what else it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// MD5 of the bytes in hexadecimal, to be compared with dpkg's.
    pub md5: String,
    /// The name of the copy of its bytes in the snapshot's directory; absent for a symbolic link.
    pub copy: Option<String>,
    /// Where a symbolic link points; absent for a file.
    pub link: Option<String>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Extended attributes, by name, the value in hexadecimal.
    #[serde(default)]
    pub xattrs: BTreeMap<String, String>,
}

/// A package that the change concerns: in the plan, or a neighbour whose files a planned one may take over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affected {
    /// Which.
    pub key: PackageKey,
    /// Whether it is in the plan; otherwise it is a neighbour.
    pub planned: bool,
    /// Its archive; absent if it was not installed, or if there is none.
    pub archive: Option<Kept>,
    /// The paths of dpkg's list of its files, in dpkg's order, as bytes in hexadecimal where they are not UTF-8.
    pub list: Vec<String>,
    /// Those of them that were not on disk.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Its configuration files.
    #[serde(default)]
    pub conffiles: Vec<Conffile>,
    /// The version that the change brings; absent for removals and neighbours.
    pub new_version: Option<String>,
}

/// The host before a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was taken.
    pub taken_at: Timestamp,
    /// Every package of dpkg's database, removed ones with configuration included. What is not in here was not there.
    #[serde(with = "entries")]
    pub packages: BTreeMap<PackageKey, Recorded>,
    /// Those that the change concerns.
    pub affected: Vec<Affected>,
    /// Units that were active, so that they can be started again.
    #[serde(default)]
    pub active_units: Vec<String>,
    /// Contents of dpkg's `diversions` and `statoverride`, by file name.
    #[serde(default)]
    pub administration: BTreeMap<String, String>,
}

/// JSON keys are texts, so a map by package is written as a list of pairs.
mod entries {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{PackageKey, Recorded};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<PackageKey, Recorded>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<PackageKey, Recorded>, D::Error> {
        Ok(Vec::<(PackageKey, Recorded)>::deserialize(deserializer)?.into_iter().collect())
    }
}

/// What a change left behind, recorded at its end. Whatever differs from it later is somebody else's doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// The version of each planned package; absent if it was not present.
    #[serde(with = "pairs")]
    pub versions: BTreeMap<PackageKey, Option<String>>,
    /// MD5 of each of the snapshot's configuration files by path; absent if there was no such file.
    pub conffiles: BTreeMap<String, Option<String>>,
}

/// As [`entries`].
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::PackageKey;

    type Map = BTreeMap<PackageKey, Option<String>>;

    pub(super) fn serialize<S: Serializer>(map: &Map, serializer: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map, D::Error> {
        Ok(Vec::<(PackageKey, Option<String>)>::deserialize(deserializer)?.into_iter().collect())
    }
}

/// The file of a [`Snapshot`] in its directory.
const SNAPSHOT: &str = "snapshot.json";
/// The file of an [`After`] in its directory.
const AFTER: &str = "after.json";
/// The directory of copies of configuration files in a snapshot's directory.
const COPIES: &str = "conffiles";

/// What dpkg puts beside a configuration file.
const SIBLINGS: [&str; 3] = [".dpkg-dist", ".dpkg-old", ".dpkg-new"];

/// The host before a change, or after it, could not be recorded or not be read back.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// dpkg's database or apt's marks cannot be read.
    #[error("{0}: {source}", source = .0.source)]
    Database(#[from] ReadError),
    /// A file cannot be read or written.
    #[error("{} cannot be read or written: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record is damaged.
    #[error("{} is damaged and cannot be gone back to: {source}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::File { path, source }
}

/// dpkg's word for what is wanted of a package.
fn want(package: Installed<'_>) -> &'static str {
    match package.want() {
        Want::Unknown => "unknown",
        Want::Install => "install",
        Want::Hold => "hold",
        Want::Deinstall => "deinstall",
        Want::Purge => "purge",
    }
}

/// dpkg's word for a package's state.
fn status(package: Installed<'_>) -> &'static str {
    match package.status() {
        PackageStatus::NotInstalled => "not-installed",
        PackageStatus::ConfigFiles => "config-files",
        PackageStatus::HalfInstalled => "half-installed",
        PackageStatus::Unpacked => "unpacked",
        PackageStatus::HalfConfigured => "half-configured",
        PackageStatus::TriggersAwaited => "triggers-awaited",
        PackageStatus::TriggersPending => "triggers-pending",
        PackageStatus::Installed => "installed",
    }
}

/// The stanzas of packages in dpkg's database, byte for byte.
pub(crate) fn stanzas(root: &Path, keys: &BTreeSet<PackageKey>) -> io::Result<BTreeMap<PackageKey, Vec<u8>>> {
    let mut texts = vec![fs::read(root.join(STATUS))?];
    // What dpkg has not merged yet is newer; its files are numbered.
    let mut updates: Vec<PathBuf> = match fs::read_dir(root.join(UPDATES)) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    updates
        .retain(|path| path.file_name().is_some_and(|name| name.as_bytes().iter().all(u8::is_ascii_digit)));
    updates.sort();
    for path in updates {
        texts.push(fs::read(path)?);
    }
    let mut found = BTreeMap::new();
    for stanza in texts.iter().flat_map(|text| deb822::stanzas(text)) {
        let field = |name| stanza.text(name).unwrap_or_default().into_owned();
        let key = PackageKey { name: field("Package"), architecture: field("Architecture") };
        if keys.contains(&key) {
            let text = stanza
                .fields()
                .flat_map(|(name, value)| [name, b": ", value, b"\n"].concat())
                .collect::<Vec<u8>>();
            found.insert(key, text);
        }
    }
    Ok(found)
}

/// One line of dpkg's field `Conffiles`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConffileLine {
    pub(crate) path: Vec<u8>,
    /// Its hash; `newconffile` if it was not unpacked yet.
    pub(crate) md5: String,
    pub(crate) obsolete: bool,
}

/// Lines ` PATH MD5 [obsolete] [remove-on-upgrade]`. A path may hold spaces, so a line is read from its end.
pub(crate) fn conffile_lines(field: &[u8]) -> Vec<ConffileLine> {
    field
        .split(|b| *b == b'\n')
        .filter_map(|line| {
            let mut line = line.trim_ascii();
            let mut obsolete = false;
            loop {
                let space = line.iter().rposition(|b| *b == b' ')?;
                let (path, word) = (line.get(..space)?.trim_ascii_end(), line.get(space + 1..)?);
                match word {
                    b"obsolete" => obsolete = true,
                    b"remove-on-upgrade" => {}
                    _ => {
                        let md5 = String::from_utf8_lossy(word).into_owned();
                        return path.starts_with(b"/").then(|| ConffileLine {
                            path: path.to_vec(),
                            md5,
                            obsolete,
                        });
                    }
                }
                line = path;
            }
        })
        .collect()
}

/// dpkg's diversions: which file of which package lies elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Diversions {
    /// By path: where it lies, and the package whose own file stays at the path; empty if there is none.
    to: HashMap<Vec<u8>, (Vec<u8>, Vec<u8>)>,
}

impl Diversions {
    /// Reads those of a root.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn read(root: &Path) -> io::Result<Self> {
        match fs::read(root.join("var/lib/dpkg/diversions")) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Reads groups of three lines: the path, where its file lies, and the package that diverts (`:` for none).
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let lines: Vec<&[u8]> = text.split(|b| *b == b'\n').collect();
        let to = lines
            .chunks_exact(3)
            .filter_map(|group| match group {
                [from, to, by] if from.starts_with(b"/") && to.starts_with(b"/") => {
                    let by = if *by == b":" { Vec::new() } else { by.to_vec() };
                    Some((from.to_vec(), (to.to_vec(), by)))
                }
                _ => None,
            })
            .collect();
        Self { to }
    }

    /// Where the file of a package (its name without architecture) truly lies.
    #[must_use]
    pub fn on_disk<'a>(&'a self, path: &'a [u8], package: &str) -> &'a [u8] {
        match self.to.get(path) {
            Some((to, by)) if by != package.as_bytes() => to,
            _ => path,
        }
    }
}

/// What is recorded of a package.
#[must_use]
pub fn recorded(inventory: &Inventory, package: Installed<'_>) -> Recorded {
    Recorded {
        version: package.version_text().to_owned(),
        want: want(package).to_owned(),
        status: status(package).to_owned(),
        auto: inventory.is_auto(package),
    }
}

/// The package of a key as it is now; none if dpkg knows nothing of it.
#[must_use]
pub fn find<'a>(inventory: &'a Inventory, key: &PackageKey) -> Option<Installed<'a>> {
    inventory.database.named(&key.name).find(|package| package.architecture() == key.architecture)
}

/// The packages that are there, with their versions.
#[must_use]
pub fn present(inventory: &Inventory) -> BTreeSet<(PackageKey, String)> {
    inventory
        .database
        .iter()
        .filter(|package| package.is_present())
        .map(|package| (key_of(package), package.version_text().to_owned()))
        .collect()
}

/// Records the host before a change: the whole of dpkg's database, and of the packages concerned the files and
/// configuration. Copies of configuration files go to `directory`, which exists and is the change's alone. Units are
/// for somebody else to add. Call [`Snapshot::save`] then.
///
/// # Errors
/// See [`SnapshotError`]; nothing of the host was changed.
pub fn take(
    root: &Path,
    plan: &Plan,
    neighbours: &[PackageKey],
    archives: &BTreeMap<PackageKey, Kept>,
    directory: &Path,
) -> Result<Snapshot, SnapshotError> {
    let inventory = Inventory::read(root)?;
    let database = &inventory.database;
    let packages = database.iter().map(|package| (key_of(package), recorded(&inventory, package))).collect();
    let mut keys: BTreeMap<PackageKey, (bool, Option<String>)> =
        neighbours.iter().map(|key| (key.clone(), (false, None))).collect();
    for change in plan.changes.iter().filter(|c| c.action != patch_types::Action::Configure) {
        let key = installed(database, change).map_or_else(
            || PackageKey {
                name: change.name.name().to_owned(),
                architecture: change.architecture.as_str().to_owned(),
            },
            key_of,
        );
        let new = change.new_version.as_ref().filter(|_| !change.action.is_removal());
        keys.insert(key, (true, new.map(ToString::to_string)));
    }
    let wanted = keys.keys().cloned().collect();
    let stanzas = stanzas(root, &wanted).map_err(at(&root.join(STATUS)))?;
    let mut recorder = Recorder::new(root, directory)?;
    let mut affected = Vec::with_capacity(keys.len());
    for (key, (planned, new_version)) in keys {
        let package = database.named(&key.name).find(|p| p.architecture() == key.architecture);
        let archive = archives.get(&key).filter(|kept| kept.grade != Grade::None).cloned();
        let mut one = Affected {
            planned,
            archive,
            list: Vec::new(),
            missing: Vec::new(),
            conffiles: Vec::new(),
            new_version,
            key,
        };
        if let Some(package) = package {
            let conffiles = stanzas.get(&one.key).map(|text| deb822::Stanza::new(text));
            let conffiles = conffiles.and_then(|s| s.get("Conffiles")).unwrap_or_default();
            recorder.list(package, &mut one)?;
            recorder.conffiles(&conffile_lines(conffiles), &mut one)?;
        }
        affected.push(one);
    }
    recorder.sync()?;
    let mut administration = BTreeMap::new();
    for name in ["diversions", "statoverride"] {
        let path = root.join("var/lib/dpkg").join(name);
        match fs::read(&path) {
            Ok(text) => {
                administration.insert(name.to_owned(), String::from_utf8_lossy(&text).into_owned());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(&path)(error)),
        }
    }
    Ok(Snapshot { taken_at: Timestamp::now(), packages, affected, active_units: Vec::new(), administration })
}

/// Looks at files below the root and keeps copies of configuration.
struct Recorder<'a> {
    root: &'a Path,
    directory: &'a Path,
    below: Below,
    diversions: Diversions,
    copies: Vec<File>,
    seen: BTreeSet<Vec<u8>>,
}

impl<'a> Recorder<'a> {
    fn new(root: &'a Path, directory: &'a Path) -> Result<Self, SnapshotError> {
        let copies = directory.join(COPIES);
        match fs::remove_dir_all(&copies) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&copies)(error)),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(&copies).map_err(at(&copies))?;
        Ok(Self {
            root,
            directory,
            below: Below::new(root).map_err(at(root))?,
            diversions: Diversions::read(root).map_err(at(&root.join("var/lib/dpkg/diversions")))?,
            copies: Vec::new(),
            seen: BTreeSet::new(),
        })
    }

    fn list(&mut self, package: Installed<'_>, into: &mut Affected) -> Result<(), SnapshotError> {
        let path = info::path(self.root, package, "list");
        let list = match fs::read(&path) {
            Ok(list) => list,
            // dpkg keeps none for a package that it only knows by name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(at(&path)(error)),
        };
        for line in list.split(|b| *b == b'\n').filter(|line| line.starts_with(b"/")) {
            let real = self.diversions.on_disk(line, package.name());
            if is_absent(self.below.look(real).err()) {
                into.missing.push(to_text(line));
            }
            into.list.push(to_text(line));
        }
        Ok(())
    }

    fn conffiles(&mut self, lines: &[ConffileLine], into: &mut Affected) -> Result<(), SnapshotError> {
        for line in lines {
            let real = self.diversions.on_disk(&line.path, &into.key.name).to_vec();
            let recorded = is_md5(&line.md5).then(|| line.md5.clone());
            let Some(conffile) = self.conffile(&real, recorded)? else { continue };
            // A link's bytes are those of its target, and that is what dpkg would write to.
            let target = conffile.content.as_ref().and_then(|content| content.link.as_ref());
            let target = target.and_then(|_| self.below.follow(&real));
            into.conffiles.push(conffile);
            if let Some((inside, _)) = target
                && let Some(conffile) = self.conffile(&inside, None)?
            {
                into.conffiles.push(conffile);
            }
        }
        Ok(())
    }

    /// None for what is neither a file nor a link nor absent, and for what was recorded already.
    fn conffile(
        &mut self,
        path: &[u8],
        recorded_md5: Option<String>,
    ) -> Result<Option<Conffile>, SnapshotError> {
        if !self.seen.insert(path.to_vec()) {
            return Ok(None);
        }
        let mut siblings = Vec::new();
        for suffix in SIBLINGS {
            let sibling = [path, suffix.as_bytes()].concat();
            if self.below.look(&sibling).is_ok() {
                siblings.push(to_text(&sibling));
            }
        }
        let shown = Path::new(OsStr::from_bytes(path));
        let found = match self.below.find(path) {
            Ok(found) => fs::symlink_metadata(&found).map(|metadata| (found, metadata)),
            Err(error) => Err(error),
        };
        let content = match found {
            Err(error) if is_absent_kind(error.kind()) => None,
            Err(error) => return Err(at(shown)(error)),
            Ok((found, metadata)) => {
                let (md5, copy, link) = if metadata.is_symlink() {
                    let link = fs::read_link(&found).map_err(at(&found))?;
                    let md5 = self
                        .below
                        .follow(path)
                        .and_then(|(_, target)| open_regular(&target).and_then(md5_of).ok());
                    (md5.unwrap_or_default(), None, Some(to_text_of_link(link.as_os_str().as_bytes())))
                } else if metadata.is_file() {
                    let (md5, copy) = self.copy(&found)?;
                    (md5, Some(copy), None)
                } else {
                    return Ok(None);
                };
                Some(Content {
                    md5,
                    copy,
                    link,
                    uid: metadata.uid(),
                    gid: metadata.gid(),
                    mode: metadata.mode() & 0o7777,
                    xattrs: xattrs(&found).map_err(at(&found))?,
                })
            }
        };
        Ok(Some(Conffile { path: to_text(path), recorded_md5, content, siblings }))
    }

    fn copy(&mut self, source: &Path) -> Result<(String, String), SnapshotError> {
        let name = format!("{COPIES}/{}", self.copies.len());
        let target = self.directory.join(&name);
        let mut from = open_regular(source).map_err(at(source))?;
        let mut to =
            File::options().write(true).create_new(true).mode(0o600).open(&target).map_err(at(&target))?;
        let mut hash = Md5::new();
        pump(&mut from, |piece| {
            hash.update(piece);
            to.write_all(piece)
        })
        .map_err(at(source))?;
        self.copies.push(to);
        Ok((hex::encode(hash.finalize()), name))
    }

    fn sync(&self) -> Result<(), SnapshotError> {
        let directory = self.directory.join(COPIES);
        for copy in &self.copies {
            copy.sync_all().map_err(at(&directory))?;
        }
        sync_dir(&directory).map_err(at(&directory))
    }
}

/// A link's target as text, in hexadecimal after `hex:` where it is not UTF-8: unlike a path it need not begin with `/`.
fn to_text_of_link(target: &[u8]) -> String {
    String::from_utf8(target.to_vec()).unwrap_or_else(|_| format!("hex:{}", hex::encode(target)))
}

fn is_absent(error: Option<io::Error>) -> bool {
    error.is_some_and(|error| is_absent_kind(error.kind()))
}

fn is_absent_kind(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_md5(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The extended attributes of a file or link itself. A file system without any has none.
fn xattrs(path: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut names = vec![0_u8; 64 * 1024];
    let length = match rustix::fs::llistxattr(path, names.as_mut_slice()) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    let mut value = vec![0_u8; 64 * 1024];
    for name in names.get(..length).unwrap_or_default().split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let Ok(text) = std::str::from_utf8(name) else { continue };
        match rustix::fs::lgetxattr(path, name, value.as_mut_slice()) {
            Ok(length) => {
                found.insert(text.to_owned(), hex::encode(value.get(..length).unwrap_or_default()));
            }
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn save(directory: &Path, name: &str, record: &impl Serialize) -> Result<(), SnapshotError> {
    let path = directory.join(name);
    let text = serde_json::to_vec(record).map_err(|error| at(&path)(io::Error::other(error)))?;
    write_whole(directory, name, &text).map_err(at(&path))
}

fn load<T: DeserializeOwned>(directory: &Path, name: &str) -> Result<T, SnapshotError> {
    let path = directory.join(name);
    let text = fs::read(&path).map_err(at(&path))?;
    serde_json::from_slice(&text).map_err(|source| SnapshotError::Damaged { path, source })
}

impl Snapshot {
    /// Writes it to its directory, whole or not at all; it is on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, directory: &Path) -> Result<(), SnapshotError> {
        save(directory, SNAPSHOT, self)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged; the error names the file.
    pub fn load(directory: &Path) -> Result<Self, SnapshotError> {
        load(directory, SNAPSHOT)
    }

    /// The way back that the change has: of each package that was installed and is concerned, neighbours included.
    #[must_use]
    pub fn way_back(&self) -> WayBack {
        let packages: Vec<PackageWayBack> = self
            .affected
            .iter()
            .filter_map(|affected| {
                let recorded = self.packages.get(&affected.key)?;
                if matches!(recorded.status.as_str(), "config-files" | "not-installed") {
                    return None;
                }
                let (grade, reason) = match &affected.archive {
                    Some(kept) => (kept.grade, kept.reason.clone()),
                    None => (
                        Grade::None,
                        "its archive is nowhere to be had and could not be made of its files; see the job's log"
                            .to_owned(),
                    ),
                };
                Some(PackageWayBack {
                    name: affected.key.name.parse().ok()?,
                    architecture: affected.key.architecture.parse().ok()?,
                    version: recorded.version.parse().ok()?,
                    grade,
                    reason,
                })
            })
            .collect();
        let grade = packages.iter().map(|p| p.grade).min().unwrap_or(Grade::Exact);
        WayBack { grade, packages, recorded_in_ms: 0, snapshot: None }
    }
}

impl After {
    /// Records what a change left behind.
    ///
    /// # Errors
    /// When dpkg's database or a configuration file cannot be read.
    pub fn record(root: &Path, snapshot: &Snapshot) -> Result<Self, SnapshotError> {
        let database = Database::read(root)?;
        let mut below = Below::new(root).map_err(at(root))?;
        let mut after = Self::default();
        for affected in &snapshot.affected {
            if affected.planned {
                let present = database
                    .named(&affected.key.name)
                    .filter(|p| p.is_present())
                    .find(|p| p.architecture() == affected.key.architecture)
                    .or_else(|| {
                        // Its architecture may have become `all`, or ceased to be it.
                        database
                            .named(&affected.key.name)
                            .filter(|p| p.is_present())
                            .find(|p| p.architecture() == "all" || affected.key.architecture == "all")
                    });
                after.versions.insert(affected.key.clone(), present.map(|p| p.version_text().to_owned()));
            }
            for conffile in &affected.conffiles {
                let path = from_text(&conffile.path);
                let md5 = match below.look(&path) {
                    Err(error) if is_absent_kind(error.kind()) => None,
                    Err(error) => return Err(at(Path::new(OsStr::from_bytes(&path)))(error)),
                    Ok(metadata) => {
                        let target = if metadata.is_symlink() {
                            below.follow(&path).map(|(_, target)| target)
                        } else {
                            below.find(&path).ok()
                        };
                        Some(target.and_then(|t| open_regular(&t).and_then(md5_of).ok()).unwrap_or_default())
                    }
                };
                after.conffiles.insert(conffile.path.clone(), md5);
            }
        }
        Ok(after)
    }

    /// Writes it to the snapshot's directory, whole or not at all; it is on disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, directory: &Path) -> Result<(), SnapshotError> {
        save(directory, AFTER, self)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged; the error names the file.
    pub fn load(directory: &Path) -> Result<Self, SnapshotError> {
        load(directory, AFTER)
    }
}

/// The installed packages that are not in the plan and from which one of its new versions may take files over, since it
/// says that it replaces them. What a new version says is read from the indexes where they know its very archive, and
/// from the archive itself (in `archives`, under apt's name) where not.
#[must_use]
pub fn neighbours(inventory: &Inventory, plan: &Plan, indexes: &Indexes, archives: &Path) -> Vec<PackageKey> {
    let database = &inventory.database;
    let planned: BTreeSet<PackageKey> =
        plan.changes.iter().filter_map(|change| installed(database, change)).map(key_of).collect();
    let mut found = BTreeSet::new();
    for change in plan.changes.iter().filter(|change| brings_archive(change)) {
        let Some(version) = &change.new_version else { continue };
        let (name, architecture) = (change.name.name(), change.architecture.as_str());
        let indexed = indexes
            .offers(name, architecture, version.as_str())
            .find(|offer| offer.sha256.is_some() && offer.sha256 == change.archive_sha256);
        let replaces = match indexed {
            Some(offer) => offer.relations.replaces.join(", "),
            None => {
                let key = PackageKey { name: name.to_owned(), architecture: architecture.to_owned() };
                let archive = archives.join(file_name(&key, version.as_str()));
                deb::control(&archive).map(|control| control.replaces).unwrap_or_default()
            }
        };
        for other in relations::groups(&replaces).flat_map(relations::alternatives) {
            found.extend(
                database
                    .named(other.name)
                    .filter(|p| p.is_present() && p.name() != name && other.accepts(p.version_text()))
                    .map(key_of)
                    .filter(|key| !planned.contains(key)),
            );
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use patch_types::Action;
    use proptest::prelude::*;

    use super::*;
    use crate::apt::testing::{Host, Package, key, plan};

    const CONFFILES: &[&str] = &["etc/aa.conf", "etc/gone.conf", "etc/link.conf", "etc/with space.conf"];

    fn host() -> Host {
        let host = Host::new();
        let files: Vec<(&str, &str)> = CONFFILES.iter().map(|path| (*path, "shipped")).collect();
        let more: fn(&Path) = |tree| {
            fs::create_dir_all(tree.join("usr/share/aa")).unwrap();
            fs::write(tree.join("usr/share/aa").join(OsStr::from_bytes(b"caf\xe9")), "x").unwrap();
            fs::write(tree.join("usr/share/aa/lost"), "x").unwrap();
        };
        let package = Package { files: &files, conffiles: CONFFILES, more: Some(more), ..Package::default() };
        host.install(&host.deb("aa", "1:1.0", &package));
        let files = [("usr/share/bb/moved", "x")];
        host.install(&host.deb("bb", "1", &Package { files: &files, ..Package::default() }));
        host
    }

    #[test]
    fn a_host_is_recorded_and_read_back() {
        let host = host();
        let etc = host.root.join("etc");
        fs::remove_file(host.root.join("usr/share/aa/lost")).unwrap();
        fs::remove_file(etc.join("gone.conf")).unwrap();
        fs::write(etc.join("aa.conf"), "edited").unwrap();
        fs::set_permissions(etc.join("aa.conf"), fs::Permissions::from_mode(0o640)).unwrap();
        chown(etc.join("aa.conf"), Some(0), Some(7)).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(etc.join("aa.conf"), "trusted.note", b"\xff1", flags).unwrap();
        fs::write(etc.join("aa.conf.dpkg-old"), "older").unwrap();
        fs::remove_file(etc.join("link.conf")).unwrap();
        fs::create_dir(etc.join("real")).unwrap();
        fs::write(etc.join("real/link.conf"), "elsewhere").unwrap();
        symlink("/etc/real/link.conf", etc.join("link.conf")).unwrap();
        fs::write(host.root.join("var/lib/dpkg/statoverride"), "root root 0600 /x\n").unwrap();

        let record = host.at("record");
        let plan = plan(&[
            (Action::Upgrade, "aa", Some("1:1.0"), Some("2.0")),
            (Action::Install, "cc", None, Some("1")),
        ]);
        let kept = Kept { file: "f".into(), grade: Grade::Rebuilt, reason: "why".into() };
        let archives = BTreeMap::from([(key("aa"), kept.clone())]);
        let snapshot = take(&host.root, &plan, &[key("bb")], &archives, &record).unwrap();
        snapshot.save(&record).unwrap();
        assert_eq!(Snapshot::load(&record).unwrap(), snapshot);

        assert_eq!(snapshot.packages.len(), 2);
        let recorded = &snapshot.packages[&key("aa")];
        assert_eq!(
            (recorded.version.as_str(), recorded.want.as_str(), recorded.status.as_str(), recorded.auto),
            ("1:1.0", "install", "installed", false)
        );
        let [aa, bb, cc] = &snapshot.affected[..] else { panic!("{:?}", snapshot.affected) };
        assert_eq!((aa.planned, bb.planned, cc.planned), (true, false, true));
        assert_eq!((&aa.archive, &bb.archive, &cc.archive), (&Some(kept), &None, &None));
        assert_eq!((aa.new_version.as_deref(), bb.new_version.as_deref()), (Some("2.0"), None));
        assert!(aa.list.contains(&to_text(b"/usr/share/aa/caf\xe9")), "{:?}", aa.list);
        assert_eq!((aa.missing.len(), aa.missing.contains(&"/usr/share/aa/lost".to_owned())), (2, true));
        assert!(cc.list.is_empty());
        assert_eq!(snapshot.administration["statoverride"], "root root 0600 /x\n");

        let conffile = |path: &str| aa.conffiles.iter().find(|c| c.path == path).unwrap();
        let shipped = md5_of(&b"shipped"[..]).unwrap();
        let edited = conffile("/etc/aa.conf");
        assert_eq!(edited.recorded_md5.as_ref(), Some(&shipped));
        assert_eq!(edited.siblings, ["/etc/aa.conf.dpkg-old"]);
        let content = edited.content.as_ref().unwrap();
        assert_eq!(fs::read(record.join(content.copy.as_ref().unwrap())).unwrap(), b"edited");
        assert_eq!((content.uid, content.gid, content.mode), (0, 7, 0o640));
        assert_eq!(content.xattrs.get("trusted.note").map(String::as_str), Some("ff31"));
        assert_eq!(conffile("/etc/gone.conf").content, None);
        assert_eq!(conffile("/etc/with space.conf").content.as_ref().unwrap().md5, shipped);
        let link = conffile("/etc/link.conf").content.as_ref().unwrap();
        assert_eq!((link.link.as_deref(), &link.copy), (Some("/etc/real/link.conf"), &None));
        assert_eq!(link.md5, md5_of(&b"elsewhere"[..]).unwrap());
        let target = conffile("/etc/real/link.conf");
        let copy = target.content.as_ref().unwrap().copy.as_ref().unwrap();
        assert_eq!(fs::read(record.join(copy)).unwrap(), b"elsewhere");

        let way_back = snapshot.way_back();
        assert_eq!(way_back.grade, Grade::None);
        let grades: Vec<_> = way_back.packages.iter().map(|p| (p.name.as_str(), p.grade)).collect();
        assert_eq!(grades, [("aa", Grade::Rebuilt), ("bb", Grade::None)]);

        let files = [("etc/aa.conf", "new")];
        let package = Package { files: &files, conffiles: &["etc/aa.conf"], ..Package::default() };
        host.install(&host.deb("aa", "2.0", &package));
        let after = After::record(&host.root, &snapshot).unwrap();
        after.save(&record).unwrap();
        assert_eq!(After::load(&record).unwrap(), after);
        assert_eq!(after.versions[&key("aa")].as_deref(), Some("2.0"));
        assert_eq!(after.versions[&key("cc")], None);
        assert!(!after.versions.contains_key(&key("bb")));
        assert_eq!(after.conffiles["/etc/aa.conf"], Some(md5_of(&b"edited"[..]).unwrap()));
        assert_eq!(after.conffiles["/etc/gone.conf"], None);
    }

    #[test]
    fn whoever_may_lose_files_to_a_new_version_is_a_neighbour() {
        let host = host();
        let files = [("usr/share/bb/moved", "x")];
        let fields = "Replaces: bb (<< 2), aa (<< 0), cc, zz\nBreaks: bb (<< 2)\n";
        host.deb("cc", "1", &Package { files: &files, fields, ..Package::default() });
        let inventory = Inventory::read(&host.root).unwrap();
        let found = |plan| neighbours(&inventory, &plan, &Indexes::default(), &host.at("debs"));
        assert_eq!(found(plan(&[(Action::Install, "cc", None, Some("1"))])), [key("bb")]);
        let both =
            plan(&[(Action::Install, "cc", None, Some("1")), (Action::Upgrade, "bb", Some("1"), Some("2"))]);
        assert!(found(both).is_empty());
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{", "[]", "{\"packages\":[[1]]}", "\0\u{fffd}"] {
            fs::write(dir.path().join(SNAPSHOT), text).unwrap();
            fs::write(dir.path().join(AFTER), text).unwrap();
            assert!(Snapshot::load(dir.path()).unwrap_err().to_string().contains("snapshot.json"));
            assert!(After::load(dir.path()).unwrap_err().to_string().contains("after.json"));
        }
        assert!(Snapshot::load(&dir.path().join("none")).unwrap_err().to_string().contains("snapshot.json"));
    }

    #[test]
    fn lines_about_conffiles_are_read_from_their_end() {
        let lines = conffile_lines(
            b"\n /etc/a b 0123 obsolete\n /etc/c newconffile\n /etc/d 45 remove-on-upgrade\nx\n",
        );
        let line = |path: &str, md5: &str, obsolete| ConffileLine {
            path: path.as_bytes().to_vec(),
            md5: md5.into(),
            obsolete,
        };
        let expected = [
            line("/etc/a b", "0123", true),
            line("/etc/c", "newconffile", false),
            line("/etc/d", "45", false),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_diversion_does_not_move_the_file_of_its_own_package() {
        let diversions = Diversions::parse(b"/a\n/a.distrib\nbb\n/c\n/c.local\n:\n/broken\n");
        assert_eq!(diversions.on_disk(b"/a", "aa"), b"/a.distrib");
        assert_eq!(diversions.on_disk(b"/a", "bb"), b"/a");
        assert_eq!(diversions.on_disk(b"/c", "aa"), b"/c.local");
        assert_eq!(diversions.on_disk(b"/broken", "aa"), b"/broken");
    }

    proptest! {
        #[test]
        fn nothing_dpkg_keeps_panics(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = conffile_lines(&text);
            let _ = Diversions::parse(&text);
        }
    }
}
