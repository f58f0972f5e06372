use std::{
    pin::Pin,
    task::{Context, Poll},
};

use patch_types::{EventKind, JobStatus, Outcome, Phase};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::{PollSendError, PollSender};
use uuid::Uuid;

use super::*;
use crate::jobs::{
    stream::{FEED, OLD_LOGS},
    testing::{Root, end_of, ended, log, submission, until, within},
};

/// A socket whose other end is in the test.
struct Socket {
    incoming: mpsc::Receiver<Message>,
    outgoing: PollSender<Message>,
}

impl Stream for Socket {
    type Item = Result<Message, PollSendError<Message>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.incoming.poll_recv(cx).map(|message| message.map(Ok))
    }
}

impl Sink<Message> for Socket {
    type Error = PollSendError<Message>;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.outgoing.poll_ready_unpin(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), Self::Error> {
        self.outgoing.start_send_unpin(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.outgoing.poll_flush_unpin(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.outgoing.poll_close_unpin(cx)
    }
}

struct Client {
    to: mpsc::Sender<Message>,
    from: mpsc::Receiver<Message>,
}

impl Client {
    /// Connects over a socket that holds so many messages on their way.
    fn connect(jobs: &Jobs, room: usize, patience: Patience) -> Self {
        let (to, incoming) = mpsc::channel(room);
        let (outgoing, from) = mpsc::channel(room);
        let jobs = jobs.clone();
        tokio::spawn(async move {
            run(Socket { incoming, outgoing: PollSender::new(outgoing) }, &jobs, patience).await;
        });
        Self { to, from }
    }

    async fn say(&self, message: Value) {
        self.to.send(Message::Text(message.to_string().into())).await.unwrap();
    }

    async fn next(&mut self) -> Option<Message> {
        within(self.from.recv()).await
    }

    async fn hear(&mut self) -> Value {
        match self.next().await {
            Some(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
            other => panic!("no text but {other:?}"),
        }
    }

    /// Everything up to the close, and its code.
    async fn rest(&mut self) -> (Vec<Value>, Option<u16>) {
        let mut heard = Vec::new();
        loop {
            match self.next().await {
                Some(Message::Text(text)) => heard.push(serde_json::from_str(&text).unwrap()),
                Some(Message::Close(frame)) => return (heard, frame.map(|f| f.code)),
                Some(_) => {}
                None => return (heard, None),
            }
        }
    }
}

fn kind(message: &Value) -> &str {
    message["type"].as_str().unwrap()
}

async fn job(jobs: &Jobs, root: &Root) -> JobId {
    let id = jobs.submit(submission()).await.unwrap().job.job_id;
    root.begun(id).await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_gets_the_state_the_log_and_then_each_event_once() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = job(&jobs, &root).await;
    root.emit(id, log("one"));
    root.emit(id, log("two"));
    until(&jobs, id, |job| job.log.len() == 2).await;

    let mut client = Client::connect(&jobs, 16, Patience::default());
    client.say(json!({"type": "subscribe", "job_id": id})).await;
    let state = client.hear().await;
    assert_eq!((kind(&state), state["payload"]["status"].as_str()), ("job_status", Some("running")));
    assert_eq!(
        (state["payload"]["output"].clone(), state["payload"]["log"].clone()),
        (Value::Null, json!([]))
    );
    root.emit(id, log("three"));
    root.emit(id, EventKind::Phase { phase: Phase::Applying });
    root.complete(id);
    let mut lines = Vec::new();
    let last = loop {
        let message = client.hear().await;
        match kind(&message) {
            "job_log" => lines.push((message["payload"]["seq"].clone(), message["payload"]["line"].clone())),
            "job_status" => assert_eq!(message["payload"]["phase"], "applying"),
            _ => break message,
        }
    };
    assert_eq!(lines, [(json!(2), json!("one")), (json!(3), json!("two")), (json!(4), json!("three"))]);
    assert_eq!((kind(&last), last["payload"]["status"].as_str()), ("job_complete", Some("completed")));

    // Of an ended job the same comes from the disk.
    client.say(json!({"type": "subscribe", "job_id": id})).await;
    let mut kinds = Vec::new();
    while kinds.last().is_none_or(|k| k != "job_complete") {
        kinds.push(kind(&client.hear().await).to_owned());
    }
    assert_eq!(kinds, ["job_status", "job_log", "job_log", "job_log", "job_complete"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_all_sees_jobs_to_come() {
    let root = Root::new();
    let jobs = root.open().await;
    let before = job(&jobs, &root).await;
    until(&jobs, before, |job| job.status == JobStatus::Running).await;
    let mut client = Client::connect(&jobs, 64, Patience::default());
    client.say(json!({"type": "subscribe_all"})).await;
    assert_eq!(client.hear().await["payload"]["job_id"], json!(before));
    client.say(json!({"type": "unsubscribe", "job_id": before})).await;
    client.say(json!({"type": "ping"})).await;
    assert_eq!(kind(&client.hear().await), "pong");
    root.complete(before);
    end_of(&jobs, before).await;

    let after = job(&jobs, &root).await;
    root.complete(after);
    let mut kinds = Vec::new();
    while kinds.last().is_none_or(|k| k != "job_complete") {
        let message = client.hear().await;
        assert_eq!(message["payload"]["job_id"], json!(after), "nothing more of what it unsubscribed from");
        kinds.push(kind(&message).to_owned());
    }
    assert_eq!(kinds, ["job_status", "job_status", "job_complete"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_answered_and_the_connection_stays() {
    let root = Root::new();
    let jobs = root.open().await;
    let mut client = Client::connect(&jobs, 16, Patience::default());
    for nonsense in [
        "{",
        "[]",
        r#"["ping"]"#,
        r#"{"type":"dance"}"#,
        r#"{"type":"subscribe"}"#,
        r#"{"type":"subscribe","job_id":"x"}"#,
    ] {
        client.to.send(Message::Text(nonsense.into())).await.unwrap();
        let answer = client.hear().await;
        assert_eq!((kind(&answer), answer["payload"]["code"].as_str()), ("error", Some("INVALID_REQUEST")));
    }
    client.to.send(Message::Binary(vec![1, 2].into())).await.unwrap();
    assert_eq!(client.hear().await["payload"]["code"], "INVALID_REQUEST");
    let unknown = Uuid::now_v7();
    client.say(json!({"type": "subscribe", "job_id": unknown})).await;
    let answer = client.hear().await;
    assert_eq!(answer["payload"]["code"], "JOB_NOT_FOUND");
    assert_eq!(answer["payload"]["job_id"], json!(unknown));
    client.say(json!({"type": "ping"})).await;
    assert_eq!(kind(&client.hear().await), "pong");
    client.to.send(Message::Text(" ".repeat(MAX_MESSAGE + 1).into())).await.unwrap();
    assert_eq!(client.rest().await, (vec![], Some(close_code::SIZE)));
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_are_bounded() {
    let root = Root::new();
    let jobs = root.open().await;
    let mut client = Client::connect(&jobs, 16, Patience::default());
    let mut last = String::new();
    for _ in 0..=MAX_SUBSCRIPTIONS {
        let id = jobs.submit(submission()).await.unwrap().job.job_id;
        client.say(json!({"type": "subscribe", "job_id": id})).await;
        loop {
            let message = client.hear().await;
            if kind(&message) == "error" {
                last = message["payload"]["code"].as_str().unwrap().to_owned();
                break;
            }
            if message["payload"]["job_id"] == json!(id) {
                break;
            }
        }
    }
    assert_eq!(last, "INVALID_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_cut_off_and_the_others_are_not() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = job(&jobs, &root).await;
    let mut slow = Client::connect(&jobs, 1, Patience::default());
    slow.say(json!({"type": "subscribe", "job_id": id})).await;
    assert_eq!(kind(&slow.hear().await), "job_status");
    let mut quick = jobs.subscriber();
    quick.subscribe(id).await.unwrap();
    let count = 2 * FEED;
    for n in 0..count {
        root.emit(id, log(&n.to_string()));
        // In step with the quick one: it is the slow one that is to be tested.
        while !within(quick.next()).await.unwrap().contains("job_log") {}
    }
    let (heard, code) = slow.rest().await;
    assert_eq!(code, Some(close_code::AGAIN));
    let last = heard.last().unwrap();
    assert_eq!((kind(last), last["payload"]["code"].as_str()), ("error", Some("SERVICE_UNHEALTHY")));
    assert!(heard.len() < BATCH + 8, "{} messages were buffered", heard.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_serialised_once_for_all() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = job(&jobs, &root).await;
    root.emit(id, log("before"));
    until(&jobs, id, |job| job.log.len() == 1).await;
    let (mut one, mut two) = (jobs.subscriber(), jobs.subscriber());
    let (first, second) = (one.subscribe(id).await.unwrap(), two.subscribe(id).await.unwrap());
    let (first, second): (Vec<_>, Vec<_>) = (first.collect(), second.collect());
    assert_eq!(first[1].as_ptr(), second[1].as_ptr(), "the log so far");
    root.emit(id, log("after"));
    let (first, second) = (within(one.next()).await.unwrap(), within(two.next()).await.unwrap());
    assert_eq!(first.as_ptr(), second.as_ptr(), "and what follows");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_peer_is_given_up_and_a_living_one_is_not() {
    let root = Root::new();
    let jobs = root.open().await;
    let patience = Patience { ping: Duration::from_millis(100), ..Patience::default() };
    let mut dead = Client::connect(&jobs, 16, patience);
    let mut pings = 0;
    while let Some(message) = dead.next().await {
        assert!(matches!(message, Message::Ping(_)));
        pings += 1;
    }
    assert_eq!(pings, MAX_UNANSWERED);

    let mut living = Client::connect(&jobs, 16, patience);
    for _ in 0..3 {
        assert!(matches!(living.next().await, Some(Message::Ping(_))));
        living.to.send(Message::Pong(Vec::new().into())).await.unwrap();
    }

    let stuck = Patience { send: Duration::from_millis(20), ..Patience::default() };
    let client = Client::connect(&jobs, 1, stuck);
    within(async {
        // It may be given up before the last of them.
        while client.to.send(Message::Text(r#"{"type":"ping"}"#.into())).await.is_ok() {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_every_session() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = job(&jobs, &root).await;
    let mut client = Client::connect(&jobs, 16, Patience::default());
    client.say(json!({"type": "subscribe", "job_id": id})).await;
    assert_eq!(kind(&client.hear().await), "job_status");
    within(jobs.shutdown()).await;
    assert_eq!(client.rest().await.1, Some(close_code::AWAY));
    root.emit(id, ended(JobStatus::Completed, Outcome::Applied));
    let jobs = root.open().await;
    assert_eq!(end_of(&jobs, id).await.status, JobStatus::Completed, "the job itself went on");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_a_snapshot_line_by_line_is_given_up() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = job(&jobs, &root).await;
    for n in 0..100 {
        root.emit(id, log(&n.to_string()));
    }
    root.complete(id);
    end_of(&jobs, id).await;
    let patience = Patience { snapshot: Duration::from_millis(200), ..Patience::default() };
    let mut client = Client::connect(&jobs, 1, patience);
    client.say(json!({"type": "subscribe", "job_id": id})).await;
    let mut heard = 0;
    let code = loop {
        match client.next().await {
            Some(Message::Close(frame)) => break frame.map(|f| f.code),
            Some(_) => heard += 1,
            None => break None,
        }
        // Never so slow that a single message is late.
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(code, Some(close_code::AGAIN));
    assert!(heard < 100, "{heard}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_logs_of_ended_jobs_are_in_memory_at_once() {
    let root = Root::new();
    let jobs = root.open().await;
    let id = job(&jobs, &root).await;
    root.complete(id);
    end_of(&jobs, id).await;
    let mut held = Vec::new();
    for _ in 0..OLD_LOGS {
        held.push(jobs.subscriber().subscribe(id).await.unwrap());
    }
    let mut one_more = jobs.subscriber();
    let mut waiting = Box::pin(one_more.subscribe(id));
    assert!(timeout(Duration::from_millis(50), &mut waiting).await.is_err());
    held.pop();
    assert_eq!(within(waiting).await.unwrap().count(), 2);
}
