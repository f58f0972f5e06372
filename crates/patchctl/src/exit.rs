//! Exit codes: what a script learns without reading anything.

use std::{io, process::ExitCode};

use patch_client::Error;
use patch_types::{JobStatus, Outcome, api::Job};
use serde_json::json;

use crate::render::clean;

/// The codes, as `--help` and the manual have them.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done, also when there was nothing to do
  1    the request was refused, or the job failed, or what it changed was taken back
  2    usage, or the local configuration (certificates, host) is wrong
  3    the agent cannot be reached, or it refused the connection
  4    the job was cancelled or timed out, or the question was answered with no
  5    updates are available (only with `patches --check`)
  7    a security fix took or takes longer than promised (only with `compliance`)
  8    whether fixes are missing cannot be told (only with `compliance` and `patches --check`)
  130  watching was interrupted; the job goes on";

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Local = 2,
    Unreachable = 3,
    Stopped = 4,
    UpdatesAvailable = 5,
    OverPromise = 7,
    Untold = 8,
    Interrupted = 130,
}

impl Exit {
    pub(crate) fn of_job(job: &Job) -> Self {
        match job.status {
            // Whatever the status says: the host is not as it was asked for. Going back is what a rollback is for.
            JobStatus::Completed
                if match job.outcome {
                    Some(Outcome::RolledBack) => job.kind != "rollback",
                    Some(Outcome::Partial | Outcome::RollbackFailed) => true,
                    Some(Outcome::Applied | Outcome::Unchanged) | None => false,
                } =>
            {
                Self::Failed
            }
            // Only a job that was left alone on purpose has not ended here.
            JobStatus::Completed | JobStatus::Pending | JobStatus::Running => Self::Done,
            JobStatus::Failed => Self::Failed,
            JobStatus::Cancelled | JobStatus::Timeout => Self::Stopped,
        }
    }

    pub(crate) fn of_error(error: &anyhow::Error) -> Self {
        if is_broken_pipe(error) {
            return Self::Done;
        }
        match error.downcast_ref::<Error>() {
            Some(error) if error.is_connection() => Self::Unreachable,
            Some(error) if error.is_local() => Self::Local,
            Some(_) => Self::Failed,
            None if error.is::<Misconfigured>() => Self::Local,
            None => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Something that the user has to set right before anything can be asked.
#[derive(Debug)]
pub(crate) struct Misconfigured(pub(crate) String);

impl std::fmt::Display for Misconfigured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misconfigured {}

/// Says what went wrong, on standard error.
pub(crate) fn report(error: &anyhow::Error, json: bool) {
    if is_broken_pipe(error) {
        return;
    }
    if json {
        let body = match error.downcast_ref::<Error>() {
            Some(Error::Api { status, detail, request_id }) => {
                json!({"status": status, "error": detail, "request_id": request_id})
            }
            _ => json!({"error": {"message": format!("{error:#}")}}),
        };
        eprintln!("{}", clean::json(&body.to_string()));
    } else {
        eprintln!("patchctl: {}", clean::text(&format!("{error:#}")));
    }
}

/// The reader of our output has seen enough, as in `patchctl packages | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use patch_client::Stage;
    use patch_types::{ErrorCode, ErrorDetail};

    use super::*;

    #[test]
    fn errors_have_the_documented_codes() {
        let api = Error::Api {
            status: 404,
            detail: Box::new(ErrorDetail::new(ErrorCode::JobNotFound, "no")),
            request_id: Default::default(),
        };
        let refused = Error::Refused { address: "a:1".into(), stage: Stage::Handshake, facts: Vec::new() };
        let pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        for (error, exit) in [
            (api.into(), Exit::Failed),
            (refused.into(), Exit::Unreachable),
            (Error::ServerName("?".into()).into(), Exit::Local),
            (Misconfigured("no host".into()).into(), Exit::Local),
            (pipe.into(), Exit::Done),
            (anyhow::anyhow!("other"), Exit::Failed),
        ] {
            assert_eq!(Exit::of_error(&error), exit, "{error:?}");
        }
    }

    #[test]
    fn a_change_that_went_back_is_a_failure() {
        use crate::render::job::tests::job;
        let of = |kind: &str, status, outcome| {
            Exit::of_job(&Job { kind: kind.to_owned(), outcome: Some(outcome), ..job(status) })
        };
        assert_eq!(of("install", JobStatus::Completed, Outcome::Applied), Exit::Done);
        assert_eq!(of("install", JobStatus::Completed, Outcome::RolledBack), Exit::Failed);
        assert_eq!(of("install", JobStatus::Failed, Outcome::RolledBack), Exit::Failed);
        assert_eq!(of("install", JobStatus::Timeout, Outcome::RolledBack), Exit::Stopped);
        assert_eq!(of("rollback", JobStatus::Completed, Outcome::RolledBack), Exit::Done);
        assert_eq!(of("rollback", JobStatus::Failed, Outcome::RollbackFailed), Exit::Failed);
    }

    #[test]
    fn every_code_is_in_the_help() {
        use Exit::*;
        for exit in [Done, Failed, Local, Unreachable, Stopped, UpdatesAvailable, Interrupted] {
            let line = format!("\n  {:<5}", exit as u8);
            assert!(HELP.contains(&line), "{exit:?}");
        }
    }
}
