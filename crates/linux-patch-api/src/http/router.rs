//! The table of contents: every path, its handler, the role that it takes.

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware,
};
use patch_service::{Refusal, envelope, strict};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt},
    routes,
};

use super::{access, app::App, health, jobs, metrics, observe, openapi, packages, patches, system, ws};
use crate::config::Role;

/// What every path starts with.
pub const PREFIX: &str = "/api/v1";

/// All routes, with their description. A route that is not described here does not exist.
pub(super) fn table() -> OpenApiRouter<App> {
    let routes = OpenApiRouter::with_openapi(openapi::head())
        .routes(viewer(routes!(packages::list)))
        .routes(viewer(routes!(packages::show)))
        .routes(operator(routes!(packages::install)))
        .routes(operator(routes!(packages::update)))
        .routes(operator(routes!(packages::remove)))
        .routes(viewer(routes!(patches::list)))
        .routes(viewer(routes!(patches::why_not)))
        .routes(operator(routes!(patches::refresh)))
        .routes(operator(routes!(patches::apply)))
        .routes(viewer(routes!(system::info)))
        .routes(viewer(routes!(system::services)))
        .routes(viewer(routes!(system::service)))
        .routes(viewer(routes!(system::reboot_state)))
        .routes(admin(routes!(system::reboot)))
        .routes(admin(routes!(system::crl)))
        .routes(viewer(routes!(system::compliance)))
        .routes(viewer(routes!(jobs::list)))
        .routes(viewer(routes!(jobs::show)))
        .routes(operator(routes!(jobs::cancel)))
        .routes(operator(routes!(jobs::rollback)))
        .routes(operator(routes!(jobs::confirm)))
        .routes(viewer(routes!(ws::jobs)))
        .routes(viewer(routes!(health::get)))
        .routes(viewer(routes!(metrics::get)))
        .routes(viewer(routes!(openapi::get)));
    OpenApiRouter::with_openapi(openapi::head()).nest(PREFIX, routes)
}

type Routes = UtoipaMethodRouter<App>;

fn viewer(routes: Routes) -> Routes {
    requires(Role::Viewer, routes)
}

fn operator(routes: Routes) -> Routes {
    requires(Role::Operator, routes)
}

fn admin(routes: Routes) -> Routes {
    requires(Role::Admin, routes)
}

/// A route that describes no query takes none: an option in the wrong place is refused, whatever the handler reads.
fn requires(role: Role, (schemas, mut paths, methods): Routes) -> Routes {
    openapi::note_role(&mut paths, role);
    let takes_query = openapi::describes_query(&paths);
    (schemas, paths, methods).map(|methods| {
        let methods =
            if takes_query { methods } else { methods.route_layer(middleware::from_fn(access::no_query)) };
        methods.route_layer(middleware::from_fn(access::check(role)))
    })
}

/// 405; the router adds the header `Allow`.
async fn method_not_allowed(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} does not take {method}; the header Allow lists what it takes", uri.path());
    Refusal::invalid(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// The service behind the door. Outermost first: the request's id, the record of it, the rate limit, the strict checks,
/// the role, the query, the handler. The rate limit stands before every other check: each refusal costs a record, too.
pub fn service(app: App) -> Router {
    let (routes, _) = table().split_for_parts();
    routes
        .fallback(strict::not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app.clone())
        .layer(middleware::from_fn(strict::strict))
        .layer(middleware::from_fn_with_state(app.clone(), access::admit))
        .layer(middleware::from_fn_with_state(app, observe::request))
        .layer(middleware::from_fn(envelope::request_id))
}
