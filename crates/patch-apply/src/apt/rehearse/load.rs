//! What the processes of an image take: counted by whoever watches over it, on a host without control groups as well.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What they take at one moment.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    /// Processes and their threads: the kernel makes both of the same.
    pub(super) tasks: usize,
    /// Their memory as cheaply as it can be told, in bytes: what several of them share is counted for each, and so are the pages of
    /// files.
    pub(super) at_most: u64,
}

/// That of the image whose init this is, by its own `/proc`. Only while the commands run: before, that init's root is the
/// host's.
pub(super) fn load(init: u32) -> Load {
    let mut load = Load::default();
    for process in processes(init) {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let one = one(&status);
        load.tasks = load.tasks.saturating_add(one.tasks);
        load.at_most = load.at_most.saturating_add(one.at_most);
    }
    load
}

/// How much memory the same processes really take, each page once: slower to tell.
pub(super) fn memory(init: u32) -> u64 {
    let own = |process: PathBuf| {
        let read = |file: &str| fs::read_to_string(process.join(file)).ok();
        let exact = read("smaps_rollup").and_then(|text| proportional(&text));
        // Of somebody else's process a kernel may not tell.
        exact.or_else(|| own(&read("status")?)).unwrap_or_default()
    };
    processes(init).map(own).fold(0, u64::saturating_add)
}

fn processes(init: u32) -> impl Iterator<Item = PathBuf> {
    let proc = Path::new("/proc").join(init.to_string()).join("root/proc");
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().first().is_some_and(u8::is_ascii_digit);
    entries.filter(move |entry| is_process(&entry.file_name())).map(|entry| entry.path())
}

/// What one process takes, by its `status`. One that has ended and that nobody waited for is one all the same.
fn one(status: &str) -> Load {
    let threads = value(status, "Threads:").and_then(|threads| usize::try_from(threads).ok());
    let at_most = kibibytes(status, "VmRSS:").unwrap_or_default();
    Load { tasks: threads.unwrap_or_default().max(1), at_most }
}

/// What is of no file, whether or not others have the same, by the same file.
fn own(status: &str) -> Option<u64> {
    let shared = kibibytes(status, "RssShmem:").unwrap_or_default();
    Some(kibibytes(status, "RssAnon:")?.saturating_add(shared))
}

fn value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// In bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    Some(value(text, name)?.saturating_mul(1024))
}

/// Its part of what is of no file, in bytes. The pages of files can be had back; those of the image are counted as written.
fn proportional(rollup: &str) -> Option<u64> {
    let shared = kibibytes(rollup, "Pss_Shmem:").unwrap_or_default();
    Some(kibibytes(rollup, "Pss_Anon:")?.saturating_add(shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let status = "Name:\tsh\nVmRSS:\t    1716 kB\nRssAnon:\t     112 kB\nRssFile:\t    1604 kB\nRssShmem:\t       4 kB\nThreads:\t3\n";
        assert_eq!(one(status), Load { tasks: 3, at_most: 1716 * 1024 });
        assert_eq!(own(status), Some(116 * 1024));
        assert_eq!(one("State: Z (zombie)\n"), Load { tasks: 1, at_most: 0 });
        assert_eq!((own(""), one("Threads: many\nVmRSS: x kB\n").at_most), (None, 0));
        let rollup = "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss: 1000 kB\nPss_Anon:  300 kB\nPss_File: 90 kB\nPss_Shmem: 12 kB\n";
        assert_eq!(proportional(rollup), Some(312 * 1024));
        assert_eq!(proportional("Rss: 1000 kB\n"), None);
    }

    #[test]
    fn what_this_kernel_says_is_understood() {
        let text = |file: &str| fs::read_to_string(Path::new("/proc/self").join(file)).unwrap();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| wait.lock().unwrap().recv());
            }
            let now = one(&text("status"));
            drop(done);
            assert!(now.tasks >= 4 && now.at_most > 1 << 20, "{now:?}");
        });
        assert!(own(&text("status")).is_some_and(|bytes| bytes > 0));
        assert!(proportional(&text("smaps_rollup")).is_some_and(|bytes| bytes > 0));
    }
}
