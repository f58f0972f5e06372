//! Days, compression, retention: the chain goes through all of it.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path};

use jiff::{SignedDuration, Timestamp};
use patch_audit::{
    Acknowledged, Acknowledgements, AuditEvent, AuditKind, AuditLog, Caller, Damage, Head, Key, Known,
    Options, PublicKeys, Reconfiguration, Report, Retention, SignedHead, examine,
};

use crate::{Place, event};

fn acknowledge(file: &Path, one: &Acknowledged) {
    let text = Acknowledgements::read(file).unwrap().text_with(one).unwrap();
    Acknowledgements::write(file, &text).unwrap();
}

fn examined(place: &Place) -> Report {
    examine(&place.path(), &Known::default()).unwrap()
}

fn day(ago: i64) -> String {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    today.checked_sub(jiff::SignedDuration::from_hours(24 * ago)).unwrap().to_string()
}

/// A trail of sixty records: forty in files of forty and twenty days ago, the rest in the present one.
fn aged() -> Place {
    let place = Place::new();
    let log = place.open();
    for n in 0..60 {
        log.record_later(event(format!("number {n}")));
    }
    log.close();
    let text = fs::read_to_string(place.path()).unwrap();
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    fs::write(place.dir.path().join(format!("audit.log.{}", day(40))), lines[..20].concat()).unwrap();
    fs::write(place.dir.path().join(format!("audit.log.{}", day(20))), lines[20..40].concat()).unwrap();
    fs::write(place.path(), lines[40..].concat()).unwrap();
    place
}

fn compressed(place: &Place) {
    // The compressor works beside the writer, begins with its first record, and is stopped when it closes.
    let log = place.open();
    log.record(event("again")).unwrap();
    let began = std::time::Instant::now();
    while place.files().iter().any(|name| name.starts_with("audit.log.2") && !name.ends_with(".gz")) {
        assert!(began.elapsed().as_secs() < 20, "{:?}", place.files());
        std::thread::yield_now();
    }
    log.close();
}

#[test]
fn old_files_are_compressed_and_go_when_they_are_old_enough() {
    let place = aged();
    let mut options = Options::new("test").without_journal();
    options.keep_days = None;
    let log = AuditLog::open(&place.path(), options).unwrap();
    log.record(event("kept for ever")).unwrap();
    log.close();
    assert!(examined(&place).is_intact());
    assert_eq!(examined(&place).first.unwrap().seq, 1);

    let log = place.open();
    log.record(event("kept for thirty days")).unwrap();
    log.close();
    let report = examined(&place);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.first.unwrap().seq, 21);
    assert!(report.notes.iter().any(|note| note.contains("kept long enough")), "{report:?}");
    compressed(&place);
    assert_eq!(
        place.files(),
        [format!("audit.log.{}.gz", day(20)), "audit.log".to_owned()]
            .iter()
            .rev()
            .cloned()
            .collect::<Vec<_>>()
    );
    assert!(examined(&place).is_intact());

    // Fewer days, at run time.
    let log = place.open();
    log.reconfigure(Reconfiguration { keep_days: Some(5), remote: None }).unwrap();
    log.flush().unwrap();
    log.record(event("kept for five days")).unwrap();
    log.close();
    assert_eq!(place.files(), ["audit.log"]);
    let report = examined(&place);
    assert!(report.is_intact() && report.first.unwrap().seq == 41, "{report:?}");
}

#[test]
fn a_file_that_somebody_removed_shows() {
    let place = aged();
    fs::remove_file(place.dir.path().join(format!("audit.log.{}", day(40)))).unwrap();
    let report = examined(&place);
    assert!(report.problems[0].contains("begins with record 21"), "{report:?}");
    let place = aged();
    fs::remove_file(place.dir.path().join(format!("audit.log.{}", day(20)))).unwrap();
    assert!(examined(&place).problems[0].contains("records 21 to 40 are missing"));
}

#[test]
fn a_damaged_compressed_file_is_a_problem_and_no_more() {
    let place = aged();
    let path = place.dir.path().join(format!("audit.log.{}", day(20)));
    let text = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let gz = place.dir.path().join(format!("audit.log.{}.gz", day(20)));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&text).unwrap();
    let good = encoder.finish().unwrap();
    fs::write(&gz, &good).unwrap();
    assert!(examined(&place).is_intact());
    for cut in [1, 10, good.len() / 2, good.len() - 1] {
        fs::write(&gz, &good[..cut]).unwrap();
        assert!(!examined(&place).is_intact(), "{cut}");
    }
    fs::write(&gz, [&good[..], b"more"].concat()).unwrap();
    assert!(!examined(&place).is_intact());
}

#[test]
fn a_trail_that_ends_before_what_the_root_side_signed_goes_on_after_it_and_says_so() {
    let place = Place::new();
    let log = place.open();
    for n in 0..10 {
        log.record_later(event(format!("number {n}")));
    }
    log.flush().unwrap();
    let head = log.head().unwrap();
    log.close();
    let text = fs::read_to_string(place.path()).unwrap();
    let cut: String = text.split_inclusive('\n').take(6).collect();
    fs::write(place.path(), cut).unwrap();
    let signed = SignedHead { head, at: Timestamp::now() };
    let known = Known { signed: vec![signed], ..Known::default() };
    let report = examine(&place.path(), &known).unwrap();
    assert!(report.problems[0].contains("the root side has signed record 10"), "{report:?}");

    let mut options = Options::new("test").without_journal();
    options.known = Some(head);
    let log = AuditLog::open(&place.path(), options).unwrap();
    assert_eq!(log.record(event("after")).unwrap().seq, 12);
    log.close();
    let report = examine(&place.path(), &known).unwrap();
    assert!(report.problems[0].contains("records 7 to 10 are missing"), "{report:?}");
    assert!(fs::read_to_string(place.path()).unwrap().contains("trail_cut"));
}

#[test]
fn checkpoints_vouch_and_false_ones_are_found() {
    let place = Place::new();
    let key = Key::open(&place.dir.path().join("key"), &place.dir.path().join("pub")).unwrap();
    let keys = PublicKeys::read(&place.dir.path().join("pub")).unwrap();
    let sign = |log: &AuditLog| {
        let signed = key.sign(log.head().unwrap(), jiff::Timestamp::now());
        log.record(patch_audit::AuditEvent::new((&signed).into(), &patch_audit::Caller::local())).unwrap();
        signed
    };
    let log = place.open();
    for n in 0..10 {
        log.record(event(format!("number {n}"))).unwrap();
    }
    sign(&log);
    log.record(event("after")).unwrap();
    log.close();
    let known = Known { keys: Some(keys), ..Known::default() };
    let report = examine(&place.path(), &known).unwrap();
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.vouched, report.checkpoints), (Some(10), 1));
    assert!(report.notes.iter().any(|note| note.contains("the 2 after it")), "{report:?}");

    // A trail that was written anew from record 5 on, by somebody who knows the chain but has no key.
    let forged = Place::new();
    let log = forged.open();
    for n in 0..10 {
        log.record(event(format!("number {}", if n < 5 { n } else { n + 1 }))).unwrap();
    }
    let text = fs::read_to_string(place.path()).unwrap();
    let line = text.lines().nth(10).unwrap();
    let record: patch_audit::Record = serde_json::from_str(line).unwrap();
    log.record(record.event.clone()).unwrap();
    log.close();
    let report = examine(&forged.path(), &known).unwrap();
    assert!(report.problems[0].contains("the trail was rewritten"), "{report:?}");

    // A checkpoint of a key that is not the root side's.
    let other = Key::open(&place.dir.path().join("key2"), &place.dir.path().join("pub2")).unwrap();
    let log = place.open();
    let false_one = other.sign(log.head().unwrap(), jiff::Timestamp::now());
    log.record(patch_audit::AuditEvent::new((&false_one).into(), &patch_audit::Caller::local())).unwrap();
    log.close();
    let report = examine(&place.path(), &known).unwrap();
    assert!(report.problems[0].contains("not its signature"), "{report:?}");
}

#[test]
fn what_was_set_aside_is_told() {
    let place = Place::new();
    let log = place.open();
    log.record(event("a")).unwrap();
    fs::write(place.path(), "rubbish\n").unwrap();
    log.record(event("b")).unwrap();
    log.close();
    let report = examined(&place);
    assert!(report.problems.iter().any(|problem| problem.contains("set aside")), "{report:?}");
}

#[test]
fn what_root_has_explained_is_a_note_and_just_that() {
    let place = Place::new();
    let log = place.open();
    for n in 0..3 {
        log.record(event(format!("number {n}"))).unwrap();
    }
    fs::rename(place.path(), place.dir.path().join("audit.log.2001-01-01")).unwrap();
    log.record(event("four")).unwrap();
    log.record(event("five")).unwrap();
    // Cut within: the file is set aside with what is left of it.
    let text = fs::read_to_string(place.path()).unwrap();
    fs::write(place.path(), &text[..text.len() - 20]).unwrap();
    log.record(event("after")).unwrap();
    log.close();
    let known =
        |path: &Path| Known { acknowledged: Acknowledgements::read(path).unwrap(), ..Known::default() };
    let file = place.dir.path().join("acknowledged");
    let before = examine(&place.path(), &known(&file)).unwrap();
    assert!(!before.is_intact());
    assert_eq!((before.damage.files.len(), before.damage.missing.len()), (1, 1), "{before:?}");
    let from = before.damage.missing[0].from;
    let to = before.damage.missing[0].to;
    let signed = |seq| {
        let head: Head = format!("{seq}:{}", "0".repeat(64)).parse().unwrap();
        SignedHead { head, at: Timestamp::now() }
    };

    let reason = "the backup restored an old file".to_owned();
    let acknowledged = Acknowledged { at: Timestamp::now(), reason, damage: before.damage.clone() };
    acknowledge(&file, &acknowledged);
    let after = examine(&place.path(), &known(&file)).unwrap();
    assert!(after.is_intact() && after.damage.is_empty(), "{after:?}");
    assert!(after.notes.iter().any(|note| note.contains("restored an old file")), "{after:?}");
    // What the root side signed of the missing records is missing with them.
    let with_signed = Known { signed: vec![signed(from)], ..known(&file) };
    assert!(examine(&place.path(), &with_signed).unwrap().is_intact());

    // It is the evidence as it was: a changed file is none.
    let aside = place.dir.path().join(before.damage.files.keys().next().unwrap());
    let evidence = fs::read(&aside).unwrap();
    fs::write(&aside, [&evidence[..], b"x"].concat()).unwrap();
    assert!(!examine(&place.path(), &known(&file)).unwrap().is_intact());
    fs::write(&aside, &evidence).unwrap();
    // Nor may another file hide behind it.
    let other = aside.with_file_name("audit.log.set-aside-20010101T000000Z");
    fs::copy(&aside, &other).unwrap();
    assert!(!examine(&place.path(), &known(&file)).unwrap().is_intact());
    fs::remove_file(other).unwrap();
    // Taken away by a person the file is missed by nobody, but one more record is.
    fs::remove_file(&aside).unwrap();
    assert!(examine(&place.path(), &known(&file)).unwrap().is_intact());
    let live = fs::read_to_string(place.path()).unwrap();
    let later = live.split_once('\n').unwrap().1;
    fs::write(place.path(), later).unwrap();
    let worse = examine(&place.path(), &known(&file)).unwrap();
    assert_eq!((worse.damage.missing[0].from, worse.damage.missing[0].to), (from, to + 1), "{worse:?}");
    assert!(!worse.is_intact());
    fs::write(place.path(), live.replace("after", "other")).unwrap();
    let edited = examine(&place.path(), &known(&file)).unwrap();
    assert!(!edited.is_intact() && edited.damage.is_empty(), "an edit is nothing to acknowledge: {edited:?}");

    // A line that is none, or torn, leaves nothing acknowledged.
    let whole = fs::read_to_string(&file).unwrap();
    for bad in ["{}\n", &whole[..whole.len() - 9], &format!("{whole}{{"), &" ".repeat((1 << 20) + 1)] {
        fs::write(&file, bad).unwrap();
        assert!(Acknowledgements::read(&file).is_err(), "{}", bad.len());
    }
}

#[test]
fn acknowledgements_are_written_whole_and_no_more_than_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("acknowledged");
    let damage = || Damage { files: [("f".to_owned(), "0".repeat(64))].into(), missing: Vec::new() };
    let one = |reason: String| Acknowledged { at: Timestamp::now(), reason, damage: damage() };
    acknowledge(&file, &one("the first".to_owned()));
    acknowledge(&file, &one("the second".to_owned()));
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let known = Acknowledgements::read(&file).unwrap();
    assert!(known.text_with(&one("x".repeat(1 << 20))).is_err());
}

#[test]
fn what_was_set_aside_and_cannot_be_opened_is_named_and_the_rest_is_read() {
    let place = Place::new();
    let log = place.open();
    log.record(event("one")).unwrap();
    log.close();
    let aside = |stamp: &str| place.dir.path().join(format!("audit.log.set-aside-{stamp}"));
    fs::write(aside("20261120T000000Z"), "rubbish\n").unwrap();
    // Whoever runs this can read every file, but nobody opens these: a link, a directory, a pipe.
    std::os::unix::fs::symlink("audit.log", aside("20261121T000000Z")).unwrap();
    fs::create_dir(aside("20261122T000000Z")).unwrap();
    let fifo = rustix::fs::Mode::RUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, aside("20261123T000000Z"), fifo).unwrap();
    assert_eq!(patch_audit::set_aside(&place.path()).len(), 4, "none of them is overlooked");
    let report = examine(&place.path(), &Known::default()).unwrap();
    assert_eq!(report.records, 1);
    for (stamp, said) in [
        ("20261120", "it holds no record"),
        ("20261121", "cannot be opened"),
        ("20261122", "cannot be opened"),
        ("20261123", "cannot be opened"),
    ] {
        let named = |problem: &&String| problem.contains(stamp) && problem.contains(said);
        assert_eq!(report.problems.iter().filter(named).count(), 1, "{stamp}: {report:?}");
    }
    // What cannot be looked at is nothing to acknowledge.
    assert_eq!(report.damage.files.len(), 1);
}

#[test]
fn what_was_set_aside_is_taken_as_it_lies_there() {
    let place = Place::new();
    let log = place.open();
    log.record(event("one")).unwrap();
    log.close();
    let aside = place.dir.path().join("audit.log.set-aside-20261120T000000Z.gz");
    let known = Known::default();
    let damage = |content: &[u8]| {
        fs::write(&aside, content).unwrap();
        let report = examine(&place.path(), &known).unwrap();
        assert!(!report.is_intact());
        report.damage
    };
    // The beginning of a compressed file, and what begins as none.
    let cut = damage(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x4b]);
    assert_eq!(cut.files.len(), 1);
    assert_ne!(damage(b"junk"), damage(b"other junk"), "each has its own digest");
}

#[test]
fn an_acknowledged_gap_is_no_room_for_forged_records() {
    let place = Place::new();
    let log = place.open();
    for n in 0..12 {
        log.record(event(format!("number {n}"))).unwrap();
    }
    log.close();
    let text = fs::read_to_string(place.path()).unwrap();
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    let with = |between: &str| {
        fs::write(place.path(), [&lines[..3].concat(), between, &lines[8..].concat()].concat())
    };
    let signed = heads(&text).into_iter().skip(4).take(3);
    let signed = signed.map(|head| SignedHead { head, at: Timestamp::now() });
    let mut known = Known { signed: signed.collect(), ..Known::default() };

    with("").unwrap();
    let found = examine(&place.path(), &known).unwrap();
    let [gap] = &found.damage.missing[..] else { panic!("{found:?}") };
    assert_eq!((gap.from, gap.to), (4, 8));
    let file = place.dir.path().join("acknowledged");
    let reason = "the disk lost them".to_owned();
    let explained = Acknowledged { at: Timestamp::now(), reason, damage: found.damage.clone() };
    acknowledge(&file, &explained);
    known.acknowledged = Acknowledgements::read(&file).unwrap();
    assert!(examine(&place.path(), &known).unwrap().is_intact());

    // Others in their place, chained as they should be, up to one or to all of them; the root side signed none of them.
    let forge = Place::new();
    fs::write(forge.path(), lines[..3].concat()).unwrap();
    let log = forge.open();
    for n in 0..5 {
        log.record(event(format!("forged {n}"))).unwrap();
    }
    log.close();
    let forged = fs::read_to_string(forge.path()).unwrap();
    let forged: Vec<_> = forged.split_inclusive('\n').skip(3).collect();
    let unsigned = Known { signed: Vec::new(), ..known.clone() };
    for count in 1..=5 {
        with(&forged[..count].concat()).unwrap();
        for known in [&known, &unsigned] {
            let report = examine(&place.path(), known).unwrap();
            assert!(!report.is_intact(), "{count}: {report:?}");
        }
    }
    // Nor may they be the first ones to be missing: the gap was between others.
    fs::write(place.path(), lines[8..].concat()).unwrap();
    assert!(!examine(&place.path(), &unsigned).unwrap().is_intact());
}

fn ago(days: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(24 * days)
}

/// The heads of the records in a file.
fn heads(text: &str) -> Vec<Head> {
    let head = |line: &str| {
        let record: patch_audit::Record = serde_json::from_str(line).unwrap();
        format!("{}:{}", record.seq, record.hash).parse().unwrap()
    };
    text.lines().map(head).collect()
}

#[test]
fn a_beginning_that_is_removed_before_its_time_shows() {
    // Somebody who has the network side removes twenty records, and says that they were old.
    let place = Place::new();
    let log = place.open();
    for n in 0..40 {
        log.record_later(event(format!("number {n}")));
    }
    let removed = vec![format!("audit.log.{}", day(40))];
    log.record(AuditEvent::new(AuditKind::TrailPruned { removed, first_left: 21 }, &Caller::local()))
        .unwrap();
    log.record(event("after")).unwrap();
    log.close();
    let text = fs::read_to_string(place.path()).unwrap();
    let heads = heads(&text);
    fs::write(place.path(), text.split_inclusive('\n').skip(20).collect::<String>()).unwrap();
    let look = |signed: &[(usize, i64)], keep_days: u32, since: Option<i64>| {
        let signed = signed.iter().map(|&(seq, days)| SignedHead { head: heads[seq - 1], at: ago(days) });
        let retention = Some(Retention { keep_days, since: since.map(ago) });
        let known = Known { signed: signed.collect(), retention, ..Known::default() };
        examine(&place.path(), &known).unwrap()
    };
    assert!(look(&[], 30, None).is_intact(), "the root side has signed nothing of it");
    let report = look(&[(10, 40), (15, 3)], 30, None);
    assert!(report.problems[0].contains("signed record 15"), "{report:?}");
    assert_eq!(report.problems.len(), 1);
    assert!(look(&[(10, 40), (15, 3)], 2, None).is_intact(), "long enough");
    assert!(!look(&[(10, 40), (15, 3)], 3, None).is_intact());
    // What was signed late may be older than its signature; what comes after it is not.
    assert!(look(&[(20, 3)], 30, None).is_intact());
    assert!(!look(&[(19, 3)], 30, None).is_intact());
    // By now it would be old enough, but it was not when it was removed.
    let late = [(15, 35), (42, 10)];
    assert!(!look(&late, 30, None).is_intact());
    assert!(look(&late, 20, None).is_intact());
    // Before the configuration was changed another rule held, as far as the root side vouches for the removal.
    let report = look(&late, 30, Some(5));
    assert!(report.is_intact() && report.notes.iter().any(|note| note.contains("was changed")), "{report:?}");
    assert!(!look(&late, 30, Some(20)).is_intact());
    assert!(!look(&[(15, 3)], 30, Some(1)).is_intact(), "nobody vouches that it was removed before");
    // The clock was far ahead when it was signed; then it was set right, and the removal was in time.
    assert!(look(&[(10, -50), (15, -40), (30, 35), (42, 1)], 30, None).is_intact());
    // It was behind when the removal was signed.
    assert!(look(&[(15, 40), (30, 5), (42, 200)], 30, None).is_intact());
    // Wherever it went only forwards, nothing of that excuses.
    assert!(!look(&[(10, 9), (15, 8), (30, 5), (42, 1)], 30, None).is_intact());
}

#[test]
fn what_retention_removes_is_never_taken_for_tampering() {
    let place = aged();
    let text = fs::read_to_string(place.dir.path().join(format!("audit.log.{}", day(40)))).unwrap();
    let mut signed: Vec<_> = heads(&text).into_iter().map(|head| SignedHead { head, at: ago(40) }).collect();
    let log = place.open();
    log.record(event("the old ones go")).unwrap();
    log.close();
    // The root side was away when the last of the removed ones was written.
    signed.pop();
    signed.push(SignedHead { head: heads(&text)[19], at: ago(1) });
    let retention = Some(Retention { keep_days: 30, since: None });
    let report = examine(&place.path(), &Known { signed, retention, ..Known::default() }).unwrap();
    assert!(report.is_intact() && report.first.unwrap().seq == 21, "{report:?}");
}
