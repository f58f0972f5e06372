//! Accepts connections, lets the right ones in, serves HTTP on them, and closes them again.
//!
//! The gates in their order: the allow list (before one byte), limits, TLS with a client certificate (in silence),
//! and the certificate's identity. What is served is the program's router; what is recorded, its observer's affair.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::CertificateError;
use rustls_pki_types::CertificateDer;
use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};

use crate::{
    allowlist::SharedAllowList,
    certificate::CertificateFacts,
    event::{AuthFailure, DoorEvent, DoorObserver},
    handshakes::{Handshakes, Place},
    registry::{Admission, Bounds, Registry, Socket},
    reports::{Refused, Reports},
    silence::Gate,
    tls::{LoadedTls, PRESENTED},
};

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// How long connections that have begun when a listener is closed have to complete their first packets.
const LAST_CONNECTIONS: Duration = Duration::from_millis(250);

/// Who is at the other end: an extension of every request. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PeerIdentity(Arc<Peer>);

#[derive(Debug)]
struct Peer {
    facts: CertificateFacts,
    chain: Vec<CertificateDer<'static>>,
    address: SocketAddr,
    accepted: Instant,
}

impl PeerIdentity {
    /// An identity from the certificates that a peer presented, leaf first, over a connection that is accepted now. None
    /// if the leaf cannot be read.
    #[must_use]
    pub fn new(chain: Vec<CertificateDer<'static>>, address: SocketAddr) -> Option<Self> {
        let facts = CertificateFacts::from_der(chain.first()?)?;
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        Some(Self(Arc::new(Peer { facts, chain, address, accepted: Instant::now() })))
    }

    /// An identity without a certificate behind it, for tests of what lies behind the door.
    #[must_use]
    pub fn from_facts(facts: CertificateFacts, address: SocketAddr) -> Self {
        Self(Arc::new(Peer { facts, chain: Vec::new(), address, accepted: Instant::now() }))
    }

    /// The same identity over a connection that was accepted at another instant.
    #[must_use]
    pub fn accepted_at(self, accepted: Instant) -> Self {
        let Peer { facts, chain, address, .. } = &*self.0;
        Self(Arc::new(Peer { facts: facts.clone(), chain: chain.clone(), address: *address, accepted }))
    }

    /// The certificate's common name.
    #[must_use]
    pub fn common_name(&self) -> &str {
        &self.0.facts.common_name
    }

    /// SHA-256 of the certificate in lower-case hexadecimal.
    #[must_use]
    pub fn fingerprint_sha256(&self) -> &str {
        &self.0.facts.fingerprint_sha256
    }

    /// The certificate's serial number in lower-case hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.0.facts.serial
    }

    /// All that the certificate says.
    #[must_use]
    pub fn certificate(&self) -> &CertificateFacts {
        &self.0.facts
    }

    /// Where it connects from; an IPv4-mapped address is shown as IPv4.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// When its connection was accepted.
    #[must_use]
    pub fn accepted(&self) -> Instant {
        self.0.accepted
    }

    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }
}

/// Limits of the door.
#[derive(Debug, Clone)]
pub struct DoorSettings {
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// How many handshakes may be unfinished.
    pub max_handshakes: usize,
    /// How many of them from one address.
    pub max_handshakes_per_address: usize,
    /// How many connections may be open, unfinished handshakes included.
    pub max_connections: usize,
    /// How many of them from one address.
    pub max_connections_per_address: usize,
    /// How many of them with one certificate. One more takes the place of the one that has waited longest for a request.
    pub max_connections_per_identity: usize,
    /// How long a connection may wait for the next request's complete header block. WebSockets are not affected.
    pub idle_timeout: Duration,
    /// How long a peer may leave what was sent to it unread before its connection is cut.
    pub unread_timeout: Duration,
    /// What the HTTP library accepts as a header block, in bytes. Above the limit of [`crate::strict`], so that its
    /// answer is the one that clients see.
    pub max_header_size: usize,
    /// How many header lines the HTTP library accepts.
    pub max_headers: usize,
    /// Over how long refusals of one address are put together.
    pub report_interval: Duration,
}

impl Default for DoorSettings {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            max_handshakes: 256,
            // A manager opens its streams to a host all at once, and from one address.
            max_handshakes_per_address: 64,
            max_connections: 1024,
            max_connections_per_address: 256,
            // Fewer than of an address: behind most there is one identity.
            max_connections_per_identity: 128,
            idle_timeout: Duration::from_secs(75),
            unread_timeout: Duration::from_secs(60),
            max_header_size: 16 * 1024,
            max_headers: 256,
            report_interval: Duration::from_secs(60),
        }
    }
}

/// The door. Clones share everything; one door may serve several listeners, such as the old and the new one while
/// an address is changed.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    settings: DoorSettings,
    tls: ArcSwap<LoadedTls>,
    allow: SharedAllowList,
    reports: Arc<Reports>,
    registry: Arc<Registry>,
    handshakes: Arc<Handshakes>,
    draining: CancellationToken,
}

impl Door {
    /// A door that lets in whom `allow` and `tls` let in.
    #[must_use]
    pub fn new(
        settings: DoorSettings,
        tls: LoadedTls,
        allow: SharedAllowList,
        observer: Arc<dyn DoorObserver>,
    ) -> Self {
        let reports = Reports::new(observer, settings.report_interval);
        let bounds = Bounds {
            in_all: settings.max_connections,
            per_address: settings.max_connections_per_address,
            per_identity: settings.max_connections_per_identity,
        };
        let registry = Registry::new(bounds, settings.unread_timeout);
        let handshakes = Handshakes::new(settings.max_handshakes, settings.max_handshakes_per_address);
        let tls = ArcSwap::from_pointee(tls);
        let draining = CancellationToken::new();
        Self(Arc::new(Inner { settings, tls, allow, reports, registry, handshakes, draining }))
    }

    /// Binds an address. Port 0 takes a free one. The same process may bind overlapping addresses, such as one of the
    /// host's beside all of them, while it moves from one to the other; another user's cannot.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub async fn bind(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    }

    /// Accepts and serves until `stop` is cancelled, then closes the listener. Connections go on; [`Door::drain`]
    /// ends them. Unless the door is draining, what is on its way to the listener at that moment is served too: a
    /// listener that is replaced by another loses no client.
    pub async fn serve<S>(&self, listener: TcpListener, service: S, stop: CancellationToken)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let mut changes = self.0.allow.subscribe();
        // What has changed before is no change to this listener, and the one before may have ended without seeing it.
        self.close_denied();
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = changes.changed() => { self.close_denied(); }
                accepted = accept(&listener, pause) => match accepted {
                    Ok((stream, address)) => {
                        pause = Duration::ZERO;
                        self.admit(stream, address, &service);
                    }
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        // Out of descriptors or memory: trying again at once would only burn the CPU that others
                        // need in order to finish.
                        if pause.is_zero() {
                            self.0.reports.observe(DoorEvent::AcceptFailed { error: error.to_string() });
                        }
                        pause = (pause * 2).clamp(Duration::from_millis(50), Duration::from_secs(1));
                    }
                },
            }
        }
        tokio::select! {
            biased;
            () = self.0.draining.cancelled() => {}
            () = self.admit_last(&listener, &service) => {}
        }
    }

    /// Serves what has begun to connect, and nobody else. Closing the listener would reset them, though another one that
    /// listens at their address would serve them: its turn comes when they try again.
    async fn admit_last<S>(&self, listener: &TcpListener, service: &S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        // Without it a few more may come in before the end, and be lost.
        if let Err(error) = refuse_newcomers(listener) {
            tracing::debug!(%error, "connections cannot be held off from the listener that is closed");
        }
        let last = async {
            loop {
                if let Ok((stream, address)) = listener.accept().await {
                    self.admit(stream, address, service);
                }
            }
        };
        // The end is time, not an error.
        let _ = tokio::time::timeout(LAST_CONNECTIONS, last).await;
    }

    /// Puts another TLS configuration into effect: for new handshakes, and for open connections, of which those are
    /// closed whose certificate it does not permit.
    pub fn swap_tls(&self, tls: LoadedTls) -> usize {
        self.0.tls.store(Arc::new(tls));
        self.close_unpermitted("the certificate is no longer accepted")
    }

    /// Judges all open connections again by the configuration in effect, and closes those that it does not permit:
    /// certificates that have expired meanwhile, identities that the program no longer knows.
    pub fn close_unpermitted(&self, reason: &str) -> usize {
        let tls = self.0.tls.load_full();
        self.close(reason, |_, peer| peer.is_some_and(|peer| !tls.permits(peer)))
    }

    /// Closes, at once, the open connections of all peers that the test is true of, WebSockets included.
    pub fn close_where(&self, reason: &str, test: impl Fn(&PeerIdentity) -> bool) -> usize {
        self.close(reason, |_, peer| peer.is_some_and(&test))
    }

    /// The TLS configuration in effect.
    #[must_use]
    pub fn tls(&self) -> Arc<LoadedTls> {
        self.0.tls.load_full()
    }

    /// The allow list that is asked.
    #[must_use]
    pub fn allow_list(&self) -> &SharedAllowList {
        &self.0.allow
    }

    /// How many connections are open.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.0.registry.len()
    }

    /// Waits until a connection is open.
    pub async fn occupied(&self) {
        self.0.registry.occupied().await;
    }

    /// Cancelled when draining begins. Long-lived connections, such as WebSockets, should say goodbye then.
    #[must_use]
    pub fn draining(&self) -> CancellationToken {
        self.0.draining.clone()
    }

    /// Lets requests in flight finish for at most `limit`, then closes what is left. Stop the listeners first.
    pub async fn drain(&self, limit: Duration) {
        self.0.draining.cancel();
        if tokio::time::timeout(limit, self.0.registry.empty()).await.is_err() {
            self.close("shutting down", |_, _| true);
        }
        self.0.reports.flush();
    }

    fn close_denied(&self) {
        let allow = self.0.allow.load();
        self.close("the address is no longer on the allow list", |address, _| !allow.permits(address));
    }

    fn close(&self, reason: &str, test: impl Fn(IpAddr, Option<&PeerIdentity>) -> bool) -> usize {
        let (identities, nameless) = self.0.registry.cut_where(test);
        let count = identities.len() + nameless;
        if !identities.is_empty() {
            self.0.reports.observe(DoorEvent::ConnectionsClosed { identities, reason: reason.to_owned() });
        }
        count
    }

    fn admit<S>(&self, stream: TcpStream, address: SocketAddr, service: &S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let ip = address.ip().to_canonical();
        if !self.0.allow.load().permits(ip) {
            self.0.reports.refused(address, Refused::Denied, None);
            return;
        }
        self.take_in(stream, address, service);
    }

    /// Has a connection served whose address was permitted a moment ago.
    fn take_in<S>(&self, stream: TcpStream, address: SocketAddr, service: &S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let ip = address.ip().to_canonical();
        let Some(place) = self.0.handshakes.enter(ip) else {
            self.0.reports.refused(address, Refused::Overload, None);
            return;
        };
        let Some(socket) = self.0.registry.enter(stream, ip) else {
            self.0.reports.refused(address, Refused::Overload, None);
            return;
        };
        // From here on a change finds this connection. One that came between the look above and this may have been seen
        // by another listener alone, which did not find it.
        if !self.0.allow.load().permits(ip) {
            self.0.reports.refused(address, Refused::Denied, None);
            return;
        }
        // Before the handshake, which may take a while: whether a connection is new is told by when it was made.
        let accepted = Instant::now();
        let (door, service) = (self.clone(), service.clone());
        tokio::spawn(async move {
            let cut = socket.cut();
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                () = door.attend(socket, place, (address, accepted), service) => {}
            }
        });
    }

    async fn attend<S>(
        &self,
        socket: Socket,
        place: Place,
        (address, accepted): (SocketAddr, Instant),
        service: S,
    ) where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let tls = self.0.tls.load_full();
        let evicted = place.evicted.clone();
        // Boxed, so that its memory goes with it; the connection may last for days.
        let shaking = Box::pin(shake_hands(&tls, socket, address));
        let shaken = tokio::select! {
            biased;
            () = evicted.cancelled() => Err((Refused::Overload, None)),
            shaken = tokio::time::timeout(self.0.settings.handshake_timeout, shaking) => {
                shaken.unwrap_or(Err((Refused::Timeout, None)))
            }
        };
        drop(place);
        let (stream, peer) = match shaken {
            Ok((stream, peer)) => (stream, peer.accepted_at(accepted)),
            Err((why, certificate)) => return self.0.reports.refused(address, why, certificate),
        };
        match stream.get_ref().0.get_ref().identify(peer.clone()) {
            Admission::Welcome => {}
            Admission::InPlaceOf(former) => {
                let certificate = Some(former.certificate().clone());
                self.0.reports.refused(former.address(), Refused::Overload, certificate);
            }
            Admission::Full => {
                let certificate = Some(peer.certificate().clone());
                return self.0.reports.refused(address, Refused::Overload, certificate);
            }
        }
        // Another configuration may have come into effect since the handshake began; from here on it is the
        // registry by which a change finds this connection.
        let now = self.0.tls.load_full();
        if !Arc::ptr_eq(&now, &tls) && !now.permits(&peer) {
            return self.0.reports.refused(
                address,
                Refused::Auth(AuthFailure::NotAllowed),
                Some(peer.certificate().clone()),
            );
        }
        self.0.reports.observe(DoorEvent::AuthSucceeded { identity: peer.clone() });
        self.converse(stream, peer, service).await;
    }

    async fn converse<S>(&self, stream: TlsStream<Gate<Socket>>, peer: PeerIdentity, service: S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let attention = stream.get_ref().0.get_ref().attention();
        let handler = service_fn(move |request: Request<Incoming>| {
            attention.is_given();
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            let (answer, attention) = (service.clone().oneshot(request), attention.clone());
            async move {
                let answer = answer.await;
                // A WebSocket waits for nothing that could be late.
                if answer.as_ref().is_ok_and(|it| it.status() != StatusCode::SWITCHING_PROTOCOLS) {
                    attention.waits();
                }
                answer
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.0.settings.idle_timeout)
            .max_header_size(self.0.settings.max_header_size)
            .max_headers(self.0.settings.max_headers)
            .serve_connection(TokioIo::new(stream), handler)
            .with_upgrades();
        let mut connection = pin!(connection);
        // How a connection ends is the peer's business; requests are what is recorded.
        tokio::select! {
            ended = connection.as_mut() => drop(ended),
            () = self.0.draining.cancelled() => {
                connection.as_mut().graceful_shutdown();
                drop(connection.await);
            }
        }
    }
}

type Refusal = (Refused, Option<CertificateFacts>);

async fn shake_hands(
    tls: &LoadedTls,
    socket: Socket,
    address: SocketAddr,
) -> Result<(TlsStream<Gate<Socket>>, PeerIdentity), Refusal> {
    let accept = TlsAcceptor::from(tls.config()).accept(Gate::new(socket)).into_fallible();
    let (shaken, presented) = PRESENTED
        .scope(std::cell::RefCell::new(None), async {
            let shaken = accept.await;
            (shaken, PRESENTED.with(std::cell::RefCell::take))
        })
        .await;
    let mut stream =
        shaken.map_err(|(error, gate)| (classify(&error, gate.has_greeted()), presented.clone()))?;
    let chain: Vec<_> = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let chain = chain.into_iter().map(CertificateDer::into_owned).collect();
    let peer =
        PeerIdentity::new(chain, address).ok_or((Refused::Auth(AuthFailure::BadCertificate), presented))?;
    stream.get_mut().0.open();
    Ok((stream, peer))
}

fn classify(error: &io::Error, greeted: bool) -> Refused {
    use rustls::Error as Tls;
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) else {
        return Refused::Auth(AuthFailure::Aborted);
    };
    Refused::Auth(match tls {
        Tls::InvalidMessage(_) | Tls::InappropriateMessage { .. } if !greeted => return Refused::NotTls,
        Tls::NoCertificatesPresented => AuthFailure::NoCertificate,
        Tls::PeerIncompatible(_) | Tls::NoApplicationProtocol => AuthFailure::Incompatible,
        Tls::InvalidCertificate(certificate) => match certificate {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => AuthFailure::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                AuthFailure::NotYetValid
            }
            CertificateError::Revoked => AuthFailure::Revoked,
            CertificateError::UnknownRevocationStatus => AuthFailure::RevocationUnknown,
            CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => AuthFailure::RevocationListExpired,
            CertificateError::UnknownIssuer => AuthFailure::UnknownIssuer,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                AuthFailure::WrongUsage
            }
            CertificateError::ApplicationVerificationFailure => AuthFailure::NotAllowed,
            _ => AuthFailure::BadCertificate,
        },
        _ => AuthFailure::Aborted,
    })
}

async fn accept(listener: &TcpListener, pause: Duration) -> io::Result<(TcpStream, SocketAddr)> {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    listener.accept().await
}

/// Drops the first packet of every further connection. Its client sends it again after a second, and by then the listener
/// is closed and another one has the address.
fn refuse_newcomers(listener: &TcpListener) -> io::Result<()> {
    /// `ldb [13]`: the flags of the TCP header, at which the filter's view begins.
    const LOAD_FLAGS: SockFilter = SockFilter::new(0x30, 0, 0, 13);
    /// `jset #SYN`: the next instruction if it is set, the one after otherwise.
    const IS_SYN: SockFilter = SockFilter::new(0x45, 0, 1, 0x02);
    const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);
    const PASS: SockFilter = SockFilter::new(0x06, 0, 0, u32::MAX);
    SockRef::from(listener).attach_filter(&[LOAD_FLAGS, IS_SYN, DROP, PASS])
}

/// Whether the error is about the connection that was to be accepted, and not about accepting as such.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
