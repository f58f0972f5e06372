//! `cargo xtask openapi`: the checked-in OpenAPI document, written anew from the code.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use crate::workspace;

/// Runs the subcommand.
pub(crate) fn run() -> Result<()> {
    let root = workspace::root()?;
    let output = Command::new(workspace::cargo())
        .current_dir(&root)
        .args(["run", "--quiet", "--locked", "-p", "linux-patch-api", "--", "openapi"])
        .output()
        .context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "linux-patch-api openapi failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let path = root.join("openapi/linux-patch-api.json");
    fs::write(&path, &output.stdout).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}
