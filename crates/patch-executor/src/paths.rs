//! Where the root side keeps its things, and who may read them.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use nix::unistd::{Gid, Group, Uid, User};
use patch_types::{
    JobId,
    executor::{DAEMON_USER, EVENTS_DIR, SOCKET, STATE_DIR},
};

/// What the names of directories for fetched archives begin with.
pub(crate) const FETCHED: &str = "linux-patch-";

/// The root side's files, below a root prefix.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    root: PathBuf,
}

/// The daemon's group, if there is such a user.
pub(crate) fn daemon_group() -> Option<Gid> {
    Group::from_name(DAEMON_USER).ok().flatten().map(|group| group.gid)
}

/// Whether a peer may ask: root, or the daemon's user.
pub(crate) fn may_ask(uid: Uid) -> bool {
    uid.is_root() || User::from_name(DAEMON_USER).ok().flatten().is_some_and(|user| user.uid == uid)
}

impl Paths {
    pub(crate) fn below(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join(SOCKET)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.root.join(STATE_DIR)
    }

    pub(crate) fn events(&self) -> PathBuf {
        self.root.join(EVENTS_DIR)
    }

    pub(crate) fn event_file(&self, id: JobId) -> PathBuf {
        self.events().join(format!("{id}.jsonl"))
    }

    /// The directory of a change's journal.
    pub(crate) fn journal(&self, id: JobId) -> PathBuf {
        self.state().join("journal").join(id.to_string())
    }

    /// The lock that serialises changes.
    pub(crate) fn turn(&self) -> PathBuf {
        self.state().join("journal/turn")
    }

    /// Where changes wait for their turn.
    pub(crate) fn queue(&self) -> PathBuf {
        self.state().join("journal/queue")
    }

    /// Where the archives of a change are fetched to before they are complete. A directory of its own: apt's `partial`
    /// is everybody's, and what lies there is not ours to move.
    pub(crate) fn fetched(&self, id: JobId) -> PathBuf {
        self.archives().join(format!("{FETCHED}{id}"))
    }

    /// apt's cache of archives.
    pub(crate) fn archives(&self) -> PathBuf {
        self.root.join("var/cache/apt/archives")
    }

    /// Makes the directories, root's own; the events' readable by the daemon's group.
    ///
    /// # Errors
    /// When one cannot be made, or belongs to somebody else.
    pub(crate) fn prepare(&self) -> anyhow::Result<()> {
        let group = daemon_group();
        let reader = if group.is_some() { 0o750 } else { 0o700 };
        for (dir, mode) in [
            (self.state(), if group.is_some() { 0o711 } else { 0o700 }),
            (self.state().join("journal"), 0o700),
            (self.queue(), 0o700),
            (self.events(), reader),
        ] {
            match DirBuilder::new().mode(mode).create(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", dir.display())),
            }
            let meta =
                fs::symlink_metadata(&dir).with_context(|| format!("cannot look at {}", dir.display()))?;
            ensure!(
                meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw(),
                "{} is not a directory of mine; remove it",
                dir.display()
            );
            if meta.mode() & 0o7777 != mode {
                fs::set_permissions(&dir, fs::Permissions::from_mode(mode))
                    .with_context(|| format!("cannot set the mode of {}", dir.display()))?;
            }
        }
        if let Some(group) = group {
            chown(self.events(), None, Some(group.as_raw()))
                .with_context(|| format!("cannot give {} to the daemon's group", self.events().display()))?;
        }
        Ok(())
    }
}
