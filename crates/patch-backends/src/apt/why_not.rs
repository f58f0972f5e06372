//! Why a package is not being patched: each cause in a sentence, with the next step.

use jiff::{SignedDuration, Timestamp};
use patch_types::{
    PackageName, PackageVersion, TakenBack,
    api::{Cause, CauseKind, PatchState, WhyNot},
};

use super::{
    Inventory,
    indexes::{Indexes, fits},
    patches,
    policy::{Policy, PolicyVersion},
    simulate::{Simulation, Verb},
    status::Installed,
    versions, words,
};

/// Indexes that are older than this are named as a cause.
pub const STALE_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// What a judgement rests upon.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// What is installed.
    pub inventory: &'a Inventory,
    /// apt's policy for the package; none if apt does not know it.
    pub policy: Option<&'a Policy>,
    /// What the archives offer of it and of what it depends on.
    pub indexes: &'a Indexes,
    /// A simulation of patching, as the next run would be.
    pub patching: &'a Simulation,
    /// A simulation of installing just this package, which says what it would take.
    pub alone: Option<&'a Simulation>,
    /// The versions that were taken back on this host.
    pub taken_back: &'a [TakenBack],
    /// When the indexes were last fetched.
    pub last_update_check: Option<Timestamp>,
    /// The time of the judgement.
    pub now: Timestamp,
}

fn cause(kind: CauseKind, message: impl Into<String>, next_step: impl Into<String>) -> Cause {
    Cause { kind, message: message.into(), next_step: next_step.into() }
}

/// Why a package is not being patched, the most decisive cause first.
#[must_use]
pub fn why_not(name: &PackageName, evidence: &Evidence<'_>) -> WhyNot {
    let installed = evidence.inventory.database.get(name).filter(|p| p.is_present());
    let mut causes = Vec::new();
    causes.extend(broken(evidence));
    match installed {
        None => causes.push(absent(name, evidence)),
        Some(installed) => causes.extend(present(name, installed, evidence)),
    }
    causes.extend(stale(evidence));
    WhyNot {
        name: name.clone(),
        current_version: installed.and_then(Installed::version),
        available_version: newest(name, evidence),
        causes,
    }
}

/// The newest version that any archive offers.
fn newest(name: &PackageName, evidence: &Evidence<'_>) -> Option<PackageVersion> {
    let installed = evidence.inventory.database.get(name);
    let architecture = name
        .architecture()
        .or_else(|| installed.map(Installed::architecture))
        .unwrap_or_else(|| evidence.inventory.database.native());
    let indexed = evidence.indexes.newest(name.name(), architecture).map(|i| &i.version);
    let policy = evidence.policy.and_then(Policy::newest_offered).map(|v| &v.version);
    indexed.into_iter().chain(policy).max_by(|a, b| versions::compare(a.as_str(), b.as_str())).cloned()
}

/// apt does nothing at all while a package is in a broken state, whichever it is.
fn broken(evidence: &Evidence<'_>) -> Option<Cause> {
    let findings: Vec<_> = evidence
        .inventory
        .database
        .audit()
        .into_iter()
        .filter(|f| f.reinstall_required || f.status.is_broken())
        .collect();
    let first = findings.first()?;
    let more = match findings.len() {
        1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    let next = if first.reinstall_required {
        format!("install {} again: POST /api/v1/packages with \"reinstall\": true", first.package)
    } else {
        "finish or repair it: `dpkg --configure -a`, then `apt-get -f install`".to_owned()
    };
    Some(cause(
        CauseKind::Broken,
        format!("the package database is not in order: {}{more}: {}", first.package, first.problem),
        next,
    ))
}

fn stale(evidence: &Evidence<'_>) -> Option<Cause> {
    let next = "fetch them: POST /api/v1/patches/refresh, or `apt-get update`";
    match evidence.last_update_check {
        None => Some(cause(
            CauseKind::StaleIndexes,
            "the indexes have never been fetched on this host: it knows of no updates",
            next,
        )),
        Some(checked) => {
            let age = evidence.now.duration_since(checked);
            (age > STALE_AFTER).then(|| {
                let message = format!(
                    "the indexes were last fetched {} hours ago ({checked:.0}): there may be updates that this host has \
                     not heard of",
                    age.as_hours()
                );
                cause(CauseKind::StaleIndexes, message, next)
            })
        }
    }
}

fn absent(name: &PackageName, evidence: &Evidence<'_>) -> Cause {
    match newest(name, evidence) {
        Some(version) => cause(
            CauseKind::NotInstalled,
            format!("{name} is not installed; patching only updates what is ({version} could be installed)"),
            format!("install it: POST /api/v1/packages {{\"packages\": [{{\"name\": \"{name}\"}}]}}"),
        ),
        None => cause(
            CauseKind::NoCandidate,
            format!("{name} is not installed and no archive offers it"),
            "check the name and the host's sources in /etc/apt/sources.list.d, then refresh the indexes",
        ),
    }
}

fn present(name: &PackageName, installed: Installed<'_>, evidence: &Evidence<'_>) -> Vec<Cause> {
    let current = installed.version_text();
    let newer = |version: &PackageVersion| versions::compare(version.as_str(), current).is_gt();
    let mut causes = Vec::new();

    let Some(newest) = newest(name, evidence) else {
        causes.push(cause(
            CauseKind::NoCandidate,
            format!("no archive offers {name}: {current} was installed from a file, or its archive has gone"),
            "add the archive that carries it to /etc/apt/sources.list.d and refresh the indexes, or replace the package",
        ));
        return causes;
    };
    if installed.is_held() {
        let what = if newer(&newest) { format!(" ({newest} is available)") } else { String::new() };
        causes.push(cause(
            CauseKind::Held,
            format!("{name} is held at {current}{what}"),
            format!("take it off hold: PUT /api/v1/packages/{name} {{\"hold\": false}}, or `apt-mark unhold {name}`"),
        ));
    }
    let candidate = evidence.policy.and_then(|p| p.candidate.as_ref());
    let passed_over = evidence.policy.and_then(|p| passed_over(current, p));
    let taken_back = taken_back(installed, evidence);
    causes.extend(taken_back.iter().map(|entry| was_taken_back(entry)));
    if !passed_over.is_some_and(|(v, _)| taken_back.iter().any(|entry| entry.version == v.version)) {
        causes.extend(passed_over.map(|(version, chosen)| pinned(name, chosen, version)));
    }

    let stays = evidence
        .patching
        .kept_back
        .iter()
        .chain(&evidence.patching.phased)
        .find(|l| evidence.inventory.database.get(&l.package).is_some_and(|p| same(p, installed)));
    if let Some(listed) = stays {
        let (state, reason) =
            patches::why_it_stays(listed, evidence.patching, evidence.inventory, evidence.indexes);
        match state {
            PatchState::Phased => causes.push(cause(
                CauseKind::Phased,
                format!("{name}: {reason}"),
                format!(
                    "wait, or install it now: POST /api/v1/packages {{\"packages\": [{{\"name\": \"{name}\", \
                     \"version\": \"{newest}\"}}]}}"
                ),
            )),
            PatchState::KeptBack => causes.push(kept_back(name, &reason, evidence)),
            PatchState::Held | PatchState::Ready | PatchState::TakenBack => {}
        }
    } else if evidence
        .patching
        .change(name.name(), Some(installed.architecture()))
        .is_some_and(|c| c.verb == Verb::Install)
        && causes.is_empty()
    {
        let to = candidate.unwrap_or(&newest);
        causes.push(cause(
            CauseKind::Ready,
            format!("nothing keeps {name} back: the next run takes it from {current} to {to}"),
            format!("apply it now: POST /api/v1/patches/apply {{\"packages\": [\"{name}\"]}}"),
        ));
    }
    if causes.is_empty() {
        causes.push(if newer(&newest) {
            kept_back(name, "apt does not choose it", evidence)
        } else {
            cause(
                CauseKind::UpToDate,
                format!("{name} {current} is the newest version that any archive offers"),
                "nothing; if a newer one is expected, refresh the indexes: POST /api/v1/patches/refresh",
            )
        });
    }
    causes
}

fn same(a: Installed<'_>, b: Installed<'_>) -> bool {
    a.name() == b.name() && a.architecture() == b.architecture()
}

/// A newer version exists, and the policy prefers another one: the two.
fn passed_over<'a>(current: &'a str, policy: &'a Policy) -> Option<(&'a PolicyVersion, &'a str)> {
    let chosen = policy.candidate.as_ref().map_or(current, |c| c.as_str());
    policy
        .newest_offered()
        .filter(|v| versions::compare(v.version.as_str(), chosen).is_gt())
        .filter(|v| versions::compare(v.version.as_str(), current).is_gt())
        .map(|version| (version, chosen))
}

/// The versions of the package that were taken back and that are newer than what apt would have instead, the newest
/// first. One that a newer candidate has superseded keeps nothing away.
fn taken_back<'a>(installed: Installed<'_>, evidence: &Evidence<'a>) -> Vec<&'a TakenBack> {
    let current = installed.version_text();
    let chosen = evidence.policy.and_then(|p| p.candidate.as_ref()).map_or(current, |c| c.as_str());
    let mut entries: Vec<_> = evidence
        .taken_back
        .iter()
        .filter(|entry| {
            entry.name.name() == installed.name()
                && fits(entry.architecture.as_str(), installed.architecture())
                && versions::compare(entry.version.as_str(), current).is_gt()
                && versions::compare(entry.version.as_str(), chosen).is_gt()
        })
        .collect();
    entries.sort_by(|a, b| versions::compare(b.version.as_str(), a.version.as_str()));
    entries
}

fn was_taken_back(entry: &TakenBack) -> Cause {
    let TakenBack { name, version, job, at, reason, .. } = entry;
    cause(
        CauseKind::TakenBack,
        format!(
            "version {version} of {name} was taken back by job {job} on {} because {}",
            at.strftime("%Y-%m-%d"),
            reason.trim_end_matches('.')
        ),
        format!(
            "wait for a version newer than {version}, or, if it is in order now, let it be installed again: \
             `linux-patch-host clear {}={version}`",
            name.name()
        ),
    )
}

fn pinned(name: &PackageName, chosen: &str, passed_over: &PolicyVersion) -> Cause {
    let (version, priority) = (&passed_over.version, passed_over.priority);
    if priority < 0 {
        cause(
            CauseKind::Pinned,
            format!("a pin forbids {name} {version} (priority {priority})"),
            format!("see /etc/apt/preferences.d and `apt-cache policy {name}`"),
        )
    } else {
        cause(
            CauseKind::Pinned,
            format!("a pin prefers {name} {chosen} to {version} (which has priority {priority})"),
            format!(
                "see /etc/apt/preferences, /etc/apt/preferences.d and `apt-cache policy {name}`; to install it all the \
                 same: PUT /api/v1/packages/{name} {{\"version\": \"{version}\"}}"
            ),
        )
    }
}

/// What the package would take, if it was simulated alone.
fn kept_back(name: &PackageName, reason: &str, evidence: &Evidence<'_>) -> Cause {
    let mut message = format!("{name} is kept back: {reason}");
    let Some(alone) = evidence.alone else {
        return cause(
            CauseKind::KeptBack,
            message,
            format!("see what it would take: `apt-get -s install {name}`"),
        );
    };
    let of = |verbs: &[Verb], new: bool| -> Vec<String> {
        alone
            .changes
            .iter()
            .filter(|c| verbs.contains(&c.verb) && (!new || c.old.is_none()))
            .map(|c| c.package.to_string())
            .collect()
    };
    let removed = of(&[Verb::Remove, Verb::Purge], false);
    let added = of(&[Verb::Install], true);
    let next = if !alone.unmet.is_empty() || !alone.errors.is_empty() {
        let problems: Vec<String> = alone
            .unmet
            .iter()
            .map(|u| format!("{}: {}", u.package, u.problem))
            .chain(alone.errors.clone())
            .collect();
        message = format!("{message}. apt says: {}", words::quoted(&problems.join("; ")));
        "wait until the archives are consistent again, or add the archive that has what is missing; then refresh the \
         indexes: POST /api/v1/patches/refresh"
            .to_owned()
    } else if !removed.is_empty() {
        message = format!("{message}. Installing it would remove {}", removed.join(", "));
        format!(
            "if those may go: POST /api/v1/patches/apply {{\"packages\": [\"{name}\"], \"allow_removals\": true}}"
        )
    } else if !added.is_empty() {
        message = format!("{message}. Installing it would add {}", added.join(", "));
        format!("install it with them: POST /api/v1/packages {{\"packages\": [{{\"name\": \"{name}\"}}]}}")
    } else {
        format!("install it by name: POST /api/v1/packages {{\"packages\": [{{\"name\": \"{name}\"}}]}}")
    };
    cause(CauseKind::KeptBack, message, next)
}
