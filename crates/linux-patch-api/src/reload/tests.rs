use std::{fs, net::Ipv4Addr};

use patch_service::{DoorObserver, DoorSettings, pki};

use super::*;
use crate::{
    audit::Audit,
    door::{DoorCounters, Recorder},
    http::Parts,
    inventory::Inventory,
    jobs::testing::Root,
};

/// A running daemon without its loop: files below a root of its own, a real door.
struct House {
    root: Root,
    reloader: Reloader,
}

impl House {
    async fn new(config: Option<&str>) -> Self {
        let root = Root::new();
        let path = root.path();
        for dir in ["var/lib/dpkg", "var/log/linux_patch_api", config::STATE_DIR] {
            fs::create_dir_all(path.join(dir)).unwrap();
        }
        let certs = path.join("etc/linux_patch_api/certs");
        pki::init(&certs, &["host".to_owned()], &[], &["alice".to_owned()], pki::Existing::Keep).unwrap();
        fs::write(path.join(config::WHITELIST), "allowed_ips: [127.0.0.1]\n").unwrap();
        if let Some(config) = config {
            fs::write(path.join(config::CONFIG), config).unwrap();
        }
        let mut settings = config::load(path).unwrap();
        let log = Arc::new(
            AuditLog::open(&path.join(patch_audit::LOG_PATH), audit::options(path, &settings)).unwrap(),
        );
        let executor = root.executor();
        let jobs = Jobs::open(path, executor.clone(), Audit::new(Arc::clone(&log)), job_settings(&settings))
            .await
            .unwrap();
        let app = App::new(Parts {
            root: path.to_owned(),
            settings: settings.clone(),
            jobs: jobs.clone(),
            executor: executor.clone(),
            inventory: Inventory::new(path, executor),
            audit: Arc::clone(&log),
            door: Arc::new(DoorCounters::default()),
        });
        let observer: Arc<dyn DoorObserver> =
            Arc::new(Recorder::new(Arc::clone(&log), Arc::new(DoorCounters::default())));
        let allow_list = AllowListWatcher::start(&path.join(config::WHITELIST), Arc::clone(&observer)).await;
        let key = certificates::server_key(&settings).unwrap();
        let tls = certificates::load(&settings, &key).unwrap();
        let door = Door::new(DoorSettings::default(), tls, allow_list.list(), observer);
        // Several tests run at a time, so the first address is not that of the configuration.
        let listener = door.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let files = watch(path, &settings);
        let running = Running {
            root: path.to_owned(),
            door,
            app,
            jobs,
            log,
            level: Level::default(),
            allow_list,
            stop: CancellationToken::new(),
        };
        if config.is_some_and(|text| text.contains("PORT")) {
            settings.listen = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        }
        Self { reloader: Reloader::start(running, settings, listener, files), root }
    }

    fn put(&self, config: &str) {
        let path = self.root.path().join(config::CONFIG);
        let new = path.with_extension("new");
        fs::write(&new, config).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// What the watcher saw is read, as the daemon's loop does it.
    async fn read(&mut self) {
        let limit = Duration::from_secs(10);
        let changed = tokio::time::timeout(limit, self.reloader.changed()).await.expect("a change");
        self.reloader.read(&changed).await;
    }

    fn refused(&self) -> Option<String> {
        self.reloader.refused.clone()
    }

    /// The audit trail's records of a kind.
    fn records(&self, kind: &str) -> Vec<serde_json::Value> {
        self.reloader.running.log.flush().unwrap();
        let text = fs::read_to_string(self.root.path().join(patch_audit::LOG_PATH)).unwrap();
        let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        records.filter(|record| record["event"] == kind).collect()
    }
}

#[tokio::test]
async fn a_changed_file_is_in_force_and_recorded_and_the_same_again_is_silent() {
    let mut house = House::new(Some("server: {timeout: 30}\n")).await;
    house.put("server: {timeout: 7}\nsecurity: {max_concurrent_jobs: 2, roles: {alice: viewer}}\n");
    house.read().await;
    assert_eq!(house.reloader.settings.timeout, Duration::from_secs(7));
    let recorded = house.records("config_changed");
    assert_eq!(recorded.len(), 1);
    let diff = recorded[0]["diff"].as_str().unwrap();
    assert!(
        diff.starts_with("server.timeout: 30 s -> 7 s; security.max_concurrent_jobs: 5 -> 2; "),
        "{diff}"
    );
    // Another text with the same meaning.
    house.put("# seven\nserver:\n  timeout: 7\nsecurity: {max_concurrent_jobs: 2, roles: {alice: viewer}}\n");
    house.read().await;
    // Whoever asks is told what has changed by itself, once.
    let told = house.reloader.reload().await;
    assert_eq!(
        (told.earlier.len(), &told),
        (1, &Report { earlier: told.earlier.clone(), ..Report::default() })
    );
    assert!(told.earlier[0].contains("server.timeout: 30 s -> 7 s"), "{told:?}");
    assert_eq!(house.reloader.reload().await, Report::default());
    assert_eq!(house.records("config_changed").len(), 1);
}

#[tokio::test]
async fn what_has_changed_too_often_to_be_told_is_counted() {
    let mut house = House::new(Some("server: {timeout: 30}\n")).await;
    let path = house.root.path().join(config::CONFIG);
    for round in 1..=MAX_UNTOLD + 3 {
        house.put(&format!("server: {{timeout: {}}}\n", 30 + round));
        house.reloader.read(std::slice::from_ref(&path)).await;
    }
    let told = house.reloader.reload().await;
    assert_eq!((told.earlier.len(), told.forgotten), (MAX_UNTOLD, 3), "{told:?}");
    assert!(told.earlier[0].contains("33 s -> 34 s"), "the oldest are left out: {told:?}");
    assert_eq!(house.records("config_changed").len(), told.earlier.len() + told.forgotten);
    assert_eq!(house.reloader.reload().await, Report::default(), "it is told once");
}

#[tokio::test]
async fn what_is_wrong_is_refused_whole_and_what_ran_goes_on() {
    let mut house = House::new(Some("server: {timeout: 30}\n")).await;
    let before = Arc::clone(&house.reloader.settings);
    // Held by a program that does not share.
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = foreign.local_addr().unwrap().port();
    let rows = [
        (
            "server:\n  timeout: 8\n  prot: 1\n".to_owned(),
            "config.yaml:3:3: unknown key `prot`; did you mean `port`",
        ),
        ("server:\n  timeout: 8\nlogging:\n  level: LOUD\n".to_owned(), "config.yaml:4: logging.level"),
        (
            "server: {timeout: 8}\ntls: {crl: /nowhere/crl.pem}\n".to_owned(),
            "the certificates cannot be used",
        ),
        (
            format!("server: {{timeout: 8, bind_address: 127.0.0.1, port: {taken}}}\n"),
            "another program uses the port",
        ),
        ("server: {timeout: 8, bind_address: 192.0.2.1}\n".to_owned(), "does not have this address"),
        (String::new(), "is empty"),
    ];
    for (n, (text, wanted)) in rows.iter().enumerate() {
        house.put(text);
        house.read().await;
        let refused = house.refused().unwrap();
        assert!(refused.contains(wanted), "{text}: {refused}");
        assert_eq!(house.reloader.settings, before, "{text}");
        assert_eq!(house.reloader.running.app.config_refused().as_deref(), Some(&refused));
        assert_eq!(house.records("config_refused").len(), n + 1, "{text}");
    }
    fs::remove_file(house.root.path().join(config::CONFIG)).unwrap();
    house.read().await;
    assert!(house.refused().unwrap().contains("is gone"), "{:?}", house.refused());
    assert_eq!(house.reloader.settings, before);
    // Who asks is told, again and again; that nothing has changed since is no news to anybody else.
    for _ in 0..2 {
        let report = house.reloader.reload().await;
        assert!(report.problems[0].contains("is gone"), "{report:?}");
    }
    let path = house.root.path().join(config::CONFIG);
    house.reloader.read(&[path]).await;
    assert_eq!(house.records("config_refused").len(), rows.len() + 3);

    house.put("server: {timeout: 30}\n");
    house.read().await;
    assert_eq!((house.refused(), house.reloader.running.app.config_refused()), (None, None));
    assert!(house.records("config_changed").is_empty());
}

#[tokio::test]
async fn a_pipe_in_place_of_a_configured_file_is_refused_and_waited_for_by_nobody() {
    let mut house = House::new(Some("server: {timeout: 30}\n")).await;
    let pipe = |path: &Path| {
        let new = path.with_extension("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &new, rustix::fs::Mode::RUSR).unwrap();
        fs::rename(new, path).unwrap();
    };
    pipe(&house.root.path().join(config::CONFIG));
    house.read().await;
    assert!(house.refused().unwrap().contains("named pipe"), "{:?}", house.refused());
    house.put("server: {timeout: 31}\n");
    house.read().await;
    assert_eq!(house.refused(), None);
    pipe(&house.root.path().join("etc/linux_patch_api/certs/crl.pem"));
    house.read().await;
    let report = house.reloader.reload().await;
    assert!(report.problems.iter().any(|problem| problem.contains("named pipe")), "{report:?}");
    assert_eq!(house.reloader.settings.timeout, Duration::from_secs(31));
}

#[tokio::test]
async fn a_host_without_a_file_keeps_the_defaults_until_there_is_one() {
    let mut house = House::new(None).await;
    assert_eq!(house.reloader.reload().await, Report::default());
    house.put("server: {timeout: 9}\n");
    house.read().await;
    assert_eq!(house.reloader.settings.timeout, Duration::from_secs(9));
    fs::remove_file(house.root.path().join(config::CONFIG)).unwrap();
    assert!(house.reloader.reload().await.problems[0].contains("is gone"));
}

#[tokio::test]
async fn the_new_address_answers_before_the_old_one_is_closed() {
    let mut house = House::new(Some("# PORT\n")).await;
    let old = SocketAddr::V4(house.reloader.settings.listen);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    house.put(&format!("server: {{bind_address: 127.0.0.1, port: {}}}\n", free.port()));
    assert!(tokio::net::TcpStream::connect(old).await.is_ok());
    let open = tokio::net::TcpStream::connect(old).await.unwrap();
    house.read().await;
    assert!(house.refused().is_none(), "{:?}", house.refused());
    assert!(tokio::net::TcpStream::connect(free).await.is_ok());
    assert!(open.peer_addr().is_ok());
    let closed = async {
        while tokio::net::TcpStream::connect(old).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), closed).await.expect("the old listener closes");
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_without_being_asked_for() {
    let mut house = House::new(Some("{}\n")).await;
    let before = house.reloader.running.door.tls().server.fingerprint_sha256.clone();
    let certs = house.root.path().join("etc/linux_patch_api/certs");
    let cert = fs::read(certs.join("server.pem")).unwrap();
    let other = tempfile::tempdir().unwrap();
    for file in fs::read_dir(&certs).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), other.path().join(file.file_name())).unwrap();
    }
    pki::init(other.path(), &["host".to_owned()], &[], &["alice".to_owned()], pki::Existing::Replace)
        .unwrap();
    for name in ["ca.pem", "crl.pem", "server.pem", "server.key.pem"] {
        fs::copy(other.path().join(name), certs.join(name)).unwrap();
    }
    house.read().await;
    assert_ne!(house.reloader.running.door.tls().server.fingerprint_sha256, before);
    assert!(house.records("certificate_refused").is_empty());
    // Half of a renewal changes nothing.
    fs::write(certs.join("server.pem"), cert).unwrap();
    house.read().await;
    assert_ne!(house.reloader.running.door.tls().server.fingerprint_sha256, before);
    assert_eq!(house.records("certificate_refused").len(), 1);
    assert_eq!(house.reloader.reload().await.problems.len(), 1);
}

#[tokio::test]
async fn other_files_of_certificates_are_put_in_force_and_watched() {
    let mut house = House::new(Some("{}\n")).await;
    let before = house.reloader.running.door.tls().server.fingerprint_sha256.clone();
    let other = house.root.path().join("etc/other");
    let renew = || {
        pki::init(&other, &["host".to_owned()], &[], &["alice".to_owned()], pki::Existing::Replace).unwrap();
    };
    renew();
    house.put(
        "tls: {ca_cert: /etc/other/ca.pem, server_cert: /etc/other/server.pem, server_key: /etc/other/server.key.pem, crl: /etc/other/crl.pem}\n",
    );
    house.read().await;
    assert_eq!(house.refused(), None);
    let moved = house.reloader.running.door.tls().server.fingerprint_sha256.clone();
    assert_ne!(moved, before);
    renew();
    house.read().await;
    assert_ne!(house.reloader.running.door.tls().server.fingerprint_sha256, moved);
    // The configuration is still watched, too.
    house.put("server: {timeout: 9}\ntls: {crl: /etc/other/crl.pem, ca_cert: /etc/other/ca.pem, server_cert: /etc/other/server.pem, server_key: /etc/other/server.key.pem}\n");
    house.read().await;
    assert_eq!(house.reloader.settings.timeout, Duration::from_secs(9));
}

#[tokio::test]
async fn roles_wait_for_their_turn() {
    let mut house = House::new(Some("{}\n")).await;
    house.put("security: {roles: {alice: viewer}}\n");
    let app = house.reloader.running.app.clone();
    let turn = app.certificate_turn().await;
    {
        let mut reading = Box::pin(house.reloader.configuration(Cause::Asked));
        let polled =
            std::future::poll_fn(|cx| std::task::Poll::Ready(reading.as_mut().poll(cx).is_pending())).await;
        assert!(polled && app.settings().roles.is_empty());
        drop(turn);
        assert!(!reading.await.unwrap().is_empty());
    }
    assert!(!app.settings().roles.is_empty());
}

#[tokio::test]
async fn another_level_of_the_log_leaves_the_audit_trail_alone() {
    let mut house = House::new(Some("logging: {level: INFO}\n")).await;
    let log = Arc::clone(&house.reloader.running.log);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writing = std::thread::spawn({
        let (log, stop) = (Arc::clone(&log), Arc::clone(&stop));
        move || {
            let mut written = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let kind = AuditKind::SystemChanged { what: format!("number {written}") };
                log.record(AuditEvent::new(kind, &Caller::local())).unwrap();
                written += 1;
            }
            written
        }
    });
    for level in ["ERROR", "TRACE", "WARN", "DEBUG", "INFO"] {
        house.put(&format!("logging: {{level: {level}}}\n"));
        house.read().await;
        assert!(house.refused().is_none(), "{level}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let written = tokio::task::spawn_blocking(|| writing.join().unwrap()).await.unwrap();
    assert_eq!(house.records("config_changed").len(), 5, "from one to the next, at the level ERROR too");
    assert_eq!(house.records("system_changed").len(), written);
    let path = house.root.path().join(patch_audit::LOG_PATH);
    let report = patch_audit::examine(&path, &patch_audit::Known::default()).unwrap();
    assert!(report.is_intact(), "{report:?}");
    assert!(house.records("records_dropped").is_empty());
}
