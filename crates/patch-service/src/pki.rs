//! A small certificate authority for development, tests and first steps: P-256, the CA for ten years, the rest for one.
//!
//! Its key lies in a file beside the others; a fleet's real CA belongs elsewhere.

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, RevocationReason, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    certificate::{CertificateFacts, CrlFacts, PemInput, TlsError, crl_in_pem},
    tls::{self, VerifiedCrl},
};

const DAY: u64 = 24 * 60 * 60;
const CA_DAYS: u64 = 3650;
const LEAF_DAYS: u64 = 365;
/// Clocks differ; a certificate that is used the moment it is made must not be from the future.
const BACKDATE: u64 = 60 * 60;

/// Why the files could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file is there already.
    #[error("{} exists; nothing was overwritten: remove it, or ask for it to be replaced", path.display())]
    Exists {
        /// Which file.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A name cannot be used as a file name and common name.
    #[error(
        "`{name}` cannot be a name here: 1 to 64 letters, digits, `.`, `-` or `_`, beginning with a letter or digit, and none of ca, server, crl"
    )]
    Name {
        /// Which name.
        name: String,
    },
    /// The CA's files cannot be read.
    #[error(transparent)]
    Ca(#[from] TlsError),
    /// A file is there and cannot be gone by.
    #[error("there is no {what} in {} that can be understood; nothing was written", path.display())]
    NotUnderstood {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// Of the CA's certificates none belongs to the key.
    #[error("no certificate in {} belongs to the key in {}; nothing was written", certificates.display(), key.display())]
    KeyOfAnother {
        /// The file of the certificates.
        certificates: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// A certificate is another CA's, whatever name that has.
    #[error(
        "{} was not signed by the CA whose key is in {}, so a list of that CA does not revoke it; use the CA that signed it: nothing \
         was written",
        path.display(), key.display()
    )]
    NotOfCa {
        /// Which certificate.
        path: PathBuf,
        /// The file of the CA's key.
        key: PathBuf,
    },
    /// The library refuses.
    #[error("the certificate cannot be made")]
    Make(#[from] rcgen::Error),
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The files, in the order in which they were written.
    pub files: Vec<PathBuf>,
    /// The certificates among them.
    pub certificates: Vec<CertificateFacts>,
}

/// What to do with files that are there already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Existing {
    /// Refuse.
    #[default]
    Keep,
    /// Replace them.
    Replace,
}

/// Makes a CA, a server's certificate for these names and addresses, a certificate for each client, and an empty
/// revocation list: `ca.pem`, `ca.key.pem`, `server.pem`, `server.key.pem`, `CLIENT.pem`, `CLIENT.key.pem`, `crl.pem`.
///
/// # Errors
/// When a file is there already (then nothing is written), a name cannot be used, or a file cannot be written.
pub fn init(
    directory: &Path,
    server_names: &[String],
    server_ips: &[IpAddr],
    clients: &[String],
    existing: Existing,
) -> Result<Report, PkiError> {
    clients.iter().try_for_each(|name| check_name(name))?;
    fs::create_dir_all(directory).map_err(|source| PkiError::Write { path: directory.to_owned(), source })?;
    let mut files =
        Files { directory, existing, report: Report { files: Vec::new(), certificates: Vec::new() } };
    let mut names =
        vec!["ca.key.pem".to_owned(), "ca.pem".to_owned(), "server.key.pem".to_owned(), "crl.pem".to_owned()];
    names.push("server.pem".to_owned());
    names.extend(clients.iter().flat_map(|name| [format!("{name}.key.pem"), format!("{name}.pem")]));
    names.iter().try_for_each(|name| files.check(name))?;

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params("Development CA", CA_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    files.write("ca.key.pem", &key.serialize_pem(), 0o600)?;
    files.certificate("ca.pem", &certificate)?;
    let issuer = Issuer::new(params, key);

    let mut params =
        leaf(server_names.first().map_or("server", String::as_str), ExtendedKeyUsagePurpose::ServerAuth);
    for name in server_names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.subject_alt_names.extend(server_ips.iter().map(|ip| SanType::IpAddress(*ip)));
    files.pair("server", &params, &issuer)?;
    for name in clients {
        files.pair(name, &leaf(name, ExtendedKeyUsagePurpose::ClientAuth), &issuer)?;
    }
    let crl = usual_crl(&issuer, &[], 1)?;
    files.write("crl.pem", &crl, 0o644)?;
    Ok(files.report)
}

/// Adds a client to the CA in `directory`.
///
/// # Errors
/// As for [`init`], and when the CA's files cannot be used.
pub fn add_client(directory: &Path, name: &str, existing: Existing) -> Result<Report, PkiError> {
    check_name(name)?;
    let (issuer, _) = authority(directory)?;
    let mut files =
        Files { directory, existing, report: Report { files: Vec::new(), certificates: Vec::new() } };
    files.check(&format!("{name}.key.pem"))?;
    files.check(&format!("{name}.pem"))?;
    files.pair(name, &leaf(name, ExtendedKeyUsagePurpose::ClientAuth), &issuer)?;
    Ok(files.report)
}

/// Writes `crl.pem` anew, with the next number, revoking these clients, the server if that is named, and whoever was revoked
/// before. Where `ca.pem` holds several CAs, it is the one whose key is there, also among CAs of the same name; lists of the
/// others stay in the file as they are.
///
/// # Errors
/// When a certificate or the CA's files cannot be read, a certificate or the list before is not of these CAs, or the list
/// cannot be written.
pub fn write_crl(directory: &Path, revoke: &[String]) -> Result<CrlFacts, PkiError> {
    revoke.iter().filter(|name| *name != "server").try_for_each(|name| check_name(name))?;
    let (issuer, ca) = authority(directory)?;
    let path = directory.join("crl.pem");
    // What it revokes must not get lost.
    let is_missing = fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let before = if is_missing {
        Vec::new()
    } else {
        tls::verify_crl(&PemInput::read(&path)?, &PemInput::read(&directory.join("ca.pem"))?)?
    };
    let signer = tls::signer_of(&ca)?;
    let (own, others): (Vec<VerifiedCrl>, Vec<VerifiedCrl>) =
        before.into_iter().partition(|list| list.facts.signer == signer);
    // Agents refuse a list whose number is not higher.
    let mut number = 0;
    for text in own.iter().filter_map(|list| list.facts.number.as_deref()) {
        let before = u64::from_str_radix(text, 16).ok().filter(|number| *number < u64::MAX);
        let too_high = || not_understood(&path, "revocation list with a number below 2^64");
        number = number.max(before.ok_or_else(too_high)?);
    }
    let mut serials: Vec<String> = own.into_iter().flat_map(|list| list.facts.revoked).collect();
    for name in revoke {
        serials.push(serial(directory, name, Some(&ca))?);
    }
    serials.sort();
    serials.dedup();
    let mut pem = usual_crl(&issuer, &serials, number + 1)?;
    pem.extend(others.iter().map(|list| crl_in_pem(list.der())));
    let mut files = Files {
        directory,
        existing: Existing::Replace,
        report: Report { files: Vec::new(), certificates: Vec::new() },
    };
    files.write("crl.pem", &pem, 0o644)?;
    let written = PemInput::read(&path)?;
    let facts = written.crls()?.first().and_then(|der| CrlFacts::from_der(der));
    facts.ok_or(PkiError::Make(rcgen::Error::CouldNotParseCertificate))
}

/// That of a client's certificate, which has to be of a CA, if one is given.
fn serial(directory: &Path, name: &str, ca: Option<&CertificateDer<'_>>) -> Result<String, PkiError> {
    let path = directory.join(format!("{name}.pem"));
    let input = PemInput::read(&path)?;
    let certificates = input.certificates()?;
    let known = certificates.first().and_then(|der| Some((der, CertificateFacts::from_der(der)?)));
    let (der, facts) = known.ok_or_else(|| not_understood(&path, "certificate"))?;
    if ca.is_some_and(|ca| !tls::is_signed_by(der, ca)) {
        return Err(PkiError::NotOfCa { path, key: directory.join(CA_KEY) });
    }
    Ok(facts.serial)
}

fn not_understood(path: &Path, what: &'static str) -> PkiError {
    PkiError::NotUnderstood { path: path.to_owned(), what }
}

/// A revocation list of the CA in `directory`, in PEM, that revokes these clients only; nothing is written.
///
/// # Errors
/// When a client's certificate or the CA's files cannot be read.
pub fn make_crl(
    directory: &Path,
    revoke: &[String],
    number: u64,
    this_update: Timestamp,
    next_update: Timestamp,
) -> Result<String, PkiError> {
    revoke.iter().try_for_each(|name| check_name(name))?;
    let mut serials = Vec::new();
    for name in revoke {
        serials.push(serial(directory, name, None)?);
    }
    let seconds = |at: Timestamp| u64::try_from(at.as_second()).unwrap_or_default();
    crl(&authority(directory)?.0, &serials, number, seconds(this_update), seconds(next_update))
}

fn check_name(name: &str) -> Result<(), PkiError> {
    let good = (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        // Else one client's certificate would be another's key file.
        && !name.ends_with(".key")
        && !["ca", "server", "crl"].contains(&name);
    if good { Ok(()) } else { Err(PkiError::Name { name: name.to_owned() }) }
}

/// The library's clock type is not exported under a name; it is had from its own constructor.
macro_rules! in_seconds {
    ($seconds:expr) => {
        rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs($seconds)
    };
}

fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}

fn params(common_name: &str, days: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = in_seconds!(now().saturating_sub(BACKDATE));
    params.not_after = in_seconds!(now() + days * DAY);
    params.use_authority_key_identifier_extension = true;
    params
}

fn leaf(common_name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = params(common_name, LEAF_DAYS);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params
}

/// Where the CA's key is.
const CA_KEY: &str = "ca.key.pem";

/// The longest file of a key, in bytes.
const MAX_KEY: u64 = 64 << 10;

/// The CA of a directory: of the certificates there the one that belongs to the key. Others may have the same name.
fn authority(directory: &Path) -> Result<(Issuer<'static, KeyPair>, CertificateDer<'static>), PkiError> {
    let (key_file, certificates) = (directory.join(CA_KEY), directory.join("ca.pem"));
    let unreadable =
        |e: io::Error| TlsError::Unreadable { file: key_file.display().to_string(), error: e.to_string() };
    let key = KeyPair::from_pem(&patch_files::read_text(&key_file, MAX_KEY).map_err(unreadable)?)?;
    let is_of_key = |der: &CertificateDer<'_>| {
        X509Certificate::from_der(der)
            .is_ok_and(|(_, parsed)| *parsed.public_key().subject_public_key.data == *key.der_bytes())
    };
    let found = PemInput::read(&certificates)?.certificates()?.into_iter().find(is_of_key);
    let ca = found.ok_or_else(|| PkiError::KeyOfAnother { certificates, key: key_file.clone() })?;
    Ok((Issuer::from_ca_cert_der(&ca, key)?, ca))
}

fn usual_crl(issuer: &Issuer<'_, KeyPair>, serials: &[String], number: u64) -> Result<String, PkiError> {
    crl(issuer, serials, number, now().saturating_sub(BACKDATE), now() + LEAF_DAYS * DAY)
}

/// The last two are in seconds since 1970.
fn crl(
    issuer: &Issuer<'_, KeyPair>,
    serials: &[String],
    number: u64,
    this_update: u64,
    next_update: u64,
) -> Result<String, PkiError> {
    let this_update = in_seconds!(this_update);
    let revoked = serials.iter().filter_map(|serial| {
        let padded = if serial.len() % 2 == 0 { serial.clone() } else { format!("0{serial}") };
        Some(RevokedCertParams {
            serial_number: SerialNumber::from(hex::decode(padded).ok()?),
            revocation_time: this_update,
            reason_code: Some(RevocationReason::CessationOfOperation),
            invalidity_date: None,
        })
    });
    let params = CertificateRevocationListParams {
        this_update,
        next_update: in_seconds!(next_update),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(issuer)?.pem()?)
}

/// The list of any issuer.
#[cfg(test)]
pub(crate) fn list(issuer: &Issuer<'_, KeyPair>, serials: &[String]) -> String {
    usual_crl(issuer, serials, 1).unwrap()
}

/// A client whose validity is given in seconds since 1970.
#[cfg(test)]
pub(crate) fn dated_client(
    directory: &Path,
    name: &str,
    not_before: u64,
    not_after: u64,
) -> Result<(), PkiError> {
    let (issuer, _) = authority(directory)?;
    let mut params = leaf(name, ExtendedKeyUsagePurpose::ClientAuth);
    params.not_before = in_seconds!(not_before);
    params.not_after = in_seconds!(not_after);
    let report = Report { files: Vec::new(), certificates: Vec::new() };
    Files { directory, existing: Existing::Keep, report }.pair(name, &params, &issuer)
}

struct Files<'a> {
    directory: &'a Path,
    existing: Existing,
    report: Report,
}

impl Files<'_> {
    fn check(&self, name: &str) -> Result<(), PkiError> {
        let path = self.directory.join(name);
        if self.existing == Existing::Keep && path.symlink_metadata().is_ok() {
            return Err(PkiError::Exists { path });
        }
        Ok(())
    }

    fn pair(
        &mut self,
        name: &str,
        params: &CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<(), PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, issuer)?;
        self.write(&format!("{name}.key.pem"), &key.serialize_pem(), 0o600)?;
        self.certificate(&format!("{name}.pem"), &certificate)
    }

    fn certificate(&mut self, name: &str, certificate: &rcgen::Certificate) -> Result<(), PkiError> {
        self.write(name, &certificate.pem(), 0o644)?;
        self.report.certificates.extend(CertificateFacts::from_der(certificate.der()));
        Ok(())
    }

    /// Writes a file that is nobody's until it is whole, with its mode from the first byte.
    fn write(&mut self, name: &str, text: &str, mode: u32) -> Result<(), PkiError> {
        let path = self.directory.join(name);
        let fresh = self.directory.join(format!(".{name}.new"));
        let failed = |source: io::Error| PkiError::Write { path: path.clone(), source };
        match fs::remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&fresh)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| match self.existing {
                // A link, unlike a rename, never replaces what somebody else made meanwhile.
                Existing::Keep => fs::hard_link(&fresh, &path).and_then(|()| fs::remove_file(&fresh)),
                Existing::Replace => fs::rename(&fresh, &path),
            });
        if let Err(source) = written {
            drop(fs::remove_file(&fresh));
            return Err(match source.kind() {
                io::ErrorKind::AlreadyExists => PkiError::Exists { path },
                _ => failed(source),
            });
        }
        self.report.files.push(path);
        Ok(())
    }
}

#[cfg(test)]
#[path = "pki_tests.rs"]
mod tests;
