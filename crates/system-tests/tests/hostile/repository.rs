//! S10: attacks by a repository, or by whoever stands before it, are refused by name, and nothing is installed of them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use patch_types::{ChangeOptions, ErrorCode, JobStatus, Operation, event::Ended};
use system_tests::{
    Repository, RootOptions,
    packages::Packages,
    place::{self, Place},
    trials::trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("s10_a_release_signed_by_a_key_nobody_trusts_is_refused", || bad_suite("wrongkey")),
        trial("s10_a_frozen_release_that_is_no_longer_valid_is_refused", || bad_suite("expired")),
        trial("s10_a_tampered_release_is_refused", a_tampered_release_is_refused),
        trial("s10_a_release_without_a_signature_is_refused", a_release_without_a_signature_is_refused),
        trial("s10_an_index_of_another_date_is_refused", an_index_of_another_date_is_refused),
        trial("s10_an_older_release_takes_nothing_back", an_older_release_takes_nothing_back),
        trial("s10_an_archive_with_another_hash_is_refused", an_archive_with_another_hash_is_refused),
        trial("s10_endless_data_is_cut_off", endless_data_is_cut_off),
    ]
}

fn run(place: &Place, operation: Operation) -> Result<Ended> {
    let job = place.executor.change(operation, ChangeOptions::default(), None)?;
    place.executor.ended(job)
}

/// A failed job with this code, and a host that is as it was.
fn ensure_refused(place: &Place, operation: Operation, code: ErrorCode) -> Result<()> {
    let before = place.state()?;
    let ended = run(place, operation)?;
    let told = ended.error.as_ref().context("no error")?;
    ensure!(ended.status == JobStatus::Failed && told.code == code, "{ended:#?}");
    ensure!(!told.message.is_empty(), "{ended:#?}");
    before.assert_same(&place.state()?)
}

fn bad_suite(kind: &str) -> Result<()> {
    let place = Place::new(&["lp-plain"])?;
    place.root.push(
        Repository::bad_sources_list(Repository::FILES, kind)?,
        "/etc/apt/sources.list",
        "644",
    )?;
    ensure_refused(&place, Operation::Refresh, ErrorCode::SignatureError)?;
    // What it offers is not installed either.
    let ended = run(&place, place::update("lp-plain=1.1-1")?)?;
    ensure!(ended.status == JobStatus::Failed, "{ended:#?}");
    Ok(())
}

/// Replaces a file of the repository, whose files are shared with others, by what is made of it.
fn replace(file: &Path, make: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<()> {
    let new = file.with_extension("lp-new");
    fs::write(&new, make(fs::read(file).with_context(|| file.display().to_string())?))?;
    Ok(fs::rename(new, file)?)
}

/// The directories of the suites of a day.
fn suites(place: &Place, day: &str) -> Result<Vec<PathBuf>> {
    let dists = place.repository.path().join(day).join("dists");
    Ok(fs::read_dir(dists)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

fn a_tampered_release_is_refused() -> Result<()> {
    let place = Place::new(&["lp-plain"])?;
    for suite in suites(&place, "day1")? {
        replace(&suite.join("InRelease"), |bytes| {
            String::from_utf8_lossy(&bytes)
                .replacen("Components: main", "Components: main evil", 1)
                .into_bytes()
        })?;
        fs::remove_file(suite.join("Release"))?;
        fs::remove_file(suite.join("Release.gpg"))?;
    }
    place.repository.publish_day(1)?;
    ensure_refused(&place, Operation::Refresh, ErrorCode::SignatureError)
}

fn a_release_without_a_signature_is_refused() -> Result<()> {
    let place = Place::new(&["lp-plain"])?;
    for suite in suites(&place, "day1")? {
        fs::remove_file(suite.join("InRelease"))?;
        fs::remove_file(suite.join("Release.gpg"))?;
    }
    place.repository.publish_day(1)?;
    ensure_refused(&place, Operation::Refresh, ErrorCode::SignatureError)
}

/// Mix and match: the signed list of today, an index of yesterday.
fn an_index_of_another_date_is_refused() -> Result<()> {
    let place = Place::new(&["lp-plain"])?;
    for suite in suites(&place, "day1")? {
        let name = suite.file_name().context("no name")?;
        let old = place.repository.path().join("day0/dists").join(name);
        for entry in fs::read_dir(suite.join("main"))? {
            let binary = entry?.path();
            let from = old.join("main").join(binary.file_name().context("no name")?);
            for file in ["Packages", "Packages.gz"] {
                let bytes = fs::read(from.join(file))?;
                replace(&binary.join(file), |_| bytes)?;
            }
        }
    }
    place.repository.publish_day(1)?;
    ensure_refused(&place, Operation::Refresh, ErrorCode::SignatureError)
}

/// apt keeps the newer list that it has, without a word; so the job succeeds, and the older view counts for nothing.
fn an_older_release_takes_nothing_back() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    let newest = |place: &Place| -> Result<Option<String>> {
        let plan = place.executor.plan(place::apply(&["lp-plain"])?)?;
        Ok(plan.changes.first().and_then(|change| change.new_version.as_ref()).map(ToString::to_string))
    };
    let before = newest(&place)?;
    place.repository.publish_day(0)?;
    let _ = run(&place, Operation::Refresh)?;
    ensure!(newest(&place)? == before, "an older list was believed: {:?}, not {before:?}", newest(&place)?);
    Ok(())
}

fn an_archive_with_another_hash_is_refused() -> Result<()> {
    let place = Place::new(&["lp-plain=1.0-1"])?;
    place.root.push(
        Repository::bad_sources_list(Repository::FILES, "hash")?,
        "/etc/apt/sources.list",
        "644",
    )?;
    ensure!(run(&place, Operation::Refresh)?.status == JobStatus::Completed);
    ensure_refused(&place, place::update("lp-plain")?, ErrorCode::SignatureError)
}

/// How much an endless source may bring onto the disk.
const MOST: u64 = 64 << 20;

fn endless_data_is_cut_off() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    // Ends with the process; each connection ends when its peer has had enough.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(head.as_bytes());
                let line = [b"Origin: ".as_slice(), &[b'x'; 8000], b"\n"].concat();
                while stream.write_all(&line).is_ok() {}
            });
        }
    });
    let place = Place::with(RootOptions::default().machine_network(), &["lp-plain"], &Packages::executor()?)?;
    place.root.push(
        Repository::sources_list(&format!("http://{address}"))?,
        "/etc/apt/sources.list",
        "644",
    )?;
    place.root.push("Acquire::http::Proxy \"DIRECT\";\n", "/etc/apt/apt.conf.d/99direct", "644")?;
    let before = place.state()?;
    let begun = Instant::now();
    let ended = run(&place, Operation::Refresh)?;
    let told = ended.error.as_ref().context("no error")?;
    ensure!(
        ended.status == JobStatus::Failed
            && matches!(told.code, ErrorCode::SignatureError | ErrorCode::NetworkError),
        "{ended:#?}"
    );
    ensure!(begun.elapsed() < Duration::from_secs(60), "it took {:?}", begun.elapsed());
    before.assert_same(&place.state()?)?;
    let used = place.root.shell("du -sxb /var/lib/apt | cut -f1")?;
    ensure!(used.trim().parse::<u64>()? < MOST, "{used} bytes lie about");
    Ok(())
}
