//! What is otherwise now than in a snapshot: two trees, walked side by side.
//!
//! A snapshot keeps the numbers of its inodes and the times of their last change, so that a file is as it was if both are the
//! same: nothing has to be read for that, and what was written with its old date and size shows as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{self, DirEntry, Metadata},
    io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    vec,
};

use patch_types::snapshot::{ChangedFile, FileChange, MAX_FILES};
use sha2::{Digest as _, Sha256};

use super::SnapshotError;

/// Where files come, change and go by themselves: each of these stands for all that lies in it, so that a listing of a
/// host at work stays true long enough to be answered.
const RESTLESS: &[&str] =
    &["/tmp", "/var/backups", "/var/cache", "/var/lib/apt", "/var/lib/systemd", "/var/log", "/var/tmp"];

/// As much of a path as is shown, in bytes; the hash is of all of it.
const LONGEST: usize = 400;

/// The inode of what stands in a snapshot for a subvolume that lay there.
const STUB: u64 = 2;

/// What is not listed: each with all that lies in it.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Paths of the job's packages.
    pub paths: BTreeSet<PathBuf>,
    /// Directories that are carried over, or are told of in another way.
    pub directories: Vec<PathBuf>,
}

impl Known {
    /// Adds a path of a package's list. What dpkg calls `/lib/x` lies in `/usr/lib/x` where the two are merged.
    pub fn add(&mut self, path: &Path) {
        let first = path.iter().nth(1).and_then(|part| part.to_str()).unwrap_or_default();
        if matches!(first, "bin" | "sbin") || first.starts_with("lib") {
            self.paths.insert(Path::new("/usr").join(path.strip_prefix("/").unwrap_or(path)));
        }
        self.paths.insert(path.to_owned());
    }

    /// Whether it is passed over with all that lies in it.
    fn has_all_of(&self, path: &Path) -> bool {
        self.directories.iter().any(|directory| path == directory)
    }

    /// Whether it is passed over itself; of a directory that many packages share, what lies in it is not.
    fn has(&self, path: &Path) -> bool {
        self.paths.contains(path) || self.has_all_of(path)
    }
}

/// What is otherwise.
#[derive(Debug, Default)]
pub struct Differences {
    files: Vec<ChangedFile>,
    total: u64,
    hash: Sha256,
    restless: BTreeMap<&'static str, u64>,
}

/// One directory on the way down.
struct Level {
    /// Below the tree.
    path: PathBuf,
    names: vec::IntoIter<OsString>,
}

impl Differences {
    /// Compares a tree of the host, which is seen at `now` and in which paths begin with `point`, with the same one `then`.
    ///
    /// # Errors
    /// When something cannot be looked at: what is not seen must not be taken for unchanged.
    pub fn compare(
        &mut self,
        now: &Path,
        then: &Path,
        point: &Path,
        known: &Known,
    ) -> Result<(), SnapshotError> {
        let device = fs::symlink_metadata(now).map_err(|error| SnapshotError::file(now, error))?.dev();
        let mut way = vec![Level { path: PathBuf::new(), names: names(now, then)? }];
        while let Some(level) = way.last_mut() {
            let Some(name) = level.names.next() else {
                way.pop();
                continue;
            };
            let below = level.path.join(&name);
            let path = point.join(&below);
            if known.has_all_of(&path) {
                continue;
            }
            let (there, was) = (look(&now.join(&below))?, look(&then.join(&below))?);
            // Another file system, or a subvolume: it does not go back.
            if there.as_ref().is_some_and(|meta| meta.dev() != device) {
                continue;
            }
            match (there, was) {
                (Some(there), Some(was)) if there.is_dir() && was.is_dir() => {
                    if owned(&there) != owned(&was) && !known.has(&path) {
                        self.note(&path, FileChange::Changed, 1);
                    }
                    way.push(Level { names: names(&now.join(&below), &then.join(&below))?, path: below });
                }
                (Some(there), Some(was)) => {
                    if !is_as_it_was(&there, &was) && !known.has(&path) {
                        self.note(&path, FileChange::Changed, 1);
                    }
                }
                (Some(there), None) => {
                    self.whole(&path, &now.join(&below), &there, FileChange::Added, known)?;
                }
                (None, Some(was)) if was.is_dir() && was.ino() == STUB => {}
                (None, Some(was)) => {
                    self.whole(&path, &then.join(&below), &was, FileChange::Removed, known)?;
                }
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// Something that is on one side only, with all that lies in it.
    fn whole(
        &mut self,
        path: &Path,
        at: &Path,
        meta: &Metadata,
        change: FileChange,
        known: &Known,
    ) -> Result<(), SnapshotError> {
        if !meta.is_dir() {
            if !known.has(path) {
                self.note(path, change, 1);
            }
            return Ok(());
        }
        let mut files = 0;
        let mut has_known = known.has(path);
        let mut dirs = vec![PathBuf::new()];
        while let Some(dir) = dirs.pop() {
            for entry in entries(&at.join(&dir))? {
                let below = dir.join(entry.file_name());
                let at = path.join(&below);
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                has_known |= known.has(&at);
                if is_directory && !known.has_all_of(&at) {
                    dirs.push(below);
                } else if !known.has(&at) {
                    files += 1;
                }
            }
        }
        // A directory in which all is the job's is the job's.
        if files > 0 || !has_known {
            let mut shown = path.as_os_str().to_owned();
            shown.push("/");
            self.note(Path::new(&shown), change, files);
        }
        Ok(())
    }

    fn note(&mut self, path: &Path, change: FileChange, files: u64) {
        if let Some(restless) = RESTLESS.iter().find(|directory| path.starts_with(directory)) {
            *self.restless.entry(restless).or_default() += files;
            return;
        }
        self.tell(path, change, files);
    }

    fn tell(&mut self, path: &Path, change: FileChange, files: u64) {
        self.total += 1;
        // How much lies in a new directory is not what is approved, but that it goes.
        self.hash.update(path.as_os_str().as_bytes());
        self.hash.update([0]);
        self.hash.update(change.as_str());
        self.hash.update([b'\n']);
        if self.files.len() < MAX_FILES {
            let mut path = path.to_string_lossy().into_owned();
            if path.len() > LONGEST {
                path.truncate(path.floor_char_boundary(LONGEST));
                path.push('…');
            }
            self.files.push(ChangedFile { path, change, files });
        }
    }

    /// Makes the hash one of this, too.
    pub fn add(&mut self, line: &str) {
        self.hash.update(line);
        self.hash.update([0, b'\n']);
    }

    /// What is listed, how many entries there are, and the SHA-256 of all of them, in hexadecimal.
    #[must_use]
    pub fn listed(mut self) -> (Vec<ChangedFile>, u64, String) {
        for (directory, files) in std::mem::take(&mut self.restless) {
            self.tell(Path::new(&format!("{directory}/")), FileChange::Changed, files);
        }
        (self.files, self.total, hex::encode(self.hash.finalize()))
    }
}

/// Whether something went while it was looked at.
fn has_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn look(path: &Path) -> Result<Option<Metadata>, SnapshotError> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if has_gone(&error) => Ok(None),
        Err(error) => Err(SnapshotError::file(path, error)),
    }
}

/// What lies in a directory; nothing in one that has gone.
fn entries(path: &Path) -> Result<Vec<DirEntry>, SnapshotError> {
    match fs::read_dir(path).and_then(Iterator::collect) {
        Ok(entries) => Ok(entries),
        Err(error) if has_gone(&error) => Ok(Vec::new()),
        Err(error) => Err(SnapshotError::file(path, error)),
    }
}

fn owned(meta: &Metadata) -> (u32, u32, u32) {
    (meta.mode(), meta.uid(), meta.gid())
}

fn is_as_it_was(now: &Metadata, then: &Metadata) -> bool {
    (now.ino(), now.ctime(), now.ctime_nsec(), now.mode())
        == (then.ino(), then.ctime(), then.ctime_nsec(), then.mode())
}

/// The names in a directory on both sides, in order.
fn names(now: &Path, then: &Path) -> Result<vec::IntoIter<OsString>, SnapshotError> {
    let mut names = BTreeSet::new();
    for side in [now, then] {
        names.extend(entries(side)?.iter().map(DirEntry::file_name));
    }
    Ok(names.into_iter().collect::<Vec<_>>().into_iter())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two trees in which what was not touched has the same inodes, as in a snapshot.
    fn trees(files: &[&str]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (now, then) = (dir.path().join("now"), dir.path().join("then"));
        for file in files {
            for tree in [&now, &then] {
                fs::create_dir_all(tree.join(file).parent().unwrap()).unwrap();
            }
            fs::write(then.join(file), "x").unwrap();
            fs::hard_link(then.join(file), now.join(file)).unwrap();
        }
        (dir, now, then)
    }

    fn listed(now: &Path, then: &Path, known: &Known) -> (Vec<(String, FileChange, u64)>, String) {
        let mut differences = Differences::default();
        differences.compare(now, then, Path::new("/"), known).unwrap();
        let (files, total, hash) = differences.listed();
        assert_eq!(files.len() as u64, total);
        let files = files.into_iter().map(|file| (file.path, file.change, file.files)).collect();
        (files, hash)
    }

    #[test]
    fn what_came_changed_and_went_is_told() {
        let (_dir, now, then) =
            trees(&["etc/a", "etc/b", "etc/c", "srv/x/y", "usr/lib/pkg/f", "var/log/syslog"]);
        assert_eq!(listed(&now, &then, &Known::default()).0, []);
        // The same size, and the old date.
        let date = fs::metadata(now.join("etc/a")).unwrap().modified().unwrap();
        fs::remove_file(now.join("etc/a")).unwrap();
        fs::write(now.join("etc/a"), "y").unwrap();
        fs::File::options().write(true).open(now.join("etc/a")).unwrap().set_modified(date).unwrap();
        fs::remove_file(now.join("etc/b")).unwrap();
        fs::create_dir_all(now.join("home/me/deep")).unwrap();
        fs::write(now.join("home/me/deep/1"), "").unwrap();
        fs::write(now.join("home/me/2"), "").unwrap();
        fs::remove_dir_all(now.join("srv/x")).unwrap();
        for log in ["syslog", "auth.log"] {
            let _ = fs::remove_file(now.join("var/log").join(log));
            fs::write(now.join("var/log").join(log), "more").unwrap();
        }
        fs::remove_file(now.join("usr/lib/pkg/f")).unwrap();
        let mut known = Known::default();
        known.add(Path::new("/lib/pkg/f"));
        let (files, hash) = listed(&now, &then, &known);
        let expected = [
            ("/etc/a", FileChange::Changed, 1),
            ("/etc/b", FileChange::Removed, 1),
            ("/home/", FileChange::Added, 2),
            ("/srv/x/", FileChange::Removed, 1),
            ("/var/log/", FileChange::Changed, 2),
        ];
        assert_eq!(files, expected.map(|(path, change, n)| (path.to_owned(), change, n)));
        // What goes on by itself makes no other listing, what somebody does makes one.
        fs::write(now.join("var/log/third"), "").unwrap();
        fs::write(now.join("home/me/3"), "").unwrap();
        assert_eq!(listed(&now, &then, &known).1, hash);
        fs::remove_file(now.join("etc/c")).unwrap();
        assert_ne!(listed(&now, &then, &known).1, hash);
    }

    #[test]
    fn a_directory_of_the_jobs_own_is_not_listed() {
        let (_dir, now, then) = trees(&["etc/a"]);
        fs::create_dir_all(now.join("usr/share/pkg")).unwrap();
        fs::write(now.join("usr/share/pkg/f"), "").unwrap();
        let mut known = Known::default();
        // A package's list has every directory on the way.
        known.add(Path::new("/etc"));
        fs::write(now.join("etc/new"), "").unwrap();
        let expected = ("/etc/new".to_owned(), FileChange::Added, 1);
        assert!(listed(&now, &then, &known).0.contains(&expected));
        fs::remove_file(now.join("etc/new")).unwrap();
        known.add(Path::new("/usr/share/pkg/f"));
        assert_eq!(listed(&now, &then, &known).0, []);
        fs::write(now.join("usr/share/pkg/theirs"), "").unwrap();
        assert_eq!(listed(&now, &then, &known).0, [("/usr/".to_owned(), FileChange::Added, 1)]);
        known.directories.push("/usr".into());
        assert_eq!(listed(&now, &then, &known).0, []);
    }

    #[test]
    fn a_listing_is_bounded_and_its_hash_is_of_all() {
        let (_dir, now, then) = trees(&["etc/a"]);
        for n in 0..MAX_FILES + 5 {
            fs::write(now.join(format!("etc/new{n:05}")), "").unwrap();
        }
        let hash = |now: &Path| {
            let mut differences = Differences::default();
            differences.compare(now, &then, Path::new("/"), &Known::default()).unwrap();
            let (files, total, hash) = differences.listed();
            assert_eq!(files.len(), MAX_FILES);
            (total, hash)
        };
        let (total, before) = hash(&now);
        assert_eq!(total, (MAX_FILES + 5) as u64);
        fs::rename(now.join(format!("etc/new{:05}", MAX_FILES + 4)), now.join("etc/zzz")).unwrap();
        assert_ne!(hash(&now).1, before);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn each_file_that_was_touched_is_listed_and_no_other(
            touched in prop::collection::btree_set(0_usize..12, 0..6),
            removed in prop::collection::btree_set(0_usize..12, 0..6),
        ) {
            let all: Vec<String> = (0..12).map(|n| format!("d{}/f{n}", n % 3)).collect();
            let names: Vec<&str> = all.iter().map(String::as_str).collect();
            let (_dir, now, then) = trees(&names);
            for n in &touched {
                fs::remove_file(now.join(names[*n])).unwrap();
                fs::write(now.join(names[*n]), "x").unwrap();
            }
            for n in &removed {
                fs::remove_file(now.join(names[*n])).unwrap();
            }
            let mut expected: Vec<(String, FileChange, u64)> = touched
                .union(&removed)
                .map(|n| {
                    let change = if removed.contains(n) { FileChange::Removed } else { FileChange::Changed };
                    (format!("/{}", names[*n]), change, 1)
                })
                .collect();
            expected.sort();
            let mut found = listed(&now, &then, &Known::default()).0;
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }
}
