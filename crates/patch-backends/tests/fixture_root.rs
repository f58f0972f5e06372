//! Plans, patches, details and reasons, out of the files of a recorded root and of what apt printed in it.

#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::path::{Path, PathBuf};

use patch_backends::apt::{
    Evidence, Indexes, Inventory, Simulation, detail, patch_set, plan, policy, simulate, why_not,
};
use patch_types::{
    Action, PackageName, TakenBack,
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
    let old = reasons("pa-victim", "", upgrade, None, 30);
    assert_eq!(
        old.causes.iter().map(|c| c.kind).collect::<Vec<_>>(),
        [CauseKind::UpToDate, CauseKind::StaleIndexes]
    );
    assert!(old.causes[1].message.contains("30 hours ago"));
}
