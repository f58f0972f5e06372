//! The chain: every mutation of a trail is found, and found where it is.

use patch_audit::{Break, Expect, Hash, Head, Start, Verdict};
use patch_types::api::AuditHead;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{Place, event, verdict};

const RECORDS: usize = 200;

/// A trail of two hundred records, its lines, and its head.
fn trail() -> (Vec<u8>, Vec<Vec<u8>>, Head) {
    let place = Place::new();
    let log = place.open();
    for n in 0..RECORDS {
        log.record_later(event(format!("number {n}, with \"quotes\" and ümläuts")));
    }
    log.flush().unwrap();
    let head = log.head().unwrap();
    log.close();
    let bytes = std::fs::read(place.path()).unwrap();
    let lines: Vec<_> = bytes.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    assert_eq!(lines.len(), RECORDS);
    (bytes, lines, head)
}

fn known(head: Head) -> Expect {
    Expect { head: Some(head), ..Expect::default() }
}

fn first(verdict: &Verdict) -> (u64, &Break) {
    let problem = verdict.problems.first().unwrap();
    (problem.line, &problem.what)
}

/// The head of one line.
fn head_of(line: &[u8]) -> Head {
    verdict(line, &Expect { start: Start::Anything, head: None }).head.unwrap()
}

#[test]
fn an_untouched_trail_is_intact() {
    let (bytes, lines, head) = trail();
    let verdict = verdict(&bytes, &known(head));
    assert!(verdict.is_intact(), "{verdict:?}");
    assert_eq!((verdict.records, verdict.head), (RECORDS as u64, Some(head)));
    assert_eq!(verdict.first.unwrap().seq, 1);
    // The rule as the documentation gives it, without our code: the text before `,"hash":` has the hash.
    let line = std::str::from_utf8(&lines[7]).unwrap().trim_end();
    let (body, tail) = line.split_once(",\"hash\":\"").unwrap();
    assert_eq!(tail.trim_end_matches("\"}"), Hash::of(body.as_bytes()).to_string());
}

#[test]
fn every_line_removed_repeated_or_inserted_and_lines_swapped_are_found() {
    let (_, lines, head) = trail();
    for at in 0..RECORDS {
        let mut removed = lines.clone();
        removed.remove(at);
        let found = verdict(&removed.concat(), &known(head));
        let number = at as u64 + 1;
        let expected = if at + 1 == RECORDS {
            Break::Truncated { expected: head }
        } else {
            let before = if at == 0 { Head::GENESIS } else { head_of(&lines[at - 1]) };
            Break::Missing { from: number, to: number, before, after: head_of(&lines[at + 1]) }
        };
        assert_eq!(first(&found), (number, &expected));

        let mut repeated = lines.clone();
        repeated.insert(at, lines[at].clone());
        let found = verdict(&repeated.concat(), &known(head));
        assert_eq!(first(&found), (number + 1, &Break::OutOfOrder { expected: number + 1 }));

        for garbage in ["\n", "{}\n", "x\n"] {
            let mut inserted = lines.clone();
            inserted.insert(at, garbage.as_bytes().to_vec());
            assert_eq!(first(&verdict(&inserted.concat(), &known(head))), (number, &Break::Malformed));
        }
        // Neighbours and a spread of others: all pairs take minutes and show no more.
        for other in (at + 1..RECORDS).step_by(13) {
            let mut swapped = lines.clone();
            swapped.swap(at, other);
            let found = verdict(&swapped.concat(), &known(head));
            assert_eq!(first(&found).0, number, "{at} and {other}");
        }
    }
}

#[test]
fn every_truncation_is_found_by_the_head_that_is_known() {
    let (bytes, _, head) = trail();
    for length in (0..bytes.len()).step_by(7).chain(bytes.len() - 400..bytes.len()) {
        assert!(!verdict(&bytes[..length], &known(head)).is_intact(), "{length}");
    }
}

#[test]
fn every_bit_of_a_record_counts() {
    let (bytes, lines, head) = trail();
    let start: usize = lines[..50].iter().map(Vec::len).sum();
    for at in start..start + lines[50].len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let found = verdict(&flipped, &known(head));
            assert!(first(&found).0 == 51, "byte {at} bit {bit}: {found:?}");
        }
    }
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(usize, u8),
    Delete(usize, usize),
    Insert(usize, Vec<u8>),
    Swap(usize, usize),
    Duplicate(usize, usize),
}

#[test]
fn random_mutations_are_found() {
    let exhaustive = std::env::var_os("LINUX_PATCH_EXHAUSTIVE").is_some_and(|value| value == "1");
    let cases = if exhaustive { 10_000 } else { 1000 };
    let (bytes, _, head) = trail();
    let length = bytes.len();
    let mutation = prop_oneof![
        (0..length, 1..=255_u8).prop_map(|(at, mask)| Mutation::Flip(at, mask)),
        (0..length, 1..600_usize).prop_map(|(at, n)| Mutation::Delete(at, n)),
        (0..=length, prop::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, new)| Mutation::Insert(at, new)),
        (0..length, 0..length).prop_map(|(a, b)| Mutation::Swap(a, b)),
        (0..length, 1..600_usize).prop_map(|(at, n)| Mutation::Duplicate(at, n)),
    ];
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    runner
        .run(&mutation, |mutation| {
            let mut changed = bytes.clone();
            match mutation {
                Mutation::Flip(at, mask) => changed[at] ^= mask,
                Mutation::Delete(at, n) => drop(changed.drain(at..(at + n).min(length))),
                Mutation::Insert(at, new) => drop(changed.splice(at..at, new)),
                Mutation::Swap(a, b) => changed.swap(a, b),
                Mutation::Duplicate(at, n) => {
                    let copy = changed[at..(at + n).min(length)].to_vec();
                    drop(changed.splice(at..at, copy));
                }
            }
            prop_assert!(changed == bytes || !verdict(&changed, &known(head)).is_intact());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_record_replaced_by_a_well_made_one_is_found() {
    let (_, mut lines, head) = trail();
    let forge = |line: &[u8]| {
        let text = String::from_utf8(line.to_vec()).unwrap().replace("number", "cipher");
        let (body, _) = text.split_once(",\"hash\":\"").unwrap();
        format!("{body},\"hash\":\"{}\"}}\n", Hash::of(body.as_bytes())).into_bytes()
    };
    let last = lines.len() - 1;
    let good = lines[last].clone();
    lines[last] = forge(&good);
    assert_eq!(first(&verdict(&lines.concat(), &known(head))), (200, &Break::Replaced { expected: head }));
    lines[last] = good;
    lines[9] = forge(&lines[9]);
    assert_eq!(first(&verdict(&lines.concat(), &known(head))), (11, &Break::Unlinked));
}

#[test]
fn a_file_that_goes_on_from_another_is_verified_from_there() {
    let (_, lines, head) = trail();
    let middle = verdict(&lines[..80].concat(), &Expect::default()).head.unwrap();
    let rest = lines[80..].concat();
    let from = |start| Expect { start, head: Some(head) };
    assert!(verdict(&rest, &from(Start::After(middle))).is_intact());
    assert!(verdict(&rest, &from(Start::Anything)).is_intact());
    let found = verdict(&rest, &from(Start::Genesis));
    assert_eq!(
        first(&found),
        (1, &Break::Missing { from: 1, to: 80, before: Head::GENESIS, after: head_of(&lines[80]) })
    );
    assert!(found.problems[0].to_string().starts_with("line 1 (record 81): records 1 to 80 are missing"));
    // A head from an earlier file says nothing about this one.
    assert!(verdict(&rest, &Expect { start: Start::After(middle), head: Some(middle) }).is_intact());
    let mut edited = lines[80..].to_vec();
    edited[0][200] ^= 1;
    assert!(!verdict(&edited.concat(), &from(Start::Anything)).is_intact());
}

#[test]
fn endless_lines_and_broken_files_end() {
    let long = vec![b'x'; patch_audit::MAX_RECORD + 10];
    assert_eq!(first(&verdict(&long, &Expect::default())), (1, &Break::TooLong));
    let garbage = "\n".repeat(5000);
    let found = verdict(garbage.as_bytes(), &Expect::default());
    assert_eq!((found.records, found.problems.len()), (0, 1000));
    assert_eq!(found.problems[4].to_string(), "line 5: the line is not a record: it was edited or inserted");
}

#[test]
fn heads_read_and_write() {
    let head = Head { seq: 7, hash: Hash::of(b"x") };
    assert_eq!(head.to_string().parse(), Ok(head));
    let shared = AuditHead::from(head);
    assert_eq!(Head::try_from(&shared), Ok(head));
    for bad in ["", "7", "7:", "x:00", &head.to_string().to_uppercase()] {
        assert!(bad.parse::<Head>().is_err(), "{bad}");
    }
}
