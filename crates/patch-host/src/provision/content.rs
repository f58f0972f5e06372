//! What the files say: a pure function of what is wanted.
//!
//! Whatever comes from outside is a type here that holds nothing which could end a string of `apt.conf` or of Perl.

use std::{fmt, str::FromStr};

use patch_backends::system::OsRelease;

/// The file of unattended-upgrades' own settings.
pub(crate) const UPGRADES: &str = "etc/apt/apt.conf.d/50unattended-upgrades";

/// The file that has apt's daily jobs run it.
pub(crate) const PERIODIC: &str = "etc/apt/apt.conf.d/20auto-upgrades";

/// needrestart's.
pub(crate) const NEEDRESTART: &str = "etc/needrestart/conf.d/linux-patch-unattended.conf";

/// The timers, their drop-ins, and when they start.
pub(crate) const TIMERS: [Timing; 2] = [
    Timing {
        unit: "apt-daily.timer",
        drop_in: "etc/systemd/system/apt-daily.timer.d/linux-patch.conf",
        calendar: "*-*-* 00/6:00",
    },
    // So much later that the lists are there, though their timer was as late as it may be.
    Timing {
        unit: "apt-daily-upgrade.timer",
        drop_in: "etc/systemd/system/apt-daily-upgrade.timer.d/linux-patch.conf",
        calendar: "*-*-* 01/6:30",
    },
];

/// By how much the timers may be late, so that not all hosts ask at once.
pub(crate) const DELAY: &str = "1h";

/// One of apt's timers, as it is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Its unit.
    pub(crate) unit: &'static str,
    /// Our drop-in, relative to the root.
    pub(crate) drop_in: &'static str,
    /// `OnCalendar=`.
    pub(crate) calendar: &'static str,
}

/// Which archives there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Distribution {
    /// Debian
    Debian,
    /// Ubuntu
    Ubuntu,
}

impl Distribution {
    /// The distribution of a host.
    ///
    /// # Errors
    /// When it is another one: what its security archive is called is not known here.
    pub(crate) fn of(release: &OsRelease) -> anyhow::Result<Self> {
        match release.id.as_str() {
            "debian" => Ok(Self::Debian),
            "ubuntu" => Ok(Self::Ubuntu),
            "" => anyhow::bail!("/etc/os-release does not say which distribution this is"),
            other => anyhow::bail!(
                "this is {other}; only Debian and Ubuntu have unattended-upgrades with a security archive that is known here"
            ),
        }
    }

    /// The list's name and its entries: which archives are installed from by themselves.
    pub(crate) fn origins(self, with_updates: bool) -> (&'static str, Vec<&'static str>) {
        let (list, security, updates): (_, &[&str], _) = match self {
            Self::Debian => (
                "Unattended-Upgrade::Origins-Pattern",
                &["origin=Debian,codename=${distro_codename}-security"],
                "origin=Debian,codename=${distro_codename}-updates",
            ),
            Self::Ubuntu => (
                "Unattended-Upgrade::Allowed-Origins",
                &[
                    "${distro_id}:${distro_codename}-security",
                    "${distro_id}ESMApps:${distro_codename}-apps-security",
                    "${distro_id}ESM:${distro_codename}-infra-security",
                ],
                "${distro_id}:${distro_codename}-updates",
            ),
        };
        (list, security.iter().copied().chain(with_updates.then_some(updates)).collect())
    }
}

/// When a mail is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MailReport {
    /// After every run
    Always,
    /// After a run that failed
    OnlyOnError,
    /// After a run that installed something or failed
    OnChange,
}

impl fmt::Display for MailReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::OnlyOnError => "only-on-error",
            Self::OnChange => "on-change",
        })
    }
}

/// An address that mail goes to: `NAME@DOMAIN`, or a user of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address(String);

impl Address {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one that another host can deliver to.
    pub(crate) fn has_domain(&self) -> bool {
        self.0.contains('@')
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, domain) = match text.split_once('@') {
            Some((name, domain)) => (name, Some(domain)),
            None => (text, None),
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._%+-".contains(c);
        let is_name =
            !name.is_empty() && name.len() <= 64 && name.chars().all(is_plain) && !name.starts_with('-');
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !is_name || !domain.is_none_or(|domain| domain.len() <= 253 && domain.split('.').all(is_label)) {
            return Err("it must be an address such as ops@example.org, or a user such as root".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// A time of the day, `HH:MM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeOfDay {
    hour: u8,
    minute: u8,
}

impl Default for TimeOfDay {
    fn default() -> Self {
        Self { hour: 4, minute: 0 }
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.hour, self.minute)
    }
}

impl FromStr for TimeOfDay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |text: &str| {
            Some(text).filter(|t| t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit()))?.parse::<u8>().ok()
        };
        let parsed = text.split_once(':').and_then(|(hour, minute)| Some((digits(hour)?, digits(minute)?)));
        match parsed {
            Some((hour @ 0..24, minute @ 0..60)) => Ok(Self { hour, minute }),
            _ => Err("it must be a time such as 04:00".to_owned()),
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Whose archives.
    pub(crate) distribution: Distribution,
    /// Whether ordinary updates are installed as well.
    pub(crate) with_updates: bool,
    /// Whether apt's jobs run once a calendar day by Debian's own timers.
    pub(crate) once_a_day: bool,
    /// Who gets a mail.
    pub(crate) mail_to: Option<Address>,
    /// And when.
    pub(crate) mail_report: MailReport,
    /// When a host would reboot of which somebody switches `Automatic-Reboot` on.
    pub(crate) reboot_time: TimeOfDay,
}

/// A file as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Where, relative to the root.
    pub(crate) path: &'static str,
    /// What is in it. None: it is not to be there, if it is ours.
    pub(crate) content: Option<String>,
}

/// A setting as it is to be in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Its name.
    pub(crate) name: &'static str,
    /// The one value, or the entries of the list.
    pub(crate) values: Vec<String>,
    /// Whether it is a list.
    pub(crate) is_list: bool,
    /// The file of ours that sets it.
    pub(crate) file: &'static str,
}

const HEAD: &str = "Written by linux-patch-host. Change it with `linux-patch-host provision unattended`, whose --undo brings back what was here.";

impl Wish {
    /// apt's settings.
    pub(crate) fn settings(&self) -> Vec<Expected> {
        let one =
            |file, name, value: &str| Expected { name, values: vec![value.to_owned()], is_list: false, file };
        let (list, origins) = self.distribution.origins(self.with_updates);
        let origins = origins.into_iter().map(str::to_owned).collect();
        let interval = if self.once_a_day { "1" } else { "always" };
        let mut settings = vec![Expected { name: list, values: origins, is_list: true, file: UPGRADES }];
        if let Some(address) = &self.mail_to {
            settings.push(one(UPGRADES, "Unattended-Upgrade::Mail", address.as_str()));
            settings.push(one(UPGRADES, "Unattended-Upgrade::MailReport", &self.mail_report.to_string()));
        }
        settings.extend([
            one(UPGRADES, "Unattended-Upgrade::Automatic-Reboot", "false"),
            one(UPGRADES, "Unattended-Upgrade::Automatic-Reboot-Time", &self.reboot_time.to_string()),
            one(UPGRADES, "Unattended-Upgrade::Remove-Unused-Kernel-Packages", "true"),
            one(UPGRADES, "Unattended-Upgrade::Remove-Unused-Dependencies", "true"),
            one(UPGRADES, "Unattended-Upgrade::SyslogEnable", "true"),
            one(PERIODIC, "APT::Periodic::Update-Package-Lists", interval),
            one(PERIODIC, "APT::Periodic::Unattended-Upgrade", interval),
            one(PERIODIC, "APT::Periodic::AutocleanInterval", "7"),
        ]);
        settings
    }

    fn apt_file(&self, path: &str) -> String {
        let mut text = format!("// {HEAD}\n");
        for setting in self.settings().into_iter().filter(|setting| setting.file == path) {
            let entries: String = setting.values.iter().map(|value| format!("    \"{value}\";\n")).collect();
            let line = match (setting.is_list, setting.values.first()) {
                (false, Some(value)) => format!("{} \"{value}\";\n", setting.name),
                _ => format!("{} {{\n{entries}}};\n", setting.name),
            };
            text.push_str(&line);
        }
        text
    }

    /// All files, in the order in which they are written: what takes from the pace goes last.
    pub(crate) fn files(&self) -> Vec<Wanted> {
        let needrestart = format!(
            "# {HEAD}\n\
             # List only: a service that is restarted in the middle of its work loses it.\n\
             $nrconf{{restart}} = 'l';\n\
             # No questions about the kernel: nobody is there to answer.\n\
             $nrconf{{kernelhints}} = -1;\n\
             # Interpreters are not run on what users can write.\n\
             $nrconf{{interpscan}} = 0;\n"
        );
        let mut files = vec![
            Wanted { path: NEEDRESTART, content: Some(needrestart) },
            Wanted { path: UPGRADES, content: Some(self.apt_file(UPGRADES)) },
            Wanted { path: PERIODIC, content: Some(self.apt_file(PERIODIC)) },
        ];
        files.extend(TIMERS.iter().map(|timing| Wanted {
            path: timing.drop_in,
            content: (!self.once_a_day).then(|| {
                format!(
                    "# {HEAD}\n[Timer]\nOnCalendar=\nOnCalendar={}\nRandomizedDelaySec={DELAY}\nPersistent=true\n",
                    timing.calendar
                )
            }),
        }));
        files
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::apt_conf::AptConf;

    pub(crate) fn wish(distribution: Distribution) -> Wish {
        Wish {
            distribution,
            with_updates: false,
            once_a_day: false,
            mail_to: None,
            mail_report: MailReport::OnChange,
            reboot_time: TimeOfDay::default(),
        }
    }

    fn content(wish: &Wish, path: &str) -> Option<String> {
        wish.files().into_iter().find(|file| file.path == path).unwrap().content
    }

    #[test]
    fn the_files_have_the_documented_forms() {
        let mut debian = wish(Distribution::Debian);
        let text = content(&debian, UPGRADES).unwrap();
        let documented = "Unattended-Upgrade::Origins-Pattern {\n    \"origin=Debian,codename=${distro_codename}-security\";\n};\n";
        assert!(text.contains(documented), "{text}");
        assert!(!text.contains("-updates") && !text.contains("Mail"), "{text}");
        debian.with_updates = true;
        debian.mail_to = Some("ops@example.org".parse().unwrap());
        let text = content(&debian, UPGRADES).unwrap();
        assert!(text.contains("    \"origin=Debian,codename=${distro_codename}-updates\";\n"), "{text}");
        assert!(
            text.contains("::Mail \"ops@example.org\";\nUnattended-Upgrade::MailReport \"on-change\";\n")
        );

        let ubuntu = content(&wish(Distribution::Ubuntu), UPGRADES).unwrap();
        let documented = "Unattended-Upgrade::Allowed-Origins {\n    \"${distro_id}:${distro_codename}-security\";\n    \
            \"${distro_id}ESMApps:${distro_codename}-apps-security\";\n    \"${distro_id}ESM:${distro_codename}-infra-security\";\n};\n";
        assert!(ubuntu.contains(documented), "{ubuntu}");
    }

    #[test]
    fn once_a_day_has_no_timers_of_its_own() {
        let mut wish = wish(Distribution::Debian);
        assert!(content(&wish, PERIODIC).unwrap().contains("Unattended-Upgrade \"always\";"));
        assert!(
            content(&wish, TIMERS[0].drop_in).unwrap().contains("OnCalendar=\nOnCalendar=*-*-* 00/6:00\n")
        );
        wish.once_a_day = true;
        assert!(content(&wish, PERIODIC).unwrap().contains("Unattended-Upgrade \"1\";"));
        assert!(TIMERS.iter().all(|timing| content(&wish, timing.drop_in).is_none()));
    }

    #[test]
    fn only_known_distributions_are_set_up() {
        let of = |id: &str| Distribution::of(&OsRelease { id: id.to_owned(), ..OsRelease::default() });
        assert_eq!(of("ubuntu").unwrap(), Distribution::Ubuntu);
        assert!(of("fedora").unwrap_err().to_string().contains("fedora"));
        assert!(of("").is_err());
    }

    #[test]
    fn values_are_taken_or_refused() {
        for good in ["root", "ops@example.org", "a.b+c@x-y.example"] {
            assert_eq!(good.parse::<Address>().unwrap().as_str(), good);
        }
        for bad in [
            "", "-t", "a b", "a@", "@b", "a@b@c", "a\"; }", "a@b..c", "a,b", "a@b\n", "$x@y", "-a@b.c",
            "a@-b",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
        for good in ["00:00", "23:59"] {
            assert_eq!(good.parse::<TimeOfDay>().unwrap().to_string(), good);
        }
        for bad in ["24:00", "4:00", "04:60", "now", "+4:00", "04:0", ""] {
            assert!(bad.parse::<TimeOfDay>().is_err(), "{bad}");
        }
    }

    proptest! {
        /// Whatever is taken stays within its string.
        #[test]
        fn nothing_breaks_out(address in "[a-zA-Z0-9@.\"';{}$ \\\\-]{1,30}", hour in 0..24_u8, minute in 0..60_u8) {
            let mut wish = wish(Distribution::Debian);
            wish.mail_to = address.parse().ok();
            wish.reboot_time = TimeOfDay { hour, minute };
            let mut conf = AptConf::default();
            for file in wish.files().into_iter().filter(|file| file.path.starts_with("etc/apt")) {
                conf.add(file.path, &file.content.unwrap());
            }
            let found: usize = wish.settings().iter().map(|setting| setting.values.len()).sum();
            prop_assert_eq!(conf.all().len(), found);
            for setting in wish.settings().iter().filter(|setting| !setting.is_list) {
                prop_assert_eq!(conf.value(setting.name), setting.values.first().map(String::as_str));
            }
        }
    }
}
