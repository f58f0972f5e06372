//! An archive that goes on: its suites are published anew, each with the time that the test says, whenever the test says so.
//!
//! It lies beside the test repository, in `feed`, with a key of its own. Each publication of a suite is a directory, and
//! `current` is a link to the last one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::archive::{Keys, Suite, words};
use super::package::{Package, Published};
use crate::base::Release;
use crate::process::{Input, run_ok};
use crate::{Guest, Repository, base};

/// What the archive is called while it cannot be reached.
const AWAY: &str = "away";

/// A suite of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The main suite: what is installed.
    Main,
    /// Ordinary updates.
    Updates,
    /// Security fixes.
    Security,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Main, Self::Updates, Self::Security];

    fn index(self) -> usize {
        match self {
            Self::Main => 0,
            Self::Updates => 1,
            Self::Security => 2,
        }
    }

    /// Its directory, the suffix of its code name, its name and its label.
    fn words(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::Main => ("main", "", "stable", "Debian"),
            Self::Updates => ("updates", "-updates", "stable-updates", "Debian"),
            Self::Security => ("security", "-security", "stable-security", "Debian-Security"),
        }
    }
}

/// The archive. Nothing is published until the test publishes it.
pub struct Feed {
    place: PathBuf,
    keys: Keys,
    release: Release,
    architecture: String,
    scratch: tempfile::TempDir,
    /// What the suites have.
    debs: [Vec<PathBuf>; 3],
    publications: u32,
}

impl Feed {
    /// An empty archive beside a repository.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(repository: &Repository) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("lp").tempdir()?;
        for directory in ["pool", "trees"] {
            fs::create_dir(scratch.path().join(directory))?;
        }
        let place = repository.path().join("feed");
        fs::create_dir(&place).with_context(|| format!("cannot make {}", place.display()))?;
        let keys = Keys::make(&scratch.path().join("gpg"))?;
        keys.export(Keys::TRUSTED, &place)?;
        Ok(Self {
            place,
            keys,
            release: base::release()?,
            architecture: run_ok(words(&["dpkg", "--print-architecture"]), Input::Nothing)?.trim().to_owned(),
            scratch,
            debs: Default::default(),
            publications: 0,
        })
    }

    /// Puts a package into a suite, with a shell script as its `postinst` unless that is empty. It is published with the next
    /// publication of the suite.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn add(&mut self, kind: Kind, name: &str, version: &str, postinst: &str) -> Result<()> {
        let mut package = Package::new(name, version, Published::First);
        if !postinst.is_empty() {
            package = package.script("postinst", postinst);
        }
        let scratch = self.scratch.path();
        let deb = package.build(&scratch.join("trees"), &scratch.join("pool"), &self.architecture)?;
        self.debs.get_mut(kind.index()).context("no such suite")?.push(deb);
        Ok(())
    }

    /// Publishes a suite, at a time.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn publish(&mut self, kind: Kind, date: Timestamp) -> Result<()> {
        let (directory, suffix, name, label) = kind.words();
        let away = self.place.with_extension(AWAY);
        let root = if away.exists() { &away } else { &self.place };
        let place = root.join(directory);
        self.publications += 1;
        let number = self.publications.to_string();
        let suite = Suite {
            place: place.join(&number),
            name,
            codename: format!("{}{suffix}", self.release.codename),
            label,
            version: &self.release.version,
            architecture: &self.architecture,
            key: Keys::TRUSTED,
            date,
            valid_until: None,
        };
        let debs: Vec<&Path> = self.debs.get(kind.index()).into_iter().flatten().map(|deb| &**deb).collect();
        suite.make(&self.keys, &debs)?;
        run_ok(words(&["chmod", "-R", "a+rX", &root.to_string_lossy()]), Input::Nothing)?;
        let next = place.join("current.next");
        symlink(&number, &next).and_then(|()| fs::rename(&next, place.join("current")))?;
        Ok(())
    }

    /// Whether the archive can be reached.
    ///
    /// # Errors
    /// When that cannot be changed.
    pub fn reachable(&self, is_reachable: bool) -> Result<()> {
        let away = self.place.with_extension(AWAY);
        let (from, to) = if is_reachable { (&away, &self.place) } else { (&self.place, &away) };
        if from.exists() {
            fs::rename(from, to).with_context(|| format!("cannot rename {}", from.display()))?;
        }
        Ok(())
    }

    /// Makes it the only source of apt on a host that has the repository at `/srv/repo`. The lists are not read.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn configure(&self, guest: &Guest) -> Result<()> {
        guest.push_file(&self.place.join("key.gpg"), "/etc/apt/keyrings/lp-feed.gpg", "644")?;
        let codename = &self.release.codename;
        let line = |kind: Kind| {
            let (directory, suffix, ..) = kind.words();
            format!(
                "deb [signed-by=/etc/apt/keyrings/lp-feed.gpg] file:/srv/repo/feed/{directory}/current {codename}{suffix} main\n"
            )
        };
        guest.push(Kind::ALL.map(line).concat(), "/etc/apt/sources.list", "644")
    }
}
