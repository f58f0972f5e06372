//! What the executor never does, whoever asks.

use patch_backends::apt::{Inventory, info::kernel_release};
use patch_types::{Action, ErrorCode, ErrorDetail, Plan};

/// The agent's own package. An older one may not understand what this one has on disk; going back does it properly.
const AGENT: &str = "linux-patch-api";

/// Packages without which a host cannot be reached or managed any more.
const PROTECTED: &[&str] =
    &[AGENT, "openssh-server", "dropbear", "systemd-sysv", "sysvinit-core", "dpkg", "apt"];

/// Whether a package is the running kernel, or its modules, which on Ubuntu are packages of their own.
fn belongs_to(name: &str, kernel: &str) -> bool {
    kernel_release(name) == Some(kernel)
        || ["linux-modules-", "linux-modules-extra-"]
            .iter()
            .any(|prefix| name.strip_prefix(prefix) == Some(kernel))
}

/// Refuses a plan that would remove an essential package, the running kernel, the SSH server or the agent.
pub(crate) fn removals(plan: &Plan, inventory: &Inventory) -> Result<(), ErrorDetail> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    for change in plan.changes.iter().filter(|change| change.action.is_removal()) {
        let name = change.name.name();
        let found = inventory.database.get(&change.name.with_architecture(&change.architecture));
        let reason = if found.is_some_and(|package| package.essential() || package.protected()) {
            "it is essential or protected"
        } else if belongs_to(name, &kernel) {
            "it is the running kernel"
        } else if PROTECTED.contains(&name) {
            "the host could not be managed without it"
        } else {
            continue;
        };
        return Err(ErrorDetail::new(
            ErrorCode::AuthzForbidden,
            format!(
                "the plan would remove {name}, which is never done through this agent: {reason}. Nothing was changed; \
                 remove it on the host itself if it really has to go"
            ),
        )
        .with("package", name));
    }
    Ok(())
}

/// The same, and refuses to bring the agent to an older version, which only undoing a job does.
pub(crate) fn check(plan: &Plan, inventory: &Inventory) -> Result<(), ErrorDetail> {
    removals(plan, inventory)?;
    let older =
        plan.changes.iter().find(|change| change.action == Action::Downgrade && change.name.name() == AGENT);
    older.map_or(Ok(()), |change| {
        let version = change.new_version.as_ref().map(|v| format!(" {v}")).unwrap_or_default();
        let message = format!(
            "the plan would bring {AGENT} to the older version{version}, which is only done by taking back the job that \
             brought the newer one: POST /api/v1/jobs/JOB/rollback. Nothing was changed"
        );
        Err(ErrorDetail::new(ErrorCode::AuthzForbidden, message).with("package", AGENT))
    })
}
