//! Every route and the role that it takes. A route that is missing here fails the comparison.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};

use super::{Api, request};

const ROUTES: &[(&str, &str, &str)] = &[
    ("GET", "/packages", "viewer"),
    ("GET", "/packages/{name}", "viewer"),
    ("POST", "/packages", "operator"),
    ("PUT", "/packages/{name}", "operator"),
    ("DELETE", "/packages/{name}", "operator"),
    ("GET", "/patches", "viewer"),
    ("GET", "/patches/{name}/why-not", "viewer"),
    ("POST", "/patches/refresh", "operator"),
    ("POST", "/patches/apply", "operator"),
    ("GET", "/system/info", "viewer"),
    ("GET", "/system/services", "viewer"),
    ("GET", "/system/services/{name}", "viewer"),
    ("GET", "/system/reboot", "viewer"),
    ("POST", "/system/reboot", "admin"),
    ("PUT", "/system/crl", "admin"),
    ("GET", "/compliance", "viewer"),
    ("GET", "/jobs", "viewer"),
    ("GET", "/jobs/{id}", "viewer"),
    ("DELETE", "/jobs/{id}", "operator"),
    ("POST", "/jobs/{id}/rollback", "operator"),
    ("POST", "/jobs/{id}/confirm", "operator"),
    ("GET", "/ws/jobs", "viewer"),
    ("GET", "/health", "viewer"),
    ("GET", "/metrics", "viewer"),
    ("GET", "/openapi.json", "viewer"),
];

const ROLES: [&str; 3] = ["viewer", "operator", "admin"];

#[test]
fn every_route_is_in_the_table() {
    let document = crate::http::openapi::document().unwrap();
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let role = operation["x-required-role"].as_str().unwrap().to_owned();
            described.insert((method.to_uppercase(), path.trim_start_matches("/api/v1").to_owned(), role));
        }
    }
    let tested = ROUTES.iter().map(|(m, p, r)| ((*m).into(), (*p).into(), (*r).into())).collect();
    assert_eq!(described, tested);
}

#[tokio::test]
async fn each_role_reaches_what_it_may_and_nothing_else() {
    let api = Api::with_config("security: {roles: {viewer: viewer, operator: operator, admin: admin}}").await;
    for (method, path, needed) in ROUTES {
        for (rank, role) in ROLES.iter().enumerate() {
            // A name and an id that are refused by the handler: whoever is let through changes nothing.
            let path = path.replace("{name}", "-").replace("{id}", "-");
            let body = matches!(*method, "POST" | "PUT").then(|| "[]".to_owned());
            let method: Method = method.parse().unwrap();
            let answer = api.send(request(role, method.clone(), &path, body)).await;
            let may = ROLES.iter().position(|r| r == needed).unwrap() <= rank;
            assert_eq!(
                answer.status != StatusCode::FORBIDDEN,
                may,
                "{role} {method} {path}: {}",
                answer.status
            );
            if !may {
                assert_eq!(answer.code(), "AUTHZ_FORBIDDEN");
            }
        }
    }
    let stranger = api.send(request("stranger", Method::GET, "/packages", None)).await;
    assert_eq!((stranger.status, stranger.code().as_str()), (StatusCode::FORBIDDEN, "AUTHZ_FORBIDDEN"));
}
