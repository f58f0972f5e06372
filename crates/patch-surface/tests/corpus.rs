//! What fuzzing found worth keeping, and the recorded output of the real tools, through every target: a finding that
//! was mended stays mended, on any compiler.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::{fs, path::Path};

use patch_surface::TARGETS;

fn each(directory: &Path, target: fn(&[u8])) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let mut count = 0;
    for entry in entries {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        if std::panic::catch_unwind(|| target(&bytes)).is_err() {
            panic!("{} fails", path.display());
        }
        count += 1;
    }
    count
}

#[test]
fn every_corpus_is_parsed_without_a_finding() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (name, target) in TARGETS {
        let kept = each(&root.join("fuzz/corpus").join(name), *target);
        assert!(kept > 0, "fuzz/corpus/{name} is empty: run `cargo xtask fuzz {name}`");
    }
}

#[test]
fn every_target_takes_what_the_real_tools_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let fixtures = root.join("crates/patch-backends/src/apt/fixtures");
    for (_, target) in TARGETS {
        assert!(each(&fixtures, *target) > 50);
    }
}

#[test]
fn every_target_takes_nothing_and_next_to_nothing() {
    for (_, target) in TARGETS {
        for bytes in
            [&b""[..], b"\0", b"\n", b"{", b"[", b"-", b"\xff\xfe", b"{}", b"null", b"- -", b"a: &a [*a]"]
        {
            target(bytes);
        }
    }
}

#[test]
fn every_target_can_be_fuzzed() {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/Cargo.toml")).unwrap();
    let names: Vec<&str> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .filter(|name| *name != "patch-fuzz")
        .collect();
    assert_eq!(names.len(), TARGETS.len());
    assert!(TARGETS.iter().all(|(name, _)| names.contains(name)), "{names:?}");
}

/// Words that a shell, an option parser or a path would take for something else.
const HOSTILE: &[&str] = &[
    "-",
    "--",
    "-o",
    "--root=/",
    "-oDPkg::Pre-Invoke::=id",
    "aa",
    "g++",
    "libc6:i386",
    "aa-",
    "aa+",
    "$(id)",
    "`id`",
    ";id",
    "|id",
    "&&",
    "\0",
    "\t",
    " ",
    "'",
    "\"",
    "\\",
    "../",
    "/etc/passwd",
    "*",
    "?",
    "~",
    "%s",
    "=",
    ":",
    "1.0",
    "1:2~rc1-3",
    "aa=",
    "=1",
    "\u{202e}",
    "é",
    "{}",
    "[]",
    "@",
    "#",
    "!",
    "<(id)",
    "${IFS}",
    "aa/bookworm",
    "aa*",
];

#[test]
fn s8_no_combination_of_hostile_words_becomes_an_option() {
    // splitmix64: a seed means the same words for ever.
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_secs());
    println!("seed {seed}");
    let mut state = seed;
    let mut next = |limit: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    };
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..=next(4) {
            for _ in 0..=next(3) {
                text.push_str(HOSTILE[next(HOSTILE.len())]);
            }
            text.push('\n');
        }
        patch_surface::names(text.as_bytes());
        patch_surface::argv(text.as_bytes());
    }
}
