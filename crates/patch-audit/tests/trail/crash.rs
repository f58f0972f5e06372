//! What a crash or somebody else left at the end of the file is put right and told.

use std::{fs, io::Write, os::unix::fs::PermissionsExt};

use patch_audit::{AuditError, AuditKind, AuditLog, Expect, Head, Options, Reader, Start};

use crate::{Place, event, kinds, verdict};

/// A closed log of three records; its bytes and where the last record begins.
fn three() -> (Place, Vec<u8>, usize) {
    let place = Place::new();
    let log = place.open();
    for n in 0..3 {
        log.record(event(format!("{n}"))).unwrap();
    }
    log.close();
    let bytes = fs::read(place.path()).unwrap();
    let last = bytes[..bytes.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    (place, bytes, last)
}

#[test]
fn a_crash_at_any_byte_of_the_last_record_is_recovered_and_told() {
    let (place, bytes, last) = three();
    for length in last..bytes.len() {
        fs::write(place.path(), &bytes[..length]).unwrap();
        let log = place.open();
        // Recorded before anything else, and even if nothing else comes.
        let torn = (length - last) as u64;
        assert_eq!(log.head().unwrap().seq, if torn == 0 { 2 } else { 3 });
        log.record(event("after")).unwrap();
        log.close();
        assert!(place.verify().is_intact());
        let records: Vec<_> = Reader::new(&*fs::read(place.path()).unwrap()).map(Result::unwrap).collect();
        if torn == 0 {
            assert_eq!(records.len(), 3);
        } else {
            let sha256 = patch_audit::Hash::of(&bytes[last..length]).to_string();
            assert_eq!(records[2].event.kind, AuditKind::TornTailCut { bytes: torn, sha256 });
            assert_eq!(records.len(), 4);
        }
    }
}

#[test]
fn a_crash_in_the_very_first_record_begins_anew() {
    let (place, bytes, _) = three();
    fs::write(place.path(), &bytes[..40]).unwrap();
    place.open().close();
    assert!(place.verify().is_intact());
    assert_eq!(kinds(&place.path()), ["torn_tail_cut"]);
}

#[test]
fn a_tail_that_was_tampered_with_is_kept_and_the_chain_goes_on() {
    let (place, bytes, last) = three();
    let mut edited = bytes.clone();
    edited[last + 100] ^= 1;
    for (damaged, good) in [(edited, 2), ([&bytes[..], b"{}\n"].concat(), 3), (bytes[last..].to_vec(), 3)] {
        for name in place.files() {
            fs::remove_file(place.dir.path().join(name)).unwrap();
        }
        fs::write(place.path(), &damaged).unwrap();
        let log = place.open();
        log.close();
        let files = place.files();
        if files.len() == 1 {
            // A file that begins in the middle is what rotation leaves: nothing to set aside.
            assert_eq!(log.head().unwrap().seq, good);
            continue;
        }
        assert_eq!(fs::read(place.dir.path().join(&files[1])).unwrap(), damaged);
        assert_eq!(kinds(&place.path()), ["trail_set_aside"]);
        let before = verdict(&bytes, &Expect::default());
        assert_eq!(before.records, 3);
        let first = verdict(&fs::read(place.path()).unwrap(), &Expect { start: Start::Anything, head: None });
        assert_eq!(first.first.unwrap().seq, good + 1);
    }
}

#[test]
fn garbage_without_a_record_is_set_aside() {
    for garbage in ["hello\n".repeat(3), "x".repeat(9 << 20), "\n".repeat(2 << 20)] {
        let place = Place::new();
        fs::write(place.path(), garbage).unwrap();
        place.open().close();
        assert_eq!(place.files().len(), 2);
        assert!(place.verify().is_intact());
    }
}

#[test]
fn the_end_is_found_in_a_file_of_many_records_and_after_a_huge_one() {
    let place = Place::new();
    let log = place.open();
    for n in 0..4000 {
        log.record_later(event(format!("{n}")));
        if n % 1000 == 0 {
            log.flush().unwrap();
        }
    }
    log.record(event("y".repeat(2 << 20))).unwrap();
    let head = log.head();
    log.close();
    let log = place.open();
    assert_eq!(log.head(), head);
    log.record(event("after")).unwrap();
    log.close();
    assert!(place.verify().is_intact());
}

#[test]
fn one_writer_at_a_time() {
    let place = Place::new();
    let log = place.open();
    let second = AuditLog::open(&place.path(), Options::new("test").without_journal());
    assert!(matches!(second, Err(AuditError::Locked { .. })), "{second:?}");
    drop(log);
    place.open();
}

#[test]
fn only_a_regular_file_of_the_right_mode_will_do() {
    let place = Place::new();
    place.open().close();
    assert_eq!(fs::metadata(place.path()).unwrap().permissions().mode() & 0o777, 0o640);
    fs::rename(place.path(), place.dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", place.path()).unwrap();
    let linked = AuditLog::open(&place.path(), Options::new("test").without_journal());
    assert!(matches!(linked, Err(AuditError::Io { action: "opened", .. })), "{linked:?}");
}

#[test]
fn a_file_moved_away_cut_or_written_by_others_is_told_and_the_chain_goes_on() {
    let place = Place::new();
    let log = place.open();
    let first = log.record(event("first")).unwrap();
    // As logrotate does it.
    fs::rename(place.path(), place.dir.path().join("moved")).unwrap();
    log.record(event("second")).unwrap();
    assert_eq!(kinds(&place.path()), ["trail_set_aside", "system_changed"]);
    let after = |head| Expect { start: Start::After(head), head: None };
    let second = verdict(&fs::read(place.path()).unwrap(), &after(first));
    assert!(second.is_intact(), "{second:?}");
    // Foreign bytes stay as evidence.
    fs::OpenOptions::new().append(true).open(place.path()).unwrap().write_all(b"foreign").unwrap();
    log.record(event("third")).unwrap();
    assert!(verdict(&fs::read(place.path()).unwrap(), &after(second.head.unwrap())).is_intact());
    let aside = place.files().into_iter().find(|name| name.contains("set-aside")).unwrap();
    assert!(fs::read(place.dir.path().join(aside)).unwrap().ends_with(b"foreign"));
    // Another file in its place, and an emptied one.
    fs::remove_file(place.path()).unwrap();
    fs::write(place.path(), "something else\n").unwrap();
    let fourth = log.record(event("fourth")).unwrap();
    fs::write(place.path(), "").unwrap();
    log.record(event("fifth")).unwrap();
    assert!(verdict(&fs::read(place.path()).unwrap(), &after(fourth)).is_intact());
}

#[test]
fn a_new_day_begins_a_new_file_and_old_ones_go() {
    let place = Place::new();
    let old = |name: &str| place.dir.path().join(name);
    for name in
        ["audit.log.2001-01-01", "audit.log.2001-01-01.1", "audit.log.set-aside-20010101T000000Z", "other"]
    {
        fs::write(old(name), "x").unwrap();
    }
    let log = place.open();
    let head = log.record(event("yesterday")).unwrap();
    log.close();
    let yesterday = std::time::SystemTime::now() - std::time::Duration::from_secs(86400);
    fs::File::options().append(true).open(place.path()).unwrap().set_modified(yesterday).unwrap();
    let log = place.open();
    log.record(event("today")).unwrap();
    log.close();
    let today = verdict(&fs::read(place.path()).unwrap(), &Expect { start: Start::After(head), head: None });
    assert!(today.is_intact() && today.records == 1, "{today:?}");
    let files = place.files();
    assert_eq!(files.len(), 4, "{files:?}");
    assert!(files[1].starts_with("audit.log.20") && !files[1].contains("2001"), "{files:?}");
    assert_eq!(files[2..], ["audit.log.set-aside-20010101T000000Z", "other"]);
    // A crash between renaming and the first record: the chain goes on from the file before.
    fs::remove_file(place.path()).unwrap();
    let log = place.open();
    assert_eq!(log.record(event("again")).unwrap().seq, head.seq + 1);
    assert_ne!(Some(Head::GENESIS), log.head());
}

#[test]
fn a_clock_that_is_set_back_leaves_the_files_in_order() {
    let place = Place::new();
    let mut last = 0;
    for days_ago in [3_u64, 400, 2, 900, 1, 5] {
        let log = place.open();
        last = log.record(event("before")).unwrap().seq;
        log.close();
        let then = std::time::SystemTime::now() - std::time::Duration::from_secs(days_ago * 86400);
        fs::File::options().append(true).open(place.path()).unwrap().set_modified(then).unwrap();
    }
    // A crash after renaming: the last of all is gone on from, although a clock of long ago wrote it.
    let log = place.open();
    last = last.max(log.record(event("rotates")).unwrap().seq);
    log.close();
    fs::remove_file(place.path()).unwrap();
    let log = place.open();
    assert_eq!(log.record(event("again")).unwrap().seq, last);
    log.close();
    let report = patch_audit::examine(&place.path(), &patch_audit::Known::default()).unwrap();
    assert!(report.is_intact() && report.records == last, "{report:?} {:?}", place.files());
}
