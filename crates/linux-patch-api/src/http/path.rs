//! A value in a path, parsed into its type.

use std::{fmt::Display, str::FromStr};

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
};
use patch_service::Refusal;
use patch_types::{ErrorCode, ErrorDetail};

/// The one value in a route's path. What does not parse is answered with 422 and the reason.
pub(super) struct StrictPath<T>(pub(super) T);

impl<S, T> FromRequestParts<S> for StrictPath<T>
where
    S: Send + Sync,
    T: FromStr,
    T::Err: Display,
{
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|e| {
            ErrorDetail::new(ErrorCode::InvalidRequest, format!("the path cannot be read: {e}"))
        })?;
        text.parse().map(Self).map_err(|e: T::Err| {
            ErrorDetail::new(ErrorCode::InvalidRequest, format!("in the path: {e}"))
                .with("value", text)
                .into()
        })
    }
}
