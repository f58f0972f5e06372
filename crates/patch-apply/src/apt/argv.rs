//! Command lines for apt and dpkg, made by pure functions.
//!
//! What comes from a client is only ever a typed name or version, and always stands behind `--`. Patterns are off
//! (`APT::Cmd::Pattern-Only`): without that, apt-get reads a name that it does not know as a regular expression and
//! installs whatever matches.

use std::path::Path;

use patch_types::{
    Action, PackageName, PackageVersion, Plan, PlannedChange,
    operation::{ApplyPatches, Install, Remove, Update},
};

use super::hook::HookCommand;

/// A tool's absolute path and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argv {
    /// The program, absolute.
    pub program: &'static str,
    /// Its arguments, the program's name not among them.
    pub args: Vec<String>,
    /// What it has in its environment besides [`ENVIRONMENT`].
    pub environment: Vec<(&'static str, String)>,
}

impl Argv {
    /// A command line with the usual environment.
    #[must_use]
    pub fn new(program: &'static str, args: Vec<String>) -> Self {
        Self { program, args, environment: Vec::new() }
    }
}

impl std::fmt::Display for Argv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.program)?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

const APT_GET: &str = "/usr/bin/apt-get";
const APT_CACHE: &str = "/usr/bin/apt-cache";
const APT_CONFIG: &str = "/usr/bin/apt-config";
const APT_MARK: &str = "/usr/bin/apt-mark";
const DPKG: &str = "/usr/bin/dpkg";
const DPKG_DEB: &str = "/usr/bin/dpkg-deb";

/// The environment of every tool: nothing is inherited.
///
/// `NEEDRESTART_SUSPEND`: its apt hook may restart services, which is not ours to do outside a window. `NEEDRESTART_MODE`:
/// where a script runs it all the same, it only lists.
pub const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LC_ALL", "C.UTF-8"),
    ("TERM", "dumb"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("DEBIAN_PRIORITY", "critical"),
    ("APT_LISTCHANGES_FRONTEND", "none"),
    ("APT_LISTBUGS_FRONTEND", "none"),
    ("NEEDRESTART_SUSPEND", "1"),
    ("NEEDRESTART_MODE", "l"),
    ("UCF_FORCE_CONFFOLD", "1"),
];

/// What the solver is asked to work out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Install or change to versions.
    Install(Install),
    /// Update one.
    Update(Update),
    /// Remove one.
    Remove(Remove),
    /// All updates, by the default policy or with removals.
    UpgradeAll {
        /// Allow the solver to remove packages.
        allow_removals: bool,
    },
    /// These updates and nothing else but what they need.
    UpgradeSome {
        /// Which, at which version.
        packages: Vec<(PackageName, Option<PackageVersion>)>,
        /// Allow the solver to remove packages.
        allow_removals: bool,
    },
}

impl Task {
    /// The task for an apply request that names its packages, or all of them.
    #[must_use]
    pub fn named(apply: &ApplyPatches) -> Self {
        if apply.packages.is_empty() {
            Self::UpgradeAll { allow_removals: apply.allow_removals }
        } else {
            Self::UpgradeSome {
                packages: apply.packages.iter().map(|name| (name.clone(), None)).collect(),
                allow_removals: apply.allow_removals,
            }
        }
    }
}

fn target(name: &PackageName, version: Option<&PackageVersion>) -> String {
    version.map_or_else(|| name.to_string(), |version| format!("{name}={version}"))
}

fn option(args: &mut Vec<String>, option: &str) {
    args.push("-o".into());
    args.push(option.into());
}

/// Options that hold for every run of apt: the root, no patterns, no terminal, the administrator's conffiles kept.
fn common(root: &Path) -> Vec<String> {
    let mut args = vec!["-q".to_owned()];
    option(&mut args, "APT::Cmd::Pattern-Only=true");
    option(&mut args, "Dpkg::Use-Pty=0");
    option(&mut args, "Dpkg::Options::=--force-confdef");
    option(&mut args, "Dpkg::Options::=--force-confold");
    if root != Path::new("/") {
        let root = root.display();
        option(&mut args, &format!("Dir={root}"));
        option(&mut args, &format!("Dir::State::status={root}/var/lib/dpkg/status"));
        option(&mut args, &format!("Dpkg::Options::=--root={root}"));
    }
    args
}

fn verb(task: &Task) -> Vec<String> {
    let mut args = Vec::new();
    let mut names = Vec::new();
    if !matches!(task, Task::Remove(_)) {
        // An administrator's setting for `apt-get autoremove` must not make an update remove packages.
        option(&mut args, "APT::Get::AutomaticRemove=false");
    }
    match task {
        Task::Install(install) => {
            args.push("install".into());
            if install.no_recommends {
                args.push("--no-install-recommends".into());
            }
            if install.allow_downgrade {
                args.push("--allow-downgrades".into());
            }
            if install.reinstall {
                args.push("--reinstall".into());
            }
            names.extend(install.packages.iter().map(|p| target(&p.name, p.version.as_ref())));
        }
        Task::Update(update) => {
            args.extend(["install", "--only-upgrade", "--no-remove"].map(String::from));
            names.push(target(&update.name, update.version.as_ref()));
        }
        Task::Remove(remove) => {
            args.push(if remove.purge { "purge" } else { "remove" }.into());
            args.push(if remove.autoremove { "--auto-remove" } else { "--no-auto-remove" }.into());
            names.push(remove.name.to_string());
        }
        Task::UpgradeAll { allow_removals: true } => args.push("dist-upgrade".into()),
        Task::UpgradeAll { allow_removals: false } => {
            args.extend(["upgrade", "--with-new-pkgs", "--no-remove"].map(String::from));
        }
        Task::UpgradeSome { packages, allow_removals } => {
            args.extend(["install", "--only-upgrade"].map(String::from));
            if !allow_removals {
                args.push("--no-remove".into());
            }
            names.extend(packages.iter().map(|(name, version)| target(name, version.as_ref())));
        }
    }
    if !names.is_empty() {
        args.push("--".into());
        args.append(&mut names);
    }
    args
}

/// Simulates a task. Takes no lock, changes nothing, prints versions.
#[must_use]
pub fn simulate(root: &Path, task: &Task) -> Argv {
    let mut args = common(root);
    args.extend(["-s", "-V"].map(String::from));
    args.extend(verb(task));
    Argv::new(APT_GET, args)
}

/// The archives that a plan needs, each as `name:architecture=version`.
#[must_use]
pub fn archives(plan: &Plan) -> Vec<String> {
    plan.changes
        .iter()
        .filter(|change| {
            matches!(change.action, Action::Install | Action::Upgrade | Action::Downgrade | Action::Reinstall)
        })
        .filter_map(|change| {
            let version = change.new_version.as_ref()?;
            Some(format!("{}:{}={version}", change.name.name(), change.architecture))
        })
        .collect()
}

/// Fetches exactly these [`archives`] into the current directory, verified by apt.
#[must_use]
pub fn download(root: &Path, archives: &[String], status_fd: i32) -> Argv {
    let mut args = common(root);
    option(&mut args, &format!("APT::Status-Fd={status_fd}"));
    option(&mut args, "Acquire::Retries=2");
    args.push("download".into());
    args.push("--".into());
    args.extend_from_slice(archives);
    Argv::new(APT_GET, args)
}

/// Carries a task out with the archives that are there. apt does not wait for dpkg's lock: what it would do after the
/// wait may be something else than what was planned before it.
///
/// The hook is run before dpkg is started, after those that the system itself has; if it fails, nothing is changed.
#[must_use]
pub fn apply(root: &Path, task: &Task, status_fd: i32, hook: Option<&HookCommand>) -> Argv {
    let mut args = common(root);
    args.extend(["-y", "--no-download"].map(String::from));
    option(&mut args, &format!("APT::Status-Fd={status_fd}"));
    option(&mut args, "DPkg::Lock::Timeout=0");
    if let Some(hook) = hook {
        under_lock(&mut args, hook);
    }
    args.extend(verb(task));
    Argv::new(APT_GET, args)
}

/// Has apt run the hook before dpkg is started, after those that the system itself has.
fn under_lock(args: &mut Vec<String>, hook: &HookCommand) {
    option(args, &format!("DPkg::Pre-Install-Pkgs::={}", hook.line()));
    option(args, &format!("DPkg::Tools::Options::{}::Version=3", hook.program()));
}

/// Carries out what is left of a plan after a part of it went back: exactly these changes. As [`apply`] otherwise.
#[must_use]
pub fn finish(root: &Path, changes: &[PlannedChange], status_fd: i32, hook: &HookCommand) -> Argv {
    let mut args = common(root);
    args.extend(["-y", "--no-download"].map(String::from));
    option(&mut args, &format!("APT::Status-Fd={status_fd}"));
    option(&mut args, "DPkg::Lock::Timeout=0");
    option(&mut args, "APT::Get::AutomaticRemove=false");
    under_lock(&mut args, hook);
    args.extend(["install", "--no-install-recommends"].map(String::from));
    let any = |action: Action| changes.iter().any(|change| change.action == action);
    if any(Action::Downgrade) {
        args.push("--allow-downgrades".into());
    }
    if any(Action::Reinstall) {
        args.push("--reinstall".into());
    }
    if any(Action::Purge) {
        args.push("--purge".into());
    }
    args.push("--".into());
    for change in changes {
        let package = format!("{}:{}", change.name.name(), change.architecture);
        match (&change.new_version, change.action.is_removal()) {
            // apt reads a trailing minus as "remove".
            (_, true) => args.push(format!("{package}-")),
            (Some(version), false) => args.push(format!("{package}={version}")),
            (None, false) => {}
        }
    }
    Argv::new(APT_GET, args)
}

/// Fetches all indexes. Any repository that fails makes the run fail: half a view is not passed off as a whole one.
#[must_use]
pub fn refresh(root: &Path, status_fd: i32) -> Argv {
    let mut args = common(root);
    option(&mut args, &format!("APT::Status-Fd={status_fd}"));
    option(&mut args, "APT::Update::Error-Mode=any");
    // Images for containers keep the lists compressed, which would hide archive hashes and origins from our readers.
    option(&mut args, "Acquire::GzipIndexes=false");
    option(&mut args, "Acquire::Retries=2");
    args.push("update".into());
    Argv::new(APT_GET, args)
}

/// What the distribution's own updater is set to, as apt's timers ask it: `VALUE='...'`, or nothing.
#[must_use]
pub fn unattended_upgrade() -> Argv {
    Argv::new(APT_CONFIG, ["shell", "VALUE", "APT::Periodic::Unattended-Upgrade"].map(str::to_owned).to_vec())
}

/// What the policy says of a package.
#[must_use]
pub fn policy(root: &Path, name: &PackageName) -> Argv {
    let mut args = common(root);
    args.extend(["policy".to_owned(), "--".to_owned(), name.to_string()]);
    Argv::new(APT_CACHE, args)
}

fn apt_mark(root: &Path, verb: &str, names: impl IntoIterator<Item = String>) -> Argv {
    let mut args = common(root);
    args.push(verb.into());
    args.push("--".into());
    args.extend(names);
    Argv::new(APT_MARK, args)
}

/// Puts a package on hold, or takes it off.
#[must_use]
pub fn hold(root: &Path, name: &PackageName, hold: bool) -> Argv {
    apt_mark(root, if hold { "hold" } else { "unhold" }, [name.to_string()])
}

/// Marks packages as automatically installed: naming one to `apt-get install` makes it manual, which an update must
/// not do.
#[must_use]
pub fn mark_auto(root: &Path, names: &[PackageName]) -> Argv {
    apt_mark(root, "auto", names.iter().map(ToString::to_string))
}

/// Marks packages as wanted by a person, as `apt-get install` does.
#[must_use]
pub fn mark_manual(root: &Path, names: &[PackageName]) -> Argv {
    apt_mark(root, "manual", names.iter().map(ToString::to_string))
}

/// Configures whatever an interrupted run left unconfigured.
#[must_use]
pub fn configure_pending(root: &Path) -> Argv {
    let mut args = vec!["--force-confdef".to_owned(), "--force-confold".to_owned()];
    if root != Path::new("/") {
        args.push(format!("--root={}", root.display()));
    }
    args.extend(["--configure", "--pending"].map(String::from));
    Argv::new(DPKG, args)
}

/// dpkg for going back, run by whoever holds the front end's lock.
fn going_back(root: &Path, mut args: Vec<String>, verb: &str, operands: &[String]) -> Argv {
    if root != Path::new("/") {
        args.push(format!("--root={}", root.display()));
    }
    args.extend([verb.to_owned(), "--".to_owned()]);
    args.extend_from_slice(operands);
    locked(Argv::new(DPKG, args))
}

/// The same command line for a caller that holds the front end's lock itself: dpkg and apt do not ask for it then.
#[must_use]
pub fn locked(mut argv: Argv) -> Argv {
    argv.environment.push(("DPKG_FRONTEND_LOCKED", "1".to_owned()));
    argv
}

/// Installs stored archives, absolute paths, over whatever is there, in one run: dpkg unpacks all of them, then
/// configures them in the order of their dependencies, and no other package.
///
/// With `forceful`, what stands in the way of a package is pushed aside. That is right only if the outcome is known to
/// fit together: when nothing but these packages differs from a state that there was.
#[must_use]
pub fn reinstate(root: &Path, archives: &[String], forceful: bool) -> Argv {
    let mut args: Vec<String> = [
        // Nobody can be asked; configuration files are put right afterwards in any case.
        "--force-confdef",
        "--force-confold",
        // The default, but the administrator's dpkg.cfg may say otherwise.
        "--force-downgrade",
        // Halfway, old packages stand beside new ones and some dependency is always unmet. That they are met in the end
        // follows from the record: the set was installed before.
        "--force-depends",
        // A new version that breaks the old one of another is deconfigured until it is replaced itself.
        "--auto-deconfigure",
        // One package that refuses must not keep the others from going back.
        "--abort-after=1000000",
    ]
    .map(String::from)
    .to_vec();
    if forceful {
        args.extend(["--force-overwrite", "--force-breaks", "--force-conflicts"].map(String::from));
    }
    going_back(root, args, "--install", archives)
}

/// Removes packages, each as `name` or `name:architecture`, with their configuration if `purge`. Others may depend on
/// them for the moment; Essential and Protected ones are refused by dpkg.
#[must_use]
pub fn discard(root: &Path, names: &[String], purge: bool) -> Argv {
    let args = [
        "--force-depends",
        // A package whose unpacking was interrupted would otherwise have to be installed before it can go.
        "--force-remove-reinstreq",
        "--abort-after=1000000",
    ];
    going_back(root, args.map(String::from).to_vec(), if purge { "--purge" } else { "--remove" }, names)
}

/// Sets apt's mark of automatic installation, or takes it off; names as for [`discard`].
#[must_use]
pub fn mark(root: &Path, names: &[String], auto: bool) -> Argv {
    locked(apt_mark(root, if auto { "auto" } else { "manual" }, names.iter().cloned()))
}

/// Records what is wanted of packages, names as for [`discard`]; `want` is dpkg's word. None for a word that cannot be
/// asked for.
#[must_use]
pub fn select(root: &Path, names: &[String], want: &str) -> Option<Argv> {
    let verb = match want {
        "install" => "install",
        "hold" => "hold",
        "deinstall" => "remove",
        "purge" => "purge",
        _ => return None,
    };
    Some(locked(apt_mark(root, verb, names.iter().cloned())))
}

/// Starts a unit.
#[must_use]
pub fn start_unit(unit: &str) -> Argv {
    Argv::new("/usr/bin/systemctl", ["start", "--", unit].map(String::from).to_vec())
}

/// Restarts a unit.
#[must_use]
pub fn restart_unit(unit: &str) -> Argv {
    Argv::new("/usr/bin/systemctl", ["restart", "--", unit].map(String::from).to_vec())
}

/// Starts a unit as a package's script does: only if it is enabled, and if `policy-rc.d` lets it.
#[must_use]
pub fn start_as_scripts_do(unit: &str) -> Argv {
    Argv::new("/usr/bin/deb-systemd-invoke", ["start", unit].map(String::from).to_vec())
}

/// Whether a unit is active, by the exit code.
#[must_use]
pub fn unit_is_active(unit: &str) -> Argv {
    Argv::new("/usr/bin/systemctl", ["is-active", "--quiet", "--", unit].map(String::from).to_vec())
}

/// All units of the type service, as JSON.
#[must_use]
pub fn list_services() -> Argv {
    let args = ["list-units", "--type=service", "--all", "--full", "--no-pager", "--output=json"];
    Argv::new("/usr/bin/systemctl", args.map(String::from).to_vec())
}

/// Writes an archive's control files as a tape archive to standard output; none if the path is no text.
#[must_use]
pub fn control_of(archive: &Path) -> Option<Argv> {
    Some(Argv::new(DPKG_DEB, vec!["--ctrl-tarfile".into(), archive.to_str()?.into()]))
}

/// Writes an archive's files as a tape archive to standard output; none if the path is no text.
#[must_use]
pub fn data_of(archive: &Path) -> Option<Argv> {
    Some(Argv::new(DPKG_DEB, vec!["--fsys-tarfile".into(), archive.to_str()?.into()]))
}

/// Makes an archive of a tree, with temporary files in a directory; none if a path is no text. It is made to be had
/// fast, not to be small.
#[must_use]
pub fn build_archive(tree: &Path, archive: &Path, temporary: &Path) -> Option<Argv> {
    let mut args: Vec<String> = ["-Zgzip", "-z1", "--nocheck", "--build"].map(String::from).to_vec();
    args.extend([tree.to_str()?.to_owned(), archive.to_str()?.to_owned()]);
    let mut argv = Argv::new(DPKG_DEB, args);
    argv.environment.push(("TMPDIR", temporary.to_str()?.to_owned()));
    Some(argv)
}

#[cfg(test)]
mod tests {
    use patch_types::operation::PackageSpec;
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> PackageName {
        text.parse().unwrap()
    }

    fn tail(argv: &Argv) -> String {
        let verbs = ["install", "upgrade", "dist-upgrade", "remove", "purge"];
        let at = argv.args.iter().position(|a| verbs.contains(&a.as_str())).unwrap();
        argv.args[at..].join(" ")
    }

    #[test]
    fn each_task_has_its_command_line() {
        let root = Path::new("/");
        let install = Task::Install(Install {
            packages: vec![PackageSpec {
                name: name("libc6:i386"),
                version: Some("1:2~rc1-3".parse().unwrap()),
            }],
            no_recommends: true,
            allow_downgrade: true,
            reinstall: true,
        });
        let rows = [
            (
                install,
                "install --no-install-recommends --allow-downgrades --reinstall -- libc6:i386=1:2~rc1-3",
            ),
            (
                Task::Update(Update { name: name("aa"), version: None }),
                "install --only-upgrade --no-remove -- aa",
            ),
            (
                Task::Remove(Remove { name: name("aa"), purge: true, autoremove: false }),
                "purge --no-auto-remove -- aa",
            ),
            (
                Task::Remove(Remove { name: name("aa"), purge: false, autoremove: true }),
                "remove --auto-remove -- aa",
            ),
            (Task::UpgradeAll { allow_removals: false }, "upgrade --with-new-pkgs --no-remove"),
            (Task::UpgradeAll { allow_removals: true }, "dist-upgrade"),
            (
                Task::UpgradeSome { packages: vec![(name("aa"), None)], allow_removals: false },
                "install --only-upgrade --no-remove -- aa",
            ),
        ];
        for (task, expected) in rows {
            assert_eq!(tail(&simulate(root, &task)), expected);
            assert_eq!(tail(&apply(root, &task, 9, None)), expected);
        }
    }

    #[test]
    fn a_hook_is_added_to_those_of_the_system() {
        let job = patch_types::JobId(uuid::Uuid::nil());
        let hook = HookCommand::new(Path::new("/usr/libexec/x"), Path::new("/srv/r"), job).unwrap();
        let task = Task::UpgradeAll { allow_removals: false };
        let args = apply(Path::new("/srv/r"), &task, 9, Some(&hook)).args;
        let command =
            "DPkg::Pre-Install-Pkgs::=/usr/libexec/x --root /srv/r hook 00000000-0000-0000-0000-000000000000";
        assert!(args.iter().any(|arg| arg == command), "{args:?}");
        assert!(args.iter().any(|arg| arg == "DPkg::Tools::Options::/usr/libexec/x::Version=3"), "{args:?}");
    }

    #[test]
    fn what_is_left_of_a_plan_is_named_exactly() {
        let plan = crate::apt::testing::plan(&[
            (Action::Downgrade, "aa", Some("2"), Some("1")),
            (Action::Reinstall, "bb", Some("2"), Some("2")),
            (Action::Purge, "cc", Some("1"), None),
            (Action::Configure, "dd", Some("1"), None),
        ]);
        let job = patch_types::JobId(uuid::Uuid::nil());
        let hook = HookCommand::new(Path::new("/usr/libexec/x"), Path::new("/"), job).unwrap();
        let argv = finish(Path::new("/"), &plan.changes, 9, &hook);
        assert_eq!(
            tail(&argv),
            "install --no-install-recommends --allow-downgrades --reinstall --purge -- aa:all=1 bb:all=2 cc:all-"
        );
        assert_eq!(archives(&plan), ["aa:all=1", "bb:all=2"]);
        let fetched = download(Path::new("/"), &archives(&plan), 9);
        assert!(fetched.to_string().ends_with(" download -- aa:all=1 bb:all=2"), "{fetched}");
    }

    /// The words after the options that all of them have.
    #[test]
    fn each_tool_has_its_command_line() {
        let root = Path::new("/");
        let names = [name("aa"), name("bb:i386")];
        let texts = names.clone().map(|name| name.to_string());
        let rows = [
            (refresh(root, 9), "update"),
            (policy(root, &names[0]), "policy -- aa"),
            (hold(root, &names[0], true), "hold -- aa"),
            (hold(root, &names[0], false), "unhold -- aa"),
            (mark_auto(root, &names), "auto -- aa bb:i386"),
            (mark_manual(root, &names), "manual -- aa bb:i386"),
            (mark(root, &texts, true), "auto -- aa bb:i386"),
            (mark(root, &texts, false), "manual -- aa bb:i386"),
            (configure_pending(root), "--force-confdef --force-confold --configure --pending"),
            (discard(root, &texts, true), "--abort-after=1000000 --purge -- aa bb:i386"),
            (discard(root, &texts, false), "--abort-after=1000000 --remove -- aa bb:i386"),
            (reinstate(root, &texts, false), "--abort-after=1000000 --install -- aa bb:i386"),
            (
                reinstate(root, &texts, true),
                "--force-overwrite --force-breaks --force-conflicts --install -- aa bb:i386",
            ),
            (start_unit("a.service"), "/usr/bin/systemctl start -- a.service"),
            (restart_unit("a.service"), "/usr/bin/systemctl restart -- a.service"),
            (start_as_scripts_do("a.service"), "/usr/bin/deb-systemd-invoke start a.service"),
            (unit_is_active("a.service"), "/usr/bin/systemctl is-active --quiet -- a.service"),
        ];
        for (argv, expected) in rows {
            assert!(argv.to_string().ends_with(expected), "{argv}");
        }
        for (want, verb) in
            [("install", "install"), ("hold", "hold"), ("deinstall", "remove"), ("purge", "purge")]
        {
            let argv = select(root, &texts, want).unwrap();
            assert!(argv.to_string().ends_with(&format!(" {verb} -- aa bb:i386")), "{argv}");
        }
        assert!(select(root, &texts, "--help").is_none());
        // Whoever goes back holds the front end's lock.
        let locked = ("DPKG_FRONTEND_LOCKED", "1".to_owned());
        assert!(discard(root, &texts, false).environment.contains(&locked));
        assert!(!configure_pending(root).environment.contains(&locked));
        assert!(configure_pending(Path::new("/x")).to_string().contains(" --root=/x "));
        assert!(reinstate(Path::new("/x"), &texts, false).to_string().contains(" --root=/x "));
    }

    #[test]
    fn an_apply_request_names_its_packages_or_means_all() {
        let all = Task::named(&ApplyPatches { allow_removals: true, ..ApplyPatches::default() });
        assert_eq!(tail(&simulate(Path::new("/"), &all)), "dist-upgrade");
        let some = ApplyPatches { packages: vec![name("aa"), name("bb")], ..ApplyPatches::default() };
        assert_eq!(
            tail(&simulate(Path::new("/"), &Task::named(&some))),
            "install --only-upgrade --no-remove -- aa bb"
        );
    }

    #[test]
    fn another_root_reaches_apt_and_dpkg() {
        let text = simulate(Path::new("/srv/x"), &Task::UpgradeAll { allow_removals: false }).to_string();
        assert!(text.contains("-o Dir=/srv/x ") && text.contains("Dpkg::Options::=--root=/srv/x "));
        assert!(
            !simulate(Path::new("/"), &Task::UpgradeAll { allow_removals: false })
                .to_string()
                .contains("Dir=")
        );
    }

    proptest! {
        #[test]
        fn nothing_named_stands_before_the_separator(names in prop::collection::vec("[a-z0-9][a-z0-9+.]{1,20}", 1..5)) {
            let packages: Vec<_> = names.iter().filter_map(|n| n.parse().ok()).map(|n| (n, None)).collect();
            prop_assume!(!packages.is_empty());
            let argv = simulate(Path::new("/"), &Task::UpgradeSome { packages: packages.clone(), allow_removals: true });
            let separator = argv.args.iter().position(|a| a == "--").unwrap();
            prop_assert_eq!(argv.args.len() - separator - 1, packages.len());
        }
    }
}
