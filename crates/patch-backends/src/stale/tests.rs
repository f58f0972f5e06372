use std::{fs, os::unix::fs::symlink};

use patch_types::stale::{Advice, Care};
use proptest::prelude::*;

use super::*;

/// A recorded `/proc`.
struct Recorded(tempfile::TempDir);

impl Recorded {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self/ns")).unwrap();
        symlink("pid:[1]", root.path().join("proc/self/ns/pid")).unwrap();
        // What stands in /proc beside processes.
        fs::write(root.path().join("proc/version"), "Linux\n").unwrap();
        fs::create_dir_all(root.path().join("proc/12x")).unwrap();
        Self(root)
    }

    fn process(&self, id: u32, comm: &[u8], exe: &str, namespace: &str, cgroup: &str, maps: &[u8]) {
        let dir = self.0.path().join("proc").join(id.to_string());
        fs::create_dir_all(dir.join("ns")).unwrap();
        fs::write(dir.join("comm"), [comm, b"\n"].concat()).unwrap();
        fs::write(dir.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
        fs::write(dir.join("maps"), maps).unwrap();
        symlink(exe, dir.join("exe")).unwrap();
        symlink(namespace, dir.join("ns/pid")).unwrap();
    }

    fn report(&self) -> StaleReport {
        report(self.0.path(), None).unwrap()
    }
}

fn mapped(path: &str) -> Vec<u8> {
    format!("7f00-7f01 r-xp 00000000 00:1b 124                        {path}\n").into_bytes()
}

#[test]
fn processes_are_told_by_what_they_belong_to() {
    let host = Recorded::new();
    let old = mapped("/usr/lib/x86_64-linux-gnu/libssl.so.3 (deleted)");
    host.process(1, b"systemd", "/usr/lib/systemd/systemd", "pid:[1]", "/init.scope", &old);
    host.process(2, b"kthreadd", "none", "pid:[1]", "/", b"");
    host.process(
        10,
        b"cron",
        "/usr/sbin/cron",
        "pid:[1]",
        "/system.slice/cron.service",
        &mapped("/usr/lib/libc.so"),
    );
    host.process(20, b"nginx", "/usr/sbin/nginx", "pid:[1]", "/system.slice/nginx.service", &old);
    host.process(21, b"nginx", "/usr/sbin/nginx (deleted)", "pid:[1]", "/system.slice/nginx.service", &old);
    host.process(30, b"postgres", "/x", "pid:[1]", "/system.slice/postgresql@15-main.service", &old);
    host.process(
        40,
        b"bash",
        "/usr/bin/bash",
        "pid:[1]",
        "/user.slice/user-1000.slice/session-3.scope",
        &old,
    );
    let id = "0123456789abcdef";
    host.process(50, b"app", "/app", "pid:[2]", &format!("/system.slice/docker-{id}.scope"), &old);
    host.process(60, b"strange", "/x", "pid:[3]", "/", &old);
    let report = host.report();
    assert_eq!((report.processes, report.unread), (9, 0));
    let owners: Vec<_> = report.owners.iter().map(|o| (o.owner.to_string(), o.advice, o.care)).collect();
    assert_eq!(
        owners,
        [
            ("init".to_owned(), Advice::Reexec, None),
            ("nginx.service".to_owned(), Advice::Restart, None),
            ("postgresql@15-main.service".to_owned(), Advice::Restart, Some(Care::Database)),
            ("session 3 of user 1000".to_owned(), Advice::LogOut, Some(Care::Sessions)),
            (format!("docker container {id}"), Advice::Recreate, Some(Care::Virtualization)),
            ("a container ".to_owned(), Advice::StartAnew, Some(Care::Virtualization)),
        ]
    );
    let nginx = &report.owners[1];
    assert_eq!((nginx.process_count, nginx.file_count), (2, 2));
    assert_eq!(nginx.files, ["/usr/lib/x86_64-linux-gnu/libssl.so.3", "/usr/sbin/nginx"]);
    assert_eq!(nginx.processes[1], StaleProcess { pid: 21, name: "nginx".into() });
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<StaleReport>(&json).unwrap(), report);
}

#[test]
fn names_do_not_confuse() {
    let host = Recorded::new();
    let lib = host.0.path().join("usr/lib");
    fs::create_dir_all(&lib).unwrap();
    fs::write(lib.join("odd (deleted)"), "").unwrap();
    // A file that is really called so, and the same one replaced.
    host.process(
        5,
        b"a",
        "/usr/lib/odd (deleted)",
        "pid:[1]",
        "/system.slice/a.service",
        &mapped("/usr/lib/odd (deleted)"),
    );
    host.process(
        6,
        b"b",
        "/x",
        "pid:[1]",
        "/system.slice/b.service",
        &mapped("/usr/lib/odd (deleted) (deleted)"),
    );
    let name = b"\x1b]0;x\x07\n\xff7f00-7f01 r-xp";
    let maps = [&b"7f00-7f01 r-xp 0 00:1b 1  /opt/\xff\x1b[2J"[..], "ü\u{202e}".as_bytes(), b" (deleted)\n"]
        .concat();
    host.process(7, name, "/x", "pid:[1]", "/system.slice/c.service", &maps);
    let report = host.report();
    let owners: Vec<_> = report.owners.iter().map(|o| o.owner.to_string()).collect();
    assert_eq!(owners, ["b.service", "c.service"]);
    assert_eq!(report.owners[0].files, ["/usr/lib/odd (deleted)"]);
    assert_eq!(report.owners[1].files, ["/opt/\\xff\\u{1b}[2Jü\\u{202e}"]);
    assert_eq!(report.owners[1].processes[0].name, "\\u{1b}]0;x\\u{7}\\n\\xff7f00-7f01 r-xp");
}

#[test]
fn much_is_bounded() {
    let host = Recorded::new();
    let mut maps = Vec::new();
    for number in 0..60_000 {
        maps.extend(mapped(&format!("/usr/lib/many/lib{number:05}.so (deleted)")));
    }
    maps.extend(mapped("/usr/lib/a-last.so (deleted)"));
    for id in 100..130 {
        let maps = if id < 102 { &maps } else { maps.get(..200_000).unwrap() };
        host.process(id, &[b'x'; 2000], "/x", "pid:[1]", "/system.slice/big.service", maps);
    }
    let report = host.report();
    let big = &report.owners[0];
    assert_eq!((big.processes.len(), big.process_count, big.files.len()), (NAMED, 30, NAMED));
    assert_eq!(big.file_count, COUNTED);
    assert_eq!(report.unread, 0);
    assert_eq!(big.processes[0].name.chars().count(), SHOWN + 1);
}

#[test]
fn long_names_are_cut_and_said_to_be() {
    let mut files = Files::default();
    for number in 0..50 {
        let name = format!("/usr/lib/{number:02}{}", "ü".repeat(3000));
        files.add(name.as_bytes(), || false);
        files.add(name.as_bytes(), || panic!("it is known"));
    }
    files.add(b"/usr/lib/wrong", || true);
    assert_eq!((files.named.len(), files.told_apart.len()), (NAMED, 50));
    assert!(files.named.iter().all(|name| name.len() <= (SHOWN + 1) * 4));
    let first = shown(files.named.first().unwrap());
    assert!(first.starts_with("/usr/lib/00ü") && first.ends_with("ü…"), "{first}");
}

#[test]
fn users_do_not_displace_services() {
    let host = Recorded::new();
    let old = mapped("/usr/lib/a.so (deleted)");
    for id in 0..600 {
        let group = format!("/user.slice/user-1.slice/user@1.service/app.slice/a{id:03}.service");
        host.process(1000 + id, b"a", "/x", "pid:[1]", &group, &old);
    }
    host.process(9000, b"z", "/x", "pid:[1]", "/system.slice/zz.service", &old);
    let report = host.report();
    assert_eq!((report.owners.len(), report.unnamed), (OWNERS, 101));
    assert_eq!(report.owners[0].owner.to_string(), "zz.service");
    assert!(!report.is_clean());
}

#[test]
fn what_a_service_maps_from_elsewhere_does_not_count() {
    let host = Recorded::new();
    let home = [mapped("/home/u/a.so (deleted)"), mapped("/srv/b (deleted)")].concat();
    let both = [home.clone(), mapped("/usr/lib/a.so (deleted)")].concat();
    let session = "/user.slice/user-1000.slice/session-3.scope";
    host.process(10, b"a", "/home/u/a (deleted)", "pid:[1]", "/system.slice/a.service", &home);
    host.process(11, b"b", "/usr/bin/b", "pid:[1]", "/system.slice/b.service", &both);
    host.process(12, b"c", "/usr/bin/c", "pid:[1]", session, &home);
    let report = host.report();
    let found: Vec<_> = report.owners.iter().map(|o| (o.owner.to_string(), o.files.clone())).collect();
    assert_eq!(
        found,
        [
            ("b.service".to_owned(), vec!["/usr/lib/a.so".to_owned()]),
            ("session 3 of user 1000".to_owned(), vec!["/home/u/a.so".to_owned(), "/srv/b".to_owned()]),
        ]
    );
    assert_eq!((report.processes, report.unread), (3, 0));
}

#[test]
fn what_carries_out_a_change_is_left_out() {
    let host = Recorded::new();
    let old = mapped("/usr/lib/a.so (deleted)");
    let slice = "/system.slice/system-linux\\x2dpatch\\x2dexecutor.slice";
    host.process(
        10,
        b"patch-executor",
        "/x",
        "pid:[1]",
        &format!("{slice}/linux-patch-executor@3.service"),
        &old,
    );
    host.process(11, b"x", "/x", "pid:[1]", "/system.slice/linux-patch-executor-recover.service", &old);
    assert!(host.report().is_clean());
    host.process(12, b"linux-patch-api", "/x", "pid:[1]", "/system.slice/linux-patch-api.service", &old);
    assert_eq!(host.report().owners.len(), 1);
}

/// Opening it waits until somebody writes, as the kernel has a reader wait for a process that hangs.
fn hanging(host: &Recorded, id: u32) {
    host.process(id, b"hangs", "/x", "pid:[1]", "/system.slice/hangs.service", b"");
    let maps = host.0.path().join("proc").join(id.to_string()).join("maps");
    fs::remove_file(&maps).unwrap();
    rustix::fs::mknodat(CWD, &maps, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// Lets the readers end that wait.
fn release(host: &Recorded, id: u32) {
    let maps = host.0.path().join("proc").join(id.to_string()).join("maps");
    let _ = openat(CWD, &maps, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
}

#[test]
fn a_process_that_hangs_holds_nothing_up() {
    let host = Recorded::new();
    let old = mapped("/usr/lib/a.so (deleted)");
    host.process(10, b"a", "/x", "pid:[1]", "/system.slice/a.service", &old);
    hanging(&host, 20);
    hanging(&host, 21);
    host.process(30, b"b", "/x", "pid:[1]", "/system.slice/b.service", &old);
    let report = within(host.0.path(), Duration::from_secs(60), Duration::from_millis(200)).unwrap();
    let owners: Vec<_> = report.owners.iter().map(|o| o.owner.to_string()).collect();
    assert_eq!(owners, ["a.service", "b.service"]);
    assert_eq!((report.processes, report.unread, report.why_unread.out_of_time), (4, 2, 2));
    // Nor is more time used than there is.
    let report = within(host.0.path(), Duration::from_millis(200), Duration::from_secs(60)).unwrap();
    assert_eq!((report.processes, report.unread, report.why_unread.out_of_time), (4, 3, 3));
    let report = within(host.0.path(), Duration::ZERO, PATIENCE).unwrap();
    assert_eq!((report.processes, report.unread), (4, 4));
    assert!(report.is_clean() && !report.is_whole());
    [20, 21].into_iter().for_each(|id| release(&host, id));
}

#[test]
fn it_is_said_why_processes_were_not_read() {
    let mut scan = Scan::default();
    let read = |extent| Ok(ReadProcess { owner: None, files: Files::default(), extent });
    for outcome in [
        Err(Errno::ACCESS),
        Err(Errno::PERM),
        Err(Errno::IO),
        Err(Errno::SRCH),
        Err(Errno::NOENT),
        read(Extent::Nothing),
        read(Extent::Whole),
        read(Extent::TooMuch),
        read(Extent::OutOfTime),
    ] {
        scan.take(outcome);
    }
    let report = scan.report();
    assert_eq!((report.processes, report.unread), (7, 5));
    assert_eq!(report.why_unread, WhyUnread { refused: 2, too_much: 1, out_of_time: 1, failed: 1 });
}

#[test]
fn what_ends_meanwhile_is_left_out() {
    let host = Recorded::new();
    fs::create_dir_all(host.0.path().join("proc/70")).unwrap();
    let old = mapped("/usr/lib/a.so (deleted)");
    host.process(71, b"a", "/x", "pid:[1]", "/system.slice/a.service", &old);
    fs::remove_file(host.0.path().join("proc/71/cgroup")).unwrap();
    // In the place of a process's file something else: not followed.
    fs::create_dir_all(host.0.path().join("proc/72")).unwrap();
    fs::write(host.0.path().join("planted"), &old).unwrap();
    symlink("../../planted", host.0.path().join("proc/72/maps")).unwrap();
    let report = host.report();
    assert_eq!((report.owners.len(), report.processes, report.unread), (0, 1, 1));
    assert_eq!(report.why_unread.failed, 1);
    // Nor is what fails while it is read taken for one that maps nothing.
    for file in ["maps", "comm"] {
        let host = Recorded::new();
        host.process(73, b"a", "/x", "pid:[1]", "/system.slice/a.service", &old);
        let path = host.0.path().join("proc/73").join(file);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let report = host.report();
        assert_eq!((report.owners.len(), report.why_unread.failed), (0, 1), "{file}");
    }
    let nothing = tempfile::tempdir().unwrap();
    assert!(super::report(nothing.path(), None).unwrap_err().to_string().contains("proc"));
}

#[test]
fn this_machine_is_read() {
    let report = report(Path::new("/"), None).unwrap();
    assert!(report.processes > 1, "{report:?}");
    assert!(!report.kernel.running.is_empty());
}

#[test]
fn five_hundred_processes_are_read_in_no_time() {
    let host = Recorded::new();
    let maps: Vec<u8> =
        (0..150).flat_map(|number| mapped(&format!("/usr/lib/x86_64-linux-gnu/lib{number}.so.1"))).collect();
    for id in 1000..1500 {
        host.process(id, b"daemon", "/usr/sbin/daemon", "pid:[1]", "/system.slice/daemon.service", &maps);
    }
    let begun = std::time::Instant::now();
    assert_eq!(host.report().processes, 500);
    // A machine that does other things as well is given ten times what it takes.
    assert!(begun.elapsed().as_millis() < 1000, "{:?}", begun.elapsed());
}

proptest! {
    #[test]
    fn what_is_shown_is_one_line_of_bounded_length(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let text = shown(&bytes);
        prop_assert_eq!(patch_types::terminal::line(&text).into_owned(), text.clone());
        prop_assert!(text.len() <= SHOWN * 10 + 3);
    }

    #[test]
    fn plain_names_are_shown_as_they_are(name in "[a-zA-Z0-9/._+:@ ä-ü-]{0,80}") {
        prop_assert_eq!(shown(name.as_bytes()), name);
    }
}
