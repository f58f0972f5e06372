//! Reading, confirming and cancelling jobs.

use patch_client::JobFilter;
use patch_types::{JobId, JobStatus};

use super::Context;
use crate::{args::JobsArgs, exit::Exit, render::job};

pub(super) async fn list(context: &Context, args: JobsArgs) -> anyhow::Result<Exit> {
    let filter = JobFilter { status: args.status, limit: args.limit, ..Default::default() };
    let answer = context.client.jobs(&filter).await?;
    context.out.answer(&answer.raw, |style| job::list(style, &answer))?;
    Ok(Exit::Done)
}

/// Shows a job. The exit code is about the request; `watch` tells how the job ended.
pub(super) async fn one(context: &Context, id: JobId) -> anyhow::Result<Exit> {
    let answer = context.client.job(id).await?;
    context.out.answer(&answer.raw, |style| job::detail(style, &answer, context.out.verbose))?;
    Ok(Exit::Done)
}

pub(super) async fn cancel(context: &Context, id: JobId) -> anyhow::Result<Exit> {
    let answer = context.client.cancel(id).await?;
    context.out.answer(&answer.raw, |_| match answer.status {
        JobStatus::Cancelled => format!("Job {id} is cancelled"),
        status if status.is_terminal() => format!("Job {id} had ended already: {status}"),
        status => format!("Job {id} is being cancelled; it is still {status}"),
    })?;
    Ok(Exit::Done)
}

pub(super) async fn confirm(context: &Context, id: JobId) -> anyhow::Result<Exit> {
    let answer = context.client.confirm(id).await?;
    context.out.answer(&answer.raw, |_| format!("Job {id} is confirmed: what it changed stays"))?;
    Ok(Exit::Done)
}
