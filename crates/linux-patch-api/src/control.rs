//! The socket by which root, or the service manager on its behalf, asks the running daemon to reload, and is told how that
//! went. SIGHUP asks the same, but nobody learns the outcome of a signal.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream as BlockingStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::timeout,
};

/// The socket, below the root prefix. Its directory is the service's runtime directory.
pub const SOCKET: &str = "run/linux_patch_api/control.sock";

/// All that can be asked.
const RELOAD: &[u8] = b"reload\n";

/// How long the asking program may take to say what it wants, or to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the asking program waits for the answer: a reload takes milliseconds, unless a name server or a disk hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// The longest answer that is read.
const MAX_ANSWER: u64 = 1 << 20;

/// How a reload went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What is other than before: keys of the configuration with both values.
    pub changes: Vec<String>,
    /// What has changed by itself since somebody asked last, with when.
    #[serde(default)]
    pub earlier: Vec<String>,
    /// How many more such changes there were before those; the audit trail has them.
    #[serde(default)]
    pub forgotten: usize,
    /// What was refused and why; what ran before goes on then.
    pub problems: Vec<String>,
    /// What is wrong, and in effect all the same: nobody is let in.
    #[serde(default)]
    pub shut_out: Vec<String>,
}

/// The daemon's end.
#[derive(Debug)]
pub struct Control {
    requests: mpsc::Receiver<oneshot::Sender<Report>>,
    // Without a socket nobody asks, which is no reason not to serve.
    task: Option<tokio::task::JoinHandle<()>>,
    path: PathBuf,
}

impl Control {
    /// Listens below the root prefix. If that is not possible, says so and is silent.
    #[must_use]
    pub fn start(root: &Path) -> Self {
        let path = root.join(SOCKET);
        let (send, requests) = mpsc::channel(1);
        let task = match listen(&path) {
            Ok(listener) => Some(tokio::spawn(accept(listener, send))),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "`linux-patch-api reload` will not reach this process; SIGHUP does");
                None
            }
        };
        Self { requests, task, path }
    }

    /// Waits for the next request for a reload; its outcome is to be sent. Safe to cancel.
    pub async fn asked(&mut self) -> oneshot::Sender<Report> {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
            // Left behind, it would only be replaced by the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // That of a process that was killed. A second daemon cannot have come so far: the audit trail is locked.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

async fn accept(listener: UnixListener, send: mpsc::Sender<oneshot::Sender<Report>>) {
    loop {
        match listener.accept().await {
            // One at a time: who dawdles is given up after a while.
            Ok((stream, _)) => {
                if let Err(error) = answer(stream, &send).await {
                    tracing::warn!(%error, "a request for a reload came to nothing");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket does not accept");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, send: &mpsc::Sender<oneshot::Sender<Report>>) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {uid} may not ask for it"),
        ));
    }
    let mut request = [0; RELOAD.len()];
    timeout(PATIENCE, stream.read_exact(&mut request)).await??;
    if request != RELOAD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not understood"));
    }
    let (done, outcome) = oneshot::channel();
    let stopping = || io::Error::new(io::ErrorKind::Interrupted, "the service is stopping");
    send.send(done).await.map_err(|_| stopping())?;
    let report = outcome.await.map_err(|_| stopping())?;
    let text = serde_json::to_vec(&report)?;
    timeout(PATIENCE, stream.write_all(&text)).await?
}

/// Asks the running daemon to reload, and waits until it has.
///
/// # Errors
/// When there is no daemon, or it does not answer.
pub fn ask(root: &Path) -> anyhow::Result<Report> {
    let path = root.join(SOCKET);
    let mut stream = BlockingStream::connect(&path).with_context(|| {
        format!("cannot reach the service at {}: is it running, and are you root? See: systemctl status linux-patch-api", path.display())
    })?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).context("cannot limit the wait")?;
    stream.set_write_timeout(Some(PATIENCE)).context("cannot limit the wait")?;
    stream.write_all(RELOAD).context("cannot ask the service to reload")?;
    let mut text = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut text).context("the service did not say how the reload went")?;
    serde_json::from_slice(&text).context(
        "the service did not say how the reload went; its journal does: journalctl -u linux-patch-api",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_is_told_how_it_went() {
        let root = tempfile::tempdir().unwrap();
        let mut control = Control::start(root.path());
        let report = Report { changes: vec!["a".into()], problems: vec!["b".into()], ..Report::default() };
        let path = root.path().to_owned();
        let asking = tokio::task::spawn_blocking(move || ask(&path));
        control.asked().await.send(report.clone()).unwrap();
        assert_eq!(asking.await.unwrap().unwrap(), report);

        // What is not understood is not answered, and does no harm.
        let mut stranger = UnixStream::connect(root.path().join(SOCKET)).await.unwrap();
        stranger.write_all(b"restart").await.unwrap();
        assert_eq!(stranger.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let path = root.path().to_owned();
        let asking = tokio::task::spawn_blocking(move || ask(&path));
        // The daemon stops before it has answered.
        drop(control.asked().await);
        assert!(asking.await.unwrap().is_err());
        drop(control);
        assert!(ask(root.path()).unwrap_err().to_string().contains("is it running"));
        // A socket that a killed process left is replaced.
        drop(std::os::unix::net::UnixListener::bind(root.path().join(SOCKET)).unwrap());
        let _control = Control::start(root.path());
        assert!(BlockingStream::connect(root.path().join(SOCKET)).is_ok());
    }
}
