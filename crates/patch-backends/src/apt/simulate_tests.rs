use proptest::prelude::*;

use super::*;

macro_rules! fixtures {
    ($($name:literal),+ $(,)?) => { [$(($name, include_str!(concat!("fixtures/sim-", $name, ".txt")))),+] };
}

const ALL: [(&str, &str); 21] = fixtures![
    "autoremove",
    "broken-deps",
    "configure",
    "conflict",
    "dist-upgrade",
    "downgrade",
    "downgrade-pair",
    "essential",
    "exact",
    "held",
    "held-refused",
    "install",
    "install-two",
    "no-verbose",
    "nothing",
    "pinned",
    "purge",
    "reinstall",
    "remove",
    "unmet",
    "upgrade",
];

fn recorded(name: &str) -> Simulation {
    parse(ALL.iter().find(|(n, _)| *n == name).unwrap().1)
}

fn changes(name: &str) -> Vec<String> {
    let text = |v: &Option<PackageVersion>| v.as_ref().map_or("-".to_owned(), ToString::to_string);
    recorded(name)
        .changes
        .iter()
        .map(|c| format!("{:?} {} {} {}", c.verb, c.package, text(&c.old), text(&c.new)))
        .collect()
}

fn names(list: &[Listed]) -> Vec<String> {
    list.iter().map(|l| l.package.to_string()).collect()
}

#[test]
fn recorded_simulations_are_read_whole() {
    for (name, expected) in [
        ("install", &["Install ex-rival-a - 1.0"][..]),
        ("conflict", &["Remove pa-victim 1.0 -", "Install pa-breaks 1.0 1.1"]),
        ("purge", &["Purge pa-app 1.0 -", "Purge pa-lib 1.0 -"]),
        ("remove", &["Remove pa-app 1.0 -", "Remove pa-lib 1.0 -"]),
        ("autoremove", &["Remove ex-only 1.0 -", "Remove ex-auto 1.0 -"]),
        ("reinstall", &["Install pa-lib 1.0 1.0", "Install pa-plain 1.0-1 1.0-1"]),
        ("downgrade", &["Install pa-plain 1.1-1 1.0-1"]),
        ("configure", &["Configure pa-postfail - 1.1"]),
        ("exact", &["Install pa-app 1.0 1.1", "Install pa-lib 1.0 1.1"]),
        ("nothing", &[]),
        (
            "install-two",
            &[
                "Install ex-virtual-two - 1.0",
                "Install ex-user - 1:2.0~rc1-1",
                "Install pa-app 1.0 1.1",
                "Install pa-lib 1.0 1.1",
            ],
        ),
    ] {
        assert_eq!(changes(name), expected, "{name}");
    }
    for (name, text) in ALL {
        let simulation = parse(text);
        assert_eq!(simulation.malformed, 0, "{name}");
        let lines = text
            .lines()
            .filter(|l| l.starts_with("Inst ") || l.starts_with("Remv ") || l.starts_with("Purg "));
        assert_eq!(
            simulation.changes.iter().filter(|c| c.verb != Verb::Configure).count(),
            lines.count(),
            "{name}"
        );
    }
}

#[test]
fn the_lists_are_read_with_versions() {
    let upgrade = recorded("upgrade");
    assert_eq!(names(&upgrade.kept_back), ["ex-kept", "pa-breaks", "pa-held", "pa-newdep", "pa-phased"]);
    let kept = &upgrade.kept_back[1];
    assert_eq!((kept.old.as_ref().unwrap().as_str(), kept.new.as_ref().unwrap().as_str()), ("1.0", "1.1"));
    assert!(upgrade.changes.iter().any(|c| c.package.as_str() == "ex-multi:i386"));
    let first = &upgrade.changes[0];
    assert_eq!(
        (first.architecture.as_ref().unwrap().as_str(), &*first.sources),
        ("amd64", &["localhost".to_owned()][..])
    );
    assert_eq!(upgrade.change("pa-conf", None).unwrap().sources, ["Debian:12/stable-updates"]);
    assert_eq!(upgrade.names().filter(|n| *n == "ex-multi").count(), 2);
    assert_eq!(names(&recorded("held").held), ["pa-held"]);
    assert_eq!(names(&recorded("downgrade-pair").downgraded), ["pa-app", "pa-lib"]);
    assert_eq!(names(&recorded("purge").removed), ["pa-app", "pa-lib"]);
    assert_eq!(names(&recorded("conflict").removed), ["pa-victim"]);
    let unauthenticated =
        parse("WARNING: The following packages cannot be authenticated!\n  ex-rival-a pa-lib:i386\n");
    assert_eq!(names(&unauthenticated.unauthenticated), ["ex-rival-a", "pa-lib:i386"]);
    let essential = recorded("essential");
    assert_eq!(names(&essential.essential), ["sysvinit-utils"]);
    assert_eq!(essential.no_longer_required.len(), 8);
    assert_eq!(names(&recorded("no-verbose").removed), ["ex-auto", "ex-only", "pa-app", "pa-lib"]);
}

#[test]
fn what_cannot_be_is_told() {
    let unmet = recorded("unmet");
    assert_eq!(
        unmet.unmet,
        [Unmet {
            package: "ex-needs".into(),
            problem: "Depends: ex-missing (>= 2) but it is not installable".into()
        }]
    );
    assert_eq!(unmet.errors, ["Unable to correct problems, you have held broken packages."]);
    assert!(recorded("held-refused").errors[0].starts_with("Held packages were changed"));
    assert!(recorded("broken-deps").errors[0].starts_with("Unmet dependencies"));
    // A line that goes on with a package that was not named says nothing.
    let lost =
        parse("The following packages have unmet dependencies:\n   Depends: x but it is not installable\n");
    assert_eq!(lost, Simulation::default());
    let several = parse(
        "The following packages have unmet dependencies:\n grep : Depends: dpkg (>= 1.15.4) but it is not going to be installed or\n\
         \x20                install-info but it is not installable\n        Recommends: x but it is not installable\nE: no\n",
    );
    assert_eq!(several.unmet.len(), 2);
    assert!(several.unmet[0].problem.ends_with("or install-info but it is not installable"));
    assert_eq!(
        (&*several.unmet[1].package, &*several.unmet[1].problem),
        ("grep", "Recommends: x but it is not installable")
    );
}

#[test]
fn odd_lines_are_read_or_counted() {
    let simulation = parse(
        "The following upgrades have been deferred due to phasing:\n   aa (1 => 2)\n   bb:i386 (1 => 2)\n\
         Remv cc [1]\nInst cc [1] (2 Label (odd):1/suite, Other:2/x [amd64]) []\nInst dd (3 [all])\nInst ee\nInst -x [1] (2 a [all])\n\
         Remv ff [bad version]\nW: careful\n",
    );
    assert_eq!(names(&simulation.phased), ["aa", "bb:i386"]);
    assert_eq!(simulation.changes.len(), 2, "{simulation:?}");
    assert_eq!(simulation.changes[0].sources, ["Label (odd):1/suite", "Other:2/x"]);
    assert!(simulation.changes[1].sources.is_empty());
    assert_eq!((simulation.malformed, &*simulation.warnings), (3, &["careful".to_owned()][..]));
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "\\PC{0,300}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_change_of_a_recorded_simulation_is_survived(
        which in 0..ALL.len(), at in 0.0..1.0f64, cut in 0..60usize, what in "[\\[\\]() =>:\nA-Za-zé0-9]{0,8}") {
        let text = ALL[which].1;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let at = (text.len() as f64 * at) as usize;
        let end = (at + cut).min(text.len());
        let _ = parse(&format!("{}{what}{}", &text[..at], &text[end..]));
    }
}
