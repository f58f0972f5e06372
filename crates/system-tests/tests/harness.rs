//! Tests of the harness itself: that its hosts are what the black-box tests take them for.
#![expect(clippy::disallowed_methods, reason = "one test starts this program again, so as to kill it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use system_tests::trials::{self, trial};
use system_tests::{Fault, Host, HostOptions, Network, Repository, Root, RootOptions, runs, sweep, wait};

/// With this variable set the program boots a host, says so, and waits to be killed.
const HOLD: &str = "LINUX_PATCH_HARNESS_HOLD";

fn main() -> ExitCode {
    if std::env::var_os(HOLD).is_some() {
        return hold();
    }
    trials::main(vec![
        trial("a_host_boots_and_runs_commands", a_host_boots_and_runs_commands),
        trial("a_reboot_is_a_new_boot_of_the_same_disk", a_reboot_is_a_new_boot_of_the_same_disk),
        trial("a_host_goes_off_and_on_again", a_host_goes_off_and_on_again),
        trial(
            "a_full_disk_refuses_every_byte_until_it_is_freed",
            a_full_disk_refuses_every_byte_until_it_is_freed,
        ),
        trial("hosts_of_one_network_see_each_other", hosts_of_one_network_see_each_other),
        trial("a_thread_can_be_on_the_network", a_thread_can_be_on_the_network),
        trial("apt_installs_and_upgrades_by_http", apt_installs_and_upgrades_by_http),
        trial("a_faulty_server_is_faulty_only_while_told_so", a_faulty_server_is_faulty_only_while_told_so),
        trial("bad_repositories_are_refused", bad_repositories_are_refused),
        trial("packages_behave_as_the_catalogue_says", packages_behave_as_the_catalogue_says),
        trial("a_throw_away_root_runs_apt", a_throw_away_root_runs_apt),
        trial("nothing_is_left_of_a_killed_owner", nothing_is_left_of_a_killed_owner),
    ])
}

fn a_host_boots_and_runs_commands() -> Result<()> {
    let network = Network::new()?;
    let host = Host::boot(&network, HostOptions::named("plain"))?;
    ensure!(host.exec_ok(&["hostname"])?.trim() == "plain");
    ensure!(host.exec_ok(&["cat", "/proc/1/comm"])?.trim() == "systemd");
    let answer = host.exec_with(&["sh", "-c", "cat; echo no >&2; exit 3"], "yes", Duration::from_secs(10))?;
    ensure!((answer.code(), &*answer.stdout, &*answer.stderr) == (Some(3), "yes", "no\n"), "{answer:?}");
    let error =
        host.exec_ok(&["sh", "-c", "echo reason >&2; exit 4"]).err().context("an exit of 4 is an error")?;
    let said = format!("{error:#}");
    ensure!(["exit 4", "reason", "status: 4"].iter().all(|part| said.contains(part)), "{said}");
    ensure!(
        host.exec_with(&["sleep", "60"], "", Duration::from_millis(200)).is_err(),
        "a limit of time is kept"
    );
    host.push(b"\x00\xff", "/opt/new/file", "600")?;
    ensure!(host.read("/opt/new/file")? == b"\x00\xff");
    ensure!(host.exec_ok(&["stat", "-c", "%a %U", "/opt/new/file"])?.trim() == "600 root");
    let failed = host.exec_ok(&["systemctl", "--failed", "--no-legend", "--plain"])?;
    ensure!(failed.trim().is_empty(), "units have failed: {failed}");
    let uptime = host.read_text("/proc/uptime")?;
    let seconds: f64 = uptime.split('.').next().context("no uptime")?.parse()?;
    ensure!(seconds < 60.0, "the host has its own uptime, not {uptime}");
    Ok(())
}

fn a_reboot_is_a_new_boot_of_the_same_disk() -> Result<()> {
    let network = Network::new()?;
    let host = Host::boot(&network, HostOptions::named("again"))?;
    let first = host.boot_id()?;
    host.shell("touch /var/kept /run/gone")?;
    host.reboot()?;
    let second = host.boot_id()?;
    host.power_cut()?;
    let third = host.boot_id()?;
    ensure!(first != second && second != third, "boot ids: {first} {second} {third}");
    ensure!(host.boots() == 3);
    host.shell("test -e /var/kept; test ! -e /run/gone")?;
    Ok(())
}

fn a_host_goes_off_and_on_again() -> Result<()> {
    let network = Network::new()?;
    let host = Host::boot(&network, HostOptions::named("switched"))?;
    host.off()?;
    ensure!(host.exec(&["true"]).is_err(), "nothing runs on a host that is off");
    host.start()?;
    host.lose_power()?;
    host.start()?;
    ensure!(host.boots() == 3);
    Ok(())
}

fn a_full_disk_refuses_every_byte_until_it_is_freed() -> Result<()> {
    let network = Network::new()?;
    let host = Host::boot(&network, HostOptions::named("full").disk("300m"))?;
    host.fill_disk()?;
    let refused = host.exec(&["sh", "-c", "head -c 100000 /dev/zero >/var/lib/more"])?;
    ensure!(refused.stderr.contains("No space left"), "{refused:?}");
    host.free_disk()?;
    host.shell("head -c 100000000 /dev/zero >/var/lib/more")?;
    Ok(())
}

fn hosts_of_one_network_see_each_other() -> Result<()> {
    let network = Network::new()?;
    let other = Network::new()?;
    let one = Host::boot(&network, HostOptions::named("one"))?;
    let two = Host::boot(&network, HostOptions::named("two"))?;
    let elsewhere = Host::boot(&other, HostOptions::named("elsewhere"))?;
    let ping = |from: &Host, to: &str| from.exec(&["ping", "-q", "-c", "1", "-W", "2", to]);
    ensure!(ping(&one, &two.ip().to_string())?.success());
    ensure!(ping(&two, &network.address().to_string())?.success());
    ensure!(!ping(&elsewhere, &one.ip().to_string())?.success(), "networks are apart");
    // A host whose name begins with that of another outlives it.
    let longer = Host::boot(&other, HostOptions::named("one-more"))?;
    drop(one);
    longer.exec_ok(&["true"])?;
    Ok(())
}

fn a_thread_can_be_on_the_network() -> Result<()> {
    let network = Network::new()?;
    let host = Host::boot(&network, HostOptions::named("echo"))?;
    host.shell("systemd-socket-activate --listen 7777 --inetd --accept cat </dev/null >/dev/null 2>&1 &")?;
    let address = (host.ip(), 7777);
    let answer = network.run_in(|| {
        let mut stream =
            wait::until("the echo server", Duration::from_secs(10), || Ok(TcpStream::connect(address).ok()))?;
        stream.write_all(b"hello")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    ensure!(answer == "hello", "{answer:?}");
    Ok(())
}

fn apt_installs_and_upgrades_by_http() -> Result<()> {
    let network = Network::new()?;
    let repository = Repository::new()?;
    let server = network.serve(repository.path())?;
    let host = Host::boot(&network, HostOptions::named("debian").repository(&repository))?;
    repository.configure(&host, &server.url())?;
    host.exec_ok(&[
        "apt-get",
        "-qq",
        "-y",
        "install",
        "lp-plain",
        "lp-epoch",
        "lp-daemon",
        "lp-needs-virtual",
    ])?;
    ensure!(host.installed("lp-plain")?.as_deref() == Some("1.0-1"));
    ensure!(host.installed("lp-epoch")?.as_deref() == Some("1:1.0~rc1"));
    ensure!(host.exec_ok(&["systemctl", "is-active", "lp-daemon"])?.trim() == "active");
    ensure!(server.requests().iter().any(|path| path.ends_with("/lp-plain_1.0-1_all.deb")));
    repository.publish_day(1)?;
    let upgraded = host.exec(&["unattended-upgrade", "-v"])?;
    ensure!(
        host.installed("lp-plain")?.as_deref() == Some("1.0-1"),
        "the lists are those of day 0: {upgraded:?}"
    );
    host.exec_ok(&["apt-get", "-qq", "update"])?;
    host.exec_ok(&["unattended-upgrade", "-v"])?;
    ensure!(host.installed("lp-plain")?.as_deref() == Some("1.1-1"), "{}", host.shell("dpkg -l 'lp-*'")?);
    ensure!(host.installed("lp-epoch")?.as_deref() == Some("1:1.0"));
    // The same by file.
    repository.configure(&host, Repository::FILES)?;
    host.exec_ok(&["apt-get", "-qq", "-y", "install", "lp-bulk-49"])?;
    Ok(())
}

fn a_faulty_server_is_faulty_only_while_told_so() -> Result<()> {
    let network = Network::new()?;
    let repository = Repository::new()?;
    let server = network.serve(repository.path())?;
    let address = format!("{}/key.asc", server.url());
    let get = || network.exec(&["curl", "-sf", "-m", "1", &address]);
    ensure!(get()?.stdout.contains("BEGIN PGP PUBLIC KEY BLOCK"));
    for (fault, code) in
        [(Fault::Status(503), 22), (Fault::Cut { after: 10 }, 18), (Fault::Stall { after: 10 }, 28)]
    {
        server.fault(fault);
        let answer = get()?;
        ensure!(answer.code() == Some(code), "{fault:?}: {answer:?}");
    }
    server.fault(Fault::None);
    ensure!(get()?.success());
    Ok(())
}

fn bad_repositories_are_refused() -> Result<()> {
    let repository = Repository::new()?;
    let root = Root::new(RootOptions::default().repository(&repository))?;
    for (kind, complaint) in [("expired", "is expired"), ("wrongkey", "couldn't be verified")] {
        root.push(Repository::bad_sources_list(Repository::FILES, kind)?, "/etc/apt/sources.list", "644")?;
        let update = root.exec(&["apt-get", "-q", "--error-on=any", "update"])?;
        ensure!(!update.success() && update.stderr.contains(complaint), "{kind}: {update:?}");
    }
    root.push(Repository::bad_sources_list(Repository::FILES, "hash")?, "/etc/apt/sources.list", "644")?;
    root.exec_ok(&["apt-get", "-qq", "update"])?;
    let install = root.exec(&["apt-get", "-qq", "-y", "install", "lp-plain"])?;
    ensure!(!install.success() && root.installed("lp-plain")?.is_none(), "{install:?}");
    Ok(())
}

fn packages_behave_as_the_catalogue_says() -> Result<()> {
    let repository = Repository::new()?;
    let rows = [
        // What is installed on day 0, what is asked for on day 1, apt's exit code, the state of what was installed.
        ("lp-plain", "lp-plain", 0, "ii 1.1-1"),
        ("lp-postfail", "lp-postfail", 100, "iF 1.1"),
        ("lp-flaky", "lp-flaky", 100, "iF 1.1"),
        ("lp-prefail", "lp-prefail", 100, "ii 1.0"),
        ("lp-prermfail", "lp-prermfail", 100, "ii 1.0"),
        ("lp-postrmfail", "lp-postrmfail", 100, "iHR1.0"),
        ("lp-multi", "lp-multi", 0, "ii 1.1"),
        ("lp-epoch", "lp-epoch", 0, "ii 1:1.0"),
        ("lp-large", "lp-large", 0, "ii 1.1"),
        ("lp-victim", "lp-breaks", 0, "un "),
        ("lp-lib", "lp-app", 0, "ii 1.1"),
        ("lp-needs-virtual", "lp-new", 0, "ii 1.0"),
        ("lp-bulk-49", "lp-newfail", 100, "ii 1.0"),
    ];
    for (before, asked, code, state) in rows {
        repository.publish_day(0)?;
        let root = Root::new(RootOptions::default().repository(&repository))?;
        root.shell(&format!("apt-get -qq update; apt-get -qq -y install {before}"))?;
        repository.publish_day(1)?;
        root.exec_ok(&["apt-get", "-qq", "update"])?;
        let upgrade = root.exec(&["apt-get", "-qq", "-y", "install", asked])?;
        ensure!(upgrade.code() == Some(code), "{asked}: {upgrade:?}");
        let found = root.exec(&["dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Version}", before])?.stdout;
        ensure!(found == state, "{before} is {found:?}, not {state:?}: {upgrade:?}");
    }
    Ok(())
}

fn a_throw_away_root_runs_apt() -> Result<()> {
    let repository = Repository::new()?;
    let root = Root::new(RootOptions::default().repository(&repository))?;
    root.exec_ok(&["apt-get", "-qq", "update"])?;
    root.exec_ok(&["apt-get", "-qq", "-y", "install", "lp-lib", "lp-app", "lp-ask"])?;
    ensure!(std::fs::read_to_string(root.path().join("usr/share/lp-app/version"))?.trim() == "1.0");
    repository.publish_day(1)?;
    root.exec_ok(&["apt-get", "-qq", "update"])?;
    root.exec_ok(&["apt-get", "-qq", "-y", "install", "lp-app"])?;
    ensure!(root.installed("lp-lib")?.as_deref() == Some("1.1"));
    // Another root knows nothing of it, and neither sees the machine's processes.
    let other = Root::new(RootOptions::default())?;
    ensure!(other.installed("lp-app")?.is_none());
    let processes = other.shell("ls /proc | grep -c '^[0-9]'")?;
    ensure!(processes.trim().parse::<u32>()? < 10, "{processes}");
    Ok(())
}

fn hold() -> ExitCode {
    let booted = Network::new().and_then(|network| {
        let repository = Repository::new()?;
        let host = Host::boot(&network, HostOptions::named("doomed"))?;
        let root = Root::new(RootOptions::default())?;
        println!("up");
        std::io::stdin().read_to_end(&mut Vec::new())?;
        drop((host, root, repository));
        Ok(())
    });
    if let Err(error) = booted {
        eprintln!("{error:?}");
    }
    ExitCode::FAILURE
}

fn nothing_is_left_of_a_killed_owner() -> Result<()> {
    let mut owner = Command::new(std::env::current_exe()?)
        .env(HOLD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start this program again")?;
    let mut said = String::new();
    BufReader::new(owner.stdout.take().context("no output")?).read_line(&mut said)?;
    ensure!(said.trim() == "up", "the owner has no host: {said}");
    let run =
        runs()?.into_iter().find(|run| run.owner == owner.id()).context("the owner's run is not listed")?;
    let leader = run.hosts.first().and_then(|host| host.leader).context("the owner's host is not listed")?;
    owner.kill()?;
    owner.wait()?;
    let killed = Instant::now();
    wait::until("the host's processes to end", Duration::from_secs(10), || {
        Ok((!std::path::Path::new(&format!("/proc/{leader}")).exists()).then_some(()))
    })?;
    println!("the host ended {} ms after its owner", killed.elapsed().as_millis());
    wait::until("the run to be swept", Duration::from_secs(10), || {
        sweep()?;
        Ok((!runs()?.iter().any(|other| other.id == run.id)).then_some(()))
    })?;
    let find =
        ["/tmp/linux-patch-hosts", "/sys/fs/cgroup", "/run/systemd/nspawn", "/var/cache/linux-patch/copies"];
    for place in find.iter().filter(|place| std::path::Path::new(place).exists()) {
        let found = Command::new("find").args([place, "-name", &*format!("*{}*", run.id)]).output()?;
        ensure!(found.stdout.is_empty(), "left in {place}: {}", String::from_utf8_lossy(&found.stdout));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&run.id), "a mount is left: {mounts}");
    Ok(())
}
