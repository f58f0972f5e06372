//! Plans, patches, details and reasons, out of the files of a recorded root and of what apt printed in it.

#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::path::{Path, PathBuf};

use patch_backends::apt::{
    Evidence, Indexes, Inventory, Simulation, detail, patch_set, plan, policy, simulate, why_not,
};
use patch_types::{
    Action, PackageName, PackageVersion, TakenBack,
    api::{CauseKind, PatchState, WhyNot},
};

macro_rules! recorded {
    ($name:literal) => {
        include_str!(concat!("../src/apt/fixtures/", $name, ".txt"))
    };
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/apt/fixtures/root")
}

struct Host {
    inventory: Inventory,
    indexes: Indexes,
    simulation: Simulation,
}

fn host(output: &str) -> Host {
    let inventory = Inventory::read(&root()).unwrap();
    let simulation = simulate::parse(output);
    let indexes = Indexes::for_simulations(&inventory, &[&simulation]).unwrap();
    Host { inventory, indexes, simulation }
}

fn name(text: &str) -> PackageName {
    text.parse().unwrap()
}

#[test]
fn a_plan_of_all_updates_has_hashes_origins_and_consequences() {
    let Host { inventory, indexes, simulation } = host(recorded!("sim-upgrade-new"));
    let plan = plan(&simulation, &inventory, &indexes);
    assert_eq!(plan.changes.len(), 13);
    assert!(
        plan.changes.iter().all(|c| c.archive_sha256.is_some() && c.archive_bytes > 0 && c.origin.is_some())
    );
    let change = |name: &str, architecture: &str| {
        plan.changes
            .iter()
            .find(|c| c.name.as_str() == name && c.architecture.as_str() == architecture)
            .unwrap()
    };
    let lib = change("pa-lib", "all");
    assert!(lib.action == Action::Upgrade && lib.security);
    assert_eq!(lib.origin.as_ref().unwrap().suite, "stable-security");
    assert!(!change("pa-conf", "all").security);
    assert_eq!(
        (change("pa-new", "all").action, &change("pa-new", "all").old_version),
        (Action::Install, &None)
    );
    assert_ne!(change("ex-multi", "amd64").archive_sha256, change("ex-multi", "i386").archive_sha256);
    assert_eq!(change("ex-multi", "amd64").disk_delta_bytes, 0);
    assert_eq!(plan.conffiles.iter().map(|c| &*c.path).collect::<Vec<_>>(), ["/etc/pa-conf.conf"]);
    assert_eq!(plan.services, ["pa-daemon.service"]);
    assert_eq!(plan.download_bytes, plan.changes.iter().map(|c| c.archive_bytes).sum::<u64>());
    assert!(!plan.needs_reboot);
    let kept: Vec<(&str, &str)> =
        plan.kept_back.iter().map(|k| (k.name.as_str(), k.reason.as_str())).collect();
    assert_eq!(
        kept,
        [
            ("ex-kept", "1.1 needs ex-missing (>= 2) (no archive offers ex-missing)"),
            ("pa-breaks", "1.1 conflicts with pa-victim, and pa-victim is installed"),
            ("pa-held", "pa-held is held"),
            (
                "pa-phased",
                "the archive offers 1.1 to 0 % of all machines so far, and this one is not among them"
            ),
        ]
    );
}

#[test]
fn removals_downgrades_and_repairs_are_planned_as_such() {
    for (output, expected) in [
        (recorded!("sim-purge"), &[(Action::Purge, "pa-app"), (Action::Purge, "pa-lib")][..]),
        (recorded!("sim-remove"), &[(Action::Remove, "pa-app"), (Action::Remove, "pa-lib")]),
        (recorded!("sim-reinstall"), &[(Action::Reinstall, "pa-lib"), (Action::Reinstall, "pa-plain")]),
        (recorded!("sim-downgrade"), &[(Action::Downgrade, "pa-plain")]),
        (recorded!("sim-configure"), &[(Action::Configure, "pa-postfail")]),
        (recorded!("sim-conflict"), &[(Action::Remove, "pa-victim"), (Action::Upgrade, "pa-breaks")]),
    ] {
        let Host { inventory, indexes, simulation } = host(output);
        let plan = plan(&simulation, &inventory, &indexes);
        let actions: Vec<_> = plan.changes.iter().map(|c| (c.action, c.name.as_str())).collect();
        assert_eq!(actions, expected);
        let downgrade = plan.changes.iter().find(|c| c.action == Action::Downgrade);
        assert!(downgrade.is_none_or(|c| !c.security && c.archive_sha256.is_some()));
    }
    let Host { inventory, indexes, simulation } = host(recorded!("sim-nothing"));
    assert!(plan(&simulation, &inventory, &indexes).is_empty());
}

#[test]
fn what_the_solver_leaves_out_is_known_from_the_database_or_is_the_native_one() {
    let Host { inventory, indexes, simulation } = host(
        "Inst ex-rival-b (1.0 localhost)\nInst ex-needs:i386 (1.0 localhost)\nRemv ex-multi:i386 [1.0]\nRemv pa-gone [1]\n\
         Remv pa-gone-too:i386 [1]\nInst pa-lib (1.1 Debian-Security:12/stable-security)\n",
    );
    let plan = plan(&simulation, &inventory, &indexes);
    let told: Vec<_> = plan
        .changes
        .iter()
        .map(|c| {
            (
                c.name.as_str(),
                c.architecture.as_str(),
                c.action,
                c.old_version.as_ref().map(PackageVersion::as_str),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("ex-rival-b", "amd64", Action::Install, None),
            ("ex-needs", "i386", Action::Install, None),
            ("ex-multi", "i386", Action::Remove, Some("1.0")),
            ("pa-gone", "amd64", Action::Remove, Some("1")),
            ("pa-gone-too", "i386", Action::Remove, Some("1")),
            ("pa-lib", "all", Action::Upgrade, Some("1.0")),
        ]
    );
}

#[test]
fn an_inventory_for_the_list_knows_the_same_packages() {
    let (whole, list) = (Inventory::read(&root()).unwrap(), Inventory::read_for_list(&root()).unwrap());
    let told = |inventory: &Inventory| -> Vec<(String, String, bool)> {
        let of = |p: patch_backends::apt::Installed<'_>| {
            (p.package_name().unwrap().to_string(), p.version_text().to_owned(), inventory.is_auto(p))
        };
        inventory.database.iter().map(of).collect()
    };
    assert_eq!(told(&whole), told(&list));
    assert!(told(&list).iter().any(|(.., is_auto)| *is_auto));
    let conffiles =
        |inventory: &Inventory| inventory.database.find("pa-conf", None).unwrap().conffiles().len();
    assert_eq!((conffiles(&whole), conffiles(&list)), (1, 0));
    // Half an inventory is none.
    let dir = tempfile::tempdir().unwrap();
    let refused = || Inventory::read_for_list(dir.path()).unwrap_err().path;
    assert!(refused().ends_with("var/lib/dpkg/status"));
    std::fs::create_dir_all(dir.path().join("var/lib/dpkg")).unwrap();
    std::fs::write(dir.path().join("var/lib/dpkg/status"), "").unwrap();
    assert!(Inventory::read_for_list(dir.path()).unwrap().database.is_empty());
    std::fs::create_dir_all(dir.path().join("var/lib/apt/extended_states")).unwrap();
    assert!(refused().ends_with("extended_states"));
}

#[test]
fn every_update_has_a_state_and_a_reason_if_it_is_not_ready() {
    let Host { inventory, indexes, simulation } = host(recorded!("sim-upgrade"));
    let set = patch_set(&simulation, &inventory, &indexes);
    let state = |name: &str| {
        let patch = set.patches.iter().find(|p| p.name.as_str() == name).unwrap();
        (patch.state, patch.security, patch.available_version.as_str())
    };
    assert_eq!((set.total, set.patches.len()), (16, 16));
    assert_eq!(state("pa-plain"), (PatchState::Ready, true, "1.1-1"));
    assert_eq!(state("pa-conf"), (PatchState::Ready, false, "1.1"));
    assert_eq!(state("pa-held"), (PatchState::Held, false, "1.1"));
    assert_eq!(state("pa-phased"), (PatchState::Phased, false, "1.1"));
    assert_eq!(state("pa-breaks"), (PatchState::KeptBack, true, "1.1"));
    assert_eq!(state("ex-kept"), (PatchState::KeptBack, false, "1.1"));
    // `apt-get upgrade` without --with-new-pkgs does not bring new packages along.
    assert_eq!(state("pa-newdep"), (PatchState::KeptBack, true, "1.1"));
    let reason = |name: &str| set.patches.iter().find(|p| p.name.as_str() == name).unwrap().reason.clone();
    assert_eq!(reason("pa-newdep").unwrap(), "1.1 needs pa-new (pa-new would be newly installed)");
    assert_eq!(reason("pa-plain"), None);
    assert!(set.patches.is_sorted_by_key(|p| (p.name.clone(), p.architecture.clone())));
    assert_eq!(set.security_updates, set.patches.iter().filter(|p| p.security).count());
    assert!(set.patches.iter().all(|p| p.description.starts_with("test package") && p.download_size > 0));
    assert_eq!(patch_set(&simulate::parse(""), &inventory, &indexes).total, 0);
}

#[test]
fn a_package_that_waits_for_its_pinned_companion_says_so() {
    let Host { inventory, indexes, simulation } = host(recorded!("sim-pinned"));
    let set = patch_set(&simulation, &inventory, &indexes);
    let app = set.patches.iter().find(|p| p.name.as_str() == "pa-app").unwrap();
    assert_eq!(app.reason.as_deref(), Some("1.1 needs pa-lib (= 1.1) (pa-lib stays at 1.0)"));
}

#[test]
fn a_detail_tells_all_of_a_package() {
    let inventory = Inventory::read(&root()).unwrap();
    let of = |text: &str, output: &str| {
        let name = name(text);
        let indexes = Indexes::for_package(&inventory, &name).unwrap();
        let policies = policy::parse(output);
        detail(&name, &inventory, policies.iter().find(|p| p.name == text), &indexes, Vec::new())
    };
    let plain = of("pa-plain", recorded!("policy-plain")).unwrap();
    assert!(plain.upgradable && !plain.held && !plain.auto_installed);
    assert_eq!(plain.latest_version.as_ref().unwrap().as_str(), "1.1-1");
    let versions: Vec<_> = plain
        .versions
        .iter()
        .map(|v| (v.version.as_str(), v.priority, v.installed, v.origins[0].codename.as_str()))
        .collect();
    assert_eq!(
        versions,
        [
            ("1.1-1", Some(500), false, "bookworm-security"),
            ("1.0-2", Some(500), false, "bookworm-updates"),
            ("1.0-1", Some(500), true, "bookworm")
        ]
    );
    assert!(plain.files.contains(&"/usr/share/pa-plain/version".to_owned()));
    let lib = of("pa-lib", recorded!("policy-several")).unwrap();
    assert_eq!(lib.reverse_dependencies, [name("pa-app")]);
    assert!(!lib.upgradable && lib.candidate.unwrap().as_str() == "1.0");
    let conf = of("pa-conf", "").unwrap();
    assert_eq!((conf.conffiles[0].path.as_str(), conf.candidate), ("/etc/pa-conf.conf", None));
    assert!(of("ex-auto", "").unwrap().auto_installed);
    let multi = of("ex-multi:i386", recorded!("policy-foreign")).unwrap();
    assert_eq!((multi.architecture.as_str(), multi.upgradable), ("i386", true));
    assert_eq!(multi.long_description, "It does nothing.\n\nAt length.");
    assert_eq!(
        multi.files,
        ["/usr", "/usr/share", "/usr/share/ex-multi-i386", "/usr/share/ex-multi-i386/version"]
    );
    let absent = of("ex-needs", recorded!("policy-absent")).unwrap();
    assert_eq!((absent.version, absent.upgradable, absent.relations.depends.len()), (None, false, 1));
    // Of another architecture than the host's, and not installed: what is offered for it.
    let foreign = of("ex-needs:i386", "").unwrap();
    assert_eq!((foreign.name.as_str(), foreign.architecture.as_str()), ("ex-needs", "all"));
    assert_eq!(foreign.versions.len(), 1);
    assert_eq!(of("pa-daemon:i386", ""), None, "it is offered for amd64 only");
    assert_eq!(of("nosuch", ""), None);
    assert_eq!(of("ex-virtual", recorded!("policy-virtual")), None);
}

fn reasons(text: &str, policy_output: &str, patching: &str, alone: Option<&str>, hours: i64) -> WhyNot {
    reasons_after(&[], text, policy_output, patching, alone, hours)
}

fn reasons_after(
    taken_back: &[TakenBack],
    text: &str,
    policy_output: &str,
    patching: &str,
    alone: Option<&str>,
    hours: i64,
) -> WhyNot {
    let inventory = Inventory::read(&root()).unwrap();
    let name = name(text);
    let patching = simulate::parse(patching);
    let indexes = Indexes::for_package(&inventory, &name).unwrap();
    let policies = policy::parse(policy_output);
    let checked: jiff::Timestamp = "2026-11-22T00:00:00Z".parse().unwrap();
    why_not(
        &name,
        &Evidence {
            inventory: &inventory,
            policy: policies.iter().find(|p| p.name == text),
            indexes: &indexes,
            patching: &patching,
            alone: alone.map(simulate::parse).as_ref(),
            taken_back,
            last_update_check: Some(checked),
            now: checked + jiff::SignedDuration::from_hours(hours),
        },
    )
}

#[test]
fn a_version_that_was_taken_back_is_named_with_its_job_and_reason() {
    let entry = |version: &str| TakenBack {
        name: name("pa-lib"),
        architecture: "amd64".parse().unwrap(),
        version: version.parse().unwrap(),
        job: "01890000-0000-7000-8000-000000000001".parse().unwrap(),
        at: "2026-11-21T10:00:00Z".parse().unwrap(),
        reason: "its postinst failed.".to_owned(),
    };
    let kinds = |taken_back: &[TakenBack]| -> Vec<CauseKind> {
        let why = reasons_after(
            taken_back,
            "pa-lib",
            recorded!("policy-forbidden"),
            recorded!("sim-pinned"),
            None,
            1,
        );
        if why.causes[0].kind == CauseKind::TakenBack {
            assert_eq!(
                why.causes[0].message,
                "version 1.1 of pa-lib was taken back by job 01890000-0000-7000-8000-000000000001 on 2026-11-21 because \
                 its postinst failed"
            );
            assert!(why.causes[0].next_step.contains("`linux-patch-host clear pa-lib=1.1`"));
        }
        why.causes.iter().map(|cause| cause.kind).collect()
    };
    // The pin is its own doing, so it is not named beside it.
    assert_eq!(kinds(&[entry("1.1")]), [CauseKind::TakenBack]);
    // What was taken back once and is no update any more keeps nothing away.
    assert_eq!(kinds(&[entry("1.0")]), [CauseKind::Pinned]);
    assert_eq!(kinds(&[entry("1.0"), entry("1.1")]), [CauseKind::TakenBack]);
    assert_eq!(kinds(&[]), [CauseKind::Pinned]);
}

#[test]
fn what_apt_says_of_a_cause_is_plain_bounded_and_without_passwords() {
    let many = "E: one of \u{1b}[31mthem\u{1b}[0m\n".repeat(1000);
    let alone = format!("E: Unable to use https://me:s3cret@h/x\n{many}");
    let answer = reasons("pa-breaks", "", recorded!("sim-upgrade"), Some(&alone), 1);
    let message = &answer.causes[0].message;
    assert!(message.contains("apt says: Unable to use https://***@h/x; one of them;"), "{message}");
    assert!(message.chars().count() < 2000 && !message.contains('\u{1b}'), "{message}");
}

#[test]
fn each_cause_is_found_and_has_a_next_step() {
    let upgrade = recorded!("sim-upgrade");
    for (name, policy, patching, alone, expected, words) in [
        ("pa-plain", recorded!("policy-plain"), upgrade, None, CauseKind::Ready, "from 1.0-1 to 1.1-1"),
        (
            "pa-held",
            recorded!("policy-held"),
            upgrade,
            None,
            CauseKind::Held,
            "held at 1.0 (1.1 is available)",
        ),
        ("pa-phased", recorded!("policy-phased"), upgrade, None, CauseKind::Phased, "0 % of all machines"),
        (
            "pa-lib",
            recorded!("policy-pinned"),
            recorded!("sim-pinned"),
            None,
            CauseKind::Pinned,
            "prefers pa-lib 1.0 to 1.1",
        ),
        (
            "pa-lib",
            recorded!("policy-forbidden"),
            recorded!("sim-pinned"),
            None,
            CauseKind::Pinned,
            "forbids pa-lib 1.1",
        ),
        (
            "pa-breaks",
            "",
            upgrade,
            Some(recorded!("sim-conflict")),
            CauseKind::KeptBack,
            "would remove pa-victim",
        ),
        (
            "ex-kept",
            recorded!("policy-kept"),
            upgrade,
            Some(recorded!("sim-unmet-kept")),
            CauseKind::KeptBack,
            "apt says: ex-kept: Depends: ex-missing",
        ),
        ("pa-newdep", "", upgrade, None, CauseKind::KeptBack, "pa-new would be newly installed"),
        (
            "pa-newdep",
            "",
            upgrade,
            Some(
                "Inst pa-new (1.0 Debian:12/stable [all])\nInst pa-newdep [1.0] (1.1 x [all])\nConf pa-new (1.0 x [all])\n",
            ),
            CauseKind::KeptBack,
            "Installing it would add pa-new",
        ),
        // Nothing says why: that apt does not choose it, and how it is made to.
        ("pa-plain", "", "", None, CauseKind::KeptBack, "pa-plain is kept back: apt does not choose it"),
        (
            "pa-plain",
            "",
            "",
            Some("Inst pa-plain [1.0-1] (1.1-1 x [all])\n"),
            CauseKind::KeptBack,
            "pa-plain is kept back: apt does not choose it",
        ),
        ("pa-victim", "", upgrade, None, CauseKind::UpToDate, "newest version"),
        (
            "ex-needs",
            recorded!("policy-absent"),
            upgrade,
            None,
            CauseKind::NotInstalled,
            "1.0 could be installed",
        ),
        ("nosuch", "", upgrade, None, CauseKind::NoCandidate, "no archive offers it"),
        ("dpkg", "", upgrade, None, CauseKind::NoCandidate, "was installed from a file"),
    ] {
        let answer = reasons(name, policy, patching, alone, 1);
        assert_eq!(
            answer.causes.iter().map(|c| c.kind).collect::<Vec<_>>(),
            [expected],
            "{name}: {answer:?}"
        );
        let cause = &answer.causes[0];
        assert!(cause.message.contains(words), "{name}: {}", cause.message);
        assert!(!cause.next_step.is_empty());
    }
    let next = |name, alone| reasons(name, "", "", alone, 1).causes[0].next_step.clone();
    assert_eq!(next("pa-plain", None), "see what it would take: `apt-get -s install pa-plain`");
    assert_eq!(
        next("pa-plain", Some("Inst pa-plain [1.0-1] (1.1-1 x [all])\n")),
        "install it by name: POST /api/v1/packages {\"packages\": [{\"name\": \"pa-plain\"}]}"
    );
    assert!(
        next("pa-newdep", Some("Inst pa-new (1.0 x [all])\n"))
            .starts_with("install it with them: POST /api/v1/packages")
    );
    let old = reasons("pa-victim", "", upgrade, None, 30);
    assert_eq!(
        old.causes.iter().map(|c| c.kind).collect::<Vec<_>>(),
        [CauseKind::UpToDate, CauseKind::StaleIndexes]
    );
    assert!(old.causes[1].message.contains("30 hours ago"));
}

#[test]
fn what_is_not_in_order_is_the_first_cause_whichever_package_is_asked_for() {
    let stanza = |name: &str, status: &str| {
        format!("Package: {name}\nStatus: {status}\nArchitecture: amd64\nVersion: 1\n\n")
    };
    let causes = |packages: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("var/lib/dpkg")).unwrap();
        let status: String = packages.iter().map(|(name, status)| stanza(name, status)).collect();
        std::fs::write(dir.path().join("var/lib/dpkg/status"), status).unwrap();
        let inventory = Inventory::read(dir.path()).unwrap();
        let evidence = Evidence {
            inventory: &inventory,
            policy: None,
            indexes: &Indexes::default(),
            patching: &Simulation::default(),
            alone: None,
            taken_back: &[],
            last_update_check: None,
            now: "2026-11-22T00:00:00Z".parse().unwrap(),
        };
        why_not(&name("lp-a"), &evidence).causes
    };
    let kinds = |packages: &[(&str, &str)]| causes(packages).iter().map(|c| c.kind).collect::<Vec<_>>();
    let well = ("lp-a", "install ok installed");
    // A host that has never fetched an index knows of nothing.
    assert_eq!(kinds(&[well]), [CauseKind::NoCandidate, CauseKind::StaleIndexes]);
    assert!(causes(&[well])[1].message.contains("never been fetched"));
    // What waits for its trigger is run by apt itself, and nobody is in the way of it.
    assert_eq!(kinds(&[well, ("lp-b", "install ok triggers-pending")])[0], CauseKind::NoCandidate);
    let half = ("lp-b", "install ok half-configured");
    let causes_of_half = causes(&[well, half]);
    assert_eq!(causes_of_half[0].kind, CauseKind::Broken);
    assert_eq!(
        causes_of_half[0].message,
        "the package database is not in order: lp-b: its configuration was begun and not ended: run dpkg --configure -a"
    );
    assert!(causes_of_half[0].next_step.contains("`dpkg --configure -a`, then `apt-get -f install`"));
    let bad = ("lp-aa", "install reinstreq half-installed");
    let causes_of_bad = causes(&[well, half, bad, ("lp-c", "install ok unpacked")]);
    assert!(causes_of_bad[0].message.contains(": lp-aa (and 2 more): "), "{causes_of_bad:?}");
    assert!(causes_of_bad[0].next_step.starts_with("install lp-aa again"));
}
