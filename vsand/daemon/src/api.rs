//! The local HTTP API: what `vsanctl` and other programs on this host speak over the Unix socket.
//!
//! Three layers, each of which knows only the next: [`serve`] moves requests, the handlers check what can be checked
//! without knowing the cluster and put words into types, [`control::ControlPlane`] does the work. Errors leave in one form
//! ([`ferro_protocol::api::ApiError`]), rejections of the HTTP framework included.
//!
//! `GET /openapi.json` describes it all. [`ROUTES`] and that document are held together by a test.
//!
//! What it must not know: the directory, disks, peers. Who may connect is decided by the socket's mode and group.

mod capacity;
pub mod control;
mod documents;
mod events;
mod extract;
pub mod fail;
mod handlers;
mod health;
mod maintenance;
mod openapi;
mod scrubs;
mod support;
mod transfers;
mod volumes;

use std::sync::Arc;

use axum::Router;
use ferro_transport::http::with_refusals;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use control::ControlPlane;

/// The largest JSON body: the largest request is a join token of a few hundred bytes.
const JSON_BYTES_MAX: usize = 64 << 10;
/// How many blocks of a transfer are held in memory at once, over all clients: 128 MiB at 4 MiB each.
const DATA_REQUESTS_MAX: usize = 32;

/// What every handler is given.
#[derive(Clone)]
struct Api {
    control: Arc<dyn ControlPlane>,
    data_slots: Arc<Semaphore>,
}

ferro_transport::routes! {
    get "/openapi.json" => openapi::document,
    get "/metrics" => handlers::metrics,
    get "/v1/status" => handlers::status,
    get "/v1/health" => health::report,
    put "/v1/health/mutes/{code}" => health::mute,
    delete "/v1/health/mutes/{code}" => health::unmute,
    get "/v1/capacity" => capacity::report,
    get "/v1/events" => events::list,
    get "/v1/cluster" => handlers::cluster,
    post "/v1/cluster/bootstrap" => handlers::bootstrap,
    post "/v1/cluster/tokens" => handlers::create_token,
    post "/v1/cluster/join" => handlers::join,
    post "/v1/cluster/upgrade" => handlers::upgrade,
    get "/v1/hosts" => handlers::hosts,
    patch "/v1/hosts/{id}" => handlers::set_host,
    delete "/v1/hosts/{id}" => handlers::remove_host,
    delete "/v1/hosts/{id}/removal" => handlers::keep_host,
    get "/v1/hosts/{id}/support" => support::of_host,
    put "/v1/hosts/{id}/maintenance" => maintenance::enter,
    delete "/v1/hosts/{id}/maintenance" => maintenance::exit,
    get "/v1/hosts/{id}/safety" => maintenance::of_host,
    get "/v1/disks/{id}/safety" => maintenance::of_disk,
    get "/v1/disks" => handlers::disks,
    post "/v1/disks" => handlers::add_disk,
    delete "/v1/disks/{id}" => handlers::remove_disk,
    delete "/v1/disks/{id}/removal" => handlers::keep_disk,
    post "/v1/disks/{id}/revive" => handlers::revive_disk,
    get "/v1/objects" => handlers::objects,
    get "/v1/objects/{id}" => handlers::object,
    get "/v1/locks" => handlers::locks,
    post "/v1/locks/{id}/break" => handlers::break_lock,
    get "/v1/resyncs" => handlers::resyncs,
    get "/v1/scrubs" => scrubs::list,
    post "/v1/scrubs" => scrubs::change,
    get "/v1/top" => handlers::top,
    get "/v1/documents" => documents::list,
    get "/v1/documents/{*name}" => documents::show,
    put "/v1/documents/{*name}" => documents::put,
    delete "/v1/documents/{*name}" => documents::delete,
    get "/v1/volumes" => volumes::list,
    post "/v1/volumes" => volumes::create,
    get "/v1/volumes/{name}" => volumes::show,
    delete "/v1/volumes/{name}" => volumes::delete,
    post "/v1/volumes/{name}/open" => volumes::open,
    post "/v1/volumes/{name}/close" => volumes::close,
    post "/v1/volumes/{name}/resize" => volumes::resize,
    post "/v1/volumes/{name}/policy" => volumes::set_policy,
    put "/v1/volumes/{name}/limits" => volumes::limit,
    put "/v1/volumes/{name}/placement" => volumes::place,
    put "/v1/volumes/{name}/provisioning" => volumes::provision,
    post "/v1/volumes/{name}/transfers" => transfers::begin,
    delete "/v1/volumes/{name}/transfers/{id}" => transfers::end,
    get "/v1/volumes/{name}/transfers/{id}/data" => transfers::read,
    put "/v1/volumes/{name}/transfers/{id}/data" => transfers::write,
    post "/v1/volumes/{name}/transfers/{id}/discard" => transfers::discard,
}

/// The API over `control`.
pub fn router(control: Arc<dyn ControlPlane>) -> Router {
    with_refusals(routes(), JSON_BYTES_MAX)
        .with_state(Api { control, data_slots: Arc::new(Semaphore::new(DATA_REQUESTS_MAX)) })
}

/// Serves the API on `listener` until `shutdown` is done and the requests under way are answered.
pub async fn serve(
    listener: UnixListener,
    control: Arc<dyn ControlPlane>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(control)).with_graceful_shutdown(shutdown).await
}
