//! A root with dpkg's own database, and archives made for it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use patch_types::{Action, Plan, PlannedChange};

use super::{argv::Argv, snapshot::PackageKey, stage::Stage};
use crate::run::RunError;

pub(crate) fn key(name: &str) -> PackageKey {
    PackageKey { name: name.into(), architecture: "all".into() }
}

pub(crate) fn plan(changes: &[(Action, &str, Option<&str>, Option<&str>)]) -> Plan {
    Plan::of(
        changes
            .iter()
            .map(|(action, name, old, new)| PlannedChange {
                action: *action,
                name: name.parse().unwrap(),
                architecture: "all".parse().unwrap(),
                old_version: old.map(|v| v.parse().unwrap()),
                new_version: new.map(|v| v.parse().unwrap()),
                archive_sha256: None,
                origin: None,
                security: false,
                archive_bytes: 0,
                disk_delta_bytes: 0,
            })
            .collect(),
    )
}

/// Fetches by copying out of a directory and keeps what was said.
#[derive(Default)]
pub(crate) struct Quiet {
    pub(crate) said: Vec<String>,
    pub(crate) asked: Vec<String>,
    pub(crate) offers: Option<PathBuf>,
}

impl Stage for Quiet {
    fn run(&mut self, _argv: Argv) -> Result<Option<i32>, RunError> {
        unreachable!("recording changes nothing")
    }

    fn fetch(&mut self, archives: &[String], directory: &Path) -> bool {
        self.asked.extend_from_slice(archives);
        let Some(offers) = &self.offers else { return false };
        for entry in fs::read_dir(offers).unwrap().flatten() {
            fs::copy(entry.path(), directory.join(entry.file_name())).unwrap();
        }
        true
    }

    fn say(&mut self, line: String) {
        self.said.push(line);
    }
}

pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) root: PathBuf,
}

/// What goes into an archive besides its files.
#[derive(Default)]
pub(crate) struct Package<'a> {
    pub(crate) files: &'a [(&'a str, &'a str)],
    pub(crate) conffiles: &'a [&'a str],
    pub(crate) fields: &'a str,
    pub(crate) without_md5sums: bool,
    /// Made before the archive.
    pub(crate) more: Option<fn(&Path)>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for directory in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for directory in ["var/cache/apt/archives", "var/lib/apt/lists"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
        fs::create_dir(dir.path().join("debs")).unwrap();
        fs::create_dir(dir.path().join("scratch")).unwrap();
        fs::create_dir(dir.path().join("record")).unwrap();
        Self { dir, root }
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(crate) fn deb(&self, name: &str, version: &str, package: &Package<'_>) -> PathBuf {
        let tree = self.at("tree");
        let _ = fs::remove_dir_all(&tree);
        fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        let mut sums = String::new();
        for (path, text) in package.files {
            let file = tree.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, text).unwrap();
            if !package.conffiles.contains(path) {
                let sum = super::files::md5_of(text.as_bytes()).unwrap();
                sums.push_str(&format!("{sum}  {path}\n"));
            }
        }
        if let Some(more) = package.more {
            more(&tree);
        }
        let control = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: N\n{}Description: x\n",
            package.fields
        );
        fs::write(tree.join("DEBIAN/control"), control).unwrap();
        if !package.conffiles.is_empty() {
            let lines: String = package.conffiles.iter().map(|path| format!("/{path}\n")).collect();
            fs::write(tree.join("DEBIAN/conffiles"), lines).unwrap();
        }
        if !package.without_md5sums {
            fs::write(tree.join("DEBIAN/md5sums"), sums).unwrap();
        }
        let archive = self.at("debs").join(super::archives::file_name(&key(name), version));
        let made = Command::new("/usr/bin/dpkg-deb")
            .args(["-Zgzip", "--root-owner-group", "--build"])
            .args([&tree, &archive])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        archive
    }

    pub(crate) fn dpkg(&self, args: &[&str]) {
        let ran = Command::new("/usr/bin/dpkg")
            .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
            .arg(format!("--root={}", self.root.display()))
            .args(["--force-confdef", "--force-confold", "--force-depends"])
            .args(args)
            .output()
            .unwrap();
        assert!(ran.status.success(), "{args:?}: {ran:?}");
    }

    pub(crate) fn install(&self, archive: &Path) {
        self.dpkg(&["-i", archive.to_str().unwrap()]);
    }

    pub(crate) fn cache(&self, archive: &Path) -> PathBuf {
        let cached = self.root.join("var/cache/apt/archives").join(archive.file_name().unwrap());
        fs::copy(archive, &cached).unwrap();
        cached
    }

    pub(crate) fn text(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap()
    }
}
