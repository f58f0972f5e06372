//! The list of installed packages, from the agent and from everybody else.

use anyhow::{Result, ensure};

use super::{
    numbers::{Samples, ratio, with_unit},
    stage::{API, Bench, timed},
    table::{Bound, Report},
};

const PYTHON: &str = "import apt; [(p.name, p.installed.version) for p in apt.Cache() if p.is_installed]";

/// How often the warm list is read in each round.
const WARM: usize = 40;

#[derive(Default)]
struct Measured {
    bytes: usize,
    warm: Samples,
    unchanged: Samples,
    first: Samples,
    dpkg: Samples,
    apt: Samples,
    packagekit: Samples,
    python: Samples,
}

/// Measures with as many packages as there are, and with 3,800.
pub(super) fn measure(bench: &Bench, report: &mut Report, rounds: usize) -> Result<()> {
    let packages = bench.installed()?;
    report.section(&format!("List of what is installed, {packages} packages"));
    let small = measured(bench, rounds)?;
    rows(&small, report, Limits { warm: 1.0, warm_p99: 3.0, first: 2.0 });
    report.note(format!("The answer has {} KB.", small.bytes / 1000));

    let before = bench.grow(3800)?;
    let large = measured(bench, rounds.min(3))?;
    bench.write_status(&before)?;
    report.section("List of what is installed, 3,800 packages");
    rows(&large, report, Limits { warm: f64::NAN, warm_p99: f64::NAN, first: 6.0 });
    let more = 3800.0 - f64::from(u32::try_from(packages)?);
    let growth =
        large.warm.median().zip(small.warm.median()).map(|(large, small)| (large - small) / more * 1e3);
    report.row("each further package, warm", with_unit(growth, "µs"), "", (growth, "µs"), Bound::AtMost(0.5));
    report.note(format!("The answer has {} KB.", large.bytes / 1000));
    Ok(())
}

fn measured(bench: &Bench, rounds: usize) -> Result<Measured> {
    let mut all = Measured::default();
    for round in 0..=rounds {
        let one = round_of(bench)?;
        // The first one warms everything up.
        if round > 0 {
            all.bytes = one.bytes;
            all.warm.extend(&one.warm);
            all.unchanged.extend(&one.unchanged);
            all.first.extend(&one.first);
            all.dpkg.extend(&one.dpkg);
            all.apt.extend(&one.apt);
            all.packagekit.extend(&one.packagekit);
            all.python.extend(&one.python);
        }
    }
    Ok(all)
}

fn round_of(bench: &Bench) -> Result<Measured> {
    let mut one = Measured::default();
    let path = format!("{API}/packages");
    bench.on_network(async || {
        // So that the solver does not run in the background meanwhile.
        bench.target.once(&format!("{API}/patches")).await?;
        let mut connection = bench.target.connect(None).await?;
        let reply = connection.get(&path, "").await?;
        ensure!(reply.status == 200, "the list was answered with {}", reply.status);
        let tag = format!("If-None-Match: {}\r\n", reply.header("etag").unwrap_or_default());
        one.bytes = reply.body.len();
        for _ in 0..WARM {
            one.warm.push(connection.get(&path, "").await?.took);
            let reply = connection.get(&path, &tag).await?;
            ensure!(reply.status == 304, "an unchanged list was answered with {}", reply.status);
            one.unchanged.push(reply.took);
        }
        bench.touch()?;
        one.first.push(connection.get(&path, "").await?.took);
        // What the change has made stale is made fresh now, not under the next measurement.
        bench.target.once(&format!("{API}/patches")).await.map(drop)
    })?;
    let wall = |argv: &[&str]| timed(&bench.host, argv).map(|took| took.wall);
    one.dpkg.push_some(wall(&["dpkg-query", "-W"]));
    one.apt.push_some(wall(&["apt", "list", "--installed"]));
    one.packagekit.push_some(wall(&["pkcon", "-p", "get-packages", "--filter", "installed"]));
    one.python.push_some(wall(&["/usr/bin/python3", "-c", PYTHON]));
    Ok(one)
}

#[derive(Clone, Copy)]
struct Limits {
    warm: f64,
    warm_p99: f64,
    first: f64,
}

fn rows(all: &Measured, report: &mut Report, limits: Limits) {
    let at_most = |limit: f64| if limit.is_nan() { Bound::Nothing } else { Bound::AtMost(limit) };
    let warm = all.warm.median();
    let ours = with_unit(warm, "ms");
    report.row("warm, over mTLS, median", &ours, "", (warm, "ms"), at_most(limits.warm));
    let p99 = all.warm.p99();
    report.row("the same, p99", with_unit(p99, "ms"), "", (p99, "ms"), at_most(limits.warm_p99));
    for (who, samples, promised) in [
        ("`dpkg-query -W`", &all.dpkg, 5.0),
        ("`apt list --installed`", &all.apt, 150.0),
        ("`pkcon get-packages`", &all.packagekit, 200.0),
        ("python-apt", &all.python, f64::NAN),
    ] {
        let other = samples.median();
        let bound = if promised.is_nan() { Bound::Nothing } else { Bound::AtLeast(promised) };
        let against = format!("{who} {}", with_unit(other, "ms"));
        report.row("warm, times faster than", &ours, against, (ratio(other, warm), "×"), bound);
    }
    let unchanged = all.unchanged.median();
    report.row("304 by ETag, median", with_unit(unchanged, "ms"), "", (unchanged, "ms"), Bound::AtMost(0.2));
    let first = all.first.median();
    let ours = with_unit(first, "ms");
    report.row("first after a change of dpkg's status", &ours, "", (first, "ms"), at_most(limits.first));
    let other = all.dpkg.median();
    let against = format!("`dpkg-query -W` {}", with_unit(other, "ms"));
    report.row(
        "the same, times faster than",
        &ours,
        against,
        (ratio(other, first), "×"),
        Bound::AtLeast(4.0),
    );
}
