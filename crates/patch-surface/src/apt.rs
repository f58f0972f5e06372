//! What dpkg, apt and the host's files say.

use std::{cmp::Ordering, collections::BTreeMap, path::PathBuf, sync::LazyLock};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use patch_apply::apt::status_fd as progress;
use patch_backends::{
    apt::{
        self, Database, Evidence, ExtendedStates, Indexes, Inventory, OperationKind, deb822, history,
        relations, release::Release, simulate, versions as order,
    },
    system,
};
use patch_policy::compliance as judging;
use patch_types::{
    PackageName,
    compliance::{Evidence as Seen, InVersion, LoggedChange, Observations},
    plan::Origin,
    stale::StaleReport,
};

use crate::text;

const STATUS: &str = "Package: aa\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.0\n\
    Depends: bb (>= 1), cc | dd\nConffiles:\n /etc/aa.conf 0123456789abcdef0123456789abcdef\n\n\
    Package: bb\nStatus: hold ok installed\nArchitecture: all\nVersion: 1:2.0~rc1-3\nProvides: cc (= 2)\n\n";

static INVENTORY: LazyLock<Inventory> = LazyLock::new(|| Inventory {
    root: PathBuf::from("/nonexistent"),
    database: Database::parse(STATUS.as_bytes()),
    states: ExtendedStates::default(),
});

/// dpkg's status file, and apt's marks.
pub fn dpkg_status(bytes: &[u8]) {
    let database = Database::parse(bytes);
    let _ = database.audit();
    for package in database.iter() {
        let _ = (package.to_api(false, None), package.relations(), package.conffiles(), package.problem());
        let _ = (package.version(), package.source(), package.long_description(), package.size());
        // What is listed can be found again.
        assert!(database.named(package.name()).next().is_some(), "{} is lost", package.name());
        if let Ok(name) = package.name().parse::<PackageName>() {
            let _ = apt::detail::reverse_dependencies(&database, name.name(), "");
        }
    }
    let _ = ExtendedStates::parse(bytes).is_auto("aa", "amd64", "amd64");
    let _ = patch_apply::apt::snapshot::Diversions::parse(bytes).on_disk(b"/etc/aa.conf", "aa");
}

/// An archive's index and its `Release`.
pub fn apt_indexes(bytes: &[u8]) {
    for stanza in deb822::stanzas(bytes) {
        for (name, _) in stanza.fields() {
            let _ = stanza.text(&text(name));
        }
    }
    let release = Release::parse(bytes);
    let _ = (release.is_security(), release.component("main", "example.org"));
    let mut indexes = Indexes::default();
    let asked = deb822::stanzas(bytes).filter_map(|s| Some(s.text("Package")?.into_owned())).take(8);
    if let Ok(read) = Indexes::read(&INVENTORY.root, asked) {
        indexes = read;
    }
    indexes.add(Origin::default(), bytes).expect("memory can be read");
    let _ = indexes.newest("aa", "amd64");
}

/// What `apt-get -s -V` prints, and all that is made of it.
pub fn solver(bytes: &[u8]) {
    let simulation = simulate::parse(&text(bytes));
    let indexes = Indexes::default();
    let plan = apt::plan(&simulation, &INVENTORY, &indexes);
    let groups = apt::groups(&plan, &INVENTORY, &indexes);
    // Each change belongs to exactly one group.
    let mut grouped: Vec<usize> = groups.into_iter().flatten().collect();
    grouped.sort_unstable();
    assert!(grouped.iter().copied().eq(0..plan.changes.len()), "changes without a group, or with two");
    let _ = apt::patch_set(&simulation, &INVENTORY, &indexes);
    for name in ["aa", "bb", "zz"] {
        let evidence = Evidence {
            inventory: &INVENTORY,
            policy: None,
            indexes: &indexes,
            patching: &simulation,
            alone: Some(&simulation),
            taken_back: &[],
            last_update_check: None,
            now: Timestamp::UNIX_EPOCH,
        };
        let _ = apt::why_not(&name.parse().expect("a name"), &evidence);
    }
}

/// What `apt-cache policy` prints, and why a package is not patched.
pub fn policy(bytes: &[u8]) {
    let simulation = simulate::Simulation::default();
    let indexes = Indexes::default();
    for policy in apt::policy::parse(&text(bytes)) {
        let _ = policy.newest_offered();
        for name in ["aa", "zz"] {
            let evidence = Evidence {
                inventory: &INVENTORY,
                policy: Some(&policy),
                indexes: &indexes,
                patching: &simulation,
                alone: None,
                taken_back: &[],
                last_update_check: Some(Timestamp::UNIX_EPOCH),
                now: Timestamp::UNIX_EPOCH,
            };
            let _ = apt::why_not(&name.parse().expect("a name"), &evidence);
        }
    }
}

/// The output of a run that failed.
pub fn classify(bytes: &[u8]) {
    const KINDS: [OperationKind; 7] = [
        OperationKind::Refresh,
        OperationKind::Install,
        OperationKind::Update,
        OperationKind::Remove,
        OperationKind::Hold,
        OperationKind::ApplyPatches,
        OperationKind::Recover,
    ];
    let output = text(bytes);
    for (index, kind) in KINDS.into_iter().enumerate() {
        let exit = (!bytes.len().is_multiple_of(3)).then_some(100);
        let detail = apt::classify(exit, &output, kind);
        assert!(!detail.message.is_empty(), "a failure without a word");
        // The tool's words are repeated with a limit.
        assert!(detail.message.len() < 32 * 1024, "a message of {} bytes", detail.message.len());
        if index > 0 && bytes.len() > 4096 {
            break;
        }
    }
}

/// apt's progress.
pub fn status_fd(bytes: &[u8]) {
    for line in text(bytes).lines() {
        let parsed = progress::parse(line);
        if let Some(progress::Status::Download { percent, .. } | progress::Status::Package { percent, .. }) =
            parsed
        {
            assert!((0.0..=100.0).contains(&percent), "{percent} percent");
        }
    }
}

/// Versions and relations: an order in which nothing contradicts itself.
pub fn versions(bytes: &[u8]) {
    let all = text(bytes);
    let mut words = all.split(['\n', ' ']);
    let (a, b, c) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let (ab, bc, ac) = (order::compare(a, b), order::compare(b, c), order::compare(a, c));
    assert_eq!(order::compare(a, a), Ordering::Equal, "{a:?}");
    assert_eq!(order::compare(b, a), ab.reverse(), "{a:?} {b:?}");
    if ab == bc {
        assert_eq!(ac, ab, "{a:?} {b:?} {c:?}");
    }
    let _ = order::parts(a);
    for group in relations::groups(&all) {
        for alternative in relations::alternatives(group) {
            let _ = (alternative.accepts(b), alternative.provided_by(c));
        }
    }
    let _ = relations::split(&all);
}

/// `os-release`, the kernel's banner, apt's history.
pub fn host_facts(bytes: &[u8]) {
    let all = text(bytes);
    let _ = system::parse_os_release(&all);
    let _ = system::newer_kernel(all.lines().next().unwrap_or_default(), &all, &INVENTORY.database);
    let _ = history::last_end(&all, &TimeZone::UTC);
}

/// The logs of dpkg, apt and unattended-upgrades, and the date of a `Release`.
pub fn logs(bytes: &[u8]) {
    let mut changes = apt::logs::dpkg(bytes, &TimeZone::UTC);
    apt::logs::attribute(&mut changes, &apt::logs::history(bytes, &TimeZone::UTC));
    for change in changes {
        let line = serde_json::to_string(&change).expect("it can be written");
        assert_eq!(serde_json::from_str::<LoggedChange>(&line).ok().as_ref(), Some(&change));
    }
    for run in apt::logs::unattended(bytes, &TimeZone::UTC) {
        assert!(run.began <= run.ended, "{run:?}");
        let shown = run.problems.iter().chain(&run.packages);
        assert!(!shown.flat_map(|text| text.chars()).any(char::is_control), "{run:?}");
    }
    let _ = apt::fixes::date(&text(bytes));
    let files: Vec<String> = text(bytes).lines().map(str::to_owned).collect();
    let _ = apt::fixes::held_by(&StaleReport::default(), &files, &[]);
}

/// What the agent remembers of fixes, as root reads it: whatever stands there, the report is made.
pub fn compliance(bytes: &[u8]) {
    let Ok(seen) = serde_json::from_slice::<Observations>(bytes) else { return };
    let installed: Vec<InVersion> = seen
        .fixes
        .iter()
        .map(|fix| InVersion {
            name: fix.name.clone(),
            architecture: fix.architecture.clone(),
            version: fix.version.clone(),
        })
        .collect();
    let evidence = Seen::default();
    for now in [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX] {
        let look = judging::Look {
            now,
            compare: order::compare,
            installed: &installed,
            archives: &BTreeMap::new(),
            offers: &[],
            jobs: &[],
            evidence: Some(&evidence),
        };
        let after = judging::observe(seen.clone(), &look);
        let known = judging::Known {
            now,
            promise: SignedDuration::from_hours(24),
            compare: order::compare,
            causes: &BTreeMap::new(),
            evidence: Some(&evidence),
            not_known: &[],
            cannot_tell: None,
        };
        let report = judging::report(&after, &known);
        assert_eq!(report.summary.fixes, report.fixes.len());
    }
}
