//! The TLS 1.3 server configuration and the verifier of client certificates.
//!
//! Roots, revocation list and the program's own opinion of an identity live in one verifier, so that a reload swaps
//! all of them at once, and so that an open connection can be judged again by the rules of now
//! ([`LoadedTls::permits`]). What goes over the wire when a handshake fails is the affair of [`crate::silence`].

use std::{cell::RefCell, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    server::{
        ClientCertVerifierBuilder, ClientHello, NoServerSessionStorage, ResolvesServerCert,
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use sha2::{Digest as _, Sha256};
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

/// The server's certificate with its key, checked.
#[derive(Clone)]
pub struct ServerPair {
    certified: Arc<CertifiedKey>,
    /// The certificate.
    pub facts: CertificateFacts,
}

impl std::fmt::Debug for ServerPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerPair").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl ServerPair {
    /// Checks a chain and its key.
    ///
    /// # Errors
    /// With the file, the fault and the remedy, when clients would not accept them.
    pub fn load(chain: &PemInput, key: &PemInput) -> Result<Self, TlsError> {
        Self::load_at(chain, key, Timestamp::now())
    }

    fn load_at(chain: &PemInput, key: &PemInput, now: Timestamp) -> Result<Self, TlsError> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let chain_file = chain.name();
        let ders = chain.certificates()?;
        let leaf = ders.first().ok_or_else(|| refused(chain_file, &"no certificate"))?;
        let parsed = parse(leaf, chain_file, "the server certificate")?;
        check_server(&parsed, chain_file, now)?;
        let facts = CertificateFacts::from_parsed(&parsed, leaf);
        let private = provider
            .key_provider
            .load_private_key(key.private_key()?)
            .map_err(|e| TlsError::UnsupportedKey { file: key.name().to_owned(), error: e.to_string() })?;
        let certified = CertifiedKey::new(ders.clone(), private);
        certified.keys_match().map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
                key_file: key.name().to_owned(),
                chain_file: chain_file.to_owned(),
                subject: facts.common_name.clone(),
            },
            other => refused(chain_file, &other),
        })?;
        Ok(Self { certified: Arc::new(certified), facts })
    }
}

/// Whom a server trusts: its CA, and what that has revoked. Checked.
#[derive(Debug, Clone)]
pub struct Trust {
    roots: Arc<RootCertStore>,
    source: PemInput,
    /// The CA's certificates.
    pub ca: Vec<CertificateFacts>,
    /// The revocation lists.
    pub crls: Vec<VerifiedCrl>,
}

impl Trust {
    /// Checks a CA and its revocation lists, if it has any.
    ///
    /// # Errors
    /// With the file, the fault and the remedy.
    pub fn load(ca: &PemInput, crl: Option<&PemInput>) -> Result<Self, TlsError> {
        Self::load_at(ca, crl, Timestamp::now())
    }

    fn load_at(ca: &PemInput, crl: Option<&PemInput>, now: Timestamp) -> Result<Self, TlsError> {
        let trust = Self::of_ca(ca, now, crl.is_some())?;
        Ok(Self { crls: crl.map(|input| verify_crl(input, ca)).transpose()?.unwrap_or_default(), ..trust })
    }

    /// Checks a CA, whose revocation lists are these; they must have been verified with the same CA.
    ///
    /// # Errors
    /// With the file, the fault and the remedy.
    pub fn with_lists(ca: &PemInput, crls: Vec<VerifiedCrl>) -> Result<Self, TlsError> {
        Ok(Self { crls, ..Self::of_ca(ca, Timestamp::now(), true)? })
    }

    fn of_ca(ca: &PemInput, now: Timestamp, with_crl: bool) -> Result<Self, TlsError> {
        let ca_file = ca.name();
        let mut roots = RootCertStore::empty();
        let mut facts = Vec::new();
        let mut expired = None;
        for der in &ca.certificates()? {
            let parsed = parse(der, ca_file, "a CA certificate")?;
            match check_ca(&parsed, ca_file, now, with_crl) {
                // Beside one that is good it does no harm: nobody gets in by it any more. It has to be a CA all the same:
                // a clock that is set back makes it good again.
                Err(error @ TlsError::Expired { .. }) => {
                    check_ca_usage(&parsed, ca_file, false)?;
                    expired = Some(error);
                }
                checked => checked?,
            }
            facts.push(CertificateFacts::from_parsed(&parsed, der));
            roots.add(der.clone()).map_err(|e| refused(ca_file, &e))?;
        }
        if let Some(error) = expired
            && facts.iter().all(|facts| facts.not_after < now)
        {
            return Err(error);
        }
        Ok(Self { roots: Arc::new(roots), source: ca.clone(), ca: facts, crls: Vec::new() })
    }

    /// The CA's certificates in PEM.
    #[must_use]
    pub fn source(&self) -> &PemInput {
        &self.source
    }

    /// Whether the TLS library can work with the lists: it knows less of X.509 than may stand in them.
    ///
    /// # Errors
    /// What it said.
    pub fn check(&self) -> Result<(), TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = Arc::clone(&self.roots);
        builder(roots, &self.crls, provider).build().map(drop).map_err(|e| refused("the revocation list", &e))
    }

    /// Until when the last certificate of the CA that signed a list is good.
    #[must_use]
    pub fn until(&self, list: &CrlFacts) -> Option<Timestamp> {
        let signers = signers(&self.source).unwrap_or_default();
        signers.into_iter().filter(|(signer, _)| *signer == list.signer).map(|(_, until)| until).max()
    }

    /// One verifier for each of the CA's certificates.
    fn authorities(
        &self,
        expired_crl: ExpiredCrl,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Vec<Authority>, TlsError> {
        let file = self.source.name();
        let mut authorities = Vec::new();
        let ders = self.source.certificates()?;
        for ((root, der), (signer, until)) in self.roots.roots.iter().zip(&ders).zip(signers(&self.source)?) {
            let name = parse(der, file, "a CA certificate")?.subject().to_string();
            // Lists go by the issuer's name in the library, and a CA that was made anew may have kept its name. Those of
            // other names are needed for the certificates between this one and the client's.
            let fits = |crl: &&VerifiedCrl| crl.facts.signer == signer || crl.facts.issuer != name;
            let own: Vec<_> = self.crls.iter().filter(fits).cloned().collect();
            // Of a CA without a list nobody gets in if there is a list of another: unknown status is denied.
            let lists = if own.is_empty() { &self.crls } else { &own };
            let roots: RootCertStore = std::iter::once(root.clone()).collect();
            let mut builder = builder(Arc::new(roots), lists, Arc::clone(provider));
            if expired_crl == ExpiredCrl::Refuse {
                builder = builder.enforce_revocation_expiration();
            }
            let verifier = builder.build().map_err(|e| refused(file, &e))?;
            authorities.push(Authority { until, verifier });
        }
        Ok(authorities)
    }
}

fn builder(
    roots: Arc<RootCertStore>,
    lists: &[VerifiedCrl],
    provider: Arc<CryptoProvider>,
) -> ClientCertVerifierBuilder {
    // Unknown status is denied by default; a list that does not cover an issuer is no reason to trust its bearer.
    WebPkiClientVerifier::builder_with_provider(roots, provider)
        .clear_root_hint_subjects()
        .with_crls(lists.iter().map(|crl| crl.der.clone()))
}

/// A configuration that is ready to serve, with the facts that a program shows and watches.
#[derive(Clone)]
pub struct LoadedTls {
    config: Arc<ServerConfig>,
    verifier: Arc<Verifier>,
    pair: ServerPair,
    trust: Trust,
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
        let trust = Trust::load_at(&source.ca, source.crl.as_ref(), now)?;
        Self::build(ServerPair::load_at(&source.chain, &source.key, now)?, trust, options)
    }

    /// Builds the configuration from parts that are checked already.
    ///
    /// # Errors
    /// When the TLS library refuses them.
    pub fn build(pair: ServerPair, trust: Trust, options: TlsOptions) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let ca_file = trust.source.name();
        let authorities = trust.authorities(options.expired_crl, &provider)?;
        let any = authorities.first().ok_or_else(|| refused(ca_file, &"no certificate"))?;
        let any = Arc::clone(&any.verifier);
        let allowed = ArcSwap::from_pointee(options.allowed);
        let verifier = Arc::new(Verifier { any, authorities, allowed });

        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| refused(ca_file, &e))?
            .with_client_cert_verifier(Arc::clone(&verifier) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(Arc::new(Presented(Arc::clone(&pair.certified))));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session would not consult the verifier, hence not the revocation list.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(Self {
            config: Arc::new(config),
            verifier,
            server: pair.facts.clone(),
            ca: trust.ca.clone(),
            crls: trust.crls.iter().map(|crl| crl.facts.clone()).collect(),
            pair,
            trust,
        })
    }

    /// The server's certificate and key.
    #[must_use]
    pub fn pair(&self) -> &ServerPair {
        &self.pair
    }

    /// Whom it trusts.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Has the program's opinion of identities replaced, for this configuration and its clones. Open connections are
    /// judged by it once a clone of it is put into effect.
    pub fn set_allowed(&self, allowed: Option<Allowed>) {
        self.verifier.allowed.store(Arc::new(allowed));
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
        self.permits_at(peer, UnixTime::now())
    }

    fn permits_at(&self, peer: &PeerIdentity, now: UnixTime) -> bool {
        let chain = peer.chain().split_first();
        chain.is_some_and(|(leaf, rest)| self.verifier.verify_client_cert(leaf, rest, now).is_ok())
    }
}

tokio::task_local! {
    /// The certificate that the peer of the handshake at hand presented, for the report of its failure: the TLS
    /// library does not give out a certificate that it refused. A handshake is driven within this scope.
    pub(crate) static PRESENTED: RefCell<Option<CertificateFacts>>;
}

/// Presents one certificate, whatever name the peer asks for.
#[derive(Debug)]
struct Presented(Arc<CertifiedKey>);

impl ResolvesServerCert for Presented {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// One of the CA's certificates, and whom it vouches for.
struct Authority {
    /// Until when it is good: of that the library knows nothing.
    until: Timestamp,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// The library's verifiers, and three demands of ours: the CA's own certificate must not have expired, the usage must be
/// named, and the program must know the bearer.
struct Verifier {
    /// Any of them, for what is the same with all.
    any: Arc<dyn ClientCertVerifier>,
    authorities: Vec<Authority>,
    allowed: ArcSwap<Option<Allowed>>,
}

impl Verifier {
    /// The chain up to one of the CA's certificates.
    fn verify_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let mut worst = rustls::Error::from(CertificateError::UnknownIssuer);
        for Authority { until, verifier } in &self.authorities {
            let error = match verifier.verify_client_cert(end_entity, intermediates, now) {
                Ok(verified) if seconds <= until.as_second() => return Ok(verified),
                Ok(_) => CertificateError::Expired.into(),
                Err(error) => error,
            };
            if says(&error) > says(&worst) {
                worst = error;
            }
        }
        Err(worst)
    }
}

/// How much an error says of a certificate: to a CA that is not its own each is foreign, and what one CA has revoked
/// another may not know.
fn says(error: &rustls::Error) -> u8 {
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer => 0,
            CertificateError::BadSignature | CertificateError::UnknownRevocationStatus => 1,
            CertificateError::Revoked
            | CertificateError::Expired
            | CertificateError::ExpiredContext { .. } => 3,
            _ => 2,
        },
        rustls::Error::InvalidCertRevocationList(_) => 1,
        _ => 2,
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("maps_identities", &self.allowed.load().is_some())
            .finish_non_exhaustive()
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
        let verified = self.verify_chain(end_entity, intermediates, now)?;
        let facts = facts.ok_or(CertificateError::BadEncoding)?;
        if !names_client_auth(end_entity) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        if self.allowed.load().as_ref().as_ref().is_some_and(|allowed| !allowed(&facts)) {
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
        self.any.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any.supported_verify_schemes()
    }
}

/// The library takes a certificate without any extended key usage as good for everything; here it is good for nothing.
fn names_client_auth(der: &[u8]) -> bool {
    X509Certificate::from_der(der)
        .ok()
        .and_then(|(_, parsed)| parsed.extended_key_usage().ok().flatten().map(|eku| eku.value.client_auth))
        .unwrap_or(false)
}

/// A revocation list whose signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCrl {
    der: CertificateRevocationListDer<'static>,
    /// What it says.
    pub facts: CrlFacts,
}

impl VerifiedCrl {
    /// Whether it is signed by one of these CAs.
    #[must_use]
    pub fn is_of(&self, ca: &PemInput) -> bool {
        let Ok(ders) = ca.certificates() else { return false };
        ders.iter().any(|der| {
            X509Certificate::from_der(der).is_ok_and(|(_, parsed)| signer(&parsed) == self.facts.signer)
        })
    }

    /// The list in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }
}

/// Checks that revocation lists are the CA's, signatures included.
///
/// # Errors
/// When one is not, or is not a revocation list at all.
pub fn verify_crl(crl: &PemInput, ca: &PemInput) -> Result<Vec<VerifiedCrl>, TlsError> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let ca_ders = ca.certificates()?;
    crl.crls()?.into_iter().map(|der| verify_one(crl.name(), der, ca.name(), &ca_ders, &provider)).collect()
}

/// Those of the revocation lists that are the CA's, signatures included.
///
/// # Errors
/// When there is none at all, or one is damaged, or the CA's certificates cannot be read.
pub fn own_crls(crl: &PemInput, ca: &PemInput) -> Result<Vec<VerifiedCrl>, TlsError> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let ca_ders = ca.certificates()?;
    let mut own = Vec::new();
    for der in crl.crls()? {
        match verify_one(crl.name(), der, ca.name(), &ca_ders, &provider) {
            Ok(verified) => own.push(verified),
            Err(TlsError::CrlForeign { .. } | TlsError::CrlSignature { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(own)
}

/// Who can sign a CA's revocation lists, in the way of [`CrlFacts::signer`], and until when its certificate is good: one
/// for each of the CA's certificates, in their order.
///
/// # Errors
/// When the CA's certificates cannot be read.
pub fn signers(ca: &PemInput) -> Result<Vec<(String, Timestamp)>, TlsError> {
    let ders = ca.certificates()?;
    let of = |der: &CertificateDer<'_>| {
        let parsed = parse(der, ca.name(), "a CA certificate")?;
        Ok((signer(&parsed), CertificateFacts::from_parsed(&parsed, der).not_after))
    };
    ders.iter().map(of).collect()
}

/// Whether a certificate is still good at a time, as the TLS library judges: for all of its last second.
#[must_use]
pub fn is_good_at(until: Timestamp, now: Timestamp) -> bool {
    until.as_second() >= now.as_second()
}

/// Who a CA's certificate makes its lists' signer, in the way of [`CrlFacts::signer`].
pub(crate) fn signer_of(ca: &CertificateDer<'_>) -> Result<String, TlsError> {
    parse(ca, "ca.pem", "a CA certificate").map(|parsed| signer(&parsed))
}

/// Whether a certificate was signed with a CA's key. Names are not compared: two CAs may have the same.
pub(crate) fn is_signed_by(certificate: &CertificateDer<'_>, ca: &CertificateDer<'_>) -> bool {
    let (Ok((_, certificate)), Ok((_, ca))) =
        (X509Certificate::from_der(certificate), X509Certificate::from_der(ca))
    else {
        return false;
    };
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    verifies(&ca, certificate.tbs_certificate.as_ref(), &certificate.signature_value.data, &provider)
}

/// Whether a signature is one of a CA's key. An algorithm that does not fit the key fails, so trying each needs no table of
/// identifiers.
fn verifies(ca: &X509Certificate<'_>, what: &[u8], signature: &[u8], provider: &CryptoProvider) -> bool {
    let key = &ca.public_key().subject_public_key.data;
    let mut algorithms = provider.signature_verification_algorithms.all.iter();
    algorithms.any(|algorithm| algorithm.verify_signature(key, what, signature).is_ok())
}

fn signer(ca: &X509Certificate<'_>) -> String {
    hex::encode(Sha256::digest(ca.public_key().raw))
}

fn verify_one(
    file: &str,
    der: CertificateRevocationListDer<'static>,
    ca_file: &str,
    ca_ders: &[CertificateDer<'static>],
    provider: &CryptoProvider,
) -> Result<VerifiedCrl, TlsError> {
    let malformed =
        |error: String| TlsError::Malformed { file: file.to_owned(), what: "the revocation list", error };
    let (_, parsed) = x509_parser::revocation_list::CertificateRevocationList::from_der(&der)
        .map_err(|e| malformed(e.to_string()))?;
    let mut issuers = Vec::new();
    for ca_der in ca_ders {
        let candidate = parse(ca_der, ca_file, "a CA certificate")?;
        if candidate.subject().as_raw() == parsed.issuer().as_raw() {
            issuers.push(candidate);
        }
    }
    if issuers.is_empty() {
        return Err(TlsError::CrlForeign {
            file: file.to_owned(),
            issuer: parsed.issuer().to_string(),
            ca_file: ca_file.to_owned(),
        });
    }
    let signer = issuers.iter().find(|issuer| {
        verifies(issuer, parsed.tbs_cert_list.as_ref(), &parsed.signature_value.data, provider)
    });
    let Some(signer) = signer else {
        return Err(TlsError::CrlSignature { file: file.to_owned(), ca_file: ca_file.to_owned() });
    };
    let signer = self::signer(signer);
    let facts = CrlFacts::from_der(&der).ok_or_else(|| malformed("not DER".to_owned()))?;
    let facts = CrlFacts { signer, ..facts };
    Ok(VerifiedCrl { der, facts })
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
    check_ca_usage(parsed, file, with_crl)
}

fn check_ca_usage(parsed: &X509Certificate<'_>, file: &str, with_crl: bool) -> Result<(), TlsError> {
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
