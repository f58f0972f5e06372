//! TLS for the audit trail's remote sink, and its settings in the sink's words.

use std::{io, net::TcpStream, path::Path, sync::Arc};

use patch_audit::{Patience, Reconfiguration, Remote, Stream, TlsConnect};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, version::TLS13};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};

use crate::config::Settings;

/// What the settings say about the audit trail's files and its remote sink.
///
/// The CA is read each time that a connection is made: a new one needs no reload, and one that is missing is told as the
/// reason why the server cannot be reached, and keeps nothing else from working.
#[must_use]
pub fn configuration(settings: &Settings) -> Reconfiguration {
    let remote = settings.remote_syslog.clone().map(|target| Remote {
        target,
        tls: Some(Arc::new(Tls { ca: settings.remote_syslog_ca.clone() })),
        patience: Patience::default(),
    });
    Reconfiguration { keep_days: Some(settings.retention_days), remote }
}

/// The largest file of CAs that is read, in bytes.
const LARGEST: u64 = 4 << 20;

/// Trusts one CA's servers, or those that the system trusts.
struct Tls {
    ca: Option<std::path::PathBuf>,
}

impl TlsConnect for Tls {
    fn connect(&self, host: &str, stream: TcpStream) -> io::Result<Box<dyn Stream>> {
        let roots = match &self.ca {
            Some(ca) => of_file(ca)?,
            None => of_system()?,
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::other(format!("{host:?} is neither a host's name nor an address")))?;
        let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        // Now, so that a server that is not trusted is told before a record is taken for sent.
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Box::new(stream))
    }
}

fn of_file(path: &Path) -> io::Result<RootCertStore> {
    let unusable =
        |why: String| io::Error::other(format!("the CA of the syslog server, {}: {why}", path.display()));
    let mut roots = RootCertStore::empty();
    let text = patch_files::read(path, LARGEST).map_err(|e| unusable(e.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|e| unusable(e.to_string()))?;
        roots.add(certificate).map_err(|e| unusable(e.to_string()))?;
    }
    if roots.is_empty() { Err(unusable("there is no certificate in it".to_owned())) } else { Ok(roots) }
}

fn of_system() -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(io::Error::other(
            "this system trusts no CA: install ca-certificates, or name the server's CA as logging.remote_syslog_ca",
        ));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead as _, BufReader, Read as _},
        net::TcpListener,
        path::PathBuf,
        sync::mpsc::{Receiver, channel},
        time::{Duration, Instant},
    };

    use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller, Options, Target};
    use rustls_pki_types::PrivatePkcs8KeyDer;

    use super::*;

    /// A server for `localhost` whose messages arrive here, and its certificate.
    fn server(dir: &Path) -> (u16, PathBuf, Receiver<String>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let ca = dir.join("syslog-ca.pem");
        fs::write(&ca, certificate.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
                loop {
                    let mut length = Vec::new();
                    if stream.read_until(b' ', &mut length).is_err() || length.is_empty() {
                        break;
                    }
                    let length: usize = std::str::from_utf8(&length).unwrap().trim().parse().unwrap();
                    let mut text = vec![0; length];
                    if stream.read_exact(&mut text).is_err()
                        || sender.send(String::from_utf8(text).unwrap()).is_err()
                    {
                        break;
                    }
                }
            }
        });
        (port, ca, receiver)
    }

    fn log(path: &Path, target: &str, ca: Option<PathBuf>) -> AuditLog {
        let mut options = Options::new("test").without_journal();
        let patience = Patience {
            settle: Duration::from_millis(50),
            first_pause: Duration::from_millis(20),
            ..Patience::default()
        };
        let target: Target = target.parse().unwrap();
        options.remote = Some(Remote { target, tls: Some(Arc::new(Tls { ca })), patience });
        AuditLog::open(path, options).unwrap()
    }

    fn event(what: &str) -> AuditEvent {
        AuditEvent::new(AuditKind::SystemChanged { what: what.to_owned() }, &Caller::local())
    }

    fn until(log: &AuditLog, what: impl Fn(&patch_audit::RemoteStatus) -> bool) {
        let began = Instant::now();
        while !log.status().remote.is_some_and(|remote| what(&remote)) {
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", log.status());
            std::thread::yield_now();
        }
    }

    #[test]
    fn records_go_through_tls_to_a_server_that_is_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let (port, ca, messages) = server(dir.path());
        let log = log(&dir.path().join("audit.log"), &format!("tls://localhost:{port}"), Some(ca));
        for n in 1..=50 {
            log.record(event(&format!("number {n}."))).unwrap();
        }
        for n in 1..=50 {
            let message = messages.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(message.contains(&format!("number {n}.")), "{message}");
        }
        until(&log, |remote| remote.delivered == 50 && remote.error.is_none());
        log.record(event("the last")).unwrap();
        log.close();
        assert!(messages.recv_timeout(Duration::from_secs(20)).unwrap().contains("the last"));
    }

    #[test]
    fn a_server_that_is_not_trusted_gets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (port, ca, messages) = server(dir.path());
        for (name, ca, words) in [
            ("localhost", None, "certificate"),
            ("127.0.0.1", Some(ca), "certificate"),
            ("localhost", Some(dir.path().join("absent.pem")), "absent.pem"),
        ] {
            let path = dir.path().join(name).with_extension(words.len().to_string()).join("audit.log");
            let log = log(&path, &format!("tls://{name}:{port}"), ca);
            log.record(event("secret")).unwrap();
            until(&log, |remote| remote.error.as_ref().is_some_and(|e| e.contains(words)));
            log.close();
            assert!(messages.try_recv().is_err());
        }
    }
}
