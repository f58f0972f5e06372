//! The available updates, each with whether it would be applied now and, if not, why.

use patch_types::{
    PackageName, PackageVersion, TakenBack,
    api::{Patch, PatchSet, PatchState, Severity},
};

use super::{
    Inventory, history,
    indexes::{Indexed, Indexes},
    info,
    plan::changes,
    relations::{self, Alternative},
    simulate::{Listed, Simulation, Verb},
    status::Installed,
    versions,
};

/// The updates that a simulation of patching would apply, and those that it leaves out.
#[must_use]
pub fn patch_set(simulation: &Simulation, inventory: &Inventory, indexes: &Indexes) -> PatchSet {
    let mut patches: Vec<Patch> = changes(simulation, inventory, indexes)
        .into_iter()
        .filter(|c| c.new_version.is_some() && c.new_version != c.old_version)
        .filter_map(|change| {
            let architecture = change.architecture.as_str();
            let version = change.new_version?;
            let offer = indexes.offers(change.name.name(), architecture, version.as_str()).next();
            let installed = inventory.database.find(change.name.name(), Some(architecture));
            Some(Patch {
                description: description(offer, installed),
                requires_reboot: requires_reboot(inventory, &change.name, installed),
                name: change.name,
                architecture: change.architecture,
                current_version: change.old_version,
                available_version: version,
                origin: change.origin,
                security: change.security,
                severity: Severity::Unknown,
                cve_ids: Vec::new(),
                advisories: Vec::new(),
                state: PatchState::Ready,
                reason: None,
                download_size: change.archive_bytes,
            })
        })
        .collect();
    let stay = simulation.kept_back.iter().chain(&simulation.phased);
    patches.extend(stay.filter_map(|listed| left_out(listed, simulation, inventory, indexes)));
    patches.sort_by(|a, b| (&a.name, &a.architecture).cmp(&(&b.name, &b.architecture)));
    patches.dedup_by(|a, b| a.name == b.name && a.architecture == b.architecture);
    PatchSet {
        total: patches.len(),
        security_updates: patches.iter().filter(|p| p.security).count(),
        requires_reboot: patches.iter().any(|p| p.state == PatchState::Ready && p.requires_reboot),
        last_update_check: history::last_update_check(&inventory.root),
        patches,
    }
}

/// Adds the versions that were taken back and are newer than what is installed: they are pinned away, so the solver does
/// not see them, and a fix that is missing must not look as if there were none. A package may then be there twice: with
/// the version that would be installed, and with the one that would not.
#[must_use]
pub fn with_taken_back(
    mut set: PatchSet,
    taken_back: &[TakenBack],
    inventory: &Inventory,
    indexes: &Indexes,
) -> PatchSet {
    for entry in taken_back {
        let (name, architecture) = (entry.name.name(), entry.architecture.as_str());
        let Some(installed) = inventory.database.find(name, Some(architecture)).filter(|p| p.is_present())
        else {
            continue;
        };
        // Beside an older update that would be applied: what matters may be what is missing.
        let is_there = |p: &Patch| {
            p.name.name() == name
                && p.architecture == entry.architecture
                && p.available_version == entry.version
        };
        let is_newer = versions::compare(entry.version.as_str(), installed.version_text()).is_gt();
        let Some(offer) = indexes.offers(name, architecture, entry.version.as_str()).next() else { continue };
        if !is_newer || set.patches.iter().any(is_there) {
            continue;
        }
        let current = installed.version();
        let version = entry.version.as_str();
        set.patches.push(Patch {
            description: description(Some(offer), Some(installed)),
            requires_reboot: requires_reboot(inventory, &entry.name, Some(installed)),
            security: indexes.brings_security(
                name,
                architecture,
                current.as_ref().map(PackageVersion::as_str),
                version,
            ),
            name: entry.name.clone(),
            architecture: entry.architecture.clone(),
            current_version: current,
            available_version: entry.version.clone(),
            origin: indexes.origin(offer).cloned(),
            severity: Severity::Unknown,
            cve_ids: Vec::new(),
            advisories: Vec::new(),
            state: PatchState::TakenBack,
            reason: Some(format!(
                "{version} was taken back by job {} ({}); it is not installed again until root clears it on the host: \
                 linux-patch-host clear {name}={version}",
                entry.job,
                entry.reason.trim_end_matches('.')
            )),
            download_size: offer.size,
        });
    }
    set.patches.sort_by(|a, b| (&a.name, &a.architecture).cmp(&(&b.name, &b.architecture)));
    set.total = set.patches.len();
    set.security_updates = set.patches.iter().filter(|p| p.security).count();
    set
}

fn left_out(
    listed: &Listed,
    simulation: &Simulation,
    inventory: &Inventory,
    indexes: &Indexes,
) -> Option<Patch> {
    let installed = inventory.database.get(&listed.package)?;
    let architecture = installed.architecture();
    let candidate = candidate(listed, architecture, indexes);
    let version = listed.new.clone().or_else(|| candidate.map(|c| c.version.clone()))?;
    let current = installed.version();
    let (state, reason) = why_it_stays(listed, simulation, inventory, indexes);
    let name: PackageName = listed.name().parse().ok()?;
    Some(Patch {
        description: description(candidate, Some(installed)),
        requires_reboot: requires_reboot(inventory, &name, Some(installed)),
        security: indexes.brings_security(
            listed.name(),
            architecture,
            current.as_ref().map(PackageVersion::as_str),
            version.as_str(),
        ),
        name,
        architecture: architecture.parse().ok()?,
        current_version: current,
        available_version: version,
        origin: candidate.and_then(|c| indexes.origin(c)).cloned(),
        severity: Severity::Unknown,
        cve_ids: Vec::new(),
        advisories: Vec::new(),
        state,
        reason: Some(reason),
        download_size: candidate.map_or(0, |c| c.size),
    })
}

fn description(offer: Option<&Indexed>, installed: Option<Installed<'_>>) -> String {
    offer
        .map(|o| o.synopsis.as_str())
        .filter(|s| !s.is_empty())
        .or_else(|| installed.map(Installed::synopsis))
        .unwrap_or_default()
        .to_owned()
}

fn requires_reboot(inventory: &Inventory, name: &PackageName, installed: Option<Installed<'_>>) -> bool {
    info::is_kernel(name.name())
        || installed.is_some_and(|p| p.is_present() && info::asks_for_reboot(&inventory.root, p))
}

/// The offer that a list speaks of: of the version that it names, or else the newest.
pub(crate) fn candidate<'a>(
    listed: &'a Listed,
    architecture: &'a str,
    indexes: &'a Indexes,
) -> Option<&'a Indexed> {
    match &listed.new {
        Some(version) => indexes.offers(listed.name(), architecture, version.as_str()).next(),
        None => indexes.newest(listed.name(), architecture),
    }
}

/// Why a package stays although a newer version is its candidate: apt lists what is held, phased and kept back by
/// dependencies all under one heading.
#[must_use]
pub fn why_it_stays(
    listed: &Listed,
    simulation: &Simulation,
    inventory: &Inventory,
    indexes: &Indexes,
) -> (PatchState, String) {
    let installed = inventory.database.get(&listed.package);
    if installed.is_some_and(Installed::is_held) {
        return (PatchState::Held, format!("{} is held", listed.package));
    }
    let architecture = installed.map_or("", Installed::architecture);
    let candidate = candidate(listed, architecture, indexes);
    if simulation.phased.contains(listed) || candidate.is_some_and(|c| c.phased_percentage.is_some()) {
        let reason = match candidate.and_then(|c| Some((&c.version, c.phased_percentage?))) {
            Some((version, percentage)) => format!(
                "the archive offers {version} to {percentage} % of all machines so far, and this one is not among them"
            ),
            None => "the archive offers it to a part of all machines so far, and this one is not among them"
                .to_owned(),
        };
        return (PatchState::Phased, reason);
    }
    let blockers = candidate.map(|c| blockers(c, simulation, inventory, indexes)).unwrap_or_default();
    let reason = if blockers.is_empty() {
        format!("apt keeps it back; `apt-get -s install {}` shows what it would take", listed.package)
    } else {
        blockers.join("; ")
    };
    (PatchState::KeptBack, reason)
}

/// What stands in the way of a version, as far as the relations tell: a clause each.
#[must_use]
pub fn blockers(
    candidate: &Indexed,
    simulation: &Simulation,
    inventory: &Inventory,
    indexes: &Indexes,
) -> Vec<String> {
    let after = After { simulation, inventory, indexes, candidate };
    let name = candidate.name.name();
    let version = &candidate.version;
    let mut clauses = Vec::new();
    for group in candidate.relations.pre_depends.iter().chain(&candidate.relations.depends) {
        if !relations::alternatives(group).any(|a| after.has(&a)) {
            clauses.push(format!("{version} needs {group}{}", after.why_missing(group)));
        }
    }
    for group in candidate.relations.conflicts.iter().chain(&candidate.relations.breaks) {
        for other in relations::alternatives(group).filter(|a| a.name != name && after.is_there(a)) {
            clauses.push(format!("{version} conflicts with {group}, and {} is installed", other.name));
        }
    }
    for other in inventory.database.iter().filter(|p| p.is_present() && p.name() != name) {
        if simulation.change(other.name(), Some(other.architecture())).is_some() {
            continue;
        }
        let needs = relations::groups(other.pre_depends()).chain(relations::groups(other.depends()));
        for group in needs.filter(|g| g.contains(name)) {
            let mine = relations::alternatives(group).any(|a| a.name == name);
            if mine && !relations::alternatives(group).any(|a| after.has(&a)) {
                clauses.push(format!("{} {} needs {group}", other.name(), other.version_text()));
            }
        }
        let against = relations::groups(other.conflicts()).chain(relations::groups(other.breaks()));
        for group in against.filter(|g| g.contains(name)) {
            if relations::alternatives(group).any(|a| a.name == name && a.accepts(version.as_str())) {
                clauses.push(format!("{} {} conflicts with {group}", other.name(), other.version_text()));
            }
        }
    }
    clauses
}

/// The packages as they would be after the simulation and with the candidate.
struct After<'a> {
    simulation: &'a Simulation,
    inventory: &'a Inventory,
    indexes: &'a Indexes,
    candidate: &'a Indexed,
}

impl After<'_> {
    /// Whether a package, under its own name, would be there in a version that the condition accepts.
    fn is_there(&self, wanted: &Alternative<'_>) -> bool {
        if wanted.name == self.candidate.name.name() {
            return wanted.accepts(self.candidate.version.as_str());
        }
        match self.simulation.change(wanted.name, None) {
            Some(change) => change.new.as_ref().is_some_and(|v| wanted.accepts(v.as_str())),
            None => self
                .inventory
                .database
                .named(wanted.name)
                .any(|p| p.is_present() && wanted.accepts(p.version_text())),
        }
    }

    /// The same, also under another name.
    fn has(&self, wanted: &Alternative<'_>) -> bool {
        self.is_there(wanted)
            || self.candidate.relations.provides.iter().any(|p| wanted.provided_by(p))
            || self.inventory.database.iter().any(|p| {
                p.is_present() && p.provides().contains(wanted.name) && wanted.provided_by(p.provides())
            })
            || self.simulation.changes.iter().filter(|c| c.verb == Verb::Install).any(|c| {
                let version = c.new.as_ref().map_or("", |v| v.as_str());
                self.indexes
                    .offers(c.package.name(), c.architecture.as_ref().map_or("", |a| a.as_str()), version)
                    .any(|o| o.relations.provides.iter().any(|p| wanted.provided_by(p)))
            })
    }

    fn why_missing(&self, group: &str) -> String {
        let native = self.inventory.database.native();
        let mut words = Vec::new();
        for wanted in relations::alternatives(group) {
            let name = wanted.name;
            let offered = self.indexes.versions(name).iter().any(|o| wanted.accepts(o.version.as_str()));
            let installed = self.inventory.database.find(name, None).filter(|p| p.is_present());
            let planned = self.simulation.change(name, None).map(|change| change.new.as_ref());
            words.push(match (installed, planned) {
                (Some(_), Some(Some(new))) => format!("{name} would be at {new}"),
                (Some(_), Some(None)) => format!("{name} would be removed"),
                (Some(p), None) if p.is_held() => format!("{name} is held at {}", p.version_text()),
                (Some(p), None) => format!("{name} stays at {}", p.version_text()),
                (None, _) if offered => format!("{name} would be newly installed"),
                (None, _) if self.indexes.newest(name, native).is_some() => {
                    format!("no archive offers {name} in such a version")
                }
                (None, _) => format!("no archive offers {name}"),
            });
        }
        if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
    }
}

#[cfg(test)]
#[path = "patches_tests.rs"]
mod tests;
