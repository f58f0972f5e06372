//! The whole service in process: everything but the door. The root side is the stand-in at its socket.

mod back;
mod bad_input;
mod endpoints;
mod roles;
mod schema;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use jiff::Timestamp;
use patch_audit::AuditLog;
use patch_service::{CertificateFacts, PeerIdentity};
use patch_types::event::QueryResult;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{App, Parts, service};
use crate::{
    audit::Audit,
    door::DoorCounters,
    inventory::Inventory,
    jobs::{Jobs, testing::Root},
};

const STATUS: &str = "\
Package: bash
Status: install ok installed
Essential: yes
Section: shells
Installed-Size: 7164
Architecture: amd64
Version: 5.2.15-2
Description: GNU Bourne Again SHell

Package: libssl3
Status: hold ok installed
Section: libs
Installed-Size: 6000
Architecture: amd64
Version: 3.0.1-1
Description: Secure Sockets Layer toolkit

Package: old
Status: deinstall ok config-files
Section: misc
Architecture: all
Version: 1.0
Description: gone
";

/// An answer, taken apart.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub(super) fn data(&self) -> Value {
        assert_eq!(self.json()["success"], json!(true), "{}", self.json());
        self.json()["data"].clone()
    }

    pub(super) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }
}

/// A service, its root directory, and the root side's stand-in.
pub(super) struct Api {
    pub(super) root: Root,
    pub(super) jobs: Jobs,
    router: Router,
}

impl Api {
    pub(super) async fn new() -> Self {
        Self::with_config("").await
    }

    pub(super) async fn with_config(config: &str) -> Self {
        let root = Root::new();
        let (app, jobs) = application(&root, config).await;
        let api = Self { router: service(app), jobs, root };
        api.answers(QueryResult::Patches(patch_set()));
        api
    }

    /// What the root side answers from now on.
    pub(super) fn answers(&self, answer: QueryResult) {
        self.root.manners(|m| m.answer = Some(answer));
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(request("ops", Method::GET, path, None)).await
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(request("ops", Method::POST, path, Some(body.to_string()))).await
    }
}

/// The application below a root directory, with what it needs there.
pub(crate) async fn application(root: &Root, config: &str) -> (App, Jobs) {
    let path = root.path();
    for dir in ["var/lib/dpkg", "var/lib/apt/lists", "var/log/linux_patch_api", crate::config::STATE_DIR] {
        std::fs::create_dir_all(path.join(dir)).unwrap();
    }
    std::fs::write(path.join("var/lib/dpkg/status"), STATUS).unwrap();
    let settings = crate::config::parse(config, path, &path.join("config.yaml")).unwrap();
    let options = patch_audit::Options::new("test").without_journal();
    let audit = Arc::new(AuditLog::open(&path.join(patch_audit::LOG_PATH), options).unwrap());
    let executor = root.executor();
    let jobs =
        Jobs::open(path, executor.clone(), Audit::new(Arc::clone(&audit)), crate::jobs::testing::settings())
            .await
            .unwrap();
    let app = App::new(Parts {
        root: path.to_owned(),
        settings,
        jobs: jobs.clone(),
        executor: executor.clone(),
        inventory: Inventory::new(path, executor),
        audit,
        door: Arc::new(DoorCounters::default()),
    });
    (app, jobs)
}

/// A request as the door hands it on. The path is below the prefix unless it is absolute.
pub(super) fn request(identity: &str, method: Method, path: &str, body: Option<String>) -> Request<Body> {
    let facts = CertificateFacts {
        common_name: identity.to_owned(),
        serial: "01".into(),
        not_before: Timestamp::UNIX_EPOCH,
        not_after: Timestamp::MAX,
        fingerprint_sha256: "ab".repeat(32),
    };
    let peer = PeerIdentity::from_facts(facts, "10.0.0.7:5000".parse().unwrap());
    let uri = if path.starts_with("//") || path.starts_with("/api") {
        path.to_owned()
    } else {
        format!("/api/v1{path}")
    };
    let mut builder = Request::builder().method(method).uri(uri).header(header::HOST, "host").extension(peer);
    if let Some(body) = &body {
        builder = builder
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_LENGTH, body.len().to_string());
    }
    builder.body(body.map_or_else(Body::empty, Body::from)).unwrap()
}

/// An update of `libssl3`, with an advisory.
pub(super) fn patch_set() -> patch_types::api::PatchSet {
    serde_json::from_value(json!({
        "patches": [{
            "name": "libssl3", "architecture": "amd64", "current_version": "3.0.1-1", "available_version": "3.0.2-1",
            "origin": null, "security": true, "severity": "high", "cve_ids": ["CVE-2026-0001"],
            "advisories": ["DSA-1-1"], "description": "Secure Sockets Layer toolkit", "state": "ready",
            "reason": null, "requires_reboot": false, "download_size": 10
        }],
        "total": 1, "security_updates": 1, "requires_reboot": false, "last_update_check": null
    }))
    .unwrap()
}
