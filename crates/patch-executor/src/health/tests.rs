use std::net::TcpListener;

use super::*;

fn socket(text: &str, owner: Owner) -> (SocketAddr, Owner) {
    (text.parse().unwrap(), owner)
}

fn service(name: &str) -> Owner {
    Owner::Unit(name.into())
}

fn unit(id: &str, active: &str, sub: &str) -> Unit {
    Unit {
        id: id.into(),
        names: vec![id.into()],
        load: "loaded".into(),
        active: active.into(),
        sub: sub.into(),
        result: "success".into(),
        file_state: "enabled".into(),
        main_pid: 7,
        ..Unit::default()
    }
}

fn before() -> Baseline {
    Baseline {
        boot: String::new(),
        units: units::to_keep(vec![
            unit("web.service", "active", "running"),
            unit(AGENT_UNIT, "active", "running"),
        ]),
        tcp: [
            socket("0.0.0.0:80", service("web.service")),
            socket("0.0.0.0:12443", service(AGENT_UNIT)),
            socket("127.0.0.1:40000", service("web.service")),
        ]
        .into(),
        udp: [socket("0.0.0.0:53", service("web.service")), socket("0.0.0.0:700", service("web.service"))]
            .into(),
        route_v4: true,
        route_v6: false,
        resolved: vec!["deb.example.org".into()],
    }
}

fn well() -> Look {
    Look {
        units: Ok(vec![unit("web.service", "active", "running"), unit(AGENT_UNIT, "active", "running")]),
        tcp: vec!["[::]:80".parse().unwrap(), "0.0.0.0:12443".parse().unwrap()],
        udp: vec!["0.0.0.0:53".parse().unwrap()],
        route_v4: true,
        route_v6: true,
        unresolved: Vec::new(),
        first_ephemeral: 32768,
    }
}

fn judge(look: &Look, excused: &[&str]) -> Vec<String> {
    let excused = excused.iter().map(ToString::to_string).collect();
    before().judge(look, &Settings::default(), &excused).0.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_as_before_is_no_finding() {
    assert_eq!(judge(&well(), &[]), [""; 0]);
    assert!(before().restarted(&well()).is_empty());
}

#[test]
fn what_is_worse_is_named() {
    let look = Look {
        units: Ok(vec![unit("web.service", "failed", "failed"), unit(AGENT_UNIT, "activating", "start")]),
        tcp: Vec::new(),
        udp: Vec::new(),
        route_v4: false,
        unresolved: vec!["deb.example.org".into()],
        ..well()
    };
    assert_eq!(
        judge(&look, &[]),
        [
            "unit web.service: it was running and has failed: success",
            "port 0.0.0.0:80: nobody listens there any more; web.service did",
            "port 0.0.0.0:12443: nobody listens there any more; linux-patch-api.service did",
            "UDP port 0.0.0.0:53: nobody waits there any more",
            "agent: it does not listen on port 12443 any more",
            "IPv4 default route: it is gone",
            "name deb.example.org: it cannot be resolved any more",
        ]
    );
    assert!(before().judge(&look, &Settings::default(), &BTreeSet::new()).1, "the agent is on its way");
    let mute = Look { units: Err("no bus".into()), ..well() };
    assert_eq!(judge(&mute, &[]), ["systemd: it does not answer: no bus"]);
}

#[test]
fn what_the_plan_took_away_is_excused_with_its_sockets() {
    let look = Look { units: Ok(Vec::new()), tcp: Vec::new(), udp: Vec::new(), ..well() };
    assert_eq!(judge(&look, &["web.service", AGENT_UNIT]), [""; 0]);
    let mut owners = before();
    owners.tcp = [socket("0.0.0.0:22", Owner::Systemd), socket("0.0.0.0:2049", Owner::Unknown)].into();
    let excused = |units: &[&str]| {
        let excused = units.iter().map(ToString::to_string).collect();
        let look = Look { tcp: Vec::new(), ..well() };
        owners.judge(&look, &Settings::default(), &excused).0.len()
    };
    assert_eq!(excused(&[]), 2);
    assert_eq!(excused(&["nfs-server.service"]), 1);
    assert_eq!(excused(&["ssh.socket"]), 0);
}

#[test]
fn restarted_services_are_watched() {
    let mut look = well();
    look.units.as_mut().unwrap()[0].main_pid = 8;
    assert_eq!(before().restarted(&look), [("web.service".to_owned(), (8, 0))].into());
    let mut steady = Steady::default();
    let start = Instant::now();
    let second = Duration::from_secs(1);
    assert_eq!(steady.held(start, 8), Duration::ZERO);
    assert_eq!(steady.held(start + second, 8), second);
    assert_eq!(steady.held(start + 2 * second, 9), Duration::ZERO);
    assert_eq!(steady.held(start + 4 * second, 9), 2 * second);
}

#[test]
fn the_agent_must_run_and_listen() {
    let listening = [Listening { address: "0.0.0.0:12443".parse().unwrap(), inode: 1 }];
    let settings = Settings::default();
    let up = || Ok(vec![unit(AGENT_UNIT, "active", "running")]);
    assert_eq!(agent_once(&settings, up(), &listening), Ok((7, 0)));
    let problem = |units, listening: &[Listening]| agent_once(&settings, units, listening).unwrap_err();
    assert!(problem(up(), &[]).contains("port 12443"));
    assert!(
        problem(Ok(vec![unit(AGENT_UNIT, "activating", "auto-restart")]), &listening).contains("activating")
    );
    assert!(problem(Ok(Vec::new()), &listening).contains("does not know"));
    assert!(problem(Err("no bus".into()), &listening).contains("no bus"));
}

#[test]
fn owners_are_services_systemd_and_nobody_s_session() {
    assert_eq!(owner_of(1, "0::/init.scope\n"), Some(Owner::Systemd));
    assert_eq!(owner_of(9, "0::/system.slice/web.service\n"), Some(service("web.service")));
    assert_eq!(owner_of(9, "0::/user.slice/user-0.slice/user@0.service/x.service\n"), None);
    assert_eq!(owner_of(9, "0::/\n"), None);
}

#[test]
fn our_own_listener_is_seen() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    assert!(listening_tcp().iter().any(|socket| socket.address == address));
    let v6 = TcpListener::bind("[::1]:0");
    if let Ok(v6) = v6 {
        let address = v6.local_addr().unwrap();
        assert!(listening_tcp().iter().any(|socket| socket.address == address));
    }
    let connected = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = connected.local_addr().unwrap();
    assert!(open_udp().iter().any(|socket| socket.address == address));
}

#[test]
fn below_another_root_there_is_nothing_to_compare() {
    let root = tempfile::tempdir().unwrap();
    let baseline = Baseline::record(root.path());
    assert_eq!(baseline, Baseline::default());
    assert!(!baseline.agent_was_active());
    assert!(before().agent_was_active());
    let none = before().compare(root.path(), &Settings::default(), &BTreeSet::new(), PATIENCE);
    assert!(none.is_empty(), "at once");
    let text = serde_json::to_string(&before()).unwrap();
    assert_eq!(serde_json::from_str::<Baseline>(&text).unwrap(), before());
    assert_eq!(serde_json::from_str::<Baseline>("{}").unwrap(), Baseline::default());
}

#[test]
fn commands_run_once_and_are_quoted_when_they_fail() {
    let shell = |script: &str| HealthCheck::Command {
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        timeout_seconds: Some(1),
    };
    let checks = [
        shell("exit 0"),
        shell("[ -z \"$CARGO\" ] || exit 9"),
        shell("for i in 1 2 3 4 5 6 7; do echo line $i; done; exit 3"),
        shell("kill -9 $$"),
        shell("exec sleep 60"),
        shell("exec sleep 60 >&- 2>&-"),
        HealthCheck::Command { command: vec!["/nowhere/at-all".into()], timeout_seconds: None },
        HealthCheck::Command { command: vec!["sh".into()], timeout_seconds: None },
    ];
    let mut said = Vec::new();
    let findings = run_checks(Path::new("/"), &checks, &mut |line| said.push(line));
    assert_eq!(said.len(), checks.len());
    assert!(said[0].ends_with("holds") && said[1].ends_with("holds"), "{said:?}");
    let wanted = [
        "it exited with 3: line 3 / line 4 / line 5 / line 6 / line 7",
        "a signal ended it and said nothing",
        "did not end within 1s",
        "did not end within 1s",
        "cannot start /nowhere/at-all",
        "absolute path",
    ];
    assert_eq!(findings.len(), wanted.len(), "{findings:?}");
    for (finding, wanted) in findings.iter().zip(wanted) {
        assert!(finding.detail.contains(wanted), "{finding}");
    }
}

#[test]
fn a_unit_is_not_active_where_systemd_does_not_run() {
    let root = tempfile::tempdir().unwrap();
    let check = HealthCheck::Systemd { unit: "ssh.service".into(), timeout_seconds: None };
    let findings = run_checks(root.path(), &[check], &mut |_| {});
    assert!(findings[0].to_string().contains("systemd ssh.service: systemd does not run here"));
}
