//! Restarts that wait for the window. The root side notes them after a change; they are done while the window is open.
//!
//! Each is tried once: what fails is on record, and `stale` goes on naming what runs old code.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use patch_audit::Priority;
use patch_backends::{stale, system};
use patch_types::{
    executor::RESTARTS_DIR,
    settings::{RestartMode, is_unit_name},
    stale::{Owner, PendingRestart},
};

use super::{
    command::{self, command},
    machine::{Machine, until},
    settings::{self, Program},
};

/// How long one restart may take.
const LIMIT: Duration = Duration::from_secs(300);

/// The most that is read of one note, in bytes.
const MOST: u64 = 4096;

/// What became of the restarts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    /// What was done, as sentences.
    pub(super) said: Vec<String>,
    /// Whether one failed.
    pub(super) failed: bool,
}

/// What systemd says of a service.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unit {
    is_active: bool,
    /// When it was started, in microseconds of the clock that is never set.
    started_us: u64,
}

/// What is to be done about a note.
#[derive(Debug, PartialEq, Eq)]
enum What {
    Restart(&'static str),
    /// There is no reason any more; why.
    Forget(&'static str),
}

/// Pure, so that each case can be shown.
fn decide(pending: &PendingRestart, boot: &str, named: &[String], unit: &Unit, runs_old_code: bool) -> What {
    if pending.boot != boot {
        What::Forget("the host has been booted since")
    } else if !named.contains(&pending.unit) {
        What::Forget("policy.restart does not name it any more")
    } else if !unit.is_active {
        What::Forget("it does not run")
    } else if pending.held_back && unit.started_us <= pending.monotonic_us {
        What::Restart("its package's scripts were kept from restarting it")
    } else if runs_old_code {
        What::Restart("it runs old code")
    } else {
        What::Forget("it was restarted since")
    }
}

/// Restarts what waits for it, until the window closes at `end`; what is left then waits for the next opening. Only to be
/// called while the window is open, and by whoever holds the window's lock.
///
/// # Errors
/// When something cannot be read, or what is done not be recorded.
pub(super) fn carry_out(
    machine: &Machine,
    clock: &dyn Fn() -> Timestamp,
    end: Timestamp,
) -> anyhow::Result<Done> {
    let mut done = Done::default();
    let pending = pending(machine)?;
    if pending.is_empty() {
        return Ok(done);
    }
    let restart = settings::restart(&machine.root)?;
    let named = if restart.mode == RestartMode::Restart { restart.services } else { Vec::new() };
    // The turn is held meanwhile, so that no change begins.
    let changes = machine.changes()?;
    if let Some(who) = &changes.transaction {
        done.said.push(format!("services are restarted later: {who}"));
        return Ok(done);
    }
    let Some(_apt) = machine.keep_apt_out()? else {
        done.said.push("services are restarted later: apt or dpkg has begun to work".to_owned());
        return Ok(done);
    };
    let boot = system::boot_id(&machine.root);
    let old = old_units(machine)?;
    for (path, pending) in pending {
        let now = clock();
        let limit = until(now, end).min(LIMIT);
        if limit.is_zero() {
            done.said.push("the window is closed, and what is left is restarted in the next one".to_owned());
            break;
        }
        let unit = show(machine, &pending.unit)?;
        let name = &pending.unit;
        match decide(&pending, &boot, &named, &unit, old.contains(name)) {
            What::Forget(why) => {
                machine.record(now, Priority::Info, &format!("{name} is not restarted: {why}"))?;
            }
            What::Restart(why) => {
                let (priority, said) = match restart_unit(machine, name, limit) {
                    Ok(()) => (Priority::Info, format!("{name} was restarted: {why} (job {})", pending.job)),
                    Err(error) => {
                        done.failed = true;
                        (
                            Priority::High,
                            format!(
                                "{name} could not be restarted: {error:#}; see `systemctl status {name}`"
                            ),
                        )
                    }
                };
                machine.record(clock(), priority, &said)?;
                done.said.push(said);
            }
        }
        fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
    }
    Ok(done)
}

/// The notes that can be understood. Others are removed: nobody will ever understand them.
fn pending(machine: &Machine) -> anyhow::Result<Vec<(PathBuf, PendingRestart)>> {
    let directory = machine.root.join(RESTARTS_DIR);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", directory.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // A draft is none yet.
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| is_unit_name(name))
        else {
            continue;
        };
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MOST).read_to_end(&mut text))
            .with_context(|| format!("{} cannot be read", path.display()))?;
        match serde_json::from_slice::<PendingRestart>(&text) {
            Ok(pending) if pending.unit == name => found.push((path, pending)),
            _ => fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?,
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}

fn old_units(machine: &Machine) -> anyhow::Result<BTreeSet<String>> {
    let report = stale::processes(&machine.root).context("what runs old code cannot be told")?;
    let unit = |owner| match owner {
        Owner::Unit { name } => Some(name),
        _ => None,
    };
    Ok(report.owners.into_iter().filter_map(|owner| unit(owner.owner)).collect())
}

fn show(machine: &Machine, unit: &str) -> anyhow::Result<Unit> {
    let args = ["show", "--property=ActiveState,InactiveExitTimestampMonotonic", "--", unit];
    let output = command(&machine.systemctl).args(args).output();
    let output = output.with_context(|| format!("{} cannot be started", machine.systemctl))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "systemctl show {unit} failed: {said}");
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

fn parse(text: &str) -> Unit {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    Unit {
        is_active: matches!(value("ActiveState"), Some("active" | "reloading")),
        started_us: value("InactiveExitTimestampMonotonic")
            .and_then(|us| us.parse().ok())
            .unwrap_or_default(),
    }
}

/// Restarts a service if it runs, and waits for that within the limit; systemd goes on with what takes longer. What it says
/// is in the journal.
fn restart_unit(machine: &Machine, unit: &str, limit: Duration) -> anyhow::Result<()> {
    let words = [machine.systemctl.as_str(), "try-restart", "--", unit].map(str::to_owned);
    command::run(&Program::List(words.to_vec()), &[], limit)
}

#[cfg(test)]
mod tests {
    use patch_types::JobId;
    use uuid::Uuid;

    use super::*;

    fn note(held_back: bool) -> PendingRestart {
        PendingRestart {
            unit: "a.service".into(),
            job: JobId(Uuid::from_u128(1)),
            since: Timestamp::UNIX_EPOCH,
            boot: "b".into(),
            monotonic_us: 100,
            held_back,
        }
    }

    #[test]
    fn what_has_no_reason_any_more_is_forgotten() {
        let named = ["a.service".to_owned()];
        let runs = |started_us| Unit { is_active: true, started_us };
        let is_restarted = |note: &PendingRestart, boot: &str, named: &[String], unit: Unit, old| {
            matches!(decide(note, boot, named, &unit, old), What::Restart(_))
        };
        assert!(is_restarted(&note(true), "b", &named, runs(50), false), "held back");
        assert!(is_restarted(&note(true), "b", &named, runs(150), true), "its library is old again");
        assert!(!is_restarted(&note(true), "b", &named, runs(150), false), "somebody restarted it");
        assert!(is_restarted(&note(false), "b", &named, runs(50), true), "old code");
        assert!(!is_restarted(&note(false), "b", &named, runs(50), false));
        assert!(!is_restarted(&note(true), "c", &named, runs(50), true), "another boot");
        assert!(!is_restarted(&note(true), "b", &[], runs(50), true), "not named");
        assert!(!is_restarted(&note(true), "b", &named, Unit::default(), true), "stopped");
    }

    #[test]
    fn notes_are_read_and_rubbish_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::new(dir.path().to_owned());
        assert!(pending(&machine).unwrap().is_empty());
        let notes = dir.path().join(RESTARTS_DIR);
        fs::create_dir_all(&notes).unwrap();
        let text = serde_json::to_string(&note(true)).unwrap();
        for (name, text) in
            [("a.service", &*text), ("b.service", &text), ("c.service", "{"), ("a.service.new", "")]
        {
            fs::write(notes.join(name), text).unwrap();
        }
        let found = pending(&machine).unwrap();
        assert_eq!(found, [(notes.join("a.service"), note(true))]);
        assert!(!notes.join("b.service").exists() && notes.join("a.service.new").exists());
    }

    #[test]
    fn systemds_word_is_understood() {
        let unit = parse("ActiveState=active\nInactiveExitTimestampMonotonic=123\n");
        assert_eq!(unit, Unit { is_active: true, started_us: 123 });
        assert_eq!(parse("ActiveState=inactive\n"), Unit::default());
    }
}
