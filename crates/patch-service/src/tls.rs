//! The TLS 1.3 server configuration and the verifier of client certificates.
//!
//! Roots, revocation list and the program's own opinion of an identity live in one verifier, so that a reload swaps
//! all of them at once, and so that an open connection can be judged again by the rules of now
//! ([`LoadedTls::permits`]). What goes over the wire when a handshake fails is the affair of [`crate::silence`].

use std::{cell::RefCell, path::Path, sync::Arc};

use jiff::Timestamp;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    certificate::{CertificateFacts, CrlFacts, PemInput, TlsError, check_basics, common_name},
    listener::PeerIdentity,
};

/// Whether the program knows the bearer of a certificate.
pub type Allowed = Arc<dyn Fn(&CertificateFacts) -> bool + Send + Sync>;

/// What an expired revocation list means for clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpiredCrl {
    /// None gets in.
    #[default]
    Refuse,
    /// They get in as if it had not expired. For a program that itself refuses everything but the upload of a newer
    /// list while [`CrlFacts::is_expired`] says so.
    Admit,
}

/// How the configuration is built.
#[derive(Clone, Default)]
pub struct TlsOptions {
    /// Consulted for each certificate that is otherwise good; everyone if absent.
    pub allowed: Option<Allowed>,
    /// What an expired revocation list means.
    pub expired_crl: ExpiredCrl,
}

/// The PEM texts that the configuration is made from.
#[derive(Debug, Clone)]
pub struct TlsSource {
    /// Certificates of the CA.
    pub ca: PemInput,
    /// The server's certificate, then those between it and the CA.
    pub chain: PemInput,
    /// The server's key.
    pub key: PemInput,
    /// Revocation lists of the CA.
    pub crl: Option<PemInput>,
}

impl TlsSource {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(ca: &Path, chain: &Path, key: &Path, crl: Option<&Path>) -> Result<Self, TlsError> {
        Ok(Self {
            ca: PemInput::read(ca)?,
            chain: PemInput::read(chain)?,
            key: PemInput::read(key)?,
            crl: crl.map(PemInput::read).transpose()?,
        })
    }
}

/// A configuration that is ready to serve, with the facts that a program shows and watches.
#[derive(Clone)]
pub struct LoadedTls {
    config: Arc<ServerConfig>,
    verifier: Arc<Verifier>,
    /// The server's certificate.
    pub server: CertificateFacts,
    /// The CA's certificates.
    pub ca: Vec<CertificateFacts>,
    /// The revocation lists.
    pub crls: Vec<CrlFacts>,
}

impl std::fmt::Debug for LoadedTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedTls")
            .field("server", &self.server)
            .field("ca", &self.ca)
            .finish_non_exhaustive()
    }
}

impl LoadedTls {
    /// Checks the texts and builds the configuration.
    ///
    /// # Errors
    /// With the file, the fault and the remedy, when a server with these texts would not work for its clients.
    pub fn load(source: &TlsSource, options: TlsOptions) -> Result<Self, TlsError> {
        Self::load_at(source, options, Timestamp::now())
    }

    fn load_at(source: &TlsSource, options: TlsOptions, now: Timestamp) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let ca_file = source.ca.name();
        let ca_ders = source.ca.certificates()?;
        let mut roots = RootCertStore::empty();
        let mut ca = Vec::new();
        for der in &ca_ders {
            let parsed = parse(der, ca_file, "a CA certificate")?;
            check_ca(&parsed, ca_file, now, source.crl.is_some())?;
            ca.push(CertificateFacts::from_parsed(&parsed, der));
            roots.add(der.clone()).map_err(|e| refused(ca_file, &e))?;
        }

        let chain_file = source.chain.name();
        let chain = source.chain.certificates()?;
        let leaf = chain.first().ok_or_else(|| refused(chain_file, &"no certificate"))?;
        let parsed = parse(leaf, chain_file, "the server certificate")?;
        check_server(&parsed, chain_file, now)?;
        let server = CertificateFacts::from_parsed(&parsed, leaf);
        let key = provider.key_provider.load_private_key(source.key.private_key()?).map_err(|e| {
            TlsError::UnsupportedKey { file: source.key.name().to_owned(), error: e.to_string() }
        })?;
        let certified = CertifiedKey::new(chain.clone(), key);
        certified.keys_match().map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
                key_file: source.key.name().to_owned(),
                chain_file: chain_file.to_owned(),
                subject: server.common_name.clone(),
            },
            other => refused(chain_file, &other),
        })?;

        let (crl_ders, crls) = match &source.crl {
            Some(input) => load_crls(input, &source.ca, &ca_ders, &provider)?,
            None => (Vec::new(), Vec::new()),
        };
        // Unknown status is denied by default; a list that does not cover an issuer is no reason to trust its bearer.
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .clear_root_hint_subjects()
            .with_crls(crl_ders);
        if options.expired_crl == ExpiredCrl::Refuse {
            builder = builder.enforce_revocation_expiration();
        }
        let inner = builder.build().map_err(|e| refused(ca_file, &e))?;
        let verifier = Arc::new(Verifier { inner, allowed: options.allowed });

        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| refused(chain_file, &e))?
            .with_client_cert_verifier(Arc::clone(&verifier) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session would not consult the verifier, hence not the revocation list.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(Self { config: Arc::new(config), verifier, server, ca, crls })
    }

    /// What the TLS library needs.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Whether a peer that is connected would be let in again now: not expired, not revoked, still of the CA, still
    /// known to the program.
    #[must_use]
    pub fn permits(&self, peer: &PeerIdentity) -> bool {
        peer.chain()
            .split_first()
            .is_some_and(|(leaf, rest)| self.verifier.verify_client_cert(leaf, rest, UnixTime::now()).is_ok())
    }
}

tokio::task_local! {
    /// The certificate that the peer of the handshake at hand presented, for the report of its failure: the TLS
    /// library does not give out a certificate that it refused. A handshake is driven within this scope.
    pub(crate) static PRESENTED: RefCell<Option<CertificateFacts>>;
}

/// The library's verifier, and two demands of ours: the usage must be named, and the program must know the bearer.
#[derive(Clone)]
struct Verifier {
    inner: Arc<dyn ClientCertVerifier>,
    allowed: Option<Allowed>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("maps_identities", &self.allowed.is_some()).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let facts = CertificateFacts::from_der(end_entity);
        // Outside a handshake (an open connection is judged again) there is no scope, and nothing to note.
        let _ = PRESENTED.try_with(|slot| slot.borrow_mut().clone_from(&facts));
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let facts = facts.ok_or(CertificateError::BadEncoding)?;
        if !names_client_auth(end_entity) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        if self.allowed.as_ref().is_some_and(|allowed| !allowed(&facts)) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The library takes a certificate without any extended key usage as good for everything; here it is good for nothing.
fn names_client_auth(der: &[u8]) -> bool {
    X509Certificate::from_der(der)
        .ok()
        .and_then(|(_, parsed)| parsed.extended_key_usage().ok().flatten().map(|eku| eku.value.client_auth))
        .unwrap_or(false)
}

/// Checks that a revocation list is one of the CA's, signature included.
///
/// # Errors
/// When it is not, or is not a revocation list at all.
pub fn verify_crl(crl: &PemInput, ca: &PemInput) -> Result<Vec<CrlFacts>, TlsError> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(load_crls(crl, ca, &ca.certificates()?, &provider)?.1)
}

type Crls = (Vec<CertificateRevocationListDer<'static>>, Vec<CrlFacts>);

fn load_crls(
    input: &PemInput,
    ca: &PemInput,
    ca_ders: &[CertificateDer<'static>],
    provider: &CryptoProvider,
) -> Result<Crls, TlsError> {
    let ders = input.crls()?;
    let mut facts = Vec::new();
    for der in &ders {
        let malformed = |error: String| TlsError::Malformed {
            file: input.name().to_owned(),
            what: "the revocation list",
            error,
        };
        let (_, parsed) = x509_parser::revocation_list::CertificateRevocationList::from_der(der)
            .map_err(|e| malformed(e.to_string()))?;
        let mut issuers = Vec::new();
        for ca_der in ca_ders {
            let candidate = parse(ca_der, ca.name(), "a CA certificate")?;
            if candidate.subject().as_raw() == parsed.issuer().as_raw() {
                issuers.push(candidate);
            }
        }
        if issuers.is_empty() {
            return Err(TlsError::CrlForeign {
                file: input.name().to_owned(),
                issuer: parsed.issuer().to_string(),
                ca_file: ca.name().to_owned(),
            });
        }
        let signed = issuers.iter().any(|issuer| {
            let key = &issuer.public_key().subject_public_key.data;
            // An algorithm that does not fit the key fails, so trying each needs no table of identifiers.
            provider.signature_verification_algorithms.all.iter().any(|algorithm| {
                algorithm
                    .verify_signature(key, parsed.tbs_cert_list.as_ref(), &parsed.signature_value.data)
                    .is_ok()
            })
        });
        if !signed {
            return Err(TlsError::CrlSignature {
                file: input.name().to_owned(),
                ca_file: ca.name().to_owned(),
            });
        }
        facts.push(CrlFacts::from_der(der).ok_or_else(|| malformed("not DER".to_owned()))?);
    }
    Ok((ders, facts))
}

const CA_EXTENSIONS: &str = "basicConstraints=critical,CA:TRUE and keyUsage=critical,keyCertSign,cRLSign";
const SERVER_EXTENSIONS: &str = "subjectAltName=DNS:HOST,IP:ADDRESS and extendedKeyUsage=serverAuth";

fn check_ca(
    parsed: &X509Certificate<'_>,
    file: &str,
    now: Timestamp,
    with_crl: bool,
) -> Result<(), TlsError> {
    check_basics(parsed, file, now, CA_EXTENSIONS)?;
    let wrong = |problem, remedy| TlsError::WrongUsage {
        file: file.to_owned(),
        subject: common_name(parsed),
        problem,
        remedy,
    };
    if !parsed.is_ca() {
        return Err(wrong(
            "is not a CA certificate (no basicConstraints CA:TRUE)",
            "name the certificate that signed the others here, or make it again with `-addext basicConstraints=critical,CA:TRUE`",
        ));
    }
    if let Ok(Some(usage)) = parsed.key_usage() {
        if !usage.value.key_cert_sign() {
            return Err(wrong(
                "may not sign certificates (its keyUsage lacks keyCertSign)",
                "make it again with `-addext keyUsage=critical,keyCertSign,cRLSign`",
            ));
        }
        if with_crl && !usage.value.crl_sign() {
            return Err(wrong(
                "may not sign revocation lists (its keyUsage lacks cRLSign), yet one is configured",
                "make it again with `-addext keyUsage=critical,keyCertSign,cRLSign`, or configure no revocation list",
            ));
        }
    }
    Ok(())
}

fn check_server(parsed: &X509Certificate<'_>, file: &str, now: Timestamp) -> Result<(), TlsError> {
    check_basics(parsed, file, now, SERVER_EXTENSIONS)?;
    let subject = common_name(parsed);
    let wrong = |problem, remedy| TlsError::WrongUsage {
        file: file.to_owned(),
        subject: subject.clone(),
        problem,
        remedy,
    };
    if parsed.is_ca() {
        return Err(wrong(
            "is a CA certificate, which clients refuse as a server's",
            "have the CA sign a certificate for this server; if this file is a chain, the server's comes first",
        ));
    }
    let unreadable = |_| refused(file, &"an extension of the certificate cannot be parsed");
    if parsed.extended_key_usage().map_err(unreadable)?.is_some_and(|eku| !eku.value.server_auth) {
        return Err(wrong(
            "lacks the extended key usage serverAuth",
            "sign it again with `-extfile`, where the file holds `extendedKeyUsage=serverAuth` and the subjectAltName",
        ));
    }
    let names = parsed.subject_alternative_name().map_err(unreadable)?;
    if names.is_none_or(|san| san.value.general_names.is_empty()) {
        return Err(TlsError::NoSubjectAltName { file: file.to_owned(), subject });
    }
    Ok(())
}

fn parse<'a>(der: &'a [u8], file: &str, what: &'static str) -> Result<X509Certificate<'a>, TlsError> {
    match X509Certificate::from_der(der) {
        Ok((_, parsed)) => Ok(parsed),
        Err(e) => Err(TlsError::Malformed { file: file.to_owned(), what, error: e.to_string() }),
    }
}

fn refused(file: &str, error: &dyn std::fmt::Display) -> TlsError {
    TlsError::Refused { file: file.to_owned(), error: error.to_string() }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
