//! The log under use: order, groups, waiting, closing, reading back.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        mpsc::{channel, sync_channel},
    },
    time::{Duration, Instant},
};

use patch_audit::{
    AuditError, AuditEvent, AuditKind, AuditLog, Caller, Filter, Head, Options, Priority, Reader,
    Reconfiguration,
};
use patch_types::JobId;
use uuid::Uuid;

use crate::{Place, event};

#[test]
fn two_threads_of_a_thousand_durable_records_are_all_there_in_order() {
    let place = Place::new();
    let log = Arc::new(place.open());
    let (done, acknowledged) = channel();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (log, done) = (Arc::clone(&log), done.clone());
            scope.spawn(move || {
                for n in 0..1000 {
                    let done = done.clone();
                    let tell = Box::new(move |place: Result<Head, AuditError>| {
                        done.send((thread, n, place.unwrap())).unwrap();
                    });
                    log.submit(event(format!("{thread} {n}")), tell).unwrap();
                }
            });
        }
    });
    let mut heads: Vec<_> = acknowledged.iter().take(2000).collect();
    let groups = log.status().groups;
    assert!(groups < 400, "{groups} syncs for 2000 records");
    assert!(heads.is_sorted_by_key(|(_, _, head)| head.seq));
    for thread in 0..2 {
        let own: Vec<_> = heads.iter().filter(|(t, ..)| *t == thread).map(|(_, n, _)| *n).collect();
        assert!(own.iter().copied().eq(0..1000), "order of thread {thread}");
    }
    let verdict = place.verify();
    assert!(verdict.is_intact() && verdict.records == 2000);
    assert_eq!(verdict.head, log.head());
    assert_eq!(heads.pop().unwrap().2, log.head().unwrap());
}

#[test]
fn acknowledged_means_on_disk() {
    let place = Place::new();
    let log = place.open();
    let path = place.path();
    let (done, wait) = sync_channel(1);
    let tell = Box::new(move |head: Result<Head, AuditError>| {
        let text = fs::read_to_string(&path).unwrap();
        done.send(text.contains(&head.unwrap().hash.to_string())).unwrap();
    });
    log.submit(event("x"), tell).unwrap();
    assert!(wait.recv().unwrap());
}

#[test]
fn reads_are_grouped_and_come_before_what_follows_them() {
    let place = Place::new();
    let log = place.open();
    for n in 0..10 {
        log.record_later(event(format!("read {n}")));
    }
    assert_eq!(log.record(event("change")).unwrap().seq, 11);
    // Without anything after it a read is on disk by itself, soon.
    let began = Instant::now();
    log.record_later(event("read alone"));
    while log.head().unwrap().seq < 12 {
        assert!(began.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
}

#[test]
fn a_full_queue_refuses_at_once_and_what_it_dropped_is_recorded() {
    let place = Place::new();
    let options = Options { queue: 4, ..Options::new("test").without_journal() };
    let log = AuditLog::open(&place.path(), options).unwrap();
    // The writer is held up by whoever it tells.
    let (hold, held) = sync_channel::<()>(0);
    let held = Mutex::new(held);
    let (reached, reach) = sync_channel(1);
    let tell = Box::new(move |_| {
        reached.send(()).unwrap();
        held.lock().unwrap().recv().unwrap();
    });
    log.submit(event("slow"), tell).unwrap();
    reach.recv().unwrap();
    for n in 0..10 {
        log.record_later(event(format!("{n}")));
    }
    assert!(matches!(log.submit(event("x"), Box::new(drop)), Err(AuditError::QueueFull)));
    hold.send(()).unwrap();
    log.flush().unwrap();
    log.close();
    let dropped = Filter { kind: Some("records_dropped".to_owned()), ..Filter::default() };
    let text = fs::read(place.path()).unwrap();
    let records = Reader::new(&*text).tail(10, &dropped).unwrap();
    assert_eq!(records[0].event.kind, AuditKind::RecordsDropped { sink: "local".to_owned(), count: 6 });
    assert_eq!(place.verify().records, 1 + 4 + 1);
}

#[test]
fn closing_writes_what_was_handed_over_and_ends() {
    let place = Place::new();
    let log = place.open();
    log.record_later(event("last"));
    log.close();
    log.close();
    assert_eq!(place.verify().records, 1);
    assert!(matches!(log.record(event("x")), Err(AuditError::Closed)));
    assert!(matches!(log.flush(), Err(AuditError::Closed)));
    log.record_later(event("x"));
    assert!(format!("{log:?}").contains("AuditLog"));
    assert_eq!(place.verify().records, 1);
}

#[test]
fn a_callers_mistake_does_not_end_the_writer() {
    let place = Place::new();
    let log = place.open();
    log.submit(event("x"), Box::new(|_| panic!("on purpose"))).unwrap();
    assert_eq!(log.record(event("y")).unwrap().seq, 2);
}

#[test]
fn records_are_read_back_filtered() {
    let place = Place::new();
    let log = place.open();
    let job = JobId(Uuid::max());
    let caller = Caller { identity: Some("manager-1".to_owned()), ..Caller::local() };
    let accepted = AuditKind::JobAccepted { job_id: job, kind: "install".to_owned(), request: 1.into() };
    log.record_later(AuditEvent::new(accepted.clone(), &caller));
    log.record_later(AuditEvent::new(accepted, &Caller::local()));
    for n in 0..5 {
        log.record_later(event(format!("{n}")));
    }
    log.close();
    let mut text = fs::read(place.path()).unwrap();
    text.extend_from_slice(b"torn");
    let seqs = |filter: &Filter| {
        let mut reader = Reader::new(&*text);
        let records = reader.tail(2, filter).unwrap();
        assert_eq!(reader.skipped(), 1);
        records.iter().map(|record| record.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(&Filter::default()), [6, 7]);
    assert_eq!(seqs(&Filter { job: Some(job), ..Filter::default() }), [1, 2]);
    assert_eq!(seqs(&Filter { identity: Some("manager-1".to_owned()), ..Filter::default() }), [1]);
    assert!(seqs(&Filter { priority: Some(Priority::High), ..Filter::default() }).is_empty());
    let record = Reader::new(&*text).next().unwrap().unwrap();
    assert!(text.starts_with(record.line.as_bytes()) && record.line.contains(&record.hash));
    assert_eq!(record.prev, patch_audit::Hash::ZERO.to_string());
}

#[test]
fn settings_are_taken_over_however_full_the_queue_is() {
    let place = Place::new();
    let old = place.dir.path().join("audit.log.2001-01-01");
    let log = AuditLog::open(
        &place.path(),
        Options { queue: 1, keep_days: None, ..Options::new("test").without_journal() },
    )
    .unwrap();
    fs::write(&old, "x").unwrap();
    let (release, hangs) = channel::<()>();
    let (tell, told) = channel();
    let hang = move |_| {
        tell.send(()).unwrap();
        let _ = hangs.recv();
    };
    log.submit(event("hangs"), Box::new(hang)).unwrap();
    told.recv().unwrap();
    log.submit(event("fills the queue"), Box::new(|_| {})).unwrap();
    assert!(matches!(log.submit(event("too many"), Box::new(|_| {})), Err(AuditError::QueueFull)));
    for days in [9999, 5] {
        log.reconfigure(Reconfiguration { keep_days: Some(days), remote: None }).unwrap();
    }
    drop(release);
    log.flush().unwrap();
    assert!(!old.exists());
}
