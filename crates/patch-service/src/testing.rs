//! Fixtures for this crate's tests: a CA in a directory, an observer that remembers, a client.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustls::{ClientConfig, RootCertStore, crypto::SupportedKxGroup, version::TLS13};
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    certificate::PemInput,
    event::{DoorEvent, DoorObserver},
    pki::{self, Existing},
    tls::{LoadedTls, TlsOptions, TlsSource},
};

/// An observer that remembers, and lets a test wait.
#[derive(Debug)]
pub(crate) struct Memory {
    events: Mutex<Vec<DoorEvent>>,
    count: watch::Sender<usize>,
}

impl DoorObserver for Memory {
    fn observe(&self, event: DoorEvent) {
        self.events.lock().unwrap().push(event);
        self.count.send_modify(|count| *count += 1);
    }
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { events: Mutex::default(), count: watch::Sender::new(0) })
    }

    /// Waits until an event passes the test, and takes it out.
    pub(crate) async fn wait<T>(&self, what: &str, test: impl Fn(&DoorEvent) -> Option<T>) -> T {
        let mut changes = self.count.subscribe();
        let search = async {
            loop {
                let found = {
                    let mut events = self.events.lock().unwrap();
                    let position = events.iter().position(|event| test(event).is_some());
                    position.map(|i| test(&events.remove(i)).unwrap())
                };
                if let Some(found) = found {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(10), search).await;
        found.unwrap_or_else(|_| panic!("no {what} in {:?}", self.events.lock().unwrap()))
    }

    pub(crate) fn count(&self, test: impl Fn(&DoorEvent) -> bool) -> usize {
        self.events.lock().unwrap().iter().filter(|event| test(event)).count()
    }
}

/// A CA with a server and clients `alice` and `bob`.
pub(crate) struct Pki {
    pub(crate) dir: TempDir,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clients = ["alice".to_owned(), "bob".to_owned()];
        let ip = [std::net::IpAddr::from([127, 0, 0, 1])];
        pki::init(dir.path(), &["localhost".to_owned()], &ip, &clients, Existing::Keep).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn source(&self, with_crl: bool) -> TlsSource {
        let at = |name: &str| self.path().join(name);
        let crl = at("crl.pem");
        TlsSource::read(
            &at("ca.pem"),
            &at("server.pem"),
            &at("server.key.pem"),
            with_crl.then_some(crl.as_path()),
        )
        .unwrap()
    }

    pub(crate) fn tls(&self, options: TlsOptions) -> LoadedTls {
        LoadedTls::load(&self.source(true), options).unwrap()
    }

    /// A client of `name`, from this or another directory, that trusts this CA.
    pub(crate) fn client(&self, from: &Path, name: Option<&str>) -> ClientConfig {
        self.client_with_groups(from, name, rustls::crypto::aws_lc_rs::default_provider().kx_groups)
    }

    /// The same with other key exchange groups; a share is sent of the first.
    pub(crate) fn client_with_groups(
        &self,
        from: &Path,
        name: Option<&str>,
        kx_groups: Vec<&'static dyn SupportedKxGroup>,
    ) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::CryptoProvider {
            kx_groups,
            ..rustls::crypto::aws_lc_rs::default_provider()
        });
        let mut roots = RootCertStore::empty();
        for der in PemInput::read(&self.path().join("ca.pem")).unwrap().certificates().unwrap() {
            roots.add(der).unwrap();
        }
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots);
        match name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain =
                    PemInput::read(&from.join(format!("{name}.pem"))).unwrap().certificates().unwrap();
                let key =
                    PemInput::read(&from.join(format!("{name}.key.pem"))).unwrap().private_key().unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        }
    }
}

pub(crate) async fn connect(
    config: ClientConfig,
    address: SocketAddr,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Runs a command that must succeed.
#[expect(
    clippy::disallowed_methods,
    reason = "the second TLS implementation that these tests hold ours against"
)]
pub(crate) fn run(directory: &Path, command: &str) -> String {
    let output = std::process::Command::new("bash")
        .args(["-e", "-c", command])
        .current_dir(directory)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
