//! An agent faked at the protocol: real TLS with client certificates, HTTP/1.1 and WebSocket frames by hand, and a
//! script that says what is answered.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use futures_util::{SinkExt, StreamExt};
use patch_client::{Client, ClientConfig};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

/// A CA, and certificates of it as files.
pub(crate) struct Pki {
    pub(crate) dir: tempfile::TempDir,
    ca: CertificateParams,
    ca_key: KeyPair,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::CommonName, "test CA");
        let ca_key = KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let pki = Self { dir, ca, ca_key };
        pki.leaf("server", Some(ExtendedKeyUsagePurpose::ServerAuth), |_| {});
        pki.leaf("client", Some(ExtendedKeyUsagePurpose::ClientAuth), |_| {});
        pki
    }

    /// Makes `NAME.pem` and `NAME.key.pem`.
    pub(crate) fn leaf(
        &self,
        name: &str,
        usage: Option<ExtendedKeyUsagePurpose>,
        change: impl Fn(&mut CertificateParams),
    ) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.extend(usage);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.ca, &self.ca_key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key.pem")), key.serialize_pem()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config(&self, port: u16) -> ClientConfig {
        let address = format!("localhost:{port}").parse().unwrap();
        ClientConfig::new(address, self.path("ca.pem"), self.path("client.pem"), self.path("client.key.pem"))
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_file(self.path("server.pem")).unwrap()],
                PrivateKeyDer::from_pem_file(self.path("server.key.pem")).unwrap(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The number of the connection over which it came.
    pub(crate) connection: usize,
    pub(crate) line: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// What is done about a request.
pub(crate) enum Reply {
    /// An HTTP answer.
    Http(u16, String),
    /// The connection is closed without a word.
    Close,
    /// A WebSocket: these messages after the subscription, then the connection is dropped, or kept if `stay`.
    WebSocket { messages: Vec<String>, stay: bool },
}

/// A fake agent on a port of its own.
pub(crate) struct Fake {
    pub(crate) pki: Pki,
    pub(crate) port: u16,
    requests: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    /// `script` is called with each request and the number of requests before it.
    pub(crate) async fn start(script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        let pki = Pki::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = pki.acceptor();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, script) = (Arc::clone(&requests), Arc::new(script));
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((tcp, _)) = listener.accept().await else { break };
                let (acceptor, seen, script) = (acceptor.clone(), Arc::clone(&seen), Arc::clone(&script));
                tokio::spawn(async move {
                    if let Ok(mut tls) = acceptor.accept(tcp).await {
                        while let Some(request) = read_request(&mut tls, connection).await {
                            let number = {
                                let mut seen = seen.lock().unwrap();
                                seen.push(request.clone());
                                seen.len() - 1
                            };
                            match script(&request, number) {
                                Reply::Http(status, body) => write_answer(&mut tls, status, &body).await,
                                Reply::Close => return,
                                Reply::WebSocket { messages, stay } => {
                                    return web_socket(tls, &request, messages, stay).await;
                                }
                            }
                        }
                    }
                });
            }
        });
        Self { pki, port, requests }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.pki.config(self.port)).unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.requests.lock().unwrap().clone()
    }
}

async fn read_request(tls: &mut TlsStream<TcpStream>, connection: usize) -> Option<Seen> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(tls.read_u8().await.ok()?);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, length)| length.trim().parse().unwrap());
    let mut body = vec![0; length];
    tls.read_exact(&mut body).await.ok()?;
    let line = head.lines().next().unwrap().to_owned();
    Some(Seen { connection, line, head, body: String::from_utf8(body).unwrap() })
}

async fn write_answer(tls: &mut TlsStream<TcpStream>, status: u16, body: &str) {
    let answer = format!(
        "HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    tls.write_all(answer.as_bytes()).await.unwrap();
    tls.flush().await.unwrap();
}

async fn web_socket(mut tls: TlsStream<TcpStream>, request: &Seen, messages: Vec<String>, stay: bool) {
    let key = request
        .head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
        .map(|(_, key)| derive_accept_key(key.as_bytes()))
        .unwrap();
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {key}\r\n\r\n"
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut socket = WebSocketStream::from_raw_socket(tls, Role::Server, None).await;
    let subscription = socket.next().await.unwrap().unwrap();
    assert!(subscription.into_text().unwrap().contains("subscribe"));
    for message in messages {
        if socket.send(Message::text(message)).await.is_err() {
            return;
        }
    }
    if stay {
        while let Some(Ok(_)) = socket.next().await {}
    }
}
