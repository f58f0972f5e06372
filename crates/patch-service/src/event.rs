//! What happens at the door, as values. Recording them, counting them and raising alarms are the program's part.

use std::net::{IpAddr, SocketAddr};

use crate::{certificate::CertificateFacts, listener::PeerIdentity};

/// Is told what happens at the door. Called from the accept loop and from connection tasks: must not block.
pub trait DoorObserver: Send + Sync + 'static {
    /// Takes note of one event.
    fn observe(&self, event: DoorEvent);
}

/// Why a peer that speaks TLS was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthFailure {
    /// It presented no certificate.
    NoCertificate,
    /// Its certificate is not signed by the CA.
    UnknownIssuer,
    /// Its certificate, or one above it, has expired.
    Expired,
    /// Its certificate is not valid yet.
    NotYetValid,
    /// Its certificate has been revoked.
    Revoked,
    /// The revocation list does not cover its certificate, so whether it is revoked cannot be known.
    RevocationUnknown,
    /// The revocation list itself has expired.
    RevocationListExpired,
    /// Its certificate does not name the clientAuth usage.
    WrongUsage,
    /// Its certificate is valid, but the program does not know it.
    NotAllowed,
    /// Its certificate cannot be read, or its signature does not verify.
    BadCertificate,
    /// It speaks no TLS version, cipher suite or application protocol that is offered.
    Incompatible,
    /// It broke off, or broke the protocol's rules.
    Aborted,
}

impl AuthFailure {
    /// One sentence, for people.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::NoCertificate => "the peer presented no client certificate",
            Self::UnknownIssuer => "the client certificate is not signed by the CA",
            Self::Expired => "the client certificate has expired, or that of the CA",
            Self::NotYetValid => "the client certificate is not valid yet",
            Self::Revoked => "the client certificate has been revoked",
            Self::RevocationUnknown => "the revocation list does not cover the client certificate's issuer",
            Self::RevocationListExpired => {
                "the revocation list has expired, so no client certificate can be checked"
            }
            Self::WrongUsage => "the client certificate lacks the extended key usage clientAuth",
            Self::NotAllowed => "the client certificate is valid, but its identity has no role here",
            Self::BadCertificate => "the client certificate cannot be read or its signature does not verify",
            Self::Incompatible => "the peer offers no TLS 1.3, or no protocol that is spoken here",
            Self::Aborted => "the peer broke off the TLS handshake",
        }
    }
}

impl std::fmt::Display for AuthFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message())
    }
}

/// One thing that happened at the door.
///
/// Events with a `count` are aggregated by address: the first ones are reported as they happen, with a count of 1,
/// the rest of an interval as one event when it ends. So a scan cannot flood whoever records them. What comes from more
/// addresses than are told apart is one event of the same kind with the last address, for denials [`Self::DeniedOthers`].
#[derive(Debug, Clone)]
pub enum DoorEvent {
    /// The address is not on the allow list; the connection was closed before one byte.
    Denied {
        /// Whose.
        address: IpAddr,
        /// How many connections this event stands for.
        count: u64,
    },
    /// Denials from more addresses than are told apart.
    DeniedOthers {
        /// How many connections.
        count: u64,
    },
    /// A handshake was completed with an acceptable certificate.
    AuthSucceeded {
        /// Whose.
        identity: PeerIdentity,
    },
    /// A peer that speaks TLS was refused, in silence.
    AuthFailed {
        /// From where (the last one, if the event stands for several).
        address: SocketAddr,
        /// Why.
        reason: AuthFailure,
        /// Whether it was refused because its certificate has expired.
        expired: bool,
        /// The certificate that it presented, as far as it could be read. Nothing in it is verified.
        certificate: Option<CertificateFacts>,
        /// How many connections this event stands for.
        count: u64,
    },
    /// The peer does not speak TLS.
    NotTls {
        /// Whose.
        address: IpAddr,
        /// How many connections this event stands for.
        count: u64,
    },
    /// The peer did not complete the handshake in time.
    HandshakeTimeout {
        /// Whose.
        address: IpAddr,
        /// How many connections this event stands for.
        count: u64,
    },
    /// A connection was closed because a limit on connections or unfinished handshakes is reached.
    Overload {
        /// Whose.
        address: IpAddr,
        /// How many connections this event stands for.
        count: u64,
    },
    /// The operating system would not accept a connection; tried again shortly.
    AcceptFailed {
        /// What it said.
        error: String,
    },
    /// The allow list has changed.
    AllowListChanged {
        /// Entries that are new, as they stand in the file (a name with its addresses).
        added: Vec<String>,
        /// Entries that are gone.
        removed: Vec<String>,
    },
    /// The allow list cannot be used.
    AllowListRefused {
        /// What is wrong, with file and line.
        error: String,
        /// Whether everyone is denied now (the file is missing, or there was no good list before); otherwise the last good
        /// list holds.
        denies_all: bool,
    },
    /// A name on the allow list could not be resolved; its last addresses hold.
    NameUnresolved {
        /// The name.
        name: String,
        /// What the resolver said.
        error: String,
    },
    /// Open connections were closed.
    ConnectionsClosed {
        /// Whose.
        identities: Vec<PeerIdentity>,
        /// Why.
        reason: String,
    },
}
