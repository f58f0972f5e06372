//! Changes: plan, ask, submit, follow.
//!
//! A person sees the plan and is asked; the request then carries the plan's hash, so that nothing else than what was
//! shown is done. A script is not asked.

use patch_client::{Answer, Client, Error, Submit};
use patch_types::{
    PackageName, Plan, PlanHash,
    api::{ApplyRequest, InstallRequest, Job, RemoveRequest, UpdateRequest},
};

use super::Context;
use crate::{
    args::{ApplyArgs, ChangeArgs},
    exit::Exit,
    follow,
    output::confirm,
    render::plan,
};

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

    fn approve(&mut self, hash: PlanHash) {
        let place = match self {
            Self::Install(request) => &mut request.options.if_plan,
            Self::Update(_, request) => &mut request.if_plan,
            Self::Remove(_, request) => &mut request.if_plan,
            Self::Apply(request) => &mut request.if_plan,
        };
        *place = Some(hash);
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
    if args.dry_run {
        let planned = change.plan(client).await?;
        out.answer(&planned.raw, |style| plan::plan(style, &planned))?;
        return Ok(Exit::Done);
    }
    if asks(out.person, &change, &args) {
        let planned = change.plan(client).await?;
        out.print(&plan::plan(&out.style, &planned))?;
        if planned.is_empty() {
            return Ok(Exit::Done);
        }
        if !confirm(&format!("Go ahead on {}?", client.address()))? {
            out.remark("Nothing was changed.");
            return Ok(Exit::Stopped);
        }
        change.approve(planned.into_data().hash);
    } else if let Some(hash) = args.if_plan {
        change.approve(hash);
    }
    let job = change.submit(client).await?;
    accepted(context, &job, args.detach).await
}

pub(super) async fn apply(context: &Context, args: ApplyArgs) -> anyhow::Result<Exit> {
    if args.refresh {
        let job = context.client.refresh(&Submit::repeatable()).await?;
        // Its record is not the answer to what was asked, so only its failure is shown.
        let ended = context.client.follow_to_end(job.job_id, |_| {}).await?;
        if Exit::of_job(&ended) != Exit::Done {
            context.out.answer(&ended.raw, |style| crate::render::job::ending(style, &ended, false))?;
            return Ok(Exit::of_job(&ended));
        }
    }
    let request = ApplyRequest {
        packages: args.packages,
        security_only: args.security_only,
        exclude: args.exclude,
        allow_removals: args.allow_removals,
        ..Default::default()
    };
    run(context, Change::Apply(request), args.change).await
}

pub(super) async fn refresh(context: &Context, detach: bool) -> anyhow::Result<Exit> {
    let job = context.client.refresh(&Submit::repeatable()).await?;
    accepted(context, &job, detach).await
}

async fn accepted(context: &Context, job: &Answer<Job>, detach: bool) -> anyhow::Result<Exit> {
    let Context { client, out } = context;
    if detach {
        out.answer(&job.raw, |_| job.job_id.to_string())?;
        return Ok(Exit::Done);
    }
    out.remark(&format!("Job {}", job.job_id));
    follow::to_end(client, out, job.job_id).await
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
    fn an_approved_plan_goes_with_the_request() {
        let mut change = Change::Apply(ApplyRequest::default());
        change.approve(PlanHash::of(&[]));
        let Change::Apply(request) = change else { panic!("apply") };
        assert_eq!(request.if_plan, Some(PlanHash::of(&[])));
    }
}
