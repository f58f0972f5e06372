//! Which of the host's mounts an image of it has, and how: a pure decision over the kernel's list.

use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where it is seen.
    pub(super) point: PathBuf,
    /// Its file system's type.
    pub(super) kind: String,
    /// What it shares its room with: mounts of one file system, subvolumes of one, data sets of one pool.
    pub(super) pool: String,
}

/// What an image has where the host has a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Treatment {
    /// The same files; what is written stays in the image.
    Overlay,
    /// An empty file system in memory.
    Fresh,
    /// Nothing, without a word: the kernel's own, which the image gets anew, or nothing of the system's.
    Nothing,
    /// Nothing, which the report says: a package could write there.
    LeftOut,
}

/// The most file systems that an image is made of.
pub(super) const MOST: usize = 32;

/// The kernel's own. An image has its own ones of those that it needs.
pub(crate) const KERNEL: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "ramfs",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// Those on which another machine or another process may keep whoever reads waiting.
const FOREIGN: &[&str] =
    &["9p", "afs", "ceph", "cifs", "fuse", "glusterfs", "nfs", "nfs4", "smb3", "virtiofs"];

/// Where packages put their files, and their scripts look.
const SYSTEM: &[&str] = &["bin", "boot", "etc", "home", "opt", "root", "sbin", "srv", "usr", "var"];

/// What other systems keep there is none of this one's.
const CONTAINERS: &[&str] =
    &["containerd", "containers", "docker", "kubelet", "lxc", "lxd", "machines", "snapd", "libvirt"];

/// Reads the kernel's list. Of several mounts at one place the last is the one that is seen.
pub(super) fn parse(text: &str) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (before.split(' ').nth(4), after.split(' ').next()) else { continue };
        let (device, source) = (before.split(' ').nth(2), after.split(' ').nth(1));
        let pool = pool(kind, device.unwrap_or_default(), source.unwrap_or_default());
        let mount = Mount { point: unescape(point), kind: kind.to_owned(), pool };
        mounts.retain(|earlier| earlier.point != mount.point);
        mounts.push(mount);
    }
    // What lies below another one is mounted after it.
    mounts.sort_by(|a, b| a.point.cmp(&b.point));
    mounts
}

/// The kernel's number of the file system is the same for all subvolumes of a btrfs; of ZFS each data set has its own.
fn pool(kind: &str, device: &str, source: &str) -> String {
    match kind {
        "zfs" => format!("zfs {}", source.split('/').next().unwrap_or(source)),
        _ => device.to_owned(),
    }
}

/// The kernel writes blanks and backslashes as three octal digits.
pub(crate) fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// What an image of the system below `root` has in place of a mount.
pub(super) fn treatment(mount: &Mount, root: &Path) -> Treatment {
    let kind = mount.kind.as_str();
    if mount.point == Path::new("/") || mount.point == root {
        return Treatment::Overlay;
    }
    if KERNEL.contains(&kind) {
        return Treatment::Nothing;
    }
    // Seen from the system's root, or from the machine's where that is another one.
    let point = mount.point.strip_prefix(root).or_else(|_| mount.point.strip_prefix("/"));
    let Ok(point) = point else { return Treatment::Nothing };
    let mut parts = point.iter().filter_map(|part| part.to_str());
    let first = parts.next().unwrap_or_default();
    if first == "tmp" || (first == "var" && point.ends_with("var/tmp")) {
        return Treatment::Fresh;
    }
    if matches!(first, "dev" | "proc" | "run" | "sys") {
        return Treatment::Nothing;
    }
    if first == "var" && parts.next() == Some("lib") && parts.next().is_some_and(|p| CONTAINERS.contains(&p))
    {
        return Treatment::Nothing;
    }
    // `/lib`, `/lib64` and their like are the system's; whatever else is mounted, `/data` or `/app`, may be a package's too.
    // What snaps bring is read-only, and nothing of apt's.
    if !SYSTEM.contains(&first) && !first.starts_with("lib") {
        return if first == "snap" { Treatment::Nothing } else { Treatment::LeftOut };
    }
    let family = kind.split('.').next().unwrap_or(kind);
    if FOREIGN.contains(&family) { Treatment::LeftOut } else { Treatment::Overlay }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:22 / /sys rw - sysfs sysfs rw
25 22 0:5 / /dev rw - devtmpfs udev rw
26 22 0:24 / /run rw - tmpfs tmpfs rw
27 22 0:25 / /tmp rw - tmpfs tmpfs rw
28 22 8:2 / /boot rw - ext4 /dev/sda2 rw
29 28 8:3 / /boot/efi rw - vfat /dev/sda3 rw
30 22 8:4 / /var rw - xfs /dev/sda4 rw
31 30 0:40 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw
32 22 0:41 / /home rw - nfs4 server:/home rw
33 22 0:42 / /media/a\\040b rw - vfat /dev/sdb1 rw
34 22 0:43 / /usr/share/app rw - fuse.app app rw
35 22 8:5 / /var rw - btrfs /dev/sda5 rw
36 22 0:44 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
37 22 8:6 / /lib64 rw - ext4 /dev/sda6 rw
38 22 8:7 / /data rw - ext4 /dev/sda7 rw
39 22 7:1 / /snap/core/1 ro - squashfs /dev/loop1 ro
nonsense";

    #[test]
    fn what_is_the_systems_is_in_the_image() {
        let mounts = parse(HOST);
        assert_eq!(mounts.iter().filter(|m| m.point == Path::new("/var")).count(), 1);
        assert!(mounts.iter().any(|m| m.kind == "btrfs") && !mounts.iter().any(|m| m.kind == "xfs"));
        assert!(mounts.iter().any(|m| m.point == Path::new("/media/a b")));
        let of = |point: &str| {
            let mount = mounts.iter().find(|m| m.point == Path::new(point)).unwrap();
            treatment(mount, Path::new("/"))
        };
        for point in ["/", "/boot", "/boot/efi", "/var", "/lib64"] {
            assert_eq!(of(point), Treatment::Overlay, "{point}");
        }
        let kernel = ["/proc", "/sys", "/dev", "/run", "/sys/fs/cgroup"];
        for point in kernel.into_iter().chain(["/var/lib/docker/overlay2/x/merged", "/snap/core/1"]) {
            assert_eq!(of(point), Treatment::Nothing, "{point}");
        }
        for point in ["/media/a b", "/data"] {
            assert_eq!(of(point), Treatment::LeftOut, "{point}");
        }
        assert_eq!(of("/tmp"), Treatment::Fresh);
        assert_eq!((of("/home"), of("/usr/share/app")), (Treatment::LeftOut, Treatment::LeftOut));
    }

    #[test]
    fn what_shares_its_room_is_one_pool() {
        let mounts = parse(
            "1 0 0:30 /@ / rw - btrfs /dev/sda2 rw\n2 1 0:30 /@var /var rw - btrfs /dev/sda2 rw\n\
             3 1 0:31 / /srv rw - zfs tank/srv rw\n4 1 0:32 / /opt rw - zfs tank/opt/a rw\n5 1 8:1 / /boot rw - ext4 /dev/sda1 rw\n",
        );
        let pool = |point: &str| &mounts.iter().find(|m| m.point == Path::new(point)).unwrap().pool;
        assert_eq!(pool("/"), pool("/var"));
        assert_eq!(pool("/srv"), pool("/opt"));
        assert!(pool("/boot") != pool("/") && pool("/srv") != pool("/"));
    }

    #[test]
    fn what_lies_below_comes_later() {
        let points: Vec<PathBuf> = parse(HOST).into_iter().map(|mount| mount.point).collect();
        let place = |point: &str| points.iter().position(|p| p == Path::new(point)).unwrap();
        assert!(place("/") < place("/boot") && place("/boot") < place("/boot/efi"));
    }

    #[test]
    fn a_system_below_another_root_has_its_own_places() {
        let root = Path::new("/srv/image");
        let of = |point: &str| {
            treatment(&Mount { point: point.into(), kind: "tmpfs".into(), pool: String::new() }, root)
        };
        assert_eq!(of("/srv/image"), Treatment::Overlay);
        assert_eq!(of("/srv/image/var"), Treatment::Overlay);
        assert_eq!(of("/srv/image/run"), Treatment::Nothing);
        assert_eq!(of("/srv/image/tmp"), Treatment::Fresh);
        assert_eq!(of("/usr"), Treatment::Overlay);
    }

    #[test]
    fn odd_escapes_are_only_text() {
        for (text, path) in [("/a\\040", "/a "), ("/a\\04", "/a\\04"), ("/\\9zz", "/\\9zz"), ("/\\", "/\\")] {
            assert_eq!(unescape(text), Path::new(path), "{text}");
        }
    }
}
