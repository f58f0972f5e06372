//! Subvolumes of one file system of btrfs: made, removed, and put in the place of those that the host runs from.
//!
//! Going back exchanges names (and the default subvolume, where that is the one): the running host keeps what it has mounted,
//! whatever it is called by then, and the next boot mounts the other one. No file is changed under a running program.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{
    Mounted, SnapshotError, System, btrfs,
    carry::{self, CARRIED},
    place::make_private,
};
use crate::{apt::argv::Argv, run};

/// Where ours are, below the top of the file system.
pub const OURS: &str = ".linux-patch-snapshots";

/// How long the tool may take for one thing.
const LIMIT: Duration = Duration::from_secs(300);

/// The most subvolumes within the system that are carried over.
const MOST_NESTED: usize = 2000;

/// One file system, seen from its top.
#[derive(Debug)]
pub struct Volumes {
    program: &'static str,
    top: PathBuf,
}

impl Volumes {
    /// Those below a mounted top.
    ///
    /// # Errors
    /// When the tool is not there.
    pub fn new(top: PathBuf) -> Result<Self, SnapshotError> {
        Ok(Self { program: btrfs::program().map_err(SnapshotError::Impossible)?, top })
    }

    /// Where a path from the top is seen.
    #[must_use]
    pub fn at(&self, path: &Path) -> PathBuf {
        self.top.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn run(argv: &Argv) -> Result<String, SnapshotError> {
        let said = run::capture(argv, LIMIT)?;
        if said.code == Some(0) {
            return Ok(said.stdout);
        }
        Err(SnapshotError::Tool { command: argv.to_string(), said: said.text().trim().replace('\n', "; ") })
    }

    /// What the tool says of a subvolume.
    ///
    /// # Errors
    /// When it is none, or the tool is not understood.
    pub fn show(&self, path: &Path) -> Result<btrfs::Shown, SnapshotError> {
        let argv = btrfs::show(self.program, path);
        let said = Self::run(&argv)?;
        btrfs::parse_show(&said).ok_or_else(|| SnapshotError::NotUnderstood(argv.to_string()))
    }

    fn list(&self) -> Result<Vec<btrfs::Listed>, SnapshotError> {
        let argv = btrfs::list(self.program, &self.top);
        let said = Self::run(&argv)?;
        btrfs::parse_list(&said).ok_or_else(|| SnapshotError::NotUnderstood(argv.to_string()))
    }

    fn default(&self) -> Result<u64, SnapshotError> {
        let argv = btrfs::get_default(self.program, &self.top);
        let said = Self::run(&argv)?;
        btrfs::parse_default(&said).ok_or_else(|| SnapshotError::NotUnderstood(argv.to_string()))
    }

    fn set_default(&self, number: u64) -> Result<(), SnapshotError> {
        Self::run(&btrfs::set_default(self.program, number, &self.top)).map(drop)
    }

    /// Brings everything to the disk.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn sync(&self) -> Result<(), SnapshotError> {
        Self::run(&btrfs::sync(self.program, &self.top)).map(drop)
    }

    /// Makes a read-only snapshot of each member into a directory of ours, named by their numbers; gives their UUIDs.
    ///
    /// # Errors
    /// When one cannot be made; those that were made are for [`Volumes::remove`].
    pub fn make(&self, system: &System, directory: &Path) -> Result<Vec<String>, SnapshotError> {
        let directory = self.at(directory);
        make_private(&directory)?;
        let mut made = Vec::new();
        for (number, member) in system.members.iter().enumerate() {
            is_subvolume(&member.point)?;
            let to = directory.join(number.to_string());
            Self::run(&btrfs::snapshot(self.program, &member.point, &to, true))?;
            made.push(self.show(&to)?.uuid);
        }
        self.sync()?;
        Ok(made)
    }

    /// Removes a directory of ours with its subvolumes, and those within them. There may be none.
    ///
    /// # Errors
    /// When one cannot be removed, or is among the `mounts`: then nothing is.
    pub fn remove(&self, directory: &Path, mounts: &[Mounted]) -> Result<(), SnapshotError> {
        let at = self.at(directory);
        if fs::symlink_metadata(&at).is_err() {
            return Ok(());
        }
        let prefix = directory.strip_prefix("/").unwrap_or(directory);
        let mut within = self.list()?;
        within.retain(|listed| listed.path.starts_with(prefix));
        let is_used =
            |listed: &&btrfs::Listed| mounts.iter().any(|mount| mount.number == Some(listed.number));
        if let Some(used) = within.iter().find(is_used) {
            return Err(SnapshotError::Impossible(format!(
                "the subvolume {} is mounted",
                used.path.display()
            )));
        }
        let mut within: Vec<PathBuf> = within.into_iter().map(|listed| listed.path).collect();
        // What lies within another one goes first.
        within.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        for path in within {
            Self::run(&btrfs::delete(self.program, &self.at(&path)))?;
        }
        fs::remove_dir(&at).map_err(|error| SnapshotError::file(&at, error))
    }

    /// Makes a writable copy of each snapshot into a directory of ours, with what does not go back: subvolumes that lie within,
    /// and the agent's own directories. The system is as it is now, `mounts` all that is mounted.
    ///
    /// # Errors
    /// When one cannot be made; nothing of the host has changed then.
    pub fn prepare(
        &self,
        system: &System,
        mounts: &[Mounted],
        snapshots: &[PathBuf],
        directory: &Path,
    ) -> Result<(), SnapshotError> {
        self.remove(directory, mounts)?;
        let to = self.at(directory);
        make_private(&to)?;
        let nested = self.nested(system)?;
        for (number, (member, snapshot)) in system.members.iter().zip(snapshots).enumerate() {
            let new = to.join(number.to_string());
            Self::run(&btrfs::snapshot(self.program, snapshot, &new, false))?;
            for (path, within) in nested.get(&number).into_iter().flatten() {
                let place = new.join(within);
                // The stub of what was there then, or nothing.
                match fs::remove_dir(&place) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(SnapshotError::file(&member.point.join(within), error));
                    }
                    _ => {}
                }
                if let Some(parent) = place.parent() {
                    fs::create_dir_all(parent).map_err(|error| SnapshotError::file(parent, error))?;
                }
                let from = self.at(path);
                let is_read_only = self.show(&from)?.is_read_only;
                Self::run(&btrfs::snapshot(self.program, &from, &place, is_read_only))?;
            }
        }
        for carried in carried(system, mounts) {
            let place = to.join(carried.member.to_string()).join(&carried.within);
            let copied = carry::replace(&carried.path, &place);
            if !carry::RESTLESS.iter().any(|restless| Path::new("/").join(restless) == carried.path) {
                copied?;
            }
        }
        Ok(())
    }

    /// The subvolumes within each member, by its number: from the top, and within the member. Parents come first.
    fn nested(&self, system: &System) -> Result<BTreeMap<usize, Vec<(PathBuf, PathBuf)>>, SnapshotError> {
        let mut listed = self.list()?;
        listed.sort_by(|a, b| a.path.cmp(&b.path));
        let parts: Vec<&Path> = system
            .members
            .iter()
            .map(|member| member.part.strip_prefix("/").unwrap_or(&member.part))
            .collect();
        let mut nested: BTreeMap<usize, Vec<(PathBuf, PathBuf)>> = BTreeMap::new();
        for path in listed.into_iter().map(|listed| listed.path) {
            if path.starts_with(OURS) || parts.contains(&path.as_path()) {
                continue;
            }
            let holder = parts
                .iter()
                .enumerate()
                .filter(|(_, part)| path.starts_with(part))
                .max_by_key(|(_, part)| part.components().count());
            let Some((number, part)) = holder else { continue };
            let within = path.strip_prefix(part).unwrap_or(&path).to_owned();
            nested.entry(number).or_default().push((path, within));
        }
        if nested.values().map(Vec::len).sum::<usize>() > MOST_NESTED {
            let message = format!("there are more than {MOST_NESTED} subvolumes within the system");
            return Err(SnapshotError::Impossible(message));
        }
        Ok(nested)
    }

    /// The subvolumes within the system, as the host sees them: those with something in them, and the empty ones.
    ///
    /// # Errors
    /// When the tool fails, or one cannot be looked into.
    pub fn within(&self, system: &System) -> Result<(Vec<PathBuf>, Vec<PathBuf>), SnapshotError> {
        let (mut filled, mut empty) = (Vec::new(), Vec::new());
        for (number, nested) in self.nested(system)? {
            let Some(member) = system.members.get(number) else { continue };
            for (path, within) in nested {
                let at = self.at(&path);
                let mut entries = fs::read_dir(&at).map_err(|error| SnapshotError::file(&at, error))?;
                let which = if entries.next().is_some() { &mut filled } else { &mut empty };
                which.push(member.point.join(within));
            }
        }
        Ok((filled, empty))
    }

    /// Whether anything of a system that ran from these subvolumes was exchanged.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn has_begun(&self, system: &System, numbers: &[u64]) -> Result<bool, SnapshotError> {
        for (member, number) in system.members.iter().zip(numbers) {
            if self.is_exchanged(member, *number)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the next boot mounts in the place of each member that was exchanged, and would of the others.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn coming(
        &self,
        system: &System,
        numbers: &[u64],
        directory: &Path,
    ) -> Result<Vec<u64>, SnapshotError> {
        let one = |(index, (member, number)): (usize, (&Mounted, &u64))| {
            let is_there = self.is_exchanged(member, *number)?;
            let at =
                if is_there { self.at(&member.part) } else { self.at(directory).join(index.to_string()) };
            Ok(self.show(&at)?.number)
        };
        system.members.iter().zip(numbers).enumerate().map(one).collect()
    }

    /// Where what the host ran from before it went back is seen.
    #[must_use]
    pub fn former(&self, system: &System, directory: &Path) -> Vec<PathBuf> {
        (0..system.members.len()).map(|index| self.at(directory).join(index.to_string())).collect()
    }

    fn is_exchanged(&self, member: &Mounted, number: u64) -> Result<bool, SnapshotError> {
        Ok(self.show(&self.at(&member.part))?.number != number)
    }

    /// Puts what was prepared in the place of the one subvolume that the host runs from: at the next boot it is what is mounted. What was there
    /// before is in the directory then. May be called again after it was broken off.
    ///
    /// # Errors
    /// When it cannot be done; all is as it was then.
    pub fn exchange(&self, system: &System, numbers: &[u64], directory: &Path) -> Result<(), SnapshotError> {
        // What the names lead to is on the disk before they are exchanged.
        self.sync()?;
        let ([member], [number]) = (system.members.as_slice(), numbers) else {
            return Err(SnapshotError::Impossible("the system does not lie on one subvolume".into()));
        };
        self.exchange_one(member, *number, &self.at(directory).join("0"))?;
        // It is done, and comes to the disk at the latest when the host is shut down.
        let _ = self.sync();
        Ok(())
    }

    fn exchange_one(&self, member: &Mounted, number: u64, other: &Path) -> Result<(), SnapshotError> {
        let is_default = self.default()? == number;
        if !self.is_exchanged(member, number)? {
            self.swap(&member.part, other)?;
        }
        if !is_default {
            return Ok(());
        }
        let set = self.show(&self.at(&member.part)).and_then(|shown| self.set_default(shown.number));
        if set.is_err() {
            self.swap(&member.part, other)?;
        }
        set
    }

    fn swap(&self, part: &Path, other: &Path) -> Result<(), SnapshotError> {
        let here = self.at(part);
        renameat_with(CWD, &here, CWD, other, RenameFlags::EXCHANGE)
            .map_err(|error| SnapshotError::file(&here, error.into()))
    }
}

/// Whether a member is the top of its file system, which has no name that could be exchanged.
#[must_use]
pub fn is_top(member: &Mounted) -> bool {
    member.part == Path::new("/")
}

/// Whether a mount shows a whole subvolume, and not a directory of one.
fn is_subvolume(point: &Path) -> Result<(), SnapshotError> {
    let meta = fs::symlink_metadata(point).map_err(|error| SnapshotError::file(point, error))?;
    if meta.ino() == btrfs::SUBVOLUME_INODE {
        return Ok(());
    }
    Err(SnapshotError::Impossible(format!(
        "{} is a directory of a subvolume, not a whole one",
        point.display()
    )))
}

/// One of the agent's directories that lies on a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// Where it is.
    pub path: PathBuf,
    /// The member's number.
    pub member: usize,
    /// Within the member.
    pub within: PathBuf,
}

/// Which of the agent's directories would go back with the system: not those that are on another file system or a subvolume of
/// their own.
#[must_use]
pub fn carried(system: &System, mounts: &[Mounted]) -> Vec<Carried> {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    CARRIED
        .iter()
        .filter_map(|directory| {
            let path = Path::new("/").join(directory);
            let (member, mount) = system.member_of(mounts, &path)?;
            let parent = path.parent()?;
            // One that is not there is not there afterwards either.
            let on = device(&path).or_else(|| device(parent));
            if on.is_some() && on != device(&mount.point) {
                return None;
            }
            let within = path.strip_prefix(&mount.point).ok()?.to_owned();
            Some(Carried { path, member, within })
        })
        .collect()
}
