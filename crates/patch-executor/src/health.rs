//! Verifying: the health of the host before and after a change.
//!
//! [`Baseline`] is what was well before: units, listening sockets, default routes, name resolution. Afterwards the same
//! must be well, except what the plan itself took away. What is not known is not compared: below another root, or where
//! systemd does not run, the baseline is empty. [`run_checks`] makes the configured checks.
//!
//! Nothing here decides what follows from a finding.

mod net;
mod probe;
mod units;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use patch_apply::{apt::argv::Argv, run};
use patch_types::settings::HealthCheck;
use serde::{Deserialize, Serialize};

use self::{
    net::Listening,
    units::{Unit, Verdict, Was},
};
pub(crate) use self::{probe::child, units::is_systemd_running};
use crate::{clock::boot, services, settings::Settings, stop};

/// How long services may take to come up again after a change.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long the agent may take to come up again after its own upgrade, with the time that it must stay up.
pub(crate) const AGENT_PATIENCE: Duration = Duration::from_secs(40);

/// The agent's unit.
pub(crate) const AGENT_UNIT: &str = "linux-patch-api.service";

/// How long the agent must stay up to count as running.
const AGENT_STEADY: Duration = Duration::from_secs(5);

/// How long a service that was started anew must stay up to count as running.
const STEADY: Duration = Duration::from_secs(2);

/// How often the host is looked at while something is not well.
const LOOK: Duration = Duration::from_millis(500);

/// How long a name may take to be resolved.
const RESOLVE: Duration = Duration::from_secs(5);

/// How many of the repositories' names are resolved.
const NAMES: usize = 2;

/// UDP ports from here on are handed out at random to services that ask for a privileged one (`bindresvport(3)`).
const FIRST_RANDOM_UDP: u16 = 512;

/// The ports of DHCP clients, which are open only while an address is asked for.
const DHCP_CLIENT: [u16; 2] = [68, 546];

/// How many of a command's last lines are told.
const TOLD_LINES: usize = 5;

/// Something that was well and is not, or that should hold and does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// What: `unit nginx.service`, `port 0.0.0.0:80`, `http http://localhost/`.
    pub(crate) what: String,
    /// How it is.
    pub(crate) detail: String,
}

impl Finding {
    fn new(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), detail: detail.into() }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.detail)
    }
}

/// Who holds a socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Owner {
    /// A service.
    Unit(String),
    /// systemd, for a service that it starts on demand.
    Systemd,
    /// The kernel, or nobody that was found.
    Unknown,
}

/// What was well before a change. Empty where there is nothing to compare.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Baseline {
    /// Which boot it was: after another one nothing of it can be expected to be as it was, or not yet.
    #[serde(default)]
    boot: String,
    /// Units that were active.
    #[serde(default)]
    units: BTreeMap<String, Was>,
    /// Listening TCP sockets of services, and who held them.
    #[serde(default)]
    tcp: BTreeSet<(SocketAddr, Owner)>,
    /// Likewise UDP sockets without a peer.
    #[serde(default)]
    udp: BTreeSet<(SocketAddr, Owner)>,
    /// Whether there was a default route for IPv4.
    #[serde(default)]
    route_v4: bool,
    /// Whether there was a default route for IPv6.
    #[serde(default)]
    route_v6: bool,
    /// Names that could be resolved.
    #[serde(default)]
    resolved: Vec<String>,
}

/// How the host is at one moment.
#[derive(Debug)]
struct Look {
    /// Of the units in question; or why systemd does not say.
    units: Result<Vec<Unit>, String>,
    tcp: Vec<SocketAddr>,
    udp: Vec<SocketAddr>,
    route_v4: bool,
    route_v6: bool,
    /// Names that cannot be resolved.
    unresolved: Vec<String>,
    /// From this port on ports are handed out at random.
    first_ephemeral: u16,
}

/// How long a boot is waited for before the host is judged.
const BOOT: Duration = Duration::from_secs(300);

impl Baseline {
    /// Looks at the system at `root`. What cannot be learned is left out.
    pub(crate) fn record(root: &Path) -> Self {
        if !units::is_systemd_running(root) {
            return Self::default();
        }
        let owners = socket_owners();
        let owned = |sockets: Vec<Listening>| {
            sockets
                .into_iter()
                .filter_map(|socket| match owners.get(&socket.inode) {
                    Some(owner) => owner.clone().map(|owner| (socket.address, owner)),
                    None => Some((socket.address, Owner::Unknown)),
                })
                .collect()
        };
        let mut names: Vec<String> = source_hosts(root).into_iter().take(NAMES).collect();
        names.push("localhost".into());
        Self {
            boot: boot(),
            units: units::show(["*.service", "*.socket"]).map(units::to_keep).unwrap_or_default(),
            tcp: owned(listening_tcp()),
            udp: owned(open_udp()),
            route_v4: net::has_default_v4(&proc_net("route")),
            route_v6: net::has_default_v6(&proc_net("ipv6_route")),
            resolved: names.into_iter().filter(|name| resolves(name)).collect(),
        }
    }

    /// The units that were active, by name.
    pub(crate) fn active_units(&self) -> Vec<String> {
        self.units.keys().cloned().collect()
    }

    /// Whether it can be compared with: there is something in it, and the host has not been started anew since.
    pub(crate) fn is_of_this_boot(&self) -> bool {
        *self != Self::default() && self.boot == boot()
    }

    /// Whether the agent was running.
    pub(crate) fn agent_was_active(&self) -> bool {
        self.units.contains_key(AGENT_UNIT)
    }

    /// What is not as well as it was, `excused` being the units that the plan took away. Waits up to `patience` for all to
    /// be well; services that were started anew must also stay up for a moment.
    pub(crate) fn compare(
        &self,
        root: &Path,
        settings: &Settings,
        excused: &BTreeSet<String>,
        patience: Duration,
    ) -> Vec<Finding> {
        if !self.is_of_this_boot() || !units::is_systemd_running(root) {
            return Vec::new();
        }
        let deadline = Instant::now() + patience;
        let mut steady = Steady::default();
        let mut resolved = BTreeSet::new();
        loop {
            let look = self.look(&mut resolved);
            let now = Instant::now();
            let (findings, on_its_way) = self.judge(&look, settings, excused);
            if findings.is_empty() && !on_its_way {
                let pids = self.restarted(&look);
                let is_fresh = !pids.is_empty();
                if steady.held(now, pids) >= STEADY || !is_fresh {
                    return findings;
                }
            } else {
                steady = Steady::default();
            }
            if now >= deadline {
                return findings;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Looks anew; a name that could be resolved once is not tried again.
    fn look(&self, resolved: &mut BTreeSet<String>) -> Look {
        for name in &self.resolved {
            if !resolved.contains(name) && resolves(name) {
                resolved.insert(name.clone());
            }
        }
        let addresses = |sockets: Vec<Listening>| sockets.into_iter().map(|socket| socket.address).collect();
        let units = if self.units.is_empty() {
            Ok(Vec::new())
        } else {
            units::show(self.units.keys().map(String::as_str))
        };
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        Look {
            units,
            tcp: addresses(listening_tcp()),
            udp: addresses(open_udp()),
            route_v4: net::has_default_v4(&proc_net("route")),
            route_v6: net::has_default_v6(&proc_net("ipv6_route")),
            unresolved: self.resolved.iter().filter(|name| !resolved.contains(*name)).cloned().collect(),
            first_ephemeral: net::first_ephemeral(&range).unwrap_or(32768),
        }
    }

    /// What is worse than before, and whether something is still on its way.
    fn judge(&self, look: &Look, settings: &Settings, excused: &BTreeSet<String>) -> (Vec<Finding>, bool) {
        let mut findings = Vec::new();
        let mut on_its_way = false;
        match &look.units {
            Ok(units) => {
                for (name, was) in self.units.iter().filter(|(name, _)| !excused.contains(*name)) {
                    match units::judge(was, find(units, name)) {
                        Verdict::Well => {}
                        Verdict::OnItsWay => on_its_way = true,
                        Verdict::Lost(detail) => findings.push(Finding::new(format!("unit {name}"), detail)),
                    }
                }
            }
            Err(error) => findings.push(Finding::new("systemd", format!("it does not answer: {error}"))),
        }
        let expected = |port: u16, owner: &Owner| match owner {
            _ if port >= look.first_ephemeral => false,
            Owner::Unit(unit) => !excused.contains(unit),
            Owner::Systemd => !excused.iter().any(|unit| unit.ends_with(".socket")),
            Owner::Unknown => excused.is_empty(),
        };
        for (address, owner) in &self.tcp {
            if expected(address.port(), owner) && !is_covered(*address, &look.tcp) {
                let held = match owner {
                    Owner::Unit(unit) => format!("; {unit} did"),
                    Owner::Systemd | Owner::Unknown => String::new(),
                };
                findings.push(Finding::new(
                    format!("port {address}"),
                    format!("nobody listens there any more{held}"),
                ));
            }
        }
        for (address, owner) in &self.udp {
            let is_fixed = address.port() < FIRST_RANDOM_UDP && !DHCP_CLIENT.contains(&address.port());
            if is_fixed && expected(address.port(), owner) && !is_covered(*address, &look.udp) {
                findings.push(Finding::new(
                    format!("UDP port {address}"),
                    "nobody waits there any more".to_owned(),
                ));
            }
        }
        if self.tcp.iter().any(|(address, _)| address.port() == settings.port)
            && !excused.contains(AGENT_UNIT)
            && !look.tcp.iter().any(|address| address.port() == settings.port)
        {
            findings.push(Finding::new(
                "agent",
                format!("it does not listen on port {} any more", settings.port),
            ));
        }
        for (family, before, now) in
            [("IPv4", self.route_v4, look.route_v4), ("IPv6", self.route_v6, look.route_v6)]
        {
            if before && !now {
                findings.push(Finding::new(format!("{family} default route"), "it is gone"));
            }
        }
        findings.extend(
            look.unresolved
                .iter()
                .map(|name| Finding::new(format!("name {name}"), "it cannot be resolved any more")),
        );
        (findings, on_its_way)
    }

    /// The services that have another process than before, with it.
    fn restarted(&self, look: &Look) -> BTreeMap<String, (u32, u32)> {
        let Ok(units) = &look.units else { return BTreeMap::new() };
        self.units
            .iter()
            .filter_map(|(name, was)| {
                let now = find(units, name)?;
                (now.main_pid != 0 && now.main_pid != was.main_pid)
                    .then(|| (name.clone(), (now.main_pid, now.restarts)))
            })
            .collect()
    }
}

/// The unit of a name, which may have become an alias.
fn find<'a>(units: &'a [Unit], name: &str) -> Option<&'a Unit> {
    units.iter().find(|unit| unit.id == name || unit.names.iter().any(|one| one == name))
}

/// For how long something has been the same.
#[derive(Debug)]
struct Steady<T>(Option<(T, Instant)>);

impl<T> Default for Steady<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: PartialEq> Steady<T> {
    fn held(&mut self, now: Instant, state: T) -> Duration {
        match &self.0 {
            Some((same, since)) if *same == state => now.saturating_duration_since(*since),
            _ => {
                self.0 = Some((state, now));
                Duration::ZERO
            }
        }
    }
}

/// Whether somebody listens at an address, be it as one of many.
fn is_covered(address: SocketAddr, listening: &[SocketAddr]) -> bool {
    listening.iter().any(|one| {
        one.port() == address.port()
            && (one.ip() == address.ip()
                || match one.ip() {
                    IpAddr::V4(ip) => ip.is_unspecified() && address.is_ipv4(),
                    // It serves IPv4 as well, unless it was told not to.
                    IpAddr::V6(ip) => ip.is_unspecified(),
                })
    })
}

fn proc_net(table: &str) -> String {
    fs::read_to_string(Path::new("/proc/net").join(table)).unwrap_or_default()
}

fn listening_tcp() -> Vec<Listening> {
    ["tcp", "tcp6"].iter().flat_map(|table| net::listening_tcp(&proc_net(table))).collect()
}

fn open_udp() -> Vec<Listening> {
    ["udp", "udp6"].iter().flat_map(|table| net::open_udp(&proc_net(table))).collect()
}

/// Who holds which socket, by inode; nobody who counts if it is a program of somebody's session.
fn socket_owners() -> BTreeMap<u64, Option<Owner>> {
    let mut owners = BTreeMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return owners };
    // Processes come and go; one that is gone has nothing to say.
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let inodes: Vec<u64> = descriptors
            .flatten()
            .filter_map(|fd| net::socket_inode(fs::read_link(fd.path()).ok()?.to_str()?))
            .collect();
        if inodes.is_empty() {
            continue;
        }
        let cgroup = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        let owner = owner_of(pid, &cgroup);
        for inode in inodes {
            let known = owners.entry(inode).or_insert(None);
            // A service that was handed a socket of systemd's says more than systemd itself, and a session nothing.
            if !matches!(known, Some(Owner::Unit(_))) && owner.is_some() {
                known.clone_from(&owner);
            }
        }
    }
    owners
}

fn owner_of(pid: u32, cgroup: &str) -> Option<Owner> {
    if pid == 1 {
        Some(Owner::Systemd)
    } else if cgroup.contains("/user.slice/") {
        None
    } else {
        services::unit_of(cgroup).map(Owner::Unit)
    }
}

/// The hosts of apt's sources.
fn source_hosts(root: &Path) -> Vec<String> {
    let apt = root.join("etc/apt");
    let mut files = vec![apt.join("sources.list")];
    if let Ok(parts) = fs::read_dir(apt.join("sources.list.d")) {
        let is_source = |path: &Path| path.extension().is_some_and(|e| e == "list" || e == "sources");
        let mut parts: Vec<_> = parts.flatten().map(|e| e.path()).filter(|path| is_source(path)).collect();
        parts.sort();
        files.extend(parts);
    }
    let mut hosts: Vec<String> = Vec::new();
    for host in files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| net::source_hosts(&text))
    {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

fn resolves(name: &str) -> bool {
    let argv = Argv::new("/usr/bin/getent", vec!["ahosts".into(), "--".into(), name.into()]);
    run::capture(&argv, RESOLVE).is_ok_and(|said| said.code == Some(0))
}

/// Waits until the boot has come as far as it was when the change began, if that was another one: checks that were made
/// while services are still to be started would condemn a good change.
pub(crate) fn wait_for_boot(root: &Path, baseline: Option<&Baseline>) {
    let is_anew =
        baseline.is_some_and(|baseline| *baseline != Baseline::default() && !baseline.is_of_this_boot());
    if !is_anew || !units::is_systemd_running(root) {
        return;
    }
    let deadline = Instant::now() + BOOT;
    let is_up = || {
        units::show(["multi-user.target"]).is_ok_and(|units| units.iter().any(|unit| unit.active == "active"))
    };
    while !is_up() && !stop::is_asked() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Makes the configured checks, one after the other, and says so; gives those that do not hold. Each takes at most its
/// own time. Commands run as root at `root`, once.
pub(crate) fn run_checks(root: &Path, checks: &[HealthCheck], say: &mut dyn FnMut(String)) -> Vec<Finding> {
    let mut findings = Vec::new();
    for check in checks {
        let what = probe::printable(&check.to_string());
        let result = match check {
            HealthCheck::Command { command, .. } => run_command(root, command, check.timeout()),
            HealthCheck::Systemd { unit, .. } => is_active(root, unit, check.timeout()),
            HealthCheck::Tcp { .. } | HealthCheck::Http { .. } => probe::in_child(check),
        };
        match result {
            Ok(()) => say(format!("check {what}: holds")),
            Err(detail) => {
                say(format!("check {what}: does not hold: {detail}"));
                findings.push(Finding { what, detail });
            }
        }
    }
    findings
}

fn run_command(root: &Path, command: &[String], limit: Duration) -> Result<(), String> {
    let Some((program, args)) = command.split_first().filter(|(program, _)| program.starts_with('/')) else {
        return Err("the command does not start with a program's absolute path".into());
    };
    let argv = if root == Path::new("/") {
        // Tools are named by constants everywhere else. The checks are few, and this process does one operation.
        Argv::new(program.clone().leak(), args.to_vec())
    } else {
        let mut inside = vec![root.display().to_string()];
        inside.extend_from_slice(command);
        Argv::new("/usr/sbin/chroot", inside)
    };
    let said = run::capture(&argv, limit).map_err(|error| error.to_string())?;
    let how = match said.code {
        Some(0) => return Ok(()),
        Some(code) => format!("it exited with {code}"),
        None => "a signal ended it".into(),
    };
    let text = said.text();
    let mut last: Vec<String> = text
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(TOLD_LINES)
        .map(probe::printable)
        .collect();
    last.reverse();
    Err(if last.is_empty() {
        format!("{how} and said nothing")
    } else {
        format!("{how}: {}", last.join(" / "))
    })
}

fn is_active(root: &Path, unit: &str, limit: Duration) -> Result<(), String> {
    if !units::is_systemd_running(root) {
        return Err("systemd does not run here".into());
    }
    probe::until(Instant::now() + limit, |_| {
        let units = units::show([unit])?;
        match find(&units, unit) {
            Some(found) if matches!(found.active.as_str(), "active" | "reloading" | "refreshing") => Ok(()),
            Some(found) => Err(format!("it is {} ({})", found.active, found.sub)),
            None => Err("systemd does not know it".into()),
        }
    })
}

/// Whether the agent runs, listens, and stays up; for changes of the agent itself, if it ran before.
///
/// # Errors
/// What is the matter when `patience` is over.
pub(crate) fn agent_is_up(settings: &Settings, patience: Duration) -> Result<(), Finding> {
    if !units::is_systemd_running(Path::new("/")) {
        return Ok(());
    }
    let deadline = Instant::now() + patience;
    let mut steady = Steady::default();
    loop {
        let problem = match agent_once(settings, units::show([AGENT_UNIT]), &listening_tcp()) {
            Ok(process) => {
                if steady.held(Instant::now(), process) >= AGENT_STEADY {
                    return Ok(());
                }
                "it does not stay up: its process changes".to_owned()
            }
            Err(problem) => {
                steady = Steady::default();
                problem
            }
        };
        if Instant::now() >= deadline {
            return Err(Finding::new(format!("unit {AGENT_UNIT}"), problem));
        }
        std::thread::sleep(LOOK);
    }
}

/// The agent's process and how often it was started anew, if it runs and listens.
fn agent_once(
    settings: &Settings,
    units: Result<Vec<Unit>, String>,
    listening: &[Listening],
) -> Result<(u32, u32), String> {
    let units = units?;
    let unit = find(&units, AGENT_UNIT).ok_or("systemd does not know it")?;
    if unit.active != "active" {
        return Err(format!("it is {} ({}), its last result: {}", unit.active, unit.sub, unit.result));
    }
    if !listening.iter().any(|socket| socket.address.port() == settings.port) {
        return Err(format!("it runs and does not listen on port {}", settings.port));
    }
    Ok((unit.main_pid, unit.restarts))
}

#[cfg(test)]
#[path = "health/tests.rs"]
mod tests;
