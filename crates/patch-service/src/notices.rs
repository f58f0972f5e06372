//! The kernel's notices that what a path leads to may have changed: that something was written, or that one of the names
//! on the way (the file, a directory, a symbolic link) now stands for something else.
//!
//! They are hints, and the file is looked at to know. [`Notices::patience`] says how long one may go without a look: long
//! where every directory on the way is watched, short where the kernel cannot know all (a network's file system), or has
//! no watch left to give.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchMask};

/// How often to look without a hint where the kernel tells everything but a mount on the way and a write to mapped memory.
const SLOW_LOOK: Duration = Duration::from_secs(60);
/// How often where it may not.
const QUICK_LOOK: Duration = Duration::from_secs(2);
/// As many symbolic links as the kernel follows.
const MAX_LINKS: usize = 40;

/// File systems that nobody but this kernel writes to (`statfs(2)`): ext, XFS, Btrfs, tmpfs, ramfs, overlayfs, F2FS, ZFS,
/// bcachefs, squashfs, EROFS.
const LOCAL: [u32; 11] = [
    0xEF53,
    0x5846_5342,
    0x9123_683E,
    0x0102_1994,
    0x8584_58F6,
    0x794C_7630,
    0xF2F5_2010,
    0x2FC1_2FC1,
    0xCA45_1A4E,
    0x7371_7368,
    0xE0F5_E1E2,
];

/// A directory in which a name is looked up on the way.
type Directory = (PathBuf, (u64, u64));

/// Where the paths lead through.
#[derive(Debug, Default, PartialEq, Eq)]
struct Way {
    /// Each with its device and inode, and whether a file is in it.
    directories: BTreeMap<Directory, bool>,
    /// The names that are looked up.
    names: BTreeSet<OsString>,
    /// Whether all was seen.
    is_whole: bool,
}

/// The notices about some files.
pub(crate) struct Notices {
    paths: Vec<PathBuf>,
    way: Way,
    stream: Option<EventStream<[u8; 4096]>>,
    /// Whether every directory on the way is watched, and of a kind that is told of.
    is_complete: bool,
}

impl Notices {
    /// Asks for the notices about these files. What changed before is nothing that they tell.
    pub(crate) fn new<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let paths = paths.into_iter().map(Path::to_owned).collect();
        let mut this = Self { paths, way: Way::default(), stream: None, is_complete: false };
        this.follow();
        this
    }

    /// Follows the paths where they lead now. To be called before each look.
    pub(crate) fn follow(&mut self) {
        let way = Way::of(&self.paths);
        if self.stream.is_some() && way == self.way {
            return;
        }
        // All anew, which is simpler than to tell what has become of each; it is seldom.
        (self.stream, self.is_complete) = match watch(&way) {
            Ok((stream, is_complete)) => (Some(stream), is_complete),
            Err(_) => (None, false),
        };
        self.way = way;
    }

    /// Waits for a hint; for ever if none can be had. Safe to cancel.
    pub(crate) async fn hint(&mut self) {
        loop {
            let Some(stream) = &mut self.stream else { return std::future::pending().await };
            match stream.next().await {
                Some(Ok(event)) => {
                    if self.way.concerns(event.mask, event.name.as_deref()) {
                        return;
                    }
                }
                Some(Err(_)) | None => self.stream = None,
            }
        }
    }

    /// How long to wait for a hint before looking without one.
    pub(crate) fn patience(&self) -> Duration {
        if self.stream.is_some() && self.is_complete { SLOW_LOOK } else { QUICK_LOOK }
    }
}

impl Way {
    fn of(paths: &[PathBuf]) -> Self {
        let mut way = Self { is_whole: true, ..Self::default() };
        for path in paths {
            way.is_whole &= way.follow(path).is_some();
        }
        way
    }

    /// Follows one path as the kernel does; none if that cannot be seen to its end.
    fn follow(&mut self, path: &Path) -> Option<()> {
        let path = std::path::absolute(path).ok()?;
        let mut ahead: VecDeque<OsString> = words(&path);
        let mut here = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            if name == ".." {
                here.pop();
                continue;
            }
            let meta = std::fs::metadata(&here).ok()?;
            let is_last = ahead.is_empty();
            *self.directories.entry((here.clone(), (meta.dev(), meta.ino()))).or_default() |= is_last;
            self.names.insert(name.clone());
            let next = here.join(&name);
            match std::fs::symlink_metadata(&next) {
                Ok(meta) if meta.is_symlink() => {
                    links += 1;
                    let target = std::fs::read_link(&next).ok().filter(|_| links <= MAX_LINKS)?;
                    if target.is_absolute() {
                        here = PathBuf::from("/");
                    }
                    for word in words(&target).into_iter().rev() {
                        ahead.push_front(word);
                    }
                }
                Ok(_) => here = next,
                // Its coming is told by the directory that it will be in.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(()),
                Err(_) => return None,
            }
        }
        Some(())
    }

    fn concerns(&self, mask: EventMask, name: Option<&OsStr>) -> bool {
        // Without a name it is about a directory itself, or about notices that were lost.
        mask.contains(EventMask::Q_OVERFLOW) || name.is_none_or(|name| self.names.contains(name))
    }
}

/// The names that a path consists of.
fn words(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

fn watch(way: &Way) -> io::Result<(EventStream<[u8; 4096]>, bool)> {
    let inotify = Inotify::init()?;
    let mut is_complete = way.is_whole;
    for ((path, _), holds_file) in &way.directories {
        // Opening and reading are no news, and would be told of every program that reads a file there.
        let mut mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR
            | WatchMask::MASK_ADD;
        if *holds_file {
            mask |= WatchMask::MODIFY | WatchMask::CLOSE_WRITE | WatchMask::ATTRIB;
        }
        is_complete &= inotify.watches().add(path, mask).is_ok() && is_local(path);
    }
    Ok((inotify.into_event_stream([0; 4096])?, is_complete))
}

fn is_local(path: &Path) -> bool {
    // The kernel's numbers have 32 bits, in a type whose width and sign depend on the machine.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the number's own width")]
    rustix::fs::statfs(path).is_ok_and(|found| LOCAL.contains(&(found.f_type as u32)))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    async fn hinted(notices: &mut Notices) {
        tokio::time::timeout(Duration::from_secs(5), notices.hint()).await.expect("a hint");
        // All that one change makes, so that the next hint is the next change's.
        while tokio::time::timeout(Duration::from_millis(20), notices.hint()).await.is_ok() {}
        notices.follow();
    }

    #[tokio::test]
    async fn every_name_on_the_way_is_watched() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("etc/conf")).unwrap();
        fs::create_dir_all(at("data/one")).unwrap();
        fs::write(at("data/one/file"), "1").unwrap();
        symlink(at("data/now/file"), at("etc/conf/file")).unwrap();
        symlink("one", at("data/now")).unwrap();
        let mut notices = Notices::new([at("etc/conf/file").as_path()]);
        assert_eq!(notices.patience(), SLOW_LOOK);

        fs::write(at("data/one/file"), "2").unwrap();
        hinted(&mut notices).await;
        fs::create_dir(at("data/two")).unwrap();
        fs::write(at("data/two/file"), "3").unwrap();
        symlink("two", at("data/new")).unwrap();
        fs::rename(at("data/new"), at("data/now")).unwrap();
        hinted(&mut notices).await;
        fs::write(at("data/two/file"), "4").unwrap();
        hinted(&mut notices).await;
        fs::remove_file(at("data/two/file")).unwrap();
        hinted(&mut notices).await;
        fs::write(at("data/two/file"), "5").unwrap();
        hinted(&mut notices).await;
        fs::rename(at("etc"), at("old")).unwrap();
        hinted(&mut notices).await;
        fs::create_dir_all(at("etc/conf")).unwrap();
        hinted(&mut notices).await;
        fs::write(at("etc/conf/file"), "6").unwrap();
        hinted(&mut notices).await;

        fs::write(at("etc/conf/other"), "").unwrap();
        let nothing = tokio::time::timeout(Duration::from_millis(50), notices.hint()).await;
        assert!(nothing.is_err(), "another file of the directory");
    }

    #[tokio::test]
    async fn a_way_in_circles_is_looked_at_often() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        symlink(&file, &file).unwrap();
        assert_eq!(Notices::new([file.as_path()]).patience(), QUICK_LOOK);
        // This one is made by the kernel as it is read.
        assert_eq!(Notices::new([Path::new("/proc/self/status")]).patience(), QUICK_LOOK);
    }
}
