use std::time::Duration;

use patch_types::api::PatchSet;
use tokio::time::timeout;

use super::*;
use crate::jobs::testing::{Root, answered, within};

fn set(security_updates: usize) -> QueryResult {
    QueryResult::Patches(PatchSet {
        patches: vec![],
        total: 0,
        security_updates,
        requires_reboot: false,
        last_update_check: None,
    })
}

fn answer(root: &Root, question: usize, set: QueryResult) {
    let id = root.requests()[question].id;
    root.emit(id, answered(set));
    root.die(id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_kept_for_the_state_that_it_was_asked_in() {
    let root = Root::new();
    let inventory = Inventory::new(root.path(), root.executor());
    // The one that asked gives up; the question goes on.
    assert!(timeout(Duration::from_millis(50), inventory.patch_set()).await.is_err());
    root.until(|requests| requests.len() == 1).await;
    std::fs::create_dir_all(root.path().join("etc/apt/preferences.d")).unwrap();
    let after = tokio::spawn({
        let inventory = inventory.clone();
        async move { inventory.patch_set().await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    answer(&root, 0, set(1));
    root.until(|requests| requests.len() == 2).await;
    assert!(!after.is_finished(), "the answer from before the change is not its own");
    answer(&root, 1, set(2));
    assert_eq!(within(after).await.unwrap().unwrap().security_updates, 2);
    assert_eq!(inventory.patch_set().await.unwrap().security_updates, 2);
    assert_eq!(root.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_wait_share_one_question() {
    let root = Root::new();
    let inventory = Inventory::new(root.path(), root.executor());
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let inventory = inventory.clone();
            tokio::spawn(async move { inventory.patch_set().await })
        })
        .collect();
    root.until(|requests| requests.len() == 1).await;
    answer(&root, 0, set(3));
    for one in waiting {
        assert_eq!(within(one).await.unwrap().unwrap().security_updates, 3);
    }
    assert_eq!(root.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_and_tried_again() {
    let root = Root::new();
    let inventory = Inventory::new(root.path(), root.executor());
    root.manners(|m| {
        m.answer = Some(QueryResult::Services(patch_types::api::ServiceList { services: vec![], total: 0 }));
    });
    assert!(within(inventory.patch_set()).await.is_err());
    root.manners(|m| m.answer = Some(set(1)));
    assert_eq!(within(inventory.patch_set()).await.unwrap().security_updates, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_job_has_the_solver_asked_again() {
    let root = Root::new();
    root.manners(|m| m.answer = Some(set(1)));
    let inventory = Inventory::new(root.path(), root.executor());
    let ends = watch::Sender::new(0);
    let fresh = tokio::spawn(inventory.clone().keep_fresh(ends.subscribe()));
    root.until(|requests| requests.len() == 1).await;
    std::fs::create_dir_all(root.path().join("etc/apt/preferences.d")).unwrap();
    ends.send_modify(|n| *n += 1);
    root.until(|requests| requests.len() == 2).await;
    fresh.abort();
}
