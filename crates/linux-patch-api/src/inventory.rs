//! What is installed and what could be updated, kept ready to be sent.
//!
//! This module owns two caches. The list of packages is read from dpkg's database whenever that has changed, which
//! takes about a millisecond, so nothing but the finished JSON is kept. The set of updates comes from the package
//! manager's solver on the root side, which takes a second; it is asked again when something that its answer depends
//! on has changed. Until it has answered, the last known candidates are compared with what is installed now.
//! Whether a change is due, and making it, are left to others.

pub mod filter;
pub mod host;
mod render;
mod stamp;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use patch_backends::apt::versions;
use patch_types::{
    ErrorCode, ErrorDetail, Query,
    api::{PackageList, PatchSet},
    event::QueryResult,
};
use tokio::sync::{Notify, watch};

pub(crate) use self::stamp::Stamp;
use self::{filter::PackageFilter, render::Candidate};
use crate::executor::Executor;

/// How long a list waits for the solver when it cannot do without.
const WAIT: Duration = Duration::from_secs(20);

/// How long a list waits for the solver when nothing was ever known, so that the first answer after an installation is
/// complete. Without the root side it does not wait at all.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// How long changes are let settle before the solver is asked in the background.
const DEBOUNCE: Duration = Duration::from_secs(2);

/// How often at most a list looks whether the candidates are stale, and how long a failed solver is not waited for.
const RECHECK: Duration = Duration::from_secs(2);

/// A finished answer: the JSON of `data` and its strong entity tag.
#[derive(Debug, Clone)]
pub struct Cached {
    /// The JSON.
    pub body: Bytes,
    /// The tag, without quotes.
    pub etag: String,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Installed packages.
    pub installed: usize,
    /// Packages that are in no consistent state.
    pub broken: usize,
    /// Packages with an update.
    pub upgradable: usize,
    /// Packages with a security update.
    pub security: usize,
}

/// The rendered list, of one state of the database and one set of candidates.
#[derive(Debug)]
struct Listed {
    stamp: Stamp,
    generation: u64,
    cached: Arc<Cached>,
    installed: usize,
    broken: usize,
}

/// The solver's last answer.
#[derive(Debug)]
struct Known {
    stamp: Stamp,
    generation: u64,
    cached: Arc<Cached>,
    candidates: Vec<Candidate>,
    security: usize,
}

/// A question to the solver, and where its answer will be.
#[derive(Debug, Clone)]
struct Solving {
    /// What the host looked like before it was asked.
    stamp: Stamp,
    answer: watch::Receiver<Option<Result<Arc<Known>, ErrorDetail>>>,
}

#[derive(Debug, Default)]
struct State {
    listed: Option<Arc<Listed>>,
    known: Option<Arc<Known>>,
    /// When the candidates were last compared with what they depend on.
    checked: Option<Instant>,
    /// When the solver last failed.
    failed: Option<Instant>,
    /// The last question to the solver.
    solving: Option<Solving>,
}

struct Inner {
    root: PathBuf,
    executor: Executor,
    state: Mutex<State>,
    stale: Notify,
}

/// The packages of this host. Cheap to clone.
#[derive(Clone)]
pub struct Inventory(Arc<Inner>);

impl Inventory {
    /// The packages below the root prefix. Nothing is read yet.
    #[must_use]
    pub fn new(root: &Path, executor: Executor) -> Self {
        Self(Arc::new(Inner {
            root: root.to_owned(),
            executor,
            state: Mutex::default(),
            stale: Notify::new(),
        }))
    }

    /// Asks the solver at once, and again whenever a job has ended (the number of those that have is watched) or a
    /// request finds the candidates stale. Runs until it is dropped.
    pub async fn keep_fresh(self, mut ends: watch::Receiver<u64>) {
        let mut said = None;
        loop {
            let error = self.known_now().await.err().map(|e| e.message);
            // Requests ask again and again while the root side is away; the log hears it once.
            if let Some(error) = &error
                && said.as_ref() != Some(error)
            {
                tracing::warn!(%error, "the available updates could not be determined; the last known ones are shown");
            }
            said = error;
            tokio::select! {
                () = self.0.stale.notified() => {}
                Ok(()) = ends.changed() => {}
            }
            tokio::time::sleep(DEBOUNCE).await;
        }
    }

    /// The unfiltered list.
    ///
    /// # Errors
    /// When the package database cannot be read.
    pub async fn everything(&self) -> Result<Arc<Cached>, ErrorDetail> {
        self.first_candidates().await;
        self.notice_staleness();
        Ok(Arc::clone(&self.listed()?.cached))
    }

    /// The packages that a filter lets through.
    ///
    /// # Errors
    /// When the package database cannot be read, or the filter needs candidates and none were ever known.
    pub async fn select(&self, filter: &PackageFilter) -> Result<PackageList, ErrorDetail> {
        let known = if filter.needs_candidates() {
            match tokio::time::timeout(WAIT, self.known_now()).await {
                Ok(Ok(known)) => Some(known),
                Ok(Err(error)) => Some(self.known().ok_or(error)?),
                Err(_) => Some(self.known().ok_or_else(solver_is_slow)?),
            }
        } else {
            self.first_candidates().await;
            self.notice_staleness();
            self.known()
        };
        let candidates = known.as_ref().map_or(&[][..], |k| &k.candidates);
        let mut packages = render::packages(&self.0.root, candidates).map_err(|e| unreadable(&e))?;
        packages.retain(|p| filter.passes(p));
        filter.sort(&mut packages, versions::compare);
        let total = packages.len();
        Ok(PackageList { packages: filter::page(packages, filter.offset, filter.limit), total })
    }

    /// The available updates as the answer to `GET /patches`, from the cache when nothing has changed.
    ///
    /// # Errors
    /// When the root side cannot be asked.
    pub async fn patches(&self) -> Result<Arc<Cached>, ErrorDetail> {
        Ok(Arc::clone(&self.known_now().await?.cached))
    }

    /// The same as a value.
    ///
    /// # Errors
    /// As [`patches`](Self::patches).
    pub async fn patch_set(&self) -> Result<PatchSet, ErrorDetail> {
        let known = self.known_now().await?;
        serde_json::from_slice(&known.cached.body).map_err(|e| {
            ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                format!("the list of updates cannot be read again: {e}"),
            )
        })
    }

    /// What is known at this moment, without asking anybody but dpkg's files.
    ///
    /// # Errors
    /// When the package database cannot be read.
    pub fn counts(&self) -> Result<Counts, ErrorDetail> {
        let listed = self.listed()?;
        let known = self.known();
        Ok(Counts {
            installed: listed.installed,
            broken: listed.broken,
            upgradable: known.as_ref().map_or(0, |k| k.candidates.len()),
            security: known.as_ref().map_or(0, |k| k.security),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> Option<Arc<Known>> {
        self.state().known.clone()
    }

    /// The rendered list of this moment.
    fn listed(&self) -> Result<Arc<Listed>, ErrorDetail> {
        // The stamp comes first: a change in between makes it old, never the content.
        let stamp = Stamp::of_packages(&self.0.root);
        let known = {
            let state = self.state();
            let generation = state.known.as_ref().map_or(0, |k| k.generation);
            if let Some(listed) = &state.listed
                && listed.stamp == stamp
                && listed.generation == generation
            {
                return Ok(Arc::clone(listed));
            }
            state.known.clone()
        };
        let candidates = known.as_ref().map_or(&[][..], |k| &k.candidates);
        let packages = render::packages(&self.0.root, candidates).map_err(|e| unreadable(&e))?;
        let broken = packages.iter().filter(|p| p.status.is_broken()).count();
        let total = packages.len();
        let cached = Arc::new(cached(&PackageList { packages, total })?);
        let generation = known.map_or(0, |k| k.generation);
        let listed = Arc::new(Listed { stamp, generation, cached, installed: total, broken });
        self.state().listed = Some(Arc::clone(&listed));
        Ok(listed)
    }

    /// Waits a little for the candidates if none were ever known.
    async fn first_candidates(&self) {
        let wait = {
            let state = self.state();
            state.known.is_none() && state.failed.is_none_or(|at| at.elapsed() > RECHECK)
        };
        if wait {
            // What went wrong is said by the background task, and by whoever needs the candidates.
            let _ = tokio::time::timeout(FIRST_WAIT, self.known_now()).await;
        }
    }

    /// Has the solver asked in the background if its answer is out of date.
    fn notice_staleness(&self) {
        let mut state = self.state();
        if state.checked.is_some_and(|at| at.elapsed() < RECHECK) {
            return;
        }
        state.checked = Some(Instant::now());
        let known = state.known.clone();
        drop(state);
        if known.is_none_or(|k| k.stamp != Stamp::of_candidates(&self.0.root)) {
            self.0.stale.notify_one();
        }
    }

    /// The solver's answer for the present state of the host.
    async fn known_now(&self) -> Result<Arc<Known>, ErrorDetail> {
        let stamp = Stamp::of_candidates(&self.0.root);
        if let Some(known) = self.known_as_of(stamp) {
            return Ok(known);
        }
        let mut solving = self.solving();
        if solving.stamp != stamp {
            // It was begun before the last change. There is one question at a time, so it is waited for, not believed.
            let _ = solving.answer().await;
            if let Some(known) = self.known_as_of(Stamp::of_candidates(&self.0.root)) {
                return Ok(known);
            }
            solving = self.solving();
        }
        solving.answer().await
    }

    /// The question under way, or a new one. It is a task of its own, which goes on when nobody waits any more: another
    /// question meanwhile would share the root side's run of this one, and take its answer for a later state.
    fn solving(&self) -> Solving {
        let mut state = self.state();
        if let Some(solving) = state.solving.as_ref().filter(|s| !s.is_over()) {
            return solving.clone();
        }
        // The stamp comes first: a change while the solver works makes its answer old.
        let stamp = Stamp::of_candidates(&self.0.root);
        let (sender, answer) = watch::channel(None);
        let inventory = self.clone();
        tokio::spawn(async move {
            let answer = inventory.solve(stamp).await;
            if answer.is_err() {
                inventory.state().failed = Some(Instant::now());
            }
            sender.send_replace(Some(answer));
        });
        let solving = Solving { stamp, answer };
        state.solving = Some(solving.clone());
        solving
    }

    /// Asks the solver and keeps its answer as that for the state with this stamp.
    async fn solve(&self, stamp: Stamp) -> Result<Arc<Known>, ErrorDetail> {
        let QueryResult::Patches(set) = self.0.executor.query(Query::Patches).await? else {
            return Err(ErrorDetail::new(
                ErrorCode::ServiceUnhealthy,
                "the root side answered another question than that for the updates",
            ));
        };
        let cached = Arc::new(cached(&set)?);
        let security = set.security_updates;
        let candidates = render::candidates(set);
        let mut state = self.state();
        let generation = state.known.as_ref().map_or(1, |k| k.generation + 1);
        let known = Arc::new(Known { stamp, generation, cached, candidates, security });
        state.known = Some(Arc::clone(&known));
        state.failed = None;
        state.checked = Some(Instant::now());
        Ok(known)
    }

    fn known_as_of(&self, stamp: Stamp) -> Option<Arc<Known>> {
        self.known().filter(|k| k.stamp == stamp)
    }
}

impl Solving {
    fn is_over(&self) -> bool {
        // The sender is gone if the task was aborted.
        self.answer.borrow().is_some() || self.answer.has_changed().is_err()
    }

    async fn answer(&mut self) -> Result<Arc<Known>, ErrorDetail> {
        let answer = self.answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
        answer.unwrap_or_else(|| {
            Err(ErrorDetail::new(ErrorCode::ServiceUnhealthy, "the agent stopped before the solver answered"))
        })
    }
}

/// The JSON and its tag.
pub(crate) fn cached<T: serde::Serialize>(data: &T) -> Result<Cached, ErrorDetail> {
    let body = serde_json::to_vec(data).map_err(|e| {
        ErrorDetail::new(ErrorCode::ServiceUnhealthy, format!("the list cannot be written as JSON: {e}"))
    })?;
    use sha2::Digest as _;
    let digest = hex::encode(&sha2::Sha256::digest(&body)[..16]);
    // The vector's spare capacity would be kept as long as the cache.
    Ok(Cached { body: Bytes::from(body.into_boxed_slice()), etag: digest })
}

/// What a client is told when the package database cannot be read.
pub(crate) fn unreadable(error: &patch_backends::ReadError) -> ErrorDetail {
    let source = std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
    ErrorDetail::new(
        ErrorCode::ServiceUnhealthy,
        format!("{error}{source}; without the package database there is nothing to list"),
    )
}

fn solver_is_slow() -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::ServiceUnhealthy,
        format!("the solver did not answer within {} s; ask again shortly", WAIT.as_secs()),
    )
}
