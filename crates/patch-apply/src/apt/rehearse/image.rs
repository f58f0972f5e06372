//! The file systems of an image: made in the keeper's mount namespace, seen by nobody else.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    net::{AddressFamily, RecvFlags, SendFlags, SocketType},
};

use super::{
    NoImage, OWN, Order,
    growth::{Growth, grown},
    mounts::{self, Mount, Treatment},
    room::INODE,
};

/// What the image's commands are not: they write to devices, of which it has none. Each is a name without a directory,
/// as maintainer scripts call it.
const NOT_RUN: &[&str] = &[
    "bootctl",
    "efibootmgr",
    "extlinux-update",
    "flash-kernel",
    "grub-install",
    "grub-mkconfig",
    "kernel-install",
    "lilo",
    "mokutil",
    "u-boot-update",
    "update-grub",
    "update-grub2",
    "zipl",
];

/// Where programs are.
const PROGRAMS: &[&str] = &["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];

/// Says that it was called, and succeeds.
const STAND_IN: &str = "#!/bin/sh\nname=${0##*/}\necho \"rehearsal: $name is not run, an image has no devices\"\n\
                        echo \"$name\" >>/run/linux-patch-rehearsal/not-run\n";

/// Where that is below `/run`.
const NOTE: &str = "linux-patch-rehearsal/not-run";

/// What is `/run` in the image, and in the system in it that is changed, where this is another one.
const RUNS: [&str; 2] = ["run", "run-below"];

/// A file larger than that which is a mount of its own is shown, but cannot be written.
const SMALL: u64 = 1 << 20;

/// One file system of the image.
#[derive(Debug)]
pub(super) struct Layer {
    /// Where it is, as the host sees it.
    pub(super) point: PathBuf,
    upper: PathBuf,
    /// What it shares its room with.
    pool: String,
}

/// The file systems of an image.
#[derive(Debug)]
pub(super) struct Image {
    /// Where the keeper sees its root.
    pub(super) merged: PathBuf,
    pub(super) layers: Vec<Layer>,
    /// What the host has and it has not: one sentence each.
    pub(super) left_out: Vec<String>,
    memory: PathBuf,
}

/// Leaves the host's namespaces, all but that of its users.
pub(super) fn leave() -> Result<(), NoImage> {
    let all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    unshare(all).map_err(NoImage::of("namespaces of its own are not to be had"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(NoImage::of("the mounts cannot be made private"))?;
    // Without it a server that a script starts for a moment cannot be spoken to; a kernel may have no IPv4.
    let _ = loopback_up();
    Ok(())
}

/// `ip link set lo up`, which not every host has: one message of the kernel's routing protocol.
fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let mut message = Vec::with_capacity(32);
    // The header: length, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, number, sender.
    message.extend(32_u32.to_ne_bytes());
    message.extend(16_u16.to_ne_bytes());
    message.extend(5_u16.to_ne_bytes());
    message.extend([0; 8]);
    // The link: family and type, the first interface, IFF_UP, and that this is what changes.
    message.extend([0; 4]);
    message.extend(1_i32.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0; 1024];
    rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    Ok(())
}

impl Image {
    /// Mounts an image of the host.
    pub(super) fn mount(order: &Order) -> Result<Self, NoImage> {
        let (memory, room) = (order.staging.clone(), order.bounds.room);
        let options = format!("mode=0700,size={},nr_inodes={}", room.bytes.max(1 << 20), room.files);
        mount(
            Some("linux-patch-rehearsal"),
            &memory,
            Some("tmpfs"),
            MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
            Some(options.as_str()),
        )
        .map_err(NoImage::of("memory for what is written cannot be mounted"))?;
        let list = fs::read_to_string("/proc/self/mountinfo").map_err(NoImage::of("/proc/self/mountinfo"))?;
        let merged = memory.join("root");
        fs::create_dir(&merged).map_err(NoImage::of("the image's root"))?;
        let mut image = Self { merged, layers: Vec::new(), left_out: Vec::new(), memory };
        for found in mounts::parse(&list) {
            if found.point.starts_with(&order.staging) {
                continue;
            }
            match mounts::treatment(&found, &order.root) {
                Treatment::Overlay => image.overlay(&found, &order.root)?,
                Treatment::Fresh => image.fresh(&found.point)?,
                Treatment::Nothing => {}
                Treatment::LeftOut => image.leave_out(&found.point, &found.kind),
            }
        }
        image.furnish(&order.root)?;
        Ok(image)
    }

    fn leave_out(&mut self, point: &Path, why: &str) {
        self.left_out.push(format!("{} ({why})", point.display()));
    }

    /// Where the image has what the host has at `point`; none where an image of the system cannot have it.
    fn place(&self, point: &Path) -> PathBuf {
        self.merged.join(point.strip_prefix("/").unwrap_or(point))
    }

    fn overlay(&mut self, found: &Mount, root: &Path) -> Result<(), NoImage> {
        let point = found.point.as_path();
        let what = || format!("an overlay of {}", point.display());
        let is_root = point == Path::new("/");
        let target = self.place(point);
        // A place that a mount which is left out has hidden.
        if !is_root && fs::symlink_metadata(&target).is_err() {
            return Ok(());
        }
        let meta = fs::metadata(point).map_err(NoImage::of(what()))?;
        if !meta.is_dir() {
            return self.file(point, &target, meta.len());
        }
        if self.layers.len() >= mounts::MOST {
            self.leave_out(point, "one file system too many");
            return Ok(());
        }
        let own = self.memory.join(format!("layer-{}", self.layers.len()));
        let (upper, work) = (own.join("upper"), own.join("work"));
        let made = fs::create_dir(&own)
            .and_then(|()| fs::create_dir(&upper))
            .and_then(|()| fs::create_dir(&work))
            .and_then(|()| fs::set_permissions(&upper, fs::Permissions::from_mode(meta.mode())))
            .and_then(|()| std::os::unix::fs::chown(&upper, Some(meta.uid()), Some(meta.gid())));
        made.map_err(NoImage::of(what()))?;
        // By their descriptors: a path may have any byte in it, and these options have theirs.
        let open = |path: &Path| {
            rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(NoImage::of(what()))
        };
        let (lower, up, work) = (open(point)?, open(&upper)?, open(&work)?);
        let base = format!(
            "lowerdir=/proc/self/fd/{},upperdir=/proc/self/fd/{},workdir=/proc/self/fd/{}",
            lower.as_raw_fd(),
            up.as_raw_fd(),
            work.as_raw_fd()
        );
        let mut last = nix::errno::Errno::EINVAL;
        // dpkg renames directories, which an overlay refuses without `redirect_dir`. Without `metacopy` a file is copied whole
        // when only its owner or mode changes, and a script's `chown -R` fills the memory. `volatile` is of Linux 5.10.
        for more in [
            "metacopy=on,redirect_dir=on,index=off,volatile",
            "redirect_dir=on,index=off,volatile",
            "redirect_dir=on",
            "",
        ] {
            let options = if more.is_empty() { base.clone() } else { format!("{base},{more}") };
            match mount(Some("overlay"), &target, Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()))
            {
                Ok(()) => {
                    let pool = found.pool.clone();
                    self.layers.push(Layer { point: point.to_owned(), upper, pool });
                    return Ok(());
                }
                Err(error) => last = error,
            }
        }
        if is_root || point == root {
            return Err(NoImage { what: what(), source: last.into() });
        }
        // The kernel takes some file systems for no overlay, such as those whose names know no case.
        self.leave_out(point, &format!("no overlay: {last}"));
        let shown = mount(Some(point), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        shown.and_then(|()| read_only(&target)).map_err(NoImage::of(what()))
    }

    /// A mount of a single file: a copy of it, or the file itself if it cannot be written.
    fn file(&mut self, point: &Path, target: &Path, size: u64) -> Result<(), NoImage> {
        let what = || format!("an image of {}", point.display());
        let copy = self.memory.join(format!("file-{}", self.left_out.len() + self.layers.len()));
        let is_plain = fs::metadata(point).is_ok_and(|meta| meta.is_file());
        if is_plain && size <= SMALL && !copy.exists() {
            fs::copy(point, &copy).map_err(NoImage::of(what()))?;
            return mount(Some(&copy), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(NoImage::of(what()));
        }
        self.leave_out(point, "a mount of a single file");
        Ok(())
    }

    fn fresh(&self, point: &Path) -> Result<(), NoImage> {
        let target = self.place(point);
        if !target.is_dir() {
            return Ok(());
        }
        let own = self.memory.join(format!("fresh{}", point.to_string_lossy().replace('/', "-")));
        let made = fs::create_dir(&own)
            .and_then(|()| fs::set_permissions(&own, fs::Permissions::from_mode(0o1777)))
            .and_then(|()| Ok(mount(Some(&own), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?));
        made.map_err(NoImage::of(format!("an empty {}", point.display())))
    }

    /// What is the image's own: an empty `/run`, with stand-ins for what needs devices.
    fn furnish(&self, root: &Path) -> Result<(), NoImage> {
        for system in systems(&self.merged, root) {
            let run = system.join("run");
            if fs::symlink_metadata(&run).is_ok_and(|meta| meta.is_dir()) {
                let own = self.memory.join(if system == self.merged { RUNS[0] } else { RUNS[1] });
                let made = (|| {
                    fs::create_dir(&own)?;
                    fs::set_permissions(&own, fs::Permissions::from_mode(0o755))?;
                    mount(Some(&own), &run, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
                    fs::create_dir(run.join("lock"))?;
                    fs::set_permissions(run.join("lock"), fs::Permissions::from_mode(0o1777))?;
                    let stand_ins = system.join(OWN).join("bin");
                    fs::create_dir_all(&stand_ins)?;
                    // Only for those that are there: scripts ask.
                    let is_there = |name: &&&str| {
                        PROGRAMS.iter().any(|dir| fs::symlink_metadata(system.join(dir).join(name)).is_ok())
                    };
                    for name in NOT_RUN.iter().filter(is_there) {
                        fs::write(stand_ins.join(name), STAND_IN)?;
                        fs::set_permissions(stand_ins.join(name), fs::Permissions::from_mode(0o755))?;
                    }
                    Ok(())
                })();
                made.map_err(NoImage::of::<io::Error>("an empty /run"))?;
            }
        }
        Ok(())
    }

    /// Which of the commands that are not run were called.
    pub(super) fn not_run(&self) -> Vec<String> {
        let mut names: Vec<String> = RUNS
            .iter()
            .filter_map(|run| small(&self.memory.join(run), Path::new(NOTE)))
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|name| NOT_RUN.contains(&name.as_str()))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// How much is written, and whether there is no room left.
    pub(super) fn written(&self) -> (u64, bool) {
        let Ok(space) = rustix::fs::statvfs(&self.memory) else { return (0, false) };
        let written = (space.f_blocks - space.f_bfree.min(space.f_blocks)) * space.f_frsize;
        (written, space.f_bavail * space.f_frsize < 1 << 20 || space.f_favail < 16)
    }

    /// How much memory its files take, with what the kernel keeps of each.
    pub(super) fn memory(&self) -> u64 {
        let Ok(space) = rustix::fs::statvfs(&self.memory) else { return 0 };
        let files = space.f_files - space.f_ffree.min(space.f_files);
        self.written().0 + files * INODE
    }

    /// What the host lacks for the same: one sentence for each of its file systems that would be full.
    pub(super) fn lacking(&self, largest: u64) -> Vec<String> {
        let mut pools: BTreeMap<&str, (Vec<&Path>, Growth)> = BTreeMap::new();
        for layer in &self.layers {
            let (points, growth) = pools.entry(&layer.pool).or_default();
            points.push(&layer.point);
            growth.add(grown(&layer.upper, &layer.point));
        }
        let lacking = pools.values().filter_map(|(points, growth)| {
            let space = rustix::fs::statvfs(*points.first()?).ok()?;
            let free = space.f_bavail * space.f_frsize;
            if growth.written == 0 || space.f_blocks == 0 {
                return None;
            }
            let needed = growth.needed(largest);
            let named: Vec<String> = points.iter().map(|point| point.display().to_string()).collect();
            (needed > free).then(|| {
                let (needed, free) = (needed >> 10, free >> 10);
                format!("{} would need {needed} KiB more, and has {free} KiB left", named.join(" and "))
            })
        });
        lacking.collect()
    }
}

/// The image's root, and that of the system in it that is changed, where this is another one.
pub(super) fn systems(merged: &Path, root: &Path) -> Vec<PathBuf> {
    let mut systems = vec![merged.to_owned()];
    if root != Path::new("/") {
        systems.push(merged.join(root.strip_prefix("/").unwrap_or(root)));
    }
    systems
}

/// A mount that is a bind already, from now on not to be written to.
pub(super) fn read_only(target: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_BIND
        | MsFlags::MS_REMOUNT
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOEXEC;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
}

/// A small text below a directory, of which a script may have replaced every part by anything: by a link to a place of the
/// host, or by what keeps whoever opens it waiting.
fn small(directory: &Path, path: &Path) -> Option<String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(&directory, path, flags, Mode::empty(), beneath).ok()?;
    let file = fs::File::from(file);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, 64 << 10), &mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_script_left_is_read_only_if_it_is_a_small_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("plain"), "update-grub\n").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::write(at("long"), vec![b'x'; 1 << 20]).unwrap();
        // Of a directory as well: what is behind such a link is the host's.
        fs::create_dir(at("below")).unwrap();
        fs::write(at("below/plain"), "zipl\n").unwrap();
        std::os::unix::fs::symlink("below", at("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path(), at("below/out")).unwrap();
        let read = |name: &str| small(dir.path(), Path::new(name));
        assert_eq!(read("plain").as_deref(), Some("update-grub\n"));
        assert_eq!(read("below/plain").as_deref(), Some("zipl\n"));
        for name in ["link", "fifo", "below", "elsewhere/plain", "below/out/plain", "../plain", "/etc/passwd"]
        {
            assert_eq!(read(name), None, "{name}");
        }
        assert_eq!(read("long").unwrap().len(), 64 << 10);
        assert_eq!(small(&at("elsewhere"), Path::new("plain")), None);
    }
}
