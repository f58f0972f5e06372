//! The load client: HTTP/1.1 and WebSocket over mutual TLS 1.3, with a clock on every answer. It does as little as a
//! client can, so that what is measured is the server.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Longer than any answer takes.
const LIMIT: Duration = Duration::from_secs(120);

/// A server and what one needs to be let in.
#[derive(Clone)]
pub(super) struct Target {
    connector: TlsConnector,
    address: SocketAddr,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    /// The status code.
    pub(super) status: u16,
    head: String,
    /// The body.
    pub(super) body: Vec<u8>,
    /// From the first byte of the request to the last of the answer, in milliseconds.
    pub(super) took: f64,
}

impl Reply {
    /// A header's value.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body as JSON.
    pub(super) fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).context("the answer is no JSON")
    }
}

impl Target {
    /// A server whose certificate, and the client `alice`'s, come from `pki`.
    pub(super) fn new(ip: Ipv4Addr, port: u16, pki: &Path) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&pki.join("ca.pem"))? {
            roots.add(certificate).context("the CA cannot be used")?;
        }
        let key = PrivateKeyDer::from_pem_file(pki.join("alice.key.pem")).context("no client key")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("TLS 1.3 cannot be had")?
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&pki.join("alice.pem"))?, key)
            .context("the client certificate cannot be used")?;
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { connector: Arc::new(config).into(), address: (ip, port).into() })
    }

    /// Opens a connection, from the address `from` if one is given.
    pub(super) async fn connect(&self, from: Option<Ipv4Addr>) -> Result<Connection> {
        let socket = TcpSocket::new_v4()?;
        if let Some(from) = from {
            socket.bind((IpAddr::V4(from), 0).into()).context("cannot use the address")?;
        }
        let stream = tokio::time::timeout(LIMIT, socket.connect(self.address)).await??;
        stream.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        let stream = tokio::time::timeout(LIMIT, self.connector.connect(name, stream)).await??;
        Ok(Connection { stream, buffer: Vec::new() })
    }

    /// Opens a connection, asks once, and closes it.
    pub(super) async fn once(&self, path: &str) -> Result<Reply> {
        self.connect(None).await?.get(path, "").await
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read =
        CertificateDer::pem_file_iter(path).with_context(|| format!("cannot read {}", path.display()))?;
    read.collect::<Result<_, _>>().with_context(|| format!("{} holds no certificate", path.display()))
}

/// An open connection.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    /// What was read and is not used yet.
    buffer: Vec<u8>,
}

impl Connection {
    /// Asks for `path`; `headers` are whole lines, each with its end.
    pub(super) async fn get(&mut self, path: &str, headers: &str) -> Result<Reply> {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nHost: bench\r\n{headers}\r\n"), b"").await
    }

    /// Sends JSON by POST.
    pub(super) async fn post(&mut self, path: &str, headers: &str, body: &str) -> Result<Reply> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        self.exchange(&head, body.as_bytes()).await
    }

    async fn exchange(&mut self, head: &str, body: &[u8]) -> Result<Reply> {
        let message = [head.as_bytes(), body].concat();
        let begun = Instant::now();
        self.stream.write_all(&message).await.context("the request cannot be sent")?;
        self.stream.flush().await?;
        let head = self.head().await?;
        let status: u16 =
            head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).context("no status")?;
        let mut reply = Reply { status, head, body: Vec::new(), took: 0.0 };
        if !matches!(status, 101 | 204 | 304) {
            let length = reply.header("content-length").and_then(|text| text.parse().ok());
            let length: usize = length.context("an answer without a length")?;
            self.fill(length).await?;
            reply.body = self.take(length);
        }
        reply.took = begun.elapsed().as_secs_f64() * 1e3;
        Ok(reply)
    }

    async fn head(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.take(end + 4);
                return String::from_utf8(head).context("the head of an answer is no text");
            }
            ensure!(self.buffer.len() < 65536, "the head of an answer does not end");
            self.fill(self.buffer.len() + 1).await?;
        }
    }

    /// Reads until there are `length` bytes.
    async fn fill(&mut self, length: usize) -> Result<()> {
        self.buffer.reserve(length.saturating_sub(self.buffer.len()).max(16 * 1024));
        while self.buffer.len() < length {
            let read = tokio::time::timeout(LIMIT, self.stream.read_buf(&mut self.buffer)).await;
            ensure!(read.context("no answer")?? > 0, "the server closed the connection");
        }
        Ok(())
    }

    /// The first `length` bytes, which must be there.
    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(length);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// Makes it a WebSocket.
    pub(super) async fn upgrade(mut self, path: &str) -> Result<Socket> {
        let headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let reply = self.get(path, headers).await?;
        ensure!(reply.status == 101, "no WebSocket but status {}", reply.status);
        Ok(Socket(self))
    }
}

/// An open WebSocket.
pub(super) struct Socket(Connection);

impl Socket {
    /// Sends a text of at most 125 bytes, masked with zeros.
    pub(super) async fn send(&mut self, text: &str) -> Result<()> {
        let length = u8::try_from(text.len()).ok().filter(|length| *length < 126).context("too long")?;
        let frame = [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat();
        self.0.stream.write_all(&frame).await?;
        Ok(self.0.stream.flush().await?)
    }

    /// The next text and when it was there.
    pub(super) async fn next(&mut self) -> Result<(SystemTime, Vec<u8>)> {
        loop {
            self.0.fill(2).await?;
            let (kind, short) = (self.0.buffer[0] & 0x0f, self.0.buffer[1] & 0x7f);
            let wide = match short {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            self.0.fill(2 + wide).await?;
            let length = match wide {
                0 => usize::from(short),
                _ => self.0.buffer[2..2 + wide].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
            };
            self.0.fill(2 + wide + length).await?;
            let at = SystemTime::now();
            let frame = self.0.take(2 + wide + length).split_off(2 + wide);
            match kind {
                1 => return Ok((at, frame)),
                8 => bail!("the server closed the WebSocket: {}", String::from_utf8_lossy(&frame)),
                _ => {}
            }
        }
    }
}
