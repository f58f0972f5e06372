//! The available updates: when nothing has changed, and when the solver must be asked.

use anyhow::{Context, Result, ensure};

use super::{
    numbers::{Samples, ratio, with_unit},
    stage::{API, Bench, timed},
    table::{Bound, Report},
};

const PYTHON: &str = "import apt; [(p.name, p.candidate.version) for p in apt.Cache() if p.is_upgradable]";

/// A clock tick in milliseconds, as Linux shows it to programs.
const TICK: f64 = 10.0;

/// How often the unchanged answer is read in each round.
const CACHED: usize = 20;

/// Measures.
pub(super) fn measure(bench: &Bench, report: &mut Report, rounds: usize) -> Result<()> {
    report.section("Available updates");
    let (mut cached, mut changed, mut cpu) = <(Samples, Samples, Samples)>::default();
    let (mut solver, mut solver_cpu) = <(Samples, Samples)>::default();
    let (mut apt, mut packagekit, mut python) = <(Samples, Samples, Samples)>::default();
    let mut count = 0;
    for round in 0..=rounds {
        let one = ours(bench)?;
        bench.touch()?;
        let other = timed(&bench.host, &["apt-get", "-s", "dist-upgrade"]);
        let wall = |argv: &[&str]| {
            bench.touch()?;
            anyhow::Ok(timed(&bench.host, argv).map(|took| took.wall))
        };
        let others = [
            wall(&["apt", "list", "--upgradable"])?,
            wall(&["pkcon", "-p", "get-updates"])?,
            wall(&["/usr/bin/python3", "-c", PYTHON])?,
        ];
        if round == 0 {
            // The first one warms everything up.
            continue;
        }
        count = one.count;
        cached.extend(&one.cached);
        changed.push(one.changed);
        cpu.push(one.cpu);
        solver.push_some(other.map(|took| took.wall));
        solver_cpu.push_some(other.map(|took| took.cpu));
        apt.push_some(others[0]);
        packagekit.push_some(others[1]);
        python.push_some(others[2]);
    }
    let unattended = timed(&bench.host, &["unattended-upgrade", "--dry-run"]);

    let value = cached.median();
    report.row("nothing changed, median", with_unit(value, "ms"), "", (value, "ms"), Bound::AtMost(1.0));
    report.row("the same, p99", with_unit(cached.p99(), "ms"), "", (cached.p99(), "ms"), Bound::Nothing);
    let value = changed.median();
    let ours = with_unit(value, "ms");
    let against = format!("`apt-get -s dist-upgrade` {}", with_unit(solver.median(), "ms"));
    let times = ratio(value, solver.median());
    report.row("after a change, of the time of", &ours, against, (times, "×"), Bound::AtMost(1.05));
    for (who, samples) in
        [("`apt list --upgradable`", &apt), ("`pkcon get-updates`", &packagekit), ("python-apt", &python)]
    {
        let against = format!("{who} {}", with_unit(samples.median(), "ms"));
        report.row("the same", &ours, against, (ratio(value, samples.median()), "×"), Bound::Nothing);
    }
    let value = cpu.mean();
    let ours = with_unit(value, "ms CPU");
    let against = format!("`apt-get -s dist-upgrade` {}", with_unit(solver_cpu.median(), "ms CPU"));
    let times = ratio(value, solver_cpu.median());
    report.row("after a change, of the CPU of", &ours, against, (times, "×"), Bound::Nothing);
    let other = unattended.map(|took| took.cpu);
    let against = format!("`unattended-upgrade --dry-run` {}", with_unit(other, "ms CPU"));
    let times = ratio(other, value);
    report.row("after a change, times less CPU than", &ours, against, (times, "×"), Bound::AtLeast(20.0));
    report.note(format!(
        "{count} updates are available, {} index stanzas are known. All tools see dpkg's status changed just before. \
         The dry run of `unattended-upgrade` is measured once; its time grows with the number of updates. Our CPU is \
         that of the agent and of all that the root side started, in clock ticks, the mean of all rounds.",
        bench.stanzas()?
    ));
    Ok(())
}

struct Ours {
    cached: Samples,
    changed: f64,
    cpu: f64,
    count: usize,
}

fn ours(bench: &Bench) -> Result<Ours> {
    let path = format!("{API}/patches");
    let pid = bench.pid()?;
    bench.on_network(async || {
        let mut connection = bench.target.connect(None).await?;
        bench.touch()?;
        let before = cpu(bench, &pid)?;
        let reply = connection.get(&path, "").await?;
        ensure!(reply.status == 200, "the updates were answered with {}", reply.status);
        let changed = reply.took;
        let mut cached = Samples::default();
        for _ in 0..CACHED {
            cached.push(connection.get(&path, "").await?.took);
        }
        let count = reply.json()?["data"]["total"].as_u64().context("the answer has no total")?;
        // The root side's process is counted when its parent has learnt of its end.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        Ok(Ours { cached, changed, cpu: cpu(bench, &pid)? - before, count: usize::try_from(count)? })
    })
}

/// The milliseconds of CPU that the agent has used, and all children of the host's init that have ended.
fn cpu(bench: &Bench, pid: &str) -> Result<f64> {
    let ticks = |pid: &str, fields: std::ops::Range<usize>| -> Result<f64> {
        let stat = bench.host.read_text(&format!("/proc/{pid}/stat"))?;
        let (_, rest) = stat.rsplit_once(") ").context("a strange stat file")?;
        Ok(rest.split(' ').skip(fields.start).take(fields.len()).filter_map(|n| n.parse::<f64>().ok()).sum())
    };
    Ok((ticks(pid, 11..13)? + ticks("1", 13..15)?) * TICK)
}
