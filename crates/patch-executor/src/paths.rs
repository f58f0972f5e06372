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
    ErrorCode, ErrorDetail, JobId,
    executor::{
        CHECKPOINT_HEAD, CHECKPOINT_HEADS, CHECKPOINT_KEYS, DAEMON_USER, EVENTS_DIR, RECORD, RESTARTS_DIR,
        RootStatus, SOCKET, STATE_DIR, STATUS_FILE,
    },
};

/// What the names of directories for fetched archives begin with.
pub(crate) const FETCHED: &str = "linux-patch-";

/// How much room is kept for the journal, in bytes.
const RESERVE: usize = 1 << 20;

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

    /// Where archives are kept for going back.
    pub(crate) fn store(&self) -> PathBuf {
        self.state().join("archives")
    }

    /// The mark that going back failed and nobody has repaired it yet.
    pub(crate) fn rollback_failed(&self) -> PathBuf {
        self.state().join("rollback_failed.json")
    }

    /// Where restarts are noted that wait for the window.
    pub(crate) fn restarts(&self) -> PathBuf {
        self.root.join(RESTARTS_DIR)
    }

    /// The root side's own record.
    pub(crate) fn record(&self) -> PathBuf {
        self.root.join(RECORD)
    }

    /// The last head of the audit trail that was signed.
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.root.join(CHECKPOINT_HEAD)
    }

    /// Those that were signed before.
    pub(crate) fn checkpoint_heads(&self) -> PathBuf {
        self.root.join(CHECKPOINT_HEADS)
    }

    /// The public keys that go with it.
    pub(crate) fn checkpoint_keys(&self) -> PathBuf {
        self.root.join(CHECKPOINT_KEYS)
    }

    /// A little room for the journal on a full disk, so that a change can always be ended truthfully.
    fn reserve(&self) -> PathBuf {
        self.state().join("reserve")
    }

    /// Makes that room.
    ///
    /// # Errors
    /// When there is none: then no change may begin, since it might not be able to say how it ended.
    pub(crate) fn make_reserve(&self) -> Result<(), ErrorDetail> {
        let path = self.reserve();
        if path.metadata().is_ok_and(|meta| meta.len() == RESERVE as u64) {
            return Ok(());
        }
        // Written, not only allocated: some file systems promise more than they keep.
        let made = fs::write(&path, vec![0; RESERVE]).and_then(|()| fs::File::open(&path)?.sync_all());
        made.map_err(|error| {
            let _ = fs::remove_file(&path);
            let message = format!(
                "there is no room for the journal in {} ({error}); nothing was begun. Make room below /var/lib",
                self.state().display()
            );
            ErrorDetail::new(ErrorCode::DiskSpace, message)
        })
    }

    /// Gives that room up. False if there was none.
    pub(crate) fn spend_reserve(&self) -> bool {
        fs::remove_file(self.reserve()).is_ok()
    }

    /// Writes the root side's figures for the daemon to read.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn publish(&self, status: &RootStatus) -> io::Result<()> {
        let text = serde_json::to_vec(status).map_err(io::Error::other)?;
        let new = self.events().join(".status.json.new");
        fs::write(&new, text)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o640))?;
        chown(&new, None, daemon_group().map(Gid::as_raw))?;
        fs::rename(new, self.root.join(STATUS_FILE))
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
