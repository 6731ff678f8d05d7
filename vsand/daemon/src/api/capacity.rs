//! Requests about room.

use axum::Json;
use axum::extract::State;
use ferro_protocol::api::{ApiError, CapacityReport};
use ferro_transport::http::Answer;

use super::Api;

/// The room there is, what takes it, and what the loss of each host and each disk would mean.
#[utoipa::path(get, path = "/v1/capacity", tag = "capacity",
    responses((status = 200, body = CapacityReport), (status = "default", body = ApiError)))]
pub(super) async fn report(State(api): State<Api>) -> Answer<CapacityReport> {
    Ok(Json(api.control.capacity().await?))
}
