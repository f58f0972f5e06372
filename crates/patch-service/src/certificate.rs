//! Reads certificates, keys and revocation lists from PEM, and says what is wrong with them and what to change.
//!
//! What a certificate is good for in a handshake is decided in [`crate::tls`]; here are the facts, and the checks at
//! load whose failure would otherwise show up only as a handshake that fails without a word.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};

/// What is wrong with the TLS files. The text names the file, the fault and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {error}; check that it exists and that this service's user may read it")]
    Unreadable {
        /// Which file.
        file: String,
        /// What the operating system said.
        error: String,
    },
    /// There is no PEM block of the kind that is needed.
    #[error("{file}: holds no PEM block `{wanted}` ({found}); {remedy}")]
    NoBlock {
        /// Which file.
        file: String,
        /// The block's label.
        wanted: &'static str,
        /// What it holds instead.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A PEM block, or the DER in it, is damaged.
    #[error("{file}: {what} cannot be parsed: {error}; the file is damaged, fetch or make it again")]
    Malformed {
        /// Which file.
        file: String,
        /// Which part.
        what: &'static str,
        /// What the parser said.
        error: String,
    },
    /// The key is protected by a passphrase.
    #[error(
        "{file}: the private key is encrypted, and nobody is there to type its passphrase; decrypt it with `openssl pkey -in {file} -out {file}.plain` and protect the result by its file mode (0600)"
    )]
    EncryptedKey {
        /// Which file.
        file: String,
    },
    /// The key is of a kind that is not supported.
    #[error(
        "{file}: the private key is of a kind that is not supported: {error}; use ECDSA P-256 (`openssl ecparam -name prime256v1 -genkey -noout`), P-384, Ed25519 or RSA of 2048 to 8192 bits"
    )]
    UnsupportedKey {
        /// Which file.
        file: String,
        /// What the library said.
        error: String,
    },
    /// Key and certificate do not belong together.
    #[error(
        "{key_file}: the private key does not belong to the certificate in {chain_file} (CN={subject}); the chain file must begin with the certificate that was made for this key"
    )]
    KeyMismatch {
        /// The key's file.
        key_file: String,
        /// The chain's file.
        chain_file: String,
        /// The certificate's common name.
        subject: String,
    },
    /// X.509 version 1 has no extensions, hence no names and no usages.
    #[error(
        "{file}: the certificate CN={subject} is X.509 version 1, which TLS libraries refuse; plain `openssl x509 -req` makes those: sign it again with `-extfile ext.cnf`, where ext.cnf holds `{extensions}`"
    )]
    Version1 {
        /// Which file.
        file: String,
        /// The certificate's common name.
        subject: String,
        /// What belongs into the extension file.
        extensions: &'static str,
    },
    /// The server's certificate names no host.
    #[error(
        "{file}: the server certificate CN={subject} has no subjectAltName, and clients no longer look at the CN; sign it again with `-extfile <(printf 'subjectAltName=DNS:HOST,IP:ADDRESS\\nextendedKeyUsage=serverAuth')`"
    )]
    NoSubjectAltName {
        /// Which file.
        file: String,
        /// The certificate's common name.
        subject: String,
    },
    /// The certificate is not for this use.
    #[error("{file}: the certificate CN={subject} {problem}; {remedy}")]
    WrongUsage {
        /// Which file.
        file: String,
        /// The certificate's common name.
        subject: String,
        /// What it lacks.
        problem: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// It is no longer valid.
    #[error(
        "{file}: the certificate CN={subject} expired at {at}; have a new one signed, or check this host's clock"
    )]
    Expired {
        /// Which file.
        file: String,
        /// The certificate's common name.
        subject: String,
        /// When.
        at: Timestamp,
    },
    /// It is not valid yet.
    #[error("{file}: the certificate CN={subject} is not valid before {at}; check this host's clock")]
    NotYetValid {
        /// Which file.
        file: String,
        /// The certificate's common name.
        subject: String,
        /// When.
        at: Timestamp,
    },
    /// The revocation list is not one of the CA's.
    #[error(
        "{file}: the revocation list is issued by `{issuer}`, which is not in the CA bundle {ca_file}; fetch the list of that CA"
    )]
    CrlForeign {
        /// Which file.
        file: String,
        /// The list's issuer.
        issuer: String,
        /// The CA bundle.
        ca_file: String,
    },
    /// The revocation list's signature does not verify.
    #[error(
        "{file}: the revocation list's signature does not verify with the CA's key in {ca_file}; the list was altered or the CA replaced: fetch it again"
    )]
    CrlSignature {
        /// Which file.
        file: String,
        /// The CA bundle.
        ca_file: String,
    },
    /// The library refuses the whole.
    #[error("{file}: refused by the TLS library: {error}")]
    Refused {
        /// The file concerned.
        file: String,
        /// What the library said.
        error: String,
    },
}

/// PEM text and the name under which messages speak of it. It is wiped from memory when it is dropped, since it may be
/// a private key.
#[derive(Clone, PartialEq, Eq)]
pub struct PemInput {
    name: String,
    bytes: zeroize::Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for PemInput {
    // The bytes may be a private key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PemInput").field("name", &self.name).field("len", &self.bytes.len()).finish()
    }
}

impl PemInput {
    /// Text that is at hand.
    #[must_use]
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: zeroize::Zeroizing::new(bytes.into()) }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is no regular file.
    pub fn read(path: &Path) -> Result<Self, TlsError> {
        let name = path.display().to_string();
        match patch_files::read(path, crate::watch::LARGEST) {
            Ok(bytes) => Ok(Self::new(name, bytes)),
            Err(error) => Err(TlsError::Unreadable { file: name, error: error.to_string() }),
        }
    }

    /// The name under which messages speak of it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name as a path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(&self.name)
    }

    /// All certificates in it; at least one.
    ///
    /// # Errors
    /// When there is none, or one is damaged.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        let found = found.map_err(|e| self.malformed("a certificate", &e))?;
        if found.is_empty() {
            return Err(self.no_block(
                "CERTIFICATE",
                "a DER file is converted with `openssl x509 -inform DER -in FILE -out FILE.pem`",
            ));
        }
        Ok(found)
    }

    /// The first private key in it.
    ///
    /// # Errors
    /// When there is none, or it is encrypted or damaged.
    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let text = String::from_utf8_lossy(&self.bytes);
        if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(TlsError::EncryptedKey { file: self.name.clone() });
        }
        match PrivateKeyDer::pem_slice_iter(&self.bytes).next() {
            Some(key) => key.map_err(|e| self.malformed("the private key", &e)),
            None => {
                Err(self.no_block("PRIVATE KEY", "name the file that holds the key made for the certificate"))
            }
        }
    }

    /// All revocation lists in it; at least one.
    ///
    /// # Errors
    /// When there is none, or one is damaged.
    pub fn crls(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&self.bytes).collect();
        let found = found.map_err(|e| self.malformed("a revocation list", &e))?;
        if found.is_empty() {
            return Err(self.no_block(
                "X509 CRL",
                "a DER file is converted with `openssl crl -inform DER -in FILE -out FILE.pem`",
            ));
        }
        Ok(found)
    }

    fn malformed(&self, what: &'static str, error: &dyn std::fmt::Display) -> TlsError {
        TlsError::Malformed { file: self.name.clone(), what, error: error.to_string() }
    }

    fn no_block(&self, wanted: &'static str, remedy: &'static str) -> TlsError {
        let text = String::from_utf8_lossy(&self.bytes);
        let labels: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
            .take(4)
            .collect();
        let found = if self.bytes.is_empty() {
            "it is empty".to_owned()
        } else if labels.is_empty() {
            "it is not PEM at all".to_owned()
        } else {
            format!("it holds: {}", labels.join(", "))
        };
        TlsError::NoBlock { file: self.name.clone(), wanted, found, remedy }
    }
}

/// A revocation list in PEM.
#[must_use]
pub fn crl_in_pem(der: &[u8]) -> String {
    armoured_crl(&STANDARD.encode(der))
}

/// A revocation list in PEM, of its base64.
#[must_use]
pub fn armoured_crl(base64: &str) -> String {
    let mut text = String::from("-----BEGIN X509 CRL-----\n");
    let mut rest = base64;
    while !rest.is_empty() {
        let (line, after) = rest.split_at_checked(64).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END X509 CRL-----\n");
    text
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The subject's common name; empty if it has none.
    pub common_name: String,
    /// The serial number in lower-case hexadecimal, without leading zeros.
    pub serial: String,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// SHA-256 of the whole certificate in lower-case hexadecimal.
    pub fingerprint_sha256: String,
}

impl CertificateFacts {
    /// Reads them from DER; nothing is verified.
    #[must_use]
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        Some(Self::from_parsed(&parsed, der))
    }

    pub(crate) fn from_parsed(parsed: &X509Certificate<'_>, der: &[u8]) -> Self {
        Self {
            common_name: common_name(parsed),
            serial: serial_hex(parsed.raw_serial()),
            not_before: timestamp(parsed.validity().not_before.timestamp()),
            not_after: timestamp(parsed.validity().not_after.timestamp()),
            fingerprint_sha256: hex::encode(Sha256::digest(der)),
        }
    }
}

/// What a revocation list says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrlFacts {
    /// SHA-256 of the whole list in lower-case hexadecimal.
    pub sha256: String,
    /// SHA-256 of the public key that its signature verified with, in lower-case hexadecimal; empty if it was not
    /// verified. Unlike the issuer's name it is another one after the CA was made anew.
    pub signer: String,
    /// Who issued it.
    pub issuer: String,
    /// When it was made.
    pub this_update: Timestamp,
    /// When the next is due; it is not to be relied on later than that.
    pub next_update: Option<Timestamp>,
    /// Its number in lower-case hexadecimal without leading zeros, if it has one.
    pub number: Option<String>,
    /// The serial numbers that it revokes, as in [`CertificateFacts::serial`].
    pub revoked: std::collections::BTreeSet<String>,
}

impl CrlFacts {
    /// Reads them from DER; the signature is not verified (that is [`crate::tls::verify_crl`]).
    #[must_use]
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, parsed) = x509_parser::revocation_list::CertificateRevocationList::from_der(der).ok()?;
        Some(Self {
            sha256: hex::encode(Sha256::digest(der)),
            signer: String::new(),
            issuer: parsed.issuer().to_string(),
            this_update: timestamp(parsed.last_update().timestamp()),
            next_update: parsed.next_update().map(|at| timestamp(at.timestamp())),
            number: parsed.crl_number().map(|n| serial_hex(&n.to_bytes_be())),
            revoked: parsed.iter_revoked_certificates().map(|c| serial_hex(c.raw_serial())).collect(),
        })
    }

    /// Compares two numbers as [`Self::number`] holds them. A list without a number comes before all that have one.
    #[must_use]
    pub fn compare_numbers(a: Option<&str>, b: Option<&str>) -> std::cmp::Ordering {
        let key = |number: Option<&str>| number.map(|n| (n.len(), n.to_owned()));
        key(a).cmp(&key(b))
    }

    /// Whether the next list is overdue.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.next_update.is_some_and(|due| due <= now)
    }
}

/// Refuses a certificate that cannot serve: wrong version, wrong time. `extensions` is what a remedy would name.
pub(crate) fn check_basics(
    parsed: &X509Certificate<'_>,
    file: &str,
    now: Timestamp,
    extensions: &'static str,
) -> Result<(), TlsError> {
    let (file, subject) = (file.to_owned(), common_name(parsed));
    if parsed.version() != X509Version::V3 {
        return Err(TlsError::Version1 { file, subject, extensions });
    }
    let not_before = timestamp(parsed.validity().not_before.timestamp());
    let not_after = timestamp(parsed.validity().not_after.timestamp());
    if now < not_before {
        return Err(TlsError::NotYetValid { file, subject, at: not_before });
    }
    if now > not_after {
        return Err(TlsError::Expired { file, subject, at: not_after });
    }
    Ok(())
}

pub(crate) fn common_name(parsed: &X509Certificate<'_>) -> String {
    parsed.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok()).unwrap_or_default().to_owned()
}

fn serial_hex(raw: &[u8]) -> String {
    let text = hex::encode(raw);
    let short = text.trim_start_matches('0');
    if short.is_empty() { "0".to_owned() } else { short.to_owned() }
}

// A date outside what jiff can hold (year 9999 at most in X.509) does not occur; the epoch then reads as expired.
fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}
