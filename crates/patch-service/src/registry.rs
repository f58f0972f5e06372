//! The open connections, each with a handle by which it can be cut off at once.
//!
//! Cutting must not depend on the cooperation of whoever holds the stream (a WebSocket's handler may be busy), so it
//! works on the socket itself; [`Socket`] is the stream that everybody else sees.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use crate::listener::PeerIdentity;

#[derive(Debug)]
struct Wire {
    stream: TcpStream,
    severed: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    wire: Arc<Wire>,
    cut: CancellationToken,
    peer: Option<PeerIdentity>,
    attention: Attention,
}

impl Entry {
    fn is_severed(&self) -> bool {
        self.wire.severed.load(Ordering::Acquire)
    }

    fn sever(&self) {
        self.wire.severed.store(true, Ordering::Release);
        // What lies unsent in the kernel is not for that peer any more either.
        let _ = sockopt::set_socket_linger(&self.wire.stream, Some(Duration::ZERO));
        let _ = shutdown(&self.wire.stream, Shutdown::Both);
        self.cut.cancel();
    }
}

/// Whether a connection waits for its peer to ask something, and since when. Clones tell of the same connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attention {
    /// The turn at which it began to wait; 0 while it does not.
    since: Arc<AtomicU64>,
    turns: Arc<AtomicU64>,
}

impl Attention {
    /// It waits for a request from now on.
    pub(crate) fn waits(&self) {
        self.since.store(self.turns.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Something of an answer went out: who still reads one has not left the connection idle.
    fn goes_on(&self) {
        if self.since().is_some() {
            self.waits();
        }
    }

    /// It has one, or is something else than a connection of requests now.
    pub(crate) fn is_given(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn since(&self) -> Option<u64> {
        Some(self.since.load(Ordering::Relaxed)).filter(|since| *since > 0)
    }
}

/// What became of a connection whose peer is known now.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It may stay.
    Welcome,
    /// It may stay; the same identity had as many as it may have, and lost this one, which had waited longest for a
    /// request.
    InPlaceOf(PeerIdentity),
    /// The same identity has as many as it may have, and all are at work.
    Full,
}

/// How many connections may be open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) in_all: usize,
    pub(crate) per_address: usize,
    pub(crate) per_identity: usize,
}

/// All open connections.
#[derive(Debug)]
pub(crate) struct Registry {
    bounds: Bounds,
    /// How long a peer may leave what was sent to it unread.
    unread: Duration,
    next: AtomicU64,
    turns: Arc<AtomicU64>,
    open: Mutex<HashMap<u64, Entry>>,
    emptied: Notify,
    occupied: Notify,
}

impl Registry {
    pub(crate) fn new(bounds: Bounds, unread: Duration) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            unread,
            next: AtomicU64::new(0),
            turns: Arc::default(),
            open: Mutex::default(),
            emptied: Notify::new(),
            occupied: Notify::new(),
        })
    }

    /// Takes a connection in; none if there are too many, in all or from its address.
    pub(crate) fn enter(self: &Arc<Self>, stream: TcpStream, address: IpAddr) -> Option<Socket> {
        let mut open = self.lock();
        let of_address = open.values().filter(|entry| entry.address == address).count();
        if open.len() >= self.bounds.in_all || of_address >= self.bounds.per_address {
            return None;
        }
        // Small answers must not wait for an acknowledgement; a peer that is gone, or that stops reading, must not
        // hold its connection for ever. None of it is worth refusing the connection for.
        drop(stream.set_nodelay(true));
        let _ = sockopt::set_socket_keepalive(&stream, true);
        let _ = sockopt::set_tcp_keepidle(&stream, Duration::from_secs(60));
        let unread = u32::try_from(self.unread.as_millis()).unwrap_or(u32::MAX);
        let _ = sockopt::set_tcp_user_timeout(&stream, unread);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let wire = Arc::new(Wire { stream, severed: AtomicBool::new(false) });
        let cut = CancellationToken::new();
        let attention = Attention { since: Arc::default(), turns: Arc::clone(&self.turns) };
        let entry = Entry {
            address,
            wire: Arc::clone(&wire),
            cut: cut.clone(),
            peer: None,
            attention: attention.clone(),
        };
        open.insert(id, entry);
        if open.len() == 1 {
            self.occupied.notify_waiters();
        }
        Some(Socket { wire, cut, id, attention, registry: Arc::clone(self) })
    }

    /// Notes whose connection it is. A good certificate is no leave to hold the agent's memory by connections that ask
    /// nothing, so of an identity that has too many the one that has waited longest gives way.
    fn identify(&self, id: u64, peer: PeerIdentity) -> Admission {
        let mut open = self.lock();
        let others = || {
            open.values().filter(|entry| {
                let same = entry
                    .peer
                    .as_ref()
                    .is_some_and(|other| other.fingerprint_sha256() == peer.fingerprint_sha256());
                same && !entry.is_severed()
            })
        };
        let mut admission = Admission::Welcome;
        if others().count() >= self.bounds.per_identity {
            let waiting = others().filter_map(|entry| Some((entry.attention.since()?, entry)));
            let Some((_, longest)) = waiting.min_by_key(|(since, _)| *since) else { return Admission::Full };
            longest.sever();
            if let Some(former) = &longest.peer {
                admission = Admission::InPlaceOf(former.clone());
            }
        }
        if let Some(entry) = open.get_mut(&id) {
            entry.attention.waits();
            entry.peer = Some(peer);
        }
        admission
    }

    /// Cuts the connections that the test is true of; returns whose they were, and how many had no identity yet.
    pub(crate) fn cut_where(
        &self,
        test: impl Fn(IpAddr, Option<&PeerIdentity>) -> bool,
    ) -> (Vec<PeerIdentity>, usize) {
        let mut identities = Vec::new();
        let mut nameless = 0;
        for entry in self.lock().values() {
            if entry.is_severed() || !test(entry.address, entry.peer.as_ref()) {
                continue;
            }
            match &entry.peer {
                Some(peer) => identities.push(peer.clone()),
                None => nameless += 1,
            }
            entry.sever();
        }
        (identities, nameless)
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Waits until none is.
    pub(crate) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.len() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Waits until one is.
    pub(crate) async fn occupied(&self) {
        loop {
            let occupied = self.occupied.notified();
            if self.len() > 0 {
                return;
            }
            occupied.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's stream. It leaves the registry when this is dropped, by whoever holds it last.
#[derive(Debug)]
pub(crate) struct Socket {
    wire: Arc<Wire>,
    cut: CancellationToken,
    id: u64,
    attention: Attention,
    registry: Arc<Registry>,
}

impl Socket {
    /// Cancelled when the connection is cut.
    pub(crate) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Notes whose connection it is; from now on it waits for the first request.
    pub(crate) fn identify(&self, peer: PeerIdentity) -> Admission {
        self.registry.identify(self.id, peer)
    }

    /// By which whoever serves it says whether it waits.
    pub(crate) fn attention(&self) -> Attention {
        self.attention.clone()
    }

    fn check(&self) -> io::Result<()> {
        // The kernel would go on to hand out what it received before the cut.
        if self.wire.severed.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut off"));
        }
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut open = self.registry.lock();
        open.remove(&self.id);
        if open.is_empty() {
            // After a storm it has room for all that it held.
            open.shrink_to_fit();
            self.registry.emptied.notify_waiters();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.wire.stream.poll_read_ready(cx))?;
            self.check()?;
            match self.wire.stream.try_read(buf.initialize_unfilled()) {
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.wire.stream.poll_write_ready(cx))?;
            self.check()?;
            match self.wire.stream.try_write(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done.inspect(|_| self.attention.goes_on())),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.wire.stream.poll_write_ready(cx))?;
            self.check()?;
            match self.wire.stream.try_write_vectored(bufs) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done.inspect(|_| self.attention.goes_on())),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A peer that has closed already is no fault.
        let _ = shutdown(&self.wire.stream, Shutdown::Write);
        Poll::Ready(Ok(()))
    }
}
