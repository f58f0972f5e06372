//! From a simulation to a plan: the solver's changes with hashes, sizes and origins out of the indexes, and with what
//! they mean for this host.

use std::cmp::Ordering;

use patch_types::{
    Action, Architecture, PackageVersion, Plan, PlannedChange,
    plan::{KeptBack, Origin},
};

use super::{
    Inventory,
    indexes::{Indexed, Indexes},
    info, patches,
    simulate::{Simulation, SolverChange, Verb},
    status::Installed,
    versions,
};

/// The plan that carries a simulation out. What the indexes do not say (a hash, an origin) is left out of it: an archive
/// without a hash is one that no signed index names.
///
/// Check [`Simulation::errors`] and [`Simulation::malformed`] first: a simulation with either is not the whole truth.
#[must_use]
pub fn plan(simulation: &Simulation, inventory: &Inventory, indexes: &Indexes) -> Plan {
    let changes = changes(simulation, inventory, indexes);
    let mut plan = Plan::of(changes);
    for change in &plan.changes {
        let architecture = Some(change.architecture.as_str());
        let installed = inventory.database.find(change.name.name(), architecture);
        plan.needs_reboot |= asks_for_reboot(inventory, change);
        let Some(installed) = installed.filter(|p| p.is_present()) else { continue };
        if change.action != Action::Remove {
            plan.conffiles.extend(info::changed_conffiles(&inventory.root, installed));
        }
        if !change.action.is_removal() {
            plan.services.extend(info::units(&inventory.root, installed));
        }
    }
    plan.services.sort();
    plan.services.dedup();
    plan.kept_back = simulation
        .kept_back
        .iter()
        .chain(&simulation.phased)
        .map(|listed| KeptBack {
            name: listed.package.clone(),
            reason: patches::why_it_stays(listed, simulation, inventory, indexes).1,
        })
        .collect();
    plan
}

/// The changes of a simulation, in the solver's order.
#[must_use]
pub fn changes(simulation: &Simulation, inventory: &Inventory, indexes: &Indexes) -> Vec<PlannedChange> {
    simulation.changes.iter().filter_map(|change| planned(change, inventory, indexes)).collect()
}

fn planned(change: &SolverChange, inventory: &Inventory, indexes: &Indexes) -> Option<PlannedChange> {
    let name = change.package.name();
    let wanted = change.package.architecture();
    let installed = inventory.database.find(name, wanted).filter(|p| p.is_present());
    let architecture: Architecture = match (&change.architecture, installed, wanted) {
        (Some(architecture), _, _) => architecture.clone(),
        (None, Some(installed), _) => installed.architecture().parse().ok()?,
        (None, None, Some(wanted)) => wanted.parse().ok()?,
        (None, None, None) => inventory.database.native().parse().ok()?,
    };
    // apt's own word on what is installed comes first: it holds for the moment of the simulation.
    let old = change.old.clone().or_else(|| installed.and_then(Installed::version));
    let old_size = installed.map_or(0, |p| signed(p.size()));
    let mut planned = PlannedChange {
        action: Action::Remove,
        name: name.parse().ok()?,
        architecture,
        old_version: old.clone(),
        new_version: None,
        archive_sha256: None,
        origin: None,
        security: false,
        archive_bytes: 0,
        disk_delta_bytes: -old_size,
    };
    match change.verb {
        Verb::Remove => {}
        Verb::Purge => planned.action = Action::Purge,
        Verb::Configure => {
            planned.action = Action::Configure;
            planned.new_version = change.new.clone().or(old);
            planned.disk_delta_bytes = 0;
        }
        Verb::Install => {
            let new = change.new.clone()?;
            planned.action = match old.as_ref().map(|old| versions::compare(new.as_str(), old.as_str())) {
                None => Action::Install,
                Some(Ordering::Greater) => Action::Upgrade,
                Some(Ordering::Equal) => Action::Reinstall,
                Some(Ordering::Less) => Action::Downgrade,
            };
            if let Some(offer) = offer(change, planned.architecture.as_str(), indexes) {
                planned.archive_sha256.clone_from(&offer.sha256);
                planned.origin = indexes.origin(offer).cloned();
                planned.archive_bytes = offer.size;
                planned.disk_delta_bytes = signed(offer.installed_size) - old_size;
            }
            let old = old.as_ref().map(PackageVersion::as_str);
            planned.security = planned.action != Action::Downgrade
                && indexes.brings_security(name, planned.architecture.as_str(), old, new.as_str());
            planned.new_version = Some(new);
        }
    }
    Some(planned)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The offer that the solver meant: the same version can be in several archives, with different content.
fn offer<'a>(change: &'a SolverChange, architecture: &'a str, indexes: &'a Indexes) -> Option<&'a Indexed> {
    let version = change.new.as_ref()?.as_str();
    let named = |origin: &Origin| {
        change.sources.iter().any(|source| {
            let label = source.strip_prefix(origin.label.as_str()).is_some_and(|rest| rest.starts_with(':'));
            let suite = source.strip_suffix(origin.suite.as_str()).is_some_and(|rest| rest.ends_with('/'));
            !origin.label.is_empty() && label && suite
        })
    };
    // Of equals the first one wins, so it is the same each time.
    indexes.offers(change.package.name(), architecture, version).min_by_key(|offer| {
        let origin = indexes.origin(offer);
        let exact = offer.architecture == architecture;
        (!exact, !origin.is_some_and(named), !origin.is_some_and(|o| o.security), offer.sha256.is_none())
    })
}

/// Whether a change is known to ask for a reboot: it brings a kernel, or the installed version's scripts ask for one
/// when they are configured. The new version's scripts are not there yet to be asked.
fn asks_for_reboot(inventory: &Inventory, change: &PlannedChange) -> bool {
    if change.action.is_removal() {
        return false;
    }
    let installed = inventory.database.find(change.name.name(), Some(change.architecture.as_str()));
    info::is_kernel(change.name.name())
        || installed.is_some_and(|p| p.is_present() && info::asks_for_reboot(&inventory.root, p))
}
