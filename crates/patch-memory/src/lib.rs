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
            // SAFETY: the range is a private mapping of the program's file that was never writable and of which no page was
            // other than the file's when it was looked at (`unchanged`), nor can become so by this process; it stays mapped
            // as long as the process lives. Whoever reads or runs a page of it finds the same bytes again, but for a
            // debugger's breakpoints. What cannot be dropped, since it is locked, say, stays.
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

/// The mappings of `file` in the text of `/proc/PID/smaps` that can be dropped: private, never writable, and without a page,
/// in memory or swapped out, that differs from the file. What the dynamic linker relocated and then protected has such
/// pages, and is accounted for as memory of its own (`ac`), since it was writable.
fn unchanged(smaps: &str, file: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut open: Option<Range<usize>> = None;
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::parse(line) {
            let is_wanted = mapping.file == file
                && matches!(mapping.permissions, "r--p" | "r-xp")
                && mapping.range.start < mapping.range.end;
            open = is_wanted.then_some(mapping.range);
        } else if let Some(amount) = line.strip_prefix("Anonymous:").or_else(|| line.strip_prefix("Swap:"))
            && amount.trim() != "0 kB"
        {
            open = None;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && let Some(range) = open.take()
            && !flags.split_whitespace().any(|flag| flag == "ac")
        {
            // The last line of a mapping.
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

    /// Each mapping with its permissions, what is in `Anonymous` and `Swap`, its flags and its file.
    const MAPPINGS: [(&str, &str, [u8; 2], &str, &str); 9] = [
        ("1000-2000", "r--p", [0, 0], "rd mr mw me", FILE),
        ("2000-9000", "r-xp", [0, 0], "rd ex mr mw me", FILE),
        ("9000-a000", "r--p", [8, 0], "rd mr mw me ac", FILE),
        ("a000-b000", "r--p", [0, 8], "rd mr mw me", FILE),
        ("b000-c000", "r--p", [0, 0], "rd mr mw me ac", FILE),
        ("c000-d000", "rw-p", [0, 0], "rd wr mr mw me ac", FILE),
        ("d000-e000", "rw-p", [8, 0], "rd wr mr mw me ac", "[heap]"),
        ("e000-f000", "r-xp", [0, 0], "rd ex mr mw me", "/usr/lib/libc.so.6"),
        ("f000-ff00", "r--s", [0, 0], "rd mr mw me", FILE),
    ];
    const FILE: &str = "/usr/sbin/linux patch-api";

    fn smaps() -> String {
        let text = |(range, permissions, [anonymous, swap], flags, file): (
            &str,
            &str,
            [u8; 2],
            &str,
            &str,
        )| {
            format!(
                "{range} {permissions} 00000000 fe:00 1234                       {file}\nSize: 4 kB\n\
                 Anonymous:      {anonymous} kB\nSwap:         {swap} kB\nSwapPss:     0 kB\nVmFlags: {flags}\n"
            )
        };
        MAPPINGS.into_iter().map(text).collect()
    }

    #[test]
    fn only_what_is_as_in_the_programs_file_goes() {
        assert_eq!(unchanged(&smaps(), FILE), [0x1000..0x2000, 0x2000..0x9000]);
        assert!(unchanged(&smaps(), "/usr/sbin/other").is_empty());
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
