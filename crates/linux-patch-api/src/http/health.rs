//! `GET /health`: whether the agent can do its work, part by part.

use std::path::Path;

use axum::{extract::State, response::Response};
use jiff::Timestamp;
use patch_service::Refusal;
use patch_types::api::{AuditHead, Health, HealthCheck, HealthStatus, PolicyState};

use super::{
    app::{App, Certificates},
    reply,
};
use crate::{audit::SetAside, certificates::expiry, checkpoint::Trouble};

/// Below this share of free space a file system is too full, unless [`AMPLE_BYTES`] are free.
const LEAST_FREE_PERCENT: u64 = 5;

/// So much is room enough for state and trail, however small a share of a large disk it is.
const AMPLE_BYTES: u64 = 4 << 30;

/// Below this many free bytes a file system is too full, whatever their share.
const LEAST_FREE_BYTES: u64 = 64 << 20;

/// What to do about the server's certificate.
const RENEW_SERVER: &str = "replace it and its key, then run: systemctl reload linux-patch-api";

/// What to do about the CA's certificate.
const RENEW_CA: &str = "replace it, then run: systemctl reload linux-patch-api";

/// What to do about the revocation list.
const RENEW_CRL: &str = "put a newer one in its place, or send it with PUT /api/v1/system/crl";

/// What to do about files that were set aside.
const SET_ASIDE: &str = "was found damaged and set aside: `linux-patch-api audit verify` says what is wrong with it; when that \
                         is explained, keep it elsewhere";

/// How grave a failing part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// The agent works without it.
    Attention,
    /// It does not.
    Vital,
}

struct Part {
    check: HealthCheck,
    weight: Weight,
}

fn part(name: &str, weight: Weight, result: Result<String, String>) -> Part {
    let healthy = result.is_ok();
    let (Ok(message) | Err(message)) = result;
    Part { check: HealthCheck { name: name.to_owned(), healthy, message }, weight }
}

/// Says whether the agent can do its work.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "getHealth",
    tag = "observation",
    responses(
        (status = 200, description = "It can; `degraded` if something needs attention", body = Health),
        (status = 503, description = "It cannot; `error.details` holds the same fields (SERVICE_UNHEALTHY)"),
    )
)]
pub(super) async fn get(State(app): State<App>) -> Result<Response, Refusal> {
    let health = examine(&app).await;
    if health.status == HealthStatus::Unhealthy {
        return Err(reply::unhealthy(&health));
    }
    reply::ok(health)
}

async fn examine(app: &App) -> Health {
    let now = Timestamp::now();
    let certificates = app.certificates();
    let executor = app.executor_answers().await;
    let parts = [
        part("executor", Weight::Vital, executor.map(|()| "the root side accepts connections".to_owned())),
        part("audit", Weight::Vital, audit_trail(app)),
        part("trail", Weight::Attention, trail(app.set_aside().await.as_ref())),
        part("checkpoint", Weight::Attention, checkpoint(app)),
        part("allow_list", Weight::Attention, allow_list(app)),
        part("config", Weight::Attention, config(app)),
        part("packages", Weight::Attention, packages(app)),
        part("jobs", Weight::Attention, jobs(app)),
        part("policy", Weight::Attention, policy(app).await),
        part("rollback", Weight::Attention, rollback(app, now)),
        part("state", Weight::Vital, directory(&app.root().join(crate::config::STATE_DIR))),
        part("log", Weight::Vital, space(&app.root().join(crate::config::LOG_DIR))),
        certificate(
            "certificate",
            Weight::Vital,
            &Expiry {
                what: "the server's certificate",
                from: certificates.server_from,
                until: certificates.server_expires,
                remedy: RENEW_SERVER,
                problem: certificates.problems.server.as_deref(),
            },
            now,
        ),
        certificate(
            "ca",
            // With another one beside it clients get in.
            if certificates.ca_ends.is_some_and(|end| end > now) { Weight::Attention } else { Weight::Vital },
            &Expiry {
                what: "the CA's certificate",
                from: certificates.ca_from,
                until: certificates.ca_expires,
                remedy: RENEW_CA,
                problem: certificates.problems.ca.as_deref(),
            },
            now,
        ),
        crl(&certificates, now),
    ];
    let worst = parts.iter().filter(|p| !p.check.healthy).map(|p| p.weight).max();
    let status = match worst {
        Some(Weight::Vital) => HealthStatus::Unhealthy,
        Some(Weight::Attention) => HealthStatus::Degraded,
        None => HealthStatus::Healthy,
    };
    Health {
        status,
        uptime_seconds: app.uptime().as_secs(),
        version: crate::VERSION.to_owned(),
        checks: parts.into_iter().map(|p| p.check).collect(),
        crl_status: certificates.crl_status(now),
        crl_age_seconds: certificates
            .crl_this_update(now)
            .map(|at| u64::try_from(now.duration_since(at).as_secs()).unwrap_or(0)),
        crl_next_update: certificates.crl_next_update(now),
        certificate_expires: certificates.server_expires,
        ca_expires: certificates.ca_expires,
        policy: Some(policy_state(app)),
        audit_head: app.audit().head().map(|h| AuditHead { seq: h.seq, hash: h.hash.to_string() }),
    }
}

fn audit_trail(app: &App) -> Result<String, String> {
    let status = app.audit().status();
    match status.error {
        None => Ok(match status.remote {
            Some(remote) => match remote.error {
                Some(error) => format!(
                    "the audit trail is being written; {} has it up to record {} and cannot be reached: {error}",
                    remote.target, remote.delivered
                ),
                None => format!("the audit trail is being written, and sent to {}", remote.target),
            },
            None => "the audit trail is being written".to_owned(),
        }),
        Some(error) => Err(format!("the audit trail cannot be written, so changes are refused: {error}")),
    }
}

/// What was set aside stays until a person has looked at it and taken it away.
fn trail(aside: Option<&SetAside>) -> Result<String, String> {
    let Some(SetAside { files, unread }) = aside else {
        return Err("the directory of the audit trail does not answer; look at its disk".to_owned());
    };
    let found = match &files[..] {
        [] => None,
        [one] => Some(format!("{one} {SET_ASIDE}")),
        [first, .., last] => Some(format!("{first}, {last} and what lies between {SET_ASIDE}")),
    };
    let problems: Vec<_> = found.into_iter().chain(unread.clone()).collect();
    if problems.is_empty() {
        Ok("no part of the audit trail was set aside".to_owned())
    } else {
        Err(problems.join("; "))
    }
}

fn checkpoint(app: &App) -> Result<String, String> {
    let signing = app.signing().load_full();
    let since = match signing.signed {
        Some((seq, at)) => {
            format!("the root side vouches for the audit trail up to record {seq}, since {at:.0}")
        }
        None => "the root side has signed nothing since the agent was started".to_owned(),
    };
    match &signing.trouble {
        None => Ok(since),
        Some(Trouble::Refused(why)) => {
            Err(format!("the root side refuses to sign the audit trail: {why}; {since}"))
        }
        Some(Trouble::Unanswered(why)) => {
            Err(format!("the root side does not sign the audit trail, which is tried again: {why}; {since}"))
        }
        Some(Trouble::Ended(why)) => {
            Err(format!("the audit trail is not signed any more: {why}; restart linux-patch-api; {since}"))
        }
    }
}

fn allow_list(app: &App) -> Result<String, String> {
    let Some(door) = app.served_by() else { return Ok("there is no door here".to_owned()) };
    let (status, entries) = (door.allow_list().status(), door.allow_list().load().entries().len());
    let since = match status.good_at {
        Some(at) => format!("the allow list has {entries} entries and was read at {at:.0}"),
        None => format!("the allow list has {entries} entries"),
    };
    match &status.problem {
        None => Ok(since),
        Some(problem) if entries == 0 => Err(format!("everyone is denied: {problem}; {since}")),
        Some(problem) => Err(format!("refused, an earlier list is in force: {problem}; {since}")),
    }
}

fn config(app: &App) -> Result<String, String> {
    match app.config_refused() {
        None => Ok("the configuration on disk is in force".to_owned()),
        Some(error) => Err(format!("refused, an earlier configuration is in force: {error}")),
    }
}

fn packages(app: &App) -> Result<String, String> {
    let counts = app.inventory().counts().map_err(|e| e.message)?;
    match counts.broken {
        0 => Ok(format!("the package database is consistent: {} packages", counts.installed)),
        // Between the steps of a change this is as it should be.
        broken if app.jobs().counts().active > 0 => Ok(format!(
            "a job is running; {broken} of {} packages are half-done at this moment",
            counts.installed
        )),
        broken => Err(format!(
            "{broken} of {} packages are in no consistent state; GET /packages?status=broken lists them, dpkg --configure -a usually mends them",
            counts.installed
        )),
    }
}

fn jobs(app: &App) -> Result<String, String> {
    let problems = app.jobs().problems();
    if problems.is_empty() { Ok("all job files can be read".to_owned()) } else { Err(problems.join("; ")) }
}

/// What the scheduler says of itself, with the state of the run that is at work at this moment.
fn policy_state(app: &App) -> PolicyState {
    let mut state = app.policy().state.clone();
    if let Some(run) = &mut state.last_run
        && run.ended_at.is_none()
        && let Some(job) = run.job_id.and_then(|id| app.jobs().summary(id))
    {
        run.status = Some(job.status);
    }
    state
}

async fn policy(app: &App) -> Result<String, String> {
    let (note, root) = (app.policy(), app.root().to_owned());
    // The package database is read for it.
    let looked = tokio::task::spawn_blocking(move || match note.attention(&root) {
        Some(trouble) => Err(trouble),
        None => Ok(note.state.decision.clone()),
    });
    looked.await.unwrap_or_else(|_| Err("the look at what the policy left out has failed".to_owned()))
}

/// The root side's word is taken before our own memory: it alone knows what root did on the host itself.
fn rollback(app: &App, now: Timestamp) -> Result<String, String> {
    let (failed, none) = match app.metrics().root_status(app.root()) {
        Some(status) => (status.rollback_failed, "no failed rollback is left to be repaired"),
        None => (app.jobs().failed_rollback(now), "no rollback has failed within the last 24 hours"),
    };
    match failed {
        None => Ok(none.to_owned()),
        Some(id) => Err(format!(
            "job {id} could not be rolled back; GET /jobs/{id}, or on the host `linux-patch-host watch {id}`, says what is \
             left and what to do about it"
        )),
    }
}

/// Whether a file can be made in the directory, and there is space.
fn directory(path: &Path) -> Result<String, String> {
    use rustix::fs::{Access, AtFlags, CWD};
    rustix::fs::accessat(CWD, path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|e| format!("{} is not writable: {e}", path.display()))?;
    space(path)
}

fn space(path: &Path) -> Result<String, String> {
    let stat =
        rustix::fs::statvfs(path).map_err(|e| format!("{} cannot be examined: {e}", path.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let total = stat.f_blocks.saturating_mul(stat.f_frsize).max(1);
    let percent = free.saturating_mul(100) / total;
    let said = format!("{} has {} MiB ({percent} %) free", path.display(), free >> 20);
    if is_too_full(free, total) { Err(format!("{said}; make room")) } else { Ok(said) }
}

/// Whether so many free bytes of a file system are too few.
fn is_too_full(free: u64, total: u64) -> bool {
    let percent = free.saturating_mul(100) / total.max(1);
    free < LEAST_FREE_BYTES || (percent < LEAST_FREE_PERCENT && free < AMPLE_BYTES)
}

/// One thing that expires.
struct Expiry<'a> {
    what: &'static str,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
    remedy: &'static str,
    /// Why what is on disk is not what is in force.
    problem: Option<&'a str>,
}

/// What has expired is grave; what is about to, or cannot be renewed, asks for attention.
fn certificate(name: &str, grave: Weight, expiry: &Expiry<'_>, now: Timestamp) -> Part {
    let Expiry { what, from, until, remedy, problem } = *expiry;
    let Some(until) = until else {
        return part(name, Weight::Attention, Ok(format!("{what} is not known here")));
    };
    let level = expiry::level(from.unwrap_or(Timestamp::UNIX_EPOCH), until, now);
    let days = until.duration_since(now).as_hours() / 24;
    let said = match level {
        Some(0) => Err(format!("{what} expired at {until}; {remedy}")),
        Some(_) => Err(format!("{what} expires at {until}, in {days} days; {remedy}")),
        None => Ok(format!("{what} expires at {until}, in {days} days")),
    };
    let weight = if level == Some(0) { grave } else { Weight::Attention };
    let (Ok(sentence) | Err(sentence)) = &said;
    match problem {
        Some(problem) => {
            part(name, weight, Err(format!("{sentence}; what is on disk is not in force: {problem}")))
        }
        None => part(name, weight, said),
    }
}

fn crl(certificates: &Certificates, now: Timestamp) -> Part {
    if !certificates.has_crl && certificates.problems.crl.is_none() {
        return part(
            "crl",
            Weight::Attention,
            Err("there is no revocation list: a stolen client certificate cannot be shut out; put one at tls.crl, or send it \
                 with PUT /api/v1/system/crl"
                .to_owned()),
        );
    }
    let expiry = Expiry {
        what: "the revocation list",
        from: certificates.crl_this_update(now),
        until: certificates.crl_next_update(now),
        remedy: RENEW_CRL,
        problem: certificates.problems.crl.as_deref(),
    };
    match (certificates.crl_next_update(now), expiry.problem) {
        (Some(_), _) => certificate("crl", Weight::Attention, &expiry, now),
        (None, None) => part(
            "crl",
            Weight::Attention,
            Ok("the revocation list is in force; it does not say when the next is due".to_owned()),
        ),
        (None, Some(problem)) => part("crl", Weight::Attention, Err(problem.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::is_too_full;

    #[test]
    fn a_small_share_of_a_large_disk_is_room_enough() {
        const GIB: u64 = 1 << 30;
        assert!(!is_too_full(10 * GIB, 2000 * GIB));
        assert!(is_too_full(3 * GIB, 100 * GIB));
        assert!(!is_too_full(5 * GIB, 100 * GIB));
        assert!(!is_too_full(GIB / 8, GIB), "an eighth of a small one");
        assert!(is_too_full(GIB / 20, GIB), "below what is needed at all");
        assert!(is_too_full(0, 0), "a file system that says nothing");
    }
}
