//! `cargo xtask bench`: the agent against its peers, side by side in one run, as ratios beside what is promised.

mod client;
mod events;
mod jobs;
mod lists;
mod memory;
mod numbers;
mod patches;
mod stage;
mod stale;
mod table;
mod way_back;
mod wire;

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use system_tests::{HostOptions, base, executor::PROGRAM};

use self::{stage::Bench, table::Report};
use crate::{
    dist::{self, Profile},
    workspace,
};

/// Options of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// How many rounds are measured; the median counts.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u8).range(1..=50))]
    rounds: u8,
    /// Measure programs built without optimisation, to try the measuring itself. Writes no document.
    #[arg(long)]
    dev: bool,
    /// Measure this package of the agent in place of one that is built now.
    #[arg(long, conflicts_with = "dev")]
    agent: Option<PathBuf>,
    /// Only these subjects. Writes no document.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Subject>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// The list of what is installed.
    Lists,
    /// The available updates.
    Patches,
    /// Acceptance and overhead of changes.
    Jobs,
    /// The lag of events.
    Events,
    /// Memory and wake-ups.
    Memory,
    /// Throughput and handshakes.
    Wire,
    /// What runs old code.
    Stale,
    /// What the way back costs, and the verdict after a crash.
    WayBack,
}

/// Directories that hold what must be durable, which one host keeps on the machine's own disk.
const DURABLE: [&str; 3] =
    ["/var/lib/linux_patch_api", "/var/log/linux_patch_api", "/var/lib/linux_patch_executor"];

/// Installed packages of the first host, as many as a small server has.
const PACKAGES: usize = 400;

/// Runs the subcommand.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the measurements boot real hosts, which needs root: run `sudo -E env PATH=\"$PATH\" cargo xtask bench`"
    );
    base::deps()?;
    // On the machine's disk: what lies in memory as a file counts as memory of those who map it.
    let work = stage::disk_directory()?;
    let profile = if args.dev { Profile::Dev } else { Profile::Release };
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => {
            println!("Building the agent");
            dist::build(profile, &work.path().join("dist"), None)?.agent
        }
    };
    let begun = Instant::now();
    let load_before = load();
    let wants = |subject| args.only.is_empty() || args.only.contains(&subject);
    let rounds = usize::from(args.rounds);
    let mut report = Report::default();

    if [Subject::Lists, Subject::Patches, Subject::Memory, Subject::Wire, Subject::Jobs]
        .into_iter()
        .any(wants)
    {
        println!("Fetching the peers and Debian's indexes, booting a host with them");
        let peers = work.path().join("peers");
        stage::fetch_peers(&peers).context("the peers cannot be fetched")?;
        let options = HostOptions::named("large").disk("3g").bind(&peers, "/srv/peers");
        let bench = Bench::new(work.path(), "large", &agent, options)?;
        bench.add_updates_and_peers()?;
        bench.grow(PACKAGES)?;
        with_indexes(&bench, &mut report, rounds, wants)?;
    }
    if [Subject::Jobs, Subject::Events].into_iter().any(wants) {
        println!("\nBooting a host with its durable state on the machine's disk");
        let disk = work.path().join("durable");
        let mut options = HostOptions::named("disk");
        for there in DURABLE {
            let here = disk
                .join(there.rsplit('/').next().unwrap_or_default())
                .join(if there.starts_with("/var/log") { "log" } else { "state" });
            fs::create_dir_all(&here)?;
            options.nspawn_arguments.push(format!("--bind={}:{there}", here.display()));
        }
        let bench = Bench::new(work.path(), "disk", &agent, options)?;
        if wants(Subject::Jobs) {
            jobs::acceptance(&bench, &disk, &mut report, rounds)?;
            report.section(
                "Overhead of a job, the test repository's indexes alone, journal on the machine's disk",
            );
            jobs::overhead(&bench, &mut report, 1, rounds)?;
            jobs::overhead(&bench, &mut report, 50, rounds.min(3))?;
            jobs::explain(&mut report, rounds.min(3));
        }
        if wants(Subject::Events) {
            events::measure(&bench, &mut report, rounds)?;
        }
    }

    if wants(Subject::Stale) {
        println!("\nBooting a host with many processes");
        let bench = Bench::new(work.path(), "crowd", &agent, HostOptions::named("crowd"))?;
        stale::measure(&bench, &mut report, rounds)?;
    }
    if wants(Subject::WayBack) {
        println!("\nChanging throw-away roots");
        let programs = work.path().join("programs");
        let unpacked =
            std::process::Command::new("dpkg-deb").arg("-x").arg(&agent).arg(&programs).status()?;
        ensure!(unpacked.success(), "cannot unpack {}", agent.display());
        let program = programs.join(PROGRAM.trim_start_matches('/'));
        way_back::measure(&program, work.path(), &mut report, rounds)?;
    }

    let (all, met) = report.score();
    let seconds = begun.elapsed().as_secs();
    let summary = format!("{met} of {all} promises that this command measures are kept.");
    println!("\n{summary} ({seconds} s)");
    if args.dev || !args.only.is_empty() {
        println!("This run is no measurement to keep, so docs/benchmarks.md was left as it is.");
        return Ok(());
    }
    let text = format!(
        "{INTRODUCTION}\n{}\n\n{summary}\n{}\n{NOT_MEASURED}",
        circumstances(rounds, seconds, &load_before)?,
        report.markdown()
    );
    let path = workspace::root()?.join("docs/benchmarks.md");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn with_indexes(
    bench: &Bench,
    report: &mut Report,
    rounds: usize,
    wants: impl Fn(Subject) -> bool,
) -> Result<()> {
    if wants(Subject::Memory) {
        memory::measure(bench, report)?;
    }
    if wants(Subject::Patches) {
        patches::measure(bench, report, rounds)?;
    }
    if wants(Subject::Wire) {
        wire::measure(bench, report, rounds)?;
    }
    if wants(Subject::Jobs) {
        report.section("Overhead of a job, Debian's indexes, journal in memory");
        jobs::overhead(bench, report, 1, rounds.min(3))?;
        jobs::explain(report, rounds.min(3));
    }
    // Last, as it makes dpkg's status another one for a while.
    if wants(Subject::Lists) {
        lists::measure(bench, report, rounds)?;
    }
    Ok(())
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// The machine, the day and the load.
fn circumstances(rounds: usize, seconds: u64, load_before: &str) -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let field = |text: &str, key: &str| {
        let value = text.lines().find(|line| line.starts_with(key)).and_then(|line| line.split_once(':'));
        value.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let memory = field(&fs::read_to_string("/proc/meminfo")?, "MemTotal");
    let memory: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(format!(
        "Measured on {} with `cargo xtask bench`, in {seconds} s: {cores} cores ({}), {} GB of memory, Debian {}; load \
         average {load_before} at the beginning, {} at the end; median of {rounds} rounds unless another count is \
         given.",
        jiff::Timestamp::now().strftime("%Y-%m-%d"),
        field(&cpu, "model name"),
        memory.div_ceil(1024 * 1024),
        base::release()?.version,
        load(),
    ))
}

const INTRODUCTION: &str = "# Benchmarks

This page is written by `cargo xtask bench` (as root, about eight minutes). Trust the ratios: everything is measured side by side in
one run, ours and the others' in turns, so that a slow or busy machine is slow or busy for all. The milliseconds only guide.

The agent is the release build, installed as its Debian package on throw-away hosts with systemd. The client sits on the same machine,
on the hosts' private network, keeps its connection open unless said otherwise, and reads whole answers over mutual TLS 1.3. Other
tools run on the same host, their output thrown away; the clock runs from their start to their end. The first round of each subject
warms up and does not count. The hosts' disks are in memory, so that syncing costs nothing there; what must be durable is measured
with the agent's state on the machine's own disk. Packages beyond those that are really installed stand in dpkg's status with neither
files nor relations.

\"ours\" and \"against\" are what was measured, \"result\" is what the promise is about: a difference, a ratio, or our number itself.
";

const NOT_MEASURED: &str = "
## Not measured by this command

The manager's rows, the verdict after a crash, and the audit trail's throughput; salt, ansible and puppet as peers.
";
