//! Making the repository: packages into a pool, the pool into suites, the suites signed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use jiff::{SignedDuration, Timestamp};

use super::catalogue;
use super::package::Published;
use crate::base::Release;
use crate::process::{Input, run_ok};

/// How `Release` files write a time.
const TIME: &str = "%a, %d %b %Y %H:%M:%S UTC";

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// Builds all of it in `directory`.
pub(super) fn build(directory: &Path, release: &Release) -> Result<()> {
    let scratch =
        tempfile::Builder::new().prefix("lp").tempdir().context("cannot make a scratch directory")?;
    let (pool, trees) = (scratch.path().join("pool"), scratch.path().join("trees"));
    fs::create_dir(&pool)?;
    fs::create_dir(&trees)?;
    let architecture = run_ok(words(&["dpkg", "--print-architecture"]), Input::Nothing)?.trim().to_owned();
    let mut debs = Vec::new();
    for package in catalogue::packages() {
        debs.push((package.build(&trees, &pool, &architecture)?, package.published));
    }
    let select = |published: Published| -> Vec<&Path> {
        debs.iter().filter(|(_, when)| *when == published).map(|(deb, _)| &**deb).collect()
    };
    let keys = Keys::make(&scratch.path().join("gpg"))?;
    keys.export(Keys::TRUSTED, directory)?;

    let now = Timestamp::now();
    let security = |place: PathBuf, key, date, valid_until| Suite {
        place,
        name: "stable-security",
        codename: format!("{}-security", release.codename),
        label: "Debian-Security",
        version: &release.version,
        architecture: &architecture,
        key,
        date,
        valid_until,
    };
    for (day, date) in [(0, now - DAY * 2), (1, now - DAY), (2, now - DAY / 2)] {
        let place = directory.join(format!("day{day}"));
        let published = |when, from| if day >= from { select(when) } else { Vec::new() };
        let updates = security(place.clone(), Keys::TRUSTED, date, None);
        let fixes = [published(Published::Security, 1), published(Published::Later, 2)].concat();
        updates.make(&keys, &fixes)?;
        let label = "Debian";
        let (name, codename) = ("stable-updates", format!("{}-updates", release.codename));
        let updates = Suite { name, codename, label, ..updates };
        updates.make(&keys, &published(Published::Update, 1))?;
        let first = Suite { name: "stable", codename: release.codename.clone(), ..updates };
        let former = if day == 0 { select(Published::Former) } else { Vec::new() };
        first.make(&keys, &[select(Published::First), former].concat())?;
    }
    let bad = directory.join("bad");
    security(bad.join("expired"), Keys::TRUSTED, now - DAY * 9, Some(now - DAY * 2))
        .make(&keys, &select(Published::Security))?;
    security(bad.join("wrongkey"), Keys::UNKNOWN, now, None).make(&keys, &select(Published::Security))?;
    let tampered = security(bad.join("hash"), Keys::TRUSTED, now, None);
    tampered.make(&keys, &select(Published::Security))?;
    tamper(&tampered.pool().join("lp-plain_1.1-1_all.deb"))?;
    run_ok(words(&["chmod", "-R", "a+rX", &directory.to_string_lossy()]), Input::Nothing).map(drop)
}

pub(super) fn words(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Gives a file other content of the same length.
fn tamper(deb: &Path) -> Result<()> {
    let length = fs::metadata(deb).with_context(|| format!("no {}", deb.display()))?.len();
    // It is a hard link to the good one.
    fs::remove_file(deb)?;
    fs::write(deb, vec![0; usize::try_from(length)?])?;
    Ok(())
}

/// One suite in one place.
pub(super) struct Suite<'a> {
    pub(super) place: PathBuf,
    pub(super) name: &'static str,
    pub(super) codename: String,
    pub(super) label: &'static str,
    pub(super) version: &'a str,
    pub(super) architecture: &'a str,
    pub(super) key: &'static str,
    /// What `Release` says, and when its files were changed last, by which HTTP clients know them.
    pub(super) date: Timestamp,
    pub(super) valid_until: Option<Timestamp>,
}

impl Suite<'_> {
    fn pool(&self) -> PathBuf {
        self.place.join("pool").join(&self.codename)
    }

    pub(super) fn make(&self, keys: &Keys, debs: &[&Path]) -> Result<()> {
        self.make_files(keys, debs).with_context(|| format!("cannot make the suite {}", self.codename))
    }

    fn make_files(&self, keys: &Keys, debs: &[&Path]) -> Result<()> {
        let pool = self.pool();
        let suite = self.place.join("dists").join(&self.codename);
        let binary = suite.join(format!("main/binary-{}", self.architecture));
        fs::create_dir_all(&pool)?;
        fs::create_dir_all(&binary)?;
        for deb in debs {
            let link = pool.join(deb.file_name().unwrap_or_default());
            if fs::hard_link(deb, &link).is_err() {
                fs::copy(deb, &link)?;
            }
        }
        let mut command = words(&["apt-ftparchive", "packages", &format!("pool/{}", self.codename)]);
        command.current_dir(&self.place);
        fs::write(binary.join("Packages"), run_ok(command, Input::Nothing)?)?;
        run_ok(words(&["gzip", "-nk9", &binary.join("Packages").to_string_lossy()]), Input::Nothing)?;
        let release = self.release()?;
        fs::write(suite.join("Release"), &release)?;
        keys.sign(self.key, &suite)?;
        let mut command =
            words(&["find", "-type", "f", "-exec", "touch", "--date", &self.date.to_string(), "{}", "+"]);
        command.current_dir(&suite);
        run_ok(command, Input::Nothing).map(drop)
    }

    fn release(&self) -> Result<String> {
        let mut command = words(&["apt-ftparchive"]);
        let fields = [
            ("Origin", "Debian"),
            ("Label", self.label),
            ("Suite", self.name),
            ("Codename", &self.codename),
            ("Version", self.version),
            ("Architectures", self.architecture),
            ("Components", "main"),
        ];
        for (field, value) in fields {
            command.arg("-o").arg(format!("APT::FTPArchive::Release::{field}={value}"));
        }
        command.arg("release").arg(format!("dists/{}", self.codename)).current_dir(&self.place);
        let release = run_ok(command, Input::Nothing)?;
        let until = self.valid_until.map(|until| format!("Valid-Until: {}\n", until.strftime(TIME)));
        let dates = format!("Date: {}\n{}", self.date.strftime(TIME), until.unwrap_or_default());
        let dated = |line: &str| if line.starts_with("Date:") { dates.clone() } else { format!("{line}\n") };
        Ok(release.lines().map(dated).collect())
    }
}

/// The keys that sign, in a keyring of their own.
pub(super) struct Keys {
    home: PathBuf,
}

impl Keys {
    /// The key that the hosts are given.
    pub(super) const TRUSTED: &str = "repository@test.invalid";
    /// One that nobody is given.
    const UNKNOWN: &str = "unknown@test.invalid";

    pub(super) fn make(home: &Path) -> Result<Self> {
        fs::create_dir(home)?;
        fs::set_permissions(home, fs::Permissions::from_mode(0o700))?;
        let keys = Self { home: home.to_path_buf() };
        for key in [Self::TRUSTED, Self::UNKNOWN] {
            keys.gpg(&["--passphrase", "", "--quick-gen-key", key, "ed25519", "sign", "never"])?;
        }
        Ok(keys)
    }

    fn gpg(&self, arguments: &[&str]) -> Result<String> {
        let mut command = words(&["gpg", "--quiet", "--batch", "--yes", "--homedir"]);
        command.arg(&self.home).args(arguments);
        run_ok(command, Input::Nothing)
    }

    pub(super) fn export(&self, key: &str, directory: &Path) -> Result<()> {
        let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
        self.gpg(&["--output", &path("key.gpg"), "--export", key])?;
        self.gpg(&["--output", &path("key.asc"), "--armor", "--export", key]).map(drop)
    }

    fn sign(&self, key: &str, suite: &Path) -> Result<()> {
        let path = |name: &str| suite.join(name).to_string_lossy().into_owned();
        let release = path("Release");
        self.gpg(&["--local-user", key, "--output", &path("InRelease"), "--clearsign", &release])?;
        let detached = path("Release.gpg");
        self.gpg(&["--local-user", key, "--output", &detached, "--armor", "--detach-sign", &release])
            .map(drop)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // Else the agent that gpg has started would outlive us.
        let mut command = words(&["gpgconf", "--kill", "gpg-agent"]);
        command.env("GNUPGHOME", &self.home);
        if let Err(error) = run_ok(command, Input::Nothing) {
            eprintln!("system-tests: gpg-agent goes on: {error:#}");
        }
    }
}
