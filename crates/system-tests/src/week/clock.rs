//! The time of a host, which the test moves on.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};

use crate::process::{Input, run_ok};
use crate::{Host, Repository};

const SOURCE: &str = include_str!("clock.c");
const SETTLE: &str = include_str!("settle.py");
const LIBRARY: &str = "/usr/lib/lp-clock.so";

/// The clock of a host. It goes on as the machine's does, and is ahead of it by what the test says. The host's init and the
/// monotonic clock are the machine's.
#[derive(Debug)]
pub struct Clock {
    file: File,
    since: Timestamp,
    offset: AtomicI64,
}

fn nanoseconds(at: Timestamp) -> Result<i64> {
    i64::try_from(at.as_nanosecond()).context("a time beyond the year 2262")
}

impl Clock {
    /// Gives a host that has the repository its own clock, which agrees with the machine's as yet. What runs there already keeps
    /// the machine's until it is started again.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn give(host: &Host, repository: &Repository) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let (source, library) = (scratch.path().join("clock.c"), scratch.path().join("clock.so"));
        fs::write(&source, SOURCE)?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-o"]).args([&library, &source]);
        run_ok(compiler, Input::Nothing).context("the host's clock cannot be compiled")?;
        let directory = repository.path().join("clock");
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        let path = directory.join("now");
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        let since = Timestamp::now();
        // A page, since it is mapped.
        file.set_len(4096)?;
        file.write_all_at(&nanoseconds(since)?.to_ne_bytes(), 8)?;
        host.push_file(&library, LIBRARY, "755")?;
        host.push(SETTLE, "/usr/lib/lp-settle.py", "644")?;
        host.push(format!("{LIBRARY}\n"), "/etc/ld.so.preload", "644")?;
        let clock = Self { file, since, offset: AtomicI64::new(0) };
        clock.booted(host)?;
        Ok(clock)
    }

    /// The time on the host.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::now() + SignedDuration::from_nanos(self.offset.load(Ordering::Relaxed))
    }

    /// Moves the clock on to a time; does nothing if that is over.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn go_to(&self, at: Timestamp) -> Result<()> {
        let offset = nanoseconds(at)? - nanoseconds(Timestamp::now())?;
        if offset > self.offset.load(Ordering::Relaxed) {
            self.offset.store(offset, Ordering::Relaxed);
            self.file.write_all_at(&offset.to_ne_bytes(), 0)?;
        }
        Ok(())
    }

    /// Takes note that the host was booted just now.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn booted(&self, host: &Host) -> Result<()> {
        let boot_id = host.boot_id()?;
        ensure!(boot_id.len() == 36, "{boot_id} is no boot id");
        self.file.write_all_at(&nanoseconds(self.now())?.to_ne_bytes(), 16)?;
        self.file.write_all_at(boot_id.as_bytes(), 24)?;
        Ok(())
    }

    /// The command that gives files which were changed since the last time their true age, which has to be run on the host before
    /// the clock is moved.
    #[must_use]
    pub fn settle(&self) -> String {
        let offset = self.offset.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a microsecond does not matter")]
        let seconds = offset as f64 / 1e9;
        let since = self.since.as_second();
        format!("LP_CLOCK=off python3 /usr/lib/lp-settle.py {since} {seconds:.6}")
    }
}
