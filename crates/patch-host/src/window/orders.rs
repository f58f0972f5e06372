//! The reboots that were asked for through the API: files that the root side leaves. See [`patch_types::reboot`].

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context;
use jiff::Timestamp;
use patch_backends::ceiling;
use patch_policy::{reboot::Forced, window::Window};
use patch_types::{
    JobId,
    reboot::{OVER, QUEUED, QueuedReboot, REBOOTS_DIR, RebootOrder, RebootReport, TAKEN},
};

use super::machine::Machine;
use crate::screen::aside;

/// The freeze file unless that names another one.
const FREEZE: &str = "/etc/linux_patch_api/freeze";

/// The largest order that is read, in bytes.
const MAX_ORDER: u64 = 64 << 10;

/// What the ledger of causes knows an order by.
pub(super) fn fingerprint(order: &RebootOrder) -> String {
    format!("order {}", order.job)
}

/// What an order says, for people.
pub(super) fn sentence(order: &RebootOrder) -> String {
    let reason = order.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{} asked for it (job {}){reason}", order.by, order.job)
}

/// An order as it is shown.
pub(super) fn shown(order: &RebootOrder, is_under_way: bool) -> QueuedReboot {
    QueuedReboot {
        job_id: order.job,
        by: order.by.clone(),
        reason: order.reason.clone(),
        force: order.force,
        asked_at: order.at,
        not_before: order.not_before,
        is_under_way,
    }
}

/// When the window is open for an order: an instant that stays the same with each look.
pub(super) fn opens(order: &RebootOrder, window: &Window, now: Timestamp) -> Option<Timestamp> {
    let from = order.not_before.max(now);
    let opening = window.open_at(from).or_else(|| window.next_after(from))?;
    Some(opening.begins.max(order.not_before))
}

/// Who an order is for, in the words of the record.
pub(super) fn forced(order: &RebootOrder) -> Forced {
    let reason = order.reason.clone().unwrap_or_default();
    Forced { by: format!("{} (job {})", order.by, order.job), reason }
}

/// Whether root's limits allow an order now. All of them are checked by who leaves the orders.
fn admits(limits: &ceiling::Limits, root: &Path, force: bool) -> Result<(), String> {
    let (kind, name) = if force {
        (ceiling::Kind::ForcedReboot, "forced_reboot")
    } else {
        (ceiling::Kind::Reboot, "reboot")
    };
    if limits.operations.as_ref().is_some_and(|allowed| !allowed.contains(&kind)) {
        return Err(format!("/{} does not allow {name}", ceiling::FILE));
    }
    let freeze = limits.freeze_file.as_ref().map_or(FREEZE, ceiling::AbsolutePath::as_str);
    let freeze = freeze.trim_start_matches('/');
    match fs::symlink_metadata(root.join(freeze)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("/{freeze} cannot be looked at: {error}")),
        Ok(_) => Err(format!("/{freeze} freezes this host")),
    }
}

impl Machine {
    fn order_file(&self, job: JobId, suffix: &str) -> PathBuf {
        self.root.join(REBOOTS_DIR).join(format!("{job}.{suffix}"))
    }

    /// Whether an order may be carried out now: in its boot, in its time, and if root's limits still allow it. Who left it takes
    /// back what they forbid.
    pub(super) fn may_carry_out(&self, order: &RebootOrder, now: Timestamp, boot: &str) -> bool {
        if !order.is_due(now, self.uptime(), boot) {
            return false;
        }
        match ceiling::load(&self.root).and_then(|limits| admits(&limits, &self.root, order.force)) {
            Ok(()) => true,
            Err(why) => {
                aside(&format!("the order of job {} is not carried out: {why}", order.job));
                false
            }
        }
    }

    /// The orders that wait, oldest first.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub(super) fn queued(&self) -> anyhow::Result<Vec<RebootOrder>> {
        self.orders(QUEUED)
    }

    /// The orders that the host is rebooted for.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub(super) fn taken(&self) -> anyhow::Result<Vec<RebootOrder>> {
        self.orders(TAKEN)
    }

    fn orders(&self, suffix: &str) -> anyhow::Result<Vec<RebootOrder>> {
        let directory = self.root.join(REBOOTS_DIR);
        let unreadable = || format!("{} cannot be read", directory.display());
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(unreadable)?,
        };
        let mut orders = Vec::new();
        for entry in entries {
            let path = entry.with_context(unreadable)?.path();
            if path.extension().is_none_or(|extension| extension != suffix) {
                continue;
            }
            let mut text = String::new();
            let read = File::open(&path).and_then(|file| file.take(MAX_ORDER).read_to_string(&mut text));
            match read
                .map_err(anyhow::Error::from)
                .and_then(|_| Ok(serde_json::from_str::<RebootOrder>(&text)?))
            {
                // Somebody said what came of it, and was cut off before it was put away.
                Ok(order)
                    if path == self.order_file(order.job, suffix)
                        && self.order_file(order.job, OVER).exists() =>
                {
                    if let Err(error) = fs::remove_file(&path) {
                        aside(&format!("{} is over and cannot be removed: {error}", path.display()));
                    }
                }
                Ok(order) if path == self.order_file(order.job, suffix) => orders.push(order),
                Ok(order) => {
                    aside(&format!("{} is the order of job {}", path.display(), order.job));
                }
                // It was taken back at this moment, or is damaged: nothing is rebooted for it.
                Err(error) => aside(&format!("{} is passed over: {error:#}", path.display())),
            }
        }
        orders.sort_by_key(|order| order.job);
        Ok(orders)
    }

    /// Takes an order up; false if it was taken back by now.
    ///
    /// # Errors
    /// When that cannot be told.
    pub(super) fn take(&self, order: &RebootOrder) -> anyhow::Result<bool> {
        self.move_order(order, QUEUED, TAKEN)
    }

    /// Puts an order back among those that wait.
    ///
    /// # Errors
    /// When it cannot be put back.
    pub(super) fn put_back(&self, order: &RebootOrder) -> anyhow::Result<bool> {
        self.move_order(order, TAKEN, QUEUED)
    }

    fn move_order(&self, order: &RebootOrder, from: &str, to: &str) -> anyhow::Result<bool> {
        let (from, to) = (self.order_file(order.job, from), self.order_file(order.job, to));
        match fs::rename(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("{} cannot be moved", from.display())),
        }
        let directory = self.root.join(REBOOTS_DIR);
        File::open(&directory)
            .and_then(|directory| directory.sync_all())
            .with_context(|| format!("{} cannot be synced", directory.display()))?;
        Ok(true)
    }

    /// Says what came of an order, which is over with that.
    ///
    /// # Errors
    /// When it is not on disk.
    pub(super) fn report(&self, order: &RebootOrder, report: &RebootReport) -> anyhow::Result<()> {
        let path = self.order_file(order.job, OVER);
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec(report).map_err(io::Error::other)?;
            let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            // After the report is there: who looks for the order finds one of the two at any moment.
            for suffix in [QUEUED, TAKEN] {
                match fs::remove_file(self.order_file(order.job, suffix)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            File::open(self.root.join(REBOOTS_DIR))?.sync_all()
        };
        write().with_context(|| format!("{} cannot be written", path.display()))
    }
}
