//! Going back with a real dpkg in a root that is an empty directory: packages without maintainer scripts, which would
//! need a shell there.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::Command,
};

use jiff::Timestamp;
use md5::{Digest as _, Md5};
use patch_types::Grade;

use super::*;
use crate::{
    apt::{
        argv::{self, Argv},
        lock::Frontend,
        snapshot::{Conffile, Content},
    },
    run,
};

/// Runs tools in the test's root. After `patience` runs it acts as if it had been killed.
struct Bench {
    log: Vec<String>,
    patience: usize,
    /// Kill dpkg itself after this time in the next run.
    cut: Option<std::time::Duration>,
}

impl Bench {
    fn new() -> Self {
        Self { log: Vec::new(), patience: usize::MAX, cut: None }
    }
}

impl Stage for Bench {
    fn run(&mut self, argv: Argv) -> Result<Option<i32>, RunError> {
        if self.patience == 0 {
            return Err(RunError::Slow { program: argv.program, limit: std::time::Duration::ZERO });
        }
        self.patience -= 1;
        self.log.push(argv.to_string());
        let limit = self.cut.take().unwrap_or(std::time::Duration::from_secs(60));
        match run::capture(&argv, limit) {
            Ok(captured) => {
                self.log.push(captured.text());
                Ok(captured.code)
            }
            Err(RunError::Slow { .. }) => {
                self.log.push("killed".into());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn fetch(&mut self, _: &[String], _: &Path) -> bool {
        false
    }

    fn say(&mut self, line: String) {
        self.log.push(line);
    }
}

/// What a package made for a test is like.
#[derive(Clone, Copy)]
struct Made<'a> {
    name: &'a str,
    version: &'a str,
    fields: &'a str,
    files: &'a [&'a str],
    conffiles: &'a [(&'a str, &'a str)],
}

const PLAIN: Made<'static> = Made { name: "", version: "1", fields: "", files: &[], conffiles: &[] };

/// A host to be changed and brought back.
struct Host {
    dir: tempfile::TempDir,
    gone: RefCell<BTreeSet<String>>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in [
            "root/var/lib/dpkg/info",
            "root/var/lib/dpkg/updates",
            "root/var/lib/apt/lists/partial",
            "root/var/cache/apt/archives/partial",
            "root/etc/apt/preferences.d",
            "root/etc/apt/apt.conf.d",
            "root/usr",
            "copies",
            "debs",
        ] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        fs::write(dir.path().join("root/var/lib/dpkg/status"), "").unwrap();
        Self { dir, gone: RefCell::default() }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    fn deb(&self, made: Made<'_>) -> PathBuf {
        let Made { name, version, fields, files, conffiles } = made;
        let tree = self.dir.path().join(format!("tree-{name}-{version}"));
        let deb = self.dir.path().join(format!("debs/{name}_{version}.deb"));
        if deb.exists() {
            return deb;
        }
        let write = |path: &str, text: &str| {
            let path = tree.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        };
        let control = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@x>\n{fields}Description: x\n"
        );
        write("DEBIAN/control", &control);
        let listed: Vec<&str> = conffiles.iter().map(|(path, _)| *path).collect();
        if !listed.is_empty() {
            write("DEBIAN/conffiles", &format!("{}\n", listed.join("\n")));
        }
        write(&format!("/usr/share/{name}/own"), version);
        files.iter().for_each(|file| write(file, &format!("{name} {version}")));
        conffiles.iter().for_each(|(path, text)| write(path, text));
        let built = Command::new("dpkg-deb")
            .args(["-b", "--root-owner-group", "-Znone"])
            .arg(&tree)
            .arg(&deb)
            .output()
            .unwrap();
        assert!(built.status.success(), "{built:?}");
        deb
    }

    fn dpkg(&self, args: &[&str]) -> String {
        let done = Command::new("dpkg")
            .arg(format!("--root={}", self.root().display()))
            .args(["--force-confdef", "--force-confold", "--force-depends", "--auto-deconfigure"])
            .args(args)
            .output()
            .unwrap();
        assert!(done.status.success(), "{args:?}: {done:?}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    fn install(&self, made: &[Made<'_>]) {
        let debs: Vec<String> = made.iter().map(|m| self.deb(*m).display().to_string()).collect();
        let mut args = vec!["-i"];
        args.extend(debs.iter().map(String::as_str));
        self.dpkg(&args);
    }

    /// Gives the root a shell, for maintainer scripts.
    fn shell(&self) {
        let libraries = Command::new("ldd").arg("/bin/sh").output().unwrap();
        let libraries = String::from_utf8(libraries.stdout).unwrap();
        let paths = libraries.split_whitespace().filter(|word| word.starts_with('/'));
        for path in paths.chain(["/bin/sh"]) {
            let to = self.at(path);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(path, to).unwrap();
        }
    }

    /// As [`deb`](Self::deb), with maintainer scripts.
    fn deb_with(&self, made: Made<'_>, scripts: &[(&str, &str)]) {
        let control = self.dir.path().join(format!("tree-{}-{}/DEBIAN", made.name, made.version));
        fs::create_dir_all(&control).unwrap();
        for (name, text) in scripts {
            let path = control.join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        self.deb(made);
    }

    /// A change that may fail.
    fn attempt(&self, args: &[&str]) -> bool {
        let root = format!("--root={}", self.root().display());
        Command::new("dpkg").arg(root).arg("--force-depends").args(args).output().unwrap().status.success()
    }

    fn run(&self, argv: &Argv) {
        let done = run::capture(argv, std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(done.code, Some(0), "{argv}: {}", done.text());
    }

    fn auto(&self, name: &str) {
        self.run(&argv::mark(&self.root(), &[name.to_owned()], true));
    }

    fn hold(&self, name: &str) {
        self.run(&argv::select(&self.root(), &[name.to_owned()], "hold").unwrap());
    }

    /// The snapshot before a change of `planned`; everything else that is there is a neighbour.
    fn snapshot(&self, planned: &[&str]) -> Snapshot {
        let root = self.root();
        let now = Now::read(&root).unwrap();
        let mut packages = BTreeMap::new();
        let mut affected = Vec::new();
        for p in now.database.iter() {
            let key = PackageKey { name: p.name().into(), architecture: p.architecture().into() };
            let status = status_word(p.status()).to_owned();
            let (version, want) = (p.version_text().to_owned(), want_word(p.want()).to_owned());
            let archive = p.is_present().then(|| Kept {
                file: format!("{}_{version}.deb", p.name()),
                grade: Grade::Exact,
                reason: String::new(),
            });
            let list = patch_backends::apt::info::files(&root, p).unwrap();
            let conffiles = p.conffiles().iter().map(|c| self.conffile(&c.path, &c.md5)).collect();
            let missing = list.iter().filter(|f| self.at(f).symlink_metadata().is_err()).cloned().collect();
            let planned = planned.contains(&p.name());
            affected.push(Affected {
                key: key.clone(),
                planned,
                archive,
                list,
                missing,
                conffiles,
                new_version: None,
            });
            packages.insert(key, Recorded { version, want, status, auto: now.is_auto(p) });
        }
        Snapshot {
            taken_at: Timestamp::UNIX_EPOCH,
            packages,
            affected,
            active_units: Vec::new(),
            administration: BTreeMap::new(),
        }
    }

    fn conffile(&self, path: &str, recorded: &str) -> Conffile {
        let file = self.at(path);
        let content = fs::read(&file).ok().map(|bytes| {
            let copy = path.replace('/', "_");
            fs::write(self.dir.path().join("copies").join(&copy), &bytes).unwrap();
            let metadata = file.metadata().unwrap();
            Content {
                md5: hex::encode(Md5::digest(&bytes)),
                copy: Some(copy),
                link: None,
                uid: metadata.uid(),
                gid: metadata.gid(),
                mode: metadata.mode() & 0o7777,
                xattrs: BTreeMap::new(),
            }
        });
        Conffile { path: path.into(), recorded_md5: Some(recorded.into()), content, siblings: Vec::new() }
    }

    fn going<T>(
        &self,
        snapshot: &Snapshot,
        scope: &[&str],
        after: Option<&After>,
        with: impl FnOnce(&Going<'_>) -> T,
    ) -> T {
        let root = self.root();
        let copies = self.dir.path().join("copies");
        let archive = |kept: &Kept| {
            let path = self.dir.path().join("debs").join(&kept.file);
            if self.gone.borrow().contains(&kept.file) {
                return Err(io::Error::other("it is not what was kept"));
            }
            path.metadata().map(|_| path)
        };
        let scope = scope.iter().map(|name| key(name)).collect();
        with(&Going { root: &root, snapshot, copies: &copies, archive: &archive, scope: &scope, after })
    }

    fn back(&self, snapshot: &Snapshot, scope: &[&str], after: Option<&After>) -> (Proof, Vec<String>) {
        self.going(snapshot, scope, after, |going| {
            let mut bench = Bench::new();
            let proof = go_back(going, &mut bench).unwrap();
            // Whatever came of it, once more changes nothing.
            let mut again = Bench::new();
            let second = go_back(going, &mut again).unwrap();
            assert_eq!(second.restored, proof.restored, "{:#?}", again.log);
            if proof.holds() {
                assert!(again.log.is_empty(), "{:#?}", again.log);
            }
            (proof, bench.log)
        })
    }

    /// Goes back and asserts that the host is as it was.
    #[track_caller]
    fn back_wholly(&self, snapshot: &Snapshot, scope: &[&str], planned: &[&str]) -> Proof {
        let (proof, log) = self.back(snapshot, scope, None);
        assert!(proof.holds(), "{proof:#?}\n{}", log.join("\n"));
        assert!(proof.commands.is_empty(), "{:?}", proof.commands);
        let now = self.snapshot(planned);
        assert_eq!(now.packages, snapshot.packages, "{}", log.join("\n"));
        assert_eq!(now.affected, snapshot.affected, "{}", log.join("\n"));
        let litter = Command::new("find")
            .arg(self.root())
            .args(["-name", "*.dpkg-*", "-o", "-name", "*.linux-patch-*"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&litter.stdout), "");
        proof
    }

    fn after(&self, snapshot: &Snapshot) -> After {
        let paths = snapshot.affected.iter().flat_map(|a| &a.conffiles).map(|c| c.path.clone());
        let md5 = |path: &String| fs::read(self.at(path)).ok().map(|b| hex::encode(Md5::digest(b)));
        After { versions: BTreeMap::new(), conffiles: paths.map(|p| (p.clone(), md5(&p))).collect() }
    }
}

fn key(name: &str) -> PackageKey {
    PackageKey { name: name.into(), architecture: "all".into() }
}

const A1: Made<'static> =
    Made { name: "lp-a", conffiles: &[("/etc/a.conf", "one\n"), ("/etc/b.conf", "one\n")], ..PLAIN };
const A2: Made<'static> =
    Made { version: "2", conffiles: &[("/etc/a.conf", "two\n"), ("/etc/b.conf", "two\n")], ..A1 };

#[test]
fn an_upgrade_and_a_downgrade_go_back_with_the_conffiles_and_without_litter() {
    for (from, to) in [(A1, A2), (A2, A1)] {
        let host = Host::new();
        host.install(&[from]);
        fs::write(host.at("/etc/a.conf"), "mine\n").unwrap();
        fs::set_permissions(host.at("/etc/a.conf"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(host.at("/etc/b.conf")).unwrap();
        let snapshot = host.snapshot(&["lp-a"]);
        host.install(&[to]);
        assert!(host.at("/etc/a.conf.dpkg-dist").exists());
        fs::write(host.at("/etc/b.conf"), "a maintainer script's\n").unwrap();
        let proof = host.back_wholly(&snapshot, &["lp-a"], &["lp-a"]);
        assert_eq!(proof.restored, [format!("lp-a {}", from.version)]);
        assert_eq!(host.text("/etc/a.conf").unwrap(), "mine\n");
    }
}

#[test]
fn what_was_installed_is_purged_and_what_was_left_of_it_stays() {
    let host = Host::new();
    host.install(&[A1]);
    host.dpkg(&["--remove", "lp-a"]);
    fs::write(host.at("/etc/a.conf"), "mine\n").unwrap();
    let scope = ["lp-a", "lp-new", "lp-dep"];
    let snapshot = host.snapshot(&scope);
    let new =
        Made { name: "lp-new", fields: "Depends: lp-dep\n", conffiles: &[("/etc/n.conf", "n\n")], ..PLAIN };
    host.install(&[A1, new, Made { name: "lp-dep", ..PLAIN }]);
    let proof = host.back_wholly(&snapshot, &scope, &scope);
    assert_eq!(proof.restored, ["lp-a not installed", "lp-dep not installed", "lp-new not installed"]);
    assert!(!host.at("/etc/n.conf").exists());
    assert_eq!(host.text("/etc/a.conf").unwrap(), "mine\n");
}

#[test]
fn what_was_removed_or_purged_comes_back_with_its_edited_conffile() {
    for verb in ["--remove", "--purge"] {
        let host = Host::new();
        host.install(&[A1]);
        fs::write(host.at("/etc/a.conf"), "mine\n").unwrap();
        fs::remove_file(host.at("/etc/b.conf")).unwrap();
        let snapshot = host.snapshot(&["lp-a"]);
        host.dpkg(&[verb, "lp-a"]);
        host.back_wholly(&snapshot, &["lp-a"], &["lp-a"]);
        assert_eq!(host.text("/etc/a.conf").unwrap(), "mine\n");
        assert_eq!(host.text("/etc/b.conf"), None);
    }
}

fn batch(version: &'static str) -> Vec<Made<'static>> {
    const NAMES: [&str; 10] =
        ["lp-b0", "lp-b1", "lp-b2", "lp-b3", "lp-b4", "lp-b5", "lp-b6", "lp-b7", "lp-b8", "lp-b9"];
    const FILES: [&str; 3] = ["/usr/share/x/1", "/usr/share/x/2", "/usr/share/x/3"];
    NAMES
        .iter()
        .enumerate()
        .map(|(i, name)| Made { name, version, files: if i == 0 { &FILES } else { &[] }, ..PLAIN })
        .collect()
}

#[test]
fn a_batch_goes_back_in_one_run_with_its_holds_and_marks_and_is_left_alone_once_it_is_back() {
    let host = Host::new();
    host.install(&batch("1"));
    let names: Vec<&str> = batch("1").iter().map(|m| m.name).collect();
    host.hold("lp-b3");
    host.auto("lp-b4");
    let snapshot = host.snapshot(&names);
    host.install(&batch("2"));
    host.run(&argv::mark(&host.root(), &["lp-b4".into()], false));
    host.auto("lp-b5");
    host.hold("lp-b6");
    host.back_wholly(&snapshot, &names, &names);
}

#[test]
fn only_the_scope_goes_back_and_the_rest_is_not_touched() {
    let host = Host::new();
    host.install(&batch("1"));
    let names: Vec<&str> = batch("1").iter().map(|m| m.name).collect();
    let snapshot = host.snapshot(&names);
    host.install(&batch("2"));
    let (proof, log) = host.back(&snapshot, &names[..4], None);
    assert!(proof.holds(), "{proof:#?} {log:#?}");
    let now = Now::read(&host.root()).unwrap();
    for (i, name) in names.iter().enumerate() {
        assert_eq!(now.find(&key(name)).unwrap().version_text(), if i < 4 { "1" } else { "2" });
    }
}

#[test]
fn the_right_version_in_a_wrong_state_is_not_taken_for_right() {
    let host = Host::new();
    host.install(&[A1]);
    let snapshot = host.snapshot(&["lp-a"]);
    let status = host.at("/var/lib/dpkg/status");
    let text = fs::read_to_string(&status).unwrap();
    fs::write(&status, text.replace("install ok installed", "install reinstreq half-installed")).unwrap();
    let before = host.going(&snapshot, &["lp-a"], None, prove).unwrap();
    assert!(before.left.iter().any(|l| l.contains("half-installed")), "{before:?}");
    assert!(before.commands.iter().any(|c| c.contains("lp-a_1.deb")), "{before:?}");
    host.back_wholly(&snapshot, &["lp-a"], &["lp-a"]);
}

#[test]
fn a_file_that_moved_between_packages_is_where_it_was() {
    // In both orders of names: dpkg unpacks in the order of the command line.
    for (from, to) in [("lp-a", "lp-b"), ("lp-b", "lp-a")] {
        let relations = format!("Replaces: {from} (<< 2)\nBreaks: {from} (<< 2)\n");
        let old = [
            Made { name: from, files: &["/usr/bin/moved", "/usr/bin/stays"], ..PLAIN },
            Made { name: to, ..PLAIN },
        ];
        let new = [
            Made { name: from, version: "2", files: &["/usr/bin/stays"], ..PLAIN },
            Made { name: to, version: "2", fields: &relations, files: &["/usr/bin/moved"], ..PLAIN },
        ];
        let host = Host::new();
        host.install(&old);
        let snapshot = host.snapshot(&["lp-a", "lp-b"]);
        host.install(&new);
        host.back_wholly(&snapshot, &["lp-a", "lp-b"], &["lp-a", "lp-b"]);
        assert_eq!(host.text("/usr/bin/moved").unwrap(), format!("{from} 1"));
    }
}

#[test]
fn a_neighbour_gets_the_file_back_that_a_new_package_had_taken_over() {
    let host = Host::new();
    let neighbour = Made {
        name: "lp-near",
        files: &["/usr/bin/moved"],
        conffiles: &[("/etc/near.conf", "near\n")],
        ..PLAIN
    };
    host.install(&[neighbour, Made { name: "lp-other", ..PLAIN }]);
    host.hold("lp-near");
    let snapshot = host.snapshot(&["lp-new"]);
    host.install(&[Made {
        name: "lp-new",
        fields: "Replaces: lp-near\n",
        files: &["/usr/bin/moved"],
        ..PLAIN
    }]);
    host.back_wholly(&snapshot, &["lp-new"], &["lp-new"]);
    assert_eq!(host.text("/usr/bin/moved").unwrap(), "lp-near 1");
}

#[test]
fn what_an_essential_package_needs_goes_after_the_old_one_is_back() {
    let host = Host::new();
    host.install(&[Made { name: "lp-ess", fields: "Essential: yes\n", ..PLAIN }]);
    let snapshot = host.snapshot(&["lp-ess", "lp-new"]);
    let new = Made { name: "lp-ess", version: "2", fields: "Essential: yes\nPre-Depends: lp-new\n", ..PLAIN };
    host.install(&[Made { name: "lp-new", ..PLAIN }, new]);
    let (proof, log) = host.back(&snapshot, &["lp-ess", "lp-new"], None);
    assert!(proof.holds(), "{proof:#?} {log:#?}");
    let at =
        |word: &str| log.iter().position(|l| l.starts_with("/usr/bin/dpkg") && l.contains(word)).unwrap();
    assert!(at("--install") < at("--purge"), "{log:#?}");
}

#[test]
fn an_attempt_that_is_cut_short_anywhere_is_ended_by_the_next_one() {
    let host = Host::new();
    let mut old = batch("1");
    old.push(A1);
    let mut scope: Vec<&str> = old.iter().map(|m| m.name).collect();
    scope.push("lp-new");
    host.install(&old);
    host.hold("lp-b3");
    host.auto("lp-b4");
    fs::write(host.at("/etc/a.conf"), "mine\n").unwrap();
    let snapshot = host.snapshot(&scope);
    let mut new = batch("2");
    new.extend([A2, Made { name: "lp-new", ..PLAIN }]);
    for patience in 1..4 {
        host.install(&new);
        host.going(&snapshot, &scope, None, |going| {
            let mut bench = Bench { patience, ..Bench::new() };
            let ended = go_back(going, &mut bench);
            assert!(ended.is_ok() || matches!(ended, Err(GoBackError::Run(_))));
        });
        host.back_wholly(&snapshot, &scope, &scope);
    }
    // dpkg itself is killed, at instants that are spread over its run.
    for milliseconds in [2, 8, 16, 30] {
        host.install(&new);
        host.going(&snapshot, &scope, None, |going| {
            let cut = Some(std::time::Duration::from_millis(milliseconds));
            let mut bench = Bench { cut, patience: 1, ..Bench::new() };
            let _ = go_back(going, &mut bench);
            let mut bench = Bench { cut, patience: 2, ..Bench::new() };
            let _ = go_back(going, &mut bench);
        });
        host.back_wholly(&snapshot, &scope, &scope);
    }
}

#[test]
fn without_its_archive_a_package_is_left_and_named_with_what_to_do() {
    let host = Host::new();
    host.install(&batch("1"));
    let names: Vec<&str> = batch("1").iter().map(|m| m.name).collect();
    let mut snapshot = host.snapshot(&names);
    host.install(&batch("2"));
    host.gone.borrow_mut().insert("lp-b0_1.deb".into());
    snapshot.affected[1].archive = None;
    let (proof, _) = host.back(&snapshot, &names, None);
    assert_eq!(proof.restored.len(), 8);
    let left = proof.left.join("\n");
    assert!(left.contains("lp-b0:all was at version 1 and is installed at version 2"), "{left}");
    assert!(
        left.contains("the kept archive of lp-b0:all 1 cannot be used: it is not what was kept"),
        "{left}"
    );
    assert!(left.contains("there is no kept archive of lp-b1:all 1"), "{left}");
    assert!(
        proof.commands.iter().any(|c| c == "apt-get install --allow-downgrades lp-b0=1"),
        "{:?}",
        proof.commands
    );
}

#[test]
fn what_was_edited_since_the_change_is_kept_and_the_old_put_beside() {
    let host = Host::new();
    host.install(&[A1]);
    fs::write(host.at("/etc/a.conf"), "mine\n").unwrap();
    let snapshot = host.snapshot(&["lp-a"]);
    host.install(&[A2]);
    let after = host.after(&snapshot);
    fs::write(host.at("/etc/a.conf"), "mine, later\n").unwrap();
    let (proof, log) = host.back(&snapshot, &["lp-a"], Some(&after));
    assert!(proof.holds(), "{proof:#?} {log:#?}");
    assert_eq!(proof.kept_edits, ["/etc/a.conf"]);
    assert_eq!(host.text("/etc/a.conf").unwrap(), "mine, later\n");
    assert_eq!(host.text("/etc/a.conf.linux-patch-before").unwrap(), "mine\n");
    assert_eq!(host.text("/etc/b.conf").unwrap(), "one\n");
    assert!(!host.at("/etc/a.conf.dpkg-dist").exists());
}

#[test]
fn a_purged_package_comes_back_on_request_without_its_conffiles_being_taken_for_edits() {
    let host = Host::new();
    host.install(&[A1]);
    fs::write(host.at("/etc/a.conf"), "mine\n").unwrap();
    let snapshot = host.snapshot(&["lp-a"]);
    host.dpkg(&["--purge", "lp-a"]);
    let after = host.after(&snapshot);
    let (proof, log) = host.back(&snapshot, &["lp-a"], Some(&after));
    assert!(proof.holds() && proof.kept_edits.is_empty(), "{proof:#?} {log:#?}");
    assert_eq!(host.text("/etc/a.conf").unwrap(), "mine\n");
}

#[test]
fn a_conffile_that_only_the_new_version_had_comes_again_with_it() {
    let host = Host::new();
    let old = Made { name: "lp-a", ..PLAIN };
    let new = Made { version: "2", conffiles: &[("/etc/new.conf", "new\n")], ..old };
    host.install(&[old]);
    let snapshot = host.snapshot(&["lp-a"]);
    host.install(&[new]);
    let (proof, log) = host.back(&snapshot, &["lp-a"], None);
    assert!(proof.holds(), "{proof:#?} {log:#?}");
    host.install(&[new]);
    assert_eq!(host.text("/etc/new.conf").unwrap(), "new\n");
}

#[test]
fn the_front_ends_lock_keeps_dpkg_and_apt_out_and_lets_ours_in() {
    let host = Host::new();
    host.install(&[A1]);
    let lock = Frontend::take(&host.root()).unwrap().unwrap();
    assert!(Frontend::take(&host.root()).unwrap().is_none());
    // Asking opens and closes the lock file, which would end a lock of this process.
    let holder = crate::apt::lock::holder(&host.root(), crate::apt::lock::Locks::Packages).unwrap();
    assert_eq!(holder.unwrap().pid, None);
    let theirs = Argv::new(
        "/usr/bin/dpkg",
        vec![format!("--root={}", host.root().display()), "--remove".into(), "lp-a".into()],
    );
    let limit = std::time::Duration::from_secs(60);
    let refused = run::capture(&theirs, limit).unwrap();
    assert!(refused.code == Some(2) && refused.text().contains("frontend lock"), "{}", refused.text());
    let task = argv::Task::Remove(patch_types::operation::Remove {
        name: "lp-a".parse().unwrap(),
        purge: false,
        autoremove: false,
    });
    let refused = run::capture(&argv::apply(&host.root(), &task, 1, None), limit).unwrap();
    assert!(refused.code == Some(100) && refused.text().contains("lock-frontend"), "{}", refused.text());
    host.run(&argv::discard(&host.root(), &["lp-a".into()], true));
    host.run(&argv::reinstate(&host.root(), &[host.deb(A1).display().to_string()], false));
    host.hold("lp-a");
    host.auto("lp-a");
    drop(lock);
    assert!(Frontend::take(&host.root()).unwrap().is_some());
}

#[test]
fn scripts_of_the_new_version_that_fail_do_not_keep_it() {
    // Each position in which a script of the bad version can fail; its prerm is got round by the old one's
    // `failed-upgrade`.
    for (script, text, args) in [
        ("postinst", "exit 1", &["-i"][..]),
        ("preinst", "exit 1", &["-i"]),
        ("prerm", "exit 1", &["-i"]),
        ("postrm", "[ \"$1\" != remove ]", &["-i"]),
        ("postinst", "kill -9 $PPID", &["-i"]),
    ] {
        let host = Host::new();
        host.shell();
        host.deb_with(A1, &[("prerm", "exit 0")]);
        host.install(&[A1]);
        fs::write(host.at("/etc/a.conf"), "mine\n").unwrap();
        let snapshot = host.snapshot(&["lp-a"]);
        host.deb_with(A2, &[(script, text)]);
        let deb = host.deb(A2).display().to_string();
        host.attempt(&["--force-confold", args[0], &deb]);
        host.attempt(&["--remove", "lp-a"]);
        host.back_wholly(&snapshot, &["lp-a"], &["lp-a"]);
    }
}

#[test]
fn an_old_version_that_refuses_is_told_honestly() {
    let host = Host::new();
    host.shell();
    host.deb_with(A1, &[("preinst", "[ \"$1\" != upgrade ]")]);
    host.install(&[A1, Made { name: "lp-b", ..PLAIN }]);
    let snapshot = host.snapshot(&["lp-a", "lp-b"]);
    host.install(&[A2, Made { name: "lp-b", version: "2", ..PLAIN }]);
    let (proof, log) = host.back(&snapshot, &["lp-a", "lp-b"], None);
    assert_eq!(proof.restored, ["lp-b 1"], "{log:#?}");
    assert!(proof.left[0].contains("lp-a:all was at version 1 and is installed at version 2"), "{proof:?}");
    assert!(proof.commands.iter().any(|c| c.contains("--install") && c.ends_with("lp-a_1.deb")), "{proof:?}");
}

#[test]
fn edits_of_a_new_packages_conffiles_are_not_purged_with_it() {
    let host = Host::new();
    let snapshot = host.snapshot(&["lp-a"]);
    host.install(&[A1]);
    let after = host.after(&snapshot);
    fs::write(host.at("/etc/a.conf"), "work\n").unwrap();
    let root = host.root();
    let scope = [key("lp-a")].into_iter().collect();
    let archive = |_: &Kept| Err(io::Error::other("there is none"));
    let going = Going {
        root: &root,
        snapshot: &snapshot,
        copies: &root,
        archive: &archive,
        scope: &scope,
        after: Some(&after),
    };
    let proof = go_back(&going, &mut Bench::new()).unwrap();
    assert!(proof.holds(), "{proof:?}");
    assert_eq!(proof.kept_edits, ["/etc/a.conf.linux-patch-edited"]);
    assert_eq!(host.text("/etc/a.conf.linux-patch-edited").unwrap(), "work\n");
    assert!(!host.at("/etc/a.conf").exists());
}

#[test]
fn an_obsolete_conffile_of_a_purged_package_comes_back_as_a_file() {
    let host = Host::new();
    host.install(&[A1]);
    let newer = Made { version: "3", conffiles: &[("/etc/a.conf", "three\n")], ..A1 };
    host.install(&[newer]);
    fs::write(host.at("/etc/b.conf"), "mine\n").unwrap();
    let snapshot = host.snapshot(&["lp-a"]);
    host.dpkg(&["--purge", "lp-a"]);
    let (proof, log) = host.back(&snapshot, &["lp-a"], None);
    assert!(proof.holds(), "{proof:#?} {log:#?}");
    assert_eq!(host.text("/etc/b.conf").unwrap(), "mine\n");
}

#[test]
fn each_want_comes_back_also_where_nothing_else_changed() {
    let host = Host::new();
    host.install(&batch("1")[..4]);
    let names: Vec<&str> = batch("1")[..4].iter().map(|m| m.name).collect();
    for (name, want) in names.iter().zip(["install", "hold", "deinstall", "purge"]) {
        host.run(&argv::select(&host.root(), &[(*name).to_owned()], want).unwrap());
    }
    let snapshot = host.snapshot(&names);
    for (name, want) in names.iter().zip(["hold", "install", "install", "hold"]) {
        host.run(&argv::select(&host.root(), &[(*name).to_owned()], want).unwrap());
    }
    host.back_wholly(&snapshot, &names, &names);
}
