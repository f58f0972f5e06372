//! What is shipped: the packages under load, the tarball and its installer, manuals, completions, sums.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{packages::Packages, trials::trial};

use crate::{
    changing::{boot_with_slow, let_go, start_slow},
    fixture::Agent,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("an_upgrade_under_load_loses_no_job", an_upgrade_under_load_loses_no_job),
        trial("the_tarball_installs_upgrades_and_goes", the_tarball_installs_upgrades_and_goes),
        trial("a_damaged_tarball_installs_nothing", a_damaged_tarball_installs_nothing),
        trial("what_is_shipped_is_whole", what_is_shipped_is_whole),
        trial("lintian_finds_nothing", lintian_finds_nothing),
        trial("the_shells_scripts_are_sound", the_shells_scripts_are_sound),
    ]
}

/// How long an upgrade may take, with the jobs that it waits for.
const LIMIT: Duration = Duration::from_secs(100);

/// Requests one after the other until told to stop; gives when the first and the last one failed, and how many did not.
fn ask_until(agent: &Agent, is_over: &AtomicBool) -> Result<(Option<(Instant, Instant)>, usize)> {
    let (mut failed, mut good) = (None::<(Instant, Instant)>, 0);
    while !is_over.load(Ordering::Relaxed) {
        match agent.get("/packages?limit=1") {
            Ok(answer) if answer.status == 200 => good += 1,
            // What is refused while the daemon stops is as good as not answered.
            Ok(_) | Err(_) => {
                let now = Instant::now();
                failed = Some((failed.map_or(now, |(first, _)| first), now));
            }
        }
    }
    Ok((failed, good))
}

fn an_upgrade_under_load_loses_no_job() -> Result<()> {
    let agent = boot_with_slow("underload")?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let load = scope.spawn(|| ask_until(&agent, &is_over));
        let work = || -> Result<Vec<(Instant, Instant)>> {
            let downgraded = Instant::now();
            agent.install(&agent.packages().old_agent()?)?;
            agent.wait_until_up()?;
            let downgraded = (downgraded, Instant::now());
            // A job is in the middle of its change, another one waits for it, and the upgrade waits as well.
            let slow = start_slow(&agent)?;
            let wish = json!({"packages": [{"name": "lp-plain", "version": "1.0-1"}]});
            let second = agent.submit("POST", "/packages", &wish)?;
            agent.host.push_file(&agent.packages().agent()?, "/root/agent.deb", "644")?;
            let upgraded = Instant::now();
            let mut upgrade = agent.host.spawn(&[
                "apt-get",
                "-qq",
                "-y",
                "-o",
                "DPkg::Lock::Timeout=100",
                "-o",
                "Dpkg::Options::=--force-confold",
                "install",
                "/root/agent.deb",
            ])?;
            let_go(&agent)?;
            for id in [&slow, &second] {
                let ended = agent.end_of(id)?;
                ensure!(ended["status"] == "completed", "{ended:#}");
            }
            ensure!(upgrade.wait()?.success(), "the upgrade failed");
            agent.wait_until_up()?;
            let changes = vec![downgraded, (upgraded, Instant::now())];
            let now = agent.host.exec_ok(&["linux-patch-api", "--version"])?;
            ensure!(agent.version("linux-patch-api")? == env!("CARGO_PKG_VERSION"), "{now}");
            for id in [&slow, &second] {
                ensure!(agent.job(id)?["status"] == "completed", "a job is lost");
            }
            // And the first one: the indexes were fetched.
            ensure!(agent.get("/jobs")?.data()?["total"] == 3);
            Ok(changes)
        };
        let changes = work();
        is_over.store(true, Ordering::Relaxed);
        let (failed, good) = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        let changes = changes?;
        ensure!(good > 20, "only {good} requests were answered");
        if let (Some((first, last)), Some(begin)) = (failed, changes.first()) {
            let end = changes.last().map_or(begin.1, |last| last.1);
            ensure!(first >= begin.0 && last <= end, "requests failed while nothing was changed");
        }
        for (begun, done) in changes {
            ensure!(done - begun < LIMIT, "a change took {:?}", done - begun);
        }
        Ok(())
    })?;
    agent.host.exec_ok(&["linux-patch-api", "audit", "verify"]).map(drop)
}

/// Everything on the host that an installation could have left, but logs and caches of the tools that it calls.
fn everything(agent: &Agent) -> Result<Vec<String>> {
    let listed = agent.host.shell(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /root -o -path /srv -o -path /dev \
         -o -path /var/log/journal -o -path /var/cache -o -path /var/lib/systemd -o -path /var/tmp \
         -o -path /etc/linux_patch_api -o -path '/var/lib/linux_patch_*/*' \\) -prune -o -print | LC_ALL=C sort",
    )?;
    // Copies that useradd and userdel leave.
    let lines = listed.lines().filter(|line| {
        !["passwd-", "shadow-", "group-", "gshadow-", "subuid-", "subgid-"]
            .iter()
            .any(|end| line.ends_with(end))
    });
    Ok(lines.map(str::to_owned).collect())
}

/// Nothing came, nothing went.
fn ensure_same(before: &[String], after: &[String]) -> Result<()> {
    let more: Vec<_> = after.iter().filter(|path| !before.contains(path)).collect();
    let less: Vec<_> = before.iter().filter(|path| !after.contains(path)).collect();
    ensure!(more.is_empty() && less.is_empty(), "more: {more:#?}; less: {less:#?}");
    Ok(())
}

/// Unpacks a tarball on the host, and gives its directory.
fn unpack(agent: &Agent, is_new: bool) -> Result<String> {
    let tarball = agent.packages().tarball(is_new)?;
    agent.host.push_file(&tarball, "/root/linux-patch.tar.gz", "644")?;
    let name = tarball.file_name().context("no name")?.to_string_lossy().replace(".tar.gz", "");
    agent.host.exec_ok(&["tar", "-C", "/root", "-xzf", "/root/linux-patch.tar.gz"])?;
    Ok(format!("/root/{name}"))
}

fn the_tarball_installs_upgrades_and_goes() -> Result<()> {
    let agent = Agent::without_agent("tarball", &[])?;
    let before = everything(&agent)?;
    let (old, new) = (unpack(&agent, false)?, unpack(&agent, true)?);
    let install = |from: &str| agent.host.exec_ok(&["sh", &format!("{from}/install.sh")]);
    let version = || agent.host.exec_ok(&["linux-patch-api", "--version"]);
    install(&old)?;
    agent.allow(&[&agent.network.address().to_string()])?;
    agent.wait_until_up()?;
    let job = agent.change(
        "POST",
        "/packages",
        &json!({"packages": [{"name": "lp-plain", "version": "1.0-1"}]}),
    )?;
    ensure!(job["status"] == "completed", "{job:#}");
    let installed = everything(&agent)?;
    install(&old)?;
    ensure_same(&installed, &everything(&agent)?)?;
    // The administrator's changes stay, also over an upgrade; what is the same is not mentioned.
    let said = install(&new)?;
    ensure!(!said.contains("kept your"), "{said}");
    agent.wait_until_up()?;
    ensure!(agent.get("/jobs")?.data()?["total"] == 1, "the jobs did not survive the upgrade");
    let enabled = agent.host.exec_ok(&[
        "systemctl",
        "is-enabled",
        "linux-patch-api",
        "linux-patch-executor.socket",
        "linux-patch-notify.timer",
        "linux-patch-policy.timer",
    ])?;
    ensure!(enabled.lines().all(|line| line == "enabled"), "{enabled}");
    ensure!(
        agent
            .host
            .read_text("/etc/linux_patch_api/whitelist.yaml")?
            .contains(&agent.network.address().to_string())
    );
    ensure!(version()?.contains(env!("CARGO_PKG_VERSION")));
    // Not by accident to the version before.
    let release = || agent.host.read_text("/usr/libexec/linux-patch-api/VERSION");
    let refused = agent.host.exec(&["sh", &format!("{old}/install.sh")])?;
    ensure!(refused.code() == Some(1) && refused.stderr.contains("--allow-downgrade"), "{refused:?}");
    ensure!(release()?.trim() == "0.1.0", "a refused downgrade changed something");
    let said = agent.host.exec_ok(&["sh", &format!("{old}/install.sh"), "--allow-downgrade"])?;
    ensure!(said.contains("becomes the older") && release()?.trim() == "0.0.1", "{said}");
    agent.wait_until_up()?;
    install(&new)?;
    agent.wait_until_up()?;

    // Without the tarball: the installer is on the host.
    let installer = "/usr/libexec/linux-patch-api/install.sh";
    agent.host.exec_ok(&["sh", installer, "--uninstall"])?;
    ensure!(!agent.host.exec(&["test", "-e", "/usr/bin/linux-patch-api"])?.success());
    for kept in ["/etc/linux_patch_api/config.yaml", "/var/log/linux_patch_api/audit.log"] {
        ensure!(agent.host.exec(&["test", "-e", kept])?.success(), "uninstalling took {kept}");
    }
    ensure!(agent.get("/health").is_err(), "a removed agent answers");
    agent.host.exec_ok(&["sh", &format!("{new}/install.sh"), "--uninstall"])?;
    install(&new)?;
    agent.wait_until_up()?;
    agent.host.exec_ok(&["sh", installer, "--purge"])?;
    agent.host.exec_ok(&["apt-get", "-qq", "-y", "purge", "lp-plain"])?;
    let after = everything(&agent)?;
    let left: Vec<_> = after.iter().filter(|path| !before.contains(path) && path.contains("patch")).collect();
    let gone: Vec<_> = before.iter().filter(|path| !after.contains(path)).collect();
    ensure!(left.is_empty() && gone.is_empty(), "left: {left:#?}; gone: {gone:#?}");
    let certs = agent.host.shell("ls -A /etc/linux_patch_api /etc/linux_patch_api/certs")?;
    ensure!(
        certs.contains("server.key.pem") && !certs.contains("yaml") && !certs.contains("installed"),
        "{certs}"
    );
    ensure!(!agent.host.exec(&["getent", "passwd", "linux-patch-api"])?.success(), "the user is left");
    let units = agent
        .host
        .exec_ok(&["systemctl", "list-unit-files", "--no-legend", "linux-patch*"])
        .unwrap_or_default();
    ensure!(units.trim().is_empty(), "{units}");
    Ok(())
}

fn a_damaged_tarball_installs_nothing() -> Result<()> {
    let agent = Agent::without_agent("damaged", &[])?;
    let dir = unpack(&agent, true)?;
    let before = everything(&agent)?;
    let refused = |spoil: &str, mend: &str, said: &str| -> Result<()> {
        agent.host.shell(&format!("cd {dir} && {spoil}"))?;
        let output = agent.host.exec(&["sh", &format!("{dir}/install.sh")])?;
        ensure!(output.code() == Some(1) && output.stderr.contains(said), "{spoil}: {output:?}");
        agent.host.shell(&format!("cd {dir} && {mend}")).map(drop)
    };
    refused(
        "cp -p files/usr/bin/patchctl /root/ && echo >>files/usr/bin/patchctl",
        "mv /root/patchctl files/usr/bin/",
        "damaged",
    )?;
    refused("touch files/usr/bin/more", "rm files/usr/bin/more", "does not name")?;
    refused("mv SHA256SUMS /root/", "mv /root/SHA256SUMS .", "missing")?;
    ensure_same(&before, &everything(&agent)?)?;
    let usage = agent.host.exec(&["sh", &format!("{dir}/install.sh"), "--force"])?;
    ensure!(usage.code() == Some(2), "{usage:?}");
    // What dpkg looks after is left to it.
    agent.install(&agent.packages().agent()?)?;
    for option in ["", "--purge"] {
        let script = format!("sh {dir}/install.sh {option}");
        let output = agent.host.exec(&["sh", "-c", &script])?;
        ensure!(
            output.code() == Some(1) && output.stderr.contains("apt-get purge")
                || output.stderr.contains("as a package"),
            "{output:?}"
        );
    }
    agent.wait_until_up()?;
    // Nor is what the tarball shares with another package of ours, neither replaced nor taken away.
    agent.host.exec_ok(&["apt-get", "-qq", "-y", "purge", "linux-patch-api"])?;
    let patchctl = agent.packages().patchctl()?;
    let intact = || agent.host.exec_ok(&["dpkg", "--verify", "patchctl"]);
    agent.install(&patchctl)?;
    let before = everything(&agent)?;
    let output = agent.host.exec(&["sh", &format!("{dir}/install.sh")])?;
    ensure!(
        output.code() == Some(1) && output.stderr.contains("apt-get remove patchctl"),
        "over a package: {output:?}"
    );
    ensure_same(&before, &everything(&agent)?)?;
    agent.host.exec_ok(&["apt-get", "-qq", "-y", "remove", "patchctl"])?;
    agent.host.exec_ok(&["sh", &format!("{dir}/install.sh"), "--no-start"])?;
    agent.install(&patchctl)?;
    let said = agent.host.exec_ok(&["sh", &format!("{dir}/install.sh"), "--uninstall"])?;
    ensure!(said.contains("left /usr/bin/patchctl"), "{said}");
    ensure!(intact()?.is_empty(), "{}", intact()?);
    ensure!(
        !agent.host.exec(&["test", "-e", "/usr/bin/linux-patch-api"])?.success(),
        "the agent is still there"
    );

    // A package over the tarball's files: they are dpkg's from then on.
    agent.host.exec_ok(&["apt-get", "-qq", "-y", "purge", "patchctl"])?;
    agent.host.exec_ok(&["sh", &format!("{dir}/install.sh")])?;
    agent.host.push_file(&agent.packages().agent()?, "/root/agent.deb", "644")?;
    agent.host.shell("apt-get -qq -y -o Dpkg::Options::=--force-confold install /root/agent.deb")?;
    let output = agent.host.exec(&["sh", &format!("{dir}/install.sh"), "--purge"])?;
    ensure!(
        output.code() == Some(1) && output.stderr.contains("apt-get remove linux-patch-api"),
        "{output:?}"
    );
    let verified = agent.host.exec_ok(&["dpkg", "--verify", "linux-patch-api"])?;
    ensure!(!verified.contains("missing"), "{verified}");
    agent.wait_until_up()
}

fn unpacked(deb: &Path) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let status = Command::new("dpkg-deb").arg("-x").arg(deb).arg(dir.path()).status()?;
    ensure!(status.success(), "cannot unpack {}", deb.display());
    Ok(dir)
}

fn ran(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    Ok(said)
}

fn what_is_shipped_is_whole() -> Result<()> {
    let packages = Packages::get()?;
    let dir = packages.agent()?.parent().context("no directory")?.to_owned();
    ran(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&dir))?;
    let bill = fs::read_dir(&dir)?.flatten().map(|entry| entry.path());
    let bill: PathBuf =
        bill.into_iter().find(|path| path.to_string_lossy().ends_with(".cdx.json")).context("no bill")?;
    let bill: Value = serde_json::from_slice(&fs::read(bill)?)?;
    ensure!(bill["specVersion"] == "1.5" && bill["components"].as_array().is_some_and(|all| all.len() > 100));

    for (deb, programs) in [
        (packages.agent()?, vec![("linux-patch-api", "8"), ("linux-patch-host", "8")]),
        (packages.patchctl()?, vec![("patchctl", "1")]),
    ] {
        let tree = unpacked(&deb)?;
        for (name, section) in programs {
            let pages = tree.path().join(format!("usr/share/man/man{section}"));
            let page = ran(Command::new("gzip").arg("-dc").arg(pages.join(format!("{name}.{section}.gz"))))?;
            for heading in ["NAME", "SYNOPSIS", "OPTIONS", "EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO"] {
                ensure!(page.contains(heading), "{name}({section}) has no {heading}");
            }
            // What a page refers to of ours is there.
            for word in page.split_whitespace().filter(|word| word.contains(&format!("({section})"))) {
                let subject = word.replace('\\', "").replace("fR", "").replace("fB", "");
                let subject = subject.split('(').next().unwrap_or_default().to_owned();
                if subject.starts_with(&format!("{name}-")) {
                    let file = pages.join(format!("{subject}.{section}.gz"));
                    ensure!(file.exists(), "{name} refers to {subject}, and there is no page of it");
                }
            }
            let bash = tree.path().join(format!("usr/share/bash-completion/completions/{name}"));
            ran(Command::new("bash").arg("-n").arg(bash))?;
            for other in
                [format!("zsh/vendor-completions/_{name}"), format!("fish/vendor_completions.d/{name}.fish")]
            {
                let text = fs::read_to_string(tree.path().join("usr/share").join(&other))?;
                ensure!(text.contains(name), "{other}");
            }
        }
    }
    let tree = unpacked(&packages.agent()?)?;
    ran(Command::new("gzip").arg("-t").arg(tree.path().join("usr/share/man/man8/patch-executor.8.gz")))?;
    // The sample configuration is the defaults, and valid; that of the allow list denies everyone.
    let program = tree.path().join("usr/bin/linux-patch-api");
    let pki = tree.path().join("etc/linux_patch_api/certs");
    ran(Command::new(&program).args(["pki", "init"]).arg(&pki).args([
        "--server-name",
        "sample",
        "--client",
        "alice",
    ]))?;
    let said = ran(Command::new(&program).arg("--root").arg(tree.path()).arg("check-config"))?;
    ensure!(said.contains("the configuration is valid") && !said.contains("error"), "{said}");
    Ok(())
}

fn lintian_finds_nothing() -> Result<()> {
    let packages = Packages::get()?;
    // The packages under test are not optimised and not stripped.
    let output = Command::new("lintian")
        .args(["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"])
        .args(["--suppress-tags", "unstripped-binary-or-object"])
        .args([packages.agent()?, packages.patchctl()?])
        .output()
        .context("cannot start lintian")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}");
    Ok(())
}

fn the_shells_scripts_are_sound() -> Result<()> {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
    let mut scripts = vec![packaging.join("install.sh"), packaging.join("cloud-init/msmtp-config.sh")];
    for entry in fs::read_dir(packaging.join("deb"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if ["postinst", "prerm", "postrm", "preinst"].iter().any(|end| name.ends_with(end)) {
            scripts.push(entry.path());
        }
    }
    ensure!(scripts.len() >= 5);
    ran(Command::new("shellcheck").args(["--shell", "sh", "--severity", "style"]).args(&scripts)).map(drop)
}
