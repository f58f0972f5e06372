use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use patch_types::executor::RECORD;
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::{screen::tests::paper, tools::tests::Script};

const SECURITY: &str = "deb [signed-by=/usr/share/keyrings/debian.gpg] http://deb.debian.org/debian bookworm main\n\
    deb [signed-by=/usr/share/keyrings/debian.gpg] http://security.debian.org/debian-security bookworm-security main\n";

/// A host on which everything is well, to be broken by the tests.
struct Broken {
    dir: TempDir,
    tools: Script,
}

impl Broken {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broken = Self {
            dir,
            tools: Script::default().with("timedatectl show -p NTPSynchronized --value", "yes\n"),
        };
        let status: String = ["apt", "unattended-upgrades", "needrestart", "linux-patch-api"]
            .map(|name| {
                format!("Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n")
            })
            .concat();
        broken.put("var/lib/dpkg/status", &status);
        fs::create_dir_all(broken.path("boot")).unwrap();
        for (unit, hours) in [("apt-daily.timer", "00/6:00"), ("apt-daily-upgrade.timer", "01/6:30")] {
            broken.put(
                &format!("usr/lib/systemd/system/{unit}"),
                &format!("[Timer]\nOnCalendar=*-*-* {hours}\nRandomizedDelaySec=1h\n"),
            );
            broken.link(
                &format!("etc/systemd/system/timers.target.wants/{unit}"),
                &format!("/usr/lib/systemd/system/{unit}"),
            );
        }
        broken.put(
            "etc/apt/apt.conf.d/20auto-upgrades",
            "APT::Periodic::Update-Package-Lists \"always\";\nAPT::Periodic::Unattended-Upgrade \"always\";\n",
        );
        broken.put(
            "etc/apt/apt.conf.d/50unattended-upgrades",
            "Unattended-Upgrade::Origins-Pattern { \"origin=Debian,codename=${distro_codename},label=Debian-Security\"; };\n",
        );
        broken.put("etc/apt/sources.list", SECURITY);
        broken.put("etc/needrestart/needrestart.conf", "#$nrconf{restart} = 'a';\n$nrconf{restart} = 'l';\n");
        for (dir, name) in [("usr/share/keyrings", "debian.gpg"), ("etc/apt/trusted.gpg.d", "a.gpg")] {
            fs::create_dir_all(broken.path(dir)).unwrap();
            fs::write(broken.path(dir).join(name), openpgp::tests::file(u32::MAX, false)).unwrap();
        }
        broken.put("proc/uptime", "1728000.12 1.0\n");
        broken.put("proc/sys/kernel/osrelease", "6.1.0-26-amd64\n");
        broken.put("proc/version", "Linux version 6.1.0-26-amd64 #1 SMP\n");
        broken.put("etc/linux_patch_api/config.yaml", "server: {bind_address: 10.0.0.1}\n");
        broken.put("etc/linux_patch_api/whitelist.yaml", "allowed_ips: [10.0.0.5]\n");
        broken.put("etc/linux_patch_api/certs/server.key.pem", "key");
        broken.mode("etc/linux_patch_api/certs/server.key.pem", 0o600);
        broken
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
        self.mode(path, 0o644);
    }

    fn add(&self, path: &str, text: &str) {
        let old = fs::read_to_string(self.path(path)).unwrap_or_default();
        self.put(path, &format!("{old}{text}"));
    }

    fn mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn date(&self, path: &str, at: &str) {
        let file = fs::File::options().write(true).open(self.path(path)).unwrap();
        file.set_modified(at.parse::<Timestamp>().unwrap().into()).unwrap();
    }

    fn unseen(&self, id: &str) -> Vec<String> {
        self.seen().unseen.into_iter().filter(|(of, _)| *of == id).map(|(_, reason)| reason).collect()
    }

    fn link(&self, path: &str, target: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        symlink(target, self.path(path)).unwrap();
    }

    fn has(self, package: &str) -> Self {
        self.add(
            "var/lib/dpkg/status",
            &format!("Package: {package}\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n"),
        );
        self
    }

    fn seen(&self) -> Seen {
        let now = "2026-06-01T00:00:00Z".parse().unwrap();
        examine(&Below::new(self.dir.path().to_owned()), &self.tools, now)
    }

    /// The findings but those about this machine's own disk.
    fn found(&self) -> Vec<&'static str> {
        let mut found: Vec<_> = self.seen().findings.into_iter().map(|finding| finding.id).collect();
        found.retain(|id| *id != "disk_full");
        found
    }
}

/// Each way of breaking a host, and the one finding that it makes.
#[test]
fn a_healthy_host_is_silent_and_each_fault_is_found() {
    assert_eq!(Broken::new().found(), [""; 0]);
    type Break = fn(&Broken);
    let faults: &[(&str, Break)] = &[
        ("timer_masked", |b| b.link("etc/systemd/system/apt-daily.timer", "/dev/null")),
        ("timer_disabled", |b| {
            fs::remove_file(b.path("etc/systemd/system/timers.target.wants/apt-daily-upgrade.timer"))
                .unwrap();
        }),
        ("timer_missing", |b| fs::remove_file(b.path("usr/lib/systemd/system/apt-daily.timer")).unwrap()),
        ("updater_missing", |b| {
            let status = fs::read_to_string(b.path("var/lib/dpkg/status")).unwrap();
            b.put("var/lib/dpkg/status", &status.replace("unattended-upgrades", "something-else"));
        }),
        ("updates_off", |b| b.put("etc/apt/apt.conf.d/99off", "APT::Periodic::Unattended-Upgrade \"0\";\n")),
        ("updates_off", |b| b.put("etc/apt/apt.conf.d/99off", "APT::Periodic::Enable \"0\";\n")),
        ("security_not_allowed", |b| {
            b.put(
                "etc/apt/apt.conf.d/50unattended-upgrades",
                "Unattended-Upgrade::Origins-Pattern { \"origin=Debian,codename=x-updates\"; };\n",
            );
        }),
        ("too_slow", |b| {
            b.put(
                "etc/systemd/system/apt-daily.timer.d/x.conf",
                "[Timer]\nOnCalendar=\nOnCalendar=daily\nRandomizedDelaySec=12h\n",
            );
        }),
        ("two_updaters", |b| {
            b.add(
                "var/lib/dpkg/status",
                "Package: cron-apt\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n",
            );
        }),
        ("agent_mode_without_effect", |b| {
            b.put(
                "etc/linux_patch_api/config.yaml",
                "server: {bind_address: 10.0.0.1}\npolicy: {mode: agent}\n",
            );
        }),
        ("agent_mode_without_effect", |b| {
            b.put(crate::policy::FILE, "APT::Periodic::Unattended-Upgrade \"0\";\n");
            // Otherwise it is found as well that updates are off.
            b.put("etc/apt/apt.conf.d/99z", "APT::Periodic::Unattended-Upgrade \"always\";\n");
        }),
        ("two_reboot_windows", |b| {
            for unit in ["kei-reboot-window.timer", "linux-patch-reboot-window.timer"] {
                b.link(&format!("etc/systemd/system/timers.target.wants/{unit}"), "/x");
            }
        }),
        ("dpkg_interrupted", |b| b.put("var/lib/dpkg/updates/0001", "Package: x\n")),
        ("dpkg_interrupted", |b| {
            b.add(
                "var/lib/dpkg/status",
                "Package: xx\nStatus: install ok half-configured\nArchitecture: all\nVersion: 1\n\n",
            );
        }),
        ("security_source_missing", |b| {
            b.put(
                "etc/apt/sources.list",
                "deb [signed-by=/usr/share/keyrings/debian.gpg] http://deb.debian.org/debian bookworm main\n",
            );
        }),
        ("unverified_source", |b| {
            b.put(
                "etc/apt/sources.list.d/x.list",
                "deb [trusted=yes signed-by=/usr/share/keyrings/debian.gpg] http://x.example x main\n",
            );
        }),
        ("unverified_source", |b| b.put("etc/apt/apt.conf.d/99x", "APT::Get::AllowUnauthenticated true;\n")),
        ("stale_lists_believed", |b| {
            b.put("etc/apt/apt.conf.d/99x", "Acquire::Check-Valid-Until \"false\";\n");
        }),
        ("foreign_source", |b| {
            b.put(
                "etc/apt/sources.list.d/x.sources",
                "Types: deb\nURIs: https://x.example/debian\nSuites: stable\nComponents: main\n",
            );
            b.put(
                "var/lib/apt/lists/x.example_debian_dists_stable_InRelease",
                "Origin: Somebody\nSuite: stable\n",
            );
        }),
        ("key_missing", |b| fs::remove_file(b.path("usr/share/keyrings/debian.gpg")).unwrap()),
        ("key_expired", |b| {
            fs::write(b.path("usr/share/keyrings/debian.gpg"), openpgp::tests::file(1, false)).unwrap();
        }),
        ("key_expired", |b| {
            fs::write(b.path("usr/share/keyrings/debian.gpg"), openpgp::tests::file(0, true)).unwrap();
        }),
        ("key_expired", |b| {
            use base64::{Engine, engine::general_purpose::STANDARD};
            b.put(
                "etc/apt/sources.list.d/x.sources",
                &format!(
                    "Types: deb\nURIs: https://x.example/debian\nSuites: stable\nComponents: main\nSigned-By:\n \
                     -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n {}\n -----END PGP PUBLIC KEY BLOCK-----\n",
                    STANDARD.encode(openpgp::tests::file(1, false))
                ),
            );
        }),
        ("key_expires", |b| {
            let lifetime =
                u32::try_from("2026-06-10T00:00:00Z".parse::<Timestamp>().unwrap().as_second() - 1000)
                    .unwrap();
            fs::write(b.path("usr/share/keyrings/debian.gpg"), openpgp::tests::file(lifetime, false))
                .unwrap();
        }),
        ("clock_behind", |b| {
            b.put("var/lib/apt/lists/x_InRelease", "Origin: Debian\nDate: Tue, 02 Jun 2026 00:00:00 UTC\n");
        }),
        ("reboot_overdue", |b| {
            b.put("run/reboot-required", "");
            b.put("run/reboot-required.pkgs", "libc6\n");
            b.date("run/reboot-required", "2026-05-31T00:00:00Z");
            b.date("run/reboot-required.pkgs", "2026-05-14T00:00:00Z");
        }),
        ("reboot_overdue", |b| {
            b.put("proc/uptime", "3456000.12 1.0\n");
            b.add(
                "var/lib/dpkg/status",
                "Package: linux-image-6.1.0-28-amd64\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n\n",
            );
        }),
        ("certificate_expired", |b| b.put("etc/linux_patch_api/certs/server.pem", EXPIRED)),
        ("secret_readable", |b| b.put("etc/msmtp-password", "x")),
        ("secret_readable", |b| b.mode("etc/linux_patch_api/certs/server.key.pem", 0o644)),
        ("key_mode", |b| b.mode("etc/linux_patch_api/certs/server.key.pem", 0o640)),
        ("writable", |b| b.mode("etc/linux_patch_api/whitelist.yaml", 0o666)),
        ("allow_list_wide", |b| b.put("etc/linux_patch_api/whitelist.yaml", "allowed_ips: [10.0.0.0/8]\n")),
        ("listener_public", |b| {
            b.put("etc/linux_patch_api/config.yaml", "server: {bind_address: 8.8.8.8}\n");
        }),
    ];
    for (id, fault) in faults {
        let broken = Broken::new();
        fault(&broken);
        assert_eq!(broken.found(), [*id], "{:?}", broken.seen());
    }
}

#[test]
fn the_agents_mode_silences_nothing() {
    let broken = Broken::new();
    broken
        .put("etc/linux_patch_api/config.yaml", "server: {bind_address: 10.0.0.1}\npolicy: {mode: agent}\n");
    broken.put(
        "etc/apt/apt.conf.d/99off",
        "APT::Periodic::Unattended-Upgrade \"0\";\n#clear Unattended-Upgrade::Origins-Pattern;\n",
    );
    assert_eq!(broken.found(), ["agent_mode_without_effect", "updates_off", "security_not_allowed"]);
    let seen = broken.seen();
    assert_eq!(seen.findings[0].severity, Severity::Critical);
    assert!(!seen.findings.iter().any(|finding| finding.todo.contains("to \"0\"")), "{seen:?}");
    let status = fs::read_to_string(broken.path("var/lib/dpkg/status")).unwrap();
    broken.put("var/lib/dpkg/status", &status.replace("unattended-upgrades", "something-else"));
    assert!(broken.found().contains(&"updater_missing"));
}

/// A host on which the agent patches, and all is well.
fn with_agent(policy: &str) -> Broken {
    let mut broken = Broken::new();
    broken.put(
        "etc/linux_patch_api/config.yaml",
        &format!("server: {{bind_address: 10.0.0.1}}\npolicy: {policy}\n"),
    );
    broken.put(crate::policy::FILE, "APT::Periodic::Unattended-Upgrade \"0\";\n");
    broken.link("etc/systemd/system/timers.target.wants/linux-patch-policy.timer", "/x");
    broken.put(
        "var/lib/linux_patch_executor/policy/state.json",
        r#"{"since": "2026-01-01T00:00:00Z", "last_success": {"job": "0198c5f2-0000-7000-8000-000000000001", "at": "2026-05-31T12:00:00Z"}}"#,
    );
    for unit in ["linux-patch-api.service", "linux-patch-policy.timer"] {
        broken.tools = broken.tools.with(
            &format!("systemctl show -p ActiveState,UnitFileState -- {unit}"),
            "ActiveState=active\nUnitFileState=enabled\n",
        );
    }
    broken
}

#[test]
fn where_the_agent_patches_the_distributions_updater_need_not() {
    let broken = with_agent("{mode: agent}");
    assert_eq!(broken.found(), [""; 0], "{:?}", broken.seen());
    // It matters not what that one could do, nor whether it is there.
    let status = fs::read_to_string(broken.path("var/lib/dpkg/status")).unwrap();
    broken.put("var/lib/dpkg/status", &status.replace("unattended-upgrades", "something-else"));
    broken.put("etc/apt/apt.conf.d/99a", "#clear Unattended-Upgrade::Origins-Pattern;\n");
    assert_eq!(broken.found(), [""; 0], "{:?}", broken.seen());
    // But the indexes are fetched by apt's own timer.
    broken.put("etc/apt/apt.conf.d/99a", "APT::Periodic::Update-Package-Lists \"0\";\n");
    assert_eq!(broken.found(), ["updates_off"]);
    // A word that older versions of YAML take for something else.
    assert!(with_agent("{mode: off}").unseen("agent_mode_without_effect").is_empty());
    let weekly = with_agent("{mode: agent, window: {days: Sun, hour: 4}}");
    assert_eq!(weekly.found(), ["too_slow"], "{:?}", weekly.seen());
}

#[test]
fn what_was_taken_back_and_a_ceiling_that_is_refused_are_found() {
    let broken = Broken::new().has("aa").has("bb");
    broken.put(
        "var/lib/linux_patch_executor/taken_back.json",
        r#"[{"name": "aa", "architecture": "all", "version": "2", "job": "j"},
            {"name": "bb", "architecture": "all", "version": "1", "job": "j"},
            {"name": "gone", "architecture": "all", "version": "2", "job": "j"}]"#,
    );
    let seen = broken.seen();
    let finding = seen.findings.iter().find(|finding| finding.id == "taken_back").unwrap();
    assert!(finding.what.ends_with("aa 2 (job j)"), "{}", finding.what);
    assert_eq!(finding.severity, Severity::Warning, "whose fix it is cannot be told of another system");
    broken.put("var/lib/linux_patch_executor/taken_back.json", "{");
    assert_eq!(broken.unseen("taken_back").len(), 1);
    fs::remove_file(broken.path("var/lib/linux_patch_executor/taken_back.json")).unwrap();

    broken.put("etc/linux_patch_api/ceiling.yaml", "operation: []\n");
    assert_eq!(broken.found(), ["ceiling_invalid"]);
    let seen = broken.seen();
    assert!(seen.findings.iter().any(|finding| finding.what.contains("ceiling.yaml:1:1")), "{seen:?}");
    broken.put("etc/linux_patch_api/ceiling.yaml", "operations: [refresh]\n");
    assert_eq!(broken.found(), [""; 0]);
}

#[test]
fn where_it_does_not_the_reason_is_told() {
    let reason = |broken: &Broken| {
        let seen = broken.seen();
        let finding = seen.findings.iter().find(|finding| finding.id == "agent_mode_without_effect");
        finding.map(|finding| finding.what.clone()).unwrap_or_default()
    };
    let broken = with_agent("{mode: agent, paused: true}");
    assert!(reason(&broken).contains("paused"), "{:?}", broken.seen());
    let broken = with_agent("{mode: agent}");
    broken.put("etc/linux_patch_api/freeze", "");
    assert!(reason(&broken).contains("frozen by /etc/linux_patch_api/freeze"), "{:?}", broken.seen());
    let broken = with_agent("{mode: agent}");
    broken.put("var/lib/linux_patch_executor/policy/state.json", r#"{"since": "2026-05-01T00:00:00Z"}"#);
    assert!(reason(&broken).contains("has not patched since 2026-05-01"), "{:?}", broken.seen());
    let mut broken = with_agent("{mode: agent}");
    broken.tools = Script::default().with(
        "systemctl show -p ActiveState,UnitFileState -- linux-patch-api.service",
        "ActiveState=failed\n",
    );
    assert!(reason(&broken).contains("does not run"), "{:?}", broken.seen());
    let broken = with_agent("{mode: agent}");
    fs::remove_file(broken.path("etc/systemd/system/timers.target.wants/linux-patch-policy.timer")).unwrap();
    assert!(reason(&broken).contains("linux-patch-policy.timer is not enabled"));
    let mut broken = with_agent("{mode: agent}");
    broken.tools = broken.tools.with(
        "systemctl show -p ActiveState,UnitFileState -- linux-patch-policy.timer",
        "ActiveState=inactive\nUnitFileState=enabled\n",
    );
    assert!(reason(&broken).contains("linux-patch-policy.timer is off"), "{:?}", broken.seen());
    broken.put("etc/apt/apt.conf.d/99z", "APT::Periodic::Unattended-Upgrade \"always\";\n");
    assert!(reason(&broken).contains("is not switched off"));
    let broken = with_agent("{mode: agent, modes: 1}");
    assert_eq!(broken.unseen("agent_mode_without_effect").len(), 1);
}

#[test]
fn no_timer_is_started_on_a_host_that_would_then_reboot() {
    let broken = Broken::new().has("postgresql-15");
    broken.put("etc/apt/apt.conf.d/99x", "Unattended-Upgrade::Automatic-Reboot \"true\";\n");
    broken.link("etc/systemd/system/apt-daily.timer", "/dev/null");
    fs::remove_file(broken.path("etc/systemd/system/timers.target.wants/apt-daily-upgrade.timer")).unwrap();
    assert_eq!(broken.found(), ["timer_masked", "timer_disabled", "automatic_reboot"]);
    let seen = broken.seen();
    assert!(seen.findings.iter().all(|finding| finding.fix.is_none()), "{seen:?}");
    let todo = &seen.findings[0].todo;
    assert!(todo.starts_with("linux-patch-host provision unattended first"), "{todo}");
    let (mut screen, out, _) = paper(true);
    doctor(&Below::new(broken.dir.path().to_owned()), &broken.tools, &mut screen, true).unwrap();
    let told: Value = serde_json::from_str(&out.text()).unwrap();
    assert_eq!((&told["fixed"], &told["not_fixed"]), (&serde_json::json!([]), &serde_json::json!([])));
    fs::remove_file(broken.path("etc/apt/apt.conf.d/99x")).unwrap();
    assert!(broken.seen().findings.iter().all(|finding| finding.fix.is_some()));
}

#[test]
fn links_are_followed_to_what_they_lead_to() {
    for (link, mode, found) in [
        ("etc/linux_patch_api/certs/server.key.pem", 0o644, &["secret_readable"][..]),
        ("etc/linux_patch_api/certs/server.key.pem", 0o640, &["key_mode"]),
        ("etc/linux_patch_api/certs/server.key.pem", 0o600, &[]),
        ("etc/linux_patch_api/whitelist.yaml", 0o646, &["writable"]),
        ("etc/linux_patch_api/ceiling.yaml", 0o664, &["writable"]),
        ("etc/msmtp-password", 0o644, &["secret_readable"]),
    ] {
        let broken = Broken::new();
        broken.put("srv/kept", "{}\n");
        broken.mode("srv/kept", mode);
        let _ = fs::remove_file(broken.path(link));
        broken.link(link, "/srv/kept");
        assert_eq!(broken.found(), found, "{link}");
        let seen = broken.seen();
        assert!(seen.findings.iter().all(|finding| finding.fix.is_none()), "{seen:?}");
    }
    let broken = Broken::new();
    broken.link("etc/linux_patch_api/ceiling.yaml", "/nothing");
    broken.link("etc/msmtp-password", "msmtp-password");
    fs::create_dir(broken.path("etc/msmtprc")).unwrap();
    assert_eq!(broken.found(), [""; 0]);
    assert_eq!((broken.unseen("writable").len(), broken.unseen("not_roots").len()), (1, 1));
    assert_eq!(broken.unseen("secret_readable").len(), 2, "{:?}", broken.unseen("secret_readable"));
}

#[test]
fn what_is_not_roots_is_found() {
    // Only root can give files away.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for path in ["config.yaml", "whitelist.yaml", "ceiling.yaml", "certs/server.key.pem"] {
        let broken = Broken::new();
        let path = format!("etc/linux_patch_api/{path}");
        broken.put("srv/kept", "{}\n");
        if !broken.path(&path).exists() {
            broken.link(&path, "/srv/kept");
        }
        std::os::unix::fs::chown(broken.path("srv/kept"), Some(4321), None).unwrap();
        if !broken.path(&path).is_symlink() {
            std::os::unix::fs::chown(broken.path(&path), Some(4321), None).unwrap();
        }
        assert_eq!(broken.found(), ["not_roots"], "{path}");
        assert!(broken.seen().findings[0].what.ends_with("belongs to the user 4321"));
    }
}

#[test]
fn what_cannot_be_judged_of_the_agent_is_said() {
    for (config, id) in [
        ("server: {bind_address: internal}\n", "listener_public"),
        ("server: {bind_address: 5}\n", "listener_public"),
        ("server: {bind_address: 10.0.0.1, port: x}\n", "firewall_open"),
        ("tls: {server_key: 5}\n", "secret_readable"),
    ] {
        let broken = Broken::new();
        broken.put("etc/linux_patch_api/config.yaml", config);
        assert_eq!(broken.found(), [""; 0], "{config}");
        assert!(!broken.unseen(id).is_empty(), "{config}");
    }
    let mut broken = Broken::new();
    broken.put("etc/linux_patch_api/config.yaml", "{}\n");
    broken.tools = std::mem::take(&mut broken.tools).with("ip -json address show", "1: lo: <LOOPBACK>");
    assert_eq!(broken.found(), [""; 0]);
    assert!(
        broken.unseen("listener_public")[0].contains("no JSON"),
        "{:?}",
        broken.unseen("listener_public")
    );
}

#[test]
fn keys_of_archives_that_name_none_are_looked_for() {
    let broken = Broken::new();
    broken.put("etc/apt/sources.list.d/x.list", "deb http://deb.debian.org/debian bookworm contrib\n");
    assert_eq!(broken.found(), [""; 0]);
    fs::remove_file(broken.path("etc/apt/trusted.gpg.d/a.gpg")).unwrap();
    assert_eq!(broken.found(), ["key_missing"]);
    let key = |name: &str, lifetime: u32| {
        let dir = broken.path("etc/apt/trusted.gpg.d");
        fs::write(dir.join(name), openpgp::tests::file(lifetime, false)).unwrap();
    };
    key("a.gpg", 1);
    key("b.asc", 2);
    assert_eq!(broken.found(), ["key_expired"]);
    key("b.asc", u32::MAX);
    assert_eq!(broken.found(), [""; 0]);
    assert!(broken.unseen("key_expired")[0].contains("a.gpg: every key in it has expired"));
    fs::remove_file(broken.path("etc/apt/trusted.gpg.d/b.asc")).unwrap();
    broken.put("etc/apt/trusted.gpg", "of no known form");
    assert_eq!(broken.found(), [""; 0], "what cannot be read may be good");
    assert_eq!(broken.unseen("key_expired").len(), 2);
    fs::remove_file(broken.path("etc/apt/trusted.gpg")).unwrap();

    let print = "0123456789ABCDEF0123456789ABCDEF01234567";
    broken
        .put("etc/apt/sources.list.d/x.list", &format!("deb [signed-by={print}] http://x.example x main\n"));
    assert_eq!(broken.found(), [""; 0]);
    assert!(broken.unseen("key_expired")[0].contains(print));
}

#[test]
fn a_reboot_is_not_older_than_the_boot() {
    let broken = Broken::new();
    broken.put("run/reboot-required", "");
    broken.date("run/reboot-required", "1990-01-01T00:00:00Z");
    let what =
        broken.seen().findings.into_iter().find(|finding| finding.id == "reboot_overdue").unwrap().what;
    assert!(what.contains("for at least 20 days, and may wait for 14 days"), "{what}");
    broken.put("proc/uptime", "86400.00 1.0\n");
    assert_eq!(broken.found(), [""; 0]);
    broken.put("proc/uptime", "since long\n");
    assert_eq!(broken.found(), ["reboot_overdue"]);
    assert_eq!(broken.unseen("reboot_overdue"), ["/proc/uptime does not say since when the system runs"]);
}

#[test]
fn the_reboot_window_is_not_judged_here() {
    let broken = Broken::new();
    assert_eq!(broken.unseen("reboot_window_never"), [""; 0]);
    for (path, text) in [
        ("etc/default/kei-reboot-window", "KEI_REBOOT_DOW=\"Someday\"\n"),
        ("etc/linux_patch_api/config.yaml", "server: {bind_address: 10.0.0.1}\nreboot: {window: {}}\n"),
    ] {
        let broken = Broken::new();
        broken.put(path, text);
        assert_eq!(broken.found(), [""; 0]);
        assert_eq!(broken.unseen("reboot_window_never"), [format!("the reboot window of /{path}")]);
    }
}

#[test]
fn a_window_that_nobody_looks_at_is_found() {
    const UNIT: &str = "linux-patch-reboot-window.timer";
    let ask = format!("systemctl show -p ActiveState --value -- {UNIT}");
    let look = |broken: &Broken| {
        let files = Below::new(broken.dir.path().to_owned());
        let host = Host::look(&files, &broken.tools, Timestamp::UNIX_EPOCH);
        let mut seen = Seen::default();
        reboots::timer(&host, &mut seen);
        seen.findings
            .into_iter()
            .map(|finding| format!("{}: {}", finding.id, finding.what))
            .collect::<Vec<_>>()
    };
    let broken = Broken::new();
    let off = "reboot_window_timer_off: a reboot window is declared, and linux-patch-reboot-window.timer";
    assert_eq!(look(&broken), [format!("{off} is not enabled")]);
    let enable = |broken: &Broken, unit: &str| {
        broken.link(
            &format!("etc/systemd/system/timers.target.wants/{unit}"),
            &format!("/usr/lib/systemd/system/{unit}"),
        );
    };
    enable(&broken, UNIT);
    assert_eq!(look(&broken), [""; 0], "not looked at where systemd does not run");
    for (state, found) in [("active\n", None), ("inactive\n", Some(format!("{off} is inactive")))] {
        let mut broken = Broken::new();
        enable(&broken, UNIT);
        fs::create_dir_all(broken.path("run/systemd/system")).unwrap();
        broken.tools = Script::default().with(&ask, state);
        assert_eq!(look(&broken), found.into_iter().collect::<Vec<_>>());
    }
    // The older one's own.
    let broken = Broken::new();
    enable(&broken, "kei-reboot-window.timer");
    assert_eq!(look(&broken), [""; 0]);
    // It restarts nothing.
    broken.put(
        "etc/linux_patch_api/config.yaml",
        "server: {bind_address: 10.0.0.1}\npolicy: {restart: {mode: restart, services: [a.service], when: in_window}}\n",
    );
    assert_eq!(look(&broken), [format!("{off} is not enabled")]);
}

#[test]
fn restarts_that_wait_for_no_window_are_found() {
    let config = |when: &str| {
        let broken = Broken::new();
        broken.put(
            "etc/linux_patch_api/config.yaml",
            &format!("server: {{bind_address: 10.0.0.1}}\npolicy: {{restart: {{mode: restart, services: [a.service], when: {when}}}}}\n"),
        );
        broken.found()
    };
    assert_eq!(config("in_window"), ["restarts_without_window"]);
    assert_eq!(config("at_once"), [""; 0]);
}

/// A certificate that ended in 2025, of an Ed25519 key that nobody has.
const EXPIRED: &str = include_str!("expired.pem");

#[test]
fn faults_that_need_a_database_host() {
    let broken = Broken::new().has("postgresql-15");
    assert_eq!(broken.found(), [""; 0]);
    broken.put("etc/apt/apt.conf.d/99x", "Unattended-Upgrade::Automatic-Reboot \"true\";\n");
    assert_eq!(broken.found(), ["automatic_reboot"]);
    let broken = Broken::new();
    broken.put("etc/apt/apt.conf.d/99x", "Unattended-Upgrade::Automatic-Reboot \"true\";\n");
    assert_eq!(broken.found(), [""; 0], "without anything stateful it may");

    let auto = "$nrconf{restart} = 'a';\n";
    let broken = Broken::new();
    broken.put("etc/needrestart/conf.d/50.conf", auto);
    assert_eq!(broken.found(), [""; 0]);
    let broken = broken.has("mariadb-server-10.5");
    assert_eq!(broken.found(), ["needrestart_auto"]);
    broken.put("etc/needrestart/conf.d/60.conf", "$nrconf{restart} = 'l';\n");
    assert_eq!(broken.found(), [""; 0]);
}

#[test]
fn a_pinned_source_is_no_finding() {
    let broken = Broken::new();
    broken.put("etc/apt/sources.list.d/x.list", "deb https://x.example/debian stable main\n");
    broken.put(
        "var/lib/apt/lists/x.example_debian_dists_stable_InRelease",
        "Origin: Somebody\nSuite: stable\n",
    );
    assert_eq!(broken.found(), ["foreign_source"]);
    broken.put("etc/apt/preferences.d/x", "Package: *\nPin: release o=Somebody\nPin-Priority: 100\n");
    assert_eq!(broken.found(), [""; 0]);
    broken.put("etc/apt/preferences.d/x", "Package: *\nPin: origin x.example\nPin-Priority: 100\n");
    assert_eq!(broken.found(), [""; 0]);
}

#[test]
fn what_runs_is_asked() {
    let mut broken = Broken::new();
    broken.put("run/systemd/system/x", "");
    let stopped = |unit: &str| format!("systemctl show -p ActiveState --value -- {unit}");
    broken.tools = Script::default()
        .with(&stopped("apt-daily.timer"), "active\n")
        .with(&stopped("apt-daily-upgrade.timer"), "inactive\n")
        .with("timedatectl show -p NTPSynchronized --value", "no\n")
        .with("nft list ruleset", "table inet x {\n}\n");
    assert_eq!(broken.found(), ["timer_stopped", "clock_not_kept", "firewall_open"]);
    broken.tools = std::mem::take(&mut broken.tools).with("nft list ruleset", "tcp dport 12443 drop\n");
    assert_eq!(broken.found(), ["timer_stopped", "clock_not_kept"]);
    broken.put("run/systemd/container", "systemd-nspawn");
    assert_eq!(broken.found(), ["timer_stopped"], "a container does not keep its clock");

    broken.put("etc/linux_patch_api/config.yaml", "{}\n");
    let addresses = r#"[{"addr_info":[{"local":"10.0.0.1"},{"local":"8.8.8.8"}]}]"#;
    broken.tools = std::mem::take(&mut broken.tools).with("ip -json address show", addresses);
    assert_eq!(broken.found(), ["timer_stopped", "listener_public"]);
}

#[test]
fn what_cannot_be_looked_at_is_said() {
    let broken = Broken::new();
    let unseen: Vec<_> = broken.seen().unseen.into_iter().map(|(id, _)| id).collect();
    assert!(unseen.contains(&"firewall_open"), "{unseen:?}");
    assert!(unseen.contains(&"certificate_expires"), "no certificate is there: {unseen:?}");
    broken.put("etc/linux_patch_api/config.yaml", "server: [\n");
    let unseen: Vec<_> = broken.seen().unseen.into_iter().map(|(id, _)| id).collect();
    assert!(unseen.contains(&"listener_public") && unseen.contains(&"secret_readable"), "{unseen:?}");
}

#[test]
fn an_empty_system_is_no_healthy_one() {
    let dir = tempfile::tempdir().unwrap();
    let seen = examine(&Below::new(dir.path().to_owned()), &Script::default(), Timestamp::now());
    let found: Vec<_> = seen.findings.iter().map(|finding| finding.id).collect();
    assert!(found.contains(&"timer_missing") && found.contains(&"updates_off"), "{found:?}");
    assert!(seen.unseen.iter().any(|(id, _)| *id == "updater_missing"), "{:?}", seen.unseen);
}

#[test]
fn what_is_safe_is_mended_and_recorded() {
    let broken = Broken::new();
    broken.link("etc/systemd/system/apt-daily.timer", "/dev/null");
    broken.put("etc/msmtp-password", "x");
    fs::create_dir_all(broken.path("var/lib/linux_patch_executor")).unwrap();
    let files = Below::new(broken.dir.path().to_owned());
    let (mut screen, out, _) = paper(true);
    let exit = doctor(&files, &broken.tools, &mut screen, true).unwrap();
    assert_eq!(exit, Exit::Critical);
    let told: Value = serde_json::from_str(&out.text()).unwrap();
    assert_eq!(told["fixed"][0], "gives /etc/msmtp-password the mode 640");
    assert!(told["not_fixed"][0].as_str().unwrap().contains("systemctl is not installed"), "{told}");
    let found: Vec<_> =
        told["findings"].as_array().unwrap().iter().filter(|f| f["id"] != "disk_full").collect();
    assert_eq!(
        (found.len(), &found[0]["id"], &found[0]["fixable"]),
        (1, &"timer_masked".into(), &true.into())
    );
    let record = fs::read_to_string(broken.path(RECORD)).unwrap();
    assert!(record.contains("doctor --fix gives /etc/msmtp-password the mode 640"), "{record}");

    let (mut screen, out, _) = paper(false);
    doctor(&files, &broken.tools, &mut screen, false).unwrap();
    let text = out.text();
    assert!(text.contains("CRITICAL  timer_masked\n    apt-daily.timer is masked\n    why:"), "{text}");
    assert!(text.contains("NOT LOOKED AT"), "{text}");
}
