//! A reboot that was asked for: the order is left for the reboot window, and watched until it is known what came of it.
//!
//! Nothing here reboots a host. That does `linux-patch-host reboot-window`, which knows the window, drains the host and asks
//! for the fleet's lock; `patch_types::reboot` says how the two get on. This holds no lock that a change of packages would
//! wait for, and a process that goes down with the host is taken up again by the recovery at boot.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use patch_apply::apt::argv::Argv;
use patch_backends::system;
use patch_types::{
    ErrorCode, ErrorDetail, EventKind, JobStatus, Operation, Outcome, Phase,
    event::{Ended, LogStream},
    operation,
    reboot::{
        FORCED_PATIENCE, MAX_QUEUED, OVER, QUEUED, QueuedReboot, REBOOTS_DIR, RebootOrder, RebootReport,
        TAKEN, WindowStatus,
    },
};
use rustix::event::{Timespec, poll};

use crate::{
    ceiling::Ceiling,
    change::{self, Stop},
    events::Events,
    journal::{Journal, State, write_whole},
    paths::Paths,
    solver, stop,
};

/// The program that knows the reboot window.
const HOST_TOOL: &str = "/usr/sbin/linux-patch-host";

/// The unit that looks after the reboot window once.
const LOOK: &str = "linux-patch-reboot-window.service";

/// How often it is looked what became of the order. A signal ends the wait at once.
const EVERY: Duration = Duration::from_secs(1);

/// How often the reboot window is made to look. systemd refuses to start a unit more than five times in ten seconds.
const LOOKS: Duration = Duration::from_secs(3);

/// How often it is looked whether the reboot window has changed.
const ASKS: Duration = Duration::from_secs(300);

/// How often the reboot window is made to look after an order that it has taken: it holds it up itself until the host is down.
const TAKEN_LOOKS: Duration = Duration::from_secs(60);

/// How often it is looked whether reboots are still allowed.
const CHECKS: Duration = Duration::from_secs(10);

/// How long a host that was rebooted has to come into service.
const COMES_UP: Duration = Duration::from_secs(30 * 60);

/// Where an order is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Queued,
    Taken,
    Over,
    Gone,
}

/// Carries the operation out from its acceptance.
///
/// # Errors
/// When it has to be taken up again.
pub(crate) fn run(paths: &Paths, journal: Journal, events: Events, by: String) -> anyhow::Result<()> {
    let mut watch = Watch { paths, journal, events };
    let ended = watch.begin(by).and_then(|order| watch.wait(&order));
    watch.end(ended)
}

/// Takes it up again.
///
/// # Errors
/// As [`run`].
pub(crate) fn resume(
    paths: &Paths,
    journal: Journal,
    events: Events,
    order: &RebootOrder,
) -> anyhow::Result<()> {
    let mut watch = Watch { paths, journal, events };
    let ended = watch.take_up(order).and_then(|()| watch.wait(order));
    watch.end(ended)
}

/// What the reboot window says of itself.
///
/// # Errors
/// When it cannot be asked.
pub(crate) fn window(paths: &Paths) -> Result<WindowStatus, ErrorDetail> {
    let root = paths.root().display().to_string();
    let args = ["--json", "--root", &root, "reboot-window", "status"].map(str::to_owned);
    let said = solver::capture(&Argv::new(HOST_TOOL, args.to_vec()))
        .map_err(|error| unanswered(format!("the reboot window cannot be asked: {}", error.message)))?;
    if said.code != Some(0) {
        return Err(unanswered(format!("the reboot window does not answer: {}", said.text().trim())));
    }
    let status: WindowStatus = serde_json::from_str(&said.stdout)
        .map_err(|error| unanswered(format!("what the reboot window says is not understood: {error}")))?;
    let boot = Some(system::boot_id(paths.root())).filter(|boot| !boot.is_empty());
    Ok(WindowStatus { boot, ..status })
}

fn unanswered(message: String) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::ServiceUnhealthy, message)
}

fn failed(message: String) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::SystemRebootError, message)
}

fn closed(message: String) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::RebootWindowClosed, message)
}

struct Watch<'a> {
    paths: &'a Paths,
    journal: Journal,
    events: Events,
}

impl Watch<'_> {
    fn directory(&self) -> PathBuf {
        self.paths.root().join(REBOOTS_DIR)
    }

    fn name(order: &RebootOrder, suffix: &str) -> String {
        format!("{}.{suffix}", order.job)
    }

    fn file(&self, order: &RebootOrder, suffix: &str) -> PathBuf {
        self.directory().join(Self::name(order, suffix))
    }

    fn boot(&self) -> String {
        system::boot_id(self.paths.root())
    }

    fn remark(&mut self, line: impl Into<String>) {
        self.events.emit(EventKind::Log { stream: LogStream::Executor, line: line.into() });
    }

    /// Leaves the order.
    fn begin(&mut self, by: String) -> Result<RebootOrder, Stop> {
        let Operation::Reboot(operation::Reboot {
            delay_seconds,
            reason,
            force,
            boot: asked_in,
            at: asked_at,
        }) = self.journal.record.operation.clone()
        else {
            return Err(failed("this is no reboot".to_owned()).into());
        };
        let boot = self.boot();
        if boot.is_empty() {
            let message = "the kernel does not say which boot this is (/proc/sys/kernel/random/boot_id), so nobody could \
                           tell whether the host was rebooted; nothing was queued";
            return Err(failed(message.to_owned()).into());
        }
        if asked_in.is_some_and(|asked_in| asked_in != boot) {
            return Err(self.fulfilled());
        }
        if !force && let Some(objection) = window(self.paths)?.objection() {
            return Err(closed(format!("{objection}; nothing was queued")).into());
        }
        let accepted_at = self.journal.record.accepted_at;
        let at = asked_at.map_or(accepted_at, |at| at.min(accepted_at));
        let delay = SignedDuration::from_secs(i64::try_from(delay_seconds).unwrap_or(i64::MAX));
        let not_before = at.checked_add(delay).unwrap_or(Timestamp::MAX);
        let (now, uptime) = (Timestamp::now(), self.uptime());
        let due_uptime = i64::try_from(uptime.as_secs())
            .ok()
            .filter(|up| force && *up > 0)
            .map(|up| up.saturating_sub(now.duration_since(not_before).as_secs()));
        let job = self.journal.record.id;
        let order = RebootOrder { job, by, reason, force, at, not_before, boot, due_uptime };
        if order.is_expired(now, uptime) {
            let message = format!(
                "the reboot was asked for at {at:.0}, and the root side could not be asked before {now:.0}; that is too late, \
                 and nothing was queued"
            );
            return Err(failed(message).into());
        }
        // One that nobody can be told of any more must not reboot a host.
        self.enter(&order, false, false, None).map_err(|error| self.unwritable(&error))?;
        self.leave(&order)?;
        if let Err(error) = self.enter(&order, false, true, None)
            && fs::remove_file(self.file(&order, QUEUED)).is_ok()
        {
            return Err(self.unwritable(&error).into());
        }
        Ok(order)
    }

    /// Sees to it that the order of an interrupted operation was left, once, and not taken back.
    fn take_up(&mut self, order: &RebootOrder) -> Result<(), Stop> {
        let State::Rebooting { left, withdrawing, taken, .. } = self.journal.record.state.clone() else {
            return Err(failed("the order is not on disk".to_owned()).into());
        };
        let place = self.place(order);
        match (place, withdrawing) {
            (Place::Gone, Some(ended)) => return Err(Stop::End(ended)),
            // Between the journal and the order lies a moment.
            (Place::Gone, None) if !left => {
                if self.journal.cancel_requested() {
                    return Err(cancelled());
                }
                if self.is_other_boot(order) {
                    return Err(self.fulfilled());
                }
                self.leave(order)?;
            }
            _ => {}
        }
        if !left && let Err(error) = self.enter(order, taken, true, None) {
            eprintln!("patch-executor: cannot journal: {error}; going on");
        }
        Ok(())
    }

    fn enter(
        &mut self,
        order: &RebootOrder,
        taken: bool,
        left: bool,
        withdrawing: Option<Box<Ended>>,
    ) -> io::Result<()> {
        self.journal.enter(State::Rebooting { order: order.clone(), taken, left, withdrawing })
    }

    fn uptime(&self) -> Duration {
        Duration::from_secs(system::uptime_seconds(self.paths.root()))
    }

    /// A boot that the kernel does not name is not another one.
    fn is_other_boot(&self, order: &RebootOrder) -> bool {
        let boot = self.boot();
        !boot.is_empty() && boot != order.boot
    }

    /// The end of an operation whose reboot somebody else carried out.
    fn fulfilled(&mut self) -> Stop {
        self.remark(
            "the host was rebooted meanwhile, not by this job; once is enough. Whether it is in service was not looked at",
        );
        Stop::End(ended(JobStatus::Completed, Outcome::Unchanged, None))
    }

    fn unwritable(&self, error: &io::Error) -> ErrorDetail {
        let code = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::DiskSpace,
            _ => ErrorCode::SystemRebootError,
        };
        let message =
            format!("{} cannot be written ({error}), so nothing was queued", self.paths.state().display());
        ErrorDetail::new(code, message)
    }

    fn leave(&self, order: &RebootOrder) -> Result<(), Stop> {
        let directory = self.directory();
        let made = match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        };
        made.map_err(|error| self.unwritable(&error))?;
        let queued = fs::read_dir(&directory).map_err(|error| self.unwritable(&error))?.flatten();
        let suffix = format!(".{QUEUED}");
        if queued.filter(|entry| entry.file_name().to_string_lossy().ends_with(&suffix)).count() >= MAX_QUEUED
        {
            let message = format!("{MAX_QUEUED} reboots are queued already; one of them is enough for all");
            return Err(ErrorDetail::new(ErrorCode::JobConflict, message).into());
        }
        let text = serde_json::to_vec(order).map_err(|error| failed(error.to_string()))?;
        write_whole(&directory, &Self::name(order, QUEUED), &text)
            .map_err(|error| self.unwritable(&error).into())
    }

    /// Where the order is. It moves in one direction, and back from being taken: whoever looks at one place after the other
    /// may miss it once.
    fn place(&self, order: &RebootOrder) -> Place {
        for _ in 0..3 {
            for (suffix, place) in [(OVER, Place::Over), (QUEUED, Place::Queued), (TAKEN, Place::Taken)] {
                if self.file(order, suffix).exists() {
                    return place;
                }
            }
        }
        Place::Gone
    }

    /// Takes the order back and ends the operation so; goes on if that is too late.
    fn withdraw(&mut self, order: &RebootOrder, end: Stop) -> Result<(), Stop> {
        let Stop::End(ended) = end else { return Err(end) };
        // On disk first: who takes this up must not leave the order again, nor wonder where it is.
        if let Err(error) = self.enter(order, false, true, Some(ended.clone())) {
            eprintln!("patch-executor: cannot journal: {error}; going on");
        }
        let path = self.file(order, QUEUED);
        match fs::remove_file(&path) {
            Ok(()) => return Err(Stop::End(ended)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => eprintln!("patch-executor: {} cannot be removed: {error}", path.display()),
        }
        if let Err(error) = self.enter(order, false, true, None) {
            eprintln!("patch-executor: cannot journal: {error}; going on");
        }
        Ok(())
    }

    /// Waits for what comes of the order.
    fn wait(&mut self, order: &RebootOrder) -> Result<Box<Ended>, Stop> {
        let State::Rebooting { taken: mut was_taken, .. } = self.journal.record.state.clone() else {
            return Err(failed("the order is not on disk".to_owned()).into());
        };
        let begun = Instant::now();
        let (mut looked, mut asked): (Option<Instant>, Option<Instant>) = (None, None);
        let mut told: Option<Option<Timestamp>> = None;
        let mut checked: Option<Instant> = None;
        let mut told_too_late = false;
        let mut trouble = String::new();
        self.events
            .emit(EventKind::Phase { phase: if was_taken { Phase::Rebooting } else { Phase::Waiting } });
        loop {
            let place = self.place(order);
            let (boot, is_other_boot) = (self.boot(), self.is_other_boot(order));
            match place {
                Place::Over => return self.report(order),
                Place::Gone => {
                    let message = "the order to reboot has vanished, and with it what came of it; see \
                                   `linux-patch-host record`";
                    return Err(failed(message.to_owned()).into());
                }
                Place::Queued if is_other_boot => {
                    let end = self.fulfilled();
                    self.withdraw(order, end)?;
                    // Nobody carries it out any more, even if it cannot be removed.
                    if self.file(order, QUEUED).exists() {
                        return Ok(ended(JobStatus::Completed, Outcome::Unchanged, None));
                    }
                }
                Place::Queued | Place::Taken => {}
            }
            let is_taken = place == Place::Taken;
            if is_taken != was_taken {
                was_taken = is_taken;
                // Who has just taken it is still at it.
                looked = is_taken.then(Instant::now);
                // The order says the same, and is on disk.
                if let Err(error) = self.enter(order, is_taken, true, None) {
                    eprintln!("patch-executor: cannot journal: {error}; going on");
                }
                let phase = if is_taken { Phase::Rebooting } else { Phase::Waiting };
                self.events.emit_durably(EventKind::Phase { phase });
            }
            if stop::is_asked() {
                return Err(Stop::Suspended);
            }
            if self.journal.cancel_requested() {
                // It may come back among those that wait, and is cancelled then.
                if !is_taken {
                    self.withdraw(order, cancelled())?;
                }
                if !told_too_late {
                    told_too_late = true;
                    self.remark("it cannot be cancelled now: the host is being rebooted");
                }
            }
            let (now, uptime) = (Timestamp::now(), self.uptime());
            let is_due = order.is_due(now, uptime, &boot);
            let is_time = |last: &Option<Instant>, every| last.is_none_or(|last| last.elapsed() >= every);
            if !is_taken && is_time(&checked, CHECKS) {
                checked = Some(Instant::now());
                let admitted = Ceiling::load(self.paths.root())
                    .and_then(|ceiling| ceiling.admits(&self.journal.record.operation));
                if let Err(error) = admitted {
                    self.withdraw(order, error.into())?;
                }
            }
            // Before the reboot window is made to look: what is too old must not be carried out.
            if !is_taken && order.is_expired(now, uptime) {
                let message = format!(
                    "the reboot window did not take the order up within {FORCED_PATIENCE:#}{trouble}; see `journalctl -u {LOOK}`"
                );
                self.withdraw(order, failed(message).into())?;
            }
            if !is_taken && !order.force && is_time(&asked, ASKS) {
                asked = Some(Instant::now());
                match window(self.paths) {
                    Ok(status) => self.look_at(order, &status, &mut told)?,
                    Err(error) => self.remark(error.message),
                }
            }
            if !is_taken && order.force && told.is_none() {
                told = Some(Some(order.not_before));
                self.events.emit(EventKind::Scheduled { until: Some(order.not_before) });
            }
            // Whether or not the timer runs: somebody has to look whether the host is in service after the boot, and what came
            // of a reboot that does not come.
            let looks = if is_taken && !is_other_boot { TAKEN_LOOKS } else { LOOKS };
            if (is_taken || (order.force && is_due)) && is_time(&looked, looks) {
                looked = Some(Instant::now());
                if let Err(error) = look() {
                    trouble = format!("; {error}");
                }
            }
            if is_taken && is_other_boot && begun.elapsed() > COMES_UP {
                let message = format!(
                    "the host was rebooted, and the reboot window does not say that it is in service{trouble}; see \
                     `linux-patch-host reboot-window status`"
                );
                let error = ErrorDetail::new(ErrorCode::ServiceUnhealthy, message);
                return Ok(ended(JobStatus::Failed, Outcome::Applied, Some(error)));
            }
            pause();
        }
    }

    /// Tells when the reboot may come, and gives up where it never will.
    fn look_at(
        &mut self,
        order: &RebootOrder,
        status: &WindowStatus,
        told: &mut Option<Option<Timestamp>>,
    ) -> Result<(), Stop> {
        let at = status.opens.get(&order.job).map(|at| (*at).max(order.not_before).max(order.at));
        // It may have been taken up between the two looks.
        let is_queued = |queued: &QueuedReboot| queued.job_id == order.job && !queued.is_under_way;
        if *told != Some(at) && status.queued.iter().any(is_queued) {
            *told = Some(at);
            self.events.emit_durably(EventKind::Scheduled { until: at });
            let when = at.map_or("never".to_owned(), |at| format!("{at:.0}"));
            self.remark(format!("the host is rebooted in its window, not before {when}"));
        }
        match status.objection() {
            None => Ok(()),
            // It may be switched on again in a moment: an upgrade does that.
            Some(objection) if status.has_window => {
                self.remark(objection);
                Ok(())
            }
            Some(objection) => self.withdraw(order, closed(objection).into()),
        }
    }

    /// What came of it, as the reboot window says and the kernel proves.
    fn report(&mut self, order: &RebootOrder) -> Result<Box<Ended>, Stop> {
        let path = self.file(order, OVER);
        let read = fs::read(&path).map_err(|error| error.to_string());
        let report: Result<RebootReport, _> =
            read.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                let message = format!("what came of the reboot cannot be read: {}: {error}", path.display());
                return Err(failed(message).into());
            }
        };
        self.remark(report.what.as_str());
        if !report.is_rebooted {
            return Err(failed(report.what).into());
        }
        let boot = self.boot();
        if boot.is_empty() {
            let message = format!(
                "the kernel does not say which boot this is (/proc/sys/kernel/random/boot_id), so that this is not proven: {}",
                report.what
            );
            let mut end = ended(JobStatus::Failed, Outcome::Unchanged, Some(failed(message)));
            end.outcome = None;
            return Ok(end);
        }
        if boot == order.boot {
            let message = format!(
                "the kernel says that this is still the boot in which the reboot was asked for, although: {}",
                report.what
            );
            return Err(failed(message).into());
        }
        let error = (!report.is_well).then(|| ErrorDetail::new(ErrorCode::ServiceUnhealthy, report.what));
        let status = if error.is_none() { JobStatus::Completed } else { JobStatus::Failed };
        Ok(ended(status, Outcome::Applied, error))
    }

    fn end(mut self, result: Result<Box<Ended>, Stop>) -> anyhow::Result<()> {
        match result {
            Ok(ended) | Err(Stop::End(ended)) => {
                change::finish(self.paths, &mut self.journal, &mut self.events, ended);
                // Nobody may leave the order again, or wonder where it is: who takes this up needs what lies there.
                if !self.journal.is_ended_on_disk() {
                    anyhow::bail!("the end of reboot {} is not on disk yet", self.journal.record.id);
                }
                let directory = self.directory();
                for suffix in [QUEUED, TAKEN, OVER] {
                    // Most of them are not there, and one that stays names a job that is over.
                    let _ = fs::remove_file(directory.join(format!("{}.{suffix}", self.journal.record.id)));
                }
                Ok(())
            }
            Err(Stop::Suspended) => anyhow::bail!("reboot {} is not ended yet", self.journal.record.id),
        }
    }
}

/// Has the reboot window look now.
fn look() -> Result<(), String> {
    let args = ["start", "--no-block", LOOK].map(str::to_owned);
    match solver::capture(&Argv::new("/usr/bin/systemctl", args.to_vec())) {
        Ok(said) if said.code == Some(0) => Ok(()),
        Ok(said) => Err(format!("systemctl start {LOOK} failed: {}", said.text().trim())),
        Err(error) => Err(error.message),
    }
}

/// A signal that arrives meanwhile ends it.
fn pause() {
    let limit = Timespec { tv_sec: i64::try_from(EVERY.as_secs()).unwrap_or(1), tv_nsec: 0 };
    let _ = poll(&mut [], Some(&limit));
}

fn cancelled() -> Stop {
    let message = "the reboot was cancelled before it was begun; the host is not rebooted for it";
    Stop::unchanged(JobStatus::Cancelled, ErrorDetail::new(ErrorCode::JobCancelled, message))
}

fn ended(status: JobStatus, outcome: Outcome, error: Option<ErrorDetail>) -> Box<Ended> {
    Box::new(Ended {
        status,
        outcome: Some(outcome),
        exit_code: None,
        error,
        results: Vec::new(),
        answer: None,
    })
}

#[cfg(test)]
mod tests {
    use patch_types::{ChangeOptions, JobId, executor::Limits};
    use uuid::Uuid;

    use super::*;

    struct Host {
        dir: tempfile::TempDir,
        paths: Paths,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let host = Self { paths: Paths::below(dir.path().to_owned()), dir };
            for dir in
                [host.paths.state().join("journal"), host.paths.events(), host.dir.path().join(REBOOTS_DIR)]
            {
                fs::create_dir_all(dir).unwrap();
            }
            host.boot("first");
            host
        }

        fn boot(&self, id: &str) {
            let path = self.dir.path().join("proc/sys/kernel/random");
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("boot_id"), id).unwrap();
        }

        /// An operation whose order waits.
        fn watch(&self) -> (Watch<'_>, RebootOrder) {
            self.watch_of(operation::Reboot::default())
        }

        fn journal_of(&self, reboot: operation::Reboot) -> (Journal, Events) {
            let id = JobId(Uuid::now_v7());
            let reboot = operation::Reboot { reason: Some("x".into()), force: true, ..reboot };
            let (limits, options) = (Limits::default(), ChangeOptions::default());
            let operation = Operation::Reboot(reboot);
            let journal =
                Journal::create(&self.paths.journal(id), id, operation, limits, None, options).unwrap();
            (journal, Events::create(&self.paths.event_file(id)).unwrap())
        }

        fn watch_of(&self, reboot: operation::Reboot) -> (Watch<'_>, RebootOrder) {
            let (journal, events) = self.journal_of(reboot);
            let mut watch = Watch { paths: &self.paths, journal, events };
            let Ok(order) = watch.begin("ann".into()) else { panic!("nothing is queued") };
            (watch, order)
        }

        fn put(&self, order: &RebootOrder, is_rebooted: bool, is_well: bool) {
            let report = RebootReport { is_rebooted, is_well, what: "so it went".into() };
            let dir = self.dir.path().join(REBOOTS_DIR);
            fs::write(dir.join(format!("{}.{OVER}", order.job)), serde_json::to_vec(&report).unwrap())
                .unwrap();
            fs::remove_file(dir.join(format!("{}.{QUEUED}", order.job))).unwrap();
        }

        fn left(&self) -> usize {
            fs::read_dir(self.dir.path().join(REBOOTS_DIR)).unwrap().count()
        }
    }

    fn end(mut watch: Watch<'_>, order: &RebootOrder) -> Ended {
        let result = watch.wait(order);
        let ended = match &result {
            Ok(ended) | Err(Stop::End(ended)) => (**ended).clone(),
            Err(Stop::Suspended) => panic!("it is not over"),
        };
        watch.end(result).unwrap();
        ended
    }

    #[test]
    fn a_reboot_is_over_when_the_kernel_and_the_window_say_so() {
        use ErrorCode::{ServiceUnhealthy, SystemRebootError};
        use JobStatus::{Completed, Failed};
        use Outcome::{Applied, Unchanged};
        for (rebooted, well, boot, status, outcome, code) in [
            (true, true, "second", Completed, Applied, None),
            (true, false, "second", Failed, Applied, Some(ServiceUnhealthy)),
            (true, true, "first", Failed, Unchanged, Some(SystemRebootError)),
            (false, false, "first", Failed, Unchanged, Some(SystemRebootError)),
        ] {
            let host = Host::new();
            let (watch, order) = host.watch();
            assert_eq!((order.by.as_str(), order.boot.as_str(), host.left()), ("ann", "first", 1));
            host.put(&order, rebooted, well);
            host.boot(boot);
            let ended = end(watch, &order);
            assert_eq!((ended.status, ended.outcome), (status, Some(outcome)));
            assert_eq!(ended.error.map(|error| error.code), code);
            assert_eq!(host.left(), 0);
        }
    }

    #[test]
    fn an_order_that_waits_is_taken_back_or_fulfilled_by_another_reboot() {
        let host = Host::new();
        let (watch, order) = host.watch();
        watch.journal.request_cancel().unwrap();
        let ended = end(watch, &order);
        assert_eq!(
            (ended.status, ended.outcome, host.left()),
            (JobStatus::Cancelled, Some(Outcome::Unchanged), 0)
        );
        let (watch, order) = host.watch();
        host.boot("second");
        let ended = end(watch, &order);
        assert_eq!(
            (ended.status, ended.outcome, host.left()),
            (JobStatus::Completed, Some(Outcome::Unchanged), 0)
        );
        let (watch, order) = host.watch();
        fs::remove_file(watch.file(&order, QUEUED)).unwrap();
        assert!(end(watch, &order).error.unwrap().message.contains("vanished"));
    }

    #[test]
    fn no_more_are_queued_than_anybody_needs() {
        let host = Host::new();
        let watches: Vec<_> = (0..MAX_QUEUED).map(|_| host.watch()).collect();
        let (watch, order) = &watches[0];
        let Err(Stop::End(ended)) = watch.leave(order) else { panic!("one more was queued") };
        assert_eq!(ended.error.unwrap().code, ErrorCode::JobConflict);
    }

    /// What is on disk, taken up by another process.
    fn again<'a>(host: &'a Host, watch: Watch<'_>) -> Watch<'a> {
        let id = watch.journal.record.id;
        drop(watch);
        let journal = Journal::open(&host.paths.journal(id)).unwrap();
        let (events, _) = Events::resume(&host.paths.event_file(id)).unwrap();
        Watch { paths: &host.paths, journal, events }
    }

    fn stopped(result: Result<(), Stop>) -> Ended {
        let Err(Stop::End(ended)) = result else { panic!("it goes on") };
        *ended
    }

    #[test]
    fn an_order_of_an_earlier_boot_or_of_long_ago_is_not_left() {
        let host = Host::new();
        let now = Timestamp::now();
        let earlier = operation::Reboot { boot: Some("zeroth".into()), at: Some(now), ..Default::default() };
        let long_ago = now - SignedDuration::from_mins(50);
        let late = operation::Reboot { boot: Some("first".into()), at: Some(long_ago), ..Default::default() };
        for (reboot, status) in [(earlier, JobStatus::Completed), (late, JobStatus::Failed)] {
            let (journal, events) = host.journal_of(reboot);
            let mut watch = Watch { paths: &host.paths, journal, events };
            let ended = stopped(watch.begin("ann".into()).map(drop));
            assert_eq!((ended.status, ended.outcome), (status, Some(Outcome::Unchanged)));
            assert_eq!(host.left(), 0);
        }
        // The delay counts from when it was asked for.
        let at = now - SignedDuration::from_mins(10);
        let (_, order) =
            host.watch_of(operation::Reboot { at: Some(at), delay_seconds: 60, ..Default::default() });
        assert_eq!((order.at, order.not_before), (at, at + SignedDuration::from_mins(1)));
    }

    #[test]
    fn an_order_that_was_taken_back_is_not_left_again() {
        let host = Host::new();
        // Taken back, and its process died before it could say so.
        let (mut watch, order) = host.watch();
        assert_eq!(stopped(watch.withdraw(&order, cancelled())).status, JobStatus::Cancelled);
        let mut watch = again(&host, watch);
        assert_eq!(stopped(watch.take_up(&order)).status, JobStatus::Cancelled);
        assert_eq!(host.left(), 0);
        // It vanished otherwise.
        let (watch, order) = host.watch();
        fs::remove_file(watch.file(&order, QUEUED)).unwrap();
        let mut watch = again(&host, watch);
        assert!(watch.take_up(&order).is_ok());
        assert_eq!(host.left(), 0);
        // It was never left: it is now, unless it was cancelled.
        for is_cancelled in [false, true] {
            let (mut watch, order) = host.watch();
            fs::remove_file(watch.file(&order, QUEUED)).unwrap();
            watch.enter(&order, false, false, None).unwrap();
            if is_cancelled {
                watch.journal.request_cancel().unwrap();
            }
            let mut watch = again(&host, watch);
            assert_eq!(watch.take_up(&order).is_err(), is_cancelled);
            assert_eq!(watch.file(&order, QUEUED).exists(), !is_cancelled);
        }
    }

    #[test]
    fn an_order_waits_no_longer_than_it_holds_and_not_on_a_frozen_host() {
        let host = Host::new();
        let (watch, mut order) = host.watch();
        order.not_before -= SignedDuration::from_mins(46);
        order.due_uptime = order.due_uptime.map(|due| due - 46 * 60);
        let ended_so = end(watch, &order);
        assert!(ended_so.error.unwrap().message.contains("did not take the order up"));
        assert_eq!(host.left(), 0);
        let (watch, order) = host.watch();
        let dir = host.dir.path().join("etc/linux_patch_api");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("freeze"), "inventory").unwrap();
        let error = end(watch, &order).error.unwrap();
        assert!(error.code == ErrorCode::AuthzForbidden && error.message.contains("frozen"), "{error:?}");
        assert_eq!(host.left(), 0);
    }

    #[test]
    fn a_boot_without_a_name_is_no_other_boot() {
        let host = Host::new();
        let (watch, order) = host.watch();
        host.boot("");
        assert!(!watch.is_other_boot(&order));
        host.put(&order, true, true);
        let ended = end(watch, &order);
        assert_eq!((ended.status, ended.outcome), (JobStatus::Failed, None));
    }
}
