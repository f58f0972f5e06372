//! `cargo xtask dist`: what is shipped: the Debian packages, a tarball with an installer, the bill of materials, and the
//! sums of them all.

use std::{
    fs,
    io::IsTerminal as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{sbom, workspace};

/// Options of `dist`.
#[derive(Debug, Args)]
pub(crate) struct Dist {
    /// Build without optimisation, as the tests do: quick, and nothing to ship.
    #[arg(long)]
    dev: bool,
    /// Directory that the packages are put into.
    #[arg(long, default_value = "dist")]
    out: PathBuf,
    /// The packages' version, in place of the workspace's.
    #[arg(long)]
    version: Option<String>,
}

/// The versions under which the tests get the same programs twice, so that upgrades and downgrades can be tested.
pub(crate) const TEST_VERSIONS: (&str, &str) = ("0.0.1", env!("CARGO_PKG_VERSION"));

/// Which build of the programs goes into the packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to build; for the demonstration.
    Dev,
    /// The same, out of one build with all tests, so that nothing is compiled twice.
    Test,
    /// What is shipped.
    Release,
}

/// The packages that were built.
#[derive(Debug, Clone)]
pub(crate) struct Packages {
    /// The agent with its root side.
    pub(crate) agent: PathBuf,
    /// The operator's command line.
    pub(crate) patchctl: PathBuf,
    /// Everything, for hosts where packages cannot be used.
    pub(crate) tarball: PathBuf,
    /// What the programs are made of.
    pub(crate) sbom: PathBuf,
    /// The sums of the others.
    pub(crate) sums: PathBuf,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Dist) -> Result<()> {
    let profile = if args.dev { Profile::Dev } else { Profile::Release };
    let built = build(profile, &workspace::root()?.join(&args.out), args.version.as_deref())?;
    for path in [&built.agent, &built.patchctl, &built.tarball, &built.sbom, &built.sums] {
        println!("{}", path.display());
    }
    Ok(())
}

/// Builds the programs and puts everything that is shipped into `out`. `version` overrides the workspace's, for tests of
/// upgrades.
///
/// # Errors
/// When cargo or dpkg-deb fails, or a file of the package is missing.
pub(crate) fn build(profile: Profile, out: &Path, version: Option<&str>) -> Result<Packages> {
    let built = programs(profile)?;
    pack(&workspace::root()?, &built, out, version.unwrap_or(env!("CARGO_PKG_VERSION")))
}

/// Builds the programs; gives the directory that they are in.
///
/// # Errors
/// When cargo fails.
pub(crate) fn programs(profile: Profile) -> Result<PathBuf> {
    let mut cargo = Command::new(workspace::cargo());
    cargo.current_dir(workspace::root()?).args(["build", "--locked"]);
    if !std::io::stderr().is_terminal() {
        cargo.arg("--quiet");
    }
    if profile == Profile::Test {
        cargo.args(["--workspace", "--all-targets"]);
    } else {
        cargo.args(["-p", "linux-patch-api", "-p", "patch-executor", "-p", "patch-host", "-p", "patchctl"]);
    }
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    ensure!(cargo.status().context("cannot start cargo")?.success(), "the programs could not be built");
    Ok(workspace::target()?.join(if profile == Profile::Release { "release" } else { "debug" }))
}

fn pack(root: &Path, built: &Path, out: &Path, version: &str) -> Result<Packages> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let architecture = text_of("dpkg", &["--print-architecture"])?;
    let programs =
        ["linux-patch-api", "patch-executor", "linux-patch-host", "patchctl"].map(|name| built.join(name));
    let libc = needed_libc(&programs)?;
    let date = source_date(root)?;
    let made = tempfile::tempdir().context("cannot make a directory for the manuals")?;
    let of_agent = spoken(
        &[
            (built.join("linux-patch-api"), "linux-patch-api"),
            (built.join("linux-patch-host"), "linux-patch-host"),
        ],
        made.path(),
    )?;
    // The one page that no grammar makes: the root side reads its few words by hand.
    let by_hand = made.path().join("patch-executor.8");
    fs::copy(root.join("packaging/man/patch-executor.8"), &by_hand)
        .context("cannot read packaging/man/patch-executor.8")?;
    let of_executor = zipped(&by_hand)?;
    let of_patchctl = spoken(&[(built.join("patchctl"), "patchctl")], made.path())?;

    let agent = Package {
        name: "linux-patch-api",
        depends: format!(
            "libc6 (>= {libc}), libgcc-s1, apt (>= 2.2), dpkg (>= 1.20), init-system-helpers (>= 1.54), systemd | systemd-standalone-sysusers | passwd"
        ),
        recommends: "systemd (>= 247), tzdata",
        summary: "agent for remote patching with a mutually authenticated API",
        description: &[
            "Lists, installs, updates, holds and removes packages, applies patches, and",
            "streams its jobs over a REST API with TLS 1.3 and client certificates. The",
            "process on the network has no root; a small root side does the work, one",
            "operation a process, and keeps going when the other one dies.",
        ],
        files: files(
            vec![
                (built.join("linux-patch-api"), "usr/bin/linux-patch-api", 0o755),
                (built.join("patch-executor"), "usr/libexec/linux-patch-api/patch-executor", 0o755),
                (built.join("linux-patch-host"), "usr/sbin/linux-patch-host", 0o755),
                (
                    root.join("packaging/systemd/linux-patch-api.service"),
                    "lib/systemd/system/linux-patch-api.service",
                    0o644,
                ),
                (
                    root.join("packaging/systemd/linux-patch-executor.socket"),
                    "lib/systemd/system/linux-patch-executor.socket",
                    0o644,
                ),
                (
                    root.join("packaging/systemd/linux-patch-executor@.service"),
                    "lib/systemd/system/linux-patch-executor@.service",
                    0o644,
                ),
                (
                    root.join("packaging/systemd/linux-patch-arrive.service"),
                    "lib/systemd/system/linux-patch-arrive.service",
                    0o644,
                ),
                (
                    root.join("packaging/systemd/linux-patch-executor-recover.service"),
                    "lib/systemd/system/linux-patch-executor-recover.service",
                    0o644,
                ),
                (
                    root.join("packaging/systemd/linux-patch-reboot-window.service"),
                    "lib/systemd/system/linux-patch-reboot-window.service",
                    0o644,
                ),
                (
                    root.join("packaging/systemd/linux-patch-reboot-window.timer"),
                    "lib/systemd/system/linux-patch-reboot-window.timer",
                    0o644,
                ),
                (
                    root.join("packaging/systemd/linux-patch-notify.service"),
                    "lib/systemd/system/linux-patch-notify.service",
                    0o644,
                ),
                (
                    root.join("packaging/systemd/linux-patch-notify.timer"),
                    "lib/systemd/system/linux-patch-notify.timer",
                    0o644,
                ),
                (
                    root.join("packaging/systemd/linux-patch-policy.service"),
                    "lib/systemd/system/linux-patch-policy.service",
                    0o644,
                ),
                (
                    root.join("packaging/systemd/linux-patch-policy.timer"),
                    "lib/systemd/system/linux-patch-policy.timer",
                    0o644,
                ),
                (of_executor, "usr/share/man/man8/patch-executor.8.gz", 0o644),
                (
                    root.join("packaging/systemd/sysusers.conf"),
                    "usr/lib/sysusers.d/linux-patch-api.conf",
                    0o644,
                ),
                (
                    root.join("packaging/needrestart/linux-patch-api.conf"),
                    "etc/needrestart/conf.d/linux-patch-api.conf",
                    0o644,
                ),
                (root.join("packaging/config/config.yaml"), "etc/linux_patch_api/config.yaml", 0o644),
                (root.join("packaging/config/whitelist.yaml"), "etc/linux_patch_api/whitelist.yaml", 0o644),
                (
                    root.join("packaging/config/config.yaml"),
                    "usr/share/doc/linux-patch-api/examples/config.yaml",
                    0o644,
                ),
                (
                    root.join("packaging/config/whitelist.yaml"),
                    "usr/share/doc/linux-patch-api/examples/whitelist.yaml",
                    0o644,
                ),
                (
                    root.join("packaging/config/ceiling.yaml.example"),
                    "usr/share/doc/linux-patch-api/examples/ceiling.yaml",
                    0o644,
                ),
                (
                    root.join("packaging/config/linux-patch-reboot-window.example"),
                    "usr/share/doc/linux-patch-api/examples/linux-patch-reboot-window",
                    0o644,
                ),
                (
                    root.join("packaging/apparmor/usr.bin.linux-patch-api"),
                    "etc/apparmor.d/usr.bin.linux-patch-api",
                    0o644,
                ),
                (
                    root.join("packaging/monitoring/linux-patch-api.rules.yml"),
                    "usr/share/doc/linux-patch-api/monitoring/linux-patch-api.rules.yml",
                    0o644,
                ),
                (
                    root.join("packaging/monitoring/grafana-dashboard.json"),
                    "usr/share/doc/linux-patch-api/monitoring/grafana-dashboard.json",
                    0o644,
                ),
            ],
            of_agent,
        ),
        overrides: Some(root.join("packaging/deb/linux-patch-api.lintian-overrides")),
        scripts: vec![
            (root.join("packaging/deb/linux-patch-api.postinst"), "postinst"),
            (root.join("packaging/deb/linux-patch-api.prerm"), "prerm"),
            (root.join("packaging/deb/linux-patch-api.postrm"), "postrm"),
        ],
    };
    let patchctl = Package {
        name: "patchctl",
        depends: format!("libc6 (>= {libc}), libgcc-s1"),
        recommends: "ca-certificates",
        summary: "command line for linux-patch-api agents",
        description: &[
            "Lists packages and patches of a host, applies them, and watches the job live.",
            "Prints tables for people and JSON for programs.",
        ],
        files: files(vec![(built.join("patchctl"), "usr/bin/patchctl", 0o755)], of_patchctl),
        overrides: None,
        scripts: Vec::new(),
    };
    let copyright = root.join("packaging/deb/copyright");
    let release = Release { out, version, architecture: &architecture, date: &date };
    let tarball = release.tarball(root, agent.files.iter().chain(&patchctl.files))?;
    let bill = out.join(format!("linux-patch_{version}.cdx.json"));
    fs::write(&bill, sbom::document(version, &date)?).context("cannot write the bill of materials")?;
    let agent = agent.pack(&release, &copyright)?;
    let patchctl = patchctl.pack(&release, &copyright)?;
    let sums = out.join("SHA256SUMS");
    fs::write(&sums, sums_of(out, &[&agent, &patchctl, &tarball, &bill])?)
        .context("cannot write SHA256SUMS")?;
    Ok(Packages { agent, patchctl, tarball, sbom: bill, sums })
}

/// A file: from where, to where below the root, with which mode.
type Entry = (PathBuf, String, u32);

fn files(own: Vec<(PathBuf, &str, u32)>, further: Vec<Entry>) -> Vec<Entry> {
    own.into_iter().map(|(from, to, mode)| (from, to.to_owned(), mode)).chain(further).collect()
}

/// What the programs say about themselves: manual pages and completions, written below `dir`.
fn spoken(programs: &[(PathBuf, &str)], dir: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (program, name) in programs {
        let pages = dir.join(name);
        let call = program.to_str().context("the build directory's name is not UTF-8")?;
        text_of(
            call,
            &["man", "--directory", pages.to_str().context("a temporary directory's name is not UTF-8")?],
        )?;
        let mut found: Vec<_> = fs::read_dir(&pages)?.collect::<Result<_, _>>()?;
        found.sort_by_key(fs::DirEntry::file_name);
        for page in found {
            let file = page.file_name().to_string_lossy().into_owned();
            let section = file.rsplit('.').next().unwrap_or_default().to_owned();
            entries.push((zipped(&page.path())?, format!("usr/share/man/man{section}/{file}.gz"), 0o644));
        }
        for (shell, to) in [
            ("bash", format!("usr/share/bash-completion/completions/{name}")),
            ("zsh", format!("usr/share/zsh/vendor-completions/_{name}")),
            ("fish", format!("usr/share/fish/vendor_completions.d/{name}.fish")),
        ] {
            let path = dir.join(format!("{name}.{shell}"));
            fs::write(&path, text_of(call, &["completions", shell])? + "\n")?;
            entries.push((path, to, 0o644));
        }
    }
    Ok(entries)
}

/// Compresses a file in place, without its name and time, so that the same text gives the same bytes.
fn zipped(path: &Path) -> Result<PathBuf> {
    let status = Command::new("gzip").arg("-9nf").arg(path).status().context("cannot start gzip")?;
    ensure!(status.success(), "gzip {} failed", path.display());
    Ok(PathBuf::from(format!("{}.gz", path.display())))
}

/// Seconds since 1970 that files are dated with: the last commit's, so that the same sources give the same packages.
fn source_date(root: &Path) -> Result<String> {
    if let Ok(set) = std::env::var("SOURCE_DATE_EPOCH") {
        return Ok(set);
    }
    let output = Command::new("git").current_dir(root).args(["log", "-1", "--format=%ct"]).output();
    let said = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    if said.is_empty() { text_of("date", &["+%s"]) } else { Ok(said) }
}

/// The sums of files in `dir`, as `sha256sum --check` reads them.
fn sums_of(dir: &Path, files: &[&PathBuf]) -> Result<String> {
    let names: Vec<_> =
        files.iter().map(|path| path.strip_prefix(dir).map(Path::as_os_str)).collect::<Result<_, _>>()?;
    let output =
        Command::new("sha256sum").current_dir(dir).args(names).output().context("cannot start sha256sum")?;
    ensure!(output.status.success(), "sha256sum failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// What all that is shipped has in common.
struct Release<'a> {
    out: &'a Path,
    version: &'a str,
    architecture: &'a str,
    /// Seconds since 1970.
    date: &'a str,
}

impl Release<'_> {
    /// The files below `files/`, the installer, the licences, and the sums that the installer checks.
    fn tarball<'a>(&self, root: &Path, files: impl Iterator<Item = &'a Entry>) -> Result<PathBuf> {
        let stage = tempfile::tempdir().context("cannot make a directory to pack in")?;
        let name = format!("linux-patch-{}-{}", self.version, self.architecture);
        let tree = stage.path().join(&name);
        for (from, to, mode) in files {
            put(from, &tree, &format!("files/{to}"), *mode)?;
        }
        for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
            put(
                &root.join(licence),
                &tree,
                &format!("files/usr/share/doc/linux-patch-api/{licence}"),
                0o644,
            )?;
        }
        put(&root.join("packaging/install.sh"), &tree, "install.sh", 0o755)?;
        // By it the installer tells an upgrade from a downgrade.
        let version = tree.join("files/usr/libexec/linux-patch-api/VERSION");
        fs::write(&version, format!("{}\n", self.version))
            .with_context(|| format!("cannot write {}", version.display()))?;
        let mut all = Vec::new();
        list(&tree, &mut all)?;
        all.sort();
        fs::write(tree.join("SHA256SUMS"), sums_of(&tree, &all.iter().collect::<Vec<_>>())?)?;
        let tarball = self.out.join(format!("{name}.tar.gz"));
        let output = Command::new("tar")
            .args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"])
            .arg(format!("--mtime=@{}", self.date))
            .arg("--use-compress-program=gzip -1n")
            .arg("--file")
            .arg(&tarball)
            .arg("--directory")
            .arg(stage.path())
            .arg(&name)
            .output()
            .context("cannot start tar")?;
        ensure!(output.status.success(), "tar failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(tarball)
    }

    /// Debian's form of a changelog; what changed stands in ours.
    fn changelog(&self, package: &str) -> Result<String> {
        let date = text_of("date", &["--utc", "--rfc-email", &format!("--date=@{}", self.date)])?;
        let version = self.version;
        Ok(format!(
            "{package} ({version}) unstable; urgency=medium\n\n  * The changes are in CHANGELOG.md of the sources.\n\n \
             -- {MAINTAINER}  {date}\n"
        ))
    }
}

fn list(dir: &Path, all: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), all)?;
        } else {
            all.push(entry.path());
        }
    }
    Ok(())
}

/// No address is promised; the sources say where to report.
const MAINTAINER: &str = "The linux-patch authors <maintainers@linux-patch.invalid>";

/// The newest version of glibc's symbols that the programs use: an older library cannot run them, a newer one can.
fn needed_libc(programs: &[PathBuf]) -> Result<String> {
    let mut newest = (2, 17);
    for program in programs {
        let path = program.to_str().context("the build directory's name is not UTF-8")?;
        for word in text_of("objdump", &["--dynamic-syms", path])?.split([' ', '\t', '(', ')', '\n']) {
            let version = word.strip_prefix("GLIBC_").and_then(|v| v.split_once('.'));
            if let Some((Ok(major), Ok(minor))) = version.map(|(major, minor)| (major.parse(), minor.parse()))
            {
                newest = newest.max((major, minor));
            }
        }
    }
    Ok(format!("{}.{}", newest.0, newest.1))
}

fn text_of(program: &str, args: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("cannot start {program}"))?;
    ensure!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

struct Package {
    name: &'static str,
    depends: String,
    recommends: &'static str,
    summary: &'static str,
    description: &'static [&'static str],
    files: Vec<Entry>,
    /// What lintian is told.
    overrides: Option<PathBuf>,
    scripts: Vec<(PathBuf, &'static str)>,
}

impl Package {
    fn pack(&self, release: &Release<'_>, copyright: &Path) -> Result<PathBuf> {
        let Release { out, version, architecture, date } = release;
        let stage = tempfile::tempdir().context("cannot make a directory to pack in")?;
        let tree = stage.path().join("tree");
        let control = tree.join("DEBIAN");
        make_dir(&control)?;
        let mut size = 0;
        for (from, to, mode) in &self.files {
            size += put(from, &tree, to, *mode)?;
        }
        size += put(copyright, &tree, &format!("usr/share/doc/{}/copyright", self.name), 0o644)?;
        let changelog = stage.path().join("changelog");
        fs::write(&changelog, release.changelog(self.name)?).context("cannot write the changelog")?;
        let to = format!("usr/share/doc/{}/changelog.gz", self.name);
        size += put(&zipped(&changelog)?, &tree, &to, 0o644)?;
        if let Some(overrides) = &self.overrides {
            size += put(overrides, &tree, &format!("usr/share/lintian/overrides/{}", self.name), 0o644)?;
        }
        for (from, to) in &self.scripts {
            put(from, &control, to, 0o755)?;
        }
        // Everything below /etc is the administrator's once it is there.
        let conffiles: String = self
            .files
            .iter()
            .filter(|(_, to, _)| to.starts_with("etc/"))
            .map(|(_, to, _)| format!("/{to}\n"))
            .collect();
        if !conffiles.is_empty() {
            fs::write(control.join("conffiles"), conffiles).context("cannot write conffiles")?;
        }
        let mut text = format!(
            "Package: {}\nVersion: {version}\nArchitecture: {architecture}\nSection: admin\nPriority: optional\n\
             Maintainer: {MAINTAINER}\nInstalled-Size: {}\nDepends: {}\n\
             Recommends: {}\nDescription: {}\n",
            self.name,
            size.div_ceil(1024),
            self.depends,
            self.recommends,
            self.summary
        );
        for line in self.description {
            text.push_str(&format!(" {line}\n"));
        }
        fs::write(control.join("control"), text).context("cannot write the control file")?;
        let deb = out.join(format!("{}_{version}_{architecture}.deb", self.name));
        let output = Command::new("dpkg-deb")
            .env("SOURCE_DATE_EPOCH", date)
            .args(["--root-owner-group", "-Zgzip", "-z1", "--build"])
            .arg(&tree)
            .arg(&deb)
            .output()
            .context("cannot start dpkg-deb")?;
        ensure!(output.status.success(), "dpkg-deb failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(deb)
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

fn put(from: &Path, tree: &Path, to: &str, mode: u32) -> Result<u64> {
    let to = tree.join(to);
    if let Some(parent) = to.parent() {
        make_dir(parent)?;
    }
    let size =
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", to.display()))?;
    Ok(size)
}
