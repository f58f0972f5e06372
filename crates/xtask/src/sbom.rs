//! The bill of materials: which crates the shipped programs are made of, in CycloneDX 1.5, from cargo's metadata and the
//! lock file. It names crates, as they are what we choose; the C library and libgcc are the host's own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Node, Package, PackageId, TargetKind};
use serde_json::{Value, json};

use crate::{
    check_deps::{host_platform, is_active},
    workspace,
};

/// The programs that are shipped.
const SHIPPED: [&str; 4] = ["linux-patch-api", "patch-executor", "patch-host", "patchctl"];

/// The document, for a release of `version` from `date` (seconds since 1970).
///
/// # Errors
/// When cargo does not tell, or the lock file cannot be read.
pub(crate) fn document(version: &str, date: &str) -> Result<String> {
    let root = workspace::root()?;
    let metadata = MetadataCommand::new()
        .current_dir(&root)
        .other_options(["--locked".to_owned(), "--filter-platform".to_owned(), host_platform()?])
        .exec()
        .context("cargo metadata")?;
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let seconds = date.parse().with_context(|| format!("{date:?} is no number of seconds"))?;
    let time = jiff::Timestamp::from_second(seconds).context("the date is out of range")?;
    let bill = bill(&metadata, &checksums(&lock), version, &time.to_string())?;
    Ok(serde_json::to_string_pretty(&bill)? + "\n")
}

/// The SHA-256 of each crate's archive by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""));
        line.and_then(|rest| rest.strip_suffix('"')).map(str::to_owned)
    };
    let blocks = lock.split("[[package]]").skip(1);
    blocks
        .filter_map(|block| {
            Some(((value(block, "name")?, value(block, "version")?), value(block, "checksum")?))
        })
        .collect()
}

/// Whether a crate only runs in the compiler.
fn is_macro(package: &Package) -> bool {
    package.targets.iter().any(|target| target.kind.contains(&TargetKind::ProcMacro))
}

fn bill(
    metadata: &Metadata,
    checksums: &BTreeMap<(String, String), String>,
    version: &str,
    time: &str,
) -> Result<Value> {
    let resolve = metadata.resolve.as_ref().context("cargo metadata has resolved nothing")?;
    let nodes: BTreeMap<&PackageId, &Node> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let packages: BTreeMap<&PackageId, &Package> = metadata.packages.iter().map(|p| (&p.id, p)).collect();
    let used = |id: &PackageId, kinds: &[DependencyKind]| -> Vec<&PackageId> {
        let (Some(node), Some(package)) = (nodes.get(id), packages.get(id)) else { return Vec::new() };
        let wanted = |kind: &DependencyKind| kinds.contains(kind);
        let deps = node.deps.iter().filter(|dep| dep.dep_kinds.iter().any(|info| wanted(&info.kind)));
        deps.map(|dep| &dep.pkg)
            .filter(|id| packages.get(id).is_some_and(|used| is_active(package, node, &used.name)))
            .collect()
    };
    let reached = |kinds: &[DependencyKind], with_macros: bool| {
        let mut seen: BTreeSet<&PackageId> = BTreeSet::new();
        let mut rest: Vec<&PackageId> = metadata
            .workspace_packages()
            .iter()
            .filter(|package| SHIPPED.contains(&package.name.as_str()))
            .map(|package| &package.id)
            .collect();
        while let Some(id) = rest.pop() {
            let is_wanted = with_macros || packages.get(id).is_some_and(|package| !is_macro(package));
            if is_wanted && seen.insert(id) {
                rest.extend(used(id, kinds));
            }
        }
        seen
    };
    let at_run_time = reached(&[DependencyKind::Normal], false);
    let all = reached(&[DependencyKind::Normal, DependencyKind::Build], true);
    let ours: BTreeSet<&PackageId> = metadata.workspace_members.iter().collect();
    // The version of a package of ours is the release's, also where tests choose another.
    let version_of = |package: &Package| {
        if ours.contains(&package.id) { version.to_owned() } else { package.version.to_string() }
    };
    let reference = |package: &Package| format!("pkg:cargo/{}@{}", package.name, version_of(package));
    let mut components = Vec::new();
    let mut dependencies = Vec::new();
    for id in &all {
        let package = packages.get(id).context("a package without metadata")?;
        let mut component = json!({
            "type": if SHIPPED.contains(&package.name.as_str()) { "application" } else { "library" },
            "bom-ref": reference(package),
            "name": package.name.as_str(),
            "version": version_of(package),
            "scope": if at_run_time.contains(id) { "required" } else { "excluded" },
            "purl": reference(package),
        });
        if let Some(licence) = &package.license {
            // The old spelling of a choice is no SPDX expression.
            component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
        }
        if let Some(sum) = checksums.get(&(package.name.to_string(), package.version.to_string())) {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
        }
        components.push(component);
        let mut on: Vec<String> = used(id, &[DependencyKind::Normal, DependencyKind::Build])
            .into_iter()
            .filter_map(|id| packages.get(id).map(|package| reference(package)))
            .collect();
        on.sort();
        on.dedup();
        dependencies.push(json!({ "ref": reference(package), "dependsOn": on }));
    }
    let whole = format!("linux-patch@{version}");
    let programs: Vec<String> = SHIPPED.iter().map(|name| format!("pkg:cargo/{name}@{version}")).collect();
    dependencies.push(json!({ "ref": whole, "dependsOn": programs }));
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": time,
            "component": { "type": "application", "bom-ref": whole, "name": "linux-patch", "version": version },
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bill_is_complete_and_hangs_together() -> Result<()> {
        let bill: Value = serde_json::from_str(&document("9.9.9", "1700000000")?)?;
        let components = bill["components"].as_array().context("no components")?;
        let names: BTreeSet<&str> = components.iter().filter_map(|c| c["bom-ref"].as_str()).collect();
        assert_eq!(names.len(), components.len(), "references are unique");
        for shipped in SHIPPED {
            assert!(names.contains(format!("pkg:cargo/{shipped}@9.9.9").as_str()), "{shipped}");
        }
        let scope = |name: &str| {
            let found = components.iter().find(|c| c["name"] == name);
            found.and_then(|c| c["scope"].as_str()).unwrap_or("absent").to_owned()
        };
        assert_eq!((scope("rustls").as_str(), scope("aws-lc-sys").as_str()), ("required", "required"));
        assert_eq!(scope("serde_derive"), "excluded", "it runs in the compiler");
        assert_eq!((scope("proptest").as_str(), scope("xtask").as_str()), ("absent", "absent"));
        for component in components.iter().filter(|c| c["version"] != "9.9.9") {
            assert!(
                component["hashes"][0]["content"].as_str().is_some_and(|sum| sum.len() == 64),
                "{component}"
            );
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
        }
        for dependency in bill["dependencies"].as_array().context("no dependencies")? {
            for on in dependency["dependsOn"].as_array().context("no list")? {
                assert!(names.contains(on.as_str().unwrap_or_default()), "{dependency}");
            }
        }
        Ok(())
    }
}
