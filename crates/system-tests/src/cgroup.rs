//! Control groups of hosts: systemd as PID 1 wants a subtree to itself in every hierarchy that it uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// The hierarchies in which a host gets a group: the unified one, and systemd's own where the machine is hybrid.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_path_buf()];
    }
    ["unified", "systemd"].iter().map(|name| root.join(name)).filter(|path| path.is_dir()).collect()
}

/// Makes the group `name` in each hierarchy; a process joins it by writing 0 into each file that is returned.
pub(crate) fn create(name: &str) -> Result<Vec<PathBuf>> {
    let create_in = |hierarchy: PathBuf| {
        let group = hierarchy.join(name);
        fs::create_dir_all(&group)
            .with_context(|| format!("cannot make the control group {}", group.display()))?;
        Ok(group.join("cgroup.procs"))
    };
    hierarchies().into_iter().map(create_in).collect()
}

/// Ends every process in the group `name` and removes it. No other: one host's name may begin with another's.
pub(crate) fn remove(name: &str) -> Result<()> {
    remove_those(|group| group == name)
}

/// The same for all groups whose name starts with `prefix`.
pub(crate) fn remove_all(prefix: &str) -> Result<()> {
    remove_those(|group| group.starts_with(prefix))
}

fn remove_those(wanted: impl Fn(&str) -> bool) -> Result<()> {
    for hierarchy in hierarchies() {
        let Ok(entries) = fs::read_dir(&hierarchy) else { continue };
        for entry in entries.flatten().filter(|entry| wanted(&entry.file_name().to_string_lossy())) {
            let group = entry.path();
            // Only the unified hierarchy has it, and every process of a host is in both.
            fs::write(group.join("cgroup.kill"), "1").unwrap_or_default();
            let what = format!("the control group {} to be empty", group.display());
            wait::until(&what, Duration::from_secs(10), || Ok(remove_tree(&group).then_some(())))?;
        }
    }
    Ok(())
}

/// Removes the group from its leaves up; false while something is in it.
fn remove_tree(group: &Path) -> bool {
    let inner = fs::read_dir(group).map(|entries| entries.flatten().filter(|entry| entry.path().is_dir()));
    let emptied = inner.is_ok_and(|mut inner| inner.all(|entry| remove_tree(&entry.path())));
    emptied && fs::remove_dir(group).is_ok() || !group.exists()
}
