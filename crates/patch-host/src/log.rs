//! What this program does itself, in the root side's own record.

use std::{
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use anyhow::Context;
use patch_audit::{AuditEvent, AuditKind, Bounds, Caller, append};
use patch_types::executor::{RECORD, STATE_DIR};

use crate::below::Below;

/// As the root side itself has them.
const BOUNDS: Bounds = Bounds { file_bytes: 8 << 20, files: 32 };

/// Records sentences about what is done. When this returns they are on disk. The directory has to be there.
///
/// # Errors
/// When they cannot be recorded: then it is not to be done.
pub(crate) fn record(files: &Below, sentences: &[String]) -> anyhow::Result<()> {
    let shown = files.name(RECORD);
    let cannot = || format!("nothing was changed, since it cannot be recorded in {}", shown.display());
    let directory = files.directory(STATE_DIR).with_context(cannot)?;
    let name = Path::new(RECORD).file_name().unwrap_or_default();
    let log = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    let user = std::env::var("SUDO_USER").ok().map(|user| {
        user.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(64).collect::<String>()
    });
    let by = user.filter(|user| !user.is_empty()).map_or_else(String::new, |user| format!(" (by {user})"));
    let events: Vec<AuditEvent> = sentences
        .iter()
        .map(|sentence| {
            let what = format!("linux-patch-host{by}: {sentence}");
            AuditEvent::new(AuditKind::SystemChanged { what }, &Caller::local())
        })
        .collect();
    append(&log, &events, &BOUNDS).with_context(cannot).map(drop)
}
