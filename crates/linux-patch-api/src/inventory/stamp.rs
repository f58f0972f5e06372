//! Telling whether files have changed without reading them.

use std::{
    fs::Metadata,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// What a set of files looked like. Two equal stamps mean that none was written, replaced, added or removed between.
/// (The time is the kernel's of the last change of the inode, which no program can set back.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

impl Stamp {
    /// The stamp of the installed packages: dpkg's status, what dpkg has not merged into it yet, and apt's marks.
    #[must_use]
    pub(super) fn of_packages(root: &Path) -> Self {
        let mut hasher = DefaultHasher::new();
        for file in ["var/lib/dpkg/status", "var/lib/apt/extended_states"] {
            file_into(&root.join(file), &mut hasher);
        }
        directory_into(&root.join("var/lib/dpkg/updates"), &mut hasher);
        Self(hasher.finish())
    }

    /// The stamp of all that the solver's choice of candidates depends on, and of what tells when the indexes were last
    /// fetched: a fetch that brings nothing new changes only that.
    #[must_use]
    pub(crate) fn of_candidates(root: &Path) -> Self {
        let mut hasher = DefaultHasher::new();
        Self::of_packages(root).0.hash(&mut hasher);
        for file in ["var/lib/apt/lists", "var/lib/apt/periodic/update-success-stamp"] {
            file_into(&root.join(file), &mut hasher);
        }
        for name in ["sources.list", "preferences", "apt.conf"] {
            file_into(&root.join("etc/apt").join(name), &mut hasher);
            directory_into(&root.join("etc/apt").join(format!("{name}.d")), &mut hasher);
        }
        Self(hasher.finish())
    }
}

fn file_into(path: &Path, hasher: &mut DefaultHasher) {
    match std::fs::metadata(path) {
        Ok(meta) => metadata_into(&meta, hasher),
        Err(_) => false.hash(hasher),
    }
}

fn metadata_into(meta: &Metadata, hasher: &mut DefaultHasher) {
    (
        true,
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.ctime(),
        meta.ctime_nsec(),
        meta.mtime(),
        meta.mtime_nsec(),
    )
        .hash(hasher);
}

fn directory_into(path: &Path, hasher: &mut DefaultHasher) {
    file_into(path, hasher);
    let Ok(entries) = std::fs::read_dir(path) else { return };
    // The order of a directory is stable as long as it does not change, and then its own time changes.
    for entry in entries.flatten() {
        entry.file_name().hash(hasher);
        file_into(&entry.path(), hasher);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dependency_counts() {
        let root = tempfile::tempdir().unwrap();
        for dir in [
            "var/lib/dpkg/updates",
            "var/lib/apt/lists",
            "var/lib/apt/periodic",
            "etc/apt/preferences.d",
            "etc/apt/sources.list.d",
        ] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let mut last = Stamp::of_candidates(root.path());
        assert_eq!(last, Stamp::of_candidates(root.path()));
        for file in [
            "var/lib/dpkg/status",
            "var/lib/dpkg/updates/0001",
            "var/lib/apt/extended_states",
            "var/lib/apt/periodic/update-success-stamp",
            "var/lib/apt/lists/x_Packages",
            "etc/apt/sources.list",
            "etc/apt/preferences.d/pin",
            "etc/apt/sources.list.d/a.sources",
        ] {
            std::fs::write(root.path().join(file), "x").unwrap();
            let now = Stamp::of_candidates(root.path());
            assert_ne!(now, last, "{file}");
            last = now;
        }
        std::fs::write(root.path().join("etc/apt/preferences.d/pin"), "xy").unwrap();
        assert_ne!(Stamp::of_candidates(root.path()), last);
        let packages = Stamp::of_packages(root.path());
        std::fs::write(root.path().join("var/lib/dpkg/updates/0001"), "xy").unwrap();
        assert_ne!(Stamp::of_packages(root.path()), packages, "dpkg is at work");
    }
}
