//! How well this host keeps its promise about fixes.
//!
//! This module looks at the host whenever something has changed and once a minute, and remembers what it saw, durably.
//! What follows from it is decided elsewhere: `patch_policy::compliance`. What memory and logs tell, only root can see.

mod causes;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use patch_backends::apt::{Database, fixes, versions};
use patch_policy::{
    compliance::{self as policy, JobFacts, KEEP, Known, Look},
    promise::PROMISED,
};
use patch_types::{
    ErrorCode, ErrorDetail, JobId, JobStatus, PackageName, Query,
    api::{Cause, Job},
    compliance::{Compliance as Report, Evidence, InVersion, MemoryState, Observations, Summary},
    event::QueryResult,
    operation::MAX_PACKAGES,
};
use tokio::sync::watch;

use crate::{
    executor::Executor,
    inventory::{self, Cached, Inventory, Stamp},
    jobs::{JobFilter, Jobs},
    policy::Note,
};

/// How often it is looked whether something has changed.
const EVERY: Duration = Duration::from_secs(60);

/// How often root is asked what runs while something is not effective yet and nobody asks.
const MEMORY_EVERY: Duration = Duration::from_secs(600);

/// How often it is tried again after a look that did not see all.
const AGAIN: Duration = Duration::from_secs(30);

/// How often at most if somebody does.
const RECHECK: Duration = Duration::from_secs(2);

/// How long whoever asks waits for a look.
const WAIT: Duration = Duration::from_secs(20);

/// How many jobs of the past are looked at after a start.
const JOBS: usize = 200;

struct Inner {
    root: PathBuf,
    executor: Executor,
    inventory: Inventory,
    jobs: Jobs,
    /// One look at a time.
    turn: tokio::sync::Mutex<Turn>,
    /// When a look last saw all.
    good: Mutex<Option<Timestamp>>,
    /// What the last look left.
    seen: Mutex<Option<Arc<Seen>>>,
    /// What the agent does by itself, as far as it is known.
    policy: Arc<ArcSwap<Note>>,
}

/// What only the looks themselves need.
#[derive(Default)]
struct Turn {
    /// What the host looked like.
    stamp: Option<Stamp>,
    /// The jobs that are part of what is remembered.
    folded: HashSet<JobId>,
    /// When root was asked last.
    asked: Option<Instant>,
    /// Whether the last look did not see all: another follows soon.
    is_partial: bool,
    /// Whether the log heard that the store cannot be written.
    complained: bool,
}

/// What is known.
#[derive(Debug, Default)]
struct Seen {
    observations: Observations,
    evidence: Option<Evidence>,
    causes: BTreeMap<PackageName, Vec<Cause>>,
    not_known: Vec<String>,
    /// Why the store was set aside, if it was.
    lost: Option<String>,
    /// Why it cannot be told whether fixes are missing, if it cannot.
    blind: Option<String>,
}

/// How well this host keeps its promise. Cheap to clone.
#[derive(Clone)]
pub struct Compliance(Arc<Inner>);

impl Compliance {
    /// Of the host below the root prefix. Nothing is read yet.
    #[must_use]
    pub fn new(
        root: &Path,
        executor: Executor,
        inventory: Inventory,
        jobs: Jobs,
        policy: Arc<ArcSwap<Note>>,
    ) -> Self {
        Self(Arc::new(Inner {
            root: root.to_owned(),
            executor,
            inventory,
            jobs,
            turn: tokio::sync::Mutex::default(),
            good: Mutex::default(),
            seen: Mutex::default(),
            policy,
        }))
    }

    /// Looks at the host now, whenever a job has ended (the number of those that have is watched), and once a minute.
    /// Runs until it is dropped.
    pub async fn keep(self, mut ends: watch::Receiver<u64>) {
        let mut said = None;
        loop {
            let error = self.looked(false).await.err().map(|error| error.message);
            if let Some(error) = &error
                && said.as_ref() != Some(error)
            {
                tracing::warn!(%error, "which security fixes concern this host could not be determined");
            }
            said = error;
            // Without jobs there is no daemon: the sender goes last.
            let _ = tokio::time::timeout(EVERY, ends.changed()).await;
        }
    }

    /// The report as the answer to `GET /compliance`.
    ///
    /// # Errors
    /// When the package database cannot be read, or the first look takes too long.
    pub async fn report(&self) -> Result<Cached, ErrorDetail> {
        match tokio::time::timeout(WAIT, self.looked(true)).await {
            Ok(looked) => looked?,
            Err(_) if self.seen().is_some() => {}
            Err(_) => {
                return Err(ErrorDetail::new(
                    ErrorCode::ServiceUnhealthy,
                    format!(
                        "the first look at this host took longer than {} s; ask again shortly",
                        WAIT.as_secs()
                    ),
                ));
            }
        }
        inventory::cached(&self.made())
    }

    /// How many fixes there are in which state, as of the last look.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.made().summary
    }

    /// When a look last saw all that there is to see.
    #[must_use]
    pub fn last_good_look(&self) -> Option<Timestamp> {
        *self.0.good.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A look in a task of its own: whoever does not wait for it to end must not break it off.
    async fn looked(&self, is_asked: bool) -> Result<(), ErrorDetail> {
        let looking = self.clone();
        tokio::spawn(async move { looking.look(is_asked).await }).await.map_err(|_| broken_off())?
    }

    fn made(&self) -> Report {
        let (seen, now) = (self.seen().unwrap_or_default(), Timestamp::now());
        let mut not_known = seen.not_known.clone();
        let stale = fixes::staleness(&self.0.root, now);
        not_known.extend(stale.iter().chain(&seen.lost).cloned());
        let causes = causes::with_schedule(&seen.causes, &seen.observations, &self.0.policy.load().waits);
        policy::report(
            &seen.observations,
            &Known {
                now,
                promise: PROMISED,
                compare: versions::compare,
                causes: &causes,
                evidence: seen.evidence.as_ref(),
                not_known: &not_known,
                cannot_tell: seen.blind.as_deref().or(stale.as_deref()),
            },
        )
    }

    fn seen(&self) -> Option<Arc<Seen>> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn look(&self, is_asked: bool) -> Result<(), ErrorDetail> {
        let mut turn = self.0.turn.lock().await;
        let before = match self.seen() {
            Some(seen) => seen,
            None => {
                let root = self.0.root.clone();
                let loaded = blocking(move || store::load(&root)).await?;
                let (observations, lost) = loaded.map_err(|error| {
                    ErrorDetail::new(
                        ErrorCode::ServiceUnhealthy,
                        format!("what was seen of the fixes cannot be read now: {error}; it is tried again"),
                    )
                })?;
                Arc::new(Seen { observations, lost, ..Seen::default() })
            }
        };
        // The stamp comes first: a change in between is seen by the next look.
        let stamp = Stamp::of_candidates(&self.0.root);
        let has_changed = turn.stamp != Some(stamp);
        let (jobs, ended) = self.job_facts(&turn.folded).await;
        // What keeps a fix away, and what runs old code, changes without any of the files that are watched.
        let waits = before
            .observations
            .fixes
            .iter()
            .any(|fix| fix.memory.as_ref().is_none_or(|memory| memory.state != MemoryState::Effective));
        let patience = match (is_asked, turn.is_partial) {
            (true, _) => RECHECK,
            (false, true) => AGAIN,
            (false, false) => MEMORY_EVERY,
        };
        let is_due = turn.asked.is_none_or(|at| at.elapsed() >= patience);
        let is_known = before.evidence.is_some();
        if !has_changed && jobs.is_empty() && !(is_due && (waits || !is_known || turn.is_partial)) {
            self.was_good(&turn, Timestamp::now());
            return Ok(());
        }
        let root = self.0.root.clone();
        let read = blocking(move || {
            let database = Database::read_for_list(&root)?;
            fixes::read(&root, &database)
        });
        let fixes = read.await?.map_err(|error| inventory::unreadable(&error))?;
        let mut not_known = fixes.remarks.clone();
        let mut packages = policy::in_question(&before.observations);
        if packages.len() > MAX_PACKAGES {
            not_known.push(format!(
                "what runs was looked at for {MAX_PACKAGES} of {} packages only",
                packages.len()
            ));
            packages.truncate(MAX_PACKAGES);
        }
        let evidence = match self.evidence(packages).await {
            Ok(evidence) => Some(evidence),
            Err(error) => {
                not_known.push(format!("what runs, and what the logs say: {}", error.message));
                None
            }
        };
        turn.asked = Some(Instant::now());
        let now = Timestamp::now();
        let behind = policy::behind(&fixes.archives, now);
        not_known.extend(behind.clone());
        let is_behind = behind.is_some();
        let blind = behind.or_else(|| fixes.remarks.first().cloned());
        // Thousands of fixes and of logged changes are compared.
        let earlier = before.observations.clone();
        let folding = blocking(move || {
            let look = Look {
                now,
                compare: versions::compare,
                installed: &fixes.installed,
                archives: &fixes.archives,
                offers: &fixes.offers,
                jobs: &jobs,
                evidence: evidence.as_ref(),
            };
            let observations = policy::observe(earlier, &look);
            (observations, evidence)
        });
        let (observations, evidence) = folding.await?;
        let (causes, unknown) = causes::of(&self.0.inventory, &self.0.executor, &observations).await;
        not_known.extend(unknown);
        if observations != before.observations || turn.complained {
            let (root, observations) = (self.0.root.clone(), observations.clone());
            if let Err(error) = blocking(move || store::save(&root, &observations)).await? {
                if !turn.complained {
                    tracing::warn!(%error, "what was seen of the fixes cannot be kept");
                }
                turn.complained = true;
                not_known.push(format!("what is seen now is lost when the agent restarts: {error}"));
            } else {
                turn.complained = false;
            }
        }
        turn.stamp = Some(stamp);
        turn.is_partial = evidence.is_none() || blind.is_some();
        if !is_behind {
            turn.folded.extend(ended);
        }
        self.was_good(&turn, now);
        let kept = evidence.or_else(|| before.evidence.clone());
        let lost = before.lost.clone();
        let seen = Seen { observations, evidence: kept, causes, not_known, lost, blind };
        *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(seen));
        Ok(())
    }

    /// That nothing has changed since a look that saw all is as good as another one.
    fn was_good(&self, turn: &Turn, now: Timestamp) {
        if !turn.is_partial && fixes::staleness(&self.0.root, now).is_none() {
            *self.0.good.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        }
    }

    async fn evidence(&self, packages: Vec<PackageName>) -> Result<Evidence, ErrorDetail> {
        let since = Timestamp::now().checked_sub(KEEP).unwrap_or(Timestamp::UNIX_EPOCH);
        match self.0.executor.query(Query::Evidence { packages, since }).await? {
            QueryResult::Evidence(evidence) => Ok(*evidence),
            _ => Err(ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                "the root side answered another question; restart daemon and executor",
            )),
        }
    }

    /// The jobs that are not part of what is remembered, and which of these have ended.
    async fn job_facts(&self, folded: &HashSet<JobId>) -> (Vec<JobFacts>, Vec<JobId>) {
        let since = Timestamp::now().checked_sub(KEEP).ok();
        let list = self.0.jobs.list(&JobFilter { since, limit: Some(JOBS), ..JobFilter::default() });
        let (mut facts, mut ended) = (Vec::new(), Vec::new());
        for job in list.jobs.into_iter().filter(|job| !folded.contains(&job.job_id)) {
            if !matches!(job.kind.as_str(), "install" | "update" | "apply_patches" | "rollback")
                || job.status == JobStatus::Pending
            {
                continue;
            }
            let Some(job) = self.0.jobs.get(job.job_id).await else { continue };
            if job.status.is_terminal() {
                ended.push(job.job_id);
            }
            facts.push(facts_of(&job));
        }
        (facts, ended)
    }
}

fn facts_of(job: &Job) -> JobFacts {
    let planned = job.plan.iter().flat_map(|plan| &plan.changes).filter_map(|change| {
        Some(InVersion {
            name: change.name.clone(),
            architecture: change.architecture.clone(),
            version: change.new_version.clone()?,
        })
    });
    let installed =
        job.results.iter().filter(|result| result.done && !result.taken_back).filter_map(|result| {
            let what = InVersion {
                name: result.name.clone(),
                architecture: result.architecture.clone(),
                version: result.new_version.clone()?,
            };
            Some((what, result.old_version.clone()))
        });
    JobFacts {
        job: job.job_id,
        began: job.started_at.unwrap_or(job.created_at),
        ended: job.completed_at,
        planned: planned.collect(),
        installed: installed.collect(),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ErrorDetail> {
    tokio::task::spawn_blocking(work).await.map_err(|_| broken_off())
}

fn broken_off() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::ServiceUnhealthy, "the look at this host was broken off; ask again")
}
