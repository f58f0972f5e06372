use std::fs;

use patch_types::{
    Plan,
    compliance::{FORMAT, FixState, PackageMemory, STORE},
};

use super::*;
use crate::jobs::testing::{Root, within};

const STATUS: &str = "Package: aa\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.0\n\n";

fn host() -> Root {
    let root = Root::new();
    for dir in ["var/lib/dpkg", "var/lib/apt/lists", crate::config::STATE_DIR] {
        fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    fs::write(root.path().join("var/lib/dpkg/status"), STATUS).unwrap();
    root
}

/// The archive at a day, with a version of the package.
fn publish(root: &Root, day: u32, version: &str) {
    let lists = root.path().join("var/lib/apt/lists");
    let release = format!(
        "Origin: Debian\nLabel: Debian-Security\nSuite: x-security\nDate: {}\n",
        ["Sun, 01 Nov 2026 00:00:00 UTC", "Mon, 02 Nov 2026 00:00:00 UTC"][day as usize]
    );
    let index = format!("Package: aa\nVersion: {version}\nArchitecture: amd64\nFilename: p\nSize: 1\n\n");
    for (name, text) in [("a_InRelease", release), ("a_main_binary-amd64_Packages", index)] {
        let new = lists.join("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, lists.join(name)).unwrap();
    }
}

async fn compliance(root: &Root) -> Compliance {
    let (executor, jobs) = (root.executor(), root.open().await);
    let inventory = Inventory::new(root.path(), executor.clone());
    Compliance::new(root.path(), executor, inventory, jobs, Arc::default())
}

fn memory(state: MemoryState) -> QueryResult {
    let name = "aa".parse().unwrap();
    QueryResult::Evidence(Box::new(Evidence {
        memory: vec![PackageMemory { name, state, held_by: Vec::new() }],
        ..Evidence::default()
    }))
}

async fn report(compliance: &Compliance) -> Report {
    serde_json::from_slice(&within(compliance.report()).await.unwrap().body).unwrap()
}

#[tokio::test]
async fn what_was_seen_survives_a_restart() {
    let root = host();
    root.manners(|m| m.answer = Some(memory(MemoryState::Effective)));
    publish(&root, 0, "1.0");
    let first = compliance(&root).await;
    assert!(report(&first).await.fixes.is_empty());
    publish(&root, 1, "1.1");
    let seen = report(&first).await.fixes.remove(0);
    let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
    assert_eq!(text(seen.published.after).as_deref(), Some("2026-11-01T00:00:00Z"));
    assert_eq!(text(Some(seen.published.by)).as_deref(), Some("2026-11-02T00:00:00Z"));
    assert_eq!(first.summary().fixes, 1);
    drop(first);
    let again = compliance(&root).await;
    assert_eq!(report(&again).await.fixes[0].seen, seen.seen);
    // Installed by a hand, while nobody looked.
    fs::write(root.path().join("var/lib/dpkg/status"), STATUS.replace("1.0", "1.1")).unwrap();
    let fix = report(&again).await.fixes.remove(0);
    assert_eq!(fix.state, FixState::Effective);
    let tag = within(again.report()).await.unwrap().etag;
    assert_eq!(within(again.report()).await.unwrap().etag, tag, "nothing has changed");
}

#[tokio::test]
async fn without_the_root_side_it_says_what_is_not_known() {
    let mut root = host();
    publish(&root, 1, "1.1");
    root.unlisten();
    let compliance = compliance(&root).await;
    let told = report(&compliance).await;
    assert_eq!(told.fixes[0].state, FixState::Open);
    let all = told.not_known.join("\n");
    assert!(all.contains("what runs") && all.contains("what keeps fixes away"), "{all}");
    // Without dpkg's database there is nothing to tell.
    fs::remove_file(root.path().join("var/lib/dpkg/status")).unwrap();
    assert!(within(compliance.report()).await.is_err());
}

#[tokio::test]
async fn a_store_that_cannot_be_used_is_set_aside_or_said_to_be_so() {
    let root = host();
    root.manners(|m| m.answer = Some(memory(MemoryState::Effective)));
    publish(&root, 1, "1.1");
    let path = root.path().join(STORE);
    for damaged in ["", "nonsense", "{\"format\":99,\"since\":null}"] {
        fs::write(&path, damaged).unwrap();
        let told = report(&compliance(&root).await).await;
        assert_eq!(told.fixes.len(), 1);
        assert!(told.not_known.iter().any(|why| why.contains("could not be used")), "{:?}", told.not_known);
        let aside = fs::read_to_string(path.with_extension("json.corrupt")).unwrap();
        assert_eq!(aside, damaged);
        let kept: Observations = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((kept.format, kept.fixes.len()), (FORMAT, 1));
    }
    fs::remove_file(&path).unwrap();
    // Nothing can be renamed over a directory with something in it.
    fs::create_dir_all(path.join("x")).unwrap();
    // It may be read another time: nothing is set aside, and nothing written over it.
    assert!(within(compliance(&root).await.report()).await.is_err());
    assert!(path.join("x").is_dir());
}

#[test]
fn jobs_tell_what_they_planned_and_did() {
    let mut job = crate::jobs::testing::job();
    assert_eq!(facts_of(&job).planned, []);
    job.plan = Some(Plan::of(vec![serde_json::from_value(serde_json::json!({
        "action": "upgrade", "name": "aa", "architecture": "amd64", "old_version": "1.0", "new_version": "1.1",
        "archive_sha256": null, "origin": null
    }))
    .unwrap()]));
    let result = |done: bool, taken_back: bool| {
        serde_json::from_value(serde_json::json!({
            "name": "aa", "architecture": "amd64", "action": "upgrade", "old_version": "1.0", "new_version": "1.1",
            "done": done, "reason": null, "taken_back": taken_back
        }))
        .unwrap()
    };
    job.results = vec![result(false, false), result(true, true)];
    let facts = facts_of(&job);
    assert_eq!((facts.planned.len(), facts.installed.len(), facts.began), (1, 0, job.created_at));
    job.results = vec![result(true, false)];
    assert_eq!(facts_of(&job).installed.len(), 1);
}
