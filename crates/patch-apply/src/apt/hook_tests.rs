use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const TEXT: &str = "VERSION 3\nAPT::Architecture=amd64\nDPkg::Pre-Install-Pkgs::=/x hook\n\n\
lp-old 1.0 all none > - - none **REMOVE**\n\
lp-plain 1.0-1 amd64 same < 1.1-1 amd64 same /var/cache/apt/archives/lp-plain_1.1-1_amd64.deb\n\
lp-new - - none < 1:2 all foreign /srv/a b/lp-new.deb\n\
lp-plain 1.0-1 amd64 same < 1.1-1 amd64 same **CONFIGURE**\n\
lp-new - - none < 1:2 all foreign **CONFIGURE**\n";

fn change(action: Action, name: &str, architecture: &str, old: &str, new: &str) -> PlannedChange {
    PlannedChange {
        action,
        name: name.parse().unwrap(),
        architecture: architecture.parse().unwrap(),
        old_version: old.parse().ok(),
        new_version: new.parse().ok(),
        archive_sha256: None,
        origin: None,
        security: false,
        archive_bytes: 0,
        disk_delta_bytes: 0,
    }
}

fn planned() -> Vec<PlannedChange> {
    vec![
        change(Action::Remove, "lp-old", "all", "1.0", ""),
        change(Action::Upgrade, "lp-plain", "amd64", "1.0-1", "1.1-1"),
        change(Action::Install, "lp-new", "all", "", "1:2"),
    ]
}

fn lines(lines: &str) -> Vec<Announced> {
    parse(format!("VERSION 3\nA=b\n\n{lines}").as_bytes()).unwrap()
}

#[test]
fn an_announcement_is_read() {
    let read = parse(TEXT.as_bytes()).unwrap();
    assert_eq!(read.len(), 5);
    assert_eq!((&read[0].step, &read[0].new), (&Step::Remove, &None));
    assert_eq!(read[2].step, Step::Unpack { file: "/srv/a b/lp-new.deb".into(), sha256: None });
    assert_eq!(read[2].new.as_ref().unwrap().version.as_str(), "1:2");
    assert_eq!(compare(&read, &planned()), Ok(()));
}

#[test]
fn what_is_not_understood_is_refused() {
    for bad in [
        "",
        "VERSION 2\n\n",
        "/var/cache/a.deb\n",
        "VERSION 3\nA=b\n",
        "VERSION 3\nA=b\n\nlp-x 1 all none < 2 all none /a.de",
        "VERSION 3\n\nlp 1\n",
        "VERSION 3\n\nlp-x 1 all none < 2 all none relative.deb\n",
        "VERSION 3\n\nlp-x 1 all none < - - none /a.deb\n",
        "VERSION 3\n\n-x 1 all none < 2 all none /a.deb\n",
        "VERSION 3\n\nlp-x 1 all none ? 2 all none /a.deb\n",
        "VERSION 3\n\nlp-x 1 - none < 2 all none /a.deb\n",
        "VERSION 3\n\nlp-x 1 all odd < 2 all none /a.deb\n",
    ] {
        assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
    }
    let endless = io::repeat(b'x');
    assert!(matches!(read(endless), Err(HookError::TooLong)));
}

#[test]
fn what_apt_has_no_archive_of_is_a_difference() {
    let read = parse(b"VERSION 3\n\nlp-x 1 all none < 2 all none **ERROR**\n").unwrap();
    assert!(compare(&read, &[]).is_err_and(|drift| drift.too_much.len() == 1));
}

#[test]
fn too_much_missing_and_different_are_told_apart() {
    let read = parse(TEXT.as_bytes()).unwrap();
    let mut plan = planned();
    plan.retain(|c| c.action != Action::Remove);
    let drift = compare(&read, &plan).unwrap_err();
    assert_eq!((drift.too_much.len(), drift.missing.len(), drift.different.len()), (1, 0, 0));
    assert_eq!(drift.to_string(), "lp-old:all: planned was nothing, apt would remove 1.0");

    let mut plan = planned();
    plan.push(change(Action::Upgrade, "lp-more", "all", "1", "2"));
    let drift = compare(&read, &plan).unwrap_err();
    assert_eq!((drift.too_much.len(), drift.missing.len(), drift.different.len()), (0, 1, 0));
    assert_eq!(drift.to_string(), "lp-more:all: planned was to upgrade 1 to 2, apt would do nothing");

    for (old, new, architecture) in
        [("1.0-0", "1.1-1", "amd64"), ("1.0-1", "1.2", "amd64"), ("", "1.1-1", "amd64")]
    {
        let mut plan = planned();
        plan[1] = change(Action::Upgrade, "lp-plain", architecture, old, new);
        let drift = compare(&read, &plan).unwrap_err();
        assert_eq!((drift.too_much.len(), drift.missing.len(), drift.different.len()), (0, 0, 1), "{drift}");
    }
    let mut plan = planned();
    plan[1].architecture = "i386".parse().unwrap();
    let drift = compare(&read, &plan).unwrap_err();
    assert_eq!((drift.too_much.len(), drift.missing.len(), drift.different.len()), (1, 1, 0));
    let text = serde_json::to_string(&drift).unwrap();
    assert_eq!(serde_json::from_str::<Drift>(&text).unwrap(), drift);
}

#[test]
fn marks_and_configuring_need_no_announcement_and_are_none() {
    let mut plan = planned();
    plan.push(change(Action::Hold, "lp-held", "all", "1", "1"));
    plan.push(change(Action::Configure, "lp-half", "all", "1", "1"));
    let mut read = parse(TEXT.as_bytes()).unwrap();
    read.extend(lines("lp-left 2 all none = 2 all none **CONFIGURE**\n"));
    assert_eq!(compare(&read, &plan), Ok(()));
}

#[test]
fn reinstalling_purging_and_a_removal_for_a_while_are_understood() {
    let rows = [
        ("lp-x 1 all none = 1 all none /a.deb\n", change(Action::Reinstall, "lp-x", "all", "1", "1"), true),
        ("lp-x 1 all none > - - none **REMOVE**\n", change(Action::Purge, "lp-x", "all", "1", ""), true),
        ("lp-x 1 all none > - - none **REMOVE**\n", change(Action::Purge, "lp-x", "all", "", ""), true),
        ("lp-x 1 all none > - - none **REMOVE**\n", change(Action::Remove, "lp-x", "all", "", ""), false),
        (
            "lp-x 1 all none < 2 all none **REMOVE**\nlp-x 1 all none < 2 all none /a.deb\n",
            change(Action::Upgrade, "lp-x", "all", "1", "2"),
            true,
        ),
        (
            "lp-x 1 all none < 2 all none **REMOVE**\n",
            change(Action::Upgrade, "lp-x", "all", "1", "2"),
            false,
        ),
        ("lp-x 1 all none < 2 all none **REMOVE**\n", change(Action::Remove, "lp-x", "all", "1", ""), false),
        ("lp-x 1 all none < 2 amd64 none /a.deb\n", change(Action::Upgrade, "lp-x", "amd64", "1", "2"), true),
        ("lp-x 1 all none < 2 amd64 none /a.deb\n", change(Action::Upgrade, "lp-x", "all", "1", "2"), false),
    ];
    for (text, plan, fits) in rows {
        assert_eq!(compare(&lines(text), std::slice::from_ref(&plan)).is_ok(), fits, "{text} {plan:?}");
    }
}

#[test]
fn an_archive_must_have_the_planned_hash() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lp-x.deb");
    std::fs::write(&file, "abc").unwrap();
    let mut plan = change(Action::Upgrade, "lp-x", "all", "1", "2");
    plan.archive_sha256 = Some("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned());
    let plan = [plan];
    let mut read = lines(&format!("lp-x 1 all none < 2 all none {}\n", file.display()));
    assert!(compare(&read, &plan).is_err(), "an archive that nobody read was trusted");
    hash_archives(&mut read);
    assert_eq!(compare(&read, &plan), Ok(()));
    std::fs::write(&file, "abd").unwrap();
    hash_archives(&mut read);
    assert_eq!(compare(&read, &plan).unwrap_err().different.len(), 1);
    let mut read = lines("lp-x 1 all none < 2 all none /nowhere.deb\n");
    hash_archives(&mut read);
    assert!(compare(&read, &plan).unwrap_err().to_string().contains("not readable"));
}

#[test]
fn a_command_is_made_of_harmless_characters() {
    let job = JobId(Uuid::nil());
    let made = |program: &str, root: &str| HookCommand::new(Path::new(program), Path::new(root), job);
    let command = made("/usr/libexec/patch-executor", "/").unwrap();
    assert_eq!(command.line(), "/usr/libexec/patch-executor hook 00000000-0000-0000-0000-000000000000");
    assert!(made("/usr/bin/x", "/srv/root").unwrap().line().contains(" --root /srv/root hook "));
    for bad in ["", "x", "/a b", "/a;b", "/a$b", "/a\nb", "/a/../b", "/a=b", "/a:b", "/ä", "/x (deleted)"] {
        assert!(made(bad, "/").is_err() && made("/x", bad).is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&text);
        let mut whole = b"VERSION 3\n\n".to_vec();
        whole.extend(text);
        if let Ok(read) = parse(&whole) {
            let _ = compare(&read, &planned());
        }
    }

    #[test]
    fn any_change_of_an_announcement_is_survived(at in 0..TEXT.len(), cut in 0..40usize, what in "[-<> \n/*a1é]{0,6}") {
        let end = (at + cut).min(TEXT.len());
        if let Ok(read) = parse(format!("{}{what}{}", &TEXT[..at], &TEXT[end..]).as_bytes()) {
            let _ = compare(&read, &planned()).map_err(|drift| drift.to_string());
        }
    }

    #[test]
    fn only_what_is_planned_passes(steps in proptest::collection::vec((0..4usize, 0..3usize, 0..2usize), 0..6)) {
        let versions = ["1", "2", "3"];
        let mut seen = BTreeSet::new();
        let mut text = String::new();
        let mut plan = Vec::new();
        for (name, version, kind) in steps {
            if !seen.insert(name) { continue }
            let (name, new) = (format!("lp-{name}"), versions[version]);
            if kind == 0 {
                text += &format!("{name} 0 all none < {new} all none /{name}.deb\n{name} 0 all none < {new} all none **CONFIGURE**\n");
                plan.push(change(Action::Upgrade, &name, "all", "0", new));
            } else {
                text += &format!("{name} {new} all none > - - none **REMOVE**\n");
                plan.push(change(Action::Remove, &name, "all", new, ""));
            }
        }
        let read = lines(&text);
        prop_assert_eq!(compare(&read, &plan), Ok(()));
        if let Some(first) = plan.pop() {
            prop_assert_eq!(compare(&read, &plan).unwrap_err().too_much.len(), 1);
            plan.push(change(first.action, "lp-else", "all", "0", "1"));
            let drift = compare(&read, &plan).unwrap_err();
            prop_assert_eq!((drift.too_much.len(), drift.missing.len()), (1, 1));
        }
    }
}
