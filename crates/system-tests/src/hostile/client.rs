//! A client that waits for nothing that it is not told to: good ones, and ones that stop in the middle.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketType};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};

/// An open connection.
pub type Open = StreamOwned<ClientConnection, TcpStream>;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Head and body.
    pub text: String,
}

/// Somebody with a certificate of the CA.
#[derive(Debug, Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    /// Where the agent is.
    pub address: SocketAddr,
}

/// A TCP connection from one of the machine's addresses.
///
/// # Errors
/// When it is refused.
pub fn tcp(from: Ipv4Addr, to: SocketAddr) -> Result<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddr::from((from, 0)))?;
    rustix::net::connect(&socket, &to).context("cannot connect")?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

impl Client {
    /// alice, as the directory's certificates have her.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn new(address: SocketAddr, pki: &Path) -> Result<Self> {
        let chain = |file: &str| -> Result<Vec<CertificateDer<'static>>> {
            Ok(CertificateDer::pem_file_iter(pki.join(file))?.collect::<Result<_, _>>()?)
        };
        let mut roots = RootCertStore::empty();
        for certificate in chain("ca.pem")? {
            roots.add(certificate)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                chain("alice.pem")?,
                PrivateKeyDer::from_pem_file(pki.join("alice.key.pem"))?,
            )?;
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), address })
    }

    fn session(&self) -> Result<ClientConnection> {
        Ok(ClientConnection::new(Arc::clone(&self.config), ServerName::from(self.address.ip()))?)
    }

    /// The first message of a handshake, as bytes.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn hello(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.session()?.write_tls(&mut bytes)?;
        Ok(bytes)
    }

    /// A connection whose handshake is over.
    ///
    /// # Errors
    /// When it is refused.
    pub fn open(&self, from: Ipv4Addr) -> Result<Open> {
        let mut stream = tcp(from, self.address)?;
        let mut session = self.session()?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        Ok(StreamOwned::new(session, stream))
    }

    /// Opens a connection and asks once for a path below the API's prefix.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn once(&self, from: Ipv4Addr, path: &str) -> Result<Answer> {
        ask(&mut self.open(from)?, path)
    }
}

/// Asks for a path below the API's prefix on an open connection.
///
/// # Errors
/// When there is no answer.
pub fn ask(open: &mut Open, path: &str) -> Result<Answer> {
    write!(open, "GET /api/v1{path} HTTP/1.1\r\nhost: agent\r\n\r\n")?;
    open.flush()?;
    answer(open)
}

/// Reads one answer.
///
/// # Errors
/// When it is not whole.
pub fn answer(open: &mut Open) -> Result<Answer> {
    let mut bytes = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
            let length: usize = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok()
                })
                .unwrap_or_default();
            if bytes.len() >= end + 4 + length {
                let status = head.split_whitespace().nth(1).context("no status")?.parse()?;
                return Ok(Answer { status, text: String::from_utf8_lossy(&bytes).into_owned() });
            }
        }
        let read = open.read(&mut piece)?;
        ensure!(read > 0, "the connection ended after {} bytes", bytes.len());
        bytes.extend_from_slice(piece.get(..read).unwrap_or_default());
    }
}
