//! How much a transaction may write in an image, and whether the host has that much to spare. What is written in an image is in memory.

use std::{fs, path::Path};

use patch_backends::apt::Inventory;
use patch_types::Plan;
use serde::{Deserialize, Serialize};

/// For what no package declares: caches, logs, databases that scripts make anew.
const MARGIN: u64 = 96 << 20;

/// What is left to the host, in bytes.
const LEFT: u64 = 64 << 20;

/// No package is larger, whatever it declares.
const MOST_OF_ONE: u64 = 1 << 40;

/// How often dpkg's database is there at once while it works: the old one, the new one, the one before.
const DATABASES: u64 = 4;

/// What may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// In bytes.
    pub bytes: u64,
    /// How many files.
    pub files: u64,
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

fn spare(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes.saturating_mul(1024).saturating_sub(LEFT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_left_to_the_host() {
        assert_eq!(spare("MemTotal: 1 kB\nMemAvailable:   1048576 kB\n"), Some((1 << 30) - LEFT));
        assert_eq!(spare("MemAvailable: 1000 kB\n"), Some(0));
        assert_eq!(spare("MemFree: 1000 kB\n"), None);
        assert_eq!(spare("MemAvailable: many kB\n"), None);
    }
}
