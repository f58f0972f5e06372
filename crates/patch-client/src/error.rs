//! What can go wrong between a client and an agent, each with what a person can do about it.

use std::{fmt, io, path::PathBuf, time::Duration};

use patch_types::ErrorDetail;
use uuid::Uuid;

/// How far a connection had come when the agent closed it without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before the agent had sent anything: what it does to addresses that are not on its allow list.
    Handshake,
    /// After its side of the handshake: what it does to certificates that it does not accept.
    Request,
}

/// What is the matter with a file of the client.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    /// It holds nothing of the kind.
    #[error("it holds no {expected} in PEM: expected a line -----BEGIN {label}-----")]
    Missing {
        /// What was looked for, such as "certificate".
        expected: &'static str,
        /// The label of its first line.
        label: &'static str,
    },
    /// The key is encrypted.
    #[error(
        "the private key is encrypted with a passphrase, which is not supported; decrypt it with: openssl pkey -in KEY -out NEW"
    )]
    EncryptedKey,
    /// PEM or DER that does not parse.
    #[error("it cannot be understood: {0}")]
    Malformed(String),
    /// An X.509 v1 certificate.
    #[error(
        "it holds an X.509 version 1 certificate, which modern TLS refuses (plain `openssl x509 -req` makes those); \
         issue it again with extensions: openssl x509 -req -extfile EXTENSIONS …"
    )]
    VersionOne,
    /// It is not valid any more.
    #[error(
        "its certificate ({subject}) expired on {at}; have a new one issued, or check this machine's clock"
    )]
    Expired {
        /// Whose.
        subject: String,
        /// When.
        at: String,
    },
    /// It is not valid yet.
    #[error("its certificate ({subject}) is not valid before {at}; check this machine's clock")]
    NotYetValid {
        /// Whose.
        subject: String,
        /// From when.
        at: String,
    },
    /// It may not be used by clients.
    #[error(
        "its certificate ({subject}) lacks the extended key usage clientAuth, without which agents refuse it; have it \
         issued again with extendedKeyUsage=clientAuth"
    )]
    NotForClients {
        /// Whose.
        subject: String,
    },
    /// It is not a CA's.
    #[error(
        "its certificate ({subject}) is not a CA's (basicConstraints CA:TRUE is missing); name the file of the CA that \
         issued the agent's certificate"
    )]
    NotACa {
        /// Whose.
        subject: String,
    },
    /// Certificate and key do not belong together.
    #[error("it is not the key of the certificate in {certificate}")]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
    },
}

/// Why there is no answer, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be understood.
    #[error("{text:?} is not an agent's address: {reason}")]
    Address {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name given for the agent's certificate cannot be one.
    #[error("{0:?} is not a name that a certificate can carry")]
    ServerName(String),
    /// A file of the client is not usable.
    #[error("{what} {}: {problem}", path.display())]
    File {
        /// What it is for, such as "the client's key".
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// What is the matter.
        problem: FileProblem,
    },
    /// No connection.
    #[error("cannot connect to {address}: {reason}{}", advice(reason))]
    Unreachable {
        /// The agent's address.
        address: String,
        /// The operating system's words.
        reason: String,
    },
    /// No connection or no answer in time.
    #[error("{address} did not {what} within {} s{}", after.as_secs_f32(), timeout_advice(*connecting))]
    TimedOut {
        /// The agent's address.
        address: String,
        /// What it did not do.
        what: &'static str,
        /// Whether it was about connecting.
        connecting: bool,
        /// The limit.
        after: Duration,
    },
    /// The connection was closed without a word.
    #[error("{}", Silence { address, stage: *stage, facts })]
    Refused {
        /// The agent's address.
        address: String,
        /// How far it had come.
        stage: Stage,
        /// What is known of the client's certificate, one sentence each.
        facts: Vec<String>,
    },
    /// The agent's certificate is not acceptable to this client.
    #[error("the certificate of {address} is not acceptable: {reason}")]
    ServerCertificate {
        /// The agent's address.
        address: String,
        /// Why, and what to do.
        reason: String,
    },
    /// TLS failed otherwise.
    #[error("no TLS 1.3 connection to {address}: {reason}")]
    Tls {
        /// The agent's address.
        address: String,
        /// Why.
        reason: String,
    },
    /// The connection broke while an answer was coming, or it was not HTTP.
    #[error("the connection to {address} broke: {reason}")]
    Broken {
        /// The agent's address.
        address: String,
        /// Why.
        reason: String,
    },
    /// The agent answered with an error.
    #[error("{} (HTTP {status}, {}, request {request_id})", detail.message, detail.code)]
    Api {
        /// The HTTP status.
        status: u16,
        /// What happened.
        detail: Box<ErrorDetail>,
        /// The request's id, by which the agent's audit trail names it.
        request_id: Uuid,
    },
    /// The answer is not one of this API.
    #[error(
        "the answer could not be understood: {reason}; is this an agent, and of a version that fits this client?"
    )]
    Body {
        /// The request's id, if the answer named one.
        request_id: Option<Uuid>,
        /// What is wrong with it.
        reason: String,
    },
    /// The client could not be built.
    #[error("the client could not be set up: {0}")]
    Setup(String),
}

impl Error {
    /// Whether the agent was not reached, or closed the connection without an answer.
    #[must_use]
    pub fn is_connection(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::TimedOut { .. }
                | Self::Refused { .. }
                | Self::ServerCertificate { .. }
                | Self::Tls { .. }
                | Self::Broken { .. }
        )
    }

    /// Whether this is about the client's own configuration: nothing was sent.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Address { .. } | Self::ServerName(_) | Self::File { .. } | Self::Setup(_))
    }

    /// Whether the same may succeed a moment later, by the connection's nature or the agent's own word.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Refused { .. } | Self::Broken { .. } => {
                true
            }
            Self::Api { status, .. } => matches!(status, 429 | 502..=504),
            _ => false,
        }
    }
}

fn advice(reason: &str) -> &'static str {
    if reason.contains("refused") {
        "; check that the agent runs (systemctl status linux-patch-api) and that the port is right"
    } else if reason.contains("lookup") || reason.contains("resolve") {
        "; check the host's name"
    } else {
        ""
    }
}

fn timeout_advice(connecting: bool) -> &'static str {
    if connecting {
        "; check the address, and that no firewall drops the packets"
    } else {
        "; the host may be busy, try a longer --timeout"
    }
}

/// Agents refuse strangers without a word, so the client has to explain what the silence can mean.
struct Silence<'a> {
    address: &'a str,
    stage: Stage,
    facts: &'a [String],
}

impl fmt::Display for Silence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, stage, facts } = self;
        match stage {
            Stage::Handshake => write!(
                f,
                "{address} closed the connection before the TLS handshake. An agent does this, without a word, when:\n  \
                 - this machine's IPv4 address is not in allowed_ips of /etc/linux_patch_api/whitelist.yaml there\n  \
                 - too many handshakes are unfinished, or it is being stopped\n  \
                 - what listens there is not an agent"
            )?,
            Stage::Request => write!(
                f,
                "{address} closed the connection after the TLS handshake without an answer. An agent does this, without \
                 a word, when it does not accept the client's certificate. Check that the certificate:\n  \
                 - was issued by the CA that the agent trusts (ca.pem there)\n  \
                 - is in its validity period by the agent's clock, and not on its revocation list\n  \
                 - has the extended key usage clientAuth\n  \
                 - is named in security.roles of the agent's configuration, if there is such a list\n\
                 A revocation list that has expired refuses everybody; an agent that was just stopped looks the same."
            )?,
        }
        for fact in *facts {
            write!(f, "\nNote: {fact}")?;
        }
        write!(f, "\nThe agent's audit trail names the reason: journalctl -u linux-patch-api there.")
    }
}
