//! Where it is measured: two throw-away hosts with the agent as its package, and the other tools beside it.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use system_tests::{Guest, Host, HostOptions, Network, Repository, Root, RootOptions, base, wait};

use super::client::Target;

/// The API's prefix.
pub(super) const API: &str = "/api/v1";

/// What is measured against, as Debian's packages. `python3-apt` comes with the base's `unattended-upgrades`.
const PEERS: [&str; 5] = ["packagekit", "packagekit-tools", "polkitd", "python3-apt", "nginx-light"];

/// For how many packages there are updates.
const UPDATES: usize = 20;

/// Nothing limits the load, and each host knows its client.
const CONFIG: &str = "security:\n  rate_limit_requests_per_minute: 100000000\n";

/// The program comes from the machine's disk, as it does on real hosts, and not from a file system in memory, whose
/// large pages count whole.
const DROP_IN: &str = "[Service]\nExecStart=\nExecStart=/srv/programs/usr/bin/linux-patch-api\n\
                       ExecPaths=/srv/programs/usr/bin/linux-patch-api\n";

/// Runs a command with a clock around it, without the time that it takes to enter the host.
const TIMER: &str = "TIMEFORMAT='%3U %3S'; exec 3>&1; a=$EPOCHREALTIME; \
                     { time \"$@\" >/dev/null 2>&1 </dev/null; } 2>&3; r=$?; b=$EPOCHREALTIME; echo \"$a $b $r\"";

/// How long a command took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Took {
    /// On the clock, in milliseconds.
    pub(super) wall: f64,
    /// Of the processor, its children included, in milliseconds.
    pub(super) cpu: f64,
}

/// A host with the agent on it.
pub(super) struct Bench {
    /// The host.
    pub(super) host: Host,
    /// Its network, where the client sits.
    pub(super) network: Network,
    /// The agent.
    pub(super) target: Target,
    /// Where its certificates are.
    pub(super) pki: PathBuf,
    // The host sees it; it goes when the host has gone.
    repository: Repository,
}

/// Runs a command on the guest; none when it fails.
pub(super) fn timed(guest: &Guest, argv: &[&str]) -> Option<Took> {
    let argv = [&["/bin/bash", "-c", TIMER, "timer"], argv].concat();
    let output = guest.exec_with(&argv, "", Duration::from_secs(120)).ok()?;
    let numbers: Vec<f64> =
        output.stdout.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    match numbers[..] {
        [user, system, begun, ended, 0.0] => {
            Some(Took { wall: (ended - begun) * 1e3, cpu: (user + system) * 1e3 })
        }
        _ => None,
    }
}

impl Bench {
    /// Boots a host named `name` and installs the agent on it.
    pub(super) fn new(work: &Path, name: &str, agent: &Path, options: HostOptions) -> Result<Self> {
        let repository = Repository::new()?;
        let network = Network::new()?;
        let (programs, pki) = (work.join(format!("{name}-programs")), work.join(format!("{name}-pki")));
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(agent).arg(&programs);
        ensure!(unpack.status()?.success(), "cannot unpack {}", agent.display());
        let options = options.repository(&repository).bind(&programs, "/srv/programs");
        let host = Host::boot(&network, options)?;
        repository.configure(&host, Repository::FILES)?;
        let mut init = Command::new(programs.join("usr/bin/linux-patch-api"));
        init.args(["pki", "init"]).arg(&pki);
        init.args(["--server-name", name, "--server-ip", &host.ip().to_string(), "--client", "alice"]);
        let output = init.output().context("cannot start linux-patch-api")?;
        ensure!(output.status.success(), "no certificates: {}", String::from_utf8_lossy(&output.stderr));
        host.push(DROP_IN, "/etc/systemd/system/linux-patch-api.service.d/bench.conf", "644")?;
        host.push_file(agent, "/root/linux-patch-api.deb", "644")?;
        for (file, mode) in [("ca.pem", "644"), ("server.pem", "644"), ("server.key.pem", "600")] {
            host.push_file(&pki.join(file), &format!("/etc/linux_patch_api/certs/{file}"), mode)?;
        }
        host.exec_ok(&["apt-get", "-qq", "-y", "install", "/root/linux-patch-api.deb"])?;
        let network_of = network.address().to_string();
        let subnet = network_of.rsplit_once('.').map_or("", |(subnet, _)| subnet);
        let allowed = format!("allowed_ips:\n  - {subnet}.0/24\n");
        host.push(allowed, "/etc/linux_patch_api/whitelist.yaml", "644")?;
        host.push(CONFIG, "/etc/linux_patch_api/config.yaml", "644")?;
        let target = Target::new(host.ip(), 12443, &pki)?;
        let bench = Self { host, network, target, pki, repository };
        bench.restart()?;
        Ok(bench)
    }

    /// Starts the agent anew and waits until it answers.
    pub(super) fn restart(&self) -> Result<()> {
        self.host.exec_ok(&["systemctl", "restart", "linux-patch-api"])?;
        wait::until("the agent to answer", Duration::from_secs(30), || {
            let asked = self.on_network(async || self.target.once(&format!("{API}/health")).await);
            Ok(asked.is_ok_and(|reply| reply.status == 200).then_some(()))
        })
    }

    /// Runs asynchronous `work` in one thread on the host's network.
    pub(super) fn on_network<T: Send, F: Future<Output = Result<T>>>(
        &self,
        work: impl FnOnce() -> F + Send,
    ) -> Result<T> {
        self.network.run_in(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        })
    }

    /// Makes all caches of the packages' state stale, as any change by dpkg does.
    pub(super) fn touch(&self) -> Result<()> {
        self.host.exec_ok(&["touch", "/var/lib/dpkg/status"]).map(drop)
    }

    /// The agent's process on the host.
    pub(super) fn pid(&self) -> Result<String> {
        let shown =
            self.host.exec_ok(&["systemctl", "show", "--property=MainPID", "--value", "linux-patch-api"])?;
        Ok(shown.trim().to_owned())
    }

    /// How many packages are installed.
    pub(super) fn installed(&self) -> Result<usize> {
        Ok(installed(&self.host.read_text("/var/lib/dpkg/status")?))
    }

    /// Adds packages that have no files and no relations to dpkg's status, until there are `total`. Gives the status
    /// as it was.
    pub(super) fn grow(&self, total: usize) -> Result<String> {
        let before = self.host.read_text("/var/lib/dpkg/status")?;
        let mut after = before.clone();
        for number in 0..total.saturating_sub(installed(&before)) {
            after.push_str(&synthetic(number));
        }
        self.write_status(&after)?;
        Ok(before)
    }

    /// Replaces dpkg's status, as dpkg does: by a new file.
    pub(super) fn write_status(&self, text: &str) -> Result<()> {
        self.host.push(text, "/var/lib/dpkg/status-bench", "644")?;
        self.host.exec_ok(&["mv", "/var/lib/dpkg/status-bench", "/var/lib/dpkg/status"]).map(drop)
    }

    /// Installs packages for which there are updates then, makes the machine's Debian indexes the host's as well, and
    /// installs the peers.
    pub(super) fn add_updates_and_peers(&self) -> Result<()> {
        let outdated = super::jobs::bulk(UPDATES);
        let words = outdated.iter().map(String::as_str);
        let install: Vec<&str> = ["apt-get", "-qq", "-y", "install"].into_iter().chain(words).collect();
        self.host.exec_ok(&install)?;
        self.repository.publish_day(1)?;
        self.host.exec_ok(&["apt-get", "-qq", "update"])?;
        self.host.shell(
            "cp -a /srv/peers/lists/. /var/lib/apt/lists/\n\
             cp /srv/peers/archives/*.deb /var/cache/apt/archives/\n\
             cp /srv/peers/sources /etc/apt/sources.list.d/debian.sources",
        )?;
        let install = ["apt-get", "-qq", "-y", "--no-install-recommends", "--no-download", "install"];
        self.host.exec_ok(&[&install[..], &PEERS].concat()).map(drop)
    }

    /// How many stanzas the indexes have.
    pub(super) fn stanzas(&self) -> Result<usize> {
        let count = "cat /var/lib/apt/lists/*_Packages /srv/repo/current/dists/*/main/binary-*/Packages 2>/dev/null | \
                     grep -c ^Package:";
        Ok(self.host.shell(count)?.trim().parse()?)
    }
}

fn installed(status: &str) -> usize {
    status.lines().filter(|line| line.starts_with("Status: ") && line.ends_with(" installed")).count()
}

/// A stanza as long as they are on average.
fn synthetic(number: usize) -> String {
    let filler = " This package stands for one of the many that a grown host has; it has neither files nor\n \
                  relations, and its description is as long as descriptions are on average.\n";
    format!(
        "Package: bench-{number:05}\nStatus: install ok installed\nPriority: optional\nSection: libs\n\
         Installed-Size: 182\nMaintainer: Nobody In Particular <nobody@example.org>\nArchitecture: amd64\n\
         Multi-Arch: same\nSource: bench\nVersion: 1:2.{number}-3+deb12u1\n\
         Description: one package of many\n{filler} .\n{filler} .\n{filler}Homepage: https://example.org/bench\n\n"
    )
}

/// A throw-away root with the machine's own sources of Debian packages, and the text of those.
pub(super) fn debian_root(options: RootOptions) -> Result<(Root, String)> {
    let root = Root::new(options.machine_network())?;
    let candidates = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let read = |path: &&str| fs::read_to_string(path).ok().filter(|text| text.contains("deb"));
    let text = candidates.iter().find_map(read).context("the machine has no source of Debian packages")?;
    let is_new_format = text.contains("URIs:");
    let place = if is_new_format { "sources.list.d/debian.sources" } else { "sources.list" };
    root.push(&text, &format!("/etc/apt/{place}"), "644")?;
    // How the machine reaches them, as far as that differs from apt's defaults.
    let dump = Command::new("apt-config").args(["dump", "--no-empty", "Acquire"]).output()?;
    let dump = String::from_utf8_lossy(&dump.stdout);
    let reaches = |line: &&str| ["Acquire::Check-", "Acquire::http"].iter().any(|key| line.starts_with(key));
    let options = dump.lines().filter(reaches).map(|line| format!("{line}\n"));
    root.push(options.collect::<String>(), "/etc/apt/apt.conf.d/99bench", "644")?;
    root.exec_ok(&["apt-get", "-qq", "update"])?;
    Ok((root, text))
}

/// Fetches the peers and Debian's indexes into the directory `into`.
pub(super) fn fetch_peers(into: &Path) -> Result<()> {
    let (root, text) = debian_root(RootOptions::default())?;
    let fetch = ["apt-get", "-qq", "-y", "--no-install-recommends", "--download-only", "install"];
    root.exec_ok(&[&fetch[..], &PEERS].concat())?;
    fs::create_dir_all(into)?;
    for (from, to) in [("var/lib/apt/lists", "lists"), ("var/cache/apt/archives", "archives")] {
        let mut copy = Command::new("cp");
        copy.args(["-r", "--preserve=timestamps", "--"]).arg(root.path().join(from)).arg(into.join(to));
        ensure!(copy.status()?.success(), "cannot copy {from}");
    }
    // The host has the other format's file for the test repository.
    let sources = if text.contains("URIs:") { text } else { one_line_sources(&text) };
    fs::write(into.join("sources"), sources).context("cannot write the sources")
}

/// One-line sources in the newer format, of which a host can have a file more.
fn one_line_sources(text: &str) -> String {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines = text.lines().filter(|line| line.starts_with("deb ") && !line.contains('[')).map(words);
    let stanza = |words: Vec<String>| match &words[..] {
        [_, uri, suite, components @ ..] => {
            format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: {}\n\n", components.join(" "))
        }
        _ => String::new(),
    };
    lines.map(stanza).collect()
}

/// A directory on the machine's own disk, for what must be durable in earnest.
pub(super) fn disk_directory() -> Result<tempfile::TempDir> {
    tempfile::tempdir_in(base::cache_directory()).context("cannot make a directory on the machine's disk")
}
