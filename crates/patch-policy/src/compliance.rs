//! How well a host keeps its promise: looks at it, one after the other, are folded into what is remembered, and what is
//! remembered into the report.
//!
//! An archive does not say when it published a version. That is bounded by the dates of two `Release` files: the first with
//! the version in it, and the one before. The second bound holds only for what was installed, in an older version, when the
//! one before was looked at.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet},
};

use jiff::{SignedDuration, Timestamp};
use patch_types::{
    Architecture, JobId, PackageName, PackageVersion,
    api::{Cause, CauseKind},
    compliance::{
        Accuracy, Applied, AppliedBy, Compliance, Evidence, FORMAT, Fix, FixState, Hours, InMemory,
        InVersion, KEEP_DAYS, LoggedChange, MAX_FIXES, MemoryState, Observations, Observed, Offer, Planned,
        PromiseState, Published, Summary, key,
    },
};

/// For how long an applied fix is kept.
pub const KEEP: SignedDuration = SignedDuration::from_hours(KEEP_DAYS as i64 * 24);

/// Logs count in whole seconds, and are written a little before or after what they tell.
const SLACK: SignedDuration = SignedDuration::from_secs(2);

/// How often it is remembered that a fix is still offered: each time would be a write.
const REMARKED: SignedDuration = SignedDuration::from_hours(24);

/// How often it is remembered that a fix is still not installed.
const MISSED: SignedDuration = SignedDuration::from_mins(10);

/// How much younger than this host's clock an archive may be. Clocks are never quite the same.
const AHEAD: SignedDuration = SignedDuration::from_mins(10);

/// How versions compare, by the package manager's own order.
pub type Compare = fn(&str, &str) -> Ordering;

/// What a job planned and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFacts {
    /// The job.
    pub job: JobId,
    /// When it began.
    pub began: Timestamp,
    /// When it ended; none while it runs.
    pub ended: Option<Timestamp>,
    /// What was to be installed.
    pub planned: Vec<InVersion>,
    /// What it has installed, and the version before.
    pub installed: Vec<(InVersion, Option<PackageVersion>)>,
}

/// One look at a host.
#[derive(Debug, Clone)]
pub struct Look<'a> {
    /// When.
    pub now: Timestamp,
    /// How versions compare.
    pub compare: Compare,
    /// What is installed.
    pub installed: &'a [InVersion],
    /// The indexes of security fixes that were read whole, and the dates of their archives; none for one that has no date.
    pub archives: &'a BTreeMap<String, Option<Timestamp>>,
    /// What they offer of what is installed.
    pub offers: &'a [Offer],
    /// The jobs that are not known yet, and those that run.
    pub jobs: &'a [JobFacts],
    /// What root sees, if it was asked.
    pub evidence: Option<&'a Evidence>,
}

/// Whether an instant of a log lies between two others. Sums of instants may be beyond all time.
fn is_within(at: Timestamp, from: Timestamp, to: Timestamp) -> bool {
    at.duration_since(from) >= -SLACK && at.duration_since(to) <= SLACK
}

/// Whether two are of the same package: what becomes independent of the processor, or stops being so, stays what it is.
fn is_same(a: &Architecture, b: &Architecture) -> bool {
    a == b || a.as_str() == "all" || b.as_str() == "all"
}

/// Why the clock of a host cannot be right, if it cannot: an archive was made after the present.
#[must_use]
pub fn behind(archives: &BTreeMap<String, Option<Timestamp>>, now: Timestamp) -> Option<String> {
    let newest = archives.values().flatten().max()?;
    (newest.duration_since(now) > AHEAD).then(|| {
        format!(
            "the clock is behind: it is {now:.0} here, and an archive is of {newest:.0}; set the clock, nothing is \
             remembered until then"
        )
    })
}

impl Look<'_> {
    fn is_less(&self, a: &str, b: &str) -> bool {
        (self.compare)(a, b).is_lt()
    }

    /// Whether a change went from before a version to it or beyond. What was not there before needed no fix.
    fn brings(&self, old: Option<&PackageVersion>, new: &PackageVersion, version: &PackageVersion) -> bool {
        !self.is_less(new.as_str(), version.as_str())
            && old.is_some_and(|old| self.is_less(old.as_str(), version.as_str()))
    }

    /// The changes of a package in the logs, the oldest first.
    fn changes(&self, what: &InVersion) -> Vec<&LoggedChange> {
        let changes = self.evidence.map_or(&[][..], |evidence| &evidence.changes);
        let mut changes: Vec<_> = changes
            .iter()
            .filter(|change| change.at.duration_since(self.now) <= SLACK)
            .filter(|change| change.name == what.name && is_same(&change.architecture, &what.architecture))
            .collect();
        changes.sort_by_key(|change| change.at);
        changes
    }

    /// Whether after a change whatever had brought a version before counts no more: it went back, or was not there any more.
    fn undoes(&self, old: Option<&PackageVersion>, new: &PackageVersion, version: &PackageVersion) -> bool {
        old.is_none() || self.is_less(new.as_str(), version.as_str())
    }

    /// The last upgrade in the logs that brought a version, unless that was undone since.
    fn logged(&self, what: &InVersion) -> Option<&LoggedChange> {
        self.changes(what).into_iter().fold(None, |last, change| {
            let (old, new) = (change.old.as_ref(), &change.new);
            if self.brings(old, new, &what.version) {
                Some(change)
            } else {
                last.filter(|_| !self.undoes(old, new, &what.version))
            }
        })
    }

    /// When it was last seen that whatever had brought a version counts no more.
    fn undone(&self, what: &InVersion) -> Option<Timestamp> {
        let logged = self.changes(what).into_iter().filter_map(|change| {
            self.undoes(change.old.as_ref(), &change.new, &what.version).then_some(change.at)
        });
        let by_job = self.jobs.iter().filter_map(|facts| {
            let undoes = |(done, old): &(InVersion, Option<PackageVersion>)| {
                done.name == what.name
                    && is_same(&done.architecture, &what.architecture)
                    && self.undoes(old.as_ref(), &done.version, &what.version)
            };
            facts.ended.filter(|_| facts.installed.iter().any(undoes))
        });
        logged.chain(by_job).max()
    }

    /// The last job that brought a version, unless that was undone since: with when it ended and what it installed.
    fn by_job(&self, what: &InVersion) -> Option<(&JobFacts, Timestamp, &PackageVersion)> {
        let brings = |(done, old): &&(InVersion, Option<PackageVersion>)| {
            done.name == what.name
                && is_same(&done.architecture, &what.architecture)
                && self.brings(old.as_ref(), &done.version, &what.version)
        };
        let undone = self.undone(what);
        self.jobs
            .iter()
            .filter_map(|facts| Some((facts, facts.ended?, &facts.installed.iter().find(brings)?.0.version)))
            .filter(|(_, ended, _)| undone.is_none_or(|undone| undone <= *ended))
            .max_by_key(|(_, ended, _)| *ended)
    }

    /// How a version that is installed came to be so, after a look that did not find it.
    fn applied(&self, what: &InVersion, installed: &PackageVersion, missed: Option<Timestamp>) -> Applied {
        let is_after = |at: Timestamp| missed.is_none_or(|missed| at.duration_since(missed) >= -SLACK);
        let logged = self.logged(what).filter(|change| is_after(change.at));
        let by_job = self.by_job(what).filter(|(_, ended, _)| is_after(*ended));
        match (logged, by_job) {
            (Some(change), Some((facts, ended, _))) if is_within(change.at, facts.began, ended) => Applied {
                at: change.at,
                accuracy: Accuracy::Exact,
                version: change.new.clone(),
                by: AppliedBy::Job,
                job: Some(facts.job),
            },
            (Some(change), by_job) if by_job.is_none_or(|(_, ended, _)| ended < change.at) => Applied {
                at: change.at.min(self.now),
                accuracy: Accuracy::Exact,
                version: change.new.clone(),
                by: change.by,
                job: None,
            },
            (_, Some((facts, ended, version))) => Applied {
                at: ended.min(self.now),
                accuracy: Accuracy::Exact,
                version: version.clone(),
                by: AppliedBy::Job,
                job: Some(facts.job),
            },
            (_, None) => Applied {
                at: self.now,
                accuracy: Accuracy::Bound,
                version: installed.clone(),
                by: AppliedBy::Unknown,
                job: None,
            },
        }
    }

    /// The same, by the job that was at it then: that is known only after its end.
    fn made_by_job(&self, what: &InVersion, applied: Applied) -> Applied {
        match self.by_job(what) {
            Some((facts, ended, _)) if applied.job.is_none() && is_within(applied.at, facts.began, ended) => {
                Applied { by: AppliedBy::Job, job: Some(facts.job), ..applied }
            }
            _ => applied,
        }
    }

    fn planned(&self, what: &InVersion) -> Option<Planned> {
        let plans = |facts: &&JobFacts| {
            facts.planned.iter().any(|planned| {
                planned.name == what.name
                    && is_same(&planned.architecture, &what.architecture)
                    && !self.is_less(planned.version.as_str(), what.version.as_str())
            })
        };
        let first = self.jobs.iter().filter(plans).min_by_key(|facts| facts.began)?;
        Some(Planned { job: first.job, at: first.began })
    }

    /// Whether what runs is what was installed at an instant, and first seen to be so in a boot.
    fn memory(
        &self,
        name: &PackageName,
        applied: &Applied,
        boot: Option<&String>,
        before: Option<InMemory>,
    ) -> Option<InMemory> {
        if before.as_ref().is_some_and(|memory| memory.state == MemoryState::Effective) {
            return before;
        }
        let Some(evidence) = self.evidence else { return before };
        let effective =
            |since| Some(InMemory { state: MemoryState::Effective, since: Some(since), held_by: Vec::new() });
        let found = evidence.memory.iter().find(|of| of.name == *name);
        // What is seen to run old code does so, whatever was booted when: it may have been the old kernel.
        if let Some(of) = found.filter(|of| of.state == MemoryState::OldCode) {
            return Some(InMemory { state: of.state, since: None, held_by: of.held_by.clone() });
        }
        let booted = evidence.booted.filter(|booted| *booted > applied.at);
        let is_booted = match (boot, &evidence.boot) {
            (Some(then), Some(now)) => then != now,
            // When a host was booted is computed from its clock, which may have been set since.
            _ => booted.is_some(),
        };
        if is_booted {
            return effective(booted.unwrap_or(self.now).min(self.now));
        }
        match found {
            Some(of) if of.state == MemoryState::Effective => effective(self.now),
            Some(of) => Some(InMemory { state: of.state, since: None, held_by: of.held_by.clone() }),
            None => before,
        }
    }
}

/// What is remembered by somebody who is not to be believed about what can be seen: of the newest version of each package
/// that it knows to be installed, what runs is forgotten, and so is when it was installed, unless only its word tells. Then
/// it is a bound.
#[must_use]
pub fn doubted(mut before: Observations, look: &Look<'_>) -> Observations {
    let newest: BTreeMap<String, PackageVersion> =
        before.fixes.iter().filter(|fix| fix.applied.is_some()).fold(BTreeMap::new(), |mut newest, fix| {
            let known =
                newest.entry(key(&fix.name, &fix.architecture)).or_insert_with(|| fix.version.clone());
            if look.is_less(known.as_str(), fix.version.as_str()) {
                *known = fix.version.clone();
            }
            newest
        });
    for fix in &mut before.fixes {
        if newest.get(&key(&fix.name, &fix.architecture)) != Some(&fix.version) {
            continue;
        }
        (fix.memory, fix.boot, fix.missed) = (None, None, None);
        let what = InVersion {
            name: fix.name.clone(),
            architecture: fix.architecture.clone(),
            version: fix.version.clone(),
        };
        let told = fix.applied.take();
        fix.applied = match (told, look.logged(&what)) {
            (Some(told), Some(change)) => Some(Applied {
                at: change.at.min(look.now),
                accuracy: Accuracy::Exact,
                version: change.new.clone(),
                // Which job that was only the one who remembers knows.
                by: if told.job.is_some() { told.by } else { change.by },
                job: told.job,
            }),
            (told, _) => told
                .filter(|told| look.undone(&what).is_none_or(|undone| undone <= told.at))
                .map(|told| Applied { accuracy: Accuracy::Bound, ..told }),
        };
    }
    before
}

/// What is to be remembered after a look.
#[must_use]
pub fn observe(before: Observations, look: &Look<'_>) -> Observations {
    // Instants of a wrong clock would stay for good.
    if behind(look.archives, look.now).is_some() {
        return before;
    }
    let installed: BTreeMap<String, &InVersion> =
        look.installed.iter().map(|package| (package.key(), package)).collect();
    let Observations { since, looked, archives, installed: installed_before, mut fixes, .. } = before;
    follow_architectures(&mut fixes, &installed);
    let known = fixes.len();
    for offer in look.offers {
        let Some(present) = installed.get(&offer.what.key()) else { continue };
        let found = fixes.iter().position(|fix| is_of(fix, &offer.what));
        let was_before = found.is_some_and(|at| at < known);
        if was_before {
            continue;
        }
        let is_missing = look.is_less(present.version.as_str(), offer.what.version.as_str());
        let logged = look
            .logged(&offer.what)
            .filter(|change| look.now.duration_since(change.at) < KEEP && !is_missing);
        let was_older = version_before(&installed_before, &offer.what)
            .is_some_and(|version| look.is_less(version, offer.what.version.as_str()));
        if !is_missing && !was_older && logged.is_none() && look.by_job(&offer.what).is_none() {
            continue;
        }
        // The present bounds it only where nothing else does.
        let date = look.archives.get(&offer.archive).copied().flatten();
        let by = date.unwrap_or(look.now);
        let by = logged.map_or(by, |change| by.min(change.at));
        let after = archives.get(&offer.archive).copied().filter(|before| was_older && *before < by);
        match found.and_then(|at| fixes.get_mut(at)) {
            // Another archive offers it, too: it was published when the first of them did.
            Some(same) => {
                same.published.by = same.published.by.min(by);
                same.published.after = same.published.after.zip(after).map(|(a, b)| a.min(b));
            }
            None => fixes.push(Observed {
                name: offer.what.name.clone(),
                architecture: offer.what.architecture.clone(),
                version: offer.what.version.clone(),
                archive: offer.label.clone(),
                published: Published { after, by, accuracy: Accuracy::Bound },
                seen: is_missing.then_some(look.now),
                missed: if is_missing { Some(look.now) } else { looked.filter(|_| was_older) },
                boot: None,
                offered: look.now,
                planned: None,
                applied: None,
                memory: None,
            }),
        }
    }
    fixes.retain_mut(|fix| match installed.get(&key(&fix.name, &fix.architecture)) {
        Some(present) => {
            follow(fix, present, look);
            is_kept(fix, look.now)
        }
        // What is not installed any more needs no fix.
        None => false,
    });
    if fixes.len() > MAX_FIXES {
        // What is not installed stays longest, then what is newest.
        fixes.sort_by_key(|fix| (fix.applied.is_some(), Reverse(fix.published.by)));
        fixes.truncate(MAX_FIXES);
    }
    fixes.sort_by(|a, b| {
        let order = (&a.name, &a.architecture).cmp(&(&b.name, &b.architecture));
        order.then_with(|| (look.compare)(a.version.as_str(), b.version.as_str()))
    });
    Observations {
        format: FORMAT,
        since: since.or(Some(look.now)),
        looked: remarked(looked, look.now),
        // What could not be read this time bounds nothing next time.
        archives: look
            .archives
            .iter()
            .filter_map(|(archive, date)| Some((archive.clone(), (*date)?)))
            .collect(),
        installed: look.installed.iter().map(|p| (p.key(), p.version.to_string())).collect(),
        fixes,
    }
}

fn is_of(fix: &Observed, what: &InVersion) -> bool {
    fix.name == what.name && fix.architecture == what.architecture && fix.version == what.version
}

/// An instant that is remembered only now and then. A clock that was set back counts at once.
fn remarked(before: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    before.filter(|before| *before <= now && now.duration_since(*before) < MISSED).or(Some(now))
}

/// The version of a package at the look before.
fn version_before<'a>(installed: &'a BTreeMap<String, String>, what: &InVersion) -> Option<&'a String> {
    let name = what.name.name();
    installed.get(&what.key()).or_else(|| {
        if what.architecture.as_str() == "all" {
            installed.iter().find(|(key, _)| is_named(key, name)).map(|(_, version)| version)
        } else {
            installed.get(&format!("{name}:all"))
        }
    })
}

fn is_named(key: &str, name: &str) -> bool {
    key.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))
}

/// What is known of a package stays known when it becomes independent of the processor, or stops being so.
fn follow_architectures(fixes: &mut Vec<Observed>, installed: &BTreeMap<String, &InVersion>) {
    let mut has_moved = false;
    for fix in fixes.iter_mut().filter(|fix| !installed.contains_key(&key(&fix.name, &fix.architecture))) {
        let name = fix.name.name();
        let moved = if fix.architecture.as_str() == "all" {
            installed
                .range(format!("{name}:")..)
                .next()
                .filter(|(key, _)| is_named(key, name))
                .map(|(_, of)| *of)
        } else {
            installed.get(&format!("{name}:all")).copied()
        };
        if let Some(moved) = moved {
            fix.architecture = moved.architecture.clone();
            has_moved = true;
        }
    }
    if has_moved {
        let mut kept = BTreeSet::new();
        fixes.retain(|fix| kept.insert(format!("{} {}", key(&fix.name, &fix.architecture), fix.version)));
    }
}

/// Brings what is known of a fix up to date.
fn follow(fix: &mut Observed, present: &InVersion, look: &Look<'_>) {
    let what = InVersion {
        name: fix.name.clone(),
        architecture: fix.architecture.clone(),
        version: fix.version.clone(),
    };
    let is_offered = look.offers.iter().any(|offer| {
        offer.what.name == fix.name
            && is_same(&offer.what.architecture, &fix.architecture)
            && !look.is_less(offer.what.version.as_str(), fix.version.as_str())
    });
    if is_offered && look.now.duration_since(fix.offered) > REMARKED {
        fix.offered = look.now;
    }
    if fix.planned.is_none() {
        fix.planned = look.planned(&what);
    }
    if look.is_less(present.version.as_str(), fix.version.as_str()) {
        // It went back.
        (fix.applied, fix.memory, fix.boot) = (None, None, None);
        fix.missed = remarked(fix.missed, look.now);
        fix.seen = fix.seen.or(Some(look.now));
        return;
    }
    // It went back, and came again before anybody looked: the first time does not count.
    if let Some(undone) = look.undone(&what)
        && fix.applied.as_ref().is_some_and(|applied| applied.at < undone)
    {
        (fix.applied, fix.memory, fix.boot) = (None, None, None);
        fix.missed = fix.missed.max(Some(undone));
    }
    let applied = match fix.applied.take() {
        Some(applied) if applied.accuracy == Accuracy::Exact => applied,
        // A log may have been read since.
        Some(applied) => {
            let better = look.applied(&what, &present.version, fix.missed);
            if better.accuracy == Accuracy::Exact { better } else { applied }
        }
        None => look.applied(&what, &present.version, fix.missed),
    };
    let applied = look.made_by_job(&what, applied);
    fix.memory = look.memory(&fix.name, &applied, fix.boot.as_ref(), fix.memory.take());
    if fix.boot.is_none() {
        fix.boot = look.evidence.and_then(|evidence| evidence.boot.clone());
    }
    let Published { after, by, .. } = &mut fix.published;
    if applied.accuracy == Accuracy::Exact {
        *by = (*by).min(applied.at);
    }
    // A log that knows of it earlier contradicts the bound: one of the clocks was wrong.
    *after = after.filter(|after| *after < *by);
    fix.applied = Some(applied);
}

fn is_kept(fix: &Observed, now: Timestamp) -> bool {
    let is_recent = |at: Timestamp| now.duration_since(at) < KEEP;
    match (&fix.applied, &fix.memory) {
        (Some(applied), Some(memory)) if memory.state == MemoryState::Effective => is_recent(applied.at),
        (Some(_), _) => true,
        // Without any archive that offers it, it cannot be installed.
        (None, _) => is_recent(fix.offered),
    }
}

/// What the report is made of, besides what is remembered.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The time of the report.
    pub now: Timestamp,
    /// Within what time a fix is to be installed.
    pub promise: SignedDuration,
    /// How versions compare.
    pub compare: Compare,
    /// What keeps packages from being patched, by name.
    pub causes: &'a BTreeMap<PackageName, Vec<Cause>>,
    /// What root sees, if it was asked.
    pub evidence: Option<&'a Evidence>,
    /// What is not known, one sentence each.
    pub not_known: &'a [String],
    /// Why it cannot be told whether fixes are missing, if it cannot.
    pub cannot_tell: Option<&'a str>,
}

/// The report. The order of the fixes does not depend on that of what is remembered.
#[must_use]
pub fn report(seen: &Observations, known: &Known<'_>) -> Compliance {
    let mut fixes: Vec<Fix> = seen.fixes.iter().map(|fix| judge(fix, seen, known)).collect();
    fixes.sort_by(|a, b| {
        let rank = |fix: &Fix| (fix.promise != PromiseState::Broken, fix.state);
        let order = |fix: &Fix| {
            let (kept, state) = rank(fix);
            (kept, matches!(state, FixState::OnDisk | FixState::Effective), fix.published.by)
        };
        order(a).cmp(&order(b)).then_with(|| {
            (&a.name, &a.architecture)
                .cmp(&(&b.name, &b.architecture))
                .then_with(|| (known.compare)(a.version.as_str(), b.version.as_str()))
        })
    });
    let mut not_known = known.not_known.to_vec();
    if let Some(evidence) = known.evidence {
        not_known.extend(evidence.memory_unknown.iter().chain(&evidence.remarks).cloned());
    }
    Compliance {
        promise_hours: u32::try_from(known.promise.as_hours()).unwrap_or_default(),
        observed_since: seen.since,
        summary: Summary {
            barred: seen.fixes.iter().filter(|fix| is_barred(fix, known)).count(),
            ..summary(&fixes)
        },
        fixes,
        unattended_runs: known.evidence.map(|evidence| evidence.runs.clone()).unwrap_or_default(),
        not_known,
        cannot_tell: known.cannot_tell.map(str::to_owned),
    }
}

fn judge(fix: &Observed, seen: &Observations, known: &Known<'_>) -> Fix {
    let blocked_by = if fix.applied.is_some() { Vec::new() } else { in_the_way(&fix.name, known) };
    let memory = fix.applied.as_ref().map(|_| {
        fix.memory.clone().unwrap_or_else(|| InMemory {
            state: MemoryState::Unknown,
            since: None,
            held_by: vec!["the root side was not asked yet".to_owned()],
        })
    });
    let state = match &memory {
        Some(memory) if memory.state == MemoryState::Effective => FixState::Effective,
        Some(_) => FixState::OnDisk,
        // What only waits for its time is not kept away.
        None if blocked_by.iter().all(|cause| cause.kind == CauseKind::WaitsForWindow) => FixState::Open,
        None => FixState::Blocked,
    };
    let (hours, promise) = took(fix, known);
    // Nobody is on the way to installing it, so there is nothing to wait for.
    let promise = if is_barred(fix, known) { PromiseState::Broken } else { promise };
    let installed = seen.installed.get(&key(&fix.name, &fix.architecture));
    Fix {
        name: fix.name.clone(),
        architecture: fix.architecture.clone(),
        version: fix.version.clone(),
        installed_version: installed.and_then(|version| version.parse().ok()),
        archive: fix.archive.clone(),
        state,
        published: fix.published.clone(),
        seen: fix.seen,
        planned: fix.planned.clone(),
        applied: fix.applied.clone(),
        memory,
        hours,
        promise,
        blocked_by,
    }
}

/// Whether a fix is not installed because just this version was taken back on this host. That another version of its package was
/// keeps nobody from installing it; nor does its own having been, once a newer one comes.
fn is_barred(fix: &Observed, known: &Known<'_>) -> bool {
    let is_it = |barred: &InVersion| {
        barred.name.name() == fix.name.name()
            && is_same(&barred.architecture, &fix.architecture)
            && (known.compare)(barred.version.as_str(), fix.version.as_str()).is_eq()
    };
    fix.applied.is_none()
        && known.evidence.is_some_and(|evidence| evidence.barred.iter().any(is_it))
        && in_the_way(&fix.name, known).iter().any(|cause| cause.kind == CauseKind::TakenBack)
}

/// What keeps a package from being patched.
fn in_the_way(name: &PackageName, known: &Known<'_>) -> Vec<Cause> {
    let frozen = known.evidence.and_then(|evidence| evidence.frozen.as_ref()).map(|reason| Cause {
        kind: CauseKind::Frozen,
        message: reason.clone(),
        next_step:
            "root of this host decides that: see /etc/linux_patch_api/ceiling.yaml and the freeze file"
                .to_owned(),
    });
    let causes = known.causes.get(name).into_iter().flatten();
    let in_the_way = causes.filter(|cause| !matches!(cause.kind, CauseKind::Ready | CauseKind::UpToDate));
    let mut in_the_way: Vec<Cause> = in_the_way.cloned().collect();
    if in_the_way.iter().all(|cause| cause.kind != CauseKind::Frozen) {
        in_the_way.extend(frozen);
    }
    in_the_way
}

/// How long it took or takes, and how that compares with the promise.
fn took(fix: &Observed, known: &Known<'_>) -> (Hours, PromiseState) {
    let Published { after, by, .. } = fix.published;
    let (earliest, latest) = match &fix.applied {
        Some(applied) if applied.accuracy == Accuracy::Exact => (applied.at, applied.at),
        // Between the last look that did not find it installed and the one that did.
        Some(applied) => (fix.missed.or(fix.seen).unwrap_or(by).min(applied.at), applied.at),
        None => (known.now, known.now),
    };
    let at_least = earliest.duration_since(by).max(SignedDuration::ZERO);
    let at_most = after.map(|after| latest.duration_since(after).max(at_least));
    let promise = match (at_most, fix.applied.is_some()) {
        _ if at_least > known.promise => PromiseState::Broken,
        (Some(at_most), true) if at_most <= known.promise => PromiseState::Kept,
        (Some(at_most), false) if at_most <= known.promise => PromiseState::Running,
        _ => PromiseState::Uncertain,
    };
    let whole = |hours: i64| u32::try_from(hours).unwrap_or(u32::MAX);
    let up = |time: SignedDuration| time.as_hours() + i64::from(time.as_secs() % 3600 > 0);
    (Hours { at_least: whole(at_least.as_hours()), at_most: at_most.map(|time| whole(up(time))) }, promise)
}

fn summary(fixes: &[Fix]) -> Summary {
    let of = |state: FixState| fixes.iter().filter(|fix| fix.state == state).count();
    let broken = |fix: &&Fix| fix.promise == PromiseState::Broken;
    Summary {
        fixes: fixes.len(),
        open: of(FixState::Open),
        blocked: of(FixState::Blocked),
        barred: 0,
        on_disk: of(FixState::OnDisk),
        effective: of(FixState::Effective),
        over_promise: fixes.iter().filter(broken).count(),
        over_promise_open: fixes.iter().filter(broken).filter(|fix| fix.applied.is_none()).count(),
        uncertain: fixes.iter().filter(|fix| fix.promise == PromiseState::Uncertain).count(),
        oldest_open_hours: fixes
            .iter()
            .filter(|fix| fix.applied.is_none())
            .map(|fix| fix.hours.at_least)
            .max(),
        worst_hours: fixes.iter().map(|fix| fix.hours.at_least).max(),
    }
}

/// Of which packages it matters what runs, each once: those with a fix that is not effective.
#[must_use]
pub fn in_question(seen: &Observations) -> Vec<PackageName> {
    let waiting = seen
        .fixes
        .iter()
        .filter(|fix| fix.memory.as_ref().is_none_or(|memory| memory.state != MemoryState::Effective))
        .map(|fix| &fix.name);
    let mut told = BTreeSet::new();
    waiting.filter(|name| told.insert(*name)).cloned().collect()
}

#[cfg(test)]
#[path = "compliance_tests.rs"]
mod tests;
