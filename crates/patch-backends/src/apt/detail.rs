//! All that is known of one package.

use patch_types::{
    PackageName, PackageVersion,
    api::{AvailableVersion, Cause, PackageDetail, PackageStatus},
    plan::Origin,
};

use super::{
    Inventory,
    indexes::Indexes,
    info,
    policy::Policy,
    relations,
    status::{Database, Installed},
    versions,
};

/// A package's detail; none if it is neither installed nor offered. `why_not` are the causes of
/// [`why_not`](super::why_not()), taken over as they are.
///
/// Without a policy (`apt-cache policy` not run) the candidate is not known and none is named.
#[must_use]
pub fn detail(
    name: &PackageName,
    inventory: &Inventory,
    policy: Option<&Policy>,
    indexes: &Indexes,
    why_not: Vec<Cause>,
) -> Option<PackageDetail> {
    let database = &inventory.database;
    let installed = database.get(name);
    let architecture = match (installed, name.architecture()) {
        (Some(installed), _) => installed.architecture(),
        (None, Some(architecture)) => architecture,
        (None, None) => database.native(),
    };
    let current = installed.filter(|p| p.is_present()).and_then(Installed::version);
    let candidate = policy.and_then(|p| p.candidate.clone());
    let offer = match &candidate {
        Some(version) => indexes.offers(name.name(), architecture, version.as_str()).next(),
        None => indexes.newest(name.name(), architecture),
    };
    if installed.is_none() && offer.is_none() && candidate.is_none() {
        return None;
    }
    let latest_version = match (&current, &candidate) {
        (Some(current), Some(candidate)) => {
            versions::compare(candidate.as_str(), current.as_str()).is_gt().then(|| candidate.clone())
        }
        _ => None,
    };
    let provided = installed.map_or_else(
        || offer.map(|o| o.relations.provides.join(", ")).unwrap_or_default(),
        |p| p.provides().to_owned(),
    );
    let text = |own: Option<&str>, offered: Option<&String>| {
        own.filter(|t| !t.is_empty()).or(offered.map(String::as_str)).unwrap_or_default().to_owned()
    };
    Some(PackageDetail {
        name: name.name().parse().ok()?,
        version: current.clone(),
        architecture: offer
            .filter(|_| installed.is_none())
            .map_or(architecture, |o| o.architecture.as_str())
            .parse()
            .ok()?,
        status: installed.map_or(PackageStatus::NotInstalled, Installed::status),
        upgradable: latest_version.is_some(),
        latest_version,
        description: text(installed.map(Installed::synopsis), offer.map(|o| &o.synopsis)),
        long_description: installed
            .map(Installed::long_description)
            .filter(|d| !d.is_empty())
            .or_else(|| offer.map(|o| o.long_description.clone()))
            .unwrap_or_default(),
        cve_ids: Vec::new(),
        held: installed.is_some_and(Installed::is_held),
        auto_installed: installed.is_some_and(|p| inventory.is_auto(p)),
        size: installed.map_or_else(|| offer.map_or(0, |o| o.installed_size), Installed::size),
        section: text(installed.map(Installed::section), offer.map(|o| &o.section)),
        priority: text(installed.map(Installed::priority), offer.map(|o| &o.priority)),
        essential: installed.map_or_else(|| offer.is_some_and(|o| o.essential), Installed::essential),
        source: text(installed.map(Installed::source), offer.map(|o| &o.source)),
        maintainer: text(installed.map(Installed::maintainer), offer.map(|o| &o.maintainer)),
        homepage: Some(text(installed.map(Installed::homepage), offer.map(|o| &o.homepage)))
            .filter(|h| !h.is_empty()),
        versions: available(name.name(), architecture, current.as_ref(), policy, indexes),
        relations: installed
            .map(Installed::relations)
            .or_else(|| offer.map(|o| o.relations.clone()))
            .unwrap_or_default(),
        reverse_dependencies: reverse_dependencies(database, name.name(), &provided),
        files: installed.and_then(|p| info::files(&inventory.root, p).ok()).unwrap_or_default(),
        conffiles: installed.map(Installed::conffiles).unwrap_or_default(),
        why_not,
        candidate,
    })
}

/// The versions that can be had, newest first, with their priorities where the policy is known.
fn available(
    name: &str,
    architecture: &str,
    current: Option<&PackageVersion>,
    policy: Option<&Policy>,
    indexes: &Indexes,
) -> Vec<AvailableVersion> {
    let mut list: Vec<AvailableVersion> = Vec::new();
    let mut add = |version: &PackageVersion, priority: Option<i32>, origin: Option<&Origin>| {
        let entry = match list.iter_mut().position(|v| v.version == *version) {
            Some(at) => at,
            None => {
                let installed = current == Some(version);
                list.push(AvailableVersion {
                    version: version.clone(),
                    priority: None,
                    origins: Vec::new(),
                    installed,
                });
                list.len() - 1
            }
        };
        let entry = &mut list[entry];
        entry.priority = entry.priority.max(priority);
        entry.origins.extend(origin.filter(|o| !entry.origins.contains(o)).cloned());
    };
    for version in policy.iter().flat_map(|p| &p.versions) {
        add(&version.version, Some(version.priority), None);
    }
    for offer in indexes.versions(name).iter().filter(|o| super::indexes::fits(&o.architecture, architecture))
    {
        add(&offer.version, None, indexes.origin(offer));
    }
    if let Some(current) = current {
        add(current, None, None);
    }
    list.sort_by(|a, b| versions::compare(b.version.as_str(), a.version.as_str()));
    list
}

/// The installed packages that need or recommend a package, by its name or by what it provides.
#[must_use]
pub fn reverse_dependencies(database: &Database, name: &str, provides: &str) -> Vec<PackageName> {
    let also: Vec<&str> =
        relations::groups(provides).flat_map(relations::alternatives).map(|a| a.name).collect();
    let names = |field: &str| {
        // A look for the text first: most fields do not hold it, and taking them apart costs ten times as much.
        (field.contains(name) || also.iter().any(|a| field.contains(a)))
            && relations::groups(field)
                .flat_map(relations::alternatives)
                .any(|a| a.name == name || also.contains(&a.name))
    };
    let mut found: Vec<PackageName> = database
        .iter()
        .filter(|p| p.is_present() && p.name() != name)
        .filter(|p| names(p.depends()) || names(p.pre_depends()) || names(p.recommends()))
        .filter_map(Installed::package_name)
        .collect();
    found.sort();
    found.dedup();
    found
}
