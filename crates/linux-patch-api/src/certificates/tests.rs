//! The certificates with a real door and, where it matters, real connections.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use patch_service::{AllowList, DoorSettings, SharedAllowList, pki};
use patch_types::api::CrlStatus;
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{watch::Seen, *};
use crate::{
    config::{self, STATE_DIR},
    door::{DoorCounters, Recorder},
    http::{self, tests::application},
    jobs::testing::Root,
};

/// A host with certificates in the usual places, for clients `alice` and `bob`, and a door with the API behind it.
struct House {
    root: Root,
    app: App,
    door: Door,
    log: Arc<AuditLog>,
    address: SocketAddr,
    stop: DropGuard,
}

fn certs(root: &Root) -> PathBuf {
    root.path().join("etc/linux_patch_api/certs")
}

fn prepare() -> Root {
    let root = Root::new();
    let clients = ["alice".to_owned(), "bob".to_owned()];
    let ip = [std::net::IpAddr::from([127, 0, 0, 1])];
    pki::init(&certs(&root), &["host".to_owned()], &ip, &clients, pki::Existing::Keep).unwrap();
    root
}

impl House {
    async fn new() -> Self {
        Self::open(prepare(), "").await
    }

    async fn open(root: Root, config: &str) -> Self {
        let (app, _) = application(&root, config).await;
        let log = app.audit_trail();
        let settings = (*app.settings()).clone();
        let (tls, certificates) =
            start_with(root.path(), &settings, app.executor(), &log, None).await.unwrap();
        app.note_certificates(certificates);
        let recorder = Recorder::new(Arc::clone(&log), Arc::new(DoorCounters::default()));
        let allow = SharedAllowList::new(AllowList::parse("allowed_ips: [127.0.0.1]", "t").unwrap());
        let door = Door::new(DoorSettings::default(), tls, allow, Arc::new(recorder));
        app.behind(&door);
        let listener = door.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn({
            let (door, service, stop) = (door.clone(), http::service(app.clone()), stop.clone());
            async move { door.serve(listener, service, stop).await }
        });
        Self { root, app, door, log, address, stop: stop.drop_guard() }
    }

    /// As if the service were started again.
    async fn restart(self) -> Self {
        let Self { root, log, stop, .. } = self;
        drop(stop);
        log.close();
        Self::open(root, "").await
    }

    fn certs(&self) -> PathBuf {
        certs(&self.root)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.certs().join(name)
    }

    async fn reload(&self) {
        let _ = refresh_with(&self.door, &self.app, &self.log, None, None).await;
    }

    fn list(&self, revoke: &[&str], number: u64, seconds: i64) -> String {
        list(&self.certs(), revoke, number, seconds)
    }

    fn number(&self) -> Option<String> {
        self.door.tls().crls.first().and_then(|c| c.number.clone())
    }

    fn problems(&self) -> Problems {
        self.app.certificates().problems.clone()
    }

    fn status(&self) -> CrlStatus {
        self.app.certificates().crl_status(Timestamp::now())
    }

    /// Records of the audit trail of one kind.
    fn records(&self, event: &str) -> Vec<Value> {
        self.log.flush().unwrap();
        let text = fs::read_to_string(self.root.path().join(patch_audit::LOG_PATH)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|record| record["event"] == event)
            .collect()
    }

    async fn connect(&self, name: &str) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name_of_host = rustls_pki_types::ServerName::IpAddress(self.address.ip().into());
        let connector = TlsConnector::from(Arc::new(client(&self.certs(), name)));
        connector.connect(name_of_host, stream).await.unwrap()
    }

    /// Sends one request over a connection of its own.
    async fn ask(&self, name: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mut stream = self.connect(name).await;
        ask_over(&mut stream, method, path, body).await.expect("an answer")
    }

    async fn put(&self, name: &str, crl: &str) -> (u16, Value) {
        self.ask(name, "PUT", "/system/crl", Some(&json!({ "crl": crl }))).await
    }

    async fn websocket(&self, name: &str) -> TlsStream<TcpStream> {
        let mut stream = self.connect(name).await;
        let request = "GET /api/v1/ws/jobs HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = head(&mut stream).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        stream
    }
}

fn list(certs: &Path, revoke: &[&str], number: u64, seconds: i64) -> String {
    let now = Timestamp::now();
    let revoke: Vec<String> = revoke.iter().map(|&name| name.to_owned()).collect();
    pki::make_crl(certs, &revoke, number, now, now + SignedDuration::from_secs(seconds)).unwrap()
}

/// A list with the number 0x20 that is valid from and until so many seconds from now.
fn dated(certs: &Path, from: i64, until: i64) -> String {
    let at = |seconds| Timestamp::now() + SignedDuration::from_secs(seconds);
    pki::make_crl(certs, &[], 0x20, at(from), at(until)).unwrap()
}

fn client(certs: &Path, name: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for der in PemInput::read(&certs.join("ca.pem")).unwrap().certificates().unwrap() {
        roots.add(der).unwrap();
    }
    let chain = PemInput::read(&certs.join(format!("{name}.pem"))).unwrap().certificates().unwrap();
    let key = PemInput::read(&certs.join(format!("{name}.key.pem"))).unwrap().private_key().unwrap();
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap()
}

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Sends a request over a connection that stays open; none if that is closed.
async fn ask_over(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Option<(u16, Value)> {
    let body = body.map(Value::to_string);
    let more = body.as_ref().map_or(String::new(), |body| {
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
    });
    let request =
        format!("{method} /api/v1{path} HTTP/1.1\r\nHost: a\r\n{more}\r\n{}", body.unwrap_or_default());
    stream.write_all(request.as_bytes()).await.ok()?;
    let head = tokio::time::timeout(Duration::from_secs(20), head(stream)).await.expect("an end")?;
    let status = head.split(' ').nth(1)?.parse().unwrap();
    let length = head.to_ascii_lowercase();
    let length = length.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}

/// Waits until the other side has closed.
async fn closed(stream: &mut (impl AsyncRead + Unpin), within: Duration) {
    let reading = async {
        let mut chunk = [0; 4096];
        while matches!(stream.read(&mut chunk).await, Ok(1..)) {}
    };
    tokio::time::timeout(within, reading).await.expect("closed in time");
}

fn key_of(certs: &Path) -> Vec<u8> {
    fs::read(certs.join("server.key.pem")).unwrap()
}

#[tokio::test]
async fn a_list_that_was_in_force_cannot_be_lost() {
    let house = House::new().await;
    let crl = house.file("crl.pem");
    assert_eq!(house.number().as_deref(), Some("1"));
    let text = fs::read(&crl).unwrap();

    fs::remove_file(&crl).unwrap();
    house.reload().await;
    assert_eq!((house.number().as_deref(), house.status()), (Some("1"), CrlStatus::Valid));
    assert!(house.problems().crl.unwrap().contains("is gone"));
    let house = house.restart().await;
    assert_eq!(house.number().as_deref(), Some("1"), "over a restart too");
    assert!(house.problems().crl.unwrap().contains("is gone"));
    let (_, health) = house.ask("alice", "GET", "/health", None).await;
    let check = health["data"]["checks"].as_array().cloned().unwrap_or_default();
    let check = check.iter().find(|c| c["name"] == "crl").cloned().unwrap_or_default();
    assert_eq!(
        (&check["healthy"], &health["data"]["status"]),
        (&json!(false), &json!("degraded")),
        "{health}"
    );

    std::os::unix::fs::symlink("nowhere", &crl).unwrap();
    house.reload().await;
    assert_eq!((house.number().as_deref(), house.status()), (Some("1"), CrlStatus::Invalid));
    fs::remove_file(&crl).unwrap();
    fs::write(&crl, "rubbish").unwrap();
    house.reload().await;
    assert_eq!((house.number().as_deref(), house.status()), (Some("1"), CrlStatus::Invalid));
    let house = house.restart().await;
    assert_eq!((house.number().as_deref(), house.status()), (Some("1"), CrlStatus::Invalid));

    fs::write(&crl, text).unwrap();
    house.reload().await;
    assert_eq!((house.number().as_deref(), house.status()), (Some("1"), CrlStatus::Valid));
    assert!(house.problems().is_empty());
    let refused = house.records("certificate_refused");
    assert_eq!(refused.len(), 5, "{refused:#?}");
    assert!(refused.iter().all(|r| r["role"] == "crl"));
}

#[tokio::test]
async fn an_older_file_never_replaces_a_newer_list() {
    let house = House::new().await;
    fs::write(house.file("crl.pem"), house.list(&["bob"], 9, 3600)).unwrap();
    house.reload().await;
    assert_eq!(house.number().as_deref(), Some("9"));
    fs::write(house.file("crl.pem"), house.list(&[], 8, 3600)).unwrap();
    house.reload().await;
    assert_eq!(house.number().as_deref(), Some("9"));
    let house = house.restart().await;
    assert_eq!(house.number().as_deref(), Some("9"));
    // Even if the copy is lost nobody is let in on the older one; a newer one opens the host again.
    fs::remove_file(house.root.path().join(STATE_DIR).join("crl.pem")).unwrap();
    let house = house.restart().await;
    assert_eq!((house.number().as_deref(), house.status()), (Some("8"), CrlStatus::Invalid));
    assert_eq!(house.ask("alice", "GET", "/health", None).await.0, 503);
    assert_eq!(house.put("alice", &house.list(&[], 8, 3600)).await.0, 409);
    assert_eq!(house.put("alice", &house.list(&[], 9, 3600)).await.0, 200, "nine was lost, and comes back");
    assert_eq!(house.ask("alice", "GET", "/system/info", None).await.0, 200);
}

#[tokio::test]
async fn a_host_that_never_had_a_list_is_degraded_and_serves() {
    let root = prepare();
    fs::remove_file(certs(&root).join("crl.pem")).unwrap();
    let house = House::open(root, "").await;
    assert_eq!(house.status(), CrlStatus::Missing);
    assert!(house.problems().is_empty());
    let (status, health) = house.ask("alice", "GET", "/health", None).await;
    assert_eq!((status, &health["data"]["crl_status"]), (200, &json!("missing")));
    assert_eq!(health["data"]["status"], "degraded");
    // The first list may come over the API.
    assert_eq!(house.put("alice", &house.list(&["bob"], 1, 3600)).await.0, 200);
    let house = house.restart().await;
    assert_eq!((house.status(), house.problems()), (CrlStatus::Valid, Problems::default()));
    assert_eq!(house.number().as_deref(), Some("1"));
}

#[tokio::test]
async fn a_first_list_that_is_no_good_is_no_start() {
    let root = prepare();
    fs::write(certs(&root).join("crl.pem"), "rubbish").unwrap();
    let (app, _) = application(&root, "").await;
    let started = start_with(root.path(), &app.settings(), app.executor(), app.audit(), None).await;
    assert!(started.err().unwrap().to_string().contains("crl.pem"));
    let key = server_key(&app.settings()).unwrap();
    assert!(load(&app.settings(), &key).is_err(), "check-config says so too");

    // Half-written, which the service manager's next attempt mends.
    let whole = list(&certs(&root), &[], 1, 3600);
    for half in ["", &whole[..whole.len() / 2], &whole[..whole.len() - 4]] {
        fs::write(certs(&root).join("crl.pem"), half).unwrap();
        let started = start_with(root.path(), &app.settings(), app.executor(), app.audit(), None).await;
        assert!(started.err().unwrap().to_string().contains("crl.pem"), "{half}");
    }
    fs::write(certs(&root).join("crl.pem"), whole).unwrap();
    let (tls, _) = start_with(root.path(), &app.settings(), app.executor(), app.audit(), None).await.unwrap();
    assert_eq!(tls.crls.len(), 1);
}

#[tokio::test]
async fn a_pair_that_is_replaced_in_two_steps_does_not_flap() {
    let house = House::new().await;
    let before = house.door.tls().server.fingerprint_sha256.clone();
    // The CA stays, a new server certificate is made by another one in between.
    let other = tempfile::tempdir().unwrap();
    pki::init(other.path(), &["host".to_owned()], &[], &[], pki::Existing::Keep).unwrap();
    fs::copy(other.path().join("server.pem"), house.file("server.pem")).unwrap();
    // A revocation does not wait for the key.
    fs::write(house.file("crl.pem"), house.list(&["bob"], 5, 3600)).unwrap();
    let mut bob = house.websocket("bob").await;
    house.reload().await;
    closed(&mut bob, Duration::from_secs(1)).await;
    assert_eq!(house.door.tls().server.fingerprint_sha256, before);
    assert!(house.problems().server.unwrap().contains("does not belong"));
    assert_eq!(house.number().as_deref(), Some("5"));
    let (_, health) = house.ask("alice", "GET", "/health", None).await;
    assert_eq!(health["data"]["status"], "degraded");
    // Asked again it says the same, and is not recorded again.
    house.reload().await;
    assert_eq!(house.records("certificate_refused").len(), 1);

    fs::copy(other.path().join("server.key.pem"), house.file("server.key.pem")).unwrap();
    house.reload().await;
    assert_ne!(house.door.tls().server.fingerprint_sha256, before);
    assert!(house.problems().is_empty());
    let changed = house.records("certificate_changed");
    let roles: Vec<_> = changed.iter().map(|r| r["role"].as_str().unwrap_or_default()).collect();
    assert_eq!(roles, ["crl", "server"]);
}

#[tokio::test]
async fn a_key_that_only_root_can_read_comes_from_the_root_side() {
    let root = prepare();
    let usual = certs(&root).join("server.key.pem");
    let key = key_of(&certs(&root));
    fs::remove_file(&usual).unwrap();
    root.manners(|m| m.server_key = Some(key.clone()));
    let credentials = root.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("server.key.pem"), &key).unwrap();
    let (app, _) = application(&root, "").await;
    let (settings, executor) = (app.settings(), app.executor());
    let asked = || root.requests().len();

    // At the start the service manager's copy is as new as the file, and needs no root side.
    start_with(root.path(), &settings, executor, app.audit(), Some(&credentials)).await.unwrap();
    assert_eq!(asked(), 0);
    start_with(root.path(), &settings, executor, app.audit(), None).await.unwrap();
    assert_eq!(asked(), 1, "without one the root side is asked");
    // Later it is older than the file.
    let paths = &settings.tls;
    fs::write(credentials.join("server.key.pem"), "old").unwrap();
    let found = any_key(paths, Some(&credentials), executor, false).await.unwrap();
    assert_eq!(found.pem.private_key().unwrap(), PemInput::new("k", key.clone()).private_key().unwrap());
    // It stands in for the root side when that does not answer, for the usual path only.
    root.manners(|m| m.server_key = None);
    assert!(any_key(paths, Some(&credentials), executor, false).await.is_ok());
    let other = config::parse(
        "tls: {server_key: /etc/linux_patch_api/certs/other.pem}",
        root.path(),
        Path::new("config.yaml"),
    );
    let error = any_key(&other.unwrap().tls, Some(&credentials), executor, false).await.err().unwrap();
    let error = format!("{error:#}");
    assert!(error.contains("other.pem") && error.contains("there is no key"), "{error}");
}

#[tokio::test]
async fn no_key_is_ever_said() {
    let house = House::new().await;
    let key = String::from_utf8(key_of(&house.certs())).unwrap();
    let secret: String = key.lines().filter(|l| !l.starts_with('-')).collect();
    house.root.manners(|m| m.server_key = Some(key.clone().into_bytes()));
    fs::remove_file(house.file("server.key.pem")).unwrap();
    house.reload().await;
    assert!(house.problems().is_empty());
    // One that is cut short, and one that belongs to another certificate.
    house.root.manners(|m| m.server_key = Some(key[..key.len() / 2].into()));
    house.reload().await;
    let alice = fs::read(house.file("alice.key.pem")).unwrap();
    house.root.manners(|m| m.server_key = Some(alice));
    house.reload().await;
    assert_eq!(house.records("certificate_refused").len(), 2);
    for file in walk(house.root.path()) {
        if file.extension().is_some_and(|e| e == "pem") {
            continue;
        }
        let text: String =
            String::from_utf8_lossy(&fs::read(&file).unwrap_or_default()).replace(['\n', '\\'], "");
        assert!(!text.contains(&secret[..60]), "{}", file.display());
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => files.extend(walk(&entry.path())),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

#[tokio::test]
async fn a_change_of_the_ca_closes_who_is_not_of_it() {
    let house = House::new().await;
    let mut alice = house.websocket("alice").await;
    let other = tempfile::tempdir().unwrap();
    pki::init(other.path(), &["host".to_owned()], &[], &[], pki::Existing::Keep).unwrap();
    // Half of the change: the new CA without its list would let in whoever it has revoked.
    fs::copy(other.path().join("ca.pem"), house.file("ca.pem")).unwrap();
    house.reload().await;
    assert!(house.problems().crl.is_some());
    assert!(ask_alive(&mut alice).await, "the CA before stays until its successor has a list");
    fs::copy(other.path().join("crl.pem"), house.file("crl.pem")).unwrap();
    house.reload().await;
    assert!(house.problems().is_empty(), "{:?}", house.problems());
    closed(&mut alice, Duration::from_secs(1)).await;
    let roles: Vec<_> = house.records("certificate_changed").iter().map(|r| r["role"].clone()).collect();
    assert_eq!(roles, ["ca", "crl"]);

    // A CA that cannot be read changes nothing.
    fs::write(house.file("ca.pem"), "rubbish").unwrap();
    house.reload().await;
    assert!(house.problems().ca.is_some() && house.problems().crl.is_none(), "{:?}", house.problems());
    assert_eq!(house.status(), CrlStatus::Valid);
}

/// A ping of a WebSocket is answered.
async fn ask_alive(stream: &mut TlsStream<TcpStream>) -> bool {
    if stream.write_all(&[0x89, 0x80, 0, 0, 0, 0]).await.is_err() {
        return false;
    }
    let mut pong = [0; 2];
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut pong)).await;
    matches!(read, Ok(Ok(_))) && pong == [0x8a, 0]
}

#[tokio::test]
async fn a_newer_list_over_the_api_takes_effect_at_once_and_for_good() {
    let house = House::new().await;
    let mut bob = house.websocket("bob").await;
    let mut idle = house.connect("bob").await;
    assert_eq!(ask_over(&mut idle, "GET", "/system/info", None).await.unwrap().0, 200);
    let mut alice = house.connect("alice").await;

    let text = house.list(&["bob"], 0x1f, 3600);
    let began = Instant::now();
    let (status, body) =
        ask_over(&mut alice, "PUT", "/system/crl", Some(&json!({ "crl": text }))).await.unwrap();
    assert_eq!(status, 200, "{body}");
    let data = &body["data"];
    assert_eq!(
        (&data["changed"], &data["number"], &data["revoked"]),
        (&json!(true), &json!("1f"), &json!(1))
    );
    assert_eq!(data["closed_connections"], 2, "{data}");
    closed(&mut bob, Duration::from_secs(1)).await;
    closed(&mut idle, Duration::from_secs(1)).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(ask_over(&mut house.connect("bob").await, "GET", "/health", None).await.is_none());

    // Over the same connection, since alice is no worse than before.
    let (status, body) =
        ask_over(&mut alice, "PUT", "/system/crl", Some(&json!({ "crl": text }))).await.unwrap();
    assert_eq!((status, &body["data"]["changed"]), (200, &json!(false)));
    let house = house.restart().await;
    assert_eq!((house.number().as_deref(), house.problems()), (Some("1f"), Problems::default()));

    let rows = [
        ("lower", house.list(&[], 0x1e, 3600), 409, "number 1f"),
        ("equal", house.list(&[], 0x1f, 3600), 409, "although their numbers are equal"),
        ("expired", dated(&house.certs(), -7200, -3600), 422, "expired at"),
        ("from the future", dated(&house.certs(), 3600, 7200), 422, "has not come yet"),
        ("another CA's", list(other().path(), &[], 0x20, 3600), 422, "signature does not verify"),
        ("no list", "x".to_owned(), 422, "the list sent"),
        ("empty", String::new(), 422, "the list sent"),
        ("a certificate", fs::read_to_string(house.file("ca.pem")).unwrap(), 422, "X509 CRL"),
    ];
    for (what, text, wanted, words) in rows {
        let (status, body) = house.put("alice", &text).await;
        let message = body["error"]["message"].as_str().unwrap_or_default();
        assert!(status == wanted && message.contains(words), "{what}: {status} {message}");
        assert_eq!(body["error"]["code"], "INVALID_REQUEST", "{what}");
    }
    assert_eq!(house.number().as_deref(), Some("1f"));

    let changed = house.records("certificate_changed");
    assert_eq!((changed.len(), &changed[0]["identity"]), (1, &json!("alice")), "{changed:#?}");
    assert_eq!(house.records("certificate_refused").len(), 8);
    let metrics = house.metrics().await;
    for line in ["crl_uploads_total{result=\"refused\"} 8", "crl_status{status=\"valid\"} 1"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

fn other() -> tempfile::TempDir {
    let other = tempfile::tempdir().unwrap();
    pki::init(other.path(), &["host".to_owned()], &[], &[], pki::Existing::Keep).unwrap();
    other
}

impl House {
    async fn metrics(&self) -> String {
        let mut stream = self.connect("alice").await;
        let request = b"GET /api/v1/metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut text = Vec::new();
        drop(stream.read_to_end(&mut text).await);
        String::from_utf8(text).unwrap()
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_kept_is_not_put_in_force() {
    let house = House::new().await;
    let state = house.root.path().join(STATE_DIR);
    // A directory in the place of the new file: it cannot be written, whoever runs this.
    fs::create_dir(state.join(".crl.json.new")).unwrap();
    let (status, body) = house.put("alice", &house.list(&["bob"], 7, 3600)).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("SERVICE_UNHEALTHY")), "{body}");
    assert_eq!(house.number().as_deref(), Some("1"));
    fs::remove_dir(state.join(".crl.json.new")).unwrap();
    assert_eq!(house.put("alice", &house.list(&["bob"], 7, 3600)).await.0, 200);
}

#[tokio::test]
async fn when_the_list_expires_everything_ends_but_the_upload_of_a_newer_one() {
    let root = prepare();
    let lifetime = 3;
    fs::write(certs(&root).join("crl.pem"), list(&certs(&root), &[], 2, lifetime)).unwrap();
    let house = House::open(root, "").await;
    let watching = tokio::spawn(watch(house.door.clone(), house.app.clone(), Arc::clone(&house.log)));
    let mut socket = house.websocket("alice").await;
    let mut idle = house.connect("bob").await;
    assert_eq!(ask_over(&mut idle, "GET", "/system/info", None).await.unwrap().0, 200);
    let expires = house.app.certificates().crl_next_update(Timestamp::now()).unwrap();

    closed(&mut socket, Duration::from_secs(10)).await;
    let late = Timestamp::now().duration_since(expires);
    assert!((SignedDuration::ZERO..SignedDuration::from_secs(3)).contains(&late), "{late:?}");
    closed(&mut idle, Duration::from_secs(2)).await;
    for (method, path) in
        [("GET", "/health"), ("GET", "/ws/jobs"), ("POST", "/patches/refresh"), ("GET", "/system/crl")]
    {
        let (status, body) = house.ask("alice", method, path, None).await;
        assert_eq!(
            (status, &body["error"]["details"]["crl_status"]),
            (503, &json!("expired")),
            "{path} {body}"
        );
    }
    assert_eq!(house.put("alice", &house.list(&[], 2, 3600)).await.0, 409);
    assert_eq!(house.put("alice", &house.list(&[], 3, 3600)).await.0, 200);
    let (status, health) = house.ask("bob", "GET", "/health", None).await;
    assert_eq!((status, &health["data"]["crl_status"]), (200, &json!("valid")), "{health}");
    let revoked = house.records("connection_revoked");
    assert_eq!(revoked.len(), 2, "{revoked:#?}");
    watching.abort();
}

#[tokio::test]
async fn who_expires_is_cut_off() {
    let house = House::new().await;
    let mut alice = house.websocket("alice").await;
    let seen = watch::look(&house.door, &house.app, Seen::default(), Timestamp::now());
    assert_eq!(seen, Seen::default());
    assert!(ask_alive(&mut alice).await);
    let year = Timestamp::now() + SignedDuration::from_hours(366 * 24);
    let shut = Seen { is_shut: true, expired: 0 };
    assert_eq!(watch::look(&house.door, &house.app, shut, year), shut, "the list has expired as well");
    closed(&mut alice, Duration::from_secs(1)).await;
}

/// Makes the CA's certificate anew, with the same key, for so many seconds.
fn shorten_ca(certs: &Path, seconds: u64) {
    fs::write(certs.join("ca.pem"), short_ca(certs, seconds)).unwrap();
}

fn short_ca(certs: &Path, seconds: u64) -> String {
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(certs.join("ca.key.pem")).unwrap()).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Development CA");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    let end = u64::try_from(Timestamp::now().as_second()).unwrap() + seconds;
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
    params.self_signed(&key).unwrap().pem()
}

/// Has the host trust another CA beside its own, which is good for so many seconds and so is its list.
fn trust_beside(certs: &Path, other: &Path, seconds: u64) {
    let beside = |file: &str, more: &str| {
        let own = fs::read_to_string(certs.join(file)).unwrap();
        fs::write(certs.join(file), own + more).unwrap();
    };
    beside("ca.pem", &short_ca(other, seconds));
    beside("crl.pem", &list(other, &[], 9, i64::try_from(seconds).unwrap()));
}

#[tokio::test]
async fn the_list_of_a_ca_that_has_expired_shuts_out_nobody_else() {
    let root = prepare();
    let other = other();
    trust_beside(&certs(&root), other.path(), 3);
    let house = House::open(root, "").await;
    let watching = tokio::spawn(watch(house.door.clone(), house.app.clone(), Arc::clone(&house.log)));
    let (known, now) = (house.app.certificates(), Timestamp::now());
    let (due, ends) = (known.crl_next_update(now).unwrap(), house.door.tls().ca[1].not_after);
    assert!(due <= ends + SignedDuration::from_secs(1) && due < now + SignedDuration::from_secs(5));
    let mut socket = house.websocket("alice").await;
    // While the CA is good, so must be its list.
    assert!(known.is_shut(due) || due > ends);
    let (after, year) = (ends + SignedDuration::from_secs(2), SignedDuration::from_hours(366 * 24));
    assert!(!known.is_shut(after) && known.is_shut(now + year), "{known:?}");
    assert!(known.crl_next_update(after).unwrap() > after);
    assert_eq!(known.crl_status(after), CrlStatus::Valid);

    // Its list is lost, and what was in force of it is not known: until it expires that shuts the host.
    let doubtful = Certificates {
        crl_stale: true,
        doubtful: [house.door.tls().crls[1].signer.clone()].into(),
        ..(*known).clone()
    };
    house.app.note_certificates(doubtful);
    assert!(house.app.certificates().is_shut(now));
    let until = Instant::now() + Duration::from_secs(20);
    while house.app.certificates().crl_stale {
        assert!(Instant::now() < until, "{:?}", house.app.certificates());
        tokio::task::yield_now().await;
    }
    assert_eq!(house.ask("alice", "GET", "/system/info", None).await.0, 200);
    house.reload().await;
    assert_eq!(house.status(), CrlStatus::Valid);
    let house = house.restart().await;
    assert_eq!(
        (house.ask("alice", "GET", "/system/info", None).await.0, house.status()),
        (200, CrlStatus::Valid)
    );
    closed(&mut socket, Duration::from_secs(1)).await;
    watching.abort();
}

#[tokio::test]
async fn when_the_ca_expires_what_rests_on_it_ends() {
    let root = prepare();
    shorten_ca(&certs(&root), 3);
    let house = House::open(root, "").await;
    let watching = tokio::spawn(watch(house.door.clone(), house.app.clone(), Arc::clone(&house.log)));
    let mut socket = house.websocket("alice").await;
    let mut idle = house.connect("bob").await;
    assert_eq!(ask_over(&mut idle, "GET", "/system/info", None).await.unwrap().0, 200);
    let expires = house.app.certificates().ca_expires.unwrap();

    closed(&mut socket, Duration::from_secs(10)).await;
    let late = Timestamp::now().duration_since(expires);
    assert!((SignedDuration::ZERO..SignedDuration::from_secs(4)).contains(&late), "{late:?}");
    closed(&mut idle, Duration::from_secs(2)).await;
    assert!(ask_over(&mut house.connect("alice").await, "GET", "/health", None).await.is_none());
    let why: Vec<_> = house.records("connection_revoked").iter().map(|r| r["reason"].clone()).collect();
    assert_eq!(why, vec![json!("the certificate of the CA has expired"); 2]);
    let failed = house.records("auth_failure");
    assert!(failed.iter().all(|r| r["code"] == "AUTH_CERT_EXPIRED") && !failed.is_empty(), "{failed:#?}");
    watching.abort();
}

#[tokio::test]
async fn a_client_that_expires_soon_is_named_once() {
    let root = prepare();
    let house = House::open(root, "").await;
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(house.file("alice.key.pem")).unwrap()).unwrap();
    let ca_key = rcgen::KeyPair::from_pem(&fs::read_to_string(house.file("ca.key.pem")).unwrap()).unwrap();
    let ca = fs::read_to_string(house.file("ca.pem")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca, ca_key).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "alice");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let end = u64::try_from(Timestamp::now().as_second()).unwrap() + 20 * 86400;
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
    fs::write(house.file("alice.pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    for name in ["alice", "bob", "alice", "alice"] {
        assert_eq!(house.ask(name, "GET", "/system/info", None).await.0, 200);
    }
    let warned = house.records("certificate_expiring");
    assert_eq!(warned.len(), 1, "{warned:#?}");
    assert_eq!((&warned[0]["role"], &warned[0]["identity"]), (&json!("client"), &json!("alice")));
}

#[tokio::test]
async fn expiries_are_warned_of_once_over_restarts() {
    let house = House::new().await;
    let tls = house.door.tls();
    let at = |days: i64| tls.server.not_after - SignedDuration::from_hours(24 * days);
    let mut warnings = watch::Warnings::open(house.root.path());
    assert!(warnings.due(&tls, at(31)).is_empty());
    // The server's certificate and the list, both made for a year; the CA is made for ten.
    let roles = |events: Vec<AuditEvent>| {
        let role = |e: &AuditEvent| match &e.kind {
            AuditKind::CertificateExpiring { role, .. } => *role,
            other => panic!("{other:?}"),
        };
        events.iter().map(role).collect::<Vec<_>>()
    };
    let both = [CertificateRole::Server, CertificateRole::Crl];
    assert_eq!(roles(warnings.due(&tls, at(29))), both);
    assert!(warnings.due(&tls, at(20)).is_empty());
    let mut again = watch::Warnings::open(house.root.path());
    assert!(again.due(&tls, at(20)).is_empty(), "a restart does not warn again");
    assert_eq!(roles(again.due(&tls, at(6))), both);
}

#[tokio::test]
async fn a_list_whose_sender_goes_away_is_put_in_force_all_the_same() {
    let house = House::new().await;
    let text = house.list(&["bob"], 7, 3600);
    let caller = Caller::local();
    let mut putting = Box::pin(house.app.put_crl(&text, &caller));
    // As far as it comes at once, and no further.
    assert!(polled(&mut putting).await.is_pending());
    drop(putting);
    let _turn = house.app.certificate_turn().await;
    assert_eq!(house.number().as_deref(), Some("7"));
}

async fn polled<F: Future + Unpin>(future: &mut F) -> std::task::Poll<F::Output> {
    std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx))).await
}

#[tokio::test]
async fn a_revocation_by_file_waits_for_no_key_and_for_no_disk() {
    let house = House::new().await;
    fs::write(house.file("crl.pem"), house.list(&["bob"], 7, 3600)).unwrap();
    fs::remove_file(house.file("server.key.pem")).unwrap();
    let mut reading = Box::pin(refresh_with(&house.door, &house.app, &house.log, None, None));
    // Asking the root side for the key is where it waits first.
    assert!(polled(&mut reading).await.is_pending());
    assert_eq!(house.number().as_deref(), Some("7"));
}

#[tokio::test]
async fn what_was_remembered_and_cannot_be_read_shuts_the_host() {
    let house = House::new().await;
    let state = house.root.path().join(STATE_DIR);
    fs::write(state.join("crl.json"), "rubbish").unwrap();
    // Who runs has not forgotten it.
    house.reload().await;
    assert_eq!(house.status(), CrlStatus::Valid);
    fs::write(state.join("crl.json"), "rubbish").unwrap();
    let house = house.restart().await;
    assert_eq!(house.ask("alice", "GET", "/health", None).await.0, 503);
    house.reload().await;
    assert_eq!(house.status(), CrlStatus::Invalid, "the same files again are no newer list");
    assert_eq!(house.put("alice", &house.list(&[], 2, 3600)).await.0, 200);
    assert_eq!(house.ask("alice", "GET", "/system/info", None).await.0, 200);

    // The list is lost, the number is not.
    fs::remove_file(house.file("crl.pem")).unwrap();
    fs::write(state.join("crl.pem"), "rubbish").unwrap();
    let house = house.restart().await;
    assert_eq!((house.number(), house.status()), (None, CrlStatus::Invalid));
    assert_eq!(house.ask("alice", "GET", "/health", None).await.0, 503);
    assert_eq!(house.put("alice", &house.list(&[], 1, 3600)).await.0, 409);
    assert_eq!(house.put("alice", &house.list(&[], 3, 3600)).await.0, 200);
    let house = house.restart().await;
    assert_eq!((house.number().as_deref(), house.status()), (Some("3"), CrlStatus::Valid));
}

#[tokio::test]
async fn a_newer_list_of_one_ca_does_not_end_the_doubts_about_another() {
    let root = prepare();
    let (certs, other) = (certs(&root), other());
    for file in ["ca.pem", "crl.pem"] {
        let both = [certs.join(file), other.path().join(file)].map(|path| fs::read_to_string(path).unwrap());
        fs::write(certs.join(file), both.concat()).unwrap();
    }
    let house = House::open(root, "").await;
    assert_eq!(house.status(), CrlStatus::Valid);
    fs::write(house.root.path().join(STATE_DIR).join("crl.json"), "rubbish").unwrap();
    let house = house.restart().await;
    assert_eq!(house.ask("alice", "GET", "/health", None).await.0, 503);

    // The directory's CA file holds two certificates, of which the first is the one that the key there belongs to.
    assert_eq!(house.put("alice", &house.list(&[], 2, 3600)).await.0, 200);
    assert_eq!(
        house.ask("alice", "GET", "/health", None).await.0,
        503,
        "the other's may still be an old one"
    );
    house.reload().await;
    assert_eq!(house.status(), CrlStatus::Invalid);
    let house = house.restart().await;
    assert_eq!(house.ask("alice", "GET", "/health", None).await.0, 503, "over a restart too");
    assert_eq!(house.put("alice", &list(other.path(), &[], 1, 3600)).await.0, 409);
    assert_eq!(house.put("alice", &list(other.path(), &[], 2, 3600)).await.0, 200);
    assert_eq!(house.ask("alice", "GET", "/system/info", None).await.0, 200);
    let house = house.restart().await;
    assert_eq!(house.ask("alice", "GET", "/system/info", None).await.0, 200);
}

#[tokio::test]
async fn doubts_that_cannot_be_kept_are_not_forgotten() {
    let root = prepare();
    let (certs, other) = (certs(&root), other());
    let house = House::open(root, "").await;
    let state = house.root.path().join(STATE_DIR);
    // Another CA, which has no list here, joins; then what was in force is lost.
    let ca = ["ca.pem", "crl.pem"].map(|file| fs::read_to_string(other.path().join(file)).unwrap());
    let own = ["ca.pem", "crl.pem"].map(|file| fs::read_to_string(certs.join(file)).unwrap());
    let both = [0, 1].map(|of| own[of].clone() + &ca[of]);
    fs::write(certs.join("ca.pem"), &both[0]).unwrap();
    fs::write(state.join("crl.json"), "rubbish").unwrap();
    fs::write(certs.join("crl.pem"), list(&certs, &[], 5, 3600)).unwrap();
    fs::create_dir(state.join(".crl.json.new")).unwrap();
    let house = house.restart().await;
    assert_eq!(house.status(), CrlStatus::Valid, "{:?}", house.problems());
    let of_other = |house: &House| house.door.tls().crls.len() > 1;

    // The first list of the other might be an old one.
    fs::write(certs.join("crl.pem"), list(&certs, &[], 5, 3600) + &ca[1]).unwrap();
    for _ in 0..2 {
        house.reload().await;
        assert!(!of_other(&house), "{:?}", house.problems());
    }
    assert_eq!(house.put("alice", &ca[1]).await.0, 503);
    assert!(!of_other(&house));

    // Neither is the doubt over when the CA has been away.
    fs::remove_dir(state.join(".crl.json.new")).unwrap();
    for trusted in [&own[0], &both[0]] {
        fs::write(certs.join("ca.pem"), trusted).unwrap();
        house.reload().await;
        assert!(!of_other(&house), "{:?}", house.problems());
    }
    let house = house.restart().await;
    assert!(!of_other(&house), "{:?}", house.problems());
}
