//! What comes of a change once the tool has ended: judged, kept, waited for to be confirmed, or taken back.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use patch_apply::apt::{
    archives,
    snapshot::{After, PackageKey, Snapshot},
};
use patch_types::{
    ErrorCode, ErrorDetail, EventKind, JobStatus, OnFailure, Operation, PackageName, Plan,
    event::{Ended, LogStream},
};

use crate::{
    change::{AGENT, Change, MOST_RESUMES, Stop, restore_marks},
    clock::Clock,
    decide::{self, Standing},
    health::{self, Baseline},
    journal::{Back, Failure, State, ToolEnd},
    settle, solver, stop, tool,
    verdict::{self, Judged},
};

impl Change<'_> {
    pub(crate) fn verify(&mut self, plan: Plan, tool: ToolEnd) -> Result<State, Stop> {
        // A dpkg that died leaves drafts also where nothing has to go back: because it never began, or was done.
        if tool.code != Some(0) {
            self.sweep_if_in_order(&plan);
        }
        let judged = self.look(&plan, &tool)?;
        let was_taken_back = !self.journal.record.taken_back.is_empty();
        let settled = judged.complete || (was_taken_back && is_settled(&judged));
        if !settled {
            return Ok(self.failed(plan, &tool, judged));
        }
        Ok(self.checked(plan, tool, judged))
    }

    /// What the database says of a change. One that cannot be read now is read by whoever takes the change up again, within
    /// bounds: a verdict that is not known is not given.
    fn look(&self, plan: &Plan, tool: &ToolEnd) -> Result<Judged, Stop> {
        verdict::look(self.paths.root(), &self.journal.record, plan, tool).map_err(|error| {
            if self.journal.record.resumed >= MOST_RESUMES {
                return Stop::End(verdict::unreadable(error, tool));
            }
            eprintln!("patch-executor: {}; the change is taken up again later", error.message);
            Stop::Suspended
        })
    }

    /// A change of which something stays, if the host is well with it.
    fn checked(&mut self, plan: Plan, tool: ToolEnd, judged: Judged) -> State {
        let is_hold = matches!(self.journal.record.operation, Operation::Hold(_));
        if !is_hold {
            // Before the host's health is looked at: what does not come up with the new code is a reason to go back.
            self.restart_services();
        }
        if !is_hold
            && self.has_way_back()
            && let Some(error) = self.unhealthy(&plan)
        {
            if matches!(self.journal.record.operation, Operation::Rollback(_)) {
                // It was to be undone, and that is done; what is not well then is said.
                self.remark(error.message);
            } else {
                let reason = error.message.clone();
                let first = Failure { status: JobStatus::Failed, exit_code: tool.code, error };
                self.journal.record.failure.get_or_insert(first);
                return self.everything_back(plan, &tool, judged, reason);
            }
        }
        self.stays(plan, tool, judged)
    }

    /// A change that stays as it is; unless it is to be confirmed first.
    fn stays(&mut self, plan: Plan, tool: ToolEnd, judged: Judged) -> State {
        let changed =
            judged.standing.iter().any(|standing| matches!(standing, Standing::Done | Standing::Failed));
        let is_change = !matches!(self.journal.record.operation, Operation::Hold(_) | Operation::Rollback(_));
        match self.journal.record.options.confirm_within {
            Some(seconds) if changed && is_change && self.has_way_back() => {
                // Whoever tries it out meanwhile may edit its configuration.
                self.record_after();
                let until = Timestamp::now() + SignedDuration::from_secs(i64::from(seconds));
                let clock = Clock::after(Duration::from_secs(u64::from(seconds)));
                State::Confirming { plan, tool, until, clock }
            }
            _ => self.well(&plan, &tool, judged),
        }
    }

    /// apt writes that a package is wanted before dpkg begins with it. One that was not touched in the end is not.
    fn restore_untouched_marks(&mut self, plan: &Plan, judged: &Judged) {
        let operation = &self.journal.record.operation;
        if matches!(operation, Operation::Hold(_) | Operation::Rollback(_)) {
            return;
        }
        let automatic = self.automatic();
        let was_automatic = |key: &PackageKey| automatic.contains(key);
        let mut names: Vec<PackageName> = plan
            .changes
            .iter()
            .zip(&judged.standing)
            .filter(|(change, standing)| {
                **standing == Standing::Untouched && was_automatic(&verdict::key_of(change))
            })
            .map(|(change, _)| change.name.with_architecture(&change.architecture))
            .collect();
        // What is named and was as wished already is in no plan.
        if let Operation::Install(install) = operation
            && judged.is_untouched(plan)
            && let Ok(inventory) = solver::inventory(self.paths.root())
        {
            let planned: BTreeSet<PackageKey> = plan.changes.iter().map(verdict::key_of).collect();
            let named = install.packages.iter().filter_map(|spec| inventory.database.get(&spec.name));
            for key in named.map(archives::key_of).filter(|key| was_automatic(key) && !planned.contains(key))
            {
                if let (Ok(name), Ok(architecture)) =
                    (key.name.parse::<PackageName>(), key.architecture.parse())
                {
                    names.push(name.with_architecture(&architecture));
                }
            }
        }
        restore_marks(self.paths.root(), &names, &mut self.events);
    }

    /// Whether nothing more may be begun.
    pub(crate) fn must_give_up(&self) -> bool {
        self.resumed || stop::is_asked() || Instant::now() >= self.deadline
    }

    /// The end of a change that stays as it is.
    fn well(&mut self, plan: &Plan, tool: &ToolEnd, judged: Judged) -> State {
        self.record_after();
        State::Ended { ended: verdict::conclude(&self.journal.record, plan, judged, tool) }
    }

    /// The end of a change after something went back.
    pub(crate) fn conclusion(&mut self, plan: &Plan) -> Result<Box<Ended>, Stop> {
        let tool = ToolEnd::default();
        let judged = self.look(plan, &tool)?;
        // What was restarted with code that is gone again.
        self.restart_services();
        self.record_after();
        Ok(verdict::conclude(&self.journal.record, plan, judged, &tool))
    }

    /// What is not well with the host although the packages are as planned.
    fn unhealthy(&mut self, plan: &Plan) -> Option<ErrorDetail> {
        let root = self.paths.root();
        let mut findings = Vec::new();
        if let Some(baseline) = self.baseline().filter(Baseline::is_of_this_boot) {
            let ours =
                plan.changes.iter().any(|change| change.name.name() == AGENT && !change.action.is_removal());
            if ours
                && baseline.agent_was_active()
                && let Err(finding) = health::agent_is_up(&self.settings, health::AGENT_PATIENCE)
            {
                findings.push(finding);
            }
            let mut excused = self.excused();
            if !ours {
                // Who killed or stopped the daemon meanwhile did not break a package: no change is undone for that.
                excused.insert(health::AGENT_UNIT.to_owned());
            }
            // Once it is known that it goes back, nothing is waited for.
            let patience = if findings.is_empty() { health::PATIENCE } else { Duration::ZERO };
            findings.extend(baseline.compare(root, &self.settings, &excused, patience));
        }
        if !self.settings.health_checks.is_empty() {
            health::wait_for_boot(root, self.baseline().as_ref());
        }
        let events = &mut self.events;
        findings.extend(health::run_checks(root, &self.settings.health_checks, &mut |line| {
            events.emit(EventKind::Log { stream: LogStream::Executor, line });
        }));
        if findings.is_empty() {
            return None;
        }
        let said: Vec<String> = findings.iter().map(|f| format!("{}: {}", f.what, f.detail)).collect();
        let message = format!("the packages are as planned, but the host is not well: {}", said.join("; "));
        Some(ErrorDetail::new(ErrorCode::PatchApplyError, message).with("findings", said))
    }

    /// Whether anything may go back.
    fn may_go_back(&self) -> bool {
        self.settings.rollback.auto
            && self.has_way_back()
            && !matches!(self.journal.record.operation, Operation::Hold(_))
    }

    /// Whether what failed is to stay for somebody to look at.
    fn is_kept(&self) -> bool {
        self.journal.record.options.on_failure == OnFailure::Keep
    }

    /// Whether what failed stays. A package that failed blocks nothing but itself; one whose dependencies are missing, or
    /// that apt installs or removes again in every later run, blocks every later change of the host, and nobody asked for
    /// that.
    fn stays_failed(&mut self) -> bool {
        if !self.may_go_back() {
            return true;
        }
        if !self.is_kept() {
            return false;
        }
        let why = match solver::unasked(self.paths.root()) {
            Ok(Ok(unasked)) if unasked.is_empty() => return true,
            Ok(Ok(unasked)) => format!("every later run of apt would change {}", unasked.join(", ")),
            Ok(Err(refusal)) => refusal.message,
            Err(error) => {
                self.remark(format!("whether it blocks later changes could not be asked: {}", error.message));
                return true;
            }
        };
        self.remark(format!(
            "what failed was to be kept, but it would block later changes ({why}); it goes back"
        ));
        false
    }

    fn everything_back(&mut self, plan: Plan, tool: &ToolEnd, judged: Judged, reason: String) -> State {
        if !self.may_go_back() || self.is_kept() {
            return self.stays(plan, tool.clone(), judged);
        }
        let scope = plan
            .changes
            .iter()
            .zip(&judged.standing)
            .filter(|(_, standing)| **standing != Standing::TakenBack)
            .map(|(change, _)| verdict::key_of(change))
            .collect();
        let back = Back {
            source: self.journal.record.id,
            scope,
            reason,
            attempts: 0,
            rest: Vec::new(),
            unconfirmed: false,
        };
        State::GoingBack { plan, back }
    }

    /// Not everything that was planned is so.
    fn failed(&mut self, plan: Plan, tool: &ToolEnd, judged: Judged) -> State {
        // At once: what is marked later, while the change waits to be confirmed, say, is somebody's wish.
        self.restore_untouched_marks(&plan, &judged);
        let mut failure = verdict::failure(&self.journal.record.operation, &judged, tool);
        if self.resumed {
            failure.error =
                settle::interrupted("while packages were being changed; the results say how each one is now");
        }
        let reason = failure.error.message.clone();
        self.journal.record.failure.get_or_insert(failure);
        if judged.is_untouched(&plan) && judged.standing.iter().all(|s| *s != Standing::TakenBack) {
            return self.well(&plan, tool, judged);
        }
        if matches!(self.journal.record.operation, Operation::Rollback(_)) {
            return self.well(&plan, tool, judged);
        }
        if self.stays_failed() {
            return self.stays(plan, tool.clone(), judged);
        }
        let groups = self.groups(&plan);
        let how = if tool.timed_out && !self.is_kept() {
            OnFailure::All
        } else {
            self.journal.record.options.on_failure
        };
        let choose =
            |may_go_on| decide::decide(how, &groups, &judged.standing, judged.harm_elsewhere, may_go_on);
        let mut decision = choose(!self.must_give_up());
        if !decision.rest.is_empty() && decision.rest.len() >= self.last_rest {
            decision = choose(false);
        }
        if !decision.rest.is_empty() {
            self.last_rest = decision.rest.len();
        }
        let rest: Vec<usize> = decision.rest.into_iter().collect();
        let scope: Vec<PackageKey> = decision
            .back
            .into_iter()
            .filter_map(|index| plan.changes.get(index))
            .map(verdict::key_of)
            .collect();
        if scope.is_empty() {
            if rest.is_empty() {
                return self.checked(plan, tool.clone(), judged);
            }
            return State::Applying { plan, auto: Vec::new(), only: Some(rest) };
        }
        let back =
            Back { source: self.journal.record.id, scope, reason, attempts: 0, rest, unconfirmed: false };
        State::GoingBack { plan, back }
    }

    /// Waits for somebody to say that all is well.
    pub(crate) fn confirm(
        &mut self,
        plan: Plan,
        tool: &ToolEnd,
        until: Timestamp,
        clock: Option<Clock>,
    ) -> Result<State, Stop> {
        let most = u64::from(self.journal.record.options.confirm_within.unwrap_or(0));
        // Within one boot no clock that is set counts. After another one it never waits longer than was asked for.
        let left = clock.and_then(|clock| clock.left()).unwrap_or_else(|| {
            let left = until.as_second().saturating_sub(Timestamp::now().as_second());
            Duration::from_secs(u64::try_from(left).unwrap_or(0))
        });
        let deadline = Instant::now() + left.min(Duration::from_secs(most));
        self.events.emit_durably(EventKind::Confirm { until });
        self.stand_aside();
        while !self.journal.is_kept() && Instant::now() < deadline {
            if stop::is_asked() {
                return Err(Stop::Suspended);
            }
            tool::pause();
        }
        // One place decides, so that nobody is told that it is kept when it goes back.
        let kept = self.journal.decide(false).unwrap_or_else(|_| self.journal.is_kept());
        if kept {
            let mut judged = self.look_since(&plan, tool)?;
            if !judged.complete {
                // Somebody else may be in the middle of it.
                self.wait_for_updater()?;
                judged = self.look_since(&plan, tool)?;
            }
            return Ok(self.well(&plan, tool, judged));
        }
        // What the updater has begun meanwhile ends first: half of it would go back.
        self.go_on_alone();
        self.wait_for_updater()?;
        let changed_since = self.changed_since(&plan);
        let mut message = format!("nobody confirmed the change within {most} s");
        if !changed_since.is_empty() {
            let named: Vec<&str> = changed_since
                .iter()
                .filter_map(|index| plan.changes.get(*index))
                .map(|change| change.name.name())
                .collect();
            let left = format!(
                "somebody else has changed packages of it since, so these and what belongs to them stay as they are: {}",
                named.join(", ")
            );
            self.remark(left.clone());
            message = format!("{message}; {left}");
        }
        let error = ErrorDetail::new(ErrorCode::JobTimeout, message.clone());
        let failure = Failure { status: JobStatus::Failed, exit_code: tool.code, error };
        self.journal.record.failure.get_or_insert(failure);
        let back_already = |key: &PackageKey| self.journal.record.taken_back.iter().any(|t| t.key == *key);
        let scope: Vec<PackageKey> = plan
            .changes
            .iter()
            .enumerate()
            .filter(|(index, _)| !changed_since.contains(index))
            .map(|(_, change)| verdict::key_of(change))
            .filter(|key| !back_already(key))
            .collect();
        if scope.is_empty() && !changed_since.is_empty() {
            return Ok(State::Ended { ended: self.conclusion(&plan)? });
        }
        let source = self.journal.record.id;
        let back = Back { source, scope, reason: message, attempts: 0, rest: Vec::new(), unconfirmed: true };
        Ok(State::GoingBack { plan, back })
    }

    /// The same as [`Self::look`], some time later.
    fn look_since(&self, plan: &Plan, tool: &ToolEnd) -> Result<Judged, Stop> {
        let judged = self.look(plan, tool)?;
        verdict::or_newer(self.paths.root(), &self.journal.record, plan, judged).or_else(|error| {
            eprintln!("patch-executor: {}; judged as it was planned", error.message);
            self.look(plan, tool)
        })
    }

    /// What of a plan somebody else has changed since it was carried out, as indices into its changes, with all that belongs to
    /// it: undoing that would undo what is not this change's.
    fn changed_since(&self, plan: &Plan) -> BTreeSet<usize> {
        let directory = self.journal.way_back();
        let (Ok(snapshot), Ok(left)) = (Snapshot::load(&directory), After::load(&directory)) else {
            return BTreeSet::new();
        };
        let now = match After::record(self.paths.root(), &snapshot) {
            Ok(now) => now,
            Err(error) => {
                eprintln!(
                    "patch-executor: whether somebody else has changed packages cannot be told: {error}"
                );
                return BTreeSet::new();
            }
        };
        others(plan, &self.groups(plan), &left, &now)
    }
}

/// The groups of which a package has another version now than a change has left.
fn others(plan: &Plan, groups: &[Vec<usize>], left: &After, now: &After) -> BTreeSet<usize> {
    let is_others = |index: &usize| {
        plan.changes.get(*index).map(verdict::key_of).is_some_and(|key| {
            left.versions.get(&key).is_some_and(|version| now.versions.get(&key) != Some(version))
        })
    };
    let alone = (0..plan.changes.len()).filter(|index| !groups.iter().any(|group| group.contains(index)));
    let alone = alone.filter(is_others);
    groups.iter().filter(|group| group.iter().any(is_others)).flatten().copied().chain(alone).collect()
}

/// Whether each of the plan's packages is either as planned or as before.
fn is_settled(judged: &Judged) -> bool {
    judged.harmed.is_empty()
        && judged.standing.iter().all(|standing| matches!(standing, Standing::Done | Standing::TakenBack))
}

#[cfg(test)]
mod tests {
    use patch_types::{Action, PlannedChange};

    use super::*;

    #[test]
    fn what_somebody_else_has_changed_since_stays_with_what_belongs_to_it() {
        let change = |name: &str| PlannedChange {
            name: name.parse().unwrap(),
            architecture: "amd64".parse().unwrap(),
            action: Action::Upgrade,
            old_version: Some("1".parse().unwrap()),
            new_version: Some("2".parse().unwrap()),
            archive_sha256: None,
            origin: None,
            security: false,
            archive_bytes: 0,
            disk_delta_bytes: 0,
        };
        let plan = Plan::of(["aa", "bb", "cc", "dd"].map(change).into());
        let after = |versions: &[(&str, Option<&str>)]| After {
            versions: versions
                .iter()
                .map(|(name, version)| {
                    let key = PackageKey { name: (*name).to_owned(), architecture: "amd64".to_owned() };
                    (key, version.map(str::to_owned))
                })
                .collect(),
            ..After::default()
        };
        let left = after(&[("aa", Some("2")), ("bb", Some("2")), ("cc", Some("2")), ("dd", Some("2"))]);
        let groups = vec![vec![0, 2], vec![1]];
        assert!(others(&plan, &groups, &left, &left).is_empty());
        let now = after(&[("aa", Some("3")), ("bb", Some("2")), ("cc", Some("2")), ("dd", None)]);
        assert_eq!(others(&plan, &groups, &left, &now), BTreeSet::from([0, 2, 3]));
        // Nothing is known of how it was left: nobody else's.
        assert!(others(&plan, &groups, &After::default(), &now).is_empty());
    }
}
