//! One request and its answer over HTTP, and what a failure on the way means.

use std::{
    error::Error as StdError,
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use patch_types::{ErrorDetail, api::Envelope};
use reqwest::{Method, Response, Url, header, redirect};
use rustls::CertificateError;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    answer::Answer,
    config::{ClientConfig, Submit},
    error::{Error, Stage},
    filter::Query,
    tls::Tls,
};

/// The largest answer that is read: a job with a long log stays far below.
const MAX_BODY: usize = 64 * 1024 * 1024;
/// How often a request that carries an idempotency key is sent at most.
const ATTEMPTS: u32 = 3;

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Below `/api/v1/`; each segment is encoded on its own.
    pub(crate) path: Vec<String>,
    pub(crate) query: Query,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) submit: Submit,
}

impl Request {
    pub(crate) fn get(path: &[&str]) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn new(method: Method, path: &[&str]) -> Self {
        let path = path.iter().map(|&segment| segment.to_owned()).collect();
        Self { method, path, query: Query::default(), body: None, submit: Submit::default() }
    }

    pub(crate) fn query(mut self, query: Query) -> Self {
        self.query = query;
        self
    }

    pub(crate) fn json(mut self, body: &impl serde::Serialize) -> Result<Self, Error> {
        self.body = Some(serde_json::to_vec(body).map_err(|e| Error::Setup(e.to_string()))?);
        Ok(self)
    }

    pub(crate) fn submit(mut self, submit: &Submit) -> Self {
        self.submit = submit.clone();
        self
    }
}

/// The HTTP side of a client.
#[derive(Debug)]
pub(crate) struct Transport {
    http: reqwest::Client,
    base: Url,
    pub(crate) config: ClientConfig,
    pub(crate) tls: Tls,
    /// Whether the agent has ever answered this client.
    accepted: AtomicBool,
}

impl Transport {
    pub(crate) fn new(config: ClientConfig) -> Result<Self, Error> {
        let tls = Tls::new(&config)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(rustls::ClientConfig::clone(&tls.config))
            .https_only(true)
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(config.connect_timeout)
            .user_agent(concat!("patch-client/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::Setup(chain(&e)))?;
        let base = format!("https://{}/api/v1", config.address);
        let base = Url::parse(&base).map_err(|e| Error::Setup(format!("{base}: {e}")))?;
        Ok(Self { http, base, config, tls, accepted: AtomicBool::new(false) })
    }

    /// Sends a request and reads the envelope's data.
    pub(crate) async fn send<T: DeserializeOwned>(&self, request: &Request) -> Result<Answer<T>, Error> {
        let (status, body) = self.repeated(request).await?;
        let (raw, request_id) = unwrap_envelope(status, &body)?;
        Answer::read(raw, request_id)
    }

    /// Sends a request whose answer has no envelope.
    pub(crate) async fn send_plain(&self, request: &Request) -> Result<String, Error> {
        let (status, body) = self.repeated(request).await?;
        if status != 200 {
            unwrap_envelope(status, &body)?;
            return Err(not_understood(format!("HTTP {status} where 200 was expected")));
        }
        String::from_utf8(body).map_err(|e| not_understood(e.to_string()))
    }

    async fn repeated(&self, request: &Request) -> Result<(u16, Vec<u8>), Error> {
        let may_repeat = request.method == Method::GET || request.submit.idempotency_key.is_some();
        let mut attempt = 1;
        loop {
            match self.once(request).await {
                // Silence may be a refusal, which must not be provoked again: repeated ones raise an alarm. Where this
                // certificate had an answer before, it was an agent that stopped or a connection that broke.
                Err(Error::Broken { .. } | Error::Refused { stage: Stage::Request, .. })
                    if may_repeat && attempt < ATTEMPTS && self.accepted.load(Ordering::Relaxed) =>
                {
                    tokio::time::sleep(Duration::from_millis(200) * attempt).await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    async fn once(&self, request: &Request) -> Result<(u16, Vec<u8>), Error> {
        let waiting = Duration::from_secs(request.submit.wait_seconds.unwrap_or(0).into());
        let timeout = self.config.timeout.saturating_add(waiting);
        let mut builder = self.http.request(request.method.clone(), self.url(request)).timeout(timeout);
        if let Some(seconds) = request.submit.wait_seconds {
            builder = builder.header("Prefer", format!("wait={seconds}"));
        }
        if let Some(key) = &request.submit.idempotency_key {
            builder = builder.header("Idempotency-Key", key);
        }
        if let Some(body) = &request.body {
            builder = builder.header(header::CONTENT_TYPE, "application/json").body(body.clone());
        }
        let response = builder.send().await.map_err(|e| self.explain(&e, timeout))?;
        self.accepted.store(true, Ordering::Relaxed);
        let status = response.status().as_u16();
        Ok((status, self.body(response, timeout).await?))
    }

    fn url(&self, request: &Request) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(&request.path);
        }
        if !request.query.0.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query.0);
        }
        url
    }

    async fn body(&self, mut response: Response, timeout: Duration) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.explain(&e, timeout))? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(not_understood(format!("it is larger than {MAX_BODY} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn explain(&self, error: &reqwest::Error, timeout: Duration) -> Error {
        if error.is_timeout() {
            return if error.is_connect() {
                self.timed_out("accept a connection", true, self.config.connect_timeout)
            } else {
                self.timed_out("answer", false, timeout)
            };
        }
        let stage = if error.is_connect() { Stage::Handshake } else { Stage::Request };
        let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(current) = cause {
            if let Some(io) = current.downcast_ref::<io::Error>() {
                // A body that breaks off is no refusal: the agent had begun to answer.
                if error.is_body() || error.is_decode() {
                    break;
                }
                return self.explain_io(io, stage);
            }
            cause = current.source();
        }
        let reason = chain(error);
        // hyper has no public type for this within reach; a test holds its words.
        if error.is_request() && reason.contains("connection closed before message completed") {
            return self.refused(Stage::Request);
        }
        let address = self.config.address.to_string();
        if error.is_connect() {
            Error::Unreachable { address, reason }
        } else {
            Error::Broken { address, reason }
        }
    }

    /// What an input-output error means at this stage of a connection.
    pub(crate) fn explain_io(&self, error: &io::Error, stage: Stage) -> Error {
        // Connectors wrap one in another.
        let mut error = error;
        while let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>()) {
            error = inner;
        }
        let address = self.config.address.to_string();
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return explain_tls(tls, address);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => self.refused(stage),
            io::ErrorKind::TimedOut => {
                self.timed_out("accept a connection", true, self.config.connect_timeout)
            }
            _ if stage == Stage::Handshake => Error::Unreachable { address, reason: chain(error) },
            _ => Error::Broken { address, reason: chain(error) },
        }
    }

    pub(crate) fn refused(&self, stage: Stage) -> Error {
        let facts = match stage {
            Stage::Handshake => Vec::new(),
            Stage::Request => self.tls.facts.clone(),
        };
        Error::Refused { address: self.config.address.to_string(), stage, facts }
    }

    pub(crate) fn timed_out(&self, what: &'static str, connecting: bool, after: Duration) -> Error {
        Error::TimedOut { address: self.config.address.to_string(), what, connecting, after }
    }
}

fn explain_tls(error: &rustls::Error, address: String) -> Error {
    let rustls::Error::InvalidCertificate(certificate) = error else {
        let reason = match error {
            rustls::Error::InvalidMessage(_) => format!("{error}; what listens there does not speak TLS"),
            _ => error.to_string(),
        };
        return Error::Tls { address, reason };
    };
    let advice = match certificate {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it was not issued by the CA of this client's CA file; check --ca, or whether this is the right host"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it does not carry the name by which the host was called; use a name or address that it carries as \
             subjectAltName (a common name does not count), or give the expected name"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "have a new one issued for the agent, or check this machine's clock"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "check this machine's clock"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it lacks the extended key usage serverAuth"
        }
        // webpki has a word of its own for X.509 version 1, which arrives here as "other".
        _ => {
            "it may be an X.509 version 1 certificate, which plain `openssl x509 -req` makes; issue it with extensions"
        }
    };
    Error::ServerCertificate { address, reason: format!("{certificate}; {advice}") }
}

/// An error and its sources in one line, without saying the same twice.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

fn not_understood(reason: String) -> Error {
    Error::Body { request_id: None, reason }
}

/// Reads an envelope: the data of a success, the error of a failure.
pub(crate) fn unwrap_envelope(status: u16, body: &[u8]) -> Result<(Box<RawValue>, Uuid), Error> {
    let envelope: Envelope<Box<RawValue>> = match serde_json::from_slice(body) {
        Ok(envelope) => envelope,
        Err(e) => return Err(lenient_error(status, body).unwrap_or_else(|| foreign(status, body, &e))),
    };
    let request_id = envelope.request_id;
    let good = envelope.success && (200..300).contains(&status);
    match (envelope.data, envelope.error) {
        (Some(data), _) if good => Ok((data, request_id)),
        (_, Some(detail)) => Err(Error::Api { status, detail: Box::new(detail), request_id }),
        _ => Err(Error::Body {
            request_id: Some(request_id),
            reason: format!("HTTP {status} with neither data nor error"),
        }),
    }
}

/// An error with a code that this version does not know: a newer agent. Its message is still worth reading.
fn lenient_error(status: u16, body: &[u8]) -> Option<Error> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let request_id = value.get("request_id")?.as_str()?.parse().ok()?;
    let error = value.get("error")?;
    let message = error.get("message")?.as_str()?;
    let code = error.get("code")?.as_str()?;
    let mut detail = ErrorDetail::new(unknown_code(status), format!("{message} [{code}]"));
    detail.retryable = error.get("retryable").and_then(serde_json::Value::as_bool).unwrap_or(false);
    Some(Error::Api { status, detail: Box::new(detail), request_id })
}

fn unknown_code(status: u16) -> patch_types::ErrorCode {
    if status >= 500 {
        patch_types::ErrorCode::ServiceUnhealthy
    } else {
        patch_types::ErrorCode::InvalidRequest
    }
}

fn foreign(status: u16, body: &[u8], error: &serde_json::Error) -> Error {
    let excerpt: String = String::from_utf8_lossy(body).chars().take(120).collect();
    not_understood(format!("HTTP {status} with a body that is not an envelope ({error}): {excerpt:?}"))
}
