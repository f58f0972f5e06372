//! Watches one file for changes of any kind: written in place, replaced by rename, deleted, its directory replaced.
//!
//! The kernel's notices come first, from the parent directory (a watch on the file itself goes deaf with the first
//! rename). They are only a hint to look; a slow look without a hint covers what they miss: a replaced directory, a
//! symbolic link's target, a file system without notices. A look costs two `stat` calls as long as nothing changed.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{Notify, mpsc};

/// How long after a hint to wait for more: who writes in place is seldom done after the first write.
const SETTLE: Duration = Duration::from_millis(100);
/// How often to look without a hint.
const LOOK: Duration = Duration::from_secs(2);
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
        match std::fs::read(path) {
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
        let mut look = Look::new(path);
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

async fn watch(mut look: Look, send: mpsc::Sender<FileState>, nudge: Arc<Notify>) {
    let hint = Arc::new(Notify::new());
    let mut notices = Notices::new(&look.path, &hint);
    loop {
        tokio::select! {
            () = nudge.notified() => {
                let found = look.take();
                if send.send(found).await.is_err() {
                    return;
                }
                continue;
            }
            () = hint.notified() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(LOOK) => {}
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
struct Look {
    path: PathBuf,
    stamp: Option<Stamp>,
    found: FileState,
}

impl Look {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), stamp: None, found: FileState::Missing }
    }

    /// Looks, whatever the stamp says.
    fn take(&mut self) -> FileState {
        self.stamp = stamp(&self.path);
        self.found = FileState::read(&self.path);
        self.found.clone()
    }

    /// Looks if the stamp gives cause to, and returns what was found if it is news.
    fn again(&mut self) -> Option<FileState> {
        let stamp = stamp(&self.path);
        if stamp == self.stamp && stamp.is_none_or(is_settled) {
            return None;
        }
        // The stamp is taken before the bytes: a change in between shows in the next look.
        self.stamp = stamp;
        let found = FileState::read(&self.path);
        if found == self.found {
            return None;
        }
        self.found = found.clone();
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

/// The kernel's notices about the file's directory.
struct Notices {
    directory: PathBuf,
    watcher: Option<notify::RecommendedWatcher>,
    watched: Option<(u64, u64)>,
}

impl Notices {
    fn new(path: &Path, hint: &Arc<Notify>) -> Self {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let name = path.file_name().map(ToOwned::to_owned);
        let (hint, own) = (Arc::clone(hint), directory.clone());
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let concerns = match &event {
                Ok(event) => {
                    !event.kind.is_access()
                        && (event.need_rescan()
                            || event.paths.iter().any(|p| p.file_name() == name.as_deref() || *p == own))
                }
                Err(_) => true,
            };
            if concerns {
                hint.notify_one();
            }
        });
        let mut this = Self { directory, watcher: watcher.ok(), watched: None };
        this.follow();
        this
    }

    /// Watches the directory that has the path's name now.
    fn follow(&mut self) {
        let now = std::fs::metadata(&self.directory).ok().map(|meta| (meta.dev(), meta.ino()));
        if now == self.watched {
            return;
        }
        let Some(watcher) = &mut self.watcher else { return };
        // Of a directory that is gone there may be nothing left to unwatch.
        drop(watcher.unwatch(&self.directory));
        self.watched = now.filter(|_| watcher.watch(&self.directory, RecursiveMode::NonRecursive).is_ok());
    }
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

        watcher.nudge().nudge();
        assert_eq!(next(&mut watcher).await, present("seven"), "nudged");
    }
}
