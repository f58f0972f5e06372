//! Operations that only ask: queries and plans. Equal ones that run at the same time share one run.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use patch_types::{
    ErrorCode, ErrorDetail, EventKind, JobStatus, Operation, Plan, Query,
    event::{Ended, QueryResult},
    executor::{Reply, RequestBody},
};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::{
    client::{Executor, request},
    follow::{APPEARANCE, Follow, FollowEnd, Step},
};

/// How long a query may take. The solver needs seconds on a large host, more when it waits for the lists' lock.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// How many different queries the root side is given at once: each is a process there.
const PARALLEL: usize = 4;

type Answer = Result<QueryResult, ErrorDetail>;

/// Where a query's answer will be.
type Flight = watch::Receiver<Option<Answer>>;

/// The queries under way. The key holds the state of the host that they were asked in, so that nobody who has seen a
/// change end is given an answer that was begun before it.
pub(super) struct Flights {
    changes: AtomicU64,
    running: Mutex<HashMap<(u64, String), Flight>>,
    slots: Semaphore,
}

impl Default for Flights {
    fn default() -> Self {
        Self {
            changes: AtomicU64::new(0),
            running: Mutex::new(HashMap::new()),
            slots: Semaphore::new(PARALLEL),
        }
    }
}

impl Executor {
    /// A read that needs root. Equal queries that run at the same time share one run.
    ///
    /// # Errors
    /// When the root side cannot be reached, refuses, fails, or takes too long.
    pub async fn query(&self, query: Query) -> Result<QueryResult, ErrorDetail> {
        self.shared(RequestBody::Query { query }).await
    }

    /// What an operation would do. Equal questions that run at the same time share one run.
    ///
    /// # Errors
    /// When the root side cannot be reached, refuses, fails, or takes too long.
    pub async fn plan(&self, operation: Operation) -> Result<Plan, ErrorDetail> {
        match self.shared(RequestBody::Plan { operation }).await? {
            QueryResult::Plan(plan) => Ok(plan),
            _ => Err(ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                "the root side answered another question than it was asked; see \
                 `journalctl -u 'linux-patch-executor@*'`",
            )),
        }
    }

    /// Tells that the host has changed: who asks from now on does not join a run that was begun before.
    pub fn host_changed(&self) {
        self.flights.changes.fetch_add(1, Ordering::AcqRel);
    }

    async fn shared(&self, body: RequestBody) -> Answer {
        let text = serde_json::to_string(&body)
            .map_err(|e| ErrorDetail::new(ErrorCode::InvalidRequest, format!("cannot be asked: {e}")))?;
        let mut answer = {
            let key = (self.flights.changes.load(Ordering::Acquire), text);
            let mut running = self.flights.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.get(&key) {
                Some(flight) => flight.clone(),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    running.insert(key.clone(), receiver.clone());
                    let executor = self.clone();
                    // A task of its own: the caller that began it may go away while others still wait for it.
                    tokio::spawn(async move {
                        let landing = Landing { executor: &executor, key };
                        let answer = executor.answer(body).await;
                        drop(landing);
                        sender.send_replace(Some(answer));
                    });
                    receiver
                }
            }
        };
        let answer = answer.wait_for(Option::is_some).await.ok().and_then(|a| a.clone());
        answer.unwrap_or_else(|| {
            Err(ErrorDetail::new(ErrorCode::ServiceUnhealthy, "the agent stopped before the answer came"))
        })
    }

    async fn answer(&self, body: RequestBody) -> Answer {
        let work = async {
            // The semaphore is never closed; without a permit the query would still be correct.
            let _slot = self.flights.slots.acquire().await;
            let ended = self.run(body).await?;
            match (ended.status, ended.answer) {
                (JobStatus::Completed, Some(answer)) => Ok(answer),
                _ => Err(ended.error.unwrap_or_else(|| {
                    ErrorDetail::new(
                        ErrorCode::ServiceUnhealthy,
                        "the root side ended without an answer; see `journalctl -u 'linux-patch-executor@*'`",
                    )
                })),
            }
        };
        timeout(ANSWER_LIMIT, work).await.unwrap_or_else(|_| {
            Err(ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                format!(
                    "the root side did not answer within {} s; see `journalctl -u 'linux-patch-executor@*'`",
                    ANSWER_LIMIT.as_secs()
                ),
            ))
        })
    }

    /// Submits under a new id and follows to the end.
    async fn run(&self, body: RequestBody) -> Result<Ended, ErrorDetail> {
        let request = request(body);
        if let Reply::Refused { code, message } = self.submit(&request).await? {
            return Err(ErrorDetail::new(code, message));
        }
        let mut follow = Follow::open(self.events_of(request.id), 0, APPEARANCE).await?;
        loop {
            match follow.next().await? {
                Step::Events(events) => {
                    for event in events {
                        if let EventKind::Ended(ended) = event.kind {
                            return Ok(*ended);
                        }
                    }
                }
                Step::End(FollowEnd::Ended | FollowEnd::Abandoned) => {
                    return Err(ErrorDetail::new(
                        ErrorCode::ServiceUnhealthy,
                        "the root side died over the question; see `journalctl -u 'linux-patch-executor@*'`",
                    ));
                }
            }
        }
    }
}

/// Takes a query off the list of those under way, however its task ends.
struct Landing<'a> {
    executor: &'a Executor,
    key: (u64, String),
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.executor.flights.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use patch_types::{
        api::{PatchSet, ServiceList},
        plan::Plan,
    };

    use super::*;
    use crate::jobs::testing::{Root, answered, within};

    fn services() -> QueryResult {
        QueryResult::Services(ServiceList { services: vec![], total: 0 })
    }

    fn patches() -> QueryResult {
        QueryResult::Patches(PatchSet {
            patches: vec![],
            total: 0,
            security_updates: 0,
            requires_reboot: false,
            last_update_check: None,
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_query_is_answered() {
        let root = Root::new();
        root.manners(|m| m.answer = Some(services()));
        let executor = root.executor();
        assert_eq!(within(executor.query(Query::Services)).await.unwrap(), services());
        root.manners(|m| m.answer = Some(QueryResult::Plan(Plan::of(vec![]))));
        assert!(within(executor.plan(Operation::Refresh)).await.unwrap().is_empty());
        executor.ping().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn equal_queries_share_a_run_until_the_host_changes() {
        let root = Root::new();
        let executor = root.executor();
        let ask = || Box::pin(executor.query(Query::Patches));
        let mut first = ask();
        let mut others = join_all((0..20).map(|_| ask()));
        // Each is looked at once, in this order, and so has joined.
        assert!(timeout(Duration::ZERO, &mut first).await.is_err());
        assert!(timeout(Duration::ZERO, &mut others).await.is_err());
        drop(first);
        root.until(|requests| requests.len() == 1).await;
        executor.host_changed();
        let mut later = ask();
        assert!(timeout(Duration::ZERO, &mut later).await.is_err());
        root.until(|requests| requests.len() == 2).await;
        root.emit(root.requests()[0].id, answered(patches()));
        for answer in within(others).await {
            assert_eq!(answer.unwrap(), patches(), "also when the one that began the run has hung up");
        }
        assert!(timeout(Duration::ZERO, &mut later).await.is_err(), "it waits for its own run");
        root.emit(root.requests()[1].id, answered(patches()));
        assert_eq!(within(later).await.unwrap(), patches());
        assert_eq!(root.requests().len(), 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_death_over_a_query_is_an_error() {
        let root = Root::new();
        let executor = root.executor();
        let asked = tokio::spawn(async move { executor.query(Query::Services).await });
        root.until(|requests| requests.len() == 1).await;
        root.die(root.requests()[0].id);
        let error = within(asked).await.unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::ServiceUnhealthy);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_a_root_side_there_is_advice() {
        let mut root = Root::new();
        root.unlisten();
        let error = root.executor().query(Query::Services).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::ServiceUnhealthy);
        assert!(error.message.contains("systemctl status linux-patch-executor.socket"), "{error}");
        assert!(root.executor().ping().await.is_err());
    }
}
