//! Reading packages.

use patch_client::{PackageFilter, PackageState};
use patch_types::PackageName;

use super::Context;
use crate::{
    args::{PackagesArgs, StateArgs},
    exit::Exit,
    render::packages,
};

pub(super) async fn list(context: &Context, args: PackagesArgs) -> anyhow::Result<Exit> {
    let answer = context.client.packages(&filter(args)).await?;
    context.out.answer(&answer.raw, |style| packages::list(style, &answer))?;
    Ok(Exit::Done)
}

pub(super) async fn one(context: &Context, name: &PackageName) -> anyhow::Result<Exit> {
    let answer = context.client.package(name).await?;
    context.out.answer(&answer.raw, |style| packages::detail(style, &answer, context.out.verbose))?;
    Ok(Exit::Done)
}

fn filter(args: PackagesArgs) -> PackageFilter {
    let status = match args.state {
        StateArgs { upgradable: true, .. } => Some(PackageState::Upgradable),
        StateArgs { held: true, .. } => Some(PackageState::Held),
        StateArgs { broken: true, .. } => Some(PackageState::Broken),
        StateArgs { all: true, .. } => Some(PackageState::All),
        _ => None,
    };
    PackageFilter {
        name: args.pattern,
        status,
        sort: Some(args.sort.into()),
        descending: args.reverse,
        limit: args.limit,
        ..Default::default()
    }
}
