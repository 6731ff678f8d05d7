//! Requests about health checks.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use ferro_protocol::api::{
    ApiError, HealthCheck, HealthReport, MUTE_REASON_BYTES_MAX, MUTE_SECONDS_MAX, MUTE_SECONDS_MIN,
    MuteRequest,
};
use ferro_transport::http::{Answer, Body, Failure, Path, bad_request};

use super::Api;

/// All health checks with what they find, muted ones too.
#[utoipa::path(get, path = "/v1/health", tag = "health",
    responses((status = 200, body = HealthReport), (status = "default", body = ApiError)))]
pub(super) async fn report(State(api): State<Api>) -> Answer<HealthReport> {
    Ok(Json(api.control.health().await?))
}

/// Mute a check that finds something: it is not shown in the status until the time is up or it gets worse.
#[utoipa::path(put, path = "/v1/health/mutes/{code}", tag = "health", request_body = MuteRequest,
    params(("code" = String, Path, description = "the check's code")),
    responses((status = 200, body = HealthCheck), (status = "default", body = ApiError)))]
pub(super) async fn mute(
    State(api): State<Api>,
    Path(code): Path<String>,
    Body(request): Body<MuteRequest>,
) -> Answer<HealthCheck> {
    if !(MUTE_SECONDS_MIN..=MUTE_SECONDS_MAX).contains(&request.seconds) {
        let message = format!("a check can't be muted for {} s", request.seconds);
        return Err(bad_request(message, "choose a time from one minute to 30 days").into());
    }
    let text = request.reason.as_deref().unwrap_or("");
    if text.len() > MUTE_REASON_BYTES_MAX || text.chars().any(char::is_control) {
        let message = format!("the reason for muting {code} is too long or no plain text");
        return Err(bad_request(message, "write one line of at most 256 bytes").into());
    }
    Ok(Json(api.control.mute_check(&code, request).await?))
}

/// Show a muted check again.
#[utoipa::path(delete, path = "/v1/health/mutes/{code}", tag = "health",
    params(("code" = String, Path, description = "the check's code")),
    responses((status = 204, description = "it is shown again"), (status = "default", body = ApiError)))]
pub(super) async fn unmute(State(api): State<Api>, Path(code): Path<String>) -> Result<StatusCode, Failure> {
    api.control.unmute_check(&code).await?;
    Ok(StatusCode::NO_CONTENT)
}
