//! A disk with btrfs on it, in memory, that has a root: throw-away roots run from its subvolumes, and run from others after what is a
//! reboot for them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::holder::Holder;
use crate::process::{Input, run_ok};
use crate::{Guest, RootOptions, base};

/// Makes the file system and copies the base into a subvolume. The loop device goes with its last mount.
/// $1 the base, $2 the size, $3 the subvolume, or nothing for the top, $4 the kind of file system
const MAKE: &str = "mount -t tmpfs -o mode=700 lp-disk /mnt
truncate -s \"$2\" /mnt/image
mkfs.$4 -q /mnt/image >/dev/null
mkdir /mnt/top
mount -o loop,noatime /mnt/image /mnt/top
to=/mnt/top
if [ -n \"$3\" ]; then to=/mnt/top/$3; btrfs -q subvolume create \"$to\" >/dev/null; fi
cp -a \"$1/.\" \"$to/\"
";

/// Copies a program and the libraries that it needs into a root. $1 the root, then the programs
const BRING: &str = "root=$1; shift
for program; do
  for file in $program $(ldd \"$program\" | grep -o '/[^ ]*'); do
    [ -e \"$root$file\" ] || install -D -m 755 \"$file\" \"$root$file\"
  done
done";

/// The disk. What runs from it has to be gone before it goes.
#[derive(Debug)]
pub struct Disk {
    holder: Holder,
    device: PathBuf,
}

impl Disk {
    /// One of a size as `truncate` takes it, with the base in a subvolume, or at the top if that has no name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(size: &str, subvolume: &str) -> Result<Self> {
        Self::of("btrfs", size, subvolume)
    }

    /// One with ext4 on it, for what needs a device.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn ext4(size: &str) -> Result<Self> {
        Self::of("ext4", size, "")
    }

    fn of(kind: &str, size: &str, subvolume: &str) -> Result<Self> {
        let lower = base::root()?;
        let script = format!("{MAKE}{}", Holder::STAY);
        let flags = ["--mount", "--propagation", "private", "--pid", "--ipc"];
        let holder = Holder::start(&flags, &script, &[&*lower.to_string_lossy(), size, subvolume, kind])
            .with_context(|| format!("cannot make a disk of {kind}"))?;
        let mut disk = Self { holder, device: PathBuf::new() };
        disk.device = disk.shell("findmnt -no SOURCE /mnt/top")?.trim().into();
        Ok(disk)
    }

    /// Runs a script where the top of the file system is seen, at `/mnt/top`.
    ///
    /// # Errors
    /// When one of its commands fails.
    pub fn shell(&self, script: &str) -> Result<String> {
        let mut command = self.holder.enter(&["--mount"]);
        command.args(["/bin/bash", "-euo", "pipefail", "-c", script]);
        run_ok(command, Input::Nothing).context("cannot work on a disk of btrfs")
    }

    /// A root that runs from these mounts, each a place and its options, such as `("/", "subvol=@")`.
    #[must_use]
    pub fn root(&self, mounts: &[(&str, &str)]) -> RootOptions {
        RootOptions::default().on_device(&self.device, mounts)
    }
}

/// The libraries that a program of the machine needs.
///
/// # Errors
/// When it is not there.
pub fn libraries(program: &str) -> Result<Vec<String>> {
    let mut command = Command::new("ldd");
    command.arg(program);
    let said = run_ok(command, Input::Nothing).context("cannot ask what a program needs")?;
    let words = said.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(|word| word.trim_end_matches(':').to_owned()).collect())
}

/// Copies programs of the machine into a root, with their libraries.
///
/// # Errors
/// When one is not there.
pub fn bring(root: &Path, programs: &[&str]) -> Result<()> {
    let mut command = Command::new("/bin/bash");
    command.args(["-euo", "pipefail", "-c", BRING, "bash"]).arg(root).args(programs);
    run_ok(command, Input::Nothing).context("cannot bring programs into a root").map(drop)
}

/// What makes and removes snapshots, brought into a root.
///
/// # Errors
/// When the machine has not got it.
pub fn bring_btrfs(root: &Path) -> Result<()> {
    bring(root, &["/usr/bin/btrfs"])
}

/// snapper, with a configuration for the root.
///
/// # Errors
/// When the machine has not got it, or it cannot be configured.
pub fn configure_snapper(root: &Path, guest: &Guest) -> Result<()> {
    bring(root, &["/usr/bin/snapper"])?;
    let templates = "etc/snapper/config-templates";
    let mut command = Command::new("cp");
    std::fs::create_dir_all(root.join("etc/snapper/configs"))?;
    command.arg("-a").arg(Path::new("/usr/share/snapper/config-templates")).arg(root.join(templates));
    run_ok(command, Input::Nothing)?;
    guest.push("SNAPPER_CONFIGS=\"\"\n", "/etc/default/snapper", "644")?;
    guest.exec_ok(&["/usr/bin/snapper", "--no-dbus", "-c", "root", "create-config", "/"]).map(drop)
}
