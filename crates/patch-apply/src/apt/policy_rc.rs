//! Keeps packages' scripts from restarting services for as long as one change lasts.
//!
//! `invoke-rc.d` and `deb-systemd-invoke` ask `/usr/sbin/policy-rc.d` before they touch a service. For a change one of ours
//! takes its place. It forbids only what this change's own scripts ask, by their environment, so that one which is left
//! behind does no harm; everything else is asked of the one that was there before. That one is set aside by a second name
//! and comes back by a rename: the same file, and at no moment none.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use patch_types::{JobId, executor::JOURNAL_DIR, settings::is_unit_name};

use crate::run::JOB;

/// Where Debian's tools look for it, below the root.
pub const POLICY: &str = "usr/sbin/policy-rc.d";

/// The one that was there before, below the root.
pub const BEFORE: &str = "usr/sbin/policy-rc.d.linux-patch-before";

/// Ours until it is whole.
const DRAFT: &str = "usr/sbin/policy-rc.d.linux-patch-new";

/// The file in a change's journal with what was held back: a service a line.
pub const HELD_BACK: &str = "held-back";

/// By this line ours is known.
const MARK: &str = "# Made by linux-patch-api for the time of one change";

/// How much of a file is read to know it, and of the list of what was held back, in bytes.
const MOST: u64 = 64 << 10;

/// The file in a change's journal with what scripts stopped although it is named: a service a line.
pub const STOPPED: &str = "stopped";

/// The file in a change's journal with the calls that were given up whole because one of their services is held back: a word
/// a line.
pub const TOGETHER: &str = "together";

/// What is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldBack<'a> {
    /// The change.
    pub job: JobId,
    /// The services.
    pub services: &'a [Service],
    /// Names of packages that the change removes: their scripts may stop what goes with them.
    pub removed: Vec<&'a str>,
}

/// A service that is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name, with `.service`.
    pub unit: String,
    /// Every unit of which a restart restarts it: its own names, and those of what it is a part of.
    pub asked: Vec<String>,
}

impl Service {
    /// The words that scripts may ask by, each once. The shell takes backslashes away on the way to us.
    fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        for name in std::iter::once(&self.unit).chain(&self.asked).filter(|name| is_unit_name(name)) {
            for word in [name.as_str(), name.strip_suffix(".service").unwrap_or(name)] {
                for word in [word.to_owned(), word.replace('\\', "")] {
                    if !words.contains(&word) {
                        words.push(word);
                    }
                }
            }
        }
        words
    }
}

/// Why it could not be put in place or taken away.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be replaced: {source}")]
pub struct PolicyError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// What was found when it was to be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// Ours was not there.
    Nothing,
    /// It is gone, and what was there before is there again.
    Restored,
    /// Somebody else has put another one in its place meanwhile, which stays; the one before is gone.
    Replaced,
}

/// The script.
///
/// A stop is let through, since a script that stops its service goes on as if it were down; but not those of PostgreSQL's
/// servers, which stop at each upgrade, touch no data and only start it again.
fn script(held: &HoldBack<'_>) -> String {
    let is_name = |name: &&str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(&b))
    };
    let removed: Vec<String> = held.removed.iter().copied().filter(is_name).map(quoted).collect();
    let own =
        if removed.is_empty() { String::new() } else { format!("        {}) ;;\n", removed.join(" | ")) };
    let mut services = String::new();
    for service in held.services.iter().filter(|service| is_unit_name(&service.unit)) {
        let words: Vec<String> = service.words().iter().map(|word| quoted(word)).collect();
        services.push_str(&format!("        hold {} {}\n", quoted(&service.unit), words.join(" ")));
    }
    let job = held.job;
    format!(
        r#"#!/bin/sh
{MARK}, and taken away after it:
# restarts of some services wait for the declared window. Everything else is answered by the one that was
# here before, if there was one: /{BEFORE}
name= action= file= held=
hold() {{
    unit=$1
    shift
    for known; do
        # The name that is asked for may be a pattern.
        case "$known" in "$name" | $name) ;; *) continue ;; esac
        # What does not run is not kept from being started.
        case "$(systemctl is-active -- "$unit" 2>/dev/null)" in inactive | failed | unknown) return ;; esac
        printf '%s\n' "$unit" >>"/{JOURNAL_DIR}/{job}/$file"
        if [ "$file" = '{HELD_BACK}' ]; then held=yes; fi
        return
    done
}}
if [ "${{{JOB}-}}" = '{job}' ]; then
    for word; do
        case "$word" in
        -*) ;;
        *) if [ -z "$name" ]; then name=$word; elif [ -z "$action" ]; then action=$word; fi ;;
        esac
    done
    case "$action" in
    *restart* | *force-reload*) file='{HELD_BACK}' ;;
    *stop*)
        case "${{DPKG_MAINTSCRIPT_PACKAGE-}}" in
{own}        postgresql-[0-9]*) file='{HELD_BACK}' ;;
        *) file='{STOPPED}' ;;
        esac
        ;;
    esac
    if [ -n "$name" ] && [ -n "$file" ]; then
        :
{services}    fi
    if [ -n "$held" ]; then
        # The tool that asks gives up its whole call, and does not ask about the services that follow.
        asks=$PPID
        for step in tool shell; do
            if [ "$action" != restart ]; then break; fi
            call=$(tr '\0' '\n' <"/proc/$asks/cmdline" 2>/dev/null)
            case "$call" in
            *deb-systemd-invoke*)
                printf '%s\n' "$call" >>"/{JOURNAL_DIR}/{job}/{TOGETHER}"
                break
                ;;
            esac
            # A shell may stand between.
            asks=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$asks/status" 2>/dev/null)
        done
        exit 101
    fi
fi
if [ -x /{BEFORE} ]; then exec /{BEFORE} "$@"; fi
exit 0
"#
    )
}

/// As one word for the shell. What is quoted has no quotes.
fn quoted(word: &str) -> String {
    format!("'{word}'")
}

/// Puts ours in place. To be called by whoever has the turn.
///
/// # Errors
/// When it cannot; then nothing is changed.
pub fn install(root: &Path, held: &HoldBack<'_>) -> Result<(), PolicyError> {
    let policy = root.join(POLICY);
    put(root, &policy, script(held).as_bytes()).map_err(|source| PolicyError { path: policy, source })
}

fn put(root: &Path, policy: &Path, text: &[u8]) -> io::Result<()> {
    // Whatever an earlier one left, the one that was there before is there again first.
    take_away(root, policy)?;
    let (before, draft) = (root.join(BEFORE), root.join(DRAFT));
    let mut file = File::options().write(true).create_new(true).mode(0o755).open(&draft)?;
    let written = file
        .write_all(text)
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(0o755)))
        .and_then(|()| file.sync_all())
        .and_then(|()| match fs::symlink_metadata(policy) {
            Ok(meta) if meta.is_dir() => Err(io::Error::other("it is a directory")),
            Ok(_) => fs::hard_link(policy, &before),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        })
        // On disk before it takes the other's place.
        .and_then(|()| sync_directory(policy))
        .and_then(|()| fs::rename(&draft, policy))
        .and_then(|()| sync_directory(policy));
    if let Err(error) = written {
        let _ = take_away(root, policy);
        return Err(error);
    }
    Ok(())
}

/// Takes ours away, whoever put it there and however far he came: what was there before is there again. To be called by
/// whoever has the turn.
///
/// # Errors
/// When it cannot.
pub fn remove(root: &Path) -> Result<Removed, PolicyError> {
    let policy = root.join(POLICY);
    take_away(root, &policy).map_err(|source| PolicyError { path: policy, source })
}

fn take_away(root: &Path, policy: &Path) -> io::Result<Removed> {
    let (before, draft) = (root.join(BEFORE), root.join(DRAFT));
    let had_draft = remove_if_there(&draft)?;
    let now = found(policy)?;
    let Some(saved) = found(&before)? else {
        if now.is_some() && is_ours(policy)? {
            fs::remove_file(policy)?;
            sync_directory(policy)?;
            return Ok(Removed::Restored);
        }
        return Ok(if had_draft { Removed::Restored } else { Removed::Nothing });
    };
    let removed = match now {
        // Ours had not taken its place yet. A rename of a file to another name of itself does nothing.
        Some(now) if now == saved => {
            fs::remove_file(&before)?;
            Removed::Restored
        }
        // Only what was read and is another's makes the one before superfluous.
        Some(_) if !is_ours(policy)? => {
            fs::remove_file(&before)?;
            Removed::Replaced
        }
        Some(_) | None => {
            fs::rename(&before, policy)?;
            Removed::Restored
        }
    };
    sync_directory(policy)?;
    Ok(removed)
}

/// Device and number of a file, nothing followed; none if there is none.
fn found(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether it was there. Where it is not nothing is asked that a read-only file system refuses.
fn remove_if_there(path: &Path) -> io::Result<bool> {
    if found(path)?.is_none() {
        return Ok(false);
    }
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_ours(path: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(false);
    }
    Ok(read_some(path)?.lines().nth(1).is_some_and(|line| line.starts_with(MARK)))
}

fn read_some(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// The services that a change's scripts were kept from restarting, each once. `journal` is the change's own directory.
#[must_use]
pub fn held_back(journal: &Path) -> Vec<String> {
    listed(journal, HELD_BACK)
}

/// The services that a change's scripts stopped, which they may, each once.
#[must_use]
pub fn stopped(journal: &Path) -> Vec<String> {
    listed(journal, STOPPED)
}

/// The services that scripts wanted to restart together with one that was held back, each once; that one is among them.
#[must_use]
pub fn together(journal: &Path) -> Vec<String> {
    let units = listed(journal, TOGETHER);
    units.into_iter().filter(|unit| unit.ends_with(".service")).collect()
}

fn listed(journal: &Path, name: &str) -> Vec<String> {
    let text = read_some(&journal.join(name)).unwrap_or_default();
    let mut units: Vec<String> = text.lines().filter(|unit| is_unit_name(unit)).map(str::to_owned).collect();
    units.sort();
    units.dedup();
    units
}

/// Forgets these lists: what they say is seen to.
///
/// # Errors
/// When one cannot be removed.
pub fn forget(journal: &Path) -> io::Result<()> {
    for name in [HELD_BACK, STOPPED, TOGETHER] {
        remove_if_there(&journal.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, process::Command};

    use tempfile::TempDir;
    use uuid::Uuid;

    use super::*;

    const THEIRS: &str = "#!/bin/sh\nexit 104\n";

    fn root() -> TempDir {
        let root = TempDir::new().unwrap();
        fs::create_dir_all(root.path().join("usr/sbin")).unwrap();
        root
    }

    fn job() -> JobId {
        JobId(Uuid::from_u128(7))
    }

    fn names() -> Vec<Service> {
        let service = |unit: &str, asked: &[&str]| Service {
            unit: unit.to_owned(),
            asked: asked.iter().map(ToString::to_string).collect(),
        };
        vec![
            service("nginx.service", &["web.service"]),
            service("a\\x2db.service", &[]),
            service("x@1-main.service", &["x.service"]),
        ]
    }

    fn hold(services: &[Service]) -> HoldBack<'_> {
        HoldBack { job: job(), services, removed: vec!["gone", "it's"] }
    }

    fn write(root: &Path, text: &str) -> (u64, u64) {
        let path = root.join(POLICY);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o751)).unwrap();
        found(&path).unwrap().unwrap()
    }

    fn names_in(root: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(root.join("usr/sbin"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_there_comes_back_as_the_same_file() {
        let root = root();
        let root = root.path();
        let names = names();
        assert_eq!(remove(root).unwrap(), Removed::Nothing);
        install(root, &hold(&names)).unwrap();
        assert!(is_ours(&root.join(POLICY)).unwrap());
        assert_eq!(remove(root).unwrap(), Removed::Restored);
        assert!(names_in(root).is_empty());

        let theirs = write(root, THEIRS);
        for _ in 0..2 {
            install(root, &hold(&names)).unwrap();
        }
        // Of another change, whose process is dead.
        install(root, &HoldBack { job: JobId(Uuid::from_u128(8)), ..hold(&names) }).unwrap();
        assert_eq!(found(&root.join(BEFORE)).unwrap(), Some(theirs));
        assert_eq!(remove(root).unwrap(), Removed::Restored);
        assert_eq!(found(&root.join(POLICY)).unwrap(), Some(theirs));
        assert_eq!(fs::metadata(root.join(POLICY)).unwrap().mode() & 0o7777, 0o751);
        assert_eq!(names_in(root), ["policy-rc.d"]);

        // A link of the administrator's, such as one of update-alternatives.
        fs::rename(root.join(POLICY), root.join("usr/sbin/mine")).unwrap();
        symlink("mine", root.join(POLICY)).unwrap();
        install(root, &hold(&names)).unwrap();
        assert!(is_ours(&root.join(POLICY)).unwrap());
        assert_eq!(remove(root).unwrap(), Removed::Restored);
        assert_eq!(fs::read_link(root.join(POLICY)).unwrap(), Path::new("mine"));
        assert_eq!(fs::read_to_string(root.join("usr/sbin/mine")).unwrap(), THEIRS);
    }

    #[test]
    fn whereever_it_was_cut_off_what_was_there_comes_back() {
        let names = names();
        let ours = script(&hold(&names));
        // The draft alone; the second name; ours in place.
        for step in 0..3 {
            for had in [false, true] {
                let root = root();
                let root = root.path();
                let theirs = had.then(|| write(root, THEIRS));
                fs::write(root.join(DRAFT), if step == 0 { &ours[..9] } else { &ours }).unwrap();
                if step > 0 && had {
                    fs::hard_link(root.join(POLICY), root.join(BEFORE)).unwrap();
                }
                if step > 1 {
                    fs::rename(root.join(DRAFT), root.join(POLICY)).unwrap();
                }
                remove(root).unwrap();
                assert_eq!(found(&root.join(POLICY)).unwrap(), theirs, "{step} {had}");
                assert_eq!(names_in(root).len(), usize::from(had), "{step} {had}");
            }
        }
    }

    #[test]
    fn anothers_change_of_it_stays() {
        let root = root();
        let root = root.path();
        let names = names();
        write(root, THEIRS);
        install(root, &hold(&names)).unwrap();
        // As a package does that brings one.
        fs::write(root.join("usr/sbin/policy-rc.d.dpkg-new"), "#!/bin/sh\nexit 0\n").unwrap();
        fs::rename(root.join("usr/sbin/policy-rc.d.dpkg-new"), root.join(POLICY)).unwrap();
        assert_eq!(remove(root).unwrap(), Removed::Replaced);
        assert_eq!(fs::read_to_string(root.join(POLICY)).unwrap(), "#!/bin/sh\nexit 0\n");
        assert_eq!(names_in(root), ["policy-rc.d"]);
        // Or takes it away.
        install(root, &hold(&names)).unwrap();
        fs::remove_file(root.join(POLICY)).unwrap();
        assert_eq!(remove(root).unwrap(), Removed::Restored);
        assert_eq!(names_in(root), ["policy-rc.d"]);
        fs::remove_file(root.join(POLICY)).unwrap();
        fs::create_dir(root.join(POLICY)).unwrap();
        assert!(install(root, &hold(&names)).unwrap_err().to_string().contains("usr/sbin/policy-rc.d"));
        assert_eq!(names_in(root), ["policy-rc.d"]);
    }

    /// The script's answers, with the paths in it moved below a directory.
    #[test]
    fn only_this_changes_restarts_are_forbidden() {
        let root = root();
        let root = root.path();
        let names = names();
        let journal = root.join(JOURNAL_DIR).join(job().to_string());
        fs::create_dir_all(&journal).unwrap();
        fs::create_dir_all(root.join("bin")).unwrap();
        let systemctl = root.join("bin/systemctl");
        let text = script(&hold(&names))
            .replace(&format!("/{BEFORE}"), &root.join(BEFORE).display().to_string())
            .replace(&format!("/{JOURNAL_DIR}"), &root.join(JOURNAL_DIR).display().to_string());
        fs::write(root.join("script"), text).unwrap();
        fs::write(root.join(BEFORE), "#!/bin/sh\necho \"$@\"; exit 104\n").unwrap();
        fs::set_permissions(root.join(BEFORE), fs::Permissions::from_mode(0o755)).unwrap();
        let state = |state: &str| {
            fs::write(&systemctl, format!("#!/bin/sh\necho {state}\n")).unwrap();
            fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        };
        let ask = |job: &str, package: &str, words: &[&str]| {
            let mut command = Command::new("/bin/sh");
            command.arg(root.join("script")).args(words).env_clear();
            command.env("PATH", format!("{}:/usr/bin:/bin", root.join("bin").display()));
            command.env(JOB, job).env("DPKG_MAINTSCRIPT_PACKAGE", package);
            command.output().unwrap().status.code()
        };
        let mine = job().to_string();
        state("active");
        for (words, code) in [
            (&["nginx.service", "restart"][..], 101),
            (&["--quiet", "nginx", "restart", "2"], 101),
            (&["nginx", "(restart)"], 101),
            (&["web", "force-reload"], 101),
            (&["ngin?.service", "restart"], 101),
            (&["nginx", "try-restart"], 101),
            (&["a\\x2db.service", "restart"], 101),
            (&["ax2db.service", "restart"], 101),
            (&["x@1-*", "restart"], 101),
            (&["x@1-*.service", "restart"], 101),
            (&["x", "restart"], 101),
            (&["x@2-*", "restart"], 104),
            (&["x@2-main.service", "restart"], 104),
            // What is stopped is relied upon to be down.
            (&["nginx", "stop"], 104),
            (&["nginx", "start"], 104),
            (&["nginx", "reload"], 104),
            (&["nginx2", "restart"], 104),
            (&["a-b", "restart"], 104),
            (&[], 104),
        ] {
            assert_eq!(ask(&mine, "nginx", words), Some(code), "{words:?}");
        }
        assert_eq!(ask("", "nginx", &["nginx", "restart"]), Some(104), "somebody else's");
        assert_eq!(stopped(&journal), ["nginx.service"]);
        forget(&journal).unwrap();
        assert_eq!(ask(&mine, "gone", &["nginx", "stop"]), Some(104), "its package goes");
        assert!(stopped(&journal).is_empty());
        assert_eq!(ask(&mine, "gone", &["nginx", "restart"]), Some(101), "another's that goes may only stop");
        assert_eq!(ask(&mine, "postgresql-15", &["x@1-*", "stop"]), Some(101));
        state("inactive");
        assert_eq!(ask(&mine, "nginx", &["nginx", "restart"]), Some(104), "it does not run");
        state("");
        assert_eq!(ask(&mine, "nginx", &["nginx", "restart"]), Some(101), "not known");
        assert_eq!(ask(&mine, "nginx", &["a\\x2db", "restart"]), Some(101));
        assert_eq!(held_back(&journal), ["a\\x2db.service", "nginx.service", "x@1-main.service"]);
        fs::remove_file(root.join(BEFORE)).unwrap();
        assert_eq!(ask(&mine, "x", &["nginx2", "restart"]), Some(0), "as if there were none");
    }

    /// Debian's own tool, which asks by patterns and through a shell.
    #[test]
    fn debians_tool_is_answered() {
        const TOOL: &str = "/usr/bin/deb-systemd-invoke";
        if !Path::new(TOOL).exists() {
            return;
        }
        let root = root();
        let root = root.path();
        let names = names();
        let journal = root.join(JOURNAL_DIR).join(job().to_string());
        fs::create_dir_all(&journal).unwrap();
        fs::create_dir_all(root.join("bin")).unwrap();
        let text = script(&hold(&names))
            .replace(&format!("/{JOURNAL_DIR}"), &root.join(JOURNAL_DIR).display().to_string());
        let log = root.join("log");
        let systemctl = format!(
            "#!/bin/sh\ncase \"$*\" in *is-active*) echo active ;; *is-enabled*) echo enabled ;; *) echo \"$*\" >>{} ;; esac\n",
            log.display()
        );
        for (path, text) in [(POLICY, &text), ("bin/systemctl", &systemctl)] {
            fs::write(root.join(path), text).unwrap();
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let together = || {
            let units = super::together(&journal);
            remove_if_there(&journal.join(TOGETHER)).unwrap();
            units
        };
        let done = |package: &str, words: &[&str]| {
            let mut command = Command::new(TOOL);
            command.args(words).env_clear().current_dir(root).env("DPKG_ROOT", root);
            command.env("PATH", format!("{}:/usr/bin:/bin", root.join("bin").display()));
            command.env(JOB, job().to_string()).env("DPKG_MAINTSCRIPT_PACKAGE", package);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let said = fs::read_to_string(&log).unwrap_or_default();
            let _ = fs::remove_file(&log);
            !said.is_empty()
        };
        assert!(!done("postgresql-15", &["stop", "x@1-*"]));
        assert!(!done("any", &["restart", "x@1-*"]));
        assert!(!done("any", &["restart", "a\\x2db.service"]));
        assert!(!done("any", &["restart", "x.service"]));
        assert!(done("any", &["restart", "other.service"]));
        assert!(done("any", &["stop", "x@1-*"]));
        together();
        assert!(!done("any", &["restart", "new.service", "x@1-main.service", "newer.service", "new.timer"]));
        assert_eq!(together(), ["new.service", "newer.service", "x@1-main.service"]);
        assert!(!done("postgresql-15", &["stop", "other.service", "x@1-*"]) && together().is_empty());
        assert_eq!(held_back(&journal), ["a\\x2db.service", "x@1-main.service"]);
    }

    #[test]
    fn the_one_before_is_kept_while_it_is_not_known_what_is_there() {
        let root = root();
        let root = root.path();
        let names = names();
        let theirs = write(root, THEIRS);
        install(root, &hold(&names)).unwrap();
        // Something that cannot be read as a file can: of the kernel's, which reads with an error.
        fs::remove_file(root.join(POLICY)).unwrap();
        assert!(is_ours(Path::new("/proc/self/mem")).is_err());
        install(root, &hold(&names)).unwrap();
        assert_eq!(found(&root.join(BEFORE)).unwrap(), Some(theirs));
        assert_eq!(remove(root).unwrap(), Removed::Restored);
        assert_eq!(found(&root.join(POLICY)).unwrap(), Some(theirs));
    }
}
