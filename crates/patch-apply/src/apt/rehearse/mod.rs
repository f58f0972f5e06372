//! A transaction tried first on a copy-on-write image of the host, which is thrown away.
//!
//! Four processes, each of which is the executor's own program:
//!
//! - the executor starts the *keeper* and follows it ([`Rehearsal`]);
//! - the keeper ([`Keeper`]) enters namespaces of its own, mounts an image there (one overlay a file system, everything
//!   that is written in memory), watches over what happens in it, and looks at it when nothing runs there any more;
//! - the first process of the image ([`enter`]) makes the image its root, gives up what reaches beyond it, and becomes
//! - its *init* ([`run`]), by the image's own copy of the program, which runs apt and dpkg there.
//!
//! Whoever of them dies takes the next along, and the kernel takes the mounts, the memory and all processes with the
//! namespaces: nothing of an image is ever on disk but an empty directory.

mod confine;
mod findings;
mod group;
mod growth;
mod image;
mod init;
mod keeper;
mod lines;
mod load;
mod mounts;
mod room;
mod start;

use std::{
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

pub use findings::Listener;
pub use group::Group;
pub use init::{enter, run};
pub use keeper::{Keeper, Seen, task, tell_no_image, tell_report};
pub(crate) use mounts::{KERNEL, unescape};
pub use room::{Bounds, Room, SCRIPTS, available, largest, needed};
pub use start::{Heard, Rehearsal};

use super::argv::Argv;

/// A line that no script can say beforehand: an image's init says it on the output that scripts have as well, between the first
/// command and what mends what that left. Another one each time.
///
/// # Errors
/// When the kernel gives no random numbers.
pub fn mark() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("rehearsal {}", hex::encode(bytes)))
}

/// In place of the number of the descriptor for progress, which only the image's init knows.
pub const PROGRESS: i32 = -1;

/// More processes and threads than a transaction ever has. A rehearsal that has more is ended.
pub const MOST_PROCESSES: u32 = 1024;

/// The kernel itself makes no more than so many in an image: somewhat more than those, so that the end can be told.
const HARD_LIMIT: u32 = MOST_PROCESSES + 512;

/// Below `/run` of an image.
const OWN: &str = "run/linux-patch-rehearsal";

/// The command of the executor's program that is an image's first process, and the one that is its init.
pub const ENTER: &str = "rehearsal-image";
/// See [`ENTER`].
pub const RUN: &str = "rehearsal-init";
/// The command of the executor's program that is the keeper.
pub const KEEP: &str = "rehearsal-keeper";

/// One command to be run in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    program: String,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    /// Only if the one before did not end well.
    after_failure: bool,
}

impl Step {
    /// A command; a command line made for [`PROGRESS`] tells its progress.
    #[must_use]
    pub fn new(argv: Argv, after_failure: bool) -> Self {
        let environment = argv.environment.into_iter().map(|(name, value)| (name.to_owned(), value));
        let environment = environment.collect();
        let mut args = argv.args;
        if argv.program.ends_with("/apt-get") {
            // apt gives dpkg a path of its own; this is that one, with the stand-ins before it.
            let path = format!("DPkg::Path=/{OWN}/bin:/usr/sbin:/usr/bin:/sbin:/bin");
            args.splice(0..0, ["-o".to_owned(), path]);
        }
        Self { program: argv.program.to_owned(), args, environment, after_failure }
    }
}

/// What is to be rehearsed, and within what bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The root of the system that is changed; `/` on a real host.
    pub root: PathBuf,
    /// An empty directory of root's own, where the keeper alone sees the image.
    pub staging: PathBuf,
    /// How much it may take.
    pub bounds: Bounds,
    /// What is run.
    pub steps: Vec<Step>,
    /// The control groups that the image's processes are in, if there are such.
    pub groups: Vec<PathBuf>,
    /// See [`mark`].
    pub mark: String,
}

/// What an image's init is told to do.
#[derive(Debug, Serialize, Deserialize)]
struct Work {
    steps: Vec<Step>,
    mark: String,
}

/// What this program is to the kernel, also when its file was replaced since it was started.
const MYSELF: &str = "/proc/self/exe";

/// Where this program's file is, or the one that replaced it: the kernel says of the former one that it is deleted.
fn in_place(program: PathBuf) -> PathBuf {
    match program.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(text) => text.into(),
        None => program,
    }
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct NoImage {
    /// What could not be done.
    pub what: String,
    /// Why.
    pub source: std::io::Error,
}

impl NoImage {
    fn of<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self { what, source: source.into() }
    }
}

/// What the keeper and the image's init tell, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "snake_case")]
enum Told {
    /// The image is there; its init is the process of this id.
    Begun { init: u32 },
    /// The first command is about to be run: from here on whoever has the pipe may be anybody.
    Running,
    /// A line of progress.
    Progress { line: String },
    /// All commands have ended; the first one with this code.
    Ran { code: Option<i32> },
    /// There is no image, and why.
    NoImage { why: String },
    /// What whoever keeps the image has to say of it at the end, as JSON.
    Report { report: serde_json::Value },
}

/// Lines as they come out of a rehearsal's pipes, and what is made of those of its progress and end: for fuzzing alone. Gives
/// how each line would be written again, if it is one of the keeper's.
#[doc(hidden)]
#[must_use]
pub fn lines(mut bytes: &[u8], most: usize) -> Vec<(String, Option<String>)> {
    let (mut reader, mut lines) = (lines::Lines::at_most(most), Vec::new());
    while reader.read(&mut bytes, &mut lines).is_ok_and(|more| more) {}
    let again = |line: &str| {
        let told: Told = serde_json::from_str(line).ok()?;
        serde_json::to_string(&told).ok()
    };
    lines.into_iter().map(|line| (again(&line), line)).map(|(again, line)| (line, again)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_never_the_same() {
        let (one, other) = (mark().unwrap(), mark().unwrap());
        assert!(one != other && one.len() > 32 && !one.contains('\n'), "{one} {other}");
    }

    #[test]
    fn a_program_that_was_replaced_is_where_it_was() {
        assert_eq!(in_place("/usr/libexec/x (deleted)".into()), PathBuf::from("/usr/libexec/x"));
        assert_eq!(in_place("/usr/libexec/x".into()), PathBuf::from("/usr/libexec/x"));
    }
}
