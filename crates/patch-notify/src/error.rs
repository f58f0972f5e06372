//! Why something was not sent, and what to do about it.

use std::{error::Error, io};

use lettre::transport::smtp;
use patch_types::{
    notifications::{Mail, Preset, Security},
    terminal,
};
use serde::Serialize;

/// What kind of failure it is, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The settings do not allow it.
    Settings,
    /// The password or secret cannot be had, or others may read it.
    Secret,
    /// The server did not take name and password.
    Authentication,
    /// The server's certificate is not trusted.
    Certificate,
    /// The server offers no encryption.
    NoEncryption,
    /// Nobody listens there.
    ConnectionRefused,
    /// The server's name is not known.
    NameUnknown,
    /// The server did not answer in time.
    Timeout,
    /// The server did not take this sender, recipient or message, or answered with an error.
    Rejected,
    /// Anything else between here and there.
    Network,
    /// It cannot be kept on disk.
    Storage,
}

/// Something was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {advice}")]
pub struct NotifyError {
    /// Which kind.
    pub reason: Reason,
    /// What happened, and to what.
    pub message: String,
    /// What to do.
    pub advice: String,
}

impl NotifyError {
    pub(crate) fn new(reason: Reason, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { reason, message: message.into(), advice: advice.into() }
    }

    /// An error of the connection to `whom`.
    pub(crate) fn of_io(whom: &str, error: &io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return Self::of_tls(whom, tls);
        }
        let said = error.to_string();
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::new(
                Reason::ConnectionRefused,
                format!("{whom} refused the connection"),
                "nobody listens there: check host and port, and whether a firewall on the way refuses it",
            ),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::new(
                Reason::Timeout,
                format!("{whom} did not answer in time"),
                "check host and port; many networks drop port 25, and a server for port 465 wants `tls: tls` where \
                 one for port 587 wants `tls: starttls`",
            ),
            _ if said.contains("failed to lookup address") => Self::new(
                Reason::NameUnknown,
                format!("the name of {whom} is not known"),
                "check the spelling of the host, and the name servers in /etc/resolv.conf",
            ),
            _ => Self::new(
                Reason::Network,
                format!("the connection to {whom} failed: {said}"),
                "check host, port and the way there; is it the kind of server that `tls:` says?",
            ),
        }
    }

    fn of_tls(whom: &str, error: &rustls::Error) -> Self {
        use rustls::CertificateError;
        let advice = match error {
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => "it is the certificate of another name: write the server's name as its certificate has it",
            rustls::Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => {
                "it has expired or is not valid yet: check this host's clock, and ask whoever runs the server"
            }
            rustls::Error::InvalidCertificate(_) => {
                "install ca-certificates (`apt-get install ca-certificates`), or name the server's own CA as ca_file"
            }
            _ => {
                let what = format!("{whom} does not speak TLS as it should: {error}");
                return Self::new(
                    Reason::Network,
                    what,
                    "a server for port 465 wants `tls: tls`, one for port 587 `tls: starttls`; TLS 1.2 or 1.3 is needed",
                );
            }
        };
        Self::new(
            Reason::Certificate,
            format!("certificate verify failed: {whom} showed one that is not trusted ({error})"),
            advice,
        )
    }
}

/// What an error of the mail library means.
pub(crate) fn explain(mail: &Mail, error: &smtp::Error) -> NotifyError {
    let whom = format!("{}:{}", mail.server(), mail.server_port());
    let said = terminal::line(&error.to_string()).into_owned();
    if let Some(code) = error.status() {
        return answered(mail, &whom, &code.to_string(), &said, error.is_transient());
    }
    let mut source: Option<&(dyn Error + 'static)> = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return NotifyError::of_io(&whom, io);
        }
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return NotifyError::of_tls(&whom, tls);
        }
        source = cause.source();
    }
    if said.contains("STARTTLS is not supported") {
        return NotifyError::new(
            Reason::NoEncryption,
            format!("{whom} offers no STARTTLS, and nothing is sent in the clear"),
            "use a port that offers it (usually 587), or `tls: tls` with the port for that (usually 465)",
        );
    }
    if said.contains("No compatible authentication mechanism") {
        return NotifyError::new(
            Reason::Authentication,
            format!("{whom} takes no password"),
            "use the port that mail is submitted to (587 or 465), or remove the password if the server needs none",
        );
    }
    NotifyError::new(
        Reason::Network,
        format!("{whom} was not understood: {said}"),
        match mail.security() {
            Security::Tls => "is it a mail server that speaks TLS from the first byte on that port?",
            Security::Starttls | Security::None => "is it a mail server that listens there?",
        },
    )
}

/// The server said no.
fn answered(mail: &Mail, whom: &str, code: &str, said: &str, is_transient: bool) -> NotifyError {
    let is_login =
        matches!(code, "530" | "534" | "535" | "538") || (code == "454" && said.contains("uthentication"));
    if is_login {
        let advice = match mail.preset {
            Some(Preset::M365) => {
                "use an app password (https://mysignins.microsoft.com/security-info), and have SMTP AUTH allowed for \
                 the mailbox"
            }
            Some(Preset::Gmail) => {
                "use an app password (https://myaccount.google.com/apppasswords), for which 2-step verification must be on"
            }
            Some(Preset::Sendgrid) => {
                "the password is an API key that may send mail, and the user is `apikey`"
            }
            None => {
                "check user and password; where logging in takes a second factor an app password is needed, and some \
                 servers want a password where none is configured"
            }
        };
        return NotifyError::new(
            Reason::Authentication,
            format!("authentication failed at {whom}: {said}"),
            advice,
        );
    }
    if is_transient {
        return NotifyError::new(
            Reason::Rejected,
            format!("{whom} does not take the mail now: {said}"),
            "it is tried again with the next delivery",
        );
    }
    NotifyError::new(
        Reason::Rejected,
        format!("{whom} refused the mail: {said}"),
        format!(
            "check the addresses in `from` ({}) and `to` ({}), and that the account may send as the sender",
            mail.from,
            mail.to.join(", ")
        ),
    )
}
