//! The package database and the solver's candidates as the API's values.

use std::{cmp::Ordering, path::Path};

use patch_backends::{ReadError, apt, apt::versions};
use patch_types::{
    PackageVersion,
    api::{Package, PatchSet},
};

/// A newer version that the solver knows of. Kept instead of the whole set: a list needs no more.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    name: Box<str>,
    architecture: Box<str>,
    version: PackageVersion,
    cve_ids: Vec<String>,
}

/// The candidates of a set, sorted by name. Updates that bring a new package along are none.
pub(super) fn candidates(set: PatchSet) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = set
        .patches
        .into_iter()
        .filter(|patch| patch.current_version.is_some())
        .map(|patch| Candidate {
            name: patch.name.name().into(),
            architecture: patch.architecture.as_str().into(),
            version: patch.available_version,
            cve_ids: patch.cve_ids,
        })
        .collect();
    candidates.sort_by(|a, b| (&a.name, &a.architecture).cmp(&(&b.name, &b.architecture)));
    candidates.shrink_to_fit();
    candidates
}

/// All packages of the database by name, each with its candidate if that is newer than what is installed now.
pub(super) fn packages(root: &Path, candidates: &[Candidate]) -> Result<Vec<Package>, ReadError> {
    let inventory = apt::Inventory::read_for_list(root)?;
    let packages = inventory.database.iter().filter_map(|installed| {
        let version = installed.version()?;
        let candidate = candidates
            .binary_search_by(|c| {
                (&*c.name, &*c.architecture).cmp(&(installed.name(), installed.architecture()))
            })
            .ok()
            .map(|at| &candidates[at])
            .filter(|c| {
                installed.is_present()
                    && versions::compare(c.version.as_str(), version.as_str()) == Ordering::Greater
            });
        Some(Package {
            name: installed.name().parse().ok()?,
            architecture: installed.architecture().parse().ok()?,
            status: installed.status(),
            upgradable: candidate.is_some(),
            latest_version: candidate.map(|c| c.version.clone()),
            description: installed.synopsis().to_owned(),
            cve_ids: candidate.map(|c| c.cve_ids.clone()).unwrap_or_default(),
            held: installed.is_held(),
            auto_installed: inventory.is_auto(installed),
            size: installed.size(),
            section: installed.section().to_owned(),
            essential: installed.essential(),
            version,
        })
    });
    Ok(packages.collect())
}
