//! The verdict on a change: dpkg's database decides, not the tool's exit code.

use std::path::Path;

use patch_apply::apt::snapshot::PackageKey;
use patch_backends::apt::{Installed, Inventory, classify, status::Want, versions};
use patch_types::{
    Action, ErrorCode, ErrorDetail, JobStatus, Operation, Outcome, PackageName, Plan, PlannedChange,
    api::PackageStatus,
    event::{Ended, PackageResult},
};

use crate::{
    decide::Standing,
    journal::{Failure, Record, ToolEnd},
    solver,
};

/// What the database says of a plan.
pub(crate) struct Judged {
    /// How each of the plan's changes stands.
    pub(crate) standing: Vec<Standing>,
    /// The same for people.
    pub(crate) results: Vec<PackageResult>,
    /// What `dpkg --audit` finds that it did not find before.
    pub(crate) harmed: Vec<String>,
    /// Whether something is harmed that is not in the plan.
    pub(crate) harm_elsewhere: bool,
    /// Whether all that was asked for is so.
    pub(crate) complete: bool,
}

impl Judged {
    /// Whether nothing of the plan has been done.
    pub(crate) fn is_untouched(&self, plan: &Plan) -> bool {
        self.harmed.is_empty()
            && self.standing.iter().zip(&plan.changes).all(|(standing, change)| {
                change.action == Action::Configure || *standing == Standing::Untouched
            })
    }
}

/// Compares what is there now with the plan.
pub(crate) fn look(root: &Path, record: &Record, plan: &Plan, tool: &ToolEnd) -> Result<Judged, ErrorDetail> {
    let inventory = solver::inventory(root)?;
    let mut results = Vec::with_capacity(plan.changes.len());
    let mut standing = Vec::with_capacity(plan.changes.len());
    let mut complete = true;
    for change in &plan.changes {
        let mut result = result(change, &inventory, tool);
        // What an earlier run left half-configured is tried again by every run of apt. That it fails again is shown,
        // but it is not this job's failure, unless it is what was asked for.
        let concerns = change.action != Action::Configure || names(&record.operation, &change.name);
        let key = key_of(change);
        let taken_back = record.taken_back.iter().find(|taken| taken.key == key);
        // Somebody may have changed it again since it went back.
        let stands = if let Some(taken_back) = taken_back.filter(|_| is_as_before(change, &inventory)) {
            result.done = false;
            result.taken_back = true;
            result.reason = Some(taken_back.reason.clone());
            Standing::TakenBack
        } else if result.done {
            Standing::Done
        } else if change.action == Action::Configure
            || (is_as_before(change, &inventory) && !has_failed(tool, change))
        {
            Standing::Untouched
        } else {
            Standing::Failed
        };
        complete &= result.done || !concerns;
        results.push(result);
        standing.push(stands);
    }
    let harmed: Vec<String> = inventory
        .database
        .audit()
        .into_iter()
        .map(|finding| finding.package.to_string())
        .filter(|package| !record.broken.contains(package))
        .collect();
    let harm_elsewhere = harmed.iter().any(|package| {
        let name = package.split(':').next().unwrap_or(package);
        !plan.changes.iter().any(|change| change.name.name() == name)
    });
    complete &= harmed.is_empty();
    Ok(Judged { standing, results, harmed, harm_elsewhere, complete })
}

/// The same some time after the change, when somebody else may have brought its packages further: a newer version in good order
/// counts as the planned one.
pub(crate) fn or_newer(
    root: &Path,
    record: &Record,
    plan: &Plan,
    mut judged: Judged,
) -> Result<Judged, ErrorDetail> {
    if judged.complete {
        return Ok(judged);
    }
    let inventory = solver::inventory(root)?;
    let mut complete = judged.harmed.is_empty();
    let found = judged.results.iter_mut().zip(&mut judged.standing);
    for (change, (result, standing)) in plan.changes.iter().zip(found) {
        if !result.done && !result.taken_back && is_newer(change, &inventory) {
            result.done = true;
            result.reason = None;
            *standing = Standing::Done;
        }
        let concerns = change.action != Action::Configure || names(&record.operation, &change.name);
        complete &= result.done || !concerns;
    }
    judged.complete = complete;
    Ok(judged)
}

/// Whether a package that was to become newer is newer still.
fn is_newer(change: &PlannedChange, inventory: &Inventory) -> bool {
    let planned = match change.action {
        Action::Install | Action::Upgrade | Action::Reinstall => change.new_version.as_ref(),
        _ => None,
    };
    let found = inventory.database.get(&change.name.with_architecture(&change.architecture));
    planned.zip(found).is_some_and(|(planned, found)| {
        in_order(found) && versions::compare(found.version_text(), planned.as_str()).is_gt()
    })
}

/// The package that a change is of.
pub(crate) fn key_of(change: &PlannedChange) -> PackageKey {
    PackageKey { name: change.name.name().to_owned(), architecture: change.architecture.to_string() }
}

/// What the tool's end says went wrong.
pub(crate) fn failure(operation: &Operation, judged: &Judged, tool: &ToolEnd) -> Failure {
    let mut error = classify(tool.code, &tool.output, operation.into());
    if !judged.harmed.is_empty() {
        error.message = format!("{} not in order any more. {}", are(&judged.harmed), error.message);
        error.details.insert("harmed".to_owned(), judged.harmed.clone().into());
    }
    if tool.timed_out {
        error.code = ErrorCode::JobTimeout;
        error.message =
            format!("a maintainer script hung beyond the job's limit and was ended. {}", error.message);
    }
    let status = if tool.timed_out { JobStatus::Timeout } else { JobStatus::Failed };
    Failure { status, exit_code: tool.code, error }
}

/// How a change ends whose packages are left as they are now.
pub(crate) fn conclude(record: &Record, plan: &Plan, judged: Judged, tool: &ToolEnd) -> Box<Ended> {
    if judged.complete && record.failure.is_none() {
        return Box::new(Ended {
            status: JobStatus::Completed,
            outcome: Some(Outcome::Applied),
            exit_code: tool.code,
            error: None,
            results: judged.results,
            answer: None,
        });
    }
    let failure = record.failure.clone().unwrap_or_else(|| failure(&record.operation, &judged, tool));
    let is = |wanted: Standing| judged.standing.contains(&wanted);
    let outcome = if judged.is_untouched(plan) {
        Outcome::Unchanged
    } else if is(Standing::TakenBack)
        && !is(Standing::Done)
        && !is(Standing::Failed)
        && judged.harmed.is_empty()
    {
        Outcome::RolledBack
    } else {
        Outcome::Partial
    };
    let mut error = failure.error;
    match outcome {
        Outcome::RolledBack => error.message.push_str(". All that was changed was taken back"),
        Outcome::Partial if is(Standing::TakenBack) => {
            error.message.push_str(". What belongs to it was taken back, the rest was applied");
        }
        _ => {}
    }
    Box::new(Ended {
        status: failure.status,
        outcome: Some(outcome),
        exit_code: failure.exit_code,
        error: Some(error),
        results: judged.results,
        answer: None,
    })
}

/// How a change ends whose result cannot be read.
pub(crate) fn unreadable(error: ErrorDetail, tool: &ToolEnd) -> Box<Ended> {
    Box::new(Ended {
        status: JobStatus::Failed,
        outcome: Some(Outcome::Partial),
        exit_code: tool.code,
        error: Some(error),
        results: Vec::new(),
        answer: None,
    })
}

/// Whether dpkg reported an error of a change's package. It names packages when it configures or removes them, and
/// archives when it unpacks them.
fn has_failed(tool: &ToolEnd, change: &PlannedChange) -> bool {
    tool.failed.iter().any(|failed| {
        let file = failed.rsplit('/').next().unwrap_or(failed);
        let mut name = file.split(['_', ':']);
        name.next() == Some(change.name.name())
    })
}

/// `a, b are`.
pub(crate) fn are(packages: &[String]) -> String {
    format!("{} {}", packages.join(", "), if packages.len() == 1 { "is" } else { "are" })
}

/// Whether the request itself names a package.
pub(crate) fn names(operation: &Operation, package: &PackageName) -> bool {
    let same = |name: &PackageName| name.name() == package.name();
    match operation {
        Operation::Refresh | Operation::Rollback(_) | Operation::Reboot(_) => false,
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
        taken_back: false,
    }
}

fn is_as_before(change: &PlannedChange, inventory: &Inventory) -> bool {
    let found = inventory.database.get(&change.name.with_architecture(&change.architecture));
    match &change.old_version {
        None => found.is_none_or(|package| !package.is_present()),
        // Before it removes packages, apt tells dpkg that they are to go.
        Some(old) => found.is_some_and(|package| {
            in_order(package)
                && package.version_text() == old.as_str()
                && !(change.action.is_removal() && matches!(package.want(), Want::Deinstall | Want::Purge))
        }),
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
