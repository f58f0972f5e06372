//! Room that is set aside before a change, so that there is room to go back when the change has filled the disk.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FallocateFlags, StatVfsMountFlags, fallocate, statvfs},
    io::Errno,
};

use super::{
    files::{Below, from_text, sync_dir, to_text, write_whole},
    snapshot::{Diversions, Snapshot},
};

/// The name of the file that holds the room, one on each file system.
pub const NAME: &str = ".linux-patch-ballast";

/// The list of these files, in the state directory. It is on disk before the first of them is made.
const LIST: &str = "ballast.json";

/// What dpkg's own files may need beside three copies of its database, in bytes.
const DATABASE: u64 = 16 * MIB;
/// What the journal and the like may need, in bytes.
const STATE: u64 = 4 * MIB;
/// The most that is written where a file system cannot just set room aside, in bytes.
const MAX_ZEROS: u64 = 64 * MIB;

const MIB: u64 = 1024 * 1024;

/// What was set aside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ballast {
    /// The files, with their bytes.
    pub files: Vec<(PathBuf, u64)>,
    /// Where room could not be set aside although there is some: one sentence each.
    pub remarks: Vec<String>,
}

/// No room, or it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum BallastError {
    /// There is too little of it.
    #[error(
        "the file system of {} has {} MiB free, and {} MiB are needed for the change and for going back from it; \
         free some and try again; nothing was changed", path.display(), free / MIB, needed.div_ceil(MIB)
    )]
    NoRoom {
        /// A directory of the file system: its mount point as a rule.
        path: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Something cannot be looked at or written.
    #[error("{} cannot be used to set room aside: {source}; nothing was changed", path.display())]
    File {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BallastError {
    let path = path.to_owned();
    move |source| BallastError::File { path, source }
}

/// The room on a file system that going back writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// A directory of it.
    pub path: PathBuf,
    /// Bytes that may be needed: an upper bound.
    pub needed: u64,
    /// Bytes that are free.
    pub free: u64,
}

impl Place {
    /// Whether there may be too little.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.free < self.needed
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, needed, free } = self;
        write!(f, "{} has {} MiB free of {}", path.display(), free / MIB, needed.div_ceil(MIB))
    }
}

/// What is needed on one file system.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Need {
    /// A directory on it.
    sample: PathBuf,
    /// For going back, in bytes.
    back: u64,
    /// The part of that which is files of packages.
    files: u64,
    /// For the change itself, in bytes.
    forward: u64,
}

/// Sets room aside on every file system that going back will write to, and makes sure that what is left suffices for
/// the change, whose packages declare to need `disk_delta_bytes` more (or less) than before. What an earlier change
/// left is released first.
///
/// # Errors
/// When there is too little room: then nothing is set aside. See [`BallastError`].
pub fn reserve(
    root: &Path,
    state_dir: &Path,
    snapshot: &Snapshot,
    disk_delta_bytes: i64,
) -> Result<Ballast, BallastError> {
    release(root, state_dir).map_err(at(state_dir))?;
    let Sites { places, remarks } = sites(root, state_dir, snapshot, disk_delta_bytes, 0)?;
    let mut ballast = Ballast { files: Vec::new(), remarks };
    let paths: Vec<String> =
        places.iter().map(|(d, _, _)| to_text(d.join(NAME).as_os_str().as_bytes())).collect();
    let list = serde_json::to_vec(&paths).map_err(|error| at(state_dir)(io::Error::other(error)))?;
    write_whole(state_dir, LIST, &list).map_err(at(&state_dir.join(LIST)))?;
    for (directory, bytes, needed) in places {
        let path = directory.join(NAME);
        match set_aside(&path, bytes) {
            Ok(None) => ballast.files.push((path, bytes)),
            Ok(Some(remark)) => ballast.remarks.push(remark),
            Err(error) => {
                // Whatever becomes of this: the list says what there is to release.
                let _ = release(root, state_dir);
                return Err(match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        let free = statvfs(&directory)
                            .map_or(0, |space| space.f_bavail.saturating_mul(space.f_frsize));
                        BallastError::NoRoom { path: directory, needed, free }
                    }
                    _ => BallastError::File { path, source: error },
                });
            }
        }
    }
    Ok(ballast)
}

/// Makes sure that [`reserve`] would find the room that it needs after `kept` more bytes were written to the state directory,
/// and sets nothing aside.
///
/// # Errors
/// As [`reserve`].
pub fn check(
    root: &Path,
    state_dir: &Path,
    snapshot: &Snapshot,
    disk_delta_bytes: i64,
    kept: u64,
) -> Result<(), BallastError> {
    sites(root, state_dir, snapshot, disk_delta_bytes, kept).map(drop)
}

/// Where room is to be set aside.
struct Sites {
    /// A directory of each file system, how much for going back, and how much with the change itself.
    places: Vec<(PathBuf, u64, u64)>,
    remarks: Vec<String>,
}

fn sites(
    root: &Path,
    state_dir: &Path,
    snapshot: &Snapshot,
    disk_delta_bytes: i64,
    kept: u64,
) -> Result<Sites, BallastError> {
    let mut sites = Sites { places: Vec::new(), remarks: Vec::new() };
    for (directory, need) in by_directory(root, state_dir, snapshot, disk_delta_bytes, kept)? {
        let needed = need.back.saturating_add(need.forward);
        match room(&need.sample)? {
            Room::ReadOnly => {
                let remark = format!("{} is read-only: no room is set aside there", directory.display());
                sites.remarks.push(remark);
                continue;
            }
            Room::Bytes(free) if free < needed => {
                return Err(BallastError::NoRoom { path: directory, needed, free });
            }
            Room::Bytes(_) | Room::Unknown => {}
        }
        if need.back > 0 {
            sites.places.push((directory, need.back, needed));
        }
    }
    Ok(sites)
}

/// The room that there is for going back by `snapshot`, beside what is set aside for it. File systems that do not say how
/// much they have are left out.
///
/// # Errors
/// When a file system cannot be looked at.
pub fn places(root: &Path, state_dir: &Path, snapshot: &Snapshot) -> Result<Vec<Place>, BallastError> {
    let mut places = Vec::new();
    for (path, Need { sample, back: needed, .. }) in by_directory(root, state_dir, snapshot, 0, 0)? {
        match room(&sample)? {
            Room::Bytes(free) => places.push(Place { path, needed, free }),
            Room::ReadOnly | Room::Unknown => {}
        }
    }
    Ok(places)
}

/// What is needed, by the directory of each file system in which the room is set aside.
fn by_directory(
    root: &Path,
    state_dir: &Path,
    snapshot: &Snapshot,
    disk_delta_bytes: i64,
    kept: u64,
) -> Result<BTreeMap<PathBuf, Need>, BallastError> {
    let mounts = mount_points();
    // Subvolumes of one file system look like several and share its room.
    let mut by_directory: BTreeMap<PathBuf, Need> = BTreeMap::new();
    for need in needs(root, state_dir, snapshot, disk_delta_bytes, kept)?.into_values() {
        let directory = place(root, state_dir, &need.sample, &mounts).map_err(at(&need.sample))?;
        let sum =
            by_directory.entry(directory).or_insert_with(|| Need { sample: need.sample, ..Need::default() });
        sum.back = sum.back.saturating_add(need.back);
        sum.forward = sum.forward.saturating_add(need.forward);
    }
    Ok(by_directory)
}

/// What a file system says of its room.
enum Room {
    Bytes(u64),
    ReadOnly,
    /// As some network file systems, which say 0 of 0.
    Unknown,
}

fn room(sample: &Path) -> Result<Room, BallastError> {
    let space = statvfs(sample).map_err(|error| at(sample)(error.into()))?;
    Ok(if space.f_flag.contains(StatVfsMountFlags::RDONLY) {
        Room::ReadOnly
    } else if space.f_blocks == 0 {
        Room::Unknown
    } else {
        Room::Bytes(space.f_bavail.saturating_mul(space.f_frsize))
    })
}

/// Removes all that [`reserve`] made, also what an interrupted change left. It needs no room itself. Done again, it does
/// nothing.
///
/// # Errors
/// When a file cannot be removed; the others are all the same.
pub fn release(root: &Path, state_dir: &Path) -> io::Result<()> {
    let list = state_dir.join(LIST);
    let text = match fs::read(&list) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let paths: Vec<PathBuf> = match serde_json::from_slice::<Vec<String>>(&text) {
        Ok(paths) => {
            paths.iter().map(|path| PathBuf::from(std::ffi::OsString::from_vec(from_text(path)))).collect()
        }
        // A damaged list: the file is looked for wherever it may be.
        Err(_) => mount_points()
            .into_iter()
            .chain([root.to_owned(), state_dir.to_owned()])
            .map(|directory| directory.join(NAME))
            .collect(),
    };
    let mut result = Ok(());
    // The list is a file like any other: it is not taken at its word for anything but our own name.
    for path in paths.iter().filter(|path| path.file_name().is_some_and(|name| name == NAME)) {
        match fs::remove_file(path) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                result = Err(error);
            }
            _ => {}
        }
    }
    result?;
    fs::remove_file(&list)?;
    sync_dir(state_dir)
}

/// Makes the file. Gives a remark if that is not possible here although there is room.
fn set_aside(path: &Path, bytes: u64) -> io::Result<Option<String>> {
    // Somebody's file, or link, of that name is in the way; the name is ours.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Ok(Some(format!("{} is in the way: {error}", path.display())));
        }
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let made = match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if bytes <= MAX_ZEROS => {
            let zeros = vec![0_u8; 1 << 20];
            let mut left = bytes;
            let mut result = Ok(());
            while left > 0 && result.is_ok() {
                let piece = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
                result = file.write_all(zeros.get(..piece).unwrap_or_default());
                left = left.saturating_sub(piece as u64);
            }
            // Delayed allocation sets nothing aside.
            result.and_then(|()| file.sync_all())
        }
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            fs::remove_file(path)?;
            return Ok(Some(format!(
                "the file system of {} cannot set room aside: going back needs {} MiB there",
                path.display(),
                bytes.div_ceil(MIB)
            )));
        }
        other => other.map_err(io::Error::from),
    };
    made.map(|()| None)
}

fn needs(
    root: &Path,
    state_dir: &Path,
    snapshot: &Snapshot,
    disk_delta_bytes: i64,
    kept: u64,
) -> Result<BTreeMap<u64, Need>, BallastError> {
    let mut needs: BTreeMap<u64, Need> = BTreeMap::new();
    let mut add = |device: u64, sample: &Path, back: u64, files: bool| {
        let need =
            needs.entry(device).or_insert_with(|| Need { sample: sample.to_owned(), ..Need::default() });
        need.back = need.back.saturating_add(back);
        if files {
            need.files = need.files.saturating_add(back);
        }
    };
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).map_err(at(path));
    let database = root.join("var/lib/dpkg");
    let status = database.join("status");
    let status = fs::metadata(&status).map_err(at(&status))?.len();
    add(device(&database)?, &database, status.saturating_mul(3).saturating_add(DATABASE), false);
    add(device(state_dir)?, state_dir, STATE.saturating_add(kept), false);
    let mut below = Below::new(root).map_err(at(root))?;
    let diversions = Diversions::read(root).map_err(at(&database.join("diversions")))?;
    // The directory's device is what counts: an overlay shows a file under that of a lower layer.
    let mut parents: HashMap<PathBuf, Option<u64>> = HashMap::new();
    let mut counted = BTreeSet::new();
    let mut largest = 0_u64;
    for affected in &snapshot.affected {
        let mut sum = 0_u64;
        for path in &affected.list {
            let path = from_text(path);
            let Ok(found) = below.find(diversions.on_disk(&path, &affected.key.name)) else { continue };
            let Ok(metadata) = fs::symlink_metadata(&found) else { continue };
            if !metadata.is_file()
                || (metadata.nlink() > 1 && !counted.insert((metadata.dev(), metadata.ino())))
            {
                continue;
            }
            let Some(parent) = found.parent() else { continue };
            let device = match parents.get(parent) {
                Some(known) => *known,
                None => {
                    let device = fs::metadata(parent).ok().map(|m| m.dev());
                    parents.insert(parent.to_owned(), device);
                    device
                }
            };
            // A file system may keep small files where they take no blocks; a new one takes one at first.
            let bytes = metadata.blocks().saturating_mul(512).max(4096);
            if let Some(device) = device {
                add(device, parent, bytes, true);
                sum = sum.saturating_add(bytes);
            }
        }
        largest = largest.max(sum);
    }
    // The packages do not say on which file system they grow; most of the files are where most of the files were. dpkg
    // holds a package's old and new files at the same time.
    let forward = u64::try_from(disk_delta_bytes).unwrap_or(0).saturating_add(largest);
    let usr = below.find(b"/usr/.").unwrap_or_else(|_| root.to_owned());
    let usr = if usr.is_dir() { usr } else { root.to_owned() };
    let grows = match needs.iter().max_by_key(|(_, need)| need.files) {
        Some((device, need)) if need.files > 0 => *device,
        _ => device(&usr)?,
    };
    let need = needs.entry(grows).or_insert_with(|| Need { sample: usr, ..Need::default() });
    need.forward = forward;
    Ok(needs)
}

/// The directory of a file system in which the file is put: our own if it is there, else the mount point, in which
/// nobody else keeps anything of that name. A mount point outside the root is none of the root's.
fn place(root: &Path, state_dir: &Path, sample: &Path, mounts: &[PathBuf]) -> io::Result<PathBuf> {
    let real = fs::canonicalize(sample)?;
    let device = fs::metadata(&real)?.dev();
    if fs::metadata(state_dir)?.dev() == device {
        return Ok(state_dir.to_owned());
    }
    let root = fs::canonicalize(root)?;
    let mount = mounts.iter().filter(|mount| real.starts_with(mount)).max_by_key(|m| m.components().count());
    Ok(mount.filter(|mount| mount.starts_with(&root)).cloned().unwrap_or(root))
}

/// Where file systems of this host are mounted, without those that may hang.
fn mount_points() -> Vec<PathBuf> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    parse_mounts(&text)
}

fn parse_mounts(text: &[u8]) -> Vec<PathBuf> {
    text.split(|b| *b == b'\n')
        .filter_map(|line| {
            let mut words = line.split(|b| *b == b' ');
            let mount = words.nth(4)?;
            let kind = words.skip_while(|word| *word != b"-").nth(1)?;
            let remote = [b"nfs".as_slice(), b"cifs", b"smb", b"fuse", b"9p", b"autofs", b"ceph"];
            if remote.iter().any(|prefix| kind.starts_with(prefix)) {
                return None;
            }
            Some(PathBuf::from(std::ffi::OsString::from_vec(unescape(mount))))
        })
        .collect()
}

/// A backslash and three octal digits stand for a byte.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use patch_types::Action;
    use proptest::prelude::*;

    use super::*;
    use crate::apt::{
        snapshot,
        testing::{Host, Package, plan},
    };

    fn host() -> (Host, Snapshot) {
        let host = Host::new();
        let big = "x".repeat(300_000);
        let files = [("usr/share/aa/big", big.as_str()), ("usr/share/aa/small", "x")];
        host.install(&host.deb("aa", "1", &Package { files: &files, ..Package::default() }));
        let plan = plan(&[(Action::Upgrade, "aa", Some("1"), Some("2"))]);
        let snapshot = snapshot::take(&host.root, &plan, &[], &BTreeMap::new(), &host.at("record")).unwrap();
        fs::create_dir(host.root.join("state")).unwrap();
        (host, snapshot)
    }

    #[test]
    fn room_is_looked_for_and_not_taken() {
        let (host, snapshot) = host();
        let state = host.root.join("state");
        check(&host.root, &state, &snapshot, 0, 0).unwrap();
        assert!(fs::read_dir(&state).unwrap().next().is_none(), "something was set aside");
        let of = |delta, kept| match check(&host.root, &state, &snapshot, delta, kept) {
            Err(BallastError::NoRoom { needed, .. }) => needed,
            other => panic!("{other:?}"),
        };
        // What is kept counts as what the change grows by does.
        assert!(of(0, 1 << 60) > 1 << 60);
        assert!(of(1 << 60, 0) > 1 << 60);
    }

    #[test]
    fn room_for_the_old_files_is_set_aside_and_released() {
        let (host, snapshot) = host();
        let state = host.root.join("state");
        let ballast = reserve(&host.root, &state, &snapshot, 0).unwrap();
        let [(path, bytes)] = &ballast.files[..] else { panic!("{ballast:?}") };
        assert_eq!(path, &state.join(NAME));
        let status = fs::metadata(host.root.join("var/lib/dpkg/status")).unwrap().len();
        let files = bytes - DATABASE - STATE - 3 * status;
        assert!((300_000..350_000).contains(&files), "{files}");
        let metadata = fs::metadata(path).unwrap();
        assert!(metadata.blocks() * 512 >= *bytes && metadata.mode() & 0o777 == 0o600);
        // Once more, as after a crash.
        assert_eq!(reserve(&host.root, &state, &snapshot, 0).unwrap(), ballast);
        release(&host.root, &state).unwrap();
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
        release(&host.root, &state).unwrap();
    }

    #[test]
    fn each_file_system_has_its_own() {
        let (host, snapshot) = host();
        let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
        let state = elsewhere.path().join("state");
        fs::create_dir(&state).unwrap();
        let ballast = reserve(&host.root, &state, &snapshot, 0).unwrap();
        let mut paths: Vec<_> = ballast.files.iter().map(|(path, _)| path.clone()).collect();
        paths.sort();
        let mut expected = vec![host.root.join(NAME), state.join(NAME)];
        expected.sort();
        assert_eq!(paths, expected);
        // A damaged list does not leave room locked up.
        fs::write(state.join(LIST), "garbage").unwrap();
        release(&host.root, &state).unwrap();
        assert!(paths.iter().all(|path| !path.exists()));
    }

    #[test]
    fn too_little_room_is_refused_with_figures() {
        let (host, snapshot) = host();
        let state = host.root.join("state");
        let error = reserve(&host.root, &state, &snapshot, i64::MAX / 2).unwrap_err();
        let BallastError::NoRoom { needed, free, .. } = &error else { panic!("{error}") };
        assert!(needed > free && *free > 0);
        assert!(error.to_string().contains("MiB free"), "{error}");
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
    }

    #[test]
    fn only_a_file_of_our_name_is_ever_removed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "x").unwrap();
        fs::write(dir.path().join(LIST), serde_json::to_vec(&[precious.to_str().unwrap()]).unwrap()).unwrap();
        release(dir.path(), dir.path()).unwrap();
        assert!(precious.exists() && !dir.path().join(LIST).exists());
    }

    #[test]
    fn a_snapshot_of_nothing_still_needs_room_for_the_database() {
        let (host, _) = host();
        let empty = Snapshot {
            taken_at: Timestamp::UNIX_EPOCH,
            packages: BTreeMap::new(),
            affected: Vec::new(),
            active_units: Vec::new(),
            administration: BTreeMap::new(),
        };
        let state = host.root.join("state");
        let ballast = reserve(&host.root, &state, &empty, 0).unwrap();
        assert!(ballast.files[0].1 > DATABASE);
        release(&host.root, &state).unwrap();
    }

    #[test]
    fn mounts_are_read_without_those_that_may_hang() {
        let text = b"27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n\
            28 27 0:1 / /with\\040space rw - tmpfs t rw\n29 27 0:2 / /net rw - nfs4 s:/x rw\nbroken\n";
        assert_eq!(parse_mounts(text), [PathBuf::from("/"), PathBuf::from("/with space")]);
    }

    proptest! {
        #[test]
        fn no_mount_table_panics(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_mounts(&text);
        }
    }
}
