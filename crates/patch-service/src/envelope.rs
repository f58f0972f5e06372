//! What every response is wrapped in, and the id that a request goes by.
//!
//! Handlers return [`Reply`], [`RawData`] or [`Refusal`]; these carry their content in the response's extensions, and
//! the middleware [`request_id`] writes the envelope around it, so no handler has to know the request's id. An error
//! response of another make (the router's own 405, an extractor's rejection) is wrapped there too.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper::body::{Frame, SizeHint};
use jiff::Timestamp;
use patch_types::{ErrorCode, ErrorDetail};
use serde::Serialize;
use uuid::Uuid;

/// The header that carries a request's id, both ways.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How much of a foreign error response is taken over as its message.
const FOREIGN_MESSAGE: usize = 2048;

/// The id of a request: an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId(pub Uuid);

/// What a response says, until the middleware writes the envelope around it.
#[derive(Debug, Clone)]
enum Content {
    Data(Bytes),
    Error(Box<ErrorDetail>),
}

/// Middleware: takes over the client's id if it is a well-formed UUID, else makes one; makes it available to
/// handlers; wraps the response; returns the id in a header. Must be the outermost layer of ours.
pub async fn request_id(mut request: Request, next: Next) -> Response {
    let id = RequestId(client_id(request.headers()).unwrap_or_else(Uuid::now_v7));
    request.extensions_mut().insert(id);
    let mut response = wrap(next.run(request).await, id).await;
    if let Ok(value) = HeaderValue::from_str(&id.0.to_string()) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response
}

fn client_id(headers: &HeaderMap) -> Option<Uuid> {
    let text = headers.get(X_REQUEST_ID)?.to_str().ok()?;
    // The parser also takes braces, URNs and plain digits; well-formed means RFC 9562's one form here.
    (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten()
}

async fn wrap(response: Response, id: RequestId) -> Response {
    let (mut parts, body) = response.into_parts();
    let content = match parts.extensions.remove::<Content>() {
        Some(content) => content,
        None if is_foreign_error(&parts) => Content::Error(Box::new(foreign(&parts, body).await)),
        None => return Response::from_parts(parts, body),
    };
    let stamp = format!("\"request_id\":\"{}\",\"timestamp\":\"{}\"", id.0, Timestamp::now());
    let body = match content {
        Content::Data(data) => Pieces::new([
            Bytes::from(format!("{{\"success\":true,{stamp},\"data\":")),
            data,
            Bytes::from_static(b",\"error\":null}"),
        ]),
        Content::Error(error) => {
            let error = serde_json::to_string(&error).unwrap_or_else(|_| "null".to_owned());
            let text = format!("{{\"success\":false,{stamp},\"data\":null,\"error\":{error}}}");
            Pieces::new([Bytes::from(text), Bytes::new(), Bytes::new()])
        }
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::new(body))
}

fn is_foreign_error(parts: &http::response::Parts) -> bool {
    (parts.status.is_client_error() || parts.status.is_server_error())
        && parts
            .headers
            .get(header::CONTENT_TYPE)
            .is_none_or(|kind| !kind.as_bytes().starts_with(b"application/json"))
}

async fn foreign(parts: &http::response::Parts, body: Body) -> ErrorDetail {
    let said = axum::body::to_bytes(body, FOREIGN_MESSAGE).await.unwrap_or_default();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    let reason = parts.status.canonical_reason().unwrap_or("the request was refused");
    let message = match parts.status {
        // The router adds the header itself, after this; its content is not known here.
        StatusCode::METHOD_NOT_ALLOWED if said.is_empty() => {
            "this path does not take that method; the header `Allow` lists those that it takes".to_owned()
        }
        _ if said.is_empty() => reason.to_owned(),
        _ => said,
    };
    let code =
        if parts.status.is_server_error() { ErrorCode::ServiceUnhealthy } else { ErrorCode::InvalidRequest };
    ErrorDetail::new(code, message)
}

/// A success.
#[derive(Debug, Clone)]
pub struct Reply<T> {
    status: StatusCode,
    headers: HeaderMap,
    data: T,
}

impl<T: Serialize> Reply<T> {
    /// 200 with this.
    pub fn ok(data: T) -> Self {
        Self::new(StatusCode::OK, data)
    }

    /// Another status with this.
    pub fn new(status: StatusCode, data: T) -> Self {
        Self { status, headers: HeaderMap::new(), data }
    }

    /// With a header, such as `Location`. A value that cannot stand in a header is left out.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }
}

impl<T: Serialize> IntoResponse for Reply<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.data) {
            Ok(data) => respond(self.status, self.headers, Content::Data(data.into())),
            // A map whose keys are no strings, and the like: a fault of the program that no client can cause.
            Err(error) => {
                Refusal::new(ErrorCode::ServiceUnhealthy, format!("the answer cannot be written: {error}"))
                    .status(StatusCode::INTERNAL_SERVER_ERROR)
                    .into_response()
            }
        }
    }
}

/// A success whose data was serialised before, such as a long list that is kept ready.
#[derive(Debug, Clone)]
pub struct RawData {
    data: Bytes,
    headers: HeaderMap,
    not_modified: bool,
}

impl RawData {
    /// 200 with this JSON text as `data`.
    #[must_use]
    pub fn new(data: Bytes) -> Self {
        Self { data, headers: HeaderMap::new(), not_modified: false }
    }

    /// With an `ETag`, and 304 if the request's `If-None-Match` names it. `tag` is the opaque part, without quotes.
    /// It is sent as a weak one: the envelope around equal data differs each time.
    #[must_use]
    pub fn etag(mut self, tag: &str, request: &HeaderMap) -> Self {
        let tag = format!("\"{tag}\"");
        if let Ok(value) = HeaderValue::from_str(&format!("W/{tag}")) {
            self.headers.insert(header::ETAG, value);
        }
        self.not_modified = request
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag);
        self
    }

    /// With another header. A value that cannot stand in a header is left out.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }
}

impl IntoResponse for RawData {
    fn into_response(self) -> Response {
        if self.not_modified {
            return (StatusCode::NOT_MODIFIED, self.headers).into_response();
        }
        respond(StatusCode::OK, self.headers, Content::Data(self.data))
    }
}

/// A failure.
#[derive(Debug, Clone)]
pub struct Refusal {
    status: StatusCode,
    headers: HeaderMap,
    error: Box<ErrorDetail>,
}

impl Refusal {
    /// With the code's usual status.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ErrorDetail::new(code, message).into()
    }

    /// `INVALID_REQUEST` with the status that says in which way.
    pub fn invalid(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message).status(status)
    }

    /// With another status.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// With a header, such as `Allow` or `Retry-After`. A value that cannot stand in a header is left out.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// With one more detail for machines.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.error.details.insert(key.to_owned(), value.into());
        self
    }

    /// The error itself.
    #[must_use]
    pub fn error(&self) -> &ErrorDetail {
        &self.error
    }

    /// The status that it is answered with.
    #[must_use]
    pub fn status_code(&self) -> StatusCode {
        self.status
    }
}

impl From<ErrorDetail> for Refusal {
    fn from(error: ErrorDetail) -> Self {
        let status =
            StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, headers: HeaderMap::new(), error: Box::new(error) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        respond(self.status, self.headers, Content::Error(self.error))
    }
}

fn respond(status: StatusCode, headers: HeaderMap, content: Content) -> Response {
    let mut response = (status, headers).into_response();
    response.extensions_mut().insert(content);
    response
}

/// A body of a few pieces, whose length is known.
struct Pieces {
    pieces: [Bytes; 3],
    next: usize,
}

impl Pieces {
    fn new(pieces: [Bytes; 3]) -> Self {
        Self { pieces, next: 0 }
    }

    fn left(&self) -> &[Bytes] {
        self.pieces.get(self.next..).unwrap_or_default()
    }
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        while let Some(piece) = self.left().first().cloned() {
            self.next += 1;
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.left().iter().all(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left().iter().map(|piece| piece.len() as u64).sum())
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
