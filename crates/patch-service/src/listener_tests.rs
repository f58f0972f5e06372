use std::sync::Mutex;

use axum::{Extension, Router, extract::ws::WebSocketUpgrade, routing::get};
use rustls::crypto::aws_lc_rs::kx_group;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{
    allowlist::AllowList,
    pki::{self, Existing},
    testing::{Memory, Pki, connect},
    tls::TlsOptions,
};

struct House {
    pki: Pki,
    door: Door,
    address: SocketAddr,
    memory: Arc<Memory>,
    stop: CancellationToken,
}

fn allow(text: &str) -> SharedAllowList {
    SharedAllowList::new(AllowList::parse(&format!("allowed_ips: [{text}]"), "t").unwrap())
}

fn router() -> Router {
    Router::new()
        .route(
            "/who",
            get(|Extension(peer): Extension<PeerIdentity>| async move { peer.common_name().to_owned() }),
        )
        .route("/endless", get(|| async { endless() }))
        .route(
            "/ws",
            get(|upgrade: WebSocketUpgrade| async {
                upgrade.on_upgrade(|mut socket| async move {
                    while let Some(Ok(message)) = socket.recv().await {
                        if socket.send(message).await.is_err() {
                            break;
                        }
                    }
                })
            }),
        )
}

/// A body without an end.
fn endless() -> Body {
    let chunk = bytes::Bytes::from(vec![b'x'; 16 * 1024]);
    Body::from_stream(futures_util::stream::repeat_with(move || Ok::<_, Infallible>(chunk.clone())))
}

async fn open(pki: Pki, settings: DoorSettings, options: TlsOptions, allowed: &str) -> House {
    let memory = Memory::new();
    let door =
        Door::new(settings, pki.tls(options), allow(allowed), Arc::clone(&memory) as Arc<dyn DoorObserver>);
    let listener = door.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let (serving, until) = (door.clone(), stop.clone());
    tokio::spawn(async move { serving.serve(listener, router(), until).await });
    House { pki, door, address, memory, stop }
}

async fn usual() -> House {
    open(Pki::new(), DoorSettings::default(), TlsOptions::default(), "127.0.0.1").await
}

/// Reads to the end. A reset is an end too: the kernel sends one when it closes with bytes unread.
async fn rest(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut seen = Vec::new();
    let reading = async {
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(n) => seen.extend_from_slice(&chunk[..n]),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("closed in time");
    seen
}

async fn ask(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin), path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    String::from_utf8(rest(stream).await).unwrap()
}

/// What a TLS client that fails sees in bytes, and of which TLS content types the records are.
async fn seen_by(config: rustls::ClientConfig, address: SocketAddr) -> (usize, Vec<u8>) {
    let mut client = rustls::ClientConnection::new(
        Arc::new(config),
        rustls_pki_types::ServerName::IpAddress(address.ip().into()),
    )
    .unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let mut out = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut out).unwrap();
        }
        if !out.is_empty() && stream.write_all(&out).await.is_err() {
            break;
        }
        let read = tokio::time::timeout(Duration::from_secs(8), stream.read(&mut chunk))
            .await
            .expect("closed in time");
        let Ok(read @ 1..) = read else { break };
        seen.extend_from_slice(&chunk[..read]);
        let mut bytes = &chunk[..read];
        while !bytes.is_empty() {
            client.read_tls(&mut bytes).unwrap();
        }
        // An alert or a fault of the server would be an error here; what the bytes were is judged by the caller.
        drop(client.process_new_packets());
    }
    let mut kinds = Vec::new();
    let mut at = 0;
    while let Some([kind, _, _, high, low]) = seen.get(at..at + 5) {
        kinds.push(*kind);
        at += 5 + usize::from(u16::from_be_bytes([*high, *low]));
    }
    assert_eq!(at, seen.len(), "whole records");
    (seen.len(), kinds)
}

const HELLO_12: &[u8] = &[
    22, 3, 1, 0, 47, 1, 0, 0, 43, 3, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
    20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0,
];

#[tokio::test]
async fn who_does_not_speak_our_tls_sees_no_byte() {
    let settings = DoorSettings { handshake_timeout: Duration::from_millis(300), ..DoorSettings::default() };
    let house = open(Pki::new(), settings, TlsOptions::default(), "127.0.0.1").await;
    let rows: [(&str, &[u8]); 6] = [
        ("plain HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("garbage", &[0xff; 600]),
        ("zeros", &[0; 64]),
        ("silence", b""),
        ("TLS 1.2", HELLO_12),
        ("half a hello", &HELLO_12[..20]),
    ];
    for (what, bytes) in rows {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let seen = rest(&mut stream).await;
        println!("{what}: {} bytes", seen.len());
        assert!(seen.is_empty(), "{what}: {seen:?}");
    }
    let mut config = house.pki.client(house.pki.path(), Some("alice"));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (bytes, _) = seen_by(config, house.address).await;
    println!("wrong ALPN: {bytes} bytes");
    assert_eq!(bytes, 0, "wrong ALPN");
    house.memory.wait("NotTls", |e| matches!(e, DoorEvent::NotTls { .. }).then_some(())).await;
    house.memory.wait("timeout", |e| matches!(e, DoorEvent::HandshakeTimeout { .. }).then_some(())).await;
    let incompatible = |e: &DoorEvent| {
        matches!(e, DoorEvent::AuthFailed { reason: AuthFailure::Incompatible, .. }).then_some(())
    };
    house.memory.wait("incompatible", incompatible).await;
}

/// Makes a certificate that `init` would not make, signed by the CA in the directory.
fn make(dir: &std::path::Path, name: &str, extensions: &str) {
    crate::testing::run(
        dir,
        &format!(
            "openssl ecparam -name prime256v1 -genkey -noout -out {name}.key.pem; \
             openssl req -new -key {name}.key.pem -subj /CN={name} -out {name}.csr; \
             printf '{extensions}' > {name}.ext; \
             openssl x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key.pem -CAcreateserial -days 9 -extfile {name}.ext -out {name}.pem"
        ),
    );
}

#[tokio::test]
async fn a_certificate_that_will_not_do_sees_one_flight_and_the_close() {
    let pki = Pki::new();
    let dir = pki.path().to_owned();
    let foreign = Pki::new();
    pki::dated_client(&dir, "expired", 1_577_836_800, 1_580_515_200).unwrap();
    pki::dated_client(&dir, "future", 4_070_908_800, 4_073_587_200).unwrap();
    make(&dir, "usage", "extendedKeyUsage=serverAuth");
    make(&dir, "none", "basicConstraints=CA:FALSE");
    let stranger = tempfile::tempdir().unwrap();
    crate::testing::run(
        stranger.path(),
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key.pem -days 9 -subj /CN=Stranger -out ca.pem",
    );
    make(stranger.path(), "mallory", "extendedKeyUsage=clientAuth");
    for name in ["revoked", "unmapped"] {
        pki::add_client(&dir, name, Existing::Keep).unwrap();
    }
    pki::write_crl(&dir, &["revoked".to_owned()]).unwrap();
    let options = TlsOptions {
        allowed: Some(Arc::new(|facts: &CertificateFacts| facts.common_name != "unmapped")),
        ..TlsOptions::default()
    };
    let house = open(pki, DoorSettings::default(), options, "127.0.0.1").await;
    let own = |name| house.pki.client(&dir, Some(name));
    let rows = [
        ("no certificate", house.pki.client(&dir, None), AuthFailure::NoCertificate, None),
        (
            "foreign",
            house.pki.client(stranger.path(), Some("mallory")),
            AuthFailure::UnknownIssuer,
            Some("mallory"),
        ),
        // As after the CA was made anew under its old name.
        (
            "namesake",
            house.pki.client(foreign.path(), Some("alice")),
            AuthFailure::BadCertificate,
            Some("alice"),
        ),
        ("expired", own("expired"), AuthFailure::Expired, Some("expired")),
        ("not yet valid", own("future"), AuthFailure::NotYetValid, Some("future")),
        ("revoked", own("revoked"), AuthFailure::Revoked, Some("revoked")),
        ("wrong usage", own("usage"), AuthFailure::WrongUsage, Some("usage")),
        ("no usage named", own("none"), AuthFailure::WrongUsage, Some("none")),
        ("not allowed", own("unmapped"), AuthFailure::NotAllowed, Some("unmapped")),
    ];
    let mut lengths = Vec::new();
    for (what, config, reason, name) in rows {
        let (bytes, kinds) = seen_by(config, house.address).await;
        println!("{what}: {bytes} bytes, record types {kinds:?}");
        // A hello, perhaps the compatibility record, then what is encrypted. An alert in the clear would be a 21, one
        // that is encrypted would make this one longer than the rest.
        assert_eq!(kinds.first(), Some(&22), "{what}");
        assert!(kinds.iter().all(|kind| [20, 22, 23].contains(kind)), "{what}: {kinds:?}");
        lengths.push((kinds.len(), bytes));
        let (expired, common_name) = house
            .memory
            .wait(what, |e| match e {
                DoorEvent::AuthFailed { reason: r, expired, certificate, count: 1, .. } if *r == reason => {
                    Some((*expired, certificate.as_ref().map(|c| c.common_name.clone())))
                }
                _ => None,
            })
            .await;
        assert_eq!(common_name.as_deref(), name, "{what}");
        assert_eq!(expired, reason == AuthFailure::Expired, "{what}");
    }
    // Signatures differ by a few bytes; an alert would be 24 more, in a record of its own.
    let records: std::collections::BTreeSet<_> = lengths.iter().map(|(records, _)| records).collect();
    assert_eq!(records.len(), 1, "{lengths:?}");
    let (least, most) =
        (lengths.iter().map(|l| l.1).min().unwrap(), lengths.iter().map(|l| l.1).max().unwrap());
    assert!(most - least <= 8 && (400..1200).contains(&most), "{lengths:?}");

    // A client that is told to retry with another group is not told more: it offers a share of one that the server
    // does not know.
    let groups = vec![kx_group::MLKEM768, kx_group::X25519];
    let (bytes, kinds) =
        seen_by(house.pki.client_with_groups(&dir, Some("revoked"), groups), house.address).await;
    println!("after a HelloRetryRequest: {bytes} bytes, record types {kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == 22).count(), 2, "it was told to retry: {kinds:?}");
    assert!(kinds.iter().all(|kind| [20, 22, 23].contains(kind)), "{kinds:?}");
    let encrypted = kinds.iter().filter(|kind| **kind == 23).count();
    assert_eq!(encrypted, 1, "as many encrypted records as without a retry: {kinds:?}");
}

#[tokio::test]
async fn an_address_that_is_not_listed_sees_no_byte_and_is_reported_in_sums() {
    let settings = DoorSettings { report_interval: Duration::from_millis(200), ..DoorSettings::default() };
    let house = open(Pki::new(), settings, TlsOptions::default(), "10.0.0.0/8").await;
    for _ in 0..20 {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        assert!(rest(&mut stream).await.is_empty());
    }
    let mut total = 0;
    let mut events = 0;
    while total < 20 {
        total += house
            .memory
            .wait("Denied", |e| match e {
                DoorEvent::Denied { count, .. } => Some(*count),
                _ => None,
            })
            .await;
        events += 1;
    }
    assert_eq!(total, 20);
    assert!(events <= 5, "{events} events for 20 denials");
}

#[tokio::test]
async fn a_known_client_is_served_and_named() {
    let house = usual().await;
    let mut config = house.pki.client(house.pki.path(), Some("alice"));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut stream = connect(config, house.address).await.unwrap();
    let answer = ask(&mut stream, "/who").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("alice"), "{answer}");
    let name = |e: &DoorEvent| match e {
        DoorEvent::AuthSucceeded { identity } => Some(identity.common_name().to_owned()),
        _ => None,
    };
    assert_eq!(house.memory.wait("AuthSucceeded", name).await, "alice");
}

#[tokio::test]
async fn a_connection_is_as_old_as_its_first_moment_and_not_as_its_handshake() {
    let house = usual().await;
    let name = rustls_pki_types::ServerName::IpAddress(house.address.ip().into());
    let config = |who| house.pki.client(house.pki.path(), Some(who));
    let accepted = |e: &DoorEvent| match e {
        DoorEvent::AuthSucceeded { identity } => {
            Some((identity.common_name().to_owned(), identity.accepted()))
        }
        _ => None,
    };
    let begin = Instant::now();
    let early = TcpStream::connect(house.address).await.unwrap();
    let _late = connect(config("bob"), house.address).await.unwrap();
    let (bob, late) = house.memory.wait("AuthSucceeded", accepted).await;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config("alice")));
    let _early = connector.connect(name, early).await.unwrap();
    let (alice, early) = house.memory.wait("AuthSucceeded", accepted).await;
    assert_eq!((bob.as_str(), alice.as_str()), ("bob", "alice"));
    assert!(begin < early && early < late && late < Instant::now());
}

#[tokio::test]
async fn openssl_is_served_too() {
    let house = usual().await;
    let (dir, port) = (house.pki.path().to_owned(), house.address.port());
    let answer = tokio::task::spawn_blocking(move || {
        crate::testing::run(
            &dir,
            &format!(
                "printf 'GET /who HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n' | timeout 8 openssl s_client -quiet -ign_eof \
                 -verify_return_error -CAfile ca.pem -cert bob.pem -key bob.key.pem -connect 127.0.0.1:{port} 2>/dev/null"
            ),
        )
    })
    .await
    .unwrap();
    assert!(answer.ends_with("bob"), "{answer}");
}

async fn websocket(house: &House, name: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
    let config = house.pki.client(house.pki.path(), Some(name));
    let mut stream = connect(config, house.address).await.unwrap();
    let request = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

#[tokio::test]
async fn a_removed_address_loses_its_websocket_at_once() {
    let house = usual().await;
    let mut socket = websocket(&house, "alice").await;
    house.door.allow_list().store(AllowList::deny_all());
    assert!(rest(&mut socket).await.is_empty());
    let closed = |e: &DoorEvent| match e {
        DoorEvent::ConnectionsClosed { identities, .. } => Some(identities.len()),
        _ => None,
    };
    assert_eq!(house.memory.wait("ConnectionsClosed", closed).await, 1);
    house.door.0.registry.empty().await;
}

#[tokio::test]
async fn a_change_that_no_listener_saw_is_seen_by_the_next_one() {
    let house = usual().await;
    let mut socket = websocket(&house, "alice").await;
    // The listener goes, as when the port is changed, and the list is changed before there is another one.
    house.stop.cancel();
    while TcpStream::connect(house.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    house.door.allow_list().store(AllowList::deny_all());
    let listener = house.door.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (door, stop) = (house.door.clone(), CancellationToken::new());
    let until = stop.clone();
    tokio::spawn(async move { door.serve(listener, router(), until).await });
    assert!(rest(&mut socket).await.is_empty());
    stop.cancel();
}

#[tokio::test]
async fn a_change_while_a_connection_is_let_in_is_not_missed() {
    let house = usual().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, address) = listener.accept().await.unwrap();
    // It was permitted a moment ago; whoever closes what is not permitted any more did not find it.
    house.door.allow_list().store(AllowList::deny_all());
    house.door.take_in(stream, address, &router());
    assert_eq!(house.door.open_connections(), 0);
    assert!(rest(&mut client).await.is_empty());
}

#[tokio::test]
async fn a_revoked_certificate_loses_its_connections_and_nobody_else_does() {
    let house = usual().await;
    let mut alice = websocket(&house, "alice").await;
    let config = house.pki.client(house.pki.path(), Some("bob"));
    let mut bob = connect(config, house.address).await.unwrap();
    house
        .memory
        .wait("bob", |e| match e {
            DoorEvent::AuthSucceeded { identity } if identity.common_name() == "bob" => Some(()),
            _ => None,
        })
        .await;
    pki::write_crl(house.pki.path(), &["alice".to_owned()]).unwrap();
    assert_eq!(house.door.swap_tls(house.pki.tls(TlsOptions::default())), 1);
    assert!(rest(&mut alice).await.is_empty());
    assert!(ask(&mut bob, "/who").await.ends_with("bob"));
    let mut again = connect(house.pki.client(house.pki.path(), Some("alice")), house.address).await.unwrap();
    assert!(ask_or_nothing(&mut again).await.is_empty());
}

async fn ask_or_nothing(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) -> Vec<u8> {
    drop(stream.write_all(b"GET /who HTTP/1.1\r\nHost: a\r\n\r\n").await);
    rest(stream).await
}

#[tokio::test]
async fn unfinished_handshakes_do_not_starve_a_client() {
    let settings =
        DoorSettings { max_handshakes: 4, max_handshakes_per_address: 64, ..DoorSettings::default() };
    let house = open(Pki::new(), settings, TlsOptions::default(), "127.0.0.1").await;
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(TcpStream::connect(house.address).await.unwrap());
    }
    let mut stream = connect(house.pki.client(house.pki.path(), Some("alice")), house.address).await.unwrap();
    assert!(ask(&mut stream, "/who").await.ends_with("alice"));
}

#[tokio::test]
async fn of_an_identity_with_too_many_connections_the_longest_wait_ends() {
    let settings = DoorSettings { max_connections_per_identity: 3, ..DoorSettings::default() };
    let house = open(Pki::new(), settings, TlsOptions::default(), "127.0.0.1").await;
    let overloads = || house.memory.count(|e| matches!(e, DoorEvent::Overload { .. }));
    let mut bob = begin(&house, "bob", b"GET /who HTTP/1.1\r\nHost: a\r\nX-").await;
    let mut stream = websocket(&house, "alice").await;
    let mut kept = begin(&house, "alice", b"").await;
    known(&house, 3).await;
    let mut slow = begin(&house, "alice", b"GET /who HTTP/1.1\r\nHost: a\r\nX-").await;
    known(&house, 4).await;
    // It is older, but has waited for less time than the one that asked nothing yet.
    kept.write_all(b"GET /who HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"alice") {
        answer.push(kept.read_u8().await.unwrap());
    }
    let mut fresh = begin(&house, "alice", b"").await;
    assert!(rest(&mut slow).await.is_empty());
    assert!(ask(&mut kept, "/who").await.ends_with("alice"));
    assert!(ask(&mut fresh, "/who").await.ends_with("alice"));
    assert_eq!(overloads(), 1);

    // What does not wait does not give way.
    remain(&house, 2).await;
    let mut more = [websocket(&house, "alice").await, websocket(&house, "alice").await];
    let config = house.pki.client(house.pki.path(), Some("alice"));
    let mut refused = connect(config, house.address).await.unwrap();
    assert!(ask_or_nothing(&mut refused).await.is_empty());
    for socket in more.iter_mut().chain([&mut stream]) {
        // One byte of text, masked by nothing, there and back.
        socket.write_all(b"\x81\x81\0\0\0\0x").await.unwrap();
        let mut echo = [0; 3];
        socket.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"\x81\x01x");
    }
    // Another identity has nothing to do with it.
    bob.write_all(b"a: b\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(rest(&mut bob).await.ends_with(b"bob"));
}

#[tokio::test]
async fn whoever_reads_an_answer_keeps_the_connection() {
    let settings = DoorSettings { max_connections_per_identity: 2, ..DoorSettings::default() };
    let house = open(Pki::new(), settings, TlsOptions::default(), "127.0.0.1").await;
    let mut reader = begin(&house, "alice", ENDLESS).await;
    let mut idle = begin(&house, "alice", b"").await;
    known(&house, 2).await;
    // More than the buffers of both sides hold, so that some of it is sent while it is read.
    let mut bytes = vec![0; 16 << 20];
    reader.read_exact(&mut bytes).await.unwrap();
    let mut third = begin(&house, "alice", b"").await;
    assert!(rest(&mut idle).await.is_empty());
    reader.read_exact(&mut bytes).await.unwrap();
    assert!(ask(&mut third, "/who").await.ends_with("alice"));
}

#[tokio::test]
async fn one_address_with_one_certificate_can_always_come_again() {
    let house = usual().await;
    let bound = DoorSettings::default().max_connections_per_identity;
    let mut idle = Vec::new();
    for n in 1..=bound {
        idle.push(begin(&house, "alice", b"").await);
        // One after the other: the number of handshakes is bounded as well.
        known(&house, n).await;
    }
    let mut one_more = begin(&house, "alice", b"").await;
    assert!(ask(&mut one_more, "/who").await.ends_with("alice"));
    assert!(rest(idle.first_mut().unwrap()).await.is_empty());
    remain(&house, bound - 1).await;
}

/// Waits until no more than so many connections are open.
async fn remain(house: &House, count: usize) {
    let waiting = async {
        while house.door.open_connections() > count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the others are closed");
}

/// Waits until so many connections have shown who they are.
async fn known(house: &House, count: usize) {
    let waiting = async {
        while house.memory.count(|e| matches!(e, DoorEvent::AuthSucceeded { .. })) < count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("they are known");
}

#[tokio::test]
async fn draining_finishes_what_is_in_flight_and_closes_the_rest() {
    let started = Arc::new(tokio::sync::Notify::new());
    let release = Arc::new(tokio::sync::Notify::new());
    let house = usual().await;
    let (tell, wait) = (Arc::clone(&started), Arc::clone(&release));
    let slow = Router::new().route(
        "/slow",
        get(move || async move {
            tell.notify_one();
            wait.notified().await;
            "done"
        }),
    );
    let listener = house.door.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let (door, until) = (house.door.clone(), stop.clone());
    let serving = tokio::spawn(async move { door.serve(listener, slow, until).await });
    let mut busy = connect(house.pki.client(house.pki.path(), Some("alice")), address).await.unwrap();
    busy.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    started.notified().await;
    let mut socket = websocket(&house, "bob").await;
    stop.cancel();
    house.stop.cancel();
    serving.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the listener is gone");
    let answer = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&answer);
    let reader = tokio::spawn(async move {
        let seen = rest(&mut busy).await;
        *kept.lock().unwrap() = seen;
    });
    release.notify_one();
    house.door.drain(Duration::from_millis(500)).await;
    reader.await.unwrap();
    let answer = String::from_utf8(answer.lock().unwrap().clone()).unwrap();
    assert!(answer.ends_with("done"), "{answer}");
    assert!(rest(&mut socket).await.is_empty());
    house.door.0.registry.empty().await;
    assert_eq!(house.memory.count(|e| matches!(e, DoorEvent::AuthFailed { .. })), 0);
}

/// Waits until nothing is open.
async fn emptied(house: &House) {
    let empty = house.door.0.registry.empty();
    tokio::time::timeout(Duration::from_secs(20), empty).await.expect("everything is closed");
}

async fn begin(house: &House, name: &str, bytes: &[u8]) -> TlsClient {
    let config = house.pki.client(house.pki.path(), Some(name));
    let mut stream = connect(config, house.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

type TlsClient = tokio_rustls::client::TlsStream<TcpStream>;

const ENDLESS: &[u8] = b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn who_is_shut_out_loses_a_stream_in_mid_flight_and_an_idle_connection() {
    for by_address in [true, false] {
        let house = usual().await;
        // One that reads, one that does not, one that is idle after an answer, one that has not asked yet.
        let mut reading = begin(&house, "alice", ENDLESS).await;
        let mut first = [0; 100_000];
        reading.read_exact(&mut first).await.unwrap();
        let mut blocked = begin(&house, "alice", ENDLESS).await;
        let mut idle = begin(&house, "alice", b"GET /who HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"alice") {
            answer.push(idle.read_u8().await.unwrap());
        }
        let mut silent = begin(&house, "alice", b"").await;
        let mut signed_in = 0;
        while signed_in < 4 {
            let success = |e: &DoorEvent| matches!(e, DoorEvent::AuthSucceeded { .. }).then_some(());
            house.memory.wait("AuthSucceeded", success).await;
            signed_in += 1;
        }
        let began = Instant::now();
        if by_address {
            house.door.allow_list().store(AllowList::deny_all());
        } else {
            pki::write_crl(house.pki.path(), &["alice".to_owned()]).unwrap();
            assert_eq!(house.door.swap_tls(house.pki.tls(TlsOptions::default())), 4);
        }
        emptied(&house).await;
        let took = began.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
        for stream in [&mut reading, &mut blocked, &mut idle, &mut silent] {
            rest(stream).await;
        }
    }
}

#[tokio::test]
async fn slow_clients_are_cut_off() {
    let short = Duration::from_millis(300);
    let settings = DoorSettings { idle_timeout: short, unread_timeout: short, ..DoorSettings::default() };
    let house = open(Pki::new(), settings, TlsOptions::default(), "127.0.0.1").await;
    // Half a header block; nothing at all; nothing after the first answer; an answer that is never read.
    let mut half = begin(&house, "alice", b"GET /who HTTP/1.1\r\nHost: a\r\nX-").await;
    let mut nothing = begin(&house, "alice", b"").await;
    let mut kept = begin(&house, "alice", b"GET /who HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let _unread = begin(&house, "bob", ENDLESS).await;
    assert!(rest(&mut half).await.is_empty());
    assert!(rest(&mut nothing).await.is_empty());
    assert!(rest(&mut kept).await.ends_with(b"alice"));
    emptied(&house).await;
}

#[tokio::test]
async fn ipv6_is_refused_and_ipv4_in_ipv6_is_ipv4() {
    let house = usual().await;
    let Ok(listener) = house.door.bind("[::]:0".parse().unwrap()).await else {
        return println!("there is no IPv6 here");
    };
    let port = listener.local_addr().unwrap().port();
    let (door, stop) = (house.door.clone(), house.stop.clone());
    tokio::spawn(async move { door.serve(listener, router(), stop).await });
    let mapped = SocketAddr::from(([127, 0, 0, 1], port));
    let mut alice = connect(house.pki.client(house.pki.path(), Some("alice")), mapped).await.unwrap();
    assert!(ask(&mut alice, "/who").await.ends_with("alice"));
    let mut stream = TcpStream::connect(format!("[::1]:{port}")).await.unwrap();
    assert!(rest(&mut stream).await.is_empty());
    let denied = |e: &DoorEvent| match e {
        DoorEvent::Denied { address, .. } => Some(address.is_ipv6()),
        _ => None,
    };
    assert!(house.memory.wait("Denied", denied).await);
}

/// A stream that keeps a copy of what is sent.
struct Tapped {
    stream: TcpStream,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl tokio::io::AsyncRead for Tapped {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Tapped {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        let written = std::pin::Pin::new(&mut self.stream).poll_write(cx, buf);
        if let std::task::Poll::Ready(Ok(count)) = &written {
            self.sent.lock().unwrap().extend_from_slice(&buf[..*count]);
        }
        written
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn what_was_recorded_of_a_client_is_worth_nothing() {
    let house = usual().await;
    let sent = Arc::new(Mutex::new(Vec::new()));
    let stream = TcpStream::connect(house.address).await.unwrap();
    let tapped = Tapped { stream, sent: Arc::clone(&sent) };
    let name = rustls_pki_types::ServerName::IpAddress(house.address.ip().into());
    let config = Arc::new(house.pki.client(house.pki.path(), Some("alice")));
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&config));
    let mut alice = connector.connect(name, tapped).await.unwrap();
    assert!(ask(&mut alice, "/who").await.ends_with("alice"));
    let success = |e: &DoorEvent| matches!(e, DoorEvent::AuthSucceeded { .. }).then_some(());
    house.memory.wait("AuthSucceeded", success).await;
    let sent = sent.lock().unwrap().clone();

    // All at once, record by record as the server answers, and the hello twice.
    let mut ends = Vec::new();
    let mut at = 0;
    while let Some([_, _, _, high, low]) = sent.get(at..at + 5) {
        at += 5 + usize::from(u16::from_be_bytes([*high, *low]));
        ends.push(at);
    }
    assert!(ends.len() > 3 && at == sent.len(), "{ends:?}");
    for pieces in [vec![sent.len()], ends.clone(), vec![ends[0]]] {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        let mut from = 0;
        for end in pieces {
            if stream.write_all(&sent[from..end]).await.is_err() {
                break;
            }
            from = end;
            tokio::task::yield_now().await;
        }
        if from == ends[0] {
            drop(stream.write_all(&sent[..from]).await);
        }
        let seen = rest(&mut stream).await;
        assert!(seen.len() < 1200, "a server flight at most: {}", seen.len());
        let failed = |e: &DoorEvent| matches!(e, DoorEvent::AuthFailed { .. }).then_some(());
        house.memory.wait("AuthFailed", failed).await;
    }
    assert_eq!(house.memory.count(|e| matches!(e, DoorEvent::AuthSucceeded { .. })), 0);
    // Nor can a session be resumed: there are no tickets.
    let mut again = connect((*config).clone(), house.address).await.unwrap();
    assert!(ask(&mut again, "/who").await.ends_with("alice"));
    assert_eq!(again.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
}

/// How many reloads; the full figure takes minutes.
fn reloads() -> usize {
    if std::env::var_os("LINUX_PATCH_EXHAUSTIVE").is_some_and(|v| v == "1") { 10_000 } else { 300 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reload_of_the_list_lets_anybody_slip_in_or_out() {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    let pki = Pki::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("whitelist.yaml");
    // Every list has 127.0.0.1, now as an address and now in a network, and none has 127.0.0.3.
    let lists = [
        "allowed_ips: [127.0.0.1, 10.0.0.0/8, 192.168.1.1]",
        "allowed_ips: [192.168.0.0/16, 127.0.0.0/31]",
        "allowed_ips: [127.0.0.1/32, 127.0.0.4/30]",
    ];
    std::fs::write(&file, lists[0]).unwrap();
    let memory = Memory::new();
    let observer = Arc::clone(&memory) as Arc<dyn DoorObserver>;
    let watcher = crate::allowlist::AllowListWatcher::start(&file, Arc::clone(&observer)).await;
    let door = Door::new(DoorSettings::default(), pki.tls(TlsOptions::default()), watcher.list(), observer);
    let listener = door.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let (serving, until) = (door.clone(), stop.clone());
    tokio::spawn(async move { serving.serve(listener, router(), until).await });
    let house = House { pki, door, address, memory, stop };

    let done = Arc::new(AtomicBool::new(false));
    let (let_in, kept_out) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut socket = websocket(&house, "bob").await;
    let config = house.pki.client(house.pki.path(), Some("alice"));
    let mut work = tokio::task::JoinSet::new();
    let (over, count, alice) = (Arc::clone(&done), Arc::clone(&let_in), config.clone());
    work.spawn(async move {
        while !over.load(Ordering::Relaxed) {
            let mut stream = connect(alice.clone(), address).await.expect("let in");
            assert!(ask(&mut stream, "/who").await.ends_with("alice"));
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let (over, count) = (Arc::clone(&done), Arc::clone(&kept_out));
    work.spawn(async move {
        while !over.load(Ordering::Relaxed) {
            let from = tokio::net::TcpSocket::new_v4().unwrap();
            from.bind("127.0.0.3:0".parse().unwrap()).unwrap();
            let mut stream = from.connect(address).await.unwrap();
            drop(stream.write_all(HELLO_12).await);
            assert!(rest(&mut stream).await.is_empty());
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let changed = |e: &DoorEvent| matches!(e, DoorEvent::AllowListChanged { .. }).then_some(());
    house.memory.wait("the first list", changed).await;
    let mut round = 0;
    // Some must have been tried, however slow the machine is.
    while round < reloads() || let_in.load(Ordering::Relaxed) <= 10 || kept_out.load(Ordering::Relaxed) <= 10
    {
        round += 1;
        let new = dir.path().join("new");
        std::fs::write(&new, lists[round % lists.len()]).unwrap();
        std::fs::rename(&new, &file).unwrap();
        assert_eq!(watcher.reload().await.problem, None);
        house.memory.wait("AllowListChanged", changed).await;
    }
    done.store(true, Ordering::Relaxed);
    while let Some(ended) = work.join_next().await {
        ended.unwrap();
    }
    let (let_in, kept_out) = (let_in.load(Ordering::Relaxed), kept_out.load(Ordering::Relaxed));
    println!("{round} reloads, {let_in} let in, {kept_out} kept out");
    let lost = house.memory.count(|e| matches!(e, DoorEvent::ConnectionsClosed { .. }));
    assert_eq!(lost, 0, "connections of a client that stays on the list were closed");
    // The WebSocket that was open all the time still is.
    socket.write_all(&[0x89, 0x80, 0, 0, 0, 0]).await.unwrap();
    socket.read_exact(&mut [0; 2]).await.unwrap();
}

/// How many changes the test under load makes.
fn changes_under_load() -> usize {
    std::env::var("LINUX_PATCH_CHANGES").ok().and_then(|n| n.parse().ok()).unwrap_or(50)
}

/// Asks over one connection until told to stop; how many answers came.
async fn keep_asking(
    config: rustls::ClientConfig,
    address: SocketAddr,
    stop: CancellationToken,
    reconnects: bool,
) -> usize {
    let mut answers = 0;
    while !stop.is_cancelled() {
        let mut stream = connect(config.clone(), address).await.expect("let in");
        loop {
            stream.write_all(b"GET /who HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("still connected");
            let mut answer = Vec::new();
            while !answer.ends_with(b"alice") {
                let mut chunk = [0; 512];
                let read = stream.read(&mut chunk).await.expect("answered");
                assert!(read > 0, "closed after {answers} answers: {}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&chunk[..read]);
            }
            answers += 1;
            if reconnects || stop.is_cancelled() {
                break;
            }
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_in_a_row_under_load_lose_no_request_of_who_stays_allowed() {
    let house = usual().await;
    let client = |name| house.pki.client(house.pki.path(), Some(name));
    let done = CancellationToken::new();
    let clients: Vec<_> = [false, false, true, true]
        .map(|reconnects| {
            let until = done.clone();
            tokio::spawn(keep_asking(client("alice"), house.address, until, reconnects))
        })
        .into();
    let mut serving = house.stop.clone();
    for i in 0..changes_under_load() {
        // Another listener, by turns for one address and for all of them.
        let ip = if i % 2 == 0 { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
        let listener = house.door.bind(SocketAddr::from((ip, house.address.port()))).await.unwrap();
        let next = CancellationToken::new();
        let (door, until) = (house.door.clone(), next.clone());
        tokio::spawn(async move { door.serve(listener, router(), until).await });
        std::mem::replace(&mut serving, next).cancel();
        // Who is let in: bob by turns, alice always.
        let others = if i % 2 == 0 { "10.0.0.0/8" } else { "192.0.2.1" };
        let list = AllowList::parse(&format!("allowed_ips: [127.0.0.1, {others}]"), "t").unwrap();
        house.door.allow_list().store(list);
        let revoked = if i % 2 == 0 { vec!["bob".to_owned()] } else { Vec::new() };
        pki::write_crl(house.pki.path(), &revoked).unwrap();
        house.door.swap_tls(house.pki.tls(TlsOptions::default()));
        let only_alice: crate::tls::Allowed =
            Arc::new(|facts: &CertificateFacts| facts.common_name == "alice");
        let tls = (*house.door.tls()).clone();
        tls.set_allowed((i % 3 == 0).then_some(only_alice));
        house.door.swap_tls(tls);
    }
    done.cancel();
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    serving.cancel();
}

#[tokio::test]
async fn who_is_no_longer_known_to_the_program_loses_connections_at_once() {
    let house = usual().await;
    let mut alice = websocket(&house, "alice").await;
    let mut bob = websocket(&house, "bob").await;
    let tls = (*house.door.tls()).clone();
    tls.set_allowed(Some(Arc::new(|facts: &CertificateFacts| facts.common_name == "bob")));
    assert_eq!(house.door.swap_tls(tls), 1);
    assert!(rest(&mut alice).await.is_empty());
    // A text, masked with zeros, comes back.
    bob.write_all(&[0x81, 0x81, 0, 0, 0, 0, b'x']).await.unwrap();
    let mut echo = [0; 3];
    bob.read_exact(&mut echo).await.unwrap();
    assert_eq!(echo, [0x81, 1, b'x']);
}
