//! The client's own files: CA, certificate, key. They are checked before anything is sent, since an agent that does
//! not accept a certificate never says why.

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate, X509Version};

use crate::error::{Error, FileProblem};

const CA: &str = "the CA's certificate";
const CERTIFICATE: &str = "the client's certificate";
const KEY: &str = "the client's key";

/// The files' contents, checked as far as they can be without the other side.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) ca: Vec<CertificateDer<'static>>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    /// What a person may want to know when the agent keeps silent.
    pub(crate) facts: Vec<String>,
}

impl Identity {
    pub(crate) fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, Error> {
        let now = now();
        let ca = Source { what: CA, path: ca };
        let roots = ca.certificates()?;
        for root in &roots {
            ca.check(root, now, Usage::Ca)?;
        }
        let certificate = Source { what: CERTIFICATE, path: certificate };
        let chain = certificate.certificates()?;
        let Some(leaf) = chain.first() else { return Err(certificate.none()) };
        certificate.check(leaf, now, Usage::Client)?;
        let facts = facts(leaf, &roots);
        Ok(Self { ca: roots, chain, key: Source { what: KEY, path: key }.key()?, facts })
    }
}

/// Says which file is at fault when rustls refuses certificate and key together.
pub(crate) fn pair_error(error: &rustls::Error, certificate: &Path, key: &Path) -> Error {
    if matches!(error, rustls::Error::InconsistentKeys(_)) {
        let problem = FileProblem::KeyMismatch { certificate: certificate.to_owned() };
        return Error::File { what: KEY, path: key.to_owned(), problem };
    }
    Error::File { what: KEY, path: key.to_owned(), problem: FileProblem::Malformed(error.to_string()) }
}

/// Says that the CA's file holds what cannot be trusted.
pub(crate) fn ca_error(error: &impl ToString, ca: &Path) -> Error {
    Error::File { what: CA, path: ca.to_owned(), problem: FileProblem::Malformed(error.to_string()) }
}

#[derive(Clone, Copy)]
enum Usage {
    Ca,
    Client,
}

struct Source<'a> {
    what: &'static str,
    path: &'a Path,
}

impl Source<'_> {
    fn error(&self, problem: FileProblem) -> Error {
        Error::File { what: self.what, path: PathBuf::from(self.path), problem }
    }

    fn none(&self) -> Error {
        self.error(FileProblem::Missing { expected: "certificate", label: "CERTIFICATE" })
    }

    fn read(&self) -> Result<Vec<u8>, Error> {
        std::fs::read(self.path).map_err(|e| self.error(FileProblem::Read(e)))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.read()?).collect();
        match certificates {
            Ok(certificates) if certificates.is_empty() => Err(self.none()),
            Ok(certificates) => Ok(certificates),
            Err(e) => Err(self.error(FileProblem::Malformed(e.to_string()))),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, Error> {
        let text = self.read()?;
        match PrivateKeyDer::from_pem_slice(&text) {
            Ok(key) => Ok(key),
            Err(pem::Error::NoItemsFound) => {
                let encrypted = b"ENCRYPTED PRIVATE KEY";
                let problem = if text.windows(encrypted.len()).any(|w| w == encrypted) {
                    FileProblem::EncryptedKey
                } else {
                    FileProblem::Missing { expected: "private key", label: "PRIVATE KEY" }
                };
                Err(self.error(problem))
            }
            Err(e) => Err(self.error(FileProblem::Malformed(e.to_string()))),
        }
    }

    fn check(&self, der: &CertificateDer<'_>, now: i64, usage: Usage) -> Result<(), Error> {
        let malformed = |e: String| self.error(FileProblem::Malformed(e));
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| malformed(e.to_string()))?;
        if certificate.version() == X509Version::V1 {
            return Err(self.error(FileProblem::VersionOne));
        }
        let subject = certificate.subject().to_string();
        let validity = certificate.validity();
        if now > validity.not_after.timestamp() {
            return Err(self.error(FileProblem::Expired { subject, at: date(validity.not_after) }));
        }
        if now < validity.not_before.timestamp() {
            return Err(self.error(FileProblem::NotYetValid { subject, at: date(validity.not_before) }));
        }
        match usage {
            Usage::Ca if !certificate.is_ca() => Err(self.error(FileProblem::NotACa { subject })),
            Usage::Client => {
                let usages = certificate.extended_key_usage().map_err(|e| malformed(e.to_string()))?;
                // No usage at all means "any" elsewhere; agents refuse that as well.
                if usages.is_some_and(|usages| usages.value.client_auth) {
                    Ok(())
                } else {
                    Err(self.error(FileProblem::NotForClients { subject }))
                }
            }
            Usage::Ca => Ok(()),
        }
    }
}

fn facts(leaf: &CertificateDer<'_>, roots: &[CertificateDer<'_>]) -> Vec<String> {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let mut facts = vec![format!(
        "the client's certificate is {}, serial {}, valid until {}",
        leaf.subject(),
        leaf.raw_serial_as_string(),
        date(leaf.validity().not_after),
    )];
    let issued_by_root = roots.iter().any(|root| {
        X509Certificate::from_der(root)
            .is_ok_and(|(_, root)| root.subject().as_raw() == leaf.issuer().as_raw())
    });
    if !issued_by_root {
        facts.push(format!(
            "it was issued by {}, which is not the CA of this client's CA file; the agent may know only that CA",
            leaf.issuer()
        ));
    }
    facts
}

fn date(time: ASN1Time) -> String {
    time.to_rfc2822().unwrap_or_else(|_| time.to_string())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
