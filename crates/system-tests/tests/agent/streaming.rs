//! Jobs followed live over a WebSocket.

use std::{collections::HashSet, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use patch_client::{Client, ClientConfig};
use patch_types::{JobId, api::ServerMessage};
use serde_json::{Value, json};
use system_tests::{trials::trial, wait};
use tokio::sync::Semaphore;

use crate::{
    changing::{boot_with_slow, let_go, start_slow},
    fixture::Agent,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_job_is_streamed_once_and_in_order", a_job_is_streamed_once_and_in_order),
        trial("a_stream_survives_the_daemons_restart", a_stream_survives_the_daemons_restart),
        trial("broken_frames_do_no_harm", broken_frames_do_no_harm),
    ]
}

fn client(agent: &Agent) -> Result<Client> {
    let address = agent.host.ip().to_string().parse()?;
    let config =
        ClientConfig::new(address, agent.pem("ca.pem"), agent.pem("alice.pem"), agent.pem("alice.key.pem"));
    Ok(Client::new(config)?)
}

/// What a number of subscribers are told from now to the job's end. `meanwhile` runs once all of them have been told
/// something.
pub(crate) fn follow(
    agent: &Agent,
    id: JobId,
    subscribers: usize,
    meanwhile: impl FnOnce() -> Result<()> + Send,
) -> Result<Vec<Vec<ServerMessage>>> {
    let client = client(agent)?;
    let (send, receive) = std::sync::mpsc::channel();
    let follow = move || -> Result<Vec<Vec<ServerMessage>>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            // The agent lets one address have 16 unfinished handshakes.
            let handshakes = Arc::new(Semaphore::new(8));
            let mut tasks = Vec::new();
            for _ in 0..subscribers {
                let (client, send, handshakes) = (client.clone(), send.clone(), Arc::clone(&handshakes));
                tasks.push(tokio::spawn(async move {
                    let mut told = Vec::new();
                    let mut shaking = Some(handshakes.acquire_owned().await?);
                    let ended = client.follow_to_end(id, |message| {
                        if shaking.take().is_some() {
                            // Nobody listens any more once the test has failed.
                            let _ = send.send(());
                        }
                        told.push(message.clone());
                    });
                    let limit = tokio::time::timeout(Duration::from_secs(100), ended);
                    limit.await.context("the stream does not end")??;
                    anyhow::Ok(told)
                }));
            }
            let mut all = Vec::new();
            for task in tasks {
                all.push(task.await??);
            }
            Ok(all)
        })
    };
    std::thread::scope(|scope| {
        let followed = scope.spawn(|| agent.network.run_in(follow));
        for _ in 0..subscribers {
            receive.recv_timeout(Duration::from_secs(30)).context("a subscriber was told nothing")?;
        }
        meanwhile()?;
        followed.join().map_err(|_| anyhow::anyhow!("a subscriber panicked"))?
    })
}

/// The state comes first, the end last, and each line of the log once and in order.
pub(crate) fn ensure_in_order(told: &[ServerMessage]) -> Result<Vec<u64>> {
    ensure!(matches!(told.first(), Some(ServerMessage::JobStatus(_))), "{:?}", told.first());
    ensure!(matches!(told.last(), Some(ServerMessage::JobComplete(_))), "{:?}", told.last());
    let ends = told.iter().filter(|message| matches!(message, ServerMessage::JobComplete(_))).count();
    let seqs: Vec<u64> = told
        .iter()
        .filter_map(
            |message| if let ServerMessage::JobLog(log) = message { Some(log.line.seq) } else { None },
        )
        .collect();
    ensure!(ends == 1 && seqs.is_sorted_by(|a, b| a < b), "{ends} ends, {seqs:?}");
    let errors = told.iter().find(|message| matches!(message, ServerMessage::Error(_)));
    ensure!(errors.is_none(), "{errors:?}");
    let states = told.iter().filter_map(|message| match message {
        ServerMessage::JobStatus(job) | ServerMessage::JobComplete(job) => Some(job.last_seq),
        _ => None,
    });
    ensure!(states.is_sorted(), "states run backwards");
    Ok(seqs)
}

fn recorded(agent: &Agent, id: &str) -> Result<Vec<u64>> {
    let job = agent.job(id)?;
    ensure!(job["status"] == "completed" && job["outcome"] == "applied", "{job:#}");
    Ok(job["log"].as_array().context("no log")?.iter().filter_map(|line| line["seq"].as_u64()).collect())
}

fn a_job_is_streamed_once_and_in_order() -> Result<()> {
    let agent = boot_with_slow("streaming")?;
    let id = start_slow(&agent)?;
    let all = follow(&agent, id.parse()?, 20, || let_go(&agent))?;
    let recorded = recorded(&agent, &id)?;
    ensure!(!recorded.is_empty() && all.len() == 20);
    let mut lines = HashSet::new();
    for told in &all {
        ensure!(ensure_in_order(told)? == recorded, "a subscriber was told another log than {recorded:?}");
        // What came after the subscription was the same for all, message by message.
        let tail: Vec<String> =
            told.iter().rev().take(5).map(serde_json::to_string).collect::<Result<_, _>>()?;
        lines.insert(tail);
    }
    ensure!(lines.len() == 1, "subscribers were told different things: {lines:?}");
    let told = all.first().context("nobody")?;
    let live = told.iter().filter(|message| matches!(message, ServerMessage::JobStatus(_))).count();
    ensure!(live >= 2, "no state came after the first: {told:?}");
    // The same for one who comes when all is over.
    let late = follow(&agent, id.parse()?, 1, || Ok(()))?;
    ensure!(ensure_in_order(late.first().context("nobody")?)? == recorded, "{late:?}");
    Ok(())
}

fn a_stream_survives_the_daemons_restart() -> Result<()> {
    let agent = boot_with_slow("resuming")?;
    let id = start_slow(&agent)?;
    let all = follow(&agent, id.parse()?, 2, || {
        agent.host.exec_ok(&["systemctl", "restart", "linux-patch-api"])?;
        agent.wait_until_up()?;
        agent.host.exec_ok(&["systemctl", "kill", "--signal=KILL", "linux-patch-api"])?;
        agent.wait_until_up()?;
        let_go(&agent)
    })?;
    let recorded = recorded(&agent, &id)?;
    for told in &all {
        ensure!(ensure_in_order(told)? == recorded, "{told:?} against {recorded:?}");
    }
    Ok(())
}

const UPGRADE: &str = "GET /api/v1/ws/jobs HTTP/1.1\r\nhost: agent\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A frame of a client, masked with zeros, which leave the payload as it is.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match u16::try_from(payload.len()) {
        Ok(length @ 0..=125) => frame.push(0x80 | length.to_be_bytes()[1]),
        Ok(length) => {
            frame.push(0x80 | 126);
            frame.extend(length.to_be_bytes());
        }
        Err(_) => {
            frame.push(0x80 | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// What the agent says to these frames until the connection is closed.
fn say(agent: &Agent, frames: &[Vec<u8>]) -> Result<String> {
    let goodbye = frame(8, &1000_u16.to_be_bytes());
    let bytes = [UPGRADE.as_bytes(), &frames.concat(), &goodbye].concat();
    agent.raw(&bytes)
}

/// The messages in a stream of frames, which are one JSON object each.
fn messages(told: &str) -> Vec<Value> {
    let starts: Vec<usize> = told.match_indices("{\"type\":\"").map(|(at, _)| at).collect();
    let read = |at: &usize| {
        let text = told.get(*at..)?;
        serde_json::Deserializer::from_str(text).into_iter::<Value>().next()?.ok()
    };
    starts.iter().filter_map(read).collect()
}

fn broken_frames_do_no_harm() -> Result<()> {
    let agent = Agent::boot("frames", &[])?;
    let pid = agent.pid()?;
    let ping = || frame(1, b"{\"type\":\"ping\"}");

    let told = say(&agent, &[ping(), frame(9, b"are you there")])?;
    ensure!(told.starts_with("HTTP/1.1 101"), "no WebSocket: {told}");
    ensure!(messages(&told).iter().any(|message| message["type"] == "pong"), "{told}");
    // The answer to a ping of the protocol carries its payload.
    ensure!(told.contains("are you there"), "{told}");

    let unknown = "0191e0a0-1111-7222-8333-444455556666";
    let subscribe = frame(1, json!({"type": "subscribe", "job_id": unknown}).to_string().as_bytes());
    let told = messages(&say(&agent, &[subscribe, ping()])?);
    ensure!(
        told.iter().any(|message| message["type"] == "error"
            && message["payload"]["code"] == "JOB_NOT_FOUND"
            && message["payload"]["job_id"] == unknown)
            && told.iter().any(|message| message["type"] == "pong"),
        "{told:?}"
    );

    // A message that cannot be understood is answered, and the connection goes on.
    for malformed in [
        "{",
        "[]",
        "hello",
        "{\"type\":\"reboot\"}",
        "{\"type\":\"subscribe\"}",
        "{\"type\":\"subscribe\",\"job_id\":7}",
        "{\"type\":\"unsubscribe\",\"job_id\":\"0191e0a0-1111-7222-8333-444455556666\",\"extra\":1}",
    ] {
        let told = messages(&say(&agent, &[frame(1, malformed.as_bytes()), ping()])?);
        ensure!(
            told.iter()
                .any(|message| message["type"] == "error" && message["payload"]["code"] == "INVALID_REQUEST")
                && told.iter().any(|message| message["type"] == "pong"),
            "{malformed}: {told:?}"
        );
    }
    // What breaks the protocol ends the connection, and nothing else.
    let mut unmasked = ping();
    unmasked[1] &= 0x7f;
    for (what, broken) in [
        ("binary", frame(2, &[0, 159, 146, 150])),
        ("oversized", frame(1, &vec![b' '; 100_000])),
        ("unmasked", unmasked),
        ("not UTF-8", frame(1, &[0xff, 0xfe])),
        ("reserved opcode", frame(5, b"?")),
        ("fragmented ping", {
            let mut fragment = frame(9, b"x");
            fragment[0] &= 0x7f;
            fragment
        }),
        ("a length that never comes", vec![0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
    ] {
        // What was sent and not read any more may reset the connection, and then even the first answer is lost.
        let told = say(&agent, &[broken, ping()])?;
        ensure!(told.is_empty() || told.starts_with("HTTP/1.1 101"), "{what}: {told}");
        ensure!(
            agent.get("/health")?.status == 200 && agent.pid()? == pid,
            "the agent did not survive {what}"
        );
    }
    // Connections that were left are forgotten.
    wait::until("the connections to be closed", Duration::from_secs(10), || {
        let open = agent.host.shell("ss -Htn state established '( sport = :12443 )' | wc -l")?;
        Ok((open.trim() == "0").then_some(()))
    })
}
