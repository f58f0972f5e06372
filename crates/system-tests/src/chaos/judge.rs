//! Whether a change that was interrupted ended truthfully.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use patch_types::event::Ended;
use patch_types::{Action, JobId, OnFailure, Outcome, PackageVersion, Plan};

use crate::executor::{ExecutorIn, Seen};
use crate::state::HostState;
use crate::{Guest, wait};

/// How often a change may need to be recovered until it has ended.
const ATTEMPTS: u32 = 12;

/// Recovers until the change has ended: waits while a process carries it out, and starts a recovery whenever none does.
///
/// # Errors
/// When it has not ended after many recoveries.
pub fn settle(executor: &ExecutorIn, job: JobId) -> Result<Seen> {
    let mut said = String::new();
    for _ in 0..ATTEMPTS {
        let over = wait::until("the change to end, or its process", Duration::from_secs(180), || {
            if executor.seen(job)?.ended().is_some() {
                return Ok(Some(true));
            }
            let idle = executor.executors()?.is_empty() && !executor.is_alive(job)?;
            // Asked again, since it may have ended in between.
            Ok(idle.then(|| executor.seen(job).is_ok_and(|seen| seen.ended().is_some())))
        })?;
        if over {
            let seen = executor.seen(job)?;
            seen.assert_whole()?;
            return Ok(seen);
        }
        let output = executor.recover()?;
        said = format!("{}\n{}{}", output.status, output.stdout, output.stderr);
    }
    let seen = executor.seen(job)?;
    bail!(
        "the change has not ended after {ATTEMPTS} recoveries; the last one said {said}\n--- log\n{}\n--- remarks\n{}",
        seen.log(),
        executor.remarks()
    )
}

/// A change to be judged.
#[derive(Debug)]
pub struct Case<'a> {
    /// The host before it.
    pub before: &'a HostState,
    /// The host now.
    pub after: &'a HostState,
    /// What it was to do, if it came so far as to plan.
    pub plan: Option<&'a Plan>,
    /// How it says that it ended.
    pub ended: &'a Ended,
    /// What was asked for in case of failure.
    pub on_failure: OnFailure,
    /// Whether it is the taking back of another change: then the plan says little.
    pub is_rollback: bool,
    /// Packages that could only be taken back by an archive that was made of their files.
    pub rebuilt: Vec<&'a str>,
    /// Packages that it was to install, and of which it says that they were there and are marked as wanted now.
    pub marked: Vec<String>,
}

impl Case<'_> {
    /// What differs, but for the one thing that an archive made of installed files cannot bring back: the hash of the
    /// shipped version of a configuration file that had been edited before. The file itself has to be as it was.
    fn differences(&self) -> Vec<String> {
        let excused = |name: &str| {
            self.rebuilt.iter().any(|package| name == format!("conffile /etc/{package}.conf"))
                && self.before.edited_conffile(name).is_some_and(|was| {
                    self.after.edited_conffile(name).is_some_and(|is| is.on_disk == was.on_disk)
                })
        };
        self.before.diff_but(self.after, |name| excused(name) || self.is_marked(name))
    }

    /// Whether all that differs of a package's fact is the mark that the change says that it set.
    fn is_marked(&self, name: &str) -> bool {
        self.marked.iter().any(|package| name.starts_with(&format!("package {package}:")))
            && self.before.fact(name).map(|was| was.replace(" auto", " manual")).as_deref()
                == self.after.fact(name)
    }
}

/// Fails unless the change did what it says that it did, to the whole or to whole groups, and left nothing behind.
///
/// # Errors
/// With everything that is not so.
pub fn judge(guest: &Guest, case: &Case<'_>) -> Result<()> {
    let outcome = case.ended.outcome.context("the change ended without an outcome")?;
    let told = || {
        format!(
            "outcome {outcome}, {:?}\n--- differences to before\n{}\n--- faults\n{}",
            case.ended,
            case.differences().join("\n"),
            case.after.faults().join("\n")
        )
    };
    let stubborn =
        case.plan.is_some_and(|plan| plan.changes.iter().any(|change| change.name.as_str() == "lp-noreturn"));
    match outcome {
        // The one honest case: the old version refuses to come back.
        Outcome::RollbackFailed => {
            ensure!(stubborn, "going back failed: {}", told());
            return Ok(());
        }
        Outcome::Unchanged | Outcome::RolledBack if !case.is_rollback => {
            ensure!(case.differences().is_empty(), "not as before: {}", told());
        }
        Outcome::Unchanged => {
            ensure!(case.differences().is_empty(), "not as before: {}", told());
        }
        Outcome::RolledBack | Outcome::Applied | Outcome::Partial => {}
    }
    if !case.is_rollback {
        let plan = case.plan.map(|plan| plan.changes.as_slice()).unwrap_or_default();
        let mut new = 0;
        for change in plan {
            let name = format!("package {}:{}", change.name, change.architecture);
            let was = case.before.fact(&name);
            let is = case.after.fact(&name);
            let version = case.after.version(change.name.as_str());
            let is_new = match change.action {
                Action::Hold | Action::Unhold => was != is,
                Action::Configure | Action::Reinstall => true,
                // What is half-installed has no version either.
                Action::Purge => case.after.is_purged(&name),
                Action::Remove => case.after.is_removed(&name),
                _ => version == change.new_version.as_ref().map(PackageVersion::as_str),
            };
            new += u32::from(is_new);
            let kept_as_it_is = case.on_failure == OnFailure::Keep && outcome == Outcome::Partial;
            ensure!(
                is_new || was == is || kept_as_it_is,
                "{name} is neither old nor new, but {is:?}: {}",
                told()
            );
            if let Some(result) = case
                .ended
                .results
                .iter()
                .find(|r| r.name == change.name && r.architecture == change.architecture)
            {
                ensure!(
                    result.done == is_new,
                    "{name}: the results say {result:?}, it is {is:?}: {}",
                    told()
                );
            }
        }
        match outcome {
            Outcome::Applied => {
                ensure!(new == u32::try_from(plan.len())?, "not all is new: {}", told());
            }
            Outcome::Partial => {
                ensure!(case.on_failure != OnFailure::All, "partial, though asked for all: {}", told());
                ensure!(
                    new > 0 || case.on_failure == OnFailure::Keep,
                    "partial, and nothing new: {}",
                    told()
                );
            }
            _ => {}
        }
        // What the plan does not name is nobody's to change.
        let planned =
            |fact: &str| plan.iter().any(|change| fact == format!("{}:{}", change.name, change.architecture));
        // Unless it failed for what the change brought, which is kept on request: then the end says so.
        let harmed = |fact: &str| {
            let told = case.ended.error.as_ref().and_then(|error| error.details.get("harmed"));
            let name = fact.split(':').next().unwrap_or(fact);
            case.on_failure == OnFailure::Keep
                && outcome == Outcome::Partial
                && told.and_then(|told| told.as_array()).is_some_and(|all| all.iter().any(|one| one == name))
        };
        for (name, recorded) in case.before.all("package ") {
            let fact = format!("package {name}");
            ensure!(
                planned(name)
                    || harmed(name)
                    || case.is_marked(&fact)
                    || case.after.fact(&fact) == Some(recorded),
                "{name} is not in the plan, and changed: {}",
                told()
            );
        }
    }
    if !(case.on_failure == OnFailure::Keep && outcome == Outcome::Partial) {
        let known = case.before.faults();
        let faults: Vec<String> = case.after.faults().into_iter().filter(|f| !known.contains(f)).collect();
        ensure!(faults.is_empty(), "not in order: {}", told());
    }
    // Groups are closed: whatever is there has what it depends upon.
    let check = guest.exec(&["/usr/bin/apt-get", "-qq", "check"])?;
    ensure!(check.success(), "dependencies are broken: {}{}\n{}", check.stdout, check.stderr, told());
    Ok(())
}
