//! What clients send, and what administrators write.

use std::{fmt::Debug, fs, path::Path, path::PathBuf, sync::LazyLock};

use axum::{Router, middleware, routing};
use http_body_util::BodyExt as _;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use patch_service::{
    AllowList, CertificateFacts, CrlFacts, LoadedTls, PemInput, Reply, StrictJson, StrictQuery, TlsOptions,
    TlsSource, envelope, strict, tls,
};
use patch_types::api;
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::text;

/// The same as a body may be and as a query.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it is only read into")]
struct Page {
    limit: Option<usize>,
    name: Option<String>,
}

fn routes() -> Router {
    async fn echo<T: Serialize + DeserializeOwned>(StrictJson(body): StrictJson<T>) -> Reply<T> {
        Reply::ok(body)
    }
    async fn optional(body: Option<StrictJson<api::UpdateRequest>>) -> Reply<bool> {
        Reply::ok(body.is_some())
    }
    async fn query(StrictQuery(page): StrictQuery<Page>) -> Reply<String> {
        Reply::ok(format!("{page:?}"))
    }
    Router::new()
        .route("/p", routing::get(query).post(echo::<api::InstallRequest>))
        .route("/p/{name}", routing::put(optional).delete(echo::<api::RemoveRequest>))
        .route("/a", routing::post(echo::<api::ApplyRequest>))
        .fallback(strict::not_found)
        .layer(middleware::from_fn(strict::strict))
        .layer(middleware::from_fn(envelope::request_id))
}

/// A connection's plain bytes: the HTTP library, the strict checks, the extractors. What comes back of ours is an
/// envelope with a status that a client caused.
pub fn http(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: (tokio::runtime::Runtime, Router) = (
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime"),
            routes(),
        );
    }
    RUNTIME.with(|(runtime, router)| {
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(1 << 20);
            client.write_all(bytes).await.expect("room for it");
            client.shutdown().await.expect("an end");
            let handler = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
                let mut router = router.clone();
                // An answer to HEAD is the head alone.
                let has_body = request.method() != hyper::Method::HEAD;
                async move {
                    let answer = tower_call(&mut router, request).await;
                    let (parts, body) = answer.into_parts();
                    let body = body.collect().await.expect("a whole body").to_bytes();
                    // 400, 404, 405, 411, 413, 415, 422, 431: never a fault of the server.
                    assert!(parts.status.as_u16() < 500, "{}", parts.status);
                    if has_body && parts.status.as_u16() != 405 {
                        let value: serde_json::Value = serde_json::from_slice(&body).expect("an envelope");
                        assert_eq!(value["success"], parts.status.is_success(), "{value}");
                        assert!(value["request_id"].is_string(), "{value}");
                    }
                    let body = http_body_util::Full::new(body);
                    Ok::<_, std::convert::Infallible>(hyper::Response::from_parts(parts, body))
                }
            });
            let served =
                http1::Builder::new().max_headers(128).serve_connection(TokioIo::new(server), handler);
            drop(served.await);
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer).await;
        });
    });
}

async fn tower_call(
    router: &mut Router,
    request: hyper::Request<hyper::body::Incoming>,
) -> axum::response::Response {
    use hyper::service::Service as _;
    let service = hyper_util::service::TowerToHyperService::new(router.clone());
    match service.call(request.map(axum::body::Body::new)).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    }
}

/// What is accepted says the same when it is written and read again.
fn twice<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(bytes).ok()?;
    let again = serde_json::to_vec(&value).expect("it can be written");
    assert_eq!(serde_json::from_slice::<T>(&again).expect("it can be read again"), value);
    Some(value)
}

/// The bodies of requests and the messages of WebSocket clients.
pub fn bodies(bytes: &[u8]) {
    let _ = twice::<api::InstallRequest>(bytes);
    let _ = twice::<api::UpdateRequest>(bytes);
    let _ = twice::<api::RemoveRequest>(bytes);
    let _ = twice::<api::ApplyRequest>(bytes);
    let _ = twice::<api::RollbackRequest>(bytes);
    let _ = twice::<api::RebootRequest>(bytes);
    let _ = twice::<api::ClientMessage>(bytes);
}

/// `config.yaml`, as both sides read it.
pub fn config(bytes: &[u8]) {
    let all = text(bytes);
    let read = linux_patch_api::config::parse(&all, Path::new("/"), Path::new("config.yaml"));
    if let Err(error) = &read {
        assert!(!error.to_string().is_empty(), "a refusal without a word");
    }
    let _ = patch_executor::settings(&all);
}

/// `whitelist.yaml`.
pub fn allow_list(bytes: &[u8]) {
    match AllowList::parse(&text(bytes), "whitelist.yaml") {
        Ok(list) => {
            let _ = list.entries();
            // IPv6 is nobody's, whatever the list says.
            assert!(!list.permits(std::net::IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)));
            let _ = list.permits(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
        }
        Err(error) => assert!(!error.message.is_empty(), "a refusal without a word"),
    }
}

/// A CA of its own, and a place for PEM files.
struct Pki {
    directory: tempfile::TempDir,
    source: TlsSource,
}

static PKI: LazyLock<Pki> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let (names, clients) = (["localhost".to_owned()], ["alice".to_owned()]);
    patch_service::pki::init(directory.path(), &names, &[], &clients, patch_service::pki::Existing::Keep)
        .expect("certificates");
    let source = TlsSource::read(&at("ca.pem"), &at("server.pem"), &at("server.key.pem"), None);
    Pki { source: source.expect("readable"), directory }
});

/// The bytes as a file of PEM blocks; if they are none, as one block of the label.
fn pem(bytes: &[u8], label: &str) -> (PathBuf, PemInput) {
    thread_local! {
        static PLACE: PathBuf = PKI.directory.path().join(format!("{:?}.pem", std::thread::current().id()));
    }
    let path = PLACE.with(Clone::clone);
    if bytes.starts_with(b"-----BEGIN") {
        fs::write(&path, bytes).expect("room on the disk");
    } else {
        let block = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", base64(bytes));
        fs::write(&path, block).expect("room on the disk");
    }
    let input = PemInput::read(&path).expect("readable");
    (path, input)
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| DIGITS.get((bits & 63) as usize).map_or('A', |b| char::from(*b));
    let mut written = String::new();
    for piece in bytes.chunks(3) {
        let at = |index: usize| u32::from(piece.get(index).copied().unwrap_or_default());
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for index in 0..4 {
            written.push(if index <= piece.len() { digit(bits >> (18 - 6 * index)) } else { '=' });
        }
    }
    written
}

/// Certificates, and keys: as the CA's, as the server's, as what a client presents.
pub fn certificates(bytes: &[u8]) {
    let _ = CertificateFacts::from_der(bytes);
    let (_, input) = pem(bytes, "CERTIFICATE");
    for source in [
        TlsSource { ca: input.clone(), ..PKI.source.clone() },
        TlsSource { chain: input.clone(), ..PKI.source.clone() },
        TlsSource { key: input, ..PKI.source.clone() },
    ] {
        if let Err(error) = LoadedTls::load(&source, TlsOptions::default()) {
            assert!(!error.to_string().is_empty(), "a refusal without a word");
        }
    }
}

/// Revocation lists. Nobody else than the CA of this process can have signed one.
pub fn revocation(bytes: &[u8]) {
    let facts = CrlFacts::from_der(bytes);
    if let Some(facts) = facts {
        let _ = facts.is_expired(jiff::Timestamp::UNIX_EPOCH);
    }
    let (_, input) = pem(bytes, "X509 CRL");
    assert!(tls::verify_crl(&input, &PKI.source.ca).is_err(), "a list of nobody's was accepted");
}
