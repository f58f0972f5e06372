//! The first process of an image: makes the image its root, gives up what reaches beyond it, and runs the commands.
//!
//! It is the init of a PID namespace: when it ends, the kernel ends everything that is left there. Its standard input
//! is a pipe that the keeper holds open, its output that of the commands, its standard error goes to the keeper.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, BufRead as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::{
            fs::PermissionsExt as _,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::pivot_root,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::{FdFlags, fcntl_setfd},
    process::{Signal, WaitOptions},
    thread::LinkNameSpaceType,
};

use super::{
    HARD_LIMIT, NoImage, OWN, PROGRESS, RUN, Step, Told, Work, confine,
    image::{read_only, systems},
};
use crate::apt::argv::ENVIRONMENT;

/// In `/proc`, what are a process's own files, or lead to them. Everything else there is the kernel's.
const OWN_FILES: &[&str] = &["self", "thread-self", "net", "mounts"];

/// What is not even shown.
const HIDDEN: &[&str] =
    &["kcore", "keys", "key-users", "kmsg", "kpagecount", "kpageflags", "kpagecgroup", "sched_debug"];
const HIDDEN_DIRECTORIES: &[&str] = &["acpi", "scsi", "asound"];

/// As Debian's policy has it: no service may be started.
const POLICY: &str = "#!/bin/sh\n# Of a rehearsal: no service is started in an image.\nexit 101\n";

/// A device: its name, and its numbers.
const DEVICES: &[(&str, u64, u64)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];

/// The first Linux in which each PID namespace has its own bound of process ids; before, there is one for all.
const OWN_PID_MAX: (u32, u32) = (6, 14);

/// Ids below that are not given again, so the bound counts from there.
const RESERVED_PIDS: u32 = 300;

/// Makes the image at `merged` this process's root and becomes its init. Only for a process that the keeper started as
/// the first of a PID namespace.
///
/// # Errors
/// When a step fails: there is no image then, and nothing was run.
pub fn enter(merged: &Path, root: &Path, groups: &[PathBuf]) -> Result<std::convert::Infallible, NoImage> {
    if std::process::id() != 1 {
        let source = io::Error::other("it is not the first process of its namespace");
        return Err(NoImage { what: "only a rehearsal's keeper calls this".to_owned(), source });
    }
    stay_with_parent()?;
    close_inherited();
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    for group in groups {
        fs::write(group.join("cgroup.procs"), "0")
            .map_err(NoImage::of("the control group cannot be entered"))?;
    }
    // As the keeper has told it.
    let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    // Where there are no namespaces of control groups, /sys has none of them either.
    let _ = unshare(CloneFlags::CLONE_NEWCGROUP);
    unshare(CloneFlags::CLONE_NEWNS).map_err(NoImage::of("mounts of its own"))?;
    for system in systems(merged, root) {
        kernel_files(&system)?;
        devices(&system)?;
    }
    let image = rustix::fs::open(
        merged,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(NoImage::of("the image's root"))?;
    leave_root()?;
    rustix::process::fchdir(&image).map_err(NoImage::of("the image's root"))?;
    drop(image);
    pivot_root(".", ".").map_err(NoImage::of("the image cannot be made the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(NoImage::of("the host cannot be left"))?;
    std::env::set_current_dir("/").map_err(NoImage::of("the image's root"))?;
    for system in systems(Path::new("/"), root) {
        start_no_service(&system).map_err(NoImage::of("the image's policy-rc.d"))?;
    }
    confine::drop_capabilities().map_err(NoImage::of("capabilities cannot be given up"))?;
    confine::refuse_system_calls().map_err(NoImage::of("system calls cannot be refused"))?;
    // The image's copy: by this process's own program a script could change the host's.
    let error = Command::new(&program).arg(RUN).env_clear().exec();
    Err(NoImage { what: format!("{} cannot be run in the image", program.display()), source: error })
}

/// Makes the true root of this process's mounts its root. Where the executor itself runs in a changed root, the image would
/// otherwise only lie somewhere in the tree, and whoever may change his root could climb out of it.
fn leave_root() -> Result<(), NoImage> {
    let what = "the root of all mounts";
    let own = File::open("/proc/self/ns/mnt").map_err(NoImage::of(what))?;
    rustix::thread::move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(NoImage::of(what))?;
    // Nothing that is unmounted here is unmounted anywhere else.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(NoImage::of(what))
}

/// Closes what whoever started the executor left open in it: through such a descriptor a script would have a file of the
/// host. Before this process opens any of its own.
pub(super) fn close_inherited() {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    for number in numbers {
        // The directory's own is closed already.
        let _ = nix::unistd::close(number);
    }
}

/// Has the kernel end this process when its parent dies, which may be already.
pub(super) fn stay_with_parent() -> Result<(), NoImage> {
    let what = "the keeper's life";
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(NoImage::of(what))?;
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).map_err(NoImage::of(what))?;
    if fds.iter().any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)) {
        return Err(NoImage { what: what.to_owned(), source: io::ErrorKind::BrokenPipe.into() });
    }
    Ok(())
}

/// `/proc` and `/sys`, of which nothing that reaches the kernel can be written.
fn kernel_files(system: &Path) -> Result<(), NoImage> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let proc = system.join("proc");
    if fs::symlink_metadata(&proc).is_ok_and(|meta| meta.is_dir()) {
        let what = "/proc of the image";
        mount(Some("proc"), &proc, Some("proc"), safe, None::<&str>).map_err(NoImage::of(what))?;
        bound_pids(&proc);
        let entries = fs::read_dir(&proc).map_err(NoImage::of(what))?.flatten();
        let kernels: Vec<OsString> =
            entries.map(|entry| entry.file_name()).filter(|name| is_the_kernels(name)).collect();
        for name in kernels.iter().map(|name| proc.join(name)) {
            mount(Some(&name), &name, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
                .and_then(|()| read_only(&name))
                .map_err(NoImage::of(what))?;
        }
        for name in HIDDEN_DIRECTORIES.iter().map(|name| proc.join(name)).filter(|path| path.is_dir()) {
            let flags = safe | MsFlags::MS_RDONLY;
            mount(Some("tmpfs"), &name, Some("tmpfs"), flags, Some("mode=555,size=4k"))
                .map_err(NoImage::of(what))?;
        }
    }
    let sys = system.join("sys");
    if fs::symlink_metadata(&sys).is_ok_and(|meta| meta.is_dir()) {
        mount(Some("sysfs"), &sys, Some("sysfs"), safe | MsFlags::MS_RDONLY, None::<&str>)
            .map_err(NoImage::of("/sys of the image"))?;
    }
    Ok(())
}

/// Whether an entry of `/proc` is shown, but not to be written to, whatever drivers and later kernels have there.
fn is_the_kernels(name: &OsStr) -> bool {
    let is_process = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    !is_process && !OWN_FILES.iter().any(|own| name == *own)
}

/// The kernel makes no more processes than a rehearsal may have, where this bound is the namespace's own.
fn bound_pids(proc: &Path) {
    let release = fs::read_to_string(proc.join("sys/kernel/osrelease")).unwrap_or_default();
    if version(&release).is_some_and(|version| version >= OWN_PID_MAX) {
        let _ = fs::write(proc.join("sys/kernel/pid_max"), (RESERVED_PIDS + HARD_LIMIT).to_string());
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The devices that any program may take for granted. Nodes of the image's own: the host's have the host's modes.
fn devices(system: &Path) -> Result<(), NoImage> {
    let what = "/dev of the image";
    let dev = system.join("dev");
    if !fs::symlink_metadata(&dev).is_ok_and(|meta| meta.is_dir()) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), &dev, Some("tmpfs"), flags, Some("mode=755,size=64k,nr_inodes=64"))
        .map_err(NoImage::of(what))?;
    rustix::process::umask(rustix::fs::Mode::empty());
    let made = (|| {
        for (name, major, minor) in DEVICES {
            let mode = Mode::from_bits_truncate(0o666);
            mknod(&dev.join(name), SFlag::S_IFCHR, mode, makedev(*major, *minor))?;
        }
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            std::os::unix::fs::symlink(target, dev.join(name))?;
        }
        fs::create_dir(dev.join("pts"))?;
        fs::create_dir(dev.join("shm"))?;
        let options = Some("newinstance,ptmxmode=0666,mode=0620");
        mount(Some("devpts"), &dev.join("pts"), Some("devpts"), flags, options)?;
        let options = Some("mode=1777,size=16m,nr_inodes=1024");
        mount(Some("tmpfs"), &dev.join("shm"), Some("tmpfs"), flags | MsFlags::MS_NODEV, options)?;
        Ok::<(), io::Error>(())
    })();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    made.map_err(NoImage::of(what))?;
    let null = dev.join("null");
    for name in HIDDEN.iter().map(|name| system.join("proc").join(name)).filter(|path| path.exists()) {
        mount(Some(&null), &name, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(NoImage::of(what))?;
    }
    Ok(())
}

/// Says what Debian's policy asks before a service is started. Only in the image: a path of it may lead through links.
fn start_no_service(system: &Path) -> io::Result<()> {
    let directory = system.join("usr/sbin");
    if !directory.is_dir() {
        return Ok(());
    }
    let policy = directory.join("policy-rc.d");
    // The one that is there may be a link, or not for us to write.
    if let Err(error) = fs::remove_file(&policy)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    fs::write(&policy, POLICY)?;
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))
}

/// The init of an image: runs the commands that its standard input has as one line of JSON, tells its standard error
/// how they ended, and ends, and everything with it. Anywhere else it refuses.
///
/// # Errors
/// When it is no image's init, or the commands cannot be read or run.
pub fn run() -> io::Result<()> {
    if std::process::id() != 1 || !rustix::thread::no_new_privs().unwrap_or(false) {
        return Err(io::Error::other("only a rehearsal's image runs this"));
    }
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let Work { steps, mark } = serde_json::from_str(&line).map_err(io::Error::other)?;
    tell(&Told::Running)?;
    let mut codes: Vec<Option<i32>> = Vec::new();
    for step in steps {
        if step.after_failure && codes.last() == Some(&Some(0)) {
            continue;
        }
        if step.after_failure {
            // A line of its own, whatever was left without an end.
            let line = format!("\n{mark}\n");
            io::stdout().write_all(line.as_bytes())?;
        }
        codes.push(execute(&step)?.code());
    }
    // What mends what the first one left says nothing of that one.
    tell(&Told::Ran { code: codes.first().copied().flatten() })
}

fn tell(told: &Told) -> io::Result<()> {
    let mut line = serde_json::to_vec(told).map_err(io::Error::other)?;
    line.push(b'\n');
    io::stderr().write_all(&line)
}

fn execute(step: &Step) -> io::Result<ExitStatus> {
    let progress = rustix::io::dup(io::stderr().as_fd())?;
    fcntl_setfd(&progress, FdFlags::empty())?;
    // As the command line was made, with the number that nobody else could know.
    let unknown = format!("APT::Status-Fd={PROGRESS}");
    let known = format!("APT::Status-Fd={}", progress.as_raw_fd());
    let args = step.args.iter().map(|arg| if *arg == unknown { &known } else { arg });
    let output = rustix::io::dup(io::stdout().as_fd())?;
    let mut path = OsString::from(format!("/{OWN}/bin"));
    if let Some((_, usual)) = ENVIRONMENT.iter().find(|(name, _)| *name == "PATH") {
        path.push(":");
        path.push(usual);
    }
    let child = Command::new(&step.program)
        .args(args)
        .env_clear()
        .envs(ENVIRONMENT.iter().copied())
        .env("PATH", path)
        .envs(step.environment.iter().map(|(name, value)| (name, value)))
        // The image's: whoever has the host's open could change its mode.
        .stdin(Stdio::from(File::open("/dev/null")?))
        .stdout(Stdio::from(output.try_clone()?))
        .stderr(Stdio::from(output))
        .process_group(0)
        .current_dir("/")
        .spawn()?;
    drop(progress);
    // As init it is the parent of every process that lost its own.
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if u32::try_from(pid.as_raw_nonzero().get()) == Ok(child.id()) => {
                return Ok(ExitStatus::from_raw(status.as_raw()));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_in_proc_and_no_process_is_the_kernels() {
        for name in
            ["sys", "sysrq-trigger", "dynamic_debug", "driver", "pressure", "of-tomorrow", "1a", "selfish"]
        {
            assert!(is_the_kernels(OsStr::new(name)), "{name}");
        }
        for name in ["1", "4711", "self", "thread-self", "net", "mounts"] {
            assert!(!is_the_kernels(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn kernels_are_told_apart() {
        assert_eq!(version("6.14.0-rc1"), Some((6, 14)));
        assert_eq!(version("6.1.0-40-amd64"), Some((6, 1)));
        assert_eq!(version("10.0"), Some((10, 0)));
        assert_eq!(version("linux"), None);
        assert!(version("6.12.9") < Some(OWN_PID_MAX) && version("7.0.1") >= Some(OWN_PID_MAX));
    }

    #[test]
    fn nobody_else_is_an_images_init() {
        run().unwrap_err();
        enter(Path::new("/"), Path::new("/"), &[]).unwrap_err();
    }
}
