//! systemd's units: how they were, how they are, and whether that is as good.

use std::{collections::BTreeMap, path::Path, time::Duration};

use patch_apply::{apt::argv::Argv, run};
use serde::{Deserialize, Serialize};

/// How long systemd may take to answer.
const LIMIT: Duration = Duration::from_secs(30);

/// Whether systemd runs the system at `root`, and not merely lies there.
pub(crate) fn is_systemd_running(root: &Path) -> bool {
    root == Path::new("/") && Path::new("/run/systemd/system").is_dir()
}

/// What `systemctl show` says of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) id: String,
    /// The id and the aliases.
    pub(super) names: Vec<String>,
    pub(super) load: String,
    pub(super) active: String,
    pub(super) sub: String,
    pub(super) result: String,
    pub(super) file_state: String,
    pub(super) is_transient: bool,
    pub(super) main_pid: u32,
    pub(super) restarts: u32,
}

/// How a unit was that was active before the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Was {
    /// Its sub-state, such as `running`.
    pub(super) sub: String,
    /// Whether it is enabled, or how else it comes to be started.
    pub(super) file_state: String,
    /// Its process; 0 if it has none.
    pub(super) main_pid: u32,
}

/// Asks about units, given by name or pattern. Names are such that [`patch_types::settings::is_unit_name`] accepts, or
/// come from systemd.
pub(super) fn show<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<Unit>, String> {
    const PROPERTIES: &str =
        "Id,Names,LoadState,ActiveState,SubState,Result,UnitFileState,Transient,MainPID,NRestarts";
    let mut args =
        vec!["show".to_owned(), "--no-pager".into(), format!("--property={PROPERTIES}"), "--".into()];
    args.extend(names.into_iter().map(String::from));
    let said =
        run::capture(&Argv::new("/usr/bin/systemctl", args), LIMIT).map_err(|error| error.to_string())?;
    if said.code == Some(0) {
        Ok(parse(&said.stdout))
    } else {
        Err(format!("systemctl says: {}", said.stderr.trim()))
    }
}

/// Blocks of `Property=value`, separated by blank lines.
fn parse(text: &str) -> Vec<Unit> {
    text.split("\n\n").map(block).filter(|unit| !unit.id.is_empty()).collect()
}

fn block(text: &str) -> Unit {
    let mut unit = Unit::default();
    for (property, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match property {
            "Id" => value.clone_into(&mut unit.id),
            "Names" => unit.names = value.split_ascii_whitespace().map(String::from).collect(),
            "LoadState" => value.clone_into(&mut unit.load),
            "ActiveState" => value.clone_into(&mut unit.active),
            "SubState" => value.clone_into(&mut unit.sub),
            "Result" => value.clone_into(&mut unit.result),
            "UnitFileState" => value.clone_into(&mut unit.file_state),
            "Transient" => unit.is_transient = value == "yes",
            "MainPID" => unit.main_pid = value.parse().unwrap_or_default(),
            "NRestarts" => unit.restarts = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    unit
}

/// The units among `all` that must still be well after a change. Sessions of people, what was started for the moment,
/// and our own processes come and go by themselves.
pub(super) fn to_keep(all: Vec<Unit>) -> BTreeMap<String, Was> {
    let passing = |id: &str| {
        ["user@", "user-runtime-dir@", "linux-patch-executor@", "linux-patch-executor-recover"]
            .iter()
            .any(|p| id.starts_with(p))
    };
    all.into_iter()
        .filter(|unit| unit.active == "active" && !unit.is_transient && !passing(&unit.id))
        .map(|unit| (unit.id, Was { sub: unit.sub, file_state: unit.file_state, main_pid: unit.main_pid }))
        .collect()
}

/// How a unit is now that was active before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As good as before.
    Well,
    /// On its way; that is no fault, but worth waiting for.
    OnItsWay,
    /// Worse.
    Lost(String),
}

/// Judges a unit. One that only had run once, or that ends by itself when nobody needs it, may be inactive.
pub(super) fn judge(was: &Was, now: Option<&Unit>) -> Verdict {
    let Some(now) = now else { return Verdict::Lost("systemd does not know it any more".into()) };
    let ran = matches!(was.sub.as_str(), "running" | "listening");
    match (now.active.as_str(), now.sub.as_str()) {
        ("failed", _) => Verdict::Lost(format!("it was {} and has failed: {}", was.sub, now.result)),
        _ if !ran => Verdict::Well,
        ("active" | "reloading" | "refreshing", _) => Verdict::Well,
        ("activating", sub) if sub.starts_with("auto-restart") => {
            Verdict::Lost(format!("it was {} and ends as often as it is started: {}", was.sub, now.result))
        }
        ("activating" | "deactivating" | "maintenance", _) => Verdict::OnItsWay,
        _ if now.load == "not-found" => {
            Verdict::Lost(format!("it was {} and its unit file is gone", was.sub))
        }
        _ if now.result == "success"
            && matches!(was.file_state.as_str(), "static" | "indirect" | "generated" | "transient") =>
        {
            Verdict::Well
        }
        (active, sub) => Verdict::Lost(format!("it was {} and is {active} ({sub})", was.sub)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn was(sub: &str, file_state: &str) -> Was {
        Was { sub: sub.into(), file_state: file_state.into(), main_pid: 1 }
    }

    fn now(active: &str, sub: &str) -> Unit {
        Unit {
            load: "loaded".into(),
            active: active.into(),
            sub: sub.into(),
            result: "success".into(),
            ..Unit::default()
        }
    }

    #[test]
    fn what_systemctl_shows_is_read() {
        let text = "\
MainPID=77
NRestarts=2
Result=success
Id=ssh.service
Names=ssh.service sshd.service
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
Transient=no

Result=success
Id=ssh.socket
LoadState=loaded
ActiveState=active
SubState=listening
Transient=yes
";
        let units = parse(text);
        assert_eq!(units.len(), 2);
        assert_eq!((units[0].main_pid, units[0].restarts), (77, 2));
        assert_eq!(units[0].names, ["ssh.service", "sshd.service"]);
        let kept = to_keep(units);
        assert_eq!(kept.into_keys().collect::<Vec<_>>(), ["ssh.service"], "transient units come and go");
        assert!(parse("").is_empty());
        assert!(parse("\n\n=\n\nx").is_empty());
    }

    #[test]
    fn what_ran_must_run_and_nothing_may_fail() {
        let lost = |verdict| matches!(verdict, Verdict::Lost(_));
        let enabled = was("running", "enabled");
        assert_eq!(judge(&enabled, Some(&now("active", "running"))), Verdict::Well);
        assert_eq!(judge(&enabled, Some(&now("activating", "start"))), Verdict::OnItsWay);
        assert!(lost(judge(&enabled, Some(&now("activating", "auto-restart")))));
        assert!(lost(judge(&enabled, Some(&now("inactive", "dead")))));
        assert!(lost(judge(&enabled, Some(&now("failed", "failed")))));
        assert!(lost(judge(&enabled, None)));
        assert!(lost(judge(&was("listening", "enabled"), Some(&now("inactive", "dead")))));
        let once = was("exited", "enabled");
        assert_eq!(judge(&once, Some(&now("inactive", "dead"))), Verdict::Well);
        assert!(lost(judge(&once, Some(&now("failed", "failed")))));
        let on_demand = was("running", "static");
        assert_eq!(judge(&on_demand, Some(&now("inactive", "dead"))), Verdict::Well);
        let crashed = Unit { result: "signal".into(), ..now("inactive", "dead") };
        assert!(lost(judge(&on_demand, Some(&crashed))));
        let gone = Unit { load: "not-found".into(), ..now("inactive", "dead") };
        assert!(lost(judge(&on_demand, Some(&gone))));
    }
}
