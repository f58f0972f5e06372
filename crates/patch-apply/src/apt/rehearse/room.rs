//! How much a transaction may write in an image, and whether the host has that much to spare. What is written in an image is in memory.

use std::{fs, path::Path};

use patch_backends::apt::Inventory;
use patch_types::Plan;
use serde::{Deserialize, Serialize};

/// For what no package declares: caches, logs, databases that scripts make anew.
const MARGIN: u64 = 96 << 20;

/// What apt, dpkg and a script take at least beside the files, in bytes.
const PROCESSES: u64 = 64 << 20;

/// What is left to the host, in bytes.
const LEFT: u64 = 64 << 20;

/// No package is larger, whatever it declares.
const MOST_OF_ONE: u64 = 1 << 40;

/// How often dpkg's database is there at once while it works: the old one, the new one, the one before.
const DATABASES: u64 = 4;

/// What processes may take in any case where the host has it: scripts compress and compile.
pub const SCRIPTS: u64 = 256 << 20;

/// An image is made so large if there is memory for it, and so many times what a plan is reckoned to write: what is not written costs
/// nothing, and what scripts write nobody declares.
const GENEROUS: u64 = 4 << 30;
const TIMES: u64 = 4;

/// What a file takes of the kernel's memory, whatever is in it.
pub(super) const INODE: u64 = 1 << 10;

/// What may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// In bytes.
    pub bytes: u64,
    /// How many files.
    pub files: u64,
}

/// What an image and everything that runs in it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// How much may be written.
    pub room: Room,
    /// How much memory that and the processes may take together, in bytes.
    pub memory: u64,
}

impl Room {
    /// The least memory with which so much can be written, in bytes: a quarter of it is left to processes.
    #[must_use]
    pub fn memory(self) -> u64 {
        self.bytes.saturating_add(self.bytes.div_ceil(3).max(PROCESSES))
    }
}

impl Bounds {
    /// Of an image for what needs so much, on a host that has so much memory to spare; none if that is too little. Half of it stays
    /// the host's, unless the image could not be made otherwise.
    #[must_use]
    pub fn of(needed: Room, spare: Option<u64>) -> Option<Self> {
        let Some(spare) = spare else { return Some(Self { room: needed, memory: u64::MAX }) };
        let least = needed.memory();
        if spare < least {
            return None;
        }
        let memory = (spare / 2).max(least).max(needed.bytes.saturating_add(SCRIPTS).min(spare));
        let generous = needed.bytes.saturating_mul(TIMES).max(GENEROUS);
        // So that what fills an image is told from what eats memory.
        let bytes = (memory - memory.div_ceil(4).max(PROCESSES)).min(generous);
        Some(Self { room: Room { bytes, files: needed.files.saturating_mul(2) }, memory })
    }
}

/// What a plan writes at most: the new files of every package, dpkg's database, images for booting, and a margin.
#[must_use]
pub fn needed(root: &Path, plan: &Plan, inventory: &Inventory) -> Room {
    // Packages declare whole kibibytes of content; what they take is some more.
    let mut bytes = new_sizes(plan, inventory).fold(MARGIN, |sum, new| sum.saturating_add(new + new / 8));
    let size = |path: &str| fs::metadata(root.join(path)).map_or(0, |meta| meta.len());
    bytes = bytes.saturating_add(size("var/lib/dpkg/status").saturating_mul(DATABASES));
    let boots = fs::read_dir(root.join("boot")).into_iter().flatten().flatten();
    for entry in boots.filter(|entry| entry.file_name().to_string_lossy().starts_with("initrd.img")) {
        // Made beside the old one.
        bytes = bytes.saturating_add(entry.metadata().map_or(0, |meta| meta.len()).saturating_mul(2));
    }
    Room { bytes, files: (bytes / 8192).saturating_add(50_000) }
}

/// The largest of the packages that a plan brings, in bytes.
#[must_use]
pub fn largest(plan: &Plan, inventory: &Inventory) -> u64 {
    new_sizes(plan, inventory).max().unwrap_or_default()
}

fn new_sizes(plan: &Plan, inventory: &Inventory) -> impl Iterator<Item = u64> {
    plan.changes.iter().filter(|change| !change.action.is_removal()).map(|change| {
        let old = inventory.database.get(&change.name.with_architecture(&change.architecture));
        let old = old.map(patch_backends::apt::Installed::size).unwrap_or_default();
        old.saturating_add_signed(change.disk_delta_bytes).max(change.archive_bytes).min(MOST_OF_ONE)
    })
}

/// How much memory the host has to spare, in bytes; none if it does not tell.
#[must_use]
pub fn available() -> Option<u64> {
    spare(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// Whether the host has so little memory left that the kernel is about to end processes.
pub(super) fn is_short() -> bool {
    let free = fs::read_to_string("/proc/meminfo").ok().and_then(|text| free(&text));
    free.is_some_and(|free| free < LEFT / 2)
}

fn spare(meminfo: &str) -> Option<u64> {
    Some(free(meminfo)?.saturating_sub(LEFT))
}

fn free(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_generous_and_leaves_the_host_half() {
        let needed = Room { bytes: 100 << 20, files: 60_000 };
        let of = |spare: u64| Bounds::of(needed, Some(spare)).unwrap();
        let large = of(64 << 30);
        assert_eq!((large.memory, large.room.bytes), (32 << 30, GENEROUS));
        let usual = of(2 << 30);
        assert_eq!((usual.memory, usual.room.bytes), (1 << 30, 768 << 20));
        // Where half is not enough the image and its processes come first, and then nothing is left for more.
        let small = of(400 << 20);
        assert_eq!((small.memory, small.room.bytes), ((100 << 20) + SCRIPTS, 267 << 20));
        let least = of(164 << 20);
        assert_eq!((least.memory, least.room.bytes), (164 << 20, 100 << 20));
        assert_eq!(Bounds::of(needed, Some((164 << 20) - 1)), None);
        let huge = Room { bytes: 8 << 30, files: 1 };
        assert_eq!(Bounds::of(huge, Some(1 << 40)).unwrap().room.bytes, 32 << 30);
        assert_eq!(Bounds::of(needed, None), Some(Bounds { room: needed, memory: u64::MAX }));
    }

    proptest::proptest! {
        #[test]
        fn the_plan_fits_and_a_quarter_is_left_to_processes(bytes in 1_u64..1 << 42, spare in 0_u64..1 << 44) {
            let needed = Room { bytes, files: 1 };
            match Bounds::of(needed, Some(spare)) {
                None => assert!(spare < needed.memory()),
                Some(bounds) => {
                    assert!(bounds.memory <= spare && bounds.room.bytes >= bytes, "{bounds:?}");
                    let left = bounds.memory - bounds.room.bytes;
                    assert!(left >= bounds.memory / 4 && left >= PROCESSES, "{bounds:?}");
                }
            }
        }
    }

    #[test]
    fn memory_is_left_to_the_host() {
        assert_eq!(spare("MemTotal: 1 kB\nMemAvailable:   1048576 kB\n"), Some((1 << 30) - LEFT));
        assert_eq!(spare("MemAvailable: 1000 kB\n"), Some(0));
        assert_eq!(spare("MemFree: 1000 kB\n"), None);
        assert_eq!(spare("MemAvailable: many kB\n"), None);
    }
}
