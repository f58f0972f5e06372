//! Timers of systemd, as their unit and its drop-ins set them.

use crate::{
    below::Below,
    tools::{Ask, ToolError},
};

/// Where units are, those that go before first.
const UNIT_DIRS: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// A timer as it is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Timer {
    /// `OnCalendar=`, each with the file that has it.
    pub(crate) calendars: Vec<(String, String)>,
    /// `RandomizedDelaySec=`, with the file that has it.
    pub(crate) delay: Option<(String, String)>,
    /// Whether the unit is linked to nothing.
    pub(crate) is_masked: bool,
    /// Whether there is such a unit at all.
    pub(crate) exists: bool,
    /// The file of a drop-in that was read, in their order.
    pub(crate) files: Vec<String>,
}

impl Timer {
    /// What `systemctl cat` shows of it: each file under a line `# /its/path`.
    pub(crate) fn from_cat(shown: &str) -> Self {
        let mut timer = Self::default();
        let mut file = String::new();
        let mut text = String::new();
        for line in shown.lines() {
            match line.strip_prefix("# /") {
                Some(path) if is_unit_file(path) => {
                    timer.add(&file, &std::mem::take(&mut text));
                    path.clone_into(&mut file);
                }
                _ => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        timer.add(&file, &text);
        timer
    }

    /// What the files below a root say, as systemd reads them.
    pub(crate) fn from_files(files: &Below, unit: &str) -> Self {
        let mut timer = Self::default();
        for dir in UNIT_DIRS {
            let path = format!("{dir}/{unit}");
            match files.read(&path) {
                Ok(text) if text.is_empty() => timer.is_masked = true,
                Ok(text) => timer.add(&path, &String::from_utf8_lossy(&text)),
                // A mask is a link to /dev/null, which is no file, or is not there in a root that does not run.
                Err(_) if files.is_there(&path) => timer.is_masked = true,
                Err(_) => continue,
            }
            break;
        }
        // One of the same name in a directory that goes before takes the other's place.
        let mut drop_ins: Vec<(String, String)> = Vec::new();
        for dir in UNIT_DIRS {
            let names = files.names(format!("{dir}/{unit}.d")).unwrap_or_default();
            for name in names.into_iter().filter_map(|name| name.into_string().ok()) {
                if name.ends_with(".conf")
                    && !name.starts_with('.')
                    && !drop_ins.iter().any(|(n, _)| *n == name)
                {
                    drop_ins.push((name.clone(), format!("{dir}/{unit}.d/{name}")));
                }
            }
        }
        drop_ins.sort();
        for (_, path) in drop_ins {
            if let Ok(text) = files.read(&path) {
                timer.add(&path, &String::from_utf8_lossy(&text));
            }
        }
        timer
    }

    /// As systemd sees it, if it runs and can be asked; as its files say otherwise.
    pub(crate) fn look(files: &Below, tools: &dyn Ask, unit: &str) -> Result<Self, ToolError> {
        let by_files = Self::from_files(files, unit);
        if by_files.is_masked || !by_files.exists || !files.is_there("run/systemd/system") {
            return Ok(by_files);
        }
        match tools.ask("systemctl", &["cat", "--no-pager", "--", unit]) {
            Ok(shown) => Ok(Self::from_cat(&shown)),
            Err(ToolError::Foreign(_) | ToolError::Absent(_)) => Ok(by_files),
            Err(error) => Err(error),
        }
    }

    fn add(&mut self, file: &str, text: &str) {
        if file.is_empty() {
            return;
        }
        self.exists = true;
        self.files.push(file.to_owned());
        let mut is_timer = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                is_timer = line == "[Timer]";
                continue;
            }
            let Some((key, value)) =
                line.split_once('=').filter(|_| is_timer && !line.starts_with(['#', ';']))
            else {
                continue;
            };
            let value = (value.trim().to_owned(), file.to_owned());
            match key.trim() {
                "OnCalendar" if value.0.is_empty() => self.calendars.clear(),
                "OnCalendar" => self.calendars.push(value),
                "RandomizedDelaySec" => self.delay = Some(value).filter(|value| !value.0.is_empty()),
                _ => {}
            }
        }
    }

    /// The minutes of the day at which it starts, if it does so every day at times that are understood here.
    pub(crate) fn starts(&self) -> Option<Vec<u64>> {
        let mut starts = Vec::new();
        for (calendar, _) in &self.calendars {
            starts.extend(minutes_of(calendar)?);
        }
        starts.sort_unstable();
        starts.dedup();
        Some(starts)
    }

    /// By how many minutes it may be late on purpose, rounded up; none if that is not understood.
    pub(crate) fn jitter(&self) -> Option<u64> {
        self.delay.as_ref().map_or(Some(0), |(delay, _)| span(delay))
    }
}

fn is_unit_file(path: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "/@._:-\\".contains(c);
    path.chars().all(is_name) && (path.ends_with(".timer") || path.ends_with(".conf"))
}

/// The minutes of the day that a calendar of every day names: `*-*-* 6,18:00`, `*-*-* 00/6:30:00`, `daily`, `hourly`.
pub(crate) fn minutes_of(calendar: &str) -> Option<Vec<u64>> {
    match calendar {
        "hourly" => return minutes_of("*:00"),
        "daily" | "midnight" => return minutes_of("00:00"),
        _ => {}
    }
    let time = calendar.strip_prefix("*-*-*").map_or(calendar, str::trim_start);
    let mut parts = time.split(':');
    let hours = numbers(parts.next()?, 24)?;
    let minutes = numbers(parts.next()?, 60)?;
    // The second does not matter here, but must be one.
    if let Some(second) = parts.next() {
        numbers(second, 60)?;
    }
    if parts.next().is_some() {
        return None;
    }
    Some(hours.iter().flat_map(|hour| minutes.iter().map(move |minute| hour * 60 + minute)).collect())
}

/// `*`, `6,18`, `0/6`, `8..17`, `0..12/4`: the numbers below a bound that are meant.
fn numbers(text: &str, bound: u64) -> Option<Vec<u64>> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(step.parse::<u64>().ok().filter(|step| *step > 0)?)),
            None => (part, None),
        };
        let number = |text: &str| text.parse::<u64>().ok().filter(|number| *number < bound);
        let (first, last) = match (range, range.split_once("..")) {
            ("*", _) => (0, bound - 1),
            (_, Some((first, last))) => (number(first)?, number(last)?),
            (one, None) => (number(one)?, if step.is_some() { bound - 1 } else { number(one)? }),
        };
        if last < first {
            return None;
        }
        numbers.extend((first..=last).step_by(usize::try_from(step.unwrap_or(1)).ok()?));
    }
    Some(numbers)
}

/// A span of time in systemd's words, in minutes, rounded up: `12h`, `60m`, `1h 30min`, `90` (seconds).
pub(crate) fn span(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    let mut seconds = 0_u64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let factor = match unit {
            "" | "s" | "sec" | "second" | "seconds" => 1,
            "m" | "min" | "minute" | "minutes" => 60,
            "h" | "hr" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = after.trim_start();
    }
    Some(seconds.div_ceil(60))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use proptest::prelude::*;

    use super::*;

    const CAT: &str = "# /lib/systemd/system/apt-daily.timer\n[Unit]\nDescription=Daily apt download activities\n\n\
        [Timer]\nOnCalendar=*-*-* 6,18:00\nRandomizedDelaySec=12h\nPersistent=true\n\n\
        # /etc/systemd/system/apt-daily.timer.d/linux-patch.conf\n# a remark\n[Timer]\nOnCalendar=\n\
        OnCalendar=*-*-* 00/6:00\nRandomizedDelaySec=1h\n";

    #[test]
    fn what_systemctl_shows_is_what_is_in_force() {
        let timer = Timer::from_cat(CAT);
        assert_eq!(timer.starts(), Some(vec![0, 360, 720, 1080]));
        assert_eq!(timer.jitter(), Some(60));
        let ours = "etc/systemd/system/apt-daily.timer.d/linux-patch.conf";
        assert_eq!(timer.delay.as_ref().map(|(_, file)| file.as_str()), Some(ours));
        assert_eq!(timer.files.len(), 2);
        let overridden =
            format!("{CAT}\n# /etc/systemd/system/apt-daily.timer.d/zz.conf\n[Timer]\nOnCalendar=daily\n");
        let timer = Timer::from_cat(&overridden);
        assert!(timer.calendars.last().is_some_and(|(_, file)| file.ends_with("zz.conf")));
        assert!(!Timer::from_cat("").exists);
    }

    #[test]
    fn files_are_read_as_systemd_does() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let look = || Timer::from_files(&Below::new(dir.path().to_owned()), "a.timer");
        assert!(!look().exists && !look().is_masked);
        put("usr/lib/systemd/system/a.timer", "[Timer]\nOnCalendar=daily\n");
        put("usr/lib/systemd/system/a.timer.d/x.conf", "[Timer]\nRandomizedDelaySec=5h\n");
        put("etc/systemd/system/a.timer.d/x.conf", "[Timer]\nRandomizedDelaySec=2h\n");
        put("etc/systemd/system/a.timer.d/.y.conf.new", "[Timer]\nRandomizedDelaySec=9h\n");
        let timer = look();
        assert_eq!((timer.starts(), timer.jitter()), (Some(vec![0]), Some(120)));
        symlink("/dev/null", dir.path().join("etc/systemd/system/a.timer")).unwrap();
        assert!(look().is_masked);
    }

    #[test]
    fn calendars_and_spans() {
        for (text, expected) in [
            ("*-*-* 6,18:00", Some(vec![360, 1080])),
            ("01/6:30:00", Some(vec![90, 450, 810, 1170])),
            ("daily", Some(vec![0])),
            ("*-*-* 8..9:0/30", Some(vec![480, 510, 540, 570])),
            ("Mon *-*-* 6:00", None),
            ("weekly", None),
            ("*-*-01 6:00", None),
            ("25:00", None),
            ("6:00 Europe/Berlin", None),
            ("0/0:00", None),
        ] {
            assert_eq!(minutes_of(text), expected, "{text}");
        }
        for (text, expected) in [
            ("12h", Some(720)),
            ("60m", Some(60)),
            ("1h 30min", Some(90)),
            ("90", Some(2)),
            ("1w", None),
            ("", None),
        ] {
            assert_eq!(span(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_ends_the_program(text in "[0-9*,/.:a-z \\-]{0,24}", huge in "[0-9]{1,40}[a-z]{0,3}") {
            minutes_of(&text);
            span(&text);
            span(&huge);
            Timer::from_cat(&format!("# /x.timer\n[Timer]\nOnCalendar={text}\nRandomizedDelaySec={huge}")).starts();
        }
    }
}
