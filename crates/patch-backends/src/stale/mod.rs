//! What still runs old code: processes that map replaced files, the kernel, the processors' microcode.
//!
//! Only reading, and only what the kernel says (`/proc`, `/sys`) and what root alone can write (`/boot`, the directories
//! of modules and microcode): no file that a user could have planted is opened, no interpreter is run, no path of a
//! process is followed. Whatever processes call themselves and whatever they map, the result is bounded.
//!
//! A process is read through one handle of its directory, so that another one that gets its id meanwhile is not taken
//! for it; one that has ended meanwhile is left out.

mod care;
mod cgroup;
mod kernel;
mod maps;
mod microcode;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::OsStr,
    fs::{self, File},
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use patch_types::stale::{Owner, StaleOwner, StaleProcess, StaleReport, WhyUnread};
use rustix::{
    fs::{CWD, Mode, OFlags, openat, readlinkat, statat},
    io::Errno,
};

use self::maps::Extent;
pub use self::{
    care::care, cgroup::owner, kernel::kernel, maps::replaced_files,
    microcode::available as microcode_available, microcode::microcode,
};
use crate::{ReadError, apt::Database};

/// How much of a process's map is read, in bytes: some 600,000 mappings, ten times what the kernel's default lets a
/// process have.
const MOST_MAPS: u64 = 64 << 20;

/// How much of the other files of a process is read, in bytes.
const MOST_SMALL: u64 = 64 << 10;

/// How long all processes may take together. What was not read by then counts as unread.
const MOST_TIME: Duration = Duration::from_secs(10);

/// How long one process may take. The kernel has a reader wait for as long as a process waits for a disk or a network
/// that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many owners are named.
const OWNERS: usize = 500;

/// How many processes and files of an owner are named.
const NAMED: usize = 20;

/// How many files of an owner are told apart for counting them.
const COUNTED: usize = 1000;

/// How long a name may be that is shown, in characters.
const SHOWN: usize = 300;

/// How many results are ready before they are taken.
const READY: usize = 16;

/// Everything that still runs old code below a root: processes below its `/proc`, the kernel, the microcode. The
/// `database` tells whether the running kernel's package was updated since it was booted.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn report(root: &Path, database: Option<&Database>) -> Result<StaleReport, ReadError> {
    let mut report = processes(root)?;
    report.kernel = kernel(root, database);
    report.microcode = microcode(root);
    Ok(report)
}

/// The processes alone: as [`report`], with nothing said of kernel and microcode. It takes not much longer than ten
/// seconds, whatever processes do.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn processes(root: &Path) -> Result<StaleReport, ReadError> {
    within(root, MOST_TIME, PATIENCE)
}

/// The processes, as far as they can be read within `time` all together, and none longer than `patience`.
fn within(root: &Path, time: Duration, patience: Duration) -> Result<StaleReport, ReadError> {
    let proc = root.join("proc");
    let unlisted = |error: io::Error| ReadError::new(&proc, error);
    let mut ids: Vec<u32> = fs::read_dir(&proc)
        .map_err(unlisted)?
        .flatten()
        .filter_map(|entry| process_id(&entry.file_name()))
        .collect();
    ids.sort_unstable();
    let is_host = root == Path::new("/");
    let mut scan = Scan::default();
    // The first process is always there: where it is not shown, others are not either.
    if is_host && ids.first() != Some(&1) {
        scan.unread(|why| &mut why.refused, 1);
    }
    // A program that was replaced while it looks would name itself.
    let own = std::process::id();
    ids.retain(|id| *id != own || !is_host);
    let until = Instant::now() + time;
    let mut rest = ids.as_slice();
    while !rest.is_empty() && Instant::now() < until {
        let outcomes = read_all(root, rest, until).map_err(unlisted)?;
        let wait = || patience.min(until.saturating_duration_since(Instant::now()));
        while let Ok(outcome) = outcomes.recv_timeout(wait()) {
            scan.take(outcome);
            rest = rest.get(1..).unwrap_or_default();
        }
        // The one that the reader waits for is left to it, and another reader goes on behind.
        if let Some((_, behind)) = rest.split_first() {
            scan.unread(|why| &mut why.out_of_time, 1);
            rest = behind;
        }
    }
    scan.unread(|why| &mut why.out_of_time, rest.len());
    Ok(scan.report())
}

/// Reads processes one after the other, beside this thread: reading one may take forever. The results come in order; there
/// are fewer if the time is over.
fn read_all(root: &Path, ids: &[u32], until: Instant) -> io::Result<Receiver<Result<ReadProcess, Errno>>> {
    let (results, receiver) = sync_channel(READY);
    let (root, ids) = (root.to_owned(), ids.to_owned());
    thread::Builder::new().name("old-code".to_owned()).spawn(move || {
        let proc = root.join("proc");
        let namespace = fs::read_link(proc.join("self/ns/pid")).ok();
        let mut chunk = vec![0; maps::CHUNK];
        for id in ids {
            let read = Process::open(&proc, id)
                .and_then(|process| process.read(&root, namespace.as_deref(), until, &mut chunk));
            // Nobody waits any more once one took too long.
            if results.send(read).is_err() || Instant::now() >= until {
                break;
            }
        }
    })?;
    Ok(receiver)
}

/// What was found so far.
#[derive(Debug, Default)]
struct Scan {
    report: StaleReport,
    found: BTreeMap<Owner, Found>,
}

impl Scan {
    fn take(&mut self, outcome: Result<ReadProcess, Errno>) {
        match outcome {
            Ok(read) => {
                match read.extent {
                    Extent::Nothing | Extent::Whole => self.report.processes += 1,
                    Extent::TooMuch => self.unread(|why| &mut why.too_much, 1),
                    Extent::OutOfTime => self.unread(|why| &mut why.out_of_time, 1),
                }
                if let Some((owner, process)) = read.owner.filter(|(owner, _)| !care::ends_by_itself(owner)) {
                    self.add(owner, process, read.files);
                }
            }
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(Errno::ACCESS | Errno::PERM) => self.unread(|why| &mut why.refused, 1),
            Err(_) => self.unread(|why| &mut why.failed, 1),
        }
    }

    fn add(&mut self, owner: Owner, process: StaleProcess, files: Files) {
        self.found.entry(owner).or_default().add(process, files);
        if self.found.len() > OWNERS {
            // The last in order: what users may make as many of as they like never displaces what is the host's.
            self.report.unnamed += self.found.pop_last().map_or(0, |(_, found)| found.count);
        }
    }

    fn unread(&mut self, why: impl FnOnce(&mut WhyUnread) -> &mut usize, count: usize) {
        *why(&mut self.report.why_unread) += count;
        self.report.unread += count;
        self.report.processes += count;
    }

    fn report(mut self) -> StaleReport {
        self.report.owners = self.found.into_iter().map(|(owner, found)| found.of(owner)).collect();
        self.report
    }
}

/// A directory's name, if it is one of a process.
fn process_id(name: &OsStr) -> Option<u32> {
    let name = name.to_str()?;
    name.bytes().all(|b| b.is_ascii_digit()).then(|| name.parse().ok()).flatten()
}

/// What one owner's processes map.
#[derive(Debug, Default)]
struct Found {
    /// The first ones.
    processes: Vec<StaleProcess>,
    count: usize,
    files: Files,
}

impl Found {
    /// Processes come by their ids.
    fn add(&mut self, process: StaleProcess, files: Files) {
        self.count += 1;
        if self.processes.len() < NAMED {
            self.processes.push(process);
        }
        self.files.merge(files);
    }

    fn of(self, owner: Owner) -> StaleOwner {
        let care = care(&owner);
        StaleOwner {
            advice: care::advice(&owner, care),
            care,
            owner,
            process_count: self.count,
            processes: self.processes,
            file_count: self.files.told_apart.len(),
            files: self.files.named.iter().map(|file| shown(file)).collect(),
        }
    }
}

/// Replaced files: the first by name, and how many there are. However many and however long they are, not more than some
/// 40 KiB is kept.
#[derive(Debug, Default)]
struct Files {
    named: BTreeSet<Vec<u8>>,
    told_apart: HashSet<u64>,
}

impl Files {
    /// Adds a file, unless `is_wrong` finds that it is none.
    fn add(&mut self, file: &[u8], is_wrong: impl FnOnce() -> bool) {
        /// Nobody can choose names that are taken for each other.
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let mark = KEYS.hash_one(file);
        if self.told_apart.contains(&mark) || self.told_apart.len() >= COUNTED || is_wrong() {
            return;
        }
        self.told_apart.insert(mark);
        // One more character than is shown, so that it is seen that the name was cut.
        self.name(file.get(..(SHOWN + 1) * 4).unwrap_or(file).to_owned());
    }

    fn name(&mut self, file: Vec<u8>) {
        self.named.insert(file);
        if self.named.len() > NAMED {
            self.named.pop_last();
        }
    }

    fn merge(&mut self, other: Self) {
        let room = COUNTED.saturating_sub(self.told_apart.len());
        let new: Vec<u64> = other.told_apart.difference(&self.told_apart).take(room).copied().collect();
        self.told_apart.extend(new);
        other.named.into_iter().for_each(|file| self.name(file));
    }
}

/// What was read of a process.
struct ReadProcess {
    /// None if it maps nothing that was replaced.
    owner: Option<(Owner, StaleProcess)>,
    files: Files,
    extent: Extent,
}

/// A process, by a handle of its directory.
struct Process {
    id: u32,
    directory: OwnedFd,
}

impl Process {
    fn open(proc: &Path, id: u32) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { id, directory: openat(CWD, proc.join(id.to_string()), flags, Mode::empty())? })
    }

    fn file(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(openat(&self.directory, name, flags, Mode::empty())?))
    }

    /// A short file of it.
    fn small(&self, name: &str) -> Result<Vec<u8>, Errno> {
        let mut text = Vec::new();
        self.file(name)?.take(MOST_SMALL).read_to_end(&mut text).map_err(|error| errno(&error))?;
        Ok(text)
    }

    fn link(&self, name: &str) -> Option<PathBuf> {
        let target = readlinkat(&self.directory, name, Vec::new()).ok()?;
        Some(std::ffi::OsString::from_vec(target.into_bytes()).into())
    }

    fn read(
        &self,
        root: &Path,
        namespace: Option<&Path>,
        until: Instant,
        chunk: &mut [u8],
    ) -> Result<ReadProcess, Errno> {
        let (mut installed, mut others) = (Files::default(), Files::default());
        let mut add = |file: &[u8]| {
            let files = if maps::is_of_the_system(file) { &mut installed } else { &mut others };
            files.add(file, || is_really_named_so(root, file));
        };
        let extent = maps::read(self.file("maps")?, MOST_MAPS, Some(until), chunk, &mut add)
            .map_err(|error| errno(&error))?;
        if extent != Extent::Nothing
            && let Some(program) = self.link("exe")
            && let Some(program) = maps::replaced(program.as_os_str().as_bytes())
        {
            add(program);
        }
        if installed.told_apart.is_empty() && others.told_apart.is_empty() {
            return Ok(ReadProcess { owner: None, files: installed, extent });
        }
        let uid = statat(&self.directory, "", rustix::fs::AtFlags::EMPTY_PATH)?.st_uid;
        let elsewhere = namespace.zip(self.link("ns/pid")).is_some_and(|(own, its)| own != its);
        // Both are gone if it has ended meanwhile.
        let owner = owner(self.id, uid, &String::from_utf8_lossy(&self.small("cgroup")?), elsewhere);
        let name = self.small("comm")?;
        let name = shown(name.strip_suffix(b"\n").unwrap_or(&name));
        // What a service maps from elsewhere was not replaced by a patch, and is not ended by restarting it.
        if !matches!(owner, Owner::Init | Owner::Unit { .. }) {
            installed.merge(others);
        }
        let is_old = !installed.told_apart.is_empty();
        let owner = is_old.then_some((owner, StaleProcess { pid: self.id, name }));
        Ok(ReadProcess { owner, files: installed, extent })
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Whether ` (deleted)`, which was taken for the kernel's remark, is part of a file's name. Looked at only where packages
/// install programs and libraries: there nobody but root gives names, and nothing is followed that a user has put up.
fn is_really_named_so(root: &Path, file: &[u8]) -> bool {
    let installed: [&[u8]; 5] = [b"/usr/", b"/lib/", b"/lib64/", b"/bin/", b"/sbin/"];
    if !installed.iter().any(|directory| file.starts_with(directory))
        || file.windows(4).any(|part| part == b"/../")
    {
        return false;
    }
    let relative = file.strip_prefix(b"/").unwrap_or(file);
    let path = root.join(OsStr::from_bytes(&[relative, maps::DELETED].concat()));
    path.symlink_metadata().is_ok()
}

/// Foreign bytes as one line that can be shown: what is no character, no letter of one line or would be obeyed by a
/// terminal is escaped, and what is too long is cut.
#[must_use]
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().min(SHOWN));
    let mut count = 0;
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if count == SHOWN {
                text.push('…');
                return text;
            }
            count += 1;
            text.push_str(&patch_types::terminal::escaped(c.encode_utf8(&mut [0; 4])));
        }
        for byte in chunk.invalid() {
            if count == SHOWN {
                text.push('…');
                return text;
            }
            count += 1;
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests;
