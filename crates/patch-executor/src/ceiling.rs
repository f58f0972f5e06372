//! The most that this host lets anybody do through the agent, whoever asks. It is root's file, which neither the daemon
//! nor a manager can change.
//!
//! Going back by itself after a failure and finishing what was left unfinished are not bound by it: they only bring a
//! host into order.

use std::{
    fs, io,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

pub(crate) use patch_backends::ceiling::FILE;
use patch_backends::{
    apt::{Inventory, versions},
    ceiling::{self, Kind, Limits},
};
use patch_types::{Action, ErrorCode, ErrorDetail, Operation, Plan, PlannedChange};

/// The freeze file unless another one is named.
const FREEZE: &str = "/etc/linux_patch_api/freeze";

/// How much of a freeze file's text is told, in bytes.
const MAX_REASON: u64 = 500;

/// What may be done at most.
#[derive(Debug)]
pub(crate) struct Ceiling {
    root: PathBuf,
    limits: Limits,
}

impl Ceiling {
    /// Reads the file below a root. Without one there is no limit but the freeze file.
    ///
    /// # Errors
    /// When it cannot be relied upon: then nothing is to be changed.
    pub(crate) fn load(root: &Path) -> Result<Self, ErrorDetail> {
        let limits = ceiling::load(root).map_err(|why| invalid(&why))?;
        Ok(Self { root: root.to_owned(), limits })
    }

    /// Whether an operation of this kind may be begun now.
    ///
    /// # Errors
    /// `AUTHZ_FORBIDDEN` with the reason.
    pub(crate) fn admits(&self, operation: &Operation) -> Result<(), ErrorDetail> {
        let kind = Kind::of(operation);
        if self.limits.operations.as_ref().is_some_and(|allowed| !allowed.contains(&kind)) {
            let message = format!(
                "this host does not allow {} through the agent; nothing was changed. What it allows stands under \
                 operations in /{FILE}, which only root can change",
                match kind {
                    Kind::ForcedReboot => "forced_reboot",
                    Kind::SnapshotRollback => "snapshot_rollback",
                    _ => operation.kind(),
                }
            );
            return Err(ErrorDetail::new(ErrorCode::AuthzForbidden, message)
                .with("operation", operation.kind())
                .with("limit", "operations"));
        }
        if kind == Kind::Rollback {
            return Ok(());
        }
        self.frozen().map_or(Ok(()), |reason| {
            let path = self.freeze_file();
            let message = format!(
                "this host is frozen{}; nothing was changed. Only repairing and going back are done until root removes {path}",
                if reason.is_empty() { String::new() } else { format!(": {reason}") }
            );
            Err(ErrorDetail::new(ErrorCode::AuthzForbidden, message)
                .with("limit", "freeze_file")
                .with("path", path)
                .with("reason", reason))
        })
    }

    /// Whether a plan stays below the ceiling. Not for going back, which brings only what was there before.
    ///
    /// # Errors
    /// `AUTHZ_FORBIDDEN` with the first change that does not.
    pub(crate) fn check(&self, plan: &Plan, inventory: &Inventory) -> Result<(), ErrorDetail> {
        plan.changes.iter().try_for_each(|change| {
            self.check_origin(change)?;
            self.check_protected(change, inventory)
        })
    }

    fn check_origin(&self, change: &PlannedChange) -> Result<(), ErrorDetail> {
        let brings = matches!(
            change.action,
            Action::Install | Action::Upgrade | Action::Downgrade | Action::Reinstall
        );
        let Some(allowed) = self.limits.origins.as_ref().filter(|_| brings) else { return Ok(()) };
        let from = match &change.origin {
            Some(origin) if allowed.iter().any(|a| a.admits(origin)) => return Ok(()),
            Some(origin) => format!(
                "comes from origin {:?}, label {:?}, suite {:?}, component {:?}, site {:?}",
                origin.origin, origin.label, origin.suite, origin.component, origin.site
            ),
            None => "comes from no archive that an index names".to_owned(),
        };
        let name = &change.name;
        let version = change.new_version.as_ref().map(|v| format!(" {v}")).unwrap_or_default();
        let message = format!(
            "{name}{version} {from}, which this host does not allow; nothing was changed. The allowed archives stand under \
             origins in /{FILE}, which only root can change"
        );
        Err(ErrorDetail::new(ErrorCode::AuthzForbidden, message)
            .with("package", name.as_str())
            .with("limit", "origins"))
    }

    fn check_protected(&self, change: &PlannedChange, inventory: &Inventory) -> Result<(), ErrorDetail> {
        let name = change.name.name();
        let installed = inventory.database.get(&change.name.with_architecture(&change.architecture));
        let is_older = change.new_version.as_ref().is_some_and(|new| {
            installed
                .filter(|package| package.is_present())
                .is_some_and(|package| versions::compare(new.as_str(), package.version_text()).is_lt())
        });
        let what = if change.action.is_removal() {
            "removed"
        } else if is_older || change.action == Action::Downgrade {
            "downgraded"
        } else {
            return Ok(());
        };
        let Some(pattern) = self.limits.protected.iter().find(|pattern| pattern.matches(name)) else {
            return Ok(());
        };
        let message = format!(
            "{name} would be {what}, and this host protects it; nothing was changed. {:?} stands under protected in \
             /{FILE}, which only root can change",
            pattern.as_str()
        );
        Err(ErrorDetail::new(ErrorCode::AuthzForbidden, message)
            .with("package", name)
            .with("limit", "protected"))
    }

    fn freeze_file(&self) -> &str {
        self.limits.freeze_file.as_ref().map_or(FREEZE, |path| path.as_str())
    }

    /// Why the host is frozen, if it is; empty if nobody says.
    fn frozen(&self) -> Option<String> {
        let path = self.root.join(self.freeze_file().trim_start_matches('/'));
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(format!("{} cannot be looked at: {error}", path.display())),
            Ok(_) => Some(reason(&path).unwrap_or_default()),
        }
    }
}

/// The text of a freeze file on one line, if it is root's own.
fn reason(path: &Path) -> Option<String> {
    let mut text = Vec::new();
    // A final link is not followed: another one's directory may be named.
    let file = ceiling::open(path, rustix::fs::OFlags::NOFOLLOW).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.uid() != nix::unistd::geteuid().as_raw() {
        return None;
    }
    file.take(MAX_REASON).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Some(plain.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn invalid(why: &str) -> ErrorDetail {
    let message = format!(
        "the ceiling of this host is not valid, so nothing is changed: {why}. Correct the file, or remove it if there is to \
         be no ceiling"
    );
    ErrorDetail::new(ErrorCode::ConfigInvalid, message).with("file", format!("/{FILE}"))
}

#[cfg(test)]
#[path = "ceiling_tests.rs"]
mod tests;
