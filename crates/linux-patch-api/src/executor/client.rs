//! The socket: one frame there, one bounded frame back.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use patch_service::PemInput;
use patch_types::{
    ErrorCode, ErrorDetail, JobId,
    executor::{
        EVENTS_DIR, FrameError, MAX_KEY, PROTOCOL, Reply, Request, RequestBody, SOCKET, body_length, decode,
        encode,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::ask::Flights;

/// How long the connection may take. A socket unit answers at once; a full backlog is an error of its own.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long the reply may take. The root side starts a process and syncs its journal before it replies.
const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// Why the root side could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The request is too large to be sent.
    #[error("the request cannot be sent to the root side")]
    Request(#[source] FrameError),
    /// There was no connection, so nothing was asked.
    #[error("the root side does not listen on {}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke before the reply: whether the request was taken is not known.
    #[error("the root side did not answer on {}", path.display())]
    Unanswered {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The reply is not one: whether the request was taken is not known.
    #[error("the root side speaks another protocol than this daemon")]
    Protocol(#[source] FrameError),
}

impl ExecutorError {
    /// Whether the root side may have taken the request on. Only a repetition with the same id can tell.
    #[must_use]
    pub fn may_have_begun(&self) -> bool {
        matches!(self, Self::Unanswered { .. } | Self::Protocol(_))
    }
}

impl From<&ExecutorError> for ErrorDetail {
    fn from(error: &ExecutorError) -> Self {
        let advice = match error {
            ExecutorError::Request(source) => {
                return Self::new(ErrorCode::InvalidRequest, format!("{error}: {source}"));
            }
            ExecutorError::Unreachable { source, .. } => {
                format!("{source}; see `systemctl status linux-patch-executor.socket`")
            }
            ExecutorError::Unanswered { source, .. } => {
                format!("{source}; see `journalctl -u 'linux-patch-executor@*'`")
            }
            ExecutorError::Protocol(source) => format!(
                "{source}; an upgrade may be under way, otherwise restart linux-patch-api and \
                 linux-patch-executor.socket"
            ),
        };
        Self::new(ErrorCode::ServiceUnhealthy, format!("{error}: {advice}"))
    }
}

impl From<ExecutorError> for ErrorDetail {
    fn from(error: ExecutorError) -> Self {
        Self::from(&error)
    }
}

/// The root side, as far as this process can reach it. Cheap to clone.
#[derive(Clone)]
pub struct Executor {
    pub(super) root: Arc<Path>,
    socket: Arc<Path>,
    events: Arc<Path>,
    pub(super) flights: Arc<Flights>,
}

impl Executor {
    /// The root side below the root prefix.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.into(),
            socket: root.join(SOCKET).into(),
            events: root.join(EVENTS_DIR).into(),
            flights: Arc::default(),
        }
    }

    /// The root prefix.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the events of an operation are.
    #[must_use]
    pub fn events_of(&self, id: JobId) -> PathBuf {
        self.events.join(format!("{id}.jsonl"))
    }

    /// Sends one request and reads the reply.
    ///
    /// # Errors
    /// When the root side cannot be reached or does not answer.
    pub async fn submit(&self, request: &Request) -> Result<Reply, ExecutorError> {
        let frame = encode(request).map_err(ExecutorError::Request)?;
        let mut stream = self.connect().await?;
        match timeout(REPLY_LIMIT, exchange(&mut stream, &frame)).await {
            Ok(Ok(Ok(reply))) => Ok(reply),
            Ok(Ok(Err(source))) => Err(ExecutorError::Protocol(source)),
            Ok(Err(source)) => Err(ExecutorError::Unanswered { path: self.socket.to_path_buf(), source }),
            Err(_) => Err(ExecutorError::Unanswered {
                path: self.socket.to_path_buf(),
                source: io::Error::new(io::ErrorKind::TimedOut, format!("no reply within {REPLY_LIMIT:?}")),
            }),
        }
    }

    /// Whether the socket accepts connections: for the health check. A root side that starts a process for each
    /// connection sees this one end without a request.
    ///
    /// # Errors
    /// When it does not, with what to do.
    pub async fn ping(&self) -> Result<(), ErrorDetail> {
        self.connect().await.map(drop).map_err(ErrorDetail::from)
    }

    /// The server's private key, which the root side reads from the file that the configuration names.
    ///
    /// # Errors
    /// When it is not handed over, with why and what to do.
    pub async fn server_key(&self) -> Result<PemInput, ErrorDetail> {
        let frame = encode(&request(RequestBody::ServerKey)).map_err(ExecutorError::Request)?;
        let mut stream = self.connect().await?;
        let unanswered = |source| ExecutorError::Unanswered { path: self.socket.to_path_buf(), source };
        let hand_over = async {
            match exchange(&mut stream, &frame).await {
                Ok(Ok(Reply::Accepted | Reply::Known)) => {}
                Ok(Ok(Reply::Refused { code, message })) => return Err(ErrorDetail::new(code, message)),
                Ok(Ok(Reply::Signed { .. })) => {
                    let message = "the root side answered something else than was asked; daemon and root side may be of \
                                   different versions: restart linux-patch-api.service";
                    return Err(ErrorDetail::new(ErrorCode::ServiceUnhealthy, message));
                }
                Ok(Err(source)) => return Err(ExecutorError::Protocol(source).into()),
                Err(source) => return Err(unanswered(source).into()),
            }
            let read = async {
                let mut prefix = [0; 4];
                stream.read_exact(&mut prefix).await?;
                let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
                if length > MAX_KEY {
                    return Err(io::Error::other(format!("a key of {length} bytes is announced")));
                }
                // Of its full size from the start: what grows leaves copies behind.
                let mut key = Zeroizing::new(vec![0; length]);
                stream.read_exact(&mut key).await?;
                Ok(key)
            };
            let mut key = read.await.map_err(unanswered)?;
            Ok(PemInput::new("the server's key from the root side", std::mem::take(&mut *key)))
        };
        match timeout(REPLY_LIMIT, hand_over).await {
            Ok(result) => result,
            Err(_) => {
                let late = io::Error::new(io::ErrorKind::TimedOut, format!("no key within {REPLY_LIMIT:?}"));
                Err(unanswered(late).into())
            }
        }
    }

    async fn connect(&self) -> Result<UnixStream, ExecutorError> {
        let unreachable = |source| ExecutorError::Unreachable { path: self.socket.to_path_buf(), source };
        match timeout(CONNECT_LIMIT, UnixStream::connect(&*self.socket)).await {
            Ok(connected) => connected.map_err(unreachable),
            Err(_) => Err(unreachable(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {CONNECT_LIMIT:?}"),
            ))),
        }
    }
}

/// A request with a new id.
pub(crate) fn request(body: RequestBody) -> Request {
    Request { protocol: PROTOCOL, id: JobId(Uuid::now_v7()), body, on_behalf: None }
}

async fn exchange(stream: &mut UnixStream, frame: &[u8]) -> io::Result<Result<Reply, FrameError>> {
    // A root side that refuses the peer replies and closes without reading: its words matter more than our EPIPE.
    let written = stream.write_all(frame).await;
    let mut prefix = [0; 4];
    if let Err(unread) = stream.read_exact(&mut prefix).await {
        return Err(written.err().unwrap_or(unread));
    }
    let length = match body_length(prefix) {
        Ok(length) => length,
        Err(error) => return Ok(Err(error)),
    };
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(decode(&body))
}
