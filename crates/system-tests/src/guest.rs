//! Running commands inside a host or a throw-away root.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{Captured, Input, LIMIT, Output, capture, require_success};
use crate::run::runs;
use crate::supervisor::Supervision;

/// The environment that every command in a host or a root gets, and nothing else.
const ENVIRONMENT: [&str; 5] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "TERM=dumb",
    "LC_ALL=C.UTF-8",
    "DEBIAN_FRONTEND=noninteractive",
];

/// A way into a running host or root, as its root user. [`Host`](crate::Host) and [`Root`](crate::Root) dereference
/// to it, so that all of this can be asked of them directly.
#[derive(Debug, Clone)]
pub struct Guest {
    name: String,
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    /// A host of this process: its PID 1 changes with each boot.
    Supervised(Arc<Supervision>),
    /// The process that holds all the namespaces, as long as it lives, and which of them to enter.
    Held(u32, &'static [&'static str]),
}

const HOST_NAMESPACES: &[&str] =
    &["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--time", "--root", "--wd"];

/// Refuses a process whose root is the machine's: commands meant for a guest would run on the machine.
pub(crate) fn ensure_inside(pid: u32) -> Result<()> {
    let root = |path: &str| {
        let metadata = std::fs::metadata(path).with_context(|| format!("cannot look at {path}"))?;
        anyhow::Ok((metadata.dev(), metadata.ino()))
    };
    ensure!(root(&format!("/proc/{pid}/root/."))? != root("/")?, "process {pid} has the machine's root");
    Ok(())
}

impl Guest {
    pub(crate) fn supervised(name: &str, supervision: Arc<Supervision>) -> Self {
        Self { name: name.to_owned(), way: Way::Supervised(supervision) }
    }

    pub(crate) fn held(name: &str, holder: u32, namespaces: &'static [&'static str]) -> Self {
        Self { name: name.to_owned(), way: Way::Held(holder, namespaces) }
    }

    /// Finds the host `name` of another process.
    ///
    /// # Errors
    /// When there is no such host, or it is off.
    pub fn find(name: &str) -> Result<Self> {
        let mut hosts = runs()?.into_iter().filter(|run| run.alive).flat_map(|run| run.hosts);
        let Some(host) = hosts.find(|host| host.name == name) else {
            bail!("no host is named {name}: `cargo xtask host list` shows those that are up")
        };
        let leader = host.leader.with_context(|| format!("the host {name} is off"))?;
        ensure_inside(leader)?;
        Ok(Self::held(name, leader, HOST_NAMESPACES))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command; how it ended is for the caller to judge.
    ///
    /// # Errors
    /// When it cannot be run, or runs longer than five minutes.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        self.capture(argv, Input::Nothing, LIMIT).map(Output::from)
    }

    /// As [`Guest::exec`], with something to read and a limit of time of its own.
    ///
    /// # Errors
    /// When it cannot be run, or runs longer than `limit`.
    pub fn exec_with(&self, argv: &[&str], stdin: impl AsRef<[u8]>, limit: Duration) -> Result<Output> {
        self.capture(argv, Input::Bytes(stdin.as_ref()), limit).map(Output::from)
    }

    /// Runs a command, which must end with 0, and gives its standard output.
    ///
    /// # Errors
    /// When it ends otherwise; the message shows the command line and all that it wrote.
    pub fn exec_ok(&self, argv: &[&str]) -> Result<String> {
        Ok(Output::from(self.require(argv, Input::Nothing)?).stdout)
    }

    /// Runs a `bash` script, each command of which must end with 0, and gives its standard output.
    ///
    /// # Errors
    /// As [`Guest::exec_ok`].
    pub fn shell(&self, script: &str) -> Result<String> {
        self.exec_ok(&["/bin/bash", "-euo", "pipefail", "-c", script])
    }

    /// A command, for the caller to connect and start. Its environment is small and its own.
    ///
    /// # Errors
    /// When the host is off.
    pub fn command(&self, argv: &[&str]) -> Result<Command> {
        let mut command = self.enter()?;
        command.args(ENVIRONMENT).args(argv);
        Ok(command)
    }

    /// A command that uses the terminal of this process.
    ///
    /// # Errors
    /// When the host is off.
    pub fn interactive(&self, argv: &[&str]) -> Result<Command> {
        let mut command = self.enter()?;
        command.args(ENVIRONMENT.iter().filter(|pair| !pair.starts_with("TERM=")));
        command
            .arg(format!("TERM={}", std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned())))
            .args(argv);
        Ok(command)
    }

    /// Starts a command with its standard streams connected to pipes. Killing the child that is returned leaves the
    /// process inside alone.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, argv: &[&str]) -> Result<Child> {
        let mut command = self.command(argv)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().with_context(|| format!("cannot start `{}`", self.describe(argv)))
    }

    /// Writes `bytes` into the file `destination`, making its directories; `mode` as `install -m` takes it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn push(&self, bytes: impl AsRef<[u8]>, destination: &str, mode: &str) -> Result<()> {
        self.install(Input::Bytes(bytes.as_ref()), destination, mode)
    }

    /// Copies the machine's file `source` to `destination`, making its directories.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn push_file(&self, source: &Path, destination: &str, mode: &str) -> Result<()> {
        let file = File::open(source).with_context(|| format!("cannot open {}", source.display()))?;
        self.install(Input::File(file), destination, mode)
    }

    fn install(&self, input: Input<'_>, destination: &str, mode: &str) -> Result<()> {
        self.require(&["/usr/bin/install", "-D", "-m", mode, "/dev/stdin", destination], input).map(drop)
    }

    /// The content of a file.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        Ok(self.require(&["/bin/cat", "--", path], Input::Nothing)?.stdout)
    }

    /// The content of a text file.
    ///
    /// # Errors
    /// When there is no such file, or it is not UTF-8.
    pub fn read_text(&self, path: &str) -> Result<String> {
        String::from_utf8(self.read(path)?).with_context(|| format!("{path} on {} is not UTF-8", self.name))
    }

    /// The installed version of a package, or none when it is not installed and configured.
    ///
    /// # Errors
    /// When `dpkg-query` cannot be run.
    pub fn installed(&self, package: &str) -> Result<Option<String>> {
        let asked =
            self.exec(&["/usr/bin/dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Version}", package])?;
        let mut words = asked.stdout.split_whitespace();
        let is_installed = words.next().is_some_and(|status| matches!(status, "ii" | "hi"));
        Ok(words.next().filter(|_| is_installed).map(str::to_owned))
    }

    pub(crate) fn capture(&self, argv: &[&str], input: Input<'_>, limit: Duration) -> Result<Captured> {
        capture(self.command(argv)?, &self.describe(argv), input, limit)
    }

    fn require(&self, argv: &[&str], input: Input<'_>) -> Result<Captured> {
        require_success(&self.describe(argv), self.capture(argv, input, LIMIT)?)
    }

    fn enter(&self) -> Result<Command> {
        let (target, namespaces) = match &self.way {
            Way::Held(holder, namespaces) => (*holder, *namespaces),
            Way::Supervised(supervision) => {
                let leader = supervision.state().leader;
                (leader.with_context(|| format!("the host {} is off", self.name))?, HOST_NAMESPACES)
            }
        };
        let mut command = Command::new("nsenter");
        command.args(["--target", &target.to_string()]).args(namespaces).args(["--", "/usr/bin/env", "-i"]);
        Ok(command)
    }

    fn describe(&self, argv: &[&str]) -> String {
        format!("{}: {}", self.name, argv.join(" "))
    }
}
