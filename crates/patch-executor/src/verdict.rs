//! The verdict on a change: dpkg's database decides, not the tool's exit code.

use std::path::Path;

use patch_backends::apt::{Installed, Inventory, classify};
use patch_types::{
    Action, ErrorCode, JobStatus, Operation, Outcome, PackageName, Plan, PlannedChange,
    api::PackageStatus,
    event::{Ended, PackageResult},
};

use crate::{
    journal::{Record, ToolEnd},
    solver,
};

/// Compares what is there now with the plan.
pub(crate) fn judge(root: &Path, record: &Record, plan: &Plan, tool: &ToolEnd) -> Box<Ended> {
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
    let results: Vec<PackageResult> =
        plan.changes.iter().map(|change| result(change, &inventory, tool)).collect();
    // What an earlier run left half-configured is tried again by every run of apt. That it fails again is shown, but it
    // is not this job's failure, unless it is what was asked for.
    let concerns =
        |result: &PackageResult| result.action != Action::Configure || names(&record.operation, &result.name);
    let harmed: Vec<String> = inventory
        .database
        .audit()
        .into_iter()
        .map(|finding| finding.package.to_string())
        .filter(|package| !record.broken.contains(package))
        .collect();
    if harmed.is_empty() && results.iter().all(|result| result.done || !concerns(result)) {
        return Box::new(Ended {
            status: JobStatus::Completed,
            outcome: Some(Outcome::Applied),
            exit_code: tool.code,
            error: None,
            results,
            answer: None,
        });
    }
    let untouched = harmed.is_empty()
        && plan
            .changes
            .iter()
            .all(|change| change.action == Action::Configure || is_as_before(change, &inventory));
    let mut error = classify(tool.code, &tool.output, (&record.operation).into());
    if !harmed.is_empty() {
        error.message = format!("{} not in order any more. {}", are(&harmed), error.message);
        error.details.insert("harmed".to_owned(), harmed.into());
    }
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

fn are(packages: &[String]) -> String {
    format!("{} {}", packages.join(", "), if packages.len() == 1 { "is" } else { "are" })
}

/// Whether the request itself names a package.
fn names(operation: &Operation, package: &PackageName) -> bool {
    let same = |name: &PackageName| name.name() == package.name();
    match operation {
        Operation::Refresh => false,
        Operation::Install(install) => install.packages.iter().any(|spec| same(&spec.name)),
        Operation::Update(update) => same(&update.name),
        Operation::Remove(remove) => same(&remove.name),
        Operation::Hold(hold) => same(&hold.name),
        Operation::ApplyPatches(apply) => apply.packages.iter().any(same),
    }
}

fn result(change: &PlannedChange, inventory: &Inventory, tool: &ToolEnd) -> PackageResult {
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
        // The same version before and after: only the tool knows whether it was installed again.
        Action::Reinstall if tool.code != Some(0) => false,
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
