//! The packages of the test repository and what each is for.

use super::package::Published::{First, Security, Update};
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

const QUESTION: &str = "Template: lp-ask/colour\nType: string\nDefault: blue\nDescription: Which colour?\n The colour of the test.\n";

/// All of them.
pub(super) fn packages() -> Vec<Package> {
    let mut packages = versions();
    packages.extend(relations());
    packages.extend(failures());
    packages.extend(behaviours());
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
