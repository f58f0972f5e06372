//! Following a job live: a bar on a terminal, plain lines elsewhere, JSON where it is asked for.

use std::{io, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use patch_client::{Answer, Client};
use patch_types::{
    JobId, JobStatus, Phase,
    api::{Job, LogLine, ServerMessage},
};
use tokio::sync::Notify;

use crate::{
    exit::Exit,
    output::Output,
    render::{clean, job},
};

/// How a watched job is shown.
enum Display {
    /// A bar on standard error.
    Bar(ProgressBar),
    /// A line on standard error whenever the state has changed enough.
    Lines(Option<Milestone>),
    /// Every message as a JSON object on standard output.
    Json,
    /// Nothing until the end.
    Silent,
}

/// What is worth a line of its own.
#[derive(Debug, PartialEq, Eq)]
struct Milestone {
    status: JobStatus,
    phase: Option<Phase>,
    waiting: bool,
    tens: u8,
}

impl Milestone {
    fn of(job: &Job) -> Self {
        Self {
            status: job.status,
            phase: job.phase,
            waiting: job.waiting_for.is_some(),
            tens: job.progress_percent / 10,
        }
    }
}

/// Follows a job to its end and shows how it went.
pub(crate) async fn to_end(client: &Client, out: &Output, id: JobId) -> anyhow::Result<Exit> {
    let Some(ended) = step(client, out, id).await? else { return Ok(Exit::Interrupted) };
    Ok(told(out, &ended)?)
}

/// Follows a job that was accepted just now to its end. `None` if the user did not want to wait for it.
pub(crate) async fn accepted(
    client: &Client,
    out: &Output,
    id: JobId,
) -> anyhow::Result<Option<Answer<Job>>> {
    out.remark(&format!("Job {id}"));
    step(client, out, id).await
}

/// Shows how a job ended.
pub(crate) fn told(out: &Output, ended: &Answer<Job>) -> io::Result<Exit> {
    out.answer(&ended.raw, |style| job::ending(style, ended, out.verbose))?;
    Ok(Exit::of_job(ended))
}

/// Follows a job to its end on the way to something else: how it went is for the caller to say. `None` if the user did
/// not want to wait for it.
pub(crate) async fn step(client: &Client, out: &Output, id: JobId) -> anyhow::Result<Option<Answer<Job>>> {
    Ok(watch(client, out, id, Display::beside(out), Until::Ended).await?.flatten())
}

/// Follows a job until it changes nothing any more for now: it has ended, or waits to be confirmed, which may take a day.
/// `false` if the user did not want to wait for it.
pub(crate) async fn until_still(client: &Client, out: &Output, id: JobId) -> anyhow::Result<bool> {
    Ok(watch(client, out, id, Display::beside(out), Until::Still).await?.is_some())
}

/// Like [`to_end`] for a job that is only watched: with `--json` every message is a line.
pub(crate) async fn only(client: &Client, out: &Output, id: JobId) -> anyhow::Result<Exit> {
    if !out.json {
        return to_end(client, out, id).await;
    }
    let ended = watch(client, out, id, Display::Json, Until::Ended).await?.flatten();
    Ok(ended.map_or(Exit::Interrupted, |ended| Exit::of_job(&ended)))
}

/// How far a job is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// To its end.
    Ended,
    /// To its end, or until it waits to be confirmed.
    Still,
}

/// The job if it has ended, and none in it if it waits; `None` if the user did not want to wait for it.
async fn watch(
    client: &Client,
    out: &Output,
    id: JobId,
    mut display: Display,
    until: Until,
) -> anyhow::Result<Option<Option<Answer<Job>>>> {
    let mut broken: Option<io::Error> = None;
    let mut told = None;
    let (unheard, still) = (Notify::new(), Notify::new());
    let result = {
        let following = client.follow_to_end(id, |message| {
            if let ServerMessage::JobStatus(job) = message
                && job.confirm_by.is_some()
                && told != job.confirm_by
            {
                told = job.confirm_by;
                display.say(&job::asks(job, &client.address().to_string(), Timestamp::now()));
                if until == Until::Still {
                    still.notify_one();
                }
            }
            if broken.is_none() {
                broken = display.show(out, message).err();
                if broken.is_some() {
                    unheard.notify_one();
                }
            }
        });
        tokio::select! {
            result = following => Some(result.map(Some)),
            () = still.notified() => Some(Ok(None)),
            _ = tokio::signal::ctrl_c() => None,
            // Nobody reads any more, as in `patchctl --json watch ID | head -1`.
            () = unheard.notified() => None,
        }
    };
    display.clear();
    if let Some(e) = broken {
        return Err(e.into());
    }
    match result {
        Some(result) => Ok(Some(result?)),
        None => {
            eprintln!(
                "\nStopped watching. The job goes on; nothing was cancelled.\n  \
                 to follow it again:  patchctl watch {id}\n  \
                 to cancel it:        patchctl cancel {id}"
            );
            Ok(None)
        }
    }
}

impl Display {
    /// Of a job that is not itself what was asked for.
    fn beside(out: &Output) -> Self {
        if out.json { Self::Silent } else { Self::live(out) }
    }

    fn live(out: &Output) -> Self {
        if !out.bar {
            return Self::Lines(None);
        }
        let bar = ProgressBar::new(100);
        // The template is a constant; if it were wrong, the bar would merely look different.
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:30}] {wide_msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self::Bar(bar)
    }

    fn show(&mut self, out: &Output, message: &ServerMessage) -> io::Result<()> {
        if let Self::Json = self {
            let line = serde_json::to_string(message)?;
            return out.print(&clean::json(&line));
        }
        match message {
            ServerMessage::JobStatus(job) => self.state(job),
            ServerMessage::JobLog(log) if out.verbose => self.log(&log.line),
            _ => {}
        }
        Ok(())
    }

    fn state(&mut self, job: &Job) {
        match self {
            Self::Bar(bar) => {
                bar.set_position(job.progress_percent.into());
                bar.set_message(job::state(job));
            }
            Self::Lines(last) => {
                let now = Milestone::of(job);
                if !job.status.is_terminal() && last.as_ref() != Some(&now) {
                    eprintln!("{}", job::state(job));
                    *last = Some(now);
                }
            }
            Self::Json | Self::Silent => {}
        }
    }

    fn log(&self, line: &LogLine) {
        self.say(&job::log_line(line));
    }

    /// A text beside the state. Who reads JSON has it all there.
    fn say(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.println(text),
            Self::Lines(_) => eprintln!("{text}"),
            Self::Json | Self::Silent => {}
        }
    }

    fn clear(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_come_at_milestones_only() {
        let mut job = job::tests::job(JobStatus::Running);
        let before = Milestone::of(&job);
        job.progress_percent += 5;
        job.current_package = Some("aa".into());
        assert_eq!(before, Milestone::of(&job));
        job.progress_percent += 5;
        assert_ne!(before, Milestone::of(&job));
    }
}
