//! What is declared of the reboot window, for the checks of reboots.
//!
//! The window's own program alone reads its settings: a second reader would one day take for good what that one refuses.

use std::{io, path::Path};

use jiff::Timestamp;

use super::host::{CONFIG, Host};
use crate::window::settings::Settings;

/// Where the window is declared: ours, and the older name.
const FILES: [&str; 2] = ["etc/default/linux-patch-reboot-window", "etc/default/kei-reboot-window"];

/// What is declared.
#[derive(Debug, Default)]
pub(super) struct Declared {
    /// Whether a window is declared that opens.
    pub(super) has_window: bool,
    /// Why no reboot will come of it, if something is wrong with it.
    pub(super) problem: Option<String>,
    /// For how many days a reboot may wait, if that is said.
    pub(super) max_defer_days: Option<u32>,
}

/// What is declared on a host; why that was not looked at, if it was not.
pub(super) fn declared(host: &Host<'_>) -> Result<Declared, String> {
    if host.files.root() == Path::new("/") {
        return judge(Settings::load(Path::new("/")), host.now);
    }
    // Below another root links lead elsewhere for that program than they do here.
    for path in FILES {
        match host.files.metadata(path) {
            Ok(_) => return Err(format!("the reboot window of /{path}")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("/{path}: {error}")),
        }
    }
    let config = host.config.as_ref().map_err(|error| format!("/{CONFIG}: {error}"))?;
    match config.get("reboot") {
        Some(section) if !section.is_null() => Err(format!("the reboot window of /{CONFIG}")),
        _ => Ok(Declared::default()),
    }
}

/// What the settings mean, or the reason for which the window's program refuses them.
fn judge(settings: anyhow::Result<Settings>, now: Timestamp) -> Result<Declared, String> {
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => {
            let is_denied = |cause: &io::Error| cause.kind() == io::ErrorKind::PermissionDenied;
            let told = format!("{error:#}");
            return if error.chain().filter_map(|cause| cause.downcast_ref()).any(is_denied) {
                Err(told)
            } else {
                Ok(Declared { problem: Some(told), ..Declared::default() })
            };
        }
    };
    let never = settings
        .window
        .as_ref()
        .is_some_and(|window| window.open_at(now).is_none() && window.next_after(now).is_none());
    Ok(Declared {
        has_window: settings.window.is_some() && !never,
        problem: never
            .then(|| "the reboot window never opens: the day that it names does not come".to_owned()),
        max_defer_days: settings.max_defer_days,
    })
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use patch_policy::Window;

    use super::*;

    #[test]
    fn a_window_that_is_refused_or_never_opens_is_a_problem() {
        let now = "2026-06-01T00:00:00Z".parse().unwrap();
        let with = |rule: &str| Settings {
            window: Window::from_rule(rule, 60, None, TimeZone::UTC).ok(),
            max_defer_days: Some(3),
            ..Settings::default()
        };
        let good = judge(Ok(with("FREQ=WEEKLY;BYDAY=SU;BYHOUR=4")), now).unwrap();
        assert_eq!((good.has_window, good.problem, good.max_defer_days), (true, None, Some(3)));
        let none = judge(Ok(Settings::default()), now).unwrap();
        assert_eq!((none.has_window, none.problem), (false, None));
        let never = with("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;BYHOUR=4");
        assert!(never.window.is_some(), "the rule itself is sound");
        let never = judge(Ok(never), now).unwrap();
        assert!(!never.has_window && never.problem.unwrap().contains("never opens"));
        let refused = judge(Err(anyhow::anyhow!("REBOOT_DOW is no day")), now).unwrap();
        assert_eq!(refused.problem.as_deref(), Some("REBOOT_DOW is no day"));
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(judge(Err(anyhow::Error::from(denied).context("config.yaml")), now).is_err());
    }
}
