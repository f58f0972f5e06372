//! One WebSocket: what the client says, what it is told, and when the connection ends.
//!
//! The protocol works on any stream and sink of messages, so that it can be tested without HTTP. Nothing is buffered
//! here: while a message is being sent nothing else is taken from the feed, and the feed cuts off who falls behind.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use patch_service::shape;
use patch_types::{
    ErrorCode, ErrorDetail, JobId,
    api::{ClientMessage, ServerMessage, StreamError},
};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::{
    Jobs,
    stream::{Cut, Frames, Subscriber, frame},
};

/// The largest message of a client in bytes; a subscription has some 80. The WebSocket's own limit should be set to it
/// as well.
pub const MAX_MESSAGE: usize = 4 << 10;

/// How many jobs a connection may follow by name.
const MAX_SUBSCRIPTIONS: usize = 64;

/// How many pings may go unanswered.
const MAX_UNANSWERED: u32 = 2;

/// How many messages are handed to the socket before it is flushed.
const BATCH: usize = 64;

/// How patient a session is.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// A peer that was silent for so long is pinged.
    ping: Duration,
    /// A peer that takes nothing for so long is given up.
    send: Duration,
    /// One that has not taken a job's state and log after so long as well: taking a line now and then it could hold
    /// them in memory for hours.
    snapshot: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            ping: Duration::from_secs(30),
            send: Duration::from_secs(30),
            snapshot: Duration::from_secs(60),
        }
    }
}

/// Speaks the protocol with one client until either side ends it.
pub async fn serve(socket: WebSocket, jobs: Jobs) {
    run(socket, &jobs, Patience::default()).await;
}

/// Why a session ends.
enum End {
    /// The peer is gone: there is nobody to tell.
    Gone,
    /// We end it, with a code and a reason.
    Close(u16, &'static str),
}

async fn run<S, E>(socket: S, jobs: &Jobs, patience: Patience)
where
    S: Stream<Item = Result<Message, E>> + Sink<Message> + Unpin,
{
    let mut session = Session { socket, subscriber: jobs.subscriber(), patience };
    let end = session.talk().await;
    if let End::Close(code, reason) = end {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        // Who does not take even that is simply dropped.
        let _ = session.send(Message::Close(Some(frame))).await;
    }
}

struct Session<S> {
    socket: S,
    subscriber: Subscriber,
    patience: Patience,
}

impl<S, E> Session<S>
where
    S: Stream<Item = Result<Message, E>> + Sink<Message> + Unpin,
{
    async fn talk(&mut self) -> End {
        let every = self.patience.ping;
        let mut ticks = interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unanswered = 0;
        let mut heard = false;
        loop {
            let done = tokio::select! {
                message = self.socket.next() => {
                    heard = true;
                    unanswered = 0;
                    match message {
                        Some(Ok(message)) => self.heard(message).await,
                        Some(Err(_)) | None => Err(End::Gone),
                    }
                }
                news = self.subscriber.next() => match news {
                    Ok(first) => self.relay(first).await,
                    Err(cut) => Err(self.cut_off(cut).await),
                },
                _ = ticks.tick() => {
                    if unanswered >= MAX_UNANSWERED {
                        Err(End::Gone)
                    } else if std::mem::take(&mut heard) {
                        Ok(())
                    } else {
                        unanswered += 1;
                        self.send(Message::Ping(Vec::new().into())).await
                    }
                }
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    async fn heard(&mut self, message: Message) -> Result<(), End> {
        match message {
            Message::Text(text) if text.len() > MAX_MESSAGE => {
                Err(End::Close(close_code::SIZE, "a message may have 4 KiB at most"))
            }
            Message::Binary(bytes) if bytes.len() > MAX_MESSAGE => {
                Err(End::Close(close_code::SIZE, "a message may have 4 KiB at most"))
            }
            Message::Text(text) => match read(&text) {
                Ok(message) => self.obey(message).await,
                Err(error) => {
                    self.refuse(None, invalid(format!("not a message of this protocol: {error}"))).await
                }
            },
            Message::Binary(_) => {
                self.refuse(None, invalid("messages are text, not binary".to_owned())).await
            }
            // The library answers pings, and ends the stream after a close.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => Ok(()),
        }
    }

    async fn obey(&mut self, message: ClientMessage) -> Result<(), End> {
        match message {
            ClientMessage::Ping {} => self.send(Message::Text(frame(&ServerMessage::Pong))).await,
            ClientMessage::Unsubscribe { job_id } => {
                self.subscriber.unsubscribe(job_id);
                Ok(())
            }
            ClientMessage::Subscribe { job_id } if self.subscriber.named() >= MAX_SUBSCRIPTIONS => {
                let error = invalid(format!(
                    "a connection may follow {MAX_SUBSCRIPTIONS} jobs by name; unsubscribe from some or use subscribe_all"
                ));
                self.refuse(Some(job_id), error).await
            }
            ClientMessage::Subscribe { job_id } => match self.subscriber.subscribe(job_id).await {
                Ok(frames) => self.send_all(frames).await,
                Err(error) => self.refuse(Some(job_id), error).await,
            },
            ClientMessage::SubscribeAll {} => {
                let frames = self.subscriber.subscribe_all();
                self.send_all(frames).await
            }
        }
    }

    /// Sends one message of the feed and what is ready behind it, so that a burst costs one flush.
    async fn relay(&mut self, first: Utf8Bytes) -> Result<(), End> {
        let mut next = Some(first);
        let mut cut = None;
        let mut count = 0;
        while let Some(text) = next.take() {
            self.feed(Message::Text(text)).await?;
            count += 1;
            if count < BATCH {
                match self.subscriber.ready() {
                    Ok(more) => next = more,
                    Err(why) => cut = Some(why),
                }
            }
        }
        match cut {
            None => self.flush().await,
            Some(why) => Err(self.cut_off(why).await),
        }
    }

    async fn cut_off(&mut self, cut: Cut) -> End {
        match cut {
            Cut::Stopped => End::Close(close_code::AWAY, "the agent is stopping; connect again in a moment"),
            Cut::Slow(missed) => {
                let error = ErrorDetail::new(
                    ErrorCode::ServiceUnhealthy,
                    format!("this connection was too slow and missed {missed} messages; connect and subscribe again"),
                )
                .with("missed", missed);
                match self.refuse(None, error).await {
                    Ok(()) => End::Close(close_code::AGAIN, "too slow"),
                    Err(end) => end,
                }
            }
        }
    }

    async fn refuse(&mut self, job_id: Option<JobId>, error: ErrorDetail) -> Result<(), End> {
        self.send(Message::Text(frame(&ServerMessage::Error(StreamError { job_id, error })))).await
    }

    async fn send_all(&mut self, frames: Frames) -> Result<(), End> {
        let limit = self.patience.snapshot;
        let sending = async {
            for (count, text) in (1..).zip(frames) {
                self.feed(Message::Text(text)).await?;
                // What is fed lies in the socket's buffer until it is flushed.
                if count % BATCH == 0 {
                    self.flush().await?;
                }
            }
            self.flush().await
        };
        timeout(limit, sending).await.unwrap_or(Err(End::Close(close_code::AGAIN, "too slow")))
    }

    async fn send(&mut self, message: Message) -> Result<(), End> {
        self.feed(message).await?;
        self.flush().await
    }

    async fn feed(&mut self, message: Message) -> Result<(), End> {
        match timeout(self.patience.send, self.socket.feed(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }

    async fn flush(&mut self) -> Result<(), End> {
        match timeout(self.patience.send, self.socket.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }
}

fn invalid(message: String) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::InvalidRequest, message)
}

/// A message, or what is wrong with it.
fn read(text: &str) -> Result<ClientMessage, String> {
    let message = serde_json::from_str(text).map_err(|error| error.to_string())?;
    shape::check(text.as_bytes(), &message).map_err(|stray| stray.to_string())?;
    Ok(message)
}

#[cfg(test)]
mod tests;
