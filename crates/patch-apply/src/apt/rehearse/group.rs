//! A control group of an image's own, so that the kernel bounds how many processes it has and how much memory.
//!
//! Below the group of this process, where that may be written. Where it may not, the image's process ids are bounded
//! (Linux 6.14 and newer), and in any case its keeper counts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::HARD_LIMIT;

const ROOT: &str = "/sys/fs/cgroup";

/// Where this process stands aside while a group beside it has a bound of memory.
const ASIDE: &str = "rehearsing";

/// A group in each hierarchy that has something to bound, gone when this is dropped.
#[derive(Debug, Default)]
pub struct Group {
    paths: Vec<PathBuf>,
    /// The group that this process has left for one below it.
    left: Option<PathBuf>,
}

/// What a hierarchy bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hierarchy {
    /// All of it.
    Unified,
    /// Of the first version: processes.
    Processes,
    /// Of the first version: memory.
    Memory,
}

impl Group {
    /// Makes one of this name, with so many bytes of memory, if that is possible here.
    #[must_use]
    pub fn make(name: &str, memory: u64) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::below(Path::new(ROOT), &own, name, memory)
    }

    fn below(root: &Path, own: &str, name: &str, memory: u64) -> Self {
        let mut group = Self::default();
        for (parent, hierarchy) in candidates(root, own) {
            let path = parent.join(name);
            match hierarchy {
                Hierarchy::Unified => {
                    // Where the first version has the controllers this one has none.
                    if !group.paths.is_empty() {
                        continue;
                    }
                    if bounds_memory(&parent, &path, memory).is_ok() {
                        group.left = Some(parent);
                        group.paths.push(path);
                        continue;
                    }
                    let _ = fs::remove_dir(&path);
                    // Who could not come back is told so at the end, when it is tried again.
                    if parent.join(ASIDE).exists() && is_given_away(&parent) {
                        group.left = Some(parent);
                        continue;
                    }
                    if bounds_threads(&parent, &path).is_ok() {
                        group.paths.push(path);
                        continue;
                    }
                }
                Hierarchy::Processes => {
                    if fresh(&path).and_then(|()| set(&path, "pids.max", &HARD_LIMIT.to_string())).is_ok() {
                        group.paths.push(path);
                        continue;
                    }
                }
                Hierarchy::Memory => {
                    let limit = memory.to_string();
                    if fresh(&path).and_then(|()| set(&path, "memory.limit_in_bytes", &limit)).is_ok() {
                        group.paths.push(path);
                        continue;
                    }
                }
            }
            let _ = fs::remove_dir(&path);
        }
        group
    }

    /// Where its processes enter.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        self.paths.clone()
    }

    /// Removes one of this name that a process left which died, and the one aside in which that was.
    pub fn sweep(name: &str) {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::sweep_below(Path::new(ROOT), &own, name);
    }

    fn sweep_below(root: &Path, own: &str, name: &str) {
        for (parent, hierarchy) in candidates(root, own) {
            let _ = fs::remove_dir(parent.join(name));
            if hierarchy == Hierarchy::Unified {
                // Refused where somebody is in it.
                let _ = fs::remove_dir(parent.join(ASIDE));
            }
        }
    }

    /// Removes it, and goes back to where this process was before. When nothing runs in it any more.
    ///
    /// # Errors
    /// When this process could not go back: it is still in a group beside, which has no bounds of its own.
    pub fn close(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        for path in std::mem::take(&mut self.paths) {
            let _ = remove(&path);
        }
        self.left.take().map_or(Ok(()), |left| come_back(&left))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The last processes of a group may be counted for some moments after they are gone.
fn remove(path: &Path) -> io::Result<()> {
    let mut removed = Ok(());
    for _ in 0..100 {
        removed = fs::remove_dir(path);
        match &removed {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            _ => break,
        }
    }
    removed
}

/// Whose want of memory it was for which the kernel has ended a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Killer {
    /// That of the group, which had all that it may have.
    Bound,
    /// That of the host, or of a group above.
    Host,
}

/// Whether the kernel has ended a process of one of these groups for want of memory, and whose.
pub(super) fn killer(groups: &[PathBuf]) -> Option<Killer> {
    let read = |group: &PathBuf, file: &str| fs::read_to_string(group.join(file)).unwrap_or_default();
    groups.iter().find_map(|group| {
        // The second version's file, and the first one's. Each counts also those whom the host's want has ended.
        let events = read(group, "memory.events");
        if number(&events, "oom_kill") > 0 {
            return Some(if number(&events, "oom") > 0 { Killer::Bound } else { Killer::Host });
        }
        if number(&read(group, "memory.oom_control"), "oom_kill") > 0 {
            let refused: u64 = read(group, "memory.failcnt").trim().parse().unwrap_or_default();
            return Some(if refused > 0 { Killer::Bound } else { Killer::Host });
        }
        None
    })
}

fn number(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or_default()
}

/// The groups below which one may be made, and what they bound.
fn candidates(root: &Path, own: &str) -> Vec<(PathBuf, Hierarchy)> {
    let line = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let below = path.trim_start_matches('/');
        if controllers.is_empty() {
            // Who could not come back from the group aside is still where he was.
            let below = below.strip_suffix(ASIDE).and_then(|rest| rest.strip_suffix('/')).unwrap_or(below);
            return Some((root.join(below), Hierarchy::Unified));
        }
        let hierarchy = controllers.split(',').find_map(|controller| match controller {
            "pids" => Some(("pids", Hierarchy::Processes)),
            "memory" => Some(("memory", Hierarchy::Memory)),
            _ => None,
        });
        hierarchy.map(|(name, hierarchy)| (root.join(name).join(below), hierarchy))
    };
    own.lines().filter_map(line).collect()
}

fn set(group: &Path, file: &str, value: &str) -> io::Result<()> {
    // Never made: where the kernel has no such file there is no such bound.
    let mut file = fs::OpenOptions::new().write(true).open(group.join(file))?;
    io::Write::write_all(&mut file, value.as_bytes())
}

fn fresh(path: &Path) -> io::Result<()> {
    // A group of an executor that died here is empty, or it is somebody's.
    let _ = fs::remove_dir(path);
    fs::create_dir(path)
}

/// A group of threads: beside the processes of its parent no other may be bounded, and memory is not bounded by threads.
fn bounds_threads(parent: &Path, path: &Path) -> io::Result<()> {
    fresh(path)?;
    set(path, "cgroup.type", "threaded")?;
    set(parent, "cgroup.subtree_control", "+pids")?;
    set(path, "pids.max", &HARD_LIMIT.to_string())
}

/// A group with a bound of memory, beside one into which this process goes: a group whose groups have such a bound has no processes
/// of its own. Only below a group that systemd has given away with its memory, and with nobody else in it.
fn bounds_memory(parent: &Path, path: &Path, memory: u64) -> io::Result<()> {
    let controllers = fs::read_to_string(parent.join("cgroup.controllers"))?;
    if !is_given_away(parent) || !controllers.split_ascii_whitespace().any(|one| one == "memory") {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let aside = parent.join(ASIDE);
    fs::create_dir(&aside).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    })?;
    let made = set(&aside, "cgroup.procs", "0")
        .and_then(|()| set(parent, "cgroup.subtree_control", "+memory +pids"))
        .and_then(|()| fresh(path))
        .and_then(|()| set(path, "memory.max", &memory.to_string()))
        .and_then(|()| set(path, "pids.max", &HARD_LIMIT.to_string()))
        // What would be put aside to a disk is no less than the bound lets have; and who is ended for it is so with all of his.
        .and_then(|()| set_if_there(path, "memory.swap.max", "0"))
        .and_then(|()| set_if_there(path, "memory.oom.group", "1"));
    if made.is_err() {
        let _ = fs::remove_dir(path);
        // Whether it could is seen by what it leaves.
        let _ = come_back(parent);
    }
    made
}

/// Where a kernel is older or counts no swap there is no such file.
fn set_if_there(group: &Path, file: &str, value: &str) -> io::Result<()> {
    match set(group, file, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The change itself is made where its unit has put it.
fn come_back(parent: &Path) -> io::Result<()> {
    let aside = parent.join(ASIDE);
    let told =
        |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    // A group whose groups have bounds of memory has no processes: first these, then who is to come back.
    set(parent, "cgroup.subtree_control", "-memory -pids")
        .and_then(|()| set(parent, "cgroup.procs", "0"))
        .map_err(told(format!("{} cannot be left", aside.display())))?;
    remove(&aside).map_err(told(format!("{} cannot be removed", aside.display())))
}

/// systemd marks the groups that are no business of its own any more.
fn is_given_away(group: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0_u8; 8];
        rustix::fs::getxattr(group, *name, &mut value[..])
            .is_ok_and(|length| value.get(..length) == Some(b"1"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_sought_below_ones_own() {
        let root = Path::new("/sys/fs/cgroup");
        let unified = "0::/system.slice/linux-patch-executor@1.service\n";
        assert_eq!(
            candidates(root, unified),
            [(
                PathBuf::from("/sys/fs/cgroup/system.slice/linux-patch-executor@1.service"),
                Hierarchy::Unified
            )]
        );
        let old = "9:pids:/a\n4:memory:/d/e\n3:cpu,cpuacct:/b\n0::/c\n";
        assert_eq!(
            candidates(root, old),
            [
                (PathBuf::from("/sys/fs/cgroup/pids/a"), Hierarchy::Processes),
                (PathBuf::from("/sys/fs/cgroup/memory/d/e"), Hierarchy::Memory),
                (PathBuf::from("/sys/fs/cgroup/c"), Hierarchy::Unified)
            ]
        );
        assert!(candidates(root, "nonsense\n1:name=systemd:/x\n").is_empty());
    }

    #[test]
    fn who_was_ended_for_want_of_memory_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, files: &[(&str, &str)]| {
            let path = dir.path().join(name);
            group(&path, files);
            killer(&[dir.path().join("none"), path])
        };
        let bound = "low 0\nhigh 0\nmax 31\noom 2\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(of("full", &[("memory.events", bound)]), Some(Killer::Bound));
        // The host had none left, and the group had less than it may have.
        let host = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(of("victim", &[("memory.events", host)]), Some(Killer::Host));
        assert_eq!(of("well", &[("memory.events", "max 3\noom 1\noom_kill 0\n")]), None);
        let killed = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
        let old =
            |name, killed, refused| of(name, &[("memory.oom_control", killed), ("memory.failcnt", refused)]);
        assert_eq!(old("old full", killed, "17\n"), Some(Killer::Bound));
        assert_eq!(old("old victim", killed, "0\n"), Some(Killer::Host));
        assert_eq!(old("old well", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", "5\n"), None);
        assert_eq!(of("without", &[]), None);
    }

    #[test]
    fn who_cannot_come_back_says_so_and_what_is_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let unit = dir.path().join("unit");
        group(&unit, &[("cgroup.subtree_control", "")]);
        fs::create_dir(unit.join(ASIDE)).unwrap();
        // Nobody can be put into a group without this file.
        let made = Group { paths: Vec::new(), left: Some(unit.clone()) };
        let error = made.close().unwrap_err().to_string();
        assert!(error.contains("unit/rehearsing cannot be left"), "{error}");
        assert!(unit.join(ASIDE).exists());
        // By the one who is in it, and by another one.
        for own in ["0::/unit/rehearsing\n", "0::/unit\n"] {
            fs::create_dir_all(unit.join(ASIDE)).unwrap();
            fs::create_dir(unit.join("rehearsal-1")).unwrap();
            Group::sweep_below(dir.path(), own, "rehearsal-1");
            assert!(!unit.join(ASIDE).exists() && !unit.join("rehearsal-1").exists());
        }
        // Who can, leaves nothing.
        group(&unit, &[("cgroup.procs", "")]);
        fs::create_dir(unit.join(ASIDE)).unwrap();
        Group { paths: Vec::new(), left: Some(unit.clone()) }.close().unwrap();
        assert!(!unit.join(ASIDE).exists());
    }

    /// A directory in place of a control group, with the files that the kernel has in one.
    fn group(path: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(path).unwrap();
        files.iter().for_each(|(name, text)| fs::write(path.join(name), text).unwrap());
    }

    #[test]
    fn what_the_kernel_does_not_bound_is_no_group() {
        let dir = tempfile::tempdir().unwrap();
        // Directories of a disk have no such files in them, so every bound is refused.
        group(
            &dir.path().join("unit"),
            &[("cgroup.controllers", "memory pids\n"), ("cgroup.subtree_control", "")],
        );
        let made = Group::below(dir.path(), "0::/unit\n3:pids:/none\n", "rehearsal-1", 1 << 20);
        assert!(made.paths().is_empty() && made.left.is_none());
        assert!(
            !dir.path().join("unit/rehearsal-1").exists() && !dir.path().join("unit").join(ASIDE).exists()
        );
    }
}
