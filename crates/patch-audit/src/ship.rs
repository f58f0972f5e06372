//! The remote sink: a thread of its own that reads the trail from where it had got to, and sends it.
//!
//! There is no second buffer. What the server has not got is in the trail, rotated files included, and a cursor beside
//! the trail says how far the server has got, over restarts of the program as well. A server that is away, slow, or hangs
//! costs nobody but this thread anything.
//!
//! Neither UDP nor TCP says that a record has arrived. So what was sent counts as delivered only when the connection has
//! been seen alive a while later; when it breaks before, it is sent again. A record arrives at least once, in order; its
//! number tells a repetition.

use std::{
    fmt, fs,
    io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write},
    net::{Shutdown, TcpStream, ToSocketAddrs, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::sync_channel},
    time::{Duration, Instant},
};

use crate::{
    chain::{Head, Link, read_line},
    checkpoint::replace,
    event::{AuditEvent, AuditKind, Caller},
    queue,
    syslog::{Sender, Target, Transport},
    trail,
    writer::Message,
};

/// The cursor's name, beside the log.
pub const CURSOR: &str = "remote-syslog.cursor";

/// The most records, and about the most bytes, that are in memory at a time.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 256 << 10;

/// How long the end of the program waits for the server to get the last records.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A connection's two directions.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Makes TLS of a connection: the program that has a TLS library lends it.
pub trait TlsConnect: Send + Sync {
    /// Shakes hands, and checks that the server is the one of this name. The stream has time limits for reading and
    /// writing.
    ///
    /// # Errors
    /// When there is no trusted connection.
    fn connect(&self, host: &str, stream: TcpStream) -> io::Result<Box<dyn Stream>>;
}

/// How patient the sink is.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long connecting, and sending one piece, may take.
    pub limit: Duration,
    /// How long what was sent has to stand before it counts as delivered.
    pub settle: Duration,
    /// How long to wait after a failure; each time twice as long.
    pub first_pause: Duration,
    /// The longest such wait.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            limit: Duration::from_secs(10),
            settle: Duration::from_secs(2),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
        }
    }
}

/// Where records go besides.
#[derive(Clone)]
pub struct Remote {
    /// The server.
    pub target: Target,
    /// What makes TLS; without it a target with TLS cannot be reached, and that is said.
    pub tls: Option<Arc<dyn TlsConnect>>,
    /// How patient to be.
    pub patience: Patience,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("target", &self.target).finish_non_exhaustive()
    }
}

/// How the remote sink is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteStatus {
    /// The server.
    pub target: String,
    /// The last record that counts as delivered.
    pub delivered: u64,
    /// Why the last attempt failed; none if it did not.
    pub error: Option<String>,
}

struct State {
    remote: Option<Remote>,
    /// Grows with every change of `remote`.
    version: u64,
    /// The last record on disk.
    head: Option<Head>,
    /// The same when the present target was named, and there had been none.
    start: Head,
    status: Option<RemoteStatus>,
    closing: bool,
    /// Whether the thread runs, and what ends when it does.
    runs: bool,
    ended: Option<std::sync::mpsc::Receiver<()>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            remote: None,
            version: 0,
            head: None,
            start: Head::GENESIS,
            status: None,
            closing: false,
            runs: false,
            ended: None,
        }
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    log: PathBuf,
    sender: Sender,
    queue: queue::Sender,
}

/// The handle on the sink. Nothing here waits, but for [`Shipping::close`].
#[derive(Clone)]
pub(crate) struct Shipping(Arc<Shared>);

impl Shipping {
    pub(crate) fn new(log: &Path, program: &str, queue: queue::Sender) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            log: log.to_owned(),
            sender: Sender::here(program),
            queue,
        }))
    }

    /// Sends to another server from now on, or to none. The first target of all gets what is recorded from now on; a
    /// later one what the one before had not got.
    pub(crate) fn aim(&self, remote: Option<Remote>) {
        let mut state = self.0.lock();
        if remote.is_none() && !state.runs {
            // Who is aimed at later does not want the story so far.
            let _ = fs::remove_file(self.0.cursor());
        }
        if state.remote.is_none() {
            state.start = state.head.unwrap_or(Head::GENESIS);
        }
        state.remote = remote;
        state.version += 1;
        if state.remote.is_some() && !state.runs && !state.closing {
            let shared = Arc::clone(&self.0);
            let (done, ended) = sync_channel::<()>(1);
            let run = move || {
                shared.run();
                drop(done);
            };
            let thread = std::thread::Builder::new().name("audit-syslog".to_owned()).spawn(run);
            state.runs = thread.is_ok();
            if let (Err(error), Some(remote)) = (&thread, &state.remote) {
                state.status = Some(RemoteStatus {
                    target: remote.target.to_string(),
                    delivered: state.start.seq,
                    error: Some(format!("its thread cannot be started: {error}")),
                });
            }
            state.ended = thread.is_ok().then_some(ended);
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Tells that the trail has grown.
    pub(crate) fn reached(&self, head: Head) {
        let mut state = self.0.lock();
        state.head = Some(head);
        let is_wanted = state.remote.is_some();
        drop(state);
        if is_wanted {
            self.0.changed.notify_all();
        }
    }

    pub(crate) fn status(&self) -> Option<RemoteStatus> {
        self.0.lock().status.clone()
    }

    /// Gives the server a moment to get the last records. What it does not get it gets after the next start.
    pub(crate) fn close(&self) {
        let mut state = self.0.lock();
        state.closing = true;
        let ended = state.ended.take();
        drop(state);
        self.0.changed.notify_all();
        if let Some(ended) = ended {
            // Nothing is ever sent: the end of the thread is what is waited for.
            let _ = ended.recv_timeout(LAST_WORDS);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cursor(&self) -> PathBuf {
        self.log.with_file_name(CURSOR)
    }
}

/// What the thread does next.
enum Next {
    Send,
    /// Look whether the connection lives.
    Look,
    Retarget,
    End,
}

impl Shared {
    fn run(&self) {
        let mut version = 0;
        loop {
            let mut state = self.lock();
            while state.version == version && !state.closing {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.version == version {
                return;
            }
            version = state.version;
            let Some(remote) = state.remote.clone() else {
                let _ = fs::remove_file(self.cursor());
                state.status = None;
                continue;
            };
            let head = state.head.unwrap_or(Head::GENESIS);
            // A cursor from beyond the end is one of a trail that is gone.
            let cursor = read_cursor(&self.cursor()).filter(|cursor| cursor.seq <= head.seq);
            let cursor = cursor.unwrap_or(state.start);
            state.status =
                Some(RemoteStatus { target: remote.target.to_string(), delivered: cursor.seq, error: None });
            drop(state);
            let mut delivery = Delivery::new(self, remote, version, cursor);
            delivery.keep_cursor();
            if delivery.run() {
                return;
            }
        }
    }
}

/// Delivering to one target.
struct Delivery<'a> {
    shared: &'a Shared,
    remote: Remote,
    version: u64,
    feed: Feed,
    line: Option<Line>,
    /// The last record that was sent.
    sent: Head,
    /// The last one that counts as delivered.
    settled: Head,
    /// What will count, and since when it stands.
    mark: Option<(Instant, Head)>,
    pause: Duration,
    /// Not before then.
    not_before: Option<Instant>,
    /// Whether it has been said that the server cannot be reached.
    failing: bool,
}

impl<'a> Delivery<'a> {
    fn new(shared: &'a Shared, remote: Remote, version: u64, cursor: Head) -> Self {
        Self {
            shared,
            pause: remote.patience.first_pause,
            remote,
            version,
            feed: Feed::new(&shared.log),
            line: None,
            sent: cursor,
            settled: cursor,
            mark: None,
            not_before: None,
            failing: false,
        }
    }

    /// Works until the target changes or the log is closed; whether it was the latter.
    fn run(&mut self) -> bool {
        loop {
            let result = match self.next() {
                Next::Retarget => return false,
                Next::End => {
                    self.part();
                    return true;
                }
                Next::Send => self.send(),
                Next::Look => self.look(),
            };
            if let Err(error) = result {
                self.fail(&error);
            }
        }
    }

    fn next(&self) -> Next {
        let mut state = self.shared.lock();
        loop {
            if state.version != self.version {
                return Next::Retarget;
            }
            let waits = state.head.is_some_and(|head| head.seq > self.sent.seq);
            let now = Instant::now();
            if let Some(at) = self.not_before.filter(|at| *at > now) {
                if state.closing {
                    return Next::End;
                }
                state = self.wait(state, at - now);
                continue;
            }
            if waits {
                return Next::Send;
            }
            if state.closing {
                return Next::End;
            }
            let unsettled = self.sent != self.settled;
            match &self.mark {
                Some((since, _)) if unsettled => {
                    let due = *since + self.remote.patience.settle;
                    if due <= now {
                        return Next::Look;
                    }
                    state = self.wait(state, due - now);
                }
                _ => state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, time: Duration) -> MutexGuard<'s, State> {
        self.shared.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    fn send(&mut self) -> io::Result<()> {
        let Some(target) = self.shared.lock().head else { return Ok(()) };
        let mut line = match self.line.take() {
            Some(line) => line,
            None => Line::connect(&self.remote)?,
        };
        line.check()?;
        let batch = self.feed.read(self.sent, target)?;
        let mut missing = 0;
        if batch.is_empty() {
            // On record as written, and not there: somebody took it away. The trail says so by itself.
            missing = target.seq.saturating_sub(self.sent.seq);
            self.sent = target;
        }
        for (head, text) in batch {
            missing += head.seq.saturating_sub(self.sent.seq).saturating_sub(1);
            line.send(&self.shared.sender.message(&text, self.remote.target.transport))?;
            self.sent = head;
            self.mark.get_or_insert((Instant::now(), head));
        }
        line.flush()?;
        self.line = Some(line);
        if missing > 0 {
            // Removed because of their age, or damaged, before the server came back.
            self.say(AuditKind::RecordsDropped { sink: self.name(), count: missing });
            self.mark.get_or_insert((Instant::now(), self.sent));
        }
        if self.mark.as_ref().is_some_and(|(since, _)| since.elapsed() >= self.remote.patience.settle) {
            self.look()?;
        }
        Ok(())
    }

    /// Looks whether the connection lives. If it does, what was sent long enough ago counts as delivered.
    fn look(&mut self) -> io::Result<()> {
        let Some(line) = &mut self.line else { return Ok(()) };
        line.check()?;
        if let Some((since, head)) = self.mark
            && since.elapsed() >= self.remote.patience.settle
        {
            self.settled = head;
            self.mark = (self.sent != head).then(|| (Instant::now(), self.sent));
            self.pause = self.remote.patience.first_pause;
            self.keep_cursor();
            self.tell(None);
            if std::mem::take(&mut self.failing) {
                self.say(AuditKind::SinkRecovered { sink: self.name(), lost: 0 });
            }
        }
        Ok(())
    }

    /// Ends the connection in order: a server that closes it in return has got everything.
    fn part(&mut self) {
        let Some(line) = self.line.take() else { return };
        if line.close().is_ok() {
            self.settled = self.sent;
            self.keep_cursor();
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.line = None;
        self.sent = self.settled;
        self.mark = None;
        self.feed.rewind();
        self.not_before = Some(Instant::now() + self.pause);
        self.pause = self.remote.patience.longest_pause.min(self.pause * 2);
        // Recorded before it is shown: whoever has seen it and closes the log finds it in the trail.
        if !std::mem::replace(&mut self.failing, true) {
            self.say(AuditKind::SinkFailed { sink: self.name(), error: error.to_string() });
        }
        self.tell(Some(error.to_string()));
    }

    fn name(&self) -> String {
        format!("syslog {}", self.remote.target)
    }

    fn say(&self, kind: AuditKind) {
        let event = Box::new(AuditEvent::new(kind, &Caller::local()));
        // A queue that is full has more important things in it.
        let _ = self.shared.queue.try_send(Message::Record { event, waiter: None });
    }

    fn tell(&self, error: Option<String>) {
        let mut state = self.shared.lock();
        if state.version == self.version {
            state.status = Some(RemoteStatus {
                target: self.remote.target.to_string(),
                delivered: self.settled.seq,
                error,
            });
        }
    }

    fn keep_cursor(&self) {
        // Without it the server gets some records twice after the next start, and a full disk is no news.
        let _ = replace(&self.shared.cursor(), format!("{}\n", self.settled).as_bytes(), 0o640);
    }
}

fn read_cursor(path: &Path) -> Option<Head> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A connection to the server.
enum Line {
    Datagrams(UdpSocket),
    Stream { stream: Box<dyn Stream>, tcp: TcpStream },
}

impl Line {
    fn connect(remote: &Remote) -> io::Result<Self> {
        let Target { transport, host, port } = &remote.target;
        let mut failed = io::Error::new(ErrorKind::NotFound, format!("{host} has no address"));
        for address in (host.as_str(), *port).to_socket_addrs()? {
            if *transport == Transport::Udp {
                let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).and_then(|socket| {
                    socket.connect(address)?;
                    socket.set_write_timeout(Some(remote.patience.limit))?;
                    Ok(socket)
                });
                match socket {
                    Ok(socket) => return Ok(Self::Datagrams(socket)),
                    Err(error) => failed = error,
                }
                continue;
            }
            let tcp = match TcpStream::connect_timeout(&address, remote.patience.limit) {
                Ok(tcp) => tcp,
                Err(error) => {
                    failed = error;
                    continue;
                }
            };
            tcp.set_read_timeout(Some(remote.patience.limit))?;
            tcp.set_write_timeout(Some(remote.patience.limit))?;
            tcp.set_nodelay(true)?;
            let other = tcp.try_clone()?;
            let stream: Box<dyn Stream> = match (transport, &remote.tls) {
                (Transport::Tls, Some(tls)) => tls.connect(host, tcp)?,
                (Transport::Tls, None) => {
                    return Err(io::Error::new(ErrorKind::Unsupported, "this program has no TLS"));
                }
                _ => Box::new(tcp),
            };
            return Ok(Self::Stream { stream, tcp: other });
        }
        Err(failed)
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Datagrams(socket) => socket.send(message).map(drop),
            Self::Stream { stream, .. } => stream.write_all(message),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Datagrams(_) => Ok(()),
            Self::Stream { stream, .. } => stream.flush(),
        }
    }

    fn close(mut self) -> io::Result<()> {
        self.check()?;
        let Self::Stream { mut stream, tcp } = self else { return Ok(()) };
        stream.flush()?;
        tcp.set_read_timeout(Some(LAST_WORDS))?;
        tcp.shutdown(Shutdown::Write)?;
        let mut buffer = [0; 1024];
        for _ in 0..16 {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                // A server that takes the end of the connection for the end of TLS.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::TimedOut.into())
    }

    /// An error if the server has closed the connection, or its host has refused datagrams.
    fn check(&mut self) -> io::Result<()> {
        let mut buffer = [0; 1024];
        let read = match self {
            Self::Datagrams(socket) => {
                socket.set_nonblocking(true)?;
                let read = socket.recv(&mut buffer).map(|_| 1);
                socket.set_nonblocking(false)?;
                read
            }
            Self::Stream { stream, tcp } => {
                tcp.set_nonblocking(true)?;
                // What it says is of no interest; a bounded number of looks, since it may talk for ever.
                let read =
                    (0..16).map(|_| stream.read(&mut buffer)).find(|read| !matches!(read, Ok(n) if *n > 0));
                tcp.set_nonblocking(false)?;
                read.unwrap_or(Ok(1))
            }
        };
        match read {
            Ok(0) => Err(io::Error::new(ErrorKind::ConnectionAborted, "the server closed the connection")),
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Reads the trail's records in order.
struct Feed {
    log: PathBuf,
    at: Place,
    /// The rotated file that was read last and is at its end.
    done: Option<trail::Former>,
}

enum Place {
    Unknown,
    /// Within the present file, by what it is and where its next record begins.
    Live {
        inode: (u64, u64),
        next: u64,
    },
    /// Within a rotated one, which does not change any more.
    Former(trail::Former, Box<dyn BufRead + Send>),
}

impl Feed {
    fn new(log: &Path) -> Self {
        Self { log: log.to_owned(), at: Place::Unknown, done: None }
    }

    fn rewind(&mut self) {
        (self.at, self.done) = (Place::Unknown, None);
    }

    /// The next records after one, at most up to another, which is on disk. Nothing if they are not there.
    fn read(&mut self, after: Head, until: Head) -> io::Result<Vec<(Head, Vec<u8>)>> {
        let mut batch = Vec::new();
        let mut last = after.seq;
        loop {
            if matches!(self.at, Place::Unknown) && !self.locate(last)? {
                break;
            }
            let was_live = matches!(self.at, Place::Live { .. });
            let is_there = self.is_there();
            let took = is_there && self.take(&mut batch, &mut last, until.seq)?;
            if matches!(self.at, Place::Unknown) {
                // The file got another name between the two looks.
                continue;
            }
            if took || !batch.is_empty() {
                break;
            }
            if was_live && is_there {
                // The present file is at its end, and nothing comes after it.
                break;
            }
            // This file is at its end, or has another name now; the next record is in another one.
            if let Place::Former(former, _) = std::mem::replace(&mut self.at, Place::Unknown) {
                self.done = Some(former);
            }
        }
        Ok(batch)
    }

    /// Whether the present place is still where it was.
    fn is_there(&self) -> bool {
        let Place::Live { inode, .. } = &self.at else { return true };
        fs::metadata(&self.log).is_ok_and(|meta| (meta.dev(), meta.ino()) == *inode)
    }

    /// Goes to the file that has the first record after a number.
    fn locate(&mut self, after: u64) -> io::Result<bool> {
        let live = first_of(&self.log)?;
        if live.is_none_or(|(first, _)| first > after.saturating_add(1)) {
            // The newest that begins with it or before, the next one if that is read already, or the oldest of all.
            let former = trail::former(&self.log);
            let begins = |former: &trail::Former| {
                former.first_seq().is_some_and(|first| first <= after.saturating_add(1))
            };
            let mut at = former.iter().rposition(begins).unwrap_or(0);
            if self.done.as_ref().is_some_and(|done| former.get(at).is_some_and(|there| there <= done)) {
                at = former.iter().position(|there| Some(there) > self.done.as_ref()).unwrap_or(former.len());
            }
            if let Some(found) = former.get(at) {
                // Gone since: another look finds what is left.
                let Some(file) = found.open()? else { return self.locate(after) };
                self.at = Place::Former(found.clone(), file.reader());
                return Ok(true);
            }
        }
        let Some((_, inode)) = live else { return Ok(false) };
        self.at = Place::Live { inode, next: 0 };
        Ok(true)
    }

    /// Takes records from the present place; whether there may be more there.
    fn take(&mut self, batch: &mut Vec<(Head, Vec<u8>)>, last: &mut u64, until: u64) -> io::Result<bool> {
        match &mut self.at {
            Place::Unknown => Ok(false),
            Place::Former(_, reader) => take_from(reader, batch, last, until, &mut 0),
            Place::Live { inode, next } => {
                let mut file = fs::File::open(&self.log)?;
                let meta = file.metadata()?;
                if (meta.dev(), meta.ino()) != *inode {
                    self.at = Place::Unknown;
                    return Ok(true);
                }
                file.seek(SeekFrom::Start(*next))?;
                // A new buffer each time: what lies behind the last record on disk may still be taken back.
                take_from(&mut BufReader::new(file), batch, last, until, next)
            }
        }
    }
}

/// Whether an error is what a decoder says of damaged input, and not what a disk says.
fn is_damage(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
        && matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
}

/// Takes records up to a number, and whether there may be more in this file.
fn take_from(
    reader: &mut impl BufRead,
    batch: &mut Vec<(Head, Vec<u8>)>,
    last: &mut u64,
    until: u64,
    next: &mut u64,
) -> io::Result<bool> {
    let mut bytes = 0;
    let mut line = Vec::new();
    while *last < until {
        match read_line(reader, &mut line) {
            Ok(Some(true)) => {}
            Ok(_) => return Ok(false),
            // A compressed file that is damaged: the rest of it will never be read. What is missing shows at the next
            // record, and is told.
            Err(error) if is_damage(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        *next += line.len() as u64 + 1;
        let Some(link) = Link::parse(&line) else { continue };
        if link.seq <= *last {
            continue;
        }
        *last = link.seq;
        bytes += line.len();
        batch.push((link.head(), std::mem::take(&mut line)));
        if batch.len() >= BATCH || bytes >= BATCH_BYTES {
            break;
        }
    }
    Ok(true)
}

/// The first record's number of the present file, and which file that is.
fn first_of(log: &Path) -> io::Result<Option<(u64, (u64, u64))>> {
    let file = match fs::File::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let meta = file.metadata()?;
    let mut line = Vec::new();
    let complete = read_line(&mut BufReader::new(file), &mut line)?;
    let first = if complete == Some(true) { Link::parse(&line).map(|link| link.seq) } else { None };
    Ok(first.map(|first| (first, (meta.dev(), meta.ino()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Hash;

    #[test]
    fn a_damaged_file_ends_where_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let log = crate::AuditLog::open(&path, crate::Options::new("test").without_journal()).unwrap();
        for what in ["a", "b"] {
            let kind = AuditKind::SystemChanged { what: what.to_owned() };
            log.record(AuditEvent::new(kind, &Caller::local())).unwrap();
        }
        let until = log.head().unwrap();
        log.close();
        let text = fs::read_to_string(&path).unwrap();
        let (_, last) = text.split_once('\n').unwrap();
        fs::write(&path, last).unwrap();
        fs::write(dir.path().join("audit.log.2026-11-20.gz"), "this is not compressed").unwrap();
        let batch = Feed::new(&path).read(Head::GENESIS, until).unwrap();
        assert_eq!(batch.iter().map(|(head, _)| head.seq).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_cursor_reads_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CURSOR);
        assert_eq!(read_cursor(&path), None);
        let head = Head { seq: 9, hash: Hash::of(b"x") };
        fs::write(&path, format!("{head}\n")).unwrap();
        assert_eq!(read_cursor(&path), Some(head));
    }
}
