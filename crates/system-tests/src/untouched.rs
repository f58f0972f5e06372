//! Whether a root and the machine's kernel are as they were, to the time of each file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Result, ensure};

use crate::Guest;

/// Of the machine's kernel, which no namespace has for itself.
const KERNEL: &[&str] = &[
    "/proc/modules",
    "/proc/swaps",
    "/proc/mounts",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/printk",
    "/proc/sys/kernel/randomize_va_space",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/swappiness",
    "/proc/sys/fs/file-max",
    "/proc/sys/fs/protected_symlinks",
];

/// Owner, mode, size and times of what a package may change, of devices and sockets, and what the root sees of its kernel. Nobody
/// can set the time at which a file was last changed (`%C@`) but by the clock, so content is not compared. A lock that is taken
/// for the first time is copied into the root's own layer, which is such a change. apt writes `eipp.log.xz` whenever it plans.
const FACTS: &str = "\
    find / -xdev \\( -path /proc -o -path /sys -o -path /tmp -o -path /var/lib/linux_patch_executor -o -path /var/cache/apt \\
    -o -name __pycache__ -o -name eipp.log.xz \\) -prune -o -type d -printf '%M %u %g %p\\n' \\
    -o -name 'lock*' -empty -printf '%M %u %g %T@ %p\\n' \\
    -o -printf '%M %u %g %s %T@ %C@ %l %p\\n'
    stat -c '%n %f %t %T %u %g' /dev/*
    cat /proc/self/mounts
    hostname; find /run /dev/shm /tmp";

/// Of these only what is there: how much it is used differs with whatever else the machine does.
const COUNTED: &[&str] = &["/proc/modules", "/proc/swaps"];

fn names(text: &str) -> String {
    let first = |line: &str| line.split_ascii_whitespace().next().map(|name| format!("{name}\n"));
    text.lines().filter_map(first).collect()
}

/// What may not be touched, as it was at one moment.
#[derive(Debug, PartialEq, Eq)]
pub struct Untouched(BTreeMap<String, String>);

impl Untouched {
    /// Reads it.
    ///
    /// # Errors
    /// When the root cannot be asked.
    pub fn of(root: &Guest) -> Result<Self> {
        let mut facts = BTreeMap::new();
        for path in KERNEL {
            let text = fs::read_to_string(path).unwrap_or_default();
            let text = if COUNTED.contains(path) { names(&text) } else { text };
            facts.insert((*path).to_owned(), text);
        }
        facts.insert("the root".to_owned(), root.shell(FACTS)?);
        Ok(Self(facts))
    }

    /// Fails unless all of it is as it was.
    ///
    /// # Errors
    /// With what is not.
    pub fn assert_untouched(&self, root: &Guest) -> Result<()> {
        let now = Self::of(root)?;
        for (name, before) in &self.0 {
            let after = now.0.get(name);
            let after: BTreeSet<&str> = after.map(|text| text.lines().collect()).unwrap_or_default();
            let before: BTreeSet<&str> = before.lines().collect();
            let changed: Vec<_> = before.symmetric_difference(&after).collect();
            ensure!(changed.is_empty(), "{name} is not as before: {changed:#?}");
        }
        Ok(())
    }
}
