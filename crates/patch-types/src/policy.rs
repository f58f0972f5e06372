//! `policy:` of `config.yaml`: whether the agent patches by itself, when, and what. Both sides read it: the daemon to act by
//! it, the root side to keep the distribution's own updater off meanwhile.

use jiff::{Timestamp, civil::Date};
use serde::{Deserialize, Serialize};

use crate::{
    job::JobId,
    name::PackageName,
    operation::{ApplyPatches, Operation},
    settings::Restart,
};

/// The longest spread over a fleet, in minutes: a day.
pub const MAX_SPREAD: u32 = 24 * 60;

/// Indexes that are older than this are fetched before a run, in seconds.
pub const FRESH: u64 = 3600;

/// The file of apt's that keeps the distribution's own updater off, below the root. Its name is late among its fellows.
pub const SWITCH: &str = "etc/apt/apt.conf.d/99linux-patch-agent-mode";

/// What that file holds.
pub const SWITCHED_OFF: &str = "\
// Declared by the Linux Patch API: config.yaml has `policy.mode: agent`, so the agent installs the updates of this host and
// unattended-upgrades does not. It is removed when that mode is switched off, when the agent is stopped, disabled or removed,
// and when the agent has not succeeded for three days; then it is there only while the agent tries. Do not edit it:
// `linux-patch-host policy status` says more.
APT::Periodic::Unattended-Upgrade \"0\";
";

/// What is remembered of who patches, root's own, below the root.
pub const POLICY_DIR: &str = "var/lib/linux_patch_executor/policy";

/// In [`POLICY_DIR`]: locked by whoever decides who patches, for as long as that takes.
pub const POLICY_LOCK: &str = "lock";

/// In [`POLICY_DIR`]: what root's looks remember. Its `policy` is the last one in agent mode that could be used.
pub const POLICY_STATE: &str = "state.json";

/// In [`POLICY_DIR`]: the [`Attempt`] that was begun last and of which the end was not seen.
pub const ATTEMPT: &str = "attempt.json";

/// In [`POLICY_DIR`]: locked by the process that carries an attempt out, from before the updater is switched off.
pub const ATTEMPT_LOCK: &str = "attempt.lock";

/// A run of the root side that installs all that the policy declares. While it lasts the distribution's updater is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The run.
    pub job: JobId,
    /// Whether the updater was on before, so is to be on again when this has ended.
    pub took_over: bool,
    /// When it began.
    #[serde(default)]
    pub since: Option<Timestamp>,
}

/// Who patches without being asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PolicyMode {
    /// Nobody, or the distribution's own tools.
    #[default]
    Off,
    /// This agent.
    Agent,
}

/// What is installed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Updates {
    /// Security fixes.
    #[default]
    Security,
    /// All updates.
    All,
}

/// A recurring span of time, as it is written: a rule, or days of the week with a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyWindow {
    /// A recurrence rule of RFC 5545.
    pub rule: Option<String>,
    /// Days such as `Sun`, `Mon,Wed`, `Mon-Fri` or `*`.
    pub days: Option<String>,
    /// The hour on those days, 0 to 23.
    pub hour: Option<u8>,
    /// The minute; 0 if absent.
    pub minute: Option<u8>,
    /// An IANA time zone.
    #[serde(default = "utc", alias = "time_zone")]
    pub timezone: String,
    /// How long it lasts, in minutes.
    #[serde(default = "an_hour")]
    pub duration_minutes: u32,
    /// The first day on which a rule may open it.
    pub start: Option<Date>,
}

fn utc() -> String {
    "UTC".into()
}

fn an_hour() -> u32 {
    60
}

/// `policy:`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Whether the agent patches by itself.
    pub mode: PolicyMode,
    /// When it may; every six hours if absent.
    pub window: Option<PolicyWindow>,
    /// Over how many minutes after an opening the hosts of a fleet spread.
    pub spread_minutes: u32,
    /// Whether an opening that went by while the host was off is made up for in the next one, after a quarter of the
    /// wait.
    pub catch_up: bool,
    /// What is installed.
    pub updates: Updates,
    /// What is left out.
    pub exclude: Vec<PackageName>,
    /// Nothing is installed by itself until this is taken away.
    pub paused: bool,
    /// Nothing is installed by itself until then.
    pub paused_until: Option<Timestamp>,
    /// Which services are restarted that still run old code after a change.
    pub restart: Restart,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: PolicyMode::Off,
            window: None,
            spread_minutes: 60,
            catch_up: true,
            updates: Updates::Security,
            exclude: Vec::new(),
            paused: false,
            paused_until: None,
            restart: Restart::default(),
        }
    }
}

impl Policy {
    /// What a run of it asks the root side for.
    #[must_use]
    pub fn operation(&self) -> Operation {
        Operation::ApplyPatches(ApplyPatches {
            security_only: self.updates == Updates::Security,
            exclude: self.exclude.clone(),
            refresh_if_older: Some(FRESH),
            ..ApplyPatches::default()
        })
    }

    /// Whether an operation leaves nothing out that a run of this would install: then its success is this policy's too.
    #[must_use]
    pub fn is_met_by(&self, operation: &Operation) -> bool {
        let Operation::ApplyPatches(apply) = operation else { return false };
        apply.packages.is_empty()
            && (!apply.security_only || self.updates == Updates::Security)
            && apply.exclude.iter().all(|name| self.exclude.contains(name))
            && apply.refresh_if_older.is_some_and(|seconds| seconds <= FRESH)
    }

    /// Whether somebody has said that nothing is to be done now.
    #[must_use]
    pub fn is_paused(&self, now: Timestamp) -> bool {
        self.paused || self.paused_until.is_some_and(|until| now < until)
    }

    /// What is not acceptable but for the window, which is judged by whoever knows windows: each key, and one sentence.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let spread = (self.spread_minutes > MAX_SPREAD).then(|| {
            ("policy.spread_minutes", format!("{} is not between 0 and {MAX_SPREAD}", self.spread_minutes))
        });
        let exclude = self.operation().check().err().map(|error| ("policy.exclude", error.to_string()));
        spread.into_iter().chain(exclude).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Policy {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_run_installs_what_is_declared_and_nothing_less_counts_as_one() {
        let security = policy(r#"{"mode": "agent", "exclude": ["linux-image-amd64"]}"#);
        let all = Policy { updates: Updates::All, ..security.clone() };
        let run = |policy: &Policy| match policy.operation() {
            Operation::ApplyPatches(apply) => apply,
            other => panic!("{other:?}"),
        };
        assert!(run(&security).security_only && !run(&all).security_only && !run(&all).allow_removals);
        assert!(security.is_met_by(&security.operation()) && security.is_met_by(&all.operation()));
        assert!(!all.is_met_by(&security.operation()));
        let mut less = run(&security);
        less.exclude.push("openssl".parse().unwrap());
        assert!(!security.is_met_by(&Operation::ApplyPatches(less)));
        let some = ApplyPatches { packages: vec!["openssl".parse().unwrap()], ..run(&security) };
        assert!(!security.is_met_by(&Operation::ApplyPatches(some)));
        let stale = ApplyPatches { refresh_if_older: None, ..run(&security) };
        assert!(!security.is_met_by(&Operation::ApplyPatches(stale)), "it may have seen nothing new");
        assert!(!security.is_met_by(&Operation::Refresh));
    }

    #[test]
    fn what_is_not_acceptable_is_said() {
        assert!(Policy::default().problems().is_empty());
        let odd = policy(r#"{"spread_minutes": 1441, "exclude": ["aa", "aa"]}"#);
        let keys: Vec<_> = odd.problems().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["policy.spread_minutes", "policy.exclude"]);
        for bad in [r#"{"mode": "on"}"#, r#"{"exclude": ["--force"]}"#, r#"{"window": {"hours": 2}}"#] {
            assert!(serde_json::from_str::<Policy>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_window_says_its_zone_and_length_or_has_an_hour_of_utc() {
        let window = |json: &str| policy(&format!(r#"{{"window": {json}}}"#)).window.unwrap();
        let bare = window(r#"{"days": "Sun", "hour": 3}"#);
        assert_eq!((bare.timezone.as_str(), bare.duration_minutes), ("UTC", 60));
        for key in ["timezone", "time_zone"] {
            let full = window(&format!(
                r#"{{"days": "Sun", "hour": 3, "{key}": "Europe/Vienna", "duration_minutes": 90}}"#
            ));
            assert_eq!((full.timezone.as_str(), full.duration_minutes), ("Europe/Vienna", 90));
        }
    }

    #[test]
    fn a_pause_ends_when_it_says_so() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let until = policy(r#"{"paused_until": "2026-01-02T00:00:00Z"}"#);
        assert!(until.is_paused(now) && !until.is_paused("2026-01-02T00:00:00Z".parse().unwrap()));
        assert!(policy(r#"{"paused": true}"#).is_paused(now) && !Policy::default().is_paused(now));
    }
}
