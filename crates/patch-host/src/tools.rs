//! The system's own tools, asked for what they see.
//!
//! They are started by their whole names, with an environment of their own and nothing to read, and are given up when they
//! take too long or say too much. What is not installed is told apart from what failed.

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most that is read of each stream, in bytes.
const MOST: u64 = 8 << 20;

/// Why a tool gives no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ToolError {
    /// It is not there, or this is another system's root.
    #[error("{0} is not installed")]
    Absent(String),
    /// The system that is worked on is not the one that runs.
    #[error("the system below --root does not run, so {0} cannot be asked")]
    Foreign(String),
    /// It could not be started, did not end in time, or ended with an error.
    #[error("{tool} failed: {reason}")]
    Failed {
        /// Which.
        tool: String,
        /// What it said.
        reason: String,
    },
}

/// Who asks tools: the running system, or a script of answers in tests.
pub(crate) trait Ask {
    /// What a tool prints.
    ///
    /// # Errors
    /// When there is no answer: see [`ToolError`].
    fn ask(&self, tool: &str, args: &[&str]) -> Result<String, ToolError> {
        self.ask_for(tool, args, PATIENCE)
    }

    /// The same, waiting for so long.
    ///
    /// # Errors
    /// As [`Ask::ask`].
    fn ask_for(&self, tool: &str, args: &[&str], patience: Duration) -> Result<String, ToolError>;
}

/// The tools of the system below a root: none, if that is not the running one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tools {
    runs: bool,
}

impl Tools {
    pub(crate) fn of(root: &Path) -> Self {
        Self { runs: root == Path::new("/") }
    }
}

impl Ask for Tools {
    fn ask_for(&self, tool: &str, args: &[&str], patience: Duration) -> Result<String, ToolError> {
        if !self.runs {
            return Err(ToolError::Foreign(tool.to_owned()));
        }
        let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/libexec/linux-patch-api"]
            .iter()
            .map(|dir| Path::new(dir).join(tool))
            .find(|path| path.is_file())
            .ok_or_else(|| ToolError::Absent(tool.to_owned()))?;
        run(&found, tool, args, patience)
    }
}

#[expect(clippy::disallowed_methods, reason = "root's own tool asks the system's tools what they see")]
fn run(program: &Path, tool: &str, args: &[&str], patience: Duration) -> Result<String, ToolError> {
    let failed = |reason: String| ToolError::Failed { tool: tool.to_owned(), reason };
    let mut child = Command::new(program)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", "/nonexistent")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("NEEDRESTART_MODE", "l")
        .current_dir("/")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let out = gather(child.stdout.take());
    let err = gather(child.stderr.take());
    let end = Instant::now() + patience;
    let read = |from: &mpsc::Receiver<Vec<u8>>, child: &mut Child| {
        from.recv_timeout(end.saturating_duration_since(Instant::now())).map_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
            failed(format!("it took longer than {} s", patience.as_secs()))
        })
    };
    let out = read(&out, &mut child)?;
    let err = read(&err, &mut child)?;
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&err);
        let last: Vec<&str> = said.trim().lines().rev().take(3).collect();
        let said: Vec<&str> = last.into_iter().rev().collect();
        return Err(failed(format!("{status}: {}", said.join(" "))));
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Reads a stream beside everything else: a tool that fills one while the other is read would wait for ever.
fn gather(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.by_ref().take(MOST).read_to_end(&mut bytes);
            // The rest is not kept, but must not stop the tool.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        let _ = tell.send(bytes);
    });
    told
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Answers by script: `tool arg arg` to what it prints. What is not in it is not installed.
    #[derive(Debug, Default)]
    pub(crate) struct Script(HashMap<String, Result<String, ToolError>>);

    impl Script {
        pub(crate) fn with(mut self, line: &str, answer: &str) -> Self {
            self.0.insert(line.to_owned(), Ok(answer.to_owned()));
            self
        }

        pub(crate) fn failing(mut self, line: &str) -> Self {
            let tool = line.split(' ').next().unwrap_or_default().to_owned();
            let reason = "exit status: 1: ".to_owned();
            self.0.insert(line.to_owned(), Err(ToolError::Failed { tool, reason }));
            self
        }
    }

    impl Ask for Script {
        fn ask_for(&self, tool: &str, args: &[&str], _: Duration) -> Result<String, ToolError> {
            let line = [&[tool], args].concat().join(" ");
            self.0.get(&line).cloned().unwrap_or_else(|| Err(ToolError::Absent(tool.to_owned())))
        }
    }

    #[test]
    fn a_tool_is_asked_and_its_failures_are_told_apart() {
        let here = Tools { runs: true };
        assert_eq!(here.ask("echo", &["a", "b"]).unwrap(), "a b\n");
        assert_eq!(here.ask("no-such-tool", &[]).unwrap_err(), ToolError::Absent("no-such-tool".to_owned()));
        assert_eq!(
            here.ask("../bin/echo-not", &[]).unwrap_err().to_string(),
            "../bin/echo-not is not installed"
        );
        let error = here.ask("ls", &["/no/such/place"]).unwrap_err().to_string();
        assert!(error.contains("exit status") && error.contains("/no/such/place"), "{error}");
        let error = here.ask_for("sleep", &["1000"], Duration::from_millis(10)).unwrap_err();
        assert!(error.to_string().contains("it took longer"), "{error}");
        let below = Tools::of(Path::new("/mnt"));
        assert_eq!(below.ask("echo", &[]).unwrap_err(), ToolError::Foreign("echo".to_owned()));
    }

    #[test]
    fn a_lot_on_both_streams_is_read() {
        let here = Tools { runs: true };
        let script = "i=0; while [ $i -lt 20000 ]; do echo outoutout; echo errerrerr >&2; i=$((i+1)); done";
        assert_eq!(here.ask("sh", &["-c", script]).unwrap().len(), 200_000);
    }
}
