//! A signed apt repository of small packages made for tests, in three states ("days").
//!
//! | path | what |
//! | --- | --- |
//! | `day0`, `day1`, `day2` | the states: the first versions only; updates and security updates published as well, and some first versions gone; fixes of the fixes |
//! | `current` | a symbolic link to one of them, see [`Repository::publish_day`] |
//! | `bad/hash`, `bad/expired`, `bad/wrongkey` | the security suite with a tampered package, an expired `Release`, a key that nobody trusts |
//! | `key.gpg`, `key.asc` | the public key |
//!
//! Each day is younger than the one before, and apt does not go back to an older state of a suite that it knows.
//!
//! The suites carry Debian's own origin, labels and code names, so that the default configuration of
//! `unattended-upgrades` takes them for Debian's. The packages are listed in `repository/catalogue.rs`.

mod archive;
mod catalogue;
mod feed;
mod package;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::process::{Input, run_ok};
use crate::run::Run;
use crate::{Guest, base};

/// Any change of the builder makes another repository.
const BUILDER: [&str; 3] = [
    include_str!("repository/archive.rs"),
    include_str!("repository/catalogue.rs"),
    include_str!("repository/package.rs"),
];

pub use feed::{Feed, Kind};

static NEXT_COPY: AtomicU32 = AtomicU32::new(0);

/// A copy of the repository for one user; starts at day 0. Dropping it removes it.
///
/// Its files are shared with other copies by hard links: replace a file, never write into it.
#[derive(Debug)]
pub struct Repository {
    path: PathBuf,
    _run: Arc<Run>,
}

impl Repository {
    /// Where a host or root sees the repository that it was given, as a source of apt.
    pub const FILES: &str = "file:/srv/repo";

    /// The line of `sources.list` for what [`Repository::publish_extra`] has published.
    pub const EXTRA: &str = "deb [trusted=yes] file:/srv/repo/extra ./\n";

    /// Gives a copy; the first call on a machine builds the repository, which takes some seconds.
    ///
    /// # Errors
    /// When it cannot be built or copied.
    pub fn new() -> Result<Self> {
        let run = Run::current()?;
        let built = build_cached()?;
        let copies = base::cache_directory().join("copies").join(run.id());
        fs::create_dir_all(&copies).with_context(|| format!("cannot make {}", copies.display()))?;
        let path = copies.join(format!("repo{}", NEXT_COPY.fetch_add(1, Ordering::Relaxed)));
        let mut command = Command::new("cp");
        command.args(["--archive", "--link", "--"]).arg(&built).arg(&path);
        run_ok(command, Input::Nothing).context("cannot copy the test repository")?;
        let repository = Self { path, _run: run };
        repository.publish_day(0)?;
        Ok(repository)
    }

    /// Its directory on this machine.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes `current` mean day 0, 1 or 2.
    ///
    /// # Errors
    /// When there is no such day.
    pub fn publish_day(&self, day: u8) -> Result<()> {
        self.publish(&format!("day{day}"))
    }

    /// Makes `current` mean the directory `state`.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn publish(&self, state: &str) -> Result<()> {
        ensure!(self.path.join(state).is_dir(), "the test repository has no {state}");
        let next = self.path.join("current.next");
        symlink(state, &next).and_then(|()| fs::rename(&next, self.path.join("current")))?;
        Ok(())
    }

    /// Publishes packages that are no part of the test repository, in an archive of their own at `extra`. It is not
    /// signed, since the repository's key is not kept.
    ///
    /// # Errors
    /// When they cannot be copied or listed.
    pub fn publish_extra(&self, debs: &[&Path]) -> Result<()> {
        let extra = self.path.join("extra");
        fs::create_dir_all(&extra)?;
        for deb in debs {
            fs::copy(deb, extra.join(deb.file_name().context("the package has no name")?))?;
        }
        let mut command = Command::new("apt-ftparchive");
        command.args(["packages", "."]).current_dir(&extra);
        fs::write(extra.join("Packages"), run_ok(command, Input::Nothing)?)?;
        Ok(())
    }

    /// The lines of `sources.list` for the repository at `base`: [`Repository::FILES`] or the
    /// [address](crate::FileServer::url) of a server of [`Repository::path`].
    ///
    /// # Errors
    /// When the machine's Debian release is not known.
    pub fn sources_list(base: &str) -> Result<String> {
        let codename = base::release()?.codename;
        let line = |suffix: &str| {
            format!("deb [signed-by=/etc/apt/keyrings/lp-test.gpg] {base}/current {codename}{suffix} main\n")
        };
        Ok(["", "-updates", "-security"].map(line).concat())
    }

    /// The one line of `sources.list` for `bad/{kind}` of the repository at `base`; the kinds are "hash", "expired"
    /// and "wrongkey".
    ///
    /// # Errors
    /// When the machine's Debian release is not known.
    pub fn bad_sources_list(base: &str, kind: &str) -> Result<String> {
        let codename = base::release()?.codename;
        Ok(format!(
            "deb [signed-by=/etc/apt/keyrings/lp-test.gpg] {base}/bad/{kind} {codename}-security main\n"
        ))
    }

    /// Makes the repository at `base` the only source of apt in `guest` and reads its lists.
    ///
    /// # Errors
    /// When `apt-get update` fails.
    pub fn configure(&self, guest: &Guest, base: &str) -> Result<()> {
        self.trust(guest)?;
        guest.push(Self::sources_list(base)?, "/etc/apt/sources.list", "644")?;
        guest.exec_ok(&["/usr/bin/apt-get", "-qq", "--error-on=any", "update"]).map(drop)
    }

    /// Puts the repository's key where the lines of [`Repository::sources_list`] name it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn trust(&self, guest: &Guest) -> Result<()> {
        guest.push_file(&self.path.join("key.gpg"), "/etc/apt/keyrings/lp-test.gpg", "644")
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("system-tests: cannot remove {}: {error}", self.path.display());
        }
    }
}

fn build_cached() -> Result<PathBuf> {
    let release = base::release()?;
    let mut hash = Sha256::new();
    for part in BUILDER.iter().chain([&&*release.codename, &&*release.version]) {
        hash.update(part);
    }
    base::build_once(&format!("repo-{}", base::short_hash(hash)), |directory| {
        archive::build(directory, &release)
    })
}
