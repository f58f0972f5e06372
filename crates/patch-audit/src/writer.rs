//! The writer: one thread that takes records from the queue, writes them in groups and says so.
//!
//! A group is what has queued up while the one before was being synced. It is encoded, written once, synced once, then
//! everybody who waits for it is told. The thread sleeps in the queue; it sets itself a time only while records that
//! nobody waits for are in memory.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use crate::{
    chain::{Head, MAX_RECORD, MAX_SEQ, encode},
    event::{AuditEvent, AuditKind, Caller},
    file::{LogFile, Opened},
    journald::Journal,
    log::{AuditError, OnDurable, Reconfiguration, Shared, describe},
    queue::Inbox,
    ship::Shipping,
    trail::{self, Former},
};

/// How long records that nobody waits for may stay in memory.
const LATER: Duration = Duration::from_secs(1);
/// The most records in one group.
const MAX_GROUP: usize = 1024;
/// The buffer that is kept from one group to the next.
const KEPT_BUFFER: usize = 64 << 10;

pub(crate) enum Message {
    /// Write it; if somebody waits, now.
    Record { event: Box<AuditEvent>, waiter: Option<OnDurable> },
    /// Write what is in memory, then say how that went.
    Flush { done: SyncSender<Result<(), AuditError>> },
    /// Look whether other settings are wanted.
    Reconfigure,
    /// Write what is in the queue and end.
    Close,
}

impl Message {
    /// Whether the writer need not hear of it at once.
    pub(crate) fn may_wait(&self) -> bool {
        matches!(self, Self::Record { waiter: None, .. })
    }
}

pub(crate) struct Writer {
    file: LogFile,
    /// The last record on disk.
    last: Head,
    journal: Journal,
    shared: Arc<Shared>,
    shipping: Shipping,
    keep_days: Option<u32>,
    /// Files that go as soon as it is on record that they do.
    doomed: Vec<Former>,
    /// Whether there may be files that are not compressed yet.
    has_rotated: bool,
    compressor: Compressor,
    /// What the log has to say about itself and has not yet written.
    remarks: Vec<AuditEvent>,
    /// Records lost since the local file failed; `None` while it works.
    failing: Option<u64>,
    group: Vec<(Box<AuditEvent>, Option<OnDurable>)>,
    /// When the oldest record that nobody waits for has to be written.
    deadline: Option<Instant>,
    urgent: bool,
    buffer: Vec<u8>,
    /// Groups written.
    groups: u64,
}

impl Writer {
    pub(crate) fn new(
        opened: Opened,
        known: Option<Head>,
        journal: Journal,
        shared: Arc<Shared>,
        shipping: Shipping,
        configuration: Reconfiguration,
    ) -> Self {
        let Opened { file, mut last, finding } = opened;
        let mut remarks: Vec<_> =
            finding.into_iter().map(|kind| AuditEvent::new(kind, &Caller::local())).collect();
        if let Some(known) = known.filter(|known| known.seq > last.seq && known.seq < MAX_SEQ) {
            let kind = AuditKind::TrailCut { last: last.seq, signed: known.seq };
            remarks.push(AuditEvent::new(kind, &Caller::local()));
            last = known;
        }
        let Reconfiguration { keep_days, remote } = configuration;
        let mut writer = Self {
            file,
            last,
            journal,
            shared,
            shipping,
            keep_days,
            doomed: Vec::new(),
            has_rotated: false,
            compressor: Compressor::default(),
            remarks,
            failing: None,
            group: Vec::new(),
            deadline: None,
            urgent: false,
            buffer: Vec::new(),
            groups: 0,
        };
        writer.publish(None);
        // Before the first record of this run, which is the first that a new target gets.
        writer.shipping.aim(remote);
        writer.retire(Timestamp::now());
        writer.has_rotated = true;
        // What opening found is on record before anything else is; if the disk is full, as soon as it is not.
        let _ = writer.commit();
        writer
    }

    /// Works until closed.
    pub(crate) fn run(mut self, queue: &Inbox) {
        let mut open = true;
        while open {
            match queue.next(self.deadline) {
                Ok(message) => open = self.take(message),
                Err(RecvTimeoutError::Timeout) => self.urgent = true,
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            while open && self.group.len() < MAX_GROUP {
                let Some(message) = queue.take() else { break };
                open = self.take(message);
            }
            let due = self.deadline.is_some_and(|at| at <= Instant::now());
            if self.urgent || due || self.group.len() >= MAX_GROUP {
                let _ = self.commit();
            }
        }
        // What came in while closing is written as well.
        while let Some(message) = queue.take() {
            self.take(message);
        }
        let _ = self.commit();
        self.compressor.stop();
    }

    /// Dooms the files that are older than they are kept, and says so.
    fn retire(&mut self, now: Timestamp) {
        let Some(keep_days) = self.keep_days else { return };
        let doomed = trail::outdated(self.file.path(), now, keep_days);
        if doomed.is_empty() {
            return;
        }
        let left = trail::former(self.file.path()).into_iter().nth(doomed.len());
        let first_left = left.and_then(|former| former.first_seq());
        let removed = doomed.iter().map(Former::name).collect();
        // The present file begins with what is written next, if nothing else is left.
        let first_left = first_left.unwrap_or_else(|| self.first_of_present());
        self.remark(AuditKind::TrailPruned { removed, first_left });
        self.doomed = doomed;
    }

    fn first_of_present(&self) -> u64 {
        let open = trail::Trail::open(self.file.path()).ok();
        let present = open.and_then(|trail| trail.files.into_iter().find(trail::TrailFile::is_live));
        present.and_then(trail::TrailFile::first_seq).unwrap_or(self.last.seq.saturating_add(1))
    }

    /// Takes a message on; whether the log stays open.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Record { event, waiter } => {
                match &waiter {
                    Some(_) => self.urgent = true,
                    None => {
                        self.deadline.get_or_insert_with(|| Instant::now() + LATER);
                    }
                }
                self.group.push((event, waiter));
            }
            Message::Flush { done } => {
                let result = self.commit();
                // Whoever asked may have gone.
                let _ = done.send(result);
            }
            Message::Reconfigure => self.urgent = true,
            Message::Close => return false,
        }
        true
    }

    /// Takes other settings over, if they are wanted.
    fn adjust(&mut self) {
        let wanted = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Reconfiguration { keep_days, remote }) = wanted else { return };
        self.keep_days = keep_days;
        self.shipping.aim(remote);
        self.retire(Timestamp::now());
    }

    /// Writes the group and tells everybody.
    fn commit(&mut self) -> Result<(), AuditError> {
        (self.deadline, self.urgent) = (None, false);
        self.adjust();
        let dropped = self.shared.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            self.remark(AuditKind::RecordsDropped { sink: "local".to_owned(), count: dropped });
        }
        if self.group.is_empty() && self.remarks.is_empty() {
            return Ok(());
        }
        let group = std::mem::take(&mut self.group);
        let result = self.write(&group);
        let places = match &result {
            Ok(places) => {
                self.publish(None);
                places.clone()
            }
            Err(error) => {
                self.fail(error, group.len());
                vec![Err(error.clone()); group.len()]
            }
        };
        for ((event, waiter), place) in group.into_iter().zip(places) {
            if let Some(waiter) = waiter {
                // The trail outlives a caller's mistake.
                let _ = catch_unwind(AssertUnwindSafe(|| waiter(place.clone())));
            }
            match place {
                Ok(head) => self.journal.send(&event, Ok(head)),
                Err(error) => self.journal.send(&event, Err(&describe(&error))),
            }
        }
        if self.buffer.capacity() > KEPT_BUFFER {
            self.buffer = Vec::new();
        }
        self.shared.journal_dropped.store(self.journal.dropped_total, Ordering::Relaxed);
        result.map(|_| ())
    }

    /// Writes remarks and group with one sync. The place of each record of the group; an error if none was written.
    fn write(
        &mut self,
        group: &[(Box<AuditEvent>, Option<OnDurable>)],
    ) -> Result<Vec<Result<Head, AuditError>>, AuditError> {
        self.file.repair()?;
        let now = Timestamp::now();
        if let Some(reason) = self.file.damage()? {
            let remark = self.file.replace(reason)?;
            self.remark(remark);
        } else if self.keep_days.is_some() && self.file.is_of_another_day(now) && self.file.rotate()? {
            self.has_rotated = true;
            self.retire(now);
        }
        let recovered = self.failing.map(|lost| {
            let kind = AuditKind::SinkRecovered { sink: "local".to_owned(), lost };
            AuditEvent::new(kind, &Caller::local())
        });
        self.buffer.clear();
        let mut last = self.last;
        let mut add = |buffer: &mut Vec<u8>, event: &AuditEvent| {
            let start = buffer.len();
            let encoded = encode(buffer, last, event).map_err(|_| AuditError::TooLarge);
            let head = encoded.and_then(|head| {
                if buffer.len() - start > MAX_RECORD { Err(AuditError::TooLarge) } else { Ok(head) }
            });
            match head {
                Ok(head) => last = head,
                Err(_) => buffer.truncate(start),
            }
            head
        };
        let mut remarked = Vec::new();
        for event in recovered.iter().chain(&self.remarks) {
            remarked.push(add(&mut self.buffer, event));
        }
        let places = group.iter().map(|(event, _)| add(&mut self.buffer, event)).collect();
        let mut appended = self.file.append(&self.buffer);
        if appended.is_err() && !self.doomed.is_empty() {
            // The room that they take may be what is missing.
            let mut doomed = std::mem::take(&mut self.doomed);
            if self.file.len() == 0 {
                // Until there is a record in the present file, the chain goes on from the newest.
                self.doomed.extend(doomed.pop());
            }
            doomed.iter().for_each(Former::remove);
            appended = self.file.repair().and_then(|()| self.file.append(&self.buffer));
        }
        appended?;
        self.last = last;
        self.groups += 1;
        self.failing = None;
        for former in std::mem::take(&mut self.doomed) {
            former.remove();
        }
        // After what is not worth it has gone.
        if std::mem::take(&mut self.has_rotated) {
            self.compressor.start(self.file.path());
        }
        let remarks = std::mem::take(&mut self.remarks);
        for (event, head) in recovered.iter().chain(&remarks).zip(remarked) {
            self.journal.send(event, head.as_ref().map(|head| *head).map_err(|_| "it is too large"));
        }
        Ok(places)
    }

    fn remark(&mut self, kind: AuditKind) {
        self.remarks.push(AuditEvent::new(kind, &Caller::local()));
    }

    /// Notes that a group could not be written.
    fn fail(&mut self, error: &AuditError, records: usize) {
        let lost = records as u64;
        if self.failing.is_none() {
            let kind = AuditKind::SinkFailed { sink: "local".to_owned(), error: describe(error) };
            let event = AuditEvent::new(kind, &Caller::local());
            self.journal.send(&event, Err("it cannot be written"));
        }
        self.failing = Some(self.failing.unwrap_or(0).saturating_add(lost));
        self.publish(Some(describe(error)));
    }

    fn publish(&self, error: Option<String>) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.head = Some(self.last).filter(|head| head.seq > 0);
        state.error = error;
        state.groups = self.groups;
        state.lost = self.failing.unwrap_or(0);
        drop(state);
        self.shipping.reached(self.last);
    }
}

/// Compresses rotated files beside the writer, which must not wait for that.
#[derive(Default)]
struct Compressor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Compressor {
    /// Compresses what is there to be compressed. If that is under way already, what is new waits for the next time.
    fn start(&mut self, log: &std::path::Path) {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let (stop, log) = (Arc::clone(&self.stop), log.to_owned());
        let compress = move || {
            // Left plain it is as good, and tried again at the next rotation and at the next start.
            let _ = trail::compress_all(&log, &stop);
        };
        self.thread = std::thread::Builder::new().name("audit-compress".to_owned()).spawn(compress).ok();
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its errors were its own.
            let _ = thread.join();
        }
    }
}
