//! The plans that were shown lately: when another plan comes of an approved one, the difference can be told.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use patch_types::{Plan, PlanHash, PlannedChange};
use serde::Serialize;

/// How many plans are remembered.
const PLANS: usize = 64;

/// How many changes all of them may have together; the oldest plans go first.
const CHANGES: usize = 20_000;

/// What is different about two plans, a line a package, as in `upgrade bash:amd64 5.2-1 -> 5.2-2`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    /// Packages that the approved plan leaves alone.
    added: Vec<String>,
    /// Packages that only the approved plan changes.
    removed: Vec<String>,
    /// Packages that both change, but not alike: how now, and how it was approved.
    changed: Vec<String>,
}

/// What a plan's hash covers of one change, by package.
type Essence = BTreeMap<Box<str>, Change>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    words: Box<str>,
    archive: Option<Box<str>>,
}

fn essence(plan: &Plan) -> Essence {
    plan.changes.iter().map(|change| (package(change), Change::of(change))).collect()
}

fn package(change: &PlannedChange) -> Box<str> {
    format!("{}:{}", change.name.name(), change.architecture).into()
}

impl Change {
    fn of(change: &PlannedChange) -> Self {
        let version = |version: &Option<patch_types::PackageVersion>| {
            version.as_ref().map_or("-".to_owned(), ToString::to_string)
        };
        let (old, new) = (version(&change.old_version), version(&change.new_version));
        Self {
            words: format!("{} {} {old} -> {new}", change.action, package(change)).into(),
            archive: change.archive_sha256.as_deref().map(Into::into),
        }
    }
}

fn difference(approved: &Essence, now: &Essence) -> Difference {
    let mut difference = Difference::default();
    for (package, change) in now {
        match approved.get(package) {
            None => difference.added.push(change.words.to_string()),
            Some(before) if before.words != change.words => {
                difference.changed.push(format!("{} (approved: {})", change.words, before.words));
            }
            Some(before) if before.archive != change.archive => {
                difference.changed.push(format!("{} (from another archive than was approved)", change.words));
            }
            Some(_) => {}
        }
    }
    let gone = approved.iter().filter(|(package, _)| !now.contains_key(*package));
    difference.removed.extend(gone.map(|(_, change)| change.words.to_string()));
    difference
}

/// The plans that were shown lately. Bounded, and gone with the process.
#[derive(Debug, Default)]
pub(super) struct Shown(Mutex<VecDeque<(PlanHash, Essence)>>);

impl Shown {
    fn plans(&self) -> MutexGuard<'_, VecDeque<(PlanHash, Essence)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that somebody has seen a plan.
    pub(super) fn remember(&self, plan: &Plan) {
        let essence = essence(plan);
        let mut plans = self.plans();
        plans.retain(|(hash, _)| *hash != plan.hash);
        plans.push_back((plan.hash.clone(), essence));
        let mut changes: usize = plans.iter().map(|(_, essence)| essence.len()).sum();
        while plans.len() > PLANS || changes > CHANGES {
            let Some((_, oldest)) = plans.pop_front() else { break };
            changes -= oldest.len();
        }
    }

    /// What is different now; none if the approved plan is not remembered.
    pub(super) fn difference(&self, approved: &PlanHash, now: &Plan) -> Option<Difference> {
        let plans = self.plans();
        let (_, approved) = plans.iter().find(|(hash, _)| hash == approved)?;
        Some(difference(approved, &essence(now)))
    }
}

#[cfg(test)]
mod tests {
    use patch_types::Action;

    use super::*;

    fn change(name: &str, to: &str, archive: Option<&str>) -> PlannedChange {
        PlannedChange {
            action: Action::Upgrade,
            name: name.parse().unwrap(),
            architecture: "all".parse().unwrap(),
            old_version: Some("1".parse().unwrap()),
            new_version: Some(to.parse().unwrap()),
            archive_sha256: archive.map(str::to_owned),
            origin: None,
            security: false,
            archive_bytes: 0,
            disk_delta_bytes: 0,
        }
    }

    #[test]
    fn a_difference_is_told_by_package() {
        let shown = Shown::default();
        let approved = Plan::of(vec![
            change("same", "2", None),
            change("gone", "2", None),
            change("newer", "2", None),
            change("other", "2", Some("aa")),
        ]);
        let now = Plan::of(vec![
            change("other", "2", Some("bb")),
            change("newer", "3", None),
            change("same", "2", None),
            change("more", "2", None),
        ]);
        assert_eq!(shown.difference(&approved.hash, &now), None, "nobody has seen it");
        shown.remember(&approved);
        let told = shown.difference(&approved.hash, &now).unwrap();
        assert_eq!(told.added, ["upgrade more:all 1 -> 2"]);
        assert_eq!(told.removed, ["upgrade gone:all 1 -> 2"]);
        assert_eq!(
            told.changed,
            [
                "upgrade newer:all 1 -> 3 (approved: upgrade newer:all 1 -> 2)",
                "upgrade other:all 1 -> 2 (from another archive than was approved)"
            ]
        );
    }

    #[test]
    fn memory_is_bounded() {
        let shown = Shown::default();
        let plans: Vec<Plan> =
            (0..PLANS + 5).map(|n| Plan::of(vec![change("aa", &format!("2.{n}"), None)])).collect();
        for plan in &plans {
            shown.remember(plan);
            shown.remember(plan);
        }
        assert_eq!(shown.plans().len(), PLANS);
        assert!(shown.difference(&plans[4].hash, &plans[5]).is_none());
        assert!(shown.difference(&plans[5].hash, &plans[6]).is_some());

        let many = |to: &str| {
            Plan::of((0..CHANGES / 2).map(|n| change(&format!("p{n}"), to, None)).collect::<Vec<_>>())
        };
        for to in ["3", "4", "5"] {
            shown.remember(&many(to));
        }
        assert_eq!(shown.plans().len(), 2);
    }
}
