//! Gives memory back that an idle process does not need: free pages of the heap, and pages of the program that were only
//! needed to start or for a burst of work. They are read again from the program's file when they are wanted, as after any
//! shortage of memory; here it is done before there is one.
//!
//! The only crate with `unsafe` code. When it is worth it is the caller's to decide.

use std::{fs, io, ops::Range};

use rustix::mm::{Advice, madvise};

/// The parts of this process's program that can be read from its file again at any time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Addresses, by pages.
    parts: Vec<Range<usize>>,
}

impl Program {
    /// Finds them. To be called once, when the process starts: what is found stays true until it ends, since nobody
    /// unmaps a running program.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        let file = fs::read_link("/proc/self/exe")?;
        let maps = fs::read_to_string("/proc/self/smaps")?;
        Ok(Self { parts: unchanged(&maps, &file.to_string_lossy()) })
    }

    /// How many bytes of address space they are.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(ExactSizeIterator::len).sum()
    }

    /// Takes them out of memory that counts as this process's. Nothing else changes.
    #[expect(unsafe_code, reason = "no safe crate offers madvise for a mapping of the program itself")]
    pub fn let_go(&self) {
        for part in &self.parts {
            // SAFETY: the range is a private mapping of the program's file that is not writable and of which no page was
            // changed since it was mapped (`unchanged`); it stays mapped as long as the process lives. Whoever reads
            // or runs a page of it finds the same bytes again. What cannot be dropped, since it is locked, say, stays.
            let _ = unsafe {
                madvise(std::ptr::with_exposed_provenance_mut(part.start), part.len(), Advice::LinuxDontNeed)
            };
        }
    }
}

/// Gives the heap's free pages back to the kernel.
pub fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "a call of the C library")]
        // SAFETY: it may be called at any time from any thread; it touches only free pages.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// The mappings of `file` in the text of `/proc/PID/smaps` that can be dropped: private, not writable, and without a page
/// that differs from the file, as those have that the dynamic linker relocated and then protected.
fn unchanged(smaps: &str, file: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut open: Option<Range<usize>> = None;
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::parse(line) {
            let is_wanted = mapping.file == file
                && matches!(mapping.permissions, "r--p" | "r-xp")
                && mapping.range.start < mapping.range.end;
            open = is_wanted.then_some(mapping.range);
        } else if let Some(amount) = line.strip_prefix("Anonymous:")
            && let Some(range) = open.take()
            && amount.trim() == "0 kB"
        {
            parts.push(range);
        }
    }
    parts
}

/// The first line of a mapping.
struct Mapping<'a> {
    range: Range<usize>,
    permissions: &'a str,
    file: &'a str,
}

impl<'a> Mapping<'a> {
    /// None of a line that says something about the mapping before it.
    fn parse(line: &'a str) -> Option<Self> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let hex = |text| usize::from_str_radix(text, 16).ok();
        let range = hex(start)?..hex(end)?;
        // Offset, device and inode, then the name, which may have blanks.
        let (permissions, rest) = rest.split_once(' ')?;
        let file = rest.splitn(4, ' ').nth(3).unwrap_or_default().trim_start();
        Some(Self { range, permissions, file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0a0000000-55d0a0100000 r--p 00000000 fe:00 1234                       /usr/sbin/linux patch-api
Size:               1024 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
55d0a0100000-55d0a0900000 r-xp 00100000 fe:00 1234                       /usr/sbin/linux patch-api
Anonymous:             0 kB
55d0a0900000-55d0a0a00000 r--p 00900000 fe:00 1234                       /usr/sbin/linux patch-api
Anonymous:          1024 kB
55d0a0a00000-55d0a0a10000 rw-p 00a00000 fe:00 1234                       /usr/sbin/linux patch-api
Anonymous:             0 kB
55d0a1000000-55d0a1100000 rw-p 00000000 00:00 0                          [heap]
Anonymous:          1024 kB
7f0000000000-7f0000100000 r-xp 00000000 fe:00 99                         /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000200000-7f0000300000 r--s 00000000 fe:00 1234                       /usr/sbin/linux patch-api
Anonymous:             0 kB
7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0
Anonymous:             0 kB
";

    #[test]
    fn only_what_is_as_in_the_programs_file_goes() {
        let parts = unchanged(SMAPS, "/usr/sbin/linux patch-api");
        assert_eq!(parts, [0x55d0_a000_0000..0x55d0_a010_0000, 0x55d0_a010_0000..0x55d0_a090_0000]);
        assert!(unchanged(SMAPS, "/usr/sbin/other").is_empty());
        assert!(unchanged("", "/x").is_empty() && unchanged("garbage\n1-2\nx-y z\n", "/x").is_empty());
    }

    fn resident() -> usize {
        let text = fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(2).unwrap().parse().unwrap()
    }

    #[test]
    fn a_program_goes_on_after_it_was_let_go() {
        let program = Program::of_this_process().unwrap();
        assert!(program.bytes() > 100_000, "{program:?}");
        // Shared pages of files: those of the program, and of libraries.
        let before = resident();
        program.let_go();
        let after = resident();
        assert!(after < before, "{before} {after}");
        let numbers: Vec<u64> = (0..100_000).collect();
        trim_heap();
        assert_eq!(numbers.iter().sum::<u64>(), 4_999_950_000);
        program.let_go();
        assert_eq!(format!("{:?}", std::thread::spawn(|| 7).join().unwrap()), "7");
    }
}
