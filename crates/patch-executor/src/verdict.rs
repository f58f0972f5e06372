//! The verdict on a change: dpkg's database decides, not the tool's exit code.

use std::path::Path;

use patch_backends::apt::{Installed, Inventory, classify};
use patch_types::{
    Action, ErrorCode, JobStatus, Operation, Outcome, Plan, PlannedChange,
    api::PackageStatus,
    event::{Ended, PackageResult},
};

use crate::{journal::ToolEnd, solver};

/// Compares what is there now with the plan.
pub(crate) fn judge(root: &Path, operation: &Operation, plan: &Plan, tool: &ToolEnd) -> Box<Ended> {
    let kind = solver::kind_of(operation);
    let inventory = match solver::inventory(root) {
        Ok(inventory) => inventory,
        Err(error) => {
            return Box::new(Ended {
                status: JobStatus::Failed,
                outcome: Some(Outcome::Partial),
                exit_code: tool.code,
                error: Some(error),
                results: Vec::new(),
                answer: None,
            });
        }
    };
    let results: Vec<PackageResult> = plan.changes.iter().map(|change| result(change, &inventory)).collect();
    // What an earlier run left half-configured is tried again by every run of apt. That it fails again is shown, but it
    // is not this job's failure.
    if results.iter().all(|result| result.done || result.action == Action::Configure) {
        return Box::new(Ended {
            status: JobStatus::Completed,
            outcome: Some(Outcome::Applied),
            exit_code: tool.code,
            error: None,
            results,
            answer: None,
        });
    }
    let untouched = plan
        .changes
        .iter()
        .all(|change| change.action == Action::Configure || is_as_before(change, &inventory));
    let mut error = classify(tool.code, &tool.output, kind);
    if tool.timed_out {
        error.code = ErrorCode::JobTimeout;
        error.message =
            format!("a maintainer script hung beyond the job's limit and was ended. {}", error.message);
    }
    Box::new(Ended {
        status: if tool.timed_out { JobStatus::Timeout } else { JobStatus::Failed },
        outcome: Some(if untouched { Outcome::Unchanged } else { Outcome::Partial }),
        exit_code: tool.code,
        error: Some(error),
        results,
        answer: None,
    })
}

fn result(change: &PlannedChange, inventory: &Inventory) -> PackageResult {
    let name = change.name.with_architecture(&change.architecture);
    let found = inventory.database.get(&name);
    let state = match found {
        None => "not installed".to_owned(),
        Some(package) => match package.problem() {
            Some(problem) => {
                format!("{} at version {}: {problem}", state_word(package), package.version_text())
            }
            None => format!("{} at version {}", state_word(package), package.version_text()),
        },
    };
    let done = match change.action {
        Action::Remove => found.is_none_or(|package| !package.is_present()),
        Action::Purge => found.is_none(),
        Action::Hold => found.is_some_and(Installed::is_held),
        Action::Unhold => found.is_some_and(|package| !package.is_held()),
        Action::Install | Action::Upgrade | Action::Downgrade | Action::Reinstall | Action::Configure => {
            found.is_some_and(|package| {
                in_order(package)
                    && change.new_version.as_ref().is_none_or(|v| v.as_str() == package.version_text())
            })
        }
    };
    PackageResult {
        name: change.name.clone(),
        architecture: change.architecture.clone(),
        action: change.action,
        old_version: change.old_version.clone(),
        new_version: change.new_version.clone(),
        done,
        reason: (!done).then(|| format!("the package database says: {state}")),
    }
}

fn is_as_before(change: &PlannedChange, inventory: &Inventory) -> bool {
    let found = inventory.database.get(&change.name.with_architecture(&change.architecture));
    match &change.old_version {
        None => found.is_none_or(|package| !package.is_present()),
        Some(old) => found.is_some_and(|package| in_order(package) && package.version_text() == old.as_str()),
    }
}

fn in_order(package: Installed<'_>) -> bool {
    package.status() == PackageStatus::Installed && !package.reinstall_required()
}

fn state_word(package: Installed<'_>) -> &'static str {
    match package.status() {
        PackageStatus::NotInstalled => "not installed",
        PackageStatus::ConfigFiles => "removed",
        PackageStatus::HalfInstalled => "half-installed",
        PackageStatus::Unpacked => "unpacked",
        PackageStatus::HalfConfigured => "half-configured",
        PackageStatus::TriggersAwaited => "waiting for a trigger",
        PackageStatus::TriggersPending => "with a trigger due",
        PackageStatus::Installed => "installed",
    }
}
