//! Answers about single packages, kept for moments: a page about one is asked for again and again, and each question is
//! a process of the root side.

use std::{
    fs::Metadata,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use patch_types::event::QueryResult;
use tokio::time::Instant;

/// How many answers are kept.
const ANSWERS: usize = 64;

/// How long. Not all that an answer depends on can be seen from here, such as the hour that a phased update waits for.
const LIFE: Duration = Duration::from_secs(30);

/// A longer answer (as JSON) is not kept: some packages have tens of thousands of files.
const LONGEST: usize = 256 << 10;

/// Tells one question, in one state of the host, from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// How often the host had been changed by us.
    pub(super) changes: u64,
    /// The request.
    pub(super) text: String,
    /// The files that the answer comes from, as they were before it was asked.
    pub(super) stamp: u64,
}

struct Kept {
    question: Question,
    answer: QueryResult,
    until: Instant,
}

/// The answers, the one that was used last at the end.
#[derive(Default)]
pub(super) struct Cache(Vec<Kept>);

impl Cache {
    /// The answer, if it is known and still holds.
    pub(super) fn get(&mut self, question: &Question, now: Instant) -> Option<QueryResult> {
        self.sweep(now);
        let found = self.0.iter().position(|kept| kept.question == *question)?;
        let kept = self.0.remove(found);
        let answer = kept.answer.clone();
        self.0.push(kept);
        Some(answer)
    }

    /// Keeps an answer. Returns when the caller should [`sweep`](Self::sweep), if it was kept.
    pub(super) fn put(&mut self, question: Question, answer: &QueryResult, now: Instant) -> Option<Instant> {
        if !is_short(answer) {
            return None;
        }
        self.sweep(now);
        self.0.retain(|kept| kept.question.text != question.text);
        if self.0.len() >= ANSWERS {
            self.0.remove(0);
        }
        let until = now + LIFE;
        self.0.push(Kept { question, answer: answer.clone(), until });
        Some(until)
    }

    /// Forgets what is too old.
    pub(super) fn sweep(&mut self, now: Instant) {
        self.0.retain(|kept| kept.until > now);
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
    }
}

fn is_short(answer: &QueryResult) -> bool {
    struct Room(usize);
    impl io::Write for Room {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    serde_json::to_writer(Room(LONGEST), answer).is_ok()
}

/// A number that is another one when a file has changed that answers about packages come from. A handful of calls that
/// do not wait for a disk, so it is not sent to the pool of blocking threads.
pub(super) fn stamp(root: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in ["var/lib/dpkg/status", "var/lib/apt/extended_states", "var/lib/apt/lists"] {
        file_into(&root.join(file), &mut hasher);
    }
    directory_into(&root.join("etc/apt"), true, &mut hasher);
    hasher.finish()
}

fn directory_into(path: &Path, deeper: bool, hasher: &mut DefaultHasher) {
    file_into(path, hasher);
    let Ok(entries) = std::fs::read_dir(path) else { return };
    // The order of a directory is stable as long as it does not change, and then its own time changes.
    for entry in entries.flatten() {
        entry.file_name().hash(hasher);
        let path = entry.path();
        if deeper && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            directory_into(&path, false, hasher);
        } else {
            file_into(&path, hasher);
        }
    }
}

fn file_into(path: &Path, hasher: &mut DefaultHasher) {
    match std::fs::metadata(path) {
        Ok(meta) => metadata_into(&meta, hasher),
        Err(_) => false.hash(hasher),
    }
}

fn metadata_into(meta: &Metadata, hasher: &mut DefaultHasher) {
    // The time of the inode's last change is the kernel's: no program can set it back.
    (true, meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()).hash(hasher);
}

#[cfg(test)]
mod tests {
    use patch_types::plan::Plan;

    use super::*;

    fn question(text: &str, stamp: u64) -> Question {
        Question { changes: 0, text: text.into(), stamp }
    }

    #[test]
    fn an_answer_holds_for_its_question_and_its_time() {
        let mut cache = Cache::default();
        let now = Instant::now();
        let answer = QueryResult::Plan(Plan::of(vec![]));
        for n in 0..=ANSWERS {
            cache.put(question(&n.to_string(), 1), &answer, now);
            assert!(cache.get(&question("1", 1), now).is_some() || n == 0, "what is used stays");
        }
        assert_eq!(cache.0.len(), ANSWERS);
        assert!(cache.get(&question("0", 1), now).is_none(), "what was not used for longest goes");
        assert!(cache.get(&question("1", 2), now).is_none(), "the host has changed");
        assert!(cache.get(&question("1", 1), now + LIFE).is_none());
        assert_eq!(cache.0.capacity(), 0);
    }

    #[test]
    fn every_file_counts() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["var/lib/dpkg", "var/lib/apt/lists", "etc/apt/preferences.d", "etc/apt/sources.list.d"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let mut last = stamp(root.path());
        assert_eq!(last, stamp(root.path()));
        for file in [
            "var/lib/dpkg/status",
            "var/lib/apt/extended_states",
            "var/lib/apt/lists/x_Packages",
            "etc/apt/sources.list",
            "etc/apt/preferences.d/pin",
            "etc/apt/sources.list.d/a.sources",
        ] {
            for text in ["x", "xy"] {
                if text == "xy" && file.contains("lists/") {
                    // Lists are only ever replaced, which shows in their directory.
                    continue;
                }
                std::fs::write(root.path().join(file), text).unwrap();
                let now = stamp(root.path());
                assert_ne!(now, last, "{file}");
                last = now;
            }
        }
    }
}
