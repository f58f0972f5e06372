//! One request to a server, in the clear or by TLS, and its answer: for whoever speaks HTTP by hand.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::{error::NotifyError, limit, tls};

/// Who is asked.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    /// What it is called in errors.
    pub whom: &'a str,
    /// Whether TLS is spoken with it, of version 1.2 or newer.
    pub tls: bool,
    /// Its name or address, IPv6 without brackets; also the name that its certificate has to show.
    pub host: &'a str,
    /// Its port.
    pub port: u16,
    /// The CAs that may have signed its certificate, as PEM; the system's if there is none.
    pub ca_file: Option<&'a Path>,
}

/// There is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Unanswered {
    /// Why.
    pub error: NotifyError,
    /// Whether any of the request may have reached the server, which may have done what it asks for then.
    pub is_sent: bool,
}

impl From<Unanswered> for NotifyError {
    fn from(unanswered: Unanswered) -> Self {
        unanswered.error
    }
}

impl Server<'_> {
    /// Sends a request and reads the answer until it is enough, or has come to its end.
    ///
    /// # Errors
    /// When there is no connection, the certificate is not trusted, or the answer is not enough by `deadline`.
    pub fn exchange(
        &self,
        request: &[u8],
        deadline: Instant,
        is_enough: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<u8>, Unanswered> {
        let unsent = |error: NotifyError| Unanswered { error, is_sent: false };
        let failed = |error: io::Error| unsent(NotifyError::of_io(self.whom, &error));
        let trust = if self.tls { Some(tls::config(self.ca_file).map_err(unsent)?) } else { None };
        let socket = Limited { socket: self.connect(deadline).map_err(failed)?, deadline };
        match trust {
            Some(config) => ask(self.secure(config, socket).map_err(failed)?, request, is_enough),
            None => ask(socket, request, is_enough),
        }
        .map_err(|error| Unanswered { error: NotifyError::of_io(self.whom, &error), is_sent: true })
    }

    /// Speaks TLS. Not one byte of what will be sent is on its way before the server has shown that it is the right one.
    fn secure(
        &self,
        config: Arc<ClientConfig>,
        mut socket: Limited,
    ) -> io::Result<StreamOwned<ClientConnection, Limited>> {
        let name = ServerName::try_from(self.host.to_owned()).map_err(io::Error::other)?;
        let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(connection, socket))
    }

    fn connect(&self, deadline: Instant) -> io::Result<TcpStream> {
        let name = (self.host.to_owned(), self.port);
        let addresses: Vec<SocketAddr> =
            limit::within(left(deadline)?, move || name.to_socket_addrs().map(Iterator::collect))??;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "failed to lookup address: it has none");
        for address in addresses {
            match TcpStream::connect_timeout(&address, left(deadline)?) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A socket that is given up at a time, however slowly the other side goes on.
struct Limited {
    socket: TcpStream,
    deadline: Instant,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(left(self.deadline)?))?;
        self.socket.read(buffer)
    }
}

impl Write for Limited {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(left(self.deadline)?))?;
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

fn ask(
    mut stream: impl Read + Write,
    request: &[u8],
    is_enough: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    stream.flush()?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !is_enough(&answer) {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(part.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Some servers end a TLS connection without a word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_is_over_is_not_connected_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server { whom: "it", tls: false, host: "127.0.0.1", port, ca_file: None };
        assert_eq!(server.connect(Instant::now()).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(server.connect(Instant::now() + Duration::from_secs(60)).is_ok());
    }

    /// How a request ends that nobody answers, by a server that takes the connection and does `then`.
    fn unanswered(tls: bool, then: impl Fn(TcpStream) + Send + 'static) -> Unanswered {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || then(listener.accept().unwrap().0));
        let server = Server { whom: "it", tls, host: "127.0.0.1", port, ca_file: None };
        let answer = server.exchange(b"question", Instant::now() + Duration::from_secs(60), |_| false);
        thread.join().unwrap();
        answer.unwrap_err()
    }

    #[test]
    fn whether_anything_was_sent_is_told_with_the_failure() {
        let reset = |mut stream: TcpStream| {
            // What was not read makes the end a reset.
            stream.read_exact(&mut [0; 1]).unwrap();
        };
        assert!(unanswered(false, reset).is_sent);
        assert!(!unanswered(true, drop).is_sent, "it hangs up in the handshake");
        assert!(!unanswered(true, reset).is_sent);
        // The kernel takes the connection, and nobody says a word.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for (tls, limit) in
            [(true, Duration::from_millis(200)), (true, Duration::ZERO), (false, Duration::ZERO)]
        {
            let server = Server { whom: "it", tls, host: "127.0.0.1", port, ca_file: None };
            let error = server.exchange(b"question", Instant::now() + limit, |_| false).unwrap_err();
            assert_eq!((error.is_sent, error.error.reason), (false, crate::Reason::Timeout), "{limit:?}");
        }
        let server = Server { whom: "it", tls: false, host: "127.0.0.1", port, ca_file: None };
        let soon = Instant::now() + Duration::from_millis(200);
        assert!(server.exchange(b"question", soon, |_| false).unwrap_err().is_sent);
    }
}
