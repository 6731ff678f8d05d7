//! The description of the API.

use axum::Json;
use utoipa::OpenApi;

use super::{
    capacity, documents, events, handlers, health, maintenance, scrubs, support, transfers, volumes,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "vsand",
        description = "The local API of the storage daemon, over HTTP/1.1 on a Unix socket. Every answer that is not 2xx has \
                       an ApiError as its body.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "http://localhost", description = "the Unix socket, /run/vsand/api.sock by default")),
    paths(
        document,
        handlers::status,
        health::report,
        health::mute,
        health::unmute,
        events::list,
        maintenance::enter,
        maintenance::exit,
        maintenance::of_host,
        maintenance::of_disk,
        capacity::report,
        support::of_host,
        handlers::cluster,
        handlers::bootstrap,
        handlers::create_token,
        handlers::join,
        handlers::upgrade,
        handlers::hosts,
        handlers::set_host,
        handlers::remove_host,
        handlers::keep_host,
        handlers::disks,
        handlers::add_disk,
        handlers::remove_disk,
        handlers::keep_disk,
        handlers::revive_disk,
        handlers::objects,
        handlers::object,
        handlers::locks,
        handlers::break_lock,
        handlers::resyncs,
        scrubs::list,
        scrubs::change,
        handlers::top,
        handlers::metrics,
        documents::list,
        documents::show,
        documents::put,
        documents::delete,
        volumes::list,
        volumes::create,
        volumes::show,
        volumes::delete,
        volumes::open,
        volumes::close,
        volumes::resize,
        volumes::set_policy,
        volumes::limit,
        volumes::place,
        volumes::provision,
        transfers::begin,
        transfers::end,
        transfers::read,
        transfers::write,
        transfers::discard,
    )
)]
struct Description;

/// The description of this API.
#[utoipa::path(get, path = "/openapi.json", tag = "description",
    responses((status = 200, description = "an OpenAPI 3.1 document", content_type = "application/json")))]
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}
