//! What the logs of dpkg, apt and unattended-upgrades tell of changes that nobody of ours made.
//!
//! Logs are rotated, compressed, cut in the middle of a line and, those of unattended-upgrades, written in the host's
//! language. What is told by dates and by words that are never translated is taken; the rest is left out. Times are local
//! time without a zone.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use flate2::read::GzDecoder;
use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use patch_types::{
    Architecture, PackageName, PackageVersion,
    compliance::{AppliedBy, LoggedChange, RunResult, UnattendedRun},
    logins,
};
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::stale::shown;

/// dpkg's log, below the root.
pub const DPKG: &str = "var/log/dpkg.log";
/// apt's history, below the root.
pub const HISTORY: &str = "var/log/apt/history.log";
/// The log of unattended-upgrades, below the root.
pub const UNATTENDED: &str = "var/log/unattended-upgrades/unattended-upgrades.log";

/// How much of a log's end is read, in bytes: months of an ordinary host.
const TAIL: u64 = 4 << 20;

/// How much is unpacked of a compressed log, in bytes.
const MOST_UNPACKED: u64 = 64 << 20;

/// How many changes are told.
const MOST_CHANGES: usize = 10_000;

/// How many runs are told, and of each how many packages and problems.
const MOST_RUNS: usize = 20;
const MOST_PACKAGES: usize = 200;
const MOST_PROBLEMS: usize = 5;

/// Lines that are further apart are of different runs: an upgrade logs nothing while it goes on.
const APART: SignedDuration = SignedDuration::from_hours(3);

/// `2026-11-22 01:09:27` at the beginning of a line, and the rest of it.
fn dated<'a>(line: &'a str, zone: &TimeZone) -> Option<(Timestamp, &'a str)> {
    let (date, rest) = line.split_at_checked(19)?;
    let is_plain = date.bytes().all(|b| b.is_ascii_digit() || b"-: ".contains(&b));
    let local: DateTime = date.parse().ok().filter(|_| is_plain)?;
    Some((zone.to_timestamp(local).ok()?, rest))
}

/// `NAME:ARCHITECTURE` as dpkg writes it.
fn qualified(text: &str) -> Option<(PackageName, Architecture)> {
    let (name, architecture) = text.split_once(':')?;
    Some((name.parse().ok()?, architecture.parse().ok()?))
}

/// The upgrades and installations that dpkg brought to their end, oldest first as they stand. The last 10,000 count.
#[must_use]
pub fn dpkg(text: &[u8], zone: &TimeZone) -> Vec<LoggedChange> {
    let text = String::from_utf8_lossy(text);
    let mut changes = Vec::new();
    // What was unpacked and is not configured yet.
    let mut begun: HashMap<&str, (&str, &str)> = HashMap::new();
    for line in text.lines() {
        let Some((at, rest)) = dated(line, zone) else { continue };
        let words: Vec<&str> = rest.split(' ').filter(|word| !word.is_empty()).take(5).collect();
        match words.as_slice() {
            ["upgrade" | "install", package, old, new] if begun.len() < MOST_CHANGES => {
                // What is done over is still from the version before.
                let old = match begun.get(package) {
                    Some((first, _)) => *first,
                    None => *old,
                };
                begun.insert(package, (old, new));
            }
            ["status", "installed", package, version] => {
                let Some((old, new)) = begun.remove(package) else { continue };
                let (Some((name, architecture)), Ok(version)) =
                    (qualified(package), version.parse::<PackageVersion>())
                else {
                    continue;
                };
                if version.as_str() == new {
                    let old = old.parse().ok();
                    changes.push(LoggedChange {
                        at,
                        name,
                        architecture,
                        old,
                        new: version,
                        by: AppliedBy::Dpkg,
                    });
                }
            }
            _ => {}
        }
    }
    changes.split_off(changes.len().saturating_sub(MOST_CHANGES))
}

/// One run of apt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AptRun {
    /// When it began.
    pub began: Timestamp,
    /// When it ended; none if it did not, or that is cut off.
    pub ended: Option<Timestamp>,
    /// Whether it was one of unattended-upgrades.
    pub is_unattended: bool,
}

/// The runs in apt's history, oldest first as they stand.
#[must_use]
pub fn history(text: &[u8], zone: &TimeZone) -> Vec<AptRun> {
    let text = String::from_utf8_lossy(text);
    let mut runs: Vec<AptRun> = Vec::new();
    // What stands before the first beginning is the rest of a run that was cut off.
    for line in text.lines() {
        // Two blanks stand between date and time.
        let time = |text: &str| {
            let words: Vec<&str> = text.split_whitespace().take(3).collect();
            dated(&words.join(" "), zone).map(|(at, _)| at)
        };
        if let Some(date) = line.strip_prefix("Start-Date:") {
            if let Some(began) = time(date) {
                runs.push(AptRun { began, ended: None, is_unattended: false });
            }
        } else if let Some(run) = runs.last_mut().filter(|run| run.ended.is_none()) {
            if let Some(command) = line.strip_prefix("Commandline:") {
                let program = command.split_whitespace().next().unwrap_or_default();
                let program = program.rsplit('/').next().unwrap_or_default();
                run.is_unattended = matches!(program, "unattended-upgrade" | "unattended-upgrades");
            } else if let Some(date) = line.strip_prefix("End-Date:") {
                run.ended = time(date);
            }
        }
    }
    runs.split_off(runs.len().saturating_sub(MOST_CHANGES))
}

/// Says of each change of dpkg's which run of apt it was made by.
pub fn attribute(changes: &mut [LoggedChange], runs: &[AptRun]) {
    for change in changes {
        let during =
            |run: &&AptRun| run.began <= change.at && run.ended.is_none_or(|ended| change.at <= ended);
        // A run without an end may be followed by others: the last that had begun counts.
        if let Some(run) = runs.iter().filter(during).max_by_key(|run| run.began) {
            change.by = if run.is_unattended { AppliedBy::UnattendedUpgrades } else { AppliedBy::Apt };
        }
    }
}

/// The runs in the log of unattended-upgrades: the last 20, newest first.
#[must_use]
pub fn unattended(text: &[u8], zone: &TimeZone) -> Vec<UnattendedRun> {
    const STARTING: &str = "Starting unattended upgrades script";
    const UPGRADED: &str = "Packages that will be upgraded:";
    let text = String::from_utf8_lossy(text);
    let mut runs: Vec<UnattendedRun> = Vec::new();
    for line in text.lines() {
        // Lines without a date go on with the message of the line before.
        let Some((at, rest)) = dated(line, zone) else { continue };
        let rest =
            rest.strip_prefix(',').map_or(rest, |rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        let Some((level, message)) = rest.trim_start().split_once(' ') else { continue };
        if !matches!(level, "DEBUG" | "INFO" | "WARNING" | "ERROR" | "CRITICAL") {
            continue;
        }
        let message = message.trim();
        // Both ways: a clock that was set back begins another run as well.
        let is_new =
            runs.last().is_none_or(|run| message == STARTING || at.duration_since(run.ended).abs() > APART);
        if is_new {
            runs.push(UnattendedRun {
                began: at,
                ended: at,
                result: RunResult::Unknown,
                packages: Vec::new(),
                problems: Vec::new(),
            });
        }
        let Some(run) = runs.last_mut() else { continue };
        run.ended = run.ended.max(at);
        if let Some(names) = message.strip_prefix(UPGRADED) {
            let room = MOST_PACKAGES.saturating_sub(run.packages.len());
            let names = names.split_whitespace().filter_map(|name| name.parse::<PackageName>().ok());
            run.packages.extend(names.take(room).map(|name| name.to_string()));
        }
        let is_error = matches!(level, "ERROR" | "CRITICAL");
        if (is_error || level == "WARNING") && run.problems.len() < MOST_PROBLEMS {
            run.problems.push(shown(logins::hidden(message).as_bytes()));
        }
        if is_error {
            run.result = RunResult::Failed;
        } else if run.result == RunResult::Unknown && message.starts_with("All upgrades installed") {
            run.result = RunResult::Installed;
        } else if run.result == RunResult::Unknown
            && message.starts_with("No packages found that can be upgraded unattended")
        {
            run.result = RunResult::Nothing;
        }
    }
    let mut last = runs.split_off(runs.len().saturating_sub(MOST_RUNS));
    last.reverse();
    last
}

/// The logs of a host, as far as they matter from an instant on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logs {
    /// The upgrades, oldest first.
    pub changes: Vec<LoggedChange>,
    /// The runs of unattended-upgrades, newest first.
    pub runs: Vec<UnattendedRun>,
    /// What could not be read, one sentence each.
    pub remarks: Vec<String>,
}

/// Reads the logs below a root: each, and the one that was rotated last.
#[must_use]
pub fn read(root: &Path, zone: &TimeZone, since: Timestamp) -> Logs {
    let mut remarks = Vec::new();
    let mut log = |name: &str| both(root, name, &mut remarks);
    let mut changes = dpkg(&log(DPKG), zone);
    changes.retain(|change| change.at >= since && change.old.is_some());
    attribute(&mut changes, &history(&log(HISTORY), zone));
    let mut runs = unattended(&log(UNATTENDED), zone);
    runs.retain(|run| run.ended >= since);
    Logs { changes, runs, remarks }
}

/// A log and the one before it, one after the other.
fn both(root: &Path, name: &str, remarks: &mut Vec<String>) -> Vec<u8> {
    let mut text = Vec::new();
    // A rotated log is compressed at once or one rotation later.
    for (suffix, is_packed) in [(".1", false), (".1.gz", true), ("", false)] {
        let path = root.join(format!("{name}{suffix}"));
        match end_of(&path, is_packed) {
            Ok(end) => {
                text.extend(end);
                text.push(b'\n');
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => remarks.push(format!("{} cannot be read: {error}", path.display())),
        }
    }
    text
}

/// The end of a log. Nothing but a file is opened, and not by a link.
fn end_of(path: &Path, is_packed: bool) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut file = File::from(openat(CWD, path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = Vec::new();
    if is_packed {
        // What follows the room there is, or a damage, is left out: the beginning is as good as nothing.
        let mut unpacked = GzDecoder::new(file).take(MOST_UNPACKED);
        let mut piece = vec![0; 64 << 10];
        loop {
            let count = unpacked.read(&mut piece)?;
            if count == 0 {
                break;
            }
            text.extend_from_slice(piece.get(..count).unwrap_or_default());
            let room = usize::try_from(TAIL).unwrap_or(usize::MAX);
            if text.len() > 2 * room {
                text.drain(..text.len() - room);
            }
        }
    } else {
        file.seek(SeekFrom::Start(meta.len().saturating_sub(TAIL)))?;
        file.take(TAIL).read_to_end(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::symlink};

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    const DPKG_LOG: &str = "\
2026-11-20 06:30:01 startup archives unpack
2026-11-20 06:30:02 upgrade libc6:amd64 2.36-9 2.36-9+deb12u1
2026-11-20 06:30:02 status half-installed libc6:amd64 2.36-9
2026-11-20 06:30:03 status unpacked libc6:amd64 2.36-9+deb12u1
2026-11-20 06:30:04 status installed libc6:amd64 2.36-9+deb12u1
2026-11-20 06:30:05 install new:all <none> 1.0
2026-11-20 06:30:06 status installed new:all 1.0
2026-11-20 06:31:00 trigproc libc-bin:amd64 2.36-9 <none>
2026-11-20 06:31:01 status installed libc-bin:amd64 2.36-9
2026-11-21 10:00:00 upgrade broken:amd64 1 2
2026-11-21 10:00:01 upgrade broken:amd64 2 3
2026-11-21 10:00:02 status installed broken:amd64 3
2026-11-21 10:00:03 upgrade -x:amd64 1 2
2026-11-21 10:00:03 status installed -x:amd64 2
2026-11-21 10:00:04 upgrade half:amd64 1 2
2026-11-21 10:00:05 status inst";

    const HISTORY_LOG: &str = "
Commandline: cut off
End-Date: 2026-11-19  00:00:00

Start-Date: 2026-11-20  06:30:00
Commandline: /usr/bin/unattended-upgrade
Upgrade: libc6:amd64 (2.36-9, 2.36-9+deb12u1)
End-Date: 2026-11-20  06:30:30

Start-Date: 2026-11-21  09:59:59
Commandline: apt-get install unattended-upgrade
End-Date: 2026-11-21  10:00:09
";

    const UNATTENDED_LOG: &str = "\
cut off
2026-11-20 06:30:00,123 INFO Starting unattended upgrades script
2026-11-20 06:30:00,124 INFO Allowed origins are: origin=Debian,codename=bookworm-security
2026-11-20 06:30:01,000 INFO Packages that will be upgraded: libc6 -x ok:amd64 ../../etc
2026-11-20 06:30:40,000 INFO All upgrades installed
2026-11-21 06:30:00,123 INFO Starting unattended upgrades script
2026-11-21 06:30:01 INFO No packages found that can be upgraded unattended and no pending auto-removals
2026-11-22 06:30:00,1 INFO Skript zum unbeaufsichtigten Upgrade wird gestartet
2026-11-22 06:30:01,1 WARNING \u{1b}[31mPaket zurückgehalten
and the rest of it
2026-11-22 06:30:02,1 ERROR Fehler
2026-11-22 06:30:03,1 INFO All upgrades installed
";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn what_dpkg_brought_to_its_end_counts() {
        let mut changes = dpkg(DPKG_LOG.as_bytes(), &TimeZone::UTC);
        attribute(&mut changes, &history(HISTORY_LOG.as_bytes(), &TimeZone::UTC));
        let told: Vec<_> = changes
            .iter()
            .map(|c| (c.name.as_str(), c.old.as_ref().map(PackageVersion::as_str), c.new.as_str(), c.by))
            .collect();
        assert_eq!(
            told,
            [
                ("libc6", Some("2.36-9"), "2.36-9+deb12u1", AppliedBy::UnattendedUpgrades),
                ("new", None, "1.0", AppliedBy::UnattendedUpgrades),
                ("broken", Some("1"), "3", AppliedBy::Apt),
            ]
        );
        assert_eq!(changes[0].at, at("2026-11-20T06:30:04Z"));
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(dpkg(DPKG_LOG.as_bytes(), &zone)[0].at, at("2026-11-20T04:30:04Z"));
    }

    #[test]
    fn runs_are_told_apart_in_any_language() {
        let runs = unattended(UNATTENDED_LOG.as_bytes(), &TimeZone::UTC);
        let results: Vec<_> = runs.iter().map(|run| run.result).collect();
        assert_eq!(results, [RunResult::Failed, RunResult::Nothing, RunResult::Installed]);
        assert_eq!(runs[2].packages, ["libc6", "ok:amd64"]);
        assert_eq!((runs[2].began, runs[2].ended), (at("2026-11-20T06:30:00Z"), at("2026-11-20T06:30:40Z")));
        assert_eq!(runs[0].problems.len(), 2);
        assert!(!runs[0].problems[0].contains('\u{1b}'), "{runs:?}");
    }

    #[test]
    fn rotated_and_compressed_logs_are_read_and_links_are_not() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for dir in ["var/log/apt", "var/log/unattended-upgrades"] {
            fs::create_dir_all(path(dir)).unwrap();
        }
        let mut packed =
            GzEncoder::new(fs::File::create(path("var/log/dpkg.log.1.gz")).unwrap(), Compression::fast());
        packed.write_all(DPKG_LOG.as_bytes()).unwrap();
        packed.finish().unwrap();
        fs::write(path("var/log/dpkg.log"), DPKG_LOG.replace("libc6", "later").replace("11-2", "12-2"))
            .unwrap();
        fs::write(path("var/log/apt/history.log.1"), HISTORY_LOG).unwrap();
        fs::write(path("secret"), UNATTENDED_LOG).unwrap();
        symlink(path("secret"), path(UNATTENDED)).unwrap();
        let logs = read(root.path(), &TimeZone::UTC, at("2026-11-20T06:30:05Z"));
        let names: Vec<_> = logs.changes.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["broken", "later", "broken"]);
        assert!(logs.runs.is_empty());
        assert!(logs.remarks.len() == 1 && logs.remarks[0].contains("unattended-upgrades.log"), "{logs:?}");
        // In the place of a log something else.
        fs::create_dir(path("var/log/dpkg.log.1")).unwrap();
        let logs = read(root.path(), &TimeZone::UTC, Timestamp::UNIX_EPOCH);
        assert!(logs.remarks.iter().any(|remark| remark.contains("not a file")), "{logs:?}");
        fs::remove_dir(path("var/log/dpkg.log.1")).unwrap();
        // A damaged one is said to be so.
        fs::write(path("var/log/dpkg.log.1.gz"), b"\x1f\x8bnonsense").unwrap();
        assert_eq!(read(root.path(), &TimeZone::UTC, Timestamp::UNIX_EPOCH).remarks.len(), 2);
        assert_eq!(read(&path("none"), &TimeZone::UTC, Timestamp::UNIX_EPOCH), Logs::default());
    }

    #[test]
    fn of_a_long_log_the_end_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let most = usize::try_from(TAIL).unwrap();
        let text = [&b"begin"[..], &vec![b'x'; 5 * most], b"end"].concat();
        fs::write(&path, &text).unwrap();
        let end = end_of(&path, false).unwrap();
        assert!(end.len() == most && end.ends_with(b"xend"));
        // Of a packed one at most twice as much: how long it is is known at its end only.
        let mut packed = GzEncoder::new(fs::File::create(&path).unwrap(), Compression::fast());
        packed.write_all(&text).unwrap();
        packed.finish().unwrap();
        let end = end_of(&path, true).unwrap();
        assert!((most..=2 * most).contains(&end.len()) && end.ends_with(b"xend"), "{}", end.len());
    }

    proptest! {
        #[test]
        fn nothing_makes_a_parser_panic_or_tell_without_end(
            lines in prop::collection::vec(
                prop_oneof![
                    "20[0-9]{2}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(,[0-9]{0,3})? (INFO|ERROR|upgrade a:all|status installed a:all) \\PC{0,20}",
                    "(Start-Date|Commandline|End-Date): \\PC{0,30}",
                    "\\PC{0,60}",
                ],
                0..60,
            ),
            cut in 0_usize..200,
        ) {
            let text = lines.join("\n").into_bytes();
            let text = text.get(cut.min(text.len())..).unwrap_or_default();
            let mut changes = dpkg(text, &TimeZone::UTC);
            attribute(&mut changes, &history(text, &TimeZone::UTC));
            for run in unattended(text, &TimeZone::UTC) {
                prop_assert!(run.began <= run.ended && run.problems.len() <= MOST_PROBLEMS);
                prop_assert!(run.problems.iter().all(|p| !p.chars().any(char::is_control)));
            }
        }
    }
}
