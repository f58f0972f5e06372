//! The wire: the agent against a web server that demands client certificates, too.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    client::Target,
    jobs,
    numbers::{Samples, digits, ratio, with_unit},
    stage::{API, Bench},
    table::{Bound, Report},
};

const PORT: u16 = 8443;

/// How many connections ask at once, and for how long.
const AT_ONCE: usize = 8;
const SPELL: Duration = Duration::from_millis(1200);

const NGINX: &str = "worker_processes 1;\nuser www-data;\nevents { worker_connections 1024; }\nhttp {\n\
    access_log /var/log/nginx/access.log;\nkeepalive_requests 1000000;\nsendfile on;\ntcp_nopush on;\n\
    open_file_cache max=100;\nserver {\nlisten 8443 ssl;\nssl_protocols TLSv1.3;\nssl_session_tickets off;\n\
    ssl_certificate /etc/linux_patch_api/certs/server.pem;\n\
    ssl_certificate_key /etc/linux_patch_api/certs/server.key.pem;\n\
    ssl_client_certificate /etc/linux_patch_api/certs/ca.pem;\nssl_verify_client on;\nroot /srv/www;\n} }\n";

#[derive(Default)]
struct Load {
    /// Requests for each second of the server's own processor time.
    per_cpu_second: Samples,
    /// Requests a second, as the clock on the wall has it.
    rate: Samples,
    latency: Samples,
}

struct Server<'a> {
    target: &'a Target,
    /// Finds its processes, as a glob of `/proc`.
    pids: String,
    load: Load,
}

/// Measures.
pub(super) fn measure(bench: &Bench, report: &mut Report, rounds: usize) -> Result<()> {
    report.section("The wire, against nginx with client certificates");
    let nginx = Target::new(bench.host.ip(), PORT, &bench.pki)?;
    bench.host.push(NGINX, "/etc/nginx/nginx.conf", "644")?;
    bench.host.exec_ok(&["mkdir", "-p", "/srv/www"])?;
    let job = a_job(bench)?;
    for (what, ours, promised, new_connections) in [
        ("the list", format!("{API}/packages"), 1.5, false),
        ("the last job", job.clone(), 0.9, false),
        ("full handshakes with a request", job, 1.5, true),
    ] {
        let reply = bench.on_network(async || bench.target.once(&ours).await)?;
        ensure!(reply.status == 200, "{ours} was answered with {}", reply.status);
        bench.host.push(&reply.body, "/srv/www/same.json", "644")?;
        bench.host.exec_ok(&["systemctl", "restart", "nginx"])?;
        let mut servers = [
            Server { target: &bench.target, pids: bench.pid()?, load: Load::default() },
            Server {
                target: &nginx,
                pids: bench.host.exec_ok(&["pidof", "nginx"])?.trim().replace(' ', ","),
                load: Load::default(),
            },
        ];
        for _ in 0..rounds.div_ceil(3) {
            for (server, path) in servers.iter_mut().zip([ours.as_str(), "/same.json"]) {
                spell(bench, server, path, new_connections)?;
            }
        }
        let [agent, nginx] = servers.map(|server| server.load);
        let size = with_unit(Some(f64::from(u32::try_from(reply.body.len())?) / 1000.0), "KB");
        rows(report, &format!("{what} ({size})"), &agent, &nginx, promised, new_connections);
    }
    report.note(format!(
        "{AT_ONCE} connections ask for {} s in turns; nginx sends the same bytes from a file, with its access log on, \
         one worker. As client and server share the processors, rates are those for each second of the server's own \
         processor time; beside them is what the clock on the wall says.",
        SPELL.as_secs_f64()
    ));
    Ok(())
}

/// The path of a small answer that is made from memory: the list of jobs, of which there is one.
fn a_job(bench: &Bench) -> Result<String> {
    bench.host.exec_ok(&["apt-get", "-qq", "-y", "install", "lp-plain"])?;
    let body = jobs::install(&["lp-plain".to_owned()]);
    bench.on_network(async || {
        let mut connection = bench.target.connect(None).await?;
        let (id, _) = jobs::submit(&mut connection, &body).await?;
        jobs::ended(&mut connection, &id).await
    })?;
    Ok(format!("{API}/jobs?limit=1"))
}

fn rows(report: &mut Report, what: &str, agent: &Load, nginx: &Load, promised: f64, new_connections: bool) {
    let said = |load: &Load| {
        let number = |samples: &Samples| samples.median().map_or_else(|| "?".to_owned(), digits);
        format!("{} per CPU second, {}/s", number(&load.per_cpu_second), number(&load.rate))
    };
    let times = ratio(agent.per_cpu_second.median(), nginx.per_cpu_second.median());
    let bound = Bound::AtLeast(promised);
    report.row(what, said(agent), format!("nginx {}", said(nginx)), (times, "×"), bound);
    let (ours, other) = (agent.latency.p99(), nginx.latency.p99());
    let bound = if new_connections { Bound::Nothing } else { Bound::AtMost(1.0) };
    let against = format!("nginx {}", with_unit(other, "ms"));
    report.row(format!("{what}, p99"), with_unit(ours, "ms"), against, (ratio(ours, other), "×"), bound);
}

fn spell(bench: &Bench, server: &mut Server<'_>, path: &str, new_connections: bool) -> Result<()> {
    let before = run_time(bench, &server.pids)?;
    let target = server.target;
    let (took, latency) = bench.on_network(async || {
        let begun = Instant::now();
        let mut tasks = Vec::new();
        for _ in 0..AT_ONCE {
            let (target, path) = (target.clone(), path.to_owned());
            tasks.push(tokio::spawn(async move {
                let mut latency = Samples::default();
                let mut connection = target.connect(None).await?;
                while begun.elapsed() < SPELL {
                    let asked = Instant::now();
                    if new_connections {
                        connection = target.connect(None).await?;
                    }
                    let reply = connection.get(&path, "").await?;
                    ensure!(reply.status == 200, "answered with {}", reply.status);
                    latency.push(asked.elapsed().as_secs_f64() * 1e3);
                }
                Ok(latency)
            }));
        }
        let mut latency = Samples::default();
        for task in tasks {
            latency.extend(&task.await??);
        }
        Ok((begun.elapsed().as_secs_f64(), latency))
    })?;
    let busy = run_time(bench, &server.pids)? - before;
    let count = f64::from(u32::try_from(latency.len())?);
    server.load.rate.push(count / took);
    server.load.per_cpu_second.push(count / busy.max(1e-3));
    server.load.latency.extend(&latency);
    Ok(())
}

/// The seconds that all threads of the processes have run.
fn run_time(bench: &Bench, pids: &str) -> Result<f64> {
    let files = if pids.contains(',') { format!("{{{pids}}}") } else { pids.to_owned() };
    let script =
        format!("cat /proc/{files}/task/*/schedstat | awk '{{ n += $1 }} END {{ printf \"%d\", n / 1000 }}'");
    let microseconds: f64 = bench.host.shell(&script)?.trim().parse().context("no schedstat")?;
    Ok(microseconds / 1e6)
}
