//! The base root that all hosts and throw-away roots lie upon, built once from the machine's own apt sources.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::process::{Input, capture, require_success, run_ok};

/// What the base has beside the minimal system. `python3` comes with `unattended-upgrades`.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,libpam-systemd,iproute2,iputils-ping,curl,ca-certificates,\
                        unattended-upgrades,needrestart,apt-utils,procps,openssl,gpgv,debconf,bash,logrotate";

/// What a base of a cloud's has besides: cloud-init, and what the documents that are made for it install.
const CLOUD: &str = "cloud-init,gnupg,apt-listchanges,msmtp,msmtp-mta";

/// cloud-init begins when a trial has given the host its data, and leaves alone what the harness has set up.
const CLOUD_HOOKS: [&str; 2] = [
    "touch \"$1/etc/cloud/cloud-init.disabled\"",
    "printf 'network: {config: disabled}\\nlocale: false\\nssh_deletekeys: false\\nssh_genkeytypes: []\\napt: {preserve_sources_list: true}\\ndatasource_list: [NoCloud]\\n' \
     >\"$1/etc/cloud/cloud.cfg.d/99-trial.cfg\"",
];

/// Change this when [`HOOKS`] or the arguments of `mmdebstrap` change.
const RECIPE: &str = "1";

/// Makes a host of what `mmdebstrap` leaves: nothing that reaches out by itself, no trace of the building machine.
const HOOKS: [&str; 3] = [
    "rm -f \"$1\"/etc/apt/apt.conf.d/99mmdebstrap \"$1\"/etc/dpkg/dpkg.cfg.d/99mmdebstrap \
     \"$1\"/etc/apt/sources.list.d/*; : >\"$1/etc/apt/sources.list\"",
    "systemctl --root=\"$1\" mask -q systemd-resolved systemd-networkd getty.target console-getty.service \
     apt-daily.timer apt-daily-upgrade.timer",
    "rm -f \"$1\"/etc/resolv.conf \"$1\"/etc/hostname \"$1\"/usr/sbin/policy-rc.d; \
     echo 127.0.0.1 localhost >\"$1/etc/hosts\"; mkdir -p \"$1\"/var/log/journal \"$1\"/srv/repo",
];

/// The tools that the harness is made of, and the Debian packages that have them.
const TOOLS: [(&str, &str); 12] = [
    ("systemd-nspawn", "systemd-container"),
    ("mmdebstrap", "mmdebstrap"),
    ("apt-ftparchive", "apt-utils"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("gpg", "gnupg"),
    ("gpgconf", "gnupg"),
    ("dpkg-deb", "dpkg"),
    ("faketime", "faketime"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("snapper", "snapper"),
];

/// Where bases and repositories are kept; `LINUX_PATCH_CACHE` moves it.
#[must_use]
pub fn cache_directory() -> PathBuf {
    std::env::var_os("LINUX_PATCH_CACHE")
        .map_or_else(|| PathBuf::from("/var/cache/linux-patch"), PathBuf::from)
}

/// The machine's Debian release, by which the base and the test repository go.
#[derive(Debug, Clone)]
pub struct Release {
    /// "bookworm" for one.
    pub codename: String,
    /// "12" for one.
    pub version: String,
}

/// The machine's Debian release.
///
/// # Errors
/// When `/etc/os-release` does not tell.
pub fn release() -> Result<Release> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    let codename =
        value("VERSION_CODENAME").context("/etc/os-release has no VERSION_CODENAME: is this Debian?")?;
    Ok(Release { codename, version: value("VERSION_ID").unwrap_or_default() })
}

/// Installs by apt-get the tools that the machine lacks; nothing when it has them all.
///
/// # Errors
/// When apt-get fails.
pub fn deps() -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut missing: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| !is_in_path(tool)).map(|(_, package)| *package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("system-tests: installing {}", missing.join(" "));
    for words in [vec!["update"], [vec!["install", "-y", "--no-install-recommends"], missing].concat()] {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-qq", "-o", "DPkg::Lock::Timeout=300"])
            .args(words);
        run_ok(command, Input::Nothing).context("cannot install what the harness needs")?;
    }
    Ok(())
}

fn is_in_path(tool: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|directory| Path::new(directory).join(tool).is_file())
}

/// The base root; the first call on a machine builds it, which takes about a minute.
///
/// # Errors
/// When it cannot be built.
pub fn root() -> Result<PathBuf> {
    of("base", PACKAGES, &HOOKS)
}

/// The same with cloud-init, which is off until `/etc/cloud/cloud-init.disabled` is removed, and with msmtp.
///
/// # Errors
/// When it cannot be built.
pub fn cloud_root() -> Result<PathBuf> {
    let hooks: Vec<&str> = HOOKS.into_iter().chain(CLOUD_HOOKS).collect();
    of("cloud", &format!("{PACKAGES},{CLOUD}"), &hooks)
}

fn of(kind: &str, packages: &str, hooks: &[&str]) -> Result<PathBuf> {
    let sources = sources()?;
    let release = release()?;
    let mut hash = Sha256::new();
    for part in [RECIPE, packages, &release.codename].iter().chain(hooks) {
        hash.update(part);
    }
    for source in &sources {
        hash.update(fs::read(source).with_context(|| format!("cannot read {}", source.display()))?);
    }
    let name = format!("{kind}-{}", short_hash(hash));
    build_once(&name, |directory| build(directory, packages, hooks, &release, &sources))
}

pub(crate) fn short_hash(hash: Sha256) -> String {
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Gives the directory `name` of the cache, made by `build` if it is not there: by one builder at a time, and never
/// seen half made.
pub(crate) fn build_once(name: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache_directory();
    let built = cache.join(name);
    if built.exists() {
        return Ok(built);
    }
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let lock = File::create(cache.join(format!("{name}.lock"))).context("cannot make the builder's lock")?;
    lock.lock().context("cannot take the builder's lock")?;
    if built.exists() {
        return Ok(built);
    }
    eprintln!("system-tests: building {}, once", built.display());
    // A fixed name: what a builder that was killed has left is removed here.
    let unfinished = cache.join(format!("{name}.unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("cannot remove {}", unfinished.display()))?;
    }
    fs::create_dir(&unfinished)?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755))?;
    build(&unfinished).with_context(|| format!("cannot build {}", built.display()))?;
    fs::rename(&unfinished, &built)
        .with_context(|| format!("cannot move {} into place", unfinished.display()))?;
    Ok(built)
}

/// Removes all bases and repositories of the cache; the next use builds them anew.
///
/// # Errors
/// When a run is alive, which may stand upon them, or something cannot be removed.
pub fn clear_cache() -> Result<()> {
    if let Some(run) = crate::run::runs()?.iter().find(|run| run.alive) {
        bail!("process {} has hosts or roots upon the cache: end it first", run.owner);
    }
    let cache = cache_directory();
    if cache.exists() {
        fs::remove_dir_all(&cache).with_context(|| format!("cannot remove {}", cache.display()))?;
    }
    Ok(())
}

fn build(
    directory: &Path,
    packages: &str,
    hooks: &[&str],
    release: &Release,
    sources: &[PathBuf],
) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--variant=minbase", "--mode=root", "--dpkgopt=force-unsafe-io"]);
    command.args(["man", "locale", "doc"].map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")));
    command.args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""]);
    command.args(machine_apt_options()?.iter().map(|option| format!("--aptopt={option}")));
    command.arg(format!("--include={packages}"));
    command.args(hooks.iter().map(|hook| format!("--customize-hook={hook}")));
    command.arg(&release.codename).arg(directory).args(sources);
    let captured = capture(command, "mmdebstrap", Input::Nothing, Duration::from_secs(1800))?;
    require_success("mmdebstrap", captured)?;
    // A base that believes expired repositories would make the tests of just that worthless.
    let mut config = Command::new("chroot");
    config.arg(directory).args(["apt-config", "dump", "--no-empty", "Acquire::Check-Valid-Until"]);
    let inherited = run_ok(config, Input::Nothing)?;
    ensure!(inherited.trim().is_empty(), "the base has inherited the machine's {inherited}");
    Ok(())
}

/// How the machine reaches its sources, as far as that differs from apt's defaults. For building only.
fn machine_apt_options() -> Result<Vec<String>> {
    let mut command = Command::new("apt-config");
    command.args(["dump", "--no-empty", "--format", "%F \"%v\";%n", "Acquire"]);
    let dump = run_ok(command, Input::Nothing)?;
    let reaches = |line: &&str| {
        ["Acquire::Check-", "Acquire::http", "Acquire::https", "Acquire::Retries"]
            .iter()
            .any(|key| line.starts_with(key))
    };
    Ok(dump.lines().filter(reaches).map(|line| line.trim_end_matches(';').to_owned()).collect())
}

/// The machine's own sources of Debian packages.
fn sources() -> Result<Vec<PathBuf>> {
    let parts = Path::new("/etc/apt/sources.list.d");
    let preferred = ["debian.sources", "ubuntu.sources"].map(|name| parts.join(name));
    let candidates = preferred.into_iter().chain([PathBuf::from("/etc/apt/sources.list")]);
    let has_source = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
    };
    let found: Vec<PathBuf> = candidates.filter(has_source).take(1).collect();
    if found.is_empty() {
        bail!("no source of Debian packages in /etc/apt/sources.list or {}/debian.sources", parts.display());
    }
    Ok(found)
}
