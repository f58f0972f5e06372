//! A process that holds namespaces open for as long as its owner lives.
//!
//! The holder is PID 1 of a PID namespace (where one is asked for) and reads its standard input, a pipe whose other
//! end only the owner has. When the owner drops the holder, or dies in whatever way, the pipe ends, the holder ends,
//! and with it the kernel ends every process in the namespace and takes back its mounts and network interfaces.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait;

/// How long the setting up and the taking down may take on a machine under load.
const LIMIT: Duration = Duration::from_secs(30);

/// The processes of a held set of namespaces.
#[derive(Debug)]
pub(crate) struct Holder {
    /// `unshare`, which waits for the process inside. Not reaped before the holder goes, so that no process id that
    /// is built upon it can come to mean something else.
    unshare: Child,
    inside: u32,
    stdin: Option<ChildStdin>,
}

impl Holder {
    /// Makes the namespaces named by `flags` (options of `unshare`) and runs the shell `script` with `arguments` in
    /// them. The script sets things up, then must end with [`Holder::STAY`] or its like: print one line and read
    /// standard input to its end.
    pub(crate) fn start(flags: &[&str], script: &str, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new("unshare");
        command
            .args(flags)
            .args(["--fork", "--kill-child", "--", "/bin/sh", "-euc", script, "sh"])
            .args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: an interrupt typed at the terminal is for the owner alone.
        command.process_group(0);
        let mut unshare = command.spawn().context("cannot start `unshare`; is util-linux installed?")?;
        let stdin = unshare.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = unshare.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).context("cannot hear from the holder")?;
        }
        let mut holder = Self { inside: 0, unshare, stdin };
        if line.trim() != "ready" {
            holder.stdin = None;
            let mut said = String::new();
            if let Some(mut stderr) = holder.unshare.stderr.take() {
                stderr.read_to_string(&mut said).unwrap_or_default();
            }
            bail!("cannot set up namespaces ({}): {}", flags.join(" "), said.trim_end());
        }
        holder.inside =
            children(holder.unshare.id()).first().copied().context("the holder has ended at once")?;
        Ok(holder)
    }

    /// The end of a script: says that all is set up, then stays until standard input ends.
    pub(crate) const STAY: &str = "\necho ready; exec cat >/dev/null 2>&1\n";

    /// The process inside the namespaces, as seen from the machine.
    pub(crate) fn pid(&self) -> u32 {
        self.inside
    }

    /// A command that will run in the namespaces named by `flags` (options of `nsenter`) of the holder.
    pub(crate) fn enter(&self, flags: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.inside.to_string()]).args(flags).arg("--");
        command
    }

    /// Ends the holder and waits until everything in its namespaces is gone.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.stdin = None;
        let ended = wait::until("a holder's namespaces to end", LIMIT, || Ok(self.unshare.try_wait()?));
        if ended.is_err() {
            // `--kill-child` takes the process inside along.
            self.unshare.kill().unwrap_or_default();
        }
        self.unshare.wait().context("cannot learn how the holder ended")?;
        ended.map(drop)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("system-tests: {error:#}");
        }
    }
}

/// The child processes of `pid`.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    // One file for each thread, as a child belongs to the thread that made it.
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists =
        threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<_>>())
        .collect()
}
