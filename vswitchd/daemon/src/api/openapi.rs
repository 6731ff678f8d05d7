//! The description of the API.

use axum::Json;
use utoipa::OpenApi;

use super::{handlers, ports, watch};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "vswitchd",
        description = "The local API of the virtual switch, over HTTP/1.1 on a Unix socket. Every answer that is not 2xx has \
                       an ApiError as its body.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "http://localhost", description = "the Unix socket, /run/vswitchd/api.sock by default")),
    paths(
        document,
        handlers::status,
        handlers::config,
        handlers::transact,
        handlers::applied,
        handlers::confirm,
        handlers::undo,
        handlers::uplinks,
        handlers::tunnels,
        handlers::metrics,
        ports::list,
        ports::show,
        ports::attach,
        ports::detach,
        watch::macs,
        watch::release_mac,
        watch::trace,
        watch::capture,
    )
)]
struct Description;

/// The description of this API.
#[utoipa::path(get, path = "/openapi.json", tag = "description",
    responses((status = 200, description = "an OpenAPI 3.1 document", content_type = "application/json")))]
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}
