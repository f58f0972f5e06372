//! `GET /health`: whether the agent can do its work, part by part.

use std::path::Path;

use axum::{extract::State, response::Response};
use jiff::{SignedDuration, Timestamp};
use patch_service::Refusal;
use patch_types::api::{AuditHead, CrlStatus, Health, HealthCheck, HealthStatus};

use super::{
    app::{App, Certificates},
    reply,
};

/// A certificate that expires within this time asks for attention.
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// Below this share of free space a file system is too full.
const LEAST_FREE_PERCENT: u64 = 5;

/// Below this many free bytes a file system is too full, whatever their share.
const LEAST_FREE_BYTES: u64 = 64 << 20;

/// What to do about the server's certificate. A reload would find the new certificate and the old key, if the service
/// manager has handed the key over as a credential: those are read when the service starts.
const RENEW_SERVER: &str = "replace it and its key, then run: systemctl restart linux-patch-api";

/// What to do about the CA's certificate.
const RENEW_CA: &str = "replace it and send SIGHUP";

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
        part("audit", Weight::Vital, audit(app)),
        part("packages", Weight::Attention, packages(app)),
        part("jobs", Weight::Attention, jobs(app)),
        part("rollback", Weight::Attention, rollback(app, now)),
        part("state", Weight::Vital, directory(&app.root().join(crate::config::STATE_DIR))),
        part("log", Weight::Vital, space(&app.root().join(crate::config::LOG_DIR))),
        part(
            "certificate",
            Weight::Vital,
            expiry("the server's certificate", certificates.server_expires, now, RENEW_SERVER),
        ),
        part("ca", Weight::Vital, expiry("the CA's certificate", certificates.ca_expires, now, RENEW_CA)),
        part("crl", Weight::Attention, crl(&certificates, now)),
    ];
    let soon = [certificates.server_expires, certificates.ca_expires]
        .into_iter()
        .flatten()
        .any(|at| at.duration_since(now) < EXPIRES_SOON);
    let worst = parts.iter().filter(|p| !p.check.healthy).map(|p| p.weight).max();
    let status = match worst {
        Some(Weight::Vital) => HealthStatus::Unhealthy,
        Some(Weight::Attention) => HealthStatus::Degraded,
        None if soon => HealthStatus::Degraded,
        None => HealthStatus::Healthy,
    };
    Health {
        status,
        uptime_seconds: app.uptime().as_secs(),
        version: crate::VERSION.to_owned(),
        checks: parts.into_iter().map(|p| p.check).collect(),
        crl_status: certificates.crl_status(now),
        crl_age_seconds: certificates
            .crl_this_update
            .map(|at| u64::try_from(now.duration_since(at).as_secs()).unwrap_or(0)),
        crl_next_update: certificates.crl_next_update,
        certificate_expires: certificates.server_expires,
        ca_expires: certificates.ca_expires,
        audit_head: app.audit().head().map(|h| AuditHead { seq: h.seq, hash: h.hash.to_string() }),
    }
}

fn audit(app: &App) -> Result<String, String> {
    match app.audit().status().error {
        None => Ok("the audit trail is being written".to_owned()),
        Some(error) => Err(format!("the audit trail cannot be written, so changes are refused: {error}")),
    }
}

fn packages(app: &App) -> Result<String, String> {
    let counts = app.inventory().counts().map_err(|e| e.message)?;
    match counts.broken {
        0 => Ok(format!("the package database is consistent: {} packages", counts.installed)),
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
    if free < LEAST_FREE_BYTES || percent < LEAST_FREE_PERCENT {
        Err(format!("{said}; make room"))
    } else {
        Ok(said)
    }
}

fn expiry(what: &str, at: Option<Timestamp>, now: Timestamp, remedy: &str) -> Result<String, String> {
    match at {
        None => Ok(format!("{what} is not known here")),
        Some(at) if at <= now => Err(format!("{what} expired at {at}; {remedy}")),
        Some(at) => {
            let days = at.duration_since(now).as_hours() / 24;
            let hint =
                if at.duration_since(now) < EXPIRES_SOON { format!("; {remedy}") } else { String::new() };
            Ok(format!("{what} expires at {at}, in {days} days{hint}"))
        }
    }
}

fn crl(certificates: &Certificates, now: Timestamp) -> Result<String, String> {
    match certificates.crl_status(now) {
        CrlStatus::Valid => Ok("the revocation list is in force".to_owned()),
        CrlStatus::Missing => Err(
            "there is no revocation list: a stolen client certificate cannot be shut out; put one at tls.crl"
                .to_owned(),
        ),
        CrlStatus::Expired => Err("the revocation list has expired; replace it and send SIGHUP".to_owned()),
        CrlStatus::Invalid => Err("the revocation list cannot be used; the log says why".to_owned()),
    }
}
