//! What the agent costs while nothing happens, and after a storm.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{
    numbers::{digits, ratio},
    stage::{API, Bench},
    table::{Bound, Report},
};

/// Connections of the storm, and from how many addresses they come: one address may have 256.
const STORM: usize = 1000;
const ADDRESSES: u8 = 5;

/// How many handshakes of one address are under way at once; 16 would be allowed.
const AT_ONCE: usize = 8;

/// How long nothing has happened when an agent counts as idle. Twice in a minute it sees what it can give back.
const QUIET: Duration = Duration::from_secs(35);

/// What a process holds, in MB.
#[derive(Debug, Clone, Copy)]
struct Memory {
    pss: f64,
    rss: f64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PSS {}, RSS {} MB", digits(self.pss), digits(self.rss))
    }
}

fn memory(bench: &Bench, pid: &str) -> Result<Memory> {
    let text = bench.host.read_text(&format!("/proc/{pid}/smaps_rollup"))?;
    let value = |key: &str| -> Result<f64> {
        let line =
            text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    };
    Ok(Memory { pss: value("Pss:")?, rss: value("Rss:")? })
}

/// How often the process has gone to sleep, which is once more than it was woken.
fn sleeps(bench: &Bench, pid: &str) -> Result<f64> {
    let script =
        format!("cat /proc/{pid}/task/*/status | awk '/^voluntary/ {{ n += $2 }} END {{ print n }}'");
    Ok(bench.host.shell(&script)?.trim().parse()?)
}

/// Measures.
pub(super) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    report.section(&format!("An idle agent, {} packages", bench.installed()?));
    bench.restart()?;
    bench.on_network(async || {
        bench.target.once(&format!("{API}/patches")).await?;
        bench.target.once(&format!("{API}/packages")).await.map(drop)
    })?;
    std::thread::sleep(QUIET);
    let pid = bench.pid()?;
    let idle = memory(bench, &pid)?;
    report.row("PSS", idle.to_string(), "", (Some(idle.pss), "MB"), Bound::AtMost(5.0));
    report.row("RSS", idle.to_string(), "", (Some(idle.rss), "MB"), Bound::AtMost(9.0));
    let other = packagekitd(bench);
    let against =
        other.map_or_else(|| "packagekitd not measured".to_owned(), |other| format!("packagekitd {other}"));
    let part = ratio(other.map(|other| other.pss), Some(idle.pss));
    report.row("PSS, times less than", idle.to_string(), against, (part, "×"), Bound::AtLeast(7.0));

    let before = sleeps(bench, &pid)?;
    std::thread::sleep(Duration::from_secs(10));
    let woken = sleeps(bench, &pid)? - before;
    report.row("wake-ups in 10 s, all threads", digits(woken), "", (Some(woken), ""), Bound::AtMost(1.0));

    storm(bench)?;
    let begun = Instant::now();
    let mut after = memory(bench, &pid)?;
    let at_once = after;
    while after.pss > idle.pss * 1.5 && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_secs(5));
        after = memory(bench, &pid)?;
    }
    let waited = begun.elapsed().as_secs();
    report.row(
        format!("PSS {waited} s after a storm of {STORM} connections"),
        after.to_string(),
        format!("idle {idle}"),
        (ratio(Some(after.pss), Some(idle.pss)), "×"),
        Bound::AtMost(1.5),
    );
    report.note(format!(
        "Idle: restarted, both lists read once, {} s later. One wake-up is allowed for the service manager's watchdog. \
         The storm: {STORM} full handshakes, each with a request, all open at once and then closed; right after it \
         the agent had {at_once}. salt-minion, which Debian does not package, is not measured here.",
        QUIET.as_secs()
    ));
    Ok(())
}

fn packagekitd(bench: &Bench) -> Option<Memory> {
    bench.host.exec_ok(&["pkcon", "-p", "get-packages", "--filter", "installed"]).ok()?;
    let pid = bench.host.exec_ok(&["pidof", "packagekitd"]).ok()?;
    memory(bench, pid.trim()).ok()
}

fn storm(bench: &Bench) -> Result<()> {
    let own = bench.network.address().octets();
    let addresses: Vec<Ipv4Addr> =
        (0..ADDRESSES).map(|number| Ipv4Addr::new(own[0], own[1], own[2], 2 + number)).collect();
    for address in &addresses {
        bench.network.exec(&["ip", "addr", "add", &format!("{address}/24"), "dev", "br0"])?;
    }
    let each = STORM / addresses.len() / AT_ONCE;
    bench.on_network(async || {
        let mut tasks = Vec::new();
        for address in addresses {
            for _ in 0..AT_ONCE {
                let target = bench.target.clone();
                tasks.push(tokio::spawn(async move {
                    let mut open = Vec::new();
                    for _ in 0..each {
                        let mut connection = target.connect(Some(address)).await?;
                        connection.get(&format!("{API}/packages"), "").await?;
                        open.push(connection);
                    }
                    anyhow::Ok(open)
                }));
            }
        }
        let mut open = Vec::new();
        for task in tasks {
            open.extend(task.await??);
        }
        drop(open);
        Ok(())
    })
}
