//! Packages that are made for one round: their scripts do what scripts do, and some fail in a random position.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use crate::chaos::Random;
use crate::place::Place;

const NAMES: &[&str] = &["lp-ra", "lp-rb", "lp-rc", "lp-rd", "lp-re", "lp-rf"];

/// Each maintainer script with everything that dpkg calls it for.
const SCRIPTS: &[(&str, &[&str])] = &[
    ("preinst", &["install", "upgrade", "abort-upgrade"]),
    ("postinst", &["configure", "triggered", "abort-upgrade", "abort-remove", "abort-deconfigure"]),
    ("prerm", &["remove", "upgrade", "failed-upgrade", "deconfigure"]),
    (
        "postrm",
        &["remove", "purge", "upgrade", "failed-upgrade", "abort-install", "abort-upgrade", "disappear"],
    ),
];

/// Until this is there no script fails: what is installed before a round has to be.
const ARMED: &str = "/var/lib/lp-armed";

/// Not for who is triggered by it: dpkg does not let packages trigger each other for ever.
const TRIGGERS: &str = "dpkg-trigger --no-await /usr/share/lp-r/watched || true";

/// What scripts of packages do. NAME is the package's.
const DEEDS: &[&str] = &[
    "chown -R nobody:nogroup /var/lib/NAME 2>/dev/null || true",
    "mkdir -p /var/lib/NAME; head -c 300K /dev/zero >/var/lib/NAME/data",
    "if [ -d /var/lib/NAME ]; then rm -rf /var/lib/NAME.old; mv /var/lib/NAME /var/lib/NAME.old; fi",
    "rm -rf /var/lib/NAME /var/lib/NAME.old",
    "ln -sfn /usr/share/NAME /var/lib/NAME.link",
    "[ -p /var/lib/NAME.fifo ] || mkfifo /var/lib/NAME.fifo",
    "su nobody -s /bin/sh -c 'test -r /etc/passwd'",
    "update-alternatives --quiet --install /usr/bin/NAME-any NAME-any /bin/true 10",
    "[ ! -e /usr/bin/NAME-any ] || update-alternatives --quiet --remove NAME-any /bin/true",
    "touch /run/NAME; test -e /run/NAME",
    "f=$(mktemp); echo x >\"$f\"; rm \"$f\"",
    "if [ -e /etc/NAME.conf ]; then sed -i 's/$/ /' /etc/NAME.conf; fi",
    TRIGGERS,
    "id -u NAME >/dev/null 2>&1 || useradd --system --no-create-home NAME",
    "python3 -c 'import os, socket; s = socket.socket(socket.AF_UNIX); s.bind(\"/run/NAME.sock\"); os.unlink(\"/run/NAME.sock\")'",
    "dpkg-query -W -f '${Status}\\n' NAME >/dev/null 2>&1 || true",
    "dpkg-divert --quiet --package NAME --rename --divert /usr/share/lp-r/kept.NAME --add /usr/share/lp-r/kept-NAME",
    "dpkg-statoverride --list /var/lib/NAME >/dev/null || dpkg-statoverride --add nobody nogroup 700 /var/lib/NAME",
    "mkdir -p /var/cache/NAME; for i in 1 2 3 4 5 6 7 8; do echo $i >/var/cache/NAME/$i; done; sync /var/cache/NAME/1",
    "( sleep 0.05; true ) & wait",
    "echo NAME says something; echo NAME complains >&2",
];

/// How a script fails.
const MANNERS: &[&str] = &["exit 1", "exit 3", "exit 127", "kill -9 $$", "false"];

/// One version of one package.
#[derive(Debug, Clone)]
struct Version {
    name: &'static str,
    number: u32,
    fields: Vec<String>,
    /// Text files by their paths.
    files: Vec<(String, String)>,
    /// How many bytes of noise it has, which nothing compresses.
    noise: u64,
    triggers: Option<&'static str>,
    scripts: Vec<(&'static str, String)>,
}

/// The packages of a round.
#[derive(Debug, Clone)]
pub(super) struct Made {
    versions: Vec<Version>,
    /// Which are there before the change, in which version.
    installed: Vec<(&'static str, u32)>,
    /// Where scripts fail: package, version, script, its argument and how.
    failing: Vec<(&'static str, u32, &'static str, &'static str, &'static str)>,
}

impl Made {
    pub(super) fn draw(random: &mut Random) -> Self {
        let names: Vec<&'static str> = NAMES.iter().copied().take(2 + pick_index(random, 5)).collect();
        let mut made = Self { versions: Vec::new(), installed: Vec::new(), failing: Vec::new() };
        for name in &names {
            match random.below(10) {
                0..=5 => made.installed.push((name, 1)),
                6 => made.installed.push((name, 2)),
                _ => {}
            }
        }
        // None, one or two, of whatever package and version.
        for _ in 0..[0, 0, 1, 1, 1, 2].get(pick_index(random, 6)).copied().unwrap_or(1) {
            let Some(name) = random.pick(&names).copied() else { continue };
            let number = if random.happens(65) { 2 } else { 1 };
            let Some((script, calls)) = random.pick(SCRIPTS).copied() else { continue };
            // The first two of each are what most changes call it for.
            let likely = calls.get(..2).filter(|_| random.happens(70)).unwrap_or(calls);
            let call = random.pick(likely).copied().unwrap_or("*");
            let manner = random.pick(MANNERS).copied().unwrap_or("exit 1");
            made.failing.push((name, number, script, call, manner));
        }
        // Two packages with the same file are in each other's way; before the change only one has it.
        let holder = random.pick(&names).copied().filter(|_| random.happens(40));
        for (index, name) in names.iter().enumerate() {
            for number in [1, 2] {
                let shares =
                    holder.is_some() && (holder == Some(name) || (number == 2 && random.happens(25)));
                let is_there = made.installed.contains(&(name, number));
                let shares = shares && (!is_there || holder == Some(name));
                let earlier = names.get(..index).unwrap_or_default();
                let version = made.version(random, name, number, earlier, shares);
                made.versions.push(version);
            }
        }
        made
    }

    fn version(
        &self,
        random: &mut Random,
        name: &'static str,
        number: u32,
        earlier: &[&'static str],
        shares: bool,
    ) -> Version {
        let mut fields = Vec::new();
        // What it depends on is there before it, so that every change can be planned.
        let below: Vec<&&str> =
            earlier.iter().filter(|other| self.installed.iter().any(|(there, _)| there == *other)).collect();
        if let Some(other) = random.pick(&below).filter(|_| random.happens(30)) {
            let field = if random.happens(20) { "Pre-Depends" } else { "Depends" };
            fields.push(format!("{field}: {other}"));
        }
        let mut files = vec![
            (format!("/usr/share/{name}/version"), number.to_string()),
            // A directory that goes with its version.
            (format!("/usr/share/{name}/of-{number}/file"), name.to_owned()),
        ];
        if random.happens(45) {
            files.push((format!("/etc/{name}.conf"), format!("shipped={number}")));
        }
        if shares {
            files.push(("/usr/share/lp-r/shared".to_owned(), name.to_owned()));
        }
        let triggers = match random.below(100) {
            0..=14 => Some("interest /usr/share/lp-r/watched"),
            15..=19 => Some("interest-noawait /usr/share/lp-r/watched"),
            _ => None,
        };
        if random.happens(25) {
            files.push((format!("/usr/share/lp-r/watched/{name}-{number}"), String::new()));
        }
        let noise = if random.happens(25) { random.below(12 << 20) } else { 0 };
        let mut scripts = Vec::new();
        for (script, _) in SCRIPTS {
            let fails: Vec<_> = self
                .failing
                .iter()
                .filter(|(of, version, which, _, _)| *of == name && *version == number && which == script)
                .collect();
            let mut deeds = random.some(DEEDS, 5);
            deeds.retain(|deed| *deed != TRIGGERS || triggers.is_none());
            if fails.is_empty() && deeds.is_empty() {
                continue;
            }
            let mut text = format!("#!/bin/sh\nset -e\necho \"{name} {number}: {script} $1\"\n");
            // At the purge not everything is there any more that scripts call.
            text += "[ \"$1\" != purge ] || set +e\n";
            for deed in deeds {
                let _ = writeln!(text, "{}", deed.replace("NAME", name));
            }
            for (_, _, _, call, manner) in fails {
                let _ = writeln!(
                    text,
                    "if [ \"$1\" = {call} ] && [ -e {ARMED} ]; then echo \"{name}: {script} {call} fails\" >&2; {manner}; fi"
                );
            }
            text += "exit 0\n";
            scripts.push((*script, text));
        }
        Version { name, number, fields, files, noise, triggers, scripts }
    }

    /// Puts the archive of them into the root, and installs what is to be there.
    pub(super) fn install(&self, place: &Place) -> Result<()> {
        let mut script = String::from("mkdir -p /srv/extra /tmp/made\n");
        for version in &self.versions {
            version.build(&mut script);
        }
        script += "rm -rf /tmp/made; cd /srv/extra; apt-ftparchive packages . >Packages 2>/dev/null\n\
                   echo 'deb [trusted=yes] file:/srv/extra ./' >/etc/apt/sources.list.d/extra.list; apt-get -qq update\n\
                   mkdir -p /usr/share/lp-r; for n in a b c d e f; do echo kept >/usr/share/lp-r/kept-lp-r$n; done\n";
        place.root.push(&script, "/srv/make", "755")?;
        place.root.shell("bash -eu /srv/make; rm /srv/make").context("the packages cannot be made")?;
        if !self.installed.is_empty() {
            let words: Vec<String> =
                self.installed.iter().map(|(name, number)| format!("{name}={number}")).collect();
            place.root.shell(&format!("apt-get -qq -y install {}", words.join(" ")))?;
        }
        Ok(())
    }

    /// From here on scripts fail, and configuration files are somebody's.
    pub(super) fn arm(&self, place: &Place, random: &mut Random) -> Result<()> {
        let mut script = format!("touch {ARMED}\n");
        for (name, _) in &self.installed {
            let edit = match random.below(10) {
                0..=3 => "echo mine >",
                4 => "rm ",
                _ => continue,
            };
            let _ = writeln!(script, "[ ! -e /etc/{name}.conf ] || {edit}/etc/{name}.conf");
        }
        place.root.shell(&script).map(drop)
    }

    /// The names of those that are there.
    pub(super) fn installed(&self) -> Vec<&'static str> {
        self.installed.iter().map(|(name, _)| *name).collect()
    }

    /// The names of the others.
    pub(super) fn others(&self) -> Vec<&'static str> {
        let there = self.installed();
        let mut new: Vec<&'static str> =
            self.versions.iter().map(|version| version.name).filter(|name| !there.contains(name)).collect();
        new.dedup();
        new
    }

    /// Those that have come to their last version, with the one before.
    pub(super) fn downgrades(&self) -> Vec<String> {
        self.installed
            .iter()
            .filter(|(_, number)| *number == 2)
            .map(|(name, _)| format!("{name}=1"))
            .collect()
    }

    /// What is special of the round.
    pub(super) fn story(&self) -> String {
        let all: Vec<String> = self
            .versions
            .iter()
            .map(|version| {
                let scripts: Vec<&str> = version.scripts.iter().map(|(name, _)| *name).collect();
                let shares = version.files.iter().any(|(path, _)| path.ends_with("/shared"));
                format!(
                    "{} {} {:?} {:?} noise {} shares {shares} {scripts:?}",
                    version.name, version.number, version.fields, version.triggers, version.noise
                )
            })
            .collect();
        format!("made {:?}, failing {:?}\n{}", self.installed, self.failing, all.join("\n"))
    }
}

impl Version {
    /// The commands that make its archive.
    fn build(&self, script: &mut String) {
        let tree = format!("/tmp/made/{}-{}", self.name, self.number);
        let mut put = |path: &str, text: &str, mode: &str| {
            // Nothing in these texts is the word that ends one.
            let _ = write!(
                script,
                "install -D -m {mode} /dev/stdin {tree}{path} <<'END-OF-FILE'\n{text}\nEND-OF-FILE\n"
            );
        };
        let mut control = format!(
            "Package: {}\nVersion: {}\nArchitecture: all\nMaintainer: t <t@t>\nInstalled-Size: {}\n",
            self.name,
            self.number,
            64 + (self.noise >> 10)
        );
        for field in &self.fields {
            let _ = writeln!(control, "{field}");
        }
        control += "Description: made for a round";
        put("/DEBIAN/control", &control, "644");
        for (path, text) in &self.files {
            put(path, text, "644");
        }
        let conffiles: Vec<&str> = self
            .files
            .iter()
            .map(|(path, _)| path.as_str())
            .filter(|path| path.starts_with("/etc/"))
            .collect();
        if !conffiles.is_empty() {
            put("/DEBIAN/conffiles", &conffiles.join("\n"), "644");
        }
        if let Some(triggers) = self.triggers {
            put("/DEBIAN/triggers", triggers, "644");
        }
        for (name, text) in &self.scripts {
            put(&format!("/DEBIAN/{name}"), text, "755");
        }
        if self.noise > 0 {
            let _ =
                writeln!(script, "head -c {} /dev/urandom >{tree}/usr/share/{}/noise", self.noise, self.name);
        }
        let _ = writeln!(
            script,
            "dpkg-deb --root-owner-group -Znone -b {tree} /srv/extra/{}_{}_all.deb >/dev/null",
            self.name, self.number
        );
    }
}

fn pick_index(random: &mut Random, below: u64) -> usize {
    usize::try_from(random.below(below)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_draws_the_same_each_time_and_every_position_comes() {
        let draw = |round| Made::draw(&mut Random::of(7, round));
        assert_eq!(draw(3).story(), draw(3).story());
        let all: Vec<Made> = (0..2000).map(draw).collect();
        for (script, calls) in SCRIPTS {
            for call in *calls {
                let is_there =
                    |made: &Made| made.failing.iter().any(|one| one.2 == *script && one.3 == *call);
                assert!(all.iter().any(is_there), "{script} {call}");
            }
        }
        // Nothing that is installed before is in the way of another.
        for made in &all {
            let sharing = made.versions.iter().filter(|version| {
                made.installed.contains(&(version.name, version.number))
                    && version.files.iter().any(|(path, _)| path.ends_with("/shared"))
            });
            assert!(sharing.count() <= 1, "{}", made.story());
        }
    }
}
