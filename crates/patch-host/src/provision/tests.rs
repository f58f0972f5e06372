use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use clap::Parser;
use patch_types::executor::RECORD;
use tempfile::TempDir;

use super::*;
use crate::{screen::tests::paper, tools::tests::Script};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    options: Unattended,
}

struct System {
    dir: TempDir,
    files: Below,
}

const STATUS: &str = "Package: unattended-upgrades\nStatus: install ok installed\nArchitecture: all\nVersion: 2.9\n\n\
    Package: needrestart\nStatus: install ok installed\nArchitecture: all\nVersion: 3\n";

impl System {
    fn new(id: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let system = Self { files: Below::new(dir.path().to_owned()), dir };
        system.put("etc/os-release", &format!("ID={id}\nVERSION_CODENAME=bookworm\n"));
        system.put("var/lib/dpkg/status", STATUS);
        system.put(
            "usr/lib/systemd/system/apt-daily.timer",
            "[Timer]\nOnCalendar=*-*-* 6,18:00\nRandomizedDelaySec=12h\n",
        );
        system.put(
            "usr/lib/systemd/system/apt-daily-upgrade.timer",
            "[Timer]\nOnCalendar=*-*-* 6:00\nRandomizedDelaySec=60m\n",
        );
        for unit in ["apt-daily.timer", "apt-daily-upgrade.timer"] {
            let wants = dir_of(&system, "etc/systemd/system/timers.target.wants");
            symlink(format!("/usr/lib/systemd/system/{unit}"), wants.join(unit)).unwrap();
        }
        system
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap_or_default()
    }

    fn run(&self, args: &str) -> anyhow::Result<(Exit, String, String)> {
        let line = Line::try_parse_from(["x"].into_iter().chain(args.split_whitespace()))?;
        let (mut screen, out, remarks) = paper(false);
        let exit = unattended(&self.files, &Script::default(), &mut screen, &line.options)?;
        Ok((exit, out.text(), remarks.text()))
    }

    /// All files but the record, with their modes.
    fn everything(&self) -> Vec<(PathBuf, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
                let meta = fs::symlink_metadata(&entry).unwrap();
                if meta.is_dir() {
                    dirs.push(entry.clone());
                }
                if !entry.starts_with(self.dir.path().join("var/lib/linux_patch_executor")) {
                    let content = if meta.is_file() { fs::read(&entry).unwrap() } else { Vec::new() };
                    found.push((entry, meta.permissions().mode(), content));
                }
            }
        }
        found.sort();
        found
    }
}

fn dir_of(system: &System, path: &str) -> PathBuf {
    let path = system.dir.path().join(path);
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn a_host_is_set_up_once_and_undone_to_the_byte() {
    let system = System::new("debian");
    let old = "Unattended-Upgrade::Origins-Pattern {\n  \"origin=Debian,codename=${distro_codename},label=Debian\";\n};\n";
    system.put(UPGRADES, old);
    fs::set_permissions(system.dir.path().join(UPGRADES), fs::Permissions::from_mode(0o600)).unwrap();
    let before = system.everything();

    let (exit, out, _) = system.run("--dry-run").unwrap();
    assert_eq!(exit, Exit::Done);
    assert!(out.contains("--- /etc/apt/apt.conf.d/50unattended-upgrades\n+++ /etc"), "{out}");
    assert!(out.contains("-  \"origin=Debian,codename=${distro_codename},label=Debian\";\n"), "{out}");
    assert!(
        out.contains("--- /dev/null\n+++ /etc/systemd/system/apt-daily.timer.d/linux-patch.conf\n"),
        "{out}"
    );
    assert_eq!(system.everything(), before, "a dry run changed something");
    assert!(!system.files.is_there(backup::DIR));

    let (exit, out, remarks) = system.run("--mail-to root").unwrap();
    assert_eq!(exit, Exit::Done, "{out}{remarks}");
    assert!(out.contains("At worst 8 h 31 min from publication to installation:"), "{out}");
    assert!(remarks.contains("No mail will be sent") && remarks.contains("apt's own view"), "{remarks}");
    let after = system.everything();
    let (exit, out, remarks) = system.run("--mail-to root").unwrap();
    assert_eq!(exit, Exit::Done);
    assert!(!out.contains("written") && remarks.contains("Everything was written already"), "{out}{remarks}");
    assert_eq!(system.everything(), after);
    assert_eq!(system.run("-n --mail-to root").unwrap().1, "");

    // What the package's own removal goes by.
    let list = system.text(&format!("{}/undo.list", backup::DIR));
    let line =
        |path: &str| list.lines().find(|line| line.starts_with(&format!("/{path} "))).unwrap().to_owned();
    let (written, old) = (sha256(system.text(UPGRADES).as_bytes()), sha256(old.as_bytes()));
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    assert_eq!(line(UPGRADES), format!("/{UPGRADES} 600:{uid}:{gid}:{old} {written}"));
    assert!(line(content::PERIODIC).starts_with(&format!("/{} - ", content::PERIODIC)), "{list}");
    assert!(system.files.is_there(format!("{}/{old}", backup::DIR)));

    // Another wish, then all the way back.
    let (_, out, _) = system.run("--as-source --with-updates").unwrap();
    assert!(out.contains("removed /etc/systemd/system/apt-daily.timer.d/linux-patch.conf"), "{out}");
    assert!(out.contains("At worst 55 h 1 min"), "{out}");
    assert!(system.text(UPGRADES).contains("-updates"));
    let (_, out, _) = system.run("--undo --dry-run").unwrap();
    assert!(out.contains("+  \"origin=Debian,codename=${distro_codename},label=Debian\";\n"), "{out}");
    let (exit, out, _) = system.run("--undo").unwrap();
    assert_eq!(exit, Exit::Done);
    assert!(out.contains("brought back /etc/apt/apt.conf.d/50unattended-upgrades"), "{out}");
    assert_eq!(system.everything(), before);
    assert!(system.run("--undo").unwrap().2.contains("nothing to undo"));
    let record = system.text(RECORD);
    assert!(
        record.contains("writes /etc/apt/apt.conf.d/20auto-upgrades") && record.contains("--undo"),
        "{record}"
    );
}

#[test]
fn where_the_agent_patches_it_is_said_that_nothing_is_installed() {
    let system = System::new("debian");
    system.put("etc/linux_patch_api/config.yaml", "policy: {mode: agent}\n");
    fs::set_permissions(
        system.dir.path().join("etc/linux_patch_api/config.yaml"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    for args in ["--dry-run", ""] {
        let (_, _, remarks) = system.run(args).unwrap();
        assert!(remarks.contains("installs nothing until that mode is switched off"), "{args}: {remarks}");
    }
    system.put("etc/linux_patch_api/config.yaml", "policy: {mode: \"off\"}\n");
    assert!(!system.run("").unwrap().2.contains("installs nothing"));
    // The switch is there still.
    system.put(policy::FILE, "APT::Periodic::Unattended-Upgrade \"0\";\n");
    assert!(system.run("").unwrap().2.contains("installs nothing"));
}

#[test]
fn what_somebody_edited_is_not_undone_without_force() {
    let system = System::new("debian");
    system.run("").unwrap();
    system.put(content::PERIODIC, "APT::Periodic::Unattended-Upgrade \"0\";\n");
    let before = system.everything();
    let error = system.run("--undo").unwrap_err().to_string();
    assert!(error.contains("/etc/apt/apt.conf.d/20auto-upgrades was changed since"), "{error}");
    assert_eq!(system.everything(), before);
    let (_, _, remarks) = system.run("--undo --force").unwrap();
    let copy = remarks.trim().rsplit(' ').next().unwrap().trim_start_matches('/');
    assert_eq!(system.text(copy), "APT::Periodic::Unattended-Upgrade \"0\";\n");
    assert!(!system.files.is_there(content::PERIODIC));
}

#[test]
fn an_edited_file_is_kept_when_it_is_written_again() {
    let system = System::new("debian");
    system.run("").unwrap();
    system.put(content::PERIODIC, "// mine\n");
    let (_, out, remarks) = system.run("").unwrap();
    assert!(out.starts_with("written /etc/apt/apt.conf.d/20auto-upgrades\n"), "{out}");
    assert!(remarks.contains("had been edited"), "{remarks}");
    system.run("--undo").unwrap();
    assert!(!system.files.is_there(content::PERIODIC));
}

#[test]
fn what_overrides_ours_is_named() {
    let system = System::new("debian");
    system.put(
        "etc/apt/apt.conf.d/99site",
        "APT::Periodic::Unattended-Upgrade \"0\";\nUnattended-Upgrade::Origins-Pattern { \"site=*\"; };\n",
    );
    system.put("etc/systemd/system/apt-daily.timer.d/zz.conf", "[Timer]\nOnCalendar=*-*-* 3:00\n");
    system.put("etc/needrestart/conf.d/zz.conf", "$nrconf{restart} = 'a';\n");
    let (exit, out, _) = system.run("").unwrap();
    assert_eq!(exit, Exit::Failed);
    for expected in [
        "APT::Periodic::Unattended-Upgrade is [\"0\"] instead of [\"always\"]: /etc/apt/apt.conf.d/99site sets it",
        "\"site=*\"] instead of",
        "/etc/systemd/system/apt-daily.timer.d/zz.conf sets OnCalendar=*-*-* 3:00",
        "/etc/needrestart/conf.d/zz.conf sets $nrconf{restart} after our file",
        "Nothing is installed by itself: APT::Periodic::Unattended-Upgrade is off.",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
}

#[test]
fn a_masked_timer_is_no_success() {
    let system = System::new("debian");
    symlink("/dev/null", system.dir.path().join("etc/systemd/system/apt-daily.timer")).unwrap();
    let (exit, out, _) = system.run("").unwrap();
    assert_eq!(exit, Exit::Failed);
    assert!(out.contains("Nothing is installed by itself: apt-daily.timer is masked."), "{out}");
}

#[test]
fn excluded_packages_are_not_lost_in_silence() {
    let system = System::new("ubuntu");
    system.put(
        UPGRADES,
        "Unattended-Upgrade::Package-Blacklist { \"postgresql\"; };\nUnattended-Upgrade::Mail \"x\";\n",
    );
    let before = system.everything();
    let error = system.run("").unwrap_err().to_string();
    assert!(error.contains("Package-Blacklist:: \"postgresql\""), "{error}");
    assert_eq!(system.everything(), before);
    let (_, _, remarks) = system.run("--force").unwrap();
    assert!(remarks.contains("will be lost"), "{remarks}");
    assert!(system.text(UPGRADES).contains("${distro_id}ESM:${distro_codename}-infra-security"));
}

#[test]
fn other_archives_are_not_lost_in_silence() {
    let system = System::new("debian");
    system.put(
        UPGRADES,
        "Unattended-Upgrade::Origins-Pattern {\n \"origin=Debian,codename=${distro_codename}-security\";\n \
         \"origin=Debian,codename=${distro_codename}-security,label=Debian-Security\";\n \"site=apt.example.org\";\n};\n\
         Unattended-Upgrade::Allowed-Origins { \"Example:stable\"; };\n",
    );
    let (_, _, remarks) = system.run("--dry-run").unwrap();
    assert!(
        remarks.contains(
            "also sets Unattended-Upgrade::Origins-Pattern:: \"site=apt.example.org\", \
             Unattended-Upgrade::Allowed-Origins:: \"Example:stable\"; that will be lost"
        ),
        "{remarks}"
    );
    let (_, _, again) = system.run("").unwrap();
    assert!(again.contains("site=apt.example.org"), "{again}");
    assert!(!system.run("").unwrap().2.contains("will be lost"));
}

#[test]
fn a_link_in_the_way_is_not_written_through() {
    let system = System::new("debian");
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("target"), "precious").unwrap();
    dir_of(&system, "etc/apt/apt.conf.d");
    symlink(outside.path().join("target"), system.dir.path().join(content::PERIODIC)).unwrap();
    let before = system.everything();
    let error = format!("{:#}", system.run("").unwrap_err());
    assert!(error.contains("is a link"), "{error}");
    assert_eq!(fs::read_to_string(outside.path().join("target")).unwrap(), "precious");
    assert_eq!(system.everything(), before);
}

#[test]
fn nothing_is_changed_that_cannot_be_recorded() {
    let system = System::new("debian");
    dir_of(&system, RECORD);
    let before = system.everything();
    let error = format!("{:#}", system.run("").unwrap_err());
    assert!(error.contains("nothing was changed, since it cannot be recorded"), "{error}");
    assert_eq!(system.everything(), before);
}

#[test]
fn apts_own_view_goes_before_the_files() {
    let system = System::new("debian");
    let dump = "APT::Periodic::Unattended-Upgrade=always\n";
    let tools = Script::default().with("apt-config dump --no-empty --format %F=%v%n", dump);
    let in_force = InForce::look(&system.files, &tools);
    let wish = content::tests::wish(Distribution::Debian);
    let found = in_force.differences(&wish, &system.files);
    assert!(
        found.iter().any(|line| line.starts_with("APT::Periodic::Update-Package-Lists is []")),
        "{found:?}"
    );
    assert!(!found.iter().any(|line| line.starts_with("APT::Periodic::Unattended-Upgrade")), "{found:?}");
}

#[test]
fn other_distributions_are_refused() {
    let system = System::new("fedora");
    assert!(system.run("").unwrap_err().to_string().contains("fedora"));
}
