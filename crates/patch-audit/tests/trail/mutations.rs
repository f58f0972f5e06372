//! Tampering with a whole trail, as somebody does who has the network side and knows how the chain is made, but has not
//! the root side's key: every attempt shows. 3,000 of them; 100,000 with `LINUX_PATCH_EXHAUSTIVE=1`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use patch_audit::{AuditEvent, Caller, Hash, Head, Key, Known, PublicKeys, SignedHead, examine};

use crate::{Place, event};

const RECORDS: usize = 36;

/// A trail in three files, one of them compressed, that the root side has signed twice, and which ends with a record that
/// was signed and is held elsewhere.
struct Signed {
    place: Place,
    /// The files' lines, oldest file first.
    files: Vec<(PathBuf, Vec<Vec<u8>>)>,
    known: Known,
}

impl Signed {
    fn new() -> Self {
        let place = Place::new();
        let key = Key::open(&place.dir.path().join("key"), &place.dir.path().join("pub")).unwrap();
        let keys = PublicKeys::read(&place.dir.path().join("pub")).unwrap();
        let mut known = Known { keys: Some(keys), ..Known::default() };
        let log = place.open();
        for n in 0..RECORDS {
            if n == 10 || n == 30 {
                let signed = key.sign(log.head().unwrap(), jiff::Timestamp::now());
                known.signed.push(SignedHead { head: log.head().unwrap(), at: jiff::Timestamp::now() });
                log.record(AuditEvent::new((&signed).into(), &Caller::local())).unwrap();
            } else {
                log.record(event(format!("number {n}, by \"somebody\""))).unwrap();
            }
        }
        // The last head that the root side has; its signature did not make it into the trail yet.
        known.signed.push(SignedHead { head: log.head().unwrap(), at: jiff::Timestamp::now() });
        log.close();
        let text = fs::read(place.path()).unwrap();
        let lines: Vec<_> = text.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
        let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
        let day = |n: i64| today.checked_sub(jiff::SignedDuration::from_hours(24 * n)).unwrap().to_string();
        let files = vec![
            (place.dir.path().join(format!("audit.log.{}.gz", day(2))), lines[..12].to_vec()),
            (place.dir.path().join(format!("audit.log.{}", day(1))), lines[12..24].to_vec()),
            (place.path(), lines[24..].to_vec()),
        ];
        let signed = Self { place, files, known };
        signed.files.iter().for_each(|(path, lines)| write(path, &lines.concat()));
        signed
    }

    fn is_intact(&self) -> bool {
        examine(&self.place.path(), &self.known).is_ok_and(|report| report.is_intact())
    }

    /// Writes other lines, looks, and puts everything back.
    fn shows(&self, changed: &[Vec<u8>]) -> bool {
        for ((path, lines), new) in self.files.iter().zip(changed) {
            if lines.concat() != *new {
                write(path, new);
            }
        }
        let shows = !self.is_intact();
        for ((path, lines), new) in self.files.iter().zip(changed) {
            if lines.concat() != *new {
                write(path, &lines.concat());
            }
        }
        shows
    }
}

fn write(path: &Path, text: &[u8]) {
    if path.extension().is_some_and(|extension| extension == "gz") {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(text).unwrap();
        fs::write(path, gz.finish().unwrap()).unwrap();
    } else {
        fs::write(path, text).unwrap();
    }
}

/// Writes records anew from one on, so that the chain is right again, with another text in that one.
fn forge(lines: &mut [Vec<u8>], from: usize, word: &str) {
    let mut prev: Option<Hash> = None;
    for (n, line) in lines.iter_mut().enumerate().skip(from) {
        let mut text = String::from_utf8(line.clone()).unwrap();
        if n == from {
            text = text.replace("somebody", word);
        }
        if let Some(prev) = prev {
            let at = text.find("\"prev\":\"").unwrap() + 8;
            text.replace_range(at..at + 64, &prev.to_string());
        }
        let (body, _) = text.rsplit_once(",\"hash\":\"").unwrap();
        let hash = Hash::of(body.as_bytes());
        prev = Some(hash);
        *line = format!("{body},\"hash\":\"{hash}\"}}\n").into_bytes();
    }
}

#[test]
fn every_mutation_of_a_signed_trail_shows() {
    let exhaustive = std::env::var_os("LINUX_PATCH_EXHAUSTIVE").is_some_and(|value| value == "1");
    let (threads, each) = if exhaustive { (10, 10_000) } else { (3, 1000) };
    std::thread::scope(|scope| {
        for thread in 1..=threads {
            scope.spawn(move || mutate(thread, each));
        }
    });
    eprintln!("{} mutations, all of them found", threads * each);
}

fn mutate(seed: u64, count: u64) {
    let signed = Signed::new();
    assert!(signed.is_intact());
    let whole = signed.files.iter().map(|(_, lines)| lines.concat()).collect::<Vec<_>>().concat();
    // The same each time: what fails is found again by its number.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    let (mut tried, mut same) = (0, 0);
    while tried < count {
        let mut files: Vec<_> = signed.files.iter().map(|(_, lines)| lines.clone()).collect();
        let file = random(3);
        let at = random(files[file].len());
        let what = random(12);
        let mut raw = None;
        match what {
            // Bytes: flipped, deleted, inserted, repeated.
            0..=3 => {
                let mut bytes = files[file].concat();
                let (from, length) = (random(bytes.len()), 1 + random(400));
                let to = (from + length).min(bytes.len());
                match what {
                    0 => bytes[from] ^= 1 << random(8),
                    1 => drop(bytes.drain(from..to)),
                    2 => drop(bytes.splice(from..from, (0..length).map(|n| b'a' + (n % 26) as u8))),
                    _ => {
                        let copy = bytes[from..to].to_vec();
                        drop(bytes.splice(from..from, copy));
                    }
                }
                raw = Some(bytes);
            }
            // Lines: removed, repeated, swapped, moved to another file.
            4 => drop(files[file].remove(at)),
            5 => {
                let line = files[random(3)][0].clone();
                files[file].insert(at, line);
            }
            6 => {
                let other = random(files[file].len());
                files[file].swap(at, other);
            }
            7 => {
                let line = files[file].remove(at);
                let to = random(3);
                let place = random(files[to].len() + 1);
                files[to].insert(place, line);
            }
            // The end cut off, also with the files before it.
            8 => {
                files[file].truncate(at);
                files.iter_mut().skip(file + 1).for_each(Vec::clear);
            }
            // Written anew from somewhere on, with a chain that is right.
            9 | 10 => {
                let mut all = files.concat();
                let from = random(RECORDS);
                forge(&mut all, from, &format!("nobody {}", random(1 << 30)));
                if what == 10 {
                    all.truncate(from + 1 + random(RECORDS - from));
                }
                let second = all.split_off(all.len().min(12));
                files[0] = all;
                files[1] = second[..second.len().min(12)].to_vec();
                files[2] = second[second.len().min(12)..].to_vec();
            }
            // Whole files exchanged.
            _ => {
                let other = random(3);
                files.swap(file, other);
            }
        }
        let mut changed: Vec<_> = files.iter().map(|lines| lines.concat()).collect();
        if let Some(raw) = raw {
            changed[file] = raw;
        }
        // A record that stands at the end of one file or at the beginning of the next is in its place.
        if whole == changed.concat() {
            same += 1;
            assert!(same < count, "the mutations change something");
            continue;
        }
        tried += 1;
        assert!(
            signed.shows(&changed),
            "mutation {tried} of seed {seed}, kind {what} in file {file} at {at}, does not show"
        );
    }
    assert!(signed.is_intact(), "everything was put back");
}

#[test]
fn files_that_are_removed_or_renamed_show() {
    let signed = Signed::new();
    for (path, lines) in &signed.files {
        fs::remove_file(path).unwrap();
        assert!(!signed.is_intact(), "{}", path.display());
        write(path, &lines.concat());
        let other = path.with_file_name("elsewhere");
        fs::rename(path, &other).unwrap();
        assert!(!signed.is_intact());
        fs::rename(&other, path).unwrap();
    }
    assert!(signed.is_intact());
    let head: Head = signed.known.signed.last().unwrap().head;
    assert_eq!(head.seq, RECORDS as u64);
}
