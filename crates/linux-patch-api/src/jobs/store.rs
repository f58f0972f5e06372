//! The jobs on disk: one file a job, `ID.json`.
//!
//! A file is written under another name, synced, renamed, and the directory is synced, so that whatever happens there
//! is either the old record or the new one. One thread does all writing: records of one job keep their order, and those
//! that wait together share their syncs. What is found damaged is set aside as `ID.json.corrupt` and reported,
//! never deleted and never a reason not to start.

use std::{
    collections::HashSet,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use patch_types::JobId;
use tokio::sync::oneshot;

use super::record::{Head, Record};

/// The daemon's jobs, below the root prefix.
pub(super) const JOBS_DIR: &str = "var/lib/linux_patch_api/jobs";

/// A larger file is none of ours: a record is bounded by the log's and the plan's bounds.
const MAX_FILE: u64 = 64 << 20;

/// How many writes share their syncs at most. Each holds a file open meanwhile.
const GROUP: usize = 64;

/// Why a record is not on disk, or cannot be read from there.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what} {}: {reason}", path.display())]
pub struct StoreError {
    what: &'static str,
    path: PathBuf,
    reason: String,
}

impl StoreError {
    fn new(what: &'static str, path: &Path, reason: &dyn fmt::Display) -> Self {
        Self { what, path: path.to_path_buf(), reason: reason.to_string() }
    }
}

/// A write whose place in the order is taken; awaiting it tells when it is on disk.
pub(super) struct Writing<'a> {
    dir: &'a Path,
    result: oneshot::Receiver<Result<(), StoreError>>,
}

impl Writing<'_> {
    /// Waits until it is done. It is done also if nobody waits.
    pub(super) async fn done(self) -> Result<(), StoreError> {
        self.result.await.map_err(|_| stopping(self.dir))?
    }
}

fn stopping(dir: &Path) -> StoreError {
    StoreError::new("cannot write to", dir, &"the agent is stopping")
}

enum Task {
    Write(Vec<u8>),
    Remove,
}

struct Work {
    id: JobId,
    task: Task,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// The directory of the jobs.
pub(super) struct Store {
    dir: PathBuf,
    queue: Mutex<Option<mpsc::Sender<Work>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the directory, making it if need be, and shows each job that is there, in no order. Returns what was
    /// found damaged as well, one sentence each. Blocks.
    ///
    /// One job at a time is in memory whole: how much of it stays there is the caller's choice.
    pub(super) fn open(root: &Path, found: impl FnMut(Head)) -> Result<(Self, Vec<String>), StoreError> {
        let dir = root.join(JOBS_DIR);
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&dir)
            .map_err(|e| StoreError::new("cannot make the directory of jobs", &dir, &e))?;
        let problems = load(&dir, found)?;
        let (queue, work) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("job-store".into())
            .spawn({
                let dir = dir.clone();
                move || write_all(&dir, &work)
            })
            .map_err(|e| StoreError::new("cannot start the writer of", &dir, &e))?;
        let store = Self { dir, queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)) };
        Ok((store, problems))
    }

    /// Puts a record on disk. When this returns it will survive a power cut.
    pub(super) async fn write(&self, id: JobId, record: Vec<u8>) -> Result<(), StoreError> {
        self.enqueue(id, record)?.done().await
    }

    /// Takes a record's place in the order: what is enqueued later for the same job replaces it.
    pub(super) fn enqueue(&self, id: JobId, record: Vec<u8>) -> Result<Writing<'_>, StoreError> {
        self.send(id, Task::Write(record))
    }

    /// Removes a job's file, durably. One that is not there is no error.
    pub(super) async fn remove(&self, id: JobId) -> Result<(), StoreError> {
        self.send(id, Task::Remove)?.done().await
    }

    fn send(&self, id: JobId, task: Task) -> Result<Writing<'_>, StoreError> {
        let (done, result) = oneshot::channel();
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = queue.as_ref().map(|queue| queue.send(Work { id, task, done }));
        match sent {
            Some(Ok(())) => Ok(Writing { dir: &self.dir, result }),
            Some(Err(_)) | None => Err(stopping(&self.dir)),
        }
    }

    /// Reads a job's file whole. Blocks.
    pub(super) fn read(&self, id: JobId) -> Result<Record, StoreError> {
        let path = file_of(&self.dir, id);
        let text = read_bounded(&path).map_err(|e| StoreError::new("cannot read", &path, &e))?;
        Record::parse(id, &text).map_err(|e| StoreError::new("cannot read", &path, &e))
    }

    /// Writes what is still to be written, and ends the thread. Blocks.
    pub(super) fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the writer of jobs died");
        }
    }
}

fn file_of(dir: &Path, id: JobId) -> PathBuf {
    dir.join(format!("{id}.json"))
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if read as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}

fn write_all(dir: &Path, work: &mpsc::Receiver<Work>) {
    let mut held = None;
    while let Some(first) = held.take().or_else(|| work.recv().ok()) {
        let mut ids = HashSet::from([first.id]);
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(more) = work.try_recv()
        {
            if !ids.insert(more.id) {
                // A second record of the same job: after the first one.
                held = Some(more);
                break;
            }
            group.push(more);
        }
        // First all are written and then all are synced: the first sync commits what the others need as well.
        let staged: Vec<_> = group
            .into_iter()
            .map(|Work { id, task, done }| {
                let staged = match task {
                    Task::Write(record) => stage(dir, id, &record).map(Some),
                    Task::Remove => remove(dir, id).map(|()| None),
                };
                (id, done, staged)
            })
            .collect();
        let results: Vec<_> = staged
            .into_iter()
            .map(|(id, done, staged)| {
                let result = staged.and_then(|file| file.map_or(Ok(()), |file| replace(dir, id, &file)));
                (done, result)
            })
            .collect();
        let synced = File::open(dir)
            .and_then(|d| d.sync_all())
            .map_err(|e| StoreError::new("cannot sync the directory", dir, &e));
        for (waiting, result) in results {
            // Whoever asked may be gone; the record is on disk all the same.
            let _ = waiting.send(result.and_then(|()| synced.clone()));
        }
    }
}

fn new_of(dir: &Path, id: JobId) -> PathBuf {
    dir.join(format!("{id}.json.new"))
}

/// Writes a record beside the one that it is to replace.
fn stage(dir: &Path, id: JobId, record: &[u8]) -> Result<File, StoreError> {
    let new = new_of(dir, id);
    let write = || {
        // Not `create_new`: a leftover of a write that failed half-way is simply overwritten.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(record)?;
        Ok(file)
    };
    write().map_err(|e| give_up(dir, id, &e))
}

/// Puts a staged record in its place.
fn replace(dir: &Path, id: JobId, staged: &File) -> Result<(), StoreError> {
    staged
        .sync_all()
        .and_then(|()| fs::rename(new_of(dir, id), file_of(dir, id)))
        .map_err(|e| give_up(dir, id, &e))
}

fn give_up(dir: &Path, id: JobId, error: &io::Error) -> StoreError {
    // On a full disk this gives back what the attempt took.
    let _ = fs::remove_file(new_of(dir, id));
    StoreError::new("cannot write", &file_of(dir, id), error)
}

fn remove(dir: &Path, id: JobId) -> Result<(), StoreError> {
    let path = file_of(dir, id);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::new("cannot remove", &path, &e)),
        _ => Ok(()),
    }
}

fn load(dir: &Path, mut found: impl FnMut(Head)) -> Result<Vec<String>, StoreError> {
    let mut problems = Vec::new();
    let unreadable = |e| StoreError::new("cannot read the directory of jobs", dir, &e);
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        if let Some(id) = name.strip_suffix(".json.new").and_then(id_of) {
            // A write that was cut off before its rename: the record before it holds.
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, job = %id, "a leftover of a job's file cannot be removed");
            }
        } else if let Some(id) = name.strip_suffix(".json").and_then(id_of) {
            match read_bounded(&path)
                .map_err(|e| e.to_string())
                .and_then(|text| Head::parse(id, &text).map_err(|e| e.to_string()))
            {
                Ok(head) => found(head),
                Err(reason) => problems.push(set_aside(&path, &reason)),
            }
        }
    }
    Ok(problems)
}

/// Only the spelling that we write: another one of the same id would be the same job twice.
fn id_of(text: &str) -> Option<JobId> {
    text.parse::<JobId>().ok().filter(|id| id.to_string() == text)
}

fn set_aside(path: &Path, reason: &str) -> String {
    let free = (0..).map(|n| match n {
        0 => PathBuf::from(format!("{}.corrupt", path.display())),
        n => PathBuf::from(format!("{}.corrupt.{n}", path.display())),
    });
    let aside = free.take(100).find(|p| fs::symlink_metadata(p).is_err());
    let aside = aside.unwrap_or_else(|| PathBuf::from(format!("{}.corrupt", path.display())));
    let problem = match fs::rename(path, &aside) {
        Ok(()) => {
            format!("the job file {} is damaged ({reason}); kept as {}", path.display(), aside.display())
        }
        Err(e) => {
            format!("the job file {} is damaged ({reason}) and cannot be set aside: {e}", path.display())
        }
    };
    tracing::error!("{problem}");
    problem
}
