//! `cargo xtask dist`: the Debian packages.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::workspace;

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
    /// Quick to build; for tests and the demonstration.
    Dev,
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
}

/// Runs the subcommand.
pub(crate) fn run(args: &Dist) -> Result<()> {
    let profile = if args.dev { Profile::Dev } else { Profile::Release };
    let built = build(profile, &workspace::root()?.join(&args.out), args.version.as_deref())?;
    println!("{}\n{}", built.agent.display(), built.patchctl.display());
    Ok(())
}

/// Builds the programs and puts them into packages below `out`. `version` overrides the workspace's, for tests of
/// upgrades.
///
/// # Errors
/// When cargo or dpkg-deb fails, or a file of the package is missing.
pub(crate) fn build(profile: Profile, out: &Path, version: Option<&str>) -> Result<Packages> {
    let root = workspace::root()?;
    let mut cargo = Command::new(workspace::cargo());
    cargo.current_dir(&root).args(["build", "--quiet", "--locked"]);
    cargo.args(["-p", "linux-patch-api", "-p", "patch-executor", "-p", "patch-host", "-p", "patchctl"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    ensure!(cargo.status().context("cannot start cargo")?.success(), "the programs could not be built");
    let built = workspace::target()?.join(if profile == Profile::Release { "release" } else { "debug" });
    pack(&root, &built, out, version.unwrap_or(env!("CARGO_PKG_VERSION")))
}

fn pack(root: &Path, built: &Path, out: &Path, version: &str) -> Result<Packages> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let architecture = text_of("dpkg", &["--print-architecture"])?;
    let programs =
        ["linux-patch-api", "patch-executor", "linux-patch-host", "patchctl"].map(|name| built.join(name));
    let libc = needed_libc(&programs)?;

    let agent = Package {
        name: "linux-patch-api",
        depends: format!(
            "libc6 (>= {libc}), libgcc-s1, apt (>= 2.2), dpkg (>= 1.20), init-system-helpers (>= 1.54), systemd | systemd-standalone-sysusers | passwd"
        ),
        recommends: "systemd (>= 247)",
        summary: "agent for remote patching with a mutually authenticated API",
        description: &[
            "Lists, installs, updates, holds and removes packages, applies patches, and",
            "streams its jobs over a REST API with TLS 1.3 and client certificates. The",
            "process on the network has no root; a small root side does the work, one",
            "operation a process, and keeps going when the other one dies.",
        ],
        files: vec![
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
                root.join("packaging/systemd/linux-patch-executor-recover.service"),
                "lib/systemd/system/linux-patch-executor-recover.service",
                0o644,
            ),
            (root.join("packaging/systemd/sysusers.conf"), "usr/lib/sysusers.d/linux-patch-api.conf", 0o644),
            (
                root.join("packaging/needrestart/linux-patch-api.conf"),
                "etc/needrestart/conf.d/linux-patch-api.conf",
                0o644,
            ),
            (root.join("packaging/config/config.yaml"), "etc/linux_patch_api/config.yaml", 0o644),
            (root.join("packaging/config/whitelist.yaml"), "etc/linux_patch_api/whitelist.yaml", 0o644),
            (
                root.join("packaging/config/ceiling.yaml.example"),
                "usr/share/doc/linux-patch-api/examples/ceiling.yaml",
                0o644,
            ),
        ],
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
        files: vec![(built.join("patchctl"), "usr/bin/patchctl", 0o755)],
        scripts: Vec::new(),
    };
    let copyright = root.join("packaging/deb/copyright");
    Ok(Packages {
        agent: agent.pack(out, version, &architecture, &copyright)?,
        patchctl: patchctl.pack(out, version, &architecture, &copyright)?,
    })
}

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
    /// From where, to where below the root, with which mode.
    files: Vec<(PathBuf, &'static str, u32)>,
    scripts: Vec<(PathBuf, &'static str)>,
}

impl Package {
    fn pack(&self, out: &Path, version: &str, architecture: &str, copyright: &Path) -> Result<PathBuf> {
        let stage = tempfile::tempdir().context("cannot make a directory to pack in")?;
        let tree = stage.path().join("tree");
        let control = tree.join("DEBIAN");
        make_dir(&control)?;
        let mut size = 0;
        for (from, to, mode) in &self.files {
            size += put(from, &tree, to, *mode)?;
        }
        size += put(copyright, &tree, &format!("usr/share/doc/{}/copyright", self.name), 0o644)?;
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
             Maintainer: The linux-patch authors <maintainers@linux-patch.invalid>\nInstalled-Size: {}\nDepends: {}\n\
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
