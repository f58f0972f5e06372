//! `Prefer: wait=N` (RFC 7240) and `Idempotency-Key`: how a client wants a change to be answered.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};
use patch_types::{ErrorCode, ErrorDetail};

/// The header that says which preference was honoured.
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The longest key that is accepted, in characters.
const MAX_KEY: usize = 255;

/// How many seconds the client wants to wait for the end of its job. Unknown or malformed preferences are ignored, as
/// RFC 7240 has it.
#[must_use]
pub(super) fn wait(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|preference| preference.split(';').next())
        .filter_map(|preference| preference.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse().ok())
        .map(Duration::from_secs)
}

/// The client's key for a change that it may send again.
///
/// # Errors
/// When it is empty, too long, given twice or not printable ASCII.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ErrorDetail> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refused = |why: &str| {
        Err(ErrorDetail::new(ErrorCode::InvalidRequest, format!("the header Idempotency-Key {why}"))
            .with("header", "Idempotency-Key"))
    };
    if values.next().is_some() {
        return refused("is given more than once; send one key");
    }
    match value.to_str() {
        Ok("") => refused("is empty; send a UUID, for example"),
        Ok(key) if key.len() > MAX_KEY => {
            refused(&format!("has {} characters; at most {MAX_KEY} are allowed", key.len()))
        }
        Ok(key) => Ok(Some(key.to_owned())),
        Err(_) => refused("may only hold printable ASCII characters"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        values.iter().map(|v| (HeaderName::from_static(name), v.parse().unwrap())).collect()
    }

    #[test]
    fn waits_are_read_in_every_spelling() {
        for (values, expected) in [
            (&["wait=5"][..], Some(5)),
            (&["respond-async, wait=5"], Some(5)),
            (&["respond-async", "Wait = \"7\""], Some(7)),
            (&["wait=5; foo=bar"], Some(5)),
            (&["wait=soon"], None),
            (&["wait=-1"], None),
            (&["return=minimal"], None),
            (&[], None),
        ] {
            assert_eq!(wait(&headers("prefer", values)), expected.map(Duration::from_secs), "{values:?}");
        }
    }

    #[test]
    fn keys_are_bounded() {
        let key = |values: &[&str]| idempotency_key(&headers("idempotency-key", values));
        assert_eq!(key(&[]), Ok(None));
        assert_eq!(key(&["abc"]), Ok(Some("abc".into())));
        assert!(key(&[""]).is_err());
        assert!(key(&["a", "b"]).is_err());
        assert!(key(&[&"a".repeat(256)]).is_err());
        assert!(key(&[&"a".repeat(255)]).is_ok());
    }
}
