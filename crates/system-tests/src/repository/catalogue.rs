//! The packages of the test repository and what each is for.

use super::package::Published::{First, Former, Later, Security, Update};
use super::package::{Content, Package, Published};

/// How many packages the bulk has.
const BULK: u32 = 50;

const SIGNALS_REBOOT: &str = r#"if [ "$1" = configure ]; then
  if [ -x /usr/share/update-notifier/notify-reboot-required ]; then /usr/share/update-notifier/notify-reboot-required
  else mkdir -p /run; echo "*** System restart required ***" >/run/reboot-required; echo lp-reboot >>/run/reboot-required.pkgs; fi
fi"#;

/// Ends when `/run/lp-slow-go` appears or as many seconds have passed as `/run/lp-slow-seconds` says, else 20.
const IS_SLOW: &str = r#"[ "$1" = configure ] || exit 0
: >/run/lp-slow-started
tenths=$(( $(cat /run/lp-slow-seconds 2>/dev/null || echo 20) * 10 ))
while [ "$tenths" -gt 0 ] && [ ! -e /run/lp-slow-go ]; do sleep 0.1; tenths=$((tenths - 1)); done"#;

const DAEMON_UNIT: &str = "[Unit]\nDescription=test daemon\n[Service]\nExecStart=/usr/sbin/lp-daemon infinity\n\
                           Restart=on-failure\n[Install]\nWantedBy=multi-user.target\n";
const DAEMON_POSTINST: &str = r#"[ "$1" = configure ] && [ -d /run/systemd/system ] && { systemctl daemon-reload; [ -n "$2" ] || systemctl enable --now lp-daemon; }; exit 0"#;
const DAEMON_PRERM: &str =
    r#"[ "$1" = remove ] && [ -d /run/systemd/system ] && systemctl disable --now lp-daemon; exit 0"#;

/// As debhelper writes it for a service that is restarted after an upgrade, with NAME for its own.
const RESTARTED: &str = r#"[ "$1" = configure ] && [ -d /run/systemd/system ] || exit 0
systemctl --system daemon-reload
if [ -n "$2" ]; then HOW restart; else systemctl enable NAME; HOW start; fi"#;

const QUESTION: &str = "Template: lp-ask/colour\nType: string\nDefault: blue\nDescription: Which colour?\n The colour of the test.\n";

/// Says that it has begun and goes on until `/run/NAME-go` appears, whatever signal it is asked to end by.
const HANGS: &str = r#"[ "$1" = configure ] || exit 0
[ -e /run/lp-hang-never ] && exit 0
trap '' TERM INT HUP
: >/run/lp-hang-started
while [ ! -e /run/lp-hang-go ]; do sleep 0.1; done"#;

/// A file capability, which no archive carries: the script gives it.
const GIVES_CAPABILITY: &str = r#"[ "$1" = configure ] || exit 0
python3 -c 'import os; os.setxattr("/usr/bin/lp-special", "security.capability", bytes([1,0,0,2,0,4]+[0]*14))'"#;

/// The network goes with the new version and comes with the old one.
const CUTS_NETWORK: &str = r#"[ "$1" = configure ] && ip link set host0 down 2>/dev/null; exit 0"#;
const MENDS_NETWORK: &str = r#"[ "$1" = configure ] && ip link set host0 up 2>/dev/null; exit 0"#;

/// A new version that restarts its service, as most do.
const RESTARTS: &str = r#"[ "$1" = configure ] || exit 0
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
systemctl enable lp-daemon-broken || true
systemctl restart lp-daemon-broken || true
exit 0"#;

/// All of them.
pub(super) fn packages() -> Vec<Package> {
    let mut packages = versions();
    packages.extend(relations());
    packages.extend(failures());
    packages.extend(behaviours());
    packages.extend(traps());
    packages.extend((0..BULK).flat_map(|number| plain(&format!("lp-bulk-{number:02}"), Security)));
    packages
}

/// 1.0 on day 0 and 1.1 on day 1, with nothing special.
fn plain(name: &str, update: Published) -> [Package; 2] {
    [Package::new(name, "1.0", First), Package::new(name, "1.1", update)]
}

/// 1.0 without anything special and a 1.1, a security update, that `change` makes special.
fn pair(name: &str, change: impl FnOnce(Package) -> Package) -> [Package; 2] {
    let [first, second] = plain(name, Security);
    [first, change(second)]
}

/// As [`pair`], with both versions special.
fn both(name: &str, update: Published, change: impl Fn(Package) -> Package) -> [Package; 2] {
    plain(name, update).map(change)
}

fn versions() -> Vec<Package> {
    let mut packages = vec![
        // Three versions, in three suites.
        Package::new("lp-plain", "1.0-1", First),
        Package::new("lp-plain", "1.0-2", Update),
        Package::new("lp-plain", "1.1-1", Security),
        // Only to be ordered rightly by who knows Debian's rules: a tilde sorts before the end.
        Package::new("lp-epoch", "1:1.0~rc1", First),
        Package::new("lp-epoch", "1:1.0", Security),
    ];
    // For the test to hold with `apt-mark hold`.
    packages.extend(plain("lp-held", Update));
    // Published to 0 % of machines.
    let [first, phased] = plain("lp-phased", Update);
    packages.extend([first, phased.field("Phased-Update-Percentage: 0")]);
    packages
        .extend(both("lp-multi", Security, |package| package.machine_dependent().field("Multi-Arch: same")));
    packages
}

fn relations() -> Vec<Package> {
    let mut packages = Vec::new();
    // A library and its exactly-versioned user must move together, up and down.
    packages.extend(plain("lp-lib", Security));
    packages.extend(plain("lp-app", Security).map(|package| {
        let field = format!("Depends: lp-lib (= {})", package.version);
        package.field(&field)
    }));
    // 1.1 pulls in a new package.
    packages.push(Package::new("lp-new", "1.0", First));
    packages.extend(pair("lp-newdep", |package| package.field("Depends: lp-new")));
    // 1.1 removes another package.
    packages.push(Package::new("lp-victim", "1.0", First));
    packages.extend(pair("lp-breaks", |package| package.field("Conflicts: lp-victim")));
    // A virtual package.
    packages.extend(both("lp-provider", Security, |package| package.field("Provides: lp-virtual")));
    packages.push(Package::new("lp-needs-virtual", "1.0", First).field("Depends: lp-virtual"));
    packages
}

fn failures() -> Vec<Package> {
    let mut packages = Vec::new();
    // Left half configured.
    packages.extend(pair("lp-postfail", |package| {
        package.script(
            "postinst",
            "[ \"$1\" = configure ] && { echo \"lp-postfail: deliberate failure\" >&2; exit 3; }; exit 0",
        )
    }));
    // Fails until a flag file appears: failed, repaired, tried again.
    packages.extend(pair("lp-flaky", |package| {
        package.script("postinst", "[ \"$1\" != configure ] || [ -e /run/lp-flaky-ok ]")
    }));
    // dpkg goes back to 1.0 by itself.
    packages.extend(pair("lp-prefail", |package| {
        package.script("preinst", "[ \"$1\" = upgrade ] && exit 4; exit 0")
    }));
    // Fails at removal and at upgrade: the old prerm, and the new one called with failed-upgrade.
    packages.extend(both("lp-prermfail", Security, |package| {
        package.script("prerm", "echo \"lp-prermfail: prerm $1\" >&2; exit 5")
    }));
    // The same after the files are gone.
    packages.extend(both("lp-postrmfail", Security, |package| {
        package.script("postrm", "echo \"lp-postrmfail: postrm $1\" >&2; exit 6")
    }));
    // Cannot even be installed anew.
    packages.push(Package::new("lp-newfail", "1.0", First).script("preinst", "exit 7"));
    packages
}

fn behaviours() -> Vec<Package> {
    let mut packages = Vec::new();
    // A conffile that changes.
    packages.extend(plain("lp-conf", Update).map(|package| {
        let text = format!("shipped={}\n", package.version);
        package.file("/etc/lp-conf.conf", Content::Text(text))
    }));
    packages.extend(pair("lp-reboot", |package| package.script("postinst", SIGNALS_REBOOT)));
    // A question of high priority, which must not hang a run that nobody watches.
    packages.extend(both("lp-ask", Security, |package| {
        package
            .field("Depends: debconf")
            .templates(QUESTION)
            .script("config", ". /usr/share/debconf/confmodule; db_input high lp-ask/colour || true; db_go || true")
            .script(
                "postinst",
                ". /usr/share/debconf/confmodule; db_get lp-ask/colour; echo \"$RET\" >/usr/share/lp-ask/colour",
            )
    }));
    packages.extend(pair("lp-slow", |package| package.script("postinst", IS_SLOW)));
    // A running service whose program the upgrade replaces without restarting it.
    packages.extend(both("lp-daemon", Security, |package| {
        package
            .machine_dependent()
            .file("/usr/sbin/lp-daemon", Content::Program)
            .file("/lib/systemd/system/lp-daemon.service", Content::Text(DAEMON_UNIT.to_owned()))
            .script("postinst", DAEMON_POSTINST)
            .script("prerm", DAEMON_PRERM)
    }));
    // Services that their scripts restart, by both of Debian's tools.
    for (name, how) in [
        ("lp-served", "deb-systemd-invoke ACTION lp-served.service"),
        ("lp-classic", "invoke-rc.d lp-classic ACTION"),
    ] {
        let how = |action: &str| how.replace("ACTION", action);
        let script = RESTARTED
            .replace("HOW restart", &how("restart"))
            .replace("HOW start", &how("start"))
            .replace("NAME", name);
        packages.extend(both(name, Security, |package| {
            package
                .machine_dependent()
                .file(&format!("/usr/sbin/{name}"), Content::Program)
                .file(
                    &format!("/lib/systemd/system/{name}.service"),
                    Content::Text(DAEMON_UNIT.replace("lp-daemon", name)),
                )
                .script("postinst", &script)
                .script("prerm", &DAEMON_PRERM.replace("lp-daemon", name))
        }));
    }
    // A library, which a running service may have mapped.
    packages.extend(both("lp-mapped", Security, |package| {
        package.machine_dependent().file("/usr/lib/lp-mapped/liblp.so.1", Content::Library)
    }));
    // Several programs in one package.
    packages.extend(both("lp-tools", Security, |package| {
        let tools = ["one", "two", "three"];
        tools.iter().fold(package.machine_dependent(), |package, tool| {
            package.file(&format!("/usr/bin/lp-tool-{tool}"), Content::Program)
        })
    }));
    // A small package with a large update.
    packages.extend(pair("lp-large", |package| {
        package.file("/usr/share/lp-large/noise", Content::Noise(20 << 20))
    }));
    packages
}

/// What a naive way back falls into.
fn traps() -> Vec<Package> {
    let mut packages = Vec::new();
    // A file that moves from one package to another, properly declared.
    let moving = || Content::Text("moved\n".to_owned());
    packages.push(Package::new("lp-move-a", "1.0", First).file("/usr/share/lp-move/file", moving()));
    packages.push(Package::new("lp-move-a", "1.1", Security));
    packages.push(Package::new("lp-move-b", "1.0", First));
    packages.push(
        Package::new("lp-move-b", "1.1", Security)
            .field("Replaces: lp-move-a (<< 1.1)")
            .field("Breaks: lp-move-a (<< 1.1)")
            .file("/usr/share/lp-move/file", moving()),
    );
    // A new package that takes a file from one which the plan does not name.
    let given = |text: &str| Content::Text(format!("{text}\n"));
    packages.push(Package::new("lp-giver", "1.0", First).file("/usr/share/lp-given/file", given("giver")));
    packages.push(
        Package::new("lp-taker", "1.0", First)
            .field("Replaces: lp-giver")
            .file("/usr/share/lp-given/file", given("taker")),
    );
    // The archive has forgotten the old version.
    packages.push(Package::new("lp-gone", "1.0", Former));
    packages.push(Package::new("lp-gone", "1.1", Security));
    packages.extend([("1.0", Former), ("1.1", Update)].map(|(version, published)| {
        let text = format!("shipped={version}\n");
        Package::new("lp-goneconf", version, published).file("/etc/lp-goneconf.conf", Content::Text(text))
    }));
    // A bad update, and the good one that follows it.
    packages.extend(pair("lp-fixed", |package| {
        package.script(
            "postinst",
            "[ \"$1\" != configure ] || { echo \"lp-fixed: deliberate failure\" >&2; exit 3; }",
        )
    }));
    packages.push(Package::new("lp-fixed", "1.2", Later));
    // Good ones, one after the other.
    packages.extend(plain("lp-next", Security));
    packages.push(Package::new("lp-next", "1.2", Later));
    // The old version refuses to come back; the new one can be made to fail.
    packages.push(Package::new("lp-noreturn", "1.0", First).script(
        "preinst",
        "[ \"$1\" != upgrade ] || { echo \"lp-noreturn: there is no return from $2\" >&2; exit 8; }",
    ));
    packages.push(
        Package::new("lp-noreturn", "1.1", Security)
            .script("postinst", "[ \"$1\" != configure ] || [ ! -e /run/lp-noreturn-fail ]"),
    );
    // The new version's prerm fails, which the old one's, called with failed-upgrade, makes good.
    packages.push(Package::new("lp-badprerm", "1.0", First).script("prerm", "exit 0"));
    packages.push(Package::new("lp-badprerm", "1.1", Security).script("prerm", "exit 9"));
    // Goes when the one that it needs goes, which then stays.
    packages.push(Package::new("lp-prermuser", "1.0", First).field("Depends: lp-prermfail"));
    // Somebody else's trigger fails for what the update brings.
    packages.push(
        Package::new("lp-watcher", "1.0", First).triggers("interest /usr/share/lp-watched").script(
            "postinst",
            "[ ! -e /usr/share/lp-watched/bad ] || { echo \"lp-watcher: deliberate failure\" >&2; exit 10; }",
        ),
    );
    packages.push(
        Package::new("lp-trigger", "1.0", First)
            .file("/usr/share/lp-watched/good", Content::Text(String::new())),
    );
    packages.push(
        Package::new("lp-trigger", "1.1", Security)
            .file("/usr/share/lp-watched/bad", Content::Text(String::new())),
    );
    packages.extend(pair("lp-hang", |package| package.script("postinst", HANGS)));
    packages.push(Package::new("lp-netcut", "1.0", First).script("postinst", MENDS_NETWORK));
    packages.push(Package::new("lp-netcut", "1.1", Security).script("postinst", CUTS_NETWORK));
    // A service that runs, until the update.
    packages.extend([("1.0", First, "/bin/sleep infinity"), ("1.1", Security, "/bin/false")].map(
        |(version, published, program)| {
            let unit = format!(
                "[Unit]\nDescription=test service\n[Service]\nExecStart={program}\n[Install]\nWantedBy=multi-user.target\n"
            );
            Package::new("lp-daemon-broken", version, published)
                .file("/lib/systemd/system/lp-daemon-broken.service", Content::Text(unit))
                .script("postinst", RESTARTS)
                .script("prerm", "[ \"$1\" != remove ] || [ ! -d /run/systemd/system ] || systemctl stop lp-daemon-broken || true")
        },
    ));
    // Every kind of file that an archive can hold, and what only a script can give.
    packages.extend(both("lp-special", Security, |package| {
        package
            .machine_dependent()
            .file("/usr/bin/lp-special", Content::Program)
            .file("/usr/bin/lp-special-setuid", Content::Setuid)
            .file("/usr/bin/lp-special-again", Content::HardLink("/usr/bin/lp-special-setuid".to_owned()))
            .file("/usr/bin/lp-special-link", Content::Symlink("lp-special".to_owned()))
            .file("/usr/share/lp-special/empty", Content::Directory)
            .file("/usr/share/lp-special/odd name \u{e4}", Content::Text("odd\n".to_owned()))
            .script("postinst", GIVES_CAPABILITY)
    }));
    packages
}
