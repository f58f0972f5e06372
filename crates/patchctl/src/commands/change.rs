//! Changes: plan, ask, submit, follow.
//!
//! A person sees the plan and is asked; the request then carries the plan's hash, so that nothing else than what was
//! shown is done. A script is not asked.

use jiff::{SignedDuration, Timestamp};
use patch_client::{Answer, Client, Error, Submit};
use patch_types::{
    ErrorCode, JobId, JobStatus, Outcome, PackageName, Plan, PlanHash, RollbackMode,
    api::{ApplyRequest, InstallRequest, Job, RebootRequest, RemoveRequest, RollbackRequest, UpdateRequest},
};

use super::Context;
use crate::{
    args::{ApplyArgs, ChangeArgs, RebootArgs, RollbackArgs},
    exit::Exit,
    follow,
    output::confirm,
    render::{host, job, plan},
};

/// How old indexes may be before a plan is made on them: the age from which the agent fetches them by itself, which it
/// cannot do for a plan that has been approved.
const FRESH_FOR: SignedDuration = SignedDuration::from_hours(1);

/// For how many jobs, one after the other, a plan is held back at most. It says itself during which one it was made.
const MOST_WAITS: usize = 5;

/// A change that can be planned.
pub(super) enum Change {
    Install(InstallRequest),
    Update(PackageName, UpdateRequest),
    Remove(PackageName, RemoveRequest),
    Apply(ApplyRequest),
}

impl Change {
    async fn plan(&self, client: &Client) -> Result<Answer<Plan>, Error> {
        match self {
            Self::Install(request) => client.plan_install(request).await,
            Self::Update(name, request) => client.plan_update(name, request).await,
            Self::Remove(name, request) => client.plan_remove(name, request).await,
            Self::Apply(request) => client.plan_apply(request).await,
        }
    }

    async fn submit(&self, client: &Client) -> Result<Answer<Job>, Error> {
        // With a key, so that a lost answer does not make two jobs of one.
        let submit = &Submit::repeatable();
        match self {
            Self::Install(request) => client.install(request, submit).await,
            Self::Update(name, request) => client.update(name, request, submit).await,
            Self::Remove(name, request) => client.remove(name, request, submit).await,
            Self::Apply(request) => client.apply(request, submit).await,
        }
    }

    /// Has the request carry the hash of the approved plan; without one it is a request as it was typed.
    fn approve(&mut self, hash: Option<PlanHash>) {
        let place = match self {
            Self::Install(request) => &mut request.options.if_plan,
            Self::Update(_, request) => &mut request.if_plan,
            Self::Remove(_, request) => &mut request.if_plan,
            Self::Apply(request) => &mut request.if_plan,
        };
        *place = hash;
    }

    fn is_rehearsed(&self) -> bool {
        match self {
            Self::Install(request) => request.options.rehearse,
            Self::Update(_, request) => request.rehearse,
            Self::Remove(_, request) => request.rehearse,
            Self::Apply(request) => request.rehearse,
        }
    }

    /// A hold is undone as easily as it is set, so nobody is asked.
    fn is_hold(&self) -> bool {
        matches!(self, Self::Update(_, UpdateRequest { hold: Some(_), .. }))
    }
}

/// Whether the plan is shown and a yes is asked for first. A given hash means that a plan was approved before.
fn asks(person: bool, change: &Change, args: &ChangeArgs) -> bool {
    person && !args.yes && args.if_plan.is_none() && !change.is_hold()
}

pub(super) async fn run(context: &Context, mut change: Change, args: ChangeArgs) -> anyhow::Result<Exit> {
    let Context { client, out } = context;
    // A rehearsal that is all that is wanted is a job; nobody has to approve what changes nothing.
    if args.dry_run && change.is_rehearsed() {
        let job = change.submit(client).await?;
        if args.detach {
            return accepted(context, &job, true).await;
        }
        let Some(ended) = follow::accepted(client, out, job.job_id).await? else {
            return Ok(Exit::Interrupted);
        };
        // With its hash, by which the very same can be made.
        if let Some(rehearsed) = &ended.plan {
            out.remark(&format!("What was rehearsed:\n{}", plan::plan(&out.style, rehearsed).trim_end()));
        }
        return Ok(follow::told(out, &ended)?);
    }
    if args.dry_run {
        let Some(planned) = planned(context, &change).await? else { return Ok(Exit::Interrupted) };
        out.answer(&planned.raw, |style| plan::plan(style, &planned))?;
        return Ok(Exit::Done);
    }
    if asks(out.person, &change, &args) {
        let Some(planned) = planned(context, &change).await? else { return Ok(Exit::Interrupted) };
        out.print(&plan::plan(&out.style, &planned))?;
        return ask(context, change, planned.into_data(), args.detach).await;
    }
    if let Some(hash) = args.if_plan {
        change.approve(Some(hash));
    }
    match change.submit(client).await {
        Ok(job) if args.detach => accepted(context, &job, true).await,
        Ok(job) => {
            let Some(ended) = follow::accepted(client, out, job.job_id).await? else {
                return Ok(Exit::Interrupted);
            };
            let exit = follow::told(out, &ended)?;
            if let Some(now) = ended.plan.as_ref().filter(|_| has_drifted(&ended)) {
                out.remark(&format!(
                    "The plan when it was its turn:\n{}",
                    plan::plan(&out.style, now).trim_end()
                ));
            }
            Ok(exit)
        }
        Err(error) => {
            if let Some(now) = drifted(&error) {
                out.remark(&different(&error));
                out.remark(&format!("The plan of this moment:\n{}", plan::plan(&out.style, &now).trim_end()));
            }
            Err(error.into())
        }
    }
}

/// The plan of a host that nobody is changing: one that was made while a job was at work is made again when that has ended.
/// `None` if the user did not want to wait.
async fn planned(context: &Context, change: &Change) -> anyhow::Result<Option<Answer<Plan>>> {
    let Context { client, out } = context;
    let mut waited_for = Vec::new();
    loop {
        let planned = change.plan(client).await?;
        let Some(job) = to_wait_for(planned.during, &waited_for) else { return Ok(Some(planned)) };
        // One of root's own is not known here, and one that waits to be confirmed may do so for a day: the plan says itself
        // that it was made meanwhile.
        match client.job(job).await {
            Ok(found) if found.confirm_by.is_none() => {}
            _ => return Ok(Some(planned)),
        }
        out.notice(&format!("Job {job} is changing this host; the plan is made when it has ended."));
        if !follow::until_still(client, out, job).await? {
            return Ok(None);
        }
        waited_for.push(job);
    }
}

/// The job during which a plan was made, if it is worth waiting for: none a second time, and no endless row of them.
fn to_wait_for(during: Option<JobId>, waited_for: &[JobId]) -> Option<JobId> {
    during.filter(|job| waited_for.len() < MOST_WAITS && !waited_for.contains(job))
}

/// Asks whether to carry out a plan that was shown. If it is outdated by then, or when it is its turn, shows what is different
/// and asks again.
async fn ask(context: &Context, mut change: Change, mut plan: Plan, detach: bool) -> anyhow::Result<Exit> {
    let Context { client, out } = context;
    loop {
        if plan.is_empty() {
            return Ok(Exit::Done);
        }
        if !confirm(&format!("Go ahead on {}?", client.address()))? {
            out.remark("Nothing was changed.");
            return Ok(Exit::Stopped);
        }
        change.approve(Some(plan.hash.clone()));
        match change.submit(client).await {
            Ok(job) if detach => return accepted(context, &job, true).await,
            Ok(job) => {
                let Some(ended) = follow::accepted(client, out, job.job_id).await? else {
                    return Ok(Exit::Interrupted);
                };
                if !has_drifted(&ended) {
                    return Ok(follow::told(out, &ended)?);
                }
                out.remark("Nothing was changed: when it was this change's turn the plan was another one.");
                change.approve(None);
                let Some(now) = planned(context, &change).await? else { return Ok(Exit::Interrupted) };
                out.print(&plan::difference(&out.style, &plan, &now))?;
                plan = now.into_data();
            }
            Err(error) => {
                let Some(now) = drifted(&error) else { return Err(error.into()) };
                out.remark("Nothing was changed: the plan is another one by now.");
                out.print(&plan::difference(&out.style, &plan, &now))?;
                plan = now;
            }
        }
    }
}

/// The plan of this moment, if a request was refused because it approved another one.
fn drifted(error: &Error) -> Option<Plan> {
    match error {
        Error::Api { detail, .. } if detail.code == ErrorCode::PlanDrift => {
            serde_json::from_value(detail.details.get("plan")?.clone()).ok()
        }
        _ => None,
    }
}

/// Whether a job found another plan than the approved one when it was its turn, and did nothing for that reason.
fn has_drifted(job: &Job) -> bool {
    job.status == JobStatus::Failed
        && job.outcome.is_none_or(|outcome| outcome == Outcome::Unchanged)
        && job.error_detail.as_ref().is_some_and(|error| error.code == ErrorCode::PlanDrift)
}

/// What is different from the approved plan, a line a package, if the agent remembers that one.
fn different(error: &Error) -> String {
    let mut text = "The plan is another one than was approved.".to_owned();
    let Error::Api { detail, .. } = error else { return text };
    let Some(difference) = detail.details.get("difference") else { return text };
    for (field, word) in [("removed", "not any more"), ("added", "new"), ("changed", "changed")] {
        let lines = difference.get(field).and_then(|lines| lines.as_array()).into_iter().flatten();
        for line in lines.filter_map(|line| line.as_str()) {
            text.push_str(&format!("\n  {word}: {line}"));
        }
    }
    text
}

pub(super) async fn apply(context: &Context, args: ApplyArgs) -> anyhow::Result<Exit> {
    let Context { client, out } = context;
    let request = ApplyRequest {
        packages: args.packages,
        security_only: args.security_only,
        exclude: args.exclude,
        allow_removals: args.allow_removals,
        allow_reboot: args.allow_reboot,
        reboot_delay_minutes: args.reboot_delay,
        on_failure: args.back.on_failure.map(Into::into),
        confirm_within: args.back.confirm_within,
        rehearse: args.back.first.rehearse,
        unrehearsed: args.back.first.unrehearsed.map(Into::into),
        dry_run: args.change.dry_run,
        ..Default::default()
    };
    let change = Change::Apply(request);
    if args.refresh {
        out.remark("Fetching the indexes first.");
        let job = client.refresh(&Submit::repeatable()).await?;
        let Some(ended) = follow::step(client, out, job.job_id).await? else { return Ok(Exit::Interrupted) };
        // Its record is not the answer to what was asked, so only its failure is shown.
        if Exit::of_job(&ended) != Exit::Done {
            out.answer(&ended.raw, |style| job::ending(style, &ended, out.verbose))?;
            return Ok(Exit::of_job(&ended));
        }
    } else if !args.change.dry_run && asks(out.person, &change, &args.change) {
        let fetched = client.info().await?.last_update_check;
        if is_outdated(fetched, Timestamp::now()) {
            let age = if fetched.is_some() { "are more than an hour old" } else { "were never fetched" };
            out.remark(&format!("The host's indexes {age}; fetching them first."));
            if !freshen(context).await? {
                return Ok(Exit::Interrupted);
            }
        }
    }
    run(context, change, args.change).await
}

fn is_outdated(fetched: Option<Timestamp>, now: Timestamp) -> bool {
    fetched.is_none_or(|fetched| now.duration_since(fetched) > FRESH_FOR)
}

/// Has the indexes fetched before a plan is made. Without fresh ones the plan is still worth seeing, so a failure is only
/// said. `false` if the user did not want to wait.
async fn freshen(context: &Context) -> anyhow::Result<bool> {
    let Context { client, out } = context;
    let failure = match client.refresh(&Submit::repeatable()).await {
        Ok(job) => match follow::step(client, out, job.job_id).await? {
            None => return Ok(false),
            Some(ended) if Exit::of_job(&ended) == Exit::Done => return Ok(true),
            Some(ended) => ended.error.clone().unwrap_or_else(|| format!("the job was {}", ended.status)),
        },
        Err(error) => error.to_string(),
    };
    out.remark(&format!("They could not be fetched: {failure}\nThe plan is made from the old ones."));
    Ok(true)
}

pub(super) async fn refresh(context: &Context, detach: bool) -> anyhow::Result<Exit> {
    let job = context.client.refresh(&Submit::repeatable()).await?;
    accepted(context, &job, detach).await
}

/// Reboots the host, or queues that. A person sees how the host stands, and is asked.
pub(super) async fn reboot(context: &Context, args: RebootArgs) -> anyhow::Result<Exit> {
    let Context { client, out } = context;
    if args.status {
        let state = client.reboot_state().await?;
        out.answer(&state.raw, |_| host::reboot(&state))?;
        return Ok(Exit::Done);
    }
    if out.person && !args.yes {
        let state = client.reboot_state().await?;
        out.print(&host::reboot(&state))?;
        let when = if args.force { "now" } else { "in its window" };
        if !confirm(&format!("Reboot {} {when}?", client.address()))? {
            out.remark("Nothing was changed.");
            return Ok(Exit::Stopped);
        }
    }
    let request = RebootRequest { delay_seconds: args.delay, reason: args.reason, force: args.force };
    let job = client.reboot(&request, &Submit::repeatable()).await?;
    if !args.force && !args.detach {
        out.remark(&format!("It waits for the reboot window; `patchctl watch {}` follows it.", job.job_id));
    }
    accepted(context, &job, args.detach || !args.force).await
}

/// Undoes a job. A person sees what it changed and is asked.
pub(super) async fn rollback(context: &Context, args: RollbackArgs) -> anyhow::Result<Exit> {
    let Context { client, out } = context;
    let RollbackArgs { id, force, snapshot, dry_run, if_plan, yes, detach } = args;
    let mode = if snapshot { RollbackMode::Snapshot } else { RollbackMode::Packages };
    let mut request = RollbackRequest { force, mode, dry_run: false, if_plan };
    if dry_run || (snapshot && out.person && request.if_plan.is_none()) {
        let planned = client.plan_rollback(id, &request).await?;
        if dry_run {
            out.answer(&planned.raw, |style| plan::plan(style, &planned))?;
            return Ok(Exit::Done);
        }
        out.print(&plan::plan(&out.style, &planned))?;
        if !confirm(&format!("Take all of this back on {}?", client.address()))? {
            out.remark("Nothing was changed.");
            return Ok(Exit::Stopped);
        }
        request.if_plan = Some(planned.into_data().hash);
    } else if out.person && !yes && request.if_plan.is_none() {
        let undone = client.job(id).await?;
        out.print(&job::changed(&out.style, &undone))?;
        if !confirm(&format!("Undo this on {}?", client.address()))? {
            out.remark("Nothing was changed.");
            return Ok(Exit::Stopped);
        }
    }
    let job = client.rollback(id, &request, &Submit::repeatable()).await?;
    accepted(context, &job, detach).await
}

async fn accepted(context: &Context, job: &Answer<Job>, detach: bool) -> anyhow::Result<Exit> {
    let Context { client, out } = context;
    if detach {
        out.answer(&job.raw, |_| job.job_id.to_string())?;
        return Ok(Exit::Done);
    }
    let Some(ended) = follow::accepted(client, out, job.job_id).await? else { return Ok(Exit::Interrupted) };
    Ok(follow::told(out, &ended)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_person_is_asked_and_only_when_it_matters() {
        let quiet = ChangeArgs { dry_run: false, if_plan: None, yes: false, detach: false };
        let yes = ChangeArgs { yes: true, ..quiet.clone() };
        let approved = ChangeArgs { if_plan: Some(PlanHash::of(&[])), ..quiet.clone() };
        let apply = Change::Apply(ApplyRequest::default());
        let hold =
            Change::Update("apt".parse().unwrap(), UpdateRequest { hold: Some(true), ..Default::default() });
        assert!(asks(true, &apply, &quiet));
        assert!(!asks(false, &apply, &quiet));
        assert!(!asks(true, &apply, &yes));
        assert!(!asks(true, &apply, &approved));
        assert!(!asks(true, &hold, &quiet));
    }

    #[test]
    fn no_job_is_waited_for_twice_and_no_endless_row_of_them() {
        let jobs: Vec<_> = (0..=MOST_WAITS)
            .map(|n| format!("01890000-0000-7000-8000-{n:012}").parse::<JobId>().unwrap())
            .collect();
        assert_eq!(to_wait_for(None, &[]), None);
        assert_eq!(to_wait_for(Some(jobs[0]), &[]), Some(jobs[0]));
        assert_eq!(to_wait_for(Some(jobs[0]), &jobs[..2]), None);
        assert_eq!(to_wait_for(Some(jobs[2]), &jobs[..2]), Some(jobs[2]));
        assert_eq!(to_wait_for(Some(jobs[MOST_WAITS]), &jobs[..MOST_WAITS]), None);
    }

    #[test]
    fn indexes_are_fetched_where_the_agent_would() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let at = |text: &str| Some(text.parse().unwrap());
        assert!(is_outdated(None, now));
        assert!(is_outdated(at("2026-01-01T10:59:59Z"), now));
        assert!(!is_outdated(at("2026-01-01T11:00:01Z"), now));
        assert!(!is_outdated(at("2026-01-01T12:30:00Z"), now), "a clock that is ahead");
    }

    #[test]
    fn a_drift_brings_the_plan_of_the_moment() {
        let plan = Plan::of(Vec::new());
        let error = |code, detail: &Plan| Error::Api {
            status: 409,
            detail: Box::new(
                patch_types::ErrorDetail::new(code, "x").with("plan", serde_json::to_value(detail).unwrap()),
            ),
            request_id: Default::default(),
        };
        assert_eq!(drifted(&error(ErrorCode::PlanDrift, &plan)), Some(plan.clone()));
        assert_eq!(drifted(&error(ErrorCode::JobConflict, &plan)), None);
    }

    #[test]
    fn a_job_that_did_something_else_has_not_drifted() {
        use crate::render::job::tests::job;
        let ended = |status, outcome, code| Job {
            outcome,
            error_detail: Some(patch_types::ErrorDetail::new(code, "x")),
            ..job(status)
        };
        assert!(has_drifted(&ended(JobStatus::Failed, Some(Outcome::Unchanged), ErrorCode::PlanDrift)));
        assert!(has_drifted(&ended(JobStatus::Failed, None, ErrorCode::PlanDrift)));
        assert!(!has_drifted(&ended(JobStatus::Failed, Some(Outcome::RolledBack), ErrorCode::PlanDrift)));
        assert!(!has_drifted(&ended(JobStatus::Failed, Some(Outcome::Unchanged), ErrorCode::LockTimeout)));
        assert!(!has_drifted(&ended(JobStatus::Completed, Some(Outcome::Unchanged), ErrorCode::PlanDrift)));
    }

    #[test]
    fn a_drift_tells_what_is_different_if_the_agent_does() {
        let error = |difference: serde_json::Value| Error::Api {
            status: 409,
            detail: Box::new(
                patch_types::ErrorDetail::new(ErrorCode::PlanDrift, "x").with("difference", difference),
            ),
            request_id: Default::default(),
        };
        let full = serde_json::json!({"added": ["upgrade aa:all 1 -> 2"], "removed": ["remove bb:all 1 -> -"], "changed": []});
        assert_eq!(
            different(&error(full)),
            "The plan is another one than was approved.\n  not any more: remove bb:all 1 -> -\n  new: upgrade aa:all 1 -> 2"
        );
        for odd in [serde_json::json!(null), serde_json::json!({"added": 7}), serde_json::json!([1])] {
            assert_eq!(different(&error(odd)), "The plan is another one than was approved.");
        }
    }

    #[test]
    fn an_approved_plan_goes_with_the_request() {
        let mut change = Change::Apply(ApplyRequest::default());
        change.approve(Some(PlanHash::of(&[])));
        let approved = |change: &Change| match change {
            Change::Apply(request) => request.if_plan.clone(),
            _ => panic!("apply"),
        };
        assert_eq!(approved(&change), Some(PlanHash::of(&[])));
        change.approve(None);
        assert_eq!(approved(&change), None);
    }
}
