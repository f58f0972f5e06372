//! Reading the host and its agent.

use patch_types::api::HealthStatus;

use super::Context;
use crate::{
    exit::Exit,
    render::{clean, host},
};

pub(super) async fn info(context: &Context) -> anyhow::Result<Exit> {
    let answer = context.client.info().await?;
    context.out.answer(&answer.raw, |_| host::info(&answer))?;
    Ok(Exit::Done)
}

pub(super) async fn services(context: &Context, name: Option<&str>) -> anyhow::Result<Exit> {
    if let Some(name) = name {
        let answer = context.client.service(name).await?;
        context.out.answer(&answer.raw, |_| host::service(&answer))?;
    } else {
        let answer = context.client.services().await?;
        context.out.answer(&answer.raw, |style| host::services(style, &answer))?;
    }
    Ok(Exit::Done)
}

pub(super) async fn health(context: &Context) -> anyhow::Result<Exit> {
    let answer = context.client.health().await?;
    context.out.answer(&answer.raw, |style| host::health(style, &answer))?;
    Ok(if answer.status == HealthStatus::Unhealthy { Exit::Failed } else { Exit::Done })
}

pub(super) async fn metrics(context: &Context) -> anyhow::Result<Exit> {
    let text = context.client.metrics().await?;
    context.out.print(&clean::text(&text))?;
    Ok(Exit::Done)
}

pub(super) async fn openapi(context: &Context) -> anyhow::Result<Exit> {
    let text = context.client.openapi().await?;
    context.out.print(&clean::json(&text))?;
    Ok(Exit::Done)
}
