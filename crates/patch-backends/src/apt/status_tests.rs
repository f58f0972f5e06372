use proptest::prelude::*;

use super::*;

const REAL: &[u8] = include_bytes!("fixtures/root/var/lib/dpkg/status");
const BROKEN: &[u8] = include_bytes!("fixtures/status-broken");

const MADE: &str = "\
Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.21\nEssential: yes\nDescription: d\n\n\
Package: libx\nStatus: install ok installed\nArchitecture: i386\nMulti-Arch: same\nVersion: 1:2.0-1\nSource: xsource (2.0)\n\n\
Package: libx\nStatus: hold ok installed\nArchitecture: amd64\nMulti-Arch: same\nVersion: 1:2.0-1\nInstalled-Size: 12\n\
Depends: libc6 (>= 2.34),\n debconf | debconf-2.0\nConffiles:\n /etc/a file.conf 0123456789abcdef0123456789abcdef\n\
\x20/etc/old 0123456789abcdef0123456789abcdef obsolete\n /etc/new newconffile\nDescription: first line\n second\n .\n  third\n\
Homepage: https://example.org\nProtected: yes\n\n\
Package: foreign\nStatus: install ok installed\nArchitecture: i386\nVersion: 1\n\n\
Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 3\n\n\
Package: wish\nStatus: install ok not-installed\nArchitecture: all\n\n\
Package: bad name\nStatus: install ok installed\n\n\
Status: install ok installed\n\n\
Package: halfinst\nStatus: install reinstreq half-installed\nArchitecture: amd64\nConfig-Version: 0.9\n\n\
Package: unpacked\nStatus: install ok unpacked\nArchitecture: amd64\nVersion: 1\n\n\
Package: halfconf\nStatus: install ok half-configured\nArchitecture: amd64\nVersion: 1\n\n\
Package: awaits\nStatus: install ok triggers-awaited\nArchitecture: amd64\nVersion: 1\n\n\
Package: pending\nStatus: install ok triggers-pending\nArchitecture: amd64\nVersion: 1\n\n\
Package: strange\nStatus: install ok confused\nArchitecture: amd64\nVersion: 1\n";

fn made() -> Database {
    Database::parse(MADE.as_bytes())
}

fn get<'a>(database: &'a Database, name: &str) -> Option<Installed<'a>> {
    database.get(&name.parse().unwrap())
}

#[test]
fn names_mean_the_native_package_or_the_one_there_is() {
    let database = made();
    assert_eq!(database.native(), "amd64");
    for (name, architecture) in [
        ("libx", Some("amd64")),
        ("libx:amd64", Some("amd64")),
        ("libx:i386", Some("i386")),
        ("libx:armhf", None),
        ("foreign", Some("i386")),
        ("foreign:amd64", None),
        ("gone:amd64", Some("all")),
        ("wish", None),
        ("nothing", None),
    ] {
        assert_eq!(get(&database, name).map(Installed::architecture), architecture, "{name}");
    }
    let names: Vec<_> = database.iter().filter_map(Installed::package_name).map(String::from).collect();
    assert_eq!(
        names,
        [
            "awaits",
            "dpkg",
            "foreign:i386",
            "gone",
            "halfconf",
            "halfinst",
            "libx",
            "libx:i386",
            "pending",
            "strange",
            "unpacked"
        ]
    );
    assert_eq!(database.skipped(), 2);
}

#[test]
fn fields_are_read() {
    let database = made();
    let package = get(&database, "libx").unwrap();
    assert!(package.is_held() && package.protected() && !package.essential() && package.multi_arch_same());
    assert_eq!((package.size(), package.synopsis()), (12 * 1024, "first line"));
    assert_eq!(package.long_description(), "second\n\n third");
    assert_eq!(package.relations().depends, ["libc6 (>= 2.34)", "debconf | debconf-2.0"]);
    assert_eq!(package.homepage(), "https://example.org");
    let conffiles = package.conffiles();
    assert_eq!(
        conffiles.iter().map(|c| (&*c.path, c.obsolete)).collect::<Vec<_>>(),
        [("/etc/a file.conf", false), ("/etc/old", true), ("/etc/new", false)]
    );
    assert_eq!(get(&database, "libx:i386").unwrap().source(), "xsource");
    assert_eq!(package.source(), "libx");
    let api = package.to_api(true, Some("9".parse().unwrap())).unwrap();
    assert_eq!(
        (api.name.as_str(), api.version.as_str(), api.upgradable, api.held),
        ("libx", "1:2.0-1", true, true)
    );
}

#[test]
fn the_audit_names_what_is_not_in_order() {
    let findings = made().audit();
    let found: Vec<_> =
        findings.iter().map(|f| (f.package.as_str(), f.status, f.reinstall_required)).collect();
    assert_eq!(
        found,
        [
            ("awaits", PackageStatus::TriggersAwaited, false),
            ("halfconf", PackageStatus::HalfConfigured, false),
            ("halfinst", PackageStatus::HalfInstalled, true),
            ("pending", PackageStatus::TriggersPending, false),
            ("strange", PackageStatus::HalfInstalled, false),
            ("unpacked", PackageStatus::Unpacked, false),
        ]
    );
    assert_eq!(findings[2].version, "0.9");
    assert!(Database::parse(REAL).audit().is_empty());
    let broken = Database::parse(BROKEN).audit();
    assert_eq!(broken.iter().map(|f| f.package.as_str()).collect::<Vec<_>>(), ["pa-postfail"]);
}

fn root_with(status: &str, updates: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join(UPDATES)).unwrap();
    fs::write(root.path().join(STATUS), status).unwrap();
    for (name, text) in updates {
        fs::write(root.path().join(UPDATES).join(name), text).unwrap();
    }
    root
}

#[test]
fn unmerged_changes_are_applied_in_their_order() {
    let stanza = |name: &str, status: &str, version: &str| {
        format!("Package: {name}\nStatus: {status}\nArchitecture: amd64\nVersion: {version}\n")
    };
    let root = root_with(
        MADE,
        &[
            ("0001", &stanza("unpacked", "install ok half-configured", "2")),
            ("0000", &stanza("unpacked", "install ok unpacked", "2")),
            ("0002", &stanza("fresh", "install ok installed", "5")),
            ("0003", "Package: gone\nStatus: purge ok not-installed\nArchitecture: all\n"),
            ("tmp.i", &stanza("scratch", "install ok installed", "1")),
        ],
    );
    let database = Database::read(root.path()).unwrap();
    let unpacked = get(&database, "unpacked").unwrap();
    assert_eq!((unpacked.status(), unpacked.version_text()), (PackageStatus::HalfConfigured, "2"));
    assert!(
        get(&database, "fresh").is_some()
            && get(&database, "gone").is_none()
            && get(&database, "scratch").is_none()
    );
    assert_eq!((database.pending_updates(), database.len()), (4, made().len()));
    // A package of another architecture is replaced, unless the two can stand side by side.
    let cross = "Package: foreign\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2\n\n\
                 Package: libx\nStatus: install ok installed\nArchitecture: i386\nMulti-Arch: same\nVersion: 3\n";
    let database = Database::read(root_with(MADE, &[("0000", cross)]).path()).unwrap();
    assert_eq!(database.named("foreign").map(Installed::architecture).collect::<Vec<_>>(), ["amd64"]);
    assert_eq!(database.named("libx").map(Installed::version_text).collect::<Vec<_>>(), ["1:2.0-1", "3"]);
}

#[test]
fn a_change_that_cannot_be_read_is_not_passed_over() {
    let stanza = "Package: fresh\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5\n";
    let root = root_with(MADE, &[("0000", stanza), ("0001", "Status: install ok installed\n")]);
    let updates = root.path().join(UPDATES);
    // A running dpkg has merged it between the listing and the reading.
    std::os::unix::fs::symlink("merged", updates.join("0002")).unwrap();
    let database = Database::read(root.path()).unwrap();
    assert!(get(&database, "fresh").is_some());
    assert_eq!((database.pending_updates(), database.skipped()), (2, made().skipped() + 1));
    fs::create_dir(updates.join("0003")).unwrap();
    assert_eq!(Database::read(root.path()).unwrap_err().path, updates.join("0003"));
    fs::remove_dir_all(&updates).unwrap();
    assert!(get(&Database::read(root.path()).unwrap(), "fresh").is_none());
    fs::write(&updates, "").unwrap();
    assert_eq!(Database::read(root.path()).unwrap_err().path, updates);
}

#[test]
fn a_stamp_tells_a_change_and_the_compact_form_is_small() {
    let root = root_with(MADE, &[]);
    let database = Database::read_for_list(root.path()).unwrap();
    assert_eq!(database.stamp(), Some(DatabaseStamp::now(root.path())));
    let package = get(&database, "libx").unwrap();
    assert_eq!((package.long_description().as_str(), package.conffiles().len()), ("", 0));
    assert_eq!((package.synopsis(), package.relations().depends.len()), ("first line", 2));
    let whole = Database::read(root.path()).unwrap();
    assert!(!database.is_empty() && database.memory() < whole.memory() && whole.memory() > MADE.len());
    assert!(Database::parse(b"").is_empty());
    fs::write(root.path().join(STATUS), format!("{MADE}\n")).unwrap();
    assert_ne!(database.stamp(), Some(DatabaseStamp::now(root.path())));
    assert!(Database::read(Path::new("/nonexistent")).unwrap_err().to_string().contains("lib/dpkg/status"));
}

#[test]
fn without_dpkg_the_native_architecture_is_declared_or_the_commonest() {
    let status = "Package: aa\nStatus: install ok installed\nArchitecture: arm64\nVersion: 1\n";
    assert_eq!(Database::parse(status.as_bytes()).native(), "arm64");
    let root = root_with(status, &[]);
    fs::write(root.path().join("var/lib/dpkg/arch"), "armhf\narm64\n").unwrap();
    assert_eq!(Database::read(root.path()).unwrap().native(), "armhf");
    assert_eq!(Database::parse(b"").native(), "");
}

fn use_all(database: &Database) {
    for package in database.iter() {
        let _ = (package.relations(), package.conffiles(), package.long_description(), package.problem());
        let _ = (package.to_api(false, None), database.find(package.name(), None), package.source());
    }
    let _ = database.audit();
}

proptest! {
    #[test]
    fn any_bytes_make_a_database(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        use_all(&Database::parse(&text));
    }

    #[test]
    fn any_change_of_a_real_file_makes_a_database(
        at in 0..REAL.len(), cut in 0..400usize, what in proptest::collection::vec(any::<u8>(), 0..20)) {
        let mut text = REAL.to_vec();
        text.splice(at..(at + cut).min(REAL.len()), what);
        let database = Database::parse(&text);
        use_all(&database);
        // At most the stanzas around the change are lost, none is invented.
        prop_assert!(database.len() + 6 >= Database::parse(REAL).len());
    }
}
