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
}

/// All open connections.
#[derive(Debug)]
pub(crate) struct Registry {
    max: usize,
    max_per_address: usize,
    /// How long a peer may leave what was sent to it unread.
    unread: Duration,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Entry>>,
    emptied: Notify,
    occupied: Notify,
}

impl Registry {
    pub(crate) fn new(max: usize, max_per_address: usize, unread: Duration) -> Arc<Self> {
        Arc::new(Self {
            max,
            max_per_address,
            unread,
            next: AtomicU64::new(0),
            open: Mutex::default(),
            emptied: Notify::new(),
            occupied: Notify::new(),
        })
    }

    /// Takes a connection in; none if there are too many, in all or from its address.
    pub(crate) fn enter(self: &Arc<Self>, stream: TcpStream, address: IpAddr) -> Option<Socket> {
        let mut open = self.lock();
        if open.len() >= self.max
            || open.values().filter(|entry| entry.address == address).count() >= self.max_per_address
        {
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
        open.insert(id, Entry { address, wire: Arc::clone(&wire), cut: cut.clone(), peer: None });
        if open.len() == 1 {
            self.occupied.notify_waiters();
        }
        Some(Socket { wire, cut, id, registry: Arc::clone(self) })
    }

    /// Notes whose connection it is.
    fn identify(&self, id: u64, peer: PeerIdentity) {
        if let Some(entry) = self.lock().get_mut(&id) {
            entry.peer = Some(peer);
        }
    }

    /// Cuts the connections that the test is true of; returns whose they were, and how many had no identity yet.
    pub(crate) fn cut_where(
        &self,
        test: impl Fn(IpAddr, Option<&PeerIdentity>) -> bool,
    ) -> (Vec<PeerIdentity>, usize) {
        let mut identities = Vec::new();
        let mut nameless = 0;
        for entry in self.lock().values() {
            if entry.wire.severed.load(Ordering::Acquire) || !test(entry.address, entry.peer.as_ref()) {
                continue;
            }
            match &entry.peer {
                Some(peer) => identities.push(peer.clone()),
                None => nameless += 1,
            }
            entry.wire.severed.store(true, Ordering::Release);
            // What lies unsent in the kernel is not for that peer any more either.
            let _ = sockopt::set_socket_linger(&entry.wire.stream, Some(Duration::ZERO));
            let _ = shutdown(&entry.wire.stream, Shutdown::Both);
            entry.cut.cancel();
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
    registry: Arc<Registry>,
}

impl Socket {
    /// Cancelled when the connection is cut.
    pub(crate) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Notes whose connection it is.
    pub(crate) fn identify(&self, peer: PeerIdentity) {
        self.registry.identify(self.id, peer);
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
                done => return Poll::Ready(done),
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
                done => return Poll::Ready(done),
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
