//! One question to the root side and its reply: by its socket, or by a process of our own.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use patch_types::{
    ErrorCode, JobId,
    executor::{
        EVENTS_DIR, FrameError, OnBehalf, PROGRAM, PROTOCOL, Reply, Request, RequestBody, SOCKET, STATE_DIR,
        body_length, decode, encode,
    },
};
use uuid::Uuid;

use crate::below::Below;

/// How long the root side may take to take a request or to answer it. It answers before it works.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the words of a root side that we started ourselves go, in its own directory. Not to our standard error: the
/// terminal may be gone long before the work is done.
const DIRECT_LOG: &str = "direct.log";

/// Above that many bytes they begin anew.
const MAX_DIRECT_LOG: u64 = 1 << 20;

/// Why there is no reply that says yes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody listens, or we may not speak to whoever does.
    #[error("the root side cannot be reached by {}: {error}; {}", socket.display(), advice(error))]
    Unreachable { socket: PathBuf, error: io::Error },
    /// The program cannot be started.
    #[error("{} cannot be started: {error}; is linux-patch-api installed, and are you root?", program.display())]
    NotStarted { program: PathBuf, error: io::Error },
    /// It hung up, or said nothing in time.
    #[error("the root side did not answer: {error}; {}", log.as_ref().map_or_else(
        || "see `journalctl -u 'linux-patch-executor@*'`".to_owned(),
        |log| format!("see {}", log.display())
    ))]
    Silent { error: io::Error, log: Option<PathBuf> },
    /// It said something else.
    #[error("the root side's reply is not understood: {0}; is this program of another version than it?")]
    Reply(FrameError),
    /// What is asked does not fit.
    #[error("the request cannot be sent: {0}")]
    Request(FrameError),
    /// It said no.
    #[error("refused: {message} ({code})")]
    Refused { code: ErrorCode, message: String },
}

fn events(id: JobId) -> PathBuf {
    [EVENTS_DIR, &format!("{id}.jsonl")].iter().collect()
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run this as root",
        _ => "`systemctl start linux-patch-executor.socket` starts it; --direct goes without the socket",
    }
}

/// The root side of the system below a directory.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    files: Below,
    direct: bool,
    program: PathBuf,
}

impl Root {
    pub(crate) fn new(root: PathBuf, direct: bool) -> Self {
        Self { files: Below::new(root), direct, program: PROGRAM.into() }
    }

    /// The system's files.
    pub(crate) fn files(&self) -> &Below {
        &self.files
    }

    /// Opens the event file of an operation.
    ///
    /// # Errors
    /// Those of the system.
    pub(crate) fn open_events(&self, id: JobId) -> io::Result<File> {
        self.files.file(events(id))
    }

    /// The name of an operation's event file, for people.
    pub(crate) fn events_of(&self, id: JobId) -> PathBuf {
        self.files.name(events(id))
    }

    /// Asks, under a new id, and says which. What the id began is told by its event file.
    ///
    /// # Errors
    /// See [`AskError`].
    pub(crate) fn ask(&self, body: RequestBody) -> Result<JobId, AskError> {
        let id = JobId(Uuid::now_v7());
        let sudo_user = std::env::var("SUDO_USER").ok();
        let on_behalf = sudo_user.map(|user| OnBehalf { client: None, sudo_user: Some(user) });
        let request =
            encode(&Request { protocol: PROTOCOL, id, body, on_behalf }).map_err(AskError::Request)?;
        let reply = if self.direct { self.by_process(&request) } else { self.by_socket(&request) }?;
        match reply {
            Reply::Accepted | Reply::Known | Reply::Signed { .. } => Ok(id),
            Reply::Refused { code, message } => Err(AskError::Refused { code, message }),
        }
    }

    fn by_socket(&self, request: &[u8]) -> Result<Reply, AskError> {
        let mut stream = self
            .files
            .connect(SOCKET)
            .map_err(|error| AskError::Unreachable { socket: self.files.name(SOCKET), error })?;
        exchange(&mut stream, request).map_err(|error| error.with_log(None))
    }

    #[expect(clippy::disallowed_methods, reason = "root's own tool starts the root side when it is told to")]
    fn by_process(&self, request: &[u8]) -> Result<Reply, AskError> {
        let program = &self.program;
        let not_started = |error| AskError::NotStarted { program: program.clone(), error };
        let (mut ours, theirs) = UnixStream::pair().map_err(not_started)?;
        let (log, errors) = self.direct_log();
        // It leads a session of its own before it reads, ignores what ends this one, and outlives it.
        let child = std::process::Command::new(program)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .arg("--root")
            .arg(self.files.root())
            .arg("serve")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .map_err(not_started)?;
        // Nobody waits for it: how it goes is told by the event file, and init takes it when we end first.
        drop(child);
        exchange(&mut ours, request).map_err(|error| error.with_log(log))
    }

    fn direct_log(&self) -> (Option<PathBuf>, Stdio) {
        match self.files.append(STATE_DIR, DIRECT_LOG, MAX_DIRECT_LOG) {
            Ok(file) => (Some(self.files.name(STATE_DIR).join(DIRECT_LOG)), file.into()),
            // The directory is made by the root side itself when it first runs. One that is not root's is left alone.
            Err(_) => (None, Stdio::null()),
        }
    }
}

impl AskError {
    fn with_log(self, log: Option<PathBuf>) -> Self {
        match self {
            Self::Silent { error, .. } => Self::Silent { error, log },
            other => other,
        }
    }
}

fn exchange(stream: &mut UnixStream, request: &[u8]) -> Result<Reply, AskError> {
    let silent = |error| AskError::Silent { error, log: None };
    stream.set_read_timeout(Some(PATIENCE)).map_err(silent)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(silent)?;
    // Who refuses to listen may have said why before it hung up: so read in any case.
    let sent = stream.write_all(request);
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).map_err(|error| silent(sent.err().unwrap_or(error)))?;
    let mut body = vec![0; body_length(prefix).map_err(AskError::Reply)?];
    stream.read_exact(&mut body).map_err(silent)?;
    decode(&body).map_err(AskError::Reply)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        fs,
        os::unix::{fs::PermissionsExt, net::UnixListener},
        thread::JoinHandle,
    };

    use patch_types::executor::JOURNAL_DIR;
    use tempfile::TempDir;

    use super::*;

    /// A root side that plays by a script: for each connection what it does with the request's id.
    pub(crate) struct Fake {
        _dir: TempDir,
        pub(crate) root: Root,
        thread: JoinHandle<Vec<Request>>,
    }

    pub(crate) type Turn = Box<dyn FnOnce(&Root, &Request) -> Option<Reply> + Send>;

    impl Fake {
        pub(crate) fn new(turns: Vec<Turn>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::new(dir.path().to_owned(), false);
            for made in ["run", EVENTS_DIR, JOURNAL_DIR] {
                fs::create_dir_all(dir.path().join(made)).unwrap();
            }
            let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
            let known = root.clone();
            let thread = std::thread::spawn(move || {
                let mut seen = Vec::new();
                for turn in turns {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut prefix = [0; 4];
                    stream.read_exact(&mut prefix).unwrap();
                    let mut body = vec![0; body_length(prefix).unwrap()];
                    stream.read_exact(&mut body).unwrap();
                    let request: Request = decode(&body).unwrap();
                    if let Some(reply) = turn(&known, &request) {
                        stream.write_all(&encode(&reply).unwrap()).unwrap();
                    }
                    seen.push(request);
                }
                seen
            });
            Self { _dir: dir, root, thread }
        }

        /// What was asked; all turns must have been taken.
        pub(crate) fn requests(self) -> Vec<Request> {
            self.thread.join().unwrap()
        }
    }

    fn nothing() -> RequestBody {
        RequestBody::Settle { job: JobId(Uuid::nil()) }
    }

    #[test]
    fn replies_are_told_apart() {
        let fake = Fake::new(vec![
            Box::new(|_, _| Some(Reply::Accepted)),
            Box::new(|_, _| {
                Some(Reply::Refused { code: ErrorCode::JobConflict, message: "not now".to_owned() })
            }),
            Box::new(|_, _| None),
        ]);
        let id = fake.root.ask(nothing()).unwrap();
        let refused = fake.root.ask(nothing()).unwrap_err();
        assert_eq!(refused.to_string(), "refused: not now (JOB_CONFLICT)");
        assert!(matches!(fake.root.ask(nothing()), Err(AskError::Silent { .. })));
        let requests = fake.requests();
        assert_eq!(requests[0].id, id);
        assert_eq!((requests[0].protocol, requests.len()), (PROTOCOL, 3));
    }

    #[test]
    fn a_dead_socket_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = Root::new(dir.path().to_owned(), false).ask(nothing()).unwrap_err();
        assert!(matches!(error, AskError::Unreachable { .. }));
        let text = error.to_string();
        assert!(text.contains("systemctl start linux-patch-executor.socket"), "{text}");
        assert!(text.contains("--direct"), "{text}");
    }

    #[test]
    fn without_a_socket_the_program_is_started_and_asked() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(STATE_DIR)).unwrap();
        let reply = dir.path().join("reply");
        fs::write(&reply, encode(&Reply::Accepted).unwrap()).unwrap();
        let program = dir.path().join("executor");
        let script = format!(
            "#!/bin/sh\necho \"$@\" >{0}/args\nenv >{0}/env\necho words >&2\ncat {0}/reply >&0\n",
            dir.path().display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let mut root = Root::new(dir.path().to_owned(), true);
        root.program.clone_from(&program);
        root.ask(nothing()).unwrap();
        let args = fs::read_to_string(dir.path().join("args")).unwrap();
        assert_eq!(args, format!("--root {} serve\n", dir.path().display()));
        let log = dir.path().join(STATE_DIR).join(DIRECT_LOG);
        assert_eq!(fs::read_to_string(log).unwrap(), "words\n");
        fs::remove_file(&program).unwrap();
        assert!(matches!(root.ask(nothing()), Err(AskError::NotStarted { .. })));
    }
}
