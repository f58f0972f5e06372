//! Where the archives of what is installed come from: the store, apt's cache, the repositories, and as a last resort
//! the installed files themselves.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use patch_backends::apt::{Database, Indexes, Installed, info};
use patch_types::{Action, Grade, Plan, PlannedChange};

use super::{
    deb::{self, Control},
    files::open_regular,
    rebuild,
    snapshot::{Kept, PackageKey},
    stage::Stage,
    store::{Hashed, Store},
};

/// apt's cache of archives, below the root.
pub const CACHE: &str = "var/cache/apt/archives";

/// The name that apt gives an archive's file.
#[must_use]
pub fn file_name(key: &PackageKey, version: &str) -> String {
    let quote = |text: &str, special: &[u8]| {
        text.bytes().fold(String::new(), |mut quoted, byte| {
            if special.contains(&byte) || byte == b'%' || byte == b'/' || !(0x21..0x7f).contains(&byte) {
                quoted.push_str(&format!("%{byte:02x}"));
            } else {
                quoted.push(char::from(byte));
            }
            quoted
        })
    };
    format!("{}_{}_{}.deb", quote(&key.name, b"_:"), quote(version, b"_:"), quote(&key.architecture, b"_:."))
}

/// Whether a change brings an archive.
pub(crate) fn brings_archive(change: &PlannedChange) -> bool {
    matches!(change.action, Action::Install | Action::Upgrade | Action::Downgrade | Action::Reinstall)
}

/// The package that a change concerns as it is installed; none if it is not. Its architecture may change with it.
#[must_use]
pub fn installed<'a>(database: &'a Database, change: &PlannedChange) -> Option<Installed<'a>> {
    let (name, architecture) = (change.name.name(), change.architecture.as_str());
    database.find(name, Some(architecture)).filter(|p| p.is_present()).or_else(|| {
        database
            .named(name)
            .find(|p| architecture == "all" && p.is_present() && p.architecture() == database.native())
    })
}

/// Which archives a change's way back needs: of every package that is changed or removed, and of its neighbours.
#[must_use]
pub fn wanted(database: &Database, plan: &Plan, neighbours: &[PackageKey]) -> Vec<(PackageKey, String)> {
    let planned = plan
        .changes
        .iter()
        .filter(|change| brings_archive(change) || change.action.is_removal())
        .filter_map(|change| installed(database, change));
    let beside = neighbours
        .iter()
        .filter_map(|key| database.named(&key.name).find(|p| p.architecture() == key.architecture))
        .filter(|p| p.is_present());
    let mut wanted: Vec<_> =
        planned.chain(beside).map(|p| (key_of(p), p.version_text().to_owned())).collect();
    wanted.sort();
    wanted.dedup();
    wanted
}

/// What a package of dpkg's database is known by.
#[must_use]
pub fn key_of(package: Installed<'_>) -> PackageKey {
    PackageKey { name: package.name().to_owned(), architecture: package.architecture().to_owned() }
}

/// One package whose archive is looked for.
struct Wanted<'a> {
    key: &'a PackageKey,
    version: &'a str,
    installed: Option<Installed<'a>>,
    /// dpkg's record of its files' hashes, if there is one.
    md5sums: Option<Vec<u8>>,
}

impl Wanted<'_> {
    /// Whether an archive is the one that was installed. With `whole` all of it is read, since nobody else vouches for
    /// its bytes.
    fn check(&self, archive: &Path, whole: bool) -> Result<(), String> {
        let control = deb::control(archive)?;
        self.check_name(&control)?;
        let data =
            if whole || control.md5sums != self.md5sums { Some(deb::data_sums(archive)?) } else { None };
        match (&control.md5sums, &self.md5sums) {
            (own, recorded) if own == recorded => Ok(()),
            // dpkg makes the record itself for an archive that brings none.
            (None, Some(recorded)) if data.is_some_and(|data| data == deb::sums(recorded)) => Ok(()),
            _ => Err("its md5sums are not those that dpkg recorded".into()),
        }
    }

    fn check_name(&self, control: &Control) -> Result<(), String> {
        let is = [&control.package, &control.version, &control.architecture].map(String::as_str);
        let wanted = [self.key.name.as_str(), self.version, self.key.architecture.as_str()];
        if is == wanted { Ok(()) } else { Err(format!("it is {} {} for {}", is[0], is[1], is[2])) }
    }
}

/// Gets the present archive of each package of `wanted` into the store. A package of which there is none gets
/// [`Grade::None`], no file, and the reason. Every package of `wanted` is in the answer.
///
/// `scratch` is a directory of this change alone; what is made in it is removed again. Nothing of the host is changed.
pub fn gather(
    root: &Path,
    store: &Store,
    wanted: &[(PackageKey, String)],
    scratch: &Path,
    stage: &mut dyn Stage,
) -> BTreeMap<PackageKey, Kept> {
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        return found;
    }
    let database = match Database::read(root) {
        Ok(database) => database,
        Err(error) => {
            let reason = format!("{error}: {}", error.source);
            return wanted.iter().map(|(key, _)| (key.clone(), none(reason.clone()))).collect();
        }
    };
    let mut missing: Vec<Wanted<'_>> = wanted
        .iter()
        .map(|(key, version)| {
            let installed = database
                .named(&key.name)
                .find(|p| p.architecture() == key.architecture && p.version_text() == version);
            let md5sums = installed.and_then(|p| fs::read(info::path(root, p, "md5sums")).ok());
            Wanted { key, version, installed, md5sums }
        })
        .collect();
    let mut rebuilt = BTreeMap::new();
    missing.retain(|wanted| match from_store(store, wanted, stage) {
        Some(kept) if kept.grade == Grade::Exact => {
            found.insert(wanted.key.clone(), kept);
            false
        }
        Some(kept) => {
            rebuilt.insert(wanted.key.clone(), kept);
            true
        }
        None => true,
    });
    if !missing.is_empty() {
        let names = missing.iter().map(|wanted| wanted.key.name.clone());
        let indexes = Indexes::read(root, names).unwrap_or_else(|error| {
            stage.say(format!("{error}: {}; no archive can be fetched", error.source));
            Indexes::default()
        });
        let cache = root.join(CACHE);
        from_directory(store, &cache, &indexes, &mut missing, &mut found, stage);
        if !missing.is_empty() {
            fetch(store, scratch, &indexes, &mut missing, &mut found, stage);
        }
    }
    for wanted in &missing {
        let kept = match rebuilt.remove(wanted.key) {
            Some(kept) => kept,
            None => rebuild_one(root, store, wanted, scratch, stage),
        };
        if kept.grade == Grade::None {
            stage.say(format!("{} {}: no archive: {}", wanted.key, wanted.version, kept.reason));
        }
        found.insert(wanted.key.clone(), kept);
    }
    if let Err(error) = store.sync() {
        let reason = format!("the store of archives cannot be written: {error}");
        stage.say(reason.clone());
        found.values_mut().for_each(|kept| *kept = none(reason.clone()));
    }
    found
}

fn none(reason: String) -> Kept {
    Kept { file: String::new(), grade: Grade::None, reason }
}

/// The best archive of the store whose bytes are good and that is what is installed.
fn from_store(store: &Store, wanted: &Wanted<'_>, stage: &mut dyn Stage) -> Option<Kept> {
    let all = store.all(wanted.key, wanted.version).unwrap_or_else(|error| {
        stage.say(format!("the store of archives cannot be read: {error}"));
        Vec::new()
    });
    all.into_iter().find(|kept| {
        let judged = match store.verify(kept) {
            Ok(true) => wanted.check(&store.path(kept), false),
            Ok(false) => Err("its bytes are not those that were stored".into()),
            Err(error) => Err(error.to_string()),
        };
        match judged {
            Ok(()) => store.touch(kept).is_ok(),
            Err(reason) => {
                pass_over(&store.path(kept), &reason, stage);
                false
            }
        }
    })
}

fn pass_over(archive: &Path, reason: &str, stage: &mut dyn Stage) {
    stage.say(format!("passed over {}: {reason}", archive.display()));
}

fn from_directory(
    store: &Store,
    directory: &Path,
    indexes: &Indexes,
    missing: &mut Vec<Wanted<'_>>,
    found: &mut BTreeMap<PackageKey, Kept>,
    stage: &mut dyn Stage,
) {
    missing.retain(|wanted| {
        let archive = directory.join(file_name(wanted.key, wanted.version));
        match from_file(store, &archive, indexes, wanted) {
            Ok(Some(kept)) => {
                found.insert(wanted.key.clone(), kept);
                false
            }
            Ok(None) => true,
            Err(reason) => {
                pass_over(&archive, &reason, stage);
                true
            }
        }
    });
}

/// Keeps an archive if it is there and the right one.
fn from_file(
    store: &Store,
    archive: &Path,
    indexes: &Indexes,
    wanted: &Wanted<'_>,
) -> Result<Option<Kept>, String> {
    let mut hashed = match Hashed::read(archive) {
        Ok(hashed) => hashed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let vouched = offers(indexes, wanted).any(|sha256| sha256 == Some(hashed.sha256.as_str()));
    wanted.check(archive, !vouched)?;
    store
        .put(&mut hashed, wanted.key, wanted.version, Grade::Exact, "")
        .map(Some)
        .map_err(|error| format!("it cannot be kept: {error}"))
}

fn offers<'a>(
    indexes: &'a Indexes,
    wanted: &'a Wanted<'_>,
) -> impl Iterator<Item = Option<&'a str>> + use<'a> {
    indexes
        .offers(&wanted.key.name, &wanted.key.architecture, wanted.version)
        .filter(|offer| offer.architecture == wanted.key.architecture)
        .map(|offer| offer.sha256.as_deref())
}

/// Fetches what is offered, all at once. One name that no index knows would make the whole run fail.
fn fetch(
    store: &Store,
    scratch: &Path,
    indexes: &Indexes,
    missing: &mut Vec<Wanted<'_>>,
    found: &mut BTreeMap<PackageKey, Kept>,
    stage: &mut dyn Stage,
) {
    let archives: Vec<String> = missing
        .iter()
        .filter(|wanted| offers(indexes, wanted).next().is_some())
        .map(|wanted| format!("{}={}", wanted.key, wanted.version))
        .collect();
    if archives.is_empty() {
        return;
    }
    let directory = scratch.join("fetched");
    if let Err(error) = make(&directory) {
        stage.say(format!("{} cannot be made: {error}", directory.display()));
        return;
    }
    if !stage.fetch(&archives, &directory) {
        stage.say("not all archives of what is installed could be fetched".into());
    }
    // apt's own user could still write there: what is looked at has to be where only root can.
    let ours = scratch.join("ours");
    let most = missing
        .iter()
        .filter_map(|wanted| {
            let offers = indexes.offers(&wanted.key.name, &wanted.key.architecture, wanted.version);
            offers.map(|offer| offer.size).max()
        })
        .fold(0, u64::saturating_add);
    match make(&ours).and_then(|()| take_over(&directory, &ours, most)) {
        Ok(()) => from_directory(store, &ours, indexes, missing, found, stage),
        Err(error) => stage.say(format!("what was fetched cannot be taken over: {error}")),
    }
    let _ = fs::remove_dir_all(&ours);
    // What stays there is removed with the scratch directory.
    let _ = fs::remove_dir_all(&directory);
}

/// Takes the archives over out of a directory that somebody else can write to, into one of our own. By copying, since a
/// file that is only moved may still be open to whoever wrote it; each is removed once it is copied. `most` is the number
/// of bytes that all of them have by their indexes: somebody else's file with more is not read to its end, which may be
/// nowhere.
///
/// # Errors
/// When one cannot be read or written, is larger than it should be, or is no file of its own: a link may lead to what is not
/// its maker's to read.
pub fn take_over(from: &Path, to: &Path, most: u64) -> io::Result<()> {
    let mut left = most;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "deb") {
            continue;
        }
        let source = open_regular(&path)?;
        let metadata = source.metadata()?;
        if metadata.nlink() != 1 {
            return Err(io::Error::other(format!("{} has a second name elsewhere", path.display())));
        }
        left = left.checked_sub(metadata.len()).ok_or_else(|| {
            io::Error::other(format!("{} is larger than its repository says", path.display()))
        })?;
        let mut copy =
            File::options().write(true).create_new(true).mode(0o600).open(to.join(entry.file_name()))?;
        // One that grows meanwhile is not what its index says anyway.
        io::copy(&mut source.take(metadata.len()), &mut copy)?;
        // There is room for one of them twice.
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// Makes a directory of our own, empty.
///
/// # Errors
/// When what is there cannot be removed, or the directory not be made.
pub fn make(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(directory)
}

fn rebuild_one(
    root: &Path,
    store: &Store,
    wanted: &Wanted<'_>,
    scratch: &Path,
    stage: &mut dyn Stage,
) -> Kept {
    let Some(installed) = wanted.installed else {
        return none("it is not installed at this version".into());
    };
    let rebuilt = rebuild::rebuild(root, installed, scratch);
    let kept = rebuilt.and_then(|rebuilt| {
        let kept = Hashed::read(&rebuilt.archive).and_then(|mut hashed| {
            store.put(&mut hashed, wanted.key, wanted.version, Grade::Rebuilt, &rebuilt.reason)
        });
        let _ = fs::remove_file(&rebuilt.archive);
        kept.map_err(|error| format!("the archive made of its files cannot be kept: {error}"))
    });
    match kept {
        Ok(kept) => {
            stage.say(format!("{} {}: {}", wanted.key, wanted.version, kept.reason));
            kept
        }
        Err(reason) => none(reason),
    }
}

/// An archive that is about to be installed is not the one that was planned, or cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Its hash is another one.
    #[error("{path} has the SHA-256 {is}, planned was {planned}; remove it and try again")]
    Other {
        /// The archive.
        path: PathBuf,
        /// Its hash.
        is: String,
        /// The plan's.
        planned: String,
    },
    /// It cannot be read, or the store not be written.
    #[error("{path} cannot be kept for going back: {source}")]
    File {
        /// The archive.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Keeps the archives that a plan is about to install: they are what the next change goes back to. `archives` is the
/// directory where they lie under apt's names. An archive that does not lie there, or whose hash the plan does not
/// know, is not in the answer.
///
/// # Errors
/// See [`KeepError`]; nothing of the host was changed then.
pub fn keep_new(
    store: &Store,
    plan: &Plan,
    archives: &Path,
) -> Result<BTreeMap<PackageKey, Kept>, KeepError> {
    let mut found = BTreeMap::new();
    for change in plan.changes.iter().filter(|change| brings_archive(change)) {
        let (Some(version), Some(planned)) = (&change.new_version, &change.archive_sha256) else { continue };
        let key = PackageKey {
            name: change.name.name().to_owned(),
            architecture: change.architecture.as_str().to_owned(),
        };
        let path = archives.join(file_name(&key, version.as_str()));
        let failed = |source| KeepError::File { path: path.clone(), source };
        let mut hashed = match Hashed::read(&path) {
            Ok(hashed) => hashed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        if !planned.eq_ignore_ascii_case(&hashed.sha256) {
            return Err(KeepError::Other { path, is: hashed.sha256, planned: planned.clone() });
        }
        let kept = store.put(&mut hashed, &key, version.as_str(), Grade::Exact, "").map_err(failed)?;
        found.insert(key, kept);
    }
    store.sync().map_err(|source| KeepError::File { path: archives.to_owned(), source })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use patch_types::PlanHash;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::{
        apt::{
            argv::Argv,
            testing::{Host, Package, Quiet, key, plan},
        },
        run::RunError,
    };

    const FILES: &[(&str, &str)] = &[("usr/share/aa/x", "x"), ("etc/aa.conf", "shipped")];

    fn gather_one(host: &Host, stage: &mut Quiet) -> Kept {
        let store = Store::open(&host.at("archives")).unwrap();
        let wanted = [(key("aa"), "1:1.0".to_owned())];
        let mut found = gather(&host.root, &store, &wanted, &host.at("scratch"), stage);
        assert_eq!(fs::read_dir(host.at("scratch")).unwrap().count(), 0, "litter");
        found.remove(&key("aa")).unwrap()
    }

    #[test]
    fn the_cached_archive_is_kept_and_found_again() {
        let host = Host::new();
        let archive = host.deb("aa", "1:1.0", &Package { files: FILES, ..Package::default() });
        assert!(archive.ends_with("aa_1%3a1.0_all.deb"));
        host.install(&archive);
        let cached = host.cache(&archive);
        let mut stage = Quiet::default();
        let kept = gather_one(&host, &mut stage);
        assert_eq!((kept.grade, kept.reason.as_str()), (Grade::Exact, ""));
        fs::remove_file(cached).unwrap();
        assert_eq!(gather_one(&host, &mut stage), kept);
        assert!(stage.said.is_empty() && stage.asked.is_empty(), "{:?}", stage.said);
    }

    #[test]
    fn dpkgs_own_hashes_are_compared_where_the_archive_has_none() {
        let host = Host::new();
        let more: fn(&Path) = |tree| {
            fs::hard_link(tree.join("usr/share/aa/x"), tree.join("usr/share/aa/y")).unwrap();
            fs::write(tree.join("usr/share/aa").join("n".repeat(200)), "long").unwrap();
        };
        let package = Package {
            files: FILES,
            conffiles: &["etc/aa.conf"],
            without_md5sums: true,
            more: Some(more),
            ..Package::default()
        };
        let archive = host.deb("aa", "1:1.0", &package);
        host.install(&archive);
        host.cache(&archive);
        let mut stage = Quiet::default();
        assert_eq!(gather_one(&host, &mut stage).grade, Grade::Exact, "{:?}", stage.said);
    }

    #[test]
    fn a_wrong_or_corrupt_archive_is_passed_over() {
        let host = Host::new();
        let archive = host.deb("aa", "1:1.0", &Package { files: FILES, ..Package::default() });
        host.install(&archive);
        let good = fs::read(&archive).unwrap();
        let other = [("usr/share/aa/x", "other")];
        let wrong = host.deb("aa", "1:1.0", &Package { files: &other, ..Package::default() });
        let cached = host.cache(&wrong);
        let mut stage = Quiet::default();
        let kept = gather_one(&host, &mut stage);
        assert_eq!(kept.grade, Grade::Rebuilt);
        assert!(stage.said[0].contains("md5sums"), "{:?}", stage.said);
        // The last bytes are those of the files, which the control files do not tell.
        let mut bytes = good.clone();
        let at = bytes.len() - 20;
        bytes[at] ^= 0x55;
        for bad in [&bytes[..], &good[..good.len() - 30], b"no archive"] {
            fs::write(&cached, bad).unwrap();
            let mut stage = Quiet::default();
            assert_eq!(gather_one(&host, &mut stage).grade, Grade::Rebuilt, "{:?}", stage.said);
            assert!(stage.said[0].starts_with("passed over"), "{:?}", stage.said);
        }
        fs::write(&cached, &good).unwrap();
        assert_eq!(gather_one(&host, &mut Quiet::default()).grade, Grade::Exact);
    }

    #[test]
    fn only_what_an_index_offers_is_fetched() {
        let host = Host::new();
        let aa = host.deb("aa", "1:1.0", &Package { files: FILES, ..Package::default() });
        let other = [("usr/share/bb/x", "x")];
        let bb = host.deb("bb", "1", &Package { files: &other, ..Package::default() });
        host.install(&aa);
        host.install(&bb);
        fs::remove_file(bb).unwrap();
        let bytes = fs::read(&aa).unwrap();
        let (sha256, size) = (hex::encode(Sha256::digest(&bytes)), bytes.len());
        fs::write(
            host.root.join("var/lib/apt/lists/repo.test_dists_stable_main_binary-amd64_Packages"),
            format!(
                "Package: aa\nVersion: 1:1.0\nArchitecture: all\nFilename: x.deb\nSize: {size}\nSHA256: {sha256}\n\n\
                 Package: bb\nVersion: 2\nArchitecture: all\nFilename: x.deb\nSize: {size}\nSHA256: {sha256}\n\n"
            ),
        )
        .unwrap();
        let store = Store::open(&host.at("archives")).unwrap();
        let wanted = [(key("aa"), "1:1.0".to_owned()), (key("bb"), "1".to_owned())];
        let mut stage = Quiet { offers: Some(host.at("debs")), ..Quiet::default() };
        let found = gather(&host.root, &store, &wanted, &host.at("scratch"), &mut stage);
        assert_eq!(stage.asked, ["aa:all=1:1.0"]);
        assert_eq!(found[&key("aa")].grade, Grade::Exact);
        assert_eq!(found[&key("bb")].grade, Grade::Rebuilt);
    }

    #[test]
    fn what_is_about_to_be_installed_is_kept_if_it_is_the_planned_archive() {
        let host = Host::new();
        let archive = host.deb("aa", "1:1.0", &Package { files: FILES, ..Package::default() });
        let store = Store::open(&host.at("archives")).unwrap();
        let mut plan = plan(&[(Action::Install, "aa", None, Some("1:1.0"))]);
        plan.changes[0].archive_sha256 = Some(hex::encode(Sha256::digest(fs::read(&archive).unwrap())));
        assert_eq!(keep_new(&store, &plan, &host.at("debs")).unwrap()[&key("aa")].grade, Grade::Exact);
        assert!(store.find(&key("aa"), "1:1.0").is_some());
        plan.changes[0].archive_sha256 = Some(PlanHash::of(&[]).to_string());
        assert!(matches!(keep_new(&store, &plan, &host.at("debs")), Err(KeepError::Other { .. })));
        assert!(keep_new(&store, &plan, &host.at("scratch")).unwrap().is_empty());
    }
    /// Fetches as somebody would who is up to no good: what was fetched stays open, or has a second name.
    struct Sly {
        offer: PathBuf,
        links: bool,
        open: Option<File>,
    }

    impl Stage for Sly {
        fn run(&mut self, _argv: Argv) -> Result<Option<i32>, RunError> {
            unreachable!("recording changes nothing")
        }

        fn fetch(&mut self, _archives: &[String], directory: &Path) -> bool {
            let to = directory.join(self.offer.file_name().unwrap());
            if self.links {
                fs::hard_link(&self.offer, &to).unwrap();
            } else {
                fs::copy(&self.offer, &to).unwrap();
            }
            self.open = Some(File::options().write(true).open(&to).unwrap());
            true
        }

        fn say(&mut self, _line: String) {}
    }

    #[test]
    fn whoever_fetched_an_archive_cannot_change_the_one_that_is_kept() {
        for links in [false, true] {
            let host = Host::new();
            let offer = host.deb("aa", "1:1.0", &Package { files: FILES, ..Package::default() });
            host.install(&offer);
            let bytes = fs::read(&offer).unwrap();
            let (sha256, size) = (hex::encode(Sha256::digest(&bytes)), bytes.len());
            fs::write(
                host.root.join("var/lib/apt/lists/repo.test_dists_stable_main_binary-amd64_Packages"),
                format!(
                    "Package: aa\nVersion: 1:1.0\nArchitecture: all\nFilename: x.deb\nSize: {size}\nSHA256: {sha256}\n\n"
                ),
            )
            .unwrap();
            let store = Store::open(&host.at("archives")).unwrap();
            let mut sly = Sly { offer, links, open: None };
            let wanted = [(key("aa"), "1:1.0".to_owned())];
            let found = gather(&host.root, &store, &wanted, &host.at("scratch"), &mut sly);
            sly.open.unwrap().set_len(3).unwrap();
            let kept = &found[&key("aa")];
            assert_eq!(kept.grade, if links { Grade::Rebuilt } else { Grade::Exact });
            assert!(store.verify(kept).unwrap(), "it was changed after it had been looked at");
        }
    }
}
