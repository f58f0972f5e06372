use super::*;
use crate::apt::{Database, ExtendedStates, simulate};
use patch_types::plan::Origin;

/// A host with these packages installed and offered, each as its name, its version and further fields.
struct Host {
    inventory: Inventory,
    indexes: Indexes,
}

type Package<'a> = (&'a str, &'a str, &'a str);

impl Host {
    fn new(installed: &[Package<'_>], offered: &[Package<'_>]) -> Self {
        let status: String = installed
            .iter()
            .map(|(name, version, fields)| {
                let status = if fields.contains("Status:") { "" } else { "Status: install ok installed\n" };
                format!("Package: {name}\n{status}Architecture: amd64\nVersion: {version}\n{fields}\n\n")
            })
            .collect();
        let inventory = Inventory {
            root: "/nowhere".into(),
            database: Database::parse(status.as_bytes()),
            states: ExtendedStates::default(),
        };
        let mut host =
            Self { inventory, indexes: Indexes::of(offered.iter().chain(installed).map(|(name, ..)| *name)) };
        host.offer(&Origin { suite: "stable".into(), ..Origin::default() }, offered);
        host
    }

    fn offer(&mut self, origin: &Origin, offered: &[Package<'_>]) {
        let index: String = offered
            .iter()
            .map(|(name, version, fields)| {
                format!(
                    "Package: {name}\nArchitecture: amd64\nVersion: {version}\nSize: 7\nDescription: new {name}\n{fields}\n\n"
                )
            })
            .collect();
        self.indexes.add(origin.clone(), index.as_bytes()).unwrap();
    }

    fn set(&self, simulation: &str) -> PatchSet {
        patch_set(&simulate::parse(simulation), &self.inventory, &self.indexes)
    }

    /// Why the only package that stays does so.
    fn why(&self, simulation: &str) -> (PatchState, String) {
        let simulation = simulate::parse(simulation);
        let mut listed = simulation.kept_back.iter().chain(&simulation.phased);
        let why = why_it_stays(listed.next().unwrap(), &simulation, &self.inventory, &self.indexes);
        assert!(listed.next().is_none());
        why
    }
}

fn taken_back(name: &str, version: &str) -> TakenBack {
    TakenBack {
        name: name.parse().unwrap(),
        architecture: "amd64".parse().unwrap(),
        version: version.parse().unwrap(),
        job: "01890000-0000-7000-8000-000000000001".parse().unwrap(),
        at: "2026-11-21T10:00:00Z".parse().unwrap(),
        reason: "its postinst failed.".to_owned(),
    }
}

const KEPT: &str = "The following packages have been kept back:\n";

#[test]
fn a_fix_that_was_taken_back_does_not_look_as_if_there_were_none() {
    let mut host = Host::new(
        &[("lp-a", "1", "Description: old lp-a"), ("lp-b", "1", "")],
        &[("lp-a", "1", ""), ("lp-b", "2", "")],
    );
    let security = Origin { suite: "stable-security".into(), security: true, ..Origin::default() };
    host.offer(&security, &[("lp-a", "3", "")]);
    let before = host.set("Inst lp-b [1] (2 x [amd64])\n");
    assert_eq!((before.total, before.security_updates), (1, 0));
    let set = with_taken_back(before, &[taken_back("lp-a", "3")], &host.inventory, &host.indexes);
    assert_eq!((set.total, set.security_updates, set.requires_reboot), (2, 1, false));
    let missing = &set.patches[0];
    assert_eq!(
        *missing,
        Patch {
            name: "lp-a".parse().unwrap(),
            architecture: "amd64".parse().unwrap(),
            current_version: Some("1".parse().unwrap()),
            available_version: "3".parse().unwrap(),
            description: "new lp-a".to_owned(),
            requires_reboot: false,
            security: true,
            origin: Some(security),
            severity: Severity::Unknown,
            cve_ids: Vec::new(),
            advisories: Vec::new(),
            state: PatchState::TakenBack,
            reason: Some(
                "3 was taken back by job 01890000-0000-7000-8000-000000000001 (its postinst failed); it is not installed \
                 again until root clears it on the host: linux-patch-host clear lp-a=3"
                    .to_owned()
            ),
            download_size: 7,
        }
    );
    assert_eq!((set.patches[1].name.as_str(), set.patches[1].state), ("lp-b", PatchState::Ready));
}

#[test]
fn what_was_taken_back_is_named_beside_an_older_update_that_would_be_applied() {
    let host = Host::new(&[("lp-a", "1", "")], &[("lp-a", "2", ""), ("lp-a", "3", "")]);
    let set = host.set("Inst lp-a [1] (2 x [amd64])\n");
    let set = with_taken_back(set, &[taken_back("lp-a", "3")], &host.inventory, &host.indexes);
    let told: Vec<_> = set.patches.iter().map(|p| (p.available_version.as_str(), p.state)).collect();
    assert_eq!(told, [("2", PatchState::Ready), ("3", PatchState::TakenBack)]);
    assert_eq!(set.total, 2);
    // Once the solver brings the very version, it is no longer missing.
    let set = host.set("Inst lp-a [1] (3 x [amd64])\n");
    let set = with_taken_back(set, &[taken_back("lp-a", "3")], &host.inventory, &host.indexes);
    assert_eq!((set.total, set.patches[0].state), (1, PatchState::Ready));
}

#[test]
fn what_was_taken_back_and_is_no_update_is_not_named() {
    let host = Host::new(
        &[
            ("lp-a", "2", ""),
            ("lp-gone", "1", "Status: deinstall ok config-files"),
            ("lp-withdrawn", "1", ""),
        ],
        &[("lp-a", "1", ""), ("lp-a", "2", ""), ("lp-gone", "2", ""), ("lp-new", "2", "")],
    );
    let other = TakenBack { architecture: "i386".parse().unwrap(), ..taken_back("lp-a", "3") };
    let entries = [
        taken_back("lp-a", "1"),
        taken_back("lp-a", "2"),
        taken_back("lp-gone", "2"),
        taken_back("lp-withdrawn", "2"),
        taken_back("lp-new", "2"),
        other,
    ];
    let set = with_taken_back(host.set(""), &entries, &host.inventory, &host.indexes);
    assert_eq!((set.total, set.patches), (0, Vec::new()));
}

#[test]
fn a_list_without_versions_means_the_newest() {
    let host = Host::new(&[("lp-a", "1", "")], &[("lp-a", "2", ""), ("lp-a", "10", ""), ("lp-a", "9", "")]);
    let set = host.set(&format!("{KEPT}  lp-a\n"));
    assert_eq!(
        (set.patches[0].available_version.as_str(), set.patches[0].state),
        ("10", PatchState::KeptBack)
    );
    // Where no archive is known to offer it there is nothing to tell a version by.
    let set = Host::new(&[("lp-a", "1", "")], &[]).set(&format!("{KEPT}  lp-a\n"));
    assert_eq!(set.total, 0);
}

#[test]
fn an_update_that_is_phased_says_to_whom_it_is_offered_if_that_is_known() {
    let phased = "The following upgrades have been deferred due to phasing:\n   lp-a (1 => 2)\n";
    let why = |fields: &str, simulation: &str| {
        Host::new(&[("lp-a", "1", "")], &[("lp-a", "2", fields)]).why(simulation)
    };
    let (state, reason) = why("", phased);
    assert_eq!(state, PatchState::Phased);
    assert!(reason.starts_with("the archive offers it to a part of all machines"), "{reason}");
    for simulation in [phased, &format!("{KEPT}   lp-a (1 => 2)\n")] {
        let (state, reason) = why("Phased-Update-Percentage: 30", simulation);
        assert_eq!(state, PatchState::Phased);
        assert!(reason.starts_with("the archive offers 2 to 30 % of all machines"), "{reason}");
    }
}

#[test]
fn what_stands_in_the_way_is_named() {
    let kept = format!("{KEPT}   lp-a (1 => 2)\n");
    let a = ("lp-a", "1", "");
    // What the new version says, what else is installed, what else the run does, and what is told.
    for (fields, others, run, expected) in [
        // Others need the old one.
        ("", &[("lp-app", "7", "Depends: lp-a (= 1)")][..], "", "lp-app 7 needs lp-a (= 1)"),
        ("", &[("lp-app", "7", "Pre-Depends: lp-a (<< 2)")], "", "lp-app 7 needs lp-a (<< 2)"),
        ("", &[("lp-app", "7", "Breaks: lp-a (>= 2)")], "", "lp-app 7 conflicts with lp-a (>= 2)"),
        ("", &[("lp-app", "7", "Conflicts: lp-a (>> 1)")], "", "lp-app 7 conflicts with lp-a (>> 1)"),
        // It needs what is not there.
        ("Depends: lp-b (>= 9)", &[], "", "2 needs lp-b (>= 9) (no archive offers lp-b in such a version)"),
        ("Depends: lp-c", &[], "", "2 needs lp-c (no archive offers lp-c)"),
        ("Depends: lp-b (>= 2)", &[("lp-b", "1", "")], "", "2 needs lp-b (>= 2) (lp-b stays at 1)"),
        (
            "Depends: lp-b (>= 2)",
            &[("lp-b", "1", "Status: hold ok installed")],
            "",
            "2 needs lp-b (>= 2) (lp-b is held at 1)",
        ),
        // The run changes that, and not enough.
        (
            "Depends: lp-b (>= 9)",
            &[("lp-b", "1", "")],
            "Inst lp-b [1] (2 x [amd64])\n",
            "2 needs lp-b (>= 9) (lp-b would be at 2)",
        ),
        ("Depends: lp-b", &[("lp-b", "1", "")], "Remv lp-b [1]\n", "2 needs lp-b (lp-b would be removed)"),
        (
            "Breaks: lp-b (<< 2)",
            &[("lp-b", "1", "")],
            "",
            "2 conflicts with lp-b (<< 2), and lp-b is installed",
        ),
    ] {
        let installed: Vec<Package<'_>> = others.iter().copied().chain([a]).collect();
        let host = Host::new(&installed, &[("lp-a", "2", fields), ("lp-b", "2", "")]);
        assert_eq!(
            host.why(&format!("{kept}{run}")),
            (PatchState::KeptBack, expected.to_owned()),
            "{fields}"
        );
    }
}

#[test]
fn what_does_not_stand_in_the_way_is_not_named() {
    let kept = format!("{KEPT}   lp-a (1 => 2)\n");
    for (fields, other, run) in [
        // The new version, something else or the run meets it.
        ("", ("lp-app", "7", "Depends: lp-a (>= 1)"), ""),
        ("", ("lp-app", "7", "Depends: lp-a (= 1) | lp-app"), ""),
        ("Provides: lp-a-1", ("lp-app", "7", "Depends: lp-a-1 | lp-a (= 1)"), ""),
        // Its name is part of another's.
        ("", ("lp-app", "7", "Depends: lp-a-data (= 1)\nConflicts: xlp-a"), ""),
        ("", ("lp-app", "7", "Breaks: lp-a (<< 2)"), ""),
        // What goes or is changed itself needs the old one no more.
        ("", ("lp-app", "7", "Depends: lp-a (= 1)"), "Remv lp-app [7]\n"),
        ("Depends: lp-b (>= 2)", ("lp-b", "1", ""), "Inst lp-b [1] (2 x [amd64])\n"),
        ("Breaks: lp-b (<< 2)", ("lp-b", "1", ""), "Inst lp-b [1] (2 x [amd64])\n"),
        // Itself.
        ("Conflicts: lp-a", ("lp-b", "1", ""), ""),
    ] {
        let host = Host::new(&[("lp-a", "1", ""), other], &[("lp-a", "2", fields), ("lp-b", "2", "")]);
        let expected = "apt keeps it back; `apt-get -s install lp-a` shows what it would take";
        let (_, reason) = host.why(&format!("{kept}{run}"));
        assert_eq!(reason, expected, "{fields} {other:?} {run}");
    }
}
