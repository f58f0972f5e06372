//! Mutates the corpora blindly and feeds them to the targets: what can be done on the stable compiler, without knowing
//! what an input reached. `mutate SECONDS [SEED [TARGET…]]`; `cargo xtask fuzz` is the better way.

use std::{
    fs, io,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant, UNIX_EPOCH},
};

use patch_surface::TARGETS;

/// `splitmix64`: a seed means the same inputs for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % (limit as u64).max(1)).unwrap_or(0)
    }
}

/// What parsers are known to stumble over.
const WORDS: &[&[u8]] = &[
    b"\0",
    b"\xff",
    b"\n",
    b"\r\n",
    b"\n\n",
    b" ",
    b":",
    b"-",
    b"--",
    b"..",
    b"/",
    b"%",
    b"%00",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"9223372036854775807",
    b"2147483648",
    b"\xc3\xa9",
    b"\xe2\x80\xae",
    b"&a",
    b"*a",
    b"<<:",
    b"!!",
    b"- ",
    b"|",
    b"~",
    b"=",
    b"(",
    b")",
    b",",
];

fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let pick = |random: &mut Random| corpus.get(random.below(corpus.len())).cloned().unwrap_or_default();
    let mut bytes = pick(random);
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(32)).min(bytes.len());
        match random.below(8) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            1 => drop(bytes.drain(at.min(end)..end)),
            2 => bytes.truncate(at),
            3 => {
                let piece = bytes.get(at..end).unwrap_or_default().repeat(1 + random.below(4));
                drop(bytes.splice(at..at, piece));
            }
            4 => {
                let other = pick(random);
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(other.get(from..).unwrap_or_default());
            }
            5 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = u8::try_from(random.below(256)).unwrap_or(0);
                }
            }
            _ => {
                let word = WORDS.get(random.below(WORDS.len())).copied().unwrap_or_default();
                drop(bytes.splice(at..at, word.iter().copied()));
            }
        }
    }
    bytes.truncate(8192);
    bytes
}

fn main() -> io::Result<ExitCode> {
    let mut args = std::env::args().skip(1);
    let seconds = args.next().and_then(|text| text.parse().ok()).unwrap_or(10);
    let seed = args.next().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| UNIX_EPOCH.elapsed().map_or(1, |since| since.as_secs()));
    let chosen: Vec<String> = args.collect();
    println!("seed {seed}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let mut findings = 0;
    for (name, target) in TARGETS {
        if !chosen.is_empty() && !chosen.iter().any(|one| one == name) {
            continue;
        }
        let mut corpus = Vec::new();
        for entry in fs::read_dir(root.join("corpus").join(name))? {
            corpus.push(fs::read(entry?.path())?);
        }
        let (mut random, begun, mut count) = (Random(seed), Instant::now(), 0_u64);
        while begun.elapsed() < Duration::from_secs(seconds) {
            let bytes = mutate(&mut random, &corpus);
            count += 1;
            let started = Instant::now();
            let ended = std::panic::catch_unwind(|| target(&bytes));
            if ended.is_err() || started.elapsed() > Duration::from_secs(5) {
                findings += 1;
                let place = root.join("artifacts").join(name);
                fs::create_dir_all(&place)?;
                let file = place.join(format!("mutated-{seed}-{count}"));
                fs::write(&file, &bytes)?;
                println!("{name}: a finding: {} ({:?})", file.display(), started.elapsed());
                if findings > 20 {
                    return Ok(ExitCode::FAILURE);
                }
                break;
            }
        }
        println!("{name}: {count} inputs in {seconds} s");
    }
    Ok(if findings == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
