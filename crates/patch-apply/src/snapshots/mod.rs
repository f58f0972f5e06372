//! Snapshots of the file systems that packages change: which there can be, how they are made and gone back to, and what going
//! back to one would take back as well.
//!
//! What is looked at here is decided by pure functions over the kernel's list of mounts; what is done is done by the file
//! system's own tools, in a mount namespace of its own ([`place`]). When, and what is recorded of it, is the executor's.

pub mod btrfs;
pub mod carry;
pub mod compare;
pub mod lvm;
pub mod place;
pub mod snapper;
pub mod volumes;
pub mod zfs;

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    apt::rehearse::{KERNEL, unescape},
    run::RunError,
};

/// Where packages and their database lie: what of it is a file system of its own goes back with the rest, or nothing does.
const SYSTEM: &[&str] = &["/", "/usr", "/etc", "/var", "/var/lib", "/var/lib/dpkg"];

/// What is in memory, or shows what lies elsewhere: nothing of it is lost or kept by going back, nor of the kernel's own.
const NOT_ON_DISK: &[&str] = &["overlay", "squashfs", "tmpfs"];

/// Why something cannot be done with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A tool refused.
    #[error("`{command}` failed: {said}")]
    Tool {
        /// What was run.
        command: String,
        /// What it said, on one line.
        said: String,
    },
    /// What a tool printed is none of what is known of it.
    #[error("what `{0}` printed was not understood")]
    NotUnderstood(String),
    /// A file or directory could not be used.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The place where snapshots are seen could not be made.
    #[error("{what} is not to be had: {source}")]
    Place {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A tool could not be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// It is not possible here.
    #[error("{0}")]
    Impossible(String),
}

impl SnapshotError {
    pub(crate) fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }
}

/// One mounted file system, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// Where it is seen.
    pub point: PathBuf,
    /// Its type.
    pub kind: String,
    /// What is mounted: a device, or a dataset of ZFS.
    pub source: String,
    /// Which part of it: for btrfs the path of a subvolume from the top, else `/`.
    pub part: PathBuf,
    /// The number of a subvolume of btrfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
}

/// Reads `/proc/self/mountinfo`. Of several mounts at one place the last is the one that is seen.
#[must_use]
pub fn mounts(text: &str) -> Vec<Mounted> {
    let mut mounts: Vec<Mounted> = Vec::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut fields = before.split(' ').skip(3);
        let (Some(part), Some(point)) = (fields.next(), fields.next()) else { continue };
        let mut fields = after.split(' ');
        let (Some(kind), Some(source)) = (fields.next(), fields.next()) else { continue };
        let mut options = fields.next().unwrap_or_default().split(',');
        let number = options.find_map(|option| option.strip_prefix("subvolid=")?.parse().ok());
        let mounted = Mounted {
            point: unescape(point),
            kind: kind.to_owned(),
            source: unescape(source).to_string_lossy().into_owned(),
            part: unescape(part),
            number,
        };
        mounts.retain(|earlier| earlier.point != mounted.point);
        mounts.push(mounted);
    }
    mounts.sort_by(|a, b| a.point.cmp(&b.point));
    mounts
}

/// The mount that a path lies on.
#[must_use]
pub fn holder<'a>(mounts: &'a [Mounted], path: &Path) -> Option<&'a Mounted> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.as_os_str().len())
}

/// What can hold a snapshot of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// btrfs itself.
    Btrfs,
    /// ZFS itself.
    Zfs,
    /// Any other: the volume that it lies on, if that can.
    Volume,
}

impl Mounted {
    /// What can hold a snapshot of it.
    #[must_use]
    pub fn family(&self) -> Family {
        match self.kind.as_str() {
            "btrfs" => Family::Btrfs,
            "zfs" => Family::Zfs,
            _ => Family::Volume,
        }
    }
}

/// The mounts of which a snapshot of the system consists, the root first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct System {
    /// They, all of one kind.
    pub members: Vec<Mounted>,
    /// The mounts on disk that are no part of it.
    pub left_out: Vec<PathBuf>,
}

impl System {
    /// What can hold a snapshot of them.
    #[must_use]
    pub fn family(&self) -> Family {
        self.members.first().map_or(Family::Volume, Mounted::family)
    }

    /// The numbers of the subvolumes that it runs from.
    #[must_use]
    pub fn numbers(&self) -> Option<Vec<u64>> {
        self.members.iter().map(|member| member.number).collect()
    }

    /// Where its members are seen.
    #[must_use]
    pub fn points(&self) -> Vec<&Path> {
        self.members.iter().map(|member| member.point.as_path()).collect()
    }

    /// The member that a path of the host lies on, and its number; none if it lies on another mount.
    #[must_use]
    pub fn member_of(&self, mounts: &[Mounted], path: &Path) -> Option<(usize, &Mounted)> {
        let holder = holder(mounts, path)?;
        self.members.iter().enumerate().find(|(_, member)| member.point == holder.point)
    }
}

/// Which mounts make up the system, if one snapshot can hold them.
///
/// # Errors
/// Why not: one sentence.
pub fn system(mounts: &[Mounted]) -> Result<System, String> {
    let mut members: Vec<Mounted> = Vec::new();
    for path in SYSTEM {
        let mount = holder(mounts, Path::new(path)).ok_or_else(|| format!("nothing is mounted at {path}"))?;
        if !members.contains(mount) {
            members.push(mount.clone());
        }
    }
    let Some(root) = members.first() else { return Err("nothing is mounted at /".to_owned()) };
    if let Some(other) = members.iter().find(|member| member.family() != root.family()) {
        return Err(format!(
            "/ is on {} and {} on {}: they could only go back apart, which would leave packages and their database at odds",
            root.kind,
            other.point.display(),
            other.kind
        ));
    }
    if let Some(other) = members.iter().find(|member| member.kind == "btrfs" && member.source != root.source)
    {
        return Err(format!(
            "/ and {} are on different file systems of btrfs, which do not go back in one step",
            other.point.display()
        ));
    }
    let left_out = mounts
        .iter()
        .filter(|mount| !members.contains(mount))
        .filter(|mount| ![KERNEL, NOT_ON_DISK].concat().contains(&mount.kind.as_str()))
        .map(|mount| mount.point.clone())
        .collect();
    Ok(System { members, left_out })
}

/// What of the system is not on the mounts that hold it, but on a subvolume below one of them, which no snapshot of theirs
/// has: one path.
///
/// # Errors
/// When one cannot be looked at.
pub fn apart(mounts: &[Mounted]) -> io::Result<Option<&'static str>> {
    let device = |path: &Path| match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.dev())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    for path in SYSTEM {
        let Some(holder) = holder(mounts, Path::new(path)) else { continue };
        let is = device(Path::new(path))?;
        if is.is_some() && is != device(&holder.point)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOST: &str = "\
22 1 0:30 /@ / rw,relatime shared:1 - btrfs /dev/vda2 rw,space_cache=v2,subvolid=256,subvol=/@
23 22 0:21 / /proc rw - proc proc rw
24 22 0:24 / /run rw - tmpfs tmpfs rw
25 22 254:1 / /boot rw - ext4 /dev/vda1 rw
26 22 0:30 /@home /home rw - btrfs /dev/vda2 rw,subvolid=257,subvol=/@home
27 22 0:30 /@var\\040x /var rw - btrfs /dev/vda2 rw,subvolid=258,subvol=/@var\\040x
28 22 0:50 / /mnt/share rw - nfs4 server:/share rw
nonsense
1 2 3";

    #[test]
    fn what_goes_back_together_is_told() {
        let mounts = mounts(HOST);
        let found = system(&mounts).unwrap();
        let points: Vec<_> = found.members.iter().map(|member| member.point.to_str().unwrap()).collect();
        assert_eq!((points.as_slice(), found.family()), (&["/", "/var"][..], Family::Btrfs));
        assert_eq!(
            (found.members[1].part.as_path(), found.members[1].number),
            (Path::new("/@var x"), Some(258))
        );
        assert_eq!(found.left_out, ["/boot", "/home", "/mnt/share"].map(PathBuf::from));
        let (number, _) = found.member_of(&mounts, Path::new("/var/lib/linux_patch_executor")).unwrap();
        assert_eq!(number, 1);
        assert!(found.member_of(&mounts, Path::new("/home/x")).is_none());
    }

    #[test]
    fn what_would_be_torn_apart_is_refused() {
        let torn = HOST.replace("- btrfs /dev/vda2 rw,subvolid=258", "- xfs /dev/vda3 rw");
        assert!(system(&mounts(&torn)).unwrap_err().contains("/var on xfs"));
        let other = HOST.replace("- btrfs /dev/vda2 rw,subvolid=258", "- btrfs /dev/vdb rw");
        assert!(system(&mounts(&other)).unwrap_err().contains("different file systems"));
        assert!(system(&[]).is_err());
    }

    proptest! {
        #[test]
        fn any_list_of_mounts_is_read(text in "\\PC*", lines in prop::collection::vec("[0-9a-z/ \\\\-]{0,60}", 0..8)) {
            let _ = system(&mounts(&text));
            let _ = system(&mounts(&lines.join("\n")));
        }
    }
}
