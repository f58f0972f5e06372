//! How soon each security fix was installed, as the host itself says: also without the agent.
//!
//! What the agent remembers lies where it may write. It is read as text of somebody else's: by no link, bounded, and shown
//! as nothing but text. What it says of the past is its word; what is installed and what runs is looked at here.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use patch_backends::apt::{Database, fixes, versions};
use patch_policy::{
    compliance::{self as policy, KEEP, Known, Look},
    promise::PROMISED,
};
use patch_types::{
    EventKind, PackageName, Query,
    api::{Cause, CauseKind},
    compliance::{
        Accuracy, AppliedBy, Compliance, FORMAT, Fix, InVersion, MAX_STORE, MemoryState, Observations,
        PromiseState, STORE, UnattendedRun,
    },
    event::QueryResult,
    executor::RequestBody,
    operation::MAX_PACKAGES,
};

use crate::{
    ask::Root,
    below::Below,
    exit::Exit,
    follow::{Follow, Look as Seen},
    screen::Screen,
    taken_back,
};

/// Of how many packages the root side is asked why they are not patched, and for how long it is waited all together.
const ASKED: usize = 10;
const PATIENCE: Duration = Duration::from_secs(30);

/// How long is waited between two looks at its answer.
const PAUSE: Duration = Duration::from_millis(20);

/// Freezes the host for the agent unless root's ceiling names another file.
const FREEZE: &str = "etc/linux_patch_api/freeze";

/// How many runs of unattended-upgrades the table shows.
const RUNS: usize = 5;

pub(crate) fn show(root: &Root, screen: &mut Screen) -> anyhow::Result<Exit> {
    // Processes are this host's, and apt's lists are opened by name: neither is for a system of somebody else's.
    ensure!(
        root.files().root() == Path::new("/"),
        "the report is about the running system: leave --root out"
    );
    let until = Instant::now() + PATIENCE;
    let report = report(root.files(), Timestamp::now(), &mut |name| why_not(root, name, until))?;
    tell(&report, screen)?;
    Ok(exit(&report))
}

fn exit(report: &Compliance) -> Exit {
    match &report.cannot_tell {
        _ if report.summary.over_promise > 0 => Exit::OverPromise,
        Some(_) => Exit::Untold,
        None => Exit::Done,
    }
}

/// Looks at the host as the agent does, and keeps nothing of it.
fn report(
    files: &Below,
    now: Timestamp,
    why_not: &mut dyn FnMut(&PackageName) -> Result<Vec<Cause>, String>,
) -> anyhow::Result<Compliance> {
    let root = files.root();
    let database = Database::read(root)
        .context("which fixes concern this host cannot be told without dpkg's database")?;
    let fixes = fixes::read(root, &database).context("which fixes there are cannot be told")?;
    let mut not_known = fixes.remarks.clone();
    let before = remembered(files).unwrap_or_else(|why| {
        not_known.push(why);
        Observations::default()
    });
    let since = now.checked_sub(KEEP).unwrap_or(Timestamp::MIN);
    let mut packages = policy::in_question(&before);
    if packages.len() > MAX_PACKAGES {
        not_known
            .push(format!("what runs was looked at for {MAX_PACKAGES} of {} packages only", packages.len()));
        packages.truncate(MAX_PACKAGES);
    }
    let mut evidence = fixes::evidence(root, &database, &packages, since);
    evidence.frozen = files.is_there(FREEZE).then(|| format!("/{FREEZE} freezes this host for the agent"));
    match taken_back::read(files) {
        Ok(entries) => evidence.barred = entries.iter().filter_map(barred).collect(),
        Err(error) => not_known.push(format!("which versions were taken back: {error:#}")),
    }
    let observed_since = before.since;
    let look = Look {
        now,
        compare: versions::compare,
        installed: &fixes.installed,
        archives: &fixes.archives,
        offers: &fixes.offers,
        jobs: &[],
        evidence: Some(&evidence),
    };
    let seen =
        Observations { since: observed_since, ..policy::observe(policy::doubted(before, &look), &look) };
    let (causes, unknown) = causes(&seen, &database, why_not);
    not_known.extend(unknown);
    let stale = fixes::staleness(root, now);
    let behind = policy::behind(&fixes.archives, now);
    not_known.extend(stale.iter().chain(&behind).cloned());
    let cannot_tell = behind.or(stale).or_else(|| fixes.remarks.first().cloned());
    Ok(policy::report(
        &seen,
        &Known {
            now,
            promise: PROMISED,
            compare: versions::compare,
            causes: &causes,
            evidence: Some(&evidence),
            not_known: &not_known,
            cannot_tell: cannot_tell.as_deref(),
        },
    ))
}

/// A version that was taken back.
fn barred(entry: &taken_back::Entry) -> Option<InVersion> {
    Some(InVersion {
        name: entry.name.parse().ok()?,
        architecture: entry.architecture.parse().ok()?,
        version: entry.version.parse().ok()?,
    })
}

/// What the agent remembers, or why that cannot be told. Not a word of the file itself: it may be any file.
fn remembered(files: &Below) -> Result<Observations, String> {
    let consequence = "when fixes were published is known at the latest only, and not which job planned them";
    let text = files.read_itself(STORE, MAX_STORE).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("the agent has not looked at this host yet: {consequence}"),
        _ => format!("{} cannot be read ({error}): {consequence}", files.name(STORE).display()),
    })?;
    serde_json::from_slice(&text).ok().filter(|seen: &Observations| seen.format == FORMAT).ok_or_else(|| {
        format!(
            "{} is not what this version of the agent writes there: {consequence}",
            files.name(STORE).display()
        )
    })
}

/// What keeps fixes away. Holds are seen without asking; the solver knows the rest.
fn causes(
    seen: &Observations,
    database: &Database,
    why_not: &mut dyn FnMut(&PackageName) -> Result<Vec<Cause>, String>,
) -> (BTreeMap<PackageName, Vec<Cause>>, Option<String>) {
    let open: BTreeSet<&PackageName> =
        seen.fixes.iter().filter(|fix| fix.applied.is_none()).map(|fix| &fix.name).collect();
    let mut causes = BTreeMap::new();
    let mut asked = 0;
    let mut unknown = None;
    for name in open {
        if database.named(name.name()).any(|package| package.is_present() && package.is_held()) {
            let cause = Cause {
                kind: CauseKind::Held,
                message: format!("{name} is held"),
                next_step: format!("take it off hold: `apt-mark unhold {name}`"),
            };
            causes.insert(name.clone(), vec![cause]);
            continue;
        }
        // Once there is no answer the others would not be answered either.
        if unknown.is_some() {
            continue;
        }
        let answer = if asked < ASKED {
            why_not(name)
        } else {
            Err(format!("it is asked about {ASKED} packages only"))
        };
        asked += 1;
        match answer {
            Ok(found) => {
                causes.insert(name.clone(), found);
            }
            Err(why) => unknown = Some(format!("what keeps {name} and those after it away: {why}")),
        }
    }
    (causes, unknown)
}

/// Asks the root side, and waits for its answer.
fn why_not(root: &Root, name: &PackageName, until: Instant) -> Result<Vec<Cause>, String> {
    let query = Query::WhyNot { name: name.clone() };
    let id = root.ask(RequestBody::Query { query }).map_err(|error| error.to_string())?;
    let mut follow =
        Follow::new(root.events_of(id), root.open_events(id)).map_err(|error| error.to_string())?;
    while Instant::now() < until {
        match follow.look().map_err(|error| error.to_string())? {
            Seen::Events(events) => {
                for event in events {
                    let EventKind::Ended(ended) = event.kind else { continue };
                    return match (ended.answer, ended.error) {
                        (Some(QueryResult::WhyNot(why)), _) => Ok(why.causes),
                        (_, Some(error)) => Err(error.message),
                        _ => Err("the root side answered another question".to_owned()),
                    };
                }
            }
            Seen::Dead => return Err("the root side died over the question".to_owned()),
            Seen::Quiet => thread::sleep(PAUSE),
        }
    }
    Err(format!("the root side did not answer within {} s", PATIENCE.as_secs()))
}

fn tell(report: &Compliance, screen: &mut Screen) -> anyhow::Result<()> {
    if screen.is_json() {
        screen.json(report)?;
        return Ok(());
    }
    if !report.fixes.is_empty() {
        let rows: Vec<_> = report.fixes.iter().map(row).collect();
        screen.table(["PACKAGE", "FIX", "STATE", "PUBLISHED", "HOURS", "PROMISE", "REMARK"], &rows);
    }
    if !report.unattended_runs.is_empty() {
        screen.text("");
        let rows: Vec<_> = report.unattended_runs.iter().take(RUNS).map(run).collect();
        screen.table(["UNATTENDED-UPGRADES", "RESULT", "PACKAGES", "PROBLEMS"], &rows);
    }
    for sentence in &report.not_known {
        screen.remark(&format!("Not known: {sentence}."));
    }
    if let Some(why) = &report.cannot_tell {
        screen.remark(&format!("Whether fixes are missing cannot be told: {why}."));
    }
    let summary = &report.summary;
    screen.remark(&format!(
        "{} security fixes: {} to be installed, {} blocked{}, {} on disk only, {} effective. {} over the promise of {} \
         hours, {} perhaps.",
        summary.fixes,
        summary.open,
        summary.blocked,
        if summary.barred > 0 { format!(" ({} taken back)", summary.barred) } else { String::new() },
        summary.on_disk,
        summary.effective,
        summary.over_promise,
        report.promise_hours,
        summary.uncertain
    ));
    Ok(())
}

fn row(fix: &Fix) -> [String; 7] {
    let bound = if fix.published.accuracy == Accuracy::Bound { "by " } else { "" };
    let hours = match fix.hours.at_most {
        Some(most) if most == fix.hours.at_least => most.to_string(),
        Some(most) => format!("{} to {most}", fix.hours.at_least),
        None => format!("{} or more", fix.hours.at_least),
    };
    [
        format!("{}:{}", fix.name, fix.architecture),
        fix.version.to_string(),
        fix.state.as_str().replace('_', " "),
        format!("{bound}{}", fix.published.by.strftime("%Y-%m-%d %H:%M")),
        hours,
        fix.promise.as_str().to_owned(),
        remark(fix),
    ]
}

fn remark(fix: &Fix) -> String {
    if !fix.blocked_by.is_empty() {
        let causes: Vec<&str> = fix.blocked_by.iter().map(|cause| cause.message.as_str()).collect();
        return causes.join("; ");
    }
    let held = fix.memory.as_ref().map(|memory| (memory.state, memory.held_by.join(", ")));
    let applied = fix.applied.as_ref().map(|applied| {
        let by = match applied.by {
            AppliedBy::Job => "by a job",
            AppliedBy::UnattendedUpgrades => "by unattended-upgrades",
            AppliedBy::Apt => "by apt",
            AppliedBy::Dpkg => "by dpkg",
            AppliedBy::Unknown => "by nobody knows whom",
        };
        format!("installed {} {by}", applied.at.strftime("%Y-%m-%d %H:%M"))
    });
    match (applied, held) {
        (Some(applied), Some((MemoryState::OldCode, who))) => format!("{applied}; old code is run by {who}"),
        (Some(applied), Some((MemoryState::Unknown, why))) => {
            format!("{applied}; what runs is not known: {why}")
        }
        (Some(applied), _) => applied,
        (None, _) if fix.promise == PromiseState::Running => "the next run should take it".to_owned(),
        (None, _) => "nothing is known to keep it away".to_owned(),
    }
}

fn run(run: &UnattendedRun) -> [String; 4] {
    [
        run.began.strftime("%Y-%m-%d %H:%M").to_string(),
        run.result.as_str().to_owned(),
        run.packages.join(" "),
        run.problems.join("; "),
    ]
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::screen::tests::paper;

    const STATUS: &str = "\
Package: aa\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.0\n\n\
Package: held\nStatus: hold ok installed\nArchitecture: amd64\nVersion: 1.0\n\n\
Package: done\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.0\n\n";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn host() -> (TempDir, Below) {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for made in
            ["var/lib/dpkg/info", "var/lib/apt/lists", "var/lib/linux_patch_api", "var/log/apt", "proc"]
        {
            fs::create_dir_all(path(made)).unwrap();
        }
        fs::write(path("var/lib/dpkg/status"), STATUS).unwrap();
        let archive = "var/lib/apt/lists/deb_dists_x-security";
        fs::write(
            path(&format!("{archive}_InRelease")),
            "Origin: Debian\nLabel: Debian-Security\nSuite: x-security\nDate: Fri, 20 Nov 2026 00:00:00 UTC\n",
        )
        .unwrap();
        let stanza = |name: &str| {
            format!("Package: {name}\nVersion: 2.0\nArchitecture: amd64\nFilename: p\nSize: 1\n\n")
        };
        fs::write(
            path(&format!("{archive}_main_binary-amd64_Packages")),
            ["aa", "held", "done", "other"].map(stanza).concat(),
        )
        .unwrap();
        let below = Below::new(dir.path().to_owned());
        (dir, below)
    }

    fn told(below: &Below, now: &str) -> Compliance {
        report(below, at(now), &mut |_| Err("nobody is there".to_owned())).unwrap()
    }

    #[test]
    fn without_the_agent_it_says_what_it_cannot_know() {
        let (dir, below) = host();
        fs::write(
            dir.path().join("var/log/dpkg.log"),
            "2026-11-20 03:00:00 upgrade done:amd64 1.0 2.0\n2026-11-20 03:00:01 status installed done:amd64 2.0\n",
        )
        .unwrap();
        let report = told(&below, "2026-11-20T12:00:00Z");
        let states: Vec<_> = report
            .fixes
            .iter()
            .map(|fix| (fix.name.as_str(), fix.state.as_str(), fix.promise.as_str()))
            .collect();
        assert_eq!(
            states,
            [
                ("aa", "open", "uncertain"),
                ("held", "blocked", "uncertain"),
                ("done", "effective", "uncertain")
            ]
        );
        assert_eq!((exit(&report), report.observed_since), (Exit::Done, None));
        let all = report.not_known.join("\n");
        for words in ["has not looked", "nobody is there"] {
            assert!(all.contains(words), "{words}: {all}");
        }
        let report = told(&below, "2026-11-21T12:00:00Z");
        assert_eq!((exit(&report), report.summary.over_promise_open), (Exit::OverPromise, 2));
        let (mut screen, out, remarks) = paper(false);
        tell(&report, &mut screen).unwrap();
        for words in ["held:amd64", "36 or more", "held is held", "by dpkg", "broken"] {
            assert!(out.text().contains(words), "{words}: {}", out.text());
        }
        assert!(
            remarks.text().contains("3 security fixes: 1 to be installed, 1 blocked"),
            "{}",
            remarks.text()
        );
    }

    #[test]
    fn what_the_agent_remembers_is_text_of_somebody_else() {
        let (dir, below) = host();
        let store = dir.path().join(STORE);
        let fix = |archive: &str| {
            serde_json::json!({"format": 1, "since": "2026-11-01T00:00:00Z", "fixes": [{
                "name": "aa", "architecture": "amd64", "version": "1.5", "archive": archive,
                "published": {"after": "2026-11-19T00:00:00Z", "by": "2026-11-19T06:00:00Z", "accuracy": "bound"},
                "seen": "2026-11-19T07:00:00Z", "offered": "2026-11-19T07:00:00Z",
                "planned": null, "applied": null, "memory": null
            }]})
        };
        fs::write(&store, fix("\u{1b}[2J").to_string()).unwrap();
        let report = told(&below, "2026-11-20T12:00:00Z");
        let first = &report.fixes[0];
        assert_eq!((first.version.as_str(), first.promise), ("1.5", PromiseState::Broken));
        assert_eq!(report.observed_since, Some(at("2026-11-01T00:00:00Z")));
        for json in [false, true] {
            let (mut screen, out, remarks) = paper(json);
            tell(&report, &mut screen).unwrap();
            assert!(!out.text().contains('\u{1b}') && !remarks.text().contains('\u{1b}'));
        }
        // Whatever else stands there, its words are not shown.
        let secret = dir.path().join("secret");
        fs::write(&secret, "\"a secret\"").unwrap();
        for make in [
            (|store, _| fs::write(store, "\"a secret\"").unwrap()) as fn(&Path, &Path),
            |store, secret| symlink(secret, store).unwrap(),
            |store, _| fs::create_dir(store).unwrap(),
            |store, _| fs::write(store, "{\"format\":99,\"since\":null}").unwrap(),
        ] {
            let _ = fs::remove_file(&store).or_else(|_| fs::remove_dir(&store));
            make(&store, &secret);
            let all = told(&below, "2026-11-20T12:00:00Z").not_known.join("\n");
            assert!(all.contains("compliance.json") && !all.contains("a secret"), "{all}");
        }
    }
}
