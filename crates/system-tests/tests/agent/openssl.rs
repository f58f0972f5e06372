//! Certificates as operators make them, with plain `openssl`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// The keys that are commonly used.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Key {
    P256,
    Rsa4096,
}

impl Key {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::P256 => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Self::Rsa4096 => &["-newkey", "rsa:4096"],
        }
    }
}

/// A CA in a directory of its own; the files of a certificate are `NAME.pem` and `NAME.key.pem`.
pub(crate) struct Ca {
    dir: PathBuf,
    key: Key,
}

impl Ca {
    pub(crate) fn new(dir: &Path, key: Key) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let ca = Self { dir: dir.to_owned(), key };
        let fixed = ["req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=Test CA"];
        ca.openssl(&[&fixed, key.arguments(), &["-keyout", "ca.key.pem", "-out", "ca.pem"]].concat())?;
        Ok(ca)
    }

    /// The CA that is in a directory already, as `ca.pem` and `ca.key.pem`.
    pub(crate) fn existing(dir: &Path, key: Key) -> Self {
        Self { dir: dir.to_owned(), key }
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// A key and a certificate with these lines of extensions; without any it is of X.509 version 1.
    pub(crate) fn issue(&self, name: &str, extensions: &str) -> Result<()> {
        self.request(name)?;
        let (request, certificate) = (format!("{name}.csr"), format!("{name}.pem"));
        let sign =
            ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key.pem", "-CAcreateserial"];
        let mut arguments = [&sign[..], &["-days", "10", "-out", &certificate]].concat();
        if !extensions.is_empty() {
            fs::write(self.dir.join("ext.cnf"), extensions)?;
            arguments.extend(["-extfile", "ext.cnf"]);
        }
        self.openssl(&arguments)
    }

    /// The same, valid in 2024 only.
    pub(crate) fn issue_expired(&self, name: &str, extensions: &str) -> Result<()> {
        self.request(name)?;
        let config = format!(
            "[ca]\ndefault_ca=d\n[d]\nnew_certs_dir=.\ndatabase=index.txt\nrand_serial=yes\ndefault_md=sha256\npolicy=p\n\
             unique_subject=no\n[p]\ncommonName=supplied\n[e]\n{extensions}\n"
        );
        fs::write(self.dir.join("ca.cnf"), config)?;
        fs::write(self.dir.join("index.txt"), "")?;
        let (request, certificate) = (format!("{name}.csr"), format!("{name}.pem"));
        self.openssl(&[
            "ca",
            "-batch",
            "-config",
            "ca.cnf",
            "-extensions",
            "e",
            "-cert",
            "ca.pem",
            "-keyfile",
            "ca.key.pem",
            "-startdate",
            "20240101000000Z",
            "-enddate",
            "20240201000000Z",
            "-notext",
            "-in",
            &request,
            "-out",
            &certificate,
        ])
    }

    /// Revokes certificates, and makes a revocation list with this number (in hexadecimal, of an even length), for a day.
    pub(crate) fn revoke(&self, names: &[&str], number: &str) -> Result<String> {
        let list = format!("crl-{number}.pem");
        let config = "[ca]\ndefault_ca=d\n[d]\ndatabase=revoked.txt\ncrlnumber=crlnumber\ndefault_md=sha256\n\
                      default_crl_days=1\nunique_subject=no\n";
        fs::write(self.dir.join("crl.cnf"), config)?;
        fs::write(self.dir.join("crlnumber"), format!("{number}\n"))?;
        fs::write(self.dir.join("revoked.txt"), "")?;
        let ca = ["ca", "-batch", "-config", "crl.cnf", "-cert", "ca.pem", "-keyfile", "ca.key.pem"];
        for name in names {
            self.openssl(&[&ca[..], &["-revoke", &format!("{name}.pem")]].concat())?;
        }
        self.openssl(&[&ca[..], &["-gencrl", "-out", &list]].concat())?;
        Ok(self.file(&list))
    }

    fn request(&self, name: &str) -> Result<()> {
        let (key, request, subject) =
            (format!("{name}.key.pem"), format!("{name}.csr"), format!("/CN={name}"));
        let fixed = ["req", "-nodes", "-subj", &subject, "-keyout", &key, "-out", &request, "-new"];
        self.openssl(&[&fixed, self.key.arguments()].concat())
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        let output =
            Command::new("openssl").current_dir(&self.dir).args(arguments).output().context("no openssl")?;
        ensure!(
            output.status.success(),
            "openssl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}
