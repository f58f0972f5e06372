//! What the host says of itself, and the few things that are done to it. Decides nothing.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use patch_audit::{AuditEvent, AuditKind, Bounds, Caller, Hash, Priority, append};
use patch_backends::{apt::Database, system};
use patch_policy::reboot::Inhibitor;
use patch_types::executor::{JOURNAL_DIR, RECORD, STATE_DIR};
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use super::command::command;

/// The locks of dpkg and apt, below the root.
const LOCKS: [&str; 3] = ["var/lib/dpkg/lock-frontend", "var/lib/dpkg/lock", "var/cache/apt/archives/lock"];

const FRONTEND: &str = "var/lib/dpkg/lock-frontend";

/// What packages' scripts make to ask for a reboot, below the root.
const ASKED: &str = "run/reboot-required";

/// Which packages did.
const ASKED_BY: &str = "run/reboot-required.pkgs";

/// The most packages that are taken from that list.
const MAX_ASKED: usize = 200;

/// The unit that this runs in.
const UNIT: &str = "linux-patch-reboot-window.service";

/// What starts it, also after the boot.
const TIMER: &str = "linux-patch-reboot-window.timer";

/// As the executor keeps its record.
const BOUNDS: Bounds = Bounds { file_bytes: 8 << 20, files: 32 };

/// What makes the id that is told to a lock server another one than the machine's, which is to be kept private.
const ID_OF: &str = "linux-patch-reboot-window fleet lock:";

/// A host that boots longer than this does not come up.
const BOOTS: u64 = 15 * 60;

/// How often, and how far apart, a lock is tried that somebody may hold to look only.
const GLANCES: u32 = 10;
const GLANCE: std::time::Duration = std::time::Duration::from_millis(5);

/// The host.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) root: PathBuf,
    pub(super) systemctl: String,
    pub(super) busctl: String,
}

/// Whether a host that has booted is in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// It still boots.
    Starting,
    /// It is.
    Well,
    /// It is not; why.
    Sick(String),
}

/// What changes packages, and the executor's turn if it was free: while this is held no change begins.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) transaction: Option<String>,
    turn: Option<Lock>,
}

/// A file with a lock, which ends with this: also if a child that begins at this moment still has the file too.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // What is not locked is not harmed, and the kernel ends what remains with the process.
        let _ = flock(&self.0, FlockOperation::Unlock);
        let _ = fcntl(&self.0, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
    }
}

/// One lock of logind's list: what, who, why, mode, user, process.
type Held = (String, String, String, String, u32, u32);

/// An answer of `busctl --json=short`.
#[derive(Deserialize)]
struct Answer {
    data: Vec<Vec<Held>>,
}

impl Machine {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, systemctl: "/usr/bin/systemctl".into(), busctl: "/usr/bin/busctl".into() }
    }

    /// A file of the root side's own directory.
    pub(super) fn own(&self, name: &str) -> PathBuf {
        self.root.join(STATE_DIR).join(name)
    }

    /// Makes the root side's own directory, if the root side has not been asked for anything yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn make_directory(&self) -> anyhow::Result<()> {
        let path = self.own("");
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("{} cannot be made; are you root?", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The kernel's name for this boot.
    ///
    /// # Errors
    /// When it does not say: then nobody could tell whether the host was rebooted.
    pub(super) fn boot(&self) -> anyhow::Result<String> {
        let id = system::boot_id(&self.root);
        ensure!(
            !id.is_empty(),
            "the kernel does not say which boot this is (/proc/sys/kernel/random/boot_id)"
        );
        Ok(id)
    }

    /// What asks for a reboot: fingerprints and sentences.
    ///
    /// # Errors
    /// When the package database cannot be read.
    pub(super) fn causes(&self) -> anyhow::Result<Vec<(String, String)>> {
        let database = Database::read_for_list(&self.root).context("the package database cannot be read")?;
        let mut causes = Vec::new();
        if self.root.join(ASKED).exists() {
            let text = fs::read(self.root.join(ASKED_BY)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let mut names: Vec<&str> = text.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
            names.sort_unstable();
            names.dedup();
            for name in names.iter().take(MAX_ASKED) {
                let installed = database.named(name).find(|package| package.is_present());
                let version =
                    installed.map(|package| format!(" {}", package.version_text())).unwrap_or_default();
                let sentence = format!("{name}{version} asked for it (/{ASKED})");
                causes.push((format!("package {name}{version}"), sentence));
            }
            if names.is_empty() {
                causes.push(("file".to_owned(), format!("/{ASKED} is there")));
            }
        }
        let banner = fs::read_to_string(self.root.join("proc/version")).unwrap_or_default();
        let kernel = system::newer_kernel(&system::kernel_release(&self.root), &banner, &database);
        causes.extend(kernel.map(|sentence| (format!("kernel: {sentence}"), sentence)));
        Ok(causes)
    }

    /// What changes packages at this moment.
    ///
    /// # Errors
    /// When the locks cannot be asked about.
    pub(super) fn changes(&self) -> anyhow::Result<Changes> {
        let path = self.root.join(JOURNAL_DIR).join("turn");
        let turn = match File::options().read(true).write(true).open(&path) {
            Ok(turn) => Some(Lock(turn)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("{} cannot be opened", path.display())),
        };
        let mut transaction = None;
        if let Some(Lock(turn)) = &turn {
            match lock_soon(turn) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut job = String::new();
                    let _ = turn.take(64).read_to_string(&mut job);
                    transaction = Some(format!("job {} of linux-patch-api", job.trim()));
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("{} cannot be locked", path.display()));
                }
            }
        }
        if transaction.is_none() {
            transaction = self.apt_or_dpkg()?;
        }
        Ok(Changes { transaction, turn })
    }

    /// The same once more, while the turn is still held if it was.
    ///
    /// # Errors
    /// As [`Machine::changes`].
    pub(super) fn changes_again(&self, changes: &mut Changes) -> anyhow::Result<()> {
        if changes.turn.is_none() {
            *changes = self.changes()?;
        } else if changes.transaction.is_none() {
            changes.transaction = self.apt_or_dpkg()?;
        }
        Ok(())
    }

    /// Who holds one of the locks of apt and dpkg.
    fn apt_or_dpkg(&self) -> anyhow::Result<Option<String>> {
        for lock in LOCKS {
            if let Some(holder) = self.holder(lock)? {
                return Ok(Some(holder));
            }
        }
        Ok(None)
    }

    /// Who holds a lock of apt or dpkg.
    fn holder(&self, lock: &str) -> anyhow::Result<Option<String>> {
        let path = self.root.join(lock);
        // Write access is what makes the kernel compare with write locks; the file is not written.
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("{} cannot be opened", path.display())),
        };
        let mut found = whole_file(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_GETLK(&mut found))
            .with_context(|| format!("{}: no answer", path.display()))?;
        if i32::from(found.l_type) == libc::F_UNLCK {
            return Ok(None);
        }
        let name = fs::read_to_string(format!("/proc/{}/comm", found.l_pid)).unwrap_or_default();
        let who = if name.is_empty() { "a process".to_owned() } else { name.trim().to_owned() };
        Ok(Some(format!("{who} holds /{lock}")))
    }

    /// Keeps apt and dpkg from beginning anything until it is dropped; none if one of them works.
    ///
    /// # Errors
    /// When the lock cannot be taken for another reason.
    pub(super) fn keep_apt_out(&self) -> anyhow::Result<Option<Lock>> {
        let path = self.root.join(FRONTEND);
        let unusable = || format!("{} cannot be locked", path.display());
        let file = File::options().read(true).write(true).open(&path).with_context(unusable)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => Ok(Some(Lock(file))),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(error).with_context(unusable),
        }
    }

    /// Who holds a shutdown up. That it cannot be found out counts as one.
    pub(super) fn inhibitors(&self) -> Vec<Inhibitor> {
        if !self.root.join("run/dbus/system_bus_socket").exists() {
            // Nobody could have asked for it.
            return Vec::new();
        }
        let unknown = |why: String| vec![Inhibitor { who: "systemd-logind".into(), why }];
        let bus = "org.freedesktop.login1";
        let output = command(&self.busctl)
            .args(["--system", "--json=short", "--timeout=10", "call", bus, "/org/freedesktop/login1"])
            .args(["org.freedesktop.login1.Manager", "ListInhibitors"])
            .output();
        match output {
            Err(error) => unknown(format!("{} cannot be started: {error}", self.busctl)),
            Ok(output) if output.status.success() => match inhibitors(&output.stdout) {
                Ok(inhibitors) => inhibitors,
                Err(error) => unknown(format!("its answer is not understood: {error}")),
            },
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                // Without logind nobody can hold anything up.
                let is_absent = said.contains("not provided by any .service files")
                    || said.contains("Unit dbus-org.freedesktop.login1.service not found");
                if is_absent { Vec::new() } else { unknown(format!("it cannot be asked: {}", said.trim())) }
            }
        }
    }

    /// The units that have failed.
    ///
    /// # Errors
    /// When systemd cannot be asked.
    pub(super) fn failed_units(&self) -> anyhow::Result<Vec<String>> {
        let args = ["list-units", "--state=failed", "--plain", "--no-legend", "--no-pager", "--full"];
        let output = command(&self.systemctl).args(args).output();
        let output = output.with_context(|| format!("{} cannot be started", self.systemctl))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "systemctl list-units failed: {said}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let units = text.lines().filter_map(|line| line.split_whitespace().next());
        // What this program says of itself must not keep it from ever being content.
        Ok(units.filter(|unit| *unit != UNIT).map(str::to_owned).collect())
    }

    /// Why nobody would take back what is done for a reboot, if so.
    ///
    /// # Errors
    /// When systemd cannot be asked.
    pub(super) fn timer_is_off(&self) -> anyhow::Result<Option<String>> {
        let args = ["show", "--property=ActiveState", "--property=UnitFileState", TIMER];
        let output = command(&self.systemctl).args(args).output();
        let output = output.with_context(|| format!("{} cannot be started", self.systemctl))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "systemctl show {TIMER} failed: {said}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let has = |line: &str| text.lines().any(|other| other.trim() == line);
        // It has to look in this boot and in the next one.
        let why = match (has("ActiveState=active"), has("UnitFileState=enabled")) {
            (true, true) => return Ok(None),
            (false, _) => "does not run",
            (true, false) => "is not enabled",
        };
        Ok(Some(format!("{TIMER} {why}; systemctl enable --now {TIMER}")))
    }

    /// Whether the host is in order, compared with the units that had failed before.
    ///
    /// # Errors
    /// When systemd cannot be asked.
    pub(super) fn health(&self, failed_before: &[String]) -> anyhow::Result<Health> {
        let output = command(&self.systemctl).arg("is-system-running").output();
        let output = output.with_context(|| format!("{} cannot be started", self.systemctl))?;
        let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let is_starting = ["initializing", "starting"].contains(&state.as_str());
        if is_starting && system::uptime_seconds(&self.root) < BOOTS {
            return Ok(Health::Starting);
        }
        let failed = self.failed_units()?;
        let new: Vec<&str> =
            failed.iter().filter(|unit| !failed_before.contains(unit)).map(String::as_str).collect();
        Ok(if !new.is_empty() {
            Health::Sick(format!("{} failed, which had not before", new.join(", ")))
        } else if ["running", "degraded"].contains(&state.as_str()) {
            Health::Well
        } else {
            Health::Sick(format!("systemd says that the host is {state:?}"))
        })
    }

    /// The host's id for a lock server: always the same, and nobody's else.
    ///
    /// # Errors
    /// When the host has no id of its own.
    pub(super) fn lock_id(&self) -> anyhow::Result<String> {
        let path = self.root.join("etc/machine-id");
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let id = text.trim();
        let is_one = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        ensure!(is_one, "{} holds no machine id; systemd-machine-id-setup makes one", path.display());
        let mut hash = Hash::of(format!("{ID_OF}{id}").as_bytes()).to_string();
        hash.truncate(32);
        Ok(hash)
    }

    /// Reboots the host, as soon as systemd gets to it.
    ///
    /// # Errors
    /// When systemd refuses.
    pub(super) fn reboot(&self) -> anyhow::Result<()> {
        let output = command(&self.systemctl).arg("reboot").output();
        let output = output.with_context(|| format!("{} cannot be started", self.systemctl))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "systemctl reboot failed: {said}");
        Ok(())
    }

    /// For how long the host has run.
    pub(super) fn uptime(&self) -> std::time::Duration {
        std::time::Duration::from_secs(system::uptime_seconds(&self.root))
    }

    /// Puts a sentence into the root side's own record.
    ///
    /// # Errors
    /// When it is not on disk.
    pub(super) fn record(&self, at: Timestamp, priority: Priority, what: &str) -> anyhow::Result<()> {
        let kind = AuditKind::SystemChanged { what: format!("reboot window: {what}") };
        let mut event = AuditEvent::happened(at, kind, &Caller::local());
        event.priority = priority;
        let path = self.root.join(RECORD);
        append(&path, &[event], &BOUNDS)
            .map(drop)
            .with_context(|| format!("{} cannot be written", path.display()))
    }
}

/// A duration until an instant, which is none if that is over.
pub(super) fn until(now: Timestamp, end: Timestamp) -> std::time::Duration {
    let left: SignedDuration = end.duration_since(now);
    std::time::Duration::try_from(left).unwrap_or_default()
}

/// Those in logind's answer that hold a shutdown up, rather than delay it for moments.
fn inhibitors(answer: &[u8]) -> serde_json::Result<Vec<Inhibitor>> {
    let answer: Answer = serde_json::from_slice(answer)?;
    let held =
        answer.data.into_iter().flatten().filter(|(what, _, _, mode, ..)| {
            mode == "block" && what.split(':').any(|what| what == "shutdown")
        });
    Ok(held.map(|(_, who, why, ..)| Inhibitor { who, why }).collect())
}

/// Locks a file. Who only looks holds it for moments, so one refusal means nothing yet.
fn lock_soon(file: &File) -> rustix::io::Result<()> {
    for _ in 0..GLANCES {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(GLANCE),
            other => return other,
        }
    }
    flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// A lock of a kind on all of a file.
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Opens or makes a lock file of the root side and locks it; none if somebody has it.
pub(super) fn try_lock(path: &Path) -> io::Result<Option<Lock>> {
    let file = File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock(file))),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_blocks_a_shutdown_counts() {
        let answer = br#"{"type":"a(ssssuu)","data":[[["shutdown","Unattended Upgrades Shutdown","Stop","delay",0,1],
            ["sleep","UPower","Pause","block",0,2],["shutdown:sleep","backup","a backup runs","block",0,3]]]}"#;
        let held = [Inhibitor { who: "backup".into(), why: "a backup runs".into() }];
        assert_eq!(inhibitors(answer).unwrap(), held);
        assert_eq!(inhibitors(br#"{"type":"a(ssssuu)","data":[[]]}"#).unwrap(), []);
        assert!(inhibitors(b"").is_err());
    }
}
