//! Events: how long after they happened a subscriber has them, alone and among a hundred.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    jobs,
    numbers::{Samples, ratio, with_unit},
    stage::{API, Bench},
    table::{Bound, Report},
};

/// How many look on at once.
const CROWD: usize = 100;

/// Packages of the job that is looked on.
const PACKAGES: usize = 20;

/// Measures.
pub(super) fn measure(bench: &Bench, report: &mut Report, rounds: usize) -> Result<()> {
    report.section("Events, from the root side's clock to the WebSocket client's");
    let (mut alone, mut crowd) = <(Samples, Samples)>::default();
    let packages = jobs::bulk(PACKAGES);
    for _ in 0..rounds.div_ceil(3) {
        for (watchers, samples) in [(1, &mut alone), (CROWD, &mut crowd)] {
            samples.extend(&lag(bench, &packages, watchers)?);
            jobs::purge(bench, &packages)?;
        }
    }
    let (one, many) = (alone.p99(), crowd.p99());
    let median = alone.median();
    report.row("1 subscriber, median", with_unit(median, "ms"), "", (median, "ms"), Bound::Nothing);
    report.row("1 subscriber, p99", with_unit(one, "ms"), "", (one, "ms"), Bound::AtMost(5.0));
    let median = crowd.median();
    let ours = with_unit(median, "ms");
    let against = format!("1 subscriber {}", with_unit(alone.median(), "ms"));
    let times = ratio(median, alone.median());
    report.row(format!("{CROWD} subscribers, median"), ours, against, (times, "×"), Bound::Nothing);
    let against = format!("1 subscriber {}", with_unit(one, "ms"));
    let ours = with_unit(many, "ms");
    report.row(
        format!("{CROWD} subscribers, p99"),
        ours,
        against,
        (ratio(many, one), "×"),
        Bound::AtMost(2.0),
    );
    report.note(format!(
        "Jobs that install {PACKAGES} packages; {} messages to the one, {} to the {CROWD}. All subscribers are one \
         process on the same processors.",
        alone.len(),
        crowd.len()
    ));
    Ok(())
}

/// The lag of each message of a job, in milliseconds, over all of `watchers`.
fn lag(bench: &Bench, packages: &[String], watchers: usize) -> Result<Samples> {
    let body = jobs::install(packages);
    let (id, heard) = bench.on_network(async || {
        let mut sockets = Vec::new();
        for _ in 0..watchers {
            let connection = bench.target.connect(None).await?;
            let mut socket = connection.upgrade(&format!("{API}/ws/jobs")).await?;
            socket.send(r#"{"type":"subscribe_all"}"#).await?;
            sockets.push(socket);
        }
        let mut connection = bench.target.connect(None).await?;
        let mut tasks = Vec::new();
        for mut socket in sockets {
            tasks.push(tokio::spawn(async move {
                let mut heard: Vec<(SystemTime, Vec<u8>)> = Vec::new();
                loop {
                    let message = socket.next().await?;
                    let is_last = message.1.starts_with(br#"{"type":"job_complete""#);
                    heard.push(message);
                    if is_last {
                        return anyhow::Ok(heard);
                    }
                }
            }));
        }
        // What was there before the job began is read before it does.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let (id, _) = jobs::submit(&mut connection, &body).await?;
        let mut heard = Vec::new();
        for task in tasks {
            heard.extend(task.await??);
        }
        Ok((id, heard))
    })?;
    let events = jobs::events(bench, &id)?;
    let mut samples = Samples::default();
    for (received, message) in &heard {
        let message: Value = serde_json::from_slice(message).context("a message is no JSON")?;
        let payload = &message["payload"];
        let seq = &payload[if message["type"] == "job_log" { "seq" } else { "last_seq" }];
        // A job that waits for its turn has had no event yet.
        let event = events.iter().find(|event| event["seq"] == *seq);
        if let Some(event) = event.filter(|_| payload["job_id"] == id.as_str()) {
            let received = received.duration_since(UNIX_EPOCH)?.as_secs_f64() * 1e3;
            samples.push(received - jobs::at(event)?);
        }
    }
    Ok(samples)
}
