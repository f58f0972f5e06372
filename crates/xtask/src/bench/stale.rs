//! What runs old code, on a host with many processes, against needrestart.

use anyhow::Result;

use super::{
    numbers::{Samples, ratio, with_unit},
    stage::{Bench, timed},
    table::{Bound, Report},
};

/// How many processes there are at the least.
const PROCESSES: usize = 500;

/// Measures in turns.
pub(super) fn measure(bench: &Bench, report: &mut Report, rounds: usize) -> Result<()> {
    report.section("What runs old code, 500 processes");
    bench.host.crowd(PROCESSES)?;
    let (mut ours, mut ours_cpu, mut theirs) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..=rounds {
        let took = timed(&bench.host, &["linux-patch-host", "stale", "--json"]);
        // It takes seconds.
        let other =
            (round < 4).then(|| timed(&bench.host, &["needrestart", "-b", "-r", "l", "-l"])).flatten();
        if round > 0 {
            ours.push_some(took.map(|took| took.wall));
            ours_cpu.push_some(took.map(|took| took.cpu));
            theirs.push_some(other.map(|took| took.wall));
        }
    }
    let (median, other) = (ours.median(), theirs.median());
    let against = format!("`needrestart -b -l` {}", with_unit(other, "ms"));
    report.row("`linux-patch-host stale`", with_unit(median, "ms"), "", (median, "ms"), Bound::AtMost(100.0));
    report.row(
        "the same, times faster than",
        with_unit(median, "ms"),
        against,
        (ratio(other, median), "×"),
        Bound::Nothing,
    );
    let cpu = ours_cpu.mean();
    report.row("the same, processor", with_unit(cpu, "ms CPU"), "", (cpu, "ms"), Bound::Nothing);
    let mappings = bench.host.shell("cat /proc/$(pgrep -xn sleep)/maps | wc -l")?;
    report.note(format!(
        "Each process has {} mappings; the program's own start is included. needrestart has {} rounds.",
        mappings.trim(),
        theirs.len()
    ));
    Ok(())
}
