use proptest::prelude::*;

use super::*;

const PACKAGES: &[u8] = include_bytes!(
    "fixtures/root/var/lib/apt/lists/_srv_repo_day1_dists_bookworm-security_main_binary-amd64_Packages"
);

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/apt/fixtures/root")
}

fn read(names: &[&str]) -> Indexes {
    Indexes::read(&fixture(), names.iter().copied()).unwrap()
}

#[test]
fn offers_are_found_with_their_origins() {
    let indexes = read(&["pa-plain", "pa-phased", "ex-multi", "ex-kept"]);
    assert_eq!((indexes.skipped().len(), indexes.malformed()), (0, 0));
    let versions: Vec<_> = indexes
        .versions("pa-plain")
        .iter()
        .map(|v| {
            (
                v.version.as_str(),
                indexes.origin(v).unwrap().codename.as_str(),
                indexes.origin(v).unwrap().security,
            )
        })
        .collect();
    assert_eq!(
        versions,
        [
            ("1.1-1", "bookworm-security", true),
            ("1.0-2", "bookworm-updates", false),
            ("1.0-1", "bookworm", false)
        ]
    );
    let newest = indexes.newest("pa-plain", "amd64").unwrap();
    assert_eq!(newest.sha256.as_ref().unwrap().len(), 64);
    assert!(newest.size > 0 && newest.filename.ends_with("pa-plain_1.1-1_all.deb"));
    assert_eq!(indexes.origin(newest).unwrap().component, "main");
    assert_eq!(indexes.origin(newest).unwrap().site, "");
    assert_eq!(indexes.newest("pa-phased", "all").unwrap().phased_percentage, Some(0));
    let foreign = indexes.newest("ex-multi", "i386").unwrap();
    assert_eq!(
        (&*foreign.architecture, &*foreign.multi_arch, foreign.installed_size),
        ("i386", "same", 12 * 1024)
    );
    assert_eq!(foreign.long_description, "It does nothing.\n\nAt length.");
    // A flat archive without a Release file says nothing of itself.
    assert_eq!(indexes.origin(foreign), Some(&Origin::default()));
    assert_eq!(indexes.newest("ex-kept", "all").unwrap().relations.depends, ["ex-missing (>= 2)"]);
    assert!(indexes.versions("pa-lib").is_empty());
}

#[test]
fn a_security_fix_between_two_versions_counts() {
    let mut indexes = Indexes { names: BTreeSet::from(["aa".to_owned()]), ..Indexes::default() };
    let of = |security| Origin { security, ..Origin::default() };
    let stanza = |v: &str| format!("Package: aa\nVersion: {v}\nArchitecture: all\n");
    indexes.add(of(true), stanza("1.1").as_bytes()).unwrap();
    indexes.add(of(false), stanza("1.2").as_bytes()).unwrap();
    for (installed, new, security) in [
        (Some("1.0"), "1.2", true),
        (Some("1.0"), "1.1", true),
        (Some("1.1"), "1.2", false),
        (None, "1.1", true),
        (None, "1.2", false),
    ] {
        assert_eq!(indexes.brings_security("aa", "amd64", installed, new), security, "{installed:?} {new}");
    }
}

#[test]
fn names_of_files_tell_archive_component_and_compression() {
    let root = tempfile::tempdir().unwrap();
    let lists = root.path().join(LISTS);
    fs::create_dir_all(lists.join("partial")).unwrap();
    for (name, text) in [
        ("mirror.example.org_debian_dists_bookworm_InRelease", "Origin: Debian\nSuite: stable\n"),
        ("mirror.example.org_debian_dists_bookworm_updates_Release", "Origin: Debian\nSuite: other\n"),
        ("mirror.example.org_debian_dists_bookworm_main_binary-amd64_Packages.lz4", ""),
        ("mirror.example.org_debian_dists_bookworm_updates_main_binary-amd64_Packages", ""),
        ("mirror.example.org_debian_dists_bookworm_non-free_fw_binary-amd64_Packages", ""),
        ("mirror:8080_flat_._Packages", ""),
        ("mirror.example.org_debian_dists_bookworm_main_i18n_Translation-en", ""),
    ] {
        fs::write(lists.join(name), text).unwrap();
    }
    let files = list_files(root.path()).unwrap();
    let seen: Vec<_> = files
        .iter()
        .map(|f| (&*f.origin.site, &*f.origin.suite, &*f.origin.component, f.compression))
        .collect();
    assert_eq!(
        seen,
        [
            ("mirror.example.org", "stable", "main", Some("lz4")),
            ("mirror.example.org", "stable", "non-free_fw", None),
            ("mirror.example.org", "other", "main", None),
            ("mirror", "", "", None),
        ]
    );
    let indexes = Indexes::read(root.path(), ["aa"]).unwrap();
    assert_eq!(indexes.skipped().len(), 1);
    assert!(indexes.skipped()[0].reason.contains("GzipIndexes"));
    assert!(Indexes::read(Path::new("/nonexistent"), ["aa"]).unwrap().origins().is_empty());
}

#[test]
fn what_cannot_be_read_is_named_and_the_others_are_read() {
    let root = tempfile::tempdir().unwrap();
    let lists = root.path().join(LISTS);
    fs::create_dir_all(lists.join("a_dists_s_main_binary-amd64_Packages")).unwrap();
    std::os::unix::fs::symlink("gone", lists.join("b_dists_s_main_binary-amd64_Packages")).unwrap();
    let stanza = "Package: aa\nVersion: 1\nArchitecture: all\n";
    fs::write(lists.join("c_dists_s_main_binary-amd64_Packages"), stanza).unwrap();
    let indexes = Indexes::read(root.path(), ["aa"]).unwrap();
    assert_eq!(indexes.versions("aa").len(), 1);
    let skipped: Vec<_> = indexes.skipped().iter().map(|s| (&*s.origin.site, s.path.parent())).collect();
    assert_eq!(skipped, [("a", Some(&*lists)), ("b", Some(&*lists))]);
    assert!(indexes.skipped().iter().all(|skipped| skipped.reason.starts_with("it cannot be read: ")));
    // Without the directory itself nothing is known of anything.
    fs::remove_dir_all(&lists).unwrap();
    fs::write(&lists, "").unwrap();
    assert_eq!(Indexes::read(root.path(), ["aa"]).unwrap_err().path, lists);
    assert!(Indexes::read(root.path(), [""; 0]).unwrap().origins().is_empty(), "nothing was asked for");
}

#[test]
fn stanzas_are_found_whatever_comes_first_and_wherever_a_piece_ends() {
    let text = b"Filename: x\nPackage: aa\nVersion: 1\nArchitecture: all\n\n\n\nPackage: bb\nVersion: 2\nArchitecture: all\n\n\
                 Version: 3\nArchitecture: all\nPackage:cc";
    for piece in 1..text.len() + 1 {
        let mut seen = Vec::new();
        scan(&text[..], piece.max(45), |part| {
            find(
                part,
                |_| true,
                |stanza, name| seen.push((name.to_owned(), stanza.text("Version").unwrap().into_owned())),
            );
        })
        .unwrap();
        let expected = [("aa", "1"), ("bb", "2"), ("cc", "3")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(seen, expected, "{piece}");
    }
}

#[test]
fn what_is_malformed_is_counted() {
    let mut indexes = Indexes { names: BTreeSet::from(["aa".to_owned()]), ..Indexes::default() };
    let text = "Package: aa\nArchitecture: all\n\nPackage: aa\nVersion: -\nArchitecture: all\n\nPackage: aa\nVersion: 1\n\n\
                Package: aa\nVersion: 1\nArchitecture: all\nSHA256: no\nSize: many\nPhased-Update-Percentage: 400\n";
    indexes.add(Origin::default(), text.as_bytes()).unwrap();
    assert_eq!((indexes.malformed(), indexes.versions("aa").len()), (3, 1));
    let only = &indexes.versions("aa")[0];
    assert_eq!((&only.sha256, only.size, only.phased_percentage), (&None, 0, None));
}

proptest! {
    #[test]
    fn any_change_of_a_real_index_is_survived(
        at in 0..PACKAGES.len(), cut in 0..200usize, what in proptest::collection::vec(any::<u8>(), 0..20), piece in 64..4096usize) {
        let mut text = PACKAGES.to_vec();
        text.splice(at..(at + cut).min(PACKAGES.len()), what);
        let mut found = 0;
        scan(&text[..], piece, |part| find(part, |_| true, |stanza, _| {
            indexed(stanza, 0);
            found += 1;
        })).unwrap();
        prop_assert!(found <= 40);
    }
}
