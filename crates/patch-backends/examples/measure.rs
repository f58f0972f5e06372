//! Times of reading the machine's own package database and indexes, and of looking for old code:
//! `cargo run --release -p patch-backends --example measure [ROOT]`.

use std::{path::PathBuf, time::Instant};

use patch_backends::{
    apt::{Database, ExtendedStates, Indexes, indexes::LISTS, status::STATUS},
    stale,
};

fn best<T>(times: u32, mut work: impl FnMut() -> T) -> f64 {
    (0..times)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(work());
            start.elapsed().as_secs_f64() * 1000.0
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "/".to_owned()));
    let text = std::fs::read(root.join(STATUS))?;
    let (all, list) = (Database::read(&root)?, Database::read_for_list(&root)?);
    println!("{} packages in a status file of {} KiB", all.len(), text.len() / 1024);
    println!("parse, everything    {:8.3} ms", best(50, || Database::parse(&text)));
    println!(
        "read, everything     {:8.3} ms  {:5} bytes a package",
        best(50, || Database::read(&root)),
        all.memory() / all.len()
    );
    println!(
        "read, for the list   {:8.3} ms  {:5} bytes a package",
        best(50, || Database::read_for_list(&root)),
        list.memory() / list.len()
    );
    println!("extended states      {:8.3} ms", best(50, || ExtendedStates::read(&root)));
    let names: Vec<&str> = all.iter().take(100).map(patch_backends::apt::Installed::name).collect();
    let indexes = Indexes::read(&root, names.iter().copied())?;
    println!(
        "100 names in {} of {LISTS} ({} skipped) {:8.3} ms",
        indexes.origins().len(),
        indexes.skipped().len(),
        best(5, || Indexes::read(&root, names.iter().copied()))
    );
    let report = stale::report(&root, Some(&all))?;
    println!(
        "old code of {} processes, {} owners {:8.3} ms",
        report.processes,
        report.owners.len(),
        best(20, || stale::report(&root, Some(&all)))
    );
    Ok(())
}
