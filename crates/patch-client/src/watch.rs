//! A job's messages as a stream that survives lost connections.
//!
//! After each connection the agent tells the job's state and its whole log again; log lines that were seen before are
//! left out by their number, so that a reader gets each once and in order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::{BoxStream, StreamExt, unfold};
use patch_types::{
    ErrorCode, JobId,
    api::{ClientMessage, Job, ServerMessage},
};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::{
    agent::Client,
    error::Error,
    transport::Transport,
    websocket::{Received, Socket},
};

/// After so long without a message the agent is asked for a sign of life; after twice that the connection is given up.
const QUIET: Duration = Duration::from_secs(20);
/// How long `job_complete` may stay out after a status that is final.
const LAST_WORD: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Client {
    /// A job's state, its log so far, then every event once, in order, up to and including `job_complete`, after which
    /// the stream ends.
    ///
    /// A connection that is lost is made anew for as long as [`crate::ClientConfig::reconnect_for`] says. If the first
    /// one fails, or the agent refuses, the stream yields that error and ends.
    #[must_use]
    pub fn watch(&self, id: JobId) -> BoxStream<'static, Result<ServerMessage, Error>> {
        let watch = Watch::new(Arc::clone(&self.transport), id);
        unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) }).boxed()
    }
}

/// Decides what of the agent's messages reaches the reader. Knows no connection and no clock.
#[derive(Debug)]
struct Filter {
    id: JobId,
    last_seq: u64,
    /// The job's state when a status said that it had ended.
    ended: Option<Box<Job>>,
}

#[derive(Debug)]
enum Verdict {
    Pass(ServerMessage),
    Skip,
    /// The connection is of no more use; another may be.
    Reconnect,
    Fail(Error),
}

impl Filter {
    fn decide(&mut self, message: ServerMessage) -> Verdict {
        match message {
            ServerMessage::JobStatus(job) if job.job_id == self.id => {
                if job.status.is_terminal() {
                    self.ended = Some(job.clone());
                }
                Verdict::Pass(ServerMessage::JobStatus(job))
            }
            ServerMessage::JobLog(log) if log.job_id == self.id => {
                if log.line.seq <= self.last_seq {
                    return Verdict::Skip;
                }
                self.last_seq = log.line.seq;
                Verdict::Pass(ServerMessage::JobLog(log))
            }
            ServerMessage::JobComplete(job) if job.job_id == self.id => {
                Verdict::Pass(ServerMessage::JobComplete(job))
            }
            ServerMessage::Error(e) if e.job_id.is_none_or(|id| id == self.id) => {
                // Being cut off as a slow reader passes; not knowing the job does not.
                if e.error.retryable {
                    return Verdict::Reconnect;
                }
                let status = match e.error.code {
                    ErrorCode::JobNotFound => 404,
                    code => code.http_status(),
                };
                Verdict::Fail(Error::Api { status, detail: Box::new(e.error), request_id: Uuid::nil() })
            }
            _ => Verdict::Skip,
        }
    }
}

/// How the connection has been doing.
#[derive(Debug, Clone, Copy)]
enum Link {
    /// Nothing has come yet.
    New,
    /// The last thing that happened was a message.
    Good,
    /// It was lost, and no message has come since.
    Lost { since: Instant, attempts: u32 },
}

impl Link {
    /// How long to wait before the next attempt to connect.
    fn pause(self) -> Duration {
        match self {
            Self::New | Self::Good => Duration::ZERO,
            Self::Lost { attempts, .. } => (FIRST_PAUSE * 2_u32.pow(attempts.min(8))).min(LONGEST_PAUSE),
        }
    }

    fn may_retry(self, patience: Duration) -> bool {
        matches!(self, Self::Lost { since, .. } if since.elapsed() < patience)
    }
}

struct Watch {
    transport: Arc<Transport>,
    filter: Filter,
    socket: Option<Socket>,
    link: Link,
    done: bool,
}

impl Watch {
    fn new(transport: Arc<Transport>, id: JobId) -> Self {
        let filter = Filter { id, last_seq: 0, ended: None };
        Self { transport, filter, socket: None, link: Link::New, done: false }
    }

    async fn next(&mut self) -> Option<Result<ServerMessage, Error>> {
        if self.done {
            return None;
        }
        let result = self.advance().await;
        self.done = !matches!(result, Ok(ServerMessage::JobStatus(_) | ServerMessage::JobLog(_)));
        if self.done
            && let Some(socket) = self.socket.take()
        {
            socket.close().await;
        }
        Some(result)
    }

    async fn advance(&mut self) -> Result<ServerMessage, Error> {
        loop {
            let socket = match &mut self.socket {
                Some(socket) => socket,
                none => none.insert(connect(&self.transport, self.filter.id, &mut self.link).await?),
            };
            let Some(message) = receive(socket, self.filter.ended.is_some()).await else {
                match self.filter.ended.take() {
                    Some(job) => return Ok(ServerMessage::JobComplete(job)),
                    None => self.lose()?,
                }
                continue;
            };
            match self.filter.decide(message) {
                Verdict::Pass(message) => {
                    self.link = Link::Good;
                    return Ok(message);
                }
                Verdict::Skip => self.link = Link::Good,
                Verdict::Reconnect => self.lose()?,
                Verdict::Fail(e) => return Err(e),
            }
        }
    }

    /// Gives the connection up; fails when making another one would be pointless.
    fn lose(&mut self) -> Result<(), Error> {
        self.socket = None;
        let broken = |reason: &str| Error::Broken {
            address: self.transport.config.address.to_string(),
            reason: reason.to_owned(),
        };
        match self.link {
            Link::New => Err(broken("the agent closed the WebSocket before it said anything")),
            Link::Good => {
                self.link = Link::Lost { since: Instant::now(), attempts: 0 };
                Ok(())
            }
            Link::Lost { .. } if self.link.may_retry(self.transport.config.reconnect_for) => Ok(()),
            Link::Lost { .. } => Err(broken("the agent closes every WebSocket before it says anything")),
        }
    }
}

/// Connects and subscribes, again and again while a lost connection may come back.
async fn connect(transport: &Transport, id: JobId, link: &mut Link) -> Result<Socket, Error> {
    loop {
        sleep(link.pause()).await;
        if let Link::Lost { attempts, .. } = link {
            *attempts += 1;
        }
        match Socket::open(transport).await {
            Ok(mut socket) => {
                socket.send(&ClientMessage::Subscribe { job_id: id }).await?;
                return Ok(socket);
            }
            Err(e) if e.is_passing() && link.may_retry(transport.config.reconnect_for) => {}
            Err(e) => return Err(e),
        }
    }
}

/// The next message; `None` when the connection is lost or, after a final status, when nothing more comes.
async fn receive(socket: &mut Socket, ended: bool) -> Option<ServerMessage> {
    let limit = if ended { LAST_WORD } else { QUIET };
    let mut asked = false;
    loop {
        match timeout(limit, socket.receive()).await {
            Ok(Received::Message(message)) => return Some(*message),
            Ok(Received::Nothing) => {}
            Ok(Received::Closed) => return None,
            Err(_) if asked || ended => return None,
            Err(_) => {
                asked = true;
                timeout(QUIET, socket.send(&ClientMessage::Ping {})).await.ok()?.ok()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let lost = |attempts| Link::Lost { since: Instant::now(), attempts }.pause();
        assert_eq!(Link::New.pause(), Duration::ZERO);
        assert_eq!(lost(0), FIRST_PAUSE);
        assert_eq!(lost(2), FIRST_PAUSE * 4);
        assert_eq!(lost(u32::MAX), LONGEST_PAUSE);
    }
}
