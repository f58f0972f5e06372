//! Which security fixes concern this host, and whether their code is what runs.
//!
//! Only the archives of security fixes are read, and of them only what is installed. What a process maps is told to be a
//! package's by the package's list of files: the same path, or the same path up to the first digit of its name, since a
//! library that is replaced mostly changes its number.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
};

use jiff::{SignedDuration, Timestamp, fmt::rfc2822, tz::TimeZone};
use patch_types::{
    PackageName,
    compliance::{Evidence, InVersion, MemoryState, Offer, PackageMemory},
    operation::MAX_PACKAGES,
    plan::Origin,
    stale::StaleReport,
};

use super::{
    Database, Indexes,
    indexes::{ListFile, fits, list_files},
    info, logs, versions,
    why_not::STALE_AFTER,
};
use crate::{ReadError, stale, system};

/// How often the indexes are read again if they change meanwhile.
const TRIES: usize = 3;

/// How many of those that run old code are named for a package.
const NAMED: usize = 20;

/// What the archives of security fixes offer of what is installed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fixes {
    /// What is installed.
    pub installed: Vec<InVersion>,
    /// The newest version that each archive offers of it, whether that is newer or not.
    pub offers: Vec<Offer>,
    /// The indexes that were read whole, by the names of their files, and the dates of their archives.
    pub archives: BTreeMap<String, Option<Timestamp>>,
    /// What could not be read, one sentence each. Whether fixes are missing is then not known.
    pub remarks: Vec<String>,
}

/// The `Date` of a `Release`: RFC 5322, also with `UTC` for a zone.
#[must_use]
pub fn date(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let text = text.strip_suffix("UTC").map_or_else(|| text.to_owned(), |rest| format!("{rest}+0000"));
    let parser = rfc2822::DateTimeParser::new().relaxed_weekday(true);
    parser.parse_timestamp(&text).ok()
}

/// Reads the fixes below a root.
///
/// # Errors
/// When apt's directory of indexes exists and cannot be read.
pub fn read(root: &Path, database: &Database) -> Result<Fixes, ReadError> {
    let mut lists = security_lists(root)?;
    for _ in 1..TRIES {
        let fixes = read_once(database, &lists);
        // The dates must be those of the indexes that were read.
        let after = security_lists(root)?;
        if after == lists {
            return Ok(fixes);
        }
        lists = after;
    }
    let mut fixes = read_once(database, &lists);
    fixes.archives.clear();
    fixes.remarks.push("the indexes changed while they were read; look again".to_owned());
    Ok(fixes)
}

fn security_lists(root: &Path) -> Result<Vec<ListFile>, ReadError> {
    Ok(list_files(root)?.into_iter().filter(|list| list.origin.security).collect())
}

fn read_once(database: &Database, lists: &[ListFile]) -> Fixes {
    let mut fixes = Fixes { installed: installed(database), ..Fixes::default() };
    for list in lists {
        let names = fixes.installed.iter().map(|package| package.name.name());
        let mut indexes = Indexes::of(names);
        let added = match list.compression {
            Some(suffix) => Err(format!(
                "it is compressed ({suffix}); set Acquire::GzipIndexes \"false\" for apt and refresh the indexes"
            )),
            None => File::open(&list.path)
                .and_then(|file| indexes.add(list.origin.clone(), file))
                .map_err(|error| error.to_string()),
        };
        if let Err(reason) = added {
            fixes.remarks.push(format!("{} cannot be read: {reason}", list.path.display()));
        } else {
            fixes.archives.insert(index_name(list), date(&list.date));
        }
        let label = label(&list.origin);
        let offers: Vec<Offer> =
            fixes.installed.iter().filter_map(|package| offer(package, &indexes, list, &label)).collect();
        fixes.offers.extend(offers);
    }
    if lists.is_empty() {
        fixes.remarks.push(
            "there are no indexes of an archive of security fixes: whether fixes are missing is not known"
                .to_owned(),
        );
    }
    fixes
}

/// A component that is added later has a file of its own: the dates at which others were read say nothing of it.
fn index_name(list: &ListFile) -> String {
    list.path.file_name().map(|name| stale::shown(name.as_encoded_bytes())).unwrap_or_default()
}

fn label(origin: &Origin) -> String {
    let suite = if origin.codename.ends_with("-security") { &origin.codename } else { &origin.suite };
    let name = if origin.label.is_empty() { &origin.origin } else { &origin.label };
    stale::shown(format!("{name} {suite}").as_bytes())
}

fn installed(database: &Database) -> Vec<InVersion> {
    let present = database.iter().filter(|package| package.is_present());
    let each = present.filter_map(|package| {
        Some(InVersion {
            name: package.name().parse().ok()?,
            architecture: package.architecture().parse().ok()?,
            version: package.version()?,
        })
    });
    each.collect()
}

fn offer(package: &InVersion, indexes: &Indexes, list: &ListFile, label: &str) -> Option<Offer> {
    let offered = indexes.versions(package.name.name()).iter();
    let newest = offered
        .filter(|version| fits(&version.architecture, package.architecture.as_str()))
        .max_by(|a, b| versions::compare(a.version.as_str(), b.version.as_str()))?;
    Some(Offer {
        what: InVersion { version: newest.version.clone(), ..package.clone() },
        archive: index_name(list),
        label: label.to_owned(),
    })
}

/// A sentence about indexes that are too old to tell of all fixes, if they are.
#[must_use]
pub fn staleness(root: &Path, now: Timestamp) -> Option<String> {
    match super::last_update_check(root) {
        None => Some("the indexes were never fetched: this host knows of no fixes".to_owned()),
        Some(fetched) => {
            let age = now.duration_since(fetched);
            (age > STALE_AFTER).then(|| {
                format!(
                    "the indexes were last fetched {} hours ago: there may be fixes that this host has not heard of",
                    age.as_hours()
                )
            })
        }
    }
}

/// What root sees: what still runs the old code of some packages, and what the logs tell from an instant on. How long it
/// takes is bounded, whatever processes and logs are like.
#[must_use]
pub fn evidence(root: &Path, database: &Database, packages: &[PackageName], since: Timestamp) -> Evidence {
    let logs = logs::read(root, &TimeZone::system(), since);
    let mut evidence = Evidence {
        booted: booted(root),
        boot: Some(system::boot_id(root)).filter(|id| !id.is_empty()),
        changes: logs.changes,
        runs: logs.runs,
        remarks: logs.remarks,
        ..Evidence::default()
    };
    let mut asked: BTreeSet<&PackageName> = packages.iter().collect();
    // Of those that the logs saw changed it matters as well: the newest first, as far as there is room.
    for change in evidence.changes.iter().rev() {
        if asked.contains(&change.name) {
            continue;
        }
        if asked.len() >= MAX_PACKAGES {
            evidence.remarks.push(format!(
                "what runs was looked at for {} packages only; of the others it is not known",
                asked.len()
            ));
            break;
        }
        asked.insert(&change.name);
    }
    if asked.is_empty() {
        return evidence;
    }
    match stale::report(root, Some(database)) {
        Ok(report) => {
            let reboot = system::reboot_state(root, database).packages;
            let unexplained = unexplained(root, database, &report);
            evidence.memory = asked
                .into_iter()
                .map(|name| memory(root, database, name, &report, &reboot, &unexplained))
                .collect();
        }
        Err(error) => {
            let reason = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
            evidence.memory_unknown = Some(format!("what runs cannot be told: {error}{reason}"));
        }
    }
    evidence
}

/// When the host was booted; none if the kernel does not say.
#[must_use]
pub fn booted(root: &Path) -> Option<Timestamp> {
    let uptime = i64::try_from(system::uptime_seconds(root)).ok().filter(|seconds| *seconds > 0)?;
    // Rounded so that it comes out too early rather than too late.
    Timestamp::now().checked_sub(SignedDuration::from_secs(uptime + 1)).ok()
}

fn memory(
    root: &Path,
    database: &Database,
    name: &PackageName,
    report: &StaleReport,
    reboot: &[String],
    unexplained: &[String],
) -> PackageMemory {
    let of = |state, held_by| PackageMemory { name: name.clone(), state, held_by };
    if reboot.iter().any(|package| package == name.name()) {
        return of(
            MemoryState::OldCode,
            vec!["the host until it is rebooted, as the package asks".to_owned()],
        );
    }
    if is_of_kernel(name.name()) {
        return match report.kernel.old {
            Some(false) => of(MemoryState::Effective, Vec::new()),
            Some(true) => of(MemoryState::OldCode, vec!["the running kernel, until a reboot".to_owned()]),
            None => of(MemoryState::Unknown, vec!["which kernel runs is not known".to_owned()]),
        };
    }
    if is_firmware(name.name()) {
        let is_told = name.name() == "intel-microcode";
        return match report.microcode.old.filter(|_| is_told) {
            Some(false) => of(MemoryState::Effective, Vec::new()),
            Some(true) => {
                of(MemoryState::OldCode, vec!["the processors' microcode, until a reboot".to_owned()])
            }
            None => of(
                MemoryState::Unknown,
                vec![
                    "what the hardware was given when the host was booted is not known, until a reboot"
                        .to_owned(),
                ],
            ),
        };
    }
    let mut files = Vec::new();
    // Without anything that is old there is nothing to compare.
    if !report.owners.is_empty() {
        for package in database.named(name.name()).filter(|package| package.is_present()) {
            match info::files(root, package) {
                Ok(list) => files.extend(list),
                Err(error) => return of(MemoryState::Unknown, vec![error.to_string()]),
            }
        }
    }
    let (state, held_by) = held_by(report, &files, unexplained);
    of(state, held_by)
}

/// Whether a package is a kernel, part of one, or names the newest one, so that the running kernel tells what runs.
fn is_of_kernel(name: &str) -> bool {
    const OTHERS: [&str; 17] = [
        "linux-base",
        "linux-bpf",
        "linux-buildinfo-",
        "linux-cloud-tools-",
        "linux-compiler-",
        "linux-config-",
        "linux-cpupower",
        "linux-doc",
        "linux-firmware",
        "linux-headers-",
        "linux-kbuild-",
        "linux-libc-dev",
        "linux-patch-",
        "linux-perf",
        "linux-source",
        "linux-support-",
        "linux-tools-",
    ];
    const KERNELS: [&str; 5] =
        ["linux-", "pve-kernel-", "proxmox-kernel-", "proxmox-default-kernel", "raspberrypi-kernel"];
    KERNELS.iter().any(|kernel| name.starts_with(kernel))
        && !OTHERS.iter().any(|other| name.starts_with(other))
}

/// Whether a package is what hardware is given when the host is booted.
fn is_firmware(name: &str) -> bool {
    matches!(name, "intel-microcode" | "amd64-microcode" | "raspi-firmware" | "pve-firmware")
        || name.starts_with("linux-firmware")
        || name.starts_with("firmware-")
}

/// The replaced files that the list of no installed package explains: a library that its package has dropped, renamed or
/// moved may be any package's.
fn unexplained(root: &Path, database: &Database, report: &StaleReport) -> Vec<String> {
    let mut files: BTreeSet<&str> =
        report.owners.iter().flat_map(|owner| &owner.files).map(String::as_str).collect();
    for package in database.iter().filter(|package| package.is_present()) {
        if files.is_empty() {
            break;
        }
        // What cannot be read explains nothing.
        let list = info::files(root, package).unwrap_or_default();
        let (exact, stems) = spelt(&list);
        files.retain(|file| !is_among(file, &exact, &stems));
    }
    files.into_iter().map(str::to_owned).collect()
}

/// Paths, and the stems of those that have one.
fn spelt(files: &[String]) -> (BTreeSet<&str>, BTreeSet<&str>) {
    (files.iter().map(|f| merged(f)).collect(), files.iter().filter_map(|f| stem(f)).collect())
}

fn is_among(file: &str, exact: &BTreeSet<&str>, stems: &BTreeSet<&str>) -> bool {
    exact.contains(merged(file)) || stem(file).is_some_and(|stem| stems.contains(stem))
}

/// What still maps the old files of a package that has these, or why that is not known. Replaced files that no package
/// explains may be its.
#[must_use]
pub fn held_by(report: &StaleReport, files: &[String], unexplained: &[String]) -> (MemoryState, Vec<String>) {
    let (exact, stems) = spelt(files);
    let is_its = |file: &String| is_among(file, &exact, &stems);
    let mut holders: Vec<String> = report
        .owners
        .iter()
        .filter(|owner| owner.files.iter().any(is_its))
        .map(|owner| stale::shown(owner.owner.to_string().as_bytes()))
        .collect();
    if !holders.is_empty() {
        let more = holders.len().saturating_sub(NAMED);
        holders.truncate(NAMED);
        if let Some(last) = holders.last_mut().filter(|_| more > 0) {
            *last = format!("{last} and {more} more");
        }
        return (MemoryState::OldCode, holders);
    }
    let mut doubts: Vec<String> = report
        .owners
        .iter()
        .filter(|owner| owner.file_count > owner.files.len())
        .map(|owner| {
            let owner_name = stale::shown(owner.owner.to_string().as_bytes());
            format!("{owner_name} maps {} replaced files, not all of which are known", owner.file_count)
        })
        .take(NAMED)
        .collect();
    if let Some(file) = unexplained.first() {
        let more = unexplained.len() - 1;
        let others = if more > 0 { format!(", and {more} more of the kind") } else { String::new() };
        doubts.insert(
            0,
            format!(
                "{} is mapped, is not there any more, and is in the list of no installed package{others}",
                stale::shown(file.as_bytes())
            ),
        );
    }
    if report.unread > 0 {
        doubts.push(format!("{} processes could not be read", report.unread));
    }
    if report.unnamed > 0 {
        doubts.push(format!("{} more processes run old code", report.unnamed));
    }
    doubts.truncate(NAMED);
    if doubts.is_empty() { (MemoryState::Effective, doubts) } else { (MemoryState::Unknown, doubts) }
}

/// A path whether or not `/usr` is spelt out: the directories are the same.
fn merged(path: &str) -> &str {
    match path.strip_prefix("/usr") {
        Some(rest) if ["/lib", "/bin/", "/sbin/"].iter().any(|directory| rest.starts_with(directory)) => rest,
        _ => path,
    }
}

/// The path of a numbered file up to the first digit of its name. None for one without a number, or with a name that
/// begins with it.
fn stem(path: &str) -> Option<&str> {
    let path = merged(path);
    let name = path.rfind('/')? + 1;
    let digit = path.get(name..)?.find(|c: char| c.is_ascii_digit()).filter(|at| *at > 0)?;
    path.get(..name + digit)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use patch_types::{
        compliance::AppliedBy,
        stale::{Advice, Owner, StaleOwner},
    };
    use proptest::prelude::*;
    use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};

    use super::*;

    fn owner(name: &str, files: &[&str], file_count: usize) -> StaleOwner {
        StaleOwner {
            owner: Owner::Unit { name: name.into() },
            advice: Advice::Restart,
            care: None,
            processes: Vec::new(),
            process_count: 1,
            files: files.iter().map(ToString::to_string).collect(),
            file_count,
        }
    }

    #[test]
    fn a_release_says_when_it_was_made() {
        let expected: Timestamp = "2026-11-22T01:09:27Z".parse().unwrap();
        for text in [
            "Sun, 22 Nov 2026 01:09:27 +0000",
            "Sun, 22 Nov 2026 01:09:27 UTC",
            "Sun, 22 Nov 2026 02:09:27 +0100",
        ] {
            assert_eq!(date(text), Some(expected), "{text}");
        }
        for text in ["", "UTC", "yesterday", "Sun, 99 Nov 2026 01:09:27 UTC"] {
            assert_eq!(date(text), None, "{text}");
        }
    }

    #[test]
    fn old_files_are_told_by_path_and_by_number() {
        let files =
            ["/lib/x86_64-linux-gnu/libssl.so.3", "/usr/lib/libicu.so.72.1", "/usr/sbin/sshd", "/usr/lib/9"]
                .map(str::to_owned);
        for (file, is_its) in [
            ("/usr/lib/x86_64-linux-gnu/libssl.so.3", true),
            ("/usr/lib/libicu.so.71.9", true),
            ("/sbin/sshd", true),
            ("/usr/lib/libicudata.so.71", false),
            ("/usr/lib/other/libicu.so.71", false),
            ("/usr/sbin/nginx", false),
            ("/usr/lib/8", false),
        ] {
            let report =
                StaleReport { owners: vec![owner("a.service", &[file], 1)], ..StaleReport::default() };
            let (state, held) = held_by(&report, &files, &[]);
            let expected = if is_its { MemoryState::OldCode } else { MemoryState::Effective };
            assert_eq!((state, held.len()), (expected, usize::from(is_its)), "{file}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_called_effective() {
        let files = ["/usr/sbin/sshd".to_owned()];
        let mut report =
            StaleReport { owners: vec![owner("a.service", &["/x"], 21)], ..StaleReport::default() };
        assert_eq!(held_by(&report, &files, &[]).0, MemoryState::Unknown);
        report.owners.clear();
        assert_eq!(held_by(&report, &files, &[]).0, MemoryState::Effective);
        report.unread = 1;
        assert_eq!(held_by(&report, &files, &[]).0, MemoryState::Unknown);
        report.unread = 0;
        report.unnamed = 3;
        let (state, doubts) = held_by(&report, &files, &[]);
        assert_eq!((state, doubts), (MemoryState::Unknown, vec!["3 more processes run old code".to_owned()]));
    }

    #[test]
    fn of_many_that_hold_it_some_are_named_and_all_are_counted() {
        let files = ["/usr/lib/liba.so.1".to_owned()];
        let of = |count: usize| {
            let owners =
                (0..count).map(|n| owner(&format!("a{n:02}.service"), &["/usr/lib/liba.so.1"], 1)).collect();
            held_by(&StaleReport { owners, ..StaleReport::default() }, &files, &[]).1
        };
        assert_eq!(of(NAMED).last().unwrap(), "a19.service");
        let held = of(NAMED + 5);
        assert_eq!((held.len(), held.last().unwrap().as_str()), (NAMED, "a19.service and 5 more"));
    }

    /// A host with these packages, each with one file, and with an empty `/proc` of its own.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new(packages: &[(&str, &str)]) -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            let mut status = String::new();
            for (name, file) in packages {
                status += &format!(
                    "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2\n\n"
                );
                host.put(&format!("var/lib/dpkg/info/{name}.list"), &format!("/.\n{file}\n"));
            }
            host.put("var/lib/dpkg/status", &status);
            host.put("proc/uptime", "100.5 10.0\n");
            host.put("proc/sys/kernel/osrelease", "6.1.0-28-amd64\n");
            host.put("proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n");
            host
        }

        fn root(&self) -> &Path {
            self.0.path()
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// A process of a service that maps the old code of a file.
        fn holds(&self, id: u32, service: &str, file: &str) {
            self.put(&format!("proc/{id}/comm"), "holds\n");
            self.put(&format!("proc/{id}/cgroup"), &format!("0::/system.slice/{service}\n"));
            self.put(&format!("proc/{id}/maps"), &format!("1-2 r-xp 0 0:1 5 {file} (deleted)\n"));
        }

        fn database(&self) -> Database {
            Database::read_for_list(self.root()).unwrap()
        }

        fn evidence(&self, packages: &[&str]) -> Evidence {
            let packages: Vec<PackageName> = packages.iter().map(|name| name.parse().unwrap()).collect();
            evidence(self.root(), &self.database(), &packages, Timestamp::UNIX_EPOCH)
        }

        fn states(&self, packages: &[&str]) -> Vec<(String, MemoryState, Vec<String>)> {
            let memory = self.evidence(packages).memory.into_iter();
            memory.map(|m| (m.name.to_string(), m.state, m.held_by)).collect()
        }
    }

    /// What dpkg logs of an upgrade from 1 to 2.
    fn logged(name: &str) -> String {
        format!(
            "2026-11-20 06:30:02 upgrade {name}:amd64 1 2\n2026-11-20 06:30:04 status installed {name}:amd64 2\n"
        )
    }

    #[test]
    fn what_runs_is_told_of_those_that_are_asked_for_and_of_those_that_changed() {
        let host = Host::new(&[
            ("lp-a", "/usr/lib/liba.so.1"),
            ("lp-asks", "/usr/lib/asks"),
            ("lp-b", "/usr/lib/libb.so.1"),
            ("lp-c", "/usr/lib/libc.so.1"),
        ]);
        host.holds(10, "a.service", "/usr/lib/liba.so.1");
        host.put("run/reboot-required.pkgs", "lp-asks\n");
        host.put("var/log/dpkg.log", &logged("lp-b"));
        host.put(
            "var/log/apt/history.log",
            "Start-Date: 2026-11-20  06:30:00\nCommandline: /usr/bin/unattended-upgrade\n",
        );
        let reboot = "the host until it is rebooted, as the package asks";
        let expected = [
            ("lp-a", MemoryState::OldCode, vec!["a.service".to_owned()]),
            ("lp-asks", MemoryState::OldCode, vec![reboot.to_owned()]),
            ("lp-b", MemoryState::Effective, Vec::new()),
        ];
        assert_eq!(
            host.states(&["lp-asks", "lp-a"]),
            expected.map(|(name, state, held_by)| (name.to_owned(), state, held_by))
        );
        let evidence = host.evidence(&["lp-a"]);
        assert_eq!(evidence.boot.as_deref(), Some("11111111-2222-3333-4444-555555555555"));
        let changes: Vec<_> = evidence.changes.iter().map(|c| (c.name.as_str(), c.by)).collect();
        assert_eq!(changes, [("lp-b", AppliedBy::UnattendedUpgrades)]);
        assert!(evidence.remarks.is_empty() && evidence.memory_unknown.is_none(), "{evidence:?}");
        // Its list tells which files are its own: without one it may be any.
        let list = host.root().join("var/lib/dpkg/info/lp-c.list");
        fs::remove_file(&list).unwrap();
        fs::create_dir(&list).unwrap();
        let told = host.states(&["lp-c"]);
        assert_eq!((told[1].0.as_str(), told[1].1), ("lp-c", MemoryState::Unknown));
        assert!(told[1].2[0].contains("lp-c.list"), "{told:?}");
    }

    #[test]
    fn where_processes_cannot_be_seen_nothing_is_said_of_memory() {
        let host = Host::new(&[("lp-a", "/usr/lib/liba.so.1")]);
        assert_eq!(host.states(&["lp-a"])[0].1, MemoryState::Effective);
        fs::remove_dir_all(host.root().join("proc")).unwrap();
        let evidence = host.evidence(&["lp-a"]);
        assert!(evidence.memory.is_empty());
        let why = evidence.memory_unknown.unwrap();
        assert!(
            why.starts_with("what runs cannot be told: cannot read ") && why.contains("/proc: "),
            "{why}"
        );
        // Who asks for nothing is not told that it is not known.
        assert_eq!(host.evidence(&[]).memory_unknown, None);
    }

    #[test]
    fn of_more_packages_than_there_is_room_for_the_newest_changes_count() {
        let host = Host::new(&[]);
        host.put("var/log/dpkg.log", &["lp-old", "lp-known", "lp-new", "lp-new"].map(logged).concat());
        let asked: Vec<String> = (0..MAX_PACKAGES - 2).map(|n| format!("lp-{n}")).collect();
        let mut asked: Vec<&str> = asked.iter().map(String::as_str).collect();
        asked.push("lp-known");
        let evidence = host.evidence(&asked);
        assert_eq!((evidence.memory.len(), evidence.changes.len()), (MAX_PACKAGES, 4));
        let is_told = |name: &str| evidence.memory.iter().any(|m| m.name.as_str() == name);
        assert!(is_told("lp-new") && is_told("lp-known") && !is_told("lp-old"));
        let expected = "what runs was looked at for 1000 packages only; of the others it is not known";
        assert_eq!(evidence.remarks, [expected]);
    }

    #[test]
    fn what_the_lists_of_packages_explain_is_not_unexplained() {
        let host = Host::new(&[("lp-a", "/usr/lib/liba.so.1"), ("lp-b", "/lib/libb.so.1")]);
        let unexplained = |files: &[&str]| {
            let owners = vec![owner("a.service", files, files.len())];
            unexplained(host.root(), &host.database(), &StaleReport { owners, ..StaleReport::default() })
        };
        assert_eq!(unexplained(&["/usr/lib/liba.so.0"]), [""; 0]);
        assert_eq!(
            unexplained(&["/usr/lib/libb.so.0", "/usr/lib/libx.so.1", "/usr/lib/liba.so.1"]),
            ["/usr/lib/libx.so.1"]
        );
    }

    #[test]
    fn the_boot_is_dated_too_early_rather_than_too_late() {
        let host = Host::new(&[]);
        let before = Timestamp::now();
        let booted_at = booted(host.root()).unwrap();
        let ago = |seconds| Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).unwrap();
        assert!(booted_at <= ago(100) && booted_at >= before - SignedDuration::from_secs(101));
        for unknown in ["0.90 0.1\n", "soon\n"] {
            host.put("proc/uptime", unknown);
            assert_eq!(booted(host.root()), None, "{unknown}");
        }
    }

    #[test]
    fn indexes_of_yesterday_are_said_to_be_old() {
        let host = Host::new(&[]);
        let now = Timestamp::now();
        assert!(staleness(host.root(), now).unwrap().contains("never fetched"));
        host.put("var/lib/apt/lists/x_InRelease", "");
        assert_eq!(staleness(host.root(), now), None);
        assert_eq!(staleness(host.root(), now + SignedDuration::from_hours(23)), None);
        let old = staleness(host.root(), now + SignedDuration::from_mins(30 * 60 + 30)).unwrap();
        assert!(old.contains("30 hours ago"), "{old}");
    }

    /// Indexes that change while they are read for so many times: each time the file is a pipe, and whoever reads it is
    /// given the text when the next state is there.
    fn read_while_they_change(times: usize) -> Fixes {
        let host = Host::new(&[("lp-a", "/usr/lib/liba.so.1")]);
        let index = host.root().join("var/lib/apt/lists/a_dists_s_main_binary-amd64_Packages");
        let release = host.root().join("var/lib/apt/lists/a_dists_s_InRelease");
        let state = |n: usize| {
            let date = format!("Sun, 22 Nov 2026 0{n}:00:00 UTC");
            fs::write(&release, format!("Label: Debian-Security\nSuite: s\nDate: {date}\n")).unwrap();
            format!("Package: lp-a\nArchitecture: amd64\nVersion: {n}\n")
        };
        let pipe = || mknodat(CWD, &index, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        fs::create_dir_all(index.parent().unwrap()).unwrap();
        let mut text = state(0);
        pipe();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..=times {
                    let mut writer = File::options().write(true).open(&index).unwrap();
                    writer.write_all(text.as_bytes()).unwrap();
                    text = state(n);
                    fs::remove_file(&index).unwrap();
                    if n < times { pipe() } else { fs::write(&index, &text).unwrap() }
                }
            });
            let fixes = read(host.root(), &host.database()).unwrap();
            // Should it have been read less often, nobody waits for the next reader.
            (fixes, openat(CWD, &index, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()))
        })
        .0
    }

    #[test]
    fn indexes_that_change_while_they_are_read_are_read_again() {
        let fixes = read_while_they_change(1);
        assert_eq!(fixes.offers.iter().map(|o| o.what.version.as_str()).collect::<Vec<_>>(), ["1"]);
        assert_eq!(
            fixes.archives.into_values().collect::<Vec<_>>(),
            [Some("2026-11-22T01:00:00Z".parse().unwrap())]
        );
        assert!(fixes.remarks.is_empty(), "{:?}", fixes.remarks);
        // Dates that may be of others than what was read bound nothing.
        let fixes = read_while_they_change(2);
        assert!(fixes.archives.is_empty() && fixes.remarks[0].contains("changed while"), "{fixes:?}");
    }

    #[test]
    fn what_no_package_explains_may_be_any_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
        let stanza = |name: &str| {
            format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n")
        };
        fs::write(root.join("var/lib/dpkg/status"), ["aa", "bb"].map(stanza).concat()).unwrap();
        fs::write(root.join("var/lib/dpkg/info/bb.list"), "/.\n/usr/lib/libbb.so.2\n").unwrap();
        let database = Database::read_for_list(root).unwrap();
        let name: PackageName = "aa".parse().unwrap();
        let asked = |file: &str| {
            let report =
                StaleReport { owners: vec![owner("a.service", &[file], 1)], ..StaleReport::default() };
            let unexplained = unexplained(root, &database, &report);
            memory(root, &database, &name, &report, &[], &unexplained)
        };
        // Another package's, by its number.
        assert_eq!(asked("/usr/lib/libbb.so.1").state, MemoryState::Effective);
        let dropped = asked("/usr/lib/libdropped.so.1");
        assert_eq!(dropped.state, MemoryState::Unknown);
        assert!(dropped.held_by[0].contains("/usr/lib/libdropped.so.1"), "{dropped:?}");
    }

    #[test]
    fn kernels_and_firmware_are_told_by_what_was_booted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("var/lib/dpkg")).unwrap();
        fs::write(dir.path().join("var/lib/dpkg/status"), "").unwrap();
        let database = Database::read_for_list(dir.path()).unwrap();
        let state = |name: &str, report: &StaleReport| {
            memory(dir.path(), &database, &name.parse().unwrap(), report, &[], &[]).state
        };
        let mut report = StaleReport::default();
        report.kernel.old = Some(true);
        for name in [
            "linux-image-amd64",
            "linux-generic",
            "linux-modules-6.8.0-50-generic",
            "linux-aws",
            "pve-kernel-6.2",
        ] {
            assert_eq!(state(name, &report), MemoryState::OldCode, "{name}");
            assert_eq!(state(name, &StaleReport::default()), MemoryState::Unknown, "{name}");
        }
        for name in ["intel-microcode", "amd64-microcode", "linux-firmware"] {
            assert_eq!(state(name, &report), MemoryState::Unknown, "{name}");
        }
        report.microcode.old = Some(true);
        assert_eq!(state("intel-microcode", &report), MemoryState::OldCode);
        assert_eq!(state("amd64-microcode", &report), MemoryState::Unknown, "it is not told");
        report.microcode.old = Some(false);
        assert_eq!(state("intel-microcode", &report), MemoryState::Effective);
        assert_eq!(state("amd64-microcode", &report), MemoryState::Unknown);
        report.kernel.old = Some(false);
        assert_eq!(state("linux-image-amd64", &report), MemoryState::Effective);
        // What the package itself asks for comes first.
        let asks = memory(
            dir.path(),
            &database,
            &"linux-image-amd64".parse().unwrap(),
            &report,
            &["linux-image-amd64".to_owned()],
            &[],
        );
        assert_eq!(asks.state, MemoryState::OldCode);
        assert_eq!(state("linux-libc-dev", &report), MemoryState::Effective);
    }

    #[test]
    fn the_security_archives_are_read_and_no_others() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/apt/fixtures/root");
        let database = Database::read_for_list(&root).unwrap();
        let fixes = read(&root, &database).unwrap();
        assert!(!fixes.installed.is_empty() && fixes.remarks.is_empty(), "{:?}", fixes.remarks);
        assert_eq!(fixes.archives.len(), 1, "{:?}", fixes.archives);
        let (archive, date) = fixes.archives.first_key_value().unwrap();
        assert!(archive.contains("bookworm-security") && archive.ends_with("_Packages") && date.is_some());
        assert!(fixes.offers.iter().all(|offer| offer.archive == *archive));
        assert!(!fixes.offers.is_empty());
        let empty = tempfile::tempdir().unwrap();
        let nothing = read(empty.path(), &database).unwrap();
        assert!(nothing.offers.is_empty() && nothing.remarks[0].contains("no indexes"));
        // A compressed index is said to be unread, and bounds nothing.
        let lists = empty.path().join("var/lib/apt/lists");
        fs::create_dir_all(&lists).unwrap();
        fs::write(lists.join("a_dists_s_InRelease"), "Origin: Debian\nLabel: Debian-Security\nSuite: s\n")
            .unwrap();
        fs::write(lists.join("a_dists_s_main_binary-amd64_Packages.lz4"), "").unwrap();
        let nothing = read(empty.path(), &database).unwrap();
        assert!(nothing.archives.is_empty() && nothing.remarks[0].contains("lz4"), "{nothing:?}");
    }

    proptest! {
        #[test]
        fn any_paths_compare(paths in prop::collection::vec("(/(usr|lib|bin|[a-z0-9.é]{1,5})){0,4}", 0..8)) {
            let names: Vec<&str> = paths.iter().map(String::as_str).collect();
            let report =
                StaleReport { owners: vec![owner("a.service", &names, names.len())], ..StaleReport::default() };
            // Whatever it maps of its own holds it.
            let expected = if paths.is_empty() { MemoryState::Effective } else { MemoryState::OldCode };
            prop_assert_eq!(held_by(&report, &paths, &[]).0, expected);
        }
    }
}
