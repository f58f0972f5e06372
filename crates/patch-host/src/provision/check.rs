//! What is in force, compared with what was meant: settings of apt, of the timers and of needrestart.

use jiff::SignedDuration;
use patch_backends::apt::{Database, Installed};
use patch_policy::promise::{self, Apt, Delay, Interval};

use super::content::{Expected, NEEDRESTART, TIMERS, Wish};
use crate::{
    apt_conf::AptConf,
    below::Below,
    timer::{Timer, span},
    tools::{Ask, ToolError},
};

/// The settings in force, and how they were learnt.
#[derive(Debug)]
pub(crate) struct InForce {
    /// By the files, each with where it comes from.
    pub(crate) files: AptConf,
    /// By apt itself, where it can be asked.
    pub(crate) apt: Result<AptConf, ToolError>,
    /// The timers, in the order of [`TIMERS`].
    pub(crate) timers: Vec<Result<Timer, ToolError>>,
}

impl InForce {
    pub(crate) fn look(files: &Below, tools: &dyn Ask) -> Self {
        let dump = tools.ask("apt-config", &["dump", "--no-empty", "--format", "%F=%v%n"]);
        Self {
            files: AptConf::read(files),
            apt: dump.map(|dump| AptConf::from_dump(&dump)),
            timers: TIMERS.iter().map(|timing| Timer::look(files, tools, timing.unit)).collect(),
        }
    }

    /// apt's settings: its own view, or else that of the files.
    pub(crate) fn conf(&self) -> &AptConf {
        self.apt.as_ref().unwrap_or(&self.files)
    }

    /// How often one of apt's daily jobs does something. What apt does not understand counts as never.
    pub(crate) fn interval(&self, setting: &str) -> Interval {
        Interval::parse(self.conf().value(setting).unwrap_or_default()).unwrap_or(Interval::Never)
    }

    /// A timer as it is in force; none if it has times that are not of every day.
    fn timer(&self, index: usize) -> Option<promise::Timer> {
        let timer = self.timers.get(index)?.as_ref().ok()?;
        let starts: Option<Vec<u16>> =
            timer.starts()?.into_iter().map(|minute| minute.try_into().ok()).collect();
        let late = timer.jitter()?.checked_add(ACCURACY)?;
        promise::Timer::daily(&starts?, late.try_into().ok()?)
    }

    /// What comes of all that: the worst case, or why nothing is ever installed, or what cannot be told.
    pub(crate) fn promise(&self, files: &Below) -> Promise {
        let mut never = Vec::new();
        for (timing, timer) in TIMERS.iter().zip(&self.timers) {
            match timer {
                Ok(timer) if timer.is_masked => never.push(format!("{} is masked", timing.unit)),
                Ok(timer) if !timer.exists => never.push(format!("there is no {}", timing.unit)),
                Ok(_) if !is_enabled(files, timing.unit) => {
                    never.push(format!("{} is disabled", timing.unit));
                }
                Ok(_) => {}
                Err(error) => return Promise::Unknown(error.to_string()),
            }
        }
        if files.read("var/lib/dpkg/status").is_ok() && !is_installed(files, "unattended-upgrades") {
            never.push("unattended-upgrades is not installed".to_owned());
        }
        let conf = self.conf();
        if conf.value("APT::Periodic::Enable") == Some("0") {
            never.push("APT::Periodic::Enable is off".to_owned());
        }
        for name in ["APT::Periodic::Update-Package-Lists", "APT::Periodic::Unattended-Upgrade"] {
            if self.interval(name) == Interval::Never {
                never.push(format!("{name} is off"));
            }
        }
        if !never.is_empty() {
            return Promise::Never(never);
        }
        let has_no_times =
            |timer: &Result<Timer, ToolError>| timer.as_ref().is_ok_and(|timer| timer.calendars.is_empty());
        if self.timers.iter().any(has_no_times) {
            return Promise::Never(vec!["the timers have no times".to_owned()]);
        }
        let settings = Apt {
            is_enabled: true,
            update: self.interval("APT::Periodic::Update-Package-Lists"),
            upgrade: self.interval("APT::Periodic::Unattended-Upgrade"),
            update_timer: self.timer(0),
            upgrade_timer: self.timer(1),
        };
        match promise::apt_delay(&settings) {
            Some(delay) => Promise::Within(delay),
            None => Promise::Unknown("the timers have times that are not of every day".to_owned()),
        }
    }

    /// Which settings are not as meant, and what else sets them.
    pub(super) fn differences(&self, wish: &Wish, files: &Below) -> Vec<String> {
        let mut found = Vec::new();
        for expected in wish.settings() {
            found.extend(self.difference(&expected));
        }
        if !wish.once_a_day {
            for (timing, timer) in TIMERS.iter().zip(&self.timers) {
                let Ok(timer) = timer else { continue };
                if timer.is_masked || !timer.exists {
                    continue;
                }
                let others = timer.calendars.iter().find(|(_, file)| file != timing.drop_in);
                let ours = timer
                    .calendars
                    .iter()
                    .any(|(calendar, file)| file == timing.drop_in && calendar == timing.calendar);
                if let Some((calendar, file)) = others {
                    found.push(format!(
                        "{}: /{file} sets OnCalendar={calendar} besides ours or in its place",
                        timing.unit
                    ));
                } else if !ours {
                    found.push(format!("{}: OnCalendar={} is not in force", timing.unit, timing.calendar));
                }
                match &timer.delay {
                    Some((_, file)) if file == timing.drop_in => {}
                    Some((delay, file)) => {
                        found.push(format!("{}: /{file} sets RandomizedDelaySec={delay}", timing.unit));
                    }
                    None => found.push(format!("{}: its delay is not in force", timing.unit)),
                }
            }
        }
        found.extend(needrestart_overrides(files));
        found
    }

    fn difference(&self, expected: &Expected) -> Option<String> {
        let conf = self.conf();
        let seen: Vec<&str> = if expected.is_list {
            conf.list(expected.name).map(|setting| setting.value.as_str()).collect()
        } else {
            conf.value(expected.name).into_iter().collect()
        };
        if seen == expected.values {
            return None;
        }
        // Who else sets it is known from the files alone.
        let culprits: Vec<String> = if expected.is_list {
            self.files.list(expected.name).map(|setting| setting.file.clone()).collect()
        } else {
            self.files.setting(expected.name).map(|setting| setting.file.clone()).into_iter().collect()
        };
        let mut culprits: Vec<_> = culprits
            .into_iter()
            .filter(|file| file != expected.file)
            .map(|file| format!("/{file}"))
            .collect();
        culprits.dedup();
        let by = if culprits.is_empty() {
            "who sets it is in no file of apt".to_owned()
        } else {
            format!("{} sets it", culprits.join(" and "))
        };
        Some(format!("{} is {seen:?} instead of {:?}: {by}", expected.name, expected.values))
    }
}

/// Other files of needrestart, read after ours, that set one of its keys. They are Perl; what is found is a hint.
fn needrestart_overrides(files: &Below) -> Vec<String> {
    let (dir, ours) = NEEDRESTART.rsplit_once('/').unwrap_or_default();
    let mut names: Vec<String> =
        files.names(dir).unwrap_or_default().into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.retain(|name| name.ends_with(".conf") && name.as_str() > ours);
    names.sort();
    let mut found = Vec::new();
    for name in names {
        let text = files.read(format!("{dir}/{name}")).unwrap_or_default();
        for (key, _) in nrconf(&String::from_utf8_lossy(&text)) {
            if ["restart", "kernelhints", "interpscan"].contains(&key.as_str()) {
                found.push(format!("/{dir}/{name} sets $nrconf{{{key}}} after our file"));
            }
        }
    }
    found
}

/// The plain assignments `$nrconf{KEY} = VALUE;` of a file of needrestart, without quotes.
pub(crate) fn nrconf(text: &str) -> Vec<(String, String)> {
    let assignment = |line: &str| {
        let rest = line.trim().strip_prefix("$nrconf{")?;
        let (key, rest) = rest.split_once('}')?;
        let value = rest.trim_start().strip_prefix('=')?.split(';').next()?;
        let plain = |text: &str| text.trim().trim_matches(['\'', '"']).to_owned();
        Some((plain(key), plain(value)))
    };
    text.lines().filter_map(assignment).collect()
}

/// Whether dpkg has a package in order.
pub(crate) fn is_installed(files: &Below, package: &str) -> bool {
    let Ok(text) = files.read("var/lib/dpkg/status") else { return false };
    Database::parse(&text).named(package).any(Installed::is_present)
}

/// Whether something starts a timer at boot.
pub(crate) fn is_enabled(files: &Below, unit: &str) -> bool {
    ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system"]
        .iter()
        .any(|dir| files.is_there(format!("{dir}/timers.target.wants/{unit}")))
}

/// What systemd adds to every start, by `AccuracySec`'s default, in minutes.
const ACCURACY: u64 = 1;

/// A duration as people say it: `8 h 32 min`.
pub(crate) fn duration(time: SignedDuration) -> String {
    minutes_for_people(u64::try_from(time.as_mins()).unwrap_or_default())
}

fn minutes_for_people(minutes: u64) -> String {
    match (minutes / 60, minutes % 60) {
        (0, minutes) => format!("{minutes} min"),
        (hours, 0) => format!("{hours} h"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

/// How long it takes at worst.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Promise {
    /// So long.
    Within(Delay),
    /// For ever, for these reasons.
    Never(Vec<String>),
    /// It cannot be told, for this reason.
    Unknown(String),
}

impl Promise {
    /// The worst case and how it is made up, in sentences.
    pub(crate) fn sentences(&self, in_force: &InForce) -> Vec<String> {
        let case = match self {
            Self::Within(case) => case,
            Self::Never(reasons) => {
                return vec![format!("Nothing is installed by itself: {}.", reasons.join("; "))];
            }
            Self::Unknown(reason) => return vec![format!("The worst case cannot be told: {reason}.")],
        };
        let step = |index: usize, setting: &str| {
            let timer = in_force.timers.get(index).and_then(|timer| timer.as_ref().ok());
            let calendars = timer.map(|timer| {
                timer.calendars.iter().map(|(calendar, _)| calendar.as_str()).collect::<Vec<_>>().join(", ")
            });
            let delay = timer.and_then(|timer| timer.delay.as_ref()).and_then(|(delay, _)| span(delay));
            let unit = TIMERS.get(index).map_or("", |timing| timing.unit);
            format!(
                "({unit} at {}, up to {} late; {setting} \"{}\")",
                calendars.unwrap_or_default(),
                minutes_for_people(delay.unwrap_or(0).saturating_add(ACCURACY)),
                in_force.conf().value(setting).unwrap_or_default()
            )
        };
        vec![
            format!("At worst {} from publication to installation:", duration(case.total())),
            format!(
                "  up to {} until the lists are fetched {},",
                duration(case.lists),
                step(0, "APT::Periodic::Update-Package-Lists")
            ),
            format!(
                "  then up to {} until it is installed {}.",
                duration(case.upgrade),
                step(1, "APT::Periodic::Unattended-Upgrade")
            ),
            "What the mirror, the download and the installation take comes on top; a host that is off, or on battery, makes \
             it up later."
                .to_owned(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_for_people() {
        for (minutes, text) in [(0, "0 min"), (120, "2 h"), (511, "8 h 31 min")] {
            assert_eq!(duration(SignedDuration::from_mins(minutes)), text);
        }
    }

    #[test]
    fn perl_is_read_as_far_as_it_is_plain() {
        let text = "# $nrconf{restart} = 'i';\n$nrconf{restart} = 'a';\n  $nrconf{'kernelhints'}=-1; # x\n\
                    $nrconf{override_rc}->{qr(^x)} = 0;\n$nrconf{";
        let expected = [("restart", "a"), ("kernelhints", "-1")];
        assert_eq!(nrconf(text), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}
