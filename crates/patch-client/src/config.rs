//! What a client has to know before it can connect, and how a change is to be submitted.

use std::{path::PathBuf, time::Duration};

use uuid::Uuid;

use crate::address::Address;

/// How to reach one agent.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Where the agent is.
    pub address: Address,
    /// The CA that signed the agent's certificate, in PEM. Nothing else is trusted, the system's roots included.
    pub ca: PathBuf,
    /// The client's certificate in PEM, with its chain if it has one.
    pub certificate: PathBuf,
    /// The client's private key in PEM.
    pub key: PathBuf,
    /// The name that the agent's certificate must carry, where it is not the host: for an agent that is reached by an
    /// address that its certificate does not name.
    pub server_name: Option<String>,
    /// How long connecting may take, the TLS handshake included.
    pub connect_timeout: Duration,
    /// How long one request may take; `Prefer: wait` comes on top.
    pub timeout: Duration,
    /// How long an agent that was there before may be gone before following a job gives up. Generous, since an agent
    /// that updates itself or a host that reboots comes back.
    pub reconnect_for: Duration,
}

impl ClientConfig {
    /// A configuration with the usual limits: 10 s to connect, 60 s for a request, 3 minutes to come back.
    #[must_use]
    pub fn new(
        address: Address,
        ca: impl Into<PathBuf>,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        Self {
            address,
            ca: ca.into(),
            certificate: certificate.into(),
            key: key.into(),
            server_name: None,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(60),
            reconnect_for: Duration::from_secs(180),
        }
    }
}

/// How a change is submitted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Submit {
    /// `Prefer: wait=N`: answer with the ended job if it ends within this many seconds.
    pub wait_seconds: Option<u32>,
    /// `Idempotency-Key`: the agent answers a repeated request with the first one's job. With a key, a request whose
    /// answer was lost is sent again; without one it is not, since nobody knows whether it was taken on.
    pub idempotency_key: Option<String>,
}

impl Submit {
    /// With a key of its own, so that a lost answer does no harm.
    #[must_use]
    pub fn repeatable() -> Self {
        Self { wait_seconds: None, idempotency_key: Some(Uuid::new_v4().to_string()) }
    }

    /// The same, waiting up to so many seconds for the job to end.
    #[must_use]
    pub fn wait(mut self, seconds: u32) -> Self {
        self.wait_seconds = Some(seconds);
        self
    }
}
