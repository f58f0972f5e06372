//! Whose certificates are trusted.

use std::{path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::error::{NotifyError, Reason};

/// The longest file of CAs, in bytes.
const MOST: u64 = 4 << 20;

/// The text of a file of CAs.
pub(crate) fn ca_file(path: &Path) -> Result<Vec<u8>, NotifyError> {
    let refused = |problem: &str| {
        NotifyError::new(
            Reason::Settings,
            format!("ca_file {} cannot be used: {problem}", path.display()),
            "name a file with the CA's certificate as PEM, or remove the key to trust the system's own CAs",
        )
    };
    let text = patch_files::read(path, MOST).map_err(|error| refused(&error.to_string()))?;
    if !CertificateDer::pem_slice_iter(&text).any(|certificate| certificate.is_ok()) {
        return Err(refused("there is no certificate in it"));
    }
    Ok(text)
}

/// What a webhook's server is checked by.
pub(crate) fn config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, NotifyError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let text = ca_file(path)?;
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| {
            NotifyError::new(Reason::Settings, error.to_string(), "this is a fault of the program")
        })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
