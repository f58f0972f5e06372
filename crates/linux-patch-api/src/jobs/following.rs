//! The reboot that follows a job of patches with `allow_reboot`: queued for the reboot window, if what the job changed asks
//! for one. It is a job of its own, for the same client.

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use patch_backends::system;
use patch_types::{
    ChangeOptions, ErrorDetail, JobId, Operation, Outcome, Query,
    api::{ApplyRequest, FollowingReboot},
    event::{Ended, QueryResult},
    operation::Reboot,
    reboot::{MAX_DELAY_SECONDS, MAX_REASON},
};
use sha2::{Digest as _, Sha256};

use super::{Idempotency, Jobs, Submission, record::Record};
use crate::inventory::host;

/// The agent stops: the next start finds the job's end again, and what follows it.
pub(super) struct Stopping;

/// After how many minutes a reboot may follow a job, if one was asked for.
fn wish(record: &Record) -> Option<u32> {
    let head = &record.head;
    if !matches!(head.operation, Operation::ApplyPatches(_)) {
        return None;
    }
    let request: ApplyRequest = serde_json::from_value(head.job.request.clone()).ok()?;
    request.allow_reboot.then(|| request.reboot_delay_minutes.unwrap_or_default())
}

/// Whether the host, which has run for so long (zero if that is not known), was booted after an instant.
fn is_rebooted_since(at: Timestamp, now: Timestamp, uptime: Duration) -> bool {
    // The kernel tells whole seconds, and a boot takes longer than one.
    let ago = uptime.saturating_add(Duration::from_secs(1));
    !uptime.is_zero()
        && SignedDuration::try_from(ago)
            .ok()
            .and_then(|ago| now.checked_sub(ago).ok())
            .is_some_and(|began| at < began)
}

impl Jobs {
    /// Queues the reboot that follows a job which has just ended. What became of that; none if nobody asked for it.
    pub(super) async fn follow_with_reboot(
        &self,
        record: &Record,
        ended: &Ended,
        at: Timestamp,
    ) -> Result<Option<FollowingReboot>, Stopping> {
        let Some(minutes) = wish(record) else { return Ok(None) };
        // The end may be found days later, by an agent that was not there.
        let uptime = Duration::from_secs(system::uptime_seconds(self.inner.executor.root()));
        if is_rebooted_since(at, Timestamp::now(), uptime) {
            let message = "the host has been rebooted since the job ended, so no reboot is queued".to_owned();
            return Ok(Some(FollowingReboot { needed: false, job_id: None, message }));
        }
        let reasons = self.asks_for_reboot(record, ended);
        if reasons.is_empty() {
            let message = "what the job changed asks for no reboot, so none is queued".to_owned();
            return Ok(Some(FollowingReboot { needed: false, job_id: None, message }));
        }
        let queued = self.queue_reboot(record, minutes, &reasons).await;
        if queued.is_err() && self.inner.stop.is_cancelled() {
            return Err(Stopping);
        }
        let (job_id, message) = match queued {
            Ok((job, message)) => (Some(job), message),
            Err(error) => (None, format!("a reboot is needed, and none is queued: {}", error.message)),
        };
        Ok(Some(FollowingReboot { needed: true, job_id, message }))
    }

    /// What of a job's changes asks for a reboot.
    fn asks_for_reboot(&self, record: &Record, ended: &Ended) -> Vec<String> {
        let done = ended.results.iter().filter(|result| result.done && !result.taken_back);
        let names: BTreeSet<&str> = done.map(|result| result.name.name()).collect();
        if names.is_empty() || !matches!(ended.outcome, Some(Outcome::Applied | Outcome::Partial)) {
            return Vec::new();
        }
        let mut reasons = Vec::new();
        // Without a package database the plan is still known.
        if let Ok(state) = host::reboot(self.inner.executor.root()) {
            let asked = state.packages.iter().filter(|package| names.contains(package.as_str()));
            reasons.extend(asked.map(|package| format!("{package} asked for it")));
            if names.iter().any(|name| name.starts_with("linux-image-")) {
                let is_kernel = |reason: &&String| !reason.contains("/run/reboot-required");
                reasons.extend(state.reasons.iter().filter(is_kernel).cloned());
            }
        }
        let is_planned = record.plan.as_ref().is_some_and(|plan| plan.needs_reboot);
        if reasons.is_empty() && is_planned && ended.outcome == Some(Outcome::Applied) {
            reasons.push("what was changed is known to need it".to_owned());
        }
        reasons
    }

    async fn queue_reboot(
        &self,
        record: &Record,
        minutes: u32,
        reasons: &[String],
    ) -> Result<(JobId, String), ErrorDetail> {
        let status = match self.inner.executor.query(Query::RebootWindow).await? {
            QueryResult::RebootWindow(status) => status,
            _ => {
                let message = "the root side answered another question";
                return Err(ErrorDetail::new(patch_types::ErrorCode::ServiceUnhealthy, message));
            }
        };
        if let Some(objection) = status.objection() {
            return Err(ErrorDetail::new(patch_types::ErrorCode::RebootWindowClosed, objection));
        }
        if let Some(queued) = status.queued.iter().find(|queued| !queued.force) {
            let job = queued.job_id;
            let what = if queued.is_under_way {
                format!("a reboot is under way already, for job {job}, and serves for this as well")
            } else {
                format!(
                    "a reboot is queued for the reboot window already, as job {job}, not before {:.0}; it serves for this as well",
                    queued.not_before
                )
            };
            return Ok((job, what));
        }
        let job = &record.head.job;
        let why = reasons.join("; ");
        let reason: String = format!("job {}: {why}", job.job_id)
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_REASON)
            .collect();
        let delay_seconds = (u64::from(minutes) * 60).min(MAX_DELAY_SECONDS);
        let request = serde_json::json!({
            "delay_seconds": delay_seconds, "reason": reason, "force": false, "after_job": job.job_id
        });
        // Whoever looks at the end of the job a second time finds the reboot that followed it the first time.
        let key = format!("reboot-after-{}", job.job_id);
        let body_sha256 = hex::encode(Sha256::digest(key.as_bytes()));
        let submission = Submission {
            operation: Operation::Reboot(Reboot {
                delay_seconds,
                reason: Some(reason),
                boot: status.boot,
                ..Reboot::default()
            }),
            limits: None,
            options: ChangeOptions::default(),
            requester: job.requested_by.clone(),
            request,
            if_plan: None,
            not_after: None,
            idempotency: Some(Idempotency { key, body_sha256 }),
        };
        let queued = self.submit(submission).await?.job.job_id;
        Ok((queued, format!("a reboot is queued for the reboot window as job {queued}: {why}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_after_the_end_is_told_from_one_before() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let now = at("2026-01-04T05:00:00Z");
        let hour = Duration::from_secs(3600);
        assert!(is_rebooted_since(at("2026-01-04T03:59:00Z"), now, hour));
        assert!(!is_rebooted_since(at("2026-01-04T04:00:00Z"), now, hour));
        assert!(!is_rebooted_since(at("2026-01-04T04:30:00Z"), now, hour));
        assert!(!is_rebooted_since(at("2020-01-04T04:30:00Z"), now, Duration::ZERO), "it is not known");
        assert!(!is_rebooted_since(at("2020-01-04T04:30:00Z"), now, Duration::MAX));
    }
}
