//! The keeper of an image: makes it, watches over what happens in it, and looks at it when all of that has ended.

use std::{
    fs, io,
    io::{BufRead as _, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    ENTER, MOST_PROCESSES, MYSELF, NoImage, Order, Told, Work,
    group::{self, Killer},
    image::{self, Image},
    in_place,
    init::{close_inherited, stay_with_parent},
    lines::Lines,
    load, room,
};
use crate::run::MAX_LINE;

/// How often it is looked what an image takes.
const TICK: Duration = Duration::from_millis(50);

/// How long what was written last is read after the end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The largest database of packages that is looked at.
const LARGEST_DATABASE: u64 = 256 << 20;

/// The keeper, with an image.
#[derive(Debug)]
pub struct Keeper {
    order: Order,
    image: Image,
    program: PathBuf,
}

/// What was seen of what ran in an image.
#[derive(Debug)]
pub struct Seen {
    /// The exit code of the first command.
    pub code: Option<i32>,
    /// Whether it had too many processes, and was ended for that.
    pub is_crowded: bool,
    /// Whether its processes and files took more memory than they may, and it was ended for that.
    pub is_starved: bool,
    /// If so, how much of that was not its files', in bytes.
    pub processes: u64,
    /// Whether the host ran short of memory while they had less than they may, and it was ended for that.
    pub is_host_short: bool,
    /// Whether there was no room left in it, for which it is ended as well: what is done without room shows nothing.
    pub is_full: bool,
    /// How much was written, in bytes.
    pub written: u64,
    /// Commands that were called and have no devices to work on.
    pub not_run: Vec<String>,
    /// What the host has and the image has not.
    pub left_out: Vec<String>,
}

/// What whoever started the keeper has for it: one line.
///
/// # Errors
/// When it cannot be read, or has died.
pub fn task() -> Result<String, NoImage> {
    stay_with_parent()?;
    close_inherited();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(NoImage::of("the order"))?;
    Ok(line)
}

/// Tells whoever started this process that there is no image.
pub fn tell_no_image(error: &NoImage) {
    // Who cannot be told learns it from the end.
    let _ = tell(&Told::NoImage { why: error.to_string() });
}

/// Tells whoever started the keeper what it has seen.
///
/// # Errors
/// When he is gone.
pub fn tell_report(report: serde_json::Value) -> io::Result<()> {
    tell(&Told::Report { report })
}

fn tell(told: &Told) -> io::Result<()> {
    let mut line = serde_json::to_vec(told).map_err(io::Error::other)?;
    line.push(b'\n');
    io::stderr().write_all(&line)
}

impl Keeper {
    /// Leaves the host's namespaces and makes an image of the host.
    ///
    /// # Errors
    /// When that is not possible here.
    pub fn new(order: Order) -> Result<Self, NoImage> {
        // Where memory gets short this goes, and not what the host is for.
        let _ = fs::write("/proc/self/oom_score_adj", "1000");
        // Asked now: it was started in the host's namespace of mounts, by the paths of that one.
        let program = std::env::current_exe().map(in_place).map_err(NoImage::of("my own program"))?;
        image::leave()?;
        let image = Image::mount(&order)?;
        Ok(Self { order, image, program })
    }

    /// Runs the commands in the image, to their end.
    ///
    /// # Errors
    /// When nothing could be run.
    pub fn run(&self) -> Result<Seen, NoImage> {
        let mut init = Command::new(MYSELF)
            // Which its image is to run: where that is cannot be told any more by who has left the host's mounts.
            .arg0(&self.program)
            .arg("--root")
            .arg(&self.order.root)
            .arg(ENTER)
            .arg(&self.image.merged)
            .args(&self.order.groups)
            .env_clear()
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(NoImage::of("the image's first process cannot be started"))?;
        let watched = self.watch(&mut init);
        // Its end is the end of everything in there, before anything is looked at.
        let _ = init.kill();
        let status = init.wait().map_err(NoImage::of("the image's end"))?;
        let mut seen = watched?;
        seen.code = seen.code.filter(|_| status.code() == Some(0));
        let is_full;
        (seen.written, is_full) = self.image.written();
        seen.is_full |= is_full;
        // One may have been ended after it was looked at last.
        self.blame(&mut seen, group::killer(&self.order.groups));
        seen.not_run = self.image.not_run();
        seen.left_out.clone_from(&self.image.left_out);
        Ok(seen)
    }

    fn watch(&self, init: &mut Child) -> Result<Seen, NoImage> {
        let what = "the image's first process";
        let broken = || NoImage { what: what.to_owned(), source: io::ErrorKind::BrokenPipe.into() };
        let (Some(mut control), Some(mut told)) = (init.stdin.take(), init.stderr.take()) else {
            return Err(broken());
        };
        let work = Work { steps: self.order.steps.clone(), mark: self.order.mark.clone() };
        let mut work = serde_json::to_vec(&work)
            .map_err(|error| NoImage { what: what.to_owned(), source: error.into() })?;
        work.push(b'\n');
        // Who died before he read it says why.
        let _ = control.write_all(&work);
        let mut seen = Seen {
            code: None,
            is_crowded: false,
            is_starved: false,
            processes: 0,
            is_host_short: false,
            is_full: false,
            written: 0,
            not_run: Vec::new(),
            left_out: Vec::new(),
        };
        tell(&Told::Begun { init: init.id() }).map_err(NoImage::of("the executor"))?;
        let mut lines = Lines::at_most(MAX_LINE);
        let mut is_running = false;
        let mut has_ended: Option<Instant> = None;
        let mut counted = Instant::now();
        loop {
            let mut heard = Vec::new();
            let is_open = hear(&mut told, &mut lines, &mut heard).map_err(NoImage::of(what))?;
            for line in heard {
                match serde_json::from_str(&line) {
                    Ok(Told::Ran { code }) => seen.code = code,
                    Ok(Told::Running) if !is_running => {
                        is_running = true;
                        tell(&Told::Running).map_err(NoImage::of("the executor"))?;
                    }
                    Ok(Told::NoImage { why }) if !is_running => {
                        return Err(NoImage { what: why, source: io::Error::other("nothing was run") });
                    }
                    // What else a script may have written there means nothing.
                    Ok(_) => {}
                    Err(_) => {
                        tell(&Told::Progress { line }).map_err(NoImage::of("the executor"))?;
                    }
                }
            }
            if has_ended.is_none() && init.try_wait().map_err(NoImage::of(what))?.is_some() {
                has_ended = Some(Instant::now());
            }
            match has_ended {
                Some(_) if !is_open => break,
                Some(at) if at.elapsed() >= LAST_WORDS => break,
                None if !is_open => std::thread::sleep(TICK),
                _ => {}
            }
            // Before, its init has the host's root yet, and what would be counted are the host's.
            if is_running && has_ended.is_none() && counted.elapsed() >= TICK {
                counted = Instant::now();
                self.measure(init.id(), &mut seen);
                if seen.is_crowded || seen.is_starved || seen.is_host_short || seen.is_full {
                    break;
                }
            }
        }
        drop(control);
        Ok(seen)
    }

    /// Whether what runs in the image takes more than it may.
    fn measure(&self, init: u32, seen: &mut Seen) {
        let load = load::load(init);
        seen.is_crowded = load.tasks >= MOST_PROCESSES as usize;
        seen.is_full = self.image.written().1;
        let (most, files) = (self.order.bounds.memory, self.image.memory());
        let is_suspect = files.saturating_add(load.at_most) > most;
        if is_suspect && files.saturating_add(load::memory(init)) > most {
            self.blame(seen, Some(Killer::Bound));
        }
        self.blame(seen, group::killer(&self.order.groups));
        if room::is_short() {
            self.blame(seen, Some(Killer::Host));
        }
    }

    /// Who is over the image's own bound answers for it, whatever the host has left; who is below it does not, whoever took the rest.
    fn blame(&self, seen: &mut Seen, killer: Option<Killer>) {
        match killer {
            Some(Killer::Bound) if !seen.is_starved => {
                seen.is_starved = true;
                seen.processes = self.order.bounds.memory.saturating_sub(self.image.memory());
            }
            Some(Killer::Host) => seen.is_host_short = true,
            _ => {}
        }
    }

    /// From here on this process only looks at what came of it, and ends if that takes longer: nothing in an image is to keep it
    /// waiting, and it may be what nobody thought of.
    ///
    /// # Errors
    /// When whoever started it is gone.
    pub fn look_within(&self, limit: Duration) -> io::Result<()> {
        // It cannot have threads: what it starts is in another namespace of processes than itself.
        nix::unistd::alarm::set(u32::try_from(limit.as_secs()).unwrap_or(u32::MAX));
        tell(&Told::Ran { code: None })
    }

    /// What the host lacks of room for the same, if the largest package has so many bytes: one sentence a file system.
    #[must_use]
    pub fn lacking(&self, largest: u64) -> Vec<String> {
        self.image.lacking(largest)
    }

    /// Makes the image this process's root, so that no link in it leads to the host. Only when nothing runs in it.
    ///
    /// # Errors
    /// When that is not possible, or the image's database of packages is no plain file any more.
    pub fn enter(&self) -> io::Result<()> {
        std::env::set_current_dir(&self.image.merged)?;
        nix::unistd::chroot(".")?;
        for file in ["var/lib/dpkg/status", "var/lib/apt/extended_states", "var/lib/dpkg/arch"] {
            let path = self.order.root.join(file);
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_file() && meta.len() <= LARGEST_DATABASE => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(_) => {
                    return Err(io::Error::other(format!("{} is no plain file any more", path.display())));
                }
                Err(error) => return Err(error),
            }
        }
        let updates = fs::read_dir(self.order.root.join("var/lib/dpkg/updates"));
        for entry in updates.into_iter().flatten().flatten() {
            if !entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= LARGEST_DATABASE) {
                return Err(io::Error::other(format!("{} is no plain file", entry.path().display())));
            }
        }
        Ok(())
    }
}

/// Waits for a moment for what is told. False when nobody can tell anything any more.
fn hear(told: &mut ChildStderr, lines: &mut Lines, heard: &mut Vec<String>) -> io::Result<bool> {
    let patience = Timespec { tv_sec: 0, tv_nsec: i64::from(TICK.subsec_nanos()) };
    let is_there = {
        let mut fds = [PollFd::new(told, PollFlags::IN)];
        match poll(&mut fds, Some(&patience)) {
            Ok(ready) => ready > 0,
            Err(rustix::io::Errno::INTR) => false,
            Err(error) => return Err(error.into()),
        }
    };
    if is_there { lines.read(told, heard) } else { Ok(true) }
}
