//! One look of the timer: settles what is pending, decides, and does what was decided.
//!
//! What is about to be done is on disk before it is done. Whatever comes between, a later look finds it and takes it back:
//! undrains the host and gives the fleet's lock back.

use std::time::Duration;

use anyhow::{Context, anyhow};
use jiff::{SignedDuration, Timestamp};
use patch_audit::Priority;
use patch_policy::reboot::{Cause, Decision, FleetLock, Forced, Situation, decide};
use patch_types::reboot::{RebootOrder, RebootReport};

use super::{
    command,
    fleet_lock::{LockError, Server, Step},
    machine::{Changes, Health, Lock, Machine, try_lock, until},
    orders::{self, fingerprint, sentence},
    restarts,
    settings::Settings,
    state::{Back, Pending, Phase, State, Told},
};
use crate::screen::aside;

const LOCK: &str = "reboot-window.lock";

/// How long a drain may take at most; a window that ends before that ends it.
const DRAIN: Duration = Duration::from_secs(30 * 60);

/// How long undraining may take.
const UNDRAIN: Duration = Duration::from_secs(10 * 60);

/// How long systemd may take to shut the host down. Services may have long timeouts.
pub(super) const SHUTDOWN: Duration = Duration::from_secs(30 * 60);

/// For how long a server that is not configured any more is asked to take its lock back.
const FORMER_PATIENCE: SignedDuration = SignedDuration::from_hours(1);

/// How often it is asked at least meanwhile: a clock that jumps must not end that at once. Others than the timer look as well,
/// and much more often, so that counting alone says nothing.
const FORMER_TRIES: u32 = 12;

/// After so long the same is recorded again.
const AGAIN: SignedDuration = SignedDuration::from_hours(24);

/// What became of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// systemd was told to reboot the host; why.
    Reboots(String),
    /// Nothing has to be done, or all of it was done. What is the matter, for people.
    Done(String),
    /// Something failed; what.
    Failed(String),
}

/// One look.
pub(super) struct Tick<'a> {
    machine: &'a Machine,
    settings: Settings,
    /// Whether the settings could be read. Otherwise what is configured now is not known, which is not the same as nothing.
    is_configured: bool,
    state: State,
    clock: &'a dyn Fn() -> Timestamp,
    forced: Option<Forced>,
    /// The reboots that were asked for and may come now.
    orders: Vec<RebootOrder>,
    reboots: &'a mut dyn FnMut(&str),
    _alone: Lock,
}

/// Looks once. `reboots` is called with the reason when systemd was told to reboot the host, which goes down some time later:
/// until it returns no package is changed, so it is to wait for that.
///
/// # Errors
/// When something cannot be read or written without which nothing may be done. It is on record if that could be.
pub(super) fn tick(
    machine: &Machine,
    clock: &dyn Fn() -> Timestamp,
    forced: Option<Forced>,
    reboots: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    let is_forced = forced.is_some();
    Ok(match look(machine, clock, forced, reboots)? {
        // Whoever gives an order waits for a reboot and nothing else.
        Outcome::Done(what) if is_forced => Outcome::Failed(what),
        outcome => outcome,
    })
}

/// How long a drain may take that begins now.
pub(super) fn drain_limit(now: Timestamp, end: Option<Timestamp>) -> Duration {
    end.map_or(DRAIN, |end| until(now, end).min(DRAIN))
}

fn look(
    machine: &Machine,
    clock: &dyn Fn() -> Timestamp,
    forced: Option<Forced>,
    reboots: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    machine.make_directory()?;
    let path = machine.own(LOCK);
    let Some(alone) = try_lock(&path).with_context(|| format!("{} cannot be locked", path.display()))? else {
        return Ok(Outcome::Done("another run is at work".to_owned()));
    };
    let loaded = Settings::load(&machine.root);
    let state = State::load(machine)?;
    let broken = loaded.as_ref().err().map(|error| format!("{error:#}"));
    let is_configured = loaded.is_ok();
    let settings = loaded.unwrap_or_default();
    let now = clock();
    let boot = machine.boot().unwrap_or_default();
    let mut orders = machine.queued()?;
    orders.retain(|order| machine.may_carry_out(order, now, &boot));
    let mut tick =
        Tick { machine, settings, is_configured, state, clock, forced, orders, reboots, _alone: alone };
    let outcome = match broken {
        Some(broken) => tick.run_without_settings(&broken),
        None => tick.run().and_then(|outcome| tick.restart_services(outcome)),
    };
    tick.answer_forced(&outcome);
    if let Err(error) = &outcome {
        // The error itself is shown by the caller.
        let _ = tick.tell(Priority::Medium, &format!("it cannot do its work: {error:#}"));
    }
    outcome
}

impl Tick<'_> {
    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    fn save(&self) -> anyhow::Result<()> {
        self.state.save(self.machine)
    }

    /// Records what happened.
    fn note(&self, priority: Priority, what: &str) -> anyhow::Result<()> {
        self.machine.record(self.now(), priority, what)
    }

    /// Records what is the case, unless that was recorded last and lately.
    fn tell(&mut self, priority: Priority, what: &str) -> anyhow::Result<()> {
        let now = self.now();
        let is_old =
            self.state.told.as_ref().is_some_and(|told| {
                told.what == what && now >= told.at && now.duration_since(told.at) < AGAIN
            });
        if is_old {
            return Ok(());
        }
        self.machine.record(now, priority, what)?;
        self.state.told = Some(Told { what: what.to_owned(), at: now });
        self.save()
    }

    /// Only takes back what was begun.
    fn run_without_settings(&mut self, broken: &str) -> anyhow::Result<Outcome> {
        let what = format!("it is not configured rightly, so the host does not reboot by itself: {broken}");
        if let Some(Outcome::Failed(first)) = self.settle()? {
            // That is on record, and goes before this.
            return Ok(Outcome::Failed(format!("{first}; besides, {what}")));
        }
        self.tell(Priority::Medium, &what)?;
        Ok(Outcome::Failed(what))
    }

    /// Says what came of orders that do not wait, if the host does not reboot for them. Those that wait stay.
    fn answer_forced(&self, outcome: &anyhow::Result<Outcome>) {
        let why = match outcome {
            Ok(Outcome::Reboots(_)) => return,
            // It is about to reboot, or has just done so: the next look knows more.
            Ok(Outcome::Done(_)) if self.state.pending.is_some() => return,
            Ok(Outcome::Done(what) | Outcome::Failed(what)) => what.clone(),
            Err(error) => format!("{error:#}"),
        };
        for order in self.orders.iter().filter(|order| order.force) {
            self.answer(order, false, false, &format!("the host was not rebooted: {why}"));
        }
    }

    /// Says what came of an order.
    fn answer(&self, order: &RebootOrder, is_rebooted: bool, is_well: bool, what: &str) {
        let report = RebootReport { is_rebooted, is_well, what: what.to_owned() };
        // What was done was done, whether or not anybody can be told.
        if let Err(error) = self.machine.report(order, &report) {
            aside(&format!("job {} is not told: {error:#}", order.job));
        }
    }

    /// Puts an order back among those that wait, if it was taken up.
    fn put_back(&self, order: &RebootOrder) {
        // Taking back what was done for the reboot goes before this, and a later look finds the order.
        if let Err(error) = self.machine.put_back(order) {
            aside(&format!("the order of job {} is not put back: {error:#}", order.job));
        }
    }

    fn run(&mut self) -> anyhow::Result<Outcome> {
        if let Some(outcome) = self.settle()? {
            return Ok(outcome);
        }
        if self.forced.is_none()
            && let Some(order) = self.orders.iter().find(|order| order.force)
        {
            self.forced = Some(orders::forced(order));
        }
        let causes = self.observe()?;
        let mut changes = self.machine.changes()?;
        let mut lock = match &self.settings.fleet_lock {
            Some(_) => FleetLock::NotAsked,
            None => FleetLock::NotConfigured,
        };
        let mut decision = self.decide(&causes, changes.transaction.as_deref(), &lock);
        let leaves_something = decision.wants_lock()
            || (matches!(decision, Decision::Reboot { .. }) && self.settings.drain.is_some());
        if leaves_something && let Some(why) = self.machine.timer_is_off()? {
            let what = format!(
                "the host is not rebooted, because nobody would undrain it or give the fleet's lock back: {why}"
            );
            self.tell(Priority::Medium, &what)?;
            return Ok(Outcome::Failed(what));
        }
        if decision.wants_lock() {
            lock = self.take_lock(&causes)?;
            decision = self.decide(&causes, changes.transaction.as_deref(), &lock);
        }
        let said = decision.to_string();
        match decision {
            // Noted with what is done.
            Decision::Reboot { until } => self.reboot(&causes, &mut changes, &lock, until),
            Decision::NotNow { .. } => {
                self.tell(Priority::Info, &said)?;
                Ok(self.undo()?.unwrap_or(Outcome::Done(said)))
            }
            Decision::Escalate { .. } => {
                self.tell(Priority::High, &said)?;
                Ok(self.undo()?.unwrap_or(Outcome::Done(said)))
            }
        }
    }

    /// Restarts the services that wait for the window, if it is open and the host does not reboot.
    fn restart_services(&mut self, outcome: Outcome) -> anyhow::Result<Outcome> {
        let now = self.now();
        let opening = self.settings.window.as_ref().and_then(|window| window.open_at(now));
        let Outcome::Done(what) = outcome else { return Ok(outcome) };
        let Some(opening) = opening.filter(|_| self.state.pending.is_none() && self.forced.is_none()) else {
            return Ok(Outcome::Done(what));
        };
        let done = restarts::carry_out(self.machine, self.clock, opening.ends)?;
        let said = std::iter::once(what).chain(done.said).collect::<Vec<_>>().join("; ");
        Ok(if done.failed { Outcome::Failed(said) } else { Outcome::Done(said) })
    }

    fn observe(&mut self) -> anyhow::Result<Vec<Cause>> {
        let mut present = self.machine.causes()?;
        let waiting = self.orders.iter().filter(|order| !order.force);
        present.extend(waiting.map(|order| (fingerprint(order), sentence(order))));
        let mut ledger = self.state.ledger();
        let causes = ledger.observe(self.now(), self.machine.uptime(), &present);
        if ledger != self.state.ledger() {
            self.state.set_ledger(ledger);
            self.save()?;
        }
        Ok(causes)
    }

    fn decide(&self, causes: &[Cause], transaction: Option<&str>, lock: &FleetLock) -> Decision {
        decide(&Situation {
            now: self.now(),
            window: self.settings.window.as_ref(),
            causes,
            transaction,
            inhibitors: &self.machine.inhibitors(),
            fleet_lock: lock,
            max_defer_days: self.settings.max_defer_days,
            forced: self.forced.as_ref(),
        })
    }

    /// Why the host is rebooted, as a sentence.
    fn why(&self, causes: &[Cause]) -> String {
        let causes = causes.iter().map(|cause| cause.sentence.as_str()).collect::<Vec<_>>().join("; ");
        match &self.forced {
            Some(order) => format!("{}, by order of {}", order.reason, order.by),
            None => causes,
        }
    }

    /// Writes down what is to be taken back if this goes no further.
    fn prepare(&mut self, causes: &[Cause], change: impl FnOnce(&mut Pending)) -> anyhow::Result<()> {
        let mut pending = match self.state.pending.take() {
            Some(pending) => pending,
            None => Pending {
                phase: Phase::Preparing,
                boot: self.machine.boot()?,
                at: self.now(),
                why: self.why(causes),
                drained: false,
                locked: false,
                failed_units: self.machine.failed_units()?,
                back: Some(Back {
                    undrain: self.settings.undrain.clone(),
                    environment: self.settings.environment.clone(),
                    server: self.settings.fleet_lock.clone(),
                    former_tries: 0,
                    former_since: None,
                }),
            },
        };
        change(&mut pending);
        self.state.pending = Some(pending);
        self.save()
    }

    fn take_lock(&mut self, causes: &[Cause]) -> anyhow::Result<FleetLock> {
        let Some(server) = self.settings.fleet_lock.clone() else { return Ok(FleetLock::NotConfigured) };
        let id = self.machine.lock_id()?;
        self.prepare(causes, |pending| pending.locked = true)?;
        match server.ask(Step::PreReboot, &id) {
            Ok(()) => Ok(FleetLock::Held),
            Err(error) => {
                if matches!(error, LockError::Refused(_)) {
                    self.prepare(causes, |pending| pending.locked = false)?;
                }
                Ok(FleetLock::Refused(error.to_string()))
            }
        }
    }

    fn reboot(
        &mut self,
        causes: &[Cause],
        changes: &mut Changes,
        lock: &FleetLock,
        end: Option<Timestamp>,
    ) -> anyhow::Result<Outcome> {
        // Whatever went wrong, nothing stays drained or locked for it.
        let result = self.try_reboot(causes, changes, lock, end);
        let failure = match result {
            Ok(None) => return Ok(Outcome::Reboots(format!("the host reboots: {}", self.why(causes)))),
            Ok(Some(outcome)) => Ok(outcome),
            Err(error) => Err(error),
        };
        for order in &self.orders {
            match &failure {
                // What failed once is not tried again and again for an order; an attempt that somebody else forced is not its own.
                Ok(Outcome::Failed(what)) if !order.force && self.forced.is_none() => {
                    self.answer(order, false, false, what);
                }
                // The others are answered when all is taken back.
                _ => self.put_back(order),
            }
        }
        let undone = self.undo();
        let outcome = failure?;
        Ok(undone?.unwrap_or(outcome))
    }

    /// Drains and reboots; what came between, if it does not reboot.
    fn try_reboot(
        &mut self,
        causes: &[Cause],
        changes: &mut Changes,
        lock: &FleetLock,
        end: Option<Timestamp>,
    ) -> anyhow::Result<Option<Outcome>> {
        if let Some(drain) = self.settings.drain.clone() {
            let limit = drain_limit(self.now(), end);
            self.note(Priority::Info, &format!("the host is drained, to be rebooted: {}", self.why(causes)))?;
            self.prepare(causes, |pending| pending.drained = true)?;
            if let Err(error) = command::run(&drain, &self.settings.environment, limit) {
                let what = format!("the host is not rebooted, because it could not be drained: {error:#}");
                self.note(Priority::High, &what)?;
                return Ok(Some(Outcome::Failed(what)));
            }
        }
        // That took time, and much may have happened.
        self.machine.changes_again(changes)?;
        let decision = self.decide(causes, changes.transaction.as_deref(), lock);
        if !matches!(decision, Decision::Reboot { .. }) {
            let what = format!("the host is not rebooted after all: {decision}");
            self.note(Priority::Medium, &what)?;
            return Ok(Some(Outcome::Done(what)));
        }
        let Some(_apt) = self.machine.keep_apt_out()? else {
            let what = "the host is not rebooted after all: apt or dpkg has begun to work".to_owned();
            self.note(Priority::Medium, &what)?;
            return Ok(Some(Outcome::Done(what)));
        };
        let Some(causes) = &self.take_orders(causes, changes, lock)? else {
            let what =
                "the host is not rebooted after all: who asked for it does not want it any more, or may not any more"
                    .to_owned();
            self.note(Priority::Medium, &what)?;
            return Ok(Some(Outcome::Done(what)));
        };
        let now = self.now();
        let mut ledger = self.state.ledger();
        ledger.reboot(now, causes);
        self.state.set_ledger(ledger);
        self.prepare(causes, |pending| (pending.phase, pending.at) = (Phase::Rebooting, now))?;
        let what = format!("the host reboots: {}", self.why(causes));
        let recorded = self.note(Priority::Medium, &what);
        if let Err(error) = recorded.and_then(|()| self.machine.reboot()) {
            self.forget_reboot(now)?;
            let what = format!("the host is not rebooted: {error:#}");
            self.note(Priority::High, &what)?;
            return Ok(Some(Outcome::Failed(what)));
        }
        // Both locks are held meanwhile.
        (self.reboots)(&what);
        Ok(None)
    }

    /// Takes the orders up, so that nobody can take them back any more. The causes that are left; none if they are not enough.
    fn take_orders(
        &mut self,
        causes: &[Cause],
        changes: &Changes,
        lock: &FleetLock,
    ) -> anyhow::Result<Option<Vec<Cause>>> {
        let mut causes = causes.to_vec();
        let (now, boot) = (self.now(), self.machine.boot()?);
        let (mut taken, mut gone) = (Vec::new(), Vec::new());
        for order in &self.orders {
            // The orders stay known if this fails: those that were taken are put back. The drain took time.
            let is_taken = self.machine.may_carry_out(order, now, &boot) && self.machine.take(order)?;
            if is_taken { taken.push(order.clone()) } else { gone.push(order.clone()) }
        }
        self.orders = taken;
        if gone.is_empty() {
            return Ok(Some(causes));
        }
        causes.retain(|cause| !gone.iter().any(|order| fingerprint(order) == cause.fingerprint));
        let is_by_order =
            |forced: &Forced| gone.iter().any(|order| order.force && forced.by == orders::forced(order).by);
        if self.forced.as_ref().is_some_and(is_by_order) {
            // Another one may stand for it.
            self.forced = self.orders.iter().find(|order| order.force).map(orders::forced);
        }
        let decision = self.decide(&causes, changes.transaction.as_deref(), lock);
        Ok(matches!(decision, Decision::Reboot { .. }).then_some(causes))
    }

    /// Says what came of the orders that an earlier run took up, which may have been cut off before the reboot. `undone` is what
    /// failed of taking back what was done for it.
    /// `health` is how the host is since it was rebooted, if that was asked.
    fn answer_taken(
        &self,
        was_cut_off: bool,
        undone: Option<&Outcome>,
        health: Option<&Health>,
    ) -> anyhow::Result<()> {
        let boot = self.machine.boot()?;
        let taken = self.machine.taken()?;
        let asked = match health {
            // Somebody else rebooted it, and what had failed before is not known.
            None if taken.iter().any(|order| order.boot != boot) => {
                Some(self.machine.health(&self.machine.failed_units()?)?)
            }
            _ => None,
        };
        for order in taken {
            let why = sentence(&order);
            match undone {
                None | Some(Outcome::Done(_) | Outcome::Reboots(_))
                    if order.boot != boot && asked.as_ref().is_some_and(|health| *health != Health::Well) =>
                {
                    // A later look knows more of one that still starts.
                    if let Some(Health::Sick(sick)) = &asked {
                        let what = format!("the host was rebooted meanwhile and is not in health: {sick}");
                        self.answer(&order, true, false, &what);
                    }
                }
                _ if order.boot == boot && was_cut_off && order.force => {
                    let what = "the host was not rebooted: the run that was to do it was cut off";
                    self.answer(&order, false, false, what);
                }
                _ if order.boot == boot && was_cut_off => self.put_back(&order),
                _ if order.boot == boot => {
                    self.answer(&order, false, false, &format!("the host was to reboot and did not: {why}"));
                }
                None | Some(Outcome::Done(_) | Outcome::Reboots(_)) => {
                    self.answer(
                        &order,
                        true,
                        true,
                        &format!("the host has rebooted and is in service: {why}"),
                    );
                }
                Some(Outcome::Failed(what)) => {
                    self.answer(&order, true, false, &format!("the host has rebooted, but {what}"));
                }
            }
        }
        Ok(())
    }

    /// Takes back that the host was rebooted for anything at that moment.
    fn forget_reboot(&mut self, at: Timestamp) -> anyhow::Result<()> {
        let mut ledger = self.state.ledger();
        ledger.reboot_failed(at);
        self.state.set_ledger(ledger);
        self.save()
    }

    /// Settles what an earlier run has begun; what there is to say if nothing else may be done now.
    fn settle(&mut self) -> anyhow::Result<Option<Outcome>> {
        let Some(pending) = self.state.pending.clone() else {
            // A run that had nothing to take back may have been cut off all the same.
            self.answer_taken(true, None, None)?;
            return Ok(None);
        };
        let now = self.now();
        let is_same_boot = self.machine.boot()? == pending.boot;
        let mut health = None;
        match pending.phase {
            Phase::Rebooting if is_same_boot => {
                if now >= pending.at && until(pending.at, now) < SHUTDOWN {
                    return Ok(Some(Outcome::Done("the host is about to reboot".to_owned())));
                }
                self.forget_reboot(pending.at)?;
                let what =
                    format!("the host was to reboot at {:.0} and did not: {}", pending.at, pending.why);
                self.note(Priority::High, &what)?;
            }
            Phase::Rebooting => match self.machine.health(&pending.failed_units)? {
                Health::Starting => {
                    return Ok(Some(Outcome::Done("the host has rebooted and still starts".to_owned())));
                }
                Health::Sick(why) => {
                    let what = format!(
                        "the host has rebooted and is not in health, so it stays drained and keeps the fleet's lock: {why}; \
                         mend it, or `systemctl reset-failed` if it is well as it is"
                    );
                    self.tell(Priority::High, &what)?;
                    for order in self.machine.taken()? {
                        self.answer(&order, true, false, &what);
                    }
                    return Ok(Some(Outcome::Failed(what)));
                }
                Health::Well => {
                    let what = format!("the host has rebooted and is in health: {}", pending.why);
                    self.note(Priority::Info, &what)?;
                    health = Some(Health::Well);
                }
            },
            Phase::Preparing => {
                self.note(
                    Priority::Medium,
                    "a run was cut off before the reboot; what it did is taken back",
                )?;
            }
            Phase::Undoing => {}
        }
        let undone = self.undo()?;
        self.answer_taken(pending.phase == Phase::Preparing, undone.as_ref(), health.as_ref())?;
        Ok(undone)
    }

    /// Undrains the host and gives the fleet's lock back, if need be; what failed, if something did. Then it is tried again by
    /// the next look.
    fn undo(&mut self) -> anyhow::Result<Option<Outcome>> {
        let Some(mut pending) = self.state.pending.clone() else { return Ok(None) };
        let mut failed = Vec::new();
        pending.phase = Phase::Undoing;
        self.state.pending = Some(pending.clone());
        self.save()?;
        if pending.drained {
            match self.undrain(pending.back.as_ref()) {
                Ok(what) => {
                    pending.drained = false;
                    self.note(Priority::Info, what)?;
                }
                Err(error) => failed.push(format!("the host could not be undrained: {error:#}")),
            }
        }
        if pending.locked {
            match self.give_back(pending.back.as_mut()) {
                Ok(None) => pending.locked = false,
                Ok(Some(given_up)) => {
                    pending.locked = false;
                    self.note(Priority::High, &given_up)?;
                }
                Err(error) => failed.push(format!("the fleet's lock could not be given back: {error:#}")),
            }
        }
        let is_over = !pending.drained && !pending.locked;
        self.state.pending = (!is_over).then_some(pending);
        self.save()?;
        if failed.is_empty() {
            return Ok(None);
        }
        let what = format!("{}; it is tried again", failed.join("; "));
        self.tell(Priority::High, &what)?;
        Ok(Some(Outcome::Failed(what)))
    }

    /// Undrains the host as it was configured when it was drained; if that fails, as it is configured now. What came of it.
    fn undrain(&self, back: Option<&Back>) -> anyhow::Result<&'static str> {
        let known = back.and_then(|back| Some((back.undrain.as_ref()?, &back.environment)));
        let present = self.settings.undrain.as_ref().map(|undrain| (undrain, &self.settings.environment));
        if known.is_none() && present.is_none() && back.is_some() && self.is_configured {
            return Ok("the host was drained, and nothing is configured that undrains it");
        }
        let mut failure = anyhow!(
            "no command is known that does it; name one (UNDRAIN_CMD=true if it is in service already)"
        );
        for (undrain, environment) in known.into_iter().chain(present.filter(|_| present != known)) {
            match command::run(undrain, environment, UNDRAIN) {
                Ok(()) => return Ok("the host is undrained"),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Gives the fleet's lock back to whoever was asked for it. If that one is not configured any more and does not take it, the
    /// present one may be the same by another name, and is asked as well. What is to be told if the former is given up.
    fn give_back(&self, back: Option<&mut Back>) -> anyhow::Result<Option<String>> {
        let id = self.machine.lock_id()?;
        let ask = |server: &Server| server.ask(Step::SteadyState, &id);
        let present = self.settings.fleet_lock.as_ref();
        let Some((former, back)) = back.and_then(|back| Some((back.server.clone()?, back))) else {
            let server = present.context("it is not known which server gave it; name it (FLEETLOCK_URL)")?;
            return Ok(ask(server).map(|()| None)?);
        };
        // Whom it trusts may have been mended since.
        if let Some(same) = present.filter(|present| former.is_same_lock(present)) {
            (back.former_tries, back.former_since) = (0, None);
            return Ok(ask(same).map(|()| None)?);
        }
        let Err(refused) = ask(&former) else { return Ok(None) };
        if !self.is_configured {
            return Err(refused).context("whether it is configured still is not known");
        }
        let now = self.now();
        // A clock that was set back begins anew.
        let since = back.former_since.filter(|since| *since <= now).unwrap_or(now);
        let tries = back.former_tries.saturating_add(1);
        (back.former_tries, back.former_since) = (tries, Some(since));
        // A yes is no proof: whoever has given nothing says it as well.
        let _ = present.map(ask);
        if tries < FORMER_TRIES || now.duration_since(since) < FORMER_PATIENCE {
            return Err(refused).context("it was asked from a server that is not configured any more");
        }
        Ok(Some(format!(
            "the fleet's lock is not given back to {}, which it was asked from and which is not configured any more: it was tried \
             {tries} times since {since:.0}, and at last {refused}; if that server still counts this host, free its slot there",
            former.url()
        )))
    }
}
