//! Where snapshots are seen while something is done with them: a mount namespace of this process's own, so that nobody on the
//! host sees them, and nothing of it is left whatever becomes of the process.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rustix::{fs::FlockOperation, io::FdFlags};

use super::{Mounted, SnapshotError, btrfs};

/// Below the root, in memory.
const DIRECTORY: &str = "run/linux-patch-snapshots";

/// The place, which nobody else has meanwhile.
#[derive(Debug)]
pub struct Place {
    directory: PathBuf,
    _lock: File,
}

impl Place {
    /// Waits until nobody else is at it, and leaves the host's mount namespace. Only a process of a single thread that is made for
    /// this may do so.
    ///
    /// # Errors
    /// When that is not possible here.
    pub fn enter(root: &Path) -> Result<Self, SnapshotError> {
        let directory = root.join(DIRECTORY);
        let private = |path: &Path| match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(SnapshotError::file(path, error))
            }
            _ => Ok(()),
        };
        private(&directory)?;
        let path = directory.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|error| SnapshotError::file(&path, error))?;
        // Whatever tool outlives this process holds it on: what is half-done is not looked at.
        rustix::io::fcntl_setfd(&lock, FdFlags::empty())
            .and_then(|()| rustix::fs::flock(&lock, FlockOperation::LockExclusive))
            .map_err(|error| SnapshotError::file(&path, error.into()))?;
        let own = |error: nix::Error| SnapshotError::Place {
            what: "a mount namespace of its own",
            source: error.into(),
        };
        unshare(CloneFlags::CLONE_NEWNS).map_err(own)?;
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(own)?;
        for name in ["top", "view"] {
            private(&directory.join(name))?;
        }
        Ok(Self { directory, _lock: lock })
    }

    /// Mounts the top of a file system of btrfs, below which all its subvolumes are.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn mount_top(&self, member: &Mounted) -> Result<PathBuf, SnapshotError> {
        let top = self.directory.join("top");
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let options = format!("subvolid={}", btrfs::TOP);
        mount(Some(member.source.as_str()), &top, Some("btrfs"), flags, Some(options.as_str())).map_err(
            |error| SnapshotError::Place { what: "the top of the file system", source: error.into() },
        )?;
        Ok(top)
    }

    /// Shows a tree as the host would see it: the trees of a system's members, each at its place.
    ///
    /// # Errors
    /// When one cannot be shown.
    pub fn view<'a>(
        &self,
        trees: impl Iterator<Item = (&'a Path, &'a Mounted)>,
    ) -> Result<PathBuf, SnapshotError> {
        let view = self.directory.join("view");
        for (tree, member) in trees {
            let at = view.join(member.point.strip_prefix("/").unwrap_or(&member.point));
            mount(Some(tree), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|error| {
                SnapshotError::Place { what: "the view of a snapshot", source: error.into() }
            })?;
        }
        Ok(view)
    }
}

/// A directory and those above it, root's alone.
///
/// # Errors
/// When it cannot be made.
pub fn make_private(path: &Path) -> Result<(), SnapshotError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| SnapshotError::file(path, error))
}

/// Removes an empty directory, if it is there.
pub fn remove_empty(path: &Path) {
    let _ = fs::remove_dir(path);
}
