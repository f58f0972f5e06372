//! What a peer sees until it has proved who it is: as little as TLS allows, and no alert.
//!
//! Stock TLS streams answer a failed handshake with an alert, which tells a stranger what listens here and what it
//! dislikes. [`Gate`] stands between the TLS library and the socket. The library's driver flushes what belongs to a
//! handshake that goes well, but writes an alert without a flush just before it gives up; so while the handshake is
//! under way, writes are buffered, and only a flush lets them out. As a second line, for what a future version of
//! the library might flush: once our encrypted flight is out and the peer has answered, TLS 1.3 without tickets has
//! nothing left for a server to say, and whatever is written is discarded until [`Gate::open`].

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A server flight is a few kilobytes (the chain); far more than that means something is wrong.
const MAX_BUFFERED: usize = 256 * 1024;
const RECORD_HEADER: usize = 5;
const APPLICATION_DATA: u8 = 23;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing encrypted has gone out.
    Greeting,
    /// Our encrypted flight is out; the peer has not answered.
    Presented,
    /// The peer has answered; the library judges. Nothing goes out.
    Judging,
    /// The peer is known. All goes through.
    Open,
}

/// An IO stream that keeps silent towards strangers.
#[derive(Debug)]
pub struct Gate<IO> {
    io: IO,
    phase: Phase,
    pending: Vec<u8>,
    /// How much of `pending` has gone out.
    sent: usize,
    records: Records,
}

impl<IO> Gate<IO> {
    /// A closed gate in front of `io`.
    pub fn new(io: IO) -> Self {
        Self { io, phase: Phase::Greeting, pending: Vec::new(), sent: 0, records: Records::default() }
    }

    /// Opens it, once the handshake is complete.
    pub fn open(&mut self) {
        self.phase = Phase::Open;
        self.pending = Vec::new();
        self.sent = 0;
    }

    /// Whether anything encrypted has gone out, that is, whether the peer sent an acceptable TLS greeting.
    pub fn has_greeted(&self) -> bool {
        self.phase != Phase::Greeting
    }

    /// The stream behind it.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }
}

/// Follows record boundaries in what goes out, to see an encrypted record begin.
#[derive(Debug, Default)]
struct Records {
    header: [u8; RECORD_HEADER],
    have: usize,
    body_left: usize,
    encrypted: bool,
}

impl Records {
    fn follow(&mut self, mut bytes: &[u8]) {
        while let Some(&next) = bytes.first() {
            if self.body_left > 0 {
                let skip = self.body_left.min(bytes.len());
                self.body_left -= skip;
                bytes = bytes.get(skip..).unwrap_or_default();
                continue;
            }
            if let Some(slot) = self.header.get_mut(self.have) {
                *slot = next;
            }
            self.have += 1;
            bytes = bytes.get(1..).unwrap_or_default();
            if self.have == RECORD_HEADER {
                let [kind, _, _, high, low] = self.header;
                self.encrypted |= kind == APPLICATION_DATA;
                self.body_left = usize::from(u16::from_be_bytes([high, low]));
                self.have = 0;
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gate<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if self.phase == Phase::Presented && buf.filled().len() > before {
            self.phase = Phase::Judging;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gate<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.phase {
            Phase::Open => Pin::new(&mut self.io).poll_write(cx, buf),
            Phase::Judging => Poll::Ready(Ok(buf.len())),
            Phase::Greeting | Phase::Presented => {
                if self.pending.len() + buf.len() > MAX_BUFFERED {
                    return Poll::Ready(Err(io::Error::other("the server's flight is too long")));
                }
                self.pending.extend_from_slice(buf);
                Poll::Ready(Ok(buf.len()))
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.phase == Phase::Open {
            return Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        }
        let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
        self.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if matches!(this.phase, Phase::Greeting | Phase::Presented) {
            while let Some(rest) = this.pending.get(this.sent..).filter(|rest| !rest.is_empty()) {
                let written = ready!(Pin::new(&mut this.io).poll_write(cx, rest))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                this.records.follow(rest.get(..written).unwrap_or_default());
                this.sent += written;
            }
            this.pending.clear();
            this.sent = 0;
            if this.records.encrypted {
                this.phase = Phase::Presented;
            }
        }
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whatever was buffered stays unsaid.
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A server hello in two records, then something encrypted.
    const FLIGHT: &[u8] = &[22, 3, 3, 0, 2, 1, 2, 20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 3, 7, 8, 9];

    async fn peer_sees(peer: &mut tokio::io::DuplexStream) -> Vec<u8> {
        let mut seen = Vec::new();
        peer.read_to_end(&mut seen).await.unwrap();
        seen
    }

    #[tokio::test]
    async fn what_is_not_flushed_is_never_said() {
        let (mut peer, io) = tokio::io::duplex(1024);
        let mut gate = Gate::new(io);
        gate.write_all(b"alert").await.unwrap();
        drop(gate);
        assert!(peer_sees(&mut peer).await.is_empty());
    }

    #[tokio::test]
    async fn after_the_flight_and_an_answer_nothing_more_is_said_until_it_opens() {
        let (mut peer, io) = tokio::io::duplex(1024);
        let mut gate = Gate::new(io);
        assert!(!gate.has_greeted());
        // In pieces, so that a record's header is split.
        for piece in FLIGHT.chunks(4) {
            gate.write_all(piece).await.unwrap();
            gate.flush().await.unwrap();
        }
        assert!(gate.has_greeted());
        peer.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        gate.read_exact(&mut answer).await.unwrap();
        gate.write_all(b"alert").await.unwrap();
        gate.flush().await.unwrap();
        gate.open();
        gate.write_all(b"welcome").await.unwrap();
        gate.flush().await.unwrap();
        drop(gate);
        assert_eq!(peer_sees(&mut peer).await, [FLIGHT, b"welcome"].concat());
    }

    #[tokio::test]
    async fn a_plain_answer_may_be_followed_by_more() {
        // A request to retry is not encrypted; the flight comes after the peer's second hello.
        let (mut peer, io) = tokio::io::duplex(1024);
        let mut gate = Gate::new(io);
        gate.write_all(&FLIGHT[..13]).await.unwrap();
        gate.flush().await.unwrap();
        peer.write_all(b"x").await.unwrap();
        gate.read_u8().await.unwrap();
        gate.write_all(&FLIGHT[13..]).await.unwrap();
        gate.flush().await.unwrap();
        drop(gate);
        assert_eq!(peer_sees(&mut peer).await, FLIGHT);
    }
}
