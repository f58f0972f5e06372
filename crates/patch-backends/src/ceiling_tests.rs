use std::{
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::PathBuf,
};

use patch_types::operation::Reboot;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc/linux_patch_api")).unwrap();
        Self(dir)
    }

    fn with(text: impl AsRef<[u8]>) -> Self {
        let place = Self::new();
        fs::write(place.file(), text).unwrap();
        place
    }

    fn file(&self) -> PathBuf {
        self.0.path().join(FILE)
    }

    fn load(&self) -> Result<Limits, String> {
        load(self.0.path())
    }

    /// Why it is not relied upon.
    fn refused(&self) -> String {
        let why = self.load().unwrap_err();
        assert!(why.starts_with("/etc/linux_patch_api/ceiling.yaml") && !why.contains('\n'), "{why}");
        why
    }
}

fn limits_nothing(limits: &Limits) -> bool {
    limits.operations.is_none()
        && limits.origins.is_none()
        && limits.protected.is_empty()
        && limits.freeze_file.is_none()
}

#[test]
fn without_a_file_there_is_no_limit() {
    let nowhere = tempfile::tempdir().unwrap();
    assert!(limits_nothing(&load(nowhere.path()).unwrap()));
    assert!(limits_nothing(&Place::new().load().unwrap()));
    for empty in ["", "---\n# nothing\n\n", "{}\n"] {
        assert!(limits_nothing(&Place::with(empty).load().unwrap()), "{empty:?}");
    }
}

#[test]
fn what_the_file_says_is_taken() {
    let limits = Place::with(
        "operations: [hold, forced_reboot]\norigins: [{suite: stable}]\nprotected: [\"lp-*\"]\nfreeze_file: /run/frozen\n",
    )
    .load()
    .unwrap();
    assert_eq!(limits.operations, Some(vec![Kind::Hold, Kind::ForcedReboot]));
    assert_eq!(limits.origins.map(|origins| origins.len()), Some(1));
    assert_eq!(limits.protected.iter().map(Pattern::as_str).collect::<Vec<_>>(), ["lp-*"]);
    assert_eq!(limits.freeze_file.as_ref().map(AbsolutePath::as_str), Some("/run/frozen"));
    // What is named and empty allows nothing.
    let limits = parse("operations: []\norigins: []\n").unwrap();
    assert_eq!((limits.operations, limits.origins), (Some(Vec::new()), Some(Vec::new())));
}

#[test]
fn each_operation_has_a_word_of_its_own() {
    let of = |json: &str| Kind::of(&serde_json::from_str(json).unwrap());
    for (word, operation) in [
        ("refresh", r#"{"kind": "refresh"}"#),
        ("install", r#"{"kind": "install", "packages": [{"name": "aa"}]}"#),
        ("update", r#"{"kind": "update", "name": "aa"}"#),
        ("remove", r#"{"kind": "remove", "name": "aa"}"#),
        ("hold", r#"{"kind": "hold", "name": "aa", "hold": false}"#),
        ("apply_patches", r#"{"kind": "apply_patches"}"#),
        ("rollback", r#"{"kind": "rollback", "job": "018f3f6e-0000-7000-8000-000000000001"}"#),
        ("reboot", r#"{"kind": "reboot"}"#),
    ] {
        let named = parse(&format!("operations: [{word}]\n")).unwrap().operations.unwrap();
        assert_eq!(named, [of(operation)], "{word}");
    }
    // Who may have a host rebooted in its window may not have it rebooted at once.
    let forced = Operation::Reboot(Reboot { force: true, ..Reboot::default() });
    assert_eq!(parse("operations: [forced_reboot]\n").unwrap().operations.unwrap(), [Kind::of(&forced)]);
    assert_ne!(Kind::of(&forced), Kind::Reboot);
}

#[test]
fn an_origin_must_be_equal_in_each_field_that_is_given() {
    let origin = Origin {
        origin: "Debian".into(),
        label: "Debian-Security".into(),
        suite: "stable-security".into(),
        codename: "bookworm-security".into(),
        component: "main".into(),
        site: "mirror.example.org".into(),
        security: true,
    };
    let admits = |fields: &str| {
        parse(&format!("origins: [{{{fields}}}]\n")).unwrap().origins.unwrap()[0].admits(&origin)
    };
    for (field, value) in [
        ("origin", "Debian"),
        ("label", "Debian-Security"),
        ("suite", "stable-security"),
        ("codename", "bookworm-security"),
        ("component", "main"),
        ("site", "mirror.example.org"),
    ] {
        assert!(admits(&format!("{field}: {value}")), "{field}");
        for other in [&value[..value.len() - 1], &format!("{value}x"), &value.to_uppercase()] {
            assert!(!admits(&format!("{field}: {other}")), "{field}: {other}");
        }
    }
    assert!(admits("origin: Debian, component: main") && !admits("origin: Debian, component: contrib"));
    assert!(!admits("site: \"\""), "no site is another one than this");
}

#[test]
fn patterns_match_whole_names() {
    let rows = [
        ("lp-x", "lp-x", true),
        ("lp-x", "lp-xy", false),
        ("lp-*", "lp-", true),
        ("*", "g++", true),
        ("*-image-*", "linux-image-6.1", true),
        ("*-image-*", "linux-image", false),
        ("lib?6", "libc6", true),
        ("lib?6", "lib6", false),
        ("a*b*c", "abbbcbc", true),
        ("a*b*c", "abbbcb", false),
    ];
    for (pattern, name, matches) in rows {
        assert_eq!(Pattern::try_from(pattern.to_owned()).unwrap().matches(name), matches, "{pattern} {name}");
    }
    for bad in ["", "A", "a b", "a[bc]", "ä", &"a".repeat(257)] {
        assert!(Pattern::try_from(bad.to_owned()).is_err(), "{bad:?}");
    }
}

#[test]
fn what_is_wrong_in_the_file_is_said_with_its_place() {
    for (text, words) in [
        ("operations: [install]\noperation: [x]\n", "ceiling.yaml:2:1: unknown"),
        ("operations: [format]\n", "ceiling.yaml:1:14: unknown"),
        ("origins:\n  - {}\n", "ceiling.yaml:2:5: "),
        ("origins:\n  - {suit: x}\n", "ceiling.yaml:2:6: unknown"),
        ("\nprotected: [\"A b\"]\n", "ceiling.yaml:2:13: "),
        ("freeze_file: ../x\n", "ceiling.yaml:1:14: "),
        ("freeze_file: /a/../x\n", "without `..`"),
        ("freeze_file: \"/a\\0b\"\n", "ceiling.yaml:1:14: "),
        ("operations: [\n", "ceiling.yaml:"),
        ("operations: [install]\noperations: [install]\n", "ceiling.yaml:2:1: "),
        // A key whose value was forgotten lifts no limit.
        ("operations:\n", "ceiling.yaml:1:11: "),
        ("origins: ~\n", "ceiling.yaml:1:10: "),
        ("protected:\n", "ceiling.yaml:1:10: "),
        ("- install\n", "ceiling.yaml:1:1: "),
        ("<<: {operations: [install]}\n", "ceiling.yaml:"),
    ] {
        let why = Place::with(text).refused();
        assert!(why.contains(words), "{text:?}: {why}");
    }
}

#[test]
fn the_sample_is_valid_and_limits_nothing_until_it_is_edited() {
    let sample = include_str!("../../../packaging/config/ceiling.yaml.example");
    assert!(limits_nothing(&Place::with(sample).load().unwrap()));
    let edited: String =
        sample.lines().map(|line| format!("{}\n", line.strip_prefix("#: ").unwrap_or(line))).collect();
    let limits = parse(&edited).unwrap();
    assert_eq!(limits.operations.unwrap().len(), 10);
    assert_eq!((limits.origins.unwrap().len(), limits.protected.len()), (2, 2));
    assert!(limits.freeze_file.is_some());
}

#[test]
fn only_a_file_that_nobody_else_can_write_is_relied_upon() {
    let place = Place::with("operations: [hold]\n");
    for mode in [0o664, 0o646] {
        fs::set_permissions(place.file(), fs::Permissions::from_mode(mode)).unwrap();
        assert!(place.refused().contains("writable by nobody else"), "{mode:o}");
    }
    fs::set_permissions(place.file(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(place.load().is_ok());
    // Only root can give a file away.
    if rustix::process::geteuid().is_root() {
        chown(place.file(), Some(4321), None).unwrap();
        assert!(place.refused().contains("must belong to root"));
    }
}

#[test]
fn what_is_not_such_a_file_is_no_lifted_limit() {
    let place = Place::new();
    symlink("nowhere", place.file()).unwrap();
    assert!(place.refused().contains("cannot be read"));
    fs::remove_file(place.file()).unwrap();
    // A link to what is in order is one that root made.
    fs::write(place.0.path().join("elsewhere"), "operations: [hold]\n").unwrap();
    symlink("../../elsewhere", place.file()).unwrap();
    assert_eq!(place.load().unwrap().operations, Some(vec![Kind::Hold]));
    fs::remove_file(place.file()).unwrap();
    // Nobody writes into it, and nobody waits for that.
    mknodat(CWD, place.file(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    assert!(place.refused().contains("not a file"));
    fs::remove_file(place.file()).unwrap();
    fs::create_dir(place.file()).unwrap();
    assert!(place.refused().contains("not a file"));
    fs::remove_dir(place.file()).unwrap();
    fs::remove_dir(place.0.path().join("etc/linux_patch_api")).unwrap();
    fs::write(place.0.path().join("etc/linux_patch_api"), "").unwrap();
    assert!(place.refused().contains("cannot be read"));
}

#[test]
fn a_file_is_read_whole_or_not_at_all() {
    let most = usize::try_from(MAX_FILE).unwrap();
    let head = "operations: [hold]\n#";
    let longest = format!("{head}{}", "x".repeat(most - head.len()));
    assert_eq!(Place::with(&longest).load().unwrap().operations, Some(vec![Kind::Hold]));
    assert!(Place::with(format!("{longest}x")).refused().contains("larger than 1048576 bytes"));
    assert!(Place::with(b"# \xff\n").refused().contains("cannot be read"));
}
