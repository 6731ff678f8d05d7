//! The description of the API.

use axum::Json;
use utoipa::OpenApi;

use super::handlers;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "hypervisord",
        description = "The local API of the hypervisor, over HTTP/1.1 on a Unix socket. Every answer that is not 2xx has an \
                       ApiError as its body.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "http://localhost", description = "the Unix socket, /run/hypervisord/api.sock by default")),
    paths(
        document,
        handlers::status,
        handlers::host,
        handlers::metrics,
        handlers::list,
        handlers::create,
        handlers::show,
        handlers::replace,
        handlers::delete,
        handlers::start,
        handlers::stop,
        handlers::kill,
        handlers::reset,
        handlers::pause,
        handlers::resume,
        handlers::attach_disk,
        handlers::detach_disk,
        handlers::attach_nic,
        handlers::detach_nic,
        handlers::stats,
        handlers::log,
        handlers::console,
    )
)]
struct Description;

/// The description of this API.
#[utoipa::path(get, path = "/openapi.json", tag = "description",
    responses((status = 200, description = "an OpenAPI 3.1 document", content_type = "application/json")))]
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ROUTES;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let described = serde_json::to_value(Description::openapi()).unwrap();
        let mut there: Vec<(String, String)> = Vec::new();
        for (path, methods) in described["paths"].as_object().unwrap() {
            there.extend(methods.as_object().unwrap().keys().map(|method| (method.clone(), path.clone())));
        }
        let mut routes: Vec<(String, String)> =
            ROUTES.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
        there.sort();
        routes.sort();
        assert_eq!(there, routes);
    }
}
