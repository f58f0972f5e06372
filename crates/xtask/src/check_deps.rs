//! `cargo xtask check-deps`: the walls between the crates, asserted from `cargo metadata`.
//!
//! Only normal dependencies count, those of tests and build scripts do not; except for the black-box tests, which
//! must not know the inside of a product by way of a test either.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::process::ExitCode;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Node, Package, PackageId};

/// What one crate of ours may and must not depend upon.
struct Rule {
    name: &'static str,
    /// Crates of ours that it may name in its manifest.
    may_use: &'static [&'static str],
    /// Crates that must not be in its graph, however far away.
    must_not_have: &'static [&'static str],
    /// Why the wall is there.
    reason: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        name: "patch-types",
        may_use: &[],
        must_not_have: &["tokio", "axum", "hyper", "reqwest", "rustls"],
        reason: "the root side and the network side share it",
    },
    Rule {
        name: "patch-files",
        may_use: &[],
        must_not_have: &["tokio", "axum", "hyper", "reqwest", "rustls"],
        reason: "every program opens what is configured by it",
    },
    Rule {
        name: "patch-policy",
        may_use: &["patch-types"],
        must_not_have: &["tokio", "axum", "hyper", "reqwest", "rustls"],
        reason: "decisions are pure",
    },
    Rule {
        name: "patch-backends",
        may_use: &["patch-types", "patch-files"],
        must_not_have: &["tokio", "reqwest", "hyper", "axum"],
        reason: "reading is testable without root, a network or a runtime",
    },
    Rule {
        name: "patch-apply",
        may_use: &["patch-types", "patch-files", "patch-backends"],
        must_not_have: &["tokio", "axum", "hyper", "reqwest"],
        reason: "the only crate that changes packages belongs to the root side",
    },
    Rule {
        name: "patch-audit",
        may_use: &["patch-types"],
        must_not_have: &["axum", "hyper", "reqwest", "tokio", "rustls"],
        reason: "one event model for every program, whatever it speaks",
    },
    Rule {
        name: "patch-service",
        may_use: &["patch-types", "patch-files", "patch-audit"],
        must_not_have: &["sqlx"],
        reason: "all servers need the same door and nothing of each other",
    },
    Rule {
        name: "patch-memory",
        may_use: &[],
        must_not_have: &["tokio", "axum", "hyper", "reqwest", "rustls"],
        reason: "the one crate with unsafe code stays small enough to be read whole",
    },
    Rule {
        name: "patch-manual",
        may_use: &[],
        must_not_have: &["tokio", "axum", "hyper", "reqwest", "rustls"],
        reason: "every command line has it",
    },
    Rule {
        name: "patch-client",
        may_use: &["patch-types"],
        must_not_have: &["axum"],
        reason: "programs that are no servers use it",
    },
    Rule {
        name: "patch-notify",
        may_use: &["patch-types", "patch-files"],
        must_not_have: &["tokio", "axum", "hyper", "reqwest"],
        reason: "it sends without a runtime, from programs that have none",
    },
    Rule {
        name: "patch-executor",
        may_use: &[
            "patch-types",
            "patch-files",
            "patch-policy",
            "patch-backends",
            "patch-apply",
            "patch-audit",
        ],
        must_not_have: &["tokio", "axum", "hyper", "rustls", "sqlx"],
        reason: "what runs as root is short enough to be read whole",
    },
    Rule {
        name: "patch-host",
        may_use: &[
            "patch-types",
            "patch-files",
            "patch-policy",
            "patch-backends",
            "patch-audit",
            "patch-manual",
            "patch-notify",
        ],
        must_not_have: &["axum", "tokio", "hyper", "patch-apply"],
        reason: "root's local tools serve nobody",
    },
    Rule {
        name: "linux-patch-api",
        may_use: &[
            "patch-types",
            "patch-files",
            "patch-policy",
            "patch-backends",
            "patch-audit",
            "patch-service",
            "patch-client",
            "patch-manual",
            "patch-memory",
        ],
        must_not_have: &["patch-apply", "sqlx"],
        reason: "the network side never changes a package",
    },
    Rule {
        name: "linux-patch-manager",
        may_use: &["patch-types", "patch-policy", "patch-audit", "patch-service", "patch-client"],
        must_not_have: &["patch-apply", "patch-backends"],
        reason: "it acts through agents alone",
    },
    Rule {
        name: "patchctl",
        may_use: &["patch-types", "patch-client", "patch-manual"],
        must_not_have: &["axum", "patch-apply"],
        reason: "the operator's command line speaks our APIs and nothing else",
    },
    Rule {
        name: "safe-updater",
        may_use: &["patch-types", "patch-policy", "patch-audit", "patch-service"],
        must_not_have: &["patch-apply", "patch-backends"],
        reason: "containers are not packages",
    },
    Rule {
        name: "system-tests",
        may_use: &["patch-types", "patch-client"],
        must_not_have: &[],
        reason: "a refactoring inside a product cannot break a black-box test",
    },
];

/// They build or test everything and are part of nothing.
const WITHOUT_RULE: [&str; 2] = ["xtask", "patch-surface"];

/// Must be in no graph: one TLS stack with one provider, in Rust.
const NOWHERE: &[&str] = &["ring", "native-tls", "openssl-sys"];

pub(crate) fn run() -> Result<ExitCode> {
    let metadata = MetadataCommand::new().exec().context("cargo metadata")?;
    let platform = host_platform()?;
    // Once more for this platform alone: other platforms' dependencies are not ours.
    let metadata = MetadataCommand::new()
        .current_dir(&metadata.workspace_root)
        .other_options(["--filter-platform".to_owned(), platform])
        .exec()
        .context("cargo metadata --filter-platform")?;
    let graph = Graph::new(&metadata)?;
    let mut violations = Vec::new();
    for (name, id) in &graph.ours {
        let found = match RULES.iter().find(|rule| rule.name == name) {
            Some(rule) => graph.check(rule, id),
            None if WITHOUT_RULE.contains(&name.as_str()) => continue,
            None => vec![format!("{name} has no rule: add one to crates/xtask/src/check_deps.rs")],
        };
        violations.extend(found.into_iter().chain(graph.check_nowhere(name, id)));
    }
    for violation in &violations {
        eprintln!("VIOLATION: {violation}");
    }
    println!("{} violations", violations.len());
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) fn host_platform() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output =
        std::process::Command::new(rustc).args(["--print", "host-tuple"]).output().context("rustc")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Who depends on whom.
struct Graph<'a> {
    nodes: BTreeMap<&'a PackageId, &'a Node>,
    packages: BTreeMap<&'a PackageId, &'a Package>,
    /// The crates of the workspace.
    ours: BTreeMap<String, &'a PackageId>,
}

impl<'a> Graph<'a> {
    fn new(metadata: &'a Metadata) -> Result<Self> {
        let resolve = metadata.resolve.as_ref().context("cargo metadata has resolved nothing")?;
        Ok(Self {
            nodes: resolve.nodes.iter().map(|node| (&node.id, node)).collect(),
            packages: metadata.packages.iter().map(|package| (&package.id, package)).collect(),
            ours: metadata
                .workspace_packages()
                .iter()
                .map(|ours| (ours.name.to_string(), &ours.id))
                .collect(),
        })
    }

    fn name(&self, id: &PackageId) -> &'a str {
        self.packages.get(id).map_or("?", |package| package.name.as_str())
    }

    /// What a crate depends on directly, with tests' dependencies or without.
    fn direct(&self, id: &PackageId, with_tests: bool) -> Vec<&'a PackageId> {
        let (Some(node), Some(package)) = (self.nodes.get(id), self.packages.get(id)) else {
            return Vec::new();
        };
        let counts =
            |kind| kind == DependencyKind::Normal || with_tests && kind == DependencyKind::Development;
        let counted = node.deps.iter().filter(|dep| dep.dep_kinds.iter().any(|info| counts(info.kind)));
        counted.map(|dep| &dep.pkg).filter(|used| is_active(package, node, self.name(used))).collect()
    }

    /// Applies a rule, says so, and gives what violates it.
    fn check(&self, rule: &Rule, id: &'a PackageId) -> Vec<String> {
        println!(
            "{}: of ours at most [{}]; never [{}], as {}",
            rule.name,
            rule.may_use.join(", "),
            rule.must_not_have.join(", "),
            rule.reason
        );
        let used = self.direct(id, rule.name == "system-tests").into_iter().map(|used| self.name(used));
        let foreign = used.filter(|used| self.ours.contains_key(*used) && !rule.may_use.contains(used));
        let foreign = foreign.map(|used| format!("{} must not use {used}, as {}", rule.name, rule.reason));
        let banned = rule.must_not_have.iter().filter_map(|banned| {
            let path = self.path(id, banned)?;
            Some(format!("{} must not have {banned}, as {}; it comes by {path}", rule.name, rule.reason))
        });
        foreign.chain(banned).collect()
    }

    fn check_nowhere(&self, name: &str, id: &'a PackageId) -> Vec<String> {
        let found = NOWHERE.iter().filter_map(|banned| Some((banned, self.path(id, banned)?)));
        found.map(|(banned, path)| format!("{name} must not have {banned}; it comes by {path}")).collect()
    }

    /// The shortest way from a crate to one named `target`, by normal dependencies.
    fn path(&self, from: &'a PackageId, target: &str) -> Option<String> {
        let mut seen = BTreeSet::from([from]);
        let mut queue = VecDeque::from([vec![from]]);
        while let Some(path) = queue.pop_front() {
            let last = *path.last()?;
            if path.len() > 1 && self.name(last) == target {
                return Some(path.iter().map(|id| self.name(id)).collect::<Vec<_>>().join(" → "));
            }
            for next in self.direct(last, false).into_iter().filter(|next| seen.insert(next)) {
                queue.push_back([path.clone(), vec![next]].concat());
            }
        }
        None
    }
}

/// Whether a dependency is there in truth. Cargo's metadata also lists optional ones that only a feature of the form
/// `name?/feature` mentions, which does not switch them on.
pub(crate) fn is_active(package: &Package, node: &Node, used: &str) -> bool {
    let declared = || package.dependencies.iter().filter(|dependency| dependency.name == used);
    // What its tests always have says nothing of what it has itself.
    let is_of_tests = declared().all(|dependency| dependency.kind == DependencyKind::Development);
    let counts = |kind| is_of_tests || kind != DependencyKind::Development;
    declared().filter(|dependency| counts(dependency.kind)).any(|dependency| {
        let name = dependency.rename.as_deref().unwrap_or(&dependency.name);
        let (switch, with_feature) = (format!("dep:{name}"), format!("{name}/"));
        let enabled =
            node.features.iter().filter_map(|feature| package.features.get(feature.as_str())).flatten();
        !dependency.optional
            || enabled.into_iter().any(|value| *value == switch || value.starts_with(&with_feature))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_to_a_banned_crate_is_found_and_told() -> Result<()> {
        let metadata = MetadataCommand::new().exec()?;
        let graph = Graph::new(&metadata)?;
        let ours = graph.ours.get("xtask").context("xtask is a crate of ours")?;
        let rule = Rule {
            name: "xtask",
            may_use: &[],
            must_not_have: &["libtest-mimic", "ring"],
            reason: "this is a test",
        };
        let violations = graph.check(&rule, ours).join("\n");
        assert!(violations.contains("xtask must not use system-tests"), "{violations}");
        assert!(violations.contains("it comes by xtask → system-tests → libtest-mimic"), "{violations}");
        assert!(!violations.contains("ring;"), "{violations}");
        Ok(())
    }
}
