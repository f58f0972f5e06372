//! Throw-away Debian hosts with systemd as PID 1, up in about a second, that really reboot, lose power and run out
//! of disk space.
//!
//! A host is `systemd-nspawn` over an overlay of the cached [`base`] whose upper layer, the host's disk,
//! is a tmpfs of limited size. What is different from a real machine: there is no kernel or boot loader of its own,
//! control-group limits are not enforced on every machine, and a power cut loses no writes that were not synced.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::guest::Guest;
use crate::holder::Holder;
use crate::process::{Input, run_ok};
use crate::run::Run;
use crate::supervisor::{Supervision, Want};
use crate::{Network, Repository, base, cgroup, wait};

const BOOT_LIMIT: Duration = Duration::from_secs(120);
const ASK_LIMIT: Duration = Duration::from_secs(30);
const OFF_LIMIT: Duration = Duration::from_secs(120);

/// How often a booting host is asked whether it is up; asking costs it about 10 ms of processor time.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// What a host is to be like.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Its host name, unique in the test process.
    pub name: String,
    /// The size of its disk as `mount -t tmpfs -o size=` takes it. Memory is used only as it fills.
    pub disk: String,
    /// Directories of the machine that are seen on the host read-only: (here, there).
    pub binds: Vec<(PathBuf, String)>,
    /// Directories of the host that must not lie on an overlay, `/var/lib/docker` for one.
    pub real_directories: Vec<String>,
    /// Whether its disk has btrfs, with the root in the subvolume `@`, rather than an overlay of the base.
    pub is_on_btrfs: bool,
    /// Whether it is one of a cloud's: with cloud-init, which is off until the trial lets it begin, and msmtp.
    pub is_of_cloud: bool,
    /// Further arguments of `systemd-nspawn`.
    pub nspawn_arguments: Vec<String>,
}

impl HostOptions {
    /// A host of 1 GiB disk without anything special.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            disk: "1g".to_owned(),
            binds: Vec::new(),
            real_directories: Vec::new(),
            is_on_btrfs: false,
            is_of_cloud: false,
            nspawn_arguments: Vec::new(),
        }
    }

    /// The same with a disk of `size`, "200m" for one.
    #[must_use]
    pub fn disk(mut self, size: &str) -> Self {
        size.clone_into(&mut self.disk);
        self
    }

    /// The same with btrfs on its disk of `size`, and the root in the subvolume `@`.
    #[must_use]
    pub fn on_btrfs(mut self, size: &str) -> Self {
        self.is_on_btrfs = true;
        self.disk(size)
    }

    /// The same as one of a cloud's.
    #[must_use]
    pub fn of_cloud(mut self) -> Self {
        self.is_of_cloud = true;
        self
    }

    /// The same with the machine's directory `here` seen, read-only, as `there`.
    #[must_use]
    pub fn bind(mut self, here: impl Into<PathBuf>, there: &str) -> Self {
        self.binds.push((here.into(), there.to_owned()));
        self
    }

    /// The same with `repository` seen at `/srv/repo`. It is no source of apt yet:
    /// [`Repository::configure`] makes it one.
    #[must_use]
    pub fn repository(self, repository: &Repository) -> Self {
        self.bind(repository.path(), "/srv/repo")
    }
}

/// A running throw-away host. Dropping it destroys it, its disk included.
#[derive(Debug)]
pub struct Host {
    guest: Guest,
    directory: PathBuf,
    address: Ipv4Addr,
    disk: String,
    supervision: Arc<Supervision>,
    supervisor: Option<JoinHandle<()>>,
    holder: Holder,
    groups: String,
    // Both outlive the host.
    _network: Network,
    run: Arc<Run>,
}

impl Host {
    /// Boots a host on `network` and waits until systemd is up.
    ///
    /// # Errors
    /// When it does not come up; the message ends with what its console said.
    pub fn boot(network: &Network, options: HostOptions) -> Result<Self> {
        let name = options.name.clone();
        Self::create(network, options)
            .and_then(|host| {
                host.wait_boot(1)?;
                Ok(host)
            })
            .with_context(|| format!("the host {name} does not boot"))
    }

    fn create(network: &Network, mut options: HostOptions) -> Result<Self> {
        let base = if options.is_of_cloud { base::cloud_root()? } else { base::root()? };
        let run = Arc::clone(network.run());
        let directory = run.host_directory(&options.name)?;
        let holder = hold_disk(&directory, &base, &options)?;
        if options.is_on_btrfs {
            let device = fs::read_to_string(directory.join("device")).context("the disk has no device")?;
            options.nspawn_arguments.push(format!("--bind={}", device.trim()));
        }
        let address = network.attach(&holder)?;
        fs::write(directory.join("address"), address.to_string())?;
        let groups = format!("lp-{}-{}", run.id(), options.name);
        let boot = Boot {
            nsenter: holder.enter(&["--mount", "--pid", "--net"]),
            joins: cgroup::create(&groups)?,
            machine: groups.clone(),
            directory: directory.clone(),
            options: options.clone(),
        };
        let supervision = Supervision::new(directory.clone());
        let supervisor = std::thread::Builder::new().name(format!("host {}", options.name)).spawn({
            let supervision = Arc::clone(&supervision);
            move || supervision.supervise(|| boot.command())
        })?;
        Ok(Self {
            guest: Guest::supervised(&options.name, Arc::clone(&supervision)),
            directory,
            address,
            disk: options.disk,
            supervision,
            supervisor: Some(supervisor),
            holder,
            groups,
            _network: network.clone(),
            run,
        })
    }

    /// Its address on its network.
    #[must_use]
    pub fn ip(&self) -> Ipv4Addr {
        self.address
    }

    /// How often it has booted.
    #[must_use]
    pub fn boots(&self) -> u32 {
        self.supervision.state().boots
    }

    /// The kernel's name of the current boot.
    ///
    /// All hosts share the machine's kernel; `systemd-nspawn` gives each boot an id of its own all the same.
    ///
    /// # Errors
    /// When the host is off.
    pub fn boot_id(&self) -> Result<String> {
        Ok(self.read_text("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
    }

    /// Waits until boot number `boot` or a later one is up: systemd has started all units, or given some up.
    ///
    /// # Errors
    /// When that takes longer than two minutes or the host goes off; the message ends with what its console said.
    pub fn wait_boot(&self, boot: u32) -> Result<()> {
        let what = format!("boot {boot} of the host {}", self.name());
        let mut answer = String::from("none");
        let waited = wait::until_every(ASK_INTERVAL, &what, BOOT_LIMIT, || {
            let (boots, leader, want) = {
                let state = self.supervision.state();
                (state.boots, state.leader, state.want)
            };
            if want == Want::Off {
                bail!("the host {} went off while waiting for its boot {boot}", self.name());
            }
            if leader.is_none() || boots < boot {
                return Ok(None);
            }
            // In the first moments there is nothing to enter yet.
            let ask = ["/usr/bin/systemctl", "is-system-running"];
            let Ok(asked) = self.exec_with(&ask, "", ASK_LIMIT) else { return Ok(None) };
            asked.stdout.trim().clone_into(&mut answer);
            Ok(matches!(answer.as_str(), "running" | "degraded").then_some(()))
        });
        waited.map_err(|error| {
            let history = self.supervision.state().history.join("; ");
            anyhow!("{error:#} (last answer: {answer}; so far: {history})\n{}", self.console_tail())
        })
    }

    /// Reboots by `systemctl reboot` and waits until the host is up again.
    ///
    /// The service `unattended-upgrades` holds a shutdown back for some 3 s, here as on every Debian; where that time
    /// matters and the service does not, stop it first.
    ///
    /// # Errors
    /// When the host does not come up again.
    pub fn reboot(&self) -> Result<()> {
        let boots = self.boots();
        self.exec_ok(&["/usr/bin/systemctl", "--no-block", "reboot"])?;
        self.wait_boot(boots + 1)
    }

    /// Cuts the power, gives it back at once, and waits until the host is up again.
    ///
    /// # Errors
    /// When the host is off or does not come up again.
    pub fn power_cut(&self) -> Result<()> {
        let boots = self.boots();
        self.supervision.cut_power(Want::On)?;
        self.wait_boot(boots + 1)
    }

    /// Cuts the power for good; [`Host::start`] gives it back.
    ///
    /// # Errors
    /// When the host is off.
    pub fn lose_power(&self) -> Result<()> {
        self.supervision.cut_power(Want::Off)?;
        self.supervision.wait_off(OFF_LIMIT)
    }

    /// Switches the host off cleanly. Its disk stays.
    ///
    /// # Errors
    /// When it does not go off.
    pub fn off(&self) -> Result<()> {
        self.exec_ok(&["/usr/bin/systemctl", "--no-block", "poweroff"])?;
        self.supervision.want(Want::Off);
        self.supervision.wait_off(OFF_LIMIT)
    }

    /// Switches the host on and waits until it is up.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(&self) -> Result<()> {
        self.supervision.wait_off(OFF_LIMIT)?;
        let boots = self.boots();
        self.supervision.want(Want::On);
        self.wait_boot(boots + 1)
    }

    /// Starts `count` processes of one service, `crowd.service`, each with some hundred mappings as a daemon has, and waits
    /// until they are there.
    ///
    /// # Errors
    /// When they do not start.
    pub fn crowd(&self, count: usize) -> Result<()> {
        let script = "libs=$(ldconfig -p | sed -nE 's,.* => (/.*/lib(z|crypto|ssl|gcrypt|gpg-error|lzma|zstd|lz4|bz2|\
                      selinux|pcre2-8|cap|mount|blkid|uuid|audit|cap-ng|crypt|kmod|seccomp|udev|systemd|curl|sqlite3|expat)\
                      \\.so\\.[0-9]+)$,\\1,p' | tr '\\n' ' ')\n\
                      cat >/etc/systemd/system/crowd.service <<END\n[Service]\nTasksMax=infinity\nEnvironment=\"LD_PRELOAD=$libs\"\n\
                      ExecStart=/bin/sh -c 'i=0; while [ \\$\\$i -lt COUNT ]; do sleep infinity & i=\\$\\$((i+1)); done; wait'\nEND\n\
                      systemctl daemon-reload; systemctl start crowd";
        self.shell(&script.replace("COUNT", &count.to_string()))?;
        wait::until(&format!("{count} processes"), Duration::from_secs(60), || {
            let there = self.shell("{ pgrep -x sleep || true; } | wc -l")?;
            Ok(there.trim().parse::<usize>().is_ok_and(|there| there >= count).then_some(()))
        })
    }

    /// Makes the disk full: from now on there is room for not one byte more than lies on it.
    ///
    /// # Errors
    /// When the disk cannot be made smaller.
    pub fn fill_disk(&self) -> Result<()> {
        // Shrinking costs no memory, where a large file would. Whoever writes in between makes it fail: ask again.
        let script = "set -- \"$1\" $(stat --file-system --format='%b %f %S' \"$1\"); \
                      mount -o \"remount,size=$((($2 - $3) * $4))\" \"$1\"";
        wait::until(&format!("the disk of {} to be full", self.name()), Duration::from_secs(10), || {
            Ok(self.on_disk(&["/bin/sh", "-euc", script, "sh"]).ok())
        })
    }

    /// Gives the disk its size back.
    ///
    /// # Errors
    /// When the disk cannot be resized.
    pub fn free_disk(&self) -> Result<()> {
        self.on_disk(&["mount", "-o", &format!("remount,size={}", self.disk)])
    }

    fn on_disk(&self, argv: &[&str]) -> Result<()> {
        let mut command = self.holder.enter(&["--mount"]);
        command.args(argv).arg(self.directory.join("disk"));
        run_ok(command, Input::Nothing)
            .with_context(|| format!("cannot resize the disk of {}", self.name()))
            .map(drop)
    }

    /// What the console said last.
    #[must_use]
    pub fn console_tail(&self) -> String {
        let console = fs::read(self.directory.join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    fn destroy(&mut self) -> Result<()> {
        self.supervision.want(Want::Gone);
        self.holder.stop()?;
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.join().map_err(|_| anyhow!("the supervisor of {} panicked", self.name()))?;
        }
        cgroup::remove(&self.groups)?;
        fs::remove_dir_all(&self.directory)
            .with_context(|| format!("cannot remove {}", self.directory.display()))
    }
}

impl Deref for Host {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = self.destroy() {
            // The next sweep removes the rest.
            let run = self.run.id();
            writeln!(std::io::stderr(), "system-tests: run {run}, host {}: {error:#}", self.name())
                .unwrap_or_default();
        }
    }
}

/// Makes the host's namespaces with its disk mounted in them.
fn hold_disk(directory: &Path, base: &Path, options: &HostOptions) -> Result<Holder> {
    let script = format!("{}{}", include_str!("host-disk.sh"), Holder::STAY);
    let paths = [directory.to_string_lossy(), base.to_string_lossy()];
    let kind = if options.is_on_btrfs { "btrfs" } else { "overlay" };
    let mut arguments = vec![&*paths[0], &*paths[1], &options.name, &options.disk, kind];
    arguments.extend(options.real_directories.iter().map(String::as_str));
    let flags = ["--mount", "--propagation", "private", "--pid", "--mount-proc", "--net"];
    Holder::start(&flags, &script, &arguments)
        .with_context(|| format!("cannot make the disk of {}", options.name))
}

/// How the host is booted.
struct Boot {
    /// Enters the namespaces of the host's holder.
    nsenter: Command,
    /// What to write 0 into, so as to be in the host's control groups.
    joins: Vec<PathBuf>,
    machine: String,
    directory: PathBuf,
    options: HostOptions,
}

impl Boot {
    fn command(&self) -> Command {
        let mut command = Command::new(self.nsenter.get_program());
        command.args(self.nsenter.get_args());
        let console = fs::File::options().create(true).append(true).open(self.directory.join("console"));
        if let Ok((console, same)) = console.and_then(|console| Ok((console.try_clone()?, console))) {
            command.stdout(console).stderr(same);
        }
        command.args(["/bin/sh", "-euc", include_str!("host-boot.sh"), "sh"]);
        command.arg(self.joins.iter().map(|join| join.to_string_lossy()).collect::<Vec<_>>().join(" "));
        command.arg(&self.directory);
        command.args([
            "systemd-nspawn",
            "--quiet",
            "--boot",
            "--register=no",
            "--keep-unit",
            "--console=pipe",
        ]);
        command.args([
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--kill-signal=SIGRTMIN+3",
        ]);
        // Lets units use IPAddressDeny and its like.
        command.arg("--system-call-filter=bpf");
        // The number is that of the PID namespace: the holder, whose network this is.
        command.arg("--network-namespace-path=/proc/1/ns/net");
        command.arg(format!("--directory={}/root", self.directory.display()));
        command.arg(format!("--machine={}", self.machine)).arg(format!("--hostname={}", self.options.name));
        for (here, there) in &self.options.binds {
            command.arg(format!("--bind-ro={}:{there}", here.display()));
        }
        for real in &self.options.real_directories {
            command.arg(format!("--bind={}/disk/real{real}:{real}", self.directory.display()));
        }
        command.args(&self.options.nspawn_arguments);
        command
    }
}
