//! Maintainer scripts that hang: ending them lets dpkg unwind by itself, while signalling apt or dpkg would leave
//! packages half-installed.

use std::collections::{HashMap, HashSet};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// One process, from `/proc/PID/stat` and `/proc/PID/cmdline`.
#[derive(Debug, Clone)]
struct Process {
    parent: u32,
    /// When it began, in clock ticks after the boot: with the number it names one process only.
    began: u64,
    command: Vec<String>,
}

fn processes() -> HashMap<u32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, process(pid)?))
        })
        .collect()
}

fn process(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold anything, so the fields are counted from the last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    // The 22nd field; the parent is the fourth.
    let began = fields.nth(17)?.parse().ok()?;
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = bytes.split(|b| *b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    Some(Process { parent, began, command })
}

fn is_maintainer_script(process: &Process) -> bool {
    // The script itself, or an interpreter's first argument that is not an option: `/bin/sh -e SCRIPT`.
    let interpreted = process.command.iter().skip(1).find(|arg| !arg.starts_with('-'));
    process.command.first().into_iter().chain(interpreted).any(|arg| {
        let path = std::path::Path::new(arg);
        let in_database = path.starts_with("/var/lib/dpkg/info") || path.starts_with("/var/lib/dpkg/tmp.ci");
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        in_database
            && ["preinst", "postinst", "prerm", "postrm"]
                .iter()
                .any(|script| name == *script || name.ends_with(&format!(".{script}")))
    })
}

fn below(all: &HashMap<u32, Process>, ancestor: u32) -> Vec<u32> {
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(all.iter().filter(|(_, p)| p.parent == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// Ends the maintainer scripts that run below the process `tool`, with everything that they started, and returns their
/// command lines. With `force` by SIGKILL, else by SIGTERM. Neither apt nor dpkg is signalled.
#[must_use]
pub fn end_maintainer_scripts(tool: u32, force: bool) -> Vec<String> {
    let all = processes();
    let signal = if force { Signal::KILL } else { Signal::TERM };
    let mut ended = Vec::new();
    let mut signalled = HashSet::new();
    for pid in below(&all, tool) {
        let Some(process) = all.get(&pid).filter(|p| is_maintainer_script(p)) else { continue };
        // What a script has forked bears its name until it becomes something else.
        if signalled.contains(&pid) {
            continue;
        }
        ended.push(process.command.join(" ").trim().to_owned());
        for pid in below(&all, pid) {
            signalled.insert(pid);
            if let Some(seen) = all.get(&pid) {
                signal_process(pid, seen, signal);
            }
        }
    }
    ended
}

/// Signals a process if it is still the one that was seen: its number may have become another's meanwhile. One that has
/// ended is what was wanted.
fn signal_process(pid: u32, seen: &Process, signal: Signal) {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(handle) = pidfd_open(raw, PidfdFlags::empty()) else { return };
    // The handle is to whoever has the number now, so that is looked at once more.
    if process(pid).is_some_and(|now| now.began == seen.began) {
        let _ = pidfd_send_signal(&handle, signal);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        os::unix::process::ExitStatusExt as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn only_maintainer_scripts_are_taken_for_such() {
        let process = |command: &[&str]| Process {
            parent: 1,
            began: 0,
            command: command.iter().map(ToString::to_string).collect(),
        };
        for yes in [
            &["/bin/sh", "/var/lib/dpkg/info/lp-slow.postinst", "configure"][..],
            &["/bin/sh", "-e", "/var/lib/dpkg/info/lp-slow.postinst", "configure"],
            &["/var/lib/dpkg/info/libc6:amd64.postinst", "configure"],
            &["/bin/sh", "/var/lib/dpkg/tmp.ci/preinst", "upgrade", "1.0"],
        ] {
            assert!(is_maintainer_script(&process(yes)), "{yes:?}");
        }
        for no in [
            &["/usr/bin/dpkg", "--configure", "-a"][..],
            &["/usr/bin/apt-get", "install", "/var/lib/dpkg/info/x.postinst"],
            &["/bin/sh", "/tmp/x.postinst"],
        ] {
            assert!(!is_maintainer_script(&process(no)), "{no:?}");
        }
    }

    #[test]
    fn a_script_is_ended_with_what_it_started_and_the_tool_is_not() {
        // The tool waits for its script, which asks for no end and has started something.
        let script = "trap : TERM; sleep 600 & echo $$ $!; while :; do wait; done";
        let tool = "(exec -a /var/lib/dpkg/info/lp.postinst bash -c \"$0\") & wait; echo went on";
        let mut tool =
            Command::new("/bin/bash").args(["-c", tool, script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(tool.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        let ended = end_maintainer_scripts(tool.id(), true);
        assert!(
            matches!(&ended[..], [one] if one.starts_with("/var/lib/dpkg/info/lp.postinst -c")),
            "{ended:?}"
        );
        line.clear();
        out.read_to_string(&mut line).unwrap();
        assert_eq!(line, "went on\n");
        assert!(tool.wait().unwrap().success());
        assert_eq!(pids.len(), 2);
        // Whoever reaps them, they are dead.
        let is_dead = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ")
        };
        // A process that ends closes its files a moment before it is told to be dead.
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !pids.iter().all(is_dead) {
            assert!(std::time::Instant::now() < limit, "{pids:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_number_that_has_become_anothers_is_not_signalled() {
        let mut cat = Command::new("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let now = process(cat.id()).unwrap();
        let before = Process { began: now.began - 1, ..now.clone() };
        signal_process(cat.id(), &before, Signal::KILL);
        cat.stdin.as_mut().unwrap().write_all(b"still\n").unwrap();
        let mut said = String::new();
        BufReader::new(cat.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "still\n", "it was signalled");
        signal_process(cat.id(), &now, Signal::KILL);
        assert_eq!(cat.wait().unwrap().signal(), Some(9));
    }
}
