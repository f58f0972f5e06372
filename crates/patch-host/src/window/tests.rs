//! Looks at a host made of files, with a `systemctl` that only writes down what it was told.

use std::{
    cell::Cell,
    fs::{self, File},
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::mpsc,
};

use jiff::{SignedDuration, Timestamp};
use patch_policy::reboot::Forced;
use patch_types::reboot::{REBOOTS_DIR, RebootOrder, RebootReport};
use rustix::fs::{FlockOperation, flock};

use super::{
    machine::Machine,
    tick::{Outcome, tick},
};

const STATE: &str = "var/lib/linux_patch_executor/reboot-window.json";
const INSIDE: &str = "2026-01-04T04:20:00Z";
const OUTSIDE: &str = "2026-01-04T06:00:00Z";
const WINDOW: &str = "REBOOT_DOW=Sun\nREBOOT_HOUR=4\nREBOOT_MIN=15\nREBOOT_DURATION_MIN=60\n";

struct Host {
    dir: tempfile::TempDir,
    machine: Machine,
    now: Cell<Timestamp>,
}

impl Host {
    /// A host with a window that something asks to be rebooted.
    fn new(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = Machine::new(dir.path().to_owned());
        machine.systemctl = dir.path().join("systemctl").display().to_string();
        let host = Self { machine, now: Cell::new(INSIDE.parse().unwrap()), dir };
        let at = host.dir.path().display().to_string();
        host.write(
            "systemctl",
            &format!(
                "#!/bin/sh\ncase \"$1\" in\nreboot) echo reboot >>{at}/log; [ ! -e {at}/refuse ] ;;\n\
             is-system-running) cat {at}/state ;;\nlist-units) cat {at}/failed ;;\n\
             show) cat {at}/timer ;;\ntry-restart) echo \"$1 $3\" >>{at}/log ;;\nesac\n"
            ),
        );
        fs::set_permissions(host.path("systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
        for (path, text) in [
            ("log", ""),
            ("state", "running"),
            ("timer", "ActiveState=active\nUnitFileState=enabled\n"),
            ("failed", "old.service loaded failed failed Old\n"),
            ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            (
                "var/lib/dpkg/status",
                "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n\n",
            ),
            ("var/lib/dpkg/lock-frontend", ""),
            ("var/lib/linux_patch_executor/journal/turn", "0198c5f2-0000-7000-8000-000000000001"),
            ("proc/sys/kernel/random/boot_id", "first"),
            ("proc/sys/kernel/osrelease", "1.2.3-test"),
            ("proc/uptime", "100.0 1.0"),
            ("run/reboot-required", ""),
            ("run/reboot-required.pkgs", "libc6\n"),
            ("etc/default/linux-patch-reboot-window", settings),
        ] {
            host.write(path, text);
        }
        host
    }

    /// The same, which drains and undrains.
    fn draining(drain: &str) -> Self {
        let host = Self::new("");
        let log = host.path("log").display().to_string();
        let settings =
            format!("{WINDOW}DRAIN_CMD='echo drain >>{log}; {drain}'\nUNDRAIN_CMD='echo undrain >>{log}'\n");
        host.write("etc/default/linux-patch-reboot-window", &settings);
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn at(&self, now: &str) -> &Self {
        self.now.set(now.parse().unwrap());
        self
    }

    fn tick(&self) -> Outcome {
        tick(&self.machine, &|| self.now.get(), None, &mut |_| {}).unwrap()
    }

    /// An order.
    fn force(&self) -> Outcome {
        let order = Forced { by: "ann".into(), reason: "the disk is replaced".into() };
        tick(&self.machine, &|| self.now.get(), Some(order), &mut |_| {}).unwrap()
    }

    fn settings(&self, text: &str) {
        self.write("etc/default/linux-patch-reboot-window", text);
    }

    /// What was done, in order.
    fn log(&self) -> Vec<String> {
        fs::read_to_string(self.path("log")).unwrap().lines().map(str::to_owned).collect()
    }

    fn record(&self) -> String {
        fs::read_to_string(self.path("var/lib/linux_patch_executor/record.jsonl")).unwrap_or_default()
    }

    fn state(&self) -> String {
        fs::read_to_string(self.path(STATE)).unwrap_or_default()
    }

    /// The host comes up again, a minute later.
    fn boot(&self) {
        self.write("proc/sys/kernel/random/boot_id", "second");
        self.now.set(self.now.get() + SignedDuration::from_mins(1));
    }
}

fn said(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Reboots(what) | Outcome::Done(what) | Outcome::Failed(what) => what,
    }
}

#[test]
fn it_drains_reboots_and_undrains_once_for_each_cause() {
    let host = Host::draining("true");
    let outcome = host.tick();
    assert!(said(&outcome).contains("libc6 2.36-9 asked for it"), "{outcome:?}");
    assert_eq!(host.log(), ["drain", "reboot"]);
    assert!(host.record().contains("reboot window: the host reboots: libc6 2.36-9"), "{}", host.record());
    // It takes a while.
    assert_eq!(host.tick(), Outcome::Done("the host is about to reboot".into()));
    host.boot();
    host.write("state", "starting");
    assert!(said(&host.tick()).contains("still starts"));
    assert_eq!(host.log(), ["drain", "reboot"]);
    host.write("state", "degraded");
    let outcome = host.tick();
    assert_eq!(host.log(), ["drain", "reboot", "undrain"]);
    assert!(said(&outcome).contains("it was rebooted for already"), "{outcome:?}");
    assert!(host.record().contains("has rebooted and is in health"), "{}", host.record());
    // What asked is still there, also a week later: it is reported and not rebooted for.
    assert!(said(&host.at("2026-01-11T04:20:00Z").tick()).contains("does not mend it"));
    assert_eq!(host.log().len(), 3);
    // Something new does.
    host.write("run/reboot-required.pkgs", "libc6\ndbus\n");
    host.tick();
    assert_eq!(host.log(), ["drain", "reboot", "undrain", "drain", "reboot"]);
}

#[test]
fn outside_the_window_it_is_recorded_why_not_and_once() {
    let host = Host::new(WINDOW);
    host.at(OUTSIDE);
    for _ in 0..3 {
        let outcome = host.tick();
        assert_eq!(
            outcome,
            Outcome::Done("not now, because the window is closed; it opens at 2026-01-11 04:15 UTC".into())
        );
    }
    assert_eq!(
        host.record().matches("the window is closed").count(),
        2,
        "one line, with its sentence: {}",
        host.record()
    );
    assert!(host.log().is_empty());
    // An order needs no window, nor a timer where nothing is to be taken back.
    host.write("timer", "ActiveState=inactive\nUnitFileState=disabled\n");
    let outcome = host.force();
    assert!(
        matches!(&outcome, Outcome::Reboots(what) if what.contains("the disk is replaced, by order of ann")),
        "{outcome:?}"
    );
    assert_eq!(host.log(), ["reboot"]);
}

#[test]
fn an_order_that_does_not_reboot_has_failed() {
    let host = Host::new(WINDOW);
    let turn = File::open(host.path("var/lib/linux_patch_executor/journal/turn")).unwrap();
    flock(&turn, FlockOperation::LockExclusive).unwrap();
    assert!(matches!(host.force(), Outcome::Failed(what) if what.contains("packages are being changed")));
    flock(&turn, FlockOperation::Unlock).unwrap();
    let path = host.path("var/lib/linux_patch_executor/reboot-window.lock");
    let held = super::machine::try_lock(&path).unwrap().unwrap();
    assert_eq!(host.force(), Outcome::Failed("another run is at work".into()));
    drop(held);
    assert!(matches!(host.force(), Outcome::Reboots(_)));
    assert_eq!(host.force(), Outcome::Failed("the host is about to reboot".into()));
    assert_eq!(host.log(), ["reboot"]);
}

#[test]
fn nothing_is_drained_or_locked_that_no_timer_would_take_back() {
    let lock = format!("{WINDOW}FLEETLOCK_URL=http://127.0.0.1:1\n");
    for (timer, word) in [
        ("ActiveState=inactive\nUnitFileState=enabled\n", "does not run"),
        ("ActiveState=active\nUnitFileState=disabled\n", "is not enabled"),
        ("ActiveState=inactive\nUnitFileState=\n", "does not run"),
    ] {
        for host in [Host::draining("true"), Host::new(&lock)] {
            host.write("timer", timer);
            for outcome in [host.tick(), host.force()] {
                let said = said(&outcome);
                assert!(matches!(outcome, Outcome::Failed(_)) && said.contains(word), "{said}");
                assert!(said.contains("systemctl enable --now linux-patch-reboot-window.timer"), "{said}");
            }
            assert!(host.log().is_empty());
            assert!(!host.state().contains("\"pending\":{"), "{}", host.state());
        }
    }
}

#[test]
fn no_package_is_changed_until_the_host_is_down() {
    let host = Host::draining("true");
    let mut why = None;
    let mut reboots = |what: &str| {
        why = Some(what.to_owned());
        let turn = File::open(host.path("var/lib/linux_patch_executor/journal/turn")).unwrap();
        assert!(flock(&turn, FlockOperation::NonBlockingLockExclusive).is_err());
        assert!(host.machine.keep_apt_out().unwrap().is_none());
        assert_eq!(host.log(), ["drain", "reboot"]);
        assert_eq!(host.tick(), Outcome::Done("another run is at work".into()));
    };
    let outcome = tick(&host.machine, &|| host.now.get(), None, &mut reboots).unwrap();
    assert_eq!(outcome, Outcome::Reboots(why.unwrap()));
    host.write("refuse", "");
    host.boot();
    host.write("run/reboot-required.pkgs", "dbus\n");
    let mut reboots = |_: &str| panic!("systemd refused");
    let outcome = tick(&host.machine, &|| host.now.get(), None, &mut reboots).unwrap();
    assert!(said(&outcome).contains("is not rebooted: systemctl reboot failed"), "{outcome:?}");
}

#[test]
fn what_was_drained_is_taken_back_whatever_is_configured_since() {
    for settings in ["REBOOT_DOW=Someday\nREBOOT_HOUR=4\n", "", WINDOW] {
        let host = Host::draining("true");
        let log = host.path("log").display().to_string();
        host.settings(&format!(
            "{WINDOW}WHO=me\nDRAIN_CMD='echo drain >>{log}'\nUNDRAIN_CMD='echo undrain $WHO >>{log}'\n"
        ));
        host.tick();
        host.boot();
        host.settings(settings);
        let outcome = host.tick();
        assert_eq!(host.log(), ["drain", "reboot", "undrain me"], "{outcome:?}");
        assert_eq!(matches!(&outcome, Outcome::Failed(_)), settings.contains("Someday"), "{outcome:?}");
        assert!(!host.state().contains("\"pending\":{"), "{}", host.state());
    }
}

#[test]
fn a_command_that_cannot_undrain_can_be_mended() {
    let host = Host::draining("true");
    let log = host.path("log").display().to_string();
    host.settings(&format!("{WINDOW}DRAIN_CMD=true\nUNDRAIN_CMD='echo bad >>{log}; exit 1'\n"));
    host.tick();
    host.boot();
    assert!(matches!(host.tick(), Outcome::Failed(what) if what.contains("could not be undrained")));
    host.settings(&format!("{WINDOW}DRAIN_CMD=true\nUNDRAIN_CMD='echo good >>{log}'\n"));
    assert!(said(&host.tick()).contains("rebooted for already"));
    assert_eq!(host.log(), ["reboot", "bad", "bad", "good"]);
    // It is not known how; nothing is forgotten.
    let host = Host::draining("true");
    host.tick();
    host.boot();
    let mut state: serde_json::Value = serde_json::from_str(&host.state()).unwrap();
    state["pending"].as_object_mut().unwrap().remove("back").unwrap();
    host.write(STATE, &state.to_string());
    host.settings(WINDOW);
    for _ in 0..2 {
        let outcome = host.tick();
        assert!(
            matches!(&outcome, Outcome::Failed(what) if what.contains("no command is known")),
            "{outcome:?}"
        );
    }
    assert!(host.record().contains("\"high\""), "{}", host.record());
    host.settings(&format!("{WINDOW}UNDRAIN_CMD='true'\n"));
    host.tick();
    assert!(!host.state().contains("\"pending\":{"), "{}", host.state());
    // Where nothing is configured to undrain it, nothing is missing.
    let host = Host::new(&format!("{WINDOW}DRAIN_CMD=true\n"));
    host.tick();
    host.boot();
    assert!(said(&host.tick()).contains("rebooted for already"));
}

#[test]
fn a_drain_has_half_an_hour_of_a_long_window() {
    let day =
        |now: &str, end: &str| super::tick::drain_limit(now.parse().unwrap(), Some(end.parse().unwrap()));
    assert_eq!(day("2026-01-04T04:00:00Z", "2026-01-11T04:00:00Z").as_secs(), 1800);
    assert_eq!(day("2026-01-04T04:00:00Z", "2026-01-04T04:29:59Z").as_secs(), 1799);
    assert_eq!(super::tick::drain_limit(INSIDE.parse().unwrap(), None).as_secs(), 1800);
}

#[test]
fn a_drain_that_fails_or_takes_longer_than_the_window_calls_it_off() {
    let host = Host::draining("exit 7");
    let outcome = host.tick();
    assert!(matches!(&outcome, Outcome::Failed(what) if what.contains("exit status: 7")), "{outcome:?}");
    assert_eq!(host.log(), ["drain", "undrain"]);
    assert!(host.record().contains("could not be drained"), "{}", host.record());

    let host = Host::draining("sleep 1000");
    let outcome = host.at("2026-01-04T05:14:59Z").tick();
    assert!(said(&outcome).contains("took longer than 1 s"), "{outcome:?}");
    assert_eq!(host.log(), ["drain", "undrain"]);
}

#[test]
fn what_comes_up_while_it_is_drained_calls_it_off() {
    let host = Host::draining("true");
    // The drain ends when the window is over.
    let clock = || {
        let now = host.now.get();
        if !host.log().is_empty() { OUTSIDE.parse().unwrap() } else { now }
    };
    let outcome = tick(&host.machine, &clock, None, &mut |_| {}).unwrap();
    assert!(said(&outcome).contains("not rebooted after all"), "{outcome:?}");
    assert_eq!(host.log(), ["drain", "undrain"]);
}

#[test]
fn a_change_of_packages_is_waited_for() {
    let host = Host::draining("true");
    let turn = File::open(host.path("var/lib/linux_patch_executor/journal/turn")).unwrap();
    flock(&turn, FlockOperation::LockExclusive).unwrap();
    let outcome = host.tick();
    assert!(
        said(&outcome).contains("job 0198c5f2-0000-7000-8000-000000000001 of linux-patch-api"),
        "{outcome:?}"
    );
    assert!(host.log().is_empty());
    flock(&turn, FlockOperation::Unlock).unwrap();
    host.tick();
    assert_eq!(host.log(), ["drain", "reboot"]);
}

#[test]
fn a_reboot_that_systemd_refuses_or_that_never_comes_is_taken_back() {
    let host = Host::draining("true");
    host.write("refuse", "");
    assert!(matches!(host.tick(), Outcome::Failed(_)));
    assert_eq!(host.log(), ["drain", "reboot", "undrain"]);
    fs::remove_file(host.path("refuse")).unwrap();
    host.tick();
    assert_eq!(host.log().len(), 5, "it was not rebooted for that yet");
    // Half an hour later it is still the same boot.
    host.at("2026-01-04T04:51:00Z").tick();
    assert_eq!(host.log()[5..], ["undrain", "drain", "reboot"]);
    assert!(host.record().contains("and did not"), "{}", host.record());
}

#[test]
fn a_host_that_comes_up_sick_stays_drained_until_it_is_mended() {
    let host = Host::draining("true");
    host.tick();
    host.boot();
    host.write("failed", "old.service loaded failed failed Old\nnew.service loaded failed failed New\n");
    for _ in 0..2 {
        let outcome = host.tick();
        assert!(
            matches!(&outcome, Outcome::Failed(what) if what.contains("new.service failed")),
            "{outcome:?}"
        );
    }
    assert_eq!(host.log(), ["drain", "reboot"]);
    host.write("failed", "");
    host.tick();
    assert_eq!(host.log(), ["drain", "reboot", "undrain"]);
}

#[test]
fn the_fleets_lock_is_taken_before_the_drain_and_given_back_after_the_boot() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (tell, told) = mpsc::channel();
    let host = Host::draining("true");
    let file = "etc/default/linux-patch-reboot-window";
    let settings = fs::read_to_string(host.path(file)).unwrap();
    host.write(file, &format!("{settings}FLEETLOCK_URL=http://{}\n", listener.local_addr().unwrap()));
    let answers = ["409 Conflict", "500 Error", "200 OK", "200 OK", "500 Error", "200 OK"];
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut part = [0; 512];
            while !request.ends_with(b"}}") {
                let read = stream.read(&mut part).unwrap();
                request.extend_from_slice(&part[..read]);
            }
            let request = String::from_utf8(request).unwrap();
            tell.send(request.lines().next().unwrap().to_owned()).unwrap();
            write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    let asked = || told.recv().unwrap();
    // Others have it: nothing is to be given back.
    assert!(said(&host.tick()).contains("the fleet's lock is not to be had"));
    assert_eq!(asked(), "POST /v1/pre-reboot HTTP/1.1");
    // Nobody knows: it is given back.
    host.tick();
    assert_eq!([asked(), asked()], ["POST /v1/pre-reboot HTTP/1.1", "POST /v1/steady-state HTTP/1.1"]);
    assert!(host.log().is_empty());
    host.tick();
    assert_eq!(
        (asked(), host.log()),
        ("POST /v1/pre-reboot HTTP/1.1".into(), vec!["drain".into(), "reboot".into()])
    );
    host.boot();
    // To whom it was taken from, also if nothing is configured any more.
    host.settings("REBOOT_DOW=Someday\n");
    assert!(matches!(host.tick(), Outcome::Failed(what) if what.contains("could not be given back")));
    host.tick();
    assert_eq!([asked(), asked()], ["POST /v1/steady-state HTTP/1.1", "POST /v1/steady-state HTTP/1.1"]);
    assert_eq!(host.log(), ["drain", "reboot", "undrain"], "it is undrained once");
    server.join().unwrap();
}

/// A server of the fleet's lock that gives these answers, one after another, and the first lines of what it was asked.
fn fleet(answers: &'static [&'static str]) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut part = [0; 512];
            while !request.ends_with(b"}}") {
                let read = stream.read(&mut part).unwrap();
                request.extend_from_slice(&part[..read]);
            }
            let request = String::from_utf8(request).unwrap();
            tell.send(request.lines().next().unwrap().to_owned()).unwrap();
            write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    (url, told)
}

#[test]
fn a_server_that_is_not_configured_any_more_is_given_up_in_the_end() {
    const FAILS: &str = "500 Error";
    const YES: &str = "200 OK";
    const LOOKS: usize = 30;
    let (former, by_former) = fleet(&[FAILS; LOOKS + 3]);
    let (present, by_present) = fleet(&[YES; LOOKS + 1]);
    let host = Host::new("");
    host.settings(&format!("{WINDOW}FLEETLOCK_URL={former}\n"));
    // It was asked, and may have given it. At once it is asked to take it back: that is none of the tries of a former one.
    host.tick();
    // Settings that cannot be read say nothing of what is configured.
    host.settings("REBOOT_DOW=Someday\n");
    assert!(matches!(host.at("2026-01-05T04:20:00Z").tick(), Outcome::Failed(_)));
    assert!(host.state().contains("\"former_since\":null"), "{}", host.state());
    host.settings(&format!("{WINDOW}FLEETLOCK_URL={present}\n"));
    // Who waits for a reboot looks every few seconds.
    for number in 0..LOOKS {
        let seconds = i64::try_from(number).unwrap() * 3;
        host.now
            .set("2026-01-05T04:20:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds));
        let outcome = host.tick();
        let is_told = matches!(&outcome, Outcome::Failed(what) if what.contains("not configured any more"));
        assert!(is_told, "{number}: {outcome:?}");
        assert!(host.state().contains("\"locked\":true"), "{number}: {}", host.state());
    }
    assert!(!host.record().contains("is not given back to"), "{}", host.record());
    // After an hour it is the last. The host can be rebooted again, with the present server's leave.
    assert!(matches!(host.at("2026-01-05T05:20:00Z").tick(), Outcome::Done(_)));
    assert!(host.record().contains("it was tried 31 times since 2026-01-05T04:20:00Z"), "{}", host.record());
    assert!(host.state().contains("\"pending\":null"), "{}", host.state());
    let asked: Vec<String> = by_former.iter().collect();
    assert_eq!((asked.len(), asked[0].as_str()), (LOOKS + 3, "POST /v1/pre-reboot HTTP/1.1"));
    let asked: Vec<String> = by_present.iter().collect();
    assert!(
        asked.len() == LOOKS + 1 && asked.iter().all(|line| line == "POST /v1/steady-state HTTP/1.1"),
        "{asked:?}"
    );
}

#[test]
fn a_lock_is_kept_while_the_settings_cannot_be_read() {
    let host = Host::new("");
    let (server, _asked) = fleet(&["500 Error", "500 Error"]);
    host.settings(&format!("{WINDOW}FLEETLOCK_URL={server}\n"));
    host.tick();
    // Nobody answers there any more.
    host.settings("REBOOT_DOW=Someday\n");
    for hour in 0..48 {
        host.now.set("2026-01-05T04:20:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hour));
        let outcome = host.tick();
        assert!(matches!(&outcome, Outcome::Failed(what) if what.contains("is not known")), "{outcome:?}");
        assert!(host.state().contains("\"locked\":true"), "{}", host.state());
    }
}

#[test]
fn a_former_server_that_takes_the_lock_back_is_the_only_one_asked() {
    let (former, by_former) = fleet(&["500 Error", "500 Error", "200 OK"]);
    let host = Host::new("");
    host.settings(&format!("{WINDOW}FLEETLOCK_URL={former}\n"));
    host.tick();
    // Nobody answers there.
    host.settings(&format!("{WINDOW}FLEETLOCK_URL=http://127.0.0.1:1\n"));
    assert!(matches!(host.at(OUTSIDE).tick(), Outcome::Done(_)));
    assert_eq!(by_former.iter().count(), 3);
    assert!(host.state().contains("\"pending\":null"), "{}", host.state());
}

#[test]
fn a_run_that_was_cut_off_is_taken_back() {
    let host = Host::draining("true");
    host.tick();
    // As if the power had failed during the drain.
    host.write(STATE, &host.state().replace("\"rebooting\"", "\"preparing\""));
    host.boot();
    host.at(OUTSIDE).tick();
    assert_eq!(host.log(), ["drain", "reboot", "undrain"]);
}

#[test]
fn what_is_configured_wrongly_or_damaged_reboots_nothing() {
    let host = Host::new("REBOOT_DOW=Someday\nREBOOT_HOUR=4\n");
    let outcome = host.tick();
    assert!(matches!(&outcome, Outcome::Failed(what) if what.contains("REBOOT_DOW")), "{outcome:?}");
    assert!(host.record().contains("REBOOT_DOW"), "{}", host.record());
    host.write("etc/default/linux-patch-reboot-window", WINDOW);
    host.write(STATE, "{");
    let error = tick(&host.machine, &|| host.now.get(), None, &mut |_| {}).unwrap_err();
    assert!(format!("{error:#}").contains("is damaged"), "{error:#}");
    assert!(host.log().is_empty());
}

#[test]
fn two_do_not_look_at_once() {
    let host = Host::new(WINDOW);
    let path = host.path("var/lib/linux_patch_executor/reboot-window.lock");
    let _held = super::machine::try_lock(&path).unwrap().unwrap();
    assert_eq!(host.tick(), Outcome::Done("another run is at work".into()));
}

/// What the root side leaves when somebody asks for a reboot.
fn order(host: &Host, number: u8, force: bool, not_before: &str) -> RebootOrder {
    let order = RebootOrder {
        job: format!("0198c5f2-0000-7000-8000-0000000000{number:02x}").parse().unwrap(),
        by: "ann".into(),
        reason: Some("new firmware".into()),
        force,
        at: INSIDE.parse().unwrap(),
        not_before: not_before.parse().unwrap(),
        boot: "first".into(),
        due_uptime: None,
    };
    host.write(&format!("{REBOOTS_DIR}/{}.queued", order.job), &serde_json::to_string(&order).unwrap());
    order
}

/// A host that nothing asks to be rebooted.
fn quiet(settings: &str) -> Host {
    let host = Host::new(settings);
    fs::remove_file(host.path("run/reboot-required")).unwrap();
    host
}

impl Host {
    fn place(&self, order: &RebootOrder) -> Vec<&'static str> {
        let is_there = |suffix: &&str| self.path(&format!("{REBOOTS_DIR}/{}.{suffix}", order.job)).exists();
        ["queued", "taken", "over"].into_iter().filter(is_there).collect()
    }

    fn report(&self, order: &RebootOrder) -> RebootReport {
        assert_eq!(self.place(order), ["over"]);
        let text = fs::read(self.path(&format!("{REBOOTS_DIR}/{}.over", order.job))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}

#[test]
fn an_order_waits_for_the_window_and_for_its_delay_and_is_answered_after_the_boot() {
    let host = quiet(WINDOW);
    let (first, late) = (order(&host, 1, false, INSIDE), order(&host, 2, false, "2026-01-04T05:00:00Z"));
    assert!(said(&host.at(OUTSIDE).tick()).contains("the window is closed"));
    assert_eq!(host.place(&first), ["queued"]);
    let outcome = host.at(INSIDE).tick();
    assert!(
        matches!(&outcome, Outcome::Reboots(what) if what.contains("ann asked for it (job")),
        "{outcome:?}"
    );
    assert_eq!(
        (host.place(&first), host.place(&late), host.log()),
        (vec!["taken"], vec!["queued"], vec!["reboot".to_owned()])
    );
    host.tick();
    assert_eq!(host.place(&first), ["taken"], "the host is about to reboot");
    host.boot();
    host.write("state", "starting");
    host.tick();
    assert_eq!(host.place(&first), ["taken"], "it still starts");
    host.write("state", "running");
    assert!(said(&host.tick()).contains("nothing asks for a reboot"));
    let report = host.report(&first);
    assert!(report.is_rebooted && report.is_well && report.what.contains("new firmware"), "{report:?}");
    // One of an earlier boot is fulfilled, and not for this program to answer.
    host.at("2026-01-04T05:05:00Z").tick();
    assert_eq!((host.place(&late), host.log().len()), (vec!["queued"], 1));
}

#[test]
fn an_order_that_does_not_wait_reboots_outside_the_window_or_is_answered_at_once() {
    let host = quiet("");
    let now = order(&host, 1, true, INSIDE);
    let turn = File::open(host.path("var/lib/linux_patch_executor/journal/turn")).unwrap();
    flock(&turn, FlockOperation::LockExclusive).unwrap();
    assert!(said(&host.tick()).contains("packages are being changed"));
    let report = host.report(&now);
    assert!(!report.is_rebooted && report.what.contains("packages are being changed"), "{report:?}");
    flock(&turn, FlockOperation::Unlock).unwrap();
    assert!(said(&host.tick()).contains("nothing asks for a reboot"), "it is over");

    let later = order(&host, 2, true, "2026-01-04T04:21:00Z");
    assert!(!matches!(host.tick(), Outcome::Reboots(_)), "not before its delay");
    let outcome = host.at("2026-01-04T04:21:00Z").tick();
    assert!(
        matches!(&outcome, Outcome::Reboots(what) if what.contains("new firmware, by order of ann (job")),
        "{outcome:?}"
    );
    host.boot();
    host.write("failed", "old.service x\nnew.service x\n");
    assert!(said(&host.tick()).contains("new.service failed"));
    let report = host.report(&later);
    assert!(report.is_rebooted && !report.is_well && report.what.contains("new.service"), "{report:?}");
    assert_eq!(host.log(), ["reboot"]);
}

#[test]
fn an_order_fails_with_the_drain_or_with_systemd_and_is_not_tried_again() {
    for force in [false, true] {
        let host = Host::draining("exit 7");
        fs::remove_file(host.path("run/reboot-required")).unwrap();
        let order = order(&host, 1, force, INSIDE);
        assert!(said(&host.tick()).contains("could not be drained"));
        let report = host.report(&order);
        assert!(!report.is_rebooted && report.what.contains("could not be drained"), "{report:?}");
        host.tick();
        assert_eq!(host.log(), ["drain", "undrain"]);
    }
    let host = quiet(WINDOW);
    host.write("refuse", "");
    let refused = order(&host, 1, false, INSIDE);
    host.tick();
    assert!(host.report(&refused).what.contains("systemctl reboot failed"));
    // One that was accepted by systemd and did not come.
    fs::remove_file(host.path("refuse")).unwrap();
    let lost = order(&host, 2, false, INSIDE);
    assert!(matches!(host.tick(), Outcome::Reboots(_)));
    host.at("2026-01-04T05:00:00Z").tick();
    assert!(host.report(&lost).what.contains("did not"), "{:?}", host.report(&lost));
}

#[test]
fn an_order_that_is_taken_back_while_the_host_is_drained_does_not_reboot_it() {
    let host = Host::draining("true");
    fs::remove_file(host.path("run/reboot-required")).unwrap();
    let order = order(&host, 1, false, INSIDE);
    let (log, file) = (host.path("log"), host.path(&format!("{REBOOTS_DIR}/{}.queued", order.job)));
    let settings = format!(
        "{WINDOW}DRAIN_CMD='echo drain >>{log}; rm {file}'\nUNDRAIN_CMD='echo undrain >>{log}'\n",
        log = log.display(),
        file = file.display()
    );
    host.settings(&settings);
    let outcome = host.tick();
    assert!(said(&outcome).contains("does not want it any more"), "{outcome:?}");
    assert_eq!(host.log(), ["drain", "undrain"]);
    assert!(host.place(&order).is_empty());
}

#[test]
fn a_run_that_was_cut_off_lets_an_order_wait_again_and_a_damaged_one_is_passed_over() {
    let host = quiet(WINDOW);
    let (waits, forced) = (order(&host, 1, false, INSIDE), order(&host, 2, true, INSIDE));
    host.write(&format!("{REBOOTS_DIR}/x.queued"), "{");
    for order in [&waits, &forced] {
        let from = host.path(&format!("{REBOOTS_DIR}/{}.queued", order.job));
        fs::rename(&from, from.with_extension("taken")).unwrap();
    }
    host.at(OUTSIDE).tick();
    assert_eq!(host.place(&waits), ["queued"]);
    assert!(host.report(&forced).what.contains("cut off"));
    assert!(host.log().is_empty());
}

#[test]
fn an_order_that_is_too_old_or_not_allowed_any_more_is_not_carried_out() {
    let host = quiet(WINDOW);
    let late = order(&host, 1, true, "2026-01-04T03:30:00Z");
    assert!(!matches!(host.tick(), Outcome::Reboots(_)));
    assert_eq!(host.place(&late), ["queued"], "who left it says so");
    fs::remove_file(host.path(&format!("{REBOOTS_DIR}/{}.queued", late.job))).unwrap();
    let (forced, waits) = (order(&host, 2, true, INSIDE), order(&host, 3, false, INSIDE));
    for (path, text) in [
        ("etc/linux_patch_api/freeze", "inventory"),
        ("etc/linux_patch_api/ceiling.yaml", "operations: [install]\nprotected: [linux-image-*]\n"),
        ("etc/linux_patch_api/ceiling.yaml", "operations:\n"),
        ("etc/linux_patch_api/ceiling.yaml", "freeze_file: /etc/default/linux-patch-reboot-window\n"),
        ("etc/linux_patch_api/ceiling.yaml", "operations: [\n"),
    ] {
        host.write(path, text);
        assert!(!matches!(host.tick(), Outcome::Reboots(_)), "{text}");
        assert_eq!((host.place(&forced), host.place(&waits)), (vec!["queued"], vec!["queued"]), "{text}");
        fs::remove_file(host.path(path)).unwrap();
    }
    host.write("etc/linux_patch_api/ceiling.yaml", "# operations: []\n");
    assert!(matches!(host.tick(), Outcome::Reboots(_)));
}

#[test]
fn what_comes_between_the_drain_and_the_reboot_holds_for_orders_too() {
    let host = Host::draining("true");
    fs::remove_file(host.path("run/reboot-required")).unwrap();
    let order = order(&host, 1, false, INSIDE);
    let (log, freeze) = (host.path("log"), host.path("etc/linux_patch_api/freeze"));
    fs::create_dir_all(host.path("etc/linux_patch_api")).unwrap();
    host.settings(&format!(
        "{WINDOW}DRAIN_CMD='echo drain >>{log}; touch {freeze}'\nUNDRAIN_CMD='echo undrain >>{log}'\n",
        log = log.display(),
        freeze = freeze.display()
    ));
    assert!(!matches!(host.tick(), Outcome::Reboots(_)));
    assert_eq!((host.log(), host.place(&order)), (vec!["drain".into(), "undrain".into()], vec!["queued"]));
}

#[test]
fn orders_that_wait_outlive_the_failure_of_one_that_does_not() {
    let host = Host::draining("exit 7");
    fs::remove_file(host.path("run/reboot-required")).unwrap();
    let (waits, forced) = (order(&host, 1, false, INSIDE), order(&host, 2, true, INSIDE));
    assert!(said(&host.tick()).contains("could not be drained"));
    assert!(host.report(&forced).what.contains("could not be drained"));
    assert_eq!(host.place(&waits), ["queued"]);
    // Nor does somebody's own order answer them.
    assert!(said(&host.force()).contains("could not be drained"));
    assert_eq!(host.place(&waits), ["queued"]);
}

#[test]
fn of_two_orders_that_do_not_wait_one_that_is_taken_back_leaves_the_other() {
    let host = Host::draining("true");
    fs::remove_file(host.path("run/reboot-required")).unwrap();
    let (first, second) = (order(&host, 1, true, INSIDE), order(&host, 2, true, INSIDE));
    let (log, file) = (host.path("log"), host.path(&format!("{REBOOTS_DIR}/{}.queued", first.job)));
    // Without a window, by order alone.
    host.settings(&format!(
        "DRAIN_CMD='echo drain >>{log}; rm {file}'\nUNDRAIN_CMD='echo undrain >>{log}'\n",
        log = log.display(),
        file = file.display()
    ));
    let outcome = host.tick();
    assert!(
        matches!(&outcome, Outcome::Reboots(what) if what.contains(&second.job.to_string())),
        "{outcome:?}"
    );
    assert_eq!((host.place(&first), host.place(&second)), (vec![], vec!["taken"]));
}

#[test]
fn an_order_that_is_answered_is_not_carried_out_again() {
    let host = quiet(WINDOW);
    let order = order(&host, 1, false, INSIDE);
    let report = RebootReport { is_rebooted: false, is_well: false, what: "so it went".into() };
    host.write(&format!("{REBOOTS_DIR}/{}.over", order.job), &serde_json::to_string(&report).unwrap());
    assert!(!matches!(host.tick(), Outcome::Reboots(_)));
    assert_eq!(host.report(&order), report);
}

#[test]
fn of_a_host_that_was_rebooted_meanwhile_its_health_is_told() {
    for (state, places) in [("starting", ["taken"]), ("maintenance", ["over"]), ("degraded", ["over"])] {
        let host = quiet(WINDOW);
        let order = order(&host, 1, false, INSIDE);
        let from = host.path(&format!("{REBOOTS_DIR}/{}.queued", order.job));
        fs::rename(&from, from.with_extension("taken")).unwrap();
        host.boot();
        host.write("state", state);
        host.at(OUTSIDE).tick();
        assert_eq!(host.place(&order), places, "{state}");
        if places == ["over"] {
            let report = host.report(&order);
            assert_eq!((report.is_rebooted, report.is_well), (true, state == "degraded"), "{report:?}");
        }
    }
}

#[test]
fn when_the_window_opens_for_an_order_stays_the_same() {
    let host = quiet(WINDOW);
    let window = super::settings::Settings::load(&host.machine.root).unwrap().window.unwrap();
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let opens = |not_before: &str, now: &str| {
        super::orders::opens(&order(&host, 1, false, not_before), &window, at(now)).unwrap()
    };
    for now in [INSIDE, "2026-01-04T04:50:00Z"] {
        assert_eq!(opens("2026-01-01T00:00:00Z", now), at("2026-01-04T04:15:00Z"));
        assert_eq!(opens("2026-01-04T05:00:00Z", now), at("2026-01-04T05:00:00Z"));
    }
    assert_eq!(opens(OUTSIDE, OUTSIDE), at("2026-01-11T04:15:00Z"));
    // Between two openings it is closed.
    assert_eq!(opens("2026-01-13T00:00:00Z", INSIDE), at("2026-01-18T04:15:00Z"));
}

/// Two services wait. They are restarted while the window is open and nobody changes packages, the second one not when the
/// first has taken until the window closed.
#[test]
fn services_are_restarted_only_while_the_window_is_open_and_apt_is_not_at_work() {
    let host = Host::new(WINDOW);
    fs::remove_file(host.path("run/reboot-required")).unwrap();
    let note = |unit: &str| {
        let note = serde_json::json!({
            "unit": unit, "job": "0198c5f2-0000-7000-8000-000000000001", "since": "2026-01-03T00:00:00Z",
            "boot": "first", "monotonic_us": 100, "held_back": true,
        });
        host.write(&format!("var/lib/linux_patch_executor/restarts/{unit}"), &note.to_string());
    };
    for unit in ["a.service", "b.service"] {
        note(unit);
    }
    host.write(
        "etc/linux_patch_api/config.yaml",
        "policy: {restart: {mode: restart, when: in_window, services: [a.service, b.service]}}\n",
    );
    host.write("timer", "ActiveState=active\nUnitFileState=enabled\nInactiveExitTimestampMonotonic=50\n");
    let log = || fs::read_to_string(host.path("log")).unwrap();
    host.at(OUTSIDE).tick();
    let apt = host.machine.keep_apt_out().unwrap().unwrap();
    host.at(INSIDE).tick();
    assert_eq!(log(), "");
    drop(apt);
    // The window closes at 5:15, which it does while the first one is restarted.
    let restarted = || log().contains("try-restart a.service");
    let clock = || {
        if restarted() {
            "2026-01-04T05:15:00Z".parse().unwrap()
        } else {
            INSIDE.parse::<Timestamp>().unwrap()
        }
    };
    let Outcome::Done(said) = tick(&host.machine, &clock, None, &mut |_| {}).unwrap() else {
        unreachable!("{}", log())
    };
    assert_eq!(log(), "try-restart a.service\n", "{said}");
    assert!(said.contains("the window is closed"), "{said}");
    host.at(INSIDE).tick();
    assert_eq!(log(), "try-restart a.service\ntry-restart b.service\n");
    assert!(fs::read_dir(host.path("var/lib/linux_patch_executor/restarts")).unwrap().next().is_none());
}
