//! From an operation to a plan: the package manager's own solver decides, this module asks and translates.

use std::{path::Path, time::Duration};

use patch_apply::{
    apt::{
        argv::{self, Task},
        taken_back,
    },
    run::{self, Captured, RunError},
};
use patch_backends::{
    ReadError,
    apt::{
        self, Indexes, Installed, Inventory, OperationKind, Simulation, classify, last_update_check,
        simulate::{self, Verb},
        versions, words,
    },
};
use patch_types::{
    Action, ErrorCode, ErrorDetail, Operation, PackageName, PackageVersion, Plan, PlannedChange, TakenBack,
    api::{PatchSet, PatchState},
    operation::{ApplyPatches, Hold, Install, Update},
};

use crate::{ceiling::Ceiling, paths::Paths, protect};

/// How long the solver may take.
pub(crate) const SOLVER_LIMIT: Duration = Duration::from_secs(300);

/// What is to be done, decided.
#[derive(Debug)]
pub(crate) struct Planned {
    /// The changes.
    pub(crate) plan: Plan,
    /// What apt is told to carry them out; `None` when apt has nothing to do with it (holds).
    pub(crate) task: Option<Task>,
    /// Named packages whose automatic mark apt is going to drop, and that get it back.
    pub(crate) auto: Vec<PackageName>,
}

/// Reads what is installed.
pub(crate) fn inventory(root: &Path) -> Result<Inventory, ErrorDetail> {
    Inventory::read(root).map_err(|error| unreadable(&error))
}

pub(crate) fn unreadable(error: &ReadError) -> ErrorDetail {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    ErrorDetail::new(
        ErrorCode::PkgManagerError,
        format!("{error}{cause}; the package database must be readable"),
    )
}

pub(crate) fn run_failed(error: &RunError) -> ErrorDetail {
    let code = match error {
        RunError::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            ErrorCode::DiskSpace
        }
        _ => ErrorCode::PkgManagerError,
    };
    ErrorDetail::new(code, format!("{error}"))
}

/// Lets the solver work a task out.
pub(crate) fn simulation(root: &Path, task: &Task, kind: OperationKind) -> Result<Simulation, ErrorDetail> {
    let said = capture(&argv::simulate(root, task))?;
    if said.code == Some(0) {
        Ok(simulate::parse(&said.stdout))
    } else {
        let error = classify(said.code, &said.text(), kind);
        Err(match error.code {
            // They may name every package of the host: not for a message, but for whoever wants to know.
            ErrorCode::PkgDependencyError => error.with(WORDS, bounded(words::foreign(&said.text()))),
            _ => error,
        })
    }
}

/// Where a refusal keeps what apt said of dependencies.
pub(crate) const WORDS: &str = "output";

/// The most that is kept of it, in bytes.
const MAX_WORDS: usize = 32 << 10;

fn bounded(mut text: String) -> String {
    if text.len() > MAX_WORDS {
        text.truncate(text.floor_char_boundary(MAX_WORDS));
        text.push_str("\n…");
    }
    text
}

/// How many packages a refusal names.
const NAMED: usize = 5;

/// What would go with a package, or be broken without it, in a sentence. apt names every dependency of each.
fn would_take_along(error: ErrorDetail, name: &PackageName, inventory: &Inventory) -> ErrorDetail {
    let packages = error.details.get("packages").and_then(|packages| packages.as_array());
    let packages: Vec<&str> = packages.into_iter().flatten().filter_map(|package| package.as_str()).collect();
    if error.code != ErrorCode::PkgDependencyError || packages.is_empty() {
        return error;
    }
    let needed = |name: &str| {
        let found = name.parse().ok().and_then(|name: PackageName| inventory.database.get(&name));
        found.is_some_and(|package| package.essential() || package.protected())
    };
    let (needed, others): (Vec<&str>, Vec<&str>) = packages.iter().partition(|name| needed(name));
    let count = packages.len();
    let named: Vec<&str> = needed.iter().chain(&others).copied().take(NAMED).collect();
    let more = match count.saturating_sub(named.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let what = if count == 1 { "1 package".to_owned() } else { format!("{count} packages") };
    let essential = match needed.len() {
        0 => "if all of that may go, remove what needs it first",
        _ => "what is essential to the host is among them, so it has to stay",
    };
    let message = format!(
        "{name} cannot be removed: {what} would have to go with it: {}{more}; nothing was changed. Next: {essential}",
        named.join(", ")
    );
    ErrorDetail { message, ..error }
}

pub(crate) fn capture(argv: &argv::Argv) -> Result<Captured, ErrorDetail> {
    run::capture(argv, SOLVER_LIMIT).map_err(|error| run_failed(&error))
}

/// The packages that apt installs or removes although nobody asks for anything: those that an earlier run left so that
/// it begins them again, every time. Configuring what is unpacked is none of it. Or why apt can do nothing at all: because
/// dependencies are broken, or a package cannot be had again.
///
/// # Errors
/// When apt cannot be asked.
pub(crate) fn unasked(root: &Path) -> Result<Result<Vec<String>, ErrorDetail>, ErrorDetail> {
    let nothing =
        Install { packages: Vec::new(), no_recommends: true, allow_downgrade: false, reinstall: false };
    let said = capture(&argv::simulate(root, &Task::Install(nothing)))?;
    if said.code != Some(0) {
        return Ok(Err(classify(said.code, &said.text(), OperationKind::Install)));
    }
    let changes = simulate::parse(&said.stdout).changes;
    let begun = changes.into_iter().filter(|change| change.verb != Verb::Configure);
    Ok(Ok(begun.map(|change| change.package.to_string()).collect()))
}

/// The versions that were taken back. A list that cannot be read is no reason to answer nothing: apt's own preferences
/// hold them off all the same.
pub(crate) fn taken_back(paths: &Paths) -> Vec<TakenBack> {
    taken_back::list(&paths.state()).unwrap_or_else(|error| {
        eprintln!("patch-executor: {error}");
        Vec::new()
    })
}

/// The updates that are available by the default policy, and those that were taken back.
pub(crate) fn patches(paths: &Paths, inventory: &Inventory) -> Result<PatchSet, ErrorDetail> {
    let root = paths.root();
    let taken_back = taken_back(paths);
    let names = taken_back.iter().map(|entry| entry.name.name().to_owned());
    let theirs = Indexes::read(root, names).map_err(|error| unreadable(&error))?;
    let simulation =
        simulation(root, &Task::UpgradeAll { allow_removals: false }, OperationKind::ApplyPatches)?;
    let indexes = Indexes::for_simulations(inventory, &[&simulation]).map_err(|error| unreadable(&error))?;
    let set = apt::patch_set(&simulation, inventory, &indexes);
    Ok(apt::with_taken_back(set, &taken_back, inventory, &theirs))
}

/// Works an operation's plan out. Nothing is changed.
pub(crate) fn plan(paths: &Paths, operation: &Operation) -> Result<Planned, ErrorDetail> {
    let root = paths.root();
    let inventory = inventory(root)?;
    let task = match operation {
        Operation::Refresh => {
            return Ok(Planned { plan: Plan::of(Vec::new()), task: None, auto: Vec::new() });
        }
        Operation::Hold(hold) => return plan_hold(hold, &inventory),
        Operation::Reboot(_) => {
            let message = "a reboot changes no package, so there is nothing to plan";
            return Err(ErrorDetail::new(ErrorCode::InvalidRequest, message));
        }
        Operation::Rollback(_) => {
            let message = "undoing a job is planned from its snapshot, not by the solver";
            return Err(ErrorDetail::new(ErrorCode::PkgManagerError, message));
        }
        Operation::Install(install) => {
            install.packages.iter().try_for_each(|spec| exists(&inventory, &spec.name))?;
            Task::Install(install.clone())
        }
        Operation::Update(update) => {
            must_be_installed(&inventory, &update.name)?;
            must_not_be_held(&inventory, &update.name)?;
            Task::Update(update.clone())
        }
        Operation::Remove(remove) => {
            exists(&inventory, &remove.name)?;
            Task::Remove(remove.clone())
        }
        Operation::ApplyPatches(_) if last_update_check(root).is_none() => {
            let message = "there are no package lists on this host, so which updates there are cannot be told; nothing was \
                           changed. Fetch them first: `patchctl refresh`, or `apt-get update` on the host";
            return Err(ErrorDetail::new(ErrorCode::PkgManagerError, message));
        }
        Operation::ApplyPatches(apply) => match choose_patches(paths, apply, &inventory)? {
            Some(task) => task,
            None => {
                let mut plan = Plan::of(Vec::new());
                let taken_back = taken_back(paths);
                nothing_taken_back(operation, &plan, &taken_back, &inventory)?;
                plan.barred = barred(root, apply, &plan, taken_back, &inventory);
                return Ok(Planned { plan, task: None, auto: Vec::new() });
            }
        },
    };
    let simulation = simulation(root, &task, operation.into()).map_err(|error| match operation {
        Operation::Remove(remove) => would_take_along(error, &remove.name, &inventory),
        _ => error,
    })?;
    understood(&simulation)?;
    let indexes = Indexes::for_simulations(&inventory, &[&simulation]).map_err(|error| unreadable(&error))?;
    let mut plan = apt::plan(&simulation, &inventory, &indexes);
    if let Operation::ApplyPatches(apply) = operation {
        exclusions_hold(apply, &plan)?;
    }
    if let Operation::Install(install) = operation {
        is_what_was_asked_for(install, &plan, &inventory)?;
    }
    if let Operation::Update(Update { name, version: Some(version) }) = operation {
        arrives_at(name, version, &plan, &inventory)?;
    }
    let needs_origins = matches!(operation, Operation::ApplyPatches(apply) if apply.security_only);
    if needs_origins {
        can_tell_security(&indexes)?;
    }
    downgrades_are_allowed(operation, &plan)?;
    let taken_back = taken_back(paths);
    nothing_taken_back(operation, &plan, &taken_back, &inventory)?;
    if let Operation::ApplyPatches(apply) = operation {
        plan.barred = barred(root, apply, &plan, taken_back, &inventory);
    }
    protect::check(&plan, &inventory)?;
    Ceiling::load(root)?.check(&plan, &inventory)?;
    holds_are_kept(&plan, &inventory)?;
    let auto = named(&task)
        .into_iter()
        .filter(|name| inventory.database.get(name).is_some_and(|package| inventory.is_auto(package)))
        .collect();
    Ok(Planned { plan, task: Some(task), auto })
}

/// A version that was taken back is root's to clear: what it did on this host, it would do again. Where it is why a package
/// that was named stays as it is, that is said rather than that there is nothing to do.
fn nothing_taken_back(
    operation: &Operation,
    plan: &Plan,
    taken_back: &[TakenBack],
    inventory: &Inventory,
) -> Result<(), ErrorDetail> {
    let comes = |entry: &&TakenBack| {
        plan.changes.iter().any(|change| {
            entry.name.name() == change.name.name()
                && entry.architecture == change.architecture
                && change.new_version.as_ref() == Some(&entry.version)
                && change.old_version.as_ref() != Some(&entry.version)
        })
    };
    let named = match operation {
        Operation::ApplyPatches(apply) => apply.packages.as_slice(),
        Operation::Update(update) => std::slice::from_ref(&update.name),
        _ => &[],
    };
    let is_missed = |entry: &&TakenBack| {
        plan.is_empty()
            && named.iter().any(|name| name.name() == entry.name.name())
            && inventory
                .database
                .find(entry.name.name(), Some(entry.architecture.as_str()))
                .is_some_and(|p| versions::compare(entry.version.as_str(), p.version_text()).is_gt())
    };
    let barred = taken_back.iter().find(|entry| comes(entry) || is_missed(entry));
    let Some(TakenBack { name, version, job, reason, .. }) = barred else { return Ok(()) };
    let message = format!(
        "{name} {version} was taken back on this host by job {job} ({}), and is not installed again; nothing was changed. If \
         it is in order now, root can let it be installed, on the host: linux-patch-host clear {name}={version}",
        reason.trim_end_matches('.')
    );
    let error = ErrorDetail::new(ErrorCode::PkgVersionConflict, message);
    Err(error.with("package", name.as_str()).with("version", version.as_str()))
}

/// The security fixes that are wanted and that neither are installed nor will be by a plan, since they were taken back. The
/// solver does not see them: without this a run that leaves them out would look as if it had installed all there is.
fn barred(
    root: &Path,
    apply: &ApplyPatches,
    plan: &Plan,
    taken_back: Vec<TakenBack>,
    inventory: &Inventory,
) -> Vec<TakenBack> {
    let names = |names: &[PackageName], entry: &TakenBack| {
        names.iter().any(|name| {
            name.name() == entry.name.name()
                && name.architecture().is_none_or(|a| a == entry.architecture.as_str())
        })
    };
    let before =
        |entry: &TakenBack, version: &str| versions::compare(version, entry.version.as_str()).is_lt();
    let comes = |entry: &TakenBack| {
        plan.changes.iter().any(|change| {
            change.name.name() == entry.name.name()
                && change.architecture == entry.architecture
                && change.new_version.as_ref().is_none_or(|version| !before(entry, version.as_str()))
        })
    };
    let present = |entry: &TakenBack| {
        let found = inventory.database.find(entry.name.name(), Some(entry.architecture.as_str()));
        found.filter(|package| package.is_present()).map(|package| package.version_text().to_owned())
    };
    let mut missing: Vec<(TakenBack, String)> = taken_back
        .into_iter()
        .filter(|entry| !names(&apply.exclude, entry))
        .filter(|entry| apply.packages.is_empty() || names(&apply.packages, entry))
        .filter(|entry| !comes(entry))
        .filter_map(|entry| present(&entry).filter(|now| before(&entry, now)).map(|now| (entry, now)))
        .collect();
    if missing.is_empty() {
        return Vec::new();
    }
    // Where that cannot be told, better one too many is named than none.
    if let Ok(indexes) = Indexes::read(root, missing.iter().map(|(entry, _)| entry.name.name().to_owned()))
        && indexes.skipped().is_empty()
    {
        missing.retain(|(entry, now)| {
            let (name, architecture) = (entry.name.name(), entry.architecture.as_str());
            indexes.brings_security(name, architecture, Some(now), entry.version.as_str())
        });
    }
    missing.into_iter().map(|(entry, _)| entry).collect()
}

/// A plan is only as good as the reading of what the solver printed.
fn understood(simulation: &Simulation) -> Result<(), ErrorDetail> {
    let what = match simulation.errors.first() {
        Some(error) => format!("apt-get said: {}", words::quoted(error)),
        None if simulation.malformed > 0 => {
            format!("{} lines of what apt-get printed were not understood", simulation.malformed)
        }
        None => return Ok(()),
    };
    let message = format!("the solver's answer cannot be relied on, so nothing was begun: {what}");
    Err(ErrorDetail::new(ErrorCode::PkgManagerError, message))
}

/// Without readable indexes no origin is known, and "no security fixes" would be an untruth.
fn can_tell_security(indexes: &Indexes) -> Result<(), ErrorDetail> {
    indexes.skipped().first().map_or(Ok(()), |skipped| {
        let message = format!(
            "which updates are security fixes cannot be told: {} was not read, {}. Nothing was changed",
            skipped.path.display(),
            skipped.reason
        );
        Err(ErrorDetail::new(ErrorCode::PkgManagerError, message))
    })
}

/// apt reads a trailing `+` or `-` of what it does not know as an instruction. Whatever it made of the request, it must
/// be an installation of just what was named.
fn is_what_was_asked_for(install: &Install, plan: &Plan, inventory: &Inventory) -> Result<(), ErrorDetail> {
    for spec in &install.packages {
        let planned = planned_for(&spec.name, plan);
        if planned.is_some_and(|change| change.action.is_removal()) {
            let message =
                format!("apt would remove {} rather than install it; nothing was changed", spec.name);
            return Err(
                ErrorDetail::new(ErrorCode::PkgVersionConflict, message).with("package", spec.name.as_str())
            );
        }
        if let Some(version) = &spec.version {
            arrives_at(&spec.name, version, plan, inventory)?;
        }
        let present = inventory.database.get(&spec.name).is_some_and(Installed::is_present);
        if install.reinstall && present && planned.is_none() {
            let message =
                format!("{} cannot be installed again: no archive offers its version any more", spec.name);
            return Err(
                ErrorDetail::new(ErrorCode::PkgVersionConflict, message).with("package", spec.name.as_str())
            );
        }
    }
    Ok(())
}

/// apt refuses a downgrade only when it is about to make it, after everything was fetched, and a dry run would promise it.
fn downgrades_are_allowed(operation: &Operation, plan: &Plan) -> Result<(), ErrorDetail> {
    if matches!(operation, Operation::Install(install) if install.allow_downgrade) {
        return Ok(());
    }
    plan.changes.iter().find(|change| change.action == Action::Downgrade).map_or(Ok(()), |change| {
        let name = &change.name;
        let message = format!(
            "{name} would be downgraded, which was not asked for; nothing was begun. Install the older version with \
             POST /api/v1/packages and \"allow_downgrade\": true (patchctl install {name}=VERSION --allow-downgrade)"
        );
        Err(ErrorDetail::new(ErrorCode::PkgVersionConflict, message).with("package", name.as_str()))
    })
}

fn planned_for<'a>(name: &PackageName, plan: &'a Plan) -> Option<&'a PlannedChange> {
    plan.changes.iter().find(|change| {
        change.name.name() == name.name()
            && name.architecture().is_none_or(|a| a == change.architecture.as_str())
    })
}

fn arrives_at(
    name: &PackageName,
    version: &PackageVersion,
    plan: &Plan,
    inventory: &Inventory,
) -> Result<(), ErrorDetail> {
    let arrives = match planned_for(name, plan) {
        Some(change) => change.new_version.as_ref() == Some(version),
        None => inventory.database.get(name).is_some_and(|p| p.version_text() == version.as_str()),
    };
    if arrives {
        return Ok(());
    }
    let message = format!(
        "apt would not bring {name} to version {version}, so nothing was begun; see which versions there are with GET \
         /api/v1/packages/{}",
        name.name()
    );
    Err(ErrorDetail::new(ErrorCode::PkgVersionConflict, message).with("package", name.as_str()))
}

/// The names that an update hands to `apt-get install`, which marks them as wanted by a person.
fn named(task: &Task) -> Vec<PackageName> {
    match task {
        Task::Update(update) => vec![update.name.clone()],
        Task::UpgradeSome { packages, .. } => packages.iter().map(|(name, _)| name.clone()).collect(),
        // An installation is a person's wish: apt's marking it so is right.
        Task::Install(_) | Task::Remove(_) | Task::UpgradeAll { .. } => Vec::new(),
    }
}

/// apt reads a trailing `+` of a name that it does not know as "install": `foo+` would become `foo`. Real names such as
/// `g++` end so too, hence the look at what there is.
fn exists(inventory: &Inventory, name: &PackageName) -> Result<(), ErrorDetail> {
    if !name.name().ends_with('+') || inventory.database.get(name).is_some() {
        return Ok(());
    }
    let indexes = Indexes::for_package(inventory, name).map_err(|error| unreadable(&error))?;
    if !indexes.versions(name.name()).is_empty() {
        return Ok(());
    }
    Err(ErrorDetail::new(
        ErrorCode::PkgNotFound,
        format!(
            "there is no package {name}, neither installed nor in any index; refresh the indexes if it is new"
        ),
    )
    .with("package", name.as_str()))
}

fn must_be_installed(inventory: &Inventory, name: &PackageName) -> Result<(), ErrorDetail> {
    if inventory.database.get(name).is_some_and(Installed::is_present) {
        return Ok(());
    }
    Err(ErrorDetail::new(
        ErrorCode::PkgNotFound,
        format!(
            "package {name} is not installed; check the spelling, or install it first with POST /api/v1/packages \
             (patchctl install {name})"
        ),
    )
    .with("package", name.as_str()))
}

fn must_not_be_held(inventory: &Inventory, name: &PackageName) -> Result<(), ErrorDetail> {
    if inventory.database.get(name).is_some_and(Installed::is_held) { Err(is_held(name)) } else { Ok(()) }
}

fn is_held(name: &PackageName) -> ErrorDetail {
    let message = format!(
        "package {name} is held and was left as it is; take it off hold first: PUT /packages/{name} with {{\"hold\": false}}"
    );
    ErrorDetail::new(ErrorCode::PkgHeld, message).with("package", name.as_str())
}

/// apt refuses to change a held package, but only when it is about to: here nothing has been fetched yet.
fn holds_are_kept(plan: &Plan, inventory: &Inventory) -> Result<(), ErrorDetail> {
    let held = plan.changes.iter().find(|change| {
        change.action != Action::Configure
            && inventory
                .database
                .get(&change.name.with_architecture(&change.architecture))
                .is_some_and(|package| package.is_held() && package.is_present())
    });
    held.map_or(Ok(()), |change| Err(is_held(&change.name)))
}

fn plan_hold(hold: &Hold, inventory: &Inventory) -> Result<Planned, ErrorDetail> {
    must_be_installed(inventory, &hold.name)?;
    let changes =
        inventory.database.get(&hold.name).filter(|package| package.is_held() != hold.hold).and_then(
            |package| {
                let version = package.version();
                Some(PlannedChange {
                    action: if hold.hold { Action::Hold } else { Action::Unhold },
                    name: package.name().parse().ok()?,
                    architecture: package.architecture().parse().ok()?,
                    old_version: version.clone(),
                    new_version: version,
                    archive_sha256: None,
                    origin: None,
                    security: false,
                    archive_bytes: 0,
                    disk_delta_bytes: 0,
                })
            },
        );
    Ok(Planned { plan: Plan::of(changes.into_iter().collect()), task: None, auto: Vec::new() })
}

/// What `apply` comes to. `None`: nothing to do.
fn choose_patches(
    paths: &Paths,
    apply: &ApplyPatches,
    inventory: &Inventory,
) -> Result<Option<Task>, ErrorDetail> {
    for name in &apply.packages {
        must_be_installed(inventory, name)?;
        must_not_be_held(inventory, name)?;
    }
    if !apply.security_only && apply.exclude.is_empty() {
        return Ok(Some(Task::named(apply)));
    }
    // What is wanted is a part of what there is, so the solver says first what there is.
    let root = paths.root();
    let set = patches(paths, inventory)?;
    if apply.security_only {
        let names = set.patches.iter().map(|patch| patch.name.name().to_owned());
        can_tell_security(&Indexes::read(root, names).map_err(|error| unreadable(&error))?)?;
    }
    let matches = |name: &PackageName, patch: &patch_types::api::Patch| {
        name.name() == patch.name.name()
            && name.architecture().is_none_or(|a| a == patch.architecture.as_str())
    };
    let chosen: Vec<_> = set
        .patches
        .iter()
        .filter(|patch| patch.current_version.is_some() && patch.state != PatchState::TakenBack)
        .filter(|patch| !apply.security_only || patch.security)
        .filter(|patch| !apply.exclude.iter().any(|name| matches(name, patch)))
        .filter(|patch| {
            if apply.packages.is_empty() {
                patch.state == PatchState::Ready
                    || (apply.allow_removals && patch.state == PatchState::KeptBack)
            } else {
                apply.packages.iter().any(|name| matches(name, patch))
            }
        })
        .map(|patch| {
            let name = match patch.architecture.as_str() {
                "all" => patch.name.clone(),
                _ => patch.name.with_architecture(&patch.architecture),
            };
            (name, Some(patch.available_version.clone()))
        })
        .collect();
    if chosen.is_empty() {
        return Ok(None);
    }
    Ok(Some(Task::UpgradeSome { packages: chosen, allow_removals: apply.allow_removals }))
}

/// An excluded package may still be what a chosen one depends on: then nothing is done rather than the wrong thing.
fn exclusions_hold(apply: &ApplyPatches, plan: &Plan) -> Result<(), ErrorDetail> {
    let broken = plan.changes.iter().find(|change| {
        apply.exclude.iter().any(|name| {
            name.name() == change.name.name()
                && name.architecture().is_none_or(|a| a == change.architecture.as_str())
        })
    });
    match broken {
        None => Ok(()),
        Some(change) => Err(ErrorDetail::new(
            ErrorCode::PkgDependencyError,
            format!(
                "{} is excluded, but other updates of this request depend on it; exclude those too, or do not exclude it",
                change.name
            ),
        )
        .with("package", change.name.as_str())),
    }
}
