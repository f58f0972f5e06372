//! The parts of a plan that do not need each other.
//!
//! Before the plan and after it every relation between packages holds. In between, with some changes made and others
//! not, one may not: two changes belong together if a relation can be broken by making one without the other. What cannot
//! be told apart for want of knowledge stays together.

use std::collections::HashMap;

use patch_types::{Action, Plan, PlannedChange, api::Relations};

use super::{
    Inventory,
    indexes::Indexes,
    relations::{self, Alternative},
};

/// A version of a package that is there before a change, after it, or all the time.
struct Side<'a> {
    name: &'a str,
    version: &'a str,
    /// `all` stands for the native one.
    architecture: &'a str,
    relations: Relations,
    /// Whether it is known that a dependency on `name:any` is met by it.
    allows_any: bool,
}

impl Side<'_> {
    fn clauses(&self) -> impl Iterator<Item = &str> {
        self.relations.pre_depends.iter().chain(&self.relations.depends).map(String::as_str)
    }

    /// Whether it has the name, or provides it.
    fn is(&self, wanted: &Alternative<'_>) -> bool {
        if wanted.name == self.name && wanted.accepts(self.version) {
            return true;
        }
        self.relations.provides.iter().any(|provides| wanted.provided_by(provides))
    }

    /// Whether it surely meets a dependency of a package of that architecture.
    fn meets(&self, wanted: &Alternative<'_>, architecture: &str) -> bool {
        let qualifier = match wanted.qualifier {
            None => true,
            Some("any") => self.allows_any && wanted.name == self.name,
            Some(_) => false,
        };
        qualifier && self.architecture == architecture && self.is(wanted)
    }
}

/// One change of the plan.
struct Change<'a> {
    old: Option<Side<'a>>,
    /// What is offered as the new version. Several archives can offer it with different content: all are looked at.
    new: Vec<Side<'a>>,
}

impl Change<'_> {
    fn sides(&self) -> impl Iterator<Item = &Side<'_>> {
        self.old.iter().chain(&self.new)
    }

    /// Whether the dependency is met before and after the change.
    fn always_meets(&self, wanted: &Alternative<'_>, architecture: &str) -> bool {
        !self.new.is_empty()
            && self.old.is_some()
            && self.sides().all(|side| side.meets(wanted, architecture))
    }
}

/// Sets that are joined.
struct Sets(Vec<usize>);

impl Sets {
    fn of(&self, mut member: usize) -> usize {
        // The first one of a set refers to itself, all others to an earlier one.
        while let Some(parent) = self.0.get(member).copied().filter(|parent| *parent != member) {
            member = parent;
        }
        member
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.of(a), self.of(b));
        if let Some(later) = self.0.get_mut(a.max(b)) {
            *later = a.min(b);
        }
    }

    fn join_all(&mut self, members: &[usize]) {
        for pair in members.windows(2) {
            if let [a, b] = pair {
                self.join(*a, *b);
            }
        }
    }
}

/// Splits a plan's changes, given by their place in [`Plan::changes`], into groups such that any of the groups can be
/// made or left out. Every change is in exactly one group. Groups are ordered by their first change, changes within one
/// by their place.
///
/// `inventory` must have been read with all relations ([`Inventory::read`]), and `indexes` must know the new versions;
/// if one is not found there, there is a single group.
#[must_use]
pub fn groups(plan: &Plan, inventory: &Inventory, indexes: &Indexes) -> Vec<Vec<usize>> {
    let count = plan.changes.len();
    let known: Option<Vec<Change<'_>>> =
        plan.changes.iter().map(|change| sides(change, inventory, indexes)).collect();
    let Some(changes) = known else {
        return if count == 0 { Vec::new() } else { vec![(0..count).collect()] };
    };
    let mut sets = Sets((0..count).collect());
    let world = World::new(plan, &changes, inventory);

    // The same package of several architectures has one version at a time.
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (at, change) in plan.changes.iter().enumerate() {
        let other = *first.entry(change.name.name()).or_insert(at);
        sets.join(at, other);
    }
    for (at, change) in changes.iter().enumerate() {
        for side in change.sides() {
            for clause in side.clauses() {
                world.bind(clause, side.architecture, Some(at), &mut sets);
            }
        }
        // Two versions that are never there together with the whole plan made or not made at all.
        for (from, others) in [(change.old.as_slice(), Half::New), (change.new.as_slice(), Half::Old)] {
            for side in from {
                for clause in side.relations.conflicts.iter().chain(&side.relations.breaks) {
                    world.part(clause, at, others, &mut sets);
                }
            }
        }
        // A file that one takes over from the other is missing if only the other goes back.
        for side in change.sides() {
            for clause in &side.relations.replaces {
                world.part(clause, at, Half::Both, &mut sets);
            }
        }
    }
    for (architecture, clauses) in &world.unchanged {
        for clause in clauses {
            world.bind(clause, architecture, None, &mut sets);
        }
    }

    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut place: HashMap<usize, usize> = HashMap::new();
    for at in 0..count {
        let group = *place.entry(sets.of(at)).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(group) {
            group.push(at);
        }
    }
    groups
}

/// Which side of a change is looked at.
#[derive(Clone, Copy)]
enum Half {
    Old,
    New,
    Both,
}

/// Everything that is installed or will be.
struct World<'a> {
    changes: &'a [Change<'a>],
    /// The changes that have or provide a name, before or after.
    by_name: HashMap<&'a str, Vec<usize>>,
    /// What stays, by the names that it has or provides.
    staying: HashMap<String, Vec<Side<'a>>>,
    /// The dependencies of what stays, with its architecture.
    unchanged: Vec<(&'a str, Vec<String>)>,
}

impl<'a> World<'a> {
    fn new(plan: &Plan, changes: &'a [Change<'a>], inventory: &'a Inventory) -> Self {
        let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, change) in changes.iter().enumerate() {
            for side in change.sides() {
                for name in std::iter::once(side.name).chain(provided(&side.relations.provides)) {
                    let list = by_name.entry(name).or_default();
                    if list.last() != Some(&at) {
                        list.push(at);
                    }
                }
            }
        }
        let native = inventory.database.native();
        let mut staying: HashMap<String, Vec<Side<'_>>> = HashMap::new();
        let mut unchanged = Vec::new();
        for package in inventory.database.iter().filter(|package| package.is_present()) {
            let planned = plan.changes.iter().zip(changes).any(|(planned, change)| {
                planned.name.name() == package.name()
                    && change
                        .old
                        .as_ref()
                        .is_some_and(|old| old.architecture == effective(package.architecture(), native))
            });
            if planned {
                continue;
            }
            let relations = package.relations();
            let architecture = effective(package.architecture(), native);
            let clauses: Vec<String> =
                relations.pre_depends.iter().chain(&relations.depends).cloned().collect();
            unchanged.push((architecture, clauses));
            let mut names = vec![package.name().to_owned()];
            names.extend(provided(&relations.provides).map(str::to_owned));
            for name in names {
                // Its own relations are in `unchanged`; here only what it offers counts.
                let relations = Relations { provides: relations.provides.clone(), ..Relations::default() };
                let (name_of, version) = (package.name(), package.version_text());
                let side = Side { name: name_of, version, architecture, relations, allows_any: false };
                staying.entry(name).or_default().push(side);
            }
        }
        Self { changes, by_name, staying, unchanged }
    }

    fn named(&self, name: &str) -> &[usize] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// Joins all changes that may decide whether a dependency is met, unless something meets it in any case.
    fn bind(&self, clause: &str, architecture: &str, whose: Option<usize>, sets: &mut Sets) {
        let alternatives: Vec<_> = relations::alternatives(clause).collect();
        let mut deciding: Vec<usize> =
            alternatives.iter().flat_map(|wanted| self.named(wanted.name)).copied().collect();
        deciding.extend(whose);
        deciding.sort_unstable();
        deciding.dedup();
        if deciding.len() < 2 {
            return;
        }
        let always = alternatives.iter().any(|wanted| {
            let stays = self.staying.get(wanted.name);
            stays.is_some_and(|sides| sides.iter().any(|side| side.meets(wanted, architecture)))
                || self
                    .named(wanted.name)
                    .iter()
                    .filter(|at| Some(**at) != whose)
                    .filter_map(|at| self.changes.get(*at))
                    .any(|change| change.always_meets(wanted, architecture))
        });
        if !always {
            sets.join_all(&deciding);
        }
    }

    /// Joins a change with those whose sides it must not meet.
    fn part(&self, clause: &str, whose: usize, half: Half, sets: &mut Sets) {
        for wanted in relations::alternatives(clause) {
            for at in self.named(wanted.name).iter().filter(|at| **at != whose) {
                let Some(change) = self.changes.get(*at) else { continue };
                let (old, new) = match half {
                    Half::Old => (true, false),
                    Half::New => (false, true),
                    Half::Both => (true, true),
                };
                let meets = (old && change.old.iter().any(|side| side.is(&wanted)))
                    || (new && change.new.iter().any(|side| side.is(&wanted)));
                if meets {
                    sets.join(whose, *at);
                }
            }
        }
    }
}

fn provided(provides: &[String]) -> impl Iterator<Item = &str> {
    provides.iter().flat_map(|clause| relations::alternatives(clause)).map(|provided| provided.name)
}

fn effective<'a>(architecture: &'a str, native: &'a str) -> &'a str {
    if architecture == "all" { native } else { architecture }
}

/// What is there before and after a change; `None` if that is not known.
fn sides<'a>(
    change: &'a PlannedChange,
    inventory: &'a Inventory,
    indexes: &'a Indexes,
) -> Option<Change<'a>> {
    let native = inventory.database.native();
    let (name, architecture) = (change.name.name(), change.architecture.as_str());
    if matches!(change.action, Action::Hold | Action::Unhold) {
        return Some(Change { old: None, new: Vec::new() });
    }
    let wanted = (architecture != "all").then_some(architecture);
    let installed = inventory.database.find(name, wanted).filter(|package| package.is_present());
    let offers = |version: &'a str| indexes.offers(name, architecture, version);
    let old_side = || {
        installed.map(|package| Side {
            name: package.name(),
            version: package.version_text(),
            architecture: effective(package.architecture(), native),
            relations: package.relations(),
            allows_any: {
                let mut same = offers(package.version_text()).peekable();
                same.peek().is_some() && same.all(|offer| offer.multi_arch == "allowed")
            },
        })
    };
    let old = old_side();
    let is_as_planned = match (&old, &change.old_version) {
        (Some(old), Some(version)) => old.version == version.as_str(),
        (Some(_), None) => false,
        // Of a purged package only configuration may have been there.
        (None, Some(_)) => change.action == Action::Purge,
        (None, None) => true,
    };
    if !is_as_planned {
        return None;
    }
    let mut new: Vec<Side<'_>> = Vec::new();
    if let Some(version) = change.new_version.as_ref().filter(|_| !change.action.is_removal()) {
        let is_meant = |sha256: &Option<String>| {
            change.archive_sha256.is_none() || sha256.is_none() || *sha256 == change.archive_sha256
        };
        new.extend(offers(version.as_str()).filter(|offer| is_meant(&offer.sha256)).map(|offer| Side {
            name,
            version: offer.version.as_str(),
            architecture: effective(&offer.architecture, native),
            relations: offer.relations.clone(),
            allows_any: offer.multi_arch == "allowed",
        }));
        if new.is_empty() && old.as_ref().is_some_and(|old| old.version == version.as_str()) {
            new.extend(old_side());
        }
        if new.is_empty() {
            return None;
        }
    }
    Some(Change { old, new })
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
