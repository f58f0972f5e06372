//! `doctor`: what keeps this host from being patched, why that matters, what to do, and doing it where that is safe.
//!
//! A check looks and says what it found. What could not be looked at is said as well, and never counts as well.

mod agent;
mod host;
mod openpgp;
mod packages;
mod reboots;
mod sources;
mod updates;
mod window;

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use self::host::Host;
use crate::{below::Below, exit::Exit, log, place::Places, screen::Screen, tools::Ask};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// It weakens the host or its patching.
    Warning,
    /// Fixes are not installed because of it, or anybody may change what the host trusts.
    Critical,
}

/// What may be done about a finding without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fix {
    /// Unmask a timer, enable and start it.
    EnableTimer(&'static str),
    /// Take permissions from a file, relative to the root.
    Mode {
        /// The file.
        path: PathBuf,
        /// Its new permissions.
        mode: u32,
    },
}

impl Fix {
    fn sentence(&self) -> String {
        match self {
            Self::EnableTimer(unit) => format!("unmasks, enables and starts {unit}"),
            Self::Mode { path, mode } => format!("gives /{} the mode {mode:o}", path.display()),
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What it is called; stable.
    pub(crate) id: &'static str,
    /// How much it matters.
    pub(crate) severity: Severity,
    /// What was found.
    pub(crate) what: String,
    /// Why it matters.
    pub(crate) why: &'static str,
    /// What to do.
    pub(crate) todo: String,
    /// What `--fix` does.
    pub(crate) fix: Option<Fix>,
}

/// What the checks saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    findings: Vec<Finding>,
    /// What was not looked at: the check, and why not.
    unseen: Vec<(&'static str, String)>,
}

impl Seen {
    fn critical(&mut self, id: &'static str, what: String, why: &'static str, todo: impl Into<String>) {
        self.add(id, Severity::Critical, what, why, todo.into(), None);
    }

    fn warning(&mut self, id: &'static str, what: String, why: &'static str, todo: impl Into<String>) {
        self.add(id, Severity::Warning, what, why, todo.into(), None);
    }

    fn add(
        &mut self,
        id: &'static str,
        severity: Severity,
        what: String,
        why: &'static str,
        todo: String,
        fix: Option<Fix>,
    ) {
        self.findings.push(Finding { id, severity, what, why, todo, fix });
    }

    fn not_looked_at(&mut self, id: &'static str, reason: impl Into<String>) {
        self.unseen.push((id, reason.into()));
    }
}

type Check = fn(&Host<'_>, &mut Seen);

/// All checks, in the order in which their findings are shown when they matter equally.
const CHECKS: &[Check] = &[
    updates::timers,
    updates::agent_mode,
    updates::updater,
    updates::periodic,
    updates::origins,
    updates::promise,
    updates::two_updaters,
    packages::interrupted,
    packages::held,
    packages::taken_back,
    packages::security_source,
    packages::unverified,
    packages::foreign,
    packages::keys,
    packages::room,
    packages::clock,
    reboots::automatic,
    reboots::restarts,
    reboots::overdue,
    reboots::window,
    agent::ceiling,
    agent::certificates,
    agent::secrets,
    agent::modes,
    agent::allow_list,
    agent::listener,
    agent::firewall,
];

/// Runs all checks.
fn examine(files: &Below, tools: &dyn Ask, now: Timestamp) -> Seen {
    let host = Host::look(files, tools, now);
    let mut seen = Seen::default();
    for check in CHECKS {
        check(&host, &mut seen);
    }
    seen.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    seen
}

/// Runs the command.
///
/// # Errors
/// When what is to be mended cannot be recorded.
pub(crate) fn doctor(files: &Below, tools: &dyn Ask, screen: &mut Screen, fix: bool) -> anyhow::Result<Exit> {
    let now = Timestamp::now();
    let mut seen = examine(files, tools, now);
    let (mut fixed, mut not_fixed) = (Vec::new(), Vec::new());
    if fix {
        for finding in &seen.findings {
            let Some(fix) = &finding.fix else { continue };
            // On record before it is done; a fix that cannot be recorded is not made, and none after it.
            log::record(files, &[format!("doctor --fix {} ({})", fix.sentence(), finding.id)])?;
            match mend(files, tools, fix) {
                Ok(()) => fixed.push(fix.sentence()),
                Err(error) => not_fixed.push(format!("{}: {error:#}", fix.sentence())),
            }
        }
        if !fixed.is_empty() || !not_fixed.is_empty() {
            seen = examine(files, tools, now);
        }
    }
    show(screen, &seen, &fixed, &not_fixed)?;
    Ok(match seen.findings.first().map(|finding| finding.severity) {
        None => Exit::Done,
        Some(Severity::Warning) => Exit::Warnings,
        Some(Severity::Critical) => Exit::Critical,
    })
}

fn mend(files: &Below, tools: &dyn Ask, fix: &Fix) -> anyhow::Result<()> {
    match fix {
        Fix::EnableTimer(unit) => {
            tools.ask("systemctl", &["unmask", "--", unit])?;
            tools.ask("systemctl", &["enable", "--now", "--", unit])?;
        }
        Fix::Mode { path, mode } => Places::new(files.root()).set_mode(path, *mode)?,
    }
    Ok(())
}

fn show(screen: &mut Screen, seen: &Seen, fixed: &[String], not_fixed: &[String]) -> serde_json::Result<()> {
    if screen.is_json() {
        let findings: Vec<_> = seen
            .findings
            .iter()
            .map(|finding| {
                json!({
                    "id": finding.id, "severity": finding.severity, "what": finding.what, "why": finding.why,
                    "todo": finding.todo, "fixable": finding.fix.is_some(),
                })
            })
            .collect();
        let unseen: Vec<_> =
            seen.unseen.iter().map(|(id, reason)| json!({"id": id, "reason": reason})).collect();
        return screen.json(&json!({
            "findings": findings, "not_looked_at": unseen, "fixed": fixed, "not_fixed": not_fixed,
        }));
    }
    fixed.iter().for_each(|what| screen.text(&format!("fixed: {what}")));
    not_fixed.iter().for_each(|what| screen.text(&format!("not fixed: {what}")));
    for finding in &seen.findings {
        let severity = match finding.severity {
            Severity::Warning => "warning",
            Severity::Critical => "CRITICAL",
        };
        let fixable = if finding.fix.is_some() { " (--fix does it)" } else { "" };
        screen.text(&format!(
            "{severity}  {}\n    {}\n    why:  {}\n    do:   {}{fixable}\n",
            finding.id, finding.what, finding.why, finding.todo
        ));
    }
    let rows: Vec<_> = seen.unseen.iter().map(|(id, reason)| [(*id).to_owned(), reason.clone()]).collect();
    if !rows.is_empty() {
        screen.table(["NOT LOOKED AT", "BECAUSE"], &rows);
    }
    if seen.findings.is_empty() {
        screen.remark(if rows.is_empty() {
            "Nothing was found that keeps this host from being patched."
        } else {
            "Nothing was found in what could be looked at."
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
