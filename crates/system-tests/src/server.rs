//! A small HTTP file server for repositories, with faults that can be switched on while it runs.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::Network;

/// What the server does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// It answers every request with this status and no content.
    Status(u16),
    /// It sends so many bytes of each file, then nothing more, until the fault is switched to another.
    Stall {
        /// The bytes of content that are sent.
        after: u64,
    },
    /// It sends so many bytes of each file, then closes the connection.
    Cut {
        /// The bytes of content that are sent.
        after: u64,
    },
}

/// A running server; it ends when it is dropped.
#[derive(Debug)]
pub struct FileServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: TcpListener,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    ends: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    fault: Fault,
    requests: Vec<String>,
    connections: Vec<TcpStream>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileServer {
    pub(crate) fn start(network: &Network, root: PathBuf) -> Result<Self> {
        let listener = network
            .run_in(|| TcpListener::bind((network.address(), 0)).context("cannot open a port"))
            .context("cannot serve files on the network")?;
        let shared = Arc::new(Shared {
            root,
            state: Mutex::default(),
            changed: Condvar::new(),
            ends: AtomicBool::new(false),
        });
        let acceptor = std::thread::Builder::new().name("file server".to_owned()).spawn({
            let (shared, listener) = (Arc::clone(&shared), listener.try_clone()?);
            move || accept(&shared, &listener)
        })?;
        Ok(Self { address: listener.local_addr()?, shared, listener, acceptor: Some(acceptor) })
    }

    /// The address of the root directory, without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Switches a fault on or, with [`Fault::None`], off. Connections that stall take notice.
    pub fn fault(&self, fault: Fault) {
        self.shared.state().fault = fault;
        self.shared.changed.notify_all();
    }

    /// The paths that were asked for so far.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        // Wakes the acceptor, which is waiting for a connection.
        rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both).unwrap_or_default();
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().unwrap_or_default();
        }
        for connection in self.shared.state().connections.drain(..) {
            connection.shutdown(Shutdown::Both).unwrap_or_default();
        }
        self.shared.changed.notify_all();
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    while let Ok((stream, _)) = listener.accept() {
        if let Ok(same) = stream.try_clone() {
            shared.state().connections.push(same);
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A client that goes away in the middle is the test's subject, not the server's.
            serve_connection(&shared, &stream).unwrap_or_default();
            stream.shutdown(Shutdown::Both).unwrap_or_default();
        });
    }
}

struct Request {
    is_head: bool,
    path: String,
    known: Option<String>,
}

fn serve_connection(shared: &Shared, stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        shared.state().requests.push(request.path.clone());
        if !answer(shared, stream, &request)? {
            break;
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let is_head = words.next() == Some("HEAD");
    let path = decode(words.next().unwrap_or_default());
    let mut known = None;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(Some(Request { is_head, path, known }));
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("if-modified-since")
        {
            known = Some(value.trim().to_owned());
        }
    }
}

/// Answers one request; false when the connection is to be closed.
fn answer(shared: &Shared, mut stream: &TcpStream, request: &Request) -> Result<bool> {
    let fault = shared.state().fault;
    if let Fault::Status(status) = fault {
        return respond_empty(stream, &format!("{status} Fault"), "");
    }
    let file = File::open(local_path(&shared.root, &request.path));
    let Some(file) = file.ok().filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file())) else {
        return respond_empty(stream, "404 Not Found", "");
    };
    let metadata = file.metadata()?;
    let modified =
        jiff::Timestamp::try_from(metadata.modified()?)?.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let dated = format!("Last-Modified: {modified}\r\n");
    if request.known.as_deref() == Some(&*modified) {
        return respond_empty(stream, "304 Not Modified", &dated);
    }
    let length = metadata.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{dated}\r\n")?;
    if request.is_head {
        return Ok(true);
    }
    match fault {
        Fault::Cut { after } if after < length => {
            std::io::copy(&mut file.take(after), &mut stream)?;
            Ok(false)
        }
        Fault::Stall { after } if after < length => {
            std::io::copy(&mut (&file).take(after), &mut stream)?;
            let go_on = |state: &mut State| state.fault == fault && !shared.ends.load(Ordering::Acquire);
            drop(shared.changed.wait_while(shared.state(), go_on).unwrap_or_else(PoisonError::into_inner));
            std::io::copy(&mut &file, &mut stream)?;
            Ok(true)
        }
        _ => {
            std::io::copy(&mut &file, &mut stream)?;
            Ok(true)
        }
    }
}

fn respond_empty(mut stream: &TcpStream, status: &str, headers: &str) -> Result<bool> {
    write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: 0\r\n\r\n")?;
    Ok(true)
}

/// The file that is meant, never one above the root.
fn local_path(root: &Path, path: &str) -> PathBuf {
    let path = path.split('?').next().unwrap_or_default();
    let names = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
    names.fold(root.to_path_buf(), |path, name| path.join(name))
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, coded)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        match coded.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &coded[2..];
            }
            None => {
                bytes.push(b'%');
                rest = coded;
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_never_leads_above_the_root() {
        let path = local_path(Path::new("/srv"), &decode("/a/..%2f../%7eb?x"));
        assert_eq!(path, Path::new("/srv/a/~b"));
    }

    #[test]
    fn a_stray_percent_sign_is_kept() {
        assert_eq!(decode("100%zz%41"), "100%zzA");
    }
}
