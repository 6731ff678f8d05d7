//! The local HTTP API: what `vmctl` and other programs on this host speak over the Unix socket.
//!
//! Three layers, each of which knows only the next: [`serve`] moves requests, the handlers check what can be checked
//! without knowing the cluster and put words into types, [`control::ControlPlane`] does the work. Errors leave in one form
//! ([`ferro_protocol::api::ApiError`]), rejections of the HTTP framework included.
//!
//! `GET /openapi.json` describes it all. [`ROUTES`] and that document are held together by a test.
//!
//! What it must not know: the directory, processes. Who may connect is decided by the socket's mode and group.

pub mod control;
mod handlers;
mod openapi;

use std::sync::Arc;

use axum::Router;
use ferro_transport::http::with_refusals;
use tokio::net::UnixListener;

use control::ControlPlane;

/// The largest JSON body: a specification.
const JSON_BYTES_MAX: usize = 256 << 10;

/// What every handler is given.
#[derive(Clone)]
struct Api {
    control: Arc<dyn ControlPlane>,
}

ferro_transport::routes! {
    get "/openapi.json" => openapi::document,
    get "/metrics" => handlers::metrics,
    get "/v1/status" => handlers::status,
    get "/v1/host" => handlers::host,
    get "/v1/vms" => handlers::list,
    post "/v1/vms" => handlers::create,
    get "/v1/vms/{name}" => handlers::show,
    put "/v1/vms/{name}" => handlers::replace,
    delete "/v1/vms/{name}" => handlers::delete,
    post "/v1/vms/{name}/start" => handlers::start,
    post "/v1/vms/{name}/stop" => handlers::stop,
    post "/v1/vms/{name}/kill" => handlers::kill,
    post "/v1/vms/{name}/reset" => handlers::reset,
    post "/v1/vms/{name}/pause" => handlers::pause,
    post "/v1/vms/{name}/resume" => handlers::resume,
    post "/v1/vms/{name}/disks" => handlers::attach_disk,
    delete "/v1/vms/{name}/disks/{volume}" => handlers::detach_disk,
    post "/v1/vms/{name}/nics" => handlers::attach_nic,
    delete "/v1/vms/{name}/nics/{index}" => handlers::detach_nic,
    get "/v1/vms/{name}/stats" => handlers::stats,
    get "/v1/vms/{name}/log" => handlers::log,
    get "/v1/vms/{name}/console" => handlers::console,
}

/// The API over `control`.
pub fn router(control: Arc<dyn ControlPlane>) -> Router {
    with_refusals(routes(), JSON_BYTES_MAX).with_state(Api { control })
}

/// Serves the API on `listener` until `shutdown` is done and the requests under way are answered.
pub async fn serve(
    listener: UnixListener,
    control: Arc<dyn ControlPlane>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(control)).with_graceful_shutdown(shutdown).await
}
