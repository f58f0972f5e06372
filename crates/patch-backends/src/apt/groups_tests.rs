use std::path::Path;

use patch_types::plan::Origin;
use proptest::prelude::*;

use super::*;
use crate::apt::{Database, ExtendedStates};

/// What a version of a package says; fields as they stand in a control file.
type Fields = String;

/// A package: what is installed and what the plan brings, each with its version.
#[derive(Debug, Clone, Default)]
struct Package {
    name: String,
    old: Option<(&'static str, Fields)>,
    new: Option<(&'static str, Fields)>,
}

fn package(name: &str, old: Option<(&'static str, &str)>, new: Option<(&'static str, &str)>) -> Package {
    let owned =
        |side: Option<(&'static str, &str)>| side.map(|(version, fields)| (version, fields.to_owned()));
    Package { name: name.to_owned(), old: owned(old), new: owned(new) }
}

fn upgrade(name: &str, old: &str, new: &str) -> Package {
    package(name, Some(("1", old)), Some(("2", new)))
}

impl Package {
    fn changes(&self) -> bool {
        self.old.as_ref().map(|(version, _)| version) != self.new.as_ref().map(|(version, _)| version)
    }

    fn architecture(&self) -> &str {
        if self.name.contains(':') { self.name.split_once(':').unwrap().1 } else { "all" }
    }

    fn bare(&self) -> &str {
        self.name.split(':').next().unwrap()
    }

    fn stanza(&self, (version, fields): &(&'static str, Fields), more: &str) -> String {
        let (name, architecture) = (self.bare(), self.architecture());
        format!("Package: {name}\n{more}Architecture: {architecture}\nVersion: {version}\n{fields}\n\n")
    }
}

/// The names of the members of each group.
fn split(packages: &[Package]) -> Vec<Vec<String>> {
    // dpkg itself says what the native architecture is.
    let mut status =
        "Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n".to_owned();
    let mut index = String::new();
    let mut changes = Vec::new();
    for package in packages {
        if let Some(old) = &package.old {
            status += &package.stanza(old, "Status: install ok installed\n");
        }
        if !package.changes() {
            continue;
        }
        if let Some(new) = &package.new {
            index += &package.stanza(new, "");
        }
        let version = |side: &Option<(&'static str, Fields)>| {
            side.as_ref().map(|(version, _)| version.parse().unwrap())
        };
        changes.push(PlannedChange {
            action: match (&package.old, &package.new) {
                (None, _) => Action::Install,
                (_, None) => Action::Remove,
                _ => Action::Upgrade,
            },
            name: package.bare().parse().unwrap(),
            architecture: package.architecture().parse().unwrap(),
            old_version: version(&package.old),
            new_version: version(&package.new),
            archive_sha256: None,
            origin: None,
            security: false,
            archive_bytes: 0,
            disk_delta_bytes: 0,
        });
    }
    let inventory = Inventory {
        root: "/nowhere".into(),
        database: Database::parse(status.as_bytes()),
        states: ExtendedStates::default(),
    };
    let names: Vec<String> = packages.iter().map(|package| package.bare().to_owned()).collect();
    let mut indexes = Indexes::read(Path::new("/nowhere"), names).unwrap();
    indexes.add(Origin::default(), index.as_bytes()).unwrap();
    let plan = Plan::of(changes);
    let groups = groups(&plan, &inventory, &indexes);
    assert_eq!(groups, super::groups(&plan, &inventory, &indexes), "not the same each time");
    let mut all: Vec<usize> = groups.concat();
    all.sort_unstable();
    assert_eq!(all, (0..plan.changes.len()).collect::<Vec<_>>(), "not a partition");
    let changing: Vec<&Package> = packages.iter().filter(|package| package.changes()).collect();
    groups.iter().map(|group| group.iter().map(|at| changing[*at].name.clone()).collect()).collect()
}

#[test]
fn independent_packages_stay_apart() {
    // All need the same library, which is updated as well, in whatever version.
    let mut packages: Vec<Package> = (0..50)
        .map(|n| upgrade(&format!("lp-{n:02}"), "Depends: libc6 (>= 1)", "Depends: libc6 (>= 1)"))
        .collect();
    assert_eq!(split(&packages).len(), 50);
    packages.push(upgrade("libc6", "", ""));
    assert_eq!(split(&packages).len(), 51);
    assert_eq!(split(&[]), Vec::<Vec<String>>::new());
}

#[test]
fn each_relation_binds() {
    let (a, b) = ("lp-a", "lp-b");
    let rows = [
        ("it needs the new one", upgrade(a, "", "Depends: lp-b (>= 2)"), upgrade(b, "", ""), 1),
        ("it needed the old one", upgrade(a, "Depends: lp-b (<< 2)", ""), upgrade(b, "", ""), 1),
        ("it needs it first", upgrade(a, "", "Pre-Depends: lp-b (= 2)"), upgrade(b, "", ""), 1),
        ("either will do", upgrade(a, "", "Depends: lp-b (>= 1)"), upgrade(b, "", ""), 2),
        ("it is new", upgrade(a, "", "Depends: lp-b"), package(b, None, Some(("2", ""))), 1),
        ("it goes", upgrade(a, "Depends: lp-b", ""), package(b, Some(("1", "")), None), 1),
        ("it is in the way", upgrade(a, "", "Conflicts: lp-b (<< 2)"), upgrade(b, "", ""), 1),
        ("it breaks it", upgrade(a, "", "Breaks: lp-b (<< 2)"), upgrade(b, "", ""), 1),
        ("the old one breaks it", upgrade(a, "Breaks: lp-b (>> 1)", ""), upgrade(b, "", ""), 1),
        ("it breaks neither", upgrade(a, "", "Breaks: lp-b (<< 1)"), upgrade(b, "", ""), 2),
        ("its files move", upgrade(a, "", "Replaces: lp-b (<< 2)"), upgrade(b, "", ""), 1),
        ("it provides it", upgrade(a, "", "Depends: virtual"), upgrade(b, "", "Provides: virtual"), 1),
        (
            "it always did",
            upgrade(a, "", "Depends: virtual"),
            upgrade(b, "Provides: virtual", "Provides: virtual"),
            2,
        ),
        (
            "what it provides is in the way",
            upgrade(a, "", "Conflicts: virtual"),
            upgrade(b, "Provides: virtual", ""),
            1,
        ),
        ("nobody minds", upgrade(a, "", "Recommends: lp-b (>= 2)"), upgrade(b, "", ""), 2),
        ("only this word is understood", upgrade(a, "", "Depends: lp-b:any"), upgrade(b, "", ""), 1),
        ("it is not told what this means", upgrade(a, "", "Depends: lp-b:native"), upgrade(b, "", ""), 1),
    ];
    for (what, one, other, expected) in rows {
        assert_eq!(split(&[one.clone(), other.clone()]).len(), expected, "{what}");
        assert_eq!(split(&[other, one]).len(), expected, "{what}, the other way round");
    }
}

#[test]
fn what_stays_binds_what_it_needs() {
    let stays = |fields| package("lp-stays", Some(("1", fields)), Some(("1", fields)));
    let (goes, comes) = (package("lp-a", Some(("1", "")), None), package("lp-b", None, Some(("1", ""))));
    let pair = [stays("Depends: lp-a | lp-b"), goes.clone(), comes.clone()];
    assert_eq!(split(&pair), [["lp-a", "lp-b"]]);
    // Something else meets it all the time.
    let other = package("lp-c", Some(("1", "")), Some(("1", "")));
    assert_eq!(split(&[stays("Depends: lp-a | lp-b | lp-c"), goes, comes, other]).len(), 2);
}

#[test]
fn chains_are_closed_and_ordered() {
    let packages = [
        upgrade("lp-z", "", ""),
        upgrade("lp-a", "", "Depends: lp-m (>= 2)"),
        upgrade("lp-b", "", ""),
        upgrade("lp-m", "", "Depends: lp-b (>= 2)"),
    ];
    assert_eq!(split(&packages), [vec!["lp-z"], vec!["lp-a", "lp-b", "lp-m"]]);
}

#[test]
fn architectures_of_a_package_go_together() {
    let packages = [
        upgrade("lp-a:amd64", "Multi-Arch: same", "Multi-Arch: same"),
        upgrade("lp-b", "", ""),
        upgrade("lp-a:i386", "Multi-Arch: same", "Multi-Arch: same"),
    ];
    assert_eq!(split(&packages), [vec!["lp-a:amd64", "lp-a:i386"], vec!["lp-b"]]);
}

#[test]
fn any_architecture_will_do_where_the_package_says_so() {
    // The old version is not in the index any more, so nobody knows what it said.
    let packages = [upgrade("lp-a", "", "Depends: lp-b:any"), upgrade("lp-b", "", "Multi-Arch: allowed")];
    assert_eq!(split(&packages).len(), 1);
}

fn planned(action: Action, name: &str, old: Option<&str>, new: Option<&str>) -> PlannedChange {
    PlannedChange {
        action,
        name: name.parse().unwrap(),
        architecture: "all".parse().unwrap(),
        old_version: old.map(|version| version.parse().unwrap()),
        new_version: new.map(|version| version.parse().unwrap()),
        archive_sha256: None,
        origin: None,
        security: false,
        archive_bytes: 0,
        disk_delta_bytes: 0,
    }
}

/// The groups of changes where `installed` stands in the database, in version 1, and no index knows anything.
fn without_indexes(installed: &[&str], changes: Vec<PlannedChange>) -> Vec<Vec<usize>> {
    let stanza = |name: &&str| {
        format!("Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n")
    };
    let status: String = installed.iter().map(stanza).collect();
    let inventory = Inventory {
        root: "/nowhere".into(),
        database: Database::parse(status.as_bytes()),
        states: ExtendedStates::default(),
    };
    groups(&Plan::of(changes), &inventory, &Indexes::default())
}

#[test]
fn what_no_index_knows_keeps_everything_together() {
    let install = |name| planned(Action::Install, name, None, Some("1"));
    assert_eq!(without_indexes(&[], vec![install("lp-a"), install("lp-b")]), [[0, 1]]);
}

#[test]
fn what_is_not_as_the_plan_says_keeps_everything_together() {
    let removal = |name, old| planned(Action::Remove, name, old, None);
    let known = || removal("lp-a", Some("1"));
    let with = |change| without_indexes(&["lp-a", "lp-b"], vec![known(), change]);
    assert_eq!(with(removal("lp-b", Some("1"))), [[0], [1]], "both are as planned");
    for (what, change) in [
        ("another version", removal("lp-b", Some("2"))),
        ("it was not to be there", removal("lp-b", None)),
        ("it was to be there", removal("lp-c", Some("1"))),
    ] {
        assert_eq!(with(change), [[0, 1]], "{what}");
    }
    // Configuration that is purged is of no version that anybody needs.
    assert_eq!(with(planned(Action::Purge, "lp-c", Some("1"), None)), [[0], [1]]);
    assert_eq!(with(planned(Action::Purge, "lp-c", None, None)), [[0], [1]]);
}

#[test]
fn what_changes_no_version_stays_apart() {
    // A hold says nothing of what is there.
    let hold = planned(Action::Hold, "lp-a", Some("9"), Some("9"));
    // The archive has gone from which it was installed: it is known by what is installed.
    let again = |name| planned(Action::Reinstall, name, Some("1"), Some("1"));
    let configure = planned(Action::Configure, "lp-d", Some("1"), Some("1"));
    let plan = vec![hold, again("lp-b"), again("lp-c"), configure];
    assert_eq!(without_indexes(&["lp-b", "lp-c", "lp-d"], plan), [[0], [1], [2], [3]]);
}

const COUNT: usize = 6;

fn clause() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        4 => (0..COUNT).prop_map(|n| format!("lp-{n}")),
        1 => (0..2usize).prop_map(|n| format!("virtual-{n}")),
    ];
    let condition = prop::option::of((
        prop::sample::select(vec!["<<", "<=", "=", ">=", ">>"]),
        prop::sample::select(vec!["1", "2"]),
    ));
    (name, condition).prop_map(|(name, condition)| match condition {
        Some((operator, version)) => format!("{name} ({operator} {version})"),
        None => name,
    })
}

fn fields() -> impl Strategy<Value = Fields> {
    let clauses = |most| prop::collection::vec(clause(), 0..most);
    let depends = prop::collection::vec(prop::collection::vec(clause(), 1..3), 0..3);
    let provides = prop::option::of((0..2usize, any::<bool>()));
    (depends, clauses(2), clauses(2), provides).prop_map(|(depends, conflicts, breaks, provides)| {
        let mut lines = Vec::new();
        let depends: Vec<String> = depends.iter().map(|group| group.join(" | ")).collect();
        for (field, values) in [("Depends", &depends), ("Conflicts", &conflicts), ("Breaks", &breaks)] {
            if !values.is_empty() {
                lines.push(format!("{field}: {}", values.join(", ")));
            }
        }
        if let Some((n, versioned)) = provides {
            lines.push(format!("Provides: virtual-{n}{}", if versioned { " (= 2)" } else { "" }));
        }
        lines.join("\n")
    })
}

fn universe() -> impl Strategy<Value = Vec<Package>> {
    let one = (0..6usize, fields(), fields());
    prop::collection::vec(one, COUNT).prop_map(|all| {
        all.into_iter()
            .enumerate()
            .map(|(n, (kind, old, new))| {
                let (old, new) = match kind {
                    0 => (None, Some(("2", new))),
                    1 => (Some(("1", old)), None),
                    2 => (Some(("1", old.clone())), Some(("1", old))),
                    _ => (Some(("1", old)), Some(("2", new))),
                };
                Package { name: format!("lp-{n}"), old, new }
            })
            .collect()
    })
}

fn field<'a>(fields: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let line = fields.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    relations::groups(line.unwrap_or_default())
}

/// What is there: a name, a version and fields for each package, or nothing.
type State<'a> = Vec<Option<(&'a str, &'a str, &'a str)>>;

fn state(packages: &[Package], is_new: impl Fn(usize) -> bool) -> State<'_> {
    packages
        .iter()
        .enumerate()
        .map(|(n, package)| {
            let side = if is_new(n) { &package.new } else { &package.old };
            side.as_ref().map(|(version, fields)| (package.name.as_str(), *version, fields.as_str()))
        })
        .collect()
}

fn stands_for((name, version, fields): (&str, &str, &str), wanted: &Alternative<'_>) -> bool {
    let provides = field(fields, "Provides").flat_map(relations::alternatives).any(|p| {
        p.name == wanted.name
            && (wanted.version.is_none() || p.version.is_some_and(|(_, v)| wanted.accepts(v)))
    });
    (name == wanted.name && wanted.accepts(version)) || provides
}

fn met(clause: &str, state: &State<'_>) -> bool {
    relations::alternatives(clause)
        .any(|wanted| state.iter().flatten().any(|side| stands_for(*side, &wanted)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever groups are made and left out, nothing is broken that was not broken before or with the whole plan.
    #[test]
    fn any_of_the_groups_can_be_left_out(packages in universe()) {
        let groups = split(&packages);
        let (before, after) = (state(&packages, |_| false), state(&packages, |_| true));
        for made in 0..1usize << groups.len() {
            let group = |n: usize| groups.iter().position(|group| group.contains(&packages[n].name));
            let is_new = |n: usize| group(n).is_some_and(|at| made & (1 << at) != 0);
            let now = state(&packages, is_new);
            for (n, one) in now.iter().enumerate() {
                let Some((name, _, fields)) = *one else { continue };
                for clause in field(fields, "Depends") {
                    let was_met = match (packages[n].changes(), is_new(n)) {
                        (false, _) => met(clause, &before) && met(clause, &after),
                        (true, false) => met(clause, &before),
                        (true, true) => met(clause, &after),
                    };
                    prop_assert!(!was_met || met(clause, &now), "{name} lacks {clause}: {groups:?} {made:b}");
                }
                for clause in field(fields, "Conflicts").chain(field(fields, "Breaks")) {
                    for (m, other) in now.iter().enumerate() {
                        let mixed = packages[n].changes() && packages[m].changes() && is_new(n) != is_new(m);
                        if let Some(other) = other.filter(|_| mixed && m != n) {
                            let clash = relations::alternatives(clause).any(|wanted| stands_for(other, &wanted));
                            prop_assert!(!clash, "{name} and {}: {clause}: {groups:?} {made:b}", other.0);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_order_of_the_plan_does_not_matter(packages in universe()) {
        let sorted = |packages: &[Package]| {
            let mut groups = split(packages);
            groups.iter_mut().for_each(|group| group.sort());
            groups.sort();
            groups
        };
        let mut reversed = packages.clone();
        reversed.reverse();
        prop_assert_eq!(sorted(&packages), sorted(&reversed));
    }
}
