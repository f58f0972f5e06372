//! Rehearsals: they say what the real run does, and leave the host as it is, whatever a package tries.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use patch_types::event::LogStream;
use patch_types::executor::Limits;
use patch_types::{
    ChangeOptions, ErrorCode, EventKind, FindingKind, JobId, JobStatus, OnFailure, Operation, Outcome, Phase,
    RehearsalReport, RehearsalVerdict, Rehearse, Unrehearsed,
};
use system_tests::executor::Seen;
use system_tests::place::{self, Place};
use system_tests::trials::trial;
use system_tests::untouched::Untouched;
use system_tests::wait;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("a_good_change_is_rehearsed_and_then_made", a_good_change_is_rehearsed_and_then_made),
        trial("a_rehearsal_alone_changes_nothing", a_rehearsal_alone_changes_nothing),
        trial("a_question_is_foreseen", a_question_is_foreseen),
        trial("a_hostile_package_reaches_nothing", a_hostile_package_reaches_nothing),
        trial("a_package_that_fills_the_disk_fills_an_image", a_package_that_fills_the_disk_fills_an_image),
        trial("a_package_that_owns_much_needs_no_room", a_package_that_owns_much_needs_no_room),
        trial(
            "a_package_that_fills_an_image_and_the_disk_fails",
            a_package_that_fills_an_image_and_the_disk_fails,
        ),
        trial("a_package_that_forks_wildly_is_ended", a_package_that_forks_wildly_is_ended),
        trial("a_package_of_many_threads_is_ended", a_package_of_many_threads_is_ended),
        trial("a_package_that_eats_memory_is_ended", a_package_that_eats_memory_is_ended),
        trial(
            "a_host_without_the_memory_for_an_image_is_told",
            a_host_without_the_memory_for_an_image_is_told,
        ),
        trial(
            "a_host_that_runs_short_of_memory_is_not_the_packages_fault",
            a_host_that_runs_short_of_memory_is_not_the_packages_fault,
        ),
        trial(
            "a_forged_end_of_the_run_is_a_scripts_own_words",
            a_forged_end_of_the_run_is_a_scripts_own_words,
        ),
        trial("who_looks_at_an_image_is_not_kept_waiting", who_looks_at_an_image_is_not_kept_waiting),
        trial("a_rehearsal_has_a_control_group_where_there_are_such", a_rehearsal_has_a_control_group),
        trial("a_rehearsal_that_hangs_is_cancelled", a_rehearsal_that_hangs_is_cancelled),
        trial("a_rehearsal_that_hangs_has_a_limit", a_rehearsal_that_hangs_has_a_limit),
        trial("a_killed_rehearsal_leaves_nothing", a_killed_rehearsal_leaves_nothing),
        trial("what_cannot_be_rehearsed_is_said", what_cannot_be_rehearsed_is_said),
        trial("each_file_system_has_an_overlay_of_its_own", each_file_system_has_an_overlay_of_its_own),
        trial("what_needs_devices_is_called_and_not_run", what_needs_devices_is_called_and_not_run),
        trial("a_disk_that_would_be_full_is_foreseen", a_disk_that_would_be_full_is_foreseen),
        trial("a_rehearsal_costs_little", a_rehearsal_costs_little),
    ];
    for case in CASES {
        let name = format!("a_rehearsal_foresees_{}", case.name);
        trials.push(trial(&name, move || foresees(case)));
    }
    trials
}

/// A change, and where it fails.
struct Case {
    name: &'static str,
    installed: &'static [&'static str],
    /// In the root, before the change.
    script: &'static str,
    operation: fn() -> Result<Operation>,
    /// None if it goes well.
    fails: Option<(FindingKind, &'static str)>,
}

/// The packages of the test repository, by the position of what fails. The table in `docs/testing.md` is this one.
const CASES: &[Case] = &[
    Case {
        name: "a_good_update",
        installed: &["lp-plain", "lp-lib", "lp-app", "lp-special"],
        script: "",
        operation: || place::apply(&[]),
        fails: None,
    },
    Case {
        name: "a_good_removal",
        installed: &["lp-plain"],
        script: "",
        operation: || place::purge("lp-plain"),
        fails: None,
    },
    Case {
        name: "a_failing_preinst",
        installed: &["lp-prefail", "lp-plain"],
        script: "",
        operation: || place::apply(&[]),
        fails: Some((FindingKind::Preinst, "lp-prefail")),
    },
    Case {
        name: "a_failing_preinst_of_a_new_package",
        installed: &[],
        script: "",
        operation: || place::install(&["lp-newfail"]),
        fails: Some((FindingKind::Preinst, "lp-newfail")),
    },
    Case {
        name: "a_failing_postinst",
        installed: &["lp-postfail", "lp-plain"],
        script: "",
        operation: || place::apply(&[]),
        fails: Some((FindingKind::Postinst, "lp-postfail")),
    },
    Case {
        name: "a_failing_prerm_at_an_update",
        installed: &["lp-prermfail"],
        script: "",
        operation: || place::apply(&[]),
        fails: Some((FindingKind::Prerm, "lp-prermfail")),
    },
    Case {
        name: "a_failing_prerm_at_a_removal",
        installed: &["lp-prermfail"],
        script: "",
        operation: || place::remove("lp-prermfail"),
        fails: Some((FindingKind::Prerm, "lp-prermfail")),
    },
    Case {
        name: "a_failing_postrm_at_an_update",
        installed: &["lp-postrmfail"],
        script: "",
        operation: || place::apply(&[]),
        fails: Some((FindingKind::Postrm, "lp-postrmfail")),
    },
    Case {
        name: "a_failing_postrm_at_a_removal",
        installed: &["lp-postrmfail"],
        script: "",
        operation: || place::remove("lp-postrmfail"),
        fails: Some((FindingKind::Postrm, "lp-postrmfail")),
    },
    Case {
        name: "a_failing_trigger",
        installed: &["lp-trigger", "lp-watcher"],
        script: "",
        operation: || place::apply(&[]),
        fails: Some((FindingKind::Trigger, "lp-watcher")),
    },
    Case {
        name: "a_prerm_that_the_old_version_makes_good",
        installed: &["lp-badprerm"],
        script: "",
        operation: || place::apply(&[]),
        fails: None,
    },
    Case {
        name: "a_kept_configuration_file",
        installed: &["lp-conf"],
        script: "echo mine >/etc/lp-conf.conf",
        operation: || place::apply(&[]),
        fails: None,
    },
    Case {
        name: "a_file_of_another_package",
        installed: &[],
        script: "mkdir -p /usr/share/lp-given; mkdir -p /tmp/p/DEBIAN /tmp/p/usr/share/lp-given; \
                 echo other >/tmp/p/usr/share/lp-given/file; \
                 printf 'Package: lp-other\\nVersion: 1\\nArchitecture: all\\nMaintainer: t <t@t>\\nDescription: t\\n' \
                 >/tmp/p/DEBIAN/control; dpkg-deb -b /tmp/p /tmp/lp-other.deb; dpkg -i /tmp/lp-other.deb; rm -r /tmp/p",
        operation: || place::install(&["lp-giver"]),
        fails: Some((FindingKind::FileConflict, "lp-giver")),
    },
];

fn options(only: bool) -> ChangeOptions {
    ChangeOptions {
        on_failure: OnFailure::All,
        rehearse: Some(Rehearse { only, otherwise: Unrehearsed::Refuse }),
        ..ChangeOptions::default()
    }
}

fn report_in(seen: &Seen) -> Result<&RehearsalReport> {
    let found = seen.events.iter().rev().find_map(|event| match &event.kind {
        EventKind::Rehearsed { report } => Some(report),
        _ => None,
    });
    found.with_context(|| format!("no report: {:#?}\n{}", seen.ended(), seen.log()))
}

/// Makes the rehearsal of a change, and nothing else.
fn rehearse(place: &Place, operation: Operation) -> Result<(Seen, RehearsalReport)> {
    let seen = place.executor.run_with(operation, options(true))?;
    let report = report_in(&seen)?.clone();
    let ended = seen.ended().context("no end")?;
    ensure!(ended.outcome == Some(Outcome::Unchanged), "{ended:#?}");
    let is_well = report.verdict == RehearsalVerdict::Well;
    ensure!((ended.status == JobStatus::Completed) == is_well, "{ended:#?}\n{report:#?}");
    Ok((seen, report))
}

/// The rehearsal's verdict, then that of the real run in the same place.
fn foresees(case: &Case) -> Result<()> {
    let place = Place::on_day1(case.installed)?;
    if !case.script.is_empty() {
        place.root.shell(case.script)?;
    }
    let host = Untouched::of(&place.root)?;
    let (seen, report) = rehearse(&place, (case.operation)()?)?;
    host.assert_untouched(&place.root).with_context(|| seen.log())?;
    let real = place.executor.run_with(
        (case.operation)()?,
        ChangeOptions { on_failure: OnFailure::Keep, ..ChangeOptions::default() },
    )?;
    let went_well = real.ended().context("no end")?.status == JobStatus::Completed;
    ensure!(
        (report.verdict == RehearsalVerdict::Well) == went_well,
        "{report:#?}\n--- rehearsed\n{}\n--- real\n{:#?}\n{}",
        seen.log(),
        real.ended(),
        real.log()
    );
    match case.fails {
        None => ensure!(went_well, "{report:#?}"),
        Some((kind, package)) => {
            let first = report.findings.first().with_context(|| format!("{report:#?}\n{}", seen.log()))?;
            ensure!(
                first.kind == kind && first.package.as_deref() == Some(package) && !first.message.is_empty(),
                "{report:#?}\n{}",
                seen.log()
            );
            let error = seen.ended().and_then(|ended| ended.error.clone()).context("no error")?;
            let after = real.ended().and_then(|ended| ended.error.clone()).context("no error")?;
            ensure!(error.code == after.code, "{error:#?}\n{after:#?}");
        }
    }
    place.executor.assert_no_panic()
}

fn a_good_change_is_rehearsed_and_then_made() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-daemon"])?;
    let before = place.state()?;
    let job = place.executor.change(place::apply(&[])?, options(false), None)?;
    let seen = place.ends(job, Outcome::Applied)?;
    ensure!(report_in(&seen)?.verdict == RehearsalVerdict::Well, "{:#?}", report_in(&seen)?);
    let phases: Vec<Phase> = seen
        .events
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::Phase { phase } => Some(phase),
            _ => None,
        })
        .collect();
    let at = |wanted: Phase| phases.iter().position(|phase| *phase == wanted);
    ensure!(at(Phase::Downloading) < at(Phase::Rehearsing) && at(Phase::Rehearsing) < at(Phase::Applying));
    ensure!(place.state()?.version("lp-plain") == Some("1.1-1"));
    place.take_back(job, &before).map(drop)
}

fn a_rehearsal_alone_changes_nothing() -> Result<()> {
    let place = Place::on_day1(&["lp-plain", "lp-postfail"])?;
    let before = place.state()?;
    let host = Untouched::of(&place.root)?;
    let (_, report) = rehearse(&place, place::update("lp-plain")?)?;
    ensure!(report.verdict == RehearsalVerdict::Well && report.written_bytes > 0, "{report:#?}");
    host.assert_untouched(&place.root)?;
    // One that fails keeps the real run away.
    let job = place.executor.change(place::apply(&[])?, options(false), None)?;
    let seen = place.ends(job, Outcome::Unchanged)?;
    let finding = report_in(&seen)?.findings.first().cloned().context("no finding")?;
    ensure!(finding.output.iter().any(|line| line.contains("deliberate failure")), "{finding:#?}");
    ensure!(!seen.events.iter().any(|e| matches!(e.kind, EventKind::Phase { phase: Phase::Applying })));
    host.assert_untouched(&place.root)?;
    before.assert_same(&place.state()?)?;
    // Where an image shows nothing, there is none.
    for operation in [place::hold("lp-plain", true)?, Operation::Refresh, place::rollback(job)] {
        ensure!(place.refused(operation, options(true))? == ErrorCode::InvalidRequest);
    }
    place.executor.assert_no_panic()
}

fn a_question_is_foreseen() -> Result<()> {
    let place = Place::on_day1(&["lp-conf"])?;
    place.root.shell("echo mine >/etc/lp-conf.conf")?;
    let (_, report) = rehearse(&place, place::apply(&[])?)?;
    ensure!(report.conffiles == ["/etc/lp-conf.conf"], "{report:#?}");
    Ok(())
}

/// Publishes a package whose postinst is this, in an archive of the root's own.
fn publish(place: &Place, name: &str, postinst: &str) -> Result<()> {
    place.root.push(format!("#!/bin/sh\n{postinst}\n"), "/srv/postinst", "755")?;
    let script = format!(
        "mkdir -p /srv/extra /tmp/p/DEBIAN /tmp/p/usr/share/{name}; echo {name} >/tmp/p/usr/share/{name}/file\n\
         printf 'Package: {name}\\nVersion: 1\\nArchitecture: all\\nMaintainer: t <t@t>\\nDescription: t\\n' >/tmp/p/DEBIAN/control\n\
         mv /srv/postinst /tmp/p/DEBIAN/postinst; dpkg-deb -b /tmp/p /srv/extra/{name}_1_all.deb; rm -r /tmp/p\n\
         cd /srv/extra; apt-ftparchive packages . >Packages 2>/dev/null\n\
         echo 'deb [trusted=yes] file:/srv/extra ./' >/etc/apt/sources.list.d/extra.list; apt-get -qq update"
    );
    place.root.shell(&script).map(drop)
}

/// Each line tries one thing that must not be possible, and says so if it was.
const ATTACKS: &str = r#"
py() { python3 -SE -c "$2" >/dev/null 2>&1 && echo "REACHED $1"; }
try() { what=$1; shift; "$@" >/dev/null 2>&1 && echo "REACHED $what"; }
try clock date -s '2001-01-01'
py clock2 'import time; time.clock_settime(time.CLOCK_REALTIME, 1e9)'
try mount mount -t tmpfs tmpfs /mnt
try bind mount --bind /etc /mnt
try remount mount -o remount,rw /proc/sys
try umount umount /proc/sys
try userns unshare -U true
try mountns unshare -m true
try setns nsenter -t 1 -m true
try node mknod /tmp/sda b 8 0
try console mknod /tmp/console c 5 1
try sysctl sh -c 'echo 1 >/proc/sys/kernel/panic'
try sysctl2 sh -c 'echo "|/tmp/x" >/proc/sys/kernel/core_pattern'
try sysrq sh -c 'echo h >/proc/sysrq-trigger'
try sysfs sh -c 'echo 1 >/sys/kernel/rcu_normal'
try sysfs2 sh -c 'for f in /sys/block/*/queue/nr_requests; do echo 64 >$f && exit 0; done; exit 1'
try kmsg sh -c '[ -c /dev/kmsg ] && echo x >/dev/kmsg'
try module sh -c 'modprobe dummy && grep -q dummy /proc/modules'
try swap swapon /srv/extra/Packages
try disk sh -c 'ls /dev | grep -E "^(vd|sd|nvme|loop|mem|kvm)"'
try init sh -c '[ -e /run/systemd/private ] || [ -e /run/initctl ] || [ -e /run/dbus/system_bus_socket ]'
try executor sh -c '[ -e /run/linux-patch-executor.sock ]'
try network sh -c 'ls /sys/class/net | grep -v "^lo$"'
py packet 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'
py vsock 'import socket; socket.socket(40, socket.SOCK_STREAM)'
py keyring 'import ctypes; l=ctypes.CDLL(None); import sys; sys.exit(l.syscall(250, 0, -4, 1) == -1)'
py mountsyscall 'import ctypes,sys; l=ctypes.CDLL(None); sys.exit(l.syscall(165, b"x", b"/mnt", b"tmpfs", 0, None) == -1)'
py byhandle 'import ctypes,sys; l=ctypes.CDLL(None); sys.exit(l.syscall(303, -100, b"/etc", 0, 0, 0) == -1 and ctypes.get_errno() == 0)'
py bpf 'import ctypes,sys; l=ctypes.CDLL(None); sys.exit(l.syscall(321, 0, None, 0) == -1)'
py uring 'import ctypes,sys; l=ctypes.CDLL(None); sys.exit(l.syscall(425, 1, None) == -1)'
py abstract 'import socket; s=socket.socket(socket.AF_UNIX); s.connect("\0lp-abstract")'
py inlower 'import socket; s=socket.socket(socket.AF_UNIX); s.connect("/srv/lp.sock")'
py audit 'import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)'
try hostproc sh -c 'ls -d /proc/[0-9]* | wc -l | grep -qE "^[0-9]{3,}"'
# What is changed here is changed in the image.
find /proc -path '/proc/[0-9]*' -prune -o -type f -print 2>/dev/null | while read -r f; do [ -f "$f" ] && ( : <>"$f" ) 2>/dev/null && echo "REACHED $f"; done
for f in /proc/1/fd/*; do [ -p "$f" ] || echo "REACHED descriptor $(readlink "$f")"; done
chmod 662 /proc/1/exe /dev/null /dev/urandom /proc/self/fd/0 /proc/self/fd/1 /proc/1/fd/* 2>/dev/null
for f in /proc/1/fd/*; do echo '{"told":"report","report":{}}' >"$f"; echo '{"told":"no_image","why":"none"}' >"$f"; done 2>/dev/null
chroot /proc/1/root sh -c 'echo changed >/etc/hostname; rm -rf /srv/extra /var/lib/linux_patch_executor'
mkdir /tmp/c; python3 -SE -c 'import os
os.chroot("/tmp/c")
for _ in range(64): os.chdir("..")
os.chroot(".")
open("/ESCAPED","w").close()' 2>/dev/null
hostname hostile; kill -9 1; kill -9 -1 2>/dev/null
rm -rf /etc/apt /usr/share/doc /home /srv /root /boot
reboot -f; halt -f; telinit 6
exit 0"#;

fn a_hostile_package_reaches_nothing() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    publish(&place, "lp-hostile", ATTACKS)?;
    // Somebody of the host who can be spoken to.
    let listener = "import socket,os,sys\na=socket.socket(socket.AF_UNIX); a.bind('\\0lp-abstract'); a.listen()\n\
                    b=socket.socket(socket.AF_UNIX); b.bind('/srv/lp.sock'); b.listen()\nopen('/srv/ready','w').close()\nsys.stdin.read()\n";
    let mut server = place.root.spawn(&["/usr/bin/python3", "-SE", "-c", listener])?;
    let ready = place.root.path().join("srv/ready");
    wait::until("the server", Duration::from_secs(20), || Ok(ready.exists().then_some(())))?;
    let host = Untouched::of(&place.root)?;
    let clock = (Instant::now(), std::time::SystemTime::now());
    let seen = place.executor.run_with(place::install(&["lp-hostile"])?, options(true))?;
    let passed = clock.1.elapsed().context("the clock was set back")?;
    let really = clock.0.elapsed();
    ensure!(passed.abs_diff(really) < Duration::from_secs(5), "the clock was set: {passed:?}, {really:?}");
    host.assert_untouched(&place.root).with_context(|| seen.log())?;
    ensure!(!seen.log().contains("REACHED"), "{}", seen.log());
    ensure!(seen.log().contains("Setting up lp-hostile"), "{}", seen.log());
    ensure!(!place.root.path().join("ESCAPED").exists() && !Path::new("/ESCAPED").exists());
    ensure!(report_in(&seen)?.verdict != RehearsalVerdict::NotRehearsed, "{:#?}", report_in(&seen)?);
    ensure!(seen.ended().context("no end")?.outcome == Some(Outcome::Unchanged), "{:#?}", seen.ended());
    drop(server.stdin.take());
    server.wait()?;
    place.executor.assert_no_panic()
}

/// Tells the root side that the host has so many MiB of memory to give, so that images are small.
fn has_memory(place: &Place, mebibytes: u64) -> Result<()> {
    let script = format!(
        "text=$(sed 's/^MemAvailable:.*/MemAvailable: {} kB/' /proc/meminfo); echo \"$text\" >/srv/meminfo; \
         mount --bind /srv/meminfo /proc/meminfo",
        mebibytes * 1024
    );
    place.root.shell(&script).map(drop)
}

/// Fills every file system, if nobody ends it.
const FILLS: &str = "cat /dev/zero >/var/filler; cat /dev/zero >/usr/filler; exit 1";

fn a_package_that_fills_the_disk_fills_an_image() -> Result<()> {
    let place = Place::on_day1(&[])?;
    publish(&place, "lp-filler", FILLS)?;
    has_memory(&place, 450)?;
    let host = Untouched::of(&place.root)?;
    let (seen, report) = rehearse(&place, place::install(&["lp-filler"])?)?;
    // The host has room for more.
    ensure!(report.verdict == RehearsalVerdict::NotRehearsed, "{report:#?}\n{}", seen.log());
    ensure!(report.reason.as_ref().is_some_and(|reason| reason.contains("too small")), "{report:#?}");
    host.assert_untouched(&place.root)
}

/// On a small host an image and usual processes have not the memory together. The real run has.
fn a_host_without_the_memory_for_an_image_is_told() -> Result<()> {
    let place = Place::on_day1(&[])?;
    // Bounded: 96 MiB in a file, 160 MiB in a process, for half a minute.
    let both = r#"head -c 96M /dev/zero >/var/lp-file
python3 -SE -c 'import time; eaten = bytearray(b"x") * (160 << 20); time.sleep(30)'"#;
    publish(&place, "lp-both", both)?;
    has_memory(&place, 290)?;
    let host = Untouched::of(&place.root)?;
    let (seen, report) = rehearse(&place, place::install(&["lp-both"])?)?;
    ensure!(report.verdict == RehearsalVerdict::NotRehearsed, "{report:#?}\n{}", seen.log());
    ensure!(
        report.reason.as_ref().is_some_and(|reason| reason.contains("of memory were not")),
        "{report:#?}"
    );
    assert_gone(&place)?;
    host.assert_untouched(&place.root)?;
    // With less it is not even begun: nothing would be left to what runs in the image.
    has_memory(&place, 180)?;
    let host = Untouched::of(&place.root)?;
    let (seen, report) = rehearse(&place, place::install(&["lp-both"])?)?;
    ensure!(report.verdict == RehearsalVerdict::NotRehearsed, "{report:#?}\n{}", seen.log());
    ensure!(report.reason.as_ref().is_some_and(|reason| reason.contains("to spare")), "{report:#?}");
    ensure!(!seen.log().contains("Setting up"), "{}", seen.log());
    host.assert_untouched(&place.root)
}

/// Somebody else takes the host's memory while a package that takes hardly any is tried.
fn a_host_that_runs_short_of_memory_is_not_the_packages_fault() -> Result<()> {
    let place = Place::on_day1(&[])?;
    publish(&place, "lp-hanging", HANGS)?;
    has_memory(&place, 700)?;
    let job = hanging(&place)?;
    // The same file: it is what the executor sees in place of the kernel's.
    fs::write(place.root.path().join("srv/meminfo"), "MemAvailable: 20480 kB\n")?;
    let seen = place.ends(job, Outcome::Unchanged)?;
    let report = report_in(&seen)?;
    ensure!(report.verdict == RehearsalVerdict::NotRehearsed, "{report:#?}\n{}", seen.log());
    let reason = report.reason.clone().unwrap_or_default();
    ensure!(reason.contains("the host ran short of memory") && report.findings.is_empty(), "{report:#?}");
    assert_gone(&place)?;
    place.executor.assert_no_panic()
}

/// What a script prints is what a script prints: when the run has ended is told by nobody who cannot know it.
fn a_forged_end_of_the_run_is_a_scripts_own_words() -> Result<()> {
    let place = Place::on_day1(&[])?;
    let forges = "echo 'rehearsal 00000000000000000000000000000000'; printf 'without an end' ; exit 3";
    publish(&place, "lp-forger", forges)?;
    let (seen, report) = rehearse(&place, place::install(&["lp-forger"])?)?;
    ensure!(report.verdict == RehearsalVerdict::Fails, "{report:#?}\n{}", seen.log());
    let lines: Vec<(LogStream, &str)> = seen
        .events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Log { stream, line } => Some((*stream, line.as_str())),
            _ => None,
        })
        .collect();
    let at = |wanted: &str| lines.iter().position(|(_, line)| line.contains(wanted));
    let told: Vec<usize> = (0..lines.len())
        .filter(|at| lines[*at].0 == LogStream::Executor && lines[*at].1.contains("the rehearsed run failed"))
        .collect();
    // Once, when apt has said its last, and not when the script said so; nobody is shown what would be said.
    ensure!(told.len() == 1 && at("E: Sub-process").is_some_and(|apt| apt < told[0]), "{}", seen.log());
    let marks = lines.iter().filter(|(_, line)| line.starts_with("rehearsal ")).count();
    ensure!(marks >= 1 && at("rehearsal 0000") < Some(told[0]), "{}", seen.log());
    ensure!(!lines.iter().any(|(_, line)| line.starts_with("rehearsal ") && !line.contains("0000")));
    place.executor.assert_no_panic()
}

/// What the host has no room for either fails, also for who would go on without a rehearsal.
fn a_package_that_fills_an_image_and_the_disk_fails() -> Result<()> {
    let place = Place::on_day1(&[])?;
    publish(&place, "lp-filler", FILLS)?;
    has_memory(&place, 450)?;
    place.root.fill_disk(120 << 20)?;
    let before = place.state()?;
    let options = ChangeOptions {
        rehearse: Some(Rehearse { only: false, otherwise: Unrehearsed::Simulate }),
        ..ChangeOptions::default()
    };
    let job = place.executor.change(place::install(&["lp-filler"])?, options, None)?;
    let seen = place.ends(job, Outcome::Unchanged)?;
    let report = report_in(&seen)?;
    ensure!(report.verdict == RehearsalVerdict::Fails, "{report:#?}\n{}", seen.log());
    ensure!(report.findings.iter().any(|f| f.kind == FindingKind::DiskSpace), "{report:#?}");
    let error = seen.ended().and_then(|ended| ended.error.clone()).context("no error")?;
    ensure!(error.code == ErrorCode::DiskSpace && error.message.contains("would need"), "{error:#?}");
    ensure!(!seen.events.iter().any(|e| matches!(e.kind, EventKind::Phase { phase: Phase::Applying })));
    before.assert_same(&place.state()?)?;
    place.root.free_disk()
}

/// Whose owner changes is not copied.
fn a_package_that_owns_much_needs_no_room() -> Result<()> {
    let place = Place::on_day1(&[])?;
    place.root.shell("mkdir /var/lib/lp-owner; head -c 256M /dev/zero >/var/lib/lp-owner/data")?;
    publish(&place, "lp-owner", "chown -R nobody /var/lib/lp-owner")?;
    let host = Untouched::of(&place.root)?;
    let (seen, report) = rehearse(&place, place::install(&["lp-owner"])?)?;
    ensure!(report.verdict == RehearsalVerdict::Well, "{report:#?}\n{}", seen.log());
    ensure!(report.written_bytes < 64 << 20, "{report:#?}");
    host.assert_untouched(&place.root)
}

fn a_package_that_forks_wildly_is_ended() -> Result<()> {
    let place = Place::on_day1(&[])?;
    // Bounded: 1,900 processes at most, whatever becomes of them.
    let bomb = "i=0; while [ $i -lt 1900 ]; do sleep 600 & i=$((i + 1)); done; wait";
    publish(&place, "lp-bomb", bomb)?;
    let host = Untouched::of(&place.root)?;
    let begun = Instant::now();
    let (seen, report) = rehearse(&place, place::install(&["lp-bomb"])?)?;
    ensure!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    ensure!(report.verdict == RehearsalVerdict::Fails, "{report:#?}");
    ensure!(report.findings.iter().any(|f| f.kind == FindingKind::Processes), "{report:#?}\n{}", seen.log());
    assert_gone(&place)?;
    host.assert_untouched(&place.root)
}

/// Bounded: 1,300 threads at most, whatever becomes of them.
const THREADS: &str = r"python3 -SE -c '
import threading, time
threading.stack_size(65536)
for _ in range(1300): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
time.sleep(60)'";

/// Threads are what processes are to the kernel, and a package may have few of the one and many of the other.
fn a_package_of_many_threads_is_ended() -> Result<()> {
    let place = Place::on_day1(&[])?;
    publish(&place, "lp-threads", THREADS)?;
    let host = Untouched::of(&place.root)?;
    let begun = Instant::now();
    let (seen, report) = rehearse(&place, place::install(&["lp-threads"])?)?;
    ensure!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
    ensure!(report.verdict == RehearsalVerdict::Fails, "{report:#?}");
    ensure!(report.findings.iter().any(|f| f.kind == FindingKind::Processes), "{report:#?}\n{}", seen.log());
    assert_gone(&place)?;
    host.assert_untouched(&place.root)
}

/// Bounded: 1.5 GiB in three processes at most, and half a minute. What they share at first is counted once.
const EATS: &str = r#"python3 -SE -c '
import os, time
eaten = [bytearray(b"x") * (160 << 20)]
if not os.fork(): time.sleep(30); os._exit(0)
print("there are", len(eaten), flush=True)
time.sleep(0.5)
os.fork()
for _ in range(40): eaten.append(bytearray(b"x") * (16 << 20)); time.sleep(0.005)
time.sleep(30)'"#;

fn a_package_that_eats_memory_is_ended() -> Result<()> {
    let place = Place::on_day1(&[])?;
    publish(&place, "lp-eater", EATS)?;
    has_memory(&place, 700)?;
    let host = Untouched::of(&place.root)?;
    let begun = Instant::now();
    let (seen, report) = rehearse(&place, place::install(&["lp-eater"])?)?;
    ensure!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    ensure!(seen.log().contains("there are 1"), "ended too early: {report:#?}\n{}", seen.log());
    ensure!(report.verdict == RehearsalVerdict::Fails, "{report:#?}");
    ensure!(report.findings.iter().any(|f| f.kind == FindingKind::Memory), "{report:#?}\n{}", seen.log());
    assert_gone(&place)?;
    host.assert_untouched(&place.root)
}

/// A package leaves pipes and links where its keeper looks afterwards.
fn who_looks_at_an_image_is_not_kept_waiting() -> Result<()> {
    let mut place = Place::on_day1(&[])?;
    place.executor.set_limits(Limits { timeout_seconds: 60, lock_wait_seconds: 5 });
    // When dpkg has ended, the last one that a package can have something run.
    place.root.push(
        "DPkg::Post-Invoke { \"test ! -e /run/lp-trap || sh /run/lp-trap\"; };\n",
        "/etc/apt/apt.conf.d/99lp-trap",
        "644",
    )?;
    // Of the host, and not the image's: what is read there would be read through a link.
    place.root.shell("mkdir /srv/lp-away; echo update-grub >/srv/lp-away/not-run")?;
    let traps = [
        "rm /var/lib/dpkg/status; mkfifo /var/lib/dpkg/status",
        "rm -f /var/lib/dpkg/arch; mkfifo /var/lib/dpkg/arch",
        "rm -f /var/lib/apt/extended_states; mkfifo /var/lib/apt/extended_states",
        "mkfifo /var/lib/dpkg/updates/0007",
        "mkfifo /srv/pipe; rm /var/lib/dpkg/status; ln -s /srv/pipe /var/lib/dpkg/status",
        "mkdir /srv/other; mkfifo /srv/other/status; mv /var/lib/dpkg /var/lib/dpkg.away; ln -s /srv/other /var/lib/dpkg",
    ];
    let named = |number: usize| format!("lp-trap-{number}");
    for (number, trap) in traps.iter().enumerate() {
        let links = "rm -rf /run/linux-patch-rehearsal; ln -s /srv/lp-away /run/linux-patch-rehearsal";
        publish(&place, &named(number), &format!("cat >/run/lp-trap <<'END'\n{links}\n{trap}\nEND"))?;
    }
    let host = Untouched::of(&place.root)?;
    for (number, trap) in traps.iter().enumerate() {
        let begun = Instant::now();
        let (seen, report) = rehearse(&place, place::install(&[&named(number)])?)?;
        ensure!(begun.elapsed() < Duration::from_secs(30), "{trap}: {:?}", begun.elapsed());
        ensure!(report.verdict == RehearsalVerdict::Fails, "{trap}: {report:#?}\n{}", seen.log());
        ensure!(report.reason.as_ref().is_some_and(|r| r.contains("looked at")), "{trap}: {report:#?}");
        ensure!(report.not_run.is_empty(), "a link of the image leads to the host: {report:#?}");
        assert_gone(&place).with_context(|| (*trap).to_owned())?;
    }
    host.assert_untouched(&place.root)?;
    place.executor.assert_no_panic()
}

/// A control group of the machine, which no root takes along. Its processes are gone when its root is.
struct GroupOf(JobId);

impl Drop for GroupOf {
    fn drop(&mut self) {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (name, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
            let _ = fs::remove_dir(format!("/sys/fs/cgroup/{name}{path}/rehearsal-{}", self.0));
        }
    }
}

/// The kernel bounds the processes of an image and their memory, by groups of their own.
fn a_rehearsal_has_a_control_group() -> Result<()> {
    let _group;
    let place = Place::on_day1(&[])?;
    publish(&place, "lp-hanging", HANGS)?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let has = |controller: &str| own.lines().any(|line| line.split(':').nth(1) == Some(controller));
    let old: Vec<&str> = ["pids", "memory"].into_iter().filter(|controller| has(controller)).collect();
    if old.is_empty() {
        place.root.shell("mount -t cgroup2 cgroup2 /sys/fs/cgroup")?;
    } else {
        place.root.shell("mount -t tmpfs tmpfs /sys/fs/cgroup")?;
        for one in &old {
            let at = format!("/sys/fs/cgroup/{one}");
            place.root.shell(&format!("mkdir {at}; mount -t cgroup -o {one} {one} {at}"))?;
        }
    }
    let job = hanging(&place)?;
    _group = GroupOf(job);
    let find = |what: &str| {
        place.root.shell(&format!(
            "find /sys/fs/cgroup -type d -name rehearsal-{job} | while read -r d; do {what}; done"
        ))
    };
    let read = |file: &str| find(&format!("[ ! -e $d/{file} ] || cat $d/{file}"));
    // Those of the image and no others; the kernel itself counts no further.
    ensure!(read("pids.max")?.trim() == "1536", "{}", find("ls $d")?);
    let inside: u32 = read("pids.current")?.trim().parse()?;
    ensure!((4..50).contains(&inside), "{inside} processes");
    if old.contains(&"memory") {
        let most: u64 = read("memory.limit_in_bytes")?.trim().parse()?;
        let all: u64 = fs::read_to_string("/proc/meminfo")?
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
            .context("the machine does not say how much memory it has")?;
        ensure!((1..all * 1024).contains(&most), "{most} of {all} KiB");
        let used: u64 = read("memory.usage_in_bytes")?.trim().parse()?;
        ensure!((1 << 20..most).contains(&used), "{used} bytes are counted");
    }
    let kernel: Vec<u32> = fs::read_to_string("/proc/sys/kernel/osrelease")?
        .split(|c: char| !c.is_ascii_digit())
        .take(2)
        .filter_map(|number| number.parse().ok())
        .collect();
    let log = place.executor.seen(job)?.log();
    ensure!(kernel < vec![6, 14] || log.contains("it hangs with 1836 ids"), "{kernel:?}: {log}");
    place.executor.ask(JobId(uuid::Uuid::now_v7()), patch_types::executor::RequestBody::Cancel { job })?;
    place.ends(job, Outcome::Unchanged)?;
    ensure!(find("echo $d")?.trim().is_empty(), "the group is left");
    assert_gone(&place)
}

/// Nothing of a rehearsal runs any more.
fn assert_gone(place: &Place) -> Result<()> {
    wait::until("nothing of the rehearsal to run", Duration::from_secs(10), || {
        let left = place.root.shell(
            "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null; echo; done | \
             grep -E 'rehearsal-|postinst|sleep 600|apt-get' | grep -v grep || true",
        )?;
        Ok(left.trim().is_empty().then_some(()))
    })
}

const HANGS: &str =
    "echo it hangs with $(cat /proc/sys/kernel/pid_max) ids; trap '' TERM; while :; do sleep 1; done";

/// Begins a rehearsal and waits until its script hangs.
fn hanging(place: &Place) -> Result<JobId> {
    let job = place.executor.change(place::install(&["lp-hanging"])?, options(false), None)?;
    let seen = place.executor.follow_until(job, |seen| seen.log().contains("it hangs"))?;
    ensure!(seen.ended().is_none(), "{:#?}\n{}", seen.ended(), seen.log());
    Ok(job)
}

fn a_rehearsal_that_hangs_is_cancelled() -> Result<()> {
    let place = Place::on_day1(&[])?;
    publish(&place, "lp-hanging", HANGS)?;
    let host = Untouched::of(&place.root)?;
    let job = hanging(&place)?;
    place.executor.ask(JobId(uuid::Uuid::now_v7()), patch_types::executor::RequestBody::Cancel { job })?;
    let seen = place.ends(job, Outcome::Unchanged)?;
    ensure!(seen.ended().context("no end")?.status == JobStatus::Cancelled);
    assert_gone(&place)?;
    host.assert_untouched(&place.root)
}

fn a_rehearsal_that_hangs_has_a_limit() -> Result<()> {
    let mut place = Place::on_day1(&[])?;
    publish(&place, "lp-hanging", HANGS)?;
    place.executor.set_limits(Limits { timeout_seconds: 10, lock_wait_seconds: 5 });
    let host = Untouched::of(&place.root)?;
    let begun = Instant::now();
    let job = hanging(&place)?;
    let seen = place.ends(job, Outcome::Unchanged)?;
    // Without a limit it would never end; how long a busy machine takes until then is no matter here.
    ensure!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    ensure!(seen.ended().and_then(|e| e.error.as_ref()).context("no error")?.code == ErrorCode::JobTimeout);
    ensure!(seen.ended().context("no end")?.status == JobStatus::Timeout, "{:#?}", seen.ended());
    assert_gone(&place)?;
    host.assert_untouched(&place.root)
}

/// The executor, or the keeper, or the image's init is killed, at various moments.
fn a_killed_rehearsal_leaves_nothing() -> Result<()> {
    let place = Place::on_day1(&["lp-plain"])?;
    publish(&place, "lp-hanging", "echo hanging; sleep 600")?;
    let host = Untouched::of(&place.root)?;
    for (round, victim) in
        ["[s]erve", "[r]ehearsal-keeper", "[r]ehearsal-i[nm]"].into_iter().cycle().take(9).enumerate()
    {
        let job = place.executor.change(place::install(&["lp-hanging"])?, options(false), None)?;
        // Somewhere between the making of the image and the script: when it has said so much.
        place.executor.follow_until(job, |seen| {
            let begun = |kind: &EventKind| matches!(kind, EventKind::Phase { phase: Phase::Rehearsing });
            let said = seen.events.iter().skip_while(|event| !begun(&event.kind)).count();
            said > round * 2
        })?;
        // The brackets keep the pattern from being found in the command that looks for it.
        let script = format!(
            "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q 'patch-executor.* {victim}' && \
             kill -9 ${{p#/proc/}}; done; true"
        );
        // What is not there yet is killed when it is.
        wait::until("the end of the rehearsal", Duration::from_secs(60), || {
            place.root.shell(&script)?;
            let over = place.executor.seen(job)?.ended().is_some() || !place.executor.is_alive(job)?;
            Ok(over.then_some(()))
        })?;
        place.executor.recover()?;
        let seen = place.ends(job, Outcome::Unchanged)?;
        ensure!(
            seen.ended().context("no end")?.status == JobStatus::Failed,
            "{victim}: {:#?}\n{}",
            seen.ended(),
            seen.log()
        );
        assert_gone(&place).with_context(|| victim.to_owned())?;
        host.assert_untouched(&place.root).with_context(|| victim.to_owned())?;
        let staging =
            place.executor.state_directory().join("journal").join(job.to_string()).join("rehearsal");
        ensure!(!staging.exists(), "{victim}: {} is left", staging.display());
    }
    place.executor.assert_no_panic()
}

/// Without what an image is made of.
fn what_cannot_be_rehearsed_is_said() -> Result<()> {
    let mut place = Place::on_day1(&["lp-plain"])?;
    // In a host that may not make namespaces.
    place.executor.kill_listener()?;
    place.executor.listen(&["/usr/bin/setpriv", "--bounding-set=-sys_admin"])?;
    let before = place.state()?;
    let job = place.executor.change(place::update("lp-plain")?, options(false), None)?;
    let seen = place.ends(job, Outcome::Unchanged)?;
    let error = seen.ended().and_then(|ended| ended.error.clone()).context("no error")?;
    ensure!(error.message.contains("not rehearsed: "), "{error:#?}");
    ensure!(
        report_in(&seen)?.verdict == RehearsalVerdict::NotRehearsed && report_in(&seen)?.reason.is_some()
    );
    before.assert_same(&place.state()?)?;
    let options = |only| ChangeOptions {
        rehearse: Some(Rehearse { only, otherwise: Unrehearsed::Simulate }),
        ..ChangeOptions::default()
    };
    let seen = place.executor.run_with(place::update("lp-plain")?, options(true))?;
    ensure!(seen.ended().context("no end")?.status == JobStatus::Completed, "{:#?}", seen.ended());
    ensure!(report_in(&seen)?.verdict == RehearsalVerdict::NotRehearsed && seen.plan().is_some());
    before.assert_same(&place.state()?)?;
    let job = place.executor.change(place::update("lp-plain")?, options(false), None)?;
    place.ends(job, Outcome::Applied).map(drop)
}

/// Mounts below the root, of a directory and of a file, are seen and not written to.
fn each_file_system_has_an_overlay_of_its_own() -> Result<()> {
    let place = Place::on_day1(&[])?;
    publish(
        &place,
        "lp-mounts",
        "set -e; grep -q ' /opt overlay' /proc/mounts; [ \"$(cat /opt/before)\" = before ]; echo after >/opt/before; \
         echo after >/etc/lp-one; [ ! -e /tmp/before ]; ! findmnt -rno TARGET | grep -q /srv/far; echo all is there",
    )?;
    place.root.shell(
        "mkdir -p /srv/far; mount -t tmpfs tmpfs /opt; echo before >/opt/before; cp /opt/before /etc/lp-one; cp /opt/before /srv/one; \
         mount --bind /srv/one /etc/lp-one; mount -t tmpfs tmpfs /tmp; touch /tmp/before; mount -t ramfs none /srv/far",
    )?;
    let host = Untouched::of(&place.root)?;
    let (seen, report) = rehearse(&place, place::install(&["lp-mounts"])?)?;
    ensure!(report.verdict == RehearsalVerdict::Well, "{report:#?}\n{}", seen.log());
    ensure!(seen.log().contains("all is there"), "{}", seen.log());
    ensure!(place.root.shell("cat /opt/before /etc/lp-one")? == "before\nbefore\n");
    host.assert_untouched(&place.root)
}

/// The boot loader is written to devices, of which an image has none.
fn what_needs_devices_is_called_and_not_run() -> Result<()> {
    let place = Place::on_day1(&[])?;
    place.root.push("#!/bin/sh\necho really; exit 1\n", "/usr/sbin/update-grub", "755")?;
    publish(&place, "lp-kernel", "set -e; update-grub; ! command -v zipl; su nobody -s /bin/sh -c true")?;
    let (seen, report) = rehearse(&place, place::install(&["lp-kernel"])?)?;
    ensure!(report.verdict == RehearsalVerdict::Well, "{report:#?}\n{}", seen.log());
    ensure!(report.not_run == ["update-grub"] && !seen.log().contains("really"), "{report:#?}");
    Ok(())
}

/// An image has room of its own; the host's is reckoned.
fn a_disk_that_would_be_full_is_foreseen() -> Result<()> {
    let place = Place::on_day1(&[])?;
    let script = "mkdir -p /srv/extra /tmp/p/DEBIAN /tmp/p/usr/share/lp-zeros\n\
                  head -c 80M /dev/zero >/tmp/p/usr/share/lp-zeros/zeros\n\
                  printf 'Package: lp-zeros\\nVersion: 1\\nArchitecture: all\\nMaintainer: t <t@t>\\nInstalled-Size: 81920\\nDescription: t\\n' >/tmp/p/DEBIAN/control\n\
                  dpkg-deb -b /tmp/p /srv/extra/lp-zeros_1_all.deb; rm -r /tmp/p; cd /srv/extra\n\
                  apt-ftparchive packages . >Packages 2>/dev/null\n\
                  echo 'deb [trusted=yes] file:/srv/extra ./' >/etc/apt/sources.list.d/extra.list; apt-get -qq update";
    place.root.shell(script)?;
    let (_, report) = rehearse(&place, place::install(&["lp-zeros"])?)?;
    ensure!(report.verdict == RehearsalVerdict::Well && report.written_bytes > 80 << 20, "{report:#?}");
    place.root.fill_disk(40 << 20)?;
    let (seen, report) = rehearse(&place, place::install(&["lp-zeros"])?)?;
    ensure!(report.findings.iter().any(|f| f.kind == FindingKind::DiskSpace), "{report:#?}\n{}", seen.log());
    let code = place.refused(place::install(&["lp-zeros"])?, options(false))?;
    ensure!(code == ErrorCode::DiskSpace, "{code}");
    place.root.free_disk()
}

/// How long a phase took, from its announcement to the next one's.
fn took(seen: &Seen, wanted: Phase) -> Result<Duration> {
    let phases: Vec<_> = seen
        .events
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::Phase { phase } => Some((phase, event.at)),
            EventKind::Ended(_) => Some((Phase::Waiting, event.at)),
            _ => None,
        })
        .collect();
    let at = phases.iter().position(|(phase, _)| *phase == wanted).context("no such phase")?;
    let (from, to) = (phases[at].1, phases.get(at + 1).context("no end")?.1);
    Ok(Duration::try_from(to.duration_since(from))?)
}

/// At most 1.3 times the phase that it rehearses and 300 ms, the best of three.
fn a_rehearsal_costs_little() -> Result<()> {
    let bulk: Vec<String> = (0..20).map(|number| format!("lp-bulk-{number:02}")).collect();
    let mut packages: Vec<&str> = bulk.iter().map(String::as_str).collect();
    packages.extend(["lp-plain", "lp-lib", "lp-app", "lp-large"]);
    let mut figures = Vec::new();
    for _ in 0..3 {
        let place = Place::on_day1(&packages)?;
        let job = place.executor.change(place::apply(&[])?, options(false), None)?;
        let seen = place.ends(job, Outcome::Applied)?;
        let (rehearsed, real) = (took(&seen, Phase::Rehearsing)?, took(&seen, Phase::Applying)?);
        eprintln!(
            "rehearsal of {} packages: {rehearsed:?}, the real run: {real:?}, {} KiB in memory",
            packages.len(),
            report_in(&seen)?.written_bytes >> 10
        );
        figures.push((rehearsed, real));
        if rehearsed <= real.mul_f64(1.3) + Duration::from_millis(300) {
            return Ok(());
        }
    }
    anyhow::bail!("rehearsals and real runs: {figures:?}")
}
