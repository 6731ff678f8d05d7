//! The local HTTP API: what `vswctl` and other programs on this host speak over the Unix socket.
//!
//! Three layers, each of which knows only the next: [`serve`] moves requests, the handlers check what can be checked
//! without knowing the network and put words into types, [`control::ControlPlane`] does the work. Errors leave in one form
//! ([`ferro_protocol::api::ApiError`]), rejections of the HTTP framework included.
//!
//! `GET /openapi.json` describes it all. [`ROUTES`] and that document are held together by a test.
//!
//! What it must not know: the directory, the worker, peers. Who may connect is decided by the socket's mode and group.

pub mod control;
mod extract;
pub mod fail;
mod handlers;
mod openapi;
mod ports;
pub mod view;
mod watch;

use std::sync::Arc;

use axum::Router;
use ferro_transport::http::with_refusals;
use tokio::net::UnixListener;

use control::ControlPlane;

/// The largest JSON body: a transaction that configures a large network at once.
const JSON_BYTES_MAX: usize = 16 << 20;

/// What every handler is given.
#[derive(Clone)]
struct Api {
    control: Arc<dyn ControlPlane>,
}

ferro_transport::routes! {
    get "/openapi.json" => openapi::document,
    get "/metrics" => handlers::metrics,
    get "/v1/status" => handlers::status,
    get "/v1/config" => handlers::config,
    post "/v1/transactions" => handlers::transact,
    get "/v1/revisions/{revision}" => handlers::applied,
    post "/v1/revisions/{revision}/confirm" => handlers::confirm,
    post "/v1/revisions/{revision}/undo" => handlers::undo,
    get "/v1/ports" => ports::list,
    get "/v1/ports/{name}" => ports::show,
    put "/v1/ports/{name}/attachment" => ports::attach,
    delete "/v1/ports/{name}/attachment" => ports::detach,
    get "/v1/uplinks" => handlers::uplinks,
    get "/v1/tunnels" => handlers::tunnels,
    get "/v1/macs" => watch::macs,
    post "/v1/macs/release" => watch::release_mac,
    post "/v1/trace" => watch::trace,
    get "/v1/capture" => watch::capture,
}

/// The API over `control`.
pub fn router(control: Arc<dyn ControlPlane>) -> Router {
    with_refusals(routes(), JSON_BYTES_MAX).with_state(Api { control })
}

/// Serves the API on `listener` until `shutdown` is done and the requests under way are answered. A capture goes on until its
/// client has gone or the worker has ended it: end the worker's captures first, or drop this future.
pub async fn serve(
    listener: UnixListener,
    control: Arc<dyn ControlPlane>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(control)).with_graceful_shutdown(shutdown).await
}
