//! Changes: how soon they are accepted, and what a job costs beyond what the package manager itself takes.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    client::Connection,
    numbers::{Samples, ratio, with_unit},
    stage::{API, Bench, timed},
    table::{Bound, Report},
};

/// About as long as a record of the audit trail.
const RECORD: [u8; 400] = [b'x'; 400];

/// Where the root side keeps the events of jobs.
const EVENTS: &str = "/var/lib/linux_patch_executor/events";

/// apt's hook that looks for outdated services, half a second a run, is left out by the agent as well.
const QUIET: &str = "NEEDRESTART_SUSPEND=1";

/// A request to install packages.
pub(super) fn install(packages: &[String]) -> String {
    let packages: Vec<Value> = packages.iter().map(|name| json!({ "name": name })).collect();
    json!({ "packages": packages }).to_string()
}

/// `lp-bulk-00` and so on.
pub(super) fn bulk(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("lp-bulk-{number:02}")).collect()
}

/// Removes packages, whatever that takes.
pub(super) fn purge(bench: &Bench, packages: &[String]) -> Result<()> {
    let words = packages.iter().map(String::as_str);
    let argv: Vec<&str> = ["apt-get", "-qq", "-y", "purge"].into_iter().chain(words).collect();
    bench.host.exec_ok(&argv).map(drop)
}

/// Starts a job and gives its id and how long the answer took.
pub(super) async fn submit(connection: &mut Connection, body: &str) -> Result<(String, f64)> {
    let reply = connection.post(&format!("{API}/packages"), "", body).await?;
    let text = reply.json()?;
    ensure!(reply.status == 202, "the request was answered with {}: {text}", reply.status);
    let id = text["data"]["job_id"].as_str().context("the answer names no job")?;
    Ok((id.to_owned(), reply.took))
}

/// Waits for the end of a job that must succeed.
pub(super) async fn ended(connection: &mut Connection, id: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        let job = connection.get(&format!("{API}/jobs/{id}"), "").await?.json()?;
        match job["data"]["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("pending" | "running") => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => bail!("job {id} ended otherwise: {job}"),
        }
    }
    bail!("job {id} does not end")
}

/// The events of a job as the root side wrote them.
pub(super) fn events(bench: &Bench, id: &str) -> Result<Vec<Value>> {
    let text = bench.host.read_text(&format!("{EVENTS}/{id}.jsonl"))?;
    text.lines().map(|line| serde_json::from_str(line).context("an event is no JSON")).collect()
}

/// An event's time in milliseconds since 1970.
pub(super) fn at(event: &Value) -> Result<f64> {
    let time: jiff::Timestamp = event["at"].as_str().context("an event without a time")?.parse()?;
    #[expect(clippy::cast_precision_loss, reason = "microseconds are left")]
    Ok(time.as_nanosecond() as f64 / 1e6)
}

/// How soon a change is accepted. `disk` is on the file system on which the agent of `bench` keeps its state.
pub(super) fn acceptance(bench: &Bench, disk: &Path, report: &mut Report, rounds: usize) -> Result<()> {
    report.section("Acceptance of a change, state and audit trail on the machine's disk");
    bench.host.exec_ok(&["apt-get", "-qq", "-y", "install", "lp-plain"])?;
    let (mut accepted, mut raw) = <(Samples, Samples)>::default();
    let mut file = File::create(disk.join("raw"))?;
    let body = install(&["lp-plain".to_owned()]);
    bench.on_network(async || {
        let mut connection = bench.target.connect(None).await?;
        for _ in 0..rounds * 15 {
            let (id, took) = submit(&mut connection, &body).await?;
            accepted.push(took);
            ended(&mut connection, &id).await?;
            for _ in 0..5 {
                let begun = Instant::now();
                file.write_all(&RECORD)?;
                file.sync_data()?;
                raw.push(begun.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok(())
    })?;
    let against = |value| format!("raw fdatasync {}", with_unit(value, "ms"));
    let (value, other) = (accepted.median(), raw.median());
    let ours = with_unit(value, "ms");
    report.row("POST to 202, median", &ours, against(other), (value, "ms"), Bound::AtMost(1.5));
    report.row("the same, times raw", &ours, against(other), (ratio(value, other), "×"), Bound::Nothing);
    let (value, other) = (accepted.p99(), raw.p99());
    let ours = with_unit(value, "ms");
    report.row("the same, p99", ours, against(other), (ratio(value, other), "×"), Bound::AtMost(3.0));
    report.note(format!(
        "{} requests, one after the other, each job ended before the next; {} raw appends of {} bytes with fdatasync \
         in between, to a file beside the agent's.",
        accepted.len(),
        raw.len(),
        RECORD.len()
    ));
    Ok(())
}

#[derive(Default)]
struct Job {
    before: Samples,
    apply: Samples,
    verify: Samples,
    whole: Samples,
    /// From the phase's beginning to the first thing that the tool is reported to do.
    first: Samples,
}

/// What a job costs beyond `apt-get install` of the same packages.
pub(super) fn overhead(bench: &Bench, report: &mut Report, count: usize, rounds: usize) -> Result<()> {
    let packages = bulk(count);
    let words: Vec<&str> = packages.iter().map(String::as_str).collect();
    let bare_argv =
        [&["env", QUIET, "apt-get", "-y", "-o", "Dpkg::Use-Pty=0", "install"], &words[..]].concat();
    let (mut job, mut bare, mut bare_first) = (Job::default(), Samples::default(), Samples::default());
    purge(bench, &packages)?;
    for round in 0..=rounds {
        let measured = one_job(bench, &packages)?;
        purge(bench, &packages)?;
        let took = timed(&bench.host, &bare_argv).map(|took| took.wall);
        purge(bench, &packages)?;
        let first = first_status_line(bench, &words)?;
        purge(bench, &packages)?;
        if round > 0 {
            job.before.extend(&measured.before);
            job.apply.extend(&measured.apply);
            job.verify.extend(&measured.verify);
            job.whole.extend(&measured.whole);
            job.first.extend(&measured.first);
            bare.push_some(took);
            bare_first.push(first);
        }
    }
    let what = if count == 1 { "1 package".to_owned() } else { format!("{count} packages") };
    let (apply, other) = (job.apply.median(), bare.median());
    let (ours, against) =
        (with_unit(apply, "ms"), format!("`apt-get -y install` {}", with_unit(other, "ms")));
    let more = apply.zip(other).map(|(apply, other)| apply - other);
    let allowed = other.map_or(30.0, |other| (other * 0.03).max(30.0));
    report.row(
        format!("{what}: apply phase, more than"),
        &ours,
        &against,
        (more, "ms"),
        Bound::AtMost(allowed),
    );
    for (phase, samples) in [
        ("up to the apply phase (planning, fetching)", &job.before),
        ("verification", &job.verify),
        ("the whole job", &job.whole),
    ] {
        let value = samples.median();
        let times = ratio(value, other);
        report.row(
            format!("{what}: {phase}"),
            with_unit(value, "ms"),
            &against,
            (times, "×"),
            Bound::Nothing,
        );
    }
    let (value, other) = (job.first.median(), bare_first.median());
    let later = value.zip(other).map(|(value, other)| value - other);
    let against = format!("`apt-get` alone {}", with_unit(other, "ms"));
    report.row(
        format!("{what}: first event, later than the tool's first status line"),
        with_unit(value, "ms"),
        against,
        (later, "ms"),
        Bound::AtMost(10.0),
    );
    Ok(())
}

/// What is to be known of the numbers of [`overhead`].
pub(super) fn explain(report: &mut Report, rounds: usize) {
    report.note(format!(
        "What takes seconds has {rounds} rounds. `apt-get` runs like the agent's, without needrestart's hook, which would add half a second. The first event \
         counts from the announcement of the apply phase, the tool's first status line from its start.",
    ));
}

fn one_job(bench: &Bench, packages: &[String]) -> Result<Job> {
    let body = install(packages);
    let id = bench.on_network(async || {
        let mut connection = bench.target.connect(None).await?;
        let (id, _) = submit(&mut connection, &body).await?;
        ended(&mut connection, &id).await?;
        Ok(id)
    })?;
    let events = events(bench, &id)?;
    let phase = |name: &str| {
        let found = events.iter().find(|event| event["event"] == "phase" && event["phase"] == name);
        at(found.with_context(|| format!("job {id} had no phase {name}"))?)
    };
    let begun = at(events.first().context("a job without events")?)?;
    let finished = at(events.last().context("a job without events")?)?;
    let (applying, verifying) = (phase("applying")?, phase("verifying")?);
    let mut job = Job::default();
    job.before.push(applying - begun);
    job.apply.push(verifying - applying);
    job.verify.push(finished - verifying);
    job.whole.push(finished - begun);
    for event in events.iter().filter(|event| event["event"] == "progress") {
        let first = at(event)? - applying;
        if first >= 0.0 {
            job.first.push(first);
            break;
        }
    }
    Ok(job)
}

/// How long `apt-get` takes to its first line on the status descriptor.
fn first_status_line(bench: &Bench, packages: &[&str]) -> Result<f64> {
    let script =
        "echo; exec apt-get -y -o Dpkg::Use-Pty=0 -o APT::Status-Fd=3 install \"$@\" 3>&1 >/dev/null 2>&1";
    let mut command = bench.host.command(&[&["/bin/sh", "-c", script, "sh"], packages].concat())?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    lines.next().context("the shell said nothing")??;
    let begun = Instant::now();
    lines.next().context("apt-get said nothing")??;
    let first = begun.elapsed().as_secs_f64() * 1e3;
    lines.for_each(drop);
    ensure!(child.wait()?.success(), "apt-get failed");
    Ok(first)
}
