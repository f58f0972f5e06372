//! `cargo xtask demo`: the agent's main job, live, on a real throw-away host.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use system_tests::{Host, HostOptions, Network, Repository, base, wait};

use crate::dist::{self, Profile};

/// Options of `demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Leave the host up at the end and say how to talk to it, until Enter is pressed.
    #[arg(long)]
    keep: bool,
    /// Use the programs as they are shipped (takes minutes to build).
    #[arg(long)]
    release: bool,
}

/// Packages that the demonstration installs first, at the versions of the repository's first day.
const FIRST: &[&str] = &["lp-plain", "lp-app", "lp-lib", "lp-conf", "lp-daemon", "lp-epoch", "lp-held"];

struct Stage {
    network: Network,
    host: Host,
    patchctl: PathBuf,
    pki: PathBuf,
    // The host sees it; it goes when the host has gone.
    _repository: Repository,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Demo) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demonstration boots a real host, which needs root: run `sudo -E env PATH=\"$PATH\" cargo xtask demo`"
    );
    let begun = Instant::now();
    say("Building the agent, its root side and patchctl, and packing them as .deb");
    let work = tempfile::tempdir().context("cannot make a directory for the demonstration")?;
    let profile = if args.release { Profile::Release } else { Profile::Dev };
    base::deps()?;
    let packages = dist::build(profile, &work.path().join("dist"), None)?;
    let stage = set_up(work.path(), &packages)?;
    show(&stage)?;
    if args.keep {
        keep(&stage)?;
    }
    drop(stage);
    println!("\nDone in {:.1} s. Nothing of this is left on the machine.", begun.elapsed().as_secs_f64());
    Ok(())
}

fn say(what: &str) {
    println!("\n\x1b[1m── {what}\x1b[0m");
}

fn set_up(work: &Path, packages: &dist::Packages) -> Result<Stage> {
    say("Booting a throw-away Debian host with systemd, on a private network of its own");
    let repository = Repository::new()?;
    let network = Network::new()?;
    let begun = Instant::now();
    let host = Host::boot(&network, HostOptions::named("web1").repository(&repository))?;
    println!("web1 is up at {} after {:.1} s", host.ip(), begun.elapsed().as_secs_f64());
    repository.configure(&host, Repository::FILES)?;
    let mut install = vec!["apt-get", "-qq", "-y", "install"];
    install.extend(FIRST);
    host.exec_ok(&install)?;
    host.exec_ok(&["apt-mark", "hold", "lp-held"])?;

    say("Making a certificate authority, a server's and a client's certificate: linux-patch-api pki init");
    let (programs, pki) = (work.join("programs"), work.join("pki"));
    for deb in [&packages.agent, &packages.patchctl] {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(deb).arg(&programs);
        ensure!(
            unpack.status().context("cannot start dpkg-deb")?.success(),
            "cannot unpack {}",
            deb.display()
        );
    }
    let mut init = Command::new(programs.join("usr/bin/linux-patch-api"));
    init.args(["pki", "init"]).arg(&pki);
    init.args(["--server-name", "web1", "--server-ip", &host.ip().to_string(), "--client", "alice"]);
    ensure!(
        init.status().context("cannot start linux-patch-api")?.success(),
        "the certificates could not be made"
    );

    say(
        "Installing the agent on web1 as its package, with its certificates and alice's network on the allow list",
    );
    host.push_file(&packages.agent, "/root/linux-patch-api.deb", "644")?;
    for (name, mode) in [("ca.pem", "644"), ("server.pem", "644"), ("server.key.pem", "600")] {
        host.push_file(&pki.join(name), &format!("/etc/linux_patch_api/certs/{name}"), mode)?;
    }
    host.push(format!("allowed_ips:\n  - {}\n", network.address()), "/root/whitelist.yaml", "644")?;
    host.exec_ok(&["apt-get", "-qq", "-y", "install", "/root/linux-patch-api.deb"])?;
    host.exec_ok(&["cp", "/root/whitelist.yaml", "/etc/linux_patch_api/whitelist.yaml"])?;
    host.exec_ok(&["systemctl", "restart", "linux-patch-api"])?;
    println!(
        "{}",
        host.exec_ok(&["systemctl", "--no-pager", "--lines=0", "status", "linux-patch-api"])?.trim_end()
    );

    // The next day: the archive publishes fixes.
    repository.publish_day(1)?;
    let stage =
        Stage { patchctl: programs.join("usr/bin/patchctl"), network, host, pki, _repository: repository };
    wait::until("the agent answers", Duration::from_secs(20), || {
        Ok(stage.quiet(&["health"])?.then_some(()))
    })?;
    Ok(stage)
}

impl Stage {
    fn command(&self, args: &[&str]) -> Command {
        let program = self.patchctl.display().to_string();
        let mut argv = vec![program.as_str()];
        argv.extend(args);
        let mut command = self.network.command(&argv);
        command
            .env("PATCHCTL_HOST", self.host.ip().to_string())
            .env("PATCHCTL_CA", self.pki.join("ca.pem"))
            .env("PATCHCTL_CERT", self.pki.join("alice.pem"))
            .env("PATCHCTL_KEY", self.pki.join("alice.key.pem"));
        command
    }

    fn quiet(&self, args: &[&str]) -> Result<bool> {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.status().context("cannot start patchctl")?.success())
    }

    /// Runs patchctl in front of the reader's eyes.
    fn client(&self, args: &[&str]) -> Result<()> {
        println!("\n\x1b[36m$ patchctl {}\x1b[0m", args.join(" "));
        let status = self.command(args).status().context("cannot start patchctl")?;
        ensure!(status.success(), "patchctl {} ended with {status}", args.join(" "));
        Ok(())
    }

    /// Runs a command on the host in front of the reader's eyes.
    fn on_host(&self, argv: &[&str]) -> Result<()> {
        println!("\n\x1b[36mroot@web1# {}\x1b[0m", argv.join(" "));
        println!("{}", self.host.exec_ok(argv)?.trim_end());
        Ok(())
    }
}

fn show(stage: &Stage) -> Result<()> {
    say("A client with a certificate asks the agent over TLS 1.3");
    stage.client(&["info"])?;
    stage.client(&["packages", "lp-*"])?;
    say("The archive has published fixes meanwhile: fetch the indexes, see what is pending");
    stage.client(&["refresh"])?;
    stage.client(&["patches"])?;
    stage.client(&["why-not", "lp-held"])?;
    say("What would be done? A dry run shows the plan and its hash; nothing is changed");
    stage.client(&["apply", "--security-only", "--dry-run"])?;
    say("Apply all patches and watch the job live");
    stage.client(&["apply", "--yes", "--verbose"])?;
    stage.client(&["jobs"])?;
    stage.client(&["packages", "lp-*"])?;
    say("Somebody without a certificate gets nothing: not one byte of HTTP");
    let url = format!("https://{}:12443/api/v1/packages", stage.host.ip());
    println!("\n\x1b[36m$ curl --insecure {url}\x1b[0m");
    let curl = stage
        .network
        .command(&["curl", "--insecure", "--silent", "--show-error", "--max-time", "10", &url])
        .output();
    match curl {
        Ok(output) => {
            ensure!(!output.status.success() && output.stdout.is_empty(), "a stranger was answered");
            println!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Err(_) => println!("(curl is not installed on this machine)"),
    }
    say("The audit trail on the host: every record carries the hash of the one before");
    stage.on_host(&["linux-patch-api", "audit", "show", "--last", "12"])?;
    stage.on_host(&["linux-patch-api", "audit", "verify"])?;
    Ok(())
}

fn keep(stage: &Stage) -> Result<()> {
    let (ip, pki) = (stage.host.ip(), stage.pki.display());
    let namespace = stage.network.enter();
    println!(
        "\nweb1 stays up until you press Enter. In another terminal, as root:\n\n\
         nsenter --net={} \\\n  env PATCHCTL_HOST={ip} PATCHCTL_CA={pki}/ca.pem PATCHCTL_CERT={pki}/alice.pem PATCHCTL_KEY={pki}/alice.key.pem \\\n  \
         {} patches\n\n\
         nsenter --net={} \\\n  curl --cacert {pki}/ca.pem --cert {pki}/alice.pem --key {pki}/alice.key.pem https://{ip}:12443/api/v1/packages\n",
        namespace.display(),
        stage.patchctl.display(),
        namespace.display(),
    );
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read from the terminal")?;
    Ok(())
}
