//! The store of archives: what a host can go back to without any repository.
//!
//! A file's name says all there is to know of it: package, version, architecture, grade and SHA-256. There is no index
//! that could be lost or disagree.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File, Metadata},
    io::{self, Seek, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use patch_types::Grade;
use rustix::fs::{AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, futimens, linkat};
use sha2::{Digest, Sha256};

use super::{
    files::{open_regular, pump, sync_dir},
    snapshot::{Kept, PackageKey},
};

/// What is being written begins with this, so that it is never taken for an archive.
const NEW: &str = ".new-";

/// How much the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Archives.
    pub archives: u64,
    /// Their bytes. An archive that apt's cache holds as well shares them.
    pub bytes: u64,
}

/// What [`Store::prune`] leaves alone, and the bounds for the rest.
#[derive(Debug)]
pub struct Keep<'a> {
    /// What is installed, with its version: never deleted.
    pub installed: &'a BTreeSet<(PackageKey, String)>,
    /// The file names that snapshots still name: never deleted.
    pub referenced: &'a BTreeSet<String>,
    /// Others are deleted when they were not used for so long.
    pub max_age: Duration,
    /// Others are deleted, those not used for longest first, until the store holds no more than this.
    pub max_bytes: u64,
}

/// The store: one directory that only root may enter.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
}

/// What a name says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    key: PackageKey,
    version: String,
    grade: Grade,
    sha256: String,
}

/// A file whose bytes have been read and hashed. The descriptor stays open: what was hashed is what is kept.
#[derive(Debug)]
pub(crate) struct Hashed {
    file: File,
    metadata: Metadata,
    /// SHA-256 in lower-case hexadecimal.
    pub(crate) sha256: String,
}

impl Hashed {
    /// Reads and hashes a regular file.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let mut file = open_regular(path)?;
        let mut hash = Sha256::new();
        pump(&mut file, |piece| {
            hash.update(piece);
            Ok(())
        })?;
        let metadata = file.metadata()?;
        Ok(Self { file, metadata, sha256: hex::encode(hash.finalize()) })
    }
}

/// Keeps letters, digits and `.+~-`; everything else becomes `%` and two hexadecimal digits, `_` and `/` among them.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b".+~-".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02x}"));
        }
    }
    encoded
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after.get(2..)?;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

impl Label {
    fn file(&self) -> String {
        format!(
            "{}_{}_{}_{}_{}.deb",
            encode(&self.key.name),
            encode(&self.version),
            encode(&self.key.architecture),
            self.grade,
            self.sha256
        )
    }

    fn parse(file: &str) -> Option<Self> {
        let mut parts = file.strip_suffix(".deb")?.split('_');
        let (name, version, architecture) = (parts.next()?, parts.next()?, parts.next()?);
        let grade = match parts.next()? {
            "exact" => Grade::Exact,
            "rebuilt" => Grade::Rebuilt,
            _ => return None,
        };
        let label = Self {
            key: PackageKey { name: decode(name)?, architecture: decode(architecture)? },
            version: decode(version)?,
            grade,
            sha256: parts.next()?.to_owned(),
        };
        let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let whole = label.sha256.len() == 64 && label.sha256.bytes().all(digits) && parts.next().is_none();
        // Two ways to write one name would be two files for one archive.
        (whole && label.file() == file).then_some(label)
    }
}

fn kept(file: String, grade: Grade) -> Kept {
    let reason = match grade {
        Grade::Exact => String::new(),
        _ => "its archive was made of the installed files".to_owned(),
    };
    Kept { file, grade, reason }
}

impl Store {
    /// Opens the store, or makes it.
    ///
    /// # Errors
    /// When it cannot be made, or is somebody else's, or others may enter it.
    pub fn open(directory: &Path) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).recursive(true).create(directory)?;
        let metadata = fs::symlink_metadata(directory)?;
        let own = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_dir() || !own || metadata.mode() & 0o077 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{} must be a directory that belongs to root and that nobody else may enter (mode 0700)",
                    directory.display()
                ),
            ));
        }
        Ok(Self { directory: directory.to_owned() })
    }

    fn entries(&self) -> io::Result<Vec<(String, Metadata)>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            match entry.metadata() {
                Ok(metadata) if metadata.is_file() => entries.push((name, metadata)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    /// All archives of a version, the best grade first, and of equal ones the one used last. Whether their bytes are
    /// still good is for [`verify`](Self::verify).
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn all(&self, key: &PackageKey, version: &str) -> io::Result<Vec<Kept>> {
        let mut found: Vec<(Grade, Option<SystemTime>, String)> = self
            .entries()?
            .into_iter()
            .filter_map(|(name, metadata)| {
                let label = Label::parse(&name)?;
                (label.key == *key && label.version == version)
                    .then(|| (label.grade, metadata.modified().ok(), name))
            })
            .collect();
        found.sort();
        Ok(found.into_iter().rev().map(|(grade, _, name)| kept(name, grade)).collect())
    }

    /// The best archive of a version; see [`all`](Self::all). None as well if the store cannot be read.
    #[must_use]
    pub fn find(&self, key: &PackageKey, version: &str) -> Option<Kept> {
        self.all(key, version).ok()?.into_iter().next()
    }

    /// Where an archive lies. Whatever its name says, that is in the store's directory.
    #[must_use]
    pub fn path(&self, kept: &Kept) -> PathBuf {
        if Label::parse(&kept.file).is_some() {
            self.directory.join(&kept.file)
        } else {
            self.directory.join(format!("{}.invalid", encode(&kept.file)))
        }
    }

    /// Whether an archive's bytes are those that its name tells. An archive that is not there is not.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn verify(&self, kept: &Kept) -> io::Result<bool> {
        let Some(label) = Label::parse(&kept.file) else { return Ok(false) };
        match Hashed::read(&self.path(kept)) {
            Ok(hashed) => Ok(hashed.sha256 == label.sha256),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Keeps an archive: by a hard link where that is as safe as a copy, so that it costs no room. An archive that is
    /// there already counts as just used. On disk when this returns.
    ///
    /// # Errors
    /// When it cannot be read or the store not be written.
    pub fn keep(
        &self,
        archive: &Path,
        key: &PackageKey,
        version: &str,
        grade: Grade,
        reason: &str,
    ) -> io::Result<Kept> {
        let kept = self.put(&mut Hashed::read(archive)?, key, version, grade, reason)?;
        self.sync()?;
        Ok(kept)
    }

    /// As [`keep`](Self::keep) of a file that was hashed; the name outlasts a power cut only after
    /// [`sync`](Self::sync).
    pub(crate) fn put(
        &self,
        hashed: &mut Hashed,
        key: &PackageKey,
        version: &str,
        grade: Grade,
        reason: &str,
    ) -> io::Result<Kept> {
        if grade == Grade::None {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an archive of no grade cannot be kept"));
        }
        let label =
            Label { key: key.clone(), version: version.to_owned(), grade, sha256: hashed.sha256.clone() };
        let kept = Kept { file: label.file(), grade, reason: reason.to_owned() };
        // Nothing is pruned meanwhile; several may keep at a time.
        let lock = File::open(&self.directory)?;
        flock(&lock, FlockOperation::LockShared)?;
        let path = self.directory.join(&kept.file);
        if let Ok(there) = fs::symlink_metadata(&path) {
            let same = there.dev() == hashed.metadata.dev() && there.ino() == hashed.metadata.ino();
            if same || self.verify(&kept)? {
                self.touch(&kept)?;
                return Ok(kept);
            }
        }
        let new = self.directory.join(format!("{NEW}{}-{}", std::process::id(), hashed.sha256));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let written = self.write(hashed, &new).and_then(|()| fs::rename(&new, &path));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written.map(|()| kept)
    }

    fn write(&self, hashed: &mut Hashed, new: &Path) -> io::Result<()> {
        let metadata = &hashed.metadata;
        let trusted = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
        if trusted {
            // By descriptor: what was hashed is what gets the name, whoever renamed what meanwhile.
            let from = format!("/proc/self/fd/{}", hashed.file.as_raw_fd());
            if linkat(CWD, from.as_str(), CWD, new, AtFlags::SYMLINK_FOLLOW).is_ok() {
                touch(&hashed.file)?;
                return hashed.file.sync_data();
            }
        }
        let mut copy = File::options().write(true).create_new(true).mode(0o600).open(new)?;
        hashed.file.rewind()?;
        let mut hash = Sha256::new();
        pump(&mut hashed.file, |piece| {
            hash.update(piece);
            copy.write_all(piece)
        })?;
        if hex::encode(hash.finalize()) != hashed.sha256 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the archive changed while it was copied",
            ));
        }
        copy.sync_all()
    }

    /// Makes the names that [`put`](Self::put) made outlast a power cut.
    pub(crate) fn sync(&self) -> io::Result<()> {
        sync_dir(&self.directory)
    }

    /// Counts an archive as just used.
    pub(crate) fn touch(&self, kept: &Kept) -> io::Result<()> {
        touch(&open_regular(&self.path(kept))?)
    }

    /// The SHA-256 of an archive, as its name says; none if it is not a name of this store.
    #[must_use]
    pub fn sha256_of(kept: &Kept) -> Option<String> {
        Label::parse(&kept.file).map(|label| label.sha256)
    }

    /// How much is in it.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let entries = self.entries().unwrap_or_default();
        entries.iter().filter(|(name, _)| Label::parse(name).is_some()).fold(
            Usage::default(),
            |sum, (_, m)| Usage { archives: sum.archives + 1, bytes: sum.bytes.saturating_add(m.len()) },
        )
    }

    /// Deletes what is too old or too much, and what interrupted writes left. Gives the names of the archives that
    /// went. Files that are not the store's are left alone.
    ///
    /// # Errors
    /// When the store cannot be read, or a file not be deleted.
    pub fn prune(&self, keep: &Keep<'_>) -> io::Result<Vec<String>> {
        let lock = File::open(&self.directory)?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let now = SystemTime::now();
        let mut total = 0_u64;
        let mut candidates = Vec::new();
        for (name, metadata) in self.entries()? {
            if name.starts_with(NEW) {
                // Whoever wrote it would hold the lock.
                fs::remove_file(self.directory.join(&name))?;
                continue;
            }
            let Some(label) = Label::parse(&name) else { continue };
            // What is installed is needed whatever room it takes, and does not count.
            if keep.installed.contains(&(label.key, label.version)) {
                continue;
            }
            total = total.saturating_add(metadata.len());
            if keep.referenced.contains(&name) {
                continue;
            }
            candidates.push((metadata.modified()?, name, metadata.len()));
        }
        candidates.sort();
        let mut gone = Vec::new();
        for (used, name, bytes) in candidates {
            // A time in the future is a clock that was set back: not old.
            let old = now.duration_since(used).is_ok_and(|age| age > keep.max_age);
            if !old && total <= keep.max_bytes {
                continue;
            }
            fs::remove_file(self.directory.join(&name))?;
            total = total.saturating_sub(bytes);
            gone.push(name);
        }
        self.sync()?;
        Ok(gone)
    }
}

fn touch(file: &File) -> io::Result<()> {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    Ok(futimens(file, &Timestamps { last_access: now, last_modification: now })?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn key(name: &str) -> PackageKey {
        PackageKey { name: name.into(), architecture: "amd64".into() }
    }

    struct Fixture {
        dir: tempfile::TempDir,
        store: Store,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&dir.path().join("state/archives")).unwrap();
            Self { dir, store }
        }

        fn keep(&self, name: &str, version: &str, grade: Grade, bytes: &str) -> Kept {
            let path = self.dir.path().join("x.deb");
            let _ = fs::remove_file(&path);
            fs::write(&path, bytes).unwrap();
            self.store.keep(&path, &key(name), version, grade, "why").unwrap()
        }

        fn age(&self, kept: &Kept, age: Duration) {
            let file = File::options().write(true).open(self.store.path(kept)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
    }

    #[test]
    fn a_name_says_it_all_and_the_better_grade_is_found() {
        let f = Fixture::new();
        let rebuilt = f.keep("aa", "1:2.0~rc_1", Grade::Rebuilt, "r");
        assert_eq!(f.store.find(&key("aa"), "1:2.0~rc_1").unwrap().file, rebuilt.file);
        let exact = f.keep("aa", "1:2.0~rc_1", Grade::Exact, "e");
        assert!(exact.file.starts_with("aa_1%3a2.0~rc%5f1_amd64_exact_"), "{}", exact.file);
        let found = f.store.find(&key("aa"), "1:2.0~rc_1").unwrap();
        assert_eq!((found.file, found.grade), (exact.file.clone(), Grade::Exact));
        assert_eq!(f.store.find(&key("aa"), "2.0"), None);
        assert!(f.store.verify(&exact).unwrap());
        assert_eq!(f.store.usage(), Usage { archives: 2, bytes: 2 });
        assert_eq!(f.keep("aa", "1:2.0~rc_1", Grade::Exact, "e").file, exact.file);
        assert_eq!(f.store.usage().archives, 2);
    }

    #[test]
    fn an_own_archive_is_linked_and_anybody_elses_is_copied() {
        let f = Fixture::new();
        let path = f.dir.path().join("own.deb");
        fs::write(&path, "own").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let kept = f.store.keep(&path, &key("aa"), "1", Grade::Exact, "").unwrap();
        assert_eq!(fs::metadata(f.store.path(&kept)).unwrap().ino(), fs::metadata(&path).unwrap().ino());
        let path = f.dir.path().join("open.deb");
        fs::write(&path, "open").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let kept = f.store.keep(&path, &key("aa"), "2", Grade::Exact, "").unwrap();
        assert_ne!(fs::metadata(f.store.path(&kept)).unwrap().ino(), fs::metadata(&path).unwrap().ino());
        std::os::unix::fs::symlink(&path, f.dir.path().join("link.deb")).unwrap();
        assert!(f.store.keep(&f.dir.path().join("link.deb"), &key("aa"), "2", Grade::Exact, "").is_err());
    }

    #[test]
    fn a_rotten_archive_is_noticed_and_replaced() {
        let f = Fixture::new();
        let kept = f.keep("aa", "1", Grade::Exact, "good");
        fs::remove_file(f.store.path(&kept)).unwrap();
        assert!(!f.store.verify(&kept).unwrap());
        fs::write(f.store.path(&kept), "evil").unwrap();
        assert!(!f.store.verify(&kept).unwrap());
        f.keep("aa", "1", Grade::Exact, "good");
        assert!(f.store.verify(&kept).unwrap());
    }

    #[test]
    fn pruning_spares_what_is_installed_or_named_by_a_snapshot() {
        let f = Fixture::new();
        let day = Duration::from_secs(86400);
        let kept: Vec<Kept> =
            ["1", "2", "3", "4", "5"].iter().map(|v| f.keep("aa", v, Grade::Exact, v)).collect();
        for (kept, days) in kept.iter().zip([50, 40, 30, 2, 1]) {
            f.age(kept, day * days);
        }
        fs::write(f.store.directory.join(".new-1-x"), "").unwrap();
        fs::write(f.store.directory.join("README"), "").unwrap();
        let installed = BTreeSet::from([(key("aa"), "1".to_owned())]);
        let referenced = BTreeSet::from([kept[1].file.clone()]);
        let mut keep =
            Keep { installed: &installed, referenced: &referenced, max_age: day * 10, max_bytes: 9 };
        assert_eq!(f.store.prune(&keep).unwrap(), vec![kept[2].file.clone()]);
        // What is installed does not count.
        keep.max_bytes = 2;
        assert_eq!(f.store.prune(&keep).unwrap(), vec![kept[3].file.clone()]);
        keep.max_bytes = 1;
        assert_eq!(f.store.prune(&keep).unwrap(), vec![kept[4].file.clone()]);
        assert_eq!(f.store.usage().archives, 2);
        assert!(!f.store.directory.join(".new-1-x").exists() && f.store.directory.join("README").exists());
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Store::open(dir.path()).unwrap_err().to_string().contains("0700"));
    }

    proptest! {
        #[test]
        fn labels_survive_being_names(name in ".{1,20}", version in ".{1,20}", architecture in "[a-z0-9-]{1,8}") {
            let label = Label {
                key: PackageKey { name, architecture },
                version,
                grade: Grade::Exact,
                sha256: "0".repeat(64),
            };
            prop_assert_eq!(Label::parse(&label.file()), Some(label));
        }

        #[test]
        fn no_name_leads_out_of_the_store(file in "(\\.\\./|/|\\.|_|%|[a-z0-9]|.){0,40}") {
            let store = Store { directory: "/store".into() };
            let path = store.path(&Kept { file, grade: Grade::Exact, reason: String::new() });
            prop_assert_eq!(path.parent(), Some(Path::new("/store")));
            prop_assert!(path.components().all(|c| c != std::path::Component::ParentDir));
        }
    }
}
