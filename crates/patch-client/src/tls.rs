//! The TLS configuration: TLS 1.3, HTTP/1.1, one CA, one client certificate.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    config::ClientConfig,
    error::Error,
    identity::{Identity, ca_error, pair_error},
};

/// What both HTTP and WebSocket connections use.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) config: Arc<rustls::ClientConfig>,
    /// The host, as it goes into the handshake.
    pub(crate) server_name: ServerName<'static>,
    /// See [`Identity::facts`].
    pub(crate) facts: Vec<String>,
}

impl Tls {
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, Error> {
        let name = |text: &str| {
            ServerName::try_from(text.to_owned()).map_err(|_| Error::ServerName(text.to_owned()))
        };
        let server_name = name(config.address.host())?;
        let expected = config.server_name.as_deref().map(name).transpose()?;
        let identity = Identity::load(&config.ca, &config.certificate, &config.key)?;

        let mut roots = RootCertStore::empty();
        for certificate in identity.ca {
            roots.add(certificate).map_err(|e| ca_error(&e, &config.ca))?;
        }
        // Given explicitly: with two providers in one program rustls would refuse to choose.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|e| ca_error(&e, &config.ca))?;
        let verifier: Arc<dyn ServerCertVerifier> = match expected {
            None => verifier,
            Some(name) => Arc::new(ExpectedName { verifier, name }),
        };
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| Error::Setup(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(identity.chain, identity.key)
            .map_err(|e| pair_error(&e, &config.certificate, &config.key))?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Agents do not resume sessions, since a resumed one would skip the revocation check.
        tls.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(tls), server_name, facts: identity.facts })
    }
}

/// The usual verification, with a name that is not the one of the connection.
#[derive(Debug)]
struct ExpectedName {
    verifier: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for ExpectedName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verifier.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
