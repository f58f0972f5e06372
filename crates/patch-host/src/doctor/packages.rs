//! Packages and where they come from: sources, their keys, what is held, what is half-done, room and time.

use std::collections::BTreeSet;

use patch_backends::apt::{
    Database, Indexes,
    release::{DISTRIBUTIONS, Release},
    versions,
};

use super::{Seen, host::Host, openpgp, sources};
use crate::taken_back;

const LISTS: &str = "var/lib/apt/lists";

/// Below that many bytes an upgrade is likely to fail in its middle.
const LEAST_VAR: u64 = 500 << 20;
/// One kernel with its initial file system, and some.
const LEAST_BOOT: u64 = 150 << 20;

/// How many seconds the clock may be behind what an archive was signed at.
const LEEWAY: i64 = 300;

/// How many seconds before its end a key is warned of.
const KEY_WARNING: u64 = 30 * 86_400;

pub(super) const NO_DATABASE: &str = "there is no dpkg database";

pub(super) fn interrupted(host: &Host<'_>, seen: &mut Seen) {
    let Some(database) = &host.database else {
        return seen.not_looked_at("dpkg_interrupted", NO_DATABASE);
    };
    let updates = match host.files.names("var/lib/dpkg/updates") {
        Ok(updates) => updates,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            seen.not_looked_at("dpkg_interrupted", format!("/var/lib/dpkg/updates: {error}"));
            Vec::new()
        }
    };
    let is_update = |name: &std::ffi::OsString| {
        name.to_str().is_some_and(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit()))
    };
    let unmerged = updates.iter().filter(|name| is_update(name)).count();
    let half: Vec<String> = database.audit().into_iter().map(|found| found.package.to_string()).collect();
    if unmerged == 0 && half.is_empty() {
        return;
    }
    let what = match half.len() {
        0 => "dpkg was interrupted (or works at this moment): its journal is not merged".to_owned(),
        n => format!(
            "dpkg was interrupted (or works at this moment): {n} packages are half-done, among them {}",
            half.iter().take(5).cloned().collect::<Vec<_>>().join(", ")
        ),
    };
    seen.critical(
        "dpkg_interrupted",
        what,
        "no package can be installed before that is put in order",
        "dpkg --configure -a (the agent does it before its next change)",
    );
}

/// Held packages for which a newer version with a security fix is offered.
fn held_fixes(database: &Database, indexes: &Indexes) -> Vec<String> {
    let held = database.iter().filter(|package| package.is_present() && package.is_held());
    let fix = |package: patch_backends::apt::Installed<'_>| {
        let (name, architecture, present) = (package.name(), package.architecture(), package.version_text());
        let newest = indexes
            .versions(name)
            .iter()
            .filter(|offer| {
                let is_for_it = offer.architecture == architecture || offer.architecture == "all";
                is_for_it && versions::compare(offer.version.as_str(), present).is_gt()
            })
            .max_by(|a, b| versions::compare(a.version.as_str(), b.version.as_str()))?;
        let version = newest.version.as_str();
        indexes
            .brings_security(name, architecture, Some(present), version)
            .then(|| format!("{name} {present} (offered: {version})"))
    };
    held.filter_map(fix).collect()
}

pub(super) fn held(host: &Host<'_>, seen: &mut Seen) {
    let Some(database) = &host.database else {
        return seen.not_looked_at("held_security_fix", NO_DATABASE);
    };
    let names: BTreeSet<String> =
        database.iter().filter(|p| p.is_present() && p.is_held()).map(|p| p.name().to_owned()).collect();
    if names.is_empty() {
        return;
    }
    // apt's lists are opened by name: that is not for a system of somebody else's.
    if host.files.root() != std::path::Path::new("/") {
        return seen.not_looked_at("held_security_fix", "apt's lists are read on the running system alone");
    }
    match Indexes::read(host.files.root(), names) {
        Ok(indexes) => {
            indexes.skipped().iter().for_each(|skipped| {
                seen.not_looked_at(
                    "held_security_fix",
                    format!("{}: {}", skipped.path.display(), skipped.reason),
                );
            });
            report_held(&held_fixes(database, &indexes), seen);
        }
        Err(error) => seen.not_looked_at("held_security_fix", error.to_string()),
    }
}

/// Versions that were taken back and are not installed for that reason, though nothing newer is.
pub(super) fn taken_back(host: &Host<'_>, seen: &mut Seen) {
    const ID: &str = "taken_back";
    let Some(database) = &host.database else { return };
    let barred = match taken_back::read(host.files) {
        Ok(barred) => barred,
        Err(error) => return seen.not_looked_at(ID, format!("{error:#}")),
    };
    let missing: Vec<_> = barred
        .into_iter()
        .filter(|entry| {
            let installed = database.find(&entry.name, Some(entry.architecture.as_str()));
            installed
                .filter(|package| package.is_present())
                .is_some_and(|package| versions::compare(package.version_text(), &entry.version).is_lt())
        })
        .collect();
    if missing.is_empty() {
        return;
    }
    // apt's lists are opened by name: that is not for a system of somebody else's.
    let names: BTreeSet<String> = missing.iter().map(|entry| entry.name.clone()).collect();
    let indexes = match host.files.root() == std::path::Path::new("/") {
        true => Indexes::read(host.files.root(), names).ok(),
        false => None,
    };
    let is_fix = |entry: &taken_back::Entry| {
        let present = database.find(&entry.name, Some(entry.architecture.as_str()))?.version_text();
        let (name, version) = (&entry.name, &entry.version);
        Some(indexes.as_ref()?.brings_security(name, &entry.architecture, Some(present), version))
    };
    let told = |entry: &taken_back::Entry| format!("{} {} (job {})", entry.name, entry.version, entry.job);
    let (fixes, others): (Vec<_>, Vec<_>) = missing.iter().partition(|entry| is_fix(entry) == Some(true));
    report_taken_back(&fixes.into_iter().map(told).collect::<Vec<_>>(), true, seen);
    report_taken_back(&others.into_iter().map(told).collect::<Vec<_>>(), false, seen);
}

fn report_taken_back(versions: &[String], are_fixes: bool, seen: &mut Seen) {
    const REMEDY: &str = "`linux-patch-host taken-back` says why; once that is mended, linux-patch-host clear NAME=VERSION lets it \
                        be installed again";
    if versions.is_empty() {
        return;
    }
    let names = versions.join(", ");
    if are_fixes {
        seen.critical(
            "taken_back",
            format!(
                "security fixes that were taken back (they failed here, nobody confirmed them, or somebody asked for it): {names}"
            ),
            "they are not installed again until a newer version comes",
            REMEDY,
        );
    } else {
        seen.warning(
            "taken_back",
            format!("versions that were taken back (they failed here, nobody confirmed them, or somebody asked for it): {names}"),
            "they are not installed again until a newer version comes, which may be a while",
            REMEDY,
        );
    }
}

fn report_held(held: &[String], seen: &mut Seen) {
    if !held.is_empty() {
        seen.critical(
            "held_security_fix",
            format!("held back although a security fix is there: {}", held.join(", ")),
            "a held package gets no fixes, and its hold is easily forgotten",
            "apt-mark unhold PACKAGE, once what it was held for is over",
        );
    }
}

/// What a source's archive says of itself, by the list that apt keeps of it.
fn release_of(host: &Host<'_>, source: &sources::Source) -> Option<Release> {
    let prefix = source.list_prefix();
    let text = ["InRelease", "Release"]
        .iter()
        .find_map(|name| host.files.read(format!("{LISTS}/{prefix}_{name}")).ok())?;
    Some(Release::parse(&text))
}

fn read_sources(host: &Host<'_>, id: &'static str, seen: &mut Seen) -> Vec<sources::Source> {
    let (sources, unread) = sources::read(host.files);
    unread.into_iter().for_each(|reason| seen.not_looked_at(id, reason));
    sources
}

pub(super) fn security_source(host: &Host<'_>, seen: &mut Seen) {
    let sources = read_sources(host, "security_source_missing", seen);
    let is_security = |source: &sources::Source| {
        release_of(host, source).is_some_and(|release| release.is_security())
            || source.suite.ends_with("-security")
            || source.suite.ends_with("/updates")
    };
    if !sources.iter().any(is_security) {
        seen.critical(
            "security_source_missing",
            format!("none of the {} sources of apt is an archive of security fixes", sources.len()),
            "no security fix is ever offered",
            "add the suite CODENAME-security of the distribution to /etc/apt/sources.list",
        );
    }
}

pub(super) fn unverified(host: &Host<'_>, seen: &mut Seen) {
    const WHY: &str = "whoever is between the host and the archive can have it install anything";
    for source in read_sources(host, "unverified_source", seen) {
        if !source.unverified.is_empty() {
            seen.critical(
                "unverified_source",
                format!(
                    "/{}: {} {} has {}",
                    source.file,
                    source.uri,
                    source.suite,
                    source.unverified.join(", ")
                ),
                WHY,
                "remove that option, and name the archive's key by Signed-By",
            );
        }
    }
    let conf = host.in_force.conf();
    for name in [
        "APT::Get::AllowUnauthenticated",
        "Acquire::AllowInsecureRepositories",
        "Acquire::AllowWeakRepositories",
        "Acquire::AllowDowngradeToInsecureRepositories",
    ] {
        if conf.is_true(name) {
            let file =
                host.in_force.files.setting(name).map_or_else(String::new, |s| format!(" in /{}", s.file));
            seen.critical("unverified_source", format!("{name} is on{file}"), WHY, "remove that setting");
        }
    }
    if conf.value("Acquire::Check-Valid-Until").is_some_and(|value| !crate::apt_conf::is_true(value)) {
        seen.warning(
            "stale_lists_believed",
            "Acquire::Check-Valid-Until is off".to_owned(),
            "an old copy of the archive, without the fixes since, is believed",
            "remove that setting",
        );
    }
}

/// Whether a preference is about an archive.
fn is_pinned(host: &Host<'_>, source: &sources::Source, origin: Option<&str>) -> bool {
    const PARTS: &str = "etc/apt/preferences.d";
    let names = host.files.names(PARTS).unwrap_or_default();
    let paths = names.into_iter().filter_map(|name| Some(format!("{PARTS}/{}", name.into_string().ok()?)));
    let mut texts = ["etc/apt/preferences".to_owned()]
        .into_iter()
        .chain(paths)
        .filter_map(|path| Some(String::from_utf8_lossy(&host.files.read(path).ok()?).into_owned()));
    let by_host = source.host();
    texts.any(|text| {
        let pins = text.lines().filter_map(|line| line.trim().strip_prefix("Pin:")).map(str::trim);
        let mut is_meant = pins.map(|pin| match pin.split_once(' ') {
            Some(("origin", name)) => !by_host.is_empty() && name.trim().trim_matches('"') == by_host,
            Some(("release", terms)) => terms.split(',').any(|term| {
                let name = term.trim().strip_prefix("o=").map(|name| name.trim_matches('"'));
                name.is_some() && name == origin
            }),
            _ => false,
        });
        is_meant.any(|is_meant| is_meant)
    })
}

pub(super) fn foreign(host: &Host<'_>, seen: &mut Seen) {
    for source in read_sources(host, "foreign_source", seen) {
        if source.uri.starts_with("cdrom:") || !source.signed_by.is_empty() {
            continue;
        }
        let release = release_of(host, &source);
        let origin = release.as_ref().map(|release| release.origin.as_str());
        let is_official = ["debian.org", "ubuntu.com"]
            .iter()
            .any(|domain| source.host() == *domain || source.host().ends_with(&format!(".{domain}")));
        if is_official || origin.is_some_and(|origin| DISTRIBUTIONS.contains(&origin)) {
            continue;
        }
        if is_pinned(host, &source, origin) {
            continue;
        }
        let what = format!("/{}: {} {}", source.file, source.uri, source.suite);
        let is_list = |name: &std::ffi::OsString| name.to_string_lossy().ends_with("Release");
        if release.is_none() && !host.files.names(LISTS).is_ok_and(|names| names.iter().any(is_list)) {
            seen.not_looked_at(
                "foreign_source",
                format!("{what}: no lists are there, so whose archive it is cannot be told"),
            );
            continue;
        }
        seen.warning(
            "foreign_source",
            format!("{what} is not the distribution's, and neither pinned nor bound to a key by Signed-By"),
            "it may replace any package of the distribution, and its key may sign for every other archive",
            "give it Signed-By with its own key, or pin it in /etc/apt/preferences.d",
        );
    }
}

/// A source whose archive is believed by its signature alone.
fn is_verified(source: &&sources::Source) -> bool {
    source.unverified.is_empty() && !source.uri.starts_with("cdrom:")
}

pub(super) fn keys(host: &Host<'_>, seen: &mut Seen) {
    let now = u64::try_from(host.now.as_second()).unwrap_or_default();
    let sources = read_sources(host, "key_expired", seen);
    let mut files: Vec<&String> =
        sources.iter().flat_map(|source| &source.signed_by).filter(|key| key.starts_with('/')).collect();
    files.sort();
    files.dedup();
    for file in files {
        match host.files.read(file.trim_start_matches('/')) {
            Ok(text) => report_keys(file, &openpgp::keys(&text), now, seen),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => seen.critical(
                "key_missing",
                format!("{file} is named by Signed-By, and is not there"),
                "nothing from that archive is believed, so its fixes are never seen",
                "get the archive's key from its owner",
            ),
            Err(error) => seen.not_looked_at("key_expired", format!("{file}: {error}")),
        }
    }
    let mut embedded: Vec<(&String, &String)> =
        sources.iter().filter_map(|source| Some((&source.file, source.key.as_ref()?))).collect();
    embedded.sort();
    embedded.dedup();
    for (file, key) in embedded {
        report_keys(&format!("Signed-By of /{file}"), &openpgp::keys(key.as_bytes()), now, seen);
    }
    let prints = sources.iter().filter(|source| source.key.is_none()).flat_map(|source| {
        let is_print = |key: &&String| !key.starts_with('/');
        source.signed_by.iter().filter(is_print).map(|key| (&source.file, key))
    });
    for (file, key) in prints.collect::<BTreeSet<_>>() {
        seen.not_looked_at("key_expired", format!("/{file} names the key {key} by its fingerprint alone"));
    }
    if let Some(source) = sources.iter().filter(is_verified).find(|source| source.signed_by.is_empty()) {
        trusted(host, source, now, seen);
    }
}

/// The keys by which apt believes archives that name none. Which of them signs which archive is not known here.
fn trusted(host: &Host<'_>, source: &sources::Source, now: u64, seen: &mut Seen) {
    const PARTS: &str = "etc/apt/trusted.gpg.d";
    const ALL: &str = "/etc/apt/trusted.gpg and /etc/apt/trusted.gpg.d";
    let conf = host.in_force.conf();
    let is_default = |name: &str, default: &str| {
        conf.value(name).is_none_or(|value| value.trim_end_matches('/') == default)
    };
    if !is_default("Dir::Etc::trusted", "trusted.gpg")
        || !is_default("Dir::Etc::trustedparts", "trusted.gpg.d")
    {
        return seen.not_looked_at("key_expired", "apt's trusted keys are elsewhere (Dir::Etc::Trusted)");
    }
    let names = host.files.names(PARTS).unwrap_or_else(|error| {
        if error.kind() != std::io::ErrorKind::NotFound {
            seen.not_looked_at("key_expired", format!("/{PARTS}: {error}"));
        }
        Vec::new()
    });
    let mut paths: Vec<String> = names
        .into_iter()
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.ends_with(".gpg") || name.ends_with(".asc"))
        .map(|name| format!("{PARTS}/{name}"))
        .collect();
    paths.push("etc/apt/trusted.gpg".to_owned());
    paths.sort();
    let (mut all, mut is_whole) = (Vec::new(), true);
    for path in paths {
        let keys = match host.files.read(&path) {
            // An empty keyring is one without keys.
            Ok(text) if text.is_empty() => continue,
            Ok(text) => openpgp::keys(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                seen.not_looked_at("key_expired", format!("/{path}: {error}"));
                is_whole = false;
                continue;
            }
        };
        if keys.is_empty() {
            seen.not_looked_at("key_expired", format!("/{path}: no key of a known form is in it"));
            is_whole = false;
        } else if all_end(&keys, now) {
            seen.not_looked_at(
                "key_expired",
                format!("/{path}: every key in it has expired or was revoked; which archive it is for is not known"),
            );
        }
        all.extend(keys);
    }
    if !all.is_empty() && is_whole {
        report_keys(ALL, &all, now, seen);
    } else if is_whole {
        seen.critical(
            "key_missing",
            format!(
                "/{}: {} {} names no key by Signed-By, and none is in {ALL}",
                source.file, source.uri, source.suite
            ),
            "nothing from that archive is believed, so its fixes are never seen",
            "get the archive's key from its owner, and name it by Signed-By",
        );
    }
}

/// Whether none of some keys is good at a time.
fn all_end(keys: &[openpgp::Key], at: u64) -> bool {
    keys.iter().all(|key| key.revoked || key.expires.is_some_and(|end| end <= at))
}

fn report_keys(place: &str, keys: &[openpgp::Key], now: u64, seen: &mut Seen) {
    if keys.is_empty() {
        seen.not_looked_at("key_expired", format!("{place}: no key of a known form is in it"));
    } else if all_end(keys, now) {
        seen.critical(
            "key_expired",
            format!("every key in {place} has expired or was revoked"),
            "nothing from that archive is believed any more, so its fixes are never seen",
            "get the archive's present key from its owner",
        );
    } else if all_end(keys, now.saturating_add(KEY_WARNING)) {
        seen.warning(
            "key_expires",
            format!("every key in {place} will have expired in 30 days"),
            "from then on nothing from that archive is believed",
            "get the archive's next key from its owner",
        );
    }
}

pub(super) fn room(host: &Host<'_>, seen: &mut Seen) {
    let free = |path: &str| -> std::io::Result<u64> {
        let dir = host.files.directory(path)?;
        let stat = rustix::fs::fstatvfs(&dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    };
    let has_kernels = !host.installed(&["linux-image-*"]).is_empty();
    let places = [("var", LEAST_VAR, true), ("boot", LEAST_BOOT, has_kernels)];
    for (path, least, _) in places.into_iter().filter(|(.., matters)| *matters) {
        match free(path) {
            Ok(free) => report_room(path, free, least, seen),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => seen.not_looked_at("disk_full", format!("/{path}: {error}")),
        }
    }
}

fn report_room(path: &str, free: u64, least: u64, seen: &mut Seen) {
    if free < least {
        seen.critical(
            "disk_full",
            format!("/{path} has {} MiB free, and should have {}", free >> 20, least >> 20),
            "an upgrade that runs out of room ends in its middle",
            if path == "boot" {
                "apt-get autoremove --purge removes old kernels"
            } else {
                "apt-get clean; see `du -x /var`"
            },
        );
    }
}

pub(super) fn clock(host: &Host<'_>, seen: &mut Seen) {
    let names = host.files.names(LISTS).unwrap_or_default();
    let dates = names.into_iter().filter_map(|name| name.into_string().ok()).filter_map(|name| {
        (name.ends_with("_InRelease") || name.ends_with("_Release")).then_some(())?;
        let release = Release::parse(&host.files.read(format!("{LISTS}/{name}")).ok()?);
        let date = jiff::fmt::rfc2822::DateTimeParser::new()
            .parse_timestamp(release.date.replace("UTC", "GMT"))
            .ok()?;
        Some((date, name))
    });
    if let Some((date, name)) = dates.max()
        && date.as_second() > host.now.as_second().saturating_add(LEEWAY)
    {
        seen.critical(
            "clock_behind",
            format!("the clock says {:.0}, and /{LISTS}/{name} was signed at {date:.0}", host.now),
            "signatures and certificates of today count as not valid yet, so no fix is believed",
            "have the clock set: systemd-timesyncd or chrony",
        );
    }
    // A container has the clock of its host.
    if host.files.is_there("run/systemd/container") {
        return;
    }
    match host.tools.ask("timedatectl", &["show", "-p", "NTPSynchronized", "--value"]) {
        Ok(state) if state.trim() == "yes" => {}
        Ok(_) => seen.warning(
            "clock_not_kept",
            "nothing keeps the clock right".to_owned(),
            "a clock that runs away makes signatures and certificates count as expired or not valid yet",
            "apt-get install systemd-timesyncd, or chrony",
        ),
        Err(error) => seen.not_looked_at("clock_not_kept", error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use patch_types::plan::Origin;

    use super::*;

    #[test]
    fn a_held_package_with_a_fix_is_found() {
        let status = "Package: aa\nStatus: hold ok installed\nArchitecture: amd64\nVersion: 1.0\n\n\
            Package: bb\nStatus: hold ok installed\nArchitecture: amd64\nVersion: 1.0\n";
        let database = Database::parse(status.as_bytes());
        let names = ["aa", "bb"];
        let mut indexes = Indexes::read(std::path::Path::new("/nonexistent"), names).unwrap();
        let origin = |security: bool| {
            let release = Release {
                origin: "Debian".to_owned(),
                codename: if security { "x-security" } else { "x" }.to_owned(),
                ..Release::default()
            };
            let origin: Origin = release.component("main", "a");
            origin
        };
        let offer = |name: &str, version: &str| {
            format!(
                "Package: {name}\nArchitecture: amd64\nVersion: {version}\nFilename: x\nSize: 1\nSHA256: {:064}\n\n",
                0
            )
        };
        indexes.add(origin(true), offer("aa", "1.1").as_bytes()).unwrap();
        indexes.add(origin(false), offer("bb", "1.1").as_bytes()).unwrap();
        assert_eq!(held_fixes(&database, &indexes), ["aa 1.0 (offered: 1.1)"]);
        let mut seen = Seen::default();
        report_held(&held_fixes(&database, &indexes), &mut seen);
        report_held(&[], &mut seen);
        assert_eq!(seen.findings.len(), 1);
    }

    #[test]
    fn little_room_is_found() {
        let mut seen = Seen::default();
        report_room("var", LEAST_VAR, LEAST_VAR, &mut seen);
        assert!(seen.findings.is_empty());
        report_room("boot", LEAST_BOOT - 1, LEAST_BOOT, &mut seen);
        assert_eq!(seen.findings[0].id, "disk_full");
        assert!(seen.findings[0].todo.contains("autoremove"));
    }

    #[test]
    fn dates_of_archives_are_understood() {
        let parser = jiff::fmt::rfc2822::DateTimeParser::new();
        let at: jiff::Timestamp =
            parser.parse_timestamp("Sat, 06 Sep 2025 08:12:43 UTC".replace("UTC", "GMT")).unwrap();
        assert_eq!(at.to_string(), "2025-09-06T08:12:43Z");
    }
}
