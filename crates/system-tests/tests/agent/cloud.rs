//! The first boot of a host by the real cloud-init, with the documents that are made for it; and its mail by way of a relay.

use std::{
    fs,
    io::{BufRead as _, BufReader, Lines},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use system_tests::{HostOptions, Output, packages::Packages, trials::trial};

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("cloud_init_has_a_host_patch_itself", cloud_init_has_a_host_patch_itself),
        trial("cloud_init_brings_the_agent_into_service", cloud_init_brings_the_agent_into_service),
        trial("msmtp_config_explains_what_keeps_mail_back", msmtp_config_explains_what_keeps_mail_back),
    ]
}

/// The document for a profile.
fn document(arguments: &[&str]) -> Result<Vec<u8>> {
    let program = Packages::get()?.programs()?.join("usr/sbin/linux-patch-host");
    let output = Command::new(program).arg("cloud-init").args(arguments).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// A host of a cloud's before its first boot as one; something is installed that has an update.
fn cloud(name: &str, options: impl FnOnce(HostOptions) -> HostOptions) -> Result<Agent> {
    let host = options(HostOptions::named(name).of_cloud());
    let agent = Agent::without_agent_on(host, &["lp-plain=1.0-1"])?;
    // As on an image of Debian's: the base masks them.
    agent.host.shell(
        "systemctl unmask -q apt-daily.timer apt-daily-upgrade.timer; \
         systemctl stop unattended-upgrades 2>/dev/null || true",
    )?;
    Ok(agent)
}

/// Boots with a document as the user data, and waits for cloud-init's end.
fn first_boot(agent: &Agent, user_data: &[u8]) -> Result<()> {
    let host = &agent.host;
    host.push(user_data, "/var/lib/cloud/seed/nocloud/user-data", "600")?;
    host.push("instance-id: i-1\n", "/var/lib/cloud/seed/nocloud/meta-data", "644")?;
    host.shell("rm /etc/cloud/cloud-init.disabled")?;
    host.reboot()?;
    let ended = host.exec(&["cloud-init", "status", "--wait", "--long"])?;
    let log = || {
        host.shell("cat /var/log/cloud-init-output.log; grep -E 'WARN|ERROR' /var/log/cloud-init.log || true")
    };
    ensure!(ended.success() && ended.stdout.contains("status: done"), "{ended:?}\n{}", log()?);
    ensure!(ended.stdout.contains("nocloud"), "{ended:?}");
    Ok(())
}

/// What the document's timers start, now.
fn patches_itself(agent: &Agent) -> Result<()> {
    let host = &agent.host;
    ensure!(agent.version("lp-plain")? == "1.0-1");
    agent.repository.publish_day(1)?;
    for unit in ["apt-daily", "apt-daily-upgrade"] {
        ensure!(host.exec_ok(&["systemctl", "is-active", &format!("{unit}.timer")])?.trim() == "active");
        ensure!(host.exec_ok(&["systemctl", "is-enabled", &format!("{unit}.timer")])?.trim() == "enabled");
        host.exec_ok(&["systemctl", "start", &format!("{unit}.service")])?;
    }
    ensure!(
        agent.version("lp-plain")? == "1.1-1",
        "{}",
        host.shell("cat /var/log/unattended-upgrades/*.log")?
    );
    Ok(())
}

fn cloud_init_has_a_host_patch_itself() -> Result<()> {
    let agent = cloud("cloud", |host| host)?;
    let host = &agent.host;
    let mail = ["--mail-to", "ops@example.org", "--smtp-preset", "m365"];
    first_boot(&agent, &document(&[&["--profile", "unattended"][..], &mail].concat())?)?;
    let modes = host.shell(
        "stat -c '%a %U %n' /etc/apt/apt.conf.d/50unattended-upgrades /etc/apt/apt.conf.d/20auto-upgrades \
         /etc/msmtprc /etc/aliases /etc/logrotate.d/msmtp /usr/local/sbin/msmtp-config",
    )?;
    let modes: Vec<&str> = modes.lines().filter_map(|line| line.split(' ').next()).collect();
    ensure!(modes == ["644", "644", "600", "644", "644", "755"], "{modes:?}");
    ensure!(host.exec_ok(&["apt-config", "dump"])?.contains("APT::Periodic::Unattended-Upgrade \"always\";"));
    patches_itself(&agent)
}

/// An archive with the agent's package, signed by a key of its own.
fn archive(directory: &Path) -> Result<PathBuf> {
    let deb = Packages::get()?.agent()?;
    let script = "set -eu; cd \"$1\"; export GNUPGHOME=\"$1/gpg\"; mkdir -m 700 gpg; arch=$(dpkg --print-architecture)\n\
        mkdir -p archive/pool archive/dists/stable/main/binary-$arch; cp \"$2\" archive/pool/; cd archive\n\
        apt-ftparchive packages pool >dists/stable/main/binary-$arch/Packages\n\
        apt-ftparchive -o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Codename=stable \\\n\
          -o APT::FTPArchive::Release::Components=main -o APT::FTPArchive::Release::Architectures=$arch \\\n\
          release dists/stable >../Release; mv ../Release dists/stable/\n\
        gpg --quiet --batch --passphrase '' --quick-gen-key agent@test.invalid ed25519 sign never\n\
        gpg --quiet --batch --output dists/stable/InRelease --clearsign dists/stable/Release\n\
        gpg --quiet --batch --armor --output ../key.asc --export agent@test.invalid; gpgconf --kill gpg-agent\n\
        chmod -R a+rX ..";
    let output = Command::new("sh").args(["-c", script, "sh"]).arg(directory).arg(deb).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(directory.join("archive"))
}

fn cloud_init_brings_the_agent_into_service() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let archive = archive(directory.path())?;
    let agent = cloud("agent-cloud", |host| host.bind(archive, "/srv/agent"))?;
    let host = &agent.host;
    // The CA comes with the document; the key and its certificate are brought as files.
    host.shell("rm /etc/linux_patch_api/certs/ca.pem")?;
    let key = directory.path().join("key.asc").display().to_string();
    let ca = agent.pki.path().join("ca.pem").display().to_string();
    let client = agent.network.address().to_string();
    let user_data = document(&[
        "--profile",
        "agent",
        "--agent-source",
        "file:/srv/agent stable main",
        "--agent-key",
        &key,
        "--ca-cert",
        &ca,
        "--allow",
        &client,
    ])?;
    first_boot(&agent, &user_data)?;
    agent.wait_until_up()?;
    ensure!(host.exec_ok(&["systemctl", "is-enabled", "linux-patch-api"])?.trim() == "enabled");
    patches_itself(&agent)
}

/// The relay's name in the preset.
const RELAY: &str = "smtp.office365.com";
const PASSWORD: &str = "s3cret of the app";

struct Relay {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Relay {
    fn start(agent: &Agent, certificate: &Path, key: &Path) -> Result<Self> {
        let address = agent.network.address().to_string();
        let mut command =
            agent.network.command(&["python3", "-c", include_str!("relay.py"), &address, "587"]);
        command.arg(certificate).arg(key).args(["ops@example.org", PASSWORD]);
        let mut process = command.stdout(Stdio::piped()).spawn().context("the relay cannot be started")?;
        let mut lines = BufReader::new(process.stdout.take().context("no output")?).lines();
        let first = lines.next().context("the relay does not begin")??;
        ensure!(first == "ready", "{first}");
        Ok(Self { process, lines })
    }

    fn mail(&mut self) -> Result<Value> {
        Ok(serde_json::from_str(&self.lines.next().context("no mail")??)?)
    }
}

/// A CA, and a certificate of it for the relay.
fn certificates(directory: &Path) -> Result<()> {
    let script = "set -eu; cd \"$1\"; exec 2>err\n\
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=trial\n\
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout relay.key -out relay.csr -subj /CN=relay\n\
        printf 'subjectAltName=DNS:%s\\n' \"$2\" >ext\n\
        openssl x509 -req -in relay.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out relay.crt";
    let output = Command::new("sh").args(["-c", script, "sh"]).arg(directory).arg(RELAY).output()?;
    ensure!(output.status.success(), "{}", fs::read_to_string(directory.join("err"))?);
    Ok(())
}

/// Runs the helper at a terminal, on which the password is typed when it is asked for; what the terminal showed.
fn at_terminal(agent: &Agent, password: &str) -> Result<Output> {
    let script = "import os, pty, sys\n\
        asked = False\n\
        def read(fd):\n    global asked\n    data = os.read(fd, 1024)\n    if not asked and b'not shown' in data:\n        asked = True\n        os.write(fd, sys.argv[1].encode() + b'\\n')\n    return data\n\
        status = pty.spawn(['msmtp-config'], read, lambda fd: b'')\n\
        sys.exit(os.waitstatus_to_exitcode(status))";
    agent.host.exec(&["python3", "-c", script, password])
}

fn msmtp_config_explains_what_keeps_mail_back() -> Result<()> {
    let agent = cloud("relay", |host| host)?;
    let host = &agent.host;
    let json = {
        let program = Packages::get()?.programs()?.join("usr/sbin/linux-patch-host");
        let arguments = [
            "--json",
            "cloud-init",
            "--profile",
            "unattended",
            "--smtp-preset",
            "m365",
            "--mail-to",
            "ops@example.org",
        ];
        let output = Command::new(program).args(arguments).output()?;
        serde_json::from_slice::<Value>(&output.stdout)?
    };
    // The files alone: what cloud-init makes of them is another trial's.
    for file in json["write_files"].as_array().context("no files")? {
        let of = |key: &str| file[key].as_str().context("no text");
        if of("path")?.contains("msmtp") || of("path")? == "/etc/aliases" {
            host.push(of("content")?, of("path")?, of("permissions")?)?;
        }
    }
    let directory = tempfile::tempdir()?;
    certificates(directory.path())?;
    let path = |name: &str| directory.path().join(name);
    host.shell(&format!("echo '{} {RELAY}' >>/etc/hosts", agent.network.address()))?;
    let fails = |password: &str, words: &[&str]| -> Result<()> {
        let shown = at_terminal(&agent, password)?;
        ensure!(shown.code() == Some(1), "{shown:?}");
        for word in words {
            ensure!(shown.stdout.contains(word), "{word}: {shown:?}");
        }
        ensure!(!shown.stdout.contains(password), "the password was shown: {shown:?}");
        Ok(())
    };

    fails(PASSWORD, &["The relay cannot be reached", "host and port"])?;
    let mut relay = Relay::start(&agent, &path("relay.crt"), &path("relay.key"))?;
    fails(PASSWORD, &["certificate is not believed", "ca-certificates"])?;
    host.push_file(&path("ca.crt"), "/usr/local/share/ca-certificates/trial.crt", "644")?;
    host.exec_ok(&["update-ca-certificates"])?;
    fails("another one", &["does not take the password", "app password"])?;

    let shown = at_terminal(&agent, PASSWORD)?;
    ensure!(shown.success() && shown.stdout.contains("on its way to ops@example.org"), "{shown:?}");
    ensure!(shown.stdout.contains("spam") && !shown.stdout.contains(PASSWORD), "{shown:?}");
    let mail = relay.mail()?;
    ensure!(mail["secure"] == true && mail["to"] == serde_json::json!(["ops@example.org"]), "{mail:#}");
    ensure!(mail["text"].as_str().is_some_and(|text| text.contains("This host can send mail.")), "{mail:#}");
    let stored = host.shell(
        "stat -c '%a %U' /etc/msmtp-password; cat /etc/msmtp-password; ls -a /etc | grep -c msmtp-p",
    )?;
    ensure!(stored == format!("600 root\n{PASSWORD}\n1\n"), "{stored}");

    // What the host's own programs send goes the same way, also unattended-upgrades' mail to root.
    host.shell("printf 'Subject: by sendmail\\n\\nx\\n' | sendmail root")?;
    let mail = relay.mail()?;
    ensure!(mail["to"] == serde_json::json!(["ops@example.org"]), "{mail:#}");

    // Without an address for root nothing could arrive.
    host.shell("sed -i /^root/d /etc/aliases")?;
    fails(PASSWORD, &["/etc/aliases", "root: ADDRESS"])?;
    let nobody = host.exec(&["sh", "-c", "echo | msmtp-config"])?;
    ensure!(!nobody.success() && nobody.stderr.contains("no password was given"), "{nobody:?}");
    let kept = host.read_text("/etc/msmtp-password")?;
    ensure!(kept.trim() == PASSWORD, "the stored password was lost: {kept}");
    Ok(())
}
