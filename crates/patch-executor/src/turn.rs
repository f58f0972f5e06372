//! Whose turn it is: changes are serial, and in the order of their ids, which is the order in which they were accepted.
//!
//! All locks are the kernel's and go with the process. The files are in the directory that only root can enter: whoever
//! could open them could hold everything up.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use patch_types::JobId;
use rustix::fs::{FlockOperation, flock};

use crate::{
    journal::{Journal, State},
    paths::Paths,
};

/// The right to change the host, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    lock: File,
}

impl Turn {
    /// Whose turn it was last. One that has not ended died of it, and is to be settled before anything else begins.
    pub(crate) fn last_owner(&mut self) -> Option<JobId> {
        let mut text = String::new();
        self.lock.rewind().ok()?;
        (&self.lock).take(64).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }

    /// Notes, durably, whose turn it is.
    pub(crate) fn claim(&mut self, id: JobId) -> io::Result<()> {
        self.lock.rewind()?;
        self.lock.write_all(id.to_string().as_bytes())?;
        self.lock.sync_data()
    }
}

/// Whose turn it is, for those who wait for it.
pub(crate) fn owner(paths: &Paths) -> Option<JobId> {
    fs::read_to_string(paths.turn()).ok()?.trim().parse().ok()
}

/// A change's place in the queue.
#[derive(Debug)]
pub(crate) struct Place {
    id: JobId,
    path: std::path::PathBuf,
    _lock: File,
}

impl Drop for Place {
    fn drop(&mut self) {
        // One that is left behind is not locked by anybody, which says the same.
        let _ = fs::remove_file(&self.path);
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes a place in the queue.
pub(crate) fn queue(paths: &Paths, id: JobId) -> io::Result<Place> {
    let path = paths.queue().join(id.to_string());
    let lock = open(&path)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(Place { id, path, _lock: lock })
}

/// The turn, if it is free and nobody who came earlier waits for it.
pub(crate) fn try_take(paths: &Paths, place: &Place) -> io::Result<Option<Turn>> {
    let turn = open(&paths.turn())?;
    if !try_lock(&turn)? || somebody_is_before(paths, place)? {
        return Ok(None);
    }
    Ok(Some(Turn { lock: turn }))
}

fn somebody_is_before(paths: &Paths, place: &Place) -> io::Result<bool> {
    for entry in fs::read_dir(paths.queue())? {
        let entry = entry?;
        let id: Option<JobId> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if id.is_none_or(|id| id >= place.id) {
            continue;
        }
        match File::open(entry.path()) {
            Ok(file) if try_lock(&file)? => {}
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Whether no change is under way. Those who only ask do not take each other for one.
pub(crate) fn is_free(paths: &Paths) -> bool {
    open(&paths.turn()).is_ok_and(|turn| flock(&turn, FlockOperation::NonBlockingLockShared).is_ok())
}

/// The change that is under way, if one is: whoever looks at the host sees what it has done so far. One that has ended and is
/// only tidying up after itself is none, nor is one without a journal, which has not begun or is long gone.
pub(crate) fn under_way(paths: &Paths) -> Option<JobId> {
    if is_free(paths) {
        return None;
    }
    let is_over = |job: &JobId| match Journal::open(&paths.journal(*job)) {
        Ok(journal) => matches!(journal.record.state, State::Ended { .. }),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    owner(paths).filter(|job| !is_over(job))
}

/// How many reads may be made for the daemon at once.
const READS: usize = 4;

/// A place among the reads, when one is free; none if the system wants us to stop meanwhile.
pub(crate) fn read(
    paths: &Paths,
    must_stop: impl Fn() -> bool,
    pause: impl Fn(),
) -> io::Result<Option<File>> {
    let slots = (0..READS)
        .map(|number| open(&paths.queue().with_file_name(format!("read-{number}"))))
        .collect::<io::Result<Vec<_>>>()?;
    loop {
        for slot in &slots {
            if try_lock(slot)? {
                // The others' descriptors are closed with the list, this one is not.
                return slot.try_clone().map(Some);
            }
        }
        if must_stop() {
            return Ok(None);
        }
        pause();
    }
}

/// The turn, for settling: whoever it belongs to is waited for.
pub(crate) fn wait(
    paths: &Paths,
    must_stop: impl Fn() -> bool,
    pause: impl Fn(),
) -> io::Result<Option<Turn>> {
    let turn = open(&paths.turn())?;
    while !try_lock(&turn)? {
        if must_stop() {
            return Ok(None);
        }
        pause();
    }
    Ok(Some(Turn { lock: turn }))
}

#[cfg(test)]
mod tests {
    use patch_types::{ChangeOptions, JobStatus, Operation, event::Ended, executor::Limits};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn reads_are_bounded() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path().to_owned());
        fs::create_dir_all(paths.queue()).unwrap();
        let stop_at_once = || read(&paths, || true, || {}).unwrap();
        let mut held: Vec<File> = (0..READS).map(|_| stop_at_once().unwrap()).collect();
        assert!(stop_at_once().is_none());
        held.pop();
        assert!(stop_at_once().is_some());
    }

    #[test]
    fn a_change_is_under_way_from_its_turn_to_its_end() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path().to_owned());
        fs::create_dir_all(paths.queue()).unwrap();
        let id = JobId(Uuid::from_u128(1));
        assert_eq!(under_way(&paths), None);
        let place = queue(&paths, id).unwrap();
        assert_eq!(under_way(&paths), None, "who waits has done nothing");
        let mut turn = try_take(&paths, &place).unwrap().unwrap();
        turn.claim(id).unwrap();
        let (limits, options) = (Limits::default(), ChangeOptions::default());
        let mut journal =
            Journal::create(&paths.journal(id), id, Operation::Refresh, limits, None, options).unwrap();
        assert_eq!(under_way(&paths), Some(id));
        // The next one has the turn and has not begun.
        let next = JobId(Uuid::from_u128(2));
        turn.claim(next).unwrap();
        assert_eq!(under_way(&paths), None);
        turn.claim(id).unwrap();
        let ended = Ended {
            status: JobStatus::Completed,
            outcome: None,
            exit_code: None,
            error: None,
            results: Vec::new(),
            answer: None,
        };
        journal.enter(State::Ended { ended: Box::new(ended) }).unwrap();
        assert_eq!(under_way(&paths), None, "it tidies up");
        drop(turn);
        assert_eq!(under_way(&paths), None);
    }

    #[test]
    fn those_who_ask_do_not_see_each_other() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path().to_owned());
        fs::create_dir_all(paths.queue()).unwrap();
        let asking = open(&paths.turn()).unwrap();
        flock(&asking, FlockOperation::NonBlockingLockShared).unwrap();
        assert!(is_free(&paths));
        drop(asking);
        let place = queue(&paths, JobId(Uuid::from_u128(1))).unwrap();
        let turn = try_take(&paths, &place).unwrap();
        assert!(turn.is_some() && !is_free(&paths));
    }

    #[test]
    fn the_turn_goes_in_the_order_of_acceptance() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path().to_owned());
        fs::create_dir_all(paths.queue()).unwrap();
        let ids = [JobId(Uuid::from_u128(1)), JobId(Uuid::from_u128(2)), JobId(Uuid::from_u128(3))];
        let [first, second, third] = ids.map(|id| queue(&paths, id).unwrap());
        assert!(try_take(&paths, &third).unwrap().is_none() && try_take(&paths, &second).unwrap().is_none());
        let turn = try_take(&paths, &first).unwrap().unwrap();
        drop(first);
        assert!(try_take(&paths, &second).unwrap().is_none(), "two have the turn");
        drop(turn);
        assert!(try_take(&paths, &third).unwrap().is_none());
        drop(second);
        // One that was killed while it waited holds nobody up, although its file is still there.
        fs::write(paths.queue().join(ids[1].to_string()), "").unwrap();
        assert!(try_take(&paths, &third).unwrap().is_some());
    }
}
