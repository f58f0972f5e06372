//! What this crate reads, compared with what dpkg's and apt's own programs say on the machine that runs the tests. Each
//! test is silent on a machine that does not have the program.

#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::{
    cmp::Ordering,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use patch_backends::apt::{Database, ExtendedStates, Inventory, info, versions};
use patch_types::api::PackageStatus;

/// What a program prints, in the C locale; none if there is no such program or it fails.
fn run(program: &str, arguments: &[&str], input: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "the comparison with the real tools")]
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take()?;
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().ok()?;
    writer.join().ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/apt/fixtures/root")
}

/// A deterministic source of numbers: a failure can be repeated.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn part(&mut self, alphabet: &[u8], length: usize) -> String {
        (0..self.below(length)).map(|_| char::from(alphabet[self.below(alphabet.len())])).collect()
    }

    fn version(&mut self) -> String {
        let epoch = ["", "", "", "0:", "1:", "12:"][self.below(6)];
        let upstream = self.part(b"0019aZ.~~+--", 8);
        let revision = match self.below(3) {
            0 => String::new(),
            _ => format!("-{}0", self.part(b"019a.~+", 5)),
        };
        format!("{epoch}{}{upstream}{revision}", self.below(3))
    }
}

#[test]
fn the_order_of_versions_is_dpkgs() {
    let mut numbers = Numbers(20_261_122);
    let mut pairs = Vec::new();
    for _ in 0..2000 {
        let a = numbers.version();
        // Half of the pairs differ in one place only: near misses find more than strangers do.
        let b = if numbers.below(2) == 0 {
            let at = numbers.below(a.len()) + 1;
            let after = (at + numbers.below(2)).min(a.len());
            format!("{}{}{}", &a[..at], numbers.part(b"01a.~+", 3), &a[after..])
        } else {
            numbers.version()
        };
        // What dpkg refuses as a version has no order.
        let refused = |v: &str| {
            let (epoch, rest) = v.split_once(':').unwrap_or(("0", v));
            epoch.parse::<u32>().is_err() || rest.is_empty() || rest.ends_with('-') || rest.starts_with('-')
        };
        if !refused(&a) && !refused(&b) {
            pairs.push((a, b));
        }
    }
    let mut script = String::new();
    for (a, b) in &pairs {
        writeln!(
            script,
            "if dpkg --compare-versions '{a}' lt '{b}'; then echo lt; elif dpkg --compare-versions '{a}' eq '{b}'; then echo eq; \
             elif dpkg --compare-versions '{a}' gt '{b}'; then echo gt; else echo refused; fi"
        )
        .unwrap();
    }
    if run("dpkg", &["--version"], "").is_none() {
        return;
    }
    let answers = run("sh", &[], &script).unwrap();
    let mut compared = 0;
    for ((a, b), answer) in pairs.iter().zip(answers.lines()) {
        let ours = match versions::compare(a, b) {
            Ordering::Less => "lt",
            Ordering::Equal => "eq",
            Ordering::Greater => "gt",
        };
        if answer != "refused" {
            compared += 1;
            assert_eq!(ours, answer, "{a} {b}");
        }
    }
    assert!(compared > 1500, "{compared}");
}

const FORMAT: &str = "${Package}\t${Architecture}\t${Version}\t${db:Status-Want}\t${db:Status-Eflag}\t${db:Status-Status}\t\
                      ${Installed-Size}\t${binary:Synopsis}\t${source:Package}\t${Section}\n";

/// Every package as `dpkg-query` prints it, compared with the database that was read.
fn compare_with_dpkg_query(admindir: &str, database: &Database) {
    let Some(output) = run("dpkg-query", &[&format!("--admindir={admindir}"), "-W", "-f", FORMAT], "") else {
        return;
    };
    let mut theirs: Vec<Vec<&str>> = output.lines().map(|l| l.split('\t').collect()).collect();
    theirs.retain(|fields| fields[5] != "not-installed");
    assert_eq!(theirs.len(), database.len());
    for fields in theirs {
        let package = database.find(fields[0], Some(fields[1])).unwrap();
        let status = serde_json::to_value(package.status()).unwrap();
        let flag = if package.reinstall_required() { "reinstreq" } else { "ok" };
        let ours = [
            package.architecture(),
            package.version_text(),
            flag,
            status.as_str().unwrap(),
            package.synopsis(),
        ];
        assert_eq!(ours, [fields[1], fields[2], fields[4], fields[5], fields[7]], "{}", fields[0]);
        assert_eq!(package.size(), fields[6].parse::<u64>().unwrap_or(0) * 1024, "{}", fields[0]);
        assert_eq!((package.source(), package.section()), (fields[8], fields[9]));
        assert_eq!(package.is_held(), fields[3] == "hold");
    }
}

#[test]
fn the_machines_packages_are_what_dpkg_query_says() {
    if let Ok(database) = Database::read(Path::new("/")) {
        assert_eq!(database.skipped(), 0);
        compare_with_dpkg_query("/var/lib/dpkg", &database);
    }
}

#[test]
fn a_database_with_unmerged_changes_is_what_dpkg_query_says() {
    let root = tempfile::tempdir().unwrap();
    let dpkg = root.path().join("var/lib/dpkg");
    fs::create_dir_all(dpkg.join("updates")).unwrap();
    fs::create_dir_all(dpkg.join("info")).unwrap();
    fs::copy(fixture().join("var/lib/dpkg/status"), dpkg.join("status")).unwrap();
    let compare = || compare_with_dpkg_query(&dpkg.to_string_lossy(), &Database::read(root.path()).unwrap());
    compare();
    let stanza = |name: &str, rest: &str| {
        format!("Package: {name}\n{rest}Maintainer: Test <t@test.invalid>\nDescription: changed\n")
    };
    for (number, text) in [
        stanza(
            "pa-lib",
            "Status: install ok unpacked\nArchitecture: all\nVersion: 1.1\nConfig-Version: 1.0\n",
        ),
        stanza(
            "pa-lib",
            "Status: install ok half-configured\nArchitecture: all\nVersion: 1.1\nConfig-Version: 1.0\n",
        ),
        stanza("pa-fresh", "Status: install reinstreq half-installed\nArchitecture: all\nVersion: 1\n"),
        stanza(
            "ex-multi",
            "Status: install ok unpacked\nArchitecture: i386\nMulti-Arch: same\nVersion: 1.0\n",
        ),
        "Package: pa-victim\nStatus: purge ok not-installed\nArchitecture: all\n".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        fs::write(dpkg.join(format!("updates/{number:04}")), text).unwrap();
        compare();
    }
    let database = Database::read(root.path()).unwrap();
    let audited: Vec<String> = database.audit().iter().map(|f| f.package.to_string()).collect();
    assert_eq!(audited, ["ex-multi:i386", "pa-fresh", "pa-lib"]);
    if let Some(audit) = run("dpkg", &[&format!("--admindir={}", dpkg.display()), "--audit"], "") {
        for name in audited {
            assert!(audit.contains(&name), "{name}: {audit}");
        }
    }
}

#[test]
fn automatic_marks_are_what_apt_mark_says() {
    let (Ok(inventory), Some(output)) = (Inventory::read(Path::new("/")), run("apt-mark", &["showauto"], ""))
    else {
        return;
    };
    let mut ours: Vec<String> = inventory
        .database
        .iter()
        .filter(|p| p.status() != PackageStatus::ConfigFiles && inventory.is_auto(*p))
        .filter_map(|p| p.package_name().map(String::from))
        .collect();
    ours.sort();
    let mut theirs: Vec<&str> = output.lines().collect();
    theirs.sort_unstable();
    assert_eq!(ours, theirs);
    assert!(ExtendedStates::read(&fixture()).unwrap().is_auto("ex-auto", "all", "amd64"));
}

#[test]
fn files_are_what_dpkg_query_lists() {
    let root = Path::new("/");
    let Ok(database) = Database::read(root) else { return };
    for name in ["dpkg", "libc6", "base-files"] {
        let (Some(package), Some(output)) =
            (database.find(name, None), run("dpkg-query", &["--listfiles", name], ""))
        else {
            continue;
        };
        let theirs: Vec<&str> = output.lines().filter(|l| l.starts_with('/') && *l != "/.").collect();
        assert_eq!(info::files(root, package).unwrap(), theirs, "{name}");
    }
}
