//! What an operation's events make of a job. Pure: no clock, no disk, no other job.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
    time::Instant,
};

use axum::extract::ws::Utf8Bytes;
use jiff::Timestamp;
use patch_types::{
    ErrorCode, ErrorDetail, Event, EventKind, JobId, JobStatus, Outcome, Phase, Plan, RehearsalReport,
    WayBack, WentBack,
    api::{Job, JobLog, LogLine, ServerMessage},
    event::Ended,
};

use super::record::{Head, brief};

/// The most lines of a log that are kept: the last ones.
pub(super) const LOG_LINES: usize = 10_000;

/// The most bytes of a log that are kept.
pub(super) const LOG_BYTES: usize = 1 << 20;

/// A longer line is cut: it is kept, streamed, and queued for slow readers.
pub(super) const LOG_LINE: usize = 8 << 10;

/// A line of a running job's log. Its WebSocket frame is made when the first subscriber needs it, and then shared.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) line: LogLine,
    frame: OnceLock<Utf8Bytes>,
}

impl Entry {
    /// The line as every subscriber gets it.
    pub(super) fn frame(&self, job_id: JobId) -> Utf8Bytes {
        self.frame
            .get_or_init(|| {
                super::stream::frame(&ServerMessage::JobLog(JobLog { job_id, line: self.line.clone() }))
            })
            .clone()
    }
}

/// The end of a log.
#[derive(Debug, Default)]
pub(super) struct Log {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
}

impl Log {
    /// Appends a line; true if the beginning had to go.
    fn push(&mut self, line: LogLine) -> (Arc<Entry>, bool) {
        self.bytes += line.line.len();
        let entry = Arc::new(Entry { line, frame: OnceLock::new() });
        self.entries.push_back(Arc::clone(&entry));
        let mut dropped = false;
        while self.entries.len() > LOG_LINES || self.bytes > LOG_BYTES {
            let Some(old) = self.entries.pop_front() else { break };
            self.bytes -= old.line.line.len();
            dropped = true;
        }
        (entry, dropped)
    }

    /// The lines, shared: making a copy costs a pointer a line, and no lock is held while they are used.
    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.iter().cloned().collect()
    }
}

/// What an event means to those who look on.
pub(super) enum Effect {
    /// Nothing that shows.
    None,
    /// The job's state has changed.
    Status,
    /// The plan is there, or something else that is too long for every message.
    Details,
    /// A line was added.
    Log(Arc<Entry>),
    /// It has ended: to be recorded before it is shown.
    Ended(Box<Ended>, Timestamp),
}

/// That a job waits to be confirmed, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirming {
    /// Since before this process was there: every connection is newer.
    Before,
    /// Since this instant.
    Since(Instant),
}

/// A job that has not ended.
#[derive(Debug)]
pub(super) struct Mirror {
    /// What its file holds, the job as lists show it included.
    pub(super) head: Head,
    /// What was planned. Shared, since it may be long and is sent with some of the messages only.
    pub(super) plan: Option<Arc<Plan>>,
    /// How well it can be undone. The job that lists show has the grade only.
    pub(super) way_back: Option<Arc<WayBack>>,
    /// What came of going back. Where it is long, the job that lists show has less.
    pub(super) went_back: Option<Arc<WentBack>>,
    /// What came of its rehearsal. The job that lists show has less.
    pub(super) rehearsal: Option<Arc<RehearsalReport>>,
    /// Whether it waits to be confirmed.
    pub(super) confirming: Option<Confirming>,
    /// Of a job that an earlier run of the daemon began: the last event that was there when this run took it up. What
    /// happened before is mirrored late. By number: a clock may have been set since.
    pub(super) taken_up: u64,
    /// Its log.
    pub(super) log: Log,
}

impl Mirror {
    pub(super) fn new(head: Head) -> Self {
        Self {
            head,
            plan: None,
            way_back: None,
            went_back: None,
            rehearsal: None,
            confirming: None,
            taken_up: 0,
            log: Log::default(),
        }
    }

    /// Takes an event over that is read at the given instant.
    pub(super) fn apply(&mut self, event: Event, now: Instant) -> Effect {
        let job = &mut self.head.job;
        job.last_seq = event.seq;
        if job.status == JobStatus::Pending {
            job.status = JobStatus::Running;
            job.started_at = Some(event.at);
        }
        match event.kind {
            EventKind::Accepted => Effect::Status,
            EventKind::Phase { phase } => {
                job.phase = Some(phase);
                if phase != Phase::Waiting {
                    job.scheduled_for = None;
                }
                if phase != Phase::Confirming {
                    job.confirm_by = None;
                    self.confirming = None;
                }
                Effect::Status
            }
            EventKind::Waiting { holder } => {
                job.waiting_for = holder;
                Effect::Status
            }
            EventKind::Planned { plan } => {
                self.plan = Some(Arc::new(plan));
                Effect::Details
            }
            EventKind::Progress { percent, package, message: _ } => {
                let percent = percent.min(100).max(job.progress_percent);
                if percent == job.progress_percent && package == job.current_package {
                    return Effect::None;
                }
                job.progress_percent = percent;
                job.current_package = package;
                Effect::Status
            }
            EventKind::Log { stream, line } => {
                let (entry, dropped) =
                    self.log.push(LogLine { seq: event.seq, at: event.at, stream, line: cut(line) });
                job.log_truncated |= dropped;
                Effect::Log(entry)
            }
            EventKind::WayBack { way_back } => {
                job.way_back = Some(brief::way_back(&way_back));
                self.way_back = Some(Arc::new(way_back));
                Effect::Details
            }
            EventKind::Confirm { until } => {
                job.confirm_by = Some(until);
                self.confirming = Some(if event.seq <= self.taken_up {
                    Confirming::Before
                } else {
                    Confirming::Since(now)
                });
                Effect::Status
            }
            EventKind::Scheduled { until } => {
                job.scheduled_for = until;
                Effect::Status
            }
            EventKind::WentBack { report } => {
                job.went_back = Some(brief::went_back(job.job_id, &report));
                self.went_back = Some(Arc::new(report));
                Effect::Details
            }
            EventKind::Rehearsed { report } => {
                job.rehearsal = Some(brief::rehearsal(&report));
                self.rehearsal = Some(Arc::new(report));
                Effect::Details
            }
            EventKind::Ended(ended) => Effect::Ended(ended, event.at),
        }
    }
}

/// The job as it is at its end.
pub(super) fn end(job: &mut Job, ended: &Ended, at: Timestamp) {
    let (status, error) = match ended.status {
        JobStatus::Pending | JobStatus::Running => (
            JobStatus::Failed,
            Some(ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                format!("the root side ended the job as {}, which is no end", ended.status),
            )),
        ),
        status => (status, None),
    };
    job.status = status;
    job.outcome = ended.outcome;
    job.exit_code = ended.exit_code;
    job.error_detail = ended.error.clone().or(error);
    job.error = job.error_detail.as_ref().map(|e| e.message.clone());
    job.completed_at = Some(at);
    job.phase = None;
    job.current_package = None;
    job.waiting_for = None;
    job.confirm_by = None;
    job.scheduled_for = None;
    if status == JobStatus::Completed {
        job.progress_percent = 100;
    }
}

/// An end that the root side did not write.
pub(super) fn ended_by_us(status: JobStatus, outcome: Option<Outcome>, error: ErrorDetail) -> Ended {
    Ended { status, outcome, exit_code: None, error: Some(error), results: Vec::new(), answer: None }
}

fn cut(mut line: String) -> String {
    if line.len() > LOG_LINE {
        let mut at = LOG_LINE;
        while !line.is_char_boundary(at) {
            at -= 1;
        }
        let left = line.len() - at;
        line.truncate(at);
        line.push_str(&format!(" … ({left} bytes more)"));
        line.shrink_to_fit();
    }
    line
}

#[cfg(test)]
mod tests {
    use patch_types::{event::LogStream, plan::Plan};

    use super::*;
    use crate::jobs::testing::{head, job};

    fn event(seq: u64, kind: EventKind) -> Event {
        Event { seq, at: Timestamp::UNIX_EPOCH, kind }
    }

    fn progress(percent: u8) -> EventKind {
        EventKind::Progress { percent, package: None, message: String::new() }
    }

    fn log(line: String) -> EventKind {
        EventKind::Log { stream: LogStream::Output, line }
    }

    #[test]
    fn progress_never_falls_and_never_exceeds_a_hundred() {
        let mut mirror = Mirror::new(head());
        for (seq, (percent, shown)) in (1..).zip([(10, 10), (40, 40), (20, 40), (250, 100)]) {
            mirror.apply(event(seq, progress(percent)), Instant::now());
            assert_eq!(mirror.head.job.progress_percent, shown);
            assert_eq!(mirror.head.job.last_seq, seq);
        }
        assert!(matches!(mirror.apply(event(5, progress(3)), Instant::now()), Effect::None));
    }

    #[test]
    fn the_first_event_starts_the_job() {
        let mut mirror = Mirror::new(head());
        assert!(matches!(mirror.apply(event(1, EventKind::Accepted), Instant::now()), Effect::Status));
        assert_eq!(mirror.head.job.status, JobStatus::Running);
        assert_eq!(mirror.head.job.started_at, Some(Timestamp::UNIX_EPOCH));
        assert!(matches!(
            mirror.apply(event(2, EventKind::Planned { plan: Plan::of(vec![]) }), Instant::now()),
            Effect::Details
        ));
        assert!(mirror.head.job.plan.is_none(), "lists show no plan");
    }

    #[test]
    fn what_waits_since_before_this_run_is_told_by_its_place_whatever_the_clock_says() {
        let now = Instant::now();
        let mut mirror = Mirror::new(head());
        mirror.taken_up = 2;
        let confirm = |seq, at| Event { seq, at, kind: EventKind::Confirm { until: Timestamp::MAX } };
        for (seq, at, expected) in [
            (2, Timestamp::MAX, Confirming::Before),
            (3, Timestamp::MIN, Confirming::Since(now)),
            (4, Timestamp::now(), Confirming::Since(now)),
        ] {
            mirror.apply(confirm(seq, at), now);
            assert_eq!(mirror.confirming, Some(expected));
        }
        let mut fresh = Mirror::new(head());
        fresh.apply(confirm(1, Timestamp::MIN), now);
        assert_eq!(fresh.confirming, Some(Confirming::Since(now)));
    }

    #[test]
    fn the_log_is_bounded_in_lines_and_in_bytes() {
        let mut mirror = Mirror::new(head());
        for seq in 1..=LOG_LINES as u64 {
            mirror.apply(event(seq, log(format!("line {seq}"))), Instant::now());
        }
        assert!(!mirror.head.job.log_truncated);
        mirror.apply(event(LOG_LINES as u64 + 1, log("one more".into())), Instant::now());
        assert!(mirror.head.job.log_truncated);
        let entries = mirror.log.entries();
        assert_eq!((entries.len(), entries[0].line.line.as_str()), (LOG_LINES, "line 2"));

        let mut mirror = Mirror::new(head());
        for seq in 1..=2 * (LOG_BYTES / LOG_LINE) as u64 {
            mirror.apply(event(seq, log("ä".repeat(LOG_LINE))), Instant::now());
        }
        let entries = mirror.log.entries();
        let bytes: usize = entries.iter().map(|e| e.line.line.len()).sum();
        assert!(bytes <= LOG_BYTES && bytes > LOG_BYTES / 2, "{bytes}");
        assert!(entries[0].line.line.ends_with("bytes more)"), "a long line is cut, and says so");
        assert!(mirror.head.job.log_truncated);
    }

    #[test]
    fn an_end_that_is_none_is_a_failure() {
        let mut job = job();
        end(
            &mut job,
            &Ended {
                status: JobStatus::Running,
                outcome: None,
                exit_code: None,
                error: None,
                results: vec![],
                answer: None,
            },
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(job.status, JobStatus::Failed);
        assert!(job.error.is_some());
    }
}
