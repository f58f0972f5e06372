//! The remote sink on real sockets: order, nothing lost, nobody held up.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use patch_audit::{AuditLog, Options, Patience, Reconfiguration, Remote};

use crate::{Place, event};

const QUICK: Patience = Patience {
    limit: Duration::from_secs(5),
    settle: Duration::from_millis(50),
    first_pause: Duration::from_millis(20),
    longest_pause: Duration::from_millis(100),
};

fn remote(target: &str) -> Remote {
    Remote { target: target.parse().unwrap(), tls: None, patience: QUICK }
}

fn open(place: &Place, target: Option<&str>) -> AuditLog {
    let mut options = Options::new("test").without_journal();
    options.remote = target.map(remote);
    AuditLog::open(&place.path(), options).unwrap()
}

/// Reads one message with its length before it; none at the end of the connection, or if it is torn.
fn message(from: &mut BufReader<TcpStream>) -> Option<String> {
    let mut length = Vec::new();
    from.read_until(b' ', &mut length).ok()?;
    let length: usize = std::str::from_utf8(&length).ok()?.trim().parse().ok()?;
    let mut text = vec![0; length];
    from.read_exact(&mut text).ok()?;
    Some(String::from_utf8(text).unwrap())
}

fn seq(message: &str) -> u64 {
    message.split_once(" seq=\"").unwrap().1.split_once('"').unwrap().0.parse().unwrap()
}

/// A server that gives what it reads, connection by connection, until it is dropped.
fn serve(listener: TcpListener) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            while let Some(message) = message(&mut stream) {
                if sender.send(message).is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

fn next(from: &Receiver<String>) -> String {
    from.recv_timeout(Duration::from_secs(20)).unwrap()
}

/// Waits until the log says so.
fn until(log: &AuditLog, what: impl Fn(&patch_audit::RemoteStatus) -> bool) {
    let began = Instant::now();
    while !log.status().remote.is_some_and(|remote| what(&remote)) {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", log.status());
        std::thread::yield_now();
    }
}

#[test]
fn datagrams_carry_a_record_each() {
    let place = Place::new();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let log = open(&place, Some(&server.local_addr().unwrap().to_string()));
    for n in 1..=3_u64 {
        log.record(event(format!("number {n}"))).unwrap();
        let mut buffer = [0; 4096];
        let length = server.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        assert!(text.starts_with("<108>1 20") && text.contains("number"), "{text}");
        assert_eq!(seq(text), n);
    }
    until(&log, |remote| remote.delivered == 3 && remote.error.is_none());
}

#[test]
fn what_a_server_missed_comes_later_in_order_from_rotated_files_too() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let target = format!("tcp://{address}");
    {
        let log = open(&place, Some(&target));
        for n in 0..300 {
            log.record_later(event(format!("number {n}")));
        }
        log.flush().unwrap();
        until(&log, |remote| remote.error.is_some());
    }
    // Over a restart, with what there was in files of two former days, one of them compressed.
    let text = fs::read_to_string(place.path()).unwrap();
    let lines: Vec<_> = text.split_inclusive('\n').collect();
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let day = |n: i64| today.checked_sub(jiff::SignedDuration::from_hours(24 * n)).unwrap().to_string();
    let beside = |suffix: String| place.dir.path().join(format!("audit.log.{suffix}"));
    let mut gz = flate2::write::GzEncoder::new(
        fs::File::create(beside(format!("{}.gz", day(2)))).unwrap(),
        flate2::Compression::default(),
    );
    std::io::Write::write_all(&mut gz, lines[..100].concat().as_bytes()).unwrap();
    gz.finish().unwrap();
    fs::write(beside(day(1)), lines[100..200].concat()).unwrap();
    fs::write(place.path(), lines[200..].concat()).unwrap();

    let listener = TcpListener::bind(address).unwrap();
    let log = open(&place, Some(&target));
    let messages = serve(listener);
    log.record(event("the last")).unwrap();
    let (mut expected, mut failed) = (1, false);
    loop {
        let message = next(&messages);
        // A repetition is allowed, a gap is not.
        assert!(seq(&message) <= expected, "{} after {expected}: {message}", seq(&message));
        expected = expected.max(seq(&message) + 1);
        failed |= message.contains("audit sink syslog tcp://");
        if message.contains("the last") {
            break;
        }
    }
    assert!(expected > 301 && failed, "{expected}");
    let head = expected - 1;
    until(&log, |remote| remote.delivered >= head && remote.error.is_none());
    drop(messages);
}

#[test]
fn a_server_that_dies_within_a_record_gets_it_again() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let log = open(&place, Some(&format!("tcp://{}", listener.local_addr().unwrap())));
    let long = "x".repeat(20_000);
    for n in 0..20 {
        log.record_later(event(format!("{n} {long}")));
    }
    log.flush().unwrap();
    // Reads two records and a half, and dies.
    let (stream, _) = listener.accept().unwrap();
    let mut stream = BufReader::with_capacity(16, stream);
    for _ in 0..2 {
        message(&mut stream).unwrap();
    }
    stream.read_exact(&mut vec![0; 10_000]).unwrap();
    drop(stream);
    let messages = serve(listener);
    let mut expected = 1;
    while expected <= 20 {
        let message = next(&messages);
        assert!(seq(&message) <= expected);
        expected = expected.max(seq(&message) + 1);
    }
}

#[test]
fn a_server_that_hangs_holds_nobody_up() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let log = open(&place, Some(&format!("tcp://{}", listener.local_addr().unwrap())));
    let long = "y".repeat(100_000);
    let began = Instant::now();
    // More than any socket buffers: nobody reads.
    for _ in 0..200 {
        log.record(event(&long)).unwrap();
    }
    let (_stream, _) = listener.accept().unwrap();
    for _ in 0..50 {
        log.record(event("short")).unwrap();
    }
    assert!(log.status().is_healthy());
    assert_eq!(log.head().unwrap().seq, 250);
    let spent = began.elapsed();
    let closing = Instant::now();
    log.close();
    assert!(closing.elapsed() < Duration::from_secs(5), "{spent:?} {:?}", closing.elapsed());
}

#[test]
fn a_target_can_be_changed_while_records_are_written() {
    let place = Place::new();
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    let log = open(&place, None);
    log.record(event("nobody gets this")).unwrap();
    assert_eq!(log.status().remote, None);
    let aim = |target: Option<String>| {
        let remote = target.map(|target| remote(&target));
        log.reconfigure(Reconfiguration { keep_days: Some(30), remote }).unwrap();
        log.flush().unwrap();
    };
    aim(Some(format!("tcp://{}", first.local_addr().unwrap())));
    let messages = serve(first);
    log.record(event("for the first")).unwrap();
    assert_eq!(seq(&next(&messages)), 2);
    until(&log, |remote| remote.delivered == 2);
    aim(Some(format!("tcp://{}", second.local_addr().unwrap())));
    log.record(event("for the second")).unwrap();
    let messages = serve(second);
    assert_eq!(seq(&next(&messages)), 3);
    aim(None);
    log.record(event("for nobody")).unwrap();
    let began = Instant::now();
    while log.status().remote.is_some() {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    log.close();
    assert!(!place.dir.path().join(patch_audit::CURSOR).exists());
    assert!(messages.recv_timeout(Duration::from_millis(1)).is_err());
}

#[test]
fn an_orderly_end_delivers_everything_and_repeats_nothing() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("tcp://{}", listener.local_addr().unwrap());
    let messages = serve(listener);
    for round in 0..3 {
        let log = open(&place, Some(&target));
        log.record_later(event(format!("round {round}")));
        log.close();
        assert_eq!(seq(&next(&messages)), round + 1);
    }
}
