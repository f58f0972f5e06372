//! The products' packages, as the runner or this process built them.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::UNIX_EPOCH,
};

use anyhow::{Context, Result, anyhow, ensure};

/// Where the packages under test are: the old and the new version of the same programs.
#[derive(Debug, Clone)]
pub struct Packages {
    dir: PathBuf,
}

/// The daemon and the root side to be used in place of the packages'.
static PROGRAMS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();

static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();

impl Packages {
    /// Makes this process use the packages below `dir`, if it has used none yet.
    pub fn use_those_in(dir: &Path) {
        let _ = BUILT.set(Ok(dir.to_owned()));
    }

    /// Makes this process use these programs, the daemon and the root side, in throw-away roots, if it has used none yet.
    pub fn use_these_programs(daemon: &Path, executor: &Path) {
        let _ = PROGRAMS.set((daemon.to_owned(), executor.to_owned()));
    }

    /// The packages that the runner built; builds them if there is no runner.
    ///
    /// # Errors
    /// When they cannot be built.
    pub fn get() -> Result<Self> {
        let dir = BUILT.get_or_init(|| match std::env::var_os("LINUX_PATCH_TEST_PACKAGES") {
            Some(dir) => Ok(dir.into()),
            None => build().map_err(|error| format!("{error:#}")),
        });
        Ok(Self { dir: dir.clone().map_err(|error| anyhow!(error))? })
    }

    /// The package `name` of the version `which`: "new" or "old".
    fn find(&self, which: &str, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(which);
        let mut found = fs::read_dir(&dir)
            .with_context(|| format!("cannot read {}", dir.display()))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}_")))
            });
        found.next().with_context(|| format!("there is no package {name} in {}", dir.display()))
    }

    /// The agent's package.
    ///
    /// # Errors
    /// When it was not built.
    pub fn agent(&self) -> Result<PathBuf> {
        self.find("new", "linux-patch-api")
    }

    /// The operator's command line.
    ///
    /// # Errors
    /// When it was not built.
    pub fn patchctl(&self) -> Result<PathBuf> {
        self.find("new", "patchctl")
    }

    /// The tarball with the installer, of the new version or of the old one.
    ///
    /// # Errors
    /// When it was not built.
    pub fn tarball(&self, is_new: bool) -> Result<PathBuf> {
        let which = if is_new { "new" } else { "old" };
        let entries = fs::read_dir(self.dir.join(which))?.flatten().map(|entry| entry.path());
        let mut found = entries.filter(|path| path.to_string_lossy().ends_with(".tar.gz"));
        found.next().with_context(|| format!("there is no tarball in {}/{which}", self.dir.display()))
    }

    /// The agent's package of an older version.
    ///
    /// # Errors
    /// When it was not built.
    pub fn old_agent(&self) -> Result<PathBuf> {
        self.find("old", "linux-patch-api")
    }

    /// The root side's program: the one of the packages, or the file that `LINUX_PATCH_EXECUTOR` names, so that it can
    /// be tried without packing.
    ///
    /// # Errors
    /// When there is none.
    pub fn executor() -> Result<PathBuf> {
        if let Some(path) = std::env::var_os("LINUX_PATCH_EXECUTOR") {
            return Ok(path.into());
        }
        if let Some((_, executor)) = PROGRAMS.get() {
            return Ok(executor.clone());
        }
        Ok(Self::get()?.programs()?.join("usr/libexec/linux-patch-api/patch-executor"))
    }

    /// The network side's program: the one of the packages, or the file that `LINUX_PATCH_DAEMON` names.
    ///
    /// # Errors
    /// When there is none.
    pub fn daemon() -> Result<PathBuf> {
        if let Some(path) = std::env::var_os("LINUX_PATCH_DAEMON") {
            return Ok(path.into());
        }
        if let Some((daemon, _)) = PROGRAMS.get() {
            return Ok(daemon.clone());
        }
        Ok(Self::get()?.programs()?.join("usr/bin/linux-patch-api"))
    }

    /// The programs of the packages, unpacked beside them, once for all processes.
    ///
    /// # Errors
    /// When they cannot be unpacked.
    pub fn programs(&self) -> Result<&'static Path> {
        static UNPACKED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        match UNPACKED.get_or_init(|| self.unpack().map_err(|error| format!("{error:#}"))) {
            Ok(dir) => Ok(dir),
            Err(error) => Err(anyhow!("{error}")),
        }
    }

    fn unpack(&self) -> Result<PathBuf> {
        let packages = [self.agent()?, self.find("new", "patchctl")?];
        let mut name = String::from("programs");
        for package in &packages {
            let built = fs::metadata(package)?.modified()?.duration_since(UNIX_EPOCH)?;
            write!(name, "-{:x}", built.as_nanos())?;
        }
        let place = self.dir.join(name);
        if place.exists() {
            return Ok(place);
        }
        // Of packages that are no longer there; another process may be doing the same.
        for old in fs::read_dir(&self.dir)?.flatten() {
            if old.file_name().to_string_lossy().starts_with("programs-") {
                let _ = fs::remove_dir_all(old.path());
            }
        }
        let dir = tempfile::Builder::new().prefix(".programs-").tempdir_in(&self.dir)?;
        for package in &packages {
            let status = Command::new("dpkg-deb").arg("-x").arg(package).arg(dir.path()).status()?;
            ensure!(status.success(), "cannot unpack {}", package.display());
        }
        // Another process may have been quicker, with the same content; a directory that is not empty is not replaced.
        match fs::rename(dir.path(), &place) {
            Ok(()) => drop(dir.keep()),
            Err(_) if place.exists() => {}
            Err(error) => return Err(error).with_context(|| format!("cannot make {}", place.display())),
        }
        Ok(place)
    }
}

fn build() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let dir = workspace.join("target/test-packages");
    for (which, version) in [("new", env!("CARGO_PKG_VERSION")), ("old", "0.0.1")] {
        let status = Command::new(env!("CARGO"))
            .current_dir(&workspace)
            .args(["xtask", "dist", "--dev", "--version", version, "--out"])
            .arg(dir.join(which))
            .status()
            .context("cannot start cargo")?;
        ensure!(status.success(), "the packages could not be built: cargo xtask dist --dev");
    }
    Ok(dir)
}
