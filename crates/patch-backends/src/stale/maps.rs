//! `/proc/PID/maps`: which replaced files a process maps.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    time::Instant,
};

/// The longest line that is looked at, in bytes. Paths that packages install are shorter than 4096.
const MOST_LINE: usize = 32 << 10;

/// How much is read at once, in bytes. The kernel gives a page of a map at a time.
pub(super) const CHUNK: usize = 16 << 10;

/// What the kernel writes behind the name of a file that is no longer there.
pub(super) const DELETED: &[u8] = b" (deleted)";

/// How far a map was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// There is none: the kernel's own threads and what has ended already have none.
    Nothing,
    /// All of it.
    Whole,
    /// It is longer than what is read, or has a line that is.
    TooMuch,
    /// The time was over.
    OutOfTime,
}

/// Replaced files whose code a process maps, by name. What is mapped without being a file that somebody installed, or
/// without a right to execute it, is no code of theirs. `text` may be anything.
#[must_use]
pub fn replaced_files(text: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut files = BTreeSet::new();
    // Small, so that whoever tries this with all kinds of text tries lines that are read in parts.
    let mut chunk = [0; 64];
    let keep = |path: &[u8]| {
        files.insert(path.to_owned());
    };
    // Reading from memory does not fail.
    let _ = read(text, u64::MAX, None, &mut chunk, keep);
    files
}

/// Goes through a map as it comes, and calls `each` with every replaced file whose code is mapped, as often as it is.
/// Of the text not more than a line is kept. `most` is how much is read, in bytes; `until` is when to give up.
pub(super) fn read(
    mut from: impl Read,
    most: u64,
    until: Option<Instant>,
    chunk: &mut [u8],
    mut each: impl FnMut(&[u8]),
) -> io::Result<Extent> {
    let mut total: u64 = 0;
    let mut lines = Lines::default();
    loop {
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(Extent::OutOfTime);
        }
        if total >= most {
            return Ok(Extent::TooMuch);
        }
        match from.read(chunk) {
            Ok(0) if total == 0 => return Ok(Extent::Nothing),
            Ok(0) => return Ok(if lines.skipped { Extent::TooMuch } else { Extent::Whole }),
            Ok(length) => {
                total += length as u64;
                lines.take(chunk.get(..length).unwrap_or_default(), &mut each);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Lines of text that comes in pieces.
#[derive(Debug, Default)]
struct Lines {
    /// A line whose end is still to come.
    begun: Vec<u8>,
    /// Whether that line was too long, so that its rest is not kept.
    skipping: bool,
    /// Whether any line was too long.
    skipped: bool,
}

impl Lines {
    fn take(&mut self, mut piece: &[u8], each: &mut impl FnMut(&[u8])) {
        if self.skipping {
            let Some(end) = memchr::memchr(b'\n', piece) else { return };
            piece = piece.get(end + 1..).unwrap_or_default();
            self.skipping = false;
        }
        let (whole, rest) = piece.split_at(memchr::memrchr(b'\n', piece).map_or(0, |at| at + 1));
        if self.begun.is_empty() {
            look(whole, each);
        } else if !whole.is_empty() {
            self.begun.extend(whole);
            look(&self.begun, each);
            self.begun.clear();
        }
        self.begun.extend(rest);
        if self.begun.len() > MOST_LINE {
            self.begun.clear();
            (self.skipping, self.skipped) = (true, true);
        }
    }
}

/// Calls `each` with the replaced files of whole lines.
fn look(lines: &[u8], each: &mut impl FnMut(&[u8])) {
    // Nearly all processes map nothing that was replaced: then no line is looked at.
    for end in memchr::memmem::find_iter(lines, b" (deleted)\n") {
        let (before, _) = lines.split_at(end);
        let begin = memchr::memrchr(b'\n', before).map_or(0, |at| at + 1);
        let line = before.get(begin..).unwrap_or_default();
        if let Some(path) = executable(line).and_then(installed) {
            each(path);
        }
    }
}

/// The file of a mapping that may be executed; none for what is no file.
fn executable(line: &[u8]) -> Option<&[u8]> {
    // Address, rights, offset, device, inode; then blanks up to a column.
    let mut fields = line.splitn(6, |b| *b == b' ');
    let rights = fields.nth(1)?;
    let inode = fields.nth(2)?;
    let path = fields.next()?.trim_ascii_start();
    (rights.contains(&b'x') && inode != b"0" && !inode.is_empty()).then_some(path)
}

/// The file that a link of the kernel's, such as `exe`, or a mapping names as deleted.
pub(super) fn replaced(path: &[u8]) -> Option<&[u8]> {
    path.strip_suffix(DELETED).and_then(installed)
}

/// The name under which a file was installed; none for what comes and goes without being installed: memory with a
/// name, devices, what is compiled while it runs, temporary files.
fn installed(path: &[u8]) -> Option<&[u8]> {
    const PASSING: [&[u8]; 18] = [
        b"/dev/",
        b"/SYSV",
        b"/memfd:",
        b"/[aio]",
        b"/[",
        b"/i915",
        b"/drm",
        b"/dmabuf",
        b"/anon_hugepage",
        b"/io_uring",
        b"/secretmem",
        b"/tmp/",
        b"/var/tmp/",
        b"/run/",
        b"/var/run/",
        b"/proc/",
        b"/sys/",
        b"/bpf",
    ];
    if !path.starts_with(b"/") || PASSING.iter().any(|prefix| path.starts_with(prefix)) {
        return None;
    }
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    // What the Oil runtime, Plasma and Java's native access compile or unpack, beside the file or in a home.
    let made_while_running = name.starts_with(b"orcexec.")
        || name.strip_prefix(b"#").is_some_and(is_number)
        || name.strip_prefix(b"jna").and_then(|rest| rest.strip_suffix(b".tmp")).is_some_and(is_number);
    if made_while_running {
        return None;
    }
    // dpkg's names for the while of an unpacking, under which a process may have met the file.
    let suffixes: [&[u8]; 2] = [b".dpkg-new", b".dpkg-tmp"];
    Some(suffixes.iter().find_map(|suffix| path.strip_suffix(*suffix)).unwrap_or(path))
}

/// Whether a file lies where packages install: what a service maps from elsewhere, a home for one, is nothing that a
/// patch replaced.
pub(super) fn is_of_the_system(path: &[u8]) -> bool {
    const DIRECTORIES: [&[u8]; 11] = [
        b"/usr/",
        b"/lib/",
        b"/lib32/",
        b"/lib64/",
        b"/libx32/",
        b"/libo32/",
        b"/bin/",
        b"/sbin/",
        b"/opt/",
        b"/etc/",
        b"/var/lib/",
    ];
    DIRECTORIES.iter().any(|directory| path.starts_with(directory))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(text: &str) -> Vec<String> {
        let files = replaced_files(text.as_bytes());
        files.into_iter().map(|file| String::from_utf8(file).unwrap()).collect()
    }

    #[test]
    fn only_code_that_was_installed_counts() {
        let maps = "\
55d0-55d1 r-xp 00000000 00:1b 123                        /usr/sbin/lp-daemon (deleted)
7f00-7f01 r--p 00000000 00:1b 124                        /usr/lib/libdata.so (deleted)
7f00-7f01 r-xp 00000000 00:1b 124                        /usr/lib/libx.so.dpkg-new (deleted)
7f02-7f03 rw-s 00000000 00:05 125                        /dev/zero (deleted)
7f02-7f03 rwxs 00000000 00:05 125                        /dev/zero (deleted)
7f04-7f05 r-xs 00000000 00:05 126                        /SYSV00000000 (deleted)
7f04-7f05 r-xp 00000000 00:05 126                        /memfd:jit (deleted)
7f04-7f05 r-xp 00000000 00:05 126                        /memfd:/usr/lib/evil.so (deleted)
7f04-7f05 rwxs 00000000 00:05 126                        /[aio] (deleted)
7f04-7f05 rwxs 00000000 00:05 126                        /i915 (deleted)
7f04-7f05 rwxs 00000000 00:05 126                        /drm mm object (deleted)
7f04-7f05 r-xp 00000000 00:05 126                        /tmp/jit (deleted)
7f04-7f05 r-xp 00000000 00:05 126                        /var/tmp/jit (deleted)
7f04-7f05 r-xp 00000000 00:05 126                        /run/user/1000/orcexec.Ab1 (deleted)
7f04-7f05 r-xp 00000000 00:05 126                        /home/u/orcexec.Ab1 (deleted)
7f04-7f05 r-xp 00000000 00:05 126                        /home/u/#4711 (deleted)
7f04-7f05 r-xp 00000000 00:05 126                        /home/u/jna123.tmp (deleted)
7f04-7f05 r-xp 00000000 00:05 0                          /usr/lib/noinode.so (deleted)
7f04-7f05 r-xp 00000000 00:05 126                        relative.so (deleted)
7f06-7f07 r-xp 00000000 00:1b 127                        /usr/lib/libc.so.6
7f06-7f07 r-xp 00000000 00:1b 127                        /opt/a b/lib (deleted).so
7f06-7f07 r-xp 00000000 00:1b 127                        /opt/a b/lib c.so (deleted)
7f06-7f07 r-xp 00000000 00:1b 127                        /usr/lib/two (deleted) (deleted)
7f08-7f09 r-xp 00000000 00:00 0                          [vdso]
7f08-7f09 r-xp 00000000 00:00 9                          [anon:/usr/lib/x (deleted)
";
        assert_eq!(
            names(maps),
            ["/opt/a b/lib c.so", "/usr/lib/libx.so", "/usr/lib/two (deleted)", "/usr/sbin/lp-daemon"]
        );
    }

    #[test]
    fn a_line_that_was_cut_says_nothing() {
        assert!(names("7f0-7f1 r-xp 0 00:1b 1 /usr/lib/a (deleted)").is_empty());
        assert_eq!(names("7f0-7f1 r-xp 0 00:1b 1 /usr/lib/a (deleted)\n7f0-7f1 r-xp 0 00:1"), ["/usr/lib/a"]);
    }

    fn read_all(text: &[u8], most: u64, until: Option<Instant>, chunk: usize) -> (Extent, BTreeSet<Vec<u8>>) {
        let mut files = BTreeSet::new();
        let extent = read(text, most, until, &mut vec![0; chunk], |file| {
            files.insert(file.to_owned());
        });
        (extent.unwrap(), files)
    }

    #[test]
    fn what_is_at_the_end_of_a_long_map_is_found() {
        let mut maps = b"7f00-7f01 rw-p 00000000 00:00 0 \n".repeat(200_000);
        assert!(maps.len() > 6 << 20, "longer than what used to be read");
        maps.extend(b"7f00-7f01 r-xp 00000000 00:1b 5 /usr/lib/last.so (deleted)\n");
        let (extent, files) = read_all(&maps, 64 << 20, None, CHUNK);
        assert_eq!((extent, files.len()), (Extent::Whole, 1));
    }

    #[test]
    fn it_is_said_how_far_was_read() {
        let maps = b"7f00-7f01 r-xp 00000000 00:1b 5 /usr/lib/a.so (deleted)\n".repeat(100);
        assert_eq!(read_all(b"", 1000, None, CHUNK).0, Extent::Nothing);
        assert_eq!(read_all(&maps, 1000, None, 100), (Extent::TooMuch, [b"/usr/lib/a.so".to_vec()].into()));
        assert_eq!(read_all(&maps, 1 << 20, Some(Instant::now()), CHUNK).0, Extent::OutOfTime);
        // Of a line that is too long nothing is kept; those around it are read.
        let long = "x".repeat(MOST_LINE * 3);
        let maps = format!(
            "1-2 r-xp 0 0:1 5 /usr/before (deleted)\n1-2 r-xp 0 0:1 5 /usr/{long} (deleted)\n\
             1-2 r-xp 0 0:1 5 /usr/behind (deleted)\n"
        );
        for chunk in [7, 1000, CHUNK] {
            let (extent, files) = read_all(maps.as_bytes(), 1 << 20, None, chunk);
            assert_eq!(extent, Extent::TooMuch);
            assert_eq!(files, [b"/usr/before".to_vec(), b"/usr/behind".to_vec()].into(), "{chunk}");
        }
    }

    /// Text that comes in pieces, with errors in between.
    struct Pieces(Vec<Result<&'static [u8], io::ErrorKind>>);

    impl Read for Pieces {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0)?;
            into[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn a_reading_that_is_interrupted_goes_on_and_one_that_fails_says_so() {
        let read = |pieces: Vec<Result<&'static [u8], io::ErrorKind>>| {
            let mut files = Vec::new();
            let extent = read(Pieces(pieces), 1000, None, &mut [0; 100], |file| files.push(file.to_owned()));
            (extent.map_err(|error| error.kind()), files)
        };
        let (begin, end) = (&b"1-2 r-xp 0 0:1 5 /usr/a"[..], &b".so (deleted)\n"[..]);
        let interrupted = Err(io::ErrorKind::Interrupted);
        assert_eq!(
            read(vec![interrupted, Ok(begin), interrupted, Ok(end)]),
            (Ok(Extent::Whole), vec![b"/usr/a.so".to_vec()])
        );
        let (extent, files) = read(vec![Ok(begin), Err(io::ErrorKind::PermissionDenied), Ok(end)]);
        assert_eq!((extent, files.len()), (Err(io::ErrorKind::PermissionDenied), 0));
    }

    #[test]
    fn homes_and_data_are_not_the_systems() {
        for path in ["/usr/lib/a.so", "/lib/x86_64-linux-gnu/a", "/lib64/a", "/opt/a", "/etc/a", "/var/lib/a"]
        {
            assert!(is_of_the_system(path.as_bytes()), "{path}");
        }
        for path in ["/home/u/a", "/srv/a", "/root/a", "/usrx/a", "/library/a", "/var/cache/a", "/"] {
            assert!(!is_of_the_system(path.as_bytes()), "{path}");
        }
    }

    proptest! {
        #[test]
        fn pieces_say_what_the_whole_says(
            lines in proptest::collection::vec("(1-2 r-xp 0 0:1 5 )?/usr/[a-c]{1,5}( \\(deleted\\))?", 0..12),
            chunk in 1_usize..90,
        ) {
            let text = lines.join("\n");
            prop_assert_eq!(
                read_all(text.as_bytes(), u64::MAX, None, chunk).1,
                read_all(text.as_bytes(), u64::MAX, None, 4096).1
            );
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = replaced_files(&bytes);
            let _ = replaced(&bytes);
        }

        #[test]
        fn no_name_makes_other_lines_say_something_else(
            name in "[^\n\0]{1,40}", rights in "[r-][w-][x-][ps]", inode in 0_u32..3,
        ) {
            // The kernel escapes line feeds, and nothing else.
            let line = format!("7f00-7f01 {rights} 00000000 00:1b {inode}                       /usr/lib/{name} (deleted)\n");
            let around = "1-2 r-xp 0 00:1b 5 /usr/lib/before\n3-4 r-xp 0 00:1b 6 /usr/lib/known (deleted)\n";
            let text = format!("{around}{line}{around}");
            let mut found = replaced_files(text.as_bytes());
            prop_assert!(found.remove(&b"/usr/lib/known"[..]));
            prop_assert_eq!(found.len() <= 1, true);
            if !rights.contains('x') || inode == 0 {
                prop_assert!(found.is_empty());
            }
        }
    }
}
