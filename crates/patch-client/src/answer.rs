//! An answer of the agent: the typed value beside the text from which it was read.

use std::ops::Deref;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::error::Error;

/// What the agent answered. Dereferences to the value.
#[derive(Debug, Clone)]
pub struct Answer<T> {
    /// The value.
    pub data: T,
    /// The same as the agent wrote it, including fields that this version does not know.
    pub raw: Box<RawValue>,
    /// The request's id, by which the agent's audit trail names it.
    pub request_id: Uuid,
}

impl<T> Answer<T> {
    /// The value alone.
    #[must_use]
    pub fn into_data(self) -> T {
        self.data
    }
}

impl<T: DeserializeOwned> Answer<T> {
    /// Reads `raw` as a `T`.
    pub(crate) fn read(raw: Box<RawValue>, request_id: Uuid) -> Result<Self, Error> {
        match serde_json::from_str(raw.get()) {
            Ok(data) => Ok(Self { data, raw, request_id }),
            Err(e) => Err(Error::Body {
                request_id: Some(request_id),
                reason: format!("its data is not what this version expects: {e}"),
            }),
        }
    }
}

impl<T> Deref for Answer<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}
