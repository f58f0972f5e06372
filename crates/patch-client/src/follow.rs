//! Following a job to its end, whether or not a WebSocket can be had.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use patch_types::{
    JobId, JobStatus,
    api::{Job, JobLog, ServerMessage},
};
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    agent::Client,
    answer::Answer,
    error::{Error, Stage},
};

const POLL: Duration = Duration::from_secs(1);

impl Client {
    /// Follows a job and hands `on_message` its state, each line of its log once, and its end; answers with the ended
    /// job, log, plan and results included. Where the WebSocket cannot be had, the job is asked for every second.
    ///
    /// Dropping the future stops the watching, not the job.
    ///
    /// # Errors
    /// [`Error::Api`] when there is no such job, and the connection's errors once the agent has been gone for longer
    /// than [`crate::ClientConfig::reconnect_for`] says.
    pub async fn follow_to_end(
        &self,
        id: JobId,
        mut on_message: impl FnMut(&ServerMessage),
    ) -> Result<Answer<Job>, Error> {
        let mut seen = Seen::default();
        let mut stream = self.watch(id);
        while let Some(next) = stream.next().await {
            match next {
                Ok(message) => {
                    seen.note(&message);
                    on_message(&message);
                    if let ServerMessage::JobComplete(job) = message {
                        return self.ended(*job).await;
                    }
                }
                Err(e) if is_hopeless(&e, seen.anything) => return Err(e),
                Err(_) => break,
            }
        }
        drop(stream);
        self.poll_to_end(id, &mut seen, &mut on_message).await
    }

    async fn poll_to_end(
        &self,
        id: JobId,
        seen: &mut Seen,
        on_message: &mut impl FnMut(&ServerMessage),
    ) -> Result<Answer<Job>, Error> {
        let mut lost: Option<Instant> = None;
        loop {
            match self.job(id).await {
                Ok(answer) => {
                    lost = None;
                    for message in seen.news(&answer.data) {
                        on_message(&message);
                    }
                    if answer.status.is_terminal() {
                        return Ok(answer);
                    }
                }
                Err(e) => {
                    let since = *lost.get_or_insert_with(Instant::now);
                    let patient = seen.anything && since.elapsed() < self.transport.config.reconnect_for;
                    if !e.is_passing() || !patient {
                        return Err(e);
                    }
                }
            }
            sleep(POLL).await;
        }
    }

    /// The whole record of a job that has ended; what the message said of it, if that cannot be had.
    async fn ended(&self, job: Job) -> Result<Answer<Job>, Error> {
        for _ in 0..5 {
            match self.job(job.job_id).await {
                Ok(answer) => return Ok(answer),
                // The agent may be restarting: the job may have updated it.
                Err(e) if e.is_passing() => sleep(POLL).await,
                Err(_) => break,
            }
        }
        let raw = serde_json::value::to_raw_value(&job).map_err(|e| Error::Setup(e.to_string()))?;
        Ok(Answer { data: job, raw, request_id: Uuid::nil() })
    }
}

/// Whether asking in another way would end the same.
fn is_hopeless(error: &Error, seen: bool) -> bool {
    match error {
        Error::Unreachable { .. } | Error::Tls { .. } | Error::ServerCertificate { .. } => true,
        Error::Refused { stage, .. } => seen || *stage == Stage::Handshake,
        Error::TimedOut { .. } | Error::Broken { .. } => seen,
        _ => false,
    }
}

/// What has been handed on.
#[derive(Debug, Default)]
struct Seen {
    anything: bool,
    last_log: u64,
    last_state: Option<(u64, JobStatus)>,
}

impl Seen {
    fn note(&mut self, message: &ServerMessage) {
        self.anything = true;
        match message {
            ServerMessage::JobLog(log) => self.last_log = self.last_log.max(log.line.seq),
            ServerMessage::JobStatus(job) => self.last_state = Some((job.last_seq, job.status)),
            _ => {}
        }
    }

    /// The messages that a WebSocket would have carried since the last look.
    fn news(&mut self, job: &Job) -> Vec<ServerMessage> {
        let without_log = || {
            let mut job = job.clone();
            job.log.clear();
            job.output = None;
            Box::new(job)
        };
        let mut news = Vec::new();
        if self.last_state != Some((job.last_seq, job.status)) {
            news.push(ServerMessage::JobStatus(without_log()));
        }
        let lines = job.log.iter().filter(|line| line.seq > self.last_log);
        news.extend(
            lines.map(|line| ServerMessage::JobLog(JobLog { job_id: job.job_id, line: line.clone() })),
        );
        if job.status.is_terminal() {
            news.push(ServerMessage::JobComplete(without_log()));
        }
        for message in &news {
            self.note(message);
        }
        self.anything = true;
        news
    }
}
