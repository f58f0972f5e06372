//! Scans and slow clients, and what a good client and the machine notice of them.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Client, Stage,
    client::{self, Open},
    stage::{FRIEND, STRANGER},
};

/// What a scan cost.
#[derive(Debug, Clone, Copy)]
pub struct Scan {
    /// How many connections were tried.
    pub connections: usize,
    /// By how much the daemon's memory grew, in KiB, after a tenth of them as a warm-up.
    pub growth_kib: u64,
    /// How many lines log and audit trail have about it.
    pub lines: usize,
    /// How long it took.
    pub took: Duration,
}

/// Tries `connections` from an address that is not on the list. Each must end without a byte. Ends the daemon.
///
/// # Errors
/// When one is told anything, or the daemon does not survive.
pub fn scan(mut stage: Stage, connections: usize) -> Result<Scan> {
    let knock = |count: usize| -> Result<()> {
        for _ in 0..count {
            let mut stream = client::tcp(STRANGER, stage.address)?;
            let mut told = Vec::new();
            match stream.read_to_end(&mut told) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error).context("a stranger was kept waiting"),
            }
            ensure!(told.is_empty(), "a stranger was told {told:?}");
        }
        Ok(())
    };
    knock(connections / 10)?;
    let before = stage.memory_kib()?;
    let begun = Instant::now();
    knock(connections)?;
    let took = begun.elapsed();
    let growth_kib = stage.memory_kib()?.saturating_sub(before);
    stage.assert_alive()?;
    stage.stop()?;
    let about = STRANGER.to_string();
    let lines = [stage.log()?, stage.trail()?]
        .iter()
        .map(|text| text.lines().filter(|line| line.contains(&about)).count())
        .sum();
    Ok(Scan { connections, growth_kib, lines, took })
}

/// Where a slow client stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// It connects and says nothing.
    Silence,
    /// It sends its first TLS message byte by byte.
    DrippedHello,
    /// It never answers the server's first flight.
    NoCertificate,
    /// It has a good certificate, and sends the lines of its request byte by byte.
    SlowHeaders,
}

impl Layer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Silence, Self::DrippedHello, Self::NoCertificate, Self::SlowHeaders];
}

/// How long answers took, in milliseconds at the 99th percentile.
#[derive(Debug, Clone, Copy)]
pub struct P99 {
    /// With a handshake before each.
    pub fresh: f64,
    /// On a connection that was open.
    pub kept: f64,
}

/// What slow clients cost.
#[derive(Debug, Clone, Copy)]
pub struct Slow {
    /// Where they stopped.
    pub layer: Layer,
    /// How many sockets they held.
    pub sockets: usize,
    /// How many of these were open, on the average over the time.
    pub held: usize,
    /// A good client without them.
    pub idle: P99,
    /// A good client with them.
    pub under: P99,
    /// By how much the daemon's memory grew at most, in KiB.
    pub growth_kib: u64,
}

impl Slow {
    /// Whether the good client noticed: its p99 within the larger of twice the idle one and `floor` milliseconds.
    #[must_use]
    pub fn is_within(&self, floor: f64) -> bool {
        let within = |under: f64, idle: f64| under <= (2.0 * idle).max(floor);
        within(self.under.fresh, self.idle.fresh) && within(self.under.kept, self.idle.kept)
    }
}

/// How often each of them goes on a little.
const PACE: Duration = Duration::from_millis(500);

/// Over how many such rounds they come: five seconds, the server's limit for a handshake.
const ARRIVAL: usize = 10;

/// How many addresses the slow clients come from.
const ADDRESSES: usize = 16;

/// One slow client.
enum Peer {
    Plain(TcpStream, usize),
    Inside(Box<Open>, usize),
}

/// The lines that are dripped. They never end.
const REQUEST: &[u8] = b"GET /api/v1/health HTTP/1.1\r\nhost: agent\r\nx-filling: ";

impl Peer {
    fn new(layer: Layer, client: &Client, hello: &[u8], from: Ipv4Addr) -> Result<Self> {
        if layer == Layer::SlowHeaders {
            let open = client.open(from)?;
            open.sock.set_nonblocking(true)?;
            return Ok(Self::Inside(Box::new(open), 0));
        }
        let mut stream = client::tcp(from, client.address)?;
        if layer == Layer::NoCertificate {
            stream.write_all(hello)?;
        }
        stream.set_nonblocking(true)?;
        Ok(Self::Plain(stream, 0))
    }

    /// Goes on a little; false when the connection is gone.
    fn poke(&mut self, layer: Layer, hello: &[u8]) -> bool {
        let mut bin = [0; 4096];
        match self {
            Self::Plain(stream, sent) => {
                if layer == Layer::DrippedHello
                    && let Some(byte) = hello.get(*sent).filter(|_| *sent + 1 < hello.len())
                {
                    *sent += 1;
                    if stream.write_all(&[*byte]).is_err() {
                        return false;
                    }
                }
                match stream.read(&mut bin) {
                    Ok(read) => read > 0,
                    Err(error) => error.kind() == ErrorKind::WouldBlock,
                }
            }
            Self::Inside(open, sent) => {
                let byte = REQUEST.get(*sent).copied().unwrap_or(b'x');
                *sent += 1;
                if open.write_all(&[byte]).and_then(|()| open.flush()).is_err() {
                    return false;
                }
                open.read(&mut bin).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
            }
        }
    }
}

/// Holds `sockets` slow connections for as long as a good client takes for `samples` requests of either kind.
///
/// # Errors
/// When the good client is not served.
pub fn slow(stage: &Stage, layer: Layer, sockets: usize, samples: usize) -> Result<Slow> {
    let client = stage.client()?;
    let hello = client.hello()?;
    measure(&client, samples / 4)?;
    let idle = measure(&client, samples)?;
    let before = stage.memory_kib()?;
    let (stop, held, rounds, ready) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let (under, growth_kib) = std::thread::scope(|scope| -> Result<(P99, u64)> {
        scope.spawn(|| {
            let from =
                |index: usize| Ipv4Addr::new(127, 0, 1, u8::try_from(index % ADDRESSES).unwrap_or(0) + 1);
            let mut peers: Vec<Option<Peer>> = (0..sockets).map(|_| None).collect();
            let pace = |times: usize| {
                PACE * u32::try_from(times).unwrap_or(u32::MAX) / u32::try_from(sockets).unwrap_or(1)
            };
            // They come over as long as the server is patient with them, and so they come back one after the other too.
            let mut come = 0;
            while !stop.load(Ordering::Acquire) {
                let round = Instant::now();
                come = (come + sockets.div_ceil(ARRIVAL)).min(sockets);
                for (index, slot) in peers.iter_mut().enumerate().take(come) {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    // One after the other, as machines of their own would. All at once is a flood, and not slow.
                    std::thread::sleep(pace(index).saturating_sub(round.elapsed()));
                    if !slot.as_mut().is_some_and(|peer| peer.poke(layer, &hello)) {
                        *slot = Peer::new(layer, &client, &hello, from(index)).ok();
                    }
                }
                if come == sockets {
                    held.fetch_add(peers.iter().flatten().count(), Ordering::Relaxed);
                    rounds.fetch_add(1, Ordering::Relaxed);
                    ready.store(true, Ordering::Release);
                }
                std::thread::sleep(PACE.saturating_sub(round.elapsed()));
            }
        });
        let result = (|| {
            crate::wait::until("the slow clients are there", Duration::from_secs(60), || {
                Ok(ready.load(Ordering::Acquire).then_some(()))
            })?;
            let mut growth = 0;
            let mut worst = Vec::new();
            // In pieces, so that the memory is looked at in between.
            for _ in 0..4 {
                worst.push(times(&client, samples / 4)?);
                growth = growth.max(stage.memory_kib()?.saturating_sub(before));
            }
            let fresh = worst.iter().flat_map(|(fresh, _)| fresh.iter().copied()).collect();
            let kept = worst.iter().flat_map(|(_, kept)| kept.iter().copied()).collect();
            Ok((P99 { fresh: p99(fresh), kept: p99(kept) }, growth))
        })();
        stop.store(true, Ordering::Release);
        result
    })?;
    stage.assert_alive()?;
    let held = held.into_inner() / rounds.into_inner().max(1);
    Ok(Slow { layer, sockets, held, idle, under, growth_kib })
}

fn measure(client: &Client, samples: usize) -> Result<P99> {
    let (fresh, kept) = times(client, samples)?;
    Ok(P99 { fresh: p99(fresh), kept: p99(kept) })
}

fn times(client: &Client, samples: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let clocked = |work: &mut dyn FnMut() -> Result<client::Answer>| -> Result<f64> {
        let begun = Instant::now();
        let answer = work()?;
        ensure!(answer.status == 200, "{}", answer.text);
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    };
    let fresh: Result<Vec<f64>> =
        (0..samples).map(|_| clocked(&mut || client.once(FRIEND, "/health"))).collect();
    let mut open = client.open(FRIEND)?;
    let kept: Result<Vec<f64>> =
        (0..samples).map(|_| clocked(&mut || client::ask(&mut open, "/health"))).collect();
    Ok((fresh?, kept?))
}

fn p99(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let index = (times.len() * 99 / 100).min(times.len().saturating_sub(1));
    times.get(index).copied().unwrap_or_default()
}
