//! The host itself, read afresh for each request: a handful of small files.

use std::path::Path;

use patch_backends::{ReadError, apt, system};
use patch_types::api::{RebootState, SystemInfo};

/// What describes the host. Without a package database the rest is still true.
#[must_use]
pub fn info(root: &Path) -> SystemInfo {
    let os = system::os_release(root);
    let (pending_reboot, reboot_reasons) =
        reboot(root).map_or_else(|_| (false, Vec::new()), |state| (state.pending_reboot, state.reasons));
    SystemInfo {
        hostname: system::hostname(root),
        os: os.name,
        os_version: os.version_id,
        os_codename: os.codename,
        kernel: system::kernel_release(root),
        architecture: system::architecture(root),
        package_manager: "apt".to_owned(),
        last_update_check: apt::last_update_check(root),
        last_update_apply: apt::last_update_apply(root),
        pending_reboot,
        reboot_reasons,
        agent_version: crate::VERSION.to_owned(),
        boot_id: system::boot_id(root),
        uptime_seconds: system::uptime_seconds(root),
    }
}

/// Whether a reboot is due.
///
/// # Errors
/// When the package database, which knows the installed kernels, cannot be read.
pub fn reboot(root: &Path) -> Result<RebootState, ReadError> {
    Ok(system::reboot_state(root, &apt::Database::read_for_list(root)?))
}
