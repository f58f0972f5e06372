//! What a request must look like before any route is looked for, and extractors that say what is wrong with one.
//!
//! Everything here answers in the envelope with `INVALID_REQUEST`, a message that says the limit, and the status that
//! says the kind. What a request means is the handlers' part.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, OptionalFromRequest, Request},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri, Version, header, request::Parts};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Sleep;

use crate::{envelope::Refusal, shape};

/// How long the request line and all headers together may be.
pub const MAX_HEADER_BLOCK: usize = 8 * 1024;
/// How long a body may be.
pub const MAX_BODY: u64 = 1024 * 1024;
/// How long a body may make no progress.
pub const BODY_STALL: Duration = Duration::from_secs(10);

/// Headers that may stand more than once, because their values form a list. Any other must be single.
const LISTS: &[&str] = &[
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "cookie",
    "expect",
    "forwarded",
    "if-match",
    "if-none-match",
    "pragma",
    "prefer",
    "sec-websocket-extensions",
    "sec-websocket-protocol",
    "te",
    "upgrade",
    "via",
    "warning",
    "x-forwarded-for",
];

/// Middleware, to be layered around the whole router and inside [`crate::envelope::request_id`].
pub async fn strict(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if let Err(refusal) = check(&parts) {
        return refusal.into_response();
    }
    let body = Body::new(Guarded { inner: body, left: MAX_BODY, stalled: None });
    next.run(Request::from_parts(parts, body)).await
}

fn check(parts: &Parts) -> Result<(), Refusal> {
    check_headers(parts)?;
    check_path(parts.uri.path())?;
    check_body(&parts.headers)
}

fn check_headers(parts: &Parts) -> Result<(), Refusal> {
    let line = parts.method.as_str().len() + parts.uri.to_string().len() + " HTTP/1.1\r\n ".len();
    // Each header line has a colon, a space and a line end besides.
    let size =
        parts.headers.iter().fold(line, |sum, (name, value)| sum + name.as_str().len() + value.len() + 4);
    if size > MAX_HEADER_BLOCK {
        let message =
            format!("request line and headers are {size} bytes long; the limit is {MAX_HEADER_BLOCK}");
        return Err(Refusal::invalid(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message)
            .with("limit_bytes", MAX_HEADER_BLOCK));
    }
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        let message = "Transfer-Encoding is not accepted; send the body in one piece with Content-Length";
        return Err(Refusal::invalid(StatusCode::LENGTH_REQUIRED, message));
    }
    for name in parts.headers.keys() {
        if parts.headers.get_all(name).iter().nth(1).is_some() && !LISTS.contains(&name.as_str()) {
            let message = format!("the header `{name}` stands more than once; it must be single");
            return Err(Refusal::invalid(StatusCode::BAD_REQUEST, message).with("header", name.as_str()));
        }
    }
    if parts.version == Version::HTTP_11 && !parts.headers.contains_key(header::HOST) {
        return Err(Refusal::invalid(StatusCode::BAD_REQUEST, "the header `host` is missing"));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), Refusal> {
    let bad = |why: &str| {
        Refusal::invalid(StatusCode::BAD_REQUEST, format!("the path is not in canonical form: {why}"))
    };
    let Some(rest) = path.strip_prefix('/') else { return Err(bad("it must begin with `/`")) };
    if rest.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(bad("it must not hold `.` or `..` as a segment"));
    }
    if path.contains("//") {
        return Err(bad("it must not hold `//`"));
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            if !(byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@/".contains(&byte)) {
                return Err(bad(&format!(
                    "it must not hold `{}` unencoded",
                    char::from(byte).escape_default()
                )));
            }
            decoded.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| match byte {
            Some(b @ b'0'..=b'9') => Some(b - b'0'),
            Some(b @ b'A'..=b'F') => Some(b - b'A' + 10),
            _ => None,
        };
        let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else {
            return Err(bad("`%` must be followed by two hexadecimal digits in upper case"));
        };
        let value = high * 16 + low;
        match value {
            b'/' | b'\\' => return Err(bad("`/` and `\\` must not stand in it encoded")),
            0..=0x20 | 0x7f => return Err(bad("it must not hold control characters or blanks")),
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => {
                return Err(bad("letters, digits and `-._~` must not be encoded"));
            }
            _ => decoded.push(value),
        }
    }
    match std::str::from_utf8(&decoded) {
        Ok(_) => Ok(()),
        Err(_) => Err(bad("what is encoded in it is not UTF-8")),
    }
}

fn check_body(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(length) = headers.get(header::CONTENT_LENGTH) else { return Ok(()) };
    let length: Option<u64> = length.to_str().ok().and_then(|text| text.parse().ok());
    let Some(length) = length else {
        return Err(Refusal::invalid(StatusCode::BAD_REQUEST, "Content-Length is not a number"));
    };
    if length > MAX_BODY {
        return Err(too_large());
    }
    if length == 0 {
        return Ok(());
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut pieces = kind.split(';').map(str::trim);
    let is_json = pieces.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"))
        && pieces.all(|parameter| {
            parameter.eq_ignore_ascii_case("charset=utf-8")
                || parameter.eq_ignore_ascii_case("charset=\"utf-8\"")
        });
    if !is_json || headers.contains_key(header::CONTENT_ENCODING) {
        let message = "a body must be plain `application/json` in UTF-8, and its Content-Type must say so";
        return Err(Refusal::invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    Ok(())
}

fn too_large() -> Refusal {
    Refusal::invalid(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body is too long; the limit is {MAX_BODY} bytes"),
    )
    .with("limit_bytes", MAX_BODY)
}

/// Why a body could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    /// It is longer than [`MAX_BODY`].
    #[error("the body is too long")]
    TooLarge,
    /// Nothing of it came for [`BODY_STALL`].
    #[error("the body stalled")]
    Stalled,
    /// The connection broke.
    #[error("the body broke off")]
    Broken,
}

impl From<BodyFault> for Refusal {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::TooLarge => too_large(),
            BodyFault::Stalled => {
                let message = format!("nothing of the body came for {} seconds", BODY_STALL.as_secs());
                // What is left of the body would be taken for the next request.
                Self::invalid(StatusCode::REQUEST_TIMEOUT, message).header(header::CONNECTION, "close")
            }
            BodyFault::Broken => Self::invalid(StatusCode::BAD_REQUEST, "the body broke off before its end"),
        }
    }
}

/// A body that ends with a fault when it is too long or stalls.
struct Guarded {
    inner: Body,
    left: u64,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl hyper::body::Body for Guarded {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            let timer = this.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_STALL)));
            return timer.as_mut().poll(cx).map(|()| Some(Err(BodyFault::Stalled)));
        };
        this.stalled = None;
        let Some(frame) = frame else { return Poll::Ready(None) };
        let Ok(frame) = frame else { return Poll::Ready(Some(Err(BodyFault::Broken))) };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        match this.left.checked_sub(length) {
            Some(left) => this.left = left,
            None => return Poll::Ready(Some(Err(BodyFault::TooLarge))),
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Fallback handler: 404 in the envelope.
pub async fn not_found(uri: Uri) -> Refusal {
    Refusal::invalid(StatusCode::NOT_FOUND, format!("there is nothing at `{}`", uri.path()))
}

/// A JSON body: 400 if it is no JSON, 422 if it is but does not fit, with the field's name in message and details.
/// As `Option<StrictJson<T>>` it may be absent.
#[derive(Debug, Clone, Copy)]
pub struct StrictJson<T>(pub T);

impl<T: DeserializeOwned + Serialize, S: Send + Sync> FromRequest<S> for StrictJson<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refusal> {
        let bytes = read(request).await?;
        if bytes.is_empty() {
            return Err(Refusal::invalid(
                StatusCode::BAD_REQUEST,
                "the body is empty; a JSON object is expected",
            ));
        }
        parse_json(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned + Serialize, S: Send + Sync> OptionalFromRequest<S> for StrictJson<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _state: &S) -> Result<Option<Self>, Refusal> {
        let bytes = read(request).await?;
        if bytes.is_empty() { Ok(None) } else { parse_json(&bytes).map(|value| Some(Self(value))) }
    }
}

async fn read(request: Request) -> Result<Bytes, Refusal> {
    match request.into_body().collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => {
            let fault = error.into_inner().downcast::<BodyFault>().map_or(BodyFault::Broken, |fault| *fault);
            Err(fault.into())
        }
    }
}

/// 400 or 422, as [`StrictJson`] promises.
fn parse_json<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<T, Refusal> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.classify() == serde_json::error::Category::Data {
            wrong(&path, &inner.to_string())
        } else {
            malformed(&inner)
        }
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    shape::check(bytes, &value).map_err(|stray| wrong(&stray.path, &stray.message))?;
    Ok(value)
}

fn malformed(error: &serde_json::Error) -> Refusal {
    Refusal::invalid(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}"))
}

/// 422 for a field. The parser's path ends before a field that is unknown or missing; the message then names it.
fn wrong(path: &str, message: &str) -> Refusal {
    let named = ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|lead| message.strip_prefix(lead)?.split('`').next());
    let above = if path == "." { "" } else { path };
    let field = match named {
        Some(name) if above.is_empty() || above == name || above.ends_with(&format!(".{name}")) => {
            if above.is_empty() { name.to_owned() } else { above.to_owned() }
        }
        Some(name) => format!("{above}.{name}"),
        None => above.to_owned(),
    };
    if field.is_empty() {
        return Refusal::invalid(StatusCode::UNPROCESSABLE_ENTITY, message);
    }
    Refusal::invalid(StatusCode::UNPROCESSABLE_ENTITY, format!("{field}: {message}")).with("field", field)
}

/// Query parameters: 422 with the name of one that is unknown (derive with `deny_unknown_fields`), given twice, or
/// whose value does not fit.
#[derive(Debug, Clone, Copy)]
pub struct StrictQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for StrictQuery<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        match axum::extract::Query::<T>::try_from_uri(&parts.uri) {
            Ok(query) => Ok(Self(query.0)),
            Err(rejection) => {
                let text = rejection.body_text();
                let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                Err(match text.split_once(": ") {
                    Some((field, message)) => wrong(field, message),
                    None => wrong("", text),
                })
            }
        }
    }
}

#[cfg(test)]
#[path = "strict_tests.rs"]
mod tests;
