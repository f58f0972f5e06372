//! Operations that only ask: queries and plans. Equal ones that run at the same time share one run.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    cache::{Cache, Question, stamp},
    client::{Executor, request},
    follow::{APPEARANCE, Follow, FollowEnd, FollowError, Step},
};

/// How long a query may take. The solver needs seconds on a large host, more when it waits for the lists' lock.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// How many different queries the root side is given at once: each is a process there.
const PARALLEL: usize = 4;

/// How many of those may only be plans and the list of updates: who looks through the details of all packages does not
/// keep others from patching.
const RESERVED: usize = 1;

/// How many more may wait, in each lane.
const WAITING: usize = 32;

type Answer = Result<QueryResult, ErrorDetail>;

/// Where a query's answer will be.
type Flight = watch::Receiver<Option<Answer>>;

/// What a query waits behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// What patching needs.
    First,
    /// The details of one package.
    Details,
    /// All else.
    Other,
}

impl Lane {
    fn of(body: &RequestBody) -> Self {
        match body {
            RequestBody::Query { query: Query::Package { .. } | Query::WhyNot { .. } } => Self::Details,
            RequestBody::Query { query: Query::Services | Query::RebootWindow | Query::Evidence { .. } } => {
                Self::Other
            }
            _ => Self::First,
        }
    }
}

/// The right to be asked now, or later.
enum Place {
    Slot(OwnedSemaphorePermit),
    Waiting(Lane, OwnedSemaphorePermit),
}

/// The queries under way. The key holds the state of the host that they were asked in, so that nobody who has seen a
/// change end is given an answer that was begun before it.
pub(super) struct Flights {
    changes: AtomicU64,
    running: Mutex<HashMap<(u64, String), Flight>>,
    /// For all, and for the first lane only.
    slots: Arc<Semaphore>,
    reserved: Arc<Semaphore>,
    /// Room to wait: in the first lane, and in the others.
    first_waiting: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    cache: Mutex<Cache>,
    answer_limit: Duration,
}

impl Default for Flights {
    fn default() -> Self {
        Self {
            changes: AtomicU64::new(0),
            running: Mutex::new(HashMap::new()),
            slots: Arc::new(Semaphore::new(PARALLEL - RESERVED)),
            reserved: Arc::new(Semaphore::new(RESERVED)),
            first_waiting: Arc::new(Semaphore::new(WAITING)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            cache: Mutex::default(),
            answer_limit: ANSWER_LIMIT,
        }
    }
}

impl Flights {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot if one is free, else room to wait for one.
    fn place(&self, lane: Lane) -> Result<Place, ErrorDetail> {
        let free = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_owned().ok();
        let (reserved, waiting) = match lane {
            Lane::First => (free(&self.reserved), &self.first_waiting),
            Lane::Details | Lane::Other => (None, &self.waiting),
        };
        reserved
            .or_else(|| free(&self.slots))
            .map(Place::Slot)
            .or_else(|| free(waiting).map(|room| Place::Waiting(lane, room)))
            .ok_or_else(|| {
                let message =
                    "too many different questions are waiting for the root side; ask again in a moment";
                ErrorDetail::new(ErrorCode::ServiceUnhealthy, message).with("waiting", WAITING)
            })
    }

    /// Waits for a slot. The semaphores are never closed; without a permit the query would still be correct.
    async fn slot(&self, place: Place) -> Option<OwnedSemaphorePermit> {
        let (lane, _room) = match place {
            Place::Slot(slot) => return Some(slot),
            Place::Waiting(lane, room) => (lane, room),
        };
        let any = Arc::clone(&self.slots).acquire_owned();
        if lane != Lane::First {
            return any.await.ok();
        }
        tokio::select! {
            slot = Arc::clone(&self.reserved).acquire_owned() => slot.ok(),
            slot = any => slot.ok(),
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
        let changes = self.flights.changes.load(Ordering::Acquire);
        let lane = Lane::of(&body);
        let question = (lane == Lane::Details).then(|| Question {
            changes,
            text: text.clone(),
            // Before the question: what changes meanwhile shows in the next one's stamp.
            stamp: stamp(&self.root),
        });
        if let Some(question) = &question
            && let Some(answer) = self.flights.cache().get(question, Instant::now())
        {
            return Ok(answer);
        }
        let mut answer = {
            let key = (changes, text);
            let mut running = self.flights.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.get(&key) {
                Some(flight) => flight.clone(),
                None => {
                    let place = self.flights.place(lane)?;
                    let (sender, receiver) = watch::channel(None);
                    running.insert(key.clone(), receiver.clone());
                    // A task of its own: the caller that began it may go away while others still wait for it.
                    tokio::spawn(self.clone().fly(body, place, key, question, sender));
                    receiver
                }
            }
        };
        let answer = answer.wait_for(Option::is_some).await.ok().and_then(|a| a.clone());
        answer.unwrap_or_else(|| {
            Err(ErrorDetail::new(ErrorCode::ServiceUnhealthy, "the agent stopped before the answer came"))
        })
    }

    /// One query, from its place to its answer, and to its end if that comes later.
    async fn fly(
        self,
        body: RequestBody,
        place: Place,
        key: (u64, String),
        question: Option<Question>,
        sender: watch::Sender<Option<Answer>>,
    ) {
        let landing = Landing { executor: &self, key };
        let deadline = Instant::now() + self.flights.answer_limit;
        let Ok(slot) = timeout_at(deadline, self.flights.slot(place)).await else {
            drop(landing);
            sender.send_replace(Some(Err(ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                format!(
                    "the root side was busy with other questions for {} s; ask again in a moment",
                    self.flights.answer_limit.as_secs()
                ),
            ))));
            return;
        };
        let mut work = Box::pin(self.run(body));
        let done = timeout_at(deadline, &mut work).await;
        let is_over = done.is_ok();
        let answer = done.unwrap_or_else(|_| {
            Err(ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                format!(
                    "the root side did not answer within {} s; see `journalctl -u 'linux-patch-executor@*'`",
                    self.flights.answer_limit.as_secs()
                ),
            ))
        });
        if let (Ok(answer), Some(question)) = (&answer, question) {
            self.keep(question, answer);
        }
        drop(landing);
        sender.send_replace(Some(answer));
        if !is_over {
            // Nobody waits for it any more, but its process is still there: its slot is given away when it is gone.
            let _ = work.await;
        }
        drop(slot);
    }

    /// Keeps an answer for those who ask the same in a moment.
    fn keep(&self, question: Question, answer: &QueryResult) {
        if let Some(until) = self.flights.cache().put(question, answer, Instant::now()) {
            let flights = Arc::clone(&self.flights);
            tokio::spawn(async move {
                // An agent that nobody asks any more gives the memory back.
                sleep_until(until).await;
                flights.cache().sweep(Instant::now());
            });
        }
    }

    /// Submits under a new id and follows to the end.
    async fn run(&self, body: RequestBody) -> Answer {
        let request = request(body);
        let unanswered = match self.submit(&request).await {
            Ok(Reply::Accepted | Reply::Known | Reply::Signed { .. }) => None,
            Ok(Reply::Refused { code, message }) => return Err(ErrorDetail::new(code, message)),
            // It may be at work all the same, which its event file tells.
            Err(error) if error.may_have_begun() => Some(error),
            Err(error) => return Err(error.into()),
        };
        let mut follow = match (Follow::open(self.events_of(request.id), 0, APPEARANCE).await, unanswered) {
            (Ok(follow), _) => follow,
            (Err(FollowError::Missing(_)), Some(unanswered)) => return Err(unanswered.into()),
            (Err(error), _) => return Err(error.into()),
        };
        loop {
            match follow.next().await? {
                Step::Events(events) => {
                    for event in events {
                        if let EventKind::Ended(ended) = event.kind {
                            return answer_of(*ended);
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

fn answer_of(ended: Ended) -> Answer {
    match (ended.status, ended.answer) {
        (JobStatus::Completed, Some(answer)) => Ok(answer),
        _ => Err(ended.error.unwrap_or_else(|| {
            ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                "the root side ended without an answer; see `journalctl -u 'linux-patch-executor@*'`",
            )
        })),
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
        executor::Request,
        plan::Plan,
    };
    use tokio::time::timeout;

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

    fn details(n: usize) -> Query {
        Query::Package { name: format!("package{n}").parse().unwrap() }
    }

    fn plans(requests: &[Request]) -> usize {
        requests.iter().filter(|r| matches!(r.body, RequestBody::Plan { .. })).count()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_flood_of_details_is_bounded_and_keeps_no_plan_waiting() {
        let root = Root::new();
        let executor = root.executor();
        let flood = PARALLEL - RESERVED + WAITING;
        let mut asked: Vec<_> = (0..flood).map(|n| Box::pin(executor.query(details(n)))).collect();
        for one in &mut asked {
            assert!(timeout(Duration::ZERO, one).await.is_err());
        }
        let error = within(executor.query(details(flood))).await.unwrap_err();
        assert_eq!((error.code, error.retryable), (ErrorCode::ServiceUnhealthy, true));
        let mut joined = Box::pin(executor.query(details(0)));
        assert!(timeout(Duration::ZERO, &mut joined).await.is_err(), "who joins a run costs nothing");
        root.until(|requests| requests.len() == PARALLEL - RESERVED).await;

        let planning = tokio::spawn({
            let executor = executor.clone();
            async move { executor.plan(Operation::Refresh).await }
        });
        root.until(|requests| plans(requests) == 1).await;
        let plan = root.requests().last().unwrap().id;
        root.emit(plan, answered(QueryResult::Plan(Plan::of(vec![]))));
        assert!(within(planning).await.unwrap().is_ok());
        assert_eq!(root.requests().len(), PARALLEL, "the details still wait for their turn");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_question_that_took_too_long_keeps_its_slot_until_it_is_over() {
        let root = Root::new();
        let mut executor = root.executor();
        let limit = Duration::from_millis(300);
        executor.flights = Arc::new(Flights { answer_limit: limit, ..Flights::default() });
        let late = join_all((0..PARALLEL - RESERVED).map(|n| executor.query(details(n))));
        for answer in within(late).await {
            assert_eq!(answer.unwrap_err().code, ErrorCode::ServiceUnhealthy);
        }
        assert_eq!(root.requests().len(), PARALLEL - RESERVED);
        let busy = within(executor.query(Query::Services)).await.unwrap_err();
        assert!(busy.message.contains("busy"), "{busy}");
        assert_eq!(root.requests().len(), PARALLEL - RESERVED, "no process more than there are slots");

        root.emit(root.requests()[0].id, answered(patches()));
        root.die(root.requests()[1].id);
        root.manners(|m| m.answer = Some(services()));
        let answer = within(async {
            loop {
                if let Ok(answer) = executor.query(Query::Services).await {
                    return answer;
                }
            }
        });
        assert_eq!(answer.await, services());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn details_are_kept_for_a_moment_while_nothing_changes() {
        let root = Root::new();
        root.manners(|m| m.answer = Some(services()));
        std::fs::create_dir_all(root.path().join("var/lib/dpkg")).unwrap();
        let executor = root.executor();
        let ask = async |count: usize| {
            within(executor.query(details(1))).await.unwrap();
            assert_eq!(root.requests().len(), count);
        };
        ask(1).await;
        ask(1).await;
        executor.host_changed();
        ask(2).await;
        std::fs::write(root.path().join("var/lib/dpkg/status"), "x").unwrap();
        ask(3).await;
        ask(3).await;
        within(executor.query(Query::Services)).await.unwrap();
        within(executor.query(Query::Services)).await.unwrap();
        assert_eq!(root.requests().len(), 5, "the state of units is always asked for");
    }
}
