//! What is done to packages, in which order.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    time::Duration,
};

use patch_backends::apt::{Installed, info, relations};
use patch_types::api::PackageStatus;

use super::{GoBackError, Going, Now, proof, want_word, was_present};
use crate::{
    apt::{
        argv::{self, Argv},
        snapshot::PackageKey,
        stage::Stage,
    },
    run,
};

/// How often removing and unpacking is repeated at most. Two rounds do for everything that was seen: the second gives a
/// file back that a new package had taken over.
const ROUNDS: usize = 6;

/// How long a unit may take to start.
const START: Duration = Duration::from_secs(90);

/// Below this many free bytes a failure is put down to the full disk, whatever was to be unpacked.
const FULL: u64 = 4 * 1024 * 1024;

/// Behind the path of a configuration file of a new package that was edited before the package had to go.
const EDITED: &str = ".linux-patch-edited";

/// What one round would do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Round {
    purge: Vec<String>,
    remove: Vec<String>,
    install: Vec<String>,
}

impl Round {
    fn is_empty(&self) -> bool {
        self.purge.is_empty() && self.remove.is_empty() && self.install.is_empty()
    }
}

/// Brings the packages back: finishes what was begun, then removes what is new and unpacks what is old, until nothing
/// is left to do or nothing moves any more. Gives the copies of edited configuration files of packages that were purged.
pub(super) fn packages(going: &Going<'_>, stage: &mut dyn Stage) -> Result<Vec<String>, GoBackError> {
    let now = Now::read(going.root)?;
    if is_unfinished_elsewhere(going, &now) {
        // May fail: a package that is broken for good is about to be replaced. It also merges what a killed dpkg left.
        // What is unfinished in the scope is replaced anyway, and its scripts may be the ones that hang.
        stage.run(argv::locked(argv::configure_pending(going.root)))?;
    }
    let mut aside = Aside::default();
    let saved = rounds(going, stage, &mut aside);
    // Whatever came of it: what is still as it was has its own scripts again.
    aside.give_back(going, &Now::read(going.root)?)?;
    let mut saved = saved?;
    let now = Now::read(going.root)?;
    if is_unfinished(&now) {
        stage.run(argv::locked(argv::configure_pending(going.root)))?;
    }
    let now = Now::read(going.root)?;
    let round = plan(going, &now);
    if !round.is_empty()
        && let Some(path) = full(going.root, &round.install)
    {
        return Err(GoBackError::NoSpace { path });
    }
    saved.sort();
    saved.dedup();
    Ok(saved)
}

/// Removes what is new and unpacks what is old, until nothing is left to do or nothing moves any more.
fn rounds(going: &Going<'_>, stage: &mut dyn Stage, aside: &mut Aside) -> Result<Vec<String>, GoBackError> {
    let mut saved = Vec::new();
    let mut last = Round::default();
    let mut forceful = false;
    for _ in 0..ROUNDS {
        let now = Now::read(going.root)?;
        let round = plan(going, &now);
        if round.is_empty() {
            break;
        }
        if round == last {
            // First the scripts that keep the present version from going, then the relations that do.
            if !aside.take(going, &now, stage)? {
                if forceful || !is_alone(going, &now) {
                    break;
                }
                forceful = true;
            }
        }
        if !round.purge.is_empty() {
            saved.extend(save_edits(going, &now, &round.purge)?);
            stage.run(argv::discard(going.root, &round.purge, true))?;
        }
        if !round.remove.is_empty() {
            stage.run(argv::discard(going.root, &round.remove, false))?;
        }
        if !round.install.is_empty() {
            stage.run(argv::reinstate(going.root, &round.install, forceful))?;
        }
        last = round;
    }
    Ok(saved)
}

/// Copies configuration files of packages that are about to be purged, where somebody edited them since the change.
fn save_edits(going: &Going<'_>, now: &Now, labels: &[String]) -> Result<Vec<String>, GoBackError> {
    let mut saved = Vec::new();
    if going.after.is_none() {
        return Ok(saved);
    }
    for key in going.scope.iter().filter(|key| now.label(key).is_some_and(|label| labels.contains(&label))) {
        let Some(p) = now.find(key) else { continue };
        for changed in info::changed_conffiles(going.root, p) {
            let from = going.below(&changed.path);
            match save_edit(&from) {
                Ok(Some(suffix)) => saved.push(format!("{}{suffix}", changed.path)),
                Ok(None) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                    return Err(GoBackError::NoSpace { path: from });
                }
                Err(source) => return Err(GoBackError::Save { path: from, source }),
            }
        }
    }
    Ok(saved)
}

/// Copies an edited file beside itself under a name that is free, and gives what was added to its name. Only what is a
/// file: a link's target is not the package's and stays. No link is followed, since the directory may be somebody else's.
fn save_edit(from: &Path) -> std::io::Result<Option<String>> {
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened = std::fs::File::options().read(true).custom_flags(flags.bits().cast_signed()).open(from);
    let Ok(mut source) = opened else { return Ok(None) };
    let meta = source.metadata()?;
    if !meta.is_file() {
        return Ok(None);
    }
    for number in 1..=9 {
        let suffix = if number == 1 { EDITED.to_owned() } else { format!("{EDITED}.{number}") };
        let mut name = from.as_os_str().to_owned();
        name.push(&suffix);
        let made = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&name);
        let mut copy = match made {
            Ok(copy) => copy,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        };
        std::io::copy(&mut source, &mut copy)?;
        std::os::unix::fs::fchown(&copy, Some(meta.uid()), Some(meta.gid()))?;
        copy.set_permissions(meta.permissions())?;
        copy.sync_all()?;
        return Ok(Some(suffix));
    }
    Err(std::io::ErrorKind::AlreadyExists.into())
}

/// What a maintainer script does while the real one is set aside.
const NOTHING: &str =
    "#!/bin/sh\n# linux-patch-api: the real script failed, and this version is being taken back.\nexit 0\n";

/// Maintainer scripts that keep a version from going: a failing `prerm` or `postrm` stops dpkg unless the other version's
/// one makes it good, and that may fail as well or not exist.
#[derive(Debug, Default)]
struct Aside {
    taken: bool,
}

impl Aside {
    /// Puts scripts that do nothing in the place of those of what is to go. False if that was done already, or if there
    /// are none.
    fn take(&mut self, going: &Going<'_>, now: &Now, stage: &mut dyn Stage) -> Result<bool, GoBackError> {
        if std::mem::replace(&mut self.taken, true) {
            return Ok(false);
        }
        let mut any = false;
        for (script, copy) in scripts(going, now) {
            let save = |source| GoBackError::Save { path: script.clone(), source };
            match std::fs::read(&script) {
                Ok(text) if text != NOTHING.as_bytes() => {
                    write_script(&copy, &text).map_err(save)?;
                    write_script(&script, NOTHING.as_bytes()).map_err(save)?;
                    stage.say(format!(
                        "{} fails or is in the way; it is set aside to go back",
                        script.display()
                    ));
                    any = true;
                }
                Ok(_) => any = true,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(save(error)),
            }
        }
        Ok(any)
    }

    /// Gives the scripts back to packages that are still as they were, also those that an earlier attempt took.
    fn give_back(&self, going: &Going<'_>, now: &Now) -> Result<(), GoBackError> {
        for (script, copy) in scripts(going, now) {
            let Ok(text) = std::fs::read(&copy) else { continue };
            if std::fs::read(&script).is_ok_and(|now| now == NOTHING.as_bytes()) {
                write_script(&script, &text)
                    .map_err(|source| GoBackError::Save { path: script.clone(), source })?;
            }
            // Kept for nothing any more; the snapshot's directory goes with its change.
            let _ = std::fs::remove_file(&copy);
        }
        Ok(())
    }
}

/// The scripts that dpkg runs when the present versions go, each with the place where it is kept meanwhile.
fn scripts(going: &Going<'_>, now: &Now) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for key in going.scope {
        let Some(package) = now.find(key) else { continue };
        // What is right already stays as it is.
        let is_target = going.targets().find(|a| a.key == *key);
        let is_right = is_target.zip(going.recorded(key).filter(|r| was_present(r)));
        if is_right.is_some_and(|(affected, recorded)| proof::is_right(going, affected, recorded, now)) {
            continue;
        }
        for kind in ["prerm", "postrm"] {
            let script = info::path(going.root, package, kind);
            let name = script.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push((script, going.copies.join(format!("aside-{name}"))));
        }
    }
    found
}

/// Writes a script whole: dpkg finds either the old one or the new one.
fn write_script(path: &Path, text: &[u8]) -> std::io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let new = path.with_extension("linux-patch-new");
    let mut file = std::fs::File::options().create(true).truncate(true).write(true).mode(0o755).open(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

fn is_unfinished_elsewhere(going: &Going<'_>, now: &Now) -> bool {
    now.database.pending_updates() > 0
        || now.database.iter().any(|p| {
            p.problem().is_some()
                && !going.scope.iter().any(|key| key.name == p.name() && key.architecture == p.architecture())
        })
}

fn is_unfinished(now: &Now) -> bool {
    now.database.pending_updates() > 0 || now.database.iter().any(|p| p.problem().is_some())
}

/// A directory that packages are unpacked to and whose file system has no room for the largest of these archives.
fn full(root: &Path, archives: &[String]) -> Option<PathBuf> {
    let largest = archives.iter().filter_map(|path| path.parse::<PathBuf>().ok()?.metadata().ok());
    // dpkg takes back what it could not finish, so there is room again when this looks. Archives are compressed.
    let wanted = largest.map(|m| m.len().saturating_mul(2)).max().unwrap_or(0).max(FULL);
    let directories =
        ["var/lib/dpkg", "usr", "etc", "boot", "var", "opt"].into_iter().map(|dir| root.join(dir));
    directories.into_iter().find(|path| {
        // What is kept back for root is root's to use. File systems without a fixed number of inodes say 0 of 0.
        rustix::fs::statvfs(path).is_ok_and(|fs| {
            fs.f_bfree.saturating_mul(fs.f_frsize) < wanted || fs.f_files > 0 && fs.f_ffree < 64
        })
    })
}

/// Whether nothing outside the scope changed since the snapshot, so that what comes back is known to fit together.
fn is_alone(going: &Going<'_>, now: &Now) -> bool {
    let present = |p: &Installed<'_>| p.is_present();
    let others: BTreeMap<PackageKey, &str> = now
        .database
        .iter()
        .filter(present)
        .map(|p| {
            let key = PackageKey { name: p.name().to_owned(), architecture: p.architecture().to_owned() };
            (key, p.version_text())
        })
        .filter(|(key, _)| !going.scope.contains(key))
        .collect();
    let recorded: BTreeMap<PackageKey, &str> = going
        .snapshot
        .packages
        .iter()
        .filter(|(key, r)| was_present(r) && !going.scope.contains(*key))
        .map(|(key, r)| (key.clone(), r.version.as_str()))
        .collect();
    others == recorded
}

/// What is to be done from here.
fn plan(going: &Going<'_>, now: &Now) -> Round {
    let mut round = Round::default();
    let candidates = surplus(going, now);
    let needed = needed(now, &candidates);
    for key in candidates.difference(&needed) {
        let Some(label) = now.label(key) else { continue };
        if going.recorded(key).is_none() {
            round.purge.push(label);
        } else {
            round.remove.push(label);
        }
    }
    let mut install = Vec::new();
    let neighbours = going.neighbours().filter(|a| {
        // One that somebody changed since is left alone.
        let recorded = going.recorded(&a.key);
        now.find(&a.key).is_some_and(|p| {
            p.is_present() && recorded.is_some_and(|r| was_present(r) && r.version == p.version_text())
        })
    });
    for affected in going.targets().chain(neighbours) {
        let Some(recorded) = going.recorded(&affected.key).filter(|r| was_present(r)) else { continue };
        if proof::is_right(going, affected, recorded, now) {
            continue;
        }
        // One without a usable archive cannot go back; the proof says so and why.
        let archive = affected.archive.as_ref().and_then(|kept| (going.archive)(kept).ok());
        if let Some(path) = archive.as_deref().and_then(Path::to_str).filter(|path| path.starts_with('/')) {
            install.push((takes_over(going, now, &affected.key), path.to_owned()));
        }
    }
    // A package that has taken over files of others gives them up when it goes back itself. Unpacked later, it would take
    // them from the disk after the others have laid them down, or keep them from doing so.
    install.sort_by_key(|(takes_over, _)| !takes_over);
    round.install = install.into_iter().map(|(_, path)| path).collect();
    round
}

/// Whether a package's list now has files that another package's had then.
fn takes_over(going: &Going<'_>, now: &Now, key: &PackageKey) -> bool {
    let Some(p) = now.find(key) else { return false };
    let Ok(files) = info::files(going.root, p) else { return false };
    let own: BTreeSet<&str> = going
        .snapshot
        .affected
        .iter()
        .filter(|a| a.key == *key)
        .flat_map(|a| a.list.iter().map(String::as_str))
        .collect();
    let gained: BTreeSet<&str> = files.iter().map(String::as_str).filter(|f| !own.contains(f)).collect();
    let mut others = going
        .snapshot
        .affected
        .iter()
        .filter(|a| a.key != *key)
        .flat_map(|a| a.list.iter().map(String::as_str));
    others.any(|f| gained.contains(f))
}

/// The packages that were not there and are. One that only changed its architecture is replaced by unpacking.
fn surplus(going: &Going<'_>, now: &Now) -> BTreeSet<PackageKey> {
    let replaced = |key: &PackageKey| {
        going.targets().any(|a| {
            a.key.name == key.name
                && a.key.architecture != key.architecture
                && (a.key.architecture == "all" || key.architecture == "all")
                && going.recorded(&a.key).is_some_and(was_present)
        })
    };
    going
        .scope
        .iter()
        .filter(|key| {
            now.find(key).is_some_and(|p| match going.recorded(key) {
                None => p.status() != PackageStatus::NotInstalled && !replaced(key),
                Some(recorded) => !was_present(recorded) && p.is_present(),
            })
        })
        .cloned()
        .collect()
}

/// Those of the candidates without which an Essential or Protected package, dpkg or apt would lack what it depends on as
/// it is now. They go after the old versions are there, which do not need them.
fn needed(now: &Now, candidates: &BTreeSet<PackageKey>) -> BTreeSet<PackageKey> {
    let mut providers: BTreeMap<&str, Vec<Installed<'_>>> = BTreeMap::new();
    for p in now.database.iter().filter(|p| p.is_present()) {
        for provided in relations::groups(p.provides()).flat_map(relations::alternatives) {
            providers.entry(provided.name).or_default().push(p);
        }
    }
    let key_of = |p: Installed<'_>| PackageKey {
        name: p.name().to_owned(),
        architecture: p.architecture().to_owned(),
    };
    let mut queue: VecDeque<Installed<'_>> = now
        .database
        .iter()
        .filter(|p| p.is_present())
        .filter(|p| p.essential() || p.protected() || matches!(p.name(), "dpkg" | "apt"))
        .collect();
    let mut seen: BTreeSet<PackageKey> = queue.iter().map(|p| key_of(*p)).collect();
    while let Some(p) = queue.pop_front() {
        for group in relations::groups(p.pre_depends()).chain(relations::groups(p.depends())) {
            let satisfying: Vec<Installed<'_>> = relations::alternatives(group)
                .flat_map(|alternative| {
                    let real = now
                        .database
                        .named(alternative.name)
                        .filter(move |p| p.is_present() && alternative.accepts(p.version_text()));
                    let provided = providers
                        .get(alternative.name)
                        .into_iter()
                        .flatten()
                        .copied()
                        .filter(move |p| alternative.provided_by(p.provides()));
                    real.chain(provided).collect::<Vec<_>>()
                })
                .collect();
            let stays = satisfying.iter().any(|p| !candidates.contains(&key_of(*p)));
            for p in satisfying {
                let key = key_of(p);
                // What stays anyway makes the candidates beside it dispensable.
                if (!stays || !candidates.contains(&key)) && seen.insert(key) {
                    queue.push_back(p);
                }
            }
        }
    }
    candidates.intersection(&seen).cloned().collect()
}

/// The command lines that set marks and wants right, each with the packages that it names.
pub(super) fn marks_due(going: &Going<'_>, now: &Now) -> Vec<(Vec<String>, Argv)> {
    let (mut auto, mut manual) = (Vec::new(), Vec::new());
    let mut wants: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for key in going.scope {
        let (Some(recorded), Some(p), Some(label)) = (going.recorded(key), now.find(key), now.label(key))
        else {
            continue;
        };
        // A mark on what is not as it was would be about something else.
        if was_present(recorded) != p.is_present() {
            continue;
        }
        if was_present(recorded) && recorded.auto != now.is_auto(p) {
            if recorded.auto { auto.push(label.clone()) } else { manual.push(label.clone()) }
        }
        if recorded.want != want_word(p.want()) {
            wants.entry(recorded.want.as_str()).or_default().push(label);
        }
    }
    for neighbour in going.neighbours() {
        // Unpacking one drops its hold. Whatever else differs is not our doing.
        let held = going.recorded(&neighbour.key).is_some_and(|r| r.want == "hold");
        if let (true, Some(p), Some(label)) = (held, now.find(&neighbour.key), now.label(&neighbour.key))
            && p.is_present()
            && want_word(p.want()) == "install"
        {
            wants.entry("hold").or_default().push(label);
        }
    }
    let marks = [(auto, true), (manual, false)].into_iter().map(|(names, auto)| {
        let argv = argv::mark(going.root, &names, auto);
        (names, argv)
    });
    let wants = wants.into_iter().filter_map(|(want, names)| {
        let argv = argv::select(going.root, &names, want)?;
        Some((names, argv))
    });
    marks.chain(wants).filter(|(names, _)| !names.is_empty()).collect()
}

/// Restores marks, holds and other wants.
pub(super) fn marks(going: &Going<'_>, stage: &mut dyn Stage) -> Result<(), GoBackError> {
    for (_, argv) in marks_due(going, &Now::read(going.root)?) {
        stage.run(argv)?;
    }
    Ok(())
}

/// Starts the units that were active and are not. Gives those that could not be started. Only on the running system.
pub(super) fn units(going: &Going<'_>, stage: &mut dyn Stage) -> Vec<String> {
    if going.root != Path::new("/") || !Path::new("/run/systemd/system").exists() {
        return Vec::new();
    }
    let is_active =
        |unit: &str| run::capture(&argv::unit_is_active(unit), START).is_ok_and(|c| c.code == Some(0));
    let mut still = Vec::new();
    for unit in going.snapshot.active_units.iter().filter(|unit| !is_active(unit)) {
        // A client that is given up on changes nothing: systemd goes on starting the unit.
        match run::capture(&argv::start_unit(unit), START) {
            Ok(captured) if captured.code == Some(0) => stage.say(format!("{unit} was started again")),
            Ok(captured) => {
                stage.say(format!("{unit} could not be started again: {}", captured.text().trim()));
                still.push(unit.clone());
            }
            Err(error) => {
                stage.say(format!("{unit} could not be started again: {error}"));
                still.push(unit.clone());
            }
        }
    }
    still
}
