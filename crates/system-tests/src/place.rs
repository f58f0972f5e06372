//! A throw-away root in which the root side works on packages of the test repository, and the changes to ask it for.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use patch_types::operation::{ApplyPatches, Hold, Install, PackageSpec, Remove, Rollback, Update};
use patch_types::{
    ChangeOptions, ErrorCode, ErrorDetail, JobId, JobStatus, Operation, Outcome, RollbackMode,
};

use crate::executor::{ExecutorIn, Refusal, Seen};
use crate::packages::Packages;
use crate::state::HostState;
use crate::{Repository, Root, RootOptions, wait};

/// A root with the test repository as its only source, some packages installed, and the root side listening.
#[derive(Debug)]
pub struct Place {
    /// The root side.
    pub executor: ExecutorIn,
    /// The root.
    pub root: Root,
    /// Its repository.
    pub repository: Repository,
}

impl Place {
    /// One with these packages of the first day installed, all by hand.
    ///
    /// # Errors
    /// When one of the parts cannot be made.
    pub fn new(packages: &[&str]) -> Result<Self> {
        Self::with(RootOptions::default(), packages, &Packages::executor()?)
    }

    /// The same in a root that is to be special, or with another program of the root side.
    ///
    /// # Errors
    /// As [`Place::new`].
    pub fn with(options: RootOptions, packages: &[&str], program: &Path) -> Result<Self> {
        let repository = Repository::new()?;
        let root = Root::new(options.repository(&repository))?;
        // What is written is thrown away: to wait for the disk proves nothing here.
        root.push("force-unsafe-io\n", "/etc/dpkg/dpkg.cfg.d/lp-test", "644")?;
        root.push(
            "Dir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\n",
            "/etc/apt/apt.conf.d/99lp-test",
            "644",
        )?;
        root.exec_ok(&["/usr/bin/apt-get", "-qq", "--error-on=any", "update"])?;
        if !packages.is_empty() {
            root.exec_ok(&[&["/usr/bin/apt-get", "-qq", "-y", "install"], packages].concat())?;
        }
        let executor = ExecutorIn::start(&root, program)?;
        Ok(Self { executor, root, repository })
    }

    /// The same, and the repository has come to its next day, which apt knows.
    ///
    /// # Errors
    /// As [`Place::new`].
    pub fn on_day1(packages: &[&str]) -> Result<Self> {
        let place = Self::new(packages)?;
        place.day(1)?;
        Ok(place)
    }

    /// Publishes a day of the repository and lets apt know of it.
    ///
    /// # Errors
    /// When apt cannot read it.
    pub fn day(&self, day: u8) -> Result<()> {
        self.repository.publish_day(day)?;
        self.root.exec_ok(&["/usr/bin/apt-get", "-qq", "--error-on=any", "update"]).map(drop)
    }

    /// The state of the root.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn state(&self) -> Result<HostState> {
        HostState::of(&self.root)
    }

    /// Makes a change and requires its outcome.
    ///
    /// # Errors
    /// When it ends with another one; the message has its log.
    pub fn must(&self, operation: Operation, outcome: Outcome) -> Result<(JobId, Seen)> {
        let job = self.executor.change(operation, ChangeOptions::default(), None)?;
        Ok((job, self.ends(job, outcome)?))
    }

    /// Waits for the end of a change and requires its outcome.
    ///
    /// # Errors
    /// As [`Place::must`].
    pub fn ends(&self, job: JobId, outcome: Outcome) -> Result<Seen> {
        let seen = self.executor.follow(job)?;
        let ended = seen.ended().context("no end")?;
        ensure!(
            ended.outcome == Some(outcome),
            "the outcome is {:?}, not {outcome}: {ended:#?}\n--- went back: {:#?}\n--- log\n{}\n--- remarks\n{}",
            ended.outcome,
            seen.went_back(),
            seen.log(),
            self.executor.remarks()
        );
        Ok(seen)
    }

    /// Requires that the change `job` can be taken back, and that everything is then as it was `before`. What was taken
    /// back may be installed again afterwards.
    ///
    /// # Errors
    /// When not; the message has every difference.
    pub fn take_back(&self, job: JobId, before: &HostState) -> Result<Seen> {
        let seen = self.go_back(rollback(job))?;
        before.assert_same(&self.state()?).with_context(|| format!("its log:\n{}", seen.log()))?;
        self.executor.assert_no_panic()?;
        self.let_in()?;
        Ok(seen)
    }

    /// Lets versions that were taken back be installed again, so that a trial can go on with the same packages.
    ///
    /// # Errors
    /// When the marks cannot be removed.
    pub fn let_in(&self) -> Result<()> {
        let script = "rm -f /etc/apt/preferences.d/linux-patch-taken-back /var/lib/linux_patch_executor/taken_back.json";
        self.root.shell(script).map(drop)
    }

    /// Somebody else who holds the package manager's lock until the standard input of the child ends.
    ///
    /// # Errors
    /// When it cannot be held.
    pub fn hold_lock(&self) -> Result<Child> {
        let script = "import fcntl,sys\nf=open('/var/lib/dpkg/lock-frontend','r+')\n\
                      fcntl.lockf(f,fcntl.LOCK_EX)\nopen('/run/lp-locked','w').close()\nsys.stdin.read()\n";
        let child = self.root.spawn(&["/usr/bin/python3", "-SE", "-c", script])?;
        let mark = self.root.path().join("run/lp-locked");
        wait::until("the lock is held", Duration::from_secs(20), || Ok(mark.exists().then_some(())))?;
        std::fs::remove_file(mark)?;
        Ok(child)
    }

    /// Makes a change that takes another one back, and requires that it says that it has.
    ///
    /// # Errors
    /// When it did not.
    pub fn go_back(&self, operation: Operation) -> Result<Seen> {
        let job = self.executor.change(operation, ChangeOptions::default(), None)?;
        let seen = self.executor.follow(job)?;
        let ended = seen.ended().context("no end")?;
        ensure!(
            ended.status == JobStatus::Completed
                && matches!(ended.outcome, Some(Outcome::RolledBack | Outcome::Applied)),
            "{ended:#?}\n--- went back: {:#?}\n--- log\n{}\n--- remarks\n{}",
            seen.went_back(),
            seen.log(),
            self.executor.remarks()
        );
        Ok(seen)
    }

    /// Makes a change that must be refused, before or after it was accepted, with nothing changed; gives the code.
    ///
    /// # Errors
    /// When it is not refused, or something has changed.
    pub fn refused(&self, operation: Operation, options: ChangeOptions) -> Result<ErrorCode> {
        self.refusal(operation, options).map(|error| error.code)
    }

    /// The same, with what was said.
    ///
    /// # Errors
    /// As for [`Self::refused`].
    pub fn refusal(&self, operation: Operation, options: ChangeOptions) -> Result<ErrorDetail> {
        let before = self.state()?;
        let error = match self.executor.change(operation, options, None) {
            Ok(job) => {
                let seen = self.executor.follow(job)?;
                let ended = seen.ended().context("no end")?;
                ensure!(
                    ended.status == JobStatus::Failed && ended.outcome == Some(Outcome::Unchanged),
                    "{ended:#?}\n{}",
                    seen.log()
                );
                ended.error.clone().context("no error")?
            }
            Err(error) => match error.downcast::<Refusal>() {
                Ok(refusal) => ErrorDetail::new(refusal.code, refusal.message),
                Err(error) => return Err(error),
            },
        };
        before.assert_same(&self.state()?).context("refused, and something changed")?;
        Ok(error)
    }

    /// Writes a file of the configuration.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, file: &str, text: &str) -> Result<()> {
        self.root.push(text, &format!("/etc/linux_patch_api/{file}"), "644")
    }
}

fn spec(text: &str) -> Result<PackageSpec> {
    let (name, version) = text.split_once('=').map_or((text, None), |(name, version)| (name, Some(version)));
    Ok(PackageSpec {
        name: name.parse().with_context(|| format!("{name} is no package name"))?,
        version: version.map(str::parse).transpose().with_context(|| format!("{text} has no version"))?,
    })
}

/// Installs, each `name` or `name=version`; downgrades are allowed.
///
/// # Errors
/// When a name is none.
pub fn install(packages: &[&str]) -> Result<Operation> {
    Ok(Operation::Install(Install {
        packages: packages.iter().map(|text| spec(text)).collect::<Result<_>>()?,
        no_recommends: false,
        allow_downgrade: true,
        reinstall: false,
    }))
}

/// Updates one, `name` or `name=version`.
///
/// # Errors
/// When it is no name.
pub fn update(package: &str) -> Result<Operation> {
    let PackageSpec { name, version } = spec(package)?;
    Ok(Operation::Update(Update { name, version }))
}

/// Removes one.
///
/// # Errors
/// When it is no name.
pub fn remove(package: &str) -> Result<Operation> {
    Ok(Operation::Remove(Remove { name: spec(package)?.name, purge: false, autoremove: false }))
}

/// Removes one with its configuration.
///
/// # Errors
/// When it is no name.
pub fn purge(package: &str) -> Result<Operation> {
    Ok(Operation::Remove(Remove { name: spec(package)?.name, purge: true, autoremove: false }))
}

/// Puts one on hold or takes it off.
///
/// # Errors
/// When it is no name.
pub fn hold(package: &str, hold: bool) -> Result<Operation> {
    Ok(Operation::Hold(Hold { name: spec(package)?.name, hold }))
}

/// Applies the updates of these; of all if there are none.
///
/// # Errors
/// When a name is none.
pub fn apply(packages: &[&str]) -> Result<Operation> {
    Ok(Operation::ApplyPatches(ApplyPatches {
        packages: packages.iter().map(|text| Ok(spec(text)?.name)).collect::<Result<_>>()?,
        ..ApplyPatches::default()
    }))
}

/// Takes a job back, unless its packages were changed since.
#[must_use]
pub fn rollback(job: JobId) -> Operation {
    Operation::Rollback(Rollback { job, force: false, mode: RollbackMode::Packages })
}

/// Takes a job back, whatever was changed since.
#[must_use]
pub fn force_back(job: JobId) -> Operation {
    Operation::Rollback(Rollback { job, force: true, mode: RollbackMode::Packages })
}
