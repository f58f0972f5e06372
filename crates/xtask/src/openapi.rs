//! `cargo xtask openapi`: the checked-in OpenAPI document, written anew from the code.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace;

/// Runs the subcommand.
pub(crate) fn run() -> Result<()> {
    let root = workspace::root()?;
    let status = Command::new(workspace::cargo())
        .current_dir(&root)
        .args(["test", "--quiet", "--locked", "-p", "linux-patch-api", "--lib", "the_checked_in_document"])
        .env("UPDATE_OPENAPI", "1")
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the document could not be made; the test above says why");
    let path = root.join("openapi/linux-patch-api.json");
    println!("{}", path.display());
    Ok(())
}
