//! What an archive says of itself, read through `dpkg-deb`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
    path::Path,
};

use patch_backends::apt::deb822;

use super::{
    argv,
    files::{md5_of, pump},
};
use crate::run;

/// The longest control file that is read, in bytes. Real ones have some kilobytes, lists of hashes some megabytes.
const MAX_CONTROL: u64 = 64 * 1024 * 1024;

/// The longest name in an archive, in bytes.
const MAX_NAME: u64 = 64 * 1024;

/// An archive's control files, as far as they are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) architecture: String,
    pub(crate) replaces: String,
    /// `md5sums`, byte for byte, if it has one.
    pub(crate) md5sums: Option<Vec<u8>>,
}

/// Reads an archive's control files: one process. Errors are sentences without an end.
pub(crate) fn control(archive: &Path) -> Result<Control, String> {
    let mut found = Control::default();
    let mut seen = false;
    let argv = argv::control_of(archive).ok_or("its path is not UTF-8")?;
    run::read(&argv, |output| {
        each(output, |entry, content| {
            match entry.name.as_slice() {
                b"control" => {
                    let text = bounded(content)?;
                    let Some(stanza) = deb822::stanzas(&text).next() else { return Ok(()) };
                    let field = |name| stanza.text(name).unwrap_or_default().into_owned();
                    seen = true;
                    found.package = field("Package");
                    found.version = field("Version");
                    found.architecture = field("Architecture");
                    found.replaces = field("Replaces");
                }
                b"md5sums" => found.md5sums = Some(bounded(content)?),
                _ => {}
            }
            Ok(())
        })
    })
    .map_err(|error| error.to_string())?;
    if seen { Ok(found) } else { Err("it has no control file".into()) }
}

fn bounded(content: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    content.take(MAX_CONTROL).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A line of `md5sums`: the hash, and the path without the slash before it.
pub(crate) type Sums = BTreeSet<(String, Vec<u8>)>;

/// Reads all of an archive's files, which proves that they can be read, and gives their hashes.
pub(crate) fn data_sums(archive: &Path) -> Result<Sums, String> {
    let mut sums: BTreeMap<Vec<u8>, String> = BTreeMap::new();
    let argv = argv::data_of(archive).ok_or("its path is not UTF-8")?;
    run::read(&argv, |output| {
        each(output, |entry, content| {
            match entry.kind {
                b'0' | 0 => {
                    sums.insert(entry.name.clone(), md5_of(content)?);
                }
                b'1' => {
                    if let Some(sum) = sums.get(&entry.link).cloned() {
                        sums.insert(entry.name.clone(), sum);
                    }
                }
                _ => {}
            }
            Ok(())
        })
    })
    .map_err(|error| error.to_string())?;
    Ok(sums.into_iter().map(|(path, sum)| (sum, path)).collect())
}

/// The absolute paths of an archive's members.
pub(crate) fn names(archive: &Path) -> Result<Vec<Vec<u8>>, String> {
    let mut names = Vec::new();
    let argv = argv::data_of(archive).ok_or("its path is not UTF-8")?;
    run::read(&argv, |output| {
        each(output, |entry, _| {
            let name = entry.name.strip_suffix(b"/").unwrap_or(&entry.name);
            names.push([b"/", name].concat());
            Ok(())
        })
    })
    .map_err(|error| error.to_string())?;
    Ok(names)
}

/// Takes `md5sums` apart. Lines that are none are left out.
pub(crate) fn sums(text: &[u8]) -> Sums {
    text.split(|b| *b == b'\n')
        .filter_map(|line| {
            let (sum, path) = (line.get(..32)?, line.get(34..)?);
            let sum = std::str::from_utf8(sum).ok()?;
            Some((sum.to_ascii_lowercase(), path.to_vec()))
        })
        .collect()
}

/// One member of a tape archive.
#[derive(Debug, Default)]
struct Entry {
    /// Its path without `./` before it.
    name: Vec<u8>,
    /// What a link points to, likewise.
    link: Vec<u8>,
    /// The type's letter.
    kind: u8,
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the archive in it is malformed")
}

/// Octal digits, or a number of base 256 if the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        return rest
            .iter()
            .try_fold(u64::from(first & 0x7f), |sum, b| sum.checked_mul(256)?.checked_add(u64::from(*b)));
    }
    let digits = field.iter().copied().skip_while(|b| *b == b' ').take_while(u8::is_ascii_digit);
    digits.into_iter().try_fold(0_u64, |sum, b| match b {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

fn text(field: &[u8]) -> Vec<u8> {
    field.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

fn clean(path: &[u8]) -> Vec<u8> {
    let mut path = path;
    while let Some(rest) = path.strip_prefix(b"./").or_else(|| path.strip_prefix(b"/")) {
        path = rest;
    }
    path.to_vec()
}

/// Reads a tape archive to its end. What the visitor leaves of a content is passed over.
fn each(
    reader: &mut dyn Read,
    mut visit: impl FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    let (mut long_name, mut long_link) = (None, None);
    let mut header = [0_u8; 512];
    loop {
        match reader.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(malformed()),
            Err(error) => return Err(error),
        }
        if header.iter().all(|b| *b == 0) {
            // Padding follows; a pipe that is not emptied would look like a failure of its writer.
            return pump(&mut &mut *reader, |_| Ok(()));
        }
        let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default();
        let kind = field(156, 157).first().copied().unwrap_or_default();
        let size = number(field(124, 136)).ok_or_else(malformed)?;
        let padded = size.checked_next_multiple_of(512).ok_or_else(malformed)?;
        let mut content = (&mut *reader).take(size);
        match kind {
            b'L' | b'K' | b'x' => {
                if size > MAX_NAME {
                    return Err(malformed());
                }
                let mut bytes = Vec::new();
                content.read_to_end(&mut bytes)?;
                match kind {
                    b'L' => long_name = Some(text(&bytes)),
                    b'K' => long_link = Some(text(&bytes)),
                    _ => {
                        for (name, value) in extended(&bytes) {
                            match name {
                                b"path" => long_name = Some(value.to_vec()),
                                b"linkpath" => long_link = Some(value.to_vec()),
                                // Content larger than 8 GiB, which no package has.
                                b"size" => return Err(malformed()),
                                _ => {}
                            }
                        }
                    }
                }
            }
            _ => {
                let plain = || {
                    let prefix =
                        if field(257, 263) == b"ustar\0" { text(field(345, 500)) } else { Vec::new() };
                    let name = text(field(0, 100));
                    if prefix.is_empty() { name } else { [prefix.as_slice(), b"/", &name].concat() }
                };
                let entry = Entry {
                    name: clean(&long_name.take().unwrap_or_else(plain)),
                    link: clean(&long_link.take().unwrap_or_else(|| text(field(157, 257)))),
                    kind,
                };
                visit(&entry, &mut content)?;
            }
        }
        let left = content.limit();
        let skip = left.saturating_add(padded - size);
        let mut rest = (&mut *reader).take(skip);
        pump(&mut rest, |_| Ok(()))?;
        if rest.limit() > 0 {
            return Err(malformed());
        }
    }
}

/// Reads a tape archive and lists of hashes as they are read out of packages, and gives the number of members: for
/// fuzzing.
///
/// # Errors
/// When it is no such archive.
pub fn read_members(bytes: &[u8]) -> io::Result<usize> {
    let _ = sums(bytes);
    let mut count = 0;
    each(&mut &*bytes, |_, content| {
        count += 1;
        sums(&bounded(content)?);
        Ok(())
    })?;
    Ok(count)
}

/// Records `LENGTH NAME=VALUE\n`.
fn extended(mut bytes: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut records = Vec::new();
    while let Some(space) = bytes.iter().position(|b| *b == b' ') {
        let length = bytes
            .get(..space)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| digits.parse::<usize>().ok());
        let Some(record) = length.and_then(|length| bytes.get(space + 1..length.checked_sub(1)?)) else {
            break;
        };
        if let Some(equals) = record.iter().position(|b| *b == b'=') {
            records.push((
                record.get(..equals).unwrap_or_default(),
                record.get(equals + 1..).unwrap_or_default(),
            ));
        }
        bytes = length.and_then(|length| bytes.get(length..)).unwrap_or_default();
    }
    records
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let _ = each(&mut bytes.as_slice(), |_, content| bounded(content).map(drop));
            let _ = extended(&bytes);
            let _ = sums(&bytes);
        }

        #[test]
        fn any_header_is_read_or_refused(
            name in prop::collection::vec(any::<u8>(), 100),
            size in "[0-7 ]{12}",
            kind in prop::sample::select(b"0125LKxg\0".to_vec()),
            rest in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let mut bytes = [name, vec![0; 24], size.into_bytes(), vec![0; 20], vec![kind], vec![0; 355]].concat();
            bytes.extend(rest);
            let _ = each(&mut bytes.as_slice(), |_, content| bounded(content).map(drop));
        }
    }
}
