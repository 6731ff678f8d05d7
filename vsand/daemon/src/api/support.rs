//! Requests of who makes a support bundle.

use axum::Json;
use axum::extract::State;
use ferro_protocol::api::{ApiError, HostSupport};
use ferro_transport::http::{Answer, Path};

use super::Api;
use super::extract::id;

/// What a support bundle has of one host: versions, settings, counters, logs where journald keeps them. No secrets.
#[utoipa::path(get, path = "/v1/hosts/{id}/support", tag = "hosts",
    params(("id" = String, Path, description = "the host's id")),
    responses((status = 200, body = HostSupport), (status = "default", body = ApiError)))]
pub(super) async fn of_host(State(api): State<Api>, Path(host): Path<String>) -> Answer<HostSupport> {
    Ok(Json(api.control.host_support(id(&host, "host")?).await?))
}
