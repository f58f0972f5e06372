//! Runs: who owns which throw-away things, and removing what dead owners left.
//!
//! A run is one process that uses the harness. Its directory under [`STATE`] holds a locked file for as long as the
//! process lives; a run whose lock can be taken is dead.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{Input, run_ok};
use crate::{base, cgroup, wait};

/// Where the runs are. Short, since sockets lie below it.
const STATE: &str = "/tmp/linux-patch-hosts";

/// The run of this process, while anything of it exists.
static CURRENT: Mutex<Weak<Run>> = Mutex::new(Weak::new());

/// The run of this process. It is removed when the last thing that belongs to it is dropped.
#[derive(Debug)]
pub(crate) struct Run {
    id: String,
    directory: PathBuf,
    lock: File,
}

impl Run {
    /// Joins the run of this process, or starts it.
    pub(crate) fn current() -> Result<Arc<Self>> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = current.upgrade() {
            return Ok(run);
        }
        require_root()?;
        base::deps()?;
        let run = Arc::new(Self::start()?);
        *current = Arc::downgrade(&run);
        Ok(run)
    }

    fn start() -> Result<Self> {
        sweep()?;
        let _exclusive = registry_lock()?;
        let directory = tempfile::Builder::new()
            .prefix("")
            .rand_bytes(5)
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(STATE)
            .with_context(|| format!("cannot make a directory in {STATE}"))?
            .keep();
        let id = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let lock = File::create(directory.join("lock")).context("cannot make the run's lock")?;
        lock.lock().context("cannot take the run's lock")?;
        fs::write(directory.join("owner"), std::process::id().to_string())?;
        Ok(Self { id, directory, lock })
    }

    /// A short name that no other run has.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Makes the directory of the host `name`, which must not exist in this run yet.
    pub(crate) fn host_directory(&self, name: &str) -> Result<PathBuf> {
        let hosts = self.directory.join("hosts");
        fs::create_dir_all(&hosts)?;
        let directory = hosts.join(name);
        fs::create_dir(&directory).with_context(|| {
            format!("a host named {name} exists in this run: give each host a name of its own")
        })?;
        Ok(directory)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.directory) {
            eprintln!("system-tests: {error:#}");
        }
        self.lock.unlock().unwrap_or_default();
    }
}

/// A run as seen from outside.
#[derive(Debug, Clone)]
pub struct RunRecord {
    /// Its name.
    pub id: String,
    /// The process that owns it.
    pub owner: u32,
    /// Whether the owner lives.
    pub alive: bool,
    /// Its hosts.
    pub hosts: Vec<HostRecord>,
}

/// A host as seen from outside.
#[derive(Debug, Clone)]
pub struct HostRecord {
    /// Its name, unique in its run.
    pub name: String,
    /// Its address in its network.
    pub address: String,
    /// How often it has booted.
    pub boots: u32,
    /// Its PID 1 as the machine sees it, or none while it is off.
    pub leader: Option<u32>,
}

/// All runs on this machine, dead ones among them.
///
/// # Errors
/// When the state directory cannot be read.
pub fn runs() -> Result<Vec<RunRecord>> {
    let mut records = Vec::new();
    for directory in run_directories()? {
        let hosts = fs::read_dir(directory.join("hosts"))
            .map(|hosts| hosts.flatten().map(|host| record(&host.path())));
        let mut hosts: Vec<HostRecord> = hosts.map(Iterator::collect).unwrap_or_default();
        hosts.sort_by(|one, other| one.name.cmp(&other.name));
        records.push(RunRecord {
            id: directory.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            owner: number(&directory.join("owner")).unwrap_or(0),
            alive: !is_dead(&directory)?,
            hosts,
        });
    }
    Ok(records)
}

fn record(directory: &Path) -> HostRecord {
    HostRecord {
        name: directory.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        address: fs::read_to_string(directory.join("address")).unwrap_or_default(),
        boots: number(&directory.join("boots")).unwrap_or(0),
        leader: number(&directory.join("leader")),
    }
}

fn number(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl RunRecord {
    /// Ends the owner, by SIGTERM, and removes all that the run had.
    ///
    /// # Errors
    /// When the owner does not end, or something of the run cannot be removed.
    pub fn end(&self) -> Result<()> {
        let directory = Path::new(STATE).join(&self.id);
        if self.alive && !is_dead(&directory)? {
            let owner = i32::try_from(self.owner).ok().and_then(Pid::from_raw);
            let owner = owner.with_context(|| format!("run {} does not say who owns it", self.id))?;
            kill_process(owner, Signal::TERM)
                .with_context(|| format!("cannot end process {}", self.owner))?;
            let what = format!("process {} to end", self.owner);
            wait::until(&what, Duration::from_secs(10), || Ok(is_dead(&directory)?.then_some(())))?;
        }
        let _exclusive = registry_lock()?;
        remove(&directory)
    }
}

/// Removes completely what runs have left whose owner is dead; gives their names.
///
/// # Errors
/// When something cannot be removed; the message names it.
pub fn sweep() -> Result<Vec<String>> {
    let _exclusive = registry_lock()?;
    let mut swept = Vec::new();
    for directory in run_directories()? {
        if is_dead(&directory)? {
            remove(&directory)?;
            swept.push(directory.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    Ok(swept)
}

/// Removes one run: its processes and control groups, whatever is still mounted for it, its directories.
fn remove(directory: &Path) -> Result<()> {
    let id = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    cgroup::remove_all(&format!("lp-{id}-"))?;
    for gone in [base::cache_directory().join("copies").join(&id), directory.to_path_buf()] {
        if gone.exists() {
            // `--one-file-system` so that a mount that should not be there is not emptied.
            let mut command = Command::new("rm");
            command.args(["-rf", "--one-file-system", "--"]).arg(&gone);
            run_ok(command, Input::Nothing).with_context(|| format!("cannot remove {}", gone.display()))?;
        }
    }
    Ok(())
}

fn run_directories() -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(STATE) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {STATE}")),
    };
    let mut directories: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    directories.sort();
    Ok(directories)
}

/// Whether nobody holds the lock of the run.
fn is_dead(directory: &Path) -> Result<bool> {
    let Ok(file) = File::open(directory.join("lock")) else { return Ok(true) };
    // Shared, so that two who ask at once do not take each other for the owner.
    match file.try_lock_shared() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", directory.display()))
        }
    }
}

/// Starting and removing runs exclude each other, else a run that has no lock yet would look dead.
fn registry_lock() -> Result<File> {
    fs::create_dir_all(STATE).with_context(|| format!("cannot make {STATE}"))?;
    let path = Path::new(STATE).join(".registry");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn require_root() -> Result<()> {
    anyhow::ensure!(rustix::process::geteuid().is_root(), "throw-away hosts need root: run as root");
    Ok(())
}
