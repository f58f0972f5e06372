//! A real host with the agent's package on it, and clients of its API.

use std::{
    fmt::Display,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::packages::Packages;
use crate::{Host, HostOptions, Network, Repository, wait};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// How long a job of these tests may take.
const JOB_LIMIT: Duration = Duration::from_secs(120);

/// How often a job is looked at: an identity may send 600 requests a minute.
const JOB_INTERVAL: Duration = Duration::from_millis(100);

/// A host with the agent installed, certificates in place, the test's address on the allow list, and the test
/// repository as its only source.
#[derive(Debug)]
pub struct Agent {
    /// The host.
    pub host: Host,
    /// Its network, on which the clients are.
    pub network: Network,
    /// What its apt knows.
    pub repository: Repository,
    /// The development CA and what it has signed.
    pub pki: tempfile::TempDir,
    /// The packages under test.
    pub packages: Packages,
}

/// An answer: the status, and the body as JSON (null if it is none).
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The head, in lower case.
    pub headers: String,
    /// The body as JSON; null if it is none.
    pub body: Value,
    /// The body as it came.
    pub text: String,
}

impl Answer {
    /// `data` of the envelope, of a request that succeeded.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn data(&self) -> Result<&Value> {
        ensure!(self.body["success"] == true, "the request failed with {}: {}", self.status, self.text);
        Ok(&self.body["data"])
    }

    /// `error.code` of the envelope.
    pub fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

impl Agent {
    /// A host that has `packages` of the repository's first day installed.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn boot(name: &str, packages: &[&str]) -> Result<Self> {
        Self::boot_on(HostOptions::named(name), packages)
    }

    /// The same on a host that is to be special.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn boot_on(host: HostOptions, packages: &[&str]) -> Result<Self> {
        let agent = Self::on(host, packages)?;
        agent.install(&agent.packages.agent()?)?;
        agent.wait_until_up()?;
        Ok(agent)
    }

    /// The same before the agent is installed; its certificates and allow list are there.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn without_agent(name: &str, packages: &[&str]) -> Result<Self> {
        Self::without_agent_on(HostOptions::named(name), packages)
    }

    /// The same on a host that is to be special.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn without_agent_on(host: HostOptions, packages: &[&str]) -> Result<Self> {
        Self::on(host, packages)
    }

    fn on(options: HostOptions, packages: &[&str]) -> Result<Self> {
        let name = options.name.clone();
        let built = Packages::get()?;
        let repository = Repository::new()?;
        let network = Network::new()?;
        let host = Host::boot(&network, options.repository(&repository))?;
        repository.configure(&host, Repository::FILES)?;
        if !packages.is_empty() {
            host.exec_ok(&[&["apt-get", "-qq", "-y", "install"], packages].concat())?;
        }
        let pki = tempfile::tempdir()?;
        make_pki(&built, pki.path(), &name, host.ip())?;
        for (file, mode) in [("ca.pem", "644"), ("server.pem", "644"), ("server.key.pem", "600")] {
            host.push_file(&pki.path().join(file), &format!("/etc/linux_patch_api/certs/{file}"), mode)?;
        }
        let agent = Self { host, network, repository, pki, packages: built };
        Ok(agent)
    }

    /// Installs a package of the agent, with the configuration that the tests bring.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn install(&self, deb: &Path) -> Result<()> {
        self.host.push_file(deb, "/root/agent.deb", "644")?;
        self.host.exec_ok(&["apt-get", "-qq", "-y", "--allow-downgrades", "install", "/root/agent.deb"])?;
        self.allow(&[&self.network.address().to_string()])
    }

    /// Makes the given entries the allow list.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn allow(&self, entries: &[&str]) -> Result<()> {
        let lines: String = entries.iter().map(|entry| format!("  - {entry}\n")).collect();
        let list =
            if lines.is_empty() { "allowed_ips: []\n".to_owned() } else { format!("allowed_ips:\n{lines}") };
        self.host.push(list, "/etc/linux_patch_api/whitelist.yaml", "644")
    }

    /// Waits until the agent answers.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn wait_until_up(&self) -> Result<()> {
        wait::until("the agent answers", Duration::from_secs(30), || {
            Ok(self.get("/health").ok().filter(|answer| answer.status == 200).map(drop))
        })
        .with_context(|| {
            self.host
                .shell("systemctl status linux-patch-api --no-pager -n 30; journalctl -n 50 --no-pager")
                .unwrap_or_default()
        })
    }

    /// A file of the development CA.
    pub fn pem(&self, name: &str) -> String {
        self.pki.path().join(name).display().to_string()
    }

    /// curl, as alice, at a path below the API's prefix, with further arguments.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn curl(&self, path: &str, args: &[&str]) -> Result<Answer> {
        let url = format!("https://{}:12443/api/v1{path}", self.host.ip());
        self.curl_at(
            &url,
            &[&["--cert", &self.pem("alice.pem"), "--key", &self.pem("alice.key.pem")], args].concat(),
        )
    }

    /// curl at any URL of the agent, trusting the CA, with only the given arguments.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn curl_at(&self, url: &str, args: &[&str]) -> Result<Answer> {
        let ca = self.pem("ca.pem");
        let fixed = [
            "curl",
            "--silent",
            "--show-error",
            "--include",
            "--path-as-is",
            "--max-time",
            "100",
            "--cacert",
            &ca,
        ];
        let output = self.network.exec(&[&fixed, args, &[url]].concat())?;
        ensure!(output.success(), "curl {url} ended with {}: {}", output.status, output.stderr);
        let mut text = output.stdout.as_str();
        // An interim answer (100 Continue) comes before the real one.
        loop {
            let (head, body) = text.split_once("\r\n\r\n").context("curl printed no answer")?;
            let status: u16 = head.split_whitespace().nth(1).context("no status")?.parse()?;
            if status == 100 {
                text = body;
                continue;
            }
            return Ok(Answer {
                status,
                headers: head.to_ascii_lowercase(),
                body: serde_json::from_str(body).unwrap_or(Value::Null),
                text: body.to_owned(),
            });
        }
    }

    /// GET of a path below the API's prefix.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.curl(path, &[])
    }

    /// Sends a JSON body with a method.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> Result<Answer> {
        let body = body.to_string();
        self.curl(
            path,
            &["--request", method, "--header", "content-type: application/json", "--data-binary", &body],
        )
    }

    /// Sends a change and gives the id of the job that it made.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn submit(&self, method: &str, path: &str, body: &Value) -> Result<String> {
        let answer = self.send(method, path, body)?;
        ensure!(answer.status == 202, "{method} {path} answered {}: {}", answer.status, answer.text);
        Ok(answer.data()?["job_id"].as_str().context("no job_id")?.to_owned())
    }

    /// A job as the API shows it.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn job(&self, id: &str) -> Result<Value> {
        Ok(self.get(&format!("/jobs/{id}"))?.data()?.clone())
    }

    /// Waits until a job is as wished.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn wait_job(&self, id: &str, what: &str, wish: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let mut problem = None;
        let seen = wait::until_every(JOB_INTERVAL, &format!("job {id} {what}"), JOB_LIMIT, || {
            // The agent may be restarting: then there is no answer yet.
            match self.job(id) {
                Ok(job) => last = job,
                Err(error) => problem = Some(error),
            }
            Ok(wish(&last).then(|| last.clone()))
        });
        seen.with_context(|| {
            let problem = problem.map(|error| format!("; the last refusal: {error:#}")).unwrap_or_default();
            format!("the job is {last:#}{problem}\n{}", self.diagnosis())
        })
    }

    /// What the host has to say about its agent, for the report of a failure.
    fn diagnosis(&self) -> String {
        const LOOK: &str = "systemctl status linux-patch-api --no-pager -n 0; ss -tanp; \
            pid=$(systemctl show -P MainPID linux-patch-api); \
            for task in /proc/$pid/task/*; do echo \"$(cat $task/comm $task/wchan $task/syscall 2>&1 | tr '\\n' ' ')\"; done; \
            ls -l /proc/$pid/fd | wc -l; journalctl -n 60 --no-pager";
        self.host.shell(LOOK).unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Waits until a job has ended.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn end_of(&self, id: &str) -> Result<Value> {
        self.wait_job(id, "ends", |job| {
            job["status"].as_str().is_some_and(|status| !["pending", "running"].contains(&status))
        })
    }

    /// Sends a change and waits for its job's end.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn change(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let id = self.submit(method, path, body)?;
        self.end_of(&id)
    }

    /// patchctl, as alice.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn patchctl(&self, args: &[&str]) -> Result<Command> {
        let program = self.packages.programs()?.join("usr/bin/patchctl").display().to_string();
        let mut command = self.network.command(&[&[program.as_str()], args].concat());
        command
            .env("PATCHCTL_HOST", self.host.ip().to_string())
            .env("PATCHCTL_CA", self.pem("ca.pem"))
            .env("PATCHCTL_CERT", self.pem("alice.pem"))
            .env("PATCHCTL_KEY", self.pem("alice.key.pem"))
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Sends bytes over TLS as alice and gives everything that came back until the agent closed.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn raw(&self, bytes: &[u8]) -> Result<String> {
        let address = format!("{}:12443", self.host.ip());
        let (ca, cert, key) = (self.pem("ca.pem"), self.pem("alice.pem"), self.pem("alice.key.pem"));
        let mut command = self.network.command(&[
            "timeout",
            "20",
            "openssl",
            "s_client",
            "-quiet",
            "-verify_quiet",
            "-connect",
            &address,
            "-CAfile",
            &ca,
            "-cert",
            &cert,
            "-key",
            &key,
            "-alpn",
            "http/1.1",
        ]);
        let mut child: Child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut input = child.stdin.take().context("no stdin")?;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // The agent may close before it has read everything, which is an answer as well.
                let _ = std::io::Write::write_all(&mut input, bytes);
            });
            let output = child.wait_with_output()?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// The version of a package that dpkg has in order, or what else it says of it.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn version(&self, package: &str) -> Result<String> {
        let output = self.host.exec(&["dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Version}", package])?;
        let text = output.stdout.trim().to_owned();
        Ok(text.strip_prefix("ii ").map_or(text.clone(), str::to_owned))
    }

    /// dpkg finds nothing wrong.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn assert_in_order(&self) -> Result<()> {
        let audit = self.host.exec_ok(&["dpkg", "--audit"])?;
        ensure!(audit.trim().is_empty(), "dpkg --audit says: {audit}");
        Ok(())
    }

    /// The agent's packages.
    pub fn packages(&self) -> &Packages {
        &self.packages
    }

    /// The daemon's process: another one means that it has been started again.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn pid(&self) -> Result<String> {
        let shown =
            self.host.exec_ok(&["systemctl", "show", "--value", "-p", "MainPID", "linux-patch-api"])?;
        Ok(shown.trim().to_owned())
    }

    /// The records of the audit trail.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn trail(&self) -> Result<Vec<Value>> {
        let text = self.host.read_text("/var/log/linux_patch_api/audit.log")?;
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
        whole.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Waits for a record of the audit trail that is as wished; records of reads come within about a second.
    ///
    /// # Errors
    /// When the host or the agent does not do as it should; the message says what it did.
    pub fn wait_record(&self, what: &str, wish: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::until(&format!("the record: {what}"), Duration::from_secs(10), || {
            Ok(self.trail()?.into_iter().rev().find(|record| wish(record)))
        })
    }
}

/// Makes a development CA, a server's certificate of it for a name and an address, and one of the client alice.
///
/// # Errors
/// When the agent's program cannot be run, or refuses.
pub fn make_pki(packages: &Packages, dir: &Path, name: &str, address: impl Display) -> Result<()> {
    let mut init = Command::new(packages.programs()?.join("usr/bin/linux-patch-api"));
    init.args(["pki", "init"]).arg(dir);
    init.args(["--server-name", name, "--server-ip", &address.to_string(), "--client", "alice"]);
    let output = init.output().context("cannot start linux-patch-api")?;
    ensure!(output.status.success(), "pki init failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
