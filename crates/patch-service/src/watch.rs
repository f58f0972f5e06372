//! Watches files for changes of any kind: written in place, replaced by rename, deleted, their directory replaced.
//!
//! The kernel's notices come first, from every directory on the way (a watch on the file itself goes deaf with the first
//! rename). They are only a hint to look; a slow look without a hint covers what they miss, and a quick one a file system
//! without notices. A look costs two `stat` calls as long as nothing changed.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, mpsc};

use crate::notices::Notices;

/// How long after a hint to wait for more: who writes in place is seldom done after the first write, and who replaces
/// one of several files that belong together will replace the next.
const SETTLE: Duration = Duration::from_millis(100);
/// How many such pauses there are at most while hints go on coming.
const SETTLE_ROUNDS: usize = 4;
/// The largest file that is read, in bytes. Revocation lists are the longest: this one would revoke hundreds of thousands.
pub(crate) const LARGEST: u64 = 16 << 20;
/// A file changed this recently may change again within the clock's grain, so its time stamp proves nothing yet.
const RECENT: Duration = Duration::from_secs(3);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// The file is there, with these bytes.
    Present(Arc<[u8]>),
    /// There is no such file.
    Missing,
    /// It cannot be read.
    Unreadable(String),
}

impl FileState {
    /// Reads the file.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        match patch_files::read(path, LARGEST) {
            Ok(bytes) => Self::Present(bytes.into()),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Self::Missing
            }
            Err(e) => Self::Unreadable(e.to_string()),
        }
    }
}

/// Makes a watcher look at once and report what it finds, changed or not.
#[derive(Debug, Clone)]
pub struct Nudge(Arc<Notify>);

impl Nudge {
    /// Does it.
    pub fn nudge(&self) {
        self.0.notify_one();
    }
}

/// Watches one file. Ends when dropped.
#[derive(Debug)]
pub struct FileWatcher {
    states: mpsc::Receiver<FileState>,
    nudge: Nudge,
    task: tokio::task::JoinHandle<()>,
}

impl FileWatcher {
    /// Starts to watch; also returns what the file holds now.
    #[must_use]
    pub fn start(path: &Path) -> (Self, FileState) {
        let (send, states) = mpsc::channel(1);
        let nudge = Nudge(Arc::new(Notify::new()));
        let mut look = Look::new(path, FileState::read as fn(&Path) -> FileState);
        let now = look.take();
        let task = tokio::spawn(watch(look, send, Arc::clone(&nudge.0)));
        (Self { states, nudge, task }, now)
    }

    /// Waits for the next change, or the answer to a nudge. Safe to cancel.
    pub async fn changed(&mut self) -> FileState {
        match self.states.recv().await {
            Some(state) => state,
            // The task ends only with this value.
            None => std::future::pending().await,
        }
    }

    /// A handle to make it look at once.
    #[must_use]
    pub fn nudge(&self) -> Nudge {
        self.nudge.clone()
    }
}

impl Drop for FileWatcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches several files, and says which of them have changed. What they hold is not kept, since some hold secrets.
/// Ends when dropped.
#[derive(Debug)]
pub struct FileSetWatcher {
    changes: mpsc::Receiver<Vec<PathBuf>>,
    task: tokio::task::JoinHandle<()>,
}

impl FileSetWatcher {
    /// Starts to watch: what changes from now on is reported.
    #[must_use]
    pub fn start(paths: &[PathBuf]) -> Self {
        let (send, changes) = mpsc::channel(1);
        let mut looks: Vec<Look<Digest>> =
            paths.iter().map(|path| Look::new(path, Digest::read as fn(&Path) -> Digest)).collect();
        for look in &mut looks {
            look.take();
        }
        let task = tokio::spawn(watch_set(looks, send));
        Self { changes, task }
    }

    /// Waits for the next changes, until the files are quiet again; which they are. Safe to cancel.
    pub async fn changed(&mut self) -> Vec<PathBuf> {
        match self.changes.recv().await {
            Some(paths) => paths,
            // The task ends only with this value.
            None => std::future::pending().await,
        }
    }
}

impl Drop for FileSetWatcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch_set(mut looks: Vec<Look<Digest>>, send: mpsc::Sender<Vec<PathBuf>>) {
    let mut notices = Notices::new(looks.iter().map(|look| look.path.as_path()));
    let mut is_watched = false;
    loop {
        // What changed before the notices were asked for, nobody tells.
        if std::mem::replace(&mut is_watched, true) {
            let patience = notices.patience();
            tokio::select! {
                () = notices.hint() => settle(&mut notices).await,
                () = tokio::time::sleep(patience) => {
                    // A writer that is just at it is waited for here too.
                    if looks.iter().any(Look::is_stale) {
                        settle(&mut notices).await;
                    }
                }
            }
        }
        notices.follow();
        let changed: Vec<PathBuf> =
            looks.iter_mut().filter_map(|look| look.again().is_some().then(|| look.path.clone())).collect();
        if !changed.is_empty() && send.send(changed).await.is_err() {
            return;
        }
    }
}

/// Waits until no more hints come, but not for ever.
async fn settle(notices: &mut Notices) {
    for _ in 0..SETTLE_ROUNDS {
        if tokio::time::timeout(SETTLE, notices.hint()).await.is_err() {
            return;
        }
    }
}

/// What a file holds, without keeping it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Digest {
    /// SHA-256 of its bytes.
    Present([u8; 32]),
    Missing,
    Unreadable(String),
}

impl Digest {
    fn read(path: &Path) -> Self {
        match FileState::read(path) {
            FileState::Present(bytes) => Self::Present(Sha256::digest(&bytes).into()),
            FileState::Missing => Self::Missing,
            FileState::Unreadable(error) => Self::Unreadable(error),
        }
    }
}

async fn watch(mut look: Look<FileState>, send: mpsc::Sender<FileState>, nudge: Arc<Notify>) {
    let mut notices = Notices::new([look.path.as_path()]);
    let mut is_watched = false;
    loop {
        // What changed before the notices were asked for, nobody tells.
        if std::mem::replace(&mut is_watched, true) {
            let patience = notices.patience();
            tokio::select! {
                () = nudge.notified() => {
                    let found = look.take();
                    if send.send(found).await.is_err() {
                        return;
                    }
                    continue;
                }
                () = notices.hint() => settle(&mut notices).await,
                () = tokio::time::sleep(patience) => {
                    if look.is_stale() {
                        settle(&mut notices).await;
                    }
                }
            }
        }
        notices.follow();
        if let Some(found) = look.again()
            && send.send(found).await.is_err()
        {
            return;
        }
    }
}

type Stamp = (u64, u64, u64, i64, i64);

/// The last look at the file.
struct Look<T> {
    path: PathBuf,
    read: fn(&Path) -> T,
    stamp: Option<Stamp>,
    found: Option<T>,
}

impl<T: Clone + PartialEq> Look<T> {
    fn new(path: &Path, read: fn(&Path) -> T) -> Self {
        Self { path: path.to_owned(), read, stamp: None, found: None }
    }

    /// Looks, whatever the stamp says.
    fn take(&mut self) -> T {
        self.stamp = stamp(&self.path);
        let found = (self.read)(&self.path);
        self.found = Some(found.clone());
        found
    }

    /// Whether the stamp gives cause to look.
    fn is_stale(&self) -> bool {
        self.differs(stamp(&self.path))
    }

    fn differs(&self, stamp: Option<Stamp>) -> bool {
        stamp != self.stamp || !stamp.is_none_or(is_settled)
    }

    /// Looks if the stamp gives cause to, and returns what was found if it is news.
    fn again(&mut self) -> Option<T> {
        let stamp = stamp(&self.path);
        if !self.differs(stamp) {
            return None;
        }
        // The stamp is taken before the bytes: a change in between shows in the next look.
        self.stamp = stamp;
        let found = (self.read)(&self.path);
        if self.found.as_ref() == Some(&found) {
            return None;
        }
        self.found = Some(found.clone());
        Some(found)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    // The change time, unlike the modification time, cannot be set back by the writer.
    Some((meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
}

fn is_settled((_, _, _, ctime, _): Stamp) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let changed = Duration::from_secs(u64::try_from(ctime).unwrap_or_default());
    now.checked_sub(changed).is_some_and(|age| age > RECENT)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    async fn next(watcher: &mut FileWatcher) -> FileState {
        tokio::time::timeout(Duration::from_secs(5), watcher.changed())
            .await
            .expect("a change within 5 seconds")
    }

    fn present(text: &str) -> FileState {
        FileState::Present(text.as_bytes().into())
    }

    #[tokio::test]
    async fn every_kind_of_change_is_seen_within_five_seconds() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("etc");
        fs::create_dir(&dir).unwrap();
        let file = dir.join("list.yaml");
        fs::write(&file, "one").unwrap();
        let (mut watcher, now) = FileWatcher::start(&file);
        assert_eq!(now, present("one"));

        fs::write(&file, "two").unwrap();
        assert_eq!(next(&mut watcher).await, present("two"), "in place");

        fs::write(dir.join("new"), "three").unwrap();
        fs::rename(dir.join("new"), &file).unwrap();
        assert_eq!(next(&mut watcher).await, present("three"), "by rename");
        fs::write(&file, "four").unwrap();
        assert_eq!(next(&mut watcher).await, present("four"), "in place after a rename");

        fs::remove_file(&file).unwrap();
        assert_eq!(next(&mut watcher).await, FileState::Missing, "deleted");
        fs::write(&file, "five").unwrap();
        assert_eq!(next(&mut watcher).await, present("five"), "created");

        let other = root.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("list.yaml"), "six").unwrap();
        fs::rename(&dir, root.path().join("old")).unwrap();
        fs::rename(&other, &dir).unwrap();
        assert_eq!(next(&mut watcher).await, present("six"), "directory replaced");
        fs::write(&file, "seven").unwrap();
        assert_eq!(next(&mut watcher).await, present("seven"), "in the new directory");

        // A link, and what it leads to, as configuration that is mounted is exchanged.
        for (target, text) in [("a", "eight"), ("b", "nine")] {
            fs::create_dir(root.path().join(target)).unwrap();
            fs::write(root.path().join(target).join("list.yaml"), text).unwrap();
        }
        let link = |target: &str, name: &Path| {
            std::os::unix::fs::symlink(root.path().join(target), dir.join("link")).unwrap();
            fs::rename(dir.join("link"), name).unwrap();
        };
        link("a/list.yaml", &file);
        assert_eq!(next(&mut watcher).await, present("eight"), "replaced by a link");
        fs::write(root.path().join("a/list.yaml"), "eight and a half").unwrap();
        assert_eq!(next(&mut watcher).await, present("eight and a half"), "where the link leads");
        link("a", &dir.join("data"));
        link("etc/data/list.yaml", &file);
        link("b", &dir.join("data"));
        assert_eq!(next(&mut watcher).await, present("nine"), "a link on the way is exchanged");
        fs::write(root.path().join("b/list.yaml"), "seven").unwrap();
        assert_eq!(next(&mut watcher).await, present("seven"));

        watcher.nudge().nudge();
        assert_eq!(next(&mut watcher).await, present("seven"), "nudged");
    }

    #[tokio::test]
    async fn of_several_files_those_that_changed_are_named_together() {
        let root = tempfile::tempdir().unwrap();
        let [first, second] = ["a/first", "b/second"].map(|name| root.path().join(name));
        for file in [&first, &second] {
            fs::create_dir(file.parent().unwrap()).unwrap();
            fs::write(file, "one").unwrap();
        }
        let missing = root.path().join("a/missing");
        let mut watcher = FileSetWatcher::start(&[first.clone(), second.clone(), missing.clone()]);
        let limit = Duration::from_secs(5);
        let mut next = async || tokio::time::timeout(limit, watcher.changed()).await.expect("a change");

        fs::write(&first, "two").unwrap();
        fs::write(&second, "two").unwrap();
        assert_eq!(next().await, [first.clone(), second.clone()]);
        fs::write(&first, "two").unwrap();
        fs::write(&missing, "here").unwrap();
        assert_eq!(next().await, [missing], "the same bytes are no change");
        fs::rename(root.path().join("b"), root.path().join("c")).unwrap();
        assert_eq!(next().await, std::slice::from_ref(&second), "gone with its directory");
        fs::rename(root.path().join("c"), root.path().join("b")).unwrap();
        assert_eq!(next().await, [second], "back");
    }
}
