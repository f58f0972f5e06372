//! A control group of an image's own, so that the kernel bounds how many processes it has.
//!
//! Below the group of this process, where that may be written. Where it may not, the image's process ids are bounded
//! (Linux 6.14 and newer), and in any case its keeper counts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::HARD_LIMIT;

const V1: &str = "/sys/fs/cgroup/pids";
const V2: &str = "/sys/fs/cgroup";

/// A group, gone when this is dropped.
#[derive(Debug, Default)]
pub struct Group {
    path: Option<PathBuf>,
}

impl Group {
    /// Makes one of this name, if that is possible here.
    #[must_use]
    pub fn make(name: &str) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        for (parent, unified) in candidates(&own) {
            let path = parent.join(name);
            if made(&parent, &path, unified).is_ok() {
                return Self { path: Some(path) };
            }
            let _ = fs::remove_dir(&path);
        }
        Self::default()
    }

    /// Where its processes enter.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.path.iter().cloned().collect()
    }

    /// Removes one of this name that a process left which died.
    pub fn sweep(name: &str) {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        for (parent, _) in candidates(&own) {
            let _ = fs::remove_dir(parent.join(name));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        // Its last processes may be counted for some moments after they are gone.
        for _ in 0..100 {
            match fs::remove_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                _ => return,
            }
        }
    }
}

/// The groups below which one may be made, and whether they are of the unified hierarchy.
fn candidates(own: &str) -> Vec<(PathBuf, bool)> {
    own.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let below = path.trim_start_matches('/');
            if controllers.is_empty() {
                Some((Path::new(V2).join(below), true))
            } else {
                let is_ours = controllers.split(',').any(|controller| controller == "pids");
                is_ours.then(|| (Path::new(V1).join(below), false))
            }
        })
        .collect()
}

fn made(parent: &Path, path: &Path, unified: bool) -> io::Result<()> {
    // A group of an executor that died here is empty, or it is somebody's.
    let _ = fs::remove_dir(path);
    fs::create_dir(path)?;
    if unified {
        // Beside the processes of its parent only a group of threads may be bounded.
        fs::write(path.join("cgroup.type"), "threaded")?;
        fs::write(parent.join("cgroup.subtree_control"), "+pids")?;
    }
    fs::write(path.join("pids.max"), HARD_LIMIT.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_sought_below_ones_own() {
        let unified = "0::/system.slice/linux-patch-executor@1.service\n";
        assert_eq!(
            candidates(unified),
            [(PathBuf::from("/sys/fs/cgroup/system.slice/linux-patch-executor@1.service"), true)]
        );
        let old = "9:pids:/a\n3:cpu,cpuacct:/b\n0::/c\n";
        assert_eq!(
            candidates(old),
            [(PathBuf::from("/sys/fs/cgroup/pids/a"), false), (PathBuf::from("/sys/fs/cgroup/c"), true)]
        );
        assert!(candidates("nonsense\n1:name=systemd:/x\n").is_empty());
    }
}
