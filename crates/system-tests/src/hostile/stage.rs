//! The daemon and the root side in a throw-away root, reachable on the machine's loopback interface.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{Repository, Root, RootOptions, executor::ExecutorIn, hostile::Client, packages::Packages, wait};

/// Where the agent listens.
pub const AGENT: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Where its good client comes from.
pub const FRIEND: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Who is not on its list.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 9, 9, 9);

/// Like the unit's.
const LIMIT_OF_FILES: &str = "8192";

/// A running agent. It ends when this is dropped.
#[derive(Debug)]
pub struct Stage {
    /// The root in which it runs.
    pub root: Root,
    /// Its certificates, with a client's named `alice`.
    pub pki: tempfile::TempDir,
    /// Where it listens.
    pub address: SocketAddr,
    _executor: ExecutorIn,
    _repository: Repository,
    daemon: Child,
    pid: String,
}

impl Stage {
    /// Starts it with these packages of the repository's first day installed, of which the second day has updates. On its
    /// list are all of 127.0.0.0/16.
    ///
    /// # Errors
    /// When it does not come up; the message has what it said.
    pub fn new(packages: &[&str]) -> Result<Self> {
        let repository = Repository::new()?;
        let root = Root::new(RootOptions::default().repository(&repository).machine_network())?;
        root.push("force-unsafe-io\n", "/etc/dpkg/dpkg.cfg.d/lp-test", "644")?;
        root.exec_ok(&["/usr/bin/apt-get", "-qq", "--error-on=any", "update"])?;
        if !packages.is_empty() {
            root.exec_ok(&[&["/usr/bin/apt-get", "-qq", "-y", "install"], packages].concat())?;
            repository.publish_day(1)?;
            root.exec_ok(&["/usr/bin/apt-get", "-qq", "--error-on=any", "update"])?;
        }
        // There is no service manager in a root: no units, and nobody to be told to reboot.
        root.push("#!/bin/sh\necho '[]'\n", "/usr/bin/systemctl", "755")?;
        let executor = ExecutorIn::start(&root, &Packages::executor()?)?;
        let program = Packages::daemon()?;
        root.push_file(&program, "/usr/bin/linux-patch-api", "755")?;
        let pki = tempfile::tempdir()?;
        certificates(&program, pki.path())?;
        for (file, mode) in
            [("ca.pem", "644"), ("server.pem", "644"), ("server.key.pem", "600"), ("crl.pem", "644")]
        {
            root.push_file(&pki.path().join(file), &format!("/etc/linux_patch_api/certs/{file}"), mode)?;
        }
        root.push("allowed_ips: [127.0.0.0/16]\n", "/etc/linux_patch_api/whitelist.yaml", "644")?;
        root.exec_ok(&["mkdir", "-p", "/var/lib/linux_patch_api/jobs", "/var/log/linux_patch_api"])?;
        // Taken again at once by the daemon, so that nobody else is likely to get it.
        let port = TcpListener::bind((AGENT, 0))?.local_addr()?.port();
        let config = format!(
            "server: {{port: {port}, bind_address: \"{AGENT}\"}}\n\
             security: {{rate_limit_requests_per_minute: 100000000}}\n"
        );
        root.push(config, "/etc/linux_patch_api/config.yaml", "644")?;
        let script = format!(
            "ulimit -n {LIMIT_OF_FILES}; echo $$ > /run/daemon.pid; exec /usr/bin/linux-patch-api > /run/daemon.log 2>&1"
        );
        let mut command = root.command(&["/bin/sh", "-c", &script])?;
        let daemon = command.stdin(Stdio::null()).spawn().context("cannot start the daemon")?;
        let mut stage = Self {
            address: (AGENT, port).into(),
            root,
            pki,
            _executor: executor,
            _repository: repository,
            daemon,
            pid: String::new(),
        };
        let client = stage.client()?;
        wait::until("the agent answers", Duration::from_secs(30), || {
            Ok(client.once(FRIEND, "/health").ok().filter(|answer| answer.status == 200).map(drop))
        })
        .with_context(|| stage.log().unwrap_or_default())?;
        stage.pid = stage.root.read_text("/run/daemon.pid")?.trim().to_owned();
        Ok(stage)
    }

    /// A client with alice's certificate.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub fn client(&self) -> Result<Client> {
        Client::new(self.address, self.pki.path())
    }

    /// What the daemon wrote to its log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> Result<String> {
        self.root.read_text("/run/daemon.log")
    }

    /// The audit trail.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn trail(&self) -> Result<String> {
        self.root.read_text("/var/log/linux_patch_api/audit.log")
    }

    /// What the daemon holds in memory of its own, in KiB.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory_kib(&self) -> Result<u64> {
        let status =
            self.root.read_text(&format!("/proc/{}/status", self.pid)).context("the daemon is gone")?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).context("no RssAnon")
    }

    /// The daemon has not died or started anew.
    ///
    /// # Errors
    /// When it has; the message has its log.
    pub fn assert_alive(&self) -> Result<()> {
        let answer =
            self.client()?.once(FRIEND, "/health").with_context(|| self.log().unwrap_or_default())?;
        ensure!(answer.status == 200, "{}\n{}", answer.text, self.log()?);
        let log = self.log()?;
        ensure!(!log.contains("panicked"), "{log}");
        self.memory_kib().map(drop)
    }

    /// Ends the daemon in an orderly way, after which its log and trail are whole.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.root.exec_ok(&["kill", "-TERM", &self.pid])?;
        let daemon = &mut self.daemon;
        wait::until("the daemon ends", Duration::from_secs(30), || Ok(daemon.try_wait()?.map(drop)))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Only its way into the root; the daemon itself goes with the root.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn certificates(program: &Path, into: &Path) -> Result<()> {
    let mut init = Command::new(program);
    init.args(["pki", "init"]).arg(into);
    init.args(["--server-name", "localhost", "--server-ip", &AGENT.to_string(), "--client", "alice"]);
    let output = init.output().context("cannot start linux-patch-api")?;
    ensure!(output.status.success(), "pki init failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
