//! Comparing with the snapshot. Nothing is changed here.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use patch_backends::apt::{Installed, info};

use super::{
    GoBackError, Going, Now, Proof, below, conffiles, status_fits, status_word, want_word, was_present,
};
use crate::apt::{
    argv,
    snapshot::{Affected, PackageKey, Recorded},
};

/// What differs between a package's files now and then.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// In dpkg's list then, not now.
    pub(super) unlisted: Vec<PathBuf>,
    /// In its list now, not then.
    pub(super) extra: Vec<PathBuf>,
    /// On disk then, not now.
    pub(super) missing: Vec<PathBuf>,
}

impl Files {
    pub(super) fn agree(&self) -> bool {
        self.unlisted.is_empty() && self.extra.is_empty() && self.missing.is_empty()
    }
}

/// A path of a snapshot's list: bytes in hexadecimal if it is not absolute.
fn path_of(text: &str) -> PathBuf {
    if text.starts_with('/') {
        PathBuf::from(text)
    } else {
        hex::decode(text).map_or_else(|_| text.into(), |bytes| PathBuf::from(OsStr::from_bytes(&bytes)))
    }
}

/// Compares a package's list of files with the snapshot's and with the disk. Configuration files are looked at
/// elsewhere: the administrator may delete them.
pub(super) fn files(root: &Path, affected: &Affected, now: Installed<'_>) -> io::Result<Files> {
    let text = match fs::read(info::path(root, now, "list")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let root_entry = |path: &Path| path == Path::new("/.") || path == Path::new("/");
    let listed: BTreeSet<PathBuf> = text
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| PathBuf::from(OsStr::from_bytes(line)))
        .filter(|path| !root_entry(path))
        .collect();
    let then: BTreeSet<PathBuf> =
        affected.list.iter().map(|p| path_of(p)).filter(|path| !root_entry(path)).collect();
    let absent: BTreeSet<PathBuf> = affected.missing.iter().map(|p| path_of(p)).collect();
    let recorded_now: BTreeSet<PathBuf> =
        now.conffiles().into_iter().map(|c| PathBuf::from(c.path)).collect();
    let recorded_then: BTreeSet<PathBuf> =
        affected.conffiles.iter().map(|c| PathBuf::from(&c.path)).collect();
    // dpkg forgets an obsolete configuration file with a purge, and no archive brings the record back.
    let forgotten = |path: &&PathBuf| recorded_then.contains(*path) && !recorded_now.contains(*path);
    let of_configuration: BTreeSet<PathBuf> = recorded_then
        .iter()
        .cloned()
        // A configuration file that only the new version had: dpkg goes on listing it as obsolete. It is not deleted,
        // since dpkg would take that for the administrator's wish and leave it out at the next upgrade.
        .chain(recorded_now.iter().cloned())
        .collect();
    let gone = |path: &&PathBuf| fs::symlink_metadata(below(root, path)).is_err();
    Ok(Files {
        unlisted: then.difference(&listed).filter(|p| !forgotten(p)).cloned().collect(),
        extra: listed.difference(&then).filter(|p| !of_configuration.contains(*p)).cloned().collect(),
        missing: then
            .iter()
            .filter(|p| !absent.contains(*p) && !of_configuration.contains(*p))
            .filter(gone)
            .cloned()
            .collect(),
    })
}

/// Whether a package that was there is there again: version, state and files.
pub(super) fn is_right(going: &Going<'_>, affected: &Affected, recorded: &Recorded, now: &Now) -> bool {
    now.find(&affected.key).is_some_and(|p| {
        p.version_text() == recorded.version
            && status_fits(recorded, p)
            && files(going.root, affected, p).is_ok_and(|files| files.agree())
    })
}

/// A shell's word, for people to copy.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=~%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

fn typed(argv: &argv::Argv) -> String {
    std::iter::once(argv.program.rsplit('/').next().unwrap_or(argv.program).to_owned())
        .chain(argv.args.iter().map(|arg| quoted(arg)))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Collects differences.
struct Comparison<'a> {
    going: &'a Going<'a>,
    now: Now,
    proof: Proof,
    /// Archives to install again by hand.
    archives: Vec<String>,
    purge: Vec<String>,
    remove: Vec<String>,
    marks: Vec<String>,
    configure: bool,
}

pub(super) fn compare(going: &Going<'_>) -> Result<Proof, GoBackError> {
    let now = Now::read(going.root)?;
    let mut comparison = Comparison {
        going,
        now,
        proof: Proof::default(),
        archives: Vec::new(),
        purge: Vec::new(),
        remove: Vec::new(),
        marks: Vec::new(),
        configure: false,
    };
    let keys: BTreeSet<&PackageKey> = going.scope.iter().collect();
    for key in keys {
        let before = comparison.proof.left.len();
        let restored = comparison.package(key);
        if comparison.proof.left.len() == before {
            comparison.proof.restored.push(restored);
        }
    }
    for neighbour in going.neighbours() {
        comparison.neighbour(neighbour);
    }
    comparison.audit();
    comparison.administration();
    Ok(comparison.end())
}

impl Comparison<'_> {
    fn left(&mut self, sentence: String) {
        self.proof.left.push(sentence);
    }

    fn package(&mut self, key: &PackageKey) -> String {
        let Some(recorded) = self.going.recorded(key) else {
            if let Some(p) = self.now.find(key) {
                let (version, word) = (p.version_text().to_owned(), status_word(p.status()));
                self.left(format!("{key} was not there before and is {word} at version {version}"));
                self.purge.extend(self.now.label(key));
            }
            return format!("{} not installed", key.name);
        };
        let affected = self.going.snapshot.affected.iter().find(|a| a.key == *key);
        if was_present(recorded) {
            self.present(key, recorded, affected);
        } else {
            self.removed(key, recorded);
        }
        if let Some(affected) = affected {
            self.conffiles(affected);
        }
        let version = if was_present(recorded) { recorded.version.as_str() } else { "not installed" };
        format!("{} {version}", key.name)
    }

    fn present(&mut self, key: &PackageKey, recorded: &Recorded, affected: Option<&Affected>) {
        let mut sentences = Vec::new();
        let mut again = false;
        let version = &recorded.version;
        match self.now.find(key) {
            None => {
                again = true;
                sentences.push(format!("{key} was at version {version} and is not installed"));
            }
            Some(p) => {
                if p.version_text() != version || !p.is_present() {
                    again = true;
                    let (now, word) = (p.version_text(), status_word(p.status()));
                    sentences.push(format!("{key} was at version {version} and is {word} at version {now}"));
                } else if !status_fits(recorded, p) {
                    again = true;
                    self.configure = true;
                    let word = status_word(p.status());
                    let also = if p.reinstall_required() { ", to be installed again" } else { "" };
                    sentences.push(format!("{key} {version} was {} and is {word}{also}", recorded.status));
                } else if let Some(affected) = affected {
                    match files(self.going.root, affected, p) {
                        Ok(files) => {
                            let differs = [
                                ("lacks", &files.missing),
                                ("no longer lists", &files.unlisted),
                                ("did not list", &files.extra),
                            ];
                            for (what, paths) in differs {
                                if let Some(first) = paths.first() {
                                    again = true;
                                    let more = match paths.len() {
                                        1 => String::new(),
                                        n => format!(" and {} more files", n - 1),
                                    };
                                    sentences
                                        .push(format!("{key} {version} {what} {}{more}", first.display()));
                                }
                            }
                        }
                        Err(error) => {
                            sentences.push(format!("the list of files of {key} cannot be read: {error}"));
                        }
                    }
                }
                if p.is_present() {
                    self.wanted(key, recorded, p.want(), self.now.is_auto(p), &mut sentences);
                }
            }
        }
        if again {
            sentences.extend(self.archive(key, version, affected));
        }
        self.proof.left.extend(sentences);
    }

    fn wanted(
        &self,
        key: &PackageKey,
        recorded: &Recorded,
        want: patch_backends::apt::status::Want,
        auto: bool,
        sentences: &mut Vec<String>,
    ) {
        if want_word(want) != recorded.want {
            sentences.push(format!("{key} was wanted as {} and is as {}", recorded.want, want_word(want)));
        }
        if auto != recorded.auto {
            let word = |auto| if auto { "automatically" } else { "manually" };
            sentences.push(format!(
                "{key} was marked as {} installed and is as {}",
                word(recorded.auto),
                word(auto)
            ));
        }
    }

    /// Finds the archive for the command to type, or says why there is none.
    fn archive(&mut self, key: &PackageKey, version: &str, affected: Option<&Affected>) -> Option<String> {
        let kept = affected.and_then(|a| a.archive.as_ref());
        match kept.map(|kept| (self.going.archive)(kept)) {
            Some(Ok(path)) => {
                self.archives.push(path.display().to_string());
                None
            }
            Some(Err(error)) => {
                self.ask_repository(key, version);
                Some(format!("the kept archive of {key} {version} cannot be used: {error}"))
            }
            None => {
                self.ask_repository(key, version);
                Some(format!("there is no kept archive of {key} {version}"))
            }
        }
    }

    fn ask_repository(&mut self, key: &PackageKey, version: &str) {
        if let Some(label) = self.now.label(key) {
            self.marks.push(format!(
                "apt-get install --allow-downgrades {}",
                quoted(&format!("{label}={version}"))
            ));
        }
    }

    /// The version of a removed package's configuration is not compared: removing a newer one leaves that one's number,
    /// and no tool sets it back.
    fn removed(&mut self, key: &PackageKey, recorded: &Recorded) {
        match self.now.find(key) {
            None => self.left(format!("the configuration of {key} was there and dpkg knows of it no longer")),
            Some(p) if p.is_present() => {
                let word = status_word(p.status());
                let version = p.version_text().to_owned();
                self.left(format!("{key} was removed and is {word} at version {version}"));
                self.remove.extend(self.now.label(key));
            }
            Some(p) if want_word(p.want()) != recorded.want => {
                let now = want_word(p.want());
                self.left(format!("{key} was wanted as {} and is as {now}", recorded.want));
            }
            Some(_) => {}
        }
    }

    fn conffiles(&mut self, affected: &Affected) {
        let exact = affected.archive.as_ref().is_none_or(|k| k.grade == patch_types::Grade::Exact);
        let recorded_now = self.now.find(&affected.key).map(Installed::conffiles).unwrap_or_default();
        for conffile in &affected.conffiles {
            match conffiles::difference(self.going, conffile) {
                conffiles::Verdict::Same => {}
                conffiles::Verdict::Edited => self.proof.kept_edits.push(conffile.path.clone()),
                conffiles::Verdict::Differs(how) => {
                    self.left(format!("{} of {} {how}", conffile.path, affected.key));
                    if let Some(content) = &conffile.content
                        && let Some(copy) = content.copy.as_deref()
                    {
                        let copy = self.going.copies.join(copy).display().to_string();
                        let path = self.going.below(&conffile.path).display().to_string();
                        self.marks.push(format!(
                            "install -o {} -g {} -m {:o} {} {}",
                            content.uid,
                            content.gid,
                            content.mode & 0o7777,
                            quoted(&copy),
                            quoted(&path)
                        ));
                    }
                }
            }
            let now = recorded_now.iter().find(|c| c.path == conffile.path).map(|c| c.md5.as_str());
            // A rebuilt archive holds the file as it was on disk, so dpkg records that. No record at all is that of an
            // obsolete one after a purge, see `files`.
            // Of a package that is only configuration now, dpkg has the record of the version that went, which nothing
            // can set.
            let is_present = self.now.find(&affected.key).is_some_and(Installed::is_present);
            if exact
                && is_present
                && now.is_some()
                && conffile.recorded_md5.is_some()
                && now != conffile.recorded_md5.as_deref()
            {
                self.left(format!("dpkg's record of {} of {} is another one", conffile.path, affected.key));
            }
        }
    }

    /// A neighbour that somebody changed since is nobody's to judge here.
    fn neighbour(&mut self, affected: &Affected) {
        let key = &affected.key;
        let Some(recorded) = self.going.recorded(key).filter(|r| was_present(r)) else { return };
        let Some(p) = self.now.find(key) else { return };
        if p.version_text() == recorded.version
            && p.is_present()
            && !is_right(self.going, affected, recorded, &self.now)
        {
            self.present(key, recorded, Some(affected));
        }
    }

    /// What `dpkg --audit` would say and did not before.
    fn audit(&mut self) {
        let mut found = Vec::new();
        for p in self.now.database.iter() {
            let Some(problem) = p.problem() else { continue };
            let key = PackageKey { name: p.name().to_owned(), architecture: p.architecture().to_owned() };
            let before = self.going.recorded(&key);
            let known =
                before.is_some_and(|r| r.status == status_word(p.status()) && r.status != "installed");
            // One that goes back has been compared. What broke since a change that is undone later is not its doing.
            if !known && !self.going.scope.contains(&key) && self.going.after.is_none() {
                found.push(format!("{key}: {problem}"));
            }
        }
        self.configure |= !found.is_empty();
        self.proof.left.extend(found);
    }

    fn administration(&mut self) {
        let own: BTreeSet<String> =
            self.going.targets().flat_map(|affected| affected.list.iter().cloned()).collect();
        for (name, before) in &self.going.snapshot.administration {
            let plain = Path::new(name).components().count() == 1 && !name.contains('/');
            let path = self.going.root.join("var/lib/dpkg").join(name);
            let now = if plain { fs::read(&path).unwrap_or_default() } else { continue };
            let lines = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
            let (before, now) = (lines(before), lines(&String::from_utf8_lossy(&now)));
            // Maintainer scripts make and remove these; they are small, and their order has no meaning.
            // Others may have added theirs: only what concerns a file of what goes back counts.
            let concerns = |line: &&String| {
                line.split_whitespace().any(|word| own.contains(word)) || own.contains(line.as_str())
            };
            let differing: Vec<&String> = before.symmetric_difference(&now).filter(concerns).collect();
            if !differing.is_empty() {
                self.left(format!("dpkg's {name} differs from what it was"));
            }
        }
    }

    fn end(mut self) -> Proof {
        let root = self.going.root;
        let mut commands = Vec::new();
        if self.configure {
            commands.push(typed(&argv::configure_pending(root)));
        }
        if !self.purge.is_empty() {
            commands.push(typed(&argv::discard(root, &self.purge, true)));
        }
        if !self.remove.is_empty() {
            commands.push(typed(&argv::discard(root, &self.remove, false)));
        }
        if !self.archives.is_empty() {
            commands.push(typed(&argv::reinstate(root, &self.archives, false)));
        }
        commands.append(&mut self.marks);
        for (names, argv) in super::procedure::marks_due(self.going, &self.now) {
            if !names.is_empty() {
                commands.push(typed(&argv));
            }
        }
        self.proof.commands = commands;
        self.proof
    }
}

/// Says what changed outside the scope since `before`.
pub(super) fn untouched(going: &Going<'_>, before: &Now, proof: &mut Proof) -> Result<(), GoBackError> {
    let now = Now::read(going.root)?;
    let key_of = |p: Installed<'_>| PackageKey {
        name: p.name().to_owned(),
        architecture: p.architecture().to_owned(),
    };
    let keys: BTreeSet<PackageKey> = before.database.iter().chain(now.database.iter()).map(key_of).collect();
    for key in keys.iter().filter(|key| !going.scope.contains(*key)) {
        let (then, is) = (before.find(key), now.find(key));
        let same = match (then, is) {
            (None, None) => true,
            (Some(then), Some(is)) => {
                then.version_text() == is.version_text()
                    && then.want() == is.want()
                    // Configuring what was left over is a gain.
                    && (then.status() == is.status() || is.problem().is_none() && then.problem().is_some())
            }
            _ => false,
        };
        if !same {
            let say = |p: Option<Installed<'_>>| {
                p.map_or_else(
                    || "not there".to_owned(),
                    |p| format!("{} {} {}", want_word(p.want()), status_word(p.status()), p.version_text()),
                )
            };
            proof.left.push(format!(
                "{key} is no part of what went back and was changed: it was {} and is {}",
                say(then),
                say(is)
            ));
        }
    }
    Ok(())
}
