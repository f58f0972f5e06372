//! The reboot window: reboots the host for what asks for it, and only while a declared window is open.
//!
//! `patch-policy` decides; this reads what the decision rests on and does what was decided. The timer looks every five minutes.

mod command;
mod environment;
mod fleet_lock;
mod machine;
mod orders;
mod restarts;
pub(crate) mod settings;
mod state;
#[cfg(test)]
mod tests;
mod tick;

use std::{collections::BTreeMap, path::Path};

use anyhow::ensure;
use jiff::{Timestamp, tz::TimeZone};
use patch_policy::reboot::{Decision, FleetLock, Forced, Situation, decide};
use patch_types::reboot::RebootOrder;

use crate::{ask::Root, exit::Exit, screen::Screen};
use machine::Machine;
use settings::Settings;
use state::{Phase, State};
use tick::Outcome;

/// The most openings that are shown.
pub(crate) const MAX_SHOWN: u32 = 1000;

/// One look of the timer; with a reason, an order to reboot now.
pub(crate) fn tick(root: &Root, screen: &mut Screen, force: Option<String>) -> anyhow::Result<Exit> {
    let files = root.files();
    ensure!(
        files.root() == Path::new("/"),
        "only the host itself can be rebooted, not the system below {}",
        files.root().display()
    );
    let machine = Machine::new(files.root().to_owned());
    let forced = force.map(|reason| {
        let user = std::env::var("SUDO_USER").unwrap_or_else(|_| "root".to_owned());
        Forced { by: user.chars().filter(|c| !c.is_control()).take(256).collect(), reason }
    });
    let mut reboots = |what: &str| {
        // The host reboots whether or not that can be shown.
        let _ = show(screen, Exit::Done, what);
        // systemd ends this process when it shuts the host down: a signal is not held up by it.
        std::thread::sleep(tick::SHUTDOWN);
    };
    let (exit, what) = match tick::tick(&machine, &Timestamp::now, forced, &mut reboots)? {
        // It is shown already, and the host should have gone down.
        Outcome::Reboots(_) => return Ok(Exit::Done),
        Outcome::Done(what) => (Exit::Done, what),
        Outcome::Failed(what) => (Exit::Failed, what),
    };
    show(screen, exit, &what)?;
    Ok(exit)
}

/// Shows what became of a look.
fn show(screen: &mut Screen, exit: Exit, what: &str) -> anyhow::Result<()> {
    if screen.is_json() {
        screen.json(&serde_json::json!({ "done": exit == Exit::Done, "what": what }))?;
    } else {
        screen.text(what);
    }
    Ok(())
}

/// What is configured, what asks for a reboot, and what would be decided now. Changes nothing.
pub(crate) fn status(root: &Root, screen: &mut Screen) -> anyhow::Result<Exit> {
    let machine = Machine::new(root.files().root().to_owned());
    let settings = Settings::load(&machine.root)?;
    let state = State::load(&machine)?;
    let now = Timestamp::now();
    let boot = machine.boot().unwrap_or_default();
    // One of another boot reboots nothing.
    let of_this_boot = |orders: Vec<RebootOrder>| orders.into_iter().filter(|order| order.boot == boot);
    let queued: Vec<_> = of_this_boot(machine.queued()?).collect();
    let mut present = machine.causes()?;
    let due = queued.iter().filter(|order| machine.may_carry_out(order, now, &boot));
    present.extend(due.map(|order| (orders::fingerprint(order), orders::sentence(order))));
    let causes = state.ledger().observe(now, machine.uptime(), &present);
    // Of another root's timer this host's systemd knows nothing.
    let is_own = root.files().root() == Path::new("/");
    let why_off = || machine.timer_is_off().unwrap_or_else(|error| Some(format!("{error:#}")));
    let timer_off = if is_own { why_off() } else { None };
    // Not held any longer than it takes to look: who reboots at this moment would take it for a change.
    let transaction = machine.changes()?.transaction;
    let lock = if settings.fleet_lock.is_some() { FleetLock::NotAsked } else { FleetLock::NotConfigured };
    let decision = decide(&Situation {
        now,
        window: settings.window.as_ref(),
        causes: &causes,
        transaction: transaction.as_deref(),
        inhibitors: &machine.inhibitors(),
        fleet_lock: &lock,
        max_defer_days: settings.max_defer_days,
        forced: None,
    });
    let open = settings.window.as_ref().and_then(|window| window.open_at(now));
    let next = settings.window.as_ref().and_then(|window| window.next_after(now));
    let phase = state.pending.as_ref().map(|pending| match pending.phase {
        Phase::Preparing => "preparing",
        Phase::Rebooting => "rebooting",
        Phase::Undoing => "undoing",
    });
    if screen.is_json() {
        let (word, days) = match &decision {
            Decision::Reboot { .. } => ("reboot", None),
            Decision::NotNow { .. } => ("not_now", None),
            Decision::Escalate { days, .. } => ("escalate", Some(days)),
        };
        let causes: Vec<_> = causes
            .iter()
            .map(|cause| {
                serde_json::json!({ "cause": cause.sentence, "since": cause.since, "rebooted_at": cause.rebooted })
            })
            .collect();
        let reasons: Vec<_> = decision
            .reasons()
            .iter()
            .map(|reason| serde_json::json!({ "code": reason.code(), "message": reason.to_string() }))
            .collect();
        screen.json(&serde_json::json!({
            "has_window": settings.window.is_some(),
            "sources": settings.sources,
            "open_until": open.map(|opening| opening.ends),
            "next": next.map(|opening| opening.begins),
            "pending_reboot": !causes.is_empty(),
            "causes": causes,
            "decision": word,
            "deferred_days": days,
            "reasons": reasons,
            "phase": phase,
            "timer_off": timer_off,
            "opens": settings.window.as_ref().map_or_else(BTreeMap::new, |window| {
                let opens = |order: &RebootOrder| Some((order.job, orders::opens(order, window, now)?));
                queued.iter().filter_map(opens).collect()
            }),
            "queued": of_this_boot(machine.taken()?)
                .map(|order| orders::shown(&order, true))
                .chain(queued.iter().map(|order| orders::shown(order, false)))
                .collect::<Vec<_>>(),
            "warnings": settings.warnings,
        }))?;
        return Ok(Exit::Done);
    }
    let sources = settings.sources.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
    screen.text(&match (&settings.window, open, next) {
        (None, ..) => "window     none: the host never reboots by itself".to_owned(),
        (Some(window), Some(open), _) => format!("window     open until {}", shown(open.ends, window.zone())),
        (Some(window), None, Some(next)) => {
            format!("window     opens at {}", shown(next.begins, window.zone()))
        }
        (Some(_), None, None) => "window     can never open".to_owned(),
    });
    if !sources.is_empty() {
        screen.text(&format!("from       {}", sources.join(", ")));
    }
    if let Some(server) = &settings.fleet_lock {
        screen.text(&format!("lock       {}", server.url()));
    }
    for cause in &causes {
        let rebooted = cause.rebooted.map(|at| format!(", rebooted for at {at:.0}")).unwrap_or_default();
        screen.text(&format!("reboot for {} (since {:.0}{rebooted})", cause.sentence, cause.since));
    }
    for order in queued.iter().filter(|order| order.not_before > now && order.boot == boot) {
        let (said, not_before) = (orders::sentence(order), order.not_before);
        screen.text(&format!("not before {not_before:.0}: {said}"));
    }
    if let (Some(why), true) = (&timer_off, settings.window.is_some()) {
        screen.text(&format!("timer      {why}"));
    }
    if let Some(phase) = phase {
        screen.text(&format!("at work    {phase}"));
    }
    screen.text(&format!("decision   {decision}"));
    settings.warnings.iter().for_each(|warning| screen.remark(&format!("warning: {warning}")));
    Ok(Exit::Done)
}

/// The next openings, if nothing is changed.
pub(crate) fn next(root: &Root, screen: &mut Screen, count: u32) -> anyhow::Result<Exit> {
    let settings = Settings::load(root.files().root())?;
    settings.warnings.iter().for_each(|warning| screen.remark(&format!("warning: {warning}")));
    let Some(window) = &settings.window else {
        if screen.is_json() {
            screen.json(&serde_json::json!([]))?;
        }
        screen.remark("No window is declared: the host never reboots by itself.");
        return Ok(Exit::Done);
    };
    let count = usize::try_from(count.min(MAX_SHOWN)).unwrap_or_default();
    let openings: Vec<_> = window.openings_after(Timestamp::now()).take(count).collect();
    if screen.is_json() {
        let list: Vec<_> = openings
            .iter()
            .map(|opening| serde_json::json!({ "begins": opening.begins, "ends": opening.ends }))
            .collect();
        screen.json(&list)?;
    } else {
        let rows: Vec<[String; 3]> = openings
            .iter()
            .map(|opening| {
                let (begins, ends) = (opening.begins, opening.ends);
                [shown(begins, window.zone()), shown(ends, window.zone()), format!("{begins:.0}")]
            })
            .collect();
        if !rows.is_empty() {
            screen.table(["BEGINS", "ENDS", "BEGINS (UTC)"], &rows);
        }
    }
    if openings.is_empty() && count > 0 {
        screen.remark("The window can never open.");
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// An instant as people of a zone write it.
fn shown(at: Timestamp, zone: &TimeZone) -> String {
    let name = zone.iana_name().unwrap_or("local time");
    format!("{} {name}", zone.to_datetime(at).strftime("%a %F %H:%M"))
}
