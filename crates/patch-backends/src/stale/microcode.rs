//! Which microcode the processors run, and, for Intel's, which one is on disk.

use std::{fs::File, io::Read, path::Path};

use patch_types::stale::MicrocodeCode;

/// How much of a file is read, in bytes: `/proc/cpuinfo` of a thousand processors, and the largest microcode file.
const MOST: u64 = 8 << 20;

/// The microcode below a root. A guest's processors are the machine's, so there nothing is said but what runs.
#[must_use]
pub fn microcode(root: &Path) -> MicrocodeCode {
    let read = |path: &str| {
        let mut bytes = Vec::new();
        File::open(root.join(path)).ok()?.take(MOST).read_to_end(&mut bytes).ok().map(|_| bytes)
    };
    let cpuinfo = read("proc/cpuinfo").unwrap_or_default();
    let processor = Processor::parse(&String::from_utf8_lossy(&cpuinfo));
    let installed = processor.file().and_then(|file| {
        let platform = read("sys/devices/system/cpu/cpu0/microcode/processor_flags")?;
        let platform = hexadecimal(String::from_utf8_lossy(&platform).trim())?;
        available(&read(&file)?, processor.signature()?, platform)
    });
    let hex = |revision: u32| format!("{revision:#x}");
    MicrocodeCode {
        running: processor.revision.map(hex),
        installed: installed.map(hex),
        old: processor.revision.zip(installed).map(|(running, installed)| running < installed),
    }
}

/// What `/proc/cpuinfo` says of the processors, of which all are taken to be of one kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Processor {
    /// The lowest revision that any of them runs.
    revision: Option<u32>,
    intel: bool,
    guest: bool,
    family: Option<u32>,
    model: Option<u32>,
    stepping: Option<u32>,
}

impl Processor {
    fn parse(text: &str) -> Self {
        let mut processor = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            let number = || value.parse().ok();
            match key.trim() {
                "microcode" => {
                    let revision = hexadecimal(value);
                    processor.revision = match (processor.revision, revision) {
                        (Some(a), Some(b)) => Some(a.min(b)),
                        (a, b) => a.or(b),
                    };
                }
                "vendor_id" => processor.intel = value == "GenuineIntel",
                "cpu family" => processor.family = number(),
                "model" => processor.model = number(),
                "stepping" => processor.stepping = number(),
                "flags" => processor.guest = value.split(' ').any(|flag| flag == "hypervisor"),
                _ => {}
            }
        }
        processor
    }

    /// Where Intel's microcode for it is, below the root.
    fn file(&self) -> Option<String> {
        let (family, model, stepping) = (self.family?, self.model?, self.stepping?);
        let own = self.intel && !self.guest;
        own.then(|| format!("lib/firmware/intel-ucode/{family:02x}-{model:02x}-{stepping:02x}"))
    }

    /// As `CPUID` has it, with the extended parts of family and model.
    fn signature(&self) -> Option<u32> {
        let (family, model, stepping) = (self.family?, self.model?, self.stepping?);
        let base = family.min(15);
        let extended = family - base;
        (extended < 256 && model < 256 && stepping < 16)
            .then_some(extended << 20 | (model >> 4) << 16 | base << 8 | (model & 15) << 4 | stepping)
    }
}

fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The newest revision in a file of Intel's for a processor of a signature on a platform; `bytes` may be anything.
#[must_use]
pub fn available(bytes: &[u8], signature: u32, platform: u32) -> Option<u32> {
    const HEADER: usize = 48;
    const EXTENDED: usize = 20;
    let mut newest = None;
    let mut rest = bytes;
    while let Some(header) = rest.get(..HEADER) {
        let word = |bytes: &[u8], at: usize| {
            bytes.get(at * 4..at * 4 + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes)
        };
        let size = |at: usize| word(header, at).and_then(|size| usize::try_from(size).ok());
        // Sizes of nothing are those of the first processors that had any.
        let data = size(7).filter(|size| *size > 0).unwrap_or(2000);
        let total = size(8).filter(|size| *size > 0).unwrap_or(2048);
        let (Some(1), Some(update)) = (word(header, 0), rest.get(..total).filter(|_| total >= HEADER)) else {
            break;
        };
        let fits = |sig: Option<u32>, platforms: Option<u32>| {
            sig == Some(signature)
                && platforms.is_some_and(|platforms| platforms & platform != 0 || platforms == 0)
        };
        let mut meant = fits(word(header, 3), word(header, 6));
        if let Some(table) = HEADER.checked_add(data).and_then(|at| update.get(at..))
            && let Some(entries) = table.get(EXTENDED..)
        {
            let count = word(table, 0).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
            meant |= entries.chunks_exact(12).take(count).any(|entry| fits(word(entry, 0), word(entry, 1)));
        }
        if meant {
            newest = newest.max(word(header, 1));
        }
        rest = rest.get(total..).unwrap_or_default();
    }
    newest
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const CPUINFO: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R)\n\
        stepping\t: 4\nmicrocode\t: 0x2007006\nflags\t\t: fpu vme\n\nprocessor\t: 1\nmicrocode\t: 0x2006e05\n";

    fn update(revision: u32, signature: u32, platforms: u32, also: &[(u32, u32)]) -> Vec<u8> {
        let data = 64_u32;
        let table = if also.is_empty() { 0 } else { 20 + 12 * u32::try_from(also.len()).unwrap() };
        let mut words =
            vec![1, revision, 0x0101_2024, signature, 0, 1, platforms, data, 48 + data + table, 0, 0, 0];
        words.extend([0; 16]);
        if !also.is_empty() {
            words.extend([u32::try_from(also.len()).unwrap(), 0, 0, 0, 0]);
            words.extend(also.iter().flat_map(|(sig, pf)| [*sig, *pf, 0]));
        }
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn intels_files_tell_what_is_available() {
        let file =
            [update(0x10, 0x50654, 1, &[]), update(0x20, 0x50654, 2, &[(0x50657, 4), (0x50658, 1)])].concat();
        assert_eq!(available(&file, 0x50654, 1), Some(0x10));
        assert_eq!(available(&file, 0x50654, 3), Some(0x20));
        assert_eq!(available(&file, 0x50657, 4), Some(0x20));
        assert_eq!(available(&file, 0x50657, 1), None);
        assert_eq!(available(&file[..file.len() - 1], 0x50654, 2), None);
    }

    #[test]
    fn the_lowest_revision_is_compared_with_the_disk() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: &[u8]| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        assert_eq!(microcode(root.path()), MicrocodeCode::default());
        write("proc/cpuinfo", CPUINFO.as_bytes());
        let code = microcode(root.path());
        assert_eq!((code.running.as_deref(), code.old), (Some("0x2006e05"), None));
        write("sys/devices/system/cpu/cpu0/microcode/processor_flags", b"0x1\n");
        write("lib/firmware/intel-ucode/06-55-04", &update(0x0200_7006, 0x50654, 0xb7, &[]));
        let code = microcode(root.path());
        assert_eq!((code.installed.as_deref(), code.old), (Some("0x2007006"), Some(true)));
        write("lib/firmware/intel-ucode/06-55-04", &update(0x0200_6e05, 0x50654, 0xb7, &[]));
        assert_eq!(microcode(root.path()).old, Some(false));
        write("proc/cpuinfo", CPUINFO.replace("vme", "hypervisor").as_bytes());
        let guest = microcode(root.path());
        assert_eq!((guest.running.as_deref(), guest.old), (Some("0x2006e05"), None));
    }

    proptest! {
        #[test]
        fn any_file_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0_usize..200, text in ".*") {
            let _ = available(&bytes, 1, 1);
            let mut file = update(7, 1, 1, &[(2, 1)]);
            file.truncate(cut);
            file.extend(bytes);
            let _ = available(&file, 1, 1);
            let processor = Processor::parse(&text);
            let _ = (processor.file(), processor.signature());
        }
    }
}
