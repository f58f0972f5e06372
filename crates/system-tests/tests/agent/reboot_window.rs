//! The reboot window on a host that really reboots.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::Value;
use system_tests::{agent::make_pki, trials::trial, wait};

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_host_reboots_within_its_window_alone", a_host_reboots_within_its_window_alone),
        trial("the_fleets_lock_is_held_while_a_host_reboots", the_fleets_lock_is_held_while_a_host_reboots),
    ]
}

const FILE: &str = "/etc/default/linux-patch-reboot-window";

/// Always open, and what it does to the host is written down.
pub(crate) const OPEN: &str = "REBOOT_DOW=\"*\"\nREBOOT_HOUR=0\nREBOOT_MIN=0\nREBOOT_DURATION_MIN=1440\n";

const LIMIT: Duration = Duration::from_secs(60);

/// A host that something asks to be rebooted.
fn boot(name: &str) -> Result<Agent> {
    let agent = Agent::boot(name, &[])?;
    // The timer only says that what is done is taken back: the trial looks itself.
    agent.host.shell(
        "mkdir -p /etc/systemd/system/linux-patch-reboot-window.timer.d; \
         printf '[Timer]\\nOnCalendar=\\nOnCalendar=2099-01-01\\n' >/etc/systemd/system/linux-patch-reboot-window.timer.d/never.conf; \
         systemctl daemon-reload",
    )?;
    // It holds a shutdown back for some seconds, here as on every Debian.
    agent.host.shell(
        "systemctl stop unattended-upgrades 2>/dev/null || true; touch /run/reboot-required; echo libc6 >/run/reboot-required.pkgs",
    )?;
    Ok(agent)
}

/// One look of the timer, now; whether it went well, and what it says.
fn tick(agent: &Agent) -> Result<(bool, String)> {
    let output = agent.host.exec(&["linux-patch-host", "--json", "reboot-window", "tick"])?;
    let said: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((output.success(), said["what"].as_str().unwrap_or_default().to_owned()))
}

/// Looks until the host is in service again after a reboot.
fn settle(agent: &Agent) -> Result<()> {
    wait::until_every(Duration::from_millis(200), "the host is in service again", LIMIT, || {
        let (is_well, what) = tick(agent)?;
        ensure!(is_well, "{what}");
        Ok(what.contains("nothing asks for a reboot").then_some(()))
    })
}

fn log(agent: &Agent) -> Result<Vec<String>> {
    Ok(agent.host.shell("cat /root/log 2>/dev/null || true")?.lines().map(str::to_owned).collect())
}

fn record(agent: &Agent) -> Result<String> {
    agent.host.exec_ok(&["linux-patch-host", "record"])
}

fn a_host_reboots_within_its_window_alone() -> Result<()> {
    let agent = boot("window")?;
    let host = &agent.host;
    let boots = host.boots();
    let enabled = host.exec(&["systemctl", "is-enabled", "linux-patch-reboot-window.timer"])?;
    ensure!(enabled.stdout.trim() == "disabled", "{enabled:?}");

    // No window, then one that is closed.
    let (_, said) = tick(&agent)?;
    ensure!(said.contains("no window is declared"), "{said}");
    let day = host.exec_ok(&["date", "-u", "-d", "+3 days", "+%a"])?;
    host.push(format!("REBOOT_DOW={}\nREBOOT_HOUR=12\n", day.trim()), FILE, "644")?;
    host.exec_ok(&["systemctl", "start", "linux-patch-reboot-window.service"])?;
    ensure!(record(&agent)?.contains("reboot window: not now, because the window is closed; it opens at"));

    // A file that others can write says nothing.
    host.push(format!("{OPEN}DRAIN_CMD='echo drain >>/root/log'\n"), FILE, "666")?;
    let (is_well, said) = tick(&agent)?;
    ensure!(!is_well && said.contains("chmod go-w"), "{said}");

    // A drain that fails calls it off, and the host is undrained.
    let undrain = "UNDRAIN_CMD='echo undrain >>/root/log'\n";
    host.push(format!("{OPEN}DRAIN_CMD='echo drain >>/root/log; exit 7'\n{undrain}"), FILE, "644")?;
    let (is_well, said) = tick(&agent)?;
    ensure!(!is_well && said.contains("systemctl enable --now") && log(&agent)?.is_empty(), "{said}");
    host.exec_ok(&["systemctl", "enable", "--now", "linux-patch-reboot-window.timer"])?;
    let failed = host.exec(&["systemctl", "start", "linux-patch-reboot-window.service"])?;
    ensure!(!failed.success(), "a failing drain is no success");
    ensure!(log(&agent)? == ["drain", "undrain"], "{:?}", log(&agent)?);
    ensure!(record(&agent)?.contains("could not be drained"));

    // Somebody holds a shutdown up; then apt works.
    host.push(format!("{OPEN}DRAIN_CMD='echo drain >>/root/log'\n{undrain}"), FILE, "644")?;
    host.exec_ok(&[
        "systemd-run",
        "--unit=backup",
        "--property=Type=exec",
        "systemd-inhibit",
        "--what=shutdown",
        "--mode=block",
        "--who=backup",
        "--why=a backup runs",
        "sleep",
        "infinity",
    ])?;
    let held = wait::until("the shutdown is held up", LIMIT, || {
        let status = host.exec_ok(&["linux-patch-host", "--json", "reboot-window", "status"])?;
        Ok(status.contains("\"inhibited\"").then_some(status))
    })?;
    ensure!(held.contains("backup holds a shutdown up: a backup runs"), "{held}");
    ensure!(tick(&agent)?.1.contains("backup holds a shutdown up"));
    host.exec_ok(&["systemctl", "stop", "backup"])?;
    let locked = host.exec_ok(&[
        "python3", "-c",
        "import fcntl,subprocess; f=open('/var/lib/dpkg/lock-frontend','r+'); fcntl.lockf(f,fcntl.LOCK_EX); \
         print(subprocess.run(['linux-patch-host','reboot-window','tick'],capture_output=True,text=True).stdout)",
    ])?;
    ensure!(locked.contains("python3 holds /var/lib/dpkg/lock-frontend"), "{locked}");
    ensure!(host.boots() == boots && log(&agent)?.len() == 2, "it was drained all the same");

    // Nothing is against it any more.
    host.exec_ok(&["systemctl", "--no-block", "start", "linux-patch-reboot-window.service"])?;
    host.wait_boot(boots + 1)?;
    settle(&agent)?;
    ensure!(log(&agent)? == ["drain", "undrain", "drain", "undrain"], "{:?}", log(&agent)?);
    let record = record(&agent)?;
    ensure!(record.contains("the host reboots: libc6") && record.contains("and is in health"), "{record}");
    host.exec_ok(&["linux-patch-host", "record", "verify"])?;
    ensure!(host.boots() == boots + 1, "it has rebooted more than once");
    Ok(())
}

/// A lock with one slot.
#[derive(Debug, Default)]
struct Lock {
    holder: Option<String>,
    /// What was asked: the path and the id.
    asked: Vec<(String, String)>,
}

impl Lock {
    /// Answers as the protocol has it.
    fn answer(&mut self, request: &str) -> (&'static str, String) {
        let (head, body) = request.split_once("\r\n\r\n").unwrap_or_default();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let refusal =
            |kind: &str| serde_json::json!({"kind": kind, "value": "all slots are taken"}).to_string();
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        let params = &body["client_params"];
        let (id, group) = (params["id"].as_str().unwrap_or_default(), params["group"].as_str());
        let is_ours = head.to_ascii_lowercase().contains("\r\nfleet-lock-protocol: true");
        if !head.starts_with("POST ") || !is_ours || id.is_empty() || group != Some("workers") {
            return ("400 Bad Request", refusal("bad_request"));
        }
        self.asked.push((path.clone(), id.to_owned()));
        match path.as_str() {
            "/v1/pre-reboot" if self.holder.as_deref().is_none_or(|holder| holder == id) => {
                self.holder = Some(id.to_owned());
                ("200 OK", String::new())
            }
            "/v1/pre-reboot" => ("409 Conflict", refusal("failed_lock")),
            "/v1/steady-state" => {
                self.holder = self.holder.take().filter(|holder| holder != id);
                ("200 OK", String::new())
            }
            _ => ("404 Not Found", refusal("unknown")),
        }
    }
}

/// Serves by TLS until a connection ends without a word.
fn serve(listener: &TcpListener, config: &Arc<ServerConfig>, lock: &Mutex<Lock>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        if stream.peek(&mut [0])? == 0 {
            return Ok(());
        }
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(config))?, stream);
        // Who does not trust the certificate says nothing more.
        let Ok(request) = receive(&mut stream) else { continue };
        let (status, body) = lock.lock().unwrap_or_else(PoisonError::into_inner).answer(&request);
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        stream.flush()?;
    }
}

fn tls(pki: &Path) -> Result<Arc<ServerConfig>> {
    let certificate = CertificateDer::from_pem_file(pki.join("server.pem"))?;
    let key = PrivateKeyDer::from_pem_file(pki.join("server.key.pem"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], key)?))
}

/// A request up to the end of its body, which is JSON of two levels.
fn receive(stream: &mut impl Read) -> Result<String> {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.ends_with(b"}}") {
        match stream.read(&mut part)? {
            0 => break,
            read => request.extend_from_slice(part.get(..read).unwrap_or_default()),
        }
    }
    Ok(String::from_utf8(request)?)
}

fn the_fleets_lock_is_held_while_a_host_reboots() -> Result<()> {
    let agent = boot("lock")?;
    let boots = agent.host.boots();
    let listener = agent.network.run_in(|| Ok(TcpListener::bind((agent.network.address(), 0))?))?;
    let address = listener.local_addr()?;
    let lock = Arc::new(Mutex::new(Lock { holder: Some("another host".to_owned()), ..Lock::default() }));
    let served = Arc::clone(&lock);
    let pki = tempfile::tempdir()?;
    make_pki(&agent.packages, pki.path(), "lock", address.ip())?;
    let config = tls(pki.path())?;
    let server = std::thread::spawn(move || serve(&listener, &config, &served));
    let look = || lock.lock().unwrap_or_else(PoisonError::into_inner);
    // In config.yaml the same as a rule.
    let configure = |ca: &str| -> Result<()> {
        let reboot = format!(
            "reboot:\n  window: {{rule: \"FREQ=DAILY;BYHOUR=0\", timezone: Europe/Berlin, duration_minutes: 1500}}\n  \
             fleet_lock: {{url: \"https://{address}\", group: workers{ca}}}\n"
        );
        agent.host.push(reboot, "/etc/linux_patch_api/config.yaml", "644")?;
        agent.host.exec_ok(&["linux-patch-api", "check-config"]).map(drop)
    };
    configure("")?;
    agent.host.exec_ok(&["systemctl", "enable", "--now", "linux-patch-reboot-window.timer"])?;
    let (_, said) = tick(&agent)?;
    ensure!(said.contains("certificate verify failed") && said.contains("ca_file"), "{said}");
    agent.host.push_file(&pki.path().join("ca.pem"), "/etc/linux_patch_api/lock-ca.pem", "644")?;
    configure(", ca_file: /etc/linux_patch_api/lock-ca.pem")?;
    let (_, said) = tick(&agent)?;
    ensure!(said.contains("all slots are taken (failed_lock)"), "{said}");
    look().holder = None;
    agent.host.exec_ok(&["systemctl", "--no-block", "start", "linux-patch-reboot-window.service"])?;
    agent.host.wait_boot(boots + 1)?;
    let id = look().holder.clone().context("the lock is not held while the host reboots")?;
    let machine = agent.host.read_text("/etc/machine-id")?;
    ensure!(id.len() == 32 && id != machine.trim(), "the machine's own id is private: {id}");
    settle(&agent)?;
    ensure!(look().holder.is_none(), "the lock was not given back");
    let asked: Vec<String> = look().asked.iter().map(|(path, _)| path.clone()).collect();
    ensure!(asked == ["/v1/pre-reboot", "/v1/pre-reboot", "/v1/steady-state"], "{asked:?}");
    ensure!(look().asked.iter().all(|(_, other)| *other == id), "the id changed");
    // A connection without a word ends the server.
    agent.network.run_in(|| Ok(TcpStream::connect(address)?)).map(drop)?;
    server.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
}
