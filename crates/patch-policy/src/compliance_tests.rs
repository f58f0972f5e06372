use patch_types::compliance::PackageMemory;
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> PackageName {
    text.parse().unwrap()
}

fn version(text: &str) -> PackageVersion {
    text.parse().unwrap()
}

fn amd64() -> Architecture {
    "amd64".parse().unwrap()
}

fn hour(hours: i64) -> Timestamp {
    "2026-11-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hours)
}

/// Versions here are numbers.
fn compare(a: &str, b: &str) -> Ordering {
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    number(a).cmp(&number(b))
}

fn job(number: u128) -> JobId {
    JobId(format!("{number:032x}").parse().unwrap())
}

/// A host of which each part can be set.
#[derive(Debug, Clone)]
struct Host {
    now: Timestamp,
    installed: Vec<InVersion>,
    archives: BTreeMap<String, Option<Timestamp>>,
    offers: Vec<Offer>,
    jobs: Vec<JobFacts>,
    evidence: Option<Evidence>,
}

fn package(package: &str, at: u64) -> InVersion {
    InVersion { name: name(package), architecture: amd64(), version: version(&at.to_string()) }
}

fn offer(what: &str, at: u64) -> Offer {
    Offer { what: package(what, at), archive: "security".into(), label: "Debian-Security".into() }
}

impl Host {
    fn new(now: i64, installed: u64, offered: Option<u64>, released: i64) -> Self {
        Self {
            now: hour(now),
            installed: vec![package("aa", installed)],
            archives: BTreeMap::from([("security".to_owned(), Some(hour(released)))]),
            offers: offered.map(|version| offer("aa", version)).into_iter().collect(),
            jobs: Vec::new(),
            evidence: None,
        }
    }

    fn evidence(mut self, evidence: Evidence) -> Self {
        self.evidence = Some(evidence);
        self
    }

    fn job(mut self, facts: JobFacts) -> Self {
        self.jobs.push(facts);
        self
    }

    fn look(&self, before: Observations) -> Observations {
        observe(
            before,
            &Look {
                now: self.now,
                compare,
                installed: &self.installed,
                archives: &self.archives,
                offers: &self.offers,
                jobs: &self.jobs,
                evidence: self.evidence.as_ref(),
            },
        )
    }
}

fn reported(seen: &Observations, now: i64, causes: &BTreeMap<PackageName, Vec<Cause>>) -> Compliance {
    let promise = SignedDuration::from_hours(24);
    report(
        seen,
        &Known {
            now: hour(now),
            promise,
            compare,
            causes,
            evidence: None,
            not_known: &[],
            cannot_tell: None,
        },
    )
}

fn only(seen: &Observations, now: i64) -> Fix {
    let report = reported(seen, now, &BTreeMap::new());
    assert_eq!(report.fixes.len(), 1, "{report:#?}");
    report.fixes[0].clone()
}

fn change(at: i64, old: u64, new: u64) -> LoggedChange {
    LoggedChange {
        at: hour(at),
        name: name("aa"),
        architecture: amd64(),
        old: Some(version(&old.to_string())),
        new: version(&new.to_string()),
        by: AppliedBy::UnattendedUpgrades,
    }
}

fn memory(state: MemoryState) -> Evidence {
    let held_by = if state == MemoryState::OldCode { vec!["x.service".into()] } else { Vec::new() };
    Evidence { memory: vec![PackageMemory { name: name("aa"), state, held_by }], ..Evidence::default() }
}

fn facts(began: i64, ended: Option<i64>, old: u64, new: u64) -> JobFacts {
    let installed =
        ended.map(|_| (package("aa", new), Some(version(&old.to_string())))).into_iter().collect();
    JobFacts {
        job: job(1),
        began: hour(began),
        ended: ended.map(hour),
        planned: vec![package("aa", new)],
        installed,
    }
}

#[test]
fn a_fix_goes_through_all_its_states() {
    let seen = Host::new(0, 1, None, -5).look(Observations::default());
    assert!(seen.fixes.is_empty());
    // Published between the two dates, and seen three hours after the second.
    let seen = Host::new(10, 1, Some(2), 7).look(seen);
    let fix = only(&seen, 10);
    assert_eq!((fix.state, fix.promise), (FixState::Open, PromiseState::Running));
    assert_eq!((fix.published.after, fix.published.by), (Some(hour(-5)), hour(7)));
    assert_eq!(fix.hours, Hours { at_least: 3, at_most: Some(15) });
    assert_eq!(fix.seen, Some(hour(10)));
    let seen = Host::new(11, 1, Some(2), 7).job(facts(11, None, 1, 2)).look(seen);
    assert_eq!(only(&seen, 11).planned, Some(Planned { job: job(1), at: hour(11) }));
    let host = Host::new(13, 2, Some(2), 7).job(facts(11, Some(12), 1, 2));
    let seen = host.evidence(memory(MemoryState::OldCode)).look(seen);
    let fix = only(&seen, 20);
    assert_eq!((fix.state, fix.promise), (FixState::OnDisk, PromiseState::Kept));
    let applied = fix.applied.unwrap();
    assert_eq!((applied.at, applied.by, applied.job), (hour(12), AppliedBy::Job, Some(job(1))));
    assert_eq!(fix.memory.unwrap().held_by, ["x.service"]);
    assert_eq!(fix.hours, Hours { at_least: 5, at_most: Some(17) });
    let seen = Host::new(30, 2, Some(2), 7).evidence(memory(MemoryState::Effective)).look(seen);
    // Once it is effective it stays so.
    let seen = Host::new(31, 2, Some(2), 7).evidence(memory(MemoryState::OldCode)).look(seen);
    let fix = only(&seen, 40);
    assert_eq!((fix.state, fix.memory.unwrap().since), (FixState::Effective, Some(hour(30))));
    // And is forgotten after a while.
    let late = Host::new(24 * 40, 2, Some(2), 7).look(seen);
    assert!(late.fixes.is_empty() && late.since == Some(hour(0)));
}

#[test]
fn the_promise_is_broken_only_when_that_is_certain() {
    let first = Host::new(0, 1, Some(2), -2).look(Observations::default());
    for (now, promise) in
        [(0, PromiseState::Uncertain), (22, PromiseState::Uncertain), (23, PromiseState::Broken)]
    {
        let fix = only(&first, now);
        assert_eq!((fix.promise, fix.published.after, fix.hours.at_most), (promise, None, None), "{now}");
    }
    let bounded = Host::new(10, 1, Some(2), 9).look(Host::new(0, 1, None, -5).look(Observations::default()));
    for (now, promise) in
        [(19, PromiseState::Running), (20, PromiseState::Uncertain), (34, PromiseState::Broken)]
    {
        assert_eq!(only(&bounded, now).promise, promise, "{now}");
    }
    let report = reported(&bounded, 34, &BTreeMap::new());
    let Summary { over_promise, over_promise_open, oldest_open_hours, worst_hours, .. } = report.summary;
    assert_eq!((over_promise, over_promise_open, oldest_open_hours, worst_hours), (1, 1, Some(25), Some(25)));
    // Applied late stays late.
    let host = Host::new(40, 2, Some(2), 9);
    let seen =
        host.evidence(Evidence { changes: vec![change(39, 1, 2)], ..Evidence::default() }).look(bounded);
    let fix = only(&seen, 1000);
    assert_eq!((fix.promise, fix.hours.at_least), (PromiseState::Broken, 30));
    assert_eq!(reported(&seen, 1000, &BTreeMap::new()).summary.over_promise_open, 0);
}

#[test]
fn the_earlier_bound_holds_only_for_what_was_there() {
    // Not installed at the look before.
    let mut before = Host::new(0, 1, None, -5);
    before.installed.clear();
    let seen = Host::new(10, 1, Some(2), 7).look(before.look(Observations::default()));
    assert_eq!(only(&seen, 10).published.after, None);
    // Installed in the fixed version, and taken back since.
    let seen = Host::new(10, 1, Some(2), 7).look(Host::new(0, 2, None, -5).look(Observations::default()));
    assert_eq!(only(&seen, 10).published.after, None);
    // The index could not be read.
    let mut before = Host::new(0, 1, None, -5);
    before.archives.clear();
    let seen = Host::new(10, 1, Some(2), 7).look(before.look(Observations::default()));
    assert_eq!(only(&seen, 10).published.after, None);
    // The same date says nothing.
    let seen = Host::new(10, 1, Some(2), -5).look(Host::new(0, 1, None, -5).look(Observations::default()));
    assert_eq!(only(&seen, 10).published.after, None);
    // No date at all.
    let mut host = Host::new(10, 1, Some(2), 9);
    host.archives.insert("security".into(), None);
    assert_eq!(only(&host.look(Observations::default()), 10).published.by, hour(10));
}

#[test]
fn what_was_installed_before_anybody_looked_is_known_from_logs() {
    let evidence = Evidence { changes: vec![change(-3, 1, 2)], ..Evidence::default() };
    let seen = Host::new(10, 2, Some(2), -6).evidence(evidence).look(Observations::default());
    let fix = only(&seen, 10);
    assert_eq!((fix.seen, fix.published.by, fix.hours.at_least), (None, hour(-6), 3));
    assert_eq!(fix.applied.unwrap().by, AppliedBy::UnattendedUpgrades);
    assert_eq!(fix.promise, PromiseState::Uncertain);
    // An installation is no fix, and neither is what was installed long ago.
    let mut fresh = change(-3, 1, 2);
    fresh.old = None;
    for change in [fresh, change(-24 * 31, 1, 2), change(-3, 2, 3)] {
        let evidence = Evidence { changes: vec![change], ..Evidence::default() };
        let seen = Host::new(10, 3, Some(2), -6).evidence(evidence).look(Observations::default());
        assert!(seen.fixes.is_empty(), "{seen:?}");
    }
}

#[test]
fn a_log_that_is_read_later_says_more_than_the_look_did() {
    let open = Host::new(0, 1, Some(2), -1).look(Observations::default());
    let seen = Host::new(40, 2, Some(2), -1).look(open);
    let fix = only(&seen, 50);
    let applied = fix.applied.unwrap();
    assert_eq!((applied.by, applied.accuracy, applied.at), (AppliedBy::Unknown, Accuracy::Bound, hour(40)));
    // It may have been installed right after the look before, which was the only one.
    assert_eq!((fix.promise, fix.hours.at_least), (PromiseState::Uncertain, 1));
    let evidence = Evidence { changes: vec![change(3, 1, 2)], ..Evidence::default() };
    let seen = Host::new(41, 2, Some(2), -1).evidence(evidence).look(seen);
    let applied = only(&seen, 50).applied.unwrap();
    assert_eq!((applied.accuracy, applied.at), (Accuracy::Exact, hour(3)));
    // And the job that did it is known after its end.
    let seen = Host::new(42, 2, Some(2), -1).job(facts(2, Some(4), 1, 2)).look(seen);
    assert_eq!(only(&seen, 50).applied.unwrap().job, Some(job(1)));
}

#[test]
fn what_goes_back_is_open_again_and_what_is_removed_is_forgotten() {
    let open = Host::new(0, 1, Some(2), -1).look(Observations::default());
    let applied = Host::new(1, 2, Some(2), -1).evidence(memory(MemoryState::Effective)).look(open);
    assert_eq!(only(&applied, 1).state, FixState::Effective);
    let back = Host::new(2, 1, Some(2), -1).look(applied);
    let fix = only(&back, 2);
    assert_eq!((fix.state, fix.seen, fix.memory), (FixState::Open, Some(hour(0)), None));
    let mut gone = Host::new(3, 1, Some(2), -1);
    gone.installed.clear();
    assert!(gone.look(back).fixes.is_empty());
}

#[test]
fn a_boot_makes_it_effective() {
    let open = Host::new(0, 1, Some(2), -1).look(Observations::default());
    let at = |booted| Evidence { booted: Some(hour(booted)), ..memory(MemoryState::Unknown) };
    let seen = Host::new(5, 2, Some(2), -1).evidence(at(-9)).look(open);
    assert_eq!(only(&seen, 5).memory.unwrap().state, MemoryState::Unknown);
    let seen = Host::new(9, 2, Some(2), -1).evidence(at(8)).look(seen);
    assert_eq!(only(&seen, 9).memory.unwrap().since, Some(hour(8)));
}

#[test]
fn causes_block_and_order_is_by_urgency() {
    let mut host = Host::new(0, 1, Some(2), -1);
    host.installed.push(package("bb", 1));
    host.offers.push(offer("bb", 2));
    host.offers.push(Offer { archive: "other".into(), ..offer("bb", 2) });
    host.archives.insert("other".into(), Some(hour(-30)));
    let seen = host.look(Observations::default());
    let cause = |kind| Cause { kind, message: "m".into(), next_step: "n".into() };
    let causes = BTreeMap::from([
        (name("aa"), vec![cause(CauseKind::Held)]),
        (name("bb"), vec![cause(CauseKind::Ready)]),
    ]);
    let report = reported(&seen, 0, &causes);
    let told: Vec<_> = report.fixes.iter().map(|fix| (fix.name.as_str(), fix.state, fix.promise)).collect();
    assert_eq!(
        told,
        [("bb", FixState::Open, PromiseState::Broken), ("aa", FixState::Blocked, PromiseState::Uncertain)]
    );
    let Summary { fixes, open, blocked, .. } = report.summary;
    assert_eq!((fixes, open, blocked), (2, 1, 1));
}

#[test]
fn a_fix_that_was_taken_back_breaks_the_promise_at_once() {
    let seen = Host::new(10, 1, Some(2), 9).look(Host::new(0, 1, None, -5).look(Observations::default()));
    assert_eq!(only(&seen, 11).promise, PromiseState::Running);
    let of = |kind, taken_back: u64| {
        let cause = Cause { kind, message: "x".to_owned(), next_step: "y".to_owned() };
        let evidence = Evidence { barred: vec![package("aa", taken_back)], ..Evidence::default() };
        let known = Known {
            now: hour(11),
            promise: SignedDuration::from_hours(24),
            compare,
            causes: &BTreeMap::from([(name("aa"), vec![cause])]),
            evidence: Some(&evidence),
            not_known: &[],
            cannot_tell: None,
        };
        let report = report(&seen, &known);
        let Summary { blocked, barred, over_promise, over_promise_open, .. } = report.summary;
        (report.fixes[0].promise, blocked, barred, over_promise, over_promise_open)
    };
    assert_eq!(of(CauseKind::TakenBack, 2), (PromiseState::Broken, 1, 1, 1, 1));
    assert_eq!(of(CauseKind::Held, 2), (PromiseState::Running, 1, 0, 0, 0));
    assert_eq!(of(CauseKind::TakenBack, 3), (PromiseState::Running, 1, 0, 0, 0), "another version was");
    // A newer version brings the fix as well, and in time.
    let seen = Host::new(12, 3, Some(3), 11)
        .evidence(Evidence { changes: vec![change(12, 1, 3)], ..Evidence::default() })
        .look(seen);
    let fix = seen.fixes.iter().find(|fix| fix.version.as_str() == "2").unwrap();
    assert!(fix.applied.is_some());
}

#[test]
fn a_frozen_host_is_blocked() {
    let open = Host::new(0, 1, Some(2), -1).look(Observations::default());
    let evidence = Evidence { frozen: Some("quarter".into()), ..Evidence::default() };
    let known = Known {
        now: hour(0),
        promise: SignedDuration::from_hours(24),
        compare,
        causes: &BTreeMap::new(),
        evidence: Some(&evidence),
        not_known: &[],
        cannot_tell: None,
    };
    let fix = &report(&open, &known).fixes[0];
    assert_eq!((fix.state, fix.blocked_by[0].kind), (FixState::Blocked, CauseKind::Frozen));
}

/// What may become of a host between two looks.
fn host() -> impl Strategy<Value = Host> {
    let evidence = prop::option::of((-50_i64..200, 0_u64..6, 0_u64..6, prop::option::of(-50_i64..200)));
    let jobs = prop::collection::vec((-50_i64..200, prop::option::of(0_i64..9), 0_u64..6, 0_u64..6), 0..3);
    (0_i64..200, 0_u64..6, prop::option::of(0_u64..6), -50_i64..250, evidence, jobs).prop_map(
        |(now, installed, offered, released, evidence, jobs)| {
            let mut host = Host::new(now, installed, offered, released.min(now));
            host.evidence = evidence.map(|(at, old, new, booted)| Evidence {
                changes: vec![change(at, old, new)],
                booted: booted.map(hour),
                ..memory([MemoryState::Effective, MemoryState::OldCode][usize::from(old > 2)])
            });
            host.jobs = jobs
                .into_iter()
                .map(|(began, took, old, new)| facts(began, took.map(|took| began + took), old, new))
                .collect();
            host
        },
    )
}

proptest! {
    #[test]
    fn whatever_is_seen_the_report_holds_together(hosts in prop::collection::vec(host(), 1..12)) {
        let mut seen = Observations::default();
        for host in &hosts {
            seen = host.look(seen);
            let report = reported(&seen, 200, &BTreeMap::new());
            let Summary { fixes, open, blocked, on_disk, effective, .. } = report.summary;
            prop_assert_eq!(fixes, open + blocked + on_disk + effective);
            for fix in &report.fixes {
                let is_in = compare(host.installed[0].version.as_str(), fix.version.as_str()).is_ge();
                prop_assert_eq!(fix.applied.is_some(), is_in, "{:?}", fix);
                prop_assert_eq!(fix.memory.is_some(), is_in);
                prop_assert!(fix.published.after.is_none_or(|after| after < fix.published.by), "{:?}", fix);
                prop_assert!(fix.hours.at_most.is_none_or(|most| most >= fix.hours.at_least), "{:?}", fix);
                prop_assert!(fix.promise != PromiseState::Broken || fix.hours.at_least >= 24);
                prop_assert!(fix.promise != PromiseState::Kept || fix.hours.at_most.is_some_and(|most| most <= 24));
            }
            // Looking again at once changes nothing.
            let mut again = host.clone();
            again.jobs.clear();
            let text = serde_json::to_string(&seen).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Observations>(&text).unwrap(), &seen);
            let twice = again.look(seen.clone());
            prop_assert_eq!(twice.fixes.len(), seen.fixes.len());
        }
    }
}

#[test]
fn no_instant_is_too_far_away() {
    let host = |now, installed| Host {
        now,
        archives: BTreeMap::from([("security".to_owned(), Some(now))]),
        ..Host::new(0, installed, Some(2), 0)
    };
    let far = [Timestamp::MIN, Timestamp::MAX];
    for (now, at) in far.into_iter().flat_map(|now| far.map(|at| (now, at))) {
        let open = host(now, 1).look(Observations::default());
        let mut wrong = open.clone();
        wrong.fixes[0].published = Published { after: Some(at), by: at, accuracy: Accuracy::Bound };
        (wrong.fixes[0].seen, wrong.fixes[0].offered) = (Some(at), at);
        let mut changed = host(now, 2);
        changed.evidence = Some(Evidence {
            booted: Some(at),
            changes: vec![LoggedChange { at, ..change(0, 1, 2) }],
            ..Evidence::default()
        });
        changed.jobs = vec![JobFacts { began: at, ended: Some(at), ..facts(0, Some(1), 1, 2) }];
        let seen = changed.look(wrong);
        let known = Known {
            now: at,
            promise: SignedDuration::from_hours(24),
            compare,
            causes: &BTreeMap::new(),
            evidence: None,
            not_known: &[],
            cannot_tell: None,
        };
        let _ = (report(&open, &known), report(&seen, &known), changed.look(seen.clone()));
    }
}

#[test]
fn what_a_job_fetched_and_installed_at_once_was_never_open() {
    let before = Host::new(0, 1, None, -5).look(Observations::default());
    let seen = Host::new(10, 2, Some(2), 7).job(facts(8, Some(9), 1, 2)).look(before.clone());
    let fix = only(&seen, 10);
    assert_eq!((fix.seen, fix.planned.map(|planned| planned.job)), (None, Some(job(1))));
    assert_eq!((fix.published.after, fix.promise), (Some(hour(-5)), PromiseState::Kept));
    // What it has newly installed needed no fix.
    let mut fresh = facts(8, Some(9), 1, 2);
    fresh.installed[0].1 = None;
    let mut without = Host::new(0, 1, None, -5);
    without.installed.clear();
    let without = without.look(Observations::default());
    assert!(Host::new(10, 2, Some(2), 7).job(fresh).look(without).fixes.is_empty());
}

#[test]
fn a_boot_counts_by_its_id_and_not_by_the_clock() {
    let open = Host::new(0, 1, Some(2), -1).look(Observations::default());
    let at = |id: &str, booted, state| Evidence {
        boot: Some(id.into()),
        booted: Some(hour(booted)),
        ..memory(state)
    };
    let looked = |now, evidence, seen| Host::new(now, 2, Some(2), -1).evidence(evidence).look(seen);
    let seen = looked(5, at("one", -9, MemoryState::Unknown), open.clone());
    // The clock was set forward by a day, and with it the computed boot.
    let seen = looked(30, at("one", 15, MemoryState::Unknown), seen);
    assert_eq!(only(&seen, 30).memory.unwrap().state, MemoryState::Unknown);
    let booted = looked(31, at("two", 30, MemoryState::Unknown), seen);
    assert_eq!(only(&booted, 31).memory.unwrap().since, Some(hour(30)));
    // What runs old code does so.
    let seen = looked(
        30,
        at("one", 15, MemoryState::OldCode),
        looked(5, at("one", -9, MemoryState::OldCode), open.clone()),
    );
    assert_eq!(only(&seen, 30).state, FixState::OnDisk);
    let first = Evidence { boot: None, ..at("", 15, MemoryState::OldCode) };
    assert_eq!(only(&looked(5, first, open), 30).state, FixState::OnDisk);
}

#[test]
fn the_last_look_that_missed_it_bounds_the_installation() {
    let mut seen = Host::new(0, 1, Some(2), -1).look(Observations::default());
    seen = Host::new(30, 1, Some(2), -1).look(seen);
    seen = Host::new(40, 2, Some(2), -1).look(seen);
    let fix = only(&seen, 41);
    assert_eq!((fix.promise, fix.hours.at_least, fix.seen), (PromiseState::Broken, 31, Some(hour(0))));
    // A log that says otherwise is of an earlier change; one right after a look that saw it unpacked is its end.
    let evidence = |at| Evidence { changes: vec![change(at, 1, 2)], ..Evidence::default() };
    let old = Host::new(41, 2, Some(2), -1).evidence(evidence(3)).look(seen.clone());
    assert_eq!(only(&old, 41).applied.unwrap().accuracy, Accuracy::Bound);
    let new = Host::new(42, 2, Some(2), -1).evidence(evidence(41)).look(seen);
    let applied = only(&new, 42).applied.unwrap();
    assert_eq!((applied.accuracy, applied.at), (Accuracy::Exact, hour(41)));
}

#[test]
fn what_the_looks_prove_needs_no_log() {
    let before = Host::new(0, 1, None, -5).look(Observations::default());
    let seen = Host::new(10, 2, Some(2), 7).look(before);
    let fix = only(&seen, 10);
    let applied = fix.applied.unwrap();
    assert_eq!((applied.accuracy, applied.at, applied.by), (Accuracy::Bound, hour(10), AppliedBy::Unknown));
    assert_eq!((fix.published.after, fix.published.by, fix.seen), (Some(hour(-5)), hour(7), None));
}

#[test]
fn a_component_that_is_added_later_has_no_earlier_bound() {
    let before = Host::new(0, 1, None, -5).look(Observations::default());
    let mut host = Host::new(10, 1, Some(2), 7);
    host.offers[0].archive = "security contrib".into();
    host.archives.insert("security contrib".into(), Some(hour(7)));
    assert_eq!(only(&host.look(before), 10).published.after, None);
}

#[test]
fn with_a_clock_that_is_behind_nothing_is_remembered() {
    let before = Host::new(0, 1, None, -5).look(Observations::default());
    let host = Host::new(10, 1, Some(2), 11);
    assert_eq!(host.look(before.clone()), before);
    assert!(behind(&host.archives, host.now).unwrap().contains("the clock is behind"));
    // A little counts for nothing, and the present does not lower the date.
    let mut host = Host::new(10, 1, Some(2), 0);
    let little = hour(10) + SignedDuration::from_mins(5);
    host.archives.insert("security".into(), Some(little));
    assert_eq!(only(&host.look(before), 11).published.by, little);
}

#[test]
fn a_fix_stays_known_when_the_architecture_changes() {
    let open = Host::new(0, 1, Some(2), -1).look(Observations::default());
    let to = |now, installed, architecture: &str| {
        let mut host = Host::new(now, installed, Some(2), -1);
        host.installed[0].architecture = architecture.parse().unwrap();
        host.offers[0].what.architecture = architecture.parse().unwrap();
        host
    };
    let all = to(30, 2, "all").look(open);
    let fix = only(&all, 30);
    assert_eq!((fix.architecture.as_str(), fix.seen, fix.applied.is_some()), ("all", Some(hour(0)), true));
    let back = to(31, 2, "amd64").look(all);
    let fix = only(&back, 31);
    assert_eq!((fix.architecture.as_str(), fix.seen), ("amd64", Some(hour(0))));
}

#[test]
fn an_installation_that_was_undone_dates_nothing() {
    let by_logs = |now: i64, installed: u64, changes: &[LoggedChange], before: Observations| {
        let evidence = Evidence { changes: changes.to_vec(), ..memory(MemoryState::Effective) };
        Host::new(now, installed, Some(2), -1).evidence(evidence).look(before)
    };
    let open = Host::new(0, 1, Some(2), -1).look(Observations::default());
    let first = by_logs(2, 2, &[change(1, 1, 2)], open.clone());
    let fix = only(&first, 2);
    assert_eq!((fix.applied.unwrap().at, fix.memory.unwrap().since), (hour(1), Some(hour(2))));
    // It went back and came again between two looks: by the log, or by nobody knows whom.
    let again = [change(1, 1, 2), change(20, 2, 1), change(30, 1, 2)];
    let seen = by_logs(40, 2, &again, first.clone());
    let fix = only(&seen, 40);
    assert_eq!((fix.applied.as_ref().unwrap().at, fix.promise), (hour(30), PromiseState::Broken));
    assert_eq!(fix.memory.unwrap().since, Some(hour(40)));
    assert_eq!(by_logs(41, 2, &again, seen.clone()).fixes, seen.fixes, "and once");
    let fix = only(&by_logs(40, 2, &again[..2], first.clone()), 40);
    assert_eq!((fix.applied.unwrap().accuracy, fix.hours.at_least), (Accuracy::Bound, 21));
    // The same within one second.
    let at_once = [change(1, 1, 2), change(1, 2, 1), change(9, 1, 2)];
    assert_eq!(only(&by_logs(10, 2, &at_once, open.clone()), 10).applied.unwrap().at, hour(9));
    // A job went back.
    let mut back = facts(20, Some(21), 2, 1);
    back.job = job(2);
    let seen = Host::new(22, 2, Some(2), -1).job(facts(1, Some(2), 1, 2)).job(back.clone()).look(open);
    assert_eq!(only(&seen, 22).applied.unwrap().by, AppliedBy::Unknown);
    let seen = Host::new(22, 2, Some(2), -1).job(back).look(first.clone());
    assert_eq!(only(&seen, 22).applied.unwrap().accuracy, Accuracy::Bound);
    // What was removed and is installed anew needed no fix.
    let mut anew = change(20, 1, 2);
    anew.old = None;
    assert!(by_logs(22, 2, &[change(1, 1, 2), anew], Observations::default()).fixes.is_empty());
    // Nor does the word of who is not believed.
    let host =
        Host::new(40, 2, Some(2), -1).evidence(Evidence { changes: again.to_vec(), ..Evidence::default() });
    let look = Look {
        now: host.now,
        compare,
        installed: &host.installed,
        archives: &host.archives,
        offers: &host.offers,
        jobs: &[],
        evidence: host.evidence.as_ref(),
    };
    assert_eq!(only(&observe(doubted(first, &look), &look), 40).applied.unwrap().at, hour(30));
}

#[test]
fn who_is_not_believed_tells_neither_what_runs_nor_when() {
    let mut seen = Host::new(0, 1, Some(2), -1).look(Observations::default());
    let fix = &mut seen.fixes[0];
    fix.applied = Some(Applied {
        at: hour(0),
        accuracy: Accuracy::Exact,
        version: version("2"),
        by: AppliedBy::Apt,
        job: None,
    });
    fix.memory = Some(InMemory { state: MemoryState::Effective, since: Some(hour(0)), held_by: Vec::new() });
    fix.published.after = Some(hour(-2));
    let mut evidence = memory(MemoryState::OldCode);
    let host = |evidence: &Evidence| Host::new(50, 2, Some(2), -1).evidence(evidence.clone());
    let report = |evidence: &Evidence| {
        let host = host(evidence);
        let look = Look {
            now: host.now,
            compare,
            installed: &host.installed,
            archives: &host.archives,
            offers: &host.offers,
            jobs: &[],
            evidence: host.evidence.as_ref(),
        };
        only(&observe(doubted(seen.clone(), &look), &look), 50)
    };
    let fix = report(&evidence);
    assert_eq!((fix.state, fix.applied.unwrap().accuracy), (FixState::OnDisk, Accuracy::Bound));
    evidence.changes = vec![change(40, 1, 2)];
    let fix = report(&evidence);
    assert_eq!((fix.applied.unwrap().at, fix.promise), (hour(40), PromiseState::Broken));
}
