//! The codes that machines act upon, and the detail that people read.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])+ $variant:ident = $text:literal, $status:literal, $retryable:literal;)+) => {
        /// What went wrong, as one of a closed, stable set of codes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum ErrorCode {
            $($(#[$doc])+ #[serde(rename = $text)] $variant,)+
        }

        impl ErrorCode {
            /// Every code, for documentation and tests.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The code as it stands in JSON.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The HTTP status that goes with the code when it answers a request directly.
            #[must_use]
            pub fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status),+ }
            }

            /// Whether the same request may succeed later without a person's help.
            #[must_use]
            pub fn retryable(self) -> bool {
                match self { $(Self::$variant => $retryable),+ }
            }
        }
    };
}

codes! {
    /// The client's certificate is not acceptable (audit trail only).
    AuthInvalidCert = "AUTH_INVALID_CERT", 403, false;
    /// The client's certificate has expired (audit trail only).
    AuthCertExpired = "AUTH_CERT_EXPIRED", 403, false;
    /// The peer's address is not on the allow list (audit trail only).
    AuthzIpDenied = "AUTHZ_IP_DENIED", 403, false;
    /// The identity's role does not allow this.
    AuthzForbidden = "AUTHZ_FORBIDDEN", 403, false;
    /// No such package, installed or available.
    PkgNotFound = "PKG_NOT_FOUND", 404, false;
    /// The package manager failed in a way that no other code names.
    PkgManagerError = "PKG_MANAGER_ERROR", 500, false;
    /// Dependencies cannot be satisfied.
    PkgDependencyError = "PKG_DEPENDENCY_ERROR", 409, false;
    /// The version asked for is not available or conflicts with what is installed.
    PkgVersionConflict = "PKG_VERSION_CONFLICT", 409, false;
    /// The package is held.
    PkgHeld = "PKG_HELD", 409, false;
    /// There is no such update or advisory.
    PatchNotFound = "PATCH_NOT_FOUND", 404, false;
    /// Applying updates failed.
    PatchApplyError = "PATCH_APPLY_ERROR", 500, false;
    /// No such job.
    JobNotFound = "JOB_NOT_FOUND", 404, false;
    /// The job took longer than its limit.
    JobTimeout = "JOB_TIMEOUT", 500, true;
    /// The job was cancelled.
    JobCancelled = "JOB_CANCELLED", 409, false;
    /// The job's state does not allow this, or too many jobs are waiting.
    JobConflict = "JOB_CONFLICT", 409, true;
    /// The plan of this moment is not the one that was approved.
    PlanDrift = "PLAN_DRIFT", 409, false;
    /// There is no way back that the request accepts.
    RollbackUnavailable = "ROLLBACK_UNAVAILABLE", 409, false;
    /// A configuration file is not valid.
    ConfigInvalid = "CONFIG_INVALID", 422, false;
    /// A changed configuration could not be put into effect.
    ConfigReloadError = "CONFIG_RELOAD_ERROR", 500, false;
    /// The service, or a part of it that is needed here, is not available.
    ServiceUnhealthy = "SERVICE_UNHEALTHY", 503, true;
    /// The reboot could not be scheduled or executed.
    SystemRebootError = "SYSTEM_REBOOT_ERROR", 500, false;
    /// The reboot window is closed.
    RebootWindowClosed = "REBOOT_WINDOW_CLOSED", 409, true;
    /// The request is not acceptable; the message says what to change.
    InvalidRequest = "INVALID_REQUEST", 422, false;
    /// Too many requests from this identity.
    RateLimitExceeded = "RATE_LIMIT_EXCEEDED", 429, true;
    /// A file system is too full.
    DiskSpace = "DISK_SPACE", 503, true;
    /// Somebody else held the package manager's lock for too long.
    LockTimeout = "LOCK_TIMEOUT", 503, true;
    /// A repository could not be reached.
    NetworkError = "NETWORK_ERROR", 503, true;
    /// A signature or a hash does not verify.
    SignatureError = "SIGNATURE_ERROR", 500, false;
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error as clients and jobs see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[error("{message}")]
pub struct ErrorDetail {
    /// For machines.
    pub code: ErrorCode,
    /// For people: what happened, to what, and what to do. Holds the package manager's own words where it spoke.
    pub message: String,
    /// More for machines: limits, names, exit codes.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub details: serde_json::Map<String, serde_json::Value>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
}

impl ErrorDetail {
    /// An error with the code's usual `retryable` and no details.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: serde_json::Map::new(), retryable: code.retryable() }
    }

    /// The same error with one more detail.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.details.insert(key.to_owned(), value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_and_write_as_their_text() {
        for code in ErrorCode::ALL {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{}\"", code.as_str()));
            assert_eq!(serde_json::from_str::<ErrorCode>(&json).unwrap(), *code);
            assert!((400..=599).contains(&code.http_status()));
        }
    }
}
