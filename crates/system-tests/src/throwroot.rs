//! Throw-away roots: a copy of a root file system in which `apt-get` and `dpkg` are real, made in some 30 ms, for
//! package logic that needs no booted host.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guest::{Guest, ensure_inside};
use crate::holder::Holder;
use crate::process::{Input, run_ok};
use crate::run::Run;
use crate::{Repository, base, wait};

/// As [`Holder::STAY`], said by a process that has the root as its root already: what is run in a root enters that
/// process's, and must not find the machine's there.
const STAY_INSIDE: &str = "\nexec chroot \"$root\" /bin/sh -c 'echo ready; exec cat >/dev/null 2>&1'\n";

const NAMESPACES: &[&str] = &["--mount", "--pid", "--ipc", "--uts", "--net", "--root", "--wd"];

/// What a root is to be like.
#[derive(Debug, Clone, Default)]
pub struct RootOptions {
    lower: Option<PathBuf>,
    repository: Option<PathBuf>,
    shares_network: bool,
    disk: Option<PathBuf>,
    device: Option<(PathBuf, String)>,
}

impl RootOptions {
    /// The same upon another root file system than the [base](crate::base); `/` is allowed.
    #[must_use]
    pub fn lower(mut self, lower: impl Into<PathBuf>) -> Self {
        self.lower = Some(lower.into());
        self
    }

    /// The same with `repository` seen at `/srv/repo` and as the only source of apt.
    #[must_use]
    pub fn repository(mut self, repository: &Repository) -> Self {
        self.repository = Some(repository.path().to_path_buf());
        self
    }

    /// The same on a device that has a root already: what of it is mounted where, the root first, and with which options.
    #[must_use]
    pub fn on_device(mut self, device: impl Into<PathBuf>, mounts: &[(&str, &str)]) -> Self {
        let lines: Vec<String> =
            mounts.iter().map(|(point, options)| format!(".{point} {options}")).collect();
        self.device = Some((device.into(), lines.join("\n")));
        self
    }

    /// The same on the machine's network; otherwise a root has a network of its own with nothing on it.
    #[must_use]
    pub fn machine_network(mut self) -> Self {
        self.shares_network = true;
        self
    }

    /// The same with what is written in `directory`, which has to be empty and stays afterwards; otherwise in memory.
    #[must_use]
    pub fn on_disk(mut self, directory: impl Into<PathBuf>) -> Self {
        self.disk = Some(directory.into());
        self
    }
}

/// A throw-away root. Any number of commands can be run in it, by way of [`Guest`]; dropping it ends them and removes
/// all that they changed.
#[derive(Debug)]
pub struct Root {
    guest: Guest,
    holder: Holder,
    _run: Arc<Run>,
}

impl Root {
    /// Makes a root.
    ///
    /// # Errors
    /// When this process is not root, or the base cannot be built.
    pub fn new(options: RootOptions) -> Result<Self> {
        let run = Run::current()?;
        let lower = options.lower.map_or_else(base::root, Ok)?;
        let mut flags = vec!["--mount", "--propagation", "private", "--pid", "--ipc", "--uts"];
        if !options.shares_network {
            flags.push("--net");
        }
        let repository = options.repository.unwrap_or_default();
        let sources = Repository::sources_list(Repository::FILES)?;
        let disk = options.disk.unwrap_or_default();
        let (device, mounted) = options.device.unwrap_or_default();
        let arguments = [
            &*lower.to_string_lossy(),
            &*repository.to_string_lossy(),
            &sources,
            &*disk.to_string_lossy(),
            &*device.to_string_lossy(),
            &mounted,
        ];
        let script = format!("{}{}", include_str!("throwroot.sh"), STAY_INSIDE);
        let holder = Holder::start(&flags, &script, &arguments).context("cannot make a throw-away root")?;
        ensure_inside(holder.pid())?;
        Ok(Self { guest: Guest::held("root", holder.pid(), NAMESPACES), holder, _run: run })
    }

    /// The root's file system as a path of the machine, for reading and writing files without a command. An absolute
    /// symbolic link in it leads out of it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/proc").join(self.holder.pid().to_string()).join("root")
    }

    /// The machine's id of the process that holds the root's namespaces.
    #[must_use]
    pub fn holder(&self) -> u32 {
        self.holder.pid()
    }

    /// Makes the root's one file system so small that `left` more bytes fit in, to the page. `/run` is another one.
    ///
    /// # Errors
    /// When it cannot be made smaller.
    pub fn fill_disk(&self, left: u64) -> Result<()> {
        // Whoever writes in between makes it fail: ask again.
        let script = "set -- \"$1\" $(stat --file-system --format='%b %f %S' /mnt); \
                      mount -o \"remount,size=$((($2 - $3) * $4 + $1))\" /mnt";
        wait::until("the root's disk to be full", Duration::from_secs(10), || {
            Ok(self.on_disk(&["/bin/sh", "-euc", script, "sh", &left.to_string()]).ok())
        })
    }

    /// Gives the root's file system room again.
    ///
    /// # Errors
    /// When it cannot be resized.
    pub fn free_disk(&self) -> Result<()> {
        self.on_disk(&["mount", "-o", "remount,size=50%", "/mnt"])
    }

    fn on_disk(&self, argv: &[&str]) -> Result<()> {
        let mut command = self.holder.enter(&["--mount"]);
        command.args(argv);
        run_ok(command, Input::Nothing).context("cannot resize the disk of a throw-away root").map(drop)
    }
}

impl Deref for Root {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}
