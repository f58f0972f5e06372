//! Measures appending and verifying on the file system of the current directory: `cargo run --release --example rates`.
#![expect(clippy::print_stdout, reason = "it reports to a terminal")]

use std::{
    fs::{self, File},
    io::{BufReader, Write},
    path::Path,
    sync::mpsc::channel,
    time::{Duration, Instant},
};

use patch_audit::{AuditError, AuditEvent, AuditLog, Caller, Expect, Options, verify};
use uuid::Uuid;

fn request() -> AuditEvent {
    let caller = Caller {
        identity: Some("manager-1.internal".to_owned()),
        fingerprint: Some("5e".repeat(32)),
        request_id: Some(Uuid::nil()),
        ..Caller::at([10, 0, 0, 5].into())
    };
    AuditEvent::request(&caller, "GET", "/api/v1/packages/openssl", 200, Duration::from_micros(412))
}

fn per_second(count: u32, began: Instant) -> f64 {
    (f64::from(count) / began.elapsed().as_secs_f64()).round()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = Path::new("audit-rates");
    fs::create_dir_all(directory)?;
    let result = measure(directory);
    fs::remove_dir_all(directory)?;
    result
}

fn measure(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let line = vec![b'x'; 520];
    let mut raw = File::create(directory.join("raw"))?;
    let log = AuditLog::open(&directory.join("audit.log"), Options::new("rates").without_journal())?;
    for round in 1..=3 {
        let began = Instant::now();
        for _ in 0..1000 {
            raw.write_all(&line)?;
            raw.sync_data()?;
        }
        let bare = per_second(1000, began);
        let began = Instant::now();
        for _ in 0..1000 {
            log.record(request())?;
        }
        let ours = per_second(1000, began);
        println!("{round}: write and fdatasync {bare}/s; record, one at a time {ours}/s: {:.2}", ours / bare);
    }

    let (done, told) = channel();
    let began = Instant::now();
    for _ in 0..50_000 {
        loop {
            let done = done.clone();
            let tell = Box::new(move |place: Result<_, _>| {
                // The other end waits for every one of them.
                let _ = done.send(place.is_ok());
            });
            match log.submit(request(), tell) {
                Ok(()) => break,
                Err(AuditError::QueueFull) => std::thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
        }
    }
    let durable = told.iter().take(50_000).filter(|ok| *ok).count();
    println!("submit, durable, grouped: {}/s ({durable} of 50000)", per_second(50_000, began));

    let began = Instant::now();
    for n in 0..250_000 {
        log.record_later(request());
        if n % 2000 == 0 {
            log.flush()?;
        }
    }
    log.flush()?;
    println!("record later: {}/s", per_second(250_000, began));
    let head = log.head();
    log.close();

    let path = directory.join("audit.log");
    let began = Instant::now();
    let file = BufReader::with_capacity(1 << 18, File::open(&path)?);
    let verdict = verify(file, &Expect { head, ..Expect::default() })?;
    let records = u32::try_from(verdict.records)?;
    println!(
        "verify: {}/s, {records} records of {} bytes, intact: {}",
        per_second(records, began),
        fs::metadata(&path)?.len() / verdict.records,
        verdict.is_intact()
    );
    Ok(())
}
