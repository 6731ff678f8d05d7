//! Requests about scrubs.

use axum::Json;
use axum::extract::State;
use ferro_protocol::api::{ApiError, ScrubList, ScrubRequest};
use ferro_transport::http::{Answer, Body};

use super::Api;

/// The latest scrub of each volume, and when the next begins.
#[utoipa::path(get, path = "/v1/scrubs", tag = "scrubs",
    responses((status = 200, body = ScrubList), (status = "default", body = ApiError)))]
pub(super) async fn list(State(api): State<Api>) -> Answer<ScrubList> {
    Ok(Json(api.control.scrubs().await?))
}

/// Start or stop the scrub of a volume, or of all. Answers with those volumes.
#[utoipa::path(post, path = "/v1/scrubs", tag = "scrubs", request_body = ScrubRequest,
    responses((status = 200, body = ScrubList), (status = "default", body = ApiError)))]
pub(super) async fn change(State(api): State<Api>, Body(request): Body<ScrubRequest>) -> Answer<ScrubList> {
    Ok(Json(api.control.change_scrubs(&request).await?))
}
