//! `check-config`: what the service would say of its files, before it has to.
//!
//! Root may read everything, so it is no measure: what the service reads itself is read in a thread that has taken on the
//! service's user and groups, and the kernel decides. The server's key is root's to hand over, the ceiling is the root
//! side's to read, so these two are read as root.

use std::{
    ffi::CString,
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::unistd::{User, getgrouplist};
use patch_types::{executor::DAEMON_USER, terminal::escaped};
use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    process::{geteuid, getuid},
    thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{exit, print, print_json, reach::Reach};
use crate::{
    certificates,
    config::{self, Settings},
};

/// The longest allow list that is read, in bytes, as the service reads it.
const MAX_LIST: u64 = 16 << 20;

pub(super) fn execute(root: &Path, json: bool, configuration_only: bool) -> anyhow::Result<u8> {
    let findings = examine(root, configuration_only)?;
    let valid = findings.problems.is_empty();
    if json {
        let report = serde_json::json!({
            "valid": valid,
            "problems": findings.problems,
            "notes": findings.notes,
            "inactive": findings.inactive,
        });
        print_json(&report)?;
    } else {
        // Names and texts of others, a line each, and all of them to be seen.
        let lines = findings.problems.iter().map(|problem| format!("error: {}\n", escaped(problem)));
        let mut text: String = lines.collect();
        for section in findings.inactive {
            text.push_str(&format!("note: {section} is valid, but this version does not act upon it\n"));
        }
        for note in &findings.notes {
            text.push_str(&format!("note: {}\n", escaped(note)));
        }
        if valid {
            text.push_str("the configuration is valid\n");
        }
        print(&text)?;
    }
    Ok(if valid { exit::OK } else { exit::NOT_IN_ORDER })
}

/// What was found.
#[derive(Debug, Default)]
struct Findings {
    /// Because of these it is not valid.
    problems: Vec<String>,
    /// What could not be looked at, or not as it will be.
    notes: Vec<String>,
    /// Sections without effect.
    inactive: Vec<&'static str>,
}

fn examine(root: &Path, configuration_only: bool) -> anyhow::Result<Findings> {
    let mut found = Findings::default();
    let reader = Reader::new(root, &mut found.notes)?;
    let settings = match reader.run(|| config::load(root))? {
        Ok(settings) => Some(settings),
        Err(error) => {
            found.problems.extend(match reader.refused(&[root.join(config::CONFIG)])? {
                refused if refused.is_empty() => error.problems(),
                refused => refused,
            });
            None
        }
    };
    if let Some(settings) = &settings {
        found.inactive.clone_from(&settings.inactive);
    }
    if configuration_only {
        return Ok(found);
    }
    reader.allow_list(root, &mut found.problems)?;
    if let Some(settings) = &settings {
        // Below another root it is not this host's unit that will read them.
        let files = if root == Path::new("/") { read_by_service(settings) } else { Vec::new() };
        let hidden: Vec<_> = files.into_iter().filter_map(hidden).collect();
        if hidden.is_empty() {
            reader.certificates(settings, &mut found)?;
        }
        found.problems.extend(hidden);
    }
    match patch_backends::ceiling::load(root) {
        Ok(_) => {}
        Err(_) if !geteuid().is_root() && is_unreadable(&root.join(patch_backends::ceiling::FILE)) => {
            found.notes.push("ceiling.yaml is root's to read; called by root this checks it".to_owned());
        }
        Err(problem) => found.problems.push(format!("{problem}; until then nothing is changed on this host")),
    }
    found.problems.extend(changeable(root, settings.as_ref()));
    Ok(found)
}

/// What others than root may change of what root configures, each with what to do.
pub(super) fn changeable(root: &Path, settings: Option<&Settings>) -> Vec<String> {
    let mut files: Vec<PathBuf> = [config::CONFIG, config::WHITELIST, patch_backends::ceiling::FILE]
        .into_iter()
        .map(|file| root.join(file))
        .collect();
    let mut problems = Vec::new();
    if let Some(settings) = settings {
        files.extend(read_by_service(settings).into_iter().map(Path::to_owned));
        let key = &settings.tls.server_key;
        files.push(key.clone());
        if let Ok(meta) = fs::metadata(key)
            && meta.mode() & 0o007 != 0
        {
            let path = key.display();
            problems.push(format!("{path} can be read by everybody on this host: chmod 600 {path}"));
        }
    }
    // A tree of whoever tries it is that one's own.
    let owner = if root == Path::new("/") { 0 } else { geteuid().as_raw() };
    let mut reach = Reach::new(root, owner);
    problems.extend(files.iter().flat_map(|file| reach.problems(file)));
    problems
}

/// What the service reads itself, the key and the allow list apart.
fn read_by_service(settings: &Settings) -> Vec<&Path> {
    let tls = &settings.tls;
    let files = [tls.ca_cert.as_path(), &tls.server_cert, &tls.crl];
    files.into_iter().chain(settings.remote_syslog_ca.as_deref()).collect()
}

/// What the service's sandbox hides from it, and the setting that does.
const HIDDEN: [(&str, &str); 5] = [
    ("/home", "ProtectHome"),
    ("/root", "ProtectHome"),
    ("/run/user", "ProtectHome"),
    ("/tmp", "PrivateTmp"),
    ("/var/tmp", "PrivateTmp"),
];

/// Whether a file, or what a link there leads to, is where the service sees something else.
fn hidden(file: &Path) -> Option<String> {
    let real = fs::canonicalize(file).ok();
    let (directory, setting) = HIDDEN.into_iter().find(|(below, _)| {
        [Some(file), real.as_deref()].into_iter().flatten().any(|path| path.starts_with(below))
    })?;
    Some(format!(
        "{} is below {directory}, which the service cannot see ({setting} of its unit): move it to /etc/linux_patch_api/certs",
        file.display()
    ))
}

/// Who reads.
struct Reader {
    /// The service's user with its groups; without one it is whoever called.
    service: Option<Service>,
}

struct Service {
    user: Uid,
    group: Gid,
    groups: Vec<Gid>,
}

impl Service {
    /// The service's user as this host knows it.
    fn find() -> anyhow::Result<Option<Self>> {
        let Some(user) = User::from_name(DAEMON_USER).context("cannot look up the service's user")? else {
            return Ok(None);
        };
        let name = CString::new(DAEMON_USER)?;
        let groups =
            getgrouplist(&name, user.gid).context("cannot look up the groups of the service's user")?;
        Ok(Some(Self {
            user: Uid::from_raw(user.uid.as_raw()),
            group: Gid::from_raw(user.gid.as_raw()),
            groups: groups.into_iter().map(|group| Gid::from_raw(group.as_raw())).collect(),
        }))
    }

    /// Has the calling thread act as this user; the kernel takes its effective capabilities away with that. It stays root's by
    /// its other ids: whoever is this user could signal or stop it otherwise.
    fn take_on(&self) -> rustix::io::Result<()> {
        set_thread_groups(&self.groups)?;
        set_thread_res_gid(self.group, self.group, self.group)?;
        set_thread_res_uid(Uid::ROOT, self.user, Uid::ROOT)
    }
}

impl Reader {
    fn new(root: &Path, notes: &mut Vec<String>) -> anyhow::Result<Self> {
        let as_caller = Self { service: None };
        // Below another root the directories above it are not those of the host that it is for.
        if root != Path::new("/") {
            return Ok(as_caller);
        }
        if !getuid().is_root() {
            let is_service = User::from_name(DAEMON_USER).ok().flatten();
            if is_service.is_none_or(|user| user.uid.as_raw() != getuid().as_raw()) {
                let note = format!("read as you; called by root this reads as {DAEMON_USER} does");
                notes.push(note);
            }
            return Ok(as_caller);
        }
        let Some(service) = Service::find()? else {
            notes.push(format!(
                "read as root: there is no user {DAEMON_USER} here yet, as the package makes it"
            ));
            return Ok(as_caller);
        };
        let reader = Self { service: Some(service) };
        match reader.run(|| ()) {
            Ok(()) => Ok(reader),
            Err(error) => {
                notes.push(format!(
                    "read as root, since {error:#}: whether {DAEMON_USER} can read the files is open"
                ));
                Ok(as_caller)
            }
        }
    }

    /// Does something as the service's user, in a thread that ends with it.
    fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let Some(service) = &self.service else { return Ok(what()) };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .spawn_scoped(scope, || service.take_on().map(|()| what()))
                .context("no thread can be started")?;
            let done = thread.join().map_err(|_| anyhow::anyhow!("the check ended badly"))?;
            done.with_context(|| format!("this process cannot take on the user {DAEMON_USER}"))
        })
    }

    /// Which of the files are there and cannot be read, and what to do.
    fn refused(&self, files: &[PathBuf]) -> anyhow::Result<Vec<String>> {
        let who = if self.service.is_some() {
            format!("the service's user {DAEMON_USER}")
        } else {
            "you".to_owned()
        };
        // Where links lead, the service may not be able to see.
        let files: Vec<_> = files.iter().map(|file| (file, fs::canonicalize(file).ok())).collect();
        self.run(|| files.iter().filter_map(|(file, real)| refused(file, real.as_deref(), &who)).collect())
    }

    fn allow_list(&self, root: &Path, problems: &mut Vec<String>) -> anyhow::Result<()> {
        let path = root.join(config::WHITELIST);
        match self.run(|| patch_files::read_text(&path, MAX_LIST))? {
            Ok(text) => {
                if let Err(error) = patch_service::AllowList::parse(&text, &path.display().to_string()) {
                    problems.push(error.to_string());
                }
            }
            Err(error) => match self.refused(std::slice::from_ref(&path))? {
                refused if refused.is_empty() => problems.push(format!(
                    "{}: {error}; without it everyone is denied: write it, a sample is {}",
                    path.display(),
                    config::WHITELIST_SAMPLE
                )),
                refused => problems.extend(refused),
            },
        }
        Ok(())
    }

    fn certificates(&self, settings: &Settings, found: &mut Findings) -> anyhow::Result<()> {
        let files: Vec<PathBuf> = read_by_service(settings).into_iter().map(Path::to_owned).collect();
        let refused = self.refused(&files)?;
        if !refused.is_empty() {
            found.problems.extend(refused);
            return Ok(());
        }
        let checked = match certificates::server_key(settings) {
            Ok(key) => self.run(|| certificates::load(settings, &key).map(drop))?,
            Err(_) if !getuid().is_root() && is_unreadable(&settings.tls.server_key) => {
                found.notes.push(format!(
                    "whether the key belongs to the certificate is open: {} is root's to read",
                    settings.tls.server_key.display()
                ));
                self.run(|| certificates::load_without_key(settings))?
            }
            Err(error) => Err(error.into()),
        };
        found.problems.extend(checked.err().map(|error| format!("{error:#}")));
        Ok(())
    }
}

pub(super) fn is_unreadable(path: &Path) -> bool {
    patch_files::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// Whether the modes let the calling thread, as the user that it acts as.
fn may(path: &Path, access: Access) -> bool {
    accessat(CWD, path, access, AtFlags::EACCESS).is_ok()
}

/// What keeps the calling thread from reading a file, and what to do.
fn refused(path: &Path, real: Option<&Path>, who: &str) -> Option<String> {
    // What is no file is told where it is read.
    let error = patch_files::open(path).err().filter(|error| error.kind() == ErrorKind::PermissionDenied)?;
    let above = |path: &'_ Path| {
        let mut above: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_owned).collect();
        above.reverse();
        above
    };
    let closed = above(path)
        .into_iter()
        .chain(real.map(above).into_iter().flatten())
        .find(|directory| !directory.as_os_str().is_empty() && !may(directory, Access::EXEC_OK));
    let file = path.display();
    Some(match closed {
        Some(directory) => {
            // What is not ours to open may be closed for a reason.
            let is_ours = directory.ancestors().any(|above| above.ends_with("etc/linux_patch_api"));
            let directory = directory.display();
            let advice = if is_ours {
                format!("chmod 755 {directory}")
            } else {
                "move it to /etc/linux_patch_api/certs".to_owned()
            };
            format!("{who} cannot read {file}, because it may not enter {directory}: {advice}")
        }
        None if !may(path, Access::READ_OK) => {
            format!("{who} cannot read {file}: chmod 644 {file}")
        }
        // The modes allow it, so something else does not.
        None => format!(
            "{who} cannot read {file}: {error}; the modes are not the reason, look at what else guards it"
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A root with the three files, all as they should be.
    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        mode(root.path(), 0o755);
        fs::create_dir_all(root.path().join("etc/linux_patch_api")).unwrap();
        for directory in ["etc", "etc/linux_patch_api"] {
            mode(&root.path().join(directory), 0o755);
        }
        for file in [config::CONFIG, config::WHITELIST, patch_backends::ceiling::FILE] {
            fs::write(root.path().join(file), "# nothing\n").unwrap();
            mode(&root.path().join(file), 0o644);
        }
        root
    }

    #[test]
    fn what_others_may_change_is_named_with_what_to_do() {
        let root = tree();
        let said = || changeable(root.path(), None);
        assert_eq!(said(), Vec::<String>::new());
        for file in [config::CONFIG, config::WHITELIST, patch_backends::ceiling::FILE] {
            let path = root.path().join(file);
            for bad in [0o664, 0o646, 0o666] {
                mode(&path, bad);
                let problems = said();
                assert_eq!(problems.len(), 1, "{problems:?}");
                assert!(problems[0].ends_with(&format!("chmod go-w {}", path.display())), "{problems:?}");
                assert!(problems[0].contains(&format!("{bad:o}")), "{problems:?}");
            }
            mode(&path, 0o600);
            assert_eq!(said(), Vec::<String>::new(), "who may read is another question");
        }
        mode(&root.path().join("etc/linux_patch_api"), 0o775);
        assert_eq!(said().len(), 1, "a directory in which files may be replaced, once");
    }

    #[test]
    fn what_a_link_leads_to_counts() {
        let root = tree();
        let elsewhere = root.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        mode(&elsewhere, 0o777);
        let (file, target) = (root.path().join(config::CONFIG), elsewhere.join("config.yaml"));
        fs::rename(&file, &target).unwrap();
        symlink(&target, &file).unwrap();
        let problems = changeable(root.path(), None);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(&elsewhere.display().to_string()), "{problems:?}");
        mode(&elsewhere, 0o1777);
        let problems = changeable(root.path(), None);
        assert!(problems.len() == 1 && problems[0].contains("move "), "{problems:?}");
    }

    #[test]
    fn what_is_no_file_is_told_and_holds_nobody_up() {
        let root = tree();
        let replaced = |file: &str, say: &dyn Fn() -> Vec<String>| {
            let path = root.path().join(file);
            let text = fs::read(&path).ok();
            drop(fs::remove_file(&path));
            let fifo = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(CWD, &path, fifo).unwrap();
            let said = say();
            fs::remove_file(&path).unwrap();
            if let Some(text) = text {
                fs::write(&path, text).unwrap();
                mode(&path, 0o644);
            }
            said
        };
        let examined = || examine(root.path(), false).unwrap().problems;
        for file in [config::CONFIG, config::WHITELIST] {
            let said = replaced(file, &examined);
            let named = |said: &&String| said.contains(file) && said.contains("named pipe");
            assert_eq!(said.iter().filter(named).count(), 1, "{said:?}");
        }
        // As the root side words it.
        let said = replaced(patch_backends::ceiling::FILE, &examined);
        assert!(said.iter().any(|said| said.contains("ceiling.yaml") && said.contains("not a")), "{said:?}");
        // Every certificate that it names.
        let pki = root.path().join("pki");
        patch_service::pki::init(&pki, &["h".to_owned()], &[], &[], patch_service::pki::Existing::Keep)
            .unwrap();
        let configured = [
            ("ca_cert", "ca.pem"),
            ("server_cert", "server.pem"),
            ("server_key", "server.key.pem"),
            ("crl", "crl.pem"),
        ];
        let lines = configured.map(|(key, file)| format!("  {key}: /pki/{file}\n"));
        let path = root.path().join(config::CONFIG);
        fs::write(&path, format!("tls:\n{}", lines.concat())).unwrap();
        let settings = config::load(root.path()).unwrap();
        let certificates = || {
            let mut found = Findings::default();
            Reader { service: None }.certificates(&settings, &mut found).unwrap();
            found.problems
        };
        assert_eq!(certificates(), Vec::<String>::new());
        for (_, file) in configured {
            let said = replaced(&format!("pki/{file}"), &certificates);
            assert!(said.len() == 1 && said[0].contains(file) && said[0].contains("named pipe"), "{said:?}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        let root = tree();
        fs::write(
            root.path().join(config::CONFIG),
            "server: {\"a\\e[2J\\nthe configuration is valid\": 1}\n",
        )
        .unwrap();
        let problems = examine(root.path(), false).unwrap().problems;
        let said: String = problems.iter().map(|problem| format!("error: {}\n", escaped(problem))).collect();
        assert!(problems.iter().any(|problem| problem.contains('\u{1b}')), "it is in there: {problems:?}");
        assert!(
            said.contains(r"\u{1b}[2J\nthe")
                && !said.contains('\u{1b}')
                && said.lines().count() == problems.len(),
            "{said}"
        );
    }

    #[test]
    fn the_ceiling_is_read_as_the_root_side_reads_it() {
        let root = tree();
        fs::write(root.path().join(patch_backends::ceiling::FILE), "operations: [format]\n").unwrap();
        let found = examine(root.path(), false).unwrap();
        assert!(found.problems.iter().any(|p| p.contains("ceiling.yaml:1:14")), "{found:?}");
        let found = examine(root.path(), true).unwrap();
        assert!(found.problems.is_empty(), "the configuration alone: {found:?}");
    }

    #[test]
    fn what_the_sandbox_hides_is_to_be_moved() {
        for (file, setting) in [
            ("/root/pki/ca.pem", "ProtectHome"),
            ("/home/a/ca.pem", "ProtectHome"),
            ("/run/user/0/ca.pem", "ProtectHome"),
            ("/tmp/ca.pem", "PrivateTmp"),
        ] {
            let said = hidden(Path::new(file)).unwrap();
            assert!(said.contains(setting) && said.contains("move it to"), "{said}");
        }
        assert_eq!(hidden(Path::new("/etc/linux_patch_api/certs/ca.pem")), None);
        assert_eq!(hidden(Path::new("/rooted/ca.pem")), None);
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let real = directory.path().join("ca.pem");
        fs::write(&real, "x").unwrap();
        // Neither where things are hidden nor where these sources may lie.
        let link = tempfile::tempdir_in("/dev/shm").unwrap();
        let link_file = link.path().join("ca.pem");
        symlink(&real, &link_file).unwrap();
        assert!(hidden(&link_file).is_some_and(|said| said.contains("below /var/tmp")));
    }

    /// What only root can try: another user's files, and reading as another user.
    #[test]
    fn another_user_is_another_user() {
        if !geteuid().is_root() {
            return;
        }
        let root = tree();
        let path = root.path().join(config::CONFIG);
        chown(&path, Some(1), Some(1)).unwrap();
        let problems = changeable(root.path(), None);
        let advice = format!("chown root:root {}", path.display());
        assert!(problems.len() == 1 && problems[0].ends_with(&advice), "{problems:?}");
        chown(&path, Some(0), Some(0)).unwrap();

        let nobody = |groups: &[u32]| Reader {
            service: Some(Service {
                user: Uid::from_raw(65534),
                group: Gid::from_raw(65534),
                groups: groups.iter().map(|group| Gid::from_raw(*group)).collect(),
            }),
        };
        let reader = nobody(&[65534]);
        assert_eq!(reader.run(|| geteuid().as_raw()).unwrap(), 65534);
        let ids = reader.run(|| fs::read_to_string("/proc/thread-self/status").unwrap()).unwrap();
        assert!(ids.contains("\nUid:\t0\t65534\t0\t65534\n"), "by its other ids it is root's: {ids}");
        assert!(geteuid().is_root(), "this thread is who it was");
        let refused = || reader.refused(std::slice::from_ref(&path)).unwrap();
        assert_eq!(refused(), Vec::<String>::new());
        mode(&path, 0o640);
        assert!(refused()[0].ends_with(&format!("chmod 644 {}", path.display())), "{:?}", refused());
        // A group that it is in, besides its own.
        chown(&path, Some(0), Some(4)).unwrap();
        let member = nobody(&[65534, 4]);
        assert!(member.refused(std::slice::from_ref(&path)).unwrap().is_empty());
        let above = root.path().join("etc/linux_patch_api");
        mode(&above, 0o700);
        assert!(
            refused()[0].ends_with(&format!("enter {0}: chmod 755 {0}", above.display())),
            "{:?}",
            refused()
        );
        // One that is not ours is not opened, also where a link leads there.
        mode(&above, 0o755);
        let closed = root.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::write(closed.join("ca.pem"), "x").unwrap();
        mode(&closed, 0o700);
        let link = above.join("ca.pem");
        symlink(closed.join("ca.pem"), &link).unwrap();
        let said = reader.refused(&[link]).unwrap();
        let advice = format!("may not enter {}: move it to /etc/linux_patch_api/certs", closed.display());
        assert!(said[0].ends_with(&advice), "{said:?}");
        mode(&above, 0o700);
        let mut problems = Vec::new();
        reader.allow_list(root.path(), &mut problems).unwrap();
        assert!(
            problems[0].contains("cannot read") && problems[0].contains("whitelist.yaml"),
            "{problems:?}"
        );
    }
}
