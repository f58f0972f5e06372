//! The table of contents: every path, its handler, the role that it takes.

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware,
    routing::{self, MethodRouter},
};
use patch_service::{Refusal, envelope, strict};
use tower::ServiceBuilder;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouter},
    routes,
};

use super::{access, app::App, health, jobs, metrics, observe, openapi, packages, patches, system, ws};
use crate::config::Role;

/// What every path starts with.
pub const PREFIX: &str = "/api/v1";

/// Hands every route to a macro: method, path, role, whether it takes a query, handler.
macro_rules! each_route {
    ($with:ident) => {
        $with!(get, "/packages", Viewer, query, packages::list);
        $with!(get, "/packages/{name}", Viewer, bare, packages::show);
        $with!(post, "/packages", Operator, bare, packages::install);
        $with!(put, "/packages/{name}", Operator, bare, packages::update);
        $with!(delete, "/packages/{name}", Operator, query, packages::remove);
        $with!(get, "/patches", Viewer, bare, patches::list);
        $with!(get, "/patches/{name}/why-not", Viewer, bare, patches::why_not);
        $with!(post, "/patches/refresh", Operator, bare, patches::refresh);
        $with!(post, "/patches/apply", Operator, bare, patches::apply);
        $with!(get, "/system/info", Viewer, bare, system::info);
        $with!(get, "/system/services", Viewer, query, system::services);
        $with!(get, "/system/services/{name}", Viewer, bare, system::service);
        $with!(get, "/system/reboot", Viewer, bare, system::reboot_state);
        $with!(post, "/system/reboot", Admin, bare, system::reboot);
        $with!(put, "/system/crl", Admin, bare, system::crl);
        $with!(get, "/compliance", Viewer, bare, system::compliance);
        $with!(get, "/jobs", Viewer, query, jobs::list);
        $with!(get, "/jobs/{id}", Viewer, bare, jobs::show);
        $with!(delete, "/jobs/{id}", Operator, bare, jobs::cancel);
        $with!(post, "/jobs/{id}/rollback", Operator, bare, jobs::rollback);
        $with!(post, "/jobs/{id}/confirm", Operator, bare, jobs::confirm);
        $with!(get, "/ws/jobs", Viewer, bare, ws::jobs);
        $with!(get, "/health", Viewer, bare, health::get);
        $with!(get, "/metrics", Viewer, bare, metrics::get);
        $with!(get, "/openapi.json", Viewer, bare, openapi::get);
    };
}

/// All routes with their description, of which the document is made.
pub(super) fn table() -> OpenApiRouter<App> {
    let mut table = OpenApiRouter::with_openapi(openapi::head());
    macro_rules! describe {
        ($method:ident, $path:literal, $role:ident, $query:ident, $group:ident::$handler:ident) => {
            table = table.routes(noted(Role::$role, routes!($group::$handler)));
        };
    }
    each_route!(describe);
    OpenApiRouter::with_openapi(openapi::head()).nest(PREFIX, table)
}

fn noted(role: Role, (schemas, mut paths, methods): UtoipaMethodRouter<App>) -> UtoipaMethodRouter<App> {
    openapi::note_role(&mut paths, role);
    (schemas, paths, methods)
}

/// All routes as they are served. Their description is made for the document alone: it would cost the agent a tenth of
/// its memory.
fn served() -> Router<App> {
    let mut router = Router::new();
    macro_rules! serve {
        ($method:ident, $path:literal, $role:ident, $query:ident, $group:ident::$handler:ident) => {
            router = router.route($path, $query(Role::$role, routing::$method($group::$handler)));
        };
    }
    each_route!(serve);
    Router::new().nest(PREFIX, router)
}

/// A route that takes no query: an option in the wrong place is refused, whatever the handler reads.
fn bare(role: Role, methods: MethodRouter<App>) -> MethodRouter<App> {
    query(role, methods.route_layer(middleware::from_fn(access::no_query)))
}

/// A route that takes a query.
fn query(role: Role, methods: MethodRouter<App>) -> MethodRouter<App> {
    methods.route_layer(middleware::from_fn(access::check(role)))
}

/// 405; the router adds the header `Allow`.
async fn method_not_allowed(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} does not take {method}; the header Allow lists what it takes", uri.path());
    Refusal::invalid(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// The service behind the door. Outermost first: the request's id, the record of it, the rate limit, the strict checks,
/// the role, the query, the handler. The rate limit stands before every other check: each refusal costs a record, too.
pub fn service(app: App) -> Router {
    served()
        .fallback(strict::not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app.clone())
        // One layer made of all: each of its own would be boxed for every route, and copied with every request by those
        // around it.
        .layer(
            ServiceBuilder::new()
                .layer(middleware::from_fn(envelope::request_id))
                .layer(middleware::from_fn_with_state(app.clone(), observe::request))
                .layer(middleware::from_fn_with_state(app, access::admit))
                .layer(middleware::from_fn(strict::strict)),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_what_is_described() {
        let mut served = Vec::new();
        macro_rules! note {
            ($method:ident, $path:literal, $role:ident, $query:ident, $group:ident::$handler:ident) => {
                let path = format!("{PREFIX}{}", $path);
                served.push((path, stringify!($method).to_owned(), stringify!($query) == "query"));
            };
        }
        each_route!(note);
        served.sort();
        let document = openapi::document().unwrap();
        let mut described = Vec::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let takes_query = operation["parameters"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|parameter| parameter["in"] == "query"));
                described.push((path.clone(), method.clone(), takes_query));
            }
        }
        described.sort();
        assert_eq!(served, described);
    }
}
