//! How much more a file system would hold after what was written to an overlay of it.
//!
//! The overlay says it by its own marks: a device without a number where something is gone, attributes for a directory that
//! hides what is below it, for what was renamed, and for a file of which only the owner or the mode is new. Nothing runs in
//! the image any more when this looks.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, Metadata},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

/// How many of the host's files are looked at below directories that are gone. What is not looked at is reckoned as still there.
const MOST: usize = 1_000_000;

/// What a file system is reckoned to grow by.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Growth {
    /// What was written, in bytes.
    pub(super) written: u64,
    /// What is more than before.
    pub(super) net: i64,
}

impl Growth {
    /// That of another part of the same pool.
    pub(super) fn add(&mut self, other: Self) {
        self.written = self.written.saturating_add(other.written);
        self.net = self.net.saturating_add(other.net);
    }

    /// How much has to be free for it: the old files of a package go when all of its new ones are there.
    pub(super) fn needed(self, largest: u64) -> u64 {
        u64::try_from(self.net).unwrap_or(0).saturating_add(largest.min(self.written))
    }
}

/// How much more `lower` would hold with what is in `upper`.
pub(super) fn grown(upper: &Path, lower: &Path) -> Growth {
    let Ok(root) = fs::symlink_metadata(lower) else { return Growth::default() };
    let mut tally = Tally::new(lower, root.dev());
    let mut due = vec![(upper.to_owned(), Some(lower.to_owned()))];
    while let Some((above, below)) = due.pop() {
        let Ok(entries) = fs::read_dir(&above) else { continue };
        for entry in entries.flatten() {
            // By the directory's own entry: what is a link is looked at as one.
            let Ok(meta) = entry.metadata() else { continue };
            let path = entry.path();
            let below = below.as_ref().map(|below| below.join(entry.file_name()));
            if meta.is_dir() {
                let below = tally.directory(&path, below);
                due.push((path, below));
            } else {
                tally.file(&path, &meta, below.as_deref());
            }
        }
    }
    tally.end()
}

/// Several names of one file of the host: its room is free when all of them are gone.
#[derive(Debug, Clone, Copy)]
struct Names {
    gone: i64,
    all: u64,
    bytes: i64,
}

#[derive(Debug)]
struct Tally<'a> {
    /// The host's file system, and its number.
    root: &'a Path,
    device: u64,
    growth: Growth,
    /// Files of the overlay that were counted and have other names.
    counted: BTreeSet<u64>,
    names: BTreeMap<u64, Names>,
    looked_at: usize,
}

impl<'a> Tally<'a> {
    fn new(root: &'a Path, device: u64) -> Self {
        Self {
            root,
            device,
            growth: Growth::default(),
            counted: BTreeSet::new(),
            names: BTreeMap::new(),
            looked_at: 0,
        }
    }

    /// A directory of the overlay. Gives where on the host lies what it shows besides its own, if anything does.
    fn directory(&mut self, path: &Path, below: Option<PathBuf>) -> Option<PathBuf> {
        let moved = attribute(path, "trusted.overlay.redirect");
        let is_opaque = attribute(path, "trusted.overlay.opaque").is_some_and(|value| value == b"y");
        let found = below.as_deref().and_then(|below| self.of_host(below));
        let is_merged = moved.is_none() && !is_opaque && found.as_ref().is_some_and(Metadata::is_dir);
        if is_merged {
            return below;
        }
        if let Some(below) = &below {
            self.gone(below, 1);
        }
        let from = self.moved_from(below.as_deref(), &moved?)?;
        // It is where it was, under another name; at the old one there is a mark that it is gone.
        self.gone(&from, -1);
        self.of_host(&from).filter(Metadata::is_dir)?;
        Some(from)
    }

    fn file(&mut self, path: &Path, meta: &Metadata, below: Option<&Path>) {
        if attribute(path, "trusted.overlay.metacopy").is_some() {
            // The content is the host's, here or where it was renamed from.
            if let Some(moved) = attribute(path, "trusted.overlay.redirect") {
                if let Some(below) = below {
                    self.gone(below, 1);
                }
                if let Some(from) = self.moved_from(below, &moved) {
                    self.gone(&from, -1);
                }
            }
            return;
        }
        if let Some(below) = below {
            self.gone(below, 1);
        }
        // A device without a number says that something is gone, and what else is no plain file takes no room.
        if !meta.is_file() || (meta.nlink() > 1 && !self.counted.insert(meta.ino())) {
            return;
        }
        let bytes = meta.blocks().saturating_mul(512);
        self.growth.written = self.growth.written.saturating_add(bytes);
        self.growth.net = self.growth.net.saturating_add(signed(bytes));
    }

    /// Counts a file of the host, or all that are below a directory, as gone (1) or as there again (-1).
    fn gone(&mut self, path: &Path, times: i64) {
        let mut due = vec![path.to_owned()];
        while let Some(path) = due.pop() {
            let Some(meta) = self.of_host(&path) else { continue };
            if meta.is_dir() {
                let entries = fs::read_dir(&path).into_iter().flatten().flatten();
                for entry in entries {
                    self.looked_at += 1;
                    if self.looked_at > MOST {
                        return;
                    }
                    due.push(entry.path());
                }
                continue;
            }
            let bytes = signed(meta.blocks().saturating_mul(512));
            if meta.nlink() > 1 {
                let names =
                    self.names.entry(meta.ino()).or_insert(Names { gone: 0, all: meta.nlink(), bytes });
                names.gone += times;
            } else {
                self.growth.net = self.growth.net.saturating_sub(bytes.saturating_mul(times));
            }
        }
    }

    /// What the host has at a path that leads through no link and into no other file system: those may lead to where whoever
    /// looks is kept waiting.
    fn of_host(&self, path: &Path) -> Option<Metadata> {
        let below = path.strip_prefix(self.root).ok()?;
        let mut path = self.root.to_owned();
        let mut meta = fs::symlink_metadata(&path).ok()?;
        for part in below.components() {
            let Component::Normal(name) = part else { return None };
            if !meta.is_dir() {
                return None;
            }
            path.push(name);
            meta = fs::symlink_metadata(&path).ok()?;
            if meta.dev() != self.device {
                return None;
            }
        }
        Some(meta)
    }

    /// Where on the host lies what was renamed: an absolute path in the file system, or another name beside it.
    fn moved_from(&self, below: Option<&Path>, moved: &[u8]) -> Option<PathBuf> {
        let from = Path::new(OsStr::from_bytes(moved));
        match from.strip_prefix("/") {
            Ok(from) => Some(self.root.join(from)),
            Err(_) => Some(below?.parent()?.join(from)),
        }
    }

    fn end(self) -> Growth {
        let mut growth = self.growth;
        for names in self.names.values() {
            if names.gone > 0 && names.gone.unsigned_abs() >= names.all {
                growth.net = growth.net.saturating_sub(names.bytes);
            }
        }
        growth
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A mark of the overlay's.
fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0_u8; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An upper and a lower directory, and a file of so many KiB in one of them.
    struct Sides(tempfile::TempDir);

    impl Sides {
        fn new() -> Self {
            let sides = Self(tempfile::tempdir().unwrap());
            for side in ["upper", "lower"] {
                fs::create_dir_all(sides.at(side)).unwrap();
            }
            sides
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn write(&self, path: &str, kib: usize) {
            fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
            fs::write(self.at(path), vec![1; kib << 10]).unwrap();
        }

        /// Written and net, in KiB.
        fn grown(&self) -> (u64, i64) {
            let growth = grown(&self.at("upper"), &self.at("lower"));
            (growth.written >> 10, growth.net >> 10)
        }
    }

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    /// What the kernel leaves where something is gone.
    fn whiteout(path: &Path) {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        mknod(path, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
    }

    fn mark(path: &Path, name: &str, value: &str) {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(path, name, value.as_bytes(), flags).unwrap();
    }

    #[test]
    fn what_grows_is_what_is_new() {
        let sides = Sides::new();
        sides.write("lower/usr/a", 64);
        sides.write("upper/usr/a", 96);
        sides.write("upper/usr/b", 32);
        assert_eq!(sides.grown(), (128, 64));
    }

    #[test]
    fn a_directory_that_is_gone_frees_what_was_in_it() {
        if !is_root() {
            return;
        }
        let sides = Sides::new();
        sides.write("lower/lib/old/a", 64);
        sides.write("lower/lib/old/below/b", 32);
        sides.write("lower/lib/c", 16);
        fs::create_dir_all(sides.at("upper/lib")).unwrap();
        whiteout(&sides.at("upper/lib/old"));
        assert_eq!(sides.grown(), (0, -96));
        whiteout(&sides.at("upper/lib/c"));
        assert_eq!(sides.grown(), (0, -112));
    }

    #[test]
    fn a_directory_that_was_made_anew_hides_the_old_one() {
        if !is_root() {
            return;
        }
        let sides = Sides::new();
        sides.write("lower/lib/x/a", 64);
        sides.write("upper/lib/x/b", 16);
        assert_eq!(sides.grown(), (16, 16));
        mark(&sides.at("upper/lib/x"), "trusted.overlay.opaque", "y");
        assert_eq!(sides.grown(), (16, -48));
    }

    #[test]
    fn what_is_renamed_takes_as_much_as_before() {
        if !is_root() {
            return;
        }
        let sides = Sides::new();
        sides.write("lower/lib/old/a", 64);
        sides.write("lower/lib/old/b", 32);
        // The directory, and in it one file that is new.
        sides.write("upper/lib/new/b", 48);
        whiteout(&sides.at("upper/lib/old"));
        mark(&sides.at("upper/lib/new"), "trusted.overlay.redirect", "/lib/old");
        assert_eq!(sides.grown(), (48, 16));
        mark(&sides.at("upper/lib/new"), "trusted.overlay.redirect", "old");
        assert_eq!(sides.grown(), (48, 16));
        // A file of which only the name and the owner are new.
        sides.write("lower/etc/conf", 16);
        fs::create_dir_all(sides.at("upper/etc")).unwrap();
        fs::write(sides.at("upper/etc/conf.old"), "").unwrap();
        mark(&sides.at("upper/etc/conf.old"), "trusted.overlay.metacopy", "");
        mark(&sides.at("upper/etc/conf.old"), "trusted.overlay.redirect", "conf");
        whiteout(&sides.at("upper/etc/conf"));
        assert_eq!(sides.grown(), (48, 16));
    }

    #[test]
    fn a_file_with_several_names_counts_once() {
        if !is_root() {
            return;
        }
        let sides = Sides::new();
        sides.write("lower/bin/a", 64);
        fs::hard_link(sides.at("lower/bin/a"), sides.at("lower/bin/b")).unwrap();
        sides.write("upper/bin/c", 32);
        fs::hard_link(sides.at("upper/bin/c"), sides.at("upper/bin/d")).unwrap();
        whiteout(&sides.at("upper/bin/a"));
        assert_eq!(sides.grown(), (32, 32));
        whiteout(&sides.at("upper/bin/b"));
        assert_eq!(sides.grown(), (32, -32));
    }

    #[test]
    fn no_link_of_the_hosts_is_followed() {
        let sides = Sides::new();
        sides.write("away/x", 64);
        std::os::unix::fs::symlink(sides.at("away"), sides.at("lower/link")).unwrap();
        sides.write("upper/link/x", 16);
        assert_eq!(sides.grown(), (16, 16));
    }

    #[test]
    fn room_is_needed_for_the_largest_beside_its_old_version() {
        let mut growth = Growth { written: 100, net: -40 };
        assert_eq!(growth.needed(30), 30);
        growth.add(Growth { written: 10, net: 60 });
        assert_eq!(growth.needed(1000), 130);
    }
}
